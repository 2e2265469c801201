/* A node that scores and embeds: whole results, the same whatever the chunks, the company and the cache. */
#include "tests/unit/testing.h"

#include <string.h>

#include "common/mem.h"
#include "common/settings.h"
#include "tests/unit/node_rig.h"

static struct rig p;

static struct job encode_job(uint32_t id, enum job_kind kind, const struct rig_prompt *prompt)
{
    struct job job = rig_job(id, prompt);
    job.kind = kind;
    return job;
}

/* All that was told of the job is its result, before the word that it has ended. */
static void expect_result(const struct job *job)
{
    float want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    uint32_t have = 0, count = rig_expect_values(job, want);
    bool ended = false;
    for (uint32_t i = 0; i < p.said_count; i++) {
        const struct msg *m = &p.said[i].m;
        if (m->kind == MSG_FINISHED && job_key_equal(m->finished.key, job->key)) {
            assert_int_equal(m->finished.tokens_count, 0);
            assert_int_equal(m->finished.finish, FINISH_LENGTH);
            ended = true;
        }
        if (m->kind != MSG_ENCODED || !job_key_equal(m->encoded.key, job->key)) continue;
        assert_false(ended);
        assert_int_equal(m->encoded.index, have);
        assert_int_equal(m->encoded.total, count);
        memcpy(got + have, m->encoded.values, m->encoded.values_count * sizeof *got);
        have += m->encoded.values_count;
    }
    assert_true(ended);
    assert_int_equal(have, count);
    assert_memory_equal(got, want, count * sizeof *got);
}

static void results_do_not_depend_on_chunks_or_company(void **state)
{
    static const uint32_t chunks[] = {1, 7, 16, 32, 200};
    (void)state;
    for (size_t c = 0; c < COUNT_OF(chunks); c++)
        for (uint32_t together = 0; together < 2; together++) {
            struct job job[6];
            rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL,
                                               .chunk_tokens = chunks[c],
                                               .blocks_count = 128,
                                               .steps_in_flight = 2});
            for (uint32_t i = 0; i < COUNT_OF(job); i++) {
                job[i] = encode_job(i + 1, JOB_SCORE + i % 3,
                                    &(struct rig_prompt){i, 3, 20, 30 + 13 * i, 0});
                rig_prefill(&p, &job[i], ID128_NONE, 0);
                if (!together) rig_run(&p);
            }
            rig_run(&p);
            for (uint32_t i = 0; i < COUNT_OF(job); i++)
                expect_result(&job[i]);
            struct node_counts n = rig_counts(&p);
            assert_int_equal(n.scores, 2);
            assert_int_equal(n.embeddings, 4);
            rig_free(&p);
        }
}

static void what_all_rows_are_needed_for_is_computed_in_spite_of_the_cache(void **state)
{
    static const struct {
        enum job_kind kind;
        uint32_t cached;
    } rows[] = {{JOB_SCORE, 0}, {JOB_EMBED_MEAN, 0}, {JOB_EMBED_LAST, 48}, {JOB_GENERATE, 48}};
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL});
    struct job first = encode_job(1, JOB_SCORE, &(struct rig_prompt){1, 0, 0, 60, 0});
    rig_prefill(&p, &first, ID128_NONE, 0);
    rig_run(&p);
    expect_result(&first);
    assert_int_equal(rig_counts(&p).blocks.cached, 3); /* it left its blocks for others */
    for (uint32_t i = 0; i < COUNT_OF(rows); i++) {
        struct job job = encode_job(2 + i, rows[i].kind, &(struct rig_prompt){1, 0, 0, 60, 0});
        uint64_t before = rig_counts(&p).prompt_tokens;
        rig_forget(&p);
        rig_prefill(&p, &job, ID128_NONE, 0);
        rig_run(&p);
        if (job.kind != JOB_GENERATE) expect_result(&job);
        assert_int_equal(rig_said(&p, MSG_FINISHED)->finished.cached_tokens, rows[i].cached);
        assert_int_equal(rig_counts(&p).prompt_tokens - before, 60 - rows[i].cached);
        assert_int_equal(rig_counts(&p).blocks.cached, 3); /* and took no second ones */
    }
    rig_free(&p);
}

static void a_result_is_told_again_from_where_it_is_asked_for(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL});
    struct job job = encode_job(1, JOB_SCORE, &(struct rig_prompt){1, 0, 0, 40, 0});
    rig_prefill(&p, &job, ID128_NONE, 0);
    rig_run(&p);
    rig_forget(&p);
    rig_say(&p, (struct msg){.kind = MSG_RESEND, .resend = {job.key, 30}});
    const struct msg_encoded *m = &rig_said(&p, MSG_ENCODED)->encoded;
    assert_int_equal(m->index, 30);
    assert_int_equal(m->values_count, 9);
    assert_non_null(rig_said(&p, MSG_FINISHED));
    rig_forget(&p);
    rig_say(&p, (struct msg){.kind = MSG_RESEND, .resend = {job.key, 39}});
    assert_null(rig_said(&p, MSG_ENCODED));
    rig_acknowledge(&p, job.key);
    rig_forget(&p);
    rig_say(&p, (struct msg){.kind = MSG_RESEND, .resend = {job.key, 0}});
    assert_null(rig_said(&p, MSG_ENCODED));
    rig_free(&p);
}

