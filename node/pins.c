/* pins: prompts that routers want to stay in the prefix cache, by name. What of one is cached is pinned; the
 * router sees to it that more is, and asks again.
 *
 * A router keeps its pins in memory alone. Those of one that is gone stay here for PINS_ORPHANED_NS: another
 * process that takes its place is told of them, and whether they stay is its to say. If the same one comes back, it
 * asks anew, as it may have let go of some meanwhile. What a router took back is remembered for as long, for that other
 * process: a node that was cut off then may still hold it.
 *
 * Pins are wishes: what could be computed without them is computed. When a sequence finds no room although it
 * is the only one that holds any, pins end, one after the other, and their routers hear of it. */
#include "node/state.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

#define PINS_ORPHANED_NS (60 * NS_PER_S)

static struct pin *find(struct node_core *c, uint32_t router, const struct msg_pin *m)
{
    for (uint32_t i = 0; i < NODE_PINS_MAX; i++) {
        struct pin *p = &c->pin[i];
        if (p->used && p->router == router && strcmp(p->name, m->name) == 0 &&
            strcmp(p->tenant, m->tenant) == 0)
            return p;
    }
    return NULL;
}

static void unpin(struct node_core *c, struct pin *p)
{
    if (c->cache) kv_prefix_unpin(c->cache, p->salt, p->tokens, p->blocks);
    p->blocks = 0;
}

static void release(struct node_core *c, struct pin *p)
{
    unpin(c, p);
    mem_free(p->tokens);
    *p = (struct pin){0};
}

/* A free place, or that of one that was taken back; NULL: there is none. */
static struct pin *place(struct node_core *c)
{
    struct pin *buried = NULL;
    for (struct pin *p = c->pin; p < c->pin + NODE_PINS_MAX; p++) {
        if (!p->used) return p;
        if (p->removed && !buried) buried = p;
    }
    if (buried) release(c, buried);
    return buried;
}

static void fill(struct node_core *c, struct pin *p, uint32_t router, const struct msg_pin *m)
{
    p->used = true;
    p->router = router;
    p->given_by = c->router[router].session.other;
    p->number = m->ref;
    snprintf(p->name, sizeof p->name, "%s", m->name);
    snprintf(p->tenant, sizeof p->tenant, "%s", m->tenant);
}

/* NULL: there is no room for one more. */
static struct pin *take(struct node_core *c, uint32_t router, const struct msg_pin *m)
{
    struct pin *p = m->tokens_count > 0 ? place(c) : NULL;
    if (!p || !(p->tokens = mem_array(m->tokens_count, sizeof *p->tokens))) return NULL;
    memcpy(p->tokens, m->tokens, m->tokens_count * sizeof *p->tokens);
    p->tokens_count = m->tokens_count;
    p->salt = m->salt;
    fill(c, p, router, m);
    return p;
}

static void bury(struct node_core *c, uint64_t now_ns, uint32_t router, const struct msg_pin *m)
{
    struct pin *p = place(c);
    if (!p) return;
    fill(c, p, router, m);
    p->removed = true;
    p->orphaned_ns = now_ns;
}

void pins_on_message(struct node_core *c, uint64_t now_ns, uint32_t router, const struct msg_pin *m)
{
    struct pin *p = find(c, router, m);
    if (p) release(c, p);
    if (m->remove) {
        bury(c, now_ns, router, m);
        return;
    }
    p = c->cache ? take(c, router, m) : NULL;
    if (p) p->blocks = kv_prefix_pin(c->cache, m->salt, m->tokens, m->tokens_count / BLOCK_TOKENS);
    struct msg answer = {
        .kind = MSG_PINNED,
        .pinned = {.name = m->name, .tenant = m->tenant, .blocks = p ? p->blocks : 0}};
    say(c, router, &answer);
}

void pins_lost(struct node_core *c, uint64_t now_ns, uint32_t router)
{
    for (struct pin *p = c->pin; p < c->pin + NODE_PINS_MAX; p++)
        if (p->used && !p->removed && p->router == router) p->orphaned_ns = now_ns;
}

void pins_free(struct node_core *c)
{
    for (uint32_t i = 0; i < NODE_PINS_MAX; i++)
        if (c->pin[i].used) release(c, &c->pin[i]);
}

void pins_on_router(struct node_core *c, uint32_t router)
{
    uint64_t incarnation = c->router[router].session.other;
    for (uint32_t i = 0; i < NODE_PINS_MAX; i++) {
        struct pin *p = &c->pin[i];
        if (!p->used || p->router != router) continue;
        if (p->given_by == incarnation) {
            if (!p->removed) release(c, p);
            continue;
        }
        struct msg m = {.kind = MSG_PIN,
                        .pin = {.ref = p->number,
                                .remove = p->removed,
                                .name = p->name,
                                .tenant = p->tenant,
                                .tokens = p->tokens,
                                .tokens_count = p->tokens_count,
                                .salt = p->salt}};
        p->given_by = incarnation;
        if (!p->removed) p->orphaned_ns = 0;
        say(c, router, &m);
    }
}

void pins_on_timer(struct node_core *c, uint64_t now_ns)
{
    for (uint32_t i = 0; i < NODE_PINS_MAX; i++) {
        struct pin *p = &c->pin[i];
        if (p->used && p->orphaned_ns && now_ns - p->orphaned_ns >= PINS_ORPHANED_NS) release(c, p);
    }
}

static bool is_alone(const struct node_core *c, const struct sequence *s)
{
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        const struct sequence *t = &c->sequence[i];
        if (t != s && (t->table_count > 0 || t->ticket_live || t->in_flight > 0)) return false;
    }
    return true;
}

bool pins_give_way(struct node_core *c, const struct sequence *s)
{
    if (!c->cache || kv_prefix_stats(c->cache).pinned_blocks == 0) return false;
    if (s->job.cached_only || !is_alone(c, s)) return false; /* only what is computed is worth it */
    for (uint32_t i = NODE_PINS_MAX; i-- > 0;) {
        struct pin *p = &c->pin[i];
        if (!p->used || p->blocks == 0) continue;
        log_warn("pin_gave_way",
                 "name=%s tenant=\"%s\" blocks=%u reason=\"a request of %u blocks has no room "
                 "beside it\"",
                 p->name, p->tenant, p->blocks, accounts_need_all(s));
        unpin(c, p);
        p->gave_way = c->pins_gave_way = true;
        return true;
    }
    return false;
}

void pins_tell(struct node_core *c)
{
    for (uint32_t i = 0; c->pins_gave_way && i < NODE_PINS_MAX; i++) {
        struct pin *p = &c->pin[i];
        if (!p->used || !p->gave_way) continue;
        struct msg m = {.kind = MSG_PINNED, .pinned = {.name = p->name, .tenant = p->tenant}};
        p->gave_way = false;
        say(c, p->router, &m);
    }
    c->pins_gave_way = false;
}
