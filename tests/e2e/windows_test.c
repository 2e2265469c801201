/* Prompts far longer than the pools: of a model with a sliding window, and of a request that asks for one.
 * Their streams are those of the engine alone, which keeps all KV. */
#include <stdio.h>
#include <string.h>

#include "common/rng.h"
#include "engine/engine.h"
#include "tests/e2e/cluster.h"
#include "tests/e2e/page.h"
#include "tests/e2e/streams.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tiny_model.h"

enum { WINDOW = 48, SINKS = 32, CONTEXT = 1024, ASKS = 6, PROMPT_MAX = 900, TOKENS = 60 };
enum { FIRST = 1, NEXT = ASKS, SAID = 40 }; /* a conversation: its first turn, and the next one */

/* Both pools hold a window and a chunk or two, an eighth of the longest prompt. */
#define NODES "--threads 1 --chunk 32 --prefix-cache=false --metrics 127.0.0.1:0 --blocks "

#define CACHING "--threads 1 --chunk 32 --metrics 127.0.0.1:0 --blocks 14 "

static const struct tiny_shape shape = {.hidden = 64,
                                        .layers = 2,
                                        .heads = 4,
                                        .kv_heads = 2,
                                        .head_dim = 16,
                                        .ffn = 96,
                                        .vocab = 200,
                                        .context = CONTEXT,
                                        .dtype = DTYPE_BF16,
                                        .seed = 5};

struct world {
    char model[SCRATCH_BYTES];
    uint32_t prompt[ASKS + 1][PROMPT_MAX], prompt_count[ASKS + 1];
    uint32_t want[ASKS + 1][TOKENS];
    char disk[SCRATCH_BYTES];
    struct cluster *cluster;
    struct streams *streams;
};

static struct kv_window window_of(bool of_model)
{
    return of_model ? (struct kv_window){0} : (struct kv_window){WINDOW, SINKS};
}

/* The whole prompt in one step, then token by token; blocks for all of it. */
static void run_alone(struct engine *engine, struct step *step, struct world *w, uint32_t i,
                      struct kv_window window)
{
    struct job job = {.prompt = w->prompt[i],
                      .prompt_count = w->prompt_count[i],
                      .tokens_max = TOKENS,
                      .sampling = {.top_p = 1, .repetition_penalty = 1}};
    uint32_t position = 0, rows = w->prompt_count[i];
    memcpy(step->tokens, w->prompt[i], rows * sizeof *step->tokens);
    for (uint32_t n = 0; n < TOKENS; n++) {
        step->id++;
        step->sequences_count = 1;
        step->rows_count = rows;
        step->table_count = blocks_for_tokens(position + rows);
        for (uint32_t k = 0; k < step->table_count; k++)
            step->table[k] = k;
        step->sequence[0] = (struct step_sequence){.rows_count = rows,
                                                   .position = position,
                                                   .window = window,
                                                   .sample = true,
                                                   .setup = n == 0 ? &job : NULL};
        assert_ok(engine_run(engine, step));
        w->want[i][n] = step->result[0].token;
        position += rows;
        rows = 1;
        step->tokens[0] = STEP_TOKEN_LAST;
    }
}

static void learn(struct world *w, bool of_model)
{
    struct tiny_shape own = shape;
    struct engine *engine;
    struct step *step;
    own.window = of_model ? WINDOW : 0;
    scratch_make(w->model);
    tiny_model_write(w->model, &own);
    struct engine_options o = {.model_dir = w->model,
                               .cache_dir = "none",
                               .threads = 1,
                               .limits = {1, PROMPT_MAX, CONTEXT / BLOCK_TOKENS},
                               .blocks_count = CONTEXT / BLOCK_TOKENS,
                               .slots_count = 1};
    assert_ok(engine_open(&engine, &o));
    assert_ok(step_new(&step, &o.limits));
    for (uint32_t i = 0; i < ASKS; i++) {
        w->prompt_count[i] = PROMPT_MAX - 137 * i;
        for (uint32_t t = 0; t < w->prompt_count[i]; t++)
            w->prompt[i][t] = rng_below(rng_draw(9, i, t).word[0], own.vocab);
        run_alone(engine, step, w, i, window_of(of_model));
    }
    w->prompt_count[NEXT] = w->prompt_count[FIRST] + TOKENS + SAID;
    memcpy(w->prompt[NEXT], w->prompt[FIRST], w->prompt_count[FIRST] * sizeof(uint32_t));
    memcpy(w->prompt[NEXT] + w->prompt_count[FIRST], w->want[FIRST], sizeof w->want[FIRST]);
    for (uint32_t t = w->prompt_count[NEXT] - SAID; t < w->prompt_count[NEXT]; t++)
        w->prompt[NEXT][t] = t % own.vocab;
    run_alone(engine, step, w, NEXT, window_of(of_model));
    step_free(step);
    engine_close(engine);
}

