/* loop: the loop thread's event loop: sockets, timers, mailboxes, signals; a thin coat over libevent
 * that gives every callback of one turn the same time.
 *
 *     struct loop *loop;
 *     if ((e = loop_new(&loop)) != OK) return e;
 *     loop_watch(loop, fd, LOOP_READ, on_readable, ctx, &watch);
 *     loop_timer_new(loop, on_timer, ctx, &timer); loop_timer_set(timer, now_ns + 5 * NS_PER_MS);
 *     loop_signal(loop, SIGTERM, on_signal, ctx);
 *     loop_run(loop);                                   // until loop_stop from a callback
 *     loop_free(loop);                                  // after watches and timers were freed
 *
 * Rules: one thread. A callback may free any watch or timer, its own too. Callbacks that run longer
 * than 1 ms are counted. loop_now_ns is read once per turn, before the first callback. */
#ifndef TANDEM_PROTO_LOOP_H
#define TANDEM_PROTO_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "common/clock.h"
#include "common/err.h"

struct loop;
struct loop_watch;
struct loop_timer;
enum { LOOP_READ = 1, LOOP_WRITE = 2 };

typedef void loop_fd_fn(void *ctx, uint64_t now_ns, unsigned events);
typedef void loop_timer_fn(void *ctx, uint64_t now_ns);
typedef void loop_signal_fn(void *ctx, uint64_t now_ns, int number);

enum err loop_new(struct loop **loop);
void loop_free(struct loop *loop);
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);
uint64_t loop_now_ns(const struct loop *loop);
uint64_t loop_slow_callbacks(const struct loop *loop);
/* 1, 2, 3 …: for ids that must not come twice within a loop's life, such as peers. */
uint32_t loop_number(struct loop *loop);

enum err loop_watch(struct loop *loop, int fd, unsigned events, loop_fd_fn *fn, void *ctx,
                    struct loop_watch **watch);
void loop_watch_free(struct loop_watch *watch); /* NULL is allowed; the fd stays open */

enum err loop_timer_new(struct loop *loop, loop_timer_fn *fn, void *ctx, struct loop_timer **timer);
/* Absolute time; TIME_NEVER stops it. Setting it again moves it. Fires once. */
void loop_timer_set(struct loop_timer *timer, uint64_t when_ns);
void loop_timer_free(struct loop_timer *timer);

enum err loop_signal(struct loop *loop, int number, loop_signal_fn *fn, void *ctx);

/* For what libevent itself serves on this loop (proto/monitor.h): its base, and what stands around
 * each of its callbacks, so that these know the turn's time and are counted like the others. */
struct event_base;
struct event_base *loop_base(struct loop *loop);
uint64_t loop_callback_begin(struct loop *loop);
void loop_callback_end(struct loop *loop);

#endif
