/* The router core when things go wrong: nodes that die or hang, overload, malformed messages, deadlines,
 * memory that runs out. */
#include "tests/unit/router_rig.h"

static void beat(struct world *w, uint32_t peer, bool busy, uint64_t progress, uint32_t step_us)
{
    say(w, peer,
        (struct msg){
            .kind = MSG_HEARTBEAT,
            .heartbeat = {.busy = busy,
                          .progress = progress,
                          .load = {.blocks_total = 50, .blocks_free = 50, .step_us = step_us}}});
}

/* D0 beats, busy and at the same layer, until the router gives it up; the time until then. */
static uint64_t time_until_hung(uint32_t step_us)
{
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.session.dead_ns = 1000 * NS_PER_S; /* the others stay silent */
    world_open(&w, &config);
    hello(&w, D0, ROLE_DECODE, "d0");
    beat(&w, D0, true, 1, step_us);
    uint64_t begin = w.now;
    while (!w.forgotten[D0] && w.now - begin < 500 * NS_PER_S) {
        w.now += NS_PER_S;
        beat(&w, D0, true, 1, step_us);
        if (w.wake <= w.now) router_core_on_timer(w.core, w.now);
    }
    uint64_t took = w.now - begin;
    world_close(&w);
    return took;
}

static void a_node_hangs_when_it_makes_no_progress_for_twenty_of_its_steps(void **state)
{
    (void)state;
    const struct {
        uint32_t step_us;
        uint64_t seconds;
    } row[] = {{0, 11}, {1000, 11}, {500000, 11}, {2000000, 41}, {10000000, 201}};
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++)
        assert_int_equal(time_until_hung(row[i].step_us), row[i].seconds * NS_PER_S);
}

static void an_idle_node_and_one_that_makes_progress_do_not_hang(void **state)
{
    (void)state;
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.session.dead_ns = 1000 * NS_PER_S;
    world_open_joined(&w, &config);
    for (uint32_t i = 0; i < 60; i++) {
        w.now += NS_PER_S;
        beat(&w, D0, false, 7, 10);
        beat(&w, D1, true, i, 10);
        beat(&w, P0, false, 7, 10);
        if (w.wake <= w.now) router_core_on_timer(w.core, w.now);
    }
    for (uint32_t n = P0; n <= D1; n++)
        assert_int_equal(w.forgotten[n], 0);
    world_close(&w);
}

static void whoever_was_alone_on_two_dying_nodes_is_quarantined(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    submit(&w, 9);
    reserve(&w, D0);
    lose(&w, D0);
    reserve(&w, D1);
    assert_false(was_sent(&w, CLIENT, MSG_DONE));
    lose(&w, D1);
    const struct msg *done = expect(&w, CLIENT, MSG_DONE);
    assert_int_equal(done->done.finish, FINISH_ERROR);
    assert_non_null(strstr(done->done.reason, "quarantined"));
    world_close(&w);
}

/* Two nodes died that had a reservation of it, and one whose prompt had not been sent there: nothing of it
 * ran, so it cannot be what killed them. */
static void nodes_that_had_nothing_of_it_to_run_do_not_count(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    hello(&w, P0, ROLE_PREFILL, "p0");
    submit(&w, 9);
    for (uint32_t n = 6; n < 10; n++) {
        char name[4] = {'d', (char)('0' + n), 0};
        hello(&w, n, ROLE_DECODE, name);
        expect(&w, n, MSG_RESERVE);
        lose(&w, n);
        assert_false(was_sent(&w, CLIENT, MSG_DONE));
    }
    hello(&w, D0, ROLE_DECODE, "d0");
    struct job_key key = reserve(&w, D0);
    size_t mark = w.read;
    tell_tokens(&w, D0, key, 0, 9);
    tell_finished(&w, D0, key, 9);
    w.read = mark;
    expect_stream(&w, 0, 9);
    world_close(&w);
}

