/* attend: what the attention kernels share: the view of one call, the way of a tile of K or V into
 * shared memory, and the online softmax.
 *
 * A tile is attend_tile(dim) tokens at an absolute multiple of it (docs/numerics.md, A2). One warp
 * folds a tile into 16 queries at a time:
 *
 *     scores of the tile = q k            mma over 16 dimensions at a time, ascending
 *     attend_mask, attend_softmax         the row's own maximum; probabilities, rescale
 *     attend_weigh: o += p v              mma over 16 tokens at a time, ascending
 *
 * A query's numbers lie in the four lanes of a quad (lane / 4 = row, rows 8 apart in the same lane),
 * so each of them is computed in one order, whichever kernel, warp and company computes it; sums of
 * products are written as fmaf, so that the compiler does not choose. That is what makes decode and
 * a folding prefill agree in every bit.
 *
 * Rows in shared memory are DIM + 8 elements apart: an odd number of 16-byte pieces, so that the
 * eight rows of a matrix lie in different banks. Dimensions from head_dim to DIM are zeros. */
#ifndef TANDEM_KERNELS_CUDA_ATTEND_CUH
#define TANDEM_KERNELS_CUDA_ATTEND_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.h"

enum { ATTEND_WARPS = 4, ATTEND_THREADS = ATTEND_WARPS * WARP_LANES };

constexpr __host__ __device__ int attend_tile(int dim)
{
    return dim <= 128 ? 64 : 32;
}
constexpr __host__ __device__ int attend_stride(int dim)
{
    return dim + 8;
}

/* One call, by value: pointers into device memory, sizes in elements unless said. */
struct attend_view {
    struct cuda_batch batch;
    const unsigned char *k;      /* the layer's K of block 0 */
    size_t block_bytes, v_bytes; /* to the next block; from K to V */
    void *out;
    const void *q;
    uint32_t q_stride, heads, kv_heads, group, head_dim;
    float scale; /* times log2 e: all exponentials are of base 2 */
};

static inline struct attend_view attend_view_of(void *out, const void *q, uint32_t q_stride,
                                                const struct cuda_batch *batch,
                                                const struct cuda_attention *a,
                                                const struct cuda_kv *kv)
{
    struct attend_view v = {};
    v.batch = *batch;
    v.k = (const unsigned char *)kv->base + kv->layer * kv_layer_bytes(&kv->geometry);
    v.block_bytes = kv_block_bytes(&kv->geometry);
    v.v_bytes = kv_part_bytes(&kv->geometry);
    v.out = out;
    v.q = q;
    v.q_stride = q_stride;
    v.heads = a->heads;
    v.kv_heads = a->kv_heads;
    v.group = a->heads / a->kv_heads;
    v.head_dim = a->head_dim;
    v.scale = a->scale * 1.4426950408889634f;
    return v;
}

/* fp32 models (attend_f32.cu): decode rows, or tiles, which then have CUDA_TILE_ROWS rows each. */
cudaError_t attend_f32_decode(cudaStream_t stream, const struct attend_view *v, uint32_t rows);
cudaError_t attend_f32_tiles(cudaStream_t stream, const struct attend_view *v, uint32_t tiles);

__device__ __forceinline__ uint32_t attend_lower(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}
__device__ __forceinline__ uint32_t attend_higher(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}
/* The first token that a row at `position` attends to. */
__device__ __forceinline__ uint32_t attend_first(const struct attend_view &v, uint32_t position)
{
    return v.batch.window && position >= v.batch.window ? position - v.batch.window + 1 : 0;
}
/* Those of them that are sinks (part 0) or behind them (part 1): first … end - 1. */
struct attend_part {
    uint32_t first, end;
};
__device__ __forceinline__ struct attend_part attend_part_of(const struct kv_window &w,
                                                             uint32_t position, uint32_t part)
{
    if (part == 0) return {0, attend_lower(position + 1, w.sinks)};
    uint32_t first = w.tokens && position >= w.tokens ? position - w.tokens + 1 : 0;
    first = attend_higher(first, w.sinks);
    return {first, attend_higher(position + 1, first)};
}
/* K of a token's block; its 16 rows of head_dim elements of `bytes` follow each other. */
__device__ __forceinline__ const unsigned char *attend_block(const struct attend_view &v,
                                                             uint32_t table_first, uint32_t token,
                                                             uint32_t kv_head, uint32_t bytes)
{
    return v.k + v.batch.table[table_first + token / BLOCK_TOKENS] * v.block_bytes +
           (size_t)kv_head * BLOCK_TOKENS * v.head_dim * bytes;
}

