#include "router/index.h"

#include <string.h>

#include "common/mem.h"

enum {
    BUCKETS = 2, /* that a hash may be in */
    SLOTS = 8,   /* of a bucket: 128 bytes, two cache lines */
    SLOT_HOLDERS = INDEX_HOLDERS_MAX / (BUCKETS * SLOTS),
    LIVES = 8,
    SWEPT = 1, /* buckets looked through for dead holders with each block that is added */
    IN_POOL = 1,
    IN_HOST = 2,
    IN_DISK = 4, /* or, of who stands for a shared store, in that */
    WHERE = IN_POOL | IN_HOST | IN_DISK,
};

/* A slot is free when it has no holders; a holder is free when it is nowhere. */
struct slot {
    uint16_t tag[3];
    uint16_t holder[SLOT_HOLDERS];
};

struct bucket {
    struct slot slot[SLOTS];
};

struct index {
    struct bucket *bucket;
    uint32_t buckets_count, sweep_next;
    uint8_t life[INDEX_NODES_MAX];
    bool joined[INDEX_NODES_MAX];
    uint16_t idle[INDEX_NODES_MAX]; /* a ring of numbers that nobody has */
    uint32_t idle_first, idle_count;
    struct index_stats stats;
};

/* ---- holders ---- */

static uint16_t holder_of(const struct index *x, uint16_t node)
{
    return (uint16_t)(node << 6 | x->life[node] << 3);
}

static bool is_of(uint16_t holder, uint16_t whose)
{
    return ((holder ^ whose) & ~WHERE) == 0;
}

static bool is_dead(const struct index *x, uint16_t holder)
{
    uint16_t node = holder >> 6;
    return !x->joined[node] || !is_of(holder, holder_of(x, node));
}

static bool is_free(const struct slot *s)
{
    for (int i = 0; i < SLOT_HOLDERS; i++)
        if (s->holder[i]) return false;
    return true;
}

static void drop_dead(struct index *x, struct slot *s)
{
    for (int i = 0; i < SLOT_HOLDERS; i++)
        if (s->holder[i] && is_dead(x, s->holder[i])) {
            s->holder[i] = 0;
            x->stats.entries--;
        }
}

static void drop_all(struct index *x, struct slot *s)
{
    for (int i = 0; i < SLOT_HOLDERS; i++) {
        x->stats.entries -= s->holder[i] != 0;
        x->stats.dropped += s->holder[i] && !is_dead(x, s->holder[i]);
        s->holder[i] = 0;
    }
}

/* ---- the table ---- */

struct place {
    struct bucket *bucket[BUCKETS]; /* may be one and the same */
    uint16_t tag[3];
};

static struct place place_of(const struct index *x, uint64_t hash)
{
    /* Other bits for each: the two buckets, and the tag that tells the hashes of a bucket apart. */
    uint64_t mixed = hash * 0x9e3779b97f4a7c15u;
    uint32_t first = (uint32_t)((hash >> 32) * x->buckets_count >> 32);
    uint32_t second = (uint32_t)((mixed >> 32) * x->buckets_count >> 32);
    struct place p = {.bucket = {&x->bucket[first], &x->bucket[second]}};
    p.tag[0] = (uint16_t)hash;
    p.tag[1] = (uint16_t)(hash >> 16);
    p.tag[2] = (uint16_t)(mixed >> 16);
    return p;
}

static bool has_tag(const struct slot *s, const struct place *p)
{
    return memcmp(s->tag, p->tag, sizeof s->tag) == 0;
}

/* Where the node's holder of this block is; NULL: nowhere. */
static uint16_t *find(const struct place *p, uint16_t whose)
{
    for (int b = 0; b < BUCKETS; b++)
        for (int i = 0; i < SLOTS; i++) {
            struct slot *s = &p->bucket[b]->slot[i];
            if (!has_tag(s, p)) continue;
            for (int k = 0; k < SLOT_HOLDERS; k++)
                if (s->holder[k] && is_of(s->holder[k], whose)) return &s->holder[k];
        }
    return NULL;
}

