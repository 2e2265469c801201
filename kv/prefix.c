/* One entry per block of the pool, at the block's number: an entry is in use when its tokens lead
 * to the block. Entries are found through a hash table of chains and hang together as a tree:
 *
 *     salt --> [16 tokens] block 7 --> [16 tokens] block 3 --> [16 tokens] block 12
 *                                 \--> [16 tokens] block 9
 *
 * A block with children is parked in the pool, so that the candidates of the order of eviction are the
 * leaves that nobody else holds; when its last child goes, it is one of them. */
#include "kv/prefix.h"

#include <string.h>

#include "common/mem.h"
#include "common/prefix_hash.h"
#include "kv/regret.h"

#define NONE UINT32_MAX

struct entry {
    uint64_t hash, salt;
    uint32_t tokens[BLOCK_TOKENS];
    uint32_t parent; /* block; NONE: the first block of a prompt */
    uint32_t child;  /* the youngest one; its siblings follow */
    uint32_t sibling_next, sibling_previous;
    uint32_t chain_next; /* in the table */
    uint32_t depth;      /* blocks before it in its prompt */
    uint32_t uses;       /* 1: computed and never found */
    bool used;
};

struct kv_prefix {
    struct kv_pool *pool;
    struct evict *order;
    struct kv_regret *regret;
    struct entry *entry; /* [blocks in the pool] */
    uint32_t *table;     /* [table_mask + 1] first block of each chain */
    uint32_t table_mask, blocks_count, entries_max;
    uint32_t blocks_max_of_tenant; /* 0: any number */
    uint64_t hash_mask;
    struct kv_prefix_stats stats;
    struct kv_prefix_watch watch;
};

/* What an entry is looked up by. */
struct key {
    uint64_t hash, salt;
    const uint32_t *tokens;
    uint32_t parent;
};

enum err kv_prefix_new(struct kv_prefix **out, struct kv_pool *pool, uint32_t entries_max,
                       const struct evict_config *config)
{
    *out = NULL;
    struct kv_prefix *cache = mem_new(sizeof *cache);
    if (!cache) return ERR_MEMORY;
    cache->pool = pool;
    cache->blocks_count = kv_pool_counts(pool).total;
    cache->entries_max = entries_max < cache->blocks_count ? entries_max : cache->blocks_count;
    cache->hash_mask = UINT64_MAX;
    if (config->tenant_percent_max > 0) {
        uint64_t most = (uint64_t)cache->blocks_count * config->tenant_percent_max / 100;
        cache->blocks_max_of_tenant = most > 0 ? (uint32_t)most : 1;
    }
    uint64_t table_count = 16;
    while (table_count < 2ull * cache->entries_max)
        table_count *= 2;
    cache->table_mask = (uint32_t)(table_count - 1);
    cache->entry = mem_array(cache->blocks_count, sizeof *cache->entry);
    cache->table = mem_array(table_count, sizeof *cache->table);
    enum err e = cache->entry && cache->table ? OK : ERR_MEMORY;
    if (e == OK) e = kv_regret_new(&cache->regret, cache->entries_max);
    if (e == OK) e = evict_new(&cache->order, config, cache->blocks_count);
    if (e != OK) {
        kv_regret_free(cache->regret);
        mem_free(cache->entry);
        mem_free(cache->table);
        mem_free(cache);
        return e;
    }
    kv_pool_order(pool, cache->order);
    memset(cache->table, 0xff, table_count * sizeof *cache->table);
    *out = cache;
    return OK;
}

void kv_prefix_free(struct kv_prefix *cache)
{
    if (!cache) return;
    for (uint32_t i = 0; i < cache->blocks_count; i++) {
        struct block_id block = {i};
        if (!cache->entry[i].used) continue;
        while (kv_pool_pins(cache->pool, block) > 0)
            kv_pool_unpin(cache->pool, block);
        kv_pool_unpark(cache->pool, block);
        kv_pool_drop(cache->pool, block, HOLD_CACHE);
    }
    kv_pool_order(cache->pool, NULL);
    evict_free(cache->order);
    kv_regret_free(cache->regret);
    mem_free(cache->entry);
    mem_free(cache->table);
    mem_free(cache);
}

