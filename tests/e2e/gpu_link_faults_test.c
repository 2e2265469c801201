/* One side of a link between GPUs dies or freezes in each state of the link's session, and in the middle of
 * a transfer: every stream equals one GPU's, the others go on, all blocks come back, and when the peer is
 * back the pair uses the link again.
 *
 *     gpu_link_faults_test [POINT ["--link LINK"]]     all, or those of one point, over one link
 *
 * The plugins of tests/fake have failpoints (common/failpoint.h): one for each state that the session is
 * in after it has done what it could (xfer/device/session.h), and some inside an operation. One cluster
 * serves all cases of a link: a node of each role that stays, and one that is doomed. */
#include "tests/e2e/links.h"
#include "tests/e2e/rig.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SOON "--heartbeat 50ms --dead-after 700ms "
#define ROUTER SOON "--deaths-max 100 --lone-deaths-max 100 --disaggregate always"
#define NODE LINKS_CUDA SOON "--link-retry 50ms --prefix-cache=false "
#define HASTE "10" /* how many times shorter the session's deadlines are than in real life */

enum { CASES_MAX = 128, BATCHES_MAX = 100, ASKS = 4 };

static const struct point {
    enum program program;
    const char *name;
    unsigned time;
    const char *link;  /* NULL: both */
    const char *knobs; /* of the doomed one's NCCL; NULL: none */
} points[] = {
    {PROGRAM_PREFILL, "link_OPENING", 1, NULL, NULL},
    {PROGRAM_PREFILL, "link_JOINING", 1, NULL, NULL},
    {PROGRAM_PREFILL, "link_WARMING", 1, NULL, NULL},
    {PROGRAM_PREFILL, "link_READY", 1, NULL, NULL},
    {PROGRAM_PREFILL, "link_begin", 4, NULL, NULL},
    {PROGRAM_PREFILL, "link_ended", 4, "nccl", NULL},
    {PROGRAM_PREFILL, "link_ABORTED", 1, "nccl", "fail_call=init,fail_at=1"},
    {PROGRAM_PREFILL, "link_DRAINING", 1, NULL, NULL},
    {PROGRAM_DECODE, "link_ACCEPTING", 1, NULL, NULL},
    {PROGRAM_DECODE, "link_OFFERING", 1, "nccl", NULL},
    {PROGRAM_DECODE, "link_JOINING", 1, NULL, NULL},
    {PROGRAM_DECODE, "link_WARMING", 1, NULL, NULL},
    {PROGRAM_DECODE, "link_READY", 1, NULL, NULL},
    {PROGRAM_DECODE, "link_begin", 4, "nccl", NULL},
    {PROGRAM_DECODE, "link_ended", 4, "nccl", NULL},
    {PROGRAM_DECODE, "link_release", 4, NULL, NULL},
    {PROGRAM_DECODE, "link_DRAINING", 1, NULL, NULL},
    {PROGRAM_DECODE, "link_ABORTED", 1, "nccl", "fail_call=init,fail_at=1"},
};

static const struct ask asks[ASKS] = {
    {.text = "ROMEO:\nWhat say you to my suit?",
     .max_tokens = 5,
     .ignore_eos = true,
     .want_logprobs = true},
    {.text = "KING RICHARD III:\nNow is the winter",
     .max_tokens = 4,
     .ignore_eos = true,
     .temperature = 1,
     .seed = 5},
    {.text = "O, that this too too solid flesh",
     .max_tokens = 4,
     .ignore_eos = true,
     .temperature = 1,
     .seed = 6},
    {.text = "Speak, speak.",
     .max_tokens = 5,
     .ignore_eos = true,
     .temperature = 0.7f,
     .seed = 7,
     .choices = 2},
};

/* A cluster whose links are these. With others beside it a link that broke is left alone for a while; a
 * forced one is all there is. */
static const struct way {
    const char *kind, *plugins, *args;
} ways[] = {
    {"nccl", "cuda nccl", "--link nccl"},
    {"ipc", "cuda ipc", "--link ipc"},
    {"nccl", "cuda nccl", "--link auto"},
};

struct fault {
    const struct point *point;
    const struct way *way;
    const char *action;
    char title[96];
};

static const struct fault *current;
static struct streams *wanted;
static struct rig rig;            /* serves until a case fails or the link changes */
static const struct way *serving; /* NULL: nothing */
static bool passed;

/* ---- the cluster ---- */

static struct process *start_node(enum program program, const struct way *way)
{
    char args[512];
    snprintf(args, sizeof args, NODE "%s", way->args);
    return cluster_node(rig.cluster, program, args);
}

