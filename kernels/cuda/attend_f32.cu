/* attend_f32: attention of fp32 models, decode rows and tiles alike: plain and exact rather than fast.
 *
 * CPU reference: attend in kernels/body_attend.h; naive in tests/unit/cuda_attend_test.c.
 *
 * One warp has one query: (row, head). It walks over its tokens 32 at a time, at absolute multiples
 * of 32: lanes are tokens for the scores, then dimensions for the sum. Its order is the row's own, so
 * that decode and prefill agree in every bit, `deterministic` or not.
 *
 * Cost of a query over T tokens: 4 T head_dim flops of fp32; reads 8 T head_dim bytes of KV, shared
 * with the other heads of its kv head through the caches only. 4608 bytes shared; 56 registers. */
#include "kernels/cuda/attend.cuh"

enum { F32_PAIRS = CUDA_HEAD_DIM_MAX / (2 * WARP_LANES) }; /* of dimensions that a lane has */

struct f32_query {
    uint32_t row, position, table_first, head;
    struct kv_window window;
};

/* The query of this warp; false: there is none. */
template <bool TILES>
__device__ __forceinline__ bool f32_open(struct f32_query *q, const struct attend_view &v)
{
    uint32_t unit = blockIdx.x * ATTEND_WARPS + threadIdx.x / WARP_LANES, index = unit / v.heads;
    q->head = unit % v.heads;
    if (TILES) {
        struct cuda_tile tile = v.batch.tile[index / CUDA_TILE_ROWS];
        uint32_t in_tile = index % CUDA_TILE_ROWS;
        q->row = tile.row_first + in_tile;
        q->position = tile.position + in_tile;
        q->table_first = tile.table_first;
        q->window = tile.window;
        return in_tile < tile.rows_count;
    }
    if (index >= *v.batch.decode_live) return false;
    q->row = v.batch.decode_row[index];
    q->position = v.batch.position[q->row];
    q->table_first = v.batch.table_first[q->row];
    q->window = v.batch.row_window[q->row];
    return true;
}

/* K of a token (offset 0), or V (offset v_bytes). */
__device__ __forceinline__ const float2 *
f32_token(const struct attend_view &v, const struct f32_query &q, size_t offset, uint32_t token)
{
    const unsigned char *block =
        attend_block(v, q.table_first, token, q.head / v.group, sizeof(float)) + offset;
    return (const float2 *)((const float *)block + token % BLOCK_TOKENS * v.head_dim);
}

__device__ __forceinline__ float f32_score(const struct attend_view &v, const struct f32_query &q,
                                           const float2 *query, uint32_t token)
{
    const float2 *k = f32_token(v, q, 0, token);
    float sum = 0;
    for (uint32_t i = 0; i < v.head_dim / 2; i++)
        sum = fmaf(query[i].y, k[i].y, fmaf(query[i].x, k[i].x, sum));
    return sum;
}

/* This lane's score becomes its probability; returns what earlier sums shrink by. */
__device__ __forceinline__ float f32_softmax(float *score, struct attend_row *row, float scale)
{
    float largest = fmaxf(row->largest, warp_max(*score));
    float base = largest == -INFINITY ? 0.0f : largest;
    *score = exp2_fast((*score - base) * scale);
    float rescale = exp2_fast((row->largest - base) * scale);
    row->largest = largest;
    row->sum = fmaf(row->sum, rescale, warp_sum(*score));
    return rescale;
}

template <bool TILES>
__global__ void __launch_bounds__(ATTEND_THREADS) f32_kernel(struct attend_view v)
{
    grid_wait();
    struct shared_memory shared;
    uint32_t warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    float2 *query = shared_take<float2>(&shared, ATTEND_WARPS * CUDA_HEAD_DIM_MAX / 2);
    float *p = shared_take<float>(&shared, ATTEND_WARPS * WARP_LANES) + warp * WARP_LANES;
    query += warp * (CUDA_HEAD_DIM_MAX / 2);
    struct f32_query q;
    if (!f32_open<TILES>(&q, v)) return;
    const uint32_t pairs = v.head_dim / 2;
    const float2 *from =
        (const float2 *)((const float *)v.q + (size_t)q.row * v.q_stride) + q.head * pairs;
    for (uint32_t i = lane; i < pairs; i += WARP_LANES)
        query[i] = from[i];
    if (!PLANTED("f32_query_no_sync")) warp_sync();
    struct attend_row row = {-INFINITY, 0};
    float2 o[F32_PAIRS] = {};
#pragma unroll 1
    for (uint32_t part = 0; part < 2; part++) {
        struct attend_part seen = attend_part_of(q.window, q.position, part);
        if (seen.first == seen.end) continue;
        for (uint32_t tile = seen.first / WARP_LANES * WARP_LANES; tile < seen.end;
             tile += WARP_LANES) {
            uint32_t begin = attend_higher(tile, seen.first);
            uint32_t end = attend_lower(tile + WARP_LANES, seen.end), token = tile + lane;
            bool inside = token >= begin && token < end;
            p[lane] = inside ? f32_score(v, q, query, token) : -INFINITY;
            float rescale = f32_softmax(&p[lane], &row, v.scale);
            warp_sync();
#pragma unroll
            for (uint32_t i = 0; i < F32_PAIRS; i++)
                o[i].x *= rescale, o[i].y *= rescale;
            for (token = begin; token < end; token++) {
                const float2 *value = f32_token(v, q, v.v_bytes, token);
#pragma unroll
                for (uint32_t i = 0; i < F32_PAIRS; i++) {
                    if (lane + i * WARP_LANES >= pairs) break;
                    float2 two = value[lane + i * WARP_LANES];
                    o[i].x = fmaf(p[token - tile], two.x, o[i].x);
                    o[i].y = fmaf(p[token - tile], two.y, o[i].y);
                }
            }
            warp_sync();
        }
    }
    float inverse = 1.0f / row.sum;
    float2 *out = (float2 *)v.out + ((size_t)q.row * v.heads + q.head) * pairs;
#pragma unroll
    for (uint32_t i = 0; i < F32_PAIRS; i++)
        if (lane + i * WARP_LANES < pairs)
            out[lane + i * WARP_LANES] =
                make_float2(attend_quotient(o[i].x, inverse), attend_quotient(o[i].y, inverse));
}

static uint32_t f32_shared_bytes()
{
    return shared_bytes<float2>(ATTEND_WARPS * CUDA_HEAD_DIM_MAX / 2) +
           shared_bytes<float>(ATTEND_WARPS * WARP_LANES);
}

cudaError_t attend_f32_decode(cudaStream_t stream, const struct attend_view *v, uint32_t rows)
{
    LAUNCH((f32_kernel<false>), divide_up(rows * v->heads, ATTEND_WARPS), ATTEND_THREADS,
           f32_shared_bytes(), stream, *v);
    return cudaPeekAtLastError();
}

cudaError_t attend_f32_tiles(cudaStream_t stream, const struct attend_view *v, uint32_t tiles)
{
    LAUNCH((f32_kernel<true>), tiles * (CUDA_TILE_ROWS / ATTEND_WARPS) * v->heads, ATTEND_THREADS,
           f32_shared_bytes(), stream, *v);
    return cudaPeekAtLastError();
}