static struct key key_of(const struct kv_prefix *cache, uint64_t salt, uint32_t parent,
                         const uint32_t *tokens)
{
    uint64_t before = parent == NONE ? salt : cache->entry[parent].hash;
    uint64_t hash = prefix_hash_block(before, tokens) & cache->hash_mask;
    return (struct key){hash, salt, tokens, parent};
}

static bool entry_is(const struct entry *e, const struct key *key)
{
    return e->hash == key->hash && e->parent == key->parent && e->salt == key->salt &&
           memcmp(e->tokens, key->tokens, sizeof e->tokens) == 0;
}

/* NONE: not cached. */
static uint32_t find(const struct kv_prefix *cache, const struct key *key)
{
    uint32_t i = cache->table[key->hash & cache->table_mask];
    while (i != NONE && !entry_is(&cache->entry[i], key))
        i = cache->entry[i].chain_next;
    return i;
}

static void add(struct kv_prefix *cache, const struct key *key, uint32_t block, uint32_t slot)
{
    struct entry *e = &cache->entry[block];
    CHECK(!e->used);
    uint32_t *chain = &cache->table[key->hash & cache->table_mask];
    *e = (struct entry){
        .hash = key->hash,
        .salt = key->salt,
        .parent = key->parent,
        .child = NONE,
        .sibling_next = NONE,
        .sibling_previous = NONE,
        .chain_next = *chain,
        .depth = key->parent == NONE ? 0 : cache->entry[key->parent].depth + 1,
        .uses = 1,
        .used = true,
    };
    memcpy(e->tokens, key->tokens, sizeof e->tokens);
    *chain = block;
    if (key->parent != NONE) {
        struct entry *parent = &cache->entry[key->parent];
        e->sibling_next = parent->child;
        if (parent->child != NONE) cache->entry[parent->child].sibling_previous = block;
        parent->child = block;
        kv_pool_park(cache->pool, (struct block_id){key->parent});
    }
    evict_known(cache->order, block, e->hash, e->depth, slot);
    kv_pool_hold(cache->pool, (struct block_id){block}, HOLD_CACHE);
    cache->stats.entries_count++;
    cache->stats.inserted_blocks++;
    if (cache->watch.stored) cache->watch.stored(cache->watch.ctx, (struct block_id){block});
}

/* Takes a leaf out of the tree; its block stays with those who hold it, or becomes free. */
static void forget(struct kv_prefix *cache, uint32_t block)
{
    struct entry *e = &cache->entry[block];
    CHECK(e->used && e->child == NONE);
    uint32_t *link = &cache->table[e->hash & cache->table_mask];
    while (*link != block)
        link = &cache->entry[*link].chain_next;
    *link = e->chain_next;
    if (e->sibling_next != NONE)
        cache->entry[e->sibling_next].sibling_previous = e->sibling_previous;
    if (e->sibling_previous != NONE) {
        cache->entry[e->sibling_previous].sibling_next = e->sibling_next;
    } else if (e->parent != NONE) {
        cache->entry[e->parent].child = e->sibling_next;
        if (e->sibling_next == NONE) kv_pool_unpark(cache->pool, (struct block_id){e->parent});
    }
    e->used = false;
    cache->stats.entries_count--;
    if (cache->watch.removed) cache->watch.removed(cache->watch.ctx, e->hash);
    kv_pool_drop(cache->pool, (struct block_id){block}, HOLD_CACHE);
    evict_gone(cache->order, block);
}

