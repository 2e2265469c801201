/* The shell around a session: a control link, a transport, a timer, and the turns of a device.
 *
 * Each entry does what can be done (`pump`) and then sets the timer (`settle`): to the session's next
 * deadline, to the next millisecond while a transport without an fd is waited for, or to the past, which
 * makes the fd readable: when somebody else has given this link the turn, when a caller who was told
 * ERR_AGAIN may come again, and when the link is dead. */
#include "xfer/device/link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/failpoint.h"
#include "common/mem.h"
#include "xfer/device/turns.h"

enum {
    TICK_NS = 1000000,
    ROUNDS_MAX = 64, /* of one pump: a peer that floods the link does not keep the thread */
    WAKE_NOW = 1,    /* a time long ago */
};

/* A device, as far as links of one transport go. */
struct device {
    struct list_link all;
    const struct transport_ops *transport;
    uint32_t index, links_count;
    struct turns turns;
};

struct device_link {
    struct kv_link base;
    const struct device_link_kind *kind;
    struct device *device;
    struct turn turn;
    struct kv_link_options options;
    struct kv_link *control;
    struct dslink *session;
    struct transport *transport;    /* NULL: none */
    char peer[KV_LINK_ADDRESS_MAX]; /* for log lines */
    int epoll, timer;
    uint64_t armed_ns; /* what the timer is set to; TIME_NEVER: it is not set */
    bool dialler, started, lost, has_turn;
    bool wake;    /* the caller is to come again */
    bool starved; /* the caller has been told ERR_AGAIN by send or slot */
    bool blocked; /* ... by the control link's send */
    bool held;    /* a frame of the control link that waits for its place */
    bool watched; /* the control link's fd is in epoll */
};

struct device_listener {
    struct kv_listener base;
    const struct device_link_kind *kind;
    struct kv_link_options options;
    struct kv_listener *control;
    char address[KV_LINK_ADDRESS_MAX];
};

static _Thread_local struct list_link devices;

static struct device_link *device_link(const struct kv_link *link)
{
    return (struct device_link *)link;
}

/* ---- devices ---- */

static struct device *device_find(const struct transport_ops *transport, uint32_t index)
{
    if (!devices.next) list_init(&devices);
    for (struct list_link *l = devices.next; l != &devices; l = l->next) {
        struct device *d = list_member(l, struct device, all);
        if (d->transport == transport && d->index == index) return d;
    }
    return NULL;
}

static struct device *device_take(const struct transport_ops *transport, uint32_t index)
{
    struct device *d = device_find(transport, index);
    if (!d) {
        if (!(d = mem_new(sizeof *d))) return NULL;
        d->transport = transport;
        d->index = index;
        turns_init(&d->turns);
        list_push_back(&devices, &d->all);
    }
    d->links_count++;
    return d;
}

static void device_drop(struct device *d)
{
    if (--d->links_count > 0) return;
    list_remove(&d->all);
    mem_free(d);
}

static uint32_t links_max_of(const struct kv_link_options *options)
{
    return options->links_max ? options->links_max : DEVICE_LINKS_MAX;
}

static enum err check_room(const struct device_link_kind *kind,
                           const struct kv_link_options *options)
{
    const struct device *d = device_find(kind->transport, options->device_index);
    uint32_t links_max = links_max_of(options);
    if (!d || d->links_count < links_max) return OK;
    return err_set(ERR_FULL, "%s link: device %u has %u open", kind->ops->name,
                   options->device_index, d->links_count);
}

/* ---- the timer ---- */

static void arm(struct device_link *l, uint64_t at_ns)
{
    if (at_ns == l->armed_ns) return;
    l->armed_ns = at_ns;
    if (at_ns == TIME_NEVER) at_ns = 0; /* disarms */
    struct itimerspec when = {.it_value = {(time_t)(at_ns / NS_PER_S), (long)(at_ns % NS_PER_S)}};
    CHECK(timerfd_settime(l->timer, TFD_TIMER_ABSTIME, &when, NULL) == 0);
}

static void quiet_timer(struct device_link *l)
{
    uint64_t times;
    if (read(l->timer, &times, sizeof times) == sizeof times) l->armed_ns = TIME_NEVER;
}

