/* Links of the transfer's core, on virtual time: which are dialled, shared, given up and refused, and what a
 * breach costs. */
#include "tests/unit/xfer_sides.h"

static void a_crowded_acceptor_parts_with_a_link_that_is_silent(void **state)
{
    (void)state;
    for (int heard = 0; heard < 2; heard++) {
        struct side p, d;
        struct frame f;
        sides_start(&p, &d);
        xfer_core_crowded(d.core, "shm", 20 * NS_PER_S);
        assert_false(wants(&d)); /* it has a ticket */
        carry(&p, &d, 1, 20 * NS_PER_S);
        xfer_core_crowded(d.core, "shm", 21 * NS_PER_S - 1);
        assert_false(wants(&d)); /* something came lately */
        xfer_core_crowded(d.core, "nccl", 21 * NS_PER_S);
        assert_false(wants(&d)); /* no room for those */
        xfer_core_crowded(d.core, "shm", 21 * NS_PER_S);
        assert_true(say(&d, &f, 21 * NS_PER_S));
        assert_int_equal(f.kind, FRAME_FAIL);
        assert_int_equal(f.error, ERR_FULL);
        assert_false(wants(&d));
        assert_non_null(d.session); /* until the other side has heard, or the deadline */
        if (heard) assert_ok(hear(&p, &f, true, 21 * NS_PER_S));
        if (heard) assert_null(p.session);
        xfer_core_timer(d.core, 22 * NS_PER_S);
        side_act(&d);
        assert_null(d.session);
        sides_end(&p, &d);
    }
}

static void a_ticket_that_crosses_the_parting_travels_anew(void **state)
{
    (void)state;
    struct side p, d;
    struct frame f, fail;
    sides_start(&p, &d);
    carry(&p, &d, 1, 2);
    uint64_t now = 2 * NS_PER_S;
    op_simple(&d, XFER_EXPECT, 2, now);
    op_simple(&p, XFER_OPEN, 2, now);
    push_all(&p, 2, now);
    op_simple(&p, XFER_COMMIT, 2, now);
    xfer_core_crowded(d.core, "shm", now);
    assert_true(say(&d, &fail, now));
    while (say(&p, &f, now))
        assert_ok(hear(&d, &f, true, now)); /* all of it, and nobody listens */
    assert_false(has_ended(&d, 2));
    assert_ok(hear(&p, &fail, true, now));
    assert_int_equal(p.dials_count, 2);
    assert_false(has_ended(&p, 2));
    xfer_core_lost(d.core, d.session, ERR_PEER, "hung up", now);
    side_act(&d);
    connect_sides(&p, &d, 1 << 20, now);
    settle(&p, &d, now);
    assert_ended(&p, 2, XFER_DONE, OK);
    assert_ended(&d, 2, XFER_COMMITTED, OK);
    assert_int_equal(p.event[1].bytes, d.event[1].bytes);
    sides_end(&p, &d);
}

static void payload_without_credit_costs_the_link(void **state)
{
    (void)state;
    struct side p, d;
    uint8_t head[FRAME_HEAD_MAX + 1000] = {0};
    sides_start(&p, &d);
    struct frame f = {.kind = FRAME_DATA, .ticket = {5, 5}, .range = {0, 0, 16, 0, 1, 0}};
    size_t n = frame_print(&f, head);
    assert_ok(frame_parse(head, n + 512, &f));
    f.payload_bytes = 1 << 20;
    assert_ok(hear(&d, &f, true, 2)); /* of a dead ticket, but paid for */
    f.payload_bytes = 1;
    assert_int_equal(hear(&d, &f, true, 2), ERR_STATE);
    assert_null(d.session);
    assert_ended(&d, 1, XFER_FAILED, ERR_PEER);
    sides_end(&p, &d);
}

