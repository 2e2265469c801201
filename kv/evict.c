/* Each tenant's candidates are in a heap by (rank, turn); the place of each block in it is kept, so that
 * one that is used again leaves at once. s3fifo has a heap for each of its queues: first in is first out,
 * but a block with cached children cannot leave, so the head is the oldest that can.
 *
 * A tenant's heap may have all blocks or none, so heaps are made of chunks that they share: as many as
 * all blocks fill, and one more for each heap, whose last one is not full. */
#include "kv/evict.h"

#include "common/geometry.h"
#include "common/mem.h"

#define NONE EVICT_NONE

enum { CHILDREN = 4 };                           /* of a place in a heap */
enum queue { SMALL, SPARE, MAIN, QUEUES_COUNT }; /* MAIN: s3fifo only */

struct known {
    struct evict_view view;
    uint64_t rank, hash, used_ns;
    uint32_t place; /* 1 + index in its queue's heap, 0: no candidate */
    uint8_t slot;   /* its tenant's */
    uint8_t queue, frequency;
    bool spare; /* whatever its queue, it waits in SPARE */
};

/* A place in a heap, with what is compared, so that only the blocks that move are touched. */
struct cell {
    uint64_t rank, turn;
    uint32_t block;
};

struct heap {
    struct cell **chunk; /* [chunks of a heap with all blocks] */
    uint32_t count;      /* of the candidates */
    uint32_t all;        /* blocks of the queue, candidates or not */
};

struct tenant {
    struct heap queue[QUEUES_COUNT];
    uint64_t level;
};

/* s3fifo: what left the small queue, by hash; a later one of the same slot replaces it. */
struct ghost {
    uint64_t hash, number;
};

struct evict {
    struct evict_config config;
    struct kv_shares shares;
    struct tenant tenant[KV_SHARES_MAX]; /* by slot */
    uint32_t candidates_count, known_count;
    uint32_t chunk_shift;                           /* log2 of the cells of one */
    struct cell *chunks, **directory, **free_chunk; /* all of them; of all heaps; a stack */
    uint32_t free_chunks_count;
    struct ghost *ghost; /* [ghost_mask + 1] */
    uint64_t ghost_mask, ghosts_count;
    uint64_t turn, now_ns;
    struct known known[]; /* by block */
};

uint64_t evict_cost(uint32_t depth)
{
    return EVICT_COST_UNIT +
           (uint64_t)depth * BLOCK_TOKENS * EVICT_COST_UNIT / EVICT_COST_EVEN_TOKENS;
}

uint64_t evict_rank(enum evict_policy policy, const struct evict_view *view)
{
    switch (policy) {
    case EVICT_LFU: return view->level + view->uses;
    case EVICT_COST: return view->level + view->uses * evict_cost(view->depth);
    default: return view->turn;
    }
}

/* ---- the heap ---- */

static bool before(const struct cell *a, const struct cell *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->turn < b->turn;
}

static struct heap *heap_of(struct evict *x, uint32_t block)
{
    const struct known *k = &x->known[block];
    return &x->tenant[k->slot].queue[k->spare ? SPARE : k->queue];
}

static struct cell *cell_at(const struct evict *x, const struct heap *h, uint64_t at)
{
    return &h->chunk[at >> x->chunk_shift][at & ((1u << x->chunk_shift) - 1)];
}

static uint32_t first_of(const struct evict *x, const struct heap *h)
{
    return h->count > 0 ? cell_at(x, h, 0)->block : NONE;
}

static void put(struct evict *x, const struct heap *h, uint64_t at, struct cell cell)
{
    *cell_at(x, h, at) = cell;
    x->known[cell.block].place = (uint32_t)at + 1;
}

static void rise(struct evict *x, const struct heap *h, uint64_t at, struct cell cell)
{
    while (at > 0) {
        const struct cell *above = cell_at(x, h, (at - 1) / CHILDREN);
        if (!before(&cell, above)) break;
        put(x, h, at, *above);
        at = (at - 1) / CHILDREN;
    }
    put(x, h, at, cell);
}

