#include "node/shell.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/address.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/mailbox.h"
#include "common/mem.h"
#include "node/core.h"
#include "node/kv_events.h"
#include "node/op_queue.h"
#include "node/place.h"
#include "proto/channel.h"
#include "proto/monitor.h"

enum {
    /* Block numbers in one step: a context of a million tokens, or a batch of 128 with 8k each. */
    TABLE_MAX = 65536,
    TOMBSTONES_MAX = 4096,
    HOST_BYTES = 256,
};
#define OPS_RETRY_NS NS_PER_MS
#define SILENCE_NS (2 * NS_PER_S)

struct router_end {
    struct node_shell *shell;
    struct channel *channel;
    struct lifeline *lifeline;
    struct peer peer;
    const char *address;
    uint64_t silent_ns; /* greeted in vain since then; 0: it answered */
    uint64_t say_ns;    /* when to say so (again) */
    bool refused;
};

struct node_shell {
    struct node_options options;
    struct node_place place;
    char host[HOST_BYTES];
    struct engine *engine;
    struct own_links links;
    struct op_queue ops;
    struct node_tiers tiers;
    struct mailbox *engine_events;
    struct loop_watch *engine_watch, *xfer_watch, *link_watch, *tier_watch;
    struct loop *loop;
    struct loop_timer *timer, *ops_timer;
    struct monitor *monitor;
    struct kv_events *events; /* NULL: not published */
    struct router_end *router;
    struct node_core *core;
    uint64_t seen_ns; /* the loop's last turn */
    uint32_t signals_count;
    bool ready, broken;
    enum err end; /* of the run */
};

/* ---- what the core wants ---- */

/* A router that does not answer is greeted for ever, and said to be silent after 2, 4, 8 … seconds. */
static void note_greeting(struct router_end *r, uint64_t now_ns)
{
    if (r->silent_ns == 0) {
        r->silent_ns = now_ns;
        r->say_ns = now_ns + SILENCE_NS;
    }
    if (now_ns < r->say_ns) return;
    uint64_t silence_ns = now_ns - r->silent_ns;
    r->say_ns = now_ns + silence_ns;
    log_warn("router_silent", "router=%s for_ms=%llu trying=again", r->address,
             (unsigned long long)(silence_ns / NS_PER_MS));
}

static void out_send(void *ctx, struct peer peer, const struct msg *m)
{
    struct node_shell *s = ctx;
    if (m->kind == MSG_HELLO) note_greeting(&s->router[peer.v - 1], loop_now_ns(s->loop));
    enum err e = channel_send(s->router[peer.v - 1].channel, peer, m);
    if (e != OK && m->kind != MSG_HELLO) /* a router that is not there yet is greeted in vain */
        log_debug("send_failed", "kind=%s peer=%u error=%s", msg_kind_name(m->kind), peer.v,
                  err_name(e));
}

static void out_wake_at(void *ctx, uint64_t when_ns)
{
    struct node_shell *s = ctx;
    loop_timer_set(s->timer, when_ns);
}

static void out_submit(void *ctx, struct step *step)
{
    struct node_shell *s = ctx;
    enum err e = engine_submit(s->engine, step);
    CHECK(e == OK); /* fewer are in flight than the engine queues */
}

/* A ticket that could not be begun ends like one that failed, after this turn. */
static void refuse_ticket(struct node_shell *s, struct id128 ticket, enum err e)
{
    struct xfer_event event = {.kind = XFER_FAILED, .ticket = ticket, .error = e};
    snprintf(event.text, sizeof event.text, "%s", err_text());
    e = mailbox_send(s->links.events, &event);
    CHECK(e == OK); /* it has room for each ticket's end */
}

static void out_xfer(void *ctx, const struct xfer_op *op)
{
    struct node_shell *s = ctx;
    enum err e = op_queue_post(&s->ops, s->links.xfer, op);
    if (e == OK) {
        if (s->ops.count > 0) loop_timer_set(s->ops_timer, loop_now_ns(s->loop) + OPS_RETRY_NS);
    } else if (op->kind == XFER_EXPECT || op->kind == XFER_OPEN) {
        refuse_ticket(s, op->ticket, e);
    } else { /* the ticket's deadline ends it */
        log_error("transfer_op_refused", "reason=\"%s\"", err_text());
    }
}

