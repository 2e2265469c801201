/* Candidates are in a binary heap by (rank, turn); the place of each block in it is kept, so that one
 * that is used again leaves at once. s3fifo has a heap for each of its queues: first in is first out,
 * but a block with cached children cannot leave, so the head is the oldest that can. */
#include "kv/evict.h"

#include "common/geometry.h"
#include "common/mem.h"

enum queue { SMALL, MAIN, QUEUES_COUNT }; /* all policies but s3fifo: SMALL only */

struct known {
    struct evict_view view;
    uint64_t rank, hash, used_ns;
    uint32_t place; /* 1 + index in its queue's heap, 0: no candidate */
    uint8_t queue, frequency;
};

struct heads { /* of one queue */
    uint32_t *block;
    uint32_t count; /* of the candidates */
    uint32_t all;   /* blocks of the queue, candidates or not */
};

/* s3fifo: what left the small queue, by hash; a later one of the same slot replaces it. */
struct ghost {
    uint64_t hash, number;
};

struct evict {
    struct evict_config config;
    struct heads queue[QUEUES_COUNT];
    struct ghost *ghost; /* [ghost_mask + 1] */
    uint64_t ghost_mask, ghosts_count;
    uint64_t turn, level, now_ns;
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

static bool before(const struct evict *x, uint32_t a, uint32_t b)
{
    const struct known *k = x->known;
    if (k[a].rank != k[b].rank) return k[a].rank < k[b].rank;
    return k[a].view.turn < k[b].view.turn;
}

static void put(struct evict *x, struct heads *q, uint32_t at, uint32_t block)
{
    q->block[at] = block;
    x->known[block].place = at + 1;
}

static void rise(struct evict *x, struct heads *q, uint32_t at, uint32_t block)
{
    for (; at > 0 && before(x, block, q->block[(at - 1) / 2]); at = (at - 1) / 2)
        put(x, q, at, q->block[(at - 1) / 2]);
    put(x, q, at, block);
}

static void sink(struct evict *x, struct heads *q, uint32_t at, uint32_t block)
{
    for (uint64_t child; (child = 2ull * at + 1) < q->count; at = (uint32_t)child) {
        if (child + 1 < q->count && before(x, q->block[child + 1], q->block[child])) child++;
        if (!before(x, q->block[child], block)) break;
        put(x, q, at, q->block[child]);
    }
    put(x, q, at, block);
}

void evict_add(struct evict *x, uint32_t block)
{
    struct known *k = &x->known[block];
    CHECK(k->place == 0);
    if (x->config.policy != EVICT_S3FIFO) k->rank = evict_rank(x->config.policy, &k->view);
    struct heads *q = &x->queue[k->queue];
    rise(x, q, q->count++, block);
}

void evict_remove(struct evict *x, uint32_t block)
{
    struct known *k = &x->known[block];
    struct heads *q = &x->queue[k->queue];
    CHECK(k->place > 0);
    uint32_t at = k->place - 1, last = q->block[--q->count];
    k->place = 0;
    if (last == block) return;
    if (at > 0 && before(x, last, q->block[(at - 1) / 2]))
        rise(x, q, at, last);
    else
        sink(x, q, at, last);
}

/* ---- what is known ---- */

static bool new_heaps(struct evict *x, uint32_t blocks_count)
{
    bool s3fifo = x->config.policy == EVICT_S3FIFO;
    uint64_t ghosts_count = 16;
    while (ghosts_count < blocks_count)
        ghosts_count *= 2;
    x->ghost_mask = ghosts_count - 1;
    x->queue[SMALL].block = mem_array(blocks_count, sizeof(uint32_t));
    if (!s3fifo) return x->queue[SMALL].block;
    x->queue[MAIN].block = mem_array(blocks_count, sizeof(uint32_t));
    x->ghost = mem_array(ghosts_count, sizeof *x->ghost);
    return x->queue[SMALL].block && x->queue[MAIN].block && x->ghost;
}

enum err evict_new(struct evict **out, const struct evict_config *config, uint32_t blocks_count)
{
    *out = NULL;
    if (config->policy == EVICT_TTL && config->ttl_ns == 0)
        return err_set(ERR_INVALID, "the policy ttl needs a time above 0");
    struct evict *x = mem_new(sizeof *x + (size_t)blocks_count * sizeof x->known[0]);
    if (!x) return ERR_MEMORY;
    x->config = *config;
    if (!new_heaps(x, blocks_count)) {
        evict_free(x);
        return ERR_MEMORY;
    }
    *out = x;
    return OK;
}

void evict_free(struct evict *x)
{
    if (!x) return;
    mem_free(x->queue[SMALL].block);
    mem_free(x->queue[MAIN].block);
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
    bool late = x->ghosts_count - g->number >= (uint64_t)x->queue[MAIN].all + x->queue[SMALL].all;
    g->number = 0;
    return !late;
}

static void enter(struct evict *x, struct known *k, enum queue queue)
{
    k->queue = (uint8_t)queue;
    k->rank = ++x->turn;
    x->queue[queue].all++;
}

void evict_known(struct evict *x, uint32_t block, uint64_t hash, uint32_t depth)
{
    struct known *k = &x->known[block];
    CHECK(k->place == 0);
    *k = (struct known){
        .view = {.turn = x->turn, .level = x->level, .uses = 1, .depth = depth},
        .hash = hash,
        .used_ns = x->now_ns,
    };
    enter(x, k, x->ghost && ghost_take(x, hash) ? MAIN : SMALL);
}

void evict_used(struct evict *x, uint32_t block)
{
    struct known *k = &x->known[block];
    k->view.level = x->level;
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
    CHECK(k->place == 0);
    x->queue[k->queue].all--;
    if (x->config.policy != EVICT_S3FIFO) {
        if (k->rank > x->level) x->level = k->rank;
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
    x->queue[k->queue].all--;
    enter(x, k, queue);
    evict_add(x, block);
}

static uint32_t pick_s3fifo(struct evict *x)
{
    struct heads *small = &x->queue[SMALL], *rest = &x->queue[MAIN];
    while (small->count > 0 || rest->count > 0) {
        bool too_large =
            (uint64_t)small->all * EVICT_SMALL_SHARE > (uint64_t)small->all + rest->all;
        bool from_small = small->count > 0 && (too_large || rest->count == 0);
        uint32_t block = from_small ? small->block[0] : rest->block[0];
        struct known *k = &x->known[block];
        if (from_small ? k->frequency <= 1 : k->frequency == 0) return block;
        k->frequency = from_small ? 0 : k->frequency - 1;
        requeue(x, block, MAIN);
    }
    return EVICT_NONE;
}

uint32_t evict_pick(struct evict *x)
{
    if (x->config.policy == EVICT_S3FIFO) return pick_s3fifo(x);
    return x->queue[SMALL].count > 0 ? x->queue[SMALL].block[0] : EVICT_NONE;
}

uint32_t evict_expired(const struct evict *x)
{
    if (x->config.policy != EVICT_TTL || x->queue[SMALL].count == 0) return EVICT_NONE;
    uint32_t first = x->queue[SMALL].block[0];
    bool over = x->now_ns >= x->known[first].used_ns &&
                x->now_ns - x->known[first].used_ns >= x->config.ttl_ns;
    return over ? first : EVICT_NONE;
}

bool evict_is_candidate(const struct evict *x, uint32_t block)
{
    return x->known[block].place > 0;
}

uint32_t evict_candidates_count(const struct evict *x)
{
    return x->queue[SMALL].count + x->queue[MAIN].count;
}
