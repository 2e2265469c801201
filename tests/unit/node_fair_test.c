/* A node and its tenants: whose prompt is computed first, whose blocks go first, and that what one tenant
 * has cached is nobody else's. */
#include "tests/unit/testing.h"

#include <math.h>

#include "tests/unit/node_rig.h"

static struct rig d;

static struct job job_of(uint32_t id, uint64_t tenant, uint32_t lead,
                         const struct rig_prompt *prompt)
{
    struct job job = rig_job(id, prompt);
    job.stop_ids_count = 0;
    job.tenant = job.tenant_salt = tenant;
    job.tenant_weight = 1;
    job.fair_lead = lead;
    return job;
}

/* The place of this job's FINISHED among all. */
static uint32_t finished_at(const struct rig *r, struct job_key key)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->said_count; i++) {
        if (r->said[i].m.kind != MSG_FINISHED) continue;
        if (job_key_equal(r->said[i].m.finished.key, key)) return n;
        n++;
    }
    fail_msg("it did not finish");
    return 0;
}

static void a_tenant_with_nothing_here_goes_before_what_waits_of_another(void **state)
{
    (void)state;
    enum { HEAVY = 6 };
    rig_open(&d,
             &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 64, .chunk_tokens = 16});
    struct job heavy[HEAVY], light;
    for (uint32_t i = 0; i < HEAVY; i++) {
        heavy[i] = job_of(i, 1, i ? 80 * (i + 1) : 0, &(struct rig_prompt){i, 0, 0, 80, 1});
        rig_prefill(&d, &heavy[i], ID128_NONE, 0);
    }
    for (int i = 0; i < 6; i++)
        rig_step(&d); /* the first one is done, the second one has begun */
    light = job_of(50, 2, 0, &(struct rig_prompt){50, 0, 0, 80, 1});
    rig_prefill(&d, &light, ID128_NONE, 0);
    rig_run(&d);
    assert_true(finished_at(&d, light.key) <= 2);
    for (uint32_t i = 1; i < HEAVY; i++) /* its own order stays */
        assert_true(finished_at(&d, heavy[i - 1].key) < finished_at(&d, heavy[i].key));
    rig_free(&d);
}

/* However many come later, one that waits is served when as much was computed as stood before it. */
static void nobody_waits_for_ever_behind_small_tenants(void **state)
{
    (void)state;
    enum { LATER = 12 };
    rig_open(&d,
             &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 64, .chunk_tokens = 16});
    struct job old[2];
    for (uint32_t i = 0; i < 2; i++) {
        old[i] = job_of(i, 1, i * 160, &(struct rig_prompt){i, 0, 0, 80, 1});
        rig_prefill(&d, &old[i], ID128_NONE, 0);
    }
    uint32_t before = 0;
    struct job job[LATER];
    for (uint32_t i = 0; i < LATER; i++) {
        job[i] = job_of(10 + i, 100 + i, 0, &(struct rig_prompt){10 + i, 0, 0, 40, 1});
        rig_prefill(&d, &job[i], ID128_NONE, 0);
        for (int step = 0; step < 3; step++)
            rig_step(&d);
    }
    rig_run(&d);
    for (uint32_t i = 0; i < LATER; i++)
        before += finished_at(&d, job[i].key) < finished_at(&d, old[1].key);
    assert_in_range(before, 1,
                    5); /* 80 tokens of the first, then 80 of others at the most, by 40 */
    rig_free(&d);
}

static void a_short_pool_takes_from_who_has_most(void **state)
{
    (void)state;
    rig_open(&d,
             &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 16, .chunk_tokens = 40});
    struct job job[4];
    for (uint32_t i = 0; i < 4; i++) { /* three of one tenant, then one of another */
        job[i] =
            job_of(i, i < 3 ? 1 : 2, i < 3 ? i * 80 : 0, &(struct rig_prompt){i, 0, 0, 40, 120});
        rig_reserve(&d, &job[i], true);
    }
    rig_run(&d);
    assert_true(rig_counts(&d).preemptions > 0);
    assert_true(finished_at(&d, job[0].key) < finished_at(&d, job[1].key));
    assert_true(finished_at(&d, job[3].key) < finished_at(&d, job[1].key));
    assert_true(finished_at(&d, job[3].key) < finished_at(&d, job[2].key));
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t want[RIG_STREAM_MAX], got[RIG_STREAM_MAX];
        enum finish finish;
        uint32_t n = rig_expect(&job[i], 400, want, &finish);
        assert_int_equal(rig_stream(&d, job[i].key, got), n);
        assert_memory_equal(got, want, n * sizeof *got);
    }
    rig_free(&d);
}

