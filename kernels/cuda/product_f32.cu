/* product_f32: matrix products in fp32 by fma, for models in fp32. Correct for any shape, fast enough
 * for those models. Registers are of sm_90.
 *
 * A warp has four outputs of one or eight rows. Lane l sums k = 4 l … 4 l + 3, then the same 128 on,
 * and so on, in ascending order; the lanes' sums are added by the tree of warp_sum. So a sum's order
 * depends on k only. */
#include "kernels/cuda/product.cuh"

namespace {

enum { F32_THREADS = 256, F32_OUTS = 4, F32_ROWS = 8, QUAD = 4 };

/* Elements i to i + 3 of a row of k elements; zeros beyond its end, and if not `valid`. WIDE: rows
 * start at multiples of 16 bytes. */
template <bool WIDE>
__device__ __forceinline__ float4 load_quad(const float *row, uint32_t i, uint32_t k, bool valid)
{
    if (!valid) return make_float4(0, 0, 0, 0);
    if (WIDE) return *(const float4 *)(row + i);
    return make_float4(row[i], i + 1 < k ? row[i + 1] : 0, i + 2 < k ? row[i + 2] : 0,
                       i + 3 < k ? row[i + 3] : 0);
}

__device__ __forceinline__ float quad_fma(float4 a, float4 b, float sum)
{
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/* Equals matmul in kernels/body_matmul.h but for the order of a sum. Reads n x k x 4 bytes of weights
 * per ROWS rows, x once per four outputs (mostly from the caches); 2 n k rows flops. No shared memory;
 * 47 registers (one row), 128 (eight). */
template <uint32_t ROWS, bool WIDE>
__global__ void __launch_bounds__(F32_THREADS) f32_kernel(struct cuda_product p)
{
    grid_wait();
    const uint32_t warps = F32_THREADS / WARP_LANES, k = p.k;
    const uint32_t out_first = (blockIdx.y * warps + threadIdx.x / WARP_LANES) * F32_OUTS;
    const uint32_t row_first = blockIdx.x * ROWS, lane = threadIdx.x % WARP_LANES;
    const float *w = (const float *)p.w + (size_t)out_first * k;
    const float *x = (const float *)p.x + (size_t)row_first * k;

    float sum[F32_OUTS][ROWS] = {};
    for (uint32_t i = lane * QUAD; i < k; i += WARP_LANES * QUAD) {
        float4 weights[F32_OUTS];
#pragma unroll
        for (uint32_t o = 0; o < F32_OUTS; o++)
            weights[o] = load_quad<WIDE>(w + (size_t)o * k, i, k, out_first + o < p.n);
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) {
            float4 row = load_quad<WIDE>(x + (size_t)r * k, i, k, row_first + r < p.rows);
#pragma unroll
            for (uint32_t o = 0; o < F32_OUTS; o++)
                sum[o][r] = quad_fma(row, weights[o], sum[o][r]);
        }
    }

    /* Lane o ROWS + r keeps output o of row r. */
    float own = 0.0f;
#pragma unroll
    for (uint32_t e = 0; e < F32_OUTS * ROWS; e++) {
        float all = warp_sum(sum[e / ROWS][e % ROWS]);
        if (lane == e) own = all;
    }
    uint32_t row = row_first + lane % ROWS, out = out_first + lane / ROWS;
    if (lane < F32_OUTS * ROWS && row < p.rows && out < p.n) product_finish(p, row, out, own);
}

template <uint32_t ROWS, bool WIDE>
cudaError_t f32(cudaStream_t stream, const struct cuda_product *p)
{
    uint32_t outs = F32_THREADS / WARP_LANES * F32_OUTS;
    dim3 grid(divide_up(p->rows, ROWS), divide_up(p->n, outs)); /* y is at most 65535 */
    LAUNCH((f32_kernel<ROWS, WIDE>), grid, F32_THREADS, 0, stream, *p);
    return cudaPeekAtLastError();
}

} // namespace

cudaError_t product_f32(cudaStream_t stream, const struct cuda_product *p)
{
    bool wide = p->k % QUAD == 0;
    if (p->rows == 1) return wide ? f32<1, true>(stream, p) : f32<1, false>(stream, p);
    return wide ? f32<F32_ROWS, true>(stream, p) : f32<F32_ROWS, false>(stream, p);
}
