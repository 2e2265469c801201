/* Links from GPU to GPU under a whole cluster, with both plugins on the emulator: what goes over them gives
 * one GPU's streams to the bit, and what cannot be set up is named while others carry. */
#include "tests/e2e/links.h"
#include "tests/e2e/rig.h"

#include <signal.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALWAYS "--disaggregate always"
#define SOON "--link-retry 50ms "
#define SPEECH "First Citizen:\nBefore we proceed any further, hear me speak.\n\n"

/* Longer than a chunk, greedy and drawn, alone and several choices; then prompts that go on where the
 * first ones ended, whose beginning the decode node has. */
static const struct ask asks[] = {
    {.text = "ROMEO:\n", .max_tokens = 8, .ignore_eos = true, .want_logprobs = true},
    {.text = SPEECH "All:\nSpeak, speak.\n",
     .max_tokens = 8,
     .ignore_eos = true,
     .want_logprobs = true},
    {.text = "KING RICHARD III:\nNow is the winter of our discontent made glorious summer",
     .max_tokens = 8,
     .ignore_eos = true,
     .temperature = 0.8f,
     .seed = 5,
     .top_p = 0.9f},
    {.text = "O, that this too too solid flesh would melt, thaw and resolve itself into a dew",
     .max_tokens = 6,
     .ignore_eos = true,
     .temperature = 1,
     .seed = 6,
     .top_k = 20,
     .choices = 2,
     .repetition_penalty = 1.2f,
     .want_logprobs = true,
     .tops = 3},
    {.text = SPEECH "All:\nSpeak, speak.\n\nFirst Citizen:\nYou are all resolved rather to die",
     .max_tokens = 8,
     .ignore_eos = true,
     .want_logprobs = true},
    {.text = SPEECH "JULIET:\nO Romeo, Romeo",
     .max_tokens = 6,
     .ignore_eos = true,
     .temperature = 1,
     .seed = 7},
};
enum { ASKS = sizeof asks / sizeof asks[0], FIRST = 4 };

static struct streams *on_one;

static void ask(struct streams *s, uint32_t from, uint32_t end)
{
    for (uint32_t i = from; i < end; i++)
        streams_start(s, i % 2, &asks[i]);
    streams_run(s);
}

static int learn(void **state)
{
    (void)state;
    links_use_plugins(NULL, "");
    struct cluster *c = cluster_new(links_model());
    cluster_start(c, 0, 1, "", LINKS_CUDA);
    on_one = streams_new(c->addresses);
    ask(on_one, 0, FIRST);
    ask(on_one, FIRST, ASKS);
    for (uint32_t i = 0; i < ASKS; i++)
        stream_expect_done(on_one->stream[i]);
    cluster_stop(c);
    cluster_free(c);
    return 0;
}

static int forget(void **state)
{
    (void)state;
    streams_free(on_one);
    links_model_remove();
    return 0;
}

static int setup(void **state)
{
    links_use_plugins(NULL, "");
    return rig_setup(state);
}
#define LINKS_TEST(f) cmocka_unit_test_setup_teardown(f, setup, rig_teardown)

static struct process *node(struct rig *rig, enum program program, const char *args,
                            const char *knobs)
{
    setenv("TANDEM_FAKE_NCCL", knobs, 1);
    struct process *p = cluster_node(rig->cluster, program, args);
    unsetenv("TANDEM_FAKE_NCCL");
    return p;
}

/* Node 1 is P, node 2 is D. */
static void start(struct rig *rig, const char *plugins, const char *args, const char *knobs)
{
    rig->cluster = cluster_new(links_model());
    rig->cluster->own_hosts = true;
    if (plugins) links_use_plugins(rig->cluster, plugins);
    cluster_router(rig->cluster, ALWAYS);
    node(rig, PROGRAM_PREFILL, args, knobs);
    node(rig, PROGRAM_DECODE, args, knobs);
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
}

