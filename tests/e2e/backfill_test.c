/* Later turns whose prefill node gets what was generated elsewhere, instead of computing it: the counters say that
 * it came, and no stream shows it. */
#include "tests/e2e/links.h"
#include "tests/e2e/page.h"
#include "tests/e2e/rig.h"
#include "tests/unit/exposition.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/geometry.h"

#define PAGES "--metrics 127.0.0.1:0 "
enum { TALK_MAX = 4000 };

/* Tokens of a first prompt, of each answer, of what is new in the next turn. */
struct lengths {
    uint32_t prompt, answer, more;
};
static const struct lengths usual = {100, 120, 60};

/* What is asked in a turn begins with all that was said before. */
struct talk {
    uint32_t tokens[TALK_MAX], count;
};

static void say(struct talk *t, uint32_t seed, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        t->tokens[t->count++] = 3 + (seed * 7919 + i * 104729) % 500;
}

static struct ask ask_of(const struct talk *t, uint32_t answer)
{
    return (struct ask){.tokens = t->tokens,
                        .tokens_count = t->count,
                        .max_tokens = answer,
                        .temperature = 0.8f,
                        .seed = 5,
                        .ignore_eos = true,
                        .want_logprobs = true};
}

static int64_t counted_in(json_t *status, const char *group, const char *name)
{
    const json_t *of = json_object_get(json_object_get(status, "router"), group);
    assert_non_null(json_object_get(of, name));
    return json_integer_value(json_object_get(of, name));
}

static int64_t counted(struct rig *rig, const char *name)
{
    json_t *status = cluster_status(rig->cluster);
    int64_t n = counted_in(status, "backfills", name);
    json_decref(status);
    return n;
}

/* Of a node's page. */
static uint32_t counted_by(struct rig *rig, const char *node, const char *series)
{
    static char text[PAGE_MAX];
    const struct process *p = cluster_process(rig->cluster, node);
    assert_int_equal(page_get(p->metrics, "/metrics", text), 200);
    struct exposition *x = exposition_read(text);
    double value = exposition_value(x, series);
    exposition_free(x);
    return (uint32_t)value;
}

/* Rows of prompts that it has computed. */
static uint32_t computed_by(struct rig *rig, const char *node)
{
    return counted_by(rig, node, "tandem_node_prompt_tokens_total");
}

/* ---- what is waited for ---- */

static int64_t entries_awaited;

static bool has_entries(struct cluster *c, json_t *status)
{
    (void)c;
    return counted_in(status, "prefix_index", "entries") >= entries_awaited;
}

static bool has_begun(struct cluster *c, json_t *status)
{
    (void)c;
    return counted_in(status, "backfills", "running") + counted_in(status, "backfills", "failed");
}

/* The first turn: what P computed and D generated is known to the router in the end. */
static const struct stream *first_turn(struct rig *rig, struct talk *t, struct lengths n)
{
    t->count = 0;
    say(t, 1, n.prompt);
    struct ask ask = ask_of(t, n.answer);
    json_t *status = cluster_status(rig->cluster);
    entries_awaited = counted_in(status, "prefix_index", "entries");
    json_decref(status);
    const struct stream *s = streams_ask(rig->streams, &ask);
    stream_expect_done(s);
    memcpy(t->tokens + t->count, s->choice[0].tokens, n.answer * sizeof *t->tokens);
    t->count += n.answer;
    entries_awaited += n.prompt / BLOCK_TOKENS + (t->count - 1) / BLOCK_TOKENS;
    cluster_await(rig->cluster, has_entries, "the router to hear of cached blocks");
    return s;
}

/* The next turn over a cluster of its own that brings nothing: what its stream must be. */
static struct streams *wanted(struct rig *rig, const char *model, struct talk *t, struct lengths n,
                              const char *args)
{
    struct cluster *c = rig->cluster = cluster_new(model);
    c->own_hosts = true;
    cluster_start(c, 1, 1, "--disaggregate always --backfill never", args);
    rig_connect(rig);
    first_turn(rig, t, n);
    say(t, 2, n.more);
    struct ask ask = ask_of(t, n.answer);
    stream_expect_done(streams_ask(rig->streams, &ask));
    assert_int_equal(computed_by(rig, "p0"), t->count + n.prompt % BLOCK_TOKENS);
    assert_int_equal(counted(rig, "done") + counted(rig, "failed"), 0);
    struct streams *streams = rig->streams;
    rig->streams = NULL;
    cluster_await_idle(c);
    cluster_stop(c);
    cluster_free(c);
    rig->cluster = NULL;
    return streams;
}

static const struct stream *last_of(const struct streams *s)
{
    return s->stream[s->count - 1];
}

/* ---- the promises ---- */

