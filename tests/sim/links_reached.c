/* Which entries of the session's table (xfer/device/session.c) the seeds have met. */
#include <stdio.h>

#include "tests/sim/links.h"

/* Per event, one letter a state, in their order: opening, accepting, offering, joining, warming, ready,
 * draining, aborted, closed.
 *     x   every long run must meet it
 *     u   left to tests/unit/dslink_test.c#every_event_in_every_state_is_answered, which meets all of
 *         these: what only a peer does that breaks the protocol, and what few seeds meet
 *     -   never: the other side's, kept from the table by direction or epoch, or without a transport */
/* clang-format off */
static const char *const table[2][DSLINK_EVENTS] = {
    {
        [CONTROL_OPEN]       = "-xuuuuux-",
        [CONTROL_OFFER]      = "--xuuuux-",
        [CONTROL_WARM]       = "--uuxuux-",
        [CONTROL_PUSH]       = "--uuuxxu-",
        [CONTROL_FRAME]      = "--uuuxxu-",
        [CONTROL_DRAIN]      = "--uuuxxu-",
        [CONTROL_DRAINED]    = "--uuuuxu-",
        [CONTROL_ABORT]      = "--xxxxxx-",
        [DSLINK_EV_JOINED]   = "---x-----",
        [DSLINK_EV_ENDED]    = "----xxx--",
        [DSLINK_EV_BROKEN]   = "--xxxxu--",
        [DSLINK_EV_LOST]     = "-uxxxxxxx",
        [DSLINK_EV_DEADLINE] = "-xxxxxxx-",
        [DSLINK_EV_DRAIN]    = "-xxxxxuxu",
    },
    {
        [CONTROL_ACCEPT]     = "x--uuuuu-",
        [CONTROL_WARM]       = "u--xxuux-",
        [CONTROL_READY]      = "u--uxuuu-",
        [CONTROL_FRAME]      = "u--uxxxx-",
        [CONTROL_GRANT]      = "u--uuxxu-",
        [CONTROL_DRAIN]      = "u--uuxxu-",
        [CONTROL_DRAINED]    = "u--uuuxu-",
        [CONTROL_ABORT]      = "x--xxxxx-",
        [DSLINK_EV_JOINED]   = "---x-----",
        [DSLINK_EV_ENDED]    = "----xxx--",
        [DSLINK_EV_BROKEN]   = "---xxxu--",
        [DSLINK_EV_LOST]     = "x--xxxxux",
        [DSLINK_EV_DEADLINE] = "x--xxxxx-",
        [DSLINK_EV_DRAIN]    = "x--xxxxxu",
    },
};
/* clang-format on */

char links_reached_mark(int dialler, enum dslink_event event, enum dslink_state state)
{
    return table[dialler][event] ? table[dialler][event][state] : '-';
}

bool links_reached(const struct links_totals *t, bool all)
{
    uint32_t met = 0, due = 0, wrong = 0;
    for (int d = 0; d < 2; d++)
        for (enum dslink_event e = 1; e < DSLINK_EVENTS; e++)
            for (enum dslink_state s = 0; s < DSLINK_STATES; s++) {
                char mark = links_reached_mark((int)d, e, s);
                bool missing = all && mark == 'x' && t->met[d][s][e] == 0;
                bool impossible = mark == '-' && t->met[d][s][e] > 0;
                due += mark == 'x';
                met += mark == 'x' && t->met[d][s][e] > 0;
                wrong += missing || impossible;
                if (missing || impossible)
                    fprintf(stderr, "%s: %s in state %s at the %s\n",
                            missing ? "never met" : "met, which cannot be", dslink_event_name(e),
                            dslink_state_name(s), d ? "dialler" : "acceptor");
            }
    printf("links: %u of %u entries (state, event) were met\n", met, due);
    return wrong == 0;
}
