/* A node core with a tier: what it loads and stores, what it holds meanwhile, and that its streams are those
 * of a core that computes everything. */
#include "tests/unit/testing.h"

#include "tests/unit/node_rig.h"

#include <string.h>

#include "common/clock.h"
#include "common/prefix_hash.h"

#define LATE_NS (20 * NS_PER_MS)

static const struct rig_options with_tier = {.role = ROLE_DECODE, .tiers = true};

/* A prompt of 5 whole blocks and a bit. */
static struct job long_job(uint32_t id)
{
    return rig_job(id, &(struct rig_prompt){.seed = 7, .count = 90, .tokens_max = 20});
}

static void assert_stream(struct rig *r, const struct job *job)
{
    uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    enum finish finish;
    uint32_t n = rig_expect(job, r->config.context_max, want, &finish);
    assert_int_equal(rig_stream(r, job->key, got), n);
    assert_memory_equal(got, want, n * sizeof *got);
}

static void run_job(struct rig *r, const struct job *job)
{
    rig_reserve(r, job, true);
    rig_run(r);
    assert_stream(r, job);
    rig_acknowledge(r, job->key);
}

/* A node that has the tier of an earlier one, and nothing else. */
static void restart(struct rig *r, const struct rig_options *o)
{
    static struct rig_kept kept[RIG_KEPT_MAX];
    uint32_t count = r->kept_count;
    memcpy(kept, r->kept, sizeof kept);
    rig_free(r);
    rig_open(r, o);
    memcpy(r->kept, kept, sizeof kept);
    r->kept_count = count;
}

static uint32_t cached_of(const struct rig *r)
{
    const struct msg *m = rig_said(r, MSG_FINISHED);
    assert_non_null(m);
    return m->finished.cached_tokens;
}

static void what_was_computed_is_loaded_after_a_restart(void **state)
{
    (void)state;
    static struct rig r;
    struct job job = long_job(1), again = long_job(2);
    rig_open(&r, &with_tier);
    run_job(&r, &job);
    uint32_t generated = rig_said(&r, MSG_FINISHED)->finished.tokens_count;
    assert_int_equal(r.kept_count, (90 + generated - 1) / BLOCK_TOKENS); /* the last has no KV */
    restart(&r, &with_tier);
    run_job(&r, &again);
    assert_int_equal(cached_of(&r), 80);
    struct node_counts n = rig_counts(&r);
    assert_int_equal(n.tier_loads, 1);
    assert_int_equal(n.tier_loaded_tokens, 80);
    assert_int_equal(n.prompt_tokens, 10);
    rig_free(&r);
}

/* In a pool of less than the prompt; of 40 tokens of window are three blocks, and of a request's own the sinks
 * come with them. */
static void a_window_is_loaded_after_a_restart(void **state)
{
    (void)state;
    static struct rig r;
    for (uint32_t own = 0; own < 2; own++) {
        const struct rig_options o = {.role = ROLE_DECODE,
                                      .tiers = true,
                                      .window = own ? 0 : 40,
                                      .chunk_tokens = 16,
                                      .blocks_count = 16};
        struct job job =
            rig_job(1, &(struct rig_prompt){.seed = 7, .count = 333, .tokens_max = own ? 20 : 21});
        if (own) job.kv_window = 40, job.kv_sinks = 16, job.tenant_salt = 5;
        struct job again = job;
        again.key.request.lo = 2;
        rig_open(&r, &o);
        run_job(&r, &job);
        restart(&r, &o);
        run_job(&r, &again);
        assert_int_equal(cached_of(&r), 320);
        struct node_counts n = rig_counts(&r);
        assert_int_equal(n.tier_loads, 1);
        assert_int_equal(n.tier_loaded_tokens, own ? 64 : 48);
        assert_int_equal(n.prompt_tokens, 13);
        rig_free(&r);
    }
}

