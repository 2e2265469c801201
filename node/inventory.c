/* What the tiers hold, for routers: the news of their ops, and a walk through all that they have when a router
 * has come or lost some. The walk is one for all routers: who comes while it is under way waits for the next one,
 * and whoever hears a piece twice forgets nothing by it. Pieces come one at a time, PIECE_NS apart, so that a
 * large tier takes a while and the node none: a million blocks take a second or two. */
#include "node/state.h"

#include "common/clock.h"

#define PIECE_NS (1 * NS_PER_MS)
#define REFUSED_NS                                                                                 \
    (100 * NS_PER_MS) /* until a walk that the tiers had no room for is tried again */

void inventory_want(struct node_core *c)
{
    struct inventory *v = &c->inventory;
    if (!c->tier_op) return;
    v->again = v->wanted && (v->id > 0 || v->place > 0);
    v->wanted = true;
}

void inventory_on_timer(struct node_core *c, uint64_t now_ns)
{
    struct inventory *v = &c->inventory;
    if (!v->wanted || v->id > 0) return;
    if (now_ns >= v->from_ns) {
        struct kv_tier_op op = {.kind = KV_TIER_LIST, .id = ++c->tier_ops_made, .place = v->place};
        v->id = op.id;
        if (c->out.tier(c->out.ctx, &op) == OK) return;
        v->id = 0;
        v->from_ns = now_ns + REFUSED_NS;
    }
    if (v->from_ns < c->wake_ns) c->wake_ns = v->from_ns;
}

void inventory_news(struct node_core *c, const struct kv_tier_event *e)
{
    static const enum block_tier tiers[] = {
        [KV_TIER_HOST] = TIER_HOST, [KV_TIER_DISK] = TIER_DISK, [KV_TIER_SHARED] = TIER_SHARED};
    for (uint32_t i = 0; i < e->news_count; i++) {
        const struct kv_tier_news *n = &e->news[i];
        if (n->gone)
            events_gone(c, n->hash, tiers[n->kind]);
        else
            events_stored(c, n->hash, tiers[n->kind]);
    }
    if (e->news_lost) events_lost(c);
}

bool inventory_on_event(struct node_core *c, uint64_t now_ns, const struct kv_tier_event *e)
{
    struct inventory *v = &c->inventory;
    if (v->id == 0 || e->id != v->id) return false;
    v->id = 0;
    v->place = e->place;
    v->from_ns = now_ns + PIECE_NS;
    if (e->place != KV_TIER_PLACE_END) return true;
    v->place = 0;
    v->wanted = v->again;
    v->again = false;
    return true;
}
