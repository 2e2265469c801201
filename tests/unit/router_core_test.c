/* The router core: each test feeds messages and looks at what it sends. */
#include <stdio.h>

#include "tests/unit/router_rig.h"

static void a_request_goes_through_its_pair(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = world_open_prefilling(&w, 4);
    size_t mark = w.read;
    tell_first(&w, P0, key, 0);
    tell_tokens(&w, D0, key, 0, 2);
    tell_prefilled(&w, P0, key);
    tell_tokens(&w, D0, key, 2, 4);
    tell_finished(&w, D0, key, 4);
    expect(&w, D0, MSG_FINISHED_ACK);
    w.read = mark;
    const struct msg *done = expect_stream(&w, 0, 4);
    assert_int_equal(done->done.finish, FINISH_LENGTH);
    assert_int_equal(done->done.completion_tokens, 4);
    assert_string_equal(done->done.prefill_node, "p0");
    assert_int_equal(done->done.cached_tokens, 16);
    assert_string_equal(done->done.decode_node, "d0");
    struct router_counts c;
    router_core_counts(w.core, &c);
    assert_int_equal(c.requests_live, 0);
    assert_int_equal(c.duplicate_tokens, 1); /* D's own copy of the first token */
    world_close(&w);
}

static void stop_ids_and_those_of_the_model_travel_with_the_job(void **state)
{
    (void)state;
    struct world w;
    static const uint32_t own[1] = {7};
    world_open_joined(&w, NULL);
    struct msg m = submit_of(4);
    m.submit.stop_ids = own;
    m.submit.stop_ids_count = 1;
    say(&w, CLIENT, m);
    const struct job *job = &expect(&w, D0, MSG_RESERVE)->reserve.job;
    assert_int_equal(job->stop_ids_count, 2);
    assert_int_equal(job->stop_ids[0], 7);
    assert_int_equal(job->stop_ids[1], 99);
    m.submit.ignore_eos = true;
    say(&w, CLIENT, m);
    assert_int_equal(expect(&w, D1, MSG_RESERVE)->reserve.job.stop_ids_count, 1);
    world_close(&w);
}

static void one_token_needs_no_decode_node(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    submit(&w, 1);
    const struct msg *m = expect(&w, P0, MSG_PREFILL);
    assert_true(id128_is_none(m->prefill.ticket));
    struct job_key key = m->prefill.job.key;
    size_t mark = w.read;
    tell_first(&w, P0, key, 0);
    tell_finished(&w, P0, key, 1);
    expect(&w, P0, MSG_FINISHED_ACK);
    w.read = mark;
    expect_stream(&w, 0, 1);
    assert_false(was_sent(&w, D0, MSG_RESERVE));
    world_close(&w);
}

static void a_dead_decode_node_is_replaced_and_the_stream_goes_on(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = world_open_prefilling(&w, 6);
    size_t mark = w.read;
    tell_first(&w, P0, key, 0);
    tell_tokens(&w, D0, key, 0, 3);
    lose(&w, D0);
    expect(&w, P0, MSG_CANCEL);
    const struct msg *m = expect(&w, D1, MSG_RESERVE);
    assert_int_equal(m->reserve.job.key.attempt, 1);
    assert_int_equal(m->reserve.job.forwarded_count, 3);
    assert_int_equal(m->reserve.job.forwarded[2], 12);
    struct job_key next = m->reserve.job.key;
    say(&w, D1, (struct msg){.kind = MSG_RESERVED, .reserved = {next, {9, 9}, 0}});
    expect(&w, P0, MSG_PREFILL);
    tell_tokens(&w, D1, key, 3, 5); /* the wrong attempt: dropped */
    tell_first(&w, P0, next, 3);
    tell_tokens(&w, D1, next, 3, 6);
    tell_finished(&w, D1, next, 6);
    w.read = mark;
    const struct msg *done = expect_stream(&w, 0, 6);
    assert_int_equal(done->done.attempts, 2);
    world_close(&w);
}

