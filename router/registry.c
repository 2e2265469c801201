/* registry: who is connected: peers and their sessions, nodes and what they told, clients. */
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "router/state.h"

/* How long a node's live set may differ from ours before lists are compared: answers under way make
 * it differ for a moment all the time. */
#define MISMATCH_NS (1 * NS_PER_S)

struct peer_entry *registry_find(struct router_core *core, struct peer peer)
{
    return map_get(&core->peers, map_key(peer.v));
}

void registry_send(struct router_core *core, struct peer peer, struct msg *m)
{
    struct peer_entry *entry = registry_find(core, peer);
    if (!entry || entry->session.state != SESSION_UP) return;
    m->envelope = session_envelope(&entry->session);
    core->out.send(core->out.ctx, peer, m);
}

/* ---- nodes ---- */

/* The first of an empty cluster. What the nodes before it began goes on if it can end as it would have. */
static void take_cluster(struct router_core *core, const struct msg_hello *h)
{
    struct cluster *c = &core->cluster;
    const struct cluster before = *c;
    bool other_numerics = before.known && before.numerics_id != h->numerics_id;
    const char *differs =
        before.known && !id128_equal(before.fingerprint, h->model_fingerprint) ? "another model"
        : other_numerics && core->config.exact ? "other numerics (--no-exact allows it)"
                                               : NULL;
    bool same = before.known && !differs;
    *c = (struct cluster){.known = true,
                          .life = before.life + !same,
                          .differs = differs,
                          .inexact = same && (before.inexact || other_numerics),
                          .fingerprint = h->model_fingerprint,
                          .numerics_id = h->numerics_id,
                          .geometry = h->geometry,
                          .vocab = h->vocab,
                          .context_max = h->context_max,
                          .window = {h->kv_window, 0},
                          .eos_count = h->eos_count};
    memcpy(c->eos, h->eos, h->eos_count * sizeof *h->eos);
}

static enum err check_node(const struct router_core *core, const struct msg_hello *h)
{
    const struct cluster *c = &core->cluster;
    if (core->draining) return err_set(ERR_FULL, "the router is draining");
    if (core->nodes_count == ROUTER_NODES_MAX)
        return err_set(ERR_FULL, "%u nodes have joined, at most %d", core->nodes_count,
                       ROUTER_NODES_MAX);
    for (uint32_t i = 0; i < core->nodes_count; i++)
        if (strcmp(core->nodes[i]->hello.name, h->name) == 0)
            return err_set(ERR_DUPLICATE, "a node named %s is here already: give another --name",
                           h->name);
    if (h->vocab == 0 || h->context_max < 2 || h->blocks_total == 0 || h->sequences_max == 0)
        return err_set(ERR_FORMAT, "a hello without capacity");
    if (h->eos_count > JOB_STOP_IDS_MAX)
        return err_set(ERR_FORMAT, "%u end-of-sequence ids, at most %d", h->eos_count,
                       JOB_STOP_IDS_MAX);
    if (!id128_is_none(core->config.tokenizer_hash) && !id128_is_none(h->tokenizer_hash) &&
        !id128_equal(core->config.tokenizer_hash, h->tokenizer_hash))
        return err_set(ERR_INVALID,
                       "the tokenizer.json of its model is not the router's: start both "
                       "with the same --model");
    if (core->nodes_count == 0) return OK; /* an empty cluster takes any model */
    if (!id128_equal(c->fingerprint, h->model_fingerprint))
        return err_set(ERR_INVALID, "it has another model than the %u nodes here",
                       core->nodes_count);
    if (!kv_geometry_fits(&c->geometry, &h->geometry) || c->vocab != h->vocab)
        return err_set(ERR_INVALID, "its KV geometry is not that of the nodes here");
    if (c->window.tokens != h->kv_window)
        return err_set(ERR_INVALID, "its model's window is %u tokens, that of the nodes here %u",
                       h->kv_window, c->window.tokens);
    if (core->config.exact && c->numerics_id != h->numerics_id)
        return err_set(ERR_INVALID,
                       "its numerics id %016llx is not the cluster's %016llx: streams "
                       "would not be exact (--no-exact allows it)",
                       (unsigned long long)h->numerics_id, (unsigned long long)c->numerics_id);
    return OK;
}

