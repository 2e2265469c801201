/* backend: the CUDA backend behind kernels/backend.h; what its files share.
 *
 *     backend.c    open and close, memory, marks, errors, the table of functions
 *     step.c       a step's description on its way to the device; recording and replaying steps
 *     ops.c        the ops: kernels.h with this backend's choices
 *     slot.c       drawing: slots and their tokens
 *     kv.c         blocks to and from host memory
 *
 * One stream has all of a step's work in order. A step's description is written into pinned memory,
 * copied to fixed device addresses and read there by the kernels; several descriptions are under way
 * while the steps before them run. Steps of single rows (decode) are recorded as graphs, one for each
 * bucket of rows, which read everything that changes through these addresses.
 *
 * Rules: ops return nothing. The first thing that fails is kept (backend_keep), with its text; from
 * then on ops do nothing, and wait and sync say it again: a device that failed once is not trusted.
 * Nothing is allocated in a step once the ops it uses have been called outside of a recording.
 * Owner: the engine thread, but for struct kv_mover, which is the link thread's, and
 * struct kv_tier_lane, the tier thread's. */
#ifndef TANDEM_KERNELS_CUDA_BACKEND_H
#define TANDEM_KERNELS_CUDA_BACKEND_H

#include "kernels/backend.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/lt.h"
#include "kernels/cuda/upload.h"

enum {
    QUEUE_DEPTH = 2,
    STAGES = 4,      /* descriptions under way; more than QUEUE_DEPTH, so that none is waited for */
    MARKS = 64,      /* the last ones have events of their own */
    GRAPHS_MAX = 64, /* buckets of rows */
    SLOT_STAGES = 32,
};

/* Where each array of a description stands, in bytes from its begin; the table is last, so that what is
 * not used of it need not be copied. The same in pinned and in device memory. */
struct description {
    uint32_t rows_max, decode_max, outputs_max, tiles_max, table_max;
    size_t counts, token, slot, position, table_first, row_window, decode_row, split_first,
        output_row, tile, table;
    size_t bytes;
    unsigned char *device;
};

/* Pinned memory that may be written again when the copy from it is done. */
struct stage {
    unsigned char *bytes;
    cudaEvent_t copied;
};

/* A recorded decode step of `rows` rows and outputs. */
struct recorded {
    uint32_t rows;
    cudaGraphExec_t exec; /* NULL: not recorded */
    bool tried;           /* it ran unrecorded once: all memory it needs is there */
};

/* The link thread's own. */
struct kv_mover {
    cudaStream_t stream;
    void *staging; /* device */
    uint32_t *blocks;
    uint64_t *hash;      /* device */
    uint64_t *hash_host; /* pinned */
};

/* The tier thread's own. */
struct kv_tier_lane {
    cudaStream_t stream;
};

struct backend {
    struct backend_options options;
    struct cuda_device_facts device;
    struct backend_facts facts;
    cudaStream_t stream;
    enum err status; /* the first failure */
    char text[ERR_TEXT_MAX];

    cudaEvent_t mark[MARKS];
    uint64_t marks, reached;

    /* The step that is being enqueued. */
    struct description decode, mixed;
    struct stage stage[STAGES];
    uint32_t stage_next;
    struct cuda_batch batch;
    uint32_t decode_rows, tiles; /* that the ops are called for */
    bool own_windows;            /* some tile's window is not the batch's */
    bool recording;
    struct recorded graph[GRAPHS_MAX]; /* ascending rows */
    uint32_t graphs_count;

    struct lt *lt;         /* NULL: fp32, or deterministic */
    struct upload *upload; /* from the first weight to the next sync */
    void *attend_scratch;
    size_t attend_scratch_bytes;
    void *draw_scratch;
    uint32_t *scored; /* [outputs] tokens */
    float *score;     /* [outputs] */

    struct cuda_slots slots;
    struct stage slot_stage[SLOT_STAGES];
    uint32_t slot_stage_next;
    struct stage list_stage; /* tokens that are counted: [list_max] */
    uint32_t *list;
    uint32_t list_max;

    struct kv_mover mover;
    struct kv_tier_lane lane;
};

extern const struct backend_ops cuda_backend_ops;

/* Keeps the first failure. backend_ok: whether there is none. */
void backend_keep(struct backend *b, enum err e);
void backend_check(struct backend *b, cudaError_t c, const char *what);
static inline bool backend_ok(const struct backend *b)
{
    return b->status == OK;
}
/* Whatever thread calls works on the backend's device from now on. Opening, stepping and closing may be
 * done by different ones. */
