/* The session machine of a device link (xfer/device/session.h). */
#include "tests/unit/dslink_pair.h"

#include "common/clock.h"
#include "tests/sim/links.h"

static void both_sides_become_ready_with_the_smaller_slots(void **state)
{
    (void)state;
    const struct transport_ops *t;
    EACH_TRANSPORT(t)
    {
        struct pair p;
        pair_make_ready(&p, t);
        assert_int_equal(dslink_slots_count(p.s[D]), SLOTS);
        assert_int_equal(dslink_slot_bytes(p.s[D]), SLOT_BYTES);
        assert_int_equal(dslink_slot_bytes(p.s[A]), SLOT_BYTES);
        assert_int_equal(p.begins[D], 1);
        assert_int_equal(p.begins[A], t->posted);
        assert_int_equal(dslink_wake_at(p.s[D]), TIME_NEVER);
        assert_int_equal(dslink_wake_at(p.s[A]), TIME_NEVER);
        pair_stop(&p);
    }
}

static void frames_come_in_order_with_and_without_payload(void **state)
{
    (void)state;
    const struct transport_ops *t;
    EACH_TRANSPORT(t)
    {
        struct pair p;
        uint32_t sent = 0, received = 0;
        pair_make_ready(&p, t);
        while (received < 200) {
            uint32_t slot;
            if (sent % 5 != 3 && dslink_slot(p.s[D], &slot) == OK)
                pair_send_payload(&p, ++sent);
            else if (sent % 5 == 3 && dslink_may_send(p.s[D]))
                pair_send_inline(&p, D, ++sent);
            pair_run(&p);
            if (sent % 3 == 0) pair_send_inline(&p, A, 1000 + sent);
            pair_run(&p);
            while (pair_front(&p, D)) {
                assert_true(pair_front(&p, D) > 1000);
                pair_release(&p, D);
                pair_run(&p);
            }
            for (uint32_t n; sent % 2 == 0 && (n = pair_front(&p, A)); pair_run(&p)) {
                assert_int_equal(n, ++received);
                pair_release(&p, A);
            }
            if (sent % 2 == 1 && sent - received >= SLOTS && pair_front(&p, A)) {
                assert_int_equal(pair_front(&p, A), ++received);
                pair_release(&p, A);
                pair_run(&p);
            }
        }
        pair_stop(&p);
    }
}

static void a_slot_is_granted_again_when_its_frame_was_released(void **state)
{
    (void)state;
    const struct transport_ops *t;
    EACH_TRANSPORT(t)
    {
        struct pair p;
        uint32_t slot, again;
        pair_make_ready(&p, t);
        assert_ok(dslink_slot(p.s[D], &slot));
        assert_ok(dslink_slot(p.s[D], &again));
        assert_int_equal(slot, again);
        for (uint32_t n = 1; n <= SLOTS; n++) {
            pair_send_payload(&p, n);
            pair_run(&p);
        }
        assert_int_equal(dslink_slot(p.s[D], &slot), ERR_AGAIN);
        assert_int_equal(pair_front(&p, A), 1);
        pair_run(&p);
        assert_int_equal(dslink_slot(p.s[D], &slot), ERR_AGAIN);
        pair_release(&p, A);
        pair_run(&p);
        assert_ok(dslink_slot(p.s[D], &slot));
        assert_int_equal(slot, again);
        assert_int_equal(dslink_slot(p.s[A], &slot), ERR_AGAIN); /* slots go one way */
        pair_stop(&p);
    }
}

