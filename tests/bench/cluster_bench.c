/* A whole cluster as its users meet it: a router, a prefill node P and a decode node D as processes on
 * loopback. P has one core, D another; the router and this program, which is the client, share P's.
 *
 *     cluster [--first] [SECTION...]
 *
 * --first (as root): before what else runs on the machine, so that the figures mean something while it
 * does. Sections, all unless told, on the demo model; those of s_ on the model of shape S, whose steps
 * are a hundred times as long:
 * - starts: from fork to the line "ready", with and without packed weights in the cache folder, and the
 *   CPU time of that.
 * - handover: of a prompt of 1024 tokens. "joined" is from the end of P's last layer until P knows that D
 *   has all of the KV and runs the sequence. "gap" is from token 0 to token 1 at the client: what of
 *   the hand-over a stream shows; it contains a decode step, which is told beside it. On a busy D eight
 *   other streams run, and the sequence waits for the end of a step of theirs.
 * - ttft: prompts of 1024 tokens on idle nodes, by turns prefilled on P and on D (which computes as
 *   many tokens a step); "added" is what the first way takes longer; "beside_prefill" is the first way
 *   without P's computing, which no other load on P's core can lengthen.
 * - router: CPU time of all its threads for each token, 32 streams with text over 32 connections.
 * - itl: of eight streams, alone, while prompts of 4096 tokens are prefilled on P, and on D.
 * - cancel: beside eight streams, from a request's cancel, at any point of its life, until neither node
 *   has a block of it; the two nodes' pages are asked for that again and again.
 * - door: beside eight streams and a prompt of 4096 tokens, from a request to the word that it was
 *   accepted, or refused because as many as may are there.
 * - prefix: time to the first token of prompts that P has computed before, of several lengths: cold,
 *   with their KV in P's pool, and read from a disk (disk_cold: after the kernel has forgotten its files) and
 *   from Redis (left out where there is no redis-server) after the pool has given it away. "found" is the share of their whole blocks that
 *   was not computed; "of_cold" compares the longest; "wins_from_tokens" is the length from which on a tier
 *   is faster than computing, 0: none. */
#include "tests/unit/testing.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/rng.h"
#include "tests/bench/cores.h"
#include "tests/bench/figures.h"
#include "tests/bench/shapes.h"
#include "tests/e2e/cluster.h"
#include "tests/e2e/page.h"
#include "tests/e2e/streams.h"
#include "tests/unit/redis_rig.h"
#include "tests/unit/scratch.h"

enum {
    PROMPT = 1024,
    PROMPT_LONG = 4096,
    PROMPT_SHORT = 64,
    STREAMS = 8,
    STARTS = 7,
    ROUTER_STREAMS = 32,
    ROUTER_TOKENS = 600,
    TRIES = 200,
};

/* How much of everything: what takes a second in all on the one model takes minutes on the other. */
struct amounts {
    const char *prefix; /* of the figures' names */
    const char *(*model)(void);
    bool large; /* and random: no tokenizer, less is measured, packed weights are kept */
    uint32_t warm_ups, handovers, ttfts, stream_tokens, itl_rounds;
};
static const struct amounts demo = {.prefix = "",
                                    .model = cluster_demo_model,

                                    .warm_ups = 4,
                                    .handovers = 200,
                                    .ttfts = 60,
                                    .stream_tokens = 1500,
                                    .itl_rounds = 5};
static const struct amounts shape_s = {.prefix = "s_",
                                       .model = shape_s_model,
                                       .large = true,
                                       .warm_ups = 1,
                                       .handovers = 4,
                                       .ttfts = 3,
                                       .stream_tokens = 300,
                                       .itl_rounds = 1};

static struct bench {
    const struct amounts *amounts;
    uint32_t prompts_made;
    uint32_t prompt[PROMPT_LONG];
    struct cluster *cluster;
    bool first_in_line;
} bench;

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return ((double)to_ns - (double)from_ns) / NS_PER_MS;
}

