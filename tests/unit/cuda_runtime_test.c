/* The stand-in CUDA runtime: what it promises to the tests of the CUDA backend, and that it finds the
 * mistakes it is there to find. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/cuda_rig.h"

/* --- devices --- */

static void a_device_says_what_it_is(void **state)
{
    struct cudaDeviceProp p;
    int count = 0, major = 0, blocks = 0, version = 0;
    char bus[16];
    (void)state;
    assert_cuda(cudaGetDeviceCount(&count));
    assert_int_equal(count, 1);
    assert_cuda(cudaGetDeviceProperties(&p, 0));
    assert_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    assert_int_equal(p.major, major);
    assert_cuda(cudaDeviceGetPCIBusId(bus, sizeof bus, 0));
    assert_string_equal(bus, "0000:01:00.0");
    assert_cuda(cudaRuntimeGetVersion(&version));
    assert_int_equal(version, CUDART_VERSION);
    assert_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, &p, 256, 100 << 10));
    assert_int_equal(blocks, 2);
    assert_int_equal(cudaSetDevice(1), cudaErrorInvalidDevice);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidDevice);
    assert_cuda(cudaGetLastError());
}

static void devices_have_memory_of_their_own(void **state)
{
    size_t free_bytes, total_bytes;
    void *p;
    (void)state;
    fake_knobs()->devices = 2;
    fake_knobs()->device_bytes = 1 << 20;
    assert_cuda(cudaSetDevice(1));
    assert_cuda(cudaMalloc(&p, 1 << 20));
    assert_cuda(cudaMemGetInfo(&free_bytes, &total_bytes));
    assert_int_equal(free_bytes, 0);
    assert_cuda(cudaSetDevice(0));
    assert_cuda(cudaMemGetInfo(&free_bytes, &total_bytes));
    assert_int_equal(free_bytes, 1 << 20);
    assert_cuda(cudaFree(p));
}

/* --- memory --- */

static void memory_that_the_device_has_not_is_refused(void **state)
{
    size_t free_bytes, total_bytes;
    void *p = new_memory(600 << 10), *q = &p;
    (void)state;
    fake_knobs()->device_bytes = 1 << 20;
    assert_int_equal(cudaMalloc(&q, 600 << 10), cudaErrorMemoryAllocation);
    assert_null(q);
    assert_int_equal(cudaPeekAtLastError(), cudaErrorMemoryAllocation);
    assert_cuda(cudaFree(p));
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation); /* older, and not sticky */
    assert_int_equal(cudaMalloc(&q, SIZE_MAX), cudaErrorMemoryAllocation);
    assert_cuda(cudaMemGetInfo(&free_bytes, &total_bytes));
    assert_int_equal(free_bytes, total_bytes);
    p = new_memory(1 << 20);
    assert_cuda(cudaFree(p));
}

static void fresh_memory_is_poisoned(void **state)
{
    static const size_t sizes[] = {1, 300, 4096, 100000, (8u << 20) + 5};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char *p = new_memory(sizes[i]);
        assert_int_equal((uintptr_t)p % 256, 0);
        for (size_t at = 0; at < sizes[i]; at += i < 4 ? 1 : 999)
            assert_int_equal(p[at], 0xff);
        memset(p, 1, sizes[i]);
        assert_cuda(cudaFree(p));
    }
}

static void a_pointer_says_what_memory_it_is_of(void **state)
{
    struct cudaPointerAttributes a;
    char plain[64], *device = new_memory(100), *registered = aligned_alloc(4096, 4096);
    void *pinned;
    (void)state;
    assert_cuda(cudaHostAlloc(&pinned, 100, cudaHostAllocPortable));
    assert_cuda(cudaHostRegister(registered, 4096, cudaHostRegisterDefault));
    assert_int_equal(cudaHostRegister(registered + 8, 8, 0), cudaErrorHostMemoryAlreadyRegistered);
    assert_cuda(cudaPointerGetAttributes(&a, device + 99));
    assert_int_equal(a.type, cudaMemoryTypeDevice);
    assert_cuda(cudaPointerGetAttributes(&a, pinned));
    assert_int_equal(a.type, cudaMemoryTypeHost);
    assert_cuda(cudaPointerGetAttributes(&a, registered + 4095));
    assert_int_equal(a.type, cudaMemoryTypeHost);
    assert_cuda(cudaHostUnregister(registered));
    assert_int_equal(cudaHostUnregister(registered), cudaErrorHostMemoryNotRegistered);
    assert_cuda(cudaPointerGetAttributes(&a, registered));
    assert_int_equal(a.type, cudaMemoryTypeUnregistered);
    assert_cuda(cudaPointerGetAttributes(&a, plain));
    assert_int_equal(a.type, cudaMemoryTypeUnregistered);
    assert_cuda(cudaFree(device));
    assert_cuda(cudaFreeHost(pinned));
    free(registered);
}

