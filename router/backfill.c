/* backfill: KV of a prompt that a node has cached goes to the prefill node that will compute what follows it
 * (docs/kv-memory.md, "Between turns"): a job of cached blocks alone, of the router's own, under an id of its
 * own, that choices wait for.
 *
 *     RESERVE -> to          RESERVED: PREFILL -> from; FINISHED at once: it has all of it
 *     PREFILL -> from        FINISHED of `to`: it is there, and the choices go on
 *                            PREFILLED of `from`: how long it took
 *
 * Whatever else happens, FAILED, the loss of a node, the deadline, ends it: both nodes are told to let go, the
 * choices go on and their P computes what did not come. Bounded: in all, and of each pair of nodes; what two
 * choices of one P want is brought once. It goes on if all its choices have left: what comes is cached. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "router/state.h"

/* How long choices wait: for as long as computing it would take, and within this; the longest where it is done
 * whatever computing would take. */
#define WAIT_MIN_NS (100 * NS_PER_MS)
#define WAIT_MAX_NS (2 * NS_PER_S)
/* A pair over which one did not come is left alone so long: its link may be no link. */
#define PAUSE_NS (10 * NS_PER_S)

struct backfill {
    struct list_link place;   /* core->backfills */
    struct list_link waiting; /* choice.at_backfill */
    struct id128 id;
    struct node *from, *to;
    bool from_told, to_told; /* it is in the node's live set */
    bool sent, arrived;      /* PREFILL; KV */
    bool missing;            /* `from` has it no more */
    uint64_t deadline_ns;
    uint64_t hash;  /* of its last block */
    struct job job; /* prompt: tokens[] */
    uint32_t held_tokens;
    uint32_t tokens[];
};

static struct job_key key_of(const struct backfill *b)
{
    return (struct job_key){b->id, 0, 0};
}

static struct backfill *backfill_at(const struct list_link *l)
{
    return list_member(l, struct backfill, place);
}

static void live_add(struct node *n, const struct backfill *b)
{
    n->live_count++;
    n->live_hash += job_key_hash(key_of(b));
}

/* It is over at this node: false if it was before. */
static bool live_remove(struct node *n, const struct backfill *b, bool *told)
{
    if (!*told) return false;
    *told = false;
    n->live_count--;
    n->live_hash -= job_key_hash(key_of(b));
    return true;
}

/* ---- the end ---- */

static void release(struct router_core *core, uint64_t now_ns, struct backfill *b)
{
    while (!list_empty(&b->waiting)) {
        struct choice *c = list_member(b->waiting.next, struct choice, at_backfill);
        backfill_leave(c);
        choice_on_backfilled(core, now_ns, c);
    }
}

static void let_go(struct router_core *core, struct backfill *b, struct node *n, bool *told)
{
    struct msg m = {.kind = MSG_CANCEL, .cancel = {key_of(b), "nobody waits for it any more"}};
    if (live_remove(n, b, told)) registry_send(core, n->peer, &m);
}

static void end(struct router_core *core, uint64_t now_ns, struct backfill *b)
{
    if (b->sent && !b->arrived && !b->missing)
        b->from->rates[b->to->index].paused_until_ns = now_ns + PAUSE_NS;
    let_go(core, b, b->from, &b->from_told);
    let_go(core, b, b->to, &b->to_told);
    list_remove(&b->place);
    core->backfills_count--;
    core->counts.backfills_failed += !b->arrived;
    release(core, now_ns, b);
    mem_free(b);
}

void backfills_free(struct router_core *core)
{
    for (struct list_link *l; (l = list_pop_front(&core->backfills)) != NULL;)
        mem_free(backfill_at(l));
}

/* ---- the beginning ---- */

static bool is_free(const struct router_core *core, uint64_t now_ns, const struct node *from,
                    const struct node *to)
{
    uint32_t of_pair = 0;
    if (now_ns < from->rates[to->index].paused_until_ns) return false;
    for (const struct list_link *l = core->backfills.next; l != &core->backfills; l = l->next)
        of_pair += backfill_at(l)->from == from && backfill_at(l)->to == to;
    return core->backfills_count < BACKFILLS_MAX && of_pair < BACKFILLS_PAIR_MAX;
}

/* One under way to this node, of a part of this prompt. */
static struct backfill *running(const struct router_core *core, const struct request *r,
                                const struct node *to)
{
    for (const struct list_link *l = core->backfills.next; l != &core->backfills; l = l->next) {
        struct backfill *b = backfill_at(l);
        uint32_t blocks = b->job.prompt_count / BLOCK_TOKENS;
        if (b->to == to && !b->arrived && b->job.tenant_salt == r->tenant_salt &&
            blocks <= r->hashes_count && r->hashes[blocks - 1] == b->hash)
            return b;
    }
    return NULL;
}

