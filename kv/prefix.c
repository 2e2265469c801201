/* Entries are found through a hash table of chains and hang together as a tree:
 *
 *     salt --> [16 tokens] block 7 --> [16 tokens] block 3 --> [16 tokens] block 12
 *                                 \--> [16 tokens] no block --> [16 tokens] block 9
 *
 * A block with children is parked in the pool, so that the candidates of the order of eviction are the
 * leaves that nobody else holds; when its last child goes, it is one of them.
 *
 * With a window each entry knows how far the nearest leaf below it is, counted to the window's length at
 * most. A block that no leaf's window reaches up to is spare: a candidate that goes before all leaves, and
 * whose entry stays, hollow, while there are entries behind it. When a leaf comes or goes the distances above it
 * are put right, up to where they stay as they are: no further than a window. */
#include "kv/prefix.h"

#include <string.h>

#include "common/mem.h"
#include "common/prefix_hash.h"
#include "kv/regret.h"

#define NONE UINT32_MAX

struct entry {
    uint64_t hash, salt;
    uint32_t tokens[BLOCK_TOKENS];
    uint32_t parent; /* NONE: the first block of a prompt */
    uint32_t child;  /* the youngest one; its siblings follow */
    uint32_t sibling_next, sibling_previous;
    uint32_t chain_next; /* in the table; of an unused one: the next of those */
    uint32_t depth;      /* blocks before it in its prompt */
    uint32_t uses;       /* 1: computed and never found */
    uint32_t block;      /* NONE: hollow */
    uint32_t reach;      /* blocks that its window lets a leaf look back; 0: at all */
    uint32_t leaf;       /* how far below the nearest leaf is, at most `reach`; reach 0: not kept */
    uint8_t kept;        /* enum kept, as the pool and the order know it */
    bool used, sink;     /* a sink is seen by all rows */
};

