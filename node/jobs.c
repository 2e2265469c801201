/* Messages about jobs. Everything in them is a router's claim: checked here, once, before it becomes a
 * sequence. */
#include "node/state.h"

#include "common/hash.h"
#include "common/plant.h"

struct id128 job_map_key(struct id128 request, uint32_t choice)
{
    return hash_chain(request, &choice, sizeof choice);
}

struct sequence *job_find(const struct node_core *c, struct id128 request, uint32_t choice)
{
    struct sequence *s = map_get(&c->jobs, job_map_key(request, choice));
    return s && id128_equal(s->job.key.request, request) && s->job.key.choice == choice ? s : NULL;
}

void job_refuse(struct node_core *c, uint32_t router, struct job_key key, enum err e,
                bool retryable, const char *reason)
{
    struct msg m = {.kind = MSG_FAILED,
                    .failed = {.key = key, .error = e, .retryable = retryable, .reason = reason}};
    c->counts.refused_jobs += e == ERR_FULL && !c->draining;
    say(c, router, &m);
}

static struct sequence *find_exact(const struct node_core *c, uint32_t router, struct job_key key)
{
    struct sequence *s = job_find(c, key.request, key.choice);
    return s && s->router == router && s->job.key.attempt == key.attempt ? s : NULL;
}

/* What came with RESERVE or PREFILL. */
struct offer {
    const struct job *job;
    enum seq_kind kind;
    uint32_t router;
    uint64_t deadline_ns;
    const struct msg_prefill *prefill;
    bool fork;
    uint32_t sibling;
};

/* The answer that this job was given, once more. */
static void repeat_answer(struct node_core *c, struct sequence *s)
{
    if (s->kind == SEQ_REMOTE || s->kind == SEQ_LOCAL) { /* a local one has no ticket */
        struct msg m = {.kind = MSG_RESERVED, .reserved = {s->job.key, s->ticket, s->held_tokens}};
        say(c, s->router, &m);
    }
    if (s->state == SEQ_FINISHED) sequence_tell_finished(c, s);
}

/* ERR_DUPLICATE: known, and its answer was repeated. ERR_STALE: over here, or overtaken. */
static enum err admit_key(struct node_core *c, const struct offer *o)
{
    struct job_key key = o->job->key;
    struct sequence *s = job_find(c, key.request, key.choice);
    if (s && job_key_equal(s->job.key, key) && s->router == o->router && s->kind == o->kind) {
        repeat_answer(c, s);
        return ERR_DUPLICATE;
    }
    if (s && s->job.key.attempt >= key.attempt)
        return err_set(ERR_STALE, "attempt %u of this choice runs here", s->job.key.attempt);
    if (tomb_covers(c, key)) return err_set(ERR_STALE, "this attempt has ended here");
    return OK;
}

static enum err admit_job(const struct node_core *c, const struct offer *o)
{
    enum err e;
    const struct job *job = o->job;
    if ((e = job_check(job, c->config.vocab_count, c->config.context_max)) != OK) return e;
    if ((e = backfill_check(c, job, o->kind)) != OK) return e;
    if (o->kind != SEQ_PLAIN && job->tokens_max == 0 && !job->cached_only)
        return err_set(ERR_INVALID, "max_tokens is 0: there is nothing to decode");
    if (job->kv_window && c->config.hello.kv_window)
        return err_set(ERR_INVALID, "kv_window: this model has a window of its own, of %u tokens",
                       c->config.hello.kv_window);
    if (job->kv_window && !c->config.kv_windows)
        return err_set(ERR_UNSUPPORTED, "this node's device knows no kv_window of a request");
    if (o->kind == SEQ_PUSH) {
        uint32_t held = o->prefill->held_tokens;
        if (held % BLOCK_TOKENS != 0 || held >= job->prompt_count + job->forwarded_count)
            return err_set(ERR_INVALID,
                           "held_tokens is %u of %u, allowed are multiples of %d below", held,
                           job->prompt_count + job->forwarded_count, BLOCK_TOKENS);
    }
    if (c->broken) return err_set(ERR_DEVICE, "the device has failed");
    if (c->draining) return err_set(ERR_FULL, "draining");
    return OK;
}

