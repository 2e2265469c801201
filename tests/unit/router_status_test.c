/* What the router tells of itself: pairs and their rates, memory, links, and what requests wait for. */
#include "tests/unit/router_rig.h"

#include <jansson.h>
#include <stdio.h>

static const char *status_of(struct world *w)
{
    say(w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {1, QUERY_STATUS, ""}});
    return expect(w, CLIENT, MSG_ANSWER)->answer.text;
}

/* A request through P0 and this D, which was a MiB that it waited for so long. */
static void pass_through(struct world *w, uint32_t d, uint32_t tail_us)
{
    submit(w, 2);
    struct job_key key = reserve(w, d);
    tell_first(w, P0, key, 0);
    say(w, P0,
        (struct msg){.kind = MSG_PREFILLED,
                     .prefilled = {.key = key,
                                   .transfer_tail_us = tail_us,
                                   .transfer_bytes = 1 << 20,
                                   .link = "tcp"}});
    tell_tokens(w, d, key, 0, 2);
    tell_finished(w, d, key, 2);
}

static void the_faster_pair_is_preferred_once_both_were_tried(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    pass_through(&w, D0, 10000);
    pass_through(&w, D1, 1000); /* never tried before */
    pass_through(&w, D1, 1000);
    pass_through(&w, D1, 1000);
    assert_non_null(strstr(status_of(&w), "\"rates\":{\"d0\":104857600,\"d1\":1048576000}"));
    pass_through(&w, D1, 200000);
    pass_through(&w, D0, 10000); /* d1 has become the slower one */
    world_close(&w);
}

static void rates_go_with_the_node_that_they_are_of(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    pass_through(&w, D0, 10000);
    pass_through(&w, D1, 1000);
    say(&w, D0, (struct msg){.kind = MSG_BYE});
    assert_non_null(strstr(status_of(&w), "\"rates\":{\"d1\":1048576000}"));
    pass_through(&w, D1, 1000);
    world_close(&w);
}

static void expect_virtual(struct world *w, const char *tokens)
{
    char text[64];
    snprintf(text, sizeof text, "\"virtual_tokens\":%s.0", tokens);
    const char *status = status_of(w);
    if (!strstr(status, text)) fail_msg("no %s in %s", text, status);
}

/* A prompt of 20 tokens, of which 16 turn out to be cached, and four that are generated. */
static void computed_tokens_count_one_generated_ones_two_and_cached_ones_nothing(void **state)
{
    (void)state;
    struct world w;
    struct msg m = submit_of(4);
    m.submit.tenant = "acme";
    world_open_joined(&w, NULL);
    say(&w, CLIENT, m);
    struct job_key key = reserve(&w, D0);
    expect_virtual(&w, "20");
    tell_first(&w, P0, key, 0);
    expect_virtual(&w, "6");
    tell_tokens(&w, D0, key, 0, 4);
    expect_virtual(&w, "12");
    tell_prefilled(&w, P0, key);
    tell_finished(&w, D0, key, 4);
    expect_virtual(&w, "12");
    world_close(&w);
}

static void status_and_explain_are_json(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    struct id128 id = submit(&w, 2);
    char text[ID128_TEXT];
    id128_print(id, text);
    assert_non_null(strstr(status_of(&w), "\"name\":\"d1\""));
    say(&w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {2, QUERY_EXPLAIN, text}});
    assert_non_null(strstr(expect(&w, CLIENT, MSG_ANSWER)->answer.text, "\"event\":\"reserve\""));
    say(&w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {3, QUERY_EXPLAIN, "zz"}});
    assert_int_equal(expect(&w, CLIENT, MSG_ANSWER)->answer.error, ERR_INVALID);
    world_close(&w);
}

static void told(struct world *w, const char *address, const char *state, uint64_t failed_ms,
                 const char *reason)
{
    say(w, P0,
        (struct msg){.kind = MSG_LINK,
                     .link = {.address = address,
                              .state = state,
                              .tickets = 1,
                              .bytes = 77,
                              .rate = 5000000000,
                              .failed_ms = failed_ms,
                              .reason = reason}});
}

