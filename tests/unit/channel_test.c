#include "tests/unit/testing.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "common/log.h"
#include "proto/channel.h"
#include "proto/wire.h"

/* A router's channel and what came in there; any number of others dial it. */
struct bench {
    struct loop *loop;
    struct channel *server, *client[3];
    struct loop_timer *poll;
    struct peer last;
    uint64_t received;               /* by the server */
    uint64_t echoed;                 /* by the clients */
    uint64_t refs;                   /* sum of what came */
    bool (*enough)(struct bench *b); /* asked every millisecond; gives up after 10 s */
    bool echo, forget, close_at_once, failed;
    uint64_t began_ns;
    uint64_t to_send;
    char *text;
    uint32_t text_bytes;
};

static struct msg answer(uint64_t ref)
{
    return (struct msg){.kind = MSG_ANSWER, .answer = {.ref = ref, .text = ""}};
}

static void on_server_message(void *ctx, uint64_t now_ns, struct peer peer, const struct msg *m)
{
    struct bench *b = ctx;
    (void)now_ns;
    b->received++;
    b->last = peer;
    if (m->kind == MSG_ANSWER) b->refs += m->answer.ref;
    if (b->echo) assert_ok(channel_send(b->server, peer, m));
    if (b->forget) channel_forget(b->server, peer);
    if (b->close_at_once) {
        channel_close(b->server);
        b->server = NULL;
    }
}

static void on_client_message(void *ctx, uint64_t now_ns, struct peer peer, const struct msg *m)
{
    struct bench *b = ctx;
    (void)now_ns, (void)peer, (void)m;
    b->echoed++;
}

static const struct channel_events server_events = {on_server_message};
static const struct channel_events client_events = {on_client_message};

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

static void setup(struct bench *b, int clients)
{
    *b = (struct bench){0};
    log_setup(LOG_OFF, NULL);
    assert_ok(loop_new(&b->loop));
    assert_ok(loop_timer_new(b->loop, on_poll, b, &b->poll));
    assert_ok(channel_listen(&b->server, b->loop, "tcp://127.0.0.1:0", &server_events, b));
    for (int i = 0; i < clients; i++)
        assert_ok(channel_dial(&b->client[i], b->loop, channel_address(b->server),
                               (struct peer){(uint32_t)i + 1}, &client_events, b));
}

static void teardown(struct bench *b)
{
    for (int i = 0; i < 3; i++)
        channel_close(b->client[i]);
    channel_close(b->server);
    loop_timer_free(b->poll);
    loop_free(b->loop);
}

/* Sends as soon as there is a connection. */
static bool client_sends(struct bench *b, int i)
{
    struct msg m = answer(1);
    return channel_send(b->client[i], (struct peer){1}, &m) == OK;
}

static bool first_sends(struct bench *b)
{
    return client_sends(b, 0);
}
static bool one_received(struct bench *b)
{
    return b->received >= 1;
}
static bool one_echoed(struct bench *b)
{
    return b->echoed >= 1;
}

static void a_message_goes_there_and_back(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 1);
    b.echo = true;
    assert_non_null(strstr(channel_address(b.server), "tcp://127.0.0.1:"));
    run_until(&b, first_sends);
    run_until(&b, one_echoed);
    struct channel_stats s;
    channel_stats(b.server, &s);
    assert_int_equal(s.sent, 1);
    assert_int_equal(s.received, 1);
    assert_true(s.received_bytes == s.sent_bytes && s.sent_bytes > 0);
    teardown(&b);
}

static void before_it_is_connected_a_channel_has_no_peer(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 0);
    struct msg m = answer(1);
    assert_ok(channel_dial(&b.client[0], b.loop, "tcp://127.0.0.1:1", (struct peer){1},
                           &client_events, &b));
    assert_int_equal(channel_send(b.client[0], (struct peer){1}, &m), ERR_PEER);
    assert_int_equal(channel_send(b.client[0], (struct peer){2}, &m), ERR_PEER);
    assert_int_equal(channel_send(b.server, (struct peer){1}, &m), ERR_PEER);
    teardown(&b);
}

enum { MANY = 5000 };

/* In bursts larger than what one turn delivers; the sender gets answers while it sends. */
static bool many_sent_and_echoed(struct bench *b)
{
    for (int i = 0; i < 1000 && b->to_send > 0; i++) {
        struct msg m = answer(b->to_send);
        if (channel_send(b->client[0], (struct peer){1}, &m) != OK) break;
        b->to_send--;
    }
    return b->echoed == MANY;
}

static void none_of_many_is_lost_or_left_lying(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 1);
    b.echo = true;
    b.to_send = MANY;
    run_until(&b, many_sent_and_echoed);
    assert_int_equal(b.received, MANY);
    assert_true(b.refs == (uint64_t)MANY * (MANY + 1) / 2);
    teardown(&b);
}

