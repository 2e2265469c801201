#include "tests/unit/testing.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/tandem.h"
#include "common/clock.h"
#include "common/log.h"
#include "proto/tcp.h"
#include "tests/unit/fake_router.h"

enum { CHOICES_MAX = 4, TOKENS_MAX = 64 };

/* What one request told, checked as it comes. */
struct heard {
    struct tandem_request *request;
    int accepted, ended; /* events */
    uint32_t tokens[CHOICES_MAX];
    char text[CHOICES_MAX][TOKENS_MAX * 32];
    enum tandem_finish finish[CHOICES_MAX];
    enum tandem_status status;
    char reason[512], id[64];
    uint32_t retry_ms, completion_tokens;
    uint64_t seed;
    bool over;
    /* what to do */
    bool cancel_at_tokens, free_at_tokens, no_text;
    uint32_t ask_at_tokens; /* of all choices together, once */
    const char *dies; /* at the first tokens: the router there, and this program is away for long */
    struct tandem *t;
};

static void ignore_answer(void *ctx, enum tandem_status status, const char *text, size_t bytes)
{
    (void)ctx, (void)status, (void)text, (void)bytes;
}

static void ask_when_it_is_time(struct heard *h)
{
    uint32_t tokens = 0;
    for (int c = 0; c < CHOICES_MAX; c++)
        tokens += h->tokens[c];
    if (!h->ask_at_tokens || tokens < h->ask_at_tokens) return;
    h->ask_at_tokens = 0;
    assert_int_equal(tandem_query_status(h->t, ignore_answer, NULL), TANDEM_OK);
}

static void lose_while_away(struct heard *h);

static void on_event(void *ctx, const struct tandem_event *e)
{
    struct heard *h = ctx;
    assert_false(h->over);
    switch (e->kind) {
    case TANDEM_EVENT_ACCEPTED:
        h->accepted++;
        assert_int_equal(strlen(e->id), 32);
        snprintf(h->id, sizeof h->id, "%s", e->id);
        h->seed = e->seed;
        assert_int_equal(e->prompt_tokens, 4);
        return;
    case TANDEM_EVENT_TOKENS:
        assert_int_equal(e->index, h->tokens[e->choice]); /* no gap, no repetition */
        for (size_t i = 0; i < e->tokens_count; i++) {
            uint32_t index = h->tokens[e->choice]++;
            assert_int_equal(e->tokens[i].token, fake_token(e->choice, index));
            assert_true(e->tokens[i].logprob == -0.5f);
            assert_int_equal(e->tokens[i].tops_count, 1);
            assert_int_equal(e->tokens[i].tops[0].token, e->tokens[i].token);
        }
        ask_when_it_is_time(h);
        if (h->dies) lose_while_away(h);
        if (h->cancel_at_tokens) tandem_cancel(h->request);
        if (h->free_at_tokens) {
            tandem_request_free(h->request);
            h->over = true;
        }
        return;
    case TANDEM_EVENT_TEXT:
        assert_int_equal(e->text[e->text_bytes], 0);
        assert_true(strlen(h->text[e->choice]) + e->text_bytes < sizeof h->text[0]);
        strcat(h->text[e->choice], e->text);
        return;
    case TANDEM_EVENT_DONE:
    case TANDEM_EVENT_ERROR:
        h->ended++;
        h->finish[e->choice] = e->finish;
        h->status = e->status;
        h->retry_ms = e->retry_ms;
        h->completion_tokens = e->completion_tokens;
        snprintf(h->reason, sizeof h->reason, "%s", e->reason);
        assert_int_equal(e->kind == TANDEM_EVENT_ERROR, e->finish == TANDEM_FINISH_ERROR);
        h->over = e->choices_left == 0;
        return;
    }
}

/* A foreign event loop: knows of one descriptor that becomes readable, nothing else. */
struct foreign {
    int epoll_fd;
    struct tandem *t;
};

