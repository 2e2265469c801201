/* What the blocks of sequences hold, beside what contiguous memory would take that is sized for the longest
 * that each may become. */
#include "node/state.h"

/* Blocks are taken for the tokens that are known and those that submitted steps will draw. */
bool waste_is_bounded(const struct sequence *s)
{
    return s->table_count <= blocks_for_tokens(seq_total(s) + s->samples_in_flight) + 1;
}

static uint64_t longest(const struct node_core *c, const struct sequence *s)
{
    uint64_t more = seq_prefills_only(s) ? s->job.forwarded_count : s->job.tokens_max;
    uint64_t end = s->job.prompt_count + more;
    return end < c->config.context_max ? end : c->config.context_max;
}

void waste_now(const struct node_core *c, struct node_counts *n)
{
    n->held_tokens = n->wasted_slots = n->contiguous_slots = 0;
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        const struct sequence *s = &c->sequence[i];
        if (s->table_count == 0) continue;
        bool partial = s->state == SEQ_RESERVED || s->state == SEQ_PREFILL;
        uint32_t tokens = partial ? s->goal : s->planned, places = s->table_count * BLOCK_TOKENS;
        uint32_t gone = s->gone - s->window.sinks;
        if (tokens > places) tokens = places;
        n->held_tokens += tokens - gone;
        n->wasted_slots += places - tokens;
        n->contiguous_slots += longest(c, s);
    }
}

uint64_t waste_blocks_full(const struct node_core *c)
{
    uint64_t blocks = 0;
    for (uint32_t i = 0; i < c->config.slots_count; i++)
        if (seq_is_live(&c->sequence[i])) blocks += accounts_need_all(&c->sequence[i]);
    return blocks;
}

void waste_note(struct node_core *c)
{
    struct node_counts *n = &c->counts;
    uint64_t blocks_full = waste_blocks_full(c);
    if (blocks_full > n->blocks_full_peak) n->blocks_full_peak = blocks_full;
    waste_now(c, n);
    if (n->held_tokens <= n->held_tokens_peak) return;
    n->held_tokens_peak = n->held_tokens;
    n->wasted_slots_peak = n->wasted_slots;
    n->contiguous_slots_peak = n->contiguous_slots;
}
