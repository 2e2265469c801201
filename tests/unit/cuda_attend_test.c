/* attend_decode, attend_prefill: paged attention against a plain computation in double, and against
 * themselves bit by bit. Every run places its blocks anew and has NaN wherever none of its rows may
 * look; blocks without such tokens are not even in the table. Runs on the emulator under several
 * orders of its threads, or on a device. */
#include "tests/unit/cuda_testing.h"

enum { LAYERS = 2, LAYER = 1, SEQUENCES = 4, RUN_MAX = 8, ROWS_MAX = 400, BLOCKS_MAX = 400 };

struct shape {
    uint32_t heads, kv_heads, head_dim, window;
    enum dtype dtype;
    uint32_t sinks; /* not 0: rows have windows of their own */
};

/* Sequences of random tokens, rounded as the pool has them. */
struct world {
    struct shape shape;
    uint32_t tokens[SEQUENCES];
    float *q[SEQUENCES];                /* [tokens][heads][head_dim] */
    float *k[SEQUENCES], *v[SEQUENCES]; /* [tokens][kv_heads][head_dim] */
    struct random random;
};

/* Rows of sequence `sequence` from `position` on. */
struct rows {
    uint32_t sequence, position, count;
};
/* One step: rows of decode have count 1; those of tiles are cut into tiles at random. */
struct run {
    struct rows decode[RUN_MAX], tiles[RUN_MAX];
    uint32_t decode_count, tiles_count;
    bool deterministic;
    uint32_t recorded_more; /* decode rows that the launch is recorded for beyond them */
    unsigned char *decode_out[RUN_MAX], *tiles_out[RUN_MAX]; /* into `out`: [count][row bytes] */
    unsigned char *out;
};

static float *random_values(struct world *w, size_t count, float size)
{
    float *f = random_floats(&w->random, count);
    for (size_t i = 0; i < count; i++)
        f[i] =
            w->shape.dtype == DTYPE_F32 ? f[i] * size : f32_from_bf16(bf16_from_f32(f[i] * size));
    return f;
}

static void world_init(struct world *w, const struct shape *shape, const uint32_t *tokens,
                       uint64_t seed)
{
    *w = (struct world){.shape = *shape, .random = {.seed = seed}};
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        size_t values = (size_t)tokens[i] * shape->head_dim;
        w->tokens[i] = tokens[i];
        w->q[i] = random_values(w, values * shape->heads, 3);
        w->k[i] = random_values(w, values * shape->kv_heads, 3);
        w->v[i] = random_values(w, values * shape->kv_heads, 1);
    }
}
static void world_fini(struct world *w)
{
    for (uint32_t i = 0; i < SEQUENCES; i++)
        mem_free(w->q[i]), mem_free(w->k[i]), mem_free(w->v[i]);
}

static struct kv_window window_of(const struct world *w)
{
    return (struct kv_window){w->shape.window, w->shape.sinks};
}
static uint32_t first_token(const struct world *w, uint32_t position)
{
    return kv_window_first(window_of(w), position);
}
static bool sees(const struct world *w, uint32_t position, uint32_t token)
{
    return token <= position && (token < w->shape.sinks || token >= first_token(w, position));
}
static size_t row_bytes(const struct world *w)
{
    return (size_t)w->shape.heads * w->shape.head_dim * dtype_bytes(w->shape.dtype);
}
static void store(enum dtype dtype, void *to, size_t at, float f)
{
    if (dtype == DTYPE_F32)
        ((float *)to)[at] = f;
    else
        ((uint16_t *)to)[at] = bf16_from_f32(f);
}
static float load(enum dtype dtype, const void *from, size_t at)
{
    return dtype == DTYPE_F32 ? ((const float *)from)[at]
                              : f32_from_bf16(((const uint16_t *)from)[at]);
}

/* --- the device's side of one run --- */

/* Device memory of a run. */
enum { DEVICE_MAX = 16 };
struct device {
    void *memory[DEVICE_MAX];
    uint32_t count;
};
static void *device_new(struct device *d, const void *host, size_t bytes)
{
    assert_true(d->count < DEVICE_MAX);
    void *p = host && bytes ? device_bytes(host, bytes) : device_poison(bytes ? bytes : 1);
    d->memory[d->count++] = p;
    return p;
}
static void device_fini(struct device *d)
{
    for (uint32_t i = 0; i < d->count; i++)
        device_free(d->memory[i]);
}

