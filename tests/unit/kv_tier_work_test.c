/* The tier thread's work, without the thread, against tiers that are slow, dead, full or lie. */
#include "tests/unit/tiers_rig.h"

#include <string.h>

#include "common/mem.h"
#include "common/prefix_hash.h"
#include "kv/breaker.h"

static void what_was_stored_is_loaded_bit_by_bit(void **state)
{
    (void)state;
    open_tiers(1);
    assert_int_equal(store(0, 20).count, 20);
    assert_int_equal(load(0, 20).count, 20);
    assert_loaded(0, 20);
    struct kv_tier_event e = load(5, 15); /* behind blocks that the node has */
    assert_int_equal(e.count, 15);
    assert_int_equal(e.from[0], 15);
    assert_int_equal(e.bytes, 15 * kv_tier_entry_bytes(&geometry));
    assert_loaded(5, 15);
    assert_int_equal(row(0).hits, 35);
    assert_int_equal(row(0).kept.entries_count, 20);
}

static void another_tenant_finds_nothing(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 4);
    struct kv_tier_op op = op_of(KV_TIER_LOAD, 0, 4, numbers + 32);
    op.salt = 4;
    assert_int_equal(do_op(&op).count, 0);
    assert_int_equal(row(0).misses, 4);
}

static void a_run_ends_where_no_tier_goes_on(void **state)
{
    (void)state;
    open_tiers(3);
    fake[1].broken = fake[2].broken = ERR_PEER;
    store(0, 4);
    fake[0].broken = ERR_PEER, fake[1].broken = OK;
    store(4, 3);
    fake[1].broken = ERR_PEER, fake[2].broken = OK;
    store(7, 2);
    store(10, 2); /* block 9 is nowhere */
    fake[0].broken = fake[1].broken = OK;
    struct kv_tier_event e = load(0, 12);
    assert_int_equal(e.count, 9);
    assert_int_equal(e.from[0], 4);
    assert_int_equal(e.from[1], 3);
    assert_int_equal(e.from[2], 2);
    assert_loaded(0, 9);
}

/* Of the first `end` blocks what a window of 40 tokens wants: the last three, and the sinks. */
static struct kv_tier_event load_window(uint32_t known, uint32_t end, uint32_t sinks)
{
    struct kv_tier_op op = op_of(KV_TIER_LOAD, known, 0, numbers + 32);
    op.window = (struct kv_window){40, sinks * BLOCK_TOKENS};
    op.end_block = end;
    op.count = kv_tier_op_places(op.window, end);
    struct kv_tier_event e = do_op(&op);
    assert_int_equal(e.count > 0, e.end_block > 0);
    return e;
}

static void a_window_is_loaded_where_it_is_whole(void **state)
{
    (void)state;
    static const struct {
        uint32_t end, known, sinks, want, filled;
    } row[] = {
        {20, 0, 0, 12, 3}, {12, 0, 0, 12, 3},  {11, 0, 0, 11, 3}, {28, 0, 0, 25, 3},
        {20, 12, 0, 0, 0}, {20, 11, 0, 12, 3}, {28, 0, 2, 25, 5}, {4, 0, 2, 4, 4},
        {2, 0, 2, 2, 2},   {1, 0, 0, 1, 1},    {24, 0, 0, 12, 3},
    };
    open_tiers(2);
    fake[1].broken = ERR_PEER;
    store(0, 11);
    store(14, 2); /* too short for a window */
    store(22, 1);
    fake[0].broken = ERR_PEER, fake[1].broken = OK;
    clock_ns += 100 * NS_PER_S;
    store(11, 1);
    store(23, 2);
    fake[0].broken = OK;
    clock_ns += 100 * NS_PER_S;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct kv_tier_event e = load_window(row[i].known, row[i].end, row[i].sinks);
        assert_int_equal(e.end_block, row[i].want);
        assert_int_equal(e.count, row[i].filled);
        uint32_t sinks = row[i].sinks < e.count ? row[i].sinks : e.count;
        size_t bytes = kv_block_bytes(&geometry);
        assert_memory_equal(pool + 32 * bytes, pool, sinks * bytes);
        assert_memory_equal(pool + (32 + sinks) * bytes,
                            pool + (e.end_block - (e.count - sinks)) * bytes,
                            (e.count - sinks) * bytes);
    }
    fake[0].loses = true; /* half a window is none */
    assert_int_equal(load_window(0, 28, 0).end_block, 0);
}

