/* rows: the operations that take one row at a time. All are bound by memory: 16 bytes per access
 * where the rows' addresses allow it, every row read and written once. Registers are of sm_90. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/eight.cuh"
#include "kernels/cuda/kernels.h"

namespace {

enum { ROW_THREADS = 256, NORM_THREADS = 512 };

__device__ __forceinline__ float number(const float *at)
{
    return *at;
}
__device__ __forceinline__ float number(const uint16_t *at)
{
    return float_from_bf16(*at);
}
/* As f32_from_f16 in kernels/numbers.h: exact. */
struct half_float {
    uint16_t bits;
};
__device__ __forceinline__ float number(const half_float *at)
{
    uint32_t sign = (uint32_t)(at->bits & 0x8000) << 16, magnitude = at->bits & 0x7fff;
    if (magnitude >= 0x7c00) return float_from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    if (magnitude >= 0x0400) return float_from_bits(sign | ((magnitude << 13) + (112u << 23)));
    float f = (float)magnitude * 0x1p-24f;
    return sign ? -f : f;
}

__device__ __forceinline__ void eight_load(struct eight *e, const half_float *at)
{
    for (uint32_t i = 0; i < EIGHT; i++)
        e->v[i] = number(at + i);
}
/* Eight elements, the last ones 0 where fewer are left before the row's end. WIDE: rows start at
 * multiples of 16 bytes and are a multiple of eight long. */
template <bool WIDE, typename T>
__device__ __forceinline__ struct eight row_load(const T *at, uint32_t left)
{
    struct eight e;
    if (WIDE)
        eight_load(&e, at);
    else
        for (uint32_t i = 0; i < EIGHT; i++)
            e.v[i] = i < left ? number(at + i) : 0.0f;
    return e;
}

__device__ __forceinline__ void put(float *at, float v)
{
    *at = v;
}
__device__ __forceinline__ void put(uint16_t *at, float v)
{
    *at = bf16_from_float(v);
}
template <bool WIDE, typename T>
__device__ __forceinline__ void row_store(T *at, const struct eight &e, uint32_t left)
{
    if (WIDE)
        eight_store(at, e);
    else
        for (uint32_t i = 0; i < EIGHT && i < left; i++)
            put(at + i, e.v[i]);
}

/* Where a thread works: blocks are rows x pieces of ROW_THREADS * EIGHT elements. */
__device__ __forceinline__ uint32_t element_first()
{
    uint32_t back = PLANTED("pieces_overlap") && blockIdx.y > 0;
    return (blockIdx.y * ROW_THREADS + threadIdx.x - back) * EIGHT;
}
dim3 row_grid(uint32_t rows, uint32_t dim)
{
    return dim3(rows, divide_up(dim, ROW_THREADS * EIGHT));
}

/* Equals cpu_embed in kernels/cpu.c. Reads rows x dim of the table, writes rows x dim x 4 bytes; no
 * flops, no shared memory, 24 registers. Rows that are not live are zeroed: their token is
 * unknown. */
template <bool WIDE, typename T>
__global__ void __launch_bounds__(ROW_THREADS)
    embed_kernel(float *x, const T *table, struct cuda_batch batch, const uint32_t *last,
                 uint32_t dim)
{
    const uint32_t early = PLANTED("embed_reads_early") ? *batch.live : 0;
    grid_wait();
    uint32_t row = blockIdx.x, i = element_first();
    if (i >= dim) return;
    struct eight e = {};
    if (row < (PLANTED("embed_reads_early") ? early : *batch.live)) {
        uint32_t token = batch.token[row];
        if (token == (uint32_t)CUDA_TOKEN_LAST) token = last[batch.slot[row]];
        e = row_load<WIDE>(table + (size_t)token * dim + i, dim - i);
    }
    row_store<WIDE>(x + (size_t)row * dim + i, e, dim - i);
}

