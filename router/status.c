/* status: what `tandem status --json` and `tandem explain --json` show, built with jansson. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "router/state.h"

static enum err dump(json_t *root, struct buf *out)
{
    char *text = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
    json_decref(root);
    if (!text) return err_set(ERR_MEMORY, "out of memory for the answer");
    enum err e = buf_add_string(out, text);
    free(text);
    return e;
}

static const char *role_name(enum role role)
{
    return role == ROLE_PREFILL ? "prefill" : "decode";
}

static json_t *place_json(const struct msg_hello *h)
{
    return json_pack("{s:s,s:I,s:s,s:s}", "pci", h->pci ? h->pci : "", "numa",
                     (json_int_t)h->numa - 1, "cpus", h->cpus ? h->cpus : "", "cards",
                     h->cards ? h->cards : "");
}

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

/* Places for tokens: filled, empty, and what contiguous memory for the longest would have taken; when most
 * were filled, too. */
static json_t *memory_json(const struct node_load *l)
{
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o}", "held_tokens", number(l->held_tokens),
                     "wasted_slots", number(l->wasted_slots), "contiguous_slots",
                     number(l->contiguous_slots), "held_tokens_peak", number(l->held_tokens_peak),
                     "wasted_slots_peak", number(l->wasted_slots_peak), "contiguous_slots_peak",
                     number(l->contiguous_slots_peak));
}

/* What sharing saved and pressure cost since the node began. */
static json_t *pressure_json(const struct node_load *l)
{
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "preemptions", number(l->preemptions),
                     "returned_cached_tokens", number(l->returned_cached_tokens),
                     "returned_computed_tokens", number(l->returned_computed_tokens), "handed_back",
                     number(l->handed_back), "forks", number(l->forks), "fork_shared_blocks",
                     number(l->fork_shared_blocks), "fork_copied_blocks",
                     number(l->fork_copied_blocks));
}

static json_t *tiers_json(uint32_t bits)
{
    static const char *const names[] = {"memory", "disk", "redis"}; /* enum kv_tier_kind */
    json_t *tiers = json_array();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (bits >> i & 1) json_array_append_new(tiers, json_string(names[i]));
    return tiers;
}

static json_t *node_json(const struct node *n, uint64_t now_ns)
{
    const struct node_load *l = &n->load;
    json_t *blocks =
        json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "total", (json_int_t)l->blocks_total, "free",
                  (json_int_t)l->blocks_free, "reserved", (json_int_t)l->blocks_reserved, "active",
                  (json_int_t)l->blocks_active, "cached", (json_int_t)l->blocks_cached, "transfer",
                  (json_int_t)l->blocks_transfer);
    json_t *load = json_pack(
        "{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "running", (json_int_t)l->running, "waiting",
        (json_int_t)l->waiting, "waiting_tokens", (json_int_t)l->waiting_tokens, "step_us",
        (json_int_t)l->step_us, "prefill_ns_per_token", (json_int_t)l->token_ns, "prompt_tokens",
        (json_int_t)n->prompt_tokens, "generated_tokens", (json_int_t)n->generated_tokens,
        "slow_callbacks", (json_int_t)l->slow_callbacks);
    double idle_s = n->busy ? (double)(now_ns - n->progress_ns) / (double)NS_PER_S : 0;
    json_object_set_new(load, "busy", json_boolean(n->busy));
    json_object_set_new(load, "without_progress_s", json_real(idle_s));
    json_object_set_new(load, "sequences_max", number(n->hello.sequences_max));
    json_object_set_new(load, "context_max", number(n->hello.context_max));
    return json_pack("{s:s,s:s,s:s,s:I,s:s,s:s,s:o,s:o,s:o,s:o,s:o,s:o}", "name", n->hello.name,
                     "role", role_name(n->hello.role), "state", n->draining ? "draining" : "up",
                     "pid", (json_int_t)n->hello.pid, "host", n->hello.host, "device",
                     n->hello.device, "place", place_json(&n->hello), "blocks", blocks, "load",
                     load, "memory", memory_json(l), "pressure", pressure_json(l), "tiers_broken",
                     tiers_json(l->tiers_broken));
}

