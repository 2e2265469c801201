/* dispatch: which choices go to which nodes, and when: those of the tenant whose turn it is, as long as they find
 * a pair. What is decided is sched.h's and fair.h's; here it is asked, and the nodes are told. */
#include <stdio.h>

#include "common/clock.h"
#include "router/state.h"

static uint32_t age_ms(const struct choice *c, uint64_t now_ns)
{
    uint64_t ms = (now_ns - c->request->arrived_ns) / NS_PER_MS;
    return ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX;
}

static void send_prefill(struct router_core *core, uint64_t now_ns, struct choice *c,
                         uint32_t held_tokens)
{
    uint32_t stop_ids[JOB_STOP_IDS_MAX];
    struct msg m = {.kind = MSG_PREFILL,
                    .prefill = {.job = choice_job(core, c, stop_ids),
                                .ticket = c->ticket,
                                .held_tokens = held_tokens}};
    m.prefill.job.fair_lead = turns_lead(core, c, c->prefill, false);
    if (c->decode) {
        m.prefill.addresses = c->decode->hello.addresses;
        m.prefill.addresses_count = c->decode->hello.addresses_count;
    }
    m.prefill.job.age_ms = age_ms(c, now_ns);
    c->prefill_told = true;
    node_live_add(c->prefill, c);
    registry_send(core, c->prefill->peer, &m);
    choice_trail(c, now_ns, TRAIL_PREFILL, c->prefill_name);
    choice_enter(core, now_ns, c, CHOICE_PREFILLING);
}

static void send_reserve(struct router_core *core, uint64_t now_ns, struct choice *c)
{
    uint32_t stop_ids[JOB_STOP_IDS_MAX];
    struct msg m = {.kind = MSG_RESERVE,
                    .reserve = {.job = choice_job(core, c, stop_ids),
                                .local = c->local,
                                .fork = c->fork,
                                .sibling = c->sibling}};
    m.reserve.job.age_ms = age_ms(c, now_ns);
    m.reserve.job.fair_lead = turns_lead(core, c, c->decode, true);
    registry_send(core, c->decode->peer, &m);
    choice_trail(c, now_ns, TRAIL_RESERVE, c->decode_name);
    choice_enter(core, now_ns, c, CHOICE_RESERVING);
}

/* Once what P is to get of the prompt is there. */
void choice_prefill(struct router_core *core, uint64_t now_ns, struct choice *c)
{
    if (!c->backfill) {
        send_prefill(core, now_ns, c, c->held_tokens);
        return;
    }
    choice_trail(c, now_ns, TRAIL_BACKFILL, backfill_source(c));
    choice_enter(core, now_ns, c, CHOICE_FILLING);
}

void choice_on_backfilled(struct router_core *core, uint64_t now_ns, struct choice *c)
{
    choice_meet(core, c, CHOICE_EV_BACKFILLED);
    if (c->state != CHOICE_FILLING) return; /* D did not answer yet */
    choice_trail(c, now_ns, TRAIL_BACKFILLED, c->prefill_name);
    send_prefill(core, now_ns, c, c->held_tokens);
}

static struct sched_job sched_job_of(const struct router_core *core, const struct choice *c)
{
    uint32_t tokens = choice_tokens(c);
    uint64_t full = (uint64_t)c->request->prompt_count + c->request->submit.tokens_max;
    if (core->cluster.known && full > core->cluster.context_max) full = core->cluster.context_max;
    struct kv_window window = choice_window(c, core->cluster.window);
    uint32_t gone = blocks_for_tokens(tokens + 1) - kv_window_blocks_kept(window, tokens);
    struct sched_job job = {
        .tokens = tokens,
        .window = window,
        .blocks = blocks_for_tokens(tokens + (c->request->submit.tokens_max > 0)) - gone,
        .prefill_only = c->request->submit.tokens_max <= c->generated_count + 1,
        .no_token = c->request->submit.tokens_max == 0,
        .blocks_full = blocks_for_tokens((uint32_t)full - 1), /* the last token needs no KV */
        .kv_bytes =
            (uint64_t)(blocks_for_tokens(tokens) - gone) * kv_block_bytes(&core->cluster.geometry),
    };
    turns_room(core, c, &job);
    return job;
}

/* The request against a cluster that was not known, or was another one, when it came in or began. */
static bool check_late(struct router_core *core, uint64_t now_ns, struct choice *c)
{
    uint32_t stop_ids[JOB_STOP_IDS_MAX], before = c->life;
    char reason[MSG_TEXT_MAX];
    c->life = core->cluster.life;
    if (before && before != c->life && (c->generated_count > 0 || c->values_count > 0)) {
        snprintf(reason, sizeof reason, "the nodes that began it are gone; those that came have %s",
                 core->cluster.differs);
        choice_end(core, now_ns, c, FINISH_ERROR, ERR_PEER, reason);
        return false;
    }
    if (c->request->checked_life == c->life) return true;
    struct job job = choice_job(core, c, stop_ids);
    if (job_check(&job, core->cluster.vocab, core->cluster.context_max) != OK) {
        choice_end(core, now_ns, c, FINISH_ERROR, ERR_INVALID, err_text());
        return false;
    }
    c->request->checked_life = c->life;
    return true;
}

