/* emulator: the language of kernels/cuda/device.cuh on the host; device.cuh has what each function
 * means. A .cu file sees all of this, as C++; the C files behind it (emulator.c: threads and
 * barriers; shared.c: shared memory and async copies; twins.c: arithmetic) see the declarations.
 *
 * Rules: a thread of a block is a fiber that runs until it has to wait, so what is not ordered by a
 * wait happens in a different order with another seed. Only device.cuh includes it. */
#ifndef TANDEM_FAKE_CUDA_EMULATOR_H
#define TANDEM_FAKE_CUDA_EMULATOR_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/fake/cuda/fake.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of the fiber that runs; a fiber never changes its thread while its kernel runs. */
struct emulator_place {
    struct uint3 thread, block, block_size, grid_size;
};
extern __thread struct emulator_place emulator_place __attribute__((tls_model("initial-exec")));

/* The source line that waits: said in faults, and the threads that meet must agree on it. */
struct emulator_line {
    const char *file;
    int line;
};

/* --- launches --- */

/* Puts `launch` on the stream after a look at its limits; the closure `arg` is freed when nothing can
 * run it any more. `kernel` is whom cudaFuncSetAttribute was told of. */
void emulator_enqueue(const struct emulator_launch *launch, const void *kernel, cudaStream_t stream,
                      fake_work_fn *run, void *arg);
void *emulator_closure(size_t bytes);

/* --- shared memory and async copies --- */

/* Piece number `piece` of the block; `at` bytes are taken before it, `reserved` by it. */
void *emulator_shared_take(uint32_t piece, uint32_t at, size_t bytes, uint32_t reserved);
void emulator_copy_async(void *shared, const void *from, bool valid);
void emulator_copy_commit(void);
void emulator_copy_wait(uint32_t groups);
uint4 emulator_load_once(const void *from);
void emulator_grid_wait(void);

/* --- waits --- */

void emulator_block_sync(struct emulator_line at);
void emulator_warp_sync(struct emulator_line at);
uint32_t emulator_shuffle(uint32_t value, uint32_t lane, struct emulator_line at);
uint32_t emulator_ballot(bool condition, struct emulator_line at);
void emulator_mma(float *d, const uint32_t *a, uint32_t b0, uint32_t b1, struct emulator_line at);
void emulator_load_matrices(uint32_t *r, const void *row, bool transposed, struct emulator_line at);

/* --- arithmetic --- */

float emulator_exp2(float x);
uint32_t emulator_bf16_pair(float low, float high);

#ifdef __cplusplus
}

#include <stdlib.h>
#include <string.h>
#include <tuple>
#include <type_traits>

#define threadIdx emulator_place.thread
#define blockIdx emulator_place.block
#define blockDim emulator_place.block_size
#define gridDim emulator_place.grid_size

/* A kernel and its arguments by value. */
template <typename... Params> struct emulator_call {
    struct emulator_launch launch;
    void (*kernel)(Params...);
    std::tuple<Params...> args;
    uint64_t runs; /* a graph's: each has an order of its own */

    static void thread(void *arg)
    {
        struct emulator_call *call = (struct emulator_call *)arg;
        std::apply(call->kernel, call->args);
    }
    static void run(void *arg)
    {
        struct emulator_call *call = (struct emulator_call *)arg;
        struct emulator_launch launch = call->launch;
        launch.seed += __atomic_fetch_add(&call->runs, 1, __ATOMIC_RELAXED);
        emulator_run(&launch);
    }
};

/* What LAUNCH calls with the arguments, so that they are converted as in a call of the kernel. */
template <typename... Params> struct emulator_launcher {
    struct emulator_launch launch;
    void (*kernel)(Params...);
    cudaStream_t stream;

    void operator()(Params... args) const
    {
        static_assert((std::is_trivially_copyable_v<Params> && ...), "arguments go by value");
        static_assert((!std::is_reference_v<Params> && ...), "arguments go by value");
        using call_t = struct emulator_call<Params...>;
        call_t *call = (call_t *)emulator_closure(sizeof(call_t));
        call->launch = launch;
        call->launch.thread = call_t::thread;
        call->launch.arg = call;
        call->launch.seed = fake_knobs()->seed;
        call->runs = 0;
        call->kernel = kernel;
        call->args = std::tuple<Params...>(args...);
        emulator_enqueue(&call->launch, (const void *)kernel, stream, call_t::run, call);
    }
};

