/* What is asked of every block that is taken and dropped lies in one byte, so that those of a pool of millions
 * stay in the CPU's caches: which kinds of hold there are. How many more than one of each, and pins, are
 * in a record of their own, which is looked at only where the byte says that there is something in it.
 * Free blocks stand in a ring of their numbers, in the order in which they were freed; the bytes of
 * those that are next are fetched ahead.
 *
 * Blocks that are cached and parked are linked in a list. Those that are cached and not parked are in
 * the order of eviction, and pinned ones in neither. */
#include "kv/pool.h"

#include "common/mem.h"

enum state { FREE, RESERVED, ACTIVE, CACHED, TRANSFER, STATES_COUNT };
enum {
    HOLDS_MAX = UINT16_MAX, /* sequences and steps are thousands, at the most */
    PINS_MAX = UINT16_MAX,
    AHEAD = 32 /* blocks that are fetched before they are taken or dropped */
};

/* A block's byte: a bit for each kind that has a hold, and these. 0: free. */
enum {
    HELD = (1 << HOLD_KINDS) - 1,
    MORE = 1 << HOLD_KINDS, /* its record is not all 0 */
    PARKED = MORE << 1,
    MARKED = PARKED << 1
};
_Static_assert(MARKED <= UINT8_MAX, "a byte for each block");

struct more {
    uint16_t holds[HOLD_KINDS]; /* beyond the first */
    uint16_t pins;
    uint32_t sum; /* of all of these */
};

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
    uint8_t *block;        /* [blocks_count] */
    struct more *more;     /* [blocks_count] */
    struct link *link;     /* [blocks_count], then the head of the list */
};

static uint8_t held(enum hold kind)
{
    return (uint8_t)(1 << kind);
}

static enum state state_of(uint8_t block)
{
    if (block & (1 << HOLD_SEQUENCE | 1 << HOLD_STEP)) return ACTIVE;
    if (block & 1 << HOLD_RESERVE) return RESERVED;
    if (block & 1 << HOLD_TRANSFER) return TRANSFER;
    return block & 1 << HOLD_CACHE ? CACHED : FREE;
}

static uint32_t index_of(const struct kv_pool *pool, struct block_id id)
{
    CHECK(id.v < pool->blocks_count);
    return id.v;
}

/* ---- holds and pins ---- */

static uint32_t pins_of(const struct kv_pool *pool, uint32_t i)
{
    return pool->block[i] & MORE ? pool->more[i].pins : 0;
}

static uint32_t holds_of(const struct kv_pool *pool, uint32_t i, enum hold kind)
{
    if (!(pool->block[i] & held(kind))) return 0;
    return pool->block[i] & MORE ? 1u + pool->more[i].holds[kind] : 1;
}

/* One more, or one less, of what its record counts. */
static void note_more(struct kv_pool *pool, uint32_t i, bool added)
{
    struct more *m = &pool->more[i];
    m->sum += added ? 1 : -1u;
    pool->block[i] = (uint8_t)(m->sum > 0 ? pool->block[i] | MORE : pool->block[i] & ~MORE);
}

static void add_hold(struct kv_pool *pool, uint32_t i, enum hold kind)
{
    if (pool->block[i] & held(kind)) {
        CHECK(pool->more[i].holds[kind] < HOLDS_MAX - 1);
        pool->more[i].holds[kind]++;
        note_more(pool, i, true);
    } else {
        pool->block[i] |= held(kind);
    }
}

static void cut_hold(struct kv_pool *pool, uint32_t i, enum hold kind)
{
    CHECK(pool->block[i] & held(kind));
    if (pool->block[i] & MORE && pool->more[i].holds[kind] > 0) {
        pool->more[i].holds[kind]--;
        note_more(pool, i, false);
    } else {
        pool->block[i] &= (uint8_t)~held(kind);
    }
}

/* ---- where blocks wait ---- */

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

/* Out of where a cached block waits, and into it, by whether it is parked or pinned. */
static void leave_cached(struct kv_pool *pool, uint32_t i)
{
    if (pins_of(pool, i) > 0)
        pool->pinned_count--;
    else if (pool->block[i] & PARKED)
        unlink_parked(pool, i);
    else if (pool->order)
        evict_remove(pool->order, i);
}