/* Seed 4312 of the simulator: the retry went on behind the end. */
static void a_node_that_dies_before_it_says_finished_has_finished(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = world_open_prefilling(&w, 9);
    tell_tokens(&w, D0, key, 0, 2);
    struct token_info eos = token(99);
    struct token_run run = {key, 2, &eos, 1};
    say(&w, D0, (struct msg){.kind = MSG_TOKENS, .tokens = {&run, 1}});
    lose(&w, D0);
    const struct msg *done = expect(&w, CLIENT, MSG_DONE);
    assert_int_equal(done->done.finish, FINISH_STOP);
    assert_int_equal(done->done.completion_tokens, 3);
    assert_false(was_sent(&w, D1, MSG_RESERVE));
    world_close(&w);
}

static void a_resumed_request_that_only_lacks_its_end_gets_it(void **state)
{
    (void)state;
    struct world w;
    static const uint32_t received[2] = {10, 11};
    world_open(&w, NULL);
    for (int joined = 0; joined < 2; joined++) {
        struct msg m = submit_of(2);
        m.submit.attempt = 1000;
        m.submit.received = received;
        m.submit.received_count = 2;
        say(&w, CLIENT, m);
        expect(&w, CLIENT, MSG_ACCEPTED);
        assert_int_equal(expect(&w, CLIENT, MSG_DONE)->done.finish, FINISH_LENGTH);
        m.submit.tokens_max = 1;
        say(&w, CLIENT, m);
        assert_int_equal(expect(&w, CLIENT, MSG_REJECTED)->rejected.error, ERR_INVALID);
        if (!joined) world_join(&w);
    }
    world_close(&w);
}

static void a_dead_prefill_node_is_replaced(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = world_open_prefilling(&w, 3);
    lose(&w, P0);
    expect(&w, D0, MSG_CANCEL);
    /* without a prefill node a decode node does it all */
    const struct msg *m = expect(&w, D0, MSG_RESERVE);
    assert_true(m->reserve.local);
    struct job_key next = m->reserve.job.key;
    assert_int_equal(next.attempt, key.attempt + 1);
    say(&w, D0, (struct msg){.kind = MSG_RESERVED, .reserved = {next, ID128_NONE, 0}});
    size_t mark = w.read;
    tell_tokens(&w, D0, next, 0, 3);
    tell_finished(&w, D0, next, 3);
    w.read = mark;
    expect_stream(&w, 0, 3);
    world_close(&w);
}

/* Two requests, so that neither is alone on the node, and one node at a time. */
static void three_deaths_end_it(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    hello(&w, P0, ROLE_PREFILL, "p0");
    submit(&w, 9);
    submit(&w, 9);
    for (uint32_t d = 6; d < 9; d++) {
        const char name[] = {'d', (char)('0' + d), 0};
        assert_false(was_sent(&w, CLIENT, MSG_DONE));
        hello(&w, d, ROLE_DECODE, name);
        struct job_key key[2];
        for (int i = 0; i < 2; i++)
            key[i] = expect(&w, d, MSG_RESERVE)->reserve.job.key;
        for (int i = 0; i < 2; i++) {
            say(&w, d, (struct msg){.kind = MSG_RESERVED, .reserved = {key[i], {9, 9}, 0}});
            expect(&w, P0, MSG_PREFILL);
        }
        lose(&w, d);
    }
    for (int i = 0; i < 2; i++) {
        const struct msg *done = expect(&w, CLIENT, MSG_DONE);
        assert_int_equal(done->done.finish, FINISH_ERROR);
        assert_int_equal(done->done.error, ERR_PEER);
        assert_non_null(strstr(done->done.reason, "3 nodes died while they worked on it"));
    }
    world_close(&w);
}

static void a_full_node_is_left_alone_for_a_while(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    hello(&w, P0, ROLE_PREFILL, "p0");
    hello(&w, D0, ROLE_DECODE, "d0");
    submit(&w, 3);
    struct job_key key = expect(&w, D0, MSG_RESERVE)->reserve.job.key;
    say(&w, D0, (struct msg){.kind = MSG_FAILED, .failed = {key, ERR_FULL, true, "no blocks now"}});
    assert_false(was_sent(&w, D0, MSG_RESERVE));
    assert_true(w.wake > w.now && w.wake < w.now + NS_PER_S);
    w.now = w.wake;
    router_core_on_timer(w.core, w.now);
    assert_int_equal(expect(&w, D0, MSG_RESERVE)->reserve.job.key.attempt, 1);
    world_close(&w);
}

