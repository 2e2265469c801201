/* prefixes: what the nodes are taken to hold of each prompt: their news go into the index, prompts are looked
 * up in it before they are placed, and what a node then really had corrects it.
 *
 * News may be lost, late or told twice: they are numbered. What comes again is dropped; a gap is asked for, by
 * asking for everything, once a second at most. */
#include "common/clock.h"
#include "common/prefix_hash.h"
#include "router/state.h"

/* Of a prompt: 262,144 tokens, hashed in well below 1 ms. What is behind them is taken not to be cached. */
enum { HASHES_MAX = 1 << 14 };
#define ASK_NS (1 * NS_PER_S)

void prefixes_on_join(struct router_core *core, struct node *n)
{
    n->holder = core->index ? index_join(core->index) : INDEX_NONE;
}

void prefixes_on_leave(struct router_core *core, struct node *n)
{
    if (n->holder != INDEX_NONE) index_leave(core->index, n->holder);
    n->holder = INDEX_NONE;
}

static void ask_again(struct router_core *core, uint64_t now_ns, struct node *n)
{
    if (n->blocks_asked_ns && now_ns - n->blocks_asked_ns < ASK_NS) return;
    struct msg m = {.kind = MSG_BLOCKS, .blocks = {.cleared = true}};
    n->blocks_asked_ns = now_ns;
    registry_send(core, now_ns, n->peer, &m);
}

void prefixes_on_blocks(struct router_core *core, uint64_t now_ns, struct node *n,
                        const struct msg_blocks *b)
{
    if (n->holder == INDEX_NONE) return;
    if (b->number <= n->blocks_number) {
        core->counts.stale_messages++;
        return;
    }
    if (b->number != n->blocks_number + 1) {
        core->counts.prefix_gaps++;
        n->blocks_missing = true;
    }
    n->blocks_number = b->number;
    if (b->cleared) {
        index_clear(core->index, n->holder);
        n->blocks_missing = false;
    }
    if (n->blocks_missing) ask_again(core, now_ns, n);
    for (uint32_t i = 0; i < b->hashes_count; i++) {
        if (b->what[i] < BLOCK_GONE)
            index_add(core->index, n->holder, b->hashes[i], b->what[i]);
        else
            index_remove(core->index, n->holder, b->hashes[i], b->what[i] - BLOCK_GONE);
    }
    core->dispatch_wanted |= b->hashes_count > 0;
}

void prefixes_hash(const struct router_core *core, struct request *r)
{
    uint32_t count = r->prompt_count > 0 ? (r->prompt_count - 1) / BLOCK_TOKENS : 0;
    if (!core->index || count == 0 || job_needs_all_rows(r->kind)) return;
    if (count > HASHES_MAX) count = HASHES_MAX;
    r->hashes = arena_take(&r->arena, count * sizeof *r->hashes);
    if (!r->hashes) return; /* then nothing is known of it */
    prefix_hash_chain(r->tenant_salt, r->submit.tokens, count, r->hashes);
    r->hashes_count = count;
}

static struct index_held held_by(const struct router_core *core, const struct choice *c,
                                 const struct node *n)
{
    const struct request *r = c->request;
    if (n->holder == INDEX_NONE) return (struct index_held){0, 0};
    struct kv_window window = choice_window(c, core->cluster.window);
    if (window.tokens > 0)
        return index_match_window(core->index, n->holder, r->hashes, r->hashes_count, window);
    return index_match(core->index, n->holder, r->hashes, r->hashes_count);
}

const uint32_t *prefixes_look(struct router_core *core, const struct choice *c)
{
    bool any = false;
    if (c->request->hashes_count == 0) return NULL;
    for (uint32_t i = 0; i < core->nodes_count; i++) {
        struct index_held held = held_by(core, c, core->nodes[i]);
        /* What has to come from a tier is taken to cost half of computing it: more, and it is not read. */
        uint32_t blocks = held.pool + (held.any - held.pool) / 2;
        core->cached[i] = blocks * BLOCK_TOKENS;
        core->pooled[i] = held.pool * BLOCK_TOKENS;
        any = any || blocks > 0;
    }
    return any ? core->cached : NULL;
}

void prefixes_expect(struct router_core *core, struct choice *c)
{
    c->held_prefill = c->held_decode = (struct index_held){0, 0};
    if (c->request->hashes_count == 0 || c->fork) return; /* a fork shares what is held */
    core->counts.prefix_lookups++;
    if (c->prefill) c->held_prefill = held_by(core, c, c->prefill);
    if (c->decode) c->held_decode = held_by(core, c, c->decode);
}

void prefixes_found(struct router_core *core, const struct choice *c, const struct node *n,
                    struct index_held *expected, uint32_t tokens)
{
    const struct request *r = c->request;
    uint32_t blocks = tokens / BLOCK_TOKENS;
    struct index_held held = *expected;
    *expected = (struct index_held){0, 0}; /* the node says it more than once */
    if (held.any == 0 || n->holder == INDEX_NONE || !r->hashes) return;
    core->counts.prefix_hits += blocks > 0;
    core->counts.prefix_hit_tokens +=
        (uint64_t)(blocks < held.any ? blocks : held.any) * BLOCK_TOKENS;
    core->counts.prefix_false += blocks < held.pool;
    for (uint32_t i = blocks; i < held.any; i++)
        for (enum block_tier tier = TIER_POOL; tier < TIERS; tier++)
            index_remove(core->index, n->holder, r->hashes[i], tier);
}
