/* Samples of one request on one decode node: their prompt's KV comes once, its whole blocks are held by all
 * of them, the last one is copied. */
#include "tests/unit/testing.h"

#include "common/clock.h"
#include "common/log.h"
#include "tests/unit/node_rig.h"

static struct rig p, d;

static struct job choice_of(struct job job, uint32_t choice)
{
    job.key.choice = choice;
    return job;
}

static void reserve_fork(struct rig *r, struct job job, uint32_t choice, uint32_t sibling)
{
    job.key.choice = choice;
    rig_say(r, (struct msg){.kind = MSG_RESERVE, .reserve = {job, true, true, sibling}});
}

/* The first choice's KV on its way from `p`, or computed on `d`. */
static void begin_first(const struct job *job, bool local)
{
    rig_reserve(&d, job, local);
    const struct msg *m = rig_said(&d, MSG_RESERVED);
    assert_non_null(m);
    if (!local) rig_prefill(&p, job, m->reserved.ticket, m->reserved.held_tokens);
}

static void assert_stream(const struct job *job, uint32_t choice)
{
    uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    enum finish finish;
    struct job mine = choice_of(*job, choice);
    uint32_t n = rig_expect(&mine, d.config.context_max, want, &finish);
    assert_int_equal(rig_stream(&d, mine.key, got), n);
    assert_memory_equal(got, want, n * sizeof *got);
}

static void open_both(const struct rig_options *decode_node)
{
    rig_open_pair(&p, &d, &(struct rig_options){.role = ROLE_PREFILL}, decode_node);
}

static void forks_share_whole_blocks_and_copy_the_last(void **state)
{
    (void)state;
    static const uint32_t counts[] = {1, 2, 15, 16, 17, 18, 32, 33, 40};
    for (uint32_t i = 0; i < 8 * sizeof counts / sizeof *counts; i++) {
        uint32_t count = counts[i / 8], whole = (count - 1) / BLOCK_TOKENS;
        bool local = i & 1;
        open_both(&(struct rig_options){
            .role = ROLE_DECODE, .no_prefix_cache = i & 2, .steps_in_flight = i & 4 ? 2 : 1});
        struct job job = rig_job(i, &(struct rig_prompt){i, 0, 0, count, 40});
        begin_first(&job, local);
        for (uint32_t choice = 1; choice < 4; choice++)
            reserve_fork(&d, job, choice, 0);
        assert_int_equal(rig_said_count(&d, MSG_RESERVED), 4);
        rig_run(&p);
        for (uint32_t choice = 0; choice < 4; choice++)
            assert_stream(&job, choice);
        struct node_counts n = rig_counts(&d);
        assert_int_equal(n.forks, 3);
        assert_int_equal(n.fork_shared_blocks, 3 * whole);
        assert_int_equal(n.fork_copied_blocks, (count - 1) % BLOCK_TOKENS ? 3 : 0);
        assert_int_equal(n.prompt_tokens, (local ? count : 0) + 3);
        rig_free_pair(&p, &d);
    }
}

static void forks_begin_although_their_sibling_ends_at_once(void **state)
{
    (void)state;
    open_both(&(struct rig_options){.role = ROLE_DECODE, .no_prefix_cache = true});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 40, 1});
    begin_first(&job, false);
    reserve_fork(&d, job, 1, 0);
    rig_run(&p);
    assert_int_equal(rig_counts(&d).forks, 1);
    assert_stream(&job, 0);
    assert_stream(&job, 1);
    rig_free_pair(&p, &d);
}

static void a_fork_whose_sibling_will_not_come_goes_back(void **state)
{
    (void)state;
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 40, 20});
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .reserve_timeout_ns = NS_PER_S});
    reserve_fork(&d, job, 1, 0);
    rig_assert_failed(&d, ERR_AGAIN, true);
    rig_forget(&d);
    rig_reserve(&d, &job, false);
    reserve_fork(&d, job, 2, 0);
    assert_null(rig_said(&d, MSG_FAILED));
    rig_advance(&d, 2 * NS_PER_S);
    assert_null(rig_said(&d, MSG_FAILED)); /* it waits as long as its sibling does */
    rig_cancel(&d, job.key);
    rig_run(&d);
    rig_assert_failed(&d, ERR_AGAIN, true);
    assert_int_equal(rig_said(&d, MSG_FAILED)->failed.key.choice, 2);
    assert_int_equal(rig_counts(&d).jobs_live, 0);
    rig_free(&d);
}

