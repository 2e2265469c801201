#include "tests/unit/testing.h"

#include "common/clock.h"
#include "proto/session.h"

enum { ME = 11, OTHER = 22, STRANGER = 33, EPOCH = 5 };
enum { BEAT = 200, DEAD = 3000, RETRY = 250, LIFELINE = 2000 };

static const struct session_limits limits = {BEAT, DEAD, RETRY, LIFELINE};

static struct msg message(enum msg_kind kind, uint64_t epoch, uint64_t from, uint64_t to)
{
    return (struct msg){.kind = kind, .envelope = {epoch, from, to, 0}};
}

/* A session in `state` since time 1000, with epoch EPOCH once it has been up. */
static struct session session_in(enum session_side side, enum session_state state)
{
    struct session s;
    struct msg hello = message(MSG_HELLO, 0, OTHER, 0), bye = message(MSG_BYE, EPOCH, OTHER, ME);
    struct msg welcome = message(MSG_WELCOME, EPOCH, OTHER, ME);
    session_init(&s, side, ME, &limits);
    if (state == SESSION_IDLE) return s;
    if (side == SESSION_DIALER)
        session_start(&s, 1000);
    else
        assert_int_equal(session_on_message(&s, 1000, &hello), SESSION_GREETED);
    if (state == SESSION_GREETING) return s;
    if (side == SESSION_DIALER)
        assert_int_equal(session_on_message(&s, 1000, &welcome), SESSION_BECAME_UP);
    else
        session_accept(&s, &hello, EPOCH, 1000);
    if (state == SESSION_UP) return s;
    assert_int_equal(session_on_message(&s, 1000, &bye), SESSION_BECAME_DOWN);
    return s;
}

enum event {
    NO_EVENT,
    HELLO_FIRST,   /* a dialer that knows nothing of us */
    HELLO_OLD,     /* sent before the WELCOME of this session */
    HELLO_AGAIN,   /* by a dialer that has given this session up */
    HELLO_NEW,     /* a new life of the dialer */
    HELLO_NOBODY,  /* incarnation 0 */
    WELCOME_FIRST, /* EPOCH */
    WELCOME_NEXT,  /* EPOCH + 1 */
    WELCOME_OTHER, /* to another life of ours */
    WELCOME_ZERO,
    REFUSE_ME,
    REFUSE_OTHER,
    DELIVERABLE,
    STALE_EPOCH,
    STALE_FROM,
    STALE_TO,
    BYE,
    BYE_STALE,
    EVENTS
};

static struct msg event_message(enum event e)
{
    switch (e) {
    case HELLO_FIRST:
    case HELLO_OLD: return message(MSG_HELLO, 0, OTHER, 0);
    case HELLO_AGAIN: return message(MSG_HELLO, EPOCH, OTHER, ME);
    case HELLO_NEW: return message(MSG_HELLO, 0, STRANGER, 0);
    case HELLO_NOBODY: return message(MSG_HELLO, 0, 0, 0);
    case WELCOME_FIRST: return message(MSG_WELCOME, EPOCH, OTHER, ME);
    case WELCOME_NEXT: return message(MSG_WELCOME, EPOCH + 1, OTHER, ME);
    case WELCOME_OTHER: return message(MSG_WELCOME, EPOCH + 1, OTHER, STRANGER);
    case WELCOME_ZERO: return message(MSG_WELCOME, 0, OTHER, ME);
    case REFUSE_ME: return message(MSG_REFUSE, 0, OTHER, ME);
    case REFUSE_OTHER: return message(MSG_REFUSE, 0, OTHER, STRANGER);
    case STALE_EPOCH: return message(MSG_HEARTBEAT, EPOCH - 1, OTHER, ME);
    case STALE_FROM: return message(MSG_HEARTBEAT, EPOCH, STRANGER, ME);
    case STALE_TO: return message(MSG_HEARTBEAT, EPOCH, OTHER, STRANGER);
    case BYE: return message(MSG_BYE, EPOCH, OTHER, ME);
    case BYE_STALE: return message(MSG_BYE, EPOCH - 1, OTHER, ME);
    default: return message(MSG_HEARTBEAT, EPOCH, OTHER, ME);
    }
}

struct row {
    enum session_side side;
    enum session_state from;
    enum event event;
    enum session_verdict verdict;
    enum session_state to;
};

