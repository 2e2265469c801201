/* Scores and embeddings over real processes: the same bits however they are computed, and when nodes die. */
#include "tests/e2e/rig.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/mem.h"
#include "common/rng.h"
#include "tests/e2e/command.h"
#include "tests/e2e/streams.h"

enum { ASKS = 24, TOKENS_MAX = 700, VALUES_MAX = 1024, VOCAB = 500 };

struct ask_for {
    enum tandem_kind kind;
    uint32_t tokens[TOKENS_MAX], count;
};

struct answer {
    struct tandem_request *request;
    uint32_t *left; /* how many have not ended */
    float values[VALUES_MAX];
    uint32_t value_tokens[VALUES_MAX];
    size_t values_count;
    enum tandem_status status;
    char reason[256], prefill_node[32], decode_node[32];
    uint32_t attempts, cached_tokens;
    struct tandem_timing timing;
};

static struct ask_for asks[ASKS];

/* Texts of all lengths, of which some begin alike. */
static void make_asks(uint32_t longest)
{
    for (uint32_t i = 0; i < ASKS; i++) {
        struct ask_for *a = &asks[i];
        uint32_t family = i % 4, common = rng_below(rng_draw(3, i, 0).word[0], 200);
        a->kind = TANDEM_SCORE + i % 3;
        a->count = 2 + rng_below(rng_draw(3, i, 0).word[1], longest - 2);
        for (uint32_t k = 0; k < TOKENS_MAX; k++)
            a->tokens[k] =
                3 +
                rng_below(rng_draw(3, k < common ? 100 + family : 200 + i, k).word[0], VOCAB - 3);
    }
}

static void on_event(void *ctx, const struct tandem_event *e)
{
    struct answer *a = ctx;
    assert_true(e->kind != TANDEM_EVENT_TOKENS && e->kind != TANDEM_EVENT_TEXT);
    if (e->kind != TANDEM_EVENT_DONE && e->kind != TANDEM_EVENT_ERROR) return;
    assert_true(e->values_count <= VALUES_MAX);
    a->values_count = e->values_count;
    if (e->values) memcpy(a->values, e->values, e->values_count * sizeof *e->values);
    if (e->value_tokens)
        memcpy(a->value_tokens, e->value_tokens, e->values_count * sizeof *e->value_tokens);
    a->status = e->status;
    a->attempts = e->attempts;
    a->cached_tokens = e->cached_tokens;
    a->timing = e->timing;
    snprintf(a->reason, sizeof a->reason, "%.255s", e->reason);
    snprintf(a->prefill_node, sizeof a->prefill_node, "%s", e->prefill_node);
    snprintf(a->decode_node, sizeof a->decode_node, "%s", e->decode_node);
    --*a->left;
}

/* All at once; `victim` is killed as soon as one has ended. */
static struct answer *ask_all(const struct cluster *c, struct process *victim)
{
    uint32_t left = ASKS;
    uint64_t end_ns = clock_now_ns() + STREAMS_WAIT_MS * NS_PER_MS;
    struct answer *answers = mem_array(ASKS, sizeof *answers);
    struct tandem *t;
    assert_int_equal(tandem_open(&t, c->addresses), TANDEM_OK);
    for (uint32_t i = 0; i < ASKS; i++) {
        answers[i].left = &left;
        struct tandem_request *r = answers[i].request =
            tandem_request_new(t, on_event, &answers[i]);
        assert_int_equal(tandem_set_tokens(r, asks[i].tokens, asks[i].count), TANDEM_OK);
        tandem_set_kind(r, asks[i].kind);
        assert_int_equal(tandem_submit(r), TANDEM_OK);
    }
    while (left > 0) {
        assert_true(clock_now_ns() < end_ns);
        tandem_wait(t, 1000);
        if (victim && left < ASKS) process_kill(victim);
        if (left < ASKS) victim = NULL;
    }
    for (uint32_t i = 0; i < ASKS; i++)
        tandem_request_free(answers[i].request);
    tandem_close(t);
    return answers;
}