/* Bytes a second of what requests waited for, by decode node. */
static json_t *rates_json(const struct router_core *core, const struct node *from)
{
    json_t *rates = json_object();
    for (uint32_t i = 0; i < core->nodes_count && from->rates; i++)
        if (from->rates[i].ns > 0)
            json_object_set_new(rates, core->nodes[i]->hello.name,
                                number(from->rates[i].bytes_per_s));
    return rates;
}

/* NULL: nothing was sent from there. */
static json_t *link_json(const struct router_core *core, const struct node *n)
{
    if (n->hello.role != ROLE_PREFILL || !n->link[0]) return NULL;
    return json_pack("{s:s,s:s,s:I,s:o}", "from", n->hello.name, "kind", n->link, "bytes",
                     (json_int_t)n->transfer_bytes, "rates", rates_json(core, n));
}

static json_t *path_json(uint64_t now_ns, const struct node *from, const struct node *to,
                         const struct path *p)
{
    char kind[MSG_ADDRESS_MAX + 1];
    snprintf(kind, sizeof kind, "%.*s", (int)strcspn(p->address, ":"), p->address);
    double failed_s = p->failed_ns ? (double)(now_ns - p->failed_ns) / 1e9 : -1;
    return json_pack("{s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:f,s:s}", "from", from->hello.name, "to",
                     to->hello.name, "kind", kind, "state", p->state, "transfers",
                     (json_int_t)p->tickets, "bytes", (json_int_t)p->bytes, "rate",
                     (json_int_t)p->rate, "failed_s", failed_s, "reason", p->reason);
}

/* "": it is not queued. */
static const char *waiting(const struct router_core *core, uint64_t now_ns, const struct choice *c)
{
    if (!c || c->state != CHOICE_QUEUED) return "";
    return sched_waiting_for(choice_waits_for(core, now_ns, c));
}

/* How long the queue's first request was held up by which lack, and what all waited, in seconds. */
static json_t *queue_json(const struct router_core *core, uint64_t now_ns)
{
    struct queue_waits w;
    waits_now(core, now_ns, &w);
    const double s = (double)NS_PER_S;
    return json_pack(
        "{s:f,s:o,s:f,s:{s:f,s:f,s:f,s:f}}", "oldest_s", router_queue_seconds(core, now_ns),
        "picked", number(w.picked), "waited_s", (double)w.waited_ns / s, "blocked_s", "nodes",
        (double)w.blocked_ns[SCHED_NO_NODES] / s, "prefill",
        (double)w.blocked_ns[SCHED_NO_PREFILL] / s, "decode",
        (double)w.blocked_ns[SCHED_NO_DECODE] / s, "size", (double)w.blocked_ns[SCHED_NEVER] / s);
}

/* What all nodes share: whose KV it is, and how much a token has; 0: no node has joined yet. */
static json_t *kv_json(const struct cluster *c)
{
    char model[ID128_TEXT];
    id128_print(c->fingerprint, model);
    uint64_t bytes = c->known ? kv_block_bytes(&c->geometry) / BLOCK_TOKENS : 0;
    return json_pack("{s:s,s:I}", "model", model, "token_bytes", (json_int_t)bytes);
}

static json_t *prefix_index_json(const struct router_core *core, const struct router_counts *c)
{
    struct index_stats s = {0};
    if (core->index) s = index_stats(core->index);
    return json_pack("{s:b,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "on", core->index != NULL,
                     "entries", (json_int_t)s.entries, "bytes", (json_int_t)s.bytes, "dropped",
                     (json_int_t)s.dropped, "added", (json_int_t)s.added, "gone",
                     (json_int_t)s.gone, "lookups", (json_int_t)c->prefix_lookups, "hits",
                     (json_int_t)c->prefix_hits, "hit_tokens", (json_int_t)c->prefix_hit_tokens,
                     "false_hits", (json_int_t)c->prefix_false, "gaps", (json_int_t)c->prefix_gaps);
}

static uint64_t rejected(const struct router_counts *c)
{
    return c->rejected[REJECTED_OVERLOAD] + c->rejected[REJECTED_INVALID] +
           c->rejected[REJECTED_OTHER];
}

static json_t *rejected_json(const struct router_counts *c)
{
    return json_pack("{s:I,s:I,s:I}", "overload", (json_int_t)c->rejected[REJECTED_OVERLOAD],
                     "invalid", (json_int_t)c->rejected[REJECTED_INVALID], "other",
                     (json_int_t)c->rejected[REJECTED_OTHER]);
}