/* Blocks of the longest cached prefix, at most blocks_max, into blocks (NULL: only counted). */
static uint32_t walk(const struct kv_prefix *cache, uint64_t salt, const uint32_t *tokens,
                     uint32_t tokens_count, struct block_id *blocks, uint32_t blocks_max)
{
    uint32_t whole = tokens_count > 0 ? (tokens_count - 1) / BLOCK_TOKENS : 0, n = 0;
    uint32_t parent = NONE;
    for (; n < whole && n < blocks_max; n++) {
        struct key key = key_of(cache, salt, parent, tokens + (size_t)n * BLOCK_TOKENS);
        uint32_t found = find(cache, &key);
        if (found == NONE) break;
        if (blocks) blocks[n] = (struct block_id){found};
        parent = found;
    }
    return n;
}

uint32_t kv_prefix_hold(struct kv_prefix *cache, uint64_t salt, const uint32_t *tokens,
                        uint32_t tokens_count, enum hold kind, struct block_id *blocks,
                        uint32_t blocks_max)
{
    uint32_t n = walk(cache, salt, tokens, tokens_count, blocks, blocks_max);
    for (uint32_t i = 0; i < n; i++)
        kv_pool_hold(cache->pool, blocks[i], kind);
    return n;
}

uint32_t kv_prefix_match(struct kv_prefix *cache, uint64_t salt, const uint32_t *tokens,
                         uint32_t tokens_count, enum hold kind, struct block_id *blocks,
                         uint32_t blocks_max)
{
    uint32_t n = kv_prefix_hold(cache, salt, tokens, tokens_count, kind, blocks, blocks_max);
    cache->stats.queried_tokens += tokens_count;
    cache->stats.hit_tokens += (uint64_t)n * BLOCK_TOKENS;
    return n;
}

static void note_use(struct kv_prefix *cache, uint32_t block)
{
    evict_used(cache->order, block);
    cache->entry[block].uses += cache->entry[block].uses < UINT32_MAX;
}

void kv_prefix_used(struct kv_prefix *cache, const struct block_id *blocks, uint32_t blocks_count)
{
    for (uint32_t i = 0; i < blocks_count; i++)
        if (blocks[i].v != NONE) note_use(cache, blocks[i].v);
}

uint32_t kv_prefix_regret(struct kv_prefix *cache, struct block_id last, uint32_t found,
                          uint64_t salt, const uint32_t *tokens, uint32_t tokens_count)
{
    uint64_t before = last.v == NONE ? salt : cache->entry[last.v].hash;
    uint32_t n = found;
    for (; n + BLOCK_TOKENS < tokens_count; n += BLOCK_TOKENS) {
        before = prefix_hash_block(before, tokens + n) & cache->hash_mask;
        if (!kv_regret_back(cache->regret, before)) break;
    }
    cache->stats.regret_tokens += n - found;
    return n - found;
}

uint32_t kv_prefix_peek(const struct kv_prefix *cache, uint64_t salt, const uint32_t *tokens,
                        uint32_t tokens_count)
{
    return walk(cache, salt, tokens, tokens_count, NULL, UINT32_MAX);
}

/* Behind the last of the caller's blocks that is known: those before it are, as the tree has no holes. */
static uint32_t known_from(const struct kv_prefix *cache, const struct block_id *blocks,
                           uint32_t count)
{
    while (count > 0 && (blocks[count - 1].v == NONE || !cache->entry[blocks[count - 1].v].used))
        count--;
    return count;
}

/* For want of room, unlike one whose time is over. */
static void evict(struct kv_prefix *cache, uint32_t block)
{
    kv_regret_evicted(cache->regret, cache->entry[block].hash);
    cache->stats.unused_blocks += cache->entry[block].uses == 1;
    cache->stats.evicted_blocks++;
    forget(cache, block);
}