static struct foreign foreign_open(const char *addresses)
{
    struct foreign f;
    log_setup(LOG_OFF, NULL);
    assert_int_equal(tandem_open(&f.t, addresses), TANDEM_OK);
    f.epoll_fd = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN};
    assert_int_equal(epoll_ctl(f.epoll_fd, EPOLL_CTL_ADD, tandem_fd(f.t), &e), 0);
    return f;
}

static void foreign_run_until(struct foreign *f, const bool *flag)
{
    uint64_t end_ns = clock_now_ns() + 20 * NS_PER_S;
    struct epoll_event e;
    while (!*flag) {
        assert_true(clock_now_ns() < end_ns);
        if (epoll_wait(f->epoll_fd, &e, 1, 5000) > 0) tandem_process(f->t);
    }
}

static void foreign_close(struct foreign *f)
{
    tandem_close(f->t);
    close(f->epoll_fd);
}

static void submit(struct foreign *f, struct heard *h, uint32_t choices, uint32_t tokens_max)
{
    h->t = f->t;
    h->request = tandem_request_new(f->t, on_event, h);
    assert_int_equal(tandem_set_text(h->request, "some", 4), TANDEM_OK);
    tandem_set_choices(h->request, choices);
    tandem_set_max_tokens(h->request, tokens_max);
    tandem_set_want_text(h->request, !h->no_text);
    assert_int_equal(tandem_submit(h->request), TANDEM_OK);
}

static void expect_whole(const struct heard *h, uint32_t choices, uint32_t tokens_max)
{
    assert_int_equal(h->accepted, 1);
    assert_int_equal(h->ended, choices);
    assert_true(tokens_max < TOKENS_MAX);
    for (uint32_t c = 0; c < choices; c++) {
        char want[TOKENS_MAX * 32] = "";
        for (uint32_t i = 0; i < tokens_max; i++)
            snprintf(want + strlen(want), 32, "%u:%u ", c, i);
        assert_int_equal(h->tokens[c], tokens_max);
        assert_string_equal(h->text[c], want);
        assert_int_equal(h->finish[c], TANDEM_FINISH_LENGTH);
    }
    assert_int_equal(h->status, TANDEM_OK);
    assert_int_equal(h->completion_tokens, tokens_max);
}

static void a_stream_comes_whole_and_in_order(void **state)
{
    (void)state;
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    struct foreign f = foreign_open(fake_router_address(r));
    struct heard one = {0}, two = {0};
    submit(&f, &one, 1, 20);
    submit(&f, &two, 3, 7);
    foreign_run_until(&f, &one.over);
    foreign_run_until(&f, &two.over);
    expect_whole(&one, 1, 20);
    expect_whole(&two, 3, 7);
    assert_true(tandem_is_connected(f.t));
    assert_int_equal(one.seed, 31);
    assert_string_not_equal(one.id, two.id);
    tandem_request_free(one.request);
    tandem_request_free(two.request);
    foreign_close(&f);
    fake_router_stop(r);
    assert_int_equal(fake_router_seen(r)->submits, 2);
    assert_int_equal(fake_router_seen(r)->byes, 1);
    fake_router_free(r);
}

/* One request to a router of its own, up to its end. */
static void run_one(const struct fake_script *script, struct heard *h, uint32_t choices,
                    uint32_t tokens_max)
{
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", script);
    struct foreign f = foreign_open(fake_router_address(r));
    submit(&f, h, choices, tokens_max);
    foreign_run_until(&f, &h->over);
    tandem_request_free(h->request);
    foreign_close(&f);
    fake_router_free(r);
}

static void what_is_repeated_is_told_once(void **state)
{
    (void)state;
    struct heard h = {0};
    run_one(&(struct fake_script){.repeat = true}, &h, 1, 12);
    expect_whole(&h, 1, 12);
}