static bool is_dead(const struct device_link *l)
{
    struct dslink_frame f;
    return dslink_state(l->session) == DSLINK_CLOSED && !dslink_front(l->session, &f);
}

static bool may_try_again(const struct device_link *l)
{
    return dslink_may_send(l->session) || dslink_slot_free(l->session);
}

/* While a frame waits for the operation before it nothing behind it is read, the end of the control link
 * neither: its fd would be readable all that time. */
static void watch_control(struct device_link *l)
{
    struct epoll_event event = {.events = EPOLLIN};
    struct dslink_frame f;
    bool wanted = !l->held || dslink_front(l->session, &f);
    if (wanted == l->watched) return;
    int op = wanted ? EPOLL_CTL_ADD : EPOLL_CTL_DEL;
    if (epoll_ctl(l->epoll, op, l->control->ops->fd(l->control), &event) == 0) l->watched = wanted;
}

static void settle(struct device_link *l, uint64_t now_ns)
{
    watch_control(l);
    bool waits =
        dslink_opening(l->session) || dslink_joining(l->session) || dslink_operating(l->session);
    uint64_t at_ns = l->started ? dslink_wake_at(l->session) : TIME_NEVER;
    if (waits && l->transport->ops->fd(l->transport) < 0 && at_ns > now_ns + TICK_NS)
        at_ns = now_ns + TICK_NS;
    if (l->wake || is_dead(l) || (l->starved && may_try_again(l))) at_ns = WAKE_NOW;
    arm(l, at_ns);
}

/* ---- the control link ---- */

static void lose_control(struct device_link *l, enum err e, uint64_t now_ns)
{
    if (l->lost) return;
    l->lost = true;
    dslink_lost(l->session, e, err_text(), now_ns);
}

/* Whether something was read. */
static bool read_control(struct device_link *l, uint64_t now_ns)
{
    const void *bytes;
    size_t size;
    if (l->held || l->lost || !l->started || dslink_state(l->session) == DSLINK_CLOSED)
        return false;
    enum err e = l->control->ops->receive(l->control, &bytes, &size);
    if (e == ERR_AGAIN) return false;
    if (e != OK) {
        lose_control(l, e, now_ns);
        return true;
    }
    l->held = dslink_message(l->session, bytes, size, now_ns) == ERR_AGAIN;
    if (!l->held) l->control->ops->release(l->control);
    return true;
}

/* ERR_AGAIN: not now. What nobody can hear any more counts as told. */
static enum err tell(struct device_link *l, const struct dslink_act *act, uint64_t now_ns)
{
    struct kv_piece piece = {act->bytes, act->size};
    if (l->lost) return OK;
    enum err e = l->control->ops->send(l->control, &piece, 1);
    if (e != OK && e != ERR_AGAIN) lose_control(l, e, now_ns);
    l->wake |= e == OK && l->blocked; /* what fits may be smaller, and takes the caller's wake-up */
    return e;
}

/* ---- the transport ---- */

static enum err watch_transport(struct device_link *l)
{
    struct epoll_event event = {.events = EPOLLIN};
    int fd = l->transport->ops->fd(l->transport);
    if (fd < 0 || epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &event) == 0) return OK;
    return err_set(ERR_IO, "epoll_ctl: %s", strerror(errno));
}

static void close_transport(struct device_link *l, enum transport_end end)
{
    if (!l->transport) return;
    int fd = l->transport->ops->fd(l->transport);
    if (fd >= 0) epoll_ctl(l->epoll, EPOLL_CTL_DEL, fd, NULL);
    l->transport->ops->close(l->transport, end);
    l->transport = NULL;
}

static enum err open_transport(struct device_link *l, const struct dslink_act *act)
{
    struct transport_options o = {.device_index = l->options.device_index,
                                  .slots_count = act->slots_count,
                                  .slot_bytes = act->slot_bytes,
                                  .dialler = l->dialler,
                                  .interface = l->options.interface ? l->options.interface : "",
                                  /* as many again may still be on their way down */
                                  .links_max = 2 * links_max_of(&l->options),
                                  .peer = l->peer};
    enum err e = l->kind->transport->open(&l->transport, &o);
    if (e != OK) {
        l->transport = NULL;
        return e;
    }
    if ((e = watch_transport(l)) != OK) close_transport(l, TRANSPORT_BROKEN);
    return e;
}

