/* A cluster of real processes over one link between its nodes: streams compared with a single engine's, what a
 * hand-over takes, what pushing and receiving cost others, and how long it takes after a kill -9.
 *
 *     link_bench --link nccl|ipc|shm|tcp --shape 8b|1b|demo|toy --model DIR [--device cuda|cpu] [--gpus P,D]
 *     link_bench --shape 8b|1b|toy --make DIR                  writes the shape's model there
 *
 * JSON last; what was measured until then also when something goes wrong. Figures, LINK_ before each:
 * - streams_equal: greedy and seeded, all compared to the bit with those of one decode node alone, under
 *   --deterministic.
 * - setup_ms: what the first request of a pair waits longer for its second token than the next ones.
 * - handover_idle, handover_busy: from the end of P's last layer until P knows that D has all of the KV; the
 *   gap is from token 0 to token 1 at the client. On a busy D a batch of other streams runs.
 * - rate: KV of prompts that P still has in its cache, and D has not: they are sent and hardly computed.
 *   rate_told is what tandem status says of the link after that.
 * - prefill_slower: P computes the same prompts twice: D has nothing of them, and all is pushed; or D
 *   has kept them, and nothing is. P keeps nothing. The median of what the first way's computing takes longer.
 * - decode_slower: gaps between tokens of streams on D meanwhile, means of the first way and the second.
 * - decode_killed, prefill_killed: kill -9 of the D that decodes, of the P that computes, while there is
 *   another one. next_token: from the kill to the stream's next token. pair_again: from the start of a new
 *   process in its place to the end of the first hand-over of its pair. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "tests/bench/figures.h"
#include "tests/gpu/links.h"

static struct links links;

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return ((double)to_ns - (double)from_ns) / NS_PER_MS;
}

static const uint64_t *arrivals(const struct stream *stream)
{
    return stream->choice[0].arrived_ns;
}

static void tell(const char *name, double value)
{
    figure_print(value, "%s_%s", links.link, name);
}

static void not_measured(const char *name, const char *why)
{
    fprintf(stderr, "%s_%s: not measured: %s\n", links.link, name, why);
}

/* ---- streams compared ---- */

enum { COMPARED = 6 };

static struct streams *compared_streams(void)
{
    struct streams *s = streams_new(links.cluster->addresses);
    const uint32_t prompt[] = {links.shape->prompt_short, links.shape->prompt / 2,
                               links.shape->prompt};
    links.prompts_made = 0; /* the same prompts every time */
    for (uint32_t i = 0; i < COMPARED; i++) {
        struct ask ask = links_ask(&links, prompt[i / 2], links.shape->compared_tokens);
        ask.want_logprobs = true;
        if (i % 2 == 1) {
            ask.temperature = 0.8f;
            ask.top_p = 0.9f;
            ask.seed = i;
        }
        streams_start(s, i % 2, &ask);
    }
    streams_run(s);
    for (uint32_t i = 0; i < COMPARED; i++)
        stream_expect_done(s->stream[i]);
    return s;
}

static void compare(void)
{
    char args[64];
    links_open(&links, "");
    links_node(&links, PROGRAM_DECODE, "--deterministic");
    struct streams *wanted = compared_streams();
    links_close(&links);
    snprintf(args, sizeof args, "--deterministic --link %s", links.link);
    links_open(&links, "");
    const struct process *p = links_node(&links, PROGRAM_PREFILL, args);
    links_node(&links, PROGRAM_DECODE, args);
    struct streams *got = compared_streams();
    for (uint32_t i = 0; i < COMPARED; i++) {
        assert_string_equal(got->stream[i]->prefill_node, p->name);
        stream_expect_equal(got->stream[i], wanted->stream[i]);
    }
    assert_true(links_bytes(&links, p) > 0);
    tell("streams_equal", COMPARED);
    streams_free(got);
    streams_free(wanted);
    links_close(&links);
}

/* ---- one pair ---- */

static void setup(struct streams *s)
{
    enum { LATER = 5 };
    double first_ms = 0;
    struct samples later = {0};
    for (int i = 0; i <= LATER; i++) {
        struct ask ask = links_ask(&links, links.shape->prompt_short, 2);
        const struct stream *stream = links_ask_once(s, 0, &ask);
        double ms = ms_between(stream->submitted_ns, arrivals(stream)[1]);
        if (i == 0)
            first_ms = ms;
        else
            samples_add(&later, ms);
    }
    tell("setup_ms", first_ms - samples_at(&later, 0.5));
    samples_free(&later);
}

struct handovers {
    struct samples joined, gap;
};

