/* The contract of xfer/link.h, held against every link.
 *
 *     link_test              shm, tcp, and links in memory: plain, and of devices
 *     link_test NAME         the link of the plugin libtandem_NAME.so that is found, "nccl" or "ipc" */
#include "tests/unit/testing.h"

#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "tests/fake/link_memory.h"
#include "tests/fake/transport_memory.h"
#include "xfer/plugin.h"

enum { FRAME_MAX = 100000, WAIT_MS = 10000, SLOTS = 3, SLOT_BYTES = 40000 };

static const struct kv_link_options options = {
    .frame_bytes_max = FRAME_MAX, .slots_count = SLOTS, .slot_bytes = SLOT_BYTES};

static const struct suite {
    const struct kv_link_ops *ops;
    const char *where;
    const struct kv_link_ops *control; /* of a link of devices: what it goes over */
} own_suites[] = {
    {&kv_link_shm, "", NULL},
    {&kv_link_tcp, "127.0.0.1:0", NULL},
    {&kv_link_memory, "here", NULL},
    {&kv_link_memory_posted, "here", &kv_link_memory},
    {&kv_link_memory_placed, "here", &kv_link_memory},
    {&kv_link_posted_tcp, "127.0.0.1:0", &kv_link_tcp},
    {&kv_link_placed_shm, "", &kv_link_shm},
};
static struct suite plugin_suite;
static const struct suite *suites = own_suites;
static size_t suites_count = sizeof own_suites / sizeof *own_suites;
#define EACH_SUITE(s) for (const struct suite *s = suites; s < suites + suites_count; s++)
#define EACH_DEVICE_SUITE(s)                                                                       \
    EACH_SUITE(s)                                                                                  \
    if (s->ops->slot)

/* near has dialled, far was accepted. */
struct ends {
    const struct kv_link_ops *ops;
    struct kv_listener *listener;
    struct kv_link *near, *far;
};

static bool readable(int fd, int wait_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, wait_ms) == 1;
}

/* Polls the link until it says something else than "connecting". */
static enum err poll_until_settled(const struct kv_link_ops *ops, struct kv_link *link)
{
    enum err e;
    while ((e = ops->poll(link)) == ERR_AGAIN)
        if (!readable(ops->fd(link), WAIT_MS)) fail_msg("%s: no end of connecting", ops->name);
    return e;
}

static void dial(struct ends *w, const struct suite *s)
{
    *w = (struct ends){.ops = s->ops};
    if (w->ops->listen(&w->listener, s->where, &options) != OK) fail_msg("%s", err_text());
    if (w->ops->dial(&w->near, w->ops->address(w->listener), &options) != OK)
        fail_msg("%s", err_text());
}

static void accept_far(struct ends *w)
{
    enum err e;
    assert_true(readable(w->ops->listener_fd(w->listener), WAIT_MS));
    while ((e = w->ops->accept(w->listener, &w->far)) == ERR_AGAIN)
        assert_true(readable(w->ops->listener_fd(w->listener), WAIT_MS));
    assert_ok(e);
}

static bool either_readable(const struct ends *w, int wait_ms)
{
    struct pollfd p[] = {{.fd = w->ops->fd(w->near), .events = POLLIN},
                         {.fd = w->ops->fd(w->far), .events = POLLIN}};
    return poll(p, 2, wait_ms) > 0;
}

static void connect_ends(struct ends *w, const struct suite *s)
{
    enum err near = ERR_AGAIN, far = ERR_AGAIN;
    dial(w, s);
    while (w->ops->poll(w->near) == ERR_AGAIN && !readable(w->ops->listener_fd(w->listener), 1))
        continue;
    accept_far(w);
    for (;;) {
        if (near == ERR_AGAIN) near = w->ops->poll(w->near);
        if (far == ERR_AGAIN) far = w->ops->poll(w->far);
        if (near != ERR_AGAIN && far != ERR_AGAIN) break;
        if (!either_readable(w, WAIT_MS)) fail_msg("%s: no end of connecting", w->ops->name);
    }
    if (near != OK || far != OK) fail_msg("%s", err_text());
}

