/* The CUDA backend in the test's own process, on the stand-ins: which steps are recorded and replayed, what
 * becomes of failures.
 * What the ops compute is tests/contract/backend_any_test.c's. */
#include "kernels/cuda/backend.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "kernels/numbers.h"
#include "tests/unit/cuda_rig.h"

enum { SEQUENCES = 20, ROWS_MAX = 40, VOCAB = 50, DIM = 16, TABLE_MAX = 64 };

static const struct backend_ops *const ops = &cuda_backend_ops;
static const struct backend_options options = {
    .dtype = DTYPE_F32, .limits = {ROWS_MAX, SEQUENCES, TABLE_MAX, SEQUENCES, VOCAB}};

/* A model that is an embedding: logits of row r are table[token of r]. */
struct model {
    struct backend *b;
    struct batch batch;
    struct batch_sequence sequence[SEQUENCES];
    uint32_t tokens[ROWS_MAX], output_row[ROWS_MAX];
    float *table, *x, *picked, *host;
    uint32_t enqueued, rows, outputs; /* calls, and what the last one was for */
};

static void enqueue(void *ctx, uint32_t rows, uint32_t outputs)
{
    struct model *m = ctx;
    m->enqueued++;
    m->rows = rows;
    m->outputs = outputs;
    ops->embed(m->b, m->x, m->table, DTYPE_F32, &m->batch, rows, DIM);
    ops->gather(m->b, m->picked, m->x, &m->batch, 0, outputs, DIM);
}

static struct model *model_open_on(uint32_t device)
{
    struct model *m = mem_new(sizeof *m);
    struct backend_options o = options;
    float table[VOCAB * DIM];
    o.device_index = device;
    assert_ok(ops->open(&m->b, &o));
    for (int i = 0; i < VOCAB * DIM; i++)
        table[i] = (float)i;
    m->table = ops->alloc(m->b, sizeof table);
    m->x = ops->alloc(m->b, ROWS_MAX * DIM * sizeof *m->x);
    m->picked = ops->alloc(m->b, ROWS_MAX * DIM * sizeof *m->picked);
    m->host = ops->host_alloc(m->b, SEQUENCES * ROWS_MAX * DIM * sizeof *m->host);
    assert_true(m->table && m->x && m->picked && m->host);
    assert_ok(ops->write(m->b, m->table, table, sizeof table));
    return m;
}

static struct model *model_open(void)
{
    return model_open_on(0);
}

static void model_close(struct model *m)
{
    ops->free(m->b, m->table);
    ops->free(m->b, m->x);
    ops->free(m->b, m->picked);
    ops->host_free(m->b, m->host);
    ops->close(m->b);
    mem_free(m);
}

/* A step of `rows` sequences with one row each, its tokens depending on `salt`; into host slot `at`. */
static void decode(struct model *m, uint32_t rows, uint32_t salt, uint32_t at)
{
    m->batch = (struct batch){.rows_count = rows,
                              .tokens = m->tokens,
                              .sequence = m->sequence,
                              .sequences_count = rows,
                              .output_row = m->output_row,
                              .outputs_count = rows};
    for (uint32_t i = 0; i < rows; i++) {
        m->sequence[i] = (struct batch_sequence){.row_first = i, .rows_count = 1, .slot = i};
        m->tokens[i] = (salt * 7 + i) % VOCAB;
        m->output_row[i] = i;
    }
    ops->step(m->b, &m->batch, enqueue, m);
    ops->fetch(m->b, m->host + (size_t)at * ROWS_MAX * DIM, m->picked,
               rows * DIM * sizeof *m->host);
}

static bool is_right(const struct model *m, uint32_t rows, uint32_t salt, uint32_t at)
{
    const float *host = m->host + (size_t)at * ROWS_MAX * DIM;
    for (uint32_t i = 0; i < rows * DIM; i++)
        if (host[i] != (float)((salt * 7 + i / DIM) % VOCAB * DIM + i % DIM)) return false;
    return true;
}

