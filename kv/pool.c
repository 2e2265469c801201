/* What is asked of every block that is taken and dropped lies in 16 bytes, so that a pool of millions costs
 * one access to memory a block, and none that has to be waited for: free blocks stand in a ring of their
 * numbers, in the order in which they were freed, and those that are next are fetched ahead.
 *
 * Blocks that are cached and parked are linked in a list. Those that are cached and not parked are in
 * the order of eviction, and pinned ones in neither. */
#include "kv/pool.h"

#include "common/mem.h"

enum state { FREE, RESERVED, ACTIVE, CACHED, TRANSFER, STATES_COUNT };
enum {
    HOLDS_MAX = UINT16_MAX, /* sequences and steps are thousands, at the most */
    PINS_MAX = INT16_MAX,
    AHEAD = 32 /* blocks that are fetched before they are taken or dropped */
};

struct block {
    uint16_t holds[HOLD_KINDS];
    uint16_t pins : 15;
    uint16_t parked : 1;
    uint32_t generation;
};
_Static_assert(sizeof(struct block) == 16, "four blocks in a line of cache");

/* Of the list of parked blocks; itself: not in it. */
struct link {
    uint32_t next, previous;
};

struct kv_pool {
    uint32_t blocks_count;
    uint32_t counts[STATES_COUNT];
    uint32_t pinned_count; /* in state cached */
    struct evict *order;   /* NULL: nothing is evicted */
    uint32_t free_first;   /* of counts[FREE] in ring */
    uint32_t *ring;        /* [blocks_count] */
    struct link *link;     /* [blocks_count], then the head of the list */
    struct block *block;   /* [blocks_count] */
};

static enum state state_of(const struct block *b)
{
    if (b->holds[HOLD_SEQUENCE] | b->holds[HOLD_STEP]) return ACTIVE;
    if (b->holds[HOLD_RESERVE]) return RESERVED;
    if (b->holds[HOLD_TRANSFER]) return TRANSFER;
    return b->holds[HOLD_CACHE] ? CACHED : FREE;
}

static void unlink_parked(struct kv_pool *pool, uint32_t i)
{
    struct link *l = &pool->link[i];
    pool->link[l->previous].next = l->next;
    pool->link[l->next].previous = l->previous;
    l->next = l->previous = i;
}

static void link_parked(struct kv_pool *pool, uint32_t i)
{
    uint32_t head = pool->blocks_count, last = pool->link[head].previous;
    pool->link[i] = (struct link){.next = head, .previous = last};
    pool->link[last].next = i;
    pool->link[head].previous = i;
}

/* The free block of this place in the ring, counted from the one that is taken next. */
static uint32_t *free_at(const struct kv_pool *pool, uint32_t n)
{
    uint64_t at = (uint64_t)pool->free_first + n;
    return &pool->ring[at < pool->blocks_count ? at : at - pool->blocks_count];
}

static struct block *block_at(const struct kv_pool *pool, struct block_id id)
{
    CHECK(id.v < pool->blocks_count);
    return (struct block *)&pool->block[id.v];
}

/* Out of where a cached block waits, and into it, by its parked and pins. */
static void leave_cached(struct kv_pool *pool, uint32_t i)
{
    const struct block *b = &pool->block[i];
    if (b->pins > 0)
        pool->pinned_count--;
    else if (b->parked)
        unlink_parked(pool, i);
    else if (pool->order)
        evict_remove(pool->order, i);
}

static void enter_cached(struct kv_pool *pool, uint32_t i)
{
    const struct block *b = &pool->block[i];
    if (b->pins > 0)
        pool->pinned_count++;
    else if (b->parked)
        link_parked(pool, i);
    else if (pool->order)
        evict_add(pool->order, i);
}

/* The holds of block i have changed: counts, rings and candidates follow. */
static void settle(struct kv_pool *pool, uint32_t i, enum state before)
{
    struct block *b = &pool->block[i];
    enum state after = state_of(b);
    if (after == before) return;
    pool->counts[before]--;
    if (before == CACHED) leave_cached(pool, i);
    if (after == FREE) {
        CHECK(!b->parked && b->pins == 0);
        b->generation++;
        *free_at(pool, pool->counts[FREE]) = i;
    } else if (after == CACHED) {
        if (pool->order) evict_released(pool->order, i);
        enter_cached(pool, i);
    }
    pool->counts[after]++;
}

