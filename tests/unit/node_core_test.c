#include "tests/unit/testing.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "tests/unit/node_rig.h"

/* Most tests have one node; `p` pushes to `d` where there are two. */
static struct rig p, d;

/* Every layer of every chunk, or the last of them, in the order computed and sent. */
static void assert_pushes(const struct msg_prefilled *m, uint32_t layers_count)
{
    uint32_t n = m->push_layer_count;
    assert_true(n > 0 && (n == XFER_PUSHES_TOLD || n % layers_count == 0));
    for (uint32_t i = 0; i < n; i++) {
        uint32_t before = i > 0 ? i - 1 : i;
        assert_int_equal(m->push_layer[i], (m->push_layer[0] + i) % layers_count);
        assert_true(m->push_computed_us[i] >= m->push_computed_us[before]);
        assert_int_equal(m->push_sent_us[i] - m->push_sent_us[0], i);
    }
}

/* Both of them through to the last token; the stream, the end and the early first token are right. */
static void serve(const struct job *job)
{
    uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    enum finish finish;
    rig_reserve(&d, job, false);
    const struct msg *m = rig_said(&d, MSG_RESERVED);
    assert_non_null(m);
    assert_true(job_key_equal(m->reserved.key, job->key));
    rig_prefill(&p, job, m->reserved.ticket, m->reserved.held_tokens);
    rig_run(&p);
    uint32_t n = rig_expect(job, d.config.context_max, want, &finish);
    assert_int_equal(rig_stream(&d, job->key, got), n);
    assert_memory_equal(got, want, n * sizeof *got);
    assert_int_equal(rig_said(&p, MSG_FIRST)->first.token.token, want[0]);
    assert_pushes(&rig_said(&p, MSG_PREFILLED)->prefilled, d.config.hello.geometry.layers_count);
    assert_true(job_key_equal(rig_said(&p, MSG_PREFILLED)->prefilled.key, job->key));
    const struct msg *end = rig_said(&d, MSG_FINISHED);
    assert_non_null(end);
    assert_true(job_key_equal(end->finished.key, job->key));
    assert_int_equal(end->finished.finish, finish);
    assert_int_equal(end->finished.tokens_count, n);
    rig_acknowledge(&d, job->key);
}

static void link_says(uint32_t number, enum xfer_link_state state)
{
    struct xfer_link_row row = {.state = state, .bytes = number, .rate = 9, .reason = "why"};
    snprintf(row.address, sizeof row.address, "tcp:10.0.0.1:%u", number);
    row.failed_ns = state == XFER_LINK_BROKEN ? d.now_ns : 0;
    node_core_on_link(d.core, &row);
}

/* LINK messages that come with so many heartbeats. */
static uint32_t links_told(uint32_t beats_count)
{
    rig_forget(&d);
    for (uint32_t i = 0; i < beats_count; i++) {
        rig_say(&d, (struct msg){.kind = MSG_HEARTBEAT});
        rig_advance(&d, d.config.session.heartbeat_ns);
    }
    return rig_said_count(&d, MSG_LINK);
}

static void routers_are_told_of_links_that_changed(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL});
    assert_int_equal(links_told(10), 0);
    for (uint32_t i = 0; i < 20; i++)
        link_says(i, XFER_LINK_READY);
    assert_int_equal(links_told(1), 8); /* a few at a time */
    assert_int_equal(links_told(10), 12);
    assert_int_equal(links_told(10), 0);
    link_says(7, XFER_LINK_BROKEN);
    assert_int_equal(links_told(2), 1);
    const struct msg_link *m = &rig_said(&d, MSG_LINK)->link;
    assert_string_equal(m->address, "tcp:10.0.0.1:7");
    assert_string_equal(m->state, "broken");
    assert_string_equal(m->reason, "why");
    assert_true(m->failed_ms > 0 && m->rate == 9 && m->bytes == 7);
    for (uint32_t i = 0; i < 1000; i++) /* more than are kept: the latest are */
        link_says(i, XFER_LINK_IDLE);
    assert_int_equal(links_told(100), 128);
    assert_int_equal(rig_said(&d, MSG_LINK)->link.bytes, 999);
    rig_lose(&d, 0);
    rig_advance(&d, NS_PER_S);           /* it greets again */
    rig_join(&d, 0);                     /* and is answered by another one, perhaps */
    assert_true(links_told(100) >= 120); /* the first few came with the welcome */
    rig_free(&d);
}

