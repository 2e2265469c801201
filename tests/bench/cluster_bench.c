/* A whole cluster as its users meet it: a router, a prefill node P and a decode node D as processes on
 * loopback. P has one core, D another; the router and this program, which is the client, share P's.
 *
 *     cluster [--model DIR] [--first] [SECTION...]
 *
 * MODEL: the demo model. --first (as root): before what else runs on the machine, so that the figures
 * mean something while it does. Sections, all unless told:
 * - starts: from fork to the line "ready", with and without packed weights in the cache folder, and the
 *   CPU time of that.
 * - handover: of a prompt of 1024 tokens. "joins" is from P's word that its last layer is done and token 0
 *   sampled to D's word that it has all of the KV and goes on, both as the router hears them. "gap" is
 *   from token 0 to token 1 at the client; one decode step, which it contains, is told beside it. On
 *   a busy D eight other streams run.
 * - ttft: prompts of 1024 tokens on idle nodes, by turns prefilled on P and on D (which computes as
 *   many tokens a step); "added" is what the first way takes longer.
 * - router: CPU time of all its threads for each token, 32 streams with text over 32 connections.
 * - itl: of eight streams, alone, while prompts of 4096 tokens are prefilled on P, and on D. */
#include "tests/unit/testing.h"

#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/rng.h"
#include "tests/bench/figures.h"
#include "tests/e2e/cluster.h"
#include "tests/e2e/streams.h"

enum {
    PROMPT = 1024,
    PROMPT_LONG = 4096,
    PROMPT_SHORT = 64,
    STREAMS = 8,
    STREAM_TOKENS = 1500,
    STARTS = 7,
    WARM_UPS = 4,
    HANDOVERS = 200,
    TTFTS = 60,
    ROUTER_STREAMS = 32,
    ROUTER_TOKENS = 600,
};

static struct bench {
    const char *model;
    uint32_t prompts_made;
    uint32_t prompt[PROMPT_LONG];
    struct cluster *cluster;
    bool first_in_line;
} bench;

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return ((double)to_ns - (double)from_ns) / NS_PER_MS;
}

static void figures_of(const char *name, struct samples *ms)
{
    char full[96];
    snprintf(full, sizeof full, "%s_p50_ms", name);
    figure(full, samples_at(ms, 0.5));
    snprintf(full, sizeof full, "%s_p99_ms", name);
    figure(full, samples_at(ms, 0.99));
}

/* ---- the cluster ---- */

/* Of this process and of all that it starts from now on. */
static void use_core(unsigned core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        fprintf(stderr, "cluster_bench: no core %u to be pinned to\n", core);
}

/* Each process is a session of its own, whose weight against other sessions may be raised. */
static void weigh(pid_t pid)
{
    char path[64];
    if (!bench.first_in_line) return;
    while (getsid(pid) != pid && getsid(pid) > 0) /* it makes it in a moment */
        sched_yield();
    snprintf(path, sizeof path, "/proc/%d/autogroup", (int)pid);
    FILE *f = fopen(path, "we");
    if (f) fputs("-19", f);
    if (f) fclose(f);
}

static struct process *start_node(enum program program, const char *args)
{
    use_core(program == PROGRAM_DECODE);
    struct process *p = cluster_spawn(bench.cluster, program, args);
    weigh(p->pid);
    use_core(0);
    process_await_ready(p);
    return p;
}

/* Two routers over the same nodes: one always hands over, the other one lets D prefill. */
enum { ALWAYS, NEVER };

static void new_cluster(void)
{
    bench.cluster = cluster_new(bench.model);
    bench.cluster->apart = bench.first_in_line;
}

static struct process *start_router(const char *args)
{
    struct process *p = cluster_router(bench.cluster, args);
    weigh(p->pid);
    return p;
}

static void start_cluster(const char *prefill_args, const char *decode_args)
{
    new_cluster();
    start_router("--disaggregate always");
    start_router("--disaggregate never");
    start_node(PROGRAM_PREFILL, prefill_args);
    start_node(PROGRAM_DECODE, decode_args);
    cluster_await_nodes(bench.cluster);
}

static void stop_cluster(void)
{
    cluster_stop(bench.cluster);
    cluster_free(bench.cluster);
    bench.cluster = NULL;
}

