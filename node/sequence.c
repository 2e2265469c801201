/* The state machine of a sequence: one choice's tokens on this node.
 *
 *               WAITING  PREFILL            HANDOVER  RESERVED       RUNNING   FINISHED  ENDING
 *     START     PREFILL
 *     COMPUTED           local: RUNNING
 *                        push: HANDOVER
 *                        plain: FINISHED
 *     COMMITTED                                       RUNNING, or
 *                                                     FINISHED
 *     DELIVERED                             ENDING
 *     ENDED                                           FINISHED,      FINISHED
 *                                                     if all is cached
 *     PREEMPT            WAITING                                     WAITING
 *     ACK                                                                      ENDING
 *     TIMER     ENDING!  ENDING!            ENDING!   ENDING!        ENDING!   again, ENDING
 *     FAIL      ENDING!  ENDING!            ENDING!   ENDING!        ENDING!   ENDING!
 *     FORGET    ENDING   ENDING             ENDING    ENDING         ENDING    ENDING
 *     LET_GO                                                                             FREE
 *
 * "!": the router is told FAILED. An event where the table is empty is late: counted, nothing else;
 * but COMMITTED and DELIVERED end the ticket, so out of turn they are ENDING!.
 * RESERVED and HANDOVER leave TIMER to their ticket while it lives: its deadline moves on while KV travels.
 * ENDING becomes FREE at once when no submitted step and no ticket refers to the sequence. */
#include "node/state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/plant.h"

const char *seq_state_name(enum seq_state state)
{
    static const char *const names[SEQ_STATES] = {"free",     "waiting", "prefill",  "handover",
                                                  "reserved", "running", "finished", "ending"};
    return names[state];
}

/* ---- making and unmaking ---- */

static uint32_t *copy_ids(struct arena *a, const uint32_t *ids, uint32_t count)
{
    return arena_copy(a, ids, (size_t)count * sizeof *ids);
}

/* Where length ends the sequence: what job_finish will say, known beforehand. */
static uint32_t generated_max_of(const struct job *job, uint32_t context_max)
{
    uint32_t room = context_max > job->prompt_count ? context_max - job->prompt_count : 0;
    uint32_t max = job->tokens_max < room ? job->tokens_max : room;
    return max > job->forwarded_count ? max : job->forwarded_count + 1;
}

static enum err copy_job(struct sequence *s, const struct job *job, uint32_t context_max)
{
    struct arena *a = &s->arena;
    uint32_t have = job->prompt_count + job->forwarded_count;
    s->job = *job;
    s->generated_count = s->told_count = job->forwarded_count;
    s->generated_max = generated_max_of(job, context_max);
    uint32_t new_max = s->generated_max - job->forwarded_count;
    s->tokens_capacity = have + new_max;
    s->table_capacity = blocks_for_tokens(s->tokens_capacity) + 1;
    s->tokens = arena_take(a, (size_t)s->tokens_capacity * sizeof *s->tokens);
    s->table = arena_take(a, (size_t)s->table_capacity * sizeof *s->table);
    s->job.stop_ids = copy_ids(a, job->stop_ids, job->stop_ids_count);
    s->job.sampling.bias =
        arena_copy(a, job->sampling.bias, job->sampling.bias_count * sizeof *job->sampling.bias);
    if (!s->tokens || !s->table || !s->job.stop_ids || !s->job.sampling.bias) return ERR_MEMORY;
    if (job->sampling.logprobs) {
        size_t tops = (size_t)new_max * job->sampling.tops_count;
        s->logprob = arena_take(a, new_max * sizeof *s->logprob);
        if (!s->logprob) return ERR_MEMORY;
        if (tops > 0 && !(s->top = arena_take(a, tops * sizeof *s->top))) return ERR_MEMORY;
    }
    memcpy(s->tokens, job->prompt, (size_t)job->prompt_count * sizeof *s->tokens);
    if (job->forwarded_count > 0)
        memcpy(s->tokens + job->prompt_count, job->forwarded,
               (size_t)job->forwarded_count * sizeof *s->tokens);
    s->job.prompt = s->tokens;
    s->job.forwarded = s->tokens + job->prompt_count;
    return OK;
}

