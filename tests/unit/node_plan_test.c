#include "tests/unit/testing.h"

#include <string.h>

#include "common/rng.h"
#include "node/lengths.h"
#include "node/plan.h"

enum { JOBS_MAX = 6 };

static void decodes_go_first_then_prompts_in_order(void **state)
{
    (void)state;
    static const struct {
        const char *why;
        struct plan_job jobs[JOBS_MAX];
        uint32_t jobs_count;
        struct plan_budget budget;
        struct plan_part want[JOBS_MAX];
        uint32_t want_count;
    } cases[] = {
        {"nothing to do", {{0}}, 0, {{8, 64, 64}, 4, 32}, {{0}}, 0},
        {"decodes before prompts",
         {{false, 0, 10}, {true, 40, 1}, {true, 3, 1}},
         3,
         {{8, 64, 64}, 4, 32},
         {{1, 1}, {2, 1}, {0, 10}},
         3},
        {"several prompts share a chunk, the last one in part",
         {{false, 0, 20}, {false, 16, 5}, {false, 0, 100}},
         3,
         {{8, 64, 64}, 4, 32},
         {{0, 20}, {1, 5}, {2, 7}},
         3},
        {"the chunk is for prompts only, rows for all",
         {{true, 1, 1}, {true, 1, 1}, {false, 0, 100}},
         3,
         {{8, 10, 64}, 4, 32},
         {{0, 1}, {1, 1}, {2, 8}},
         3},
        {"a batch has its limit",
         {{true, 1, 1}, {true, 1, 1}, {true, 1, 1}},
         3,
         {{8, 64, 64}, 2, 32},
         {{0, 1}, {1, 1}},
         2},
        {"a step has its number of sequences",
         {{false, 0, 1}, {false, 0, 1}, {false, 0, 1}},
         3,
         {{2, 64, 64}, 2, 32},
         {{0, 1}, {1, 1}},
         2},
        {"a table that is too short cuts a prompt and leaves out a long sequence",
         {{true, 100, 1}, {false, 8, 100}},
         2,
         {{8, 200, 4}, 2, 100},
         {{1, 56}},
         1},
        {"nothing wanted", {{false, 8, 0}, {true, 8, 0}}, 2, {{8, 64, 64}, 4, 32}, {{0}}, 0},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct plan_part parts[JOBS_MAX];
        uint32_t n = chunk_plan(cases[i].jobs, cases[i].jobs_count, &cases[i].budget, parts);
        if (n != cases[i].want_count) fail_msg("%s: %u parts", cases[i].why, n);
        for (uint32_t k = 0; k < n; k++) {
            assert_int_equal(parts[k].job, cases[i].want[k].job);
            assert_int_equal(parts[k].rows_count, cases[i].want[k].rows_count);
        }
    }
}

static void the_cheapest_of_the_lowest_priority_gives_way_to_an_earlier_one(void **state)
{
    (void)state;
    static const struct plan_claim claims[] = {{0, 5, 9}, {0, 9, 9}, {-1, 12, 9},       {3, 1, 9},
                                               {3, 2, 9}, {3, 4, 2}, {3, 0, UINT64_MAX}};
    static const struct {
        struct plan_claim wanting;
        uint32_t count, want;
    } cases[] = {
        {{0, 5, 0}, 5, 4},   {{0, 5, 0}, 3, 1},          {{0, 5, 0}, 1, UINT32_MAX},
        {{-1, 12, 0}, 3, 1}, {{3, 2, 0}, 5, UINT32_MAX}, {{3, 1, 0}, 5, 4},
        {{-2, 99, 0}, 3, 1}, {{0, 0, 0}, 0, UINT32_MAX}, {{0, 5, 0}, 6, 5},
        {{3, 2, 0}, 6, 5},   {{3, 4, 0}, 6, UINT32_MAX}, {{0, 5, 0}, 7, 5},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(preempt_pick(claims, cases[i].count, &cases[i].wanting), cases[i].want);
    assert_true(preempt_cost(4, 0) < preempt_cost(4, 1) && preempt_cost(9, 0) < preempt_cost(0, 0));
}

/* Against counting, token by token. */
static void the_peak_is_that_of_growing_together(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 200; round++) {
        struct plan_grower g[12];
        uint32_t n = rng_below(rng_draw(6, round, 0).word[0], 12);
        uint64_t want = 0;
        for (uint32_t i = 0; i < n; i++)
            g[i] = (struct plan_grower){rng_below(rng_draw(6, round, i + 1).word[0], 30),
                                        rng_below(rng_draw(6, round, i + 1).word[1], 20)};
        for (uint32_t t = 0; t < 20; t++) {
            uint64_t sum = 0;
            for (uint32_t i = 0; i < n; i++)
                if (g[i].grow >= t) sum += g[i].held + t;
            if (sum > want) want = sum;
        }
        assert_int_equal(plan_peak(g, n), want);
    }
}

static void head_room_doubles_with_each_preemption(void **state)
{
    (void)state;
    assert_int_equal(plan_horizon(0), 0);
    for (uint32_t i = 1; i < 16; i++)
        assert_int_equal(plan_horizon(i + 1), 2 * plan_horizon(i));
    assert_int_equal(plan_horizon(UINT32_MAX), plan_horizon(16));
}

