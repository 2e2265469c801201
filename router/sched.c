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

bool sched_has_room(const struct sched_node *n, const struct sched_job *job, uint64_t now_ns)
{
    return now_ns >= n->full_until_ns && n->running < n->sequences_max &&
           blocks_left(n) >= job->blocks;
}

uint64_t sched_link(const char *address)
{
    bool of_host = strncmp(address, "shm:", 4) == 0 || strncmp(address, "ipc:", 4) == 0;
    uint64_t hash = hash64(address, strcspn(address, of_host ? "-" : ":"));
    return hash ? hash : 1;
}

bool sched_share_link(const struct sched_node *a, const struct sched_node *b)
{
    for (int i = 0; i < MSG_ADDRESSES_MAX && a->links[i]; i++)
        for (int k = 0; k < MSG_ADDRESSES_MAX && b->links[k]; k++)
            if (a->links[i] == b->links[k]) return true;
    return false;
}

void sched_rate_add(struct sched_rate *rate, uint64_t bytes, uint64_t ns)
{
    rate->bytes = rate->bytes - rate->bytes / 8 + bytes;
    rate->ns = rate->ns - rate->ns / 8 + (ns ? ns : 1);
    double per_s = (double)rate->bytes * 1e9 / (double)rate->ns;
    rate->bytes_per_s = per_s < 1 ? 1 : per_s < 1e18 ? (uint64_t)per_s : (uint64_t)1e18;
}

uint64_t sched_transfer_ns(const struct sched_node *const *nodes, const struct sched_node *from,
                           uint32_t to, const struct sched_job *job)
{
    uint64_t per_s = from->rates ? from->rates[to].bytes_per_s : 0;
    if (per_s == 0) return from->host == nodes[to]->host ? 0 : 1;
    double ns = (double)job->kv_bytes * 1e9 / (double)per_s;
    return 2 + (ns < 1e15 ? (uint64_t)ns : (uint64_t)1e15);
}

struct prefill_pick {
    uint32_t index;   /* SCHED_NODE_NONE: none has an open window */
    uint64_t cost_ns; /* until the prompt would be computed, and be on D */
    bool any;         /* one could do it, though its window may be closed */
};

/* For the D of index `to`, with a link to it; SCHED_NODE_NONE: for none. */
static struct prefill_pick pick_among(const struct sched_node *const *nodes, uint32_t count,
                                      const struct sched_job *job, enum role role, uint32_t to)
{
    struct prefill_pick best = {SCHED_NODE_NONE, UINT64_MAX, false};
    for (uint32_t i = 0; i < count; i++) {
        const struct sched_node *n = nodes[i];
        if (!n->open || n->role != role || n->blocks_total < job->blocks) continue;
        if (to != SCHED_NODE_NONE && !sched_share_link(n, nodes[to])) continue;
        best.any = true;
        if (!window_open(n, job->tokens)) continue;
        uint64_t cost_ns = work_ahead(n, job->tokens);
        if (to != SCHED_NODE_NONE) cost_ns += sched_transfer_ns(nodes, n, to, job);
        if (cost_ns >= best.cost_ns) continue;
        best.index = i;
        best.cost_ns = cost_ns;
    }
    return best;
}

static struct prefill_pick pick_prefill(const struct sched_node *const *nodes, uint32_t count,
                                        const struct sched_job *job, uint32_t to)
{
    return pick_among(nodes, count, job, ROLE_PREFILL, to);
}

/* Negative: a has the emptier batch. */
static int compare_load(const struct sched_node *a, const struct sched_node *b)
{
    uint64_t load_a = (uint64_t)a->running * b->sequences_max;
    uint64_t load_b = (uint64_t)b->running * a->sequences_max;
    return load_a < load_b ? -1 : load_a > load_b;
}

/* The D with room and the P for it. One that a free P has a link to goes before one that must wait or
 * prefill itself. Returns SCHED_PICKED, or why there is no D. */
static enum sched_answer pick_decode(const struct sched_node *const *nodes, uint32_t count,
                                     const struct sched_job *job, uint64_t now_ns, uint32_t *decode,
                                     struct prefill_pick *prefill)
{
    enum sched_answer none = SCHED_NO_NODES;
    *decode = SCHED_NODE_NONE;
    for (uint32_t i = 0; i < count; i++) {
        const struct sched_node *n = nodes[i];
        if (!n->open || n->role != ROLE_DECODE) continue;
        if (none == SCHED_NO_NODES) none = SCHED_NEVER;
        if (n->blocks_total < job->blocks_full) continue;
        none = SCHED_NO_DECODE;
        if (!sched_has_room(n, job, now_ns)) continue;
        bool first = *decode == SCHED_NODE_NONE;
        bool best_is_free = !first && prefill->index != SCHED_NODE_NONE;
        int load = first ? -1 : compare_load(n, nodes[*decode]);
        if (load > 0 && best_is_free) continue;
        struct prefill_pick p = pick_prefill(nodes, count, job, i);
        bool is_free = p.index != SCHED_NODE_NONE;
        if (!first && is_free != best_is_free) load = is_free ? -1 : 1;
        if (load == 0 && p.cost_ns != prefill->cost_ns)
            load = p.cost_ns < prefill->cost_ns ? -1 : 1;
        if (load > 0 || (load == 0 && blocks_left(n) <= blocks_left(nodes[*decode]))) continue;
        *decode = i;
        *prefill = p;
    }
    return *decode == SCHED_NODE_NONE ? none : SCHED_PICKED;
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

static enum sched_answer never(const struct sched_node *const *nodes, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (nodes[i]->open) return SCHED_NEVER;
    return SCHED_NO_NODES;
}

enum sched_answer sched_pick_pair(const struct sched_node *const *nodes, uint32_t nodes_count,
                                  const struct sched_job *job, const struct sched_rules *rules,
                                  uint64_t now_ns, struct sched_pair *pair)
{
    *pair = (struct sched_pair){SCHED_NODE_NONE, SCHED_NODE_NONE, false};
    if (job->prefill_only) {
        struct prefill_pick alone = pick_prefill(nodes, nodes_count, job, SCHED_NODE_NONE);
        if (alone.any && alone.index == SCHED_NODE_NONE) return SCHED_NO_PREFILL;
        pair->prefill = alone.index;
        if (alone.any) return SCHED_PICKED;
    }
    if (job->no_token) {
        struct prefill_pick d = pick_among(nodes, nodes_count, job, ROLE_DECODE, SCHED_NODE_NONE);
        pair->prefill = d.index;
        return d.index != SCHED_NODE_NONE ? SCHED_PICKED
               : d.any                    ? SCHED_NO_DECODE
                                          : never(nodes, nodes_count);
    }
    struct prefill_pick p = {SCHED_NODE_NONE, UINT64_MAX, false};
    enum sched_answer a = pick_decode(nodes, nodes_count, job, now_ns, &pair->decode, &p);
    if (a != SCHED_PICKED) return a;
    pair->local = !p.any || cheaper_local(nodes[pair->decode], job, rules);
    if (pair->local) return SCHED_PICKED;
    if (p.index == SCHED_NODE_NONE) return SCHED_NO_PREFILL;
    pair->prefill = p.index;
    return SCHED_PICKED;
}
