/* workers: a few threads that run one function together with their caller, many times a second.
 *
 *     struct workers *w;
 *     if ((e = workers_new(&w, 4, NULL)) != OK) return e;   // the caller and three threads
 *     workers_run(w, 4, fn, ctx);                         // fn(ctx, 0 … 3), returns when all did
 *     workers_free(w);
 *     …
 *     n = workers_piece(left, most);                      // inside fn: so many items at once, and
 *     workers_offer_core();                               // after each piece
 *
 * Rules: index 0 runs on the caller. A thread that waits spins for WORKERS_SPIN_NS, then sleeps on
 * a futex, so that an idle engine costs nothing; to wake it takes 25 us, so it spins longer than one item
 * of an op and the small ops behind it take. workers_run makes what was written before it
 * visible to all, and what they wrote visible to the caller. Nothing is allocated by it.
 * A thread that computes for milliseconds offers its core in between: a thread of another kind that
 * was woken there, say one that waits for a message, may otherwise not be looked at again before the
 * kernel's clock ticks, every 4 ms (SPEED.md). Where nobody waits it costs a system call; beside
 * another program that computes all the time, a sixth of this thread's half of the core.
 * Owner: one thread makes, runs and frees; the threads stay inside. */
#ifndef TANDEM_KERNELS_WORKERS_H
#define TANDEM_KERNELS_WORKERS_H

#include <sched.h>
#include <stdint.h>

#include "common/err.h"

#define WORKERS_SPIN_NS 60000
#define WORKERS_OFFER_NS 200000 /* between two offers of a thread */
#define WORKERS_SLICE_NS 100000 /* the shortest that the kernel grants */
#define WORKERS_MAX 1024

struct workers;
typedef void workers_fn(void *ctx, uint32_t index);

/* 1 to WORKERS_MAX threads, the caller among them. Thread i > 0 is pinned to the i-th of `cpus`, counted
 * from 0 and around; one that the kernel refuses is a warning. NULL or empty: none is pinned. The
 * caller's own place is its owner's business. */
enum err workers_new(struct workers **w, uint32_t threads, const cpu_set_t *cpus);
void workers_free(struct workers *w); /* NULL is allowed */
/* Runs fn with indices 0 … threads - 1; threads is at most what workers_new was told. */
void workers_run(struct workers *w, uint32_t threads, workers_fn *fn, void *ctx);

/* Of the calling thread, if the last one is WORKERS_OFFER_NS ago. The first one also asks the kernel
 * for slices of WORKERS_SLICE_NS: with an offer one slice is given up. */
void workers_offer_core(void);

/* How many of the items that are left a thread takes at once: half of them, at most `most`. So pieces
 * are long, which memory likes, until the end, where no thread should wait long for another. */
static inline uint32_t workers_piece(uint32_t left, uint32_t most)
{
    uint32_t half = left - left / 2;
    return half < most ? half : most;
}

#endif
