/* 64 streaming clients over 2 P + 2 D, while nodes join, drain and are killed: every stream equals that
 * of a cluster of one P and one D that nobody disturbed, all blocks come back, memory stays bounded. */
#include "tests/e2e/rig.h"

#include <signal.h>

enum {
    CLIENTS = 64,
    SEED = 20,
    POOL_BYTES = 16 << 20,
};
#define NODE_ARGS "--kv-bytes 16M"

static struct asks *asks;
static struct streams *wanted; /* of the undisturbed run */

static int forget(void **state)
{
    (void)state;
    streams_free(wanted);
    asks_free(asks);
    return 0;
}

static void start(struct rig *rig, uint32_t prefills, uint32_t decodes, const char *node_args)
{
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_start(rig->cluster, prefills, decodes,
                  "--deaths-max 100 --lone-deaths-max 100 --disaggregate always", node_args);
    rig_connect(rig);
    asks_start(asks, rig->streams);
}

static void finish(struct rig *rig)
{
    asks_expect(asks, rig->streams, 0, wanted);
    cluster_await_idle(rig->cluster);
    cluster_expect_memory(rig->cluster, POOL_BYTES);
    cluster_stop(rig->cluster);
}

/* First of all tests; the others compare with it. */
static void one_of_each_serves_64_clients(void **state)
{
    struct rig *rig = *state;
    asks = asks_new(SEED, CLIENTS);
    start(rig, 1, 1, NODE_ARGS);
    streams_run(rig->streams);
    wanted = rig->streams;
    finish(rig);
    rig->streams = NULL;
}

static void two_of_each_give_the_same_streams(void **state)
{
    struct rig *rig = *state;
    assert_non_null(wanted);
    start(rig, 2, 2, NODE_ARGS " --chunk 48");
    streams_run(rig->streams);
    finish(rig);
}

/* ---- disturbances ---- */

enum what { JOIN_PREFILL, JOIN_DECODE, KILL, DRAIN };

/* What happens when so many per cent of all tokens are here. */
struct deed {
    uint32_t per_cent;
    enum what what;
    const char *node;
};

struct threshold {
    const struct rig *rig;
    uint64_t tokens_count;
};

static bool tokens_are_here(void *ctx)
{
    const struct threshold *t = ctx;
    return t->rig->streams->tokens_count >= t->tokens_count;
}

static void disturb(struct rig *rig, const char *node_args)
{
    static const struct deed deeds[] = {
        {4, JOIN_PREFILL, "p2"}, {10, KILL, "d0"},        {14, JOIN_DECODE, "d2"},
        {24, DRAIN, "p0"},       {34, KILL, "p1"},        {40, JOIN_PREFILL, "p3"},
        {48, DRAIN, "d1"},       {52, JOIN_DECODE, "d3"}, {64, KILL, "d2"},
        {70, KILL, "p2"},        {80, JOIN_DECODE, "d4"},
    };
    for (size_t i = 0; i < sizeof deeds / sizeof deeds[0]; i++) {
        struct threshold t = {rig, wanted->tokens_count * deeds[i].per_cent / 100};
        streams_run_until(rig->streams, tokens_are_here, &t, "so many tokens in all");
        switch (deeds[i].what) {
        case JOIN_PREFILL: cluster_spawn(rig->cluster, PROGRAM_PREFILL, node_args); break;
        case JOIN_DECODE: cluster_spawn(rig->cluster, PROGRAM_DECODE, node_args); break;
        case KILL: process_kill(cluster_process(rig->cluster, deeds[i].node)); break;
        case DRAIN: process_signal(cluster_process(rig->cluster, deeds[i].node), SIGTERM); break;
        }
    }
    streams_run(rig->streams);
    /* The drained have left, with 0 as cluster_stop will see; those who joined are there. */
    process_await_exit(cluster_process(rig->cluster, "p0"));
    process_await_exit(cluster_process(rig->cluster, "d1"));
    cluster_await_nodes(rig->cluster);
    uint32_t attempts = 0;
    for (uint32_t i = 0; i < CLIENTS; i++)
        attempts += rig->streams->stream[i]->attempts;
    print_message("%lu tokens, %u attempts\n", rig->streams->tokens_count, attempts);
    assert_true(attempts > CLIENTS + 10); /* the kills did hit */
}

static void nodes_that_come_and_go_change_no_stream(struct rig *rig, const char *node_args)
{
    assert_non_null(wanted);
    start(rig, 2, 2, node_args);
    disturb(rig, node_args);
    finish(rig);
}

static void nodes_that_come_and_go_change_no_stream_over_shm(void **state)
{
    nodes_that_come_and_go_change_no_stream(*state, NODE_ARGS " --link shm --chunk 64");
}

static void nodes_that_come_and_go_change_no_stream_over_tcp(void **state)
{
    nodes_that_come_and_go_change_no_stream(*state, NODE_ARGS " --link tcp --chunk 40");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(one_of_each_serves_64_clients),
        RIG_TEST(two_of_each_give_the_same_streams),
        RIG_TEST(nodes_that_come_and_go_change_no_stream_over_shm),
        RIG_TEST(nodes_that_come_and_go_change_no_stream_over_tcp),
    };
    return cmocka_run_group_tests_name("e2e/load", tests, NULL, forget);
}
