#include "tests/fake/cuda/emulator_kernels.h"

#include "kernels/cuda/device.cuh"

static cudaStream_t stream;
void run_on(cudaStream_t s)
{
    stream = s;
}

/* --- launches --- */

static __global__ void places_kernel(uint4 *out)
{
    grid_wait();
    out[blockIdx.x * blockDim.x + threadIdx.x] =
        make_uint4(threadIdx.x, blockIdx.x, blockDim.x, gridDim.x);
}
static __global__ void places_deep_kernel(uint4 *out)
{
    grid_wait();
    uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    out[block * blockDim.x + threadIdx.x] = make_uint4(threadIdx.x, block, blockDim.x, gridDim.x);
}
void run_places(uint4 *out, uint32_t blocks, uint32_t threads)
{
    LAUNCH(places_kernel, blocks, threads, 0, stream, out);
}
void run_places_deep(uint4 *out, struct dim3 grid, uint32_t threads)
{
    LAUNCH(places_deep_kernel, grid, threads, 0, stream, out);
}

template <bool add, int by>
static __global__ void __launch_bounds__(128)
    scale_kernel(float *__restrict__ out, const float *__restrict__ in, uint32_t count)
{
    grid_wait();
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = in[i] * by + (add ? by : 0);
}
void run_scale(float *out, const float *in, double count, int add)
{
    uint32_t blocks = divide_up((uint32_t)count, 128);
    if (add)
        LAUNCH((scale_kernel<true, 3>), blocks, 128, 0, stream, out, in, count);
    else
        LAUNCH((scale_kernel<false, 3>), blocks, 128, 0, stream, out, in, count);
}

static __global__ void empty_kernel()
{
    grid_wait();
}
void run_empty(struct dim3 grid, struct dim3 block, size_t shared_bytes)
{
    LAUNCH(empty_kernel, grid, block, shared_bytes, stream);
}

static __global__ void much_shared_kernel(uint32_t bytes)
{
    grid_wait();
    struct shared_memory shared;
    unsigned char *piece = shared_take<unsigned char>(&shared, bytes);
    piece[0] = piece[bytes - 1] = 1;
}
void run_much_shared(uint32_t bytes)
{
    cudaFuncSetAttribute(much_shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         (int)bytes);
    LAUNCH(much_shared_kernel, 1, 32, shared_bytes<unsigned char>(bytes), stream, bytes);
}

/* --- primitives --- */

static __global__ void warp_kernel(struct warp_out *out, const float *in)
{
    grid_wait();
    uint32_t lane = threadIdx.x;
    out->shuffled[lane] = shuffle(lane * 3, (lane + 5) % WARP_LANES);
    out->shuffled_xor[lane] = shuffle_xor(lane * 7, 9);
    out->ballot[lane] = warp_ballot(in[lane] > 0);
    out->sum[lane] = warp_sum(in[lane]);
    out->max[lane] = warp_max(in[lane]);
}
void run_warp(struct warp_out *out, const float *in)
{
    LAUNCH(warp_kernel, 1, 32, 0, stream, out, in);
}

static __global__ void atomics_kernel(uint32_t *sum, uint64_t *wide_sum)
{
    grid_wait();
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    atomic_add(sum, i);
    atomic_add(wide_sum, (uint64_t)i << 20);
}
void run_atomics(uint32_t *sum, uint64_t *wide_sum, uint32_t blocks)
{
    LAUNCH(atomics_kernel, blocks, 64, 0, stream, sum, wide_sum);
}

