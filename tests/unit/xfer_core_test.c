/* Tickets of the transfer's core, on virtual time. */
#include "tests/unit/xfer_sides.h"

#include "common/mem.h"
#include "common/rng.h"

static void a_transfer_goes_through(void **state)
{
    (void)state;
    struct side p, d;
    sides_start(&p, &d);
    push_all(&p, 1, 2);
    settle(&p, &d, 3);
    assert_false(has_ended(&d, 1));
    side_op(&p, (struct xfer_op){.kind = XFER_COMMIT, .ticket = ticket(1), .first = {.token = 9}},
            4);
    settle(&p, &d, 5);
    assert_ended(&d, 1, XFER_COMMITTED, OK);
    assert_ended(&p, 1, XFER_DONE, OK);
    assert_int_equal(d.event[0].first.token, 9);
    assert_int_equal(d.event[0].ended_ns, 5);
    assert_int_equal(xfer_core_tickets_count(p.core) + xfer_core_tickets_count(d.core), 0);
    sides_end(&p, &d);
}

/* Of two layers the first one is half. */
static void a_ticket_that_arrives_is_told_once_if_that_is_wanted(void **state)
{
    (void)state;
    const struct xfer_core_options o = {.geometry = geometry,
                                        .tickets_max = 4,
                                        .handshake_ns = HANDSHAKE,
                                        .idle_close_ns = IDLE,
                                        .arrivals = true};
    struct side p, d;
    side_new(&p);
    memset(&d, 0, sizeof d);
    assert_ok(xfer_core_new(&d.core, &o));
    op_simple(&d, XFER_EXPECT, 1, 1);
    op_simple(&p, XFER_OPEN, 1, 1);
    connect_sides(&p, &d, 1 << 20, 1);
    struct xfer_op push = {.kind = XFER_PUSH, .ticket = ticket(1), .tokens_end = 32};
    for (uint32_t part = 0; part < 2; part++, push.tokens_first = 32, push.tokens_end = 40)
        for (push.layer = 0; push.layer < LAYERS; push.layer++) {
            side_op(&p, push, 2);
            settle(&p, &d, 2);
            side_act(&d);
            assert_int_equal(d.events_count, part);
        }
    assert_int_equal(d.event[0].kind, XFER_ARRIVING);
    assert_true(id128_equal(d.event[0].ticket, ticket(1)));
    assert_false(has_ended(&p, 1));
    op_simple(&p, XFER_COMMIT, 1, 3);
    settle(&p, &d, 3);
    side_act(&d);
    assert_int_equal(d.events_count, 2);
    assert_int_equal(d.event[1].kind, XFER_COMMITTED);
    sides_end(&p, &d);
}

static void a_range_is_sent_three_times_at_most(void **state)
{
    (void)state;
    for (int bad = 0; bad <= 3; bad++) {
        struct side p, d;
        struct frame f;
        int spoiled = 0;
        sides_start(&p, &d);
        push_all(&p, 1, 2);
        op_simple(&p, XFER_COMMIT, 1, 2);
        for (bool more = true; more;) {
            more = false;
            while (say(&p, &f, 3)) {
                more = true;
                bool spoil = f.kind == FRAME_DATA && f.range.layer == 1 && spoiled < bad;
                spoiled += spoil;
                assert_ok(hear(&d, &f, !spoil, 3));
            }
            while (say(&d, &f, 3)) {
                more = true;
                assert_ok(hear(&p, &f, true, 3));
            }
        }
        assert_int_equal(spoiled, bad);
        assert_ended(&d, 1, bad < 3 ? XFER_COMMITTED : XFER_FAILED, bad < 3 ? OK : ERR_FORMAT);
        assert_ended(&p, 1, bad < 3 ? XFER_DONE : XFER_FAILED, bad < 3 ? OK : ERR_FORMAT);
        assert_int_equal(xfer_core_counts(d.core).frames_refused, bad);
        sides_end(&p, &d);
    }
}

/* The sender counts too: a receiver that refuses whatever comes does not keep it for ever. */
static void a_receiver_that_refuses_all_is_sent_it_three_times(void **state)
{
    (void)state;
    struct side p, d;
    struct frame f;
    uint32_t sent = 0;
    sides_start(&p, &d);
    push_all(&p, 1, 2);
    while (say(&p, &f, 3)) {
        if (f.kind != FRAME_DATA || f.range.layer != 1 || f.range.tokens_first != 0) continue;
        struct frame refuse = {.kind = FRAME_REFUSE, .ticket = f.ticket, .range = f.range};
        assert_int_equal(f.range.attempt, sent++);
        assert_ok(hear(&p, &refuse, true, 3));
    }
    assert_int_equal(sent, FRAME_TRIES_MAX);
    assert_ended(&p, 1, XFER_FAILED, ERR_FORMAT);
    sides_end(&p, &d);
}