static void breaches_cost_the_link(void **state)
{
    (void)state;
    struct frame at_d[] = {
        {.kind = FRAME_DONE, .ticket = ticket(1)},
        {.kind = FRAME_REFUSE, .ticket = ticket(1), .range = {0, 0, 16, 0, 1, 0}},
        {.kind = FRAME_CREDIT, .window_bytes = 5},
        {.kind = FRAME_HELLO, .geometry = geometry, .part = all},
        {.kind = FRAME_OPEN, .ticket = ticket(1), .tokens_end = 40},
        {.kind = FRAME_DATA, .ticket = ticket(1), .range = {LAYERS, 0, 16, 0, 1, 0}},
        {.kind = FRAME_DATA, .ticket = ticket(1), .range = {0, 32, 48, 0, 1, 0}},
        {.kind = FRAME_DATA, .ticket = ticket(1), .range = {0, 0, 17, 0, 1, 0}},
        {.kind = FRAME_DATA, .ticket = ticket(1), .range = {0, 0, 16, 0, 1, 0}}, /* no payload */
        {.kind = FRAME_DATA, .ticket = ticket(1), .range = {UINT32_MAX, 0, 16, 0, 1, 0}},
        {.kind = FRAME_DATA,
         .ticket = ticket(1),
         .range = {0, 0, 16, 1, 1, 0},
         .payload_bytes = 256},
        {.kind = FRAME_DATA,
         .ticket = ticket(1),
         .range = {0, 0, 16, 0, 2, 0},
         .payload_bytes = 512},
        {.kind = FRAME_DATA,
         .ticket = ticket(1),
         .range = {0, 0, 16, 0, UINT32_MAX, 0},
         .payload_bytes = 256},
    };
    struct frame at_p[] = {
        {.kind = FRAME_DONE, .ticket = ticket(1)}, /* before COMMIT */
        {.kind = FRAME_OPEN, .ticket = ticket(1), .tokens_end = 40},
        {.kind = FRAME_COMMIT, .ticket = ticket(1)},
        {.kind = FRAME_REFUSE,
         .ticket = ticket(1),
         .range = {0, 0, 16, 0, 1, 0}}, /* was never sent */
        {.kind = FRAME_HELLO, .geometry = geometry, .part = all},
    };
    for (size_t i = 0; i < sizeof at_d / sizeof *at_d + sizeof at_p / sizeof *at_p; i++) {
        size_t i_p = i - sizeof at_d / sizeof *at_d;
        struct side p, d;
        sides_start(&p, &d);
        bool of_d = i < sizeof at_d / sizeof *at_d;
        struct side *s = of_d ? &d : &p;
        if (hear(s, of_d ? &at_d[i] : &at_p[i_p], true, 2) != ERR_STATE) fail_msg("row %zu", i);
        assert_null(s->session);
        assert_ended(s, 1, XFER_FAILED, ERR_PEER);
        sides_end(&p, &d);
    }
}

static void links_are_dialled_in_order_and_shared(void **state)
{
    (void)state;
    struct side p, d;
    side_new(&p);
    side_new(&d);
    op_simple(&p, XFER_OPEN, 1, 1);
    op_simple(&p, XFER_OPEN, 2, 1); /* the same addresses: the same link */
    assert_int_equal(p.dials_count, 1);
    assert_string_equal(p.dialled, "shm:x");
    xfer_core_lost(p.core, p.session, ERR_PEER, "nobody there", 2);
    side_act(&p);
    assert_string_equal(p.dialled, "tcp:y");
    assert_int_equal(p.events_count, 0);
    side_op(
        &p,
        (struct xfer_op){.kind = XFER_OPEN, .ticket = ticket(3), .tokens_end = 40, .link = "tcp"},
        2);
    assert_int_equal(p.dials_count, 2); /* on its way already */
    sides_end(&p, &d);
}

static void a_silent_listener_is_left_after_the_handshake_time(void **state)
{
    (void)state;
    struct side p;
    side_new(&p);
    op_simple(&p, XFER_OPEN, 1, 1);
    stand(&p, p.session, "shm", 100, 2);
    assert_int_equal(xfer_core_wake_at(p.core), 2 + HANDSHAKE);
    xfer_core_timer(p.core, 2 + HANDSHAKE);
    side_act(&p);
    assert_string_equal(p.dialled, "tcp:y");
    xfer_core_timer(p.core, 2 + 2 * HANDSHAKE);
    assert_ended(&p, 1, XFER_FAILED, ERR_TIMEOUT);
    assert_null(p.session);
    assert_int_equal(xfer_core_wake_at(p.core), TIME_NEVER);
    xfer_core_free(p.core);
}

static void strangers_who_say_nothing_are_few_and_short_lived(void **state)
{
    (void)state;
    struct side d;
    side_new(&d);
    for (int i = 0; i < XFER_GREETINGS_MAX; i++)
        assert_non_null(xfer_core_accepted(d.core, "tcp", 1));
    assert_null(xfer_core_accepted(d.core, "tcp", 1));
    assert_non_null(xfer_core_accepted(d.core, "shm", 1)); /* each kind has its own */
    xfer_core_timer(d.core, 1 + HANDSHAKE);
    side_act(&d);
    assert_int_equal(d.closes_count, XFER_GREETINGS_MAX + 1);
    assert_non_null(xfer_core_accepted(d.core, "tcp", 2 + HANDSHAKE));
    xfer_core_free(d.core);
}