static void an_answer_comes_back(struct rig *rig, const char *model, struct lengths n,
                                 const char *nodes, const char *link)
{
    char args[256];
    snprintf(args, sizeof args, PAGES "%s--link %s", nodes, link);
    static struct talk t, again;
    struct streams *want = wanted(rig, model, &t, n, args);
    rig->cluster = cluster_new(model);
    rig->cluster->own_hosts = true;
    cluster_start(rig->cluster, 1, 1, "--disaggregate always --backfill always", args);
    rig_connect(rig);
    first_turn(rig, &again, n);
    uint32_t known = (again.count - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
    uint32_t brought = known - n.prompt / BLOCK_TOKENS * BLOCK_TOKENS;
    say(&again, 2, n.more);
    assert_memory_equal(again.tokens, t.tokens, t.count * sizeof *t.tokens);
    struct ask ask = ask_of(&again, n.answer);
    const struct stream *s = streams_ask(rig->streams, &ask);
    stream_expect_equal(s, last_of(want));
    assert_int_equal(s->cached_tokens, known);
    assert_int_equal(counted(rig, "failed"), 0);
    assert_int_equal(counted(rig, "done"), 1);
    assert_int_equal(counted(rig, "tokens"), brought);
    assert_int_equal(computed_by(rig, "p0"), n.prompt + again.count - known);
    assert_int_equal(counted_by(rig, "p0", "tandem_node_backfills_total"), 1);
    assert_int_equal(counted_by(rig, "p0", "tandem_node_backfilled_tokens_total"), brought);
    struct link_row row;
    links_await(
        rig->cluster,
        &(struct link_wish){.kind = link, .from = "d0", .to = "p0", .ready = true, .bytes = 1},
        &row);
    rig_finish(rig);
    streams_free(want);
}

static void what_was_generated_is_not_computed_again_over_shm(void **state)
{
    an_answer_comes_back(*state, cluster_demo_model(), usual, "", "shm");
}

static void what_was_generated_is_not_computed_again_over_tcp(void **state)
{
    an_answer_comes_back(*state, cluster_demo_model(), usual, "", "tcp");
}

static void between_gpus(struct rig *rig, const char *link)
{
    links_use_plugins(NULL, "");
    an_answer_comes_back(rig, links_model(), (struct lengths){40, 24, 20}, LINKS_CUDA, link);
}

static void what_was_generated_is_not_computed_again_over_nccl(void **state)
{
    between_gpus(*state, "nccl");
}

static void what_was_generated_is_not_computed_again_over_ipc(void **state)
{
    between_gpus(*state, "ipc");
}

/* Another P than the one of the first turn, which takes longer to compute 3,000 tokens than to be sent them. */
static void it_is_done_where_it_pays(void **state)
{
    struct rig *rig = *state;
    static struct talk t, other;
    rig_start(rig, 2, 1, "--disaggregate always", PAGES);
    const struct lengths n = {3000, 120, 60};
    const char *first = first_turn(rig, &t, n)->prefill_node;
    const char *second = strcmp(first, "p0") == 0 ? "p1" : "p0";
    cluster_drain(rig->cluster, cluster_process(rig->cluster, first));
    say(&other, 77, 400); /* by which it learns how fast it is */
    struct ask ask = ask_of(&other, n.answer);
    for (uint32_t i = 0; i < 2; i++)
        stream_expect_done(streams_ask(rig->streams, &ask));
    uint32_t said = t.count;
    say(&t, 2, n.more);
    ask = ask_of(&t, n.answer);
    const struct stream *s = streams_ask(rig->streams, &ask);
    stream_expect_done(s);
    assert_string_equal(s->prefill_node, second);
    assert_int_equal(counted(rig, "done"), 1);
    uint32_t known = (said - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
    assert_int_equal(counted(rig, "tokens"), known);
    assert_true(computed_by(rig, second) <= t.count - known + 2 * other.count);
    rig_finish(rig);
}

/* The node is stopped, so that it is in the middle of it, and then killed. */
static void who_dies_meanwhile_changes_no_stream(struct rig *rig, bool giver, const char *node_args)
{
    static struct talk t, again;
    struct streams *want = wanted(rig, cluster_demo_model(), &t, usual, PAGES);
    rig_start(rig, 2, 2, "--disaggregate always --backfill always", node_args);
    const struct stream *first = first_turn(rig, &again, usual);
    struct process *doomed =
        cluster_process(rig->cluster, giver ? first->decode_node : first->prefill_node);
    process_signal(doomed, SIGSTOP);
    struct ask ask = ask_of(&t, usual.answer);
    const struct stream *s = streams_start(rig->streams, 0, &ask);
    while (!s->accepted)
        streams_turn(rig->streams, 100);
    cluster_await(rig->cluster, has_begun, "a backfill");
    process_kill(doomed);
    streams_run(rig->streams);
    stream_expect_equal(s, last_of(want));
    assert_true(counted(rig, "failed") > 0);
    rig_finish(rig);
    streams_free(want);
}

static void a_giver_that_dies_changes_no_stream_over_shm(void **state)
{
    who_dies_meanwhile_changes_no_stream(*state, true, "--link shm");
}

static void a_giver_that_dies_changes_no_stream_over_tcp(void **state)
{
    who_dies_meanwhile_changes_no_stream(*state, true, "--link tcp");
}

static void a_taker_that_dies_changes_no_stream(void **state)
{
    who_dies_meanwhile_changes_no_stream(*state, false, "");
}

static int teardown(void **state)
{
    (void)state;
    links_model_remove();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(what_was_generated_is_not_computed_again_over_shm),
        RIG_TEST(what_was_generated_is_not_computed_again_over_tcp),
        RIG_TEST(what_was_generated_is_not_computed_again_over_nccl),
        RIG_TEST(what_was_generated_is_not_computed_again_over_ipc),
        RIG_TEST(it_is_done_where_it_pays),
        RIG_TEST(a_giver_that_dies_changes_no_stream_over_shm),
        RIG_TEST(a_giver_that_dies_changes_no_stream_over_tcp),
        RIG_TEST(a_taker_that_dies_changes_no_stream),
    };
    return cmocka_run_group_tests_name("e2e/backfill", tests, NULL, teardown);
}
