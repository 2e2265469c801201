/* session: states and events. "-" is DROP, or nothing to do.
 *
 *     dialer      start      WELCOME       REFUSE, BYE   session's own     lifeline    timer
 *     IDLE        GREETING   -             -             -                 -           -
 *     GREETING    GREETING   UP            DOWN, slow    -                 -           HELLO
 *     UP          UP         DOWN (newer)  DOWN          DELIVER           up / DOWN   HEARTBEAT / DOWN
 *     DOWN        GREETING   -             -             -                 -           GREETING
 *
 *     acceptor    HELLO                accept    BYE       session's own   lifeline    timer
 *     IDLE        GREETING             -         -         -               -           -
 *     GREETING    GREETING             UP        -         -               -           -
 *     UP          - (old) / DOWN       -         DOWN      DELIVER         up / DOWN   HEARTBEAT / DOWN
 *     DOWN        GREETING             UP        -         -               -           -
 *
 * A REFUSE is no end: what was in the way may have gone (an older life of this node, say), so the dialer
 * greets again, but only after dead_ns. */
#include "proto/session.h"

#include "common/clock.h"
#include "common/plant.h"

void session_init(struct session *s, enum session_side side, uint64_t incarnation,
                  const struct session_limits *limits)
{
    *s = (struct session){.side = side, .limits = *limits, .self = incarnation};
}

void session_start(struct session *s, uint64_t now_ns)
{
    CHECK(s->side == SESSION_DIALER);
    if (s->state == SESSION_UP) return;
    s->state = SESSION_GREETING;
    s->since_ns = s->hello_ns = now_ns;
}

void session_reset(struct session *s, uint64_t incarnation)
{
    struct session_limits limits = s->limits;
    session_init(s, s->side, incarnation, &limits);
}

static void go_up(struct session *s, uint64_t other, uint64_t epoch, uint64_t now_ns)
{
    s->state = SESSION_UP;
    s->other = other;
    s->epoch = epoch;
    s->since_ns = s->heard_ns = s->beat_ns = s->asked_ns = now_ns;
    s->lifeline_up = false;
    s->down_reason = NULL;
}

static void go_down(struct session *s, uint64_t now_ns, const char *reason)
{
    s->state = SESSION_DOWN;
    s->since_ns = now_ns;
    s->hello_ns = now_ns + s->limits.retry_ns;
    s->lifeline_up = false;
    s->down_reason = reason;
}

void session_accept(struct session *s, const struct msg *hello, uint64_t epoch, uint64_t now_ns)
{
    CHECK(s->side == SESSION_ACCEPTOR);
    CHECK(s->state == SESSION_GREETING || s->state == SESSION_DOWN);
    CHECK(hello->kind == MSG_HELLO && epoch > s->epoch);
    go_up(s, hello->envelope.from, epoch, now_ns);
}

static bool is_mine(const struct session *s, const struct envelope *e)
{
    if (PLANTED("old_epoch")) return s->state == SESSION_UP;
    return s->state == SESSION_UP && e->epoch == s->epoch && e->from == s->other &&
           e->to == s->self;
}

/* The HELLO names the last epoch that its sender knew here, so a repeated one, sent before our WELCOME
 * came in, is told from one of a dialer that has given this session up. */
static enum session_verdict on_hello(struct session *s, uint64_t now_ns, const struct envelope *e)
{
    if (e->from == 0) return SESSION_DROP;
    if (s->state != SESSION_UP) {
        s->state = SESSION_GREETING;
        s->other = e->from;
        return SESSION_GREETED;
    }
    bool knew_this = e->to == s->self && e->epoch >= s->epoch;
    if (e->from == s->other && !knew_this) return SESSION_DROP;
    go_down(s, now_ns, e->from == s->other ? "the other side greets again" : "a new life of it");
    s->other = e->from;
    return SESSION_BECAME_DOWN;
}

static enum session_verdict on_welcome(struct session *s, uint64_t now_ns, const struct envelope *e)
{
    if (e->to != s->self || e->from == 0 || e->epoch == 0) return SESSION_DROP;
    if (s->state == SESSION_GREETING) {
        /* one of a session that was given up already is not the answer to the new HELLO */
        if (e->from == s->other && e->epoch <= s->epoch) return SESSION_DROP;
        go_up(s, e->from, e->epoch, now_ns);
        return SESSION_BECAME_UP;
    }
    if (s->state != SESSION_UP || e->from != s->other || e->epoch <= s->epoch) return SESSION_DROP;
    go_down(s, now_ns, "the other side began a newer session");
    return SESSION_BECAME_DOWN;
}