/* --- into shared memory --- */

/* Rows of a head_dim that is no multiple of 8 are not aligned to 16 bytes: they go in words, at
 * once and slowly. Element d and d + 1 of a row, zeros if not `valid`. */
__device__ __forceinline__ void attend_load_word(uint16_t *shared, const uint16_t *row, uint32_t d,
                                                 bool valid)
{
    *(uint32_t *)(shared + d) = valid ? *(const uint32_t *)(row + d) : 0;
}

/* Tokens of one kv head's K (offset 0) or V (offset v_bytes). Those outside first … end - 1 become
 * zeros; their memory and their place in the table are not read. */
struct attend_source {
    size_t offset;
    uint32_t table_first, kv_head, first, end;
};

template <int DIM>
__device__ __forceinline__ void attend_load_words(uint16_t *shared, const struct attend_view &v,
                                                  const struct attend_source &from, uint32_t tile)
{
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < attend_tile(DIM) * DIM / 2; i += ATTEND_THREADS) {
        uint32_t row = i / (DIM / 2), d = i % (DIM / 2) * 2, token = tile + row;
        bool valid = token >= from.first && token < from.end && d < v.head_dim;
        const unsigned char *block =
            valid ? attend_block(v, from.table_first, token, from.kv_head, 2) + from.offset : v.k;
        attend_load_word(shared + row * attend_stride(DIM),
                         (const uint16_t *)block + row % BLOCK_TOKENS * v.head_dim, d, valid);
    }
}

/* The tile at `tile` into shared memory, when copy_wait and block_sync say so. */
template <int DIM>
__device__ __forceinline__ void attend_load(uint16_t *shared, const struct attend_view &v,
                                            const struct attend_source &from, uint32_t tile)
{
    constexpr uint32_t PIECES = DIM / 8, BLOCKS = attend_tile(DIM) / BLOCK_TOKENS;
    if (v.head_dim % 8 != 0) {
        attend_load_words<DIM>(shared, v, from, tile);
        return;
    }
    const unsigned char *block[BLOCKS];
#pragma unroll
    for (uint32_t n = 0; n < BLOCKS; n++) {
        uint32_t token = tile + n * BLOCK_TOKENS;
        bool used = token < from.end && token + BLOCK_TOKENS > from.first;
        block[n] =
            used ? attend_block(v, from.table_first, token, from.kv_head, 2) + from.offset : v.k;
    }
#pragma unroll
    for (uint32_t i = threadIdx.x; i < BLOCK_TOKENS * PIECES; i += ATTEND_THREADS) {
        uint32_t row = i / PIECES, d = i % PIECES * 8;
        uint32_t at = d < v.head_dim ? row * v.head_dim + d : 0;
        uint32_t tokens = d < v.head_dim ? from.end - from.first : 0;
        uint32_t token = tile + row - from.first; /* before the first: wraps, beyond `tokens` */
#pragma unroll
        for (uint32_t n = 0; n < BLOCKS; n++)
            copy_async(shared + (n * BLOCK_TOKENS + row) * attend_stride(DIM) + d,
                       (const uint16_t *)block[n] + at, token + n * BLOCK_TOKENS < tokens);
    }
}

/* --- softmax --- */

/* A query's state: the largest score so far, before the scale, and this lane's part of the sum of
 * the probabilities relative to it. */
struct attend_row {
    float largest, sum;
};

/* Scores of a tile: score[n][2 half + j] is of this lane's row lane / 4 + 8 half and of token
 * 8 n + 2 (lane % 4) + j of the tile. Those outside first … end - 1 are selected away (A3). */
template <int N, int HALF>
__device__ __forceinline__ void attend_mask(float (&score)[N][4], uint32_t tile, uint32_t first,
                                            uint32_t end)
{
    uint32_t token = tile + threadIdx.x % 4 * 2;
#pragma unroll
    for (uint32_t n = 0; n < N; n++)
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            uint32_t t = token + n * 8 + j;
            if (t < first || t >= end) score[n][2 * HALF + j] = -INFINITY;
        }
}

