/* What a node's page of metrics and its readiness say. */
#include "tests/unit/exposition.h"

#include <math.h>
#include <string.h>

#include "tests/unit/node_rig.h"

static struct rig d;

static struct exposition *page_of(const struct xfer_stats *links)
{
    struct buf page = {0};
    assert_ok(node_core_metrics(d.core, links, &page));
    struct exposition *x = exposition_read(page.data);
    buf_fini(&page);
    return x;
}

static void expect_shown(const char *series, double wanted)
{
    static const struct xfer_stats links = {.sent_bytes = 11,
                                            .received_bytes = 12,
                                            .frames_refused = 13,
                                            .frames_dead = 14,
                                            .tickets_done = 15,
                                            .tickets_failed = 16,
                                            .links_open = 17,
                                            .tickets_live = 18};
    struct exposition *x = page_of(&links);
    double value = exposition_value(x, series);
    if (fabs(value - wanted) > 1e-9) fail_msg("%s is %g instead of %g", series, value, wanted);
    exposition_free(x);
}

static void blocks_of_all_states_are_the_pool(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 32});
    expect_shown("tandem_node_info{role=\"decode\"}", 1);
    expect_shown("tandem_node_kv_blocks{state=\"free\"}", 32);
    expect_shown("tandem_node_kv_use_ratio", 0);
    struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 40, 20});
    rig_reserve(&d, &job, false); /* three blocks, and one more to begin with */
    expect_shown("tandem_node_kv_blocks_capacity", 32);
    expect_shown("tandem_node_waiting_sequences", 1);
    struct exposition *x = page_of(&(struct xfer_stats){0});
    double free = exposition_value(x, "tandem_node_kv_blocks{state=\"free\"}");
    double used = exposition_value(x, "tandem_node_kv_blocks{state=\"reserved\"}");
    assert_true(used > 0 && free + used == 32);
    assert_true(fabs(exposition_value(x, "tandem_node_kv_use_ratio") - used / 32) < 1e-9);
    exposition_free(x);
    rig_cancel(&d, job.key);
    rig_run(&d);
    rig_free(&d);
}

static void steps_and_tokens_are_counted(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 32});
    struct job job = rig_job(2, &(struct rig_prompt){2, 0, 0, 40, 6});
    uint32_t tokens[RIG_STREAM_MAX];
    enum finish finish;
    uint32_t count = rig_expect(&job, d.config.context_max, tokens, &finish);
    rig_reserve(&d, &job, true);
    rig_run(&d);
    expect_shown("tandem_node_generated_tokens_total", count);
    expect_shown("tandem_node_prompt_tokens_total", 40);
    expect_shown("tandem_node_running_sequences", 0);
    expect_shown("tandem_node_step_seconds_count", (double)rig_counts(&d).steps);
    expect_shown("tandem_node_kv_use_ratio", 0); /* what is only cached is not in use */
    rig_acknowledge(&d, job.key);
    rig_free(&d);
}

static void pins_and_tenants_are_counted(void **state)
{
    (void)state;
    static uint32_t ids[40];
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 32});
    expect_shown("tandem_node_cache_tenants", 0);
    for (uint32_t i = 0; i < 2; i++) {
        struct job job = rig_job(5 + i, &(struct rig_prompt){5, 0, 0, 40 - 20 * i, 1});
        job.tenant = job.tenant_salt = 7 + i;
        memcpy(ids, job.prompt, job.prompt_count * sizeof *ids);
        rig_reserve(&d, &job, true);
        rig_run(&d);
        rig_acknowledge(&d, job.key);
    }
    expect_shown("tandem_node_cache_tenants", 2);
    expect_shown("tandem_node_cache_tenant_most_blocks", 2);
    rig_say(
        &d,
        (struct msg){
            .kind = MSG_PIN,
            .pin = {.name = "sys", .tenant = "x", .salt = 8, .tokens = ids, .tokens_count = 20}});
    expect_shown("tandem_node_pins", 1);
    expect_shown("tandem_node_pinned_blocks", 1);
    rig_free(&d);
}