static void a_gap_ends_the_request_with_an_error(void **state)
{
    (void)state;
    struct heard h = {0};
    run_one(&(struct fake_script){.skip = true}, &h, 1, 12);
    assert_int_equal(h.status, TANDEM_FAILED);
    assert_int_equal(h.tokens[0], 3);
}

static void an_end_whose_last_tokens_are_missing_is_an_error(void **state)
{
    (void)state;
    struct heard h = {0};
    run_one(&(struct fake_script){.skip = true}, &h, 1, 6); /* two OUTPUTs */
    assert_int_equal(h.status, TANDEM_FAILED);
    assert_int_equal(h.tokens[0], 3);
}

static void a_rejection_is_an_error_with_its_reason(void **state)
{
    (void)state;
    static const struct {
        enum err error;
        enum tandem_status status;
    } rows[] = {{ERR_INVALID, TANDEM_INVALID},
                {ERR_FULL, TANDEM_OVERLOADED},
                {ERR_UNSUPPORTED, TANDEM_UNSUPPORTED},
                {ERR_PEER, TANDEM_FAILED}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct fake_script script = {.reject = rows[i].error};
        struct heard h = {0};
        run_one(&script, &h, 2, 5);
        assert_int_equal(h.status, rows[i].status);
        assert_int_equal(h.ended, 2);
        assert_int_equal(h.retry_ms, 120);
        assert_string_equal(h.reason, "said the script");
    }
}

/* Router one dies at a question; two has the address behind it in the list. */
static void run_over_the_death_of(const struct fake_script *dying, uint32_t choices,
                                  uint32_t tokens_max, struct fake_seen *seen, struct heard *h)
{
    struct fake_router *one = fake_router_start("tcp://127.0.0.1:0", dying);
    struct fake_router *two =
        fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){.tail = dying->tail});
    char addresses[256];
    snprintf(addresses, sizeof addresses, "%s,%s", fake_router_address(one),
             fake_router_address(two));
    struct foreign f = foreign_open(addresses);
    submit(&f, h, choices, tokens_max);
    foreign_run_until(&f, &h->over);
    assert_string_equal(tandem_router(f.t), fake_router_address(two));
    tandem_request_free(h->request);
    foreign_close(&f);
    fake_router_free(one);
    fake_router_stop(two);
    *seen = *fake_router_seen(two);
    fake_router_free(two);
}

/* Longer than the patience that the tests with it set: as a program that is stopped, or whose output is not read. */
enum { PATIENCE_MS = 700, AWAY_MS = 900 };
static void be_away(void)
{
    poll(NULL, 0, AWAY_MS);
}

static void set_flag(void *ctx, enum tandem_status status, const char *text, size_t bytes)
{
    (void)status, (void)text, (void)bytes;
    *(bool *)ctx = true;
}

static void lose_while_away(struct heard *h)
{
    bool asked = false;
    struct foreign other = foreign_open(h->dies);
    h->dies = NULL;
    tandem_query_status(other.t, set_flag, &asked);
    tandem_set_patience(other.t, 50); /* once it has died */
    foreign_run_until(&other, &asked);
    foreign_close(&other);
    be_away();
}

static void the_patience_is_not_for_the_programs_own_absence(void **state)
{
    (void)state;
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    struct foreign f = foreign_open(fake_router_address(r));
    struct heard h = {0};
    tandem_set_patience(f.t, PATIENCE_MS);
    be_away(); /* before it looked for a router at all */
    submit(&f, &h, 1, 5);
    foreign_run_until(&f, &h.over);
    expect_whole(&h, 1, 5);
    tandem_request_free(h.request);
    foreign_close(&f);
    fake_router_free(r);
}