static void operations_wait_for_their_turn(void **state)
{
    (void)state;
    struct pair p;
    pair_make_ready(&p, &posted);
    assert_false(dslink_wants_turn(p.s[D]));
    p.no_turns = true;
    pair_send_payload(&p, 1);
    pair_run(&p);
    assert_true(dslink_wants_turn(p.s[D]));
    assert_false(dslink_wants_turn(p.s[A])); /* it has not heard of it */
    assert_false(dslink_may_send(p.s[D]));   /* that would overtake */
    assert_int_equal(p.begins[D], 1);
    p.no_turns = false;
    pair_run(&p);
    assert_false(dslink_wants_turn(p.s[D]));
    assert_false(dslink_wants_turn(p.s[A]));
    assert_int_equal(pair_front(&p, A), 1);
    assert_int_equal(dslink_counts(p.s[D])->operations, 1);
    assert_int_equal(dslink_counts(p.s[A])->operations, 1);
    pair_stop(&p);
}

static void a_session_drains_from_either_side(void **state)
{
    (void)state;
    const struct transport_ops *t;
    EACH_TRANSPORT(t)
    {
        for (int side = 0; side < SIDES; side++) {
            struct pair p;
            uint32_t slot;
            pair_make_ready(&p, t);
            pair_send_payload(&p, 1);
            pair_run(&p);
            pair_send_payload(&p, 2);              /* not announced yet: nobody hears of it */
            assert_ok(dslink_slot(p.s[D], &slot)); /* and one in the hand */
            dslink_drain(p.s[side], p.now_ns);
            pair_run(&p);
            assert_int_equal(pair_front(&p, A), 1);
            pair_release(&p, A);
            pair_run(&p);
            while (side == A && pair_front(&p, A)) { /* it may have crossed the DRAIN */
                assert_int_equal(pair_front(&p, A), 2);
                pair_release(&p, A);
                pair_run(&p);
            }
            pair_assert_states(&p, DSLINK_CLOSED, DSLINK_CLOSED);
            assert_ok(dslink_error(p.s[D]));
            assert_ok(dslink_error(p.s[A]));
            assert_int_equal(p.closes[A], 1);
            assert_int_equal(p.end[A], TRANSPORT_DRAINED);
            assert_int_equal(p.closes[D], 0); /* the caller still writes */
            dslink_send_slot(p.s[D], "x", 1, 1);
            pair_run(&p);
            assert_int_equal(p.closes[D], 1);
            assert_int_equal(p.end[D], TRANSPORT_DRAINED);
            pair_stop(&p);
        }
    }
}

static void each_wait_ends_at_its_deadline(void **state)
{
    (void)state;
    const struct dslink_times *t = &dslink_times_default;
    struct pair p;
    pair_start(&p, &posted); /* nobody answers */
    pair_pass_time(&p, t->open_ns - 1);
    pair_assert_states(&p, DSLINK_OPENING, DSLINK_ACCEPTING);
    pair_pass_time(&p, 1);
    pair_assert_states(&p, DSLINK_CLOSED, DSLINK_CLOSED);
    assert_int_equal(dslink_error(p.s[D]), ERR_TIMEOUT);
    assert_int_equal(dslink_wake_at(p.s[D]), TIME_NEVER);
    pair_stop(&p);

    pair_start(&p, &posted); /* the transport does not connect */
    p.hold_join = true;
    pair_run(&p);
    pair_assert_states(&p, DSLINK_JOINING, DSLINK_JOINING);
    pair_pass_time(&p, t->join_ns - 1);
    pair_assert_states(&p, DSLINK_JOINING, DSLINK_JOINING);
    pair_pass_time(&p, 1);
    pair_assert_states(&p, DSLINK_ABORTED, DSLINK_ABORTED);
    pair_stop(&p);

    pair_start(&p, &posted); /* operation 0 hangs */
    p.hold_end = true;
    pair_run(&p);
    pair_assert_states(&p, DSLINK_WARMING, DSLINK_WARMING);
    pair_pass_time(&p, t->warm_ns);
    pair_assert_states(&p, DSLINK_ABORTED, DSLINK_ABORTED);
    pair_stop(&p);

    pair_make_ready(&p, &posted); /* a later one hangs: the acceptor ends it first */
    p.hold_end = true;
    pair_send_payload(&p, 1);
    pair_run(&p);
    p.mute = true;
    pair_pass_time(&p, t->receive_ns - 1);
    pair_assert_states(&p, DSLINK_READY, DSLINK_READY);
    pair_pass_time(&p, 1);
    pair_assert_states(&p, DSLINK_READY, DSLINK_CLOSED);
    pair_pass_time(&p, t->operation_ns - t->receive_ns);
    pair_assert_states(&p, DSLINK_CLOSED, DSLINK_CLOSED);
    assert_int_equal(dslink_error(p.s[D]), ERR_TIMEOUT);
    assert_true(dslink_wants_turn(p.s[D])); /* until the transport is closed */
    pair_run(&p);
    assert_false(dslink_wants_turn(p.s[D]));
    assert_int_equal(p.end[D], TRANSPORT_BROKEN);
    pair_stop(&p);

    pair_make_ready(&p, &posted); /* it does not drain */
    p.mute = true;
    dslink_drain(p.s[D], p.now_ns);
    pair_pass_time(&p, t->drain_ns);
    pair_assert_states(&p, DSLINK_CLOSED, DSLINK_READY);
    pair_stop(&p);
}

