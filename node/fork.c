/* Forks: samples of one request that have one prompt here. The first one's KV comes, or is computed, as any
 * prompt's; the others wait for it, share its whole blocks and copy the last one.
 *
 * What a fork waits for has deadlines of its own, so it waits without one. If it will not come, the router is
 * told to try otherwise, unless the cache has all but the last block's tokens. */
#include <string.h>

#include "node/state.h"

static const struct sequence *sibling_of(const struct node_core *c, const struct sequence *s)
{
    const struct sequence *t = job_find(c, s->job.key.request, s->sibling);
    if (!t || t == s || t->fork || t->kind == SEQ_PUSH || t->kind == SEQ_PLAIN) return NULL;
    return t->job.tenant_salt == s->job.tenant_salt && t->job.prompt_count == s->job.prompt_count
               ? t
               : NULL;
}

/* Whether the other one has let go of KV in the fork's window. */
static bool has_left(const struct sequence *s, const struct sequence *t)
{
    return t->gone > kv_window_gone(s->window, s->job.prompt_count - 1);
}

static bool has_kv(const struct sequence *s, const struct sequence *t)
{
    bool held = t->state == SEQ_PREFILL || t->state == SEQ_RUNNING;
    return held && t->kv_count >= s->job.prompt_count && !has_left(s, t);
}

bool fork_waits(const struct node_core *c, const struct sequence *s)
{
    const struct sequence *t = s->fork ? sibling_of(c, s) : NULL;
    bool coming = t && (t->state == SEQ_WAITING || t->state == SEQ_PREFILL ||
                        t->state == SEQ_RESERVED || t->state == SEQ_RUNNING);
    return coming && !has_kv(s, t) && !has_left(s, t);
}

enum err fork_open(struct node_core *c, struct sequence *s)
{
    const struct sequence *t = sibling_of(c, s);
    size_t bytes = s->job.prompt_count * sizeof *s->tokens;
    enum err e;
    if (fork_waits(c, s)) return ERR_AGAIN;
    if (t && has_kv(s, t) && memcmp(s->tokens, t->tokens, bytes) == 0)
        e = accounts_fork(c, s, t);
    else if (accounts_peek(c, s) == (s->job.prompt_count - 1) / BLOCK_TOKENS)
        e = accounts_open(c, s, HOLD_SEQUENCE);
    else
        return ERR_NOT_FOUND;
    if (e == OK) s->fork = false;
    return e;
}

enum err fork_gone(void)
{
    return err_set(ERR_AGAIN, "the choice whose KV it was to share is not here");
}
