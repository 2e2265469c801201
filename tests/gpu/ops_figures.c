#include "tests/gpu/ops_figures.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "kernels/backend.h"
#include "kernels/numbers.h"
#include "tests/bench/figures.h"

enum { REPEATS = 20, RUNS = 3, PERIODS = 200, PRODUCTS = 4, RANDOM_ELEMENTS = 1 << 20 };

struct bench {
    const struct gpu_shape *shape;
    const struct ceilings_cuda *ceilings;
    const struct backend_ops *ops;
    struct backend *b;
    struct attend_shape attend;
    uint32_t rows_max, sequences_max, table_max;

    struct batch batch;
    struct batch_sequence *sequence;
    uint32_t *tokens, *table, *output_row;

    struct kv_view kv; /* of one layer */
    struct rope_table rope;
    float *stream;           /* [rows_max][the widest] */
    void *operand, *product; /* the same */
    float *logits;           /* [sequences_max][vocab] */
    float *weight;           /* of a norm */
    struct matrix layer[PRODUCTS], matrix;
    struct token_info *drawn;
    void (*op)(struct bench *x, uint32_t rows); /* what is measured */
};

static void must(enum err e)
{
    if (e == OK) return;
    fprintf(stderr, "gpu_bench: %s\n", err_text());
    exit(1);
}

/* Device memory of random bf16 numbers (fp32 ones if wide). */
static void *random_memory(struct bench *x, uint64_t bytes, bool wide)
{
    static uint16_t host[RANDOM_ELEMENTS];
    char *p = x->ops->alloc(x->b, bytes);
    if (!p) must(ERR_MEMORY);
    for (uint32_t i = 0; i < RANDOM_ELEMENTS; i++) {
        float value = rng_unit(rng_draw(5, 6, i).word[0]) - 0.5f;
        host[i] = wide && i % 2 == 0 ? 0 : bf16_from_f32(value);
    }
    for (uint64_t at = 0; at < bytes; at += sizeof host)
        must(
            x->ops->write(x->b, p + at, host, bytes - at < sizeof host ? bytes - at : sizeof host));
    return p;
}

/* --- one measurement --- */

static void enqueue(void *ctx, uint32_t rows, uint32_t outputs)
{
    struct bench *x = ctx;
    (void)outputs;
    for (int i = 0; i < REPEATS; i++)
        x->op(x, rows);
}

static double seconds_of(struct bench *x, void (*op)(struct bench *, uint32_t))
{
    double best = 1e9;
    x->op = op;
    for (int run = 0; run <= RUNS; run++) { /* the first one warms up */
        must(x->ops->sync(x->b));
        uint64_t began_ns = clock_now_ns();
        x->ops->step(x->b, &x->batch, enqueue, x);
        must(x->ops->wait(x->b, x->ops->mark(x->b), TIME_NEVER));
        double took = (double)(clock_now_ns() - began_ns) / NS_PER_S / REPEATS;
        if (run > 0 && took < best) best = took;
    }
    return best;
}

/* `sequences` of `rows` new tokens behind `position` others. */
static void set_batch(struct bench *x, uint32_t sequences, uint32_t rows, uint32_t position)
{
    uint32_t blocks = blocks_for_tokens(position + rows);
    x->batch = (struct batch){.rows_count = sequences * rows,
                              .tokens = x->tokens,
                              .sequence = x->sequence,
                              .sequences_count = sequences,
                              .table = x->table,
                              .table_count = sequences * blocks,
                              .output_row = x->output_row,
                              .outputs_count = sequences,
                              .watched = true};
    CHECK(x->batch.rows_count <= x->rows_max && sequences <= x->sequences_max &&
          x->batch.table_count <= x->table_max);
    for (uint32_t i = 0; i < x->batch.table_count; i++) /* a stride without a common divisor */
        x->table[i] = (uint32_t)((uint64_t)i * 7919 % x->kv.blocks_count);
    for (uint32_t i = 0; i < sequences; i++) {
        x->sequence[i] = (struct batch_sequence){i * rows, rows, position, i * blocks, i};
        x->output_row[i] = (i + 1) * rows - 1;
    }
}

/* --- operations --- */

