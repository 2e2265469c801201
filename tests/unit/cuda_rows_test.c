/* The kernels of rows.cu and rope.cu against plain computations and against the portable CPU path. */
#include "tests/unit/cuda_testing.h"

static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};

/* --- embed and gather: bits are moved, nothing is rounded --- */

enum { VOCAB = 11, EMBED_ROWS = 5, EMBED_LIVE = 4 };

static void assert_embeds(enum dtype dtype, uint32_t dim)
{
    struct random r = {dim, 0};
    size_t count = (size_t)VOCAB * dim, bytes = count * dtype_bytes(dtype);
    uint16_t *half = mem_array(count, sizeof *half);
    float *table = random_floats(&r, count), want;
    for (size_t i = 0; i < count;
         i++) { /* all fp16 numbers but NaN, denormals and infinities too */
        half[i] = (uint16_t)random_word(&r);
        if (dtype == DTYPE_F16 && (half[i] & 0x7fff) > 0x7c00) half[i] &= 0xfc00;
        if (dtype == DTYPE_BF16) half[i] = bf16_from_f32(table[i]);
    }
    void *on_device = device_bytes(dtype == DTYPE_F32 ? (void *)table : half, bytes);
    /* The last row is not live: its token and slot are outside of everything. */
    struct rows_of_batch rows = {
        .rows = EMBED_ROWS,
        .live = EMBED_LIVE,
        .token = (uint32_t[]){3, (uint32_t)CUDA_TOKEN_LAST, VOCAB - 1, 0, 1u << 30},
        .slot = (uint32_t[]){0, 2, 0, 0, 1u << 30},
    };
    const uint32_t last[] = {99, 99, 7}, token[] = {3, 7, VOCAB - 1, 0};
    struct cuda_batch batch = device_batch(&rows);
    const uint32_t *last_on_device = device_words(last, COUNT(last));
    float *x = device_poison(EMBED_ROWS * dim * sizeof *x);
    assert_cuda(cuda_embed(stream, x, on_device, dtype, &batch, last_on_device, EMBED_ROWS, dim));
    float *got = host_numbers(x, EMBED_ROWS * dim, DTYPE_F32);
    for (size_t i = 0; i < EMBED_ROWS * dim; i++) {
        uint32_t row = i / dim;
        size_t from = row < EMBED_LIVE ? token[row] * dim + i % dim : 0;
        want = dtype == DTYPE_F32    ? table[from]
               : dtype == DTYPE_BF16 ? f32_from_bf16(half[from])
                                     : f32_from_f16(half[from]);
        assert_int_equal(f32_bits(got[i]), row < EMBED_LIVE ? f32_bits(want) : 0);
    }
    device_batch_free(&batch);
    device_free(last_on_device);
    device_free(on_device);
    device_free(x);
    mem_free(got);
    mem_free(half);
    mem_free(table);
}