static enum err node_new(struct router_core *core, uint64_t now_ns, struct peer peer,
                         const struct msg_hello *h, struct node **out)
{
    enum err e;
    struct msg from = {.kind = MSG_HELLO, .hello = *h}, copy;
    struct node *n = mem_new(sizeof *n);
    if (!n) return ERR_MEMORY;
    e = msg_copy(&from, &n->arena, &copy);
    if (e == OK && !(n->rates = mem_array(ROUTER_NODES_MAX, sizeof *n->rates))) e = ERR_MEMORY;
    if (e != OK) {
        arena_fini(&n->arena);
        mem_free(n);
        return e;
    }
    n->hello = copy.hello;
    n->peer = peer;
    n->progress_ns = now_ns;
    n->sched = (struct sched_node){.role = h->role,
                                   .open = true,
                                   .window_tokens = h->window_tokens,
                                   .blocks_total = h->blocks_total,
                                   .kv_ahead = h->kv_ahead,
                                   .blocks_free = h->blocks_total,
                                   .sequences_max = h->sequences_max,
                                   .host = hash64(n->hello.host, strlen(n->hello.host)),
                                   .rates = n->rates};
    for (uint32_t i = 0; i < h->addresses_count; i++)
        n->sched.links[i] = sched_link(h->addresses[i]);
    n->load.blocks_total = n->load.blocks_free = h->blocks_total;
    list_init(&n->paths);
    list_init(&n->choices_prefill);
    list_init(&n->choices_decode);
    prefixes_on_join(core, n);
    n->index = core->nodes_count++;
    core->nodes[n->index] = n;
    core->sched[n->index] = &n->sched;
    *out = n;
    return OK;
}

static void forget_rate(struct sched_rate *rates, uint32_t index)
{
    memmove(&rates[index], &rates[index + 1], (ROUTER_NODES_MAX - 1 - index) * sizeof *rates);
    rates[ROUTER_NODES_MAX - 1] = (struct sched_rate){0};
}

void registry_note_try(const struct router_core *core, struct node *from, const struct node *to)
{
    if (from->rates && from->rates[to->index].bytes_per_s == 0)
        from->rates[to->index].bytes_per_s = core->rate.bytes_per_s; /* until it is measured */
}

void registry_note_transfer(struct router_core *core, struct node *from, const struct node *to,
                            uint64_t bytes, uint64_t ns)
{
    if (!from->rates || bytes == 0) return;
    sched_rate_add(&from->rates[to->index], bytes, ns);
    sched_rate_add(&core->rate, bytes, ns);
}

void registry_node_free(struct node *n)
{
    paths_free(n);
    mem_free(n->rates);
    arena_fini(&n->arena);
    mem_free(n);
}

/* The others keep their order: ties go to the node that joined first. */
static void node_leaves(struct router_core *core, struct node *n)
{
    for (uint32_t i = 0; i < core->nodes_count; i++)
        if (core->nodes[i]->rates) forget_rate(core->nodes[i]->rates, n->index);
    core->nodes_count--;
    for (uint32_t i = n->index; i < core->nodes_count; i++) {
        core->nodes[i] = core->nodes[i + 1];
        core->nodes[i]->index = i;
        core->sched[i] = &core->nodes[i]->sched;
    }
    core->nodes[core->nodes_count] = NULL;
    core->sched[core->nodes_count] = NULL;
    prefixes_on_leave(core, n);
    registry_node_free(n);
}

static void lose_choices(struct router_core *core, uint64_t now_ns, struct node *n, bool death,
                         const char *reason)
{
    char why[MSG_TEXT_MAX];
    snprintf(why, sizeof why, "node %s: %s", n->hello.name, reason);
    struct list_link *const heads[] = {&n->choices_prefill, &n->choices_decode};
    enum loss loss = !death ? LOSS_OF_CHOICE : n->live_count == 1 ? LOSS_LONELY_DEATH : LOSS_DEATH;
    for (size_t i = 0; i < 2; i++)
        while (!list_empty(heads[i])) {
            struct choice *c = i == 0 ? list_member(heads[0]->next, struct choice, at_prefill)
                                      : list_member(heads[1]->next, struct choice, at_decode);
            choice_on_lost(core, now_ns, c, n, loss, why);
        }
}

void registry_answer_drained(struct router_core *core, const char *node)
{
    for (struct list_link *l = core->queries.next, *next; l != &core->queries; l = next) {
        next = l->next;
        struct waiting_query *q = list_member(l, struct waiting_query, link);
        if (node && strcmp(q->node, node) != 0) continue;
        struct msg m = {.kind = MSG_ANSWER,
                        .answer = {.ref = q->ref, .error = OK, .text = "{\"drained\":true}"}};
        m.answer.text_bytes = (uint32_t)strlen(m.answer.text);
        registry_send(core, q->peer, &m);
        list_remove(l);
        mem_free(q);
    }
}

