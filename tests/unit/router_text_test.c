/* The router core and text: prompts that become ids, tokens that become text, stop strings. */
#include "tests/unit/router_rig.h"

static struct tokenizer *tokenizer;

static void text_world_open(struct world *w)
{
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.tokenizer = tokenizer;
    world_open(w, &config);
    world_join(w);
}

/* Submits a text prompt with these stop strings; answers with ids that the world's nodes accept. */
static struct job_key submit_text(struct world *w, const char *const *stop, uint32_t stop_count)
{
    static const uint32_t ids[3] = {1, 2, 3};
    struct msg m = submit_of(12);
    m.submit.tokens = NULL;
    m.submit.tokens_count = 0;
    m.submit.text = "x";
    m.submit.text_bytes = 1;
    m.submit.want_text = true;
    m.submit.stop = stop;
    m.submit.stop_count = stop_count;
    say(w, CLIENT, m);
    assert_false(was_sent(w, CLIENT, MSG_ACCEPTED));
    router_core_on_tokens(w->core, w->now, w->tokenizing, ids, 3, OK, NULL);
    assert_int_equal(expect(w, CLIENT, MSG_ACCEPTED)->accepted.prompt_tokens, 3);
    return reserve_held(w, D0, 0);
}

/* What the client is shown of tokens 70, 71 … that D tells one by one, until DONE. */
static void collect_text(struct world *w, char *text, struct msg_done *done)
{
    *text = '\0';
    for (; w->read < w->sent_count; w->read++) {
        const struct sent *s = &w->sent[w->read];
        if (s->peer.v == CLIENT && s->m.kind == MSG_OUTPUT)
            strncat(text, s->m.output.text, s->m.output.text_bytes);
        if (s->peer.v == CLIENT && s->m.kind == MSG_DONE) *done = s->m.done;
    }
}

static void tell_one(struct world *w, struct job_key key, uint32_t index, uint32_t id)
{
    struct token_info t = token(id);
    struct token_run run = {key, index, &t, 1};
    say(w, D0, (struct msg){.kind = MSG_TOKENS, .tokens = {&run, 1}});
}

static void text_is_that_of_the_tokens(void **state)
{
    (void)state;
    struct world w;
    char text[256], *whole;
    size_t whole_length;
    uint32_t ids[12];
    struct msg_done done = {0};
    text_world_open(&w);
    struct job_key key = submit_text(&w, NULL, 0);
    for (uint32_t i = 0; i < 12; i++) {
        ids[i] = 40 + i * 3;
        tell_one(&w, key, i, ids[i]);
    }
    size_t mark = w.read;
    tell_finished(&w, D0, key, 12);
    w.read = mark;
    collect_text(&w, text, &done);
    assert_int_equal(
        tokenizer_decode(tokenizer, ids, 12, TOKENIZER_SKIP_SPECIAL, &whole, &whole_length), OK);
    assert_string_equal(text, whole);
    assert_int_equal(done.finish, FINISH_LENGTH);
    mem_free(whole);
    world_close(&w);
}

static void a_stop_string_over_two_tokens_ends_it_and_is_not_shown(void **state)
{
    (void)state;
    struct world w;
    uint32_t *ids;
    size_t ids_count;
    char text[256];
    struct msg_done done = {0};
    static const char *const stop[1] = {"o b"};
    assert_int_equal(tokenizer_encode(tokenizer, "To be", 5, 0, &ids, &ids_count), OK);
    text_world_open(&w);
    struct job_key key = submit_text(&w, stop, 1);
    for (uint32_t i = 0; i < ids_count && !was_sent(&w, CLIENT, MSG_DONE); i++) {
        size_t mark = w.read;
        tell_one(&w, key, i, ids[i]);
        w.read = mark;
    }
    assert_true(was_sent(&w, D0, MSG_CANCEL) && was_sent(&w, P0, MSG_CANCEL));
    collect_text(&w, text, &done);
    assert_string_equal(text, "T");
    assert_int_equal(done.finish, FINISH_STOP);
    mem_free(ids);
    world_close(&w);
}

/* Tells 12 tokens one by one while the n-th allocation fails; whether there were as many. */
static bool tell_with_failure(uint64_t n, const char *const *stop, char *text,
                              struct msg_done *done)
{
    struct world w;
    text_world_open(&w);
    struct job_key key = submit_text(&w, stop, stop ? 1 : 0);
    size_t mark = w.read;
    uint64_t before = mem_count();
    mem_fail_at(n);
    for (uint32_t i = 0; i < 12; i++)
        tell_one(&w, key, i, 40 + i * 3);
    tell_finished(&w, D0, key, 12);
    mem_fail_at(0);
    bool failed = mem_count() - before >= n;
    w.read = mark;
    collect_text(&w, text, done);
    router_core_audit(w.core);
    world_close(&w);
    return failed;
}

