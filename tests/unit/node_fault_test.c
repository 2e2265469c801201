#include "tests/unit/testing.h"

#include <math.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "tests/unit/node_rig.h"

/* Most tests have one node; `p` pushes to `d` where there are two. */
static struct rig p, d;

static void an_unacknowledged_end_is_told_again_and_given_up(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 20, 1});
    rig_prefill(&p, &job, ID128_NONE, 0);
    rig_run(&p);
    for (uint32_t s = 0; s < 70; s++) { /* the router lives, and says so */
        rig_advance(&p, NS_PER_S);
        rig_say(&p, (struct msg){.kind = MSG_HEARTBEAT});
    }
    assert_in_range(rig_said_count(&p, MSG_FINISHED), 50, 61);
    assert_int_equal(rig_counts(&p).jobs_live, 0);
    rig_free(&p);
}

static void a_commit_with_a_foreign_token_fails_the_attempt(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    rig_reserve(&d, &job, false);
    rig_link(&d);
    rig_end_ticket(&d, &(struct xfer_event){.kind = XFER_COMMITTED, .first = {.token = RIG_VOCAB}});
    rig_run(&d);
    rig_assert_failed(&d, ERR_FORMAT, true);
    rig_free(&d);
}

static void a_full_pool_refuses_and_an_impossible_request_is_told_why(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 8});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 64, 20});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 64, 20});
    struct job c = rig_job(3, &(struct rig_prompt){3, 0, 0, 64, 300});
    rig_reserve(&d, &a, false);
    assert_non_null(rig_said(&d, MSG_RESERVED));
    assert_int_equal(rig_counts(&d).blocks.reserved, 5);
    rig_reserve(&d, &b, false);
    rig_assert_failed(&d, ERR_FULL, true);
    assert_int_equal(rig_counts(&d).blocks.reserved, 5);
    rig_reserve(&d, &c, false);
    rig_assert_failed(&d, ERR_INVALID, false);
    assert_non_null(strstr(rig_said(&d, MSG_FAILED)->failed.reason, "23 KV blocks"));
    assert_non_null(strstr(rig_said(&d, MSG_FAILED)->failed.reason, "has 8"));
    rig_cancel(&d, a.key);
    rig_run(&d);
    rig_reserve(&d, &b, false); /* refused is not ended: the same key may come again */
    assert_true(job_key_equal(rig_said(&d, MSG_RESERVED)->reserved.key, b.key));
    rig_free(&d);
}

static void wrong_jobs_are_refused_by_name(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .context_max = 100});
    uint32_t foreign[] = {1, RIG_VOCAB};
    struct job good = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct {
        struct job job;
        const char *word;
    } cases[6];
    for (uint32_t i = 0; i < 6; i++)
        cases[i].job = good;
    cases[0].job.prompt_count = 0, cases[0].word = "empty";
    cases[1].job.prompt_count = 101, cases[1].word = "context";
    cases[2].job.prompt = foreign, cases[2].job.prompt_count = 2, cases[2].word = "vocabulary";
    cases[3].job.tokens_max = 0, cases[3].word = "max_tokens";
    cases[4].job.sampling.top_p = NAN, cases[4].word = "top_p";
    cases[5].job.key.choice = JOB_CHOICES_MAX, cases[5].word = "choice";
    for (uint32_t i = 0; i < 6; i++) {
        rig_forget(&d);
        rig_reserve(&d, &cases[i].job, i % 2);
        rig_assert_failed(&d, ERR_INVALID, false);
        assert_non_null(strstr(rig_said(&d, MSG_FAILED)->failed.reason, cases[i].word));
    }
    static const char *const none[] = {""};
    struct msg m = rig_prefill_msg(&good, (struct id128){7, 7}, 8); /* not a multiple of 16 */
    rig_say(&d, m);
    rig_assert_failed(&d, ERR_INVALID, false);
    m.prefill.held_tokens = 64; /* more than there is */
    rig_forget(&d);
    rig_say(&d, m);
    rig_assert_failed(&d, ERR_INVALID, false);
    m.prefill.held_tokens = 0;
    m.prefill.addresses = none;
    m.prefill.addresses_count = 0;
    rig_forget(&d);
    rig_say(&d, m);
    rig_assert_failed(&d, ERR_INVALID, false);
    assert_int_equal(rig_counts(&d).jobs_live, 0);
    rig_free(&d);
}

