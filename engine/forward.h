/* forward: the transformer, written once over backend_ops, for prefill, decode and mixed batches.
 *
 *     struct forward f;
 *     if ((e = forward_init(&f, &parts, rows_max, outputs_max)) != OK) return e;
 *     if ((e = forward_run(&f, &batch, &watch)) != OK) return e;     // KV of all rows is in the pool
 *     if ((e = forward_logits(&f, rows, rows_count)) != OK) return e;    // of these rows only
 *     use(f.logits);                                                 // [rows_count][vocab], host
 *     forward_fini(&f);
 *
 * Rules: nothing is allocated after forward_init but what a backend keeps for itself. Rows of a
 * batch are independent in the bits (docs/numerics.md): forward.c never looks at how many there are.
 * Owner: the engine thread. */
#ifndef TANDEM_ENGINE_FORWARD_H
#define TANDEM_ENGINE_FORWARD_H

#include <stdbool.h>

#include "common/err.h"
#include "engine/config.h"
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

/* Asked after each layer, on this thread. */
struct forward_watch {
    bool wait;                                /* the layer's KV is in the pool when it is called */
    bool (*layer)(void *ctx, uint32_t layer); /* false: stop here, ERR_CANCELLED */
    void *ctx;
};

struct forward {
    struct forward_parts parts;
    struct attend_shape shape;
    uint32_t rows_max, outputs_max;
    /* Activations, device memory: */
    void *x;        /* [rows_max][hidden]     the residual stream */
    void *normed;   /* [rows_max][hidden] */
    void *qkv;      /* [rows_max][(heads + 2 kv_heads) x head_dim] */
    void *attended; /* [rows_max][heads x head_dim] */
    void *gate_up;  /* [rows of one MLP pass][2 ffn] */
    void *gated;    /* [the same][ffn] */
    void *picked;   /* [outputs_max][hidden] */
    void *scores;   /* [outputs_max][vocab] */
    float *logits;  /* the same on the host; `scores` itself if that is host memory */
};

enum err forward_init(struct forward *f, const struct forward_parts *parts, uint32_t rows_max,
                      uint32_t outputs_max);
void forward_fini(struct forward *f); /* a zeroed one is allowed */
enum err forward_run(struct forward *f, const struct batch *batch,
                     const struct forward_watch *watch);
/* Logits of rows of the batch that ran last, at most outputs_max, into f->logits. */
enum err forward_logits(struct forward *f, const uint32_t *rows, uint32_t rows_count);

#endif
