/* attend_decode: rows that are alone of their sequence in the step, one token each.
 *
 * CPU reference: attend in kernels/body_attend.h; naive in tests/unit/cuda_attend_test.c.
 *
 * KV is split at absolute multiples of CUDA_SPLIT_TOKENS; the work is one item per (row, split, kv
 * head, up to 16 of its query heads). A row with one split is finished by decode_kernel; the
 * others leave partial results in scratch, [splits][heads][head_dim + 2] of fp32: o, not divided,
 * then maximum and sum; merge_kernel folds them in ascending order.
 *
 * How many items there are is read on the device: a launch has as many blocks as the device holds
 * at once and shares the items out, so that a recorded launch suits any context.
 *
 * Cost of a call for rows with T tokens in all, bf16: reads 4 T kv_heads head_dim bytes of KV once (a
 * group of more than 16 heads: once for every 16), writes and reads scratch of 8 splits heads
 * head_dim bytes (3 % of the KV at 4 heads a kv head); 4 T heads head_dim flops, of which the
 * tensor cores do 16 / group times as many. */
#include "kernels/cuda/attend.cuh"

enum {
    DECODE_HEADS = 16,      /* query heads of an item: the rows of an mma */
    BLOCKS_A_PROCESSOR = 2, /* of decode_kernel */
    STAGES_LEAST = 2,
    SHARED_RESERVED = 1024, /* by the device, of each block's */
};

/* Tiles in shared memory: one in use, the others under way. A processor with too little shared memory
 * for two blocks with so many has the least. */
constexpr __host__ __device__ int decode_stages(int dim)
{
    return dim <= 96 ? 4 : 3;
}
/* Scores' rows, 8 banks apart. */
constexpr __host__ __device__ int decode_score_stride(int dim)
{
    return attend_tile(dim) + 8;
}

/* A walk over the tiles of this block's items. All threads walk alike. */
struct decode_walk {
    uint32_t item, item_end; /* the current one; behind the last */
    uint32_t index;          /* of the item's decode row */
    uint32_t row, table_first;
    uint32_t kv_head, head, heads_count; /* query heads: head … head + heads_count - 1 */
    uint32_t split;                      /* of all splits of the step */
    uint32_t first, end;                 /* the split's tokens of this row */
    uint32_t tile;
    bool alone; /* the row has this split only */
};

/* Reads what the current item is; rows only ascend. */
__device__ __forceinline__ void decode_open(struct decode_walk *w, const struct attend_view &v,
                                            uint32_t tile_tokens)
{
    const struct cuda_batch &b = v.batch;
    if (w->item >= w->item_end) return;
    uint32_t passes = divide_up(v.group, DECODE_HEADS), part = w->item % (v.kv_heads * passes);
    w->split = w->item / (v.kv_heads * passes);
    while (b.split_first[w->index + 1] <= w->split)
        w->index++;
    uint32_t split_first = b.split_first[w->index];
    w->alone = b.split_first[w->index + 1] - split_first == 1;
    w->row = b.decode_row[w->index];
    w->table_first = b.table_first[w->row];
    w->kv_head = part / passes;
    uint32_t in_group = part % passes * DECODE_HEADS;
    w->head = w->kv_head * v.group + in_group;
    w->heads_count = attend_lower(v.group - in_group, DECODE_HEADS);
    struct kv_window window = b.row_window[w->row];
    struct attend_part seen = attend_part_of(window, b.position[w->row], 0);
    uint32_t index = w->split - split_first, of_sinks = divide_up(seen.end, CUDA_SPLIT_TOKENS);
    if (index >= of_sinks) {
        index -= of_sinks;
        seen = attend_part_of(window, b.position[w->row], 1);
    }
    uint32_t begin = (seen.first / CUDA_SPLIT_TOKENS + index) * CUDA_SPLIT_TOKENS;
    w->first = attend_higher(seen.first, begin);
    w->end = attend_lower(seen.end, begin + CUDA_SPLIT_TOKENS);
    w->tile = w->first / tile_tokens * tile_tokens;
}

