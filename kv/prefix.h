/* kv_prefix: full, committed blocks by the tokens that lead to them, found by longest match.
 *
 *     struct kv_prefix *cache;
 *     if ((e = kv_prefix_new(&cache, pool, blocks_count, &config)) != OK) return e;
 *     struct kv_prompt prompt = {.salt = salt, .tokens = tokens, .tokens_count = tokens_count};
 *     uint32_t n = kv_prefix_match(cache, &prompt, HOLD_SEQUENCE, blocks, max);
 *     kv_prefix_used(cache, blocks, n);       // held for the caller, who has room for the rest
 *     kv_prefix_insert(cache, owner, &prompt, HOLD_SEQUENCE, blocks);      // KV is complete
 *     kv_prefix_evict(cache, wanted);                                     // when the pool is empty
 *
 * A block's key is the chain hash XXH3(parent's hash, its 16 tokens), the first parent being the
 * salt; its tokens and its parent are kept beside it and compared on a hit, so a collision of
 * hashes can never serve another prompt's KV. Entries form a tree, and leave it only as leaves, so a
 * cached prefix never has a hole.
 *
 * With a window (struct kv_prompt) a match needs only the blocks that the window before its end, and the
 * sinks, lie in. An entry may be hollow then: its tokens are known and compared, its block was let go of, or
 * never was here. A hollow entry always has one with a block behind it.
 *
 * Who makes many blocks of one hash, by chance or by intent, gets KV_PREFIX_CHAIN_MAX of them cached, so a
 * search looks at no more.
 *
 * Evicted are blocks that nobody but the cache holds, in the order of a policy (kv/evict.h), but
 * always behind their children; with a window those go first which no leaf's window reaches back to. If
 * all that is left are such blocks with children that somebody holds (a transfer of the tail of a
 * sequence, say), those children are first forgotten: their holder keeps them, nobody finds them any more.
 * So every block in state cached can be had, but for the pinned ones: a prefix that is pinned stays, and all
 * of them together are at most half of the pool.
 *
 * Costs: matching and inserting a hash for each block of the prompt that is not known to be known; a block that
 * comes or goes what the order of eviction takes, and with a window a step up for each block of it.
 *
 * Rules: nothing is allocated after kv_prefix_new. The cache holds each of its blocks once with
 * HOLD_CACHE. Matching returns whole blocks only and never all of the tokens: at least the last
 * token is left to compute, since its logits are wanted.
 * Owner: the loop thread. */
#ifndef TANDEM_KV_PREFIX_H
#define TANDEM_KV_PREFIX_H

#include "common/geometry.h"
#include "kv/pool.h"

struct kv_prefix;
enum {
    KV_PREFIX_CHAIN_MAX = 32
}; /* entries of one place in the table, which has two for each block */

struct kv_prefix_stats {
    uint64_t queried_tokens, hit_tokens, inserted_blocks, twin_blocks, evicted_blocks,
        expired_blocks;
    uint64_t crowded_blocks; /* left uncached: too many in one place of the table */
    uint64_t unused_blocks;  /* of the evicted ones: never found again */
    uint64_t spare_blocks;   /* of the evicted ones: beyond every window */
    uint64_t regret_tokens;  /* looked for in vain, and evicted lately (kv_prefix_regret) */
    uint32_t entries_count, pinned_blocks; /* that have a block */
    uint32_t hollow_count;
};

/* entries_max: hollow ones too. */
enum err kv_prefix_new(struct kv_prefix **cache, struct kv_pool *pool, uint32_t entries_max,
                       const struct evict_config *config);
/* Drops all its holds. */
void kv_prefix_free(struct kv_prefix *cache);

/* What is looked up or made known. All prompts of one salt have the same window. */
struct kv_prompt {
    uint64_t salt;
    const uint32_t *tokens;
    uint32_t tokens_count;
    struct kv_window window;
    /* Nothing before this token will be computed: what only such rows see is not needed, whatever matches. */
    uint32_t rows_from;
};
/* Puts the longest cached prefix's blocks into blocks[0 … n) and adds one hold of `kind` to each; n is at
 * most blocks_max and at most (tokens_count - 1) / 16. With a window, what the match does not need of the n
 * blocks is BLOCK_NONE. */
uint32_t kv_prefix_match(struct kv_prefix *cache, const struct kv_prompt *prompt, enum hold kind,
                         struct block_id *blocks, uint32_t blocks_max);
/* The same without counting as a query: for who prepares one. */
uint32_t kv_prefix_hold(struct kv_prefix *cache, const struct kv_prompt *prompt, enum hold kind,
                        struct block_id *blocks, uint32_t blocks_max);
/* The same without holding: how many blocks would match. */
uint32_t kv_prefix_peek(const struct kv_prefix *cache, const struct kv_prompt *prompt);
/* Tells the policy that these blocks, which a match gave, are computed on: once for each sequence that
 * starts, so that one that is tried again and again while the pool is full does not count so often.
 * Not those that it let go of: BLOCK_NONE. */
