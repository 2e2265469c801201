/* attend_prefill: rows in tiles, consecutive rows of one sequence; FlashAttention-2 over the paged KV.
 *
 * CPU reference: attend in kernels/body_attend.h; naive in tests/unit/cuda_attend_test.c.
 *
 * The queries of one kv head are the pairs (row, one of its query heads), rows first; a block takes
 * 64 or 128 consecutive pairs, so that small chunks fill it too and each tile of K and V is read once
 * for all heads that share it. A warp has 16 or 32 of the pairs.
 *
 * Under `deterministic` (FOLD) the softmax starts afresh at absolute multiples of CUDA_SPLIT_TOKENS
 * and the splits are folded as attend_decode's merge_kernel folds them: with the shared order of
 * attend.cuh a row then has the bits that it would have as a decode row.
 *
 * Cost of a call for R rows over T tokens each, bf16: 4 R T heads head_dim flops on tensor cores (half
 * of that if the rows are all of the sequence); reads 4 T kv_heads head_dim bytes of KV for each
 * 128 / group rows, mostly from the L2 cache. */
#include "kernels/cuda/attend.cuh"

/* Pairs of a block with M times 16 of them a warp. */
constexpr __host__ __device__ int prefill_pairs(int m)
{
    return ATTEND_WARPS * 16 * m;
}

/* What one block works on. Pair i is row i / group, head i % group of the kv head. */
struct prefill_block {
    struct cuda_tile tile;
    uint32_t kv_head, pair_first, pair_end; /* of the tile's pairs */
    uint32_t first, end;                    /* tokens that any of its rows attends to */
    uint32_t all_first, all_end;            /* tokens that all of its rows attend to, if any */
};

__device__ __forceinline__ uint32_t prefill_position(const struct attend_view &v,
                                                     const struct prefill_block &b, uint32_t pair)
{
    return b.tile.position + pair / v.group;
}

/* Later tiles, which are longer, come first. False: this tile has no pairs left for the block. */
__device__ __forceinline__ bool prefill_open(struct prefill_block *b, const struct attend_view &v,
                                             uint32_t tiles, uint32_t pairs_max)
{
    uint32_t parts = divide_up(CUDA_TILE_ROWS * v.group, pairs_max), unit = blockIdx.x / parts;
    b->tile = v.batch.tile[tiles - 1 - unit / v.kv_heads];
    b->kv_head = unit % v.kv_heads;
    uint32_t pairs = b->tile.rows_count * v.group;
    b->pair_first = blockIdx.x % parts * pairs_max;
    if (b->pair_first >= pairs) return false;
    b->pair_end = attend_lower(b->pair_first + pairs_max, pairs);
    b->first = attend_first(v, prefill_position(v, *b, b->pair_first));
    b->all_end = prefill_position(v, *b, b->pair_first) + 1;
    b->end = prefill_position(v, *b, b->pair_end - 1) + 1;
    b->all_first = attend_first(v, b->end - 1);
    return true;
}

/* Where a pair's query or result begins; `stride` is that of rows. */
__device__ __forceinline__ size_t prefill_at(const struct attend_view &v,
                                             const struct prefill_block &b, uint32_t pair,
                                             uint32_t stride)
{
    return (size_t)(b.tile.row_first + pair / v.group) * stride +
           (b.kv_head * v.group + pair % v.group) * v.head_dim;
}

/* The block's queries into shared memory [pairs][DIM + 8], zeros behind the last. */
template <int DIM, int M>
__device__ __forceinline__ void prefill_load_queries(uint16_t *shared, const struct attend_view &v,
                                                     const struct prefill_block &b)
{
    constexpr uint32_t PIECES = DIM / 8;
    bool words = v.head_dim % 8 != 0;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < prefill_pairs(M) * PIECES; i += ATTEND_THREADS) {
        uint32_t pair = b.pair_first + i / PIECES, d = i % PIECES * 8;
        bool valid = pair < b.pair_end;
        const uint16_t *row =
            (const uint16_t *)v.q + (valid ? prefill_at(v, b, pair, v.q_stride) : 0);
        uint16_t *to = shared + i / PIECES * attend_stride(DIM);
        for (uint32_t end = d + 8; words && d < end; d += 2)
            attend_load_word(to, row, d, valid && d < v.head_dim);
        valid = valid && d < v.head_dim;
        if (!words) copy_async(to + d, row + (valid ? d : 0), valid);
    }
}

