/* Where a job stands among those of this node. Prompts are computed in that order, and what stands last gives its
 * blocks back first.
 *
 * It is by arrival, and tenants take turns: a job stands behind the tokens that its tenant has here already,
 * as its router says, and before what others have behind as many. On P the count starts at the tokens computed
 * so far, so that nobody stands still: whoever comes later stands behind all that was computed until then.
 * On D it starts where the first one stands. */
#include "node/state.h"

static uint64_t first_live(const struct node_core *c, bool last)
{
    uint64_t tokens = last ? 0 : UINT64_MAX;
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        const struct sequence *s = &c->sequence[i];
        if (s->state == SEQ_FREE || s->state == SEQ_ENDING) continue;
        uint64_t at = plan_order_tokens(s->order);
        if (last ? at > tokens : at < tokens) tokens = at;
    }
    return tokens == UINT64_MAX ? 0 : tokens;
}

uint64_t fair_order(struct node_core *c, const struct job *job)
{
    /* The count of arrivals begins anew: those before it stand before those after it. */
    if (++c->orders_made % PLAN_ARRIVALS == 0) c->order_floor = first_live(c, true) + 1;
    uint64_t base = c->config.role == ROLE_PREFILL ? c->counts.prompt_tokens : first_live(c, false);
    if (base < c->order_floor) base = c->order_floor;
    return plan_order(base, job->fair_lead, c->orders_made);
}
