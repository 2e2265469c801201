/* warm_plan: in which order sequences are prefilled so that what they have in common is computed once.
 *
 *     struct warm_plan p = {0};
 *     if ((e = warm_plan_add(&p, &sequence)) != OK) ...     // takes it; any number
 *     if ((e = warm_plan_make(&p)) != OK) ...
 *     while ((e = warm_plan_next(&p, &i)) == OK) { ... p.item[i] is sent, or is a duplicate ... }
 *     // ERR_AGAIN: the others wait for what is on its way. ERR_NOT_FOUND: all were given
 *     warm_plan_done(&p, i);                                // however it ended
 *     warm_plan_clear(&p);
 *
 * Sequences are sorted, so that those that begin alike are neighbours. One that shares WARM_SHARED_… or more
 * with others waits for the first of those: when that is done, the shared part is cached, and the rest of
 * them go out together. Pure, but for memory; ties break by the sequences' places in the file.
 * Owner: the thread that sends. */
#ifndef TANDEM_CLIENT_WARM_PLAN_H
#define TANDEM_CLIENT_WARM_PLAN_H

#include <stdbool.h>

#include "client/sequences.h"
#include "common/heap.h"

enum {
    WARM_NONE = UINT32_MAX,
    WARM_SHARED_TOKENS = 16, /* a block: less is not cached */
    WARM_SHARED_BYTES = 64,  /* of text, about as much */
};

struct warm_item {
    struct sequence sequence;
    uint32_t owner;                       /* that it waits for; WARM_NONE: nobody */
    bool duplicate;                       /* the same as its owner: nothing is to be done */
    uint32_t tokens;                      /* of it, once its owner's user knows */
    uint32_t first_waiting, next_waiting; /* a list of those that wait for it */
    struct heap_entry ready;              /* by place */
};

struct warm_plan {
    struct warm_item *item; /* sorted by warm_plan_make */
    uint32_t count, capacity, given_count;
    size_t bytes; /* of all texts and tokens */
    struct heap ready;
};

enum err warm_plan_add(struct warm_plan *p, struct sequence *q);
enum err warm_plan_make(struct warm_plan *p);
enum err warm_plan_next(struct warm_plan *p, uint32_t *index);
void warm_plan_done(struct warm_plan *p, uint32_t index);
void warm_plan_clear(struct warm_plan *p);

#endif