static void a_failing_allocation_leaves_no_gap_in_the_text(void **state)
{
    (void)state;
    static const char *const never[1] = {"never said"};
    char whole[256], text[256];
    struct msg_done done = {0};
    for (int stops = 0; stops < 2; stops++) {
        const char *const *stop = stops ? never : NULL;
        uint32_t errors = 0;
        tell_with_failure(UINT64_MAX, stop, whole, &done);
        for (uint64_t n = 1; tell_with_failure(n, stop, text, &done); n++) {
            errors += done.finish == FINISH_ERROR && done.error == ERR_MEMORY;
            if (done.finish != FINISH_ERROR && strcmp(text, whole) != 0)
                fail_msg("allocation %d: \"%s\" instead of \"%s\"", (int)n, text, whole);
        }
        assert_true(errors > 0);
    }
}

static void a_prompt_that_cannot_be_tokenized_is_rejected(void **state)
{
    (void)state;
    struct world w;
    text_world_open(&w);
    for (int full = 0; full < 2; full++) {
        struct msg m = submit_of(3);
        m.submit.tokens = NULL;
        m.submit.tokens_count = 0;
        m.submit.text = "x";
        m.submit.text_bytes = 1;
        w.text_full = full;
        say(&w, CLIENT, m);
        if (!full)
            router_core_on_tokens(w.core, w.now, w.tokenizing, NULL, 0, ERR_INVALID, "no UTF-8");
        const struct msg *r = expect(&w, CLIENT, MSG_REJECTED);
        assert_int_equal(r->rejected.error, full ? ERR_FULL : ERR_INVALID);
        router_core_audit(w.core);
    }
    world_close(&w);
}

static void ids_for_a_client_that_has_gone_are_thrown_away(void **state)
{
    (void)state;
    static const uint32_t ids[1] = {1};
    struct world w;
    text_world_open(&w);
    struct msg m = submit_of(3);
    m.submit.tokens = NULL;
    m.submit.tokens_count = 0;
    m.submit.text = "x";
    m.submit.text_bytes = 1;
    say(&w, CLIENT, m);
    lose(&w, CLIENT);
    router_core_on_tokens(w.core, w.now, w.tokenizing, ids, 1, OK, NULL);
    router_core_audit(w.core);
    assert_false(was_sent(&w, D0, MSG_RESERVE));
    world_close(&w);
}

/* A request of two choices under an id of the client's, as the next message; nobody has accepted it yet. */
static struct id128 submit_under_id(struct world *w, uint64_t ref, uint32_t attempt)
{
    struct msg m = submit_of(3);
    m.submit.ref = ref;
    m.submit.id = (struct id128){5, 6};
    m.submit.attempt = attempt;
    m.submit.choices = 2;
    m.submit.tokens = NULL;
    m.submit.tokens_count = 0;
    m.submit.text = "x";
    m.submit.text_bytes = 1;
    say(w, CLIENT, m);
    return w->tokenizing;
}

static void expect_rejected(struct world *w, uint64_t ref)
{
    const struct msg_rejected *m = &expect(w, CLIENT, MSG_REJECTED)->rejected;
    assert_int_equal(m->ref, ref);
    assert_int_equal(m->error, ERR_CANCELLED);
    assert_false(was_sent(w, CLIENT, MSG_DONE)); /* it was never accepted */
}

static void ids_are_those_of_the_submission_that_wanted_them(void **state)
{
    (void)state;
    static const uint32_t ids[3] = {1, 2, 3};
    struct world w;
    text_world_open(&w);
    struct id128 first = submit_under_id(&w, 1, 0), second = submit_under_id(&w, 2, 1);
    expect_rejected(&w, 1);
    router_core_on_tokens(w.core, w.now, first, ids, 2, OK, NULL);
    assert_false(was_sent(&w, CLIENT, MSG_ACCEPTED));
    router_core_on_tokens(w.core, w.now, second, ids, 3, OK, NULL);
    assert_int_equal(expect(&w, CLIENT, MSG_ACCEPTED)->accepted.prompt_tokens, 3);
    router_core_audit(w.core);
    world_close(&w);
}

static void what_was_not_accepted_yet_is_cancelled_as_one(void **state)
{
    (void)state;
    static const uint32_t ids[1] = {1};
    struct world w;
    text_world_open(&w);
    struct id128 job = submit_under_id(&w, 1, 0);
    say(&w, CLIENT, (struct msg){.kind = MSG_CANCEL, .cancel = {{{5, 6}, 0, 0}, "no more"}});
    expect_rejected(&w, 1);
    router_core_on_tokens(w.core, w.now, job, ids, 1, OK, NULL);
    router_core_audit(w.core);
    struct router_counts c;
    router_core_counts(w.core, &c);
    assert_int_equal(c.requests_live, 0);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_those_of_the_submission_that_wanted_them),
        cmocka_unit_test(what_was_not_accepted_yet_is_cancelled_as_one),
        cmocka_unit_test(text_is_that_of_the_tokens),
        cmocka_unit_test(a_stop_string_over_two_tokens_ends_it_and_is_not_shown),
        cmocka_unit_test(a_failing_allocation_leaves_no_gap_in_the_text),
        cmocka_unit_test(a_prompt_that_cannot_be_tokenized_is_rejected),
        cmocka_unit_test(ids_for_a_client_that_has_gone_are_thrown_away),
    };
    if (tokenizer_open(&tokenizer, TANDEM_SOURCE_DIR "/examples/demo_model/model") != OK) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tokenizer_close(tokenizer);
    return failed;
}
