/* rope: what writes KV. Rotation and append of a step's rows, and whole blocks to and from another
 * layout for a transfer. Bound by memory. Registers are of sm_90. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/eight.cuh"
#include "kernels/cuda/kernels.h"

namespace {

enum { ROPE_THREADS = 128 };

/* Where K of this layer is in a block. */
template <typename T>
__device__ __forceinline__ T *block_of_pool(const struct cuda_kv &kv, uint32_t block)
{
    const struct kv_geometry &g = kv.geometry;
    size_t layer_elements = 2 * (size_t)g.kv_heads * g.head_dim * BLOCK_TOKENS;
    return (T *)kv.base + ((size_t)block * g.layers_count + kv.layer) * layer_elements;
}

/* N neighbours: eight, or one where eight would not be aligned. */
template <uint32_t N> __device__ __forceinline__ void load_some(struct eight *e, const float *at)
{
    if (N == EIGHT)
        eight_load(e, at);
    else
        e->v[0] = *at;
}
template <uint32_t N> __device__ __forceinline__ void load_some(struct eight *e, const uint16_t *at)
{
    if (N == EIGHT)
        eight_load(e, at);
    else
        e->v[0] = float_from_bf16(*at);
}
template <uint32_t N> __device__ __forceinline__ void store_some(float *at, const struct eight &e)
{
    if (N == EIGHT)
        eight_store(at, e);
    else
        *at = e.v[0];
}
template <uint32_t N>
__device__ __forceinline__ void store_some(uint16_t *at, const struct eight &e)
{
    if (N == EIGHT)
        eight_store(at, e);
    else
        *at = bf16_from_float(e.v[0]);
}

/* Equals rope_append in kernels/body_rows.h. Block x is a row, a thread takes N pairs (i, i +
 * head_dim / 2) of one head of q, k or v; v is only copied. Reads and writes the qkv row once but for
 * v and k, which go to the pool. 3 flops an element of q and k. No shared memory, 48 registers. */
template <typename T, uint32_t N>
__global__ void __launch_bounds__(ROPE_THREADS)
    rope_append_kernel(T *qkv, struct cuda_batch batch, const float *cos, const float *sin,
                       struct cuda_attention a, struct cuda_kv kv)
{
    grid_wait();
    uint32_t row = blockIdx.x, half = a.head_dim / 2, pieces = half / N;
    uint32_t item = blockIdx.y * ROPE_THREADS + threadIdx.x;
    uint32_t head = item / pieces, i = item % pieces * N;
    uint32_t heads = a.heads + 2 * a.kv_heads;
    if (row >= *batch.live || head >= heads) return;

    uint32_t position = batch.position[row];
    T *from = qkv + ((size_t)row * heads + head) * a.head_dim + i;
    struct eight low, high, c, s;
    load_some<N>(&low, from);
    load_some<N>(&high, from + half);
    if (head < a.heads + a.kv_heads) {
        load_some<N>(&c, cos + (size_t)position * half + i);
        load_some<N>(&s, sin + (size_t)position * half + i);
        for (uint32_t j = 0; j < N; j++) {
            float turned = fmaf(-high.v[j], s.v[j], low.v[j] * c.v[j]);
            high.v[j] = fmaf(low.v[j], s.v[j], high.v[j] * c.v[j]);
            low.v[j] = turned;
        }
    }
    T *to = from;
    if (head >= a.heads) { /* K, and behind it V: [head][token][dim] */
        uint32_t block = batch.table[batch.table_first[row] + position / BLOCK_TOKENS];
        uint32_t token = (head - a.heads) * BLOCK_TOKENS + position % BLOCK_TOKENS;
        to = block_of_pool<T>(kv, block) + (size_t)token * a.head_dim + i;
    }
    store_some<N>(to, low);
    store_some<N>(to + half, high);
}

/* Which token and dimension element `at` of one head's K or V is in each layout of
 * common/geometry.h. */
