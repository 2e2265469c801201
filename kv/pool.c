/* Every block is in at most one of two rings, linked by block number: the free ones (taken at the front,
 * put back at the end) and those that are cached and parked. The heads are slots behind the last block.
 * Those that are cached and not parked are in the order of eviction; pinned ones in none of them. */
#include "kv/pool.h"

#include "common/mem.h"

enum state { FREE, RESERVED, ACTIVE, CACHED, TRANSFER, STATES_COUNT };
enum ring { RING_FREE, RING_PARKED, RINGS_COUNT };

struct block {
    uint32_t holds[HOLD_KINDS];
    uint32_t generation;
    uint32_t next, previous; /* itself: in no ring */
    uint32_t pins;
    bool parked;
};

struct kv_pool {
    uint32_t blocks_count;
    uint32_t counts[STATES_COUNT];
    uint32_t pinned_count; /* in state cached */
    struct evict *order;   /* NULL: nothing is evicted */
    struct block block[];  /* blocks_count, then the heads of the rings */
};

static enum state state_of(const struct block *b)
{
    if (b->holds[HOLD_SEQUENCE] | b->holds[HOLD_STEP]) return ACTIVE;
    if (b->holds[HOLD_RESERVE]) return RESERVED;
    if (b->holds[HOLD_TRANSFER]) return TRANSFER;
    return b->holds[HOLD_CACHE] ? CACHED : FREE;
}

static void unlink_block(struct kv_pool *pool, uint32_t i)
{
    struct block *b = &pool->block[i];
    pool->block[b->previous].next = b->next;
    pool->block[b->next].previous = b->previous;
    b->next = b->previous = i;
}

static void link_before(struct kv_pool *pool, uint32_t place, uint32_t i)
{
    struct block *b = &pool->block[i];
    b->next = place;
    b->previous = pool->block[place].previous;
    pool->block[b->previous].next = i;
    pool->block[place].previous = i;
}

static uint32_t ring_head(const struct kv_pool *pool, enum ring ring)
{
    return pool->blocks_count + ring;
}

static struct block_id ring_first(const struct kv_pool *pool, enum ring ring)
{
    uint32_t head = ring_head(pool, ring), first = pool->block[head].next;
    return first == head ? BLOCK_NONE : (struct block_id){first};
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
        unlink_block(pool, i);
    else if (pool->order)
        evict_remove(pool->order, i);
}

static void enter_cached(struct kv_pool *pool, uint32_t i)
{
    const struct block *b = &pool->block[i];
    if (b->pins > 0)
        pool->pinned_count++;
    else if (b->parked)
        link_before(pool, ring_head(pool, RING_PARKED), i);
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
    pool->counts[after]++;
    if (before == FREE) unlink_block(pool, i);
    if (before == CACHED) leave_cached(pool, i);
    if (after == FREE) {
        CHECK(!b->parked && b->pins == 0);
        b->generation++;
        link_before(pool, ring_head(pool, RING_FREE), i);
    } else if (after == CACHED) {
        if (pool->order) evict_released(pool->order, i);
        enter_cached(pool, i);
    }
}

enum err kv_pool_new(struct kv_pool **out, uint32_t blocks_count)
{
    *out = NULL;
    if (blocks_count == 0 || blocks_count > UINT32_MAX - RINGS_COUNT - 1)
        return err_set(ERR_INVALID, "a pool of %u blocks", blocks_count);
    size_t slots_count = (size_t)blocks_count + RINGS_COUNT;
    struct kv_pool *pool = mem_new(sizeof *pool + slots_count * sizeof pool->block[0]);
    if (!pool) return ERR_MEMORY;
    pool->blocks_count = blocks_count;
    pool->counts[FREE] = blocks_count;
    for (uint32_t i = 0; i < slots_count; i++)
        pool->block[i].next = pool->block[i].previous = i;
    for (uint32_t i = 0; i < blocks_count; i++)
        link_before(pool, ring_head(pool, RING_FREE), i);
    *out = pool;
    return OK;
}

void kv_pool_free(struct kv_pool *pool)
{
    mem_free(pool);
}

enum err kv_pool_take(struct kv_pool *pool, enum hold kind, struct block_id *block)
{
    *block = ring_first(pool, RING_FREE);
    if (block->v == BLOCK_NONE.v) return ERR_FULL;
    pool->block[block->v].holds[kind] = 1;
    settle(pool, block->v, FREE);
    return OK;
}

void kv_pool_hold(struct kv_pool *pool, struct block_id block, enum hold kind)
{
    struct block *b = block_at(pool, block);
    enum state before = state_of(b);
    CHECK(before != FREE);
    CHECK(b->holds[kind] < UINT32_MAX);
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

void kv_pool_move(struct kv_pool *pool, struct block_id block, enum hold from, enum hold to)
{
    struct block *b = block_at(pool, block);
    enum state before = state_of(b);
    CHECK(b->holds[from] > 0);
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
    return ring_first(pool, RING_PARKED);
}

static void set_kept(struct kv_pool *pool, struct block_id block, bool parked, uint32_t pins)
{
    struct block *b = block_at(pool, block);
    bool cached = state_of(b) == CACHED;
    if (cached) leave_cached(pool, block.v);
    b->parked = parked;
    b->pins = pins;
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
    CHECK(b->holds[HOLD_CACHE] > 0 && b->pins < UINT32_MAX);
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

static uint32_t ring_count(const struct kv_pool *pool, enum ring ring, enum state state)
{
    uint32_t count = 0, head = ring_head(pool, ring);
    for (uint32_t i = pool->block[head].next; i != head; i = pool->block[i].next) {
        const struct block *b = &pool->block[i];
        CHECK(i < pool->blocks_count && count < pool->blocks_count);
        CHECK(pool->block[b->next].previous == i && pool->block[b->previous].next == i);
        CHECK(state_of(b) == state);
        CHECK(b->pins == 0 && b->parked == (ring == RING_PARKED));
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
    CHECK(ring_count(pool, RING_FREE, FREE) == counts[FREE]);
    CHECK(ring_count(pool, RING_PARKED, CACHED) == parked);
    if (pool->order) CHECK(evict_candidates_count(pool->order) == candidates);
}
