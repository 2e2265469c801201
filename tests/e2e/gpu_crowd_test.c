/* Four prefill and four decode nodes on the emulator, with links from GPU to GPU between all of them, while
 * nodes join, drain and die: every stream equals one GPU's, and all blocks come back. */
#include "tests/e2e/links.h"
#include "tests/e2e/rig.h"

#include <signal.h>
#include <stdio.h>

#define SOON "--heartbeat 100ms --dead-after 3s "
#define ROUTER SOON "--deaths-max 100 --lone-deaths-max 100 --disaggregate always"
#define NODE LINKS_CUDA SOON "--link-retry 50ms "

enum { EACH = 4, STREAMS = 24 };

/* What happens when so many of a hundred tokens are here. */
static const struct deed {
    uint32_t percent;
    enum { DIE, LEAVE, JOIN } what;
    const char *name;     /* DIE, LEAVE */
    enum program program; /* JOIN */
} deeds[] = {
    {5, DIE, "p1", 0},
    {10, DIE, "d1", 0},
    {15, JOIN, NULL, PROGRAM_PREFILL},
    {20, LEAVE, "p2", 0},
    {25, LEAVE, "d2", 0},
    {30, JOIN, NULL, PROGRAM_DECODE},
    {40, DIE, "d3", 0},
    {50, JOIN, NULL, PROGRAM_DECODE},
    {60, DIE, "p3", 0},
};
enum { DEEDS = sizeof deeds / sizeof deeds[0] };

static struct ask asks[STREAMS];
static char prompt[STREAMS][96];
static struct streams *wanted;

static void fill_asks(void)
{
    static const char *const texts[] = {"ROMEO:\n", "First Citizen:\nWe are accounted poor ",
                                        "KING RICHARD III:\nNow is the winter of ", "All:\n"};
    for (uint32_t i = 0; i < STREAMS; i++) {
        snprintf(prompt[i], sizeof prompt[i], "%s%u speak, I say", texts[i % 4], i / 4);
        asks[i] = (struct ask){.text = prompt[i], .max_tokens = 8 + i % 5, .ignore_eos = true};
        if (i % 3 == 0) asks[i].want_logprobs = true;
        if (i % 3 == 1) asks[i].temperature = 0.9f;
        asks[i].seed = 100 + i;
    }
}

static void start_asks(struct streams *s)
{
    for (uint32_t i = 0; i < STREAMS; i++)
        streams_start(s, i % 8, &asks[i]);
}

static int learn(void **state)
{
    (void)state;
    fill_asks();
    links_use_plugins(NULL, "");
    struct cluster *c = cluster_new(links_model());
    cluster_start(c, 0, 1, "", LINKS_CUDA);
    wanted = streams_new(c->addresses);
    start_asks(wanted);
    streams_run(wanted);
    for (uint32_t i = 0; i < STREAMS; i++)
        stream_expect_done(wanted->stream[i]);
    cluster_stop(c);
    cluster_free(c);
    return 0;
}

static int forget(void **state)
{
    (void)state;
    streams_free(wanted);
    links_model_remove();
    return 0;
}

static void do_it(struct rig *rig, const struct deed *d, const char *args)
{
    switch (d->what) {
    case DIE: process_kill(cluster_process(rig->cluster, d->name)); break;
    case LEAVE: process_signal(cluster_process(rig->cluster, d->name), SIGTERM); break;
    case JOIN: cluster_spawn(rig->cluster, d->program, args); break;
    }
}

struct progress {
    const struct streams *streams;
    uint64_t tokens_count;
};

static bool so_many_are_here(void *ctx)
{
    const struct progress *p = ctx;
    return p->streams->tokens_count >= p->tokens_count;
}

static void expect_wanted(struct rig *rig, uint32_t first)
{
    streams_run(rig->streams);
    for (uint32_t i = 0; i < STREAMS; i++)
        stream_expect_equal(rig->streams->stream[first + i], wanted->stream[i]);
}

static void disturb(struct rig *rig, const char *args)
{
    start_asks(rig->streams);
    for (size_t i = 0; i < DEEDS; i++) {
        struct progress p = {rig->streams, wanted->tokens_count * deeds[i].percent / 100};
        streams_run_until(rig->streams, so_many_are_here, &p, "tokens for the next deed");
        do_it(rig, &deeds[i], args);
    }
    expect_wanted(rig, 0);
    for (size_t i = 0; i < DEEDS; i++)
        if (deeds[i].what == LEAVE)
            assert_int_equal(process_await_exit(cluster_process(rig->cluster, deeds[i].name)), 0);
}

/* Streams met the deaths. */
static void expect_retries(struct rig *rig)
{
    json_t *status = cluster_status(rig->cluster);
    const json_t *router = json_object_get(status, "router");
    json_int_t retries = json_integer_value(json_object_get(router, "retries"));
    print_message("%d retries\n", (int)retries);
    assert_true(retries > 0);
    json_decref(status);
}

static void whoever_comes_and_goes_no_stream_changes(struct rig *rig, const char *link)
{
    char args[512];
    snprintf(args, sizeof args, NODE "--link %s", link);
    rig->cluster = cluster_new(links_model());
    rig->cluster->own_hosts = true;
    cluster_start(rig->cluster, EACH, EACH, ROUTER, args);
    rig_connect(rig);
    disturb(rig, args);
    expect_retries(rig);
    cluster_await_nodes(rig->cluster);
    cluster_await_idle(rig->cluster);
    start_asks(rig->streams); /* over links between those that are here now */
    expect_wanted(rig, STREAMS);
    links_await(rig->cluster, &(struct link_wish){.kind = link, .ready = true, .bytes = 1}, NULL);
    rig_finish(rig);
}

static void whoever_comes_and_goes_no_stream_changes_over_nccl(void **state)
{
    whoever_comes_and_goes_no_stream_changes(*state, "nccl");
}
static void whoever_comes_and_goes_no_stream_changes_over_ipc(void **state)
{
    whoever_comes_and_goes_no_stream_changes(*state, "ipc");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(whoever_comes_and_goes_no_stream_changes_over_nccl),
        RIG_TEST(whoever_comes_and_goes_no_stream_changes_over_ipc),
    };
    return cmocka_run_group_tests_name("e2e/gpu_crowd", tests, learn, forget);
}
