#include "kernels/workers.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"

/* A word that one side changes and the other waits for. The waiter says that it sleeps before it
 * looks a last time, the waker looks for sleepers after it changed the word, both in one total
 * order: so one of the two sees the other. */
struct signal {
    _Alignas(64) _Atomic uint32_t word;
    _Atomic uint32_t sleeping;
};

struct worker {
    struct signal turn; /* counts up by one per run */
    struct workers *owner;
    pthread_t thread;
    uint32_t index;
};

struct workers {
    struct signal pending; /* threads that have not finished this run */
    workers_fn *fn;        /* NULL: the end */
    void *ctx;
    uint32_t started_count; /* of worker[1 …] */
    struct worker *worker;
};

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static long futex(_Atomic uint32_t *word, int op, uint32_t value)
{
    return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

static void signal_wake(struct signal *s)
{
    if (atomic_load(&s->sleeping)) futex(&s->word, FUTEX_WAKE, INT_MAX);
}

/* Returns when the word is (equal) or is no longer (!equal) `value`. */
static void signal_wait(struct signal *s, uint32_t value, bool equal)
{
    uint64_t end_ns = 0;
    for (uint32_t i = 0;; i++) {
        if ((atomic_load_explicit(&s->word, memory_order_acquire) == value) == equal) return;
        pause_cpu();
        if (i % 32) continue;
        uint64_t now_ns = clock_now_ns();
        if (end_ns == 0) end_ns = now_ns + WORKERS_SPIN_NS;
        if (now_ns >= end_ns) break;
    }
    atomic_store(&s->sleeping, 1);
    for (uint32_t now; ((now = atomic_load(&s->word)) == value) != equal;)
        futex(&s->word, FUTEX_WAIT, now);
    atomic_store(&s->sleeping, 0);
}

static void *worker_main(void *arg)
{
    struct worker *me = arg;
    struct workers *w = me->owner;
    for (uint32_t turn = 0;; turn++) {
        signal_wait(&me->turn, turn, false);
        if (!w->fn) return NULL;
        w->fn(w->ctx, me->index);
        if (atomic_fetch_sub(&w->pending.word, 1) == 1) signal_wake(&w->pending);
    }
}

static void worker_release(struct worker *worker)
{
    atomic_fetch_add(&worker->turn.word, 1);
    signal_wake(&worker->turn);
}

void workers_run(struct workers *w, uint32_t threads, workers_fn *fn, void *ctx)
{
    CHECK(threads >= 1 && threads <= w->started_count + 1);
    if (threads > 1) {
        w->fn = fn;
        w->ctx = ctx;
        atomic_store(&w->pending.word, threads - 1);
        for (uint32_t i = 1; i < threads; i++)
            worker_release(&w->worker[i]);
    }
    fn(ctx, 0);
    if (threads > 1) signal_wait(&w->pending, 0, true);
}

/* The next CPU of a set that is not empty, around. */
static int next_cpu(const cpu_set_t *cpus, int cpu)
{
    do
        cpu = (cpu + 1) % CPU_SETSIZE;
    while (!CPU_ISSET(cpu, cpus));
    return cpu;
}

static int worker_create(struct worker *worker, int cpu)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    if (cpu >= 0) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_attr_setaffinity_np(&attr, sizeof one, &one);
    }
    int failed = pthread_create(&worker->thread, &attr, worker_main, worker);
    pthread_attr_destroy(&attr);
    return failed;
}

/* The kernel's struct of sched_getattr(2), which libc does not tell of; its first version. */
struct thread_attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t slice_ns, deadline_ns, period_ns;
};

/* Of this thread, if it is an ordinary one. A kernel before 6.12 has slices of its own choice, and
 * an offer gives up more. */
static void ask_for_slices(uint64_t slice_ns)
{
    struct thread_attr attr;
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) != 0) return;
    if (attr.policy != SCHED_OTHER && attr.policy != SCHED_BATCH) return;
    attr.slice_ns = slice_ns;
    syscall(SYS_sched_setattr, 0, &attr, 0);
}

void workers_offer_core(void)
{
    static _Thread_local uint64_t next_ns;
    if (clock_now_ns() < next_ns) return;
    if (next_ns == 0) ask_for_slices(WORKERS_SLICE_NS);
    sched_yield();
    next_ns = clock_now_ns() + WORKERS_OFFER_NS;
}

/* On `cpu`, or anywhere if that is negative, or not there, or not ours. */
static enum err worker_start(struct workers *w, uint32_t index, int cpu)
{
    struct worker *worker = &w->worker[index];
    worker->owner = w;
    worker->index = index;
    int failed = worker_create(worker, cpu);
    if (failed == EINVAL && cpu >= 0) {
        log_warn("worker_not_pinned", "thread=%u cpu=%d", index, cpu);
        failed = worker_create(worker, -1);
    }
    if (!failed) return OK;
    return err_set(ERR_MEMORY, "cannot start worker thread %u: %s", index, strerror(failed));
}

enum err workers_new(struct workers **out, uint32_t threads, const cpu_set_t *cpus)
{
    enum err e = ERR_MEMORY;
    *out = NULL;
    if (threads < 1 || threads > WORKERS_MAX)
        return err_set(ERR_INVALID, "%u threads, allowed are 1 to %u", threads, WORKERS_MAX);
    struct workers *w = mem_aligned(sizeof *w, 64);
    if (!w) goto fail;
    if (!(w->worker = mem_aligned(threads * sizeof *w->worker, 64))) goto fail;
    bool pinned = cpus && CPU_COUNT(cpus) > 0;
    int cpu = pinned ? next_cpu(cpus, -1) : -1; /* the caller's */
    for (uint32_t i = 1; i < threads; i++) {
        if (pinned) cpu = next_cpu(cpus, cpu);
        if ((e = worker_start(w, i, cpu)) != OK) goto fail;
        w->started_count = i;
    }
    *out = w;
    return OK;
fail:
    workers_free(w);
    return e;
}

void workers_free(struct workers *w)
{
    if (!w) return;
    w->fn = NULL;
    for (uint32_t i = 1; i <= w->started_count; i++)
        worker_release(&w->worker[i]);
    for (uint32_t i = 1; i <= w->started_count; i++)
        pthread_join(w->worker[i].thread, NULL);
    mem_free(w->worker);
    mem_free(w);
}
