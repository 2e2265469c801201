/* kv_usage: how well a node's KV is used over time: counts since its start, the same over the last
 * minutes, and what each tenant found.
 *
 *     kv_usage_tick(&usage, now_ns, totals);                    // each turn, with all counts so far
 *     kv_usage_opened(&usage, salt, &lookup);                   // a job has got its blocks
 *     double seconds = kv_usage_window(&usage, totals, lately); // counts of the last `seconds`
 *
 * Rules: a sample every KV_USAGE_SAMPLE_NS, kept for KV_USAGE_SAMPLES of them, so a window is that long
 * and up to one sample longer. Of tenants the KV_USAGE_TENANTS that came last have a row each, all others
 * share one. Nothing is allocated. Owner: the loop thread. */
#ifndef TANDEM_NODE_KV_USAGE_H
#define TANDEM_NODE_KV_USAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/clock.h"

enum { KV_USAGE_SAMPLES = 20, KV_USAGE_TENANTS = 128 };
#define KV_USAGE_SAMPLE_NS (15 * NS_PER_S)

enum kv_count {
    KV_COUNT_QUERIED, /* tokens of jobs that got their blocks … */
    KV_COUNT_HIT,     /* … and of these, found in the cache */
    KV_COUNT_INSERTED,
    KV_COUNT_EVICTED,
    KV_COUNT_UNUSED, /* of the evicted blocks: never found again */
    KV_COUNT_REGRET, /* tokens looked for in vain, and evicted lately */
    KV_COUNT_EXPIRED,
    KV_COUNT_PROMPT, /* tokens computed */
    KV_COUNT_GENERATED,
    KV_COUNT_PREEMPTIONS,
    KV_COUNT_RECOMPUTED, /* tokens of preempted sequences, computed a second time */
    KV_COUNT_REFUSED,    /* jobs, for want of blocks */
    KV_COUNTS
};

struct kv_tenant {
    uint64_t salt, jobs, queried_tokens, hit_tokens, regret_tokens;
    uint64_t seen_ns; /* jobs 0: the row is free */
};

struct kv_usage {
    uint64_t now_ns, began_ns;
    uint64_t queried_tokens, hit_tokens;
    struct kv_usage_sample {
        uint64_t at_ns, count[KV_COUNTS];
    } sample[KV_USAGE_SAMPLES]; /* a ring */
    uint64_t samples_made;
    struct kv_tenant tenant[KV_USAGE_TENANTS], others;
    uint32_t tenants_replaced;
};

void kv_usage_tick(struct kv_usage *u, uint64_t now_ns, const uint64_t totals[KV_COUNTS]);
/* Whether a tick would do more than note the time. */
bool kv_usage_is_due(const struct kv_usage *u, uint64_t now_ns);
/* regret_tokens: looked for in vain, and evicted lately. */
struct kv_lookup {
    uint32_t tokens, found_tokens, regret_tokens;
};
void kv_usage_opened(struct kv_usage *u, uint64_t salt, const struct kv_lookup *lookup);
/* Index of the tenant's row; KV_USAGE_TENANTS: it shares the others'. */
uint32_t kv_usage_tenant(const struct kv_usage *u, uint64_t salt);
/* What was counted lately, and in how many seconds. */
double kv_usage_window(const struct kv_usage *u, const uint64_t totals[KV_COUNTS],
                       uint64_t lately[KV_COUNTS]);
const char *kv_count_name(enum kv_count count); /* as reports call it */

#endif
