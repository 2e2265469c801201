/* The link thread: one epoll loop that carries frames between the links and the core.
 *
 * One turn: wait; take ops out of the mailbox; poll the links that woke us and take in their
 * frames; do what the core asks (deliver events, dial, close); send what the sessions want to say;
 * timers. A frame that opens a ticket is preceded by another look into the mailbox: whoever sent it
 * had been told that the ticket is expected, so its EXPECT is there. */
#include "xfer/xfer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/failpoint.h"
#include "common/list.h"
#include "common/log.h"
#include "common/mailbox.h"
#include "common/mem.h"
#include "xfer/core.h"
#include "xfer/device_payload.h"
#include "xfer/link.h"
#include "xfer/payload.h"
#include "xfer/plugin.h"

enum {
    SLOT_BYTES = 8 << 20,
    SLOTS_COUNT = 3,
    LINKS_MAX = 32,
    ACCEPTS_PER_TURN = 16,
    FRAMES_PER_TURN = 8, /* of one link, each way: some 2 MB, so that nobody waits for long */
    MAILBOX_MESSAGES_MIN = 4096,
    TICKETS_MAX = 1 << 16,
};
#define HANDSHAKE_NS (5 * NS_PER_S)
#define IDLE_CLOSE_NS (60 * NS_PER_S)
#define TELL_NS NS_PER_S
#define DEAF_NS (100 * NS_PER_MS) /* a listener for which the system is short of something */
#define LAYER_BYTES_MAX ((size_t)64 << 20)

/* What an epoll event points to. */
struct watch {
    bool woken;
};

struct listener {
    struct watch watch;
    struct kv_listener *listener;
    uint64_t again_ns; /* not watched before; 0: it is watched */
};

struct conn {
    struct watch watch;
    struct list_link all;
    struct kv_link *link;
    struct xfer_session *session;
    bool connected;
    bool slots; /* payloads go through device memory */
    bool more;  /* frames may be waiting, either way, that no wake-up will tell of */
};

struct xfer {
    struct xfer_options options;
    struct kv_link_options link_options;
    struct xfer_addresses addresses;
    xfer_event_fn *on_event;
    void *ctx;
    struct payload_pool pool; /* in host memory */
    struct device_pool device_pool;
    struct xfer_core *core;
    struct mailbox *mailbox;
    struct watch mailbox_watch;
    struct listener listener[XFER_ADDRESSES_MAX];
    uint32_t listeners_count;
    const struct kv_link_ops *links[XFER_ADDRESSES_MAX + 2]; /* that can be dialled */
    uint32_t links_count;
    struct list_link conns;
    int epoll;
    bool started, stopping;
    pthread_t thread;
    uint64_t now_ns;
    uint64_t data_frames; /* sent, for corrupt_every */
    _Atomic uint32_t tickets_live;
    _Atomic uint32_t links_open;
    _Atomic uint64_t stat[6]; /* struct xfer_core_counts for other threads */
};

/* ---- bytes ---- */

static enum err store_payload(const struct xfer *x, const struct xfer_store *store,
                              const uint8_t *payload, uint32_t layout, bool *good)
{
    if (!x->options.kv_base)
        return device_payload_store(&x->device_pool, store, payload, layout, good);
    *good = payload_store(&x->pool, store, payload);
    return OK;
}

static void spoil(const struct xfer *x, struct xfer_send *send)
{
    uint32_t every = x->options.corrupt_every;
    if (send->blocks_count > 0 && every && (x->data_frames + 1) % every == 0) send->frame.hash ^= 1;
}

/* Finds the pieces of a frame. */
static enum err gather(const struct xfer *x, struct xfer_send *send, uint32_t layout,
                       uint8_t head[FRAME_HEAD_MAX], struct kv_piece pieces[KV_LINK_PIECES_MAX],
                       uint32_t *count)
{
    bool data = send->blocks_count > 0;
    enum err e = OK;
    *count = 1;
    if (data && x->options.kv_base) {
        *count += payload_gather(&x->pool, send, pieces + 1);
    } else if (data) {
        *count += 1;
        e = device_payload_gather(&x->device_pool, send, layout, pieces + 1);
    }
    spoil(x, send);
    pieces[0] = (struct kv_piece){head, frame_print(&send->frame, head)};
    return e;
}

