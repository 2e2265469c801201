/* Weights on their way to the device: what arrives is what the file has, in the wanted type, whatever the
 * sizes and threads; and on the stand-in runtime (TANDEM_EMULATED) each call that can fail is made to. */
#include "kernels/cuda/upload.h"

#include <pthread.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "kernels/cuda/check.h"
#include "kernels/numbers.h"
#include "tests/unit/testing.h"

#ifdef TANDEM_EMULATED
#include "tests/fake/cuda/fake.h"
/* How many things a test left behind; the next one begins anew. */
static uint32_t begin_anew(void)
{
    return fake_reset();
}
static void delay_streams(uint32_t us)
{
    fake_knobs()->stream_delay_us = us;
}
#else
#include <cuda_runtime_api.h>
static uint32_t begin_anew(void)
{
    return 0;
}
static void delay_streams(uint32_t us)
{
    (void)us;
}
#endif

enum { COUNT = 5000, BUFFER_BYTES = 1024 };

static unsigned char source[COUNT * 4 + 1];

static int reset(void **state)
{
    (void)state;
    begin_anew();
    for (size_t i = 0; i < sizeof source; i++)
        source[i] = (unsigned char)(i * 2654435761u >> 13);
    return 0;
}

static int check_nothing_is_left(void **state)
{
    (void)state;
    return begin_anew() == 0 ? 0 : -1;
}

static float element(const unsigned char *from, enum dtype dtype, size_t i)
{
    uint32_t bits;
    uint16_t half;
    if (dtype == DTYPE_F32) {
        memcpy(&bits, from + 4 * i, 4);
        return f32_from_bits(bits);
    }
    memcpy(&half, from + 2 * i, 2);
    return dtype == DTYPE_BF16 ? f32_from_bf16(half) : f32_from_f16(half);
}

static void check_arrived(const void *device, enum dtype dtype, const unsigned char *from,
                          enum dtype from_dtype, size_t count)
{
    static unsigned char got[COUNT * 4];
    assert_int_equal(cudaMemcpy(got, device, count * dtype_bytes(dtype), cudaMemcpyDeviceToHost),
                     cudaSuccess);
    if (dtype == from_dtype) {
        assert_memory_equal(got, from, count * dtype_bytes(dtype));
        return;
    }
    for (size_t i = 0; i < count; i++) {
        float wanted = element(from, from_dtype, i);
        uint32_t bits = dtype == DTYPE_F32 ? f32_bits(wanted) : bf16_from_f32(wanted), found = 0;
        memcpy(&found, got + i * dtype_bytes(dtype), dtype_bytes(dtype));
        assert_int_equal(found, bits);
    }
}

static void every_element_arrives_in_the_wanted_type(void **state)
{
    (void)state;
    static const struct {
        enum dtype from, to;
    } types[] = {{DTYPE_F32, DTYPE_F32},  {DTYPE_BF16, DTYPE_BF16}, {DTYPE_F32, DTYPE_BF16},
                 {DTYPE_BF16, DTYPE_F32}, {DTYPE_F16, DTYPE_F32},   {DTYPE_F16, DTYPE_BF16}};
    static const size_t counts[] = {0, 1, 255, 256, 257, 512, 513, COUNT};
    for (uint32_t threads = 1; threads <= 3; threads += 2) {
        const struct upload_options o = {.threads = threads, .buffer_bytes = BUFFER_BYTES};
        struct upload *u;
        void *device;
        assert_ok(upload_new(&u, &o));
        assert_ok(cuda_take(&device, COUNT * 4, "a tensor"));
        for (size_t t = 0; t < sizeof types / sizeof types[0]; t++)
            for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
                const unsigned char *from = source + i % 2; /* unaligned, too */
                assert_ok(upload_add(u, device, types[t].to, from, types[t].from, counts[i]));
                assert_ok(upload_finish(u));
                check_arrived(device, types[t].to, from, types[t].from, counts[i]);
            }
        upload_free(u);
        cudaFree(device);
    }
}

static void a_buffer_is_not_written_before_its_copy_is_done(void **state)
{
    (void)state;
    const struct upload_options o = {.threads = 2, .buffer_bytes = 64};
    struct upload *u;
    void *device;
    delay_streams(200);
    assert_ok(upload_new(&u, &o));
    assert_ok(cuda_take(&device, COUNT, "a tensor"));
    assert_ok(upload_add(u, device, DTYPE_BF16, source, DTYPE_BF16, 1000));
    assert_ok(upload_finish(u));
    check_arrived(device, DTYPE_BF16, source, DTYPE_BF16, 1000);
    upload_free(u);
    cudaFree(device);
}

