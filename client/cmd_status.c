/* tandem status, explain, drain: questions to a router, answered in JSON. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cmd.h"
#include "client/layers.h"
#include "client/show.h"
#include "client/timeline.h"
#include "common/mem.h"

struct options {
    bool json;
};

static const struct setting rows[] = {
    SETTING_BOOL(struct options, json, "json", "false", "print the router's answer as it is"),
};

typedef void show_fn(const char *argument, json_t *answer);

/* ---- for people ---- */

/* "cuda NVIDIA H200 at 0000:17:00.0, numa 0, cpus 0-3, card mlx5_0" */
static void show_place(json_t *node)
{
    json_t *place = json_object_get(node, "place");
    const char *pci = show_text(place, "pci"), *cpus = show_text(place, "cpus"),
               *cards = show_text(place, "cards");
    printf("%s", show_text(node, "device"));
    if (pci[0]) printf(" at %s", pci);
    if (place && show_count(place, "numa") >= 0) printf(", numa %lld", show_count(place, "numa"));
    if (cpus[0]) printf(", cpus %s", cpus);
    if (cards[0]) printf(", card %s", cards);
    putchar('\n');
}

typedef int row_order_fn(const void *a, const void *b); /* of two json_t * */

/* Puts the rows in this order; without memory they stay as they are. */
static void sort_rows(json_t *list, row_order_fn *order)
{
    size_t count = json_array_size(list);
    json_t **row = mem_array(count, sizeof *row);
    if (!row) return;
    for (size_t i = 0; i < count; i++)
        row[i] = json_incref(json_array_get(list, i));
    qsort(row, count, sizeof *row, order);
    for (size_t i = 0; i < count; i++)
        json_array_set_new(list, i, row[i]);
    mem_free(row);
}

/* Prefill nodes first; d2 before d10. */
static int node_order(const void *a, const void *b)
{
    json_t *x = *(json_t *const *)a, *y = *(json_t *const *)b;
    int by_role = strcmp(show_text(y, "role"), show_text(x, "role"));
    return by_role ? by_role : strverscmp(show_text(x, "name"), show_text(y, "name"));
}

/* The order in which nodes prefer links. */
static int link_rank(json_t *path)
{
    static const char *const kinds[] = {"ipc", "nccl", "shm", "tcp"};
    int rank = 0;
    while (rank < (int)COUNT_OF(kinds) && strcmp(kinds[rank], show_text(path, "kind")) != 0)
        rank++;
    return rank;
}

static int path_order(const void *a, const void *b)
{
    json_t *x = *(json_t *const *)a, *y = *(json_t *const *)b;
    int by_from = strverscmp(show_text(x, "from"), show_text(y, "from"));
    int by_to = strverscmp(show_text(x, "to"), show_text(y, "to"));
    return by_from ? by_from : by_to ? by_to : link_rank(x) - link_rank(y);
}

static bool same_pair(json_t *a, json_t *b)
{
    return strcmp(show_text(a, "from"), show_text(b, "from")) == 0 &&
           strcmp(show_text(a, "to"), show_text(b, "to")) == 0;
}

/* Which of a pair's links carries for the broken one; "": none, or a better one does anyway. */
static const char *stand_in(json_t *paths, json_t *broken)
{
    json_t *p;
    size_t i;
    json_array_foreach(paths, i, p)
    {
        if (same_pair(p, broken) && strcmp(show_text(p, "state"), "ready") == 0)
            return link_rank(p) < link_rank(broken) ? "" : show_text(p, "kind");
    }
    return "";
}

static void show_path(json_t *paths, json_t *p)
{
    double failed_s = json_number_value(json_object_get(p, "failed_s"));
    bool broken = strcmp(show_text(p, "state"), "broken") == 0;
    const char *other = broken ? stand_in(paths, p) : "";
    char rate[32] = "-";
    if (show_count(p, "rate") > 0)
        snprintf(rate, sizeof rate, "%.1f", (double)show_count(p, "rate") / 1e6);
    printf("%-16s %-16s %-6s %-7s %9s %9lld %9.1f", show_text(p, "from"), show_text(p, "to"),
           show_text(p, "kind"), show_text(p, "state"), rate, show_count(p, "transfers"),
           (double)show_count(p, "bytes") / 1e6);
    if (other[0]) printf("  fell back to %s", other);
    if (failed_s >= 0)
        printf("%s %s (%.0f s ago)", other[0] ? ":" : " ", show_text(p, "reason"), failed_s);
    printf("\n");
}

