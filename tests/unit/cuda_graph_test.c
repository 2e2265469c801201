/* Capture and graphs of the stand-in CUDA runtime: what is recorded runs at each launch, what the real
 * runtime refuses while it records is refused, and recordings that are wrong show. */
#include <pthread.h>

#include "tests/unit/cuda_rig.h"

static cudaStream_t begin(enum cudaStreamCaptureMode mode)
{
    cudaStream_t s = new_stream();
    assert_cuda(cudaStreamBeginCapture(s, mode));
    return s;
}

static cudaGraphExec_t end(cudaStream_t s)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    assert_cuda(cudaStreamEndCapture(s, &graph));
    assert_cuda(cudaGraphInstantiate(&exec, graph, 0));
    assert_cuda(cudaGraphDestroy(graph)); /* the executable one does not need it */
    return exec;
}

static void launch(cudaGraphExec_t exec, cudaStream_t s)
{
    assert_cuda(cudaGraphLaunch(exec, s));
    assert_cuda(cudaStreamSynchronize(s));
}

static void what_is_recorded_runs_at_each_launch(void **state)
{
    uint64_t number = 0;
    size_t count = 0;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    enum cudaStreamCaptureStatus status;
    (void)state;
    cudaStream_t s = begin(cudaStreamCaptureModeThreadLocal);
    assert_cuda(cudaStreamIsCapturing(s, &status));
    assert_int_equal(status, cudaStreamCaptureStatusActive);
    for (uint64_t digit = 1; digit <= 3; digit++)
        launch_step(s, &number, digit);
    assert_cuda(cudaStreamEndCapture(s, &graph));
    assert_cuda(cudaStreamSynchronize(s));
    assert_int_equal(number, 0);
    assert_cuda(cudaGraphGetNodes(graph, NULL, &count));
    assert_int_equal(count, 3);
    assert_cuda(cudaGraphInstantiate(&exec, graph, 0));
    assert_cuda(cudaGraphUpload(exec, s));
    assert_cuda(cudaGraphLaunch(exec, s));
    launch_step(s, &number, 4);
    launch(exec, s);
    assert_int_equal(number, 1234123);
    assert_cuda(cudaGraphDestroy(graph));
    assert_cuda(cudaGraphExecDestroy(exec));
    assert_cuda(cudaStreamDestroy(s));
}

static void count_release(void *arg)
{
    ++*(int *)arg;
}

static void do_nothing(void *arg)
{
    (void)arg;
}

static void recorded_work_is_released_once(void **state)
{
    int released = 0;
    (void)state;
    cudaStream_t s = begin(cudaStreamCaptureModeGlobal);
    fake_enqueue(s, "kernel", do_nothing, count_release, &released);
    cudaGraphExec_t exec = end(s);
    launch(exec, s);
    launch(exec, s);
    assert_int_equal(released, 0);
    assert_cuda(cudaGraphExecDestroy(exec));
    assert_int_equal(released, 1);
    assert_cuda(cudaStreamDestroy(s));
}

static void a_copy_reads_its_memory_at_the_launch(void **state)
{
    uint32_t *device = new_memory(2 * sizeof *device), *pinned, pageable = 1, seen[2];
    (void)state;
    assert_cuda(cudaMallocHost((void **)&pinned, sizeof *pinned));
    *pinned = 1;
    cudaStream_t s = begin(cudaStreamCaptureModeThreadLocal);
    assert_cuda(cudaMemcpyAsync(device, pinned, 4, cudaMemcpyHostToDevice, s));
    assert_cuda(cudaMemcpyAsync(device + 1, &pageable, 4, cudaMemcpyHostToDevice, s));
    cudaGraphExec_t exec = end(s);
    for (uint32_t value = 5; value < 7; value++) {
        *pinned = pageable = value;
        launch(exec, s);
        assert_cuda(cudaMemcpy(seen, device, 8, cudaMemcpyDeviceToHost));
        assert_int_equal(seen[0], value);
        assert_int_equal(seen[1], value);
    }
    assert_cuda(cudaGraphExecDestroy(exec));
    assert_cuda(cudaStreamDestroy(s));
    assert_cuda(cudaFreeHost(pinned));
    assert_cuda(cudaFree(device));
}

static void a_stale_pointer_in_a_graph_is_a_fault(void **state)
{
    (void)state;
    for (int of_host = 0; of_host < 2; of_host++) {
        void *device = new_memory(8), *pinned;
        assert_cuda(cudaMallocHost(&pinned, 8));
        cudaStream_t s = begin(cudaStreamCaptureModeThreadLocal);
        assert_cuda(cudaMemcpyAsync(device, pinned, 8, cudaMemcpyHostToDevice, s));
        cudaGraphExec_t exec = end(s);
        launch(exec, s);
        assert_cuda(of_host ? cudaFreeHost(pinned) : cudaFree(device));
        void *again = new_memory(8); /* not at the same place */
        assert_ptr_not_equal(again, device);
        assert_cuda(cudaGraphLaunch(exec, s));
        assert_int_equal(cudaStreamSynchronize(s), cudaErrorIllegalAddress);
        fake_reset();
    }
}

