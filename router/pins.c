/* pins: prompts that stay cached under a name, on all nodes that could use them.
 *
 *     asked --PINNED, all of it, or D--> held
 *       ^ `----PINNED, less, P--> computing (a request of the router's own, for that P alone)
 *       |                            |
 *       `----- its request ended ----'
 *
 * The nodes remember what was asked of them, and tell a router that takes the place of one that is gone: what is
 * pinned, and what was taken back, as some may have been cut off then. Each has a number; the highest of a name
 * counts, and before all what was said to this router itself.
 * A node that joins is asked at once; one that holds less than all is asked again after PIN_AGAIN_NS, as D comes to
 * hold what it is sent. P computes what it lacks PIN_TRIES times at the most: more pins than half of its pool
 * it does not take, and a quota may stand in the way. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "router/state.h"

#define PIN_AGAIN_NS (10 * NS_PER_S)
#define UNPINNED_NS (60 * NS_PER_S) /* so long nodes keep pins of a router that is gone */
enum { PIN_TRIES = 3, PIN_PRIORITY = 100 /* behind whoever waits for an answer */ };

static void answer(struct router_core *core, const struct pin *p, enum err error, const char *text)
{
    struct msg m = {
        .kind = MSG_ANSWER,
        .answer = {
            .ref = p->ref, .error = error, .text = text, .text_bytes = (uint32_t)strlen(text)}};
    registry_send(core, p->asker, &m);
}

static uint32_t whole_blocks(const struct pin *p)
{
    return p->tokens_count / BLOCK_TOKENS;
}

static struct pin *find(struct router_core *core, const char *name, const char *tenant)
{
    for (uint32_t i = 0; i < ROUTER_PINS_MAX; i++) {
        struct pin *p = &core->pin[i];
        if (p->used && strcmp(p->name, name) == 0 && strcmp(p->tenant, tenant) == 0) return p;
    }
    return NULL;
}

static void tell(struct router_core *core, uint64_t now_ns, const struct pin *p, struct node *n,
                 bool remove)
{
    struct pin_at *at = &n->pin[p - core->pin];
    struct msg m = {.kind = MSG_PIN,
                    .pin = {.ref = p->number,
                            .remove = remove,
                            .name = p->name,
                            .tenant = p->tenant,
                            .tokens = remove ? NULL : p->tokens,
                            .tokens_count = remove ? 0 : p->tokens_count,
                            .salt = p->salt}};
    at->asked_ns = now_ns;
    registry_send(core, n->peer, &m);
}

static void forget(struct router_core *core, uint64_t now_ns, struct pin *p)
{
    for (uint32_t i = 0; i < core->nodes_count; i++) {
        tell(core, now_ns, p, core->nodes[i], true);
        core->nodes[i]->pin[p - core->pin] = (struct pin_at){0};
    }
    mem_free(p->tokens);
    *p = (struct pin){0};
}

/* ---- what was taken back ---- */

static struct unpinned *find_unpinned(struct router_core *core, uint64_t now_ns,
                                      const struct msg_pin *m)
{
    for (uint32_t i = 0; i < ROUTER_PINS_MAX; i++) {
        struct unpinned *u = &core->unpinned[i];
        if (now_ns < u->until_ns && strcmp(u->name, m->name) == 0 &&
            strcmp(u->tenant, m->tenant) == 0)
            return u;
    }
    return NULL;
}

static void note_unpinned(struct router_core *core, uint64_t now_ns, const struct msg_pin *m,
                          uint64_t number, bool here)
{
    struct unpinned *u = find_unpinned(core, now_ns, m);
    if (!u) u = &core->unpinned[core->unpinned_count++ % ROUTER_PINS_MAX];
    *u = (struct unpinned){.number = number, .until_ns = now_ns + UNPINNED_NS, .here = here};
    snprintf(u->name, sizeof u->name, "%s", m->name);
    snprintf(u->tenant, sizeof u->tenant, "%s", m->tenant);
}

