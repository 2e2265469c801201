#include "tests/unit/testing.h"

#include <stdio.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "proto/lifeline.h"
#include "proto/tcp.h"

enum { UP = 1, DOWN = 2 };

static const struct id128 key = {0x0102030405060708, 0xf1f2f3f4f5f6f7f8};
static const struct peer seven = {7};

struct bench {
    struct loop *loop;
    struct lifeline_server *server;
    struct lifeline *line;
    struct loop_timer *poll;
    int server_saw[8], server_count; /* UP, DOWN */
    int line_saw[8], line_count;
    bool (*enough)(struct bench *b);
    uint64_t began_ns;
    bool failed, free_in_callback;
    int raw;
};

static void on_peer(void *ctx, uint64_t now_ns, struct peer peer, bool up)
{
    struct bench *b = ctx;
    (void)now_ns;
    assert_int_equal(peer.v, seven.v);
    b->server_saw[b->server_count++] = up ? UP : DOWN;
    if (b->free_in_callback) lifeline_forget(b->server, peer);
}

static void on_line(void *ctx, uint64_t now_ns, bool up)
{
    struct bench *b = ctx;
    (void)now_ns;
    b->line_saw[b->line_count++] = up ? UP : DOWN;
    if (up || !b->free_in_callback) return;
    lifeline_free(b->line);
    b->line = NULL;
}

static void on_poll(void *ctx, uint64_t now_ns)
{
    struct bench *b = ctx;
    b->failed = now_ns - b->began_ns > 10 * NS_PER_S;
    if (b->failed || b->enough(b))
        loop_stop(b->loop);
    else
        loop_timer_set(b->poll, now_ns + NS_PER_MS);
}

static void run_until(struct bench *b, bool (*enough)(struct bench *b))
{
    b->enough = enough;
    b->began_ns = clock_now_ns();
    loop_timer_set(b->poll, 0);
    loop_run(b->loop);
    assert_false(b->failed);
}

static void setup(struct bench *b)
{
    *b = (struct bench){0};
    log_setup(LOG_OFF, NULL);
    assert_ok(loop_new(&b->loop));
    assert_ok(loop_timer_new(b->loop, on_poll, b, &b->poll));
    assert_ok(lifeline_listen(&b->server, b->loop, "127.0.0.1:0", on_peer, b));
}

static void teardown(struct bench *b)
{
    lifeline_free(b->line);
    lifeline_close(b->server);
    loop_timer_free(b->poll);
    loop_free(b->loop);
}

static const char router[] = "tcp://127.0.0.1:5701";

static void dial(struct bench *b, struct id128 with)
{
    const struct lifeline_at at = {lifeline_address(b->server), router};
    assert_ok(lifeline_dial(&b->line, b->loop, &at, with, on_line, b));
}

static bool both_saw_one(struct bench *b)
{
    return b->server_count == 1 && b->line_count == 1;
}
static bool server_saw_two(struct bench *b)
{
    return b->server_count == 2;
}
static bool line_saw_two(struct bench *b)
{
    return b->line_count == 2;
}
static bool line_saw_one(struct bench *b)
{
    return b->line_count == 1;
}

static void both_sides_hear_that_it_stands_and_the_server_that_it_ended(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    assert_ok(lifeline_expect(b.server, key, seven));
    dial(&b, key);
    run_until(&b, both_saw_one);
    assert_true(b.server_saw[0] == UP && b.line_saw[0] == UP);
    lifeline_free(b.line);
    b.line = NULL;
    run_until(&b, server_saw_two);
    assert_int_equal(b.server_saw[1], DOWN);
    assert_int_equal(b.line_count, 1); /* freeing calls nobody */
    teardown(&b);
}

static void forgetting_ends_it_for_the_dialer_only(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    assert_ok(lifeline_expect(b.server, key, seven));
    dial(&b, key);
    run_until(&b, both_saw_one);
    lifeline_forget(b.server, seven);
    lifeline_forget(b.server, seven);
    run_until(&b, line_saw_two);
    assert_int_equal(b.line_saw[1], DOWN);
    assert_int_equal(b.server_count, 1);
    teardown(&b);
}