/* What a miss says, and in as many steps. */
static void another_tenants_prefix_is_a_miss_in_all_that_shows(void **state)
{
    (void)state;
    const struct rig_prompt prompt = {1, 0, 0, 100, 1};
    uint32_t steps[3], cached[3];
    const uint64_t tenants[] = {7, 7, 8};
    rig_open(&d,
             &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 64, .chunk_tokens = 16});
    for (uint32_t i = 0; i < 3; i++) {
        struct job job = job_of(i, tenants[i], 0, &prompt);
        rig_forget(&d);
        rig_prefill(&d, &job, ID128_NONE, 0);
        for (steps[i] = 0; rig_step(&d); steps[i]++)
            continue;
        const struct msg *first = rig_said(&d, MSG_FINISHED);
        assert_non_null(first);
        cached[i] = first->finished.cached_tokens;
        rig_acknowledge(&d, job.key);
    }
    assert_int_equal(cached[0], 0);
    assert_int_equal(cached[1], 96);
    assert_true(steps[1] < steps[0]);
    assert_int_equal(cached[2], 0);
    assert_int_equal(steps[2], steps[0]);
    rig_free(&d);
}

/* ---- what D's steps wait for ---- */

/* The link says this of the stream's ticket, the only live one. */
static void link_says(enum xfer_event_kind kind)
{
    const struct xfer_event e = {.kind = kind, .first = {.token = 9, .logprob = NAN}};
    if (kind == XFER_COMMITTED) {
        rig_end_ticket(&d, &e);
    } else {
        struct xfer_event arriving = e;
        for (uint32_t i = 0; i < RIG_TICKETS_MAX; i++)
            if (d.ticket[i].live) arriving.ticket = d.ticket[i].id;
        rig_post_event(&d, &arriving);
    }
    rig_event(&d);
}

/* A stream from P, which commits so long after it begins to arrive. */
static void arrive(uint32_t id, uint64_t tenant, uint32_t lead, uint64_t takes_ns)
{
    struct job job = job_of(id, tenant, lead, &(struct rig_prompt){id, 0, 0, 20, 300});
    rig_reserve(&d, &job, false);
    link_says(XFER_ARRIVING);
    rig_advance(&d, takes_ns);
    link_says(XFER_COMMITTED);
}

/* A stream of a flood runs, a step takes 1 ms, and it is known that streams take 2 ms to arrive. */
static void begin_flood(uint32_t lead)
{
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 64});
    arrive(1, 1, lead, 2 * NS_PER_MS);
    rig_step(&d);
    assert_int_equal(d.steps_count, 1);
}

static void a_step_is_held_for_a_light_tenants_stream_that_is_about_to_come(void **state)
{
    (void)state;
    static const struct {
        const char *why;
        uint32_t flood_lead, lead;
        uint64_t ends_ns; /* the step that runs, after the stream began to arrive */
        bool held;
    } cases[] = {
        {"it comes before half of a step is over", 80, 0, 1600 * NS_PER_US, true},
        {"it is a little late", 80, 0, 2100 * NS_PER_US, true},
        {"it comes later", 80, 0, 1000 * NS_PER_US, false},
        {"its tenant has others here", 80, 40, 1600 * NS_PER_US, false},
        {"nobody has more than others", 0, 0, 1600 * NS_PER_US, false},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        begin_flood(cases[i].flood_lead);
        struct job light = job_of(2, 2, cases[i].lead, &(struct rig_prompt){2, 0, 0, 20, 300});
        rig_reserve(&d, &light, false);
        link_says(XFER_ARRIVING);
        rig_advance(&d, cases[i].ends_ns);
        rig_step(&d);
        if (d.steps_count != !cases[i].held) fail_msg("%s", cases[i].why);
        if (cases[i].held) {
            link_says(XFER_COMMITTED);
            assert_int_equal(d.steps_count, 1);
            assert_int_equal(d.step[0]->sequences_count, 2);
        }
        assert_int_equal(rig_counts(&d).held_steps, cases[i].held);
        rig_free(&d);
    }
}