static void hand_over(struct streams *s, struct handovers *h)
{
    struct ask ask = links_ask(&links, links.shape->prompt, 4);
    const struct stream *stream = links_ask_once(s, LINKS_STREAMS_MAX, &ask);
    const uint64_t *at = arrivals(stream);
    samples_add(&h->joined, links_told(&links, stream).tail_ms);
    samples_add(&h->gap, ms_between(at[0], at[1]));
}

static void tell_handovers(const char *load, struct handovers *h)
{
    static const struct {
        const char *name;
        double share;
    } ranks[] = {{"p50", 0.5}, {"p99", 0.99}};
    for (int i = 0; i < 2; i++) {
        figure_print(samples_at(&h->joined, ranks[i].share), "%s_handover_%s_%s_ms", links.link,
                     load, ranks[i].name);
        figure_print(samples_at(&h->gap, ranks[i].share), "%s_handover_%s_gap_%s_ms", links.link,
                     load, ranks[i].name);
    }
    samples_free(&h->joined);
    samples_free(&h->gap);
}

static void idle_handovers(struct streams *s)
{
    struct handovers h = {0};
    for (uint32_t i = 0; i < links.shape->rounds; i++)
        hand_over(s, &h);
    tell_handovers("idle", &h);
}

static void busy_handovers(void)
{
    struct handovers h = {0};
    for (uint32_t done = 0; done < links.shape->rounds;) {
        struct streams *s = streams_new(links.cluster->addresses);
        links_start_streams(&links, s);
        for (; done < links.shape->rounds && !links_one_ended(&links, s); done++)
            hand_over(s, &h);
        streams_free(s);
        cluster_await_idle(links.cluster);
    }
    tell_handovers("busy", &h);
}

/* ---- what pushing and receiving cost ---- */

enum way { MOVING, QUIET, WAYS };

struct costs {
    struct samples prefill[WAYS], gap[WAYS], ratio; /* of a prompt's two prefills */
    double bytes[WAYS];
};

/* Times between the events of the streams that brought tokens, all of it in the time given. */
static void add_gaps(struct samples *ms, const struct streams *s, uint64_t from_ns, uint64_t to_ns)
{
    for (uint32_t i = 0; i < links.shape->streams; i++) {
        const uint64_t *at = arrivals(s->stream[i]);
        for (uint32_t t = 1; t < s->stream[i]->tokens_count; t++)
            if (at[t - 1] >= from_ns && at[t] <= to_ns && at[t] > at[t - 1])
                samples_add(ms, ms_between(at[t - 1], at[t]));
    }
}

/* One prompt both ways. D keeps what it got when the request has ended. */
static void prompt_twice(struct streams *s, const struct process *p, struct costs *c,
                         bool streams_run)
{
    double prefill_ms[WAYS];
    struct ask ask = links_ask(&links, links.shape->prompt_long, 2);
    for (enum way way = MOVING; way < WAYS; way++) {
        double bytes = links_bytes(&links, p);
        uint64_t from_ns = clock_now_ns();
        const struct stream *stream = links_ask_once(s, LINKS_STREAMS_MAX, &ask);
        uint64_t to_ns = clock_now_ns();
        prefill_ms[way] = links_told(&links, stream).prefill_ms;
        samples_add(&c->prefill[way], prefill_ms[way]);
        c->bytes[way] += links_bytes(&links, p) - bytes;
        if (streams_run) add_gaps(&c->gap[way], s, from_ns, to_ns);
    }
    samples_add(&c->ratio, prefill_ms[MOVING] / prefill_ms[QUIET]);
}

static void costs_free(struct costs *c)
{
    for (enum way way = MOVING; way < WAYS; way++) {
        samples_free(&c->prefill[way]);
        samples_free(&c->gap[way]);
    }
    samples_free(&c->ratio);
}

static bool one_way_is_quiet(const struct costs *c)
{
    return c->bytes[MOVING] > 0 && c->bytes[QUIET] < c->bytes[MOVING] / 4;
}

static void prefill_slower(struct streams *s, const struct process *p)
{
    struct costs c = {0};
    for (uint32_t i = 0; i < links.shape->prompts; i++)
        prompt_twice(s, p, &c, false);
    tell("prefill_pushing_ms", samples_at(&c.prefill[MOVING], 0.5));
    tell("prefill_alone_ms", samples_at(&c.prefill[QUIET], 0.5));
    if (one_way_is_quiet(&c))
        tell("prefill_slower_percent", 100 * (samples_at(&c.ratio, 0.5) - 1));
    else
        not_measured("prefill_slower_percent", "the decode node had not kept the prompts");
    costs_free(&c);
}

