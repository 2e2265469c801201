/* The tier thread around kv/tier_work.h: a mailbox in, LOADs before STOREs, one event for each op.
 *
 * An op that was posted has a place, which says whose its blocks are (enum kv_tier_held): the tier thread
 * makes it TOUCHED while it reads or writes one, the loop thread may make it TAKEN in between, and then has
 * given the event itself. The tier thread leaves the place when it lets go of the job. */
#include "kv/tiers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mailbox.h"
#include "common/mem.h"
#include "kv/tier_work.h"

struct job_queue {
    struct kv_tier_job *first, *last;
};

struct place {
    _Atomic uint32_t held;
    uint64_t id; /* the loop thread's */
    enum kv_tier_op_kind kind;
};

/* Opens one tier, once. */
struct opener {
    struct kv_tiers *tiers;
    const char *name; /* the tier's */
    uint32_t row;
    pthread_t thread;
};

struct kv_tiers {
    struct kv_tier_work *work;
    struct mailbox *posted; /* of struct kv_tier_job *; NULL: a tier has opened */
    struct mailbox *opened; /* the openers' last words: the row */
    struct mailbox *ended;  /* the tier thread's last word, a byte */
    struct place *place;    /* [ops_max] */
    struct opener opener[KV_TIERS_MAX];
    uint32_t openers_count; /* that run; with `opened` the tier thread's once that runs */
    bool stuck;             /* the loop thread's */
    uint64_t stop_ns;
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
    if (!job) return;
    struct job_queue *const queue[] = {
        [KV_TIER_LOAD] = &t->loads, [KV_TIER_STORE] = &t->stores, [KV_TIER_LIST] = &t->lists};
    push(queue[job->op.kind], job);
}

/* One that was taken back has had its event: what is left are the tiers' news. */
static void end(struct kv_tiers *t, struct kv_tier_job *job, struct kv_tier_event *event)
{
    uint32_t posted = KV_TIER_POSTED;
    struct place *p = &t->place[job->place];
    bool ours = atomic_compare_exchange_strong(&p->held, &posted, KV_TIER_UNUSED);
    if (!ours) atomic_store(&p->held, KV_TIER_UNUSED);
    atomic_fetch_sub(&t->waiting, 1);
    if (!ours) event->id = 0;
    if (ours || event->news_count > 0 || event->news_lost) t->on_event(t->ctx, event);
    if (ours) { /* nobody waits for that */
        kv_tier_work_used(t->work, job);
        kv_tier_work_check_rest(t->work, job);
    }
    kv_tier_job_free(job);
}

/* Waits for an op if there is none, or until a tier has opened or is to be opened again. False: no more come. */
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

/* ---- opening ---- */

static void *run_opener(void *arg)
{
    struct opener *o = arg;
    kv_tier_work_open(o->tiers->work, o->row);
    CHECK(mailbox_send(o->tiers->opened, &o->row) == OK);
    enum err e = mailbox_send(o->tiers->posted, &(struct kv_tier_job *){NULL});
    CHECK(e == OK || e == ERR_CANCELLED); /* there is room for each tier's */
    return NULL;
}

/* What an opener has left. ERR_IO is no error, it is tried again; `late`: none is. */
static enum err take_opened(struct kv_tiers *t, uint32_t row, bool late)
{
    const struct opener *o = &t->opener[row];
    pthread_join(o->thread, NULL);
    t->openers_count--;
    enum err e = kv_tier_work_opened(t->work, row, late);
    if (e != OK && e != ERR_IO && !late) return err_prefix(e, "%s", o->name);
    if (e != OK)
        log_warn("kv_tier_unusable",
                 "tier=%s reason=\"%s\" note=\"goes on without it, tried again later\"", o->name,
                 err_text());
    else if (late)
        log_info("kv_tier_back", "tier=%s doing=open", o->name);
    return OK;
}

/* ERR_TIMEOUT: one is still at it. */
static enum err await_openers(struct kv_tiers *t, uint64_t wait_ns, bool late)
{
    uint32_t row;
    enum err e = OK;
    uint64_t end_ns = wait_ns == TIME_NEVER ? TIME_NEVER : clock_now_ns() + wait_ns;
    while (e == OK && t->openers_count > 0) {
        uint64_t now_ns = clock_now_ns();
        uint64_t left_ns = end_ns > now_ns ? end_ns - now_ns : 0;
        if ((e = mailbox_wait(t->opened, &row, left_ns)) == OK) e = take_opened(t, row, late);
    }
    return e;
}

static enum err open_tiers(struct kv_tiers *t, const struct kv_tiers_options *o)
{
    struct kv_tiers_stats stats;
    uint64_t open_ns = o->open_ns > 0 ? o->open_ns : KV_TIERS_OPEN_NS;
    for (uint32_t i = 0; i < o->tiers_count; i++) {
        t->opener[i] = (struct opener){.tiers = t, .name = o->tier[i].ops->name, .row = i};
        int error = pthread_create(&t->opener[i].thread, NULL, run_opener, &t->opener[i]);
        if (error != 0) return err_set(ERR_IO, "pthread_create: %s", strerror(error));
        t->openers_count++;
    }
    enum err e = await_openers(t, open_ns, false);
    if (e != ERR_TIMEOUT) return e;
    kv_tiers_stats(t, &stats);
    log_error("kv_tier_stuck",
              "tier=%s for_ms=%llu note=\"does not open; goes on without it until it does\"",
              stats.calling ? stats.calling : "?", (unsigned long long)(open_ns / NS_PER_MS));
    return OK;
}

