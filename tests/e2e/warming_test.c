/* tandem warm over real processes: what it prefilled is found, in whole and with the same bits; it stops at a
 * budget and at an interrupt, and goes on. */
#include "tests/e2e/rig.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/geometry.h"
#include "common/rng.h"
#include "tests/e2e/command.h"

enum { LINES_MAX = 400, TOKENS_MAX = 420, VOCAB = 500 };

struct line {
    uint32_t tokens[TOKENS_MAX], count;
};
static struct line lines[LINES_MAX];

static struct command warm_run;

/* Some begin with one of a few prompts of a system; no count is one of whole blocks. */
static void make_lines(uint32_t count, uint32_t longest)
{
    for (uint32_t i = 0; i < count; i++) {
        struct line *l = &lines[i];
        uint32_t family = i % 5, common = family ? 40 * family : 0;
        l->count = common + 17 + rng_below(rng_draw(5, i, 0).word[0], longest - 200);
        if (l->count % BLOCK_TOKENS == 0) l->count++;
        assert_true(l->count <= TOKENS_MAX);
        for (uint32_t k = 0; k < l->count; k++)
            l->tokens[k] =
                3 + rng_below(rng_draw(5, k < common ? 7000 + family : i, k).word[1], VOCAB - 3);
    }
}

static void write_lines(const char *path, uint32_t count)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (uint32_t i = 0; i < count; i++) {
        fprintf(f, "{\"tokens\":[");
        for (uint32_t k = 0; k < lines[i].count; k++)
            fprintf(f, "%s%u", k ? "," : "", lines[i].tokens[k]);
        fprintf(f, "]}\n");
    }
    assert_int_equal(fclose(f), 0);
}

/* Tokens of all different blocks behind all different beginnings. */
static uint64_t distinct_tokens(uint32_t count)
{
    uint64_t blocks = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t most = 0;
        for (uint32_t o = 0; o < i; o++) {
            uint32_t n = 0;
            while (n < lines[i].count && n < lines[o].count &&
                   lines[i].tokens[n] == lines[o].tokens[n])
                n++;
            most = n > most ? n : most;
        }
        blocks += lines[i].count / BLOCK_TOKENS - most / BLOCK_TOKENS;
    }
    return blocks * BLOCK_TOKENS;
}

static struct cluster *start(struct rig *rig, const char *node_args)
{
    rig->cluster = cluster_new(cluster_demo_model());
    /* Whoever computes has what was warmed: P. */
    cluster_start(rig->cluster, 1, 1, "--disaggregate always", node_args);
    return rig->cluster;
}

/* What the last run's JSON says at "a" or "a"."b". */
static json_int_t said(const char *a, const char *b)
{
    json_t *o = json_loads(warm_run.out, 0, NULL);
    if (!o) fail_msg("no JSON: %s%s", warm_run.out, warm_run.err);
    const json_t *v = json_object_get(o, a);
    json_int_t n = json_integer_value(b ? json_object_get(v, b) : v);
    json_decref(o);
    return n;
}

static bool stopped_by(const char *why)
{
    char text[64];
    snprintf(text, sizeof text, "\"stopped\":\"%s\"", why);
    return strstr(warm_run.out, text) != NULL;
}

static void what_was_warmed_is_found_whole_and_streams_as_cold(void **state)
{
    enum { COUNT = 20 };
    struct rig *rig = *state;
    struct stream *cold[COUNT];
    make_lines(COUNT, TOKENS_MAX);
    struct cluster *c = start(rig, "--prefix-cache=false");
    struct streams *without = streams_new(c->addresses), *with;
    for (uint32_t i = 0; i < COUNT; i++)
        cold[i] = streams_ask(without, &(struct ask){.tokens = lines[i].tokens,
                                                     .tokens_count = lines[i].count,
                                                     .temperature = 0.8f,
                                                     .seed = i,
                                                     .max_tokens = 12});
    rig_finish(rig);
    c = start(rig, "");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/lines.jsonl", c->folder);
    write_lines(path, COUNT);
    command_run(&warm_run, "tandem", "warm --json --router %s %s", c->addresses, path);
    assert_int_equal(warm_run.status, 0);
    assert_true(stopped_by("end"));
    assert_int_equal(said("sequences", "done"), COUNT);
    assert_int_equal(said("tokens", "new"), distinct_tokens(COUNT)); /* nothing twice */
    assert_true(said("tokens", "shared") > 0);
    assert_int_equal(said("bytes", "new"), said("tokens", "new") * said("token_bytes", NULL));
    with = streams_new(c->addresses);
    for (uint32_t i = 0; i < COUNT; i++) {
        struct stream *hit = streams_ask(with, &cold[i]->ask);
        stream_expect_equal(hit, cold[i]);
        assert_int_equal(cold[i]->cached_tokens, 0);
        assert_int_equal(hit->cached_tokens, lines[i].count / BLOCK_TOKENS * BLOCK_TOKENS);
    }
    command_run(&warm_run, "tandem", "warm --json --router %s %s", c->addresses, path);
    assert_int_equal(said("tokens", "new"), 0); /* all is there */
    streams_free(without);
    streams_free(with);
    rig_finish(rig);
}

