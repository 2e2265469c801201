/* turns: who may have an operation posted on a device: at most one of all its links in each direction.
 * Two communicators of one device that are used in different orders on its two ends can wait for each
 * other for ever.
 *
 *     turns_ask(&turns, TURN_RECEIVE, &link->turn);           // first come, first served
 *     if (link->turn.held) ...                                // perhaps at once
 *     struct turn *next = turns_give(&turns, &link->turn);    // NULL: nobody waits; else it holds it now
 *
 * Rules: nothing is allocated, nothing waits; turns_give of one that asked and has not got it yet takes
 * it out of the queue, and does nothing for one that has not asked: so a link that ends always calls it.
 * Owner: the device's link thread. */
#ifndef TANDEM_XFER_DEVICE_TURNS_H
#define TANDEM_XFER_DEVICE_TURNS_H

#include "common/list.h"

enum turn_direction { TURN_SEND, TURN_RECEIVE, TURN_DIRECTIONS };

struct turn {
    struct list_link waiting; /* list_init-ed by its owner */
    enum turn_direction direction;
    bool held;
};

struct turns {
    struct list_link waiting[TURN_DIRECTIONS];
    struct turn *holder[TURN_DIRECTIONS];
};

static inline void turns_init(struct turns *t)
{
    for (int d = 0; d < TURN_DIRECTIONS; d++) {
        list_init(&t->waiting[d]);
        t->holder[d] = NULL;
    }
}

static inline void turns_ask(struct turns *t, enum turn_direction direction, struct turn *turn)
{
    if (turn->held || !list_empty(&turn->waiting)) return;
    turn->direction = direction;
    turn->held = t->holder[direction] == NULL;
    if (turn->held)
        t->holder[direction] = turn;
    else
        list_push_back(&t->waiting[direction], &turn->waiting);
}

static inline struct turn *turns_give(struct turns *t, struct turn *turn)
{
    enum turn_direction d = turn->direction;
    list_remove(&turn->waiting);
    if (!turn->held) return NULL;
    struct list_link *first = list_pop_front(&t->waiting[d]);
    turn->held = false;
    t->holder[d] = first ? list_member(first, struct turn, waiting) : NULL;
    if (t->holder[d]) t->holder[d]->held = true;
    return t->holder[d];
}

#endif
