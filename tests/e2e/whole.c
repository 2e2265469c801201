#include "tests/e2e/whole.h"

#include <stdio.h>
#include <string.h>

#include "tests/e2e/page.h"
#include "tests/unit/exposition.h"
#include "tests/unit/scratch.h"

#define OF_ROUTER "tandem_router_"
#define OF_NODES "tandem_node_"

static const struct {
    const char *name;
    const char *series; /* all that begin so are summed */
    bool decode_only;
} counts[COUNTS] = {
    [COUNT_POOL_TOKENS] = {"tokens from pools", OF_NODES "cached_tokens_total"},
    [COUNT_DELTA_TOKENS] = {"tokens that D held", OF_NODES "cached_tokens_total", true},
    [COUNT_DISK_BLOCKS] = {"blocks from disks", OF_NODES "tier_hit_blocks_total{tier=\"disk\""},
    [COUNT_REDIS_BLOCKS] = {"blocks from Redis", OF_NODES "tier_hit_blocks_total{tier=\"redis\""},
    [COUNT_TIER_TOKENS] = {"tokens from tiers", OF_NODES "tier_loaded_tokens_total"},
    [COUNT_STORES] = {"stores", OF_NODES "tier_stores_total"},
    [COUNT_FORKS] = {"forks", OF_NODES "forks_total"},
    [COUNT_PREEMPTIONS] = {"preemptions", OF_NODES "preemptions_total"},
    [COUNT_RETURNED] = {"tokens brought back", OF_NODES "returned_tokens_total"},
    [COUNT_HANDED_BACK] = {"handed back", OF_NODES "handed_back_total"},
    [COUNT_WINDOW_BLOCKS] = {"blocks that left a window", OF_NODES "window_blocks_total"},
    [COUNT_SENT_BYTES] = {"bytes over links", OF_NODES "kv_sent_bytes_total"},
    [COUNT_BACKFILLED] = {"tokens from D to P", OF_NODES "backfilled_tokens_total"},
    [COUNT_SCORES] = {"scores", OF_NODES "scores_total"},
    [COUNT_EMBEDDINGS] = {"embeddings", OF_NODES "embeddings_total"},
    [COUNT_INDEX_HITS] = {"index hits", OF_ROUTER "prefix_hits_total"},
    [COUNT_WRONG] = {"wrong entries", OF_NODES "tier_wrong_entries_total"},
    [COUNT_DIVERGED] = {"diverged tokens", OF_ROUTER "diverged_tokens_total"},
};

const char *whole_count_name(enum counted which)
{
    return counts[which].name;
}

static void add_counts(const struct process *p, double sums[COUNTS])
{
    static char page[PAGE_MAX];
    assert_int_equal(page_get(p->metrics, "/metrics", page), 200);
    struct exposition *x = exposition_read(page);
    for (size_t i = 0; i < x->samples_count; i++)
        for (size_t k = 0; k < COUNTS; k++) {
            const char *series = counts[k].series;
            if (counts[k].decode_only && p->program != PROGRAM_DECODE) continue;
            if (strncmp(x->sample[i].series, series, strlen(series)) == 0)
                sums[k] += x->sample[i].value;
        }
    exposition_free(x);
}

void whole_count(struct whole *w)
{
    memcpy(w->all, w->dead, sizeof w->all);
    for (uint32_t i = 0; i < w->cluster->count; i++)
        if (w->cluster->process[i]->pid) add_counts(w->cluster->process[i], w->all);
}

double whole_counted(const struct whole *w, enum counted which)
{
    return w->all[which];
}

/* ---- nodes ---- */

static struct process *start_node(struct whole *w, uint32_t node)
{
    static const char *const own[WHOLE_NODES] = {
        "--blocks 90 --chunk 48", "--blocks 90 --chunk 200 --evict s3fifo",
        "--blocks 38 --preempted recompute", "--blocks 44 --preempted hand-back"};
    char args[3 * PATH_MAX];
    snprintf(args, sizeof args,
             "%s %s --metrics 127.0.0.1:0 --tenant-quota 70 --kv-tier-deadline 5s "
             "--kv-disk-bytes 64M --kv-disk %s/n%u %s %s",
             own[node], w->node_args, w->folder, node, w->has_redis ? "--kv-redis" : "",
             w->has_redis ? w->redis.where : "");
    return cluster_spawn(w->cluster, node < 2 ? PROGRAM_PREFILL : PROGRAM_DECODE, args);
}

void whole_start(struct whole *w, const char *router_args, const char *node_args, bool redis)
{
    char args[512];
    *w = (struct whole){.cluster = cluster_new(cluster_demo_model())};
    snprintf(w->node_args, sizeof w->node_args, "%s", node_args);
    scratch_make(w->folder);
    w->has_redis = redis && redis_rig_start(&w->redis, w->folder, NULL);
    snprintf(args, sizeof args, "--metrics 127.0.0.1:0 --deaths-max 100 --lone-deaths-max 100 %s",
             router_args);
    cluster_router(w->cluster, args);
    for (uint32_t i = 0; i < WHOLE_NODES; i++)
        w->node[i] = start_node(w, i);
    for (uint32_t i = 0; i < WHOLE_NODES; i++)
        process_await_ready(w->node[i]);
    cluster_await_nodes(w->cluster);
}

void whole_end(struct whole *w)
{
    cluster_free(w->cluster);
    redis_rig_stop(&w->redis);
    if (w->folder[0]) scratch_remove(w->folder);
}

void whole_replace(struct whole *w, uint32_t node)
{
    struct process *p = w->node[node];
    if (process_look(p)) add_counts(p, w->dead);
    process_kill(p);
    w->node[node] = start_node(w, node);
}

/* ---- pins ---- */

struct answer {
    bool here;
    enum tandem_status status;
};

static void on_answer(void *ctx, enum tandem_status status, const char *text, size_t bytes)
{
    (void)text, (void)bytes;
    *(struct answer *)ctx = (struct answer){true, status};
}

static bool prefill_nodes_hold_it(struct cluster *c, json_t *status)
{
    size_t i, holders = 0;
    json_t *node, *pin = json_array_get(json_object_get(status, "pins"), 0);
    (void)c;
    json_array_foreach(json_object_get(pin, "nodes"), i, node)
    {
        if (strcmp(json_string_value(json_object_get(node, "role")), "prefill") != 0) continue;
        if (!json_equal(json_object_get(node, "blocks"), json_object_get(pin, "blocks")))
            return false;
        holders++;
    }
    return holders == 2;
}

void whole_await_pin(struct whole *w)
{
    cluster_await(w->cluster, prefill_nodes_hold_it, "both prefill nodes hold what is pinned");
}

void whole_pin(struct whole *w, const struct tandem_pin *pin)
{
    struct answer a = {false, TANDEM_OK};
    assert_int_equal(tandem_pin(w->cluster->tandem, pin, on_answer, &a), TANDEM_OK);
    while (!a.here)
        tandem_wait(w->cluster->tandem, 1000);
    assert_int_equal(a.status, TANDEM_OK);
    whole_await_pin(w);
}