static void expect_sane(const struct answer *a, const struct ask_for *ask)
{
    double squares = 0;
    if (a->status != TANDEM_OK) fail_msg("%s", a->reason);
    assert_string_equal(a->decode_node, ""); /* nothing was reserved */
    assert_true(a->timing.prefill > 0 && a->timing.ttft == 0);
    for (size_t i = 0; i < a->values_count; i++) {
        squares += (double)a->values[i] * (double)a->values[i];
        if (ask->kind == TANDEM_SCORE) assert_int_equal(a->value_tokens[i], ask->tokens[i + 1]);
    }
    if (ask->kind == TANDEM_SCORE)
        assert_int_equal(a->values_count, ask->count - 1);
    else
        assert_true(a->values_count > 1 && fabs(squares - 1) < 1e-5);
}

static void expect_equal(const struct answer *got, const struct answer *wanted)
{
    for (uint32_t i = 0; i < ASKS; i++) {
        expect_sane(&got[i], &asks[i]);
        assert_int_equal(got[i].values_count, wanted[i].values_count);
        if (memcmp(got[i].values, wanted[i].values, got[i].values_count * sizeof *got->values) != 0)
            fail_msg("request %u of %u tokens has other numbers", i, asks[i].count);
    }
}

static struct cluster *start(struct rig *rig, uint32_t prefills, uint32_t decodes, const char *args)
{
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_start(rig->cluster, prefills, decodes, "", args);
    return rig->cluster;
}

static void results_are_the_same_bits_whatever_computes_them(void **state)
{
    static const struct {
        uint32_t prefills, decodes;
        const char *args;
    } rows[] = {{2, 1, "--chunk 37"},
                {1, 1, "--chunk 512 --prefix-cache=false"},
                {0, 2, ""}, /* decode nodes, where there is no other */
                {1, 0, "--device cpu-avx2"}};
    struct rig *rig = *state;
    make_asks(TOKENS_MAX);
    struct cluster *c = start(rig, 1, 1, "");
    struct answer *wanted = ask_all(c, NULL), *again = ask_all(c, NULL);
    expect_equal(again, wanted);
    uint32_t cached = 0;
    for (uint32_t i = 0; i < ASKS; i++) {
        cached += again[i].cached_tokens;
        if (asks[i].kind != TANDEM_EMBED_LAST) assert_int_equal(again[i].cached_tokens, 0);
    }
    assert_true(cached > 0); /* the last-pooled ones came from the cache */
    mem_free(again);
    rig_finish(rig);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        c = start(rig, rows[i].prefills, rows[i].decodes, rows[i].args);
        struct answer *got = ask_all(c, NULL);
        expect_equal(got, wanted);
        mem_free(got);
        rig_finish(rig);
    }
    mem_free(wanted);
}

static void a_prefill_node_that_dies_changes_no_number(void **state)
{
    struct rig *rig = *state;
    make_asks(TOKENS_MAX);
    struct cluster *c = start(rig, 2, 1, "--chunk 64");
    struct answer *wanted = ask_all(c, NULL);
    struct answer *got = ask_all(c, cluster_process(c, "p0"));
    expect_equal(got, wanted);
    uint32_t repeated = 0;
    for (uint32_t i = 0; i < ASKS; i++)
        repeated += got[i].attempts > 1;
    assert_true(repeated > 0); /* it was in the middle of them */
    mem_free(wanted);
    mem_free(got);
    rig_finish(rig);
}