/* ---- links ---- */

static enum err watch_fd(struct xfer *x, int fd, struct watch *watch)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = watch};
    if (epoll_ctl(x->epoll, EPOLL_CTL_ADD, fd, &event) == 0) return OK;
    return err_set(ERR_IO, "epoll_ctl: %s", strerror(errno));
}

/* Takes the link over; closes it if that fails. */
static enum err conn_new(struct xfer *x, struct kv_link *link, struct xfer_session *session)
{
    enum err e = ERR_MEMORY;
    struct conn *c = mem_new(sizeof *c);
    if (!c || (e = watch_fd(x, link->ops->fd(link), &c->watch)) != OK) {
        link->ops->close(link);
        mem_free(c);
        return e;
    }
    c->link = link;
    c->session = session;
    list_push_back(&x->conns, &c->all);
    xfer_session_set_user(session, c);
    return OK;
}

static void conn_close(struct xfer *x, struct conn *c)
{
    if (!c) return;
    epoll_ctl(x->epoll, EPOLL_CTL_DEL, c->link->ops->fd(c->link), NULL);
    c->link->ops->close(c->link);
    xfer_session_set_user(c->session, NULL);
    list_remove(&c->all);
    mem_free(c);
}

/* The link is of no more use; err_text says why. */
static void conn_fail(struct xfer *x, struct conn *c, enum err e)
{
    struct xfer_session *session = c->session;
    char text[XFER_TEXT_MAX];
    snprintf(text, sizeof text, "%s", err_text());
    log_debug("link_lost", "link=%s error=%s reason=\"%s\"", c->link->ops->name, err_name(e), text);
    conn_close(x, c);
    xfer_core_lost(x->core, session, e, text, x->now_ns);
}

/* Callers keep the listener readable, whether they can be accepted or not. */
static void listener_pause(struct xfer *x, struct listener *l)
{
    int fd = l->listener->ops->listener_fd(l->listener);
    if (epoll_ctl(x->epoll, EPOLL_CTL_DEL, fd, NULL) == 0) l->again_ns = x->now_ns + DEAF_NS;
}

static void listener_resume(struct xfer *x, struct listener *l)
{
    int fd = l->listener->ops->listener_fd(l->listener);
    bool watched = watch_fd(x, fd, &l->watch) == OK;
    l->again_ns = watched ? 0 : x->now_ns + DEAF_NS;
}

static void accept_links(struct xfer *x, struct listener *l)
{
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        struct kv_link *link;
        enum err e = l->listener->ops->accept(l->listener, &link);
        if (e == ERR_AGAIN) return;
        if (e != OK) {
            log_warn("link_refused", "reason=\"%s\"", err_text());
            if (e == ERR_FULL) xfer_core_crowded(x->core, l->listener->ops->name, x->now_ns);
            if (e != ERR_IO && e != ERR_MEMORY) continue; /* it was that caller's fault */
            listener_pause(x, l);
            return;
        }
        struct xfer_session *s = xfer_core_accepted(x->core, link->ops->name, x->now_ns);
        if (!s) {
            log_warn("link_refused", "reason=\"too many\"");
            link->ops->close(link);
        } else if ((e = conn_new(x, link, s)) != OK) {
            xfer_core_lost(x->core, s, e, err_text(), x->now_ns);
        }
    }
}

static void dial(struct xfer *x, struct xfer_session *session, const char *address)
{
    enum err e = err_set(ERR_UNSUPPORTED, "this node has no %.*s links: see link_off in its log",
                         (int)strcspn(address, ":"), address);
    struct kv_link *link = NULL;
    for (uint32_t i = 0; i < x->links_count; i++) {
        size_t n = strlen(x->links[i]->name);
        if (strncmp(address, x->links[i]->name, n) == 0 && address[n] == ':')
            e = x->links[i]->dial(&link, address, &x->link_options);
    }
    if (e == ERR_FULL) {
        char text[XFER_TEXT_MAX];
        snprintf(text, sizeof text, "%s", err_text());
        xfer_core_crowded(x->core, address, x->now_ns);
        err_set(e, "%s", text);
    }
    if (e == OK) e = conn_new(x, link, session);
    if (e != OK) xfer_core_lost(x->core, session, e, err_text(), x->now_ns);
}