/* Two sinks and three blocks before the end, of which three come in time, and the others the next time. */
static void a_window_is_loaded_in_parts(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 25);
    fake[0].value_ns = 5 * NS_PER_MS;
    struct kv_tier_op op = op_of(KV_TIER_LOAD, 0, 5, numbers + 32);
    op.window = (struct kv_window){40, 2 * BLOCK_TOKENS};
    op.end_block = 28;
    static const uint32_t block[] = {0, 1, 22, 23, 24};
    static const struct {
        uint32_t count, gone; /* gone: of the tier's entries, before it */
        bool more;
    } row[] = {{3, 0, true}, {5, 0, false}, {3, 0, true}, {3, 25, false}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct kv_tier_event e;
        while (fake[0].count > 25 - row[i].gone)
            mem_free(fake[0].entry[--fake[0].count].value);
        clock_ns += 100 * NS_PER_S;
        op.posted_ns = clock_ns;
        e = do_op(&op);
        assert_int_equal(e.end_block, 25);
        assert_int_equal(e.count, row[i].count);
        assert_int_equal(e.more, row[i].more);
        size_t bytes = kv_block_bytes(&geometry);
        for (uint32_t k = 0; k < e.count; k++)
            assert_memory_equal(pool + (32 + k) * bytes, pool + block[k] * bytes, bytes);
        op.end_block = 25;
        op.filled = row[i].more ? e.count : 0;
        if (!row[i].more) memset(pool + 32 * bytes, 0, 5 * bytes);
    }
}

static void each_tier_gets_what_it_lacks(void **state)
{
    (void)state;
    open_tiers(2);
    fake[1].full = true;
    assert_int_equal(store(0, 6).count, 6);
    assert_int_equal(fake[1].count, 0);
    fake[1].full = false;
    clock_ns += NS_PER_S;
    assert_int_equal(store(0, 8).count, 8);
    assert_int_equal(fake[0].count, 8);
    assert_int_equal(fake[1].count, 8);
    uint32_t puts = fake[0].put_calls;
    assert_int_equal(store(0, 8).count, 8); /* all there: nothing is read, nothing put */
    assert_int_equal(fake[0].put_calls, puts);
}

static void a_wrong_entry_is_a_miss_and_removed(void **state)
{
    (void)state;
    for (int lie = 0; lie < 2; lie++) {
        open_tiers(1);
        store(0, 5);
        fake[0].lies_of_key = lie == 0;
        fake[0].lies_of_kv = lie == 1;
        pool_writes = 0;
        assert_int_equal(load(0, 5).count, 0);
        assert_int_equal(pool_writes, 0);
        assert_int_equal(row(0).wrong, 1);
        assert_int_equal(fake[0].removed, 1);
        fake[0].lies_of_key = fake[0].lies_of_kv = false;
        assert_int_equal(load(0, 5).count, 0); /* the first one is gone */
        finish(NULL);
        begin(NULL);
    }
}

/* As a disk does, or a server's tier, by the entry's checksum. */
static void what_a_tier_itself_finds_damaged_counts_as_wrong(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 5);
    fake[0].removed = 3;
    assert_int_equal(load(0, 5).count, 5);
    assert_int_equal(row(0).wrong, 3);
    fake[0].lies_of_kv = true; /* and what is found here comes on top */
    assert_int_equal(load(0, 5).count, 0);
    assert_int_equal(row(0).wrong, 4);
}

/* As the tier thread ends it. */
static void load_and_check(uint32_t first, uint32_t count, uint32_t want)
{
    struct kv_tier_op op = op_of(KV_TIER_LOAD, first, count, numbers + 32);
    struct kv_tier_job *job = kv_tier_job_new(&op);
    struct kv_tier_event e;
    kv_tier_work_load(work, job, &e);
    assert_int_equal(e.count, want);
    kv_tier_work_check_rest(work, job);
    kv_tier_event_free(&e);
    kv_tier_job_free(job);
}

