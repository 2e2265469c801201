/* Whatever way a request takes through the cluster, its stream is the same. */
#include "tests/e2e/rig.h"

#include <string.h>

#include "common/mem.h"
#include "text/tokenizer.h"

enum { SEED = 7, ASKS = 24 };

static int learn(void **state)
{
    (void)state;
    return rig_learn(SEED, ASKS);
}

static void same_streams(void **state, uint32_t prefills, uint32_t decodes, const char *router_args,
                         const char *node_args)
{
    struct rig *rig = *state;
    rig_start(rig, prefills, decodes, router_args, node_args);
    rig_expect_wanted(rig);
    rig_finish(rig);
}

static void disaggregated_when_it_pays(void **state)
{
    same_streams(state, 1, 1, "--disaggregate auto", "");
}

static void never_disaggregated(void **state)
{
    same_streams(state, 1, 1, "--disaggregate never", "");
}

static void without_a_prefill_node(void **state)
{
    same_streams(state, 0, 2, "", "");
}

static void without_a_link_in_common_prompts_are_computed_where_they_are_decoded(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    struct process *router = cluster_router(rig->cluster, "--disaggregate always");
    cluster_node(rig->cluster, PROGRAM_PREFILL, "--link shm");
    cluster_node(rig->cluster, PROGRAM_DECODE, "--link tcp");
    cluster_await_nodes(rig->cluster);
    assert_true(process_logged(router, "node_shares_no_link"));
    rig_connect(rig);
    rig_expect_wanted(rig);
    for (uint32_t i = 0; i < rig->asks.count; i++)
        assert_string_equal(rig->streams->stream[i]->prefill_node, "");
    rig_finish(rig);
}

static void always_disaggregated_without_prefix_cache(void **state)
{
    same_streams(state, 2, 1, "--disaggregate always", "--prefix-cache=false --chunk 5");
}

static void with_one_sequence_at_a_time(void **state)
{
    same_streams(state, 1, 1, "--disaggregate always", "--batch 1");
}

/* ---- instruction sets ---- */

static void mixed(void **state, const char *prefill_args, const char *decode_args)
{
    struct rig *rig = *state;
    if (strstr(prefill_args, "cpu-c") || strstr(decode_args, "cpu-c"))
        rig->asks.count = 4; /* slow */
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "--disaggregate always");
    cluster_node(rig->cluster, PROGRAM_PREFILL, prefill_args);
    cluster_node(rig->cluster, PROGRAM_DECODE, decode_args);
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    rig_expect_wanted(rig);
    for (uint32_t i = 0; i < rig->asks.count; i++)
        assert_string_equal(rig->streams->stream[i]->prefill_node, "p0");
    rig_finish(rig);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16");
}

static void prefill_on_avx2_and_decode_on_avx512(void **state)
{
    if (!has_avx2() || !has_avx512()) skip();
    mixed(state, "--device cpu-avx2", "--device cpu-avx512 --threads 2");
}

static void prefill_on_avx512_and_decode_in_portable_c(void **state)
{
    if (!has_avx512()) skip();
    mixed(state, "--device cpu-avx512", "--device cpu-c --threads 2");
}

static void prefill_in_portable_c_and_decode_on_the_best(void **state)
{
    mixed(state, "--device cpu-c --threads 2", "");
}

/* ---- prefill only ---- */

/* A request of one token needs no decode node, and gets the first token of the longer one. */
static void one_token_needs_no_decode_node(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 0, "", "");
    for (uint32_t i = 0; i < rig->asks.count; i++) {
        struct ask ask = rig->asks.ask[i];
        ask.max_tokens = 1;
        const struct stream *s = streams_ask(rig->streams, &ask);
        const struct stream *longer = rig->wanted->stream[i];
        stream_expect_done(s);
        for (uint32_t c = 0; c < s->choices_count; c++) {
            assert_int_equal(s->choice[c].tokens_count, 1);
            assert_int_equal(s->choice[c].tokens[0], longer->choice[c].tokens[0]);
        }
        assert_string_equal(s->decode_node, "");
    }
    rig_finish(rig);
}

/* ---- choices, stop strings, text ---- */