static void enter_cached(struct kv_pool *pool, uint32_t i)
{
    if (pins_of(pool, i) > 0)
        pool->pinned_count++;
    else if (pool->block[i] & PARKED)
        link_parked(pool, i);
    else if (pool->order)
        evict_add(pool->order, i);
}

/* The holds of block i have changed: counts, ring and candidates follow. */
static void settle(struct kv_pool *pool, uint32_t i, enum state before)
{
    enum state after = state_of(pool->block[i]);
    if (after == before) return;
    pool->counts[before]--;
    if (before == CACHED) leave_cached(pool, i);
    if (after == FREE) {
        CHECK(!(pool->block[i] & (PARKED | MORE)));
        pool->block[i] = 0;
        *free_at(pool, pool->counts[FREE]) = i;
    } else if (after == CACHED) {
        if (pool->order) evict_released(pool->order, i);
        enter_cached(pool, i);
    }
    pool->counts[after]++;
}

/* ---- the pool ---- */

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
    pool->block = mem_table(blocks_count, sizeof *pool->block);
    pool->more = mem_table(blocks_count, sizeof *pool->more);
    pool->link = mem_table((size_t)blocks_count + 1, sizeof *pool->link);
    if (!pool->ring || !pool->block || !pool->more || !pool->link) {
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
    mem_free(pool->block);
    mem_free(pool->more);
    mem_free(pool->link);
    mem_free(pool);
}

enum err kv_pool_take(struct kv_pool *pool, enum hold kind, struct block_id *block)
{
    *block = BLOCK_NONE;
    if (pool->counts[FREE] == 0) return ERR_FULL;
    block->v = *free_at(pool, 0);
    if (pool->counts[FREE] > AHEAD) __builtin_prefetch(&pool->block[*free_at(pool, AHEAD)], 1);
    if (++pool->free_first == pool->blocks_count) pool->free_first = 0;
    pool->block[block->v] = held(kind);
    settle(pool, block->v, FREE);
    return OK;
}

void kv_pool_hold(struct kv_pool *pool, struct block_id block, enum hold kind)
{
    uint32_t i = index_of(pool, block);
    enum state before = state_of(pool->block[i]);
    CHECK(before != FREE);
    add_hold(pool, i, kind);
    settle(pool, i, before);
}

void kv_pool_drop(struct kv_pool *pool, struct block_id block, enum hold kind)
{
    uint32_t i = index_of(pool, block);
    enum state before = state_of(pool->block[i]);
    cut_hold(pool, i, kind);
    settle(pool, i, before);
}

static void fetch(const struct kv_pool *pool, struct block_id block)
{
    __builtin_prefetch(&pool->block[index_of(pool, block)], 1);
}

void kv_pool_drop_all(struct kv_pool *pool, const struct block_id *blocks, uint32_t blocks_count,
                      enum hold kind)
{
    for (uint32_t i = 0; i < blocks_count && i < AHEAD; i++)
        fetch(pool, blocks[i]);
    for (uint32_t i = 0; i < blocks_count; i++) {
        if (i + AHEAD < blocks_count) fetch(pool, blocks[i + AHEAD]);
        kv_pool_drop(pool, blocks[i], kind);
    }
}

void kv_pool_move(struct kv_pool *pool, struct block_id block, enum hold from, enum hold to)
{
    uint32_t i = index_of(pool, block);
    enum state before = state_of(pool->block[i]);
    cut_hold(pool, i, from);
    add_hold(pool, i, to);
    settle(pool, i, before);
}

uint32_t kv_pool_holds(const struct kv_pool *pool, struct block_id block, enum hold kind)
{
    return holds_of(pool, index_of(pool, block), kind);
}

uint32_t kv_pool_holds_all(const struct kv_pool *pool, struct block_id block)
{
    uint32_t sum = 0, i = index_of(pool, block);
    for (uint32_t kind = 0; kind < HOLD_KINDS; kind++)
        sum += holds_of(pool, i, kind);
    return sum;
}