static void an_unknown_key_and_one_used_twice_are_turned_away(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    dial(&b, (struct id128){1, 2});
    run_until(&b, line_saw_two); /* written, then closed by the server */
    assert_int_equal(b.line_saw[1], DOWN);
    assert_int_equal(b.server_count, 0);
    lifeline_free(b.line);
    b.line_count = 0;

    assert_ok(lifeline_expect(b.server, key, seven));
    dial(&b, key);
    run_until(&b, both_saw_one);
    struct lifeline *first = b.line;
    b.line_count = 0;
    dial(&b, key);
    run_until(&b, line_saw_two);
    assert_int_equal(b.server_count, 1); /* the first one stands */
    lifeline_free(first);
    teardown(&b);
}

static void a_key_belongs_to_one_peer_and_a_new_one_replaces_it(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    assert_ok(lifeline_expect(b.server, key, seven));
    assert_int_equal(lifeline_expect(b.server, key, (struct peer){8}), ERR_DUPLICATE);
    assert_ok(lifeline_expect(b.server, (struct id128){5, 5}, seven));
    dial(&b, (struct id128){5, 5});
    run_until(&b, both_saw_one);
    assert_int_equal(b.server_saw[0], UP);
    teardown(&b);
}

static void callbacks_may_free_and_forget(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    b.free_in_callback = true;
    assert_ok(lifeline_expect(b.server, key, seven));
    dial(&b, key);
    run_until(&b, line_saw_two); /* the server forgot it when it stood */
    assert_null(b.line);
    assert_int_equal(b.server_count, 1);
    teardown(&b);
}

/* A router that listens on all addresses of its host, in a container say, does not know by which of them it
 * is reached. Here it is by 127.0.0.2, and nothing is at 127.0.0.1, which 0.0.0.0 would come to. */
static void an_address_without_a_host_is_that_of_the_router(void **state)
{
    (void)state;
    struct bench b;
    char anywhere[TCP_ADDRESS_TEXT];
    setup(&b);
    lifeline_close(b.server);
    assert_ok(lifeline_listen(&b.server, b.loop, "127.0.0.2:0", on_peer, &b));
    assert_ok(lifeline_expect(b.server, key, seven));
    snprintf(anywhere, sizeof anywhere, "0.0.0.0%s", strrchr(lifeline_address(b.server), ':'));
    const struct lifeline_at at = {anywhere, "tcp://127.0.0.2:5701"};
    assert_ok(lifeline_dial(&b.line, b.loop, &at, key, on_line, &b));
    run_until(&b, line_saw_one);
    assert_int_equal(b.line_saw[0], UP);
    run_until(&b, both_saw_one);
    teardown(&b);
}

static void a_dial_that_finds_nobody_says_so_from_the_loop(void **state)
{
    (void)state;
    struct bench b;
    int fd;
    char nobody[TCP_ADDRESS_TEXT];
    setup(&b);
    assert_ok(tcp_listen("127.0.0.1:0", &fd, nobody));
    close(fd);
    const struct lifeline_at at = {nobody, router};
    assert_ok(lifeline_dial(&b.line, b.loop, &at, key, on_line, &b));
    assert_int_equal(b.line_count, 0);
    run_until(&b, line_saw_one);
    assert_int_equal(b.line_saw[0], DOWN);
    teardown(&b);
}

static bool raw_is_closed(struct bench *b)
{
    char byte;
    ssize_t n = recv(b->raw, &byte, 1, MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno == ECONNRESET);
}

static void raw_send(struct bench *b, const void *bytes, size_t size)
{
    assert_ok(tcp_dial(lifeline_address(b->server), &b->raw));
    while (send(b->raw, bytes, size, MSG_NOSIGNAL) < 0)
        assert_true(errno == EAGAIN || errno == ENOTCONN);
}

