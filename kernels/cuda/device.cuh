/* device: the language that the kernels of this folder are written in. CUDA C++ plus the few device
 * functions below; all inline PTX of the project is in this file.
 *
 *     __global__ void __launch_bounds__(128) scale_kernel(float *x, float by, uint32_t count)
 *     {
 *         struct shared_memory shared;                     // the launch's shared bytes, cut in order
 *         float *tile = shared_take<float>(&shared, 128);
 *         grid_wait();                                     // before anything is read or written
 *         ...
 *         block_sync();
 *     }
 *     LAUNCH(scale_kernel, grid, 128, shared_bytes<float>(128), stream, x, 2.0f, count);
 *     LAUNCH((matmul_kernel<64, true>), grid, block, bytes, stream, ...);      // templates: in ( )
 *     return cudaPeekAtLastError();
 *
 * The same files compile as host code: with TANDEM_EMULATED defined, <cuda_runtime.h> and
 * <emulator.h> are those of tests/fake/cuda, where a block's threads are fibers and every function
 * that is PTX here has a twin in C++ with the same meaning.
 *
 * Rules: launches overlap. Where the device can (compute capability 9.0), a grid's blocks begin when
 * the last blocks of the grid before it have begun, and grid_wait keeps them until that one is done, so
 * that what a launch takes to start is not paid between any two of them. Hence every thread of every
 * kernel calls grid_wait before it touches device memory (but for prefetch of what no kernel writes)
 * and before it returns: a grid that ends is then a sign that all before it have.
 * Shared memory only through shared_take, so that the emulator can guard each piece; no
 * static __shared__, no printf, no asm elsewhere. What one block writes no other block of the grid reads or
 * writes, but by atomic_add and store_alike; load_once is for what no block of the grid writes. warp functions want all 32 lanes. Blocks are one-
 * dimensional. Pointers to bf16 are uint16_t; conversions round to nearest even. */
#ifndef TANDEM_KERNELS_CUDA_DEVICE_CUH
#define TANDEM_KERNELS_CUDA_DEVICE_CUH

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#include "common/plant.h"

enum { WARP_LANES = 32, SHARED_ALIGN = 128 };

/* Bytes that shared_take<T>(count) uses. A launch asks for the sum over its pieces. */
template <typename T> constexpr __host__ __device__ uint32_t shared_bytes(uint32_t count)
{
    return (uint32_t)((count * sizeof(T) + SHARED_ALIGN - 1) / SHARED_ALIGN * SHARED_ALIGN);
}

#ifdef TANDEM_EMULATED
#include <emulator.h>
#else

/* Whether this thread's device lets grids overlap. */
static inline bool launch_overlaps()
{
    int device = 0, major = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return false;
    cudaError_t e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return e == cudaSuccess && major >= 9;
}

/* What LAUNCH calls with the arguments, so that they are converted as in a call of the kernel. What
 * fails is for cudaPeekAtLastError. */
template <typename... Params> struct launcher {
    void (*kernel)(Params...);
    cudaLaunchConfig_t config;

    void operator()(Params... args)
    {
        void *pointers[] = {(void *)&args...};
        cudaLaunchAttribute overlap = {};
        overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        overlap.val.programmaticStreamSerializationAllowed = 1;
        config.attrs = &overlap;
        config.numAttrs = launch_overlaps() ? 1 : 0;
        (void)cudaLaunchKernelExC(&config, (const void *)kernel, pointers);
    }
};

template <typename... Params>
struct launcher<Params...> launch_prepare(void (*kernel)(Params...), dim3 grid, dim3 block,
                                          size_t shared_bytes, cudaStream_t stream)
{
    struct launcher<Params...> l = {};
    l.kernel = kernel;
    l.config.gridDim = grid;
    l.config.blockDim = block;
    l.config.dynamicSmemBytes = shared_bytes;
    l.config.stream = stream;
    return l;
}

#define LAUNCH(kernel, grid, block, shared, stream, ...)                                           \
    launch_prepare((kernel), (grid), (block), (shared), (stream))(__VA_ARGS__)

extern __shared__ __align__(SHARED_ALIGN)
unsigned char device_shared_memory[];

struct shared_memory {
    uint32_t used = 0;
};
/* The next piece, aligned to SHARED_ALIGN; not initialised. All threads take the same pieces. */
template <typename T> __device__ __forceinline__ T *shared_take(struct shared_memory *s, uint32_t n)
{
    T *piece = (T *)(device_shared_memory + s->used);
    s->used += shared_bytes<T>(n);
    return piece;
}

