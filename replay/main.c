/* tandem-kvsim: replays a trace under each policy and pool size and prints what they found, beside what
 * an endless cache and Belady's MIN find. `tandem sim` is this program. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/geometry.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/progress.h"
#include "common/settings.h"
#include "replay/plot.h"
#include "replay/replay.h"

enum { POOLS_MAX = 32, THREADS_MAX = 16, BLOCKS_MAX = 1 << 28, TENANTS_SHOWN = 16 };

struct options {
    const char *trace, *policies, *blocks, *plot, *tenant_weights;
    uint64_t block_bytes, ttl_ns;
    int64_t threads, tenant_quota;
    bool json;
};

static const struct setting rows[] = {
    SETTING_STRING(struct options, trace, "kv", NULL,
                   "the trace: JSON lines with hash_ids of 512 tokens (Mooncake) or with tokens"),
    SETTING_STRING(struct options, policies, "policy", "all",
                   "policies of eviction, separated by commas: " EVICT_POLICIES "; all"),
    SETTING_STRING(struct options, blocks, "blocks", "32768,131072,524288,1048576,2097152",
                   "pool sizes in blocks of 16 tokens, separated by commas"),
    SETTING_SIZE(struct options, block_bytes, "block-bytes", "2M", 1, UINT64_C(1) << 40,
                 "KV of a block; 2M: 32 layers with 8 kv heads of 128 in two bytes each"),
    SETTING_DURATION(struct options, ttl_ns, "evict-ttl", "5m", NS_PER_MS, 24 * 3600 * NS_PER_S,
                     "of the policy ttl: blocks go when nobody used them for so long"),
    SETTING_STRING(struct options, tenant_weights, "tenant-weights", NULL,
                   "NAME=WEIGHT,…: shares of cached blocks of the trace's tenants; others have 1"),
    SETTING_INT(struct options, tenant_quota, "tenant-quota", "100", 1, 100,
                "percent of the pool that one tenant may have cached (docs/kv-memory.md)"),
    SETTING_INT(struct options, threads, "threads", "0", 0, THREADS_MAX,
                "runs at once, each with a pool of its own; 0: one for each CPU, at most 4"),
    SETTING_BOOL(struct options, json, "json", "false", "print one JSON object"),
    SETTING_STRING(struct options, plot, "plot", NULL,
                   "write hit rates over pool sizes as SVG to this file"),
};

static const char *const policy_names[] = {"lru", "lfu", "s3fifo", "cost", "ttl"};

struct cell {
    struct replay_result result;
    struct replay_tenant *tenants; /* of the trace's */
    enum err error;
    char why[256];
};

struct sim {
    const struct options *options;
    struct trace trace;
    uint32_t pool[POOLS_MAX], pools_count; /* ascending */
    enum evict_policy policy[EVICT_POLICIES_COUNT];
    uint32_t policies_count;
    struct cell cell[POOLS_MAX][EVICT_POLICIES_COUNT];
    uint32_t shown[TENANTS_SHOWN], shown_count; /* of tenants, those with most tokens first */
    uint64_t limit[POOLS_MAX], endless;         /* blocks found */
    atomic_uint next, ended;                    /* cells */
};

/* ---- what to run ---- */

