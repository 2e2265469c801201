/* A router that says anything about anything: accepts twice, rejects what runs, tells tokens, text, ends and answers
 * of requests that it has, had or never got, while the program cancels, frees and asks again. libtandem keeps to its
 * header all the same: tokens in order and once, one end for each choice, one answer for each question, nothing
 * behind the last. A failing seed is named and runs alone with TANDEM_SEED=N. */
#include "tests/unit/testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/internal.h"
#include "common/mem.h"
#include "common/rng.h"
#include "tests/unit/seeds.h"

enum { SEEDS = 400, MOVES = 200, REQUESTS = 12, CHOICES = 3, SUBMITS = 64 };

static struct tandem t;
static uint64_t seed, draws, now_ns;
static bool up;
static uint32_t asked, answered, ended_count;
static struct { /* SUBMITs that the router has got, a ring */
    uint64_t ref;
    struct id128 id;
} got[SUBMITS];
static uint32_t got_count;

struct heard {
    struct tandem_request *request; /* NULL: none, or freed */
    uint32_t choices, next[CHOICES], left;
    bool accepted, ended[CHOICES];
};
static struct heard heard[REQUESTS];

static uint32_t below(uint32_t bound)
{
    return rng_below(rng_draw(seed, 4, draws++).word[0], bound);
}
static bool one_in(uint32_t n)
{
    return below(n) == 0;
}

/* ---- connection.c's part ---- */

enum err connection_send(struct tandem *of, struct msg *m)
{
    (void)of;
    if (!up || one_in(8)) return err_set(ERR_FULL, "the queue is full");
    if (m->kind == MSG_SUBMIT) {
        got[got_count % SUBMITS].ref = m->submit.ref;
        got[got_count++ % SUBMITS].id = m->submit.id;
    }
    return OK;
}
bool connection_is_up(const struct tandem *of)
{
    (void)of;
    return up;
}
void connection_kick(struct tandem *of)
{
    (void)of;
}

/* ---- the program ---- */

static void free_request(struct heard *h)
{
    struct tandem_request *r = h->request;
    h->request = NULL;
    tandem_request_free(r);
}

static void end(struct heard *h, const struct tandem_event *e)
{
    assert_false(h->ended[e->choice]);
    h->ended[e->choice] = true;
    assert_int_equal(e->choices_left, --h->left);
    ended_count++;
}

static void on_event(void *ctx, const struct tandem_event *e)
{
    struct heard *h = ctx;
    assert_ptr_equal(h->request, e->request); /* and so it was not freed */
    assert_true(h->left > 0 && e->choice < h->choices && !h->ended[e->choice]);
    switch (e->kind) {
    case TANDEM_EVENT_ACCEPTED:
        assert_false(h->accepted);
        h->accepted = true;
        break;
    case TANDEM_EVENT_TOKENS:
        assert_int_equal(e->index, h->next[e->choice]);
        for (size_t i = 0; i < e->tokens_count; i++)
            assert_int_equal(e->tokens[i].token, h->next[e->choice]++);
        break;
    case TANDEM_EVENT_TEXT: assert_int_equal(strlen(e->text), e->text_bytes); break;
    case TANDEM_EVENT_DONE:
    case TANDEM_EVENT_ERROR: end(h, e); break;
    }
    if (one_in(20)) tandem_cancel(h->request);
    if (one_in(30)) free_request(h);
}

static void submit(void)
{
    static const uint32_t ids[4] = {1, 2, 3, 4};
    struct heard *h = &heard[below(REQUESTS)];
    if (h->request && h->left > 0) return;
    if (h->request) free_request(h);
    *h = (struct heard){.choices = 1 + below(CHOICES)};
    assert_non_null(h->request = tandem_request_new(&t, on_event, h));
    assert_int_equal(tandem_set_tokens(h->request, ids, 4), TANDEM_OK);
    if (one_in(4)) {
        h->choices = 1;
        tandem_set_kind(h->request, TANDEM_SCORE + below(3));
    }
    tandem_set_choices(h->request, h->choices);
    tandem_set_want_text(h->request, one_in(2));
    if (one_in(8)) tandem_set_deadline(h->request, 1 + below(5000));
    h->left = h->choices;
    assert_int_equal(tandem_submit(h->request), TANDEM_OK);
}