static void a_router_that_dies_while_a_callback_takes_long_is_replaced(void **state)
{
    (void)state;
    struct fake_script dying = {.outputs_until_hold = 3, .at_query = FAKE_DIES};
    struct fake_router *one = fake_router_start("tcp://127.0.0.1:0", &dying);
    struct fake_router *two = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    char addresses[256];
    snprintf(addresses, sizeof addresses, "%s,%s", fake_router_address(one),
             fake_router_address(two));
    struct foreign f = foreign_open(addresses);
    struct heard h = {.dies = fake_router_address(one)};
    tandem_set_patience(f.t, PATIENCE_MS);
    submit(&f, &h, 1, 20);
    foreign_run_until(&f, &h.over);
    expect_whole(&h, 1, 20);
    tandem_request_free(h.request);
    foreign_close(&f);
    fake_router_free(one);
    fake_router_free(two);
}

static void run_over_a_death(uint32_t choices, uint32_t tokens_max, uint32_t outputs,
                             struct fake_seen *seen, struct heard *h)
{
    struct fake_script dying = {.outputs_until_hold = outputs, .at_query = FAKE_DIES};
    run_over_the_death_of(&dying, choices, tokens_max, seen, h);
}

static void after_a_routers_death_another_goes_on_at_the_next_index(void **state)
{
    (void)state;
    struct fake_seen seen;
    struct heard h = {.ask_at_tokens = 9};
    run_over_a_death(1, 20, 3, &seen, &h);
    expect_whole(&h, 1, 20);
    char id[ID128_TEXT];
    id128_print(seen.id, id);
    assert_string_equal(id, h.id);
    assert_int_equal(seen.received_count, 9);
    assert_int_equal(seen.attempt, 1000);
    assert_true(seen.seed_given);
    assert_int_equal(seen.seed, 31);
}

static void each_of_several_choices_goes_on_at_its_next_index(void **state)
{
    (void)state;
    struct fake_seen seen;
    struct heard h = {.ask_at_tokens = 15};
    run_over_a_death(2, 9, 5, &seen, &h); /* the first choice complete, the second not */
    expect_whole(&h, 2, 9);
    assert_int_equal(seen.received_count, 15);
    assert_int_equal(seen.received_counts[0], 9);
    assert_int_equal(seen.received_counts[1], 6);
    assert_true(seen.seed_given);
}

static void
a_router_that_dies_after_the_last_token_is_not_needed_where_no_text_is_wanted(void **state)
{
    (void)state;
    for (int stops = 0; stops < 2; stops++) {
        struct fake_script script = {.withhold_done = true, .stops = stops, .at_query = FAKE_DIES};
        struct heard h = {.ask_at_tokens = 12, .no_text = true};
        run_one(&script, &h, 2, 6);
        for (int c = 0; c < 2; c++) {
            assert_int_equal(h.tokens[c], 6);
            assert_int_equal(h.finish[c], stops ? TANDEM_FINISH_STOP : TANDEM_FINISH_LENGTH);
        }
    }
}

/* Found by ./dev chaos: what the first router had held back of the text was missing. */
static void the_tail_of_a_text_comes_once_whichever_router_says_it(void **state)
{
    (void)state;
    for (int told = 0; told < 2; told++) { /* the first router died before it, and behind it */
        struct fake_seen seen;
        struct fake_script dying = {
            .withhold_done = true, .withhold_tail = !told, .tail = true, .at_query = FAKE_DIES};
        struct heard h = {.ask_at_tokens = 6};
        run_over_the_death_of(&dying, 1, 6, &seen, &h);
        assert_int_equal(seen.received_count, 6);
        assert_int_equal(h.tokens[0], 6);
        assert_string_equal(h.text[0], "0:0 0:1 0:2 0:3 0:4 0:5 tail");
        assert_int_equal(h.finish[0], TANDEM_FINISH_LENGTH);
    }
}

