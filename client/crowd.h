/* crowd: many requests in flight at once, what came of them in the order in which they were given.
 *
 *     struct crowd_work work = {.ctx = &mine, .next = next, .prepare = prepare, .done = done};
 *     struct crowd_end end = crowd_run(t, &work, 64);
 *     if (end.status != TANDEM_OK) ...      // no router, no memory: what was not done is not told
 *
 * Rules: a request that the cluster has no room for is submitted again when it says. After *stop is set
 * (a signal's handler may) nothing more is taken, and what runs is cancelled and not told.
 * Owner: the thread of the connection. */
#ifndef TANDEM_CLIENT_CROWD_H
#define TANDEM_CLIENT_CROWD_H

#include <signal.h>
#include <stdbool.h>

#include "client/sequences.h"
#include "client/tandem.h"

enum { CROWD_MAX = 4096 }; /* in flight */

/* One sequence and what came of it. */
struct crowd_item {
    struct sequence sequence;
    char id[40], reason[512], prefill_node[72];
    struct tandem_event end; /* its strings are the ones above; values is the one below */
    float *values;
    uint32_t *value_tokens;
};

struct crowd_work {
    void *ctx;
    /* ERR_FORMAT: this one has ended already, and that is why. ERR_AGAIN: none now, ask when something has
     * ended. ERR_NOT_FOUND: there is no more. Any other error ends the run and is its reason. */
    enum err (*next)(void *ctx, struct sequence *out);
    /* Says what is wanted of the sequence; its prompt is set already. */
    enum tandem_status (*prepare)(void *ctx, struct tandem_request *r, const struct sequence *q);
    void (*done)(void *ctx, const struct crowd_item *item);
    bool any_order;          /* what ended is told at once, not behind what was given before it */
    void (*tick)(void *ctx); /* now and then, also while nothing ends; NULL: no need */
    volatile sig_atomic_t *stop; /* NULL: never */
};

struct crowd_end {
    enum tandem_status status; /* CANCELLED: it was stopped */
    char reason[512];
};

struct crowd_end crowd_run(struct tandem *t, const struct crowd_work *work, uint32_t in_flight);

#endif