static void without_decode_nodes_prefill_only_requests_pass_the_others(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    hello(&w, P0, ROLE_PREFILL, "p0");
    submit(&w, 3);
    assert_false(was_sent(&w, P0, MSG_PREFILL));
    w.now += 2 * NS_PER_S; /* longer than others may pass one that waits for memory */
    submit(&w, 1);
    assert_true(id128_is_none(expect(&w, P0, MSG_PREFILL)->prefill.ticket));
    world_close(&w);
}

static void a_gap_is_asked_for_and_nothing_is_forwarded_twice(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = world_open_prefilling(&w, 6);
    size_t mark = w.read;
    tell_tokens(&w, D0, key, 0, 2);
    tell_tokens(&w, D0, key, 4, 5);
    tell_finished(&w, D0, key, 6);
    const struct msg *m = expect(&w, D0, MSG_RESEND);
    assert_int_equal(m->resend.from, 2);
    assert_false(was_sent(&w, CLIENT, MSG_DONE));
    tell_tokens(&w, D0, key, 2, 6);
    tell_tokens(&w, D0, key, 0, 6);
    w.read = mark;
    expect_stream(&w, 0, 6);
    world_close(&w);
}

static void cancel_reaches_every_node(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    struct id128 id = submit(&w, 6);
    struct job_key key = reserve(&w, D0);
    tell_first(&w, P0, key, 0);
    say(&w, CLIENT, (struct msg){.kind = MSG_CANCEL, .cancel = {{id, CHOICE_ALL, 0}, "user"}});
    assert_true(was_sent(&w, P0, MSG_CANCEL) && was_sent(&w, D0, MSG_CANCEL));
    assert_int_equal(expect(&w, CLIENT, MSG_DONE)->done.finish, FINISH_CANCELLED);
    tell_tokens(&w, D0, key, 0, 3); /* too late: dropped */
    assert_false(was_sent(&w, CLIENT, MSG_OUTPUT));
    world_close(&w);
}

static void a_cancel_spares_the_choice_that_has_ended(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    struct msg m = submit_of(4);
    m.submit.choices = 2;
    say(&w, CLIENT, m);
    struct id128 id = expect(&w, CLIENT, MSG_ACCEPTED)->accepted.id;
    struct job_key key = reserve(&w, D0);
    tell_tokens(&w, D0, key, 0, 4);
    tell_finished(&w, D0, key, 4);
    assert_int_equal(expect(&w, CLIENT, MSG_DONE)->done.choice, 0);
    say(&w, CLIENT, (struct msg){.kind = MSG_CANCEL, .cancel = {{id, CHOICE_ALL, 0}, "user"}});
    const struct msg *done = expect(&w, CLIENT, MSG_DONE);
    assert_int_equal(done->done.choice, 1);
    assert_int_equal(done->done.finish, FINISH_CANCELLED);
    assert_false(was_sent(&w, CLIENT, MSG_DONE));
    world_close(&w);
}

static void a_job_says_how_old_its_request_is(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    submit(&w, 4);
    struct job_key key = expect(&w, D0, MSG_RESERVE)->reserve.job.key;
    w.now += 70 * NS_PER_MS;
    say(&w, D0, (struct msg){.kind = MSG_RESERVED, .reserved = {key, {9, 1}, 16}});
    assert_int_equal(expect(&w, P0, MSG_PREFILL)->prefill.job.age_ms, 70);
    world_close(&w);
}

static void tokens_before_the_reservation_are_dropped(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    submit(&w, 4);
    struct job_key key = {.request = expect(&w, D0, MSG_RESERVE)->reserve.job.key.request};
    tell_tokens(&w, D0, key, 0, 2);
    tell_finished(&w, D0, key, 2);
    assert_false(was_sent(&w, CLIENT, MSG_OUTPUT));
    say(&w, D0, (struct msg){.kind = MSG_RESERVED, .reserved = {key, {9, 1}, 16}});
    expect(&w, P0, MSG_PREFILL);
    world_close(&w);
}

