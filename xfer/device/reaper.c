#include "xfer/device/reaper.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/plant.h"

#define LOOK_NS_MAX (20 * NS_PER_MS)

enum stage { IDLE, SETTING_UP, SET_UP, GOING };

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

static void start_thread(struct reaper_work *work, void *(*main)(void *))
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, main, work) != 0) give_up(work, "no thread for it");
    pthread_detach(thread);
}

static void *run_main(void *arg)
{
    struct reaper_work *work = arg;
    work->task(work);
    atomic_store(&work->over, true); /* it is the watchdog's from here on */
    return NULL;
}

/* It looks each millisecond: this lasts for a few of them, or ends the process. A process that was stopped
 * has not waited meanwhile: of a long time between two looks little counts. */
static void *watch_main(void *arg)
{
    struct reaper_work *work = arg;
    uint64_t left_ns = wait_ms() * NS_PER_MS, last_ns = clock_now_ns();
    bool frees = false;
    start_thread(work, run_main);
    while (!atomic_load(&work->over)) {
        if (!frees && atomic_load(&work->frees) && !PLANTED("frees_as_an_abort")) {
            frees = true;
            left_ns = REAPER_FREE_TIMES * wait_ms() * NS_PER_MS;
        }
        uint64_t now_ns = clock_now_ns();
        uint64_t passed_ns = now_ns - last_ns < LOOK_NS_MAX ? now_ns - last_ns : LOOK_NS_MAX;
        last_ns = now_ns;
        left_ns -= passed_ns < left_ns ? passed_ns : left_ns;
        if (left_ns == 0 && !PLANTED("abort_not_watched"))
            give_up(work, "it has not returned in time");
        usleep(1000);
    }
    work->then(work);
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

static void begin(struct reaper_work *work, void (*task)(struct reaper_work *),
                  void (*then)(struct reaper_work *), bool frees)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_exit);
    work->task = task;
    work->then = then;
    atomic_store(&work->frees, frees);
    atomic_store(&work->over, false);
    atomic_fetch_add(&under_way_count, 1);
    start_thread(work, watch_main);
}

static void take_down(struct reaper_work *work)
{
    work->run(work->arg);
}
static void forget(struct reaper_work *work)
{
    work->done(work->arg);
}

static void set_up(struct reaper_work *work)
{
    work->e = work->set_up(work->arg);
    if (work->e != OK) memcpy(work->text, err_text(), sizeof work->text);
}
static void was_set_up(struct reaper_work *work)
{
    int stage = SETTING_UP;
    if (!atomic_compare_exchange_strong(&work->stage, &stage, SET_UP))
        begin(work, take_down, forget, false); /* it was closed meanwhile */
}

void reaper_set_up(struct reaper_work *work)
{
    CHECK(atomic_load(&work->stage) == IDLE);
    if (PLANTED("set_up_on_the_link_thread")) {
        set_up(work);
        atomic_store(&work->stage, SET_UP);
        return;
    }
    atomic_store(&work->stage, SETTING_UP);
    begin(work, set_up, was_set_up, true);
}

enum err reaper_looked(struct reaper_work *work)
{
    if (atomic_load(&work->stage) == SETTING_UP) return ERR_AGAIN;
    return work->e == OK ? OK : err_set(work->e, "%s", work->text);
}

void reaper_start(struct reaper_work *work)
{
    if (atomic_exchange(&work->stage, GOING) != SETTING_UP) begin(work, take_down, forget, false);
}

void reaper_frees(struct reaper_work *work)
{
    atomic_store(&work->frees, true);
}
