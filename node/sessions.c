/* A session with each router: hello, heartbeats with load and live set, and the comparison of lists
 * when the two sides' live sets differ for longer than messages take.
 *
 * A job is in the live set from the moment it was accepted until its router has been told that it is
 * over (FAILED, PREFILLED) or has acknowledged that (FINISHED_ACK). Messages of a session keep their
 * order, so what a router's list lacks and this node has is over for that router. */
#include "node/state.h"

#include "common/log.h"
#include "common/mem.h"

enum err sessions_init(struct node_core *c)
{
    c->router = mem_array(c->config.routers_count, sizeof *c->router);
    if (!c->router) return ERR_MEMORY;
    for (uint32_t i = 0; i < c->config.routers_count; i++) {
        c->router[i].peer = (struct peer){i + 1};
        session_init(&c->router[i].session, SESSION_DIALER, c->config.incarnation,
                     &c->config.session);
    }
    return OK;
}

void sessions_start(struct node_core *c, uint64_t now_ns)
{
    for (uint32_t i = 0; i < c->config.routers_count; i++)
        session_start(&c->router[i].session, now_ns);
}

static void send(struct node_core *c, struct router_link *r, struct msg *m)
{
    m->envelope = session_envelope(&r->session);
    c->out.send(c->out.ctx, r->peer, m);
}

void say(struct node_core *c, uint32_t router, struct msg *m)
{
    struct router_link *r = &c->router[router];
    if (r->session.state == SESSION_UP) send(c, r, m);
}

/* ---- live set ---- */

void live_add(struct node_core *c, const struct sequence *s)
{
    struct router_link *r = &c->router[s->router];
    r->live_count++;
    r->live_hash += job_key_hash(s->job.key);
}

void live_remove(struct node_core *c, const struct sequence *s)
{
    struct router_link *r = &c->router[s->router];
    r->live_count--;
    r->live_hash -= job_key_hash(s->job.key);
}

static bool is_live(const struct node_core *c, const struct sequence *s,
                    const struct router_link *r)
{
    return s->state != SEQ_FREE && s->state != SEQ_ENDING && &c->router[s->router] == r;
}

static void say_live(struct node_core *c, struct router_link *r, bool answer)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->config.slots_count && n < MSG_LIVE_MAX; i++)
        if (is_live(c, &c->sequence[i], r)) c->keys[n++] = c->sequence[i].job.key;
    struct msg m = {.kind = MSG_LIVE, .live = {answer, c->keys, n}};
    send(c, r, &m);
}

static void compare_live(struct node_core *c, uint64_t now_ns, struct router_link *r,
                         const struct msg_live *live)
{
    uint32_t stamp = ++c->seen_stamp, router = (uint32_t)(r - c->router);
    uint64_t settled_ns = (NODE_MISMATCHES_MAX + 1) * c->config.session.heartbeat_ns;
    for (uint32_t i = 0; i < live->keys_count; i++) {
        struct job_key key = live->keys[i];
        struct sequence *s = job_find(c, key.request, key.choice);
        if (s && s->router == router && s->job.key.attempt == key.attempt)
            s->seen = stamp;
        else if (!tomb_fresh(c, key, now_ns, settled_ns)) /* else the news is on its way */
            job_refuse(c, router, key, ERR_NOT_FOUND, true, "not known here");
    }
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        struct sequence *s = &c->sequence[i];
        if (!is_live(c, s, r) || s->seen == stamp) continue;
        sequence_step(c, now_ns, s, &(struct seq_input){.event = SEQ_EV_FORGET});
    }
    r->mismatches = 0;
    if (live->answer) say_live(c, r, false);
}

static void on_heartbeat(struct node_core *c, struct router_link *r, const struct msg_heartbeat *h)
{
    if (h->live_count == r->live_count && h->live_hash == r->live_hash) {
        r->mismatches = 0;
    } else if (++r->mismatches > NODE_MISMATCHES_MAX) {
        r->mismatches = 0;
        say_live(c, r, true);
    }
}

/* ---- heartbeats ---- */

uint32_t sessions_waiting_tokens(const struct node_core *c)
{
    uint64_t sum = 0;
    for (struct list_link *l = c->queue.next; l != &c->queue; l = l->next) {
        const struct sequence *s = list_member(l, struct sequence, place);
        sum += s->goal - s->kv_count;
    }
    return sum < UINT32_MAX ? (uint32_t)sum : UINT32_MAX;
}