/* The description of a step, on the host. */
struct step {
    uint32_t live, token[ROWS_MAX], position[ROWS_MAX], table_first[ROWS_MAX];
    struct kv_window row_window[ROWS_MAX];
    struct rows of[ROWS_MAX]; /* whose row it is */
    struct cuda_tile tile[ROWS_MAX];
    uint32_t tiles_count, decode_live, decode_row[RUN_MAX], split_first[RUN_MAX + 1];
    uint32_t table[BLOCKS_MAX], table_count, sequence_table[SEQUENCES];
    uint32_t seen_first[SEQUENCES], seen_end[SEQUENCES]; /* tokens that rows attend to */
};

static void step_rows(struct step *s, const struct world *w, struct rows rows)
{
    uint32_t i = rows.sequence, first = first_token(w, rows.position);
    if (first < s->seen_first[i]) s->seen_first[i] = first;
    if (rows.position + rows.count > s->seen_end[i]) s->seen_end[i] = rows.position + rows.count;
    for (uint32_t n = 0; n < rows.count; n++) {
        uint32_t row = s->live++;
        assert_true(row < ROWS_MAX);
        s->of[row] = (struct rows){i, rows.position + n, 1};
        s->position[row] = rows.position + n;
        s->table_first[row] = s->sequence_table[i];
        s->row_window[row] = window_of(w);
    }
}
static void step_decode(struct step *s, const struct world *w, struct rows rows)
{
    uint32_t index = s->decode_live++, first = first_token(w, rows.position);
    s->decode_row[index] = s->live;
    uint32_t sinks = w->shape.sinks, end = rows.position + 1;
    if (first < sinks) first = sinks;
    s->split_first[index + 1] = s->split_first[index];
    if (first < end) s->split_first[index + 1] += blocks_between(CUDA_SPLIT_TOKENS, first, end);
    if (sinks > 0)
        s->split_first[index + 1] +=
            blocks_between(CUDA_SPLIT_TOKENS, 0, end < sinks ? end : sinks);
    step_rows(s, w, rows);
}
static void step_tiles(struct step *s, struct world *w, struct rows rows)
{
    for (uint32_t done = 0, count; done < rows.count; done += count) {
        count = rows.count - done < CUDA_TILE_ROWS ? rows.count - done : CUDA_TILE_ROWS;
        if (random_below(&w->random, 3) == 0) count = 1 + random_below(&w->random, count);
        s->tile[s->tiles_count++] =
            (struct cuda_tile){s->live + done, count, rows.position + done,
                               s->sequence_table[rows.sequence], window_of(w)};
    }
    step_rows(s, w, rows);
}

static void step_init(struct step *s, struct world *w, const struct run *run)
{
    *s = (struct step){0};
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        s->seen_first[i] = UINT32_MAX;
        s->sequence_table[i] = s->table_count;
        s->table_count += blocks_for_tokens(w->tokens[i]);
    }
    assert_true(s->table_count <= BLOCKS_MAX);
    for (uint32_t i = 0; i < RUN_MAX; i++) {
        if (i < run->decode_count) step_decode(s, w, run->decode[i]);
        if (i < run->tiles_count) step_tiles(s, w, run->tiles[i]);
    }
}