static void on_lifeline(void *ctx, uint64_t now_ns, bool up);

static enum err out_tier(void *ctx, const struct kv_tier_op *op)
{
    struct node_shell *s = ctx;
    return kv_tiers_post(s->tiers.tiers, op);
}

static void out_lifeline_dial(void *ctx, struct peer peer, const char *address, struct id128 key)
{
    struct node_shell *s = ctx;
    struct router_end *r = &s->router[peer.v - 1];
    lifeline_free(r->lifeline);
    r->lifeline = NULL;
    const struct lifeline_at at = {address, r->address};
    if (lifeline_dial(&r->lifeline, s->loop, &at, key, on_lifeline, r) != OK)
        log_warn("lifeline_failed", "router=%s reason=\"%s\"", r->address, err_text());
}

static void out_lifeline_drop(void *ctx, struct peer peer)
{
    struct node_shell *s = ctx;
    struct router_end *r = &s->router[peer.v - 1];
    lifeline_free(r->lifeline);
    r->lifeline = NULL;
}

static void out_block(void *ctx, const struct node_block *block)
{
    struct node_shell *s = ctx;
    kv_events_add(s->events, block);
}

static void out_left(void *ctx)
{
    struct node_shell *s = ctx;
    loop_stop(s->loop);
}

/* ---- what comes in ---- */

/* First in every callback. A process that was stopped for longer than its routers wait is dead to
 * them: what it had is of an earlier life, and nothing of it may be said any more. */
static void awake(struct node_shell *s, uint64_t now_ns)
{
    uint64_t slept_ns = now_ns - s->seen_ns;
    s->seen_ns = now_ns;
    node_core_progress(s->core, engine_progress(s->engine));
    node_core_slow_callbacks(s->core, loop_slow_callbacks(s->loop));
    if (s->tiers.tiers) {
        struct kv_tiers_stats stats;
        kv_tiers_watch(s->tiers.tiers, &stats);
        node_core_tier_stats(s->core, &stats);
    }
    if (slept_ns <= s->options.session.dead_ns) return;
    struct id128 random;
    if (id128_mint(&random) != OK) return; /* the routers have dropped the old sessions anyway */
    log_warn("clock_jumped", "slept_ms=%llu", (unsigned long long)(slept_ns / NS_PER_MS));
    node_core_reborn(s->core, now_ns, random.hi | 1);
}

/* All routers said no: there is nothing to wait for. */
static void note_refusal(struct node_shell *s, struct router_end *r, const char *reason)
{
    r->refused = true;
    for (uint32_t i = 0; i < s->options.routers_count; i++)
        if (!s->router[i].refused) return;
    s->end = err_set(ERR_INVALID, "router %s refused this node: %s", r->address, reason);
    loop_stop(s->loop);
}

static void on_message(void *ctx, uint64_t now_ns, struct peer peer, const struct msg *m)
{
    struct router_end *r = ctx;
    awake(r->shell, now_ns);
    node_core_on_message(r->shell->core, now_ns, peer, m);
    r->silent_ns = 0;
    if (m->kind == MSG_REFUSE) note_refusal(r->shell, r, m->refuse.reason);
}

static void say_ready(const struct node_shell *s)
{
    printf("ready name=%s", s->options.name);
    if (s->monitor) printf(" metrics=%s", monitor_address(s->monitor));
    if (s->events) printf(" kv-events=%s", kv_events_address(s->events));
    if (s->options.kv_events_replay) printf(" kv-events-replay=%s", kv_events_replay(s->events));
    printf("\n");
    fflush(stdout);
}

static void on_lifeline(void *ctx, uint64_t now_ns, bool up)
{
    struct router_end *r = ctx;
    struct node_shell *s = r->shell;
    awake(s, now_ns);
    if (!r->lifeline) return; /* dropped by a new life a moment ago */
    if (up && !s->ready) {
        s->ready = true;
        say_ready(s);
    }
    node_core_on_lifeline(s->core, now_ns, r->peer, up);
}

