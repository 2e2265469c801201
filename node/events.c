/* What enters and leaves this node's cache, told to the routers with each turn, and to the shell at once.
 *
 *     cache, tiers --> events_stored, events_gone --> ring --> end of a turn: BLOCKS to each router
 *                                                              a router that has just come: all, in pieces
 *
 * The ring holds one message's worth. If a turn has more news than that, they are forgotten: the routers are
 * told to forget too (`cleared`) and get everything again, like one that has just come. A piece is walked
 * with each turn, so a large pool takes a while; what changes meanwhile is told in its order, so at the
 * end they know what is here. What is in the tiers is walked too (node/inventory.c). */
#include "node/state.h"

#include "common/mem.h"

enum {
    PIECE_BLOCKS = 1024
}; /* of the pool looked at in one turn, for one router: well below 1 ms */
#define PIECE_NS (1 * NS_PER_MS) /* between two, if nothing else happens */

struct block_events {
    uint64_t hashes[MSG_BLOCKS_MAX];
    uint32_t what[MSG_BLOCKS_MAX];
    uint32_t count;
    bool lost;
};

static void note(struct node_core *c, uint64_t hash, uint32_t what)
{
    struct block_events *e = c->events;
    if (e->count == MSG_BLOCKS_MAX) {
        e->lost = true;
        return;
    }
    e->hashes[e->count] = hash;
    e->what[e->count++] = what;
}

/* Others tell hashes of their own from the tokens: without those a block means nothing to them. */
static void publish_stored(struct node_core *c, uint64_t hash, enum block_tier tier,
                           const struct kv_prefix_entry *e)
{
    struct node_block b = {.stored = true, .tier = tier, .hash = hash};
    if (e) {
        b.first = e->parent == KV_PREFIX_NONE;
        b.parent = e->parent_hash;
        b.tokens = e->tokens;
    }
    c->out.block(c->out.ctx, &b);
}

void events_stored(struct node_core *c, uint64_t hash, enum block_tier tier)
{
    struct kv_prefix_entry e;
    note(c, hash, tier);
    if (!c->out.block) return;
    publish_stored(c, hash, tier, kv_prefix_look_for(c->cache, hash, &e) ? &e : NULL);
}

void events_gone(struct node_core *c, uint64_t hash, enum block_tier tier)
{
    note(c, hash, tier + BLOCK_GONE);
    if (c->out.block)
        c->out.block(c->out.ctx, &(struct node_block){.stored = false, .tier = tier, .hash = hash});
}

void events_lost(struct node_core *c)
{
    c->events->lost = true;
}

static void on_stored(void *ctx, struct block_id block)
{
    struct node_core *c = ctx;
    struct kv_prefix_entry e;
    bool known = kv_prefix_look(c->cache, block, &e);
    CHECK(known);
    note(c, e.hash, TIER_POOL);
    if (c->out.block) publish_stored(c, e.hash, TIER_POOL, &e);
}

static void on_removed(void *ctx, uint64_t hash)
{
    events_gone(ctx, hash, TIER_POOL);
}

enum err events_new(struct node_core *c)
{
    c->events = mem_new(sizeof *c->events);
    if (!c->events) return ERR_MEMORY;
    if (c->cache) kv_prefix_watch(c->cache, &(struct kv_prefix_watch){c, on_stored, on_removed});
    return OK;
}

void events_begin(struct node_core *c, struct router_link *r, bool again)
{
    bool any = c->cache && kv_prefix_stats(c->cache).entries_count > 0;
    r->blocks_next = any || again ? 0 : UINT32_MAX;
    r->blocks_cleared = again;
    if (!again) r->blocks_number = 0;
    inventory_want(c);
}

static void tell(struct node_core *c, struct router_link *r, const struct msg_blocks *blocks)
{
    struct msg m = {.kind = MSG_BLOCKS, .blocks = *blocks};
    m.blocks.number = ++r->blocks_number;
    m.blocks.cleared = r->blocks_cleared;
    r->blocks_cleared = false;
    say(c, (uint32_t)(r - c->router), &m);
}

static void tell_piece(struct node_core *c, struct router_link *r)
{
    uint64_t hashes[PIECE_BLOCKS];
    static const uint32_t what[PIECE_BLOCKS]; /* in the pool, all of them */
    struct kv_prefix_entry e;
    uint32_t count = 0, total = c->cache ? c->config.blocks_count : 0;
    for (uint32_t i = 0; i < PIECE_BLOCKS && r->blocks_next < total; i++) {
        struct block_id block = {r->blocks_next++};
        if (kv_prefix_look(c->cache, block, &e)) hashes[count++] = e.hash;
    }
    if (count > 0 || r->blocks_cleared)
        tell(c, r, &(struct msg_blocks){0, false, hashes, what, count, count});
    if (r->blocks_next >= total) r->blocks_next = UINT32_MAX;
}

void events_tell(struct node_core *c, uint64_t now_ns)
{
    struct block_events *e = c->events;
    for (uint32_t i = 0; i < c->config.routers_count; i++) {
        struct router_link *r = &c->router[i];
        if (r->session.state != SESSION_UP) continue;
        if (e->lost)
            events_begin(c, r, true);
        else if (e->count > 0)
            tell(c, r, &(struct msg_blocks){0, false, e->hashes, e->what, e->count, e->count});
        if (r->blocks_next == UINT32_MAX) continue;
        tell_piece(c, r);
        if (r->blocks_next != UINT32_MAX && now_ns + PIECE_NS < c->wake_ns)
            c->wake_ns = now_ns + PIECE_NS;
    }
    e->count = 0;
    e->lost = false;
    inventory_on_timer(c, now_ns);
}