/* A free holder in a slot that is this block's already. */
static uint16_t *find_room(struct index *x, const struct place *p)
{
    for (int b = 0; b < BUCKETS; b++)
        for (int i = 0; i < SLOTS; i++) {
            struct slot *s = &p->bucket[b]->slot[i];
            if (!has_tag(s, p)) continue;
            drop_dead(x, s);
            if (is_free(s)) continue;
            for (int k = 0; k < SLOT_HOLDERS; k++)
                if (!s->holder[k]) return &s->holder[k];
        }
    return NULL;
}

static struct slot *find_free(struct bucket *b, int *count)
{
    struct slot *found = NULL;
    *count = 0;
    for (int i = 0; i < SLOTS; i++)
        if (is_free(&b->slot[i])) {
            found = &b->slot[i];
            ++*count;
        }
    return found;
}

/* A slot for a block that has none with room: the emptier bucket's, or one that another block has to
 * leave. */
static struct slot *take_slot(struct index *x, const struct place *p, uint64_t hash)
{
    int count[BUCKETS];
    struct slot *slot[BUCKETS];
    for (int b = 0; b < BUCKETS; b++)
        slot[b] = find_free(p->bucket[b], &count[b]);
    if (slot[0] || slot[1]) return count[1] > count[0] ? slot[1] : slot[0];
    uint64_t draw = (hash ^ x->stats.added) * 0xd6e8feb86659fd93u >> 60;
    struct slot *s = &p->bucket[draw & 1]->slot[draw >> 1];
    drop_all(x, s);
    return s;
}

static void sweep(struct index *x)
{
    for (int i = 0; i < SWEPT; i++) {
        struct bucket *b = &x->bucket[x->sweep_next];
        for (int k = 0; k < SLOTS; k++)
            drop_dead(x, &b->slot[k]);
        x->sweep_next = x->sweep_next + 1 == x->buckets_count ? 0 : x->sweep_next + 1;
    }
}

/* ---- what others call ---- */

enum err index_new(struct index **out, uint64_t blocks_max)
{
    *out = NULL;
    /* Two thirds full: then nearly every block still finds a place in one of its two buckets. */
    uint64_t buckets = (blocks_max * 3 / 2 + SLOTS - 1) / SLOTS;
    if (blocks_max < INDEX_BLOCKS_MIN || buckets > UINT32_MAX)
        return err_set(ERR_INVALID, "an index of %llu blocks, at least %d",
                       (unsigned long long)blocks_max, INDEX_BLOCKS_MIN);
    struct index *x = mem_new(sizeof *x);
    if (!x) return ERR_MEMORY;
    x->buckets_count = (uint32_t)buckets;
    x->bucket = mem_array(buckets, sizeof *x->bucket);
    if (!x->bucket) {
        mem_free(x);
        return ERR_MEMORY;
    }
    x->stats.bytes = sizeof *x + buckets * sizeof *x->bucket;
    for (x->idle_count = 0; x->idle_count < INDEX_NODES_MAX; x->idle_count++)
        x->idle[x->idle_count] = (uint16_t)x->idle_count;
    *out = x;
    return OK;
}

void index_free(struct index *x)
{
    if (!x) return;
    mem_free(x->bucket);
    mem_free(x);
}

uint16_t index_join(struct index *x)
{
    if (x->idle_count == 0) return INDEX_NONE;
    uint16_t node = x->idle[x->idle_first];
    x->idle_first = (x->idle_first + 1) % INDEX_NODES_MAX;
    x->idle_count--;
    x->joined[node] = true;
    return node;
}

void index_leave(struct index *x, uint16_t node)
{
    CHECK(x->joined[node]);
    index_clear(x, node);
    x->joined[node] = false;
    x->idle[(x->idle_first + x->idle_count++) % INDEX_NODES_MAX] = node;
}

void index_clear(struct index *x, uint16_t node)
{
    x->life[node] = (x->life[node] + 1) % LIVES;
}

static uint16_t where(enum block_tier tier)
{
    return tier == TIER_POOL ? IN_POOL : tier == TIER_HOST ? IN_HOST : IN_DISK;
}

void index_add(struct index *x, uint16_t node, uint64_t hash, enum block_tier tier)
{
    struct place p = place_of(x, hash);
    uint16_t whose = holder_of(x, node);
    x->stats.added++;
    sweep(x);
    uint16_t *holder = find(&p, whose);
    if (!holder && !(holder = find_room(x, &p))) {
        struct slot *s = take_slot(x, &p, hash);
        memcpy(s->tag, p.tag, sizeof s->tag);
        holder = &s->holder[0];
    }
    x->stats.entries += *holder == 0;
    *holder |= whose | where(tier);
}

