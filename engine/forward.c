#include "engine/forward.h"

#include <math.h>

#include "common/clock.h"

_Static_assert(MODEL_HEAD_DIM_MAX == BACKEND_HEAD_DIM_MAX, "every model that is read is computed");

enum {
    MLP_ROWS_HOST = 512, /* of one pass through the MLP, where caches are what is scarce */
    LAYERS_AHEAD_MAX = 4,
};

/* x = x + attention(norm(x)), for the rows of all sequences at once. */
static void run_attention(struct forward *f, const struct batch *batch, uint32_t rows,
                          uint32_t layer)
{
    const struct backend_ops *ops = f->parts.ops;
    const struct model_config *c = f->parts.config;
    const struct layer_weights *w = &f->parts.weights->layer[layer];
    struct backend *b = f->parts.backend;

    /* [rows][hidden] -> [rows][q | k | v]; k and v, rotated and rounded, go to the pool */
    ops->rms_norm(b, f->normed, f->x, w->attention_norm, rows, c->hidden, c->norm_eps);
    ops->matmul(b, f->qkv, ROWS_PRODUCT, f->normed, &w->qkv, w->qkv_bias, NULL, rows);
    ops->rope_append(b, f->qkv, batch, rows, f->parts.rope, &f->shape, f->parts.kv, layer);
    /* q against the pool -> [rows][heads x head_dim] -> [rows][hidden] */
    ops->attend(b, f->attended, f->qkv, batch, rows, &f->shape, f->parts.kv, layer);
    ops->matmul(b, f->x, ROWS_STREAM, f->attended, &w->out, w->out_bias, f->x, rows);
}

/* x = x + mlp(norm(x)), MLP_ROWS at a time: its rows are the widest, and these stay small. */
static void run_mlp(struct forward *f, uint32_t rows_count, uint32_t layer)
{
    const struct backend_ops *ops = f->parts.ops;
    const struct model_config *c = f->parts.config;
    const struct layer_weights *w = &f->parts.weights->layer[layer];
    struct backend *b = f->parts.backend;
    for (uint32_t first = 0; first < rows_count; first += f->mlp_rows) {
        uint32_t rows = rows_count - first < f->mlp_rows ? rows_count - first : f->mlp_rows;
        float *x = f->x + (size_t)first * c->hidden;
        /* [rows][hidden] -> [rows][gate | up] -> silu(gate) * up: [rows][ffn] -> [rows][hidden] */
        ops->rms_norm(b, f->normed, x, w->mlp_norm, rows, c->hidden, c->norm_eps);
        if (!ops->gated ||
            !ops->gated(b, f->gated, f->normed, &w->gate_up, w->gate_up_bias, rows)) {
            ops->matmul(b, f->gate_up, ROWS_PRODUCT, f->normed, &w->gate_up, w->gate_up_bias, NULL,
                        rows);
            ops->silu_mul(b, f->gated, f->gate_up, rows, c->ffn);
        }
        ops->matmul(b, x, ROWS_STREAM, f->gated, &w->down, w->down_bias, x, rows);
    }
}

/* Outputs [first, first + count) of the batch: their hidden states after the final norm. */
static void run_normed(struct forward *f, const struct batch *batch, uint32_t first, uint32_t count)
{
    const struct backend_ops *ops = f->parts.ops;
    const struct model_config *c = f->parts.config;
    struct backend *b = f->parts.backend;
    ops->gather(b, f->picked, f->x, batch, first, count, c->hidden);
    ops->rms_norm(b, f->normed, f->picked, f->parts.weights->norm, count, c->hidden, c->norm_eps);
}

/* And their logits. */
static void run_outputs(struct forward *f, const struct batch *batch, uint32_t first,
                        uint32_t count)
{
    const struct forward_parts *p = &f->parts;
    run_normed(f, batch, first, count);
    p->ops->matmul(p->backend, f->logits, ROWS_STREAM, f->normed, &p->weights->lm_head, NULL, NULL,
                   count);
}