static void show_paths(json_t *paths)
{
    json_t *p;
    size_t i;
    if (json_array_size(paths) == 0) return;
    sort_rows(paths, path_order);
    printf("links\n%-16s %-16s %-6s %-7s %9s %9s %9s\n", "from", "to", "link", "state", "MB/s",
           "live", "sent MB");
    json_array_foreach(paths, i, p) show_path(paths, p);
}

static bool has_memory(json_t *node)
{
    return show_count(json_object_get(node, "memory"), "contiguous_slots_peak") > 0;
}

static void show_slots(json_t *node, const char *label, const char *suffix)
{
    static const char *const names[] = {"held_tokens", "wasted_slots", "contiguous_slots"};
    double v[COUNT_OF(names)];
    char name[64], text[4][SHOW_TEXT];
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        snprintf(name, sizeof name, "%s%s", names[i], suffix);
        v[i] = show_real(json_object_get(node, "memory"), name);
    }
    double empty = v[2] > v[0] ? v[2] - v[0] : 0;
    printf("%-16s %-8s %12s %12s %8s %12s %8s\n", label[0] ? label : show_text(node, "name"),
           label[0] ? "" : show_text(node, "role"), show_number((long long)v[0], text[0]),
           show_number((long long)v[1], text[1]), show_share(v[1], v[0] + v[1], text[3]),
           show_number((long long)empty, text[2]), show_share(empty, v[2], (char[SHOW_TEXT]){0}));
}

/* Empty places for tokens: of the blocks that sequences have, and of the memory that they would have if each
 * had it in one piece for the longest that it may become. */
static void show_memory(json_t *nodes)
{
    json_t *n;
    size_t i;
    bool any = false;
    json_array_foreach(nodes, i, n)
    {
        if (!has_memory(n)) continue;
        if (!any)
            printf("memory of sequences, in tokens %22s %28s\n%-16s %-8s %12s %12s %8s %12s %8s\n",
                   "in blocks", "in one piece each", "node", "role", "held", "empty", "share",
                   "empty", "share");
        any = true;
        show_slots(n, "", "");
        show_slots(n, "  at its fullest", "_peak");
    }
}

/* Nothing where nobody names one. */
static void show_tenants(json_t *tenants)
{
    json_t *t, *only = json_array_get(tenants, 0);
    size_t i, count = json_array_size(tenants);
    if (count == 0 || (count == 1 && !show_text(only, "tenant")[0])) return;
    printf("%-16s %8s %8s %8s %14s %14s %14s\n", "tenant", "weight", "queued", "running",
           "prompt tokens", "generated", "virtual time");
    json_array_foreach(tenants, i, t)
    {
        const char *name = show_text(t, "tenant");
        printf("%-16s %8lld %8lld %8lld %14lld %14lld %14.0f\n", name[0] ? name : "(none)",
               show_count(t, "weight"), show_count(t, "queued"), show_count(t, "running"),
               show_count(t, "prompt_tokens"), show_count(t, "generated_tokens"),
               json_number_value(json_object_get(t, "virtual_tokens")));
    }
}

/* What a node has behind its pool and leaves alone for a while. */
static void show_broken_tiers(json_t *nodes)
{
    json_t *n, *name;
    size_t i, k;
    json_array_foreach(nodes, i, n) json_array_foreach(json_object_get(n, "tiers_broken"), k, name)
        printf("%s: its %s tier is out of order: left alone, and tried again by itself\n",
               show_text(n, "name"), json_string_value(name) ? json_string_value(name) : "");
}

