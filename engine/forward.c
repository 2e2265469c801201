#include "engine/forward.h"

#include <math.h>

#include "common/mem.h"

enum { MLP_ROWS = 512 };

/* x = x + attention(norm(x)), for the rows of all sequences at once. */
static void run_attention(struct forward *f, const struct batch *batch, uint32_t layer)
{
    const struct backend_ops *ops = f->parts.ops;
    const struct model_config *c = f->parts.config;
    const struct layer_weights *w = &f->parts.weights->layer[layer];
    struct backend *b = f->parts.backend;
    uint32_t rows = batch->rows_count, hidden = c->hidden;
    uint32_t q = model_q_width(c), qkv = model_qkv_width(c);

    /* [rows][hidden] -> [rows][q | k | v]; k and v, rotated and rounded, go to the pool */
    ops->rms_norm(b, f->normed, hidden, f->x, hidden, w->attention_norm, rows, hidden, c->norm_eps);
    ops->matmul(b, f->qkv, qkv, f->normed, hidden, &w->qkv, w->qkv_bias, NULL, rows);
    ops->rope_append(b, f->qkv, qkv, batch, f->parts.rope, &f->shape, f->parts.kv, layer);
    /* q against the pool -> [rows][heads x head_dim] -> [rows][hidden] */
    ops->attend(b, f->attended, q, f->qkv, qkv, batch, &f->shape, f->parts.kv, layer);
    ops->matmul(b, f->x, hidden, f->attended, q, &w->out, w->out_bias, f->x, rows);
}

/* x = x + mlp(norm(x)), MLP_ROWS at a time: its activations are the widest, and these stay small. */
static void run_mlp(struct forward *f, uint32_t rows_count, uint32_t layer)
{
    const struct backend_ops *ops = f->parts.ops;
    const struct model_config *c = f->parts.config;
    const struct layer_weights *w = &f->parts.weights->layer[layer];
    struct backend *b = f->parts.backend;
    uint32_t hidden = c->hidden, ffn = c->ffn;
    size_t row_bytes = (size_t)hidden * ops->facts(b)->activation_bytes;
    for (uint32_t first = 0; first < rows_count; first += MLP_ROWS) {
        uint32_t rows = rows_count - first < MLP_ROWS ? rows_count - first : MLP_ROWS;
        void *x = (char *)f->x + first * row_bytes;
        /* [rows][hidden] -> [rows][gate | up] -> silu(gate) * up: [rows][ffn] -> [rows][hidden] */
        ops->rms_norm(b, f->normed, hidden, x, hidden, w->mlp_norm, rows, hidden, c->norm_eps);
        ops->matmul(b, f->gate_up, 2 * ffn, f->normed, hidden, &w->gate_up, w->gate_up_bias, NULL,
                    rows);
        ops->silu_mul(b, f->gated, ffn, f->gate_up, 2 * ffn, rows, ffn);
        ops->matmul(b, x, hidden, f->gated, ffn, &w->down, w->down_bias, x, rows);
    }
}

enum err forward_run(struct forward *f, const struct batch *batch,
                     const struct forward_watch *watch)
{
    const struct backend_ops *ops = f->parts.ops;
    const struct model_config *c = f->parts.config;
    struct backend *b = f->parts.backend;
    enum err e;
    CHECK(batch->rows_count <= f->rows_max);
    ops->embed(b, f->x, f->parts.weights->embedding, f->parts.weights->dtype, batch->tokens,
               batch->rows_count, c->hidden);
    for (uint32_t layer = 0; layer < c->layers_count; layer++) {
        run_attention(f, batch, layer);
        run_mlp(f, batch->rows_count, layer);
        if (watch->wait && (e = ops->sync(b)) != OK) return e;
        if (!watch->layer(watch->ctx, layer))
            return (e = ops->sync(b)) != OK ? e : err_set(ERR_CANCELLED, "the step was cancelled");
    }
    return ops->sync(b);
}

