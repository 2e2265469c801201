#include "tests/unit/testing.h"

#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "router/index.h"

static uint64_t hash_of(uint64_t n)
{
    struct rng_block b = rng_draw(7, 1, n);
    return (uint64_t)b.word[0] << 32 | b.word[1];
}

static struct index *index_with(uint64_t blocks_max)
{
    struct index *x;
    assert_ok(index_new(&x, blocks_max));
    return x;
}

static uint32_t held(const struct index *x, uint16_t node, uint64_t hash)
{
    return index_match(x, node, &hash, 1).any;
}

static void a_million_blocks_take_less_than_32_bytes_each(void **state)
{
    (void)state;
    enum { BLOCKS = 1 << 20, NODES = 4 };
    struct index *x = index_with(BLOCKS);
    uint64_t allocations = mem_count();
    for (int i = 0; i < NODES; i++)
        index_join(x);
    for (uint64_t i = 0; i < BLOCKS; i++)
        index_add(x, i % NODES, hash_of(i), TIER_POOL);
    uint64_t found = 0;
    for (uint64_t i = 0; i < BLOCKS; i++)
        found += held(x, i % NODES, hash_of(i));
    struct index_stats s = index_stats(x);
    assert_int_equal(found, s.entries);
    assert_int_equal(s.entries + s.dropped, BLOCKS);
    assert_true(s.dropped < BLOCKS / 1000);
    assert_true(s.bytes < 32 * found);
    assert_int_equal(mem_count(), allocations); /* there is nothing else */
    index_free(x);
}

static void a_block_of_many_nodes_takes_less(void **state)
{
    (void)state;
    enum { BLOCKS = 4096, NODES = 5 };
    struct index *x = index_with(BLOCKS);
    for (int i = 0; i < NODES; i++)
        index_join(x);
    for (uint64_t i = 0; i < BLOCKS * NODES; i++)
        index_add(x, i % NODES, hash_of(i / NODES), TIER_POOL);
    struct index_stats s = index_stats(x);
    assert_true(s.entries > BLOCKS * NODES * 99 / 100);
    assert_true(s.bytes < 10 * s.entries + 4096);
    index_free(x);
}

/* What the index would be without bounds: by node and hash, where the node has the block. */
enum { N_NODES = 12, N_HASHES = 300 };
struct naive {
    bool in[N_NODES][N_HASHES][TIERS];
};

static bool naive_has(const struct naive *n, uint32_t node, uint32_t hash, enum block_tier furthest)
{
    bool has = false;
    for (enum block_tier tier = TIER_POOL; tier <= furthest; tier++)
        has |= n->in[node][hash][tier];
    return has;
}

static void agree(const struct index *x, const uint16_t *number, const struct naive *n)
{
    uint64_t pairs = 0;
    for (uint32_t node = 0; node < N_NODES; node++)
        for (uint32_t h = 0; h < N_HASHES; h++) {
            uint64_t hash = hash_of(h);
            struct index_held got = index_match(x, number[node], &hash, 1);
            assert_int_equal(got.pool, naive_has(n, node, h, TIER_POOL));
            assert_int_equal(got.host, naive_has(n, node, h, TIER_HOST));
            assert_int_equal(got.any, naive_has(n, node, h, TIER_DISK));
            struct index_set holders = index_holders(x, hash);
            assert_int_equal(index_set_has(&holders, number[node]), got.any);
            pairs += got.any;
        }
    assert_true(index_stats(x).entries >= pairs); /* dead ones are swept later */
}

static void random_news_agree_with_a_naive_model(void **state)
{
    (void)state;
    enum { SEEDS = 4, STEPS = 20000 };
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct naive *n = mem_new(sizeof *n);
        struct index *x = index_with(8 * N_HASHES); /* nothing has to be dropped */
        uint16_t number[N_NODES];
        for (uint32_t i = 0; i < N_NODES; i++)
            number[i] = index_join(x);
        uint64_t allocations = mem_count();
        for (uint32_t step = 0; step < STEPS; step++) {
            struct rng_block r = rng_draw(seed, 2, step);
            uint32_t node = rng_below(r.word[0], N_NODES), h = rng_below(r.word[1], N_HASHES);
            enum block_tier tier = r.word[3] % 3;
            uint32_t what = rng_below(r.word[2], 1000);
            if (what == 0) {
                index_clear(x, number[node]);
            } else if (what == 1) {
                index_leave(x, number[node]);
                number[node] = index_join(x);
            } else if (what < 550) {
                index_add(x, number[node], hash_of(h), tier);
                n->in[node][h][tier] = true;
            } else {
                index_remove(x, number[node], hash_of(h), tier);
                n->in[node][h][tier] = false;
            }
            if (what < 2) memset(n->in[node], 0, sizeof n->in[node]);
            if (step % 1000 == 0) agree(x, number, n);
        }
        agree(x, number, n);
        assert_int_equal(index_stats(x).dropped, 0);
        assert_int_equal(mem_count(), allocations);
        index_free(x);
        mem_free(n);
    }
}