static json_t *router_json(const struct router_core *core, uint64_t now_ns)
{
    struct router_counts c;
    router_core_counts(core, &c);
    struct heap_entry *first = heap_first(&core->queue);
    const struct choice *next = first ? list_member(first, struct choice, queue) : NULL;
    json_t *router = json_pack(
        "{s:s,s:s,s:s,s:I,s:I,s:I,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "name",
        core->config.name, "state", core->draining ? "draining" : "up", "model",
        core->nodes_count > 0 ? core->nodes[0]->hello.model : "", "clients", (json_int_t)c.clients,
        "requests", (json_int_t)c.requests_live, "queued", (json_int_t)c.queued, "waiting",
        waiting(core, now_ns, next), "accepted", (json_int_t)c.accepted, "rejected",
        (json_int_t)rejected(&c), "done", (json_int_t)c.done, "failed", (json_int_t)c.failed,
        "cancelled", (json_int_t)c.cancelled, "retries", (json_int_t)c.retries, "node_deaths",
        (json_int_t)c.node_deaths, "prompt_tokens", (json_int_t)c.prompt_tokens, "generated_tokens",
        (json_int_t)c.generated_tokens, "stale_messages", (json_int_t)c.stale_messages, "diverged",
        (json_int_t)c.diverged, "malformed_messages", (json_int_t)core->facts.malformed_messages,
        "slow_callbacks", (json_int_t)core->facts.slow_callbacks);
    json_object_set_new(router, "at_s", json_real((double)now_ns / (double)NS_PER_S));
    json_object_set_new(router, "queue", queue_json(core, now_ns));
    json_object_set_new(router, "backfills", backfills_json(core));
    json_object_set_new(router, "kv", kv_json(&core->cluster));
    json_object_set_new(router, "rejected_by", rejected_json(&c));
    json_object_set_new(router, "scores", number(c.scores));
    json_object_set_new(router, "embeddings", number(c.embeddings));
    json_object_set_new(router, "prefill_only", number(c.prefill_only));
    json_object_set_new(router, "prefix_index", prefix_index_json(core, &c));
    return router;
}

/* ---- the whole, in pieces: of many nodes it takes longer than the loop may be held ---- */

enum part { PART_ROUTER, PART_NODES, PART_LINKS, PART_PATHS, PART_TENANTS, PART_PINS, PART_END };

/* What a piece costs, in some microseconds; of a row, of what it is made from. */
enum { TURN_COST = 128, ROW_COST = 8, PAIR_COST = 2, ALL_COST = 32, RATES_IN_ONE = 8 };

struct status_query {
    struct list_link link; /* core->statuses */
    struct peer peer;      /* who asked */
    uint64_t ref;
    struct buf text;
    enum part part;
    uint32_t row, column; /* of it, that come next */
    uint32_t nodes_count;
    struct peer nodes[]; /* that were here when it was asked */
};

static const struct node *node_at(const struct router_core *core, const struct status_query *q,
                                  uint32_t i)
{
    const struct peer_entry *entry = registry_find((struct router_core *)core, q->nodes[i]);
    return entry ? entry->node : NULL;
}

/* A value at the end of the text, with a comma if it is not the first one of its list; takes it over. */
static void add(struct buf *text, json_t *value)
{
    bool first = text->size == 0 || strchr("[{:", text->data[text->size - 1]);
    if (!first) buf_add_string(text, ",");
    enum err e = dump(value, text);
    if (text->error == OK) text->error = e;
}

static void begin_part(struct status_query *q, enum part part)
{
    static const char *const before[] = {"{\"router\":",
                                         ",\"nodes\":[",
                                         "],\"links\":[",
                                         "],\"paths\":[",
                                         "],\"tenants\":",
                                         ",\"pins\":[",
                                         "]}"};
    q->part = part;
    q->row = q->column = 0;
    buf_add_string(&q->text, before[part]);
}

static uint32_t add_node(const struct router_core *core, uint64_t now_ns, struct status_query *q)
{
    const struct node *n = node_at(core, q, q->row++);
    if (n) add(&q->text, node_json(n, now_ns));
    return ROW_COST;
}

