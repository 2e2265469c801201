/* What routers have a node pin stays cached, as long as they are there. */
#include "tests/unit/testing.h"

#include <stdio.h>

#include "common/clock.h"
#include "tests/unit/node_rig.h"

static struct rig d;

enum { PROMPT = 100, WHOLE = PROMPT / BLOCK_TOKENS };

static struct job cache_prompt(uint32_t id, uint32_t seed, uint64_t salt)
{
    struct job job = rig_job(id, &(struct rig_prompt){seed, 0, 0, PROMPT, 1});
    job.tenant = job.tenant_salt = salt;
    rig_prefill(&d, &job, ID128_NONE, 0);
    rig_run(&d);
    rig_acknowledge(&d, job.key);
    return job;
}

static uint32_t pin(const char *name, const struct job *job, bool remove)
{
    rig_forget(&d);
    rig_say(&d, (struct msg){.kind = MSG_PIN,
                             .pin = {.name = name,
                                     .tenant = "t",
                                     .remove = remove,
                                     .tokens = remove ? NULL : job->prompt,
                                     .tokens_count = remove ? 0 : job->prompt_count,
                                     .salt = job->tenant_salt}});
    const struct msg *m = rig_said(&d, MSG_PINNED);
    assert_int_equal(m == NULL, remove);
    return m ? m->pinned.blocks : 0;
}

/* More prompts than the pool holds. */
static void flood(uint32_t first)
{
    for (uint32_t i = 0; i < 20; i++)
        cache_prompt(first + i, 1000 + first + i, 0);
}

static uint32_t cached_of(uint32_t id, const struct job *job)
{
    struct job again = *job;
    again.key.request = rig_job(id, &(struct rig_prompt){id, 0, 0, PROMPT, 1}).key.request;
    rig_forget(&d);
    rig_prefill(&d, &again, ID128_NONE, 0);
    rig_run(&d);
    uint32_t cached = rig_said(&d, MSG_FINISHED)->finished.cached_tokens;
    rig_acknowledge(&d, again.key);
    return cached;
}

static void a_pinned_prompt_outlives_a_flood_until_it_is_unpinned(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 40});
    struct job job = cache_prompt(1, 1, 0);
    assert_int_equal(pin("sys", &job, false), WHOLE);
    assert_int_equal(pin("sys", &job, false), WHOLE); /* said twice is pinned once */
    flood(100);
    assert_int_equal(cached_of(2, &job), WHOLE * BLOCK_TOKENS);
    pin("sys", &job, true);
    flood(200);
    assert_int_equal(cached_of(3, &job), 0);
    rig_free(&d);
}

static void what_is_not_cached_is_not_pinned_and_half_of_the_pool_at_most(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 16});
    struct job a = rig_job(1, &(struct rig_prompt){1, 0, 0, PROMPT, 1});
    assert_int_equal(pin("a", &a, false), 0);
    a = cache_prompt(1, 1, 0);
    assert_int_equal(pin("a", &a, false), WHOLE);
    struct job b = cache_prompt(2, 2, 0);
    assert_int_equal(pin("b", &b, false), 8 - WHOLE);
    a.tenant_salt = 9; /* another tenant's prompt of the same tokens */
    assert_int_equal(pin("c", &a, false), 0);
    rig_free(&d);
}

static void a_routers_pins_go_with_it(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 40});
    struct job job = cache_prompt(1, 1, 0);
    assert_int_equal(pin("sys", &job, false), WHOLE);
    rig_lose(&d, 0);
    rig_advance(&d, 1000000000);
    rig_join(&d, 0);
    flood(100);
    assert_int_equal(cached_of(2, &job), 0);
    rig_free(&d);
}

/* Its pins are in its memory alone. */
static void a_router_in_the_place_of_one_that_is_gone_hears_of_its_pins(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 40});
    struct job job = cache_prompt(1, 1, 0);
    assert_int_equal(pin("sys", &job, false), WHOLE);
    rig_lose(&d, 0);
    rig_advance(&d, 50 * NS_PER_S);
    rig_forget(&d);
    d.routers_replaced += 100;
    rig_join(&d, 0);
    const struct msg *m = rig_said(&d, MSG_PIN);
    assert_non_null(m);
    assert_string_equal(m->pin.name, "sys");
    assert_string_equal(m->pin.tenant, "t");
    assert_int_equal(m->pin.salt, job.tenant_salt);
    assert_int_equal(m->pin.tokens_count, PROMPT);
    assert_memory_equal(m->pin.tokens, job.prompt, PROMPT * sizeof *job.prompt);
    flood(100); /* it says nothing yet: they stay */
    assert_int_equal(cached_of(2, &job), WHOLE * BLOCK_TOKENS);
    pin("sys", &job, true);
    flood(200);
    assert_int_equal(cached_of(3, &job), 0);
    rig_free(&d);
}

/* Another node may have been cut off, and tells that it is pinned. */
static void a_router_in_the_place_of_another_hears_what_that_took_back(void **state)
{
    (void)state;
    static const struct {
        bool replaced;
        uint64_t after_ns;
        bool again, told; /* pinned again, before it is gone */
    } cases[] = {{true, 50 * NS_PER_S, false, true},
                 {true, 61 * NS_PER_S, false, false},
                 {true, 50 * NS_PER_S, true, false},
                 {false, 50 * NS_PER_S, false, false}};
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 40});
        struct job job = cache_prompt(1, 1, 0);
        pin("sys", &job, false);
        rig_say(&d, (struct msg){.kind = MSG_PIN,
                                 .pin = {.ref = 7, .remove = true, .name = "sys", .tenant = "t"}});
        if (cases[i].again) pin("sys", &job, false);
        rig_lose(&d, 0);
        rig_advance(&d, cases[i].after_ns);
        rig_forget(&d);
        d.routers_replaced += cases[i].replaced ? 100 : 0;
        rig_join(&d, 0);
        const struct msg *m = rig_said(&d, MSG_PIN);
        bool told = m && m->pin.remove;
        assert_int_equal(told, cases[i].told);
        assert_int_equal(m != NULL, cases[i].told || cases[i].again);
        if (told) {
            assert_string_equal(m->pin.name, "sys");
            assert_string_equal(m->pin.tenant, "t");
            assert_int_equal(m->pin.ref, 7);
        }
        rig_free(&d);
    }
}