/* Records 1, then 2 beside 3 on another stream, then 4; `joins`: 4 waits for 3. */
static cudaError_t record_fork(cudaStream_t a, cudaStream_t b, uint64_t *number, bool forks,
                               bool joins, cudaGraph_t *graph)
{
    cudaEvent_t forked = new_event(), joined = new_event();
    assert_cuda(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal));
    if (!forks) assert_cuda(cudaEventRecord(forked, a)); /* too early */
    launch_step(a, number, 1);
    if (forks) assert_cuda(cudaEventRecord(forked, a));
    assert_cuda(cudaStreamWaitEvent(b, forked, 0));
    launch_step(b, number, 3);
    assert_cuda(cudaEventRecord(joined, b));
    launch_step(a, number, 2);
    if (joins) assert_cuda(cudaStreamWaitEvent(a, joined, 0));
    launch_step(a, number, 4);
    cudaError_t e = cudaStreamEndCapture(a, graph);
    assert_cuda(cudaEventDestroy(forked));
    assert_cuda(cudaEventDestroy(joined));
    return e;
}

/* What the graph computes on each of some seeds, counted: right ones, wrong ones. */
static void run_on_seeds(cudaGraph_t graph, cudaStream_t s, uint64_t *number, int *first, int *last)
{
    cudaGraphExec_t exec;
    assert_cuda(cudaGraphInstantiate(&exec, graph, 0));
    for (uint64_t seed = 1; seed < 40; seed++) {
        fake_knobs()->seed = seed;
        *number = 0;
        launch(exec, s);
        *first += *number / 1000 == 1;
        *last += *number % 10 == 4;
    }
    assert_cuda(cudaGraphExecDestroy(exec));
    assert_cuda(cudaGraphDestroy(graph));
}

static void branches_run_in_any_order_that_is_recorded(void **state)
{
    uint64_t number = 0;
    cudaGraph_t graph;
    cudaStream_t a = new_stream(), b = new_stream();
    (void)state;
    for (int forks = 0; forks < 2; forks++) {
        int first = 0, last = 0;
        assert_cuda(record_fork(a, b, &number, forks, true, &graph));
        run_on_seeds(graph, a, &number, &first, &last);
        assert_int_equal(last, 39);
        if (forks)
            assert_int_equal(first, 39);
        else
            assert_true(first > 0 && first < 39); /* a dependency is missing, and it shows */
    }
    assert_cuda(cudaStreamDestroy(a));
    assert_cuda(cudaStreamDestroy(b));
}

static void a_branch_that_is_not_joined_is_refused(void **state)
{
    uint64_t number = 0;
    cudaGraph_t graph;
    enum cudaStreamCaptureStatus status;
    cudaStream_t a = new_stream(), b = new_stream();
    (void)state;
    assert_int_equal(record_fork(a, b, &number, true, false, &graph),
                     cudaErrorStreamCaptureUnjoined);
    assert_null(graph);
    assert_cuda(cudaStreamIsCapturing(b, &status));
    assert_int_equal(status, cudaStreamCaptureStatusNone);
    launch_step(b, &number, 7);
    assert_cuda(cudaStreamSynchronize(b));
    assert_int_equal(number, 7);
    assert_cuda(cudaStreamDestroy(a));
    assert_cuda(cudaStreamDestroy(b));
}

static void launches_of_one_graph_do_not_overlap(void **state)
{
    struct door door = DOOR;
    uint64_t number = 0;
    (void)state;
    cudaStream_t a = begin(cudaStreamCaptureModeThreadLocal), b = new_stream();
    put_door(a, &door);
    launch_step(a, &number, 1);
    cudaGraphExec_t exec = end(a);
    assert_cuda(cudaGraphLaunch(exec, a));
    assert_cuda(cudaGraphLaunch(exec, b));
    open_door(&door);
    assert_cuda(cudaDeviceSynchronize());
    assert_int_equal(number, 11);
    assert_cuda(cudaGraphExecDestroy(exec));
    assert_cuda(cudaStreamDestroy(a));
    assert_cuda(cudaStreamDestroy(b));
}

/* --- what is refused --- */

struct refusal {
    cudaStream_t captured, other;
    cudaEvent_t inside, outside; /* events recorded in the capture, and before */
    void *memory;
};