enum err sequence_new(struct node_core *c, uint64_t now_ns, const struct job *job,
                      struct sequence **out)
{
    *out = NULL;
    if (c->free_slots_count == 0)
        return err_set(ERR_FULL, "all %u sequence slots are taken", c->config.slots_count);
    struct sequence *s = &c->sequence[c->free_slot[--c->free_slots_count]];
    CHECK(s->state == SEQ_FREE);
    *s = (struct sequence){.slot = s->slot, .arena = s->arena, .copy_from = BLOCK_NONE};
    list_init(&s->place);
    list_init(&s->dirty);
    s->accepted_ns = now_ns;
    s->prefix_deadline_ns = now_ns + c->config.prefix_wait_ns;
    s->job_deadline_ns = s->state_deadline_ns = TIME_NEVER;
    if (copy_job(s, job, c->config.context_max) != OK || encode_new(c, s) != OK) {
        sequence_discard(c, s);
        return ERR_MEMORY;
    }
    s->goal = seq_total(s);
    s->window = job->kv_window ? (struct kv_window){job->kv_window, job->kv_sinks}
                               : (struct kv_window){c->config.hello.kv_window, 0};
    s->ahead = c->config.steps_in_flight * c->config.chunk_tokens;
    s->gone = s->window.sinks;
    *out = s;
    return OK;
}

void sequence_discard(struct node_core *c, struct sequence *s)
{
    CHECK(s->table_count == 0 && !s->ticket_live && s->in_flight == 0);
    CHECK(!heap_holds(&s->timer) && list_empty(&s->place) && list_empty(&s->dirty));
    s->state = SEQ_FREE;
    if (s->arena.held_bytes > NODE_ARENA_KEPT)
        arena_fini(&s->arena);
    else
        arena_reset(&s->arena);
    c->free_slot[c->free_slots_count++] = s->slot;
}

/* ---- states ---- */

static void set_deadline(struct node_core *c, struct sequence *s, uint64_t deadline_ns)
{
    s->state_deadline_ns = deadline_ns;
    uint64_t due = deadline_ns;
    if (s->state != SEQ_FINISHED && s->job_deadline_ns < due) due = s->job_deadline_ns;
    /* A timer that fires early is set again: cheaper than moving it for each token. */
    if (heap_holds(&s->timer) && s->timer.key <= due) return;
    enum err e = heap_move(&c->timers, &s->timer, due);
    CHECK(e == OK); /* reserved for all slots */
}

static void put_sorted(struct list_link *head, struct sequence *s)
{
    struct plan_claim claim = seq_claim(s);
    struct list_link *l = head->previous; /* most are the youngest */
    for (; l != head; l = l->previous) {
        struct plan_claim other = seq_claim(list_member(l, struct sequence, place));
        if (plan_before(&other, &claim)) break;
    }
    list_insert_before(l->next, &s->place);
}

static void enter(struct node_core *c, uint64_t now_ns, struct sequence *s, enum seq_state state)
{
    list_remove(&s->place);
    s->state = state;
    switch (state) {
    case SEQ_WAITING:
    case SEQ_PREFILL: put_sorted(&c->queue, s); break;
    case SEQ_RUNNING: put_sorted(&c->running, s); break;
    default: break;
    }
    set_deadline(c, s,
                 now_ns + (state == SEQ_FINISHED ? NODE_REPEAT_NS : c->config.reserve_timeout_ns));
}

/* One that comes again is no younger for it. */
static uint64_t born_ms(uint64_t now_ns, const struct job *job)
{
    uint64_t now_ms = now_ns / NS_PER_MS;
    return now_ms > job->age_ms ? now_ms - job->age_ms : 0;
}

void sequence_enter(struct node_core *c, uint64_t now_ns, struct sequence *s, enum seq_state state)
{
    enum err e = map_put(&c->jobs, job_map_key(s->job.key.request, s->job.key.choice), s);
    CHECK(e == OK); /* job_find said that there is none; reserved for all slots */
    s->born_ms = born_ms(now_ns, &s->job);
    s->order = fair_order(c, &s->job);
    live_add(c, s);
    enter(c, now_ns, s, state);
}

static void let_go(struct node_core *c, struct sequence *s)
{
    if (s->state == SEQ_ENDING && s->in_flight == 0 && !s->ticket_live) sequence_discard(c, s);
}