enum err kv_pool_new(struct kv_pool **out, uint32_t blocks_count)
{
    *out = NULL;
    if (blocks_count == 0 || blocks_count == UINT32_MAX)
        return err_set(ERR_INVALID, "a pool of %u blocks", blocks_count);
    struct kv_pool *pool = mem_new(sizeof *pool);
    if (!pool) return ERR_MEMORY;
    pool->blocks_count = blocks_count;
    pool->counts[FREE] = blocks_count;
    pool->ring = mem_table(blocks_count, sizeof *pool->ring);
    pool->link = mem_table((size_t)blocks_count + 1, sizeof *pool->link);
    pool->block = mem_table(blocks_count, sizeof *pool->block);
    if (!pool->ring || !pool->link || !pool->block) {
        kv_pool_free(pool);
        return ERR_MEMORY;
    }
    for (uint32_t i = 0; i <= blocks_count; i++)
        pool->link[i] = (struct link){i, i};
    for (uint32_t i = 0; i < blocks_count; i++)
        pool->ring[i] = i;
    *out = pool;
    return OK;
}

void kv_pool_free(struct kv_pool *pool)
{
    if (!pool) return;
    mem_free(pool->ring);
    mem_free(pool->link);
    mem_free(pool->block);
    mem_free(pool);
}

enum err kv_pool_take(struct kv_pool *pool, enum hold kind, struct block_id *block)
{
    *block = BLOCK_NONE;
    if (pool->counts[FREE] == 0) return ERR_FULL;
    block->v = *free_at(pool, 0);
    if (pool->counts[FREE] > AHEAD) __builtin_prefetch(&pool->block[*free_at(pool, AHEAD)], 1);
    if (++pool->free_first == pool->blocks_count) pool->free_first = 0;
    pool->block[block->v].holds[kind] = 1;
    settle(pool, block->v, FREE);
    return OK;
}

void kv_pool_hold(struct kv_pool *pool, struct block_id block, enum hold kind)
{
    struct block *b = block_at(pool, block);
    enum state before = state_of(b);
    CHECK(before != FREE);
    CHECK(b->holds[kind] < HOLDS_MAX);
    b->holds[kind]++;
    settle(pool, block.v, before);
}

void kv_pool_drop(struct kv_pool *pool, struct block_id block, enum hold kind)
{
    struct block *b = block_at(pool, block);
    enum state before = state_of(b);
    CHECK(b->holds[kind] > 0);
    b->holds[kind]--;
    settle(pool, block.v, before);
}

void kv_pool_drop_all(struct kv_pool *pool, const struct block_id *blocks, uint32_t blocks_count,
                      enum hold kind)
{
    for (uint32_t i = 0; i < blocks_count; i++) {
        if (i + AHEAD < blocks_count) __builtin_prefetch(block_at(pool, blocks[i + AHEAD]), 1);
        kv_pool_drop(pool, blocks[i], kind);
    }
}

void kv_pool_move(struct kv_pool *pool, struct block_id block, enum hold from, enum hold to)
{
    struct block *b = block_at(pool, block);
    enum state before = state_of(b);
    CHECK(b->holds[from] > 0 && b->holds[to] < HOLDS_MAX);
    b->holds[from]--;
    b->holds[to]++;
    settle(pool, block.v, before);
}

uint32_t kv_pool_holds(const struct kv_pool *pool, struct block_id block, enum hold kind)
{
    return block_at(pool, block)->holds[kind];
}

uint32_t kv_pool_holds_all(const struct kv_pool *pool, struct block_id block)
{
    const struct block *b = block_at(pool, block);
    uint32_t sum = 0;
    for (uint32_t kind = 0; kind < HOLD_KINDS; kind++)
        sum += b->holds[kind];
    return sum;
}

uint32_t kv_pool_generation(const struct kv_pool *pool, struct block_id block)
{
    return block_at(pool, block)->generation;
}

