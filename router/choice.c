/* choice: one of the n samples of a request, from the queue to its DONE.
 *
 *              picked          RESERVED            TOKENS
 *     QUEUED --------> RESERVING -------> PREFILLING -----> DECODING
 *        ^  \              |                  |                |
 *        |   \ no D needed |   node lost or   |                |  FINISHED, stop string,
 *        |    `------------|---> PREFILLING   |                |  cancel, deadline, too many
 *        |                 |                  |                |  deaths or failures
 *        `-- attempt + 1 --'------------------'----------------'------------------> ENDED
 *
 * | event          | RESERVING       | PREFILLING           | DECODING           | ENDED      |
 * | RESERVED       | PREFILL to P    | late: dropped        | late: dropped      |            |
 * | FIRST from P   |                 | forward              | forward or known   | dropped    |
 * | TOKENS from D  | dropped         | forward, DECODING    | forward            |            |
 * | ENCODED from P |                 | keep                 |                    |            |
 * | PREFILLED      |                 | P lets go            | P lets go          | P lets go  |
 * | FINISHED       | dropped         | forward rest, ENDED  | forward rest, ENDED|            |
 * | FAILED by D    | again elsewhere | again                | again              |            |
 * | FAILED by P    |                 | again                | P lets go          | P lets go  |
 * | P lost         | again           | again, a death       | P lets go          | P lets go  |
 * | D lost         | again           | again, a death       | again, a death     |            |
 * | cancelled      | ENDED in every state, QUEUED and TOKENIZING too                              |
 * | deadline       | ENDED in every state                                                         |
 * | silence        | QUEUED, TOKENIZING: ENDED; else again                                        |
 *
 * If P is to get KV from another node first (backfill.c), FILLING is between RESERVING and PREFILLING: what comes
 * there is as in PREFILLING, but P knows nothing of it yet. However that ends, BACKFILLED sends PREFILL to P.
 *
 * A choice whose last forwarded token was its last one (the node died before it said so) ends instead.
 * "Again" freezes what was forwarded, cancels the old attempt at both nodes and queues attempt + 1 under
 * the request's own arrival time, so that retries go first. A message of another attempt, or from a node
 * that the choice is not attached to, finds no choice and is dropped; so nothing of an honest node comes
 * where the table is empty. core->met counts each entry; the simulator says which were not met. */
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/plant.h"
#include "common/smooth.h"
#include "router/state.h"

void choice_trail(struct choice *c, uint64_t now_ns, enum trail_what what, const char *node)
{
    if (c->trail_count == ROUTER_TRAIL_MAX) return;
    struct trail *t = &c->trail[c->trail_count++];
    *t = (struct trail){.at_ns = now_ns, .what = what, .attempt = c->attempt};
    snprintf(t->node, sizeof t->node, "%s", node);
}

struct job_key choice_key(const struct choice *c)
{
    return (struct job_key){c->request->id, c->index, c->attempt};
}

struct choice *choice_find(struct router_core *core, struct job_key key)
{
    struct request *r = map_get(&core->requests, key.request);
    if (!r || key.choice >= r->choices_count) return NULL;
    struct choice *c = &r->choice[key.choice];
    return c->attempt == key.attempt || PLANTED("no_attempt_check") ? c : NULL;
}

/* The choice that this node may speak of, NULL and counted if there is none. */
static struct choice *choice_at(struct router_core *core, struct job_key key,
                                const struct node *from)
{
    struct choice *c = choice_find(core, key);
    bool told = c && (c->prefill_told || PLANTED("no_attempt_check"));
    bool by_prefill = told && c->prefill == from;
    if (by_prefill || (c && c->decode == from)) return c;
    core->counts.stale_messages++;
    return NULL;
}

void choice_meet(struct router_core *core, const struct choice *c, enum choice_event event)
{
    core->met[c->state][event]++;
}

/* ---- states and their deadlines ---- */