static void a_node_greets_joins_and_beats(void **state)
{
    (void)state;
    rig_new(&d, &(struct rig_options){.role = ROLE_DECODE, .routers_count = 2});
    assert_int_equal(rig_said_count(&d, MSG_HELLO), 2);
    assert_string_equal(rig_said(&d, MSG_HELLO)->hello.name, "n0");
    rig_join(&d, 0);
    assert_int_equal(d.lifelines_dialled, 1);
    rig_forget(&d);
    rig_advance(&d, NS_PER_S);
    assert_int_equal(rig_said_count(&d, MSG_HEARTBEAT), 5);
    assert_int_equal(rig_said(&d, MSG_HEARTBEAT)->heartbeat.load.blocks_free, 64);
    rig_free(&d);
    assert_int_equal(d.lifelines_dropped, 1);
}

static void a_request_goes_through_both_nodes(void **state)
{
    (void)state;
    static const struct {
        uint32_t count, chunk, depth;
    } cases[] = {{1, 32, 1},  {15, 32, 1},  {16, 32, 1}, {17, 7, 1},  {100, 1, 1},
                 {100, 7, 1}, {100, 16, 2}, {97, 64, 2}, {112, 33, 3}};
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rig_open_pair(
            &p, &d,
            &(struct rig_options){.role = ROLE_PREFILL,
                                  .chunk_tokens = cases[i].chunk,
                                  .steps_in_flight = cases[i].depth},
            &(struct rig_options){.role = ROLE_DECODE, .steps_in_flight = cases[i].depth});
        struct job job = rig_job(i, &(struct rig_prompt){i, 0, 0, cases[i].count, 40});
        serve(&job);
        rig_free_pair(&p, &d);
    }
}

static void only_the_part_that_decode_lacks_travels(void **state)
{
    (void)state;
    rig_open_pair(&p, &d, &(struct rig_options){.role = ROLE_PREFILL},
                  &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 9, 64, 70, 5});
    struct job b = rig_job(2, &(struct rig_prompt){2, 9, 64, 90, 5});
    serve(&a);
    assert_int_equal(rig_said(&d, MSG_RESERVED)->reserved.held_tokens, 0);
    rig_forget(&d);
    serve(&b);
    assert_int_equal(rig_said(&d, MSG_RESERVED)->reserved.held_tokens, 64);
    assert_int_equal(rig_said(&p, MSG_PREFILLED)->prefilled.cached_tokens, 64);
    rig_free_pair(&p, &d);
}

static void a_committed_prompt_is_found_while_it_runs(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job a = rig_job(1, &(struct rig_prompt){1, 9, 64, 70, 60});
    struct job b = rig_job(2, &(struct rig_prompt){2, 9, 64, 90, 5});
    struct job c = rig_job(3, &(struct rig_prompt){3, 9, 64, 90, 5});
    rig_reserve(&d, &a, false);
    rig_reserve(&d, &b, false); /* a's blocks are there, their KV is not */
    assert_int_equal(rig_said(&d, MSG_RESERVED)->reserved.held_tokens, 0);
    rig_end_ticket(&d, &(struct xfer_event){.kind = XFER_COMMITTED, .first = {.logprob = NAN}});
    rig_event(&d);
    rig_reserve(&d, &c, false);
    assert_int_equal(rig_said(&d, MSG_RESERVED)->reserved.held_tokens, 64);
    rig_free(&d);
}

static void what_prefill_has_cached_is_pushed_too(void **state)
{
    (void)state;
    rig_open_pair(&p, &d, &(struct rig_options){.role = ROLE_PREFILL},
                  &(struct rig_options){.role = ROLE_DECODE, .no_prefix_cache = true});
    struct job a = rig_job(1, &(struct rig_prompt){1, 9, 64, 70, 5});
    struct job b = rig_job(2, &(struct rig_prompt){2, 9, 64, 90, 5});
    serve(&a);
    rig_forget(&d);
    uint64_t before = rig_counts(&p).prompt_tokens;
    serve(&b);
    assert_int_equal(rig_counts(&p).prompt_tokens - before, 90 - 64);
    rig_free_pair(&p, &d);
}

