/* Cached blocks that go from a decode node back to a prefill node: what a turn generated there need not be
 * computed here for the next one. */
#include "tests/unit/testing.h"

#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "tests/unit/node_rig.h"

/* `d` generates and gives, `p` takes. */
static struct rig p, d;
static uint32_t talk[RIG_STREAM_MAX]; /* a prompt and its answer */
static uint32_t talk_count, whole;    /* of which so many are in whole blocks of d's cache */

static void open_both(const struct rig_options *prefill_node)
{
    rig_open_pair(&d, &p, &(struct rig_options){.role = ROLE_DECODE}, prefill_node);
}

/* A first turn on d alone. */
static void talk_on_decode(uint32_t prompt_count, uint32_t answer_count)
{
    struct job job = rig_job(1, &(struct rig_prompt){3, 0, 0, prompt_count, answer_count});
    job.tokens_min = answer_count;
    rig_reserve(&d, &job, true);
    rig_run(&d);
    memcpy(talk, job.prompt, prompt_count * sizeof *talk);
    assert_int_equal(rig_stream(&d, job.key, talk + prompt_count), answer_count);
    rig_acknowledge(&d, job.key);
    talk_count = prompt_count + answer_count;
    whole = (talk_count - 1) / BLOCK_TOKENS * BLOCK_TOKENS; /* the last token has no KV */
}

static struct job fill_of(uint32_t id, uint32_t tokens_count)
{
    return (struct job){.key = {{5, id}, 0, 0},
                        .prompt = talk,
                        .prompt_count = tokens_count,
                        .cached_only = true,
                        .sampling = {.top_p = 1, .repetition_penalty = 1}};
}

/* p is asked for blocks; its answer goes to d as PREFILL. */
static uint32_t begin(const struct job *fill)
{
    rig_forget(&p);
    rig_reserve(&p, fill, false);
    const struct msg *m = rig_said(&p, MSG_RESERVED);
    assert_non_null(m);
    uint32_t held = m->reserved.held_tokens;
    rig_prefill(&d, fill, m->reserved.ticket, held);
    return held;
}

/* The next turn on p: its first token is right, and so much of it was there. */
static void next_turn(uint32_t cached_tokens)
{
    uint32_t want[RIG_STREAM_MAX];
    enum finish finish;
    struct job next = rig_job(9, &(struct rig_prompt){8, 0, 0, talk_count + 20, 1});
    uint32_t prompt[RIG_STREAM_MAX];
    memcpy(prompt, next.prompt, next.prompt_count * sizeof *prompt);
    memcpy(prompt, talk, talk_count * sizeof *prompt);
    next.prompt = prompt;
    rig_expect(&next, p.config.context_max, want, &finish);
    rig_forget(&p);
    rig_prefill(&p, &next, ID128_NONE, 0);
    rig_run(&p);
    assert_int_equal(rig_said(&p, MSG_FIRST)->first.token.token, want[0]);
    assert_int_equal(rig_said(&p, MSG_FIRST)->first.cached_tokens, cached_tokens);
    rig_acknowledge(&p, next.key);
}

static void what_was_generated_is_cached_for_the_next_turn_elsewhere(void **state)
{
    (void)state;
    static const uint32_t known[] = {0, 16, 48};
    for (uint32_t i = 0; i < sizeof known / sizeof *known; i++) {
        open_both(&(struct rig_options){.role = ROLE_PREFILL});
        talk_on_decode(50, 31);
        if (known[i] > 0) { /* p computed some of it itself */
            struct job first = rig_job(2, &(struct rig_prompt){3, 0, 0, known[i] + 1, 1});
            rig_prefill(&p, &first, ID128_NONE, 0);
            rig_run(&p);
            rig_acknowledge(&p, first.key);
        }
        uint32_t steps = d.steps_done + p.steps_done;
        struct job fill = fill_of(1, whole);
        assert_int_equal(begin(&fill), known[i]);
        rig_run(&d);
        assert_int_equal(d.steps_done + p.steps_done, steps); /* nothing was computed */
        const struct msg *end = rig_said(&p, MSG_FINISHED);
        assert_true(end && job_key_equal(end->finished.key, fill.key));
        assert_int_equal(end->finished.tokens_count, 0);
        assert_int_equal(rig_said(&d, MSG_FIRST) ? 1 : 0, 0);
        assert_true(job_key_equal(rig_said(&d, MSG_PREFILLED)->prefilled.key, fill.key));
        rig_acknowledge(&p, fill.key);
        assert_int_equal(rig_counts(&p).backfills, 1);
        assert_int_equal(rig_counts(&p).backfilled_tokens, whole - known[i]);
        next_turn(whole);
        rig_free_pair(&d, &p);
    }
}

