#include "node/plan.h"

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

uint32_t preempt_pick(const struct plan_claim *claims, uint32_t claims_count,
                      const struct plan_claim *wanting)
{
    uint32_t pick = UINT32_MAX;
    for (uint32_t i = 0; i < claims_count; i++) {
        if (!plan_before(wanting, &claims[i]) && !PLANTED("preemption_cycle")) continue;
        if (pick == UINT32_MAX || plan_before(&claims[pick], &claims[i])) pick = i;
    }
    return pick;
}