static void a_prefill_without_ticket_ends_with_its_first_token(void **state)
{
    (void)state;
    uint32_t want[RIG_STREAM_MAX];
    enum finish finish;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 1});
    rig_prefill(&p, &job, ID128_NONE, 0);
    rig_run(&p);
    rig_expect(&job, 400, want, &finish);
    assert_int_equal(rig_said(&p, MSG_FIRST)->first.token.token, want[0]);
    assert_int_equal(rig_said(&p, MSG_FIRST)->first.index, 0);
    assert_int_equal(rig_said(&p, MSG_FINISHED)->finished.finish, FINISH_LENGTH);
    assert_int_equal(rig_said(&p, MSG_FINISHED)->finished.tokens_count, 1);
    assert_null(rig_said(&p, MSG_PREFILLED));
    assert_int_equal(rig_counts(&p).jobs_live, 1);
    rig_acknowledge(&p, job.key);
    assert_int_equal(rig_counts(&p).jobs_live, 0);

    rig_forget(&p); /* no token at all: only the cache is warmed */
    job = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 0});
    rig_prefill(&p, &job, ID128_NONE, 0);
    rig_run(&p);
    assert_null(rig_said(&p, MSG_FIRST));
    assert_int_equal(rig_said(&p, MSG_FINISHED)->finished.tokens_count, 0);
    assert_int_equal(rig_counts(&p).blocks.cached, 6);
    rig_free(&p);
}

/* A node's time stands still within a turn of its loop, the device's does not. */
static void a_step_within_one_turn_took_the_time_that_the_device_says(void **state)
{
    (void)state;
    rig_open_pair(&p, &d, &(struct rig_options){.role = ROLE_PREFILL},
                  &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 9, 64, 70, 5});
    serve(&job);
    assert_int_equal(rig_said(&p, MSG_FIRST)->first.compute_us, NS_PER_MS / NS_PER_US);
    assert_int_equal(rig_said(&p, MSG_PREFILLED)->prefilled.compute_us, NS_PER_MS / NS_PER_US);
    assert_int_equal(rig_said(&p, MSG_PREFILLED)->prefilled.transfer_tail_us, 0);
    job = rig_job(2, &(struct rig_prompt){2, 0, 0, 50, 0});
    rig_prefill(&p, &job, ID128_NONE, 0);
    rig_run(&p);
    assert_int_equal(rig_said(&p, MSG_FINISHED)->finished.compute_us, NS_PER_MS / NS_PER_US);
    rig_acknowledge(&p, job.key);
    rig_free_pair(&p, &d);
}

static void decode_prefills_a_local_job_itself(void **state)
{
    (void)state;
    uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    enum finish finish;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .chunk_tokens = 7});
    struct job job = rig_job(3, &(struct rig_prompt){3, 0, 0, 50, 30});
    rig_reserve(&d, &job, true);
    rig_run(&d);
    uint32_t n = rig_expect(&job, 400, want, &finish);
    assert_int_equal(rig_stream(&d, job.key, got), n);
    assert_memory_equal(got, want, n * sizeof *got);
    assert_true(id128_is_none(rig_said(&d, MSG_RESERVED)->reserved.ticket));
    assert_int_equal(rig_said(&d, MSG_FINISHED)->finished.finish, finish);
    rig_free(&d);
}

static void a_later_attempt_goes_on_at_the_next_index(void **state)
{
    (void)state;
    uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
    enum finish finish;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(4, &(struct rig_prompt){4, 0, 0, 50, 30});
    uint32_t n = rig_expect(&job, 400, want, &finish);
    assert_true(n > 5);
    job.key.attempt = 1;
    job.forwarded = want;
    job.forwarded_count = 5;
    rig_reserve(&d, &job, true);
    rig_run(&d);
    memcpy(got, want, 5 * sizeof *got);
    const struct msg *m = rig_said(&d, MSG_FINISHED);
    assert_int_equal(m->finished.tokens_count, n);
    for (uint32_t i = 0; i < d.said_count; i++)
        if (d.said[i].m.kind == MSG_TOKENS) {
            assert_int_equal(d.said[i].m.tokens.runs[0].index, 5);
            break;
        }
    memset(got, 0, sizeof got);
    rig_say(&d, (struct msg){.kind = MSG_RESEND, .resend = {job.key, 7}});
    m = rig_said(&d, MSG_TOKENS);
    assert_int_equal(m->tokens.runs[0].index, 7);
    assert_int_equal(m->tokens.runs[0].tokens_count, n - 7);
    for (uint32_t i = 7; i < n; i++)
        assert_int_equal(m->tokens.runs[0].tokens[i - 7].token, want[i]);
    rig_free(&d);
}

static void a_commit_with_a_finish_reason_never_runs(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    rig_reserve(&d, &job, false);
    rig_link(&d);
    rig_end_ticket(&d, &(struct xfer_event){.kind = XFER_COMMITTED,
                                            .first = {.token = RIG_STOP, .logprob = NAN},
                                            .finish = FINISH_STOP});
    rig_run(&d);
    assert_int_equal(d.steps_done, 0);
    assert_int_equal(rig_said(&d, MSG_TOKENS)->tokens.runs[0].tokens[0].token, RIG_STOP);
    assert_int_equal(rig_said(&d, MSG_FINISHED)->finished.finish, FINISH_STOP);
    rig_free(&d);
}