static struct streams *streams_to(int router)
{
    return streams_new(bench.cluster->process[router]->clients);
}

/* Clients that are used for the first time from now on go to this router. */
static void turn_to(struct streams *s, int router)
{
    snprintf(s->addresses, sizeof s->addresses, "%s", bench.cluster->process[router]->clients);
}

/* Tokens that no prompt before had, so that no prefix is found. */
static struct ask new_ask(uint32_t prompt_tokens, uint32_t max_tokens)
{
    bench.prompts_made++;
    for (uint32_t i = 0; i < prompt_tokens; i++)
        bench.prompt[i] = 300 + rng_below(rng_draw(1, bench.prompts_made, i).word[0], 700);
    return (struct ask){.tokens = bench.prompt,
                        .tokens_count = prompt_tokens,
                        .max_tokens = max_tokens,
                        .ignore_eos = true};
}

static struct stream *ask_once(struct streams *s, uint32_t client, const struct ask *ask)
{
    struct stream *stream = streams_start(s, client, ask);
    while (!stream->ended)
        streams_turn(s, 1000);
    stream_expect_done(stream);
    return stream;
}

static const uint64_t *arrivals(const struct stream *stream)
{
    return stream->choice[0].arrived_ns;
}

/* CPU time of all threads so far; the kernel counts it to the nanosecond. */
static uint64_t cpu_ns(const struct process *p)
{
    char path[300];
    uint64_t sum_ns = 0;
    snprintf(path, sizeof path, "/proc/%d/task", (int)p->pid);
    DIR *tasks = opendir(path);
    assert_non_null(tasks);
    for (const struct dirent *task; (task = readdir(tasks));) {
        unsigned long long ns;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", (int)p->pid, task->d_name);
        FILE *f = task->d_name[0] == '.' ? NULL : fopen(path, "re");
        if (f && fscanf(f, "%llu", &ns) == 1) sum_ns += ns;
        if (f) fclose(f);
    }
    closedir(tasks);
    return sum_ns;
}

/* ---- eight streams that run ---- */

static bool all_stream(void *ctx)
{
    const struct streams *s = ctx;
    for (uint32_t i = 0; i < s->count; i++)
        if (s->stream[i]->tokens_count < 4) return false;
    return true;
}

static void start_streams(struct streams *s)
{
    for (uint32_t i = 0; i < STREAMS; i++) {
        struct ask ask = new_ask(PROMPT_SHORT, STREAM_TOKENS);
        streams_start(s, i, &ask);
    }
    streams_run_until(s, all_stream, s, "all streams run");
}

static bool one_ended(const struct streams *s)
{
    for (uint32_t i = 0; i < STREAMS; i++)
        if (s->stream[i]->ended) return true;
    return false;
}

/* Times between the events of each stream that brought tokens, from from_ns on. */
static void add_gaps(struct samples *ms, const struct streams *s, uint64_t from_ns)
{
    for (uint32_t i = 0; i < STREAMS; i++) {
        const uint64_t *at = arrivals(s->stream[i]);
        for (uint32_t t = 1; t < s->stream[i]->tokens_count; t++)
            if (at[t - 1] >= from_ns && at[t] > at[t - 1])
                samples_add(ms, ms_between(at[t - 1], at[t]));
    }
}

/* ---- starts ---- */

/* In this order, in an empty cache folder. */
static const struct {
    const char *name;
    enum program program;
} started[] = {{"start_router", PROGRAM_ROUTER},
               {"start_prefill_cold", PROGRAM_PREFILL},
               {"start_decode_cached", PROGRAM_DECODE},
               {"start_prefill_cached", PROGRAM_PREFILL}};
enum { STARTED = sizeof started / sizeof started[0] };

static void starts(void)
{
    char name[64];
    struct samples took[STARTED] = {{0}}, cpu[STARTED] = {{0}};
    for (int round = 0; round < STARTS; round++) {
        new_cluster();
        for (int i = 0; i < STARTED; i++) {
            uint64_t began_ns = clock_now_ns();
            const struct process *p = started[i].program == PROGRAM_ROUTER
                                          ? start_router("")
                                          : start_node(started[i].program, "");
            samples_add(&took[i], ms_between(began_ns, clock_now_ns()));
            samples_add(&cpu[i], (double)cpu_ns(p) / NS_PER_MS);
        }
        stop_cluster();
    }
    for (int i = 0; i < STARTED; i++) {
        snprintf(name, sizeof name, "%s_p50_ms", started[i].name);
        figure(name, samples_at(&took[i], 0.5));
        snprintf(name, sizeof name, "%s_cpu_ms", started[i].name);
        figure(name, samples_at(&cpu[i], 0.5));
        samples_free(&took[i]);
        samples_free(&cpu[i]);
    }
}