static void the_offer_of_a_silent_dialler_is_not_awaited_for_ever(void **state)
{
    (void)state;
    struct pair p;
    pair_start(&p, &posted);
    struct dslink_act a;
    assert_true(dslink_next(p.s[D], &a));
    assert_ok(dslink_message(p.s[A], a.bytes, a.size, p.now_ns));
    assert_int_equal(dslink_state(p.s[A]), DSLINK_OFFERING);
    pair_pass_time(&p, dslink_times_default.open_ns);
    assert_int_equal(dslink_state(p.s[A]), DSLINK_ABORTED);
    pair_pass_time(&p, dslink_times_default.open_ns);
    assert_int_equal(dslink_state(p.s[A]), DSLINK_CLOSED);
    pair_stop(&p);
}

/* Two ranks on one GPU, say. */
static void what_no_try_would_change_is_tried_once(void **state)
{
    (void)state;
    for (int side = 0; side < SIDES; side++) {
        struct pair p;
        pair_start(&p, &posted);
        p.hold_join = true;
        pair_run(&p);
        dslink_broken(p.s[side], ERR_UNSUPPORTED, "one GPU", p.now_ns);
        pair_run(&p);
        pair_assert_states(&p, DSLINK_CLOSED, DSLINK_CLOSED);
        for (int i = 0; i < SIDES; i++) {
            assert_int_equal(dslink_error(p.s[i]), ERR_UNSUPPORTED);
            assert_string_equal(dslink_error_text(p.s[i]), "one GPU");
            assert_int_equal(p.closes[i], 1);
        }
        pair_stop(&p);
    }
}

static void a_try_that_fails_is_followed_by_two_more(void **state)
{
    (void)state;
    for (int side = 0; side < SIDES; side++) {
        struct pair p;
        pair_start(&p, &posted);
        p.hold_join = true;
        for (uint32_t epoch = 1; epoch <= DSLINK_EPOCHS_MAX; epoch++) {
            pair_run(&p);
            pair_assert_states(&p, DSLINK_JOINING, DSLINK_JOINING);
            assert_int_equal(dslink_epoch(p.s[D]), epoch);
            assert_int_equal(dslink_epoch(p.s[A]), epoch);
            dslink_broken(p.s[side], ERR_DEVICE, "it fails", p.now_ns);
            pair_run(&p);
            assert_int_equal(p.closes[D], epoch);
            assert_int_equal(p.closes[A], epoch);
            if (epoch == DSLINK_EPOCHS_MAX) break;
            pair_assert_states(&p, DSLINK_ABORTED, DSLINK_ABORTED);
            pair_pass_time(&p, dslink_times_default.pause_ns * epoch);
        }
        pair_assert_states(&p, DSLINK_CLOSED, DSLINK_CLOSED);
        assert_int_equal(dslink_error(p.s[D]), ERR_DEVICE);
        assert_string_equal(dslink_error_text(p.s[D]), "it fails");
        pair_stop(&p);

        pair_start(&p, &posted); /* the second one succeeds */
        p.hold_join = true;
        pair_run(&p);
        dslink_broken(p.s[side], ERR_DEVICE, "it fails", p.now_ns);
        pair_run(&p);
        p.hold_join = false;
        pair_pass_time(&p, dslink_times_default.pause_ns);
        pair_run(&p);
        pair_assert_states(&p, DSLINK_READY, DSLINK_READY);
        assert_int_equal(dslink_epoch(p.s[A]), 2);
        pair_send_payload(&p, 7);
        pair_run(&p);
        assert_int_equal(pair_front(&p, A), 7);
        pair_stop(&p);
    }
}

