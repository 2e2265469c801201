/* The router core alone: how many requests of 16 output tokens it takes through their lives a second on
 * one core, with nodes that answer at once, and how long its slowest inputs take.
 *
 * First prompts of 64 token ids for six nodes, 256 requests in the system. "coded" adds what the wire costs: each
 * message that it sends is encoded, each that it gets decoded. Then 2 to 256 nodes and prompts of 512 ids that begin with
 * one of 64 texts, each known to an eighth of the nodes, beside a million other cached blocks; "waiting": 10,000 requests
 * wait for memory, "free": every decode node has room; "tenants": they are of 40 tenants. "status" is what a client
 * that asks for the status costs then: it is told in as many turns of the loop. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/prefix_hash.h"
#include "common/rng.h"
#include "router/core.h"
#include "tests/bench/figures.h"

enum {
    CLIENT = 1,
    NODE_FIRST = 2,
    NODES_MAX = 256,
    SEQUENCES = 256,
    TOKENS = 16,
    PROMPT_MAX = 512,
    HEADS = 64,          /* texts that prompts begin with, */
    HEAD = 256,          /* of so many tokens, */
    HEAD_NODES_PART = 8, /* and one of so many nodes has each */
    INDEX_BLOCKS = 1 << 20,
    QUEUE = 1 << 16,
    TIMES_MAX = 1 << 22
};

/* Then what came until then is enough. */
#define SLOW_NS (5 * NS_PER_S)

struct shape {
    const char *name;
    uint32_t prefills, decodes;
    uint32_t prompt;
    uint32_t blocks; /* of a decode node */
    uint32_t live;   /* requests in the system */
    uint32_t tenants;
    bool cached, coded;
    uint64_t requests;
};

struct task { /* something that a node will say */
    uint32_t peer, decode;
    enum msg_kind after;
    struct job_key key;
    bool local;
    uint32_t cached_tokens; /* that it has of the prompt */
};
struct running {
    struct job_key key;
    uint32_t told, cached_tokens;
};
struct world {
    const struct shape *shape;
    struct router_core *core;
    uint64_t now, wake, messages, bytes, requests, tokens, submitted, status_bytes;
    struct envelope envelope[NODE_FIRST + NODES_MAX];
    struct task queue[QUEUE];
    uint32_t head, tail;
    struct running running[NODES_MAX][SEQUENCES];
    uint32_t running_count[NODES_MAX];
    uint32_t free_submits;
    uint32_t *times_ns, times_count; /* of its inputs */
    struct buf wire;
    struct arena arena;
};

static uint32_t nodes_of(const struct shape *s)
{
    return s->prefills + s->decodes;
}

static uint32_t first_decode(const struct world *w)
{
    return NODE_FIRST + w->shape->prefills;
}

static void put(struct world *w, struct task task)
{
    w->queue[w->tail++ % QUEUE] = task;
    CHECK(w->tail - w->head < QUEUE);
}

static bool knows(uint32_t peer, uint32_t head)
{
    return (head + peer) % HEAD_NODES_PART == 0;
}

static uint32_t cached_of(const struct world *w, uint32_t peer, const struct job *job)
{
    return w->shape->cached && w->shape->tenants == 0 && knows(peer, job->prompt[0]) ? HEAD : 0;
}

static void out_send(void *ctx, struct peer peer, const struct msg *m)
{
    struct world *w = ctx;
    w->messages++;
    if (w->shape->coded) {
        buf_clear(&w->wire);
        CHECK(msg_encode(m, &w->wire) == OK);
        w->bytes += w->wire.size;
    }
    switch (m->kind) {
    case MSG_WELCOME:
        w->envelope[peer.v].epoch = m->envelope.epoch;
        w->envelope[peer.v].to = m->envelope.from;
        break;
    case MSG_RESERVE: {
        const struct msg_reserve *r = &m->reserve;
        put(w, (struct task){peer.v, peer.v, MSG_RESERVE, r->job.key, r->local,
                             cached_of(w, peer.v, &r->job)});
        break;
    }
    case MSG_PREFILL: {
        const struct msg_prefill *p = &m->prefill;
        put(w, (struct task){peer.v, (uint32_t)p->ticket.hi, MSG_PREFILL, p->job.key, false,
                             cached_of(w, peer.v, &p->job)});
        break;
    }
    case MSG_ANSWER: w->status_bytes = m->answer.text_bytes; break;
    case MSG_OUTPUT: w->tokens += m->output.tokens_count; break;
    case MSG_DONE:
        CHECK(m->done.completion_tokens == TOKENS);
        w->requests++;
        w->free_submits++;
        break;
    default: break;
    }
}
static void out_wake(void *ctx, uint64_t when_ns)
{
    ((struct world *)ctx)->wake = when_ns;
}
static void out_expect(void *ctx, struct peer peer, struct id128 key)
{
    (void)ctx, (void)peer, (void)key;
}
static void out_forget(void *ctx, struct peer peer)
{
    (void)ctx, (void)peer;
}
static enum err out_tokenize(void *ctx, struct id128 job, const char *text, uint32_t bytes)
{
    (void)ctx, (void)job, (void)text, (void)bytes;
    return ERR_UNSUPPORTED;
}
static void out_left(void *ctx)
{
    (void)ctx;
}