static void sink(struct evict *x, const struct heap *h, uint64_t at, struct cell cell)
{
    for (uint64_t child; (child = CHILDREN * at + 1) < h->count;) {
        uint64_t end = child + CHILDREN < h->count ? child + CHILDREN : h->count, least = child;
        const struct cell *first = cell_at(x, h, child);
        for (uint64_t i = child + 1; i < end; i++) {
            const struct cell *c = cell_at(x, h, i);
            if (before(c, first)) {
                first = c;
                least = i;
            }
        }
        if (!before(first, &cell)) break;
        put(x, h, at, *first);
        at = least;
    }
    put(x, h, at, cell);
}

/* Whether the cell behind so many is the first of a chunk. */
static bool begins_chunk(const struct evict *x, uint32_t count)
{
    return (count & ((1u << x->chunk_shift) - 1)) == 0;
}

void evict_add(struct evict *x, uint32_t block)
{
    struct known *k = &x->known[block];
    CHECK(k->place == 0);
    if (x->config.policy != EVICT_S3FIFO) k->rank = evict_rank(x->config.policy, &k->view);
    struct heap *h = heap_of(x, block);
    if (begins_chunk(x, h->count)) {
        CHECK(x->free_chunks_count > 0);
        h->chunk[h->count >> x->chunk_shift] = x->free_chunk[--x->free_chunks_count];
    }
    rise(x, h, h->count++, (struct cell){k->spare ? k->view.turn : k->rank, k->view.turn, block});
    x->shares.share[k->slot].candidates++;
    x->candidates_count++;
}

void evict_remove(struct evict *x, uint32_t block)
{
    struct known *k = &x->known[block];
    struct heap *h = heap_of(x, block);
    CHECK(k->place > 0);
    uint32_t at = k->place - 1;
    struct cell last = *cell_at(x, h, --h->count);
    k->place = 0;
    x->shares.share[k->slot].candidates--;
    x->candidates_count--;
    if (begins_chunk(x, h->count))
        x->free_chunk[x->free_chunks_count++] = h->chunk[h->count >> x->chunk_shift];
    if (last.block == block) return;
    if (at > 0 && before(&last, cell_at(x, h, (at - 1) / CHILDREN)))
        rise(x, h, at, last);
    else
        sink(x, h, at, last);
}

/* ---- what is known ---- */

static bool new_ghosts(struct evict *x, uint32_t blocks_count)
{
    uint64_t ghosts_count = 16;
    if (x->config.policy != EVICT_S3FIFO) return true;
    while (ghosts_count < blocks_count)
        ghosts_count *= 2;
    x->ghost_mask = ghosts_count - 1;
    x->ghost = mem_array(ghosts_count, sizeof *x->ghost);
    return x->ghost;
}

/* Chunks of about the square root of all blocks, so that neither they nor their directories are many. */
static bool new_heaps(struct evict *x, uint32_t blocks_count)
{
    uint32_t queues = x->config.policy == EVICT_S3FIFO ? QUEUES_COUNT : MAIN;
    x->chunk_shift = 4;
    while (x->chunk_shift < 16 && 1ull << (2 * x->chunk_shift) < blocks_count)
        x->chunk_shift++;
    uint32_t chunk = 1u << x->chunk_shift;
    uint32_t of_heap = (uint32_t)(((uint64_t)blocks_count + chunk - 1) >> x->chunk_shift);
    uint32_t heaps = queues * KV_SHARES_MAX, chunks_count = of_heap + heaps;
    if (blocks_count < heaps) chunks_count = of_heap + blocks_count;
    x->chunks = mem_array((size_t)chunks_count, (size_t)chunk * sizeof *x->chunks);
    x->directory = mem_array((size_t)heaps * of_heap, sizeof *x->directory);
    x->free_chunk = mem_array(chunks_count, sizeof *x->free_chunk);
    if (!x->chunks || !x->directory || !x->free_chunk) return false;
    for (uint32_t i = 0; i < chunks_count; i++)
        x->free_chunk[x->free_chunks_count++] = x->chunks + ((size_t)i << x->chunk_shift);
    for (uint32_t i = 0; i < heaps; i++)
        x->tenant[i % KV_SHARES_MAX].queue[i / KV_SHARES_MAX].chunk =
            x->directory + (size_t)i * of_heap;
    return true;
}