static uint64_t prompts_done(struct cluster *c)
{
    json_t *status = cluster_status(c);
    uint64_t n =
        (uint64_t)json_integer_value(json_object_get(json_object_get(status, "router"), "done"));
    json_decref(status);
    return n;
}

static void an_interrupted_run_goes_on_where_it_was(void **state)
{
    enum { IN_FLIGHT = 8 };
    struct rig *rig = *state;
    make_lines(LINES_MAX, TOKENS_MAX);
    struct cluster *c = start(rig, "");
    char args[2 * PATH_MAX], path[PATH_MAX / 2];
    snprintf(path, sizeof path, "%s/lines.jsonl", c->folder);
    write_lines(path, LINES_MAX);
    snprintf(args, sizeof args, "warm --json --in-flight %d --router %s --resume %s/state %s",
             IN_FLIGHT, c->addresses, c->folder, path);
    command_start(&warm_run, "tandem", "%s", args);
    while (prompts_done(c) < 20) /* the test's own deadline ends it */
        assert_int_equal(kill(warm_run.pid, 0), 0);
    assert_int_equal(kill(warm_run.pid, SIGINT), 0);
    command_wait(&warm_run);
    assert_int_equal(warm_run.status, 1);
    assert_true(stopped_by("interrupted"));
    json_int_t first = said("sequences", "done");
    /* It had not heard yet of the end of what was in flight. */
    assert_true(first >= 20 - IN_FLIGHT && first < LINES_MAX);
    cluster_await_idle(c); /* what was under way is cancelled */
    command_run(&warm_run, "tandem", "%s", args);
    assert_int_equal(warm_run.status, 0);
    assert_int_equal(said("sequences", "skipped"), first);
    assert_int_equal(said("sequences", "done"), LINES_MAX - first);
    command_run(&warm_run, "tandem", "%s", args);
    assert_int_equal(said("sequences", "skipped"), LINES_MAX);
    assert_int_equal(said("sequences", "done"), 0);
    rig_finish(rig);
}

static void a_budget_ends_it_and_a_larger_one_goes_on(void **state)
{
    enum { COUNT = 100 };
    struct rig *rig = *state;
    make_lines(COUNT, TOKENS_MAX);
    struct cluster *c = start(rig, "");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/lines.jsonl", c->folder);
    write_lines(path, COUNT);
    json_int_t bytes[2], done[2];
    for (int i = 0; i < 2; i++) {
        json_int_t budget = 1500000 * (i + 1);
        command_run(&warm_run, "tandem",
                    "warm --json --in-flight 8 --router %s --resume %s/state --budget %lld %s",
                    c->addresses, c->folder, (long long)budget, path);
        assert_int_equal(warm_run.status, 0);
        assert_true(stopped_by("budget"));
        assert_non_null(strstr(warm_run.err, "the budget is used up"));
        bytes[i] = said("bytes", "new_of_all_runs");
        done[i] = said("sequences", "done");
        assert_true(bytes[i] >= budget);
        assert_true(bytes[i] - budget < 8 * TOKENS_MAX * said("token_bytes", NULL));
        assert_true(done[i] > 0);
    }
    assert_int_equal(said("sequences", "skipped"), done[0]);
    assert_true(done[0] + done[1] < COUNT);
    command_run(&warm_run, "tandem", "warm --json --router %s --resume %s/state --budget 1G %s",
                c->addresses, c->folder, path);
    assert_true(stopped_by("end"));
    assert_int_equal(said("sequences", "skipped") + said("sequences", "done"), COUNT);
    assert_int_equal(said("bytes", "new_of_all_runs"),
                     distinct_tokens(COUNT) * (uint64_t)said("token_bytes", NULL));
    rig_finish(rig);
}