static int setup(void **state)
{
    static struct world w;
    w = (struct world){0};
    *state = &w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    streams_free(w->streams);
    cluster_free(w->cluster);
    if (w->model[0]) scratch_remove(w->model);
    if (w->disk[0]) scratch_remove(w->disk);
    return 0;
}

static void start(struct world *w, uint32_t decodes)
{
    char prefill[SCRATCH_BYTES + 128], decode[SCRATCH_BYTES + 128];
    snprintf(prefill, sizeof prefill, NODES "16 --model %s", w->model);
    snprintf(decode, sizeof decode, NODES "14 --model %s", w->model);
    w->cluster = cluster_new(NULL); /* token ids only: the router needs no model */
    cluster_router(w->cluster, "--disaggregate always");
    cluster_node(w->cluster, PROGRAM_PREFILL, prefill);
    for (uint32_t i = 0; i < decodes; i++)
        cluster_node(w->cluster, PROGRAM_DECODE, decode);
    cluster_await_nodes(w->cluster);
    w->streams = streams_new(w->cluster->addresses);
}

static void ask_all(struct world *w, bool of_model, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct ask ask = {.tokens = w->prompt[i % ASKS],
                          .tokens_count = w->prompt_count[i % ASKS],
                          .max_tokens = TOKENS,
                          .ignore_eos = true,
                          .no_text = true,
                          .kv_window = window_of(of_model).tokens,
                          .kv_sinks = window_of(of_model).sinks};
        streams_start(w->streams, 0, &ask);
    }
}

static void expect_all(struct world *w, bool of_model)
{
    streams_run(w->streams);
    for (uint32_t i = 0; i < w->streams->count; i++) {
        const struct stream *s = w->streams->stream[i];
        stream_expect_done(s);
        assert_int_equal(s->choice[0].tokens_count, TOKENS);
        assert_memory_equal(s->choice[0].tokens, w->want[i % ASKS], sizeof w->want[0]);
        assert_int_equal(s->kv_window, window_of(of_model).tokens);
        assert_int_equal(s->kv_sinks, window_of(of_model).sinks);
    }
}

static uint64_t metric(struct world *w, const char *process, const char *name)
{
    static char text[PAGE_MAX];
    char line[96];
    unsigned long long value = 0;
    assert_int_equal(page_get(cluster_process(w->cluster, process)->metrics, "/metrics", text),
                     200);
    snprintf(line, sizeof line, "\n%s ", name);
    const char *at = strstr(text, line);
    if (!at || sscanf(at + strlen(line), "%llu", &value) != 1) fail_msg("no %s", name);
    return value;
}

static void finish(struct world *w)
{
    streams_free(w->streams);
    w->streams = NULL;
    cluster_await_idle(w->cluster);
    cluster_stop(w->cluster);
}

static void through_small_pools(void **state, bool of_model)
{
    struct world *w = *state;
    const uint64_t token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2;
    uint64_t tokens = 0;
    learn(w, of_model);
    start(w, 1);
    ask_all(w, of_model, ASKS);
    expect_all(w, of_model);
    for (uint32_t i = 0; i < ASKS; i++)
        tokens += w->prompt_count[i];
    uint64_t freed_p = metric(w, "p0", "tandem_node_window_blocks_total");
    uint64_t freed_d = metric(w, "d0", "tandem_node_window_blocks_total");
    uint64_t sent = metric(w, "p0", "tandem_node_kv_sent_bytes_total");
    assert_true(freed_p * BLOCK_TOKENS > tokens / 2);
    assert_true(freed_d >= ASKS * (TOKENS / BLOCK_TOKENS - 1));
    assert_true(sent >= ASKS * WINDOW * token_bytes);
    assert_true(sent < tokens * token_bytes / 3);
    finish(w);
}