/* ---- hand-over ---- */

static double event_ms(const json_t *events, const char *name)
{
    size_t i;
    json_t *event;
    json_array_foreach(events, i, event)
    {
        if (strcmp(json_string_value(json_object_get(event, "event")), name) == 0)
            return json_real_value(json_object_get(event, "at_ms"));
    }
    fail_msg("no event %s", name);
    return 0;
}

static double joins_ms(const struct stream *stream)
{
    json_t *explained;
    const json_t *choice = cluster_explain(bench.cluster, stream->id, &explained);
    const json_t *events = json_object_get(choice, "events");
    double ms = event_ms(events, "stream") - event_ms(events, "first");
    json_decref(explained);
    return ms;
}

struct handovers {
    struct samples joins, gap, tail, step;
};

static void hand_over(struct streams *s, struct handovers *h)
{
    struct ask ask = new_ask(PROMPT, 8);
    const struct stream *stream = ask_once(s, STREAMS, &ask);
    const uint64_t *at = arrivals(stream);
    assert_int_equal(stream->tokens_count, 8);
    samples_add(&h->joins, joins_ms(stream));
    samples_add(&h->gap, ms_between(at[0], at[1]));
    samples_add(&h->tail, (double)stream->timing.transfer_tail / 1e3);
    for (int t = 2; t < 8; t++)
        samples_add(&h->step, ms_between(at[t - 1], at[t]));
}

static void handover_figures(const char *link, const char *load, struct handovers *h)
{
    char name[64];
    snprintf(name, sizeof name, "handover_%s_%s_joins", link, load);
    figures_of(name, &h->joins);
    snprintf(name, sizeof name, "handover_%s_%s_gap", link, load);
    figures_of(name, &h->gap);
    snprintf(name, sizeof name, "handover_%s_%s_step_p50_ms", link, load);
    figure(name, samples_at(&h->step, 0.5));
    snprintf(name, sizeof name, "handover_%s_%s_tail_p50_ms", link, load);
    figure(name, samples_at(&h->tail, 0.5));
    samples_free(&h->joins);
    samples_free(&h->gap);
    samples_free(&h->tail);
    samples_free(&h->step);
}

static void handover_over(const char *link)
{
    char args[64];
    struct handovers h = {0}, warm = {0};
    snprintf(args, sizeof args, "--link %s", link);
    start_cluster(args, args);
    struct streams *s = streams_to(ALWAYS);
    for (int i = 0; i < WARM_UPS; i++)
        hand_over(s, &warm);
    for (int i = 0; i < HANDOVERS; i++)
        hand_over(s, &h);
    handover_figures(link, "idle", &h);
    streams_free(s);
    for (int done = 0; done < HANDOVERS;) {
        s = streams_to(ALWAYS);
        start_streams(s);
        for (; done < HANDOVERS && !one_ended(s); done++)
            hand_over(s, &h);
        streams_free(s);
        cluster_await_idle(bench.cluster);
    }
    handover_figures(link, "busy", &h);
    stop_cluster();
}

static void handover(void)
{
    handover_over("shm");
    handover_over("tcp");
}

/* ---- time to the first token ---- */

