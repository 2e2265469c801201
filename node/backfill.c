/* backfill: whole blocks that one node has cached go into the cache of another one, which will compute what
 * follows them (docs/kv-memory.md, "Between turns"). To this node it is a job of cached blocks alone, with a
 * ticket: here the receiver takes blocks and expects them, or the sender pushes what it has and commits. No
 * step names them, and no token comes of it. A sender that lacks some says so: it computes nothing. */
#include "node/state.h"

#include "common/plant.h"

enum err backfill_check(const struct node_core *c, const struct job *job, enum seq_kind kind)
{
    if (!job->cached_only) return OK;
    if (kind != SEQ_REMOTE && kind != SEQ_PUSH)
        return err_set(ERR_INVALID, "a job of cached blocks alone goes from node to node");
    if (!c->cache || c->config.hello.kv_window || job->kv_window)
        return err_set(ERR_UNSUPPORTED, "this node keeps no whole prefixes");
    return OK;
}

bool backfill_is_here(const struct node_core *c, const struct sequence *s)
{
    return s->job.cached_only && accounts_peek(c, s) * BLOCK_TOKENS >= s->goal;
}

enum err backfill_give(struct node_core *c, uint64_t now_ns, struct sequence *s,
                       const struct msg_prefill *p)
{
    enum err e;
    bool planted = PLANTED("backfill_uncached"); /* it sends blocks that nobody computed */
    if ((!backfill_is_here(c, s) && !planted) || accounts_open(c, s, HOLD_SEQUENCE) != OK)
        return err_set(ERR_NOT_FOUND, "%u of %u tokens are cached here",
                       accounts_peek(c, s) * BLOCK_TOKENS, s->goal);
    if (planted) s->kv_count = s->planned = s->goal;
    CHECK(s->kv_count == s->goal);
    if ((e = handover_open(c, now_ns, s, p)) != OK) {
        accounts_close(c, s);
        return e;
    }
    s->began_ns = s->computed_ns = now_ns;
    sequence_enter(c, now_ns, s, SEQ_PREFILL);
    handover_push_cached(c, now_ns, s);
    sequence_step(c, now_ns, s, &(struct seq_input){.event = SEQ_EV_COMPUTED});
    return OK;
}
