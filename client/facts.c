#include "client/facts.h"

#include <stdio.h>
#include <string.h>

#include "client/show.h"
#include "common/mem.h"

static const json_t *at(const json_t *root, const char *a, const char *b)
{
    return json_object_get(json_object_get(root, a), b);
}

static void copy(char *to, size_t size, const json_t *object, const char *name)
{
    snprintf(to, size, "%s", show_text(object, name));
}

/* How much a count has grown; 0 if it began anew. */
static double growth(const json_t *first, const json_t *last, const char *name)
{
    double d = first ? show_real(last, name) - show_real(first, name) : 0;
    return d > 0 ? d : 0;
}

static double rate(const struct facts *f, double count)
{
    return f->seconds > 0 ? count / f->seconds : 0;
}

static const json_t *find(const json_t *list, const char *key, const char *name)
{
    const json_t *row;
    size_t i;
    json_array_foreach(list, i, row)
    {
        if (strcmp(show_text(row, key), name) == 0) return row;
    }
    return NULL;
}

static void read_router(struct facts *f, const json_t *first, const json_t *last)
{
    const json_t *r = json_object_get(last, "router"), *q = json_object_get(r, "queue");
    const json_t *r0 = first ? json_object_get(first, "router") : NULL;
    const json_t *q0 = json_object_get(r0, "queue"), *b = json_object_get(q, "blocked_s");
    const json_t *b0 = q0 ? json_object_get(q0, "blocked_s") : NULL;
    f->has_status = r != NULL;
    copy(f->router, sizeof f->router, r, "name");
    f->seconds = growth(r0, r, "at_s");
    f->queued = show_real(r, "queued");
    f->oldest_s = show_real(q, "oldest_s");
    f->picked = growth(q0, q, "picked");
    f->waited_s = growth(q0, q, "waited_s");
    f->blocked_prefill_s = growth(b0, b, "prefill");
    f->blocked_decode_s = growth(b0, b, "decode");
    f->failed = r0 ? growth(r0, r, "failed") : show_real(r, "failed");
    f->node_deaths = r0 ? growth(r0, r, "node_deaths") : show_real(r, "node_deaths");
    f->failed_before = show_real(r, "failed") - f->failed;
    f->deaths_before = show_real(r, "node_deaths") - f->node_deaths;
    f->slow_per_s = rate(f, growth(r0, r, "slow_callbacks"));
}

static void read_memory(struct facts_node *n, const json_t *memory)
{
    bool now = show_real(memory, "held_tokens") > 0;
    n->held_tokens = show_real(memory, now ? "held_tokens" : "held_tokens_peak");
    n->wasted_slots = show_real(memory, now ? "wasted_slots" : "wasted_slots_peak");
    n->contiguous_slots = show_real(memory, now ? "contiguous_slots" : "contiguous_slots_peak");
}

static void read_status(struct facts *f, struct facts_node *n, const json_t *before,
                        const json_t *row)
{
    const json_t *load = json_object_get(row, "load"), *blocks = json_object_get(row, "blocks");
    copy(n->name, sizeof n->name, row, "name");
    n->prefill = strcmp(show_text(row, "role"), "prefill") == 0;
    n->draining = strcmp(show_text(row, "state"), "draining") == 0;
    n->blocks_total = show_real(blocks, "total");
    n->running = show_real(load, "running");
    n->sequences_max = show_real(load, "sequences_max");
    n->step_s = show_real(load, "step_us") / 1e6;
    n->without_progress_s = show_real(load, "without_progress_s");
    if (before)
        n->slow_per_s = rate(f, growth(json_object_get(before, "load"), load, "slow_callbacks"));
    read_memory(n, json_object_get(row, "memory"));
}