static void the_longest_prefix_is_found_in_pool_and_tiers(void **state)
{
    (void)state;
    enum { LONG = 1000 };
    uint64_t hashes[LONG];
    for (uint64_t i = 0; i < LONG; i++)
        hashes[i] = hash_of(i);
    static const uint32_t rows[][3] = {
        {0, 0, 0},     {1, 1, 1},       {1, 2, 2},         {7, 7, 7},    {7, 9, 20},
        {0, 500, 500}, {499, 500, 501}, {999, 1000, 1000}, {0, 0, 1000}, {1000, 1000, 1000}};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        struct index *x = index_with(4 * LONG);
        uint16_t mine = index_join(x), other = index_join(x);
        for (uint32_t i = 0; i < LONG; i++) {
            if (i < rows[r][0]) index_add(x, mine, hashes[i], TIER_POOL);
            if (i < rows[r][1]) index_add(x, mine, hashes[i], TIER_HOST);
            if (i < rows[r][2]) index_add(x, mine, hashes[i], TIER_DISK);
            index_add(x, other, hashes[i], TIER_POOL);
        }
        struct index_held got = index_match(x, mine, hashes, LONG);
        assert_int_equal(got.pool, rows[r][0]);
        assert_int_equal(got.host, rows[r][1]);
        assert_int_equal(got.any, rows[r][2]);
        assert_int_equal(index_match(x, other, hashes, LONG).pool, LONG);
        assert_int_equal(index_match(x, mine, hashes, 0).any, 0);
        index_free(x);
    }
}

/* Up to where all is there that a window before it lies in, looked for block by block. */
static uint32_t naive_end(const bool *there, uint32_t count, uint32_t reach, uint32_t sinks)
{
    for (uint32_t n = count; n > 0; n--) {
        bool all = true;
        for (uint32_t i = 0; i < n; i++)
            all &= there[i] || (i >= sinks && i + reach < n);
        if (all) return n;
    }
    return 0;
}

static void a_window_is_found_without_the_prompts_beginning(void **state)
{
    (void)state;
    enum { COUNT = 100, CASES = 200 };
    uint64_t hashes[COUNT];
    uint32_t found = 0;
    for (uint64_t i = 0; i < COUNT; i++)
        hashes[i] = hash_of(i);
    for (uint32_t k = 0; k < CASES; k++) {
        struct rng_block r = rng_draw(3, 1, k), s = rng_draw(3, 2, k);
        struct kv_window w = {1 + rng_below(r.word[0], 15 * 16), r.word[1] % 3 * BLOCK_TOKENS};
        uint32_t reach = kv_window_reach(w), sinks = w.sinks / BLOCK_TOKENS;
        bool pool[COUNT] = {0}, any[COUNT] = {0};
        struct index *x = index_with(4 * COUNT);
        uint16_t mine = index_join(x), other = index_join(x);
        /* A run in the pool, more before it in a tier, and mostly the sinks. */
        uint32_t first = s.word[0] % COUNT, tier = s.word[2] % 12, length = s.word[1] % 40;
        bool has_sinks = r.word[2] % 8 > 0;
        for (uint32_t i = 0; i < COUNT; i++) {
            pool[i] = i < sinks ? has_sinks : i >= first && i - first < length;
            any[i] = pool[i] || (i >= sinks && i < first && i + tier >= first);
            if (pool[i]) index_add(x, mine, hashes[i], TIER_POOL);
            if (any[i] && !pool[i]) index_add(x, mine, hashes[i], TIER_HOST);
            if (i % 7) index_add(x, other, hashes[i], TIER_POOL);
        }
        struct index_held got = index_match_window(x, mine, hashes, COUNT, w);
        assert_int_equal(got.pool, naive_end(pool, COUNT, reach, sinks));
        assert_int_equal(got.any, naive_end(any, COUNT, reach, sinks));
        found += got.pool > 0;
        index_free(x);
    }
    assert_in_range(found, CASES / 8, CASES - 1);
}

