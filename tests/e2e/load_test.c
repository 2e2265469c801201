/* 64 streaming clients over 2 P + 2 D, while nodes join, drain and are killed: every stream equals that
 * of a cluster of one P and one D that nobody disturbed, all blocks come back, memory stays bounded. */
#include "tests/e2e/asks.h"
#include "tests/e2e/cluster.h"

#include <signal.h>

enum {
    CLIENTS = 64,
    SEED = 20,
    POOL_BYTES = 16 << 20,
};
#define NODE_ARGS "--kv-bytes 16M"

static struct asks *asks;
static struct streams *wanted; /* of the undisturbed run */

struct load {
    struct cluster *cluster;
    struct streams *streams;
};

static int setup(void **state)
{
    static struct load load;
    load = (struct load){.cluster = NULL};
    *state = &load;
    return 0;
}

static int teardown(void **state)
{
    struct load *load = *state;
    if (load->streams != wanted) streams_free(load->streams);
    cluster_free(load->cluster);
    return 0;
}

static int forget(void **state)
{
    (void)state;
    streams_free(wanted);
    asks_free(asks);
    return 0;
}

static void start(struct load *load, uint32_t prefills, uint32_t decodes, const char *node_args)
{
    load->cluster = cluster_new(cluster_demo_model());
    cluster_start(load->cluster, prefills, decodes,
                  "--deaths-max 100 --lone-deaths-max 100 --disaggregate always", node_args);
    load->streams = streams_new(load->cluster->addresses);
    asks_start(asks, load->streams);
}

static void finish(struct load *load)
{
    asks_expect(asks, load->streams, 0, wanted);
    cluster_await_idle(load->cluster);
    cluster_expect_memory(load->cluster, POOL_BYTES);
    cluster_stop(load->cluster);
}

/* First of all tests; the others compare with it. */
static void one_of_each_serves_64_clients(void **state)
{
    struct load *load = *state;
    asks = asks_new(SEED, CLIENTS);
    start(load, 1, 1, NODE_ARGS);
    streams_run(load->streams);
    wanted = load->streams;
    finish(load);
}

static void two_of_each_give_the_same_streams(void **state)
{
    struct load *load = *state;
    assert_non_null(wanted);
    start(load, 2, 2, NODE_ARGS " --chunk 48");
    streams_run(load->streams);
    finish(load);
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
    const struct load *load;
    uint64_t tokens_count;
};

static bool tokens_are_here(void *ctx)
{
    const struct threshold *t = ctx;
    return t->load->streams->tokens_count >= t->tokens_count;
}

static void disturb(struct load *load, const char *node_args)
{
    static const struct deed deeds[] = {
        {4, JOIN_PREFILL, "p2"}, {10, KILL, "d0"},        {14, JOIN_DECODE, "d2"},
        {24, DRAIN, "p0"},       {34, KILL, "p1"},        {40, JOIN_PREFILL, "p3"},
        {48, DRAIN, "d1"},       {52, JOIN_DECODE, "d3"}, {64, KILL, "d2"},
        {70, KILL, "p2"},        {80, JOIN_DECODE, "d4"},
    };
    for (size_t i = 0; i < sizeof deeds / sizeof deeds[0]; i++) {
        struct threshold t = {load, wanted->tokens_count * deeds[i].per_cent / 100};
        streams_run_until(load->streams, tokens_are_here, &t, "so many tokens in all");
        switch (deeds[i].what) {
        case JOIN_PREFILL: cluster_spawn(load->cluster, PROGRAM_PREFILL, node_args); break;
        case JOIN_DECODE: cluster_spawn(load->cluster, PROGRAM_DECODE, node_args); break;
        case KILL: process_kill(cluster_process(load->cluster, deeds[i].node)); break;
        case DRAIN: process_signal(cluster_process(load->cluster, deeds[i].node), SIGTERM); break;
        }
    }
    streams_run(load->streams);
    /* The drained have left, with 0 as cluster_stop will see; those who joined are there. */
    process_await_exit(cluster_process(load->cluster, "p0"));
    process_await_exit(cluster_process(load->cluster, "d1"));
    cluster_await_nodes(load->cluster);
    uint32_t attempts = 0;
    for (uint32_t i = 0; i < CLIENTS; i++)
        attempts += load->streams->stream[i]->attempts;
    print_message("%lu tokens, %u attempts\n", load->streams->tokens_count, attempts);
    assert_true(attempts > CLIENTS + 10); /* the kills did hit */
}

static void nodes_that_come_and_go_change_no_stream(struct load *load, const char *node_args)
{
    assert_non_null(wanted);
    start(load, 2, 2, node_args);
    disturb(load, node_args);
    finish(load);
}

static void nodes_that_come_and_go_change_no_stream_over_shm(void **state)
{
    nodes_that_come_and_go_change_no_stream(*state, NODE_ARGS " --link shm --chunk 64");
}

static void nodes_that_come_and_go_change_no_stream_over_tcp(void **state)
{
    nodes_that_come_and_go_change_no_stream(*state, NODE_ARGS " --link tcp --chunk 40");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(one_of_each_serves_64_clients),
        TEST(two_of_each_give_the_same_streams),
        TEST(nodes_that_come_and_go_change_no_stream_over_shm),
        TEST(nodes_that_come_and_go_change_no_stream_over_tcp),
    };
    return cmocka_run_group_tests_name("e2e/load", tests, NULL, forget);
}