/* A prompt of 333 tokens with a window of 40, whose last three whole blocks, of 20, a tier has; and a node that
 * knows what a token takes. */
static const struct rig_options with_window = {
    .role = ROLE_DECODE, .tiers = true, .window = 40, .chunk_tokens = 16, .blocks_count = 16};

static struct job start_with_window(struct rig *r)
{
    struct job job = rig_job(1, &(struct rig_prompt){.seed = 7, .count = 333, .tokens_max = 21});
    struct job other = rig_job(2, &(struct rig_prompt){.seed = 9, .count = 15, .tokens_max = 1});
    rig_open(r, &with_window);
    run_job(r, &job);
    restart(r, &with_window);
    run_job(r, &other);
    job.key.request.lo = 3;
    return job;
}

static void a_window_that_comes_in_parts_buys_time_for_more(void **state)
{
    (void)state;
    static struct rig r;
    struct job job = start_with_window(&r);
    r.tier_more = true;
    rig_reserve(&r, &job, true);
    uint64_t began_ns = r.now_ns, token_ns = r.tier_op[0].op.token_ns;
    assert_true(token_ns > 10000);
    for (uint32_t i = 0; i < 3; i++) {
        rig_advance(&r, LATE_NS / 4);
        assert_int_equal(r.tier_ops_count, 1);
        assert_int_equal(r.tier_op[0].op.filled, i);
        assert_int_equal(r.tier_op[0].op.end_block, 20);
        assert_int_equal(r.tier_op[0].op.posted_ns, began_ns + i * BLOCK_TOKENS * token_ns);
        assert_int_equal(r.steps_count, 0);
        rig_tier_some(&r, 1);
    }
    assert_int_equal(r.steps_count, 1);
    rig_run(&r);
    assert_stream(&r, &job);
    assert_int_equal(cached_of(&r), 320);
    struct node_counts n = rig_counts(&r);
    assert_int_equal(n.tier_loads, 1);
    assert_int_equal(n.tier_loaded_tokens, 48);
    assert_int_equal(n.tier_skipped_tokens, 0);
    assert_int_equal(n.prompt_tokens, 15 + 13);
    rig_free(&r);
}

static void what_came_of_a_window_is_not_computed_when_the_rest_does_not_come(void **state)
{
    (void)state;
    static struct rig r;
    for (uint32_t parts = 1; parts <= 2; parts++) {
        struct job job = start_with_window(&r);
        r.tier_more = true;
        rig_reserve(&r, &job, true);
        rig_tier_some(&r, parts);
        uint64_t bought_ns = parts * BLOCK_TOKENS * r.tier_op[0].op.token_ns;
        rig_advance(&r, LATE_NS + bought_ns - 1);
        assert_int_equal(r.steps_count, 0);
        rig_advance(&r, 1);
        assert_int_equal(r.steps_count, 1);
        r.kept_count = 0; /* the tier has lost it */
        rig_run(&r);
        assert_stream(&r, &job);
        struct node_counts n = rig_counts(&r);
        assert_int_equal(n.tier_loaded_tokens, parts * BLOCK_TOKENS);
        assert_int_equal(n.tier_skipped_tokens, parts * BLOCK_TOKENS);
        assert_int_equal(n.prompt_tokens, 15 + 333 - parts * BLOCK_TOKENS);
        assert_int_equal(cached_of(&r), parts * BLOCK_TOKENS);
        rig_free(&r);
    }
}

static void a_window_that_comes_late_ends_the_computing_before_it(void **state)
{
    (void)state;
    static struct rig r;
    struct job job = start_with_window(&r);
    rig_reserve(&r, &job, true);
    rig_advance(&r, LATE_NS);
    for (uint32_t i = 0; i < 3; i++)
        rig_step(&r);
    uint32_t computed = rig_counts(&r).prompt_tokens;
    assert_true(computed > 15 && computed < 100);
    rig_tier(&r);
    rig_run(&r);
    assert_stream(&r, &job);
    assert_true(rig_counts(&r).tier_skipped_tokens > 200);
    assert_true(rig_counts(&r).prompt_tokens <=
                computed + 16 + 13); /* the step under way, and the end */
    rig_free(&r);
}

