#include "tests/unit/fake_router.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "proto/channel.h"
#include "proto/session.h"

enum { CLIENTS_MAX = 64, VALUES_MAX = 16384, OUTPUT_TOKENS = 3 };

struct client {
    struct peer peer;
    struct session session;
};

struct held { /* a request that waits to be cancelled */
    struct peer peer;
    struct id128 id;
    uint32_t choices;
};

struct fake_router {
    struct fake_script script;
    struct fake_seen seen;
    struct loop *loop;
    struct channel *channel;
    struct lifeline_server *lifelines;
    struct loop_timer *timer;
    struct loop_watch *stop_watch;
    int stop_fd;
    pthread_t thread;
    bool joined, stopping;
    struct client client[CLIENTS_MAX];
    uint32_t clients_count, outputs;
    uint64_t epochs, ids;
    struct held held[CLIENTS_MAX];
    uint32_t held_count;
    char address[128], lifeline[128];
};

static void say(struct fake_router *r, struct client *c, struct msg m)
{
    m.envelope = session_envelope(&c->session);
    if (r->channel) channel_send(r->channel, c->peer, &m);
}

static struct client *client_of(struct fake_router *r, struct peer peer)
{
    for (uint32_t i = 0; i < r->clients_count; i++)
        if (peer_equal(r->client[i].peer, peer)) return &r->client[i];
    CHECK(r->clients_count < CLIENTS_MAX);
    struct client *c = &r->client[r->clients_count++];
    c->peer = peer;
    session_init(&c->session, SESSION_ACCEPTOR, (uintptr_t)r, &SESSION_LIMITS_DEFAULT);
    return c;
}

static void on_hello(struct fake_router *r, struct client *c, uint64_t now_ns, const struct msg *m)
{
    r->seen.hellos++;
    if (r->script.refuse) {
        say(r, c, (struct msg){.kind = MSG_REFUSE, .refuse = {r->script.refuse}});
        return;
    }
    struct id128 key = {++r->epochs, 99};
    CHECK(lifeline_expect(r->lifelines, key, c->peer) == OK);
    session_accept(&c->session, m, r->epochs, now_ns);
    const char *lifeline = r->script.lifeline ? r->script.lifeline : lifeline_address(r->lifelines);
    say(r, c, (struct msg){.kind = MSG_WELCOME, .welcome = {"fake", lifeline, key, 200, 3000}});
    loop_timer_set(r->timer, now_ns);
}

static void die(struct fake_router *r)
{
    channel_close(r->channel);
    lifeline_close(r->lifelines);
    r->channel = NULL;
    r->lifelines = NULL;
}

static void say_output(struct fake_router *r, struct client *c, struct id128 id, uint32_t choice,
                       uint32_t index, uint32_t count, enum finish finish)
{
    struct token_info tokens[OUTPUT_TOKENS] = {0};
    char text[OUTPUT_TOKENS * 32] = "";
    for (uint32_t i = 0; i < count; i++) {
        tokens[i].token = fake_token(choice, index + i);
        tokens[i].logprob = -0.5f;
        tokens[i].tops_count = 1;
        tokens[i].top[0].token = tokens[i].token;
        snprintf(text + strlen(text), 32, "%u:%u ", choice, index + i);
    }
    say(r, c,
        (struct msg){
            .kind = MSG_OUTPUT,
            .output = {id, choice, index, tokens, count, text, (uint32_t)strlen(text), finish}});
}

static void say_done(struct fake_router *r, struct client *c, struct id128 id, uint32_t choice,
                     enum finish finish, uint32_t tokens_count)
{
    struct msg m = {.kind = MSG_DONE, .done = {.id = id, .choice = choice, .finish = finish}};
    m.done.prompt_tokens = r->script.prompt_tokens ? r->script.prompt_tokens : 4;
    m.done.completion_tokens = tokens_count;
    m.done.attempts = 1;
    m.done.timing.ttft = 1500;
    m.done.prefill_node = "p0";
    m.done.decode_node = "d0";
    m.done.inexact = r->script.inexact;
    m.done.kv_window = r->script.kv_window;
    m.done.kv_sinks = r->script.kv_sinks;
    say(r, c, m);
}

/* False: it died or stopped in the middle. */
static bool stream_choice(struct fake_router *r, struct client *c, struct id128 id, uint32_t choice,
                          const struct msg_submit *s)
{
    uint32_t from = choice < s->received_counts_count ? s->received_counts[choice] : 0;
    for (uint32_t i = from, n = 0; i < s->tokens_max; i += OUTPUT_TOKENS, n++) {
        uint32_t left = s->tokens_max - i, count = left < OUTPUT_TOKENS ? left : OUTPUT_TOKENS;
        if (r->script.outputs_until_hold && r->outputs == r->script.outputs_until_hold) {
            r->held[r->held_count++] = (struct held){c->peer, id, s->choices};
            return false;
        }
        r->outputs++;
        if (r->script.skip && n == 1) continue;
        enum finish finish = i + count < s->tokens_max ? FINISH_NONE
                             : r->script.stops         ? FINISH_STOP
                                                       : FINISH_LENGTH;
        say_output(r, c, id, choice, i, count, finish);
        if (r->script.repeat && i > 0) say_output(r, c, id, choice, i, count, finish);
    }
    return true;
}