static void ttft(void)
{
    static const char *const names[] = {"ttft_disaggregated", "ttft_local"};
    struct samples ms[2] = {{0}, {0}};
    struct streams *s[2];
    start_cluster("--chunk 512", "--chunk 512");
    for (int way = ALWAYS; way <= NEVER; way++)
        s[way] = streams_to(way);
    for (int i = -WARM_UPS; i < TTFTS; i++)
        for (int way = ALWAYS; way <= NEVER; way++) {
            struct ask ask = new_ask(PROMPT, 4);
            const struct stream *stream = ask_once(s[way], 0, &ask);
            if (i >= 0)
                samples_add(&ms[way], ms_between(stream->submitted_ns, arrivals(stream)[0]));
        }
    for (int way = ALWAYS; way <= NEVER; way++) {
        figures_of(names[way], &ms[way]);
        streams_free(s[way]);
    }
    figure("ttft_added_p50_ms", samples_at(&ms[ALWAYS], 0.5) - samples_at(&ms[NEVER], 0.5));
    figure("ttft_added_min_ms", samples_at(&ms[ALWAYS], 0) - samples_at(&ms[NEVER], 0));
    samples_free(&ms[ALWAYS]);
    samples_free(&ms[NEVER]);
    stop_cluster();
}

/* ---- the router's CPU time ---- */

static void router(void)
{
    start_cluster("", "");
    struct streams *s = streams_to(ALWAYS);
    for (uint32_t i = 0; i < ROUTER_STREAMS; i++) {
        struct ask ask = new_ask(PROMPT_SHORT, ROUTER_TOKENS);
        streams_start(s, i, &ask);
    }
    streams_run_until(s, all_stream, s, "all streams run");
    const struct process *r = bench.cluster->process[ALWAYS];
    uint64_t began_ns = clock_now_ns(), cpu_before_ns = cpu_ns(r), tokens_before = s->tokens_count;
    streams_run(s);
    uint64_t tokens = s->tokens_count - tokens_before, spent_ns = cpu_ns(r) - cpu_before_ns;
    double seconds = (double)(clock_now_ns() - began_ns) / NS_PER_S;
    figure("router_cpu_per_token_us", (double)spent_ns / 1e3 / (double)tokens);
    figure("router_tokens_s", (double)tokens / seconds);
    streams_free(s);
    stop_cluster();
}

/* ---- inter-token latency under prefill ---- */

enum { UNDISTURBED = -1 };

/* `way`: how prompts are prefilled beside the streams, one after the other. */
static void itl_of(const char *name, int way)
{
    char full[64];
    struct samples ms = {0};
    struct stream *prompt = NULL;
    uint32_t prompts = 0;
    struct streams *s = streams_to(ALWAYS);
    start_streams(s);
    if (way != UNDISTURBED) turn_to(s, way);
    uint64_t from_ns = clock_now_ns();
    while (!one_ended(s)) {
        if (way != UNDISTURBED && (!prompt || prompt->ended)) {
            struct ask ask = new_ask(PROMPT_LONG, 4);
            prompts += prompt != NULL;
            prompt = streams_start(s, STREAMS, &ask);
        }
        streams_turn(s, 1000);
    }
    add_gaps(&ms, s, from_ns);
    figures_of(name, &ms);
    snprintf(full, sizeof full, "%s_prompts", name);
    if (way != UNDISTURBED) figure(full, prompts);
    samples_free(&ms);
    streams_free(s);
    cluster_await_idle(bench.cluster);
}

static void itl(void)
{
    start_cluster("", "");
    itl_of("itl_alone", UNDISTURBED);
    itl_of("itl_prefill_on_p", ALWAYS);
    itl_of("itl_prefill_on_d", NEVER);
    stop_cluster();
}

/* ---- */

static const struct section {
    const char *name;
    void (*run)(void);
} sections[] = {
    {"starts", starts}, {"handover", handover}, {"ttft", ttft}, {"router", router}, {"itl", itl},
};

static void show_logs(void)
{
    cluster_free(bench.cluster);
}

int main(int argc, char **argv)
{
    bool all = true, chosen[sizeof sections / sizeof sections[0]] = {false};
    bench.model = cluster_demo_model();
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--model") == 0 && i + 1 < argc) bench.model = argv[++i];
        if (strcmp(argv[i], "--first") == 0) bench.first_in_line = true;
        for (size_t n = 0; n < sizeof sections / sizeof sections[0]; n++)
            if (strcmp(argv[i], sections[n].name) == 0) chosen[n] = true, all = false;
    }
    atexit(show_logs);
    use_core(0);
    if (bench.first_in_line) setsid();
    weigh(getpid());
    for (size_t n = 0; n < sizeof sections / sizeof sections[0]; n++)
        if (all || chosen[n]) sections[n].run();
    figures_end();
    return 0;
}