static void no_more_is_sent_than_was_granted(void **state)
{
    (void)state;
    struct side p, d;
    struct frame f;
    side_new(&p);
    side_new(&d);
    op_simple(&d, XFER_EXPECT, 1, 1);
    op_simple(&p, XFER_OPEN, 1, 1);
    uint64_t frame_bytes = 3 * kv_layer_bytes(&geometry); /* 40 tokens of a layer */
    connect_sides(&p, &d, frame_bytes, 1);
    settle(&p, &d, 1);
    push_all(&p, 1, 2);
    assert_true(say(&p, &f, 2));
    assert_int_equal(f.kind, FRAME_DATA);
    assert_int_equal(f.payload_bytes, frame_bytes);
    struct frame second;
    assert_false(say(&p, &second, 2)); /* the window is full */
    op_simple(&p, XFER_CANCEL, 1, 3);  /* what is no payload goes nevertheless */
    assert_true(say(&p, &second, 3));
    assert_int_equal(second.kind, FRAME_FAIL);
    assert_ok(hear(&d, &f, true, 4));
    assert_true(say(&d, &f, 4));
    assert_int_equal(f.kind, FRAME_CREDIT);
    assert_int_equal(f.window_bytes, frame_bytes);
    sides_end(&p, &d);
}

/* Little was taken in, too little for a quarter of the window, and the next frame needs all of it. */
static void the_longest_frame_gets_its_credit(void **state)
{
    (void)state;
    struct side p, d;
    side_new(&p);
    side_new(&d);
    for (uint64_t n = 1; n <= 2; n++) {
        uint32_t tokens = n == 1 ? 16 : BLOCKS * BLOCK_TOKENS;
        for (int i = 0; i < 2; i++)
            side_op(i == 0 ? &d : &p,
                    (struct xfer_op){.kind = i == 0 ? XFER_EXPECT : XFER_OPEN,
                                     .ticket = ticket(n),
                                     .tokens_end = tokens},
                    1);
        if (n == 1) connect_sides(&p, &d, BLOCKS * kv_layer_bytes(&geometry), 1);
        settle(&p, &d, 1);
        for (uint32_t layer = 0; layer < LAYERS; layer++)
            side_op(
                &p,
                (struct xfer_op){
                    .kind = XFER_PUSH, .ticket = ticket(n), .tokens_end = tokens, .layer = layer},
                2);
        op_simple(&p, XFER_COMMIT, n, 2);
        settle(&p, &d, 3);
        assert_ended(&p, n, XFER_DONE, OK);
    }
    sides_end(&p, &d);
}

/* Links of devices have windows of tens of megabytes: a rate is not to wait for a quarter of one, at first
 * least of all. */
static void credit_comes_soon_and_soonest_at_first(void **state)
{
    (void)state;
    struct side p, d;
    struct frame f;
    uint64_t taken_bytes = 0, ungranted_bytes = 0, most_bytes[2] = {0, 0};
    side_new(&p);
    side_new(&d);
    for (uint64_t n = 1; taken_bytes < 24 << 20; n++) {
        op_simple(&d, XFER_EXPECT, n, 1);
        op_simple(&p, XFER_OPEN, n, 1);
        if (n == 1) connect_sides(&p, &d, 64 << 20, 1);
        push_all(&p, n, 2);
        op_simple(&p, XFER_COMMIT, n, 2);
        for (bool more = true; more;) {
            more = false;
            for (; say(&p, &f, 3); more = true) {
                uint64_t bytes = f.kind == FRAME_DATA ? f.payload_bytes : 0;
                taken_bytes += bytes;
                ungranted_bytes += bytes;
                assert_ok(hear(&d, &f, true, 3));
            }
            bool late = taken_bytes > 16 << 20;
            if (ungranted_bytes > most_bytes[late]) most_bytes[late] = ungranted_bytes;
            for (; say(&d, &f, 3); more = true) {
                if (f.kind == FRAME_CREDIT) ungranted_bytes -= f.window_bytes;
                assert_ok(hear(&p, &f, true, 3));
            }
        }
        side_act(&p);
        side_act(&d);
        p.events_count = d.events_count = 0;
    }
    assert_in_range(most_bytes[0], 64 << 10, 80 << 10);
    assert_in_range(most_bytes[1], 1 << 20, (1 << 20) + (16 << 10));
    sides_end(&p, &d);
}