/* ---- the core's actions ---- */

static void deliver(struct xfer *x, const struct xfer_event *event)
{
    bool final = event->kind != XFER_ARRIVING;
    if (final) atomic_fetch_sub(&x->tickets_live, 1); /* first: the next one may well be opened */
    x->on_event(x->ctx, event);
}

static void act(struct xfer *x)
{
    struct xfer_action a;
    while (xfer_core_next(x->core, &a)) {
        if (a.kind == XFER_ACT_EVENT) {
            deliver(x, &a.event);
            continue;
        }
        if (a.kind == XFER_ACT_LINK) {
            x->options.on_link(x->ctx, &a.link);
        } else if (a.kind == XFER_ACT_DIAL) {
            dial(x, a.session, a.address);
        } else if (a.kind == XFER_ACT_CLOSE) {
            conn_close(x, xfer_session_user(a.session));
            xfer_core_closed(a.session);
        }
    }
}

static void drain_mailbox(struct xfer *x)
{
    struct xfer_message message;
    enum err e;
    while ((e = mailbox_receive(x->mailbox, &message)) == OK)
        xfer_core_op(x->core, &message, x->now_ns);
    if (e == ERR_CANCELLED) x->stopping = true;
}

/* ---- frames ---- */

/* The frame that lies in the link, and the slot with its payload, NULL if that is in the frame. */
static enum err read_frame(const struct conn *c, const void *bytes, size_t size,
                           struct frame *frame, const void **slot)
{
    size_t slot_bytes = 0;
    enum err e = frame_parse(bytes, size, frame);
    if (e != OK) return e;
    *slot = c->slots ? c->link->ops->payload(c->link, &slot_bytes) : NULL;
    if (c->slots && (frame->kind == FRAME_DATA) != (*slot != NULL))
        return err_set(ERR_FORMAT, "%s frame %s", frame_name(frame->kind),
                       *slot ? "with a slot" : "without a slot");
    if (*slot && frame->payload_bytes > 0)
        return err_set(ERR_FORMAT, "%zu bytes of payload beside a slot", frame->payload_bytes);
    if (*slot) frame->payload_bytes = slot_bytes;
    return OK;
}

static enum err take_frame(struct xfer *x, struct conn *c, const void *bytes, size_t size)
{
    struct frame frame;
    struct xfer_store store;
    const void *slot;
    enum err e = read_frame(c, bytes, size, &frame, &slot);
    if (e != OK) return e;
    if (frame.kind == FRAME_OPEN) drain_mailbox(x);
    if (frame.kind == FRAME_DATA) FAILPOINT("store");
    if (frame.kind == FRAME_COMMIT) FAILPOINT("committed");
    e = xfer_core_frame(x->core, c->session, &frame, x->now_ns, &store);
    if (e == OK && store.blocks_count > 0) {
        bool good;
        uint32_t layout = xfer_session_layout(c->session);
        e = slot ? device_payload_store_slot(&x->device_pool, &store, layout, slot, &good)
                 : store_payload(x, &store, frame.payload, layout, &good);
        if (e != OK) return e;
        x->now_ns =
            clock_now_ns(); /* copying takes long enough to tell the end of a ticket wrongly */
        xfer_core_stored(x->core, c->session, &store, good, x->now_ns);
    }
    return e;
}

static enum err receive_frames(struct xfer *x, struct conn *c)
{
    const void *bytes;
    size_t size;
    enum err e;
    c->more = false;
    for (int i = 0; i < FRAMES_PER_TURN; i++) {
        e = c->link->ops->receive(c->link, &bytes, &size);
        if (e == ERR_AGAIN) return OK;
        if (e == OK) e = take_frame(x, c, bytes, size);
        if (e != OK) return e;
        c->link->ops->release(c->link);
    }
    c->more = true;
    return OK;
}

