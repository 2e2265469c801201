/* The own matrix products: against sums in double and the CPU's matmul, and bit for bit the same
 * for a row however many rows there are, whichever kernel takes it. */
#include "tests/unit/cuda_testing.h"

struct shape {
    uint32_t n, k, rows;
    enum dtype dtype;
};
struct operands { /* host: numbers that dtype holds */
    struct shape s;
    float *x, *w, *bias, *residual;
};

static struct operands operands_new(struct shape s)
{
    struct random r = {s.n * 7919 + s.k, s.dtype};
    return (struct operands){.s = s,
                             .w = random_numbers(&r, (size_t)s.n * s.k, s.dtype),
                             .bias = random_floats(&r, s.n),
                             .x = random_numbers(&r, (size_t)s.rows * s.k, s.dtype),
                             .residual = random_floats(&r, (size_t)s.rows * s.n)};
}
static void operands_free(struct operands *o)
{
    mem_free(o->x);
    mem_free(o->w);
    mem_free(o->bias);
    mem_free(o->residual);
}

typedef cudaError_t product_fn(cudaStream_t stream, const struct cuda_product *p);

/* What a call takes besides its rows. */
struct extras {
    bool bias, residual, wide;
};
static const struct extras every_extra[] = {
    {false, false, false}, {true, false, false}, {true, true, true}, {false, true, true}};

/* Rows row_first … of the operands, through device memory that ends where they end. */
static float *product_of(product_fn *fn, const struct operands *o, uint32_t row_first,
                         uint32_t rows, struct extras e)
{
    const struct shape *s = &o->s;
    size_t count = (size_t)rows * s->n;
    enum dtype out_dtype = e.wide ? DTYPE_F32 : s->dtype;
    void *x = device_numbers(o->x + (size_t)row_first * s->k, (size_t)rows * s->k, s->dtype);
    void *w = device_numbers(o->w, (size_t)s->n * s->k, s->dtype);
    float *bias = device_numbers(o->bias, s->n, DTYPE_F32);
    float *residual = device_numbers(o->residual + (size_t)row_first * s->n, count, DTYPE_F32);
    void *out = e.wide && e.residual ? residual : device_poison(count * dtype_bytes(out_dtype));
    struct cuda_product p = {
        .out = out,
        .x = x,
        .w = w,
        .bias = e.bias ? bias : NULL,
        .residual = e.residual ? residual : NULL,
        .n = s->n,
        .k = s->k,
        .rows = rows,
        .dtype = s->dtype,
        .out_wide = e.wide,
    };
    assert_cuda(fn(stream, &p));
    float *got = host_numbers(out, count, out_dtype);
    if (out != residual) device_free(out);
    device_free(x);
    device_free(w);
    device_free(bias);
    device_free(residual);
    return got;
}

/* What the CPU makes of the same operands; they are exact in the dtype. */
static float *product_of_cpu(const struct operands *o, struct extras e)
{
    const struct shape *s = &o->s;
    struct subject cpu = subject_open("cpu", 1);
    void *packed = mem_aligned(cpu.ops->pack_bytes(s->n, s->k, s->dtype), 64);
    float *out = mem_array((size_t)s->rows * s->n, sizeof *out);
    cpu.ops->pack_rows(packed, s->n, s->k, s->dtype, o->w, DTYPE_F32, 0, s->n);
    struct matrix w = {packed, s->n, s->k, s->dtype};
    cpu.ops->matmul(cpu.b, out, ROWS_STREAM, o->x, &w, e.bias ? o->bias : NULL,
                    e.residual ? o->residual : NULL, s->rows);
    subject_close(&cpu);
    mem_free(packed);
    return out;
}

static void assert_product(product_fn *fn, struct shape s, struct extras e)
{
    struct operands o = operands_new(s);
    enum dtype out_dtype = e.wide ? DTYPE_F32 : s.dtype;
    float *got = product_of(fn, &o, 0, s.rows, e), *of_cpu = product_of_cpu(&o, e);
    for (size_t at = 0; at < (size_t)s.rows * s.n; at++) {
        uint32_t row = at / s.n, out = at % s.n;
        double want = 0, bound = 1;
        for (uint32_t i = 0; i < s.k; i++) {
            double term = (double)o.x[(size_t)row * s.k + i] * o.w[(size_t)out * s.k + i];
            want += term;
            bound += fabs(term);
        }
        if (e.bias) want += o.bias[out];
        if (e.residual) want += o.residual[at];
        assert_near(got[at], want, bound * 1e-6, out_dtype, "product", at);
        assert_near(got[at], of_cpu[at], bound * 2e-6, out_dtype, "product, CPU", at);
    }
    mem_free(got);
    mem_free(of_cpu);
    operands_free(&o);
}

