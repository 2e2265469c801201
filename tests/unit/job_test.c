#include "tests/unit/testing.h"

#include <math.h>
#include <string.h>

#include "common/job.h"
#include "common/settings.h"

enum { VOCAB = 100, CONTEXT = 32 };

static uint32_t prompt[CONTEXT + 1] = {1, 2, 99};
static const uint32_t stop_ids[JOB_STOP_IDS_MAX + 1] = {7, 8};
static const struct logit_bias bias[JOB_BIAS_MAX + 1] = {{5, 100.0f}, {6, -100.0f}};

static struct job good_job(void)
{
    return (struct job){
        .key = {.request = {0, 1}},
        .prompt = prompt,
        .prompt_count = 3,
        .tokens_max = 10,
        .stop_ids = stop_ids,
        .stop_ids_count = 2,
        .sampling = {.top_p = 1, .repetition_penalty = 1, .bias = bias, .bias_count = 2}};
}

static void a_job_at_every_limit_is_accepted(void **state)
{
    (void)state;
    struct job j = good_job();
    assert_ok(job_check(&j, VOCAB, CONTEXT));
    j.key.choice = JOB_CHOICES_MAX - 1;
    j.prompt_count = CONTEXT - 9;
    j.forwarded = prompt;
    j.forwarded_count = 9;
    j.stop_ids_count = JOB_STOP_IDS_MAX;
    j.sampling.bias_count = JOB_BIAS_MAX;
    j.sampling.tops_count = JOB_TOPS_MAX;
    j.sampling.temperature = 100;
    j.sampling.presence_penalty = -2;
    j.kv_window = 1;
    j.kv_sinks = 16;
    j.tenant_salt = 1;
    assert_ok(job_check(&j, VOCAB, CONTEXT));
}

static void what_draws_no_token_has_one_result_and_something_to_work_on(void **state)
{
    (void)state;
    for (enum job_kind kind = JOB_SCORE; kind < JOB_KINDS; kind++) {
        struct job j = good_job();
        j.kind = kind;
        j.tokens_max = 0;
        j.prompt_count = kind == JOB_SCORE ? 2 : 1;
        assert_ok(job_check(&j, VOCAB, CONTEXT));
        j.key.choice = 1;
        assert_int_equal(job_check(&j, VOCAB, CONTEXT), ERR_INVALID);
        assert_non_null(strstr(err_text(), job_kind_name(kind)));
        j.key.choice = 0;
        j.tokens_max = 1;
        assert_int_equal(job_check(&j, VOCAB, CONTEXT), ERR_INVALID);
        assert_non_null(strstr(err_text(), "draws no token"));
    }
    struct job j = good_job();
    j.tokens_max = 0;
    assert_ok(job_check(&j, VOCAB, CONTEXT)); /* prefill only */
    j.kind = JOB_SCORE;
    j.prompt_count = 1;
    assert_int_equal(job_check(&j, VOCAB, CONTEXT), ERR_INVALID);
    assert_non_null(strstr(err_text(), "two at least"));
    j.kind = JOB_KINDS;
    assert_int_equal(job_check(&j, VOCAB, CONTEXT), ERR_INVALID);
}

static void a_job_of_cached_blocks_has_whole_ones_and_draws_nothing(void **state)
{
    (void)state;
    struct job j = good_job(), bad[3];
    j.cached_only = true;
    j.tokens_max = 0;
    j.prompt_count = 2 * BLOCK_TOKENS;
    assert_ok(job_check(&j, VOCAB, CONTEXT));
    for (int i = 0; i < 3; i++)
        bad[i] = j;
    bad[0].prompt_count--;
    bad[1].tokens_max = 1;
    bad[2].kind = JOB_EMBED_LAST;
    for (int i = 0; i < 3; i++)
        assert_int_equal(job_check(&bad[i], VOCAB, CONTEXT), ERR_INVALID);
}

