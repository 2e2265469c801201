#include "router/sched.h"

#include <string.h>

#include "common/hash.h"

uint64_t sched_queue_key(uint64_t arrived_ns, int32_t priority)
{
    if (priority > SCHED_PRIORITY_MAX) priority = SCHED_PRIORITY_MAX;
    if (priority < -SCHED_PRIORITY_MAX) priority = -SCHED_PRIORITY_MAX;
    return arrived_ns + (uint64_t)(priority + SCHED_PRIORITY_MAX) * SCHED_LEVEL_NS;
}

const char *sched_waiting_for(enum sched_answer answer)
{
    static const char *const texts[] = {
        [SCHED_PICKED] = "requests before it are not placed yet",
        [SCHED_NO_NODES] = "no decode node is ready",
        [SCHED_NO_PREFILL] = "all prefill nodes are busy",
        [SCHED_NO_DECODE] = "no decode node has room",
        [SCHED_NEVER] = "no decode node is large enough",
    };
    return texts[answer];
}

static bool window_open(const struct sched_node *n, uint32_t tokens)
{
    return n->outstanding_tokens == 0 ||
           (uint64_t)n->outstanding_tokens + tokens <= n->window_tokens;
}

/* Time until a prompt sent now would have been computed, in tokens where the speed is not known. */
static uint64_t work_ahead(const struct sched_node *n, uint32_t tokens)
{
    return ((uint64_t)n->outstanding_tokens + tokens) * (n->token_ns ? n->token_ns : 1);
}

static uint32_t blocks_left(const struct sched_node *n)
{
    uint32_t by_us = n->blocks_used < n->blocks_total ? n->blocks_total - n->blocks_used : 0;
    return by_us < n->blocks_free ? by_us : n->blocks_free;
}

static bool has_room(const struct sched_node *n, const struct sched_job *job, uint64_t now_ns)
{
    return now_ns >= n->full_until_ns && n->running < n->sequences_max &&
           blocks_left(n) >= job->blocks;
}

uint64_t sched_link(const char *address)
{
    uint64_t hash = hash64(address, strcspn(address, strncmp(address, "shm:", 4) == 0 ? "-" : ":"));
    return hash ? hash : 1;
}

bool sched_share_link(const struct sched_node *a, const struct sched_node *b)
{
    for (int i = 0; i < MSG_ADDRESSES_MAX && a->links[i]; i++)
        for (int k = 0; k < MSG_ADDRESSES_MAX && b->links[k]; k++)
            if (a->links[i] == b->links[k]) return true;
    return false;
}

/* With a link to `to`, unless that is NULL. `any`: there is one, though its window may be closed. */
static uint32_t pick_prefill(const struct sched_node *const *nodes, uint32_t count,
                             const struct sched_job *job, const struct sched_node *to, bool *any)
{
    uint32_t best = SCHED_NODE_NONE;
    *any = false;
    for (uint32_t i = 0; i < count; i++) {
        const struct sched_node *n = nodes[i];
        if (!n->open || n->role != ROLE_PREFILL || n->blocks_total < job->blocks) continue;
        if (to && !sched_share_link(n, to)) continue;
        *any = true;
        if (!window_open(n, job->tokens)) continue;
        if (best == SCHED_NODE_NONE ||
            work_ahead(n, job->tokens) < work_ahead(nodes[best], job->tokens))
            best = i;
    }
    return best;
}

static bool better_decode(const struct sched_node *a, const struct sched_node *b)
{
    uint64_t load_a = (uint64_t)a->running * b->sequences_max;
    uint64_t load_b = (uint64_t)b->running * a->sequences_max;
    if (load_a != load_b) return load_a < load_b;
    return blocks_left(a) > blocks_left(b);
}

/* With a link from `from`, unless that is NULL. */
static uint32_t pick_decode(const struct sched_node *const *nodes, uint32_t count,
                            const struct sched_job *job, const struct sched_node *from,
                            uint64_t now_ns, enum sched_answer *none)
{
    uint32_t best = SCHED_NODE_NONE;
    *none = SCHED_NO_NODES;
    for (uint32_t i = 0; i < count; i++) {
        const struct sched_node *n = nodes[i];
        if (!n->open || n->role != ROLE_DECODE || (from && !sched_share_link(n, from))) continue;
        if (*none == SCHED_NO_NODES) *none = SCHED_NEVER;
        if (n->blocks_total < job->blocks_full) continue;
        *none = SCHED_NO_DECODE;
        if (!has_room(n, job, now_ns)) continue;
        if (best == SCHED_NODE_NONE || better_decode(n, nodes[best])) best = i;
    }
    return best;
}

static bool cheaper_local(const struct sched_node *d, const struct sched_job *job,
                          const struct sched_rules *rules)
{
    if (rules->disaggregate == DISAGGREGATE_ALWAYS) return false;
    if (rules->disaggregate == DISAGGREGATE_NEVER) return true;
    uint64_t delayed_streams = 1 + (uint64_t)d->running;
    return d->token_ns > 0 &&
           job->tokens * (uint64_t)d->token_ns * delayed_streams < rules->hand_over_ns;
}

enum sched_answer sched_pick_pair(const struct sched_node *const *nodes, uint32_t nodes_count,
                                  const struct sched_job *job, const struct sched_rules *rules,
                                  uint64_t now_ns, struct sched_pair *pair)
{
    bool any_prefill;
    enum sched_answer no_decode;
    *pair = (struct sched_pair){SCHED_NODE_NONE, SCHED_NODE_NONE, false};
    uint32_t p = pick_prefill(nodes, nodes_count, job, NULL, &any_prefill);
    if (job->prefill_only && any_prefill) {
        if (p == SCHED_NODE_NONE) return SCHED_NO_PREFILL;
        pair->prefill = p;
        return SCHED_PICKED;
    }
    uint32_t d = pick_decode(nodes, nodes_count, job, NULL, now_ns, &no_decode);
    if (d == SCHED_NODE_NONE) return no_decode;
    /* The best two share no link: the best P of this D, or else the best D of that P. */
    if (p == SCHED_NODE_NONE || !sched_share_link(nodes[p], nodes[d])) {
        bool any_of_d;
        enum sched_answer none_of_p;
        uint32_t p_of_d = pick_prefill(nodes, nodes_count, job, nodes[d], &any_of_d);
        uint32_t d_of_p = SCHED_NODE_NONE;
        if (p != SCHED_NODE_NONE && p_of_d == SCHED_NODE_NONE)
            d_of_p = pick_decode(nodes, nodes_count, job, nodes[p], now_ns, &none_of_p);
        if (d_of_p != SCHED_NODE_NONE) {
            d = d_of_p;
        } else {
            p = p_of_d;
            any_prefill = any_of_d;
        }
    }
    pair->decode = d;
    pair->local = !any_prefill || cheaper_local(nodes[d], job, rules);
    if (pair->local) return SCHED_PICKED;
    if (p == SCHED_NODE_NONE) return SCHED_NO_PREFILL;
    pair->prefill = p;
    return SCHED_PICKED;
}
