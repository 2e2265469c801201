/* links_world: what a run of links.h is made of, and the transports between its sessions.
 *
 *     switch (act.kind) {                               // of one side's session
 *     case DSLINK_OPEN: endpoint_open(x); break;
 *     case DSLINK_BEGIN: endpoint_begin(x, &act); break;
 *     case DSLINK_CLOSE: endpoint_close(x, act.end); break; ...
 *     while (endpoint_ask(x)) ...                       // it tells the session what has ended
 *
 * Rules: a side's endpoint and turn are links_transport.c's, all else is links.c's. An invariant that does
 * not hold ends the process with seed and time. Owner: the simulator's only thread. */
#ifndef TANDEM_TESTS_SIM_LINKS_WORLD_H
#define TANDEM_TESTS_SIM_LINKS_WORLD_H

#include <string.h>

#include "common/clock.h"
#include "common/rng.h"
#include "tests/sim/links.h"
#include "xfer/device/turns.h"

enum {
    SIDES = 2, /* 0: the acceptor, 1: the dialler, as in met */
    DEVICES_MAX = 6,
    LINKS_MAX = 8,
    QUEUE = 12, /* messages on their way to one side; more are not taken */
    SLOTS = 3,
    NUMBERS = 64,
};
#define MS NS_PER_MS
#define FAULTS_END_NS (4 * NS_PER_S)

struct mail {
    uint64_t at_ns;
    size_t size;
    uint8_t bytes[CONTROL_BYTES_MAX];
};

struct posting {
    uint32_t slot, bytes;
    uint64_t end_ns; /* TIME_NEVER: the other side has not begun it, or it hangs */
    uint32_t value;  /* what lies in the slot when both have begun it */
};

/* The transport of one side, from OPEN to CLOSE. */
struct endpoint {
    bool open, joins, fails, join_hangs;
    uint32_t id, their_id;
    uint64_t open_ns; /* when its memory is there */
    bool open_fails;
    uint64_t join_ns; /* it takes so long once both sides join; then the time */
    uint64_t hang_from, break_at;
    uint64_t begun, ended;
    struct posting posting[NUMBERS];
};

struct device {
    struct turns turns;
    uint64_t frozen_until_ns;
};

struct link;
struct side {
    struct link *link;
    bool dialler, gone; /* gone: its process has let go of it */
    struct device *device;
    struct dslink *s;
    struct turn turn;
    bool has_turn, held, hard_close;
    struct mail queue[QUEUE];
    uint32_t first, count;
    uint64_t mail_ns; /* of the last message: the channel keeps the order */
    uint64_t lost_ns, close_ns, work_ns;
    uint64_t made_ns, state_ns;
    enum dslink_state state;
    struct endpoint t;
    uint64_t told; /* dialler: operations announced in this epoch */
    uint32_t sent, received;
    bool has_slot; /* dialler: writes into one */
    uint32_t slot;
    bool failed; /* something happened to it that excuses lost frames */
    uint32_t slot_value[SLOTS];
    bool slot_busy[SLOTS]; /* dialler: an operation sends it; acceptor: a frame lies in it */
    bool in_hands;         /* acceptor: the first of these frames */
};

struct link {
    bool used;
    const struct transport_ops *transport;
    struct side side[SIDES];
    uint64_t redial_ns;
    int devices[SIDES];
};

struct world {
    uint64_t seed, draws, now_ns;
    bool faults;
    struct device device[DEVICES_MAX];
    int devices_count, links_count, links_ever;
    struct link link[LINKS_MAX];
    uint32_t next_id;
    struct links_totals *totals;
};

extern struct world *w; /* of this run */

__attribute__((noreturn, format(printf, 1, 2))) void violated(const char *format, ...);
#define HOLD(cond, ...)                                                                            \
    do {                                                                                           \
        if (!(cond)) violated(__VA_ARGS__);                                                        \
    } while (0)

static inline uint32_t draw(uint32_t below)
{
    return rng_below(rng_draw(w->seed, 7, w->draws++).word[0], below);
}
/* Up to `ms` from now on. */
static inline uint64_t within(uint32_t ms)
{
    return w->now_ns + draw(ms * 1000) * NS_PER_US;
}
static inline bool chance(uint32_t percent)
{
    return w->faults && w->now_ns < FAULTS_END_NS && draw(100) < percent;
}

static inline struct side *other(struct side *x)
{
    return &x->link->side[!x->dialler];
}

static inline void disturb(struct link *l)
{
    l->side[0].failed = l->side[1].failed = true;
}

/* ---- links_transport.c ---- */

void endpoint_open(struct side *x);
void endpoint_begin(struct side *x, const struct dslink_act *act);
void endpoint_close(struct side *x, enum transport_end end);
bool endpoint_ask(struct side *x);                       /* whether it had something to say */
uint32_t *endpoint_value(struct side *x, uint32_t slot); /* the payload that this side sees there */
void endpoint_take_turn(struct side *x); /* asks for it, or gives it back, as the session wants */
void endpoint_give_turn(struct side *x);

#endif
