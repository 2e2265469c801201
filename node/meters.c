/* meters: the page of metrics (docs/metrics.md). Steps are observed as they end; everything else is
 * looked up when the page is asked for. */
#include "node/state.h"

#define BLOCKS "tandem_node_kv_blocks"
#define BLOCKS_HELP "KV blocks of 16 tokens by state"
#define TRANSFERS "tandem_node_transfers_total"
#define RETURNED "tandem_node_returned_tokens_total"
#define RETURNED_HELP "Tokens of such sequences when they came back, by how their KV did"
#define FORKED "tandem_node_fork_blocks_total"
#define FORKED_HELP "Blocks that these samples began with"
#define TRANSFERS_HELP "Hand-overs of KV that have ended here, sent or received"

/* In the order of link_kind in links.c. */
#define LINK_METERS(first, kind, name, help)                                                       \
    [first] = {kind, name, "link=\"nccl\"", help},                                                 \
    [first + 1] = {kind, name, "link=\"ipc\"", help},                                              \
    [first + 2] = {kind, name, "link=\"shm\"", help},                                              \
    [first + 3] = {kind, name, "link=\"tcp\"", help}

/* In the order of the kinds in tier_report.c. */
#define TIER_METERS(first, kind, name, help)                                                       \
    [first] = {kind, name, "tier=\"memory\"", help},                                               \
    [first + 1] = {kind, name, "tier=\"disk\"", help},                                             \
    [first + 2] = {kind, name, "tier=\"redis\"", help}

