/* reaper: takes down what may never come down. A communicator whose peer died inside an operation is
 * ended by ncclCommAbort, which may itself wait for ever; so each is ended on a thread of its own that
 * nobody waits for, with a watchdog beside it.
 *
 *     t->work = (struct reaper_work){.run = take_down, .done = forget, .arg = t};
 *     snprintf(t->work.peer, sizeof t->work.peer, "%s", peer);
 *     reaper_start(&t->work);                     // returns at once; t is the reaper's from here on
 *
 * Rules: `run` may block; `done` is called when it has returned, and may free `arg` and the work. If it
 * has not returned after REAPER_WAIT_MS (10 s, in which the process was not stopped; tests set
 * TANDEM_ABORT_MS in the environment), or if there is no thread to be had, then memory and multiprocessors of
 * the device are lost for good: the event link_abort_hangs is logged with the peer, and the process ends with
 * REAPER_EXIT, the status of a node with a sick device, for its supervisor to start it again. Giving memory
 * back waits for all that the device was given, operations of other links included, which have deadlines
 * and aborts of their own: `run` says reaper_frees before it, and has REAPER_FREE_TIMES as long from there. A process that exits waits for the threads
 * that are under way. Any thread. */
#ifndef TANDEM_XFER_DEVICE_REAPER_H
#define TANDEM_XFER_DEVICE_REAPER_H

#include <stdatomic.h>
#include <stdbool.h>

enum {
    REAPER_WAIT_MS = 10000,
    REAPER_FREE_TIMES = 6,
    REAPER_EXIT = 1,
    REAPER_PEER_MAX = 96,
};

struct reaper_work {
    void (*run)(void *arg);
    void (*done)(void *arg);
    void *arg;
    char peer[REAPER_PEER_MAX]; /* for the log line */
    atomic_bool frees, over;    /* the reaper's own */
};

/* Neither allocates nor fails. */
void reaper_start(struct reaper_work *work);
void reaper_frees(struct reaper_work *work); /* by `run` */

#endif