static void messages_of_an_older_epoch_are_dropped_and_counted(void **state)
{
    (void)state;
    static const uint8_t old[4] = {0};
    struct pair p;
    pair_start(&p, &posted);
    p.hold_join = true;
    pair_run(&p);
    dslink_broken(p.s[D], ERR_DEVICE, "it fails", p.now_ns);
    pair_run(&p);
    pair_pass_time(&p, dslink_times_default.pause_ns);
    p.hold_join = false;
    pair_tell(&p, D,
              (struct control){.kind = CONTROL_ACCEPT,
                               .epoch = 1,
                               .slots_count = 1,
                               .slot_bytes = 1,
                               .bytes = old,
                               .size = 4});
    pair_tell(&p, D, (struct control){.kind = CONTROL_ABORT, .epoch = 1, .error = ERR_TIMEOUT});
    pair_run(&p);
    pair_assert_states(&p, DSLINK_READY, DSLINK_READY);
    assert_int_equal(dslink_counts(p.s[D])->stale, 2);
    assert_int_equal(dslink_slots_count(p.s[D]), SLOTS);
    pair_stop(&p);

    pair_make_ready(&p, &posted); /* and one that has not begun is the peer's fault */
    pair_tell(&p, A,
              (struct control){.kind = CONTROL_PUSH, .epoch = 2, .number = 1, .payload_bytes = 1});
    pair_run(&p);
    assert_int_equal(dslink_error(p.s[A]), ERR_STATE);
    pair_stop(&p);
}

static void a_peer_that_says_what_it_may_not_is_left(void **state)
{
    (void)state;
    static const struct {
        int to;
        struct control m;
        enum err e;
    } row[] = {
        {A, {.kind = CONTROL_OPEN, .epoch = 1, .slots_count = 1, .slot_bytes = 1}, ERR_STATE},
        {A, {.kind = CONTROL_OPEN, .epoch = 2, .slots_count = 1, .slot_bytes = 1}, ERR_STATE},
        {A, {.kind = CONTROL_OFFER, .epoch = 1}, ERR_STATE},
        {A, {.kind = CONTROL_WARM, .epoch = 1}, ERR_STATE},
        {D, {.kind = CONTROL_WARM, .epoch = 1}, ERR_STATE},
        {D, {.kind = CONTROL_READY, .epoch = 1}, ERR_STATE},
        {A, {.kind = CONTROL_READY, .epoch = 1}, ERR_STATE},
        {A, {.kind = CONTROL_GRANT, .epoch = 1, .slots_mask = 1}, ERR_STATE},
        {D, {.kind = CONTROL_GRANT, .epoch = 1, .slots_mask = 1}, ERR_STATE},
        {D, {.kind = CONTROL_GRANT, .epoch = 1, .slots_mask = 8}, ERR_STATE},
        {D, {.kind = CONTROL_PUSH, .epoch = 1, .number = 1, .payload_bytes = 1}, ERR_STATE},
        {A, {.kind = CONTROL_PUSH, .epoch = 1, .number = 2, .payload_bytes = 1}, ERR_STATE},
        {A,
         {.kind = CONTROL_PUSH, .epoch = 1, .number = 1, .slot = 3, .payload_bytes = 1},
         ERR_STATE},
        {A,
         {.kind = CONTROL_PUSH, .epoch = 1, .number = 1, .payload_bytes = SLOT_BYTES + 1},
         ERR_FORMAT},
        {A, {.kind = CONTROL_DRAINED, .epoch = 1}, ERR_STATE},
        {D, {.kind = CONTROL_DRAINED, .epoch = 1}, ERR_STATE},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct pair p;
        pair_make_ready(&p, &posted);
        pair_tell(&p, row[i].to, row[i].m);
        pair_run(&p);
        if (dslink_error(p.s[row[i].to]) != row[i].e)
            fail_msg("row %zu: %s", i, err_name(dslink_error(p.s[row[i].to])));
        pair_assert_states(&p, DSLINK_CLOSED, DSLINK_CLOSED); /* the other one was told */
        assert_int_equal(dslink_error(p.s[!row[i].to]), ERR_PEER);
        pair_stop(&p);
    }
}

