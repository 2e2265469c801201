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
 * With OWN windows a tile's rows see their sinks, then what is behind them: the block walks over its tiles
 * twice, each time with the limits of that part, and the splits of both are folded.
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

/* Tokens that any of some rows attends to, and those that all of them attend to, if there are any. */
struct prefill_limits {
    uint32_t first, end, all_first, all_end;
};

/* What one block works on, in shared memory: accumulators need the registers. Pair i of a tile is row
 * i / group, head i % group of the kv head. */
struct prefill_block {
    struct cuda_tile tile;
    uint32_t kv_head, pair_first, pair_end; /* of the tile's pairs */
    uint32_t part;                          /* OWN: of what the rows see */
    struct prefill_limits rows, warp[ATTEND_WARPS];
};

__device__ __forceinline__ uint32_t prefill_position(const struct attend_view &v,
                                                     const struct prefill_block &b, uint32_t pair)
{
    return b.tile.position + attend_lower(pair, b.pair_end - 1) / v.group;
}

/* What a row sees now. */
template <bool OWN>
__device__ __forceinline__ struct attend_part
prefill_seen(const struct attend_view &v, const struct prefill_block &b, uint32_t position)
{
    if (OWN) return attend_part_of(b.tile.window, position, b.part);
    return {attend_first(v, position), position + 1};
}

/* Of `pairs` pairs from `pair` on, as far as there are so many. */
template <bool OWN>
__device__ __forceinline__ struct prefill_limits prefill_limits_of(const struct attend_view &v,
                                                                   const struct prefill_block &b,
                                                                   uint32_t pair, uint32_t pairs)
{
    uint32_t low = prefill_position(v, b, pair), high = prefill_position(v, b, pair + pairs - 1);
    if (pair >= b.pair_end) return {0, 0, 0, 0};
    struct attend_part of_low = prefill_seen<OWN>(v, b, low),
                       of_high = prefill_seen<OWN>(v, b, high);
    return {of_low.first, of_high.end, of_high.first, of_low.end};
}

/* Fills *shared, for all behind the next block_sync; later tiles, which are longer, come first.
 * False: this tile has no pairs left for the block. */
template <int M, bool OWN>
__device__ __forceinline__ bool prefill_open(struct prefill_block *shared,
                                             const struct attend_view &v, uint32_t tiles,
                                             uint32_t part)
{
    constexpr uint32_t PAIRS = prefill_pairs(M), WARP_PAIRS = PAIRS / ATTEND_WARPS;
    uint32_t parts = divide_up(CUDA_TILE_ROWS * v.group, PAIRS), unit = blockIdx.x / parts;
    uint32_t warp = threadIdx.x / WARP_LANES;
    struct prefill_block b;
    b.tile = v.batch.tile[tiles - 1 - unit / v.kv_heads];
    b.kv_head = unit % v.kv_heads;
    b.pair_first = blockIdx.x % parts * PAIRS;
    b.pair_end = attend_lower(b.pair_first + PAIRS, b.tile.rows_count * v.group);
    b.part = part;
    if (b.pair_first >= b.pair_end) return false;
    if (threadIdx.x % WARP_LANES == 0)
        shared->warp[warp] =
            prefill_limits_of<OWN>(v, b, b.pair_first + warp * WARP_PAIRS, WARP_PAIRS);
    if (threadIdx.x != 0) return true;
    shared->tile = b.tile;
    shared->kv_head = b.kv_head;
    shared->pair_first = b.pair_first;
    shared->pair_end = b.pair_end;
    shared->part = part;
    shared->rows = prefill_limits_of<OWN>(v, b, b.pair_first, PAIRS);
    return true;
}