static void say_part(struct fake_router *r, struct client *c, struct id128 id, uint32_t from,
                     uint32_t end, uint32_t total, bool score)
{
    float values[VALUES_MAX];
    uint32_t tokens[VALUES_MAX];
    for (uint32_t i = from; i < end; i++) {
        values[i - from] = fake_value(i);
        tokens[i - from] = i + 1;
    }
    struct msg m = {.kind = MSG_ENCODED,
                    .encoded = {.key = {.request = id},
                                .index = from,
                                .total = total,
                                .values = values,
                                .values_count = end - from,
                                .tokens = tokens,
                                .tokens_count = score ? end - from : 0}};
    say(r, c, m);
}

/* False: it stopped in the middle. */
static bool say_values(struct fake_router *r, struct client *c, struct id128 id,
                       const struct msg_submit *s)
{
    bool score = s->kind == JOB_SCORE;
    uint32_t length = s->tokens_count ? s->tokens_count : s->text_bytes;
    uint32_t total = score ? length - 1 : FAKE_HIDDEN;
    CHECK(total <= VALUES_MAX && total > 0);
    say_part(r, c, id, 0, (total + 1) / 2, total, score);
    if (r->script.outputs_until_hold && ++r->outputs == r->script.outputs_until_hold) {
        r->held[r->held_count++] = (struct held){c->peer, id, s->choices};
        return false;
    }
    if (!r->script.skip) say_part(r, c, id, (total + 1) / 2, total, total, score);
    return true;
}

static void on_submit(struct fake_router *r, struct client *c, const struct msg_submit *s)
{
    r->seen.submits++;
    r->seen.id = s->id;
    r->seen.attempt = s->attempt;
    r->seen.received_count = s->received_count;
    for (uint32_t i = 0; i < 2 && i < s->received_counts_count; i++)
        r->seen.received_counts[i] = s->received_counts[i];
    r->seen.tokens_max = s->tokens_max;
    r->seen.deadline_ms = s->deadline_ms;
    r->seen.kind = s->kind;
    r->seen.priority = s->priority;
    snprintf(r->seen.tenant, sizeof r->seen.tenant, "%s", s->tenant);
    r->seen.seed_given = s->seed_given;
    r->seen.seed = s->sampling.seed;
    if (r->script.reject != OK && (!r->script.rejects || r->seen.submits <= r->script.rejects)) {
        say(r, c,
            (struct msg){.kind = MSG_REJECTED,
                         .rejected = {s->ref, r->script.reject, 120, "said the script"}});
        return;
    }
    struct id128 id = id128_is_none(s->id) ? (struct id128){77, ++r->ids} : s->id;
    uint64_t seed = s->seed_given ? s->sampling.seed : 31;
    say(r, c, (struct msg){.kind = MSG_ACCEPTED, .accepted = {s->ref, id, seed, 4}});
    if (s->kind != JOB_GENERATE && !say_values(r, c, id, s)) return;
    for (uint32_t choice = 0; choice < s->choices; choice++)
        if (!stream_choice(r, c, id, choice, s)) return;
    bool tail = r->script.tail && !r->script.withhold_tail;
    for (uint32_t choice = 0; choice < s->choices && tail; choice++)
        say(r, c,
            (struct msg){.kind = MSG_OUTPUT,
                         .output = {id, choice, s->tokens_max, NULL, 0, "tail", 4}});
    for (uint32_t choice = 0; choice < s->choices && !r->script.withhold_done; choice++)
        say_done(r, c, id, choice, FINISH_LENGTH, s->tokens_max);
}

static void on_cancel(struct fake_router *r, struct client *c, const struct msg_cancel *m)
{
    r->seen.cancels++;
    for (uint32_t i = 0; i < r->held_count; i++) {
        if (!id128_equal(r->held[i].id, m->key.request)) continue;
        for (uint32_t choice = 0; choice < r->held[i].choices; choice++)
            say_done(r, c, m->key.request, choice, FINISH_CANCELLED, 0);
    }
}

static void on_query(struct fake_router *r, struct client *c, const struct msg_query *q)
{
    struct msg m = {.kind = MSG_ANSWER, .answer = {.ref = q->ref, .text = "{\"fake\":true}"}};
    if (r->script.answer) m.answer.text = r->script.answer;
    r->seen.queries++;
    snprintf(r->seen.query, sizeof r->seen.query, "%s", q->argument);
    if (r->script.at_query == FAKE_DIES) {
        die(r);
        return;
    }
    if (r->script.at_query == FAKE_CUTS_LIFELINE) {
        r->script.at_query = FAKE_ANSWERS;
        r->script.outputs_until_hold = 0;
        lifeline_forget(r->lifelines, c->peer);
        return;
    }
    if (q->query == QUERY_EXPLAIN) {
        m.answer.error = ERR_NOT_FOUND;
        m.answer.text = "no such request";
    }
    m.answer.text_bytes = (uint32_t)strlen(m.answer.text);
    say(r, c, m);
}