void index_remove(struct index *x, uint16_t node, uint64_t hash, enum block_tier tier)
{
    struct place p = place_of(x, hash);
    uint16_t *holder = find(&p, holder_of(x, node));
    x->stats.gone++;
    if (!holder) return;
    *holder &= (uint16_t)~where(tier);
    if (*holder & WHERE) return;
    *holder = 0;
    x->stats.entries--;
}

static uint16_t look(const struct index *x, uint16_t node, uint64_t hash)
{
    struct place p = place_of(x, hash);
    const uint16_t *holder = find(&p, holder_of(x, node));
    return holder ? *holder & WHERE : 0;
}

/* The first of [low, high) that is not in one of `wanted`, all before it being. */
static uint32_t boundary(const struct index *x, uint16_t node, const uint64_t *hashes, uint32_t low,
                         uint32_t high, uint16_t wanted)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (look(x, node, hashes[middle]) & wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct index_held index_match(const struct index *x, uint16_t node, const uint64_t *hashes,
                              uint32_t count)
{
    if (count == 0 || look(x, node, hashes[0]) == 0) return (struct index_held){0};
    uint32_t pool = boundary(x, node, hashes, 0, count, IN_POOL);
    uint32_t host = boundary(x, node, hashes, pool, count, IN_POOL | IN_HOST);
    return (struct index_held){pool, host, boundary(x, node, hashes, host, count, WHERE)};
}

struct index_set index_holders(const struct index *x, uint64_t hash)
{
    struct place p = place_of(x, hash);
    struct index_set set = {0};
    for (int b = 0; b < BUCKETS; b++)
        for (int i = 0; i < SLOTS; i++) {
            const struct slot *s = &p.bucket[b]->slot[i];
            for (int k = 0; k < SLOT_HOLDERS && has_tag(s, &p); k++) {
                uint16_t node = s->holder[k] >> 6;
                if (s->holder[k] && !is_dead(x, s->holder[k]))
                    set.nodes[node / 64] |= UINT64_C(1) << node % 64;
            }
        }
    return set;
}

/* Whether blocks [first, end) are likely to be there. */
static bool holds_run(const struct index *x, uint16_t node, const uint64_t *hashes, uint32_t first,
                      uint32_t end, uint16_t wanted)
{
    uint32_t step = end > first ? (end - first) / INDEX_SAMPLES + 1 : 1;
    for (uint32_t i = first; i < end; i += step)
        if ((look(x, node, hashes[i]) & wanted) == 0) return false;
    return true;
}

static uint32_t window_end(const struct index *x, uint16_t node, const uint64_t *hashes,
                           uint32_t count, struct kv_window window, uint16_t wanted)
{
    uint32_t reach = kv_window_reach(window), sinks = window.sinks / BLOCK_TOKENS, at = count;
    if (sinks > count) sinks = count;
    if (!holds_run(x, node, hashes, 0, sinks, wanted)) return 0;
    for (uint32_t looked = 0; at > sinks && looked < INDEX_WINDOWS_MAX; looked++) {
        uint32_t above = at;
        at = at > sinks + reach ? at - reach : sinks;
        if ((look(x, node, hashes[at]) & wanted) == 0) continue;
        uint32_t end = boundary(x, node, hashes, at + 1, above, wanted);
        uint32_t first = end > sinks + reach ? end - reach : sinks;
        if (holds_run(x, node, hashes, first, end, wanted)) return end;
    }
    return sinks;
}

struct index_held index_match_window(const struct index *x, uint16_t node, const uint64_t *hashes,
                                     uint32_t count, struct kv_window window)
{
    uint32_t pool = window_end(x, node, hashes, count, window, IN_POOL);
    uint32_t host = window_end(x, node, hashes, count, window, IN_POOL | IN_HOST);
    uint32_t any = window_end(x, node, hashes, count, window, WHERE);
    if (host < pool) host = pool;
    return (struct index_held){pool, host, any > host ? any : host};
}

struct index_stats index_stats(const struct index *x)
{
    return x->stats;
}