static void the_same_slot_cannot_be_announced_twice(void **state)
{
    (void)state;
    struct pair p;
    pair_make_ready(&p, &placed);
    struct control m = {.kind = CONTROL_PUSH, .epoch = 1, .number = 1, .payload_bytes = 1};
    pair_tell(&p, A, m);
    m.number = 2;
    pair_tell(&p, A, m);
    pair_run(&p);
    assert_int_equal(dslink_error(p.s[A]), ERR_STATE);
    pair_stop(&p);
}

static void nothing_is_taken_from_a_dialler_that_has_drained(void **state)
{
    (void)state;
    static const struct control after[] = {
        {.kind = CONTROL_PUSH, .epoch = 1, .number = 1, .payload_bytes = 1},
        {.kind = CONTROL_DRAINED, .epoch = 1},
    };
    for (int i = 0; i < 3; i++) {
        struct pair p;
        uint8_t frame[CONTROL_HEADER_BYTES];
        pair_make_ready(&p, &placed);
        pair_tell(&p, A, (struct control){.kind = CONTROL_DRAIN, .epoch = 1});
        if (i == 1) pair_tell(&p, A, after[1]);
        if (i < 2)
            pair_tell(&p, A, after[i]);
        else
            pair_put(&p, A, frame, control_frame_header(1, frame));
        p.mute = false;
        for (uint32_t n = p.count[A]; n > 0; n--) { /* in one go, before it answers */
            struct mail *m = &p.queue[A][p.first[A]];
            dslink_message(p.s[A], m->bytes, m->size, p.now_ns);
            p.first[A] = (p.first[A] + 1) % QUEUE;
            p.count[A]--;
        }
        assert_int_equal(dslink_error(p.s[A]), ERR_STATE);
        pair_stop(&p);
    }
}

static void other_transports_and_larger_slots_are_refused(void **state)
{
    (void)state;
    struct pair p;
    pair_start(&p, &posted);
    pair_tell(
        &p, A,
        (struct control){
            .kind = CONTROL_OPEN, .epoch = 1, .slots_count = 1, .slot_bytes = 1, .name = "other"});
    struct mail *m = &p.queue[A][0];
    dslink_message(p.s[A], m->bytes, m->size, p.now_ns);
    assert_int_equal(dslink_error(p.s[A]), ERR_UNSUPPORTED);
    pair_stop(&p);

    for (int more = 0; more < 2; more++) {
        pair_start(&p, &posted);
        struct control accept = {.kind = CONTROL_ACCEPT,
                                 .epoch = 1,
                                 .slots_count = SLOTS + (more == 0),
                                 .slot_bytes = SLOT_BYTES * 2 + (more == 1)};
        pair_tell(&p, D, accept);
        m = &p.queue[D][0];
        assert_int_equal(dslink_message(p.s[D], m->bytes, m->size, p.now_ns), ERR_FORMAT);
        assert_int_equal(dslink_state(p.s[D]), DSLINK_CLOSED);
        pair_stop(&p);
    }
}