static const struct shape small_shapes[] = {
    /* n, k: one chunk, several splits, splits of two and three chunks; edges of all kinds */
    {16, 64, 1, DTYPE_BF16},    {48, 48, 3, DTYPE_BF16},   {1, 8, 2, DTYPE_BF16},
    {100, 104, 9, DTYPE_BF16},  {40, 1096, 8, DTYPE_BF16}, {33, 2504, 17, DTYPE_BF16},
    {20, 136, 32, DTYPE_BF16},  {20, 7, 5, DTYPE_BF16},    {5, 1, 1, DTYPE_BF16},
    {100, 100, 32, DTYPE_BF16}, {24, 1157, 4, DTYPE_BF16}, {16, 64, 1, DTYPE_F32},
    {48, 48, 3, DTYPE_F32},     {33, 131, 1, DTYPE_F32},   {37, 300, 9, DTYPE_F32},
    {1, 1, 32, DTYPE_F32},      {70, 1030, 5, DTYPE_F32},
};

static void products_are_those_of_the_cpu(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < COUNT(small_shapes); i++)
        for (uint32_t e = 0; e < COUNT(every_extra); e++) {
            order_take(e % ORDERS);
            assert_product(cuda_product_skinny, small_shapes[i], every_extra[e]);
        }
}

static void every_size_of_block_computes_the_same_function(void **state)
{
    (void)state;
    /* skinny_by_shape takes a kernel by n and rows */
    const struct shape shapes[] = {
        {24, 72, 8, DTYPE_BF16},     {8200, 40, 5, DTYPE_BF16}, {24, 72, 16, DTYPE_BF16},
        {4104, 40, 16, DTYPE_BF16},  {24, 72, 30, DTYPE_BF16},  {4104, 40, 30, DTYPE_BF16},
        {16392, 24, 32, DTYPE_BF16},
    };
    for (uint32_t i = 0; i < COUNT(shapes); i++)
        assert_product(cuda_product_skinny, shapes[i], every_extra[2]);
}

/* Rows one at a time, by slices, and all at once: the same bits. */
static void assert_fixed(struct shape s, struct extras e)
{
    struct operands o = operands_new(s);
    float *all = product_of(cuda_product_fixed, &o, 0, s.rows, e);
    const uint32_t firsts[] = {0, 1, s.rows / 2, s.rows - 1};
    const uint32_t counts[] = {1, 8, 11, 32, 33};
    for (uint32_t i = 0; i < COUNT(firsts) * COUNT(counts); i++) {
        uint32_t first = firsts[i / COUNT(counts)], rows = counts[i % COUNT(counts)];
        if (first + rows > s.rows) continue;
        order_take(i % ORDERS);
        product_fn *fn = rows <= CUDA_SKINNY_ROWS ? cuda_product_skinny : cuda_product_fixed;
        float *some = product_of(fn, &o, first, rows, e);
        if (memcmp(some, all + (size_t)first * s.n, (size_t)rows * s.n * sizeof *some) != 0)
            fail_msg("n %u, k %u: rows %u … of %u differ among %u", s.n, s.k, first, rows, s.rows);
        mem_free(some);
    }
    mem_free(all);
    operands_free(&o);
}

static void a_rows_bits_depend_on_no_other_row(void **state)
{
    (void)state;
    const struct shape shapes[] = {
        {40, 2504, 32, DTYPE_BF16},  {40, 136, 64, DTYPE_BF16},  {40, 136, 65, DTYPE_BF16},
        {136, 1096, 70, DTYPE_BF16}, {130, 72, 130, DTYPE_BF16}, {24, 2120, 65, DTYPE_BF16},
        {20, 100, 70, DTYPE_BF16},   {70, 1030, 20, DTYPE_F32},  {33, 131, 40, DTYPE_F32},
    };
    for (uint32_t i = 0; i < COUNT(shapes); i++)
        assert_fixed(shapes[i], every_extra[i % COUNT(every_extra)]);
    assert_fixed((struct shape){4104, 40, 40, DTYPE_BF16}, every_extra[2]);
}

static void tiles_are_the_product_in_any_order_of_threads(void **state)
{
    (void)state;
    for (uint32_t order = 0; order < ORDERS; order++) {
        order_take(order);
        assert_product(cuda_product_fixed, (struct shape){136, 2120, 70, DTYPE_BF16},
                       every_extra[order]);
        assert_product(cuda_product_fixed, (struct shape){20, 8, 129, DTYPE_BF16},
                       every_extra[order]);
    }
}

