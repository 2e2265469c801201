/* reaper: what may wait for ever, on threads of its own. Memory of a device is taken and mapped by calls that may
 * wait for whatever the device is doing; a communicator whose peer died inside an operation is ended by
 * ncclCommAbort, which may itself never return. So each transport is set up and taken down on a thread that
 * nobody waits for, with a watchdog beside it.
 *
 *     t->work = (struct reaper_work){.set_up = take_memory, .run = take_down, .done = forget, .arg = t};
 *     snprintf(t->work.peer, sizeof t->work.peer, "%s", peer);
 *     reaper_set_up(&t->work);                      // returns at once; perhaps never called
 *     while ((e = reaper_looked(&t->work)) == ERR_AGAIN) ...;
 *     reaper_start(&t->work);                       // returns at once; t is the reaper's from here on
 *
 * Rules: `set_up` and `run` may block; while `set_up` is under way nobody else touches what it makes.
 * reaper_start waits for it, on the reaper's threads: `run` begins when it has returned. `done` is called when `run`
 * has returned, and may free `arg` and the work. What does not return in time, or gets no thread, has lost memory
 * and multiprocessors of the device for good: the event link_abort_hangs is logged with the peer, and the process
 * ends with REAPER_EXIT, the status of a node with a sick device, for its supervisor to start it again. In time
 * is REAPER_WAIT_MS (10 s, in which the process was not stopped; tests set TANDEM_ABORT_MS in the environment).
 * Taking memory and giving it back waits for all that the device was given, operations of other links included,
 * which have deadlines and aborts of their own: `set_up` has REAPER_FREE_TIMES as long, and so has `run` from where
 * it says reaper_frees. A process that exits waits for the threads that are under way. Any thread. */
#ifndef TANDEM_XFER_DEVICE_REAPER_H
#define TANDEM_XFER_DEVICE_REAPER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "common/err.h"

enum {
    REAPER_WAIT_MS = 10000,
    REAPER_FREE_TIMES = 6,
    REAPER_EXIT = 1,
    REAPER_PEER_MAX = 96,
};

struct reaper_work {
    enum err (*set_up)(void *arg);
    void (*run)(void *arg);
    void (*done)(void *arg);
    void *arg;
    char peer[REAPER_PEER_MAX]; /* for the log line */
    /* The reaper's own: what a thread does, what follows when it is over. */
    void (*task)(struct reaper_work *work), (*then)(struct reaper_work *work);
    atomic_int stage;
    atomic_bool frees, over;
    enum err e; /* of set_up, with its text */
    char text[ERR_TEXT_MAX];
};

/* Neither allocates nor fails. */
void reaper_set_up(struct reaper_work *work);
/* ERR_AGAIN while set_up is under way, then what it said; OK if it was never begun. */
enum err reaper_looked(struct reaper_work *work);
void reaper_start(struct reaper_work *work);
void reaper_frees(struct reaper_work *work); /* by `run` */

#endif
