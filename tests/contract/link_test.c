/* The contract of xfer/link.h, held against every link. */
#include "tests/unit/testing.h"

#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "tests/fake/link_memory.h"
#include "xfer/link.h"

enum { FRAME_MAX = 100000, WAIT_MS = 10000 };

static const struct kv_link_options options = {.frame_bytes_max = FRAME_MAX};

static const struct suite {
    const struct kv_link_ops *ops;
    const char *where;
    const char *nobody; /* an address at which nobody is; NULL: made from a closed listener's */
} suites[] = {
    {&kv_link_shm, "", NULL},
    {&kv_link_tcp, "127.0.0.1:0", NULL},
    {&kv_link_memory, "here", NULL},
};
#define EACH_SUITE(s)                                                                              \
    for (const struct suite *s = suites; s < suites + sizeof suites / sizeof *suites; s++)

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

static void connect_ends(struct ends *w, const struct suite *s)
{
    dial(w, s);
    accept_far(w);
    assert_ok(poll_until_settled(w->ops, w->far));
    assert_ok(poll_until_settled(w->ops, w->near));
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
    for (int i = 0; i < 100 && ops->poll(link) == OK; i++) {
        enum err e = ops->receive(link, &bytes, &size);
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

int main(void)
{
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