static enum err parse_policies(struct sim *s, const char *text)
{
    bool wanted[EVICT_POLICIES_COUNT] = {0};
    while (*text) {
        size_t length = strcspn(text, ",");
        bool all = length == 3 && strncmp(text, "all", 3) == 0, known = all;
        for (uint32_t p = 0; p < EVICT_POLICIES_COUNT; p++) {
            bool is =
                strlen(policy_names[p]) == length && strncmp(text, policy_names[p], length) == 0;
            wanted[p] = wanted[p] || all || is;
            known = known || is;
        }
        if (!known)
            return err_set(ERR_INVALID, "--policy: \"%.*s\" is none of all, " EVICT_POLICIES,
                           (int)length, text);
        text += length + (text[length] == ',');
    }
    for (uint32_t p = 0; p < EVICT_POLICIES_COUNT; p++)
        if (wanted[p]) s->policy[s->policies_count++] = p;
    return s->policies_count ? OK : err_set(ERR_INVALID, "--policy names none");
}

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static enum err parse_pools(struct sim *s, const char *text)
{
    while (*text) {
        char *end;
        unsigned long long n = strtoull(text, &end, 10);
        if (end == text || (*end && *end != ',') || *text == '-' || n == 0 || n > BLOCKS_MAX)
            return err_set(ERR_INVALID, "--blocks: \"%s\" begins with no number from 1 to %d", text,
                           BLOCKS_MAX);
        if (s->pools_count == POOLS_MAX)
            return err_set(ERR_INVALID, "--blocks: more than %d sizes", POOLS_MAX);
        s->pool[s->pools_count++] = (uint32_t)n;
        text = end + (*end == ',');
    }
    qsort(s->pool, s->pools_count, sizeof *s->pool, by_size);
    return s->pools_count ? OK : err_set(ERR_INVALID, "--blocks names no size");
}

/* ---- tenants ---- */

static bool names_tenants(const struct sim *s)
{
    return s->trace.tenants_count > 1;
}

static void choose_shown(struct sim *s)
{
    const struct trace_tenant *t = s->trace.tenant;
    for (uint32_t i = 0; i < s->trace.tenants_count; i++) {
        if (t[i].requests_count == 0) continue;
        uint32_t at = s->shown_count < TENANTS_SHOWN ? s->shown_count++ : TENANTS_SHOWN;
        for (; at > 0 && t[s->shown[at - 1]].tokens_count < t[i].tokens_count; at--)
            if (at < TENANTS_SHOWN) s->shown[at] = s->shown[at - 1];
        if (at < TENANTS_SHOWN) s->shown[at] = i;
    }
}

static enum err prepare_tenants(struct sim *s)
{
    enum err e;
    struct tenant_weight weights[TENANT_WEIGHTS_MAX];
    uint32_t weights_count;
    e = tenant_weights_parse(s->options->tenant_weights, weights, &weights_count);
    if (e != OK) return err_prefix(e, "--tenant-weights");
    for (uint32_t i = 0; i < s->pools_count; i++)
        for (uint32_t p = 0; p < s->policies_count; p++) {
            struct cell *c = &s->cell[i][p];
            c->tenants = mem_array(s->trace.tenants_count, sizeof *c->tenants);
            if (!c->tenants) return ERR_MEMORY;
            for (uint32_t t = 0; t < s->trace.tenants_count; t++)
                c->tenants[t].weight =
                    tenant_weight_of(weights, weights_count, s->trace.tenant[t].name);
        }
    choose_shown(s);
    return OK;
}

/* Of a tenant's tokens. */
static double tenant_rate(uint64_t hit_blocks, uint64_t tokens_count)
{
    return tokens_count ? (double)hit_blocks * BLOCK_TOKENS / (double)tokens_count : 0;
}

/* What is left when those that are shown are taken away. */
struct others {
    uint64_t hit_blocks, tokens_count;
    uint32_t requests_count;
};

static struct others others_of(const struct sim *s, const struct cell *c)
{
    struct others o = {c->result.hit_blocks, s->trace.tokens_count, s->trace.requests_count};
    for (uint32_t k = 0; k < s->shown_count; k++) {
        o.hit_blocks -= c->tenants[s->shown[k]].hit_blocks;
        o.tokens_count -= s->trace.tenant[s->shown[k]].tokens_count;
        o.requests_count -= s->trace.tenant[s->shown[k]].requests_count;
    }
    return o;
}

/* ---- the runs ---- */