/* A step on its way through the backend. */
struct forward_step {
    struct forward *f;
    const struct batch *batch;
    const struct forward_watch *watch;
    enum forward_end end;
    uint32_t left;        /* outputs that `end` is not of */
    uint32_t layers_done; /* told to the watch */
    uint64_t mark[LAYERS_AHEAD_MAX];
    enum err status;
};

/* Waits for the next layer that the watch was not told of. */
static void finish_layer(struct forward_step *s)
{
    struct forward *f = s->f;
    uint64_t mark = s->mark[s->layers_done % LAYERS_AHEAD_MAX];
    s->status = f->parts.ops->wait(f->parts.backend, mark, TIME_NEVER);
    if (s->status == OK && !s->watch->layer(s->watch->ctx, s->layers_done))
        s->status = err_set(ERR_CANCELLED, "the step was cancelled");
    s->layers_done++;
}

/* One layer is computed while the next ones are enqueued, so that the device does not idle and a
 * cancelled step does not go on for long. */
static void after_layer(struct forward_step *s, uint32_t layer)
{
    struct forward *f = s->f;
    if (!s->batch->watched) {
        s->watch->layer(s->watch->ctx, layer);
        return;
    }
    s->mark[layer % LAYERS_AHEAD_MAX] = f->parts.ops->mark(f->parts.backend);
    if (layer + 1 - s->layers_done >= f->layers_ahead) finish_layer(s);
}

static void enqueue(void *ctx, uint32_t rows, uint32_t outputs)
{
    struct forward_step *s = ctx;
    struct forward *f = s->f;
    const struct backend_ops *ops = f->parts.ops;
    const struct model_config *c = f->parts.config;
    const struct weights *w = f->parts.weights;
    ops->embed(f->parts.backend, f->x, w->embedding, w->dtype, s->batch, rows, c->hidden);
    for (uint32_t layer = 0; layer < c->layers_count; layer++) {
        run_attention(f, s->batch, rows, layer);
        run_mlp(f, rows, layer);
        after_layer(s, layer);
        if (s->status != OK) return;
    }
    while (s->batch->watched && s->layers_done < c->layers_count && s->status == OK)
        finish_layer(s);
    outputs -= s->left;
    if (s->status != OK || s->end == FORWARD_KV || outputs == 0) return;
    run_outputs(f, s->batch, 0, outputs);
    if (f->drawn) ops->draw(f->parts.backend, f->drawn, f->logits, s->batch, outputs);
}

enum err forward_run(struct forward *f, const struct batch *batch, uint32_t outputs_count,
                     enum forward_end end, const struct forward_watch *watch)
{
    struct forward_step s = {.f = f,
                             .batch = batch,
                             .watch = watch,
                             .end = end,
                             .left = batch->outputs_count - outputs_count};
    CHECK(batch->rows_count <= f->rows_max && outputs_count <= batch->outputs_count);
    CHECK(s.left == 0 || batch->watched);
    CHECK(end == FORWARD_KV || outputs_count <= f->outputs_max);
    f->parts.ops->step(f->parts.backend, batch, enqueue, &s);
    if (s.status == ERR_CANCELLED) {
        enum err e = f->parts.ops->sync(f->parts.backend);
        return e != OK ? e : err_set(ERR_CANCELLED, "the step was cancelled");
    }
    return s.status;
}

void forward_logits(struct forward *f, const struct batch *batch, uint32_t first, uint32_t count)
{
    CHECK(count <= f->outputs_max && first + count <= batch->outputs_count);
    run_outputs(f, batch, first, count);
}

void forward_normed(struct forward *f, const struct batch *batch, uint32_t first, uint32_t count)
{
    CHECK(count <= f->outputs_max && first + count <= batch->outputs_count);
    run_normed(f, batch, first, count);
}

static void *rows_of(struct forward *f, uint32_t rows, uint32_t width, uint32_t element)
{
    size_t bytes;
    if (__builtin_mul_overflow((size_t)rows * width, element, &bytes)) bytes = SIZE_MAX;
    return f->parts.ops->alloc(f->parts.backend, bytes);
}