static const struct metric_spec specs[METERS] = {
    [METER_INFO] = {METRIC_GAUGE, "tandem_node_info", "role=\"prefill\"",
                    "Always 1; its labels say what the node is"},
    [METER_FREE] = {METRIC_GAUGE, BLOCKS, "state=\"free\"", BLOCKS_HELP},
    [METER_RESERVED] = {METRIC_GAUGE, BLOCKS, "state=\"reserved\"", BLOCKS_HELP},
    [METER_ACTIVE] = {METRIC_GAUGE, BLOCKS, "state=\"active\"", BLOCKS_HELP},
    [METER_CACHED] = {METRIC_GAUGE, BLOCKS, "state=\"cached\"", BLOCKS_HELP},
    [METER_TRANSFER] = {METRIC_GAUGE, BLOCKS, "state=\"transfer\"", BLOCKS_HELP},
    [METER_CAPACITY] = {METRIC_GAUGE, "tandem_node_kv_blocks_capacity", NULL,
                        "KV blocks in all states together"},
    [METER_KV_USE] = {METRIC_GAUGE, "tandem_node_kv_use_ratio", NULL,
                      "Share of the KV blocks that are neither free nor only cached"},
    [METER_RUNNING] = {METRIC_GAUGE, "tandem_node_running_sequences", NULL,
                       "Sequences that are decoded"},
    [METER_WAITING] = {METRIC_GAUGE, "tandem_node_waiting_sequences", NULL,
                       "Sequences that wait for blocks, are prefilled or expect KV"},
    [METER_WAITING_TOKENS] = {METRIC_GAUGE, "tandem_node_waiting_prompt_tokens", NULL,
                              "Tokens to prefill for what is in the queue"},
    [METER_STEP] = {METRIC_HISTOGRAM, "tandem_node_step_seconds", NULL,
                    "Time that the engine computed a step", metric_latency_bounds,
                    METRIC_LATENCY_BOUNDS},
    [METER_PROMPT_TOKENS] = {METRIC_COUNTER, "tandem_node_prompt_tokens_total", NULL,
                             "Prompt tokens computed"},
    [METER_GENERATED_TOKENS] = {METRIC_COUNTER, "tandem_node_generated_tokens_total", NULL,
                                "Tokens generated"},
    [METER_WINDOW_BLOCKS] = {METRIC_COUNTER, "tandem_node_window_blocks_total", NULL,
                             "KV blocks let go of because they left their sequence's window"},
    [METER_CACHED_TOKENS] = {METRIC_COUNTER, "tandem_node_cached_tokens_total", NULL,
                             "Prompt tokens found in the prefix cache"},
    [METER_SCORES] = {METRIC_COUNTER, "tandem_node_scores_total", NULL, "Texts scored"},
    [METER_EMBEDDINGS] = {METRIC_COUNTER, "tandem_node_embeddings_total", NULL, "Texts embedded"},
    [METER_PREEMPTIONS] = {METRIC_COUNTER, "tandem_node_preemptions_total", NULL,
                           "Sequences that gave up their blocks to others"},
    [METER_RETURNED_CACHED] = {METRIC_COUNTER, RETURNED, "how=\"cached\"", RETURNED_HELP},
    [METER_RETURNED_COMPUTED] = {METRIC_COUNTER, RETURNED, "how=\"computed\"", RETURNED_HELP},
    [METER_HANDED_BACK] = {METRIC_COUNTER, "tandem_node_handed_back_total", NULL,
                           "Of these sequences, those that went back to their router"},
    [METER_HELD_STEPS] = {METRIC_COUNTER, "tandem_node_held_steps_total", NULL,
                          "Steps that began later, for a stream that was about to come"},
    [METER_FORKS] = {METRIC_COUNTER, "tandem_node_forks_total", NULL,
                     "Samples that began with the KV of another one of their request"},
    [METER_FORK_SHARED] = {METRIC_COUNTER, FORKED, "how=\"shared\"", FORKED_HELP},
    [METER_FORK_COPIED] = {METRIC_COUNTER, FORKED, "how=\"copied\"", FORKED_HELP},
    [METER_BACKFILLS] = {METRIC_COUNTER, "tandem_node_backfills_total", NULL,
                         "Prefixes that came from other nodes' caches"},
    [METER_BACKFILLED] = {METRIC_COUNTER, "tandem_node_backfilled_tokens_total", NULL,
                          "Tokens of these prefixes that came"},
    [METER_HELD_TOKENS] = {METRIC_GAUGE, "tandem_node_held_tokens", NULL,
                           "Tokens whose KV sequences hold, shared ones for each"},
    [METER_WASTED_SLOTS] = {METRIC_GAUGE, "tandem_node_wasted_slots", NULL,
                            "Places for tokens that are empty in blocks of sequences"},
    [METER_CONTIGUOUS_SLOTS] = {METRIC_GAUGE, "tandem_node_contiguous_slots", NULL,
                                "Places that contiguous memory for the longest would take"},
    [METER_PINS] = {METRIC_GAUGE, "tandem_node_pins", NULL,
                    "Prompts that routers want pinned here"},
    [METER_PINNED_BLOCKS] = {METRIC_GAUGE, "tandem_node_pinned_blocks", NULL,
                             "Cached KV blocks that stay for these"},
    [METER_TENANTS] = {METRIC_GAUGE, "tandem_node_cache_tenants", NULL,
                       "Tenants with cached KV blocks; those without a name are one"},
    [METER_TENANT_BLOCKS] = {METRIC_GAUGE, "tandem_node_cache_tenant_most_blocks", NULL,
                             "Cached KV blocks of the tenant that has most"},
    [METER_ROUTERS] = {METRIC_GAUGE, "tandem_node_routers", NULL,
                       "Routers with which a session stands"},
    [METER_DRAINING] = {METRIC_GAUGE, "tandem_node_draining", NULL, "1: it takes no new jobs"},
    [METER_SENT] = {METRIC_COUNTER, "tandem_node_kv_sent_bytes_total", NULL,
                    "Bytes of KV sent over links"},
    [METER_RECEIVED] = {METRIC_COUNTER, "tandem_node_kv_received_bytes_total", NULL,
                        "Bytes of KV received over links"},
    [METER_LINKS] = {METRIC_GAUGE, "tandem_node_links_open", NULL, "Links to other nodes"},
    [METER_TRANSFERS_DONE] = {METRIC_COUNTER, TRANSFERS, "outcome=\"done\"", TRANSFERS_HELP},
    [METER_TRANSFERS_FAILED] = {METRIC_COUNTER, TRANSFERS, "outcome=\"failed\"", TRANSFERS_HELP},
    [METER_TRANSFERS_LIVE] = {METRIC_GAUGE, "tandem_node_transfers_live", NULL,
                              "Hand-overs of KV that are under way"},
    [METER_FRAMES_REFUSED] = {METRIC_COUNTER, "tandem_node_frames_refused_total", NULL,
                              "Frames of KV whose checksum was wrong"},
    [METER_FRAMES_DEAD] = {METRIC_COUNTER, "tandem_node_frames_dead_total", NULL,
                           "Frames of KV that nobody waited for any more"},
    LINK_METERS(METER_LINK_BYTES, METRIC_COUNTER, "tandem_node_link_sent_bytes_total",
                "Bytes of KV sent, by link"),
    LINK_METERS(METER_LINK_FAILURES, METRIC_COUNTER, "tandem_node_link_failures_total",
                "Times that a link broke or could not be made, at most one a second of each"),
    LINK_METERS(METER_LINKS_READY, METRIC_GAUGE, "tandem_node_links_ready",
                "Links to other nodes over which transfers can go"),
    [METER_TIER_LOADS] = {METRIC_COUNTER, "tandem_node_tier_loads_total", NULL,
                          "Prompts for which tiers were asked"},
    [METER_TIER_LATE] = {METRIC_COUNTER, "tandem_node_tier_loads_late_total", NULL,
                         "Of these, answered when the prompt did not wait any more"},
    [METER_TIER_TOKENS] = {METRIC_COUNTER, "tandem_node_tier_loaded_tokens_total", NULL,
                           "Tokens whose KV came from tiers"},
    [METER_TIER_STORES] = {METRIC_COUNTER, "tandem_node_tier_stores_total", NULL,
                           "Runs of blocks that were given to tiers"},
    [METER_TIER_DROPPED] = {METRIC_COUNTER, "tandem_node_tier_stores_dropped_total", NULL,
                            "Of these, refused because too many waited"},
    TIER_METERS(METER_TIER_BYTES, METRIC_GAUGE, "tandem_node_tier_bytes",
                "What a tier of this node's own keeps"),
    TIER_METERS(METER_TIER_BROKEN, METRIC_GAUGE, "tandem_node_tier_broken",
                "1: it fails and is left alone for a while"),
    TIER_METERS(METER_TIER_HITS, METRIC_COUNTER, "tandem_node_tier_hit_blocks_total",
                "Blocks read from a tier"),
    TIER_METERS(METER_TIER_MISSES, METRIC_COUNTER, "tandem_node_tier_missed_blocks_total",
                "Blocks that a tier was asked for and had not"),
    TIER_METERS(METER_TIER_WRONG, METRIC_COUNTER, "tandem_node_tier_wrong_entries_total",
                "Entries that were not what they should be, and were removed"),
    TIER_METERS(METER_TIER_FAILURES, METRIC_COUNTER, "tandem_node_tier_failures_total",
                "Calls of a tier that failed or came too late"),
    TIER_METERS(METER_TIER_READ, METRIC_COUNTER, "tandem_node_tier_read_bytes_total",
                "Bytes read from a tier"),
    TIER_METERS(METER_TIER_WRITTEN, METRIC_COUNTER, "tandem_node_tier_written_bytes_total",
                "Bytes written to a tier"),
    [METER_STALE] = {METRIC_COUNTER, "tandem_node_stale_messages_total", NULL,
                     "Messages of earlier sessions or attempts, dropped"},
    [METER_SLOW] = {METRIC_COUNTER, "tandem_node_slow_callbacks_total", NULL,
                    "Callbacks of the loop that took longer than 1 ms"},
};