static uint32_t add_link(const struct router_core *core, struct status_query *q)
{
    const struct node *n = node_at(core, q, q->row++);
    json_t *link = n ? link_json(core, n) : NULL;
    if (!link) return 1;
    add(&q->text, link);
    return ROW_COST + core->nodes_count / RATES_IN_ONE;
}

/* The links of one pair, in the order in which the receiver names them. */
static uint32_t add_paths(const struct router_core *core, uint64_t now_ns, struct status_query *q)
{
    const struct node *from = node_at(core, q, q->row);
    const struct node *to = node_at(core, q, q->column);
    bool none = !from || from->paths_count == 0;
    for (uint32_t a = 0; !none && to && a < to->hello.addresses_count; a++) {
        const struct path *p = path_to(from, to->hello.addresses[a]);
        if (p) add(&q->text, path_json(now_ns, from, to, p));
    }
    if (none || ++q->column == q->nodes_count) {
        q->row++;
        q->column = 0;
    }
    return none ? 1 : PAIR_COST;
}

/* A pin's own facts, then one node's share at a time. One that is taken back meanwhile ends there. */
static uint32_t add_pin(const struct router_core *core, struct status_query *q)
{
    json_t *pin = NULL;
    if (q->column == 0) {
        while (!(pin = pin_json(core, q->row)))
            if (++q->row == ROUTER_PINS_MAX) return 0;
        add(&q->text, pin);
        buf_cut(&q->text, q->text.size - 1); /* its last brace */
        buf_add_string(&q->text, ",\"nodes\":[");
    }
    const struct node *n = q->column < q->nodes_count ? node_at(core, q, q->column) : NULL;
    json_t *share = n ? pin_share_json(core, q->row, n) : NULL;
    if (share) add(&q->text, share);
    if (++q->column < q->nodes_count) return PAIR_COST;
    buf_add_string(&q->text, "]}");
    q->row++;
    q->column = 0;
    return PAIR_COST;
}

/* One piece; returns what it cost. */
static uint32_t go_on(const struct router_core *core, uint64_t now_ns, struct status_query *q)
{
    uint32_t rows = q->part == PART_PINS ? ROUTER_PINS_MAX : q->nodes_count;
    bool listed = q->part != PART_ROUTER && q->part != PART_TENANTS;
    if (listed && q->row == rows) {
        begin_part(q, q->part + 1);
        return 0;
    }
    switch (q->part) {
    case PART_NODES: return add_node(core, now_ns, q);
    case PART_LINKS: return add_link(core, q);
    case PART_PATHS: return add_paths(core, now_ns, q);
    case PART_PINS: return add_pin(core, q);
    default:
        add(&q->text, q->part == PART_ROUTER ? router_json(core, now_ns) : turns_json(core));
        begin_part(q, q->part + 1);
        return ALL_COST;
    }
}

static void status_free(struct status_query *q)
{
    list_remove(&q->link);
    buf_fini(&q->text);
    mem_free(q);
}

static void finish(struct router_core *core, struct status_query *q)
{
    struct msg m = {.kind = MSG_ANSWER,
                    .answer = {q->ref, q->text.error, q->text.data, (uint32_t)q->text.size}};
    if (q->text.error != OK) {
        m.answer.text = err_text();
        m.answer.text_bytes = (uint32_t)strlen(m.answer.text);
    }
    registry_send(core, q->peer, &m);
    status_free(q);
}

void status_go_on(struct router_core *core, uint64_t now_ns)
{
    uint32_t cost = 0;
    while (cost < TURN_COST && !list_empty(&core->statuses)) {
        struct status_query *q = list_member(core->statuses.next, struct status_query, link);
        cost += go_on(core, now_ns, q);
        if (q->part == PART_END || q->text.error != OK) finish(core, q);
    }
}

enum err status_begin(struct router_core *core, uint64_t now_ns, struct peer peer, uint64_t ref)
{
    uint32_t waiting = 0;
    for (struct list_link *l = core->statuses.next; l != &core->statuses; l = l->next)
        waiting++;
    if (waiting >= ROUTER_STATUSES_MAX)
        return err_set(ERR_FULL, "%d who asked for the status wait already", ROUTER_STATUSES_MAX);
    struct status_query *q = mem_new(sizeof *q + core->nodes_count * sizeof q->nodes[0]);
    if (!q) return err_set(ERR_MEMORY, "out of memory for the answer");
    q->peer = peer;
    q->ref = ref;
    q->text.limit_bytes = MSG_BYTES_MAX / 2;
    q->nodes_count = core->nodes_count;
    for (uint32_t i = 0; i < core->nodes_count; i++)
        q->nodes[i] = core->nodes[i]->peer;
    list_init(&q->link);
    list_push_back(&core->statuses, &q->link);
    begin_part(q, PART_ROUTER);
    if (waiting == 0) status_go_on(core, now_ns); /* that of a few nodes is answered at once */
    return OK;
}