static void a_repeated_reserve_gets_the_same_answer(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    rig_reserve(&d, &job, false);
    struct id128 ticket = rig_said(&d, MSG_RESERVED)->reserved.ticket;
    rig_forget(&d);
    rig_reserve(&d, &job, false);
    assert_true(id128_equal(rig_said(&d, MSG_RESERVED)->reserved.ticket, ticket));
    assert_int_equal(rig_counts(&d).jobs_live, 1);
    rig_free(&d);
}

static void a_later_attempt_ends_an_older_one_and_not_the_reverse(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30}), older = job;
    older.key.attempt = 4;
    rig_reserve(&d, &older, false);
    job.key.attempt = 5;
    rig_reserve(&d, &job, false);
    rig_assert_failed(&d, ERR_STALE, false);
    assert_true(job_key_equal(rig_said(&d, MSG_FAILED)->failed.key, older.key));
    assert_true(job_key_equal(rig_said(&d, MSG_RESERVED)->reserved.key, job.key));
    rig_forget(&d);
    rig_reserve(&d, &older, false);
    rig_assert_failed(&d, ERR_STALE, false);
    assert_null(rig_said(&d, MSG_RESERVED));
    assert_int_equal(rig_counts(&d).jobs_live, 1);
    rig_free(&d);
}

static void a_cancelled_request_cannot_begin_late(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job_key all = {job.key.request, CHOICE_ALL, 3};
    rig_cancel(&d, all);
    for (uint32_t attempt = 0; attempt < 5; attempt++) {
        rig_forget(&d);
        job.key.attempt = attempt;
        job.key.choice = attempt;
        rig_reserve(&d, &job, attempt % 2);
        if (attempt <= 3)
            rig_assert_failed(&d, ERR_STALE, false);
        else
            assert_int_equal(rig_counts(&d).jobs_live, 1);
    }
    rig_cancel(&d, (struct job_key){job.key.request, 4, 4});
    rig_run(&d);
    rig_forget(&d);
    rig_reserve(&d, &job, false);
    rig_assert_failed(&d, ERR_STALE, false);
    rig_free(&d);
}

/* How far the two nodes come before the cancel: so many moves of steps and links. */
static void a_cancel_at_any_moment_frees_everything(void **state)
{
    (void)state;
    for (uint32_t moves = 0; moves < 60; moves++) {
        rig_open_pair(&p, &d, &(struct rig_options){.role = ROLE_PREFILL, .chunk_tokens = 16},
                      &(struct rig_options){.role = ROLE_DECODE});
        struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
        rig_reserve(&d, &job, false);
        const struct msg *m = rig_said(&d, MSG_RESERVED);
        rig_prefill(&p, &job, m->reserved.ticket, 0);
        for (uint32_t i = 0; i < moves; i++)
            if (!rig_link(&p) && !rig_link(&d) && !rig_step_layers(&p, i % 2) && !rig_step(&p) &&
                !rig_event(&p) && !rig_event(&d))
                rig_step(&d);
        rig_cancel(&p, job.key);
        rig_cancel(&d, job.key);
        assert_int_equal(rig_counts(&p).jobs_live + rig_counts(&d).jobs_live, 0);
        rig_run(&p);
        struct node_counts n = rig_counts(&d);
        assert_int_equal(n.blocks.free + n.blocks.cached, n.blocks.total);
        n = rig_counts(&p);
        assert_int_equal(n.blocks.free + n.blocks.cached, n.blocks.total);
        rig_free_pair(&p, &d);
    }
}

static void a_cancelled_step_hurts_nobody_else(void **state)
{
    (void)state;
    uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    enum finish finish;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .chunk_tokens = 200});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    rig_reserve(&d, &a, true); /* its step begins at once, alone */
    rig_reserve(&d, &b, true);
    rig_step(&d); /* from here on both share one */
    rig_cancel(&d, a.key);
    assert_false(atomic_load(&d.step[0]->cancel));
    rig_run(&d);
    uint32_t n = rig_expect(&b, 400, want, &finish);
    assert_int_equal(rig_stream(&d, b.key, got), n);
    assert_memory_equal(got, want, n * sizeof *got);
    rig_reserve(&d, &(struct job){0}, true);
    struct job c = rig_job(3, &(struct rig_prompt){3, 0, 0, 50, 30});
    rig_reserve(&d, &c, true);
    rig_cancel(&d, c.key);
    assert_true(atomic_load(&d.step[0]->cancel));
    assert_true(rig_counts(&d).blocks.active > 0); /* the step names them until it has ended */
    rig_free(&d);
}

