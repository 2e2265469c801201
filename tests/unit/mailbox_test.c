#include "tests/unit/testing.h"

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>

#include "common/clock.h"
#include "common/mailbox.h"
#include "common/mem.h"

static bool readable(struct mailbox *m)
{
    struct pollfd p = {.fd = mailbox_fd(m), .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void messages_arrive_in_order_and_full_is_an_error(void **state)
{
    (void)state;
    struct mailbox *m;
    uint32_t got, next = 0;
    assert_ok(mailbox_new(&m, sizeof(uint32_t), 3));
    for (uint32_t round = 0; round < 5; round++) { /* the ring wraps at every offset */
        for (uint32_t i = 0; i < 3; i++)
            assert_ok(mailbox_send(m, &(uint32_t){next + i}));
        assert_int_equal(mailbox_send(m, &next), ERR_FULL);
        uint32_t take = 2 + round % 2;
        for (uint32_t i = 0; i < take; i++) {
            assert_ok(mailbox_receive(m, &got));
            assert_int_equal(got, next + i);
        }
        while (mailbox_receive(m, &got) == OK)
            assert_int_equal(got, next + 2);
        next += 3;
    }
    mailbox_free(m);
}

static void many_sends_ring_once_and_a_drained_box_is_silent(void **state)
{
    (void)state;
    struct mailbox *m;
    uint32_t got;
    assert_ok(mailbox_new(&m, sizeof got, 8));
    assert_false(readable(m));
    for (uint32_t i = 0; i < 8; i++)
        assert_ok(mailbox_send(m, &i));
    assert_true(readable(m));
    assert_ok(mailbox_receive(m, &got));
    assert_true(readable(m)); /* a receiver that stops early is called again */
    while (mailbox_receive(m, &got) == OK)
        continue;
    assert_false(readable(m));
    assert_ok(mailbox_send(m, &got));
    assert_true(readable(m));
    mailbox_free(m);
}

static void close_refuses_sends_and_lets_the_rest_be_received(void **state)
{
    (void)state;
    struct mailbox *m;
    uint32_t got;
    assert_ok(mailbox_new(&m, sizeof got, 8));
    assert_ok(mailbox_send(m, &(uint32_t){7}));
    mailbox_close(m);
    mailbox_close(m);
    assert_int_equal(mailbox_send(m, &got), ERR_CANCELLED);
    assert_ok(mailbox_wait(m, &got, TIME_NEVER));
    assert_int_equal(got, 7);
    assert_int_equal(mailbox_receive(m, &got), ERR_CANCELLED);
    assert_int_equal(mailbox_wait(m, &got, TIME_NEVER), ERR_CANCELLED);
    assert_true(readable(m));
    mailbox_free(m);
}

static void wait_ends_at_its_deadline(void **state)
{
    (void)state;
    struct mailbox *m;
    uint32_t got;
    assert_ok(mailbox_new(&m, sizeof got, 1));
    assert_int_equal(mailbox_wait(m, &got, 0), ERR_TIMEOUT);
    assert_int_equal(mailbox_wait(m, &got, NS_PER_MS), ERR_TIMEOUT);
    mailbox_free(m);
}

enum { SENDERS = 4, PER_SENDER = 5000 };
struct note {
    uint32_t sender, index;
};
struct sender {
    pthread_t thread;
    struct mailbox *m;
    uint32_t id;
};

static void *send_all(void *arg)
{
    struct sender *s = arg;
    for (uint32_t i = 0; i < PER_SENDER; i++) {
        struct note n = {s->id, i};
        while (mailbox_send(s->m, &n) == ERR_FULL)
            sched_yield();
    }
    return NULL;
}

static void every_message_of_every_sender_arrives_once_and_in_its_order(void **state)
{
    (void)state;
    struct mailbox *m;
    struct sender senders[SENDERS];
    uint32_t next[SENDERS] = {0};
    assert_ok(mailbox_new(&m, sizeof(struct note), 16));
    for (uint32_t i = 0; i < SENDERS; i++) {
        senders[i] = (struct sender){.m = m, .id = i};
        pthread_create(&senders[i].thread, NULL, send_all, &senders[i]);
    }
    for (uint32_t i = 0; i < SENDERS * PER_SENDER; i++) {
        struct note n;
        assert_ok(mailbox_wait(m, &n, TIME_NEVER));
        assert_int_equal(n.index, next[n.sender]++);
    }
    for (uint32_t i = 0; i < SENDERS; i++)
        pthread_join(senders[i].thread, NULL);
    assert_int_equal(mailbox_receive(m, &(struct note){0}), ERR_AGAIN);
    mailbox_free(m);
}

static void a_failed_allocation_is_an_error(void **state)
{
    (void)state;
    struct mailbox *m;
    for (uint64_t n = 1; n <= 2; n++) {
        mem_fail_at(n);
        assert_int_equal(mailbox_new(&m, 8, 8), ERR_MEMORY);
        assert_null(m);
    }
    mem_fail_at(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_arrive_in_order_and_full_is_an_error),
        cmocka_unit_test(many_sends_ring_once_and_a_drained_box_is_silent),
        cmocka_unit_test(close_refuses_sends_and_lets_the_rest_be_received),
        cmocka_unit_test(wait_ends_at_its_deadline),
        cmocka_unit_test(every_message_of_every_sender_arrives_once_and_in_its_order),
        cmocka_unit_test(a_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