void status_client_lost(struct router_core *core, struct peer peer)
{
    for (struct list_link *l = core->statuses.next, *next; l != &core->statuses; l = next) {
        struct status_query *q = list_member(l, struct status_query, link);
        next = l->next;
        if (q->peer.v == peer.v) status_free(q);
    }
}

void statuses_free(struct router_core *core)
{
    while (!list_empty(&core->statuses))
        status_free(list_member(core->statuses.next, struct status_query, link));
}

/* ---- explain ---- */

static double ms(uint64_t us)
{
    return (double)us / 1000.0;
}

static json_t *trail_json(const struct choice *c)
{
    json_t *trail = json_array();
    for (uint32_t i = 0; i < c->trail_count; i++) {
        const struct trail *t = &c->trail[i];
        uint64_t at_us = (t->at_ns - c->request->arrived_ns) / NS_PER_US;
        json_array_append_new(trail, json_pack("{s:f,s:s,s:s,s:I}", "at_ms", ms(at_us), "event",
                                               trail_name(t->what), "node", t->node, "attempt",
                                               (json_int_t)t->attempt));
    }
    return trail;
}

/* Layers as they were computed and sent, times after the prefill began. */
static json_t *layers_json(const struct choice *c)
{
    json_t *layers = json_array();
    for (uint32_t i = 0; i < c->pushes_count; i++) {
        const struct push_time *p = &c->pushes[i];
        json_array_append_new(layers, json_pack("{s:I,s:f,s:f}", "layer", (json_int_t)p->layer,
                                                "computed_ms", ms(p->computed_us), "sent_ms",
                                                ms(p->sent_us)));
    }
    return layers;
}

static const char *finish_name(const struct choice *c)
{
    static const char *const names[] = {"", "stop", "length", "cancelled", "error"};
    return c->state == CHOICE_ENDED ? names[c->finish] : "";
}

static json_t *choice_json(const struct router_core *core, uint64_t now_ns, const struct choice *c)
{
    const struct request_timing *t = &c->timing;
    json_t *timing = json_pack("{s:f,s:f,s:f,s:f,s:f,s:f}", "queue", ms(t->queue), "prefill",
                               ms(t->prefill), "transfer_tail", ms(t->transfer_tail), "ttft",
                               ms(t->ttft), "decode", ms(t->decode), "total", ms(t->total));
    return json_pack("{s:I,s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:{s:s,s:s},s:o,s:o,s:o}", "choice",
                     (json_int_t)c->index, "state", choice_state_name(c->state), "waiting",
                     waiting(core, now_ns, c), "finish_reason", finish_name(c), "reason", c->reason,
                     "attempts", (json_int_t)(c->attempt + 1), "completion_tokens",
                     (json_int_t)c->generated_count, "cached_tokens", (json_int_t)c->cached_tokens,
                     "nodes", "prefill", c->prefill_name, "decode", c->decode_name, "timing_ms",
                     timing, "events", trail_json(c), "layers", layers_json(c));
}

enum err router_core_explain(const struct router_core *core, uint64_t now_ns, struct id128 request,
                             struct buf *out)
{
    char id[ID128_TEXT];
    id128_print(request, id);
    const struct request *r = map_get(&core->requests, request);
    if (!r)
        return err_set(ERR_NOT_FOUND, "no request %s is running or among the last %u ended", id,
                       core->config.history_max);
    json_t *choices = json_array();
    for (uint32_t i = 0; i < r->choices_count; i++)
        json_array_append_new(choices, choice_json(core, now_ns, &r->choice[i]));
    return dump(json_pack("{s:s,s:s,s:I,s:o}", "id", id, "kind", job_kind_name(r->kind),
                          "prompt_tokens", (json_int_t)r->prompt_count, "choices", choices),
                out);
}