/* The job of the current attempt; `stop_ids` has room for JOB_STOP_IDS_MAX. */
struct job choice_job(const struct router_core *core, const struct choice *c, uint32_t *stop_ids)
{
    const struct request *r = c->request;
    const struct msg_submit *s = &r->submit;
    struct job job = {.key = choice_key(c),
                      .prompt = s->tokens,
                      .prompt_count = s->tokens_count,
                      .forwarded = c->generated,
                      .forwarded_count = c->generated_count,
                      .tokens_max = s->tokens_max,
                      .tokens_min = s->tokens_min,
                      .stop_ids = stop_ids,
                      .sampling = s->sampling,
                      .priority = turns_priority(core, c),
                      .kind = s->kind,
                      .preemptions = c->preemptions,
                      .tenant_salt = r->tenant_salt,
                      .tenant = r->tenant ? r->tenant->salt : 0,
                      .tenant_weight = r->tenant ? r->tenant->weight : 1,
                      .kv_window = s->kv_window,
                      .kv_sinks = s->kv_sinks};
    for (uint32_t i = 0; i < s->stop_ids_count && job.stop_ids_count < JOB_STOP_IDS_MAX; i++)
        stop_ids[job.stop_ids_count++] = s->stop_ids[i];
    if (s->ignore_eos) return job;
    for (uint32_t i = 0; i < core->cluster.eos_count && job.stop_ids_count < JOB_STOP_IDS_MAX; i++)
        stop_ids[job.stop_ids_count++] = core->cluster.eos[i];
    return job;
}

void choice_enter(struct router_core *core, uint64_t now_ns, struct choice *c,
                  enum choice_state state)
{
    uint64_t wait_ns = core->config.stall_timeout_ns;
    if (state == CHOICE_QUEUED) wait_ns = core->config.queue_timeout_ns;
    if (state == CHOICE_RESERVING) wait_ns = core->config.reserve_timeout_ns;
    c->state = state;
    c->state_ns = c->progress_ns = now_ns;
    uint64_t when_ns = now_ns + wait_ns;
    if (c->request->deadline_ns < when_ns) when_ns = c->request->deadline_ns;
    heap_move(&core->timers, &c->timer, when_ns); /* room was reserved when it was made */
}

enum finish choice_already_over(const struct router_core *core, const struct choice *c)
{
    uint32_t stop_ids[JOB_STOP_IDS_MAX], last = c->generated_count - 1;
    if (c->generated_count == 0) return FINISH_NONE;
    if (c->replay_stopped) return FINISH_STOP;
    struct job job = choice_job(core, c, stop_ids);
    uint32_t context_max = core->cluster.known ? core->cluster.context_max : UINT32_MAX;
    return job_finish(&job, last, c->generated[last], context_max);
}

void choice_enqueue(struct router_core *core, uint64_t now_ns, struct choice *c)
{
    enum finish finish = choice_already_over(core, c);
    if (finish != FINISH_NONE) {
        choice_end(core, now_ns, c, finish, OK, "");
        return;
    }
    choice_enter(core, now_ns, c, CHOICE_QUEUED);
    choice_trail(c, now_ns, TRAIL_QUEUED, "");
    heap_move(&core->queue, &c->queue,
              sched_queue_key(c->request->arrived_ns, c->request->submit.priority));
    turns_queue(core, c);
    core->queued_tokens += choice_tokens(c);
    if (c->picked_ns) core->queued_retries++;
    core->dispatch_wanted = true;
}

void choice_dequeue(struct router_core *core, struct choice *c)
{
    if (!heap_holds(&c->queue)) return;
    heap_remove(&core->queue, &c->queue);
    turns_unqueue(core, c);
    core->queued_tokens -= choice_tokens(c);
    if (c->picked_ns) core->queued_retries--;
}

