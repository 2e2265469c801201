#include "tests/unit/router_rig.h"

#include <stdio.h>

#include "common/prefix_hash.h"
#include "router/sched.h"

/* Cached KV that goes to the prefill node before it computes the rest. A prompt is 20 tokens: one whole block,
 * which d1 has. */

#define MIB ((uint64_t)1 << 20)

static struct router_counts counts_of(const struct world *w)
{
    struct router_counts c;
    router_core_counts(w->core, &c);
    return c;
}

static void tell_block(struct world *w, uint32_t peer, uint64_t number)
{
    uint64_t hash = prefix_hash_block(0, prompt);
    uint32_t what = TIER_POOL;
    say(w, peer, (struct msg){.kind = MSG_BLOCKS, .blocks = {number, false, &hash, &what, 1, 1}});
}

static void opened(struct world *w, enum backfill_mode mode)
{
    struct router_config config = ROUTER_CONFIG_DEFAULT;
    config.session.dead_ns = 1000 * NS_PER_S;
    config.reserve_timeout_ns = 1000 * NS_PER_S;
    config.prefix_index = 4096;
    config.backfill = mode;
    world_open_joined(w, &config);
    tell_block(w, D1, 1);
}

/* A request for d1, and the router's own job for p0: its key. */
static struct job_key begun(struct world *w)
{
    submit(w, 4);
    size_t read = w->read;
    const struct job *job = &expect(w, P0, MSG_RESERVE)->reserve.job;
    assert_true(job->cached_only);
    assert_int_equal(job->prompt_count, 16);
    assert_int_equal(job->tokens_max, 0);
    assert_memory_equal(job->prompt, prompt, 16 * sizeof *prompt);
    w->read = read;
    return job->key;
}

/* d1's answer to the choice: the key of its attempt. */
static struct job_key reserved(struct world *w)
{
    struct job_key key = expect(w, D1, MSG_RESERVE)->reserve.job.key;
    say(w, D1, (struct msg){.kind = MSG_RESERVED, .reserved = {key, {9, 1}, 16}});
    return key;
}

/* p0's answer to the backfill, which d1 is sent. */
static void ticket_from_prefill(struct world *w, struct job_key fill)
{
    say(w, P0, (struct msg){.kind = MSG_RESERVED, .reserved = {fill, {8, 1}, 0}});
    const struct msg *m = expect(w, D1, MSG_PREFILL);
    assert_true(job_key_equal(m->prefill.job.key, fill));
    assert_true(m->prefill.job.cached_only);
    assert_true(id128_equal(m->prefill.ticket, (struct id128){8, 1}));
    assert_string_equal(m->prefill.addresses[0], "tcp:127.0.0.1:1");
}

static void fails(struct world *w, uint32_t peer, struct job_key key, enum err error)
{
    say(w, peer, (struct msg){.kind = MSG_FAILED, .failed = {key, error, true, "why"}});
}

/* The choice goes through as without. */
static void ends_well(struct world *w, struct job_key key)
{
    const struct msg *m = expect(w, P0, MSG_PREFILL);
    assert_true(job_key_equal(m->prefill.job.key, key));
    assert_int_equal(m->prefill.held_tokens, 16);
    assert_true(id128_equal(m->prefill.ticket, (struct id128){9, 1}));
    tell_prefilled(w, P0, key);
    tell_tokens(w, D1, key, 0, 4);
    tell_finished(w, D1, key, 4);
    expect_stream(w, 0, 4);
}