static void routers_are_told_of_what_a_tier_took(void **state)
{
    (void)state;
    static struct rig r;
    struct job job = long_job(1);
    uint32_t told = 0;
    rig_open(&r, &with_tier);
    run_job(&r, &job);
    for (uint32_t i = 0; i < r.said_count; i++)
        for (uint32_t k = 0; r.said[i].m.kind == MSG_BLOCKS && k < r.said[i].m.blocks.what_count;
             k++)
            told += r.said[i].m.blocks.what[k] == TIER_DISK;
    assert_true(r.kept_count > 0);
    assert_int_equal(told, r.kept_count);
    rig_free(&r);
}

static void run_tier(struct rig *r)
{
    for (uint32_t i = 0; i < 100; i++) {
        rig_tier(r);
        rig_advance(r, NS_PER_MS);
    }
}

static struct {
    uint32_t count, with_tokens;
} published; /* of what the disk took */

static void on_block(void *rig, const struct node_block *b)
{
    (void)rig;
    if (!b->stored || b->tier != TIER_DISK) return;
    published.count++;
    if (!b->tokens) return;
    published.with_tokens++;
    assert_true(prefix_hash_block(b->first ? 0 : b->parent, b->tokens) == b->hash);
}

/* Hashes are tandem's own: only by the tokens do others know what it is. */
static void others_are_told_the_tokens_of_what_a_tier_took(void **state)
{
    (void)state;
    const struct rig_options o = {.role = ROLE_DECODE, .tiers = true, .block = on_block},
                             lists = {.role = ROLE_DECODE,
                                      .tiers = true,
                                      .tier_lists = true,
                                      .block = on_block};
    static struct rig r;
    struct job job = long_job(1);
    memset(&published, 0, sizeof published);
    rig_open(&r, &o);
    run_job(&r, &job);
    assert_true(r.kept_count > 4);
    assert_int_equal(published.count, r.kept_count);
    assert_int_equal(published.with_tokens, r.kept_count);
    restart(&r, &lists);
    memset(&published, 0, sizeof published);
    run_tier(&r);
    assert_int_equal(published.count, r.kept_count);
    assert_int_equal(published.with_tokens, 0); /* of an earlier life */
    rig_free(&r);
}

static uint32_t told_of(const struct rig *r, uint64_t hash, uint32_t what)
{
    uint32_t told = 0;
    for (uint32_t i = 0; i < r->said_count; i++)
        for (uint32_t k = 0; r->said[i].m.kind == MSG_BLOCKS && k < r->said[i].m.blocks.what_count;
             k++)
            told += r->said[i].m.blocks.hashes[k] == hash && r->said[i].m.blocks.what[k] == what;
    return told;
}

/* After a restart, and when a router says that it lost some. */
static void a_router_is_told_what_a_tier_has_from_earlier_lives(void **state)
{
    (void)state;
    static const struct rig_options lists = {
        .role = ROLE_DECODE, .tiers = true, .tier_lists = true};
    static struct rig r;
    struct job job = long_job(1);
    rig_open(&r, &with_tier);
    run_job(&r, &job);
    restart(&r, &lists);
    assert_true(r.kept_count > 4);
    run_tier(&r);
    for (uint32_t i = 0; i < r.kept_count; i++)
        assert_int_equal(told_of(&r, r.kept[i].hash, TIER_DISK), 1);
    uint32_t ops = r.tier_ops_total;
    rig_advance(&r, NS_PER_S);
    assert_int_equal(r.tier_ops_total, ops); /* that was all */
    rig_forget(&r);
    rig_say(&r, (struct msg){.kind = MSG_BLOCKS, .blocks = {.cleared = true}});
    rig_tier(&r);
    rig_say(&r, (struct msg){.kind = MSG_BLOCKS, .blocks = {.cleared = true}}); /* once more */
    run_tier(&r);
    for (uint32_t i = 0; i < r.kept_count; i++)
        assert_in_range(told_of(&r, r.kept[i].hash, TIER_DISK), 1, 2);
    rig_free(&r);
}

