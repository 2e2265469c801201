/* core: the router's inputs, each handed to the part that it concerns, and what follows from them:
 * dispatch, leaving, the next time to wake. */
#include "router/core.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "router/state.h"

/* Before a transfer was measured: about what one costs on one host. */
#define HAND_OVER_FIRST_NS (1 * NS_PER_MS)
/* How long a drained router waits for its clients to hang up. */
#define GOODBYE_NS (1 * NS_PER_S)

enum err router_core_new(struct router_core **out, const struct router_config *config,
                         const struct router_out *shell)
{
    struct router_core *core = mem_new(sizeof *core);
    if (!core) return ERR_MEMORY;
    core->config = *config;
    core->out = *shell;
    if (core->config.history_max == 0) core->config.history_max = 1;
    core->hand_over_ns = HAND_OVER_FIRST_NS;
    core->retry_ns = core->woken_ns = TIME_NEVER;
    fair_init(&core->fair);
    list_init(&core->self.requests);
    list_init(&core->history);
    list_init(&core->queries);
    list_init(&core->backfills);
    list_init(&core->kv_queries);
    list_init(&core->statuses);
    enum err e = router_meters_new(core);
    if (e == OK && config->prefix_index > 0) e = index_new(&core->index, config->prefix_index);
    if (core->index) core->shared_holder = index_join(core->index);
    if (e != OK) {
        router_core_free(core);
        return e;
    }
    *out = core;
    return OK;
}

void router_core_free(struct router_core *core)
{
    if (!core) return;
    struct map_cursor cursor = {0};
    struct peer_entry *entry;
    struct request *r;
    while ((r = map_next(&core->requests, &cursor)) != NULL) {
        request_free(core, r);
        cursor = (struct map_cursor){0};
    }
    for (cursor = (struct map_cursor){0}; (entry = map_next(&core->peers, &cursor)) != NULL;) {
        mem_free(entry->client);
        mem_free(entry);
    }
    for (uint32_t i = 0; i < core->nodes_count; i++)
        registry_node_free(core->nodes[i]);
    for (struct list_link *l; (l = list_pop_front(&core->queries)) != NULL;)
        mem_free(list_member(l, struct waiting_query, link));
    kv_queries_free(core);
    statuses_free(core);
    backfills_free(core);
    map_fini(&core->peers);
    map_fini(&core->requests);
    map_fini(&core->texts);
    pins_fini(core);
    fair_fini(&core->fair);
    heap_fini(&core->queue);
    heap_fini(&core->timers);
    buf_fini(&core->text);
    index_free(core->index);
    metrics_free(core->metrics);
    mem_free(core);
}

/* ---- leaving ---- */

static void say_bye(struct router_core *core)
{
    struct peer_entry *entry;
    for (struct map_cursor cursor = {0}; (entry = map_next(&core->peers, &cursor)) != NULL;) {
        if (entry->kind != PEER_CLIENT) continue;
        struct msg m = {.kind = MSG_BYE};
        registry_send(core, entry->peer, &m);
    }
}

void router_core_drain(struct router_core *core, uint64_t now_ns)
{
    (void)now_ns;
    if (core->draining) return;
    core->draining = true;
    log_info("router_draining", "requests=%u", core->counts.requests_live);
}

/* When the last request has ended the nodes are sent home, when the last node is gone the clients. */
static void go_on_leaving(struct router_core *core, uint64_t now_ns)
{
    if (!core->draining || core->left || core->counts.requests_live > 0) return;
    for (uint32_t i = 0; i < core->nodes_count; i++) {
        struct node *n = core->nodes[i];
        if (n->draining) continue;
        n->draining = true;
        n->sched.open = false;
        struct msg m = {.kind = MSG_DRAIN};
        registry_send(core, n->peer, &m);
    }
    if (core->nodes_count > 0) return;
    if (core->goodbye_ns == 0) {
        core->goodbye_ns = now_ns;
        registry_answer_drained(core, NULL);
        say_bye(core);
    }
    /* The clients hang up when they have heard it; who goes first may take the answer with it. */
    if (core->peers.count > 0 && now_ns < core->goodbye_ns + GOODBYE_NS) return;
    core->left = true;
    core->out.left(core->out.ctx);
}

