/* backend: the arithmetic of one device behind one table of functions; the forward pass
 * (engine/forward.c) is written once over it.
 *
 *     const struct backend_ops *ops;
 *     struct backend *b;
 *     struct backend_options options = {.threads = 2, .dtype = DTYPE_BF16};
 *     if ((e = backend_find("cpu", &ops)) != OK) return e;   // or cpu-c, cpu-avx2, cpu-avx512
 *     if ((e = ops->open(&b, &options)) != OK) return e;
 *     ops->step(b, &batch, enqueue, ctx);       // calls enqueue(ctx, rows, outputs), which calls ops:
 *         ops->rms_norm(b, normed, x, weight, rows, dim, 1e-5f);
 *         ops->matmul(b, qkv, ROWS_PRODUCT, normed, &w, NULL, NULL, rows);
 *     uint64_t mark = ops->mark(b);
 *     if ((e = ops->wait(b, mark, TIME_NEVER)) != OK) return e;       // results are there, errors too
 *
 * Rules: pointers to rows, weights and KV are device memory from `alloc` (or weights from
 * `weight_place`); on the CPU that is host memory. Batch descriptions are host memory and only read
 * by `step`. Rows are dense and of one of three kinds:
 *
 *     stream     fp32 on every device: the residual stream, and logits
 *     operand    what a product reads: facts.operand_bytes an element
 *     product    what a product writes for the next op: facts.product_bytes an element
 *
 * Ops are enqueued and take effect in call order. They return nothing: what fails in them fails at
 * `wait` and `sync`. All ops obey docs/numerics.md: the same bits for a row whatever the other rows,
 * the threads, the path.
 * Owner: the engine thread calls everything but the four kv_…, which one other thread may
 * call at the same time; the backend's own workers stay inside it. */
#ifndef TANDEM_KERNELS_BACKEND_H
#define TANDEM_KERNELS_BACKEND_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/geometry.h"
#include "common/job.h"

#define BACKEND_ABI 8
#define BACKEND_HEAD_DIM_MAX 256 /* of attend and rope_append; even */

struct backend; /* one device: its stream, workers and scratch */

/* What every step keeps within: a device makes room once. */
struct backend_limits {
    uint32_t rows_max, sequences_max, table_max;
    uint32_t slots_count, vocab_count;
};

struct backend_options {
    uint32_t threads;      /* 0: one per CPU that the process may use */
    uint32_t device_index; /* ignored by the CPU */
    cpu_set_t cpus;        /* pin worker i to the i-th of these; empty: no pinning. Worker 0 is the
                            * caller of the ops, whose place is its owner's business */
    enum dtype dtype;      /* what the model computes in: F32 or BF16 */
    bool deterministic;    /* the same bits for a row whatever the batch, also where that costs
                            * speed. The CPU always gives them */
    struct backend_limits limits; /* the CPU has none */
};

struct backend_facts {
    const char *path;       /* "cpu-c", "cpu-avx2", "cpu-avx512", "cuda", … */
    const char *device;     /* "NVIDIA H200", for people; "" on the CPU */
    uint32_t queue_depth;   /* steps that may be in flight: CPU 1, CUDA 2 */
    uint32_t operand_bytes; /* per element; product_bytes too */
    uint32_t product_bytes;
    uint32_t kv_layout; /* KV_LAYOUT_… */
    uint32_t
        weight_layout; /* id of the packed form: part of the weight cache's key. 0: matrices are
                             * [n][k] row-major in the model's dtype and nothing is packed */
    uint32_t threads;
    bool host_memory;  /* device pointers may be read by any thread of the host */
    bool windows;      /* a sequence may have a window, and sinks, of its own */
    bool draws;        /* slot_make and draw are there: tokens are drawn on the device */
    uint64_t numerics; /* hash of rules version, tables and device class: part of numerics_id */
};

enum row_kind { ROWS_STREAM, ROWS_OPERAND, ROWS_PRODUCT };

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
        table_first; /* its block table: table[table_first + position / 16] is the block's number;
                      * places of tokens that none of its rows sees are not read */
    uint32_t slot;
    struct kv_window window; /* its own, only where facts.windows; tokens 0: the batch's */
};
/* As a token: the one that the sequence's slot drew last; only where facts.draws. */
#define BATCH_TOKEN_LAST UINT32_MAX
struct batch {
    uint32_t rows_count;
    const uint32_t *tokens; /* [rows_count] */
    const struct batch_sequence *sequence;
    uint32_t sequences_count;
    const uint32_t *table;
    uint32_t table_count;
    const uint32_t
        *output_row; /* [outputs_count] rows whose logits are wanted: those that are drawn
                                 * ascend, others may stand behind them */
    uint32_t outputs_count;
    uint32_t window; /* attend to the last `window` tokens only; 0: all */
    bool watched;    /* the enqueuer waits for marks on its way, so that nothing may be recorded */
};
/* Calls the ops of a step for `rows` rows and `outputs` outputs: the batch's, or more where a device
 * works in the sizes that it recorded. Does nothing else that matters: a recorded step is replayed
 * without it. */