/* More often than nodes may die under it, or fail it. */
static void preemptions_do_not_count(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    submit(&w, 9);
    uint32_t d = D0;
    for (uint32_t i = 0; i < 20; i++) {
        struct job_key key = reserve(&w, d);
        say(&w, d, (struct msg){.kind = MSG_FAILED, .failed = {key, ERR_AGAIN, true, "preempted"}});
        assert_false(was_sent(&w, CLIENT, MSG_DONE));
        d = was_sent(&w, D0, MSG_RESERVE) ? D0 : D1;
    }
    struct job_key key = reserve(&w, d);
    size_t mark = w.read;
    tell_tokens(&w, d, key, 0, 9);
    tell_finished(&w, d, key, 9);
    w.read = mark;
    expect_stream(&w, 0, 9);
    world_close(&w);
}

/* Requests that came before any node did are checked against its model when one joins. */
static void what_nodes_cannot_do_is_said_when_they_come(void **state)
{
    (void)state;
    static const uint32_t beyond[1] = {1024}, ended[1] = {99};
    struct world w;
    world_open(&w, NULL);
    struct msg m = submit_of(9);
    m.submit.tokens = beyond;
    m.submit.tokens_count = 1;
    say(&w, CLIENT, m);
    struct id128 first = expect(&w, CLIENT, MSG_ACCEPTED)->accepted.id;
    m = submit_of(9);
    m.submit.id = (struct id128){5, 6};
    m.submit.received = ended; /* of an end that nobody could know of */
    m.submit.received_count = 1;
    say(&w, CLIENT, m);
    expect(&w, CLIENT, MSG_ACCEPTED);
    assert_false(was_sent(&w, CLIENT, MSG_DONE));
    world_join(&w);
    w.read = 0;
    const struct msg_done *done = &expect(&w, CLIENT, MSG_DONE)->done;
    assert_true(id128_equal(done->id, first));
    assert_int_equal(done->error, ERR_INVALID);
    assert_non_null(strstr(done->reason, "1024"));
    done = &expect(&w, CLIENT, MSG_DONE)->done;
    assert_int_equal(done->finish, FINISH_STOP);
    assert_int_equal(done->completion_tokens, 1);
    world_close(&w);
}

static void nodes_that_do_not_fit_are_refused_with_the_reason(void **state)
{
    (void)state;
    static const char *const said[] = {"capacity", "capacity", "capacity", "capacity",
                                       "geometry", "geometry", "window",   "greets anew"};
    for (uint32_t i = 0; i < COUNT_OF(said); i++) {
        struct world w;
        world_open_joined(&w, NULL);
        struct msg m = {.kind = MSG_HELLO,
                        .hello = {.role = ROLE_PREFILL,
                                  .name = "p1",
                                  .host = "h",
                                  .device = "",
                                  .model = "",
                                  .pid = 99,
                                  .model_fingerprint = {1, 2},
                                  .numerics_id = 3,
                                  .geometry = {2, 1, 8, 16, KV_LAYOUT_CPU, DTYPE_F32},
                                  .vocab = i == 0   ? 0
                                           : i == 4 ? 1025
                                                    : 1024,
                                  .context_max = i == 1 ? 1 : 1000,
                                  .sequences_max = i == 2 ? 0 : 8,
                                  .window_tokens = 64,
                                  .blocks_total = i == 3 ? 0 : 50,
                                  .kv_window = i == 6 ? 16 : 0}};
        if (i == 5) m.hello.geometry.kv_heads = 2;
        if (i == 7) { /* p0 itself, which gives up the session that it has */
            m.hello.name = "p0";
            m.hello.pid = P0;
        }
        w.envelope[P1] = (struct envelope){.from = 100 + P1};
        say(&w, P1, m);
        struct router_counts c;
        router_core_counts(w.core, &c);
        assert_int_equal(c.nodes, 3);
        assert_int_equal(w.forgotten[P0], i == 7);
        if (i < 7) assert_non_null(strstr(expect(&w, P1, MSG_REFUSE)->refuse.reason, said[i]));
        world_close(&w);
    }
}