static void stop_if_silent(struct fake_router *r)
{
    for (uint32_t i = 0; i < r->clients_count && r->channel; i++)
        if (r->client[i].session.state == SESSION_UP) return;
    if (r->stopping) loop_stop(r->loop);
}

static void on_message(void *ctx, uint64_t now_ns, struct peer peer, const struct msg *m)
{
    struct fake_router *r = ctx;
    struct client *c = client_of(r, peer);
    enum session_verdict v = session_on_message(&c->session, now_ns, m);
    if (v == SESSION_GREETED || (v == SESSION_BECAME_DOWN && m->kind == MSG_HELLO))
        on_hello(r, c, now_ns, m);
    if (v == SESSION_BECAME_DOWN && m->kind == MSG_BYE) r->seen.byes++;
    if (v == SESSION_BECAME_DOWN) stop_if_silent(r);
    if (v != SESSION_DELIVER) return;
    switch (m->kind) {
    case MSG_SUBMIT: on_submit(r, c, &m->submit); return;
    case MSG_CANCEL: on_cancel(r, c, &m->cancel); return;
    case MSG_QUERY: on_query(r, c, &m->query); return;
    case MSG_PIN: on_query(r, c, &(struct msg_query){.ref = m->pin.ref, .argument = ""}); return;
    default: return;
    }
}

static void on_lifeline(void *ctx, uint64_t now_ns, struct peer peer, bool up)
{
    /* Its end is not looked at: what the client said before is still to be counted. */
    if (up) session_on_lifeline(&client_of(ctx, peer)->session, now_ns, true);
}

static void on_timer(void *ctx, uint64_t now_ns)
{
    struct fake_router *r = ctx;
    uint64_t wake_ns = TIME_NEVER;
    for (uint32_t i = 0; i < r->clients_count; i++) {
        struct session_due due = session_on_timer(&r->client[i].session, now_ns);
        if (due.heartbeat) say(r, &r->client[i], (struct msg){.kind = MSG_HEARTBEAT});
        if (due.wake_ns < wake_ns) wake_ns = due.wake_ns;
    }
    loop_timer_set(r->timer, wake_ns);
    stop_if_silent(r);
}

static void on_stop(void *ctx, uint64_t now_ns, unsigned events)
{
    struct fake_router *r = ctx;
    (void)now_ns, (void)events;
    r->stopping = true;
    loop_watch_free(r->stop_watch);
    r->stop_watch = NULL;
    stop_if_silent(r);
}

static void *run(void *ctx)
{
    struct fake_router *r = ctx;
    loop_run(r->loop);
    die(r);
    return NULL;
}

struct fake_router *fake_router_start(const char *address, const struct fake_script *script)
{
    static const struct channel_events events = {on_message};
    struct fake_router *r = mem_new(sizeof *r);
    CHECK(r);
    r->script = *script;
    CHECK(loop_new(&r->loop) == OK);
    CHECK(loop_timer_new(r->loop, on_timer, r, &r->timer) == OK);
    CHECK(channel_listen(&r->channel, r->loop, address, &events, r) == OK);
    CHECK(lifeline_listen(&r->lifelines, r->loop, "127.0.0.1:0", on_lifeline, r) == OK);
    snprintf(r->address, sizeof r->address, "%s", channel_address(r->channel));
    snprintf(r->lifeline, sizeof r->lifeline, "%s", lifeline_address(r->lifelines));
    r->stop_fd = eventfd(0, EFD_CLOEXEC);
    CHECK(r->stop_fd >= 0);
    CHECK(loop_watch(r->loop, r->stop_fd, LOOP_READ, on_stop, r, &r->stop_watch) == OK);
    CHECK(pthread_create(&r->thread, NULL, run, r) == 0);
    return r;
}

const char *fake_router_address(const struct fake_router *r)
{
    return r->address;
}

const char *fake_router_lifeline(const struct fake_router *r)
{
    return r->lifeline;
}

void fake_router_stop(struct fake_router *r)
{
    if (r->joined) return;
    CHECK(eventfd_write(r->stop_fd, 1) == 0);
    CHECK(pthread_join(r->thread, NULL) == 0);
    r->joined = true;
}

const struct fake_seen *fake_router_seen(const struct fake_router *r)
{
    CHECK(r->joined);
    return &r->seen;
}

void fake_router_free(struct fake_router *r)
{
    if (!r) return;
    fake_router_stop(r);
    loop_watch_free(r->stop_watch);
    loop_timer_free(r->timer);
    loop_free(r->loop);
    close(r->stop_fd);
    mem_free(r);
}
