/* turmoil: rounds of everything at once (mix.h, whole.h) in which random nodes are killed or frozen, and so is the
 * Redis that they share; every bit must be that of a plain node. `./dev chaos SECONDS [SEED]`.
 *
 *     turmoil_test [SECONDS [SEED]]
 *
 * A round is one seed: its requests, its settings and the order of its deeds; when exactly they hit is the
 * machine's choice. */
#include "tests/e2e/mix.h"
#include "tests/e2e/whole.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/rng.h"

enum { PAUSE_MS_MAX = 400, FREEZE_MS_MAX = 1500, POOL_BYTES = 4 << 20 };

static uint64_t seconds = 60, first_seed = 1;

struct turmoil {
    struct mix *mix;
    struct whole whole;
    struct streams *streams;
    uint64_t seed;
    uint32_t draws;
    uint64_t thaw_ns[WHOLE_NODES + 1]; /* of nodes and the Redis; 0: not frozen */
    uint32_t killed_count, frozen_count, emptied_count;
};

static uint32_t draw(struct turmoil *t, uint32_t bound)
{
    return rng_below(rng_draw(t->seed, 901, t->draws++).word[0], bound);
}

static void signal_one(struct turmoil *t, uint32_t i, int number)
{
    if (i < WHOLE_NODES)
        process_signal(t->whole.node[i], number);
    else
        redis_rig_signal(&t->whole.redis, number);
}

static void thaw(struct turmoil *t, uint64_t now_ns)
{
    for (uint32_t i = 0; i <= WHOLE_NODES; i++) {
        if (t->thaw_ns[i] == 0 || t->thaw_ns[i] > now_ns) continue;
        signal_one(t, i, SIGCONT);
        t->thaw_ns[i] = 0;
    }
}

static void kill_one(struct turmoil *t, uint32_t i)
{
    if (i < WHOLE_NODES) {
        whole_replace(&t->whole, i);
        t->killed_count++;
        return;
    }
    redis_rig_stop(&t->whole.redis); /* what it had is gone */
    t->whole.has_redis = redis_rig_start(&t->whole.redis, t->whole.folder, NULL);
    t->emptied_count++;
}

static void do_something(struct turmoil *t, uint64_t now_ns)
{
    uint32_t i = draw(t, WHOLE_NODES + t->whole.has_redis), freeze_ms = draw(t, FREEZE_MS_MAX);
    bool kills = draw(t, 2) == 0;
    if (t->thaw_ns[i]) return;
    if (kills) {
        kill_one(t, i);
        return;
    }
    signal_one(t, i, SIGSTOP);
    t->thaw_ns[i] = now_ns + freeze_ms * NS_PER_MS;
    t->frozen_count++;
}

static void disturb(struct turmoil *t)
{
    struct streams *s = t->streams;
    uint64_t until_ns = clock_now_ns() + STREAMS_WAIT_MS * NS_PER_MS, next_ns = 0;
    while (s->ended_count < s->count) {
        uint64_t now_ns = clock_now_ns();
        if (now_ns > until_ns) fail_msg("%u of %u streams ended", s->ended_count, s->count);
        thaw(t, now_ns);
        if (now_ns >= next_ns && s->ended_count + MIX_ASKS / 4 < s->count) {
            do_something(t, now_ns);
            next_ns = now_ns + (20 + draw(t, PAUSE_MS_MAX)) * PATIENCE * NS_PER_MS;
        }
        streams_turn(s, 10);
    }
    thaw(t, TIME_NEVER);
}

static void start(struct turmoil *t)
{
    static const char *const modes[] = {"always", "auto", "auto", "never"};
    char router[256], node[256];
    uint32_t pinned[MIX_PINNED];
    snprintf(router, sizeof router,
             "--heartbeat 50ms --dead-after 700ms --tenant-weights " MIX_WEIGHTS
             " --disaggregate %s --backfill %s --prefix-index %u",
             modes[draw(t, 4)], draw(t, 2) ? "always" : "auto", draw(t, 4) == 0 ? 64 : 100000);
    snprintf(node, sizeof node,
             "--heartbeat 50ms --dead-after 700ms --link %s --batch %u --prefix-wait %ums",
             draw(t, 2) ? "shm" : "tcp", 4 + draw(t, 20), draw(t, 500));
    print_message("seed %lu: %s %s\n", t->seed, router, node);
    whole_start(&t->whole, router, node, true);
    t->streams = streams_new(t->whole.cluster->addresses);
    mix_pinned(t->mix, pinned);
    whole_pin(&t->whole, &(struct tandem_pin){.name = "system",
                                              .tenant = MIX_TENANT,
                                              .tokens = pinned,
                                              .tokens_count = MIX_PINNED});
}

static void finish(struct turmoil *t)
{
    whole_await_pin(&t->whole);
    whole_count(&t->whole);
    assert_true(whole_counted(&t->whole, COUNT_WRONG) == 0);
    assert_true(whole_counted(&t->whole, COUNT_DIVERGED) == 0);
    cluster_await_idle(t->whole.cluster);
    cluster_expect_memory(t->whole.cluster, POOL_BYTES);
    cluster_stop(t->whole.cluster);
}

static int end_round(void **state)
{
    struct turmoil *t = *state;
    streams_free(t->streams);
    whole_end(&t->whole);
    mix_free(t->mix);
    *t = (struct turmoil){.mix = NULL};
    return 0;
}

static void round_of(struct turmoil *t, uint64_t seed)
{
    t->seed = seed;
    t->mix = mix_new(seed);
    start(t);
    for (uint32_t turn = 0; turn < MIX_TURNS; turn++) {
        mix_start(t->mix, turn, t->streams);
        disturb(t);
        mix_expect(t->mix, turn, t->streams);
    }
    cluster_await_nodes(t->whole.cluster);
    finish(t);
    print_message(
        "seed %lu: %u killed, %u frozen, %u times an empty Redis: the same bits; %.0f tokens "
        "of tiers, %.0f preemptions\n",
        seed, t->killed_count, t->frozen_count, t->emptied_count,
        whole_counted(&t->whole, COUNT_TIER_TOKENS), whole_counted(&t->whole, COUNT_PREEMPTIONS));
    end_round((void *[]){t});
}

static void no_bit_changes(void **state)
{
    uint64_t end_ns = clock_now_ns() + seconds * NS_PER_S, seed = first_seed;
    do
        round_of(*state, seed++);
    while (clock_now_ns() < end_ns);
}

static int set_up(void **state)
{
    static struct turmoil turmoil;
    *state = &turmoil;
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1) seconds = strtoull(argv[1], NULL, 10);
    if (argc > 2) first_seed = strtoull(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(no_bit_changes, set_up, end_round)};
    return cmocka_run_group_tests_name("e2e/turmoil", tests, NULL, NULL);
}