__device__ __forceinline__ void block_sync()
{
    __syncthreads();
}
__device__ __forceinline__ void warp_sync()
{
    __syncwarp();
}
/* The value of lane `lane`, or of lane (own ^ mask). T has 4 bytes. */
template <typename T> __device__ __forceinline__ T shuffle(T value, uint32_t lane)
{
    return __shfl_sync(0xffffffffu, value, (int)lane);
}
template <typename T> __device__ __forceinline__ T shuffle_xor(T value, uint32_t mask)
{
    return __shfl_xor_sync(0xffffffffu, value, (int)mask);
}
/* Bit i: the condition in lane i. */
__device__ __forceinline__ uint32_t warp_ballot(bool condition)
{
    return __ballot_sync(0xffffffffu, condition);
}
/* The old value. */
__device__ __forceinline__ uint32_t atomic_add(uint32_t *at, uint32_t value)
{
    return atomicAdd(at, value);
}
__device__ __forceinline__ uint64_t atomic_add(uint64_t *at, uint64_t value)
{
    return atomicAdd((unsigned long long *)at, (unsigned long long)value);
}
/* A store that several blocks may make, of the same value. */
__device__ __forceinline__ void store_alike(uint32_t *at, uint32_t value)
{
    *at = value;
}

/* d += a b on tensor cores: a 16 x 16 and b 16 x 8 of bf16, d 16 x 8 of fp32. Lane l, g = l / 4,
 * t = l % 4 (PTX ISA, mma.m16n8k16): a[0] is row g, columns 2t and 2t + 1; a[1] row g + 8; a[2] row
 * g, columns 2t + 8 and + 9; a[3] row g + 8 of these. b0 is rows 2t and 2t + 1 of column g, b1 rows
 * 2t + 8 and + 9. d[0], d[1] are row g, columns 2t and 2t + 1; d[2], d[3] row g + 8. The element of
 * the lower index is in the lower half of a word. */
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/* Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l gives the address of row l % 8
 * (16 bytes, aligned to 16) of matrix l / 8; r[i] is of matrix i: row l / 4, columns 2 (l % 4) and
 * + 1. transposed: of the transposed matrix. */
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* 16 bytes from device to shared memory, both aligned to 16; zeros if not `valid` (then `from` is
 * not read but must be a device pointer). They are there when copy_wait says so, and for other
 * threads behind the next block_sync. */
__device__ __forceinline__ void copy_async(void *shared, const void *from, bool valid = true)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared), bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(at), "l"(from), "r"(bytes)
                 : "memory");
}
/* Closes a group of this thread's copies. */
__device__ __forceinline__ void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Waits until at most `groups` of this thread's groups are under way. */
template <int groups> __device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}
/* 16 bytes that are read once: past the L1 cache. */
__device__ __forceinline__ uint4 load_once(const void *from)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

/* Asks for what is at `from` to be in the L2 cache, 32 bytes at least; for what comes before grid_wait,
 * so that nothing is asked where grids do not overlap. */
__device__ __forceinline__ void prefetch(const void *from)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}

/* Waits until the grids before this one are done and what they wrote is seen; then the next one's blocks
 * may begin, when all of this one have. */
__device__ __forceinline__ void grid_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* 2^x to about 2 ulp. exp2_fast(-INFINITY) is 0, exp2_fast(0) is 1. */
__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* Two numbers rounded to bf16: `low` in the lower half. */
__device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
__device__ __forceinline__ float float_from_bits(uint32_t bits)
{
    return __uint_as_float(bits);
}
__device__ __forceinline__ uint32_t float_bits(float f)
{
    return __float_as_uint(f);
}

#endif /* TANDEM_EMULATED */

/* What needs no PTX, the same in both. */

__device__ __forceinline__ float float_from_bf16(uint16_t h)
{
    return float_from_bits((uint32_t)h << 16);
}
__device__ __forceinline__ float bf16_low(uint32_t pair)
{
    return float_from_bits(pair << 16);
}
__device__ __forceinline__ float bf16_high(uint32_t pair)
{
    return float_from_bits(pair & 0xffff0000u);
}
__device__ __forceinline__ uint16_t bf16_from_float(float f)
{
    return (uint16_t)bf16_pair(f, 0.0f);
}
/* Over the warp, the same bits in all lanes: a tree over lane distances 16, 8, 4, 2, 1. */
__device__ __forceinline__ float warp_sum(float v)
{
    for (uint32_t mask = WARP_LANES / 2; mask > 0; mask /= 2)
        v += shuffle_xor(v, mask);
    return v;
}
__device__ __forceinline__ float warp_max(float v)
{
    for (uint32_t mask = WARP_LANES / 2; mask > 0; mask /= 2)
        v = fmaxf(v, shuffle_xor(v, mask));
    return v;
}
__host__ __device__ __forceinline__ uint32_t divide_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

#endif