static void peers_have_numbers_of_their_own_and_a_forgotten_one_comes_back_as_another(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 2);
    run_until(&b, first_sends);
    run_until(&b, one_received);
    struct peer first = b.last;
    channel_forget(b.server, first);
    channel_forget(b.server, first);
    struct msg m = answer(2);
    assert_int_equal(channel_send(b.server, first, &m), ERR_PEER);
    b.received = 0;
    run_until(&b, first_sends);
    run_until(&b, one_received);
    assert_int_not_equal(b.last.v, first.v);
    assert_ok(channel_send(b.server, b.last, &m));
    run_until(&b, one_echoed);
    teardown(&b);
}

static bool server_is_closed(struct bench *b)
{
    return b->server == NULL;
}

static void a_callback_may_close_its_channel_and_forget_its_peer(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 1);
    b.close_at_once = b.forget = true;
    run_until(&b, first_sends);
    run_until(&b, server_is_closed);
    assert_int_equal(b.received, 1);
    teardown(&b);
}

static bool server_sees_it_gone(struct bench *b)
{
    struct msg m = answer(3);
    return channel_send(b->server, b->last, &m) == ERR_PEER;
}

static void sending_to_one_that_left_is_an_error(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 1);
    run_until(&b, first_sends);
    run_until(&b, one_received);
    channel_close(b.client[0]);
    b.client[0] = NULL;
    run_until(&b, server_sees_it_gone);
    teardown(&b);
}

/* A raw ZeroMQ peer says nothing, so nothing is taken from its queue. */
static bool full(struct bench *b)
{
    struct msg m = answer(4);
    m.answer.text = b->text;
    m.answer.text_bytes = b->text_bytes;
    enum err e;
    while ((e = channel_send(b->server, b->last, &m)) == OK)
        b->to_send++;
    return e == ERR_FULL;
}

struct raw { /* a ZeroMQ socket that keeps no limits */
    void *context, *socket;
};

static struct raw raw_dial(struct bench *b, int type)
{
    struct raw r = {zmq_ctx_new(), NULL};
    int zero = 0, one = 1;
    r.socket = zmq_socket(r.context, type);
    zmq_setsockopt(r.socket, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(r.socket, ZMQ_RCVHWM, &one, sizeof one);
    assert_int_equal(zmq_connect(r.socket, channel_address(b->server)), 0);
    return r;
}

static void raw_close(struct raw *r)
{
    zmq_close(r->socket);
    zmq_ctx_term(r->context);
}

static void raw_send_message(struct raw *r, const struct msg *m)
{
    struct buf out = {0};
    assert_ok(msg_encode(m, &out));
    assert_int_equal(zmq_send(r->socket, out.data, out.size, 0), out.size);
    buf_fini(&out);
}

static void what_waits_for_a_peer_is_bounded_in_bytes(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 0);
    struct msg m = answer(1);
    struct raw r = raw_dial(&b, ZMQ_DEALER);
    raw_send_message(&r, &m);
    run_until(&b, one_received);
    b.text_bytes = 8 << 20;
    b.text = calloc(1, b.text_bytes);
    run_until(&b, full);
    assert_true(b.to_send >= WIRE_QUEUE_BYTES_MAX / b.text_bytes - 1);
    struct channel_stats s;
    channel_stats(b.server, &s);
    assert_int_equal(s.refused_full, 1);
    raw_close(&r);
    run_until(&b, server_sees_it_gone);
    free(b.text);
    teardown(&b);
}

static bool three_malformed(struct bench *b)
{
    struct channel_stats s;
    channel_stats(b->server, &s);
    return s.malformed == 3;
}

static void raw_zeromq_garbage_is_counted_and_others_are_served(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 1);
    b.echo = true;
    struct raw r = raw_dial(&b, ZMQ_DEALER);
    assert_true(zmq_send(r.socket, "garbage", 7, 0) == 7);
    assert_true(zmq_send(r.socket, "", 0, 0) == 0);
    for (int i = 0; i < 40; i++) /* one message of many parts */
        assert_true(zmq_send(r.socket, "part", 4, i < 39 ? ZMQ_SNDMORE : 0) == 4);
    run_until(&b, three_malformed);
    assert_int_equal(b.received, 0);
    run_until(&b, first_sends);
    run_until(&b, one_echoed);
    raw_close(&r);
    teardown(&b);
}

static void *watched; /* of a raw socket: says when it is disconnected */
static bool is_disconnected(struct bench *b)
{
    zmq_msg_t event;
    (void)b;
    zmq_msg_init(&event);
    bool told = zmq_msg_recv(&event, watched, ZMQ_DONTWAIT) >= 0;
    zmq_msg_close(&event);
    return told;
}

