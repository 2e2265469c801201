/* The known greedy continuation of stories260K comes out of the whole cluster, whatever the link, the
 * threads, the chunks, and whoever dies in the middle. */
#include "tests/e2e/rig.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"

enum { TOKENS = 256, BOS = 1, TRIES = 8 };

/* What the group setup learns once: BOS and the expected tokens behind it, and their text. */
static struct {
    const char *model;
    char text[4096];
    size_t text_bytes;
    uint32_t prompt[1 + TOKENS];
} known;

static void look_up_model(void)
{
    static char model[PATH_MAX];
    struct file_map map;
    snprintf(model, sizeof model, "%s", cluster_shared("models/stories260K"));
    known.model = model;
    if (known.text_bytes > 0) return;
    assert_ok(file_map_open(&map, cluster_shared("models/stories260K/expected_greedy.txt")));
    assert_true(map.size_bytes < sizeof known.text);
    memcpy(known.text, map.data, map.size_bytes);
    known.text_bytes = map.size_bytes;
    file_map_close(&map);
    while (known.text[known.text_bytes - 1] == '\n')
        known.text_bytes--; /* the file's own end */
}

static void start(struct rig *rig, uint32_t prefills, uint32_t decodes, const char *node_args)
{
    look_up_model();
    rig->cluster = cluster_new(known.model);
    cluster_start(rig->cluster, prefills, decodes, "--disaggregate always", node_args);
    rig_connect(rig);
}

/* The continuation of BOS and the first `known_count` tokens of the answer. */
static struct ask ask_after(uint32_t known_count)
{
    return (struct ask){.tokens = known.prompt,
                        .tokens_count = 1 + known_count,
                        .max_tokens = TOKENS - known_count};
}

static void expect_known(const struct stream *s, uint32_t known_count)
{
    const struct outcome *o = &s->choice[0];
    stream_expect_done(s);
    assert_int_equal(o->tokens_count, TOKENS - known_count);
    if (known_count > 0) {
        assert_memory_equal(o->tokens, known.prompt + 1 + known_count,
                            o->tokens_count * sizeof *o->tokens);
        return;
    }
    /* As the continuation of something it begins with the blank of " Once". */
    assert_int_equal(o->text.size, 1 + known.text_bytes);
    assert_memory_equal(o->text.data + 1, known.text, known.text_bytes);
    known.prompt[0] = BOS;
    memcpy(known.prompt + 1, o->tokens, sizeof *o->tokens * TOKENS);
}

static void ask_and_expect(struct rig *rig, uint32_t known_count)
{
    known.prompt[0] = BOS;
    struct ask ask = ask_after(known_count);
    expect_known(streams_ask(rig->streams, &ask), known_count);
}

/* ---- promises ---- */

static void the_text_is_the_known_one(struct rig *rig, const char *node_args)
{
    static const uint32_t counts[] = {0, 1, 14, 15, 16, 100, 201, 255};
    start(rig, 1, 1, node_args);
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        ask_and_expect(rig, counts[i]);
    rig_finish(rig);
}

static void over_shm_with_one_thread(void **state)
{
    the_text_is_the_known_one(*state, "--link shm");
}

static void over_tcp_with_one_thread(void **state)
{
    the_text_is_the_known_one(*state, "--link tcp");
}

static void over_shm_with_two_threads(void **state)
{
    the_text_is_the_known_one(*state, "--link shm --threads 2");
}

static void over_tcp_with_two_threads(void **state)
{
    the_text_is_the_known_one(*state, "--link tcp --threads 2");
}

static void in_chunks_of_1(void **state)
{
    the_text_is_the_known_one(*state, "--link shm --chunk 1 --prefix-cache=false");
}

static void in_chunks_of_7(void **state)
{
    the_text_is_the_known_one(*state, "--link tcp --chunk 7 --prefix-cache=false");
}

static void in_chunks_of_16(void **state)
{
    the_text_is_the_known_one(*state, "--link shm --chunk 16 --prefix-cache=false");
}

static void in_chunks_of_64(void **state)
{
    the_text_is_the_known_one(*state, "--link tcp --chunk 64 --prefix-cache=false");
}

static void signal_decode_nodes(struct rig *rig, int number)
{
    struct cluster *c = rig->cluster;
    for (uint32_t i = 0; i < c->count; i++)
        if (c->process[i]->pid > 0 && c->process[i]->program == PROGRAM_DECODE)
            process_signal(c->process[i], number);
}

/* A request whose beginning is a prompt of `known_count` tokens; the node that decodes it is killed
 * when the answer has begun, and another one takes over. The node is stopped while it is looked for. On a
 * busy machine all may have been said by then: that one is let go, and asked again. */