static bool make_rows(struct forward *f)
{
    const struct model_config *c = f->parts.config;
    const struct backend_facts *facts = f->parts.ops->facts(f->parts.backend);
    uint32_t rows = f->rows_max, outputs = f->outputs_max;
    uint32_t operand = facts->operand_bytes, product = facts->product_bytes;
    uint32_t normed_rows = rows > outputs ? rows : outputs;
    if (facts->draws && !(f->drawn = rows_of(f, outputs, sizeof *f->drawn, 1))) return false;
    return (f->x = rows_of(f, rows, c->hidden, sizeof *f->x)) &&
           (f->normed = rows_of(f, normed_rows, c->hidden, operand)) &&
           (f->qkv = rows_of(f, rows, model_qkv_width(c), product)) &&
           (f->attended = rows_of(f, rows, model_q_width(c), operand)) &&
           (f->gate_up = rows_of(f, f->mlp_rows, 2 * c->ffn, product)) &&
           (f->gated = rows_of(f, f->mlp_rows, c->ffn, operand)) &&
           (f->picked = rows_of(f, outputs, c->hidden, sizeof *f->picked)) &&
           (f->logits = rows_of(f, outputs, c->vocab_count, sizeof *f->logits));
}

/* The layers' matrices have the same shapes: the first one's are enough. */
static void prepare(struct forward *f)
{
    const struct backend_ops *ops = f->parts.ops;
    const struct layer_weights *w = &f->parts.weights->layer[0];
    struct backend *b = f->parts.backend;
    ops->prepare(b, &w->qkv, ROWS_PRODUCT, w->qkv_bias, f->rows_max);
    ops->prepare(b, &w->out, ROWS_STREAM, w->out_bias, f->rows_max);
    ops->prepare(b, &w->gate_up, ROWS_PRODUCT, w->gate_up_bias, f->mlp_rows);
    ops->prepare(b, &w->down, ROWS_STREAM, w->down_bias, f->mlp_rows);
    ops->prepare(b, &f->parts.weights->lm_head, ROWS_STREAM, false, f->outputs_max);
}

static bool watch_nothing(void *ctx, uint32_t layer)
{
    (void)ctx;
    (void)layer;
    return true;
}

enum err forward_init(struct forward *f, const struct forward_parts *parts, uint32_t rows_max,
                      uint32_t outputs_max)
{
    const struct model_config *c = parts->config;
    const struct backend_facts *facts = parts->ops->facts(parts->backend);
    *f = (struct forward){
        .parts = *parts,
        .shape = {c->heads, c->kv_heads, c->head_dim, (float)(1 / sqrt((double)c->head_dim))},
        .rows_max = rows_max,
        .outputs_max = outputs_max,
        .mlp_rows = facts->host_memory && rows_max > MLP_ROWS_HOST ? MLP_ROWS_HOST : rows_max,
        .layers_ahead =
            facts->queue_depth < LAYERS_AHEAD_MAX ? facts->queue_depth : LAYERS_AHEAD_MAX,
    };
    if (!make_rows(f)) {
        forward_fini(f);
        return ERR_MEMORY;
    }
    prepare(f);
    return parts->ops->sync(parts->backend);
}

enum err forward_record(struct forward *f)
{
    const struct backend_ops *ops = f->parts.ops;
    const struct batch any = {.window = f->parts.config->window};
    const struct forward_watch watch = {.layer = watch_nothing};
    struct forward_step s = {.f = f, .batch = &any, .watch = &watch, .end = FORWARD_DRAW};
    if (!ops->record) return OK;
    ops->record(f->parts.backend, enqueue, &s);
    return ops->sync(f->parts.backend);
}

void forward_fini(struct forward *f)
{
    void *buffer[] = {f->x,     f->normed, f->qkv,    f->attended, f->gate_up,
                      f->gated, f->picked, f->logits, f->drawn};
    for (size_t i = 0; i < sizeof buffer / sizeof buffer[0]; i++)
        if (buffer[i]) f->parts.ops->free(f->parts.backend, buffer[i]);
    *f = (struct forward){0};
}
