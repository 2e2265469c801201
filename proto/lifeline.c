#include "proto/lifeline.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/byte_order.h"
#include "common/list.h"
#include "common/log.h"
#include "common/map.h"
#include "common/mem.h"
#include "proto/tcp.h"

enum { ACCEPT_BATCH = 64, ACCEPT_PAUSE_MS = 100 };

struct arrival { /* a connection that came in */
    struct lifeline_server *server;
    struct list_link link;
    int fd;
    struct loop_watch *watch;
    struct loop_timer *deadline; /* until the key is here */
    unsigned char key[LIFELINE_KEY_BYTES];
    size_t key_bytes;
    struct expected *expected; /* whose it is, once the key is here */
};

struct expected {
    struct id128 key;
    struct peer peer;
    struct arrival *arrival; /* NULL: not here yet */
};

struct lifeline_server {
    struct loop *loop;
    lifeline_server_fn *fn;
    void *ctx;
    int fd;
    struct loop_watch *watch;
    struct loop_timer *resume; /* after descriptors ran out */
    struct list_link arrivals;
    uint32_t strangers_count;
    struct map by_key, by_peer; /* of struct expected */
    char address[TCP_ADDRESS_TEXT];
};

void lifeline_key_bytes(struct id128 key, unsigned char bytes[LIFELINE_KEY_BYTES])
{
    be64_put(bytes, key.hi);
    be64_put(bytes + 8, key.lo);
}

static struct id128 key_of_bytes(const unsigned char bytes[LIFELINE_KEY_BYTES])
{
    return (struct id128){be64_get(bytes), be64_get(bytes + 8)};
}

/* ---- the side that accepts ---- */

static void arrival_free(struct arrival *a)
{
    if (a->expected)
        a->expected->arrival = NULL;
    else
        a->server->strangers_count--;
    list_remove(&a->link);
    loop_timer_free(a->deadline);
    loop_watch_free(a->watch);
    close(a->fd);
    mem_free(a);
}

static void expected_free(struct lifeline_server *s, struct expected *x)
{
    map_remove(&s->by_key, x->key);
    map_remove(&s->by_peer, map_key(x->peer.v));
    if (x->arrival) arrival_free(x->arrival);
    mem_free(x);
}

static void arrival_ended(struct arrival *a, uint64_t now_ns)
{
    struct lifeline_server *s = a->server;
    struct expected *x = a->expected;
    if (!x) {
        arrival_free(a);
        return;
    }
    struct peer peer = x->peer;
    expected_free(s, x);
    s->fn(s->ctx, now_ns, peer, false);
}

static void arrival_known(struct arrival *a, uint64_t now_ns)
{
    struct lifeline_server *s = a->server;
    struct expected *x = map_get(&s->by_key, key_of_bytes(a->key));
    if (!x || x->arrival) {
        log_warn("lifeline_refused", "address=%s reason=\"unknown key\"", s->address);
        arrival_free(a);
        return;
    }
    a->expected = x;
    x->arrival = a;
    s->strangers_count--;
    loop_timer_set(a->deadline, TIME_NEVER);
    s->fn(s->ctx, now_ns, x->peer, true);
}

static void on_arrival_readable(void *ctx, uint64_t now_ns, unsigned events)
{
    struct arrival *a = ctx;
    unsigned char more[LIFELINE_KEY_BYTES + 1];
    (void)events;
    ssize_t n = read(a->fd, more, sizeof more - a->key_bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0 || a->key_bytes + (size_t)n > LIFELINE_KEY_BYTES) {
        arrival_ended(a, now_ns);
        return;
    }
    memcpy(a->key + a->key_bytes, more, (size_t)n);
    a->key_bytes += (size_t)n;
    if (a->key_bytes == LIFELINE_KEY_BYTES) arrival_known(a, now_ns);
}

static void on_deadline(void *ctx, uint64_t now_ns)
{
    arrival_ended(ctx, now_ns);
}

static void arrival_new(struct lifeline_server *s, int fd, uint64_t now_ns)
{
    struct arrival *a = mem_new(sizeof *a);
    if (!a) {
        close(fd);
        return;
    }
    *a = (struct arrival){.server = s, .fd = fd};
    list_push_back(&s->arrivals, &a->link);
    s->strangers_count++;
    if (s->strangers_count > LIFELINE_STRANGERS_MAX ||
        loop_watch(s->loop, fd, LOOP_READ, on_arrival_readable, a, &a->watch) != OK ||
        loop_timer_new(s->loop, on_deadline, a, &a->deadline) != OK) {
        arrival_free(a);
        return;
    }
    loop_timer_set(a->deadline, now_ns + LIFELINE_KEY_MS * NS_PER_MS);
}

static void on_acceptable(void *ctx, uint64_t now_ns, unsigned events)
{
    struct lifeline_server *s = ctx;
    (void)events;
    for (int i = 0; i < ACCEPT_BATCH; i++) {
        int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            arrival_new(s, fd, now_ns);
            continue;
        }
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
        /* Out of descriptors: the listener stays readable, so look away for a while. */
        log_warn("lifeline_accept_failed", "address=%s reason=\"%s\"", s->address, strerror(errno));
        loop_watch_free(s->watch);
        s->watch = NULL;
        loop_timer_set(s->resume, now_ns + ACCEPT_PAUSE_MS * NS_PER_MS);
        return;
    }
}

