/* Room: whether a decode node should take a sequence, or take one back, given how long those that it has are
 * expected to become. Taken are only the blocks that are needed now; a wrong guess costs a preemption. */
#include "node/state.h"

#include "common/plant.h"

static bool decodes(const struct sequence *s)
{
    return s->kind == SEQ_REMOTE || s->kind == SEQ_LOCAL;
}

uint32_t room_private_blocks(const struct sequence *s)
{
    uint32_t others = s->shared_count + (s->gone - s->window.sinks) / BLOCK_TOKENS;
    return s->table_count > others ? s->table_count - others : 0;
}

bool room_is_shared(const struct node_core *c, struct block_id block)
{
    return kv_pool_holds(c->pool, block, HOLD_SEQUENCE) +
               kv_pool_holds(c->pool, block, HOLD_RESERVE) >
           1;
}

void room_note_shared(struct node_core *c, struct sequence *s)
{
    s->shared_count = 0;
    for (uint32_t i = 0; i < s->table_count; i++)
        s->shared_count += s->table[i].v != BLOCK_NONE.v && room_is_shared(c, s->table[i]);
}

/* Blocks that it may take yet: of the tokens that it is expected to have in the end, at least of `horizon` more
 * if it can become so long. */
static uint32_t growth(const struct node_core *c, const struct sequence *s, uint32_t horizon)
{
    uint32_t limit = s->generated_max, now = s->generated_count;
    uint32_t end = lengths_expect(&c->lengths, s->job.prompt_count, s->job.tokens_max, now);
    if (end < now + horizon) end = now + horizon;
    if (end > limit) end = limit;
    return end > now ? blocks_for_tokens(end - now) : 0;
}

/* The same with a window, beside those that it has: until that is full, for what it shares there now, and one
 * that it takes before it lets go of another. */
static uint32_t growth_in_window(const struct node_core *c, const struct sequence *s,
                                 uint32_t horizon, uint32_t held)
{
    uint32_t blocks = growth(c, s, horizon);
    uint32_t end = s->job.prompt_count + s->generated_count + blocks * BLOCK_TOKENS;
    uint32_t most = kv_window_blocks(s->window, end, BLOCK_TOKENS);
    uint32_t left = most > held ? most - held : 0;
    return blocks < left ? blocks : left;
}

static bool is_rival(const struct sequence *t, const struct sequence *s)
{
    return t != s && t->table_count > 0 && decodes(t);
}

/* For so many tokens nobody may run short: what one needs that gave way before. */
static uint32_t horizon_of(const struct node_core *c, const struct sequence *s)
{
    uint32_t most = s->preemptions;
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        const struct sequence *t = &c->sequence[i];
        if (is_rival(t, s) && t->preemptions > most) most = t->preemptions;
    }
    return plan_horizon(most);
}

bool room_for(struct node_core *c, const struct sequence *s)
{
    if (!decodes(s) || PLANTED("no_head_room")) return true;
    uint32_t n = 0, rivals = 0, horizon = horizon_of(c, s), mine = room_private_blocks(s);
    uint64_t capacity = (uint64_t)accounts_available(c) + mine;
    uint64_t windows = 0; /* what those with one may yet take; that they end is not counted on */
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        const struct sequence *t = &c->sequence[i];
        if (!is_rival(t, s)) continue;
        uint32_t held = room_private_blocks(t);
        rivals++;
        if (t->window.tokens) {
            windows += growth_in_window(c, t, horizon, held);
            continue;
        }
        capacity += held;
        c->grower[n++] = (struct plan_grower){held, growth(c, t, horizon)};
    }
    if (rivals == 0) return true; /* alone it has what there is */
    mine += accounts_need(s);
    if (s->window.tokens)
        windows += mine + growth_in_window(c, s, horizon, mine);
    else
        c->grower[n++] = (struct plan_grower){mine, growth(c, s, horizon)};
    return plan_peak(c->grower, n) + windows <= capacity;
}

/* The first of a list, which is sorted, stands before it. */
static bool first_is_older(const struct list_link *head, const struct sequence *s)
{
    if (list_empty(head)) return false;
    struct plan_claim mine = seq_claim(s);
    struct plan_claim first = seq_claim(list_member(head->next, struct sequence, place));
    return plan_before(&first, &mine);
}

bool room_has_older(const struct node_core *c, const struct sequence *s)
{
    return first_is_older(&c->queue, s) || first_is_older(&c->running, s);
}

bool room_hands_back(const struct node_core *c, const struct sequence *s)
{
    uint32_t running = 0;
    if (!s->preempted || !decodes(s) || c->config.preempted == PREEMPTED_RECOMPUTE) return false;
    if (c->config.preempted == PREEMPTED_HAND_BACK) return true;
    for (const struct list_link *l = c->running.next; l != &c->running; l = l->next)
        running++;
    struct plan_return facts = {s->goal - s->kv_count, running, c->token_ns, c->remote_token_ns};
    return plan_return(&facts) == PREEMPTED_HAND_BACK;
}

void room_note_remote(struct node_core *c, const struct sequence *s, uint64_t now_ns)
{
    uint64_t ns = (now_ns - s->accepted_ns) / (seq_total(s) - s->held_tokens);
    c->remote_token_ns = c->remote_token_ns == 0 ? ns : (c->remote_token_ns * 7 + ns) / 8;
}
