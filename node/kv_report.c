#include "node/kv_report.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/state.h"

/* A prefix that more than one sequence was computed on. */
struct prefix {
    uint64_t score; /* tokens x uses */
    uint64_t salt, used_ns;
    uint32_t at;      /* entry: on the way from its last to its first … */
    uint64_t at_hash; /* … which is another one's by now if this is not its hash */
    uint32_t tokens_count, uses;
    uint32_t first[BLOCK_TOKENS], last[BLOCK_TOKENS];
    bool rooted; /* `first` is known */
};

struct kv_report {
    struct ask {
        uint32_t router;
        uint64_t ref;
    } ask[KV_REPORT_ASKS_MAX];
    uint32_t asks_count; /* 0: nothing is being made */
    uint64_t next_ns;    /* of the next slice */
    uint32_t block;      /* looked at up to here */
    uint32_t ages[KV_REPORT_AGES], sizes[KV_REPORT_SIZES];
    uint32_t tenant_blocks[KV_USAGE_TENANTS + 1]; /* the last: others' */
    uint32_t tenant_last;
    struct prefix prefix[KV_REPORT_PREFIXES]; /* the biggest first */
    uint32_t prefixes_count;
};

/* The last of each table is what is beyond. */
static const uint64_t age_bounds_s[KV_REPORT_AGES - 1] = {1,   4,    15,    60,   240,
                                                          900, 3600, 14400, 86400};
enum { SIZE_FIRST = 64 }; /* tokens; each of the sizes is twice the one before */

enum err kv_report_new(struct kv_report **report)
{
    *report = mem_new(sizeof **report);
    return *report ? OK : ERR_MEMORY;
}

void kv_report_free(struct kv_report *report)
{
    mem_free(report);
}

/* ---- looking at blocks ---- */

static void count_age(struct kv_report *r, uint64_t now_ns, const struct kv_prefix_entry *e)
{
    uint64_t age_ns = now_ns > e->used_ns ? now_ns - e->used_ns : 0;
    uint32_t i = 0;
    while (i < KV_REPORT_AGES - 1 && age_ns >= age_bounds_s[i] * NS_PER_S)
        i++;
    r->ages[i]++;
}

static void count_size(struct kv_report *r, const struct kv_prefix_entry *e)
{
    uint64_t tokens = ((uint64_t)e->depth + 1) * BLOCK_TOKENS, bound = SIZE_FIRST;
    uint32_t i = 0;
    for (; i < KV_REPORT_SIZES - 1 && tokens > bound; i++)
        bound *= 2;
    r->sizes[i]++;
}

static void count_tenant(struct node_core *c, uint64_t salt)
{
    struct kv_report *r = c->report;
    uint32_t i = r->tenant_last;
    bool same = i < KV_USAGE_TENANTS && c->usage.tenant[i].jobs > 0 &&
                c->usage.tenant[i].salt == salt; /* neighbours mostly are of one prompt */
    if (!same) i = r->tenant_last = kv_usage_tenant(&c->usage, salt);
    r->tenant_blocks[i]++;
}

/* A prefix is shared up to where its uses fall off: by a quarter at least, or at its end. */
static bool is_shared_end(const struct kv_prefix_entry *e)
{
    return e->uses >= 2 && (uint64_t)e->next_uses * 4 <= (uint64_t)e->uses * 3;
}

static void rank_prefix(struct kv_report *r, const struct kv_prefix_entry *e)
{
    uint32_t tokens = (e->depth + 1) * BLOCK_TOKENS, i = r->prefixes_count;
    uint64_t score = (uint64_t)tokens * e->uses;
    while (i > 0 && r->prefix[i - 1].score < score)
        i--;
    if (i == KV_REPORT_PREFIXES) return;
    if (r->prefixes_count < KV_REPORT_PREFIXES) r->prefixes_count++;
    memmove(&r->prefix[i + 1], &r->prefix[i], (r->prefixes_count - 1 - i) * sizeof r->prefix[0]);
    struct prefix *p = &r->prefix[i];
    *p = (struct prefix){.score = score,
                         .at_hash = e->hash,
                         .salt = e->salt,
                         .used_ns = e->used_ns,
                         .at = e->at,
                         .tokens_count = tokens,
                         .uses = e->uses};
    memcpy(p->last, e->tokens, sizeof p->last);
}

static void look(struct node_core *c, uint64_t now_ns, uint32_t block)
{
    struct kv_report *r = c->report;
    struct kv_prefix_entry e;
    if (!kv_prefix_look(c->cache, (struct block_id){block}, &e)) return;
    bool idle = kv_pool_holds_all(c->pool, (struct block_id){block}) ==
                kv_pool_holds(c->pool, (struct block_id){block}, HOLD_CACHE);
    if (!idle) e.used_ns = now_ns;
    count_age(r, now_ns, &e);
    if (e.next_uses == 0) count_size(r, &e);
    count_tenant(c, e.salt);
    if (is_shared_end(&e)) rank_prefix(r, &e);
}