static void a_prompt_waits_for_what_its_prefill_node_gets(void **state)
{
    (void)state;
    for (int order = 0; order < 3; order++) {
        struct world w;
        opened(&w, BACKFILL_ALWAYS);
        struct job_key fill = begun(&w), key;
        if (order == 0) { /* D answers last */
            ticket_from_prefill(&w, fill);
            tell_finished(&w, P0, fill, 0);
            w.read = 0;
            key = reserved(&w);
        } else {
            key = reserved(&w);
            assert_false(was_sent(&w, P0, MSG_PREFILL));
            ticket_from_prefill(&w, fill);
            if (order == 2) tell_prefilled(&w, D1, fill);
            assert_false(was_sent(&w, P0, MSG_PREFILL));
            tell_finished(&w, P0, fill, 0);
        }
        if (order < 2) tell_prefilled(&w, D1, fill);
        assert_int_equal(counts_of(&w).backfills, 1);
        assert_int_equal(counts_of(&w).backfilled_tokens, 16);
        assert_int_equal(counts_of(&w).backfills_failed, 0);
        w.read = 0;
        ends_well(&w, key);
        w.read = 0;
        expect(&w, P0, MSG_FINISHED_ACK);
        world_close(&w);
    }
}

static void without_it_nothing_is_asked_for(void **state)
{
    (void)state;
    struct world w;
    opened(&w, BACKFILL_NEVER);
    submit(&w, 4);
    assert_false(was_sent(&w, P0, MSG_RESERVE));
    ends_well(&w, reserved(&w));
    world_close(&w);
    opened(&w, BACKFILL_AUTO); /* how fast p0 computes is not known */
    submit(&w, 4);
    assert_false(was_sent(&w, P0, MSG_RESERVE));
    world_close(&w);
    opened(&w, BACKFILL_ALWAYS);
    tell_block(&w, P0, 1); /* it has it itself */
    submit(&w, 4);
    assert_false(was_sent(&w, P0, MSG_RESERVE));
    world_close(&w);
}

static void whoever_refuses_the_prompt_goes_on_without(void **state)
{
    (void)state;
    static const struct {
        uint32_t peer;
        enum err error;
        bool sent; /* d1 was sent PREFILL before */
    } cases[] = {{P0, ERR_FULL, false}, {P0, ERR_TIMEOUT, true}, {D1, ERR_NOT_FOUND, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world w;
        opened(&w, BACKFILL_ALWAYS);
        struct job_key fill = begun(&w), key = reserved(&w);
        if (cases[i].sent) ticket_from_prefill(&w, fill);
        size_t read = w.read;
        fails(&w, cases[i].peer, fill, cases[i].error);
        ends_well(&w, key);
        w.read = read;
        bool other_told = was_sent(&w, cases[i].peer == P0 ? D1 : P0, MSG_CANCEL);
        assert_int_equal(other_told, cases[i].sent);
        assert_int_equal(counts_of(&w).backfills_failed, 1);
        w.read = w.sent_count;
        submit(&w,
               4); /* an index that was wrong is put right, a link that may be none is not used */
        assert_int_equal(was_sent(&w, P0, MSG_RESERVE), !cases[i].sent);
        world_close(&w);
    }
}

static void what_is_there_already_is_no_failure(void **state)
{
    (void)state;
    struct world w;
    opened(&w, BACKFILL_ALWAYS);
    struct job_key fill = begun(&w), key = reserved(&w);
    tell_finished(&w, P0, fill, 0);
    ends_well(&w, key);
    assert_int_equal(counts_of(&w).backfills + counts_of(&w).backfills_failed, 0);
    assert_int_equal(was_sent(&w, D1, MSG_CANCEL), 0);
    world_close(&w);
}

/* As long as computing 16 tokens would take, within bounds; the longest where it is done whatever that takes. */
static void what_takes_too_long_is_not_waited_for(void **state)
{
    (void)state;
    static const struct {
        enum backfill_mode mode;
        uint32_t token_us; /* p0's */
        uint64_t wait_ms;
    } rows[] = {{BACKFILL_AUTO, 1000, 100},
                {BACKFILL_AUTO, 10000, 160},
                {BACKFILL_AUTO, 1000000, 2000},
                {BACKFILL_ALWAYS, 0, 2000},
                {BACKFILL_ALWAYS, 10000, 2000}};
    for (size_t i = 0; i < 2 * sizeof rows / sizeof *rows; i++) {
        bool sent = i % 2;
        struct world w;
        opened(&w, rows[i / 2].mode);
        struct node_load load = {
            .blocks_total = 100, .blocks_free = 100, .token_ns = rows[i / 2].token_us * 1000};
        say(&w, P0, (struct msg){.kind = MSG_HEARTBEAT, .heartbeat.load = load});
        struct job_key fill = begun(&w), key = reserved(&w);
        if (sent) ticket_from_prefill(&w, fill);
        assert_true(w.wake <= w.now + rows[i / 2].wait_ms * NS_PER_MS);
        w.now += rows[i / 2].wait_ms * NS_PER_MS - 1;
        size_t read = w.read;
        router_core_on_timer(w.core, w.now);
        assert_false(was_sent(&w, P0, MSG_CANCEL));
        router_core_on_timer(w.core, ++w.now);
        router_core_audit(w.core);
        expect(&w, P0, MSG_CANCEL);
        w.read = read;
        assert_int_equal(was_sent(&w, D1, MSG_CANCEL), sent);
        w.read = read;
        ends_well(&w, key);
        tell_finished(&w, P0, fill, 0);           /* late: nobody knows it */
        for (int later = 0; later < 2; later++) { /* the pair is left alone for a while */
            w.read = w.sent_count;
            submit(&w, 4);
            assert_int_equal(was_sent(&w, P0, MSG_RESERVE), !sent || later);
            w.now += 10 * NS_PER_S;
            router_core_on_timer(w.core, w.now);
        }
        world_close(&w);
    }
}

static void either_node_may_die(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct world w;
        opened(&w, BACKFILL_ALWAYS);
        hello(&w, P1, ROLE_PREFILL, "p1");
        struct job_key fill = begun(&w);
        reserved(&w);
        if (i % 2) ticket_from_prefill(&w, fill);
        w.read = w.sent_count;
        lose(&w, i < 2 ? D1 : P0);
        if (i < 2) { /* where the prompt was to go, too: again with d0 */
            reserve_held(&w, D0, 0);
        } else {
            expect(&w, P1, MSG_RESERVE); /* another backfill */
        }
        assert_int_equal(counts_of(&w).backfills_failed, 1);
        world_close(&w);
    }
}

