#include "tests/e2e/garbage.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "common/buf.h"
#include "common/mem.h"
#include "common/rng.h"
#include "proto/msg.h"
#include "tests/unit/testing.h"

enum { BYTES = 64 << 10, WIRE_MESSAGES = 64, LINGER_MS = 200, ANSWER_MS = 20000 };

const char *garbage_name(enum garbage kind)
{
    static const char *const names[GARBAGE_KINDS] = {
        "nothing",    "bytes",      "ones",      "http",       "http long",   "greeting",
        "huge frame", "wire bytes", "wire huge", "wire kinds", "wire halves", "wire flips"};
    return names[kind];
}

static uint32_t draw(uint64_t seed, uint32_t stream, uint64_t i)
{
    return rng_draw(seed, stream, i).word[0];
}

static void fill(unsigned char *bytes, size_t size, uint64_t seed, uint32_t stream)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)draw(seed, stream, i);
}

/* ---- plain bytes ---- */

/* ZMTP 3.0, mechanism NULL, as a client. */
static size_t greeting(unsigned char out[64])
{
    memset(out, 0, 64);
    out[0] = 0xff;
    out[8] = 1;
    out[9] = 0x7f;
    out[10] = 3;
    memcpy(out + 12, "NULL", 4);
    return 64;
}

static void throw_greeting(int fd, bool huge, uint64_t seed)
{
    static const unsigned char ready[] = "\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06"
                                         "DEALER";
    unsigned char bytes[4096], frame[9] = {0x02, 0x40}; /* a long frame of 2^62 bytes */
    port_send(fd, bytes, greeting(bytes));
    fill(bytes, sizeof bytes, seed, 1);
    if (huge) {
        port_send(fd, ready, sizeof ready - 1);
        port_send(fd, frame, sizeof frame);
    }
    port_send(fd, bytes, sizeof bytes);
}

static void throw_plain(int fd, enum garbage kind, uint64_t seed)
{
    static unsigned char bytes[BYTES];
    static const char http[] = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n";
    switch (kind) {
    case GARBAGE_BYTES:
        fill(bytes, sizeof bytes, seed, 0);
        port_send(fd, bytes, sizeof bytes);
        break;
    case GARBAGE_ONES:
        memset(bytes, 0xff, sizeof bytes);
        port_send(fd, bytes, sizeof bytes);
        break;
    case GARBAGE_HTTP: port_send(fd, http, sizeof http - 1); break;
    case GARBAGE_HTTP_LONG: /* headers without an end */
        memset(bytes, 'a', sizeof bytes);
        memcpy(bytes, http, sizeof http - 3);
        port_send(fd, bytes, sizeof bytes);
        break;
    case GARBAGE_GREETING: throw_greeting(fd, false, seed); break;
    case GARBAGE_HUGE_FRAME: throw_greeting(fd, true, seed); break;
    default: break;
    }
}

/* ---- over ZeroMQ ---- */

struct guest {
    void *context, *socket;
};

