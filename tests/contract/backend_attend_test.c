/* The contract of rope_append and attend, and the promise of docs/numerics.md: what a token's row
 * becomes does not depend on its batch, its chunk, the threads, the path or where its blocks lie. */
#include "tests/contract/backend_testing.h"

enum {
    SEQUENCES = 4,
    TOKENS_MAX = 150,
    SEQUENCE_BLOCKS = (TOKENS_MAX + BLOCK_TOKENS - 1) / BLOCK_TOKENS,
    POOL_BLOCKS = SEQUENCES * SEQUENCE_BLOCKS + 5,
    LAYERS = 2,
    LAYER = 1, /* the one that is used */
};

struct shape {
    uint32_t heads, kv_heads, dim, window;
    enum dtype dtype;
    uint32_t sinks; /* not 0: the window is the sequences' own */
};

/* Some sequences with random rows, and what the oracle made of them, each alone and in one step. */
struct world {
    struct attend_shape shape;
    struct kv_geometry geometry;
    struct kv_window window;
    uint32_t stride, out_stride;
    uint32_t tokens[SEQUENCES];
    float *qkv[SEQUENCES], *turned[SEQUENCES], *want[SEQUENCES];
    char *blocks[SEQUENCES]; /* [SEQUENCE_BLOCKS] blocks in the order of the tokens */
    struct rope_table rope;
    float *cos, *sin;
};

/* Without sinks it is the batch's, for devices that know no other. */
static struct kv_window own_window(const struct world *w)
{
    return w->window.sinks ? w->window : (struct kv_window){0};
}
static uint32_t batch_window(const struct world *w)
{
    return w->window.sinks ? 0 : w->window.tokens;
}
static bool sees(const struct world *w, uint32_t position, uint32_t token)
{
    return token <= position &&
           (token < w->window.sinks || token >= kv_window_first(w->window, position));
}

static void world_run_alone(struct world *w, uint32_t i)
{
    struct subject s = subject_open("cpu-c", 1);
    uint32_t table[SEQUENCE_BLOCKS];
    for (uint32_t block = 0; block < SEQUENCE_BLOCKS; block++)
        table[block] = block;
    struct batch_sequence sequence = {.rows_count = w->tokens[i], .window = own_window(w)};
    struct batch batch = {.rows_count = w->tokens[i],
                          .sequence = &sequence,
                          .sequences_count = 1,
                          .table = table,
                          .window = batch_window(w)};
    struct kv_view kv = {w->blocks[i], w->geometry, SEQUENCE_BLOCKS};
    memcpy(w->turned[i], w->qkv[i], w->tokens[i] * w->stride * sizeof(float));
    uint32_t rows = w->tokens[i];
    s.ops->rope_append(s.b, w->turned[i], &batch, rows, &w->rope, &w->shape, &kv, LAYER);
    s.ops->attend(s.b, w->want[i], w->turned[i], &batch, rows, &w->shape, &kv, LAYER);
    subject_close(&s);
}

static void world_init(struct world *w, const struct shape *shape, struct random *r)
{
    *w = (struct world){
        .shape = {shape->heads, shape->kv_heads, shape->dim, 1 / sqrtf((float)shape->dim)},
        .window = {shape->window, shape->sinks}};
    w->geometry = (struct kv_geometry){LAYERS,       shape->kv_heads, shape->dim,
                                       BLOCK_TOKENS, KV_LAYOUT_CPU,   shape->dtype};
    w->stride = (shape->heads + 2 * shape->kv_heads) * shape->dim;
    w->out_stride = shape->heads * shape->dim;
    uint32_t half = shape->dim / 2;
    w->cos = mem_array(TOKENS_MAX * half, sizeof(float));
    w->sin = mem_array(TOKENS_MAX * half, sizeof(float));
    for (uint32_t i = 0; i < TOKENS_MAX * half; i++) {
        double angle = i / half * pow(10000, -2.0 * (i % half) / shape->dim);
        w->cos[i] = (float)cos(angle);
        w->sin[i] = (float)sin(angle);
    }
    w->rope = (struct rope_table){w->cos, w->sin, half};
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        w->tokens[i] = i == 0 ? TOKENS_MAX : 1 + random_below(r, 60);
        w->qkv[i] = random_floats(r, w->tokens[i] * w->stride);
        for (uint32_t at = 0; at < w->tokens[i] * w->stride; at++)
            w->qkv[i][at] *= 3;
        w->turned[i] = mem_array(w->tokens[i] * w->stride, sizeof(float));
        w->want[i] = mem_array(w->tokens[i] * w->out_stride, sizeof(float));
        w->blocks[i] = mem_aligned(SEQUENCE_BLOCKS * kv_block_bytes(&w->geometry), 64);
        memset(w->blocks[i], 0xff, SEQUENCE_BLOCKS * kv_block_bytes(&w->geometry));
        world_run_alone(w, i);
    }
}