/* Its first tokens are its first block's, which is as many steps up as it is long: KV_REPORT_SLICE of them in
 * a turn. */
static void go_to_root(const struct node_core *c, struct prefix *p)
{
    struct kv_prefix_entry e;
    bool known = kv_prefix_look_at(c->cache, p->at, &e) && e.hash == p->at_hash;
    for (uint32_t steps = 0; known && e.parent != KV_PREFIX_NONE; steps++) {
        if (steps == KV_REPORT_SLICE) {
            p->at_hash = e.hash;
            return; /* goes on from there, if it is still there */
        }
        p->at = e.parent;
        known = kv_prefix_look_at(c->cache, e.parent, &e); /* a child keeps its parents known */
    }
    p->rooted = true;
    if (known)
        memcpy(p->first, e.tokens, sizeof p->first);
    else
        p->uses = 0; /* gone since it was ranked */
}

/* True: all has been looked at. */
static bool slice(struct node_core *c, uint64_t now_ns)
{
    struct kv_report *r = c->report;
    uint32_t end = c->config.blocks_count;
    if (!c->cache) return true;
    if (r->block < end) {
        if (end - r->block > KV_REPORT_SLICE) end = r->block + KV_REPORT_SLICE;
        for (; r->block < end; r->block++)
            look(c, now_ns, r->block);
        return false;
    }
    for (uint32_t i = 0; i < r->prefixes_count; i++) {
        if (r->prefix[i].rooted) continue;
        go_to_root(c, &r->prefix[i]);
        return false;
    }
    return true;
}

/* ---- as JSON ---- */

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

static json_t *blocks_json(const struct node_core *c)
{
    struct kv_pool_counts b = kv_pool_counts(c->pool);
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "total", number(b.total), "free",
                     number(b.free), "reserved", number(b.reserved), "active", number(b.active),
                     "cached", number(b.cached), "transfer", number(b.transfer), "pinned",
                     number(b.pinned));
}

static json_t *counts_json(const uint64_t count[KV_COUNTS], double seconds)
{
    json_t *o = json_object();
    json_object_set_new(o, "seconds", json_real(seconds));
    for (uint32_t i = 0; i < KV_COUNTS; i++)
        json_object_set_new(o, kv_count_name(i), number(count[i]));
    return o;
}

/* Its own sequences. */
static json_t *load_json(const struct node_core *c)
{
    uint64_t live = 0, running = 0, waiting = 0, preempted = 0, tokens = 0;
    for (uint32_t i = 0; i < c->config.slots_count; i++) {
        const struct sequence *s = &c->sequence[i];
        if (!seq_is_live(s)) continue;
        live++;
        running += s->state == SEQ_RUNNING;
        waiting += s->state == SEQ_WAITING;
        preempted += s->state == SEQ_WAITING && s->preempted;
        tokens += seq_total(s);
    }
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "live", number(live), "running",
                     number(running), "waiting", number(waiting), "preempted", number(preempted),
                     "tokens", number(tokens), "blocks_full", number(waste_blocks_full(c)),
                     "blocks_full_peak", number(c->counts.blocks_full_peak), "sequences_max",
                     number(c->config.sequences_max), "context_max", number(c->config.context_max));
}

static json_t *ages_json(const struct kv_report *r)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < KV_REPORT_AGES; i++) {
        json_t *below = i < KV_REPORT_AGES - 1 ? number(age_bounds_s[i]) : json_null();
        json_array_append_new(
            list, json_pack("{s:o,s:o}", "below_s", below, "blocks", number(r->ages[i])));
    }
    return list;
}

static json_t *sizes_json(const struct kv_report *r)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < KV_REPORT_SIZES; i++) {
        json_t *upto = i < KV_REPORT_SIZES - 1 ? number((uint64_t)SIZE_FIRST << i) : json_null();
        json_array_append_new(
            list, json_pack("{s:o,s:o}", "upto_tokens", upto, "prefixes", number(r->sizes[i])));
    }
    return list;
}

static json_t *salt_json(uint64_t salt)
{
    char text[20];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)salt);
    return json_string(text);
}

static json_t *tenant_json(const struct kv_tenant *t, uint32_t blocks)
{
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o}", "salt", salt_json(t->salt), "jobs",
                     number(t->jobs), "queried_tokens", number(t->queried_tokens), "hit_tokens",
                     number(t->hit_tokens), "regret_tokens", number(t->regret_tokens), "blocks",
                     number(blocks));
}

