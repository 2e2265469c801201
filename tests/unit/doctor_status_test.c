/* What the doctor finds in the status that a router gives, of nodes that a test plays. */
#include "tests/unit/router_rig.h"

#include <jansson.h>

#include "client/doctor.h"

/* As tandem_query_status answers. */
static json_t *status_of(struct world *w)
{
    say(w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {1, QUERY_STATUS, ""}});
    const struct msg *m = expect(w, CLIENT, MSG_ANSWER);
    json_t *status = json_loadb(m->answer.text, m->answer.text_bytes, 0, NULL);
    assert_non_null(status);
    return status;
}

/* What this rule finds between `before`, which is taken over, and now. */
static const struct finding *found(struct world *w, json_t *before, const char *rule)
{
    static struct diagnosis d;
    struct facts f;
    json_t *samples =
        json_pack("{s:[{s:o},{s:o}]}", "samples", "status", before, "status", status_of(w));
    assert_ok(facts_read(&f, samples));
    doctor_examine(&f, &d);
    facts_fini(&f);
    json_decref(samples);
    if (!rule) assert_int_equal(d.findings_count, 0);
    for (size_t i = 0; i < d.findings_count; i++)
        if (rule && strcmp(d.finding[i].rule, rule) == 0) return &d.finding[i];
    return NULL;
}

/* The node says this every 100 ms for a while. */
static void beat(struct world *w, uint32_t peer, struct msg_heartbeat h, uint32_t count)
{
    h.load.blocks_total = h.load.blocks_free = 50;
    for (uint32_t i = 0; i < count; i++) {
        w->now += 100 * NS_PER_MS;
        say(w, peer, (struct msg){.kind = MSG_HEARTBEAT, .heartbeat = h});
    }
}

static void nothing_is_found_in_an_idle_cluster(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    json_t *before = status_of(&w);
    beat(&w, D0, (struct msg_heartbeat){.load.slow_callbacks = 2}, 10);
    found(&w, before, NULL);
    world_close(&w);
}

static void a_node_that_computes_nothing_hangs(void **state)
{
    (void)state;
    struct world w;
    const struct msg_heartbeat busy = {.busy = true, .progress = 7, .load.step_us = 5000};
    world_open_joined(&w, NULL);
    beat(&w, D0, busy, 19);
    assert_null(found(&w, status_of(&w), "node-hung"));
    beat(&w, D0, busy, 2);
    assert_string_equal(found(&w, status_of(&w), "node-hung")->about, "d0");
    world_close(&w);
}

static void a_loop_that_is_often_late_is_named(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    json_t *before = status_of(&w);
    beat(&w, D1, (struct msg_heartbeat){.load.slow_callbacks = 40}, 20);
    assert_string_equal(found(&w, before, "slow-loop")->about, "d1");
    world_close(&w);
}

static void a_death_and_a_failed_request_are_told(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    json_t *before = status_of(&w);
    w.now += NS_PER_S;
    lose(&w, D1);
    assert_string_equal(found(&w, before, "requests-fail")->what, "nodes die");
    before = status_of(&w);
    struct msg m = submit_of(4);
    m.submit.deadline_ms = 1000;
    say(&w, CLIENT, m);
    w.now += 2 * NS_PER_S;
    router_core_on_timer(w.core, w.now);
    assert_string_equal(found(&w, before, "requests-fail")->what, "requests fail");
    world_close(&w);
}

static void a_cluster_without_decode_nodes_waits_for_one(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    say(&w, CLIENT, submit_of(4));
    w.now += 2 * NS_PER_S;
    assert_non_null(strstr(found(&w, status_of(&w), "no-nodes")->why, "1 requests wait"));
    world_close(&w);
}

static void told(struct world *w, const char *address, const char *state)
{
    say(w, P0,
        (struct msg){.kind = MSG_LINK,
                     .link = {.address = address, .state = state, .reason = "nobody is there"}});
}

static void a_link_that_broke_is_named_with_the_one_that_carries(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    told(&w, "tcp:127.0.0.1:1", "ready");
    assert_null(found(&w, status_of(&w), "link-fell-back"));
    told(&w, "tcp:127.0.0.1:1", "broken");
    const struct finding *f = found(&w, status_of(&w), "link-fell-back");
    assert_non_null(strstr(f->what, "no link from p0 to"));
    assert_string_equal(f->why, "nobody is there");
    world_close(&w);
}

/* d0 takes what it is sent, so the queue waits for the one prefill node. */
static void a_queue_at_the_prefill_node_is_laid_to_it(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    json_t *before = status_of(&w);
    submit(&w, 4);
    for (int i = 0; i < 4; i++) /* 20 tokens each, and the window has 64 */
        say(&w, CLIENT, submit_of(4));
    beat(&w, P0, (struct msg_heartbeat){0}, 20);
    const struct finding *f = found(&w, before, "prefill-short");
    assert_non_null(f);
    assert_non_null(strstr(f->advice, "add 1 to the 1 prefill nodes"));
    world_close(&w);
}

static void a_queue_for_blocks_is_laid_to_the_pools(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    json_t *before = status_of(&w);
    const struct msg_heartbeat full = {.load = {.blocks_total = 50, .blocks_active = 50}};
    for (uint32_t i = 0; i < 20; i++) {
        w.now += 100 * NS_PER_MS;
        for (uint32_t d = D0; d <= D1; d++)
            say(&w, d, (struct msg){.kind = MSG_HEARTBEAT, .heartbeat = full});
        if (i == 0) say(&w, CLIENT, submit_of(4));
    }
    assert_non_null(strstr(found(&w, before, "decode-short")->why, "what lacks is blocks"));
    before = status_of(&w);
    w.now += NS_PER_S;
    assert_string_equal(found(&w, before, "pool-too-small")->about, "d0");
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_found_in_an_idle_cluster),
        cmocka_unit_test(a_node_that_computes_nothing_hangs),
        cmocka_unit_test(a_loop_that_is_often_late_is_named),
        cmocka_unit_test(a_death_and_a_failed_request_are_told),
        cmocka_unit_test(a_cluster_without_decode_nodes_waits_for_one),
        cmocka_unit_test(a_link_that_broke_is_named_with_the_one_that_carries),
        cmocka_unit_test(a_queue_at_the_prefill_node_is_laid_to_it),
        cmocka_unit_test(a_queue_for_blocks_is_laid_to_the_pools),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