static void close_ends(struct ends *w)
{
    w->ops->close(w->near);
    w->ops->close(w->far);
    w->ops->unlisten(w->listener);
}

/* Frame number i of a stream: its size and bytes follow from i alone. */
static size_t frame_size(uint32_t i)
{
    static const size_t edge[] = {0, 1, 7, 8, 9, 4096, FRAME_MAX - 1, FRAME_MAX};
    if (i < sizeof edge / sizeof *edge) return edge[i];
    struct rng_block r = rng_draw(1, 2, i);
    return rng_below(r.word[0], r.word[1] % 8 ? 600 : FRAME_MAX);
}

static void frame_bytes(uint32_t i, unsigned char *bytes, size_t size)
{
    for (size_t at = 0; at < size; at++)
        bytes[at] = (unsigned char)(i * 31 + at * 7 + (at >> 8));
}

static enum err send_frame(const struct kv_link_ops *ops, struct kv_link *link, uint32_t i)
{
    static unsigned char bytes[FRAME_MAX];
    size_t size = frame_size(i), cut = size / 3;
    frame_bytes(i, bytes, size);
    struct kv_piece pieces[] = {{bytes, cut}, {bytes + cut, 0}, {bytes + cut, size - cut}};
    enum err e = ops->send(link, pieces, 3);
    memset(bytes, 0xee, size); /* they are ours again */
    return e;
}

/* The next frame must be number i. */
static enum err receive_frame(const struct kv_link_ops *ops, struct kv_link *link, uint32_t i)
{
    static unsigned char wanted[FRAME_MAX];
    const void *bytes;
    size_t size;
    enum err e = ops->receive(link, &bytes, &size);
    if (e != OK) return e;
    assert_int_equal(size, frame_size(i));
    frame_bytes(i, wanted, size);
    if (size > 0) assert_memory_equal(bytes, wanted, size);
    ops->release(link);
    return OK;
}

static void receive_all(const struct kv_link_ops *ops, struct kv_link *from, struct kv_link *to,
                        uint32_t first, uint32_t end)
{
    enum err e;
    while (first < end) {
        if ((e = receive_frame(ops, to, first)) == OK) {
            first++;
            continue;
        }
        assert_int_equal(e, ERR_AGAIN);
        assert_ok(ops->poll(from)); /* it may have something left to write */
        if (!readable(ops->fd(to), WAIT_MS)) fail_msg("%s: frame %u is lost", ops->name, first);
        assert_ok(ops->poll(to));
    }
}

static void frames_arrive_whole_and_in_order_both_ways(void **state)
{
    (void)state;
    EACH_SUITE(s)
    {
        struct ends w;
        connect_ends(&w, s);
        for (uint32_t i = 0; i < 300; i++) {
            assert_ok(send_frame(w.ops, w.near, i));
            receive_all(w.ops, w.near, w.far, i, i + 1);
            assert_ok(send_frame(w.ops, w.far, i + 1));
            receive_all(w.ops, w.far, w.near, i + 1, i + 2);
        }
        assert_true(w.ops->facts(w.near).window_bytes >= FRAME_MAX);
        close_ends(&w);
    }
}

static void a_full_link_takes_nothing_until_there_is_room(void **state)
{
    (void)state;
    EACH_SUITE(s)
    {
        struct ends w;
        uint32_t sent = 0, received = 0;
        enum err e;
        connect_ends(&w, s);
        for (int round = 0; round < 3; round++) {
            while ((e = send_frame(w.ops, w.near, sent)) == OK)
                sent++;
            assert_int_equal(e, ERR_AGAIN);
            assert_int_equal(send_frame(w.ops, w.near, sent), ERR_AGAIN);
            for (; received < sent; received++) /* all but what has still to be written */
                if (receive_frame(w.ops, w.far, received) != OK) break;
            assert_true(readable(w.ops->fd(w.near), WAIT_MS)); /* room again */
            assert_ok(w.ops->poll(w.near));
        }
        receive_all(w.ops, w.near, w.far, received, sent);
        assert_ok(send_frame(w.ops, w.near, sent));
        receive_all(w.ops, w.near, w.far, sent, sent + 1);
        close_ends(&w);
    }
}