static void tell_unpinned(struct router_core *core, const struct node *n, const struct msg_pin *of,
                          uint64_t number)
{
    struct msg m = {.kind = MSG_PIN,
                    .pin = {.ref = number, .remove = true, .name = of->name, .tenant = of->tenant}};
    registry_send(core, n->peer, &m);
}

void pins_fini(struct router_core *core)
{
    for (uint32_t i = 0; i < ROUTER_PINS_MAX; i++)
        mem_free(core->pin[i].tokens);
}

/* ---- from clients ---- */

/* Its ids are known: all nodes are asked. */
static enum err begin(struct router_core *core, uint64_t now_ns, struct pin *p, const uint32_t *ids,
                      uint32_t count)
{
    uint32_t largest = 0;
    if (count < BLOCK_TOKENS)
        return err_set(ERR_INVALID,
                       "\"%s\" has %u tokens: what is cached are blocks of %d, so it needs as many",
                       p->name, count, BLOCK_TOKENS);
    for (uint32_t i = 0; i < core->nodes_count; i++)
        if (core->sched[i]->blocks_total > largest) largest = core->sched[i]->blocks_total;
    if (core->nodes_count > 0 && count / BLOCK_TOKENS > largest / 2)
        return err_set(ERR_INVALID,
                       "\"%s\" has %u blocks of %d tokens, and a node pins half of its blocks at "
                       "most: the largest one has %u. Pin less, or give nodes more --kv-bytes",
                       p->name, count / BLOCK_TOKENS, BLOCK_TOKENS, largest);
    for (uint32_t i = 0; i < count && core->cluster.known; i++)
        if (ids[i] >= core->cluster.vocab)
            return err_set(ERR_INVALID, "token %u is not in the vocabulary of %u", ids[i],
                           core->cluster.vocab);
    if (core->cluster.known && count >= core->cluster.context_max)
        return err_set(ERR_INVALID, "\"%s\" has %u tokens, the context %u", p->name, count,
                       core->cluster.context_max);
    if (!(p->tokens = mem_array(count, sizeof *p->tokens))) return ERR_MEMORY;
    memcpy(p->tokens, ids, count * sizeof *ids);
    p->tokens_count = count;
    for (uint32_t i = 0; i < core->nodes_count; i++)
        tell(core, now_ns, p, core->nodes[i], false);
    log_info("pinned", "name=%s tenant=\"%s\" tokens=%u", p->name, p->tenant, count);
    return OK;
}

static void begin_and_say(struct router_core *core, uint64_t now_ns, struct pin *p,
                          const uint32_t *ids, uint32_t count)
{
    enum err e = begin(core, now_ns, p, ids, count);
    if (e != OK) {
        answer(core, p, e, err_text());
        forget(core, now_ns, p);
        return;
    }
    char text[160];
    snprintf(text, sizeof text, "{\"name\":\"%s\",\"tokens\":%u,\"blocks\":%u,\"nodes\":%u}",
             p->name, count, whole_blocks(p), core->nodes_count);
    answer(core, p, OK, text);
}

static enum err pin_new(struct router_core *core, const struct msg_pin *m, struct pin **out)
{
    if ((m->text_bytes > 0) == (m->tokens_count > 0))
        return err_set(ERR_INVALID,
                       "give the prompt to pin as text or as token ids, one of the two");
    if (m->text_bytes > 0 && !core->config.tokenizer)
        return err_set(ERR_UNSUPPORTED,
                       "this router has no tokenizer: pin token ids, or start it with --model");
    struct pin *p = core->pin;
    while (p < core->pin + ROUTER_PINS_MAX && p->used)
        p++;
    if (p == core->pin + ROUTER_PINS_MAX)
        return err_set(ERR_FULL, "%d prompts are pinned already: tandem unpin one of tandem pins",
                       ROUTER_PINS_MAX);
    *p = (struct pin){.used = true, .salt = turns_salt(core, m->tenant)};
    snprintf(p->name, sizeof p->name, "%s", m->name);
    snprintf(p->tenant, sizeof p->tenant, "%s", m->tenant);
    *out = p;
    return OK;
}

