/* What the router tells of itself: pairs and their rates, memory, links, and what requests wait for. */
#include "tests/unit/router_rig.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_faster_pair_is_preferred_once_both_were_tried),
        cmocka_unit_test(rates_go_with_the_node_that_they_are_of),
        cmocka_unit_test(status_and_explain_are_json),
        cmocka_unit_test(status_tells_memory_and_what_pressure_cost),
        cmocka_unit_test(status_tells_how_long_the_queue_waited_and_for_what),
        cmocka_unit_test(links_are_shown_for_each_pair_that_has_them),
        cmocka_unit_test(a_queued_request_says_what_it_waits_for),
        cmocka_unit_test(the_queues_time_out_says_what_was_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