/* What one warp works on: M times 16 pairs. This lane's rows are pair + 16 m + 8 half. */
template <int DIM, int M> struct prefill_state {
    uint32_t pair;           /* lane / 4 behind the warp's first */
    uint32_t low, high;      /* positions of the warp's first and last row */
    bool idle;               /* the warp has no pairs */
    uint32_t position[M][2]; /* behind the last pair: the last one's */
    struct attend_row row[M][2];
    float o[M][DIM / 8][4];
};

template <int DIM, int M>
__device__ __forceinline__ void prefill_clear(struct prefill_state<DIM, M> *s)
{
#pragma unroll
    for (uint32_t m = 0; m < M; m++) {
        s->row[m][0] = s->row[m][1] = {-INFINITY, 0};
#pragma unroll
        for (uint32_t n = 0; n < DIM / 8; n++)
            s->o[m][n][0] = s->o[m][n][1] = s->o[m][n][2] = s->o[m][n][3] = 0;
    }
}

template <int DIM, int M>
__device__ __forceinline__ void prefill_start(struct prefill_state<DIM, M> *s,
                                              const struct attend_view &v,
                                              const struct prefill_block &b)
{
    uint32_t warp = b.pair_first + threadIdx.x / WARP_LANES * (16 * M), last = b.pair_end - 1;
    s->pair = warp + threadIdx.x % WARP_LANES / 4;
    s->idle = warp > last;
    s->low = prefill_position(v, b, attend_lower(warp, last));
    s->high = prefill_position(v, b, attend_lower(warp + 16 * M - 1, last));
#pragma unroll
    for (uint32_t i = 0; i < 2 * M; i++)
        s->position[i / 2][i % 2] = prefill_position(v, b, attend_lower(s->pair + 8 * i, last));
    prefill_clear(s);
}

/* The warp's scores of a tile; `q` is its first query in shared memory. */
template <int DIM, int M>
__device__ __forceinline__ void prefill_scores(float (&score)[M][attend_tile(DIM) / 8][4],
                                               const uint16_t *q, const uint16_t *k)
{
    constexpr uint32_t STRIDE = attend_stride(DIM);
    uint32_t lane = threadIdx.x % WARP_LANES;
    q += lane % 16 * STRIDE + lane / 16 * 8;
    k += lane % 8 * STRIDE + lane / 8 * 8;
#pragma unroll
    for (uint32_t m = 0; m < M; m++)
#pragma unroll
        for (uint32_t n = 0; n < attend_tile(DIM) / 8; n++)
            score[m][n][0] = score[m][n][1] = score[m][n][2] = score[m][n][3] = 0;
#pragma unroll
    for (uint32_t d = 0; d < DIM; d += 32) {
        uint32_t a[M][2][4];
#pragma unroll
        for (uint32_t m = 0; m < M; m++) {
            load_matrices(a[m][0], q + m * 16 * STRIDE + d);
            load_matrices(a[m][1], q + m * 16 * STRIDE + d + 16);
        }
#pragma unroll
        for (uint32_t n = 0; n < attend_tile(DIM) / 8; n++) {
            uint32_t b[4];
            load_matrices(b, k + n * 8 * STRIDE + d);
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                mma_bf16(score[m][n], a[m][0], b[0], b[1]);
                mma_bf16(score[m][n], a[m][1], b[2], b[3]);
            }
        }
    }
}

/* Rows 8 HALF of each 16: scores become probabilities, o shrinks. */
template <int DIM, int M, int HALF>
__device__ __forceinline__ void
prefill_softmax(struct prefill_state<DIM, M> *s, float (&p)[M][attend_tile(DIM) / 8][4],
                const struct attend_view &v, uint32_t tile, bool whole)
{
    constexpr uint32_t N = attend_tile(DIM) / 8;
#pragma unroll
    for (uint32_t m = 0; m < M; m++) {
        uint32_t position = s->position[m][HALF];
        if (!whole) attend_mask<N, HALF>(p[m], tile, attend_first(v, position), position + 1);
        float rescale = attend_softmax<N, HALF>(p[m], &s->row[m][HALF], v.scale);
#pragma unroll
        for (uint32_t n = 0; n < DIM / 8; n++) {
            s->o[m][n][2 * HALF] *= rescale;
            s->o[m][n][2 * HALF + 1] *= rescale;
        }
    }
}