static void a_lost_client_cancels_its_requests(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    submit(&w, 6);
    reserve(&w, D0);
    lose(&w, CLIENT);
    assert_true(was_sent(&w, P0, MSG_CANCEL) && was_sent(&w, D0, MSG_CANCEL));
    struct router_counts c;
    router_core_counts(w.core, &c);
    assert_int_equal(c.requests_live, 0);
    assert_int_equal(c.cancelled, 1);
    world_close(&w);
}

static void overload_is_answered_at_the_door(void **state)
{
    (void)state;
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.requests_max = 2;
    for (int tokens = 0; tokens < 2; tokens++) { /* too many requests, too many tokens of prompts */
        if (tokens) config.queued_tokens_max = 20; /* one more may come */
        if (tokens) config.requests_max = 100;
        world_open(&w, &config);
        submit(&w, 3);
        submit(&w, 3);
        say(&w, CLIENT, submit_of(3));
        const struct msg *m = expect(&w, CLIENT, MSG_REJECTED);
        assert_int_equal(m->rejected.error, ERR_FULL);
        assert_int_equal(m->rejected.ref, 42);
        assert_true(m->rejected.retry_ms > 0);
        assert_non_null(strstr(m->rejected.reason, tokens ? "40 prompt tokens" : "2 requests"));
        world_close(&w);
    }
}

static void bad_requests_are_refused_with_the_field(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    uint32_t wide[2] = {1, 1024};
    struct msg bad[7];
    static const char *const word[7] = {"prompt",    "temperature", "empty",  "n is",
                                        "tokenizer", "stop",        "attempt"};
    for (size_t i = 0; i < 7; i++)
        bad[i] = submit_of(3);
    bad[0].submit.tokens = wide;
    bad[0].submit.tokens_count = 2;
    bad[1].submit.sampling.temperature = -1;
    bad[2].submit.tokens_count = 0;
    bad[3].submit.choices = 0;
    bad[4].submit.want_text = true;
    bad[5].submit.stop_ids = wide;
    bad[5].submit.stop_ids_count = 2;
    bad[6].submit.attempt = 1u + ROUTER_ATTEMPTS_MAX; /* its retries would begin at 0 again */
    for (size_t i = 0; i < 7; i++) {
        say(&w, CLIENT, bad[i]);
        const struct msg *m = expect(&w, CLIENT, MSG_REJECTED);
        if (!strstr(m->rejected.reason, word[i])) fail_msg("%s: %s", word[i], m->rejected.reason);
    }
    bad[6].submit.attempt--;
    say(&w, CLIENT, bad[6]);
    expect(&w, CLIENT, MSG_ACCEPTED);
    world_close(&w);
}

static void without_nodes_it_ends_with_a_reason(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    submit(&w, 3);
    for (int i = 0; i < 1000 && !was_sent(&w, CLIENT, MSG_DONE); i++) {
        w.now += 100 * NS_PER_MS;
        say(&w, CLIENT, (struct msg){.kind = MSG_HEARTBEAT});
        if (w.wake <= w.now) router_core_on_timer(w.core, w.now);
    }
    const struct msg *done = expect(&w, CLIENT, MSG_DONE);
    assert_int_equal(done->done.finish, FINISH_ERROR);
    assert_non_null(strstr(done->done.reason, "no node has joined"));
    world_close(&w);
}

static void nodes_of_another_model_are_refused(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    w.envelope[P1] = (struct envelope){.from = 500};
    struct msg m = {.kind = MSG_HELLO,
                    .hello = {.role = ROLE_PREFILL,
                              .name = "p1",
                              .host = "h",
                              .device = "d",
                              .model = "m",
                              .model_fingerprint = {8, 8},
                              .vocab = 100,
                              .context_max = 10,
                              .sequences_max = 1,
                              .blocks_total = 1}};
    say(&w, P1, m);
    assert_non_null(strstr(expect(&w, P1, MSG_REFUSE)->refuse.reason, "another model"));
    hello(&w, 6, ROLE_PREFILL, "p0");
    assert_non_null(strstr(expect(&w, 6, MSG_REFUSE)->refuse.reason, "p0"));
    struct router_counts c;
    router_core_counts(w.core, &c);
    assert_int_equal(c.nodes, 3);
    world_close(&w);
}