static void op_attend(struct bench *x, uint32_t rows)
{
    x->ops->attend(x->b, x->operand, x->product, &x->batch, rows, &x->attend, &x->kv, 0);
}
static void op_rope(struct bench *x, uint32_t rows)
{
    x->ops->rope_append(x->b, x->product, &x->batch, rows, &x->rope, &x->attend, &x->kv, 0);
}
static void op_norm(struct bench *x, uint32_t rows)
{
    x->ops->rms_norm(x->b, x->operand, x->stream, x->weight, rows, x->shape->model.hidden, 1e-5f);
}
static void op_silu(struct bench *x, uint32_t rows)
{
    x->ops->silu_mul(x->b, x->operand, x->product, rows, x->shape->model.ffn);
}
static void op_product(struct bench *x, uint32_t rows)
{
    x->ops->matmul(x->b, x->product, ROWS_PRODUCT, x->operand, &x->matrix, NULL, NULL, rows);
}
static void op_products(struct bench *x, uint32_t rows)
{
    for (int i = 0; i < PRODUCTS; i++)
        x->ops->matmul(x->b, x->product, ROWS_PRODUCT, x->operand, &x->layer[i], NULL, NULL, rows);
}
static void op_draw(struct bench *x, uint32_t rows)
{
    x->ops->draw(x->b, x->drawn, x->logits, &x->batch, rows);
}

/* --- figures --- */

static void decode_attention(struct bench *x)
{
    const struct gpu_shape *s = x->shape;
    for (int i = 0; i < 4 && s->batch[i]; i++)
        for (int j = 0; j < 2; j++) {
            uint32_t batch = s->batch[i], context = s->context[j];
            if (batch > x->sequences_max || (uint64_t)batch * context > (uint64_t)x->table_max * 16)
                continue;
            set_batch(x, batch, 1, context - 1);
            double bytes = (double)kv_layer_bytes(&x->kv.geometry) / BLOCK_TOKENS * context * batch;
            double rate = bytes / seconds_of(x, op_attend);
            figure_print(rate / 1e9, "attend_decode_%u_behind_%u_gb_s", batch, context);
            figure_print(100 * rate / x->ceilings->copy_bytes_s,
                         "attend_decode_%u_behind_%u_of_copy_percent", batch, context);
        }
}

static void prefill_attention(struct bench *x)
{
    for (int i = 0; i < 4 && x->shape->prefill[i]; i++) {
        uint32_t rows = x->shape->prefill[i];
        if (rows > x->rows_max) continue;
        set_batch(x, 1, rows, 0);
        double flops = 2.0 * rows * (rows + 1) * x->attend.heads * x->attend.head_dim;
        double rate = flops / seconds_of(x, op_attend);
        figure_print(rate / 1e12, "attend_prefill_%u_tflop_s", rows);
        figure_print(100 * rate / x->ceilings->peak_flops, "attend_prefill_%u_of_peak_percent",
                     rows);
    }
}

static void small_ops(struct bench *x)
{
    const struct tiny_shape *m = &x->shape->model;
    const struct backend_facts *f = x->ops->facts(x->b);
    const uint32_t rows_of[] = {x->sequences_max, x->rows_max};
    uint32_t qkv = (m->heads + 2 * m->kv_heads) * m->head_dim;
    for (int i = 0; i < 2; i++) {
        uint32_t rows = rows_of[i];
        const struct {
            const char *name;
            void (*op)(struct bench *, uint32_t);
            double bytes; /* a row */
        } row[] = {{"rms_norm", op_norm, m->hidden * (4.0 + f->operand_bytes)},
                   {"silu_mul", op_silu, m->ffn * (2.0 * f->product_bytes + f->operand_bytes)},
                   {"rope_append", op_rope, f->product_bytes * 2.0 * qkv}};
        if (rows <= x->sequences_max)
            set_batch(x, rows, 1, 20);
        else
            set_batch(x, 1, rows, 0);
        for (size_t n = 0; n < sizeof row / sizeof row[0]; n++) {
            double seconds = seconds_of(x, row[n].op);
            figure_print(seconds * 1e6, "%s_%u_rows_us", row[n].name, rows);
            figure_print(100 * row[n].bytes * rows / seconds / x->ceilings->copy_bytes_s,
                         "%s_%u_rows_of_copy_percent", row[n].name, rows);
        }
    }
}