/* Stale memory, another sequence's NaN: none of it may reach a row. */
static void a_nan_stays_in_its_row(void **state)
{
    (void)state;
    const struct shape shapes[] = {{40, 136, 32, DTYPE_BF16},
                                   {40, 136, 70, DTYPE_BF16},
                                   {20, 33, 9, DTYPE_BF16},
                                   {40, 132, 10, DTYPE_F32}};
    const uint32_t sick = 3;
    for (uint32_t i = 0; i < COUNT(shapes); i++) {
        struct operands o = operands_new(shapes[i]);
        product_fn *fn =
            shapes[i].rows <= CUDA_SKINNY_ROWS ? cuda_product_skinny : cuda_product_fixed;
        float *well = product_of(fn, &o, 0, o.s.rows, every_extra[1]);
        for (uint32_t j = 0; j < o.s.k; j++)
            o.x[sick * o.s.k + j] = NAN;
        float *got = product_of(fn, &o, 0, o.s.rows, every_extra[1]);
        for (uint32_t at = 0; at < o.s.rows * o.s.n; at++)
            if (at / o.s.n == sick)
                assert_true(isnan(got[at]));
            else
                assert_int_equal(f32_bits(got[at]), f32_bits(well[at]));
        mem_free(well);
        mem_free(got);
        operands_free(&o);
    }
}

static void an_output_with_nothing_to_sum_is_bias_and_residual(void **state)
{
    (void)state;
    struct operands o = operands_new((struct shape){20, 64, 2, DTYPE_BF16});
    memset(o.x, 0, o.s.rows * o.s.k * sizeof *o.x);
    float *got = product_of(cuda_product_skinny, &o, 0, o.s.rows, every_extra[2]);
    for (uint32_t at = 0; at < o.s.rows * o.s.n; at++)
        assert_int_equal(f32_bits(got[at]), f32_bits(o.bias[at % o.s.n] + o.residual[at]));
    mem_free(got);
    operands_free(&o);
}

static void no_rows_are_no_launch(void **state)
{
    (void)state;
    struct cuda_product p = {.n = 16, .k = 16, .dtype = DTYPE_BF16};
    assert_cuda(cuda_product_skinny(stream, &p));
    assert_cuda(cuda_product_fixed(stream, &p));
    p.dtype = DTYPE_F32;
    assert_cuda(cuda_product_fixed(stream, &p));
}

#ifdef TANDEM_EMULATED
static void what_the_device_refuses_is_returned(void **state)
{
    (void)state;
    const struct {
        const char *call;
        product_fn *fn;
        struct shape s;
    } cases[] = {{"cudaLaunchKernel", cuda_product_skinny, {16, 16, 1, DTYPE_BF16}},
                 {"cudaLaunchKernel", cuda_product_skinny, {16, 16, 1, DTYPE_F32}},
                 {"cudaLaunchKernel", cuda_product_fixed, {16, 16, 40, DTYPE_BF16}},
                 {"cudaLaunchKernel", cuda_product_fixed, {16, 16, 65, DTYPE_BF16}}};
    for (uint32_t i = 0; i < COUNT(cases); i++) {
        struct shape s = cases[i].s;
        void *x = device_poison(s.rows * s.k * sizeof(float));
        void *w = device_poison(s.n * s.k * sizeof(float));
        void *out = device_poison(s.rows * s.n * sizeof(float));
        struct cuda_product p = {out, x, w, NULL, NULL, s.n, s.k, s.rows, s.dtype, true};
        fake_knobs()->fail_call = cases[i].call;
        fake_knobs()->fail_at = 1;
        fake_knobs()->fail_with = cudaErrorLaunchOutOfResources;
        assert_int_equal(cases[i].fn(stream, &p), cudaErrorLaunchOutOfResources);
        cudaGetLastError();
        device_free(x);
        device_free(w);
        device_free(out);
    }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(products_are_those_of_the_cpu),
        DEVICE_TEST(every_size_of_block_computes_the_same_function),
        DEVICE_TEST(a_rows_bits_depend_on_no_other_row),
        DEVICE_TEST(tiles_are_the_product_in_any_order_of_threads),
        DEVICE_TEST(a_nan_stays_in_its_row),
        DEVICE_TEST(an_output_with_nothing_to_sum_is_bias_and_residual),
        DEVICE_TEST(no_rows_are_no_launch),
#ifdef TANDEM_EMULATED
        DEVICE_TEST(what_the_device_refuses_is_returned),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