static void sends_and_receives_in_any_rhythm_keep_the_order(void **state)
{
    (void)state;
    EACH_SUITE(s)
    {
        struct ends w;
        uint32_t sent = 0, received = 0;
        connect_ends(&w, s);
        for (uint32_t step = 0; step < 3000; step++) {
            struct rng_block r = rng_draw(9, 1, step);
            for (uint32_t n = rng_below(r.word[0], 6); n > 0; n--) {
                if (send_frame(w.ops, w.near, sent) != OK) break;
                sent++;
            }
            for (uint32_t n = rng_below(r.word[1], 6); n > 0; n--) {
                if (receive_frame(w.ops, w.far, received) != OK) break;
                received++;
            }
            assert_ok(w.ops->poll(w.near));
            assert_ok(w.ops->poll(w.far));
        }
        receive_all(w.ops, w.near, w.far, received, sent);
        assert_int_equal(w.ops->receive(w.far, &(const void *){NULL}, &(size_t){0}), ERR_AGAIN);
        close_ends(&w);
    }
}

static void a_link_with_nothing_to_do_is_silent(void **state)
{
    (void)state;
    EACH_SUITE(s)
    {
        struct ends w;
        connect_ends(&w, s);
        assert_ok(w.ops->poll(w.near));
        assert_ok(w.ops->poll(w.far));
        assert_int_equal(receive_frame(w.ops, w.far, 0), ERR_AGAIN);
        assert_int_equal(receive_frame(w.ops, w.near, 0), ERR_AGAIN);
        assert_false(readable(w.ops->fd(w.near), 0));
        assert_false(readable(w.ops->fd(w.far), 0));
        assert_ok(send_frame(w.ops, w.near, 5));
        assert_true(readable(w.ops->fd(w.far), WAIT_MS));
        assert_ok(w.ops->poll(w.far));
        receive_all(w.ops, w.near, w.far, 5, 6);
        assert_int_equal(receive_frame(w.ops, w.far, 0), ERR_AGAIN);
        assert_false(readable(w.ops->fd(w.far), 0));
        close_ends(&w);
    }
}

static void assert_dead(const struct kv_link_ops *ops, struct kv_link *link)
{
    struct kv_piece piece = {"x", 1};
    const void *bytes;
    size_t size;
    assert_true(readable(ops->fd(link), WAIT_MS));
    for (int i = 0; i < 500; i++) {
        enum err e = ops->poll(link);
        if (e == OK) e = ops->receive(link, &bytes, &size);
        if (e != OK && e != ERR_AGAIN) break;
        if (e == OK) ops->release(link);
        readable(ops->fd(link), 20);
    }
    assert_int_equal(ops->receive(link, &bytes, &size), ERR_PEER);
    assert_int_equal(ops->send(link, &piece, 1), ERR_PEER);
    assert_int_equal(ops->poll(link), ERR_PEER);
    assert_true(strlen(err_text()) > 0);
}

static void what_was_sent_before_the_close_arrives_and_then_its_end(void **state)
{
    (void)state;
    EACH_SUITE(s)
    {
        struct ends w;
        enum err e;
        connect_ends(&w, s);
        for (uint32_t i = 10; i < 14; i++)
            assert_ok(send_frame(w.ops, w.near, i));
        w.ops->close(w.near);
        w.near = NULL;
        for (uint32_t i = 10; i < 14;) {
            if ((e = receive_frame(w.ops, w.far, i)) == OK) {
                i++;
            } else {
                assert_int_equal(e, ERR_AGAIN);
                assert_true(readable(w.ops->fd(w.far), WAIT_MS));
                assert_ok(w.ops->poll(w.far));
            }
        }
        assert_dead(w.ops, w.far);
        close_ends(&w);
    }
}