static void a_router_is_told_what_left_a_tier_and_of_news_that_were_lost(void **state)
{
    (void)state;
    static struct rig r;
    struct kv_tier_news news[] = {{70, KV_TIER_HOST, false},
                                  {70, KV_TIER_HOST, true},
                                  {71, KV_TIER_SHARED, false},
                                  {72, KV_TIER_DISK, true}};
    rig_open(&r, &with_tier);
    rig_forget(&r);
    struct kv_tier_event e = {.id = 12345, .news = news, .news_count = 4};
    node_core_on_tier(r.core, r.now_ns, &e);
    assert_int_equal(told_of(&r, 70, TIER_HOST), 1);
    assert_int_equal(told_of(&r, 70, TIER_HOST + BLOCK_GONE), 1);
    assert_int_equal(told_of(&r, 71, TIER_SHARED), 1);
    assert_int_equal(told_of(&r, 72, TIER_DISK + BLOCK_GONE), 1);
    rig_forget(&r);
    e.news_lost = true;
    node_core_on_tier(r.core, r.now_ns, &e);
    assert_true(rig_said(&r, MSG_BLOCKS)->blocks.cleared);
    rig_free(&r);
}

static void what_came_from_the_tier_is_not_stored_again(void **state)
{
    (void)state;
    static struct rig r;
    struct job job = long_job(1);
    job.tokens_max = 1;
    rig_open(&r, &with_tier);
    run_job(&r, &job);
    restart(&r, &with_tier);
    run_job(&r, &job);
    assert_int_equal(rig_counts(&r).tier_loaded_tokens, 80);
    assert_int_equal(rig_counts(&r).tier_stores, 0);
    rig_free(&r);
}

/* Asked again and again it is neither loaded nor stored; the tiers hear of it once a second, by a piece, and what
 * they lost they get back. */
static void what_stays_in_the_pool_is_used_in_the_tiers_too(void **state)
{
    (void)state;
    static struct rig r;
    const struct rig_options o = {.role = ROLE_PREFILL, .tiers = true, .blocks_count = 32};
    struct job job = rig_job(1, &(struct rig_prompt){.seed = 1, .count = 101, .tokens_max = 1});
    rig_open(&r, &o);
    rig_prefill(&r, &job, (struct id128){0}, 0);
    rig_run(&r);
    assert_int_equal(r.kept_count, 6);
    rig_advance(&r, 2 * NS_PER_S);
    uint32_t stores = rig_counts(&r).tier_stores;
    r.kept_count = 0; /* a server that was started anew */
    for (uint32_t piece = 0; piece < 4; piece++) {
        for (uint32_t i = 0; i < 3; i++) {
            job.key.request.lo++;
            rig_prefill(&r, &job, (struct id128){0}, 0);
            rig_run(&r);
        }
        assert_int_equal(rig_counts(&r).tier_stores, stores + piece + 1);
        assert_int_equal(r.kept_count, piece == 0 ? 4 : 6);
        rig_advance(&r, NS_PER_S);
    }
    assert_int_equal(rig_counts(&r).prompt_tokens, 101 + 12 * 5);
    rig_free(&r);
}

static void so_is_a_window_by_its_end(void **state)
{
    (void)state;
    static struct rig r;
    const struct rig_options o = {
        .role = ROLE_PREFILL, .tiers = true, .window = 40, .chunk_tokens = 16, .blocks_count = 24};
    struct job job = rig_job(1, &(struct rig_prompt){.seed = 7, .count = 333, .tokens_max = 1});
    rig_open(&r, &o);
    rig_prefill(&r, &job, (struct id128){0}, 0);
    rig_run(&r);
    rig_advance(&r, 2 * NS_PER_S);
    r.kept_count = 0;
    job.key.request.lo = 2;
    rig_prefill(&r, &job, (struct id128){0}, 0);
    rig_run(&r);
    assert_int_equal(r.kept_count, 3);
    rig_free(&r);
}