/* Every (side, state, event) that does something; all others drop the message and stay. */
static const struct row rows[] = {
    {SESSION_ACCEPTOR, SESSION_IDLE, HELLO_FIRST, SESSION_GREETED, SESSION_GREETING},
    {SESSION_ACCEPTOR, SESSION_IDLE, HELLO_OLD, SESSION_GREETED, SESSION_GREETING},
    {SESSION_ACCEPTOR, SESSION_IDLE, HELLO_AGAIN, SESSION_GREETED, SESSION_GREETING},
    {SESSION_ACCEPTOR, SESSION_IDLE, HELLO_NEW, SESSION_GREETED, SESSION_GREETING},
    {SESSION_ACCEPTOR, SESSION_GREETING, HELLO_FIRST, SESSION_GREETED, SESSION_GREETING},
    {SESSION_ACCEPTOR, SESSION_GREETING, HELLO_OLD, SESSION_GREETED, SESSION_GREETING},
    {SESSION_ACCEPTOR, SESSION_GREETING, HELLO_AGAIN, SESSION_GREETED, SESSION_GREETING},
    {SESSION_ACCEPTOR, SESSION_GREETING, HELLO_NEW, SESSION_GREETED, SESSION_GREETING},
    {SESSION_ACCEPTOR, SESSION_UP, HELLO_AGAIN, SESSION_BECAME_DOWN, SESSION_DOWN},
    {SESSION_ACCEPTOR, SESSION_UP, HELLO_NEW, SESSION_BECAME_DOWN, SESSION_DOWN},
    {SESSION_ACCEPTOR, SESSION_UP, DELIVERABLE, SESSION_DELIVER, SESSION_UP},
    {SESSION_ACCEPTOR, SESSION_UP, BYE, SESSION_BECAME_DOWN, SESSION_DOWN},
    {SESSION_ACCEPTOR, SESSION_DOWN, HELLO_FIRST, SESSION_GREETED, SESSION_GREETING},
    {SESSION_ACCEPTOR, SESSION_DOWN, HELLO_OLD, SESSION_GREETED, SESSION_GREETING},
    {SESSION_ACCEPTOR, SESSION_DOWN, HELLO_AGAIN, SESSION_GREETED, SESSION_GREETING},
    {SESSION_ACCEPTOR, SESSION_DOWN, HELLO_NEW, SESSION_GREETED, SESSION_GREETING},
    {SESSION_DIALER, SESSION_GREETING, WELCOME_FIRST, SESSION_BECAME_UP, SESSION_UP},
    {SESSION_DIALER, SESSION_GREETING, WELCOME_NEXT, SESSION_BECAME_UP, SESSION_UP},
    {SESSION_DIALER, SESSION_GREETING, REFUSE_ME, SESSION_BECAME_DOWN, SESSION_DOWN},
    {SESSION_DIALER, SESSION_UP, WELCOME_NEXT, SESSION_BECAME_DOWN, SESSION_DOWN},
    {SESSION_DIALER, SESSION_UP, DELIVERABLE, SESSION_DELIVER, SESSION_UP},
    {SESSION_DIALER, SESSION_UP, BYE, SESSION_BECAME_DOWN, SESSION_DOWN},
};

static struct row expected(enum session_side side, enum session_state from, enum event event)
{
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].side == side && rows[i].from == from && rows[i].event == event) return rows[i];
    return (struct row){side, from, event, SESSION_DROP, from};
}

static void every_message_in_every_state_does_what_the_table_says(void **state)
{
    (void)state;
    for (int side = SESSION_DIALER; side <= SESSION_ACCEPTOR; side++)
        for (int from = SESSION_IDLE; from <= SESSION_DOWN; from++)
            for (int event = HELLO_FIRST; event < EVENTS; event++) {
                struct session s = session_in(side, from);
                struct msg m = event_message(event);
                struct row want = expected(side, from, event);
                enum session_verdict got = session_on_message(&s, 1100, &m);
                if (got != want.verdict || s.state != want.to)
                    fail_msg("side %d state %d event %d: verdict %d state %d", side, from, event,
                             got, s.state);
            }
}

static void a_refused_dialer_greets_again_slowly(void **state)
{
    (void)state;
    struct session s = session_in(SESSION_DIALER, SESSION_GREETING);
    struct msg refuse = event_message(REFUSE_ME);
    session_on_message(&s, 1100, &refuse);
    assert_string_equal(s.down_reason, "refused");
    struct session_due t = session_on_timer(&s, 1100 + DEAD - 1);
    assert_false(t.hello);
    assert_true(t.wake_ns == 1100 + DEAD);
    assert_true(session_on_timer(&s, 1100 + DEAD).hello);
}