__device__ __forceinline__ float add_squares(float sum, const struct eight &e)
{
    for (uint32_t j = 0; j < EIGHT; j++)
        sum = fmaf(e.v[j], e.v[j], sum);
    return sum;
}
/* x scale weight, in this order. */
template <bool WIDE, typename T>
__device__ __forceinline__ void norm_store(T *out, struct eight x, float scale,
                                           const struct eight &weight, uint32_t left)
{
    for (uint32_t j = 0; j < EIGHT; j++)
        x.v[j] = x.v[j] * scale * weight.v[j];
    row_store<WIDE>(out, x, left);
}
/* Over the block, the same bits in all threads: the warps' trees, then warp 0 to the last. */
__device__ __forceinline__ float block_sum(float v, float *of_warp)
{
    v = warp_sum(v);
    if (threadIdx.x % WARP_LANES == 0) of_warp[threadIdx.x / WARP_LANES] = v;
    if (!PLANTED("norm_no_barrier")) block_sync();
    v = of_warp[0];
    for (uint32_t w = 1; w < NORM_THREADS / WARP_LANES + PLANTED("norm_sum_too_far"); w++)
        v += of_warp[w];
    return v;
}

/* Equals rms_norm in kernels/body_rows.h; a row's squares are summed in another order: thread t takes
 * eights t, t + 512, …, then block_sum. Reads dim x 4 bytes of a row and of weights, writes dim
 * operands; 4 dim flops. What a thread takes first stays in registers, and its weights are asked for
 * before the sum is known; what is behind 4096 is read again from the L1 cache. 128 bytes shared, 46
 * registers. */
template <bool WIDE, typename T>
__global__ void __launch_bounds__(NORM_THREADS)
    rms_norm_kernel(T *out, const float *x, const float *weight, uint32_t dim, float eps)
{
    grid_wait();
    const uint32_t own = threadIdx.x * EIGHT, step = NORM_THREADS * EIGHT;
    struct shared_memory shared;
    float *of_warp = shared_take<float>(&shared, NORM_THREADS / WARP_LANES);
    x += (size_t)blockIdx.x * dim;
    out += (size_t)blockIdx.x * dim;
    struct eight e = {}, by = {};
    if (own < dim) {
        e = row_load<WIDE>(x + own, dim - own);
        by = row_load<WIDE>(weight + own, dim - own);
    }
    float squares = add_squares(0.0f, e);
    for (uint32_t i = own + step; i < dim; i += step)
        squares = add_squares(squares, row_load<WIDE>(x + i, dim - i));
    float scale = 1.0f / sqrtf(block_sum(squares, of_warp) / (float)dim + eps);
    if (own < dim) norm_store<WIDE>(out + own, e, scale, by, dim - own);
    for (uint32_t i = own + step; i < dim; i += step)
        norm_store<WIDE>(out + i, row_load<WIDE>(x + i, dim - i), scale,
                         row_load<WIDE>(weight + i, dim - i), dim - i);
}

/* Equals silu_mul in kernels/body_rows.h, with the device's 2^x. Reads rows x 2 dim and writes rows x
 * dim operands; about 6 flops an output. No shared memory, 32 registers. */
template <bool WIDE, typename T>
__global__ void __launch_bounds__(ROW_THREADS)
    silu_mul_kernel(T *out, const T *gate_up, uint32_t dim)
{
    grid_wait();
    const float log2_e = 0x1.715476p+0f;
    uint32_t i = element_first();
    if (i >= dim) return;
    const T *gate = gate_up + (size_t)blockIdx.x * 2 * dim + i;
    struct eight g = row_load<WIDE>(gate, dim - i);
    struct eight up = row_load<WIDE>(gate + dim, dim - i);
    for (uint32_t j = 0; j < EIGHT; j++)
        up.v[j] *= g.v[j] / (1.0f + exp2_fast(-log2_e * g.v[j]));
    row_store<WIDE>(out + (size_t)blockIdx.x * dim + i, up, dim - i);
}

/* Equals cpu_gather in kernels/cpu.c. Reads and writes outputs x dim x 4 bytes. No shared memory, 28
 * registers. */
template <bool WIDE>
__global__ void __launch_bounds__(ROW_THREADS)
    gather_kernel(float *out, const float *x, struct cuda_batch batch, uint32_t dim)
{
    grid_wait();
    uint32_t output = blockIdx.x, i = element_first();
    if (i >= dim) return;
    struct eight e = {};
    if (output < *batch.outputs_live)
        e = row_load<WIDE>(x + (size_t)batch.output_row[output] * dim + i, dim - i);
    row_store<WIDE>(out + (size_t)output * dim + i, e, dim - i);
}

