/* What the router's page of metrics and its readiness say. */
#include "tests/unit/exposition.h"
#include "tests/unit/router_rig.h"

#include <stdio.h>
#include <string.h>

static void expect_shown(struct world *w, const char *series, double wanted)
{
    struct buf page = {0};
    assert_ok(router_core_metrics(w->core, w->now, &page));
    struct exposition *x = exposition_read(page.data);
    double value = exposition_value(x, series);
    if (fabs(value - wanted) > 1e-9) fail_msg("%s is %g instead of %g", series, value, wanted);
    exposition_free(x);
    buf_fini(&page);
}

static void the_oldest_waiting_request_gives_the_queue_its_age(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    expect_shown(&w, "tandem_router_queue_seconds", 0);
    struct msg urgent = submit_of(4);
    urgent.submit.priority = -5; /* served first, though not the oldest */
    submit(&w, 4);
    w.now += 2 * NS_PER_S;
    say(&w, CLIENT, urgent);
    w.now += NS_PER_S;
    expect_shown(&w, "tandem_router_queue_seconds", 3);
    expect_shown(&w, "tandem_router_waiting_requests", 2);
    expect_shown(&w, "tandem_router_waiting_prompt_tokens", 40);
    expect_shown(&w, "tandem_router_live_requests", 2);
    expect_shown(&w, "tandem_router_queue_time_seconds_count", 0);
    world_join(&w);
    expect_shown(&w, "tandem_router_queue_seconds", 0);
    expect_shown(&w, "tandem_router_waiting_requests", 0);
    expect_shown(&w, "tandem_router_queue_time_seconds_count", 2);
    expect_shown(&w, "tandem_router_queue_time_seconds_sum", 4);
    expect_shown(&w, "tandem_router_queue_time_seconds_bucket{le=\"1\"}", 1);
    world_close(&w);
}

static void a_retry_waits_from_when_it_is_queued_again(void **state)
{
    (void)state;
    struct world w;
    world_open_prefilling(&w, 4);
    w.now += 2 * NS_PER_S;
    lose(&w, P0);
    lose(&w, D0);
    lose(&w, D1);
    w.now += NS_PER_S;
    expect_shown(&w, "tandem_router_queue_seconds", 1);
    expect_shown(&w, "tandem_router_node_deaths_total", 3);
    world_close(&w);
}

static void counts_and_times_follow_a_request(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = world_open_prefilling(&w, 4);
    w.now += 5 * NS_PER_MS;
    tell_first(&w, P0, key, 0);
    w.now += 5 * NS_PER_MS;
    tell_tokens(&w, D0, key, 0, 4);
    tell_prefilled(&w, P0, key);
    tell_finished(&w, D0, key, 4);
    expect_shown(&w, "tandem_router_requests_accepted_total", 1);
    expect_shown(&w, "tandem_router_samples_ended_total{outcome=\"done\"}", 1);
    expect_shown(&w, "tandem_router_samples_ended_total{outcome=\"failed\"}", 0);
    expect_shown(&w, "tandem_router_prompt_tokens_total", 20);
    expect_shown(&w, "tandem_router_generated_tokens_total", 4);
    expect_shown(&w, "tandem_router_duplicate_tokens_total", 1);
    expect_shown(&w, "tandem_router_time_to_first_token_seconds_count", 1);
    expect_shown(&w, "tandem_router_time_to_first_token_seconds_sum", 0.005);
    expect_shown(&w, "tandem_router_request_seconds_sum", 0.01);
    world_close(&w);
}

/* A stream of four tokens of this tenant from its beginning to its end. */
static void stream_of(struct world *w, const char *tenant)
{
    struct msg m = submit_of(4);
    m.submit.tenant = tenant;
    say(w, CLIENT, m);
    struct job_key key = reserve(w, D0);
    w->now += 5 * NS_PER_MS;
    tell_first(w, P0, key, 0);
    tell_tokens(w, D0, key, 0, 4);
    tell_prefilled(w, P0, key);
    tell_finished(w, D0, key, 4);
}