static void what_was_taken_back_takes_nobodys_place(void **state)
{
    (void)state;
    char name[16];
    rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 40});
    struct job job = cache_prompt(1, 1, 0);
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "p%d", i);
        assert_int_equal(pin(name, &job, false), WHOLE);
        pin(name, &job, true);
    }
    rig_free(&d);
}

static void the_pins_of_a_router_that_nobody_replaces_end(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 40});
    struct job job = cache_prompt(1, 1, 0);
    assert_int_equal(pin("sys", &job, false), WHOLE);
    rig_lose(&d, 0);
    rig_advance(&d, 61 * NS_PER_S);
    rig_forget(&d);
    d.routers_replaced += 100;
    rig_join(&d, 0);
    assert_null(rig_said(&d, MSG_PIN));
    flood(100);
    assert_int_equal(cached_of(2, &job), 0);
    rig_free(&d);
}

static void more_pins_than_there_is_place_for_hold_nothing(void **state)
{
    (void)state;
    char name[16];
    rig_open(&d, &(struct rig_options){.role = ROLE_PREFILL, .blocks_count = 40});
    struct job job = cache_prompt(1, 1, 0);
    for (int i = 0; i < 256; i++) {
        snprintf(name, sizeof name, "p%d", i);
        assert_int_equal(pin(name, &job, false), WHOLE); /* the same blocks */
    }
    assert_int_equal(pin("one-more", &job, false), 0);
    rig_free(&d);
}

/* A request may want all of the pool: pins are a wish, and an answer is worth more. */
static void pins_keep_no_request_out_of_a_pool_that_could_hold_it(void **state)
{
    (void)state;
    for (enum role role = ROLE_PREFILL; role <= ROLE_DECODE; role++) {
        rig_open(&d, &(struct rig_options){.role = role, .blocks_count = 16});
        struct job pinned = cache_prompt(1, 1, 0);
        assert_int_equal(pin("sys", &pinned, false), WHOLE);
        struct job job = rig_job(2, &(struct rig_prompt){2, 0, 0, 60, 150});
        job.stop_ids_count = 0;
        rig_forget(&d);
        if (role == ROLE_PREFILL) job = rig_job(2, &(struct rig_prompt){2, 0, 0, 200, 1});
        if (role == ROLE_PREFILL)
            rig_prefill(&d, &job, ID128_NONE, 0);
        else
            rig_reserve(&d, &job, true);
        rig_run(&d);
        const struct msg *m = rig_said(&d, MSG_FINISHED);
        assert_non_null(m);
        assert_int_equal(m->finished.tokens_count, job.tokens_max);
        m = rig_said(&d, MSG_PINNED); /* its router may ask again */
        assert_non_null(m);
        assert_int_equal(m->pinned.blocks, 0);
        rig_free(&d);
    }
}

static struct job begin_long(uint32_t id, int32_t priority, int steps)
{
    struct job job = rig_job(id, &(struct rig_prompt){id, 0, 0, 300, 1});
    job.priority = priority;
    rig_prefill(&d, &job, ID128_NONE, 0);
    while (steps-- > 0)
        rig_step(&d);
    return job;
}

/* With a window a prompt lives on the blocks that leave it. Those that are pinned meanwhile do not come back, and
 * while two prompts have begun neither is the one that pins make way for. */
static void of_two_prompts_that_pins_leave_without_blocks_one_gives_way(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){
                     .role = ROLE_PREFILL, .blocks_count = 10, .chunk_tokens = 16, .window = 40});
    struct job last = begin_long(1, 0, 2), first = begin_long(2, -1, 3); /* one of them of last */
    assert_true(pin("first", &first, false) >= 2 && pin("last", &last, false) >= 2);
    rig_forget(&d);
    rig_run(&d);
    rig_assert_failed(&d, ERR_FULL, true);
    assert_true(job_key_equal(rig_said(&d, MSG_FAILED)->failed.key, last.key));
    const struct msg *m = rig_said(&d, MSG_FINISHED);
    assert_non_null(m);
    assert_true(job_key_equal(m->finished.key, first.key));
    rig_acknowledge(&d, first.key);
    rig_free(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pinned_prompt_outlives_a_flood_until_it_is_unpinned),
        cmocka_unit_test(what_is_not_cached_is_not_pinned_and_half_of_the_pool_at_most),
        cmocka_unit_test(a_routers_pins_go_with_it),
        cmocka_unit_test(a_router_in_the_place_of_one_that_is_gone_hears_of_its_pins),
        cmocka_unit_test(a_router_in_the_place_of_another_hears_what_that_took_back),
        cmocka_unit_test(what_was_taken_back_takes_nobodys_place),
        cmocka_unit_test(the_pins_of_a_router_that_nobody_replaces_end),
        cmocka_unit_test(more_pins_than_there_is_place_for_hold_nothing),
        cmocka_unit_test(pins_keep_no_request_out_of_a_pool_that_could_hold_it),
        cmocka_unit_test(of_two_prompts_that_pins_leave_without_blocks_one_gives_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
