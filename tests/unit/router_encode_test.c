/* Requests that score, embed or only prefill: at P nodes alone, told whole, repeated when an attempt dies. */
#include "tests/unit/router_rig.h"

#include "common/settings.h"

static struct msg encode_of(enum job_kind kind)
{
    struct msg m = submit_of(0);
    m.submit.kind = kind;
    return m;
}

static float value(uint32_t i)
{
    return -0.25f * (float)i;
}

/* P tells numbers [from, to) of `total`, number i being value(i). */
static void tell_values(struct world *w, uint32_t peer, struct job_key key, uint32_t from,
                        uint32_t to, uint32_t total)
{
    float values[64];
    for (uint32_t i = from; i < to; i++)
        values[i - from] = value(i);
    say(w, peer,
        (struct msg){.kind = MSG_ENCODED,
                     .encoded = {.key = key,
                                 .index = from,
                                 .total = total,
                                 .values = values,
                                 .values_count = to - from}});
}

static struct job_key begin(struct world *w, enum job_kind kind)
{
    world_open_joined(w, NULL);
    say(w, CLIENT, encode_of(kind));
    expect(w, CLIENT, MSG_ACCEPTED);
    const struct msg *m = expect(w, P0, MSG_PREFILL);
    assert_int_equal(m->prefill.job.kind, kind);
    assert_int_equal(m->prefill.job.tokens_max, 0);
    assert_true(id128_is_none(m->prefill.ticket));
    assert_false(was_sent(w, D0, MSG_RESERVE) || was_sent(w, D1, MSG_RESERVE));
    return m->prefill.job.key;
}

static const struct msg_done *expect_values(struct world *w, uint32_t count, bool tokens)
{
    const struct msg_encoded *m = &expect(w, CLIENT, MSG_ENCODED)->encoded;
    assert_int_equal(m->index, 0);
    assert_int_equal(m->total, count);
    assert_int_equal(m->values_count, count);
    assert_int_equal(m->tokens_count, tokens ? count : 0);
    for (uint32_t i = 0; i < count; i++) {
        assert_true(m->values[i] == value(i));
        if (tokens) assert_int_equal(m->tokens[i], prompt[i + 1]);
    }
    return &expect(w, CLIENT, MSG_DONE)->done;
}

static void a_result_goes_to_the_client_whole_and_with_its_times(void **state)
{
    static const struct {
        enum job_kind kind;
        uint32_t count;
    } rows[] = {{JOB_SCORE, 19}, {JOB_EMBED_LAST, 8}, {JOB_EMBED_MEAN, 8}};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct world w;
        uint32_t n = rows[i].count;
        struct job_key key = begin(&w, rows[i].kind);
        tell_values(&w, P0, key, 0, 5, n);
        tell_values(&w, P0, key, 0, 3, n); /* once more */
        tell_values(&w, P0, key, 5, n, n);
        assert_false(was_sent(&w, CLIENT, MSG_ENCODED));
        say(&w, P0,
            (struct msg){.kind = MSG_FINISHED,
                         .finished = {.key = key,
                                      .finish = FINISH_LENGTH,
                                      .cached_tokens = 16,
                                      .queued_us = 3,
                                      .compute_us = 50}});
        const struct msg_done *done = expect_values(&w, n, rows[i].kind == JOB_SCORE);
        assert_int_equal(done->finish, FINISH_LENGTH);
        assert_int_equal(done->completion_tokens, 0);
        assert_int_equal(done->cached_tokens, 16);
        assert_int_equal(done->timing.prefill, 50);
        assert_string_equal(done->prefill_node, "p0");
        assert_string_equal(done->decode_node, "");
        world_close(&w);
    }
}

static void prefill_only_returns_no_token(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = begin(&w, JOB_GENERATE);
    tell_finished(&w, P0, key, 0);
    const struct msg_done *done = &expect(&w, CLIENT, MSG_DONE)->done;
    assert_int_equal(done->finish, FINISH_LENGTH);
    assert_int_equal(done->completion_tokens, 0);
    struct router_counts counts;
    router_core_counts(w.core, &counts);
    assert_int_equal(counts.done, 1);
    assert_int_equal(counts.prefill_only, 1);
    assert_int_equal(counts.scores + counts.embeddings, 0);
    world_close(&w);
}

static void a_missing_part_is_asked_for_once(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = begin(&w, JOB_SCORE);
    tell_values(&w, P0, key, 0, 4, 19);
    tell_values(&w, P0, key, 9, 19, 19);
    tell_finished(&w, P0, key, 0);
    assert_int_equal(expect(&w, P0, MSG_RESEND)->resend.from, 4);
    tell_values(&w, P0, key, 4, 19, 19);
    tell_finished(&w, P0, key, 0);
    assert_int_equal(expect_values(&w, 19, true)->attempts, 1);
    world_close(&w);

    key = begin(&w, JOB_SCORE);
    tell_finished(&w, P0, key, 0);
    tell_finished(&w, P0, key, 0); /* a node that will not say it */
    assert_int_equal(expect(&w, P0, MSG_PREFILL)->prefill.job.key.attempt, 1);
    world_close(&w);
}

static void what_died_half_told_is_told_by_the_next_attempt_alone(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = begin(&w, JOB_EMBED_MEAN);
    hello(&w, P1, ROLE_PREFILL, "p1");
    tell_values(&w, P0, key, 0, 5, 8);
    lose(&w, P0);
    key = expect(&w, P1, MSG_PREFILL)->prefill.job.key;
    assert_int_equal(key.attempt, 1);
    tell_values(&w, P1, key, 0, 8, 8);
    tell_finished(&w, P1, key, 0);
    assert_int_equal(expect_values(&w, 8, false)->attempts, 2);
    world_close(&w);
}