static void on_timer(void *ctx, uint64_t now_ns)
{
    struct node_shell *s = ctx;
    awake(s, now_ns);
    node_core_on_timer(s->core, now_ns);
}

static void on_ops_timer(void *ctx, uint64_t now_ns)
{
    struct node_shell *s = ctx;
    op_queue_flush(&s->ops, s->links.xfer);
    if (s->ops.count > 0) loop_timer_set(s->ops_timer, now_ns + OPS_RETRY_NS);
}

static void on_engine_mail(void *ctx, uint64_t now_ns, unsigned events)
{
    struct node_shell *s = ctx;
    struct engine_event event;
    (void)events;
    awake(s, now_ns);
    while (mailbox_receive(s->engine_events, &event) == OK) {
        if (event.status == ERR_DEVICE) s->broken = true;
        node_core_on_engine(s->core, now_ns, &event);
    }
}

static void on_xfer_mail(void *ctx, uint64_t now_ns, unsigned events)
{
    struct node_shell *s = ctx;
    struct xfer_event event;
    (void)events;
    awake(s, now_ns);
    while (mailbox_receive(s->links.events, &event) == OK)
        node_core_on_xfer(s->core, now_ns, &event);
}

static void on_tier_mail(void *ctx, uint64_t now_ns, unsigned events)
{
    struct node_shell *s = ctx;
    struct kv_tier_event event;
    (void)events;
    awake(s, now_ns);
    while (mailbox_receive(s->tiers.events, &event) == OK) {
        node_core_on_tier(s->core, now_ns, &event);
        kv_tier_event_free(&event);
    }
}

static void on_link_mail(void *ctx, uint64_t now_ns, unsigned events)
{
    struct node_shell *s = ctx;
    struct xfer_link_row row;
    (void)events;
    awake(s, now_ns);
    while (mailbox_receive(s->links.rows, &row) == OK)
        node_core_on_link(s->core, &row);
}

static void on_signal(void *ctx, uint64_t now_ns, int number)
{
    struct node_shell *s = ctx;
    (void)number;
    awake(s, now_ns);
    if (s->signals_count++ > 0) {
        s->end = err_set(ERR_CANCELLED, "stopped before all jobs had ended");
        loop_stop(s->loop);
        return;
    }
    log_info("node_drains", "name=%s", s->options.name);
    node_core_drain(s->core, now_ns);
}

static enum err print_metrics(void *ctx, uint64_t now_ns, struct buf *page)
{
    struct node_shell *s = ctx;
    struct xfer_stats links;
    awake(s, now_ns);
    xfer_stats(s->links.xfer, &links);
    return node_core_metrics(s->core, &links, page);
}

static const char *say_missing(void *ctx, uint64_t now_ns)
{
    struct node_shell *s = ctx;
    awake(s, now_ns);
    return node_core_missing(s->core);
}

/* ---- from other threads ---- */

static void engine_says(void *ctx, const struct engine_event *event)
{
    struct node_shell *s = ctx;
    enum err e = mailbox_send(s->engine_events, event);
    CHECK(e == OK || e == ERR_CANCELLED); /* it has room for all events of all steps in flight */
}

/* ---- its settings ---- */

static enum err check_name(const char *name)
{
    size_t length = strlen(name);
    size_t good = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    if (length > 0 && length <= MSG_NAME_MAX && good == length) return OK;
    return err_set(ERR_INVALID, "--name %s: 1 to %d of A-Z a-z 0-9 . _ -", name, MSG_NAME_MAX);
}

/* What the settings say of the node's place. */
static enum err read_place(const struct node_options *o, struct node_place_options *place)
{
    enum err e = OK;
    *place = (struct node_place_options){
        .device = o->engine.backend,
        .nccl_interface = own_links_interface(&o->links, o->trusted_network),
    };
    if (o->cpus && (e = cpus_parse(o->cpus, &place->cpus)) != OK) return err_prefix(e, "--cpus");
    return node_numa_parse(o->numa ? o->numa : "auto", &place->numa);
}