static void a_peer_that_closes_is_seen_in_every_state(void **state)
{
    (void)state;
    EACH_SUITE(s)
    {
        struct ends w;
        dial(&w, s); /* gone before it was accepted */
        w.ops->close(w.near);
        w.near = NULL;
        enum err e = w.ops->accept(w.listener, &w.far);
        assert_true(e == OK || e == ERR_AGAIN);
        if (e == OK) assert_dead(w.ops, w.far);
        close_ends(&w);

        dial(&w, s); /* the listener turns away after accepting */
        accept_far(&w);
        w.ops->close(w.far);
        w.far = NULL;
        assert_dead(w.ops, w.near);
        close_ends(&w);

        connect_ends(&w, s); /* in the middle of a full link */
        for (uint32_t i = 0; send_frame(w.ops, w.near, i) == OK;)
            i++;
        w.ops->close(w.far);
        w.far = NULL;
        assert_dead(w.ops, w.near);
        close_ends(&w);

        connect_ends(&w, s); /* with a frame in its hands */
        const void *bytes;
        size_t size;
        assert_ok(send_frame(w.ops, w.near, 5));
        assert_true(readable(w.ops->fd(w.far), WAIT_MS));
        assert_ok(w.ops->poll(w.far));
        while ((e = w.ops->receive(w.far, &bytes, &size)) == ERR_AGAIN)
            assert_true(readable(w.ops->fd(w.far), WAIT_MS));
        w.ops->close(w.near);
        w.near = NULL;
        unsigned char wanted[4096];
        frame_bytes(5, wanted, frame_size(5));
        assert_memory_equal(bytes, wanted, frame_size(5));
        w.ops->release(w.far);
        assert_dead(w.ops, w.far);
        close_ends(&w);
    }
}

static void links_outlive_their_listener(void **state)
{
    (void)state;
    EACH_SUITE(s)
    {
        struct ends w;
        connect_ends(&w, s);
        char address[KV_LINK_ADDRESS_MAX];
        snprintf(address, sizeof address, "%s", w.ops->address(w.listener));
        w.ops->unlisten(w.listener);
        w.listener = NULL;
        assert_ok(send_frame(w.ops, w.far, 5));
        receive_all(w.ops, w.far, w.near, 5, 6);

        struct kv_link *late = NULL; /* and nobody is there for others */
        enum err e = w.ops->dial(&late, address, &options);
        if (e == OK) e = poll_until_settled(w.ops, late);
        assert_int_equal(e, ERR_PEER);
        w.ops->close(late);
        close_ends(&w);
    }
}

static void addresses_of_other_links_are_not_ours(void **state)
{
    (void)state;
    EACH_SUITE(s)
    {
        const char *row[] = {"", "x", "nccl:1", "shm", "shm:", "shm:abc-def", "tcpx:1.2.3.4:5"};
        for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
            struct kv_link *link;
            if (strcmp(s->ops->name, "nccl") == 0 && strcmp(row[i], "nccl:1") == 0) continue;
            assert_int_equal(s->ops->dial(&link, row[i], &options), ERR_UNSUPPORTED);
            assert_null(link);
        }
    }
}

static void failed_allocations_are_errors_and_leak_nothing(void **state)
{
    (void)state;
    EACH_SUITE(s)
    {
        struct ends w = {.ops = s->ops};
        for (uint64_t n = 1;; n++) {
            mem_fail_at(n);
            enum err e = w.ops->listen(&w.listener, s->where, &options);
            mem_fail_at(0);
            if (e == OK) break;
            assert_int_equal(e, ERR_MEMORY);
            assert_null(w.listener);
        }
        for (uint64_t n = 1;; n++) {
            mem_fail_at(n);
            enum err e = w.ops->dial(&w.near, w.ops->address(w.listener), &options);
            mem_fail_at(0);
            if (e == OK) break;
            assert_int_equal(e, ERR_MEMORY);
            assert_null(w.near);
        }
        accept_far(&w);
        w.ops->close(w.near);
        w.ops->close(w.far);
        w.near = w.far = NULL;
        close_ends(&w);
    }
}