/* Three requests lose their decode nodes; `max` requests are allowed, a quarter of it may be retries. */
static void three_wait_to_be_tried_again(struct world *w, uint32_t max, struct id128 *ids)
{
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.requests_max = max;
    world_open(w, &config);
    world_join(w);
    for (int i = 0; i < 3; i++) {
        w->now++;
        ids[i] = submit(w, 9);
    }
    lose(w, D0);
    lose(w, D1);
    struct router_counts c;
    router_core_counts(w->core, &c);
    assert_int_equal(c.queued, 3);
}

static void while_too_many_wait_to_be_tried_again_new_ones_are_refused(void **state)
{
    (void)state;
    struct world w;
    struct id128 ids[3];
    three_wait_to_be_tried_again(&w, 12, ids);
    submit(&w, 2); /* three of twelve are not too many */
    world_close(&w);
    three_wait_to_be_tried_again(&w, 11, ids);
    say(&w, CLIENT, submit_of(2));
    const struct msg *m = expect(&w, CLIENT, MSG_REJECTED);
    assert_int_equal(m->rejected.error, ERR_FULL);
    assert_non_null(strstr(m->rejected.reason, "tried again"));
    assert_true(m->rejected.retry_ms > 0);
    world_close(&w);
}

static void retries_go_first_by_age(void **state)
{
    (void)state;
    struct world w;
    struct id128 ids[3];
    three_wait_to_be_tried_again(&w, 100, ids);
    w.now++;
    submit(&w, 9);
    hello(&w, 6, ROLE_DECODE, "d2");
    for (int i = 0; i < 3; i++) {
        struct job_key key = expect(&w, 6, MSG_RESERVE)->reserve.job.key;
        assert_true(id128_equal(key.request, ids[i]));
        assert_true(key.attempt > 0);
    }
    assert_false(
        was_sent(&w, 6, MSG_RESERVE)); /* the new one waits for the prefill node's window */
    world_close(&w);
}

static void a_malformed_request_is_answered(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    struct msg m = {.kind = MSG_SUBMIT, .submit = {.ref = 9}};
    router_core_on_malformed(w.core, (struct peer){CLIENT}, &m, ERR_FORMAT, "top_k is odd");
    const struct msg *said = expect(&w, CLIENT, MSG_REJECTED);
    assert_int_equal(said->rejected.ref, 9);
    assert_int_equal(said->rejected.error, ERR_FORMAT);
    assert_string_equal(said->rejected.reason, "top_k is odd");
    m = (struct msg){.kind = MSG_QUERY, .query = {.ref = 10}};
    router_core_on_malformed(w.core, (struct peer){CLIENT}, &m, ERR_FORMAT, "no such query");
    assert_int_equal(expect(&w, CLIENT, MSG_ANSWER)->answer.error, ERR_FORMAT);
    m = (struct msg){.kind = MSG_PIN, .pin = {.ref = 11}};
    router_core_on_malformed(w.core, (struct peer){CLIENT}, &m, ERR_FORMAT, "no such name");
    assert_int_equal(expect(&w, CLIENT, MSG_ANSWER)->answer.ref, 11);
    size_t sent = w.sent_count;
    router_core_on_malformed(w.core, (struct peer){D0}, &m, ERR_FORMAT, "a node");
    router_core_on_malformed(w.core, (struct peer){9}, &m, ERR_FORMAT, "a stranger");
    m.kind = MSG_NONE;
    router_core_on_malformed(w.core, (struct peer){CLIENT}, &m, ERR_FORMAT, "garbage");
    assert_int_equal(w.sent_count, sent);
    world_close(&w);
}