/* What others may read there; NULL: it is not wanted. */
static enum err check_page(const struct node_options *o, const char *setting, const char *address)
{
    enum err e;
    char host[ADDRESS_HOST_MAX];
    uint16_t port;
    if (!address) return OK;
    if ((e = address_split(address, host, &port)) != OK) return err_prefix(e, "%s", setting);
    if (o->trusted_network || address_is_loopback(address)) return OK;
    return err_set(ERR_INVALID,
                   "%s %s is beyond loopback, where anybody could read it: listen on 127.0.0.1, or "
                   "say --trusted-network if nobody else reaches it",
                   setting, address);
}

enum err node_options_check(const struct node_options *o)
{
    enum err e;
    struct node_place_options place;
    char host[ADDRESS_HOST_MAX];
    uint16_t port;
    if ((e = check_name(o->name)) != OK) return e;
    if (o->routers_count == 0) return err_set(ERR_INVALID, "--router is not given");
    for (uint32_t i = 0; i < o->routers_count; i++)
        if ((e = address_split(o->routers[i], host, &port)) != OK) return err_prefix(e, "--router");
    if ((e = engine_check_backend(o->engine.backend)) != OK) return err_prefix(e, "--device");
    if ((e = read_place(o, &place)) != OK) return e;
    if ((e = own_links_check(&o->links, o->trusted_network)) != OK) return e;
    if ((e = node_tiers_check(&o->tiers, o->prefix_cache, o->trusted_network)) != OK) return e;
    if ((e = check_page(o, "--metrics", o->metrics)) != OK) return e;
    if ((e = check_page(o, "--kv-events", o->kv_events)) != OK) return e;
    if (o->kv_events_replay && !o->kv_events)
        return err_set(ERR_INVALID, "--kv-events-replay without --kv-events");
    return check_page(o, "--kv-events-replay", o->kv_events_replay);
}

/* ---- life ---- */

static enum err open_monitor(struct node_shell *s)
{
    static const struct monitor_pages pages = {print_metrics, say_missing};
    const char *address = s->options.metrics;
    return address ? monitor_open(&s->monitor, s->loop, address, &pages, s) : OK;
}

/* Before anything is opened, since threads and memory are inherited and pinned where it is. */
static enum err find_place(struct node_shell *s)
{
    struct node_place_options o;
    struct engine_options *engine = &s->options.engine;
    enum err e = read_place(&s->options, &o);
    if (e != OK) return e;
    node_place_find(&s->place, &o);
    engine->cpus = s->place.engine;
    if (engine->threads == 0) engine->threads = (uint32_t)CPU_COUNT(&o.cpus);
    return OK;
}

/* A thread begins where the one is that starts it. */
static enum err start_links(struct node_shell *s)
{
    node_place_bind(&s->place, &s->place.link);
    enum err e = xfer_start(s->links.xfer);
    node_place_bind(&s->place, &s->place.loop);
    return e;
}

static enum err open_engine(struct node_shell *s)
{
    enum err e;
    struct node_options *o = &s->options;
    const struct node_policy *policy = o->policy;
    o->engine.limits.sequences_max = o->sequences_max + policy->prompts_in_step;
    o->engine.limits.rows_max = o->sequences_max + o->chunk_tokens;
    o->engine.limits.table_max = TABLE_MAX;
    o->engine.slots_count = policy->slots(o->sequences_max);
    if ((e = engine_open(&s->engine, &o->engine)) != OK) return e;
    const struct engine_facts *f = engine_facts(s->engine);
    if (f->blocks_count < 2)
        return err_set(ERR_INVALID,
                       "the KV pool has %u blocks: a request needs at least 2 of %d tokens, %zu "
                       "bytes each; raise --blocks or --kv-bytes",
                       f->blocks_count, BLOCK_TOKENS, kv_block_bytes(&f->geometry));
    uint32_t events = (f->geometry.layers_count + 1) * f->queue_depth + 1;
    return mailbox_new(&s->engine_events, sizeof(struct engine_event), events);
}

static enum err open_links(struct node_shell *s)
{
    const struct node_options *o = &s->options;
    const struct own_links_at at = {&o->links, o->routers[0], o->trusted_network};
    return own_links_open(&s->links, &at, s->engine);
}