/* ---- frames whose payload lies in a slot ---- */

/* Frame number i of a mixed stream: two of three have a payload. Its head is i itself. */
static bool has_payload(uint32_t i)
{
    return i % 3 != 1;
}

static size_t payload_size(uint32_t i)
{
    static const size_t edge[] = {1, 1, 7, SLOT_BYTES, SLOT_BYTES - 1};
    struct rng_block r = rng_draw(3, 3, i);
    return i < sizeof edge / sizeof *edge ? edge[i] : 1 + rng_below(r.word[0], SLOT_BYTES);
}

static enum err send_mixed(const struct kv_link_ops *ops, struct kv_link *link, uint32_t i)
{
    struct kv_piece piece = {&i, sizeof i};
    void *slot;
    if (!has_payload(i)) return ops->send(link, &piece, 1);
    enum err e = ops->slot(link, &slot);
    if (e != OK) return e;
    frame_bytes(i, slot, payload_size(i));
    return ops->send_slot(link, &i, sizeof i, payload_size(i));
}

/* The next frame, which must be number i, stays in our hands. */
static enum err receive_mixed(const struct kv_link_ops *ops, struct kv_link *link, uint32_t i)
{
    static unsigned char wanted[SLOT_BYTES];
    const void *head;
    size_t size, payload_bytes;
    uint32_t n;
    enum err e = ops->receive(link, &head, &size);
    if (e != OK) return e;
    assert_int_equal(size, sizeof n);
    memcpy(&n, head, sizeof n);
    assert_int_equal(n, i);
    const void *payload = ops->payload(link, &payload_bytes);
    assert_int_equal(payload != NULL, has_payload(i));
    if (!payload) return OK;
    assert_int_equal(payload_bytes, payload_size(i));
    frame_bytes(i, wanted, payload_bytes);
    assert_memory_equal(payload, wanted, payload_bytes);
    return OK;
}

static void poll_both(const struct ends *w)
{
    if (!either_readable(w, WAIT_MS)) fail_msg("%s: nothing goes on", w->ops->name);
    assert_ok(w->ops->poll(w->near));
    assert_ok(w->ops->poll(w->far));
}

static void payloads_arrive_whole_and_in_order_with_frames_between(void **state)
{
    (void)state;
    EACH_DEVICE_SUITE(s)
    {
        struct ends w;
        uint32_t sent = 0, received = 0, answered = 0, step = 0;
        connect_ends(&w, s);
        assert_int_equal(w.ops->facts(w.near).slot_bytes, SLOT_BYTES);
        assert_int_equal(w.ops->facts(w.near).window_bytes, SLOTS * SLOT_BYTES);
        while (received < 300) {
            struct rng_block r = rng_draw(4, 4, step++);
            bool send_waits = sent == 300, receive_waits = false; /* both: an fd wakes us */
            for (uint32_t n = rng_below(r.word[0], 6); n > 0 && sent < 300; n--, sent++)
                if ((send_waits = send_mixed(w.ops, w.near, sent) != OK)) break;
            for (uint32_t n = rng_below(r.word[1], 6); n > 0; n--, received++) {
                if ((receive_waits = receive_mixed(w.ops, w.far, received) != OK)) break;
                w.ops->release(w.far);
            }
            if (received % 10 == 0 && send_frame(w.ops, w.far, answered) == OK) {
                receive_all(w.ops, w.far, w.near, answered, answered + 1);
                answered++;
                send_waits = false; /* near was polled */
            }
            if (send_waits && receive_waits && r.word[0] >> 31) poll_both(&w);
        }
        assert_int_equal(receive_mixed(w.ops, w.far, received), ERR_AGAIN);
        close_ends(&w);
    }
}

