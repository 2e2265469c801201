#include "replay/replay.h"

#include "common/geometry.h"
#include "common/mem.h"
#include "kv/prefix.h"

enum { EXPIRED_MAX = 4096 };

struct run {
    const struct trace *trace;
    struct kv_pool *pool;
    struct kv_prefix *cache;
    struct block_id *table;
    uint32_t *tokens;              /* stand for those of the trace: equal where their units are */
    struct replay_tenant *tenants; /* or NULL */
    struct replay_result *result;
};

static void spell(const struct run *r, const struct trace_request *q)
{
    uint32_t per = r->trace->unit_blocks;
    for (uint32_t b = 0; b < q->tokens_count / BLOCK_TOKENS; b++) {
        r->tokens[b * BLOCK_TOKENS] = r->trace->unit[q->unit_first + b / per];
        r->tokens[b * BLOCK_TOKENS + 1] = b % per;
    }
}

static void one_request(struct run *r, const struct trace_request *q)
{
    uint32_t need = (q->tokens_count + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    while (kv_prefix_tick(r->cache, q->at_ns, EXPIRED_MAX) == EXPIRED_MAX)
        ;
    spell(r, q);
    struct kv_owner owner = {q->tenant, r->tenants ? r->tenants[q->tenant].weight : 0};
    struct kv_prompt prompt = {owner.tenant, r->tokens, q->tokens_count};
    uint32_t held = kv_prefix_match(r->cache, &prompt, HOLD_SEQUENCE, r->table, need);
    uint32_t free = kv_pool_counts(r->pool).free, lack = need - held;
    if (lack > free + kv_prefix_evictable(r->cache)) {
        r->result->refused_count++;
        lack = 0;
        need = held;
    } else {
        kv_prefix_used(r->cache, r->table, held);
        r->result->hit_blocks += held;
        if (r->tenants) r->tenants[q->tenant].hit_blocks += held;
        r->result->new_blocks += lack;
    }
    if (lack > free) {
        uint32_t evicted = kv_prefix_evict(r->cache, lack - free);
        CHECK(evicted == lack - free);
    }
    for (uint32_t i = held; i < need; i++) {
        enum err e = kv_pool_take(r->pool, HOLD_SEQUENCE, &r->table[i]);
        CHECK(e == OK);
    }
    if (lack > 0) kv_prefix_insert(r->cache, owner, &prompt, HOLD_SEQUENCE, r->table);
    for (uint32_t i = 0; i < need; i++)
        kv_pool_drop(r->pool, r->table[i], HOLD_SEQUENCE);
}

enum err replay_run(const struct trace *t, const struct evict_config *config, uint32_t blocks_count,
                    struct replay_tenant *tenants, struct replay_result *result)
{
    enum err e;
    struct run r = {.trace = t, .tenants = tenants, .result = result};
    size_t blocks_max = t->tokens_max / BLOCK_TOKENS + 1;
    *result = (struct replay_result){0};
    r.table = mem_array(blocks_max, sizeof *r.table);
    r.tokens = mem_array(blocks_max * BLOCK_TOKENS, sizeof *r.tokens);
    e = r.table && r.tokens ? OK : ERR_MEMORY;
    if (e == OK) e = kv_pool_new(&r.pool, blocks_count);
    if (e == OK) e = kv_prefix_new(&r.cache, r.pool, blocks_count, config);
    for (uint32_t i = 0; tenants && i < t->tenants_count; i++)
        tenants[i].hit_blocks = 0;
    for (uint32_t i = 0; e == OK && i < t->requests_count; i++)
        one_request(&r, &t->request[i]);
    if (e == OK) {
        struct kv_prefix_stats stats = kv_prefix_stats(r.cache);
        result->evicted_blocks = stats.evicted_blocks;
        result->expired_blocks = stats.expired_blocks;
    }
    kv_prefix_free(r.cache);
    kv_pool_free(r.pool);
    mem_free(r.table);
    mem_free(r.tokens);
    return e;
}