static void status_shows_slow_callbacks_and_malformed_messages(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    router_core_set_facts(w.core, &(struct router_facts){17, 18});
    say(&w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {1, QUERY_STATUS, ""}});
    const struct msg *m = expect(&w, CLIENT, MSG_ANSWER);
    assert_non_null(strstr(m->answer.text, "\"slow_callbacks\":17"));
    assert_non_null(strstr(m->answer.text, "\"malformed_messages\":18"));
    hello(&w, D0, ROLE_DECODE, "d0");
    say(&w, D0, (struct msg){.kind = MSG_HEARTBEAT, .heartbeat = {.load = {.slow_callbacks = 19}}});
    say(&w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {2, QUERY_STATUS, ""}});
    m = expect(&w, CLIENT, MSG_ANSWER);
    assert_non_null(strstr(m->answer.text, "\"slow_callbacks\":19"));
    world_close(&w);
}

static void drains_that_wait_are_bounded(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    submit(&w, 4); /* so that the router cannot leave at once */
    uint32_t asked = 0;
    while (!was_sent(&w, CLIENT, MSG_ANSWER) && asked < 1000)
        say(&w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {++asked, QUERY_DRAIN, "d1"}});
    assert_int_equal(expect(&w, CLIENT, MSG_ANSWER)->answer.error, ERR_FULL);
    assert_int_equal(asked, 65);
    world_close(&w);
}

/* ---- deadlines ---- */

static struct msg with_deadline(uint32_t ms)
{
    struct msg m = submit_of(9);
    m.submit.deadline_ms = ms;
    return m;
}

/* In each waiting state of an accepted request its deadline ends it, and both nodes hear of it. */
static void a_deadline_ends_a_request_in_every_state(void **state)
{
    (void)state;
    enum { QUEUED, RESERVING, PREFILLING, DECODING, STATES };
    for (int s = QUEUED; s < STATES; s++) {
        struct world w;
        struct job_key key;
        world_open(&w, NULL);
        if (s != QUEUED) world_join(&w);
        say(&w, CLIENT, with_deadline(700));
        if (s >= PREFILLING) key = reserve(&w, D0);
        if (s == DECODING) tell_tokens(&w, D0, key, 0, 2);
        assert_true(w.wake <= w.now + 700 * NS_PER_MS);
        w.now += 699 * NS_PER_MS;
        router_core_on_timer(w.core, w.now);
        assert_false(was_sent(&w, CLIENT, MSG_DONE));
        w.now += NS_PER_MS;
        router_core_on_timer(w.core, w.now);
        const struct msg *done = expect(&w, CLIENT, MSG_DONE);
        assert_int_equal(done->done.error, ERR_TIMEOUT);
        assert_non_null(strstr(done->done.reason, "deadline"));
        w.read = 0;
        if (s != QUEUED) expect(&w, D0, MSG_CANCEL);
        w.read = 0;
        if (s >= PREFILLING) expect(&w, P0, MSG_CANCEL);
        router_core_audit(w.core);
        world_close(&w);
    }
}

static void a_prompt_that_is_not_tokenized_in_time_is_refused(void **state)
{
    (void)state;
    for (uint32_t deadline_ms = 0; deadline_ms <= 500; deadline_ms += 500) {
        struct world w;
        static int
            some_tokenizer; /* it is only asked whether there is one; the rig answers for it */
        struct router_config config = ROUTER_CONFIG_DEFAULT;
        config.tokenizer = (const struct tokenizer *)&some_tokenizer;
        config.session.dead_ns = 1000 * NS_PER_S;
        world_open(&w, &config);
        struct msg m = with_deadline(deadline_ms);
        m.submit.tokens = NULL;
        m.submit.tokens_count = 0;
        m.submit.text = "once";
        m.submit.text_bytes = 4;
        say(&w, CLIENT, m);
        assert_false(id128_is_none(w.tokenizing));
        w.now += deadline_ms ? deadline_ms * NS_PER_MS : config.queue_timeout_ns;
        router_core_on_timer(w.core, w.now);
        assert_int_equal(expect(&w, CLIENT, MSG_REJECTED)->rejected.error, ERR_TIMEOUT);
        router_core_on_tokens(w.core, w.now, w.tokenizing, prompt, 4, OK, NULL); /* too late */
        assert_false(was_sent(&w, CLIENT, MSG_ACCEPTED));
        struct router_counts c;
        router_core_counts(w.core, &c);
        assert_int_equal(c.requests_live, 0);
        router_core_audit(w.core);
        world_close(&w);
    }
}

