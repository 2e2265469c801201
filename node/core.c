/* The node core's inputs. Each is one turn: the event is handled, then due timers, then what can be
 * submitted is, then the next wake-up is named. */
#include "node/state.h"

#include <string.h>

#include "common/mem.h"

static enum err check_config(const struct node_config *g)
{
    const struct step_limits *l = &g->limits;
    if (g->routers_count == 0 || g->routers_count > NODE_ROUTERS_MAX)
        return err_set(ERR_INVALID, "%u routers, allowed are 1 to %d", g->routers_count,
                       NODE_ROUTERS_MAX);
    if (g->blocks_count == 0 || g->slots_count == 0 || g->context_max == 0 || g->vocab_count == 0)
        return err_set(ERR_INVALID, "blocks, slots, context and vocabulary must be at least 1");
    if (g->steps_in_flight == 0 || g->chunk_tokens == 0 || g->sequences_max == 0 ||
        g->tombstones_max == 0)
        return err_set(ERR_INVALID, "steps, chunk, batch and tombstones must be at least 1");
    if (l->sequences_max <= g->sequences_max || l->rows_max <= g->sequences_max)
        return err_set(ERR_INVALID,
                       "a step of %u sequences and %u rows has no room for prompts beside a batch "
                       "of %u",
                       l->sequences_max, l->rows_max, g->sequences_max);
    if (l->table_max < blocks_for_tokens(g->context_max))
        return err_set(ERR_INVALID, "a step of %u blocks does not name a context of %u tokens",
                       l->table_max, g->context_max);
    return OK;
}

static enum err new_arrays(struct node_core *c)
{
    const struct node_config *g = &c->config;
    c->info_capacity = 2 * g->sequences_max + NODE_RESEND_TOKENS;
    c->sequence = mem_array(g->slots_count, sizeof *c->sequence);
    c->free_slot = mem_array(g->slots_count, sizeof *c->free_slot);
    c->tomb = mem_array(g->tombstones_max, sizeof *c->tomb);
    c->plan_job = mem_array(g->slots_count, sizeof *c->plan_job);
    c->plan_part = mem_array(g->slots_count, sizeof *c->plan_part);
    c->claim = mem_array(g->slots_count, sizeof *c->claim);
    c->pick = mem_array(g->slots_count, sizeof *c->pick);
    c->rival = mem_array(g->slots_count, sizeof *c->rival);
    c->grower = mem_array(g->slots_count, sizeof *c->grower);
    c->op_blocks = mem_array(blocks_for_tokens(g->context_max) + 1, sizeof *c->op_blocks);
    c->keys = mem_array(g->slots_count, sizeof *c->keys);
    c->run = mem_array(g->slots_count, sizeof *c->run);
    c->info = mem_array(c->info_capacity, sizeof *c->info);
    c->link = mem_array(NODE_LINKS_MAX, sizeof *c->link);
    c->audit_holds = mem_array((size_t)g->blocks_count * HOLD_KINDS, sizeof *c->audit_holds);
    bool all = c->sequence && c->free_slot && c->tomb && c->plan_job && c->plan_part && c->claim &&
               c->pick && c->rival && c->grower && c->op_blocks && c->keys && c->run && c->info &&
               c->link && c->audit_holds;
    for (uint32_t i = 0; all && i < g->slots_count; i++) {
        c->sequence[i].slot = i;
        c->sequence[i].copy_from = BLOCK_NONE;
        c->free_slot[c->free_slots_count++] = g->slots_count - 1 - i;
    }
    return all ? OK : ERR_MEMORY;
}

/* Of the prefix cache: one for each block, and hollow ones where there are windows. */
static uint32_t entries_max(const struct node_config *g)
{
    uint32_t times = g->hello.kv_window ? NODE_HOLLOW_TIMES : g->kv_windows ? 1 : 0;
    uint64_t most = (1ull + times) * g->blocks_count;
    if (times > 0) most += blocks_for_tokens(g->context_max);
    return most < UINT32_MAX / 4 ? (uint32_t)most : UINT32_MAX / 4;
}