static cudaError_t try_malloc(struct refusal *r)
{
    void *p;
    (void)r;
    return cudaMalloc(&p, 8);
}
static cudaError_t try_free(struct refusal *r)
{
    return cudaFree(r->memory);
}
static cudaError_t try_host_alloc(struct refusal *r)
{
    void *p;
    (void)r;
    return cudaHostAlloc(&p, 8, 0);
}
static cudaError_t try_memcpy(struct refusal *r)
{
    char host[8] = {0};
    return cudaMemcpy(r->memory, host, 8, cudaMemcpyHostToDevice);
}
static cudaError_t try_device_synchronize(struct refusal *r)
{
    (void)r;
    return cudaDeviceSynchronize();
}
static cudaError_t try_synchronize(struct refusal *r)
{
    return cudaStreamSynchronize(r->captured);
}
static cudaError_t try_query(struct refusal *r)
{
    return cudaStreamQuery(r->captured);
}
static cudaError_t try_event_query(struct refusal *r)
{
    return cudaEventQuery(r->outside);
}
static cudaError_t try_captured_event_query(struct refusal *r)
{
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaError_t e = cudaEventQuery(r->inside);
    cudaThreadExchangeStreamCaptureMode(&mode);
    return e;
}
static cudaError_t try_wait_outside(struct refusal *r)
{
    return cudaStreamWaitEvent(r->captured, r->outside, 0);
}
static cudaError_t try_begin(struct refusal *r)
{
    return cudaStreamBeginCapture(r->captured, cudaStreamCaptureModeRelaxed);
}
static cudaError_t try_end_elsewhere(struct refusal *r)
{
    cudaGraph_t graph;
    assert_cuda(cudaStreamWaitEvent(r->other, r->inside, 0));
    return cudaStreamEndCapture(r->other, &graph);
}
static cudaError_t try_merge(struct refusal *r)
{
    assert_cuda(cudaStreamBeginCapture(r->other, cudaStreamCaptureModeThreadLocal));
    return cudaStreamWaitEvent(r->other, r->inside, 0);
}
static void *end_capture_here(void *arg)
{
    struct refusal *r = arg;
    cudaGraph_t graph;
    cudaError_t e = cudaStreamEndCapture(r->captured, &graph);
    return (void *)(uintptr_t)e;
}
static cudaError_t try_end_in_thread(struct refusal *r)
{
    pthread_t thread;
    void *e;
    assert_int_equal(pthread_create(&thread, NULL, end_capture_here, r), 0);
    assert_int_equal(pthread_join(thread, &e), 0);
    return (cudaError_t)(uintptr_t)e;
}

static void illegal_calls_spoil_the_capture(void **state)
{
    static const struct {
        cudaError_t (*attempt)(struct refusal *r);
        cudaError_t error;
    } rows[] = {
        {try_malloc, cudaErrorStreamCaptureUnsupported},
        {try_free, cudaErrorStreamCaptureUnsupported},
        {try_host_alloc, cudaErrorStreamCaptureUnsupported},
        {try_memcpy, cudaErrorStreamCaptureUnsupported},
        {try_device_synchronize, cudaErrorStreamCaptureUnsupported},
        {try_synchronize, cudaErrorStreamCaptureUnsupported},
        {try_query, cudaErrorStreamCaptureUnsupported},
        {try_event_query, cudaErrorStreamCaptureUnsupported},
        {try_captured_event_query, cudaErrorCapturedEvent},
        {try_wait_outside, cudaErrorStreamCaptureIsolation},
        {try_begin, cudaErrorIllegalState},
        {try_end_elsewhere, cudaErrorStreamCaptureUnmatched},
        {try_merge, cudaErrorStreamCaptureMerge},
        {try_end_in_thread, cudaErrorStreamCaptureWrongThread},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct refusal r = {.other = new_stream(), .inside = new_event(), .outside = new_event()};
        uint64_t number = 0;
        cudaGraph_t graph = NULL;
        r.memory = new_memory(8);
        assert_cuda(cudaEventRecord(r.outside, r.other));
        r.captured = begin(cudaStreamCaptureModeThreadLocal);
        assert_cuda(cudaEventRecord(r.inside, r.captured));
        assert_int_equal(rows[i].attempt(&r), rows[i].error);
        cudaGetLastError();
        launch_step(r.captured, &number, 1);
        assert_int_equal(cudaGetLastError(), cudaErrorStreamCaptureInvalidated);
        assert_int_equal(cudaStreamEndCapture(r.captured, &graph),
                         cudaErrorStreamCaptureInvalidated);
        assert_null(graph);
        fake_reset();
    }
}