static void show_status(const char *argument, json_t *answer)
{
    (void)argument;
    json_t *r = json_object_get(answer, "router"), *n;
    size_t i;
    printf("router %s: %s, model %s; %lld requests, %lld queued; %lld done, %lld failed, %lld "
           "cancelled, %lld refused\n",
           show_text(r, "name"), show_text(r, "state"), show_text(r, "model"),
           show_count(r, "requests"), show_count(r, "queued"), show_count(r, "done"),
           show_count(r, "failed"), show_count(r, "cancelled"), show_count(r, "rejected"));
    if (show_text(r, "waiting")[0]) printf("the queue waits: %s\n", show_text(r, "waiting"));
    printf("%-16s %-8s %-9s %8s %8s %8s %8s %8s %9s  %s\n", "node", "role", "state", "pid",
           "blocks", "free", "cached", "running", "step ms", "device");
    sort_rows(json_object_get(answer, "nodes"), node_order);
    json_array_foreach(json_object_get(answer, "nodes"), i, n)
    {
        json_t *b = json_object_get(n, "blocks"), *l = json_object_get(n, "load");
        printf("%-16s %-8s %-9s %8lld %8lld %8lld %8lld %8lld %9.2f  ", show_text(n, "name"),
               show_text(n, "role"), show_text(n, "state"), show_count(n, "pid"),
               show_count(b, "total"), show_count(b, "free"), show_count(b, "cached"),
               show_count(l, "running"), (double)show_count(l, "step_us") / 1000.0);
        show_place(n);
    }
    if (i == 0) printf("no nodes have joined\n");
    show_broken_tiers(json_object_get(answer, "nodes"));
    show_tenants(json_object_get(answer, "tenants"));
    show_memory(json_object_get(answer, "nodes"));
    show_paths(json_object_get(answer, "paths"));
}

static void show_explain(const char *argument, json_t *answer)
{
    (void)argument;
    json_t *c;
    size_t i;
    printf("request %s: %s, %lld prompt tokens\n", show_text(answer, "id"),
           show_text(answer, "kind"), show_count(answer, "prompt_tokens"));
    json_array_foreach(json_object_get(answer, "choices"), i, c)
    {
        timeline_print(stdout, c);
        layers_print(stdout, c);
    }
}

static void show_drain(const char *node, json_t *answer)
{
    (void)answer;
    fprintf(stderr, "%s has left\n", node[0] ? node : "the cluster");
}

/* ---- the verbs ---- */

/* A verb's own part: what the usage says, what it asks, how the answer is shown. */
struct question {
    const char *verb;
    struct settings_program about;
    cmd_question_fn *ask;
    show_fn *show;
};

/* Asks with the first argument, "" if there is none. */
static int run(int argc, char **argv, const struct question *q)
{
    struct options o = {0};
    struct cmd_router router;
    const struct settings_table own = {rows, COUNT_OF(rows), &o};
    struct settings s;
    struct buf text = {0};
    json_t *answer;
    int code;
    if (!cmd_settings(&s, &q->about, &own, &router, argc, argv, &code)) return code;
    const char *argument = s.args_count ? s.args[0] : "";
    code = cmd_ask(q->verb, &router, q->ask, argument, &text, &answer);
    if (code == CMD_DONE && o.json)
        printf("%s\n", text.data);
    else if (code == CMD_DONE)
        q->show(argument, answer);
    json_decref(answer);
    buf_fini(&text);
    settings_fini(&s);
    return code;
}

int cmd_status(int argc, char **argv)
{
    static const struct question q = {
        "status",
        {.name = "tandem status", .about = "Nodes, queues and links of a cluster."},
        cmd_question_status,
        show_status};
    return run(argc, argv, &q);
}

int cmd_explain(int argc, char **argv)
{
    static const struct question q = {
        "explain",
        {.name = "tandem explain",
         .args = "ID",
         .about = "Where the time of one running or recently ended request went.",
         .args_min = 1,
         .args_max = 1},
        tandem_query_explain,
        show_explain};
    return run(argc, argv, &q);
}

int cmd_drain(int argc, char **argv)
{
    static const struct question q = {
        "drain",
        {.name = "tandem drain",
         .args = "[NODE]",
         .about = "Lets a node, or without NODE the whole cluster, take nothing new, finish what "
                  "it has and leave; returns when it has left.",
         .args_max = 1},
        tandem_drain,
        show_drain};
    return run(argc, argv, &q);
}