static void feed(struct world *w, uint32_t peer, const struct msg *m)
{
    uint64_t began_ns = clock_now_ns();
    router_core_on_message(w->core, w->now, (struct peer){peer}, m);
    if (w->now >= w->wake) router_core_on_timer(w->core, w->now);
    if (w->times_count < TIMES_MAX)
        w->times_ns[w->times_count++] = (uint32_t)(clock_now_ns() - began_ns);
}

static void say(struct world *w, uint32_t peer, struct msg *m)
{
    struct msg decoded;
    m->envelope = w->envelope[peer];
    w->messages++;
    w->now += 5 * NS_PER_US;
    if (w->shape->coded) {
        buf_clear(&w->wire);
        CHECK(msg_encode(m, &w->wire) == OK);
        w->bytes += w->wire.size;
        arena_reset(&w->arena);
        CHECK(msg_decode(w->wire.data, w->wire.size, &w->arena, &decoded) == OK);
        m = &decoded;
    }
    feed(w, peer, m);
}

static void hello(struct world *w, uint32_t peer, enum role role)
{
    char name[16];
    static const char *const addresses[1] = {"tcp:127.0.0.1:1"};
    snprintf(name, sizeof name, "n%u", peer);
    struct msg m = {
        .kind = MSG_HELLO,
        .hello = {.role = role, .name = name, .host = "h", .device = "", .model = "", .pid = peer}};
    if (role != ROLE_CLIENT) {
        m.hello.model_fingerprint = (struct id128){1, 1};
        m.hello.geometry = (struct kv_geometry){2, 1, 8, 16, KV_LAYOUT_CPU, DTYPE_F32};
        m.hello.vocab = 1000;
        m.hello.context_max = 4096;
        m.hello.sequences_max = SEQUENCES;
        m.hello.window_tokens = SEQUENCES * 64;
        m.hello.blocks_total = w->shape->blocks;
        m.hello.addresses = addresses;
        m.hello.addresses_count = 1;
    }
    w->envelope[peer] = (struct envelope){.from = 1000 + peer};
    say(w, peer, &m);
}

static void make_prompt(uint32_t *tokens, uint32_t count, uint64_t n)
{
    uint32_t head = count > HEAD ? HEAD : 0;
    for (uint32_t i = 0; i < head; i++)
        tokens[i] = (uint32_t)(n % HEADS) + i % 7;
    for (uint32_t i = head; i < count; i++)
        tokens[i] = (uint32_t)(n >> 10 * (i % 4)) % 1000;
}

/* As many of the index's blocks as come to this node: of texts that it knows, others at random. */
static void tell_blocks(struct world *w, uint32_t peer)
{
    static uint64_t hashes[MSG_BLOCKS_MAX];
    static const uint32_t what[MSG_BLOCKS_MAX];
    uint32_t tokens[HEAD + 1], left = INDEX_BLOCKS / nodes_of(w->shape), number = 0, count = 0;
    for (uint32_t h = 0; h < HEADS; h++) {
        if (!knows(peer, h)) continue;
        make_prompt(tokens, HEAD + 1, h);
        prefix_hash_chain(0, tokens, HEAD / BLOCK_TOKENS, hashes + count);
        count += HEAD / BLOCK_TOKENS;
    }
    while (left > 0) {
        while (count < MSG_BLOCKS_MAX && count < left) {
            struct rng_block b = rng_draw(peer, number, count);
            hashes[count++] = (uint64_t)b.word[0] << 32 | b.word[1];
        }
        left -= count;
        struct msg m = {.kind = MSG_BLOCKS,
                        .blocks = {++number, false, hashes, what, count, count}};
        say(w, peer, &m);
        count = 0;
    }
}