/* Asks [from, end), after which the last of the streams are theirs. */
static void expect_from(struct rig *rig, uint32_t from, uint32_t end)
{
    uint32_t first = rig->streams->count;
    ask(rig->streams, from, end);
    for (uint32_t i = from; i < end; i++) {
        const struct stream *s = rig->streams->stream[first + i - from];
        stream_expect_equal(s, on_one->stream[i]);
        assert_string_equal(s->prefill_node, "p0");
    }
}

/* ---- over a link that is forced ---- */

static void expect_layers(struct rig *rig, const struct stream *s)
{
    json_t *explained;
    size_t i, sent = 0;
    const json_t *layer,
        *layers = json_object_get(cluster_explain(rig->cluster, s->id, &explained), "layers");
    json_array_foreach(layers, i, layer)
    {
        double computed = json_number_value(json_object_get(layer, "computed_ms"));
        double at = json_number_value(json_object_get(layer, "sent_ms"));
        if (at > 0 && at < computed) fail_msg("layer %zu was sent before it was computed", i);
        sent += at > 0;
    }
    assert_true(json_array_size(layers) > 0);
    assert_int_equal(sent, json_array_size(layers));
    json_decref(explained);
}

static void one_gpus_streams(struct rig *rig, const char *link)
{
    struct link_row row;
    char args[256];
    snprintf(args, sizeof args, LINKS_CUDA "--link %s", link);
    start(rig, NULL, args, "");
    bool nccl = strcmp(link, "nccl") == 0;
    for (uint32_t n = 1; n <= 2; n++)
        assert_int_equal(process_logged(rig->cluster->process[n], "nccl_traffic_is_open"), nccl);
    expect_from(rig, 0, FIRST);
    assert_int_equal(process_logged(rig->cluster->process[1], "interface==lo"), nccl);
    expect_layers(rig, rig->streams->stream[1]);
    expect_from(rig, FIRST, ASKS);
    for (uint32_t i = FIRST; i < ASKS; i++)
        assert_true(rig->streams->stream[i]->cached_tokens > 0);
    links_await(
        rig->cluster,
        &(struct link_wish){.kind = link, .from = "p0", .to = "d0", .ready = true, .bytes = 1},
        &row);
    print_message("%s: %llu bytes\n", link, (unsigned long long)row.bytes);
    rig_finish(rig);
}

static void over_nccl_the_streams_are_one_gpus(void **state)
{
    one_gpus_streams(*state, "nccl");
}
static void over_ipc_the_streams_are_one_gpus(void **state)
{
    one_gpus_streams(*state, "ipc");
}

/* ---- chosen ---- */

static void expect_kind(struct rig *rig, const char *kind)
{
    links_await(rig->cluster, &(struct link_wish){.kind = kind, .ready = true, .bytes = 1}, NULL);
}

/* The wanted link may be ready a moment after what was asked first. */
static void ask_until(struct rig *rig, const struct link_wish *wish)
{
    struct link_row row;
    for (int i = 0; i < 200; i++) {
        expect_from(rig, 0, 1);
        json_t *status = cluster_status(rig->cluster);
        bool met = links_find(status, wish, &row);
        json_decref(status);
        if (met) return;
        streams_turn(rig->streams, 50);
    }
    fail_msg("no traffic over %s", wish->kind);
}

static void the_best_link_is_chosen(void **state)
{
    struct rig *rig = *state;
    start(rig, NULL, LINKS_CUDA, "");
    ask_until(rig, &(struct link_wish){.kind = "ipc", .ready = true, .bytes = 1});
    expect_from(rig, 0, ASKS);
    rig_finish(rig);
}

static void another_link_carries_while_nccl_is_set_up(void **state)
{
    struct rig *rig = *state;
    start(rig, "cuda nccl", LINKS_CUDA, "init_ms=1500");
    expect_from(rig, 0, FIRST);
    expect_kind(rig, "shm");
    ask_until(rig, &(struct link_wish){.kind = "nccl", .ready = true, .bytes = 1});
    expect_from(rig, FIRST, ASKS);
    rig_finish(rig);
}

