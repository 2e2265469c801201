/* fair: whose turn it is among tenants. Fair queueing in virtual time, by weight, over tokens.
 *
 *     struct fair fair;
 *     fair_init(&fair);
 *     struct fair_tenant *t = fair_join(&fair, "search", salt, 2);     // a request of it came: NULL: memory
 *     if ((e = fair_reserve(t, choices)) != OK) ...            // so that fair_queue cannot fail
 *     fair_queue(&fair, t, &choice->turn, sched_queue_key(...));       // order within the tenant
 *     while ((t = fair_next(&fair)) != NULL) {                         // whose turn it is
 *         entry = heap_first(&t->queue);                               // and what of it
 *         if (no room for it) fair_pass(&fair, t, entry);              // its next? until fair_put_back
 *         else if (nor for others of it) fair_rest(&fair, t);          // until fair_wake
 *         else fair_unqueue(&fair, t, entry), fair_start(&fair, t), fair_charge(&fair, t, tokens);
 *     }
 *     fair_wake(&fair);
 *     fair_end(&fair, t);                                              // of fair_start
 *     fair_leave(&fair, t);                                            // of fair_join
 *
 * A tenant's virtual time is what it was served over its weight: prompt tokens that were computed, and
 * generated ones, which count twice, as a step of decoding costs more than its share of a prompt (the weights
 * of VTC: Sheng and others, OSDI 2024). Who has least is next. A tenant that had nothing waiting comes
 * back at the virtual time of whoever was next last (start-time fair queueing: Goyal and others, 1996),
 * so that idleness is no credit; what it owes beyond that it keeps owing. So while two tenants wait, what
 * they are served over their weights differs by the largest request at the most, whatever a third one does.
 *
 * Rules: no clock. Tenants with live requests are kept, of the others the FAIR_IDLE_MAX that left last, so
 * names cost memory by what is asked at once, not by how many there ever were. One that was forgotten
 * starts anew. Ties go to the one that became waiting first. Owner: that of the struct. */
#ifndef TANDEM_ROUTER_FAIR_H
#define TANDEM_ROUTER_FAIR_H

#include <stdbool.h>
#include <stdint.h>

#include "common/heap.h"
#include "common/list.h"
#include "common/map.h"
#include "common/tenant_weights.h"

enum {
    FAIR_IDLE_MAX = 256,
    FAIR_NAME_MAX = TENANT_NAME_MAX,
    FAIR_PROMPT = 1, /* what a token costs */
    FAIR_GENERATED = 2,
    FAIR_SHOWN_MAX = 32 /* in status */
};
/* Virtual time is in these parts of a token of weight 1: divisible by many weights. */
#define FAIR_UNIT 5040ull

struct fair_tenant {
    char name[FAIR_NAME_MAX + 1]; /* "": requests that name none */
    uint64_t salt;                /* of its prefixes; unique */
    uint32_t weight;
    uint64_t virtual_time;
    struct heap queue; /* by the key given to fair_queue, but for those that were passed over */
    struct heap_entry turn; /* in fair.turns, by virtual time, while the queue has some */
    struct list_link rest;  /* in fair.resting or fair.idle */
    bool resting;
    uint32_t live;                            /* joined and not left */
    uint32_t reserved;                        /* room in the queue */
    uint32_t waiting;                         /* queued */
    uint32_t running;                         /* started and not ended */
    uint64_t prompt_tokens, generated_tokens; /* served */
    uint32_t meters;                          /* the caller's: which series count it */
};

struct fair {
    struct map tenants; /* by salt */
    struct heap turns;
    struct list_link resting, idle; /* idle: the one that left last is last */
    uint32_t idle_count;
    uint64_t now; /* virtual: of who was next last */
    uint64_t weights_active;
    uint32_t running;
};

void fair_init(struct fair *f);
void fair_fini(struct fair *f);

struct fair_tenant *fair_join(struct fair *f, const char *name, uint64_t salt, uint32_t weight);
void fair_leave(struct fair *f, struct fair_tenant *t);
/* Room for so many more entries of this tenant at once, until they are given back. */
enum err fair_reserve(struct fair_tenant *t, uint32_t entries);
void fair_unreserve(struct fair_tenant *t, uint32_t entries);

void fair_queue(struct fair *f, struct fair_tenant *t, struct heap_entry *entry, uint64_t key);
void fair_unqueue(struct fair *f, struct fair_tenant *t, struct heap_entry *entry);
struct fair_tenant *fair_next(const struct fair *f); /* NULL: nobody waits who does not rest */
/* Still queued, but not looked at. */
void fair_pass(struct fair *f, struct fair_tenant *t, struct heap_entry *entry);
void fair_put_back(struct fair *f, struct fair_tenant *t, struct heap_entry *entry);
void fair_rest(struct fair *f, struct fair_tenant *t);
void fair_wake(struct fair *f);

/* It has a place at nodes; it has none any more. */
void fair_start(struct fair *f, struct fair_tenant *t);
void fair_end(struct fair *f, struct fair_tenant *t);
void fair_charge(struct fair *f, struct fair_tenant *t, uint64_t cost);
void fair_refund(struct fair *f, struct fair_tenant *t, uint64_t cost);

/* Nobody could be crowded out: there is only who names no tenant. With one name there may be more. */
bool fair_alone(const struct fair *f);
/* Whether it has more of the places than its weight's share, where one more tenant of weight 1 counts, as
 * it may come at any time. False while fair_alone. */
bool fair_over(const struct fair *f, const struct fair_tenant *t);
void fair_audit(const struct fair *f);

#endif
