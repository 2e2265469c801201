/* turns: the choices of each tenant in router/fair.h: who they belong to, when they wait, what they cost. */
#include <jansson.h>
#include <string.h>

#include "common/keyed_hash.h"
#include "router/state.h"

uint64_t turns_salt(const struct router_core *core, const char *tenant)
{
    if (!tenant || !tenant[0]) return 0;
    uint64_t salt = keyed_hash(core->config.salt_key, tenant, strlen(tenant));
    return salt ? salt : 1;
}

static uint32_t weight_of(const struct router_core *core, const char *tenant)
{
    return tenant_weight_of(core->config.weights, core->config.weights_count, tenant);
}

enum err turns_join(struct router_core *core, struct request *r)
{
    enum err e;
    const char *name = r->submit.tenant ? r->submit.tenant : "";
    struct fair_tenant *t =
        fair_join(&core->fair, name, turns_salt(core, name), weight_of(core, name));
    if (!t) return ERR_MEMORY;
    if ((e = fair_reserve(t, r->choices_count)) != OK) {
        fair_leave(&core->fair, t);
        return e;
    }
    r->tenant = t;
    tenant_meters_join(core, t);
    return OK;
}

void turns_leave(struct router_core *core, struct request *r)
{
    if (!r->tenant) return;
    for (uint32_t i = 0; i < r->choices_count; i++) {
        turns_unqueue(core, &r->choice[i]);
        turns_ended(core, &r->choice[i]);
    }
    fair_unreserve(r->tenant, r->choices_count);
    fair_leave(&core->fair, r->tenant);
    r->tenant = NULL;
}

void turns_queue(struct router_core *core, struct choice *c)
{
    const struct request *r = c->request;
    fair_queue(&core->fair, r->tenant, &c->turn,
               sched_queue_key(r->arrived_ns, r->submit.priority));
}

void turns_unqueue(struct router_core *core, struct choice *c)
{
    if (heap_holds(&c->turn)) fair_unqueue(&core->fair, c->request->tenant, &c->turn);
}

/* The prompt counts when it is sent to be computed, so that a hundred that are sent at once count before
 * the first is done. A second attempt is not its tenant's fault. */
void turns_started(struct router_core *core, struct choice *c)
{
    struct fair_tenant *t = c->request->tenant;
    fair_start(&core->fair, t);
    c->running = true;
    if (c->charged_tokens || c->fork) return; /* a fork computes no prompt */
    c->charged_tokens = choice_tokens(c);
    t->prompt_tokens += c->charged_tokens;
    tenant_meters_count(core, t, TENANT_PROMPT_TOKENS, c->charged_tokens);
    fair_charge(&core->fair, t, (uint64_t)c->charged_tokens * FAIR_PROMPT);
}

void turns_ended(struct router_core *core, struct choice *c)
{
    if (c->running) fair_end(&core->fair, c->request->tenant);
    c->running = false;
}

void turns_cached(struct router_core *core, struct choice *c, uint32_t cached_tokens)
{
    struct fair_tenant *t = c->request->tenant;
    if (!t || cached_tokens <= c->refunded_tokens || cached_tokens > c->charged_tokens) return;
    uint32_t more = cached_tokens - c->refunded_tokens;
    c->refunded_tokens = cached_tokens;
    t->prompt_tokens -= more;
    tenant_meters_count(core, t, TENANT_CACHED_TOKENS, more);
    fair_refund(&core->fair, t, (uint64_t)more * FAIR_PROMPT);
}

void turns_generated(struct router_core *core, struct choice *c, uint32_t tokens)
{
    struct fair_tenant *t = c->request->tenant;
    t->generated_tokens += tokens;
    tenant_meters_count(core, t, TENANT_GENERATED_TOKENS, tokens);
    fair_charge(&core->fair, t, (uint64_t)tokens * FAIR_GENERATED);
}