enum err forward_logits(struct forward *f, const uint32_t *rows, uint32_t rows_count)
{
    const struct backend_ops *ops = f->parts.ops;
    const struct model_config *c = f->parts.config;
    const struct weights *w = f->parts.weights;
    struct backend *b = f->parts.backend;
    uint32_t hidden = c->hidden, vocab = c->vocab_count;
    enum err e;
    CHECK(rows_count <= f->outputs_max);
    ops->gather(b, f->picked, f->x, hidden, rows, rows_count, hidden);
    ops->rms_norm(b, f->picked, hidden, f->picked, hidden, w->norm, rows_count, hidden,
                  c->norm_eps);
    ops->matmul(b, f->scores, vocab, f->picked, hidden, &w->lm_head, NULL, NULL, rows_count);
    if ((e = ops->sync(b)) != OK || f->logits == f->scores) return e;
    return ops->read(b, f->logits, f->scores, (size_t)rows_count * vocab * sizeof *f->logits);
}

static void *activations(struct forward *f, uint32_t rows, uint32_t width)
{
    const struct backend_ops *ops = f->parts.ops;
    size_t element = ops->facts(f->parts.backend)->activation_bytes, bytes;
    if (__builtin_mul_overflow((size_t)rows * width, element, &bytes)) bytes = SIZE_MAX;
    return ops->alloc(f->parts.backend, bytes);
}

static uint32_t mlp_rows_max(const struct forward *f)
{
    return f->rows_max < MLP_ROWS ? f->rows_max : MLP_ROWS;
}

/* Backends keep scratch that grows with the largest product: it grows here, on one column of each
 * matrix of a layer, and not in a step. */
static enum err warm(struct forward *f)
{
    const struct layer_weights *w = &f->parts.weights->layer[0];
    const struct {
        struct matrix matrix;
        const void *in;
        uint32_t rows;
    } product[] = {{w->qkv, f->normed, f->rows_max},
                   {w->out, f->attended, f->rows_max},
                   {w->down, f->gated, mlp_rows_max(f)}};
    for (size_t i = 0; i < sizeof product / sizeof product[0]; i++) {
        struct matrix narrow = product[i].matrix;
        narrow.n = 1;
        f->parts.ops->matmul(f->parts.backend, f->x, 1, product[i].in, narrow.k, &narrow, NULL,
                             NULL, product[i].rows);
    }
    return f->parts.ops->sync(f->parts.backend);
}

enum err forward_init(struct forward *f, const struct forward_parts *parts, uint32_t rows_max,
                      uint32_t outputs_max)
{
    const struct model_config *c = parts->config;
    *f = (struct forward){
        .parts = *parts,
        .shape = {c->heads, c->kv_heads, c->head_dim, (float)(1 / sqrt((double)c->head_dim))},
        .rows_max = rows_max,
        .outputs_max = outputs_max,
    };
    if (!(f->x = activations(f, rows_max, c->hidden)) ||
        !(f->normed = activations(f, rows_max, c->hidden)) ||
        !(f->qkv = activations(f, rows_max, model_qkv_width(c))) ||
        !(f->attended = activations(f, rows_max, model_q_width(c))) ||
        !(f->gate_up = activations(f, mlp_rows_max(f), 2 * c->ffn)) ||
        !(f->gated = activations(f, mlp_rows_max(f), c->ffn)) ||
        !(f->picked = activations(f, outputs_max, c->hidden)) ||
        !(f->scores = activations(f, outputs_max, c->vocab_count)))
        goto fail;
    f->logits = f->scores;
    if (!parts->ops->facts(parts->backend)->host_memory &&
        !(f->logits = mem_array((size_t)outputs_max * c->vocab_count, sizeof *f->logits)))
        goto fail;
    return warm(f);
fail:
    forward_fini(f);
    return ERR_MEMORY;
}

void forward_fini(struct forward *f)
{
    void *buffer[] = {f->x,       f->normed, f->qkv,    f->attended,
                      f->gate_up, f->gated,  f->picked, f->scores};
    if (f->logits != f->scores) mem_free(f->logits);
    for (size_t i = 0; i < sizeof buffer / sizeof buffer[0]; i++)
        if (buffer[i]) f->parts.ops->free(f->parts.backend, buffer[i]);
    *f = (struct forward){0};
}