static void slots_come_back_when_their_frames_are_released(void **state)
{
    (void)state;
    EACH_DEVICE_SUITE(s)
    {
        struct ends w;
        void *slot, *same;
        connect_ends(&w, s);
        for (uint32_t i = 0; i < 6; i++) { /* 0, 2, 3, 5: one more than there are slots */
            enum err e;
            if (!has_payload(i)) continue;
            while ((e = send_mixed(w.ops, w.near, i)) == ERR_AGAIN && i < 5)
                poll_both(&w);
            assert_int_equal(e, i == 5 ? ERR_AGAIN : OK);
        }
        enum err e;
        while ((e = receive_mixed(w.ops, w.far, 0)) == ERR_AGAIN)
            poll_both(&w);
        assert_ok(e);
        for (int i = 0; i < 20; i++) { /* its payload stays while all else goes on */
            either_readable(&w, 1);
            assert_ok(w.ops->poll(w.near));
            assert_ok(w.ops->poll(w.far));
            assert_int_equal(w.ops->slot(w.near, &slot), ERR_AGAIN);
            assert_ok(receive_mixed(w.ops, w.far, 0));
        }
        w.ops->release(w.far);
        while ((e = w.ops->slot(w.near, &slot)) == ERR_AGAIN) {
            if (!readable(w.ops->fd(w.near), WAIT_MS)) fail_msg("%s: no wake-up", w.ops->name);
            assert_ok(w.ops->poll(w.near));
        }
        assert_ok(e);
        assert_ok(w.ops->slot(w.near, &same));
        assert_ptr_equal(slot, same);
        assert_int_equal(w.ops->slot(w.far, &slot), ERR_AGAIN); /* they go one way */
        close_ends(&w);
    }
}

static void either_side_may_close_at_any_moment(void **state)
{
    (void)state;
    EACH_DEVICE_SUITE(s)
    for (uint32_t at = 0; at < 24; at++) {
        struct ends w;
        uint32_t sent = 0, received = 0;
        void *slot;
        dial(&w, s);
        if (at < 4) w.ops->poll(w.near);
        accept_far(&w);
        if (at >= 4) {
            close_ends(&w);
            connect_ends(&w, s);
        }
        for (uint32_t i = 4; i < at;
             i++) { /* with slots and frames in hands, and operations under way */
            if (send_mixed(w.ops, w.near, sent) == OK) sent++;
            if (i % 3 == 0 && receive_mixed(w.ops, w.far, received) == OK && i + 1 < at) {
                w.ops->release(w.far);
                received++;
            }
            if (i % 2) w.ops->poll(w.near);
            if (i % 5) w.ops->poll(w.far);
        }
        if (at % 4 == 2) (void)w.ops->slot(w.near, &slot);
        struct kv_link **gone = at % 2 ? &w.near : &w.far, *left = at % 2 ? w.far : w.near;
        w.ops->close(*gone);
        *gone = NULL;
        assert_dead(w.ops, left);
        close_ends(&w);
    }
}

static void strange_bytes_in_the_control_channel_end_the_link(void **state)
{
    (void)state;
    static const char open_message[48] = "TDL1\1\0\0\0\1\0\0\0\0\0\0\0\3\0\0\0\0\1\0\0";
    static const struct {
        const char *bytes;
        size_t size;
    } row[] = {
        {"", 0},
        {"T", 1},
        {"GET / HTTP/1.1\r\n\r\n", 18},
        {open_message, 47},
        {open_message, 48}, /* with another transport's name */
        {"TDL1\6\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0", 32}, /* PUSH */
        {"TDL1\7\0\0\0\1\0\0\0\0\0\0\0", 16},                                 /* FRAME */
        {"TDL1\4\0\0\0\1\0\0\0\0\0\0\0", 16},                                 /* WARM */
    };
    EACH_DEVICE_SUITE(s)
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct ends w = {.ops = s->ops};
        struct kv_link *stranger;
        char address[KV_LINK_ADDRESS_MAX + 16];
        struct kv_piece piece = {row[i].bytes, row[i].size};
        enum err e;
        struct kv_link_options o = {.frame_bytes_max = FRAME_MAX + CONTROL_HEADER_BYTES};
        assert_ok(w.ops->listen(&w.listener, s->where, &options));
        snprintf(address, sizeof address, "%s%s", s->control->name,
                 w.ops->address(w.listener) + strlen(s->ops->name));
        assert_ok(s->control->dial(&stranger, address, &o));
        accept_far(&w);
        while ((e = s->control->send(stranger, &piece, 1)) == ERR_AGAIN) {
            (void)w.ops->poll(w.far); /* the control link may need both to connect */
            assert_true(readable(s->control->fd(stranger), WAIT_MS));
            (void)s->control->poll(stranger);
        }
        assert_ok(e);
        while ((e = w.ops->poll(w.far)) == ERR_AGAIN)
            assert_true(readable(w.ops->fd(w.far), WAIT_MS));
        if (e != ERR_FORMAT && e != ERR_UNSUPPORTED) fail_msg("row %zu: %s", i, err_name(e));
        s->control->close(stranger);
        close_ends(&w);
    }
}