enum err evict_new(struct evict **out, const struct evict_config *config, uint32_t blocks_count)
{
    *out = NULL;
    if (config->policy == EVICT_TTL && config->ttl_ns == 0)
        return err_set(ERR_INVALID, "the policy ttl needs a time above 0");
    struct evict *x = mem_new(sizeof *x + (size_t)blocks_count * sizeof x->known[0]);
    if (!x) return ERR_MEMORY;
    x->config = *config;
    if (!new_heaps(x, blocks_count) || !new_ghosts(x, blocks_count)) {
        evict_free(x);
        return ERR_MEMORY;
    }
    *out = x;
    return OK;
}

void evict_free(struct evict *x)
{
    if (!x) return;
    mem_free(x->chunks);
    mem_free(x->directory);
    mem_free(x->free_chunk);
    mem_free(x->ghost);
    mem_free(x);
}

void evict_tick(struct evict *x, uint64_t now_ns)
{
    x->now_ns = now_ns;
}

/* Whether the hash is among the last that left the small queue: as many as the main one has blocks. */
static bool ghost_take(struct evict *x, uint64_t hash)
{
    struct ghost *g = &x->ghost[hash & x->ghost_mask];
    if (g->number == 0 || g->hash != hash) return false;
    bool late = x->ghosts_count - g->number >= x->known_count;
    g->number = 0;
    return !late;
}

static void enter(struct evict *x, struct known *k, enum queue queue)
{
    k->queue = (uint8_t)queue;
    k->rank = ++x->turn;
    x->tenant[k->slot].queue[queue].all++;
}

uint32_t evict_tenant(struct evict *x, uint64_t tenant, uint32_t weight)
{
    uint32_t slot = kv_shares_slot(&x->shares, tenant, weight);
    if (evict_held(x, slot) == 0) x->tenant[slot].level = 0;
    return slot;
}

uint32_t evict_held(const struct evict *x, uint32_t slot)
{
    return x->shares.share[slot].held;
}

uint32_t evict_tenants(const struct evict *x, uint32_t *most)
{
    *most = 0;
    for (uint32_t i = 0; i < x->shares.used_count; i++) {
        uint32_t held = evict_held(x, x->shares.used[i]);
        if (held > *most) *most = held;
    }
    return x->shares.used_count;
}

void evict_known(struct evict *x, uint32_t block, uint64_t hash, uint32_t depth, uint32_t slot)
{
    struct known *k = &x->known[block];
    CHECK(k->place == 0 && slot < KV_SHARES_MAX);
    *k = (struct known){
        .view = {.turn = x->turn, .level = x->tenant[slot].level, .uses = 1, .depth = depth},
        .hash = hash,
        .used_ns = x->now_ns,
        .slot = (uint8_t)slot,
    };
    bool back = x->ghost && ghost_take(x, hash);
    kv_shares_add(&x->shares, slot);
    x->known_count++;
    enter(x, k, back ? MAIN : SMALL);
}

void evict_spare(struct evict *x, uint32_t block, bool spare)
{
    CHECK(x->known[block].place == 0);
    x->known[block].spare = spare;
}