/* Over for the router: from here on only steps and the link know it. */
static void end(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    map_remove(&c->jobs, job_map_key(s->job.key.request, s->job.key.choice));
    live_remove(c, s);
    tomb_put(c, now_ns, s->job.key);
    heap_remove(&c->timers, &s->timer);
    list_remove(&s->place);
    list_remove(&s->dirty);
    handover_end(c, s);
    accounts_close(c, s);
    s->state = SEQ_ENDING;
    flights_cancel_unwanted(c);
    let_go(c, s);
}

static void fail(struct node_core *c, uint64_t now_ns, struct sequence *s,
                 const struct seq_input *in)
{
    char id[ID128_TEXT];
    id128_print(s->job.key.request, id);
    bool wished = in->error == ERR_CANCELLED; /* a stop string or a user, no trouble */
    log_line(wished ? LOG_DEBUG : LOG_INFO, wished ? "job_cancelled" : "job_failed",
             "request=%s choice=%u attempt=%u state=%s error=%s reason=\"%s\"", id,
             s->job.key.choice, s->job.key.attempt, seq_state_name(s->state), err_name(in->error),
             in->reason);
    job_refuse(c, s->router, s->job.key, in->error, in->retryable, in->reason);
    end(c, now_ns, s);
}

/* Its tokens are complete. Blocks go, what they hold stays findable. */
static void finish(struct node_core *c, uint64_t now_ns, struct sequence *s, enum finish why)
{
    s->finish = why;
    s->finished_ns = now_ns;
    if ((s->kind == SEQ_REMOTE || s->kind == SEQ_LOCAL) && !s->job.cached_only)
        lengths_add(&c->lengths, s->job.prompt_count, s->job.tokens_max, s->generated_count);
    accounts_insert(c, s);
    accounts_close(c, s);
    enter(c, now_ns, s, SEQ_FINISHED);
    sequence_tell_finished(c, s);
}

static void run(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    enter(c, now_ns, s, SEQ_RUNNING);
    queue_start(c, now_ns); /* forks of it, before it may end */
}

/* ---- one step ---- */

static enum finish finish_of_last(const struct node_core *c, const struct sequence *s)
{
    return job_finish(&s->job, s->generated_count - 1, s->tokens[seq_total(s) - 1],
                      c->config.context_max);
}

bool sequence_is_over(const struct node_core *c, const struct sequence *s)
{
    return s->generated_count > s->job.forwarded_count && finish_of_last(c, s) != FINISH_NONE;
}

static void on_committed(struct node_core *c, uint64_t now_ns, struct sequence *s,
                         const struct xfer_event *x)
{
    if (x->first.token >= c->config.vocab_count || x->first.tops_count > JOB_TOPS_MAX) {
        sequence_fail(c, now_ns, s, ERR_FORMAT, true,
                      "the commit's token is not in the vocabulary");
        return;
    }
    if (!s->job.cached_only) room_note_remote(c, s, now_ns);
    s->kv_count = s->planned = seq_total(s);
    accounts_move(c, s, HOLD_SEQUENCE);
    accounts_insert(c, s);
    if (s->job.cached_only) {
        c->counts.backfills++;
        c->counts.backfilled_tokens += seq_total(s) - s->held_tokens;
        finish(c, now_ns, s, FINISH_LENGTH);
        return;
    }
    sequence_append(c, s, &x->first);
    run(c, now_ns, s);
    enum finish why = x->finish == FINISH_STOP ? FINISH_STOP : finish_of_last(c, s);
    if (why != FINISH_NONE) finish(c, now_ns, s, why);
}

static void read_token(const struct sequence *s, uint32_t index, struct token_info *out);
static void say_first(struct node_core *c, const struct sequence *s);

