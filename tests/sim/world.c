/* world: virtual time, processes, the network between them, faults, and one run of a seed. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "tests/sim/sim.h"

#define RUN_NS_MAX (600 * NS_PER_S)
#define EVENTS_MAX 4000000ull
#define LINGER_NS (20 * NS_PER_MS) /* of what a leaving process said last */
#define STUCK_NS (5 * NS_PER_S)
#define SLOW_NS (100 * NS_PER_MS)
#define LOSS_NS (2 * NS_PER_MS) /* until both ends of a cut connection have heard of it */

struct event {
    struct heap_entry entry;
    struct sim_proc *p;
    uint32_t life;
    sim_event_fn *fn;
    void *data;
};

uint32_t sim_draw(struct sim *s, uint32_t bound)
{
    return rng_below(rng_draw(s->options.seed, 1, s->draws++).word[0], bound);
}

uint64_t sim_draw_ns(struct sim *s, uint64_t from_ns, uint64_t to_ns)
{
    if (to_ns <= from_ns) return from_ns;
    struct rng_block b = rng_draw(s->options.seed, 2, s->draws++);
    return from_ns + ((uint64_t)b.word[0] << 32 | b.word[1]) % (to_ns - from_ns);
}

void sim_trace(struct sim *s, const char *format, ...)
{
    if (!s->options.trace) return;
    va_list args;
    printf("%12.6f ", (double)s->now_ns / 1e9);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

void sim_fail(struct sim *s, const char *format, ...)
{
    va_list args;
    fflush(stdout);
    fprintf(stderr, "seed %llu failed at %.6f s, event %llu: ", (unsigned long long)s->options.seed,
            (double)s->now_ns / 1e9, (unsigned long long)s->events_count);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    sim_say_replay();
    exit(1);
}

void sim_at(struct sim *s, uint64_t when_ns, struct sim_proc *p, sim_event_fn *fn, void *data)
{
    struct event *e = mem_new(sizeof *e);
    CHECK(e);
    *e = (struct event){.entry.key = when_ns, .p = p, .life = p->life, .fn = fn, .data = data};
    CHECK(heap_push(&s->events, &e->entry) == OK);
}

struct sim_proc *sim_router(struct sim *s, uint32_t index)
{
    return &s->proc[index];
}

/* ---- the network ---- */

struct wire {
    uint32_t dialler, router; /* process numbers */
    uint32_t cuts;
    uint64_t due_ns; /* of a repeat; a frozen process takes it later, behind what was due before */
    uint32_t bytes_count;
    bool to_router, again; /* again: a repeat, which may come after the session it belongs to */
    unsigned char bytes[];
};

static bool is_greeting(enum msg_kind kind)
{
    return kind == MSG_HELLO || kind == MSG_WELCOME || kind == MSG_REFUSE;
}

static uint64_t dropped_by(const struct sim_proc *p)
{
    struct router_counts r = {0};
    struct node_counts n = {0};
    if (p->router) router_core_counts(p->router, &r);
    if (p->node) node_core_counts(p->node, &n);
    return r.stale_messages + n.stale_messages;
}

/* A job that a node was told to cancel in this life must not begin there again. */
static void check_cancelled(struct sim *s, struct sim_proc *p, const struct msg *m)
{
    if (m->kind == MSG_CANCEL) p->cancelled[p->cancels_count++ % SIM_CANCELS_MAX] = m->cancel.key;
    if (m->kind != MSG_RESERVE && m->kind != MSG_PREFILL) return;
    struct job_key key = m->kind == MSG_RESERVE ? m->reserve.job.key : m->prefill.job.key;
    for (uint32_t i = 0; i < p->cancels_count && i < SIM_CANCELS_MAX; i++)
        if (job_key_equal(p->cancelled[i], key) && node_core_knows(p->node, key))
            sim_fail(s, "%s: a cancelled job begins again", p->name);
}

static void give_to_node(struct sim *s, struct sim_proc *p, uint32_t router, const struct msg *m)
{
    sim_trace(s, "%s <- r%u %s", p->name, router, msg_kind_name(m->kind));
    node_core_on_message(p->node, s->now_ns, (struct peer){router + 1}, m);
    check_cancelled(s, p, m);
}

static void deliver(struct sim *s, struct sim_proc *p, void *data)
{
    struct wire *w = data;
    struct sim_conn *conn = &s->conn[w->dialler][w->router];
    struct msg m;
    if (w->cuts != conn->cuts && !w->again) return;
    arena_reset(&s->arena);
    if (msg_decode(w->bytes, w->bytes_count, &s->arena, &m) != OK)
        sim_fail(s, "%s: a message does not decode: %s", p->name, err_text());
    bool late = w->cuts != conn->cuts && w->due_ns > conn->cut_ns + LOSS_NS;
    uint64_t dropped = dropped_by(p);
    if (w->to_router) {
        if (conn->router_peer.v == 0) conn->router_peer.v = ++s->peers_given;
        sim_trace(s, "%s <- %s %s", p->name, s->proc[w->dialler].name, msg_kind_name(m.kind));
        router_core_on_message(p->router, s->now_ns, conn->router_peer, &m);
    } else if (p->kind == PROC_NODE) {
        give_to_node(s, p, w->router, &m);
    } else {
        client_on_message(s, p, w->router, &m);
    }
    if (late && !is_greeting(m.kind) && p->kind != PROC_CLIENT && dropped_by(p) == dropped)
        sim_fail(s, "%s: took a %s of an earlier session", p->name, msg_kind_name(m.kind));
}

/* When it comes: behind what was sent before it. */
static uint64_t put_on_wire(struct sim *s, struct sim_proc *to, struct wire *w, uint64_t when_ns)
{
    uint64_t *last = &s->conn[w->dialler][w->router].last_ns[w->to_router];
    if (when_ns <= *last) when_ns = *last + 1;
    *last = when_ns;
    sim_at(s, when_ns, to, deliver, w);
    return when_ns;
}

void sim_send(struct sim *s, struct sim_proc *from, struct sim_proc *to, const struct msg *m)
{
    buf_clear(&s->wire);
    if (msg_encode(m, &s->wire) != OK)
        sim_fail(s, "%s: a message does not encode: %s", from->name, err_text());
    if (!to->alive) return;
    if (m->kind == MSG_BLOCKS && sim_draw(s, 100) < s->news_lost_percent) return;
    struct wire *w = mem_new(sizeof *w + s->wire.size);
    CHECK(w);
    w->to_router = to->kind == PROC_ROUTER;
    w->dialler = w->to_router ? from->index : to->index;
    w->router = w->to_router ? to->index : from->index;
    w->cuts = s->conn[w->dialler][w->router].cuts;
    w->bytes_count = (uint32_t)s->wire.size;
    memcpy(w->bytes, s->wire.data, s->wire.size);
    uint64_t when_ns = s->now_ns + s->net_ns + sim_draw_ns(s, 0, s->jitter_ns);
    if (sim_draw(s, 100) < s->slow_percent) when_ns += sim_draw_ns(s, 0, SLOW_NS);
    when_ns = put_on_wire(s, to, w, when_ns);
    /* not for clients: theirs is to show that the router forwards nothing twice */
    if (s->proc[w->dialler].kind == PROC_CLIENT) return;
    if (sim_draw(s, 100) >= s->duplicate_percent) return;
    struct wire *again = mem_new(sizeof *again + s->wire.size);
    CHECK(again);
    memcpy(again, w, sizeof *w + s->wire.size);
    again->again = true;
    again->due_ns = when_ns + sim_draw_ns(s, 1, NS_PER_S);
    sim_at(s, again->due_ns, to, deliver, again);
}

static void router_hears_loss(struct sim *s, struct sim_proc *p, void *data)
{
    struct peer peer;
    memcpy(&peer, data, sizeof peer);
    router_core_on_lifeline(p->router, s->now_ns, peer, false);
}

static void dialler_hears_loss(struct sim *s, struct sim_proc *p, void *data)
{
    uint32_t router;
    memcpy(&router, data, sizeof router);
    if (p->kind == PROC_NODE)
        node_core_on_lifeline(p->node, s->now_ns, (struct peer){router + 1}, false);
    else
        client_on_lost(s, p, router);
}

static void *copy_of(const void *bytes, size_t size)
{
    void *copy = mem_new(size);
    CHECK(copy);
    memcpy(copy, bytes, size);
    return copy;
}

/* What was under way is lost; each end that lives hears of it in its own time. */
static void cut(struct sim *s, uint32_t dialler, uint32_t router)
{
    struct sim_conn *conn = &s->conn[dialler][router];
    conn->cuts++;
    conn->cut_ns = s->now_ns;
    uint64_t a = s->now_ns + sim_draw_ns(s, 0, LOSS_NS);
    uint64_t b = s->now_ns + sim_draw_ns(s, 0, LOSS_NS);
    if (s->proc[router].alive && conn->router_peer.v != 0)
        sim_at(s, a, &s->proc[router], router_hears_loss,
               copy_of(&conn->router_peer, sizeof conn->router_peer));
    if (s->proc[dialler].alive)
        sim_at(s, b, &s->proc[dialler], dialler_hears_loss, copy_of(&router, sizeof router));
}

/* ---- processes ---- */

static void on_wake(struct sim *s, struct sim_proc *p, void *data)
{
    (void)data;
    if (s->now_ns < p->wake_ns) return; /* it was moved; another event is under way */
    p->wake_ns = TIME_NEVER;
    switch (p->kind) {
    case PROC_ROUTER: router_core_on_timer(p->router, s->now_ns); break;
    case PROC_NODE: node_core_on_timer(p->node, s->now_ns); break;
    case PROC_CLIENT: client_on_timer(s, p); break;
    }
}

struct sim *sim_of(void *ctx, struct sim_proc **p)
{
    *p = ctx;
    return (struct sim *)(void *)((char *)(*p - (*p)->index) - offsetof(struct sim, proc));
}

void sim_wake_at(void *ctx, uint64_t when_ns)
{
    struct sim_proc *p;
    struct sim *s = sim_of(ctx, &p);
    p->wake_ns = when_ns;
    if (when_ns != TIME_NEVER)
        sim_at(s, when_ns > s->now_ns ? when_ns : s->now_ns, p, on_wake, NULL);
}

static void router_send(void *ctx, struct peer peer, const struct msg *m)
{
    struct sim_proc *p;
    struct sim *s = sim_of(ctx, &p);
    for (uint32_t i = 0; i < s->procs_count; i++)
        if (s->conn[i][p->index].router_peer.v == peer.v) sim_send(s, p, &s->proc[i], m);
}

static void router_forget(void *ctx, struct peer peer)
{
    struct sim_proc *p;
    struct sim *s = sim_of(ctx, &p);
    for (uint32_t i = 0; i < s->procs_count; i++)
        if (s->conn[i][p->index].router_peer.v == peer.v) {
            s->conn[i][p->index].router_peer.v = 0; /* the next message makes it a new peer */
            if (s->proc[i].alive)                   /* its lifeline was closed */
                sim_at(s, s->now_ns + s->net_ns, &s->proc[i], dialler_hears_loss,
                       copy_of(&p->index, sizeof p->index));
        }
}

static void router_expect(void *ctx, struct peer peer, struct id128 key)
{
    (void)ctx;
    (void)peer;
    (void)key;
}

static enum err router_tokenize(void *ctx, struct id128 job, const char *text, uint32_t bytes)
{
    (void)ctx;
    (void)job;
    (void)text;
    (void)bytes;
    return ERR_UNSUPPORTED;
}

static void router_left(void *ctx)
{
    (void)ctx;
}

static void open_router(struct sim *s, struct sim_proc *p)
{
    struct router_config g = ROUTER_CONFIG_DEFAULT;
    g.name = p->name;
    g.lifeline_address = "";
    g.incarnation = ++s->incarnations * 1000;
    g.id_seed = s->options.seed * 31 + s->incarnations;
    g.session.lifeline_ns = 0;
    g.disaggregate = s->disaggregate;
    g.forks = s->forks;
    static const enum backfill_mode backfill[] = {BACKFILL_ALWAYS, BACKFILL_ALWAYS, BACKFILL_AUTO,
                                                  BACKFILL_NEVER};
    g.backfill = backfill[s->options.seed % 4]; /* every fourth has a window, and no backfills */
    g.prefix_index = s->prefix_index;
    if (s->tenants > 1) {
        CHECK(tenant_weights_parse("t1=4", g.weights, &g.weights_count) == OK);
    }
    if (s->queue_timeout_ns) g.queue_timeout_ns = s->queue_timeout_ns;
    if (s->reserve_timeout_ns) g.reserve_timeout_ns = s->reserve_timeout_ns;
    if (s->stall_timeout_ns) g.stall_timeout_ns = s->stall_timeout_ns;
    const struct router_out out = {.ctx = p,
                                   .send = router_send,
                                   .wake_at = sim_wake_at,
                                   .lifeline_expect = router_expect,
                                   .forget = router_forget,
                                   .tokenize = router_tokenize,
                                   .left = router_left};
    CHECK(router_core_new(&p->router, &g, &out) == OK);
}

static void node_send(void *ctx, struct peer peer, const struct msg *m)
{
    struct sim_proc *p;
    struct sim *s = sim_of(ctx, &p);
    sim_send(s, p, sim_router(s, peer.v - 1), m);
}

static void node_lifeline_dial(void *ctx, struct peer peer, const char *address, struct id128 key)
{
    (void)ctx;
    (void)peer;
    (void)address;
    (void)key;
}

static void node_lifeline_drop(void *ctx, struct peer peer)
{
    struct sim_proc *p;
    struct sim *s = sim_of(ctx, &p);
    struct sim_conn *conn = &s->conn[p->index][peer.v - 1];
    if (conn->router_peer.v == 0 || !s->proc[peer.v - 1].alive) return;
    sim_at(s, s->now_ns + s->net_ns, &s->proc[peer.v - 1], router_hears_loss,
           copy_of(&conn->router_peer, sizeof conn->router_peer));
}

static void node_goes(struct sim *s, struct sim_proc *p, void *data)
{
    (void)data;
    sim_crash(s, p);
}

static void node_left(void *ctx)
{
    struct sim_proc *p;
    struct sim *s = sim_of(ctx, &p);
    sim_trace(s, "%s has left", p->name);
    p->leaving = true;
    sim_at(s, s->now_ns + sim_draw_ns(s, 1, LINGER_NS), p, node_goes, NULL);
}

static void open_node(struct sim *s, struct sim_proc *p)
{
    static const uint32_t eos[1] = {SIM_EOS};
    snprintf(p->address, sizeof p->address, "tcp:%s", p->name);
    p->addresses[0] = p->address;
    device_open(s, p);
    struct node_config g = {
        .role = p->role,
        .hello = {.role = p->role,
                  .name = p->name,
                  .host = "sim",
                  .device = "sim",
                  .model = "sim",
                  .pid = (uint32_t)s->incarnations + 1,
                  .model_fingerprint = {1, 2},
                  .numerics_id = 3,
                  .geometry = {SIM_LAYERS, 1, 4, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_F32},
                  .vocab = SIM_VOCAB,
                  .context_max = SIM_CONTEXT,
                  .sequences_max = s->batch,
                  .window_tokens = 2 * s->chunk,
                  .blocks_total = s->blocks,
                  .eos = eos,
                  .eos_count = 1,
                  .addresses = p->addresses,
                  .addresses_count = 1,
                  .kv_window = s->window,
                  .kv_ahead = s->steps * s->chunk},
        .kv_windows = true,
        .incarnation = ++s->incarnations * 1000,
        .ticket_seed = s->options.seed * 17 + s->incarnations,
        .session = SESSION_LIMITS_DEFAULT,
        .routers_count = s->routers_count,
        .blocks_count = s->blocks,
        .slots_count = 64,
        .context_max = SIM_CONTEXT,
        .vocab_count = SIM_VOCAB,
        .hidden_count = SIM_HIDDEN,
        .limits = {s->batch + 8, s->batch + s->chunk, 64 * 16},
        .steps_in_flight = s->steps,
        .chunk_tokens = s->chunk,
        .sequences_max = s->batch,
        .reserve_timeout_ns = 5 * NS_PER_S,
        .prefix_wait_ns = NS_PER_S,
        .prefix_cache = s->prefix_cache,
        .preempted = s->preempted,
        .evict = {.policy = s->options.seed % EVICT_POLICIES_COUNT,
                  .ttl_ns = 50 * NS_PER_MS,
                  .tenant_percent_max = s->tenant_percent_max},
        .link = "",
        .tombstones_max = 256,
        .tiers = s->prefix_cache && s->tiers != SIM_TIERS_NONE,
        .tier_deadline_ns = 20 * NS_PER_MS,
    };
    g.session.lifeline_ns = 0;
    const struct node_out out = {.ctx = p,
                                 .send = node_send,
                                 .wake_at = sim_wake_at,
                                 .submit = device_submit,
                                 .xfer = device_xfer,
                                 .lifeline_dial = node_lifeline_dial,
                                 .lifeline_drop = node_lifeline_drop,
                                 .left = node_left,
                                 .tier = device_tier};
    if (node_core_new(&p->node, &g, &out) != OK) sim_fail(s, "node_core_new: %s", err_text());
    if (s->tiers != SIM_TIERS_NONE)
        node_core_tier_stats(
            p->node, &(struct kv_tiers_stats){
                         .block_ns = {[KV_TIER_DISK] = s->tiers == SIM_TIERS_OWN ? 1000 : 0,
                                      [KV_TIER_SHARED] = s->tiers == SIM_TIERS_SHARED ? 1000 : 0}});
    node_core_start(p->node, s->now_ns);
}

static void open_proc(struct sim *s, struct sim_proc *p)
{
    p->alive = true;
    p->leaving = false;
    p->cancels_count = 0;
    p->wake_ns = TIME_NEVER;
    p->frozen_until_ns = 0;
    sim_trace(s, "%s starts", p->name);
    switch (p->kind) {
    case PROC_ROUTER: open_router(s, p); break;
    case PROC_NODE: open_node(s, p); break;
    case PROC_CLIENT: client_open(s, p); break;
    }
}

static void close_proc(struct sim *s, struct sim_proc *p)
{
    if (p->router) {
        struct router_counts c;
        router_core_counts(p->router, &c);
        s->totals->retries += c.retries;
        s->totals->backfills += c.backfills;
        s->totals->backfilled_tokens += c.backfilled_tokens;
        s->totals->backfills_failed += c.backfills_failed;
        s->totals->prefix_hits += c.prefix_hits;
        s->totals->prefix_hit_tokens += c.prefix_hit_tokens;
        s->totals->prefix_false += c.prefix_false;
        s->totals->prefix_gaps += c.prefix_gaps;
        s->totals->deaths += c.node_deaths;
        s->totals->gaps += c.gaps;
        s->totals->duplicates += c.duplicate_tokens;
        if (c.diverged)
            sim_fail(s, "%s: %llu tokens diverged", p->name, (unsigned long long)c.diverged);
        reached_add(&s->totals->reached, p->router);
        router_core_free(p->router);
    }
    if (p->node) {
        struct node_counts c;
        node_core_counts(p->node, &c);
        s->totals->preemptions += c.preemptions;
        s->totals->cached_tokens += c.cached_tokens;
        s->totals->tier_tokens += c.tier_loaded_tokens;
        s->totals->tier_stores += c.tier_stores;
        s->totals->tier_late += c.tier_late;
        s->totals->tier_skipped += c.tier_skipped_tokens;
        s->totals->forks += c.forks;
        s->totals->returned_cached += c.returned_cached_tokens;
        s->totals->returned_computed += c.returned_computed_tokens;
        s->totals->handed_back += c.handed_back;
        s->totals->held_steps += c.held_steps;
        if (c.preemptions_most > s->totals->preemptions_most)
            s->totals->preemptions_most = c.preemptions_most;
        if (!s->options.faults && c.preemptions_most > SIM_PREEMPTIONS_MAX)
            sim_fail(s, "%s: a sequence was preempted %u times", p->name, c.preemptions_most);
        s->totals->copied_blocks += c.fork_copied_blocks;
        node_core_free(p->node);
        device_close(s, p);
    }
    p->router = NULL;
    p->node = NULL;
}

static void revive(struct sim *s, struct sim_proc *p, void *data)
{
    (void)data;
    open_proc(s, p);
}

/* Gone without a word: what it held is lost, its connections break. */
void sim_crash(struct sim *s, struct sim_proc *p)
{
    if (!p->alive) return;
    sim_trace(s, "%s %s", p->name, p->leaving ? "exits" : "CRASHES");
    p->alive = false;
    p->life++;
    close_proc(s, p);
    for (uint32_t i = s->routers_count; i < s->procs_count; i++)
        for (uint32_t r = 0; r < s->routers_count; r++)
            if (i == p->index || r == p->index) {
                cut(s, i, r);
                if (i == p->index || p->kind == PROC_ROUTER) s->conn[i][r].router_peer.v = 0;
            }
    if (p->kind == PROC_NODE) device_peer_lost(s, p);
    sim_at(s, s->now_ns + sim_draw_ns(s, 20 * NS_PER_MS, 2 * NS_PER_S), p, revive, NULL);
}

static void wake_up(struct sim *s, struct sim_proc *p, void *data)
{
    uint64_t slept_ns;
    memcpy(&slept_ns, data, sizeof slept_ns);
    sim_trace(s, "%s wakes up after %.3f s", p->name, (double)slept_ns / 1e9);
    if (p->kind == PROC_NODE && slept_ns > SESSION_LIMITS_DEFAULT.dead_ns)
        node_core_reborn(p->node, s->now_ns, ++s->incarnations * 1000);
}

static void freeze(struct sim *s, struct sim_proc *p)
{
    uint64_t for_ns = sim_draw(s, 4) ? sim_draw_ns(s, NS_PER_MS, 300 * NS_PER_MS)
                                     : sim_draw_ns(s, NS_PER_S, 7 * NS_PER_S);
    if (!p->alive || p->frozen_until_ns > s->now_ns) return;
    sim_trace(s, "%s FREEZES for %.3f s", p->name, (double)for_ns / 1e9);
    p->frozen_until_ns = s->now_ns + for_ns;
    sim_at(s, p->frozen_until_ns, p, wake_up, copy_of(&for_ns, sizeof for_ns));
}

/* ---- faults ---- */

static struct sim_proc *some_proc(struct sim *s, enum proc_kind kind)
{
    uint32_t start = sim_draw(s, s->procs_count);
    for (uint32_t i = 0; i < s->procs_count; i++) {
        struct sim_proc *p = &s->proc[(start + i) % s->procs_count];
        if (p->kind == kind && p->alive) return p;
    }
    return NULL;
}

static void on_fault(struct sim *s, struct sim_proc *client, void *data)
{
    (void)data;
    if (s->now_ns > s->faults_end_ns) return;
    struct sim_proc *node = some_proc(s, PROC_NODE), *router = some_proc(s, PROC_ROUTER);
    s->totals->faults++;
    switch (sim_draw(s, 11)) {
    case 0:
    case 1:
    case 2:
        if (node) sim_crash(s, node);
        break;
    case 3:
    case 4:
        if (node) freeze(s, node);
        break;
    case 5:
        if (router) freeze(s, router);
        break;
    case 6:
        if (node) {
            sim_trace(s, "%s is drained", node->name);
            node_core_drain(node->node, s->now_ns);
        }
        break;
    case 7:
        if (router) sim_crash(s, router);
        break;
    case 8: {
        uint32_t dialler = s->routers_count + sim_draw(s, s->procs_count - s->routers_count);
        uint32_t r = sim_draw(s, s->routers_count);
        sim_trace(s, "%s and r%u are CUT", s->proc[dialler].name, r);
        cut(s, dialler, r);
        break;
    }
    case 9: {
        struct sim_proc *other = some_proc(s, PROC_NODE);
        if (!node || !other || node == other) break;
        sim_trace(s, "the link of %s and %s is CUT", node->name, other->name);
        device_cut(s, node, other);
        device_cut(s, other, node);
        break;
    }
    case 10:
        if (node) {
            sim_trace(s, "the device of %s is SICK", node->name);
            node->sick = true;
        }
        break;
    }
    sim_at(s, s->now_ns + sim_draw_ns(s, NS_PER_MS, 2 * NS_PER_S), client, on_fault, NULL);
}

/* ---- one run ---- */

static void add_proc(struct sim *s, enum proc_kind kind, enum role role, const char *letter,
                     uint32_t number)
{
    struct sim_proc *p = &s->proc[s->procs_count];
    *p = (struct sim_proc){.kind = kind, .role = role, .index = s->procs_count++};
    snprintf(p->name, sizeof p->name, "%s%u", letter, number);
}

static void build(struct sim *s)
{
    s->rows_free = 4;
    s->routers_count = 1 + sim_draw(s, SIM_ROUTERS_MAX);
    uint32_t prefills = 1 + sim_draw(s, 3), decodes = 1 + sim_draw(s, 3);
    s->clients_count = 1 + sim_draw(s, SIM_CLIENTS_MAX);
    s->chunk = 8 + sim_draw(s, 60);
    s->batch = 1 + sim_draw(s, 12);
    if (s->options.seed % 4 == 3) s->window = 1 + (uint32_t)(s->options.seed * 37 % 120);
    s->blocks = SIM_CONTEXT / BLOCK_TOKENS + sim_draw(s, 24);
    s->net_ns = sim_draw_ns(s, 20000, 2 * NS_PER_MS);
    s->jitter_ns = sim_draw_ns(s, 1000, 3 * NS_PER_MS);
    s->op_ns = sim_draw_ns(s, 5000, NS_PER_MS);
    s->layer_ns = sim_draw_ns(s, 50000, 2 * NS_PER_MS);
    s->duplicate_percent = s->options.faults ? sim_draw(s, 4) : 0;
    s->slow_percent = sim_draw(s, 3);
    if (s->options.faults && sim_draw(s, 4) == 0) { /* routers that lose patience */
        s->queue_timeout_ns = sim_draw_ns(s, 200 * NS_PER_MS, 2 * NS_PER_S);
        s->reserve_timeout_ns = sim_draw_ns(s, 5 * NS_PER_MS, 100 * NS_PER_MS);
        s->stall_timeout_ns = sim_draw_ns(s, 20 * NS_PER_MS, 300 * NS_PER_MS);
    }
    s->prefix_cache = sim_draw(s, 4) > 0;
    s->forks = sim_draw(s, 4) > 0;
    static const uint64_t indices[] = {0, 64, 4096,
                                       4096}; /* one is too small for all that there is */
    s->prefix_index = indices[sim_draw(s, sizeof indices / sizeof *indices)];
    s->news_lost_percent = s->options.faults && sim_draw(s, 2) ? sim_draw(s, 40) : 0;
    s->tiers = (enum sim_tiers)(s->options.seed / EVICT_POLICIES_COUNT % 3);
    s->disaggregate = sim_draw(s, 3) ? DISAGGREGATE_ALWAYS : DISAGGREGATE_AUTO;
    s->preempted = sim_draw(s, 3);
    s->steps = 1 + (uint32_t)(s->options.seed / 7 % 3);
    s->tenants = (uint32_t)(s->options.seed / 2 % 4);
    s->tenant_percent_max = s->options.seed / 8 % 3 ? 0 : 20;
    if (s->options.pressure) { /* one or two contexts for what several clients want at once */
        decodes = 1 + sim_draw(s, 2);
        s->clients_count = SIM_CLIENTS_MAX;
        s->batch = 4 + sim_draw(s, 8);
        s->blocks = SIM_CONTEXT / BLOCK_TOKENS * (1 + sim_draw(s, 2)) + sim_draw(s, 12);
    }
    s->faults_end_ns = sim_draw_ns(s, 2 * NS_PER_S, 8 * NS_PER_S);
    if (s->options.flood) flood_build(s, &prefills, &decodes);
    for (uint32_t i = 0; i < s->routers_count; i++)
        add_proc(s, PROC_ROUTER, ROLE_ROUTER, "r", i);
    for (uint32_t i = 0; i < prefills; i++)
        add_proc(s, PROC_NODE, ROLE_PREFILL, "p", i);
    for (uint32_t i = 0; i < decodes; i++)
        add_proc(s, PROC_NODE, ROLE_DECODE, "d", i);
    for (uint32_t i = 0; i < s->clients_count; i++)
        add_proc(s, PROC_CLIENT, ROLE_CLIENT, "c", i);
    for (uint32_t i = 0; i < s->procs_count; i++)
        if (s->proc[i].kind == PROC_CLIENT)
            CHECK(s->proc[i].client = mem_new(sizeof(struct sim_client)));
    for (uint32_t i = 0; i < s->procs_count; i++)
        open_proc(s, &s->proc[i]);
    struct sim_proc *client = &s->proc[s->procs_count - 1];
    if (s->options.faults) sim_at(s, sim_draw_ns(s, 0, NS_PER_S), client, on_fault, NULL);
}

/* The first in order always progresses, if nothing fails. */
static void audit_first(struct sim *s, struct sim_proc *p)
{
    struct job_key key = {0};
    uint64_t progress = 0;
    bool any = node_core_first(p->node, &key, &progress);
    if (!any || !job_key_equal(key, p->first) || progress != p->first_progress)
        p->first_since_ns = s->now_ns;
    else if (!s->options.faults && s->now_ns - p->first_since_ns > STUCK_NS)
        sim_fail(s, "%s: who is served first stands still at %llu", p->name,
                 (unsigned long long)progress);
    p->first = key;
    p->first_progress = progress;
}

static void audit(struct sim *s)
{
    for (uint32_t i = 0; i < s->procs_count; i++) {
        struct sim_proc *p = &s->proc[i];
        if (p->node) node_core_audit(p->node);
        if (p->node) audit_first(s, p);
        if (p->router) router_core_audit(p->router);
    }
}

static bool clients_done(const struct sim *s)
{
    for (uint32_t i = 0; i < s->procs_count; i++)
        if (s->proc[i].kind == PROC_CLIENT && !client_is_done(s->proc[i].client)) return false;
    return true;
}

/* Why the cluster is not at rest, "" if it is: every process lives and holds nothing for anybody. */
static const char *unrest(const struct sim *s)
{
    for (uint32_t i = 0; i < s->procs_count; i++) {
        const struct sim_proc *p = &s->proc[i];
        struct router_counts r;
        struct node_counts n;
        if (!p->alive || p->frozen_until_ns > s->now_ns) return "a process is away";
        if (p->kind == PROC_ROUTER) {
            router_core_counts(p->router, &r);
            if (r.requests_live > 0) return "a router has live requests";
            if (r.nodes != s->procs_count - s->routers_count - s->clients_count)
                return "a node has not joined a router again";
        }
        if (p->kind != PROC_NODE) continue;
        node_core_counts(p->node, &n);
        const struct kv_pool_counts *b = &n.blocks;
        if (n.jobs_live > 0) return "a node has live jobs";
        if (b->active + b->reserved + b->transfer > 0) return "a node holds blocks for nobody";
        if (b->free + b->cached != b->total) return "a pool's sum is wrong";
    }
    return "";
}

static void turn(struct sim *s)
{
    struct event *e = list_member(heap_first(&s->events), struct event, entry);
    heap_remove(&s->events, &e->entry);
    s->now_ns = e->entry.key;
    struct sim_proc *p = e->p;
    bool dead = e->life != p->life && e->fn != revive;
    if (!dead && p->frozen_until_ns > s->now_ns) {
        CHECK(heap_move(&s->events, &e->entry, p->frozen_until_ns) == OK);
        return;
    }
    if (!dead) {
        s->events_count++;
        e->fn(s, p, e->data);
        if (sim_draw(s, 32) == 0) audit(s);
    }
    mem_free(e->data);
    mem_free(e);
}

static void finish(struct sim *s)
{
    audit(s);
    for (uint32_t i = 0; i < s->procs_count; i++) {
        struct sim_proc *p = &s->proc[i];
        if (p->kind == PROC_CLIENT) client_check(s, p->client);
        close_proc(s, p);
        mem_free(p->client);
        mem_free(p->store);
    }
    for (struct heap_entry *first; (first = heap_first(&s->events)) != NULL;) {
        struct event *e = list_member(first, struct event, entry);
        heap_remove(&s->events, first);
        mem_free(e->data);
        mem_free(e);
    }
    s->totals->events += s->events_count;
    heap_fini(&s->events);
    arena_fini(&s->arena);
    buf_fini(&s->wire);
    mem_free(s->shared_store);
}

void sim_run(const struct sim_options *options, struct sim_totals *totals)
{
    struct sim *s = mem_new(sizeof *s);
    CHECK(s);
    s->options = *options;
    sim_note_run(options);
    s->totals = totals;
    s->now_ns = NS_PER_S;
    build(s);
    while (!clients_done(s) || s->now_ns <= s->faults_end_ns || unrest(s)[0]) {
        if (s->now_ns > RUN_NS_MAX || s->events_count > EVENTS_MAX)
            sim_fail(s, "no rest: %s", clients_done(s) ? unrest(s) : "requests have not ended");
        for (int i = 0; i < 64 && heap_first(&s->events); i++)
            turn(s);
    }
    finish(s);
    mem_free(s);
}