template <typename... Params>
struct emulator_launcher<Params...> emulator_prepare(void (*kernel)(Params...), const char *name,
                                                     struct dim3 grid, struct dim3 block,
                                                     size_t shared_bytes, cudaStream_t stream) {
    struct emulator_launcher<Params...> l = {};
    l.launch.name = name;
    l.launch.grid[0] = grid.x, l.launch.grid[1] = grid.y, l.launch.grid[2] = grid.z;
    l.launch.block[0] = block.x, l.launch.block[1] = block.y, l.launch.block[2] = block.z;
    l.launch.shared_bytes = shared_bytes > UINT32_MAX ? UINT32_MAX : (uint32_t)shared_bytes;
    l.kernel = kernel;
    l.stream = stream;
    return l;
}

#define LAUNCH(kernel, grid, block, shared, stream, ...)                                           \
    emulator_prepare((kernel), #kernel, (grid), (block), (shared), (stream))(__VA_ARGS__)

struct shared_memory {
    uint32_t used = 0, pieces = 0;
};
template <typename T> static inline T *shared_take(struct shared_memory *s, uint32_t n)
{
    T *piece =
        (T *)emulator_shared_take(s->pieces, s->used, (size_t)n * sizeof(T), shared_bytes<T>(n));
    s->pieces++;
    s->used += shared_bytes<T>(n);
    return piece;
}

/* The caller's line, as a default argument. */
#define EMULATOR_LINE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATOR_HERE (emulator_line{file, line})

static inline void block_sync(EMULATOR_LINE)
{
    emulator_block_sync(EMULATOR_HERE);
}
static inline void warp_sync(EMULATOR_LINE)
{
    emulator_warp_sync(EMULATOR_HERE);
}
template <typename T> static inline T shuffle(T value, uint32_t lane, EMULATOR_LINE)
{
    static_assert(sizeof(T) == 4, "a shuffle moves 4 bytes");
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = emulator_shuffle(bits, lane, EMULATOR_HERE);
    memcpy(&value, &bits, 4);
    return value;
}
template <typename T> static inline T shuffle_xor(T value, uint32_t mask, EMULATOR_LINE)
{
    return shuffle(value, (threadIdx.x ^ mask) % 32, file, line);
}
static inline uint32_t warp_ballot(bool condition, EMULATOR_LINE)
{
    return emulator_ballot(condition, EMULATOR_HERE);
}

static inline uint32_t atomic_add(uint32_t *at, uint32_t value)
{
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
static inline uint64_t atomic_add(uint64_t *at, uint64_t value)
{
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}

static inline void store_alike(uint32_t *at, uint32_t value)
{
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);
}

static inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                            EMULATOR_LINE)
{
    emulator_mma(d, a, b0, b1, EMULATOR_HERE);
}
static inline void load_matrices(uint32_t (&r)[4], const void *row, EMULATOR_LINE)
{
    emulator_load_matrices(r, row, false, EMULATOR_HERE);
}
static inline void load_matrices_transposed(uint32_t (&r)[4], const void *row, EMULATOR_LINE)
{
    emulator_load_matrices(r, row, true, EMULATOR_HERE);
}

static inline void copy_async(void *shared, const void *from, bool valid = true)
{
    emulator_copy_async(shared, from, valid);
}
static inline void copy_commit()
{
    emulator_copy_commit();
}
template <int groups> static inline void copy_wait()
{
    static_assert(groups >= 0, "copy_wait counts groups");
    emulator_copy_wait(groups);
}
static inline uint4 load_once(const void *from)
{
    return emulator_load_once(from);
}

static inline void prefetch(const void *)
{
}
static inline void grid_wait()
{
    emulator_grid_wait();
}

static inline float exp2_fast(float x)
{
    return emulator_exp2(x);
}
static inline uint32_t bf16_pair(float low, float high)
{
    return emulator_bf16_pair(low, high);
}
static inline float float_from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static inline uint32_t float_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}
#endif

#endif
