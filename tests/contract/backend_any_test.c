/* The contract of backend.h for any device: each op against cpu-c on the same numbers, within what the
 * device's types allow, and what a row's bits may depend on, to the bit. The paths of the CPU have more
 * to promise, in backend_test.c and backend_attend_test.c.
 *
 *     backend_any_test [NAME]        "cpu" if none is given; "cuda" takes the plugin that is found
 *
 * Inputs are rounded to the dtype first, so that both sides compute on the same numbers. */
#include "tests/contract/backend_rows.h"

#include "common/clock.h"
#include "engine/sampler.h"

enum { ROWS_MAX = 96, SEQUENCES_MAX = 8, TABLE_MAX = 64, SLOTS = 8, VOCAB = 61, LAYERS = 2 };

static const char *backend_name = "cpu";

static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};

static struct subject any_open_as(const char *name, enum dtype dtype, bool deterministic)
{
    struct subject s;
    struct backend_options options = {
        .threads = 2,
        .dtype = dtype,
        .deterministic = deterministic,
        .limits = {ROWS_MAX, SEQUENCES_MAX, TABLE_MAX, SLOTS, VOCAB},
    };
    assert_ok(backend_find(name, &s.ops));
    assert_ok(s.ops->open(&s.b, &options));
    return s;
}
static struct subject any_open(enum dtype dtype, bool deterministic)
{
    return any_open_as(backend_name, dtype, deterministic);
}

/* --- products --- */

struct product_case {
    uint32_t rows, n, k;
    bool bias, residual;
};

static float *run_product(const struct subject *s, const struct product_case *c, enum dtype dtype,
                          const float *x, const float *w, const float *bias, const float *residual)
{
    enum row_kind kind = c->residual ? ROWS_STREAM : ROWS_PRODUCT;
    size_t count = (size_t)c->rows * c->n;
    struct matrix m = matrix_put(s, c->n, c->k, dtype, w);
    void *dx = rows_put(s, ROWS_OPERAND, x, (size_t)c->rows * c->k);
    void *out = c->residual ? rows_put(s, kind, residual, count) : rows_alloc(s, kind, count);
    float *db = c->bias ? rows_put(s, ROWS_STREAM, bias, c->n) : NULL;
    s->ops->prepare(s->b, &m, kind, c->bias, c->rows);
    s->ops->matmul(s->b, out, kind, dx, &m, db, c->residual ? out : NULL, c->rows);
    float *got = rows_get(s, kind, out, count);
    s->ops->free(s->b, dx);
    s->ops->free(s->b, out);
    if (db) s->ops->free(s->b, db);
    matrix_free(s, &m);
    return got;
}

static void a_product_is_that_of_the_oracle(void **state)
{
    (void)state;
    static const struct product_case cases[] = {
        {1, 1, 2, false, false},    {1, 64, 64, false, false}, {2, 63, 18, true, false},
        {3, 65, 32, false, true},   {5, 130, 34, true, true},  {8, 96, 100, false, false},
        {13, 16, 8, true, true},    {31, 72, 64, false, true}, {32, 40, 48, true, false},
        {33, 64, 64, false, true},  {64, 48, 96, true, true},  {1, 24, 1100, false, true},
        {40, 128, 160, true, false}};
    struct random r = {.seed = 1};
    for (size_t d = 0; d < COUNT(dtypes); d++) {
        struct subject oracle = any_open_as("cpu-c", dtypes[d], false),
                       s = any_open(dtypes[d], false);
        for (size_t i = 0; i < COUNT(cases); i++) {
            const struct product_case *c = &cases[i];
            size_t count = (size_t)c->rows * c->n;
            float *x = random_rounded(&r, (size_t)c->rows * c->k, dtypes[d]);
            float *w = random_rounded(&r, (size_t)c->n * c->k, dtypes[d]);
            float *bias = random_rounded(&r, c->n, dtypes[d]), *residual = random_floats(&r, count);
            float *want = run_product(&oracle, c, dtypes[d], x, w, bias, residual);
            float *got = run_product(&s, c, dtypes[d], x, w, bias, residual);
            assert_near(got, want, count, !c->residual && rows_narrow(&s, ROWS_PRODUCT),
                        2e-6 * sqrt(c->k) * 4, "product");
            mem_free(x), mem_free(w), mem_free(bias), mem_free(residual);
            mem_free(want), mem_free(got);
        }
        subject_close(&oracle);
        subject_close(&s);
    }
}

