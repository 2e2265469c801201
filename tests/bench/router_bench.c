/* The router core alone: how many requests of 16 output tokens it takes through their lives a second on
 * one core, with nodes that answer at once. Prompts are 64 token ids; 256 requests are in the system.
 * "coded" adds what the wire costs: each message that it sends is encoded, each that it gets decoded. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "router/core.h"

enum {
    CLIENT = 1,
    NODE_FIRST = 2,
    PREFILLS = 2,
    DECODES = 4,
    NODES = PREFILLS + DECODES,
    LIVE = 256,
    TOKENS = 16,
    PROMPT = 64,
    QUEUE = 1 << 14,
};

struct task { /* something that a node will say */
    uint32_t peer;
    enum msg_kind after;
    struct job_key key;
};
struct running {
    struct job_key key;
    uint32_t told;
};
struct world {
    struct router_core *core;
    bool coded;
    uint64_t now, wake, messages, bytes, requests, tokens;
    struct envelope envelope[NODE_FIRST + NODES];
    struct task queue[QUEUE];
    uint32_t head, tail;
    struct running running[DECODES][LIVE];
    uint32_t running_count[DECODES];
    uint32_t free_submits;
    struct buf wire;
    struct arena arena;
};

static void put(struct world *w, uint32_t peer, enum msg_kind after, struct job_key key)
{
    w->queue[w->tail++ % QUEUE] = (struct task){peer, after, key};
    CHECK(w->tail - w->head < QUEUE);
}