/* Nor is it received first: the connection ends where its length is said. */
static void an_oversized_message_does_not_come_through(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 1);
    b.echo = true;
    struct raw r = raw_dial(&b, ZMQ_DEALER);
    assert_int_equal(zmq_socket_monitor(r.socket, "inproc://watch", ZMQ_EVENT_DISCONNECTED), 0);
    watched = zmq_socket(r.context, ZMQ_PAIR);
    assert_int_equal(zmq_connect(watched, "inproc://watch"), 0);
    char *large = calloc(1, MSG_BYTES_MAX + 1);
    assert_true(zmq_send(r.socket, large, MSG_BYTES_MAX + 1, 0) == MSG_BYTES_MAX + 1);
    free(large);
    run_until(&b, is_disconnected);
    zmq_socket_monitor(r.socket, NULL, 0);
    zmq_close(watched);
    run_until(&b, first_sends);
    run_until(&b, one_echoed);
    assert_int_equal(b.received, 1);
    raw_close(&r);
    teardown(&b);
}

static int raw_tcp(const char *address)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    a.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static int silent = -1;
static bool is_hung_up_on(struct bench *b)
{
    char byte;
    ssize_t n;
    (void)b;
    while ((n = recv(silent, &byte, 1, MSG_DONTWAIT)) > 0)
        ; /* its greeting */
    return n == 0;
}

/* For the handshake's time, two seconds. */
static void who_never_greets_is_hung_up_on(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 1);
    b.echo = true;
    silent = raw_tcp(channel_address(b.server));
    run_until(&b, is_hung_up_on);
    close(silent);
    run_until(&b, first_sends);
    run_until(&b, one_echoed);
    teardown(&b);
}

static void raw_tcp_garbage_does_no_harm(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 1);
    b.echo = true;
    int http = raw_tcp(channel_address(b.server)), zmtp = raw_tcp(channel_address(b.server));
    static const char get[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    char greeting[200];
    memset(greeting, 0xff, sizeof greeting);
    greeting[9] = 0x7f;
    greeting[10] = 3; /* looks like ZMTP 3, then nonsense */
    assert_true(send(http, get, sizeof get - 1, MSG_NOSIGNAL) > 0);
    assert_true(send(zmtp, greeting, sizeof greeting, MSG_NOSIGNAL) > 0);
    run_until(&b, first_sends);
    run_until(&b, one_echoed);
    assert_int_equal(b.received, 1);
    close(http);
    close(zmtp);
    teardown(&b);
}

static void bad_addresses_and_occupied_ports_are_named(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 0);
    struct channel *c = NULL;
    assert_int_equal(channel_listen(&c, b.loop, channel_address(b.server), &server_events, &b),
                     ERR_IO);
    assert_non_null(strstr(err_text(), channel_address(b.server)));
    assert_non_null(strstr(err_text(), "occupied"));
    static const char *const bad[] = {
        "",         "nonsense",         "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:99999",
        "ipc:///x", "udp://127.0.0.1:1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(channel_listen(&c, b.loop, bad[i], &server_events, &b), ERR_INVALID);
        assert_non_null(strstr(err_text(), "write tcp://HOST:PORT"));
        assert_int_equal(channel_dial(&c, b.loop, bad[i], (struct peer){1}, &client_events, &b),
                         ERR_INVALID);
    }
    assert_null(c);
    teardown(&b);
}

static void every_allocation_may_fail_while_opening(void **state)
{
    (void)state;
    struct bench b;
    setup(&b, 0);
    for (uint64_t n = 1;; n++) {
        struct channel *c = NULL, *d = NULL;
        mem_fail_at(n);
        enum err e = channel_listen(&c, b.loop, "tcp://127.0.0.1:0", &server_events, &b);
        if (e == OK)
            e = channel_dial(&d, b.loop, channel_address(c), (struct peer){1}, &client_events, &b);
        mem_fail_at(0);
        channel_close(d);
        channel_close(c);
        if (e == OK) break;
        assert_int_equal(e, ERR_MEMORY);
        assert_true(n < 50);
    }
    teardown(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_goes_there_and_back),
        cmocka_unit_test(before_it_is_connected_a_channel_has_no_peer),
        cmocka_unit_test(none_of_many_is_lost_or_left_lying),
        cmocka_unit_test(peers_have_numbers_of_their_own_and_a_forgotten_one_comes_back_as_another),
        cmocka_unit_test(a_callback_may_close_its_channel_and_forget_its_peer),
        cmocka_unit_test(sending_to_one_that_left_is_an_error),
        cmocka_unit_test(what_waits_for_a_peer_is_bounded_in_bytes),
        cmocka_unit_test(raw_zeromq_garbage_is_counted_and_others_are_served),
        cmocka_unit_test(an_oversized_message_does_not_come_through),
        cmocka_unit_test(who_never_greets_is_hung_up_on),
        cmocka_unit_test(raw_tcp_garbage_does_no_harm),
        cmocka_unit_test(bad_addresses_and_occupied_ports_are_named),
        cmocka_unit_test(every_allocation_may_fail_while_opening),
    };
    return cmocka_run_group_tests_name("channel", tests, NULL, NULL);
}