static void node_gone(struct router_core *core, uint64_t now_ns, struct node *n, const char *reason)
{
    bool death = !n->draining || n->live_count > 0;
    char name[MSG_NAME_MAX + 1];
    snprintf(name, sizeof name, "%s", n->hello.name);
    log_info("node_left", "node=%s role=%s reason=\"%s\" choices=%u", name,
             n->hello.role == ROLE_PREFILL ? "prefill" : "decode", reason, n->live_count);
    if (death) core->counts.node_deaths++;
    n->sched.open = false;
    lose_choices(core, now_ns, n, death, reason);
    backfills_lost(core, now_ns, n);
    kv_query_node_lost(core, now_ns, n);
    node_leaves(core, n);
    registry_answer_drained(core, name);
    core->dispatch_wanted = true;
}

/* A process that greets anew has given up what it had here, whether or not we have noticed. */
static void end_earlier_session(struct router_core *core, uint64_t now_ns,
                                const struct msg_hello *h)
{
    for (uint32_t i = 0; i < core->nodes_count; i++) {
        const struct msg_hello *old = &core->nodes[i]->hello;
        if (old->pid != h->pid || strcmp(old->host, h->host) || strcmp(old->name, h->name))
            continue;
        registry_end(core, now_ns, registry_find(core, core->nodes[i]->peer), "it greets anew");
        return;
    }
}

/* ---- clients ---- */

static struct client *client_new(struct peer peer)
{
    struct client *c = mem_new(sizeof *c);
    if (!c) return NULL;
    c->peer = peer;
    list_init(&c->requests);
    return c;
}

static void client_gone(struct router_core *core, uint64_t now_ns, struct client *client)
{
    while (!list_empty(&client->requests)) {
        struct request *r = list_member(client->requests.next, struct request, of_client);
        list_remove(&r->of_client);
        r->client = NULL;
        uint32_t count = r->choices_count; /* r may be forgotten with its last choice */
        struct choice *choice = r->choice;
        for (uint32_t i = 0; i < count; i++)
            choice_end(core, now_ns, &choice[i], FINISH_CANCELLED, ERR_CANCELLED,
                       "its client is gone");
    }
    kv_query_client_lost(core, client->peer);
    status_client_lost(core, client->peer);
    for (struct list_link *l = core->queries.next, *next; l != &core->queries; l = next) {
        next = l->next;
        struct waiting_query *q = list_member(l, struct waiting_query, link);
        if (!peer_equal(q->peer, client->peer)) continue;
        list_remove(l);
        mem_free(q);
    }
    mem_free(client);
}

/* ---- sessions ---- */

static void refuse(struct router_core *core, struct peer peer, const struct msg *hello,
                   const char *reason)
{
    struct msg m = {.kind = MSG_REFUSE,
                    .envelope = {.from = core->config.incarnation, .to = hello->envelope.from},
                    .refuse = {reason}};
    log_warn("hello_refused", "name=%s host=%s reason=\"%s\"", hello->hello.name, hello->hello.host,
             reason);
    core->out.send(core->out.ctx, peer, &m);
}

static void welcome(struct router_core *core, uint64_t now_ns, struct peer_entry *entry,
                    const struct msg *hello)
{
    const struct session_limits *limits = &core->config.session;
    session_accept(&entry->session, hello, ++core->epochs, now_ns);
    struct msg m = {.kind = MSG_WELCOME,
                    .welcome = {.name = core->config.name,
                                .lifeline = core->config.lifeline_address,
                                .heartbeat_ms = (uint32_t)(limits->heartbeat_ns / NS_PER_MS),
                                .dead_ms = (uint32_t)(limits->dead_ns / NS_PER_MS)}};
    m.welcome.lifeline_key = router_draw_id(core);
    core->out.lifeline_expect(core->out.ctx, entry->peer, m.welcome.lifeline_key);
    registry_send(core, entry->peer, &m);
}

/* The nodes work on, though not together: somebody has to hear of it. */
static void warn_of_links(const struct router_core *core, const struct node *n)
{
    uint32_t others = 0;
    for (uint32_t i = 0; i < core->nodes_count; i++) {
        if (core->sched[i]->role == n->sched.role) continue;
        if (sched_share_link(core->sched[i], &n->sched)) return;
        others++;
    }
    if (others > 0)
        log_warn(
            "node_shares_no_link",
            "node=%s reason=\"none of the %u nodes of the other role has a link in common with "
            "it: see --link; prompts are computed where they are decoded\"",
            n->hello.name, others);
}