static void on_computed(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    bool sampled = s->generated_count > s->job.forwarded_count;
    enum finish why = sampled ? finish_of_last(c, s) : FINISH_LENGTH;
    switch (s->kind) {
    case SEQ_REMOTE: /* preempted and computed again */
    case SEQ_LOCAL:
        run(c, now_ns, s);
        if (why != FINISH_NONE) finish(c, now_ns, s, why);
        break;
    case SEQ_PUSH: {
        struct token_info first = {0};
        if (sampled) {
            read_token(s, s->generated_count - 1, &first);
            say_first(c, s);
        }
        handover_commit(c, s, &first, why);
        accounts_close(c, s); /* the ticket's own holds stay until the receiver has it all */
        enter(c, now_ns, s, SEQ_HANDOVER);
        break;
    }
    case SEQ_PLAIN:
        if (encode_finish(c, s) != OK) {
            sequence_fail(c, now_ns, s, ERR_FORMAT, false, err_text());
            return;
        }
        if (sampled) say_first(c, s);
        encode_tell(c, s, 0);
        finish(c, now_ns, s, why == FINISH_NONE ? FINISH_LENGTH : why);
        break;
    }
}

static void on_delivered(struct node_core *c, uint64_t now_ns, struct sequence *s,
                         const struct xfer_event *x)
{
    struct push_times t;
    handover_times(s, x, &t);
    struct msg m = {
        .kind = MSG_PREFILLED,
        .prefilled = {.key = s->job.key,
                      .cached_tokens = s->cached_tokens,
                      .queued_us = clock_since_us(s->began_ns, s->accepted_ns),
                      .compute_us = clock_since_us(s->computed_ns, s->began_ns),
                      .transfer_tail_us = clock_since_us(now_ns, s->computed_ns),
                      .transfer_bytes = x->bytes,
                      .link = x->link ? x->link : "",
                      .push_layer = t.layer,
                      .push_computed_us = t.computed_us,
                      .push_sent_us = t.sent_us,
                      .push_layer_count = t.count,
                      .push_computed_us_count = t.count,
                      .push_sent_us_count = t.count},
    };
    say(c, s->router, &m);
    end(c, now_ns, s);
}

static void on_preempt(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    CHECK(s->in_flight == 0 && (room_has_older(c, s) || PLANTED("preemption_cycle")));
    accounts_insert(c, s); /* as long as nobody needs the room it need not be computed again */
    accounts_close(c, s);
    s->preempt = false; /* the engine's slot stays as it is: the next token is the same one */
    s->preempted = true;
    s->tier_asked = false; /* they may have by now what it lacks then */
    s->tier_deadline_ns = 0;
    s->goal = seq_total(s);
    s->preemptions++;
    c->counts.preemptions++;
    if (s->preemptions > c->counts.preemptions_most) c->counts.preemptions_most = s->preemptions;
    enter(c, now_ns, s, SEQ_WAITING);
}

/* Which has a deadline of its own. */
static bool waits_for_transfer(const struct sequence *s)
{
    bool waits = s->state == SEQ_RESERVED || s->state == SEQ_HANDOVER;
    return waits && s->ticket_live && !s->ticket_ended;
}

static void on_timer(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    bool late = now_ns >= s->state_deadline_ns;
    if (s->state == SEQ_FINISHED) {
        if (now_ns - s->finished_ns >= NODE_UNACKED_NS) {
            end(c, now_ns, s);
            return;
        }
        if (late) {
            if (s->kind == SEQ_PLAIN && s->generated_count > s->job.forwarded_count)
                say_first(c, s);
            sequence_tell_finished(c, s);
            set_deadline(c, s, now_ns + NODE_REPEAT_NS);
        }
    } else if (now_ns >= s->job_deadline_ns) {
        sequence_fail(c, now_ns, s, ERR_TIMEOUT, false, "the request's deadline passed");
    } else if (late && (waits_for_transfer(s) || fork_waits(c, s))) {
        set_deadline(c, s, now_ns + c->config.reserve_timeout_ns);
    } else if (late) {
        char reason[MSG_TEXT_MAX];
        snprintf(reason, sizeof reason, "%s for %llu ms without an event", seq_state_name(s->state),
                 (unsigned long long)(c->config.reserve_timeout_ns / NS_PER_MS));
        bool for_room = s->state == SEQ_WAITING && (s->kind == SEQ_REMOTE || s->kind == SEQ_LOCAL);
        c->counts.handed_back += for_room && s->preempted;
        enum err e = !for_room ? ERR_TIMEOUT : s->preempted ? ERR_AGAIN : ERR_FULL;
        sequence_fail(c, now_ns, s, e, true, reason);
    }
    if (s->state != SEQ_FREE && s->state != SEQ_ENDING && !heap_holds(&s->timer))
        set_deadline(c, s, s->state_deadline_ns);
}