static void a_prompt_waits_no_longer_than_its_deadline(void **state)
{
    (void)state;
    static struct rig r;
    struct job job = long_job(1),
               other = rig_job(2, &(struct rig_prompt){.seed = 9, .count = 10, .tokens_max = 4});
    rig_open(&r, &with_tier);
    rig_reserve(&r, &job, true);
    assert_int_equal(r.tier_ops_count, 1);
    assert_int_equal(r.steps_count, 0);
    assert_int_equal(rig_counts(&r).blocks.transfer, 5);
    rig_reserve(&r, &other, true); /* has no whole block: starts */
    assert_int_equal(r.steps_count, 1);
    while (rig_step(&r))
        ;
    rig_advance(&r, LATE_NS - 1);
    assert_int_equal(r.steps_count, 0);
    assert_true(r.wake_ns <= r.now_ns + 1);
    rig_advance(&r, 1);
    assert_int_equal(r.steps_count, 1);
    rig_run(&r);
    assert_stream(&r, &job);
    assert_stream(&r, &other);
    rig_free(&r);
}

static void what_comes_in_time_buys_time_for_more(void **state)
{
    (void)state;
    static struct rig r;
    const struct rig_options o = {.role = ROLE_DECODE, .tiers = true, .chunk_tokens = 16};
    struct job job = long_job(1), again = long_job(2);
    struct job other = rig_job(3, &(struct rig_prompt){.seed = 9, .count = 15, .tokens_max = 1});
    rig_open(&r, &o);
    run_job(&r, &job);
    restart(&r, &o);
    run_job(&r, &other); /* so it knows what a token takes */
    r.tier_more = true;
    rig_reserve(&r, &again, true);
    uint64_t began_ns = r.now_ns, token_ns = r.tier_op[0].op.token_ns;
    assert_true(token_ns > 10000);
    assert_int_equal(r.tier_op[0].op.posted_ns, began_ns);
    rig_advance(&r, LATE_NS / 2);
    rig_tier_some(&r, 3);
    uint64_t deadline_ns = began_ns + LATE_NS + 48 * token_ns;
    assert_int_equal(r.tier_ops_count, 1);
    assert_int_equal(r.tier_op[0].op.first_block, 3);
    assert_int_equal(r.tier_op[0].op.posted_ns, deadline_ns - LATE_NS);
    rig_advance(&r, deadline_ns - r.now_ns - 1);
    assert_int_equal(r.steps_count, 0);
    rig_advance(&r, 1); /* the rest does not come */
    assert_int_equal(r.steps_count, 1);
    rig_run(&r);
    assert_stream(&r, &again);
    assert_int_equal(cached_of(&r), 48);
    assert_int_equal(rig_counts(&r).tier_loads, 2);
    rig_free(&r);
}

static void who_has_little_time_left_asks_for_no_more(void **state)
{
    (void)state;
    static struct rig r;
    struct job job = long_job(1), again = long_job(2);
    rig_open(&r, &with_tier);
    run_job(&r, &job);
    restart(&r, &with_tier);
    r.tier_more = true;
    rig_reserve(&r, &again, true);
    rig_advance(&r, LATE_NS - LATE_NS / 5);
    rig_tier_some(&r, 3);
    assert_int_equal(r.tier_ops_count, 0);
    assert_int_equal(r.steps_count, 1);
    rig_run(&r);
    assert_stream(&r, &again);
    rig_free(&r);
}

