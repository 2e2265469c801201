/* What a block costs the loop thread: taking and dropping it, in pools of four sizes, and evicting one
 * where each of many cached blocks is a candidate. */
#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "kv/prefix.h"
#include "tests/bench/figures.h"

enum { PAIRS = 1 << 21, BATCH = 1000, TABLE = 128 };
enum { PROMPT_MAX = 64, ANSWER_MAX = 64, MEAN = PROMPT_MAX / 2 + ANSWER_MAX / 4 }; /* blocks */

static const char *const policies[] = {"lru", "lfu", "s3fifo", "cost", "ttl"};

/* All blocks, in an order that caches cannot guess. */
static struct block_id *take_shuffled(struct kv_pool *pool, uint32_t blocks_count)
{
    struct block_id *block = mem_array(blocks_count, sizeof *block);
    CHECK(block);
    for (uint32_t i = 0; i < blocks_count; i++)
        CHECK(kv_pool_take(pool, HOLD_SEQUENCE, &block[i]) == OK);
    for (uint32_t i = blocks_count; i > 1; i--) {
        uint32_t other = rng_draw(1, 2, i).word[0] % i;
        struct block_id b = block[other];
        block[other] = block[i - 1];
        block[i - 1] = b;
    }
    return block;
}

/* As a full node has it: a sequence lets go of its table, whose blocks lie anywhere, and another one takes
 * as many. A block that is taken is the one that was freed longest ago. */
static void sequences(struct kv_pool *pool, struct block_id *block, uint32_t held,
                      uint32_t blocks_count)
{
    uint32_t first = 0;
    uint64_t began_ns = clock_now_ns();
    for (uint32_t done = 0; done < PAIRS; done += TABLE) {
        if (first + TABLE > held) first = 0;
        kv_pool_drop_all(pool, block + first, TABLE, HOLD_SEQUENCE);
        for (uint32_t i = 0; i < TABLE; i++)
            CHECK(kv_pool_take(pool, HOLD_SEQUENCE, &block[first + i]) == OK);
        first += TABLE;
    }
    double ns = (double)(clock_now_ns() - began_ns) / PAIRS;
    figure_print(ns, "take_and_drop_ns_of_%u_by_sequence", blocks_count);
}

/* One by one: what is dropped is some block of all, then one is taken. Nothing says which is next. */
static void singles(struct kv_pool *pool, struct block_id *block, uint32_t held,
                    uint32_t blocks_count)
{
    uint64_t began_ns = clock_now_ns();
    for (uint32_t i = 0; i < PAIRS; i++) {
        struct block_id *b = &block[i % held];
        kv_pool_drop(pool, *b, HOLD_SEQUENCE);
        CHECK(kv_pool_take(pool, HOLD_SEQUENCE, b) == OK);
    }
    double ns = (double)(clock_now_ns() - began_ns) / PAIRS;
    figure_print(ns, "take_and_drop_ns_of_%u", blocks_count);
}

/* A second sequence with the same blocks comes, and goes. */
static void shared(struct kv_pool *pool, const struct block_id *block, uint32_t held,
                   uint32_t blocks_count)
{
    uint32_t first = 0;
    uint64_t began_ns = clock_now_ns();
    for (uint32_t done = 0; done < PAIRS; done += TABLE) {
        if (first + TABLE > held) first = 0;
        for (uint32_t i = 0; i < TABLE; i++)
            kv_pool_hold(pool, block[first + i], HOLD_SEQUENCE);
        kv_pool_drop_all(pool, block + first, TABLE, HOLD_SEQUENCE);
        first += TABLE;
    }
    double ns = (double)(clock_now_ns() - began_ns) / PAIRS;
    figure_print(ns, "hold_and_drop_ns_of_%u", blocks_count);
}

struct sequence {
    uint32_t count, end;
    struct block_id *block; /* [PROMPT_MAX + ANSWER_MAX] */
};