static enum err open_loop(struct node_shell *s)
{
    enum err e;
    if ((e = loop_new(&s->loop)) != OK) return e;
    if ((e = loop_timer_new(s->loop, on_timer, s, &s->timer)) != OK) return e;
    if ((e = loop_timer_new(s->loop, on_ops_timer, s, &s->ops_timer)) != OK) return e;
    if ((e = loop_watch(s->loop, mailbox_fd(s->engine_events), LOOP_READ, on_engine_mail, s,
                        &s->engine_watch)) != OK)
        return e;
    if ((e = loop_watch(s->loop, mailbox_fd(s->links.events), LOOP_READ, on_xfer_mail, s,
                        &s->xfer_watch)) != OK)
        return e;
    if ((e = loop_watch(s->loop, mailbox_fd(s->links.rows), LOOP_READ, on_link_mail, s,
                        &s->link_watch)) != OK)
        return e;
    if (s->tiers.tiers && (e = loop_watch(s->loop, mailbox_fd(s->tiers.events), LOOP_READ,
                                          on_tier_mail, s, &s->tier_watch)) != OK)
        return e;
    if ((e = loop_signal(s->loop, SIGTERM, on_signal, s)) != OK) return e;
    return loop_signal(s->loop, SIGINT, on_signal, s);
}

static enum err open_channels(struct node_shell *s)
{
    static const struct channel_events events = {on_message};
    s->router = mem_array(s->options.routers_count, sizeof *s->router);
    if (!s->router) return ERR_MEMORY;
    for (uint32_t i = 0; i < s->options.routers_count; i++) {
        struct router_end *r = &s->router[i];
        *r = (struct router_end){.shell = s, .peer = {i + 1}, .address = s->options.routers[i]};
        enum err e = channel_dial(&r->channel, s->loop, r->address, r->peer, &events, r);
        if (e != OK) return e;
    }
    return OK;
}

static struct msg_hello hello_of(struct node_shell *s)
{
    const struct node_options *o = &s->options;
    const struct engine_facts *f = engine_facts(s->engine);
    if (gethostname(s->host, sizeof s->host - 1) != 0) snprintf(s->host, sizeof s->host, "?");
    s->host[MSG_NAME_MAX] = '\0';
    return (struct msg_hello){
        .role = o->policy->role,
        .name = o->name,
        .host = s->host,
        .device = f->device,
        .model = f->model_name,
        .pid = (uint32_t)getpid(),
        .model_fingerprint = f->model_fingerprint,
        .tokenizer_hash = file_hash(o->engine.model_dir, "tokenizer.json"),
        .numerics_id = f->numerics_id,
        .geometry = f->geometry,
        .vocab = f->vocab_count,
        .context_max = f->context_max,
        .sequences_max = o->sequences_max,
        .window_tokens = o->policy->window_tokens(o->chunk_tokens),
        .blocks_total = f->blocks_count,
        .eos = f->eos,
        .eos_count = f->eos_count,
        .addresses = s->links.address,
        .addresses_count = s->links.addresses_count,
        .pci = s->place.pci,
        .numa = (uint32_t)(s->place.numa + 1),
        .cpus = s->place.cpus,
        .cards = s->place.nics,
        .kv_window = f->window,
        .kv_ahead = f->queue_depth * o->chunk_tokens,
    };
}

static enum err open_events(struct node_shell *s)
{
    const struct node_options *o = &s->options;
    const struct kv_events_options k = {o->kv_events,
                                        o->kv_events_replay,
                                        o->name,
                                        engine_facts(s->engine)->model_name,
                                        (enum kv_event_form)o->kv_events_form,
                                        o->kv_events_topic};
    return o->kv_events ? kv_events_open(&s->events, s->loop, &k) : OK;
}