static void start(struct router_core *core, uint64_t now_ns, struct choice *c,
                  const struct sched_job *job, const struct sched_pair *pair)
{
    choice_meet(core, c, CHOICE_EV_PICKED);
    choice_dequeue(core, c);
    router_meter_time(core, METER_QUEUE_TIME, c->state_ns, now_ns);
    waits_note_picked(core, c->state_ns, now_ns);
    /* The end-of-sequence ids may not have been known. */
    enum finish finish = choice_already_over(core, c);
    if (finish != FINISH_NONE) {
        choice_end(core, now_ns, c, finish, OK, "");
        return;
    }
    if (!check_late(core, now_ns, c)) return;
    if (!c->picked_ns) c->timing.queue = us_between(c->request->arrived_ns, now_ns);
    c->picked_ns = now_ns;
    c->under_share = job->under_share;
    turns_started(core, c);
    c->ticket = ID128_NONE;
    c->local = pair->local;
    c->held_tokens = 0;
    if (pair->prefill != SCHED_NODE_NONE) {
        struct node *p = core->nodes[pair->prefill];
        uint32_t filled = backfill_begin(core, now_ns, c, &pair->fill, p);
        uint32_t left = sched_left(job, p->index);
        if (job->tokens - filled < left) left = job->tokens - filled;
        node_attach_prefill(c, p, left);
    }
    if (pair->decode != SCHED_NODE_NONE) node_attach_decode(c, core->nodes[pair->decode]);
    prefixes_expect(core, c);
    if (!c->decode) {
        choice_prefill(core, now_ns, c);
        return;
    }
    if (c->prefill) registry_note_try(core, c->prefill, c->decode);
    send_reserve(core, now_ns, c);
}

static void end_too_large(struct router_core *core, uint64_t now_ns, struct choice *c,
                          const struct sched_job *job)
{
    char reason[MSG_TEXT_MAX];
    const struct sched_node *largest = NULL;
    choice_meet(core, c, CHOICE_EV_TOO_LARGE);
    for (uint32_t i = 0; i < core->nodes_count; i++)
        if ((core->sched[i]->role == ROLE_DECODE || job->no_token) &&
            (!largest || core->sched[i]->blocks_total > largest->blocks_total))
            largest = core->sched[i];
    uint32_t need = job->no_token ? job->blocks : job->blocks_full;
    snprintf(
        reason, sizeof reason,
        "the request needs %u KV blocks of %d tokens at its full length, the largest %snode has "
        "%u",
        largest ? sched_blocks_at_once(largest, job, need) : need, BLOCK_TOKENS,
        job->no_token ? "" : "decode ", largest ? largest->blocks_total : 0);
    choice_dequeue(core, c);
    choice_end(core, now_ns, c, FINISH_ERROR, ERR_INVALID, reason);
}

static uint64_t next_full_ns(const struct router_core *core, uint64_t now_ns)
{
    uint64_t next = TIME_NEVER;
    for (uint32_t i = 0; i < core->nodes_count; i++)
        if (core->sched[i]->full_until_ns > now_ns && core->sched[i]->full_until_ns < next)
            next = core->sched[i]->full_until_ns;
    return next;
}

enum sched_answer choice_waits_for(const struct router_core *core, uint64_t now_ns,
                                   const struct choice *c)
{
    struct sched_rules rules = {core->config.disaggregate, core->hand_over_ns,
                                core->config.backfill};
    struct sched_job job = sched_job_of(core, c);
    struct sched_pair pair;
    return sched_pick_pair(core->sched, core->nodes_count, &job, &rules, now_ns, &pair);
}

/* For the one node that it is meant for. */
static enum sched_answer pick_only(const struct node *n, const struct sched_job *job,
                                   const struct sched_rules *rules, uint64_t now_ns,
                                   struct sched_pair *pair)
{
    const struct sched_node *const one[] = {&n->sched};
    enum sched_answer a = sched_pick_pair(one, 1, job, rules, now_ns, pair);
    if (a == SCHED_PICKED && pair->prefill == SCHED_NODE_NONE) return SCHED_NO_NODES;
    pair->prefill = n->index;
    return a;
}

/* Whether its P computes no row that is cached, and keeps all of them. */
static bool may_be_filled(const struct choice *c)
{
    enum job_kind kind = c->request->kind;
    return kind == JOB_GENERATE || kind == JOB_EMBED_LAST;
}

/* What decode nodes have room for, [1]: of tenants above their share. */
struct rooms {
    bool known[2];
    struct sched_room of[2];
};

static bool finds_no_room(const struct router_core *core, uint64_t now_ns,
                          const struct sched_job *job, struct rooms *rooms)
{
    struct sched_room *room = &rooms->of[job->over_share];
    if (!rooms->known[job->over_share])
        *room = sched_room(core->sched, core->nodes_count, job->keep_percent, now_ns);
    rooms->known[job->over_share] = true;
    return sched_no_room(core->sched, room, job);
}