/* This lane's row `row` of its warp's 16 M pairs. */
template <int M>
__device__ __forceinline__ uint32_t prefill_pair(const struct prefill_block &b, uint32_t row)
{
    uint32_t warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    return b.pair_first + warp * (16 * M) + lane / 4 + row;
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
    for (uint32_t i = threadIdx.x; i < prefill_pairs(M) * PIECES + PLANTED("prefill_query_too_far");
         i += ATTEND_THREADS) {
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

/* Puts a tile of K (offset 0) or V (offset v_bytes) under way. */
template <int DIM>
__device__ __forceinline__ void prefill_load(uint16_t *shared, const struct attend_view &v,
                                             const struct prefill_block &b, size_t offset,
                                             uint32_t tile)
{
    struct attend_source from = {offset, b.tile.table_first, b.kv_head, b.rows.first, b.rows.end};
    attend_load<DIM>(shared, v, from, tile);
    copy_commit();
}

/* What one warp works on: M times 16 pairs, of which this lane has rows 16 m + 8 half. */
template <int DIM, int M> struct prefill_state {
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

/* The warp's scores of a tile; `q` is its first query in shared memory. */
template <int DIM, int M>
__device__ __forceinline__ void prefill_scores(float (&score)[M][attend_tile(DIM) / 8][4],
                                               const uint16_t *q, const uint16_t *k)
{
    constexpr uint32_t STRIDE = attend_stride(DIM);
    uint32_t lane = threadIdx.x % WARP_LANES;
    q += lane % 16 * STRIDE + lane / 16 * 8;
    k += (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (uint32_t m = 0; m < M; m++)
#pragma unroll
        for (uint32_t n = 0; n < attend_tile(DIM) / 8; n++)
            score[m][n][0] = score[m][n][1] = score[m][n][2] = score[m][n][3] = 0;
#pragma unroll
    for (uint32_t d = 0; d < DIM; d += 16) {
        uint32_t a[M][4];
#pragma unroll
        for (uint32_t m = 0; m < M; m++)
            load_matrices(a[m], q + m * 16 * STRIDE + d);
#pragma unroll
        for (uint32_t n = 0; n < attend_tile(DIM) / 8; n += 2) {
            uint32_t b[4];
            load_matrices(b, k + n * 8 * STRIDE + d);
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                mma_bf16(score[m][n], a[m], b[0], b[1]);
                mma_bf16(score[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* Rows 8 HALF of each 16: scores become probabilities; o shrinks, which later tiles seldom ask for. */
template <int DIM, int M, int HALF, bool OWN>
__device__ __forceinline__ void
prefill_softmax(struct prefill_state<DIM, M> *s, float (&p)[M][attend_tile(DIM) / 8][4],
                const struct attend_view &v, const struct prefill_block &b, uint32_t tile,
                bool whole)
{
    constexpr uint32_t N = attend_tile(DIM) / 8;
#pragma unroll
    for (uint32_t m = 0; m < M; m++) {
        if (!whole) {
            uint32_t position = prefill_position(v, b, prefill_pair<M>(b, 16 * m + 8 * HALF));
            struct attend_part seen = prefill_seen<OWN>(v, b, position);
            attend_mask<N, HALF>(p[m], tile, seen.first, seen.end);
        }
        float rescale = attend_softmax<N, HALF>(p[m], &s->row[m][HALF], v.scale);
        if (warp_ballot(rescale != 1.0f) == 0) continue;
#pragma unroll
        for (uint32_t n = 0; n < DIM / 8; n++) {
            s->o[m][n][2 * HALF] *= rescale;
            s->o[m][n][2 * HALF + 1] *= rescale;
        }
    }
}

/* The warp's probabilities of a tile; sums and o are relative to the new maxima. */
template <int DIM, int M, bool OWN>
__device__ __forceinline__ void
prefill_fold(struct prefill_state<DIM, M> *s, uint32_t (&p)[M][attend_tile(DIM) / 16][4],
             const uint16_t *q, const uint16_t *k, const struct attend_view &v,
             const struct prefill_block &b, uint32_t tile)
{
    constexpr uint32_t TILE = attend_tile(DIM);
    const struct prefill_limits &l = b.warp[threadIdx.x / WARP_LANES];
    bool whole = tile >= l.all_first && tile + TILE <= l.all_end;
    float score[M][TILE / 8][4];
    prefill_scores<DIM, M>(score, q, k);
    prefill_softmax<DIM, M, 0, OWN>(s, score, v, b, tile, whole);
    prefill_softmax<DIM, M, 1, OWN>(s, score, v, b, tile, whole);
#pragma unroll
    for (uint32_t m = 0; m < M; m++)
        attend_round<TILE>(p[m], score[m]);
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
#pragma unroll 1
    for (uint32_t g = 0; g < GROUPS; g++) {
        bool found = false;
#pragma unroll 1
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
template <int DIM, int M, bool OWN>
__device__ __forceinline__ void prefill_spoil(struct prefill_state<DIM, M> *s, const uint32_t *sick,
                                              const struct attend_view &v,
                                              const struct prefill_block &b, uint32_t tile)
{
    constexpr uint32_t GROUPS = attend_tile(DIM) / 32;
    for (uint32_t g = 0; g < GROUPS; g++) {
        uint32_t tokens = 0, token = tile + g * 32;
        for (uint32_t warp = 0; warp < ATTEND_WARPS; warp++)
            tokens |= sick[warp * GROUPS + g];
        if (tokens == 0) continue;
#pragma unroll
        for (uint32_t i = 0; i < 2 * M; i++) {
            uint32_t position = prefill_position(v, b, prefill_pair<M>(b, 8 * i));
            struct attend_part seen = prefill_seen<OWN>(v, b, position);
            uint32_t end = seen.end > token ? seen.end - token : 0;
            uint32_t first = seen.first > token ? seen.first - token : 0;
            if (tokens & prefill_bits(first, end)) s->row[i / 2][i % 2].sum = NAN;
        }
    }
}

/* The end of the split that `tile` is in: o moves over to `folded`, this lane's [DIM / 8][4] floats
 * in shared memory, ATTEND_THREADS apart. Rows without tokens in the split stay as they are. */
template <int DIM, bool OWN>
__device__ __forceinline__ void
prefill_merge(struct prefill_state<DIM, 1> *s, struct attend_row (&total)[2], float *folded,
              const struct attend_view &v, const struct prefill_block &b, uint32_t tile)
{
    uint32_t begin = tile / CUDA_SPLIT_TOKENS * CUDA_SPLIT_TOKENS;
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t position = prefill_position(v, b, prefill_pair<1>(b, 8 * half));
        float sum = attend_quad_sum(s->row[0][half].sum);
        struct attend_part seen = prefill_seen<OWN>(v, b, position);
        if (seen.end <= begin || seen.first >= begin + CUDA_SPLIT_TOKENS) continue;
        if (OWN && seen.first == seen.end) continue;
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
        uint32_t pair = prefill_pair<M>(b, 8 * i);
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
           shared_bytes<struct prefill_block>(1) +
           (FOLD ? shared_bytes<float>(DIM / 2 * ATTEND_THREADS) : 0);
}

/* All tiles of what the block's rows see now, into `s`, or `total` and `folded`. */
template <int DIM, int M, bool FOLD, bool OWN>
__device__ __forceinline__ void
prefill_walk(struct prefill_state<DIM, M> *s, struct attend_row (&total)[2], float *folded,
             const uint16_t *q, uint16_t *k, uint16_t *value, uint32_t *sick,
             const struct attend_view &v, const struct prefill_block &b)
{
    constexpr uint32_t TILE = attend_tile(DIM), STRIDE = attend_stride(DIM);
    const uint32_t warp = threadIdx.x / WARP_LANES;
    uint32_t tile = b.rows.first / TILE * TILE;
    prefill_load<DIM>(k, v, b, 0, tile);
    for (; tile < b.rows.end; tile += TILE) {
        bool takes = tile < b.warp[warp].end && tile + TILE > b.warp[warp].first;
        uint32_t p[M][TILE / 16][4];
        copy_wait<0>();
        block_sync(); /* K is there, and everyone is done with V */
        prefill_load<DIM>(value, v, b, v.v_bytes, tile);
        if (takes) prefill_fold<DIM, M, OWN>(s, p, q + warp * (16 * M * STRIDE), k, v, b, tile);
        copy_wait<0>();
        if (!PLANTED("prefill_value_no_barrier"))
            block_sync(); /* V is there, and everyone is done with K */
        if (tile + TILE < b.rows.end) prefill_load<DIM>(k, v, b, 0, tile + TILE);
        if (tile < b.rows.all_first || tile + TILE > b.rows.all_end) {
            prefill_clean<DIM>(value, sick);
            if (!PLANTED("prefill_clean_no_barrier")) block_sync();
            prefill_spoil<DIM, M, OWN>(s, sick, v, b, tile);
        }
        if (takes) attend_weigh<DIM, M, DIM / 8>(s->o, p, value);
        if constexpr (FOLD)
            if ((tile + TILE) % CUDA_SPLIT_TOKENS == 0 || tile + TILE >= b.rows.end)
                prefill_merge<DIM, OWN>(s, total, folded, v, b, tile);
    }
}

/* V comes while the scores are computed, the next K while they weigh V: one tile of each in shared
 * memory, one copy always under way.
 * Shared bytes with M = 1: 27920 at 64 wide, 40208 at 96, 52496 at 128, 67856 at 256; FOLD adds 256
 * DIM; M = 2 adds 128 (DIM + 8). Registers: M = 2 194, 238, 254; M = 1 122, 172, 198, 255; FOLD a few
 * more, OWN with it some ten. 256 wide spills some 20 of them. */
template <int DIM, int M, bool FOLD, bool OWN>
__global__ void __launch_bounds__(ATTEND_THREADS, 2)
    prefill_kernel(struct attend_view v, uint32_t tiles)
{
    grid_wait();
    constexpr uint32_t TILE = attend_tile(DIM), STRIDE = attend_stride(DIM);
    struct shared_memory shared;
    uint16_t *q = shared_take<uint16_t>(&shared, prefill_pairs(M) * STRIDE);
    uint16_t *k = shared_take<uint16_t>(&shared, TILE * STRIDE);
    uint16_t *value = shared_take<uint16_t>(&shared, TILE * STRIDE);
    uint32_t *sick = shared_take<uint32_t>(&shared, ATTEND_WARPS * TILE / 32);
    struct prefill_block &b = *shared_take<struct prefill_block>(&shared, 1);
    float *folded = nullptr; /* this lane's */
    if (FOLD) folded = shared_take<float>(&shared, DIM / 2 * ATTEND_THREADS) + threadIdx.x;
    if (!prefill_open<M, OWN>(&b, v, tiles, 0)) return;
    struct attend_row total[2] = {{-INFINITY, 0}, {-INFINITY, 0}};
    for (uint32_t i = 0; FOLD && i < DIM / 2; i++)
        folded[i * ATTEND_THREADS] = 0;
    block_sync();
    struct prefill_state<DIM, M> s;
    prefill_clear(&s);
    prefill_load_queries<DIM, M>(q, v, b);
    if constexpr (!OWN) {
        prefill_walk<DIM, M, FOLD, OWN>(&s, total, folded, q, k, value, sick, v, b);
    } else {
#pragma unroll 1
        for (uint32_t part = 0; part < 2; part++) {
            if (part > 0) { /* once more, with other limits */
                copy_wait<0>();
                block_sync();
                prefill_open<M, OWN>(&b, v, tiles, part);
                block_sync();
            }
            prefill_walk<DIM, M, FOLD, OWN>(&s, total, folded, q, k, value, sick, v, b);
        }
    }
    if (OWN && !PLANTED("prefill_copies_left")) copy_wait<0>(); /* of a part without tiles */
    prefill_finish<DIM, M, FOLD>(&s, total, folded);
    prefill_store(s, v, b);
}

template <int DIM, int M, bool FOLD, bool OWN>
static cudaError_t prefill_launch(cudaStream_t stream, const struct attend_view *v, uint32_t tiles)
{
    constexpr uint32_t bytes = prefill_shared_bytes<DIM, M, FOLD>();
    uint32_t parts = divide_up(CUDA_TILE_ROWS * v->group, prefill_pairs(M));
    cudaError_t e = attend_allow(prefill_kernel<DIM, M, FOLD, OWN>, bytes);
    if (e != cudaSuccess) return e;
    LAUNCH((prefill_kernel<DIM, M, FOLD, OWN>), tiles * v->kv_heads * parts, ATTEND_THREADS, bytes,
           stream, *v, tiles);
    return cudaPeekAtLastError();
}

/* 32 pairs a warp use each piece of K and V twice; more than 128 wide they do not fit in registers,
 * and a tile without shared kv heads has not so many. */
template <int DIM>
static cudaError_t prefill_choose(cudaStream_t stream, const struct attend_view *v, uint32_t tiles,
                                  bool deterministic, bool own_windows)
{
    if (own_windows) return prefill_launch<DIM, 1, true, true>(stream, v, tiles);
    if (deterministic) return prefill_launch<DIM, 1, true, false>(stream, v, tiles);
    if constexpr (DIM <= 128)
        if (v->group > 1) return prefill_launch<DIM, 2, false, false>(stream, v, tiles);
    return prefill_launch<DIM, 1, false, false>(stream, v, tiles);
}

extern "C" cudaError_t cuda_attend_prefill(cudaStream_t stream, void *out, const void *q,
                                           uint32_t q_stride, const struct cuda_batch *batch,
                                           const struct cuda_attention *a, const struct cuda_kv *kv,
                                           uint32_t tiles, bool deterministic, bool own_windows)
{
    struct attend_view v = attend_view_of(out, q, q_stride, batch, a, kv);
    if (tiles == 0) return cudaSuccess;
    if (a->dtype == DTYPE_F32) return attend_f32_tiles(stream, &v, tiles);
    return a->head_dim <= 64   ? prefill_choose<64>(stream, &v, tiles, deterministic, own_windows)
           : a->head_dim <= 96 ? prefill_choose<96>(stream, &v, tiles, deterministic, own_windows)
           : a->head_dim <= 128
               ? prefill_choose<128>(stream, &v, tiles, deterministic, own_windows)
               : prefill_choose<256>(stream, &v, tiles, deterministic, own_windows);
}
