/* Clusters whose nodes compute with the CUDA backend, on the emulator: the same binaries, the plugin of
 * tests/fake. Streams are compared with those of one node of the same kind to the bit, and with those of
 * the CPU as far as two devices can agree. */
#include "tests/e2e/rig.h"

#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/clock.h"

#define CUDA "--device cuda --threads 1 --blocks 64 --context 512 --batch 4 --chunk 16 "
#define CPU "--threads 1 --context 512 "
#define ANY_NUMERICS "--exact=false --disaggregate always"

/* How far log-probabilities of two devices may be apart: activations are rounded to bf16 on one. */
#define APART 0.35f

static const struct ask asks[] = {
    {.text = "ROMEO:\n", .max_tokens = 12, .want_logprobs = true},
    {.text = "What say you to my suit? ", .max_tokens = 10, .want_logprobs = true},
    {.text = "KING", .max_tokens = 8, .want_logprobs = true},
    {.text = "First Citizen:\nWe", .max_tokens = 10, .temperature = 0.8f, .seed = 5, .top_p = 0.9f},
    {.text = "O",
     .max_tokens = 8,
     .temperature = 1,
     .seed = 6,
     .top_k = 20,
     .choices = 2,
     .repetition_penalty = 1.2f,
     .want_logprobs = true,
     .tops = 3},
};
enum { ASKS = sizeof asks / sizeof asks[0], GREEDY = 3 };

static struct streams *on_cpu, *on_cuda;

static struct streams *streams_of(struct cluster *c)
{
    struct streams *s = streams_new(c->addresses);
    for (uint32_t i = 0; i < ASKS; i++)
        streams_start(s, i % 2, &asks[i]);
    streams_run(s);
    for (uint32_t i = 0; i < ASKS; i++)
        stream_expect_done(s->stream[i]);
    return s;
}

/* What one decode node makes of it alone. */
static struct streams *learn_from(const char *node_args)
{
    struct cluster *c = cluster_new(cluster_demo_model());
    cluster_start(c, 0, 1, "", node_args);
    struct streams *s = streams_of(c);
    cluster_stop(c);
    cluster_free(c);
    return s;
}

static int learn(void **state)
{
    (void)state;
    setenv("TANDEM_PLUGIN_DIR", TANDEM_FAKE_DIR, 1);
    on_cpu = learn_from(CPU);
    on_cuda = learn_from(CUDA "--deterministic");
    return 0;
}

static int forget(void **state)
{
    (void)state;
    streams_free(on_cpu);
    streams_free(on_cuda);
    return 0;
}

static void expect_equal(struct rig *rig, const struct streams *wanted)
{
    for (uint32_t i = 0; i < ASKS; i++)
        stream_expect_equal(rig->streams->stream[i], wanted->stream[i]);
}

/* Greedy tokens and their log-probabilities, up to a place where the best two were about as likely: there
 * the streams part. Seeded draws may part anywhere. */
static uint32_t tokens_alike(const struct stream *got, const struct stream *wanted)
{
    const struct outcome *a = &got->choice[0], *b = &wanted->choice[0];
    const float tie = logf(0.5f) + APART;
    uint32_t i = 0;
    for (; i < a->tokens_count && i < b->tokens_count; i++) {
        if (fabsf(a->logprobs[i] - b->logprobs[i]) > APART)
            fail_msg("token %u: log-probability %g, wanted %g", i, (double)a->logprobs[i],
                     (double)b->logprobs[i]);
        if (a->tokens[i] == b->tokens[i]) continue;
        if (a->logprobs[i] > tie || b->logprobs[i] > tie)
            fail_msg("token %u is %u, wanted %u, and that was clear: %g and %g", i, a->tokens[i],
                     b->tokens[i], (double)a->logprobs[i], (double)b->logprobs[i]);
        break;
    }
    return i;
}

static void expect_alike(const struct streams *got, const struct streams *wanted)
{
    uint32_t alike = 0, all = 0;
    for (uint32_t i = 0; i < GREEDY; i++) {
        alike += tokens_alike(got->stream[i], wanted->stream[i]);
        all += wanted->stream[i]->choice[0].tokens_count;
    }
    print_message("%u of %u greedy tokens are alike\n", alike, all);
    assert_true(2 * alike >= all);
}

static void one_node_says_what_the_cpu_says(void **state)
{
    (void)state;
    expect_alike(on_cuda, on_cpu);
}

static void start(struct rig *rig, const char *router_args, const char *prefill_args,
                  const char *decode_args)
{
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, router_args);
    cluster_node(rig->cluster, PROGRAM_PREFILL, prefill_args);
    cluster_node(rig->cluster, PROGRAM_DECODE, decode_args);
    cluster_await_nodes(rig->cluster);
    rig->streams = streams_of(rig->cluster);
}

static void prefill_and_decode_on_gpus_give_one_gpus_streams(void **state)
{
    struct rig *rig = *state;
    start(rig, "--disaggregate always", CUDA "--deterministic --link tcp",
          CUDA "--deterministic --link tcp");
    expect_equal(rig, on_cuda);
    rig_finish(rig);
}

