/* Tenants share a cache: whose blocks go, and what nobody can do to the others, whatever he asks for. */
#include "tests/unit/testing.h"

#include "common/mem.h"
#include "common/rng.h"
#include "kv/prefix.h"

enum { T = BLOCK_TOKENS, POOL = 60 };

struct cache {
    struct kv_pool *pool;
    struct kv_prefix *prefix;
};

static struct cache cache_of(uint32_t blocks_count, enum evict_policy policy,
                             uint32_t tenant_percent)
{
    struct cache c;
    struct evict_config config = {policy, 1000000000, tenant_percent};
    assert_ok(kv_pool_new(&c.pool, blocks_count));
    assert_ok(kv_prefix_new(&c.prefix, c.pool, blocks_count, &config));
    return c;
}

static void cache_end(struct cache *c)
{
    kv_prefix_audit(c->prefix);
    kv_pool_audit(c->pool);
    kv_prefix_free(c->prefix);
    assert_int_equal(kv_pool_counts(c->pool).free, kv_pool_counts(c->pool).total);
    kv_pool_free(c->pool);
}

static uint32_t found(const struct cache *c, uint64_t salt, uint64_t name)
{
    uint32_t tokens[T + 1] = {(uint32_t)name, (uint32_t)(name >> 32)};
    return kv_prefix_peek(c->prefix, &(struct kv_prompt){salt, tokens, T + 1});
}

/* A prompt of one block is asked for; what is needed is evicted. Returns how many blocks were found. */
static uint32_t ask(struct cache *c, uint64_t tenant, uint32_t weight, uint64_t name)
{
    uint32_t tokens[T + 1] = {(uint32_t)name, (uint32_t)(name >> 32)};
    struct block_id block;
    uint32_t n = kv_prefix_match(c->prefix, &(struct kv_prompt){tenant, tokens, T + 1},
                                 HOLD_SEQUENCE, &block, 1);
    kv_prefix_used(c->prefix, &block, n);
    if (n == 0) {
        if (kv_pool_counts(c->pool).free == 0) assert_int_equal(kv_prefix_evict(c->prefix, 1), 1);
        assert_ok(kv_pool_take(c->pool, HOLD_SEQUENCE, &block));
        kv_prefix_insert(c->prefix, (struct kv_owner){tenant, weight},
                         &(struct kv_prompt){tenant, tokens, T}, HOLD_SEQUENCE, &block);
    }
    kv_pool_drop(c->pool, block, HOLD_SEQUENCE);
    return n;
}

static uint32_t count_found(const struct cache *c, uint64_t tenant, uint32_t names)
{
    uint32_t n = 0;
    for (uint32_t name = 0; name < names; name++)
        n += found(c, tenant, name);
    return n;
}

static void what_nobody_else_wants_is_lent_and_taken_back_by_weight(void **state)
{
    (void)state;
    for (enum evict_policy p = 0; p < EVICT_POLICIES_COUNT; p++) {
        struct cache c = cache_of(POOL, p, 0);
        for (uint32_t i = 0; i < 3 * POOL; i++)
            ask(&c, 1, 1, i);
        assert_int_equal(count_found(&c, 1, 3 * POOL), POOL); /* all of it */
        for (uint32_t i = 0; i < 3 * POOL; i++)
            ask(&c, 2, 2, i);
        assert_in_range(count_found(&c, 1, 3 * POOL), POOL / 3 - 1, POOL / 3);
        assert_in_range(count_found(&c, 2, 3 * POOL), POOL * 2 / 3, POOL * 2 / 3 + 1);
        for (uint32_t i = 0; i < POOL; i++) /* a third one has use for ten only */
            ask(&c, 3, 3, i % 10);
        assert_int_equal(count_found(&c, 3, POOL), 10);
        cache_end(&c);
    }
}

static void a_flood_leaves_the_others_what_they_use(void **state)
{
    (void)state;
    for (enum evict_policy p = 0; p < EVICT_POLICIES_COUNT; p++) {
        struct cache c = cache_of(POOL, p, 0);
        for (uint32_t i = 0; i < 20; i++)
            ask(&c, 1, 1, i);
        uint32_t hits = 0;
        for (uint32_t i = 0; i < 20000; i++) {
            ask(&c, 2, 1, i);
            if (i % 10 == 0) hits += ask(&c, 1, 1, i / 10 % 20);
        }
        assert_int_equal(hits, 2000);
        cache_end(&c);
    }
}