void pins_on_client(struct router_core *core, uint64_t now_ns, struct peer peer,
                    const struct msg_pin *m)
{
    struct pin asked = {.ref = m->ref, .asker = peer}, *p = find(core, m->name, m->tenant);
    if (m->remove && !p) {
        err_set(ERR_NOT_FOUND, "nothing is pinned as \"%s\"%s%s: tandem pins lists what is",
                m->name, m->tenant[0] ? " of tenant " : "", m->tenant);
        answer(core, &asked, ERR_NOT_FOUND, err_text());
        return;
    }
    if (p && !p->tokens)
        answer(core, p, ERR_CANCELLED, "it was pinned anew or taken back meanwhile");
    if (p) {
        p->number = ++core->pins_number;
        note_unpinned(core, now_ns, m, p->number, true); /* or until it is pinned, below */
        forget(core, now_ns, p);
    }
    if (m->remove) {
        answer(core, &asked, OK, "{\"pinned\":false}");
        return;
    }
    enum err e = pin_new(core, m, &p);
    if (e != OK) {
        answer(core, &asked, e, err_text());
        return;
    }
    p->ref = asked.ref;
    p->asker = asked.asker;
    p->number = ++core->pins_number;
    p->here = true;
    if (m->tokens_count > 0) {
        begin_and_say(core, now_ns, p, m->tokens, m->tokens_count);
        return;
    }
    p->tokenizing = router_draw_id(core);
    e = core->out.tokenize(core->out.ctx, p->tokenizing, m->text, m->text_bytes);
    if (e == OK) return;
    answer(core, p, e, err_text());
    forget(core, now_ns, p);
}

bool pins_on_tokens(struct router_core *core, uint64_t now_ns, struct id128 job,
                    const uint32_t *ids, uint32_t ids_count, enum err error, const char *reason)
{
    for (uint32_t i = 0; i < ROUTER_PINS_MAX; i++) {
        struct pin *p = &core->pin[i];
        if (!p->used || p->tokens || !id128_equal(p->tokenizing, job)) continue;
        if (error == OK) {
            begin_and_say(core, now_ns, p, ids, ids_count);
        } else {
            answer(core, p, error, reason);
            forget(core, now_ns, p);
        }
        return true;
    }
    return false;
}

/* ---- at nodes ---- */

void pins_on_join(struct router_core *core, uint64_t now_ns, struct node *n)
{
    for (uint32_t i = 0; i < ROUTER_PINS_MAX; i++)
        if (core->pin[i].used && core->pin[i].tokens) tell(core, now_ns, &core->pin[i], n, false);
}

void pins_on_node(struct router_core *core, uint64_t now_ns, struct node *n,
                  const struct msg_pin *m)
{
    struct pin *p = find(core, m->name, m->tenant);
    const struct unpinned *u = p ? NULL : find_unpinned(core, now_ns, m);
    bool here = (p && p->here) || (u && u->here);
    uint64_t number = p ? p->number : u ? u->number : 0;
    if (m->ref > core->pins_number) core->pins_number = m->ref;
    if ((p || u) && (here || number >= m->ref)) {
        if (u && !m->remove) tell_unpinned(core, n, m, number);
        return; /* of what is pinned it was told when it joined, or will be when there are ids */
    }
    if (p) forget(core, now_ns, p);
    if (m->remove) {
        note_unpinned(core, now_ns, m, m->ref, false);
        return;
    }
    enum err e = pin_new(core, m, &p);
    if (e == OK) {
        p->number = m->ref;
        e = begin(core, now_ns, p, m->tokens, m->tokens_count);
    }
    if (e == OK) return;
    log_warn("pin_not_kept", "name=%s tenant=\"%s\" node=%s reason=\"%s\"", m->name, m->tenant,
             n->hello.name, err_text());
    if (p) forget(core, now_ns, p);
    tell_unpinned(core, n, m, m->ref);
}