static void a_stream_goes_on_when_its_gpu_node_dies(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_start(rig->cluster, 1, 2, "--disaggregate always", CUDA "--deterministic");
    rig->streams = streams_new(rig->cluster->addresses);
    for (uint32_t i = 0; i < ASKS; i++)
        streams_start(rig->streams, i % 2, &asks[i]);
    streams_until_tokens(rig->streams->stream[0], 3);
    process_kill(cluster_process_of(rig->cluster, rig->streams->stream[0]->id, "decode"));
    streams_run(rig->streams);
    expect_equal(rig, on_cuda);
    cluster_await_nodes(rig->cluster);
    rig_finish(rig);
}

static void mixed(void **state, const char *prefill_args, const char *decode_args)
{
    struct rig *rig = *state;
    start(rig, ANY_NUMERICS, prefill_args, decode_args);
    for (uint32_t i = 0; i < ASKS; i++)
        assert_string_equal(rig->streams->stream[i]->prefill_node, "p0");
    expect_alike(rig->streams, on_cpu);
    rig_finish(rig);
}

static void prefill_on_a_gpu_and_decode_on_a_cpu_over_shm(void **state)
{
    mixed(state, CUDA "--link shm", CPU "--link shm");
}
static void prefill_on_a_gpu_and_decode_on_a_cpu_over_tcp(void **state)
{
    mixed(state, CUDA "--link tcp", CPU "--link tcp");
}
static void prefill_on_a_cpu_and_decode_on_a_gpu_over_shm(void **state)
{
    mixed(state, CPU "--link shm", CUDA "--link shm");
}
static void prefill_on_a_cpu_and_decode_on_a_gpu_over_tcp(void **state)
{
    mixed(state, CPU "--link tcp", CUDA "--link tcp");
}

static void nodes_of_other_numerics_are_refused_unless_told(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    struct process *router = cluster_router(rig->cluster, "");
    cluster_node(rig->cluster, PROGRAM_DECODE, CPU);
    cluster_await_nodes(rig->cluster);
    struct process *gpu = cluster_spawn(rig->cluster, PROGRAM_DECODE, CUDA);
    gpu->expendable = true;
    assert_int_not_equal(process_await_exit(gpu), 0);
    assert_true(process_logged(router, "numerics id"));
    rig_connect(rig);
    rig_finish(rig);
}

/* The device of one node breaks in the middle: it hands its requests back and leaves with a reason; they go
 * on elsewhere. */
static void a_sick_device_hands_its_requests_back(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "");
    setenv("TANDEM_FAKE_CUDA", "fail_call=cudaGraphLaunch,fail_at=6", 1);
    struct process *sick = cluster_node(rig->cluster, PROGRAM_DECODE, CUDA "--deterministic");
    unsetenv("TANDEM_FAKE_CUDA");
    sick->expendable = true;
    cluster_await_nodes(rig->cluster);
    rig->streams = streams_new(rig->cluster->addresses);
    for (uint32_t i = 0; i < ASKS; i++)
        streams_start(rig->streams, i % 2, &asks[i]);
    streams_until_tokens(rig->streams->stream[0], 2);
    assert_int_equal(process_await_exit(sick), 1);
    assert_true(process_logged(sick, "engine_failed"));
    cluster_node(rig->cluster, PROGRAM_DECODE, CUDA "--deterministic");
    streams_run(rig->streams);
    expect_equal(rig, on_cuda);
    rig_finish(rig);
}

/* A node that cannot start says why, and leaves. */
static void cannot_start(void **state, const char *knobs, const char *args, const char *why)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "");
    if (knobs) setenv("TANDEM_FAKE_CUDA", knobs, 1);
    struct process *p = cluster_spawn(rig->cluster, PROGRAM_DECODE, args);
    unsetenv("TANDEM_FAKE_CUDA");
    p->expendable = true;
    assert_int_not_equal(process_await_exit(p), 0);
    if (!process_logged(p, why)) fail_msg("it does not say \"%s\"", why);
    rig_connect(rig);
    rig_finish(rig);
}

static void a_device_too_small_is_told_with_the_sums(void **state)
{
    cannot_start(state, "device_bytes=64000000", "--device cuda",
                 "the KV of one context of 8192 tokens needs 12 MiB");
}
static void a_device_that_is_not_there_is_named(void **state)
{
    cannot_start(state, NULL, "--device cuda:7", "there is no device 7");
}
static void a_missing_plugin_is_named(void **state)
{
    setenv("TANDEM_PLUGIN_DIR", TANDEM_FAKE_DIR "/nowhere", 1);
    cannot_start(state, NULL, "--device cuda", "libtandem_cuda.so");
    setenv("TANDEM_PLUGIN_DIR", TANDEM_FAKE_DIR, 1);
}