static void the_link_s_figures_are_shown(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 32});
    expect_shown("tandem_node_info{role=\"prefill\"}", 1);
    expect_shown("tandem_node_kv_sent_bytes_total", 11);
    expect_shown("tandem_node_kv_received_bytes_total", 12);
    expect_shown("tandem_node_frames_refused_total", 13);
    expect_shown("tandem_node_frames_dead_total", 14);
    expect_shown("tandem_node_transfers_total{outcome=\"done\"}", 15);
    expect_shown("tandem_node_transfers_total{outcome=\"failed\"}", 16);
    expect_shown("tandem_node_links_open", 17);
    expect_shown("tandem_node_transfers_live", 18);
    rig_free(&d);
}

static void link_says(const char *address, enum xfer_link_state state, uint64_t bytes,
                      uint64_t failed_ns)
{
    struct xfer_link_row row = {.state = state, .bytes = bytes, .failed_ns = failed_ns};
    strcpy(row.address, address);
    node_core_on_link(d.core, &row);
}

static void links_are_counted_by_kind(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL});
    expect_shown("tandem_node_links_ready{link=\"shm\"}", 0);
    link_says("shm:a", XFER_LINK_READY, 100, 0);
    link_says("shm:b", XFER_LINK_READY, 10, 0);
    link_says("shm:a", XFER_LINK_READY, 150, 0);
    link_says("tcp:a", XFER_LINK_MAKING, 0, 0);
    link_says("carrier:a", XFER_LINK_READY, 7, 7);
    expect_shown("tandem_node_links_ready{link=\"shm\"}", 2);
    expect_shown("tandem_node_links_ready{link=\"tcp\"}", 0);
    expect_shown("tandem_node_link_sent_bytes_total{link=\"shm\"}", 160);
    link_says("shm:a", XFER_LINK_BROKEN, 150, 5);
    link_says("shm:a", XFER_LINK_MAKING, 150, 5);
    link_says("shm:a", XFER_LINK_BROKEN, 150, 9);
    link_says("nccl:a", XFER_LINK_BROKEN, 0, 9);
    expect_shown("tandem_node_links_ready{link=\"shm\"}", 1);
    expect_shown("tandem_node_link_failures_total{link=\"shm\"}", 2);
    expect_shown("tandem_node_link_failures_total{link=\"nccl\"}", 1);
    expect_shown("tandem_node_link_failures_total{link=\"tcp\"}", 0);
    rig_free(&d);
}

static void it_is_ready_while_a_router_knows_it_and_it_does_not_drain(void **state)
{
    (void)state;
    rig_new(&d, &(struct rig_options){.role = ROLE_DECODE, .routers_count = 2});
    assert_string_equal(node_core_missing(d.core), "no session with a router stands");
    expect_shown("tandem_node_routers", 0);
    rig_join(&d, 1);
    assert_null(node_core_missing(d.core));
    expect_shown("tandem_node_routers", 1);
    rig_lose(&d, 1);
    assert_non_null(node_core_missing(d.core));
    rig_join(&d, 0);
    assert_null(node_core_missing(d.core));
    expect_shown("tandem_node_draining", 0);
    node_core_drain(d.core, d.now_ns);
    assert_string_equal(node_core_missing(d.core), "draining");
    expect_shown("tandem_node_draining", 1);
    rig_free(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_of_all_states_are_the_pool),
        cmocka_unit_test(steps_and_tokens_are_counted),
        cmocka_unit_test(pins_and_tenants_are_counted),
        cmocka_unit_test(the_link_s_figures_are_shown),
        cmocka_unit_test(links_are_counted_by_kind),
        cmocka_unit_test(it_is_ready_while_a_router_knows_it_and_it_does_not_drain),
    };
    return cmocka_run_group_tests_name("node_meters", tests, NULL, NULL);
}