static void choices_draw_apart_and_the_first_as_if_alone(void **state)
{
    struct rig *rig = *state;
    struct ask ask = {.text = "JULIET:\n", .max_tokens = 60, .temperature = 1, .seed = 5};
    rig_start(rig, 1, 2, "--disaggregate always", "");
    const struct stream *alone = streams_ask(rig->streams, &ask);
    ask.choices = 3;
    const struct stream *three = streams_ask(rig->streams, &ask);
    const struct stream *again = streams_ask(rig->streams, &ask);
    ask.seed = 6;
    const struct stream *other = streams_ask(rig->streams, &ask);
    stream_expect_equal(again, three);
    const struct outcome *first = &three->choice[0], *second = &three->choice[1];
    assert_int_equal(first->tokens_count, alone->choice[0].tokens_count);
    assert_memory_equal(first->tokens, alone->choice[0].tokens, first->tokens_count * 4);
    assert_memory_not_equal(first->tokens, second->tokens, 20 * 4);
    assert_memory_not_equal(first->tokens, other->choice[0].tokens, 20 * 4);
    rig_finish(rig);
}

/* Where the text would have gone on with the stop string it ends, and nothing of it was sent. */
static void a_stop_string_ends_the_text_before_it(void **state)
{
    static const char *const stops[] = {"\n", " the", "o", "\n\n", "no such text"};
    struct rig *rig = *state;
    struct ask ask = {.text = "KING:\n", .max_tokens = 120, .temperature = 0.7f, .seed = 3};
    rig_start(rig, 1, 1, "", "");
    const struct stream *whole = streams_ask(rig->streams, &ask);
    stream_expect_done(whole);
    for (size_t i = 0; i < sizeof stops / sizeof stops[0]; i++) {
        ask.stop = stops[i];
        const struct stream *s = streams_ask(rig->streams, &ask);
        const struct buf *text = &s->choice[0].text, *all = &whole->choice[0].text;
        const char *at = strstr(all->data, stops[i]);
        stream_expect_done(s);
        assert_int_equal(text->size, at ? (size_t)(at - all->data) : all->size);
        if (text->size) assert_memory_equal(text->data, all->data, text->size);
        if (at) assert_int_equal(s->choice[0].finish, TANDEM_FINISH_STOP);
    }
    rig_finish(rig);
}

/* A hot sampler draws bytes that seldom make whole characters: the pieces (each of which was checked to
 * be UTF-8 when it came) together are the text of all tokens. */
static void pieces_of_characters_wait_for_the_rest(void **state)
{
    struct rig *rig = *state;
    struct tokenizer *tokenizer;
    assert_int_equal(tokenizer_open(&tokenizer, cluster_demo_model()), 0);
    rig_start(rig, 1, 1, "", "");
    for (uint64_t seed = 1; seed <= 8; seed++) {
        struct ask ask = {.text = "\xe2\x82\xac", .max_tokens = 100, .temperature = 50};
        ask.seed = seed;
        ask.ignore_eos = true;
        char *text;
        size_t text_bytes;
        const struct stream *s = streams_ask(rig->streams, &ask);
        const struct outcome *o = &s->choice[0];
        stream_expect_done(s);
        assert_int_equal(tokenizer_decode(tokenizer, o->tokens, o->tokens_count,
                                          TOKENIZER_SKIP_SPECIAL, &text, &text_bytes),
                         0);
        if (o->text.size != text_bytes || memcmp(o->text.data, text, text_bytes) != 0)
            fail_msg("seed %lu: \"%s\" instead of \"%s\"", seed, o->text.data, text);
        mem_free(text);
    }
    tokenizer_close(tokenizer);
    rig_finish(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(disaggregated_when_it_pays),
        RIG_TEST(never_disaggregated),
        RIG_TEST(without_a_prefill_node),
        RIG_TEST(without_a_link_in_common_prompts_are_computed_where_they_are_decoded),
        RIG_TEST(always_disaggregated_without_prefix_cache),
        RIG_TEST(with_one_sequence_at_a_time),
        RIG_TEST(prefill_on_avx2_and_decode_on_avx512),
        RIG_TEST(prefill_on_avx512_and_decode_in_portable_c),
        RIG_TEST(prefill_in_portable_c_and_decode_on_the_best),
        RIG_TEST(one_token_needs_no_decode_node),
        RIG_TEST(choices_draw_apart_and_the_first_as_if_alone),
        RIG_TEST(a_stop_string_ends_the_text_before_it),
        RIG_TEST(pieces_of_characters_wait_for_the_rest),
    };
    return cmocka_run_group_tests_name("e2e/modes", tests, learn, rig_forget);
}