static void embeddings_are_the_tables_rows(void **state)
{
    (void)state;
    const enum dtype kinds[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    const uint32_t dims[] = {8, 48, 100, 33, 2056};
    for (uint32_t i = 0; i < COUNT(kinds) * COUNT(dims); i++)
        assert_embeds(kinds[i / COUNT(dims)], dims[i % COUNT(dims)]);
}

static void gathered_rows_are_those_that_are_named(void **state)
{
    (void)state;
    enum { ROWS = 6, OUTPUTS = 4, LIVE = 3 };
    const uint32_t dims[] = {8, 48, 33, 2056};
    const uint32_t output_row[OUTPUTS] = {5, 0, 5, 1u << 30};
    for (uint32_t d = 0; d < COUNT(dims); d++) {
        uint32_t dim = dims[d];
        struct random r = {dim, 0};
        float *x = random_floats(&r, ROWS * dim);
        struct rows_of_batch rows = {.output_row = output_row, OUTPUTS, LIVE};
        rows.outputs = OUTPUTS;
        rows.outputs_live = LIVE;
        struct cuda_batch batch = device_batch(&rows);
        float *from = device_numbers(x, ROWS * dim, DTYPE_F32);
        float *to = device_poison(OUTPUTS * dim * sizeof *to);
        assert_cuda(cuda_gather(stream, to, from, &batch, OUTPUTS, dim));
        float *got = host_numbers(to, OUTPUTS * dim, DTYPE_F32);
        for (uint32_t i = 0; i < OUTPUTS * dim; i++)
            assert_int_equal(f32_bits(got[i]),
                             i / dim < LIVE ? f32_bits(x[output_row[i / dim] * dim + i % dim]) : 0);
        device_batch_free(&batch);
        device_free(from);
        device_free(to);
        mem_free(got);
        mem_free(x);
    }
}

/* --- rms_norm, silu_mul --- */

static void assert_norms(uint32_t rows, uint32_t dim, enum dtype dtype)
{
    const float eps = 1e-5f;
    struct random r = {dim, 0};
    size_t count = (size_t)rows * dim, bytes = count * dtype_bytes(dtype);
    float *x = random_floats(&r, count), *weight = random_floats(&r, dim);
    float *of_cpu = mem_array(count, sizeof *of_cpu), *first = NULL;
    struct subject cpu = subject_open("cpu-c", 1);
    cpu.ops->rms_norm(cpu.b, of_cpu, x, weight, rows, dim, eps);
    subject_close(&cpu);
    float *x_on_device = device_numbers(x, count, DTYPE_F32);
    float *weight_on_device = device_numbers(weight, dim, DTYPE_F32);
    for (uint32_t order = 0; order < ORDERS; order++) {
        order_take(order);
        void *out = device_poison(bytes);
        assert_cuda(
            cuda_rms_norm(stream, out, x_on_device, weight_on_device, rows, dim, eps, dtype));
        float *got = host_numbers(out, count, dtype);
        if (first) assert_memory_equal(got, first, count * sizeof *got);
        for (uint32_t row = 0; row < rows && !first; row++) {
            double squares = 0;
            for (uint32_t i = 0; i < dim; i++)
                squares += (double)x[row * dim + i] * x[row * dim + i];
            for (uint32_t i = 0; i < dim; i++) {
                size_t at = (size_t)row * dim + i;
                double want = x[at] / sqrt(squares / dim + eps) * weight[i];
                assert_near(got[at], want, fabs(want) * 1e-6, dtype, "rms_norm", at);
                assert_near(got[at], of_cpu[at], fabs(want) * 2e-6, dtype, "rms_norm, CPU", at);
            }
        }
        device_free(out);
        if (first)
            mem_free(got);
        else
            first = got;
    }
    device_free(x_on_device);
    device_free(weight_on_device);
    mem_free(x);
    mem_free(weight);
    mem_free(of_cpu);
    mem_free(first);
}

static void norms_are_those_of_the_cpu_in_any_order_of_threads(void **state)
{
    (void)state;
    const struct {
        uint32_t rows, dim;
    } shapes[] = {{1, 16}, {3, 48}, {2, 100}, {2, 33}, {1, 4104}, {1, 4099}};
    for (uint32_t i = 0; i < COUNT(shapes); i++)
        for (uint32_t d = 0; d < COUNT(dtypes); d++)
            assert_norms(shapes[i].rows, shapes[i].dim, dtypes[d]);
}

static void a_rows_norm_does_not_depend_on_the_others(void **state)
{
    (void)state;
    enum { ROWS = 5, DIM = 200, OWN = 3 };
    struct random r = {1, 0};
    float *x = random_floats(&r, ROWS * DIM), *weight = random_floats(&r, DIM), *of[2];
    float *w = device_numbers(weight, DIM, DTYPE_F32);
    for (uint32_t i = 0; i < 2; i++) {
        float *in = device_numbers(x + (i ? OWN * DIM : 0), (i ? 1 : ROWS) * DIM, DTYPE_F32);
        float *out = device_poison(ROWS * DIM * sizeof *out);
        assert_cuda(cuda_rms_norm(stream, out, in, w, i ? 1 : ROWS, DIM, 1e-6f, DTYPE_F32));
        of[i] = host_numbers(out, ROWS * DIM, DTYPE_F32);
        device_free(in);
        device_free(out);
        for (uint32_t j = 0; j < ROWS * DIM; j++) /* for the second time: the others are NaN */
            if (j / DIM != OWN) x[j] = NAN;
    }
    assert_memory_equal(of[0] + OWN * DIM, of[1], DIM * sizeof *x);
    device_free(w);
    mem_free(x);
    mem_free(weight);
    mem_free(of[0]);
    mem_free(of[1]);
}

static void assert_silu(uint32_t rows, uint32_t dim, enum dtype dtype)
{
    static const float special[] = {0.0f, -0.0f, 88.0f, -88.0f, 200.0f, -200.0f, 1e30f, -1e30f};
    struct random r = {dim, 0};
    size_t count = (size_t)rows * dim;
    float *gate_up = random_numbers(&r, 2 * count, dtype),
          *of_cpu = mem_array(count, sizeof(float));
    for (size_t i = 0; i < 2 * count; i++)
        gate_up[i] = f32_from_bf16(
            bf16_from_f32(i < COUNT(special) && i < dim ? special[i] : 8 * gate_up[i]));
    struct subject cpu = subject_open("cpu-c", 1);
    cpu.ops->silu_mul(cpu.b, of_cpu, gate_up, rows, dim);
    subject_close(&cpu);
    void *in = device_numbers(gate_up, 2 * count, dtype);
    void *out = device_poison(count * dtype_bytes(dtype));
    assert_cuda(cuda_silu_mul(stream, out, in, rows, dim, dtype));
    float *got = host_numbers(out, count, dtype);
    for (size_t i = 0; i < count; i++) {
        const float *gate = gate_up + i / dim * 2 * dim + i % dim;
        double want = gate[0] / (1 + exp(-(double)gate[0])) * gate[dim];
        assert_near(got[i], want, fabs(want) * 4e-6 + 1e-35, dtype, "silu_mul", i);
        /* The CPU's e^x stops at -87, the device's goes on. */
        assert_near(got[i], of_cpu[i], fabs(want) * 4e-6 + 1e-35, dtype, "silu_mul, CPU", i);
    }
    device_free(in);
    device_free(out);
    mem_free(gate_up);
    mem_free(of_cpu);
    mem_free(got);
}

static void silu_mul_is_that_of_the_cpu(void **state)
{
    (void)state;
    const uint32_t dims[] = {8, 48, 100, 33, 2056};
    for (uint32_t i = 0; i < COUNT(dims); i++)
        for (uint32_t d = 0; d < COUNT(dtypes); d++)
            assert_silu(3, dims[i], dtypes[d]);
}

/* --- rope_append, and KV to and from the layouts --- */

enum { LAYERS = 2, LAYER = 1, BLOCKS = 7, POSITIONS = 64 };

static struct kv_geometry geometry_of(const struct cuda_attention *a, uint32_t layout)
{
    return (struct kv_geometry){LAYERS, a->kv_heads, a->head_dim, BLOCK_TOKENS, layout, a->dtype};
}

/* All blocks of the layer, in the CPU's layout. */
static void *gathered(const struct cuda_kv *kv)
{
    const uint32_t every[BLOCKS] = {0, 1, 2, 3, 4, 5, 6};
    size_t bytes = BLOCKS * kv_layer_bytes(&kv->geometry);
    const uint32_t *blocks = device_words(every, BLOCKS);
    void *out = device_poison(bytes), *host = mem_array(bytes, 1);
    assert_cuda(cuda_kv_gather(stream, out, kv, blocks, BLOCKS, KV_LAYOUT_CPU, NULL));
    device_read(host, out, bytes);
    device_free(blocks);
    device_free(out);
    return host;
}

/* What the CPU makes of the same rows: qkv in place, and its pool. */
static void cpu_rope_append(float *qkv, void *pool, const struct rows_of_batch *rows,
                            const struct cuda_attention *a, const float *cos, const float *sin)
{
    struct subject cpu = subject_open("cpu-c", 1);
    struct batch_sequence sequence[16];
    for (uint32_t i = 0; i < rows->live; i++)
        sequence[i] = (struct batch_sequence){i, 1, rows->position[i], rows->table_first[i]};
    struct batch batch = {rows->live, .sequence = sequence, .sequences_count = rows->live,
                          .table = rows->table};
    struct rope_table rope = {cos, sin, a->head_dim / 2};
    struct attend_shape shape = {a->heads, a->kv_heads, a->head_dim, a->scale};
    struct kv_view kv = {pool, geometry_of(a, KV_LAYOUT_CPU), BLOCKS};
    cpu.ops->rope_append(cpu.b, qkv, &batch, rows->live, &rope, &shape, &kv, LAYER);
    subject_close(&cpu);
}

static void assert_layer_is(const void *got, const char *pool, const struct kv_geometry *g)
{
    size_t layer = kv_layer_bytes(g);
    for (uint32_t b = 0; b < BLOCKS; b++)
        assert_memory_equal((const char *)got + b * layer,
                            pool + b * kv_block_bytes(g) + LAYER * layer, layer);
}

static void assert_other_layer_is_poison(const struct cuda_kv *kv)
{
    const struct kv_geometry *g = &kv->geometry;
    unsigned char *pool = mem_array(BLOCKS, kv_block_bytes(g));
    device_read(pool, kv->base, BLOCKS * kv_block_bytes(g));
    for (size_t i = 0; i < BLOCKS * kv_block_bytes(g); i++)
        if (i / kv_layer_bytes(g) % LAYERS != LAYER) assert_int_equal(pool[i], 0xff);
    mem_free(pool);
}

static void assert_appends(const struct cuda_attention *a)
{
    struct rows_of_batch rows = {
        /* two sequences and a row that is not live */
        .rows = 6,
        .live = 5,
        .position = (uint32_t[]){14, 15, 16, 40, 0, 1u << 20},
        .table_first = (uint32_t[]){0, 0, 0, 2, 5, 1u << 20},
        .table = (uint32_t[]){4, 1, 6, 6, 0, 3},
        .table_count = 6,
    };
    uint32_t stride = (a->heads + 2 * a->kv_heads) * a->head_dim, half = a->head_dim / 2;
    struct random r = {a->head_dim, 0};
    struct kv_geometry g = geometry_of(a, KV_LAYOUT_CUDA);
    float *qkv = random_numbers(&r, rows.rows * stride, a->dtype);
    float *cos = random_floats(&r, POSITIONS * half), *sin = random_floats(&r, POSITIONS * half);
    void *in = device_numbers(qkv, rows.rows * stride, a->dtype);
    float *cos_on_device = device_numbers(cos, POSITIONS * half, DTYPE_F32);
    float *sin_on_device = device_numbers(sin, POSITIONS * half, DTYPE_F32);
    struct cuda_batch batch = device_batch(&rows);
    struct cuda_kv kv = {device_poison(BLOCKS * kv_block_bytes(&g)), g, LAYER};
    char *pool = mem_array(BLOCKS * kv_block_bytes(&g), 1);
    memset(pool, 0xff, BLOCKS * kv_block_bytes(&g));

    assert_cuda(
        cuda_rope_append(stream, in, &batch, cos_on_device, sin_on_device, a, &kv, rows.rows));
    float *got = host_numbers(in, rows.rows * stride, a->dtype);
    cpu_rope_append(qkv, pool, &rows, a, cos, sin);
    for (uint32_t row = 0; row < rows.rows; row++)
        for (uint32_t i = 0; i < a->heads * a->head_dim; i++) {
            float want = qkv[row * stride + i];
            if (a->dtype == DTYPE_BF16) want = f32_from_bf16(bf16_from_f32(want));
            assert_int_equal(f32_bits(got[row * stride + i]), f32_bits(want));
        }
    void *layer = gathered(&kv);
    assert_layer_is(layer, pool, &g);
    assert_other_layer_is_poison(&kv);
    mem_free(layer);

    device_batch_free(&batch);
    device_free(kv.base);
    device_free(in);
    device_free(cos_on_device);
    device_free(sin_on_device);
    mem_free(qkv);
    mem_free(cos);
    mem_free(sin);
    mem_free(got);
    mem_free(pool);
}

static void rope_append_has_the_cpus_bits_and_writes_nothing_else(void **state)
{
    (void)state;
    const struct cuda_attention shapes[] = {
        {4, 2, 16, 1}, {3, 1, 64, 1}, {8, 8, 32, 1}, {2, 1, 256, 1}, {6, 2, 48, 1}};
    for (uint32_t i = 0; i < COUNT(shapes); i++)
        for (uint32_t d = 0; d < COUNT(dtypes); d++) {
            struct cuda_attention a = shapes[i];
            a.dtype = dtypes[d];
            assert_appends(&a);
        }
}

/* Both ways gave the bytes' checksum, once for each order. */
static void assert_hashes(const uint64_t *hash, const void *staged, size_t bytes)
{
    char *host = mem_array(bytes, 1);
    uint64_t got[2];
    device_read(host, staged, bytes);
    device_read(got, hash, sizeof got);
    for (int i = 0; i < 2; i++)
        assert_true(got[i] == ORDERS * kv_hash(host, bytes / 8));
    mem_free(host);
}

static void assert_moves(const struct cuda_attention *a, uint32_t layout)
{
    struct kv_geometry g = geometry_of(a, KV_LAYOUT_CUDA);
    size_t layer = kv_layer_bytes(&g), bytes = BLOCKS * kv_block_bytes(&g);
    struct random r = {a->head_dim, 0};
    uint32_t *words = mem_array(bytes / 4, sizeof *words);
    for (size_t i = 0; i < bytes / 4; i++)
        words[i] = random_word(&r);
    const uint32_t some[] = {5, 0, 3};
    const uint32_t *blocks = device_words(some, COUNT(some));
    struct cuda_kv from = {device_bytes(words, bytes), g, LAYER};
    struct cuda_kv to = {device_poison(bytes), g, LAYER};
    void *staged = device_poison(COUNT(some) * layer);
    uint64_t zero[2] = {0}, *hash = device_bytes(zero, sizeof zero);
    for (uint32_t order = 0; order < ORDERS; order++) {
        order_take(order);
        assert_cuda(cuda_kv_gather(stream, staged, &from, blocks, COUNT(some), layout, &hash[0]));
        assert_cuda(cuda_kv_scatter(stream, &to, staged, blocks, COUNT(some), layout, &hash[1]));
    }
    assert_hashes(hash, staged, COUNT(some) * layer);
    char *want = mem_array(bytes, 1), *got = mem_array(bytes, 1);
    memset(want, 0xff, bytes);
    for (uint32_t i = 0; i < COUNT(some); i++) {
        size_t at = some[i] * kv_block_bytes(&g) + LAYER * layer;
        memcpy(want + at, (char *)words + at, layer);
    }
    device_read(got, to.base, bytes);
    assert_memory_equal(got, want, bytes);
    device_read(got, staged, COUNT(some) * layer);
    for (uint32_t i = 0; i < COUNT(some) && layout == KV_LAYOUT_CUDA;
         i++) /* the pool's own order */
        assert_memory_equal(got + i * layer, want + some[i] * kv_block_bytes(&g) + LAYER * layer,
                            layer);
    device_free(blocks);
    device_free(from.base);
    device_free(to.base);
    device_free(staged);
    device_free(hash);
    mem_free(words);
    mem_free(want);
    mem_free(got);
}

static void blocks_come_back_from_either_layout(void **state)
{
    (void)state;
    const uint32_t layouts[] = {KV_LAYOUT_CPU, KV_LAYOUT_CUDA};
    const struct cuda_attention shapes[] = {
        {2, 1, 16, 1}, {2, 2, 64, 1}, {1, 1, 256, 1}, {3, 3, 48, 1}};
    for (uint32_t i = 0; i < COUNT(shapes) * COUNT(layouts) * COUNT(dtypes); i++) {
        struct cuda_attention a = shapes[i / COUNT(layouts) / COUNT(dtypes)];
        a.dtype = dtypes[i % COUNT(dtypes)];
        assert_moves(&a, layouts[i / COUNT(dtypes) % COUNT(layouts)]);
    }
}

static void nothing_to_do_is_done_without_a_launch(void **state)
{
    (void)state;
    struct cuda_batch batch = {0};
    struct cuda_attention a = {2, 1, 16, 1, DTYPE_BF16};
    struct cuda_kv kv = {NULL, geometry_of(&a, KV_LAYOUT_CUDA), 0};
    assert_cuda(cuda_embed(stream, NULL, NULL, DTYPE_F32, &batch, NULL, 0, 8));
    assert_cuda(cuda_rms_norm(stream, NULL, NULL, NULL, 0, 8, 1, DTYPE_F32));
    assert_cuda(cuda_silu_mul(stream, NULL, NULL, 0, 8, DTYPE_F32));
    assert_cuda(cuda_gather(stream, NULL, NULL, &batch, 0, 8));
    assert_cuda(cuda_rope_append(stream, NULL, &batch, NULL, NULL, &a, &kv, 0));
    assert_cuda(cuda_kv_gather(stream, NULL, &kv, NULL, 0, KV_LAYOUT_CPU, NULL));
    assert_cuda(cuda_kv_scatter(stream, &kv, NULL, NULL, 0, KV_LAYOUT_CPU, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(embeddings_are_the_tables_rows),
        DEVICE_TEST(gathered_rows_are_those_that_are_named),
        DEVICE_TEST(norms_are_those_of_the_cpu_in_any_order_of_threads),
        DEVICE_TEST(a_rows_norm_does_not_depend_on_the_others),
        DEVICE_TEST(silu_mul_is_that_of_the_cpu),
        DEVICE_TEST(rope_append_has_the_cpus_bits_and_writes_nothing_else),
        DEVICE_TEST(blocks_come_back_from_either_layout),
        DEVICE_TEST(nothing_to_do_is_done_without_a_launch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