/* A word's halves as bf16: those that are not finite become zeros. */
__device__ __forceinline__ uint32_t prefill_finite(uint32_t pair)
{
    uint32_t low = (pair & 0x7f80u) == 0x7f80u ? 0 : pair & 0xffffu;
    uint32_t high = (pair & 0x7f800000u) == 0x7f800000u ? 0 : pair & 0xffff0000u;
    return low | high;
}

/* Where rows take different tokens of a tile, a token that some must not see may hold anything, and
 * 0 x NaN is NaN: what is not finite in V is zeroed, and sick[warp][g] gets the tokens 32 g … 32 g +
 * 31 in which this warp, with a quarter of the dimensions, has met it. */
template <int DIM> __device__ __forceinline__ void prefill_clean(uint16_t *value, uint32_t *sick)
{
    constexpr uint32_t GROUPS = attend_tile(DIM) / 32;
    uint32_t lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
    for (uint32_t g = 0; g < GROUPS; g++) {
        bool found = false;
        for (uint32_t d = warp * 8; d < DIM; d += ATTEND_WARPS * 8) {
            uint4 *at = (uint4 *)(value + (g * 32 + lane) * attend_stride(DIM) + d), now = *at;
            uint4 clean = make_uint4(prefill_finite(now.x), prefill_finite(now.y),
                                     prefill_finite(now.z), prefill_finite(now.w));
            if (clean.x == now.x && clean.y == now.y && clean.z == now.z && clean.w == now.w)
                continue;
            *at = clean;
            found = true;
        }
        uint32_t tokens = warp_ballot(found);
        if (lane == 0) sick[warp * GROUPS + g] = tokens;
    }
}

/* Bits first … end - 1 of a word; both may be beyond it. */
__device__ __forceinline__ uint32_t prefill_bits(uint32_t first, uint32_t end)
{
    uint32_t below_first = first < 32 ? (1u << first) - 1 : ~0u;
    return (end < 32 ? (1u << end) - 1 : ~0u) & ~below_first;
}

/* Rows that attend to a sick token get NaN. */
template <int DIM, int M>
__device__ __forceinline__ void prefill_spoil(struct prefill_state<DIM, M> *s, const uint32_t *sick,
                                              const struct attend_view &v, uint32_t tile)
{
    constexpr uint32_t GROUPS = attend_tile(DIM) / 32;
    for (uint32_t g = 0; g < GROUPS; g++) {
        uint32_t tokens = 0, token = tile + g * 32;
        for (uint32_t warp = 0; warp < ATTEND_WARPS; warp++)
            tokens |= sick[warp * GROUPS + g];
        if (tokens == 0) continue;
#pragma unroll
        for (uint32_t i = 0; i < 2 * M; i++) {
            uint32_t position = s->position[i / 2][i % 2], first = attend_first(v, position);
            uint32_t end = position + 1 > token ? position + 1 - token : 0;
            first = first > token ? first - token : 0;
            if (tokens & prefill_bits(first, end)) s->row[i / 2][i % 2].sum = NAN;
        }
    }
}

/* The end of the split that `tile` is in: o moves over to `folded`, this lane's [DIM / 8][4] floats
 * in shared memory, ATTEND_THREADS apart. Rows without tokens in the split stay as they are. */
template <int DIM>
__device__ __forceinline__ void prefill_fold(struct prefill_state<DIM, 1> *s,
                                             struct attend_row (&total)[2], float *folded,
                                             const struct attend_view &v, uint32_t tile)
{
    uint32_t begin = tile / CUDA_SPLIT_TOKENS * CUDA_SPLIT_TOKENS;
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t position = s->position[0][half];
        float sum = attend_quad_sum(s->row[0][half].sum);
        if (position < begin || attend_first(v, position) >= begin + CUDA_SPLIT_TOKENS) continue;
        float2 factor = attend_fold(&total[half], {s->row[0][half].largest, sum}, v.scale);
#pragma unroll
        for (uint32_t n = 0; n < DIM / 8; n++)
#pragma unroll
            for (uint32_t j = 2 * half; j < 2 * half + 2; j++) {
                float *at = folded + (n * 4 + j) * ATTEND_THREADS;
                *at = fmaf(s->o[0][n][j], factor.y, *at * factor.x);
            }
    }
    prefill_clear(s);
}

