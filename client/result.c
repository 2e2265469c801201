/* The numbers that a request to score or embed gives, gathered until it ends. A router tells all of them in
 * order before DONE; one that took over begins at the first again. */
#include <string.h>

#include "client/internal.h"
#include "common/mem.h"

static bool make_room(struct tandem_request *r, const struct msg_encoded *m)
{
    struct values *v = &r->values;
    values_free(v);
    v->total = m->total;
    v->number = mem_array(m->total, sizeof *v->number);
    if (m->tokens_count > 0) v->token = mem_array(m->total, sizeof *v->token);
    return v->number && (m->tokens_count == 0 || v->token);
}

void values_free(struct values *v)
{
    mem_free(v->number);
    mem_free(v->token);
    *v = (struct values){0};
}

bool values_are_whole(const struct tandem_request *r)
{
    return r->submit.kind == JOB_GENERATE ||
           (r->values.total > 0 && r->values.count == r->values.total);
}

enum err values_add(struct tandem_request *r, const struct msg_encoded *m)
{
    struct values *v = &r->values;
    if (m->index == 0 && !make_room(r, m)) return ERR_MEMORY;
    bool other_tokens = m->values_count > 0 && (m->tokens_count > 0) != (v->token != NULL);
    if (m->index != v->count || m->total != v->total || other_tokens)
        return err_set(ERR_FORMAT, "the router left out numbers");
    if (m->values_count > 0)
        memcpy(v->number + v->count, m->values, m->values_count * sizeof *m->values);
    if (m->tokens_count > 0)
        memcpy(v->token + v->count, m->tokens, m->tokens_count * sizeof *m->tokens);
    v->count += m->values_count;
    return OK;
}