static void copies_keep_to_the_memory_they_name(void **state)
{
    char host[64] = {0}, *device = new_memory(64);
    cudaStream_t s = new_stream();
    (void)state;
    assert_cuda(cudaMemcpy(device, host, 64, cudaMemcpyHostToDevice));
    assert_int_equal(cudaMemcpy(device, host, 65, cudaMemcpyDefault), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(host, device, 1, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpyAsync(device + 60, host, 5, cudaMemcpyHostToDevice, s),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpyAsync(device, host, 5, cudaMemcpyHostToDevice, NULL),
                     cudaErrorInvalidResourceHandle);
    assert_int_equal(cudaMemsetAsync(host, 0, 5, s), cudaErrorInvalidValue);
    assert_cuda(cudaStreamDestroy(s));
    assert_cuda(cudaFree(device));
}

/* --- streams and events --- */

static void a_stream_works_in_order(void **state)
{
    uint64_t number = 0;
    cudaStream_t s = new_stream();
    (void)state;
    for (uint64_t digit = 1; digit < 8; digit++)
        launch_step(s, &number, digit);
    assert_cuda(cudaStreamSynchronize(s));
    assert_int_equal(number, 1234567);
    assert_cuda(cudaStreamQuery(s));
    assert_cuda(cudaStreamDestroy(s));
}

static void a_stream_says_that_it_is_not_done(void **state)
{
    struct door door = DOOR;
    cudaStream_t s = new_stream();
    cudaEvent_t v = new_event();
    (void)state;
    assert_cuda(cudaEventQuery(v)); /* never recorded */
    put_door(s, &door);
    assert_cuda(cudaEventRecord(v, s));
    assert_int_equal(cudaStreamQuery(s), cudaErrorNotReady);
    assert_int_equal(cudaEventQuery(v), cudaErrorNotReady);
    open_door(&door);
    assert_cuda(cudaEventSynchronize(v));
    assert_cuda(cudaEventQuery(v));
    assert_cuda(cudaDeviceSynchronize());
    assert_cuda(cudaStreamQuery(s));
    assert_cuda(cudaEventDestroy(v));
    assert_cuda(cudaStreamDestroy(s));
}

static void a_stream_waits_for_the_record_before_the_wait(void **state)
{
    struct door door = DOOR;
    uint64_t number = 0;
    cudaStream_t a = new_stream(), b = new_stream();
    cudaEvent_t v = new_event();
    (void)state;
    put_door(a, &door);
    launch_step(a, &number, 1);
    assert_cuda(cudaEventRecord(v, a));
    assert_cuda(cudaStreamWaitEvent(b, v, 0));
    launch_step(b, &number, 2);
    assert_cuda(cudaEventRecord(v, b)); /* again, elsewhere: b's wait stays with the first */
    assert_int_equal(cudaStreamQuery(b), cudaErrorNotReady);
    open_door(&door);
    assert_cuda(cudaEventSynchronize(v));
    assert_int_equal(number, 12);
    assert_cuda(cudaEventDestroy(v));
    assert_cuda(cudaStreamDestroy(a));
    assert_cuda(cudaStreamDestroy(b));
}

struct word {
    uint32_t written, seen;
};

/* Atomic, so that no sanitizer finds what the test is there to find. */
static void write_word(void *arg)
{
    __atomic_store_n(&((struct word *)arg)->written, 1, __ATOMIC_RELAXED);
}

static void read_word(void *arg)
{
    struct word *w = arg;
    w->seen = __atomic_load_n(&w->written, __ATOMIC_RELAXED);
}

/* What a stream reads that another one writes late. */
static uint32_t read_late_word(cudaEvent_t v, bool waits)
{
    struct word word = {0}, other = {0};
    cudaStream_t a = new_stream(), b = new_stream();
    fake_enqueue(a, "first_kernel", write_word, NULL, &other);
    fake_enqueue(a, "write_kernel", write_word, NULL, &word);
    assert_cuda(cudaEventRecord(v, a));
    if (waits) assert_cuda(cudaStreamWaitEvent(b, v, 0));
    fake_enqueue(b, "read_kernel", read_word, NULL, &word);
    assert_cuda(cudaDeviceSynchronize());
    assert_cuda(cudaStreamDestroy(a));
    assert_cuda(cudaStreamDestroy(b));
    return word.seen;
}

static void a_forgotten_wait_shows_when_streams_are_late(void **state)
{
    cudaEvent_t v = new_event();
    int tries = 0;
    (void)state;
    fake_knobs()->stream_delay_us = 5000;
    while (read_late_word(v, false) == 1) /* a busy machine may be later still */
        assert_true(++tries < 100);
    for (int i = 0; i < 5; i++)
        assert_int_equal(read_late_word(v, true), 1);
    assert_cuda(cudaEventDestroy(v));
}

static void events_tell_the_time_between_them(void **state)
{
    cudaStream_t s = new_stream();
    cudaEvent_t from, to, timeless = new_event();
    uint64_t number = 0;
    float ms = -1;
    (void)state;
    assert_cuda(cudaEventCreate(&from));
    assert_cuda(cudaEventCreate(&to));
    assert_int_equal(cudaEventElapsedTime(&ms, from, to), cudaErrorInvalidResourceHandle);
    assert_cuda(cudaEventRecord(from, s));
    launch_step(s, &number, 1);
    assert_cuda(cudaEventRecord(to, s));
    assert_cuda(cudaEventRecord(timeless, s));
    assert_cuda(cudaEventSynchronize(timeless));
    assert_cuda(cudaEventElapsedTime(&ms, from, to));
    assert_true(ms >= 0);
    assert_int_equal(cudaEventElapsedTime(&ms, from, timeless), cudaErrorInvalidResourceHandle);
    assert_cuda(cudaEventDestroy(from));
    assert_cuda(cudaEventDestroy(to));
    assert_cuda(cudaEventDestroy(timeless));
    assert_cuda(cudaStreamDestroy(s));
}

static void pinned_memory_is_read_when_the_stream_comes_to_it(void **state)
{
    struct door door = DOOR;
    uint32_t *device = new_memory(2 * sizeof *device), pageable = 1, *pinned, seen[2];
    cudaStream_t s = new_stream();
    (void)state;
    assert_cuda(cudaMallocHost((void **)&pinned, sizeof *pinned));
    *pinned = 1;
    put_door(s, &door);
    assert_cuda(cudaMemcpyAsync(device, pinned, 4, cudaMemcpyHostToDevice, s));
    assert_cuda(cudaMemcpyAsync(device + 1, &pageable, 4, cudaMemcpyHostToDevice, s));
    *pinned = pageable = 2; /* too early for the one, not for the other */
    open_door(&door);
    assert_cuda(cudaMemcpyAsync(seen, device, 8, cudaMemcpyDeviceToHost, s));
    assert_int_equal(seen[0], 2);
    assert_int_equal(seen[1], 1);
    assert_cuda(cudaStreamDestroy(s));
    assert_cuda(cudaFreeHost(pinned));
    assert_cuda(cudaFree(device));
}

static void a_destroyed_stream_ends_its_work(void **state)
{
    struct door door = DOOR;
    uint64_t number = 0;
    cudaStream_t s = new_stream();
    cudaEvent_t v = new_event();
    (void)state;
    put_door(s, &door);
    launch_step(s, &number, 4);
    assert_cuda(cudaEventRecord(v, s));
    assert_cuda(cudaStreamDestroy(s));
    open_door(&door);
    assert_cuda(cudaEventSynchronize(v));
    assert_int_equal(number, 4);
    assert_cuda(cudaEventDestroy(v));
}

static void work_belongs_to_the_stream_s_device(void **state)
{
    uint64_t number = 0;
    (void)state;
    fake_knobs()->devices = 2;
    cudaStream_t s = new_stream();
    assert_cuda(cudaSetDevice(1));
    launch_step(s, &number, 1);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidResourceHandle);
    cudaEvent_t v = new_event();
    assert_int_equal(cudaEventRecord(v, s), cudaErrorInvalidResourceHandle);
    assert_cuda(cudaEventDestroy(v));
    assert_cuda(cudaStreamDestroy(s));
    assert_int_equal(number, 0);
}