/* Up to 32 rows always; of any number if the backend is told to be deterministic. */
static void a_row_of_a_product_does_not_depend_on_its_company(void **state)
{
    (void)state;
    enum { N = 72, K = 160 };
    struct random r = {.seed = 2};
    for (size_t d = 0; d < COUNT(dtypes); d++)
        for (int deterministic = 0; deterministic < 2; deterministic++) {
            struct subject s = any_open(dtypes[d], deterministic);
            struct product_case whole = {deterministic ? ROWS_MAX : 32, N, K, true, true};
            float *x = random_rounded(&r, ROWS_MAX * K, dtypes[d]),
                  *w = random_rounded(&r, N * K, dtypes[d]);
            float *bias = random_floats(&r, N), *residual = random_floats(&r, ROWS_MAX * N);
            float *all = run_product(&s, &whole, dtypes[d], x, w, bias, residual);
            for (int round = 0; round < 6; round++) {
                struct product_case part = whole;
                uint32_t first = random_below(&r, whole.rows);
                part.rows = 1 + random_below(&r, whole.rows - first);
                float *some =
                    run_product(&s, &part, dtypes[d], x + first * K, w, bias, residual + first * N);
                assert_memory_equal(some, all + first * N, part.rows * N * sizeof *some);
                mem_free(some);
            }
            mem_free(x), mem_free(w), mem_free(bias), mem_free(residual), mem_free(all);
            subject_close(&s);
        }
}

/* --- rows --- */

static void norm_and_silu_are_those_of_the_oracle(void **state)
{
    (void)state;
    static const uint32_t dims[] = {2, 16, 24, 64, 100, 192, 1024};
    struct random r = {.seed = 3};
    for (size_t d = 0; d < COUNT(dtypes); d++) {
        struct subject side[2] = {any_open_as("cpu-c", dtypes[d], false),
                                  any_open(dtypes[d], false)};
        bool narrow = rows_narrow(&side[1], ROWS_OPERAND);
        for (size_t i = 0; i < COUNT(dims); i++) {
            uint32_t dim = dims[i], rows = 1 + (uint32_t)i * 5;
            size_t count = (size_t)rows * dim;
            float *x = random_floats(&r, count), *weight = random_floats(&r, dim), *norm[2],
                  *silu[2];
            float *gate_up = random_rounded(&r, 2 * count, dtypes[d]);
            for (size_t j = 0; j < 2 * count; j++)
                gate_up[j] *= j % 3 ? 1 : 16;
            for (int j = 0; j < 2; j++) {
                const struct subject *s = &side[j];
                float *dx = rows_put(s, ROWS_STREAM, x, count);
                float *dw = rows_put(s, ROWS_STREAM, weight, dim);
                void *dg = rows_put(s, ROWS_PRODUCT, gate_up, 2 * count);
                void *out = rows_alloc(s, ROWS_OPERAND, count);
                s->ops->rms_norm(s->b, out, dx, dw, rows, dim, 1e-5f);
                norm[j] = rows_get(s, ROWS_OPERAND, out, count);
                s->ops->silu_mul(s->b, out, dg, rows, dim);
                silu[j] = rows_get(s, ROWS_OPERAND, out, count);
                s->ops->free(s->b, dx), s->ops->free(s->b, dw);
                s->ops->free(s->b, dg), s->ops->free(s->b, out);
            }
            assert_near(norm[1], norm[0], count, narrow, 1e-5, "rms_norm");
            assert_near(silu[1], silu[0], count, narrow, 1e-5, "silu_mul");
            mem_free(x), mem_free(weight), mem_free(gate_up);
            for (int j = 0; j < 2; j++)
                mem_free(norm[j]), mem_free(silu[j]);
        }
        subject_close(&side[0]);
        subject_close(&side[1]);
    }
}

/* --- steps --- */

/* A batch and room for it; sequences of one row are decodes. */
struct plan {
    struct batch batch;
    struct batch_sequence sequence[SEQUENCES_MAX];
    uint32_t tokens[ROWS_MAX], table[TABLE_MAX], output_row[ROWS_MAX];
};

static void plan_add(struct plan *p, uint32_t slot, uint32_t position, uint32_t rows,
                     uint32_t table_first)
{
    struct batch *b = &p->batch;
    p->sequence[b->sequences_count++] =
        (struct batch_sequence){b->rows_count, rows, position, table_first, slot};
    b->rows_count += rows;
    p->output_row[b->outputs_count++] = b->rows_count - 1;
    b->tokens = p->tokens;
    b->sequence = p->sequence;
    b->table = p->table;
    b->output_row = p->output_row;
}

struct embed_run {
    const struct subject *s;
    const struct plan *plan;
    const void *table;
    enum dtype dtype;
    float *x, *picked;
    uint32_t dim;
};

static void embed_enqueue(void *ctx, uint32_t rows, uint32_t outputs)
{
    const struct embed_run *e = ctx;
    const struct backend_ops *ops = e->s->ops;
    ops->embed(e->s->b, e->x, e->table, e->dtype, &e->plan->batch, rows, e->dim);
    ops->gather(e->s->b, e->picked, e->x, &e->plan->batch, 0, outputs, e->dim);
}