static void again(struct router_core *core, uint64_t now_ns, struct choice *c, const char *why)
{
    choice_cancel_nodes(core, c, why);
    turns_ended(core, c);
    core->counts.retries++;
    c->attempt++;
    c->gap_asked = c->finish_pending = false;
    result_forget(c);
    if (c->deaths >= core->config.deaths_max) {
        char reason[MSG_TEXT_MAX];
        snprintf(reason, sizeof reason, "%u nodes died while they worked on it, the last time: %s",
                 c->deaths, why);
        choice_end(core, now_ns, c, FINISH_ERROR, ERR_PEER, reason);
    } else if (c->lone_deaths >= core->config.lone_deaths_max) {
        char reason[MSG_TEXT_MAX];
        snprintf(reason, sizeof reason, "quarantined: %u nodes died while it was alone on them",
                 c->lone_deaths);
        choice_end(core, now_ns, c, FINISH_ERROR, ERR_PEER, reason);
    } else if (c->failures >= ROUTER_FAILURES_MAX) {
        char reason[MSG_TEXT_MAX];
        snprintf(reason, sizeof reason, "failed %u times, the last time: %s", c->failures, why);
        choice_end(core, now_ns, c, FINISH_ERROR, ERR_PEER, reason);
    } else {
        choice_enqueue(core, now_ns, c);
    }
}

/* ---- the end ---- */

static void count_end(struct router_core *core, const struct choice *c)
{
    if (c->finish == FINISH_CANCELLED)
        core->counts.cancelled++;
    else if (c->finish == FINISH_ERROR)
        core->counts.failed++;
    else
        result_count(core, c);
}

/* All choices have ended: only what explain shows is kept. */
static void request_ended(struct router_core *core, uint64_t now_ns, struct request *r)
{
    if (r->only.v) pins_on_ended(core, now_ns, r);
    list_remove(&r->of_client);
    r->client = NULL;
    turns_leave(core, r);
    core->counts.requests_live--;
    arena_fini(&r->arena);
    memset(&r->submit, 0, sizeof r->submit);
    r->hashes = NULL;
    r->hashes_count = 0;
    list_push_back(&core->history, &r->history);
    if (++core->history_count <= core->config.history_max) return;
    struct request *oldest = list_member(core->history.next, struct request, history);
    request_forget(core, oldest);
}

void choice_end(struct router_core *core, uint64_t now_ns, struct choice *c, enum finish finish,
                enum err error, const char *reason)
{
    if (finish == FINISH_CANCELLED) choice_meet(core, c, CHOICE_EV_CANCELLED);
    if (c->state == CHOICE_ENDED) return;
    bool natural = finish == FINISH_STOP || finish == FINISH_LENGTH;
    choice_dequeue(core, c);
    turns_ended(core, c);
    heap_remove(&core->timers, &c->timer);
    enum err e = natural ? output_flush(core, c) : OK;
    if (e != OK) {
        natural = false;
        finish = FINISH_ERROR;
        error = e;
        reason = err_text();
    }
    if (!natural) choice_cancel_nodes(core, c, reason);
    c->state = CHOICE_ENDED;
    c->finish = finish;
    c->error = error;
    c->ended_ns = now_ns;
    snprintf(c->reason, sizeof c->reason, "%s", reason);
    c->timing.decode = us_between(c->first_ns, now_ns);
    c->timing.total = us_between(c->request->arrived_ns, now_ns);
    choice_trail(c, now_ns, TRAIL_ENDED, "");
    if (natural) result_tell(core, c);
    output_done(core, c);
    count_end(core, c);
    if (natural) router_meter_time(core, METER_DURATION, c->request->arrived_ns, now_ns);
    core->counts.choices_live--;
    stream_free(c->stream);
    stop_free(c->stop);
    mem_free(c->generated);
    result_forget(c);
    c->stream = NULL;
    c->stop = NULL;
    c->generated = NULL;
    if (++c->request->choices_ended == c->request->choices_count)
        request_ended(core, now_ns, c->request);
}

/* ---- what nodes say ---- */

void choice_on_reserved(struct router_core *core, uint64_t now_ns, struct node *from,
                        const struct msg_reserved *m)
{
    struct choice *c = choice_at(core, m->key, from);
    if (!c || c->decode != from) return;
    choice_meet(core, c, CHOICE_EV_RESERVED);
    if (c->state != CHOICE_RESERVING) return;
    choice_trail(c, now_ns, TRAIL_RESERVED, c->decode_name);
    c->ticket = m->ticket;
    if (!c->local) prefixes_found(core, c, from, &c->held_decode, m->held_tokens);
    if (c->local) {
        choice_enter(core, now_ns, c, CHOICE_PREFILLING);
        return;
    }
    if (m->held_tokens > choice_tokens(c) || id128_is_none(m->ticket)) {
        c->failures++;
        again(core, now_ns, c, "a reservation that makes no sense");
        return;
    }
    c->held_tokens = m->held_tokens;
    choice_prefill(core, now_ns, c);
}