static void guest_open(struct guest *g, const char *address)
{
    int linger = LINGER_MS, wait = ANSWER_MS;
    g->context = zmq_ctx_new();
    g->socket = zmq_socket(g->context, ZMQ_DEALER);
    assert_non_null(g->socket);
    zmq_setsockopt(g->socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(g->socket, ZMQ_RCVTIMEO, &wait, sizeof wait);
    zmq_setsockopt(g->socket, ZMQ_SNDTIMEO, &wait, sizeof wait);
    assert_int_equal(zmq_connect(g->socket, address), 0);
}

static void guest_close(struct guest *g)
{
    zmq_close(g->socket);
    zmq_ctx_term(g->context);
}

/* A message of this kind with nothing in it that it could do without. False: there is none. */
static bool empty_message(enum msg_kind kind, const struct envelope *envelope, struct buf *out)
{
    static const uint32_t tokens[] = {1, 2, 3};
    struct msg m = {.kind = kind, .envelope = *envelope};
    buf_clear(out);
    if (kind == MSG_SUBMIT) {
        m.submit.tokens = tokens;
        m.submit.tokens_count = 3;
        m.submit.choices = 1;
        m.submit.tokens_max = 5;
    }
    if (kind == MSG_HELLO) {
        m.hello = (struct msg_hello){.role = ROLE_CLIENT,
                                     .name = "guest",
                                     .host = "somewhere",
                                     .device = "",
                                     .model = "",
                                     .pid = 1};
    }
    return msg_encode(&m, out) == OK && out->size > 0;
}

static void throw_kinds(struct guest *g, const struct envelope *envelope, enum garbage how,
                        uint64_t seed)
{
    struct buf b = {.limit_bytes = 1 << 20};
    for (uint32_t i = 0; i < WIRE_MESSAGES; i++) {
        enum msg_kind kind = (enum msg_kind)(1 + i % (MSG_KINDS - 1));
        if (kind == MSG_DRAIN || !empty_message(kind, envelope, &b)) continue;
        size_t size = b.size;
        if (how == GARBAGE_WIRE_HALVES) size = rng_below(draw(seed, 2, i), (uint32_t)size);
        for (int flips = 0; how == GARBAGE_WIRE_FLIPS && flips < 3; flips++) {
            uint32_t bit = rng_below(draw(seed, 3 + (uint32_t)flips, i), (uint32_t)size * 8);
            b.data[bit / 8] ^= (char)(1 << bit % 8);
        }
        zmq_send(g->socket, b.data, size, 0);
    }
    buf_fini(&b);
}

static void throw_bytes(struct guest *g, uint64_t seed)
{
    unsigned char bytes[2000];
    fill(bytes, sizeof bytes, seed, 6);
    for (uint32_t i = 0; i < WIRE_MESSAGES; i++) {
        uint32_t size = rng_below(draw(seed, 7, i), sizeof bytes);
        for (uint32_t part = 0; i % 4 == 3 && part < 100; part++)
            zmq_send(g->socket, bytes, size % 50, ZMQ_SNDMORE);
        zmq_send(g->socket, bytes + sizeof bytes - size, size, 0);
    }
}

static void throw_huge(struct guest *g)
{
    size_t size = (size_t)MSG_BYTES_MAX + 1000000;
    char *bytes = mem_new(size);
    assert_non_null(bytes);
    zmq_send(g->socket, bytes, size, 0);
    mem_free(bytes);
}

static void throw_wire(const struct port *port, enum garbage kind, uint64_t seed)
{
    struct guest g;
    struct envelope none = {.epoch = 0};
    char address[64];
    snprintf(address, sizeof address, "tcp://127.0.0.1:%u", port->tcp);
    guest_open(&g, address);
    switch (kind) {
    case GARBAGE_WIRE_BYTES: throw_bytes(&g, seed); break;
    case GARBAGE_WIRE_HUGE: throw_huge(&g); break;
    default: throw_kinds(&g, &none, kind, seed); break;
    }
    guest_close(&g);
}

void garbage_throw(const struct port *port, enum garbage kind, uint64_t seed)
{
    if (kind >= GARBAGE_WIRE_BYTES) {
        if (port->tcp) throw_wire(port, kind, seed);
        return;
    }
    int fd = port_connect(port);
    assert_true(fd >= 0);
    throw_plain(fd, kind, seed);
    close(fd);
}

void garbage_session(const char *address)
{
    struct guest g;
    struct buf b = {.limit_bytes = 1 << 20};
    struct arena arena = {.limit_bytes = 1 << 20};
    struct envelope mine = {.from = 77};
    struct msg welcome;
    static char bytes[1 << 16];
    guest_open(&g, address);
    assert_true(empty_message(MSG_HELLO, &mine, &b));
    zmq_send(g.socket, b.data, b.size, 0);
    int n = zmq_recv(g.socket, bytes, sizeof bytes, 0);
    assert_true(n > 0 && n < (int)sizeof bytes);
    assert_int_equal(msg_decode(bytes, (size_t)n, &arena, &welcome), OK);
    assert_int_equal(welcome.kind, MSG_WELCOME);
    mine.epoch = welcome.envelope.epoch;
    mine.to = welcome.envelope.from;
    throw_kinds(&g, &mine, GARBAGE_WIRE_KINDS, 0);
    guest_close(&g);
    arena_fini(&arena);
    buf_fini(&b);
}