/* A pool of NaN with the tokens that are attended to, in blocks in random places. */
static void *pool_new(struct step *s, struct world *w, const struct kv_geometry *g)
{
    uint32_t place[BLOCKS_MAX];
    for (uint32_t i = 0; i < s->table_count; i++) {
        uint32_t at = random_below(&w->random, i + 1);
        place[i] = place[at];
        place[at] = i;
        s->table[i] = UINT32_MAX;
    }
    char *pool = mem_array(s->table_count, kv_block_bytes(g));
    memset(pool, 0xff, s->table_count * kv_block_bytes(g));
    for (uint32_t i = 0; i < SEQUENCES; i++)
        for (uint32_t t = 0; t < s->seen_end[i]; t++) {
            if (t < s->seen_first[i] && t >= w->shape.sinks) continue;
            uint32_t at = s->sequence_table[i] + t / BLOCK_TOKENS, block = place[at];
            char *k = pool + block * kv_block_bytes(g) + LAYER * kv_layer_bytes(g);
            s->table[at] = block;
            for (uint32_t h = 0; h < g->kv_heads; h++)
                for (uint32_t d = 0; d < g->head_dim; d++) {
                    size_t from = ((size_t)t * g->kv_heads + h) * g->head_dim + d;
                    size_t to = ((size_t)h * BLOCK_TOKENS + t % BLOCK_TOKENS) * g->head_dim + d;
                    store(g->dtype, k, to, w->k[i][from]);
                    store(g->dtype, k + kv_part_bytes(g), to, w->v[i][from]);
                }
        }
    return pool;
}

static uint32_t q_stride(const struct world *w)
{
    uint32_t elements = (w->shape.heads + 2 * w->shape.kv_heads) * w->shape.head_dim;
    return (elements + 7) / 8 * 8;
}
static void *queries_new(const struct step *s, const struct world *w)
{
    enum dtype dtype = w->shape.dtype;
    size_t bytes = (size_t)s->live * q_stride(w) * dtype_bytes(dtype);
    uint32_t width = w->shape.heads * w->shape.head_dim;
    char *q = mem_array(bytes, 1);
    memset(q, 0xff, bytes);
    for (uint32_t row = 0; row < s->live; row++)
        for (uint32_t i = 0; i < width; i++)
            store(dtype, q, (size_t)row * q_stride(w) + i,
                  w->q[s->of[row].sequence][(size_t)s->of[row].position * width + i]);
    return q;
}

/* Results go to the rows of the run; one row behind the last must stay untouched. */
static void run_collect(struct run *run, const struct step *s, const struct world *w,
                        const unsigned char *out)
{
    size_t bytes = row_bytes(w);
    uint32_t row = 0;
    run->out = mem_array(s->live + 1, bytes);
    memcpy(run->out, out, (s->live + 1) * bytes);
    for (uint32_t i = 0; i < RUN_MAX; i++) {
        if (i < run->decode_count) run->decode_out[i] = run->out + bytes * row++;
        if (i >= run->tiles_count) continue;
        run->tiles_out[i] = run->out + bytes * row;
        row += run->tiles[i].count;
    }
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(run->out[s->live * bytes + i], 0xa5);
}

/* Runs it; the results stay until run_fini. */
static void run_do(struct run *run, struct world *w)
{
    static struct step s;
    struct device d = {0};
    const struct shape *shape = &w->shape;
    struct kv_geometry g = {LAYERS,       shape->kv_heads, shape->head_dim,
                            BLOCK_TOKENS, KV_LAYOUT_CUDA,  shape->dtype};
    struct cuda_attention a = {shape->heads, shape->kv_heads, shape->head_dim,
                               1 / sqrtf((float)shape->head_dim), shape->dtype};
    step_init(&s, w, run);
    void *pool = pool_new(&s, w, &g), *q = queries_new(&s, w);
    size_t out_bytes = (s.live + 1) * row_bytes(w);
    unsigned char *out = mem_array(out_bytes, 1);
    memset(out, 0xa5, out_bytes);
    struct cuda_batch batch = {
        .live = device_new(&d, &s.live, sizeof s.live),
        .position = device_new(&d, s.position, s.live * sizeof *s.position),
        .table_first = device_new(&d, s.table_first, s.live * sizeof *s.table_first),
        .row_window = device_new(&d, s.row_window, s.live * sizeof *s.row_window),
        .table = device_new(&d, s.table, s.table_count * sizeof *s.table),
        .tile = device_new(&d, s.tile, s.tiles_count * sizeof *s.tile),
        .decode_live = device_new(&d, &s.decode_live, sizeof s.decode_live),
        .decode_row = device_new(&d, s.decode_row, s.decode_live * sizeof *s.decode_row),
        .split_first = device_new(&d, s.split_first, (s.decode_live + 1) * sizeof *s.split_first),
        .window = shape->sinks ? 0 : shape->window,
    };
    struct cuda_kv kv = {device_new(&d, pool, s.table_count * kv_block_bytes(&g)), g, LAYER};
    void *device_q = device_new(&d, q, (size_t)s.live * q_stride(w) * dtype_bytes(shape->dtype));
    void *device_out = device_new(&d, out, out_bytes);
    void *scratch = device_new(&d, NULL, cuda_attend_scratch(&a, s.split_first[s.decode_live]));
    if (s.tiles_count)
        assert_cuda(cuda_attend_prefill(stream, device_out, device_q, q_stride(w), &batch, &a, &kv,
                                        s.tiles_count, run->deterministic, shape->sinks > 0));
    if (s.decode_live + run->recorded_more)
        assert_cuda(cuda_attend_decode(stream, device_out, device_q, q_stride(w), &batch, &a, &kv,
                                       s.decode_live + run->recorded_more, scratch));
    device_read(out, device_out, out_bytes);
    run_collect(run, &s, w, out);
    device_fini(&d);
    mem_free(pool), mem_free(q), mem_free(out);
}
static void run_fini(struct run *run)
{
    mem_free(run->out);
}