static enum err new_parts(struct node_core *c)
{
    enum err e;
    const struct node_config *g = &c->config;
    if ((e = check_config(g)) != OK) return e;
    if ((e = new_arrays(c)) != OK) return e;
    if ((e = map_reserve(&c->jobs, g->slots_count)) != OK) return e;
    if ((e = map_reserve(&c->tickets, g->slots_count)) != OK) return e;
    if ((e = map_reserve(&c->tombs, g->tombstones_max)) != OK) return e;
    if ((e = heap_reserve(&c->timers, g->slots_count)) != OK) return e;
    if ((e = kv_pool_new(&c->pool, g->blocks_count)) != OK) return e;
    if (g->prefix_cache && (e = kv_prefix_new(&c->cache, c->pool, entries_max(g), &g->evict)) != OK)
        return e;
    if ((e = tiers_new(c)) != OK) return e;
    if ((e = events_new(c)) != OK) return e;
    if ((e = sessions_init(c)) != OK) return e;
    if ((e = node_meters_new(c)) != OK) return e;
    if ((e = kv_report_new(&c->report)) != OK) return e;
    return flights_new(c);
}

enum err node_core_new(struct node_core **out, const struct node_config *config,
                       const struct node_out *node_out)
{
    *out = NULL;
    struct node_core *c = mem_new(sizeof *c);
    if (!c) return ERR_MEMORY;
    c->config = *config;
    c->out = *node_out;
    c->wake_ns = TIME_NEVER;
    list_init(&c->queue);
    list_init(&c->running);
    list_init(&c->dirty);
    pace_init(c);
    enum err e = new_parts(c);
    if (e != OK) {
        node_core_free(c);
        return e;
    }
    *out = c;
    return OK;
}

void node_core_free(struct node_core *c)
{
    if (!c) return;
    for (uint32_t i = 0; c->sequence && i < c->config.slots_count; i++)
        arena_fini(&c->sequence[i].arena);
    flights_free(c);
    tiers_free(c);
    pins_free(c);
    kv_prefix_free(c->cache);
    kv_pool_free(c->pool);
    mem_free(c->events);
    metrics_free(c->metrics);
    kv_report_free(c->report);
    map_fini(&c->jobs);
    map_fini(&c->tickets);
    map_fini(&c->tombs);
    heap_fini(&c->timers);
    void *arrays[] = {c->router,   c->sequence,  c->free_slot,   c->tomb,
                      c->plan_job, c->plan_part, c->claim,       c->pick,
                      c->rival,    c->op_blocks, c->grower,      c->keys,
                      c->run,      c->info,      c->audit_holds, c->link};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        mem_free(arrays[i]);
    mem_free(c);
}

/* ---- one turn ---- */

void core_drain(struct node_core *c)
{
    if (c->draining) return;
    c->draining = true;
    sessions_tell_load(c); /* the routers hear of it at once */
}

static void timers_due(struct node_core *c, uint64_t now_ns)
{
    struct heap_entry *first;
    while ((first = heap_first(&c->timers)) && first->key <= now_ns) {
        heap_remove(&c->timers, first);
        sequence_step(c, now_ns, list_member(first, struct sequence, timer),
                      &(struct seq_input){.event = SEQ_EV_TIMER});
    }
}

/* The device is gone: nothing that is here can go on here. */
static void end_all_broken(struct node_core *c, uint64_t now_ns)
{
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        struct sequence *s = &c->sequence[i];
        if (s->state == SEQ_FREE || s->state == SEQ_ENDING || s->state == SEQ_FINISHED) continue;
        sequence_fail(c, now_ns, s, ERR_DEVICE, true, "the device failed");
    }
    core_drain(c);
}

static void leave_if_drained(struct node_core *c)
{
    if (!c->draining || c->left || c->free_slots_count < c->config.slots_count) return;
    if (c->storing_blocks > 0) return; /* what it leaves behind for its next life */
    c->left = true;
    sessions_leave(c);
    c->out.left(c->out.ctx);
}

void core_usage_totals(const struct node_core *c, uint64_t totals[KV_COUNTS])
{
    struct kv_prefix_stats s = c->cache ? kv_prefix_stats(c->cache) : (struct kv_prefix_stats){0};
    const uint64_t all[KV_COUNTS] = {
        [KV_COUNT_QUERIED] = c->usage.queried_tokens,
        [KV_COUNT_HIT] = c->usage.hit_tokens,
        [KV_COUNT_INSERTED] = s.inserted_blocks,
        [KV_COUNT_EVICTED] = s.evicted_blocks,
        [KV_COUNT_UNUSED] = s.unused_blocks,
        [KV_COUNT_REGRET] = s.regret_tokens,
        [KV_COUNT_EXPIRED] = s.expired_blocks,
        [KV_COUNT_PROMPT] = c->counts.prompt_tokens,
        [KV_COUNT_GENERATED] = c->counts.tokens_generated,
        [KV_COUNT_PREEMPTIONS] = c->counts.preemptions,
        [KV_COUNT_RECOMPUTED] = c->counts.returned_computed_tokens,
        [KV_COUNT_REFUSED] = c->counts.refused_jobs,
    };
    memcpy(totals, all, sizeof all);
}