void sequence_step(struct node_core *c, uint64_t now_ns, struct sequence *s,
                   const struct seq_input *in)
{
    CHECK(s->state != SEQ_FREE);
    c->met[s->state][in->event]++;
    if (s->state == SEQ_ENDING) {
        if (in->event == SEQ_EV_LET_GO) let_go(c, s);
        return;
    }
    switch (in->event) {
    case SEQ_EV_START:
        if (s->state != SEQ_WAITING) break;
        enter(c, now_ns, s, SEQ_PREFILL);
        if (!s->preempted) s->cached_tokens = s->kv_count;
        c->counts.cached_tokens += s->kv_count;
        if (s->preempted) {
            c->counts.returned_cached_tokens += s->kv_count;
            c->counts.returned_computed_tokens += s->goal - s->kv_count;
        }
        if (s->kind == SEQ_PUSH) handover_push_cached(c, now_ns, s);
        return;
    case SEQ_EV_COMPUTED:
        if (s->state != SEQ_PREFILL) break;
        on_computed(c, now_ns, s);
        return;
    case SEQ_EV_COMMITTED:
        if (s->state != SEQ_RESERVED) goto out_of_turn;
        on_committed(c, now_ns, s, in->xfer);
        return;
    case SEQ_EV_DELIVERED:
        if (s->state != SEQ_HANDOVER) goto out_of_turn;
        on_delivered(c, now_ns, s, in->xfer);
        return;
    case SEQ_EV_ENDED:
        if (s->state == SEQ_RESERVED && s->job.cached_only)
            finish(c, now_ns, s, FINISH_LENGTH); /* nothing of it was missing */
        else if (s->state == SEQ_RUNNING)
            finish(c, now_ns, s, finish_of_last(c, s));
        else
            break;
        return;
    case SEQ_EV_PREEMPT:
        if (s->state != SEQ_RUNNING && s->state != SEQ_PREFILL) break;
        on_preempt(c, now_ns, s);
        return;
    case SEQ_EV_ACK:
        if (s->state != SEQ_FINISHED) break;
        end(c, now_ns, s);
        return;
    case SEQ_EV_TIMER: on_timer(c, now_ns, s); return;
    case SEQ_EV_FAIL: fail(c, now_ns, s, in); return;
    case SEQ_EV_FORGET: end(c, now_ns, s); return;
    case SEQ_EV_LET_GO: return;
    }
    c->counts.stale_messages++;
    return;
out_of_turn: /* the ticket has ended without what it was for */
    sequence_fail(c, now_ns, s, ERR_STATE, true, "the transfer ended out of turn");
}

void sequence_fail(struct node_core *c, uint64_t now_ns, struct sequence *s, enum err e,
                   bool retryable, const char *reason)
{
    sequence_step(c, now_ns, s,
                  &(struct seq_input){
                      .event = SEQ_EV_FAIL, .error = e, .retryable = retryable, .reason = reason});
}

void sequence_progressed(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    if (s->state == SEQ_PREFILL || s->state == SEQ_RUNNING)
        set_deadline(c, s, now_ns + c->config.reserve_timeout_ns);
}

/* ---- its tokens, and telling them ---- */

void sequence_append(struct node_core *c, struct sequence *s, const struct token_info *t)
{
    uint32_t i = s->generated_count - s->job.forwarded_count;
    CHECK(seq_total(s) < s->tokens_capacity);
    s->tokens[seq_total(s)] = t->token;
    if (s->logprob) s->logprob[i] = t->logprob;
    for (uint32_t k = 0; s->top && k < s->job.sampling.tops_count; k++) {
        struct seq_top *top = &s->top[(size_t)i * s->job.sampling.tops_count + k];
        *top = (struct seq_top){UINT32_MAX, NAN};
        if (k < t->tops_count) *top = (struct seq_top){t->top[k].token, t->top[k].logprob};
    }
    s->generated_count++;
    if (PLANTED("first_lost") && i == 0) s->told_count = s->generated_count;
    if ((s->kind == SEQ_REMOTE || s->kind == SEQ_LOCAL) && list_empty(&s->dirty))
        list_push_back(&c->dirty, &s->dirty);
}