static enum err join(struct router_core *core, uint64_t now_ns, struct peer_entry *entry,
                     const struct msg_hello *h)
{
    enum err e;
    if (h->role == ROLE_CLIENT) {
        if (!(entry->client = client_new(entry->peer))) return ERR_MEMORY;
        entry->kind = PEER_CLIENT;
        return OK;
    }
    if (h->role != ROLE_PREFILL && h->role != ROLE_DECODE)
        return err_set(ERR_FORMAT, "a hello of no known role");
    end_earlier_session(core, now_ns, h);
    if ((e = check_node(core, h)) != OK) return e;
    if ((e = node_new(core, now_ns, entry->peer, h, &entry->node)) != OK) return e;
    if (core->nodes_count == 1)
        take_cluster(core, h);
    else if (h->context_max < core->cluster.context_max)
        core->cluster.context_max = h->context_max;
    if (h->numerics_id != core->cluster.numerics_id) core->cluster.inexact = true;
    entry->kind = PEER_NODE;
    log_info("node_joined", "node=%s role=%s host=%s pid=%u device=\"%s\" blocks=%u", h->name,
             h->role == ROLE_PREFILL ? "prefill" : "decode", h->host, h->pid, h->device,
             h->blocks_total);
    warn_of_links(core, entry->node);
    core->dispatch_wanted = true;
    return OK;
}

void registry_on_hello(struct router_core *core, uint64_t now_ns, struct peer_entry *entry,
                       const struct msg *m)
{
    enum err e = join(core, now_ns, entry, &m->hello);
    if (e == OK) {
        welcome(core, now_ns, entry, m);
        if (entry->node) pins_on_join(core, now_ns, entry->node);
        return;
    }
    refuse(core, entry->peer, m, err_text());
    registry_end(core, now_ns, entry, "refused");
}

void registry_end(struct router_core *core, uint64_t now_ns, struct peer_entry *entry,
                  const char *reason)
{
    struct peer peer = entry->peer;
    struct node *node = entry->node;
    struct client *client = entry->client;
    map_remove(&core->peers, map_key(peer.v)); /* nothing is sent to it from here on */
    mem_free(entry);
    if (node) node_gone(core, now_ns, node, reason);
    if (client) client_gone(core, now_ns, client);
    core->out.forget(core->out.ctx, peer);
}

/* ---- time ---- */

static void send_heartbeat(struct router_core *core, struct peer_entry *entry)
{
    struct msg m = {.kind = MSG_HEARTBEAT, .heartbeat = {.draining = core->draining}};
    if (entry->node) {
        m.heartbeat.live_count = entry->node->live_count;
        m.heartbeat.live_hash = entry->node->live_hash;
    }
    registry_send(core, entry->peer, &m);
}

/* Busy, and for longer than any step takes no layer was computed. A slow device counts by its own
 * steps: what is long for another is usual for it. */
static bool is_hung(const struct router_core *core, uint64_t now_ns, const struct node *n)
{
    if (!n || !n->busy) return false;
    uint64_t predicted_ns = (uint64_t)n->load.step_us * NS_PER_US * ROUTER_HUNG_STEPS;
    uint64_t hung_ns = core->config.hung_ns;
    return now_ns - n->progress_ns > (predicted_ns > hung_ns ? predicted_ns : hung_ns);
}

/* The first session that has died or hangs, NULL: none. Its end changes the map, so one at a time. */
static struct peer_entry *tend(struct router_core *core, uint64_t now_ns, uint64_t *next_ns,
                               const char **reason)
{
    struct peer_entry *entry;
    *next_ns = TIME_NEVER;
    for (struct map_cursor cursor = {0}; (entry = map_next(&core->peers, &cursor)) != NULL;) {
        struct session_due due = session_on_timer(&entry->session, now_ns);
        if (due.died || is_hung(core, now_ns, entry->node)) {
            *reason = due.died ? entry->session.down_reason : "busy without progress";
            return entry;
        }
        if (due.heartbeat) send_heartbeat(core, entry);
        if (due.wake_ns < *next_ns) *next_ns = due.wake_ns;
    }
    return NULL;
}