static void a_decode_step_is_recorded_once_for_its_bucket(void **state)
{
    (void)state;
    static const struct {
        uint32_t rows, bucket, enqueued; /* the first is tried, the second is recorded */
    } steps[] = {{1, 1, 1}, {1, 1, 2}, {1, 0, 2}, {5, 8, 3},   {7, 8, 4},
                 {8, 0, 4}, {6, 0, 4}, {1, 0, 4}, {17, 20, 5}, {20, 20, 6}};
    struct model *m = model_open();
    for (uint32_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        decode(m, steps[i].rows, i, 0);
        assert_ok(ops->sync(m->b));
        assert_true(is_right(m, steps[i].rows, i, 0));
        assert_int_equal(m->enqueued, steps[i].enqueued);
        if (steps[i].bucket) assert_int_equal(m->rows, steps[i].bucket);
        if (steps[i].bucket) assert_int_equal(m->outputs, steps[i].bucket);
    }
    model_close(m);
}

static void steps_that_were_recorded_at_the_start_are_only_replayed(void **state)
{
    (void)state;
    struct model *m = model_open();
    ops->record(m->b, enqueue, m);
    assert_ok(ops->sync(m->b));
    uint32_t enqueued = m->enqueued;
    for (uint32_t rows = 1; rows <= SEQUENCES; rows++) {
        decode(m, rows, rows, 0);
        assert_ok(ops->sync(m->b));
        assert_true(is_right(m, rows, rows, 0));
    }
    assert_int_equal(m->enqueued, enqueued);
    model_close(m);
}

static void a_watched_step_is_not_recorded(void **state)
{
    (void)state;
    struct model *m = model_open();
    for (uint32_t i = 0; i < 4; i++) {
        decode(m, 3, i, 0);
        m->batch.watched = true;
        ops->step(m->b, &m->batch, enqueue, m);
        assert_int_equal(m->rows, 3);
    }
    assert_ok(ops->sync(m->b));
    assert_int_equal(m->enqueued, 2 + 4);
    model_close(m);
}

/* Planned while those before it wait on a slow device. */
static bool many_steps_are_right(void)
{
    bool right = true;
    struct model *m = model_open();
    ops->record(m->b, enqueue, m);
    assert_ok(ops->sync(m->b));
    fake_knobs()->stream_delay_us = 300;
    for (uint32_t i = 0; i < SEQUENCES; i++)
        decode(m, 4, i, i);
    assert_ok(ops->wait(m->b, ops->mark(m->b), TIME_NEVER));
    for (uint32_t i = 0; i < SEQUENCES; i++)
        right = right && is_right(m, 4, i, i);
    model_close(m);
    return right;
}

/* Attention with one head, then with heads that need more scratch, then the first again. */
struct attention {
    struct backend *b;
    struct attend_shape shape;
    struct kv_view kv;
    struct batch batch;
    void *qkv, *out;
};

static void attend(void *ctx, uint32_t rows, uint32_t outputs)
{
    struct attention *a = ctx;
    (void)outputs;
    ops->attend(a->b, a->out, a->qkv, &a->batch, rows, &a->shape, &a->kv, 0);
}