static void embed_and_gather_move_the_right_rows(void **state)
{
    (void)state;
    enum { DIM = 48, LENGTH = 5 };
    struct random r = {.seed = 4};
    for (size_t d = 0; d < COUNT(dtypes); d++) {
        struct subject s = any_open(dtypes[d], false);
        float *table = random_rounded(&r, VOCAB * DIM, dtypes[d]);
        void *device = s.ops->alloc(s.b, VOCAB * DIM * dtype_bytes(dtypes[d]));
        if (s.ops->weight_write) {
            assert_ok(s.ops->weight_write(s.b, device, dtypes[d], table, DTYPE_F32, VOCAB * DIM));
            assert_ok(s.ops->sync(s.b));
        } else {
            for (uint32_t i = 0; i < VOCAB * DIM; i++)
                if (dtypes[d] == DTYPE_BF16)
                    ((uint16_t *)device)[i] = bf16_from_f32(table[i]);
                else
                    ((float *)device)[i] = table[i];
        }
        for (int decodes = 0; decodes < 2; decodes++) {
            struct plan p = {.batch = {.watched = !decodes}};
            for (uint32_t i = 0; i < 6; i++)
                plan_add(&p, i, 0, decodes ? 1 : LENGTH, i);
            for (uint32_t i = 0; i < p.batch.rows_count; i++)
                p.tokens[i] = random_below(&r, VOCAB);
            struct embed_run run = {&s,
                                    &p,
                                    device,
                                    dtypes[d],
                                    rows_alloc(&s, ROWS_STREAM, ROWS_MAX * DIM),
                                    rows_alloc(&s, ROWS_STREAM, ROWS_MAX * DIM),
                                    DIM};
            s.ops->step(s.b, &p.batch, embed_enqueue, &run);
            float *x = rows_get(&s, ROWS_STREAM, run.x, p.batch.rows_count * DIM);
            float *picked = rows_get(&s, ROWS_STREAM, run.picked, p.batch.outputs_count * DIM);
            for (uint32_t i = 0; i < p.batch.rows_count; i++)
                assert_memory_equal(x + i * DIM, table + p.tokens[i] * DIM, DIM * sizeof *x);
            for (uint32_t i = 0; i < p.batch.outputs_count; i++)
                assert_memory_equal(picked + i * DIM, x + p.output_row[i] * DIM, DIM * sizeof *x);
            mem_free(x), mem_free(picked);
            s.ops->free(s.b, run.x), s.ops->free(s.b, run.picked);
        }
        s.ops->free(s.b, device);
        mem_free(table);
        subject_close(&s);
    }
}

/* --- attention --- */

struct world {
    struct attend_shape shape;
    uint32_t window;
    enum dtype dtype;
    struct kv_window own; /* of every other sequence, where devices have such */
};

/* One side: its pool, its rope tables, rows for one step. */
struct attention {
    struct subject s;
    const struct world *w;
    const struct plan *plan;
    struct kv_view kv;
    struct rope_table rope;
    void *qkv, *out;
    float *qkv_host;
    uint32_t layer;
};

static void attention_enqueue(void *ctx, uint32_t rows, uint32_t outputs)
{
    struct attention *a = ctx;
    const struct batch *batch = &a->plan->batch;
    (void)outputs;
    a->s.ops->rope_append(a->s.b, a->qkv, batch, rows, &a->rope, &a->w->shape, &a->kv, a->layer);
    a->s.ops->attend(a->s.b, a->out, a->qkv, batch, rows, &a->w->shape, &a->kv, a->layer);
}

static uint32_t qkv_width(const struct world *w)
{
    return (w->shape.heads + 2 * w->shape.kv_heads) * w->shape.head_dim;
}

static void attention_open(struct attention *a, const char *name, const struct world *w,
                           bool deterministic)
{
    enum { POSITIONS = TABLE_MAX * BLOCK_TOKENS };
    uint32_t half = w->shape.head_dim / 2;
    *a = (struct attention){.s = any_open_as(name, w->dtype, deterministic), .w = w, .layer = 1};
    struct kv_geometry g = {LAYERS,
                            w->shape.kv_heads,
                            w->shape.head_dim,
                            BLOCK_TOKENS,
                            a->s.ops->facts(a->s.b)->kv_layout,
                            w->dtype};
    size_t bytes = TABLE_MAX * kv_block_bytes(&g);
    a->kv = (struct kv_view){a->s.ops->alloc(a->s.b, bytes), g, TABLE_MAX};
    void *poison = mem_new(bytes);
    memset(poison, 0xff, bytes); /* NaN: stale memory must never show */
    assert_ok(a->s.ops->write(a->s.b, a->kv.base, poison, bytes));
    mem_free(poison);
    float *table = mem_array(POSITIONS * half, sizeof *table);
    for (int i = 0; i < 2; i++) {
        for (uint32_t j = 0; j < POSITIONS * half; j++) {
            double angle = j / half * pow(10000, -2.0 * (j % half) / w->shape.head_dim);
            table[j] = (float)(i ? sin(angle) : cos(angle));
        }
        *(i ? &a->rope.sin : &a->rope.cos) = rows_put(&a->s, ROWS_STREAM, table, POSITIONS * half);
    }
    mem_free(table);
    a->rope.half_dim = half;
    a->qkv = rows_alloc(&a->s, ROWS_PRODUCT, ROWS_MAX * qkv_width(w));
    a->out = rows_alloc(&a->s, ROWS_OPERAND, ROWS_MAX * w->shape.heads * w->shape.head_dim);
}