static void a_set_up_that_fails_once_is_tried_again(void **state)
{
    struct rig *rig = *state;
    start(rig, "cuda nccl", LINKS_CUDA SOON, "fail_call=init,fail_at=1");
    expect_from(rig, 0, FIRST);
    ask_until(rig, &(struct link_wish){.kind = "nccl", .ready = true, .bytes = 1});
    rig_finish(rig);
}

/* NCCL never comes; the others go on, and status says why, or the log where there is no plugin. */
static void without_nccl(struct rig *rig, const char *plugins, const char *knobs,
                         const char *reason)
{
    setenv("TANDEM_LINK_HASTE", "100", 1);
    start(rig, plugins, LINKS_CUDA SOON, knobs);
    unsetenv("TANDEM_LINK_HASTE");
    expect_from(rig, 0, ASKS);
    expect_kind(rig, "shm");
    if (reason)
        links_await(rig->cluster, &(struct link_wish){.kind = "nccl", .reason = reason}, NULL);
    else
        assert_true(process_logged(rig->cluster->process[1], "link_off link=nccl"));
    expect_from(rig, 0, FIRST);
    rig_finish(rig);
}

static void a_set_up_that_hangs_leaves_the_others_and_is_told(void **state)
{
    without_nccl(*state, "cuda nccl", "init_hangs=1", "does not join");
}
static void an_nccl_too_old_leaves_the_others_and_is_told(void **state)
{
    without_nccl(*state, "cuda nccl", "version=21803", "2.19 or later");
}
static void without_the_plugin_the_others_carry(void **state)
{
    without_nccl(*state, "cuda", "", NULL);
}

/* ---- mixed ---- */

static void mixed(struct rig *rig, const char *prefill_args, const char *decode_args,
                  const char *kind)
{
    rig->cluster = cluster_new(links_model());
    rig->cluster->own_hosts = true;
    cluster_router(rig->cluster, "--exact=false " ALWAYS);
    cluster_node(rig->cluster, PROGRAM_PREFILL, prefill_args);
    cluster_node(rig->cluster, PROGRAM_DECODE, decode_args);
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    ask(rig->streams, 0, ASKS);
    for (uint32_t i = 0; i < ASKS; i++) {
        stream_expect_done(rig->streams->stream[i]);
        assert_string_equal(rig->streams->stream[i]->prefill_node, "p0");
    }
    expect_kind(rig, kind);
    rig_finish(rig);
}

static void a_gpu_reaches_a_cpu_over_shm(void **state)
{
    mixed(*state, LINKS_CUDA, "--context 512", "shm");
}
static void a_cpu_reaches_a_gpu_over_tcp_when_it_has_no_shm(void **state)
{
    mixed(*state, "--context 512 --link tcp", LINKS_CUDA, "tcp");
}

/* ---- an abort that hangs ---- */

static void set_short_deadlines(void)
{
    setenv("TANDEM_ABORT_MS", "200", 1);
    setenv("TANDEM_LINK_HASTE", "10", 1);
}
/* A process that ends in the middle of everything has threads that nobody has joined: no find. */
static void unset_thread_leaks(void)
{
    char options[PATH_MAX + 64];
    const char *set = getenv("TSAN_OPTIONS");
    if (!set) return;
    snprintf(options, sizeof options, "%s:report_thread_leaks=0", set);
    setenv("TSAN_OPTIONS", options, 1);
}

static void unset_short_deadlines(void)
{
    unsetenv("TANDEM_ABORT_MS");
    unsetenv("TANDEM_LINK_HASTE");
}

