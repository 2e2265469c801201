#include "router/kv_query.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/state.h"
#include "text/tokenizer.h"

enum { IDS_MAX = 16, LEVELS_MAX = 16 };

struct asked {
    struct peer peer;
    char name[MSG_NAME_MAX + 1];
    bool waits;
};

struct kv_query {
    struct list_link link; /* core->kv_queries */
    struct peer peer;      /* who asked */
    uint64_t ref, number;
    uint64_t deadline_ns;
    struct buf reports, missing; /* rows of JSON lists, with commas */
    uint32_t asked_count, waiting_count;
    struct asked asked[];
};

/* ---- making a node's report one for people ---- */

static void add_words(const struct router_core *core, json_t *row, const char *ids_name,
                      const char *words_name)
{
    uint32_t ids[IDS_MAX];
    const json_t *list = json_object_get(row, ids_name), *id;
    size_t i, count = 0, length;
    char *text;
    json_array_foreach(list, i, id)
    {
        json_int_t v = json_integer_value(id);
        if (count < IDS_MAX && json_is_integer(id) && v >= 0 && v < core->cluster.vocab)
            ids[count++] = (uint32_t)v;
    }
    const struct tokenizer *t = core->config.tokenizer;
    if (!t || tokenizer_decode(t, ids, count, TOKENIZER_SKIP_SPECIAL, &text, &length) != OK) return;
    for (i = 0; i < length; i++)
        if (!text[i]) text[i] = ' '; /* a zero byte is no text that a reader of JSON takes */
    json_object_set_new(row, words_name, json_stringn(text, length));
    mem_free(text);
}

/* Requests without a tenant have "", and salt 0 if they see all tokens; who is not known here is not named. */
static void name_tenant(const struct router_core *core, json_t *row)
{
    static const struct tenant_name nobody;
    const char *text = json_string_value(json_object_get(row, "salt"));
    if (!text) return;
    uint64_t salt = strtoull(text, NULL, 16);
    const struct tenant_name *t = salt == 0 ? &nobody : &core->tenant_name[salt % KV_QUERY_TENANTS];
    if (t->salt != salt) return;
    json_object_set_new(row, "tenant", json_string(t->name));
    if (t->kv_window == 0) return;
    json_object_set_new(row, "kv_window", json_integer(t->kv_window));
    json_object_set_new(row, "kv_sinks", json_integer(t->kv_sinks));
}

static void translate(const struct router_core *core, json_t *report)
{
    json_t *row;
    size_t i;
    json_array_foreach(json_object_get(report, "tenants"), i, row)
    {
        if (i < KV_QUERY_ROWS_MAX) name_tenant(core, row);
    }
    json_array_foreach(json_object_get(report, "prefixes"), i, row)
    {
        if (i >= KV_QUERY_ROWS_MAX) break;
        name_tenant(core, row);
        if (core->config.kv_words) {
            add_words(core, row, "first", "words");
            add_words(core, row, "last", "last_words");
        } else {
            json_object_del(row, "first");
            json_object_del(row, "last");
        }
    }
}

