/* tier: a modelled tier thread. A node's own store outlives its crashes, a shared one is all nodes'. It loses
 * entries, takes its time, sometimes past every deadline, and refuses ops; what it gives is what was put
 * (that lies are found is the check of entries' business: tests/unit/kv_tier_work_test.c). A block is touched
 * some time after the post and some time before the event, and must be held for both. Of its news some are lost, some
 * told twice, and some are not true. */
#include <string.h>

#include "common/hash.h"
#include "common/mem.h"
#include "common/prefix_hash.h"
#include "tests/sim/sim.h"

enum { NEWS_MAX = 64, LIST_MAX = 16 };
#define SLOW_NS (60 * NS_PER_MS)
#define USUAL_NS (4 * NS_PER_MS)

struct tier_op {
    struct kv_tier_op op;
    uint32_t blocks[SIM_CONTEXT / BLOCK_TOKENS + 1], tokens[SIM_CONTEXT];
    uint32_t done, end_block; /* blocks */
};

static struct sim_kept *store_of(struct sim *s, struct sim_proc *p)
{
    struct sim_kept **store = s->tiers == SIM_TIERS_SHARED ? &s->shared_store : &p->store;
    if (!*store) *store = mem_array(SIM_KEPT_MAX, sizeof **store);
    CHECK(*store);
    return *store;
}

/* Where block i of the op lies, if it does; another one that lay there is lost. */
static struct sim_kept *place_of(struct sim *s, struct sim_proc *p, const struct tier_op *o,
                                 uint32_t i, uint64_t *key)
{
    uint32_t tokens_count = (o->op.first_block + i + 1) * BLOCK_TOKENS;
    *key = hash_mix(
        (struct id128){hash64(o->tokens, tokens_count * sizeof *o->tokens), o->op.salt + 1});
    return &store_of(s, p)[*key % SIM_KEPT_MAX];
}

static void must_be_held(struct sim *s, struct sim_proc *p, const struct tier_op *o)
{
    for (uint32_t i = 0; i < o->op.count; i++)
        if (node_core_holds(p->node, o->blocks[i], HOLD_TRANSFER) == 0)
            sim_fail(s, "%s: a tier touches block %u, which is not held", p->name, o->blocks[i]);
}

/* The longest start whose window is kept here, of which the op's places are for the sinks and the last
 * blocks; 0: none that is longer than what the node has. */
static uint32_t window_end(struct sim *s, struct sim_proc *p, const struct tier_op *o,
                           uint32_t known)
{
    uint32_t sinks = o->op.window.sinks / BLOCK_TOKENS;
    for (uint32_t n = o->op.end_block; n > known; n--) {
        uint32_t gone = kv_tier_op_gone(o->op.window, n), i = 0;
        for (uint64_t key; i < n; i++)
            if ((i < sinks || i >= gone) && place_of(s, p, o, i, &key)->key != key) break;
        if (i == n) return n;
    }
    return 0;
}

static void load_window(struct sim *s, struct sim_proc *p, struct tier_op *o)
{
    uint32_t known = o->op.first_block, sinks = o->op.window.sinks / BLOCK_TOKENS;
    o->op.first_block = 0;
    uint32_t n = window_end(s, p, o, known), gone = kv_tier_op_gone(o->op.window, n);
    uint32_t place = 0, most = sim_draw(s, 2) == 0 ? o->op.count : 1 + sim_draw(s, o->op.count);
    o->done = o->op.filled;
    if (n == 0 || (o->op.filled > 0 && n != o->op.end_block) || sim_draw(s, 8) == 0) return;
    o->end_block = n;
    for (uint32_t i = 0; i < n && o->done < o->op.filled + most; i++) {
        uint64_t key;
        if (i >= sinks && i < gone) continue;
        if (place++ < o->op.filled) continue;
        CHECK(o->done < o->op.count);
        struct sim_kept *kept = place_of(s, p, o, i, &key);
        memcpy(device_block(p, o->blocks[o->done++]), &kept->cell[0][0], sizeof kept->cell);
    }
}

/* What a block is called among routers. */
static uint64_t hash_of_block(const struct tier_op *o, uint32_t i)
{
    uint64_t hashes[SIM_CONTEXT / BLOCK_TOKENS];
    prefix_hash_chain(o->op.salt, o->tokens, o->op.first_block + i + 1, hashes);
    return hashes[o->op.first_block + i];
}