static void a_prompt_starts_only_with_all_its_blocks(void **state)
{
    (void)state;
    rig_open(&p,
             &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 8, .chunk_tokens = 200});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, 80, 1});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 80, 1});
    struct job c = rig_job(3, &(struct rig_prompt){3, 0, 0, 16, 1});
    rig_prefill(&p, &a, ID128_NONE, 0);
    rig_prefill(&p, &b, ID128_NONE, 0);
    rig_prefill(&p, &c, ID128_NONE, 0); /* would fit, and does not overtake b */
    assert_int_equal(rig_counts(&p).blocks.active, 5);
    rig_step(&p);
    assert_int_equal(p.step[0]->sequences_count, 2); /* then b, by eviction, and c with it */
    rig_run(&p);
    assert_int_equal(rig_said_count(&p, MSG_FINISHED), 3);
    rig_free(&p);
}

static void prompts_share_a_step_in_order_of_priority_and_age(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL, .chunk_tokens = 50});
    struct job first = rig_job(1, &(struct rig_prompt){1, 0, 0, 20, 1});
    struct job b = rig_job(2, &(struct rig_prompt){2, 0, 0, 30, 1});
    struct job c = rig_job(3, &(struct rig_prompt){3, 0, 0, 30, 1});
    struct job urgent = rig_job(4, &(struct rig_prompt){4, 0, 0, 30, 1});
    urgent.priority = -1;
    rig_prefill(&p, &first, ID128_NONE, 0);
    rig_prefill(&p, &b, ID128_NONE, 0);
    rig_prefill(&p, &c, ID128_NONE, 0);
    rig_prefill(&p, &urgent, ID128_NONE, 0);
    rig_step(&p);
    struct step *step = p.step[0];
    assert_int_equal(step->sequences_count, 2);
    assert_int_equal(step->sequence[0].rows_count, 30);
    assert_memory_equal(&step->tokens[0], urgent.prompt, 30 * sizeof(uint32_t));
    assert_int_equal(step->sequence[1].rows_count, 20);
    assert_memory_equal(&step->tokens[30], b.prompt, 20 * sizeof(uint32_t));
    rig_free(&p);
}

static void a_prefix_being_computed_is_waited_for(void **state)
{
    (void)state;
    rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL, .chunk_tokens = 300});
    struct job a = rig_job(1, &(struct rig_prompt){1, 5, 96, 100, 1});
    struct job b = rig_job(2, &(struct rig_prompt){2, 5, 96, 120, 1});
    rig_prefill(&p, &a, ID128_NONE, 0);
    rig_prefill(&p, &b, ID128_NONE, 0);
    rig_run(&p);
    assert_int_equal(rig_counts(&p).prompt_tokens, 100 + 120 - 96);
    rig_free(&p);
}

static void waiting_for_a_prefix_is_bounded(void **state)
{
    (void)state;
    for (uint32_t late = 0; late < 2; late++) {
        rig_open(&p, &(struct rig_options){.role = ROLE_PREFILL,
                                           .chunk_tokens = 100,
                                           .prefix_wait_ns = NS_PER_S / 2});
        struct job a = rig_job(1, &(struct rig_prompt){1, 5, 160, 180, 1});
        struct job b = rig_job(2, &(struct rig_prompt){2, 5, 160, 170, 1});
        rig_prefill(&p, &a, ID128_NONE, 0);
        rig_prefill(&p, &b, ID128_NONE, 0);
        if (late) rig_advance(&p, NS_PER_S);
        rig_step(&p); /* 80 tokens of a are left: a step has room for b, which would rather wait */
        assert_int_equal(p.step[0]->sequences_count, 1 + late);
        rig_free(&p);
    }
}