static bool growing_scratch_is_right(void)
{
    static const uint32_t zero[TABLE_MAX];
    static const struct batch_sequence one = {.rows_count = 1, .position = 300}; /* two splits */
    struct attention a = {.shape = {1, 1, 16, 0.25f}};
    struct backend_options narrow = options;
    narrow.dtype = DTYPE_BF16;
    assert_ok(ops->open(&a.b, &narrow));
    fake_knobs()->stream_delay_us = 1000; /* steps use the scratch while it grows */
    a.kv = (struct kv_view){.geometry = {1, 4, 64, BLOCK_TOKENS, KV_LAYOUT_CUDA, DTYPE_BF16},
                            .blocks_count = 1};
    a.kv.base = ops->alloc(a.b, kv_block_bytes(&a.kv.geometry));
    a.qkv = ops->alloc(a.b, ROWS_MAX * 12 * 64 * sizeof(float));
    a.out = ops->alloc(a.b, ROWS_MAX * 4 * 64 * sizeof(float));
    a.batch = (struct batch){1, zero, &one, 1, zero, TABLE_MAX, zero, 1, 0, false};
    for (int i = 0; i < 6; i++) {
        bool large = i == 3;
        a.shape = large ? (struct attend_shape){4, 4, 64, 0.125f}
                        : (struct attend_shape){1, 1, 16, 0.25f};
        a.kv.geometry.kv_heads = a.shape.kv_heads;
        a.kv.geometry.head_dim = a.shape.head_dim;
        a.batch.watched = large;
        ops->step(a.b, &a.batch, attend, &a);
    }
    bool right = ops->sync(a.b) == OK;
    ops->free(a.b, a.kv.base), ops->free(a.b, a.qkv), ops->free(a.b, a.out);
    ops->close(a.b);
    return right;
}

static void nothing_is_written_before_it_was_read(void **state)
{
    (void)state;
    assert_true(many_steps_are_right());
}

static void recorded_steps_never_use_memory_that_went(void **state)
{
    (void)state;
    assert_true(growing_scratch_is_right());
}

/* As an engine that stops does not wait for its last steps. */
static void closing_waits_for_steps_under_way(void **state)
{
    (void)state;
    struct model *m = model_open();
    fake_knobs()->stream_delay_us = 2000;
    for (uint32_t i = 0; i < 4; i++)
        decode(m, 4, i, i);
    ops->close(m->b);
    assert_cuda(cudaDeviceSynchronize());
    for (uint32_t i = 0; i < 4; i++)
        assert_true(is_right(m, 4, i, i));
    cudaFree(m->table), cudaFree(m->x), cudaFree(m->picked), cudaFreeHost(m->host);
    mem_free(m);
}

static void a_device_that_failed_stays_failed(void **state)
{
    (void)state;
    struct model *m = model_open();
    decode(m, 2, 0, 0);
    uint64_t before = ops->mark(m->b);
    assert_ok(ops->wait(m->b, before, TIME_NEVER));
    fake_knobs()->fail_call = "cudaLaunchKernel";
    fake_knobs()->fail_at = 1;
    fake_knobs()->fail_with = cudaErrorLaunchFailure;
    decode(m, 3, 1, 0);
    uint64_t mark = ops->mark(m->b);
    assert_int_equal(ops->wait(m->b, mark, TIME_NEVER), ERR_DEVICE);
    assert_non_null(strstr(err_text(), "embed: cudaErrorLaunchFailure"));
    uint32_t enqueued = m->enqueued;
    decode(m, 3, 1, 0);
    assert_int_equal(m->enqueued, enqueued);
    assert_int_equal(ops->sync(m->b), ERR_DEVICE);
    assert_non_null(strstr(err_text(), "embed: cudaErrorLaunchFailure"));
    assert_int_equal(ops->read(m->b, m->host, m->x, 4), ERR_DEVICE);
    model_close(m);
}

static void *step_elsewhere(void *ctx)
{
    struct model *m = ctx;
    for (uint32_t salt = 0; salt < 3; salt++) /* tried, recorded, replayed */
        decode(m, 2, salt, 0);
    return ops->wait(m->b, ops->mark(m->b), TIME_NEVER) == OK && is_right(m, 2, 2, 0) ? m : NULL;
}

/* A new thread's device is the first one. */
static void any_thread_steps_on_the_backends_device(void **state)
{
    (void)state;
    pthread_t thread;
    void *done;
    fake_knobs()->devices = 2;
    struct model *m = model_open_on(1);
    assert_int_equal(pthread_create(&thread, NULL, step_elsewhere, m), 0);
    pthread_join(thread, &done);
    assert_ptr_equal(done, m);
    assert_cuda(cudaSetDevice(0)); /* as another backend of this process would */
    assert_ok(ops->write(m->b, m->table, &(float){0}, sizeof(float)));
    assert_non_null(step_elsewhere(m));
    assert_cuda(cudaSetDevice(0));
    model_close(m);
    assert_cuda(cudaSetDevice(0));
}

