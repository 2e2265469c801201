#include <string.h>

#include "client/internal.h"
#include "common/mem.h"

struct question {
    struct list_link link;
    uint64_t ref;
    enum query kind;
    char argument[MSG_NAME_MAX + 1];
    bool sent;
    tandem_answer_fn *fn;
    void *ctx;
};

static enum tandem_status ask(struct tandem *t, enum query kind, const char *argument,
                              tandem_answer_fn *fn, void *ctx)
{
    size_t n = strlen(argument);
    if (n > MSG_NAME_MAX)
        return status_of(
            err_set(ERR_INVALID, "\"%.80s\" is too long for an id or a name", argument));
    if (t->closing) return status_of(err_set(ERR_CANCELLED, "the connection is closed"));
    struct question *q = mem_new(sizeof *q);
    if (!q) return TANDEM_MEMORY;
    q->ref = ++t->next_ref;
    q->kind = kind;
    memcpy(q->argument, argument, n + 1);
    q->fn = fn;
    q->ctx = ctx;
    list_push_back(&t->queries, &q->link);
    connection_kick(t);
    return TANDEM_OK;
}

enum tandem_status tandem_query_status(struct tandem *t, tandem_answer_fn *fn, void *ctx)
{
    return ask(t, QUERY_STATUS, "", fn, ctx);
}

enum tandem_status tandem_query_explain(struct tandem *t, const char *id, tandem_answer_fn *fn,
                                        void *ctx)
{
    return ask(t, QUERY_EXPLAIN, id, fn, ctx);
}

enum tandem_status tandem_query_kv(struct tandem *t, const char *node, tandem_answer_fn *fn,
                                   void *ctx)
{
    return ask(t, QUERY_KV, node, fn, ctx);
}

enum tandem_status tandem_drain(struct tandem *t, const char *node, tandem_answer_fn *fn, void *ctx)
{
    return ask(t, QUERY_DRAIN, node, fn, ctx);
}

static void end(struct question *q, enum tandem_status status, const char *text, size_t bytes)
{
    list_remove(&q->link);
    q->fn(q->ctx, status, text, bytes);
    mem_free(q);
}

void query_on_answer(struct tandem *t, const struct msg_answer *m)
{
    for (struct list_link *l = t->queries.next; l != &t->queries; l = l->next) {
        struct question *q = list_member(l, struct question, link);
        if (q->ref != m->ref) continue;
        end(q, status_of(m->error), m->text, m->text_bytes);
        return;
    }
}

void queries_lost(struct tandem *t)
{
    for (struct list_link *l = t->queries.next; l != &t->queries; l = l->next)
        list_member(l, struct question, link)->sent = false; /* asking again does no harm */
}

void queries_fail(struct tandem *t, enum tandem_status status, const char *reason)
{
    uint64_t last_ref = t->next_ref;
    while (!list_empty(&t->queries)) {
        struct question *q = list_member(t->queries.next, struct question, link);
        if (q->ref > last_ref) return; /* asked by a callback meanwhile */
        end(q, status, reason, strlen(reason));
    }
}

void queries_pump(struct tandem *t)
{
    if (!connection_is_up(t)) return;
    for (struct list_link *l = t->queries.next; l != &t->queries; l = l->next) {
        struct question *q = list_member(l, struct question, link);
        struct msg m = {.kind = MSG_QUERY,
                        .query = {.ref = q->ref, .query = q->kind, .argument = q->argument}};
        if (!q->sent) q->sent = connection_send(t, &m) == OK;
    }
}
