#include "tests/unit/router_rig.h"

#include "common/prefix_hash.h"

/* What nodes tell of their blocks, and where prompts go by it. A prompt is 20 tokens: one whole block. */

static uint64_t first_block(void)
{
    return prefix_hash_block(0, prompt);
}

static void tell_blocks(struct world *w, uint32_t peer, uint64_t number, bool cleared,
                        uint64_t hash, uint32_t what)
{
    say(w, peer, (struct msg){.kind = MSG_BLOCKS, .blocks = {number, cleared, &hash, &what, 1, 1}});
}

static struct router_counts counts_of(const struct world *w)
{
    struct router_counts c;
    router_core_counts(w->core, &c);
    return c;
}

static struct world *opened(struct world *w, uint64_t prefix_index)
{
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.disaggregate = DISAGGREGATE_ALWAYS;
    config.prefix_index = prefix_index;
    world_open_joined(w, &config);
    return w;
}

/* Where the next request is sent to. */
static uint32_t decode_of_next(struct world *w)
{
    size_t read = w->read;
    submit(w, 4);
    for (size_t i = read; i < w->sent_count; i++)
        if (w->sent[i].m.kind == MSG_RESERVE) return w->sent[i].peer.v;
    fail_msg("nobody was asked");
    return 0;
}

static void a_request_goes_where_its_prefix_is(void **state)
{
    (void)state;
    struct world w;
    opened(&w, 4096);
    assert_int_equal(decode_of_next(&w), D0);
    world_close(&w);

    opened(&w, 4096);
    tell_blocks(&w, D1, 1, false, first_block(), TIER_POOL);
    assert_int_equal(decode_of_next(&w), D1);
    reserve_held(&w, D1, 16);
    struct router_counts c = counts_of(&w);
    assert_int_equal(c.prefix_lookups, 1);
    assert_int_equal(c.prefix_hits, 1);
    assert_int_equal(c.prefix_hit_tokens, 16);
    assert_int_equal(c.prefix_false, 0);
    world_close(&w);
}

static void without_an_index_news_change_nothing(void **state)
{
    (void)state;
    struct world w;
    opened(&w, 0);
    tell_blocks(&w, D1, 1, false, first_block(), TIER_POOL);
    assert_int_equal(decode_of_next(&w), D0);
    assert_int_equal(counts_of(&w).prefix_lookups, 0);
    world_close(&w);
}

static void what_left_is_not_looked_for_there(void **state)
{
    (void)state;
    struct world w;
    opened(&w, 4096);
    tell_blocks(&w, D1, 1, false, first_block(), TIER_POOL);
    tell_blocks(&w, D1, 2, false, first_block(), TIER_POOL + BLOCK_GONE);
    assert_int_equal(decode_of_next(&w), D0);
    world_close(&w);

    opened(&w, 4096);
    tell_blocks(&w, D1, 1, false, first_block(), TIER_POOL);
    tell_blocks(&w, D1, 2, true, 77, TIER_POOL);
    assert_int_equal(decode_of_next(&w), D0);
    world_close(&w);
}

static void an_entry_that_was_false_costs_a_miss_and_is_forgotten(void **state)
{
    (void)state;
    struct world w;
    opened(&w, 4096);
    tell_blocks(&w, D1, 1, false, first_block(), TIER_POOL);
    assert_int_equal(decode_of_next(&w), D1);
    struct job_key key = reserve_held(&w, D1, 0);
    assert_int_equal(counts_of(&w).prefix_false, 1);
    assert_int_equal(counts_of(&w).prefix_hits, 0);
    tell_tokens(&w, D1, key, 0, 4);
    tell_finished(&w, D1, key, 4);
    expect(&w, CLIENT, MSG_DONE);
    assert_int_equal(decode_of_next(&w), D0);
    world_close(&w);
}

static void what_is_computed_all_the_same_says_nothing_of_the_cache(void **state)
{
    (void)state;
    struct world w;
    opened(&w, 4096);
    tell_blocks(&w, P0, 1, false, first_block(), TIER_POOL);
    struct msg m = submit_of(0);
    m.submit.kind = JOB_SCORE;
    say(&w, CLIENT, m);
    struct job_key key = expect(&w, P0, MSG_PREFILL)->prefill.job.key;
    static const float values[19] = {0};
    say(&w, P0,
        (struct msg){.kind = MSG_ENCODED,
                     .encoded = {.key = key, .total = 19, .values = values, .values_count = 19}});
    tell_finished(&w, P0, key, 0); /* none of it was cached: it was not looked for */
    expect(&w, CLIENT, MSG_DONE);
    assert_int_equal(counts_of(&w).prefix_lookups, 0);
    assert_int_equal(counts_of(&w).prefix_false, 0);
    world_close(&w);
}