/* ---- what clients ask ---- */

static void answer(struct router_core *core, struct peer peer, uint64_t ref, enum err error,
                   const char *text)
{
    struct msg m = {
        .kind = MSG_ANSWER,
        .answer = {.ref = ref, .error = error, .text = text, .text_bytes = (uint32_t)strlen(text)}};
    registry_send(core, peer, &m);
}

static enum err drain_node(struct router_core *core, const char *name)
{
    for (uint32_t i = 0; i < core->nodes_count; i++) {
        struct node *n = core->nodes[i];
        if (strcmp(n->hello.name, name) != 0) continue;
        n->draining = true;
        n->sched.open = false;
        struct msg m = {.kind = MSG_DRAIN};
        registry_send(core, n->peer, &m);
        return OK;
    }
    return err_set(ERR_NOT_FOUND, "no node is named %s: tandem status lists them", name);
}

static uint32_t drains_waiting(const struct router_core *core)
{
    uint32_t count = 0;
    for (const struct list_link *l = core->queries.next; l != &core->queries; l = l->next)
        count++;
    return count;
}

static enum err query_drain(struct router_core *core, uint64_t now_ns, struct peer peer,
                            const struct msg_query *q)
{
    enum err e;
    if (strlen(q->argument) > MSG_NAME_MAX)
        return err_set(ERR_INVALID, "a node's name has at most %d bytes", MSG_NAME_MAX);
    if (drains_waiting(core) >= ROUTER_QUERIES_MAX)
        return err_set(ERR_FULL, "%d drains wait for their end already", ROUTER_QUERIES_MAX);
    struct waiting_query *w = mem_new(sizeof *w);
    if (!w) return ERR_MEMORY;
    w->peer = peer;
    w->ref = q->ref;
    snprintf(w->node, sizeof w->node, "%s", q->argument);
    if (q->argument[0] && (e = drain_node(core, q->argument)) != OK) {
        mem_free(w);
        return e;
    }
    if (!q->argument[0]) router_core_drain(core, now_ns);
    list_init(&w->link);
    list_push_back(&core->queries, &w->link);
    return OK;
}

static enum err query_explain(struct router_core *core, uint64_t now_ns, const char *text,
                              struct buf *json)
{
    struct id128 id;
    enum err e = id128_parse(text, strlen(text), &id);
    return e == OK ? router_core_explain(core, now_ns, id, json) : e;
}

static void on_query(struct router_core *core, uint64_t now_ns, struct peer peer,
                     const struct msg_query *q)
{
    enum err e = ERR_UNSUPPORTED;
    struct buf json = {.limit_bytes = MSG_BYTES_MAX / 2};
    switch (q->query) {
    case QUERY_STATUS: e = status_begin(core, now_ns, peer, q->ref); break;
    case QUERY_EXPLAIN: e = query_explain(core, now_ns, q->argument, &json); break;
    case QUERY_DRAIN: e = query_drain(core, now_ns, peer, q); break;
    case QUERY_KV: e = kv_query_begin(core, now_ns, peer, q); break;
    }
    if (e != OK)
        answer(core, peer, q->ref, e, err_text());
    else if (q->query == QUERY_EXPLAIN) /* the others take their time */
        answer(core, peer, q->ref, OK, json.data);
    buf_fini(&json);
}

static void on_client_cancel(struct router_core *core, uint64_t now_ns, struct client *client,
                             const struct msg_cancel *cancel)
{
    struct request *r = map_get(&core->requests, cancel->key.request);
    if (!r || r->client != client) return; /* ended already, or not its own */
    if (r->choice[0].state == CHOICE_TOKENIZING) {
        submit_drop(core, r, ERR_CANCELLED, "cancelled by its client");
        return;
    }
    uint32_t count = r->choices_count;
    struct choice *choice = r->choice; /* r may be forgotten with its last choice */
    for (uint32_t i = 0; i < count; i++)
        if (cancel->key.choice == CHOICE_ALL || cancel->key.choice == i)
            choice_end(core, now_ns, &choice[i], FINISH_CANCELLED, ERR_CANCELLED,
                       "cancelled by its client");
}