static void an_abort_that_hangs_ends_the_process_and_the_cluster_goes_on(void **state)
{
    struct rig *rig = *state;
    set_short_deadlines();
    unset_thread_leaks();
    start(rig, NULL, LINKS_CUDA SOON "--link nccl", "abort_hangs=1");
    unset_short_deadlines();
    struct process *p = rig->cluster->process[1];
    expect_from(rig, 0, FIRST);
    p->expendable = true;
    process_kill(rig->cluster->process[2]);
    assert_int_equal(process_await_exit(p), 1);
    assert_true(process_logged(p, "link_abort_hangs"));
    cluster_node(rig->cluster, PROGRAM_PREFILL, LINKS_CUDA SOON "--link nccl");
    cluster_node(rig->cluster, PROGRAM_DECODE, LINKS_CUDA SOON "--link nccl");
    cluster_await_nodes(rig->cluster);
    uint32_t first = rig->streams->count;
    ask(rig->streams, 0, FIRST);
    for (uint32_t i = 0; i < FIRST; i++)
        stream_expect_equal(rig->streams->stream[first + i], on_one->stream[i]);
    rig_finish(rig);
}

/* Of p0 and d0, as status shows them; 0: not there. */
static void read_pids(json_t *status, json_int_t pid[2])
{
    static const char *const names[] = {"p0", "d0"};
    for (int i = 0; i < 2; i++)
        pid[i] = json_integer_value(json_object_get(cluster_find_node(status, names[i]), "pid"));
}

static json_int_t pids_before[2];

static bool both_are_new(struct cluster *c, json_t *status)
{
    json_int_t pid[2];
    (void)c;
    read_pids(status, pid);
    return pid[0] && pid[1] && pid[0] != pids_before[0] && pid[1] != pids_before[1];
}

static void tandem_up_starts_a_node_again_whose_abort_hangs(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(links_model());
    set_short_deadlines();
    setenv("TANDEM_FAKE_NCCL", "abort_hangs=1", 1);
    setenv("TANDEM_FAKE_CUDA", "devices=2", 1);
    struct process *up = cluster_up(
        rig->cluster, "--device cuda --link nccl --prefill-gpus 0 --decode-gpus 1 --blocks 64");
    unsetenv("TANDEM_FAKE_NCCL");
    unsetenv("TANDEM_FAKE_CUDA");
    unset_short_deadlines();
    up->expendable = true; /* aborts hang when it ends, too */
    rig_connect(rig);
    ask(rig->streams, 0, FIRST);
    json_t *status = cluster_status(rig->cluster);
    read_pids(status, pids_before);
    json_decref(status);
    assert_true(pids_before[1] > 0);
    assert_int_equal(kill((pid_t)pids_before[1], SIGKILL), 0);
    cluster_await(rig->cluster, both_are_new, "both nodes were started again");
    assert_true(process_logged(up, "link_abort_hangs"));
    ask(rig->streams, 0, FIRST);
    for (uint32_t i = 0; i < rig->streams->count; i++)
        stream_expect_done(rig->streams->stream[i]);
    rig_finish(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LINKS_TEST(over_nccl_the_streams_are_one_gpus),
        LINKS_TEST(over_ipc_the_streams_are_one_gpus),
        LINKS_TEST(the_best_link_is_chosen),
        LINKS_TEST(another_link_carries_while_nccl_is_set_up),
        LINKS_TEST(a_set_up_that_fails_once_is_tried_again),
        LINKS_TEST(a_set_up_that_hangs_leaves_the_others_and_is_told),
        LINKS_TEST(an_nccl_too_old_leaves_the_others_and_is_told),
        LINKS_TEST(without_the_plugin_the_others_carry),
        LINKS_TEST(a_gpu_reaches_a_cpu_over_shm),
        LINKS_TEST(a_cpu_reaches_a_gpu_over_tcp_when_it_has_no_shm),
        LINKS_TEST(an_abort_that_hangs_ends_the_process_and_the_cluster_goes_on),
        LINKS_TEST(tandem_up_starts_a_node_again_whose_abort_hangs),
    };
    return cmocka_run_group_tests_name("e2e/gpu_links", tests, learn, forget);
}