static void a_client_that_leaves_leaves_nothing_behind(void **state)
{
    (void)state;
    struct world w;
    opened(&w, BACKFILL_ALWAYS);
    struct job_key fill = begun(&w), key = reserved(&w);
    say(&w, CLIENT, (struct msg){.kind = MSG_CANCEL, .cancel = {{key.request, CHOICE_ALL, 0}, ""}});
    expect(&w, CLIENT, MSG_DONE);
    ticket_from_prefill(&w, fill); /* it goes on: what comes is cached */
    tell_finished(&w, P0, fill, 0);
    tell_prefilled(&w, D1, fill);
    assert_false(was_sent(&w, P0, MSG_PREFILL));
    world_close(&w);
    opened(&w, BACKFILL_ALWAYS);
    begun(&w);
    say(&w, CLIENT, (struct msg){.kind = MSG_BYE});
    router_core_drain(w.core, w.now);
    world_close(&w); /* with one under way */
}

static void a_request_may_end_or_begin_anew_while_it_waits(void **state)
{
    (void)state;
    struct world w;
    opened(&w, BACKFILL_ALWAYS);
    begun(&w);
    struct job_key key = reserved(&w);
    w.read = w.sent_count;
    fails(&w, D1, key, ERR_DEVICE);
    assert_int_equal(expect(&w, D1, MSG_RESERVE)->reserve.job.key.attempt, 1);
    assert_false(was_sent(&w, P0, MSG_PREFILL));
    world_close(&w);

    opened(&w, BACKFILL_ALWAYS);
    struct msg m = submit_of(4);
    m.submit.deadline_ms = 50;
    say(&w, CLIENT, m);
    key = reserved(&w);
    w.now += 60 * NS_PER_MS;
    router_core_on_timer(w.core, w.now);
    router_core_audit(w.core);
    assert_int_equal(expect(&w, CLIENT, MSG_DONE)->done.error, ERR_TIMEOUT);
    assert_false(was_sent(&w, P0, MSG_PREFILL));
    world_close(&w);
}