static void world_fini(struct world *w)
{
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        mem_free(w->qkv[i]), mem_free(w->turned[i]);
        mem_free(w->want[i]), mem_free(w->blocks[i]);
    }
    mem_free(w->cos), mem_free(w->sin);
}

/* Element of K or V as the layout has it, per head: K [dim / 2][16][2], V [16 / 2][dim][2] in bf16 and
 * [16][dim] in fp32. */
static double kv_at(const struct world *w, uint32_t i, bool v, uint32_t head, uint32_t token,
                    uint32_t d)
{
    const struct kv_geometry *g = &w->geometry;
    uint32_t own = token % BLOCK_TOKENS;
    size_t at = !v                      ? ((size_t)d / 2 * BLOCK_TOKENS + own) * 2 + d % 2
                : g->dtype == DTYPE_F32 ? (size_t)own * g->head_dim + d
                                        : ((size_t)own / 2 * g->head_dim + d) * 2 + own % 2;
    at += (size_t)head * g->head_dim * BLOCK_TOKENS;
    const char *part = w->blocks[i] + token / BLOCK_TOKENS * kv_block_bytes(g) +
                       LAYER * kv_layer_bytes(g) + (v ? kv_part_bytes(g) : 0);
    if (g->dtype == DTYPE_F32) return ((const float *)(const void *)part)[at];
    return f32_from_bf16(((const uint16_t *)(const void *)part)[at]);
}

static double rounded(const struct world *w, double x)
{
    return w->geometry.dtype == DTYPE_F32 ? x : f32_from_bf16(bf16_from_f32((float)x));
}

/* q and k turned by their position's angles, v as it was; k and v rounded to the pool's dtype. */
static void assert_appended(const struct world *w, uint32_t i, uint32_t token)
{
    uint32_t dim = w->shape.head_dim, half = dim / 2, heads = w->shape.heads;
    const float *row = w->qkv[i] + token * w->stride, *turned = w->turned[i] + token * w->stride;
    for (uint32_t h = 0; h < heads + w->shape.kv_heads; h++)
        for (uint32_t d = 0; d < dim; d++) {
            double angle = token * pow(10000, -2.0 * (d % half) / dim);
            double x = row[h * dim + d], other = row[h * dim + (d + half) % dim];
            double want = x * cos(angle) + (d < half ? -other : other) * sin(angle);
            assert_true(fabs(turned[h * dim + d] - want) < 2e-6);
            if (h < heads) continue;
            assert_true(kv_at(w, i, false, h - heads, token, d) == rounded(w, turned[h * dim + d]));
            const float *v = row + (heads + w->shape.kv_heads) * dim;
            assert_true(kv_at(w, i, true, h - heads, token, d) ==
                        rounded(w, v[(h - heads) * dim + d]));
        }
}

static void assert_attended(const struct world *w, uint32_t i, uint32_t token, uint32_t head)
{
    uint32_t dim = w->shape.head_dim, kv_head = head / (w->shape.heads / w->shape.kv_heads);
    const float *q = w->turned[i] + token * w->stride + head * dim;
    double score[TOKENS_MAX], largest = -INFINITY, sum = 0;
    for (uint32_t t = 0; t <= token; t++) {
        score[t] = 0;
        if (!sees(w, token, t)) continue;
        for (uint32_t d = 0; d < dim; d++)
            score[t] += rounded(w, q[d]) * kv_at(w, i, false, kv_head, t, d);
        score[t] /= sqrt(dim);
        if (score[t] > largest) largest = score[t];
    }
    for (uint32_t t = 0; t <= token; t++)
        sum += score[t] = sees(w, token, t) ? exp(score[t] - largest) : 0;
    for (uint32_t d = 0; d < dim; d++) {
        double want = 0, weight = 0, got = w->want[i][token * w->out_stride + head * dim + d];
        for (uint32_t t = 0; t <= token; t++) {
            double v = kv_at(w, i, true, kv_head, t, d);
            want += score[t] / sum * v;
            weight += score[t] / sum * fabs(v);
        }
        double rounding =
            w->geometry.dtype == DTYPE_F32 ? 0 : weight / 256; /* of the probabilities */
        if (!(fabs(got - want) < 2e-5 + rounding))
            fail_msg("token %u head %u dim %u: %g, wanted %g", token, head, d, got, want);
    }
}