static void attention_close(struct attention *a)
{
    a->s.ops->free(a->s.b, a->kv.base);
    a->s.ops->free(a->s.b, (void *)(uintptr_t)a->rope.cos);
    a->s.ops->free(a->s.b, (void *)(uintptr_t)a->rope.sin);
    a->s.ops->free(a->s.b, a->qkv);
    a->s.ops->free(a->s.b, a->out);
    subject_close(&a->s);
}

static float *attention_run(struct attention *a, const struct plan *plan, const float *qkv)
{
    uint32_t rows = plan->batch.rows_count;
    a->plan = plan;
    void *put = rows_put(&a->s, ROWS_PRODUCT, qkv, (size_t)rows * qkv_width(a->w));
    size_t bytes = (size_t)rows * qkv_width(a->w) * (rows_narrow(&a->s, ROWS_PRODUCT) ? 2 : 4);
    void *host = mem_new(bytes);
    assert_ok(a->s.ops->read(a->s.b, host, put, bytes));
    assert_ok(a->s.ops->write(a->s.b, a->qkv, host, bytes)); /* the same place for every step */
    mem_free(host);
    a->s.ops->free(a->s.b, put);
    a->s.ops->step(a->s.b, &plan->batch, attention_enqueue, a);
    return rows_get(&a->s, ROWS_OPERAND, a->out,
                    (size_t)rows * a->w->shape.heads * a->w->shape.head_dim);
}

/* A cluster's life in small: prompts in chunks beside decodes, blocks anywhere. */
struct life {
    uint32_t done[SEQUENCES_MAX], table[TABLE_MAX];
    uint32_t sequences, blocks_each;
};

static void life_init(struct life *l, uint32_t sequences, struct random *r)
{
    *l = (struct life){.sequences = sequences, .blocks_each = TABLE_MAX / sequences};
    for (uint32_t i = 0; i < TABLE_MAX; i++)
        l->table[i] = i;
    for (uint32_t i = TABLE_MAX - 1; i > 0; i--) {
        uint32_t j = random_below(r, i + 1), swap = l->table[i];
        l->table[i] = l->table[j];
        l->table[j] = swap;
    }
}

/* chunk 1: a pure decode step, which may be replayed. */
static void life_plan(struct life *l, struct plan *p, const struct world *w, uint32_t chunk,
                      struct random *r)
{
    *p = (struct plan){
        .batch = {.window = w->window, .watched = chunk > 1, .table_count = TABLE_MAX}};
    memcpy(p->table, l->table, sizeof p->table);
    for (uint32_t i = 0; i < l->sequences; i++) {
        uint32_t left = l->blocks_each * BLOCK_TOKENS - l->done[i];
        uint32_t rows = chunk == 1 ? 1 : random_below(r, 3) == 0 ? 1 : 1 + random_below(r, chunk);
        if (rows > left) rows = left;
        if (rows > ROWS_MAX - p->batch.rows_count) rows = ROWS_MAX - p->batch.rows_count;
        if (rows == 0 || random_below(r, 4) == 0) continue;
        plan_add(p, i, l->done[i], rows, i * l->blocks_each);
        if (i % 2 == 1) p->sequence[p->batch.sequences_count - 1].window = w->own;
        l->done[i] += rows;
    }
}

static const struct world worlds[] = {
    {{4, 2, 16, 0.25f}, 0, DTYPE_BF16},          {{8, 1, 32, 0.2f}, 0, DTYPE_BF16},
    {{6, 2, 64, 0.125f}, 40, DTYPE_BF16},        {{2, 2, 128, 0.09f}, 0, DTYPE_BF16},
    {{3, 1, 24, 0.2f}, 17, DTYPE_BF16},          {{4, 2, 16, 0.25f}, 0, DTYPE_F32},
    {{7, 1, 10, 0.3f}, 33, DTYPE_F32},           {{4, 2, 64, 0.125f}, 0, DTYPE_BF16, {50, 16}},
    {{3, 1, 24, 0.2f}, 0, DTYPE_BF16, {20, 48}}, {{4, 2, 16, 0.25f}, 0, DTYPE_F32, {33, 32}},
};

static void attention_is_that_of_the_oracle(void **state)
{
    (void)state;
    struct random r = {.seed = 5};
    for (size_t i = 0; i < COUNT(worlds); i++) {
        const struct world *w = &worlds[i];
        struct attention oracle, a;
        struct life l;
        attention_open(&oracle, "cpu-c", w, false);
        attention_open(&a, backend_name, w, false);
        life_init(&l, 3, &r);
        for (uint32_t round = 0; round < 14; round++) {
            struct plan p;
            life_plan(&l, &p, w, round % 3 == 2 ? 1 : 40, &r);
            if (p.batch.rows_count == 0) continue;
            float *qkv = random_rounded(&r, (size_t)p.batch.rows_count * qkv_width(w), w->dtype);
            float *want = attention_run(&oracle, &p, qkv), *got = attention_run(&a, &p, qkv);
            assert_near(got, want, (size_t)p.batch.rows_count * w->shape.heads * w->shape.head_dim,
                        w->dtype == DTYPE_BF16, w->dtype == DTYPE_BF16 ? 0.012 : 2e-5, "attention");
            mem_free(qkv), mem_free(want), mem_free(got);
        }
        attention_close(&oracle);
        attention_close(&a);
    }
}

