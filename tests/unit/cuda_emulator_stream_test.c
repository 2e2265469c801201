/* Emulated kernels on the streams and in the graphs of the stand-in runtime. */
#include "tests/unit/testing.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cuda_runtime_api.h>

#include "tests/fake/cuda/emulator_kernels.h"
#include "tests/fake/cuda/fake.h"

enum { COUNT = 300 };

static cudaStream_t stream;
static float *x;

static void assert_call(cudaError_t e)
{
    if (e != cudaSuccess) fail_msg("%s", cudaGetErrorName(e));
}

static int set_up(void **state)
{
    (void)state;
    fake_reset();
    float host[COUNT];
    for (int i = 0; i < COUNT; i++)
        host[i] = (float)i;
    assert_call(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    assert_call(cudaMalloc((void **)&x, sizeof host));
    assert_call(cudaMemcpyAsync(x, host, sizeof host, cudaMemcpyHostToDevice, stream));
    assert_call(cudaStreamSynchronize(stream));
    run_on(stream);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fake_reset();
    return 0;
}

/* x went through 3 x + 3 so many times. */
static void assert_scaled(int times)
{
    float host[COUNT];
    assert_call(cudaMemcpyAsync(host, x, sizeof host, cudaMemcpyDeviceToHost, stream));
    assert_call(cudaStreamSynchronize(stream));
    for (int i = 0; i < COUNT; i++) {
        float wanted = (float)i;
        for (int n = 0; n < times; n++)
            wanted = wanted * 3 + 3;
        assert_true(host[i] == wanted);
    }
}

static void kernels_run_in_the_order_of_their_stream(void **state)
{
    (void)state;
    for (int n = 0; n < 4; n++)
        run_scale(x, x, COUNT, 1);
    assert_call(cudaPeekAtLastError());
    assert_scaled(4);
}

static cudaGraphExec_t recorded(void)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    assert_call(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    run_scale(x, x, COUNT, 1);
    run_scale(x, x, COUNT, 1);
    assert_call(cudaStreamEndCapture(stream, &graph));
    assert_call(cudaGraphInstantiate(&exec, graph, 0));
    assert_call(cudaGraphDestroy(graph));
    return exec;
}

static void a_graph_runs_its_kernels_each_time(void **state)
{
    (void)state;
    cudaGraphExec_t exec = recorded();
    assert_scaled(0);
    for (int n = 1; n <= 3; n++) {
        assert_call(cudaGraphLaunch(exec, stream));
        assert_scaled(2 * n);
    }
    assert_call(cudaGraphExecDestroy(exec));
}

/* What `act` says on stderr until the stream is done; it must end with a sick device. */
static void assert_faults(void (*act)(void), const char *const *says, int count)
{
    static char said[4096];
    FILE *file = tmpfile();
    assert_non_null(file);
    fflush(stderr);
    int kept = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    act();
    cudaError_t e = cudaStreamSynchronize(stream);
    fflush(stderr);
    dup2(kept, STDERR_FILENO);
    close(kept);
    rewind(file);
    said[fread(said, 1, sizeof said - 1, file)] = 0;
    fclose(file);
    for (int i = 0; i < count; i++)
        if (!strstr(said, says[i])) fail_msg("wanted \"%s\", said \"%s\"", says[i], said);
    assert_int_equal(e, cudaErrorIllegalAddress);
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
}

static void write_too_far(void)
{
    run_scale(x, x, COUNT + 4096, 0);
}
static void a_kernel_that_leaves_its_memory_makes_the_device_sick(void **state)
{
    (void)state;
    static const char *const says[] = {"scale_kernel", "thread", "behind the end of device memory",
                                       "(1200 bytes"};
    assert_faults(write_too_far, says, 4);
}

static cudaGraphExec_t stale;
static void free_and_launch(void)
{
    cudaFree(x);
    cudaGraphLaunch(stale, stream);
}
static void a_graph_with_a_stale_pointer_makes_the_device_sick(void **state)
{
    (void)state;
    static const char *const says[] = {"scale_kernel", "in device memory that was freed"};
    stale = recorded();
    assert_faults(free_and_launch, says, 2);
}

static void wait_for_nobody(void)
{
    run_bad(BAD_RETURN_BEFORE_BARRIER, (uint32_t *)x, (uint32_t *)x, 64);
}
static void a_barrier_that_not_all_reach_makes_the_device_sick(void **state)
{
    (void)state;
    static const char *const says[] = {"bad_kernel: block (", "63 of 64 threads wait"};
    assert_faults(wait_for_nobody, says, 2);
}

static void launch_nothing(void)
{
    run_empty((struct dim3){0, 1, 1}, (struct dim3){32, 1, 1}, 0);
}
static void an_empty_grid_makes_the_device_sick(void **state)
{
    (void)state;
    static const char *const says[] = {"empty_kernel", "a grid is not empty"};
    assert_faults(launch_nothing, says, 2);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(kernels_run_in_the_order_of_their_stream),
        TEST(a_graph_runs_its_kernels_each_time),
        TEST(a_kernel_that_leaves_its_memory_makes_the_device_sick),
        TEST(a_graph_with_a_stale_pointer_makes_the_device_sick),
        TEST(a_barrier_that_not_all_reach_makes_the_device_sick),
        TEST(an_empty_grid_makes_the_device_sick),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
