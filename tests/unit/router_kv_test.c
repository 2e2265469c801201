#include "tests/unit/router_rig.h"

#include <jansson.h>

#include "router/kv_query.h"
#include "text/tokenizer.h"

static struct tokenizer *tokenizer;

static void ask(struct world *w, uint64_t ref, const char *node)
{
    say(w, CLIENT, (struct msg){.kind = MSG_QUERY, .query = {ref, QUERY_KV, node}});
}

/* The node answers what it was asked last. */
static void answer(struct world *w, uint32_t peer, enum err e, const char *text)
{
    size_t read = w->read;
    uint64_t ref = expect(w, peer, MSG_QUERY)->query.ref;
    w->read = read;
    say(w, peer,
        (struct msg){.kind = MSG_ANSWER, .answer = {ref, e, text, (uint32_t)strlen(text)}});
}

/* What the client was answered, the caller's to drop. */
static json_t *answered(struct world *w, uint64_t ref)
{
    const struct msg *m = expect(w, CLIENT, MSG_ANSWER);
    assert_int_equal(m->answer.ref, ref);
    assert_int_equal(m->answer.error, OK);
    json_t *root = json_loadb(m->answer.text, m->answer.text_bytes, 0, NULL);
    assert_non_null(root);
    return root;
}

static const char *text_at(const json_t *root, const char *list, size_t i, const char *name)
{
    const char *s =
        json_string_value(json_object_get(json_array_get(json_object_get(root, list), i), name));
    return s ? s : "";
}

static void all_nodes_are_asked_and_answered_for_together(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    ask(&w, 7, "");
    answer(&w, P0, OK, "{\"node\":\"p0\"}");
    answer(&w, D1, OK, "{\"node\":\"d1\"}");
    assert_false(was_sent(&w, CLIENT, MSG_ANSWER));
    answer(&w, D0, OK, "{\"node\":\"d0\"}");
    json_t *root = answered(&w, 7);
    assert_string_equal(text_at(root, "nodes", 0, "node"), "p0");
    assert_string_equal(text_at(root, "nodes", 2, "node"), "d0");
    assert_int_equal(json_array_size(json_object_get(root, "missing")), 0);
    json_decref(root);
    world_close(&w);
}

static void one_node_is_asked_by_its_name(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    ask(&w, 7, "d9");
    assert_int_equal(expect(&w, CLIENT, MSG_ANSWER)->answer.error, ERR_NOT_FOUND);
    ask(&w, 8, "d0");
    assert_false(was_sent(&w, P0, MSG_QUERY));
    answer(&w, D0, OK, "{}");
    json_decref(answered(&w, 8));
    world_close(&w);
}

static void who_does_not_answer_is_named(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    ask(&w, 7, "");
    answer(&w, P0, ERR_FULL, "too many");
    lose(&w, D1);
    assert_true(w.wake <= w.now + KV_QUERY_WAIT_NS);
    w.now += KV_QUERY_WAIT_NS;
    router_core_on_timer(w.core, w.now);
    json_t *root = answered(&w, 7);
    assert_int_equal(json_array_size(json_object_get(root, "nodes")), 0);
    assert_string_equal(text_at(root, "missing", 0, "reason"), "too many");
    assert_string_equal(text_at(root, "missing", 1, "node"), "d1");
    assert_string_equal(text_at(root, "missing", 1, "reason"), "it has left");
    assert_string_equal(text_at(root, "missing", 2, "node"), "d0");
    assert_string_equal(text_at(root, "missing", 2, "reason"), "no answer in 2000 ms");
    json_decref(root);
    world_close(&w);
}

static void a_report_that_is_none_is_its_nodes_trouble(void **state)
{
    (void)state;
    struct world w;
    enum { DEEP = 2046 }; /* a parser takes 2048 levels, and the answer has some around it */
    static char deep[2 * DEEP + 8] = "{\"a\":";
    memset(deep + 5, '[', DEEP);
    memset(deep + 5 + DEEP, ']', DEEP);
    deep[5 + 2 * DEEP] = '}';
    char *large = calloc(1, KV_QUERY_REPORT_MAX + 2);
    memset(large, ' ', KV_QUERY_REPORT_MAX + 1);
    const char *const texts[] = {"", "[]", "{", "7", "{}{}", large, deep};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        world_open_joined(&w, NULL);
        ask(&w, 7, "d0");
        answer(&w, D0, OK, texts[i]);
        json_t *root = answered(&w, 7);
        assert_string_equal(text_at(root, "missing", 0, "node"), "d0");
        json_decref(root);
        world_close(&w);
    }
    free(large);
}

