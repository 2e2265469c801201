/* meters: the page of metrics (docs/metrics.md). Times are observed as they happen; everything else is
 * looked up when the page is asked for. */
#include "common/clock.h"
#include "router/state.h"

#define TIMES METRIC_HISTOGRAM
#define BOUNDS metric_latency_bounds, METRIC_LATENCY_BOUNDS
#define PREFILL "role=\"prefill\""
#define DECODE "role=\"decode\""
#define NODES_HELP "Nodes that have joined"
#define REJECTED "tandem_router_requests_rejected_total"
#define REJECTED_HELP "Requests refused at the door; none of them counts as a sample"
#define ENDED_HELP "Samples that have ended: a request has n of them"
#define BACKFILLS_HELP "Prefixes brought from a node's cache to the prefill node that needs them"
#define LACKING_HELP "How often a node does not hold all of one of them"
#define KV_USE_HELP "Share of the pool's KV blocks that are neither free nor only cached"

static const struct metric_spec specs[METERS] = {
    [METER_QUEUE] = {METRIC_GAUGE, "tandem_router_queue_seconds", NULL,
                     "How long the oldest waiting request has been waiting for nodes; 0: none is"},
    [METER_QUEUE_TIME] = {TIMES, "tandem_router_queue_time_seconds", NULL,
                          "Time that samples waited until nodes were picked, each attempt", BOUNDS},
    [METER_WAITING] = {METRIC_GAUGE, "tandem_router_waiting_requests", NULL,
                       "Samples that wait for nodes"},
    [METER_WAITING_TOKENS] = {METRIC_GAUGE, "tandem_router_waiting_prompt_tokens", NULL,
                              "Tokens to prefill for what waits"},
    [METER_LIVE] = {METRIC_GAUGE, "tandem_router_live_requests", NULL,
                    "Requests that are in the system"},
    [METER_ACCEPTED] = {METRIC_COUNTER, "tandem_router_requests_accepted_total", NULL,
                        "Requests accepted"},
    [METER_REJECTED] = {METRIC_COUNTER, REJECTED, "reason=\"overload\"", REJECTED_HELP},
    [METER_REJECTED_INVALID] = {METRIC_COUNTER, REJECTED, "reason=\"invalid\"", REJECTED_HELP},
    [METER_REJECTED_OTHER] = {METRIC_COUNTER, REJECTED, "reason=\"other\"", REJECTED_HELP},
    [METER_DONE] = {METRIC_COUNTER, "tandem_router_samples_ended_total", "outcome=\"done\"",
                    ENDED_HELP},
    [METER_FAILED] = {METRIC_COUNTER, "tandem_router_samples_ended_total", "outcome=\"failed\"",
                      ENDED_HELP},
    [METER_CANCELLED] = {METRIC_COUNTER, "tandem_router_samples_ended_total",
                         "outcome=\"cancelled\"", ENDED_HELP},
    [METER_FIRST_TOKEN] = {TIMES, "tandem_router_time_to_first_token_seconds", NULL,
                           "From the request's arrival to a sample's first token", BOUNDS},
    [METER_DURATION] = {TIMES, "tandem_router_request_seconds", NULL,
                        "From the request's arrival to the end of a sample that was done", BOUNDS},
    [METER_PROMPT_TOKENS] = {METRIC_COUNTER, "tandem_router_prompt_tokens_total", NULL,
                             "Prompt tokens of accepted requests"},
    [METER_GENERATED_TOKENS] = {METRIC_COUNTER, "tandem_router_generated_tokens_total", NULL,
                                "Tokens forwarded to clients"},
    [METER_RETRIES] = {METRIC_COUNTER, "tandem_router_retries_total", NULL,
                       "Attempts after a sample's first one"},
    [METER_DEATHS] = {METRIC_COUNTER, "tandem_router_node_deaths_total", NULL,
                      "Nodes that went without having been drained"},
    [METER_BACKFILLS] = {METRIC_COUNTER, "tandem_router_backfills_total", "outcome=\"done\"",
                         BACKFILLS_HELP},
    [METER_BACKFILLS_FAILED] = {METRIC_COUNTER, "tandem_router_backfills_total",
                                "outcome=\"failed\"", BACKFILLS_HELP},
    [METER_BACKFILLED] = {METRIC_COUNTER, "tandem_router_backfilled_tokens_total", NULL,
                          "Tokens whose KV they brought"},
    [METER_CLIENTS] = {METRIC_GAUGE, "tandem_router_clients", NULL, "Clients that are connected"},
    [METER_DRAINING] = {METRIC_GAUGE, "tandem_router_draining", NULL,
                        "1: it takes no new requests"},
    [METER_UP] = {METRIC_GAUGE, "tandem_router_nodes", PREFILL ",state=\"up\"", NODES_HELP},
    [METER_UP_DECODE] = {METRIC_GAUGE, "tandem_router_nodes", DECODE ",state=\"up\"", NODES_HELP},
    [METER_LEAVING] = {METRIC_GAUGE, "tandem_router_nodes", PREFILL ",state=\"draining\"",
                       NODES_HELP},
    [METER_LEAVING_DECODE] = {METRIC_GAUGE, "tandem_router_nodes", DECODE ",state=\"draining\"",
                              NODES_HELP},
    [METER_KV_USE] = {METRIC_GAUGE, "tandem_router_pool_kv_use_ratio", PREFILL, KV_USE_HELP},
    [METER_KV_USE_DECODE] = {METRIC_GAUGE, "tandem_router_pool_kv_use_ratio", DECODE, KV_USE_HELP},
    [METER_KV_BLOCKS] = {METRIC_GAUGE, "tandem_router_pool_kv_blocks_capacity", PREFILL,
                         "KV blocks of the pool's nodes"},
    [METER_KV_BLOCKS_DECODE] = {METRIC_GAUGE, "tandem_router_pool_kv_blocks_capacity", DECODE,
                                "KV blocks of the pool's nodes"},
    [METER_RUNNING] = {METRIC_GAUGE, "tandem_router_pool_running_sequences", PREFILL,
                       "Sequences that the pool's nodes decode"},
    [METER_RUNNING_DECODE] = {METRIC_GAUGE, "tandem_router_pool_running_sequences", DECODE,
                              "Sequences that the pool's nodes decode"},
    [METER_POOL_WAITING] = {METRIC_GAUGE, "tandem_router_pool_waiting_sequences", PREFILL,
                            "Sequences on the pool's nodes that wait, are prefilled or expect KV"},
    [METER_POOL_WAITING_DECODE] = {METRIC_GAUGE, "tandem_router_pool_waiting_sequences", DECODE,
                                   "Sequences on the pool's nodes that wait, are prefilled or "
                                   "expect KV"},
    [METER_DIVERGED] = {METRIC_COUNTER, "tandem_router_diverged_tokens_total", NULL,
                        "Tokens of a second attempt that were not those of the first: never"},
    [METER_DUPLICATES] = {METRIC_COUNTER, "tandem_router_duplicate_tokens_total", NULL,
                          "Tokens that came again and were dropped"},
    [METER_GAPS] = {METRIC_COUNTER, "tandem_router_gaps_total", NULL,
                    "Tokens that came before the ones that stand before them"},
    [METER_PREFIX_ENTRIES] = {METRIC_GAUGE, "tandem_router_prefix_index_blocks", NULL,
                              "Cached blocks of nodes that the router knows of"},
    [METER_PREFIX_HITS] = {METRIC_COUNTER, "tandem_router_prefix_hits_total", NULL,
                           "Nodes that had some of a prompt where the index said so"},
    [METER_PREFIX_HIT_TOKENS] = {METRIC_COUNTER, "tandem_router_prefix_hit_tokens_total", NULL,
                                 "Tokens of prompts that nodes had as the index said"},
    [METER_PREFIX_FALSE] = {METRIC_COUNTER, "tandem_router_prefix_false_hits_total", NULL,
                            "Nodes that had less of a prompt than the index said"},
    [METER_PREFIX_GAPS] = {METRIC_COUNTER, "tandem_router_prefix_gaps_total", NULL,
                           "Times that news of nodes' blocks were lost, and asked for again"},
    [METER_PINS] = {METRIC_GAUGE, "tandem_router_pins", NULL,
                    "Prompts that stay cached under a name"},
    [METER_PINS_LACKING] = {METRIC_GAUGE, "tandem_router_pins_lacking", PREFILL, LACKING_HELP},
    [METER_PINS_LACKING_DECODE] = {METRIC_GAUGE, "tandem_router_pins_lacking", DECODE,
                                   LACKING_HELP},
    [METER_STALE] = {METRIC_COUNTER, "tandem_router_stale_messages_total", NULL,
                     "Messages of earlier sessions or attempts, dropped"},
    [METER_MALFORMED] = {METRIC_COUNTER, "tandem_router_malformed_messages_total", NULL,
                         "Messages that did not decode"},
    [METER_SLOW] = {METRIC_COUNTER, "tandem_router_slow_callbacks_total", NULL,
                    "Callbacks of the loop that took longer than 1 ms"},
};

