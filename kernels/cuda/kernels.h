/* kernels: the CUDA kernels as functions that put work on a stream; what backend.c and the other
 * host files of this folder see of the .cu files.
 *
 *     if ((c = cuda_rms_norm(stream, out, x, weight, rows, dim, eps, DTYPE_BF16)) != cudaSuccess) ...
 *
 * Rules: each function checks its launch (cudaPeekAtLastError) and returns that; none allocates,
 * waits or touches another stream, so all of them can be recorded into a graph. Pointers are device
 * memory aligned to 16 unless said otherwise; strides count elements and are multiples of 8 (4 for
 * fp32); that of qkv rows is even where head_dim is no such multiple. Three kinds of rows:
 *
 *     stream     fp32 always: the residual stream, and logits
 *     operand    inputs of a product: bf16, or fp32 with an fp32 model
 *     product    outputs of a product before the next operation: as operand
 *
 * `dtype` is the model's: DTYPE_BF16 or DTYPE_F32. Row r of a function launched for `rows` rows is
 * independent of the others; rows from *batch.live on (a graph is recorded for more rows than a step
 * has) may be computed but write nothing that outlives the step: no KV, no slot.
 * Host thread: the engine thread, but for kv_gather and kv_scatter (the link thread, own stream). */
#ifndef TANDEM_KERNELS_CUDA_KERNELS_H
#define TANDEM_KERNELS_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/geometry.h"
#include "common/job.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CUDA_TOKEN_LAST = -1,    /* as uint32_t: the token that the row's slot drew last */
    CUDA_TILE_ROWS = 64,     /* prefill: rows of one sequence that one tile has at most */
    CUDA_SPLIT_TOKENS = 256, /* decode: KV is split at absolute multiples of it */
    CUDA_SKINNY_ROWS = 32,   /* rows up to which the skinny product is used */
    CUDA_HEAD_DIM_MAX = 256,
};

/* Rows of one sequence in a prefill tile: consecutive rows at ascending positions. */
struct cuda_tile {
    uint32_t row_first, rows_count; /* at most CUDA_TILE_ROWS */
    uint32_t position;              /* absolute, of row_first */
    uint32_t table_first;           /* block of token t: table[table_first + t / 16] */
    struct kv_window window;        /* its sequence's own, or the batch's */
};

/* A step's description in device memory, at addresses that stay for the backend's life (a graph
 * reads through them). Rows that belong to a sequence with one row in the step are decode rows, the
 * others are in tiles. */
struct cuda_batch {
    const uint32_t *live;               /* [1] rows of the step */
    const uint32_t *token;              /* [rows] id or CUDA_TOKEN_LAST */
    const uint32_t *slot;               /* [rows] */
    const uint32_t *position;           /* [rows] absolute */
    const uint32_t *table_first;        /* [rows] */
    const struct kv_window *row_window; /* [rows] their sequences' own, or the batch's */
    const uint32_t *table;              /* block numbers */
    const struct cuda_tile *tile;
    const uint32_t *decode_live; /* [1] decode rows */
    const uint32_t *decode_row;  /* [decode rows] ascending */
    /* [decode rows + 1] splits of the decode rows before it; row i attends to those that its sinks lie
     * in, from 0 on, then to those of the tokens behind them that it sees, from the first one's on */
    const uint32_t *split_first;
    const uint32_t *outputs_live; /* [1] */
    const uint32_t *output_row;   /* [outputs] rows whose logits are wanted */
    uint32_t window; /* 0: all; else a row at position p sees max(0, p - window + 1) … p */
};

struct cuda_attention {
    uint32_t heads, kv_heads, head_dim; /* head_dim even, at most CUDA_HEAD_DIM_MAX */
    float scale;
    enum dtype dtype; /* of q, out and the pool */
};

/* The pool: block b, layer l at base + b * block_bytes + l * layer_bytes. Layout KV_LAYOUT_CUDA:
 * K [kv_heads][16 tokens][head_dim], then V [kv_heads][16 tokens][head_dim]. */
struct cuda_kv {
    void *base;
    struct kv_geometry geometry;
    uint32_t layer;
};

/* --- rows.cu: one row after the other --- */

/* x[r] = table[token of row r], as fp32; x is stream rows. `last` is [slots]: tokens drawn last. */
cudaError_t cuda_embed(cudaStream_t stream, float *x, const void *table, enum dtype table_dtype,
                       const struct cuda_batch *batch, const uint32_t *last, uint32_t rows,
                       uint32_t dim);
/* out[r] = x[r] * rsqrt(mean(x[r]^2) + eps) * weight: stream rows to operand rows, both dense. */
cudaError_t cuda_rms_norm(cudaStream_t stream, void *out, const float *x, const float *weight,
                          uint32_t rows, uint32_t dim, float eps, enum dtype dtype);
/* out[r][i] = silu(gate_up[r][i]) * gate_up[r][dim + i]; product rows to operand rows, dense. */
cudaError_t cuda_silu_mul(cudaStream_t stream, void *out, const void *gate_up, uint32_t rows,
                          uint32_t dim, enum dtype dtype);
/* out[i] = x[output_row[i]]; stream rows. Rows beyond outputs_live are zeroed. */
cudaError_t cuda_gather(cudaStream_t stream, float *out, const float *x,
                        const struct cuda_batch *batch, uint32_t outputs, uint32_t dim);

/* --- rope.cu --- */