static void only_so_many_ended_requests_are_remembered(void **state)
{
    (void)state;
    enum { REMEMBERED = 2, ASKED = 5 };
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    struct id128 id[ASKED];
    config.history_max = REMEMBERED;
    world_open_joined(&w, &config);
    for (int i = 0; i < ASKED; i++) {
        id[i] = submit(&w, 2);
        const struct job_key key = expect(&w, D0, MSG_RESERVE)->reserve.job.key;
        say(&w, D0, (struct msg){.kind = MSG_RESERVED, .reserved = {key, {9, 9}, 0}});
        tell_tokens(&w, D0, key, 0, 2);
        tell_finished(&w, D0, key, 2);
        expect(&w, CLIENT, MSG_DONE);
    }
    for (int i = 0; i < ASKED; i++) {
        struct buf json = {0};
        enum err e = router_core_explain(w.core, w.now, id[i], &json);
        assert_int_equal(e, i < ASKED - REMEMBERED ? ERR_NOT_FOUND : OK);
        buf_fini(&json);
    }
    world_close(&w);
}

/* Text would be of one model and answers of another. Who has no tokenizer is not asked. */
static void nodes_of_another_tokenizer_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint64_t router, node;
        bool refused;
    } row[] = {{0, 0, false}, {0, 7, false}, {7, 0, false}, {7, 7, false}, {7, 8, true}};
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct world w;
        struct router_config config = ROUTER_CONFIG_DEFAULT;
        config.tokenizer_hash = (struct id128){row[i].router, row[i].router};
        world_open(&w, &config);
        hello_tokenizer(&w, P0, (struct id128){row[i].node, row[i].node});
        if (row[i].refused)
            assert_non_null(strstr(expect(&w, P0, MSG_REFUSE)->refuse.reason, "tokenizer.json"));
        else
            expect(&w, P0, MSG_WELCOME);
        world_close(&w);
    }
}

static void a_request_larger_than_every_pool_is_told_so_at_once(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    submit(&w, 900); /* in pools of 50 blocks of 16 tokens */
    const struct msg *m = expect(&w, CLIENT, MSG_DONE);
    assert_int_equal(m->done.error, ERR_INVALID);
    assert_non_null(strstr(m->done.reason, "at its full length, the largest decode node has 50"));
    world_close(&w);
}

static void what_a_node_has_and_nobody_wants_is_cancelled(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    struct msg beat = {.kind = MSG_HEARTBEAT,
                       .heartbeat = {.live_count = 1,
                                     .live_hash = 12345,
                                     .load = {.blocks_total = 50, .blocks_free = 50}}};
    for (int i = 0; i < 30 && !was_sent(&w, D0, MSG_LIVE); i++) {
        w.now += 100 * NS_PER_MS;
        say(&w, D0, beat);
    }
    assert_true(expect(&w, D0, MSG_LIVE)->live.answer);
    struct job_key stray = {{1, 2}, 0, 3};
    say(&w, D0, (struct msg){.kind = MSG_LIVE, .live = {false, &stray, 1}});
    assert_true(job_key_equal(expect(&w, D0, MSG_CANCEL)->cancel.key, stray));
    world_close(&w);
}

static void what_a_node_has_lost_is_tried_again(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = world_open_prefilling(&w, 6);
    struct msg beat = {.kind = MSG_HEARTBEAT,
                       .heartbeat = {.load = {.blocks_total = 50, .blocks_free = 50}}};
    for (int i = 0; i < 30 && !was_sent(&w, D0, MSG_LIVE); i++) {
        w.now += 100 * NS_PER_MS;
        say(&w, D0, beat);
    }
    expect(&w, D0, MSG_LIVE);
    say(&w, D0, (struct msg){.kind = MSG_LIVE});
    expect(&w, P0, MSG_CANCEL);
    w.read = 0;
    uint32_t attempts = 0;
    for (size_t i = 0; i < w.sent_count; i++)
        if (w.sent[i].m.kind == MSG_RESERVE && w.sent[i].m.reserve.job.key.attempt > key.attempt)
            attempts++;
    assert_int_equal(attempts, 1);
    world_close(&w);
}