static void a_lost_lifeline_is_a_new_session_with_the_same_router(void **state)
{
    (void)state;
    struct fake_script script = {.outputs_until_hold = 1, .at_query = FAKE_CUTS_LIFELINE};
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
    struct foreign f = foreign_open(fake_router_address(r));
    struct heard h = {.ask_at_tokens = 3};
    submit(&f, &h, 1, 10);
    foreign_run_until(&f, &h.over);
    expect_whole(&h, 1, 10);
    tandem_request_free(h.request);
    foreign_close(&f);
    fake_router_stop(r);
    assert_true(fake_router_seen(r)->hellos >= 2);
    assert_int_equal(fake_router_seen(r)->received_count, 3);
    fake_router_free(r);
}

static void a_cancelled_request_ends_as_cancelled(void **state)
{
    (void)state;
    struct fake_script script = {.outputs_until_hold = 2};
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
    struct foreign f = foreign_open(fake_router_address(r));
    struct heard h = {.cancel_at_tokens = true}, early = {0};
    submit(&f, &early, 2, 9);
    tandem_cancel(early.request); /* before it could be sent */
    submit(&f, &h, 1, 30);
    foreign_run_until(&f, &early.over);
    foreign_run_until(&f, &h.over);
    assert_int_equal(h.finish[0], TANDEM_FINISH_CANCELLED);
    assert_int_equal(early.finish[1], TANDEM_FINISH_CANCELLED);
    assert_int_equal(early.ended, 2);
    assert_int_equal(early.accepted, 0);
    tandem_cancel(h.request); /* over: nothing */
    tandem_request_free(h.request);
    tandem_request_free(early.request);
    foreign_close(&f);
    fake_router_stop(r);
    assert_int_equal(fake_router_seen(r)->cancels, 1);
    assert_int_equal(fake_router_seen(r)->submits, 1);
    fake_router_free(r);
}

static void a_request_freed_in_its_callback_is_cancelled_and_silent(void **state)
{
    (void)state;
    struct fake_script script = {.outputs_until_hold = 2};
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
    struct foreign f = foreign_open(fake_router_address(r));
    struct heard h = {.free_at_tokens = true}, next = {.cancel_at_tokens = true};
    submit(&f, &h, 1, 30);
    foreign_run_until(&f, &h.over);
    submit(&f, &next, 1, 30); /* and the connection goes on */
    uint64_t end_ns = clock_now_ns() + 20 * NS_PER_S;
    while (!next.accepted && clock_now_ns() < end_ns)
        tandem_wait(f.t, 100);
    tandem_request_free(next.request);
    tandem_request_free(tandem_request_new(f.t, on_event, &h)); /* never submitted */
    tandem_request_free(NULL);
    foreign_close(&f);
    fake_router_stop(r);
    assert_int_equal(fake_router_seen(r)->cancels, 2);
    fake_router_free(r);
}

struct answer {
    bool there;
    enum tandem_status status;
    char text[512];
};

static void on_answer(void *ctx, enum tandem_status status, const char *text, size_t bytes)
{
    struct answer *a = ctx;
    assert_false(a->there);
    a->there = true;
    a->status = status;
    snprintf(a->text, sizeof a->text, "%.*s", (int)bytes, text);
}

static void without_a_router_requests_and_questions_end_after_the_patience(void **state)
{
    (void)state;
    struct fake_router *gone = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    struct fake_router *refusing =
        fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){.refuse = "I know you"});
    fake_router_stop(gone);
    const char *addresses[] = {fake_router_address(gone), fake_router_address(refusing)};
    for (int i = 0; i < 2; i++) {
        struct foreign f = foreign_open(addresses[i]);
        struct heard h = {0};
        struct answer a = {0};
        tandem_set_patience(f.t, 150);
        submit(&f, &h, 2, 5);
        assert_int_equal(tandem_query_status(f.t, on_answer, &a), TANDEM_OK);
        foreign_run_until(&f, &h.over);
        foreign_run_until(&f, &a.there);
        assert_int_equal(h.status, TANDEM_NO_ROUTER);
        assert_int_equal(h.ended, 2);
        assert_int_equal(a.status, TANDEM_NO_ROUTER);
        assert_non_null(strstr(h.reason, i == 0 ? addresses[0] : "refused: I know you"));
        tandem_request_free(h.request);
        foreign_close(&f);
    }
    fake_router_free(gone);
    fake_router_free(refusing);
}