static void waiting_ends_with_its_time(void **state)
{
    (void)state;
    struct model *m = model_open();
    fake_knobs()->stream_delay_us = 20000;
    decode(m, 2, 0, 0);
    uint64_t mark = ops->mark(m->b);
    assert_int_equal(ops->wait(m->b, mark, 0), ERR_TIMEOUT);
    decode(m, 2, 1, 0); /* asking left nothing behind */
    assert_ok(ops->wait(m->b, mark, TIME_NEVER));
    assert_ok(ops->sync(m->b));
    assert_true(is_right(m, 2, 1, 0));
    model_close(m);
}

/* Every call of opening, recording, stepping and reading KV that can fail does so once. */
static enum err life_with(const char *call, uint32_t n)
{
    struct model *m = mem_new(sizeof *m);
    uint32_t block = 0, kv[2 * BLOCK_TOKENS * 2];
    fake_knobs()->fail_call = call;
    fake_knobs()->fail_at = n;
    fake_knobs()->fail_with = cudaErrorInvalidValue;
    enum err e = ops->open(&m->b, &options);
    if (e == OK) {
        const struct kv_view view = {.base = ops->alloc(m->b, sizeof kv),
                                     .geometry = {1, 1, 2, BLOCK_TOKENS, KV_LAYOUT_CUDA, DTYPE_F32},
                                     .blocks_count = 1};
        m->table = ops->alloc(m->b, VOCAB * DIM * sizeof(float));
        m->x = ops->alloc(m->b, ROWS_MAX * DIM * sizeof *m->x);
        m->picked = ops->alloc(m->b, ROWS_MAX * DIM * sizeof *m->picked);
        m->host = ops->host_alloc(m->b, ROWS_MAX * DIM * sizeof *m->host);
        bool have = view.base && m->table && m->x && m->picked && m->host;
        if (!have) e = ERR_DEVICE;
        for (uint32_t i = 0; have && i < 3; i++)
            decode(m, 2, i, 0);
        if (have) e = ops->wait(m->b, ops->mark(m->b), TIME_NEVER);
        if (e == OK) e = ops->kv_read(m->b, &view, 0, &block, 1, KV_LAYOUT_CPU, kv);
        if (e == OK) e = ops->kv_write(m->b, &view, 0, &block, 1, KV_LAYOUT_CPU, kv);
        enum err last = ops->sync(m->b);
        if (e == OK) e = last;
        fake_knobs()->fail_call = NULL;
        ops->free(m->b, view.base), ops->free(m->b, m->table), ops->free(m->b, m->x);
        ops->free(m->b, m->picked), ops->host_free(m->b, m->host);
    }
    fake_knobs()->fail_call = NULL;
    ops->close(m->b);
    mem_free(m);
    return e;
}