static void a_node_that_says_that_it_leaves_gets_nothing_new(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = world_open_prefilling(&w, 2); /* at P0 and D0 */
    struct msg beat = {.kind = MSG_HEARTBEAT,
                       .heartbeat = {.draining = true,
                                     .live_count = 1,
                                     .load = {.blocks_total = 50, .blocks_free = 48}}};
    say(&w, D0, beat);
    beat.heartbeat.draining = false; /* it does not come back */
    say(&w, D0, beat);
    for (int i = 0; i < 2; i++) {
        submit(&w, 2);
        w.read = 0;
        assert_int_equal(expect(&w, D1, MSG_RESERVE)->reserve.job.prompt_count, 20);
        w.sent_count = w.read = 0;
    }
    assert_false(was_sent(&w, D0, MSG_RESERVE));
    tell_tokens(&w, D0, key, 0, 2); /* what it has goes on */
    tell_prefilled(&w, P0, key);
    tell_finished(&w, D0, key, 2);
    assert_int_equal(expect_stream(&w, 0, 2)->done.finish, FINISH_LENGTH);
    world_close(&w);
}

static void a_node_too_many_is_sent_away(void **state)
{
    (void)state;
    struct world w;
    char name[16];
    world_open(&w, NULL);
    for (uint32_t i = 0; i <= SCHED_NODES_MAX; i++) {
        bool fits = i < SCHED_NODES_MAX;
        snprintf(name, sizeof name, "n%u", i);
        w.sent_count = w.read = 0;
        arena_reset(&w.arena);
        hello(&w, P0 + i, ROLE_PREFILL, name);
        assert_int_equal(was_sent(&w, P0 + i, MSG_WELCOME), fits);
        if (!fits)
            assert_non_null(strstr(expect(&w, P0 + i, MSG_REFUSE)->refuse.reason, "at most 1024"));
    }
    lose(&w, P0); /* then there is a place */
    hello(&w, P0 + SCHED_NODES_MAX, ROLE_PREFILL, name);
    expect(&w, P0 + SCHED_NODES_MAX, MSG_WELCOME);
    world_close(&w);
}

static void draining_finishes_then_sends_everybody_home(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = world_open_prefilling(&w, 2);
    say(&w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {7, QUERY_DRAIN, ""}});
    say(&w, CLIENT, submit_of(2));
    assert_int_equal(expect(&w, CLIENT, MSG_REJECTED)->rejected.error, ERR_FULL);
    assert_false(was_sent(&w, D0, MSG_DRAIN));
    tell_tokens(&w, D0, key, 0, 2);
    tell_prefilled(&w, P0, key);
    tell_finished(&w, D0, key, 2);
    expect(&w, P0, MSG_DRAIN);
    expect(&w, D0, MSG_DRAIN);
    for (uint32_t n = P0; n <= D1; n++) {
        assert_false(w.left);
        say(&w, n, (struct msg){.kind = MSG_BYE});
    }
    const struct msg *m = expect(&w, CLIENT, MSG_ANSWER);
    assert_int_equal(m->answer.ref, 7);
    assert_int_equal(m->answer.error, OK);
    expect(&w, CLIENT, MSG_BYE);
    assert_false(w.left); /* the answer may still be on its way */
    lose(&w, CLIENT);
    assert_true(w.left);
    world_close(&w);
}

static void a_client_that_does_not_hang_up_does_not_hold_the_router(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    router_core_drain(w.core, w.now);
    router_core_on_timer(w.core, w.now);
    assert_false(w.left);
    for (int i = 0; i < 20 && !w.left; i++) {
        w.now = w.wake;
        router_core_on_timer(w.core, w.now);
    }
    assert_true(w.left);
    world_close(&w);
}

static void a_resumed_request_goes_on_at_the_next_index(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    static const uint32_t received[2] = {10, 11};
    struct msg m = submit_of(4);
    m.submit.id = (struct id128){5, 6};
    m.submit.attempt = 1000;
    m.submit.received = received;
    m.submit.received_count = 2;
    say(&w, CLIENT, m);
    struct job_key key = expect(&w, D0, MSG_RESERVE)->reserve.job.key;
    assert_int_equal(key.attempt, 1000);
    say(&w, D0, (struct msg){.kind = MSG_RESERVED, .reserved = {key, {9, 9}, 0}});
    size_t mark = w.read;
    tell_tokens(&w, D0, key, 2, 4);
    tell_finished(&w, D0, key, 4);
    w.read = mark;
    expect_stream(&w, 2, 4);
    world_close(&w);
}

