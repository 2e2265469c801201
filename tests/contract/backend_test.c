/* The contract of backend.h without attention: every op of every path against a plain reference in
 * double precision, and against the portable path bit by bit. */
#include "tests/contract/backend_testing.h"

/* What an op made on the path under test must be what cpu-c makes of the same input. */
typedef void run_fn(const struct subject *s, const void *input, float *out);

static void assert_paths_agree(run_fn *run, const void *input, float *want, size_t count)
{
    struct subject oracle = subject_open("cpu-c", 1);
    run(&oracle, input, want);
    subject_close(&oracle);
    float *got = mem_array(count, sizeof *got);
    for (const char *const *name = backend_names(); *name; name++)
        for (uint32_t threads = 1; threads <= 3; threads++) {
            struct subject s = subject_open(*name, threads);
            memset(got, 0xff, count * sizeof *got);
            run(&s, input, got);
            if (!same_bits(got, want, count)) fail_msg("%s x%u differs from cpu-c", *name, threads);
            subject_close(&s);
        }
    mem_free(got);
}

static void *pack(const struct backend_ops *ops, uint32_t n, uint32_t k, enum dtype dtype,
                  const float *source)
{
    void *packed = mem_aligned(ops->pack_bytes(n, k, dtype), 64);
    assert_non_null(packed);
    assert_int_equal(ops->pack_bytes(n, k, dtype) % 64, 0);
    ops->pack_rows(packed, n, k, dtype, source, DTYPE_F32, 0, n);
    return packed;
}

struct matmul_input {
    uint32_t rows, n, k;
    enum dtype dtype;
    const float *x, *w, *bias, *residual;
};

static void run_matmul(const struct subject *s, const void *input, float *out)
{
    const struct matmul_input *m = input;
    void *packed = pack(s->ops, m->n, m->k, m->dtype, m->w);
    struct matrix w = {packed, m->n, m->k, m->dtype};
    if (m->residual) memcpy(out, m->residual, (size_t)m->rows * m->n * sizeof *out);
    s->ops->matmul(s->b, out, m->residual ? ROWS_STREAM : ROWS_PRODUCT, m->x, &w, m->bias,
                   m->residual ? out : NULL, m->rows);
    assert_ok(s->ops->sync(s->b));
    mem_free(packed);
}

/* sum over k, and of the magnitudes, which bound the error. */
static double dot(const struct matmul_input *m, uint32_t row, uint32_t column, double *bound)
{
    double sum = 0;
    *bound = 0;
    for (uint32_t i = 0; i < m->k; i++) {
        float x = m->x[(size_t)row * m->k + i], w = m->w[(size_t)column * m->k + i];
        if (m->dtype == DTYPE_BF16) {
            x = f32_from_bf16(bf16_from_f32(x));
            w = f32_from_bf16(bf16_from_f32(w));
        }
        sum += (double)x * w;
        *bound += fabs((double)x * w);
    }
    return sum;
}