static void tenants_with_a_weight_have_series_of_their_own(void **state)
{
    (void)state;
    struct world w;
    struct router_config changes = ROUTER_CONFIG_DEFAULT;
    const struct tenant_weight weights[] = {{"a\"b", 2}, {"others", 1}, {"a\"b", 3}};
    changes.weights_count = 3;
    memcpy(changes.weights, weights, sizeof weights);
    world_open_joined(&w, &changes);
    stream_of(&w, "a\"b");
    stream_of(&w, "a\"b");
    stream_of(&w, "x");
    stream_of(&w, "y");
    stream_of(&w, "z");
    stream_of(&w, NULL);
#define GENERATED "tandem_router_tenant_generated_tokens_total"
    expect_shown(&w, GENERATED "{who=\"named\",tenant=\"a\\\"b\"}", 8);
    expect_shown(&w, GENERATED "{who=\"named\",tenant=\"others\"}", 0);
    expect_shown(&w, GENERATED "{who=\"others\",tenant=\"\"}", 12);
    expect_shown(&w, GENERATED "{who=\"unnamed\",tenant=\"\"}", 4);
    expect_shown(&w, "tandem_router_tenant_prompt_tokens_total{who=\"others\",tenant=\"\"}", 60);
    expect_shown(&w,
                 "tandem_router_tenant_time_to_first_token_seconds_count"
                 "{who=\"unnamed\",tenant=\"\"}",
                 1);
    struct msg m = submit_of(4);
    m.submit.tenant = "new";
    say(&w, CLIENT, m);
    expect_shown(&w, "tandem_router_tenant_running_samples{who=\"others\",tenant=\"\"}", 1);
    expect_shown(&w, "tandem_router_tenant_waiting_samples{who=\"others\",tenant=\"\"}", 0);
    world_close(&w);
}

static void pins_that_nodes_lack_are_counted(void **state)
{
    (void)state;
    struct world w;
    static uint32_t ids[40];
    world_open_joined(&w, NULL);
    expect_shown(&w, "tandem_router_pins", 0);
    say(&w, CLIENT,
        (struct msg){
            .kind = MSG_PIN,
            .pin = {.ref = 1, .name = "sys", .tenant = "", .tokens = ids, .tokens_count = 40}});
    expect_shown(&w, "tandem_router_pins", 1);
    expect_shown(&w, "tandem_router_pins_lacking{role=\"decode\"}", 2);
    say(&w, D0,
        (struct msg){.kind = MSG_PINNED, .pinned = {.name = "sys", .tenant = "", .blocks = 2}});
    expect_shown(&w, "tandem_router_pins_lacking{role=\"prefill\"}", 1);
    expect_shown(&w, "tandem_router_pins_lacking{role=\"decode\"}", 1);
    world_close(&w);
}

static void pools_are_summed_from_heartbeats(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    struct msg beat = {.kind = MSG_HEARTBEAT,
                       .heartbeat.load = {.blocks_total = 100,
                                          .blocks_free = 40,
                                          .blocks_cached = 20,
                                          .blocks_active = 25,
                                          .blocks_reserved = 10,
                                          .blocks_transfer = 5,
                                          .running = 3,
                                          .waiting = 2}};
    say(&w, D0, beat);
    beat.heartbeat.draining = true;
    beat.heartbeat.load = (struct node_load){.blocks_total = 100, .blocks_free = 100};
    say(&w, D1, beat);
    expect_shown(&w, "tandem_router_nodes{role=\"prefill\",state=\"up\"}", 1);
    expect_shown(&w, "tandem_router_nodes{role=\"decode\",state=\"up\"}", 1);
    expect_shown(&w, "tandem_router_nodes{role=\"decode\",state=\"draining\"}", 1);
    expect_shown(&w, "tandem_router_pool_kv_blocks_capacity{role=\"decode\"}", 200);
    expect_shown(&w, "tandem_router_pool_kv_use_ratio{role=\"decode\"}", 0.2);
    expect_shown(&w, "tandem_router_pool_kv_use_ratio{role=\"prefill\"}", 0);
    expect_shown(&w, "tandem_router_pool_running_sequences{role=\"decode\"}", 3);
    expect_shown(&w, "tandem_router_pool_waiting_sequences{role=\"decode\"}", 2);
    world_close(&w);
}