/* This block's share of the items, consecutive ones; shares differ by one at most. */
__device__ __forceinline__ void decode_start(struct decode_walk *w, const struct attend_view &v,
                                             uint32_t tile_tokens)
{
    uint32_t rows = *v.batch.decode_live, splits = v.batch.split_first[rows];
    uint32_t items = splits * v.kv_heads * divide_up(v.group, DECODE_HEADS);
    uint32_t each = items / gridDim.x, more = items % gridDim.x;
    w->item = blockIdx.x * each + attend_lower(blockIdx.x, more);
    w->item_end = w->item + each + (blockIdx.x < more);
    w->index = 0;
    if (w->item >= w->item_end) return;
    uint32_t split = w->item / (items / splits), above = rows;
    while (above - w->index > 1) { /* the last row that starts at or before `split` */
        uint32_t middle = (w->index + above) / 2;
        if (v.batch.split_first[middle] <= split)
            w->index = middle;
        else
            above = middle;
    }
    decode_open(w, v, tile_tokens);
}

__device__ __forceinline__ void decode_next(struct decode_walk *w, const struct attend_view &v,
                                            uint32_t tile_tokens)
{
    w->tile += tile_tokens;
    if (w->tile < w->end) return;
    w->item++;
    decode_open(w, v, tile_tokens);
}

/* Puts the walk's tile under way, K then V, and walks on; past the last item it only closes the
 * group, so that waiting counts alike. */
template <int DIM>
__device__ __forceinline__ void decode_load(uint16_t *stage, struct decode_walk *w,
                                            const struct attend_view &v)
{
    constexpr uint32_t TILE = attend_tile(DIM);
    if (w->item < w->item_end) {
        struct attend_source from = {0, w->table_first, w->kv_head, w->first, w->end};
        attend_load<DIM>(stage, v, from, w->tile);
        from.offset = v.v_bytes;
        attend_load<DIM>(stage + TILE * attend_stride(DIM), v, from, w->tile);
        decode_next(w, v, TILE);
    }
    copy_commit();
}

/* The item's queries as the left operand: rows are its heads, zeros behind the last. */
template <int DIM>
__device__ __forceinline__ void
decode_queries(uint32_t (&q)[DIM / 16][4], const struct attend_view &v, const struct decode_walk &w)
{
    uint32_t lane = threadIdx.x % WARP_LANES;
    const uint16_t *row = (const uint16_t *)v.q + (size_t)w.row * v.q_stride + w.head * v.head_dim;
#pragma unroll
    for (uint32_t i = 0; i < DIM / 4; i++) {
        uint32_t head = lane / 4 + i % 2 * 8, d = i / 2 * 8 + lane % 4 * 2;
        bool valid = head < w.heads_count && d < v.head_dim;
        q[i / 4][i % 4] = valid ? *(const uint32_t *)(row + head * v.head_dim + d) : 0;
    }
}

/* This warp's quarter of a tile's scores, into shared memory [16 heads][tile]. */
template <int DIM>
__device__ __forceinline__ void decode_scores(float *scores, const uint32_t (&q)[DIM / 16][4],
                                              const uint16_t *k)
{
    constexpr uint32_t TOKENS = attend_tile(DIM) / ATTEND_WARPS;
    uint32_t lane = threadIdx.x % WARP_LANES, token = threadIdx.x / WARP_LANES * TOKENS;
#pragma unroll
    for (uint32_t n = 0; n < TOKENS; n += 8) {
        float s[4] = {0, 0, 0, 0};
        const uint16_t *row = k + (token + n + lane % 8) * attend_stride(DIM) + lane / 8 * 8;
#pragma unroll
        for (uint32_t d = 0; d < DIM / 32; d++) {
            uint32_t b[4];
            load_matrices(b, row + d * 32);
            mma_bf16(s, q[2 * d], b[0], b[1]);
            mma_bf16(s, q[2 * d + 1], b[2], b[3]);
        }
        float *to = scores + lane / 4 * decode_score_stride(DIM) + token + n + lane % 4 * 2;
        *(float2 *)to = make_float2(s[0], s[1]);
        *(float2 *)(to + 8 * decode_score_stride(DIM)) = make_float2(s[2], s[3]);
    }
}