/* Scores become probabilities; returns what earlier sums shrink by, exactly 1 where the maximum
 * stays (A4). A row that has seen no token yet keeps zeros. */
template <int N, int HALF>
__device__ __forceinline__ float attend_softmax(float (&score)[N][4], struct attend_row *row,
                                                float scale)
{
    float largest = row->largest, sum = 0;
#pragma unroll
    for (uint32_t n = 0; n < N; n++)
        largest = fmaxf(largest, fmaxf(score[n][2 * HALF], score[n][2 * HALF + 1]));
    largest = fmaxf(largest, shuffle_xor(largest, 1));
    largest = fmaxf(largest, shuffle_xor(largest, 2));
    float base = largest == -INFINITY ? 0.0f : largest, shift = -base * scale;
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
        float *p = &score[n][2 * HALF];
        p[0] = exp2_fast(fmaf(p[0], scale, shift));
        p[1] = exp2_fast(fmaf(p[1], scale, shift));
        sum += p[0] + p[1];
    }
    float rescale = exp2_fast((row->largest - base) * scale);
    row->largest = largest;
    row->sum = fmaf(row->sum, rescale, sum);
    return rescale;
}

/* The sum over a quad's lanes, the same bits in all of them. */
__device__ __forceinline__ float attend_quad_sum(float v)
{
    v += shuffle_xor(v, 1);
    return v + shuffle_xor(v, 2);
}

/* Folds a split with maximum and sum `split` into `row`; what was there shrinks by the first
 * factor, the split's part by the second. A row that has seen nothing has maximum -INFINITY. */
__device__ __forceinline__ float2 attend_fold(struct attend_row *row, struct attend_row split,
                                              float scale)
{
    float largest = fmaxf(row->largest, split.largest);
    float2 factor;
    factor.x = exp2_fast((row->largest - largest) * scale);
    factor.y = exp2_fast((split.largest - largest) * scale);
    row->largest = largest;
    row->sum = fmaf(split.sum, factor.y, row->sum * factor.x);
    return factor;
}

/* The quotient as it is written. Zeros get the sign +, since whether a masked tile was added as
 * zeros or left out may show in it. */
__device__ __forceinline__ float attend_quotient(float o, float inverse)
{
    return fmaf(o, inverse, 0.0f);
}

/* --- o += p v --- */

/* A tile's probabilities, rounded to bf16, as the left operands of its mma: [16 tokens of the tile]. */
template <int TILE>
__device__ __forceinline__ void attend_round(uint32_t (&rounded)[TILE / 16][4],
                                             const float (&p)[TILE / 8][4])
{
#pragma unroll
    for (uint32_t i = 0; i < TILE / 4; i++) {
        const float *pair = &p[i / 2][i % 2 * 2];
        rounded[i / 4][i % 4] = bf16_pair(pair[0], pair[1]);
    }
}

/* o[m] += p[m] v for M times 16 queries and N x 8 dimensions; `v` is the tile's first of them in
 * shared memory. */
template <int DIM, int M, int N>
__device__ __forceinline__ void attend_weigh(float (&o)[M][N][4],
                                             const uint32_t (&p)[M][attend_tile(DIM) / 16][4],
                                             const uint16_t *v)
{
    v += threadIdx.x % WARP_LANES * attend_stride(DIM);
#pragma unroll
    for (uint32_t g = 0; g < attend_tile(DIM) / 32; g++)
#pragma unroll
        for (uint32_t n = 0; n < N; n++) {
            uint32_t b[4];
            load_matrices_transposed(b, v + g * 32 * attend_stride(DIM) + n * 8);
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                mma_bf16(o[m][n], p[m][2 * g], b[0], b[1]);
                mma_bf16(o[m][n], p[m][2 * g + 1], b[2], b[3]);
            }
        }
}

/* Over 48 KiB of shared memory are granted only if asked for. */
template <typename Kernel> static cudaError_t attend_allow(Kernel kernel, uint32_t bytes)
{
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

#endif
