/* lt: matrix products of many rows, by cublasLt.
 *
 *     if ((e = lt_new(&lt, stream)) != OK) return e;
 *     e = lt_prepare(lt, &(struct lt_shape){.n = n, .k = k, .out_wide = true}, w, 8192);
 *     e = lt_product(lt, &product);       // enqueued; the result is on the stream
 *     lt_free(lt);
 *
 * Row-major out[rows][n] = x[rows][k] w[n][k]^T is, column-major, D[n x rows] = A^T B with A = w
 * [k x n] and B = x [k x rows]. bf16 in, bf16 or fp32 out, fp32 sums. The residual is C with beta = 1,
 * the bias the epilogue's: it is added to the sum in fp32, then the residual, then the sum is rounded.
 * cublasLt wants a bias in the type of D, so for bf16 rows it is rounded on the way; a bf16 model's
 * biases are bf16 numbers, so nothing is lost.
 *
 * Which algorithm is fastest depends on the rows, by buckets of powers of two (33 to 64, 65 to 128,
 * …): lt_prepare times cublasLt's first few candidates for each, once per shape and bucket. A shape
 * that was not prepared takes cublasLt's first candidate, found at its first product.
 *
 * Rules: the bits of a row depend on the rows of the product, and on what was the fastest: `deterministic`
 * uses product.cu. A product allocates no device memory, so that it can be recorded into a graph; bf16 rows
 * with a bias need a lt_prepare of at least that n before (with or without a bias, before anything is
 * recorded). One workspace, one stream.
 * Owner: the engine thread. */
#ifndef TANDEM_KERNELS_CUDA_LT_H
#define TANDEM_KERNELS_CUDA_LT_H

#include "common/err.h"
#include "kernels/cuda/kernels.h"

enum { LT_SHAPES_MAX = 64, LT_CANDIDATES = 4, LT_ROWS_MAX = 1 << 20 };

struct lt_shape {
    uint32_t n, k; /* k is a multiple of 8 */
    bool out_wide, bias;
};

struct lt;
enum err lt_new(struct lt **lt, cudaStream_t stream);
void lt_free(struct lt *lt); /* NULL is allowed */
/* Times candidates for up to rows_max rows; `w` is a matrix of the shape. Waits for the device. */
enum err lt_prepare(struct lt *lt, const struct lt_shape *shape, const void *w, uint32_t rows_max);
/* dtype is DTYPE_BF16. ERR_UNSUPPORTED: cublasLt does not take the shape, or it was not
 * prepared and has to be: product.cu does it. */
enum err lt_product(struct lt *lt, const struct cuda_product *p);
/* Algorithms known, for tests and the log. */
uint32_t lt_known(const struct lt *lt);

#endif