/* An item's state in one warp: all 16 heads, a quarter of the dimensions. */
template <int DIM> struct decode_state {
    struct attend_row row[2]; /* heads lane / 4 and lane / 4 + 8 */
    float o[1][DIM / 32][4];
};

template <int DIM> __device__ __forceinline__ void decode_clear(struct decode_state<DIM> *s)
{
    s->row[0] = s->row[1] = {-INFINITY, 0};
#pragma unroll
    for (uint32_t n = 0; n < DIM / 32; n++)
        s->o[0][n][0] = s->o[0][n][1] = s->o[0][n][2] = s->o[0][n][3] = 0;
}

/* Rows lane / 4 + 8 HALF of the scores become probabilities; o shrinks. */
template <int DIM, int HALF>
__device__ __forceinline__ void
decode_softmax(struct decode_state<DIM> *s, float (&p)[attend_tile(DIM) / 8][4],
               const float *scores, const struct decode_walk &w, float scale)
{
    constexpr uint32_t TILE = attend_tile(DIM);
    uint32_t lane = threadIdx.x % WARP_LANES;
    const float *from = scores + (lane / 4 + 8 * HALF) * decode_score_stride(DIM) + lane % 4 * 2;
#pragma unroll
    for (uint32_t n = 0; n < TILE / 8; n++) {
        float2 two = *(const float2 *)(from + n * 8);
        p[n][2 * HALF] = two.x;
        p[n][2 * HALF + 1] = two.y;
    }
    if (w.tile < w.first || w.tile + TILE > w.end)
        attend_mask<TILE / 8, HALF>(p, w.tile, w.first, w.end);
    float rescale = attend_softmax<TILE / 8, HALF>(p, &s->row[HALF], scale);
#pragma unroll
    for (uint32_t n = 0; n < DIM / 32; n++) {
        s->o[0][n][2 * HALF] *= rescale;
        s->o[0][n][2 * HALF + 1] *= rescale;
    }
}

/* Folds the tile, whose scores are there, into this warp's dimensions. The second eight heads cost
 * nothing where there are none. */
template <int DIM>
__device__ __forceinline__ void decode_fold(struct decode_state<DIM> *s, const float *scores,
                                            const uint16_t *value, const struct decode_walk &w,
                                            float scale)
{
    constexpr uint32_t TILE = attend_tile(DIM);
    float p[TILE / 8][4] = {};
    uint32_t rounded[1][TILE / 16][4], warp = threadIdx.x / WARP_LANES;
    decode_softmax<DIM, 0>(s, p, scores, w, scale);
    if (w.heads_count > 8) decode_softmax<DIM, 1>(s, p, scores, w, scale);
    attend_round<TILE>(rounded[0], p);
    attend_weigh<DIM, 1, DIM / 32>(s->o, rounded, value + warp * (DIM / ATTEND_WARPS));
}

/* The end of an item: to out, or to scratch if the row has more splits. */
template <int DIM>
__device__ __forceinline__ void decode_store(const struct decode_state<DIM> *s,
                                             const struct attend_view &v, float *scratch,
                                             const struct decode_walk &w)
{
    uint32_t lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
    uint32_t d = warp * (DIM / ATTEND_WARPS) + lane % 4 * 2;
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        float sum = attend_quad_sum(s->row[half].sum), inverse = 1.0f / sum;
        uint32_t head = lane / 4 + half * 8;
        if (head >= w.heads_count) continue;
        head += w.head;
        uint16_t *out = (uint16_t *)v.out + ((size_t)w.row * v.heads + head) * v.head_dim;
        float *part = scratch + ((size_t)w.split * v.heads + head) * (v.head_dim + 2);
#pragma unroll
        for (uint32_t n = 0; n < DIM / 32; n++) {
            float low = s->o[0][n][2 * half], high = s->o[0][n][2 * half + 1];
            if (d + n * 8 >= v.head_dim) continue;
            if (w.alone)
                *(uint32_t *)(out + d + n * 8) =
                    bf16_pair(attend_quotient(low, inverse), attend_quotient(high, inverse));
            else
                *(float2 *)(part + d + n * 8) = make_float2(low, high);
        }
        if (!w.alone && warp == 0 && lane % 4 == 0)
            *(float2 *)(part + v.head_dim) = make_float2(s->row[half].largest, sum);
    }
}