/* A DATA frame by way of a slot. ERR_AGAIN: none is free, or the whole frame waits. */
static enum err send_slotted(const struct xfer *x, const struct conn *c, struct xfer_send *send)
{
    const struct kv_link_ops *ops = c->link->ops;
    uint8_t head[FRAME_HEAD_MAX];
    void *slot;
    enum err e = ops->slot(c->link, &slot);
    if (e != OK) return e;
    e = device_payload_gather_slot(&x->device_pool, send, xfer_session_layout(c->session), slot);
    if (e != OK) return e;
    spoil(x, send);
    size_t head_bytes = frame_print(&send->frame, head);
    return ops->send_slot(c->link, head, head_bytes,
                          send->blocks_count * x->device_pool.layer_bytes);
}

static enum err send_plain(const struct xfer *x, const struct conn *c, struct xfer_send *send)
{
    uint8_t head[FRAME_HEAD_MAX];
    struct kv_piece pieces[KV_LINK_PIECES_MAX];
    uint32_t count;
    enum err e = gather(x, send, xfer_session_layout(c->session), head, pieces, &count);
    return e == OK ? c->link->ops->send(c->link, pieces, count) : e;
}

static enum err send_frames(struct xfer *x, struct conn *c)
{
    struct xfer_send send;
    for (int i = 0; i < FRAMES_PER_TURN; i++) {
        if (!xfer_core_wants(x->core, c->session, &send)) return OK;
        bool data = send.blocks_count > 0;
        if (send.frame.kind == FRAME_DATA) FAILPOINT("push");
        if (send.frame.kind == FRAME_COMMIT) FAILPOINT("commit");
        enum err e = data && c->slots ? send_slotted(x, c, &send) : send_plain(x, c, &send);
        if (e == ERR_AGAIN) return OK;
        if (e != OK) return e;
        x->data_frames += data;
        xfer_core_sent(x->core, c->session, &send, x->now_ns);
    }
    c->more = true;
    return OK;
}

static enum err conn_poll(struct xfer *x, struct conn *c)
{
    enum err e = c->link->ops->poll(c->link);
    if (e == OK && !c->connected) {
        c->connected = true;
        struct kv_link_facts facts = c->link->ops->facts(c->link);
        c->slots = facts.slot_bytes > 0;
        xfer_core_connected(x->core, c->session, c->link->ops->name, &facts, x->now_ns);
    }
    return e == ERR_AGAIN ? OK : e;
}

static void conns_receive(struct xfer *x)
{
    for (struct list_link *l = x->conns.next, *next; l != &x->conns; l = next) {
        struct conn *c = list_member(l, struct conn, all);
        next = l->next;
        if (!c->watch.woken && !c->more) continue;
        enum err e = c->watch.woken ? conn_poll(x, c) : OK;
        c->watch.woken = false;
        if (e == OK && c->connected) e = receive_frames(x, c);
        if (e != OK) conn_fail(x, c, e);
    }
}

static void conns_send(struct xfer *x)
{
    for (struct list_link *l = x->conns.next, *next; l != &x->conns; l = next) {
        struct conn *c = list_member(l, struct conn, all);
        next = l->next;
        enum err e = c->connected ? send_frames(x, c) : OK;
        if (e != OK) conn_fail(x, c, e);
    }
}

/* ---- the thread ---- */

static int wait_ms(const struct xfer *x)
{
    for (const struct list_link *l = x->conns.next; l != &x->conns; l = l->next)
        if (list_member(l, struct conn, all)->more) return 0;
    uint64_t at = xfer_core_wake_at(x->core), now = clock_now_ns();
    for (uint32_t i = 0; i < x->listeners_count; i++)
        if (x->listener[i].again_ns > 0 && x->listener[i].again_ns < at)
            at = x->listener[i].again_ns;
    if (at <= now) return 0;
    if (at == TIME_NEVER) return -1;
    uint64_t ms = (at - now + NS_PER_MS - 1) / NS_PER_MS;
    return ms < 1000000 ? (int)ms : 1000000;
}

