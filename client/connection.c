/* connection: the way to one router of the list at a time: its sockets, the session, what a turn of
 * tandem_process does, and the next address when it is lost. */
#include "client/internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/mem.h"

enum { BATCH = 256 };

/* ---- descriptors ---- */

static enum err watch(struct tandem *t, int fd, uint32_t events)
{
    struct epoll_event e = {.events = events, .data = {.fd = fd}};
    if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, fd, &e) == 0) return OK;
    return err_set(ERR_IO, "epoll: %s", strerror(errno));
}

static void set_timer(struct tandem *t, uint64_t when_ns)
{
    struct itimerspec spec = {0};
    if (when_ns == 0) when_ns = 1; /* zero would switch it off */
    if (when_ns != TIME_NEVER) {
        spec.it_value.tv_sec = (time_t)(when_ns / NS_PER_S);
        spec.it_value.tv_nsec = (long)(when_ns % NS_PER_S);
    }
    CHECK(timerfd_settime(t->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL) == 0);
}

void connection_kick(struct tandem *t)
{
    t->kicked = true; /* if this is inside tandem_process, its end looks at it */
    set_timer(t, 0);
}

/* ---- why there is no router ---- */

static const char address_hint[] = "is the cluster running, and is the address right?";
static const char lifeline_hint[] =
    "that port must be open from here, too: see the router's --listen-lifeline";

static void lifeline_trouble(struct tandem *t, const char *reason)
{
    snprintf(t->trouble, sizeof t->trouble, "%.150s answers, but its lifeline %s does not: %.150s",
             tandem_router(t), t->life_address, reason);
    t->hint = lifeline_hint;
}

/* ---- the lifeline ---- */

static void life_drop(struct tandem *t)
{
    if (t->life_fd >= 0) close(t->life_fd); /* epoll forgets it */
    t->life_fd = -1;
    t->life = LIFE_NONE;
}

static void put_key(unsigned char *bytes, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(v >> (56 - 8 * i));
}

static enum err life_dial(struct tandem *t, const struct msg_welcome *w)
{
    enum err e;
    life_drop(t);
    put_key(t->life_key, w->lifeline_key.hi);
    put_key(t->life_key + 8, w->lifeline_key.lo);
    tcp_fill_host(w->lifeline, tandem_router(t), t->life_address);
    t->life = LIFE_CONNECTING;
    lifeline_trouble(t, "no connection in time");
    if ((e = tcp_dial(t->life_address, &t->life_fd)) != OK) return e;
    return watch(t, t->life_fd, EPOLLOUT);
}

static bool is_ready(int fd, short events)
{
    struct pollfd p = {fd, events, 0};
    return poll(&p, 1, 0) > 0;
}

static bool life_connect(struct tandem *t)
{
    struct epoll_event e = {.events = EPOLLIN, .data = {.fd = t->life_fd}};
    if (tcp_connected(t->life_fd) != OK) {
        lifeline_trouble(t, err_text());
        return false;
    }
    if (send(t->life_fd, t->life_key, sizeof t->life_key, MSG_NOSIGNAL) != sizeof t->life_key)
        return false;
    t->life = LIFE_UP;
    return epoll_ctl(t->epoll_fd, EPOLL_CTL_MOD, t->life_fd, &e) == 0;
}

/* ---- up and down ---- */

bool connection_is_up(const struct tandem *t)
{
    return t->session.state == SESSION_UP;
}

static void close_wire(struct tandem *t, int linger_ms)
{
    if (t->wire) epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, wire_fd(t->wire), NULL);
    wire_close(t->wire, linger_ms);
    wire_line_free(t->line);
    t->wire = NULL;
    t->line = NULL;
}

static enum err dial(struct tandem *t, uint64_t now_ns)
{
    enum err e;
    t->dialled_ns = now_ns;
    if (!(t->line = wire_line_new())) return ERR_MEMORY;
    if ((e = wire_open(&t->wire, WIRE_DIAL, t->address[t->address_now])) != OK) goto fail;
    if ((e = watch(t, wire_fd(t->wire), EPOLLIN)) != OK) goto fail;
    session_start(&t->session, now_ns);
    return OK;
fail:
    close_wire(t, 0);
    return e;
}