template <int DIM> constexpr __host__ __device__ uint32_t decode_stage_elements()
{
    return 2 * attend_tile(DIM) * attend_stride(DIM);
}
template <int DIM, int STAGES> constexpr uint32_t decode_shared_bytes()
{
    return shared_bytes<uint16_t>(STAGES * decode_stage_elements<DIM>()) +
           shared_bytes<float>(DECODE_HEADS * decode_score_stride(DIM));
}

/* A block of four warps works on one tile at a time: each warp has the scores of a quarter of the
 * tokens, then all of them for a quarter of the dimensions. Tiles come through a ring of stages
 * that runs on over the ends of items: with two blocks a processor, 96 KiB at 64 wide and 128 KiB at
 * 128 are under way there at any time, several times what the latency of memory asks for.
 * At 64, 96, 128, 256 wide: 78336, 111104, 109056, 103936 bytes shared, with two stages 41472, 57856,
 * 74240, 70144; 107, 128, 141, 179 registers. */
template <int DIM, int STAGES>
__global__ void __launch_bounds__(ATTEND_THREADS, BLOCKS_A_PROCESSOR)
    decode_kernel(struct attend_view v, float *scratch)
{
    grid_wait();
    constexpr uint32_t TILE = attend_tile(DIM);
    constexpr uint32_t STAGE = decode_stage_elements<DIM>();
    struct shared_memory shared;
    uint16_t *ring = shared_take<uint16_t>(&shared, STAGES * STAGE);
    float *scores = shared_take<float>(&shared, DECODE_HEADS * decode_score_stride(DIM));
    struct decode_walk load, w;
    struct decode_state<DIM> state;
    uint32_t q[DIM / 16][4];
    decode_start(&w, v, TILE);
    load = w;
    for (uint32_t i = 0; i < STAGES - 1; i++)
        decode_load<DIM>(ring + i * STAGE, &load, v);
    uint32_t opened = w.item_end; /* the item that q and state are of: none yet */
    for (uint32_t stage = 0, free = STAGES - 1; w.item < w.item_end;) {
        if (opened != w.item) {
            decode_queries<DIM>(q, v, w);
            decode_clear(&state);
            opened = w.item;
        }
        copy_wait<STAGES - 2>();
        if (!PLANTED("decode_tile_no_barrier"))
            block_sync(); /* the tile is there, and everyone is done with the one before it */
        decode_load<DIM>(ring + free * STAGE, &load, v);
        const uint16_t *k = ring + stage * STAGE;
        decode_scores<DIM>(scores, q, k);
        if (!PLANTED("decode_scores_no_barrier")) block_sync();
        decode_fold(&state, scores, k + TILE * attend_stride(DIM), w, v.scale);
        if (w.tile + TILE >= w.end) decode_store(&state, v, scratch, w);
        decode_next(&w, v, TILE);
        free = stage + PLANTED("decode_stage_too_far");
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    copy_wait<0>();
}

/* One warp per (decode row, head, 64 dimensions): folds the row's splits, ascending. The loads of
 * several splits are under way at a time. 32 registers. */
__global__ void __launch_bounds__(ATTEND_THREADS)
    merge_kernel(struct attend_view v, const float *scratch)
{
    grid_wait();
    uint32_t pieces = divide_up(v.head_dim, 64), lane = threadIdx.x % WARP_LANES;
    uint32_t unit = blockIdx.x * ATTEND_WARPS + threadIdx.x / WARP_LANES;
    uint32_t d = unit % pieces * 64 + lane * 2, head = unit / pieces % v.heads;
    uint32_t index = unit / pieces / v.heads;
    if (index >= *v.batch.decode_live || d >= v.head_dim) return;
    uint32_t split = v.batch.split_first[index], end = v.batch.split_first[index + 1];
    if (end - split < 2) return;
    struct attend_row row = {-INFINITY, 0};
    float low = 0, high = 0;
#pragma unroll 4
    for (; split < end; split++) {
        const float *part = scratch + ((size_t)split * v.heads + head) * (v.head_dim + 2);
        float2 o = *(const float2 *)(part + d), of = *(const float2 *)(part + v.head_dim);
        float2 factor = attend_fold(&row, {of.x, of.y}, v.scale);
        low = fmaf(o.x, factor.y, low * factor.x);
        high = fmaf(o.y, factor.y, high * factor.x);
    }
    float inverse = 1.0f / row.sum;
    uint16_t *out =
        (uint16_t *)v.out + ((size_t)v.batch.decode_row[index] * v.heads + head) * v.head_dim;
    *(uint32_t *)(out + d) =
        bf16_pair(attend_quotient(low, inverse), attend_quotient(high, inverse));
}

/* Of a device: how many processors, and what the blocks on one of them share. */
struct decode_room {
    int processors, shared_bytes;
};

static cudaError_t decode_room_of(struct decode_room *r)
{
    int device;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&r->processors, cudaDevAttrMultiProcessorCount, device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&r->shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                                   device);
    return e;
}