void evict_used(struct evict *x, uint32_t block)
{
    struct known *k = &x->known[block];
    k->view.level = x->tenant[k->slot].level;
    if (k->view.uses < EVICT_USES_MAX) k->view.uses++;
    if (k->frequency < EVICT_FREQUENCY_MAX) k->frequency++;
}

void evict_released(struct evict *x, uint32_t block)
{
    x->known[block].view.turn = ++x->turn;
    x->known[block].used_ns = x->now_ns;
}

uint64_t evict_used_ns(const struct evict *x, uint32_t block)
{
    return x->known[block].used_ns;
}

void evict_gone(struct evict *x, uint32_t block)
{
    struct known *k = &x->known[block];
    struct tenant *t = &x->tenant[k->slot];
    CHECK(k->place == 0);
    t->queue[k->queue].all--;
    kv_shares_drop(&x->shares, k->slot);
    x->known_count--;
    if (k->spare) return; /* its place was worth nothing */
    if (x->config.policy != EVICT_S3FIFO) {
        if (k->rank > t->level) t->level = k->rank;
    } else if (k->queue == SMALL) {
        x->ghost[k->hash & x->ghost_mask] = (struct ghost){k->hash, ++x->ghosts_count};
    }
}

/* ---- the choice ---- */

/* To the end of a queue, as one that came just now. */
static void requeue(struct evict *x, uint32_t block, enum queue queue)
{
    struct known *k = &x->known[block];
    evict_remove(x, block);
    heap_of(x, block)->all--;
    enter(x, k, queue);
    evict_add(x, block);
}

static uint32_t pick_s3fifo(struct evict *x, struct tenant *t)
{
    struct heap *small = &t->queue[SMALL], *rest = &t->queue[MAIN];
    while (small->count > 0 || rest->count > 0) {
        bool too_large =
            (uint64_t)small->all * EVICT_SMALL_SHARE > (uint64_t)small->all + rest->all;
        bool from_small = small->count > 0 && (too_large || rest->count == 0);
        uint32_t block = first_of(x, from_small ? small : rest);
        struct known *k = &x->known[block];
        if (from_small ? k->frequency <= 1 : k->frequency == 0) return block;
        k->frequency = from_small ? 0 : k->frequency - 1;
        requeue(x, block, MAIN);
    }
    return NONE;
}

static uint32_t pick_wanted(struct evict *x, uint32_t slot)
{
    struct tenant *t = &x->tenant[slot];
    return x->config.policy == EVICT_S3FIFO ? pick_s3fifo(x, t) : first_of(x, &t->queue[SMALL]);
}

uint32_t evict_pick_of(struct evict *x, uint32_t slot)
{
    uint32_t spare = first_of(x, &x->tenant[slot].queue[SPARE]);
    return spare == NONE ? pick_wanted(x, slot) : spare;
}

uint32_t evict_pick(struct evict *x)
{
    uint32_t most = kv_shares_most(&x->shares);
    return most == KV_SHARES_MAX ? NONE : evict_pick_of(x, most);
}

uint32_t evict_pick_wanted(struct evict *x)
{
    uint32_t most = kv_shares_most(&x->shares);
    return most == KV_SHARES_MAX ? NONE : pick_wanted(x, most);
}

uint32_t evict_expired(const struct evict *x)
{
    if (x->config.policy != EVICT_TTL) return NONE;
    for (uint32_t i = 0; i < 2 * x->shares.used_count; i++) {
        const struct tenant *t = &x->tenant[x->shares.used[i / 2]];
        uint32_t first = first_of(x, &t->queue[i % 2 == 0 ? SMALL : SPARE]);
        if (first == NONE || x->now_ns < x->known[first].used_ns) continue;
        if (x->now_ns - x->known[first].used_ns >= x->config.ttl_ns) return first;
    }
    return NONE;
}

bool evict_is_candidate(const struct evict *x, uint32_t block)
{
    return x->known[block].place > 0;
}

uint32_t evict_candidates_count(const struct evict *x)
{
    return x->candidates_count;
}
