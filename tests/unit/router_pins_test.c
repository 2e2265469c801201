/* Prompts that are pinned by name: who is asked, who computes, and what happens when nodes come and go. */
#include "tests/unit/router_rig.h"

#include <stdio.h>

enum { TOKENS = 40, WHOLE = 2 };

static uint32_t tokens[TOKENS];

static void say_pin(struct world *w, const char *name, uint32_t count, bool remove)
{
    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = 1 + i % 7;
    say(w, CLIENT,
        (struct msg){.kind = MSG_PIN,
                     .pin = {.ref = 9,
                             .name = name,
                             .tenant = "acme",
                             .remove = remove,
                             .tokens = remove ? NULL : tokens,
                             .tokens_count = remove ? 0 : count}});
}

static void say_pinned(struct world *w, uint32_t peer, const char *name, uint32_t blocks)
{
    say(w, peer,
        (struct msg){.kind = MSG_PINNED,
                     .pinned = {.name = name, .tenant = "acme", .blocks = blocks}});
}

static enum err answered(struct world *w)
{
    const struct msg *m = expect(w, CLIENT, MSG_ANSWER);
    assert_int_equal(m->answer.ref, 9);
    return m->answer.error;
}

static void finish_prefill(struct world *w, uint32_t peer, struct job_key key)
{
    say(w, peer,
        (struct msg){.kind = MSG_FINISHED, .finished = {.key = key, .finish = FINISH_LENGTH}});
    say(w, peer, (struct msg){.kind = MSG_PREFILLED, .prefilled = {.key = key, .link = ""}});
}

static void p_computes_what_it_lacks_and_d_is_only_asked(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    say_pin(&w, "sys", TOKENS, false);
    const struct msg *pin = expect(&w, P0, MSG_PIN);
    assert_int_equal(pin->pin.tokens_count, TOKENS);
    assert_int_not_equal(pin->pin.salt, 0);
    expect(&w, D0, MSG_PIN);
    expect(&w, D1, MSG_PIN);
    assert_int_equal(answered(&w), OK);
    say_pinned(&w, D0, "sys", 0);
    say_pinned(&w, P0, "sys", 0);
    const struct msg *prefill = expect(&w, P0, MSG_PREFILL);
    assert_int_equal(prefill->prefill.job.tokens_max, 0);
    assert_int_equal(prefill->prefill.job.tenant_salt, pin->pin.salt);
    assert_true(prefill->prefill.job.priority > 0); /* behind whoever waits for an answer */
    assert_false(was_sent(&w, D0, MSG_RESERVE));
    finish_prefill(&w, P0, prefill->prefill.job.key);
    expect(&w, P0, MSG_PIN); /* again: now it has it */
    say_pinned(&w, P0, "sys", WHOLE);
    say(&w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {1, QUERY_STATUS, ""}});
    const char *json = expect(&w, CLIENT, MSG_ANSWER)->answer.text;
    assert_non_null(strstr(json, "\"pins\":[{\"name\":\"sys\",\"tenant\":\"acme\",\"tokens\":40,"
                                 "\"blocks\":2,"));
    assert_non_null(strstr(json, "\"role\":\"prefill\",\"blocks\":2"));
    world_close(&w);
}

static void who_joins_is_asked_and_who_is_gone_is_forgotten(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    say_pin(&w, "sys", TOKENS, false);
    say_pinned(&w, P0, "sys", 0);
    expect(&w, P0, MSG_PREFILL);
    lose(&w, P0); /* while it computes */
    hello(&w, P1, ROLE_PREFILL, "p1");
    expect(&w, P1, MSG_PIN);
    say_pinned(&w, P1, "sys", WHOLE);
    struct router_counts counts;
    router_core_counts(w.core, &counts);
    assert_int_equal(counts.requests_live, 0);
    world_close(&w);
}

static void say_node_pin(struct world *w, uint32_t peer, const char *name, uint32_t count)
{
    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = 1 + i % 7;
    say(w, peer,
        (struct msg){
            .kind = MSG_PIN,
            .pin = {.name = name, .tenant = "acme", .tokens = tokens, .tokens_count = count}});
}