enum err router_meters_new(struct router_core *core)
{
    enum err e = metrics_new(&core->metrics, METERS + tenant_meters_series(core));
    for (size_t i = 0; e == OK && i < METERS; i++)
        e = metrics_add(core->metrics, &specs[i], &core->meter[i]);
    return e == OK ? tenant_meters_new(core) : e;
}

void router_meter_time(struct router_core *core, enum meter meter, uint64_t from_ns, uint64_t to_ns)
{
    metric_observe(core->meter[meter], (double)(to_ns - from_ns) / (double)NS_PER_S);
}

/* Of the one that entered the queue first, whatever its priority. */
double router_queue_seconds(const struct router_core *core, uint64_t now_ns)
{
    uint64_t oldest_ns = now_ns;
    for (size_t i = 0; i < core->queue.count; i++) {
        const struct choice *c = list_member(core->queue.entry[i], struct choice, queue);
        if (c->state_ns < oldest_ns) oldest_ns = c->state_ns;
    }
    return (double)(now_ns - oldest_ns) / (double)NS_PER_S;
}

struct pool {
    uint64_t up, draining, blocks, used, running, waiting;
};

static void look_at_pools(const struct router_core *core, struct pool pool[2])
{
    for (uint32_t i = 0; i < core->nodes_count; i++) {
        const struct node *n = core->nodes[i];
        const struct node_load *l = &n->load;
        struct pool *p = &pool[n->hello.role == ROLE_DECODE];
        *(n->draining ? &p->draining : &p->up) += 1;
        p->blocks += l->blocks_total;
        p->used += l->blocks_reserved + l->blocks_active + l->blocks_transfer;
        p->running += l->running;
        p->waiting += l->waiting;
    }
}

