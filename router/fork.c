/* fork: the samples of one request go where the first of them went, as long as there is room, and share its
 * prompt's KV there. One that has tokens already, or that was refused too often, gets KV of its own. */
#include "router/state.h"

uint32_t fork_shared_blocks(uint32_t prompt_count, struct kv_window window)
{
    uint32_t gone = kv_window_gone(window, prompt_count - 1) - window.sinks;
    return (prompt_count - 1 - gone) / BLOCK_TOKENS;
}

/* One whose KV is on a D, or certain to be asked for there. */
static bool has_kv(const struct choice *c)
{
    bool reserved =
        c->state == CHOICE_RESERVING || c->state == CHOICE_FILLING || c->state == CHOICE_PREFILLING;
    return c->decode && (c->state == CHOICE_DECODING || (reserved && !c->fork));
}

bool fork_pick(const struct router_core *core, uint64_t now_ns, struct choice *c,
               struct sched_job job, struct sched_pair *pair)
{
    const struct request *r = c->request;
    c->fork = false;
    if (!core->config.forks || r->choices_count < 2 || c->generated_count > 0 ||
        c->forks_refused == ROUTER_FORKS_REFUSED_MAX || job.prefill_only)
        return false;
    job.blocks -= fork_shared_blocks(r->prompt_count, job.window);
    for (uint32_t i = 0; i < r->choices_count; i++) {
        const struct choice *other = &r->choice[i];
        if (other == c || !has_kv(other) || !other->decode->sched.open) continue;
        if (!sched_has_room(&other->decode->sched, &job, now_ns)) continue;
        *pair = (struct sched_pair){
            .prefill = SCHED_NODE_NONE, .decode = other->decode->index, .local = true};
        c->fork = true;
        c->sibling = i;
        return true;
    }
    return false;
}