static void matmul_is_the_product_and_equal_on_all_paths(void **state)
{
    (void)state;
    static const struct {
        uint32_t rows, n, k;
        bool bias, residual;
    } cases[] = {
        {1, 1, 1, false, false},     {1, 64, 64, false, false},   {2, 63, 17, true, false},
        {3, 65, 32, false, true},    {5, 130, 33, true, true},    {6, 64, 128, false, true},
        {7, 200, 48, true, true},    {8, 96, 100, false, false},  {13, 16, 7, true, true},
        {97, 70, 20, false, true},   {200, 40, 12, true, false},  {1, 20, 4200, true, true},
        {1, 320, 512, true, true},   {9, 30, 4097, false, false}, {100, 5, 8200, false, true},
        {230, 200, 100, true, true}, /* enough work for all threads */
    };
    struct random r = {.seed = 1};
    for (size_t i = 0; i < COUNT(cases); i++) {
        for (int bf16 = 0; bf16 < 2; bf16++) {
            struct matmul_input m = {cases[i].rows, cases[i].n, cases[i].k};
            size_t count = (size_t)m.rows * m.n;
            float *x = random_floats(&r, (size_t)m.rows * m.k);
            float *w = random_floats(&r, (size_t)m.n * m.k), *bias = random_floats(&r, m.n);
            float *residual = random_floats(&r, count), *want = mem_array(count, sizeof *want);
            m.dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
            m.x = x;
            m.w = w;
            m.bias = cases[i].bias ? bias : NULL;
            m.residual = cases[i].residual ? residual : NULL;
            assert_paths_agree(run_matmul, &m, want, count);
            for (uint32_t at = 0; at < count; at++) {
                double bound, exact = dot(&m, at / m.n, at % m.n, &bound);
                if (m.bias) exact += bias[at % m.n];
                if (m.residual) exact += residual[at];
                double error = fabs(want[at] - exact);
                if (error > (bound + 2) * 1e-6 * sqrt(m.k + 1)) {
                    fail_msg("case %zu, output %u: %g, wanted %g", i, at, (double)want[at], exact);
                }
            }
            mem_free(x), mem_free(w), mem_free(bias), mem_free(residual), mem_free(want);
        }
    }
}

/* vdpbf16ps is fma(even, fma(odd, sum)) with denormals flushed: the rule (G1) that lets three
 * paths give the same bits, over numbers of all sizes. */
static void matmul_of_any_bits_is_equal_on_all_paths(void **state)
{
    (void)state;
    enum { ROWS = 24, N = 128, K = 6 };
    static const float special[] = {0.0f,    -0.0f,    INFINITY, -INFINITY, NAN,
                                    FLT_MIN, -FLT_MIN, FLT_MAX,  1e-39f,    -1e-45f};
    struct random r = {.seed = 2};
    float x[ROWS * K], w[N * K], bias[N], residual[ROWS * N], want[ROWS * N];
    for (int round = 0; round < 12; round++) {
        for (int i = 0; i < ROWS * K; i++)
            x[i] = random_bits(&r);
        for (int i = 0; i < N * K; i++)
            w[i] = random_bits(&r);
        for (int i = 0; i < N; i++)
            bias[i] = random_bits(&r);
        for (int i = 0; i < ROWS * N; i++)
            residual[i] = random_bits(&r);
        for (int i = 0; round % 3 == 2 && i < 40; i++) {
            x[random_below(&r, ROWS * K)] = special[random_below(&r, COUNT(special))];
            w[random_below(&r, N * K)] = special[random_below(&r, COUNT(special))];
        }
        struct matmul_input m = {ROWS, N, K, round % 2 ? DTYPE_BF16 : DTYPE_F32, x, w};
        if (round % 3 == 1) m.bias = bias, m.residual = residual;
        assert_paths_agree(run_matmul, &m, want, ROWS * N);
    }
}

static void a_row_of_matmul_does_not_depend_on_its_batch(void **state)
{
    (void)state;
    enum { ROWS = 110, N = 150, K = 70 };
    struct random r = {.seed = 3};
    float *x = random_floats(&r, ROWS * K), *w = random_floats(&r, N * K);
    float *whole = mem_array(ROWS * N, sizeof *whole), *part = mem_array(ROWS * N, sizeof *part);
    for (const char *const *name = backend_names(); *name; name++) {
        for (int bf16 = 0; bf16 < 2; bf16++) {
            enum dtype dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
            struct subject s = subject_open(*name, 2);
            struct matrix m = {pack(s.ops, N, K, dtype, w), N, K, dtype};
            s.ops->matmul(s.b, whole, ROWS_PRODUCT, x, &m, NULL, NULL, ROWS);
            for (int round = 0; round < 20; round++) {
                uint32_t first = random_below(&r, ROWS);
                uint32_t rows = 1 + random_below(&r, round < 15 ? 20 : ROWS - first);
                if (rows > ROWS - first) rows = ROWS - first;
                s.ops->matmul(s.b, part, ROWS_PRODUCT, x + first * K, &m, NULL, NULL, rows);
                assert_memory_equal(part, whole + first * N, rows * N * sizeof *part);
            }
            mem_free((void *)m.packed);
            subject_close(&s);
        }
    }
    mem_free(x), mem_free(w), mem_free(whole), mem_free(part);
}

