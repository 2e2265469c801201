/* machine: what runs one grid at a time on the calling thread: the fibers of a block, who of them waits
 * for what, and the block's shared memory. Shared by the C files of the emulator.
 *
 * Rules: a machine belongs to the thread that is in emulator_run; between runs it lies in a pool with
 * its stacks. After a fault it is thrown away, since its fibers stand in the midst of a kernel. */
#ifndef TANDEM_FAKE_CUDA_MACHINE_H
#define TANDEM_FAKE_CUDA_MACHINE_H

#include "tests/fake/cuda/emulator.h"
#include "tests/fake/cuda/fiber.h"
#include "tests/fake/cuda/races.h"

enum {
    LANES = 32,
    THREADS_MAX = 1024,
    WARPS_MAX = THREADS_MAX / LANES,
    SHARED_MAX = 163 << 10,        /* bytes that a block can have, on compute capability 8.0 */
    SHARED_RESERVED = 1 << 10,     /* by the device, of a multiprocessor's */
    SHARED_UNASKED_MAX = 48 << 10, /* without cudaFuncSetAttribute */
    PIECES_MAX = 24,
    CANARY_BYTES = 256,
    BARRIERS_MAX = 1 << 16, /* of a block: a kernel with more does not end */
    /* Not a number in fp32 and in both halves' bf16, and far out of bounds as an index. */
    POISON = 0x7fff7fff,
};

enum wait {
    WAIT_NONE,
    WAIT_BLOCK,
    WAIT_WARP_SYNC,
    WAIT_SHUFFLE,
    WAIT_BALLOT,
    WAIT_MMA,
    WAIT_MATRICES,
};

struct copy {
    void *to;
    const void *from; /* NULL: zeros */
    uint32_t group;
};

struct thread {
    struct fiber *fiber; /* NULL: has not begun, or has returned */
    struct copy *copies; /* under way */
    uint32_t copies_count, copies_capacity;
    uint32_t groups_closed;
    bool waited; /* for the grids before */
};

/* Bit masks are of lanes. */
struct warp {
    uint32_t exists, ready, returned;
    uint32_t at_block; /* waiting for the block's barrier */
    uint32_t at_warp;  /* waiting for the rest of the warp, in `wait` at `line` */
    enum wait wait;
    struct emulator_line line;
    void *lane[LANES]; /* what each lane brought */
};

/* A piece ends, but for alignment to 16, at a page that cannot be touched. */
struct piece {
    unsigned char *at;
    size_t bytes;
    uint32_t offset; /* of the bytes that a launch asks for */
};

enum order { ORDER_ANY, ORDER_AHEAD, ORDER_TURNS, ORDERS_COUNT };

struct machine {
    struct machine *next;
    const struct emulator_launch *launch;
    uint64_t serial; /* of the grid: none of another machine has it */
    uint32_t block[3], number;
    struct races *races;

    struct fiber main, *running;
    struct fiber *fiber[THREADS_MAX], *idle[THREADS_MAX]; /* all, and those that nobody needs */
    uint32_t fibers_count, idle_count;

    uint64_t random;
    enum order order; /* how warps take turns */
    uint32_t current; /* the thread that runs */
    uint32_t threads_count, warps_count, returned_count;
    uint32_t at_block_count, barriers_count;
    struct emulator_line block_line;
    uint32_t warps_ready; /* bit: a warp's place in turn */
    uint32_t turn_last;
    uint8_t warp_at_turn[WARPS_MAX], turn_of_warp[WARPS_MAX];
    struct warp warp[WARPS_MAX];
    struct thread thread[THREADS_MAX];

    unsigned char *slots; /* PIECES_MAX times slot and guard */
    size_t slot_bytes, slot_stride;
    struct piece piece[PIECES_MAX];
    uint32_t pieces_count;

    void *fault_stack;
    bool faulted;
    char fault[640];
};

/* The calling thread's machine while it runs a grid. */
extern __thread struct machine *machine;

/* --- emulator.c --- */

/* Ends the launch with a report: kernel, block, thread and what. */
__attribute__((noreturn, format(printf, 1, 2))) void machine_fault(const char *format, ...);

/* --- shared.c --- */

bool shared_open(struct machine *m);
void shared_close(struct machine *m);
/* Nothing is taken yet. */
void shared_reset(struct machine *m);
/* Has a write missed its piece by little? A fault if so. */
void shared_check(struct machine *m);
/* The piece that holds all of [at, at + bytes), or NULL. */
const struct piece *shared_piece(const struct machine *m, const void *at, size_t bytes);
/* Where an address lies, in words, if it is at all in or near shared memory. */
bool shared_say(const struct machine *m, const void *at, char *text, size_t text_bytes);

/* --- twins.c: what a warp does together; lane[i] is what lane i brought --- */

struct shuffle_lane {
    uint32_t value, from, result;
};
struct ballot_lane {
    bool condition;
    uint32_t result;
};
struct mma_lane {
    float *d;
    const uint32_t *a;
    uint32_t b[2];
};
struct matrices_lane {
    uint32_t *r;
    const void *row;
    bool transposed;
};
void twin_shuffle(void *const lane[LANES]);
void twin_ballot(void *const lane[LANES]);
void twin_mma(void *const lane[LANES]);
void twin_matrices(void *const lane[LANES]);

#endif