template <int DIM, int STAGES>
static cudaError_t decode_launch(cudaStream_t stream, const struct attend_view *v, float *scratch,
                                 const struct decode_room &room)
{
    constexpr uint32_t bytes = decode_shared_bytes<DIM, STAGES>();
    uint32_t blocks = (uint32_t)room.processors * BLOCKS_A_PROCESSOR;
    cudaError_t e = attend_allow(decode_kernel<DIM, STAGES>, bytes);
    if (e != cudaSuccess) return e;
    LAUNCH((decode_kernel<DIM, STAGES>), blocks, ATTEND_THREADS, bytes, stream, *v, scratch);
    return cudaPeekAtLastError();
}

template <int DIM>
static cudaError_t decode_choose(cudaStream_t stream, const struct attend_view *v, float *scratch,
                                 const struct decode_room &room)
{
    constexpr int STAGES = decode_stages(DIM);
    uint32_t bytes = BLOCKS_A_PROCESSOR * (decode_shared_bytes<DIM, STAGES>() + SHARED_RESERVED);
    return bytes <= (uint32_t)room.shared_bytes
               ? decode_launch<DIM, STAGES>(stream, v, scratch, room)
               : decode_launch<DIM, STAGES_LEAST>(stream, v, scratch, room);
}

extern "C" {

size_t cuda_attend_scratch(const struct cuda_attention *a, uint32_t splits)
{
    return (size_t)splits * a->heads * (a->head_dim + 2) * sizeof(float);
}

cudaError_t cuda_attend_decode(cudaStream_t stream, void *out, const void *q, uint32_t q_stride,
                               const struct cuda_batch *batch, const struct cuda_attention *a,
                               const struct cuda_kv *kv, uint32_t rows, void *scratch)
{
    struct attend_view v = attend_view_of(out, q, q_stride, batch, a, kv);
    if (a->dtype == DTYPE_F32) return attend_f32_decode(stream, &v, rows);
    struct decode_room room;
    cudaError_t e = decode_room_of(&room);
    if (e != cudaSuccess) return e;
    uint32_t dim = a->head_dim;
    e = dim <= 64    ? decode_choose<64>(stream, &v, (float *)scratch, room)
        : dim <= 96  ? decode_choose<96>(stream, &v, (float *)scratch, room)
        : dim <= 128 ? decode_choose<128>(stream, &v, (float *)scratch, room)
                     : decode_choose<256>(stream, &v, (float *)scratch, room);
    if (e != cudaSuccess) return e;
    uint32_t warps = rows * a->heads * divide_up(dim, 64);
    LAUNCH(merge_kernel, divide_up(warps, ATTEND_WARPS), ATTEND_THREADS, 0, stream, v,
           (const float *)scratch);
    return cudaPeekAtLastError();
}
}