struct kv_prefix {
    struct kv_pool *pool;
    struct evict *order;
    struct kv_regret *regret;
    struct entry *entry; /* [entries_max] */
    uint32_t *entry_of;  /* [blocks in the pool] 1 + its entry; 0: not known */
    uint32_t *table;     /* [table_mask + 1] first entry of each chain */
    uint32_t fresh;      /* entries from here on were never used */
    uint32_t unused;     /* the first of the others that are not */
    uint32_t at;         /* what is to be put behind this entry, which stays even if it is hollow */
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

/* NEEDED: parked. LEAF and SPARE: a candidate, as soon as nobody else holds it. */
enum kept { LEAF, NEEDED, SPARE };

enum err kv_prefix_new(struct kv_prefix **out, struct kv_pool *pool, uint32_t entries_max,
                       const struct evict_config *config)
{
    *out = NULL;
    struct kv_prefix *cache = mem_new(sizeof *cache);
    if (!cache) return ERR_MEMORY;
    cache->pool = pool;
    cache->blocks_count = kv_pool_counts(pool).total;
    cache->entries_max = entries_max;
    cache->unused = cache->at = NONE;
    cache->hash_mask = UINT64_MAX;
    if (config->tenant_percent_max > 0) {
        uint64_t most = (uint64_t)cache->blocks_count * config->tenant_percent_max / 100;
        cache->blocks_max_of_tenant = most > 0 ? (uint32_t)most : 1;
    }
    uint64_t table_count = 16;
    while (table_count < 2ull * cache->entries_max)
        table_count *= 2;
    cache->table_mask = (uint32_t)(table_count - 1);
    cache->entry = mem_array(entries_max, sizeof *cache->entry);
    cache->entry_of = mem_array(cache->blocks_count, sizeof *cache->entry_of);
    cache->table = mem_array(table_count, sizeof *cache->table);
    enum err e = cache->entry && cache->entry_of && cache->table ? OK : ERR_MEMORY;
    if (e == OK) e = kv_regret_new(&cache->regret, cache->blocks_count);
    if (e == OK) e = evict_new(&cache->order, config, cache->blocks_count);
    if (e != OK) {
        kv_regret_free(cache->regret);
        mem_free(cache->entry);
        mem_free(cache->entry_of);
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
        if (cache->entry_of[i] == 0) continue;
        while (kv_pool_pins(cache->pool, block) > 0)
            kv_pool_unpin(cache->pool, block);
        kv_pool_unpark(cache->pool, block);
        kv_pool_drop(cache->pool, block, HOLD_CACHE);
    }
    kv_pool_order(cache->pool, NULL);
    evict_free(cache->order);
    kv_regret_free(cache->regret);
    mem_free(cache->entry);
    mem_free(cache->entry_of);
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

/* The entry of a block, NONE: it has none. */
static uint32_t entry_with(const struct kv_prefix *cache, struct block_id block)
{
    return block.v == NONE ? NONE : cache->entry_of[block.v] - 1;
}

static struct block_id block_of(const struct entry *e)
{
    return (struct block_id){e->block};
}

static enum kept kept_now(const struct entry *e)
{
    if (e->child == NONE) return LEAF;
    return e->reach > 0 && e->leaf >= e->reach && !e->sink ? SPARE : NEEDED;
}

/* Tells pool and order what has become of an entry's block. */
static void settle(struct kv_prefix *cache, uint32_t at)
{
    struct entry *e = &cache->entry[at];
    enum kept now = kept_now(e);
    if (e->block == NONE || now == e->kept) return;
    if (e->kept != NEEDED) kv_pool_park(cache->pool, block_of(e));
    evict_spare(cache->order, e->block, now == SPARE);
    if (now != NEEDED) kv_pool_unpark(cache->pool, block_of(e));
    e->kept = (uint8_t)now;
}

/* How far below the nearest leaf is, one of its children having it `below` (NONE: none of note). With many
 * children it may be taken for nearer than it is: then the block stays. */
static uint32_t leaf_below(const struct kv_prefix *cache, const struct entry *e, uint32_t below)
{
    uint32_t least = below, looked = 0, c = e->child;
    if (c == NONE) return 0;
    for (; c != NONE && looked < KV_PREFIX_CHILDREN_LOOKED; looked++) {
        if (cache->entry[c].leaf < least) least = cache->entry[c].leaf;
        c = cache->entry[c].sibling_next;
    }
    uint32_t leaf = least < e->reach ? least + 1 : e->reach;
    return c != NONE && e->leaf > 0 && e->leaf < leaf ? e->leaf : leaf;
}

/* Puts the distances right from this entry upwards, whose children have changed. */
static void measure(struct kv_prefix *cache, uint32_t at)
{
    uint32_t below = NONE;
    for (bool first = true; at != NONE; first = false) {
        struct entry *e = &cache->entry[at];
        uint32_t before = e->leaf;
        if (e->reach > 0) e->leaf = below = leaf_below(cache, e, below);
        settle(cache, at);
        if (!first && e->leaf == before) return;
        at = e->parent;
    }
}

static uint32_t entry_take(struct kv_prefix *cache)
{
    uint32_t at = cache->unused;
    if (at == NONE) return cache->fresh++;
    cache->unused = cache->entry[at].chain_next;
    return at;
}

static bool has_entries(const struct kv_prefix *cache)
{
    return cache->stats.entries_count + cache->stats.hollow_count < cache->entries_max;
}

/* A hollow one. */
static uint32_t add(struct kv_prefix *cache, const struct key *key, struct kv_window window)
{
    uint32_t at = entry_take(cache), depth = 0;
    struct entry *e = &cache->entry[at];
    CHECK(!e->used);
    uint32_t *chain = &cache->table[key->hash & cache->table_mask];
    if (key->parent != NONE) depth = cache->entry[key->parent].depth + 1;
    *e = (struct entry){
        .hash = key->hash,
        .salt = key->salt,
        .parent = key->parent,
        .child = NONE,
        .sibling_next = NONE,
        .sibling_previous = NONE,
        .chain_next = *chain,
        .depth = depth,
        .uses = 1,
        .block = NONE,
        .reach = kv_window_reach(window),
        .used = true,
        .sink = depth < window.sinks / BLOCK_TOKENS,
    };
    memcpy(e->tokens, key->tokens, sizeof e->tokens);
    *chain = at;
    if (key->parent != NONE) {
        struct entry *parent = &cache->entry[key->parent];
        e->sibling_next = parent->child;
        if (parent->child != NONE) cache->entry[parent->child].sibling_previous = at;
        parent->child = at;
        settle(cache, key->parent);
    }
    cache->stats.hollow_count++;
    return at;
}

/* A hollow one is no more. */
static void fill(struct kv_prefix *cache, uint32_t at, struct block_id block, uint32_t slot)
{
    struct entry *e = &cache->entry[at];
    CHECK(e->block == NONE && cache->entry_of[block.v] == 0);
    e->block = block.v;
    e->kept = LEAF;
    cache->entry_of[block.v] = at + 1;
    evict_known(cache->order, block.v, e->hash, e->depth, slot);
    settle(cache, at);
    kv_pool_hold(cache->pool, block, HOLD_CACHE);
    cache->stats.hollow_count--;
    cache->stats.entries_count++;
    cache->stats.inserted_blocks++;
    if (cache->watch.stored) cache->watch.stored(cache->watch.ctx, block);
}

/* The block stays with those who hold it, or becomes free. */
static void hollow(struct kv_prefix *cache, uint32_t at)
{
    struct entry *e = &cache->entry[at];
    struct block_id block = block_of(e);
    CHECK(e->kept != NEEDED);
    e->block = NONE;
    cache->entry_of[block.v] = 0;
    cache->stats.entries_count--;
    cache->stats.hollow_count++;
    if (cache->watch.removed) cache->watch.removed(cache->watch.ctx, e->hash);
    kv_pool_drop(cache->pool, block, HOLD_CACHE);
    evict_gone(cache->order, block.v);
}

/* Takes a leaf out of the tree; returns its parent. */
static uint32_t remove_leaf(struct kv_prefix *cache, uint32_t at)
{
    struct entry *e = &cache->entry[at];
    CHECK(e->used && e->child == NONE);
    uint32_t *link = &cache->table[e->hash & cache->table_mask];
    while (*link != at)
        link = &cache->entry[*link].chain_next;
    *link = e->chain_next;
    if (e->sibling_next != NONE)
        cache->entry[e->sibling_next].sibling_previous = e->sibling_previous;
    if (e->sibling_previous != NONE) {
        cache->entry[e->sibling_previous].sibling_next = e->sibling_next;
    } else if (e->parent != NONE) {
        cache->entry[e->parent].child = e->sibling_next;
        settle(cache, e->parent);
    }
    if (e->block != NONE) hollow(cache, at);
    e->used = false;
    e->chain_next = cache->unused;
    cache->unused = at;
    cache->stats.hollow_count--;
    return e->parent;
}

/* Hollow entries behind which nothing is left go: from this one upwards. */
static void prune(struct kv_prefix *cache, uint32_t at)
{
    while (at != NONE && at != cache->at && cache->entry[at].block == NONE &&
           cache->entry[at].child == NONE)
        at = remove_leaf(cache, at);
    measure(cache, at);
}

/* A leaf, with what is hollow before it; of others the block only. */
static void forget(struct kv_prefix *cache, uint32_t at)
{
    if (cache->entry[at].child == NONE)
        prune(cache, remove_leaf(cache, at));
    else
        hollow(cache, at);
}

/* From where on a match of the first n blocks needs those behind the sinks. */
static uint32_t needed_from(const struct kv_prompt *p, uint32_t n)
{
    uint32_t row = n * BLOCK_TOKENS;
    return kv_window_gone(p->window, row > p->rows_from ? row : p->rows_from) / BLOCK_TOKENS;
}

/* The most blocks that a match may have, into blocks (NULL: only counted), those it needs not included: but
 * for the needed ones they are BLOCK_NONE. */
static uint32_t walk(const struct kv_prefix *cache, const struct kv_prompt *p,
                     struct block_id *blocks, uint32_t blocks_max)
{
    uint32_t whole = p->tokens_count > 0 ? (p->tokens_count - 1) / BLOCK_TOKENS : 0;
    uint32_t sinks = p->window.sinks / BLOCK_TOKENS, best = 0, run_first = 0, parent = NONE;
    for (uint32_t n = 0; n < whole && n < blocks_max;) {
        struct key key = key_of(cache, p->salt, parent, p->tokens + (size_t)n * BLOCK_TOKENS);
        uint32_t found = find(cache, &key);
        if (found == NONE) break;
        struct block_id block = block_of(&cache->entry[found]);
        if (block.v == NONE && (p->window.tokens == 0 || n < sinks)) break;
        if (blocks) blocks[n] = block;
        parent = found;
        n++;
        if (block.v == NONE) run_first = n;
        if (run_first < n && run_first <= needed_from(p, n)) best = n;
    }
    uint32_t needed = needed_from(p, best);
    for (uint32_t i = sinks; blocks && i < best && i < needed; i++)
        blocks[i] = BLOCK_NONE;
    return best;
}

uint32_t kv_prefix_hold(struct kv_prefix *cache, const struct kv_prompt *p, enum hold kind,
                        struct block_id *blocks, uint32_t blocks_max)
{
    uint32_t n = walk(cache, p, blocks, blocks_max);
    for (uint32_t i = 0; i < n; i++)
        if (blocks[i].v != NONE) kv_pool_hold(cache->pool, blocks[i], kind);
    return n;
}

uint32_t kv_prefix_match(struct kv_prefix *cache, const struct kv_prompt *p, enum hold kind,
                         struct block_id *blocks, uint32_t blocks_max)
{
    uint32_t n = kv_prefix_hold(cache, p, kind, blocks, blocks_max);
    cache->stats.queried_tokens += p->tokens_count;
    cache->stats.hit_tokens += (uint64_t)n * BLOCK_TOKENS;
    return n;
}

static void note_use(struct kv_prefix *cache, struct block_id block)
{
    struct entry *e = &cache->entry[entry_with(cache, block)];
    evict_used(cache->order, block.v);
    e->uses += e->uses < UINT32_MAX;
}

void kv_prefix_used(struct kv_prefix *cache, const struct block_id *blocks, uint32_t blocks_count)
{
    for (uint32_t i = 0; i < blocks_count; i++)
        if (blocks[i].v != NONE) note_use(cache, blocks[i]);
}

uint32_t kv_prefix_regret(struct kv_prefix *cache, struct block_id last, uint32_t found,
                          uint64_t salt, const uint32_t *tokens, uint32_t tokens_count)
{
    uint64_t before = last.v == NONE ? salt : cache->entry[entry_with(cache, last)].hash;
    uint32_t n = found;
    for (; n + BLOCK_TOKENS < tokens_count; n += BLOCK_TOKENS) {
        before = prefix_hash_block(before, tokens + n) & cache->hash_mask;
        if (!kv_regret_back(cache->regret, before)) break;
    }
    cache->stats.regret_tokens += n - found;
    return n - found;
}

uint32_t kv_prefix_peek(const struct kv_prefix *cache, const struct kv_prompt *p)
{
    return walk(cache, p, NULL, UINT32_MAX);
}

/* Behind the last of the caller's blocks that is known: those before it have entries, as the tree has no
 * holes. */
static uint32_t known_from(const struct kv_prefix *cache, const struct block_id *blocks,
                           uint32_t count)
{
    while (count > 0 && entry_with(cache, blocks[count - 1]) == NONE)
        count--;
    return count;
}

/* For want of room, unlike one whose time is over. */
static void evict(struct kv_prefix *cache, uint32_t block)
{
    uint32_t at = entry_with(cache, (struct block_id){block});
    const struct entry *e = &cache->entry[at];
    kv_regret_evicted(cache->regret, e->hash);
    cache->stats.unused_blocks += e->uses == 1 && e->kept == LEAF;
    cache->stats.spare_blocks += e->kept == SPARE;
    cache->stats.evicted_blocks++;
    forget(cache, at);
}

static bool is_crowded(struct kv_prefix *cache, uint64_t hash)
{
    uint32_t count = 0;
    for (uint32_t i = cache->table[hash & cache->table_mask]; i != NONE;)
        i = ++count < KV_PREFIX_CHAIN_MAX ? cache->entry[i].chain_next : NONE;
    cache->stats.crowded_blocks += count == KV_PREFIX_CHAIN_MAX;
    return count == KV_PREFIX_CHAIN_MAX;
}

/* Whether this candidate may go now: not the leaf behind which more is to be put. */
static bool may_go(const struct kv_prefix *cache, uint32_t block)
{
    if (block == EVICT_NONE) return false;
    uint32_t at = entry_with(cache, (struct block_id){block});
    return at != cache->at || cache->entry[at].child != NONE;
}

/* Whether there is an entry for one more; hollow ones are many, and give way with the leaf behind them. */
static bool make_entry(struct kv_prefix *cache)
{
    if (has_entries(cache) || cache->stats.hollow_count == 0) return has_entries(cache);
    uint32_t leaf = evict_pick_wanted(cache->order);
    if (may_go(cache, leaf)) evict(cache, leaf);
    return has_entries(cache);
}

/* Whether this tenant may have one more block, for which it may have to give up another one. */
static bool make_place(struct kv_prefix *cache, uint32_t slot)
{
    uint32_t most = cache->blocks_max_of_tenant;
    if (most == 0 || evict_held(cache->order, slot) < most) return true;
    uint32_t own = evict_pick_of(cache->order, slot);
    if (!may_go(cache, own)) return false;
    evict(cache, own);
    return true;
}

/* The caller's block becomes the one that is known. */
static void swap_twin(struct kv_prefix *cache, struct block_id known, enum hold kind,
                      struct block_id *block)
{
    kv_pool_hold(cache->pool, known, kind);
    kv_pool_drop(cache->pool, *block, kind);
    *block = known;
    note_use(cache, known);
    cache->stats.twin_blocks++;
}

/* The entry behind cache->at, with this block if it is one. NONE: it is left unknown. */
static uint32_t insert_one(struct kv_prefix *cache, const struct key *key, uint32_t slot,
                           struct kv_window window, enum hold kind, struct block_id *block)
{
    uint32_t at = find(cache, key);
    bool gone = block->v == NONE;
    if (at == NONE) {
        if ((gone && window.tokens == 0) || is_crowded(cache, key->hash)) return NONE;
        if (!gone && !make_place(cache, slot)) return NONE;
        if (!make_entry(cache)) return NONE;
        at = add(cache, key, window);
    } else if (!gone && cache->entry[at].block == NONE) {
        cache->at = at; /* what is behind it may go now */
        if (!make_place(cache, slot)) return NONE;
    } else if (!gone && cache->entry[at].block != block->v) {
        swap_twin(cache, block_of(&cache->entry[at]), kind, block);
    }
    if (!gone && cache->entry[at].block == NONE) fill(cache, at, *block, slot);
    return at;
}

void kv_prefix_insert(struct kv_prefix *cache, struct kv_owner owner, const struct kv_prompt *p,
                      enum hold kind, struct block_id *blocks)
{
    uint32_t slot = evict_tenant(cache->order, owner.tenant, owner.weight);
    uint32_t count = p->tokens_count / BLOCK_TOKENS, from = known_from(cache, blocks, count);
    if (from == count) return;
    cache->at = from > 0 ? entry_with(cache, blocks[from - 1]) : NONE;
    for (uint32_t i = from; i < count; i++) {
        struct key key = key_of(cache, p->salt, cache->at, p->tokens + (size_t)i * BLOCK_TOKENS);
        uint32_t at = insert_one(cache, &key, slot, p->window, kind, &blocks[i]);
        if (at == NONE) break;
        cache->at = at;
    }
    uint32_t last = cache->at;
    cache->at = NONE;
    prune(cache, last);
}

/* All that is left of the cached state has children that somebody else holds: makes one of them a
 * stranger, so that its parent may become a leaf. */
static void forget_held_leaf(struct kv_prefix *cache, struct block_id parked)
{
    uint32_t at = entry_with(cache, parked);
    while (cache->entry[at].child != NONE)
        at = cache->entry[at].child;
    forget(cache, at);
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
        forget(cache, entry_with(cache, (struct block_id){block}));
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
        if (found == NONE || cache->entry[found].block == NONE) break;
        struct block_id block = block_of(&cache->entry[found]);
        bool first = kv_pool_pins(cache->pool, block) == 0;
        if (first && cache->stats.pinned_blocks >= cache->blocks_count / 2) break;
        cache->stats.pinned_blocks += first;
        kv_pool_pin(cache->pool, block);
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
        uint32_t found = find(cache, &key);
        CHECK(found != NONE);
        struct block_id block = block_of(&cache->entry[found]);
        kv_pool_unpin(cache->pool, block);
        cache->stats.pinned_blocks -= kv_pool_pins(cache->pool, block) == 0;
        parent = found;
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

uint32_t kv_prefix_tenants(const struct kv_prefix *cache, uint32_t *blocks_most)
{
    return evict_tenants(cache->order, blocks_most);
}

bool kv_prefix_look(const struct kv_prefix *cache, struct block_id block,
                    struct kv_prefix_entry *entry)
{
    return kv_prefix_look_at(cache, entry_with(cache, block), entry);
}

bool kv_prefix_look_at(const struct kv_prefix *cache, uint32_t at, struct kv_prefix_entry *entry)
{
    if (at >= cache->fresh || !cache->entry[at].used) return false;
    const struct entry *e = &cache->entry[at];
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
        .at = at,
        .parent = e->parent,
        .parent_hash = e->parent == NONE ? 0 : cache->entry[e->parent].hash,
        .depth = e->depth,
        .uses = e->uses,
        .next_uses = next_uses,
        .used_ns = e->block == NONE ? 0 : evict_used_ns(cache->order, e->block),
    };
    return true;
}

bool kv_prefix_look_for(const struct kv_prefix *cache, uint64_t hash, struct kv_prefix_entry *entry)
{
    uint32_t i = cache->table[hash & cache->table_mask];
    while (i != NONE && cache->entry[i].hash != hash)
        i = cache->entry[i].chain_next;
    return kv_prefix_look_at(cache, i, entry);
}

void kv_prefix_mask_hashes(struct kv_prefix *cache, uint64_t mask)
{
    CHECK(cache->stats.entries_count == 0 && cache->stats.hollow_count == 0);
    cache->hash_mask = mask;
}

/* The children of an entry are its own and in order; returns how many. */
static uint32_t audit_children(const struct kv_prefix *cache, uint32_t at)
{
    const struct entry *e = &cache->entry[at];
    uint32_t count = 0, least = NONE;
    for (uint32_t c = e->child, before = NONE; c != NONE; c = cache->entry[c].sibling_next) {
        const struct entry *child = &cache->entry[c];
        CHECK(child->used && child->parent == at && child->sibling_previous == before);
        CHECK(count++ < cache->fresh);
        if (child->leaf < least) least = child->leaf;
        before = c;
    }
    uint32_t leaf = count == 0 ? 0 : least < e->reach ? least + 1 : e->reach;
    if (count <= KV_PREFIX_CHILDREN_LOOKED)
        CHECK(e->leaf == (e->reach == 0 ? 0 : leaf));
    else
        CHECK(e->leaf <= leaf);
    return count;
}

void kv_prefix_audit(const struct kv_prefix *cache)
{
    uint32_t full = 0, hollow = 0, children = 0, roots = 0, known = 0;
    for (uint32_t i = 0; i < cache->blocks_count; i++) {
        uint32_t at = entry_with(cache, (struct block_id){i});
        CHECK(kv_pool_holds(cache->pool, (struct block_id){i}, HOLD_CACHE) == (at != NONE));
        CHECK(at == NONE || (cache->entry[at].used && cache->entry[at].block == i));
        known += at != NONE;
    }
    for (uint32_t i = 0; i < cache->fresh; i++) {
        const struct entry *e = &cache->entry[i];
        if (!e->used) continue;
        struct key key = key_of(cache, e->salt, e->parent, e->tokens);
        CHECK(find(cache, &key) == i);
        CHECK(e->depth == (e->parent == NONE ? 0 : cache->entry[e->parent].depth + 1));
        CHECK(e->block != NONE || (e->child != NONE && e->reach > 0));
        CHECK(e->block == NONE || e->kept == kept_now(e));
        full += e->block != NONE;
        hollow += e->block == NONE;
        roots += e->parent == NONE;
        children += audit_children(cache, i);
    }
    CHECK(full == known && full == cache->stats.entries_count);
    CHECK(hollow == cache->stats.hollow_count && full + hollow <= cache->entries_max);
    CHECK(roots + children == full + hollow);
}