uint64_t registry_on_timer(struct router_core *core, uint64_t now_ns)
{
    uint64_t next_ns;
    const char *reason = "";
    struct peer_entry *dead;
    while ((dead = tend(core, now_ns, &next_ns, &reason)) != NULL)
        registry_end(core, now_ns, dead, reason);
    return next_ns;
}

/* ---- what nodes tell about themselves ---- */

static void send_live(struct router_core *core, struct node *n, bool answer)
{
    struct job_key *keys = mem_array(n->live_count, sizeof *keys);
    if (!keys) return; /* it will be asked again */
    uint32_t count = 0;
    for (struct list_link *l = n->choices_prefill.next; l != &n->choices_prefill; l = l->next) {
        struct choice *c = list_member(l, struct choice, at_prefill);
        if (c->prefill_told) keys[count++] = choice_key(c);
    }
    for (struct list_link *l = n->choices_decode.next; l != &n->choices_decode; l = l->next)
        keys[count++] = choice_key(list_member(l, struct choice, at_decode));
    count += backfills_live(core, n, keys + count);
    CHECK(count == n->live_count);
    struct msg m = {.kind = MSG_LIVE,
                    .live = {.answer = answer, .keys = keys, .keys_count = count}};
    if (count <= MSG_LIVE_MAX) registry_send(core, n->peer, &m);
    mem_free(keys);
}

void registry_on_heartbeat(struct router_core *core, uint64_t now_ns, struct node *n,
                           const struct msg_heartbeat *beat)
{
    const struct node_load *load = &beat->load;
    if (beat->progress != n->progress || !beat->busy) n->progress_ns = now_ns;
    n->progress = beat->progress;
    n->busy = beat->busy;
    n->load = *load;
    if (load->token_ns) n->sched.token_ns = load->token_ns;
    n->sched.blocks_free = load->blocks_free + load->blocks_cached;
    n->draining |= beat->draining;
    n->sched.open = !n->draining;
    core->dispatch_wanted = true;
    pins_on_heartbeat(core, now_ns, n);
    if (beat->live_count == n->live_count && beat->live_hash == n->live_hash) {
        n->mismatch_ns = 0;
    } else if (n->mismatch_ns == 0) {
        n->mismatch_ns = now_ns;
    } else if (now_ns - n->mismatch_ns > MISMATCH_NS && now_ns - n->live_asked_ns > MISMATCH_NS) {
        n->live_asked_ns = now_ns;
        send_live(core, n, true);
    }
}

static bool is_listed(const struct msg_live *live, struct job_key key)
{
    for (uint32_t i = 0; i < live->keys_count; i++)
        if (job_key_equal(live->keys[i], key)) return true;
    return false;
}

/* A choice given to the node before it was asked, which it does not list, is lost there. */
static bool lose_unlisted(struct router_core *core, uint64_t now_ns, struct node *n,
                          const struct msg_live *live, bool decode)
{
    struct list_link *head = decode ? &n->choices_decode : &n->choices_prefill;
    for (struct list_link *l = head->next; l != head; l = l->next) {
        struct choice *c = decode ? list_member(l, struct choice, at_decode)
                                  : list_member(l, struct choice, at_prefill);
        bool told = decode || c->prefill_told;
        if (!told || c->state_ns >= n->live_asked_ns || is_listed(live, choice_key(c))) continue;
        choice_on_lost(core, now_ns, c, n, LOSS_OF_CHOICE, "the node does not know it any more");
        return true; /* the list has changed */
    }
    return false;
}

void registry_on_live(struct router_core *core, uint64_t now_ns, struct node *n,
                      const struct msg_live *live)
{
    for (uint32_t i = 0; i < live->keys_count; i++) {
        struct choice *c = choice_find(core, live->keys[i]);
        if (c && ((c->prefill == n && c->prefill_told) || c->decode == n)) continue;
        if (backfill_is_at(core, n, live->keys[i])) continue;
        struct msg m = {.kind = MSG_CANCEL,
                        .cancel = {live->keys[i], "the router has no such job"}};
        registry_send(core, n->peer, &m);
    }
    if (live->answer) {
        send_live(core, n, false);
        return;
    }
    if (!n->live_asked_ns) return; /* nobody asked */
    while (lose_unlisted(core, now_ns, n, live, false))
        continue;
    while (lose_unlisted(core, now_ns, n, live, true))
        continue;
}

void registry_on_drained(struct router_core *core, uint64_t now_ns, struct node *n)
{
    (void)now_ns;
    n->draining = true;
    n->sched.open = false;
    core->dispatch_wanted = true;
}