static bool is_crowded(const struct kv_prefix *cache, uint64_t hash)
{
    uint32_t count = 0;
    for (uint32_t i = cache->table[hash & cache->table_mask]; i != NONE;)
        i = ++count < KV_PREFIX_CHAIN_MAX ? cache->entry[i].chain_next : NONE;
    return count == KV_PREFIX_CHAIN_MAX;
}

/* Whether there is place for one more of this tenant, which may have to give up another one for it. */
static bool make_place(struct kv_prefix *cache, const struct key *key, uint32_t slot)
{
    uint32_t most = cache->blocks_max_of_tenant;
    if (is_crowded(cache, key->hash)) {
        cache->stats.crowded_blocks++;
        return false;
    }
    if (most == 0 || evict_held(cache->order, slot) < most)
        return cache->stats.entries_count < cache->entries_max;
    uint32_t own = evict_pick_of(cache->order, slot);
    if (own == EVICT_NONE || own == key->parent) return false;
    evict(cache, own);
    return true;
}

void kv_prefix_insert(struct kv_prefix *cache, uint64_t salt, const uint32_t *tokens,
                      uint32_t tokens_count, enum hold kind, struct block_id *blocks)
{
    kv_prefix_insert_for(cache, (struct kv_owner){salt, 0}, salt, tokens, tokens_count, kind,
                         blocks);
}

void kv_prefix_insert_for(struct kv_prefix *cache, struct kv_owner owner, uint64_t salt,
                          const uint32_t *tokens, uint32_t tokens_count, enum hold kind,
                          struct block_id *blocks)
{
    uint32_t slot = evict_tenant(cache->order, owner.tenant, owner.weight);
    uint32_t count = tokens_count / BLOCK_TOKENS, from = known_from(cache, blocks, count);
    uint32_t parent = from > 0 ? blocks[from - 1].v : NONE;
    for (uint32_t i = from; i < count; i++) {
        struct key key = key_of(cache, salt, parent, tokens + (size_t)i * BLOCK_TOKENS);
        uint32_t found = find(cache, &key);
        if (found == NONE) {
            if (blocks[i].v == NONE || !make_place(cache, &key, slot)) return;
            add(cache, &key, blocks[i].v, slot);
        } else if (blocks[i].v != NONE && found != blocks[i].v) {
            kv_pool_hold(cache->pool, (struct block_id){found}, kind);
            kv_pool_drop(cache->pool, blocks[i], kind);
            blocks[i].v = found;
            note_use(cache, found);
            cache->stats.twin_blocks++;
        }
        parent = found != NONE ? found : blocks[i].v;
    }
}

/* All that is left of the cached state has children that somebody else holds: makes one of them a
 * stranger, so that its parent may become a leaf. */
static void forget_held_leaf(struct kv_prefix *cache, struct block_id parked)
{
    uint32_t block = parked.v;
    while (cache->entry[block].child != NONE)
        block = cache->entry[block].child;
    forget(cache, block);
}

uint32_t kv_prefix_evict(struct kv_prefix *cache, uint32_t wanted)
{
    uint32_t evicted = 0;
    while (evicted < wanted) {
        uint32_t block = evict_pick(cache->order);
        if (block != EVICT_NONE) {
            evict(cache, block);
            evicted++;
            continue;
        }
        struct block_id parked = kv_pool_parked_first(cache->pool);
        if (parked.v == BLOCK_NONE.v) break;
        forget_held_leaf(cache, parked);
    }
    return evicted;
}

uint32_t kv_prefix_tick(struct kv_prefix *cache, uint64_t now_ns, uint32_t expired_max)
{
    uint32_t expired = 0, block;
    evict_tick(cache->order, now_ns);
    for (; expired < expired_max; expired++) {
        if ((block = evict_expired(cache->order)) == EVICT_NONE) break;
        forget(cache, block);
    }
    cache->stats.expired_blocks += expired;
    return expired;
}