static void what_has_come_whole_is_handed_out_after_the_channel_is_lost(void **state)
{
    (void)state;
    struct pair p;
    pair_make_ready(&p, &posted);
    pair_send_payload(&p, 1);
    pair_run(&p);
    pair_send_payload(&p, 2);
    pair_run(&p);
    p.hold_end = true;
    pair_send_payload(&p, 3);
    pair_run(&p);
    dslink_lost(p.s[A], ERR_PEER, "gone", p.now_ns);
    pair_run(&p);
    assert_int_equal(p.closes[A], 0); /* the payloads are there */
    assert_int_equal(pair_front(&p, A), 1);
    pair_release(&p, A);
    assert_int_equal(pair_front(&p, A), 2);
    pair_release(&p, A);
    assert_int_equal(pair_front(&p, A), 0);
    pair_run(&p);
    assert_int_equal(p.closes[A], 1);
    assert_int_equal(p.end[A], TRANSPORT_BROKEN);
    pair_stop(&p);
}

static void a_dialler_with_all_slots_back_leaves_in_order(void **state)
{
    (void)state;
    for (int busy = 0; busy < 2; busy++) {
        struct pair p;
        pair_make_ready(&p, &posted);
        pair_send_payload(&p, 1);
        pair_run(&p);
        assert_int_equal(pair_front(&p, A), 1);
        if (!busy) pair_release(&p, A);
        pair_run(&p);
        dslink_drain(p.s[D], p.now_ns);
        dslink_lost(p.s[D], ERR_CANCELLED, "closed", p.now_ns);
        pair_run(&p);
        assert_int_equal(p.end[D], busy ? TRANSPORT_BROKEN : TRANSPORT_DRAINED);
        pair_stop(&p);
    }
}

static void the_owner_may_close_in_every_state_of_setting_up(void **state)
{
    (void)state;
    for (int side = 0; side < SIDES; side++)
        for (int at = 0; at < 5; at++) {
            struct pair p;
            pair_start(&p, &posted);
            p.hold_open = at == 4;
            p.hold_join = at == 1 || at == 3;
            p.hold_end = at == 2;
            if (at > 0) pair_run(&p);
            if (at == 3) dslink_broken(p.s[D], ERR_DEVICE, "it fails", p.now_ns);
            if (at == 3) pair_run(&p);
            dslink_drain(p.s[side], p.now_ns);
            assert_int_equal(dslink_state(p.s[side]), DSLINK_CLOSED);
            assert_int_equal(dslink_error(p.s[side]), ERR_CANCELLED);
            pair_run(&p);
            assert_false(p.open[side]);
            if (at > 0) pair_assert_states(&p, DSLINK_CLOSED, DSLINK_CLOSED);
            pair_stop(&p);
        }
}

/* The acceptor has not said yet that it is there. */
static void an_offer_before_accept_was_told_is_refused(void **state)
{
    (void)state;
    for (int opened = 0; opened < 2; opened++) {
        struct pair p;
        pair_start(&p, &posted);
        p.hold_open = !opened;
        pair_step(&p, D);
        for (int i = 0; i < 2 + opened; i++)
            pair_step(&p, A);
        pair_assert_states(&p, DSLINK_OPENING, DSLINK_OFFERING);
        pair_tell(&p, A, (struct control){.kind = CONTROL_OFFER, .epoch = 1});
        dslink_message(p.s[A], p.queue[A][p.first[A]].bytes, p.queue[A][p.first[A]].size, p.now_ns);
        assert_int_equal(dslink_state(p.s[A]), DSLINK_CLOSED);
        assert_int_equal(dslink_error(p.s[A]), ERR_STATE);
        p.first[A]++, p.count[A]--;
        pair_run(&p);
        assert_false(p.open[A]);
        pair_stop(&p);
    }
}

/* ---- every event in every state ---- */

