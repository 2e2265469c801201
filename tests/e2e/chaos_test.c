/* A process dies, freezes or dawdles at every arrow of a request's way and inside push, commit and free,
 * over each link: every stream equals that of an undisturbed run, and all blocks come back.
 *
 *     ./dev chaos [POINT]        all of them, or those of one point
 *
 * The programs have failpoints (common/failpoint.h); the one that is doomed is started with one set. */
#include "tests/e2e/rig.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEED = 17, ASKS = 24, CASES_MAX = 256 };
#define SOON "--heartbeat 50ms --dead-after 700ms "
#define SOON_ROUTER SOON "--deaths-max 100 --disaggregate always"

/* Where, in the order of the picture in docs/architecture.md, section 2. `time`: at the how manieth. */
static const struct point {
    enum program program;
    const char *name;
    unsigned time;
} points[] = {
    {PROGRAM_ROUTER, "got_submit", 3},
    {PROGRAM_ROUTER, "send_accepted", 3},
    {PROGRAM_ROUTER, "send_reserve", 3},
    {PROGRAM_ROUTER, "got_reserved", 2},
    {PROGRAM_ROUTER, "send_prefill", 2},
    {PROGRAM_ROUTER, "got_first", 2},
    {PROGRAM_ROUTER, "got_prefilled", 2},
    {PROGRAM_ROUTER, "got_tokens", 5},
    {PROGRAM_ROUTER, "send_output", 9},
    {PROGRAM_ROUTER, "got_finished", 2},
    {PROGRAM_ROUTER, "send_finished_ack", 2},
    {PROGRAM_ROUTER, "send_done", 2},
    {PROGRAM_PREFILL, "got_prefill", 2},
    {PROGRAM_PREFILL, "push", 7},
    {PROGRAM_PREFILL, "send_first", 2},
    {PROGRAM_PREFILL, "commit", 2},
    {PROGRAM_PREFILL, "send_prefilled", 2},
    {PROGRAM_PREFILL, "free", 2},
    {PROGRAM_DECODE, "got_reserve", 2},
    {PROGRAM_DECODE, "send_reserved", 2},
    {PROGRAM_DECODE, "store", 7},
    {PROGRAM_DECODE, "committed", 2},
    {PROGRAM_DECODE, "send_tokens", 4},
    {PROGRAM_DECODE, "send_finished", 2},
    {PROGRAM_DECODE, "got_finished_ack", 2},
    {PROGRAM_DECODE, "free", 2},
};

static const char *const actions[] = {"crash", "stop", "delay:300"};

struct chaos {
    const struct point *point;
    const char *action, *link;
    char title[96];
};

static const struct chaos *current;

static struct process *start_doomed(struct rig *rig, const struct chaos *c, const char *args)
{
    char text[96];
    snprintf(text, sizeof text, "%s=%s@%u", c->point->name, c->action, c->point->time);
    setenv("TANDEM_FAILPOINT", text, 1);
    struct process *p = c->point->program == PROGRAM_ROUTER
                            ? cluster_router(rig->cluster, args)
                            : cluster_node(rig->cluster, c->point->program, args);
    unsetenv("TANDEM_FAILPOINT");
    return p;
}

/* The doomed process is the first of its kind: clients ask it first, ties go to it. A router has a second
 * one behind it. */
static struct process *start(struct rig *rig, const struct chaos *c)
{
    static const enum program order[] = {PROGRAM_PREFILL, PROGRAM_DECODE};
    char args[128];
    struct process *doomed = NULL;
    snprintf(args, sizeof args, SOON "--link %s --chunk 64", c->link);
    rig->cluster = cluster_new(cluster_demo_model());
    if (c->point->program == PROGRAM_ROUTER) doomed = start_doomed(rig, c, SOON_ROUTER);
    cluster_router(rig->cluster, SOON_ROUTER);
    for (size_t i = 0; i < 2; i++) {
        if (c->point->program == order[i]) doomed = start_doomed(rig, c, args);
        cluster_node(rig->cluster, order[i], args);
    }
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    return doomed;
}

static bool has_acted(void *ctx)
{
    return process_logged(ctx, "failpoint");
}

static bool is_given_up(struct cluster *c)
{
    for (uint32_t i = 0; i < c->count; i++)
        if (process_logged(c->process[i], "session_down") ||
            process_logged(c->process[i], "node_left"))
            return true;
    return false;
}

/* What the frozen one had may have been done with: then the streams need nobody to give it up. */
static bool others_gave_it_up_or_are_done(void *ctx)
{
    const struct rig *rig = ctx;
    return rig->streams->ended_count == rig->streams->count || is_given_up(rig->cluster);
}

static void whatever_fails_there_no_stream_changes(void **state)
{
    const struct chaos *c = current;
    struct rig *rig = *state;
    struct process *doomed = start(rig, c);
    asks_start(&rig->asks, rig->streams);
    streams_run_until(rig->streams, has_acted, doomed, "the failpoint was reached");
    if (strcmp(c->action, "crash") == 0) {
        doomed->expendable = true;
        assert_int_equal(process_await_exit(doomed), 256 + SIGKILL);
    }
    if (strcmp(c->action, "stop") == 0) {
        streams_run_until(rig->streams, others_gave_it_up_or_are_done, rig,
                          "the others gave it up");
        process_signal(doomed, SIGCONT);
    }
    streams_run(rig->streams);
    asks_expect(&rig->asks, rig->streams, 0, rig->wanted);
    cluster_await_nodes(rig->cluster);
    rig_finish(rig);
}

static int setup(void **state)
{
    current = *state;
    return rig_setup(state);
}

static int learn(void **state)
{
    (void)state;
    return rig_learn(SEED, ASKS);
}

int main(int argc, char **argv)
{
    static struct chaos chaos[CASES_MAX];
    static struct CMUnitTest tests[CASES_MAX];
    static const char *const links[] = {"shm", "tcp"};
    size_t count = 0;
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++)
        for (size_t a = 0; a < 3; a++)
            for (size_t l = 0; l < 2; l++) {
                if (argc > 1 && strcmp(argv[1], points[i].name) != 0) continue;
                struct chaos *c = &chaos[count];
                *c = (struct chaos){&points[i], actions[a], links[l], ""};
                snprintf(c->title, sizeof c->title, "%s %s over %s", c->action, c->point->name,
                         c->link);
                tests[count++] = (struct CMUnitTest){
                    c->title, whatever_fails_there_no_stream_changes, setup, rig_teardown, c};
            }
    return _cmocka_run_group_tests("e2e/chaos", tests, count, learn, rig_forget);
}
