/* backend: the arithmetic of one device behind one table of functions; the forward pass
 * (engine/forward.c) is written once over it.
 *
 *     const struct backend_ops *ops;
 *     struct backend *b;
 *     struct backend_options options = {.threads = 2, .first_cpu = -1};
 *     if ((e = backend_find("cpu", &ops)) != OK) return e;   // or cpu-c, cpu-avx2, cpu-avx512
 *     if ((e = ops->open(&b, &options)) != OK) return e;
 *     ops->rms_norm(b, out, dim, x, dim, weight, rows, dim, 1e-5f);   // enqueued in call order
 *     ops->matmul(b, out, n, x, dim, &w, NULL, NULL, rows);
 *     if ((e = ops->sync(b)) != OK) return e;                // results are there, errors too
 *
 * Rules: pointers to activations, weights and KV are device memory from `alloc` (or weights from
 * `weight_place`); on the CPU that is host memory. Batch descriptions and token ids are host memory
 * and only read during the call. Activations are facts.activation_bytes wide (4, fp32, on the CPU)
 * and rows are dense unless a stride is given, strides count elements. Ops return nothing: what can
 * fail in them fails at `sync`. All ops obey docs/numerics.md: the same bits for a row whatever
 * the other rows, the threads, the path.
 * Owner: the engine thread calls everything; the backend's own workers stay inside it. */
#ifndef TANDEM_KERNELS_BACKEND_H
#define TANDEM_KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/geometry.h"

#define BACKEND_ABI 1
#define BACKEND_HEAD_DIM_MAX 256 /* of attend and rope_append; even */

struct backend; /* one device: its stream, workers and scratch */

struct backend_options {
    uint32_t threads;      /* 0: one per CPU that the process may use */
    uint32_t device_index; /* ignored by the CPU */
    int32_t first_cpu;     /* pin worker i to CPU first_cpu + i; negative: no pinning. Worker 0 is
                            * the caller of the ops, whose place is its owner's business */
};

struct backend_facts {
    const char *path;          /* "cpu-c", "cpu-avx2", "cpu-avx512", … */
    uint32_t queue_depth;      /* steps that may be in flight: CPU 1, CUDA 2 */
    uint32_t activation_bytes; /* per element */
    uint32_t kv_layout;        /* KV_LAYOUT_… */
    uint32_t weight_layout;    /* id of the packed form: part of the weight cache's key */
    uint32_t threads;
    bool host_memory;  /* device pointers may be read by any thread of the host */
    uint64_t numerics; /* hash of rules version, tables and device class: part of numerics_id */
};

/* A weight matrix of `n` outputs by `k` inputs in the backend's packed form. `dtype` is F32 (fp32
 * chain) or BF16 (inputs are rounded to bf16, fp32 accumulation). */
struct matrix {
    const void *packed;
    uint32_t n, k;
    enum dtype dtype;
};

/* Where KV lives: block b, layer l starts at base + b * block_bytes + l * layer_bytes. */
struct kv_view {
    void *base;
    struct kv_geometry geometry;
    uint32_t blocks_count;
};

/* The rows of one step: row r belongs to one sequence; a sequence's rows are consecutive and its
 * positions ascend by one. */
struct batch_sequence {
    uint32_t row_first, rows_count;
    uint32_t position; /* absolute position of row_first, 0-based */
    uint32_t
        table_first; /* its block table: table[table_first + position / 16] is the block's number */
};
struct batch {
    uint32_t rows_count;
    const uint32_t *tokens; /* [rows_count] */
    const struct batch_sequence *sequence;
    uint32_t sequences_count;
    const uint32_t *table;
    uint32_t window; /* attend to the last `window` tokens only; 0: all */
};

/* cos and sin of position x dimension pair, built once in double and rounded (G5). Pairs are (i, i
 * + head_dim / 2), the Hugging Face "rotate half" form: [positions_count][head_dim / 2] each. */
struct rope_table {
    const float *cos, *sin; /* device memory */
    uint32_t positions_count, half_dim;
};

struct attend_shape {
    uint32_t heads, kv_heads, head_dim; /* heads is a multiple of kv_heads */
    float scale;                        /* 1 / sqrt(head_dim) */
};

struct backend_ops {
    uint32_t abi; /* BACKEND_ABI */
    const char *name;
    /* ERR_UNSUPPORTED, with what is missing, if this machine cannot run it. Starts the workers. */
    enum err (*open)(struct backend **b, const struct backend_options *options);
    void (*close)(struct backend *b); /* NULL is allowed; waits for the workers */
    const struct backend_facts *(*facts)(const struct backend *b);