/* --- the plain computation --- */

static void assert_attended(const struct world *w, uint32_t i, uint32_t position, uint32_t head,
                            const unsigned char *row)
{
    static double p[4096];
    const struct shape *shape = &w->shape;
    uint32_t dim = shape->head_dim, kv_head = head / (shape->heads / shape->kv_heads);
    const float *q = w->q[i] + ((size_t)position * shape->heads + head) * dim;
    double largest = -INFINITY, sum = 0, near = shape->dtype == DTYPE_F32 ? 1e-5 : 1e-2;
    for (uint32_t t = 0; t <= position; t++) {
        if (!sees(w, position, t)) continue;
        const float *k = w->k[i] + ((size_t)t * shape->kv_heads + kv_head) * dim;
        p[t] = 0;
        for (uint32_t d = 0; d < dim; d++)
            p[t] += (double)q[d] * k[d] / sqrt(dim);
        largest = fmax(largest, p[t]);
    }
    for (uint32_t t = 0; t <= position; t++)
        sum += p[t] = sees(w, position, t) ? exp(p[t] - largest) : 0;
    for (uint32_t d = 0; d < dim; d++) {
        double want = 0, got = load(shape->dtype, row, head * dim + d);
        for (uint32_t t = 0; t <= position; t++)
            want += p[t] / sum * w->v[i][((size_t)t * shape->kv_heads + kv_head) * dim + d];
        if (!(fabs(got - want) < near))
            fail_msg("%ux%u heads of %u, window %u: sequence %u position %u head %u dim %u: %g, "
                     "wanted %g",
                     shape->heads, shape->kv_heads, dim, shape->window, i, position, head, d, got,
                     want);
    }
}

/* A few rows and heads of all that the run has. */
static void assert_right(struct world *w, const struct run *run)
{
    for (uint32_t i = 0; i < run->decode_count; i++)
        for (uint32_t n = 0; n < 2; n++)
            assert_attended(w, run->decode[i].sequence, run->decode[i].position,
                            random_below(&w->random, w->shape.heads), run->decode_out[i]);
    for (uint32_t i = 0; i < run->tiles_count; i++)
        for (uint32_t n = 0; n < run->tiles[i].count; n += 1 + random_below(&w->random, 9))
            assert_attended(w, run->tiles[i].sequence, run->tiles[i].position + n,
                            random_below(&w->random, w->shape.heads),
                            run->tiles_out[i] + n * row_bytes(w));
}

/* --- the promises --- */