static void a_full_index_stays_in_its_bounds_and_keeps_the_news(void **state)
{
    (void)state;
    enum { ROOM = 4096, BLOCKS = 100 * ROOM };
    struct index *x = index_with(ROOM);
    uint16_t node = index_join(x);
    uint64_t allocations = mem_count();
    for (uint64_t i = 0; i < BLOCKS; i++) {
        index_add(x, node, hash_of(i), TIER_POOL);
        assert_int_equal(held(x, node, hash_of(i)), 1); /* what came last is there */
    }
    assert_int_equal(mem_count(), allocations);
    struct index_stats s = index_stats(x);
    assert_int_equal(s.entries + s.dropped, BLOCKS);
    assert_in_range(s.entries, ROOM, ROOM * 3 / 2);
    uint64_t recent = 0;
    for (uint64_t i = BLOCKS - ROOM / 4; i < BLOCKS; i++)
        recent += held(x, node, hash_of(i));
    assert_true(recent > ROOM / 4 * 3 / 4);
    index_free(x);
}

/* As an attacker would have it who can choose hashes: all in one bucket, or all the same. */
static void hashes_that_collide_stay_bounded(void **state)
{
    (void)state;
    struct index *x = index_with(1 << 12);
    uint16_t node = index_join(x);
    for (uint64_t i = 0; i < 100000; i++)
        index_add(x, node, i << 40 >> 40, TIER_POOL);
    assert_true(index_stats(x).entries < 1 << 13);
    for (int i = 0; i < 1000; i++)
        index_add(x, node, 42, TIER_POOL);
    assert_int_equal(held(x, node, 42), 1);
    index_remove(x, node, 42, TIER_POOL);
    assert_int_equal(held(x, node, 42), 0);
    index_free(x);
}

static void a_hot_block_is_known_of_many_nodes(void **state)
{
    (void)state;
    struct index *x = index_with(1 << 12);
    uint16_t node[INDEX_NODES_MAX];
    for (int i = 0; i < INDEX_NODES_MAX; i++) {
        node[i] = index_join(x);
        assert_int_not_equal(node[i], INDEX_NONE);
    }
    assert_int_equal(index_join(x), INDEX_NONE);
    uint32_t known = 0;
    for (int i = 0; i < INDEX_HOLDERS_MAX; i++)
        index_add(x, node[i], 1234567, TIER_POOL);
    for (int i = 0; i < INDEX_HOLDERS_MAX; i++)
        known += held(x, node[i], 1234567);
    assert_int_equal(known, INDEX_HOLDERS_MAX);
    index_add(x, node[INDEX_HOLDERS_MAX], 1234567, TIER_POOL); /* others make room */
    assert_int_equal(held(x, node[INDEX_HOLDERS_MAX], 1234567), 1);
    index_free(x);
}

static void who_left_holds_nothing_and_is_swept(void **state)
{
    (void)state;
    enum { BLOCKS = 2000 };
    struct index *x = index_with(BLOCKS);
    uint16_t gone = index_join(x), stays = index_join(x);
    for (uint64_t i = 0; i < BLOCKS / 2; i++)
        index_add(x, gone, hash_of(i), TIER_POOL);
    index_leave(x, gone);
    uint16_t next = index_join(x);
    assert_int_not_equal(next, gone); /* a number comes again as late as can be */
    for (uint64_t i = 0; i < BLOCKS / 2; i++)
        assert_int_equal(held(x, gone, hash_of(i)), 0);
    for (uint64_t i = 0; i < BLOCKS / 2; i++)
        index_add(x, stays, hash_of(BLOCKS + i), TIER_POOL);
    assert_int_equal(index_stats(x).dropped, 0);
    assert_int_equal(index_stats(x).entries, BLOCKS / 2);
    index_free(x);
}

static void what_cannot_be_is_an_error(void **state)
{
    (void)state;
    struct index *x;
    assert_int_equal(index_new(&x, INDEX_BLOCKS_MIN - 1), ERR_INVALID);
    assert_int_equal(index_new(&x, UINT64_MAX / 4), ERR_INVALID);
    for (uint32_t nth = 1; nth <= 2; nth++) {
        mem_fail_at(nth);
        assert_int_equal(index_new(&x, 1000), ERR_MEMORY);
        mem_fail_at(0);
        assert_null(x);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_million_blocks_take_less_than_32_bytes_each),
        cmocka_unit_test(a_block_of_many_nodes_takes_less),
        cmocka_unit_test(random_news_agree_with_a_naive_model),
        cmocka_unit_test(the_longest_prefix_is_found_in_pool_and_tiers),
        cmocka_unit_test(a_window_is_found_without_the_prompts_beginning),
        cmocka_unit_test(a_full_index_stays_in_its_bounds_and_keeps_the_news),
        cmocka_unit_test(hashes_that_collide_stay_bounded),
        cmocka_unit_test(a_hot_block_is_known_of_many_nodes),
        cmocka_unit_test(who_left_holds_nothing_and_is_swept),
        cmocka_unit_test(what_cannot_be_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