/* The four products of a layer, one after the other: more bytes of weights than any cache holds. */
static void products(struct bench *x)
{
    const struct tiny_shape *m = &x->shape->model;
    uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    const uint32_t size[PRODUCTS][2] = {
        {q + 2 * kv, m->hidden}, {m->hidden, q}, {2 * m->ffn, m->hidden}, {m->hidden, m->ffn}};
    double weights = 0;
    for (int i = 0; i < PRODUCTS; i++) {
        double count = (double)size[i][0] * size[i][1];
        x->layer[i] = (struct matrix){random_memory(x, (uint64_t)count * 2, false), size[i][0],
                                      size[i][1], DTYPE_BF16};
        weights += count;
    }
    for (uint32_t rows = 1; rows <= x->rows_max; rows *= rows == 1 ? 8 : 4) {
        for (int i = 0; i < PRODUCTS; i++)
            x->ops->prepare(x->b, &x->layer[i], ROWS_PRODUCT, false, rows);
        set_batch(x, 1, rows, 0);
        double seconds = seconds_of(x, op_products);
        double bytes_s = weights * 2 / seconds, flops = 2 * weights * rows / seconds;
        figure_print(bytes_s / 1e9, "products_%u_weights_gb_s", rows);
        figure_print(100 * bytes_s / x->ceilings->copy_bytes_s, "products_%u_of_copy_percent",
                     rows);
        figure_print(flops / 1e12, "products_%u_tflop_s", rows);
        figure_print(100 * flops / x->ceilings->peak_flops, "products_%u_of_peak_percent", rows);
    }
    for (int i = 0; i < PRODUCTS; i++)
        x->ops->free(x->b, (void *)(uintptr_t)x->layer[i].packed);
}

static void drawing(struct bench *x)
{
    static const struct {
        const char *name;
        struct sampling how;
    } row[] = {
        {"draw_greedy", {.top_p = 1, .repetition_penalty = 1}},
        {"draw_plain", {.temperature = 1, .top_p = 1, .repetition_penalty = 1}},
        {"draw_top_k", {.temperature = 1, .top_p = 1, .top_k = 50, .repetition_penalty = 1}},
        {"draw_top_p", {.temperature = 1, .top_p = 0.95f, .repetition_penalty = 1}},
        {"draw_logprobs",
         {.top_p = 1, .repetition_penalty = 1, .logprobs = true, .tops_count = 20}},
    };
    uint32_t rows = x->sequences_max < 32 ? x->sequences_max : 32;
    if (!x->ops->facts(x->b)->draws) return;
    set_batch(x, rows, 1, 20);
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        const struct job job = {.sampling = row[i].how};
        for (uint32_t slot = 0; slot < rows; slot++)
            x->ops->slot_make(x->b, slot, &job);
        figure_print(seconds_of(x, op_draw) * 1e6, "%s_%u_us", row[i].name, rows);
    }
}

/* --- steps --- */

/* As many operations as a decode step of the shape has; its products are all hidden x hidden. */
static void enqueue_pass(void *ctx, uint32_t rows, uint32_t outputs)
{
    static void (*const layer[])(struct bench *, uint32_t) = {op_norm,    op_product, op_rope,
                                                              op_attend,  op_product, op_norm,
                                                              op_product, op_silu,    op_product};
    struct bench *x = ctx;
    (void)outputs;
    for (uint32_t i = 0; i < x->shape->model.layers; i++)
        for (size_t op = 0; op < sizeof layer / sizeof layer[0]; op++)
            layer[op](x, rows);
}

static void enqueue_little(void *ctx, uint32_t rows, uint32_t outputs)
{
    (void)outputs;
    op_norm(ctx, rows);
}

/* What the host takes to give the device one step, while that has nothing to do. */
static double host_seconds(struct bench *x, backend_enqueue_fn *enqueue_step)
{
    double best = 1e9;
    for (int run = 0; run < REPEATS; run++) { /* the second one records */
        must(x->ops->sync(x->b));
        uint64_t began_ns = clock_now_ns();
        x->ops->step(x->b, &x->batch, enqueue_step, x);
        double took = (double)(clock_now_ns() - began_ns) / NS_PER_S;
        if (took < best) best = took;
    }
    must(x->ops->sync(x->b));
    return best;
}

/* From step to step when the host is always ahead. */
static double period_seconds(struct bench *x, backend_enqueue_fn *enqueue_step)
{
    double best = 1e9;
    for (int run = 0; run < RUNS; run++) {
        must(x->ops->sync(x->b));
        uint64_t began_ns = clock_now_ns();
        for (int i = 0; i < PERIODS; i++)
            x->ops->step(x->b, &x->batch, enqueue_step, x);
        must(x->ops->sync(x->b));
        double took = (double)(clock_now_ns() - began_ns) / NS_PER_S / PERIODS;
        if (took < best) best = took;
    }
    return best;
}

/* A recorded step against one whose operations are launched one by one. The period of a recorded step of
 * one small kernel is the most that lies between the kernels of two steps: description, launch, kernel. */
