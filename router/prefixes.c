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
    registry_send(core, n->peer, &m);
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
        index_clear(core->index, n->holder); /* not the shared ones: others told of them too */
        n->blocks_missing = false;
    }
    if (n->blocks_missing) ask_again(core, now_ns, n);
    for (uint32_t i = 0; i < b->hashes_count; i++) {
        enum block_tier tier = b->what[i] % TIERS;
        uint16_t holder = tier == TIER_SHARED ? core->shared_holder : n->holder;
        if (b->what[i] < BLOCK_GONE)
            index_add(core->index, holder, b->hashes[i], tier);
        else
            index_remove(core->index, holder, b->hashes[i], tier);
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

/* P reads tiers for every prompt, D for those alone that it computes: where there is no P, all. */
static enum role role_of_readers(const struct router_core *core)
{
    for (uint32_t i = 0; i < core->nodes_count; i++)
        if (core->sched[i]->role == ROLE_PREFILL && core->sched[i]->open) return ROLE_PREFILL;
    return ROLE_DECODE;
}

/* Where the leading blocks of a prompt are expected to be found by a node; each at least the one before. */
struct found {
    struct index_held held;
    uint32_t shared;
    uint32_t reach; /* so many of them are read at most */
};

static bool reads_shared(const struct node *n, enum role readers)
{
    return n->holder != INDEX_NONE && n->sched.role == readers && n->load.shared_block_ns > 0;
}

static struct found found_by(const struct router_core *core, const struct choice *c,
                             const struct node *n, enum role readers)
{
    const struct request *r = c->request;
    struct found f = {.reach = UINT32_MAX};
    struct kv_window window = choice_window(c, core->cluster.window);
    if (n->holder == INDEX_NONE) return f;
    if (window.tokens > 0) {
        f.reach = window.sinks / BLOCK_TOKENS + kv_window_reach(window);
        f.held = index_match_window(core->index, n->holder, r->hashes, r->hashes_count, window);
    } else {
        f.held = index_match(core->index, n->holder, r->hashes, r->hashes_count);
    }
    if (n->sched.role != readers) f.held.host = f.held.any = f.held.pool;
    f.shared = f.held.any;
    if (!reads_shared(n, readers) || window.tokens > 0) return f;
    f.shared += index_match(core->index, core->shared_holder, r->hashes + f.held.any,
                            r->hashes_count - f.held.any)
                    .any;
    return f;
}

/* Blocks of it that need not be computed there, and what reading those of tiers takes. What is slower to read
 * than to compute is not read, nor what is in a tier that the node does not tell of. */
static uint32_t worth(const struct node *n, const struct found *f, uint32_t *load_ns)
{
    const struct {
        uint32_t end, block_ns;
    } tiers[] = {{f->held.host, n->load.host_block_ns},
                 {f->held.any, n->load.disk_block_ns},
                 {f->shared, n->load.shared_block_ns}};
    uint64_t sum_ns = 0, compute_ns = (uint64_t)n->sched.token_ns * BLOCK_TOKENS;
    uint32_t blocks = f->held.pool;
    for (size_t i = 0; i < sizeof tiers / sizeof *tiers; i++) {
        uint32_t more = tiers[i].end - blocks;
        if (more == 0) continue;
        if (tiers[i].block_ns == 0 || (compute_ns > 0 && tiers[i].block_ns >= compute_ns)) break;
        sum_ns += (uint64_t)(more < f->reach ? more : f->reach) * tiers[i].block_ns;
        blocks += more;
    }
    *load_ns = sum_ns < UINT32_MAX ? (uint32_t)sum_ns : UINT32_MAX;
    return blocks;
}

const uint32_t *prefixes_look(struct router_core *core, const struct choice *c)
{
    const struct request *r = c->request;
    bool any = false, window = choice_window(c, core->cluster.window).tokens > 0;
    enum role readers = role_of_readers(core);
    if (r->hashes_count == 0) return NULL;
    /* Without a window, who does not have its first block has nothing of it, but for what nodes share. */
    struct index_set first = index_holders(core->index, r->hashes[0]);
    uint32_t shared = index_match(core->index, core->shared_holder, r->hashes, r->hashes_count).any;
    for (uint32_t i = 0; i < core->nodes_count; i++) {
        const struct node *n = core->nodes[i];
        struct found f = {.reach = UINT32_MAX};
        if (window || index_set_has(&first, n->holder))
            f = found_by(core, c, n, readers);
        else if (reads_shared(n, readers))
            f.shared = shared;
        uint32_t blocks = worth(n, &f, &core->load_ns[i]);
        core->cached[i] = blocks * BLOCK_TOKENS;
        core->pooled[i] = f.held.pool * BLOCK_TOKENS;
        any = any || blocks > 0;
    }
    return any ? core->cached : NULL;
}

/* As much as the node is expected to say that it has. */
static struct index_held held_by(const struct router_core *core, const struct choice *c,
                                 const struct node *n)
{
    uint32_t load_ns;
    struct found f = found_by(core, c, n, role_of_readers(core));
    uint32_t blocks = worth(n, &f, &load_ns);
    return (struct index_held){f.held.pool, f.held.host < blocks ? f.held.host : blocks, blocks};
}

void prefixes_expect(struct router_core *core, struct choice *c)
{
    c->held_prefill = c->held_decode = (struct index_held){0};
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
    *expected = (struct index_held){0}; /* the node says it more than once */
    if (held.any == 0 || n->holder == INDEX_NONE || !r->hashes) return;
    core->counts.prefix_hits += blocks > 0;
    core->counts.prefix_hit_tokens +=
        (uint64_t)(blocks < held.any ? blocks : held.any) * BLOCK_TOKENS;
    core->counts.prefix_false += blocks < held.pool;
    for (uint32_t i = blocks; i < held.any; i++)
        for (enum block_tier tier = TIER_POOL; tier < TIERS; tier++)
            index_remove(core->index, tier == TIER_SHARED ? core->shared_holder : n->holder,
                         r->hashes[i], tier);
}
