/* facts: what the doctor looks at, as numbers: read from two samples of a cluster's status and KV
 * (client/sample.h), of a running one or of a file.
 *
 *     struct facts facts;
 *     if ((e = facts_read(&facts, samples)) != OK) return e;
 *     ... doctor_examine(&facts, &diagnosis) ...
 *     facts_fini(&facts);
 *
 * Rates of the router are between the first and the last sample; a single one has none. Those of a node's
 * KV are over the node's own window of the last minutes (docs/kv-memory.md). Rules: a field that is
 * missing or of another type is 0 or "", so files of other versions can be read. Owner: one thread. */
#ifndef TANDEM_CLIENT_FACTS_H
#define TANDEM_CLIENT_FACTS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

enum {
    FACTS_NAME = 65,
    FACTS_TEXT = 160,
    FACTS_NODES_MAX = 4096,
    FACTS_PATHS_MAX = 65536,
    FACTS_TENANTS_MAX = 1024
};

enum { FACTS_TIERS_MAX = 4 };

/* A tier of a node: since it began, but for failures and wrong, which are between the samples if there are
 * two. */
enum { FACTS_TIER_ASKED = 16 }; /* blocks or prompts: of fewer a share tells nothing */

/* Blocks and prompts between two samples; if fewer than that were asked for, all since the node began. */
struct facts_tier {
    char name[16];
    bool broken;
    double hit_blocks, not_worth_blocks, failures, read_rate, stuck_s;
    double wrong, wrong_before; /* entries: between two samples, and up to the first of two */
};

struct facts_node {
    char name[FACTS_NAME];
    bool prefill, draining;
    char silent[FACTS_TEXT]; /* why it told nothing of its KV when it was asked; "": it did */
    double blocks_total;
    double block_bytes;
    double running, sequences_max;
    double step_s, without_progress_s;
    double slow_per_s;
    double held_tokens, wasted_slots, contiguous_slots; /* now, or when most was held */
    /* KV, of the last window_s: */
    double window_s;
    double queried_tokens, hit_tokens, regret_tokens, generated_tokens, recomputed_tokens,
        preemptions, refused_jobs;
    double live, blocks_full; /* now */
    /* Since it began: */
    double blocks_full_peak; /* seen by a look every few steps: at least */
    double tier_loads, tier_loads_late, tier_deadline_s, token_s;
    struct facts_tier tier[FACTS_TIERS_MAX];
    size_t tiers_count;
};

struct facts_path {
    char from[FACTS_NAME], to[FACTS_NAME], kind[16], state[16], reason[FACTS_TEXT];
};

/* Of the router's queue, and of the caches of all nodes. */
struct facts_tenant {
    char name[FACTS_NAME]; /* "": requests that name none */
    double weight, queued, running;
    double queued_before; /* at the first sample */
    double served;        /* tokens in the seconds between */
    double blocks, queried_tokens, regret_tokens;
};

struct facts {
    double seconds; /* between the samples; 0: there was one only */
    bool has_status;
    char router[FACTS_NAME];
    double queued, oldest_s;
    double picked, waited_s; /* in those seconds */
    double blocked_prefill_s, blocked_decode_s;
    double failed, node_deaths;          /* of a single sample: since the router began */
    double failed_before, deaths_before; /* of two: up to the first */
    double slow_per_s;
    struct facts_node *node;
    size_t nodes_count;
    struct facts_path *path;
    size_t paths_count;
    struct facts_tenant *tenant;
    size_t tenants_count;
};

enum err facts_read(struct facts *facts, const json_t *samples);
void facts_fini(struct facts *facts);

#endif
