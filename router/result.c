/* result: what comes of requests that score or embed. A node tells them in pieces and then FINISHED; they are
 * gathered here and told to the client when all are there, so that a result is one attempt's. */
#include "router/state.h"

enum { HIDDEN_MAX = 1 << 16 }; /* numbers of an embedding: no model has as many */

/* Whether a result of so many numbers is possible. */
static bool fits(const struct choice *c, uint32_t total)
{
    const struct request *r = c->request;
    if (r->kind == JOB_GENERATE || total == 0) return false;
    return r->kind == JOB_SCORE ? total == r->prompt_count - 1 : total <= HIDDEN_MAX;
}

void result_forget(struct choice *c)
{
    mem_free(c->values);
    c->values = NULL;
    c->values_count = c->values_total = 0;
}

bool result_is_whole(const struct choice *c)
{
    return c->request->kind == JOB_GENERATE ||
           (c->values_total > 0 && c->values_count == c->values_total);
}

enum err result_add(struct choice *c, const struct msg_encoded *m)
{
    if (!fits(c, m->total) || (c->values && m->total != c->values_total))
        return err_set(ERR_FORMAT, "a result of %u numbers where others belong", m->total);
    if (!c->values && !(c->values = mem_array(m->total, sizeof *c->values))) return ERR_MEMORY;
    c->values_total = m->total;
    if (m->index > c->values_count) return OK; /* a gap: it is asked for at the end */
    for (uint32_t i = c->values_count - m->index; i < m->values_count; i++)
        c->values[c->values_count++] = m->values[i];
    return OK;
}

void result_tell(struct router_core *core, const struct choice *c)
{
    const struct request *r = c->request;
    for (uint32_t from = 0, n; r->client && from < c->values_count; from += n) {
        n = c->values_count - from < MSG_VALUES_MAX ? c->values_count - from : MSG_VALUES_MAX;
        struct msg m = {.kind = MSG_ENCODED,
                        .encoded = {.key = choice_key(c),
                                    .index = from,
                                    .total = c->values_total,
                                    .values = c->values + from,
                                    .values_count = n}};
        if (r->kind == JOB_SCORE) {
            m.encoded.tokens = r->submit.tokens + from + 1;
            m.encoded.tokens_count = n;
        }
        registry_send(core, r->client->peer, &m);
    }
}

void result_count(struct router_core *core, const struct choice *c)
{
    struct router_counts *n = &core->counts;
    n->done++;
    n->scores += c->request->kind == JOB_SCORE;
    n->embeddings += c->request->kind == JOB_EMBED_LAST || c->request->kind == JOB_EMBED_MEAN;
    n->prefill_only += c->request->kind == JOB_GENERATE && c->request->submit.tokens_max == 0;
}
