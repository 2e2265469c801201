/* What a tenant that asks for little waits, alone and beside one that floods, over real processes: a router,
 * a prefill node P and a decode node D on loopback. P has one core, D another; the router and this
 * program, which is all clients, share P's.
 *
 *     tenants [--quick] [--first] [SECTION...]
 *
 * --first as in cluster_bench.c. --quick: few of everything, to see that it runs. The light tenant asks for one
 * answer after the other, with pauses: one that asks without any takes a third of P, and then its turn is to wait. The
 * flood keeps FLOOD requests in the system, each with a prompt that nobody had before, long prompts for P and long
 * answers for D. In turn, so that whatever else the machine does meets all three alike:
 * - alone: the light tenant's requests.
 * - named: beside the flood, where both say who they are.
 * - unnamed: the same requests where nobody does, for contrast.
 *
 * "ttft" is from a request to its first token; of it "queue" was spent in the router and "prefill" at P, whose core
 * the flood's messages take a part of. "itl" is between two tokens, "first_gap" the first of these in each stream, which
 * waits for D's running step. "of_alone" is the share of the same percentile alone: the aim is 1.5 of the named ones.
 * "flood_tokens_s" is what the flood generated. Sections:
 * - demo: the demo model, where each row makes a step longer by about as much as the first one, so D has a batch
 *   of 2: what a step is, no order of requests can make shorter. The messages of its thousands of steps a second take a
 *   third of P's core.
 * - wide: the same with a batch of 8, to show what that costs.
 * - m: the model of shape M, whose steps are long enough that messages take little.
 * - s: the model of shape S, where steps mostly read weights, with a batch of 4. Not part of --quick. */
#include "tests/unit/testing.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/rng.h"
#include "tests/bench/cores.h"
#include "tests/bench/figures.h"
#include "tests/bench/shapes.h"
#include "tests/e2e/cluster.h"
#include "tests/e2e/streams.h"

enum { FLOOD = 48, FLOOD_CLIENTS = 4, SHORT = 48, PROMPT_MAX = 1024 };

enum way { ALONE, NAMED, UNNAMED, WAYS };
static const char *const way_names[WAYS] = {"alone", "named", "unnamed"};
enum span { TTFT, QUEUE, PREFILL, ITL, FIRST_GAP, SPANS };
static const char *const span_names[SPANS] = {"ttft", "queue", "prefill", "itl", "first_gap"};

struct amounts {
    const char *name, *nodes, *decode; /* settings of both nodes, of D */
    const char *(*model)(void);
    bool large, quick; /* random weights, no tokenizer; part of --quick too */
    uint32_t light_prompt, light_tokens, pause_ms; /* at least, and twice that at most */
    uint32_t flood_prompt, flood_tokens;           /* one of the two is short, by turns */
    uint32_t rounds, requests;                     /* of each way; light ones in a round */
};

/* A prompt is some chunks long, so that the wait for the step that runs is a part of it. */
static const struct amounts sections[] = {
    {.name = "demo",
     .nodes = "--chunk 64",
     .decode = "--batch 2",
     .model = cluster_demo_model,
     .quick = true,
     .light_prompt = 512,
     .light_tokens = 120,
     .pause_ms = 100,
     .flood_prompt = 768,
     .flood_tokens = 1000,
     .rounds = 8,
     .requests = 20},
    {.name = "wide",
     .nodes = "--chunk 64",
     .decode = "--batch 8",
     .model = cluster_demo_model,
     .quick = true,
     .light_prompt = 512,
     .light_tokens = 120,
     .pause_ms = 100,
     .flood_prompt = 768,
     .flood_tokens = 1000,
     .rounds = 4,
     .requests = 20},
    {.name = "m",
     .nodes = "--chunk 64 --kv-bytes 256M",
     .decode = "--batch 2",
     .model = shape_m_model,
     .large = true,
     .light_prompt = 512,
     .light_tokens = 120,
     .pause_ms = 300,
     .flood_prompt = 768,
     .flood_tokens = 300,
     .rounds = 4,
     .requests = 30},
    {.name = "s",
     .nodes = "--chunk 64 --kv-bytes 1G",
     .decode = "--batch 4",
     .model = shape_s_model,
     .large = true,
     .light_prompt = 256,
     .light_tokens = 40,
     .pause_ms = 3000,
     .flood_prompt = 384,
     .flood_tokens = 100,
     .rounds = 3,
     .requests = 5},
};
enum { SECTIONS = sizeof sections / sizeof sections[0] };