static void a_dialer_greets_at_once_then_soon_then_at_each_retry(void **state)
{
    (void)state;
    struct session s = session_in(SESSION_DIALER, SESSION_GREETING);
    struct session_due t = session_on_timer(&s, 1000);
    assert_true(t.hello);
    assert_int_equal(t.wake_ns, 1000 + RETRY / 64);
    assert_false(session_on_timer(&s, t.wake_ns - 1).hello);
    uint64_t at = t.wake_ns, hellos = 1;
    for (; at < 1000 + RETRY; at = t.wake_ns, hellos++) {
        t = session_on_timer(&s, at);
        assert_true(t.hello && !t.heartbeat && !t.died);
        assert_true(t.wake_ns > at && t.wake_ns <= at + RETRY);
    }
    assert_in_range(hellos, 4, 10);
    t = session_on_timer(&s, at);
    assert_true(t.hello);
    assert_int_equal(t.wake_ns, at + RETRY);
}

static void
a_dialer_that_went_down_greets_after_the_retry_time_and_names_its_last_session(void **state)
{
    (void)state;
    struct session s = session_in(SESSION_DIALER, SESSION_DOWN);
    struct session_due t = session_on_timer(&s, 1000 + RETRY - 1);
    assert_false(t.hello);
    assert_int_equal(t.wake_ns, 1000 + RETRY);
    assert_true(session_on_timer(&s, 1000 + RETRY).hello);
    assert_int_equal(s.state, SESSION_GREETING);
    struct envelope e = session_envelope(&s);
    assert_true(e.from == ME && e.to == OTHER && e.epoch == EPOCH);
    struct msg stale = event_message(WELCOME_FIRST), next = event_message(WELCOME_NEXT);
    assert_int_equal(session_on_message(&s, 1300, &stale), SESSION_DROP);
    assert_int_equal(session_on_message(&s, 1300, &next), SESSION_BECAME_UP);
}

static void heartbeats_are_due_at_once_and_then_evenly_whatever_else_is_said(void **state)
{
    (void)state;
    for (int side = SESSION_DIALER; side <= SESSION_ACCEPTOR; side++) {
        struct session s = session_in(side, SESSION_UP);
        struct session_due t = session_on_timer(&s, 1000);
        assert_true(t.heartbeat);
        assert_int_equal(t.wake_ns, 1000 + BEAT);
        session_envelope(&s);
        assert_false(session_on_timer(&s, 1000 + BEAT - 1).heartbeat);
        assert_true(session_on_timer(&s, 1000 + BEAT).heartbeat);
    }
}

/* Runs the timer at the times it asks for, until it says died or `end`. */
static uint64_t run_until_death(struct session *s, uint64_t now, uint64_t end)
{
    while (now < end) {
        struct session_due t = session_on_timer(s, now);
        if (t.died) return now;
        assert_true(t.wake_ns > now);
        now = t.wake_ns;
    }
    return 0;
}

static void silence_kills_after_exactly_dead_ns(void **state)
{
    (void)state;
    for (int side = SESSION_DIALER; side <= SESSION_ACCEPTOR; side++) {
        struct session s = session_in(side, SESSION_UP);
        struct msg m = event_message(DELIVERABLE);
        assert_false(session_on_lifeline(&s, 1000, true));
        assert_int_equal(session_on_message(&s, 1500, &m), SESSION_DELIVER);
        assert_int_equal(run_until_death(&s, 1500, 100000), 1500 + DEAD);
        assert_string_equal(s.down_reason, "nothing heard");
        assert_int_equal(s.state, SESSION_DOWN);
    }
}

static void a_stale_message_is_no_sign_of_life(void **state)
{
    (void)state;
    struct session s = session_in(SESSION_ACCEPTOR, SESSION_UP);
    struct msg m = event_message(STALE_EPOCH);
    session_on_lifeline(&s, 1000, true);
    assert_int_equal(session_on_message(&s, 3900, &m), SESSION_DROP);
    assert_int_equal(s.heard_ns, 1000);
}

static void a_lifeline_must_stand_in_time_and_its_end_is_death(void **state)
{
    (void)state;
    for (int side = SESSION_DIALER; side <= SESSION_ACCEPTOR; side++) {
        struct session s = session_in(side, SESSION_UP);
        struct msg m = event_message(DELIVERABLE);
        session_on_message(&s, 2500, &m);
        assert_int_equal(run_until_death(&s, 1000, 100000), 1000 + LIFELINE);
        assert_string_equal(s.down_reason, "no lifeline in time");

        s = session_in(side, SESSION_UP);
        assert_false(session_on_lifeline(&s, 1100, true));
        assert_true(session_on_lifeline(&s, 1200, false));
        assert_int_equal(s.state, SESSION_DOWN);
        assert_false(session_on_lifeline(&s, 1300, false));
        assert_false(session_on_lifeline(&s, 1300, true));
    }
}