static void what_two_want_is_brought_once(void **state)
{
    (void)state;
    struct world w;
    opened(&w, BACKFILL_ALWAYS);
    struct job_key fill = begun(&w), first = reserved(&w);
    w.read = w.sent_count;
    submit(&w, 4);
    assert_false(was_sent(&w, P0, MSG_RESERVE));
    struct job_key second = expect(&w, D0, MSG_RESERVE)->reserve.job.key; /* the emptier one */
    say(&w, D0, (struct msg){.kind = MSG_RESERVED, .reserved = {second, {9, 2}, 0}});
    assert_false(was_sent(&w, P0, MSG_PREFILL));
    ticket_from_prefill(&w, fill);
    tell_finished(&w, P0, fill, 0);
    size_t read = w.read;
    assert_true(job_key_equal(expect(&w, P0, MSG_PREFILL)->prefill.job.key, first));
    assert_true(job_key_equal(expect(&w, P0, MSG_PREFILL)->prefill.job.key, second));
    w.read = read;
    tell_prefilled(&w, D1, fill);
    assert_int_equal(counts_of(&w).backfills, 1);
    world_close(&w);
}

/* Prompts that begin in `count` ways, each of which d1 has, and so many prefill nodes beside places to decode:
 * how many are brought. */
static uint32_t brought_of(uint32_t count, uint32_t prefills)
{
    struct world w;
    uint32_t brought = 0, own[20];
    opened(&w, BACKFILL_ALWAYS);
    for (uint32_t i = 1; i < prefills + 4; i++) {
        char name[16];
        snprintf(name, sizeof name, "n%u", i);
        hello(&w, P1 + i - 1, i < prefills ? ROLE_PREFILL : ROLE_DECODE, name);
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t what = TIER_POOL;
        memcpy(own, prompt, sizeof own);
        own[0] = 100 + i;
        uint64_t hash = prefix_hash_block(0, own);
        say(&w, D1, (struct msg){.kind = MSG_BLOCKS, .blocks = {2 + i, false, &hash, &what, 1, 1}});
        struct msg m = submit_of(4);
        m.submit.tokens = own;
        w.sent_count = w.read = 0;
        say(&w, CLIENT, m);
        for (size_t k = 0; k < w.sent_count; k++)
            brought += w.sent[k].m.kind == MSG_RESERVE && w.sent[k].m.reserve.job.cached_only;
    }
    world_close(&w);
    return brought;
}

static void so_many_are_under_way_at_once_and_two_of_a_pair(void **state)
{
    (void)state;
    assert_int_equal(brought_of(2, 1), 2);
    assert_int_equal(brought_of(5, 1), 2);
    assert_int_equal(brought_of(30, 20), 30);
    assert_int_equal(brought_of(40, 20), 32);
}

static void a_node_that_lists_it_is_not_told_to_forget_it(void **state)
{
    (void)state;
    struct world w;
    opened(&w, BACKFILL_ALWAYS);
    struct job_key fill = begun(&w);
    w.read = w.sent_count;
    say(&w, P0,
        (struct msg){.kind = MSG_LIVE, .live = {.answer = true, .keys = &fill, .keys_count = 1}});
    assert_false(was_sent(&w, P0, MSG_CANCEL));
    assert_int_equal(expect(&w, P0, MSG_LIVE)->live.keys_count, 1);
    say(&w, D1,
        (struct msg){.kind = MSG_LIVE, .live = {.answer = true, .keys = &fill, .keys_count = 1}});
    expect(&w, D1, MSG_CANCEL); /* it has none of it yet */
    world_close(&w);
}

