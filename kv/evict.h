/* evict: which cached block goes first. What is known of each block, the ranks that the policies make of
 * it, and the order of the candidates: blocks that only the cache holds, without cached children and
 * without a pin.
 *
 *     struct evict *order;
 *     struct evict_config config = {.policy = EVICT_LRU};
 *     if ((e = evict_new(&order, &config, blocks_count)) != OK) return e;
 *     uint32_t slot = evict_tenant(order, tenant, weight);
 *     evict_known(order, block, hash, depth, slot); // it has entered the cache
 *     evict_used(order, block);                // a match has found it, and was of use
 *     evict_released(order, block);            // nobody but the cache holds it any more
 *     evict_add(order, block);                 // it is a candidate; evict_remove: no more
 *     uint32_t victim = evict_pick(order);     // EVICT_NONE: there is no candidate
 *     evict_gone(order, victim);               // the cache has let it go
 *     evict_spare(order, block, true);         // windows: nobody would miss it, it goes first
 *
 *     lru     unused for longest
 *     lfu     fewest uses, aged: LFU with dynamic aging (Arlitt and others, 2000)
 *     s3fifo  a small queue for what is new, a main one for what was used again, and a memory of what
 *             left the small one lately (S3-FIFO: Yang and others, SOSP 2023)
 *     cost    cheapest to compute again for how often it is used, aged: GreedyDual-Size (Cao and Irani,
 *             1997) with frequency (Cherkasova, 1998); blocks are of one size
 *     ttl     lru, and what was not used for ttl_ns goes even if nobody needs its place
 *
 * Among tenants it is the turn of the one that has most cached blocks for its weight, of those with a candidate;
 * the policy says which of its blocks. So what nobody else wants is lent, and taken back from who has most,
 * until each has its share. Without tenants all is one's.
 *
 * A leaf that goes makes its parent a candidate with the rank of the parent's own last use. Equal ranks
 * go in the order of last use.
 *
 * Rules: nothing is allocated after evict_new. Adding, removing and picking are O(log candidates), and
 * picking looks at each tenant, of which there are KV_SHARES_MAX at the most (kv/shares.h);
 * s3fifo's pick is so amortised: each block it passes over has been used since it was last passed. No
 * clock in here: evict_tick says the time. Owner: the loop thread. */
#ifndef TANDEM_KV_EVICT_H
#define TANDEM_KV_EVICT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "kv/shares.h"

#define EVICT_NONE UINT32_MAX
#define EVICT_POLICIES "lru|lfu|s3fifo|cost|ttl" /* in the order of enum evict_policy */

enum evict_policy {
    EVICT_LRU,
    EVICT_LFU,
    EVICT_S3FIFO,
    EVICT_COST,
    EVICT_TTL,
    EVICT_POLICIES_COUNT
};

enum {
    EVICT_COST_UNIT = 1024, /* recomputing a block at the start of a prompt */
    /* From this many tokens on, attention costs as much as the weights do: 32 layers of width 4096 with
     * 8e9 weights have 16e9 operations per token and 0.52e6 per token attended to. */
    EVICT_COST_EVEN_TOKENS = 32768,
    EVICT_SMALL_SHARE = 10, /* s3fifo: one in so many blocks is in the small queue */
    EVICT_FREQUENCY_MAX = 3,
    EVICT_USES_MAX = 64 /* more count as these: what was the favourite of a day must age in hours */
};

struct evict_config {
    enum evict_policy policy;
    uint64_t ttl_ns;             /* EVICT_TTL only; not 0 */
    uint32_t tenant_percent_max; /* of all blocks, that one tenant may have cached; 0: any number */
};

/* What a rank is made of. */
struct evict_view {
    uint64_t turn;  /* of its last use: releases are numbered */
    uint64_t level; /* the rank of what was evicted last, as that use saw it */
    uint32_t uses;  /* 1: computed and never found */
    uint32_t depth; /* blocks before it in its prompt */
};

/* lru, lfu, cost, ttl: the lowest goes first. Pure. */
uint64_t evict_rank(enum evict_policy policy, const struct evict_view *view);
/* What it takes to compute a block again, in 1 / EVICT_COST_UNIT. Pure. */
uint64_t evict_cost(uint32_t depth);

struct evict;

enum err evict_new(struct evict **order, const struct evict_config *config, uint32_t blocks_count);
void evict_free(struct evict *order); /* NULL is allowed */
void evict_tick(struct evict *order, uint64_t now_ns);
/* The slot of a tenant's blocks, until another one is asked for. */
uint32_t evict_tenant(struct evict *order, uint64_t tenant, uint32_t weight);
void evict_known(struct evict *order, uint32_t block, uint64_t hash, uint32_t depth, uint32_t slot);
void evict_used(struct evict *order, uint32_t block);
void evict_released(struct evict *order, uint32_t block);
void evict_gone(struct evict *order, uint32_t block); /* no candidate any more */
void evict_add(struct evict *order, uint32_t block);
void evict_remove(struct evict *order, uint32_t block);
/* Whether nobody would miss it: such go before all others of their tenant, whatever the policy. It is no
 * candidate when this is said. */
void evict_spare(struct evict *order, uint32_t block, bool spare);
uint32_t evict_pick(struct evict *order);
/* Spare ones aside; of the tenant whose turn it is. */
uint32_t evict_pick_wanted(struct evict *order);
uint32_t evict_pick_of(struct evict *order, uint32_t slot); /* of this tenant's */
/* Blocks that are known, of this tenant. */
uint32_t evict_held(const struct evict *order, uint32_t slot);
/* Tenants with known blocks, and the most that one has. */
uint32_t evict_tenants(const struct evict *order, uint32_t *most);
/* The candidate whose time is over, EVICT_NONE: there is none, or the policy knows no time. */
uint32_t evict_expired(const struct evict *order);
/* When it was let go of last, or became known. */
uint64_t evict_used_ns(const struct evict *order, uint32_t block);
bool evict_is_candidate(const struct evict *order, uint32_t block);
uint32_t evict_candidates_count(const struct evict *order);

#endif