void kv_prefix_used(struct kv_prefix *cache, const struct block_id *blocks, uint32_t blocks_count);
/* Of a prompt whose first `found` tokens a match gave, `last` being the block of the last of them
 * (BLOCK_NONE: none): how many of the next ones it would have given if nothing had been evicted lately
 * (kv/regret.h). Each is counted once for its eviction. */
uint32_t kv_prefix_regret(struct kv_prefix *cache, struct block_id last, uint32_t found,
                          uint64_t salt, const uint32_t *tokens, uint32_t tokens_count);
/* Makes the full blocks of the prompt known. A block whose twin (same tokens, same parents) is cached
 * already is swapped: blocks[i] becomes the twin, with the caller's `kind` hold moved over to it, and the
 * newer one is dropped by the caller's hold. A step in flight that names the old block keeps it by its own
 * hold. The caller has one hold of `kind` on each block. Blocks beyond entries_max are left uncached.
 *
 * New blocks count as this tenant's (often the one whose salt it is). One that has its quota gives up one of
 * its own for each, or leaves it uncached. With a window a block that the caller let go of is BLOCK_NONE:
 * those behind it become known all the same. If there are no more entries, the leaf that goes first by the
 * policy makes room with all that is hollow before it. */
struct kv_owner {
    uint64_t tenant;
    uint32_t weight; /* its share against others'; 0: as it was, or 1 */
};
void kv_prefix_insert(struct kv_prefix *cache, struct kv_owner owner,
                      const struct kv_prompt *prompt, enum hold kind, struct block_id *blocks);
/* Frees up to `wanted` blocks that only the cache holds; returns how many. */
uint32_t kv_prefix_evict(struct kv_prefix *cache, uint32_t wanted);
/* Says the time. Frees up to `expired_max` blocks that the policy lets live no longer; returns how many:
 * as many as that, and there may be more. */
uint32_t kv_prefix_tick(struct kv_prefix *cache, uint64_t now_ns, uint32_t expired_max);
/* Keeps the cached ones of the prompt's first blocks until they are unpinned as often as pinned. Returns
 * how many: fewer than blocks_max if more are not cached, or half of the pool is pinned. */
uint32_t kv_prefix_pin(struct kv_prefix *cache, uint64_t salt, const uint32_t *tokens,
                       uint32_t blocks_max);
void kv_prefix_unpin(struct kv_prefix *cache, uint64_t salt, const uint32_t *tokens,
                     uint32_t blocks_count);
/* How many blocks kv_prefix_evict could free if asked for all. O(1). */
uint32_t kv_prefix_evictable(const struct kv_prefix *cache);
struct kv_prefix_stats kv_prefix_stats(const struct kv_prefix *cache);
/* Tenants with cached blocks, those without a name as one, and the most that one has. */
uint32_t kv_prefix_tenants(const struct kv_prefix *cache, uint32_t *blocks_most);
/* What is known of an entry, for reports. Pointers live until the cache changes. */
struct kv_prefix_entry {
    uint64_t hash, salt;
    const uint32_t *tokens; /* 16 */
    uint32_t at, parent;    /* numbers of entries; parent KV_PREFIX_NONE: it begins a prompt */
    uint64_t parent_hash;
    uint32_t depth;     /* blocks before it */
    uint32_t uses;      /* 1: computed and never found */
    uint32_t next_uses; /* the most uses of a block behind it; 0: it is a leaf */
    uint64_t used_ns;   /* when it was let go of last; of a hollow one: 0 */
};
#define KV_PREFIX_NONE UINT32_MAX
/* False: the cache does not know the block. O(1): of a block with more than KV_PREFIX_CHILDREN_LOOKED
 * children only as many are looked at. */
enum { KV_PREFIX_CHILDREN_LOOKED = 16 };
bool kv_prefix_look(const struct kv_prefix *cache, struct block_id block,
                    struct kv_prefix_entry *entry);
/* The same by an entry's number, a parent's say, hollow or not. */
bool kv_prefix_look_at(const struct kv_prefix *cache, uint32_t at, struct kv_prefix_entry *entry);
/* The same by a hash. Of several that collide it is one of them. */
bool kv_prefix_look_for(const struct kv_prefix *cache, uint64_t hash,
                        struct kv_prefix_entry *entry);
/* Called whenever a block has become known, and when it is no longer, in order. They are called from within:
 * they may look, no more. kv_prefix_free says nothing. NULL: not wanted. */
struct kv_prefix_watch {
    void *ctx;
    void (*stored)(void *ctx, struct block_id block);
    void (*removed)(void *ctx, uint64_t hash);
};
void kv_prefix_watch(struct kv_prefix *cache, const struct kv_prefix_watch *watch);
/* Tests: of each hash only the bits of `mask` are used, so that collisions come at once. Empty
 * cache only. */
void kv_prefix_mask_hashes(struct kv_prefix *cache, uint64_t mask);
/* O(entries + blocks): CHECKs tree, table, holds and counts. Tests, simulator. */
void kv_prefix_audit(const struct kv_prefix *cache);

#endif
