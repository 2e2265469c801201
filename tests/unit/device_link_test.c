/* Links of devices (xfer/device/link.h) over transports in memory that fail, hang and die: what the
 * contract of all links (tests/contract/link_test.c) cannot ask for. */
#include "tests/unit/testing.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "tests/fake/transport_memory.h"

enum { WAIT_MS = 10000, SLOT_BYTES = 4096, SLOTS = 2 };

/* For the tests of deadlines; the others have time enough. */
static const struct dslink_times short_join = {
    .open_ns = 10 * NS_PER_S, .join_ns = 20 * NS_PER_MS, .pause_ns = NS_PER_MS};
static const struct dslink_times short_operation = {.open_ns = 10 * NS_PER_S,
                                                    .join_ns = 10 * NS_PER_S,
                                                    .warm_ns = 10 * NS_PER_S,
                                                    .operation_ns = 300 * NS_PER_MS,
                                                    .receive_ns = 200 * NS_PER_MS};

static const struct kv_link_ops *const kinds[] = {&kv_link_memory_posted, &kv_link_memory_placed};
#define EACH_KIND(k) for (int i_ = 0; i_ < 2 && ((k) = kinds[i_]); i_++)

struct ends {
    const struct kv_link_ops *ops;
    struct kv_listener *listener;
    struct kv_link *near, *far;
    enum err near_says, far_says; /* their last poll */
};

static struct kv_link_options options_of(uint32_t device)
{
    return (struct kv_link_options){.frame_bytes_max = 10000,
                                    .device_index = device,
                                    .slot_bytes = SLOT_BYTES,
                                    .slots_count = SLOTS};
}

/* Devices near and far; the far one's listener has its own name. */
static void dial(struct ends *w, const struct kv_link_ops *ops, uint32_t near, uint32_t far)
{
    struct kv_link_options n = options_of(near), f = options_of(far);
    char where[32];
    static int names;
    snprintf(where, sizeof where, "there-%d", names++);
    *w = (struct ends){.ops = ops, .near_says = ERR_AGAIN, .far_says = ERR_AGAIN};
    assert_ok(ops->listen(&w->listener, where, &f));
    assert_ok(ops->dial(&w->near, ops->address(w->listener), &n));
    assert_ok(ops->accept(w->listener, &w->far));
}

static void poll_ends(struct ends *w)
{
    if (w->near && (w->near_says == OK || w->near_says == ERR_AGAIN))
        w->near_says = w->ops->poll(w->near);
    if (w->far && (w->far_says == OK || w->far_says == ERR_AGAIN))
        w->far_says = w->ops->poll(w->far);
}

static bool wait_ends(const struct ends *w)
{
    struct pollfd p[] = {{.fd = w->near ? w->ops->fd(w->near) : -1, .events = POLLIN},
                         {.fd = w->far ? w->ops->fd(w->far) : -1, .events = POLLIN}};
    return poll(p, 2, WAIT_MS) > 0;
}

/* Until neither is connecting. */
static void settle_ends(struct ends *w)
{
    for (poll_ends(w); w->near_says == ERR_AGAIN || w->far_says == ERR_AGAIN; poll_ends(w))
        if (!wait_ends(w)) fail_msg("no end of connecting");
}

static void connect_ends(struct ends *w, const struct kv_link_ops *ops, uint32_t near, uint32_t far)
{
    dial(w, ops, near, far);
    settle_ends(w);
    assert_ok(w->near_says);
    assert_ok(w->far_says);
}

static void close_ends(struct ends *w)
{
    w->ops->close(w->near);
    w->ops->close(w->far);
    w->ops->unlisten(w->listener);
}

static enum err send_number(struct ends *w, uint32_t n)
{
    void *slot;
    enum err e = w->ops->slot(w->near, &slot);
    if (e != OK) return e;
    memset(slot, (int)n, SLOT_BYTES);
    return w->ops->send_slot(w->near, &n, sizeof n, SLOT_BYTES);
}