static void what_is_one_beyond_is_refused_by_its_name(void **state)
{
    (void)state;
    static const uint32_t bad_id = VOCAB;
    static const struct logit_bias bad_bias = {VOCAB, 0}, heavy = {1, 100.5f};
    struct job j[21];
    const char *const names[COUNT_OF(j)] = {"id",
                                            "choice",
                                            "prompt",
                                            "context",
                                            "max_tokens",
                                            "nothing",
                                            "stop ids",
                                            "prompt token",
                                            "generated token",
                                            "stop id",
                                            "temperature",
                                            "top_p",
                                            "min_p",
                                            "presence_penalty",
                                            "top_logprobs",
                                            "logit_bias token",
                                            "logit_bias",
                                            "kv_sinks",
                                            "kv_window",
                                            "kv_sinks",
                                            "salt"};
    for (size_t i = 0; i < COUNT_OF(j); i++)
        j[i] = good_job();
    j[0].key.request = ID128_NONE;
    j[1].key.choice = JOB_CHOICES_MAX;
    j[2].prompt_count = 0;
    j[3].prompt_count = CONTEXT + 1;
    j[4].tokens_max = JOB_TOKENS_MAX + 1;
    j[5].forwarded = prompt, j[5].forwarded_count = 10;
    j[6].stop_ids_count = JOB_STOP_IDS_MAX + 1;
    j[7].prompt = &bad_id, j[7].prompt_count = 1;
    j[8].forwarded = &bad_id, j[8].forwarded_count = 1;
    j[9].stop_ids = &bad_id, j[9].stop_ids_count = 1;
    j[10].sampling.temperature = NAN;
    j[11].sampling.top_p = 1.01f;
    j[12].sampling.min_p = -0.01f;
    j[13].sampling.presence_penalty = 2.1f;
    j[14].sampling.tops_count = JOB_TOPS_MAX + 1;
    j[15].sampling.bias = &bad_bias, j[15].sampling.bias_count = 1;
    j[16].sampling.bias = &heavy, j[16].sampling.bias_count = 1;
    j[17].kv_sinks = 16;
    j[18].kv_window = JOB_TOKENS_MAX + 1;
    j[19].kv_window = 64, j[19].kv_sinks = 17;
    j[20].kv_window = 64;
    for (size_t i = 0; i < COUNT_OF(j); i++) {
        assert_int_equal(job_check(&j[i], VOCAB, CONTEXT), ERR_INVALID);
        if (!strstr(err_text(), names[i])) fail_msg("%s: said \"%s\"", names[i], err_text());
    }
}

static void the_finish_check_is_a_table(void **state)
{
    (void)state;
    static const struct {
        uint32_t index, token, tokens_min, tokens_max, context;
        enum finish want;
    } cases[] = {
        {0, 1, 0, 10, 32, FINISH_NONE},  {0, 7, 0, 10, 32, FINISH_STOP},
        {4, 8, 0, 10, 32, FINISH_STOP},  {0, 7, 1, 10, 32, FINISH_NONE},
        {1, 7, 1, 10, 32, FINISH_STOP},  {9, 1, 0, 10, 32, FINISH_LENGTH},
        {9, 7, 0, 10, 32, FINISH_STOP},  {9, 7, 10, 10, 32, FINISH_LENGTH},
        {0, 1, 0, 0, 32, FINISH_LENGTH}, {0, 1, 0, 1, 32, FINISH_LENGTH},
        {3, 1, 0, 10, 8, FINISH_NONE},   {4, 1, 0, 10, 8, FINISH_LENGTH},
        {0, 1, 0, 10, 3, FINISH_LENGTH},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct job j = good_job();
        j.tokens_min = cases[i].tokens_min;
        j.tokens_max = cases[i].tokens_max;
        assert_int_equal(job_finish(&j, cases[i].index, cases[i].token, cases[i].context),
                         cases[i].want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_at_every_limit_is_accepted),
        cmocka_unit_test(what_draws_no_token_has_one_result_and_something_to_work_on),
        cmocka_unit_test(a_job_of_cached_blocks_has_whole_ones_and_draws_nothing),
        cmocka_unit_test(what_is_one_beyond_is_refused_by_its_name),
        cmocka_unit_test(the_finish_check_is_a_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