static void strangers_who_say_nothing_make_way_for_others(void **state)
{
    static const char *const links[] = {"tcp", "nccl"}; /* the second takes long to make */
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct side d;
        side_new(&d);
        for (int n = 0; n < XFER_GREETINGS_MAX; n++)
            assert_non_null(xfer_core_accepted(d.core, links[i], 1));
        assert_null(xfer_core_accepted(d.core, links[i], NS_PER_S));
        side_act(&d);
        assert_int_equal(d.closes_count, 0);
        for (uint32_t n = 1; n <= XFER_GREETINGS_MAX; n++) {
            bool taken = xfer_core_accepted(d.core, links[i], 1 + NS_PER_S) != NULL;
            assert_int_equal(taken, i == 0);
            side_act(&d);
            assert_int_equal(d.closes_count, i == 0 ? n : 0);
        }
        assert_null(xfer_core_accepted(d.core, links[i], 1 + NS_PER_S)); /* these are fresh */
        xfer_core_free(d.core);
    }
}

static void an_idle_link_is_closed_and_a_used_one_is_not(void **state)
{
    (void)state;
    struct side p, d;
    sides_start(&p, &d);
    xfer_core_timer(p.core, 2 * IDLE);
    side_act(&p);
    assert_non_null(p.session); /* its ticket is live */
    op_simple(&p, XFER_CANCEL, 1, 3 * IDLE);
    settle(&p, &d, 3 * IDLE);
    xfer_core_timer(p.core, 4 * IDLE - 1);
    side_act(&p);
    assert_non_null(p.session);
    xfer_core_timer(p.core, 4 * IDLE);
    side_act(&p);
    assert_null(p.session);
    sides_end(&p, &d);
}

static void a_frozen_receiver_gets_no_new_tickets(void **state)
{
    (void)state;
    struct side p, d;
    sides_start(&p, &d);
    side_op(&p,
            (struct xfer_op){
                .kind = XFER_OPEN, .ticket = ticket(2), .tokens_end = 40, .deadline_ns = 50},
            10);
    struct frame f;
    while (say(&p, &f, 10)) /* nobody hears it */
        continue;
    xfer_core_timer(p.core, 50);
    assert_ended(&p, 2, XFER_FAILED, ERR_TIMEOUT);
    struct xfer_session *first = p.session;
    op_simple(&p, XFER_OPEN, 3, 51);
    assert_int_equal(p.dials_count, 2);
    assert_ptr_not_equal(p.session, first);
    stand(&p, p.session, "tcp", 100, 60);
    op_simple(&p, XFER_CANCEL, 1, 52); /* its last ticket: the old link goes, said or not */
    xfer_core_timer(p.core, 52 + HANDSHAKE);
    side_act(&p);
    assert_int_equal(p.closes_count, 1);
    sides_end(&p, &d);
}

static void a_second_link_cannot_take_an_open_ticket_over(void **state)
{
    (void)state;
    struct side p, d;
    struct xfer_send send;
    sides_start(&p, &d);
    struct xfer_session *thief = xfer_core_accepted(d.core, "tcp", 2);
    struct xfer_store store;
    stand(&d, thief, "tcp", 4096, 2);
    struct frame hello = {.kind = FRAME_HELLO, .geometry = geometry, .part = all};
    struct frame open = {.kind = FRAME_OPEN, .ticket = ticket(1), .tokens_end = 40};
    struct frame fail = {.kind = FRAME_FAIL, .ticket = ticket(1), .error = ERR_CANCELLED};
    assert_ok(xfer_core_frame(d.core, thief, &hello, 2, &store));
    assert_ok(xfer_core_frame(d.core, thief, &open, 2, &store));
    assert_ok(xfer_core_frame(d.core, thief, &fail, 2, &store));
    assert_true(xfer_core_wants(d.core, thief, &send)); /* HELLO */
    xfer_core_sent(d.core, thief, &send, 2);
    assert_true(xfer_core_wants(d.core, thief, &send));
    assert_int_equal(send.frame.kind, FRAME_FAIL);
    assert_int_equal(send.frame.error, ERR_DUPLICATE);
    push_all(&p, 1, 3);
    op_simple(&p, XFER_COMMIT, 1, 3);
    settle(&p, &d, 3);
    assert_ended(&d, 1, XFER_COMMITTED, OK);
    sides_end(&p, &d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_crowded_acceptor_parts_with_a_link_that_is_silent),
        cmocka_unit_test(a_ticket_that_crosses_the_parting_travels_anew),
        cmocka_unit_test(payload_without_credit_costs_the_link),
        cmocka_unit_test(breaches_cost_the_link),
        cmocka_unit_test(links_are_dialled_in_order_and_shared),
        cmocka_unit_test(a_silent_listener_is_left_after_the_handshake_time),
        cmocka_unit_test(strangers_who_say_nothing_are_few_and_short_lived),
        cmocka_unit_test(strangers_who_say_nothing_make_way_for_others),
        cmocka_unit_test(an_idle_link_is_closed_and_a_used_one_is_not),
        cmocka_unit_test(a_frozen_receiver_gets_no_new_tickets),
        cmocka_unit_test(a_second_link_cannot_take_an_open_ticket_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