uint32_t kv_prefix_pin(struct kv_prefix *cache, uint64_t salt, const uint32_t *tokens,
                       uint32_t blocks_max)
{
    uint32_t parent = NONE, n = 0;
    for (; n < blocks_max; n++) {
        struct key key = key_of(cache, salt, parent, tokens + (size_t)n * BLOCK_TOKENS);
        uint32_t found = find(cache, &key);
        if (found == NONE) break;
        bool first = kv_pool_pins(cache->pool, (struct block_id){found}) == 0;
        if (first && cache->stats.pinned_blocks >= cache->blocks_count / 2) break;
        cache->stats.pinned_blocks += first;
        kv_pool_pin(cache->pool, (struct block_id){found});
        parent = found;
    }
    return n;
}

void kv_prefix_unpin(struct kv_prefix *cache, uint64_t salt, const uint32_t *tokens,
                     uint32_t blocks_count)
{
    uint32_t parent = NONE;
    for (uint32_t n = 0; n < blocks_count; n++) {
        struct key key = key_of(cache, salt, parent, tokens + (size_t)n * BLOCK_TOKENS);
        struct block_id found = {find(cache, &key)};
        CHECK(found.v != NONE);
        kv_pool_unpin(cache->pool, found);
        cache->stats.pinned_blocks -= kv_pool_pins(cache->pool, found) == 0;
        parent = found.v;
    }
}

uint32_t kv_prefix_evictable(const struct kv_prefix *cache)
{
    struct kv_pool_counts counts = kv_pool_counts(cache->pool);
    return counts.cached - counts.pinned;
}

void kv_prefix_watch(struct kv_prefix *cache, const struct kv_prefix_watch *watch)
{
    cache->watch = *watch;
}

struct kv_prefix_stats kv_prefix_stats(const struct kv_prefix *cache)
{
    return cache->stats;
}

bool kv_prefix_look(const struct kv_prefix *cache, struct block_id block,
                    struct kv_prefix_entry *entry)
{
    const struct entry *e = &cache->entry[block.v];
    if (!e->used) return false;
    uint32_t next_uses = 0, looked = 0;
    for (uint32_t c = e->child; c != NONE && looked < KV_PREFIX_CHILDREN_LOOKED; looked++) {
        const struct entry *child = &cache->entry[c];
        if (child->uses > next_uses) next_uses = child->uses;
        c = child->sibling_next;
    }
    *entry = (struct kv_prefix_entry){
        .hash = e->hash,
        .salt = e->salt,
        .tokens = e->tokens,
        .parent = {e->parent},
        .depth = e->depth,
        .uses = e->uses,
        .next_uses = next_uses,
        .used_ns = evict_used_ns(cache->order, block.v),
    };
    return true;
}

void kv_prefix_mask_hashes(struct kv_prefix *cache, uint64_t mask)
{
    CHECK(cache->stats.entries_count == 0);
    cache->hash_mask = mask;
}

void kv_prefix_audit(const struct kv_prefix *cache)
{
    uint32_t used = 0, children = 0, roots = 0;
    for (uint32_t i = 0; i < cache->blocks_count; i++) {
        const struct entry *e = &cache->entry[i];
        CHECK(kv_pool_holds(cache->pool, (struct block_id){i}, HOLD_CACHE) == e->used);
        if (!e->used) continue;
        struct key key = key_of(cache, e->salt, e->parent, e->tokens);
        CHECK(find(cache, &key) == i);
        CHECK(e->depth == (e->parent == NONE ? 0 : cache->entry[e->parent].depth + 1));
        used++;
        roots += e->parent == NONE;
        for (uint32_t c = e->child, before = NONE; c != NONE; c = cache->entry[c].sibling_next) {
            CHECK(cache->entry[c].used && cache->entry[c].parent == i);
            CHECK(cache->entry[c].sibling_previous == before && children < cache->blocks_count);
            before = c;
            children++;
        }
    }
    CHECK(used == cache->stats.entries_count && used <= cache->entries_max);
    CHECK(roots + children == used);
}