static const struct shape shapes[] = {
    {4, 2, 32, 0, DTYPE_BF16},     {4, 2, 32, 0, DTYPE_F32},       {2, 2, 64, 0, DTYPE_BF16},
    {6, 1, 10, 0, DTYPE_F32},      {20, 1, 6, 0, DTYPE_BF16},      {8, 1, 34, 20, DTYPE_BF16},
    {3, 3, 2, 1, DTYPE_F32},       {2, 1, 80, 16, DTYPE_F32},      {1, 1, 256, 33, DTYPE_BF16},
    {8, 2, 34, 71, DTYPE_BF16},    {12, 6, 16, 0, DTYPE_BF16},     {8, 2, 34, 40, DTYPE_BF16, 16},
    {4, 2, 32, 20, DTYPE_F32, 32}, {10, 1, 16, 1, DTYPE_BF16, 80}, {2, 2, 64, 70, DTYPE_BF16, 48},
    {6, 3, 10, 33, DTYPE_F32, 64},
};

static void rope_and_attention_are_right(void **state)
{
    (void)state;
    struct random r = {.seed = 20};
    for (size_t i = 0; i < COUNT(shapes); i++) {
        struct world w;
        world_init(&w, &shapes[i], &r);
        for (uint32_t n = 0; n < SEQUENCES; n++)
            for (uint32_t token = 0; token < w.tokens[n]; token += 1 + random_below(&r, 7)) {
                assert_appended(&w, n, token);
                assert_attended(&w, n, token, random_below(&r, w.shape.heads));
            }
        world_fini(&w);
    }
}

/* The same sequences once more, as a busy node would run them. */
struct replay {
    struct world *w;
    struct subject s;
    struct kv_view kv;
    uint32_t table[POOL_BLOCKS]; /* sequence i from i x SEQUENCE_BLOCKS on, blocks shuffled */
    uint32_t done[SEQUENCES];
    float *rows, *out; /* of one step */
    struct batch_sequence sequence[SEQUENCES];
    uint32_t of[SEQUENCES]; /* which one sequence[j] is */
};

static void replay_init(struct replay *p, struct world *w, const char *path, uint32_t threads,
                        struct random *r)
{
    size_t rows_max = SEQUENCES * TOKENS_MAX;
    *p = (struct replay){.w = w, .s = subject_open(path, threads)};
    size_t bytes = POOL_BLOCKS * kv_block_bytes(&w->geometry);
    p->kv = (struct kv_view){p->s.ops->alloc(p->s.b, bytes), w->geometry, POOL_BLOCKS};
    memset(p->kv.base, 0xff, bytes); /* NaN wherever nothing was written */
    for (uint32_t i = 0; i < POOL_BLOCKS; i++) {
        uint32_t at = random_below(r, i + 1);
        p->table[i] = p->table[at];
        p->table[at] = i;
    }
    p->rows = mem_array(rows_max * w->stride, sizeof(float));
    p->out = mem_array(rows_max * w->out_stride, sizeof(float));
}

/* A random chunk of some sequences; false when all are done. */
static bool replay_plan(struct replay *p, struct batch *batch, uint32_t chunk_max, struct random *r)
{
    struct world *w = p->w;
    uint32_t start = random_below(r, SEQUENCES);
    *batch = (struct batch){.sequence = p->sequence, .table = p->table, .window = batch_window(w)};
    bool left = false;
    for (uint32_t n = 0; n < SEQUENCES; n++) {
        uint32_t i = (start + n) % SEQUENCES, due = w->tokens[i] - p->done[i];
        left |= due > 0;
        if (due == 0 || random_below(r, 4) == 0) continue;
        uint32_t rows = 1 + random_below(r, chunk_max);
        if (rows > due) rows = due;
        uint32_t j = batch->sequences_count++;
        p->of[j] = i;
        p->sequence[j] = (struct batch_sequence){batch->rows_count,   rows, p->done[i],
                                                 i * SEQUENCE_BLOCKS, 0,    own_window(w)};
        memcpy(p->rows + batch->rows_count * w->stride, w->qkv[i] + p->done[i] * w->stride,
               rows * w->stride * sizeof(float));
        batch->rows_count += rows;
        p->done[i] += rows;
    }
    return left;
}

static void *replay_block(const struct replay *p, uint32_t i, uint32_t block)
{
    return (char *)p->kv.base +
           p->table[i * SEQUENCE_BLOCKS + block] * kv_block_bytes(&p->kv.geometry);
}

/* Blocks that no later token attends to: they may have been freed and hold anything. */
static bool replay_gone(const struct replay *p, uint32_t i, uint32_t block)
{
    struct kv_window w = p->w->window;
    return block >= w.sinks / BLOCK_TOKENS && block < kv_window_gone(w, p->done[i]) / BLOCK_TOKENS;
}

