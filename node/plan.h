/* plan: what the next step contains, as pure functions over facts.
 *
 *     struct plan_job jobs[n] = ...;          // sorted: what is served first stands first
 *     struct plan_part parts[n];
 *     uint32_t parts_count = chunk_plan(jobs, n, &budget, parts);
 *
 * Rules: every decode gets its one row before any prompt gets one, because a stream that waits is
 * seen and a prompt that waits a step is not. What is left goes to prompts in their order, several in
 * one step, each as much as it wants. Nothing here reads a clock or changes anything. */
#ifndef TANDEM_NODE_PLAN_H
#define TANDEM_NODE_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/step.h"

struct plan_job {
    uint32_t slot;
    bool decode;          /* wants one row that samples */
    uint32_t position;    /* of its next row */
    uint32_t rows_wanted; /* prompt tokens left; 0: nothing to do now */
};
struct plan_budget {
    struct step_limits limits;
    uint32_t decodes_max;  /* sequences that decode in one step */
    uint32_t chunk_tokens; /* prompt tokens in one step */
};
struct plan_part {
    uint32_t job; /* index into jobs */
    uint32_t rows_count;
};

/* Writes the parts of the next step, decodes first, and returns how many; none: nothing can run. */
uint32_t chunk_plan(const struct plan_job *jobs, uint32_t jobs_count,
                    const struct plan_budget *budget, struct plan_part *parts);

/* Who has to give its blocks back, and to whom. */
struct plan_claim {
    int32_t priority; /* lower goes first */
    uint64_t order;   /* plan_order: lower is older, or of a tenant that has less */
};
/* An order of tokens, and of arrival among those of as many. */
enum { PLAN_ARRIVALS = 1 << 20 };
static inline uint64_t plan_order(uint64_t base_tokens, uint32_t lead_tokens, uint64_t arrival)
{
    return (base_tokens + lead_tokens) * PLAN_ARRIVALS + arrival % PLAN_ARRIVALS;
}
static inline uint64_t plan_order_tokens(uint64_t order)
{
    return order / PLAN_ARRIVALS;
}
/* Whether `a` is served before `b`: by priority, then the older one. */
static inline bool plan_before(const struct plan_claim *a, const struct plan_claim *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->order < b->order;
}
/* The index of the claim to preempt for `wanting`: the last one in order that stands behind it;
 * UINT32_MAX: none does. So the first in order is never preempted and no two preempt each other. */
uint32_t preempt_pick(const struct plan_claim *claims, uint32_t claims_count,
                      const struct plan_claim *wanting);

#endif