static enum err full(const struct node_core *c, const struct sequence *s)
{
    if (queue_promised(c, s)) return err_set(ERR_FULL, "others wait for blocks already");
    uint32_t need = accounts_need(s), available = accounts_available(c);
    if (need <= available)
        return err_set(ERR_FULL,
                       "%u blocks are free or cached, which those that run are expected to want",
                       available);
    return err_set(ERR_FULL, "%u blocks wanted, %u are free or cached", need, available);
}

static enum err begin_remote(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    enum err e;
    if (backfill_is_here(c, s)) {
        sequence_enter(c, now_ns, s, SEQ_RESERVED);
        sequence_step(c, now_ns, s, &(struct seq_input){.event = SEQ_EV_ENDED});
        return OK;
    }
    if (queue_promised(c, s) || accounts_open(c, s, HOLD_RESERVE) != OK) return full(c, s);
    if (PLANTED("uncommitted_match")) {
        uint32_t held = s->kv_count;
        s->kv_count = seq_total(s);
        accounts_insert(c, s);
        s->kv_count = held;
    }
    if ((e = handover_expect(c, now_ns, s)) != OK) {
        accounts_close(c, s);
        return e;
    }
    sequence_enter(c, now_ns, s, SEQ_RESERVED);
    repeat_answer(c, s);
    return OK;
}

/* Blocks are taken or refused now, except while a prefix that it shares is being computed. */
static enum err begin_local(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    enum err e = queue_promised(c, s) ? ERR_FULL : queue_open(c, now_ns, s);
    if (e == ERR_FULL) return full(c, s);
    if (e == ERR_NOT_FOUND) return fork_gone();
    sequence_enter(c, now_ns, s, SEQ_WAITING);
    repeat_answer(c, s);
    if (e == OK) sequence_step(c, now_ns, s, &(struct seq_input){.event = SEQ_EV_START});
    return OK;
}

static enum err begin_prefill(struct node_core *c, uint64_t now_ns, struct sequence *s,
                              const struct msg_prefill *p)
{
    enum err e;
    if (s->job.cached_only) return backfill_give(c, now_ns, s, p);
    if (s->kind == SEQ_PUSH && (e = handover_open(c, now_ns, s, p)) != OK) return e;
    sequence_enter(c, now_ns, s, SEQ_WAITING);
    return OK;
}

/* An older attempt of the same choice is over, whatever becomes of this one. */
static void overtake(struct node_core *c, uint64_t now_ns, struct job_key key)
{
    struct sequence *older = job_find(c, key.request, key.choice);
    if (older) sequence_fail(c, now_ns, older, ERR_STALE, false, "a later attempt has begun here");
}

static enum err begin(struct node_core *c, uint64_t now_ns, const struct offer *o)
{
    enum err e;
    struct sequence *s;
    if ((e = sequence_new(c, now_ns, o->job, &s)) != OK) return e;
    s->kind = o->kind;
    s->router = o->router;
    s->fork = o->fork && s->job.forwarded_count == 0;
    s->sibling = o->sibling;
    s->preemptions = s->job.preemptions;
    s->job_deadline_ns = o->deadline_ns;
    uint32_t need = accounts_need_all(s);
    if (need > c->config.blocks_count)
        e = err_set(
            ERR_INVALID,
            "the request needs %u KV blocks of %d tokens at its full length, this node has %u",
            need, BLOCK_TOKENS, c->config.blocks_count);
    else if (o->kind == SEQ_REMOTE)
        e = begin_remote(c, now_ns, s);
    else if (o->kind == SEQ_LOCAL)
        e = begin_local(c, now_ns, s);
    else
        e = begin_prefill(c, now_ns, s, o->prefill);
    if (e != OK) sequence_discard(c, s);
    return e;
}