static void each_choice_of_a_resumed_request_goes_on_at_its_next_index(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    static const uint32_t received[6] = {10, 11, 10, 11, 12, 13}, counts[3] = {0, 2, 4};
    struct msg m = submit_of(4);
    m.submit.id = (struct id128){5, 6};
    m.submit.attempt = 1000;
    m.submit.choices = 3;
    m.submit.received = received;
    m.submit.received_count = 6;
    m.submit.received_counts = counts;
    m.submit.received_counts_count = 3;
    say(&w, CLIENT, m);
    const struct msg *done = expect(&w, CLIENT, MSG_DONE); /* nothing was left to do */
    assert_int_equal(done->done.choice, 2);
    assert_int_equal(done->done.finish, FINISH_LENGTH);
    w.read = 0;
    for (uint32_t i = 0; i < 2; i++) {
        const struct job *job = &expect(&w, i ? D1 : D0, MSG_RESERVE)->reserve.job;
        assert_int_equal(job->key.choice, i);
        assert_int_equal(job->forwarded_count, counts[i]);
        if (i) assert_memory_equal(job->forwarded, received, 2 * sizeof *received);
    }
    m.submit.attempt = 2000;
    m.submit.tokens_max = 3; /* less than one of them has */
    say(&w, CLIENT, m);
    assert_int_equal(expect(&w, CLIENT, MSG_REJECTED)->rejected.error, ERR_INVALID);
    world_close(&w);
}

/* Its P has still to say that it is done with the attempt that has ended, when the same request comes again. */
static void a_request_that_comes_again_leaves_nothing_of_its_earlier_life(void **state)
{
    (void)state;
    struct world w;
    struct msg m = submit_of(4);
    world_open_joined(&w, NULL);
    m.submit.id = (struct id128){5, 6};
    say(&w, CLIENT, m);
    struct job_key key = reserve(&w, D0);
    tell_tokens(&w, D0, key, 0, 4);
    tell_finished(&w, D0, key, 4);
    m.submit.attempt = 1000;
    size_t mark = w.read;
    say(&w, CLIENT, m);
    assert_int_equal(expect(&w, P0, MSG_CANCEL)->cancel.key.attempt, 0);
    w.read = mark;
    key = reserve(&w, D0);
    assert_int_equal(key.attempt, 1000);
    lose(&w, P0);
    world_close(&w);
}

static void the_last_token_tells_what_it_ends_by(void **state)
{
    (void)state;
    for (int stops = 0; stops < 2; stops++) {
        struct world w;
        struct job_key key = world_open_prefilling(&w, 4);
        size_t mark = w.read;
        struct token_info tokens[2] = {token(12), token(stops ? 99 : 13)}; /* 99: hello's eos */
        struct token_run run = {key, 2, tokens, 2};
        tell_tokens(&w, D0, key, 0, 2);
        say(&w, D0, (struct msg){.kind = MSG_TOKENS, .tokens = {&run, 1}});
        w.read = mark;
        assert_int_equal(expect(&w, CLIENT, MSG_OUTPUT)->output.finish, FINISH_NONE);
        assert_int_equal(expect(&w, CLIENT, MSG_OUTPUT)->output.finish,
                         stops ? FINISH_STOP : FINISH_LENGTH);
        world_close(&w);
    }
}

/* Only the last request of a tenant, with all of its samples, has the window that is kept for those with less than their share: else one
 * whose only running request has just ended would fill it from its queue. */