/* An address nobody listens at any more, or one that takes no more connections, as behind a firewall that
 * drops what it does not know. */
struct dead_end {
    int listener, filler[4];
    char address[TCP_ADDRESS_TEXT];
};

static struct dead_end dead_end_open(bool drops)
{
    struct dead_end d;
    assert_int_equal(tcp_listen("127.0.0.1:0", &d.listener, d.address), OK);
    assert_int_equal(listen(d.listener, 0), 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(tcp_dial(d.address, &d.filler[i]), OK);
    if (!drops) close(d.listener);
    return d;
}

static void dead_end_close(struct dead_end *d, bool drops)
{
    for (int i = 0; i < 4; i++)
        close(d->filler[i]);
    if (drops) close(d->listener);
}

/* A client that can reach the router, but not this lifeline of it, is told both, and why. */
static void expect_no_lifeline(const char *lifeline, const char *why)
{
    struct fake_script script = {.lifeline = lifeline, .outputs_until_hold = 1};
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
    struct foreign f = foreign_open(fake_router_address(r));
    struct heard h = {0};
    tandem_set_patience(f.t, 150);
    submit(&f, &h, 1, 10);
    foreign_run_until(&f, &h.over);
    assert_int_equal(h.status, TANDEM_NO_ROUTER);
    assert_non_null(strstr(h.reason, fake_router_address(r)));
    assert_non_null(strstr(h.reason, lifeline));
    assert_non_null(strstr(h.reason, why));
    assert_non_null(strstr(h.reason, "--listen-lifeline"));
    tandem_request_free(h.request);
    foreign_close(&f);
    fake_router_free(r);
}

static void a_lifeline_that_cannot_be_reached_is_named_after_the_patience(void **state)
{
    (void)state;
    for (int drops = 0; drops < 2; drops++) {
        struct dead_end end = dead_end_open(drops);
        expect_no_lifeline(end.address, drops ? "in time" : "refused");
        dead_end_close(&end, drops);
    }
}

/* As behind an address that several routers share. */
static void a_lifeline_that_ends_at_once_is_no_router_either(void **state)
{
    (void)state;
    struct fake_router *other = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    expect_no_lifeline(fake_router_lifeline(other), "ended at once");
    fake_router_free(other);
}

static void questions_are_answered_once(void **state)
{
    (void)state;
    struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &(struct fake_script){0});
    struct foreign f = foreign_open(fake_router_address(r));
    struct answer status = {0}, explain = {0}, drain = {0}, late = {0};
    char long_name[100];
    memset(long_name, 'a', sizeof long_name);
    long_name[99] = '\0';
    assert_int_equal(tandem_query_status(f.t, on_answer, &status), TANDEM_OK);
    assert_int_equal(tandem_query_explain(f.t, "abc", on_answer, &explain), TANDEM_OK);
    assert_int_equal(tandem_drain(f.t, "p0", on_answer, &drain), TANDEM_OK);
    assert_int_equal(tandem_drain(f.t, long_name, on_answer, &drain), TANDEM_INVALID);
    struct tandem_pin pin = {.name = "a", .tenant = "a\tb", .text = "x", .text_bytes = 1};
    assert_int_equal(tandem_drain(f.t, "a\tb", on_answer, &drain), TANDEM_INVALID);
    assert_int_equal(tandem_query_explain(f.t, "\xff", on_answer, &drain), TANDEM_INVALID);
    assert_int_equal(tandem_pin(f.t, &pin, on_answer, &drain), TANDEM_INVALID);
    assert_int_equal(tandem_unpin(f.t, "a", "a\tb", on_answer, &drain), TANDEM_INVALID);
    foreign_run_until(&f, &status.there);
    foreign_run_until(&f, &explain.there);
    foreign_run_until(&f, &drain.there);
    assert_int_equal(status.status, TANDEM_OK);
    assert_string_equal(status.text, "{\"fake\":true}");
    assert_int_equal(explain.status, TANDEM_NOT_FOUND);
    assert_string_equal(explain.text, "no such request");
    assert_int_equal(tandem_query_status(f.t, on_answer, &late), TANDEM_OK);
    foreign_close(&f);
    assert_int_equal(late.status, TANDEM_CANCELLED);
    fake_router_stop(r);
    assert_int_equal(fake_router_seen(r)->queries, 3);
    assert_string_equal(fake_router_seen(r)->query, "p0");
    fake_router_free(r);
}

