/* The tier thread around kv/tier_work.h: a mailbox in, LOADs before STOREs, one event for each op. */
#include "kv/tiers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "common/clock.h"
#include "common/mailbox.h"
#include "common/mem.h"
#include "kv/tier_work.h"

struct job_queue {
    struct kv_tier_job *first, *last;
};

struct kv_tiers {
    struct kv_tier_work *work;
    struct mailbox *posted; /* of struct kv_tier_job * */
    uint32_t ops_max, blocks_max;
    kv_tier_event_fn *on_event;
    void *ctx;
    _Atomic uint32_t waiting; /* posted and not ended */
    _Atomic uint64_t stores_dropped;
    pthread_t thread;
    bool started;
    struct job_queue loads, stores, lists; /* the thread's */
};

static void push(struct job_queue *q, struct kv_tier_job *job)
{
    if (q->last)
        q->last->next = job;
    else
        q->first = job;
    q->last = job;
}

static struct kv_tier_job *pop(struct job_queue *q)
{
    struct kv_tier_job *job = q->first;
    if (!job) return NULL;
    q->first = job->next;
    if (!q->first) q->last = NULL;
    return job;
}

static void sort_in(struct kv_tiers *t, struct kv_tier_job *job)
{
    struct job_queue *const queue[] = {
        [KV_TIER_LOAD] = &t->loads, [KV_TIER_STORE] = &t->stores, [KV_TIER_LIST] = &t->lists};
    push(queue[job->op.kind], job);
}

static void end(struct kv_tiers *t, struct kv_tier_job *job, const struct kv_tier_event *event)
{
    kv_tier_job_free(job);
    atomic_fetch_sub(&t->waiting, 1);
    t->on_event(t->ctx, event);
}

/* Waits for an op if there is none, or until a tier is to be opened again. False: no more come. */
static bool receive(struct kv_tiers *t)
{
    struct kv_tier_job *job;
    enum err e = OK;
    if (!t->loads.first && !t->stores.first && !t->lists.first &&
        (e = mailbox_wait(t->posted, &job, kv_tier_work_reopen_in(t->work))) == OK)
        sort_in(t, job);
    while (e == OK && (e = mailbox_receive(t->posted, &job)) == OK)
        sort_in(t, job);
    return e != ERR_CANCELLED;
}

/* One LOAD, one LIST, or a piece of the first STORE. */
static void work(struct kv_tiers *t)
{
    struct kv_tier_event event;
    struct kv_tier_job *job = pop(&t->loads);
    if (job)
        kv_tier_work_load(t->work, job, &event);
    else if ((job = pop(&t->lists)))
        kv_tier_work_list(t->work, job, &event);
    else if ((job = t->stores.first) && kv_tier_work_store(t->work, job, &event))
        pop(&t->stores);
    else
        return;
    end(t, job, &event);
}

/* What waits ends with what it has. */
static void end_all(struct kv_tiers *t)
{
    struct kv_tier_job *job;
    while (mailbox_receive(t->posted, &job) == OK)
        sort_in(t, job);
    while ((job = pop(&t->loads)) || (job = pop(&t->stores)) || (job = pop(&t->lists))) {
        struct kv_tier_event event;
        kv_tier_job_event(job, kv_tier_work_now(t->work), &event);
        end(t, job, &event);
    }
}

static void *run(void *arg)
{
    struct kv_tiers *t = arg;
    while (receive(t)) {
        work(t);
        if (!t->loads.first) kv_tier_work_reopen(t->work);
    }
    end_all(t);
    return NULL;
}

enum err kv_tiers_open(struct kv_tiers **out, const struct kv_tiers_options *options,
                       kv_tier_event_fn *on_event, void *ctx)
{
    *out = NULL;
    struct kv_tiers *t = mem_new(sizeof *t);
    if (!t) return ERR_MEMORY;
    t->on_event = on_event;
    t->ctx = ctx;
    t->ops_max = options->ops_max;
    t->blocks_max = options->blocks_max;
    enum err e = mailbox_new(&t->posted, sizeof(struct kv_tier_job *), options->ops_max);
    if (e == OK) e = kv_tier_work_new(&t->work, options);
    if (e != OK) {
        kv_tiers_close(t);
        return e;
    }
    *out = t;
    return OK;
}

enum err kv_tiers_start(struct kv_tiers *t)
{
    int error = pthread_create(&t->thread, NULL, run, t);
    if (error != 0) return err_set(ERR_IO, "pthread_create: %s", strerror(error));
    t->started = true;
    return OK;
}

enum err kv_tiers_post(struct kv_tiers *t, const struct kv_tier_op *op)
{
    bool store = op->kind == KV_TIER_STORE;
    uint32_t waiting = atomic_load(&t->waiting);
    if ((op->count == 0 && op->kind != KV_TIER_LIST) || op->count > t->blocks_max)
        return err_set(ERR_INVALID, "an op of %u blocks, 1 to %u are possible", op->count,
                       t->blocks_max);
    if (waiting >= (store ? t->ops_max / 2 : t->ops_max)) {
        if (store) atomic_fetch_add(&t->stores_dropped, 1);
        return err_set(ERR_FULL, "%u ops wait", waiting);
    }
    struct kv_tier_job *job = kv_tier_job_new(op);
    if (!job) return ERR_MEMORY;
    atomic_fetch_add(&t->waiting, 1);
    enum err e = mailbox_send(t->posted, &job);
    if (e == OK) return OK;
    atomic_fetch_sub(&t->waiting, 1);
    kv_tier_job_free(job);
    return e == ERR_FULL ? err_set(e, "%u ops wait", waiting) : e;
}

void kv_tiers_stop(struct kv_tiers *t)
{
    mailbox_close(t->posted);
    if (t->started)
        pthread_join(t->thread, NULL);
    else
        end_all(t);
    t->started = false;
}

void kv_tiers_close(struct kv_tiers *t)
{
    if (!t) return;
    if (t->started) kv_tiers_stop(t);
    kv_tier_work_free(t->work);
    mailbox_free(t->posted);
    mem_free(t);
}

void kv_tiers_stats(const struct kv_tiers *t, struct kv_tiers_stats *stats)
{
    kv_tier_work_stats(t->work, stats);
    stats->stores_dropped = atomic_load(&t->stores_dropped);
}