static void a_long_result_goes_in_pieces(void **state)
{
    enum { LONG = 2 * MSG_VALUES_MAX + 5 };
    static uint32_t tokens[LONG + 1];
    static float values[LONG];
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    struct world w;
    (void)state;
    for (uint32_t i = 0; i < LONG; i++)
        values[i] = -(float)i;
    for (uint32_t i = 0; i <= LONG; i++)
        tokens[i] = i % 1000;
    config.queued_tokens_max = 2 * LONG;
    world_open(&w, &config); /* no node yet: the context is not known */
    struct msg m = encode_of(JOB_SCORE);
    m.submit.tokens = tokens;
    m.submit.tokens_count = LONG + 1;
    say(&w, CLIENT, m);
    expect(&w, CLIENT, MSG_ACCEPTED);
    hello_large(&w, P0, LONG + 1);
    struct job_key key = expect(&w, P0, MSG_PREFILL)->prefill.job.key;
    for (uint32_t from = 0, n; from < LONG; from += n) {
        n = LONG - from < MSG_VALUES_MAX ? LONG - from : MSG_VALUES_MAX;
        say(&w, P0,
            (struct msg){.kind = MSG_ENCODED,
                         .encoded = {.key = key,
                                     .index = from,
                                     .total = LONG,
                                     .values = values + from,
                                     .values_count = n}});
    }
    tell_finished(&w, P0, key, 0);
    for (uint32_t from = 0; from < LONG;) {
        const struct msg_encoded *e = &expect(&w, CLIENT, MSG_ENCODED)->encoded;
        assert_int_equal(e->index, from);
        assert_int_equal(e->total, LONG);
        assert_true(e->values_count <= MSG_VALUES_MAX && e->values_count == e->tokens_count);
        assert_memory_equal(e->values, values + from, e->values_count * sizeof *values);
        assert_memory_equal(e->tokens, tokens + from + 1, e->values_count * sizeof *tokens);
        from += e->values_count;
    }
    expect(&w, CLIENT, MSG_DONE);
    world_close(&w);
}

static void without_memory_for_a_result_the_request_ends(void **state)
{
    (void)state;
    struct world w;
    struct job_key key = begin(&w, JOB_SCORE);
    mem_fail_at(1);
    tell_values(&w, P0, key, 0, 19, 19);
    mem_fail_at(0);
    const struct msg_done *done = &expect(&w, CLIENT, MSG_DONE)->done;
    assert_int_equal(done->finish, FINISH_ERROR);
    assert_int_equal(done->error, ERR_MEMORY);
    world_close(&w);
}

static void a_result_of_another_size_is_another_attempt(void **state)
{
    static const struct {
        enum job_kind kind;
        uint32_t first, second;
    } rows[] = {{JOB_SCORE, 18, 0},
                {JOB_SCORE, 20, 0},
                {JOB_EMBED_LAST, 8, 9},
                {JOB_EMBED_LAST, (1 << 16) + 1, 0},
                {JOB_GENERATE, 8, 0}};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct world w;
        struct job_key key = begin(&w, rows[i].kind);
        tell_values(&w, P0, key, 0, 3, rows[i].first);
        if (rows[i].second) tell_values(&w, P0, key, 3, 5, rows[i].second);
        assert_int_equal(expect(&w, P0, MSG_PREFILL)->prefill.job.key.attempt, 1);
        world_close(&w);
    }
}

static void without_prefill_nodes_a_decode_node_does_it(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, NULL);
    hello(&w, D0, ROLE_DECODE, "d0");
    say(&w, CLIENT, encode_of(JOB_EMBED_LAST));
    struct job_key key = expect(&w, D0, MSG_PREFILL)->prefill.job.key;
    tell_values(&w, D0, key, 0, 8, 8);
    tell_finished(&w, D0, key, 0);
    assert_string_equal(expect_values(&w, 8, false)->prefill_node, "d0");
    world_close(&w);
}

static void what_cannot_be_is_said_at_the_door(void **state)
{
    struct msg m[5];
    static const char *const why[COUNT_OF(m)] = {"draws no token", "one result", "two at least",
                                                 "is empty", "the context is"};
    static const uint32_t long_text[1001] = {1};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(m); i++)
        m[i] = encode_of(i == 2 ? JOB_SCORE : JOB_EMBED_MEAN);
    m[0].submit.tokens_max = 1;
    m[1].submit.choices = 2;
    m[2].submit.tokens_count = 1;
    m[3].submit.tokens = NULL;
    m[3].submit.tokens_count = 0;
    m[3].submit.text = "";
    m[4].submit.tokens = long_text;
    m[4].submit.tokens_count = 1001;
    for (size_t i = 0; i < COUNT_OF(m); i++) {
        struct world w;
        world_open_joined(&w, NULL);
        say(&w, CLIENT, m[i]);
        const struct msg_rejected *r = &expect(&w, CLIENT, MSG_REJECTED)->rejected;
        assert_int_equal(r->error, ERR_INVALID);
        if (!strstr(r->reason, why[i])) fail_msg("%s: %s", why[i], r->reason);
        world_close(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_result_goes_to_the_client_whole_and_with_its_times),
        cmocka_unit_test(prefill_only_returns_no_token),
        cmocka_unit_test(a_missing_part_is_asked_for_once),
        cmocka_unit_test(what_died_half_told_is_told_by_the_next_attempt_alone),
        cmocka_unit_test(a_long_result_goes_in_pieces),
        cmocka_unit_test(without_memory_for_a_result_the_request_ends),
        cmocka_unit_test(a_result_of_another_size_is_another_attempt),
        cmocka_unit_test(without_prefill_nodes_a_decode_node_does_it),
        cmocka_unit_test(what_cannot_be_is_said_at_the_door),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