template <int DIM, int M>
__device__ __forceinline__ void prefill_store(const struct prefill_state<DIM, M> &s,
                                              const struct attend_view &v,
                                              const struct prefill_block &b)
{
    uint32_t d = threadIdx.x % 4 * 2;
#pragma unroll
    for (uint32_t i = 0; i < 2 * M; i++) {
        float inverse = 1.0f / s.row[i / 2][i % 2].sum;
        uint32_t pair = s.pair + 8 * i;
        if (pair >= b.pair_end) continue;
        uint16_t *out = (uint16_t *)v.out + prefill_at(v, b, pair, v.heads * v.head_dim);
#pragma unroll
        for (uint32_t n = 0; n < DIM / 8; n++)
            if (d + n * 8 < v.head_dim)
                *(uint32_t *)(out + d + n * 8) =
                    bf16_pair(attend_quotient(s.o[i / 2][n][i % 2 * 2], inverse),
                              attend_quotient(s.o[i / 2][n][i % 2 * 2 + 1], inverse));
    }
}

/* All tiles are done: sums over the quads, or what was folded. */
template <int DIM, int M, bool FOLD>
__device__ __forceinline__ void prefill_finish(struct prefill_state<DIM, M> *s,
                                               const struct attend_row (&total)[2],
                                               const float *folded)
{
#pragma unroll
    for (uint32_t i = 0; i < 2 * M; i++)
        s->row[i / 2][i % 2].sum =
            FOLD ? total[i % 2].sum : attend_quad_sum(s->row[i / 2][i % 2].sum);
#pragma unroll
    for (uint32_t i = 0; FOLD && i < DIM / 2; i++)
        s->o[0][i / 4][i % 4] = folded[i * ATTEND_THREADS];
}

template <int DIM, int M, bool FOLD> constexpr uint32_t prefill_shared_bytes()
{
    return shared_bytes<uint16_t>(prefill_pairs(M) * attend_stride(DIM)) +
           2 * shared_bytes<uint16_t>(attend_tile(DIM) * attend_stride(DIM)) +
           shared_bytes<uint32_t>(ATTEND_WARPS * attend_tile(DIM) / 32) +
           (FOLD ? shared_bytes<float>(DIM / 2 * ATTEND_THREADS) : 0);
}

/* V comes while the scores are computed, the next K while they weigh V: one tile of each in shared
 * memory, one copy always under way.
 * Shared bytes with M = 1: 27648 at 64 wide, 39936 at 96, 52224 at 128, 67584 at 256; FOLD adds 256
 * DIM; M = 2 adds 128 (DIM + 8). */