static void what_is_all_there_is_not_sent(void **state)
{
    (void)state;
    open_both(&(struct rig_options){.role = ROLE_PREFILL});
    talk_on_decode(50, 31);
    struct job fill = fill_of(1, whole), again = fill_of(2, whole);
    begin(&fill);
    rig_run(&d);
    rig_acknowledge(&p, fill.key);
    rig_forget(&p);
    rig_reserve(&p, &again, false);
    assert_null(rig_said(&p, MSG_RESERVED));
    assert_true(job_key_equal(rig_said(&p, MSG_FINISHED)->finished.key, again.key));
    rig_acknowledge(&p, again.key);
    assert_int_equal(rig_counts(&p).backfills, 1);
    rig_free_pair(&d, &p);
}

static void what_is_not_cached_any_more_is_not_computed(void **state)
{
    (void)state;
    open_both(&(struct rig_options){.role = ROLE_PREFILL});
    talk_on_decode(50, 31);
    struct job fill = fill_of(1, whole);
    fill.tenant_salt = 4; /* another one's: nothing of it is here */
    rig_forget(&d);
    begin(&fill);
    rig_assert_failed(&d, ERR_NOT_FOUND, true);
    assert_int_equal(rig_counts(&d).jobs_live, 0);
    rig_cancel(&p, fill.key);
    rig_run(&d);
    next_turn(0);
    assert_int_equal(rig_counts(&p).backfills, 0);
    rig_free_pair(&d, &p);
}

static void either_side_may_be_told_to_stop(void **state)
{
    (void)state;
    enum { OPS = 4 }; /* open, two layers, commit */
    for (uint32_t i = 0; i <= OPS + 1; i++) {
        open_both(&(struct rig_options){.role = ROLE_PREFILL});
        talk_on_decode(50, 31);
        struct job fill = fill_of(1, whole);
        begin(&fill);
        for (uint32_t n = 0; n < i; n++) /* so far it has come */
            if (!rig_link(&p) && !rig_link(&d)) rig_event(&p);
        rig_cancel(i % 2 ? &p : &d, fill.key);
        rig_run(&d);
        rig_cancel(i % 2 ? &d : &p, fill.key);
        rig_run(&d);
        assert_int_equal(rig_counts(&d).jobs_live + rig_counts(&p).jobs_live, 0);
        if (i % 2 && i <= OPS) assert_int_equal(rig_counts(&p).backfills, 0);
        next_turn(rig_counts(&p).backfills ? whole : 0);
        rig_free_pair(&d, &p);
    }
}

static void a_full_or_silent_node_ends_it(void **state)
{
    (void)state;
    open_both(&(struct rig_options){.role = ROLE_PREFILL,
                                    .blocks_count = 5,
                                    .context_max = 80,
                                    .reserve_timeout_ns = NS_PER_S});
    talk_on_decode(50, 31);
    struct job fill = fill_of(1, whole);
    struct job hold = rig_job(2, &(struct rig_prompt){5, 0, 0, 33, 1});
    rig_prefill(&p, &hold, ID128_NONE, 0); /* it waits for its step with three of five blocks */
    rig_reserve(&p, &fill, false);
    rig_assert_failed(&p, ERR_FULL, true);
    rig_run(&p);
    rig_acknowledge(&p, hold.key);
    rig_forget(&p);
    rig_reserve(&p, &fill, false); /* nobody ever sends */
    assert_non_null(rig_said(&p, MSG_RESERVED));
    rig_run(&p);
    rig_advance(&p, 2 * NS_PER_S);
    rig_run(&p);
    rig_assert_failed(&p, ERR_TIMEOUT, true);
    assert_int_equal(rig_counts(&p).jobs_live, 0);
    rig_free_pair(&d, &p);
}

static void only_what_fits_is_taken(void **state)
{
    (void)state;
    open_both(&(struct rig_options){.role = ROLE_PREFILL});
    talk_on_decode(50, 31);
    struct job fill = fill_of(1, whole);
    rig_prefill(&d, &fill, ID128_NONE, 0); /* without a ticket */
    rig_assert_failed(&d, ERR_INVALID, false);
    rig_reserve(&p, &fill, true); /* local */
    rig_assert_failed(&p, ERR_INVALID, false);
    struct job part = fill_of(2, whole - 1), long_one = fill_of(3, whole);
    long_one.tokens_max = 1;
    rig_reserve(&p, &part, false);
    rig_assert_failed(&p, ERR_INVALID, false);
    rig_forget(&p);
    rig_reserve(&p, &long_one, false);
    rig_assert_failed(&p, ERR_INVALID, false);
    rig_free_pair(&d, &p);
    for (uint32_t i = 0; i < 2; i++) {
        rig_open(&p, &(struct rig_options){
                         .role = ROLE_PREFILL, .no_prefix_cache = i, .window = i ? 0 : 32});
        rig_reserve(&p, &fill, false);
        rig_assert_failed(&p, ERR_UNSUPPORTED, true);
        rig_free(&p);
    }
}

int main(void)
{
    log_setup(LOG_OFF, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_generated_is_cached_for_the_next_turn_elsewhere),
        cmocka_unit_test(what_is_all_there_is_not_sent),
        cmocka_unit_test(what_is_not_cached_any_more_is_not_computed),
        cmocka_unit_test(either_side_may_be_told_to_stop),
        cmocka_unit_test(a_full_or_silent_node_ends_it),
        cmocka_unit_test(only_what_fits_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