static const struct shape shapes[] = {
    {2, 2, 64, 0, DTYPE_BF16},        {4, 2, 64, 100, DTYPE_BF16},
    {3, 1, 128, 0, DTYPE_BF16},       {8, 2, 128, 33, DTYPE_BF16},
    {7, 1, 80, 0, DTYPE_BF16},        {8, 1, 96, 300, DTYPE_BF16},
    {2, 1, 256, 0, DTYPE_BF16},       {6, 3, 16, 1, DTYPE_BF16},
    {20, 1, 10, 0, DTYPE_BF16},       {1, 1, 34, 16, DTYPE_BF16},
    {4, 1, 160, 70, DTYPE_BF16},      {36, 2, 24, 0, DTYPE_BF16},
    {4, 2, 32, 0, DTYPE_F32},         {3, 1, 10, 40, DTYPE_F32},
    {1, 1, 256, 0, DTYPE_F32},        {4, 2, 64, 100, DTYPE_BF16, 16},
    {8, 2, 128, 33, DTYPE_BF16, 272}, {3, 1, 10, 40, DTYPE_F32, 48},
    {2, 1, 256, 1, DTYPE_BF16, 64},
};

/* Each with another order of the emulator's threads. */
static void each_shape(void (*test)(const struct shape *shape, uint64_t seed))
{
    for (uint32_t i = 0; i < COUNT(shapes); i++) {
        order_take(i);
        test(&shapes[i], i);
    }
}

static void check_short(const struct shape *shape, uint64_t seed)
{
    static const uint32_t tokens[SEQUENCES] = {1, 16, 65, 200};
    struct world w;
    world_init(&w, shape, tokens, 100 + seed);
    struct run run = {.decode = {{0, 0, 1}, {1, 15, 1}, {2, 64, 1}, {3, 63, 1}},
                      .tiles = {{3, 0, 70}, {2, 3, 5}, {3, 95, 40}, {3, 190, 1}},
                      .decode_count = 4,
                      .tiles_count = 4,
                      .recorded_more = 3};
    run_do(&run, &w);
    assert_right(&w, &run);
    run_fini(&run);
    world_fini(&w);
}
static void short_contexts_are_right(void **state)
{
    (void)state;
    each_shape(check_short);
}

static bool little; /* shared memory: 99 KiB a block, as compute capability 8.6 and 8.9 have */

/* These fold more than 128 dimensions in shared memory. */
static bool too_wide(const struct shape *shape, bool deterministic)
{
    return little && shape->dtype == DTYPE_BF16 && shape->head_dim > 128 &&
           (deterministic || shape->sinks > 0);
}

static void check_long(const struct shape *shape, uint64_t seed)
{
    if (too_wide(shape, seed % 2)) return;
    uint32_t tokens[SEQUENCES] = {256, 257, 520, 1290};
    struct world w;
    world_init(&w, shape, tokens, 200 + seed);
    uint32_t at = random_below(&w.random, 1000);
    struct run run = {
        .decode = {{0, 255, 1}, {1, 256, 1}, {3, 1289, 1}, {2, 511, 1}, {3, 1100 - at, 1}},
        .tiles = {{2, 500, 20}, {3, at, 9}},
        .decode_count = 5,
        .tiles_count = 2,
        .deterministic = seed % 2};
    run_do(&run, &w);
    assert_right(&w, &run);
    run_fini(&run);
    world_fini(&w);
}
static void contexts_of_several_splits_are_right(void **state)
{
    (void)state;
    each_shape(check_long);
}

static void check_alone(const struct shape *shape, uint64_t seed)
{
    static const uint32_t tokens[SEQUENCES] = {40, 300, 530, 90};
    struct world w;
    world_init(&w, shape, tokens, 300 + seed);
    struct run all = {.decode = {{0, 39, 1}, {1, 299, 1}, {2, 520, 1}}, .decode_count = 3};
    all.tiles[0] = (struct rows){3, 10, 75};
    all.tiles[1] = (struct rows){2, 470, 9};
    all.tiles_count = 2;
    run_do(&all, &w);
    for (uint32_t i = 0; i < all.decode_count; i++) {
        struct run one = {.decode = {all.decode[i]}, .decode_count = 1};
        run_do(&one, &w);
        assert_memory_equal(one.decode_out[0], all.decode_out[i], row_bytes(&w));
        run_fini(&one);
    }
    run_fini(&all);
    world_fini(&w);
}
static void a_decode_row_does_not_depend_on_the_others(void **state)
{
    (void)state;
    each_shape(check_alone);
}

/* Makes parts of `part` tokens have the same scores and values that cancel over three parts: what is
 * left at the end of the third is rounding, in which any other order of sums shows. */