static void steps(struct bench *x)
{
    uint32_t hidden = x->shape->model.hidden;
    x->matrix = (struct matrix){random_memory(x, (uint64_t)hidden * hidden * 2, false), hidden,
                                hidden, DTYPE_BF16};
    set_batch(x, 1, 1, 20);
    figure("step_enqueued_host_us", host_seconds(x, enqueue_pass) * 1e6);
    x->batch.watched = false;
    figure("step_recorded_host_us", host_seconds(x, enqueue_pass) * 1e6);
    set_batch(x, 2, 1, 20); /* is recorded anew */
    x->batch.watched = false;
    host_seconds(x, enqueue_little);
    figure("step_between_us", period_seconds(x, enqueue_little) * 1e6);
    x->ops->free(x->b, (void *)(uintptr_t)x->matrix.packed);
}

/* --- the whole --- */

static void open_all(struct bench *x, const char *backend, bool deterministic)
{
    const struct gpu_shape *s = x->shape;
    const struct tiny_shape *m = &s->model;
    uint32_t widest = 2 * m->ffn > 4 * m->hidden ? 2 * m->ffn : 4 * m->hidden;
    for (int i = 0; i < 4; i++) {
        if (s->batch[i] > x->sequences_max) x->sequences_max = s->batch[i];
        if (s->prefill[i] > x->rows_max && s->prefill[i] <= 8192) x->rows_max = s->prefill[i];
    }
    x->table_max =
        blocks_for_tokens(s->context[1]) * (x->sequences_max < 32 ? x->sequences_max : 32);
    if (x->table_max < blocks_for_tokens(x->rows_max))
        x->table_max = blocks_for_tokens(x->rows_max);
    struct backend_options o = {
        .dtype = DTYPE_BF16,
        .deterministic = deterministic,
        .limits = {x->rows_max, x->sequences_max, x->table_max, x->sequences_max, m->vocab}};
    must(backend_find(backend, &x->ops));
    must(x->ops->open(&x->b, &o));
    x->attend = (struct attend_shape){m->heads, m->kv_heads, m->head_dim, 0.1f};
    x->kv = (struct kv_view){
        NULL,
        {1, m->kv_heads, m->head_dim, BLOCK_TOKENS, x->ops->facts(x->b)->kv_layout, DTYPE_BF16},
        x->table_max};
    x->kv.base = random_memory(x, (uint64_t)x->table_max * kv_block_bytes(&x->kv.geometry), false);
    x->stream = random_memory(x, (uint64_t)x->rows_max * m->hidden * 4, true);
    x->operand = random_memory(x, (uint64_t)x->rows_max * widest * 4, false);
    x->product = random_memory(x, (uint64_t)x->rows_max * widest * 4, false);
    x->logits = random_memory(x, (uint64_t)x->sequences_max * m->vocab * 4, true);
    x->weight = random_memory(x, (uint64_t)m->hidden * 4, true);
    x->drawn = random_memory(x, x->sequences_max * sizeof *x->drawn, false);
    uint64_t angles = (uint64_t)m->context * m->head_dim / 2;
    x->rope = (struct rope_table){random_memory(x, angles * 4, true),
                                  random_memory(x, angles * 4, true), m->head_dim / 2};
    x->sequence = mem_array(x->sequences_max, sizeof *x->sequence);
    x->tokens = mem_array(x->rows_max, sizeof *x->tokens);
    x->table = mem_array(x->table_max, sizeof *x->table);
    x->output_row = mem_array(x->rows_max, sizeof *x->output_row);
    if (!x->sequence || !x->tokens || !x->table || !x->output_row) must(ERR_MEMORY);
}

static void close_all(struct bench *x)
{
    void *memory[] = {x->kv.base,
                      x->stream,
                      x->operand,
                      x->product,
                      x->logits,
                      x->weight,
                      x->drawn,
                      (void *)(uintptr_t)x->rope.cos,
                      (void *)(uintptr_t)x->rope.sin};
    must(x->ops->sync(x->b));
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++)
        x->ops->free(x->b, memory[i]);
    x->ops->close(x->b);
    mem_free(x->sequence), mem_free(x->tokens), mem_free(x->table), mem_free(x->output_row);
}

void ops_figures(const char *backend, bool deterministic, const struct gpu_shape *shape,
                 const struct ceilings_cuda *c)
{
    struct bench x = {.shape = shape, .ceilings = c};
    open_all(&x, backend, deterministic);
    decode_attention(&x);
    prefill_attention(&x);
    small_ops(&x);
    products(&x);
    drawing(&x);
    steps(&x);
    close_all(&x);
}