/* A prompt's blocks at once; what finds no room has fewer. */
static void begin(struct kv_pool *pool, struct sequence *s, uint32_t number)
{
    struct rng_block r = rng_draw(2, 1, number);
    uint32_t prompt = 1 + r.word[0] % PROMPT_MAX;
    s->count = 0;
    s->end = prompt + 1 + r.word[1] % ANSWER_MAX;
    while (s->count < prompt && kv_pool_take(pool, HOLD_SEQUENCE, &s->block[s->count]) == OK)
        s->count++;
}

/* One block for each sequence; one that is at its end, or finds none, makes way for another. Returns how many
 * were taken. */
static uint64_t turn(struct kv_pool *pool, struct sequence *all, uint32_t count, uint32_t *begun)
{
    uint64_t taken = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct sequence *s = &all[i];
        if (i + 8 < count) __builtin_prefetch(&s[8].block[s[8].count], 1); /* not the pool's */
        if (s->count < s->end && kv_pool_take(pool, HOLD_SEQUENCE, &s->block[s->count]) == OK) {
            s->count++;
            taken++;
        } else {
            kv_pool_drop_all(pool, s->block, s->count, HOLD_SEQUENCE);
            begin(pool, s, (*begun)++);
            taken += s->count;
        }
    }
    return taken;
}

/* As a node that has run for long: nine tenths of its blocks are of sequences, each of which takes its next
 * block when all others have, so that what it lets go of at its end lies anywhere. */
static void steady(uint32_t blocks_count)
{
    struct kv_pool *pool;
    uint32_t count = blocks_count / 10 * 9 / MEAN, begun = 0, capacity = PROMPT_MAX + ANSWER_MAX;
    uint64_t taken = 0;
    struct sequence *all = mem_table(count, sizeof *all);
    struct block_id *table = mem_table((size_t)count * capacity, sizeof *table);
    CHECK(all && table && kv_pool_new(&pool, blocks_count) == OK);
    for (uint32_t i = 0; i < count; i++) {
        all[i].block = table + (size_t)i * capacity;
        begin(pool, &all[i], begun++);
    }
    for (int i = 0; i < 2 * ANSWER_MAX; i++)
        turn(pool, all, count, &begun);
    uint64_t began_ns = clock_now_ns();
    while (taken < PAIRS)
        taken += turn(pool, all, count, &begun);
    figure_print((double)(clock_now_ns() - began_ns) / (double)taken,
                 "take_and_drop_ns_of_%u_steady", blocks_count);
    mem_free(all);
    mem_free(table);
    kv_pool_free(pool);
}

/* A tenth of the blocks is free, so that what is dropped is not what is taken next. */
static void take_and_drop(uint32_t blocks_count)
{
    struct kv_pool *pool;
    CHECK(kv_pool_new(&pool, blocks_count) == OK);
    struct block_id *block = take_shuffled(pool, blocks_count);
    uint32_t held = blocks_count - blocks_count / 10;
    kv_pool_drop_all(pool, block + held, blocks_count - held, HOLD_SEQUENCE);
    singles(pool, block, held, blocks_count);
    sequences(pool, block, held, blocks_count);
    shared(pool, block, held, blocks_count);
    mem_free(block);
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
            CHECK(kv_prefix_match(cache, &(struct kv_prompt){0, tokens, BLOCK_TOKENS + 1},
                                  HOLD_SEQUENCE, &block, 1) == 1);
            kv_prefix_used(cache, &block, 1);
        } else {
            CHECK(kv_pool_take(pool, HOLD_SEQUENCE, &block) == OK);
            kv_prefix_insert(cache, (struct kv_owner){0},
                             &(struct kv_prompt){0, tokens, BLOCK_TOKENS}, HOLD_SEQUENCE, &block);
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
    uint32_t pools[] = {1000, 100000, 1000000, 10000000}, candidates[] = {10000, 100000, 1000000};
    for (size_t i = 0; i < COUNT_OF(pools); i++) {
        take_and_drop(pools[i]);
        steady(pools[i]);
    }
    for (enum evict_policy p = 0; p < EVICT_POLICIES_COUNT; p++)
        for (int i = 0; i < 3; i++)
            evict(p, candidates[i]);
    figures_end();
    return 0;
}