static void cancel(struct world *w, uint32_t i, uint32_t part)
{
    static const float factor[] = {1, -0.75f, -0.25f};
    uint32_t values = w->shape.kv_heads * w->shape.head_dim;
    for (uint32_t t = 0; t < w->tokens[i]; t++)
        for (uint32_t at = 0; at < values; at++) {
            float *v = &w->v[i][t * values + at], *k = &w->k[i][t * values + at];
            float few_bits = floorf(w->v[i][t % part * values + at] * 8) / 8;
            *k = w->k[i][t % part * values + at];
            *v = t < part ? few_bits : few_bits * factor[t / part % COUNT(factor)];
        }
}

static void check_folded(const struct shape *shape, uint64_t seed)
{
    if (too_wide(shape, true)) return;
    static const uint32_t tokens[SEQUENCES] = {3 * CUDA_SPLIT_TOKENS, 192, 600, 1};
    struct world w;
    world_init(&w, shape, tokens, 400 + seed);
    cancel(&w, 0, CUDA_SPLIT_TOKENS);
    cancel(&w, 1, 64);
    struct run chunks = {.tiles = {{0, 764, 4}, {1, 132, 60}, {2, 508, 8}, {2, 590, 9}},
                         .tiles_count = 4,
                         .deterministic = true};
    run_do(&chunks, &w);
    for (uint32_t i = 0; i < chunks.tiles_count; i++) {
        const struct rows *rows = &chunks.tiles[i];
        for (uint32_t n = rows->count; n-- > 0; n -= n < 13 ? n : 13) {
            struct run one = {.decode = {{rows->sequence, rows->position + n, 1}},
                              .decode_count = 1};
            run_do(&one, &w);
            assert_memory_equal(one.decode_out[0], chunks.tiles_out[i] + n * row_bytes(&w),
                                row_bytes(&w));
            run_fini(&one);
        }
    }
    run_fini(&chunks);
    world_fini(&w);
}
static void deterministic_tiles_have_the_bits_of_decode(void **state)
{
    (void)state;
    each_shape(check_folded);
}

/* NaN in a token's K and V, or in V alone: V must not reach rows before it as 0 x NaN. */
static void check_sick(const struct shape *shape, uint64_t seed)
{
    enum { SICK = 21, ROWS = 70 };
    static const uint32_t tokens[SEQUENCES] = {ROWS, 1, 1, 1};
    struct world w;
    world_init(&w, shape, tokens, 500 + seed);
    struct run healthy = {.tiles = {{0, 0, ROWS}}, .tiles_count = 1, .deterministic = seed % 2};
    struct run sick = healthy;
    run_do(&healthy, &w);
    uint32_t values = shape->kv_heads * shape->head_dim;
    for (uint32_t i = SICK * values; i < (SICK + 1) * values; i++) {
        w.v[0][i] = NAN;
        if (seed % 3) w.k[0][i] = NAN;
    }
    run_do(&sick, &w);
    uint32_t width = shape->heads * shape->head_dim;
    for (uint32_t row = 0; row < ROWS; row++) {
        const unsigned char *got = sick.tiles_out[0] + row * row_bytes(&w);
        bool attends = sees(&w, row, SICK);
        for (uint32_t d = 0; attends && d < width; d++)
            assert_true(isnan(load(shape->dtype, got, d)));
        if (!attends)
            assert_memory_equal(got, healthy.tiles_out[0] + row * row_bytes(&w), row_bytes(&w));
    }
    run_fini(&healthy), run_fini(&sick);
    world_fini(&w);
}
static void a_nan_reaches_only_the_rows_that_attend_to_it(void **state)
{
    (void)state;
    each_shape(check_sick);
}

static void nothing_to_do_is_done(void **state)
{
    (void)state;
    static const uint32_t tokens[SEQUENCES] = {1, 1, 1, 1};
    struct world w;
    world_init(&w, &shapes[0], tokens, 600);
    struct run none = {.recorded_more = 4};
    run_do(&none, &w);
    run_fini(&none);
    world_fini(&w);
}