static void replay_run(struct replay *p, uint32_t chunk_max, struct random *r)
{
    struct world *w = p->w;
    struct batch batch;
    while (replay_plan(p, &batch, chunk_max, r)) {
        const struct backend_ops *ops = p->s.ops;
        ops->rope_append(p->s.b, p->rows, &batch, batch.rows_count, &w->rope, &w->shape, &p->kv,
                         LAYER);
        ops->attend(p->s.b, p->out, p->rows, &batch, batch.rows_count, &w->shape, &p->kv, LAYER);
        for (uint32_t j = 0; j < batch.sequences_count; j++) {
            const struct batch_sequence *s = &p->sequence[j];
            uint32_t width = w->shape.heads * w->shape.head_dim;
            for (uint32_t row = 0; row < s->rows_count; row++)
                assert_memory_equal(p->out + (s->row_first + row) * w->out_stride,
                                    w->want[p->of[j]] + (s->position + row) * w->out_stride,
                                    width * sizeof(float));
            for (uint32_t block = 0; block < SEQUENCE_BLOCKS; block++)
                if (replay_gone(p, p->of[j], block))
                    memset(replay_block(p, p->of[j], block), 0xff, kv_block_bytes(&w->geometry));
        }
    }
}

static void replay_check_pool(const struct replay *p)
{
    for (uint32_t i = 0; i < SEQUENCES; i++)
        for (uint32_t block = 0; block < SEQUENCE_BLOCKS; block++) {
            if (replay_gone(p, i, block)) continue;
            assert_memory_equal(replay_block(p, i, block),
                                p->w->blocks[i] + block * kv_block_bytes(&p->kv.geometry),
                                kv_block_bytes(&p->kv.geometry));
        }
}

static void replay_fini(struct replay *p)
{
    p->s.ops->free(p->s.b, p->kv.base);
    mem_free(p->rows), mem_free(p->out);
    subject_close(&p->s);
}

static void a_row_depends_on_its_own_tokens_only(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {1, 7, 16, TOKENS_MAX};
    struct random r = {.seed = 21};
    for (size_t i = 0; i < COUNT(shapes); i++) {
        struct world w;
        world_init(&w, &shapes[i], &r);
        for (const char *const *name = backend_names(); *name; name++)
            for (size_t chunk = 0; chunk < COUNT(chunks); chunk++) {
                struct replay p;
                replay_init(&p, &w, *name, 1 + (uint32_t)(chunk + i) % 3, &r);
                replay_run(&p, chunks[chunk], &r);
                replay_check_pool(&p);
                replay_fini(&p);
            }
        world_fini(&w);
    }
}

/* A2 and A3: a poisoned row stays in its own sequence and never reaches earlier tokens. */
static void a_nan_reaches_only_the_rows_that_attend_to_it(void **state)
{
    (void)state;
    enum { TOKENS = 40, SICK = 21 };
    struct random r = {.seed = 22};
    for (size_t i = 0; i < COUNT(shapes); i++) {
        struct world w;
        world_init(&w, &shapes[i], &r);
        uint32_t width = w.shape.heads * w.shape.head_dim, table[SEQUENCE_BLOCKS];
        for (uint32_t block = 0; block < SEQUENCE_BLOCKS; block++)
            table[block] = block;
        for (const char *const *name = backend_names(); *name; name++) {
            struct subject s = subject_open(*name, 2);
            float *rows = mem_array(TOKENS * w.stride, sizeof(float));
            float *out = mem_array(TOKENS * w.out_stride, sizeof(float));
            char *pool = mem_aligned(SEQUENCE_BLOCKS * kv_block_bytes(&w.geometry), 64);
            struct batch_sequence sequence = {.rows_count = TOKENS, .window = own_window(&w)};
            struct batch batch = {.rows_count = TOKENS,
                                  .sequence = &sequence,
                                  .sequences_count = 1,
                                  .table = table,
                                  .window = batch_window(&w)};
            struct kv_view kv = {pool, w.geometry, SEQUENCE_BLOCKS};
            memcpy(rows, w.qkv[0], TOKENS * w.stride * sizeof(float));
            for (uint32_t d = 0; d < w.stride; d++)
                rows[SICK * w.stride + d] = NAN;
            s.ops->rope_append(s.b, rows, &batch, TOKENS, &w.rope, &w.shape, &kv, LAYER);
            s.ops->attend(s.b, out, rows, &batch, TOKENS, &w.shape, &kv, LAYER);
            for (uint32_t row = 0; row < TOKENS; row++) {
                const float *got = out + row * w.out_stride;
                bool sick = sees(&w, row, SICK);
                for (uint32_t d = 0; sick && d < width; d++)
                    assert_true(isnan(got[d]));
                if (!sick)
                    assert_memory_equal(got, w.want[0] + row * w.out_stride, width * sizeof(float));
            }
            mem_free(rows), mem_free(out), mem_free(pool);
            subject_close(&s);
        }
        world_fini(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rope_and_attention_are_right),
        cmocka_unit_test(a_row_depends_on_its_own_tokens_only),
        cmocka_unit_test(a_nan_reaches_only_the_rows_that_attend_to_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
