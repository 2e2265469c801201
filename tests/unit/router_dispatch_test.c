/* What goes to nodes when much waits and there are many of them: what is skipped would have been in vain. */
#include "tests/unit/router_rig.h"

#include "common/rng.h"
#include "router/sched.h"

static uint32_t ids[1000]; /* a long prompt */

static void submit_ids(struct world *w, const char *tenant, uint32_t count, uint32_t tokens_max)
{
    struct msg m = submit_of(tokens_max);
    m.submit.tenant = tenant;
    m.submit.tokens = ids;
    m.submit.tokens_count = count;
    say(w, CLIENT, m);
    expect(w, CLIENT, MSG_ACCEPTED);
}

static struct job_key reserve_at(struct world *w, uint32_t d)
{
    return reserve_held(w, d, 0);
}

/* One with a stream that goes on. */
static void submit_running(struct world *w, const char *tenant, uint32_t d)
{
    submit_ids(w, tenant, 20, 50);
    struct job_key key = reserve_at(w, d);
    tell_first(w, P0, key, 0);
    tell_prefilled(w, P0, key);
}

static void a_long_prompt_waits_for_its_window_no_longer_than_short_ones_before_it(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    for (uint32_t i = 0; i < 2; i++) {
        submit_running(&w, "a", D0);
        submit_running(&w, "b", D1);
    }
    submit_ids(&w, "b", 20, 50);
    struct job_key before = reserve_at(&w, D0);
    submit_ids(&w, "a", 60, 50); /* of a window of 64 */
    submit_ids(&w, "b", 20, 50); /* b was served more */
    assert_false(was_sent(&w, D0, MSG_RESERVE));
    assert_false(was_sent(&w, D1, MSG_RESERVE));
    tell_first(&w, P0, before, 0);
    assert_int_equal(expect(&w, D1, MSG_RESERVE)->reserve.job.prompt_count, 60);
    world_close(&w);
}

/* Requests of which a decode node has no second one beside it: 44 of 50 blocks. */
static void fill_decode_nodes(struct world *w)
{
    for (uint32_t d = D0; d <= D1; d++) {
        submit_ids(w, NULL, 700, 50);
        struct job_key key = reserve_at(w, d);
        tell_first(w, P0, key, 0);
        tell_prefilled(w, P0, key);
    }
}

static void a_window_that_opens_is_used_while_the_first_waits_for_memory(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    fill_decode_nodes(&w);
    submit_ids(&w, NULL, 700, 50); /* waits for memory */
    submit_ids(&w, NULL, 20, 1);   /* needs none of D */
    struct job_key key = expect(&w, P0, MSG_PREFILL)->prefill.job.key;
    submit_ids(&w, NULL, 60, 1); /* waits for the window */
    assert_false(was_sent(&w, P0, MSG_PREFILL));
    tell_first(&w, P0, key, 0);
    assert_int_equal(expect(&w, P0, MSG_PREFILL)->prefill.job.prompt_count, 60);
    world_close(&w);
}

static void a_request_that_fits_no_pool_is_told_so_behind_others_that_wait(void **state)
{
    (void)state;
    struct world w;
    world_open_joined(&w, NULL);
    fill_decode_nodes(&w);
    submit_ids(&w, NULL, 700, 50);
    submit_ids(&w, NULL, 900, 50); /* 60 blocks at its full length */
    const struct msg *done = expect(&w, CLIENT, MSG_DONE);
    assert_int_equal(done->done.error, ERR_INVALID);
    world_close(&w);
}

/* ---- of many nodes ---- */

enum { NODES = 64, CLUSTERS = 2000 };
struct cluster {
    struct sched_node node[NODES];
    const struct sched_node *nodes[NODES];
    struct sched_rate rates[NODES][NODES];
    uint64_t seed;
    uint32_t draws;
};

static uint32_t draw(struct cluster *c, uint32_t bound)
{
    return rng_below(rng_draw(c->seed, 1, c->draws++).word[0], bound);
}