static void what_comes_late_is_for_the_next_prompt(void **state)
{
    (void)state;
    static struct rig r;
    struct job job = long_job(1), again = long_job(2);
    rig_open(&r, &with_tier);
    run_job(&r, &job);
    restart(&r, &with_tier);
    rig_reserve(&r, &again, true);
    rig_advance(&r, LATE_NS);
    rig_cancel(&r, again.key); /* it is gone before anything is here */
    while (rig_step(&r))
        ;
    assert_true(rig_tier(&r));
    assert_int_equal(rig_counts(&r).tier_late, 1);
    struct job third = long_job(3);
    run_job(&r, &third);
    assert_int_equal(cached_of(&r), 80);
    assert_int_equal(rig_counts(&r).tier_loads, 1);
    rig_free(&r);
}

static void only_the_leading_blocks_that_came_are_used(void **state)
{
    (void)state;
    for (uint32_t came = 0; came <= 5; came++) {
        static struct rig r;
        struct job job = long_job(1), again = long_job(2);
        rig_open(&r, &with_tier);
        run_job(&r, &job);
        restart(&r, &with_tier);
        rig_reserve(&r, &again, true);
        rig_tier_some(&r, came);
        rig_run(&r);
        assert_stream(&r, &again);
        assert_int_equal(cached_of(&r), came * BLOCK_TOKENS);
        rig_free(&r);
    }
}

static void who_begins_alike_waits_for_the_same_load(void **state)
{
    (void)state;
    static struct rig r;
    struct rig_prompt one = {
        .seed = 1, .family = 3, .shared_count = 64, .count = 70, .tokens_max = 5};
    struct rig_prompt two = {
        .seed = 2, .family = 3, .shared_count = 64, .count = 75, .tokens_max = 5};
    struct job first = rig_job(1, &one), second = rig_job(2, &two);
    rig_open(&r, &with_tier);
    run_job(&r, &first);
    restart(&r, &with_tier);
    rig_reserve(&r, &first, true);
    rig_reserve(&r, &second, true);
    assert_int_equal(r.tier_ops_count, 1);
    rig_run(&r);
    assert_stream(&r, &first);
    assert_stream(&r, &second);
    assert_int_equal(rig_counts(&r).tier_loads, 1);
    assert_int_equal(rig_counts(&r).prompt_tokens, 70 - 64 + 75 - 64);
    rig_free(&r);
}

static void tenants_do_not_share(void **state)
{
    (void)state;
    static struct rig r;
    struct job job = long_job(1), theirs = long_job(2);
    theirs.tenant_salt = 99;
    rig_open(&r, &with_tier);
    run_job(&r, &job);
    restart(&r, &with_tier);
    run_job(&r, &theirs);
    assert_int_equal(cached_of(&r), 0);
    rig_free(&r);
}

/* A prompt with a window of its own has another salt; what it caches is its tenant's all the same. */
static void what_is_loaded_counts_as_the_tenants_whatever_its_salt(void **state)
{
    (void)state;
    static struct rig r;
    struct rig_options quota = with_tier;
    struct job job[2] = {long_job(1), long_job(2)};
    quota.blocks_count = 32;
    quota.evict.tenant_percent_max = 25;
    for (uint32_t i = 0; i < 2; i++) {
        job[i].tenant = 5;
        job[i].tenant_weight = 1;
        job[i].tenant_salt = 91 + i;
        job[i].tokens_max = 1;
    }
    rig_open(&r, &with_tier);
    run_job(&r, &job[0]);
    run_job(&r, &job[1]);
    restart(&r, &quota);
    run_job(&r, &job[0]);
    run_job(&r, &job[1]);
    assert_int_equal(rig_counts(&r).tier_loaded_tokens, 2 * 80);
    assert_int_equal(rig_counts(&r).blocks.cached, 8);
    rig_free(&r);
}