static enum err receive_number(struct ends *w, uint32_t n)
{
    const void *head;
    size_t size;
    uint32_t got;
    enum err e = w->ops->receive(w->far, &head, &size);
    if (e != OK) return e;
    memcpy(&got, head, sizeof got);
    assert_int_equal(size, sizeof got);
    assert_int_equal(got, n);
    const unsigned char *payload = w->ops->payload(w->far, &size);
    assert_int_equal(size, SLOT_BYTES);
    assert_int_equal(payload[0], n & 255);
    assert_int_equal(payload[SLOT_BYTES - 1], n & 255);
    return OK;
}

/* Until both links have died, taking what comes: how many frames came. */
static uint32_t run_to_the_end(struct ends *w)
{
    uint32_t sent = 0, received = 0;
    while (w->near_says == OK || w->far_says == OK) {
        while (w->near_says == OK && sent < 10 && send_number(w, sent) == OK)
            sent++;
        while (w->far_says == OK && receive_number(w, received) == OK) {
            w->ops->release(w->far);
            received++;
        }
        if (!wait_ends(w)) fail_msg("it goes on for ever");
        poll_ends(w);
    }
    return received;
}

/* ---- the tests ---- */

static void a_set_up_that_fails_is_tried_again(void **state)
{
    (void)state;
    const struct kv_link_ops *ops;
    EACH_KIND(ops)
    {
        uint32_t *const fails[] = {&transport_memory_knobs.fail_opens,
                                   &transport_memory_knobs.fail_openeds,
                                   &transport_memory_knobs.fail_joins};
        for (size_t what = 0; what < sizeof fails / sizeof fails[0]; what++) {
            struct ends w;
            transport_memory_reset();
            dial(&w, ops, 0, 1);
            *fails[what] = 1;
            transport_memory_knobs.opens_after = 2;
            transport_memory_knobs.joins_after = 3;
            settle_ends(&w);
            assert_ok(w.near_says);
            assert_ok(w.far_says);
            assert_ok(send_number(&w, 1));
            for (enum err e; (e = receive_number(&w, 1)) != OK; poll_ends(&w))
                assert_int_equal(e, ERR_AGAIN);
            close_ends(&w);
            assert_int_equal(transport_memory_counts.open, 0);
        }
    }
}

/* Of the two the dialler's opens when the acceptor's has: so one is opening, and then there is the other. */
static void a_link_may_be_closed_while_its_transport_opens(void **state)
{
    (void)state;
    const struct kv_link_ops *ops;
    EACH_KIND(ops)
    {
        struct ends w;
        transport_memory_reset();
        dial(&w, ops, 0, 1);
        transport_memory_knobs.opens_after = UINT32_MAX;
        for (int i = 0; transport_memory_counts.open == 0 && i < 1000; i++)
            poll_ends(&w);
        assert_int_equal(transport_memory_counts.open, 1);
        close_ends(&w);
        assert_int_equal(transport_memory_counts.open, 0);
    }
}

static void a_device_that_never_works_ends_the_link_with_its_reason(void **state)
{
    (void)state;
    const struct kv_link_ops *ops;
    EACH_KIND(ops)
    {
        struct ends w;
        transport_memory_reset();
        dial(&w, ops, 0, 1);
        transport_memory_knobs.fail_opens = 100;
        settle_ends(&w);
        assert_int_equal(w.near_says, ERR_DEVICE);
        assert_int_equal(w.far_says, ERR_DEVICE);
        assert_int_equal(ops->poll(w.near), ERR_DEVICE); /* and goes on saying so */
        assert_non_null(strstr(err_text(), "no device today"));
        close_ends(&w);
        assert_int_equal(transport_memory_counts.open, 0);
    }
}

static void a_transport_that_does_not_join_is_given_up(void **state)
{
    (void)state;
    struct ends w;
    transport_memory_reset();
    transport_memory_set_times(&short_join);
    dial(&w, &kv_link_memory_posted, 0, 1);
    transport_memory_knobs.joins_after = UINT32_MAX;
    settle_ends(&w);
    assert_int_equal(w.near_says, ERR_TIMEOUT);
    close_ends(&w);
    transport_memory_set_times(NULL);
    assert_int_equal(transport_memory_counts.open, 0);
}