static void publish(struct xfer *x)
{
    struct xfer_core_counts n = xfer_core_counts(x->core);
    uint64_t value[] = {n.sent_bytes,  n.received_bytes, n.frames_refused,
                        n.frames_dead, n.tickets_done,   n.tickets_failed};
    for (size_t i = 0; i < sizeof value / sizeof *value; i++)
        atomic_store_explicit(&x->stat[i], value[i], memory_order_relaxed);
    atomic_store_explicit(&x->links_open, xfer_core_sessions_count(x->core), memory_order_relaxed);
}

static void turn(struct xfer *x)
{
    struct epoll_event event[64];
    int n = epoll_wait(x->epoll, event, 64, wait_ms(x));
    x->now_ns = clock_now_ns();
    for (int i = 0; i < n; i++)
        ((struct watch *)event[i].data.ptr)->woken = true;
    drain_mailbox(x);
    for (uint32_t i = 0; i < x->listeners_count; i++) {
        struct listener *l = &x->listener[i];
        if (l->again_ns > 0 && l->again_ns <= x->now_ns) listener_resume(x, l);
        if (l->watch.woken) accept_links(x, l);
        l->watch.woken = false;
    }
    conns_receive(x);
    act(x);
    conns_send(x);
    xfer_core_timer(x->core, x->now_ns);
    act(x);
    publish(x);
}

static void close_all(struct xfer *x)
{
    while (!list_empty(&x->conns))
        conn_close(x, list_member(x->conns.next, struct conn, all));
    for (uint32_t i = 0; i < x->listeners_count; i++)
        x->listener[i].listener->ops->unlisten(x->listener[i].listener);
    x->listeners_count = 0;
}

/* After the last turn: every ticket gets its event; peers are told as far as the links take it, and
 * find the links closed. */
static void finish(struct xfer *x)
{
    x->now_ns = clock_now_ns();
    drain_mailbox(x);
    xfer_core_stop(x->core, x->now_ns);
    act(x);
    conns_send(x);
    act(x);
    close_all(x);
    publish(x);
}

static void *run(void *arg)
{
    struct xfer *x = arg;
    pthread_setname_np(pthread_self(), "tandem-link");
    while (!x->stopping)
        turn(x);
    finish(x);
    return NULL;
}

/* ---- the object ---- */

static enum err check_options(const struct xfer_options *o)
{
    const struct kv_geometry *g = &o->geometry;
    const struct kv_part part = kv_part_told(g, o->part);
    bool device = o->device.read && o->device.write && o->device.staging;
    bool blocks = g->block_tokens == BLOCK_TOKENS ||
                  (o->kv_base && g->block_tokens > 0 && g->block_tokens % BLOCK_TOKENS == 0);
    if (g->layers_count == 0 || !blocks || kv_layer_bytes(g) == 0 ||
        kv_layer_bytes(g) > LAYER_BYTES_MAX)
        return err_set(ERR_INVALID, "KV of %u layers, %zu bytes each, %u tokens a block",
                       g->layers_count, kv_layer_bytes(g), g->block_tokens);
    if (!kv_part_fits(g, &part))
        return err_set(ERR_INVALID, "layers from %u of %u on, kv heads from %u of %u on",
                       part.layers_first, part.layers_all, part.heads_first, part.heads_all);
    if ((!o->kv_base && !device) || o->blocks_count == 0)
        return err_set(ERR_INVALID, "no KV memory");
    if (o->listen_count > XFER_ADDRESSES_MAX)
        return err_set(ERR_INVALID, "%u links to listen on, %d are possible", o->listen_count,
                       XFER_ADDRESSES_MAX);
    if (o->tickets_max == 0 || o->tickets_max > TICKETS_MAX)
        return err_set(ERR_INVALID, "tickets_max is %u, 1 to %d are possible", o->tickets_max,
                       TICKETS_MAX);
    return OK;
}

static bool has_slots(const struct kv_link_ops *ops)
{
    return ops->slot != NULL;
}