static void a_node_that_does_not_answer_a_reservation_is_not_waited_for(void **state)
{
    (void)state;
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.session.dead_ns = 1000 * NS_PER_S;
    world_open_joined(&w, &config);
    submit(&w, 4);
    struct job_key key = expect(&w, D0, MSG_RESERVE)->reserve.job.key;
    w.now += config.reserve_timeout_ns;
    router_core_on_timer(w.core, w.now);
    size_t mark = w.read;
    assert_true(job_key_equal(expect(&w, D0, MSG_CANCEL)->cancel.key, key));
    w.read = mark;
    uint32_t again = 0;
    for (size_t i = mark; i < w.sent_count; i++)
        again += w.sent[i].m.kind == MSG_RESERVE && w.sent[i].m.reserve.job.key.attempt == 1;
    assert_int_equal(again, 1);
    world_close(&w);
}

/* Heartbeats come, of this choice nothing: while its prompt is computed, or between two of its tokens. Each
 * word of it gives it the time anew. */
static void nodes_that_are_silent_about_a_choice_are_not_waited_for(void **state)
{
    (void)state;
    for (uint32_t told = 0; told <= 2; told++) {
        struct world w;
        struct router_config config = ROUTER_CONFIG_DEFAULT;
        config.session.dead_ns = 10000 * NS_PER_S;
        world_open_joined(&w, &config);
        submit(&w, 4);
        struct job_key key = reserve(&w, D0);
        for (uint32_t i = 0; i < told; i++) {
            w.now += config.stall_timeout_ns / 2;
            router_core_on_timer(w.core, w.now);
            tell_tokens(&w, D0, key, i, i + 1);
        }
        w.now += config.stall_timeout_ns - 1;
        router_core_on_timer(w.core, w.now);
        assert_false(was_sent(&w, D0, MSG_CANCEL));
        w.now++;
        router_core_on_timer(w.core, w.now);
        assert_true(job_key_equal(expect(&w, D0, MSG_CANCEL)->cancel.key, key));
        uint32_t again = 0;
        for (size_t i = 0; i < w.sent_count; i++)
            again += w.sent[i].m.kind == MSG_RESERVE && w.sent[i].m.reserve.job.key.attempt == 1 &&
                     w.sent[i].m.reserve.job.forwarded_count == told;
        assert_int_equal(again, 1);
        world_close(&w);
    }
}

/* ---- memory ---- */

static uint32_t sent_kind(const struct world *w, uint32_t peer, enum msg_kind kind)
{
    uint32_t count = 0;
    for (size_t i = 0; i < w->sent_count; i++)
        count += w->sent[i].peer.v == peer && w->sent[i].m.kind == kind;
    return count;
}

/* A whole life, said without looking at the answers: nodes join, a request runs and is explained. */
static void a_life(struct world *w)
{
    struct job_key key = {0};
    hello(w, P0, ROLE_PREFILL, "p0");
    hello(w, D0, ROLE_DECODE, "d0");
    say(w, CLIENT, submit_of(4));
    for (size_t i = 0; i < w->sent_count; i++)
        if (w->sent[i].m.kind == MSG_RESERVE) key = w->sent[i].m.reserve.job.key;
    say(w, D0, (struct msg){.kind = MSG_RESERVED, .reserved = {key, {9, 1}, 16}});
    tell_first(w, P0, key, 0);
    tell_tokens(w, D0, key, 0, 2);
    tell_prefilled(w, P0, key);
    tell_tokens(w, D0, key, 2, 4);
    tell_finished(w, D0, key, 4);
    say(w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {1, QUERY_STATUS, ""}});
    say(w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {2, QUERY_DRAIN, "d0"}});
    hello(w, D1, ROLE_DECODE, "d1");
    hello(w, 6, ROLE_CLIENT, "another");
}