static void call_runtime(void *arg)
{
    *(cudaError_t *)arg = cudaDeviceSynchronize();
}

static void a_host_function_may_call_nothing(void **state)
{
    cudaError_t seen = cudaSuccess;
    cudaStream_t s = new_stream();
    (void)state;
    assert_cuda(cudaLaunchHostFunc(s, call_runtime, &seen));
    assert_cuda(cudaStreamSynchronize(s));
    assert_int_equal(seen, cudaErrorNotPermitted);
    assert_cuda(cudaStreamDestroy(s));
}

/* --- faults and knobs --- */

static void the_nth_call_fails_once(void **state)
{
    void *p[3] = {NULL};
    (void)state;
    fake_knobs()->fail_call = "cudaMalloc";
    fake_knobs()->fail_at = 2;
    fake_knobs()->fail_with = cudaErrorMemoryAllocation;
    assert_cuda(cudaMalloc(&p[0], 8));
    assert_int_equal(cudaMalloc(&p[1], 8), cudaErrorMemoryAllocation);
    assert_cuda(cudaMalloc(&p[2], 8));
    assert_cuda(cudaFree(p[0]));
    assert_cuda(cudaFree(p[2]));
}

static void a_sticky_error_stays(void **state)
{
    uint64_t number = 0;
    cudaStream_t s = new_stream();
    (void)state;
    fake_knobs()->fail_call = "step_kernel";
    fake_knobs()->fail_at = 2;
    launch_step(s, &number, 1);
    assert_cuda(cudaPeekAtLastError());
    assert_cuda(cudaStreamSynchronize(s));
    launch_step(s, &number, 2);
    assert_int_equal(cudaPeekAtLastError(), cudaErrorUnknown);
    launch_step(s, &number, 3);
    assert_int_equal(cudaGetLastError(), cudaErrorUnknown);
    assert_int_equal(cudaGetLastError(), cudaErrorUnknown);
    assert_int_equal(cudaStreamSynchronize(s), cudaErrorUnknown);
    assert_int_equal(cudaStreamDestroy(s), cudaErrorUnknown);
    assert_int_equal(fake_reset(), 1);
    assert_int_equal(number, 1);
    assert_cuda(cudaDeviceSynchronize());
}