template <typename T>
cudaError_t embed(cudaStream_t stream, float *x, const void *table, const struct cuda_batch *batch,
                  const uint32_t *last, uint32_t rows, uint32_t dim)
{
    if (dim % EIGHT == 0)
        LAUNCH((embed_kernel<true, T>), row_grid(rows, dim), ROW_THREADS, 0, stream, x,
               (const T *)table, *batch, last, dim);
    else
        LAUNCH((embed_kernel<false, T>), row_grid(rows, dim), ROW_THREADS, 0, stream, x,
               (const T *)table, *batch, last, dim);
    return cudaPeekAtLastError();
}

template <typename T>
cudaError_t rms_norm(cudaStream_t stream, void *out, const float *x, const float *weight,
                     uint32_t rows, uint32_t dim, float eps)
{
    uint32_t bytes = shared_bytes<float>(NORM_THREADS / WARP_LANES);
    if (dim % EIGHT == 0)
        LAUNCH((rms_norm_kernel<true, T>), rows, NORM_THREADS, bytes, stream, (T *)out, x, weight,
               dim, eps);
    else
        LAUNCH((rms_norm_kernel<false, T>), rows, NORM_THREADS, bytes, stream, (T *)out, x, weight,
               dim, eps);
    return cudaPeekAtLastError();
}

template <typename T>
cudaError_t silu_mul(cudaStream_t stream, void *out, const void *gate_up, uint32_t rows,
                     uint32_t dim)
{
    if (dim % EIGHT == 0)
        LAUNCH((silu_mul_kernel<true, T>), row_grid(rows, dim), ROW_THREADS, 0, stream, (T *)out,
               (const T *)gate_up, dim);
    else
        LAUNCH((silu_mul_kernel<false, T>), row_grid(rows, dim), ROW_THREADS, 0, stream, (T *)out,
               (const T *)gate_up, dim);
    return cudaPeekAtLastError();
}

} // namespace

cudaError_t cuda_embed(cudaStream_t stream, float *x, const void *table, enum dtype table_dtype,
                       const struct cuda_batch *batch, const uint32_t *last, uint32_t rows,
                       uint32_t dim)
{
    if (rows == 0) return cudaSuccess;
    if (table_dtype == DTYPE_F32) return embed<float>(stream, x, table, batch, last, rows, dim);
    if (table_dtype == DTYPE_F16)
        return embed<half_float>(stream, x, table, batch, last, rows, dim);
    return embed<uint16_t>(stream, x, table, batch, last, rows, dim);
}

cudaError_t cuda_rms_norm(cudaStream_t stream, void *out, const float *x, const float *weight,
                          uint32_t rows, uint32_t dim, float eps, enum dtype dtype)
{
    if (rows == 0) return cudaSuccess;
    if (dtype == DTYPE_F32) return rms_norm<float>(stream, out, x, weight, rows, dim, eps);
    return rms_norm<uint16_t>(stream, out, x, weight, rows, dim, eps);
}

cudaError_t cuda_silu_mul(cudaStream_t stream, void *out, const void *gate_up, uint32_t rows,
                          uint32_t dim, enum dtype dtype)
{
    if (rows == 0) return cudaSuccess;
    if (dtype == DTYPE_F32) return silu_mul<float>(stream, out, gate_up, rows, dim);
    return silu_mul<uint16_t>(stream, out, gate_up, rows, dim);
}

cudaError_t cuda_gather(cudaStream_t stream, float *out, const float *x,
                        const struct cuda_batch *batch, uint32_t outputs, uint32_t dim)
{
    if (outputs == 0) return cudaSuccess;
    if (dim % EIGHT == 0)
        LAUNCH((gather_kernel<true>), row_grid(outputs, dim), ROW_THREADS, 0, stream, out, x,
               *batch, dim);
    else
        LAUNCH((gather_kernel<false>), row_grid(outputs, dim), ROW_THREADS, 0, stream, out, x,
               *batch, dim);
    return cudaPeekAtLastError();
}