static void tell(const char *name, const char *rest, double value)
{
    char full[96];
    snprintf(full, sizeof full, "%s%s%s", bench.amounts->prefix, name, rest);
    figure(full, value);
}

static void tell_all(const char *name, struct samples *ms)
{
    tell(name, "_p50_ms", samples_at(ms, 0.5));
    tell(name, "_p99_ms", samples_at(ms, 0.99));
}

/* ---- the cluster ---- */

static struct process *start_node(enum program program, const char *args)
{
    char all[1024];
    int size = snprintf(all, sizeof all, "%s --model %s", args, bench.amounts->model());
    if (bench.amounts->large)
        snprintf(all + size, sizeof all - (size_t)size, " --kv-bytes 1G --cache-dir %s",
                 shapes_cache());
    cores_use(program == PROGRAM_DECODE);
    struct process *p = cluster_spawn(bench.cluster, program, all);
    cores_put_first(p->pid);
    cores_use(0);
    process_await_ready(p);
    return p;
}

/* Two routers over the same nodes: one always hands over, the other one lets D prefill. */
enum { ALWAYS, NEVER };

static void new_cluster(void)
{
    bench.cluster = cluster_new(bench.amounts->large ? NULL : bench.amounts->model());
    bench.cluster->apart = bench.first_in_line;
}

static struct process *start_router(const char *args)
{
    struct process *p = cluster_router(bench.cluster, args);
    cores_put_first(p->pid);
    return p;
}

static void start_cluster(const char *prefill_args, const char *decode_args)
{
    new_cluster();
    const struct process *asked = start_router("--disaggregate always");
    start_router("--disaggregate never");
    snprintf(bench.cluster->addresses, sizeof bench.cluster->addresses, "%s", asked->clients);
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
                        .ignore_eos = true,
                        .no_text = bench.amounts->large};
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
        struct ask ask = new_ask(PROMPT_SHORT, bench.amounts->stream_tokens);
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
        tell(name, "", samples_at(&took[i], 0.5));
        snprintf(name, sizeof name, "%s_cpu_ms", started[i].name);
        tell(name, "", samples_at(&cpu[i], 0.5));
        samples_free(&took[i]);
        samples_free(&cpu[i]);
    }
}

/* ---- hand-over ---- */

/* One of the times that P tells; its word may come after the last of D's. */
static double told_ms(const struct stream *stream, const char *name)
{
    double ms = 0;
    while (ms == 0) {
        json_t *explained;
        const json_t *choice = cluster_explain(bench.cluster, stream->id, &explained);
        ms = json_real_value(json_object_get(json_object_get(choice, "timing_ms"), name));
        json_decref(explained);
    }
    return ms;
}

struct handovers {
    struct samples joined, gap, step;
};

static void hand_over(struct streams *s, struct handovers *h)
{
    struct ask ask = new_ask(PROMPT, 8);
    const struct stream *stream = ask_once(s, STREAMS, &ask);
    const uint64_t *at = arrivals(stream);
    assert_int_equal(stream->tokens_count, 8);
    samples_add(&h->joined, told_ms(stream, "transfer_tail"));
    samples_add(&h->gap, ms_between(at[0], at[1]));
    for (int t = 2; t < 8; t++)
        samples_add(&h->step, ms_between(at[t - 1], at[t]));
}

static void handover_figures(const char *link, const char *load, struct handovers *h)
{
    char name[64];
    snprintf(name, sizeof name, "handover_%s_%s_joined", link, load);
    tell_all(name, &h->joined);
    snprintf(name, sizeof name, "handover_%s_%s_gap", link, load);
    tell_all(name, &h->gap);
    snprintf(name, sizeof name, "handover_%s_%s", link, load);
    tell(name, "_step_p50_ms", samples_at(&h->step, 0.5));
    samples_free(&h->joined);
    samples_free(&h->gap);
    samples_free(&h->step);
}