static void every_call_that_fails_is_told(void **state)
{
    (void)state;
    static const struct {
        const char *call;
        uint32_t calls; /* at least so many */
    } cases[] = {
        {"cudaSetDevice", 2},    {"cudaStreamCreateWithFlags", 2}, {"cudaEventCreateWithFlags", 70},
        {"cudaMalloc", 15},      {"cudaMemsetAsync", 15},          {"cudaHostAlloc", 30},
        {"cudaMemcpyAsync", 6},  {"cudaEventRecord", 3},           {"cudaEventSynchronize", 3},
        {"cudaLaunchKernel", 4}, {"cudaStreamBeginCapture", 1},    {"cudaGraphInstantiate", 1},
        {"cudaGraphLaunch", 2},  {"cudaStreamSynchronize", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (uint32_t n = 1; n <= cases[i].calls; n += 1 + cases[i].calls / 8) {
            assert_int_equal(life_with(cases[i].call, n), ERR_DEVICE);
            if (fake_reset() != 0) fail_msg("%s %u leaves something behind", cases[i].call, n);
        }
    assert_ok(life_with("none", 1));
    assert_int_equal(fake_reset(), 0);
}

/* What cublasLt does not take, when asked how or when given a way, is computed by kernels of our own. */
static void products_that_cublaslt_refuses_are_right_all_the_same(void **state)
{
    (void)state;
    enum { N = 24, K = 16, ROWS = 40, NOT_SUPPORTED = 15 };
    static const char *const calls[] = {"none", "cublasLtMatmulAlgoGetHeuristic", "cublasLtMatmul"};
    struct backend_options o = options;
    uint16_t ones[ROWS * K], w[N * K];
    float got[ROWS * N];
    o.dtype = DTYPE_BF16;
    for (int i = 0; i < ROWS * K; i++)
        ones[i] = bf16_from_f32(1);
    for (int i = 0; i < N * K; i++)
        w[i] = bf16_from_f32((float)(i / K));
    for (int kind = 0; kind < 3; kind++) {
        struct backend *b;
        assert_ok(ops->open(&b, &o));
        struct matrix m = {ops->alloc(b, sizeof w), N, K, DTYPE_BF16};
        void *x = ops->alloc(b, sizeof ones), *out = ops->alloc(b, sizeof got);
        assert_ok(ops->write(b, (void *)(uintptr_t)m.packed, w, sizeof w));
        assert_ok(ops->write(b, x, ones, sizeof ones));
        fake_knobs()->fail_call = calls[kind];
        fake_knobs()->fail_at = 1;
        fake_knobs()->fail_with = NOT_SUPPORTED;
        ops->matmul(b, out, ROWS_STREAM, x, &m, NULL, NULL, ROWS);
        assert_ok(ops->read(b, got, out, sizeof got));
        fake_knobs()->fail_call = NULL;
        for (int i = 0; i < ROWS * N; i++)
            assert_true(got[i] == (float)(i % N * K));
        ops->free(b, (void *)(uintptr_t)m.packed), ops->free(b, x), ops->free(b, out);
        ops->close(b);
    }
}

/* A product that was announced is known: no step asks cublasLt how to compute it. */
static void products_that_were_announced_are_not_looked_for_in_a_step(void **state)
{
    (void)state;
    enum { N = 24, K = 16, ROWS = 39 };
    struct backend_options o = options;
    struct backend *b;
    o.dtype = DTYPE_BF16;
    for (int kind = 0; kind < 4; kind++) {
        bool wide = kind % 2, biased = kind / 2;
        enum row_kind out_kind = wide ? ROWS_STREAM : ROWS_PRODUCT;
        assert_ok(ops->open(&b, &o));
        struct matrix w = {ops->alloc(b, N * K * sizeof(uint16_t)), N, K, DTYPE_BF16};
        void *x = ops->alloc(b, ROWS * K * sizeof(uint16_t));
        void *out = ops->alloc(b, ROWS * N * sizeof(float));
        float *bias = ops->alloc(b, N * sizeof(float));
        ops->prepare(b, &w, out_kind, biased, ROWS_MAX);
        assert_ok(ops->sync(b));
        fake_knobs()->fail_call = "cublasLtMatmulAlgoGetHeuristic";
        fake_knobs()->fail_at = 1;
        fake_knobs()->fail_with = 14; /* CUBLAS_STATUS_INTERNAL_ERROR */
        ops->matmul(b, out, out_kind, x, &w, biased ? bias : NULL, wide ? out : NULL, ROWS);
        assert_ok(ops->sync(b));
        fake_knobs()->fail_call = NULL;
        ops->free(b, (void *)(uintptr_t)w.packed), ops->free(b, x);
        ops->free(b, out), ops->free(b, bias);
        ops->close(b);
    }
}

/* Who is told of a failure lets go of the blocks and the slot: nothing may touch them after that. */
static void kv_that_fails_to_move_is_not_moved_later(void **state)
{
    (void)state;
    enum { FLOATS = 2 * BLOCK_TOKENS * 2 };
    const struct {
        bool slot;
        const char *call;
        uint32_t at;
    } cases[] = {{true, "cudaMemcpyAsync", 2}, {false, "cudaStreamSynchronize", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct backend *b;
        uint32_t block = 0;
        uint64_t hash;
        float ones[FLOATS], then[FLOATS], later[FLOATS];
        for (uint32_t k = 0; k < FLOATS; k++)
            ones[k] = 1;
        assert_ok(ops->open(&b, &options));
        const struct kv_view view = {.base = ops->alloc(b, sizeof ones),
                                     .geometry = {1, 1, 2, BLOCK_TOKENS, KV_LAYOUT_CUDA, DTYPE_F32},
                                     .blocks_count = 1};
        void *slot = ops->alloc(b, sizeof ones);
        assert_ok(ops->write(b, slot, ones, sizeof ones));
        fake_knobs()->stream_delay_us = 10000;
        fake_knobs()->fail_call = cases[i].call;
        fake_knobs()->fail_at = cases[i].at;
        fake_knobs()->fail_with = cudaErrorInvalidValue;
        enum err e = cases[i].slot
                         ? ops->kv_scatter(b, &view, 0, &block, 1, KV_LAYOUT_CUDA, slot, &hash)
                         : ops->kv_write(b, &view, 0, &block, 1, KV_LAYOUT_CUDA, ones);
        assert_int_equal(e, ERR_DEVICE);
        assert_cuda(cudaMemcpy(then, view.base, sizeof then, cudaMemcpyDeviceToHost));
        assert_cuda(cudaDeviceSynchronize());
        assert_cuda(cudaMemcpy(later, view.base, sizeof later, cudaMemcpyDeviceToHost));
        assert_memory_equal(then, later, sizeof then);
        ops->free(b, view.base), ops->free(b, slot);
        ops->close(b);
        assert_int_equal(fake_reset(), 0);
    }
}

static void options_that_cannot_be_are_refused(void **state)
{
    (void)state;
    struct backend_options o = options;
    struct backend *b;
    o.dtype = DTYPE_F16;
    assert_int_equal(ops->open(&b, &o), ERR_INVALID);
    o = options;
    o.limits.rows_max = 0;
    assert_int_equal(ops->open(&b, &o), ERR_INVALID);
    o = options;
    o.device_index = 1;
    assert_int_equal(ops->open(&b, &o), ERR_UNSUPPORTED);
    assert_null(b);
}

static void a_devices_place_on_the_bus_is_told_before_it_is_opened(void **state)
{
    char text[16];
    (void)state;
    fake_knobs()->devices = 3;
    fake_knobs()->pci = "0000:19:00.0+0000:CA:00.0";
    assert_ok(ops->pci_address(0, text, sizeof text));
    assert_string_equal(text, "0000:19:00.0");
    assert_ok(ops->pci_address(1, text, sizeof text));
    assert_string_equal(text, "0000:CA:00.0");
    assert_ok(ops->pci_address(2, text, sizeof text));
    assert_int_equal(ops->pci_address(3, text, sizeof text), ERR_DEVICE);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, reset, check_nothing_is_left)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_decode_step_is_recorded_once_for_its_bucket),
        TEST(steps_that_were_recorded_at_the_start_are_only_replayed),
        TEST(a_watched_step_is_not_recorded),
        TEST(nothing_is_written_before_it_was_read),
        TEST(recorded_steps_never_use_memory_that_went),
        TEST(closing_waits_for_steps_under_way),
        TEST(products_that_cublaslt_refuses_are_right_all_the_same),
        TEST(products_that_were_announced_are_not_looked_for_in_a_step),
        cmocka_unit_test_setup_teardown(a_device_that_failed_stays_failed, reset, reset),
        TEST(any_thread_steps_on_the_backends_device),
        TEST(waiting_ends_with_its_time),
        TEST(every_call_that_fails_is_told),
        TEST(kv_that_fails_to_move_is_not_moved_later),
        TEST(options_that_cannot_be_are_refused),
        TEST(a_devices_place_on_the_bus_is_told_before_it_is_opened),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