void backend_enter(struct backend *b);

static inline struct cuda_kv backend_kv(const struct kv_view *kv, uint32_t layer)
{
    return (struct cuda_kv){.base = kv->base, .geometry = kv->geometry, .layer = layer};
}

enum err stage_open(struct stage *s, size_t bytes);
void stage_close(struct stage *s);
/* Waits until it may be written. */
void stage_take(struct backend *b, struct stage *s);
/* Enqueues the copy of its first bytes, then says when it is done. */
void stage_copy(struct backend *b, void *device, const struct stage *s, size_t offset,
                size_t bytes);
void stage_done(struct backend *b, const struct stage *s);

enum err step_open(struct backend *b);
void step_close(struct backend *b);
/* Memory that recorded steps use is about to go. */
void step_forget_graphs(struct backend *b);
void cuda_step(struct backend *b, const struct batch *batch, backend_enqueue_fn *enqueue,
               void *ctx);
void cuda_record(struct backend *b, backend_enqueue_fn *enqueue, void *ctx);

/* Splits that the decode rows of a step can have: one for each begun CUDA_SPLIT_TOKENS of its table,
 * and two more for each part of what a row sees, its sinks and its window, which begin and end inside of
 * one. */
uint32_t backend_splits_max(const struct backend *b);

enum err slots_open(struct backend *b);
void slots_close(struct backend *b);
void cuda_slot_make(struct backend *b, uint32_t slot, const struct job *job);
void cuda_draw_outputs(struct backend *b, struct token_info *result, const float *logits,
                       const struct batch *batch, uint32_t outputs);
void cuda_logprobs_of(struct backend *b, float *out, const float *logits, const uint32_t *token,
                      uint32_t rows, uint32_t vocab);

enum err lane_open(struct kv_tier_lane *lane);
void lane_close(struct kv_tier_lane *lane);
enum err cuda_block_read(struct backend *b, const struct kv_view *kv, uint32_t block, void *host);
enum err cuda_block_write(struct backend *b, const struct kv_view *kv, uint32_t block,
                          const void *host);
enum err mover_open(struct kv_mover *m);
void mover_close(struct kv_mover *m);
enum err cuda_kv_read(struct backend *b, const struct kv_view *kv, uint32_t layer,
                      const uint32_t *blocks, uint32_t blocks_count, uint32_t layout, void *host);
enum err cuda_kv_write(struct backend *b, const struct kv_view *kv, uint32_t layer,
                       const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                       const void *host);
enum err cuda_kv_to_slot(struct backend *b, const struct kv_view *kv, uint32_t layer,
                         const uint32_t *blocks, uint32_t blocks_count, uint32_t layout, void *slot,
                         uint64_t *hash);
enum err cuda_kv_from_slot(struct backend *b, const struct kv_view *kv, uint32_t layer,
                           const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                           const void *slot, uint64_t *hash);

/* ops.c; as backend.h has them. */
void op_prepare(struct backend *b, const struct matrix *w, enum row_kind out_kind, bool biased,
                uint32_t rows_max);
void op_embed(struct backend *b, float *x, const void *table, enum dtype dtype,
              const struct batch *batch, uint32_t rows, uint32_t dim);
void op_rms_norm(struct backend *b, void *out, const float *x, const float *weight, uint32_t rows,
                 uint32_t dim, float eps);
void op_matmul(struct backend *b, void *out, enum row_kind out_kind, const void *x,
               const struct matrix *w, const float *bias, const float *residual, uint32_t rows);
void op_rope_append(struct backend *b, void *qkv, const struct batch *batch, uint32_t rows,
                    const struct rope_table *rope, const struct attend_shape *shape,
                    const struct kv_view *kv, uint32_t layer);
void op_attend(struct backend *b, void *out, const void *qkv, const struct batch *batch,
               uint32_t rows, const struct attend_shape *shape, const struct kv_view *kv,
               uint32_t layer);
void op_silu_mul(struct backend *b, void *out, const void *gate_up, uint32_t rows, uint32_t dim);
void op_gather(struct backend *b, float *out, const float *x, const struct batch *batch,
               uint32_t first, uint32_t count, uint32_t dim);
void op_block_copy(struct backend *b, const struct kv_view *kv, uint32_t from, uint32_t to);

#endif