static void what_is_given_up_ends_before_its_buffers_go(void **state)
{
    (void)state;
    const struct upload_options o = {.threads = 2, .buffer_bytes = BUFFER_BYTES};
    struct upload *u;
    void *device;
    delay_streams(20000);
    assert_ok(upload_new(&u, &o));
    assert_ok(cuda_take(&device, COUNT, "a tensor"));
    assert_ok(upload_add(u, device, DTYPE_BF16, source, DTYPE_BF16, 200));
    upload_free(u);
    check_arrived(device, DTYPE_BF16, source, DTYPE_BF16, 200);
    cudaFree(device);
}

/* A thread that records a graph from one barrier to the other. */
struct recording {
    pthread_barrier_t begun, done;
    cudaError_t e;
};

static void *record_meanwhile(void *arg)
{
    struct recording *r = arg;
    cudaStream_t stream;
    cudaGraph_t graph = NULL;
    r->e = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (r->e == cudaSuccess)
        r->e = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    pthread_barrier_wait(&r->begun);
    pthread_barrier_wait(&r->done);
    if (r->e == cudaSuccess) r->e = cudaStreamEndCapture(stream, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    return NULL;
}

static void memory_can_be_taken_while_another_thread_records(void **state)
{
    (void)state;
    struct recording r;
    pthread_t thread;
    void *device;
    assert_int_equal(pthread_barrier_init(&r.begun, NULL, 2), 0);
    assert_int_equal(pthread_barrier_init(&r.done, NULL, 2), 0);
    assert_int_equal(pthread_create(&thread, NULL, record_meanwhile, &r), 0);
    pthread_barrier_wait(&r.begun);
    enum err e = cuda_take(&device, COUNT, "a tensor");
    pthread_barrier_wait(&r.done);
    pthread_join(thread, NULL);
    assert_ok(e);
    assert_int_equal(r.e, cudaSuccess);
    cudaFree(device);
    pthread_barrier_destroy(&r.begun);
    pthread_barrier_destroy(&r.done);
}

enum { TOLD_MAX = 16 };

struct told {
    uint32_t count;
    uint64_t bytes[TOLD_MAX], elapsed_ns[TOLD_MAX];
};

static void note(void *ctx, uint64_t bytes_done, uint64_t elapsed_ns)
{
    struct told *t = ctx;
    assert_true(t->count < TOLD_MAX);
    t->bytes[t->count] = bytes_done;
    t->elapsed_ns[t->count++] = elapsed_ns;
}

/* What is told of five tensors on their way. */
static void upload_five(uint64_t progress_ns, struct told *told)
{
    static const size_t counts[] = {COUNT, 10, 1, 3000, 77};
    const struct upload_options o = {.threads = 2,
                                     .buffer_bytes = BUFFER_BYTES,
                                     .progress = note,
                                     .progress_ns = progress_ns,
                                     .ctx = told};
    struct upload *u;
    void *device;
    *told = (struct told){0};
    assert_ok(upload_new(&u, &o));
    assert_ok(cuda_take(&device, COUNT * 4, "a tensor"));
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        assert_ok(upload_add(u, device, i ? DTYPE_BF16 : DTYPE_F32, source, DTYPE_BF16, counts[i]));
    assert_ok(upload_finish(u));
    upload_free(u);
    cudaFree(device);
}

static void progress_grows_to_all_bytes(void **state)
{
    static const uint64_t wanted[] = {20000, 20020, 20022, 26022, 26176};
    struct told told;
    (void)state;
    upload_five(0, &told); /* each tensor */
    assert_int_equal(told.count, 5);
    for (uint32_t i = 0; i < told.count; i++) {
        assert_int_equal(told.bytes[i], wanted[i]);
        if (i > 0) assert_true(told.elapsed_ns[i] >= told.elapsed_ns[i - 1]);
    }
    upload_five(TIME_NEVER, &told); /* the end alone */
    assert_int_equal(told.count, 1);
    assert_int_equal(told.bytes[0], wanted[4]);
}

#ifdef TANDEM_EMULATED
/* The error of an upload whose n-th call of `call` fails; OK when there is no n-th call. */
static enum err upload_with(const char *call, uint32_t n, void *device)
{
    const struct upload_options o = {.threads = 2, .buffer_bytes = BUFFER_BYTES};
    struct upload *u = NULL;
    fake_knobs()->fail_call = call;
    fake_knobs()->fail_at = n;
    fake_knobs()->fail_with = cudaErrorInvalidValue;
    enum err e = upload_new(&u, &o);
    if (e == OK) e = upload_add(u, device, DTYPE_BF16, source, DTYPE_BF16, COUNT);
    if (e == OK) e = upload_add(u, device, DTYPE_BF16, source, DTYPE_BF16, 1);
    enum err last = u ? upload_finish(u) : e;
    if (e != OK) assert_int_equal(last, e); /* it is said again */
    fake_knobs()->fail_call = NULL;
    upload_free(u);
    return last;
}

static void every_call_that_fails_is_told(void **state)
{
    (void)state;
    static const char *const calls[] = {"cudaStreamCreateWithFlags", "cudaHostAlloc",
                                        "cudaEventCreateWithFlags",  "cudaSetDevice",
                                        "cudaEventSynchronize",      "cudaMemcpyAsync",
                                        "cudaEventRecord",           "cudaStreamSynchronize"};
    void *device;
    assert_ok(cuda_take(&device, COUNT * 2, "a tensor"));
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
        for (uint32_t n = 1; n <= 2; n++) {
            assert_int_equal(upload_with(calls[i], n, device), ERR_DEVICE);
            assert_non_null(strstr(err_text(), "cudaErrorInvalidValue"));
        }
    for (uint32_t n = 1; n < 100; n++) {
        struct upload *u;
        mem_fail_at(n);
        enum err e =
            upload_new(&u, &(struct upload_options){.threads = 2, .buffer_bytes = BUFFER_BYTES});
        mem_fail_at(0);
        upload_free(u);
        if (e == OK) break;
        assert_int_equal(e, ERR_MEMORY);
    }
    cudaFree(device);
}

static void too_little_device_memory_is_told_with_the_sums(void **state)
{
    (void)state;
    void *device;
    fake_knobs()->device_bytes = 64 << 20;
    assert_int_equal(cuda_take(&device, 128 << 20, "the KV pool"), ERR_MEMORY);
    assert_null(device);
    assert_string_equal(err_text(),
                        "cuda: the KV pool needs 128.0 MiB of device memory; 64.0 of 64.0 MiB are "
                        "free");
}

static void a_device_that_cannot_be_used_is_told_apart(void **state)
{
    (void)state;
    static const struct {
        int fail_with;
        uint32_t index;
        const char *says;
    } cases[] = {{cudaErrorInsufficientDriver, 0, "driver is missing"},
                 {cudaErrorNoDevice, 0, "no GPU"},
                 {cudaErrorUnknown, 0, "cudaErrorUnknown"},
                 {0, 1, "there is no device 1: this process sees 1"}};
    struct cuda_device_facts facts;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake_reset();
        if (cases[i].fail_with) {
            fake_knobs()->fail_call = "cudaGetDeviceCount";
            fake_knobs()->fail_at = 1;
            fake_knobs()->fail_with = cases[i].fail_with;
        }
        assert_int_equal(cuda_device_open(cases[i].index, &facts), ERR_UNSUPPORTED);
        assert_non_null(strstr(err_text(), cases[i].says));
    }
    fake_reset();
    assert_ok(cuda_device_open(0, &facts));
    assert_true(facts.major >= 8 && facts.multiprocessors > 0);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_element_arrives_in_the_wanted_type, reset,
                                        check_nothing_is_left),
        cmocka_unit_test_setup_teardown(a_buffer_is_not_written_before_its_copy_is_done, reset,
                                        check_nothing_is_left),
        cmocka_unit_test_setup_teardown(what_is_given_up_ends_before_its_buffers_go, reset,
                                        check_nothing_is_left),
        cmocka_unit_test_setup_teardown(memory_can_be_taken_while_another_thread_records, reset,
                                        check_nothing_is_left),
        cmocka_unit_test_setup_teardown(progress_grows_to_all_bytes, reset, check_nothing_is_left),
#ifdef TANDEM_EMULATED
        cmocka_unit_test_setup_teardown(every_call_that_fails_is_told, reset,
                                        check_nothing_is_left),
        cmocka_unit_test_setup_teardown(too_little_device_memory_is_told_with_the_sums, reset,
                                        check_nothing_is_left),
        cmocka_unit_test_setup_teardown(a_device_that_cannot_be_used_is_told_apart, reset,
                                        check_nothing_is_left),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
