/* KV memory on real processes: samples that share their prompt's KV, and long generations in half of the
 * memory that they need. Streams are those of runs without. */
#include "tests/e2e/page.h"
#include "tests/e2e/rig.h"
#include "tests/unit/exposition.h"

static const char speech[] =
    "KING HENRY V:\nOnce more unto the breach, dear friends, once more; or close the wall up with "
    "our "
    "English dead. In peace there's nothing so becomes a man as modest stillness and humility.\n";

/* What node `d0` counts of this, as it told last. */
static uint64_t counted(struct cluster *c, const char *group, const char *name)
{
    json_t *status = cluster_status(c);
    json_t *value = json_object_get(json_object_get(cluster_find_node(status, "d0"), group), name);
    assert_non_null(value);
    uint64_t n = (uint64_t)json_integer_value(value);
    json_decref(status);
    return n;
}

static uint64_t pressure(struct cluster *c, const char *name)
{
    return counted(c, "pressure", name);
}

static struct {
    const char *group, *name;
    uint64_t least;
} awaited;

static bool is_counted(struct cluster *c, json_t *status)
{
    (void)status;
    return counted(c, awaited.group, awaited.name) >= awaited.least;
}

/* With a heartbeat that is still to come. */
static void await_count(struct cluster *c, const char *group, const char *name, uint64_t least)
{
    awaited.group = group;
    awaited.name = name;
    awaited.least = least;
    cluster_await(c, is_counted, name);
}

static uint64_t sent_bytes(struct cluster *c)
{
    uint64_t bytes = 0;
    size_t i;
    json_t *link;
    cluster_await_idle(c);
    json_t *status = cluster_status(c);
    json_array_foreach(json_object_get(status, "links"), i, link) bytes +=
        (uint64_t)json_integer_value(json_object_get(link, "bytes"));
    json_decref(status);
    return bytes;
}

/* ---- samples ---- */

enum { SAMPLES = 8 };

/* A cluster of its own, so that nothing is cached; `wanted` may be NULL. Returns the bytes that P sent. */
static uint64_t sample(struct rig *rig, uint32_t samples, const char *router_args,
                       struct streams **streams)
{
    struct ask ask = {.text = speech,
                      .max_tokens = 40,
                      .choices = samples,
                      .temperature = 1,
                      .seed = 9,
                      .want_logprobs = true};
    char args[128];
    snprintf(args, sizeof args, "--disaggregate always %s", router_args);
    rig_start(rig, 1, 1, args, "");
    stream_expect_done(streams_ask(rig->streams, &ask));
    uint64_t bytes = sent_bytes(rig->cluster);
    *streams = rig->streams;
    rig->streams = NULL;
    return bytes;
}

static void samples_of_one_prompt_get_its_kv_once(void **state)
{
    struct rig *rig = *state;
    struct streams *one, *apart, *forked;
    uint64_t bytes_of_one = sample(rig, 1, "", &one);
    rig_finish(rig);
    sample(rig, SAMPLES, "--forks=false", &apart);
    assert_int_equal(pressure(rig->cluster, "forks"), 0);
    rig_finish(rig);
    uint64_t bytes = sample(rig, SAMPLES, "", &forked);
    uint32_t last = forked->stream[0]->prompt_tokens - 1;
    await_count(rig->cluster, "pressure", "forks", SAMPLES - 1);
    assert_int_equal(pressure(rig->cluster, "forks"), SAMPLES - 1);
    assert_int_equal(pressure(rig->cluster, "fork_shared_blocks"), (SAMPLES - 1) * (last / 16));
    assert_int_equal(pressure(rig->cluster, "fork_copied_blocks"), last % 16 ? SAMPLES - 1 : 0);
    assert_true(last / 16 > 2 && last % 16 > 0);
    assert_int_equal(bytes, bytes_of_one);
    stream_expect_equal(forked->stream[0], apart->stream[0]);
    rig_finish(rig);
    streams_free(one);
    streams_free(apart);
    streams_free(forked);
}

/* Whoever has them is killed, once while they wait for their sibling's KV and once while they run. */
static void samples_survive_the_node_that_has_them(void **state)
{
    struct rig *rig = *state;
    struct ask ask = {.text = speech,
                      .max_tokens = 120,
                      .choices = SAMPLES,
                      .temperature = 1,
                      .seed = 12,
                      .want_logprobs = true};
    rig_start(rig, 1, 3, "--disaggregate always --lone-deaths-max 100", "");
    const struct stream *wanted = streams_ask(rig->streams, &ask);
    stream_expect_done(wanted);
    for (uint32_t tokens = 1; tokens <= 200; tokens += 199) {
        struct stream *s = streams_start(rig->streams, 0, &ask);
        streams_until_tokens(s, tokens);
        process_kill(cluster_process_of(rig->cluster, s->id, "decode"));
        streams_run(rig->streams);
        stream_expect_equal(s, wanted);
    }
    rig_finish(rig);
}