static void behind_a_wrong_entry_nothing_wrong_is_believed(void **state)
{
    (void)state;
    static const struct {
        uint32_t first, drops; /* damaged ones that the tier finds */
        bool lies;
        uint32_t left;
    } row_of[] = {{0, 20, false, 0}, {0, 0, true, 0}, {0, 1, false, 19},
                  {5, 9, false, 11}, {5, 0, true, 5}, {0, 0, false, 20}};
    for (size_t i = 0; i < sizeof row_of / sizeof *row_of; i++) {
        open_tiers(1);
        store(0, 20);
        uint32_t first = row_of[i].first, gone = 20 - row_of[i].left;
        fake[0].drops = row_of[i].drops;
        fake[0].lies_of_kv = row_of[i].lies;
        load_and_check(first, 20 - first, gone > 0 ? 0 : 20 - first);
        assert_int_equal(fake[0].count, row_of[i].left);
        assert_int_equal(row(0).wrong, gone);
        assert_int_equal(fake[0].get_calls > 1, gone > 0);
        fake[0].lies_of_kv = false;
        assert_int_equal(store(0, 20).count, 20);
        assert_int_equal(load(0, 20).count, 20);
        assert_loaded(0, 20);
        finish(NULL);
        begin(NULL);
    }
}

static void a_windows_rest_is_checked_too(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 25);
    struct kv_tier_op op = op_of(KV_TIER_LOAD, 0, 5, numbers + 32);
    op.window = (struct kv_window){40, 2 * BLOCK_TOKENS};
    op.end_block = 25;
    struct kv_tier_job *job = kv_tier_job_new(&op);
    struct kv_tier_event e;
    fake[0].lies_of_kv = true;
    kv_tier_work_load(work, job, &e);
    assert_int_equal(e.count, 0);
    kv_tier_work_check_rest(work, job);
    assert_int_equal(fake[0].count, 0);
    kv_tier_event_free(&e);
    kv_tier_job_free(job);
}

static void the_rest_is_checked_up_to_the_loads_deadline(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 20);
    fake[0].drops = 20;
    fake[0].value_ns = NS_PER_MS;
    uint64_t began_ns = clock_ns;
    load_and_check(0, 20, 0);
    assert_true(clock_ns <= began_ns + DEADLINE_MS * NS_PER_MS);
    assert_in_range(fake[0].removed, 10, 19);
    assert_int_equal(row(0).failures, 0);
}

static void behind_a_wrong_entry_the_next_tier_is_asked(void **state)
{
    (void)state;
    open_tiers(2);
    store(0, 5);
    fake[0].lies_of_kv = true;
    struct kv_tier_event e = load(0, 5);
    assert_int_equal(e.count, 5);
    assert_int_equal(e.from[1], 5);
    assert_loaded(0, 5);
}

static void what_it_says_and_does_not_give_is_a_miss(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 5);
    fake[0].loses = true;
    assert_int_equal(load(0, 5).count, 0);
    assert_int_equal(fake[0].get_calls, 1);
}

static void a_load_ends_at_its_deadline_with_what_is_there(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 16);
    fake[0].value_ns = 4 * NS_PER_MS;
    uint64_t began_ns = clock_ns;
    struct kv_tier_event e = load(0, 16);
    assert_int_equal(e.count, 4);
    assert_true(clock_ns <= began_ns + DEADLINE_MS * NS_PER_MS);
    assert_loaded(0, 4);
    assert_true(e.more);
    assert_int_equal(row(0).late, 1);
    assert_false(row(0).broken);
    fake[0].largest_get = 0;
    e = load(4, 12); /* it is asked for one at a time now, and is late for none */
    assert_int_equal(fake[0].largest_get, 1);
    assert_int_equal(e.count, 4);
    assert_true(e.more);
    assert_int_equal(row(0).late, 1);
    fake[0].value_ns = 1;
    e = load(0, 20);
    assert_int_equal(e.count, 16);
    assert_false(e.more); /* that was all */
}