template <int DIM, int M, bool FOLD>
__global__ void __launch_bounds__(ATTEND_THREADS, 2)
    prefill_kernel(struct attend_view v, uint32_t tiles)
{
    constexpr uint32_t TILE = attend_tile(DIM), STRIDE = attend_stride(DIM);
    struct shared_memory shared;
    uint16_t *q = shared_take<uint16_t>(&shared, prefill_pairs(M) * STRIDE);
    uint16_t *k = shared_take<uint16_t>(&shared, TILE * STRIDE);
    uint16_t *value = shared_take<uint16_t>(&shared, TILE * STRIDE);
    uint32_t *sick = shared_take<uint32_t>(&shared, ATTEND_WARPS * TILE / 32);
    float *folded = FOLD ? shared_take<float>(&shared, DIM / 2 * ATTEND_THREADS) : nullptr;
    struct prefill_block b;
    if (!prefill_open(&b, v, tiles, prefill_pairs(M))) return;
    struct prefill_state<DIM, M> s;
    struct attend_row total[2] = {{-INFINITY, 0}, {-INFINITY, 0}};
    prefill_start(&s, v, b);
    folded += threadIdx.x;
    for (uint32_t i = 0; FOLD && i < DIM / 2; i++)
        folded[i * ATTEND_THREADS] = 0;
    uint32_t tile = b.first / TILE * TILE;
    struct attend_source from = {0, b.tile.table_first, b.kv_head, b.first, b.end};
    prefill_load_queries<DIM, M>(q, v, b);
    attend_load<DIM>(k, v, from, tile);
    copy_commit();
    for (; tile < b.end; tile += TILE) {
        bool takes = !s.idle && tile <= s.high && tile + TILE > attend_first(v, s.low);
        bool whole = tile + TILE <= s.low + 1 && tile >= attend_first(v, s.high);
        float p[M][TILE / 8][4];
        copy_wait<0>();
        block_sync(); /* K is there, and everyone is done with V */
        from.offset = v.v_bytes;
        attend_load<DIM>(value, v, from, tile);
        copy_commit();
        if (takes) {
            prefill_scores<DIM, M>(p, q + threadIdx.x / WARP_LANES * (16 * M * STRIDE), k);
            prefill_softmax<DIM, M, 0>(&s, p, v, tile, whole);
            prefill_softmax<DIM, M, 1>(&s, p, v, tile, whole);
        }
        copy_wait<0>();
        block_sync(); /* V is there, and everyone is done with K */
        if (tile + TILE < b.end) from.offset = 0;
        attend_load<DIM>(k, v, from, tile + TILE);
        copy_commit();
        if (tile < b.all_first || tile + TILE > b.all_end) {
            prefill_clean<DIM>(value, sick);
            block_sync();
            prefill_spoil(&s, sick, v, tile);
        }
        if (takes) attend_weigh<DIM, M, DIM / 8>(s.o, p, value);
        if constexpr (FOLD)
            if ((tile + TILE) % CUDA_SPLIT_TOKENS == 0 || tile + TILE >= b.end)
                prefill_fold(&s, total, folded, v, tile);
    }
    copy_wait<0>();
    prefill_finish<DIM, M, FOLD>(&s, total, folded);
    prefill_store(s, v, b);
}

template <int DIM, int M, bool FOLD>
static cudaError_t prefill_launch(cudaStream_t stream, const struct attend_view *v, uint32_t tiles)
{
    constexpr uint32_t bytes = prefill_shared_bytes<DIM, M, FOLD>();
    uint32_t parts = divide_up(CUDA_TILE_ROWS * v->group, prefill_pairs(M));
    cudaError_t e = attend_allow(prefill_kernel<DIM, M, FOLD>, bytes);
    if (e != cudaSuccess) return e;
    LAUNCH((prefill_kernel<DIM, M, FOLD>), tiles * v->kv_heads * parts, ATTEND_THREADS, bytes,
           stream, *v, tiles);
    return cudaPeekAtLastError();
}

/* 32 pairs a warp use each piece of K and V twice; more than 128 wide they do not fit in registers,
 * and a tile without shared kv heads has not so many. */
template <int DIM>
static cudaError_t prefill_choose(cudaStream_t stream, const struct attend_view *v, uint32_t tiles,
                                  bool deterministic)
{
    if (deterministic) return prefill_launch<DIM, 1, true>(stream, v, tiles);
    if constexpr (DIM <= 128)
        if (v->group > 1) return prefill_launch<DIM, 2, false>(stream, v, tiles);
    return prefill_launch<DIM, 1, false>(stream, v, tiles);
}

extern "C" cudaError_t cuda_attend_prefill(cudaStream_t stream, void *out, const void *q,
                                           uint32_t q_stride, const struct cuda_batch *batch,
                                           const struct cuda_attention *a, const struct cuda_kv *kv,
                                           uint32_t tiles, bool deterministic)
{
    struct attend_view v = attend_view_of(out, q, q_stride, batch, a, kv);
    if (tiles == 0) return cudaSuccess;
    if (a->dtype == DTYPE_F32) return attend_f32_tiles(stream, &v, tiles);
    return a->head_dim <= 64    ? prefill_choose<64>(stream, &v, tiles, deterministic)
           : a->head_dim <= 96  ? prefill_choose<96>(stream, &v, tiles, deterministic)
           : a->head_dim <= 128 ? prefill_choose<128>(stream, &v, tiles, deterministic)
                                : prefill_choose<256>(stream, &v, tiles, deterministic);
}