static void a_reason_that_is_no_text_is_its_nodes_trouble(void **state)
{
    (void)state;
    struct world w;
    const char *const reasons[] = {"\xff\xfe", "half a character \xe2\x82", ""};
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        world_open_joined(&w, NULL);
        ask(&w, 7, "");
        answer(&w, P0, ERR_FULL, reasons[i]);
        answer(&w, D1, OK, "{}");
        answer(&w, D0, OK, "{}");
        json_t *root = answered(&w, 7);
        assert_int_equal(json_array_size(json_object_get(root, "nodes")), 2);
        assert_string_equal(text_at(root, "missing", 0, "node"), "p0");
        json_decref(root);
        world_close(&w);
    }
}

static void odd_lists_in_a_report_do_no_harm(void **state)
{
    (void)state;
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.tokenizer = tokenizer;
    world_open_joined(&w, &config);
    ask(&w, 7, "d0");
    answer(&w, D0, OK,
           "{\"tenants\":[1,{\"salt\":7},{\"salt\":\"zz\"}],\"prefixes\":[[],{\"first\":7},{},"
           "{\"first\":[-1,1e9,99999999,\"x\",1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}]}");
    json_decref(answered(&w, 7));
    world_close(&w);
}

/* A report of one prefix that begins with `words`, of the tenant that `salt` names. */
static json_t *ask_about(struct world *w, uint64_t salt, const char *words, size_t length)
{
    uint32_t *ids;
    size_t count, used = 0;
    char text[512];
    assert_ok(tokenizer_encode(tokenizer, words, length, 0, &ids, &count));
    used += (size_t)snprintf(text, sizeof text, "{\"prefixes\":[{\"salt\":\"%016llx\",\"first\":[",
                             (unsigned long long)salt);
    for (size_t i = 0; i < count; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%u", i ? "," : "", ids[i]);
    snprintf(text + used, sizeof text - used, "]}]}");
    mem_free(ids);
    ask(w, 7, "d0");
    answer(w, D0, OK, text);
    return answered(w, 7);
}

static json_t *ask_words(struct world *w, uint64_t salt)
{
    return ask_about(w, salt, "To be", 5);
}

static const json_t *first_prefix(const json_t *root)
{
    return json_array_get(
        json_object_get(json_array_get(json_object_get(root, "nodes"), 0), "prefixes"), 0);
}

static void tokens_become_words_and_salts_names(void **state)
{
    (void)state;
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.tokenizer = tokenizer;
    world_open_joined(&w, &config);
    struct msg m = submit_of(4);
    m.submit.tenant = "acme";
    say(&w, CLIENT, m);
    uint64_t salt = expect(&w, D0, MSG_RESERVE)->reserve.job.tenant_salt;
    w.read = 0;
    json_t *root = ask_words(&w, salt);
    const json_t *row = first_prefix(root);
    assert_string_equal(json_string_value(json_object_get(row, "words")), "To be");
    assert_string_equal(json_string_value(json_object_get(row, "tenant")), "acme");
    json_decref(root);
    world_close(&w);
}

/* Whose tenants are the same, of one or of none. */
static void windows_are_told_apart(void **state)
{
    (void)state;
    struct world w;
    static const struct {
        const char *tenant;
        uint32_t window, sinks;
    } of[] = {{NULL, 64, 16}, {NULL, 128, 0}, {"acme", 64, 16}, {"acme", 0, 0}};
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        world_open_joined(&w, NULL);
        struct msg m = submit_of(4);
        m.submit.tenant = of[i].tenant;
        m.submit.kv_window = of[i].window;
        m.submit.kv_sinks = of[i].sinks;
        say(&w, CLIENT, m);
        uint64_t salt = expect(&w, D0, MSG_RESERVE)->reserve.job.tenant_salt;
        w.read = 0;
        json_t *root = ask_words(&w, salt);
        const json_t *row = first_prefix(root), *window = json_object_get(row, "kv_window"),
                     *sinks = json_object_get(row, "kv_sinks");
        assert_string_equal(json_string_value(json_object_get(row, "tenant")),
                            of[i].tenant ? of[i].tenant : "");
        assert_int_equal(json_integer_value(window), of[i].window);
        assert_int_equal(json_integer_value(sinks), of[i].sinks);
        assert_int_equal(window != NULL && sinks != NULL, of[i].window > 0);
        json_decref(root);
        world_close(&w);
    }
}