/* Most streams get all their room with their first token. */
static bool grow_generated(struct choice *c, uint32_t more)
{
    enum { FIRST_TOKENS = 1024 };
    uint32_t want = c->generated_count + more, max = c->request->submit.tokens_max;
    if (want <= c->generated_capacity) return true;
    uint32_t capacity = c->generated_capacity ? c->generated_capacity * 2 : FIRST_TOKENS;
    if (capacity > max) capacity = max;
    if (capacity < want) capacity = want;
    uint32_t *p = mem_resize(c->generated, capacity, sizeof *p);
    if (!p) return false;
    c->generated = p;
    c->generated_capacity = capacity;
    return true;
}

static void note_first(struct router_core *core, struct choice *c, uint64_t now_ns)
{
    if (c->first_ns) return;
    c->first_ns = now_ns;
    router_meter_time(core, METER_FIRST_TOKEN, c->request->arrived_ns, now_ns);
    tenant_meters_first_token(core, c->request->tenant,
                              (double)(now_ns - c->request->arrived_ns) / (double)NS_PER_S);
    c->timing.ttft = us_between(c->request->arrived_ns, now_ns);
}

/* How many of these tokens are known already; a token that differs from the one forwarded means that
 * two attempts did not compute the same, which must never happen among equal numerics ids. */
static uint32_t skip_known(struct router_core *core, const struct choice *c, uint32_t index,
                           const struct token_info *tokens, uint32_t count)
{
    uint32_t known = 0;
    if (PLANTED("duplicate_forward")) return 0;
    for (; known < count && index + known < c->generated_count; known++) {
        core->counts.duplicate_tokens++;
        if (c->generated[index + known] == tokens[known].token) continue;
        char id[ID128_TEXT];
        id128_print(c->request->id, id);
        core->counts.diverged++;
        log_error("token_diverged", "request=%s choice=%u attempt=%u index=%u", id, c->index,
                  c->attempt, index + known);
    }
    return known;
}

static void ask_resend(struct router_core *core, struct choice *c)
{
    core->counts.gaps++;
    if (c->gap_asked || !c->decode) return;
    struct msg m = {.kind = MSG_RESEND, .resend = {choice_key(c), c->generated_count}};
    registry_send(core, c->decode->peer, &m);
    c->gap_asked = true;
}

/* Forwards tokens[0 … count), the next in order; false: the choice has ended by it. */
static bool append(struct router_core *core, uint64_t now_ns, struct choice *c,
                   const struct token_info *tokens, uint32_t count)
{
    uint32_t index = c->generated_count, taken = 0;
    bool stopped = false;
    enum err e = grow_generated(c, count) ? OK : ERR_MEMORY;
    buf_clear(&core->text);
    while (e == OK && taken < count && !stopped) {
        c->generated[c->generated_count++] = tokens[taken].token;
        e = output_add_token(core, c, tokens[taken++].token, &stopped);
    }
    if (e != OK) {
        choice_end(core, now_ns, c, FINISH_ERROR, e, err_text());
        return false;
    }
    note_first(core, c, now_ns);
    core->counts.generated_tokens += taken;
    turns_generated(core, c, taken);
    output_send(core, c, index, tokens, taken,
                stopped ? FINISH_STOP : choice_already_over(core, c));
    if (!stopped) return true;
    choice_cancel_nodes(core, c, "stop string");
    choice_end(core, now_ns, c, FINISH_STOP, OK, "");
    return false;
}