static void a_cancelled_one_says_nothing_and_a_step_may_still_write(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL, .steps_in_flight = 2});
    struct job job = encode_job(1, JOB_EMBED_MEAN, &(struct rig_prompt){1, 0, 0, 90, 0});
    rig_prefill(&p, &job, ID128_NONE, 0);
    rig_step(&p);
    rig_cancel(&p, job.key);
    rig_step_layers(&p, RIG_LAYERS);
    rig_step_done(&p, OK); /* it was not stopped in time */
    rig_run(&p);
    assert_null(rig_said(&p, MSG_ENCODED));
    rig_assert_failed(&p, ERR_CANCELLED, false);
    rig_free(&p);
}

static void a_decode_node_does_it_too_and_nobody_reserves_for_it(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = encode_job(1, JOB_SCORE, &(struct rig_prompt){1, 0, 0, 60, 0});
    rig_prefill(&p, &job, ID128_NONE, 0);
    rig_run(&p);
    expect_result(&job);
    rig_forget(&p);
    job = encode_job(2, JOB_EMBED_LAST, &(struct rig_prompt){1, 0, 0, 60, 0});
    rig_reserve(&p, &job, true);
    rig_assert_failed(&p, ERR_INVALID, false);
    rig_free(&p);
}

static void without_memory_for_the_result_the_attempt_fails(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL});
    arena_take(&p.arena, 1 << 20);
    arena_reset(&p.arena); /* room: what fails shall be the node's */
    bool failed = true;
    for (uint64_t n = 1; failed; n++) {
        struct job job = encode_job((uint32_t)n, n % 2 ? JOB_EMBED_MEAN : JOB_SCORE,
                                    &(struct rig_prompt){1, 0, 0, 300, 0});
        rig_forget(&p);
        mem_fail_at(n);
        rig_prefill(&p, &job, ID128_NONE, 0);
        mem_fail_at(0);
        rig_run(&p);
        failed = rig_said(&p, MSG_FAILED) != NULL;
        if (failed) rig_assert_failed(&p, ERR_MEMORY, true);
        if (!failed) expect_result(&job);
        rig_acknowledge(&p, job.key);
        assert_true(n < 20);
    }
    rig_free(&p);
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL});
    struct job job = encode_job(1, JOB_SCORE, &(struct rig_prompt){1, 0, 0, 1, 0});
    rig_prefill(&p, &job, ID128_NONE, 0);
    rig_assert_failed(&p, ERR_INVALID, false);
    rig_forget(&p);
    job = encode_job(2, JOB_EMBED_LAST, &(struct rig_prompt){1, 0, 0, 20, 1});
    rig_prefill(&p, &job, ID128_NONE, 0);
    rig_assert_failed(&p, ERR_INVALID, false);
    rig_forget(&p);
    job =
        encode_job(3, JOB_EMBED_MEAN, &(struct rig_prompt){1, 0, 0, 401, 0}); /* the context: 400 */
    rig_prefill(&p, &job, ID128_NONE, 0);
    rig_assert_failed(&p, ERR_INVALID, false);
    rig_free(&p);
}

/* What is reserved on a decode node passes by those that wait for blocks: it must not do so for ever. */
static void a_prompt_alone_gets_its_room_on_a_busy_decode_node(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 16});
    struct job score = encode_job(1, JOB_SCORE, &(struct rig_prompt){1, 0, 0, 200, 0});
    for (uint32_t i = 0; i < 40; i++) {
        struct job job = rig_job(2 + i % 8, &(struct rig_prompt){100 + i, 0, 0, 30, 40});
        job.stop_ids_count = 0;
        job.key.request.hi = 100 + i;
        rig_reserve(&p, &job, true);
        if (i == 2) rig_prefill(&p, &score, ID128_NONE, 0);
        for (uint32_t k = 0; k < 15; k++)
            rig_step(&p);
        for (uint32_t k = 0; k <= i; k++) /* of those that have ended */
            rig_acknowledge(&p, (struct job_key){{100 + k, 2 + k % 8}, 0, 0});
    }
    expect_result(&score);
    rig_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(results_do_not_depend_on_chunks_or_company),
        cmocka_unit_test(what_all_rows_are_needed_for_is_computed_in_spite_of_the_cache),
        cmocka_unit_test(a_result_is_told_again_from_where_it_is_asked_for),
        cmocka_unit_test(a_cancelled_one_says_nothing_and_a_step_may_still_write),
        cmocka_unit_test(a_decode_node_does_it_too_and_nobody_reserves_for_it),
        cmocka_unit_test(a_prompt_alone_gets_its_room_on_a_busy_decode_node),
        cmocka_unit_test(without_memory_for_the_result_the_attempt_fails),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