static void a_quota_is_never_exceeded_and_its_tenant_evicts_its_own(void **state)
{
    (void)state;
    struct cache c = cache_of(POOL, EVICT_LRU, 17);
    for (uint32_t i = 0; i < 5; i++)
        ask(&c, 2, 1, i);
    for (uint32_t i = 0; i < 100; i++) {
        ask(&c, 1, 1, i);
        assert_true(count_found(&c, 1, 100) <= 10);
        assert_int_equal(found(&c, 1, i), 1); /* the newest is there */
    }
    assert_int_equal(count_found(&c, 2, 5), 5);
    assert_int_equal(kv_pool_counts(c.pool).free, POOL - 15);
    /* A prompt longer than the quota: what it holds itself cannot go, so its rest stays uncached. */
    struct block_id blocks[12];
    uint32_t tokens[12 * T];
    for (uint32_t i = 0; i < 12 * T; i++)
        tokens[i] = 77000 + i;
    for (uint32_t i = 0; i < 12; i++)
        assert_ok(kv_pool_take(c.pool, HOLD_SEQUENCE, &blocks[i]));
    kv_prefix_insert(c.prefix, (struct kv_owner){1, 1}, &(struct kv_prompt){1, tokens, 12 * T},
                     HOLD_SEQUENCE, blocks);
    assert_int_equal(kv_prefix_peek(c.prefix, &(struct kv_prompt){1, tokens, 12 * T}), 10);
    kv_pool_drop_all(c.pool, blocks, 12, HOLD_SEQUENCE);
    cache_end(&c);
}

/* The next block's parent is known, and nobody holds it: it must not be what makes room for its child. */
static void room_is_never_made_by_what_the_new_block_follows(void **state)
{
    (void)state;
    struct cache c = cache_of(8, EVICT_LRU, 13);
    uint32_t tokens[2 * T] = {5};
    struct block_id blocks[2];
    assert_ok(kv_pool_take(c.pool, HOLD_SEQUENCE, &blocks[0]));
    kv_prefix_insert(c.prefix, (struct kv_owner){1, 1}, &(struct kv_prompt){1, tokens, T},
                     HOLD_SEQUENCE, blocks);
    kv_pool_drop(c.pool, blocks[0], HOLD_SEQUENCE);
    blocks[0] = BLOCK_NONE; /* the caller has let go of it */
    assert_ok(kv_pool_take(c.pool, HOLD_SEQUENCE, &blocks[1]));
    kv_prefix_insert(c.prefix, (struct kv_owner){1, 1}, &(struct kv_prompt){1, tokens, 2 * T},
                     HOLD_SEQUENCE, blocks);
    assert_int_equal(kv_prefix_peek(c.prefix, &(struct kv_prompt){1, tokens, 2 * T}), 1);
    kv_pool_drop(c.pool, blocks[1], HOLD_SEQUENCE);
    cache_end(&c);
}

static void more_tenants_than_slots_share_one(void **state)
{
    (void)state;
    static struct kv_shares s;
    s = (struct kv_shares){0};
    assert_int_equal(kv_shares_slot(&s, 0, 9), KV_SHARES_REST);
    for (uint64_t t = 1; t < KV_SHARES_MAX; t++) {
        uint32_t slot = kv_shares_slot(&s, t, 2);
        assert_int_not_equal(slot, KV_SHARES_REST);
        kv_shares_add(&s, slot);
        assert_int_equal(kv_shares_slot(&s, t, 0), slot);
        assert_int_equal(s.share[slot].weight, 2); /* 0: as it was */
    }
    assert_int_equal(kv_shares_slot(&s, 1000, 7), KV_SHARES_REST);
    assert_int_equal(s.share[KV_SHARES_REST].weight, 1);
    kv_shares_drop(&s, kv_shares_slot(&s, 17, 0));
    assert_int_not_equal(kv_shares_slot(&s, 1000, 7), KV_SHARES_REST); /* its place is free */
}