/* Whatever was accepted ends, at the latest with its time in the queue. */
static void wait_for_the_end(struct world *w)
{
    struct router_counts c;
    router_core_counts(w->core, &c);
    for (int i = 0; i < 400 && c.requests_live > 0; i++) {
        w->now += NS_PER_S;
        router_core_on_timer(w->core, w->now);
        router_core_audit(w->core);
        router_core_counts(w->core, &c);
    }
    assert_int_equal(c.requests_live, 0);
}

static void every_failing_allocation_is_an_answer_and_ends_nothing_else(void **state)
{
    (void)state;
    uint64_t n = 0;
    bool failed = true;
    uint32_t done = 0, rejected = 0;
    while (failed) {
        struct world w;
        struct router_config config = ROUTER_CONFIG_DEFAULT;
        config.session.dead_ns = 1000 * NS_PER_S;
        world_open(&w, &config);
        uint64_t before = mem_count();
        mem_fail_at(++n);
        a_life(&w);
        failed = mem_count() - before >= n;
        mem_fail_at(0);
        wait_for_the_end(&w);
        uint32_t accepted = sent_kind(&w, CLIENT, MSG_ACCEPTED);
        assert_int_equal(accepted + sent_kind(&w, CLIENT, MSG_REJECTED), 1);
        assert_int_equal(accepted, sent_kind(&w, CLIENT, MSG_DONE));
        done += accepted;
        rejected += !accepted;
        world_close(&w);
    }
    assert_true(n > 20 && done > 0 && rejected > 0);
}

static void a_router_that_finds_no_memory_does_not_begin(void **state)
{
    (void)state;
    struct router_core *core = NULL;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.name = "r0";
    config.lifeline_address = "";
    enum err e = ERR_MEMORY;
    for (uint64_t n = 1; e != OK; n++) {
        mem_fail_at(n);
        e = router_core_new(&core, &config, &(struct router_out){0});
        mem_fail_at(0);
        assert_true(e == OK || e == ERR_MEMORY);
        assert_true(n < 100);
    }
    router_core_free(core);
}

/* What the router itself allocates for a token of a running stream, once the stream is warm: nothing. */
static void a_token_allocates_nothing(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = world_open_prefilling(&w, 400);
    tell_tokens(&w, D0, key, 0, 1);
    uint64_t before = mem_count();
    for (uint32_t i = 1; i < 300; i++)
        tell_tokens(&w, D0, key, i, i + 1);
    assert_int_equal(mem_count() - before, 0);
    world_close(&w);
}

/* Three of six tokens are told, then all nodes die: what is left waits for others. */
static struct id128 lose_all_in_the_middle(struct world *w, const struct router_config *config)
{
    world_open_joined(w, config);
    struct id128 id = submit(w, 6);
    struct job_key key = reserve(w, D0);
    tell_first(w, P0, key, 0);
    tell_tokens(w, D0, key, 0, 3);
    lose(w, D0);
    lose(w, D1);
    lose(w, P0);
    return id;
}

/* D1 begins, alone, and tells the rest. */
static const struct msg *finish_at(struct world *w, uint32_t d)
{
    struct job_key key = expect(w, d, MSG_RESERVE)->reserve.job.key;
    say(w, d, (struct msg){.kind = MSG_RESERVED, .reserved = {key, {9, 9}, 0}});
    tell_tokens(w, d, key, 3, 6);
    tell_finished(w, d, key, 6);
    return expect(w, CLIENT, MSG_DONE);
}