static void a_lost_router_takes_its_jobs_with_it(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .routers_count = 2});
    rig_join(&d, 1);
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    rig_reserve(&d, &a, false);
    rig_tell(&d, 1, &(struct msg){.kind = MSG_RESERVE, .reserve = {b, true}});
    rig_lose(&d, 0);
    assert_int_equal(rig_counts(&d).jobs_live, 1);
    rig_run(&d);
    assert_non_null(rig_said(&d, MSG_FINISHED)); /* the other router's goes on */
    rig_forget(&d);
    rig_advance(&d, NS_PER_S);
    assert_non_null(rig_said(&d, MSG_HELLO)); /* and the lost one is greeted again */
    rig_free(&d);
}

static void a_silent_router_takes_its_jobs_with_it(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    rig_reserve(&d, &a, false);
    rig_advance(&d, 4 * NS_PER_S);
    assert_int_equal(rig_counts(&d).jobs_live, 0);
    rig_free(&d);
}

static void live_router(struct rig *r, uint32_t seconds)
{
    for (uint32_t s = 0; s < seconds; s++) {
        rig_advance(r, NS_PER_S);
        rig_say(r, (struct msg){.kind = MSG_HEARTBEAT});
        while (rig_event(r))
            continue;
    }
}

static void a_reservation_whose_kv_does_not_come_fails_in_time(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .reserve_timeout_ns = 5 * NS_PER_S});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    rig_reserve(&d, &a, false);
    live_router(&d, 4);
    assert_null(rig_said(&d, MSG_FAILED));
    live_router(&d, 2);
    rig_assert_failed(&d, ERR_TIMEOUT, true);
    rig_free(&d);
}

static void a_reservation_lasts_as_long_as_its_transfer(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .reserve_timeout_ns = 5 * NS_PER_S});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    rig_reserve(&d, &a, false);
    d.ticket[0].deadline_ns += 10 * NS_PER_S; /* KV comes all that time */
    live_router(&d, 14);
    assert_null(rig_said(&d, MSG_FAILED));
    live_router(&d, 2);
    rig_assert_failed(&d, ERR_TIMEOUT, true);
    rig_free(&d);
}

static void a_request_past_its_deadline_ends(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 6});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 90, 1});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 90, 1});
    rig_prefill(&p, &a, ID128_NONE, 0);
    struct msg m = rig_prefill_msg(&b, ID128_NONE, 0); /* waits: all blocks are a's */
    m.envelope.remaining_ms = 1500;
    rig_say(&p, m);
    assert_int_equal(rig_counts(&p).waiting, 2);
    live_router(&p, 1);
    assert_null(rig_said(&p, MSG_FAILED));
    live_router(&p, 1);
    rig_assert_failed(&p, ERR_TIMEOUT, false);
    rig_free(&p);
}

static void live_sets_that_differ_for_long_are_compared(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    rig_reserve(&d, &a, false);
    rig_reserve(&d, &b, false);
    struct msg beat = {
        .kind = MSG_HEARTBEAT,
        .heartbeat = {.live_count = 2, .live_hash = job_key_hash(a.key) + job_key_hash(b.key)}};
    for (uint32_t i = 0; i < 5; i++)
        rig_say(&d, beat);
    assert_null(rig_said(&d, MSG_LIVE));
    beat.heartbeat.live_hash++;
    rig_say(&d, beat);
    rig_say(&d, beat);
    assert_null(rig_said(&d, MSG_LIVE));
    rig_say(&d, beat);
    assert_int_equal(rig_said(&d, MSG_LIVE)->live.keys_count, 2);
    assert_true(rig_said(&d, MSG_LIVE)->live.answer);
    struct job_key keys[] = {b.key, {{9, 9}, 0, 0}};
    rig_forget(&d);
    rig_say(&d, (struct msg){.kind = MSG_LIVE, .live = {true, keys, 2}});
    assert_int_equal(rig_counts(&d).jobs_live, 1); /* a is unknown to the router: over */
    rig_assert_failed(&d, ERR_NOT_FOUND, true);    /* the other one is unknown here */
    assert_true(job_key_equal(rig_said(&d, MSG_FAILED)->failed.key, keys[1]));
    assert_int_equal(rig_said(&d, MSG_LIVE)->live.keys_count, 1);
    assert_false(rig_said(&d, MSG_LIVE)->live.answer);
    rig_free(&d);
}

