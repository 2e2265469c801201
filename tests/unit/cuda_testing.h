/* cuda_testing: device memory and comparisons for the tests of the CUDA kernels. The same sources run
 * on the emulator (TANDEM_EMULATED), in several orders of threads, and on a GPU.
 *
 *     void *x = device_numbers(host, count, DTYPE_BF16);     // rounded
 *     void *out = device_poison(bytes);                      // NaN in every format
 *     for (uint32_t i = 0; i < ORDERS; i++) {
 *         order_take(i);
 *         assert_cuda(cuda_silu_mul(stream, out, x, rows, dim, DTYPE_BF16));
 *         float *got = host_numbers(out, count, DTYPE_BF16);
 */
#ifndef TANDEM_TESTS_CUDA_TESTING_H
#define TANDEM_TESTS_CUDA_TESTING_H

#include "tests/contract/backend_testing.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>

#include "kernels/cuda/kernels.h"

#ifdef TANDEM_EMULATED
#include "tests/fake/cuda/fake.h"
enum { ORDERS = 3 };
static inline void order_take(uint32_t i)
{
    fake_knobs()->seed = 1 + i;
}
/* How many things a test left behind; the next one begins anew. */
static inline uint32_t device_reset(void)
{
    return fake_reset();
}
#else
enum { ORDERS = 1 };
static inline void order_take(uint32_t i)
{
    (void)i;
}
static inline uint32_t device_reset(void)
{
    return 0;
}
#endif

#define assert_cuda(expression) assert_cuda_at((expression), #expression, __FILE__, __LINE__)
static inline void assert_cuda_at(cudaError_t e, const char *what, const char *file, int line)
{
    if (e == cudaSuccess) return;
    print_error("ERROR: %s: %s: %s\n", what, cudaGetErrorName(e), cudaGetErrorString(e));
    _fail(file, line);
}

/* Before and after each test. */
static cudaStream_t stream;

static inline int device_open(void **state)
{
    (void)state;
    cudaError_t e = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (e != cudaSuccess) print_error("a stream: %s\n", cudaGetErrorString(e));
    return e == cudaSuccess ? 0 : -1;
}
static inline int device_close(void **state)
{
    (void)state;
    if (cudaDeviceSynchronize() != cudaSuccess || cudaStreamDestroy(stream) != cudaSuccess)
        return -1;
    return device_reset() == 0 ? 0 : -1;
}
#define DEVICE_TEST(name) cmocka_unit_test_setup_teardown(name, device_open, device_close)

/* Every byte 0xff: a NaN as fp32 and as bf16, and no number of a block or token. */
static inline void *device_poison(size_t bytes)
{
    void *p = NULL;
    assert_cuda(cudaMalloc(&p, bytes));
    assert_cuda(cudaMemset(p, 0xff, bytes));
    assert_cuda(cudaDeviceSynchronize()); /* `stream` does not wait for it */
    return p;
}
static inline void *device_bytes(const void *host, size_t bytes)
{
    void *p = device_poison(bytes);
    assert_cuda(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    assert_cuda(cudaDeviceSynchronize());
    return p;
}
static inline void device_read(void *host, const void *device, size_t bytes)
{
    assert_cuda(cudaDeviceSynchronize());
    assert_cuda(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
}
static inline void device_free(const void *p)
{
    assert_cuda(cudaDeviceSynchronize());
    assert_cuda(cudaFree((void *)p));
}

/* Numbers to the device as `dtype`, and back; F32 or BF16. mem_free the result. */
static inline void *device_numbers(const float *f, size_t count, enum dtype dtype)
{
    if (dtype == DTYPE_F32) return device_bytes(f, count * sizeof *f);
    uint16_t *rounded = mem_array(count, sizeof *rounded);
    assert_non_null(rounded);
    for (size_t i = 0; i < count; i++)
        rounded[i] = bf16_from_f32(f[i]);
    void *p = device_bytes(rounded, count * sizeof *rounded);
    mem_free(rounded);
    return p;
}
static inline float *host_numbers(const void *device, size_t count, enum dtype dtype)
{
    float *f = mem_array(count, sizeof *f);
    assert_non_null(f);
    device_read(f, device, count * dtype_bytes(dtype));
    const uint16_t *half = (const uint16_t *)f;
    for (size_t i = count; dtype != DTYPE_F32 && i-- > 0;) /* in place, from the end */
        f[i] = f32_from_bf16(half[i]);
    return f;
}
/* Random numbers in -1 … 1 that bf16 holds exactly if dtype is BF16. */
static inline float *random_numbers(struct random *r, size_t count, enum dtype dtype)
{
    float *f = random_floats(r, count);
    for (size_t i = 0; i < count && dtype == DTYPE_BF16; i++)
        f[i] = f32_from_bf16(bf16_from_f32(f[i]));
    return f;
}

/* got is want within `slack` and, as bf16, half a unit in its last place. */
static inline void assert_near(float got, double want, double slack, enum dtype dtype,
                               const char *what, size_t at)
{
    if (dtype == DTYPE_BF16) slack += fabs(want) * 0x1p-8;
    if (!(fabs(got - want) <= slack))
        fail_msg("%s, element %zu: %.9g, wanted %.9g within %.3g", what, at, (double)got, want,
                 slack);
}

/* A batch's arrays on the device; those that a test leaves out are NULL. */
struct rows_of_batch {
    uint32_t rows, live;
    const uint32_t *token, *slot, *position, *table_first;
    const uint32_t *table;
    uint32_t table_count;
    const uint32_t *output_row;
    uint32_t outputs, outputs_live;
};
static inline const uint32_t *device_words(const uint32_t *host, uint32_t count)
{
    return host ? device_bytes(host, count * sizeof *host) : NULL;
}
static inline struct cuda_batch device_batch(const struct rows_of_batch *b)
{
    return (struct cuda_batch){
        .live = device_words(&b->live, 1),
        .token = device_words(b->token, b->rows),
        .slot = device_words(b->slot, b->rows),
        .position = device_words(b->position, b->rows),
        .table_first = device_words(b->table_first, b->rows),
        .table = device_words(b->table, b->table_count),
        .output_row = device_words(b->output_row, b->outputs),
        .outputs_live = device_words(&b->outputs_live, 1),
    };
}
static inline void device_batch_free(const struct cuda_batch *b)
{
    const uint32_t *part[] = {b->live,        b->token, b->slot,       b->position,
                              b->table_first, b->table, b->output_row, b->outputs_live};
    for (uint32_t i = 0; i < COUNT(part); i++)
        device_free(part[i]);
}

#endif