/* The next run; false: there is none left. */
static bool work_on(struct sim *s)
{
    uint32_t i = atomic_fetch_add(&s->next, 1);
    if (i >= s->pools_count * s->policies_count) return false;
    uint32_t pool = i / s->policies_count, p = i % s->policies_count;
    struct cell *c = &s->cell[pool][p];
    struct evict_config config = {.policy = s->policy[p],
                                  .ttl_ns = s->options->ttl_ns,
                                  .tenant_percent_max = s->options->tenant_quota < 100
                                                            ? (uint32_t)s->options->tenant_quota
                                                            : 0};
    c->error = replay_run(&s->trace, &config, s->pool[pool], c->tenants, &c->result);
    if (c->error != OK) snprintf(c->why, sizeof c->why, "%s", err_text());
    atomic_fetch_add(&s->ended, 1);
    return true;
}

static void *work(void *arg)
{
    while (work_on(arg))
        ;
    return NULL;
}

static void show(struct progress *progress, struct sim *s)
{
    char text[64];
    uint32_t all = s->pools_count * s->policies_count, ended = atomic_load(&s->ended);
    snprintf(text, sizeof text, "%u of %u runs", ended, all);
    progress_show(progress, clock_now_ns(), ended, all, text);
}

static enum err run_all(struct sim *s)
{
    pthread_t thread[THREADS_MAX];
    struct progress progress;
    int64_t wanted = s->options->threads, started = 0;
    if (wanted == 0) wanted = sysconf(_SC_NPROCESSORS_ONLN) > 4 ? 4 : sysconf(_SC_NPROCESSORS_ONLN);
    while (started < wanted - 1 && pthread_create(&thread[started], NULL, work, s) == 0)
        started++;
    progress_begin(&progress, stderr, clock_now_ns());
    while (work_on(s))
        show(&progress, s);
    while (started > 0)
        pthread_join(thread[--started], NULL);
    progress_end(&progress);
    for (uint32_t i = 0; i < s->pools_count; i++)
        for (uint32_t p = 0; p < s->policies_count; p++)
            if (s->cell[i][p].error != OK)
                return err_set(s->cell[i][p].error, "%s", s->cell[i][p].why);
    return OK;
}

static enum err find_limits(struct sim *s)
{
    struct limit *limit;
    enum err e = limit_new(&limit, &s->trace);
    if (e != OK) return e;
    s->endless = limit_hits(limit, LIMIT_INFINITE);
    for (uint32_t i = 0; i < s->pools_count; i++)
        s->limit[i] = limit_hits(limit, s->pool[i]);
    limit_free(limit);
    return OK;
}

/* ---- what came out ---- */

static double rate(const struct sim *s, uint64_t hit_blocks)
{
    return (double)hit_blocks * BLOCK_TOKENS / (double)s->trace.tokens_count;
}

static double gib(const struct sim *s, uint64_t blocks)
{
    return (double)blocks * (double)s->options->block_bytes / (double)(1 << 30);
}

static void print_tenant(const char *name, double hits, uint64_t tokens_count)
{
    printf("%10s %10s  %-8s %8.2f %10s of %llu tokens of %s\n", "", "", "", 100 * hits, "",
           (unsigned long long)tokens_count, name);
}

static void print_tenants(const struct sim *s, const struct cell *c)
{
    struct others o = others_of(s, c);
    for (uint32_t k = 0; k < s->shown_count; k++) {
        const struct trace_tenant *t = &s->trace.tenant[s->shown[k]];
        double hits = tenant_rate(c->tenants[s->shown[k]].hit_blocks, t->tokens_count);
        print_tenant(t->name[0] ? t->name : "those without a name", hits, t->tokens_count);
    }
    if (o.requests_count > 0)
        print_tenant("all others", tenant_rate(o.hit_blocks, o.tokens_count), o.tokens_count);
}