static void a_draining_node_finishes_what_it_has_and_leaves(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    rig_reserve(&d, &a, true);
    rig_say(&d, (struct msg){.kind = MSG_DRAIN});
    assert_true(rig_said(&d, MSG_HEARTBEAT)->heartbeat.draining);
    rig_reserve(&d, &b, true);
    rig_assert_failed(&d, ERR_FULL, true);
    assert_string_equal(rig_said(&d, MSG_FAILED)->failed.reason, "draining");
    rig_run(&d);
    assert_non_null(rig_said(&d, MSG_FINISHED));
    assert_false(d.left);
    rig_acknowledge(&d, a.key);
    assert_true(d.left);
    assert_non_null(rig_said(&d, MSG_DRAINED));
    rig_free(&d);

    rig_new(&d, &(struct rig_options){.role = ROLE_DECODE}); /* nothing to finish, nobody to tell */
    node_core_drain(d.core, d.now_ns);
    assert_true(d.left);
    rig_free(&d);
}

static void a_sick_device_fails_everything_and_the_node_leaves(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    rig_reserve(&d, &a, true);
    rig_reserve(&d, &b, false);
    rig_step_done(&d, ERR_DEVICE);
    assert_int_equal(rig_said_count(&d, MSG_FAILED), 2);
    rig_assert_failed(&d, ERR_DEVICE, true);
    rig_run(&d);
    assert_true(d.left);
    rig_free(&d);
}

static void a_process_that_slept_too_long_begins_a_new_life(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    rig_reserve(&d, &a, true);
    rig_forget(&d);
    d.now_ns += 10 * NS_PER_S;
    node_core_reborn(d.core, d.now_ns, 77);
    assert_int_equal(rig_counts(&d).jobs_live, 0);
    assert_null(rig_said(&d, MSG_HEARTBEAT));
    assert_int_equal(rig_said(&d, MSG_HELLO)->envelope.from, 77);
    rig_reserve(&d, &a, true); /* in the old session: for nobody */
    assert_int_equal(rig_counts(&d).jobs_live, 0);
    rig_free(&d);
}

static void a_transfer_that_fails_fails_the_job_on_both_sides(void **state)
{
    (void)state;
    rig_open_pair(&p, &d, &(struct rig_options){.role = ROLE_PREFILL},
                  &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    rig_reserve(&d, &job, false);
    rig_prefill(&p, &job, rig_said(&d, MSG_RESERVED)->reserved.ticket, 0);
    rig_link(&d);
    rig_link(&p);
    for (struct rig *r = &p; r; r = r == &p ? &d : NULL) {
        rig_end_ticket(r, &(struct xfer_event){.kind = XFER_FAILED,
                                               .error = ERR_PEER,
                                               .text = "the other side is gone"});
        rig_event(r);
        rig_assert_failed(r, ERR_PEER, true);
        assert_string_equal(rig_said(r, MSG_FAILED)->failed.reason, "the other side is gone");
    }
    rig_free_pair(&p, &d);
}

static void a_job_that_has_ended_does_not_begin_again(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    rig_reserve(&d, &job, true);
    rig_run(&d);
    struct job_key other = job.key;
    other.attempt++;
    rig_acknowledge(&d, other); /* of an attempt that is not here */
    assert_int_equal(rig_counts(&d).jobs_live, 1);
    rig_acknowledge(&d, job.key);
    assert_int_equal(rig_counts(&d).jobs_live, 0);
    rig_reserve(&d, &job, true);
    rig_assert_failed(&d, ERR_STALE, false);
    rig_free(&d);
}

static void a_transfer_that_ends_out_of_turn_fails_the_job(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    rig_prefill(&p, &job, (struct id128){3, 3}, 0);
    rig_link(&p);
    rig_end_ticket(&p, &(struct xfer_event){.kind = XFER_DONE});
    rig_event(&p);
    rig_assert_failed(&p, ERR_STATE, true);
    rig_free(&p);
}

static void a_draining_node_waits_for_steps_and_links(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    rig_reserve(&d, &a, true);
    rig_reserve(&d, &b, false);
    rig_cancel(&d, a.key);
    rig_cancel(&d, b.key);
    node_core_drain(d.core, d.now_ns);
    assert_false(d.left);
    rig_step(&d);
    assert_false(d.left);
    rig_link(&d);
    rig_event(&d);
    assert_true(d.left);
    rig_free(&d);
}

static void a_busy_ticket_is_refused(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 30});
    rig_prefill(&p, &a, (struct id128){3, 3}, 0);
    rig_prefill(&p, &b, (struct id128){3, 3}, 0);
    rig_assert_failed(&p, ERR_INVALID, false);
    rig_free(&p);
}