/* ---- the tier thread ---- */

static void *run(void *arg)
{
    struct kv_tiers *t = arg;
    uint32_t row;
    while (receive(t)) {
        while (mailbox_receive(t->opened, &row) == OK)
            take_opened(t, row, true);
        work(t);
        if (!t->loads.first) kv_tier_work_reopen(t->work);
    }
    end_all(t);
    await_openers(t, TIME_NEVER, true);
    kv_tier_work_close(t->work);
    CHECK(mailbox_send(t->ended, &(char){0}) == OK);
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
    t->stop_ns = options->stop_ns > 0 ? options->stop_ns : KV_TIERS_STOP_NS;
    t->place = mem_array(options->ops_max, sizeof *t->place);
    enum err e = t->place ? OK : ERR_MEMORY;
    if (e == OK)
        e = mailbox_new(&t->posted, sizeof(struct kv_tier_job *), options->ops_max + KV_TIERS_MAX);
    if (e == OK) e = mailbox_new(&t->opened, sizeof t->opener->row, KV_TIERS_MAX);
    if (e == OK) e = mailbox_new(&t->ended, 1, 1);
    if (e == OK) e = kv_tier_work_new(&t->work, options);
    if (e == OK) e = open_tiers(t, options);
    if (e == OK) {
        *out = t;
        return OK;
    }
    char text[ERR_TEXT_MAX];
    snprintf(text, sizeof text, "%s", err_text()); /* before others have theirs */
    if (!kv_tiers_close(t)) *out = t;
    return err_set(e, "%s", text);
}

enum err kv_tiers_start(struct kv_tiers *t)
{
    int error = pthread_create(&t->thread, NULL, run, t);
    if (error != 0) return err_set(ERR_IO, "pthread_create: %s", strerror(error));
    t->started = true;
    return OK;
}

/* There is one: so many do not wait. */
static uint32_t take_place(struct kv_tiers *t, const struct kv_tier_op *op)
{
    uint32_t i = 0;
    while (i < t->ops_max && atomic_load(&t->place[i].held) != KV_TIER_UNUSED)
        i++;
    CHECK(i < t->ops_max);
    t->place[i].id = op->id;
    t->place[i].kind = op->kind;
    atomic_store(&t->place[i].held, KV_TIER_POSTED);
    return i;
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
    if (t->stuck) return err_set(ERR_AGAIN, "a call of a tier has not returned");
    struct kv_tier_job *job = kv_tier_job_new(op);
    if (!job) return ERR_MEMORY;
    job->place = take_place(t, op);
    job->held = &t->place[job->place].held;
    atomic_fetch_add(&t->waiting, 1);
    enum err e = mailbox_send(t->posted, &job);
    if (e == OK) return OK;
    atomic_store(job->held, KV_TIER_UNUSED);
    atomic_fetch_sub(&t->waiting, 1);
    kv_tier_job_free(job);
    return e == ERR_FULL ? err_set(e, "%u ops wait", waiting) : e;
}

/* All that nobody touches at the moment; the rest next time. */
static void take_back(struct kv_tiers *t)
{
    for (uint32_t i = 0; i < t->ops_max; i++) {
        struct place *p = &t->place[i];
        uint32_t posted = KV_TIER_POSTED;
        if (!atomic_compare_exchange_strong(&p->held, &posted, KV_TIER_TAKEN)) continue;
        const struct kv_tier_event event = {
            .id = p->id, .kind = p->kind, .ended_ns = kv_tier_work_now(t->work)};
        t->on_event(t->ctx, &event);
    }
}

void kv_tiers_watch(struct kv_tiers *t, struct kv_tiers_stats *stats)
{
    kv_tiers_stats(t, stats);
    if (stats->stuck_ns > 0 && !t->stuck)
        log_error("kv_tier_stuck",
                  "tier=%s for_ms=%llu note=\"a call does not return; goes on without tiers until "
                  "it does\"",
                  stats->calling, (unsigned long long)(stats->stuck_ns / NS_PER_MS));
    t->stuck = stats->stuck_ns > 0;
    if (t->stuck) take_back(t);
}

/* Waits for the threads' ends, up to stop_ns. */
static bool join(struct kv_tiers *t)
{
    mailbox_close(t->posted);
    if (!t->started) {
        end_all(t);
        return await_openers(t, t->stop_ns, true) == OK;
    }
    if (mailbox_wait(t->ended, &(char){0}, t->stop_ns) != OK) return false;
    pthread_join(t->thread, NULL);
    t->started = false;
    return true;
}

enum err kv_tiers_stop(struct kv_tiers *t)
{
    struct kv_tiers_stats stats;
    if (join(t)) return OK;
    kv_tiers_stats(t, &stats);
    return err_set(ERR_TIMEOUT, "tier %s: a call has not returned for %llu ms",
                   stats.calling ? stats.calling : "?",
                   (unsigned long long)(t->stop_ns / NS_PER_MS));
}

bool kv_tiers_close(struct kv_tiers *t)
{
    if (!t) return true;
    CHECK(!t->started);
    if (t->work && !join(t)) return false;
    kv_tier_work_free(t->work);
    mailbox_free(t->posted);
    mailbox_free(t->opened);
    mailbox_free(t->ended);
    mem_free(t->place);
    mem_free(t);
    return true;
}

void kv_tiers_stats(const struct kv_tiers *t, struct kv_tiers_stats *stats)
{
    kv_tier_work_stats(t->work, stats);
    stats->stores_dropped = atomic_load(&t->stores_dropped);
}