static void on_answer(void *ctx, enum tandem_status status, const char *text, size_t bytes)
{
    (void)status;
    assert_int_equal(strlen(text), bytes);
    assert_int_equal(++*(uint32_t *)ctx, 1);
    answered++;
}

static void ask(void)
{
    static uint32_t times[MOVES];
    const struct tandem_pin pin = {.name = "sys", .text = "x", .text_bytes = 1};
    uint32_t *once = &times[asked % MOVES];
    *once = 0;
    asked++;
    assert_int_equal(one_in(2) ? tandem_query_status(&t, on_answer, once)
                               : tandem_pin(&t, &pin, on_answer, once),
                     TANDEM_OK);
}

static void act(void)
{
    struct heard *h = &heard[below(REQUESTS)];
    switch (below(6)) {
    case 0:
        if (h->request) tandem_cancel(h->request);
        break;
    case 1:
        if (h->request && one_in(4)) free_request(h);
        break;
    case 2: ask(); break;
    default: submit();
    }
}

/* ---- the router ---- */

static struct id128 any_id(void)
{
    struct id128 id = {1, 1 + below(6)};
    if (got_count > 0 && !one_in(4)) { /* as it would be given out: one for each ref */
        uint32_t i = below(got_count < SUBMITS ? got_count : SUBMITS);
        id = id128_is_none(got[i].id) ? (struct id128){2, got[i].ref} : got[i].id;
    }
    return one_in(40) ? ID128_NONE : id;
}
static uint64_t any_ref(void)
{
    return one_in(4) || got_count == 0 ? below(40)
                                       : got[below(got_count < SUBMITS ? got_count : SUBMITS)].ref;
}

static void accept_one(void)
{
    uint64_t ref = any_ref();
    request_on_accepted(
        &t, &(struct msg_accepted){ref, one_in(4) ? any_id() : (struct id128){2, ref}, 7, 4});
}

static void say_output(void)
{
    static const char *const texts[] = {"", "a", "bc"};
    struct token_info tokens[3];
    struct msg_output m = {.id = any_id(), .choice = below(4), .index = below(5), .tokens = tokens};
    m.tokens_count = below(4);
    for (uint32_t i = 0; i < m.tokens_count; i++)
        tokens[i] = (struct token_info){.token = m.index + i, .logprob = NAN};
    m.text_bytes = below(3);
    m.text = texts[m.text_bytes];
    m.finish = below(3);
    request_on_output(&t, &m);
}

static void say_encoded(void)
{
    static const float values[3] = {-1, -2, 0};
    static const uint32_t ids[3] = {2, 3, 4};
    struct msg_encoded m = {
        .key = {any_id(), below(2), 0}, .index = below(3), .values = values, .tokens = ids};
    m.values_count = below(4);
    m.tokens_count = one_in(4) ? 0 : m.values_count;
    m.total = m.index + m.values_count + (one_in(4) ? below(3) : 0);
    request_on_encoded(&t, &m);
}