static void a_ticket_without_credit_leaves_nothing_in_the_frame_of_the_next(void **state)
{
    (void)state;
    struct side p, d;
    struct frame f;
    side_new(&p);
    side_new(&d);
    op_simple(&d, XFER_EXPECT, 1, 1);
    op_simple(&p, XFER_OPEN, 1, 1);
    connect_sides(&p, &d, 1, 1); /* no payload fits at all */
    settle(&p, &d, 1);
    push_all(&p, 1, 2);
    op_simple(&p, XFER_OPEN, 2, 2);
    assert_true(say(&p, &f, 2)); /* say() fails if the frame carries blocks */
    assert_int_equal(f.kind, FRAME_OPEN);
    assert_false(say(&p, &f, 2));
    sides_end(&p, &d);
}

/* A long prompt takes longer to compute than anybody should wait for nothing. */
static void a_deadline_moves_on_with_what_travels(void **state)
{
    (void)state;
    struct side p, d, *side[] = {&d, &p};
    side_new(&p);
    side_new(&d);
    for (int i = 0; i < 2; i++)
        side_op(side[i],
                (struct xfer_op){.kind = i == 0 ? XFER_EXPECT : XFER_OPEN,
                                 .ticket = ticket(1),
                                 .tokens_end = 40,
                                 .deadline_ns = 10 * NS_PER_S,
                                 .silence_ns = 10 * NS_PER_S},
                1);
    connect_sides(&p, &d, 1 << 20, 1);
    settle(&p, &d, 1);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint64_t now = (8 + 8 * layer) * NS_PER_S;
        for (int i = 0; i < 2; i++) {
            xfer_core_timer(side[i]->core, now);
            side_act(side[i]);
            assert_false(has_ended(side[i], 1));
        }
        side_op(&p,
                (struct xfer_op){
                    .kind = XFER_PUSH, .ticket = ticket(1), .tokens_end = 40, .layer = layer},
                now);
        settle(&p, &d, now);
    }
    for (int i = 0; i < 2; i++) {
        xfer_core_timer(side[i]->core, 26 * NS_PER_S - 1);
        side_act(side[i]);
        assert_false(has_ended(side[i], 1));
        xfer_core_timer(side[i]->core, 26 * NS_PER_S);
        assert_ended(side[i], 1, XFER_FAILED, ERR_TIMEOUT);
    }
    sides_end(&p, &d);
}

/* How each waiting state ends when the other side is gone or silent, and what is told to it. */
enum stage { CONNECTING, OPENED, PUSHED, COMMITTING, STAGES };
enum blow { LOST, TIMEOUT, CANCEL, RELEASE, STOP, BLOWS };

static void bring_to(struct side *p, struct side *d, enum stage stage)
{
    struct frame f;
    side_new(p);
    side_new(d);
    op_simple(d, XFER_EXPECT, 1, 1);
    op_simple(p, XFER_OPEN, 1, 1);
    if (stage == CONNECTING) return;
    connect_sides(p, d, 1 << 20, 1);
    settle(p, d, 1);
    if (stage == OPENED) return;
    push_all(p, 1, 2);
    settle(p, d, 2);
    if (stage == PUSHED) return;
    op_simple(p, XFER_COMMIT, 1, 3);
    while (say(p, &f, 3)) /* COMMIT is out and stays on the wire */
        continue;
}

static void strike(struct side *p, struct side *d, enum blow blow)
{
    switch (blow) {
    case LOST:
        for (int i = 0; i < 2 && p->session; i++) { /* two addresses while it connects */
            xfer_core_lost(p->core, p->session, ERR_PEER, "gone", 5);
            side_act(p);
        }
        if (d->session) xfer_core_lost(d->core, d->session, ERR_PEER, "gone", 5);
        break;
    case TIMEOUT:
        xfer_core_timer(p->core, DEADLINE);
        xfer_core_timer(d->core, DEADLINE);
        break;
    case CANCEL: op_simple(p, XFER_CANCEL, 1, 5); break;
    case RELEASE: op_simple(d, XFER_RELEASE, 1, 5); break;
    default: xfer_core_stop(p->core, 5); xfer_core_stop(d->core, 5);
    }
    side_act(p);
    side_act(d);
}