/* ---- inputs ---- */

static void on_node_message(struct router_core *core, uint64_t now_ns, struct node *n,
                            const struct msg *m)
{
    if (backfill_on_message(core, now_ns, n, m)) return;
    switch (m->kind) {
    case MSG_HEARTBEAT: registry_on_heartbeat(core, now_ns, n, &m->heartbeat); break;
    case MSG_LIVE: registry_on_live(core, now_ns, n, &m->live); break;
    case MSG_LINK: path_on_link(now_ns, n, &m->link); break;
    case MSG_BLOCKS: prefixes_on_blocks(core, now_ns, n, &m->blocks); break;
    case MSG_RESERVED: choice_on_reserved(core, now_ns, n, &m->reserved); break;
    case MSG_FIRST: choice_on_first(core, now_ns, n, &m->first); break;
    case MSG_PREFILLED: choice_on_prefilled(core, now_ns, n, &m->prefilled); break;
    case MSG_TOKENS:
        for (uint32_t i = 0; i < m->tokens.runs_count; i++)
            choice_on_run(core, now_ns, n, &m->tokens.runs[i]);
        break;
    case MSG_ENCODED: choice_on_encoded(core, now_ns, n, &m->encoded); break;
    case MSG_FINISHED: choice_on_finished(core, now_ns, n, &m->finished); break;
    case MSG_FAILED: choice_on_failed(core, now_ns, n, &m->failed); break;
    case MSG_PIN: pins_on_node(core, now_ns, n, &m->pin); break;
    case MSG_PINNED: pins_on_pinned(core, now_ns, n, &m->pinned); break;
    case MSG_DRAINED: registry_on_drained(core, now_ns, n); break;
    case MSG_ANSWER: kv_query_on_answer(core, now_ns, n, &m->answer); break;
    default: core->counts.stale_messages++;
    }
}

static void on_client_message(struct router_core *core, uint64_t now_ns, struct client *client,
                              const struct msg *m)
{
    switch (m->kind) {
    case MSG_SUBMIT: submit_on_message(core, now_ns, client, &m->submit); break;
    case MSG_CANCEL: on_client_cancel(core, now_ns, client, &m->cancel); break;
    case MSG_QUERY: on_query(core, now_ns, client->peer, &m->query); break;
    case MSG_PIN: pins_on_client(core, now_ns, client->peer, &m->pin); break;
    case MSG_HEARTBEAT: break; /* the session has noted it */
    default: core->counts.stale_messages++;
    }
}

static struct peer_entry *peer_new(struct router_core *core, struct peer peer)
{
    if (core->peers.count >= core->config.peers_max) return NULL;
    struct peer_entry *entry = mem_new(sizeof *entry);
    if (!entry) return NULL;
    entry->peer = peer;
    session_init(&entry->session, SESSION_ACCEPTOR, core->config.incarnation,
                 &core->config.session);
    if (map_put(&core->peers, map_key(peer.v), entry) == OK) return entry;
    mem_free(entry);
    return NULL;
}