/* The same life once in company and once with each sequence alone: decode rows always, all rows if
 * deterministic, have the same bits. */
static void a_row_attends_to_its_own_tokens_only(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(worlds); i++)
        for (int deterministic = 0; deterministic < 2; deterministic++) {
            const struct world *w = &worlds[i];
            uint32_t width = w->shape.heads * w->shape.head_dim;
            struct random r = {.seed = 6 + i};
            struct attention together, alone;
            struct life l;
            attention_open(&together, backend_name, w, deterministic);
            attention_open(&alone, backend_name, w, deterministic);
            life_init(&l, 3, &r);
            for (uint32_t round = 0; round < 8; round++) {
                struct plan p;
                life_plan(&l, &p, w, deterministic && round % 2 == 0 ? 30 : 1, &r);
                if (p.batch.rows_count == 0) continue;
                float *qkv =
                    random_rounded(&r, (size_t)p.batch.rows_count * qkv_width(w), w->dtype);
                float *all = attention_run(&together, &p, qkv);
                for (uint32_t j = 0; j < p.batch.sequences_count; j++) {
                    const struct batch_sequence *q = &p.sequence[j];
                    struct plan one = {.batch = {.window = w->window,
                                                 .watched = p.batch.watched,
                                                 .table_count = TABLE_MAX}};
                    memcpy(one.table, p.table, sizeof one.table);
                    plan_add(&one, 0, q->position, q->rows_count, q->table_first);
                    one.sequence[0].window = q->window;
                    float *single = attention_run(&alone, &one, qkv + q->row_first * qkv_width(w));
                    assert_memory_equal(single, all + q->row_first * width,
                                        q->rows_count * width * sizeof *single);
                    mem_free(single);
                }
                mem_free(qkv), mem_free(all);
            }
            attention_close(&together);
            attention_close(&alone);
        }
}

/* --- KV for links --- */

static void kv_crosses_to_the_host_and_back_in_both_orders(void **state)
{
    (void)state;
    static const uint32_t layouts[] = {KV_LAYOUT_CPU, KV_LAYOUT_CUDA}, blocks[] = {5, 0, 63, 17};
    struct random r = {.seed = 8};
    for (size_t i = 0; i < COUNT(worlds); i++) {
        struct attention oracle, a;
        struct plan p = {.batch = {.watched = true, .table_count = TABLE_MAX}};
        attention_open(&oracle, "cpu-c", &worlds[i], false);
        attention_open(&a, backend_name, &worlds[i], false);
        if (!a.s.ops->kv_read) {
            attention_close(&oracle);
            attention_close(&a);
            skip(); /* its pool is the host's */
        }
        memcpy(p.table, blocks, sizeof blocks);
        plan_add(&p, 0, 0, COUNT(blocks) * BLOCK_TOKENS, 0);
        float *qkv =
            random_rounded(&r, (size_t)p.batch.rows_count * qkv_width(&worlds[i]), worlds[i].dtype);
        mem_free(attention_run(&oracle, &p, qkv));
        mem_free(attention_run(&a, &p, qkv));
        size_t bytes = kv_layer_bytes(&a.kv.geometry), element = dtype_bytes(worlds[i].dtype);
        char *host = a.s.ops->host_alloc(a.s.b, COUNT(blocks) * bytes);
        char *back = a.s.ops->host_alloc(a.s.b, COUNT(blocks) * bytes);
        for (size_t j = 0; j < COUNT(layouts); j++) {
            assert_ok(a.s.ops->kv_read(a.s.b, &a.kv, 1, blocks, COUNT(blocks), layouts[j], host));
            for (uint32_t n = 0; n < COUNT(blocks) && layouts[j] == KV_LAYOUT_CPU; n++) {
                const char *want = (char *)oracle.kv.base +
                                   blocks[n] * kv_block_bytes(&oracle.kv.geometry) + bytes;
                for (size_t at = 0; at < bytes; at += element) {
                    const char *x = host + n * bytes + at;
                    float got, wanted;
                    uint16_t h[2];
                    memcpy(&got, x, element == 4 ? 4 : 0),
                        memcpy(&wanted, want + at, element == 4 ? 4 : 0);
                    memcpy(&h[0], x, 2), memcpy(&h[1], want + at, 2);
                    if (element == 2) got = f32_from_bf16(h[0]), wanted = f32_from_bf16(h[1]);
                    assert_near(&got, &wanted, 1, element == 2, 1e-5, "KV");
                }
            }
            /* into other blocks of the other layer, and out again */
            const uint32_t others[] = {1, 2, 3, 4};
            assert_ok(a.s.ops->kv_write(a.s.b, &a.kv, 0, others, COUNT(others), layouts[j], host));
            assert_ok(a.s.ops->kv_read(a.s.b, &a.kv, 0, others, COUNT(others), layouts[j], back));
            assert_memory_equal(host, back, COUNT(blocks) * bytes);
        }
        a.s.ops->host_free(a.s.b, host), a.s.ops->host_free(a.s.b, back);
        mem_free(qkv);
        attention_close(&oracle);
        attention_close(&a);
    }
}