static void serve(const struct way *way)
{
    rig = (struct rig){.cluster = cluster_new(links_model())};
    rig.cluster->own_hosts = true;
    links_use_plugins(rig.cluster, way->plugins);
    cluster_router(rig.cluster, ROUTER);
    start_node(PROGRAM_PREFILL, way);
    start_node(PROGRAM_DECODE, way);
    cluster_await_nodes(rig.cluster);
    rig_connect(&rig);
    serving = way;
}

static void abandon(void)
{
    streams_free(rig.streams);
    cluster_free(rig.cluster);
    rig = (struct rig){.cluster = NULL};
    serving = NULL;
}

static struct process *start_doomed(const struct fault *f)
{
    char text[96];
    snprintf(text, sizeof text, "%s=%s@%u", f->point->name, f->action, f->point->time);
    setenv("TANDEM_FAILPOINT", text, 1);
    setenv("TANDEM_FAKE_NCCL", f->point->knobs ? f->point->knobs : "", 1);
    struct process *p = start_node(f->point->program, f->way);
    unsetenv("TANDEM_FAILPOINT");
    unsetenv("TANDEM_FAKE_NCCL");
    cluster_await_nodes(rig.cluster);
    return p;
}

/* ---- asking ---- */

static uint32_t ask(void)
{
    uint32_t first = rig.streams->count;
    if (first + ASKS > STREAMS_MAX) {
        streams_free(rig.streams);
        rig_connect(&rig);
        first = 0;
    }
    for (uint32_t i = 0; i < ASKS; i++)
        streams_start(rig.streams, i % 2, &asks[i]);
    return first;
}

static void expect(uint32_t first)
{
    streams_run(rig.streams);
    for (uint32_t i = 0; i < ASKS; i++)
        stream_expect_equal(rig.streams->stream[first + i], wanted->stream[i]);
}

static bool has_acted(const struct process *p)
{
    return process_logged(p, "failpoint");
}

static bool acted_or_all_ended(void *ctx)
{
    return has_acted(ctx) || rig.streams->ended_count == rig.streams->count;
}

static bool given_up_or_all_ended(void *ctx)
{
    const struct process *p = ctx;
    if (rig.streams->ended_count == rig.streams->count) return true;
    json_t *status = cluster_status(rig.cluster);
    bool gone = !cluster_find_node(status, p->name);
    json_decref(status);
    return gone;
}

/* Batch after batch, until one has met the failpoint: the first of that batch, which may not have ended. */
static uint32_t ask_until_it_acts(struct process *doomed)
{
    for (int i = 0; i < BATCHES_MAX; i++) {
        uint32_t first = ask();
        streams_run_until(rig.streams, acted_or_all_ended, doomed, "the failpoint was reached");
        if (has_acted(doomed)) return first;
        expect(first);
    }
    fail_msg("%d batches, and %s was not reached", BATCHES_MAX, current->point->name);
    return 0;
}

/* Until KV crossed the link between `p` and the node that stays. */
static void use_the_link(const struct process *p)
{
    bool prefills = p->program == PROGRAM_PREFILL;
    struct link_wish wish = {.kind = current->way->kind,
                             .from = prefills ? p->name : "p0",
                             .to = prefills ? "d0" : p->name,
                             .ready = true,
                             .bytes = 1};
    struct link_row row;
    for (int i = 0; i < BATCHES_MAX; i++) {
        expect(ask());
        json_t *status = cluster_status(rig.cluster);
        bool met = links_find(status, &wish, &row);
        json_decref(status);
        if (met) return;
        streams_turn(rig.streams, 20);
    }
    links_await(rig.cluster, &wish, &row);
}

/* ---- the promise ---- */

/* Whatever it held is free; the rest is as if it had never been there. */
static void send_home(struct process *p)
{
    if (p->pid) cluster_drain(rig.cluster, p);
    if (p->pid && process_await_exit(p) != 0) fail_msg("%s left with %d", p->name, p->status);
    cluster_await_nodes(rig.cluster);
    cluster_await_idle(rig.cluster);
}

/* Returns who is there in its place. */
static struct process *meet_its_fate(const struct fault *f, struct process *doomed)
{
    if (strcmp(f->action, "stop") == 0) {
        streams_run_until(rig.streams, given_up_or_all_ended, doomed, "the others gave it up");
        process_signal(doomed, SIGCONT);
        return doomed;
    }
    doomed->expendable = true;
    assert_int_equal(process_await_exit(doomed), 256 + SIGKILL);
    return start_node(f->point->program, f->way);
}

