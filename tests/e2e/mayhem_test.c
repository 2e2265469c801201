/* mayhem: rounds of load in which random nodes are killed, frozen, drained and added at random moments;
 * every stream of every round must equal the undisturbed one. `./dev chaos SECONDS [SEED]`.
 *
 * A round is one seed: its requests, its cluster and the order of its deeds; when exactly they hit is
 * the machine's choice, so a seed that failed is worth several tries. */
#include "tests/e2e/rig.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/rng.h"

enum { ASKS = 48, NODES_MAX = 3, PAUSE_MS_MAX = 300, FREEZE_MS_MAX = 2000 };
#define ROUTER_ARGS                                                                                \
    "--heartbeat 50ms --dead-after 700ms --deaths-max 100 --lone-deaths-max 100 --disaggregate "   \
    "always"

static uint64_t seconds = 60, first_seed = 1;

struct mayhem {
    struct rig *rig;
    uint64_t seed;
    uint32_t draws;
    char node_args[256];
    uint64_t thaw_ns[CLUSTER_PROCESSES_MAX]; /* frozen until then; 0: not frozen */
    uint32_t killed_count, frozen_count, drained_count;
};

static uint32_t draw(struct mayhem *c, uint32_t bound)
{
    return rng_below(rng_draw(c->seed, 900, c->draws++).word[0], bound);
}

static void thaw(struct mayhem *c, uint64_t now_ns)
{
    for (uint32_t i = 0; i < c->rig->cluster->count; i++) {
        if (c->thaw_ns[i] == 0 || c->thaw_ns[i] > now_ns) continue;
        process_signal(c->rig->cluster->process[i], SIGCONT);
        c->thaw_ns[i] = 0;
    }
}

/* A live node that runs: its number, or UINT32_MAX. */
static uint32_t pick_node(struct mayhem *c)
{
    const struct cluster *cluster = c->rig->cluster;
    uint32_t start = draw(c, cluster->count);
    for (uint32_t k = 0; k < cluster->count; k++) {
        uint32_t i = (start + k) % cluster->count;
        const struct process *p = cluster->process[i];
        if (p->program != PROGRAM_ROUTER && p->pid && !p->expendable && c->thaw_ns[i] == 0)
            return i;
    }
    return UINT32_MAX;
}

/* One of its kind takes the place of a node that goes. */
static void replace(struct mayhem *c, const struct process *p)
{
    if (c->rig->cluster->count < CLUSTER_PROCESSES_MAX)
        cluster_spawn(c->rig->cluster, p->program, c->node_args);
}

static void do_something(struct mayhem *c, uint64_t now_ns)
{
    uint32_t what = draw(c, 8), i = pick_node(c), freeze_ms = draw(c, FREEZE_MS_MAX);
    if (i == UINT32_MAX) return;
    struct process *p = c->rig->cluster->process[i];
    if (what < 3) {
        process_kill(p);
        replace(c, p);
        c->killed_count++;
    } else if (what < 6) {
        process_signal(p, SIGSTOP);
        c->thaw_ns[i] = now_ns + freeze_ms * NS_PER_MS;
        c->frozen_count++;
    } else if (process_look(p)) { /* leaves when it has finished what it has */
        process_signal(p, SIGTERM);
        p->expendable = true; /* and may be asked only once */
        replace(c, p);
        c->drained_count++;
    }
}

static void disturb(struct mayhem *c)
{
    struct streams *s = c->rig->streams;
    uint64_t until_ns = clock_now_ns() + STREAMS_WAIT_MS * NS_PER_MS, next_ns = 0;
    while (s->ended_count < s->count) {
        uint64_t now_ns = clock_now_ns();
        if (now_ns > until_ns) fail_msg("%u of %u streams ended", s->ended_count, s->count);
        thaw(c, now_ns);
        if (now_ns >= next_ns && s->ended_count < s->count * 3 / 4) {
            do_something(c, now_ns);
            next_ns = now_ns + (20 + draw(c, PAUSE_MS_MAX)) * NS_PER_MS;
        }
        streams_turn(s, 10);
    }
    thaw(c, TIME_NEVER);
}

static void await_leavers(struct cluster *c)
{
    for (uint32_t i = 0; i < c->count; i++) {
        struct process *p = c->process[i];
        if (p->expendable && p->pid && process_await_exit(p) != 0)
            fail_msg("%s was drained and left with %d", p->name, p->status);
    }
}

static void round_of(struct rig *rig, uint64_t seed)
{
    struct mayhem c = {.rig = rig, .seed = seed};
    struct asks *asks = asks_new(seed, ASKS);
    struct streams *wanted = asks_undisturbed(asks, "");
    snprintf(c.node_args, sizeof c.node_args,
             "--heartbeat 50ms --dead-after 700ms --kv-bytes %uM --link %s --chunk %u",
             8 + draw(&c, 16), seed % 2 ? "shm" : "tcp", 1 + draw(&c, 100));
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_start(rig->cluster, 1 + draw(&c, NODES_MAX), 1 + draw(&c, NODES_MAX), ROUTER_ARGS,
                  c.node_args);
    rig_connect(rig);
    asks_start(asks, rig->streams);
    disturb(&c);
    asks_expect(asks, rig->streams, 0, wanted);
    await_leavers(rig->cluster);
    cluster_await_nodes(rig->cluster);
    rig_finish(rig);
    print_message("seed %lu: %u killed, %u frozen, %u drained: the same streams\n", seed,
                  c.killed_count, c.frozen_count, c.drained_count);
    streams_free(wanted);
    asks_free(asks);
}

static void no_stream_changes(void **state)
{
    uint64_t end_ns = clock_now_ns() + seconds * NS_PER_S;
    uint64_t seed = first_seed;
    do {
        print_message("seed %lu\n", seed);
        round_of(*state, seed++);
    } while (clock_now_ns() < end_ns);
}

int main(int argc, char **argv)
{
    if (argc > 1) seconds = strtoull(argv[1], NULL, 10);
    if (argc > 2) first_seed = strtoull(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {RIG_TEST(no_stream_changes)};
    return cmocka_run_group_tests_name("e2e/mayhem", tests, NULL, NULL);
}