static enum session_verdict on_refuse(struct session *s, uint64_t now_ns, const struct envelope *e)
{
    bool answer = s->state == SESSION_GREETING && e->to == s->self;
    if (!answer && !is_mine(s, e)) return SESSION_DROP;
    go_down(s, now_ns, "refused");
    s->hello_ns = now_ns + s->limits.dead_ns;
    return SESSION_BECAME_DOWN;
}

enum session_verdict session_on_message(struct session *s, uint64_t now_ns, const struct msg *m)
{
    bool dialer = s->side == SESSION_DIALER;
    switch (m->kind) {
    case MSG_HELLO: return dialer ? SESSION_DROP : on_hello(s, now_ns, &m->envelope);
    case MSG_WELCOME: return dialer ? on_welcome(s, now_ns, &m->envelope) : SESSION_DROP;
    case MSG_REFUSE: return dialer ? on_refuse(s, now_ns, &m->envelope) : SESSION_DROP;
    default: break;
    }
    if (!is_mine(s, &m->envelope)) return SESSION_DROP;
    s->heard_ns = now_ns;
    if (m->kind != MSG_BYE) return SESSION_DELIVER;
    go_down(s, now_ns, "said goodbye");
    return SESSION_BECAME_DOWN;
}

bool session_on_lifeline(struct session *s, uint64_t now_ns, bool up)
{
    if (s->state != SESSION_UP) return false;
    s->lifeline_up = up;
    if (!up) go_down(s, now_ns, "its lifeline ended");
    return !up;
}

/* The time at which this session dies if nothing is heard; `reason` says of what. */
static uint64_t death_ns(const struct session *s, const char **reason)
{
    uint64_t silence_ns = s->heard_ns + s->limits.dead_ns;
    uint64_t lifeline_ns = s->since_ns + s->limits.lifeline_ns;
    bool waits = s->limits.lifeline_ns > 0 && !s->lifeline_up;
    *reason = waits && lifeline_ns < silence_ns ? "no lifeline in time" : "nothing heard";
    return waits && lifeline_ns < silence_ns ? lifeline_ns : silence_ns;
}

static struct session_due up_timer(struct session *s, uint64_t now_ns)
{
    struct session_due due = {0};
    const char *reason;
    /* When we ourselves come late, what the other side said meanwhile may still lie unread: our own
     * delay does not count as its silence. */
    if (s->asked_ns != 0 && now_ns > s->asked_ns + s->limits.heartbeat_ns) {
        uint64_t heard_ns = s->heard_ns + (now_ns - s->asked_ns);
        s->heard_ns = heard_ns < now_ns ? heard_ns : now_ns;
    }
    if (now_ns >= death_ns(s, &reason)) {
        go_down(s, now_ns, reason);
        due.died = true;
        due.wake_ns = s->side == SESSION_DIALER ? s->hello_ns : TIME_NEVER;
        return due;
    }
    if (now_ns >= s->beat_ns) {
        due.heartbeat = true;
        s->beat_ns = now_ns + s->limits.heartbeat_ns;
    }
    due.wake_ns = death_ns(s, &reason);
    if (s->beat_ns < due.wake_ns) due.wake_ns = s->beat_ns;
    s->asked_ns = due.wake_ns;
    return due;
}

/* The first HELLO is often said before the connection stands, so the pauses begin short and double. */
static uint64_t greeting_pause_ns(const struct session *s, uint64_t now_ns)
{
    uint64_t pause_ns = now_ns - s->since_ns, least_ns = s->limits.retry_ns / 64;
    if (pause_ns < least_ns) return least_ns;
    return pause_ns < s->limits.retry_ns ? pause_ns : s->limits.retry_ns;
}

static struct session_due greeting_timer(struct session *s, uint64_t now_ns)
{
    struct session_due due = {0};
    if (now_ns >= s->hello_ns) {
        if (s->state == SESSION_DOWN) s->since_ns = now_ns;
        s->state = SESSION_GREETING;
        s->hello_ns = now_ns + greeting_pause_ns(s, now_ns);
        due.hello = true;
    }
    due.wake_ns = s->hello_ns;
    return due;
}

struct session_due session_on_timer(struct session *s, uint64_t now_ns)
{
    if (s->state == SESSION_UP) return up_timer(s, now_ns);
    if (s->side == SESSION_DIALER && s->state != SESSION_IDLE) return greeting_timer(s, now_ns);
    return (struct session_due){.wake_ns = TIME_NEVER};
}

struct envelope session_envelope(const struct session *s)
{
    return (struct envelope){.epoch = s->epoch, .from = s->self, .to = s->other};
}