/* True: the choice goes on and everything up to here is forwarded. */
static bool forward(struct router_core *core, uint64_t now_ns, struct choice *c, uint32_t index,
                    const struct token_info *tokens, uint32_t count)
{
    c->progress_ns = now_ns;
    if (index > c->generated_count) {
        ask_resend(core, c);
        return false;
    }
    uint32_t known = skip_known(core, c, index, tokens, count);
    if (known == count) return true;
    uint32_t room = c->request->submit.tokens_max - c->generated_count;
    if (count - known > room) { /* more than was asked for: a broken node */
        c->failures++;
        again(core, now_ns, c, "more tokens than asked for");
        return false;
    }
    c->gap_asked = false;
    if (!append(core, now_ns, c, tokens + known, count - known)) return false;
    if (c->decode) node_hold_blocks(c);
    return true;
}

/* Told twice: with the first token, and when P has let go. */
static void note_prefill(struct router_core *core, struct choice *c, uint32_t cached_tokens,
                         uint64_t queued_us, uint64_t compute_us)
{
    turns_cached(core, c, cached_tokens);
    c->timing.queue = us_between(c->request->arrived_ns, c->picked_ns) + queued_us;
    c->timing.prefill = compute_us;
    if (cached_tokens > c->cached_tokens) c->cached_tokens = cached_tokens;
}