static void a_load_takes_nothing_that_is_wanted_before_it(void **state)
{
    (void)state;
    static struct rig r;
    struct rig_options o = {.role = ROLE_PREFILL, .tiers = true, .blocks_count = 8};
    struct job first = rig_job(1, &(struct rig_prompt){.seed = 1, .count = 90, .tokens_max = 1});
    struct job second = rig_job(2, &(struct rig_prompt){.seed = 2, .count = 60, .tokens_max = 1});
    rig_open(&r, &o);
    rig_prefill(&r, &first, (struct id128){0}, 0); /* 6 of 8 blocks */
    rig_prefill(&r, &second, (struct id128){0}, 0);
    assert_int_equal(rig_counts(&r).tier_loads, 1);
    rig_run(&r);
    assert_int_equal(rig_said_count(&r, MSG_FIRST), 2);
    rig_free(&r);
}

static void stores_hold_an_eighth_of_the_pool_at_most(void **state)
{
    (void)state;
    static struct rig r;
    struct rig_options o = {
        .role = ROLE_PREFILL, .tiers = true, .blocks_count = 32, .chunk_tokens = 200};
    struct job job = rig_job(1, &(struct rig_prompt){.seed = 1, .count = 200, .tokens_max = 1});
    rig_open(&r, &o);
    r.tier_refuses = true; /* the load */
    rig_prefill(&r, &job, (struct id128){0}, 0);
    r.tier_refuses = false;
    while (rig_step(&r))
        ;
    assert_int_equal(r.tier_ops_count, 1);
    assert_int_equal(r.tier_op[0].op.count, 4);
    assert_int_equal(rig_counts(&r).blocks.transfer, 4);
    for (uint32_t kept = 4; kept <= 12; kept += 4) { /* the rest goes as these end */
        rig_tier(&r);
        assert_int_equal(r.kept_count, kept);
        assert_int_equal(rig_counts(&r).blocks.transfer, kept < 12 ? 4 : 0);
    }
    assert_int_equal(r.tier_ops_count, 0);
    rig_free(&r);
}

static void no_chunk_of_a_prompt_is_left_out(void **state)
{
    (void)state;
    static struct rig r;
    struct rig_options o = {
        .role = ROLE_PREFILL, .tiers = true, .blocks_count = 32, .chunk_tokens = 64};
    struct job job = rig_job(1, &(struct rig_prompt){.seed = 1, .count = 330, .tokens_max = 1});
    rig_open(&r, &o);
    r.tier_refuses = true; /* the load */
    rig_prefill(&r, &job, (struct id128){0}, 0);
    r.tier_refuses = false;
    while (rig_step(&r)) /* the tier takes its time */
        ;
    rig_run(&r);
    assert_int_equal(r.kept_count, 20);
    rig_free(&r);
}

static void what_a_tier_did_not_keep_is_offered_again_later(void **state)
{
    (void)state;
    static struct rig r;
    struct rig_options o = {.role = ROLE_PREFILL, .tiers = true};
    struct job job = rig_job(1, &(struct rig_prompt){.seed = 1, .count = 60, .tokens_max = 1});
    rig_open(&r, &o);
    rig_prefill(&r, &job, (struct id128){0}, 0);
    rig_tier(&r); /* nothing to load */
    while (rig_step(&r))
        ;
    while (rig_tier_some(&r, 1)) /* of each op the first */
        ;
    uint32_t kept = r.kept_count;
    assert_true(kept < 3);
    job.key.request.lo = 2;
    rig_prefill(&r, &job, (struct id128){0}, 0); /* at once: no */
    rig_run(&r);
    assert_int_equal(r.kept_count, kept);
    rig_advance(&r, 2 * NS_PER_S);
    job.key.request.lo = 3;
    rig_prefill(&r, &job, (struct id128){0}, 0);
    rig_run(&r);
    assert_int_equal(r.kept_count, 3);
    rig_free(&r);
}