/* Blocks as they lie in the pool, for tiers: layer by layer what kv_read gives in the pool's own order. */
static void whole_blocks_come_and_go_as_they_lie(void **state)
{
    (void)state;
    struct attention a;
    attention_open(&a, backend_name, &worlds[0], false);
    if (!a.s.ops->block_read) {
        attention_close(&a);
        skip(); /* its pool is the host's */
    }
    const uint32_t from = 5, to = 11, layout = a.kv.geometry.layout;
    size_t layer_bytes = kv_layer_bytes(&a.kv.geometry), bytes = kv_block_bytes(&a.kv.geometry);
    unsigned char *host = a.s.ops->host_alloc(a.s.b, bytes),
                  *back = a.s.ops->host_alloc(a.s.b, bytes);
    for (uint32_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < bytes; i++)
            host[i] = (unsigned char)(i * 11 + (i >> 9) + round);
        for (uint32_t layer = 0; layer < a.kv.geometry.layers_count; layer++)
            assert_ok(a.s.ops->kv_write(a.s.b, &a.kv, layer, &from, 1, layout,
                                        host + layer * layer_bytes));
        memset(back, 0, bytes);
        assert_ok(a.s.ops->block_read(a.s.b, &a.kv, from, back));
        assert_memory_equal(back, host, bytes);
        assert_ok(a.s.ops->block_write(a.s.b, &a.kv, to, host));
        memset(back, 0, bytes);
        for (uint32_t layer = 0; layer < a.kv.geometry.layers_count; layer++)
            assert_ok(
                a.s.ops->kv_read(a.s.b, &a.kv, layer, &to, 1, layout, back + layer * layer_bytes));
        assert_memory_equal(back, host, bytes);
    }
    a.s.ops->host_free(a.s.b, host), a.s.ops->host_free(a.s.b, back);
    attention_close(&a);
}

static void kv_goes_through_a_slot_with_its_checksum(void **state)
{
    (void)state;
    const uint32_t from[] = {3, 7, 0}, to[] = {9, 1, 4},
                   layouts[] = {KV_LAYOUT_CPU, KV_LAYOUT_CUDA};
    struct attention a;
    attention_open(&a, backend_name, &worlds[0], false);
    if (!a.s.ops->kv_gather) {
        attention_close(&a);
        skip(); /* it has no links of its own */
    }
    size_t bytes = COUNT(from) * kv_layer_bytes(&a.kv.geometry);
    void *slot = a.s.ops->alloc(a.s.b, bytes);
    unsigned char *host = a.s.ops->host_alloc(a.s.b, bytes),
                  *back = a.s.ops->host_alloc(a.s.b, bytes);
    for (uint32_t round = 0; round < 2 * COUNT(layouts); round++) {
        uint32_t layout = layouts[round / 2];
        uint64_t hash[2] = {0};
        for (size_t i = 0; i < bytes; i++)
            host[i] = (unsigned char)(i * 7 + (i >> 8) + round);
        assert_ok(a.s.ops->kv_write(a.s.b, &a.kv, 1, from, COUNT(from), layout, host));
        assert_ok(a.s.ops->kv_gather(a.s.b, &a.kv, 1, from, COUNT(from), layout, slot, &hash[0]));
        assert_ok(a.s.ops->kv_scatter(a.s.b, &a.kv, 0, to, COUNT(to), layout, slot, &hash[1]));
        assert_ok(a.s.ops->read(a.s.b, back, slot, bytes));
        assert_memory_equal(back, host, bytes);
        assert_true(hash[0] == kv_hash(host, bytes / 8) && hash[1] == hash[0]);
        assert_ok(a.s.ops->kv_read(a.s.b, &a.kv, 0, to, COUNT(to), layout, back));
        assert_memory_equal(back, host, bytes);
    }
    a.s.ops->host_free(a.s.b, host), a.s.ops->host_free(a.s.b, back);
    a.s.ops->free(a.s.b, slot);
    attention_close(&a);
}