static void every_state_has_a_way_out(void **state)
{
    (void)state;
    struct {
        enum xfer_event_kind kind;
        enum err error;
    } at_p[BLOWS] = {{XFER_FAILED, ERR_PEER},
                     {XFER_FAILED, ERR_TIMEOUT},
                     {XFER_CANCELLED, OK},
                     {XFER_FAILED, ERR_CANCELLED}, /* told by D */
                     {XFER_FAILED, ERR_CANCELLED}},
      at_d[BLOWS] = {{XFER_FAILED, ERR_PEER},
                     {XFER_FAILED, ERR_TIMEOUT},
                     {XFER_FAILED, ERR_CANCELLED}, /* told by P */
                     {XFER_RELEASED, OK},
                     {XFER_FAILED, ERR_CANCELLED}};
    for (enum stage stage = 0; stage < STAGES; stage++)
        for (enum blow blow = 0; blow < BLOWS; blow++) {
            struct side p, d;
            bring_to(&p, &d, stage);
            strike(&p, &d, blow);
            bool met = stage != CONNECTING;
            if (met && p.session && d.session) settle(&p, &d, 6);
            if (met || blow != RELEASE) assert_ended(&p, 1, at_p[blow].kind, at_p[blow].error);
            if (met || (blow != LOST && blow != CANCEL))
                assert_ended(&d, 1, at_d[blow].kind, at_d[blow].error);
            op_simple(&p, XFER_CANCEL, 1, 7); /* ops for what has ended are ignored */
            op_simple(&d, XFER_RELEASE, 1, 7);
            assert_true(p.events_count <= 1 && d.events_count == 1);
            sides_end(&p, &d);
        }
}

static void frames_of_the_dead_are_counted_and_harmless(void **state)
{
    (void)state;
    struct side p, d;
    struct frame data[LAYERS], f;
    sides_start(&p, &d);
    push_all(&p, 1, 2);
    for (int i = 0; i < LAYERS; i++)
        assert_true(say(&p, &data[i], 2));
    assert_ok(hear(&d, &data[0], true, 3));
    assert_ok(hear(&d, &data[0], true, 3)); /* again: a verified range is not written twice */
    assert_int_equal(xfer_core_counts(d.core).frames_dead, 1);
    op_simple(&d, XFER_RELEASE, 1, 4);
    assert_ok(hear(&d, &data[1], true, 4)); /* late */
    assert_int_equal(xfer_core_counts(d.core).frames_dead, 2);
    while (say(&d, &f, 4))
        assert_ok(hear(&p, &f, true, 4));
    assert_ended(&p, 1, XFER_FAILED, ERR_CANCELLED);
    f = (struct frame){.kind = FRAME_REFUSE, .ticket = ticket(1), .range = data[0].range};
    assert_ok(hear(&p, &f, true, 5));
    assert_int_equal(xfer_core_counts(p.core).frames_dead, 1);
    sides_end(&p, &d);
}

static void tickets_take_turns(void **state)
{
    (void)state;
    struct side p, d;
    struct frame f;
    sides_start(&p, &d);
    op_simple(&d, XFER_EXPECT, 2, 2);
    op_simple(&p, XFER_OPEN, 2, 2);
    settle(&p, &d, 2);
    push_all(&p, 1, 3);
    push_all(&p, 2, 3);
    uint64_t order[] = {1, 2, 1, 2};
    for (int i = 0; i < 4; i++) {
        assert_true(say(&p, &f, 3));
        assert_int_equal(f.ticket.lo, order[i]);
    }
    sides_end(&p, &d);
}

/* Whatever is lost, spoiled, cancelled or late: one event per ticket and side, and D commits only
 * what P committed. A seed is a run. */
enum { SEEDS = 150, STEPS = 300, TICKETS = 5 };

struct run {
    struct side p, d;
    bool pushed[TICKETS + 1], committed[TICKETS + 1];
    uint64_t now;
};

static void random_op(struct run *w, struct rng_block r, uint64_t n)
{
    bool rare = r.word[2] % 8 == 0;
    switch (r.word[0] % 8) {
    case 0:
        if (rare) op_simple(&w->p, XFER_CANCEL, n, w->now);
        break;
    case 1:
        if (rare) op_simple(&w->d, XFER_RELEASE, n, w->now);
        break;
    case 2:
        if (r.word[2] % 64 != 0 || !w->p.session) break;
        xfer_core_lost(w->p.core, w->p.session, ERR_PEER, "cut", w->now);
        if (w->d.session) xfer_core_lost(w->d.core, w->d.session, ERR_PEER, "cut", w->now);
        w->p.session = w->d.session = NULL;
        break;
    default:
        if (!w->pushed[n] || rare)
            push_all(&w->p, n, w->now); /* rarely a second time */
        else if (!w->committed[n])
            op_simple(&w->p, XFER_COMMIT, n, w->now);
        w->committed[n] = w->pushed[n];
        w->pushed[n] = true;
    }
}