/* After every input: whatever it made possible, then the next time to wake. */
static void settle(struct router_core *core, uint64_t now_ns, uint64_t sessions_ns)
{
    if (core->dispatch_wanted) choice_dispatch(core, now_ns);
    go_on_leaving(core, now_ns);
    struct heap_entry *timer = heap_first(&core->timers);
    uint64_t wake_ns = sessions_ns;
    if (timer && timer->key < wake_ns) wake_ns = timer->key;
    if (core->retry_ns < wake_ns) wake_ns = core->retry_ns;
    if (kv_query_wake_ns(core) < wake_ns) wake_ns = kv_query_wake_ns(core);
    if (!list_empty(&core->statuses)) wake_ns = now_ns; /* with the loop's next turn */
    if (backfills_wake_ns(core) < wake_ns) wake_ns = backfills_wake_ns(core);
    if (core->goodbye_ns && core->goodbye_ns + GOODBYE_NS < wake_ns)
        wake_ns = core->goodbye_ns + GOODBYE_NS;
    if (wake_ns >= core->woken_ns) return; /* it wakes early enough */
    core->woken_ns = wake_ns;
    core->out.wake_at(core->out.ctx, wake_ns);
}

void router_core_on_message(struct router_core *core, uint64_t now_ns, struct peer peer,
                            const struct msg *m)
{
    struct peer_entry *entry = registry_find(core, peer);
    uint64_t session_ns = TIME_NEVER;
    if (!entry) {
        /* only a hello makes a peer known */
        if (m->kind == MSG_HELLO) entry = peer_new(core, peer);
        session_ns = now_ns + core->config.session.heartbeat_ns;
    }
    if (!entry) {
        core->counts.stale_messages++;
        return;
    }
    switch (session_on_message(&entry->session, now_ns, m)) {
    case SESSION_GREETED: registry_on_hello(core, now_ns, entry, m); break;
    case SESSION_DELIVER:
        if (entry->node)
            on_node_message(core, now_ns, entry->node, m);
        else if (entry->client)
            on_client_message(core, now_ns, entry->client, m);
        break;
    case SESSION_BECAME_DOWN:
        registry_end(core, now_ns, entry, entry->session.down_reason);
        if (m->kind == MSG_HELLO && (entry = peer_new(core, peer)) != NULL &&
            session_on_message(&entry->session, now_ns, m) == SESSION_GREETED)
            registry_on_hello(core, now_ns, entry, m);
        break;
    case SESSION_BECAME_UP:
    case SESSION_DROP: core->counts.stale_messages++; break;
    }
    settle(core, now_ns, session_ns);
}

void router_core_on_malformed(struct router_core *core, struct peer peer, const struct msg *m,
                              enum err error, const char *reason)
{
    struct peer_entry *entry = registry_find(core, peer);
    if (!entry || !entry->client) return; /* a node's: its deadlines and live set tell the rest */
    if (m->kind == MSG_SUBMIT) submit_reject(core, entry->client, m->submit.ref, error, reason);
    if (m->kind == MSG_QUERY) answer(core, peer, m->query.ref, error, reason);
    if (m->kind == MSG_PIN) answer(core, peer, m->pin.ref, error, reason);
}

void router_core_set_facts(struct router_core *core, const struct router_facts *facts)
{
    core->facts = *facts;
}

void router_core_on_lifeline(struct router_core *core, uint64_t now_ns, struct peer peer, bool up)
{
    struct peer_entry *entry = registry_find(core, peer);
    if (!entry) return;
    if (session_on_lifeline(&entry->session, now_ns, up))
        registry_end(core, now_ns, entry, "its process is gone");
    settle(core, now_ns, TIME_NEVER);
}

void router_core_on_tokens(struct router_core *core, uint64_t now_ns, struct id128 job,
                           const uint32_t *ids, uint32_t ids_count, enum err error,
                           const char *reason)
{
    if (!pins_on_tokens(core, now_ns, job, ids, ids_count, error, reason))
        submit_on_tokens(core, now_ns, job, ids, ids_count, error, reason);
    settle(core, now_ns, TIME_NEVER);
}

void router_core_on_timer(struct router_core *core, uint64_t now_ns)
{
    struct heap_entry *first;
    core->woken_ns = TIME_NEVER;
    uint64_t sessions_ns = registry_on_timer(core, now_ns);
    while ((first = heap_first(&core->timers)) != NULL && first->key <= now_ns)
        choice_on_timer(core, now_ns, list_member(first, struct choice, timer));
    if (core->retry_ns <= now_ns) core->dispatch_wanted = true;
    kv_query_on_timer(core, now_ns);
    status_go_on(core, now_ns);
    backfills_on_timer(core, now_ns);
    settle(core, now_ns, sessions_ns);
}