static void kv_that_was_written_is_there_for_the_next_step(void **state)
{
    (void)state;
    const uint32_t from = 3, to = 9;
    struct attention a;
    attention_open(&a, backend_name, &worlds[0], false);
    if (!a.s.ops->kv_write) {
        attention_close(&a);
        skip(); /* its pool is the host's */
    }
    size_t bytes = kv_layer_bytes(&a.kv.geometry);
    unsigned char *host = a.s.ops->host_alloc(a.s.b, bytes),
                  *back = a.s.ops->host_alloc(a.s.b, bytes);
    for (uint32_t round = 0; round < 3; round++) {
        memset(host, 1 + (int)round, bytes);
        assert_ok(a.s.ops->kv_write(a.s.b, &a.kv, 1, &from, 1, KV_LAYOUT_CPU, host));
        a.s.ops->block_copy(a.s.b, &a.kv, from, to);
        assert_ok(a.s.ops->wait(a.s.b, a.s.ops->mark(a.s.b), TIME_NEVER));
        assert_ok(a.s.ops->kv_read(a.s.b, &a.kv, 1, &to, 1, KV_LAYOUT_CPU, back));
        assert_memory_equal(back, host, bytes);
    }
    a.s.ops->host_free(a.s.b, host), a.s.ops->host_free(a.s.b, back);
    attention_close(&a);
}

/* --- drawing --- */

struct draw_run {
    const struct subject *s;
    const struct plan *plan;
    const float *logits;
    struct token_info *result;
};

static void draw_enqueue(void *ctx, uint32_t rows, uint32_t outputs)
{
    const struct draw_run *d = ctx;
    (void)rows;
    d->s->ops->draw(d->s->b, d->result, d->logits, &d->plan->batch, outputs);
}

/* Slots with all options go on over many steps, the last of two being in flight when it is planned. */
static void tokens_drawn_on_the_device_are_the_samplers(void **state)
{
    (void)state;
    enum { STEPS = 12 };
    struct random r = {.seed = 9};
    struct subject s = any_open(DTYPE_F32, false);
    if (!s.ops->facts(s.b)->draws) {
        subject_close(&s);
        skip(); /* the engine draws for it */
    }
    const struct logit_bias bias[] = {{3, 1.5f}, {60, -100}};
    const uint32_t prompt[] = {1, 2, 3, 3, 7}, forwarded[] = {9, 9, 4};
    struct job job[SLOTS] = {0};
    struct sampler sampler;
    uint32_t *counts = mem_array(SLOTS * VOCAB, sizeof *counts);
    assert_ok(sampler_init(&sampler, VOCAB));
    struct draw_run run = {.s = &s, .result = s.ops->alloc(s.b, SLOTS * sizeof *run.result)};
    struct token_info *host = s.ops->host_alloc(s.b, SLOTS * sizeof *host);
    for (uint32_t i = 0; i < SLOTS; i++) {
        job[i] = (struct job){.key.choice = i,
                              .prompt = prompt,
                              .prompt_count = COUNT(prompt),
                              .forwarded = forwarded,
                              .forwarded_count = i % 2 ? COUNT(forwarded) : 0,
                              .sampling = {.temperature = i == 0 ? 0 : 0.5f + 0.3f * (float)i,
                                           .top_k = i % 3 == 1 ? 5 : 0,
                                           .top_p = i % 3 == 2 ? 0.8f : 1,
                                           .min_p = i == 5 ? 0.05f : 0,
                                           .repetition_penalty = i % 4 == 3 ? 1.3f : 1,
                                           .presence_penalty = i == 2 ? 0.5f : 0,
                                           .frequency_penalty = i == 6 ? 0.25f : 0,
                                           .seed = 77 + i,
                                           .logprobs = i % 2,
                                           .tops_count = i % 2 ? i : 0,
                                           .bias = bias,
                                           .bias_count = i == 4 ? COUNT(bias) : 0}};
        s.ops->slot_make(s.b, i, &job[i]);
        for (uint32_t j = 0; j < COUNT(prompt); j++)
            counts[i * VOCAB + prompt[j]] = DRAW_IN_PROMPT;
        for (uint32_t j = 0; j < job[i].forwarded_count; j++)
            counts[i * VOCAB + forwarded[j]]++;
    }
    for (uint32_t step = 0; step < STEPS; step++) {
        struct plan p = {.batch = {.watched = true}};
        for (uint32_t i = 0; i < SLOTS; i++)
            plan_add(&p, (i + step) % SLOTS, step, 1, 0);
        float *logits = random_floats(&r, SLOTS * VOCAB);
        for (uint32_t i = 0; i < SLOTS * VOCAB; i++)
            logits[i] *= 4;
        run.plan = &p;
        float *device = rows_put(&s, ROWS_STREAM, logits, SLOTS * VOCAB);
        run.logits = device;
        s.ops->step(s.b, &p.batch, draw_enqueue, &run);
        s.ops->fetch(s.b, host, run.result, SLOTS * sizeof *host);
        uint64_t mark = s.ops->mark(s.b);
        assert_ok(s.ops->wait(s.b, mark, TIME_NEVER));
        for (uint32_t i = 0; i < SLOTS; i++) {
            uint32_t slot = (i + step) % SLOTS, *seen = counts + slot * VOCAB;
            struct token_info want;
            struct sampler_ask ask = {logits + i * VOCAB, &job[slot].sampling, seen, slot,
                                      job[slot].forwarded_count + step};
            sampler_draw(&sampler, &ask, &want);
            seen[want.token]++;
            assert_int_equal(host[i].token, want.token);
            assert_true(f32_bits(host[i].logprob) == f32_bits(want.logprob) ||
                        (isnan(host[i].logprob) && isnan(want.logprob)));
            assert_int_equal(host[i].tops_count, want.tops_count);
            assert_memory_equal(host[i].top, want.top, want.tops_count * sizeof want.top[0]);
        }
        mem_free(logits);
        s.ops->free(s.b, device);
    }
    s.ops->free(s.b, run.result);
    s.ops->host_free(s.b, host);
    sampler_fini(&sampler);
    mem_free(counts);
    subject_close(&s);
}