/* They are no samples: what is refused is neither accepted nor failed. */
static void what_is_refused_at_the_door_is_counted_by_its_reason(void **state)
{
    (void)state;
    static const struct {
        const char *reason;
        bool malformed;
        uint32_t choices; /* 0: not allowed */
        enum err error;
    } cases[] = {
        {"invalid", false, 0, ERR_INVALID},
        {"invalid", true, 1, ERR_FORMAT},
        {"overload", false, 1, ERR_FULL},
        {"other", true, 1, ERR_MEMORY},
    };
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.requests_max = 1;
    world_open(&w, &config);
    uint32_t counts[3] = {0};
    static const char *const names[3] = {"overload", "invalid", "other"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct msg m = submit_of(2);
        m.submit.choices = cases[i].choices;
        if (cases[i].error == ERR_FULL) submit(&w, 2); /* the one that there may be */
        if (cases[i].malformed)
            router_core_on_malformed(w.core, (struct peer){CLIENT}, &m, cases[i].error, "x");
        else
            say(&w, CLIENT, m);
        assert_int_equal(expect(&w, CLIENT, MSG_REJECTED)->rejected.error, cases[i].error);
        for (int n = 0; n < 3; n++) {
            char series[96];
            counts[n] += strcmp(names[n], cases[i].reason) == 0;
            snprintf(series, sizeof series, "tandem_router_requests_rejected_total{reason=\"%s\"}",
                     names[n]);
            expect_shown(&w, series, counts[n]);
        }
    }
    expect_shown(&w, "tandem_router_requests_accepted_total", 1);
    expect_shown(&w, "tandem_router_samples_ended_total{outcome=\"failed\"}", 0);
    world_close(&w);
}

static void it_is_ready_while_a_request_would_find_its_nodes(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    assert_string_equal(router_core_missing(w.core, w.now), "no decode node is ready");
    hello(&w, P0, ROLE_PREFILL, "p0");
    assert_string_equal(router_core_missing(w.core, w.now), "no decode node is ready");
    hello(&w, D0, ROLE_DECODE, "d0");
    assert_null(router_core_missing(w.core, w.now));
    lose(&w, P0); /* the decode node computes prompts too */
    assert_null(router_core_missing(w.core, w.now));
    lose(&w, D0);
    assert_non_null(router_core_missing(w.core, w.now));
    hello(&w, D1, ROLE_DECODE, "d1");
    assert_null(router_core_missing(w.core, w.now));
    expect_shown(&w, "tandem_router_draining", 0);
    router_core_drain(w.core, w.now);
    assert_string_equal(router_core_missing(w.core, w.now), "draining");
    expect_shown(&w, "tandem_router_draining", 1);
    world_close(&w);
}

static void busy_nodes_are_no_reason_not_to_be_ready(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    hello(&w, D0, ROLE_DECODE, "d0");
    struct msg full = {.kind = MSG_HEARTBEAT, .heartbeat.load = {.blocks_total = 100}};
    say(&w, D0, full);
    assert_null(router_core_missing(w.core, w.now));
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_oldest_waiting_request_gives_the_queue_its_age),
        cmocka_unit_test(a_retry_waits_from_when_it_is_queued_again),
        cmocka_unit_test(counts_and_times_follow_a_request),
        cmocka_unit_test(tenants_with_a_weight_have_series_of_their_own),
        cmocka_unit_test(pins_that_nodes_lack_are_counted),
        cmocka_unit_test(pools_are_summed_from_heartbeats),
        cmocka_unit_test(what_is_refused_at_the_door_is_counted_by_its_reason),
        cmocka_unit_test(it_is_ready_while_a_request_would_find_its_nodes),
        cmocka_unit_test(busy_nodes_are_no_reason_not_to_be_ready),
    };
    return cmocka_run_group_tests_name("router_meters", tests, NULL, NULL);
}