static void news_that_come_again_are_dropped(void **state)
{
    (void)state;
    struct world w;
    opened(&w, 4096);
    tell_blocks(&w, D1, 1, false, first_block(), TIER_POOL);
    tell_blocks(&w, D1, 2, false, first_block(), TIER_POOL + BLOCK_GONE);
    uint64_t stale = counts_of(&w).stale_messages;
    tell_blocks(&w, D1, 1, false, first_block(), TIER_POOL);
    assert_int_equal(counts_of(&w).stale_messages, stale + 1);
    assert_int_equal(decode_of_next(&w), D0);
    world_close(&w);
}

static uint32_t asked(struct world *w, uint32_t peer)
{
    uint32_t count = 0;
    for (size_t i = 0; i < w->sent_count; i++)
        count += w->sent[i].peer.v == peer && w->sent[i].m.kind == MSG_BLOCKS &&
                 w->sent[i].m.blocks.cleared;
    return count;
}

static void a_gap_is_asked_for_once_a_second_until_all_is_told_again(void **state)
{
    (void)state;
    struct world w;
    opened(&w, 4096);
    w.now += NS_PER_S;
    tell_blocks(&w, D1, 1, false, 1, TIER_POOL);
    assert_int_equal(asked(&w, D1), 0);
    tell_blocks(&w, D1, 3, false, first_block(), TIER_POOL); /* taken all the same */
    tell_blocks(&w, D1, 4, false, 2, TIER_POOL);
    assert_int_equal(asked(&w, D1), 1);
    assert_int_equal(counts_of(&w).prefix_gaps, 1);
    assert_int_equal(decode_of_next(&w), D1);
    w.now += NS_PER_S;
    tell_blocks(&w, D1, 5, false, 3, TIER_POOL);
    assert_int_equal(asked(&w, D1), 2); /* the first was lost, perhaps */
    tell_blocks(&w, D1, 6, true, 4, TIER_POOL);
    w.now += NS_PER_S;
    tell_blocks(&w, D1, 7, false, 5, TIER_POOL);
    assert_int_equal(asked(&w, D1), 2);
    world_close(&w);
}

static void who_leaves_takes_its_entries_along(void **state)
{
    (void)state;
    struct world w;
    opened(&w, 4096);
    tell_blocks(&w, D1, 1, false, first_block(), TIER_POOL);
    say(&w, D1, (struct msg){.kind = MSG_BYE});
    hello(&w, D1, ROLE_DECODE, "d1");
    assert_int_equal(decode_of_next(&w), D0);
    world_close(&w);
}

static void tenants_do_not_find_each_others_prefixes(void **state)
{
    (void)state;
    struct world w;
    opened(&w, 4096);
    tell_blocks(&w, D1, 1, false, prefix_hash_block(hash64("a", 1), prompt), TIER_POOL);
    struct msg m = submit_of(4);
    m.submit.tenant = "b";
    say(&w, CLIENT, m);
    assert_true(was_sent(&w, D0, MSG_RESERVE));
    assert_false(was_sent(&w, D1, MSG_RESERVE));
    m.submit.tenant = "a";
    say(&w, CLIENT, m);
    assert_true(was_sent(&w, D1, MSG_RESERVE));
    world_close(&w);
}

/* Approximate KV is found by who asks for the same approximation, and by nobody else. */
static void windows_share_prefixes_only_if_they_are_the_same(void **state)
{
    (void)state;
    static const struct {
        const char *tenant;
        uint32_t window, sinks;
        bool same; /* as the one before it */
    } rows[] = {{"a", 0, 0, false},    {"a", 64, 0, false},   {"a", 64, 16, false},
                {"a", 80, 16, false},  {"a", 80, 16, true},   {"b", 80, 16, false},
                {NULL, 80, 16, false}, {NULL, 16, 80, false}, {NULL, 0, 0, false}};
    enum { ROWS = sizeof rows / sizeof *rows };
    uint64_t salts[ROWS];
    struct world w;
    opened(&w, 4096);
    for (size_t i = 0; i < ROWS; i++) {
        struct msg m = submit_of(4);
        m.submit.tenant = rows[i].tenant;
        m.submit.kv_window = rows[i].window;
        m.submit.kv_sinks = rows[i].sinks;
        w.sent_count = w.read = 0;
        say(&w, CLIENT, m);
        uint32_t d = was_sent(&w, D0, MSG_RESERVE) ? D0 : D1;
        struct job_key key = expect(&w, d, MSG_RESERVE)->reserve.job.key;
        w.read = 0;
        salts[i] = expect(&w, d, MSG_RESERVE)->reserve.job.tenant_salt;
        say(&w, CLIENT,
            (struct msg){.kind = MSG_CANCEL, .cancel = {{key.request, CHOICE_ALL, 0}, "user"}});
        for (size_t k = 0; k < i; k++)
            if ((salts[k] == salts[i]) != (rows[i].same && k + 1 == i))
                fail_msg("rows %zu and %zu: %llx and %llx", k, i, (unsigned long long)salts[k],
                         (unsigned long long)salts[i]);
    }
    assert_int_equal(salts[ROWS - 1], 0);
    world_close(&w);
}

/* ---- tiers ---- */