static void a_sequence_comes_back_by_the_cheaper_way(void **state)
{
    (void)state;
    static const struct {
        struct plan_return facts;
        enum preempted want;
    } cases[] = {
        {{100, 0, 10, 11}, PREEMPTED_RECOMPUTE}, {{100, 0, 11, 10}, PREEMPTED_HAND_BACK},
        {{100, 3, 10, 39}, PREEMPTED_HAND_BACK}, {{100, 3, 10, 41}, PREEMPTED_RECOMPUTE},
        {{0, 3, 10, 1}, PREEMPTED_RECOMPUTE},    {{100, 9, 0, 1}, PREEMPTED_RECOMPUTE},
        {{100, 9, 10, 0}, PREEMPTED_RECOMPUTE},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(plan_return(&cases[i].facts), cases[i].want);
}

/* ---- lengths ---- */

static void lengths_are_learned_of_their_like(void **state)
{
    (void)state;
    static struct lengths l;
    memset(&l, 0, sizeof l);
    assert_int_equal(lengths_expect(&l, 100, 1000, 7), 7); /* nothing is known */
    for (uint32_t i = 0; i < 100; i++) {
        lengths_add(&l, 100, 1000, 40);
        lengths_add(&l, 9000, 1000, 600);
    }
    uint32_t brief = lengths_expect(&l, 100, 1000, 0), extended = lengths_expect(&l, 9000, 1000, 0);
    assert_true(brief >= 40 && brief < 64);
    assert_true(extended >= 600 && extended < 1000);
    assert_in_range(lengths_expect(&l, 1, 1000, 0), 600, 1000); /* no like: all of its limit */
    assert_int_equal(lengths_expect(&l, 100, 100000, 0), 0);
    assert_int_equal(lengths_expect(&l, 100, 1000, 500), 1000); /* longer than any: to its limit */
    assert_int_equal(lengths_expect(&l, 100, 1000, 1000), 1000);
    for (uint32_t i = 0; i < 2000; i++) /* the old ones are forgotten */
        lengths_add(&l, 100, 1000, 3);
    assert_in_range(lengths_expect(&l, 100, 1000, 0), 3, 4);
}

static void an_expected_length_is_in_its_bounds(void **state)
{
    (void)state;
    static struct lengths l;
    memset(&l, 0, sizeof l);
    for (uint32_t i = 0; i < 4000; i++) {
        struct rng_block b = rng_draw(7, i, 0);
        uint32_t limit = 1 + (b.word[0] >> (12 + b.word[3] % 20)), prompt_count = b.word[1] >> 12;
        uint32_t generated = rng_below(b.word[2], limit) + 1;
        uint32_t e = lengths_expect(&l, prompt_count, limit, generated);
        assert_true(e >= generated && e <= limit);
        lengths_add(&l, prompt_count, limit, generated);
    }
}

static void a_step_is_planned_late_and_held_for_half_of_one_at_most(void **state)
{
    (void)state;
    enum { US = NS_PER_US, STEP = 4000 * US, FROM = 100000 * US };
    static const struct {
        const char *why;
        struct plan_pace pace;
        uint64_t want_ns;
    } cases[] = {
        {"nothing runs", {FROM, false, STEP, TIME_NEVER}, FROM},
        {"nothing is known", {FROM, true, 0, TIME_NEVER}, FROM},
        {"a quarter of a step ahead", {FROM, true, STEP, TIME_NEVER}, FROM + 3000 * US},
        {"short steps have a lead, too", {FROM, true, 500 * US, TIME_NEVER}, FROM + 300 * US},
        {"shorter than that", {FROM, true, 150 * US, TIME_NEVER}, FROM},
        {"a stream comes soon", {FROM, false, STEP, FROM + 1000 * US}, FROM + 2000 * US},
        {"one is late", {FROM, false, STEP, FROM - 1000 * US}, FROM + 2000 * US},
        {"one comes in time", {FROM, false, STEP, FROM + 2000 * US}, FROM + 2000 * US},
        {"one comes too late", {FROM, false, STEP, FROM + 2001 * US}, FROM},
        {"behind the one that runs", {FROM, true, STEP, FROM + 5000 * US}, FROM + 6000 * US},
        {"too late for that", {FROM, true, STEP, FROM + 6001 * US}, FROM + 3000 * US},
        {"how long is not known", {FROM, false, 0, FROM + 1 * US}, FROM},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (plan_begin_ns(&cases[i].pace) != cases[i].want_ns)
            fail_msg("%s: %lld us", cases[i].why,
                     (long long)((int64_t)plan_begin_ns(&cases[i].pace) - FROM) / US);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_go_first_then_prompts_in_order),
        cmocka_unit_test(the_cheapest_of_the_lowest_priority_gives_way_to_an_earlier_one),
        cmocka_unit_test(the_peak_is_that_of_growing_together),
        cmocka_unit_test(head_room_doubles_with_each_preemption),
        cmocka_unit_test(a_sequence_comes_back_by_the_cheaper_way),
        cmocka_unit_test(a_step_is_planned_late_and_held_for_half_of_one_at_most),
        cmocka_unit_test(lengths_are_learned_of_their_like),
        cmocka_unit_test(an_expected_length_is_in_its_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