typedef void backend_enqueue_fn(void *ctx, uint32_t rows, uint32_t outputs);

/* cos and sin of position x dimension pair, built once in double and rounded (G5). Pairs are (i, i
 * + head_dim / 2), the Hugging Face "rotate half" form: [positions][head_dim / 2] each. */
struct rope_table {
    const float *cos, *sin; /* device memory */
    uint32_t half_dim;
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
    /* Where device `index` is: "0000:17:00.0", with no device opened. NULL: devices are the CPUs. */
    enum err (*pci_address)(uint32_t index, char *text, size_t size);
    const struct backend_facts *(*facts)(const struct backend *b);

    /* Memory: zeroed, aligned to 64 at least. NULL with ERR_MEMORY or ERR_DEVICE set. */
    void *(*alloc)(struct backend *b, size_t bytes);
    void (*free)(struct backend *b, void *p);
    /* Host memory that the device copies from and to at full speed; zeroed. */
    void *(*host_alloc)(struct backend *b, size_t bytes);
    void (*host_free)(struct backend *b, void *p);
    /* Bytes that `alloc` can still give; 0: not told. */
    uint64_t (*memory_free)(struct backend *b);
    enum err (*write)(struct backend *b, void *device, const void *host, size_t bytes);
    enum err (*read)(struct backend *b, void *host, const void *device, size_t bytes);
    /* Enqueued: device to `host`, which is host_alloc's and complete at the next mark. */
    void (*fetch)(struct backend *b, void *host, const void *device, size_t bytes);

    /* Packing runs once per model, on the host, without a device: `source` is [n][k] row-major of
     * `source_dtype`, `dtype` (F32 or BF16) what the matrix computes in. pack_rows packs outputs
     * [n_first, n_first + rows) of a matrix of n outputs, any range, so that several tensors can
     * become one matrix (q, k and v) and a big one can be packed in pieces. `packed` is zeroed
     * before the first piece and aligned to 64. Sizes are multiples of 64. */
    size_t (*pack_bytes)(uint32_t n, uint32_t k, enum dtype dtype);
    void (*pack_rows)(void *packed, uint32_t n, uint32_t k, enum dtype dtype, const void *source,
                      enum dtype source_dtype, uint32_t n_first, uint32_t rows);
    /* Makes mapped host bytes usable as device memory: the CPU returns them. Backends that pack. */
    enum err (*weight_place)(struct backend *b, const void *host, size_t bytes,
                             const void **device);
    /* Backends that do not pack: streams `count` elements of a mapped file to device memory, each
     * turned from source_dtype into dtype. May return before it is done; `sync` waits. */
    enum err (*weight_write)(struct backend *b, void *device, enum dtype dtype, const void *source,
                             enum dtype source_dtype, size_t count);

    /* Told of each product of the model once before the first step, so that scratch grows and ways are
     * chosen then and not in a step. */
    void (*prepare)(struct backend *b, const struct matrix *w, enum row_kind out_kind, bool biased,
                    uint32_t rows_max);
    /* Records decode steps of all sizes that this device keeps records of, anew if there are some
     * already; `enqueue` must do for any unwatched batch. NULL: records nothing. */
    void (*record)(struct backend *b, backend_enqueue_fn *enqueue, void *ctx);
    /* Begins a step: from now on the ops that take a batch mean this one, and everything in it has
     * been read when this returns. Calls `enqueue` with the numbers of rows and outputs that the ops
     * are to be called for, or replays what an earlier call for such a batch recorded. */
    void (*step)(struct backend *b, const struct batch *batch, backend_enqueue_fn *enqueue,
                 void *ctx);