static enum err opened(struct device_link *l)
{
    const struct transport_ops *ops = l->kind->transport;
    bool offers = l->dialler ? ops->dialler_offers : ops->acceptor_offers;
    uint8_t offer[TRANSPORT_OFFER_MAX];
    size_t size = 0;
    enum err e = ops->opened(l->transport, offer, &size);
    if (e == OK) dslink_opened(l->session, offer, offers ? size : 0);
    return e;
}

/* Whether it was done; what fails is told to the session, so that there is something else to do. */
static bool do_act(struct device_link *l, const struct dslink_act *act, uint64_t now_ns)
{
    const struct transport_ops *ops = l->kind->transport;
    enum err e = OK;
    switch (act->kind) {
    case DSLINK_TELL:
        e = tell(l, act, now_ns);
        if (e == OK) dslink_done(l->session, act, now_ns);
        return e != ERR_AGAIN;
    case DSLINK_OPEN: e = open_transport(l, act); break;
    case DSLINK_JOIN: e = ops->join(l->transport, act->bytes, act->size); break;
    case DSLINK_BEGIN: e = ops->begin(l->transport, act->slot, act->payload_bytes); break;
    case DSLINK_CLOSE: close_transport(l, act->end); break;
    }
    if (e != OK)
        dslink_broken(l->session, e, err_text(), now_ns);
    else
        dslink_done(l->session, act, now_ns);
    if (e == OK && act->kind == DSLINK_BEGIN) FAILPOINT("link_begin");
    return true;
}

static bool do_acts(struct device_link *l, uint64_t now_ns)
{
    struct dslink_act act;
    bool any = false;
    while (dslink_next(l->session, &act) && do_act(l, &act, now_ns))
        any = true;
    if (l->started) FAILPOINT_KIND("link", dslink_state_name(dslink_state(l->session)));
    return any;
}

/* ---- turns ---- */

static void give_turn(struct device_link *l)
{
    struct turn *next = turns_give(&l->device->turns, &l->turn);
    if (l->has_turn) dslink_turn(l->session, false, 0);
    l->has_turn = false;
    if (!next) return;
    struct device_link *other = list_member(next, struct device_link, turn);
    other->wake = true;
    arm(other, WAKE_NOW);
}

static void take_turn(struct device_link *l, uint64_t now_ns)
{
    if (!dslink_wants_turn(l->session)) {
        give_turn(l);
        return;
    }
    turns_ask(&l->device->turns, l->dialler ? TURN_SEND : TURN_RECEIVE, &l->turn);
    if (l->turn.held == l->has_turn) return;
    l->has_turn = true;
    dslink_turn(l->session, true, now_ns);
}

/* Whether the transport had something new. */
static bool ask_transport(struct device_link *l, uint64_t now_ns)
{
    const struct transport_ops *ops = l->kind->transport;
    bool opening = dslink_opening(l->session), joining = dslink_joining(l->session);
    uint32_t slot;
    if (!opening && !joining && !dslink_operating(l->session)) return false;
    enum err e = opening   ? opened(l)
                 : joining ? ops->joined(l->transport)
                           : ops->ended(l->transport, &slot);
    if (e == ERR_AGAIN) return false;
    if (e != OK) {
        dslink_broken(l->session, e, err_text(), now_ns);
    } else if (joining) {
        dslink_joined(l->session, now_ns);
    } else if (!opening) {
        FAILPOINT("link_ended");
        dslink_ended(l->session, now_ns);
        give_turn(l); /* others first */
    }
    return true;
}

static void pump(struct device_link *l, uint64_t now_ns)
{
    bool moved = true;
    if (l->started) dslink_timer(l->session, now_ns);
    for (int i = 0; i < ROUNDS_MAX && moved; i++) {
        take_turn(l, now_ns);
        moved = do_acts(l, now_ns);
        moved |= ask_transport(l, now_ns);
        moved |= read_control(l, now_ns);
    }
    take_turn(l, now_ns);
    l->wake |= moved;
}

/* ---- what the caller hears ---- */

