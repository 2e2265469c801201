#include "router/shell.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/address.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/mem.h"
#include "proto/channel.h"
#include "proto/monitor.h"
#include "router/text_worker.h"

enum { TEXT_QUEUE_MAX = 4096 };

struct router_shell {
    struct router_core *core;
    struct loop *loop;
    struct channel *clients, *nodes;
    struct lifeline_server *lifelines;
    struct monitor *monitor;
    struct loop_timer *timer;
    struct tokenizer *tokenizer;
    struct text_worker *text;
    struct loop_watch *text_watch;
    uint64_t incarnation;
    uint32_t signals_count;
    bool left;
};

/* ---- what the core wants ---- */

static void out_send(void *ctx, struct peer peer, const struct msg *m)
{
    struct router_shell *s = ctx;
    /* Not by trying both: an error of the first would overwrite the text that a reason points to. */
    enum err e = channel_send(channel_has(s->nodes, peer) ? s->nodes : s->clients, peer, m);
    if (e != OK)
        log_debug("send_failed", "kind=%s peer=%u error=%s", msg_kind_name(m->kind), peer.v,
                  err_name(e));
}

static void out_wake_at(void *ctx, uint64_t when_ns)
{
    struct router_shell *s = ctx;
    loop_timer_set(s->timer, when_ns);
}

static void out_lifeline_expect(void *ctx, struct peer peer, struct id128 key)
{
    struct router_shell *s = ctx;
    if (lifeline_expect(s->lifelines, key, peer) != OK)
        log_warn("lifeline_not_expected", "peer=%u reason=\"%s\"", peer.v, err_text());
}

static void out_forget(void *ctx, struct peer peer)
{
    struct router_shell *s = ctx;
    lifeline_forget(s->lifelines, peer);
    channel_forget(s->nodes, peer);
    channel_forget(s->clients, peer);
}

static enum err out_tokenize(void *ctx, struct id128 job, const char *text, uint32_t bytes)
{
    struct router_shell *s = ctx;
    return text_worker_ask(s->text, job, text, bytes);
}

static void out_left(void *ctx)
{
    struct router_shell *s = ctx;
    s->left = true;
    loop_stop(s->loop);
}

/* ---- what comes in ---- */

static void tell_facts(struct router_shell *s)
{
    struct channel_stats clients, nodes;
    channel_stats(s->clients, &clients);
    channel_stats(s->nodes, &nodes);
    struct router_facts facts = {.slow_callbacks = loop_slow_callbacks(s->loop),
                                 .malformed_messages = clients.malformed + nodes.malformed};
    router_core_set_facts(s->core, &facts);
}

/* Who came to the other port is told which is its own. */
static void send_elsewhere(struct router_shell *s, struct peer peer, const struct msg *hello)
{
    char reason[2 * MSG_ADDRESS_MAX];
    bool client = hello->hello.role == ROLE_CLIENT;
    snprintf(reason, sizeof reason, "this is the address for %s; %s go to %s",
             client ? "nodes" : "clients", client ? "clients" : "nodes",
             channel_address(client ? s->clients : s->nodes));
    struct msg m = {.kind = MSG_REFUSE,
                    .envelope = {.from = s->incarnation, .to = hello->envelope.from},
                    .refuse = {reason}};
    log_warn("wrong_port", "role=%s name=%s said_hello_to=%s", client ? "client" : "node",
             hello->hello.name, client ? "nodes" : "clients");
    out_send(s, peer, &m);
    out_forget(s, peer);
}

static void on_node_message(void *ctx, uint64_t now_ns, struct peer peer, const struct msg *m)
{
    struct router_shell *s = ctx;
    if (m->kind == MSG_HELLO && m->hello.role == ROLE_CLIENT) {
        send_elsewhere(s, peer, m);
        return;
    }
    router_core_on_message(s->core, now_ns, peer, m);
}

static void on_client_message(void *ctx, uint64_t now_ns, struct peer peer, const struct msg *m)
{
    struct router_shell *s = ctx;
    if (m->kind == MSG_HELLO && m->hello.role != ROLE_CLIENT) {
        send_elsewhere(s, peer, m);
        return;
    }
    if (m->kind == MSG_QUERY) tell_facts(s);
    router_core_on_message(s->core, now_ns, peer, m);
}

static void on_client_malformed(void *ctx, uint64_t now_ns, struct peer peer, const struct msg *m,
                                enum err error, const char *reason)
{
    struct router_shell *s = ctx;
    (void)now_ns;
    router_core_on_malformed(s->core, peer, m, error, reason);
}

static void on_lifeline(void *ctx, uint64_t now_ns, struct peer peer, bool up)
{
    struct router_shell *s = ctx;
    router_core_on_lifeline(s->core, now_ns, peer, up);
}

static void on_timer(void *ctx, uint64_t now_ns)
{
    struct router_shell *s = ctx;
    router_core_on_timer(s->core, now_ns);
}

static void on_text(void *ctx, uint64_t now_ns, unsigned events)
{
    struct router_shell *s = ctx;
    struct text_answer a;
    (void)events;
    while (text_worker_answer(s->text, &a) == OK) {
        router_core_on_tokens(s->core, now_ns, a.job, a.ids, a.ids_count, a.error, a.reason);
        mem_free(a.ids);
    }
}

static void on_signal(void *ctx, uint64_t now_ns, int number)
{
    struct router_shell *s = ctx;
    (void)number;
    if (s->signals_count++ > 0) {
        log_warn("router_leaves", "reason=\"a second signal\"");
        loop_stop(s->loop);
        return;
    }
    router_core_drain(s->core, now_ns);
    router_core_on_timer(s->core, now_ns);
}

