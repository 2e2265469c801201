#include "tests/e2e/rig.h"

static struct asks *asks;
static struct streams *wanted;

int rig_setup(void **state)
{
    static struct rig rig;
    rig = (struct rig){.wanted = wanted};
    if (asks) rig.asks = *asks;
    *state = &rig;
    return 0;
}

int rig_teardown(void **state)
{
    struct rig *rig = *state;
    streams_free(rig->streams);
    cluster_free(rig->cluster);
    return 0;
}

int rig_learn(uint64_t seed, uint32_t asks_count)
{
    asks = asks_new(seed, asks_count);
    wanted = asks_undisturbed(asks, "");
    return 0;
}

int rig_forget(void **state)
{
    (void)state;
    streams_free(wanted);
    asks_free(asks);
    return 0;
}

void rig_connect(struct rig *rig)
{
    rig->streams = streams_new(rig->cluster->addresses);
}

void rig_start(struct rig *rig, uint32_t prefills, uint32_t decodes, const char *router_args,
               const char *node_args)
{
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_start(rig->cluster, prefills, decodes, router_args, node_args);
    rig_connect(rig);
}

void rig_expect_wanted(struct rig *rig)
{
    uint32_t first = rig->streams->count;
    asks_start(&rig->asks, rig->streams);
    streams_run(rig->streams);
    asks_expect(&rig->asks, rig->streams, first, rig->wanted);
}

static bool half_is_here(void *ctx)
{
    const struct rig *rig = ctx;
    return rig->streams->tokens_count >= rig->wanted->tokens_count / 2;
}

void rig_ask_half(struct rig *rig)
{
    asks_start(&rig->asks, rig->streams);
    streams_run_until(rig->streams, half_is_here, rig, "half of all tokens");
}

void rig_expect_rest(struct rig *rig)
{
    streams_run(rig->streams);
    asks_expect(&rig->asks, rig->streams, 0, rig->wanted);
}

void rig_finish(struct rig *rig)
{
    streams_free(rig->streams);
    rig->streams = NULL;
    cluster_await_idle(rig->cluster);
    cluster_stop(rig->cluster);
    cluster_free(rig->cluster);
    rig->cluster = NULL;
}