static void out_send(void *ctx, struct peer peer, const struct msg *m)
{
    struct world *w = ctx;
    w->messages++;
    if (w->coded) {
        buf_clear(&w->wire);
        CHECK(msg_encode(m, &w->wire) == OK);
        w->bytes += w->wire.size;
    }
    switch (m->kind) {
    case MSG_WELCOME:
        w->envelope[peer.v].epoch = m->envelope.epoch;
        w->envelope[peer.v].to = m->envelope.from;
        break;
    case MSG_RESERVE: put(w, peer.v, MSG_RESERVE, m->reserve.job.key); break;
    case MSG_PREFILL: put(w, peer.v, MSG_PREFILL, m->prefill.job.key); break;
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

static void say(struct world *w, uint32_t peer, struct msg *m)
{
    struct msg decoded;
    m->envelope = w->envelope[peer];
    w->messages++;
    w->now += 500;
    if (w->coded) {
        buf_clear(&w->wire);
        CHECK(msg_encode(m, &w->wire) == OK);
        w->bytes += w->wire.size;
        arena_reset(&w->arena);
        CHECK(msg_decode(w->wire.data, w->wire.size, &w->arena, &decoded) == OK);
        m = &decoded;
    }
    router_core_on_message(w->core, w->now, (struct peer){peer}, m);
    if (w->now >= w->wake) router_core_on_timer(w->core, w->now);
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
        m.hello.sequences_max = LIVE;
        m.hello.window_tokens = LIVE * PROMPT;
        m.hello.blocks_total = 1 << 16;
        m.hello.addresses = addresses;
        m.hello.addresses_count = 1;
    }
    w->envelope[peer] = (struct envelope){.from = 1000 + peer};
    say(w, peer, &m);
}

static void submit(struct world *w)
{
    static uint32_t prompt[PROMPT];
    struct msg m = {.kind = MSG_SUBMIT,
                    .submit = {.ref = 1,
                               .tokens = prompt,
                               .tokens_count = PROMPT,
                               .choices = 1,
                               .tokens_max = TOKENS,
                               .sampling = {.top_p = 1, .repetition_penalty = 1}}};
    say(w, CLIENT, &m);
}

static void do_task(struct world *w, const struct task *t)
{
    if (t->after == MSG_RESERVE) {
        uint32_t d = t->peer - NODE_FIRST - PREFILLS;
        w->running[d][w->running_count[d]++] = (struct running){t->key, UINT32_MAX};
        struct msg m = {.kind = MSG_RESERVED, .reserved = {t->key, {7, t->key.request.lo | 1}, 0}};
        say(w, t->peer, &m);
        return;
    }
    struct msg first = {.kind = MSG_FIRST, .first = {t->key, 0, {.token = 5, .logprob = NAN}}};
    say(w, t->peer, &first);
    struct msg done = {.kind = MSG_PREFILLED, .prefilled = {.key = t->key, .link = "tcp"}};
    say(w, t->peer, &done);
    for (uint32_t d = 0; d < DECODES; d++)
        for (uint32_t i = 0; i < w->running_count[d]; i++)
            if (job_key_equal(w->running[d][i].key, t->key)) w->running[d][i].told = 0;
}

/* One step of a decode node: a token for each of its sequences. */
static void step(struct world *w, uint32_t d)
{
    static struct token_run runs[LIVE];
    static const struct token_info token = {.token = 5, .logprob = NAN};
    struct msg m = {.kind = MSG_TOKENS, .tokens = {runs, 0}};
    for (uint32_t i = 0; i < w->running_count[d]; i++) {
        struct running *r = &w->running[d][i];
        if (r->told == UINT32_MAX) continue;
        runs[m.tokens.runs_count++] = (struct token_run){r->key, r->told++, &token, 1};
    }
    if (m.tokens.runs_count == 0) return;
    say(w, NODE_FIRST + PREFILLS + d, &m);
    for (uint32_t i = 0; i < w->running_count[d]; i++) {
        struct running *r = &w->running[d][i];
        if (r->told != TOKENS) continue;
        struct msg f = {
            .kind = MSG_FINISHED,
            .finished = {.key = r->key, .finish = FINISH_LENGTH, .tokens_count = TOKENS}};
        *r = w->running[d][--w->running_count[d]];
        i--;
        say(w, NODE_FIRST + PREFILLS + d, &f);
    }
}

static void heartbeats(struct world *w)
{
    struct msg m = {.kind = MSG_HEARTBEAT,
                    .heartbeat.load = {.blocks_total = 1 << 16, .blocks_free = 1 << 16}};
    for (uint32_t n = CLIENT; n < NODE_FIRST + NODES; n++)
        say(w, n, &m);
}

struct figures {
    double requests_per_s, messages_per_request, us_per_token;
};

static struct figures run(bool coded, uint64_t requests)
{
    struct world *w = mem_new(sizeof *w);
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    const struct router_out out = {w,          out_send,     out_wake, out_expect,
                                   out_forget, out_tokenize, out_left};
    CHECK(w);
    config.name = "r";
    config.lifeline_address = "";
    config.incarnation = 1;
    config.session.lifeline_ns = 0;
    config.disaggregate = DISAGGREGATE_ALWAYS;
    w->coded = coded;
    w->now = NS_PER_S;
    w->free_submits = LIVE;
    CHECK(router_core_new(&w->core, &config, &out) == OK);
    hello(w, CLIENT, ROLE_CLIENT);
    for (uint32_t i = 0; i < NODES; i++)
        hello(w, NODE_FIRST + i, i < PREFILLS ? ROLE_PREFILL : ROLE_DECODE);
    uint64_t began_ns = clock_now_ns(), beats = 0;
    while (w->requests < requests) {
        while (w->free_submits > 0) {
            w->free_submits--;
            submit(w);
        }
        while (w->head != w->tail) {
            struct task t = w->queue[w->head++ % QUEUE];
            do_task(w, &t);
        }
        for (uint32_t d = 0; d < DECODES; d++)
            step(w, d);
        if (w->now / (100 * NS_PER_MS) != beats) {
            beats = w->now / (100 * NS_PER_MS);
            heartbeats(w);
        }
    }
    double seconds = (double)(clock_now_ns() - began_ns) / 1e9;
    struct figures f = {(double)w->requests / seconds, (double)w->messages / (double)w->requests,
                        seconds * 1e6 / (double)w->tokens};
    router_core_free(w->core);
    buf_fini(&w->wire);
    arena_fini(&w->arena);
    mem_free(w);
    return f;
}

int main(void)
{
    run(false, 2000);
    struct figures plain = run(false, 100000), coded = run(true, 50000);
    printf("{\"core_requests_per_s\":%.0f,\"core_us_per_token\":%.3f,\"messages_per_request\":%.1f,"
           "\"coded_requests_per_s\":%.0f,\"coded_us_per_token\":%.3f}\n",
           plain.requests_per_s, plain.us_per_token, plain.messages_per_request,
           coded.requests_per_s, coded.us_per_token);
    return 0;
}