static enum err print_metrics(void *ctx, uint64_t now_ns, struct buf *page)
{
    struct router_shell *s = ctx;
    tell_facts(s);
    return router_core_metrics(s->core, now_ns, page);
}

static const char *say_missing(void *ctx, uint64_t now_ns)
{
    const struct router_shell *s = ctx;
    return router_core_missing(s->core, now_ns);
}

/* ---- life ---- */

enum err router_options_check(const struct router_options *o)
{
    const struct {
        const char *setting, *address;
    } row[] = {{"--listen-clients", o->listen_clients},
               {"--listen-nodes", o->listen_nodes},
               {"--listen-lifeline", o->listen_lifeline},
               {"--metrics", o->metrics}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        char host[ADDRESS_HOST_MAX];
        uint16_t port;
        enum err e;
        if (!row[i].address) continue;
        if ((e = address_split(row[i].address, host, &port)) != OK)
            return err_prefix(e, row[i].setting);
        if (!o->trusted_network && !address_is_loopback(row[i].address))
            return err_set(
                ERR_INVALID,
                "%s %s is beyond loopback, where anybody could submit and join: listen on "
                "127.0.0.1, or say --trusted-network if nobody else reaches it",
                row[i].setting, row[i].address);
    }
    return OK;
}

static enum err open_sockets(struct router_shell *s, const struct router_options *o)
{
    enum err e;
    static const struct channel_events node_events = {on_node_message};
    static const struct channel_events client_events = {on_client_message, on_client_malformed};
    if ((e = lifeline_listen(&s->lifelines, s->loop, o->listen_lifeline, on_lifeline, s)) != OK)
        return e;
    if ((e = channel_listen(&s->nodes, s->loop, o->listen_nodes, &node_events, s)) != OK) return e;
    return channel_listen(&s->clients, s->loop, o->listen_clients, &client_events, s);
}

static enum err open_monitor(struct router_shell *s, const struct router_options *o)
{
    static const struct monitor_pages pages = {print_metrics, say_missing};
    return o->metrics ? monitor_open(&s->monitor, s->loop, o->metrics, &pages, s) : OK;
}

static enum err open_text(struct router_shell *s, const struct router_options *o)
{
    enum err e;
    if (!o->model_dir) return OK;
    if ((e = tokenizer_open(&s->tokenizer, o->model_dir)) != OK) return e;
    if ((e = text_worker_start(&s->text, s->tokenizer, TEXT_QUEUE_MAX)) != OK) return e;
    return loop_watch(s->loop, text_worker_fd(s->text), LOOP_READ, on_text, s, &s->text_watch);
}

static enum err open_core(struct router_shell *s, const struct router_options *o)
{
    enum err e;
    struct id128 random;
    struct router_config config = o->config;
    const struct router_out out = {.ctx = s,
                                   .send = out_send,
                                   .wake_at = out_wake_at,
                                   .lifeline_expect = out_lifeline_expect,
                                   .forget = out_forget,
                                   .tokenize = out_tokenize,
                                   .left = out_left};
    if ((e = id128_mint(&random)) != OK) return e;
    config.name = o->name;
    config.lifeline_address = lifeline_address(s->lifelines);
    config.incarnation = s->incarnation = random.hi | 1;
    config.id_seed = random.lo;
    config.tokenizer = s->tokenizer;
    if (o->model_dir) config.tokenizer_hash = file_hash(o->model_dir, "tokenizer.json");
    return router_core_new(&s->core, &config, &out);
}

enum err router_shell_open(struct router_shell **shell, const struct router_options *options)
{
    enum err e;
    struct router_shell *s = mem_new(sizeof *s);
    if (!s) return ERR_MEMORY;
    if ((e = loop_new(&s->loop)) != OK) goto fail;
    if ((e = loop_timer_new(s->loop, on_timer, s, &s->timer)) != OK) goto fail;
    if ((e = open_text(s, options)) != OK) goto fail;
    if ((e = open_sockets(s, options)) != OK) goto fail;
    if ((e = open_core(s, options)) != OK) goto fail;
    if ((e = open_monitor(s, options)) != OK) goto fail;
    if ((e = loop_signal(s->loop, SIGTERM, on_signal, s)) != OK) goto fail;
    if ((e = loop_signal(s->loop, SIGINT, on_signal, s)) != OK) goto fail;
    *shell = s;
    return OK;
fail:
    router_shell_close(s);
    return e;
}

const char *router_shell_clients(const struct router_shell *s)
{
    return channel_address(s->clients);
}

const char *router_shell_nodes(const struct router_shell *s)
{
    return channel_address(s->nodes);
}

const char *router_shell_metrics(const struct router_shell *s)
{
    return s->monitor ? monitor_address(s->monitor) : NULL;
}

enum err router_shell_run(struct router_shell *s)
{
    loop_run(s->loop);
    return s->left ? OK : err_set(ERR_CANCELLED, "stopped before all requests had ended");
}

void router_shell_close(struct router_shell *s)
{
    if (!s) return;
    loop_watch_free(s->text_watch);
    text_worker_stop(s->text);
    monitor_close(s->monitor);
    channel_close(s->clients);
    channel_close(s->nodes);
    lifeline_close(s->lifelines);
    router_core_free(s->core);
    loop_timer_free(s->timer);
    loop_free(s->loop);
    tokenizer_close(s->tokenizer);
    mem_free(s);
}
