#include "node/kv_usage.h"

#include <string.h>

bool kv_usage_is_due(const struct kv_usage *u, uint64_t now_ns)
{
    if (u->samples_made == 0) return true;
    uint64_t at_ns = u->sample[(u->samples_made - 1) % KV_USAGE_SAMPLES].at_ns;
    return now_ns >= at_ns + KV_USAGE_SAMPLE_NS;
}

void kv_usage_tick(struct kv_usage *u, uint64_t now_ns, const uint64_t totals[KV_COUNTS])
{
    if (u->samples_made == 0) u->began_ns = now_ns;
    u->now_ns = now_ns;
    if (!kv_usage_is_due(u, now_ns)) return;
    struct kv_usage_sample *s = &u->sample[u->samples_made++ % KV_USAGE_SAMPLES];
    s->at_ns = now_ns;
    memcpy(s->count, totals, sizeof s->count);
}

uint32_t kv_usage_tenant(const struct kv_usage *u, uint64_t salt)
{
    uint32_t i = 0;
    while (i < KV_USAGE_TENANTS && (u->tenant[i].jobs == 0 || u->tenant[i].salt != salt))
        i++;
    return i;
}

/* A free row, or the one whose tenant was not seen for longest: what it counted becomes others'. */
static struct kv_tenant *make_row(struct kv_usage *u, uint64_t salt)
{
    struct kv_tenant *row = u->tenant;
    for (uint32_t i = 0; i < KV_USAGE_TENANTS; i++) {
        struct kv_tenant *t = &u->tenant[i];
        if (t->jobs == 0) {
            row = t;
            break;
        }
        if (t->seen_ns < row->seen_ns) row = t;
    }
    if (row->jobs > 0) {
        u->tenants_replaced++;
        u->others.jobs += row->jobs;
        u->others.queried_tokens += row->queried_tokens;
        u->others.hit_tokens += row->hit_tokens;
        u->others.regret_tokens += row->regret_tokens;
    }
    *row = (struct kv_tenant){.salt = salt};
    return row;
}

void kv_usage_opened(struct kv_usage *u, uint64_t salt, const struct kv_lookup *lookup)
{
    uint32_t i = kv_usage_tenant(u, salt);
    struct kv_tenant *row = i < KV_USAGE_TENANTS ? &u->tenant[i] : make_row(u, salt);
    row->jobs++;
    row->queried_tokens += lookup->tokens;
    row->hit_tokens += lookup->found_tokens;
    row->regret_tokens += lookup->regret_tokens;
    row->seen_ns = u->now_ns;
    u->queried_tokens += lookup->tokens;
    u->hit_tokens += lookup->found_tokens;
}

double kv_usage_window(const struct kv_usage *u, const uint64_t totals[KV_COUNTS],
                       uint64_t lately[KV_COUNTS])
{
    memset(lately, 0, KV_COUNTS * sizeof *lately);
    if (u->samples_made == 0) return 0;
    uint64_t first = u->samples_made > KV_USAGE_SAMPLES ? u->samples_made - KV_USAGE_SAMPLES : 0;
    const struct kv_usage_sample *oldest = &u->sample[first % KV_USAGE_SAMPLES];
    for (uint32_t i = 0; i < KV_COUNTS; i++)
        lately[i] = totals[i] - oldest->count[i];
    return (double)(u->now_ns - oldest->at_ns) / (double)NS_PER_S;
}

const char *kv_count_name(enum kv_count count)
{
    static const char *const names[KV_COUNTS] = {
        [KV_COUNT_QUERIED] = "queried_tokens",       [KV_COUNT_HIT] = "hit_tokens",
        [KV_COUNT_INSERTED] = "inserted_blocks",     [KV_COUNT_EVICTED] = "evicted_blocks",
        [KV_COUNT_UNUSED] = "unused_blocks",         [KV_COUNT_REGRET] = "regret_tokens",
        [KV_COUNT_EXPIRED] = "expired_blocks",       [KV_COUNT_PROMPT] = "prompt_tokens",
        [KV_COUNT_GENERATED] = "generated_tokens",   [KV_COUNT_PREEMPTIONS] = "preemptions",
        [KV_COUNT_RECOMPUTED] = "recomputed_tokens", [KV_COUNT_REFUSED] = "refused_jobs",
    };
    return names[count];
}