static enum err dead(const struct device_link *l)
{
    enum err e = dslink_error(l->session);
    if (e == OK || e == ERR_CANCELLED) e = ERR_PEER;
    if (e == ERR_STATE) e = ERR_FORMAT;
    return err_set(e, "%s link: %s", l->base.ops->name, dslink_error_text(l->session));
}

static void start(struct device_link *l, uint64_t now_ns)
{
    l->started = true;
    dslink_start(l->session, now_ns);
}

enum err device_link_poll(struct kv_link *link)
{
    struct device_link *l = device_link(link);
    uint64_t now_ns = clock_now_ns();
    quiet_timer(l);
    l->starved = l->blocked = l->wake = false;
    if (!l->lost) {
        enum err e = l->control->ops->poll(l->control);
        if (e != OK && e != ERR_AGAIN)
            lose_control(l, e, now_ns);
        else if (e == OK && !l->started)
            start(l, now_ns);
    }
    pump(l, now_ns);
    settle(l, now_ns);
    if (is_dead(l)) return dead(l);
    enum dslink_state state = dslink_state(l->session);
    bool up = state == DSLINK_READY || state == DSLINK_DRAINING || state == DSLINK_CLOSED;
    return up ? OK : ERR_AGAIN;
}

enum err device_link_send(struct kv_link *link, const struct kv_piece *pieces,
                          uint32_t pieces_count)
{
    struct device_link *l = device_link(link);
    struct kv_piece framed[KV_LINK_PIECES_MAX];
    uint8_t header[CONTROL_HEADER_BYTES];
    CHECK(pieces_count < KV_LINK_PIECES_MAX);
    CHECK(kv_pieces_bytes(pieces, pieces_count) <= l->options.frame_bytes_max);
    if (dslink_state(l->session) == DSLINK_CLOSED) return dead(l);
    enum err e = ERR_AGAIN;
    if (dslink_may_send(l->session)) {
        framed[0] =
            (struct kv_piece){header, control_frame_header(dslink_epoch(l->session), header)};
        memcpy(framed + 1, pieces, pieces_count * sizeof *pieces);
        e = l->control->ops->send(l->control, framed, pieces_count + 1);
        l->blocked = e == ERR_AGAIN; /* its fd wakes the caller */
        if (e == ERR_AGAIN || e == OK) return e;
        lose_control(l, e, clock_now_ns());
        e = dead(l);
    }
    l->starved = e == ERR_AGAIN;
    settle(l, clock_now_ns());
    return e;
}

enum err device_link_receive(struct kv_link *link, const void **bytes, size_t *size)
{
    struct device_link *l = device_link(link);
    uint64_t now_ns = clock_now_ns();
    struct dslink_frame f;
    if (!dslink_front(l->session, &f)) {
        pump(l, now_ns);
        settle(l, now_ns);
        if (!dslink_front(l->session, &f)) return is_dead(l) ? dead(l) : ERR_AGAIN;
    }
    *bytes = f.bytes;
    *size = f.size;
    return OK;
}

const void *device_link_payload(const struct kv_link *link, size_t *payload_bytes)
{
    const struct device_link *l = device_link(link);
    struct dslink_frame f;
    *payload_bytes = 0;
    if (!dslink_front(l->session, &f) || !f.in_slot) return NULL;
    *payload_bytes = f.payload_bytes;
    return l->kind->transport->slot(l->transport, f.slot);
}

void device_link_release(struct kv_link *link)
{
    struct device_link *l = device_link(link);
    uint64_t now_ns = clock_now_ns();
    FAILPOINT("link_release");
    if (dslink_release(l->session)) {
        l->held = false;
        l->control->ops->release(l->control);
    }
    pump(l, now_ns);
    settle(l, now_ns);
}

enum err device_link_slot(struct kv_link *link, void **slot)
{
    struct device_link *l = device_link(link);
    uint32_t i;
    if (dslink_state(l->session) == DSLINK_CLOSED) return dead(l);
    enum err e = dslink_slot(l->session, &i);
    if (e == OK) {
        *slot = l->kind->transport->slot(l->transport, i);
        return OK;
    }
    l->starved = true;
    return e;
}