static enum err find_link(const struct xfer *x, const struct xfer_listen *row,
                          const struct kv_link_ops **ops)
{
    const struct xfer_device *d = &x->options.device;
    bool device = d->gather && d->scatter && !x->options.kv_base;
    enum err e = OK;
    *ops = row->ops                                   ? row->ops
           : strcmp(row->name, kv_link_shm.name) == 0 ? &kv_link_shm
           : strcmp(row->name, kv_link_tcp.name) == 0 ? &kv_link_tcp
                                                      : NULL;
    if (!*ops && !device)
        e = err_set(ERR_UNSUPPORTED, "a link named %.32s needs a pool on a device", row->name);
    else if (!*ops)
        e = link_plugin_find(row->name, ops);
    if (e == OK && has_slots(*ops) && !device)
        e = err_set(ERR_UNSUPPORTED, "link %s needs a pool on a device", (*ops)->name);
    return e;
}

static void can_dial(struct xfer *x, const struct kv_link_ops *ops)
{
    for (uint32_t i = 0; i < x->links_count; i++)
        if (x->links[i] == ops) return;
    x->links[x->links_count++] = ops;
}

static enum err add_listener(struct xfer *x, const struct xfer_listen *row)
{
    struct listener *l = &x->listener[x->listeners_count];
    const struct kv_link_ops *ops;
    enum err e = find_link(x, row, &ops);
    if (e != OK) return e;
    if ((e = ops->listen(&l->listener, row->where, &x->link_options)) != OK) return e;
    x->listeners_count++;
    can_dial(x, ops);
    snprintf(x->addresses.address[x->addresses.count++], XFER_ADDRESS_BYTES_MAX, "%s",
             ops->address(l->listener));
    return watch_fd(x, ops->listener_fd(l->listener), &l->watch);
}

static enum err start_listening(struct xfer *x)
{
    const struct xfer_options *o = &x->options;
    can_dial(x, &kv_link_shm);
    can_dial(x, &kv_link_tcp);
    for (uint32_t i = 0; i < o->listen_count; i++) {
        enum err e = add_listener(x, &o->listen[i]);
        if (e == OK) continue;
        if (e == ERR_MEMORY || !o->listen[i].optional) return e;
        log_info("link_off", "link=%s reason=\"%s\"", o->listen[i].name, err_text());
    }
    return x->listeners_count > 0 ? OK : err_set(ERR_INVALID, "no link to listen on");
}

static uint32_t or_default(uint32_t told, uint32_t otherwise)
{
    return told > 0 ? told : otherwise;
}

static struct kv_link_options link_options(const struct xfer_options *o)
{
    size_t layer_bytes = kv_layer_bytes(&o->geometry);
    uint32_t slot_bytes = or_default(o->slot_bytes, SLOT_BYTES);
    return (struct kv_link_options){
        .frame_bytes_max = xfer_frame_bytes_max(&o->geometry),
        .ring_bytes = o->ring_bytes,
        .device_index = o->device.index,
        .slot_bytes = slot_bytes < layer_bytes ? (uint32_t)layer_bytes : slot_bytes,
        .slots_count = or_default(o->slots_count, SLOTS_COUNT),
        .links_max = or_default(o->links_max, LINKS_MAX),
        .interface = o->interface ? o->interface : "",
    };
}

static enum err make_pool(struct xfer *x)
{
    const struct xfer_options *o = &x->options;
    x->pool = (struct payload_pool){.geometry = o->geometry, .part = o->part, .base = o->kv_base};
    x->device_pool = (struct device_pool){
        .device = o->device,
        .layer_bytes = kv_layer_bytes(&o->geometry),
        .layers_first = o->part.layers_first,
    };
    if (!o->kv_base) return OK;
    x->pool.staging = mem_aligned(payload_staging_bytes(&o->geometry), 64);
    return x->pool.staging ? OK : ERR_MEMORY;
}