static void a_stream_goes_on_only_with_its_own_model_and_numerics(void **state)
{
    (void)state;
    static const struct {
        void (*hello)(struct world *, uint32_t, enum role, const char *);
        const char *reason; /* NULL: it goes on */
        bool any_numerics, inexact;
    } row[] = {
        {hello, NULL, false, false},
        {hello, NULL, true, false},
        {hello_other_model, "another model", false, false},
        {hello_other_model, "another model", true, false},
        {hello_other_numerics, "other numerics", false, false},
        {hello_other_numerics, NULL, true, true},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct world w;
        struct router_config config = ROUTER_CONFIG_DEFAULT;
        config.exact = !row[i].any_numerics;
        lose_all_in_the_middle(&w, &config);
        w.envelope[6] = (struct envelope){.from = 600};
        row[i].hello(&w, 6, ROLE_DECODE, "d2");
        const struct msg *m = row[i].reason ? expect(&w, CLIENT, MSG_DONE) : finish_at(&w, 6);
        assert_int_equal(m->done.finish, row[i].reason ? FINISH_ERROR : FINISH_LENGTH);
        if (row[i].reason) assert_non_null(strstr(m->done.reason, row[i].reason));
        assert_int_equal(m->done.inexact, row[i].inexact);
        world_close(&w);
    }
}

/* The second node of other numerics is let in by --no-exact only; from then on every reply says so. */
static void replies_say_that_numerics_were_mixed(void **state)
{
    (void)state;
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    world_open_joined(&w, &config);
    hello_other_numerics(&w, P1, ROLE_DECODE, "d2");
    assert_non_null(strstr(expect(&w, P1, MSG_REFUSE)->refuse.reason, "--no-exact"));
    world_close(&w);
    config.exact = false;
    world_open_joined(&w, &config);
    for (int mixed = 0; mixed < 2; mixed++) {
        if (mixed) hello_other_numerics(&w, P1, ROLE_DECODE, "d2");
        submit(&w, 3);
        struct job_key key = reserve(&w, D0);
        tell_tokens(&w, D0, key, 0, 3);
        tell_finished(&w, D0, key, 3);
        assert_int_equal(expect(&w, CLIENT, MSG_DONE)->done.inexact, mixed);
    }
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_goes_on_only_with_its_own_model_and_numerics),
        cmocka_unit_test(replies_say_that_numerics_were_mixed),
        cmocka_unit_test(a_node_hangs_when_it_makes_no_progress_for_twenty_of_its_steps),
        cmocka_unit_test(an_idle_node_and_one_that_makes_progress_do_not_hang),
        cmocka_unit_test(whoever_was_alone_on_two_dying_nodes_is_quarantined),
        cmocka_unit_test(nodes_that_had_nothing_of_it_to_run_do_not_count),
        cmocka_unit_test(preemptions_do_not_count),
        cmocka_unit_test(what_nodes_cannot_do_is_said_when_they_come),
        cmocka_unit_test(nodes_that_do_not_fit_are_refused_with_the_reason),
        cmocka_unit_test(while_too_many_wait_to_be_tried_again_new_ones_are_refused),
        cmocka_unit_test(retries_go_first_by_age),
        cmocka_unit_test(a_malformed_request_is_answered),
        cmocka_unit_test(status_shows_slow_callbacks_and_malformed_messages),
        cmocka_unit_test(drains_that_wait_are_bounded),
        cmocka_unit_test(a_deadline_ends_a_request_in_every_state),
        cmocka_unit_test(a_prompt_that_is_not_tokenized_in_time_is_refused),
        cmocka_unit_test(a_node_that_does_not_answer_a_reservation_is_not_waited_for),
        cmocka_unit_test(nodes_that_are_silent_about_a_choice_are_not_waited_for),
        cmocka_unit_test(every_failing_allocation_is_an_answer_and_ends_nothing_else),
        cmocka_unit_test(a_router_that_finds_no_memory_does_not_begin),
        cmocka_unit_test(a_token_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
