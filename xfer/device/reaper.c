#include "xfer/device/reaper.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/plant.h"

static atomic_uint under_way_count;

/* Nothing that could wait is called: no exit handlers, no destructors of the device's libraries. */
__attribute__((noreturn)) static void give_up(const struct reaper_work *work, const char *why)
{
    log_error("link_abort_hangs", "peer=%s reason=\"%s; the process ends\"", work->peer, why);
    _exit(REAPER_EXIT);
}

static unsigned wait_ms(void)
{
    const char *set = getenv("TANDEM_ABORT_MS");
    unsigned ms = set ? (unsigned)strtoul(set, NULL, 10) : 0;
    return ms ? ms : REAPER_WAIT_MS;
}

static void *run_main(void *arg)
{
    struct reaper_work *work = arg;
    work->run(work->arg);
    return NULL;
}

static void *watch_main(void *arg)
{
    struct reaper_work *work = arg;
    struct timespec until;
    pthread_t thread;
    unsigned ms = wait_ms();
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += ms % 1000 * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (PLANTED("abort_not_watched")) until.tv_sec += 3600;
    if (pthread_create(&thread, NULL, run_main, work) != 0) give_up(work, "no thread for it");
    if (pthread_clockjoin_np(thread, NULL, CLOCK_MONOTONIC, &until) != 0)
        give_up(work, "it has not returned in time");
    work->done(work->arg);
    atomic_fetch_sub(&under_way_count, 1);
    return NULL;
}

/* The device's libraries must not be unloaded under a thread that is inside them. The watchdog limits
 * this. */
static void wait_at_exit(void)
{
    while (atomic_load(&under_way_count) > 0)
        usleep(1000);
}

static void register_exit(void)
{
    atexit(wait_at_exit);
}

void reaper_start(struct reaper_work *work)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_t thread;
    pthread_once(&once, register_exit);
    atomic_fetch_add(&under_way_count, 1);
    if (pthread_create(&thread, NULL, watch_main, work) != 0) give_up(work, "no thread for it");
    pthread_detach(thread);
}