/* Its session is drained because it leaves. */
static void whoever_fails_while_leaving(const struct fault *f)
{
    struct process *doomed = start_doomed(f);
    use_the_link(doomed);
    process_signal(doomed, SIGTERM);
    uint32_t first = ask();
    if (strcmp(f->action, "stop") == 0) {
        for (int i = 0; !process_is_stopped(doomed); i++) { /* it says so before it is */
            assert_true(i < CLUSTER_WAIT_MS / 10);
            streams_turn(rig.streams, 10);
        }
        process_signal(doomed, SIGCONT);
        assert_int_equal(process_await_exit(doomed), 0);
    } else {
        doomed->expendable = true;
        assert_int_equal(process_await_exit(doomed), 256 + SIGKILL);
    }
    expect(first);
    struct process *back = start_node(f->point->program, f->way);
    cluster_await_nodes(rig.cluster);
    use_the_link(back);
    send_home(back);
}

static void whoever_fails_there_the_pair_is_used_again(void **state)
{
    const struct fault *f = current;
    (void)state;
    if (strcmp(f->point->name, "link_DRAINING") == 0) {
        whoever_fails_while_leaving(f);
    } else {
        struct process *doomed = start_doomed(f);
        uint32_t first = ask_until_it_acts(doomed);
        struct process *back = meet_its_fate(f, doomed);
        expect(first);
        cluster_await_nodes(rig.cluster);
        use_the_link(back);
        send_home(back);
    }
    passed = true;
}

static void at_last_all_leave_in_order(void **state)
{
    (void)state;
    use_the_link(rig.cluster->process[1]);
    rig_finish(&rig);
    passed = true;
    abandon();
}

/* ---- the table of cases ---- */

static int setup(void **state)
{
    current = *state;
    passed = false;
    if (serving != current->way) {
        abandon();
        serve(current->way);
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (!passed) abandon();
    return 0;
}

static int learn(void **state)
{
    (void)state;
    links_use_plugins(NULL, "");
    setenv("TANDEM_LINK_HASTE", HASTE, 1);
    rig.cluster = cluster_new(links_model());
    rig.cluster->own_hosts = true;
    cluster_start(rig.cluster, 0, 1, "", LINKS_CUDA);
    rig_connect(&rig);
    wanted = rig.streams;
    ask();
    streams_run(wanted);
    for (uint32_t i = 0; i < ASKS; i++)
        stream_expect_done(wanted->stream[i]);
    cluster_stop(rig.cluster);
    rig.streams = NULL;
    abandon();
    return 0;
}

static int forget(void **state)
{
    (void)state;
    streams_free(wanted);
    links_model_remove();
    return 0;
}

static struct fault faults[CASES_MAX];
static struct CMUnitTest tests[CASES_MAX];
static size_t count;

static void add(const struct point *point, const struct way *way, const char *action)
{
    struct fault *f = &faults[count];
    CMUnitTestFunction run =
        point ? whoever_fails_there_the_pair_is_used_again : at_last_all_leave_in_order;
    *f = (struct fault){point, way, action, ""};
    if (point)
        snprintf(f->title, sizeof f->title, "%s of %s in %s over %s, %s", action,
                 point->program == PROGRAM_PREFILL ? "P" : "D", point->name, way->kind, way->args);
    else
        snprintf(f->title, sizeof f->title, "all leave in order, %s", way->args);
    tests[count++] = (struct CMUnitTest){f->title, run, setup, teardown, f};
}

/* With other links beside it, only where one side freezes and the link breaks meanwhile. */
static bool is_worth_it(const struct point *p, const struct way *w, bool stops)
{
    static const char *const broken[] = {"link_WARMING", "link_READY", "link_begin"};
    bool breaks = false;
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
        breaks |= strcmp(p->name, broken[i]) == 0;
    if (p->link && strcmp(p->link, w->kind) != 0) return false;
    return strcmp(w->args, "--link auto") != 0 || (stops && breaks);
}

/* argv: a point, "": all; the args of a way. */
int main(int argc, char **argv)
{
    static const char *const actions[] = {"crash", "stop"};
    const char *name = argc > 1 ? argv[1] : "", *args = argc > 2 ? argv[2] : "";
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        if (args[0] && strcmp(args, ways[w].args) != 0) continue;
        for (size_t i = 0; i < sizeof points / sizeof *points; i++)
            for (int a = 0; a < 2; a++)
                if ((!name[0] || strcmp(name, points[i].name) == 0) &&
                    is_worth_it(&points[i], &ways[w], a == 1))
                    add(&points[i], &ways[w], actions[a]);
        add(NULL, &ways[w], "");
    }
    return _cmocka_run_group_tests("e2e/gpu_link_faults", tests, count, learn, forget);
}