static uint64_t wait_ns(const struct router_core *core, const struct sched_fill *fill)
{
    if (core->config.backfill == BACKFILL_ALWAYS || fill->compute_ns > WAIT_MAX_NS)
        return WAIT_MAX_NS;
    return fill->compute_ns < WAIT_MIN_NS ? WAIT_MIN_NS : fill->compute_ns;
}

static struct backfill *backfill_new(struct router_core *core, uint64_t now_ns,
                                     const struct choice *c, const struct sched_fill *fill)
{
    const struct request *r = c->request;
    struct backfill *b = mem_new(sizeof *b + fill->tokens * sizeof *b->tokens);
    if (!b) return NULL;
    memcpy(b->tokens, r->submit.tokens, fill->tokens * sizeof *b->tokens);
    list_init(&b->place);
    list_init(&b->waiting);
    b->id = router_draw_id(core);
    b->hash = r->hashes[fill->tokens / BLOCK_TOKENS - 1];
    b->deadline_ns = now_ns + wait_ns(core, fill);
    b->job = (struct job){.key = key_of(b),
                          .prompt = b->tokens,
                          .prompt_count = fill->tokens,
                          .cached_only = true,
                          .sampling = {.top_p = 1, .repetition_penalty = 1},
                          .priority = turns_priority(core, c),
                          .tenant_salt = r->tenant_salt,
                          .tenant = r->tenant ? r->tenant->salt : 0,
                          .tenant_weight = r->tenant ? r->tenant->weight : 1};
    return b;
}

static struct backfill *begin(struct router_core *core, uint64_t now_ns, const struct choice *c,
                              const struct sched_fill *fill, struct node *to)
{
    struct node *from = core->nodes[fill->from];
    if (!is_free(core, now_ns, from, to)) return NULL;
    struct backfill *b = backfill_new(core, now_ns, c, fill);
    if (!b) return NULL; /* then it is computed */
    b->from = from;
    b->to = to;
    b->to_told = true;
    live_add(to, b);
    list_push_back(&core->backfills, &b->place);
    core->backfills_count++;
    struct sched_rate *rate = &from->rates[to->index];
    if (rate->bytes_per_s == 0) /* until it is measured */
        rate->bytes_per_s = core->backfill_rate.bytes_per_s;
    struct msg m = {.kind = MSG_RESERVE, .reserve = {.job = b->job}};
    registry_send(core, to->peer, &m);
    return b;
}

uint32_t backfill_begin(struct router_core *core, uint64_t now_ns, struct choice *c,
                        const struct sched_fill *fill, struct node *to)
{
    if (fill->tokens == 0) return 0;
    struct backfill *b = running(core, c->request, to);
    if (!b) b = begin(core, now_ns, c, fill, to);
    if (!b) return 0;
    c->backfill = b;
    list_push_back(&b->waiting, &c->at_backfill);
    return b->job.prompt_count;
}

void backfill_leave(struct choice *c)
{
    c->backfill = NULL;
    list_remove(&c->at_backfill);
}

const char *backfill_source(const struct choice *c)
{
    return c->backfill->from->hello.name;
}

/* ---- what nodes say ---- */

static struct backfill *find(const struct router_core *core, const struct node *n,
                             struct job_key key)
{
    for (const struct list_link *l = core->backfills.next; l != &core->backfills; l = l->next) {
        struct backfill *b = backfill_at(l);
        if (job_key_equal(key_of(b), key)) return b->from == n || b->to == n ? b : NULL;
    }
    return NULL;
}

static void on_reserved(struct router_core *core, uint64_t now_ns, struct backfill *b,
                        const struct msg_reserved *r)
{
    if (b->sent || !b->to_told) return; /* said twice */
    if (id128_is_none(r->ticket) || r->held_tokens >= b->job.prompt_count) {
        end(core, now_ns, b);
        return;
    }
    struct msg m = {.kind = MSG_PREFILL,
                    .prefill = {.job = b->job,
                                .ticket = r->ticket,
                                .held_tokens = r->held_tokens,
                                .addresses = b->to->hello.addresses,
                                .addresses_count = b->to->hello.addresses_count}};
    b->held_tokens = r->held_tokens;
    b->sent = b->from_told = true;
    live_add(b->from, b);
    registry_send(core, b->from->peer, &m);
}

/* Kept until the sender has let go of it, too. */
static void on_finished(struct router_core *core, uint64_t now_ns, struct backfill *b)
{
    struct msg m = {.kind = MSG_FINISHED_ACK, .finished_ack = {key_of(b)}};
    registry_send(core, b->to->peer, &m);
    if (!live_remove(b->to, b, &b->to_told)) return;
    b->arrived = true;
    if (b->sent) {
        core->counts.backfills++;
        core->counts.backfilled_tokens += b->job.prompt_count - b->held_tokens;
    }
    release(core, now_ns, b);
    if (!b->from_told) end(core, now_ns, b);
}