/* --- memory --- */

/* Devices take memory in pieces of some MiB, of which small allocations share one. */
static void memory_is_zero_bounded_and_given_back(void **state)
{
    (void)state;
    enum { BYTES = 32 << 20, PIECE = 4 << 20 };
    struct subject s = any_open(DTYPE_F32, false);
    uint64_t before = s.ops->memory_free(s.b);
    char *p = s.ops->alloc(s.b, BYTES), *host = mem_new(BYTES), *zero = mem_new(BYTES);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % 64, 0);
    memset(host, 7, BYTES);
    assert_ok(s.ops->read(s.b, host, p, BYTES));
    assert_memory_equal(host, zero, BYTES);
    if (before > 0) assert_true(s.ops->memory_free(s.b) <= before - BYTES + PIECE);
    s.ops->free(s.b, p);
    assert_true(s.ops->memory_free(s.b) + PIECE >= before);
    assert_null(s.ops->alloc(s.b, SIZE_MAX / 4));
    assert_non_null(p = s.ops->alloc(s.b, BYTES)); /* and it goes on */
    s.ops->free(s.b, p);
    mem_free(host), mem_free(zero);
    subject_close(&s);
}

/* Also with memory that copies can go on with. */
static void reads_and_writes_are_done_when_they_return(void **state)
{
    (void)state;
    enum { BYTES = 4096 };
    struct subject s = any_open(DTYPE_F32, false);
    char *p = s.ops->alloc(s.b, BYTES), *host = s.ops->host_alloc(s.b, BYTES);
    assert_non_null(p), assert_non_null(host);
    for (char round = 1; round <= 3; round++) {
        memset(host, round, BYTES);
        assert_ok(s.ops->write(s.b, p, host, BYTES));
        memset(host, 0, BYTES);
        assert_ok(s.ops->read(s.b, host, p, BYTES));
        for (uint32_t i = 0; i < BYTES; i++)
            assert_int_equal(host[i], round);
    }
    s.ops->free(s.b, p);
    s.ops->host_free(s.b, host);
    subject_close(&s);
}

static void marks_are_reached_in_order(void **state)
{
    (void)state;
    enum { COUNT_OF_MARKS = 50 };
    struct subject s = any_open(DTYPE_F32, false);
    float *x = rows_alloc(&s, ROWS_STREAM, 64), *host = s.ops->host_alloc(s.b, 64 * sizeof *host);
    uint64_t mark[COUNT_OF_MARKS];
    for (uint32_t i = 0; i < COUNT_OF_MARKS; i++) {
        s.ops->fetch(s.b, host, x, 64 * sizeof *host);
        mark[i] = s.ops->mark(s.b);
        assert_int_equal(mark[i], i + 1);
    }
    for (uint32_t i = 0; i < COUNT_OF_MARKS; i += 7)
        assert_ok(s.ops->wait(s.b, mark[i], TIME_NEVER));
    assert_ok(s.ops->wait(s.b, mark[3], 0)); /* long ago */
    assert_ok(s.ops->sync(s.b));
    s.ops->free(s.b, x);
    s.ops->host_free(s.b, host);
    subject_close(&s);
}

int main(int argc, char **argv)
{
    if (argc > 1) backend_name = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_product_is_that_of_the_oracle),
        cmocka_unit_test(a_row_of_a_product_does_not_depend_on_its_company),
        cmocka_unit_test(norm_and_silu_are_those_of_the_oracle),
        cmocka_unit_test(embed_and_gather_move_the_right_rows),
        cmocka_unit_test(attention_is_that_of_the_oracle),
        cmocka_unit_test(a_row_attends_to_its_own_tokens_only),
        cmocka_unit_test(kv_crosses_to_the_host_and_back_in_both_orders),
        cmocka_unit_test(whole_blocks_come_and_go_as_they_lie),
        cmocka_unit_test(kv_goes_through_a_slot_with_its_checksum),
        cmocka_unit_test(kv_that_was_written_is_there_for_the_next_step),
        cmocka_unit_test(tokens_drawn_on_the_device_are_the_samplers),
        cmocka_unit_test(memory_is_zero_bounded_and_given_back),
        cmocka_unit_test(reads_and_writes_are_done_when_they_return),
        cmocka_unit_test(marks_are_reached_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