static void an_operation_that_never_ends_ends_the_link(void **state)
{
    (void)state;
    struct ends w;
    transport_memory_reset();
    transport_memory_set_times(&short_operation);
    connect_ends(&w, &kv_link_memory_posted, 0, 1);
    transport_memory_set_times(NULL);
    transport_memory_knobs.hang_from = 3; /* 0 is the one that warms */
    assert_true(run_to_the_end(&w) <= 2);
    assert_true(w.near_says == ERR_TIMEOUT || w.near_says == ERR_PEER);
    assert_true(w.far_says == ERR_TIMEOUT || w.far_says == ERR_PEER);
    close_ends(&w);
    assert_int_equal(transport_memory_counts.open, 0);
}

static void an_operation_that_fails_ends_the_link(void **state)
{
    (void)state;
    const struct kv_link_ops *ops;
    EACH_KIND(ops)
    {
        for (int begin = 0; begin < 2; begin++) {
            struct ends w;
            transport_memory_reset();
            connect_ends(&w, ops, 0, 1);
            *(begin ? &transport_memory_knobs.fail_begin : &transport_memory_knobs.break_at) = 4;
            assert_true(run_to_the_end(&w) <= 4);
            assert_true(w.near_says == ERR_DEVICE || w.near_says == ERR_PEER);
            assert_true(w.far_says == ERR_DEVICE || w.far_says == ERR_PEER);
            close_ends(&w);
            assert_int_equal(transport_memory_counts.open, 0);
        }
    }
}

/* Four links between two senders and two receivers, which could wait for each other in a ring. */
static void links_of_all_pairs_share_their_devices(void **state)
{
    (void)state;
    struct ends w[8];
    uint32_t sent[8] = {0}, received[8] = {0}, done = 0;
    transport_memory_reset();
    for (uint32_t i = 0; i < 8; i++)
        connect_ends(&w[i], &kv_link_memory_posted, i % 2, 2 + i / 2 % 2);
    for (uint32_t round = 0; done < 8 * 20; round++) {
        assert_true(round < 100000);
        for (uint32_t i = 0; i < 8; i++) {
            while (sent[i] < 20 && send_number(&w[i], sent[i]) == OK)
                sent[i]++;
            if (receive_number(&w[i], received[i]) == OK) {
                w[i].ops->release(w[i].far);
                received[i]++;
                done++;
            }
            poll_ends(&w[i]);
            assert_ok(w[i].near_says);
            assert_ok(w[i].far_says);
        }
    }
    for (uint32_t i = 0; i < 8; i++)
        close_ends(&w[i]);
    assert_int_equal(transport_memory_counts.open, 0);
}

static void a_link_that_is_closed_gives_its_turn_to_the_next(void **state)
{
    (void)state;
    struct ends a, b;
    transport_memory_reset();
    connect_ends(&a, &kv_link_memory_posted, 0, 1);
    connect_ends(&b, &kv_link_memory_posted, 0, 2);
    assert_ok(send_number(&a, 1)); /* announced; the other side is not asked */
    assert_ok(send_number(&b, 1));
    b.ops->poll(b.near);
    b.ops->poll(b.far);
    assert_int_equal(receive_number(&b, 1), ERR_AGAIN);
    a.ops->close(a.near);
    a.near = NULL;
    struct pollfd p = {.fd = b.ops->fd(b.near), .events = POLLIN};
    assert_int_equal(poll(&p, 1, WAIT_MS), 1); /* it hears of its turn */
    for (enum err e; (e = receive_number(&b, 1)) != OK; poll_ends(&b)) {
        assert_int_equal(e, ERR_AGAIN);
        assert_true(wait_ends(&b));
    }
    close_ends(&a);
    close_ends(&b);
}