/* With a list, the next one is dialled; the only one stays dialled and is greeted again. */
static void next_router(struct tandem *t, uint64_t now_ns)
{
    t->dialled_ns = now_ns;
    if (t->addresses_count == 1) return;
    close_wire(t, 0);
    t->address_now = (t->address_now + 1) % t->addresses_count;
}

static bool has_settled(const struct tandem *t, uint64_t now_ns)
{
    return t->up_ns && now_ns - t->up_ns >= SETTLED_MS * NS_PER_MS;
}

/* The session is over: all that was under way goes to the next router, or to the same again. */
static void went_down(struct tandem *t, uint64_t now_ns)
{
    if (t->life != LIFE_CONNECTING) { /* else that is the trouble, and said */
        snprintf(t->trouble, sizeof t->trouble, "%s: %s", tandem_router(t), t->session.down_reason);
        t->hint = address_hint;
    }
    life_drop(t);
    if (has_settled(t, now_ns)) t->lost_ns = now_ns;
    t->up_ns = 0;
    next_router(t, now_ns);
    requests_lost(t, now_ns);
    queries_lost(t);
}

static uint64_t at_least_ms(uint32_t ms, uint32_t least_ms)
{
    return (ms > least_ms ? ms : least_ms) * NS_PER_MS;
}

/* Only now is there a router: one that has no lifeline is lost again and again. */
static void lifeline_stands(struct tandem *t, uint64_t now_ns)
{
    session_on_lifeline(&t->session, now_ns, true);
    t->up_ns = now_ns;
}

static void went_up(struct tandem *t, uint64_t now_ns, const struct msg_welcome *w)
{
    t->session.limits.heartbeat_ns = at_least_ms(w->heartbeat_ms, 20);
    t->session.limits.dead_ns = at_least_ms(w->dead_ms, 200);
    if (!w->lifeline[0]) { /* a router without */
        lifeline_stands(t, now_ns);
    } else if (life_dial(t, w) != OK) {
        lifeline_trouble(t, err_text());
        if (session_on_lifeline(&t->session, now_ns, false)) went_down(t, now_ns);
    }
}

static void refused(struct tandem *t, uint64_t now_ns, const char *reason)
{
    char trouble[ERR_TEXT_MAX];
    snprintf(trouble, sizeof trouble, "%.150s refused: %.300s", tandem_router(t), reason);
    went_down(t, now_ns);
    memcpy(t->trouble, trouble, sizeof trouble);
}

/* ---- messages ---- */

enum err connection_send(struct tandem *t, struct msg *m)
{
    enum err e;
    uint32_t remaining_ms = m->envelope.remaining_ms;
    if (!t->wire) return err_set(ERR_PEER, "not connected");
    m->envelope = session_envelope(&t->session);
    m->envelope.remaining_ms = remaining_ms;
    buf_clear(&t->out);
    if ((e = msg_encode(m, &t->out)) != OK) return e;
    e = m->kind == MSG_HELLO ? wire_send_first(t->wire, t->line, t->out.data, t->out.size)
                             : wire_send(t->wire, NULL, t->line, t->out.data, t->out.size);
    if (wire_readable(t->wire)) connection_kick(t); /* the descriptor will not say it again */
    return e;
}

static void send_hello(struct tandem *t)
{
    char host[MSG_ADDRESS_MAX] = "";
    gethostname(host, sizeof host - 1);
    struct msg m = {
        .kind = MSG_HELLO,
        .hello = {.role = ROLE_CLIENT, .name = t->name, .host = host, .pid = (uint32_t)getpid()}};
    connection_send(t, &m);
}

static void send_heartbeat(struct tandem *t)
{
    struct msg m = {.kind = MSG_HEARTBEAT};
    connection_send(t, &m);
}

static void deliver(struct tandem *t, uint64_t now_ns, const struct msg *m)
{
    switch (m->kind) {
    case MSG_ACCEPTED: request_on_accepted(t, &m->accepted); return;
    case MSG_REJECTED: request_on_rejected(t, now_ns, &m->rejected); return;
    case MSG_OUTPUT: request_on_output(t, &m->output); return;
    case MSG_ENCODED: request_on_encoded(t, &m->encoded); return;
    case MSG_DONE: request_on_done(t, &m->done); return;
    case MSG_ANSWER: query_on_answer(t, &m->answer); return;
    default: return; /* heartbeats are for the session */
    }
}