static void answers_that_make_no_sense_end_it(void **state)
{
    (void)state;
    static const struct msg_reserved wrong[] = {{.ticket = {0, 0}},
                                                {.ticket = {1, 1}, .held_tokens = 16}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct world w;
        opened(&w, BACKFILL_ALWAYS);
        struct job_key fill = begun(&w), key = reserved(&w);
        struct msg m = {.kind = MSG_RESERVED, .reserved = wrong[i]};
        m.reserved.key = fill;
        say(&w, P0, m);
        assert_false(was_sent(&w, D1, MSG_PREFILL));
        ends_well(&w, key);
        say(&w, D0, (struct msg){.kind = MSG_FAILED, .failed = {fill, ERR_FULL, true, "not mine"}});
        world_close(&w);
    }
}

/* The n-th allocation of a submission fails: it is refused, or goes on without a backfill, or with one. */
static void without_memory_it_is_computed(void **state)
{
    (void)state;
    uint32_t without = 0;
    bool all = false;
    for (uint64_t n = 1; !all; n++) {
        struct world w;
        opened(&w, BACKFILL_ALWAYS);
        uint64_t before = mem_count();
        struct msg m = submit_of(4);
        m.envelope = w.envelope[CLIENT];
        mem_fail_at(n);
        router_core_on_message(w.core, w.now, (struct peer){CLIENT}, &m);
        all = mem_count() - before < n;
        mem_fail_at(0);
        router_core_audit(w.core);
        bool asked = was_sent(&w, P0, MSG_RESERVE);
        without += was_sent(&w, D1, MSG_RESERVE) && !asked;
        if (all) assert_true(asked);
        if (was_sent(&w, D1, MSG_RESERVE) && !asked) ends_well(&w, reserved(&w));
        world_close(&w);
    }
    assert_true(without > 0);
}

/* ---- whether it pays ---- */

/* P's of 100 us a token, one D; what is left to compute and to bring, and the rate at which D gives. */
static void it_is_done_when_it_is_sooner_than_computing(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        uint32_t cached[3], pooled[3]; /* p0, p1, d0 */
        uint64_t mib_per_s;            /* d0 to p0; 0: never tried */
        uint32_t token_ns;
        enum backfill_mode mode;
        uint32_t tokens, from; /* 0: not done */
    } rows[] = {
        {"a long answer, a fast link", {0, 0, 960}, {0, 0, 960}, 1000, 100000, 0, 960, 2},
        {"a slow link", {0, 0, 960}, {0, 0, 960}, 1, 100000, 0, 0, 0},
        {"the same, always", {0, 0, 960}, {0, 0, 960}, 1, 100000, BACKFILL_ALWAYS, 960, 2},
        {"the same, never", {0, 0, 960}, {0, 0, 960}, 1000, 100000, BACKFILL_NEVER, 0, 0},
        {"a link that is to be tried", {0, 0, 960}, {0, 0, 960}, 0, 100000, 0, 960, 2},
        {"so little that a hand-over costs more",
         {928, 0, 944},
         {928, 0, 944},
         1000,
         10000,
         0,
         0,
         0},
        {"p0 has it itself", {960, 0, 960}, {960, 0, 960}, 1000, 100000, 0, 0, 0},
        {"a tier of p0 has it", {944, 0, 960}, {0, 0, 960}, 1000, 10000, 0, 0, 0},
        {"only a tier of d0 has it", {0, 0, 480}, {0, 0, 0}, 1000, 100000, 0, 0, 0},
        {"the other P has more", {0, 960, 480}, {0, 960, 480}, 1000, 100000, 0, 960, 1},
        {"p0's speed is not known", {0, 0, 960}, {0, 0, 960}, 1000, 0, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sched_rate rate[3] = {{.bytes_per_s = rows[i].mib_per_s * MIB}};
        struct sched_node node[3] = {
            {.role = ROLE_PREFILL, .open = true, .token_ns = rows[i].token_ns, .links = {1}},
            {.role = ROLE_PREFILL, .open = true, .links = {1}},
            {.role = ROLE_DECODE, .open = true, .links = {1}, .rates = rate},
        };
        const struct sched_node *nodes[3] = {&node[0], &node[1], &node[2]};
        struct sched_job job = {.tokens = 1000,
                                .kv_bytes = 4 * MIB,
                                .cached = rows[i].cached,
                                .pooled = rows[i].pooled};
        struct sched_rules rules = {DISAGGREGATE_AUTO, 5 * NS_PER_MS, rows[i].mode};
        struct sched_fill fill = sched_fill(nodes, 3, &job, &rules, 0);
        if (fill.tokens != rows[i].tokens || fill.from != rows[i].from)
            fail_msg("%s: %u tokens from %u", rows[i].what, fill.tokens, fill.from);
        node[1].links[0] = node[2].links[0] = 2; /* no link in common */
        assert_int_equal(sched_fill(nodes, 3, &job, &rules, 0).tokens, 0);
        node[1].links[0] = node[2].links[0] = 1;
        node[1].open = node[2].open = false;
        assert_int_equal(sched_fill(nodes, 3, &job, &rules, 0).tokens, 0);
        node[1].open = node[2].open = true;
        job.window.tokens = 100;
        assert_int_equal(sched_fill(nodes, 3, &job, &rules, 0).tokens, 0);
        job.window.tokens = 0;
        job.pooled = NULL;
        assert_int_equal(sched_fill(nodes, 3, &job, &rules, 0).tokens, 0);
    }
}