/* A request of the router's own, which only this node may compute; what it says is for nobody. */
static void compute(struct router_core *core, uint64_t now_ns, const struct pin *p, struct node *n)
{
    struct pin_at *at = &n->pin[p - core->pin];
    struct msg_submit submit = {.id = router_draw_id(core),
                                .tokens = p->tokens,
                                .tokens_count = p->tokens_count,
                                .choices = 1,
                                .sampling = {.top_p = 1, .repetition_penalty = 1},
                                .priority = PIN_PRIORITY,
                                .tenant = p->tenant};
    submit_on_message(core, now_ns, &core->self, &submit);
    struct request *r = map_get(&core->requests, submit.id);
    if (!r) return; /* too many requests: it is tried again */
    r->only = n->peer;
    at->request = submit.id;
    at->tries++;
}

void pins_on_pinned(struct router_core *core, uint64_t now_ns, struct node *n,
                    const struct msg_pinned *m)
{
    struct pin *p = find(core, m->name, m->tenant);
    if (!p || !p->tokens || m->blocks > whole_blocks(p)) return;
    struct pin_at *at = &n->pin[p - core->pin];
    bool more = m->blocks > at->blocks;
    at->blocks = m->blocks;
    if (at->blocks == whole_blocks(p)) at->tries = 0;
    if (at->blocks == whole_blocks(p) || n->hello.role != ROLE_PREFILL) return;
    if (!id128_is_none(at->request) || at->tries == PIN_TRIES || n->draining) return;
    compute(core, now_ns, p, n);
    if (at->tries == PIN_TRIES && !more)
        log_warn(
            "pin_incomplete",
            "name=%s tenant=\"%s\" node=%s blocks=%u of=%u reason=\"half of its pool is pinned, or "
            "the tenant's quota is reached\"",
            p->name, p->tenant, n->hello.name, at->blocks, whole_blocks(p));
}

void pins_on_ended(struct router_core *core, uint64_t now_ns, const struct request *r)
{
    for (uint32_t k = 0; k < core->nodes_count; k++)
        for (uint32_t i = 0; i < ROUTER_PINS_MAX; i++) {
            struct node *n = core->nodes[k];
            if (!id128_equal(n->pin[i].request, r->id)) continue;
            n->pin[i].request = ID128_NONE;
            if (core->pin[i].used && core->pin[i].tokens)
                tell(core, now_ns, &core->pin[i], n, false);
        }
}

void pins_on_heartbeat(struct router_core *core, uint64_t now_ns, struct node *n)
{
    for (uint32_t i = 0; i < ROUTER_PINS_MAX; i++) {
        const struct pin *p = &core->pin[i];
        const struct pin_at *at = &n->pin[i];
        if (!p->used || !p->tokens || at->blocks == whole_blocks(p)) continue;
        if (!id128_is_none(at->request) || now_ns - at->asked_ns < PIN_AGAIN_NS) continue;
        tell(core, now_ns, p, n, false);
    }
}

struct json_t *pin_json(const struct router_core *core, uint32_t i)
{
    const struct pin *p = &core->pin[i];
    if (!p->used || !p->tokens) return NULL;
    return json_pack("{s:s,s:s,s:I,s:I}", "name", p->name, "tenant", p->tenant, "tokens",
                     (json_int_t)p->tokens_count, "blocks", (json_int_t)whole_blocks(p));
}

struct json_t *pin_share_json(const struct router_core *core, uint32_t i, const struct node *n)
{
    if (!core->pin[i].used) return NULL;
    return json_pack("{s:s,s:s,s:I}", "node", n->hello.name, "role",
                     n->hello.role == ROLE_PREFILL ? "prefill" : "decode", "blocks",
                     (json_int_t)n->pin[i].blocks);
}

void pins_count(const struct router_core *core, uint32_t *pins, uint32_t lacking[2])
{
    *pins = lacking[0] = lacking[1] = 0;
    for (uint32_t k = 0; k < ROUTER_PINS_MAX; k++) {
        const struct pin *p = &core->pin[k];
        *pins += p->used;
        for (uint32_t i = 0; p->used && i < core->nodes_count; i++) {
            const struct node *n = core->nodes[i];
            lacking[n->hello.role == ROLE_DECODE] += n->pin[k].blocks < whole_blocks(p);
        }
    }
}