static void every_failing_allocation_is_an_error_and_leaks_nothing(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct node_out out = {0};
    struct node_core *core;
    enum err e = ERR_MEMORY;
    uint32_t n = 1;
    for (; e != OK; n++) {
        mem_fail_at(n);
        e = node_core_new(&core, &d.config, &out);
        assert_true(e == OK || (e == ERR_MEMORY && !core));
    }
    mem_fail_at(0);
    assert_true(n > 20);
    node_core_free(core);
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    mem_fail_at(1); /* a job's own memory: refused, and elsewhere it may run */
    rig_reserve(&d, &job, true);
    mem_fail_at(0);
    assert_int_equal(rig_counts(&d).jobs_live, 0);
    rig_free(&d);
}

static void a_node_without_room_for_prompts_does_not_start(void **state)
{
    (void)state;
    struct node_out out = {0};
    struct node_core *core;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct node_config wrong = d.config;
    wrong.limits.sequences_max = wrong.sequences_max;
    assert_int_equal(node_core_new(&core, &wrong, &out), ERR_INVALID);
    wrong = d.config;
    wrong.limits.table_max = 3;
    assert_int_equal(node_core_new(&core, &wrong, &out), ERR_INVALID);
    wrong = d.config;
    wrong.routers_count = 0;
    assert_int_equal(node_core_new(&core, &wrong, &out), ERR_INVALID);
    rig_free(&d);
}

int main(void)
{
    log_setup(LOG_OFF, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_unacknowledged_end_is_told_again_and_given_up),
        cmocka_unit_test(a_commit_with_a_foreign_token_fails_the_attempt),
        cmocka_unit_test(a_full_pool_refuses_and_an_impossible_request_is_told_why),
        cmocka_unit_test(wrong_jobs_are_refused_by_name),
        cmocka_unit_test(a_repeated_reserve_gets_the_same_answer),
        cmocka_unit_test(a_later_attempt_ends_an_older_one_and_not_the_reverse),
        cmocka_unit_test(a_cancelled_request_cannot_begin_late),
        cmocka_unit_test(a_cancel_at_any_moment_frees_everything),
        cmocka_unit_test(a_cancelled_step_hurts_nobody_else),
        cmocka_unit_test(a_lost_router_takes_its_jobs_with_it),
        cmocka_unit_test(a_silent_router_takes_its_jobs_with_it),
        cmocka_unit_test(a_reservation_whose_kv_does_not_come_fails_in_time),
        cmocka_unit_test(a_reservation_lasts_as_long_as_its_transfer),
        cmocka_unit_test(a_request_past_its_deadline_ends),
        cmocka_unit_test(live_sets_that_differ_for_long_are_compared),
        cmocka_unit_test(a_draining_node_finishes_what_it_has_and_leaves),
        cmocka_unit_test(a_sick_device_fails_everything_and_the_node_leaves),
        cmocka_unit_test(a_process_that_slept_too_long_begins_a_new_life),
        cmocka_unit_test(a_transfer_that_fails_fails_the_job_on_both_sides),
        cmocka_unit_test(a_job_that_has_ended_does_not_begin_again),
        cmocka_unit_test(a_transfer_that_ends_out_of_turn_fails_the_job),
        cmocka_unit_test(a_draining_node_waits_for_steps_and_links),
        cmocka_unit_test(a_busy_ticket_is_refused),
        cmocka_unit_test(every_failing_allocation_is_an_error_and_leaks_nothing),
        cmocka_unit_test(a_node_without_room_for_prompts_does_not_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