static void add_news(struct sim *s, struct kv_tier_event *e, uint64_t hash, bool gone)
{
    uint32_t times = sim_draw(s, 8);
    times = times == 0 ? 0 : times == 1 ? 2 : 1;
    if (e->news_count + times > NEWS_MAX) times = 0;
    for (; times > 0; times--)
        e->news[e->news_count++] = (struct kv_tier_news){
            hash, s->tiers == SIM_TIERS_SHARED ? KV_TIER_SHARED : KV_TIER_DISK, gone};
    e->news_lost |= sim_draw(s, 200) == 0;
}

/* What a STORE kept; one of eight has left again. */
static void add_stored(struct sim *s, const struct tier_op *o, struct kv_tier_event *e)
{
    for (uint32_t i = 0; o->op.kind == KV_TIER_STORE && i < o->done; i++) {
        uint64_t hash = hash_of_block(o, i);
        add_news(s, e, hash, false);
        if (sim_draw(s, 8) == 0) add_news(s, e, hash, true);
    }
}

static void on_listed(struct sim *s, struct sim_proc *p, void *data)
{
    const struct tier_op *o = data;
    struct kv_tier_news news[NEWS_MAX];
    struct kv_tier_event e = {.id = o->op.id,
                              .kind = o->op.kind,
                              .place = o->op.place,
                              .news = news,
                              .ended_ns = s->now_ns};
    const struct sim_kept *store = store_of(s, p);
    for (; e.place < SIM_KEPT_MAX && e.news_count < LIST_MAX; e.place++)
        if (store[e.place].key) add_news(s, &e, store[e.place].hash, false);
    if (e.place == SIM_KEPT_MAX) e.place = KV_TIER_PLACE_END;
    node_core_on_tier(p->node, s->now_ns, &e);
}

static void on_end(struct sim *s, struct sim_proc *p, void *data)
{
    const struct tier_op *o = data;
    struct kv_tier_news news[NEWS_MAX];
    struct kv_tier_event e = {.id = o->op.id,
                              .kind = o->op.kind,
                              .count = o->done,
                              .news = news,
                              .from = {o->done - o->op.filled},
                              .ended_ns = s->now_ns,
                              .end_block = o->end_block};
    bool some = o->op.kind == KV_TIER_LOAD && o->done > o->op.filled && o->done < o->op.count;
    e.more = some && sim_draw(s, 2) == 0;
    must_be_held(s, p, o);
    add_stored(s, o, &e);
    node_core_on_tier(p->node, s->now_ns, &e);
}

static void on_begin(struct sim *s, struct sim_proc *p, void *data)
{
    struct tier_op *o = data, *end = mem_new(sizeof *end);
    CHECK(end);
    must_be_held(s, p, o);
    bool load = o->op.kind == KV_TIER_LOAD;
    uint32_t fails_at = sim_draw(s, 8) == 0 ? sim_draw(s, o->op.count + 1) : o->op.count;
    if (o->op.window.tokens > 0) {
        load_window(s, p, o);
        fails_at = 0;
    }
    for (; o->done < fails_at; o->done++) {
        uint64_t key, *cells = device_block(p, o->blocks[o->done]);
        struct sim_kept *kept = place_of(s, p, o, o->done, &key);
        if (load && kept->key != key) break;
        kept->key = key;
        if (!load) kept->hash = hash_of_block(o, o->done);
        uint64_t *there = &kept->cell[0][0];
        memcpy(load ? cells : there, load ? there : cells, sizeof kept->cell);
    }
    *end = *o;
    sim_at(s, s->now_ns + sim_draw_ns(s, 0, NS_PER_MS), p, on_end, end);
}

enum err device_tier(void *ctx, const struct kv_tier_op *op)
{
    struct sim_proc *p;
    struct sim *s = sim_of(ctx, &p);
    if (sim_draw(s, 50) == 0) return ERR_FULL;
    struct tier_op *o = mem_new(sizeof *o);
    bool list = op->kind == KV_TIER_LIST;
    uint32_t end = op->window.tokens > 0 ? op->end_block : op->first_block + op->count;
    uint32_t tokens_count = end * BLOCK_TOKENS;
    CHECK(o && (op->count > 0 || list) && tokens_count <= SIM_CONTEXT);
    o->op = *op;
    if (list) {
        sim_at(s, s->now_ns + sim_draw_ns(s, 10000, NS_PER_MS), p, on_listed, o);
        return OK;
    }
    memcpy(o->blocks, op->blocks, op->count * sizeof *op->blocks);
    memcpy(o->tokens, op->tokens, tokens_count * sizeof *op->tokens);
    uint64_t most_ns = sim_draw(s, 10) == 0 ? SLOW_NS : USUAL_NS;
    sim_at(s, s->now_ns + sim_draw_ns(s, 10000, most_ns), p, on_begin, o);
    return OK;
}