/* How often the node has told of its copied weights so far: each time more. The last said. */
static uint32_t copies_told(const struct process *p, double *mib)
{
    char line[512];
    uint32_t count = 0;
    FILE *log = fopen(p->log, "re");
    assert_non_null(log);
    *mib = 0;
    while (fgets(line, sizeof line, log)) {
        const char *said = strstr(line, "weights_copied mib=");
        double before = *mib;
        if (!said || !strchr(line, '\n')) continue;
        assert_int_equal(sscanf(said, "weights_copied mib=%lf", mib), 1);
        assert_true(*mib > before);
        count++;
    }
    fclose(log);
    return count;
}

/* Copies that take 60 ms each make some seconds of it. */
static void copying_weights_is_shown_until_all_are_there(void **state)
{
    struct rig *rig = *state;
    struct stat file;
    char path[PATH_MAX];
    double mib;
    rig->cluster = cluster_new(cluster_demo_model());
    snprintf(path, sizeof path, "%s/model.safetensors", rig->cluster->model);
    assert_int_equal(stat(path, &file), 0);
    double all = (double)file.st_size / (1 << 20);
    cluster_router(rig->cluster, "");
    setenv("TANDEM_FAKE_CUDA", "stream_delay_us=60000", 1);
    struct process *p = cluster_spawn(rig->cluster, PROGRAM_DECODE, CUDA);
    unsetenv("TANDEM_FAKE_CUDA");
    uint64_t until_ns = clock_now_ns() + CLUSTER_WAIT_MS * NS_PER_MS;
    while (copies_told(p, &mib), mib < all - 0.1) {
        if (clock_now_ns() > until_ns) fail_msg("it told of %g of %g MiB", mib, all);
        process_look(p);
        poll(NULL, 0, 5);
    }
    assert_true(mib < all + 0.1);
    assert_true(copies_told(p, &mib) >= 2);
    process_kill(p);
    rig_connect(rig);
    rig_finish(rig);
}

static void expect_place(struct cluster *c, const char *name, const char *pci, int numa,
                         const char *cpus, const char *cards)
{
    json_t *status = cluster_status(c);
    json_t *place = json_object_get(cluster_find_node(status, name), "place");
    assert_string_equal(json_string_value(json_object_get(place, "pci")), pci);
    assert_int_equal(json_integer_value(json_object_get(place, "numa")), numa);
    assert_string_equal(json_string_value(json_object_get(place, "cpus")), cpus);
    assert_string_equal(json_string_value(json_object_get(place, "cards")), cards);
    json_decref(status);
}

/* The host is a file, the GPUs' addresses are told to the stand-in. */
static void nodes_find_their_places_by_their_gpus(void **state)
{
    struct rig *rig = *state;
    setenv("HWLOC_XMLFILE", TANDEM_SOURCE_DIR "/tests/unit/topologies/server.xml", 1);
    setenv("TANDEM_FAKE_CUDA", "devices=2,pci=0000:1A:00.0+0000:C9:00.0", 1);
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, ANY_NUMERICS);
    cluster_node(rig->cluster, PROGRAM_PREFILL, CUDA "--device cuda:0");
    cluster_node(rig->cluster, PROGRAM_DECODE, CUDA "--device cuda:1 --cpus 9-11,25-27");
    cluster_node(rig->cluster, PROGRAM_DECODE, CPU "--cpus 12,13");
    cluster_await_nodes(rig->cluster);
    unsetenv("HWLOC_XMLFILE");
    unsetenv("TANDEM_FAKE_CUDA");
    expect_place(rig->cluster, "p0", "0000:1a:00.0", 0, "0-7,16-23", "mlx5_0");
    expect_place(rig->cluster, "d0", "0000:c9:00.0", 1, "9-11,25-27", "mlx5_2");
    expect_place(rig->cluster, "d1", "", 1, "12-13", "");
    cluster_stop(rig->cluster);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_node_says_what_the_cpu_says),
        RIG_TEST(prefill_and_decode_on_gpus_give_one_gpus_streams),
        RIG_TEST(a_stream_goes_on_when_its_gpu_node_dies),
        RIG_TEST(prefill_on_a_gpu_and_decode_on_a_cpu_over_shm),
        RIG_TEST(prefill_on_a_gpu_and_decode_on_a_cpu_over_tcp),
        RIG_TEST(prefill_on_a_cpu_and_decode_on_a_gpu_over_shm),
        RIG_TEST(prefill_on_a_cpu_and_decode_on_a_gpu_over_tcp),
        RIG_TEST(nodes_of_other_numerics_are_refused_unless_told),
        RIG_TEST(a_sick_device_hands_its_requests_back),
        RIG_TEST(a_device_too_small_is_told_with_the_sums),
        RIG_TEST(a_device_that_is_not_there_is_named),
        RIG_TEST(a_missing_plugin_is_named),
        RIG_TEST(copying_weights_is_shown_until_all_are_there),
        RIG_TEST(nodes_find_their_places_by_their_gpus),
    };
    return cmocka_run_group_tests(tests, learn, forget);
}