static void a_prompt_with_time_to_spare_is_loaded_longer(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 16);
    fake[0].value_ns = 4 * NS_PER_MS;
    struct kv_tier_op op = op_of(KV_TIER_LOAD, 0, 16, numbers + 32);
    op.posted_ns += 40 * NS_PER_MS; /* as who has got so much of it already */
    struct kv_tier_event e = do_op(&op);
    assert_int_equal(e.count, 14);
    assert_true(e.more);
    assert_true(e.ended_ns <= op.posted_ns + DEADLINE_MS * NS_PER_MS);
}

static void a_load_whose_time_is_over_touches_no_tier(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 4);
    struct kv_tier_op op = op_of(KV_TIER_LOAD, 0, 4, numbers + 32);
    uint32_t calls = fake[0].has_calls;
    clock_ns += DEADLINE_MS * NS_PER_MS;
    assert_int_equal(do_op(&op).count, 0);
    assert_int_equal(fake[0].has_calls, calls);
    struct kv_tiers_stats stats;
    kv_tier_work_stats(work, &stats);
    assert_int_equal(stats.loads_late, 1);
}

static void a_tier_slower_than_computing_is_not_read(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 16);
    fake[0].value_ns = NS_PER_MS;
    load(0, 4); /* measures: 1 ms a block */
    struct kv_tier_op op = op_of(KV_TIER_LOAD, 0, 4, numbers + 32);
    uint32_t gets = fake[0].get_calls;
    op.token_ns = 1000; /* 16 us a block */
    assert_int_equal(do_op(&op).count, 0);
    assert_int_equal(fake[0].get_calls, gets);
    assert_int_equal(row(0).not_worth, 4);
    op.token_ns = 100000;
    op.posted_ns = clock_ns;
    assert_int_equal(do_op(&op).count, 4);
    op.token_ns = 1000; /* now and then it is tried: it may have become faster */
    fake[0].value_ns = 100;
    uint32_t tries = 0;
    do {
        op.posted_ns = clock_ns;
        tries++;
    } while (do_op(&op).count == 0 && tries < 100);
    assert_int_equal(tries, 32);
}

static void a_dead_tier_is_left_alone_and_comes_back(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 4);
    fake[0].broken = ERR_TIMEOUT;
    for (int i = 0; i < 3; i++)
        assert_int_equal(load(0, 4).count, 0);
    assert_true(row(0).broken);
    assert_int_equal(row(0).failures, 3);
    uint32_t calls = fake[0].has_calls;
    for (int i = 0; i < 50; i++)
        load(0, 4);
    assert_int_equal(fake[0].has_calls, calls);
    clock_ns += NS_PER_S;
    load(0, 4); /* one try */
    load(0, 4);
    assert_int_equal(fake[0].has_calls, calls + 1);
    fake[0].broken = OK;
    clock_ns += NS_PER_S;
    assert_int_equal(load(0, 4).count, 0); /* it waits twice as long now */
    clock_ns += NS_PER_S;
    assert_int_equal(load(0, 4).count, 4);
    assert_false(row(0).broken);
}

static void a_full_tier_is_still_read(void **state)
{
    (void)state;
    open_tiers(1);
    store(0, 4);
    fake[0].full = true;
    assert_int_equal(store(4, 4).count, 0);
    assert_true(row(0).broken);
    uint32_t puts = fake[0].put_calls;
    assert_int_equal(store(4, 4).count, 0);
    assert_int_equal(fake[0].put_calls, puts);
    assert_int_equal(load(0, 8).count, 4);
}

static void a_tier_that_cannot_be_opened_says_why(void **state)
{
    (void)state;
    struct kv_tiers_options o = options_of(2);
    fake[1].broken = ERR_INVALID;
    assert_int_equal(open_work(&o), ERR_INVALID);
    assert_string_equal(err_text(), "cannot be opened");
    assert_null(work);
    o.tiers_count = 0;
    assert_int_equal(open_work(&o), ERR_INVALID);
}

static void a_tier_that_is_not_usable_is_done_without(void **state)
{
    (void)state;
    fake[0].broken = ERR_IO;
    open_tiers(2);
    assert_int_equal(store(0, 4).count, 4);
    assert_int_equal(load(0, 4).count, 4);
    assert_true(row(0).broken);
    assert_int_equal(fake[0].has_calls, 0);
    assert_int_equal(row(1).hits, 4);
}

