#include "tests/unit/testing.h"

#include "common/clock.h"
#include "node/state.h"
#include "tests/unit/node_rig.h"

/* A router that keeps a mirror of the node's cache, from BLOCKS alone. */
enum { MIRROR_MAX = 16384 };
struct mirror {
    uint64_t hashes[MIRROR_MAX];
    uint32_t count;
    uint64_t number;
};

static struct rig d;
static struct mirror mirror;

static void forget_hash(uint64_t hash)
{
    for (uint32_t i = 0; i < mirror.count; i++)
        if (mirror.hashes[i] == hash) {
            mirror.hashes[i] = mirror.hashes[--mirror.count];
            return;
        }
}

static void take(const struct msg_blocks *b)
{
    assert_int_equal(b->number, mirror.number + 1);
    mirror.number = b->number;
    if (b->cleared) mirror.count = 0;
    for (uint32_t i = 0; i < b->hashes_count; i++) {
        forget_hash(b->hashes[i]); /* it may be told twice */
        assert_true(mirror.count < MIRROR_MAX);
        if (b->what[i] == TIER_POOL) mirror.hashes[mirror.count++] = b->hashes[i];
    }
}

/* Everything that was said to this router since the last time. */
static void listen(uint32_t router)
{
    for (uint32_t i = 0; i < d.said_count; i++)
        if (d.said[i].m.kind == MSG_BLOCKS && d.said[i].peer.v == router + 1)
            take(&d.said[i].m.blocks);
    rig_forget(&d);
}

static void expect_mirror(void)
{
    struct kv_prefix_entry e;
    uint32_t cached = 0;
    for (uint32_t i = 0; i < d.config.blocks_count; i++) {
        if (!kv_prefix_look(d.core->cache, (struct block_id){i}, &e)) continue;
        uint32_t k = 0;
        while (k < mirror.count && mirror.hashes[k] != e.hash)
            k++;
        assert_true(k < mirror.count);
        cached++;
    }
    assert_int_equal(mirror.count, cached);
}

/* A prompt of so many tokens, of which the first 32 are those of its family; computed and decoded here. */
static void serve(uint32_t id, uint32_t tokens)
{
    struct rig_prompt p = {
        .seed = id, .family = id % 5, .shared_count = 32, .count = tokens, .tokens_max = 8};
    struct job job = rig_job(id, &p);
    rig_reserve(&d, &job, true);
    rig_run(&d);
    rig_acknowledge(&d, job.key);
}

static void open_node(uint32_t routers_count)
{
    rig_open(&d, &(struct rig_options){
                     .role = ROLE_DECODE, .blocks_count = 16, .routers_count = routers_count});
    mirror = (struct mirror){.count = 0};
}

static void a_router_knows_the_cache_from_the_news_alone(void **state)
{
    (void)state;
    open_node(1);
    for (uint32_t id = 1; id <= 20; id++) { /* more than the pool has room for */
        serve(id, 40 + id % 3 * 16);
        listen(0);
        expect_mirror();
    }
    assert_true(mirror.count > 0 && kv_prefix_stats(d.core->cache).evicted_blocks > 0);
    rig_free(&d);
}

static void a_router_that_comes_later_is_told_everything(void **state)
{
    (void)state;
    open_node(2);
    serve(1, 60);
    serve(2, 60);
    listen(1);
    assert_int_equal(mirror.count, 0); /* it has not joined */
    rig_join(&d, 1);
    rig_advance(&d, NS_PER_S);
    listen(1);
    expect_mirror();
    assert_int_equal(mirror.count, 8);
    rig_free(&d);
}

static void who_lost_some_asks_and_is_told_everything_again(void **state)
{
    (void)state;
    open_node(1);
    serve(1, 60);
    listen(0);
    mirror.count = 3;
    mirror.hashes[0] = 12345; /* something that is not true any more */
    rig_say(&d, (struct msg){.kind = MSG_BLOCKS, .blocks = {.cleared = true}});
    rig_advance(&d, NS_PER_S);
    listen(0);
    expect_mirror();
    rig_free(&d);
}

static void more_news_than_fit_are_all_told_again(void **state)
{
    (void)state;
    open_node(1);
    serve(1, 60);
    listen(0);
    for (uint64_t i = 0; i <= MSG_BLOCKS_MAX; i++)
        events_stored(d.core, 1000 + i, TIER_DISK);
    rig_advance(&d, NS_PER_S);
    bool cleared = false;
    for (uint32_t i = 0; i < d.said_count; i++)
        cleared |= d.said[i].m.kind == MSG_BLOCKS && d.said[i].m.blocks.cleared;
    assert_true(cleared);
    listen(0);
    expect_mirror();
    rig_free(&d);
}

static void tiers_are_told_apart(void **state)
{
    (void)state;
    open_node(1);
    rig_forget(&d);
    events_stored(d.core, 7, TIER_DISK);
    events_gone(d.core, 8, TIER_SHARED);
    rig_advance(&d, NS_PER_S);
    const struct msg_blocks *b = &rig_said(&d, MSG_BLOCKS)->blocks;
    assert_int_equal(b->hashes_count, 2);
    assert_int_equal(b->what[0], TIER_DISK);
    assert_int_equal(b->what[1], TIER_SHARED + BLOCK_GONE);
    assert_int_equal(b->hashes[1], 8);
    rig_free(&d);
}

static void a_node_without_a_cache_has_no_news(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){
                     .role = ROLE_DECODE, .blocks_count = 16, .no_prefix_cache = true});
    serve(1, 60);
    assert_int_equal(rig_said_count(&d, MSG_BLOCKS), 0);
    rig_say(&d, (struct msg){.kind = MSG_BLOCKS, .blocks = {.cleared = true}});
    assert_true(rig_said(&d, MSG_BLOCKS)->blocks.cleared);
    rig_free(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_router_knows_the_cache_from_the_news_alone),
        cmocka_unit_test(a_router_that_comes_later_is_told_everything),
        cmocka_unit_test(who_lost_some_asks_and_is_told_everything_again),
        cmocka_unit_test(more_news_than_fit_are_all_told_again),
        cmocka_unit_test(tiers_are_told_apart),
        cmocka_unit_test(a_node_without_a_cache_has_no_news),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
