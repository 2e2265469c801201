/* forward: the transformer, written once over backend_ops, for prefill, decode and mixed batches.
 *
 *     struct forward f;
 *     if ((e = forward_init(&f, &parts, rows_max, outputs_max)) != OK) return e;
 *     if ((e = forward_run(&f, &batch, FORWARD_DRAW, &watch)) != OK) return e;   // is enqueued
 *     mark = ops->mark(b); ... if ((e = ops->wait(b, mark, TIME_NEVER)) != OK) return e;
 *     use(f.logits or f.drawn);                        // of the batch's outputs, device memory
 *     forward_fini(&f);
 *
 * Rules: nothing is allocated after forward_init but what a backend keeps for itself. Rows of a
 * batch are independent in the bits (docs/numerics.md): forward.c never looks at how many there are.
 * Owner: the engine thread. */
#ifndef TANDEM_ENGINE_FORWARD_H
#define TANDEM_ENGINE_FORWARD_H

#include <stdbool.h>

#include "common/err.h"
#include "common/model_config.h"
#include "engine/weights.h"
#include "kernels/backend.h"

/* What a forward pass is over; all of it is the engine's and outlives the pass. */
struct forward_parts {
    const struct backend_ops *ops;
    struct backend *backend;
    const struct model_config *config;
    const struct weights *weights;
    const struct rope_table *rope;
    const struct kv_view *kv;
};

/* Asked after each layer, on this thread. Of a watched batch: when the layer's KV is in the pool, and
 * false stops there with ERR_CANCELLED; of another one when it is enqueued, if it is not replayed. */
struct forward_watch {
    bool (*layer)(void *ctx, uint32_t layer);
    void *ctx;
};

/* What becomes of the batch's outputs. */
enum forward_end {
    FORWARD_KV,   /* nothing: forward_logits and forward_normed may be called for parts of them */
    FORWARD_DRAW, /* at most outputs_max rows of logits, and a token for each on devices that draw */
};

struct forward {
    struct forward_parts parts;
    struct attend_shape shape;
    uint32_t rows_max, outputs_max;
    uint32_t mlp_rows;     /* rows of one pass through the MLP */
    uint32_t layers_ahead; /* of a watched batch that are enqueued at once */
    /* Device memory; kinds of rows as in kernels/backend.h: */
    float *x;                 /* [rows_max][hidden]     stream: the residual */
    void *normed;             /* [rows_max][hidden]     operand */
    void *qkv;                /* [rows_max][(heads + 2 kv_heads) x head_dim]    product */
    void *attended;           /* [rows_max][heads x head_dim]    operand */
    void *gate_up;            /* [rows of one MLP pass][2 ffn]   product */
    void *gated;              /* [the same][ffn]        operand */
    float *picked;            /* [outputs_max][hidden]  stream */
    float *logits;            /* [outputs_max][vocab]   stream */
    struct token_info *drawn; /* [outputs_max]; NULL: not drawn on the device */
};

enum err forward_init(struct forward *f, const struct forward_parts *parts, uint32_t rows_max,
                      uint32_t outputs_max);
void forward_fini(struct forward *f); /* a zeroed one is allowed */
/* Lets the device record what decode steps enqueue; after the KV pool and all else is made. */
enum err forward_record(struct forward *f);
/* Enqueues a step; what fails on the device fails at `wait`. ERR_CANCELLED by the watch: then nothing
 * of it runs any more. `end` is of the first `outputs_count` outputs: others, of a watched batch, are left
 * as by FORWARD_KV. */
enum err forward_run(struct forward *f, const struct batch *batch, uint32_t outputs_count,
                     enum forward_end end, const struct forward_watch *watch);
/* Enqueues logits of outputs [first, first + count) of the batch that ran last, at most outputs_max,
 * into f->logits. */
void forward_logits(struct forward *f, const struct batch *batch, uint32_t first, uint32_t count);
/* The same up to the final norm: into f->normed, operand rows. */
void forward_normed(struct forward *f, const struct batch *batch, uint32_t first, uint32_t count);

#endif