/* Tries the first choice of the tenant whose turn it is. */
static enum sched_answer dispatch_one(struct router_core *core, uint64_t now_ns, struct choice *c,
                                      struct sched_job *job, struct rooms *rooms)
{
    struct sched_rules rules = {core->config.disaggregate, core->hand_over_ns,
                                core->config.backfill};
    struct sched_pair pair;
    *job = sched_job_of(core, c);
    enum sched_answer a = SCHED_PICKED;
    if (c->request->only.v) {
        const struct peer_entry *entry = registry_find(core, c->request->only);
        if (!entry || !entry->node || !entry->node->sched.open) {
            choice_end(core, now_ns, c, FINISH_ERROR, ERR_PEER, "its node is gone");
            return SCHED_PICKED;
        }
        a = pick_only(entry->node, job, &rules, now_ns, &pair);
    } else if (!fork_pick(core, now_ns, c, *job, &pair)) {
        if (finds_no_room(core, now_ns, job, rooms)) return SCHED_NO_DECODE;
        job->cached = prefixes_look(core, c);
        job->pooled = job->cached && may_be_filled(c) ? core->pooled : NULL;
        job->load_ns = core->load_ns;
        job->usual_bytes_per_s = core->rate.bytes_per_s;
        a = sched_pick_pair(core->sched, core->nodes_count, job, &rules, now_ns, &pair);
    }
    if (a == SCHED_PICKED) start(core, now_ns, c, job, &pair);
    /* picked once: a larger pool was there, and may come back */
    if (a == SCHED_NEVER && !c->picked_ns) {
        end_too_large(core, now_ns, c, job);
        return SCHED_PICKED;
    }
    return a;
}

/* Whom those who wait hold up. */
struct hold {
    bool all;     /* those above their share: what comes free is for one of them */
    bool windows; /* all but those that have a window of their own */
};
enum after_wait { WAIT_ENDS, WAIT_RESTS, WAIT_PASSES };

/* What `a`, which is no pair for it, means for those behind. It waits for a window, or has waited long for
 * memory: what comes free is for it, unless for one with less than its share, which may take more than the
 * others: without room for that one there is none. One whose nodes are not there holds nobody up. */
static enum after_wait hold_up(struct hold *h, enum sched_answer a, const struct sched_job *job,
                               bool waited_long)
{
    bool waits = a == SCHED_NO_PREFILL || (a == SCHED_NO_DECODE && waited_long);
    bool no_window = a == SCHED_NO_PREFILL && !job->under_share;
    if (waits && !job->over_share && !no_window) return WAIT_ENDS;
    h->all |= waits;
    h->windows |= no_window && !job->over_share;
    return h->all && (job->over_share || no_window) ? WAIT_RESTS : WAIT_PASSES;
}

void choice_dispatch(struct router_core *core, uint64_t now_ns)
{
    struct choice *passed[ROUTER_BYPASS_MAX];
    uint32_t passed_count = 0, rests = 0;
    bool no_room = false;
    struct hold held = {0};
    struct rooms rooms = {0};
    struct fair_tenant *t;
    enum sched_answer blocked_by =
        core->nodes_count == 0 && core->queue.count > 0 ? SCHED_NO_NODES : SCHED_PICKED;
    core->dispatch_wanted = core->window_wanted = false;
    while (core->nodes_count > 0 && rests < ROUTER_BYPASS_MAX && (t = fair_next(&core->fair))) {
        struct choice *c = list_member(heap_first(&t->queue), struct choice, turn);
        struct sched_job job = {0};
        turns_room(core, c, &job);
        enum sched_answer a = SCHED_NO_DECODE;
        if (held.windows && !job.under_share)
            a = SCHED_NO_PREFILL;
        else if (!held.all || !job.over_share)
            a = dispatch_one(core, now_ns, c, &job, &rooms);
        if (a == SCHED_PICKED) {
            rooms = (struct rooms){0};
            continue;
        }
        if (blocked_by == SCHED_PICKED) blocked_by = a;
        core->window_wanted |= a == SCHED_NO_PREFILL;
        no_room |= a != SCHED_NO_PREFILL;
        if (passed_count == ROUTER_BYPASS_MAX) break;
        bool waited_long = now_ns - c->state_ns > core->config.bypass_ns;
        enum after_wait after = hold_up(&held, a, &job, waited_long);
        if (after == WAIT_ENDS) break;
        if (after == WAIT_RESTS) {
            fair_rest(&core->fair, t);
            rests++;
        } else {
            fair_pass(&core->fair, t, &c->turn);
            passed[passed_count++] = c;
        }
    }
    for (uint32_t i = 0; i < passed_count; i++)
        fair_put_back(&core->fair, passed[i]->request->tenant, &passed[i]->turn);
    fair_wake(&core->fair);
    core->retry_ns = no_room ? next_full_ns(core, now_ns) : TIME_NEVER;
    waits_note_blocked(core, now_ns, blocked_by);
}