static void on_message(struct tandem *t, uint64_t now_ns, const struct msg *m)
{
    switch (session_on_message(&t->session, now_ns, m)) {
    case SESSION_DELIVER: deliver(t, now_ns, m); return;
    case SESSION_BECAME_UP: went_up(t, now_ns, &m->welcome); return;
    case SESSION_BECAME_DOWN:
        if (m->kind == MSG_REFUSE)
            refused(t, now_ns, m->refuse.reason);
        else
            went_down(t, now_ns);
        return;
    case SESSION_GREETED:
    case SESSION_DROP: return;
    }
}

/* False: there may be more. */
static bool receive_all(struct tandem *t, uint64_t now_ns)
{
    struct msg m;
    const void *bytes;
    size_t size;
    for (int i = 0; i < BATCH; i++) {
        enum err e = t->wire ? wire_receive(t->wire, NULL, &bytes, &size) : ERR_AGAIN;
        if (e == ERR_AGAIN) return true;
        arena_reset(&t->arena);
        if (e == OK && msg_decode(bytes, size, &t->arena, &m) == OK) on_message(t, now_ns, &m);
    }
    return false;
}

/* ---- one turn ---- */

static void look_at_lifeline(struct tandem *t, uint64_t now_ns)
{
    bool lost = false;
    if (t->life == LIFE_CONNECTING && is_ready(t->life_fd, POLLOUT)) {
        lost = !life_connect(t);
        if (!lost) lifeline_stands(t, now_ns);
    } else if (t->life == LIFE_UP && is_ready(t->life_fd, POLLIN)) {
        lost = true; /* an end, or a word where nothing is said */
        if (!has_settled(t, now_ns)) {
            lifeline_trouble(t, "it ended at once, perhaps another router's");
            t->life = LIFE_CONNECTING; /* so far, and no farther */
        }
    }
    if (lost && session_on_lifeline(&t->session, now_ns, false)) went_down(t, now_ns);
}

static uint64_t run_session(struct tandem *t, uint64_t now_ns)
{
    if (!t->wire && dial(t, now_ns) != OK) {
        snprintf(t->trouble, sizeof t->trouble, "%s", err_text());
        t->hint = address_hint;
        t->address_now = (t->address_now + 1) % t->addresses_count;
        return now_ns + RETRY_MS * NS_PER_MS;
    }
    struct session_due due = session_on_timer(&t->session, now_ns);
    if (due.hello) send_hello(t);
    if (due.heartbeat) send_heartbeat(t);
    if (due.died) went_down(t, now_ns);
    if (connection_is_up(t)) return due.wake_ns;
    uint64_t next_ns = t->dialled_ns + CONNECT_MS * NS_PER_MS;
    if (t->wire && now_ns >= next_ns) { /* nobody there, or one that refused */
        session_start(&t->session, now_ns);
        next_router(t, now_ns);
        return now_ns;
    }
    if (!t->wire) return now_ns;
    return due.wake_ns < next_ns ? due.wake_ns : next_ns;
}