static void submit(struct world *w)
{
    static uint32_t prompt[PROMPT_MAX];
    char tenant[16] = "";
    if (w->shape->tenants > 0)
        snprintf(tenant, sizeof tenant, "t%u", (uint32_t)(w->submitted % w->shape->tenants));
    make_prompt(prompt, w->shape->prompt, w->submitted++);
    struct msg m = {.kind = MSG_SUBMIT,
                    .submit = {.ref = 1,
                               .tokens = prompt,
                               .tokens_count = w->shape->prompt,
                               .choices = 1,
                               .tokens_max = TOKENS,
                               .tenant = tenant,
                               .sampling = {.top_p = 1, .repetition_penalty = 1}}};
    say(w, CLIENT, &m);
}

static void do_task(struct world *w, const struct task *t)
{
    uint32_t d = t->decode - first_decode(w);
    if (t->after == MSG_RESERVE) {
        w->running[d][w->running_count[d]++] =
            (struct running){t->key, t->local ? 0 : UINT32_MAX, t->cached_tokens};
        struct msg m = {.kind = MSG_RESERVED,
                        .reserved = {t->key, {t->peer, t->key.request.lo | 1}, t->cached_tokens}};
        say(w, t->peer, &m);
        return;
    }
    struct msg first = {.kind = MSG_FIRST,
                        .first = {t->key,
                                  0,
                                  {.token = 5, .logprob = NAN},
                                  .cached_tokens = t->cached_tokens,
                                  .compute_us = 500}};
    say(w, t->peer, &first);
    struct msg done = {
        .kind = MSG_PREFILLED,
        .prefilled = {.key = t->key, .link = "tcp", .cached_tokens = t->cached_tokens}};
    say(w, t->peer, &done);
    for (uint32_t i = 0; i < w->running_count[d]; i++)
        if (job_key_equal(w->running[d][i].key, t->key)) w->running[d][i].told = 0;
}

/* One step of a decode node: a token for each of its sequences. */
static void step(struct world *w, uint32_t d)
{
    static struct token_run runs[SEQUENCES];
    static const struct token_info token = {.token = 5, .logprob = NAN};
    struct msg m = {.kind = MSG_TOKENS, .tokens = {runs, 0}};
    for (uint32_t i = 0; i < w->running_count[d]; i++) {
        struct running *r = &w->running[d][i];
        if (r->told == UINT32_MAX) continue;
        runs[m.tokens.runs_count++] = (struct token_run){r->key, r->told++, &token, 1};
    }
    if (m.tokens.runs_count == 0) return;
    say(w, first_decode(w) + d, &m);
    for (uint32_t i = 0; i < w->running_count[d]; i++) {
        struct running *r = &w->running[d][i];
        if (r->told != TOKENS) continue;
        struct msg f = {.kind = MSG_FINISHED,
                        .finished = {.key = r->key,
                                     .finish = FINISH_LENGTH,
                                     .tokens_count = TOKENS,
                                     .cached_tokens = r->cached_tokens}};
        *r = w->running[d][--w->running_count[d]];
        i--;
        say(w, first_decode(w) + d, &f);
    }
}

static void heartbeats(struct world *w)
{
    uint32_t blocks = w->shape->blocks;
    struct msg m = {.kind = MSG_HEARTBEAT,
                    .heartbeat.load = {.blocks_total = blocks, .blocks_free = blocks}};
    for (uint32_t n = CLIENT; n < NODE_FIRST + nodes_of(w->shape); n++)
        say(w, n, &m);
}

static void one_round(struct world *w, uint64_t *beats)
{
    while (w->free_submits > 0) {
        w->free_submits--;
        submit(w);
    }
    while (w->head != w->tail) {
        struct task t = w->queue[w->head++ % QUEUE];
        do_task(w, &t);
    }
    for (uint32_t d = 0; d < w->shape->decodes; d++)
        step(w, d);
    if (w->now / (100 * NS_PER_MS) == *beats) return;
    *beats = w->now / (100 * NS_PER_MS);
    heartbeats(w);
}

static struct world *open_world(const struct shape *shape)
{
    struct world *w = mem_new(sizeof *w);
    CHECK(w && (w->times_ns = mem_array(TIMES_MAX, sizeof *w->times_ns)));
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    const struct router_out out = {w,          out_send,     out_wake, out_expect,
                                   out_forget, out_tokenize, out_left};
    config.name = "r";
    config.lifeline_address = "";
    config.incarnation = 1;
    config.session.lifeline_ns = 0;
    config.requests_max = UINT32_MAX;
    config.queued_tokens_max = UINT64_MAX;
    if (!shape->cached) config.disaggregate = DISAGGREGATE_ALWAYS;
    w->shape = shape;
    w->now = NS_PER_S;
    w->free_submits = shape->live;
    CHECK(router_core_new(&w->core, &config, &out) == OK);
    hello(w, CLIENT, ROLE_CLIENT);
    for (uint32_t i = 0; i < nodes_of(shape); i++)
        hello(w, NODE_FIRST + i, i < shape->prefills ? ROLE_PREFILL : ROLE_DECODE);
    for (uint32_t i = 0; shape->cached && i < nodes_of(shape); i++)
        tell_blocks(w, NODE_FIRST + i);
    return w;
}