static void show_pools(struct router_core *core)
{
    struct pool pool[2] = {0};
    look_at_pools(core, pool);
    for (int i = 0; i < 2; i++) {
        const struct pool *p = &pool[i];
        struct metric **meter = core->meter + i;
        metric_set(meter[METER_UP], (double)p->up);
        metric_set(meter[METER_LEAVING], (double)p->draining);
        metric_set(meter[METER_KV_USE], p->blocks ? (double)p->used / (double)p->blocks : 0);
        metric_set(meter[METER_KV_BLOCKS], (double)p->blocks);
        metric_set(meter[METER_RUNNING], (double)p->running);
        metric_set(meter[METER_POOL_WAITING], (double)p->waiting);
    }
}

static void show_counts(struct router_core *core, const struct router_counts *c)
{
    const struct {
        enum meter meter;
        uint64_t count;
    } rows[] = {
        {METER_ACCEPTED, c->accepted},
        {METER_REJECTED, c->rejected[REJECTED_OVERLOAD]},
        {METER_REJECTED_INVALID, c->rejected[REJECTED_INVALID]},
        {METER_REJECTED_OTHER, c->rejected[REJECTED_OTHER]},
        {METER_DONE, c->done},
        {METER_FAILED, c->failed},
        {METER_CANCELLED, c->cancelled},
        {METER_PROMPT_TOKENS, c->prompt_tokens},
        {METER_GENERATED_TOKENS, c->generated_tokens},
        {METER_RETRIES, c->retries},
        {METER_DEATHS, c->node_deaths},
        {METER_BACKFILLS, c->backfills},
        {METER_BACKFILLS_FAILED, c->backfills_failed},
        {METER_BACKFILLED, c->backfilled_tokens},
        {METER_DIVERGED, c->diverged},
        {METER_DUPLICATES, c->duplicate_tokens},
        {METER_GAPS, c->gaps},
        {METER_PREFIX_HITS, c->prefix_hits},
        {METER_PREFIX_HIT_TOKENS, c->prefix_hit_tokens},
        {METER_PREFIX_FALSE, c->prefix_false},
        {METER_PREFIX_GAPS, c->prefix_gaps},
        {METER_STALE, c->stale_messages},
        {METER_MALFORMED, core->facts.malformed_messages},
        {METER_SLOW, core->facts.slow_callbacks},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        metric_show_count(core->meter[rows[i].meter], rows[i].count);
}

static void show_pins(struct router_core *core)
{
    uint32_t pins, lacking[2];
    pins_count(core, &pins, lacking);
    metric_set(core->meter[METER_PINS], pins);
    metric_set(core->meter[METER_PINS_LACKING], lacking[0]);
    metric_set(core->meter[METER_PINS_LACKING_DECODE], lacking[1]);
}

enum err router_core_metrics(struct router_core *core, uint64_t now_ns, struct buf *page)
{
    struct router_counts c;
    router_core_counts(core, &c);
    show_counts(core, &c);
    show_pools(core);
    metric_set(core->meter[METER_QUEUE], router_queue_seconds(core, now_ns));
    metric_set(core->meter[METER_WAITING], c.queued);
    metric_set(core->meter[METER_WAITING_TOKENS], (double)core->queued_tokens);
    metric_set(core->meter[METER_LIVE], c.requests_live);
    metric_set(core->meter[METER_PREFIX_ENTRIES],
               core->index ? (double)index_stats(core->index).entries : 0);
    metric_set(core->meter[METER_CLIENTS], c.clients);
    metric_set(core->meter[METER_DRAINING], core->draining);
    show_pins(core);
    tenant_meters_show(core);
    return metrics_prometheus(core->metrics, page);
}

/* The smallest request, to nodes that are busy or not. */
const char *router_core_missing(const struct router_core *core, uint64_t now_ns)
{
    const struct sched_job job = {.tokens = 1, .blocks = 1, .blocks_full = 1};
    const struct sched_rules rules = {core->config.disaggregate, core->hand_over_ns,
                                      BACKFILL_NEVER};
    struct sched_pair pair;
    if (core->draining) return "draining";
    enum sched_answer a =
        sched_pick_pair(core->sched, core->nodes_count, &job, &rules, now_ns, &pair);
    return a == SCHED_NO_NODES ? sched_waiting_for(a) : NULL;
}