static void a_million_prefixes_and_tenants_stay_in_the_pool(void **state)
{
    (void)state;
    struct cache c = cache_of(1000, EVICT_LFU, 0);
    uint64_t allocations = mem_count();
    for (uint32_t i = 0; i < 10; i++)
        ask(&c, 1, 1, i);
    for (uint32_t i = 0; i < 1000000; i++) {
        assert_int_equal(ask(&c, i % 2 ? 2 : 100 + i, 1, i), 0);
        if (i % 1000 == 0) assert_int_equal(ask(&c, 1, 1, i / 1000 % 10), 1);
    }
    assert_int_equal(mem_count(), allocations);
    assert_int_equal(count_found(&c, 1, 10), 10);
    assert_int_equal(kv_pool_counts(c.pool).cached, 1000);
    cache_end(&c);
}

/* A search looks at KV_PREFIX_CHAIN_MAX entries at the most, and what is found is still right. */
static void forced_collisions_fill_one_chain_and_no_more(void **state)
{
    (void)state;
    struct cache c = cache_of(1000, EVICT_LRU, 0);
    kv_prefix_mask_hashes(c.prefix, 0);
    for (uint32_t i = 0; i < 500; i++) {
        assert_int_equal(ask(&c, 1 + i % 7, 1, i), 0);
        assert_int_equal(found(&c, 1 + i % 7, i), i < KV_PREFIX_CHAIN_MAX);
        assert_int_equal(found(&c, 1 + (i + 1) % 7, i), 0); /* another tenant */
    }
    struct kv_prefix_stats stats = kv_prefix_stats(c.prefix);
    assert_int_equal(stats.entries_count, KV_PREFIX_CHAIN_MAX);
    assert_int_equal(stats.crowded_blocks, 500 - KV_PREFIX_CHAIN_MAX);
    assert_int_equal(kv_prefix_evict(c.prefix, 1), 1); /* and there is place again */
    ask(&c, 1, 1, 5000);
    assert_int_equal(found(&c, 1, 5000), 1);
    cache_end(&c);
}

/* Beside one that looks at every tenant and every block: lru. */
static void random_tenants_agree_with_a_naive_model(void **state)
{
    (void)state;
    enum { TENANTS = 5, NAMES = 40 };
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct cache c = cache_of(POOL, EVICT_LRU, 0);
        uint64_t turn[TENANTS][NAMES] = {0}, now = 0; /* 0: not cached */
        uint32_t held[TENANTS] = {0}, all = 0;
        for (uint32_t step = 0; step < 4000; step++) {
            struct rng_block r = rng_draw(seed, 3, step);
            uint32_t t = r.word[0] % TENANTS, name = r.word[1] % NAMES;
            if (seed % 2) t = r.word[0] % 8 ? 0 : t; /* one that floods */
            bool known = turn[t][name] > 0;
            if (!known && all == POOL) {
                uint32_t most = TENANTS, oldest = NAMES;
                for (uint32_t i = 0; i < TENANTS; i++)
                    if (most == TENANTS || held[i] * (most + 1) > held[most] * (i + 1)) most = i;
                for (uint32_t i = 0; i < NAMES; i++)
                    if (turn[most][i] && (oldest == NAMES || turn[most][i] < turn[most][oldest]))
                        oldest = i;
                turn[most][oldest] = 0;
                held[most]--;
                all--;
            }
            assert_int_equal(ask(&c, 10 + t, t + 1, name), known);
            held[t] += !known;
            all += !known;
            turn[t][name] = ++now;
            if (step % 50) continue;
            for (uint32_t i = 0; i < TENANTS; i++)
                assert_int_equal(count_found(&c, 10 + i, NAMES), held[i]);
            kv_pool_audit(c.pool);
        }
        cache_end(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_nobody_else_wants_is_lent_and_taken_back_by_weight),
        cmocka_unit_test(a_flood_leaves_the_others_what_they_use),
        cmocka_unit_test(a_quota_is_never_exceeded_and_its_tenant_evicts_its_own),
        cmocka_unit_test(room_is_never_made_by_what_the_new_block_follows),
        cmocka_unit_test(more_tenants_than_slots_share_one),
        cmocka_unit_test(a_million_prefixes_and_tenants_stay_in_the_pool),
        cmocka_unit_test(forced_collisions_fill_one_chain_and_no_more),
        cmocka_unit_test(random_tenants_agree_with_a_naive_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
