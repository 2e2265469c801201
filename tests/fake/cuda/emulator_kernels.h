/* emulator_kernels: small kernels, good and bad, that the emulator's own tests run. Each function
 * launches one on the stream that run_on named last; NULL at first. */
#ifndef TANDEM_FAKE_CUDA_EMULATOR_KERNELS_H
#define TANDEM_FAKE_CUDA_EMULATOR_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

void run_on(cudaStream_t stream);

/* out[thread of the grid] = {thread, block, threads of a block, blocks}. */
void run_places(uint4 *out, uint32_t blocks, uint32_t threads);
/* The same for a grid of three dimensions; out[..].y is the number of the block. */
void run_places_deep(uint4 *out, struct dim3 grid, uint32_t threads);
/* out[i] = by * in[i], if `add` + by: a template with two arguments; `count` comes as a double. */
void run_scale(float *out, const float *in, double count, int add);

/* One warp; out[lane] of each primitive. */
struct warp_out {
    uint32_t shuffled[32], shuffled_xor[32], ballot[32];
    float sum[32], max[32];
};
void run_warp(struct warp_out *out, const float *in);
void run_atomics(uint32_t *sum, uint64_t *wide_sum, uint32_t blocks);
/* out[thread of the grid]: which place it came in, in three rounds with barriers between. */
void run_order(uint32_t *out, uint32_t blocks, uint32_t threads);
/* d [16][8] += a [16][16] b [16][8]; a and b of bf16, b as [16][8] or, if `b_across`, as [8][16]. */
void run_mma(float *d, const uint16_t *a, const uint16_t *b, int b_across);
/* out[i] = bf16_pair(in[2i], in[2i + 1]), exp2[i] of in[i]; one block of `count`. */
void run_numbers(uint32_t *pairs, float *exp2, const float *in, uint32_t count);
/* out[0 … 4 * 32) = in, each thread's 16 bytes by load_once. */
void run_load_once(uint32_t *out, const uint32_t *in);

/* What is missing in a kernel that is otherwise right. */
enum planted {
    PLANT_NOTHING,
    PLANT_NO_BARRIER_AFTER_WRITE,
    PLANT_NO_BARRIER_BEFORE_REUSE,
    PLANT_NO_WARP_SYNC,
    PLANT_READ_BEHIND,
    PLANT_WRITE_BEHIND,
    PLANT_WRITE_BEFORE,
    PLANT_WRITE_INTO_GAP, /* behind a piece whose size is no multiple of 16 */
    PLANT_NO_COPY_WAIT,
    PLANT_WAIT_FOR_TOO_FEW,
    PLANT_NO_BARRIER_AFTER_COPY,
};
/* out[block] = sum of in[block * threads …], over rounds that use the same shared memory again. */
void run_block_sum(float *out, const float *in, uint32_t blocks, uint32_t threads,
                   enum planted planted);
/* out[i] = in[31 - i] of each warp's 32, by way of shared memory. */
void run_warp_turn(uint32_t *out, const uint32_t *in, uint32_t threads, enum planted planted);
/* out[i] = in[i ^ 1] + in[…], copied by stages with async copies, two groups under way; count is a
 * multiple of 4 * threads; what lies beyond `valid` counts as zero. */
void run_copied(float *out, const float *in, uint32_t count, uint32_t valid, uint32_t threads,
                enum planted planted);

/* Each of these is a fault. */
enum bad {
    BAD_RETURN_BEFORE_BARRIER,
    BAD_TWO_BARRIERS,
    BAD_ENDLESS,
    BAD_HALF_WARP,
    BAD_LANE_RETURNED,
    BAD_TWO_WARP_FUNCTIONS,
    BAD_HALF_BLOCK, /* launched with 16 threads */
    BAD_UNLIKE_PIECES,
    BAD_TOO_MUCH_TAKEN,
    BAD_TOO_MANY_PIECES,
    BAD_ADDRESS,
    BAD_STACK,
    BAD_COPY_UNALIGNED,
    BAD_COPY_OUTSIDE,
    BAD_COPY_LEFT,
    BAD_MATRIX_OUTSIDE,
    BAD_MATRIX_UNALIGNED,
    BAD_LOAD_UNALIGNED,
    BAD_VECTOR_UNALIGNED,
    BAD_PAIR_UNALIGNED,
    BAD_NO_GRID_WAIT,
    BAD_KINDS
};
void run_bad(enum bad bad, uint32_t *out, const uint32_t *in, uint32_t threads);
/* What blocks of a grid do with the same memory; from RACE_WRITES on each is a fault. */
enum race {
    RACE_NOT_AT_ALL, /* each its own */
    RACE_NEIGHBOURS, /* two bytes of one word each */
    RACE_ALL_READ,
    RACE_ATOMICS,
    RACE_ALIKE,        /* store_alike */
    RACE_WRITES,       /* of the same value */
    RACE_READS_OTHERS, /* what another block writes */
    RACE_READS_SUM,    /* that others add to */
    RACE_WRITES_SUM,
    RACE_COPIES_OTHERS, /* by copy_async */
    RACE_BEFORE_WAIT,
    RACE_ONCE_AND_WRITE, /* what it has read by load_once */
    RACE_WRITE_AND_ONCE,
    RACE_KINDS
};
/* Four blocks of 32 threads; `words` are 256. */
void run_race(enum race race, uint32_t *words);
/* Nothing but a launch of these sizes. */
void run_empty(struct dim3 grid, struct dim3 block, size_t shared_bytes);
/* Takes `bytes` after asking for them. */
void run_much_shared(uint32_t bytes);
/* `rounds` barriers, and as many sums over a warp: to see what a switch costs. */
void run_switches(float *out, uint32_t blocks, uint32_t threads, uint32_t rounds);

#ifdef __cplusplus
}
#endif

#endif