static void a_fork_of_another_prompt_or_tenant_is_none(void **state)
{
    (void)state;
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 40, 20});
    struct job other = rig_job(2, &(struct rig_prompt){2, 0, 0, 40, 20});
    struct job salted = job;
    other.key.request = job.key.request;
    salted.tenant_salt = 5;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    rig_reserve(&d, &job, true);
    rig_step(&d);
    rig_step(&d);
    assert_int_equal(rig_counts(&d).running, 1);
    reserve_fork(&d, other, 1, 0);
    rig_assert_failed(&d, ERR_AGAIN, true);
    rig_forget(&d);
    reserve_fork(&d, salted, 2, 0);
    rig_assert_failed(&d, ERR_AGAIN, true);
    rig_forget(&d);
    reserve_fork(&d, job, 0, 0); /* its own sibling: the running one is told again */
    assert_null(rig_said(&d, MSG_FAILED));
    rig_run(&d);
    assert_int_equal(rig_counts(&d).forks, 0);
    rig_free(&d);
}

/* The block that is copied belongs to the fork until a step has copied it. */
static void the_sibling_may_end_between_fork_and_copy(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 20});
    struct job busy = rig_job(1, &(struct rig_prompt){1, 0, 0, 10, 60});
    struct job job = rig_job(2, &(struct rig_prompt){2, 0, 0, 40, 20});
    struct job taker = rig_job(3, &(struct rig_prompt){3, 0, 0, 170, 20});
    rig_reserve(&d, &job, true);
    while (rig_counts(&d).running == 0)
        rig_step(&d);
    rig_reserve(&d, &busy, true);
    assert_true(d.steps_count > 0); /* no step can be made now */
    reserve_fork(&d, job, 1, 0);
    assert_int_equal(rig_counts(&d).forks, 1);
    rig_cancel(&d, job.key);
    rig_reserve(&d, &taker, true);
    rig_run(&d);
    assert_stream(&job, 1);
    assert_stream(&busy, 0);
    rig_free(&d);
}

static void a_fork_can_be_cancelled_at_any_time(void **state)
{
    (void)state;
    for (uint32_t steps = 0; steps < 6; steps++) {
        rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .no_prefix_cache = true});
        struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 40, 20});
        struct job fork = choice_of(job, 1);
        rig_reserve(&d, &job, true);
        reserve_fork(&d, job, 1, 0);
        for (uint32_t i = 0; i < steps; i++)
            rig_step(&d);
        rig_cancel(&d, fork.key);
        rig_run(&d);
        assert_stream(&job, 0);
        rig_free(&d);
    }
}

static void forks_wait_for_room_and_waste_stays_a_block_each(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 8});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 70, 40});
    job.stop_ids_count = 0;
    rig_reserve(&d, &job, true);
    for (uint32_t choice = 1; choice < 5; choice++)
        reserve_fork(&d, job, choice, 0);
    while (d.steps_count > 0) {
        struct node_counts n = rig_counts(&d);
        assert_true(n.wasted_slots <= (uint64_t)n.jobs_live * 2 * BLOCK_TOKENS);
        assert_true(n.contiguous_slots >= n.held_tokens);
        rig_step(&d);
        node_core_audit(d.core);
    }
    for (uint32_t choice = 0; choice < 5; choice++)
        assert_stream(&job, choice);
    assert_true(rig_counts(&d).forks > 0);
    assert_int_equal(rig_counts(&d).held_tokens, 0);
    assert_true(rig_counts(&d).contiguous_slots_peak > rig_counts(&d).held_tokens_peak);
    rig_free(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forks_share_whole_blocks_and_copy_the_last),
        cmocka_unit_test(forks_begin_although_their_sibling_ends_at_once),
        cmocka_unit_test(a_fork_whose_sibling_will_not_come_goes_back),
        cmocka_unit_test(a_fork_of_another_prompt_or_tenant_is_none),
        cmocka_unit_test(the_sibling_may_end_between_fork_and_copy),
        cmocka_unit_test(a_fork_can_be_cancelled_at_any_time),
        cmocka_unit_test(forks_wait_for_room_and_waste_stays_a_block_each),
    };
    log_setup(LOG_OFF, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
