/* n samples of a request: what they share on a node, and what becomes of them when it does not work. */
#include "tests/unit/router_rig.h"

static struct msg many(uint32_t choices, uint32_t tokens_max)
{
    struct msg m = submit_of(tokens_max);
    m.submit.choices = choices;
    return m;
}

static struct job_key fork_of(struct world *w, uint32_t d, uint32_t sibling)
{
    const struct msg_reserve *m = &expect(w, d, MSG_RESERVE)->reserve;
    assert_true(m->local && m->fork);
    assert_int_equal(m->sibling, sibling);
    return m->job.key;
}

static void samples_of_a_request_share_its_kv_on_one_node(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    say(&w, CLIENT, many(3, 4));
    struct job_key key = reserve(&w, D0), fork[2];
    w.read = 0;
    assert_false(expect(&w, D0, MSG_RESERVE)->reserve.fork);
    for (uint32_t i = 0; i < 2; i++)
        fork[i] = fork_of(&w, D0, 0);
    assert_false(was_sent(&w, D1, MSG_RESERVE));
    expect(&w, P0, MSG_PREFILL);
    assert_false(was_sent(&w, P0, MSG_PREFILL));
    for (uint32_t i = 0; i < 2; i++)
        say(&w, D0, (struct msg){.kind = MSG_RESERVED, .reserved = {.key = fork[i]}});
    tell_tokens(&w, D0, key, 0, 4);
    tell_finished(&w, D0, key, 4);
    for (uint32_t i = 0; i < 2; i++) {
        tell_tokens(&w, D0, fork[i], 0, 4);
        tell_finished(&w, D0, fork[i], 4);
    }
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(expect(&w, CLIENT, MSG_DONE)->done.choice, i);
    world_close(&w);
}

static void a_fork_whose_sibling_went_gets_another_or_its_own_kv(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    say(&w, CLIENT, many(2, 4));
    assert_false(expect(&w, D0, MSG_RESERVE)->reserve.fork);
    struct msg failed = {.kind = MSG_FAILED,
                         .failed = {.error = ERR_AGAIN, .retryable = true, .reason = "gone"}};
    for (uint32_t i = 0; i < 3; i++) { /* as long as the router thinks that it is there */
        failed.failed.key = fork_of(&w, D0, 0);
        assert_int_equal(failed.failed.key.attempt, i);
        say(&w, D0, failed);
    }
    const struct msg_reserve *m = &expect(&w, D1, MSG_RESERVE)->reserve;
    assert_false(m->fork || m->local);
    assert_int_equal(m->job.key.choice, 1);
    assert_int_equal(m->job.key.attempt, 3);
    world_close(&w);
}

static void samples_do_not_share_if_told_so_or_if_there_is_no_room(void **state)
{
    (void)state;
    struct router_config changes = ROUTER_CONFIG_DEFAULT;
    for (uint32_t i = 0; i < 2; i++) {
        struct world w;
        changes.forks = i > 0;
        changes.disaggregate = DISAGGREGATE_ALWAYS;
        world_open_joined(&w, &changes);
        struct msg full = {.kind = MSG_FAILED,
                           .failed = {.error = ERR_FULL, .retryable = true, .reason = "full"}};
        say(&w, CLIENT, many(2, 4));
        assert_false(expect(&w, D0, MSG_RESERVE)->reserve.fork);
        if (i > 0) {
            full.failed.key = fork_of(&w, D0, 0);
            say(&w, D0, full);
        }
        assert_false(expect(&w, D1, MSG_RESERVE)->reserve.fork);
        world_close(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(samples_of_a_request_share_its_kv_on_one_node),
        cmocka_unit_test(a_fork_whose_sibling_went_gets_another_or_its_own_kv),
        cmocka_unit_test(samples_do_not_share_if_told_so_or_if_there_is_no_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