static void find_fault(void *arg)
{
    (void)arg;
    fake_fault("a kernel found a fault");
}

static void a_fault_makes_the_device_sick_and_ends_no_wait(void **state)
{
    uint64_t number = 0;
    cudaStream_t s = new_stream();
    (void)state;
    fake_enqueue(s, "faulty_kernel", find_fault, NULL, NULL);
    launch_step(s, &number, 1);
    assert_int_equal(cudaStreamSynchronize(s), cudaErrorIllegalAddress);
    assert_int_equal(cudaGetLastError(), cudaErrorIllegalAddress);
    assert_int_equal(number, 0);
    fake_reset();
}

static void free_twice(char *p)
{
    cudaFree(p);
    cudaFree(p);
}
static void free_inside(char *p)
{
    cudaFree(p + 256);
}
static void free_foreign(char *p)
{
    cudaFree(&p);
}
static void write_into_the_rim(char *p)
{
    p[1000] = 1;
    cudaFree(p);
}
static void copy_from_freed(char *p)
{
    char host[8];
    cudaFree(p);
    cudaMemcpy(host, p, 8, cudaMemcpyDeviceToHost);
}
static void free_before_the_stream_comes(char *p)
{
    struct door door = DOOR;
    cudaStream_t s = new_stream();
    put_door(s, &door);
    cudaMemsetAsync(p, 0, 8, s);
    cudaFree(p);
    open_door(&door);
    cudaStreamSynchronize(s);
}
static void use_destroyed_stream(char *p)
{
    cudaStream_t s = new_stream();
    cudaStreamDestroy(s);
    cudaMemsetAsync(p, 0, 8, s);
}
static void record_destroyed_event(char *p)
{
    cudaStream_t s = new_stream();
    cudaEvent_t v = new_event();
    (void)p;
    cudaEventDestroy(v);
    cudaEventRecord(v, s);
}