/* Rotates q in place ("rotate half" pairs (i, i + head_dim / 2)), appends rotated k and v at each
 * row's position. qkv rows are product rows [q: heads][k: kv_heads][v: kv_heads] x head_dim. */
cudaError_t cuda_rope_append(cudaStream_t stream, void *qkv, const struct cuda_batch *batch,
                             const float *cos, const float *sin, const struct cuda_attention *a,
                             const struct cuda_kv *kv, uint32_t rows);
/* Blocks' KV of one layer, to and from contiguous device memory [blocks_count][layer bytes] whose
 * order is `layout`: KV_LAYOUT_CUDA or KV_LAYOUT_CPU. `blocks` is device memory. The contiguous bytes'
 * kv_hash is added to *hash, which is device memory or NULL. */
cudaError_t cuda_kv_gather(cudaStream_t stream, void *out, const struct cuda_kv *kv,
                           const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                           uint64_t *hash);
cudaError_t cuda_kv_scatter(cudaStream_t stream, const struct cuda_kv *kv, const void *in,
                            const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                            uint64_t *hash);

/* --- product.cu: own matrix products. w is [n][k] row-major of `dtype` --- */

/* out[r][j] = sum over i of x[r][i] w[j][i], + bias[j], + residual[r][j] (each if not NULL). x is
 * operand rows, dense; out is product rows, or stream rows if out_wide; residual is stream rows and
 * may be out. */
struct cuda_product {
    void *out;
    const void *x, *w;
    const float *bias;
    const float *residual;
    uint32_t n, k, rows;
    enum dtype dtype;
    bool out_wide;
};
/* Up to CUDA_SKINNY_ROWS rows; weights are read once. A row's bits do not depend on `rows`. */
cudaError_t cuda_product_skinny(cudaStream_t stream, const struct cuda_product *p);
/* Any rows, the same bits as cuda_product_skinny: for `deterministic`, and for fp32. */
cudaError_t cuda_product_fixed(cudaStream_t stream, const struct cuda_product *p);

/* --- bias.cu --- */

/* out[i] = bias[i] rounded to bf16: what cublasLt takes with bf16 rows. */
cudaError_t cuda_bias_round(cudaStream_t stream, uint16_t *out, const float *bias, uint32_t n);

/* --- attend_decode.cu, attend_prefill.cu --- */

/* Scratch for the partial results of `splits` splits. */
size_t cuda_attend_scratch(const struct cuda_attention *a, uint32_t splits);
/* Decode rows: out[row] = softmax(q k scale) v over each row's tokens. q is the front of the qkv rows
 * (stride q_stride), out operand rows [heads x head_dim]. Launched for `rows` decode rows at most;
 * how many splits there are is read on the device. Splits are merged in ascending order. Windows and
 * sinks are those of row_window. */
cudaError_t cuda_attend_decode(cudaStream_t stream, void *out, const void *q, uint32_t q_stride,
                               const struct cuda_batch *batch, const struct cuda_attention *a,
                               const struct cuda_kv *kv, uint32_t rows, void *scratch);
/* Tiles: the same for rows in tiles. `deterministic` folds at the splits of decode, so that a row
 * has the bits that it would have as a decode row. `own_windows`: some tile's window is not the
 * batch's, which is what all have otherwise; then it is computed as if deterministic. */
cudaError_t cuda_attend_prefill(cudaStream_t stream, void *out, const void *q, uint32_t q_stride,
                                const struct cuda_batch *batch, const struct cuda_attention *a,
                                const struct cuda_kv *kv, uint32_t tiles, bool deterministic,
                                bool own_windows);

/* --- sample.cu --- */

/* What a slot's tokens are drawn with; struct sampling without its pointer. */
struct cuda_sampling {
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t top_k, tops_count, bias_count, choice;
    uint64_t seed;
    uint32_t logprobs, penalties; /* flags */
};
/* All slots, device memory. */
struct cuda_slots {
    struct cuda_sampling *sampling; /* [slots] */
    uint32_t *index;                /* [slots] of the token that is drawn next */
    uint32_t *last;                 /* [slots] the token drawn last */
    uint32_t *counts;               /* [slots][vocab] as DRAW_IN_PROMPT has it (common/draw.h) */
    struct logit_bias *bias;        /* [slots][JOB_BIAS_MAX] */
    uint32_t slots_count, vocab_count;
};
/* counts[slot]: zeroed, then prompt tokens marked and forwarded ones counted; lists are device memory.
 */
cudaError_t cuda_slot_count(cudaStream_t stream, const struct cuda_slots *s, uint32_t slot,
                            const uint32_t *prompt, uint32_t prompt_count,
                            const uint32_t *forwarded, uint32_t forwarded_count);
size_t cuda_draw_scratch(uint32_t vocab_count, uint32_t outputs);
/* Draws a token for each of outputs_live outputs from logits [outputs][vocab] with the slot of the
 * output's row; result[i] is a struct token_info, index, last and counts go on. The same token and
 * log-probabilities as engine/sampler.c gives for the same logits. */
cudaError_t cuda_draw(cudaStream_t stream, struct token_info *result, const float *logits,
                      const struct cuda_slots *s, const struct cuda_batch *batch, uint32_t outputs,
                      void *scratch);
/* out[r]: the log-probability of token[r] by row r of logits [rows][vocab]; common/draw.h. */
cudaError_t cuda_logprobs(cudaStream_t stream, float *out, const float *logits,
                          const uint32_t *token, uint32_t rows, uint32_t vocab_count);

#ifdef __cplusplus
}
#endif

#endif
