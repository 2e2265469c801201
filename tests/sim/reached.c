/* reached: which entries of the router's state machine (router/choice.c) the seeds have met: a table that
 * nobody reaches is a table that nobody tests. */
#include <stdio.h>

#include "tests/sim/sim.h"

/* Per event, one letter a state, in their order: tokenizing, queued, reserving, filling, prefilling, decoding,
 * ended.
 *     x   every long run must meet it
 *     u   left to unit tests, for the reason below; a seed may meet it
 *     -   never: no node that keeps to the protocol says it then, and an audit holds that no choice is
 *         attached to a node in a state where it should not be
 *
 * What is left to unit tests, and why:
 *     tokenizing   the simulator's clients send ids: a_prompt_that_is_not_tokenized_in_time_is_refused,
 *                  ids_for_a_client_that_has_gone_are_thrown_away
 *     too large    its pools hold its longest request: a_request_larger_than_every_pool_is_told_so_at_once
 *     tokens and finished, reserving   only if a repeat overtakes RESERVED:
 *                  tokens_before_the_reservation_are_dropped
 *     filling      it is short: either_node_may_die, a_client_that_leaves_leaves_nothing_behind,
 *                  a_request_may_end_or_begin_anew_while_it_waits
 *     cancelled, ended    its requests have one choice: a_cancel_spares_the_choice_that_has_ended */
/* clang-format off */
static const char *const table[CHOICE_EVENTS] = {
    [CHOICE_EV_PICKED]         = "-x-----",
    [CHOICE_EV_TOO_LARGE]      = "-u-----",
    [CHOICE_EV_RESERVED]       = "--xuxx-",
    [CHOICE_EV_BACKFILLED]     = "--xx---",
    [CHOICE_EV_FIRST]          = "----xxx",
    [CHOICE_EV_TOKENS]         = "--u-xx-",
    [CHOICE_EV_ENCODED]        = "----x--",
    [CHOICE_EV_PREFILLED]      = "----xxx",
    [CHOICE_EV_FINISHED]       = "--u-xx-",
    [CHOICE_EV_PREFILL_FAILED] = "----xxx",
    [CHOICE_EV_DECODE_FAILED]  = "--xuxx-",
    [CHOICE_EV_PREFILL_LOST]   = "--xuxxx",
    [CHOICE_EV_DECODE_LOST]    = "--xuxx-",
    [CHOICE_EV_CANCELLED]      = "uxxuxxu",
    [CHOICE_EV_DEADLINE]       = "uxxuxx-",
    [CHOICE_EV_SILENCE]        = "uxxuxx-",
};
/* clang-format on */

void reached_add(struct sim_reached *r, const struct router_core *core)
{
    for (int s = 0; s < CHOICE_STATES; s++)
        for (int e = 0; e < CHOICE_EVENTS; e++)
            r->count[s][e] += core->met[s][e];
}

bool reached_report(const struct sim_reached *r, bool all)
{
    uint32_t met = 0, due = 0, wrong = 0;
    for (int e = 0; e < CHOICE_EVENTS; e++)
        for (int s = 0; s < CHOICE_STATES; s++) {
            bool missing = all && table[e][s] == 'x' && r->count[s][e] == 0;
            bool impossible = table[e][s] == '-' && r->count[s][e] > 0;
            due += table[e][s] == 'x';
            met += table[e][s] == 'x' && r->count[s][e] > 0;
            wrong += missing || impossible;
            if (missing || impossible)
                fprintf(stderr, "%s: \"%s\" in state \"%s\"\n",
                        missing ? "never met" : "met, which cannot be", choice_event_name(e),
                        choice_state_name(s));
        }
    printf("router: %u of %u entries (state, event) were met\n", met, due);
    return wrong == 0;
}