static void what_could_not_be_opened_is_tried_again(void **state)
{
    (void)state;
    fake[0].broken = ERR_IO;
    open_tiers(2);
    uint64_t pause_ns = NS_PER_S;
    for (uint32_t i = 1; i < 9; i++) {
        assert_int_equal(kv_tier_work_reopen_in(work), pause_ns);
        clock_ns += pause_ns - 1;
        kv_tier_work_reopen(work);
        assert_int_equal(fake[0].open_calls, i);
        clock_ns++;
        fake[0].broken = i % 2 ? ERR_IO : ERR_INVALID; /* whatever it says now */
        if (i == 8) fake[0].broken = OK;
        kv_tier_work_reopen(work);
        assert_int_equal(fake[0].open_calls, i + 1);
        pause_ns = 2 * pause_ns < 60 * NS_PER_S ? 2 * pause_ns : 60 * NS_PER_S;
    }
    assert_int_equal(kv_tier_work_reopen_in(work), TIME_NEVER);
    assert_int_equal(fake[1].open_calls, 1);
    assert_false(row(0).broken);
    struct kv_tier_op op = op_of(KV_TIER_STORE, 0, 4, numbers);
    struct kv_tier_job *job = kv_tier_job_new(&op);
    struct kv_tier_event e;
    assert_true(kv_tier_work_store(work, job, &e));
    assert_true(e.news_lost); /* it may have something that routers were never told of */
    kv_tier_event_free(&e);
    kv_tier_job_free(job);
    assert_int_equal(load(0, 4).from[0], 4);
}

static void reading_is_worth_it_when_it_is_faster_than_computing(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes, rate, open_ns;
        uint32_t tokens, token_ns;
        bool worth;
    } cases[] = {
        {1000, 0, 0, 1, 1, true},                   /* not measured: tried */
        {1000, 1, 0, 1, 0, true},                   /* nobody knows what computing takes */
        {1000000, 1000000000, 0, 16, 100000, true}, /* 1 ms against 1.6 */
        {1000000, 1000000000, 0, 16, 60000, false}, /* against 0.96 */
        {1000000, 1000000000, NS_PER_MS, 16, 100000, false},
        {UINT64_MAX / 2, 1, 0, UINT32_MAX, UINT32_MAX, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(kv_tiers_worth(cases[i].bytes, cases[i].rate, cases[i].open_ns,
                                        cases[i].tokens, cases[i].token_ns),
                         cases[i].worth);
}

static void a_breaker_waits_longer_each_time_up_to_a_minute(void **state)
{
    (void)state;
    struct kv_breaker b = {.failures_max = 2};
    uint64_t now_ns = NS_PER_S, pause_ns = NS_PER_S;
    assert_int_equal(kv_breaker_note(&b, false, now_ns), KV_BREAKER_SAME);
    assert_int_equal(kv_breaker_note(&b, true, now_ns), KV_BREAKER_SAME);
    assert_int_equal(kv_breaker_note(&b, false, now_ns), KV_BREAKER_SAME); /* in a row, that is */
    assert_int_equal(kv_breaker_note(&b, false, now_ns), KV_BREAKER_BROKE);
    for (int i = 0; i < 10; i++) {
        assert_false(kv_breaker_lets(&b, now_ns + pause_ns - 1));
        assert_true(kv_breaker_lets(&b, now_ns + pause_ns));
        now_ns += pause_ns;
        assert_int_equal(kv_breaker_note(&b, false, now_ns), KV_BREAKER_SAME);
        pause_ns = 2 * pause_ns < 60 * NS_PER_S ? 2 * pause_ns : 60 * NS_PER_S;
    }
    assert_int_equal(kv_breaker_note(&b, true, now_ns), KV_BREAKER_BACK);
    assert_true(kv_breaker_lets(&b, now_ns));
    assert_int_equal(kv_breaker_note(&b, false, now_ns), KV_BREAKER_SAME);
}

/* ---- news ---- */

/* The prompt's blocks as routers know them. */
static void make_hashes(uint64_t hashes[BLOCKS])
{
    prefix_hash_chain(3, prompt, BLOCKS, hashes);
}

static uint32_t heard_of(uint64_t hash, bool is_gone)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < heard_count; i++)
        n += heard[i].hash == hash && heard[i].gone == is_gone;
    return n;
}