static double mean(const struct samples *s)
{
    double sum = 0;
    for (uint32_t i = 0; i < s->count; i++)
        sum += s->value[i];
    return s->count ? sum / s->count : 0;
}

static void decode_slower(const struct process *p)
{
    struct costs c = {0};
    for (uint32_t done = 0; done < links.shape->prompts;) {
        struct streams *s = streams_new(links.cluster->addresses);
        links_start_streams(&links, s);
        for (; done < links.shape->prompts && !links_one_ended(&links, s); done++)
            prompt_twice(s, p, &c, true);
        streams_free(s);
        cluster_await_idle(links.cluster);
    }
    tell("itl_receiving_ms", mean(&c.gap[MOVING]));
    tell("itl_receiving_p99_ms", samples_at(&c.gap[MOVING], 0.99));
    tell("itl_not_receiving_ms", mean(&c.gap[QUIET]));
    tell("itl_not_receiving_p99_ms", samples_at(&c.gap[QUIET], 0.99));
    if (c.gap[QUIET].count > 0 && one_way_is_quiet(&c))
        tell("decode_slower_percent", 100 * (mean(&c.gap[MOVING]) / mean(&c.gap[QUIET]) - 1));
    else
        not_measured("decode_slower_percent", "the decode node had not kept the prompts");
    costs_free(&c);
}

static void one_pair(void)
{
    char args[64];
    links_open(&links, "");
    snprintf(args, sizeof args, "--link %s --prefix-cache=false", links.link);
    const struct process *p = links_node(&links, PROGRAM_PREFILL, args);
    snprintf(args, sizeof args, "--link %s", links.link);
    links_node(&links, PROGRAM_DECODE, args);
    struct streams *s = streams_new(links.cluster->addresses);
    setup(s);
    idle_handovers(s);
    streams_free(s);
    busy_handovers();
    s = streams_new(links.cluster->addresses);
    prefill_slower(s, p);
    streams_free(s);
    decode_slower(p);
    links_close(&links);
}

/* ---- rate ---- */

static void rate(struct streams *s, const struct process *p)
{
    struct samples gb_s = {0};
    struct ask ask = links_ask(&links, links.shape->prompt_long, 2);
    links_told(&links, links_ask_once(s, 0, &ask));
    for (uint32_t i = 0; i < links.shape->prompts; i++) {
        double bytes = links_bytes(&links, p);
        double ms = links_told(&links, links_ask_once(s, 0, &ask)).moving_ms;
        samples_add(&gb_s, (links_bytes(&links, p) - bytes) / ms / 1e6);
    }
    tell("rate_gb_s", samples_at(&gb_s, 0.5));
    tell("rate_best_gb_s", samples_at(&gb_s, 1));
    double told = links_told_rate(&links, p);
    if (told > 0)
        tell("rate_told_gb_s", told / 1e9);
    else
        not_measured("rate_told_gb_s", "the nodes have sent too little to tell one");
    samples_free(&gb_s);
}

/* ---- recovery ---- */

/* The longest wait for a token that came after then ended when it came. */
static double next_token_ms(const struct stream *stream, uint64_t killed_ns)
{
    const uint64_t *at = arrivals(stream);
    uint64_t longest_ns = 0, came_ns = 0;
    for (uint32_t t = 1; t < stream->tokens_count; t++)
        if (at[t] > killed_ns && at[t] - at[t - 1] > longest_ns) {
            longest_ns = at[t] - at[t - 1];
            came_ns = at[t];
        }
    return ms_between(killed_ns, came_ns);
}

static void pair_again(struct streams *s, struct process *left, enum program program,
                       const char *args)
{
    cluster_drain(links.cluster, left); /* so that the pair is the new node's */
    process_await_exit(left);
    uint64_t began_ns = clock_now_ns();
    const struct process *fresh = links_node(&links, program, args);
    uint64_t ready_ns = clock_now_ns();
    struct ask ask = links_ask(&links, links.shape->prompt_short, 2);
    const struct stream *stream = links_ask_once(s, 0, &ask);
    bool prefill = program == PROGRAM_PREFILL;
    assert_string_equal(prefill ? stream->prefill_node : stream->decode_node, fresh->name);
    links_told(&links, stream);
    const char *killed = prefill ? "prefill_killed" : "decode_killed";
    figure_print(ms_between(began_ns, ready_ns), "%s_%s_ready_again_ms", links.link, killed);
    figure_print(ms_between(began_ns, arrivals(stream)[1]), "%s_%s_pair_again_ms", links.link,
                 killed);
}