static void note_usage(struct node_core *c, uint64_t now_ns)
{
    uint64_t totals[KV_COUNTS] = {0};
    if (kv_usage_is_due(&c->usage, now_ns)) core_usage_totals(c, totals);
    kv_usage_tick(&c->usage, now_ns, totals);
}

static void end_of_turn(struct node_core *c, uint64_t now_ns)
{
    uint64_t before_ns = c->wake_ns;
    if (c->left) return;
    c->wake_ns = TIME_NEVER;
    timers_due(c, now_ns);
    if (c->cache) kv_prefix_tick(c->cache, now_ns, NODE_EXPIRED_MAX);
    if (c->broken) end_all_broken(c, now_ns);
    flights_submit(c, now_ns);
    if (c->flights_busy == 0) tell_dirty(c); /* else with the step's own tokens */
    sessions_on_timer(c, now_ns);
    pins_tell(c);
    note_usage(c, now_ns);
    kv_report_turn(c, now_ns);
    tier_on_timer(c, now_ns);
    events_tell(c, now_ns);
    leave_if_drained(c);
    struct heap_entry *first = heap_first(&c->timers);
    if (first && first->key < c->wake_ns) c->wake_ns = first->key;
    if (c->wake_ns != before_ns) c->out.wake_at(c->out.ctx, c->wake_ns);
}

void node_core_start(struct node_core *c, uint64_t now_ns)
{
    sessions_start(c, now_ns);
    end_of_turn(c, now_ns);
}

static struct router_link *router_of(struct node_core *c, struct peer peer)
{
    if (peer.v == 0 || peer.v > c->config.routers_count) return NULL;
    return &c->router[peer.v - 1];
}

void node_core_on_message(struct node_core *c, uint64_t now_ns, struct peer peer,
                          const struct msg *m)
{
    struct router_link *r = router_of(c, peer);
    if (!r) return;
    sessions_on_message(c, now_ns, r, m);
    end_of_turn(c, now_ns);
}

void node_core_on_lifeline(struct node_core *c, uint64_t now_ns, struct peer peer, bool up)
{
    struct router_link *r = router_of(c, peer);
    if (!r) return;
    if (session_on_lifeline(&r->session, now_ns, up)) session_lost(c, now_ns, r);
    end_of_turn(c, now_ns);
}

void node_core_on_engine(struct node_core *c, uint64_t now_ns, const struct engine_event *event)
{
    flights_on_event(c, now_ns, event);
    end_of_turn(c, now_ns);
}

void node_core_on_xfer(struct node_core *c, uint64_t now_ns, const struct xfer_event *event)
{
    handover_on_event(c, now_ns, event);
    end_of_turn(c, now_ns);
}

void node_core_on_tier(struct node_core *c, uint64_t now_ns, const struct kv_tier_event *event)
{
    tier_on_event(c, now_ns, event);
    end_of_turn(c, now_ns);
}

void node_core_on_timer(struct node_core *c, uint64_t now_ns)
{
    c->wake_ns = TIME_NEVER; /* it has fired: name the next one even if it is the same */
    end_of_turn(c, now_ns);
}

void node_core_drain(struct node_core *c, uint64_t now_ns)
{
    core_drain(c);
    end_of_turn(c, now_ns);
}

void node_core_reborn(struct node_core *c, uint64_t now_ns, uint64_t incarnation)
{
    c->config.incarnation = incarnation;
    for (uint32_t i = 0; i < c->config.routers_count; i++) {
        struct router_link *r = &c->router[i];
        session_reset(&r->session, incarnation); /* first: nothing may be sent by the old life */
        session_lost(c, now_ns, r);
        session_start(&r->session, now_ns);
    }
    end_of_turn(c, now_ns);
}

void node_core_progress(struct node_core *c, uint64_t layers)
{
    c->progress = layers;
}

void node_core_slow_callbacks(struct node_core *c, uint64_t count)
{
    c->slow_callbacks = (uint32_t)count;
}

/* ---- looking in ---- */

void node_core_counts(const struct node_core *c, struct node_counts *counts)
{
    *counts = c->counts;
    counts->blocks = kv_pool_counts(c->pool);
    waste_now(c, counts);
    counts->jobs_live = counts->running = counts->waiting = 0;
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        enum seq_state state = c->sequence[i].state;
        if (state == SEQ_FREE || state == SEQ_ENDING) continue;
        counts->jobs_live++;
        counts->running += state == SEQ_RUNNING;
        counts->waiting += state == SEQ_WAITING || state == SEQ_PREFILL || state == SEQ_RESERVED;
    }
}