static void add_row(struct buf *rows, json_t *row)
{
    char *text = row ? json_dumps(row, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
    if (!text) rows->error = err_set(ERR_MEMORY, "out of memory for the answer");
    if (text && rows->size > 0) buf_add_string(rows, ",");
    if (text) buf_add_string(rows, text);
    free(text);
    json_decref(row);
}

/* The reason is the node's own, and may be any bytes. */
static void add_missing(struct buf *rows, const char *name, const char *reason)
{
    buf_add_string(rows, rows->size > 0 ? ",{\"node\":" : "{\"node\":");
    buf_json_string(rows, name, strlen(name));
    buf_add_string(rows, ",\"reason\":");
    buf_json_string(rows, reason, strlen(reason));
    buf_add_string(rows, "}");
}

/* More levels of lists and objects than any report has: a reader of the answer may not take them. */
static bool is_deep(const json_t *value, uint32_t levels)
{
    const json_t *inner;
    const char *name;
    size_t i;
    if (!json_is_object(value) && !json_is_array(value)) return false;
    if (levels == 0) return true;
    json_array_foreach(value, i, inner) if (is_deep(inner, levels - 1)) return true;
    json_object_foreach((json_t *)value, name, inner) if (is_deep(inner, levels - 1)) return true;
    return false;
}

static enum err add_report(const struct router_core *core, struct kv_query *q,
                           const struct msg_answer *a)
{
    if (a->error != OK) return err_set(a->error, "%.*s", (int)a->text_bytes, a->text);
    if (a->text_bytes > KV_QUERY_REPORT_MAX)
        return err_set(ERR_FORMAT, "a report of %u bytes", a->text_bytes);
    json_t *report = json_loadb(a->text, a->text_bytes, 0, NULL);
    if (!json_is_object(report) || is_deep(report, LEVELS_MAX)) {
        json_decref(report);
        return err_set(ERR_FORMAT, "its report is no JSON object of at most %d levels", LEVELS_MAX);
    }
    translate(core, report);
    add_row(&q->reports, report);
    return OK;
}

/* ---- the client's answer ---- */

static void query_free(struct kv_query *q)
{
    list_remove(&q->link);
    buf_fini(&q->reports);
    buf_fini(&q->missing);
    mem_free(q);
}

static void finish(struct router_core *core, uint64_t now_ns, struct kv_query *q)
{
    struct buf text = {.limit_bytes = MSG_BYTES_MAX / 2};
    char head[MSG_NAME_MAX + 64];
    snprintf(head, sizeof head, "{\"router\":\"%s\",\"at_s\":%.3f,\"nodes\":[", core->config.name,
             (double)now_ns / (double)NS_PER_S);
    buf_add_string(&text, head);
    buf_add(&text, q->reports.data, q->reports.size);
    buf_add_string(&text, "],\"missing\":[");
    buf_add(&text, q->missing.data, q->missing.size);
    buf_add_string(&text, "]}");
    enum err e = q->reports.error ? q->reports.error : q->missing.error;
    if (e == OK) e = text.error;
    struct msg m = {.kind = MSG_ANSWER, .answer = {q->ref, e, text.data, (uint32_t)text.size}};
    if (e != OK) {
        m.answer.text = "the reports are too large for one answer: ask for one node";
        m.answer.text_bytes = (uint32_t)strlen(m.answer.text);
    }
    registry_send(core, q->peer, &m);
    buf_fini(&text);
    query_free(q);
}

/* The node's part is done; `q` may be gone after this. */
static void settle_one(struct router_core *core, uint64_t now_ns, struct kv_query *q,
                       struct asked *a, const char *missing_for)
{
    a->waits = false;
    q->waiting_count--;
    if (missing_for) add_missing(&q->missing, a->name, missing_for);
    if (q->waiting_count == 0) finish(core, now_ns, q);
}

static struct asked *waiting_for(struct kv_query *q, struct peer peer)
{
    for (uint32_t i = 0; i < q->asked_count; i++)
        if (q->asked[i].waits && q->asked[i].peer.v == peer.v) return &q->asked[i];
    return NULL;
}

void kv_query_on_answer(struct router_core *core, uint64_t now_ns, const struct node *node,
                        const struct msg_answer *answer)
{
    for (struct list_link *l = core->kv_queries.next; l != &core->kv_queries; l = l->next) {
        struct kv_query *q = list_member(l, struct kv_query, link);
        struct asked *a = q->number == answer->ref ? waiting_for(q, node->peer) : NULL;
        if (!a) continue;
        enum err e = add_report(core, q, answer);
        settle_one(core, now_ns, q, a, e == OK ? NULL : err_text());
        return;
    }
    core->counts.stale_messages++;
}

void kv_query_node_lost(struct router_core *core, uint64_t now_ns, const struct node *node)
{
    for (struct list_link *l = core->kv_queries.next, *next; l != &core->kv_queries; l = next) {
        struct kv_query *q = list_member(l, struct kv_query, link);
        struct asked *a = waiting_for(q, node->peer);
        next = l->next;
        if (a) settle_one(core, now_ns, q, a, "it has left");
    }
}

void kv_query_client_lost(struct router_core *core, struct peer peer)
{
    for (struct list_link *l = core->kv_queries.next, *next; l != &core->kv_queries; l = next) {
        struct kv_query *q = list_member(l, struct kv_query, link);
        next = l->next;
        if (q->peer.v == peer.v) query_free(q);
    }
}

static void give_up(struct router_core *core, uint64_t now_ns, struct kv_query *q)
{
    char reason[64];
    snprintf(reason, sizeof reason, "no answer in %llu ms",
             (unsigned long long)(KV_QUERY_WAIT_NS / NS_PER_MS));
    uint32_t left = q->waiting_count;
    for (uint32_t i = 0; left > 0; i++) {
        if (!q->asked[i].waits) continue;
        left--; /* the last one ends the query */
        settle_one(core, now_ns, q, &q->asked[i], reason);
    }
}

uint64_t kv_query_on_timer(struct router_core *core, uint64_t now_ns)
{
    for (struct list_link *l = core->kv_queries.next, *next; l != &core->kv_queries; l = next) {
        struct kv_query *q = list_member(l, struct kv_query, link);
        next = l->next;
        if (now_ns >= q->deadline_ns) give_up(core, now_ns, q);
    }
    return kv_query_wake_ns(core);
}

uint64_t kv_query_wake_ns(const struct router_core *core)
{
    /* The one that waits longest stands first. */
    return list_empty(&core->kv_queries)
               ? TIME_NEVER
               : list_member(core->kv_queries.next, struct kv_query, link)->deadline_ns;
}

void kv_queries_free(struct router_core *core)
{
    while (!list_empty(&core->kv_queries))
        query_free(list_member(core->kv_queries.next, struct kv_query, link));
}

/* ---- asking ---- */

static uint32_t queries_count(const struct router_core *core)
{
    uint32_t count = 0;
    for (const struct list_link *l = core->kv_queries.next; l != &core->kv_queries; l = l->next)
        count++;
    return count;
}

static void ask(struct router_core *core, struct kv_query *q, const struct node *n)
{
    struct asked *a = &q->asked[q->asked_count++];
    a->peer = n->peer;
    a->waits = true;
    snprintf(a->name, sizeof a->name, "%s", n->hello.name);
    q->waiting_count++;
    struct msg m = {.kind = MSG_QUERY, .query = {q->number, QUERY_KV, ""}};
    registry_send(core, n->peer, &m);
}

enum err kv_query_begin(struct router_core *core, uint64_t now_ns, struct peer peer,
                        const struct msg_query *query)
{
    const char *name = query->argument;
    if (queries_count(core) >= KV_QUERIES_MAX)
        return err_set(ERR_FULL, "%d such questions wait for their nodes already", KV_QUERIES_MAX);
    struct kv_query *q = mem_new(sizeof *q + core->nodes_count * sizeof q->asked[0]);
    if (!q) return ERR_MEMORY;
    q->peer = peer;
    q->ref = query->ref;
    q->number = ++core->kv_queries_made;
    q->deadline_ns = now_ns + KV_QUERY_WAIT_NS;
    list_init(&q->link);
    for (uint32_t i = 0; i < core->nodes_count; i++)
        if (!name[0] || strcmp(core->nodes[i]->hello.name, name) == 0) ask(core, q, core->nodes[i]);
    if (name[0] && q->asked_count == 0) {
        query_free(q);
        return err_set(ERR_NOT_FOUND, "no node is named %s: tandem status lists them", name);
    }
    list_push_back(&core->kv_queries, &q->link);
    if (q->waiting_count == 0) finish(core, now_ns, q);
    return OK;
}

void kv_query_note_tenant(struct router_core *core, uint64_t salt, const struct msg_submit *submit)
{
    struct tenant_name *t = &core->tenant_name[salt % KV_QUERY_TENANTS];
    if (t->salt == salt) return;
    t->salt = salt;
    t->kv_window = submit->kv_window;
    t->kv_sinks = submit->kv_sinks;
    snprintf(t->name, sizeof t->name, "%s", submit->tenant ? submit->tenant : "");
}