static struct bench {
    struct amounts amounts;
    struct cluster *cluster;
    struct streams *streams;
    uint32_t prompts_made;
    bool first_in_line;
    struct samples ms[SPANS][WAYS];
    uint64_t flood_tokens[WAYS], took_ns[WAYS];
} bench;

/* ---- the cluster ---- */

static void start_node(enum program program, const char *args)
{
    char all[1024];
    const struct amounts *a = &bench.amounts;
    int size = snprintf(all, sizeof all, "%s %s --model %s", a->nodes, args, a->model());
    if (a->large)
        snprintf(all + size, sizeof all - (size_t)size, " --cache-dir %s", shapes_cache());
    cores_use(program == PROGRAM_DECODE);
    struct process *p = cluster_spawn(bench.cluster, program, all);
    cores_put_first(p->pid);
    cores_use(0);
    process_await_ready(p);
}

static void start_cluster(void)
{
    bench.cluster = cluster_new(bench.amounts.large ? NULL : bench.amounts.model());
    bench.cluster->apart = bench.first_in_line;
    cores_put_first(cluster_router(bench.cluster, "--disaggregate always")->pid);
    start_node(PROGRAM_PREFILL, "");
    start_node(PROGRAM_DECODE, bench.amounts.decode);
    cluster_await_nodes(bench.cluster);
}

static void stop_cluster(void)
{
    cluster_stop(bench.cluster);
    cluster_free(bench.cluster);
    bench.cluster = NULL;
}

static void show_logs(void)
{
    cluster_free(bench.cluster);
}

/* ---- requests ---- */

/* Tokens that no prompt before had, so that no prefix is found. */
static struct stream *start(uint32_t client, uint32_t prompt_tokens, uint32_t tokens,
                            const char *tenant)
{
    static uint32_t prompt[PROMPT_MAX];
    bench.prompts_made++;
    for (uint32_t i = 0; i < prompt_tokens; i++)
        prompt[i] = 300 + rng_below(rng_draw(1, bench.prompts_made, i).word[0], 700);
    struct ask ask = {.tokens = prompt,
                      .tokens_count = prompt_tokens,
                      .max_tokens = tokens,
                      .ignore_eos = true,
                      .no_text = true,
                      .tenant = tenant};
    return streams_start(bench.streams, client, &ask);
}

static struct stream *start_light(enum way way)
{
    return start(0, bench.amounts.light_prompt, bench.amounts.light_tokens,
                 way == UNNAMED ? NULL : "light");
}

/* As many as there should be; `light` is the light tenant's that has not ended, or NULL. */
static void keep_flooding(enum way way, const struct stream *light)
{
    struct streams *s = bench.streams;
    uint32_t own = light && !light->ended;
    while (way != ALONE && s->count - s->ended_count - own < FLOOD) {
        if (s->count == STREAMS_MAX) fail_msg("the flood ended before the light tenant's requests");
        bool long_prompt = s->count % 2 == 0;
        start(1 + s->count / 2 % FLOOD_CLIENTS, long_prompt ? bench.amounts.flood_prompt : SHORT,
              long_prompt ? SHORT : bench.amounts.flood_tokens, way == NAMED ? "flood" : NULL);
    }
}

static void turn(enum way way, const struct stream *light)
{
    keep_flooding(way, light);
    streams_turn(bench.streams, 1);
}

static void add_times(enum way way, const struct stream *light)
{
    const uint64_t *at = light->choice[0].arrived_ns;
    samples_add(&bench.ms[TTFT][way], (double)(at[0] - light->submitted_ns) / NS_PER_MS);
    samples_add(&bench.ms[QUEUE][way], (double)light->timing.queue / 1e3);
    samples_add(&bench.ms[PREFILL][way], (double)light->timing.prefill / 1e3);
    samples_add(&bench.ms[FIRST_GAP][way], (double)(at[1] - at[0]) / NS_PER_MS);
    for (uint32_t t = 1; t < light->tokens_count; t++)
        if (at[t] > at[t - 1])
            samples_add(&bench.ms[ITL][way], (double)(at[t] - at[t - 1]) / NS_PER_MS);
}

