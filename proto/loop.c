/* loop: libevent watches the file descriptors and signals; timers are a heap behind one timerfd, so that
 * they are absolute, exact and fire in the order of their times, equal ones as they were set.
 *
 * One turn: wait; then each callback that is due, in libevent's order. When the timerfd is among
 * them, the timers due are collected before the first of them runs: one that is set meanwhile waits for
 * the next turn, one that is stopped meanwhile does not run. */
#include "proto/loop.h"

#include <errno.h>
#include <event2/event.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/heap.h"
#include "common/list.h"
#include "common/mem.h"

enum { SLOW_NS = 1000000 };

struct loop_watch {
    struct loop *loop;
    struct event *event;
    loop_fd_fn *fn;
    void *ctx;
};

struct loop_timer {
    struct loop *loop;
    struct heap_entry entry;
    struct list_link due; /* in loop->due while it waits for its callback */
    loop_timer_fn *fn;
    void *ctx;
};

struct loop_signal {
    struct loop *loop;
    struct event *event;
    struct list_link link;
    loop_signal_fn *fn;
    void *ctx;
};

struct loop {
    struct event_base *base;
    struct loop_watch *clock; /* of timer_fd */
    int timer_fd;
    struct heap timers;
    struct list_link due, signals;
    uint64_t armed_ns; /* what timer_fd is set to; TIME_NEVER: off */
    uint64_t now_ns;
    uint64_t callback_ended_ns;
    uint64_t slow_count;
    uint32_t numbers_count, timers_count;
    bool turn_began, stopping;
};

/* Before a callback: the turn's time, read when its first callback begins. */
uint64_t loop_callback_begin(struct loop *loop)
{
    if (!loop->turn_began) {
        loop->turn_began = true;
        loop->now_ns = loop->callback_ended_ns = clock_now_ns();
    }
    return loop->now_ns;
}

void loop_callback_end(struct loop *loop)
{
    uint64_t ended_ns = clock_now_ns();
    if (ended_ns - loop->callback_ended_ns > SLOW_NS) loop->slow_count++;
    loop->callback_ended_ns = ended_ns;
}

static void arm(struct loop *loop)
{
    struct heap_entry *first = heap_first(&loop->timers);
    uint64_t when_ns = first ? first->key : TIME_NEVER;
    if (when_ns == loop->armed_ns) return;
    struct itimerspec spec = {0};
    if (when_ns != TIME_NEVER) {
        uint64_t at_ns = when_ns ? when_ns : 1; /* zero would switch it off */
        spec.it_value.tv_sec = (time_t)(at_ns / NS_PER_S);
        spec.it_value.tv_nsec = (long)(at_ns % NS_PER_S);
    }
    CHECK(timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL) == 0);
    loop->armed_ns = when_ns;
}

static void on_clock(void *ctx, uint64_t now_ns, unsigned events)
{
    struct loop *loop = ctx;
    uint64_t expirations;
    struct heap_entry *first;
    struct list_link *l;
    (void)events;
    if (read(loop->timer_fd, &expirations, sizeof expirations) < 0) return; /* moved meanwhile */
    loop->armed_ns = TIME_NEVER;
    while ((first = heap_first(&loop->timers)) && first->key <= now_ns) {
        heap_remove(&loop->timers, first);
        list_push_back(&loop->due, &list_member(first, struct loop_timer, entry)->due);
    }
    while ((l = list_pop_front(&loop->due))) {
        struct loop_timer *t = list_member(l, struct loop_timer, due);
        t->fn(t->ctx, now_ns);
        loop_callback_end(loop); /* timers that are due together count one by one */
    }
    arm(loop);
}

static void on_event(evutil_socket_t fd, short what, void *arg)
{
    struct loop_watch *w = arg;
    struct loop *loop = w->loop;
    (void)fd;
    unsigned events = (what & EV_READ ? LOOP_READ : 0) | (what & EV_WRITE ? LOOP_WRITE : 0);
    w->fn(w->ctx, loop_callback_begin(loop), events); /* may free w */
    loop_callback_end(loop);
}

static void on_signal(evutil_socket_t number, short what, void *arg)
{
    struct loop_signal *s = arg;
    (void)what;
    s->fn(s->ctx, loop_callback_begin(s->loop), (int)number);
    loop_callback_end(s->loop);
}

