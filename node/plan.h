/* plan: what the next step contains, as pure functions over facts.
 *
 *     struct plan_job jobs[n] = ...;          // sorted: what is served first stands first
 *     struct plan_part parts[n];
 *     uint32_t parts_count = chunk_plan(jobs, n, &budget, parts);
 *
 * Rules: every decode gets its one row before any prompt gets one, because a stream that waits is
 * seen and a prompt that waits a step is not. What is left goes to prompts in their order, several in
 * one step, each as much as it wants. Nothing here reads a clock or changes anything. Any thread. */
#ifndef TANDEM_NODE_PLAN_H
#define TANDEM_NODE_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/clock.h"
#include "engine/step.h"

struct plan_job {
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

/* When the next step is planned. */
enum {
    PLAN_LEAD_PART = 4,   /* of a step's time before it is expected to end */
    PLAN_HOLD_PART = 2,   /* of a step's time a step is held at most, */
    PLAN_HOLD_EVERY = 128 /* and one in so many: less than one gap in a hundred of any stream */
};
#define PLAN_LEAD_NS (200 * NS_PER_US) /* at least: what planning and submitting may take */
struct plan_pace {
    uint64_t from_ns; /* since when a step runs, or nothing does */
    bool busy;        /* a step runs */
    uint64_t step_ns; /* that one usually takes; 0: not known */
    uint64_t
        due_ns; /* a stream that should not wait for another step is expected; TIME_NEVER: none is */
};
/* Not before that: who comes until then is in the step, who comes later waits for all of it. */
uint64_t plan_begin_ns(const struct plan_pace *pace);

/* Who has to give its blocks back, and to whom. */
struct plan_claim {
    int32_t priority; /* lower goes first */
    uint64_t order;   /* plan_order: lower is older, or of a tenant that has less */
    uint64_t cost;    /* of bringing it back */
    uint64_t born_ms; /* when its request came, by the node's clock: of equal tokens the older goes
                       * first */
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
    uint64_t tokens_a = plan_order_tokens(a->order), tokens_b = plan_order_tokens(b->order);
    if (a->priority != b->priority) return a->priority < b->priority;
    if (tokens_a != tokens_b) return tokens_a < tokens_b;
    return a->born_ms != b->born_ms ? a->born_ms < b->born_ms : a->order < b->order;
}
/* The index of the claim to preempt for `wanting`, among those that stand behind it: of the lowest priority,
 * then the cheapest to bring back, then the youngest; UINT32_MAX: none does. So the first in order is
 * never preempted and no two preempt each other. */
uint32_t preempt_pick(const struct plan_claim *claims, uint32_t claims_count,
                      const struct plan_claim *wanting);

/* What bringing a preempted sequence back costs, for preempt_pick: tokens to compute if nothing stays cached,
 * more for one that was preempted before. One that would free nothing costs most. */
uint64_t preempt_cost(uint32_t private_blocks, uint32_t preemptions);

/* A sequence for plan_peak, in blocks; one that gets its blocks back when it ends. */
struct plan_grower {
    uint32_t held; /* by it alone */
    uint32_t grow; /* that it is expected to take until it ends */
};
/* The most blocks that they will hold together, if all grow at one pace and each ends when it has grown as
 * expected. Sorts them. */
uint64_t plan_peak(struct plan_grower *growers, uint32_t count);
/* Tokens for which a sequence that was preempted so often must find room before it comes back; it doubles, so
 * that one is preempted at most some log2 of its length times. */
uint32_t plan_horizon(uint32_t preemptions);

/* How a preempted sequence comes back that lacks the KV of so many tokens. */
enum preempted { PREEMPTED_AUTO, PREEMPTED_RECOMPUTE, PREEMPTED_HAND_BACK };
struct plan_return {
    uint32_t missing_tokens;
    uint32_t running;         /* streams that wait while they are computed here */
    uint64_t token_ns;        /* of computing one here; 0: not known */
    uint64_t remote_token_ns; /* from RESERVE to KV that came from a P; 0: not known */
};
/* PREEMPTED_RECOMPUTE or PREEMPTED_HAND_BACK, whichever is expected to cost less; what is not known of here
 * is found out, what is not known of others is not asked for. */
enum preempted plan_return(const struct plan_return *facts);

#endif