void kv_pool_mark(struct kv_pool *pool, struct block_id block, bool marked)
{
    uint32_t i = index_of(pool, block);
    CHECK(pool->block[i] & HELD);
    pool->block[i] = (uint8_t)(marked ? pool->block[i] | MARKED : pool->block[i] & ~MARKED);
}

bool kv_pool_is_marked(const struct kv_pool *pool, struct block_id block)
{
    return pool->block[index_of(pool, block)] & MARKED;
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

static void set_parked(struct kv_pool *pool, struct block_id block, bool parked)
{
    uint32_t i = index_of(pool, block);
    bool cached = state_of(pool->block[i]) == CACHED;
    if (cached) leave_cached(pool, i);
    pool->block[i] = (uint8_t)(parked ? pool->block[i] | PARKED : pool->block[i] & ~PARKED);
    if (cached) enter_cached(pool, i);
}

void kv_pool_park(struct kv_pool *pool, struct block_id block)
{
    set_parked(pool, block, true);
}

void kv_pool_unpark(struct kv_pool *pool, struct block_id block)
{
    set_parked(pool, block, false);
}

static void add_pin(struct kv_pool *pool, uint32_t i, bool added)
{
    bool cached = state_of(pool->block[i]) == CACHED;
    if (cached) leave_cached(pool, i);
    pool->more[i].pins += added ? 1 : -1u;
    note_more(pool, i, added);
    if (cached) enter_cached(pool, i);
}

void kv_pool_pin(struct kv_pool *pool, struct block_id block)
{
    uint32_t i = index_of(pool, block);
    CHECK(pool->block[i] & held(HOLD_CACHE) && pins_of(pool, i) < PINS_MAX);
    add_pin(pool, i, true);
}

void kv_pool_unpin(struct kv_pool *pool, struct block_id block)
{
    uint32_t i = index_of(pool, block);
    CHECK(pins_of(pool, i) > 0);
    add_pin(pool, i, false);
}

uint32_t kv_pool_pins(const struct kv_pool *pool, struct block_id block)
{
    return pins_of(pool, index_of(pool, block));
}

/* The ring has each free block once: as many, all of them free, and their numbers' sums agree. */
static void audit_free(const struct kv_pool *pool)
{
    uint64_t sum = 0, squares = 0;
    for (uint32_t n = 0; n < pool->counts[FREE]; n++) {
        uint64_t i = *free_at(pool, n);
        CHECK(i < pool->blocks_count && state_of(pool->block[i]) == FREE);
        sum += i;
        squares += i * i;
    }
    for (uint64_t i = 0; i < pool->blocks_count; i++) {
        if (state_of(pool->block[i]) != FREE) continue;
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
        const struct link *l = &pool->link[i];
        CHECK(pool->link[l->next].previous == i && pool->link[l->previous].next == i);
        CHECK(state_of(pool->block[i]) == CACHED && pool->block[i] & PARKED);
        CHECK(pins_of(pool, i) == 0);
        count++;
    }
    return count;
}

/* A free block has nothing, and the byte says of the record whether there is something in it. */
static void audit_byte(const struct kv_pool *pool, uint32_t i)
{
    const struct more *m = &pool->more[i];
    uint8_t block = pool->block[i];
    uint32_t sum = m->pins;
    for (uint32_t kind = 0; kind < HOLD_KINDS; kind++) {
        CHECK(m->holds[kind] == 0 || block & held(kind));
        sum += m->holds[kind];
    }
    CHECK(m->sum == sum && (block & MORE) == (sum > 0 ? MORE : 0));
    CHECK(block & HELD || block == 0);
}

void kv_pool_audit(const struct kv_pool *pool)
{
    uint32_t counts[STATES_COUNT] = {0}, sum = 0, parked = 0, pinned = 0, candidates = 0;
    for (uint32_t i = 0; i < pool->blocks_count; i++) {
        bool cached = state_of(pool->block[i]) == CACHED, is_pinned = pins_of(pool, i) > 0;
        bool is_parked = pool->block[i] & PARKED, candidate = cached && !is_parked && !is_pinned;
        audit_byte(pool, i);
        counts[state_of(pool->block[i])]++;
        pinned += cached && is_pinned;
        parked += cached && is_parked && !is_pinned;
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