static void a_models_window_goes_through_pools_far_smaller_than_the_prompt(void **state)
{
    through_small_pools(state, true);
}

static void so_does_a_window_that_a_request_asks_for_and_its_reply_says_so(void **state)
{
    through_small_pools(state, false);
}

static bool begun(void *ctx)
{
    return ((const struct world *)ctx)->streams->tokens_count > 0;
}

/* Both decode nodes have room for two at a time, so that the one which is killed has some. */
static void streams_survive_a_node(struct world *w, bool of_model)
{
    learn(w, of_model);
    start(w, 2);
    ask_all(w, of_model, 4 * ASKS);
    streams_run_until(w->streams, begun, w, "a first token");
    process_kill(cluster_process(w->cluster, "d0"));
    expect_all(w, of_model);
    uint32_t attempts = 0;
    for (uint32_t i = 0; i < w->streams->count; i++)
        attempts += w->streams->stream[i]->attempts;
    assert_true(attempts > w->streams->count);
    finish(w);
}

static void streams_with_a_window_survive_a_node(void **state)
{
    streams_survive_a_node(*state, true);
}

static void streams_with_a_window_of_their_own_survive_a_node(void **state)
{
    streams_survive_a_node(*state, false);
}

/* ---- turns ---- */

#define PROMPT_TOKENS "tandem_node_prompt_tokens_total"

/* A later turn of the conversation; its stream is that of the engine alone. */
static const struct stream *ask_turn(struct world *w, bool of_model, uint32_t i)
{
    struct ask ask = {.tokens = w->prompt[i],
                      .tokens_count = w->prompt_count[i],
                      .max_tokens = TOKENS,
                      .ignore_eos = true,
                      .no_text = true,
                      .kv_window = window_of(of_model).tokens,
                      .kv_sinks = window_of(of_model).sinks};
    const struct stream *s = streams_start(w->streams, 0, &ask);
    streams_run(w->streams);
    stream_expect_done(s);
    assert_int_equal(s->choice[0].tokens_count, TOKENS);
    assert_memory_equal(s->choice[0].tokens, w->want[i], sizeof w->want[0]);
    return s;
}

static uint32_t whole(uint32_t tokens)
{
    return tokens / BLOCK_TOKENS * BLOCK_TOKENS;
}

/* In pools of a quarter of the prompt. D has the answer too, P the prompt. */
static void turns(struct world *w, bool of_model)
{
    learn(w, of_model);
    for (uint32_t alone = 0; alone < 2; alone++) {
        char args[SCRATCH_BYTES + 128];
        snprintf(args, sizeof args, CACHING "--model %s", w->model);
        w->cluster = cluster_new(NULL);
        cluster_router(w->cluster, alone ? "--disaggregate never" : "--disaggregate always");
        if (!alone) cluster_node(w->cluster, PROGRAM_PREFILL, args);
        cluster_node(w->cluster, PROGRAM_DECODE, args);
        cluster_await_nodes(w->cluster);
        w->streams = streams_new(w->cluster->addresses);
        assert_int_equal(ask_turn(w, of_model, FIRST)->cached_tokens, 0);
        uint64_t freed = metric(w, alone ? "d0" : "p0", "tandem_node_window_blocks_total");
        assert_true(freed > w->prompt_count[FIRST] / BLOCK_TOKENS / 2);
        uint64_t computed = alone ? 0 : metric(w, "p0", PROMPT_TOKENS);
        uint32_t known = w->prompt_count[FIRST] + TOKENS - 1;
        assert_int_equal(ask_turn(w, of_model, NEXT)->cached_tokens, whole(known));
        if (!alone)
            assert_int_equal(metric(w, "p0", PROMPT_TOKENS) - computed,
                             w->prompt_count[NEXT] - whole(w->prompt_count[FIRST]));
        finish(w);
        cluster_free(w->cluster);
        w->cluster = NULL;
    }
}