/* ---- counts and invariants ---- */

void router_core_counts(const struct router_core *core, struct router_counts *counts)
{
    struct peer_entry *entry;
    *counts = core->counts;
    counts->nodes = core->nodes_count;
    counts->queued = (uint32_t)core->queue.count;
    counts->clients = 0;
    for (struct map_cursor cursor = {0}; (entry = map_next(&core->peers, &cursor)) != NULL;)
        counts->clients += entry->kind == PEER_CLIENT;
}

static void audit_choice(const struct choice *c)
{
    bool queued = c->state == CHOICE_QUEUED;
    CHECK(queued == heap_holds(&c->queue) && queued == heap_holds(&c->turn));
    CHECK(c->running == (!queued && c->state != CHOICE_TOKENIZING && c->state != CHOICE_ENDED));
    CHECK((c->state == CHOICE_ENDED) == (c->ended_ns != 0));
    if (queued || c->state == CHOICE_TOKENIZING) CHECK(!c->prefill && !c->decode);
    if (c->state == CHOICE_RESERVING || c->state == CHOICE_DECODING) CHECK(c->decode);
    if (c->state == CHOICE_PREFILLING) CHECK(c->prefill || c->decode);
    if (c->state == CHOICE_ENDED) CHECK(!c->decode);
    if (c->backfill) CHECK(c->state == CHOICE_RESERVING || c->state == CHOICE_FILLING);
    if (c->state == CHOICE_FILLING) CHECK(c->backfill && c->prefill);
}

static void audit_node(const struct router_core *core, const struct node *n)
{
    struct job_key backfill[BACKFILLS_MAX];
    uint32_t live = backfills_live(core, n, backfill);
    uint32_t running = 0, blocks = 0, window = 0, under = 0;
    uint64_t hash = 0;
    for (uint32_t i = 0; i < live; i++)
        hash += job_key_hash(backfill[i]);
    for (struct list_link *l = n->choices_prefill.next; l != &n->choices_prefill; l = l->next) {
        struct choice *c = list_member(l, struct choice, at_prefill);
        CHECK(c->prefill == n);
        window += c->window_held;
        under += c->under_share ? c->window_held : 0;
        if (!c->prefill_told) continue;
        live++;
        hash += job_key_hash(choice_key(c));
    }
    for (struct list_link *l = n->choices_decode.next; l != &n->choices_decode; l = l->next) {
        struct choice *c = list_member(l, struct choice, at_decode);
        CHECK(c->decode == n);
        running++;
        blocks += c->blocks_held;
        live++;
        hash += job_key_hash(choice_key(c));
    }
    CHECK(n->live_count == live && n->live_hash == hash);
    CHECK(n->sched.running == running && n->sched.blocks_used == blocks);
    CHECK(n->sched.outstanding_tokens == window && n->sched.outstanding_under == under);
}

void router_core_audit(const struct router_core *core)
{
    struct request *r;
    uint32_t live = 0, queued = 0;
    for (struct map_cursor cursor = {0}; (r = map_next(&core->requests, &cursor)) != NULL;) {
        uint32_t ended = 0;
        for (uint32_t i = 0; i < r->choices_count; i++) {
            audit_choice(&r->choice[i]);
            ended += r->choice[i].state == CHOICE_ENDED;
            queued += r->choice[i].state == CHOICE_QUEUED;
        }
        CHECK(ended == r->choices_ended);
        live += ended < r->choices_count;
    }
    CHECK(live == core->counts.requests_live);
    CHECK(queued == core->queue.count);
    fair_audit(&core->fair);
    for (uint32_t i = 0; i < core->nodes_count; i++) {
        CHECK(core->nodes[i]->index == i && core->sched[i] == &core->nodes[i]->sched);
        audit_node(core, core->nodes[i]);
    }
}
