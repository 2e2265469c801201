/* workers: a few threads that run one function together with their caller, many times a second.
 *
 *     struct workers *w;
 *     if ((e = workers_new(&w, 4, NULL)) != OK) return e;   // the caller and three threads
 *     workers_run(w, 4, fn, ctx);                         // fn(ctx, 0 … 3), returns when all did
 *     workers_free(w);
 *
 * Rules: index 0 runs on the caller. A thread that waits spins for WORKERS_SPIN_NS, then sleeps on
 * a futex, so that an idle engine costs nothing. workers_run makes what was written before it
 * visible to all, and what they wrote visible to the caller. Nothing is allocated by it.
 * Owner: one thread makes, runs and frees; the threads stay inside. */
#ifndef TANDEM_KERNELS_WORKERS_H
#define TANDEM_KERNELS_WORKERS_H

#include <sched.h>
#include <stdint.h>

#include "common/err.h"

#define WORKERS_SPIN_NS 20000
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

#endif