static void more_links_than_may_be_open_are_turned_away(void **state)
{
    (void)state;
    EACH_DEVICE_SUITE(s)
    {
        struct kv_link_options one = options, two = options;
        struct ends w = {.ops = s->ops};
        struct kv_link *other, *none;
        one.links_max = 1; /* near and far are on one device here: both count */
        two.links_max = 3;
        assert_ok(w.ops->listen(&w.listener, s->where, &two));
        assert_ok(w.ops->dial(&w.near, w.ops->address(w.listener), &two));
        assert_int_equal(w.ops->dial(&other, w.ops->address(w.listener), &one), ERR_FULL);
        assert_null(other);
        while (w.ops->poll(w.near) == ERR_AGAIN && !readable(w.ops->listener_fd(w.listener), 1))
            continue;
        accept_far(&w);
        assert_ok(w.ops->dial(&other, w.ops->address(w.listener), &two));
        enum err e = w.ops->poll(other);
        while ((e = w.ops->accept(w.listener, &none)) == ERR_AGAIN) {
            assert_true(readable(w.ops->listener_fd(w.listener), WAIT_MS));
            w.ops->poll(other);
        }
        assert_int_equal(e, ERR_FULL);
        assert_null(none);
        e = poll_until_settled(w.ops, other);
        assert_true(e == ERR_FULL || e == ERR_PEER); /* if it has heard the reason */
        w.ops->close(other);
        assert_int_not_equal(w.ops->poll(w.near), ERR_PEER); /* those that are open go on */
        close_ends(&w);
        connect_ends(&w, s); /* and there is room again */
        close_ends(&w);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        if (link_plugin_find(argv[1], &plugin_suite.ops) != OK) {
            fprintf(stderr, "%s\n", err_text());
            return 1;
        }
        bool ipc = strcmp(argv[1], "ipc") == 0;
        plugin_suite.where = ipc ? "" : "127.0.0.1:0";
        plugin_suite.control = ipc ? &kv_link_shm : &kv_link_tcp;
        suites = &plugin_suite;
        suites_count = 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_arrive_whole_and_in_order_both_ways),
        cmocka_unit_test(a_full_link_takes_nothing_until_there_is_room),
        cmocka_unit_test(sends_and_receives_in_any_rhythm_keep_the_order),
        cmocka_unit_test(a_link_with_nothing_to_do_is_silent),
        cmocka_unit_test(what_was_sent_before_the_close_arrives_and_then_its_end),
        cmocka_unit_test(a_peer_that_closes_is_seen_in_every_state),
        cmocka_unit_test(links_outlive_their_listener),
        cmocka_unit_test(addresses_of_other_links_are_not_ours),
        cmocka_unit_test(failed_allocations_are_errors_and_leak_nothing),
        cmocka_unit_test(payloads_arrive_whole_and_in_order_with_frames_between),
        cmocka_unit_test(slots_come_back_when_their_frames_are_released),
        cmocka_unit_test(either_side_may_close_at_any_moment),
        cmocka_unit_test(strange_bytes_in_the_control_channel_end_the_link),
        cmocka_unit_test(more_links_than_may_be_open_are_turned_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