static void on_resume(void *ctx, uint64_t now_ns)
{
    struct lifeline_server *s = ctx;
    if (loop_watch(s->loop, s->fd, LOOP_READ, on_acceptable, s, &s->watch) != OK)
        loop_timer_set(s->resume, now_ns + ACCEPT_PAUSE_MS * NS_PER_MS);
}

enum err lifeline_listen(struct lifeline_server **out, struct loop *loop, const char *address,
                         lifeline_server_fn *fn, void *ctx)
{
    enum err e;
    struct lifeline_server *s = mem_new(sizeof *s);
    if (!s) return ERR_MEMORY;
    *s = (struct lifeline_server){.loop = loop, .fn = fn, .ctx = ctx, .fd = -1};
    list_init(&s->arrivals);
    if ((e = tcp_listen(address, &s->fd, s->address)) != OK) goto fail;
    if ((e = loop_timer_new(loop, on_resume, s, &s->resume)) != OK) goto fail;
    if ((e = loop_watch(loop, s->fd, LOOP_READ, on_acceptable, s, &s->watch)) != OK) goto fail;
    *out = s;
    return OK;
fail:
    lifeline_close(s);
    return e;
}

const char *lifeline_address(const struct lifeline_server *s)
{
    return s->address;
}

enum err lifeline_expect(struct lifeline_server *s, struct id128 key, struct peer peer)
{
    enum err e;
    lifeline_forget(s, peer);
    struct expected *x = mem_new(sizeof *x);
    if (!x) return ERR_MEMORY;
    *x = (struct expected){.key = key, .peer = peer};
    if ((e = map_put(&s->by_key, key, x)) != OK) {
        mem_free(x);
        return e == ERR_DUPLICATE ? err_set(e, "a lifeline key was given twice") : e;
    }
    if ((e = map_put(&s->by_peer, map_key(peer.v), x)) != OK) {
        map_remove(&s->by_key, key);
        mem_free(x);
    }
    return e;
}

void lifeline_forget(struct lifeline_server *s, struct peer peer)
{
    struct expected *x = map_get(&s->by_peer, map_key(peer.v));
    if (x) expected_free(s, x);
}

void lifeline_close(struct lifeline_server *s)
{
    struct expected *x;
    if (!s) return;
    while (!list_empty(&s->arrivals))
        arrival_free(list_member(s->arrivals.next, struct arrival, link));
    for (struct map_cursor c = {0}; (x = map_next(&s->by_peer, &c));)
        mem_free(x);
    map_fini(&s->by_key);
    map_fini(&s->by_peer);
    loop_timer_free(s->resume);
    loop_watch_free(s->watch);
    if (s->fd >= 0) close(s->fd);
    mem_free(s);
}

/* ---- the side that dials ---- */

struct lifeline {
    struct loop *loop;
    lifeline_fn *fn;
    void *ctx;
    int fd;
    struct loop_watch *watch;
    struct loop_timer *refused; /* tells from the loop what lifeline_dial found out at once */
    unsigned char key[LIFELINE_KEY_BYTES];
};

static void lifeline_end(struct lifeline *l, uint64_t now_ns)
{
    loop_watch_free(l->watch);
    l->watch = NULL;
    l->fn(l->ctx, now_ns, false); /* may free l */
}

static void on_end(void *ctx, uint64_t now_ns, unsigned events)
{
    struct lifeline *l = ctx;
    char byte;
    (void)events;
    ssize_t n = read(l->fd, &byte, 1);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    lifeline_end(l, now_ns); /* a word is as bad as an end: nothing is said on a lifeline */
}

static void on_connected(void *ctx, uint64_t now_ns, unsigned events)
{
    struct lifeline *l = ctx;
    (void)events;
    loop_watch_free(l->watch);
    l->watch = NULL;
    if (tcp_connected(l->fd) != OK ||
        send(l->fd, l->key, sizeof l->key, MSG_NOSIGNAL) != sizeof l->key ||
        loop_watch(l->loop, l->fd, LOOP_READ, on_end, l, &l->watch) != OK) {
        lifeline_end(l, now_ns);
        return;
    }
    l->fn(l->ctx, now_ns, true);
}

static void on_refused(void *ctx, uint64_t now_ns)
{
    lifeline_end(ctx, now_ns);
}

enum err lifeline_dial(struct lifeline **out, struct loop *loop, const struct lifeline_at *at,
                       struct id128 key, lifeline_fn *fn, void *ctx)
{
    char address[TCP_ADDRESS_TEXT];
    tcp_fill_host(at->address, at->dialled, address);
    struct lifeline *l = mem_new(sizeof *l);
    if (!l) return ERR_MEMORY;
    *l = (struct lifeline){.loop = loop, .fn = fn, .ctx = ctx, .fd = -1};
    lifeline_key_bytes(key, l->key);
    enum err e = loop_timer_new(loop, on_refused, l, &l->refused);
    if (e == OK) e = tcp_dial(address, &l->fd);
    if (e == OK) e = loop_watch(loop, l->fd, LOOP_WRITE, on_connected, l, &l->watch);
    if (e == ERR_PEER) {
        loop_timer_set(l->refused, loop_now_ns(loop));
    } else if (e != OK) {
        lifeline_free(l);
        return e;
    }
    *out = l;
    return OK;
}

void lifeline_free(struct lifeline *l)
{
    if (!l) return;
    loop_timer_free(l->refused);
    loop_watch_free(l->watch);
    if (l->fd >= 0) close(l->fd);
    mem_free(l);
}