static void handover_over(const char *link)
{
    char args[64];
    struct handovers h = {0}, warm = {0};
    snprintf(args, sizeof args, "--link %s", link);
    start_cluster(args, args);
    struct streams *s = streams_to(ALWAYS);
    for (int i = 0; i < (int)bench.amounts->warm_ups; i++)
        hand_over(s, &warm);
    for (int i = 0; i < (int)bench.amounts->handovers; i++)
        hand_over(s, &h);
    handover_figures(link, "idle", &h);
    streams_free(s);
    for (int done = 0; done < (int)bench.amounts->handovers;) {
        s = streams_to(ALWAYS);
        start_streams(s);
        for (; done < (int)bench.amounts->handovers && !one_ended(s); done++)
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
    if (!bench.amounts->large) handover_over("tcp");
}

/* ---- time to the first token ---- */

static void ttft(void)
{
    static const char *const names[] = {"ttft_disaggregated", "ttft_local"};
    struct samples ms[2] = {{0}, {0}}, beside = {0};
    struct streams *s[2];
    start_cluster("--chunk 512", "--chunk 512");
    for (int way = ALWAYS; way <= NEVER; way++)
        s[way] = streams_to(way);
    for (int i = -(int)bench.amounts->warm_ups; i < (int)bench.amounts->ttfts; i++)
        for (int way = ALWAYS; way <= NEVER; way++) {
            struct ask ask = new_ask(PROMPT, 4);
            const struct stream *stream = ask_once(s[way], 0, &ask);
            if (i < 0) continue;
            double took_ms = ms_between(stream->submitted_ns, arrivals(stream)[0]);
            samples_add(&ms[way], took_ms);
            if (way == ALWAYS) samples_add(&beside, took_ms - told_ms(stream, "prefill"));
        }
    for (int way = ALWAYS; way <= NEVER; way++) {
        tell_all(names[way], &ms[way]);
        streams_free(s[way]);
    }
    tell("ttft_added", "_p50_ms", samples_at(&ms[ALWAYS], 0.5) - samples_at(&ms[NEVER], 0.5));
    tell_all("ttft_beside_prefill", &beside);
    tell("ttft_added", "_min_ms", samples_at(&ms[ALWAYS], 0) - samples_at(&ms[NEVER], 0));
    samples_free(&ms[ALWAYS]);
    samples_free(&ms[NEVER]);
    samples_free(&beside);
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
    tell("router_cpu_per_token_us", "", (double)spent_ns / 1e3 / (double)tokens);
    tell("router_tokens_s", "", (double)tokens / seconds);
    streams_free(s);
    stop_cluster();
}

/* ---- inter-token latency under prefill ---- */

enum { UNDISTURBED = -1 };

/* `way`: how prompts are prefilled beside the streams, one after the other. */
static void itl_round(int way, struct samples *ms, struct samples *ttft_ms)
{
    struct stream *prompt = NULL;
    struct streams *s = streams_to(ALWAYS);
    start_streams(s);
    if (way != UNDISTURBED) turn_to(s, way);
    uint64_t from_ns = clock_now_ns();
    while (!one_ended(s)) {
        if (way != UNDISTURBED && (!prompt || prompt->ended)) {
            if (prompt) samples_add(ttft_ms, ms_between(prompt->submitted_ns, arrivals(prompt)[0]));
            struct ask ask = new_ask(PROMPT_LONG, 4);
            prompt = streams_start(s, STREAMS, &ask);
        }
        streams_turn(s, 1000);
    }
    add_gaps(ms, s, from_ns);
    streams_free(s);
    cluster_await_idle(bench.cluster);
}

static void itl_of(const char *name, int way)
{
    struct samples ms = {0}, ttft_ms = {0};
    for (uint32_t i = 0; i < bench.amounts->itl_rounds; i++)
        itl_round(way, &ms, &ttft_ms);
    tell_all(name, &ms);
    if (ttft_ms.count > 0) tell(name, "_ttft_p50_ms", samples_at(&ttft_ms, 0.5));
    samples_free(&ms);
    samples_free(&ttft_ms);
}

static void itl(void)
{
    start_cluster("", "");
    itl_of("itl_alone", UNDISTURBED);
    itl_of("itl_prefill_on_p", ALWAYS);
    if (!bench.amounts->large) itl_of("itl_prefill_on_d", NEVER);
    stop_cluster();
}

/* ---- promises in milliseconds ---- */

/* Blocks of a node that are neither free nor only cached, from its page. */
static uint32_t blocks_used(const struct process *node)
{
    static const char gauge[] = "tandem_node_kv_blocks{state=\"";
    static char text[PAGE_MAX];
    uint32_t used = 0;
    assert_int_equal(page_get(node->metrics, "/metrics", text), 200);
    for (const char *at = text; (at = strstr(at, gauge));) {
        at += sizeof gauge - 1;
        if (strncmp(at, "free\"", 5) == 0 || strncmp(at, "cached\"", 7) == 0) continue;
        used += (uint32_t)strtoul(strchr(at, ' '), NULL, 10);
    }
    return used;
}

/* What eight streams may hold by now, with the tokens that are still on their way to this program. */
static uint32_t blocks_of_streams(const struct streams *s)
{
    uint32_t blocks = 0;
    for (uint32_t i = 0; i < STREAMS; i++)
        blocks += (PROMPT_SHORT + s->stream[i]->tokens_count) / 16 + 2;
    return blocks;
}

/* Long enough into its life that it is somewhere else each time: in P's queue, computed, on its way to
 * D, decoded. */
static void let_live(struct streams *s, struct stream *stream, uint64_t ms)
{
    uint64_t until_ns = clock_now_ns() + ms * NS_PER_MS;
    while (!stream->accepted || clock_now_ns() < until_ns)
        streams_turn(s, 1);
}

/* From the word of the client until no block on either node is the request's any more. */
static void cancel_once(struct streams *s, uint32_t try, struct samples *ms)
{
    struct process *p = cluster_process(bench.cluster, "p0"),
                   *d = cluster_process(bench.cluster, "d0");
    struct ask ask = new_ask(PROMPT, 1000);
    struct stream *stream = streams_start(s, STREAMS, &ask);
    let_live(s, stream, try * 7 % 50);
    uint64_t began_ns = clock_now_ns(), gone_ns;
    tandem_cancel(stream->request);
    do {
        streams_turn(s, 0);
        gone_ns = clock_now_ns();
    } while (blocks_used(p) > 0 || blocks_used(d) > blocks_of_streams(s));
    samples_add(ms, ms_between(began_ns, gone_ns));
    while (!stream->ended)
        streams_turn(s, 1000);
}

static void cancel(void)
{
    struct samples ms = {0};
    start_cluster("--metrics 127.0.0.1:0", "--metrics 127.0.0.1:0");
    while (ms.count < TRIES) {
        struct streams *s = streams_to(ALWAYS);
        start_streams(s);
        for (; ms.count < TRIES && !one_ended(s);)
            cancel_once(s, ms.count, &ms);
        streams_free(s);
        cluster_await_idle(bench.cluster);
    }
    tell_all("cancel_to_memory_back", &ms);
    tell("cancel_to_memory_back", "_max_ms", samples_at(&ms, 1));
    samples_free(&ms);
    stop_cluster();
}

/* From the call until the cluster says yes or no; one that is let in is not waited for. */
static void knock(struct streams *s, bool welcome, struct samples *ms)
{
    struct ask ask = new_ask(PROMPT_SHORT, 1);
    struct stream *stream = streams_start(s, STREAMS + 1, &ask);
    while (!stream->accepted && !stream->ended)
        streams_turn(s, 1000);
    samples_add(ms, ms_between(stream->submitted_ns, clock_now_ns()));
    assert_int_equal(stream->accepted, welcome);
    if (welcome) tandem_cancel(stream->request);
    while (!stream->ended)
        streams_turn(s, 1000);
    if (!welcome) assert_int_equal(stream->choice[0].status, TANDEM_OVERLOADED);
}

static void knock_beside_streams(bool welcome, struct samples *ms)
{
    struct stream *prompt = NULL;
    struct streams *s = streams_to(0);
    start_streams(s);
    while (ms->count < TRIES && !one_ended(s)) {
        if (!prompt || prompt->ended) {
            struct ask ask = new_ask(PROMPT_LONG, 1);
            prompt = streams_start(s, STREAMS, &ask);
            while (!prompt->accepted)
                streams_turn(s, 1000);
        }
        knock(s, welcome, ms);
        streams_turn(s, 1);
    }
    streams_free(s);
    cluster_await_idle(bench.cluster);
}

/* Eight streams and a prompt of 4096 tokens run: that is as many as may be there, or one less. */
static void door_of(const char *name, bool welcome)
{
    char args[64];
    struct samples ms = {0};
    new_cluster();
    snprintf(args, sizeof args, "--disaggregate always --requests-max %d",
             STREAMS + 1 + (int)welcome);
    start_router(args);
    start_node(PROGRAM_PREFILL, "");
    start_node(PROGRAM_DECODE, "");
    cluster_await_nodes(bench.cluster);
    while (ms.count < TRIES)
        knock_beside_streams(welcome, &ms);
    tell_all(name, &ms);
    tell(name, "_max_ms", samples_at(&ms, 1));
    samples_free(&ms);
    stop_cluster();
}

static void door(void)
{
    door_of("door_accepted", true);
    door_of("door_refused", false);
}

/* ---- prefixes that were computed before ---- */

static const uint32_t lengths[] = {64, 128, 256, 512, 1024, 2048};
enum { LENGTHS = sizeof lengths / sizeof lengths[0], LONGEST = 2048 };

/* A pool of P that two of the longest prompts fill, so that they evict all others; while the first of them is computed
 * the one that was asked stays, and is stored to its end. */
#define LITTLE_POOL "--chunk 512 --blocks 260 --evict lru "

static double first_ms(const struct stream *stream)
{
    return ms_between(stream->submitted_ns, arrivals(stream)[0]);
}

static void evict_all(struct streams *s)
{
    for (int i = 0; i < 2; i++) {
        struct ask ask = new_ask(LONGEST, 1);
        ask_once(s, 0, &ask);
    }
}

/* What becomes of a prompt before it is asked again. */
struct between {
    bool evicts;         /* it leaves the pool */
    const char *forgets; /* the kernel forgets the files in this directory; NULL: it does not */
};

/* Lets go of what the page cache has of a directory's files. */
static void forget_files(const char *where)
{
    DIR *dir = opendir(where);
    CHECK(dir);
    for (struct dirent *d; (d = readdir(dir));) {
        int fd = openat(dirfd(dir), d->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) continue;
        fdatasync(fd);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
    closedir(dir);
}

/* Of each length: asked, perhaps evicted and forgotten, asked again. cold_ms: of the first time. */
static void prefixes_over(const char *name, const char *prefill_args, struct between between,
                          double cold_ms[LENGTHS], double again_ms[LENGTHS])
{
    uint64_t found = 0, whole = 0;
    uint32_t rounds = bench.amounts->ttfts / 6 + 1;
    start_cluster(prefill_args, "--chunk 512");
    for (uint32_t n = 0; n < LENGTHS; n++) {
        struct samples cold = {0}, again = {0};
        char rest[64];
        struct streams *s = streams_to(0);
        for (uint32_t i = 0; i < rounds; i++) {
            struct ask ask = new_ask(lengths[n], 1);
            uint32_t number = bench.prompts_made;
            samples_add(&cold, first_ms(ask_once(s, 0, &ask)));
            if (between.evicts) evict_all(s);
            if (between.forgets) forget_files(between.forgets);
            uint32_t made = bench.prompts_made;
            bench.prompts_made = number - 1; /* the same tokens once more */
            ask = new_ask(lengths[n], 1);
            bench.prompts_made = made;
            const struct stream *stream = ask_once(s, 0, &ask);
            samples_add(&again, first_ms(stream));
            found += stream->cached_tokens;
            whole += (lengths[n] - 1) / 16 * 16;
        }
        streams_free(s);
        cold_ms[n] = samples_at(&cold, 0.5);
        again_ms[n] = samples_at(&again, 0.5);
        snprintf(rest, sizeof rest, "_%s_%u_p50_ms", name, lengths[n]);
        tell("prefix", rest, again_ms[n]);
        samples_free(&cold);
        samples_free(&again);
    }
    char rest[64];
    snprintf(rest, sizeof rest, "_%s_found_percent", name);
    tell("prefix", rest, 100.0 * (double)found / (double)whole);
    stop_cluster();
}

static void compare(const char *name, const double cold_ms[LENGTHS], const double again_ms[LENGTHS])
{
    char rest[64];
    uint32_t n = LENGTHS;
    while (n > 0 && again_ms[n - 1] < cold_ms[n - 1])
        n--;
    snprintf(rest, sizeof rest, "_%s_of_cold_percent", name);
    tell("prefix", rest, 100 * again_ms[LENGTHS - 1] / cold_ms[LENGTHS - 1]);
    snprintf(rest, sizeof rest, "_%s_wins_from_tokens", name);
    tell("prefix", rest, n < LENGTHS ? lengths[n] : 0);
}

static void prefix(void)
{
    double cold_ms[LENGTHS], again_ms[LENGTHS], unused_ms[LENGTHS];
    char folder[PATH_MAX], args[2 * PATH_MAX];
    struct redis_rig redis = {0};
    prefixes_over("pool", "--chunk 512", (struct between){0}, cold_ms, again_ms);
    for (uint32_t n = 0; n < LENGTHS; n++) {
        char rest[32];
        snprintf(rest, sizeof rest, "_cold_%u_p50_ms", lengths[n]);
        tell("prefix", rest, cold_ms[n]);
    }
    compare("pool", cold_ms, again_ms);
    scratch_make(folder);
    snprintf(args, sizeof args, LITTLE_POOL "--kv-disk %s/disk", folder);
    prefixes_over("disk", args, (struct between){.evicts = true}, unused_ms, again_ms);
    compare("disk", cold_ms, again_ms);
    char where[PATH_MAX + 8];
    snprintf(where, sizeof where, "%s/cold", folder);
    snprintf(args, sizeof args, LITTLE_POOL "--kv-disk %s", where);
    prefixes_over("disk_cold", args, (struct between){true, where}, unused_ms, again_ms);
    compare("disk_cold", cold_ms, again_ms);
    if (redis_rig_start(&redis, folder, NULL)) {
        snprintf(args, sizeof args, LITTLE_POOL "--kv-redis %s", redis.where);
        prefixes_over("redis", args, (struct between){.evicts = true}, unused_ms, again_ms);
        compare("redis", cold_ms, again_ms);
    }
    redis_rig_stop(&redis);
    scratch_remove(folder);
}

/* ---- */

static const struct section {
    const char *name;
    void (*run)(void);
    const struct amounts *amounts;
} sections[] = {
    {"starts", starts, &demo},  {"handover", handover, &demo}, {"ttft", ttft, &demo},
    {"router", router, &demo},  {"itl", itl, &demo},           {"s_handover", handover, &shape_s},
    {"s_ttft", ttft, &shape_s}, {"s_itl", itl, &shape_s},      {"cancel", cancel, &demo},
    {"door", door, &demo},      {"prefix", prefix, &demo},     {"s_prefix", prefix, &shape_s},
};
enum { SECTIONS = sizeof sections / sizeof sections[0] };

static void show_logs(void)
{
    cluster_free(bench.cluster);
}

int main(int argc, char **argv)
{
    bool all = true, chosen[SECTIONS] = {false};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--first") == 0) bench.first_in_line = true;
        for (size_t n = 0; n < SECTIONS; n++)
            if (strcmp(argv[i], sections[n].name) == 0) chosen[n] = true, all = false;
    }
    atexit(show_logs);
    cores_use(0);
    if (bench.first_in_line) cores_first_in_line();
    for (size_t n = 0; n < SECTIONS; n++) {
        if (!all && !chosen[n]) continue;
        bench.amounts = sections[n].amounts;
        sections[n].run();
    }
    figures_end();
    return 0;
}