static void what_nodes_have_pinned_for_an_earlier_router_is_pinned_on_all_of_them(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    say_node_pin(&w, D0, "sys", TOKENS);
    const struct msg *pin = expect(&w, P0, MSG_PIN);
    assert_int_equal(pin->pin.tokens_count, TOKENS);
    expect(&w, D0, MSG_PIN);
    expect(&w, D1, MSG_PIN);
    say_node_pin(&w, D1, "sys", TOKENS); /* it is known */
    assert_false(was_sent(&w, P0, MSG_PIN));
    say_pinned(&w, P0, "sys", 0);
    expect(&w, P0, MSG_PREFILL);
    say_node_pin(&w, D0, "short", 5); /* no whole block: the node is to let go of it */
    assert_true(expect(&w, D0, MSG_PIN)->pin.remove);
    say_pin(&w, "sys", 0, true);
    assert_int_equal(answered(&w), OK);
    world_close(&w);
}

/* What a node tells of an earlier router: pinned, or taken back, with this number. */
static void say_of_earlier(struct world *w, uint32_t peer, uint64_t number, bool remove)
{
    struct msg_pin pin = {.ref = number, .remove = remove, .name = "sys", .tenant = "acme"};
    if (!remove) {
        pin.tokens = prompt;
        pin.tokens_count = 20;
    }
    say(w, peer, (struct msg){.kind = MSG_PIN, .pin = pin});
}

static bool is_pinned(struct world *w)
{
    say(w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {1, QUERY_STATUS, ""}});
    return strstr(expect(w, CLIENT, MSG_ANSWER)->answer.text, "\"name\":\"sys\"") != NULL;
}