/* What its tenant has at this node already. The first prompt of a tenant below its share stands where the node
 * is now, others where they will end: so a tenant that asks for little goes before one that asks for much, and
 * before what is left of a long prompt of it. */
uint32_t turns_lead(const struct router_core *core, const struct choice *c, const struct node *n,
                    bool decode)
{
    const struct fair_tenant *t = c->request->tenant;
    uint64_t tokens = 0;
    if (!n || !t || fair_alone(&core->fair)) return 0;
    const struct list_link *head = decode ? &n->choices_decode : &n->choices_prefill;
    for (const struct list_link *l = head->next; l != head; l = l->next) {
        const struct choice *other = decode ? list_member(l, struct choice, at_decode)
                                            : list_member(l, struct choice, at_prefill);
        if (other != c && other->request->tenant == t)
            tokens += decode ? choice_tokens(other) : other->window_held;
    }
    if (tokens > 0 || !c->under_share) tokens += decode ? choice_tokens(c) : c->window_held;
    tokens /= t->weight;
    return tokens < UINT32_MAX ? (uint32_t)tokens : UINT32_MAX;
}

/* Urgency counts among a tenant's own; that something can wait counts everywhere. */
int32_t turns_priority(const struct router_core *core, const struct choice *c)
{
    int32_t priority = c->request->submit.priority;
    return priority < 0 && !fair_alone(&core->fair) ? 0 : priority;
}

/* Room that is for tenants with less than their share. The window that they have besides is not for one with more
 * waiting: whenever its last running request ended, its next one would keep the others from it. */
void turns_room(const struct router_core *core, const struct choice *c, struct sched_job *job)
{
    const struct fair_tenant *t = c->request->tenant;
    if (!t || fair_alone(&core->fair)) return;
    job->over_share = fair_over(&core->fair, t);
    job->under_share = !job->over_share && t->waiting <= c->request->choices_count;
    job->keep_percent = job->over_share ? core->config.tenant_reserve_percent : 0;
}

static json_t *tenant_json(const struct fair *f, const struct fair_tenant *t)
{
    double ahead = t->virtual_time > f->now ? (double)(t->virtual_time - f->now) : 0;
    return json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:f,s:f}", "tenant", t->name, "weight",
                     (json_int_t)t->weight, "queued", (json_int_t)t->waiting, "running",
                     (json_int_t)t->running, "prompt_tokens", (json_int_t)t->prompt_tokens,
                     "generated_tokens", (json_int_t)t->generated_tokens, "virtual_tokens",
                     (double)t->virtual_time / (double)FAIR_UNIT, "ahead_tokens",
                     ahead / (double)FAIR_UNIT);
}

static bool shown_before(const struct fair_tenant *a, const struct fair_tenant *b)
{
    uint64_t served_a = a->prompt_tokens + FAIR_GENERATED * a->generated_tokens;
    uint64_t served_b = b->prompt_tokens + FAIR_GENERATED * b->generated_tokens;
    if ((a->live > 0) != (b->live > 0)) return a->live > 0;
    return served_a != served_b ? served_a > served_b : a->salt < b->salt;
}

/* Those with requests first, then by what they were served. */
struct json_t *turns_json(const struct router_core *core)
{
    const struct fair_tenant *shown[FAIR_SHOWN_MAX], *t;
    uint32_t count = 0;
    for (struct map_cursor c = {0}; (t = map_next(&core->fair.tenants, &c)) != NULL;) {
        uint32_t at = count < FAIR_SHOWN_MAX ? count++ : FAIR_SHOWN_MAX;
        for (; at > 0 && shown_before(t, shown[at - 1]); at--)
            if (at < FAIR_SHOWN_MAX) shown[at] = shown[at - 1];
        if (at < FAIR_SHOWN_MAX) shown[at] = t;
    }
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++)
        json_array_append_new(list, tenant_json(&core->fair, shown[i]));
    return list;
}