static void status_tells_memory_and_what_pressure_cost(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    say(&w, D0,
        (struct msg){.kind = MSG_HEARTBEAT,
                     .heartbeat.load = {.held_tokens = 1111,
                                        .wasted_slots = 22,
                                        .contiguous_slots_peak = 3333,
                                        .preemptions = 44,
                                        .returned_computed_tokens = 555}});
    const char *text = status_of(&w);
    assert_non_null(strstr(text, "\"held_tokens\":1111,\"wasted_slots\":22"));
    assert_non_null(strstr(text, "\"contiguous_slots_peak\":3333"));
    assert_non_null(strstr(text, "\"preemptions\":44"));
    assert_non_null(strstr(text, "\"returned_computed_tokens\":555"));
    world_close(&w);
}

static void status_tells_how_long_the_queue_waited_and_for_what(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    say(&w, CLIENT, submit_of(4));
    w.now += 2 * NS_PER_S;
    const char *text = status_of(&w);
    assert_non_null(strstr(text, "\"oldest_s\":2.0,\"picked\":0"));
    assert_non_null(strstr(text, "\"nodes\":2.0,\"prefill\":0.0,\"decode\":0.0"));
    hello(&w, D0, ROLE_DECODE, "d0");
    w.now += NS_PER_S;
    hello(&w, P0, ROLE_PREFILL, "p0");
    text = status_of(&w);
    assert_non_null(strstr(text, "\"oldest_s\":0.0,\"picked\":1,\"waited_s\":"));
    w.now += NS_PER_S; /* nothing waits any more */
    assert_null(strstr(status_of(&w), "\"nodes\":4.0"));
    world_close(&w);
}

static void links_are_shown_for_each_pair_that_has_them(void **state)
{
    (void)state;
    struct world w;
    char address[32];
    world_open(&w, NULL);
    hello(&w, P0, ROLE_PREFILL, "p0");
    hello(&w, D0, ROLE_DECODE, "d0");
    assert_non_null(strstr(status_of(&w), "\"paths\":[]"));
    w.now += 10 * NS_PER_S;
    told(&w, "tcp:127.0.0.1:1", "making", 0, "");
    told(&w, "tcp:127.0.0.1:1", "broken", 2000, "the peer is gone");
    for (uint32_t i = 0; i < 1000; i++) { /* of nobody here: kept, within bounds, and not shown */
        snprintf(address, sizeof address, "tcp:9.9.9.9:%u", i);
        told(&w, address, "ready", 0, "");
    }
    assert_non_null(strstr(status_of(&w), "\"paths\":[]")); /* its row has made way */
    told(&w, "tcp:127.0.0.1:1", "broken", 2000, "the peer is gone");
    const char *text = status_of(&w);
    assert_non_null(strstr(text, "\"from\":\"p0\",\"to\":\"d0\""));
    assert_non_null(strstr(text, "\"state\":\"broken\",\"transfers\":1,\"bytes\":77,"
                                 "\"rate\":5000000000,\"failed_s\":2.0,"
                                 "\"reason\":\"the peer is gone\""));
    assert_null(strstr(text, "9.9.9.9"));
    world_close(&w);
}

static void a_queued_request_says_what_it_waits_for(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    hello(&w, P0, ROLE_PREFILL, "p0");
    char id[ID128_TEXT];
    id128_print(submit(&w, 4), id);
    const struct msg ask_explain = {.kind = MSG_QUERY, .query = {2, QUERY_EXPLAIN, id}};
    for (int ready = 0; ready < 2; ready++) {
        const char *said = ready ? "\"waiting\":\"\"" : "\"waiting\":\"no decode node is ready\"";
        if (ready) hello(&w, D0, ROLE_DECODE, "d0");
        assert_non_null(strstr(status_of(&w), said));
        say(&w, CLIENT, ask_explain);
        assert_non_null(strstr(expect(&w, CLIENT, MSG_ANSWER)->answer.text, said));
    }
    world_close(&w);
}

static void the_queues_time_out_says_what_was_waited_for(void **state)
{
    (void)state;
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.session.dead_ns = 1000 * NS_PER_S;
    world_open(&w, &config);
    hello(&w, P0, ROLE_PREFILL, "p0");
    submit(&w, 4);
    w.now += config.queue_timeout_ns;
    router_core_on_timer(w.core, w.now);
    const struct msg *done = expect(&w, CLIENT, MSG_DONE);
    assert_int_equal(done->done.error, ERR_PEER);
    assert_non_null(strstr(done->done.reason, "no decode node is ready"));
    world_close(&w);
}

