/* links: pairs of session machines (xfer/device/session.h) in virtual time, over a network and transports
 * that do what real ones do: each seed is one run.
 *
 *     links_run(seed, faults, &totals);     // ends the process with a message if an invariant is broken
 *
 * Held at every step:
 *  - what begins was announced: the acceptor begins operation k after the dialler has told of it, in the
 *    order of the numbers, with the same slot and length; the dialler tells of nothing while it drains
 *  - at most one operation is posted on a device in each direction
 *  - a slot is written only if neither side still needs what lies in it
 *  - frames come out once, in order, as they were sent; and all of them if nothing has failed
 *  - a transport that is closed as drained has begun the same operations on both sides
 *  - nobody who keeps to the protocol is blamed for it (ERR_STATE, ERR_FORMAT)
 *  - every session is READY or CLOSED by its deadlines, and CLOSED at the end
 *
 * Owner: the simulator's only thread. */
#ifndef TANDEM_TESTS_SIM_LINKS_H
#define TANDEM_TESTS_SIM_LINKS_H

#include "xfer/device/session.h"

struct links_totals {
    uint64_t links, ready, frames, payloads, drained, broken, lost, crashes, freezes, epochs, stale,
        late, hung;
    uint64_t met[2][DSLINK_STATES][DSLINK_EVENTS]; /* [0] at the acceptor, [1] at the dialler */
};

void links_run(uint64_t seed, bool faults, struct links_totals *totals);
/* 'x', 'u' or '-': see links_reached.c. */
char links_reached_mark(int dialler, enum dslink_event event, enum dslink_state state);
/* Prints what was met; false: an entry that every long run must meet was not, or one that cannot be was. */
bool links_reached(const struct links_totals *totals, bool all);

#endif