static void say(void)
{
    static const enum err errors[] = {ERR_FULL, ERR_AGAIN, ERR_PEER, ERR_INVALID, ERR_TIMEOUT};
    arena_reset(&t.arena);
    switch (below(9)) {
    case 0:
    case 1: accept_one(); break;
    case 2:
        request_on_rejected(
            &t, now_ns,
            &(struct msg_rejected){.ref = any_ref(),
                                   .error = errors[below(5)],
                                   .reason = "no",
                                   .retry_ms = one_in(8) ? UINT32_MAX : below(500)});
        break;
    case 3: say_encoded(); break;
    case 4:
        request_on_done(&t, &(struct msg_done){.id = any_id(),
                                               .choice = below(4),
                                               .finish = FINISH_STOP + below(4),
                                               .error = below(5),
                                               .reason = "so",
                                               .completion_tokens = below(5),
                                               .prefill_node = "",
                                               .decode_node = ""});
        break;
    case 5:
        query_on_answer(
            &t, &(struct msg_answer){any_ref() + below(3), below(2) ? OK : ERR_FULL, "{}", 2});
        break;
    default: say_output();
    }
}

/* ---- time ---- */

static void pump(void)
{
    queries_pump(&t);
    requests_pump(&t, now_ns);
}

static void pump_until_got(uint32_t count) /* the queue is full at times */
{
    for (; got_count < count; now_ns += NS_PER_S)
        pump();
}

static void move(void)
{
    uint32_t roll = below(100);
    if (roll < 30) {
        act();
    } else if (roll < 90) {
        say();
    } else if (roll < 95) {
        now_ns += below(2000) * NS_PER_MS;
    } else if (up) {
        up = false;
        requests_lost(&t, now_ns);
        queries_lost(&t);
    } else {
        up = true;
    }
    pump();
}

static void begin(uint64_t n)
{
    seed = n;
    draws = asked = answered = got_count = 0;
    now_ns = clock_now_ns();
    up = true;
    t = (struct tandem){.patience_ns = NS_PER_S};
    list_init(&t.requests);
    list_init(&t.queries);
}

static void finish(void)
{
    requests_fail(&t, TANDEM_CANCELLED, "closed");
    queries_fail(&t, TANDEM_CANCELLED, "closed");
    assert_int_equal(answered, asked);
    assert_true(list_empty(&t.requests) && t.by_id.count == 0 && t.by_ref.count == 0);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        if (heard[i].request) assert_int_equal(heard[i].left, 0);
        if (heard[i].request) free_request(&heard[i]);
    }
    map_fini(&t.by_id);
    map_fini(&t.by_ref);
    arena_fini(&t.arena);
}

static void run_seed(uint64_t n)
{
    begin(n);
    for (uint32_t i = 0; i < MOVES; i++)
        move();
    finish();
}

static void whatever_a_router_says_the_header_holds(void **state)
{
    (void)state;
    seeds_run(SEEDS, run_seed);
    assert_true(ended_count > MOVES / 10);
}

/* Others may refuse it for RESUME_MS; one that says to come again in weeks does not hold it for so long. */
static void a_resumed_request_is_put_off_no_longer_than_it_may_be(void **state)
{
    static const uint32_t ids[1] = {1};
    struct heard *h = &heard[0];
    (void)state;
    begin(1);
    *h = (struct heard){.choices = 1, .left = 1};
    assert_non_null(h->request = tandem_request_new(&t, on_event, h));
    assert_int_equal(tandem_set_tokens(h->request, ids, 1), TANDEM_OK);
    assert_int_equal(tandem_submit(h->request), TANDEM_OK);
    pump_until_got(1);
    request_on_accepted(&t, &(struct msg_accepted){got[0].ref, {2, 3}, 7, 1});
    requests_lost(&t, now_ns);
    uint64_t until_ns = now_ns + RESUME_MS * NS_PER_MS;
    pump_until_got(2);
    request_on_rejected(
        &t, now_ns,
        &(struct msg_rejected){
            .ref = got[1].ref, .error = ERR_FULL, .reason = "no", .retry_ms = UINT32_MAX});
    assert_int_equal(h->left, 1);
    assert_int_equal(requests_pump(&t, now_ns), until_ns);
    finish();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_resumed_request_is_put_off_no_longer_than_it_may_be),
        cmocka_unit_test_teardown(whatever_a_router_says_the_header_holds, seeds_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