/* Until the node's heartbeat tells its speed, that of its first prompt is taken for it. */
static void learn_speed(struct node *n, const struct choice *c, uint32_t cached_tokens,
                        uint64_t compute_us)
{
    uint32_t all = c->request->prompt_count;
    if (n->sched.token_ns || cached_tokens >= all) return;
    uint64_t ns = compute_us * 1000 / (all - cached_tokens);
    n->sched.token_ns = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

void choice_on_first(struct router_core *core, uint64_t now_ns, struct node *from,
                     const struct msg_first *m)
{
    struct choice *c = choice_at(core, m->key, from);
    if (!c || c->prefill != from) return;
    choice_meet(core, c, CHOICE_EV_FIRST);
    node_release_window(core, c);
    if (c->state != CHOICE_PREFILLING && c->state != CHOICE_DECODING) return;
    choice_trail(c, now_ns, TRAIL_FIRST, c->prefill_name);
    note_prefill(core, c, m->cached_tokens, m->queued_us, m->compute_us);
    learn_speed(from, c, m->cached_tokens, m->compute_us);
    prefixes_found(core, c, from, &c->held_prefill, m->cached_tokens);
    forward(core, now_ns, c, m->index, &m->token, 1);
}

static void finish_by_node(struct router_core *core, uint64_t now_ns, struct choice *c,
                           enum finish finish)
{
    struct node *n = c->decode ? c->decode : c->prefill;
    struct msg m = {.kind = MSG_FINISHED_ACK, .finished_ack = {choice_key(c)}};
    if (n) registry_send(core, n->peer, &m);
    if (!c->decode) node_detach_prefill(core, c);
    node_detach_decode(core, c);
    choice_end(core, now_ns, c, finish, OK, "");
}

void choice_on_run(struct router_core *core, uint64_t now_ns, struct node *from,
                   const struct token_run *run)
{
    struct choice *c = choice_at(core, run->key, from);
    if (!c || c->decode != from) return;
    choice_meet(core, c, CHOICE_EV_TOKENS);
    if (c->state == CHOICE_PREFILLING) {
        choice_trail(c, now_ns, TRAIL_STREAM, c->decode_name);
        choice_enter(core, now_ns, c, CHOICE_DECODING);
    }
    if (c->state != CHOICE_DECODING) return;
    from->generated_tokens += run->tokens_count;
    if (!forward(core, now_ns, c, run->index, run->tokens, run->tokens_count)) return;
    if (c->finish_pending && c->finish_count == c->generated_count)
        finish_by_node(core, now_ns, c, c->finish);
}

/* A part of the result did not come: it is asked for once. */
static void ask_values(struct router_core *core, uint64_t now_ns, struct choice *c)
{
    core->counts.gaps++;
    if (c->gap_asked) {
        c->failures++;
        again(core, now_ns, c, "an end without the whole result");
        return;
    }
    struct msg m = {.kind = MSG_RESEND, .resend = {choice_key(c), c->values_count}};
    registry_send(core, c->prefill->peer, &m);
    c->gap_asked = true;
}

void choice_on_finished(struct router_core *core, uint64_t now_ns, struct node *from,
                        const struct msg_finished *m)
{
    struct choice *c = choice_at(core, m->key, from);
    if (!c || (c->prefill == from && c->decode)) return; /* D is the stream */
    choice_meet(core, c, CHOICE_EV_FINISHED);
    if (c->state != CHOICE_PREFILLING && c->state != CHOICE_DECODING) return;
    if (m->finish == FINISH_ERROR || m->finish == FINISH_NONE ||
        m->tokens_count < c->generated_count ||
        (m->tokens_count > c->generated_count && from != c->decode)) {
        c->failures++;
        again(core, now_ns, c, "an end that does not fit its tokens");
        return;
    }
    if (m->cached_tokens > c->cached_tokens) c->cached_tokens = m->cached_tokens;
    prefixes_found(core, c, from, c->decode == from ? &c->held_decode : &c->held_prefill,
                   m->cached_tokens);
    if (!result_is_whole(c)) {
        ask_values(core, now_ns, c);
        return;
    }
    if (!c->decode) {
        note_prefill(core, c, m->cached_tokens, m->queued_us, m->compute_us);
        from->prompt_tokens += c->request->prompt_count;
    }
    if (m->tokens_count > c->generated_count) {
        c->finish_pending = true;
        c->finish_count = m->tokens_count;
        c->finish = m->finish;
        ask_resend(core, c);
        return;
    }
    finish_by_node(core, now_ns, c, m->finish);
}

void choice_on_encoded(struct router_core *core, uint64_t now_ns, struct node *from,
                       const struct msg_encoded *m)
{
    struct choice *c = choice_at(core, m->key, from);
    if (!c || c->prefill != from || c->decode) return;
    choice_meet(core, c, CHOICE_EV_ENCODED);
    if (c->state != CHOICE_PREFILLING) return;
    c->progress_ns = now_ns;
    node_release_window(core, c);
    enum err e = result_add(c, m);
    if (e == ERR_MEMORY) {
        choice_end(core, now_ns, c, FINISH_ERROR, e, err_text());
    } else if (e != OK) {
        c->failures++;
        again(core, now_ns, c, err_text());
    }
}

/* For explain alone: without memory there is none. */
static void keep_pushes(struct choice *c, const struct msg_prefilled *m)
{
    mem_free(c->pushes);
    c->pushes = mem_array(m->push_layer_count, sizeof *c->pushes);
    c->pushes_count = c->pushes ? m->push_layer_count : 0;
    for (uint32_t i = 0; i < c->pushes_count; i++)
        c->pushes[i] =
            (struct push_time){m->push_layer[i], m->push_computed_us[i], m->push_sent_us[i]};
}

void choice_on_prefilled(struct router_core *core, uint64_t now_ns, struct node *from,
                         const struct msg_prefilled *m)
{
    struct choice *c = choice_at(core, m->key, from);
    if (!c || c->prefill != from) return;
    if (c->state == CHOICE_PREFILLING && !c->decode) return; /* it is to say FINISHED */
    choice_meet(core, c, CHOICE_EV_PREFILLED);
    choice_trail(c, now_ns, TRAIL_PREFILLED, c->prefill_name);
    c->progress_ns = now_ns;
    note_prefill(core, c, m->cached_tokens, m->queued_us, m->compute_us);
    prefixes_found(core, c, from, &c->held_prefill, m->cached_tokens);
    c->timing.transfer_tail = m->transfer_tail_us;
    keep_pushes(c, m);
    from->prompt_tokens += c->request->prompt_count;
    from->transfer_bytes += m->transfer_bytes;
    snprintf(from->link, sizeof from->link, "%s", m->link);
    if (m->transfer_bytes)
        core->hand_over_ns = smooth(core->hand_over_ns, m->transfer_tail_us * 1000);
    if (c->decode)
        registry_note_transfer(core, from, c->decode, m->transfer_bytes,
                               m->transfer_tail_us * 1000);
    node_detach_prefill(core, c);
}

void choice_on_failed(struct router_core *core, uint64_t now_ns, struct node *from,
                      const struct msg_failed *m)
{
    struct choice *c = choice_at(core, m->key, from);
    if (!c) return;
    bool by_prefill = c->prefill == from;
    choice_meet(core, c, by_prefill ? CHOICE_EV_PREFILL_FAILED : CHOICE_EV_DECODE_FAILED);
    choice_trail(c, now_ns, TRAIL_FAILED, from->hello.name);
    if (by_prefill && c->state != CHOICE_PREFILLING) {
        node_detach_prefill(core, c);
        return;
    }
    if (c->state == CHOICE_ENDED) return;
    if (by_prefill)
        node_detach_prefill(core, c); /* it has let go already */
    else
        node_detach_decode(core, c);
    if (m->error == ERR_AGAIN) { /* no fault: its sibling has gone, or it made room for others */
        if (c->fork && c->generated_count == 0)
            c->forks_refused++;
        else
            c->preemptions++;
        again(core, now_ns, c, m->reason);
    } else if (m->error == ERR_FULL) {
        from->sched.full_until_ns = now_ns + ROUTER_FULL_NS;
        again(core, now_ns, c, m->reason);
    } else if (!m->retryable) {
        choice_cancel_nodes(core, c, m->reason);
        choice_end(core, now_ns, c, FINISH_ERROR, m->error, m->reason);
    } else {
        c->failures++;
        again(core, now_ns, c, m->reason);
    }
}

void choice_on_lost(struct router_core *core, uint64_t now_ns, struct choice *c, struct node *node,
                    enum loss loss, const char *why)
{
    bool by_prefill = c->prefill == node;
    bool had_it = by_prefill ? c->prefill_told : c->state != CHOICE_RESERVING;
    bool ended = c->state == CHOICE_ENDED;
    choice_meet(core, c, by_prefill ? CHOICE_EV_PREFILL_LOST : CHOICE_EV_DECODE_LOST);
    choice_trail(c, now_ns, TRAIL_LOST, node->hello.name);
    if (by_prefill)
        node_detach_prefill(core, c);
    else
        node_detach_decode(core, c);
    if (loss == LOSS_LONELY_DEATH && had_it && !ended) c->lone_deaths++;
    if (ended || (by_prefill && c->state == CHOICE_DECODING)) return;
    if (loss == LOSS_OF_CHOICE)
        c->failures++;
    else if (had_it)
        c->deaths++;
    again(core, now_ns, c, why);
}

static void end_unplaced(struct router_core *core, uint64_t now_ns, struct choice *c)
{
    char reason[MSG_TEXT_MAX];
    enum sched_answer why = choice_waits_for(core, now_ns, c);
    snprintf(reason, sizeof reason, "no node took it in time: %s",
             core->nodes_count ? sched_waiting_for(why)
                               : "no node has joined: start tandem-prefill and tandem-decode");
    choice_end(core, now_ns, c, FINISH_ERROR, why == SCHED_NO_NODES ? ERR_PEER : ERR_FULL, reason);
}

void choice_on_timer(struct router_core *core, uint64_t now_ns, struct choice *c)
{
    uint64_t quiet_ns = now_ns - c->progress_ns;
    bool works = c->state == CHOICE_PREFILLING || c->state == CHOICE_DECODING;
    bool late = now_ns >= c->request->deadline_ns;
    if (!late && works && quiet_ns < core->config.stall_timeout_ns) {
        uint64_t when_ns = c->progress_ns + core->config.stall_timeout_ns;
        if (c->request->deadline_ns < when_ns) when_ns = c->request->deadline_ns;
        heap_move(&core->timers, &c->timer, when_ns);
        return;
    }
    choice_meet(core, c, late ? CHOICE_EV_DEADLINE : CHOICE_EV_SILENCE);
    if (c->state == CHOICE_TOKENIZING) {
        submit_on_timer(core, now_ns, c->request);
    } else if (late) {
        char reason[MSG_TEXT_MAX];
        snprintf(reason, sizeof reason, "its deadline has passed while it was %s",
                 choice_state_name(c->state));
        choice_end(core, now_ns, c, FINISH_ERROR, ERR_TIMEOUT, reason);
    } else if (c->state == CHOICE_QUEUED) {
        end_unplaced(core, now_ns, c);
    } else {
        c->failures++;
        again(core, now_ns, c, "no word from the node in time");
    }
}