static void open_memory_tier(uint32_t values)
{
    struct kv_tiers_options o = options_of(1);
    clock_ns =
        clock_now_ns() + 1000 * NS_PER_S; /* for a tier that has the real one, all is in time */
    o.tier[0].ops = &kv_tier_memory;
    o.tier[0].options.bytes_max = values * (kv_tier_entry_bytes(&geometry) + 48);
    assert_int_equal(open_work(&o), OK);
}

static void what_comes_and_goes_is_said_by_the_names_that_routers_know(void **state)
{
    (void)state;
    uint64_t hashes[BLOCKS];
    make_hashes(hashes);
    open_memory_tier(8);
    assert_int_equal(store(0, 6).count, 6);
    assert_int_equal(heard_count, 6);
    for (uint32_t i = 0; i < 6; i++) {
        assert_true(heard[i].hash == hashes[i] && !heard[i].gone);
        assert_int_equal(heard[i].kind, KV_TIER_HOST);
    }
    assert_int_equal(store(6, 6).count, 6);
    for (uint32_t i = 0; i < 12; i++) {
        assert_int_equal(heard_of(hashes[i], false), i >= 6);
        assert_int_equal(heard_of(hashes[i], true), i >= 2 && i < 6); /* of one op the last first */
    }
    assert_int_equal(load(0, 2).count, 2);
    assert_int_equal(heard_count, 0);
}

static void a_slow_tier_is_given_little_at_a_time(void **state)
{
    (void)state;
    open_tiers(2);
    fake[1].value_ns = NS_PER_MS;
    store(0, 8); /* this measures */
    assert_int_equal(fake[0].largest_put, 8);
    fake[0].largest_put = 0;
    uint64_t began_ns = clock_ns;
    struct kv_tier_op op = op_of(KV_TIER_STORE, 8, 8, numbers + 8);
    struct kv_tier_job *job = kv_tier_job_new(&op);
    struct kv_tier_event e;
    while (!kv_tier_work_store(work, job, &e)) {
        assert_true(clock_ns - began_ns <= DEADLINE_MS * NS_PER_MS / 4);
        began_ns = clock_ns;
    }
    assert_int_equal(e.count, 8);
    assert_in_range(fake[0].largest_put, 1, 5);
    kv_tier_event_free(&e);
    kv_tier_job_free(job);
}

static void store_of(uint64_t salt, uint32_t count)
{
    struct kv_tier_op op = op_of(KV_TIER_STORE, 0, count, numbers);
    op.salt = salt;
    assert_int_equal(do_op(&op).count, count);
}

/* Also when it lies in the pool, so that nobody reads it here. */
static void a_prompts_beginning_outlives_its_end(void **state)
{
    (void)state;
    uint64_t hashes[BLOCKS];
    make_hashes(hashes);
    for (int loads = 0; loads < 2; loads++) {
        open_memory_tier(20);
        store(0, 8);
        if (loads) store(8, 4);
        store_of(4, 4);
        if (loads)
            assert_int_equal(load(8, 4).count, 4);
        else
            store(8, 4);
        store_of(5, 8); /* four of the other tenant's and four of this prompt go */
        for (uint32_t i = 0; i < 12; i++)
            assert_int_equal(heard_of(hashes[i], true), 0);
        store_of(6, 4 + 8 - 4);
        uint32_t gone = 0;
        for (uint32_t i = 0; i < 12; i++)
            gone += heard_of(hashes[i], true);
        assert_int_equal(gone, 8);
        for (uint32_t i = 0; i < 12; i++)
            assert_int_equal(heard_of(hashes[i], true), i >= 4);
        finish(NULL);
        begin(NULL);
    }
}