static void without_lifelines_none_is_waited_for(void **state)
{
    (void)state;
    struct session s = session_in(SESSION_ACCEPTOR, SESSION_UP);
    s.limits.lifeline_ns = 0;
    assert_int_equal(run_until_death(&s, 1000, 100000), 1000 + DEAD);
}

static void our_own_delay_is_not_the_other_sides_silence(void **state)
{
    (void)state;
    struct session s = session_in(SESSION_ACCEPTOR, SESSION_UP);
    session_on_lifeline(&s, 1000, true);
    session_on_timer(&s, 1000);                           /* wants to be woken at 1200 */
    assert_false(session_on_timer(&s, 1200 + DEAD).died); /* comes 3000 late */
    assert_int_equal(s.heard_ns, 1000 + DEAD);
    assert_int_equal(run_until_death(&s, 1200 + DEAD, 100000), 1000 + 2 * DEAD);
}

static void a_reset_is_a_new_life_that_knows_nothing(void **state)
{
    (void)state;
    for (int from = SESSION_IDLE; from <= SESSION_DOWN; from++) {
        struct session s = session_in(SESSION_DIALER, from);
        struct msg m = event_message(DELIVERABLE), welcome = event_message(WELCOME_FIRST);
        session_reset(&s, STRANGER);
        assert_int_equal(s.state, SESSION_IDLE);
        assert_true(session_on_timer(&s, 9000).wake_ns == TIME_NEVER);
        session_start(&s, 9000);
        assert_true(session_on_timer(&s, 9000).hello);
        struct envelope e = session_envelope(&s);
        assert_true(e.from == STRANGER && e.to == 0 && e.epoch == 0);
        assert_int_equal(session_on_message(&s, 9001, &m), SESSION_DROP);
        assert_int_equal(session_on_message(&s, 9001, &welcome), SESSION_DROP);
        welcome.envelope.to = STRANGER;
        assert_int_equal(session_on_message(&s, 9002, &welcome), SESSION_BECAME_UP);
    }
}

static void after_a_new_life_greeted_us_it_can_be_accepted_or_refused(void **state)
{
    (void)state;
    struct session s = session_in(SESSION_ACCEPTOR, SESSION_UP);
    struct msg hello = event_message(HELLO_NEW);
    assert_int_equal(session_on_message(&s, 1100, &hello), SESSION_BECAME_DOWN);
    assert_int_equal(session_envelope(&s).to, STRANGER);
    session_accept(&s, &hello, EPOCH + 1, 1100);
    struct msg old = event_message(DELIVERABLE);
    assert_int_equal(session_on_message(&s, 1200, &old), SESSION_DROP);
    struct msg its = message(MSG_HEARTBEAT, EPOCH + 1, STRANGER, ME);
    assert_int_equal(session_on_message(&s, 1200, &its), SESSION_DELIVER);
}

static void an_idle_or_finished_acceptor_waits_for_nothing(void **state)
{
    (void)state;
    int states[] = {SESSION_IDLE, SESSION_GREETING, SESSION_DOWN};
    for (int i = 0; i < 3; i++) {
        struct session s = session_in(SESSION_ACCEPTOR, states[i]);
        struct session_due t = session_on_timer(&s, 100000);
        assert_true(!t.hello && !t.heartbeat && !t.died && t.wake_ns == TIME_NEVER);
        assert_false(session_on_lifeline(&s, 100000, false));
    }
    struct session s = session_in(SESSION_DIALER, SESSION_UP);
    session_start(&s, 2000); /* nothing: it is up */
    assert_int_equal(s.state, SESSION_UP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_message_in_every_state_does_what_the_table_says),
        cmocka_unit_test(a_refused_dialer_greets_again_slowly),
        cmocka_unit_test(a_dialer_greets_at_once_then_soon_then_at_each_retry),
        cmocka_unit_test(
            a_dialer_that_went_down_greets_after_the_retry_time_and_names_its_last_session),
        cmocka_unit_test(heartbeats_are_due_at_once_and_then_evenly_whatever_else_is_said),
        cmocka_unit_test(silence_kills_after_exactly_dead_ns),
        cmocka_unit_test(a_stale_message_is_no_sign_of_life),
        cmocka_unit_test(a_lifeline_must_stand_in_time_and_its_end_is_death),
        cmocka_unit_test(without_lifelines_none_is_waited_for),
        cmocka_unit_test(our_own_delay_is_not_the_other_sides_silence),
        cmocka_unit_test(a_reset_is_a_new_life_that_knows_nothing),
        cmocka_unit_test(after_a_new_life_greeted_us_it_can_be_accepted_or_refused),
        cmocka_unit_test(an_idle_or_finished_acceptor_waits_for_nothing),
    };
    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