static void *allocate_here(void *arg)
{
    void *p = NULL;
    *(cudaError_t *)arg = cudaMalloc(&p, 8);
    if (p) cudaFree(p);
    return NULL;
}

static void a_capture_holds_other_threads_back_only_if_global(void **state)
{
    static const struct {
        enum cudaStreamCaptureMode mode;
        cudaError_t own, other;
    } rows[] = {
        {cudaStreamCaptureModeGlobal, cudaErrorStreamCaptureUnsupported,
         cudaErrorStreamCaptureUnsupported},
        {cudaStreamCaptureModeThreadLocal, cudaErrorStreamCaptureUnsupported, cudaSuccess},
        {cudaStreamCaptureModeRelaxed, cudaSuccess, cudaSuccess},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cudaError_t e = cudaSuccess;
        pthread_t thread;
        cudaStream_t s = begin(rows[i].mode);
        assert_int_equal(pthread_create(&thread, NULL, allocate_here, &e), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(e, rows[i].other);
        allocate_here(&e);
        assert_int_equal(e, rows[i].own);
        assert_cuda(cudaStreamDestroy(s));
        fake_reset();
    }
}

static void *clear_here(void *arg)
{
    cudaError_t *e = arg;
    void *p = NULL;
    assert_cuda(cudaMalloc(&p, 8));
    *e = cudaMemset(p, 0, 8);
    cudaFree(p);
    return NULL;
}

/* Calls without a stream, of any thread: they would have to wait for streams that were not made as non-blocking. */
static void a_call_without_a_stream_ends_the_captures_of_blocking_ones(void **state)
{
    static const cudaError_t error[] = {cudaErrorStreamCaptureImplicit, cudaSuccess};
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        cudaError_t e = cudaSuccess;
        pthread_t thread;
        cudaGraph_t graph;
        cudaStream_t s;
        assert_cuda(
            cudaStreamCreateWithFlags(&s, i == 0 ? cudaStreamDefault : cudaStreamNonBlocking));
        assert_cuda(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
        assert_int_equal(pthread_create(&thread, NULL, clear_here, &e), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(e, error[i]);
        assert_int_equal(cudaStreamEndCapture(s, &graph),
                         i == 0 ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
        fake_reset();
    }
}

static void *synchronize_here(void *arg)
{
    *(cudaError_t *)arg = cudaDeviceSynchronize();
    return NULL;
}

/* As NVIDIA's devices do it: who waits for the whole device ends every capture on it. */
static void a_wait_for_the_device_ends_the_captures_of_all_threads(void **state)
{
    static const enum cudaStreamCaptureMode modes[] = {cudaStreamCaptureModeGlobal,
                                                       cudaStreamCaptureModeThreadLocal,
                                                       cudaStreamCaptureModeRelaxed};
    (void)state;
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        cudaError_t e = cudaSuccess;
        pthread_t thread;
        cudaGraph_t graph;
        cudaStream_t s = begin(modes[i]);
        assert_int_equal(pthread_create(&thread, NULL, synchronize_here, &e), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(e, cudaErrorStreamCaptureUnsupported);
        assert_int_equal(cudaStreamEndCapture(s, &graph), cudaErrorStreamCaptureInvalidated);
        fake_reset();
    }
}

static void an_event_of_an_ended_capture_is_no_event(void **state)
{
    cudaEvent_t v = new_event();
    (void)state;
    cudaStream_t s = begin(cudaStreamCaptureModeThreadLocal);
    assert_cuda(cudaEventRecord(v, s));
    cudaGraphExec_t exec = end(s);
    assert_int_equal(cudaEventSynchronize(v), cudaErrorCapturedEvent);
    assert_int_equal(cudaStreamWaitEvent(s, v, 0), cudaErrorCapturedEvent);
    assert_cuda(cudaEventRecord(v, s));
    assert_cuda(cudaEventSynchronize(v));
    assert_cuda(cudaGraphExecDestroy(exec));
    assert_cuda(cudaEventDestroy(v));
    assert_cuda(cudaStreamDestroy(s));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_recorded_runs_at_each_launch),
        TEST(recorded_work_is_released_once),
        TEST(a_copy_reads_its_memory_at_the_launch),
        TEST(a_stale_pointer_in_a_graph_is_a_fault),
        TEST(branches_run_in_any_order_that_is_recorded),
        TEST(a_branch_that_is_not_joined_is_refused),
        TEST(launches_of_one_graph_do_not_overlap),
        TEST(illegal_calls_spoil_the_capture),
        TEST(a_capture_holds_other_threads_back_only_if_global),
        TEST(a_call_without_a_stream_ends_the_captures_of_blocking_ones),
        TEST(a_wait_for_the_device_ends_the_captures_of_all_threads),
        TEST(an_event_of_an_ended_capture_is_no_event),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