static bool flood_is_there(enum way way)
{
    return way == ALONE || bench.streams->ended_count >= FLOOD / 4;
}

static void round_of(enum way way, uint32_t number)
{
    uint64_t light_tokens = 0;
    uint32_t pause_ms = bench.amounts.pause_ms;
    uint32_t requests = way == UNNAMED ? (bench.amounts.requests + 19) / 20 : bench.amounts.requests;
    bench.streams = streams_new(bench.cluster->addresses);
    while (!flood_is_there(way))
        turn(way, NULL);
    uint64_t from_ns = clock_now_ns(), flood_before = bench.streams->tokens_count;
    for (uint32_t i = 0; i < requests; i++) {
        uint64_t pause_ns =
            (pause_ms + rng_below(rng_draw(2, number, i).word[0], pause_ms)) * NS_PER_MS;
        uint64_t next_ns = clock_now_ns() + pause_ns;
        while (clock_now_ns() < next_ns)
            turn(way, NULL);
        struct stream *light = start_light(way);
        while (!light->ended)
            turn(way, light);
        stream_expect_done(light);
        add_times(way, light);
        light_tokens += light->tokens_count;
    }
    bench.took_ns[way] += clock_now_ns() - from_ns;
    bench.flood_tokens[way] += bench.streams->tokens_count - flood_before - light_tokens;
    streams_free(bench.streams);
    cluster_await_idle(bench.cluster);
}

/* ---- what came out ---- */

static void tell(enum way way, enum span span)
{
    struct samples *samples = bench.ms[span];
    static const struct {
        const char *name;
        double share;
    } points[] = {{"p50", 0.5}, {"p99", 0.99}};
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
        double ms = samples_at(&samples[way], points[i].share);
        const char *name = bench.amounts.name, *way_name = way_names[way], *what = span_names[span];
        figure_print(ms, "%s_%s_%s_%s_ms", name, way_name, what, points[i].name);
        if (way != ALONE && span != QUEUE)
            figure_print(ms / samples_at(&samples[ALONE], points[i].share), "%s_%s_%s_%s_of_alone",
                         name, way_name, what, points[i].name);
    }
}

static void run_section(const struct amounts *amounts, bool quick)
{
    bench.amounts = *amounts;
    if (quick) bench.amounts.rounds = 1, bench.amounts.requests = 3;
    start_cluster();
    for (uint32_t i = 0; i < bench.amounts.rounds; i++)
        for (enum way way = ALONE; way < WAYS; way++)
            round_of(way, i);
    for (enum way way = ALONE; way < WAYS; way++) {
        for (enum span span = 0; span < SPANS; span++)
            tell(way, span);
        if (way != ALONE)
            figure_print((double)bench.flood_tokens[way] * NS_PER_S / (double)bench.took_ns[way],
                         "%s_%s_flood_tokens_s", amounts->name, way_names[way]);
    }
    for (enum way way = ALONE; way < WAYS; way++) {
        for (enum span span = 0; span < SPANS; span++)
            samples_free(&bench.ms[span][way]);
        bench.flood_tokens[way] = bench.took_ns[way] = 0;
    }
    stop_cluster();
}

int main(int argc, char **argv)
{
    bool all = true, quick = false, chosen[SECTIONS] = {false};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--first") == 0) bench.first_in_line = true;
        if (strcmp(argv[i], "--quick") == 0) quick = true;
        for (size_t n = 0; n < SECTIONS; n++)
            if (strcmp(argv[i], sections[n].name) == 0) chosen[n] = true, all = false;
    }
    atexit(show_logs);
    cores_use(0);
    if (bench.first_in_line) cores_first_in_line();
    for (size_t n = 0; n < SECTIONS; n++)
        if (chosen[n] || (all && (!quick || sections[n].quick))) run_section(&sections[n], quick);
    figures_end();
    return 0;
}