/* The name of the node that has the request's part; "" so far: none. */
static void part_of(const struct stream *stream, const char *role, char name[32])
{
    json_t *explained;
    const json_t *choice = cluster_explain(links.cluster, stream->id, &explained);
    const json_t *node = json_object_get(json_object_get(choice, "nodes"), role);
    snprintf(name, 32, "%s", json_is_string(node) ? json_string_value(node) : "");
    json_decref(explained);
}

static void kill_decode(struct streams *s, struct process *const d[2], const char *args)
{
    char name[32];
    struct ask ask = links_ask(&links, links.shape->prompt, links.shape->recovered_tokens);
    struct stream *stream = streams_start(s, 0, &ask);
    streams_until_tokens(stream, 4);
    part_of(stream, "decode", name);
    bool second = strcmp(name, d[1]->name) == 0;
    uint64_t killed_ns = clock_now_ns();
    process_kill(d[second]);
    streams_run(s);
    stream_expect_done(stream);
    assert_string_equal(stream->decode_node, d[!second]->name);
    tell("decode_killed_next_token_ms", next_token_ms(stream, killed_ns));
    pair_again(s, d[!second], PROGRAM_DECODE, args);
}

static bool is_prefilled(void *ctx)
{
    const struct stream *stream = ctx;
    char name[32] = "";
    if (stream->accepted) part_of(stream, "prefill", name);
    return name[0] != '\0';
}

static void kill_prefill(struct streams *s, struct process *const p[2], const char *args)
{
    char name[32];
    struct ask ask = links_ask(&links, links.shape->prompt_long, 4);
    struct stream *stream = streams_start(s, 0, &ask);
    streams_run_until(s, is_prefilled, stream, "the prompt is a prefill node's");
    part_of(stream, "prefill", name);
    bool second = strcmp(name, p[1]->name) == 0;
    uint64_t killed_ns = clock_now_ns();
    process_kill(p[second]);
    streams_run(s);
    stream_expect_done(stream);
    if (stream->attempts > 1)
        tell("prefill_killed_next_token_ms", ms_between(killed_ns, arrivals(stream)[0]));
    else
        not_measured("prefill_killed_next_token_ms", "the prompt was computed before the kill");
    pair_again(s, p[!second], PROGRAM_PREFILL, args);
}

static void rate_and_recovery(void)
{
    char args[64], quiet[96];
    struct process *p[2], *d[2];
    links_open(&links, "");
    snprintf(args, sizeof args, "--link %s", links.link);
    snprintf(quiet, sizeof quiet, "%s --prefix-cache=false", args);
    p[0] = links_node(&links, PROGRAM_PREFILL, args);
    d[0] = links_node(&links, PROGRAM_DECODE, quiet);
    struct streams *s = streams_new(links.cluster->addresses);
    rate(s, p[0]);
    d[1] = links_node(&links, PROGRAM_DECODE, quiet);
    kill_decode(s, d, quiet);
    p[1] = links_node(&links, PROGRAM_PREFILL, args);
    kill_prefill(s, p, args);
    streams_free(s);
    links_close(&links);
}

/* ---- */

static bool measures;

static void finish(void)
{
    cluster_free(links.cluster);
    if (measures) figures_end();
}

int main(int argc, char **argv)
{
    const char *make = NULL;
    bool right = argc % 2 == 1;
    links.device = "cuda";
    for (int i = 1; right && i < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (strcmp(name, "--link") == 0)
            links.link = value;
        else if (strcmp(name, "--shape") == 0)
            links.shape = links_shape_find(value);
        else if (strcmp(name, "--model") == 0)
            links.model = value;
        else if (strcmp(name, "--device") == 0)
            links.device = value;
        else if (strcmp(name, "--make") == 0)
            make = value;
        else if (strcmp(name, "--gpus") != 0 ||
                 sscanf(value, "%u,%u", &links.gpu[0], &links.gpu[1]) != 2)
            right = false;
    }
    if (right && links.shape && make && gpu_shape_find(links.shape->name)) {
        gpu_model_write(make, gpu_shape_find(links.shape->name));
        return 0;
    }
    if (!right || !links.shape || !links.link || !links.model) {
        fprintf(stderr,
                "usage: link_bench --link nccl|ipc|shm|tcp --shape 8b|1b|demo|toy --model DIR "
                "[--device cuda|cpu] [--gpus P,D], or link_bench --shape NAME --make DIR\n");
        return 2;
    }
    atexit(finish);
    measures = true;
    compare();
    one_pair();
    rate_and_recovery();
    return 0;
}