static void say_heartbeat(struct node_core *c, struct router_link *r)
{
    struct node_counts n;
    node_core_counts(c, &n);
    struct msg m = {
        .kind = MSG_HEARTBEAT,
        .heartbeat = {.busy = c->flights_busy > 0,
                      .progress = c->progress,
                      .live_count = r->live_count,
                      .live_hash = r->live_hash,
                      .draining = c->draining,
                      .load = {.blocks_total = n.blocks.total,
                               .blocks_free = n.blocks.free,
                               .blocks_reserved = n.blocks.reserved,
                               .blocks_active = n.blocks.active,
                               .blocks_cached = n.blocks.cached,
                               .blocks_transfer = n.blocks.transfer,
                               .running = n.running,
                               .waiting = n.waiting,
                               .waiting_tokens = sessions_waiting_tokens(c),
                               .step_us = (uint32_t)(c->step_ns / NS_PER_US),
                               .token_ns = (uint32_t)c->token_ns,
                               .slow_callbacks = c->slow_callbacks,
                               .held_tokens = n.held_tokens,
                               .wasted_slots = n.wasted_slots,
                               .contiguous_slots = n.contiguous_slots,
                               .held_tokens_peak = n.held_tokens_peak,
                               .wasted_slots_peak = n.wasted_slots_peak,
                               .contiguous_slots_peak = n.contiguous_slots_peak,
                               .forks = n.forks,
                               .fork_shared_blocks = n.fork_shared_blocks,
                               .fork_copied_blocks = n.fork_copied_blocks,
                               .preemptions = n.preemptions,
                               .returned_cached_tokens = n.returned_cached_tokens,
                               .returned_computed_tokens = n.returned_computed_tokens,
                               .handed_back = n.handed_back,
                               .host_block_ns = c->tier_stats.block_ns[KV_TIER_HOST],
                               .disk_block_ns = c->tier_stats.block_ns[KV_TIER_DISK],
                               .shared_block_ns = c->tier_stats.block_ns[KV_TIER_SHARED],
                               .tiers_broken = tiers_broken(c)}},
    };
    send(c, r, &m);
}

void sessions_tell_load(struct node_core *c)
{
    for (uint32_t i = 0; i < c->config.routers_count; i++)
        if (c->router[i].session.state == SESSION_UP) say_heartbeat(c, &c->router[i]);
}

/* ---- coming and going ---- */

void session_lost(struct node_core *c, uint64_t now_ns, struct router_link *r)
{
    const char *reason =
        r->session.down_reason ? r->session.down_reason : "a new life of this node";
    uint32_t ended = 0;
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        if (!is_live(c, &c->sequence[i], r)) continue;
        sequence_step(c, now_ns, &c->sequence[i], &(struct seq_input){.event = SEQ_EV_FORGET});
        ended++;
    }
    CHECK(r->live_count == 0 && r->live_hash == 0);
    pins_lost(c, now_ns, (uint32_t)(r - c->router));
    if (r->lifeline) c->out.lifeline_drop(c->out.ctx, r->peer);
    r->lifeline = false;
    r->links_told = 0; /* who comes back knows nothing */
    r->mismatches = 0;
    log_info("session_down", "peer=%u reason=\"%s\" jobs_ended=%u", r->peer.v, reason, ended);
}

static void session_up(struct node_core *c, struct router_link *r, const struct msg_welcome *w)
{
    log_info("session_up", "peer=%u router=%s epoch=%llu", r->peer.v, w->name ? w->name : "",
             (unsigned long long)r->session.epoch);
    if (w->lifeline && *w->lifeline) {
        r->lifeline = true;
        c->out.lifeline_dial(c->out.ctx, r->peer, w->lifeline, w->lifeline_key);
    }
    say_heartbeat(c, r);
    pins_on_router(c, (uint32_t)(r - c->router));
    events_begin(c, r, false);
}

void sessions_on_message(struct node_core *c, uint64_t now_ns, struct router_link *r,
                         const struct msg *m)
{
    switch (session_on_message(&r->session, now_ns, m)) {
    case SESSION_DROP:
    case SESSION_GREETED: c->counts.stale_messages++; break;
    case SESSION_BECAME_UP: session_up(c, r, &m->welcome); break;
    case SESSION_BECAME_DOWN:
        if (m->kind == MSG_REFUSE)
            log_error("router_refused", "peer=%u reason=\"%s\"", r->peer.v,
                      m->refuse.reason ? m->refuse.reason : "");
        session_lost(c, now_ns, r);
        break;
    case SESSION_DELIVER:
        if (m->kind == MSG_HEARTBEAT)
            on_heartbeat(c, r, &m->heartbeat);
        else if (m->kind == MSG_LIVE)
            compare_live(c, now_ns, r, &m->live);
        else if (m->kind == MSG_BLOCKS)
            events_begin(c, r, true);
        else if (m->kind == MSG_DRAIN)
            core_drain(c);
        else if (m->kind == MSG_QUERY && m->query.query == QUERY_KV)
            kv_report_ask(c, now_ns, (uint32_t)(r - c->router), m->query.ref);
        else
            jobs_on_message(c, now_ns, (uint32_t)(r - c->router), m);
        break;
    }
}

void sessions_on_timer(struct node_core *c, uint64_t now_ns)
{
    for (uint32_t i = 0; i < c->config.routers_count; i++) {
        struct router_link *r = &c->router[i];
        struct session_due due = session_on_timer(&r->session, now_ns);
        if (due.died) session_lost(c, now_ns, r);
        if (due.hello) {
            struct msg m = {.kind = MSG_HELLO, .hello = c->config.hello};
            send(c, r, &m);
        }
        if (due.heartbeat) {
            say_heartbeat(c, r);
            links_tell(c, now_ns, i);
        }
        if (due.wake_ns < c->wake_ns) c->wake_ns = due.wake_ns;
    }
    pins_on_timer(c, now_ns);
}

void sessions_leave(struct node_core *c)
{
    for (uint32_t i = 0; i < c->config.routers_count; i++) {
        struct msg drained = {.kind = MSG_DRAINED}, bye = {.kind = MSG_BYE};
        say(c, i, &drained);
        say(c, i, &bye);
    }
}