/* d0 has 480 of 600 tokens and two streams that would wait for what it computes. */
static void a_prompt_is_not_decoded_where_it_would_be_computed_for_want_of_kv(void **state)
{
    (void)state;
    static const uint32_t cached[2] = {0, 480};
    struct sched_rate rate[2] = {{.bytes_per_s = 1000 * MIB}};
    struct sched_node p = {.role = ROLE_PREFILL,
                           .open = true,
                           .token_ns = 100000,
                           .window_tokens = 2000,
                           .blocks_total = 100,
                           .links = {1}};
    struct sched_node d = {.role = ROLE_DECODE,
                           .open = true,
                           .token_ns = 100000,
                           .running = 2,
                           .sequences_max = 8,
                           .blocks_total = 100,
                           .blocks_free = 90,
                           .links = {1},
                           .rates = rate};
    const struct sched_node *nodes[2] = {&p, &d};
    struct sched_job job = {.tokens = 600,
                            .blocks = 38,
                            .blocks_full = 40,
                            .kv_bytes = 4 * MIB,
                            .cached = cached,
                            .pooled = cached};
    struct sched_rules rules = {DISAGGREGATE_AUTO, NS_PER_MS, BACKFILL_NEVER};
    struct sched_pair pair;
    assert_int_equal(sched_pick_pair(nodes, 2, &job, &rules, 5, &pair), SCHED_PICKED);
    assert_true(pair.local);
    rules.backfill = BACKFILL_AUTO;
    assert_int_equal(sched_pick_pair(nodes, 2, &job, &rules, 5, &pair), SCHED_PICKED);
    assert_false(pair.local);
    assert_int_equal(pair.fill.tokens, 480);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_waits_for_what_its_prefill_node_gets),
        cmocka_unit_test(without_it_nothing_is_asked_for),
        cmocka_unit_test(whoever_refuses_the_prompt_goes_on_without),
        cmocka_unit_test(what_is_there_already_is_no_failure),
        cmocka_unit_test(what_takes_too_long_is_not_waited_for),
        cmocka_unit_test(either_node_may_die),
        cmocka_unit_test(a_client_that_leaves_leaves_nothing_behind),
        cmocka_unit_test(a_request_may_end_or_begin_anew_while_it_waits),
        cmocka_unit_test(what_two_want_is_brought_once),
        cmocka_unit_test(so_many_are_under_way_at_once_and_two_of_a_pair),
        cmocka_unit_test(a_node_that_lists_it_is_not_told_to_forget_it),
        cmocka_unit_test(answers_that_make_no_sense_end_it),
        cmocka_unit_test(without_memory_it_is_computed),
        cmocka_unit_test(it_is_done_when_it_is_sooner_than_computing),
        cmocka_unit_test(a_prompt_is_not_decoded_where_it_would_be_computed_for_want_of_kv),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