    /* Memory: zeroed, aligned to 64 at least. NULL with ERR_MEMORY or ERR_DEVICE set. */
    void *(*alloc)(struct backend *b, size_t bytes);
    void (*free)(struct backend *b, void *p);
    enum err (*write)(struct backend *b, void *device, const void *host, size_t bytes);
    enum err (*read)(struct backend *b, void *host, const void *device, size_t bytes);

    /* Packing runs once per model, on the host, without a device: `source` is [n][k] row-major of
     * `source_dtype`, `dtype` (F32 or BF16) what the matrix computes in. pack_rows packs outputs
     * [n_first, n_first + rows) of a matrix of n outputs, any range, so that several tensors can
     * become one matrix (q, k and v) and a big one can be packed in pieces. `packed` is zeroed
     * before the first piece and aligned to 64. Sizes are multiples of 64. */
    size_t (*pack_bytes)(uint32_t n, uint32_t k, enum dtype dtype);
    void (*pack_rows)(void *packed, uint32_t n, uint32_t k, enum dtype dtype, const void *source,
                      enum dtype source_dtype, uint32_t n_first, uint32_t rows);
    /* Makes mapped host bytes usable as device memory: the CPU returns them, CUDA copies. */
    enum err (*weight_place)(struct backend *b, const void *host, size_t bytes,
                             const void **device);

    /* out[r] = table[tokens[r]]; the table is [vocab][dim] row-major in `dtype`. */
    void (*embed)(struct backend *b, void *out, const void *table, enum dtype dtype,
                  const uint32_t *tokens, uint32_t rows, uint32_t dim);
    /* out[r] = x[r] * rsqrt(mean(x[r]^2) + eps) * weight; weight is fp32 [dim]. Row strides as
     * given; q/k norm uses rows x heads rows of head_dim. out may be x. */
    void (*rms_norm)(struct backend *b, void *out, size_t out_stride, const void *x,
                     size_t x_stride, const float *weight, uint32_t rows, uint32_t dim, float eps);
    /* out[r][j] = sum over i ascending of x[r][i] * w[j][i], then + bias[j], then + residual[r][j]
     * (each if not NULL). `residual` has out's stride and may be out. bias is fp32 [n]. */
    void (*matmul)(struct backend *b, void *out, size_t out_stride, const void *x, size_t x_stride,
                   const struct matrix *w, const float *bias, const void *residual, uint32_t rows);
    /* Rotates q in place and appends the rotated k and v, rounded to the pool's dtype, at each
     * row's position (A1). qkv rows are [q: heads x head_dim][k: kv_heads x head_dim][v: the same].
     */
    void (*rope_append)(struct backend *b, void *qkv, size_t stride, const struct batch *batch,
                        const struct rope_table *rope, const struct attend_shape *shape,
                        const struct kv_view *kv, uint32_t layer);
    /* out[r] = softmax(q k / sqrt(d)) v over positions 0 … position of r (or its window), for
     * every head: A1 to A7. q is the front of the qkv rows; out rows are heads x head_dim. */
    void (*attend)(struct backend *b, void *out, size_t out_stride, const void *q, size_t q_stride,
                   const struct batch *batch, const struct attend_shape *shape,
                   const struct kv_view *kv, uint32_t layer);
    /* out[r][i] = silu(gate_up[r][i]) * gate_up[r][dim + i] */
    void (*silu_mul)(struct backend *b, void *out, size_t out_stride, const void *gate_up,
                     size_t stride, uint32_t rows, uint32_t dim);
    /* out[i] = x[rows[i]]: the rows whose logits are wanted. */
    void (*gather)(struct backend *b, void *out, const void *x, size_t stride, const uint32_t *rows,
                   uint32_t rows_count, uint32_t dim);
    /* Moves one block's KV to another block of the same pool (forks). */
    void (*block_copy)(struct backend *b, const struct kv_view *kv, uint32_t from, uint32_t to);

    /* A mark is reached when everything enqueued before it is done. Marks are numbered from 1 by
     * `mark`; `reached` gives the highest one reached and never blocks. On the CPU ops run at once.
     */
    uint64_t (*mark)(struct backend *b);
    uint64_t (*reached)(struct backend *b);
    /* Waits for everything enqueued; the device's error if one happened. */
    enum err (*sync)(struct backend *b);
};

/* "cpu" is the best path that this machine has; "cpu-c", "cpu-avx2", "cpu-avx512" are forced ones;
 * ERR_NOT_FOUND with the list of names, ERR_UNSUPPORTED with what this machine lacks. */
enum err backend_find(const char *name, const struct backend_ops **ops);
/* The names of the paths that this machine has, ended by NULL, best first. */
const char *const *backend_names(void);

#endif