static void random_step(struct run *w, struct rng_block r)
{
    struct frame f;
    uint32_t what = r.word[3] % 16;
    if (what < 4)
        random_op(w, r, 1 + r.word[1] % TICKETS);
    else if (what < 8 && say(&w->d, &f, w->now) && w->p.session)
        hear(&w->p, &f, true, w->now);
    else if (what >= 8 && say(&w->p, &f, w->now) && w->d.session)
        hear(&w->d, &f, r.word[1] % 6 != 0, w->now);
    xfer_core_timer(w->p.core, w->now);
    xfer_core_timer(w->d.core, w->now);
    side_act(&w->p);
    side_act(&w->d);
    w->now += 2;
}

/* Whoever is done at P is committed at D; returns how many. */
static uint32_t count_done(const struct run *w)
{
    uint32_t done = 0;
    for (uint32_t i = 0; i < TICKETS; i++) {
        if (w->p.event[i].kind != XFER_DONE) continue;
        done++;
        for (uint32_t j = 0; j < TICKETS; j++)
            if (id128_equal(w->p.event[i].ticket, w->d.event[j].ticket))
                assert_int_equal(w->d.event[j].kind, XFER_COMMITTED);
    }
    return done;
}

static void random_runs_end_every_ticket_once(void **state)
{
    (void)state;
    uint32_t done = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct run w = {.now = 1};
        side_new(&w.p);
        side_new(&w.d);
        for (uint64_t n = 1; n <= TICKETS; n++) {
            uint64_t deadline = 100 + rng_draw(seed, 9, n).word[0] % 600;
            struct xfer_op op = {.ticket = ticket(n), .tokens_end = 40, .deadline_ns = deadline};
            op.kind = XFER_EXPECT;
            side_op(&w.d, op, w.now);
            op.kind = XFER_OPEN;
            side_op(&w.p, op, w.now);
        }
        connect_sides(&w.p, &w.d, 2000, w.now);
        for (uint32_t step = 0; step < STEPS; step++)
            random_step(&w, rng_draw(seed, 1, step));
        w.now = 1000;
        random_step(&w, rng_draw(seed, 1, STEPS)); /* all deadlines have passed */
        assert_int_equal(w.p.events_count, TICKETS);
        assert_int_equal(w.d.events_count, TICKETS);
        done += count_done(&w);
        sides_end(&w.p, &w.d);
    }
    /* The runs are neither a walkover nor a massacre. */
    assert_true(done > SEEDS * TICKETS / 8 && done < SEEDS * TICKETS * 7 / 8);
}

static void a_failed_allocation_is_an_error_and_loses_nothing(void **state)
{
    (void)state;
    const struct xfer_core_options o = {.geometry = geometry, .tickets_max = 4};
    for (uint64_t n = 1;; n++) {
        struct xfer_core *core;
        mem_fail_at(n);
        enum err e = xfer_core_new(&core, &o);
        mem_fail_at(0);
        xfer_core_free(core);
        if (e == OK) break;
        assert_int_equal(e, ERR_MEMORY);
        assert_null(core);
    }
    struct side p;
    struct xfer_message m;
    struct xfer_op op = {
        .kind = XFER_OPEN, .ticket = ticket(1), .tokens_end = 40, .addresses = &two_addresses};
    side_new(&p);
    assert_ok(xfer_message_new(&op, &geometry, BLOCKS, &m));
    mem_fail_at(1); /* the session */
    xfer_core_op(p.core, &m, 1);
    mem_fail_at(0);
    assert_ended(&p, 1, XFER_FAILED, ERR_MEMORY);
    xfer_core_free(p.core);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_transfer_goes_through),
        cmocka_unit_test(a_ticket_that_arrives_is_told_once_if_that_is_wanted),
        cmocka_unit_test(a_range_is_sent_three_times_at_most),
        cmocka_unit_test(a_receiver_that_refuses_all_is_sent_it_three_times),
        cmocka_unit_test(no_more_is_sent_than_was_granted),
        cmocka_unit_test(a_deadline_moves_on_with_what_travels),
        cmocka_unit_test(the_longest_frame_gets_its_credit),
        cmocka_unit_test(credit_comes_soon_and_soonest_at_first),
        cmocka_unit_test(a_ticket_without_credit_leaves_nothing_in_the_frame_of_the_next),
        cmocka_unit_test(every_state_has_a_way_out),
        cmocka_unit_test(frames_of_the_dead_are_counted_and_harmless),
        cmocka_unit_test(tickets_take_turns),
        cmocka_unit_test(random_runs_end_every_ticket_once),
        cmocka_unit_test(a_failed_allocation_is_an_error_and_loses_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