static enum err open_core(struct node_shell *s)
{
    enum err e;
    struct id128 life, tickets;
    const struct node_options *o = &s->options;
    const struct engine_facts *f = engine_facts(s->engine);
    struct node_out out = {.ctx = s,
                           .send = out_send,
                           .wake_at = out_wake_at,
                           .submit = out_submit,
                           .xfer = out_xfer,
                           .lifeline_dial = out_lifeline_dial,
                           .lifeline_drop = out_lifeline_drop,
                           .left = out_left,
                           .tier = out_tier};
    if (s->events) out.block = out_block;
    if ((e = id128_mint(&life)) != OK || (e = id128_mint(&tickets)) != OK) return e;
    struct node_config config = {
        .role = o->policy->role,
        .hello = hello_of(s),
        .incarnation = life.hi | 1,
        .ticket_seed = tickets.hi,
        .session = o->session,
        .routers_count = o->routers_count,
        .blocks_count = f->blocks_count,
        .slots_count = f->slots_count,
        .context_max = f->context_max,
        .vocab_count = f->vocab_count,
        .hidden_count = f->hidden,
        .limits = f->limits,
        .steps_in_flight = f->queue_depth,
        .chunk_tokens = o->chunk_tokens,
        .sequences_max = o->sequences_max,
        .reserve_timeout_ns = o->reserve_timeout_ns,
        .prefix_wait_ns = o->prefix_wait_ns,
        .kv_windows = f->kv_windows,
        .prefix_cache = o->prefix_cache,
        .preempted = o->preempted,
        .evict = o->evict,
        .tiers = s->tiers.tiers,
        .tier_deadline_ns = o->tiers.deadline_ns,
        .link = own_link_name(o->links.link),
        .tombstones_max = TOMBSTONES_MAX,
    };
    return node_core_new(&s->core, &config, &out);
}

enum err node_shell_open(struct node_shell **shell, const struct node_options *options)
{
    enum err e;
    *shell = NULL;
    struct node_shell *s = mem_new(sizeof *s);
    if (!s) return ERR_MEMORY;
    s->options = *options;
    if ((e = find_place(s)) != OK) goto fail;
    if ((e = open_engine(s)) != OK) goto fail;
    if ((e = open_links(s)) != OK) goto fail;
    if ((e = node_tiers_open(&s->tiers, &options->tiers, s->engine)) != OK) goto fail;
    if ((e = open_loop(s)) != OK) goto fail;
    if ((e = open_channels(s)) != OK) goto fail;
    if ((e = open_events(s)) != OK) goto fail;
    if ((e = open_core(s)) != OK) goto fail;
    if ((e = open_monitor(s)) != OK) goto fail;
    if ((e = engine_start(s->engine, engine_says, s)) != OK) goto fail;
    if ((e = start_links(s)) != OK) goto fail;
    if ((e = node_tiers_start(&s->tiers)) != OK) goto fail;
    const struct engine_facts *f = engine_facts(s->engine);
    log_info("node_starts", "name=%s model=%s device=\"%s\" blocks=%u context=%u load_ms=%llu",
             options->name, f->model_name, f->device, f->blocks_count, f->context_max,
             (unsigned long long)(f->load_ns / NS_PER_MS));
    *shell = s;
    return OK;
fail:
    node_shell_close(s);
    return e;
}

enum err node_shell_run(struct node_shell *s)
{
    s->end = OK;
    s->seen_ns = loop_now_ns(s->loop);
    node_core_start(s->core, s->seen_ns);
    loop_run(s->loop);
    if (s->broken) return err_set(ERR_DEVICE, "the device failed");
    return s->end;
}

void node_shell_close(struct node_shell *s)
{
    if (!s) return;
    for (uint32_t i = 0; s->router && i < s->options.routers_count; i++) {
        channel_close(s->router[i].channel); /* the last words leave before the lifeline ends */
        lifeline_free(s->router[i].lifeline);
    }
    monitor_close(s->monitor);
    loop_watch_free(s->engine_watch);
    loop_watch_free(s->xfer_watch);
    loop_watch_free(s->link_watch);
    loop_watch_free(s->tier_watch);
    if (s->engine_events) mailbox_close(s->engine_events); /* what they still say is for nobody */
    if (s->engine) engine_stop(s->engine);
    own_links_stop(&s->links);
    node_tiers_stop(&s->tiers);
    node_core_free(s->core);
    kv_events_close(s->events);
    own_links_close(&s->links);
    node_tiers_close(&s->tiers);
    engine_close(s->engine);
    op_queue_fini(&s->ops);
    mailbox_free(s->engine_events);
    if (s->timer) loop_timer_free(s->timer);
    if (s->ops_timer) loop_timer_free(s->ops_timer);
    if (s->loop) loop_free(s->loop);
    mem_free(s->router);
    mem_free(s);
}