static void read_kv(struct facts_node *n, const json_t *report)
{
    const json_t *w = json_object_get(report, "window"), *load = json_object_get(report, "load");
    copy(n->name, sizeof n->name, report, "node");
    n->prefill = strcmp(show_text(report, "role"), "prefill") == 0;
    n->block_bytes = show_real(report, "block_bytes");
    n->blocks_total = show_real(json_object_get(report, "blocks"), "total");
    n->window_s = show_real(w, "seconds");
    n->queried_tokens = show_real(w, "queried_tokens");
    n->hit_tokens = show_real(w, "hit_tokens");
    n->regret_tokens = show_real(w, "regret_tokens");
    n->generated_tokens = show_real(w, "generated_tokens");
    n->recomputed_tokens = show_real(w, "recomputed_tokens");
    n->preemptions = show_real(w, "preemptions");
    n->refused_jobs = show_real(w, "refused_jobs");
    n->live = show_real(load, "live");
    n->blocks_full = show_real(load, "blocks_full");
    n->blocks_full_peak = show_real(load, "blocks_full_peak");
    if (n->sequences_max <= 0) n->sequences_max = show_real(load, "sequences_max");
}

static void read_tier(struct facts_tier *t, const json_t *first, const json_t *row)
{
    double hits = growth(first, row, "hits"), not_worth = growth(first, row, "not_worth");
    bool enough = hits + not_worth >= FACTS_TIER_ASKED;
    copy(t->name, sizeof t->name, row, "name");
    t->broken = json_is_true(json_object_get(row, "broken"));
    t->hit_blocks = enough ? hits : show_real(row, "hits");
    t->not_worth_blocks = enough ? not_worth : show_real(row, "not_worth");
    t->read_rate = show_real(row, "read_rate");
    t->stuck_s = show_real(row, "stuck_ms") / 1000;
    t->failures = first ? growth(first, row, "failures") : show_real(row, "failures");
    t->wrong = first ? growth(first, row, "wrong") : show_real(row, "wrong");
    t->wrong_before = show_real(row, "wrong") - t->wrong;
}

static void read_tiers(struct facts_node *n, const json_t *before, const json_t *tiers)
{
    const json_t *row, *rows = json_object_get(before, "rows");
    double loads = growth(before, tiers, "loads");
    bool enough = loads >= FACTS_TIER_ASKED;
    size_t i;
    n->tier_loads = enough ? loads : show_real(tiers, "loads");
    n->tier_loads_late =
        enough ? growth(before, tiers, "loads_late") : show_real(tiers, "loads_late");
    n->tier_deadline_s = show_real(tiers, "deadline_us") / 1e6;
    n->token_s = show_real(tiers, "token_ns") / 1e9;
    json_array_foreach(json_object_get(tiers, "rows"), i, row)
    {
        if (i == FACTS_TIERS_MAX) break;
        read_tier(&n->tier[n->tiers_count++], find(rows, "name", show_text(row, "name")), row);
    }
}

/* Nodes of the status, and of the KV reports those that it does not have. */
static void read_nodes(struct facts *f, const json_t *first, const json_t *last)
{
    const json_t *nodes = at(last, "status", "nodes"), *kv = json_object_get(last, "kv"), *row;
    const json_t *reports = json_object_get(kv, "nodes"), *silent;
    size_t i;
    json_array_foreach(nodes, i, row)
    {
        if (f->nodes_count == FACTS_NODES_MAX) break;
        struct facts_node *n = &f->node[f->nodes_count++];
        const char *name = show_text(row, "name");
        const json_t *report = find(reports, "node", name);
        read_status(f, n, first ? find(at(first, "status", "nodes"), "name", name) : NULL, row);
        if (report) {
            const json_t *before = find(at(first, "kv", "nodes"), "node", name);
            read_kv(n, report);
            read_tiers(n, json_object_get(before, "tiers"), json_object_get(report, "tiers"));
        }
        if ((silent = find(json_object_get(kv, "missing"), "node", name)) != NULL)
            copy(n->silent, sizeof n->silent, silent, "reason");
    }
    json_array_foreach(reports, i, row)
    {
        if (f->nodes_count == FACTS_NODES_MAX) break;
        if (find(nodes, "name", show_text(row, "node"))) continue;
        const json_t *before = find(at(first, "kv", "nodes"), "node", show_text(row, "node"));
        read_kv(&f->node[f->nodes_count], row);
        read_tiers(&f->node[f->nodes_count++], json_object_get(before, "tiers"),
                   json_object_get(row, "tiers"));
    }
}