static void a_payload_stays_when_the_other_side_has_gone(void **state)
{
    (void)state;
    const struct kv_link_ops *ops;
    EACH_KIND(ops)
    {
        struct ends w;
        void *slot;
        transport_memory_reset();
        connect_ends(&w, ops, 0, 1);
        assert_ok(send_number(&w, 9));
        for (enum err e; (e = receive_number(&w, 9)) != OK; poll_ends(&w))
            assert_int_equal(e, ERR_AGAIN);
        ops->close(w.near);
        w.near = NULL;
        for (int i = 0; i < 5; i++)
            assert_ok(ops->poll(w.far));
        assert_ok(receive_number(&w, 9));
        ops->release(w.far);
        assert_int_equal(ops->poll(w.far), ERR_PEER);
        close_ends(&w);

        connect_ends(&w, ops, 0, 1); /* and the slot that is being written */
        assert_ok(ops->slot(w.near, &slot));
        ops->close(w.far);
        w.far = NULL;
        for (int i = 0; i < 5; i++)
            (void)ops->poll(w.near);
        memset(slot, 1, SLOT_BYTES);
        assert_int_equal(ops->send_slot(w.near, "x", 1, 1), ERR_PEER);
        close_ends(&w);
        assert_int_equal(transport_memory_counts.open, 0);
    }
}

static void an_idle_link_is_closed_in_order(void **state)
{
    (void)state;
    const struct kv_link_ops *ops;
    EACH_KIND(ops)
    {
        struct ends w;
        transport_memory_reset();
        connect_ends(&w, ops, 0, 1);
        ops->close(w.near);
        w.near = NULL;
        while (w.far_says == OK) {
            assert_true(wait_ends(&w));
            poll_ends(&w);
        }
        assert_int_equal(w.far_says, ERR_PEER);
        assert_int_equal(transport_memory_counts.drained, 2);
        close_ends(&w);
    }
}

static void memory_that_fails_while_it_is_set_up_leaks_nothing(void **state)
{
    (void)state;
    const struct kv_link_ops *ops;
    EACH_KIND(ops)
    {
        for (uint64_t n = 1; n < 60; n++) {
            struct ends w;
            transport_memory_reset();
            dial(&w, ops, 0, 1);
            mem_fail_at(n);
            bool one_died = false; /* the other one hears of it when that is closed */
            while (!one_died && (w.near_says == ERR_AGAIN || w.far_says == ERR_AGAIN)) {
                poll_ends(&w);
                one_died = (w.near_says != OK && w.near_says != ERR_AGAIN) ||
                           (w.far_says != OK && w.far_says != ERR_AGAIN);
            }
            mem_fail_at(0);
            close_ends(&w);
            assert_int_equal(transport_memory_counts.open, 0);
        }
    }
}

static void options_without_slots_are_refused(void **state)
{
    (void)state;
    struct kv_link_options row[] = {options_of(0), options_of(0), options_of(0)};
    row[0].slots_count = 0;
    row[1].slots_count = TRANSPORT_SLOTS_MAX + 1;
    row[2].slot_bytes = 0;
    for (int i = 0; i < 3; i++) {
        struct kv_link *link;
        struct kv_listener *listener;
        assert_int_equal(kv_link_memory_posted.listen(&listener, "x", &row[i]), ERR_INVALID);
        assert_int_equal(kv_link_memory_posted.dial(&link, "memory-posted:x", &row[i]),
                         ERR_INVALID);
        assert_null(link);
        assert_null(listener);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_set_up_that_fails_is_tried_again),
        cmocka_unit_test(a_link_may_be_closed_while_its_transport_opens),
        cmocka_unit_test(a_device_that_never_works_ends_the_link_with_its_reason),
        cmocka_unit_test(a_transport_that_does_not_join_is_given_up),
        cmocka_unit_test(an_operation_that_never_ends_ends_the_link),
        cmocka_unit_test(an_operation_that_fails_ends_the_link),
        cmocka_unit_test(links_of_all_pairs_share_their_devices),
        cmocka_unit_test(a_link_that_is_closed_gives_its_turn_to_the_next),
        cmocka_unit_test(a_payload_stays_when_the_other_side_has_gone),
        cmocka_unit_test(an_idle_link_is_closed_in_order),
        cmocka_unit_test(memory_that_fails_while_it_is_set_up_leaks_nothing),
        cmocka_unit_test(options_without_slots_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