static uint64_t give_up(struct tandem *t, uint64_t now_ns)
{
    char reason[ERR_TEXT_MAX + 128];
    if (t->up_ns) return TIME_NEVER;
    if (list_empty(&t->requests) && list_empty(&t->queries)) {
        t->lost_ns = now_ns; /* patience begins with something to wait for */
        return TIME_NEVER;
    }
    if (now_ns < t->lost_ns + t->patience_ns) return t->lost_ns + t->patience_ns;
    snprintf(reason, sizeof reason, "no router reachable (%s): %s", t->trouble, t->hint);
    t->lost_ns = now_ns;
    requests_fail(t, TANDEM_NO_ROUTER, reason);
    queries_fail(t, TANDEM_NO_ROUTER, reason);
    return now_ns;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* A program that was stopped, or did something else for long, has not looked for a router meanwhile. */
static void note_absence(struct tandem *t, uint64_t now_ns)
{
    if (now_ns > t->due_ns && now_ns - t->due_ns > LATE_MS * NS_PER_MS)
        t->lost_ns += now_ns - t->due_ns;
}

void tandem_process(struct tandem *t)
{
    uint64_t expirations, now_ns = clock_now_ns();
    ssize_t n = read(t->timer_fd, &expirations, sizeof expirations);
    (void)n; /* not due: fine */
    t->kicked = false;
    note_absence(t, now_ns);
    bool drained = receive_all(t, now_ns);
    now_ns = clock_now_ns(); /* callbacks may take long */
    look_at_lifeline(t, now_ns);
    uint64_t wake_ns = run_session(t, now_ns);
    wake_ns = earlier(wake_ns, give_up(t, now_ns));
    queries_pump(t);
    wake_ns = earlier(wake_ns, requests_pump(t, now_ns));
    if (!drained || t->kicked || (t->wire && wire_readable(t->wire))) wake_ns = 0;
    t->due_ns = wake_ns ? wake_ns : clock_now_ns();
    set_timer(t, wake_ns);
}

void tandem_wait(struct tandem *t, int timeout_ms)
{
    struct pollfd p = {t->epoll_fd, POLLIN, 0};
    if (poll(&p, 1, timeout_ms) > 0) tandem_process(t);
}

/* ---- opening and closing ---- */

static enum err add_address(struct tandem *t, const char *text, size_t n)
{
    if (t->addresses_count == ROUTERS_MAX)
        return err_set(ERR_INVALID, "more than %d routers", ROUTERS_MAX);
    char *address = mem_new(n + 1);
    if (!address) return ERR_MEMORY;
    memcpy(address, text, n);
    t->address[t->addresses_count++] = address;
    return wire_check_address(address);
}

static enum err parse_addresses(struct tandem *t, const char *addresses)
{
    enum err e = OK;
    for (const char *p = addresses; e == OK;) {
        size_t n = strcspn(p, ",");
        e = add_address(t, p, n);
        if (!p[n]) break;
        p += n + 1;
    }
    return e;
}

static enum err open_descriptors(struct tandem *t)
{
    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    t->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (t->epoll_fd < 0 || t->timer_fd < 0)
        return err_set(ERR_IO, "no descriptor: %s", strerror(errno));
    return watch(t, t->timer_fd, EPOLLIN);
}

static void destroy(struct tandem *t)
{
    life_drop(t);
    close_wire(t, WIRE_LINGER_MS);
    if (t->timer_fd >= 0) close(t->timer_fd);
    if (t->epoll_fd >= 0) close(t->epoll_fd);
    for (uint32_t i = 0; i < t->addresses_count; i++)
        mem_free(t->address[i]);
    map_fini(&t->by_id);
    map_fini(&t->by_ref);
    buf_fini(&t->out);
    arena_fini(&t->arena);
    mem_free(t);
}

enum tandem_status tandem_open(struct tandem **out, const char *addresses)
{
    enum err e;
    struct id128 life;
    struct tandem *t = mem_new(sizeof *t);
    if (!t) return TANDEM_MEMORY;
    t->epoll_fd = t->timer_fd = t->life_fd = -1;
    t->patience_ns = PATIENCE_MS * NS_PER_MS;
    t->arena.limit_bytes = 4 * MSG_BYTES_MAX;
    list_init(&t->requests);
    list_init(&t->queries);
    if ((e = id128_mint(&life)) != OK) goto fail;
    if ((e = parse_addresses(t, addresses)) != OK) goto fail;
    if ((e = open_descriptors(t)) != OK) goto fail;
    snprintf(t->name, sizeof t->name, "client-%d-%08x", (int)getpid(), (uint32_t)life.lo);
    snprintf(t->trouble, sizeof t->trouble, "%s does not answer", t->address[0]);
    t->hint = address_hint;
    session_init(&t->session, SESSION_DIALER, life.hi | 1, &SESSION_LIMITS_DEFAULT);
    t->lost_ns = t->due_ns = clock_now_ns();
    connection_kick(t);
    *out = t;
    return TANDEM_OK;
fail:
    destroy(t);
    return status_of(e);
}

void tandem_close(struct tandem *t)
{
    struct msg bye = {.kind = MSG_BYE};
    if (!t) return;
    t->closing = true;
    requests_fail(t, TANDEM_CANCELLED, "the connection was closed");
    queries_fail(t, TANDEM_CANCELLED, "the connection was closed");
    if (connection_is_up(t)) connection_send(t, &bye); /* the router ends what is left */
    destroy(t);
}

void tandem_set_patience(struct tandem *t, uint32_t ms)
{
    t->patience_ns = ms * NS_PER_MS;
    connection_kick(t);
}

int tandem_fd(const struct tandem *t)
{
    return t->epoll_fd;
}

int tandem_is_connected(const struct tandem *t)
{
    return connection_is_up(t);
}

const char *tandem_router(const struct tandem *t)
{
    return t->address[t->address_now];
}