static void the_last_word_of_an_earlier_router_counts_whoever_tells_it_first(void **state)
{
    (void)state;
    static const struct {
        const char *why;
        struct {
            uint64_t number; /* 0: nothing more */
            bool remove;
        } told[2];
        bool pinned;
    } cases[] = {
        {"taken back, and one was cut off then", {{5, true}, {4, false}}, false},
        {"the same, that one comes first", {{4, false}, {5, true}}, false},
        {"pinned again, and another one was cut off", {{5, true}, {6, false}}, true},
        {"the same the other way", {{6, false}, {5, true}}, true},
        {"only taken back", {{5, true}}, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world w;
        world_open_joined(&w, NULL);
        for (uint32_t k = 0; k < 2 && cases[i].told[k].number; k++)
            say_of_earlier(&w, D0 + k, cases[i].told[k].number, cases[i].told[k].remove);
        if (is_pinned(&w) != cases[i].pinned) fail_msg("%s", cases[i].why);
        world_close(&w);
    }
}

static void who_holds_what_was_taken_back_is_told_for_a_minute(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    say_of_earlier(&w, D0, 5, true);
    w.read = w.sent_count;
    say_of_earlier(&w, D1, 4, false);
    const struct msg *m = expect(&w, D1, MSG_PIN);
    assert_true(m->pin.remove);
    assert_int_equal(m->pin.ref, 5);
    w.now += 61 * NS_PER_S; /* nobody holds it any more */
    say_of_earlier(&w, D1, 4, false);
    assert_true(is_pinned(&w));
    world_close(&w);
}

static void what_is_said_to_the_router_itself_counts_before_all_that_nodes_tell(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    say_of_earlier(&w, D0, 4, false);
    say_pin(&w, "sys", 0, true);
    assert_int_equal(answered(&w), OK);
    say_of_earlier(&w, D1, 9, false);
    assert_false(is_pinned(&w));
    say_pin(&w, "sys", TOKENS, false);
    assert_true(expect(&w, D0, MSG_PIN)->pin.ref > 9); /* of later routers, too */
    say_of_earlier(&w, P0, 99, true);
    assert_true(is_pinned(&w));
    world_close(&w);
}

static void a_node_that_cannot_hold_it_is_not_asked_for_ever(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    say_pin(&w, "sys", TOKENS, false);
    uint32_t computed = 0;
    for (int i = 0; i < 8; i++) {
        w.read = w.sent_count;
        say_pinned(&w, P0, "sys", 1);
        if (!was_sent(&w, P0, MSG_PREFILL)) break;
        finish_prefill(&w, P0, expect(&w, P0, MSG_PREFILL)->prefill.job.key);
        computed++;
    }
    assert_int_equal(computed, 3);
    world_close(&w);
}

/* A decode node comes to hold it by what requests bring. */
static void who_holds_less_than_all_is_asked_again_every_ten_seconds(void **state)
{
    (void)state;
    struct world w;
    struct msg beat = {.kind = MSG_HEARTBEAT};
    world_open_joined(&w, NULL);
    say_pin(&w, "sys", TOKENS, false);
    say_pinned(&w, D0, "sys", 1);
    say_pinned(&w, D1, "sys", WHOLE);
    for (uint32_t s = 1; s <= 21; s++) {
        w.sent_count = w.read = 0;
        w.now += 1 * NS_PER_S;
        for (uint32_t peer = P0; peer <= D1; peer++)
            say(&w, peer, beat);
        assert_int_equal(was_sent(&w, D0, MSG_PIN), s % 10 == 0);
        assert_false(was_sent(&w, D1, MSG_PIN));
    }
    world_close(&w);
}

static void unpinning_tells_the_nodes(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    say_pin(&w, "sys", TOKENS, true);
    assert_int_equal(answered(&w), ERR_NOT_FOUND);
    say_pin(&w, "sys", TOKENS, false);
    assert_int_equal(answered(&w), OK);
    w.read = w.sent_count;
    say_pin(&w, "sys", TOKENS, true);
    assert_int_equal(answered(&w), OK);
    w.read = 0;
    bool removed = false;
    for (size_t i = 0; i < w.sent_count; i++)
        removed |= w.sent[i].peer.v == P0 && w.sent[i].m.kind == MSG_PIN && w.sent[i].m.pin.remove;
    assert_true(removed);
    w.read = w.sent_count;
    say_pin(&w, "sys", TOKENS, true);
    assert_int_equal(answered(&w), ERR_NOT_FOUND);
    world_close(&w);
}

static void what_cannot_be_pinned_is_said(void **state)
{
    (void)state;
    struct world w;
    char name[16];
    world_open_joined(&w, NULL);
    say_pin(&w, "short", 15, false);
    assert_int_equal(answered(&w), ERR_INVALID);
    say(&w, CLIENT, (struct msg){.kind = MSG_PIN, .pin = {.ref = 9, .name = "none", .tenant = ""}});
    assert_int_equal(answered(&w), ERR_INVALID);
    for (int i = 0; i < 64; i++) {
        snprintf(name, sizeof name, "p%d", i);
        w.sent_count = w.read = 0;
        say_pin(&w, name, TOKENS, false);
        assert_int_equal(answered(&w), OK);
    }
    w.sent_count = w.read = 0;
    say_pin(&w, "one-more", TOKENS, false);
    assert_int_equal(answered(&w), ERR_FULL);
    world_close(&w);
}

/* Before its ids came, the same name was pinned anew, and then taken back. */
static void each_who_pins_is_answered(void **state)
{
    (void)state;
    static int some_tokenizer; /* it is only asked whether there is one; the test answers for it */
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    struct msg m = {.kind = MSG_PIN,
                    .pin = {.name = "sys", .tenant = "", .text = "some text", .text_bytes = 9}};
    config.tokenizer = (const struct tokenizer *)&some_tokenizer;
    world_open_joined(&w, &config);
    for (m.pin.ref = 1; m.pin.ref <= 3; m.pin.ref++) {
        struct id128 job = w.tokenizing;
        m.pin.remove = m.pin.ref == 3;
        say(&w, CLIENT, m);
        if (m.pin.ref == 1) continue;
        const struct msg_answer *a = &expect(&w, CLIENT, MSG_ANSWER)->answer;
        assert_int_equal(a->ref, m.pin.ref - 1);
        assert_int_equal(a->error, ERR_CANCELLED);
        router_core_on_tokens(w.core, w.now, job, prompt, 20, OK, NULL); /* for nobody */
    }
    assert_int_equal(expect(&w, CLIENT, MSG_ANSWER)->answer.ref, 3);
    assert_false(was_sent(&w, CLIENT, MSG_ANSWER));
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(p_computes_what_it_lacks_and_d_is_only_asked),
        cmocka_unit_test(who_joins_is_asked_and_who_is_gone_is_forgotten),
        cmocka_unit_test(what_nodes_have_pinned_for_an_earlier_router_is_pinned_on_all_of_them),
        cmocka_unit_test(the_last_word_of_an_earlier_router_counts_whoever_tells_it_first),
        cmocka_unit_test(who_holds_what_was_taken_back_is_told_for_a_minute),
        cmocka_unit_test(what_is_said_to_the_router_itself_counts_before_all_that_nodes_tell),
        cmocka_unit_test(a_node_that_cannot_hold_it_is_not_asked_for_ever),
        cmocka_unit_test(who_holds_less_than_all_is_asked_again_every_ten_seconds),
        cmocka_unit_test(unpinning_tells_the_nodes),
        cmocka_unit_test(each_who_pins_is_answered),
        cmocka_unit_test(what_cannot_be_pinned_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