static void a_short_pool_preempts_who_stands_behind_and_no_stream_breaks(void **state)
{
    (void)state;
    for (uint32_t depth = 1; depth <= 3; depth++) {
        rig_open(&d, &(struct rig_options){.role = ROLE_DECODE,
                                           .blocks_count = 16,
                                           .steps_in_flight = depth,
                                           .chunk_tokens = 40});
        struct job job[4];
        for (uint32_t i = 0; i < 4; i++) {
            job[i] = rig_job(i, &(struct rig_prompt){i, 0, 0, 40, 120});
            job[i].stop_ids_count = 0;
            rig_reserve(&d, &job[i], true);
        }
        rig_run(&d);
        assert_true(rig_counts(&d).preemptions > 0);
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
            enum finish finish;
            uint32_t n = rig_expect(&job[i], 400, want, &finish);
            assert_int_equal(rig_stream(&d, job[i].key, got), n);
            assert_memory_equal(got, want, n * sizeof *got);
        }
        for (uint32_t i = 0; i < d.said_count; i++) /* the oldest one ends first */
            if (d.said[i].m.kind == MSG_FINISHED) {
                assert_true(job_key_equal(d.said[i].m.finished.key, job[0].key));
                break;
            }
        rig_free(&d);
    }
}

static void log_probabilities_are_kept_for_a_resend(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE});
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 50, 30});
    job.sampling.logprobs = true;
    job.sampling.tops_count = 2;
    rig_reserve(&d, &job, false);
    rig_link(&d);
    struct xfer_event e = {.kind = XFER_COMMITTED};
    e.first = (struct token_info){.token = 3, .logprob = -1.5f, .tops_count = 2};
    e.first.top[0].token = 3, e.first.top[0].logprob = -1.5f;
    e.first.top[1].token = 8, e.first.top[1].logprob = -2.5f;
    rig_end_ticket(&d, &e);
    rig_event(&d);
    rig_say(&d, (struct msg){.kind = MSG_RESEND, .resend = {job.key, 0}});
    const struct token_info *t = &rig_said(&d, MSG_TOKENS)->tokens.runs[0].tokens[0];
    assert_true(t->logprob == -1.5f);
    assert_int_equal(t->tops_count, 2);
    assert_int_equal(t->top[1].token, 8);
    assert_true(t->top[1].logprob == -2.5f);
    rig_free(&d);
}

/* A step still names the one that is to make room; when it ends, nobody may be left to make room for. */
static void those_before_it_may_end_before_a_sequence_has_made_room_for_them(void **state)
{
    (void)state;
    uint64_t preemptions = 0;
    for (uint32_t steps = 1; steps < 120; steps++) {
        rig_open(&d, &(struct rig_options){.role = ROLE_DECODE,
                                           .blocks_count = 16,
                                           .steps_in_flight = 2,
                                           .chunk_tokens = 40});
        struct job job[4];
        for (uint32_t i = 0; i < 4; i++) {
            job[i] = rig_job(i, &(struct rig_prompt){i, 0, 0, 40, 120});
            job[i].stop_ids_count = 0;
            rig_reserve(&d, &job[i], true);
        }
        for (uint32_t i = 0; i < steps; i++)
            rig_step(&d);
        for (uint32_t i = 0; i < 3; i++)
            rig_cancel(&d, job[i].key);
        rig_run(&d);
        uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
        enum finish finish;
        uint32_t n = rig_expect(&job[3], 400, want, &finish);
        assert_int_equal(rig_stream(&d, job[3].key, got), n);
        assert_memory_equal(got, want, n * sizeof *got);
        preemptions += rig_counts(&d).preemptions;
        rig_free(&d);
    }
    assert_true(preemptions > 0);
}

int main(void)
{
    log_setup(LOG_OFF, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_node_greets_joins_and_beats),
        cmocka_unit_test(routers_are_told_of_links_that_changed),
        cmocka_unit_test(a_request_goes_through_both_nodes),
        cmocka_unit_test(only_the_part_that_decode_lacks_travels),
        cmocka_unit_test(a_committed_prompt_is_found_while_it_runs),
        cmocka_unit_test(what_prefill_has_cached_is_pushed_too),
        cmocka_unit_test(a_prefill_without_ticket_ends_with_its_first_token),
        cmocka_unit_test(a_step_within_one_turn_took_the_time_that_the_device_says),
        cmocka_unit_test(decode_prefills_a_local_job_itself),
        cmocka_unit_test(a_later_attempt_goes_on_at_the_next_index),
        cmocka_unit_test(a_commit_with_a_finish_reason_never_runs),
        cmocka_unit_test(a_prompt_starts_only_with_all_its_blocks),
        cmocka_unit_test(prompts_share_a_step_in_order_of_priority_and_age),
        cmocka_unit_test(a_prefix_being_computed_is_waited_for),
        cmocka_unit_test(waiting_for_a_prefix_is_bounded),
        cmocka_unit_test(a_short_pool_preempts_who_stands_behind_and_no_stream_breaks),
        cmocka_unit_test(those_before_it_may_end_before_a_sequence_has_made_room_for_them),
        cmocka_unit_test(log_probabilities_are_kept_for_a_resend),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