enum err node_meters_new(struct node_core *c)
{
    enum err e = metrics_new(&c->metrics, METERS);
    for (size_t i = 0; e == OK && i < METERS; i++) {
        struct metric_spec spec = specs[i];
        if (i == METER_INFO && c->config.role == ROLE_DECODE) spec.labels = "role=\"decode\"";
        e = metrics_add(c->metrics, &spec, &c->meter[i]);
    }
    return e;
}

static void show_tenants(struct node_core *c)
{
    uint32_t pins = 0, most = 0, tenants = c->cache ? kv_prefix_tenants(c->cache, &most) : 0;
    for (uint32_t i = 0; i < NODE_PINS_MAX; i++)
        pins += c->pin[i].used && !c->pin[i].removed;
    metric_set(c->meter[METER_PINS], pins);
    metric_set(c->meter[METER_PINNED_BLOCKS],
               c->cache ? kv_prefix_stats(c->cache).pinned_blocks : 0);
    metric_set(c->meter[METER_TENANTS], tenants);
    metric_set(c->meter[METER_TENANT_BLOCKS], most);
}

static uint32_t routers_up(const struct node_core *c)
{
    uint32_t up = 0;
    for (uint32_t i = 0; i < c->config.routers_count; i++)
        up += c->router[i].session.state == SESSION_UP;
    return up;
}