struct kv_place {
    uint32_t token, dim;
};
__device__ __forceinline__ struct kv_place place_cuda(uint32_t at, uint32_t head_dim)
{
    return {at / head_dim, at % head_dim};
}
__device__ __forceinline__ struct kv_place place_cpu_k(uint32_t at)
{
    return {at / 2 % BLOCK_TOKENS, at / (2 * BLOCK_TOKENS) * 2 + at % 2};
}
/* Tokens of 16-bit elements lie in pairs. */
template <typename T>
__device__ __forceinline__ struct kv_place place_cpu_v(uint32_t at, uint32_t head_dim)
{
    if (sizeof(T) != 2) return {at / head_dim, at % head_dim};
    return {at / (2 * head_dim) * 2 + at % 2, at / 2 % head_dim};
}
template <typename T>
__device__ __forceinline__ struct kv_place place_of(uint32_t at, uint32_t layout, bool is_v,
                                                    uint32_t head_dim)
{
    if (layout == KV_LAYOUT_CUDA) return place_cuda(at, head_dim);
    return is_v ? place_cpu_v<T>(at, head_dim) : place_cpu_k(at);
}

/* What 16 bytes at byte `at` of a payload give to its checksum: kv_hash of common/geometry.h. */
__device__ __forceinline__ uint64_t hash_of(uint4 words, size_t at)
{
    return kv_hash_word(words.x | (uint64_t)words.y << 32, at / 8) +
           kv_hash_word(words.z | (uint64_t)words.w << 32, at / 8 + 1);
}

/* One addition to global memory for each warp, whose lanes all call it. */
__device__ __forceinline__ void hash_add(uint64_t *hash, uint64_t sum)
{
    for (uint32_t mask = WARP_LANES / 2; mask > 0; mask /= 2) {
        uint64_t low = shuffle_xor((uint32_t)sum, mask);
        sum += low | (uint64_t)shuffle_xor((uint32_t)(sum >> 32), mask) << 32;
    }
    if (threadIdx.x % WARP_LANES == 0) atomic_add(hash, sum);
}

/* No CPU counterpart: its pool and what it sends have the same order (KV_LAYOUT_CPU of common/geometry.h).
 * One block of threads moves K or V of one head of one block of tokens between the pool and the
 * staging copy [blocks][layer bytes] in `layout`, through shared memory in the pool's order, so that
 * both sides are read and written in 16-byte pieces. Reads and writes each byte once; 16 x head_dim
 * elements shared, 32 registers. Rows of the tile are one piece apart in banks. Adds the staged bytes'
 * checksum to *hash, unless that is NULL. */
template <typename T, bool TO_POOL>
__global__ void __launch_bounds__(ROPE_THREADS)
    kv_move_kernel(T *staged, struct cuda_kv kv, const uint32_t *blocks, uint32_t layout,
                   uint64_t *hash)
{
    grid_wait();
    const uint32_t piece = 16 / sizeof(T), own = KV_LAYOUT_CUDA; /* piece: elements */
    uint32_t dim = kv.geometry.head_dim, parts = 2 * kv.geometry.kv_heads;
    uint32_t part = blockIdx.x % parts, index = blockIdx.x / parts; /* K of all heads, then V */
    uint32_t count = BLOCK_TOKENS * dim, stride = dim + piece;
    bool is_v = part >= kv.geometry.kv_heads;
    struct shared_memory shared;
    T *tile = shared_take<T>(&shared, BLOCK_TOKENS * stride);
    T *pool = block_of_pool<T>(kv, blocks[index]) + (size_t)part * count;
    size_t from_byte = (size_t)blockIdx.x * count * sizeof(T);
    staged += (size_t)blockIdx.x * count;
    uint64_t sum = 0;

    for (uint32_t at = threadIdx.x * piece; at < count; at += ROPE_THREADS * piece) {
        union {
            uint4 words;
            T v[16 / sizeof(T)];
        } in;
        in.words = *(const uint4 *)((TO_POOL ? staged : pool) + at);
        if (TO_POOL && hash) sum += hash_of(in.words, from_byte + at * sizeof(T));
        for (uint32_t i = 0; i < piece; i++) {
            struct kv_place p = place_of<T>(at + i, TO_POOL ? layout : own, is_v, dim);
            tile[p.token * stride + p.dim] = in.v[i];
        }
    }
    if (!PLANTED("kv_move_no_barrier")) block_sync();
    for (uint32_t at = threadIdx.x * piece; at < count; at += ROPE_THREADS * piece) {
        union {
            uint4 words;
            T v[16 / sizeof(T)];
        } out;
        for (uint32_t i = 0; i < piece; i++) {
            struct kv_place p = place_of<T>(at + i, TO_POOL ? own : layout, is_v, dim);
            out.v[i] = tile[p.token * stride + p.dim];
        }
        *(uint4 *)((TO_POOL ? pool : staged) + at) = out.words;
        if (!TO_POOL && hash) sum += hash_of(out.words, from_byte + at * sizeof(T));
    }
    if (hash) hash_add(hash, sum);
}