static void print_table(const struct sim *s)
{
    const struct trace *t = &s->trace;
    printf("%u requests, %.1f M tokens; an endless cache finds %.2f %% of them\n\n",
           t->requests_count, (double)t->tokens_count / 1e6, 100 * rate(s, s->endless));
    printf("%10s %10s  %-8s %8s %10s %12s %12s %8s\n", "blocks", "GiB", "policy", "hits %",
           "of belady", "moved GiB", "evicted", "refused");
    for (uint32_t i = 0; i < s->pools_count; i++) {
        printf("%10u %10.1f  %-8s %8.2f\n", s->pool[i], gib(s, s->pool[i]), "belady",
               100 * rate(s, s->limit[i]));
        for (uint32_t p = 0; p < s->policies_count; p++) {
            const struct replay_result *r = &s->cell[i][p].result;
            double share = s->limit[i] ? (double)r->hit_blocks / (double)s->limit[i] : 1;
            printf("%10s %10s  %-8s %8.2f %10.3f %12.1f %12llu %8u\n", "", "",
                   policy_names[s->policy[p]], 100 * rate(s, r->hit_blocks), share,
                   gib(s, r->new_blocks),
                   (unsigned long long)(r->evicted_blocks + r->expired_blocks), r->refused_count);
            if (names_tenants(s)) print_tenants(s, &s->cell[i][p]);
        }
    }
}

static json_t *tenant_json(const char *name, uint32_t requests_count, uint64_t tokens_count,
                           uint64_t hit_blocks)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:f}", "tenant", name, "requests",
                     (json_int_t)requests_count, "tokens", (json_int_t)tokens_count, "hit_blocks",
                     (json_int_t)hit_blocks, "hit_rate", tenant_rate(hit_blocks, tokens_count));
}

static json_t *tenants_json(const struct sim *s, const struct cell *c)
{
    json_t *list = json_array();
    for (uint32_t k = 0; k < s->shown_count; k++) {
        const struct trace_tenant *t = &s->trace.tenant[s->shown[k]];
        json_array_append_new(list, tenant_json(t->name, t->requests_count, t->tokens_count,
                                                c->tenants[s->shown[k]].hit_blocks));
    }
    return list;
}

static json_t *json_of(const struct sim *s)
{
    const struct trace *t = &s->trace;
    json_t *pools = json_array();
    for (uint32_t i = 0; i < s->pools_count; i++) {
        json_t *policies = json_object();
        for (uint32_t p = 0; p < s->policies_count; p++) {
            const struct replay_result *r = &s->cell[i][p].result;
            json_t *row = json_pack(
                "{s:f, s:I, s:I, s:I, s:I, s:I}", "hit_rate", rate(s, r->hit_blocks), "hit_blocks",
                (json_int_t)r->hit_blocks, "moved_blocks", (json_int_t)r->new_blocks,
                "evicted_blocks", (json_int_t)r->evicted_blocks, "expired_blocks",
                (json_int_t)r->expired_blocks, "refused_requests", (json_int_t)r->refused_count);
            if (names_tenants(s)) {
                struct others o = others_of(s, &s->cell[i][p]);
                json_object_set_new(row, "tenants", tenants_json(s, &s->cell[i][p]));
                json_object_set_new(
                    row, "other_tenants",
                    tenant_json("", o.requests_count, o.tokens_count, o.hit_blocks));
            }
            json_object_set_new(policies, policy_names[s->policy[p]], row);
        }
        json_array_append_new(pools, json_pack("{s:I, s:f, s:o}", "blocks", (json_int_t)s->pool[i],
                                               "belady_hit_rate", rate(s, s->limit[i]), "policies",
                                               policies));
    }
    return json_pack("{s:I, s:I, s:I, s:f, s:o}", "requests", (json_int_t)t->requests_count,
                     "tokens", (json_int_t)t->tokens_count, "block_bytes",
                     (json_int_t)s->options->block_bytes, "endless_hit_rate", rate(s, s->endless),
                     "pools", pools);
}