enum err loop_new(struct loop **out)
{
    enum err e = ERR_MEMORY;
    struct loop *loop = mem_new(sizeof *loop);
    if (!loop) return ERR_MEMORY;
    list_init(&loop->due);
    list_init(&loop->signals);
    loop->armed_ns = TIME_NEVER;
    loop->now_ns = clock_now_ns();
    loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (loop->timer_fd < 0) {
        e = err_set(ERR_IO, "no timer: %s", strerror(errno));
        goto fail;
    }
    if (!(loop->base = event_base_new())) {
        e = err_set(ERR_IO, "no event loop");
        goto fail;
    }
    if ((e = loop_watch(loop, loop->timer_fd, LOOP_READ, on_clock, loop, &loop->clock)) != OK)
        goto fail;
    *out = loop;
    return OK;
fail:
    loop_free(loop);
    return e;
}

void loop_free(struct loop *loop)
{
    struct list_link *l;
    if (!loop) return;
    while ((l = list_pop_front(&loop->signals))) {
        struct loop_signal *s = list_member(l, struct loop_signal, link);
        event_free(s->event);
        mem_free(s);
    }
    loop_watch_free(loop->clock);
    if (loop->base) event_base_free(loop->base);
    if (loop->timer_fd >= 0) close(loop->timer_fd);
    heap_fini(&loop->timers);
    mem_free(loop);
}

void loop_run(struct loop *loop)
{
    loop->stopping = false;
    while (!loop->stopping) {
        loop->turn_began = false;
        CHECK(event_base_loop(loop->base, EVLOOP_ONCE) == 0);
    }
}

void loop_stop(struct loop *loop)
{
    loop->stopping = true;
    event_base_loopbreak(loop->base);
}

uint64_t loop_now_ns(const struct loop *loop)
{
    return loop->now_ns;
}

struct event_base *loop_base(struct loop *loop)
{
    return loop->base;
}

uint64_t loop_slow_callbacks(const struct loop *loop)
{
    return loop->slow_count;
}

uint32_t loop_number(struct loop *loop)
{
    return ++loop->numbers_count;
}

static short libevent_events(unsigned events)
{
    return (short)((events & LOOP_READ ? EV_READ : 0) | (events & LOOP_WRITE ? EV_WRITE : 0) |
                   EV_PERSIST);
}

enum err loop_watch(struct loop *loop, int fd, unsigned events, loop_fd_fn *fn, void *ctx,
                    struct loop_watch **watch)
{
    struct loop_watch *w = mem_new(sizeof *w);
    if (!w) return ERR_MEMORY;
    *w = (struct loop_watch){.loop = loop, .fn = fn, .ctx = ctx};
    /* libevent takes -1 for an event without a descriptor */
    w->event = fd < 0 ? NULL : event_new(loop->base, fd, libevent_events(events), on_event, w);
    if (!w->event || event_add(w->event, NULL) != 0) {
        loop_watch_free(w);
        return err_set(ERR_IO, "file descriptor %d cannot be watched", fd);
    }
    *watch = w;
    return OK;
}

void loop_watch_free(struct loop_watch *w)
{
    if (!w) return;
    if (w->event) event_free(w->event);
    mem_free(w);
}

enum err loop_timer_new(struct loop *loop, loop_timer_fn *fn, void *ctx, struct loop_timer **timer)
{
    struct loop_timer *t = mem_new(sizeof *t);
    if (!t) return ERR_MEMORY;
    *t = (struct loop_timer){.loop = loop, .fn = fn, .ctx = ctx};
    list_init(&t->due);
    /* Room for it now, so that setting it later cannot fail; the heap never has more than exist. */
    enum err e = heap_reserve(&loop->timers, ++loop->timers_count);
    if (e != OK) {
        loop->timers_count--;
        mem_free(t);
        return e;
    }
    *timer = t;
    return OK;
}

void loop_timer_set(struct loop_timer *t, uint64_t when_ns)
{
    list_remove(&t->due);
    if (when_ns == TIME_NEVER)
        heap_remove(&t->loop->timers, &t->entry);
    else
        CHECK(heap_move(&t->loop->timers, &t->entry, when_ns) == OK);
    if (list_empty(&t->loop->due)) arm(t->loop); /* else on_clock does it at its end */
}

void loop_timer_free(struct loop_timer *t)
{
    if (!t) return;
    loop_timer_set(t, TIME_NEVER);
    t->loop->timers_count--;
    mem_free(t);
}

enum err loop_signal(struct loop *loop, int number, loop_signal_fn *fn, void *ctx)
{
    struct loop_signal *s = mem_new(sizeof *s);
    if (!s) return ERR_MEMORY;
    *s = (struct loop_signal){.loop = loop, .fn = fn, .ctx = ctx};
    s->event = evsignal_new(loop->base, number, on_signal, s);
    if (!s->event || event_add(s->event, NULL) != 0) {
        if (s->event) event_free(s->event);
        mem_free(s);
        return err_set(ERR_IO, "signal %d cannot be watched", number);
    }
    list_push_back(&loop->signals, &s->link);
    return OK;
}