static __global__ void order_kernel(uint32_t *out, uint32_t *count)
{
    grid_wait();
    uint32_t sum = 0;
    for (uint32_t round = 0; round < 3; round++) {
        sum = sum * 1000 + atomic_add(count, 1u) % (gridDim.x * blockDim.x);
        block_sync();
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
void run_order(uint32_t *out, uint32_t blocks, uint32_t threads)
{
    uint32_t count = 0; /* the launch runs at once */
    LAUNCH(order_kernel, blocks, threads, 0, stream, out, &count);
}

static __global__ void mma_kernel(float *d, const uint16_t *a, const uint16_t *b, bool b_across)
{
    grid_wait();
    struct shared_memory shared;
    uint16_t *as = shared_take<uint16_t>(&shared, 256);
    uint16_t *bs = shared_take<uint16_t>(&shared, 128);
    const uint32_t lane = threadIdx.x, g = lane / 4, t = lane % 4;
    for (uint32_t i = lane; i < 256; i += WARP_LANES)
        as[i] = a[i];
    for (uint32_t i = lane; i < 128; i += WARP_LANES)
        bs[i] = b[i];
    warp_sync();
    uint32_t ar[4], br[4];
    /* Matrices 0 and 1 are rows 0 … 7 and 8 … 15 of columns 0 … 7, 2 and 3 of columns 8 … 15. */
    load_matrices(ar, as + lane % 16 * 16 + lane / 16 * 8);
    if (b_across) /* [8][16]: both halves of K as rows of columns */
        load_matrices(br, bs + lane % 8 * 16 + lane / 8 % 2 * 8);
    else
        load_matrices_transposed(br, bs + lane % 16 * 8);
    float sum[4] = {d[g * 8 + 2 * t], d[g * 8 + 2 * t + 1], d[(g + 8) * 8 + 2 * t],
                    d[(g + 8) * 8 + 2 * t + 1]};
    mma_bf16(sum, ar, br[0], br[1]);
    for (uint32_t i = 0; i < 4; i++)
        d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}
void run_mma(float *d, const uint16_t *a, const uint16_t *b, int b_across)
{
    LAUNCH(mma_kernel, 1, 32, shared_bytes<uint16_t>(256) + shared_bytes<uint16_t>(128), stream, d,
           a, b, b_across);
}

static __global__ void numbers_kernel(uint32_t *pairs, float *exp2, const float *in, uint32_t count)
{
    grid_wait();
    uint32_t i = threadIdx.x;
    if (i >= count) return;
    pairs[i] = bf16_pair(in[i], in[(i + 1) % count]);
    exp2[i] = exp2_fast(in[i]);
}
void run_numbers(uint32_t *pairs, float *exp2, const float *in, uint32_t count)
{
    LAUNCH(numbers_kernel, 1, 128, 0, stream, pairs, exp2, in, count);
}

static __global__ void load_once_kernel(uint32_t *out, const uint32_t *in)
{
    grid_wait();
    uint4 v = load_once(in + threadIdx.x * 4);
    ((uint4 *)out)[threadIdx.x] = v;
}
void run_load_once(uint32_t *out, const uint32_t *in)
{
    LAUNCH(load_once_kernel, 1, 32, 0, stream, out, in);
}

/* --- kernels with something missing --- */

enum { ROUNDS = 3 };

/* A tree in shared memory; the rounds add nothing but the use of the same memory again. */
static __global__ void block_sum_kernel(float *out, const float *in, enum planted planted)
{
    grid_wait();
    struct shared_memory shared;
    float *part = shared_take<float>(&shared, blockDim.x);
    float *gap = shared_take<float>(&shared, 3);
    const uint32_t i = threadIdx.x, threads = blockDim.x;
    float total = 0;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        part[i] = in[blockIdx.x * threads + i] * (float)(round + 1);
        if (planted != PLANT_NO_BARRIER_AFTER_WRITE) block_sync();
        for (uint32_t half = threads / 2; half > 0; half /= 2) {
            if (i < half) part[i] += part[i + half];
            block_sync();
        }
        total += part[0];
        if (planted != PLANT_NO_BARRIER_BEFORE_REUSE) block_sync();
    }
    if (planted == PLANT_READ_BEHIND) total += part[i + 1] * 0;
    if (planted == PLANT_WRITE_BEHIND && i == threads - 1) part[i + 1] = 1;
    if (planted == PLANT_WRITE_BEFORE && i == 0) *(part - 1) = 1;
    if (planted == PLANT_WRITE_INTO_GAP && i == 0) gap[i + 3] = 1;
    out[blockIdx.x * threads + i] = total;
}
void run_block_sum(float *out, const float *in, uint32_t blocks, uint32_t threads,
                   enum planted planted)
{
    LAUNCH(block_sum_kernel, blocks, threads, shared_bytes<float>(threads) + shared_bytes<float>(3),
           stream, out, in, planted);
}

static __global__ void warp_turn_kernel(uint32_t *out, const uint32_t *in, enum planted planted)
{
    grid_wait();
    struct shared_memory shared;
    uint32_t *kept = shared_take<uint32_t>(&shared, blockDim.x);
    uint32_t lane = threadIdx.x % WARP_LANES, first = threadIdx.x - lane;
    kept[first + lane] = in[first + lane];
    if (planted != PLANT_NO_WARP_SYNC) warp_sync();
    out[first + lane] = kept[first + WARP_LANES - 1 - lane];
}
void run_warp_turn(uint32_t *out, const uint32_t *in, uint32_t threads, enum planted planted)
{
    LAUNCH(warp_turn_kernel, 1, threads, shared_bytes<uint32_t>(threads), stream, out, in, planted);
}

/* Stage s is 4 floats a thread; a thread reads what its neighbour copied. */
static __global__ void copied_kernel(float *out, const float *in, uint32_t count, uint32_t valid,
                                     enum planted planted)
{
    grid_wait();
    struct shared_memory shared;
    const uint32_t own = threadIdx.x * 4, wide = blockDim.x * 4, stages = count / wide;
    float *buffer = shared_take<float>(&shared, 2 * wide);
    for (uint32_t stage = 0; stage < stages + 1; stage++) {
        if (stage < stages) {
            uint32_t at = stage * wide + own;
            copy_async(buffer + stage % 2 * wide + own, in + (at < valid ? at : 0), at < valid);
        }
        copy_commit();
        if (stage == 0) continue;
        if (planted == PLANT_WAIT_FOR_TOO_FEW)
            copy_wait<2>();
        else if (planted != PLANT_NO_COPY_WAIT)
            copy_wait<1>();
        if (planted != PLANT_NO_BARRIER_AFTER_COPY) block_sync();
        const float *ready = buffer + (stage - 1) % 2 * wide;
        for (uint32_t i = 0; i < 4; i++)
            out[(stage - 1) * wide + own + i] = ready[(own + i) ^ 4];
        block_sync();
    }
    copy_wait<0>();
}
void run_copied(float *out, const float *in, uint32_t count, uint32_t valid, uint32_t threads,
                enum planted planted)
{
    LAUNCH(copied_kernel, 1, threads, shared_bytes<float>(8 * threads), stream, out, in, count,
           valid, planted);
}

/* --- kernels that fault --- */

static __attribute__((noinline)) uint32_t deep(uint32_t depth)
{
    volatile uint32_t local[256];
    local[depth % 256] = depth;
    return depth == 0 ? 0 : deep(depth - 1) + local[depth % 256];
}

static __device__ void bad_barriers(enum bad bad, uint32_t i)
{
    if (bad == BAD_RETURN_BEFORE_BARRIER && i == 5) return;
    if (bad == BAD_TWO_BARRIERS && i >= 32)
        block_sync();
    else
        do
            block_sync();
        while (bad == BAD_ENDLESS);
}

static __device__ uint32_t bad_warp(enum bad bad, uint32_t i)
{
    if (bad == BAD_HALF_WARP && i < 16) block_sync();
    if (bad == BAD_LANE_RETURNED && i == 7) return 0;
    if (bad == BAD_TWO_WARP_FUNCTIONS && i % 2) return shuffle(i, 0);
    return warp_ballot(i % 2);
}

static __device__ void bad_piece(enum bad bad, uint32_t i, uint32_t *out, const uint32_t *in)
{
    struct shared_memory shared;
    uint32_t *piece = shared_take<uint32_t>(&shared, bad == BAD_TOO_MUCH_TAKEN  ? 1025
                                                     : bad == BAD_UNLIKE_PIECES ? 64 + i
                                                                                : 1024);
    uint32_t r[4];
    if (bad == BAD_COPY_UNALIGNED) copy_async(piece + 1, in, true);
    if (bad == BAD_COPY_LEFT && i == 3) copy_async(piece, in, true);
    if (bad == BAD_COPY_OUTSIDE) copy_async(piece + 1024, in, true);
    if (bad == BAD_MATRIX_OUTSIDE) load_matrices(r, out);
    if (bad == BAD_MATRIX_UNALIGNED) load_matrices(r, piece + 2);
    if (bad == BAD_LOAD_UNALIGNED) out[i] = load_once(in + 1).x;
    if (bad == BAD_VECTOR_UNALIGNED) out[i] = ((const uint4 *)(in + 2))->x;
    if (bad == BAD_PAIR_UNALIGNED) *(uint2 *)(piece + 3) = make_uint2(i, i);
    for (uint32_t n = 0; bad == BAD_TOO_MANY_PIECES && n < 100; n++)
        shared_take<uint32_t>(&shared, 0);
}

static __global__ void bad_kernel(enum bad bad, uint32_t *out, const uint32_t *in)
{
    const uint32_t i = threadIdx.x;
    if (bad == BAD_NO_GRID_WAIT && i == 9) return;
    grid_wait();
    if (bad <= BAD_ENDLESS)
        bad_barriers(bad, i);
    else if (bad <= BAD_HALF_BLOCK)
        out[i] = bad_warp(bad, i);
    else if (bad == BAD_ADDRESS)
        *(volatile uint32_t *)(uintptr_t)(4096 + 4 * i) = 1;
    else if (bad == BAD_STACK)
        out[i] = deep(1 << 20);
    else
        bad_piece(bad, i, out, in);
}
void run_bad(enum bad bad, uint32_t *out, const uint32_t *in, uint32_t threads)
{
    LAUNCH(bad_kernel, 2, threads, 4096, stream, bad, out, in);
}

static __device__ uint32_t race_once(enum race race, uint32_t *words, uint32_t at)
{
    if (race == RACE_WRITE_AND_ONCE) words[at] = 1;
    uint32_t first = load_once(words + at / 4 * 4).x;
    if (race == RACE_ONCE_AND_WRITE) words[at] = 1;
    return first;
}

/* Block b's own words are 32 b … 32 b + 31; the last 32 are nobody's. */
static __global__ void race_kernel(enum race race, uint32_t *words)
{
    const uint32_t i = threadIdx.x, own = blockIdx.x * 32 + i, other = (own + 32) % 128;
    uint32_t *nobodys = words + 224, early = race == RACE_BEFORE_WAIT && i == 3 ? words[own] : 0;
    struct shared_memory shared;
    uint32_t *piece = shared_take<uint32_t>(&shared, 128);
    grid_wait();
    switch (race) {
    case RACE_NOT_AT_ALL: words[own] = words[own] + 1; break;
    case RACE_NEIGHBOURS: ((uint16_t *)nobodys)[i % 2 * 4 + blockIdx.x] = (uint16_t)i; break;
    case RACE_ALL_READ: words[own] = nobodys[0] + load_once(nobodys + 4).x; break;
    case RACE_ATOMICS: atomic_add(nobodys, own); break;
    case RACE_ALIKE: store_alike(nobodys, 7); break;
    case RACE_WRITES: nobodys[i] = 7; break;
    case RACE_READS_OTHERS: words[own] = words[other]; break;
    case RACE_READS_SUM: words[own] = atomic_add(nobodys, 1) + *nobodys; break;
    case RACE_WRITES_SUM:
        if (blockIdx.x != 1) atomic_add(nobodys, 1);
        if (blockIdx.x == 1) *nobodys = 1;
        break;
    case RACE_COPIES_OTHERS:
        words[own] = 1;
        copy_async(piece + i * 4, words + other / 4 * 4);
        copy_wait<0>();
        break;
    case RACE_ONCE_AND_WRITE:
    case RACE_WRITE_AND_ONCE: nobodys[0] = race_once(race, words, own); break;
    default: words[own] = early;
    }
    copy_commit();
    copy_wait<0>();
}
void run_race(enum race race, uint32_t *words)
{
    LAUNCH(race_kernel, 4, 32, shared_bytes<uint32_t>(128), stream, race, words);
}

static __global__ void switches_kernel(float *out, uint32_t rounds)
{
    grid_wait();
    float sum = 0;
    for (uint32_t i = 0; i < rounds; i++) {
        sum += warp_sum((float)i);
        block_sync();
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
void run_switches(float *out, uint32_t blocks, uint32_t threads, uint32_t rounds)
{
    LAUNCH(switches_kernel, blocks, threads, 0, stream, out, rounds);
}