static void kill_its_decode_node(struct rig *rig, uint32_t known_count, const char *node_args)
{
    for (int i = 0; i < TRIES; i++) {
        char state[32] = "";
        struct ask ask = ask_after(known_count);
        struct stream *s = streams_start(rig->streams, 0, &ask);
        streams_until_tokens(s, (TOKENS - known_count) / 8);
        signal_decode_nodes(rig, SIGSTOP);
        cluster_state_of(rig->cluster, s->id, state, sizeof state);
        bool over = strcmp(state, "ended") == 0;
        if (!over) process_kill(cluster_process_of(rig->cluster, s->id, "decode"));
        signal_decode_nodes(rig, SIGCONT);
        streams_run(rig->streams);
        expect_known(s, known_count);
        if (s->attempts > 1) return;
        if (!over) cluster_node(rig->cluster, PROGRAM_DECODE, node_args);
    }
    fail_msg("%d streams were over before their node could be killed", TRIES);
}

static void after_a_decode_node_died(struct rig *rig, const char *node_args)
{
    start(rig, 1, 2, node_args);
    ask_and_expect(rig, 0);
    kill_its_decode_node(rig, 0, node_args);
    cluster_node(rig->cluster, PROGRAM_DECODE, node_args);
    kill_its_decode_node(rig, 100, node_args);
    rig_finish(rig);
}

static void over_shm_after_a_decode_node_died(void **state)
{
    after_a_decode_node_died(*state, "--link shm");
}

static void over_tcp_after_a_decode_node_died(void **state)
{
    after_a_decode_node_died(*state, "--link tcp --chunk 16");
}

static void after_the_only_decode_node_was_replaced(void **state)
{
    struct rig *rig = *state;
    start(rig, 1, 1, "");
    struct ask ask = ask_after(0);
    struct stream *s = streams_start(rig->streams, 0, &ask);
    streams_until_tokens(s, TOKENS / 2);
    process_kill(cluster_process_of(rig->cluster, s->id, "decode"));
    cluster_node(rig->cluster, PROGRAM_DECODE, "--threads 2");
    streams_run(rig->streams);
    expect_known(s, 0);
    rig_finish(rig);
}

struct asked {
    struct rig *rig;
    struct stream *stream;
};

static bool is_prefilling(void *ctx)
{
    const struct asked *a = ctx;
    char state[32] = "";
    if (a->stream->accepted) cluster_state_of(a->rig->cluster, a->stream->id, state, sizeof state);
    return strcmp(state, "prefilling") == 0;
}

/* The prefill node that has the prompt is stopped, so that the kill finds it in the middle for sure. */
static void after_a_prefill_node_died_in_the_middle(struct rig *rig, const char *node_args)
{
    start(rig, 2, 1, node_args);
    ask_and_expect(rig, 0);
    struct process *p[] = {rig->cluster->process[1], rig->cluster->process[2]};
    for (int i = 0; i < 2; i++)
        process_signal(p[i], SIGSTOP);
    struct ask ask = ask_after(200);
    struct asked asked = {rig, streams_start(rig->streams, 0, &ask)};
    streams_run_until(rig->streams, is_prefilling, &asked, "a prefill node has the prompt");
    struct process *its = cluster_process_of(rig->cluster, asked.stream->id, "prefill");
    process_kill(its);
    process_signal(its == p[0] ? p[1] : p[0], SIGCONT);
    streams_run(rig->streams);
    expect_known(asked.stream, 200);
    assert_true(asked.stream->attempts > 1);
    rig_finish(rig);
}

static void over_shm_after_a_prefill_node_died(void **state)
{
    after_a_prefill_node_died_in_the_middle(*state, "--link shm");
}

static void over_tcp_after_a_prefill_node_died(void **state)
{
    after_a_prefill_node_died_in_the_middle(*state, "--link tcp");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(over_shm_with_one_thread),
        RIG_TEST(over_tcp_with_one_thread),
        RIG_TEST(over_shm_with_two_threads),
        RIG_TEST(over_tcp_with_two_threads),
        RIG_TEST(in_chunks_of_1),
        RIG_TEST(in_chunks_of_7),
        RIG_TEST(in_chunks_of_16),
        RIG_TEST(in_chunks_of_64),
        RIG_TEST(over_shm_after_a_decode_node_died),
        RIG_TEST(over_tcp_after_a_decode_node_died),
        RIG_TEST(after_the_only_decode_node_was_replaced),
        RIG_TEST(over_shm_after_a_prefill_node_died),
        RIG_TEST(over_tcp_after_a_prefill_node_died),
    };
    return cmocka_run_group_tests_name("e2e/greedy", tests, NULL, NULL);
}
