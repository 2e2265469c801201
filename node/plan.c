#include "node/plan.h"

#include <stdlib.h>

#include "common/geometry.h"
#include "common/plant.h"

struct left {
    uint32_t sequences, rows, table;
};

/* How many of `wanted` rows fit into what is left of the step's arrays. */
static uint32_t rows_that_fit(const struct plan_job *j, uint32_t wanted, const struct left *left)
{
    if (left->sequences == 0) return 0;
    uint32_t rows = wanted < left->rows ? wanted : left->rows;
    uint64_t reach = (uint64_t)left->table * BLOCK_TOKENS; /* tokens that the table can name */
    if (reach <= j->position) return 0;
    if (rows > reach - j->position) rows = (uint32_t)(reach - j->position);
    return rows;
}

static void take(struct left *left, const struct plan_job *j, uint32_t rows)
{
    left->sequences--;
    left->rows -= rows;
    left->table -= blocks_for_tokens(j->position + rows);
}

uint32_t chunk_plan(const struct plan_job *jobs, uint32_t jobs_count,
                    const struct plan_budget *budget, struct plan_part *parts)
{
    struct left left = {budget->limits.sequences_max, budget->limits.rows_max,
                        budget->limits.table_max};
    uint32_t n = 0;
    for (uint32_t i = 0; i < jobs_count && n < budget->decodes_max; i++) {
        if (!jobs[i].decode || jobs[i].rows_wanted == 0) continue;
        if (rows_that_fit(&jobs[i], 1, &left) == 0) continue;
        take(&left, &jobs[i], 1);
        parts[n++] = (struct plan_part){i, 1};
    }
    if (left.rows > budget->chunk_tokens) left.rows = budget->chunk_tokens;
    for (uint32_t i = 0; i < jobs_count && left.rows > 0; i++) {
        if (jobs[i].decode || jobs[i].rows_wanted == 0) continue;
        uint32_t rows = rows_that_fit(&jobs[i], jobs[i].rows_wanted, &left);
        if (rows == 0) continue;
        take(&left, &jobs[i], rows);
        parts[n++] = (struct plan_part){i, rows};
    }
    return n;
}

uint64_t plan_begin_ns(const struct plan_pace *p)
{
    uint64_t ends_ns = p->from_ns + (p->busy ? p->step_ns : 0);
    uint64_t lead_ns = p->step_ns / PLAN_LEAD_PART;
    uint64_t held_ns = ends_ns + p->step_ns / PLAN_HOLD_PART;
    if (lead_ns < PLAN_LEAD_NS) lead_ns = PLAN_LEAD_NS;
    if (p->due_ns <= held_ns) return held_ns;
    return p->busy && ends_ns > p->from_ns + lead_ns ? ends_ns - lead_ns : p->from_ns;
}

/* Whether a gives way before b does. */
static bool gives_way(const struct plan_claim *a, const struct plan_claim *b)
{
    if (a->priority != b->priority) return a->priority > b->priority;
    if (a->cost != b->cost) return a->cost < b->cost;
    return plan_before(b, a);
}

uint32_t preempt_pick(const struct plan_claim *claims, uint32_t claims_count,
                      const struct plan_claim *wanting)
{
    uint32_t pick = UINT32_MAX;
    for (uint32_t i = 0; i < claims_count; i++) {
        if (!plan_before(wanting, &claims[i]) && !PLANTED("preemption_cycle")) continue;
        if (pick == UINT32_MAX || gives_way(&claims[i], &claims[pick])) pick = i;
    }
    return pick;
}

uint64_t preempt_cost(uint32_t private_blocks, uint32_t preemptions)
{
    return private_blocks == 0 ? UINT64_MAX : (uint64_t)private_blocks * (1 + preemptions);
}

static int by_growth(const void *a, const void *b)
{
    uint32_t x = ((const struct plan_grower *)a)->grow, y = ((const struct plan_grower *)b)->grow;
    return x < y ? 1 : x > y ? -1 : 0;
}

uint64_t plan_peak(struct plan_grower *growers, uint32_t count)
{
    uint64_t held = 0, peak = 0;
    qsort(growers, count, sizeof *growers, by_growth);
    for (uint32_t i = 0; i < count;
         i++) { /* when this one ends, those before it have grown as far */
        held += growers[i].held;
        uint64_t then = held + (uint64_t)(i + 1) * growers[i].grow;
        if (then > peak) peak = then;
    }
    return peak;
}

uint32_t plan_horizon(uint32_t preemptions)
{
    enum { DOUBLINGS_MAX = 16 };
    if (preemptions == 0) return 0;
    return BLOCK_TOKENS << (preemptions < DOUBLINGS_MAX ? preemptions : DOUBLINGS_MAX);
}

enum preempted plan_return(const struct plan_return *f)
{
    if (f->remote_token_ns == 0 || f->token_ns == 0) return PREEMPTED_RECOMPUTE;
    double here = (double)f->missing_tokens * (double)f->token_ns * (1 + (double)f->running);
    double there = (double)f->missing_tokens * (double)f->remote_token_ns;
    return here > there ? PREEMPTED_HAND_BACK : PREEMPTED_RECOMPUTE;
}