/* ---- of many nodes, which is made in pieces ---- */

enum { MANY = 256, NODES_IN_A_TURN = 16 };

static void open_many(struct world *w)
{
    char name[16];
    world_open(w, NULL);
    for (uint32_t i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "n%u", i);
        w->sent_count = w->read = 0;
        arena_reset(&w->arena);
        hello(w, P0 + i, i % 2 ? ROLE_DECODE : ROLE_PREFILL, name);
    }
    w->sent_count = w->read = 0;
}

static void ask(struct world *w, uint32_t ref)
{
    say(w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {ref, QUERY_STATUS, ""}});
}

static void turn(struct world *w)
{
    assert_true(w->wake <= w->now); /* it goes on at once */
    router_core_on_timer(w->core, w->now);
}

static void the_status_of_many_nodes_leaves_the_loop_to_others(void **state)
{
    (void)state;
    struct world w;
    open_many(&w);
    ask(&w, 1);
    uint32_t turns = 1;
    for (; !was_sent(&w, CLIENT, MSG_ANSWER); turns++) {
        if (turns == 2) lose(&w, P0 + MANY - 1); /* not told yet, and not any more */
        if (turns == 3) lose(&w, P0);            /* told of already, but for its links */
        if (turns == 4) hello(&w, P0 + MANY, ROLE_PREFILL, "late");
        if (turns == 5) submit(&w, 2);
        turn(&w);
    }
    assert_true(turns >= MANY / NODES_IN_A_TURN);
    const struct msg *m = expect(&w, CLIENT, MSG_ANSWER);
    json_t *status = json_loads(m->answer.text, 0, NULL), *n;
    json_t *nodes = json_object_get(status, "nodes");
    size_t i;
    assert_int_equal(json_array_size(nodes), MANY - 1);
    json_array_foreach(nodes, i, n)
    {
        char name[32];
        snprintf(name, sizeof name, "n%zu", i);
        assert_string_equal(json_string_value(json_object_get(n, "name")), name);
    }
    static const char *const keys[] = {"router", "nodes", "links", "paths", "tenants", "pins"};
    for (i = 0; i < sizeof keys / sizeof *keys; i++)
        assert_non_null(json_object_get(status, keys[i]));
    json_decref(status);
    world_close(&w);
}

static void many_who_ask_are_answered_in_turn_and_bounded(void **state)
{
    (void)state;
    enum { ASKED = 64 };
    struct world w;
    open_many(&w);
    for (uint32_t i = 1; i <= ASKED; i++)
        ask(&w, i);
    assert_false(was_sent(&w, CLIENT, MSG_ANSWER));
    ask(&w, ASKED + 1);
    const struct msg *m = expect(&w, CLIENT, MSG_ANSWER);
    assert_int_equal(m->answer.error, ERR_FULL);
    assert_int_equal(m->answer.ref, ASKED + 1);
    for (uint32_t ref = 1; ref <= 2; ref++) {
        while (!was_sent(&w, CLIENT, MSG_ANSWER))
            turn(&w);
        assert_int_equal(expect(&w, CLIENT, MSG_ANSWER)->answer.ref, ref);
    }
    lose(&w, CLIENT); /* nobody waits any more */
    w.sent_count = w.read = 0;
    for (uint32_t i = 0; i < MANY; i++)
        router_core_on_timer(w.core, w.now);
    assert_int_equal(w.sent_count, 0);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_faster_pair_is_preferred_once_both_were_tried),
        cmocka_unit_test(rates_go_with_the_node_that_they_are_of),
        cmocka_unit_test(computed_tokens_count_one_generated_ones_two_and_cached_ones_nothing),
        cmocka_unit_test(status_and_explain_are_json),
        cmocka_unit_test(status_tells_memory_and_what_pressure_cost),
        cmocka_unit_test(status_tells_how_long_the_queue_waited_and_for_what),
        cmocka_unit_test(links_are_shown_for_each_pair_that_has_them),
        cmocka_unit_test(a_queued_request_says_what_it_waits_for),
        cmocka_unit_test(the_queues_time_out_says_what_was_waited_for),
        cmocka_unit_test(the_status_of_many_nodes_leaves_the_loop_to_others),
        cmocka_unit_test(many_who_ask_are_answered_in_turn_and_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
