/* tenant_meters: a tenant's series on the page of metrics. Labels never come from requests: those that
 * --tenant-weights names have series of their own, the others together are one, and so are requests that name none. So
 * a million names cost no series, and no counter goes back when a tenant is forgotten. */
#include <stdio.h>
#include <string.h>

#include "router/state.h"

enum { SERIES = 6, UNNAMED = 0, OTHERS = 1, NAMED = 2 }; /* NAMED + index of its weight */

static const struct metric_spec specs[SERIES] = {
    {METRIC_COUNTER, "tandem_router_tenant_prompt_tokens_total", NULL,
     "Prompt tokens sent to be computed, first attempts"},
    {METRIC_COUNTER, "tandem_router_tenant_cached_tokens_total", NULL,
     "Of these, tokens that nodes had in their caches"},
    {METRIC_COUNTER, "tandem_router_tenant_generated_tokens_total", NULL,
     "Tokens generated for the tenant"},
    {METRIC_GAUGE, "tandem_router_tenant_waiting_samples", NULL,
     "The tenant's samples that wait for nodes"},
    {METRIC_GAUGE, "tandem_router_tenant_running_samples", NULL,
     "The tenant's samples that have a place at nodes"},
    {METRIC_HISTOGRAM, "tandem_router_tenant_time_to_first_token_seconds", NULL,
     "From the arrival of a tenant's request to a sample's first token", metric_latency_bounds,
     METRIC_LATENCY_BOUNDS},
};

static uint32_t slots(const struct router_core *core)
{
    return NAMED + core->config.weights_count;
}

size_t tenant_meters_series(const struct router_core *core)
{
    return (size_t)SERIES * slots(core);
}

static uint32_t slot_of(const struct router_core *core, const char *tenant)
{
    uint32_t i = 0;
    if (!tenant[0]) return UNNAMED;
    while (i < core->config.weights_count && strcmp(core->config.weights[i].tenant, tenant) != 0)
        i++;
    return i < core->config.weights_count ? NAMED + i : OTHERS;
}

/* As a label's value is written. */
static void write_labels(const char *who, const char *tenant, char *out)
{
    out += sprintf(out, "who=\"%s\",tenant=\"", who);
    for (; *tenant; tenant++) {
        if (strchr("\\\"\n", *tenant)) *out++ = '\\';
        *out++ = *tenant == '\n' ? 'n' : *tenant;
    }
    strcpy(out, "\"");
}

enum err tenant_meters_new(struct router_core *core)
{
    static const char *const who[] = {"unnamed", "others", "named"};
    enum err e = OK;
    for (uint32_t i = 0; e == OK && i < slots(core); i++) {
        struct tenant_meters *t = &core->tenant_meters[i];
        const char *name = i < NAMED ? "" : core->config.weights[i - NAMED].tenant;
        if (i >= NAMED && slot_of(core, name) != i) continue; /* it is there twice */
        write_labels(who[i < NAMED ? i : NAMED], name, t->labels);
        for (uint32_t k = 0; e == OK && k < SERIES; k++) {
            struct metric_spec spec = specs[k];
            spec.labels = t->labels;
            e = metrics_add(core->metrics, &spec, &t->meter[k]);
        }
    }
    return e;
}

void tenant_meters_join(const struct router_core *core, struct fair_tenant *t)
{
    t->meters = slot_of(core, t->name);
}

void tenant_meters_count(struct router_core *core, const struct fair_tenant *t,
                         enum tenant_meter meter, uint64_t n)
{
    metric_count(core->tenant_meters[t->meters].meter[meter], n);
}

void tenant_meters_first_token(struct router_core *core, const struct fair_tenant *t,
                               double seconds)
{
    metric_observe(core->tenant_meters[t->meters].meter[TENANT_FIRST_TOKEN], seconds);
}

void tenant_meters_show(struct router_core *core)
{
    const struct fair_tenant *t;
    uint32_t waiting[NAMED + TENANT_WEIGHTS_MAX] = {0}, running[NAMED + TENANT_WEIGHTS_MAX] = {0};
    for (struct map_cursor c = {0}; (t = map_next(&core->fair.tenants, &c)) != NULL;) {
        waiting[t->meters] += t->waiting;
        running[t->meters] += t->running;
    }
    for (uint32_t i = 0; i < slots(core); i++) {
        struct tenant_meters *m = &core->tenant_meters[i];
        if (!m->labels[0]) continue;
        metric_set(m->meter[TENANT_WAITING], waiting[i]);
        metric_set(m->meter[TENANT_RUNNING], running[i]);
    }
}