static void misuse_is_a_fault(void **state)
{
    static void (*const misuse[])(char *p) = {
        free_twice,           free_inside,
        free_foreign,         write_into_the_rim,
        copy_from_freed,      free_before_the_stream_comes,
        use_destroyed_stream, record_destroyed_event,
    };
    (void)state;
    for (size_t i = 0; i < sizeof misuse / sizeof misuse[0]; i++) {
        misuse[i](new_memory(1000));
        assert_int_equal(cudaGetLastError(), cudaErrorIllegalAddress);
        fake_reset();
        assert_cuda(cudaGetLastError());
    }
}

/* --- guard pages: the process dies of them, and says of what --- */

static void touch(void *arg)
{
    *(volatile char *)arg = 1;
}

/* What a child says that has a kernel touch p + at. */
static void watch_death(ptrdiff_t at, bool freed, char *said, size_t said_size)
{
    int pipe_fd[2], status;
    assert_int_equal(pipe(pipe_fd), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char *p;
        cudaStream_t s;
        dup2(pipe_fd[1], STDERR_FILENO);
        signal(SIGSEGV, SIG_DFL); /* cmocka's own handler is not to be the older one */
        if (cudaMalloc((void **)&p, 1000) || cudaStreamCreate(&s)) _exit(0);
        if (freed) cudaFree(p);
        fake_enqueue(s, "touch_kernel", touch, NULL, p + at);
        cudaStreamSynchronize(s);
        _exit(0);
    }
    close(pipe_fd[1]);
    size_t used = 0;
    for (ssize_t n; (n = read(pipe_fd[0], said + used, said_size - 1 - used)) > 0;)
        used += (size_t)n;
    said[used] = '\0';
    close(pipe_fd[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void a_touch_beyond_memory_is_told(void **state)
{
    static const struct {
        ptrdiff_t at;
        bool freed;
        const char *text;
    } rows[] = {
        {1024, false, "touch_kernel touched"},
        {1024, false, "24 bytes behind the end of device memory (1000 bytes"},
        {-(4096 - 1024) - 1, false, "bytes before device memory (1000 bytes"},
        {8, true, "in device memory that was freed (1000 bytes"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        static char said[8192];
        watch_death(rows[i].at, rows[i].freed, said, sizeof said);
        if (!strstr(said, rows[i].text)) fail_msg("wanted \"%s\", said: %s", rows[i].text, said);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_device_says_what_it_is),
        TEST(devices_have_memory_of_their_own),
        TEST(memory_that_the_device_has_not_is_refused),
        TEST(fresh_memory_is_poisoned),
        TEST(a_pointer_says_what_memory_it_is_of),
        TEST(copies_keep_to_the_memory_they_name),
        TEST(a_stream_works_in_order),
        TEST(a_stream_says_that_it_is_not_done),
        TEST(a_stream_waits_for_the_record_before_the_wait),
        TEST(a_forgotten_wait_shows_when_streams_are_late),
        TEST(events_tell_the_time_between_them),
        TEST(pinned_memory_is_read_when_the_stream_comes_to_it),
        TEST(a_destroyed_stream_ends_its_work),
        TEST(work_belongs_to_the_stream_s_device),
        TEST(a_host_function_may_call_nothing),
        TEST(the_nth_call_fails_once),
        TEST(a_sticky_error_stays),
        TEST(a_fault_makes_the_device_sick_and_ends_no_wait),
        TEST(misuse_is_a_fault),
        TEST(a_touch_beyond_memory_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
