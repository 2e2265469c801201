/* Routers that die, and processes that freeze for longer than the others wait: no stream changes. */
#include "tests/e2e/rig.h"

#include <signal.h>
#include <stdio.h>

#include "common/clock.h"

enum { SEED = 11, ASKS = 24 };
/* A process that is silent for so long counts as dead; short, for a short test. */
#define SOON "--heartbeat 50ms --dead-after 700ms "
#define SOON_ROUTER SOON "--deaths-max 100 --lone-deaths-max 100 --disaggregate always"

static int learn(void **state)
{
    (void)state;
    return rig_learn(SEED, ASKS);
}

/* ---- routers ---- */

static void streams_go_on_at_a_second_router(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    struct process *first = cluster_router(rig->cluster, "");
    cluster_router(rig->cluster, "");
    for (int i = 0; i < 2; i++) {
        cluster_spawn(rig->cluster, PROGRAM_PREFILL, "");
        cluster_spawn(rig->cluster, PROGRAM_DECODE, "");
    }
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    rig_ask_half(rig);
    process_kill(first);
    rig_expect_rest(rig);
    rig_finish(rig);
}

static void streams_go_on_at_the_same_address_when_a_router_was_replaced(void **state)
{
    struct rig *rig = *state;
    char args[256];
    rig_start(rig, 1, 2, "", "");
    struct process *first = rig->cluster->process[0];
    rig_ask_half(rig);
    process_kill(first);
    snprintf(args, sizeof args, "--listen-clients %s --listen-nodes %s", first->clients,
             first->nodes);
    process_await_ready(cluster_spawn(rig->cluster, PROGRAM_ROUTER, args));
    rig_expect_rest(rig);
    cluster_await_nodes(rig->cluster);
    rig_finish(rig);
}

/* ---- frozen ---- */

static struct process *frozen;

static bool frozen_is_gone(struct cluster *c, json_t *status)
{
    (void)c;
    return !cluster_find_node(status, frozen->name);
}

static void a_frozen_node_is_left_and_rejoins(struct rig *rig, const char *name,
                                              const char *node_args)
{
    char args[256];
    snprintf(args, sizeof args, SOON "%s", node_args);
    rig_start(rig, 2, 2, SOON_ROUTER, args);
    frozen = cluster_process(rig->cluster, name);
    rig_ask_half(rig);
    process_signal(frozen, SIGSTOP);
    cluster_await(rig->cluster, frozen_is_gone, "the frozen node counts as dead");
    process_signal(frozen, SIGCONT);
    rig_expect_rest(rig);
    cluster_await_nodes(rig->cluster);
    rig_finish(rig);
}

static void a_frozen_decode_node_is_left_and_rejoins_over_shm(void **state)
{
    a_frozen_node_is_left_and_rejoins(*state, "d0", "--link shm");
}

static void a_frozen_decode_node_is_left_and_rejoins_over_tcp(void **state)
{
    a_frozen_node_is_left_and_rejoins(*state, "d1", "--link tcp");
}

static void a_frozen_prefill_node_is_left_and_rejoins_over_shm(void **state)
{
    a_frozen_node_is_left_and_rejoins(*state, "p0", "--link shm");
}

static void a_frozen_prefill_node_is_left_and_rejoins_over_tcp(void **state)
{
    a_frozen_node_is_left_and_rejoins(*state, "p1", "--link tcp");
}

static bool is_past(void *ctx)
{
    return clock_now_ns() >= *(const uint64_t *)ctx;
}

/* The router would wait for it: by its own clock it knows that what it had may be of an earlier life. */
static void a_node_that_slept_begins_a_new_life_by_itself(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 2,
              "--heartbeat 50ms --dead-after 60s --hung-after 60s --deaths-max 100 "
              "--lone-deaths-max 100 --disaggregate always",
              SOON);
    struct process *sleeper = cluster_process(rig->cluster, "d0");
    rig_ask_half(rig);
    process_signal(sleeper, SIGSTOP);
    uint64_t wake_ns = clock_now_ns() + 1400 * NS_PER_MS;
    streams_run_until(rig->streams, is_past, &wake_ns, "it has slept for long enough");
    process_signal(sleeper, SIGCONT);
    rig_expect_rest(rig);
    cluster_await_nodes(rig->cluster);
    assert_true(process_logged(sleeper, "clock_jumped"));
    rig_finish(rig);
}

/* The only nodes of their kinds: what they had waits until they are back. */
static void when_all_nodes_freeze_the_streams_wait(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 1, SOON_ROUTER, SOON);
    rig_ask_half(rig);
    for (uint32_t i = 1; i <= 2; i++) {
        frozen = rig->cluster->process[i];
        process_signal(frozen, SIGSTOP);
        cluster_await(rig->cluster, frozen_is_gone, "the frozen node counts as dead");
    }
    for (uint32_t i = 1; i <= 2; i++)
        process_signal(rig->cluster->process[i], SIGCONT);
    rig_expect_rest(rig);
    cluster_await_nodes(rig->cluster);
    rig_finish(rig);
}

static bool router_is_dead(void *ctx)
{
    const struct rig *rig = ctx;
    for (uint32_t i = 1; i < rig->cluster->count; i++)
        if (!process_logged(rig->cluster->process[i], "session_down")) return false;
    return true;
}

/* Nodes and clients give it up and come again when it wakes. */
static void a_frozen_router_wakes_and_serves_on(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 1, SOON_ROUTER, SOON);
    rig_ask_half(rig);
    process_signal(rig->cluster->process[0], SIGSTOP);
    streams_run_until(rig->streams, router_is_dead, rig, "the nodes gave the router up");
    process_signal(rig->cluster->process[0], SIGCONT);
    rig_expect_rest(rig);
    cluster_await_nodes(rig->cluster);
    rig_finish(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(streams_go_on_at_a_second_router),
        RIG_TEST(streams_go_on_at_the_same_address_when_a_router_was_replaced),
        RIG_TEST(a_frozen_decode_node_is_left_and_rejoins_over_shm),
        RIG_TEST(a_frozen_decode_node_is_left_and_rejoins_over_tcp),
        RIG_TEST(a_frozen_prefill_node_is_left_and_rejoins_over_shm),
        RIG_TEST(a_frozen_prefill_node_is_left_and_rejoins_over_tcp),
        RIG_TEST(a_node_that_slept_begins_a_new_life_by_itself),
        RIG_TEST(when_all_nodes_freeze_the_streams_wait),
        RIG_TEST(a_frozen_router_wakes_and_serves_on),
    };
    return cmocka_run_group_tests_name("e2e/faults", tests, learn, rig_forget);
}
