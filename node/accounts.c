/* Blocks of sequences: how many one needs, where they come from, who holds them.
 *
 * A block is taken from the free ones first, then from the prefix cache by its policy. What a sequence
 * needs is taken at once or not at all, so no two half-served prompts wait for each other. */
#include "node/state.h"

#include "common/failpoint.h"
#include "common/plant.h"

uint32_t accounts_need_all(const struct sequence *s)
{
    uint32_t total = seq_total(s);
    if (s->kind == SEQ_PUSH || s->kind == SEQ_PLAIN) return blocks_for_tokens(total);
    uint32_t last = s->job.prompt_count + s->generated_max - 1; /* the last token needs no KV */
    return blocks_for_tokens(last > total ? last : total);
}

uint32_t accounts_need(const struct sequence *s)
{
    uint32_t now = blocks_for_tokens(seq_total(s)) + 1, all = accounts_need_all(s);
    return now < all ? now : all;
}

uint32_t accounts_available(const struct node_core *c)
{
    return kv_pool_counts(c->pool).free + (c->cache ? kv_prefix_evictable(c->cache) : 0);
}

uint32_t accounts_peek(const struct node_core *c, const struct sequence *s)
{
    return c->cache ? kv_prefix_peek(c->cache, s->job.tenant_salt, s->tokens, seq_total(s)) : 0;
}

void accounts_take(struct node_core *c, enum hold kind, struct block_id *blocks, uint32_t count)
{
    uint32_t free = kv_pool_counts(c->pool).free;
    if (free < count) {
        uint32_t evicted = kv_prefix_evict(c->cache, count - free);
        CHECK(evicted == count - free);
    }
    for (uint32_t i = 0; i < count; i++) {
        enum err e = kv_pool_take(c->pool, kind, &blocks[i]);
        CHECK(e == OK);
    }
}

static void take(struct node_core *c, struct sequence *s, uint32_t count)
{
    CHECK(s->table_count + count <= s->table_capacity);
    accounts_take(c, s->hold, s->table + s->table_count, count);
    s->table_count += count;
}

enum err accounts_open(struct node_core *c, struct sequence *s, enum hold kind)
{
    uint32_t need = accounts_need(s);
    CHECK(s->table_count == 0 && need <= s->table_capacity);
    s->hold = kind;
    if (c->cache && encode_may_skip(s))
        s->table_count = kv_prefix_match(c->cache, s->job.tenant_salt, s->tokens, seq_total(s),
                                         kind, s->table, need);
    for (uint32_t i = 0; PLANTED("pin_omitted") && i < s->table_count; i++)
        kv_pool_drop(c->pool, s->table[i], kind);
    if (need - s->table_count > accounts_available(c)) {
        accounts_close(c, s);
        return ERR_FULL;
    }
    if (c->cache) kv_prefix_used(c->cache, s->table, s->table_count);
    if (c->cache && encode_may_skip(s) && !s->preempted)
        kv_usage_opened(&c->usage, s->job.tenant_salt, seq_total(s), s->table_count * BLOCK_TOKENS);
    s->kv_count = s->planned = s->table_count * BLOCK_TOKENS;
    take(c, s, need - s->table_count);
    return OK;
}

enum err accounts_fork(struct node_core *c, struct sequence *s, const struct sequence *of)
{
    uint32_t last = s->job.prompt_count - 1, shared = last / BLOCK_TOKENS, need = accounts_need(s);
    CHECK(s->table_count == 0 && need <= s->table_capacity && of->kv_count > last);
    if (need - shared > accounts_available(c)) return ERR_FULL;
    s->hold = HOLD_SEQUENCE;
    for (; s->table_count < shared; s->table_count++) {
        s->table[s->table_count] = of->table[s->table_count];
        kv_pool_hold(c->pool, s->table[s->table_count], s->hold);
    }
    if (last % BLOCK_TOKENS > 0) {
        s->copy_from = of->table[shared];
        if (!PLANTED("fork_not_held")) kv_pool_hold(c->pool, s->copy_from, s->hold);
    }
    s->kv_count = s->planned = last; /* that token is computed again: its logits are wanted */
    take(c, s, need - shared);
    c->counts.forks++;
    c->counts.fork_shared_blocks += shared;
    c->counts.fork_copied_blocks += s->copy_from.v != BLOCK_NONE.v;
    return OK;
}

void accounts_close(struct node_core *c, struct sequence *s)
{
    if (s->table_count > 0) FAILPOINT("free");
    kv_pool_drop_all(c->pool, s->table, s->table_count, s->hold);
    if (s->copy_from.v != BLOCK_NONE.v && !PLANTED("fork_not_held"))
        kv_pool_drop(c->pool, s->copy_from, s->hold);
    s->copy_from = BLOCK_NONE;
    s->table_count = s->kv_count = s->planned = 0;
}

void accounts_move(struct node_core *c, struct sequence *s, enum hold to)
{
    for (uint32_t i = 0; i < s->table_count; i++)
        kv_pool_move(c->pool, s->table[i], s->hold, to);
    s->hold = to;
}

void accounts_insert(struct node_core *c, struct sequence *s)
{
    if (!c->cache) return;
    uint32_t whole = s->kv_count / BLOCK_TOKENS * BLOCK_TOKENS;
    kv_prefix_insert(c->cache, s->job.tenant_salt, s->tokens, whole, s->hold, s->table);
    tier_keep(c, s);
}

enum err accounts_grow(struct node_core *c, struct sequence *s)
{
    if (accounts_available(c) == 0) return ERR_FULL;
    take(c, s, 1);
    return OK;
}