static void a_tier_that_takes_nothing_changes_nothing(void **state)
{
    (void)state;
    static struct rig r;
    struct job job = long_job(1);
    rig_open(&r, &with_tier);
    r.tier_refuses = true;
    run_job(&r, &job);
    struct node_counts n = rig_counts(&r);
    assert_int_equal(n.blocks.transfer, 0);
    assert_int_equal(n.tier_loaded_tokens, 0);
    rig_free(&r);
}

static void a_preempted_sequence_comes_back_from_the_tier(void **state)
{
    (void)state;
    static struct rig r;
    struct rig_options o = {
        .role = ROLE_DECODE, .tiers = true, .blocks_count = 16, .chunk_tokens = 40};
    struct job job[4];
    rig_open(&r, &o);
    for (uint32_t i = 0; i < 4; i++) {
        job[i] = rig_job(i, &(struct rig_prompt){.seed = i, .count = 40, .tokens_max = 120});
        job[i].stop_ids_count = 0;
        rig_reserve(&r, &job[i], true);
    }
    rig_run(&r);
    for (uint32_t i = 0; i < 4; i++)
        assert_stream(&r, &job[i]);
    assert_true(rig_counts(&r).preemptions > 0);
    assert_true(rig_counts(&r).tier_loaded_tokens > 0);
    rig_free(&r);
}

static void an_event_for_nobody_is_counted(void **state)
{
    (void)state;
    static struct rig r;
    rig_open(&r, &with_tier);
    uint64_t before = rig_counts(&r).stale_messages;
    node_core_on_tier(r.core, r.now_ns, &(struct kv_tier_event){.id = 5, .count = 3});
    node_core_on_tier(r.core, r.now_ns, &(struct kv_tier_event){.id = 0, .count = 3});
    assert_int_equal(rig_counts(&r).stale_messages, before + 2);
    rig_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_computed_is_loaded_after_a_restart),
        cmocka_unit_test(a_window_is_loaded_after_a_restart),
        cmocka_unit_test(a_window_that_comes_in_parts_buys_time_for_more),
        cmocka_unit_test(what_came_of_a_window_is_not_computed_when_the_rest_does_not_come),
        cmocka_unit_test(a_window_that_comes_late_ends_the_computing_before_it),
        cmocka_unit_test(routers_are_told_of_what_a_tier_took),
        cmocka_unit_test(a_router_is_told_what_a_tier_has_from_earlier_lives),
        cmocka_unit_test(a_router_is_told_what_left_a_tier_and_of_news_that_were_lost),
        cmocka_unit_test(others_are_told_the_tokens_of_what_a_tier_took),
        cmocka_unit_test(what_came_from_the_tier_is_not_stored_again),
        cmocka_unit_test(what_stays_in_the_pool_is_used_in_the_tiers_too),
        cmocka_unit_test(so_is_a_window_by_its_end),
        cmocka_unit_test(a_prompt_waits_no_longer_than_its_deadline),
        cmocka_unit_test(what_comes_in_time_buys_time_for_more),
        cmocka_unit_test(who_has_little_time_left_asks_for_no_more),
        cmocka_unit_test(what_comes_late_is_for_the_next_prompt),
        cmocka_unit_test(only_the_leading_blocks_that_came_are_used),
        cmocka_unit_test(who_begins_alike_waits_for_the_same_load),
        cmocka_unit_test(tenants_do_not_share),
        cmocka_unit_test(what_is_loaded_counts_as_the_tenants_whatever_its_salt),
        cmocka_unit_test(a_load_takes_nothing_that_is_wanted_before_it),
        cmocka_unit_test(stores_hold_an_eighth_of_the_pool_at_most),
        cmocka_unit_test(no_chunk_of_a_prompt_is_left_out),
        cmocka_unit_test(what_a_tier_did_not_keep_is_offered_again_later),
        cmocka_unit_test(a_tier_that_takes_nothing_changes_nothing),
        cmocka_unit_test(a_preempted_sequence_comes_back_from_the_tier),
        cmocka_unit_test(an_event_for_nobody_is_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
