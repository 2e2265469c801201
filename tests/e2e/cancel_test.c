/* Requests that are cancelled, and clients that vanish, at any moment: what was streamed until then is
 * right, and everything they held comes back. */
#include "tests/e2e/rig.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/rng.h"

enum { SEED = 31, ASKS = 48 };

static int learn(void **state)
{
    (void)state;
    return rig_learn(SEED, ASKS);
}

/* Up to where it came, it is the undisturbed one; and it ended by itself or was cancelled. */
static void expect_beginning(const struct stream *s, const struct stream *wanted)
{
    for (uint32_t c = 0; c < s->choices_count; c++) {
        const struct outcome *o = &s->choice[c], *w = &wanted->choice[c];
        assert_true(o->ended);
        assert_true(o->tokens_count <= w->tokens_count);
        assert_memory_equal(o->tokens, w->tokens, o->tokens_count * sizeof *o->tokens);
        if (o->finish != w->finish) assert_int_equal(o->finish, TANDEM_FINISH_CANCELLED);
    }
}

/* ---- cancelled ---- */

static void cancelled_after_so_many_tokens(struct rig *rig, const char *node_args)
{
    uint32_t cancelled = 0;
    rig_start(rig, 2, 2, "--disaggregate always", node_args);
    for (uint32_t i = 0; i < ASKS; i++) {
        struct ask ask = rig->asks.ask[i];
        uint32_t all = rig->wanted->stream[i]->tokens_count;
        ask.cancel_at = 1 + rng_below(rng_draw(SEED, 5, i).word[0], all);
        streams_start(rig->streams, i, &ask);
    }
    streams_run(rig->streams);
    for (uint32_t i = 0; i < ASKS; i++) {
        expect_beginning(rig->streams->stream[i], rig->wanted->stream[i]);
        cancelled += rig->streams->stream[i]->choice[0].finish == TANDEM_FINISH_CANCELLED;
    }
    assert_true(cancelled > ASKS / 4);
    rig_finish(rig);
}

static void a_cancelled_stream_is_right_so_far_over_shm(void **state)
{
    cancelled_after_so_many_tokens(*state, "--link shm");
}

static void a_cancelled_stream_is_right_so_far_over_tcp(void **state)
{
    cancelled_after_so_many_tokens(*state, "--link tcp --chunk 16");
}

/* Some before they were accepted, some while they wait, are prefilled, travel, or decode: whatever the
 * loop's turns bring. Small pools, so that many wait. */
static void cancelled_at_random_moments(struct rig *rig, const char *node_args)
{
    char args[128];
    snprintf(args, sizeof args, "--blocks 120 --chunk 32 %s", node_args);
    rig_start(rig, 1, 2, "--disaggregate always", args);
    asks_start(&rig->asks, rig->streams);
    for (uint32_t turn = 0; rig->streams->ended_count < ASKS / 2; turn++) {
        struct rng_block draw = rng_draw(SEED, 6, turn);
        struct stream *s = rig->streams->stream[rng_below(draw.word[0], ASKS)];
        if (draw.word[1] % 8 == 0) tandem_cancel(s->request);
        streams_turn(rig->streams, 100);
    }
    streams_run(rig->streams);
    for (uint32_t i = 0; i < ASKS; i++)
        expect_beginning(rig->streams->stream[i], rig->wanted->stream[i]);
    rig_finish(rig);
}

static void whatever_is_cancelled_comes_back_over_shm(void **state)
{
    cancelled_at_random_moments(*state, "--link shm");
}

static void whatever_is_cancelled_comes_back_over_tcp(void **state)
{
    cancelled_at_random_moments(*state, "--link tcp");
}

/* ---- clients that vanish ---- */

static bool quarter_is_here(void *ctx)
{
    const struct rig *rig = ctx;
    return rig->streams->tokens_count >= rig->wanted->tokens_count / 4;
}

static void requests_that_are_freed_and_clients_that_close_leave_nothing(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 2, 2, "", "");
    asks_start(&rig->asks, rig->streams);
    streams_run_until(rig->streams, quarter_is_here, rig, "a quarter of all tokens");
    streams_free(rig->streams); /* frees every second kind of thing in the middle */
    cluster_await_idle(rig->cluster);
    rig_connect(rig);
    rig_expect_wanted(rig);
    rig_finish(rig);
}

/* The test's own program as another process: asks everything, says ready, streams on. */
static int be_a_client(const char *addresses)
{
    struct asks *asks = asks_new(SEED, ASKS);
    struct streams *s = streams_new(addresses);
    for (uint32_t i = 0; i < ASKS; i++)
        asks->ask[i].max_tokens = 4000;
    asks_start(asks, s);
    while (s->ended_count < ASKS) {
        bool told = s->tokens_count >= ASKS;
        streams_turn(s, 1000);
        if (told || s->tokens_count < ASKS) continue;
        printf("ready\n");
        fflush(stdout);
    }
    return 0;
}

static void a_client_that_is_killed_leaves_nothing(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 2, 2, "", "--kv-bytes 64M");
    struct process *client = cluster_client(rig->cluster);
    process_kill(client);
    cluster_await_idle(rig->cluster);
    rig_expect_wanted(rig);
    rig_finish(rig);
}

static void a_client_that_freezes_leaves_nothing(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 2, 2, "--heartbeat 50ms --dead-after 500ms", "--kv-bytes 64M");
    struct process *client = cluster_client(rig->cluster);
    process_signal(client, SIGSTOP);
    cluster_await_idle(rig->cluster);
    process_kill(client);
    rig_expect_wanted(rig);
    rig_finish(rig);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "client") == 0) return be_a_client(argv[2]);
    const struct CMUnitTest tests[] = {
        RIG_TEST(a_cancelled_stream_is_right_so_far_over_shm),
        RIG_TEST(a_cancelled_stream_is_right_so_far_over_tcp),
        RIG_TEST(whatever_is_cancelled_comes_back_over_shm),
        RIG_TEST(whatever_is_cancelled_comes_back_over_tcp),
        RIG_TEST(requests_that_are_freed_and_clients_that_close_leave_nothing),
        RIG_TEST(a_client_that_is_killed_leaves_nothing),
        RIG_TEST(a_client_that_freezes_leaves_nothing),
    };
    return cmocka_run_group_tests_name("e2e/cancel", tests, learn, rig_forget);
}
