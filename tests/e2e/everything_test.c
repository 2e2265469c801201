/* Everything at once: caches, tiers, deltas, swaps, preemptions, forks, windows, pins, tenants and nodes that are
 * killed. Every token, log-probability, score and embedding has the bits that a plain node gives, which has
 * none of that; and each mechanism is counted, so that none was merely switched on. */
#include "tests/e2e/mix.h"
#include "tests/e2e/whole.h"

enum { SEED = 5, POOL_BYTES = 4 << 20 };

static struct mix *mix;

static int learn(void **state)
{
    (void)state;
    mix = mix_new(SEED);
    return 0;
}

static int forget(void **state)
{
    (void)state;
    mix_free(mix);
    return 0;
}

struct run {
    struct whole whole;
    struct streams *streams;
};

static int set_up(void **state)
{
    static struct run run;
    run = (struct run){.streams = NULL};
    *state = &run;
    return 0;
}

static int tear_down(void **state)
{
    struct run *run = *state;
    streams_free(run->streams);
    whole_end(&run->whole);
    return 0;
}

/* ---- the load ---- */

struct threshold {
    const struct streams *streams;
    uint64_t tokens_count;
};

static bool tokens_are_here(void *ctx)
{
    const struct threshold *t = ctx;
    return t->streams->tokens_count >= t->tokens_count;
}

static void until_more_tokens(struct run *run, uint32_t count)
{
    struct threshold t = {run->streams, run->streams->tokens_count + count};
    streams_run_until(run->streams, tokens_are_here, &t, "so many tokens");
}

static void pin(struct run *run)
{
    uint32_t tokens[MIX_PINNED];
    mix_pinned(mix, tokens);
    whole_pin(&run->whole, &(struct tandem_pin){.name = "system",
                                                .tenant = MIX_TENANT,
                                                .tokens = tokens,
                                                .tokens_count = MIX_PINNED});
}

/* In the first turns a node of each kind dies; the last one has them all again. */
static void serve(struct run *run, const char *router_args, const char *node_args, bool redis)
{
    whole_start(&run->whole, router_args, node_args, redis);
    run->streams = streams_new(run->whole.cluster->addresses);
    pin(run);
    for (uint32_t turn = 0; turn < MIX_TURNS; turn++) {
        mix_start(mix, turn, run->streams);
        for (uint32_t n = 0; n < 2 && turn + 1 < MIX_TURNS; n++) {
            until_more_tokens(run, 300);
            whole_replace(&run->whole, 2 * n + turn);
        }
        streams_run(run->streams);
        mix_expect(mix, turn, run->streams);
        cluster_await_nodes(run->whole.cluster);
        cluster_await_idle(run->whole.cluster);
    }
    whole_await_pin(&run->whole);
}

static void expect_counted(struct run *run, const enum counted *which, size_t count)
{
    whole_count(&run->whole);
    for (size_t i = 0; i < COUNTS; i++)
        print_message("%12.0f %s\n", whole_counted(&run->whole, i), whole_count_name(i));
    for (size_t i = 0; i < count; i++) {
        if (which[i] == COUNT_REDIS_BLOCKS && !run->whole.has_redis) continue;
        if (whole_counted(&run->whole, which[i]) == 0)
            fail_msg("no %s", whole_count_name(which[i]));
    }
    assert_true(whole_counted(&run->whole, COUNT_WRONG) == 0);
    assert_true(whole_counted(&run->whole, COUNT_DIVERGED) == 0);
}

static void finish(struct run *run)
{
    cluster_await_idle(run->whole.cluster);
    cluster_expect_memory(run->whole.cluster, POOL_BYTES);
    cluster_stop(run->whole.cluster);
}

static uint32_t attempts_of(const struct streams *s)
{
    uint32_t attempts = 0;
    for (uint32_t i = 0; i < s->count; i++)
        attempts += s->stream[i]->attempts;
    return attempts;
}

#define ROUTER "--tenant-weights " MIX_WEIGHTS " --disaggregate "
/* Wherever prompts are computed. */
#define ALWAYS_USED                                                                                \
    COUNT_POOL_TOKENS, COUNT_DISK_BLOCKS, COUNT_TIER_TOKENS, COUNT_STORES, COUNT_FORKS,            \
        COUNT_PREEMPTIONS, COUNT_RETURNED, COUNT_WINDOW_BLOCKS, COUNT_SCORES, COUNT_EMBEDDINGS,    \
        COUNT_INDEX_HITS
#define EXPECT_COUNTED(run, ...)                                                                   \
    expect_counted(run, (enum counted[]){__VA_ARGS__},                                             \
                   sizeof(enum counted[]){__VA_ARGS__} / sizeof(enum counted))

/* P computes every prompt, so that whatever D found it had of other requests; and what D generated comes to P
 * from D, as it would from a shared store if there was one. */
static void with_everything_on_no_bit_changes(void **state)
{
    struct run *run = *state;
    serve(run, ROUTER "always --backfill always", "--link tcp", false);
    EXPECT_COUNTED(run, ALWAYS_USED, COUNT_DELTA_TOKENS, COUNT_HANDED_BACK, COUNT_SENT_BYTES,
                   COUNT_BACKFILLED);
    assert_true(attempts_of(run->streams) > run->streams->count); /* the kills did hit */
    finish(run);
}

static void nor_where_routers_choose_who_computes_a_prompt(void **state)
{
    struct run *run = *state;
    serve(run, ROUTER "auto", "--link shm", true);
    EXPECT_COUNTED(run, ALWAYS_USED, COUNT_REDIS_BLOCKS);
    finish(run);
}

static void nor_where_decode_nodes_compute_prompts_beside_their_kv(void **state)
{
    struct run *run = *state;
    uint32_t found = 0;
    serve(run, ROUTER "never", "--link shm", true);
    EXPECT_COUNTED(run, ALWAYS_USED);
    for (uint32_t i = 0; i < run->streams->count; i++) {
        const struct stream *s = run->streams->stream[i];
        bool again = s->attempts > 1; /* one token may have been left: prefill nodes draw that */
        if (s->ask.kind == TANDEM_GENERATE && s->prefill_node[0] && !again)
            fail_msg("stream %u was prefilled by %s", i, s->prefill_node);
        found += s->cached_tokens > 0;
    }
    assert_true(found > 0);
    finish(run);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(with_everything_on_no_bit_changes),
        TEST(nor_where_routers_choose_who_computes_a_prompt),
        TEST(nor_where_decode_nodes_compute_prompts_beside_their_kv),
    };
    return cmocka_run_group_tests_name("e2e/everything", tests, learn, forget);
}