static void closing_ends_what_runs(void **state)
{
    (void)state;
    struct foreign f = foreign_open("tcp://127.0.0.1:1");
    struct heard h = {0};
    submit(&f, &h, 2, 5);
    foreign_close(&f);
    assert_true(h.over);
    assert_int_equal(h.ended, 2);
    assert_int_equal(h.status, TANDEM_CANCELLED);
    tandem_cancel(h.request);
    tandem_request_free(h.request); /* after the connection, too */
    tandem_close(NULL);
}

static void a_refused_resume_is_tried_again_a_refused_submit_is_not(void **state)
{
    (void)state;
    struct fake_script dying = {.outputs_until_hold = 2, .at_query = FAKE_DIES};
    struct fake_script busy = {.reject = ERR_FULL, .rejects = 1};
    struct fake_router *one = fake_router_start("tcp://127.0.0.1:0", &dying);
    struct fake_router *two = fake_router_start("tcp://127.0.0.1:0", &busy);
    char addresses[256];
    snprintf(addresses, sizeof addresses, "%s,%s", fake_router_address(one),
             fake_router_address(two));
    struct foreign f = foreign_open(addresses);
    struct heard h = {.ask_at_tokens = 6};
    submit(&f, &h, 1, 12);
    foreign_run_until(&f, &h.over);
    expect_whole(&h, 1, 12);
    tandem_request_free(h.request);
    foreign_close(&f);
    fake_router_free(one);
    fake_router_stop(two);
    assert_int_equal(fake_router_seen(two)->submits, 2);
    fake_router_free(two);
}

static void wrong_values_are_said_at_submit_and_no_event_comes(void **state)
{
    (void)state;
    struct foreign f = foreign_open("tcp://127.0.0.1:1");
    struct heard h = {0};
    static const uint32_t ids[] = {1, 2};
    struct tandem_request *r = tandem_request_new(f.t, on_event, &h);
    assert_int_equal(tandem_submit(r), TANDEM_INVALID);
    assert_non_null(strstr(tandem_error_text(), "without a prompt"));
    assert_int_equal(tandem_set_tokens(r, ids, 0), TANDEM_INVALID);
    assert_int_equal(tandem_set_tokens(r, ids, 2), TANDEM_OK);
    tandem_set_choices(r, 0);
    assert_int_equal(tandem_submit(r), TANDEM_INVALID);
    assert_non_null(strstr(tandem_error_text(), "choices is 0"));
    tandem_set_choices(r, 1);
    tandem_set_temperature(r, 0.0f / 0.0f);
    assert_int_equal(tandem_submit(r), TANDEM_INVALID);
    assert_non_null(strstr(tandem_error_text(), "temperature"));
    tandem_set_temperature(r, 1);
    assert_int_equal(tandem_add_stop(r, ""), TANDEM_OK);
    assert_int_equal(tandem_submit(r), TANDEM_INVALID);
    for (int i = 1; i < JOB_STOP_STRINGS_MAX; i++)
        assert_int_equal(tandem_add_stop(r, "x"), TANDEM_OK);
    assert_int_equal(tandem_add_stop(r, "x"), TANDEM_INVALID);
    for (int i = 0; i < JOB_STOP_IDS_MAX; i++)
        assert_int_equal(tandem_add_stop_id(r, 1), TANDEM_OK);
    assert_int_equal(tandem_add_stop_id(r, 1), TANDEM_INVALID);
    for (int i = 0; i < JOB_BIAS_MAX; i++)
        assert_int_equal(tandem_add_bias(r, 1, 1), TANDEM_OK);
    assert_int_equal(tandem_add_bias(r, 1, 1), TANDEM_INVALID);
    tandem_request_free(r);
    foreign_close(&f);
    assert_int_equal(h.ended, 0);
    struct tandem *t = NULL;
    static const char *const bad[] = {"", "nonsense", "tcp://127.0.0.1:1,", "tcp://:1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(tandem_open(&t, bad[i]), TANDEM_INVALID);
        assert_non_null(strstr(tandem_error_text(), "write tcp://HOST:PORT"));
    }
    assert_string_equal(tandem_status_name(TANDEM_NO_ROUTER), "no_router");
    assert_string_equal(tandem_finish_name(TANDEM_FINISH_LENGTH), "length");
}