static json_t *tenants_json(const struct node_core *c)
{
    const struct kv_usage *u = &c->usage;
    json_t *list = json_array();
    for (uint32_t i = 0; i < KV_USAGE_TENANTS; i++)
        if (u->tenant[i].jobs > 0)
            json_array_append_new(list, tenant_json(&u->tenant[i], c->report->tenant_blocks[i]));
    return list;
}

static json_t *ids_json(const uint32_t ids[BLOCK_TOKENS])
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++)
        json_array_append_new(list, number(ids[i]));
    return list;
}

static json_t *prefixes_json(const struct kv_report *r, uint64_t now_ns)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < r->prefixes_count; i++) {
        const struct prefix *p = &r->prefix[i];
        if (p->uses == 0) continue;
        double age_s = now_ns > p->used_ns ? (double)(now_ns - p->used_ns) / (double)NS_PER_S : 0;
        json_array_append_new(list, json_pack("{s:o,s:o,s:f,s:o,s:o,s:o}", "tokens",
                                              number(p->tokens_count), "uses", number(p->uses),
                                              "age_s", age_s, "salt", salt_json(p->salt), "first",
                                              ids_json(p->first), "last", ids_json(p->last)));
    }
    return list;
}

static json_t *report_json(struct node_core *c, uint64_t now_ns)
{
    static const char *const policies[] = {"lru", "lfu", "s3fifo", "cost", "ttl"};
    const struct kv_report *r = c->report;
    const struct msg_hello *h = &c->config.hello;
    uint64_t totals[KV_COUNTS], lately[KV_COUNTS];
    core_usage_totals(c, totals);
    double seconds = kv_usage_window(&c->usage, totals, lately);
    double up_s = (double)(now_ns - c->usage.began_ns) / (double)NS_PER_S;
    json_t *root = json_pack(
        "{s:s,s:s,s:b,s:s,s:i,s:o,s:o,s:o}", "node", h->name ? h->name : "", "role",
        c->config.role == ROLE_PREFILL ? "prefill" : "decode", "prefix_cache", c->cache != NULL,
        "policy", policies[c->config.evict.policy], "block_tokens", BLOCK_TOKENS, "block_bytes",
        number(kv_block_bytes(&h->geometry)), "blocks", blocks_json(c), "load", load_json(c));
    json_object_set_new(root, "entries",
                        number(c->cache ? kv_prefix_stats(c->cache).entries_count : 0));
    json_object_set_new(root, "slow_callbacks", number(c->slow_callbacks));
    json_object_set_new(root, "total", counts_json(totals, up_s));
    json_object_set_new(root, "window", counts_json(lately, seconds));
    json_object_set_new(root, "ages", ages_json(r));
    json_object_set_new(root, "sizes", sizes_json(r));
    json_object_set_new(root, "tenants", tenants_json(c));
    json_object_set_new(root, "other_tenants",
                        tenant_json(&c->usage.others, r->tenant_blocks[KV_USAGE_TENANTS]));
    json_object_set_new(root, "prefixes", prefixes_json(r, now_ns));
    json_object_set_new(root, "tiers", tier_report_json(c));
    return root;
}

/* ---- asks and answers ---- */

static void answer(struct node_core *c, const struct ask *ask, enum err e, const char *text)
{
    struct msg m = {.kind = MSG_ANSWER, .answer = {ask->ref, e, text, (uint32_t)strlen(text)}};
    say(c, ask->router, &m);
}

static void answer_all(struct node_core *c, uint64_t now_ns)
{
    struct kv_report *r = c->report;
    json_t *root = report_json(c, now_ns);
    char *text = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
    for (uint32_t i = 0; i < r->asks_count; i++)
        answer(c, &r->ask[i], text ? OK : ERR_MEMORY, text ? text : "out of memory for the report");
    json_decref(root);
    free(text);
    r->asks_count = 0;
}

void kv_report_ask(struct node_core *c, uint64_t now_ns, uint32_t router, uint64_t ref)
{
    struct kv_report *r = c->report;
    struct ask ask = {router, ref};
    if (r->asks_count == KV_REPORT_ASKS_MAX) {
        answer(c, &ask, ERR_FULL, "too many reports are asked for at once");
        return;
    }
    if (r->asks_count == 0) *r = (struct kv_report){.next_ns = now_ns};
    r->ask[r->asks_count++] = ask;
}

void kv_report_turn(struct node_core *c, uint64_t now_ns)
{
    struct kv_report *r = c->report;
    if (r->asks_count == 0) return;
    if (now_ns >= r->next_ns) {
        r->next_ns = now_ns + KV_REPORT_PAUSE_NS;
        if (slice(c, now_ns)) {
            answer_all(c, now_ns);
            return;
        }
    }
    if (r->next_ns < c->wake_ns) c->wake_ns = r->next_ns;
}
