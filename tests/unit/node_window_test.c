#include "tests/unit/testing.h"

#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "node/state.h"
#include "tests/unit/node_rig.h"

/* A prompt of 300 tokens through pools that hold a window of 40 and two chunks of 16. */
enum { WINDOW = 40, CHUNK = 16, PROMPT = 300, POOL = 6 };

static struct rig p, d;

static void open_pair(uint32_t window, uint32_t blocks_p, uint32_t blocks_d)
{
    struct rig_options o = {
        .role = ROLE_PREFILL, .window = window, .chunk_tokens = CHUNK, .blocks_count = blocks_p};
    struct rig_options of_d = o;
    of_d.role = ROLE_DECODE;
    of_d.blocks_count = blocks_d;
    rig_open_pair(&p, &d, &o, &of_d);
}

static struct job long_job(uint32_t id, uint32_t tokens_max)
{
    struct job job =
        rig_job(id, &(struct rig_prompt){.seed = id, .count = PROMPT, .tokens_max = tokens_max});
    job.stop_ids_count = 0;
    return job;
}

static void assert_stream(const struct job *job)
{
    uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    enum finish finish;
    uint32_t n = rig_expect(job, d.config.context_max, want, &finish);
    assert_int_equal(rig_stream(&d, job->key, got), n);
    assert_memory_equal(got, want, n * sizeof *got);
    assert_non_null(rig_said(&d, MSG_FINISHED));
}

/* Tokens on the wire of the ticket that was opened last. */
static uint32_t wire_tokens(void)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < RIG_TICKETS_MAX; i++)
        if (!id128_is_none(d.ticket[i].id)) n = d.ticket[i].tokens_end - d.ticket[i].tokens_first;
    return n;
}

static void serve(const struct job *job)
{
    rig_forget(&p);
    rig_forget(&d);
    rig_reserve(&d, job, false);
    const struct msg *m = rig_said(&d, MSG_RESERVED);
    assert_non_null(m);
    rig_prefill(&p, job, m->reserved.ticket, m->reserved.held_tokens);
    rig_run(&p);
    assert_stream(job);
    rig_acknowledge(&d, job->key);
}

static void a_prompt_longer_than_both_pools_goes_through_them(void **state)
{
    (void)state;
    open_pair(WINDOW, POOL, POOL);
    struct job job = long_job(1, 80);
    serve(&job);
    assert_true(wire_tokens() < WINDOW + BLOCK_TOKENS);
    assert_true(rig_counts(&p).window_blocks >= (PROMPT - WINDOW) / BLOCK_TOKENS - 1);
    assert_true(rig_counts(&d).window_blocks >= 80 / BLOCK_TOKENS - 1);
    rig_free_pair(&p, &d);
}

static void decode_computes_such_a_prompt_itself_too(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE,
                                       .window = WINDOW,
                                       .chunk_tokens = CHUNK,
                                       .blocks_count = POOL});
    struct job job = long_job(1, 60);
    rig_reserve(&d, &job, true);
    rig_run(&d);
    assert_stream(&job);
    rig_acknowledge(&d, job.key);
    rig_free(&d);
}

static void a_pool_below_the_window_is_said(void **state)
{
    (void)state;
    rig_open(&d,
             &(struct rig_options){
                 .role = ROLE_DECODE, .window = WINDOW, .chunk_tokens = CHUNK, .blocks_count = 4});
    struct job job = long_job(1, 60);
    rig_reserve(&d, &job, true);
    rig_assert_failed(&d, ERR_INVALID, false);
    rig_free(&d);
}

static void a_request_keeps_its_first_tokens_and_its_last_ones(void **state)
{
    (void)state;
    open_pair(0, POOL + 2, POOL + 2);
    struct job job = long_job(1, 80);
    job.kv_window = WINDOW;
    job.kv_sinks = 2 * BLOCK_TOKENS;
    job.tenant_salt = 9;
    serve(&job);
    assert_true(wire_tokens() < WINDOW + 3 * BLOCK_TOKENS);
    assert_true(rig_counts(&p).window_blocks > 0 && rig_counts(&d).window_blocks > 0);
    rig_free_pair(&p, &d);
}

static void a_request_may_not_narrow_a_models_own_window(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .window = WINDOW});
    struct job job = long_job(1, 8);
    job.kv_window = 16;
    job.tenant_salt = 9;
    rig_reserve(&d, &job, false);
    rig_assert_failed(&d, ERR_INVALID, false);
    rig_free(&d);
}