/* Both sides, and `side` in this state. False: it is not one of this side's. */
static bool bring(struct pair *p, int side, enum dslink_state state)
{
    bool joining = state == DSLINK_JOINING || state == DSLINK_ABORTED;
    pair_start(p, &posted);
    if (state == DSLINK_OPENING || state == DSLINK_ACCEPTING)
        return (state == DSLINK_OPENING) == (side == D);
    if (state == DSLINK_OFFERING) {
        pair_step(p, D);
        for (int i = 0; i < 4; i++)
            pair_step(p, A);
        return side == A;
    }
    p->hold_join = joining;
    p->hold_end = state == DSLINK_WARMING;
    pair_run(p);
    if (state == DSLINK_ABORTED) dslink_broken(p->s[side], ERR_DEVICE, "it fails", p->now_ns);
    p->mute = true;
    if (state == DSLINK_DRAINING) dslink_drain(p->s[side], p->now_ns);
    if (state == DSLINK_CLOSED) dslink_lost(p->s[side], ERR_PEER, "gone", p->now_ns);
    return true;
}

/* What becomes of each kind of message: r refused, d dropped, . something else. States in their order, those
 * of the other side left blank. */
static const char *const answers[SIDES][CONTROL_KINDS] = {
    [D] = {[CONTROL_OPEN] = "r  rrrrrd",
           [CONTROL_ACCEPT] = ".  rrrrdd",
           [CONTROL_OFFER] = "r  rrrrrd",
           [CONTROL_WARM] = "r  .rrrdd", /* WARMING: it was heard */
           [CONTROL_READY] = "r  r.rrdd",
           [CONTROL_PUSH] = "r  rrrrrd",
           [CONTROL_FRAME] = "r  rr..dd",
           [CONTROL_GRANT] = "r  rrrrdd", /* the slots are free */
           [CONTROL_DRAIN] = "r  rr..dd",
           [CONTROL_DRAINED] = "r  rrr.dd",
           [CONTROL_ABORT] = ".  ....dd"},
    [A] = {[CONTROL_OPEN] = " .rrrrr.d",
           [CONTROL_ACCEPT] = " rrrrrrrd",
           [CONTROL_OFFER] = " r.rrrrdd",
           [CONTROL_WARM] = " rrrrrrdd",
           [CONTROL_READY] = " rrrrrrrd",
           [CONTROL_PUSH] = " rrrr..dd",
           [CONTROL_FRAME] = " rrrr..dd",
           [CONTROL_GRANT] = " rrrrrrrd",
           [CONTROL_DRAIN] = " rrrr..dd",
           [CONTROL_DRAINED] = " rrrrr.dd",
           [CONTROL_ABORT] = " r.....dd"},
};

static size_t any_message(const struct dslink *s, enum control_kind kind, uint8_t *bytes)
{
    uint32_t epoch = dslink_epoch(s) + (kind == CONTROL_OPEN);
    struct control m = {.kind = kind,
                        .epoch = epoch ? epoch : 1,
                        .slots_count = 1,
                        .slot_bytes = 1,
                        .name = "posted",
                        .number = 1,
                        .payload_bytes = 1,
                        .slots_mask = 1,
                        .error = ERR_DEVICE};
    return kind == CONTROL_FRAME ? control_frame_header(m.epoch, bytes) : control_print(&m, bytes);
}

static void hear(struct pair *p, int side, enum control_kind kind)
{
    uint8_t bytes[CONTROL_BYTES_MAX];
    struct dslink *s = p->s[side];
    enum dslink_state before = dslink_state(s);
    enum err e = dslink_message(s, bytes, any_message(s, kind, bytes), p->now_ns);
    char answer = answers[side][kind][before];
    bool as_said = answer == 'r'   ? e == ERR_STATE && dslink_state(s) == DSLINK_CLOSED
                   : answer == 'd' ? e == OK && dslink_state(s) == before
                                   : e == OK || e == ERR_AGAIN;
    if (!as_said)
        fail_msg("%s in state %s: %s", control_name(kind), dslink_state_name(before), err_name(e));
}