static void words_of_zero_bytes_and_cut_characters_are_text(void **state)
{
    (void)state;
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.tokenizer = tokenizer;
    world_open_joined(&w, &config);
    json_t *root = ask_about(&w, 0, "a\0b", 3);
    assert_string_equal(json_string_value(json_object_get(first_prefix(root), "words")), "a b");
    json_decref(root);
    uint32_t *ids;
    size_t count;
    char text[128];
    assert_ok(tokenizer_encode(tokenizer, "\xe2\x82\xac", 3, 0, &ids, &count));
    assert_true(count > 1);
    snprintf(text, sizeof text, "{\"prefixes\":[{\"first\":[%u],\"last\":[%u]}]}", ids[0], ids[1]);
    mem_free(ids);
    ask(&w, 7, "d0");
    answer(&w, D0, OK, text);
    root = answered(&w, 7);
    const char *last = json_string_value(json_object_get(first_prefix(root), "last_words"));
    assert_string_equal(last ? last : "(none)", "\xef\xbf\xbd");
    json_decref(root);
    world_close(&w);
}

static void words_are_kept_back_where_they_are_to_be(void **state)
{
    (void)state;
    struct world w;
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.tokenizer = tokenizer;
    config.kv_words = false;
    world_open_joined(&w, &config);
    json_t *root = ask_words(&w, 0);
    const json_t *row = first_prefix(root);
    assert_null(json_object_get(row, "words"));
    assert_null(json_object_get(row, "first"));
    json_decref(root);
    world_close(&w);
}

static void too_many_at_once_are_refused_and_a_lost_client_is_forgotten(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    for (uint64_t ref = 1; ref <= KV_QUERIES_MAX; ref++)
        ask(&w, ref, "d0");
    ask(&w, 99, "d0");
    assert_int_equal(expect(&w, CLIENT, MSG_ANSWER)->answer.error, ERR_FULL);
    lose(&w, CLIENT);
    w.sent_count = w.read = 0;
    w.now += KV_QUERY_WAIT_NS;
    router_core_on_timer(w.core, w.now);
    assert_false(was_sent(&w, CLIENT, MSG_ANSWER));
    world_close(&w);
}

static void an_answer_that_nobody_waits_for_is_dropped(void **state)
{
    (void)state;
    struct world w;
    struct router_counts counts;
    world_open_joined(&w, NULL);
    ask(&w, 7, "d0");
    uint64_t ref = expect(&w, D0, MSG_QUERY)->query.ref;
    for (uint32_t n = 0; n < 2; n++) /* of a node that was not asked; and with a wrong number */
        say(&w, n ? D0 : D1, (struct msg){.kind = MSG_ANSWER, .answer = {ref + n, OK, "{}", 2}});
    router_core_counts(w.core, &counts);
    assert_int_equal(counts.stale_messages, 2);
    assert_false(was_sent(&w, CLIENT, MSG_ANSWER));
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_nodes_are_asked_and_answered_for_together),
        cmocka_unit_test(one_node_is_asked_by_its_name),
        cmocka_unit_test(who_does_not_answer_is_named),
        cmocka_unit_test(a_report_that_is_none_is_its_nodes_trouble),
        cmocka_unit_test(a_reason_that_is_no_text_is_its_nodes_trouble),
        cmocka_unit_test(odd_lists_in_a_report_do_no_harm),
        cmocka_unit_test(tokens_become_words_and_salts_names),
        cmocka_unit_test(windows_are_told_apart),
        cmocka_unit_test(words_of_zero_bytes_and_cut_characters_are_text),
        cmocka_unit_test(words_are_kept_back_where_they_are_to_be),
        cmocka_unit_test(too_many_at_once_are_refused_and_a_lost_client_is_forgotten),
        cmocka_unit_test(an_answer_that_nobody_waits_for_is_dropped),
    };
    if (tokenizer_open(&tokenizer, TANDEM_SOURCE_DIR "/examples/demo_model/model") != OK) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tokenizer_close(tokenizer);
    return failed;
}