static enum err make_parts(struct xfer *x)
{
    const struct xfer_options *o = &x->options;
    struct xfer_core_options core = {
        .geometry = o->geometry,
        .part = o->part,
        .whole_blocks = !o->kv_base,
        .tickets_max = o->tickets_max,
        .arrivals = o->arrivals,
        .handshake_ns = HANDSHAKE_NS,
        .idle_close_ns = o->idle_close_ns ? o->idle_close_ns : IDLE_CLOSE_NS,
        .retry_ns = o->retry_ns,
        .tell_every_ns = o->on_link ? TELL_NS : 0,
    };
    uint32_t messages = 4 * o->tickets_max;
    enum err e;
    if (messages < MAILBOX_MESSAGES_MIN) messages = MAILBOX_MESSAGES_MIN;
    if ((e = id128_mint(&core.incarnation)) != OK) return e;
    if ((e = xfer_core_new(&x->core, &core)) != OK) return e;
    if ((e = mailbox_new(&x->mailbox, sizeof(struct xfer_message), messages)) != OK) return e;
    x->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (x->epoll < 0) return err_set(ERR_IO, "epoll_create1: %s", strerror(errno));
    return watch_fd(x, mailbox_fd(x->mailbox), &x->mailbox_watch);
}

enum err xfer_open(struct xfer **out, const struct xfer_options *options, xfer_event_fn *on_event,
                   void *ctx)
{
    enum err e;
    *out = NULL;
    if ((e = check_options(options)) != OK) return e;
    struct xfer *x = mem_new(sizeof *x);
    if (!x) return ERR_MEMORY;
    x->options = *options;
    x->options.part = kv_part_told(&options->geometry, options->part);
    x->on_event = on_event;
    x->ctx = ctx;
    x->epoll = -1;
    x->link_options = link_options(options);
    list_init(&x->conns);
    if ((e = make_pool(x)) != OK || (e = make_parts(x)) != OK || (e = start_listening(x)) != OK) {
        xfer_close(x);
        return e;
    }
    *out = x;
    return OK;
}

const struct xfer_addresses *xfer_addresses(const struct xfer *x)
{
    return &x->addresses;
}

enum err xfer_start(struct xfer *x)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the loop thread's */
    int error = pthread_create(&x->thread, NULL, run, x);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) return err_set(ERR_IO, "pthread_create: %s", strerror(error));
    x->started = true;
    return OK;
}

enum err xfer_post(struct xfer *x, const struct xfer_op *op)
{
    struct xfer_message message;
    bool opens = op->kind == XFER_EXPECT || op->kind == XFER_OPEN;
    enum err e = xfer_message_new(op, &x->options.geometry, x->options.blocks_count, &message);
    if (e != OK) return e;
    if (opens && atomic_fetch_add(&x->tickets_live, 1) >= x->options.tickets_max)
        e = err_set(ERR_FULL, "%u transfers are live", x->options.tickets_max);
    if (e == OK) e = mailbox_send(x->mailbox, &message);
    if (e == OK) return OK;
    if (opens) atomic_fetch_sub(&x->tickets_live, 1);
    xfer_message_free(&message);
    return e;
}

void xfer_stop(struct xfer *x)
{
    mailbox_close(x->mailbox);
    if (x->started)
        pthread_join(x->thread, NULL);
    else
        finish(x);
    x->started = false;
}

void xfer_close(struct xfer *x)
{
    if (!x) return;
    CHECK(!x->started);
    if (x->mailbox) drain_mailbox(x);
    close_all(x);
    xfer_core_free(x->core);
    mailbox_free(x->mailbox);
    if (x->epoll >= 0) close(x->epoll);
    mem_free(x->pool.staging);
    mem_free(x);
}

void xfer_stats(const struct xfer *x, struct xfer_stats *stats)
{
    uint64_t value[6];
    for (size_t i = 0; i < 6; i++)
        value[i] = atomic_load_explicit(&x->stat[i], memory_order_relaxed);
    *stats = (struct xfer_stats){
        .sent_bytes = value[0],
        .received_bytes = value[1],
        .frames_refused = value[2],
        .frames_dead = value[3],
        .tickets_done = value[4],
        .tickets_failed = value[5],
        .links_open = atomic_load_explicit(&x->links_open, memory_order_relaxed),
        .tickets_live = atomic_load(&x->tickets_live),
    };
}