template <typename T, bool TO_POOL>
cudaError_t kv_move(cudaStream_t stream, void *staged, const struct cuda_kv *kv,
                    const uint32_t *blocks, uint32_t blocks_count, uint32_t layout, uint64_t *hash)
{
    uint32_t grid = blocks_count * 2 * kv->geometry.kv_heads;
    uint32_t bytes = shared_bytes<T>(BLOCK_TOKENS * (kv->geometry.head_dim + 16 / sizeof(T)));
    if (grid == 0) return cudaSuccess;
    LAUNCH((kv_move_kernel<T, TO_POOL>), grid, ROPE_THREADS, bytes, stream, (T *)staged, *kv,
           blocks, layout, hash);
    return cudaPeekAtLastError();
}

template <typename T, uint32_t N>
cudaError_t rope_append(cudaStream_t stream, void *qkv, const struct cuda_batch *batch,
                        const float *cos, const float *sin, const struct cuda_attention *a,
                        const struct cuda_kv *kv, uint32_t rows)
{
    uint32_t items = (a->heads + 2 * a->kv_heads) * (a->head_dim / 2 / N);
    dim3 grid(rows, divide_up(items, ROPE_THREADS));
    LAUNCH((rope_append_kernel<T, N>), grid, ROPE_THREADS, 0, stream, (T *)qkv, *batch, cos, sin,
           *a, *kv);
    return cudaPeekAtLastError();
}

} // namespace

cudaError_t cuda_rope_append(cudaStream_t stream, void *qkv, const struct cuda_batch *batch,
                             const float *cos, const float *sin, const struct cuda_attention *a,
                             const struct cuda_kv *kv, uint32_t rows)
{
    bool wide = a->head_dim / 2 % EIGHT == 0;
    if (rows == 0) return cudaSuccess;
    if (a->dtype == DTYPE_F32)
        return (wide ? rope_append<float, EIGHT> : rope_append<float, 1>)(stream, qkv, batch, cos,
                                                                          sin, a, kv, rows);
    return (wide ? rope_append<uint16_t, EIGHT> : rope_append<uint16_t, 1>)(stream, qkv, batch, cos,
                                                                            sin, a, kv, rows);
}

cudaError_t cuda_kv_gather(cudaStream_t stream, void *out, const struct cuda_kv *kv,
                           const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                           uint64_t *hash)
{
    if (kv->geometry.dtype == DTYPE_F32)
        return kv_move<uint32_t, false>(stream, out, kv, blocks, blocks_count, layout, hash);
    return kv_move<uint16_t, false>(stream, out, kv, blocks, blocks_count, layout, hash);
}

cudaError_t cuda_kv_scatter(cudaStream_t stream, const struct cuda_kv *kv, const void *in,
                            const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                            uint64_t *hash)
{
    void *staged = (void *)in; /* only read */
    if (kv->geometry.dtype == DTYPE_F32)
        return kv_move<uint32_t, true>(stream, staged, kv, blocks, blocks_count, layout, hash);
    return kv_move<uint16_t, true>(stream, staged, kv, blocks, blocks_count, layout, hash);
}