static void the_order_of_threads_never_shows(void **state)
{
    (void)state;
    static const uint32_t tokens[SEQUENCES] = {300, 70, 20, 1};
    for (uint32_t shape = 0; shape < 4; shape++) {
        struct world w;
        unsigned char *first = NULL;
        world_init(&w, &shapes[shape], tokens, 700);
        for (uint32_t i = 0; i < 2 * ORDERS; i++) {
            struct run run = {.decode = {{0, 299, 1}, {1, 69, 1}},
                              .tiles = {{2, 0, 20}},
                              .decode_count = 2,
                              .tiles_count = 1};
            order_take(i);
            run_do(&run, &w);
            if (!first) first = run.out;
            assert_memory_equal(run.out, first, 22 * row_bytes(&w));
            if (run.out != first) run_fini(&run);
        }
        mem_free(first);
        world_fini(&w);
    }
}

#ifdef TANDEM_EMULATED
/* As on compute capability 8.9: decode has fewer tiles under way; what does not fit is refused. */
static void little_shared_memory_changes_nothing(void **state)
{
    struct cuda_attention a = {1, 1, 256, 0.125f, DTYPE_BF16};
    struct cuda_kv kv = {NULL, {1, 1, 256, BLOCK_TOKENS, KV_LAYOUT_CUDA, a.dtype}, 0};
    struct cuda_batch batch = {0};
    fake_knobs()->processor_shared_bytes = 100 << 10;
    little = true;
    contexts_of_several_splits_are_right(state);
    deterministic_tiles_have_the_bits_of_decode(state);
    little = false;
    assert_int_equal(cuda_attend_prefill(stream, NULL, NULL, 768, &batch, &a, &kv, 1, true, false),
                     cudaErrorInvalidValue);
    cudaGetLastError();
}

static void what_the_device_refuses_is_returned(void **state)
{
    (void)state;
    static const struct {
        const char *call;
        uint32_t at;
        enum dtype dtype;
    } cases[] = {
        {"cudaGetDevice", 1, DTYPE_BF16},          {"cudaDeviceGetAttribute", 1, DTYPE_BF16},
        {"cudaDeviceGetAttribute", 2, DTYPE_BF16}, {"cudaLaunchKernel", 1, DTYPE_BF16},
        {"cudaLaunchKernel", 2, DTYPE_BF16},       {"cudaLaunchKernel", 1, DTYPE_F32},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        for (uint32_t prefill = 0; prefill < 2; prefill++) {
            struct cuda_attention a = {2, 1, 64, 0.125f, cases[i].dtype};
            struct cuda_kv kv = {NULL, {1, 1, 64, BLOCK_TOKENS, KV_LAYOUT_CUDA, a.dtype}, 0};
            uint32_t none[2] = {0, 0};
            struct device d = {0};
            if (prefill && (i < 3 || cases[i].at > 1)) continue;
            struct cuda_batch batch = {.tile = device_new(&d, NULL, sizeof(struct cuda_tile)),
                                       .decode_live = device_new(&d, none, sizeof none),
                                       .split_first = device_new(&d, none, sizeof none)};
            fake_knobs()->fail_call = cases[i].call;
            fake_knobs()->fail_at = cases[i].at;
            fake_knobs()->fail_with = cudaErrorLaunchOutOfResources;
            cudaError_t e =
                prefill
                    ? cuda_attend_prefill(stream, NULL, NULL, 256, &batch, &a, &kv, 1, false, false)
                    : cuda_attend_decode(stream, NULL, NULL, 256, &batch, &a, &kv, 1, NULL);
            assert_int_equal(e, cudaErrorLaunchOutOfResources);
            cudaGetLastError();
            device_fini(&d);
        }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(short_contexts_are_right),
        DEVICE_TEST(contexts_of_several_splits_are_right),
        DEVICE_TEST(a_decode_row_does_not_depend_on_the_others),
        DEVICE_TEST(deterministic_tiles_have_the_bits_of_decode),
        DEVICE_TEST(a_nan_reaches_only_the_rows_that_attend_to_it),
        DEVICE_TEST(nothing_to_do_is_done),
        DEVICE_TEST(the_order_of_threads_never_shows),
#ifdef TANDEM_EMULATED
        DEVICE_TEST(little_shared_memory_changes_nothing),
        DEVICE_TEST(what_the_device_refuses_is_returned),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