enum err device_link_send_slot(struct kv_link *link, const void *head, size_t head_bytes,
                               size_t payload_bytes)
{
    struct device_link *l = device_link(link);
    uint64_t now_ns = clock_now_ns();
    dslink_send_slot(l->session, head, head_bytes, (uint32_t)payload_bytes);
    pump(l, now_ns);
    settle(l, now_ns);
    return dslink_state(l->session) == DSLINK_CLOSED ? dead(l) : OK;
}

int device_link_fd(const struct kv_link *link)
{
    return device_link(link)->epoll;
}

struct kv_link_facts device_link_facts(const struct kv_link *link)
{
    const struct dslink *s = device_link(link)->session;
    return (struct kv_link_facts){.window_bytes =
                                      (uint64_t)dslink_slots_count(s) * dslink_slot_bytes(s),
                                  .slot_bytes = dslink_slot_bytes(s)};
}

/* ---- making and closing ---- */

void device_link_close(struct kv_link *link)
{
    if (!link) return;
    struct device_link *l = device_link(link);
    uint64_t now_ns = clock_now_ns();
    if (l->session) {
        dslink_let_go(l->session);
        if (dslink_state(l->session) < DSLINK_DRAINING ||
            dslink_state(l->session) == DSLINK_ABORTED)
            dslink_drain(l->session, now_ns);
        do_acts(l, now_ns);
        l->lost = true;
        dslink_lost(l->session, ERR_CANCELLED, "closed", now_ns);
        do_acts(l, now_ns);
        CHECK(!l->transport);
        give_turn(l);
    }
    l->control->ops->close(l->control);
    if (l->device) device_drop(l->device);
    if (l->timer >= 0) close(l->timer);
    if (l->epoll >= 0) close(l->epoll);
    dslink_free(l->session);
    mem_free(l);
}

static enum err watch_own(struct device_link *l)
{
    struct epoll_event event = {.events = EPOLLIN};
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    l->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (l->epoll >= 0 && l->timer >= 0 &&
        epoll_ctl(l->epoll, EPOLL_CTL_ADD, l->timer, &event) == 0 &&
        epoll_ctl(l->epoll, EPOLL_CTL_ADD, l->control->ops->fd(l->control), &event) == 0) {
        l->watched = true;
        return OK;
    }
    return err_set(ERR_IO, "%s link: %s", l->base.ops->name, strerror(errno));
}

static struct dslink_times times_of(const struct device_link_kind *kind)
{
    struct dslink_times t = kind->times ? *kind->times : dslink_times_default;
    const char *set = getenv("TANDEM_LINK_HASTE");
    uint64_t haste = set ? strtoull(set, NULL, 10) : 0;
    uint64_t *const each[] = {&t.open_ns,    &t.join_ns,  &t.warm_ns, &t.operation_ns,
                              &t.receive_ns, &t.drain_ns, &t.pause_ns};
    for (size_t i = 0; haste > 0 && i < sizeof each / sizeof *each; i++)
        *each[i] /= haste;
    return t;
}

/* Takes `control` over, also when it fails. */
static enum err link_new(struct kv_link **out, const struct device_link_kind *kind,
                         const struct kv_link_options *options, struct kv_link *control,
                         bool dialler, const char *peer)
{
    struct device_link *l = mem_new(sizeof *l);
    struct dslink_options so = {.dialler = dialler,
                                .transport = kind->transport,
                                .device_index = options->device_index,
                                .slots_count = options->slots_count,
                                .slot_bytes = options->slot_bytes,
                                .times = times_of(kind)};
    enum err e = ERR_MEMORY;
    *out = NULL;
    if (!l) {
        control->ops->close(control);
        return e;
    }
    *l = (struct device_link){.base = {kind->ops},
                              .kind = kind,
                              .options = *options,
                              .control = control,
                              .dialler = dialler,
                              .armed_ns = TIME_NEVER,
                              .epoll = -1,
                              .timer = -1};
    list_init(&l->turn.waiting);
    snprintf(l->peer, sizeof l->peer, "%s", peer);
    if ((l->device = device_take(kind->transport, options->device_index)) &&
        (e = watch_own(l)) == OK)
        e = dslink_new(&l->session, &so);
    if (e != OK) {
        device_link_close(&l->base);
        return e;
    }
    *out = &l->base;
    return OK;
}