/* Few values each, so that there are ties. */
static void cluster_make(struct cluster *c, uint64_t seed)
{
    *c = (struct cluster){.seed = seed};
    for (uint32_t i = 0; i < NODES; i++) {
        uint32_t total = 50 + 50 * draw(c, 3);
        c->nodes[i] = &c->node[i];
        c->node[i] = (struct sched_node){.role = draw(c, 2) ? ROLE_PREFILL : ROLE_DECODE,
                                         .open = draw(c, 16) > 0,
                                         .window_tokens = 100 * (1 + draw(c, 4)),
                                         .outstanding_tokens = 50 * draw(c, 8),
                                         .token_ns = 1000 * (1 + draw(c, 2)),
                                         .blocks_total = total,
                                         .blocks_used = draw(c, total),
                                         .blocks_free = draw(c, total + 1),
                                         .running = draw(c, 9),
                                         .sequences_max = 8,
                                         .full_until_ns = draw(c, 8) ? 0 : 100,
                                         .links = {1 + draw(c, 3), 1 + draw(c, 3)},
                                         .host = draw(c, 4),
                                         .rates = c->rates[i]};
        for (uint32_t k = 0; k < NODES; k++)
            c->rates[i][k].bytes_per_s = draw(c, 3) * 1000000000ull;
    }
}

static struct sched_job job_of(struct cluster *c)
{
    uint32_t tokens = 1 + draw(c, 600);
    return (struct sched_job){.tokens = tokens,
                              .blocks = tokens / 16 + 1,
                              .blocks_full = tokens / 16 + 1 + draw(c, 120),
                              .kv_bytes = tokens * 1000,
                              .keep_percent = draw(c, 2) ? 12 : 0};
}

static uint64_t cost_ns(const struct cluster *c, const struct sched_job *job, uint32_t p,
                        uint32_t d)
{
    const struct sched_node *n = c->nodes[p];
    return (uint64_t)(n->outstanding_tokens + job->tokens) * n->token_ns +
           sched_transfer_ns(c->nodes, n, d, job);
}

static bool could_prefill(const struct cluster *c, const struct sched_job *job, uint32_t p,
                          uint32_t d)
{
    const struct sched_node *n = c->nodes[p];
    uint32_t sent = n->outstanding_tokens;
    return n->open && n->role == ROLE_PREFILL && n->blocks_total >= job->blocks &&
           (sent == 0 || sent + job->tokens <= n->window_tokens) &&
           sched_share_link(n, c->nodes[d]);
}

static void of_many_prefill_nodes_the_first_of_the_soonest_is_taken(void **state)
{
    (void)state;
    struct cluster *c = mem_new(sizeof *c);
    const struct sched_rules rules = {DISAGGREGATE_ALWAYS, 0};
    uint32_t picked = 0;
    for (uint64_t seed = 1; seed <= CLUSTERS; seed++) {
        cluster_make(c, seed);
        struct sched_job job = job_of(c);
        struct sched_pair pair;
        enum sched_answer a = sched_pick_pair(c->nodes, NODES, &job, &rules, 50, &pair);
        if (a != SCHED_PICKED || pair.local) continue;
        picked++;
        uint64_t least_ns = cost_ns(c, &job, pair.prefill, pair.decode);
        assert_true(could_prefill(c, &job, pair.prefill, pair.decode));
        for (uint32_t p = 0; p < NODES; p++) {
            if (!could_prefill(c, &job, p, pair.decode)) continue;
            uint64_t ns = cost_ns(c, &job, p, pair.decode);
            assert_true(ns > least_ns || (ns == least_ns && p >= pair.prefill));
        }
    }
    assert_true(picked > CLUSTERS / 4);
    mem_free(c);
}

static void what_finds_no_room_by_the_sums_finds_none_at_any_node(void **state)
{
    (void)state;
    struct cluster *c = mem_new(sizeof *c);
    const struct sched_rules rules = {DISAGGREGATE_ALWAYS, 0};
    uint32_t without = 0;
    for (uint64_t seed = 1; seed <= CLUSTERS; seed++) {
        cluster_make(c, seed);
        uint32_t count = 1 + draw(c, 8); /* few, so that there may be none */
        struct sched_job job = job_of(c);
        struct sched_pair pair;
        struct sched_room room = sched_room(c->nodes, count, job.keep_percent, 50);
        enum sched_answer a = sched_pick_pair(c->nodes, count, &job, &rules, 50, &pair);
        bool none = sched_no_room(c->nodes, &room, &job);
        if (none) assert_int_equal(a, SCHED_NO_DECODE);
        without += none;
        job.prefill_only = true; /* needs none */
        assert_false(sched_no_room(c->nodes, &room, &job));
    }
    assert_true(without > CLUSTERS / 8);
    mem_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_long_prompt_waits_for_its_window_no_longer_than_short_ones_before_it),
        cmocka_unit_test(a_window_that_opens_is_used_while_the_first_waits_for_memory),
        cmocka_unit_test(a_request_that_fits_no_pool_is_told_so_behind_others_that_wait),
        cmocka_unit_test(of_many_prefill_nodes_the_first_of_the_soonest_is_taken),
        cmocka_unit_test(what_finds_no_room_by_the_sums_finds_none_at_any_node),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
