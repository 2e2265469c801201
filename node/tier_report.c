/* How a node's tiers do: for the report that routers ask for, and for the page of metrics. */
#include "node/state.h"

#include <jansson.h>
#include <string.h>

void node_core_tier_stats(struct node_core *c, const struct kv_tiers_stats *stats)
{
    c->tier_stats = *stats;
}

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

uint32_t tiers_broken(const struct node_core *c)
{
    uint32_t bits = 0;
    for (uint32_t i = 0; i < c->tier_stats.rows_count; i++)
        if (c->tier_stats.row[i].broken) bits |= 1u << c->tier_stats.row[i].kind;
    return bits;
}

static json_t *row_json(const struct kv_tier_row *r)
{
    const struct {
        const char *name;
        uint64_t value;
    } fields[] = {
        {"entries", r->kept.entries_count},
        {"bytes", r->kept.bytes},
        {"evicted", r->kept.evicted},
        {"removed", r->kept.removed},
        {"hits", r->hits},
        {"misses", r->misses},
        {"not_worth", r->not_worth},
        {"late", r->late},
        {"failures", r->failures},
        {"wrong", r->wrong},
        {"read_bytes", r->read_bytes},
        {"written_bytes", r->written_bytes},
        {"read_rate", r->read_rate},
        {"write_rate", r->write_rate},
        {"stuck_ms", r->stuck_ns / NS_PER_MS},
    };
    json_t *o = json_pack("{s:s,s:b}", "name", r->name, "broken", r->broken);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        json_object_set_new(o, fields[i].name, number(fields[i].value));
    return o;
}

json_t *tier_report_json(const struct node_core *c)
{
    const struct kv_tiers_stats *t = &c->tier_stats;
    const struct node_counts *n = &c->counts;
    json_t *rows = json_array();
    for (uint32_t i = 0; i < t->rows_count; i++)
        json_array_append_new(rows, row_json(&t->row[i]));
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "deadline_us",
                     number(c->config.tier_deadline_ns / NS_PER_US), "token_ns",
                     number(c->token_ns), "loads", number(n->tier_loads), "loads_late",
                     number(n->tier_late), "loaded_tokens", number(n->tier_loaded_tokens), "stores",
                     number(n->tier_stores), "stores_dropped", number(t->stores_dropped), "rows",
                     rows);
}

/* In the order of TIER_METERS in meters.c. */
static const char *const kinds[TIER_KINDS] = {"memory", "disk", "redis"};

static void show_row(struct node_core *c, uint32_t kind, const struct kv_tier_row *r)
{
    metric_set(c->meter[METER_TIER_BYTES + kind], (double)r->kept.bytes);
    metric_set(c->meter[METER_TIER_BROKEN + kind], r->broken);
    const struct {
        enum meter meter;
        uint64_t count;
    } rows[] = {
        {METER_TIER_HITS, r->hits},       {METER_TIER_MISSES, r->misses},
        {METER_TIER_WRONG, r->wrong},     {METER_TIER_FAILURES, r->failures},
        {METER_TIER_READ, r->read_bytes}, {METER_TIER_WRITTEN, r->written_bytes},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        metric_show_count(c->meter[rows[i].meter + kind], rows[i].count);
}

void tier_meters_show(struct node_core *c)
{
    static const struct kv_tier_row none;
    const struct kv_tiers_stats *t = &c->tier_stats;
    for (uint32_t kind = 0; kind < TIER_KINDS; kind++) {
        const struct kv_tier_row *r = &none;
        for (uint32_t i = 0; i < t->rows_count; i++)
            if (strcmp(t->row[i].name, kinds[kind]) == 0) r = &t->row[i];
        show_row(c, kind, r);
    }
    metric_show_count(c->meter[METER_TIER_LOADS], c->counts.tier_loads);
    metric_show_count(c->meter[METER_TIER_LATE], c->counts.tier_late);
    metric_show_count(c->meter[METER_TIER_TOKENS], c->counts.tier_loaded_tokens);
    metric_show_count(c->meter[METER_TIER_STORES], c->counts.tier_stores);
    metric_show_count(c->meter[METER_TIER_DROPPED], t->stores_dropped);
}