static void audit_sequence(const struct node_core *c, const struct sequence *s)
{
    uint32_t *holds = c->audit_holds;
    for (uint32_t k = 0; k < s->table_count; k++)
        if (s->table[k].v != BLOCK_NONE.v) holds[s->table[k].v * HOLD_KINDS + s->hold]++;
    if (s->copy_from.v != BLOCK_NONE.v) holds[s->copy_from.v * HOLD_KINDS + s->hold]++;
    for (uint32_t k = 0; k < s->moved_count; k++)
        if (s->ticket_live && s->moved[k].v != BLOCK_NONE.v)
            holds[s->moved[k].v * HOLD_KINDS + HOLD_TRANSFER]++;
    bool over = s->state == SEQ_FREE || s->state == SEQ_ENDING;
    const struct sequence *known = over ? NULL : s;
    CHECK(over || job_find(c, s->job.key.request, s->job.key.choice) == known);
    CHECK(heap_holds(&s->timer) == !over);
    CHECK(s->state != SEQ_FREE || (s->table_count == 0 && s->in_flight == 0 && !s->ticket_live));
    CHECK(s->state != SEQ_ENDING || s->in_flight > 0 || s->ticket_live);
    CHECK(s->state != SEQ_RESERVED || (s->ticket_live && s->hold == HOLD_RESERVE));
    CHECK(s->state != SEQ_RUNNING || (s->hold == HOLD_SEQUENCE && s->table_count > 0));
    CHECK(s->state != SEQ_WAITING || (s->table_count == 0 && s->copy_from.v == BLOCK_NONE.v));
    CHECK(!s->fork || s->table_count == 0);
    CHECK(waste_is_bounded(s));
    CHECK(s->kv_count <= s->planned && s->planned <= s->table_count * BLOCK_TOKENS);
    CHECK(!s->ticket_live || map_get(&c->tickets, s->ticket) == s);
}

uint32_t node_core_holds(const struct node_core *c, uint32_t block, enum hold kind)
{
    return kv_pool_holds(c->pool, (struct block_id){block}, kind);
}

bool node_core_knows(const struct node_core *c, struct job_key key)
{
    const struct sequence *s = job_find(c, key.request, key.choice);
    return s && s->job.key.attempt == key.attempt;
}

bool node_core_first(const struct node_core *c, struct job_key *key, uint64_t *progress)
{
    const struct list_link *heads[] = {&c->queue, &c->running};
    const struct sequence *first = NULL;
    for (size_t i = 0; i < 2; i++) {
        if (list_empty(heads[i])) continue;
        const struct sequence *s = list_member(heads[i]->next, struct sequence, place);
        struct plan_claim mine = seq_claim(s), best = first ? seq_claim(first) : mine;
        if (!first || plan_before(&mine, &best)) first = s;
    }
    if (!first) return false;
    *key = first->job.key;
    *progress = (uint64_t)first->kv_count + first->generated_count;
    return true;
}

void node_core_audit(const struct node_core *c)
{
    uint32_t flights = 0, live = 0, shared = 0;
    memset(c->audit_holds, 0, (size_t)c->config.blocks_count * HOLD_KINDS * sizeof *c->audit_holds);
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        audit_sequence(c, &c->sequence[i]);
        live += c->sequence[i].state != SEQ_FREE && c->sequence[i].state != SEQ_ENDING;
    }
    for (uint32_t i = 0; i < c->config.steps_in_flight; i++) {
        const struct flight *f = &c->flight[i];
        flights += f->busy;
        for (uint32_t k = 0; f->busy && k < f->step->table_count; k++)
            if (f->step->table[k] != BLOCK_NONE.v)
                c->audit_holds[f->step->table[k] * HOLD_KINDS + HOLD_STEP]++;
        for (uint32_t k = 0; f->busy && k < f->step->copies_count; k++)
            c->audit_holds[f->step->copy[k].from * HOLD_KINDS + HOLD_STEP]++;
    }
    tier_audit(c);
    for (uint32_t b = 0; b < c->config.blocks_count; b++)
        for (enum hold kind = 0; kind < HOLD_CACHE; kind++)
            CHECK(kv_pool_holds(c->pool, (struct block_id){b}, kind) ==
                  c->audit_holds[b * HOLD_KINDS + kind]);
    for (uint32_t i = 0; i < c->config.routers_count; i++)
        shared += c->router[i].live_count;
    CHECK(flights == c->flights_busy && live == shared && live == c->jobs.count);
    kv_pool_audit(c->pool);
}