struct kv_pool_counts kv_pool_counts(const struct kv_pool *pool)
{
    const uint32_t *n = pool->counts;
    return (struct kv_pool_counts){pool->blocks_count, n[FREE],     n[RESERVED],       n[ACTIVE],
                                   n[CACHED],          n[TRANSFER], pool->pinned_count};
}

void kv_pool_order(struct kv_pool *pool, struct evict *order)
{
    CHECK(pool->counts[CACHED] == 0);
    pool->order = order;
}

struct block_id kv_pool_parked_first(const struct kv_pool *pool)
{
    uint32_t head = pool->blocks_count, first = pool->link[head].next;
    return first == head ? BLOCK_NONE : (struct block_id){first};
}

static void set_kept(struct kv_pool *pool, struct block_id block, bool parked, uint32_t pins)
{
    struct block *b = block_at(pool, block);
    bool cached = state_of(b) == CACHED;
    if (cached) leave_cached(pool, block.v);
    b->parked = parked;
    b->pins = pins & PINS_MAX;
    if (cached) enter_cached(pool, block.v);
}

void kv_pool_park(struct kv_pool *pool, struct block_id block)
{
    set_kept(pool, block, true, block_at(pool, block)->pins);
}

void kv_pool_unpark(struct kv_pool *pool, struct block_id block)
{
    set_kept(pool, block, false, block_at(pool, block)->pins);
}

void kv_pool_pin(struct kv_pool *pool, struct block_id block)
{
    const struct block *b = block_at(pool, block);
    CHECK(b->holds[HOLD_CACHE] > 0 && b->pins < PINS_MAX);
    set_kept(pool, block, b->parked, b->pins + 1);
}

void kv_pool_unpin(struct kv_pool *pool, struct block_id block)
{
    const struct block *b = block_at(pool, block);
    CHECK(b->pins > 0);
    set_kept(pool, block, b->parked, b->pins - 1);
}

uint32_t kv_pool_pins(const struct kv_pool *pool, struct block_id block)
{
    return block_at(pool, block)->pins;
}

/* The ring has each free block once: as many, all of them free, and their numbers' sums agree. */
static void audit_free(const struct kv_pool *pool)
{
    uint64_t sum = 0, squares = 0;
    for (uint32_t n = 0; n < pool->counts[FREE]; n++) {
        uint64_t i = *free_at(pool, n);
        CHECK(i < pool->blocks_count && state_of(&pool->block[i]) == FREE);
        sum += i;
        squares += i * i;
    }
    for (uint64_t i = 0; i < pool->blocks_count; i++) {
        if (state_of(&pool->block[i]) != FREE) continue;
        sum -= i;
        squares -= i * i;
    }
    CHECK(sum == 0 && squares == 0);
}

static uint32_t count_parked(const struct kv_pool *pool)
{
    uint32_t count = 0, head = pool->blocks_count;
    for (uint32_t i = pool->link[head].next; i != head; i = pool->link[i].next) {
        CHECK(i < pool->blocks_count && count < pool->blocks_count);
        const struct block *b = &pool->block[i];
        const struct link *l = &pool->link[i];
        CHECK(pool->link[l->next].previous == i && pool->link[l->previous].next == i);
        CHECK(state_of(b) == CACHED && b->pins == 0 && b->parked);
        count++;
    }
    return count;
}

void kv_pool_audit(const struct kv_pool *pool)
{
    uint32_t counts[STATES_COUNT] = {0}, sum = 0, parked = 0, pinned = 0, candidates = 0;
    for (uint32_t i = 0; i < pool->blocks_count; i++) {
        const struct block *b = &pool->block[i];
        bool cached = state_of(b) == CACHED, candidate = cached && !b->parked && b->pins == 0;
        counts[state_of(b)]++;
        pinned += cached && b->pins > 0;
        parked += cached && b->parked && b->pins == 0;
        candidates += candidate;
        if (pool->order) CHECK(evict_is_candidate(pool->order, i) == candidate);
    }
    for (uint32_t s = 0; s < STATES_COUNT; s++) {
        CHECK(counts[s] == pool->counts[s]);
        sum += counts[s];
    }
    CHECK(sum == pool->blocks_count && pinned == pool->pinned_count);
    CHECK(count_parked(pool) == parked);
    audit_free(pool);
    if (pool->order) CHECK(evict_candidates_count(pool->order) == candidates);
}
