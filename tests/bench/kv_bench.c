/* What a block costs the loop thread: taking and dropping it, in pools of three sizes, and evicting one
 * where each of many cached blocks is a candidate. */
#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "kv/prefix.h"
#include "tests/bench/figures.h"

enum { PAIRS = 1 << 21, BATCH = 1000 };

static const char *const policies[] = {"lru", "lfu", "s3fifo", "cost", "ttl"};

/* All blocks are let go of in an order that caches cannot guess, which is that of the free ones then. */
static void shuffle(struct kv_pool *pool, uint32_t blocks_count)
{
    struct block_id *block = mem_array(blocks_count, sizeof *block);
    CHECK(block);
    for (uint32_t i = 0; i < blocks_count; i++)
        CHECK(kv_pool_take(pool, HOLD_SEQUENCE, &block[i]) == OK);
    for (uint32_t i = blocks_count; i > 0; i--) {
        uint32_t other = rng_draw(1, 2, i).word[0] % i;
        kv_pool_drop(pool, block[other], HOLD_SEQUENCE);
        block[other] = block[i - 1];
    }
    mem_free(block);
}

/* The free blocks go round, so each one taken is the one that was not touched for longest. */
static void take_and_drop(uint32_t blocks_count)
{
    struct kv_pool *pool;
    struct block_id block;
    CHECK(kv_pool_new(&pool, blocks_count) == OK);
    shuffle(pool, blocks_count);
    uint64_t began_ns = clock_now_ns();
    for (uint32_t i = 0; i < PAIRS; i++) {
        CHECK(kv_pool_take(pool, HOLD_SEQUENCE, &block) == OK);
        kv_pool_drop(pool, block, HOLD_SEQUENCE);
    }
    double ns = (double)(clock_now_ns() - began_ns) / PAIRS;
    figure_print(ns, "take_and_drop_ns_of_%u", blocks_count);
    kv_pool_free(pool);
}

/* Prompts of one block each, of which some are found again. */
static void fill(struct kv_pool *pool, struct kv_prefix *cache, uint32_t blocks_count)
{
    for (uint32_t i = 0; i < 2 * blocks_count; i++) {
        bool again = i >= blocks_count;
        uint32_t name = again ? rng_draw(1, 1, i).word[0] % blocks_count : i;
        uint32_t tokens[BLOCK_TOKENS + 1] = {name};
        struct block_id block;
        if (again) {
            CHECK(kv_prefix_match(cache, 0, tokens, BLOCK_TOKENS + 1, HOLD_SEQUENCE, &block, 1) ==
                  1);
            kv_prefix_used(cache, &block, 1);
        } else {
            CHECK(kv_pool_take(pool, HOLD_SEQUENCE, &block) == OK);
            kv_prefix_insert(cache, 0, tokens, BLOCK_TOKENS, HOLD_SEQUENCE, &block);
        }
        kv_pool_drop(pool, block, HOLD_SEQUENCE);
    }
}

static void evict(enum evict_policy policy, uint32_t blocks_count)
{
    struct kv_pool *pool;
    struct kv_prefix *cache;
    struct evict_config config = {policy, 300 * NS_PER_S};
    CHECK(kv_pool_new(&pool, blocks_count) == OK);
    CHECK(kv_prefix_new(&cache, pool, blocks_count, &config) == OK);
    fill(pool, cache, blocks_count);
    uint32_t evicted = 0;
    uint64_t began_ns = clock_now_ns(), slowest_ns = 0, before_ns = began_ns;
    while (evicted < blocks_count / 10) {
        evicted += kv_prefix_evict(cache, BATCH);
        uint64_t now_ns = clock_now_ns();
        if (now_ns - before_ns > slowest_ns) slowest_ns = now_ns - before_ns;
        before_ns = now_ns;
    }
    figure_print((double)(before_ns - began_ns) / evicted, "evict_ns_%s_of_%u", policies[policy],
                 blocks_count);
    figure_print((double)slowest_ns / BATCH, "evict_ns_%s_of_%u_slowest_batch", policies[policy],
                 blocks_count);
    kv_prefix_free(cache);
    kv_pool_free(pool);
}

int main(void)
{
    uint32_t pools[] = {1000, 100000, 10000000}, candidates[] = {10000, 100000, 1000000};
    for (int i = 0; i < 3; i++)
        take_and_drop(pools[i]);
    for (enum evict_policy p = 0; p < EVICT_POLICIES_COUNT; p++)
        for (int i = 0; i < 3; i++)
            evict(p, candidates[i]);
    figures_end();
    return 0;
}
