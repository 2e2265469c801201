/* libtandem: requests that score, embed or only prefill. */
#include "tests/unit/testing.h"

#include <stdio.h>
#include <string.h>

#include "client/tandem.h"
#include "common/clock.h"
#include "common/log.h"
#include "tests/unit/fake_router.h"

enum { TOKENS = 9 };
static const uint32_t tokens[TOKENS] = {5, 6, 7};

struct heard {
    struct tandem *t;
    struct tandem_request *request;
    bool over, ask; /* ask: once it was accepted */
    enum tandem_status status;
    enum tandem_finish finish;
    char reason[512];
    float values[TOKENS];
    uint32_t value_tokens[TOKENS];
    size_t values_count;
    bool has_tokens;
};

static void ignore_answer(void *ctx, enum tandem_status status, const char *text, size_t bytes)
{
    (void)ctx, (void)status, (void)text, (void)bytes;
}

static void on_event(void *ctx, const struct tandem_event *e)
{
    struct heard *h = ctx;
    assert_true(e->kind != TANDEM_EVENT_TOKENS && e->kind != TANDEM_EVENT_TEXT);
    if (e->kind == TANDEM_EVENT_ACCEPTED) {
        assert_true(e->values_count == 0 && !e->values);
        if (h->ask) assert_int_equal(tandem_query_status(h->t, ignore_answer, NULL), TANDEM_OK);
        return;
    }
    assert_false(h->over);
    h->over = true;
    h->status = e->status;
    h->finish = e->finish;
    snprintf(h->reason, sizeof h->reason, "%s", e->reason);
    assert_true(e->values_count <= TOKENS);
    h->values_count = e->values_count;
    h->has_tokens = e->value_tokens != NULL;
    if (e->values) memcpy(h->values, e->values, e->values_count * sizeof *e->values);
    if (e->value_tokens)
        memcpy(h->value_tokens, e->value_tokens, e->values_count * sizeof *e->value_tokens);
}

static struct heard run(const char *addresses, enum tandem_kind kind, bool ask)
{
    struct heard h = {.ask = ask};
    uint64_t end_ns = clock_now_ns() + 20 * NS_PER_S;
    log_setup(LOG_OFF, NULL);
    assert_int_equal(tandem_open(&h.t, addresses), TANDEM_OK);
    h.request = tandem_request_new(h.t, on_event, &h);
    assert_int_equal(tandem_set_tokens(h.request, tokens, TOKENS), TANDEM_OK);
    tandem_set_kind(h.request, kind);
    if (kind == TANDEM_GENERATE) tandem_set_max_tokens(h.request, 0);
    assert_int_equal(tandem_submit(h.request), TANDEM_OK);
    while (!h.over) {
        assert_true(clock_now_ns() < end_ns);
        tandem_wait(h.t, 5000);
    }
    tandem_request_free(h.request);
    tandem_close(h.t);
    return h;
}

static void expect_values(const struct heard *h, size_t count, bool with_tokens)
{
    assert_int_equal(h->status, TANDEM_OK);
    assert_int_equal(h->finish, TANDEM_FINISH_LENGTH);
    assert_int_equal(h->values_count, count);
    assert_int_equal(h->has_tokens, with_tokens);
    for (uint32_t i = 0; i < count; i++) {
        assert_true(h->values[i] == fake_value(i));
        if (with_tokens) assert_int_equal(h->value_tokens[i], i + 1);
    }
}

static void a_result_comes_whole_with_the_end(void **state)
{
    static const struct {
        enum tandem_kind kind;
        enum job_kind asked;
        size_t count;
    } rows[] = {{TANDEM_SCORE, JOB_SCORE, TOKENS - 1},
                {TANDEM_EMBED_LAST, JOB_EMBED_LAST, FAKE_HIDDEN},
                {TANDEM_EMBED_MEAN, JOB_EMBED_MEAN, FAKE_HIDDEN},
                {TANDEM_GENERATE, JOB_GENERATE, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
        struct heard h = run(fake_router_address(r), rows[i].kind, false);
        expect_values(&h, rows[i].count, rows[i].kind == TANDEM_SCORE);
        fake_router_stop(r);
        assert_int_equal(fake_router_seen(r)->kind, rows[i].asked);
        assert_int_equal(fake_router_seen(r)->tokens_max, 0);
        fake_router_free(r);
    }
}

static void a_part_that_is_missing_is_an_error(void **state)
{
    (void)state;
    struct fake_router *r =
        fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){.skip = true});
    struct heard h = run(fake_router_address(r), TANDEM_SCORE, false);
    assert_int_equal(h.status, TANDEM_FAILED);
    assert_non_null(strstr(h.reason, "left out"));
    fake_router_free(r);
}

static void another_router_tells_all_of_it_again(void **state)
{
    struct fake_script dying = {.outputs_until_hold = 1, .at_query = FAKE_DIES};
    char addresses[256];
    (void)state;
    struct fake_router *one = fake_router_start("tcp://127.0.0.1:0", &dying);
    struct fake_router *two = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    snprintf(addresses, sizeof addresses, "%s,%s", fake_router_address(one),
             fake_router_address(two));
    struct heard h = run(addresses, TANDEM_SCORE, true);
    expect_values(&h, TOKENS - 1, true);
    fake_router_free(one);
    fake_router_stop(two);
    assert_int_equal(fake_router_seen(two)->attempt, 1000);
    assert_int_equal(fake_router_seen(two)->kind, JOB_SCORE);
    fake_router_free(two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_result_comes_whole_with_the_end),
        cmocka_unit_test(a_part_that_is_missing_is_an_error),
        cmocka_unit_test(another_router_tells_all_of_it_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