static void what_is_cached_of_a_window_need_not_travel_again(void **state)
{
    (void)state;
    open_pair(WINDOW, 64, 64);
    struct job job = long_job(1, 8);
    serve(&job);
    struct job again = job;
    again.key.request.lo = 2;
    uint64_t computed = rig_counts(&p).prompt_tokens;
    serve(&again);
    assert_true(rig_counts(&p).prompt_tokens - computed <= BLOCK_TOKENS);
    rig_free_pair(&p, &d);
}

static void a_later_turn_finds_all_of_the_one_before(void **state)
{
    (void)state;
    static uint32_t tokens[RIG_STREAM_MAX];
    uint32_t answer[RIG_STREAM_MAX], said = 30;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE,
                                       .window = WINDOW,
                                       .chunk_tokens = CHUNK,
                                       .blocks_count = POOL});
    struct job job = long_job(1, 40), turn = long_job(2, 20);
    for (uint32_t i = 0; i < 2; i++) {
        rig_forget(&d);
        rig_reserve(&d, i == 0 ? &job : &turn, true);
        rig_run(&d);
        assert_stream(i == 0 ? &job : &turn);
        if (i == 0) {
            uint32_t n = rig_stream(&d, job.key, answer);
            memcpy(tokens, job.prompt, PROMPT * sizeof *tokens);
            memcpy(tokens + PROMPT, answer, n * sizeof *tokens);
            for (uint32_t k = 0; k < said; k++)
                tokens[PROMPT + n + k] = 1 + k % 7;
            turn.prompt = tokens;
            turn.prompt_count = PROMPT + n + said;
        }
        rig_acknowledge(&d, i == 0 ? job.key : turn.key);
    }
    /* The last token that was generated has no KV. */
    assert_int_equal(rig_said(&d, MSG_FINISHED)->finished.cached_tokens,
                     (PROMPT + 40 - 1) / BLOCK_TOKENS * BLOCK_TOKENS);
    assert_true(kv_prefix_stats(d.core->cache).hollow_count > POOL);
    rig_free(&d);
}

/* Two prompts share what is in their window, so neither gets back a block for each that it lets go of. */
static void prompts_that_share_a_window_in_a_full_pool_both_end(void **state)
{
    (void)state;
    for (uint32_t blocks = POOL; blocks < 3 * POOL; blocks++) {
        rig_open(&d, &(struct rig_options){.role = ROLE_DECODE,
                                           .window = WINDOW,
                                           .chunk_tokens = CHUNK,
                                           .blocks_count = blocks,
                                           .prefix_wait_ns = 1});
        struct job job[3];
        for (uint32_t i = 0; i < 3; i++) {
            job[i] = rig_job(i, &(struct rig_prompt){.seed = i,
                                                     .family = 1,
                                                     .shared_count = 100,
                                                     .count = PROMPT,
                                                     .tokens_max = 20});
            job[i].stop_ids_count = 0;
            job[i].key.attempt = 0;
            rig_prefill(&d, &job[i], ID128_NONE, 0);
            for (uint32_t steps = 0; steps < 8; steps++)
                rig_step(&d);
        }
        rig_run(&d);
        rig_advance(&d, NS_PER_MS);
        rig_run(&d);
        uint32_t ended = rig_said_count(&d, MSG_FINISHED), failed = rig_said_count(&d, MSG_FAILED);
        assert_true(ended >= 1);
        assert_int_equal(ended + failed, 3);
        rig_free(&d);
        rig_forget(&d);
    }
}

int main(void)
{
    log_setup(LOG_OFF, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_longer_than_both_pools_goes_through_them),
        cmocka_unit_test(decode_computes_such_a_prompt_itself_too),
        cmocka_unit_test(a_pool_below_the_window_is_said),
        cmocka_unit_test(a_request_keeps_its_first_tokens_and_its_last_ones),
        cmocka_unit_test(a_request_may_not_narrow_a_models_own_window),
        cmocka_unit_test(what_is_cached_of_a_window_need_not_travel_again),
        cmocka_unit_test(a_later_turn_finds_all_of_the_one_before),
        cmocka_unit_test(prompts_that_share_a_window_in_a_full_pool_both_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
