/* pins: prompts that routers want to stay in the prefix cache, by name. What of one is cached is pinned; the
 * router sees to it that more is, and asks again. A router that is gone has no pins here. */
#include "node/state.h"

#include <stdio.h>
#include <string.h>

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

static void release(struct node_core *c, struct pin *p)
{
    if (c->cache) kv_prefix_unpin(c->cache, p->salt, p->tokens, p->blocks);
    mem_free(p->tokens);
    *p = (struct pin){0};
}

/* NULL: there is no room for one more. */
static struct pin *take(struct node_core *c, uint32_t router, const struct msg_pin *m)
{
    struct pin *p = c->pin;
    while (p < c->pin + NODE_PINS_MAX && p->used)
        p++;
    if (p == c->pin + NODE_PINS_MAX || m->tokens_count == 0) return NULL;
    if (!(p->tokens = mem_array(m->tokens_count, sizeof *p->tokens))) return NULL;
    memcpy(p->tokens, m->tokens, m->tokens_count * sizeof *p->tokens);
    p->used = true;
    p->router = router;
    p->salt = m->salt;
    snprintf(p->name, sizeof p->name, "%s", m->name);
    snprintf(p->tenant, sizeof p->tenant, "%s", m->tenant);
    return p;
}

void pins_on_message(struct node_core *c, uint64_t now_ns, uint32_t router, const struct msg_pin *m)
{
    struct pin *p = find(c, router, m);
    if (p) release(c, p);
    if (m->remove) return;
    p = c->cache ? take(c, router, m) : NULL;
    if (p) p->blocks = kv_prefix_pin(c->cache, m->salt, m->tokens, m->tokens_count / BLOCK_TOKENS);
    struct msg answer = {
        .kind = MSG_PINNED,
        .pinned = {.name = m->name, .tenant = m->tenant, .blocks = p ? p->blocks : 0}};
    say(c, now_ns, router, &answer);
}

void pins_lost(struct node_core *c, uint32_t router)
{
    for (uint32_t i = 0; i < NODE_PINS_MAX; i++)
        if (c->pin[i].used && (router == UINT32_MAX || c->pin[i].router == router))
            release(c, &c->pin[i]);
}
