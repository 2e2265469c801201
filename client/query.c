/* query: questions that a router answers with a text, pins among them. One that a lost router had not answered
 * is asked again. */
#include <string.h>

#include "client/internal.h"
#include "common/mem.h"

struct question {
    struct list_link link;
    uint64_t ref;
    enum query kind;
    char argument[MSG_NAME_MAX + 1];
    bool sent;
    bool pin, remove;   /* a PIN: of `argument` */
    struct arena arena; /* its strings */
    const char *tenant, *text;
    const uint32_t *tokens;
    size_t text_bytes, tokens_count;
    tandem_answer_fn *fn;
    void *ctx;
};

static void forget(struct question *q)
{
    list_remove(&q->link);
    arena_fini(&q->arena);
    mem_free(q);
}

static enum tandem_status question_new(struct tandem *t, enum query kind, const char *argument,
                                       tandem_answer_fn *fn, void *ctx, struct question **out)
{
    size_t n = strlen(argument);
    if (n > MSG_NAME_MAX)
        return status_of(
            err_set(ERR_INVALID, "\"%.80s\" is too long for an id or a name", argument));
    if (t->closing) return status_of(err_set(ERR_CANCELLED, "the connection is closed"));
    struct question *q = mem_new(sizeof *q);
    if (!q) return TANDEM_MEMORY;
    list_init(&q->link);
    q->ref = ++t->next_ref;
    q->kind = kind;
    memcpy(q->argument, argument, n + 1);
    q->fn = fn;
    q->ctx = ctx;
    *out = q;
    return TANDEM_OK;
}

static struct msg message_of(const struct question *q)
{
    if (!q->pin)
        return (struct msg){.kind = MSG_QUERY,
                            .query = {.ref = q->ref, .query = q->kind, .argument = q->argument}};
    return (struct msg){.kind = MSG_PIN,
                        .pin = {.ref = q->ref,
                                .remove = q->remove,
                                .name = q->argument,
                                .tenant = q->tenant,
                                .text = q->text,
                                .text_bytes = (uint32_t)q->text_bytes,
                                .tokens = q->tokens,
                                .tokens_count = (uint32_t)q->tokens_count}};
}

/* Looks at it as the wire would, which would refuse it again and again. */
static enum tandem_status begin(struct tandem *t, struct question *q)
{
    struct buf wire = {0};
    struct msg m = message_of(q);
    enum err e = msg_encode(&m, &wire);
    buf_fini(&wire);
    if (e != OK) {
        forget(q);
        return status_of(e);
    }
    list_push_back(&t->queries, &q->link);
    connection_kick(t);
    return TANDEM_OK;
}

static enum tandem_status ask(struct tandem *t, enum query kind, const char *argument,
                              tandem_answer_fn *fn, void *ctx)
{
    struct question *q = NULL;
    enum tandem_status status = question_new(t, kind, argument, fn, ctx, &q);
    return status == TANDEM_OK ? begin(t, q) : status;
}

static enum tandem_status pin(struct tandem *t, const struct tandem_pin *p, bool remove,
                              tandem_answer_fn *fn, void *ctx)
{
    struct question *q = NULL;
    const char *tenant = p->tenant ? p->tenant : "";
    static const char letters[] =
        "0123456789.-_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    if (!p->name || !p->name[0] || p->name[strspn(p->name, letters)])
        return status_of(
            err_set(ERR_INVALID, "a pin's name is of letters, digits, '.', '_' and '-'"));
    if (strlen(tenant) > MSG_NAME_MAX)
        return status_of(
            err_set(ERR_INVALID, "a tenant's name has at most %d bytes", MSG_NAME_MAX));
    if (p->text_bytes > MSG_BYTES_MAX / 2 || p->tokens_count > JOB_TOKENS_MAX)
        return status_of(err_set(ERR_INVALID, "the prompt to pin is too long"));
    enum tandem_status status = question_new(t, 0, p->name, fn, ctx, &q);
    if (status != TANDEM_OK) return status;
    q->pin = true;
    q->remove = remove;
    q->text_bytes = p->text_bytes;
    q->tokens_count = p->tokens_count;
    q->tenant = arena_copy(&q->arena, tenant, strlen(tenant));
    q->text = arena_copy(&q->arena, p->text, p->text_bytes);
    q->tokens = arena_copy(&q->arena, p->tokens, p->tokens_count * sizeof *p->tokens);
    if (q->tenant && q->text && q->tokens) return begin(t, q);
    forget(q);
    return TANDEM_MEMORY;
}

enum tandem_status tandem_pin(struct tandem *t, const struct tandem_pin *p, tandem_answer_fn *fn,
                              void *ctx)
{
    return pin(t, p, false, fn, ctx);
}

enum tandem_status tandem_unpin(struct tandem *t, const char *name, const char *tenant,
                                tandem_answer_fn *fn, void *ctx)
{
    return pin(t, &(struct tandem_pin){.name = name, .tenant = tenant}, true, fn, ctx);
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
    forget(q);
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
        struct msg m = message_of(q);
        if (!q->sent) q->sent = connection_send(t, &m) == OK;
    }
}