/* Of this thread: others on the machine do not count. */
static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static int compare_times(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* `tandem status`: in how many turns of the loop it is made, and how long they take. */
static void ask_status(struct world *w)
{
    struct msg m = {.kind = MSG_QUERY, .query = {1, QUERY_STATUS, ""}};
    w->times_count = 0;
    for (say(w, CLIENT, &m); !w->status_bytes;) {
        uint64_t began_ns = clock_now_ns();
        router_core_on_timer(w->core, w->now);
        w->times_ns[w->times_count++] = (uint32_t)(clock_now_ns() - began_ns);
    }
    const char *name = w->shape->name;
    double all_us = 0;
    for (uint32_t i = 0; i < w->times_count; i++)
        all_us += w->times_ns[i] / 1e3;
    qsort(w->times_ns, w->times_count, sizeof *w->times_ns, compare_times);
    figure_print(w->times_ns[w->times_count - 1] / 1e3, "%s_status_longest_us", name);
    figure_print(all_us, "%s_status_us", name);
    figure_print((double)w->times_count, "%s_status_turns", name);
    figure_print((double)w->status_bytes, "%s_status_bytes", name);
}

static void run(const struct shape *shape)
{
    struct world *w = open_world(shape);
    uint64_t beats = 0;
    if (shape->cached) one_round(w, &beats); /* all are in, those with room are placed */
    uint64_t first = w->requests, tokens = w->tokens, messages = w->messages;
    w->times_count = 0;
    uint64_t began_ns = cpu_ns();
    while (w->requests < first + shape->requests && cpu_ns() - began_ns < SLOW_NS)
        one_round(w, &beats);
    double seconds = (double)(cpu_ns() - began_ns) / 1e9;
    double requests = (double)(w->requests - first);
    figure_print(requests / seconds, "%s_requests_per_s", shape->name);
    qsort(w->times_ns, w->times_count, sizeof *w->times_ns, compare_times);
    if (shape->cached) {
        figure_print(w->times_ns[w->times_count / 2] / 1e3, "%s_input_p50_us", shape->name);
        figure_print(w->times_ns[w->times_count / 1000 * 999] / 1e3, "%s_input_p999_us",
                     shape->name);
        ask_status(w);
    } else {
        figure_print(seconds * 1e6 / (double)(w->tokens - tokens), "%s_us_per_token", shape->name);
        figure_print((double)(w->messages - messages) / requests, "%s_messages_per_request",
                     shape->name);
    }
    router_core_free(w->core);
    buf_fini(&w->wire);
    arena_fini(&w->arena);
    mem_free(w->times_ns);
    mem_free(w);
}

/* Room for 64 sequences on a decode node, and a bit that is of no use. */
#define TIGHT (64 * (512 / 16 + 1) + 16)
#define LARGE (1 << 16)

int main(int argc, char **argv)
{
    static const struct shape shapes[] = {
        {"core", 2, 4, 64, LARGE, 256, 0, false, false, 100000},
        {"coded", 2, 4, 64, LARGE, 256, 0, false, true, 50000},
        {"free_of_2", 1, 1, 512, LARGE, 64, 0, true, false, 20000},
        {"free_of_8", 4, 4, 512, LARGE, 256, 0, true, false, 20000},
        {"free_of_64", 32, 32, 512, LARGE, 2048, 0, true, false, 20000},
        {"free_of_256", 128, 128, 512, LARGE, 8192, 0, true, false, 20000},
        {"waiting_of_2", 1, 1, 512, TIGHT, 10064, 0, true, false, 20000},
        {"waiting_of_8", 4, 4, 512, TIGHT, 10256, 0, true, false, 20000},
        {"waiting_of_64", 32, 32, 512, TIGHT, 12048, 0, true, false, 20000},
        {"waiting_of_256", 128, 128, 512, TIGHT, 18192, 0, true, false, 20000},
        {"tenants_of_64", 32, 32, 512, TIGHT, 12048, 40, true, false, 20000},
        {"tenants_of_256", 128, 128, 512, TIGHT, 18192, 40, true, false, 20000},
    };
    const char *only = argc > 1 ? argv[1] : ""; /* those of which the names begin so */
    log_setup(LOG_WARN, NULL);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strncmp(shapes[i].name, only, strlen(only)) == 0) run(&shapes[i]);
    figures_end();
    return 0;
}