static void scores_of_the_bundled_model_are_those_of_transformers(void **state)
{
    char path[PATH_MAX];
    struct file_map map;
    const unsigned char *at;
    uint32_t count, first;
    struct rig *rig = *state;
    snprintf(path, sizeof path, "%s/tests/golden/data/demo/encode-bf16.bin", TANDEM_SOURCE_DIR);
    assert_ok(file_map_open(&map, path));
    at = (const unsigned char *)map.data + 16;
    memcpy(&first, at, 4); /* a prompt of one token: its id and two vectors of `hidden` */
    assert_int_equal(first, 1);
    uint32_t hidden;
    memcpy(&hidden, (const unsigned char *)map.data + 12, 4);
    at += 8 + 8 * hidden;
    memcpy(&count, at, 4);
    assert_true(count > 8 && count <= 64);
    char ids[512] = "";
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id;
        memcpy(&id, at + 4 + 4 * i, 4);
        snprintf(ids + strlen(ids), sizeof ids - strlen(ids), "%s%u", i ? "," : "", id);
    }
    struct cluster *c = start(rig, 1, 1, "");
    struct command r;
    command_run(&r, "tandem", "score --json --router %s --token-ids %s", c->addresses, ids);
    assert_int_equal(r.status, 0);
    json_t *o = json_loads(r.out, 0, NULL), *list = json_object_get(o, "logprobs");
    assert_int_equal(json_array_size(list), count - 1);
    for (uint32_t i = 0; i + 1 < count; i++) {
        float pair[2]; /* of the score, and the spread of its logits */
        memcpy(pair, at + 4 + 4 * count + 8 * i, sizeof pair);
        double got = json_number_value(json_array_get(list, i));
        if (fabs(got - (double)pair[0]) > 0.04 * (double)pair[1])
            fail_msg("score %u is %g, wanted %g", i, got, (double)pair[0]);
    }
    json_decref(o);
    rig_finish(rig);
    file_map_close(&map);
}

static void a_prompt_that_was_only_prefilled_is_there_for_the_next(void **state)
{
    struct rig *rig = *state;
    make_asks(TOKENS_MAX);
    struct ask ask = {.tokens = asks[0].tokens, .tokens_count = 400, .max_tokens = 12};
    struct cluster *c = start(rig, 1, 1, "");
    struct streams *s = streams_new(c->addresses);
    struct stream *cold = streams_ask(s, &ask);
    rig_finish(rig);
    c = start(rig, 1, 1, "");
    struct streams *warm = streams_new(c->addresses);
    struct command r;
    char ids[4 * 400] = "";
    for (uint32_t i = 0; i < 400; i++)
        snprintf(ids + strlen(ids), sizeof ids - strlen(ids), "%s%u", i ? "," : "", ask.tokens[i]);
    command_run(&r, "tandem", "generate --max-tokens 0 --json --router %s --token-ids %s",
                c->addresses, ids);
    assert_int_equal(r.status, 0);
    assert_non_null(strstr(r.out, "\"completion_tokens\":0"));
    assert_non_null(strstr(r.out, "\"finish_reason\":\"length\""));
    struct stream *hit = streams_ask(warm, &ask);
    stream_expect_equal(hit, cold);
    assert_int_equal(cold->cached_tokens, 0);
    assert_int_equal(hit->cached_tokens, 384); /* the last token is always computed */
    streams_free(s);
    streams_free(warm);
    rig_finish(rig);
}

static void what_cannot_be_worked_on_is_said(void **state)
{
    struct command r;
    struct rig *rig = *state;
    struct cluster *c = start(rig, 1, 1, "--context 64");
    command_run(&r, "tandem", "score --router %s --token-ids 5", c->addresses);
    assert_int_equal(r.status, 1);
    assert_non_null(strstr(r.err, "two at least"));
    char ids[4 * 65] = "5";
    for (int i = 1; i < 65; i++)
        strcat(ids, ",5");
    command_run(&r, "tandem", "embed --router %s --token-ids %s", c->addresses, ids);
    assert_int_equal(r.status, 1);
    assert_non_null(strstr(r.err, "the context is 64"));
    command_run(&r, "tandem", "embed --router %s --token-ids 900000", c->addresses);
    assert_int_equal(r.status, 1);
    assert_non_null(strstr(r.err, "the vocabulary has"));
    rig_finish(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(results_are_the_same_bits_whatever_computes_them),
        RIG_TEST(a_prefill_node_that_dies_changes_no_number),
        RIG_TEST(scores_of_the_bundled_model_are_those_of_transformers),
        RIG_TEST(a_prompt_that_was_only_prefilled_is_there_for_the_next),
        RIG_TEST(what_cannot_be_worked_on_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
