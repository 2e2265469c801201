/* Who gets blocks, and when. Prompts start in order (priority, then age) with all their blocks in hand;
 * one that finds no room holds up those behind it, so that a long prompt is not overtaken for ever. */
#include "node/state.h"

/* Leading whole-block tokens that the two have in common and `s` could find in the cache. */
static uint32_t common_tokens(const struct sequence *s, const struct sequence *t)
{
    uint32_t end = seq_total(s) - 1 < t->goal ? seq_total(s) - 1 : t->goal, n = 0;
    while (n < end && s->tokens[n] == t->tokens[n])
        n++;
    return n / BLOCK_TOKENS * BLOCK_TOKENS;
}

/* Whether one that is served before `s` is computing a part of its prompt that the cache lacks. */
static bool prefix_is_coming(const struct node_core *c, const struct sequence *s)
{
    struct plan_claim mine = seq_claim(s);
    uint32_t cached = UINT32_MAX; /* looked up when it matters */
    for (struct list_link *l = c->queue.next; l != &c->queue; l = l->next) {
        struct sequence *t = list_member(l, struct sequence, place);
        struct plan_claim theirs = seq_claim(t);
        if (t == s || !plan_before(&theirs, &mine)) break;
        if (t->state != SEQ_PREFILL || t->job.tenant_salt != s->job.tenant_salt) continue;
        uint32_t common = common_tokens(s, t);
        if (common <= t->kv_count) continue; /* what is computed is in the cache, or was evicted */
        if (cached == UINT32_MAX) cached = accounts_peek(c, s) * BLOCK_TOKENS;
        if (common > cached) return true;
    }
    return false;
}

enum err queue_open(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    if (s->fork) return fork_open(c, s);
    if (c->cache && now_ns < s->prefix_deadline_ns && encode_may_skip(s) && prefix_is_coming(c, s))
        return ERR_AGAIN;
    if (c->tier_op && !s->tier_asked && !accounts_would_open(c, s)) return ERR_FULL;
    if (encode_may_skip(s) && tier_is_loading(c, now_ns, s)) return ERR_AGAIN;
    return accounts_open(c, s, HOLD_SEQUENCE);
}

/* To its router, which has all of its tokens: another P computes its KV, for this node or another one. */
static void hand_back(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    tell_dirty(c);
    c->counts.handed_back++;
    sequence_fail(c, now_ns, s, ERR_AGAIN, true, "preempted: cheaper to prefill elsewhere");
}

void queue_start(struct node_core *c, uint64_t now_ns)
{
    uint32_t tokens = 0; /* of prompts in hand that no submitted step computes yet */
    for (struct list_link *l = c->queue.next, *next; l != &c->queue; l = next) {
        struct sequence *s = list_member(l, struct sequence, place);
        next = l->next;
        if (tokens >= c->config.chunk_tokens) return;
        if (s->state == SEQ_WAITING) {
            enum err e = queue_open(c, now_ns, s);
            s->lacks_room = e == ERR_FULL;
            if (e == ERR_FULL) return;
            if (e == ERR_NOT_FOUND) sequence_fail(c, now_ns, s, fork_gone(), true, err_text());
            if (e != OK) continue;
            if (room_hands_back(c, s)) {
                hand_back(c, now_ns, s);
                continue;
            }
            sequence_step(c, now_ns, s, &(struct seq_input){.event = SEQ_EV_START});
        }
        if (s->skip_to > 0) tier_skip(c, now_ns, s);
        if (!accounts_fill(c, s)) return; /* what gets free is first for who began first */
        tokens += s->goal - s->planned;
    }
}

bool queue_unstick(struct node_core *c, uint64_t now_ns)
{
    struct sequence *last = NULL;
    uint32_t stuck = 0;
    for (struct list_link *l = c->queue.next; l != &c->queue; l = l->next) {
        struct sequence *s = list_member(l, struct sequence, place);
        if (s->state != SEQ_PREFILL || s->planned < s->table_count * BLOCK_TOKENS) continue;
        if (s->planned == s->goal) continue;
        stuck++;
        last = s;
    }
    if (stuck < 2) return false;
    if (last->kind == SEQ_LOCAL || last->kind == SEQ_REMOTE)
        sequence_step(c, now_ns, last, &(struct seq_input){.event = SEQ_EV_PREEMPT});
    else
        sequence_fail(c, now_ns, last, ERR_FULL, true, "older prompts need its blocks");
    return true;
}

bool queue_promised(const struct node_core *c, const struct sequence *to)
{
    for (struct list_link *l = c->queue.next; l != &c->queue; l = l->next) {
        const struct sequence *s = list_member(l, struct sequence, place);
        if (s->state != SEQ_WAITING) continue;
        bool urgent = to->job.priority < s->job.priority;
        if (s->preempted || (s->lacks_room && !urgent)) return true;
    }
    return false;
}

static uint32_t claims_of(struct node_core *c, const struct list_link *head, uint32_t n)
{
    for (struct list_link *l = head->next; l != head; l = l->next) {
        struct sequence *s = list_member(l, struct sequence, place);
        if (s->table_count == 0 || s->kind == SEQ_PUSH || s->kind == SEQ_PLAIN) continue;
        c->claim[n] = seq_claim(s);
        c->claim[n].cost = preempt_cost(room_private_blocks(s), s->preemptions);
        c->rival[n++] = s;
    }
    return n;
}

bool queue_grow(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    if (s->planned / BLOCK_TOKENS < s->table_count) return true;
    while (accounts_grow(c, s) != OK) {
        uint32_t n = claims_of(c, &c->queue, claims_of(c, &c->running, 0));
        struct plan_claim mine = seq_claim(s);
        uint32_t i = preempt_pick(c->claim, n, &mine);
        if (i == UINT32_MAX) return false;
        struct sequence *victim = c->rival[i];
        if (victim->in_flight > 0) { /* its blocks are named by a step; they come when that ends */
            victim->preempt = true;
            return false;
        }
        sequence_step(c, now_ns, victim, &(struct seq_input){.event = SEQ_EV_PREEMPT});
    }
    return true;
}