static void a_later_turn_finds_all_of_the_one_before(void **state)
{
    turns(*state, true);
}

static void so_it_does_with_a_window_of_its_own(void **state)
{
    turns(*state, false);
}

static struct world *watched;
static bool nothing_is_stored(struct cluster *c, json_t *status)
{
    (void)c, (void)status;
    return metric(watched, "d0", "tandem_node_kv_blocks{state=\"transfer\"}") == 0;
}

/* One D of three has the window of the first turn, and the router knows which. */
static void a_later_turn_goes_where_its_window_is(void **state)
{
    struct world *w = *state;
    char args[SCRATCH_BYTES + 128];
    learn(w, true);
    snprintf(args, sizeof args, CACHING "--model %s", w->model);
    w->cluster = cluster_new(NULL);
    cluster_router(w->cluster, "--metrics 127.0.0.1:0");
    cluster_node(w->cluster, PROGRAM_PREFILL, args);
    for (uint32_t i = 0; i < 3; i++)
        cluster_node(w->cluster, PROGRAM_DECODE, args);
    cluster_await_nodes(w->cluster);
    w->streams = streams_new(w->cluster->addresses);
    for (uint32_t i = 0; i < 3; i++)
        ask_turn(w, true, FIRST + i); /* others in between */
    uint32_t known = whole(w->prompt_count[FIRST] + TOKENS - 1);
    assert_int_equal(ask_turn(w, true, NEXT)->cached_tokens, known);
    assert_true(metric(w, "r0", "tandem_router_prefix_hits_total") > 0);
    finish(w);
}

static void a_killed_node_serves_the_window_that_it_knew(void **state)
{
    struct world *w = *state;
    char args[2 * SCRATCH_BYTES + 128];
    learn(w, true);
    scratch_make(w->disk);
    snprintf(args, sizeof args, CACHING "--kv-tier-deadline 20s --kv-disk %s/d --model %s", w->disk,
             w->model);
    w->cluster = cluster_new(NULL);
    cluster_router(w->cluster, "--disaggregate never");
    cluster_node(w->cluster, PROGRAM_DECODE, args);
    cluster_await_nodes(w->cluster);
    w->streams = streams_new(w->cluster->addresses);
    ask_turn(w, true, FIRST);
    cluster_await_idle(w->cluster);
    watched = w;
    cluster_await(w->cluster, nothing_is_stored, "what was computed is stored");
    process_kill(cluster_process(w->cluster, "d0"));
    const char *again = cluster_node(w->cluster, PROGRAM_DECODE, args)->name;
    cluster_await_nodes(w->cluster);
    uint32_t known = whole(w->prompt_count[FIRST] + TOKENS - 1);
    assert_int_equal(ask_turn(w, true, NEXT)->cached_tokens, known);
    assert_int_equal(metric(w, again, "tandem_node_tier_loaded_tokens_total"), WINDOW);
    finish(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            a_models_window_goes_through_pools_far_smaller_than_the_prompt, setup, teardown),
        cmocka_unit_test_setup_teardown(
            so_does_a_window_that_a_request_asks_for_and_its_reply_says_so, setup, teardown),
        cmocka_unit_test_setup_teardown(a_later_turn_finds_all_of_the_one_before, setup, teardown),
        cmocka_unit_test_setup_teardown(so_it_does_with_a_window_of_its_own, setup, teardown),
        cmocka_unit_test_setup_teardown(a_later_turn_goes_where_its_window_is, setup, teardown),
        cmocka_unit_test_setup_teardown(a_killed_node_serves_the_window_that_it_knew, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(streams_with_a_window_survive_a_node, setup, teardown),
        cmocka_unit_test_setup_teardown(streams_with_a_window_of_their_own_survive_a_node, setup,
                                        teardown),
    };
    return cmocka_run_group_tests_name("e2e/windows", tests, NULL, NULL);
}