/* What a node tells of its tiers; its tokens take 1 us to compute, a block 16. */
static void tell_tiers(struct world *w, uint32_t peer, uint32_t disk_ns, uint32_t shared_ns)
{
    struct msg beat = {.kind = MSG_HEARTBEAT,
                       .heartbeat.load = {.blocks_total = 100,
                                          .blocks_free = 100,
                                          .token_ns = 1000,
                                          .disk_block_ns = disk_ns,
                                          .shared_block_ns = shared_ns}};
    say(w, peer, beat);
}

/* Two P and a D; the first P is the choice when nothing speaks for the other. */
static void open_two_prefills(struct world *w)
{
    opened(w, 4096);
    hello(w, P1, ROLE_PREFILL, "p1");
    expect(w, P1, MSG_WELCOME);
    tell_tiers(w, P0, 0, 0);
}

static bool goes_to_p1(struct world *w)
{
    uint32_t decode = decode_of_next(w);
    struct job_key key = expect(w, decode, MSG_RESERVE)->reserve.job.key;
    say(w, decode, (struct msg){.kind = MSG_RESERVED, .reserved = {key, {9, 1}, 0}});
    assert_true(was_sent(w, P0, MSG_PREFILL) != was_sent(w, P1, MSG_PREFILL));
    return was_sent(w, P1, MSG_PREFILL);
}

static const struct {
    const char *what;
    uint32_t told, disk_ns, shared_ns;
    bool to_p1;
} tiers[] = {
    {"a block on its disk", TIER_DISK, 4000, 0, true},
    {"a disk that is slower than computing", TIER_DISK, 40000, 0, false},
    {"a disk that it does not tell of any more", TIER_DISK, 0, 4000, false},
    {"a block that left its disk", TIER_DISK + BLOCK_GONE, 4000, 0, false},
    {"a store that P 0 does not share", TIER_SHARED, 0, 4000, true},
    {"in its pool", TIER_POOL, 0, 0, true},
};

static void prompts_go_where_a_tier_has_them_if_that_is_faster(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof tiers / sizeof *tiers; i++) {
        struct world w;
        open_two_prefills(&w);
        tell_tiers(&w, P1, tiers[i].disk_ns, tiers[i].shared_ns);
        tell_blocks(&w, P1, 1, false, first_block(), tiers[i].told % TIERS);
        if (tiers[i].told >= BLOCK_GONE)
            tell_blocks(&w, P1, 2, false, first_block(), tiers[i].told);
        if (goes_to_p1(&w) != tiers[i].to_p1) fail_msg("%s", tiers[i].what);
        world_close(&w);
    }
}

static void what_a_shared_store_has_every_node_has_that_shares_it(void **state)
{
    (void)state;
    struct world w;
    open_two_prefills(&w);
    tell_tiers(&w, P1, 0, 4000);
    tell_blocks(&w, D0, 1, false, first_block(), TIER_SHARED); /* it was D that stored it */
    assert_true(goes_to_p1(&w));
    world_close(&w);
    open_two_prefills(&w);
    tell_tiers(&w, P1, 0, 4000);
    tell_blocks(&w, D0, 1, false, first_block(), TIER_SHARED);
    tell_blocks(&w, D1, 1, false, first_block(), TIER_SHARED + BLOCK_GONE);
    assert_false(goes_to_p1(&w));
    world_close(&w);
}

/* D looks into its pool alone for what P computes. */
static void a_decode_nodes_disk_counts_where_it_computes_itself(void **state)
{
    (void)state;
    struct world w;
    opened(&w, 4096);
    tell_tiers(&w, D1, 4000, 0);
    tell_blocks(&w, D1, 1, false, first_block(), TIER_DISK);
    assert_int_equal(decode_of_next(&w), D0);
    world_close(&w);
    opened(&w, 4096);
    tell_tiers(&w, D1, 4000, 0);
    tell_blocks(&w, D1, 1, false, first_block(), TIER_DISK);
    say(&w, P0, (struct msg){.kind = MSG_BYE});
    assert_int_equal(decode_of_next(&w), D1);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_goes_where_its_prefix_is),
        cmocka_unit_test(without_an_index_news_change_nothing),
        cmocka_unit_test(what_left_is_not_looked_for_there),
        cmocka_unit_test(an_entry_that_was_false_costs_a_miss_and_is_forgotten),
        cmocka_unit_test(what_is_computed_all_the_same_says_nothing_of_the_cache),
        cmocka_unit_test(news_that_come_again_are_dropped),
        cmocka_unit_test(a_gap_is_asked_for_once_a_second_until_all_is_told_again),
        cmocka_unit_test(who_leaves_takes_its_entries_along),
        cmocka_unit_test(tenants_do_not_find_each_others_prefixes),
        cmocka_unit_test(windows_share_prefixes_only_if_they_are_the_same),
        cmocka_unit_test(prompts_go_where_a_tier_has_them_if_that_is_faster),
        cmocka_unit_test(what_a_shared_store_has_every_node_has_that_shares_it),
        cmocka_unit_test(a_decode_nodes_disk_counts_where_it_computes_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