    /* x[r] = table[token of row r], stream rows; the table is [vocab][dim] row-major in `dtype`. */
    void (*embed)(struct backend *b, float *x, const void *table, enum dtype dtype,
                  const struct batch *batch, uint32_t rows, uint32_t dim);
    /* out[r] = x[r] * rsqrt(mean(x[r]^2) + eps) * weight: stream rows to operand rows; weight is
     * fp32 [dim]. */
    void (*rms_norm)(struct backend *b, void *out, const float *x, const float *weight,
                     uint32_t rows, uint32_t dim, float eps);
    /* out[r][j] = sum over i ascending of x[r][i] * w[j][i], then + bias[j], then + residual[r][j]
     * (each if not NULL). x is operand rows; out is product or stream rows; residual, with stream
     * rows only, is stream rows and may be out. bias is fp32 [n], each number one of w's dtype. */
    void (*matmul)(struct backend *b, void *out, enum row_kind out_kind, const void *x,
                   const struct matrix *w, const float *bias, const float *residual, uint32_t rows);
    /* Rotates q in place and appends the rotated k and v, rounded to the pool's dtype, at each
     * row's position (A1). qkv is product rows [q: heads x head_dim][k: kv_heads x head_dim][v: the
     * same]. */
    void (*rope_append)(struct backend *b, void *qkv, const struct batch *batch, uint32_t rows,
                        const struct rope_table *rope, const struct attend_shape *shape,
                        const struct kv_view *kv, uint32_t layer);
    /* out[r] = softmax(q k / sqrt(d)) v over positions 0 … position of r (or its window and sinks), for
     * every head: A1 to A7. q is the front of the qkv rows; out is operand rows [heads x head_dim].
     */
    void (*attend)(struct backend *b, void *out, const void *qkv, const struct batch *batch,
                   uint32_t rows, const struct attend_shape *shape, const struct kv_view *kv,
                   uint32_t layer);
    /* matmul of a matrix of gate and up, then silu_mul, in one: operand rows to operand rows [n / 2].
     * False, with nothing done: not of this matrix. NULL: of none. */
    bool (*gated)(struct backend *b, void *out, const void *x, const struct matrix *w,
                  const float *bias, uint32_t rows);
    /* out[r][i] = silu(gate_up[r][i]) * gate_up[r][dim + i]: product rows to operand rows. */
    void (*silu_mul)(struct backend *b, void *out, const void *gate_up, uint32_t rows,
                     uint32_t dim);
    /* out[i] = x[output_row[first + i]], stream rows: the rows whose logits are wanted. */
    void (*gather)(struct backend *b, float *out, const float *x, const struct batch *batch,
                   uint32_t first, uint32_t count, uint32_t dim);

    /* out[i] = the log-probability of token[i] by row i of logits [rows][vocab], at most
     * sequences_max rows, as common/draw.h has it. `out` and `token` are host_alloc's: the one is
     * complete at the next mark, the other may be written again then. */
    void (*logprobs)(struct backend *b, float *out, const float *logits, const uint32_t *token,
                     uint32_t rows, uint32_t vocab);

    /* Drawing on the device, where facts.draws; else NULL. slot_make takes what it needs of the job:
     * engine/slot.h. draw draws from logits [outputs][vocab] with the slot of each output's
     * sequence, exactly as engine/sampler.h would, into result (device memory) [outputs]. */
    void (*slot_make)(struct backend *b, uint32_t slot, const struct job *job);
    void (*draw)(struct backend *b, struct token_info *result, const float *logits,
                 const struct batch *batch, uint32_t outputs);

    /* Moves one block's KV to another block of the same pool (forks). */
    void (*block_copy)(struct backend *b, const struct kv_view *kv, uint32_t from, uint32_t to);

    /* One layer of blocks between the pool and host memory [blocks_count][layer bytes] in the order
     * `layout`, for links; done when they return. Only where device memory is not host memory, else
     * NULL. They may be called by one thread beside the engine's, which gets their errors. */
    enum err (*kv_read)(struct backend *b, const struct kv_view *kv, uint32_t layer,
                        const uint32_t *blocks, uint32_t blocks_count, uint32_t layout, void *host);
    enum err (*kv_write)(struct backend *b, const struct kv_view *kv, uint32_t layer,
                         const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                         const void *host);
    /* The same between the pool and other device memory: a slot of a link, 256-byte aligned, perhaps
     * another process's. `hash` is kv_hash (common/geometry.h) of the bytes in the order `layout`: as
     * gathered, or as they were read from the slot for the pool. NULL: this device has no such links. */
    enum err (*kv_gather)(struct backend *b, const struct kv_view *kv, uint32_t layer,
                          const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                          void *slot, uint64_t *hash);
    enum err (*kv_scatter)(struct backend *b, const struct kv_view *kv, uint32_t layer,
                           const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                           const void *slot, uint64_t *hash);

    /* A whole block, all layers, between the pool and host memory as it lies there, for tiers; done when
     * they return. NULL like kv_read, and callable like it by one more thread. */
    enum err (*block_read)(struct backend *b, const struct kv_view *kv, uint32_t block, void *host);
    enum err (*block_write)(struct backend *b, const struct kv_view *kv, uint32_t block,
                            const void *host);

    /* A mark is reached when everything enqueued before it is done. Marks are numbered from 1. On
     * the CPU ops run at once and a mark is reached when it is made. */
    uint64_t (*mark)(struct backend *b);
    /* OK: the mark is reached. ERR_TIMEOUT: not within timeout_ns (TIME_NEVER: waits for it). Else
     * the device's error if one happened. */
    enum err (*wait)(struct backend *b, uint64_t mark, uint64_t timeout_ns);
    /* Waits for everything enqueued; the device's error if one happened. */
    enum err (*sync)(struct backend *b);
};

/* "cpu" is the best path that this machine has; "cpu-c", "cpu-avx2", "cpu-avx512" are forced ones;
 * ERR_NOT_FOUND with the list of names, ERR_UNSUPPORTED with what this machine lacks. */
enum err backend_find(const char *name, const struct backend_ops **ops);
/* The names of the paths that this machine has, ended by NULL, best first. */
const char *const *backend_names(void);

#endif