static void show_gauges(struct node_core *c, const struct node_counts *n,
                        const struct xfer_stats *links)
{
    const struct kv_pool_counts *b = &n->blocks;
    const struct {
        enum meter meter;
        double value;
    } rows[] = {
        {METER_INFO, 1},
        {METER_FREE, b->free},
        {METER_RESERVED, b->reserved},
        {METER_HELD_TOKENS, (double)n->held_tokens},
        {METER_WASTED_SLOTS, (double)n->wasted_slots},
        {METER_CONTIGUOUS_SLOTS, (double)n->contiguous_slots},
        {METER_ACTIVE, b->active},
        {METER_CACHED, b->cached},
        {METER_TRANSFER, b->transfer},
        {METER_CAPACITY, b->total},
        {METER_KV_USE, (double)(b->total - b->free - b->cached) / (double)b->total},
        {METER_RUNNING, n->running},
        {METER_WAITING, n->waiting},
        {METER_WAITING_TOKENS, sessions_waiting_tokens(c)},
        {METER_ROUTERS, routers_up(c)},
        {METER_DRAINING, c->draining},
        {METER_LINKS, links->links_open},
        {METER_TRANSFERS_LIVE, links->tickets_live},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        metric_set(c->meter[rows[i].meter], rows[i].value);
}

static void show_counts(struct node_core *c, const struct node_counts *n,
                        const struct xfer_stats *links)
{
    const struct {
        enum meter meter;
        uint64_t count;
    } rows[] = {
        {METER_PROMPT_TOKENS, n->prompt_tokens},
        {METER_GENERATED_TOKENS, n->tokens_generated},
        {METER_CACHED_TOKENS, n->cached_tokens},
        {METER_WINDOW_BLOCKS, n->window_blocks},
        {METER_PREEMPTIONS, n->preemptions},
        {METER_RETURNED_CACHED, n->returned_cached_tokens},
        {METER_RETURNED_COMPUTED, n->returned_computed_tokens},
        {METER_HANDED_BACK, n->handed_back},
        {METER_HELD_STEPS, n->held_steps},
        {METER_FORKS, n->forks},
        {METER_FORK_SHARED, n->fork_shared_blocks},
        {METER_FORK_COPIED, n->fork_copied_blocks},
        {METER_BACKFILLS, n->backfills},
        {METER_BACKFILLED, n->backfilled_tokens},
        {METER_SCORES, n->scores},
        {METER_EMBEDDINGS, n->embeddings},
        {METER_SENT, links->sent_bytes},
        {METER_RECEIVED, links->received_bytes},
        {METER_TRANSFERS_DONE, links->tickets_done},
        {METER_TRANSFERS_FAILED, links->tickets_failed},
        {METER_FRAMES_REFUSED, links->frames_refused},
        {METER_FRAMES_DEAD, links->frames_dead},
        {METER_STALE, n->stale_messages},
        {METER_SLOW, c->slow_callbacks},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        metric_show_count(c->meter[rows[i].meter], rows[i].count);
}

enum err node_core_metrics(struct node_core *c, const struct xfer_stats *links, struct buf *page)
{
    struct node_counts n;
    node_core_counts(c, &n);
    show_gauges(c, &n, links);
    show_counts(c, &n, links);
    for (uint32_t i = 0; i < LINK_KINDS; i++) {
        metric_show_count(c->meter[METER_LINK_BYTES + i], c->link_counts[i].bytes);
        metric_show_count(c->meter[METER_LINK_FAILURES + i], c->link_counts[i].failures);
        metric_set(c->meter[METER_LINKS_READY + i], links_ready(c, i));
    }
    show_tenants(c);
    tier_meters_show(c);
    return metrics_prometheus(c->metrics, page);
}

const char *node_core_missing(const struct node_core *c)
{
    if (c->broken) return "the device failed";
    if (c->draining) return "draining";
    return routers_up(c) > 0 ? NULL : "no session with a router stands";
}
