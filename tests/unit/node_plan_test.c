#include "tests/unit/testing.h"

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
         {{0, false, 0, 10}, {1, true, 40, 1}, {2, true, 3, 1}},
         3,
         {{8, 64, 64}, 4, 32},
         {{1, 1}, {2, 1}, {0, 10}},
         3},
        {"several prompts share a chunk, the last one in part",
         {{0, false, 0, 20}, {1, false, 16, 5}, {2, false, 0, 100}},
         3,
         {{8, 64, 64}, 4, 32},
         {{0, 20}, {1, 5}, {2, 7}},
         3},
        {"the chunk is for prompts only, rows for all",
         {{0, true, 1, 1}, {1, true, 1, 1}, {2, false, 0, 100}},
         3,
         {{8, 10, 64}, 4, 32},
         {{0, 1}, {1, 1}, {2, 8}},
         3},
        {"a batch has its limit",
         {{0, true, 1, 1}, {1, true, 1, 1}, {2, true, 1, 1}},
         3,
         {{8, 64, 64}, 2, 32},
         {{0, 1}, {1, 1}},
         2},
        {"a step has its number of sequences",
         {{0, false, 0, 1}, {1, false, 0, 1}, {2, false, 0, 1}},
         3,
         {{2, 64, 64}, 2, 32},
         {{0, 1}, {1, 1}},
         2},
        {"a table that is too short cuts a prompt and leaves out a long sequence",
         {{0, true, 100, 1}, {1, false, 8, 100}},
         2,
         {{8, 200, 4}, 2, 100},
         {{1, 56}},
         1},
        {"nothing wanted", {{0, false, 8, 0}, {1, true, 8, 0}}, 2, {{8, 64, 64}, 4, 32}, {{0}}, 0},
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

static void the_last_in_order_is_preempted_and_only_for_an_earlier_one(void **state)
{
    (void)state;
    static const struct plan_claim claims[] = {{0, 5}, {0, 9}, {-1, 12}, {3, 1}, {3, 2}};
    static const struct {
        struct plan_claim wanting;
        uint32_t count, want;
    } cases[] = {
        {{0, 5}, 5, 4},          {{0, 5}, 3, 1}, {{0, 5}, 1, UINT32_MAX}, {{-1, 12}, 3, 1},
        {{3, 2}, 5, UINT32_MAX}, {{3, 1}, 5, 4}, {{-2, 99}, 3, 1},        {{0, 0}, 0, UINT32_MAX},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(preempt_pick(claims, cases[i].count, &cases[i].wanting), cases[i].want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_go_first_then_prompts_in_order),
        cmocka_unit_test(the_last_in_order_is_preempted_and_only_for_an_earlier_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