static void with_a_window_a_prompts_middle_goes_first(void **state)
{
    (void)state;
    uint64_t hashes[BLOCKS];
    make_hashes(hashes);
    open_memory_tier(20);
    struct kv_tier_op op = op_of(KV_TIER_STORE, 0, 12, numbers);
    op.of_use = (struct kv_window){40, BLOCK_TOKENS}; /* of its three last blocks and the first */
    assert_int_equal(do_op(&op).count, 12);
    store_of(5, 12);
    for (uint32_t i = 0; i < 12; i++)
        assert_int_equal(heard_of(hashes[i], true), i >= 5 && i < 9);
    store_of(6, 4);
    for (uint32_t i = 0; i < 12; i++)
        assert_int_equal(heard_of(hashes[i], true), i >= 1 && i < 5);
}

static void all_that_local_tiers_have_is_listed(void **state)
{
    (void)state;
    uint64_t hashes[BLOCKS];
    make_hashes(hashes);
    open_memory_tier(20);
    store(0, 12);
    struct kv_tier_op op = {.kind = KV_TIER_LIST, .id = 77};
    assert_int_equal(do_op(&op).place == KV_TIER_PLACE_END, true);
    assert_int_equal(heard_count, 12);
    for (uint32_t i = 0; i < 12; i++)
        assert_int_equal(heard_of(hashes[i], false), 1);
    op.place = (uint64_t)7 << 32 | 5; /* no such tier: from an earlier life */
    assert_int_equal(do_op(&op).place == KV_TIER_PLACE_END, true);
    assert_int_equal(heard_count, 0);
}

static void a_block_is_expected_to_take_what_was_measured(void **state)
{
    (void)state;
    struct kv_tiers_stats stats;
    open_memory_tier(20);
    store(0, 12);
    kv_tier_work_stats(work, &stats);
    assert_true(stats.block_ns[KV_TIER_HOST] > 0); /* a usual one */
    assert_int_equal(stats.block_ns[KV_TIER_DISK], 0);
    load(0, 12); /* on a clock that stands still: no time at all */
    kv_tier_work_stats(work, &stats);
    assert_int_equal(stats.block_ns[KV_TIER_HOST], 1);
}

int main(void)
{
#define ROW(name) cmocka_unit_test_setup_teardown(name, begin, finish)
    const struct CMUnitTest tests[] = {
        ROW(what_was_stored_is_loaded_bit_by_bit),
        ROW(another_tenant_finds_nothing),
        ROW(what_comes_and_goes_is_said_by_the_names_that_routers_know),
        ROW(a_slow_tier_is_given_little_at_a_time),
        ROW(a_prompts_beginning_outlives_its_end),
        ROW(with_a_window_a_prompts_middle_goes_first),
        ROW(all_that_local_tiers_have_is_listed),
        ROW(a_block_is_expected_to_take_what_was_measured),
        ROW(a_run_ends_where_no_tier_goes_on),
        ROW(a_window_is_loaded_where_it_is_whole),
        ROW(a_window_is_loaded_in_parts),
        ROW(each_tier_gets_what_it_lacks),
        ROW(a_wrong_entry_is_a_miss_and_removed),
        ROW(what_a_tier_itself_finds_damaged_counts_as_wrong),
        ROW(behind_a_wrong_entry_nothing_wrong_is_believed),
        ROW(a_windows_rest_is_checked_too),
        ROW(the_rest_is_checked_up_to_the_loads_deadline),
        ROW(behind_a_wrong_entry_the_next_tier_is_asked),
        ROW(what_it_says_and_does_not_give_is_a_miss),
        ROW(a_load_ends_at_its_deadline_with_what_is_there),
        ROW(a_prompt_with_time_to_spare_is_loaded_longer),
        ROW(a_load_whose_time_is_over_touches_no_tier),
        ROW(a_tier_slower_than_computing_is_not_read),
        ROW(a_dead_tier_is_left_alone_and_comes_back),
        ROW(a_full_tier_is_still_read),
        ROW(a_tier_that_cannot_be_opened_says_why),
        ROW(a_tier_that_is_not_usable_is_done_without),
        ROW(what_could_not_be_opened_is_tried_again),
        ROW(reading_is_worth_it_when_it_is_faster_than_computing),
        ROW(a_breaker_waits_longer_each_time_up_to_a_minute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