static void garbage_is_closed(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    static const char get[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    raw_send(&b, get, sizeof get - 1);
    run_until(&b, raw_is_closed);
    close(b.raw);
    assert_int_equal(b.server_count, 0);

    unsigned char bytes[LIFELINE_KEY_BYTES + 1] = {0};
    lifeline_key_bytes(key, bytes);
    assert_int_equal(bytes[0], 0x01);
    assert_int_equal(bytes[15], 0xf8);
    assert_ok(lifeline_expect(b.server, key, seven));
    raw_send(&b, bytes, sizeof bytes); /* a byte too many */
    run_until(&b, raw_is_closed);
    close(b.raw);
    assert_int_equal(b.server_count, 0);
    raw_send(&b, bytes, LIFELINE_KEY_BYTES); /* the same in two pieces, then a word */
    assert_int_equal(send(b.raw, "x", 1, MSG_NOSIGNAL), 1);
    run_until(&b, raw_is_closed);
    close(b.raw);
    teardown(&b);
}

static void what_is_told_to_others_has_a_host_that_they_can_dial(void **state)
{
    (void)state;
    static const struct {
        const char *address, *router, *want; /* NULL: an error */
    } cases[] = {
        {"0.0.0.0:5710", "tcp://127.0.0.1:5701", "127.0.0.1:5710"},
        {"[::]:0", "tcp://127.0.0.1:5701", "127.0.0.1:0"},
        {"*:5710", "127.0.0.1:5701", "127.0.0.1:5710"},
        {"10.1.2.3:5710", "tcp://127.0.0.1:5701", "10.1.2.3:5710"},
        {"10.1.2.3:5710", "nowhere", "10.1.2.3:5710"},
        {"0.0.0.0:5710", "tcp://nowhere", NULL},
    };
    char got[TCP_ADDRESS_TEXT];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum err e = tcp_own_host(cases[i].address, cases[i].router, got);
        assert_int_equal(e, cases[i].want ? OK : ERR_INVALID);
        if (cases[i].want) assert_string_equal(got, cases[i].want);
    }
}

static void bad_addresses_and_occupied_ports_are_named(void **state)
{
    (void)state;
    struct bench b;
    struct lifeline_server *s = NULL;
    setup(&b);
    assert_int_equal(lifeline_listen(&s, b.loop, lifeline_address(b.server), on_peer, &b), ERR_IO);
    assert_non_null(strstr(err_text(), "choose another port"));
    static const char *const bad[] = {"", "x", ":1", "127.0.0.1:", "127.0.0.1:http", "[::1:5"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(lifeline_listen(&s, b.loop, bad[i], on_peer, &b), ERR_INVALID);
        const struct lifeline_at at = {bad[i], router};
        assert_int_equal(lifeline_dial(&b.line, b.loop, &at, key, on_line, &b), ERR_INVALID);
    }
    b.line = NULL;
    teardown(&b);
}

static void every_allocation_may_fail_while_opening(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    for (uint64_t n = 1;; n++) {
        struct lifeline_server *s = NULL;
        struct lifeline *l = NULL;
        mem_fail_at(n);
        enum err e = lifeline_listen(&s, b.loop, "127.0.0.1:0", on_peer, &b);
        if (e == OK) e = lifeline_expect(s, key, seven);
        const struct lifeline_at at = {e == OK ? lifeline_address(s) : "", router};
        if (e == OK) e = lifeline_dial(&l, b.loop, &at, key, on_line, &b);
        mem_fail_at(0);
        lifeline_free(l);
        lifeline_close(s);
        if (e == OK) break;
        assert_int_equal(e, ERR_MEMORY);
        assert_true(n < 50);
    }
    teardown(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_sides_hear_that_it_stands_and_the_server_that_it_ended),
        cmocka_unit_test(forgetting_ends_it_for_the_dialer_only),
        cmocka_unit_test(an_unknown_key_and_one_used_twice_are_turned_away),
        cmocka_unit_test(a_key_belongs_to_one_peer_and_a_new_one_replaces_it),
        cmocka_unit_test(callbacks_may_free_and_forget),
        cmocka_unit_test(an_address_without_a_host_is_that_of_the_router),
        cmocka_unit_test(a_dial_that_finds_nobody_says_so_from_the_loop),
        cmocka_unit_test(garbage_is_closed),
        cmocka_unit_test(what_is_told_to_others_has_a_host_that_they_can_dial),
        cmocka_unit_test(bad_addresses_and_occupied_ports_are_named),
        cmocka_unit_test(every_allocation_may_fail_while_opening),
    };
    return cmocka_run_group_tests_name("lifeline", tests, NULL, NULL);
}