static void read_paths(struct facts *f, const json_t *last)
{
    const json_t *row;
    size_t i;
    json_array_foreach(at(last, "status", "paths"), i, row)
    {
        if (f->paths_count == FACTS_PATHS_MAX) break;
        struct facts_path *p = &f->path[f->paths_count++];
        copy(p->from, sizeof p->from, row, "from");
        copy(p->to, sizeof p->to, row, "to");
        copy(p->kind, sizeof p->kind, row, "kind");
        copy(p->state, sizeof p->state, row, "state");
        copy(p->reason, sizeof p->reason, row, "reason");
    }
}

/* The row of this name, a new one if there is room; NULL. */
static struct facts_tenant *tenant_row(struct facts *f, const char *name)
{
    size_t i = 0;
    while (i < f->tenants_count && strcmp(f->tenant[i].name, name) != 0)
        i++;
    if (i == FACTS_TENANTS_MAX) return NULL;
    struct facts_tenant *t = &f->tenant[i];
    if (i == f->tenants_count) {
        f->tenants_count++;
        snprintf(t->name, sizeof t->name, "%s", name);
        t->weight = 1;
    }
    return t;
}

static double served(const json_t *row)
{
    return show_real(row, "prompt_tokens") + show_real(row, "generated_tokens");
}

static void read_tenants(struct facts *f, const json_t *first, const json_t *last)
{
    const json_t *row, *report;
    struct facts_tenant *t;
    size_t i, k;
    json_array_foreach(at(last, "status", "tenants"), i, row)
    {
        if (!(t = tenant_row(f, show_text(row, "tenant")))) return;
        const json_t *before = find(at(first, "status", "tenants"), "tenant", t->name);
        if (show_real(row, "weight") > 0) t->weight = show_real(row, "weight");
        t->queued = show_real(row, "queued");
        t->running = show_real(row, "running");
        t->queued_before = before ? show_real(before, "queued") : 0;
        t->served = before && served(row) > served(before) ? served(row) - served(before) : 0;
    }
    json_array_foreach(at(last, "kv", "nodes"), i, report)
        json_array_foreach(json_object_get(report, "tenants"), k, row)
    {
        if (!json_is_string(json_object_get(row, "tenant"))) continue;
        if (!(t = tenant_row(f, show_text(row, "tenant")))) return;
        t->blocks += show_real(row, "blocks");
        t->queried_tokens += show_real(row, "queried_tokens");
        t->regret_tokens += show_real(row, "regret_tokens");
    }
}

enum err facts_read(struct facts *f, const json_t *samples)
{
    const json_t *list = json_object_get(samples, "samples");
    size_t count = json_array_size(list);
    *f = (struct facts){0};
    if (count == 0) return err_set(ERR_FORMAT, "there is no sample in it");
    const json_t *last = json_array_get(list, count - 1);
    const json_t *first = count > 1 ? json_array_get(list, 0) : NULL;
    size_t nodes = json_array_size(at(last, "status", "nodes")) +
                   json_array_size(at(last, "kv", "nodes")),
           paths = json_array_size(at(last, "status", "paths"));
    if (nodes > FACTS_NODES_MAX) nodes = FACTS_NODES_MAX;
    if (paths > FACTS_PATHS_MAX) paths = FACTS_PATHS_MAX;
    f->node = mem_array(nodes + 1, sizeof *f->node);
    f->path = mem_array(paths + 1, sizeof *f->path);
    f->tenant = mem_array(FACTS_TENANTS_MAX, sizeof *f->tenant);
    if (!f->node || !f->path || !f->tenant) {
        facts_fini(f);
        return ERR_MEMORY;
    }
    read_router(f, json_object_get(first, "status"), json_object_get(last, "status"));
    read_nodes(f, first, last);
    read_paths(f, last);
    read_tenants(f, first, last);
    if (f->has_status || f->nodes_count > 0) return OK;
    facts_fini(f);
    return err_set(ERR_FORMAT, "it has neither a status nor a report of KV");
}

void facts_fini(struct facts *f)
{
    mem_free(f->node);
    mem_free(f->path);
    mem_free(f->tenant);
    *f = (struct facts){0};
}