static void on_offer(struct node_core *c, uint64_t now_ns, const struct offer *o)
{
    enum err e;
    if ((e = admit_key(c, o)) == OK && (e = admit_job(c, o)) == OK) {
        overtake(c, now_ns, o->job->key);
        e = begin(c, now_ns, o);
    }
    if (e == OK || e == ERR_DUPLICATE) return;
    bool retryable = e != ERR_INVALID && e != ERR_STALE;
    job_refuse(c, o->router, o->job->key, e, retryable, err_text());
}

static uint64_t deadline_of(uint64_t now_ns, const struct msg *m)
{
    uint32_t ms = m->envelope.remaining_ms;
    return ms == 0 ? TIME_NEVER : now_ns + ms * NS_PER_MS;
}

/* ---- cancel ---- */

static void cancel_one(struct node_core *c, uint64_t now_ns, struct sequence *s, const char *reason)
{
    sequence_fail(c, now_ns, s, ERR_CANCELLED, false, reason && *reason ? reason : "cancelled");
}

static void on_cancel(struct node_core *c, uint64_t now_ns, const struct msg_cancel *m)
{
    tomb_put(c, now_ns, m->key);
    if (m->key.choice != CHOICE_ALL) {
        struct sequence *s = job_find(c, m->key.request, m->key.choice);
        if (s && s->job.key.attempt <= m->key.attempt) cancel_one(c, now_ns, s, m->reason);
        return;
    }
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        struct sequence *s = &c->sequence[i];
        if (s->state == SEQ_FREE || s->state == SEQ_ENDING) continue;
        if (id128_equal(s->job.key.request, m->key.request) && s->job.key.attempt <= m->key.attempt)
            cancel_one(c, now_ns, s, m->reason);
    }
}

/* ---- what the router says about a running job ---- */

static void on_resend(struct node_core *c, uint32_t router, const struct msg_resend *m)
{
    struct sequence *s = find_exact(c, router, m->key);
    if (!s) {
        if (!tomb_covers(c, m->key))
            job_refuse(c, router, m->key, ERR_NOT_FOUND, true, "not known here");
        return;
    }
    if (s->state == SEQ_FINISHED) encode_tell(c, s, m->from);
    sequence_tell(c, s, m->from);
    if (s->state == SEQ_FINISHED) sequence_tell_finished(c, s);
}

void jobs_on_message(struct node_core *c, uint64_t now_ns, uint32_t router, const struct msg *m)
{
    struct sequence *s;
    switch (m->kind) {
    case MSG_RESERVE:
        on_offer(c, now_ns,
                 &(struct offer){.job = &m->reserve.job,
                                 .kind = m->reserve.local ? SEQ_LOCAL : SEQ_REMOTE,
                                 .router = router,
                                 .deadline_ns = deadline_of(now_ns, m),
                                 .fork = m->reserve.local && m->reserve.fork,
                                 .sibling = m->reserve.sibling});
        break;
    case MSG_PREFILL:
        on_offer(c, now_ns,
                 &(struct offer){
                     .job = &m->prefill.job,
                     .kind = id128_is_none(m->prefill.ticket) ? SEQ_PLAIN : SEQ_PUSH,
                     .router = router,
                     .deadline_ns = deadline_of(now_ns, m),
                     .prefill = &m->prefill,
                 });
        break;
    case MSG_CANCEL: on_cancel(c, now_ns, &m->cancel); break;
    case MSG_PIN: pins_on_message(c, now_ns, router, &m->pin); break;
    case MSG_RESEND: on_resend(c, router, &m->resend); break;
    case MSG_FINISHED_ACK:
        if ((s = find_exact(c, router, m->finished_ack.key)))
            sequence_step(c, now_ns, s, &(struct seq_input){.event = SEQ_EV_ACK});
        break;
    default: c->counts.stale_messages++; break;
    }
}