/* Something other than a message. */
static void meet(struct pair *p, int side, enum dslink_event event)
{
    struct dslink *s = p->s[side];
    enum dslink_state before = dslink_state(s);
    bool has_transport = before >= DSLINK_OFFERING && before <= DSLINK_DRAINING;
    if (event == DSLINK_EV_BROKEN && has_transport) {
        dslink_broken(s, ERR_DEVICE, "it fails", p->now_ns);
        assert_int_equal(dslink_state(s), before < DSLINK_READY ? DSLINK_ABORTED : DSLINK_CLOSED);
    } else if (event == DSLINK_EV_LOST) {
        dslink_lost(s, ERR_PEER, "gone", p->now_ns);
        assert_int_equal(dslink_state(s), DSLINK_CLOSED);
    } else if (event == DSLINK_EV_DEADLINE && dslink_wake_at(s) != TIME_NEVER) {
        dslink_timer(s, dslink_wake_at(s));
        assert_int_not_equal(dslink_state(s), before);
    } else if (event == DSLINK_EV_DRAIN) {
        dslink_drain(s, p->now_ns);
        assert_int_equal(dslink_state(s), before == DSLINK_READY || before == DSLINK_DRAINING
                                              ? DSLINK_DRAINING
                                              : DSLINK_CLOSED);
    }
}

static void every_event_in_every_state_is_answered(void **state)
{
    (void)state;
    static uint32_t met[SIDES][DSLINK_STATES][DSLINK_EVENTS];
    for (int side = 0; side < SIDES; side++)
        for (enum dslink_state s = 0; s < DSLINK_STATES; s++)
            for (enum dslink_event e = 1; e < DSLINK_EVENTS; e++) {
                struct pair p;
                if (bring(&p, side, s)) {
                    assert_int_equal(dslink_state(p.s[side]), s);
                    if (e < DSLINK_EV_JOINED)
                        hear(&p, side, (enum control_kind)e);
                    else
                        meet(&p, side, e);
                    met[side][s][e] += dslink_counts(p.s[side])->met[s][e];
                }
                pair_stop(&p);
            }
    for (int side = 0; side < SIDES; side++) /* what the simulator leaves to this test */
        for (enum dslink_state s = 0; s < DSLINK_STATES; s++)
            for (enum dslink_event e = 1; e < DSLINK_EVENTS; e++)
                if (links_reached_mark(side == D, e, s) == 'u' && met[side][s][e] == 0)
                    fail_msg("not met: %s in state %s", dslink_event_name(e), dslink_state_name(s));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_sides_become_ready_with_the_smaller_slots),
        cmocka_unit_test(frames_come_in_order_with_and_without_payload),
        cmocka_unit_test(a_slot_is_granted_again_when_its_frame_was_released),
        cmocka_unit_test(operations_wait_for_their_turn),
        cmocka_unit_test(a_session_drains_from_either_side),
        cmocka_unit_test(each_wait_ends_at_its_deadline),
        cmocka_unit_test(the_offer_of_a_silent_dialler_is_not_awaited_for_ever),
        cmocka_unit_test(what_no_try_would_change_is_tried_once),
        cmocka_unit_test(a_try_that_fails_is_followed_by_two_more),
        cmocka_unit_test(messages_of_an_older_epoch_are_dropped_and_counted),
        cmocka_unit_test(a_peer_that_says_what_it_may_not_is_left),
        cmocka_unit_test(the_same_slot_cannot_be_announced_twice),
        cmocka_unit_test(nothing_is_taken_from_a_dialler_that_has_drained),
        cmocka_unit_test(other_transports_and_larger_slots_are_refused),
        cmocka_unit_test(what_has_come_whole_is_handed_out_after_the_channel_is_lost),
        cmocka_unit_test(a_dialler_with_all_slots_back_leaves_in_order),
        cmocka_unit_test(the_owner_may_close_in_every_state_of_setting_up),
        cmocka_unit_test(an_offer_before_accept_was_told_is_refused),
        cmocka_unit_test(every_event_in_every_state_is_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