static void read_token(const struct sequence *s, uint32_t index, struct token_info *out)
{
    uint32_t i = index - s->job.forwarded_count, tops = s->top ? s->job.sampling.tops_count : 0;
    out->token = s->tokens[s->job.prompt_count + index];
    out->logprob = s->logprob ? s->logprob[i] : NAN;
    out->tops_count = 0;
    for (uint32_t k = 0; k < tops; k++) {
        const struct seq_top *top = &s->top[(size_t)i * tops + k];
        if (top->token == UINT32_MAX) break;
        out->top[k].token = top->token;
        out->top[k].logprob = top->logprob;
        out->tops_count++;
    }
}

static void say_first(struct node_core *c, const struct sequence *s)
{
    struct msg m = {.kind = MSG_FIRST,
                    .first = {.key = s->job.key,
                              .index = s->generated_count - 1,
                              .cached_tokens = s->cached_tokens,
                              .queued_us = clock_since_us(s->began_ns, s->accepted_ns),
                              .compute_us = clock_since_us(s->computed_ns, s->began_ns)}};
    read_token(s, s->generated_count - 1, &m.first.token);
    say(c, s->router, &m);
}

void sequence_tell_finished(struct node_core *c, struct sequence *s)
{
    tell_dirty(c);
    if (PLANTED("lost_finished")) return;
    struct msg m = {.kind = MSG_FINISHED,
                    .finished = {.key = s->job.key,
                                 .finish = s->finish,
                                 .tokens_count = s->generated_count,
                                 .cached_tokens = s->cached_tokens}};
    if (s->kind == SEQ_PLAIN) {
        m.finished.queued_us = clock_since_us(s->began_ns, s->accepted_ns);
        m.finished.compute_us = clock_since_us(s->computed_ns, s->began_ns);
    }
    say(c, s->router, &m);
}

static void say_tokens(struct node_core *c, uint32_t router, uint32_t runs_count)
{
    struct msg m = {.kind = MSG_TOKENS, .tokens = {.runs = c->run, .runs_count = runs_count}};
    if (runs_count > 0) say(c, router, &m);
}

void sequence_tell(struct node_core *c, struct sequence *s, uint32_t from)
{
    if (from < s->job.forwarded_count) from = s->job.forwarded_count;
    if (PLANTED("first_lost") && from == s->job.forwarded_count) from++;
    while (from < s->generated_count) {
        uint32_t n = s->generated_count - from;
        if (n > c->info_capacity) n = c->info_capacity;
        for (uint32_t i = 0; i < n; i++)
            read_token(s, from + i, &c->info[i]);
        c->run[0] = (struct token_run){s->job.key, from, c->info, n};
        say_tokens(c, s->router, 1);
        from += n;
    }
    s->told_count = s->generated_count;
    list_remove(&s->dirty);
}

/* The dirty sequences of one router, as many as fit into a message. */
static void tell_router(struct node_core *c, uint32_t router)
{
    uint32_t runs = 0, infos = 0;
    for (struct list_link *l = c->dirty.next, *next; l != &c->dirty; l = next) {
        struct sequence *s = list_member(l, struct sequence, dirty);
        next = l->next;
        uint32_t n = s->generated_count - s->told_count;
        if (s->router != router) continue;
        if (infos + n > c->info_capacity || runs == MSG_PARTS_MAX) break;
        for (uint32_t i = 0; i < n; i++)
            read_token(s, s->told_count + i, &c->info[infos + i]);
        c->run[runs++] = (struct token_run){s->job.key, s->told_count, &c->info[infos], n};
        infos += n;
        s->told_count = s->generated_count;
        list_remove(&s->dirty);
    }
    say_tokens(c, router, runs);
}

void tell_dirty(struct node_core *c)
{
    while (!list_empty(&c->dirty)) {
        struct sequence *s = list_member(c->dirty.next, struct sequence, dirty);
        if (s->generated_count - s->told_count > c->info_capacity)
            sequence_tell(c, s, s->told_count);
        else
            tell_router(c, s->router);
    }
}