static enum err print_json(const struct sim *s)
{
    json_t *all = json_of(s);
    if (!all) return ERR_MEMORY;
    int failed = json_dumpf(all, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    json_decref(all);
    putchar('\n');
    return failed ? err_set(ERR_IO, "stdout cannot be written") : OK;
}

static enum err write_plot(const struct sim *s)
{
    static double y[EVICT_POLICIES_COUNT + 2][POOLS_MAX];
    static char name[POOLS_MAX][32];
    struct plot_line line[EVICT_POLICIES_COUNT + 2] = {{"endless cache", y[0], true},
                                                       {"Belady's MIN", y[1], true}};
    const char *x_name[POOLS_MAX];
    double x[POOLS_MAX];
    for (uint32_t i = 0; i < s->pools_count; i++) {
        x[i] = s->pool[i];
        x_name[i] = name[i];
        snprintf(name[i], sizeof name[i], "%u", s->pool[i]);
        y[0][i] = rate(s, s->endless);
        y[1][i] = rate(s, s->limit[i]);
        for (uint32_t p = 0; p < s->policies_count; p++)
            y[2 + p][i] = rate(s, s->cell[i][p].result.hit_blocks);
    }
    for (uint32_t p = 0; p < s->policies_count; p++)
        line[2 + p] = (struct plot_line){policy_names[s->policy[p]], y[2 + p], false};
    char x_label[96];
    snprintf(x_label, sizeof x_label, "blocks in the pool, %g MiB each (logarithmic)",
             (double)s->options->block_bytes / (1 << 20));
    struct plot plot = {.title = "Prompt tokens found in the prefix cache",
                        .x_label = x_label,
                        .y_label = "of all prompt tokens",
                        .x = x,
                        .x_name = x_name,
                        .x_count = s->pools_count,
                        .line = line,
                        .lines_count = 2 + s->policies_count};
    struct buf out = {0};
    plot_svg(&plot, &out);
    enum err e = out.error;
    if (e == OK) e = file_write_whole(s->options->plot, out.data, out.size);
    buf_fini(&out);
    return e;
}

static enum err simulate(struct sim *s, const struct options *o)
{
    enum err e;
    if (!o->trace) return err_set(ERR_INVALID, "--kv TRACE: which load is to be replayed?");
    if ((e = parse_policies(s, o->policies)) != OK) return e;
    if ((e = parse_pools(s, o->blocks)) != OK) return e;
    if ((e = trace_read(&s->trace, o->trace)) != OK) return e;
    if ((e = prepare_tenants(s)) != OK) return e;
    if ((e = find_limits(s)) != OK) return e;
    if ((e = run_all(s)) != OK) return e;
    if (o->plot && (e = write_plot(s)) != OK) return e;
    if (o->json) return print_json(s);
    print_table(s);
    return OK;
}

int main(int argc, char **argv)
{
    struct options o;
    static struct sim s;
    const struct settings_table tables[] = {{rows, COUNT_OF(rows), &o}};
    const struct settings_program program = {
        .name = "tandem sim",
        .about = "Replays a trace of prompts through the pool and prefix cache of a node, under "
                 "each policy\n"
                 "of eviction and pool size, and prints what was found beside the limits.",
        .section = "tandem",
        .tables = tables,
        .tables_count = 1,
    };
    struct settings settings;
    int status;
    log_setup(LOG_WARN, "tandem-kvsim");
    if (!settings_main(&settings, &program, argc, argv, &status)) return status;
    s.options = &o;
    enum err e = simulate(&s, &o);
    if (e == OK) e = file_close_stdout();
    if (e != OK) fprintf(stderr, "tandem sim: %s\n", err_text());
    for (uint32_t i = 0; i < POOLS_MAX * EVICT_POLICIES_COUNT; i++)
        mem_free(s.cell[i / EVICT_POLICIES_COUNT][i % EVICT_POLICIES_COUNT].tenants);
    trace_free(&s.trace);
    settings_fini(&settings);
    return e == OK ? 0 : e == ERR_INVALID ? 2 : 1;
}