static void packing_in_pieces_from_any_dtype_is_packing_at_once(void **state)
{
    (void)state;
    enum { N = 150, K = 13 };
    struct random r = {.seed = 5};
    float source[N * K];
    uint16_t f16[N * K], bf16[N * K];
    for (int i = 0; i < N * K; i++) {
        uint32_t q = random_below(&r, 256); /* exact in all three types */
        source[i] = ((float)q - 128) / 64;
        bf16[i] = bf16_from_f32(source[i]);
        for (uint32_t h = 0; h < 0x10000; h++)
            if (f32_bits(f32_from_f16((uint16_t)h)) == f32_bits(source[i])) f16[i] = (uint16_t)h;
    }
    static const enum dtype kinds[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    const void *const sources[] = {source, f16, bf16};
    for (const char *const *name = backend_names(); *name; name++) {
        const struct backend_ops *ops;
        assert_ok(backend_find(*name, &ops));
        for (size_t kind = 0; kind < COUNT(kinds); kind++)
            for (int i = 0; i < 2; i++) {
                enum dtype dtype = i ? DTYPE_BF16 : DTYPE_F32;
                size_t bytes = ops->pack_bytes(N, K, dtype), width = dtype_bytes(kinds[kind]);
                void *whole = pack(ops, N, K, dtype, source), *parts = mem_aligned(bytes, 64);
                for (uint32_t n = 0, rows; n < N; n += rows) {
                    rows = 1 + random_below(&r, 40);
                    if (rows > N - n) rows = N - n;
                    const char *piece = (const char *)sources[kind] + (size_t)n * K * width;
                    ops->pack_rows(parts, N, K, dtype, piece, kinds[kind], n, rows);
                }
                assert_memory_equal(parts, whole, bytes);
                mem_free(whole), mem_free(parts);
            }
    }
}

struct rows_input {
    uint32_t rows, dim;
    const float *x, *weight;
};

static void run_rms_norm(const struct subject *s, const void *input, float *out)
{
    const struct rows_input *in = input;
    s->ops->rms_norm(s->b, out, in->x, in->weight, in->rows, in->dim, 1e-5f);
}

static void rms_norm_is_right_and_equal_on_all_paths(void **state)
{
    (void)state;
    static const uint32_t dims[] = {1, 2, 15, 16, 17, 64, 192, 1000};
    struct random r = {.seed = 6};
    for (size_t i = 0; i < COUNT(dims); i++) {
        struct rows_input in = {i == 6 ? 500 : 5, dims[i]}; /* 500: for all threads */
        size_t count = (size_t)in.rows * in.dim;
        float *x = random_floats(&r, count), *weight = random_floats(&r, in.dim);
        float *want = mem_array(count, sizeof *want);
        in.x = x;
        in.weight = weight;
        assert_paths_agree(run_rms_norm, &in, want, count);
        for (uint32_t row = 0; row < in.rows; row++) {
            double squares = 0;
            for (uint32_t j = 0; j < in.dim; j++)
                squares += (double)x[row * in.dim + j] * x[row * in.dim + j];
            double scale = 1 / sqrt(squares / in.dim + 1e-5);
            for (uint32_t j = 0; j < in.dim; j++)
                assert_true(fabs(want[row * in.dim + j] - x[row * in.dim + j] * scale * weight[j]) <
                            2e-6 * scale);
        }
        mem_free(x), mem_free(weight), mem_free(want);
    }
}

static void run_silu_mul(const struct subject *s, const void *input, float *out)
{
    const struct rows_input *in = input;
    s->ops->silu_mul(s->b, out, in->x, in->rows, in->dim);
}

/* Also the test of exp: from where it vanishes to where it overflows. */
static void silu_mul_is_right_and_equal_on_all_paths(void **state)
{
    (void)state;
    enum { ROWS = 300, DIM = 203 };
    struct random r = {.seed = 7};
    float *x = mem_array(ROWS * DIM * 2, sizeof *x), want[ROWS * DIM];
    static const float edges[] = {0.0f,  -0.0f, 1e-40f, -87.5f, 87.5f,  -88.8f, -104.0f,
                                  -1e9f, 1e9f,  1e38f,  -1e38f, 1e-30f, -1e-30f};
    for (int row = 0; row < ROWS; row++)
        for (int i = 0; i < DIM; i++) {
            x[row * 2 * DIM + i] = random_unit(&r) * (row % 2 ? 5 : 100);
            if (row == 0 && i < (int)COUNT(edges)) x[i] = edges[i];
            x[row * 2 * DIM + DIM + i] = random_unit(&r);
        }
    struct rows_input in = {ROWS, DIM, x};
    assert_paths_agree(run_silu_mul, &in, want, ROWS * DIM);
    for (int i = 0; i < ROWS * DIM; i++) {
        double gate = x[i / DIM * 2 * DIM + i % DIM], up = x[i / DIM * 2 * DIM + DIM + i % DIM];
        double exact = gate / (1 + exp(-gate)) * up;
        if (fabs(want[i] - exact) > 1e-6 * fabs(exact) + 1e-35)
            fail_msg("silu(%g) * %g is %g, wanted %g", gate, up, (double)want[i], exact);
    }
    float odd[] = {NAN, INFINITY, -INFINITY, 1, 1, 1}, out[3];
    assert_paths_agree(run_silu_mul, &(struct rows_input){1, 3, odd}, out, 3);
    assert_true(isnan(out[0]) && out[1] == INFINITY);
    mem_free(x);
}

struct logprobs_input {
    uint32_t rows, vocab;
    const float *logits;
    const uint32_t *token;
};

static void run_logprobs(const struct subject *s, const void *input, float *out)
{
    const struct logprobs_input *in = input;
    s->ops->logprobs(s->b, out, in->logits, in->token, in->rows, in->vocab);
}

static void logprobs_are_as_defined_and_equal_on_all_paths(void **state)
{
    (void)state;
    static const uint32_t vocabs[] = {1, 2, 15, 16, 17, 40, 1000, 5003};
    static const float odd[] = {INFINITY, -INFINITY, NAN, 1e-40f, -1e-40f, 0.0f, -0.0f, 1e38f};
    struct random r = {.seed = 8};
    for (size_t i = 0; i < COUNT(vocabs); i++) {
        uint32_t vocab = vocabs[i], rows = 70; /* the largest for all threads */
        float *logits = random_floats(&r, (size_t)rows * vocab), *want = mem_array(rows, 4);
        uint32_t *token = mem_array(rows, sizeof *token);
        for (uint32_t row = 0; row < rows; row++) {
            float *of_row = logits + (size_t)row * vocab;
            for (uint32_t j = 0; j < vocab;
                 j++) /* near each other, far apart, any sizes, the same */
                of_row[j] = row % 4 < 2   ? of_row[j] * (row % 2 ? 8 : 80)
                            : row % 4 < 3 ? random_bits(&r)
                                          : odd[row / 4 % COUNT(odd)];
            if (row % 3 == 0) of_row[random_below(&r, vocab)] = odd[row % COUNT(odd)];
            token[row] = random_below(&r, vocab);
        }
        assert_paths_agree(run_logprobs, &(struct logprobs_input){rows, vocab, logits, token}, want,
                           rows);
        for (uint32_t row = 0; row < rows; row++) {
            float plain = plain_logprob(logits + (size_t)row * vocab, vocab, token[row]);
            if (!same_bits(&want[row], &plain, 1))
                fail_msg("%u of %u: %g, wanted %g", row, vocab, (double)want[row], (double)plain);
        }
        mem_free(logits), mem_free(want), mem_free(token);
    }
}

/* A product of rows by gate and up: `wide` with fp32 rows by matmul and silu_mul, then rounded where the
 * matrix is of bf16; else as a model of its dtype does it, in one op if there is one. */
static void run_mlp(const struct subject *s, const struct matmul_input *m, bool wide, uint16_t *out)
{
    size_t count = (size_t)m->rows * m->n / 2, inputs = (size_t)m->rows * m->k;
    void *packed = pack(s->ops, m->n, m->k, m->dtype, m->w);
    struct matrix w = {packed, m->n, m->k, m->dtype};
    uint16_t *narrow = mem_array(inputs, sizeof *narrow);
    float *between = mem_array(2 * count, sizeof *between), *silu = mem_array(count, sizeof *silu);
    bool bf16 = m->dtype == DTYPE_BF16;
    for (size_t i = 0; i < inputs; i++)
        narrow[i] = bf16_from_f32(m->x[i]);
    const void *x = !wide && bf16 ? (const void *)narrow : m->x;
    void *to = !wide && bf16 ? (void *)out : silu;
    bool fused = !wide && s->ops->gated(s->b, to, x, &w, m->bias, m->rows);
    assert_int_equal(fused, !wide && m->n % 128 == 0 && m->rows > 12);
    if (!fused) {
        s->ops->matmul(s->b, between, ROWS_PRODUCT, x, &w, m->bias, NULL, m->rows);
        s->ops->silu_mul(s->b, to, between, m->rows, m->n / 2);
    }
    for (size_t i = 0; i < count && wide && bf16; i++)
        out[i] = bf16_from_f32(silu[i]);
    if (!bf16) memcpy(out, silu, count * sizeof *silu);
    mem_free(packed), mem_free(narrow), mem_free(between), mem_free(silu);
}

static void a_model_in_bf16_computes_what_separate_ops_round(void **state)
{
    (void)state;
    static const struct {
        uint32_t rows, n, k;
    } cases[] = {{1, 128, 64}, {3, 384, 33},   {16, 256, 515},
                 {17, 100, 7}, {400, 128, 40}, {16, 192, 4}};
    struct random r = {.seed = 9};
    for (size_t i = 0; i < 4 * COUNT(cases); i++) {
        struct matmul_input m = {cases[i / 4].rows, cases[i / 4].n, cases[i / 4].k};
        size_t bytes = (size_t)m.rows * m.n / 2 * sizeof(float);
        float *x = random_floats(&r, (size_t)m.rows * m.k), *bias = random_floats(&r, m.n);
        float *w = random_floats(&r, (size_t)m.n * m.k);
        uint16_t *want = mem_new(bytes), *got = mem_new(bytes);
        m.dtype = i % 2 ? DTYPE_BF16 : DTYPE_F32;
        m.x = x, m.w = w, m.bias = i % 4 / 2 ? bias : NULL;
        struct subject c = subject_open("cpu-c", 1);
        run_mlp(&c, &m, true, want);
        subject_close(&c);
        for (const char *const *name = backend_names(); *name; name++) {
            struct subject s;
            struct backend_options o = {.threads = 2, .dtype = m.dtype};
            assert_ok(backend_find(*name, &s.ops));
            assert_ok(s.ops->open(&s.b, &o));
            run_mlp(&s, &m, false, got);
            assert_memory_equal(got, want, bytes);
            subject_close(&s);
        }
        mem_free(x), mem_free(bias), mem_free(w), mem_free(want), mem_free(got);
    }
}

static void embed_gather_and_copy_move_the_right_rows(void **state)
{
    (void)state;
    enum { VOCAB = 11, DIM = 19, ROWS = 6, BLOCKS = 3 };
    static const uint32_t tokens[ROWS] = {3, 0, 10, 3, 7, 1}, rows[] = {4, 5, 2, 2};
    const struct batch batch = {
        .rows_count = ROWS, .tokens = tokens, .output_row = rows, .outputs_count = COUNT(rows)};
    struct random r = {.seed = 8};
    float table[VOCAB * DIM], out[ROWS * DIM], picked[ROWS * DIM];
    uint16_t bf16[VOCAB * DIM];
    for (int i = 0; i < VOCAB * DIM; i++) {
        bf16[i] = bf16_from_f32(random_unit(&r));
        table[i] = f32_from_bf16(bf16[i]);
    }
    struct kv_geometry g = {.layers_count = 2, .kv_heads = 1, .head_dim = 4, .dtype = DTYPE_BF16};
    g.block_tokens = BLOCK_TOKENS;
    for (const char *const *name = backend_names(); *name; name++) {
        struct subject s = subject_open(*name, 2);
        const void *const tables[] = {table, bf16};
        for (int kind = 0; kind < 2; kind++) {
            memset(out, 0xff, sizeof out);
            s.ops->embed(s.b, out, tables[kind], kind ? DTYPE_BF16 : DTYPE_F32, &batch, ROWS, DIM);
            for (int i = 0; i < ROWS; i++)
                assert_memory_equal(out + i * DIM, table + tokens[i] * DIM, DIM * sizeof *out);
        }
        s.ops->gather(s.b, picked, out, &batch, 1, COUNT(rows) - 1, DIM);
        for (size_t i = 1; i < COUNT(rows); i++)
            assert_memory_equal(picked + (i - 1) * DIM, out + rows[i] * DIM, DIM * sizeof *out);

        size_t bytes = kv_block_bytes(&g);
        struct kv_view kv = {s.ops->alloc(s.b, BLOCKS * bytes), g, BLOCKS};
        assert_non_null(kv.base);
        assert_int_equal((uintptr_t)kv.base % 64, 0);
        char *host = mem_new(BLOCKS * bytes), *back = mem_new(BLOCKS * bytes);
        for (size_t i = 0; i < BLOCKS * bytes; i++)
            host[i] = (char)random_word(&r);
        assert_ok(s.ops->write(s.b, kv.base, host, BLOCKS * bytes));
        s.ops->block_copy(s.b, &kv, 2, 0);
        assert_ok(s.ops->sync(s.b));
        assert_ok(s.ops->read(s.b, back, kv.base, BLOCKS * bytes));
        memcpy(host, host + 2 * bytes, bytes);
        assert_memory_equal(back, host, BLOCKS * bytes);
        s.ops->free(s.b, kv.base);
        mem_free(host), mem_free(back);
        subject_close(&s);
    }
}

static void ops_allocate_nothing_once_warm_and_report_failure_at_sync(void **state)
{
    (void)state;
    enum { ROWS = 4, N = 64, K = 64 };
    struct random r = {.seed = 9};
    float *x = random_floats(&r, ROWS * K), *w = random_floats(&r, N * K), out[ROWS * N];
    for (const char *const *name = backend_names(); *name; name++) {
        struct subject s = subject_open(*name, 2);
        struct matrix m = {pack(s.ops, N, K, DTYPE_BF16, w), N, K, DTYPE_BF16};
        mem_fail_at(1);
        s.ops->matmul(s.b, out, ROWS_PRODUCT, x, &m, NULL, NULL, ROWS);
        assert_int_equal(s.ops->sync(s.b), ERR_MEMORY);
        mem_fail_at(1);
        s.ops->prepare(s.b, &m, ROWS_PRODUCT, false, ROWS);
        assert_int_equal(s.ops->sync(s.b), ERR_MEMORY);
        mem_fail_at(0);
        s.ops->prepare(s.b, &m, ROWS_PRODUCT, false, ROWS);
        assert_ok(s.ops->sync(s.b));
        uint64_t before = mem_count();
        for (uint32_t rows = 1; rows <= ROWS; rows++)
            s.ops->matmul(s.b, out, ROWS_PRODUCT, x, &m, NULL, NULL, rows);
        assert_int_equal(mem_count(), before);
        mem_free((void *)m.packed);
        subject_close(&s);
    }
    mem_free(x), mem_free(w);
}

static void open_fails_cleanly_at_every_allocation(void **state)
{
    (void)state;
    const struct backend_options options = {.threads = 2};
    for (const char *const *name = backend_names(); *name; name++) {
        const struct backend_ops *ops;
        assert_ok(backend_find(*name, &ops));
        struct backend *b;
        uint64_t nth = 1;
        for (enum err e = ERR_MEMORY; e != OK; nth++) {
            mem_fail_at(nth);
            e = ops->open(&b, &options);
            mem_fail_at(0);
            if (e == OK) break;
            assert_int_equal(e, ERR_MEMORY);
            assert_null(b);
        }
        assert_true(nth > 2);
        ops->close(b);
        ops->close(NULL);
    }
}

static void open_tells_its_facts_and_refuses_what_it_cannot_do(void **state)
{
    (void)state;
    const struct backend_ops *ops;
    struct backend *b;
    assert_int_equal(backend_find("gpu", &ops), ERR_NOT_FOUND);
    assert_non_null(strstr(err_text(), "cpu-avx2"));
    assert_ok(backend_find("cpu", &ops));
    assert_string_equal(ops->name, backend_names()[0]);
    uint64_t numerics = 0;
    for (const char *const *name = backend_names(); *name; name++) {
        assert_ok(backend_find(*name, &ops));
        assert_int_equal(ops->abi, BACKEND_ABI);
        assert_int_equal(ops->open(&b, &(struct backend_options){.threads = 100000}), ERR_INVALID);
        struct backend_options far = {.threads = 2};
        CPU_SET(1000, &far.cpus); /* not here: a warning */
        assert_ok(ops->open(&b, &far));
        ops->close(b);
        assert_ok(ops->open(&b, &(struct backend_options){.threads = 0}));
        const struct backend_facts *f = ops->facts(b);
        assert_string_equal(f->path, *name);
        assert_true(f->threads >= 1 && f->host_memory && f->queue_depth == 1);
        assert_true(numerics == 0 || f->numerics == numerics); /* all paths may fail over */
        numerics = f->numerics;
        uint64_t mark = ops->mark(b);
        assert_true(mark > 0 && ops->mark(b) == mark + 1);
        assert_ok(ops->wait(b, mark + 1, 0));
        ops->close(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul_is_the_product_and_equal_on_all_paths),
        cmocka_unit_test(matmul_of_any_bits_is_equal_on_all_paths),
        cmocka_unit_test(a_row_of_matmul_does_not_depend_on_its_batch),
        cmocka_unit_test(packing_in_pieces_from_any_dtype_is_packing_at_once),
        cmocka_unit_test(rms_norm_is_right_and_equal_on_all_paths),
        cmocka_unit_test(silu_mul_is_right_and_equal_on_all_paths),
        cmocka_unit_test(logprobs_are_as_defined_and_equal_on_all_paths),
        cmocka_unit_test(a_model_in_bf16_computes_what_separate_ops_round),
        cmocka_unit_test(embed_gather_and_copy_move_the_right_rows),
        cmocka_unit_test(ops_allocate_nothing_once_warm_and_report_failure_at_sync),
        cmocka_unit_test(open_fails_cleanly_at_every_allocation),
        cmocka_unit_test(open_tells_its_facts_and_refuses_what_it_cannot_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