static void a_deadline_passes_without_a_router_too(void **state)
{
    (void)state;
    struct foreign f = foreign_open("tcp://127.0.0.1:1");
    struct heard h = {0};
    h.request = tandem_request_new(f.t, on_event, &h);
    tandem_set_text(h.request, "", 0);
    tandem_set_deadline(h.request, 30);
    assert_int_equal(tandem_submit(h.request), TANDEM_OK);
    assert_int_equal(tandem_submit(h.request), TANDEM_INVALID); /* once */
    foreign_run_until(&f, &h.over);
    assert_int_equal(h.status, TANDEM_TIMEOUT);
    tandem_request_free(h.request);
    foreign_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_comes_whole_and_in_order),
        cmocka_unit_test(what_is_repeated_is_told_once),
        cmocka_unit_test(a_gap_ends_the_request_with_an_error),
        cmocka_unit_test(an_end_whose_last_tokens_are_missing_is_an_error),
        cmocka_unit_test(a_rejection_is_an_error_with_its_reason),
        cmocka_unit_test(after_a_routers_death_another_goes_on_at_the_next_index),
        cmocka_unit_test(the_patience_is_not_for_the_programs_own_absence),
        cmocka_unit_test(a_router_that_dies_while_a_callback_takes_long_is_replaced),
        cmocka_unit_test(each_of_several_choices_goes_on_at_its_next_index),
        cmocka_unit_test(
            a_router_that_dies_after_the_last_token_is_not_needed_where_no_text_is_wanted),
        cmocka_unit_test(the_tail_of_a_text_comes_once_whichever_router_says_it),
        cmocka_unit_test(a_lost_lifeline_is_a_new_session_with_the_same_router),
        cmocka_unit_test(a_cancelled_request_ends_as_cancelled),
        cmocka_unit_test(a_request_freed_in_its_callback_is_cancelled_and_silent),
        cmocka_unit_test(without_a_router_requests_and_questions_end_after_the_patience),
        cmocka_unit_test(a_lifeline_that_cannot_be_reached_is_named_after_the_patience),
        cmocka_unit_test(a_lifeline_that_ends_at_once_is_no_router_either),
        cmocka_unit_test(questions_are_answered_once),
        cmocka_unit_test(closing_ends_what_runs),
        cmocka_unit_test(a_refused_resume_is_tried_again_a_refused_submit_is_not),
        cmocka_unit_test(wrong_values_are_said_at_submit_and_no_event_comes),
        cmocka_unit_test(a_deadline_passes_without_a_router_too),
    };
    return cmocka_run_group_tests_name("client", tests, NULL, NULL);
}