static void on_prefilled(struct router_core *core, uint64_t now_ns, struct backfill *b,
                         const struct msg_prefilled *m)
{
    if (!live_remove(b->from, b, &b->from_told)) return;
    uint64_t ns = m->transfer_tail_us * NS_PER_US;
    if (m->transfer_bytes > 0) {
        sched_rate_add(&b->from->rates[b->to->index], m->transfer_bytes, ns);
        sched_rate_add(&core->backfill_rate, m->transfer_bytes, ns);
    }
    if (b->arrived) end(core, now_ns, b);
}

static void on_failed(struct router_core *core, uint64_t now_ns, struct backfill *b,
                      const struct node *n, const struct msg_failed *m)
{
    bool told =
        live_remove(b->from == n ? b->from : b->to, b, b->from == n ? &b->from_told : &b->to_told);
    b->missing = b->from == n && m->error == ERR_NOT_FOUND;
    if (told && b->missing && n->holder != INDEX_NONE)
        index_remove(core->index, n->holder, b->hash, TIER_POOL);
    if (told) end(core, now_ns, b);
}

bool backfill_on_message(struct router_core *core, uint64_t now_ns, struct node *n,
                         const struct msg *m)
{
    struct job_key key = m->kind == MSG_RESERVED    ? m->reserved.key
                         : m->kind == MSG_FINISHED  ? m->finished.key
                         : m->kind == MSG_PREFILLED ? m->prefilled.key
                         : m->kind == MSG_FAILED    ? m->failed.key
                                                    : (struct job_key){.request = ID128_NONE};
    struct backfill *b = id128_is_none(key.request) ? NULL : find(core, n, key);
    if (!b) return false;
    if (m->kind == MSG_FAILED)
        on_failed(core, now_ns, b, n, &m->failed);
    else if (m->kind == MSG_PREFILLED && n == b->from)
        on_prefilled(core, now_ns, b, &m->prefilled);
    else if (m->kind == MSG_RESERVED && n == b->to)
        on_reserved(core, now_ns, b, &m->reserved);
    else if (m->kind == MSG_FINISHED && n == b->to)
        on_finished(core, now_ns, b);
    return true;
}

/* ---- nodes that go, time ---- */

/* The first one that `n` has, or should have; NULL: none. */
static struct backfill *first_of(const struct router_core *core, const struct node *n)
{
    for (const struct list_link *l = core->backfills.next; l != &core->backfills; l = l->next)
        if (backfill_at(l)->from == n || backfill_at(l)->to == n) return backfill_at(l);
    return NULL;
}

void backfills_lost(struct router_core *core, uint64_t now_ns, const struct node *n)
{
    for (struct backfill *b; (b = first_of(core, n)) != NULL;)
        end(core, now_ns, b);
}

uint64_t backfills_wake_ns(const struct router_core *core)
{
    uint64_t wake_ns = TIME_NEVER;
    for (const struct list_link *l = core->backfills.next; l != &core->backfills; l = l->next)
        if (backfill_at(l)->deadline_ns < wake_ns) wake_ns = backfill_at(l)->deadline_ns;
    return wake_ns;
}

void backfills_on_timer(struct router_core *core, uint64_t now_ns)
{
    for (struct list_link *l = core->backfills.next, *next; l != &core->backfills; l = next) {
        next = l->next;
        if (backfill_at(l)->deadline_ns <= now_ns) end(core, now_ns, backfill_at(l));
    }
}

/* ---- the live sets ---- */

static bool is_live(const struct backfill *b, const struct node *n)
{
    return (b->from == n && b->from_told) || (b->to == n && b->to_told);
}

bool backfill_is_at(const struct router_core *core, const struct node *n, struct job_key key)
{
    const struct backfill *b = find(core, n, key);
    return b && is_live(b, n);
}

uint32_t backfills_live(const struct router_core *core, const struct node *n, struct job_key *keys)
{
    uint32_t count = 0;
    for (const struct list_link *l = core->backfills.next; l != &core->backfills; l = l->next)
        if (is_live(backfill_at(l), n)) keys[count++] = key_of(backfill_at(l));
    return count;
}

struct json_t *backfills_json(const struct router_core *core)
{
    const struct router_counts *c = &core->counts;
    return json_pack("{s:I,s:I,s:I,s:I}", "running", (json_int_t)core->backfills_count, "done",
                     (json_int_t)c->backfills, "tokens", (json_int_t)c->backfilled_tokens, "failed",
                     (json_int_t)c->backfills_failed);
}