/* ---- long generations ---- */

enum { LONG = 12, LONG_TOKENS = 150 };

static void start_long(struct streams *s)
{
    for (uint32_t i = 0; i < LONG; i++) {
        struct ask ask = {.text = i % 2 ? speech : speech + 5 * i, /* some share theirs */
                          .max_tokens = LONG_TOKENS,
                          .temperature = 0.8f,
                          .seed = 70 + i,
                          .ignore_eos = true,
                          .want_logprobs = true};
        streams_start(s, i, &ask);
    }
}

static struct streams *wanted_long;

static int learn_long(void **state)
{
    (void)state;
    struct rig rig = {0};
    rig_start(&rig, 1, 1, "--disaggregate always", "");
    start_long(rig.streams);
    streams_run(rig.streams);
    assert_int_equal(pressure(rig.cluster, "preemptions"), 0);
    wanted_long = rig.streams;
    rig.streams = NULL;
    rig_finish(&rig);
    return 0;
}

static int forget_long(void **state)
{
    (void)state;
    streams_free(wanted_long);
    return 0;
}

/* Of what they need when they are done, shared blocks counted once. */
static uint32_t half_of_the_blocks(void)
{
    uint32_t each = (wanted_long->stream[0]->prompt_tokens + LONG_TOKENS + 15) / 16;
    return LONG * (each - 2) / 2;
}

static void expect_long(struct rig *rig)
{
    start_long(rig->streams);
    streams_run(rig->streams);
    for (uint32_t i = 0; i < LONG; i++)
        stream_expect_equal(rig->streams->stream[i], wanted_long->stream[i]);
    await_count(rig->cluster, "pressure", "preemptions", 1);
    await_count(rig->cluster, "memory", "held_tokens_peak", 1);
    assert_true(counted(rig->cluster, "memory", "contiguous_slots_peak") >
                counted(rig->cluster, "memory", "held_tokens_peak"));
}

static void generate_long(struct rig *rig, const char *node_args)
{
    char args[128];
    snprintf(args, sizeof args, "--blocks %u %s", half_of_the_blocks(), node_args);
    rig_start(rig, 1, 1, "--disaggregate always", args);
    expect_long(rig);
}

static void twice_the_memory_of_long_generations_is_computed_again(void **state)
{
    struct rig *rig = *state;
    generate_long(rig, "--preempted recompute");
    await_count(rig->cluster, "pressure", "returned_computed_tokens", 1);
    await_count(rig->cluster, "pressure", "returned_cached_tokens", 1);
    assert_int_equal(pressure(rig->cluster, "handed_back"), 0);
    rig_finish(rig);
}

/* What was preempted is stored in a tier before its blocks go, and most of it need not be computed again. */
static void twice_the_memory_of_long_generations_is_swapped_to_disk(void **state)
{
    struct rig *rig = *state;
    static char page[PAGE_MAX];
    char args[SCRATCH_BYTES + 160];
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "--disaggregate always");
    cluster_node(rig->cluster, PROGRAM_PREFILL, "");
    snprintf(args, sizeof args,
             "--blocks %u --preempted recompute --kv-tier-deadline 10s --kv-disk-bytes 64M "
             "--metrics 127.0.0.1:0 --kv-disk %s/tier",
             half_of_the_blocks(), rig->cluster->folder);
    const struct process *decode = cluster_node(rig->cluster, PROGRAM_DECODE, args);
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    expect_long(rig);
    await_count(rig->cluster, "pressure", "returned_cached_tokens", 1);
    assert_int_equal(page_get(decode->metrics, "/metrics", page), 200);
    struct exposition *x = exposition_read(page);
    assert_true(exposition_value(x, "tandem_node_tier_loaded_tokens_total") > 0);
    exposition_free(x);
    rig_finish(rig);
}

static void twice_the_memory_of_long_generations_is_handed_back(void **state)
{
    struct rig *rig = *state;
    generate_long(rig, "--preempted hand-back");
    await_count(rig->cluster, "pressure", "handed_back", 1);
    rig_finish(rig);
}

static void twice_the_memory_of_long_generations_comes_back_the_cheaper_way(void **state)
{
    struct rig *rig = *state;
    generate_long(rig, "--prefix-cache=false");
    assert_int_equal(pressure(rig->cluster, "returned_cached_tokens"), 0);
    rig_finish(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(samples_of_one_prompt_get_its_kv_once),
        RIG_TEST(samples_survive_the_node_that_has_them),
        RIG_TEST(twice_the_memory_of_long_generations_is_computed_again),
        RIG_TEST(twice_the_memory_of_long_generations_is_swapped_to_disk),
        RIG_TEST(twice_the_memory_of_long_generations_is_handed_back),
        RIG_TEST(twice_the_memory_of_long_generations_comes_back_the_cheaper_way),
    };
    return cmocka_run_group_tests(tests, learn_long, forget_long);
}