/* With a disk tier: nodes that were replaced since, and a pool that held a part of it only. */
static void what_was_warmed_yesterday_comes_from_the_disk(void **state)
{
    enum { COUNT = 30, BLOCKS = 200 };
    struct rig *rig = *state;
    char args[2 * PATH_MAX], path[PATH_MAX / 2];
    make_lines(COUNT, TOKENS_MAX);
    assert_true(distinct_tokens(COUNT) > BLOCKS * BLOCK_TOKENS);
    uint32_t longest = 0;
    for (uint32_t i = 1; i < COUNT; i++)
        longest = lines[i].count > lines[longest].count ? i : longest;
    struct ask ask = {
        .tokens = lines[longest].tokens, .tokens_count = lines[longest].count, .max_tokens = 12};
    struct cluster *c = start(rig, "--prefix-cache=false");
    struct streams *without = streams_new(c->addresses);
    struct stream *cold = streams_ask(without, &ask);
    rig_finish(rig);
    c = rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(c, "--disaggregate always");
    cluster_node(c, PROGRAM_DECODE, "");
    snprintf(args, sizeof args, "--kv-disk %s/disk --kv-tier-deadline 20s --blocks %d", c->folder,
             BLOCKS);
    struct process *p = cluster_node(c, PROGRAM_PREFILL, args);
    cluster_await_nodes(c);
    snprintf(path, sizeof path, "%s/lines.jsonl", c->folder);
    write_lines(path, COUNT);
    command_run(&warm_run, "tandem", "warm --json --router %s %s", c->addresses, path);
    assert_int_equal(warm_run.status, 0);
    assert_int_equal(said("sequences", "done"), COUNT);
    cluster_drain(c, p); /* it stores what it knows, and leaves */
    assert_int_equal(process_await_exit(p), 0);
    cluster_node(c, PROGRAM_PREFILL, args);
    cluster_await_nodes(c);
    struct streams *with = streams_new(c->addresses);
    struct stream *hit = streams_ask(with, &ask);
    stream_expect_equal(hit, cold);
    assert_int_equal(hit->cached_tokens, ask.tokens_count / BLOCK_TOKENS * BLOCK_TOKENS);
    streams_free(without);
    streams_free(with);
    rig_finish(rig);
}

static void what_cannot_be_warmed_is_said_and_the_rest_is(void **state)
{
    struct rig *rig = *state;
    struct cluster *c = start(rig, "--context 64");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/bad.jsonl", c->folder);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "{\"prompt\":\"a prompt that is well formed\"}\nnot at all\n{\"tokens\":[900000]}\n"
               "{\"tokens\":[3");
    for (int i = 0; i < 70; i++)
        fprintf(f, ",4");
    fprintf(f, "]}\n{\"tokens\":[5,6,7]}\n");
    fclose(f);
    command_run(&warm_run, "tandem", "warm --json --router %s %s", c->addresses, path);
    assert_int_equal(warm_run.status, 1);
    assert_int_equal(said("sequences", "done"), 2);
    assert_int_equal(said("sequences", "failed"), 3);
    assert_non_null(strstr(warm_run.err, "line 2: no JSON object"));
    assert_non_null(strstr(warm_run.err, "line 3: "));
    assert_non_null(strstr(warm_run.err, "line 4: the prompt has 71 tokens, the context is 64"));
    rig_finish(rig);
    command_run(&warm_run, "tandem", "warm --router tcp://127.0.0.1:1 --patience 100ms %s",
                "/dev/null");
    assert_int_equal(warm_run.status, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(what_was_warmed_is_found_whole_and_streams_as_cold),
        RIG_TEST(an_interrupted_run_goes_on_where_it_was),
        RIG_TEST(a_budget_ends_it_and_a_larger_one_goes_on),
        RIG_TEST(what_was_warmed_yesterday_comes_from_the_disk),
        RIG_TEST(what_cannot_be_warmed_is_said_and_the_rest_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