static void a_step_is_held_no_longer_than_half_of_one(void **state)
{
    (void)state;
    begin_flood(80);
    struct job light = job_of(2, 2, 0, &(struct rig_prompt){2, 0, 0, 20, 300});
    rig_reserve(&d, &light, false);
    link_says(XFER_ARRIVING);
    rig_advance(&d, 2 * NS_PER_MS);
    rig_step(&d); /* and nothing comes */
    rig_advance(&d, 499 * NS_PER_US);
    assert_int_equal(d.steps_count, 0);
    rig_advance(&d, 1 * NS_PER_US);
    assert_int_equal(d.steps_count, 1);
    assert_int_equal(rig_counts(&d).held_steps, 1);
    rig_step(&d); /* not once more for it */
    assert_int_equal(d.steps_count, 1);
    rig_free(&d);
}

static void one_step_in_many_is_held_at_most(void **state)
{
    (void)state;
    begin_flood(80);
    uint64_t first = 0;
    for (uint32_t id = 2; rig_counts(&d).held_steps < 2; id++) {
        struct job light = job_of(id, id, 0, &(struct rig_prompt){id, 0, 0, 20, 300});
        rig_reserve(&d, &light, false);
        link_says(XFER_ARRIVING);
        rig_advance(&d, 2 * NS_PER_MS);
        rig_step(&d);
        link_says(XFER_COMMITTED);
        if (first == 0) first = rig_counts(&d).steps;
        rig_cancel(&d, light.key);
        for (int i = 0; i < 10; i++)
            rig_step(&d);
    }
    assert_true(rig_counts(&d).steps - first >= PLAN_HOLD_EVERY);
    rig_free(&d);
}

/* With two steps in flight the second one is planned when the first is about to end. */
static void the_next_step_takes_in_who_comes_while_one_runs(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL,
                                       .blocks_count = 64,
                                       .chunk_tokens = 16,
                                       .steps_in_flight = 2});
    struct job heavy = job_of(1, 1, 200, &(struct rig_prompt){1, 0, 0, 200, 1});
    struct job light = job_of(2, 2, 0, &(struct rig_prompt){2, 0, 0, 16, 1});
    rig_prefill(&d, &heavy, ID128_NONE, 0);
    rig_step(&d);
    rig_step(&d);
    while (d.steps_count > 1)
        rig_step_layers(&d, RIG_LAYERS), rig_step_done(&d, OK);
    rig_advance(&d, 700 * NS_PER_US);
    assert_int_equal(d.steps_count, 1);
    rig_prefill(&d, &light, ID128_NONE, 0);
    rig_advance(&d, 50 * NS_PER_US);
    assert_int_equal(d.steps_count, 2);
    assert_memory_equal(d.step[1]->tokens, light.prompt, 16 * sizeof *light.prompt);
    rig_run(&d);
    assert_true(finished_at(&d, light.key) < finished_at(&d, heavy.key));
    rig_free(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tenant_with_nothing_here_goes_before_what_waits_of_another),
        cmocka_unit_test(nobody_waits_for_ever_behind_small_tenants),
        cmocka_unit_test(a_short_pool_takes_from_who_has_most),
        cmocka_unit_test(another_tenants_prefix_is_a_miss_in_all_that_shows),
        cmocka_unit_test(a_step_is_held_for_a_light_tenants_stream_that_is_about_to_come),
        cmocka_unit_test(a_step_is_held_no_longer_than_half_of_one),
        cmocka_unit_test(one_step_in_many_is_held_at_most),
        cmocka_unit_test(the_next_step_takes_in_who_comes_while_one_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