static struct kv_link_options control_options(const struct kv_link_options *options)
{
    struct kv_link_options o = *options;
    o.frame_bytes_max += CONTROL_HEADER_BYTES;
    if (o.frame_bytes_max < CONTROL_BYTES_MAX) o.frame_bytes_max = CONTROL_BYTES_MAX;
    return o;
}

static enum err check_options(const struct device_link_kind *kind,
                              const struct kv_link_options *options)
{
    if (options->slots_count > 0 && options->slots_count <= TRANSPORT_SLOTS_MAX &&
        options->slot_bytes > 0)
        return OK;
    return err_set(ERR_INVALID, "%s link: %u slots of %u bytes; 1 to %d of at least 1 are possible",
                   kind->ops->name, options->slots_count, options->slot_bytes, TRANSPORT_SLOTS_MAX);
}

enum err device_link_dial(const struct device_link_kind *kind, struct kv_link **link,
                          const char *address, const struct kv_link_options *options)
{
    char control_address[KV_LINK_ADDRESS_MAX];
    size_t n = strlen(kind->ops->name);
    struct kv_link *control;
    *link = NULL;
    if (strncmp(address, kind->ops->name, n) != 0 || address[n] != ':')
        return err_set(ERR_UNSUPPORTED, "%.32s is no %s address", address, kind->ops->name);
    enum err e = check_options(kind, options);
    if (e == OK) e = check_room(kind, options);
    if (e != OK) return e;
    snprintf(control_address, sizeof control_address, "%s%s", kind->control->name, address + n);
    struct kv_link_options o = control_options(options);
    if ((e = kind->control->dial(&control, control_address, &o)) != OK) return e;
    return link_new(link, kind, options, control, true, address);
}

/* Tells the caller that it was turned away, if the control link takes that. */
static void turn_away(struct kv_link *control, enum err e)
{
    uint8_t bytes[CONTROL_BYTES_MAX];
    struct control m = {.kind = CONTROL_ABORT, .epoch = 1, .error = e, .final = true};
    snprintf(m.text, sizeof m.text, "turned away: the other side has as many links as it may");
    struct kv_piece piece = {bytes, control_print(&m, bytes)};
    control->ops->send(control, &piece, 1);
    control->ops->close(control);
}

enum err device_link_accept(struct kv_listener *listener, struct kv_link **link)
{
    struct device_listener *l = (struct device_listener *)listener;
    struct kv_link *control;
    *link = NULL;
    enum err e = l->control->ops->accept(l->control, &control);
    if (e != OK) return e;
    if ((e = check_room(l->kind, &l->options)) != OK) {
        turn_away(control, e);
        return e;
    }
    if ((e = link_new(link, l->kind, &l->options, control, false, "accepted")) != OK) return e;
    uint64_t now_ns = clock_now_ns();
    start(device_link(*link), now_ns);
    settle(device_link(*link), now_ns);
    return OK;
}

void device_link_unlisten(struct kv_listener *listener)
{
    struct device_listener *l = (struct device_listener *)listener;
    if (!l) return;
    if (l->control) l->control->ops->unlisten(l->control);
    mem_free(l);
}

enum err device_link_listen(const struct device_link_kind *kind, struct kv_listener **out,
                            const char *where, const struct kv_link_options *options)
{
    *out = NULL;
    enum err e = check_options(kind, options);
    if (e != OK) return e;
    struct device_listener *l = mem_new(sizeof *l);
    if (!l) return ERR_MEMORY;
    l->base.ops = kind->ops;
    l->kind = kind;
    l->options = *options;
    struct kv_link_options o = control_options(options);
    if ((e = kind->control->listen(&l->control, where, &o)) != OK) {
        device_link_unlisten(&l->base);
        return e;
    }
    snprintf(l->address, sizeof l->address, "%s%s", kind->ops->name,
             kind->control->address(l->control) + strlen(kind->control->name));
    *out = &l->base;
    return OK;
}

const char *device_link_address(const struct kv_listener *listener)
{
    return ((const struct device_listener *)listener)->address;
}

int device_link_listener_fd(const struct kv_listener *listener)
{
    const struct device_listener *l = (const struct device_listener *)listener;
    return l->control->ops->listener_fd(l->control);
}