static void a_flood_with_nothing_running_keeps_nobody_waiting(void **state)
{
    (void)state;
    uint32_t long_prompt[60] = {0};
    for (uint32_t samples = 1; samples <= 3; samples++) {
        struct world w;
        world_open(&w, NULL);
        for (int i = 0; i < 4; i++) {
            struct msg m = submit_of(4);
            m.submit.tenant = i < 3 ? "flood" : "light";
            if (i < 3) m.submit.tokens = long_prompt, m.submit.tokens_count = 60;
            if (i == 3) m.submit.choices = samples, world_join(&w);
            say(&w, CLIENT, m);
        }
        const struct msg *m = expect(&w, D1, MSG_RESERVE);
        assert_int_equal(m->reserve.job.prompt_count, 20);
        assert_int_equal(m->reserve.job.fair_lead, 0);
        world_close(&w);
    }
}

/* Nor does what others ask meanwhile go before it, if it is no less than theirs. */
static void small_prompts_do_not_pass_a_long_one_that_is_next(void **state)
{
    (void)state;
    struct world w;
    uint32_t long_prompt[60] = {0};
    world_open_joined(&w, NULL);
    for (int i = 0; i < 6; i++) {
        bool small = i < 2 || i > 3;
        struct msg m = submit_of(4);
        m.submit.tenant = small ? "small" : "long";
        if (!small) m.submit.tokens = long_prompt, m.submit.tokens_count = 60;
        say(&w, CLIENT, m);
        expect(&w, CLIENT, MSG_ACCEPTED);
    }
    uint32_t reserved = 0;
    for (size_t i = 0; i < w.sent_count; i++)
        reserved += w.sent[i].m.kind == MSG_RESERVE;
    assert_int_equal(reserved, 2); /* the first two small ones, which were there before it */
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_goes_through_its_pair),
        cmocka_unit_test(stop_ids_and_those_of_the_model_travel_with_the_job),
        cmocka_unit_test(one_token_needs_no_decode_node),
        cmocka_unit_test(a_dead_decode_node_is_replaced_and_the_stream_goes_on),
        cmocka_unit_test(a_node_that_dies_before_it_says_finished_has_finished),
        cmocka_unit_test(a_resumed_request_that_only_lacks_its_end_gets_it),
        cmocka_unit_test(a_dead_prefill_node_is_replaced),
        cmocka_unit_test(three_deaths_end_it),
        cmocka_unit_test(a_full_node_is_left_alone_for_a_while),
        cmocka_unit_test(without_decode_nodes_prefill_only_requests_pass_the_others),
        cmocka_unit_test(a_gap_is_asked_for_and_nothing_is_forwarded_twice),
        cmocka_unit_test(cancel_reaches_every_node),
        cmocka_unit_test(a_cancel_spares_the_choice_that_has_ended),
        cmocka_unit_test(a_job_says_how_old_its_request_is),
        cmocka_unit_test(tokens_before_the_reservation_are_dropped),
        cmocka_unit_test(a_lost_client_cancels_its_requests),
        cmocka_unit_test(overload_is_answered_at_the_door),
        cmocka_unit_test(bad_requests_are_refused_with_the_field),
        cmocka_unit_test(without_nodes_it_ends_with_a_reason),
        cmocka_unit_test(nodes_of_another_model_are_refused),
        cmocka_unit_test(nodes_of_another_tokenizer_are_refused),
        cmocka_unit_test(only_so_many_ended_requests_are_remembered),
        cmocka_unit_test(a_request_larger_than_every_pool_is_told_so_at_once),
        cmocka_unit_test(what_a_node_has_and_nobody_wants_is_cancelled),
        cmocka_unit_test(what_a_node_has_lost_is_tried_again),
        cmocka_unit_test(a_node_that_says_that_it_leaves_gets_nothing_new),
        cmocka_unit_test(a_node_too_many_is_sent_away),
        cmocka_unit_test(draining_finishes_then_sends_everybody_home),
        cmocka_unit_test(a_client_that_does_not_hang_up_does_not_hold_the_router),
        cmocka_unit_test(a_resumed_request_goes_on_at_the_next_index),
        cmocka_unit_test(each_choice_of_a_resumed_request_goes_on_at_its_next_index),
        cmocka_unit_test(a_request_that_comes_again_leaves_nothing_of_its_earlier_life),
        cmocka_unit_test(the_last_token_tells_what_it_ends_by),
        cmocka_unit_test(a_flood_with_nothing_running_keeps_nobody_waiting),
        cmocka_unit_test(small_prompts_do_not_pass_a_long_one_that_is_next),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
