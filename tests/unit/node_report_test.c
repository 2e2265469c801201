#include "tests/unit/testing.h"

#include <jansson.h>

#include "common/clock.h"
#include "node/kv_report.h"
#include "node/kv_usage.h"
#include "tests/unit/node_rig.h"

static struct rig p, d;

enum { SHARED = 4 * BLOCK_TOKENS };

/* Computed from its prompt to its last token. */
static void serve(uint32_t id, const struct rig_prompt *prompt, uint64_t salt)
{
    struct job job = rig_job(id, prompt);
    job.tenant_salt = salt;
    rig_reserve(&d, &job, true);
    rig_run(&d);
    rig_acknowledge(&d, job.key);
}

static void serve_shared(uint32_t id, uint32_t family, uint64_t salt)
{
    serve(id,
          &(struct rig_prompt){
              .seed = id, .family = family, .shared_count = SHARED, .count = SHARED + 20, 4},
          salt);
}

static void ask(uint64_t ref)
{
    rig_say(&d, (struct msg){.kind = MSG_QUERY, .query = {ref, QUERY_KV, ""}});
}

/* The answer's JSON, the caller's to drop. */
static json_t *report(void)
{
    rig_forget(&d);
    ask(7);
    rig_advance(&d, 100 * NS_PER_MS);
    const struct msg *m = rig_said(&d, MSG_ANSWER);
    assert_non_null(m);
    assert_int_equal(m->answer.ref, 7);
    assert_int_equal(m->answer.error, OK);
    json_t *root = json_loadb(m->answer.text, m->answer.text_bytes, 0, NULL);
    assert_non_null(root);
    return root;
}

static long long number_at(const json_t *root, const char *part, const char *name)
{
    const json_t *v = json_object_get(json_object_get(root, part), name);
    assert_true(json_is_integer(v));
    return json_integer_value(v);
}

static long long sum_of(const json_t *list, const char *name)
{
    const json_t *row;
    size_t i;
    long long sum = 0;
    json_array_foreach(list, i, row) sum += json_integer_value(json_object_get(row, name));
    return sum;
}

static void a_report_counts_blocks_and_what_was_found(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 64});
    for (uint32_t id = 1; id <= 3; id++)
        serve_shared(id, 9, 0);
    json_t *r = report();
    struct node_counts n = rig_counts(&d);
    assert_string_equal(json_string_value(json_object_get(r, "role")), "decode");
    assert_int_equal(number_at(r, "blocks", "total"), 64);
    assert_int_equal(number_at(r, "blocks", "cached"), n.blocks.cached);
    assert_int_equal(number_at(r, "blocks", "free"), n.blocks.free);
    assert_int_equal(json_integer_value(json_object_get(r, "entries")), n.blocks.cached);
    assert_int_equal(number_at(r, "total", "queried_tokens"), 3 * (SHARED + 20));
    assert_int_equal(number_at(r, "total", "hit_tokens"), 2 * SHARED);
    assert_int_equal(number_at(r, "total", "prompt_tokens"), n.prompt_tokens);
    assert_int_equal(sum_of(json_object_get(r, "ages"), "blocks"), n.blocks.cached);
    assert_int_equal(sum_of(json_object_get(r, "sizes"), "prefixes"), 3); /* three tails */
    json_decref(r);
    rig_free(&d);
}

static void the_biggest_shared_prefixes_are_named_with_their_first_tokens(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 64});
    for (uint32_t id = 1; id <= 3; id++)
        serve_shared(id, 9, 0);
    for (uint32_t id = 4; id <= 5; id++)
        serve_shared(id, 10, 0);
    json_t *r = report(), *list = json_object_get(r, "prefixes");
    struct job job = rig_job(1, &(struct rig_prompt){1, 9, SHARED, SHARED + 20, 4});
    assert_int_equal(json_array_size(list), 2);
    const json_t *first = json_array_get(list, 0), *ids = json_object_get(first, "first");
    assert_int_equal(json_integer_value(json_object_get(first, "tokens")), SHARED);
    assert_int_equal(json_integer_value(json_object_get(first, "uses")), 3);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(list, 1), "uses")), 2);
    assert_int_equal(json_array_size(ids), BLOCK_TOKENS);
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++) {
        const json_t *last = json_object_get(first, "last");
        assert_int_equal(json_integer_value(json_array_get(ids, i)), job.prompt[i]);
        assert_int_equal(json_integer_value(json_array_get(last, i)),
                         job.prompt[SHARED - BLOCK_TOKENS + i]);
    }
    json_decref(r);
    rig_free(&d);
}

static void a_prefix_that_goes_while_the_report_is_made_is_left_out(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 12});
    serve_shared(1, 9, 0);
    serve_shared(2, 9, 0);
    rig_forget(&d);
    ask(7); /* all blocks are looked at, and ranked */
    for (uint32_t id = 3; id <= 6; id++)
        serve(id, &(struct rig_prompt){.seed = id, .count = 150, .tokens_max = 20}, 0);
    rig_advance(&d, 100 * NS_PER_MS);
    const struct msg *m = rig_said(&d, MSG_ANSWER);
    json_t *root = json_loadb(m->answer.text, m->answer.text_bytes, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(root, "prefixes")), 0);
    json_decref(root);
    rig_free(&d);
}

static void tenants_have_their_own_figures(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 64});
    serve_shared(1, 9, 0xa);
    serve_shared(2, 9, 0xa);
    serve_shared(3, 9, 0xb); /* the same words, and nothing found */
    json_t *r = report(), *list = json_object_get(r, "tenants");
    assert_int_equal(json_array_size(list), 2);
    const json_t *a = json_array_get(list, 0), *b = json_array_get(list, 1);
    assert_string_equal(json_string_value(json_object_get(a, "salt")), "000000000000000a");
    assert_int_equal(json_integer_value(json_object_get(a, "jobs")), 2);
    assert_int_equal(json_integer_value(json_object_get(a, "hit_tokens")), SHARED);
    assert_int_equal(json_integer_value(json_object_get(b, "hit_tokens")), 0);
    assert_int_equal(sum_of(list, "blocks"), rig_counts(&d).blocks.cached);
    json_decref(r);
    rig_free(&d);
}

static void what_was_evicted_too_early_is_told(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 8});
    for (uint32_t id = 1; id <= 4; id++) /* two families take turns in a pool for one */
        serve_shared(id, 9 + id % 2, 0);
    json_t *r = report();
    assert_true(number_at(r, "total", "evicted_blocks") > 0);
    assert_true(number_at(r, "total", "regret_tokens") > 0);
    json_decref(r);
    rig_free(&d);
}

static void a_window_forgets_what_is_older(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 64});
    serve_shared(1, 9, 0);
    json_t *r = report();
    assert_int_equal(number_at(r, "window", "queried_tokens"), SHARED + 20);
    json_decref(r);
    for (uint32_t i = 0; i < 2 * KV_USAGE_SAMPLES; i++)
        for (uint32_t k = 0; k < KV_USAGE_SAMPLE_NS / d.config.session.heartbeat_ns; k++) {
            rig_say(&d, (struct msg){.kind = MSG_HEARTBEAT});
            rig_advance(&d, d.config.session.heartbeat_ns);
        }
    r = report();
    assert_int_equal(number_at(r, "window", "queried_tokens"), 0);
    assert_int_equal(number_at(r, "total", "queried_tokens"), SHARED + 20);
    json_decref(r);
    rig_free(&d);
}

static void a_large_pool_is_looked_at_in_slices(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 3 * KV_REPORT_SLICE});
    serve_shared(1, 9, 0);
    rig_forget(&d);
    ask(1); /* looks at the first slice */
    ask(2); /* gets the same answer */
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(rig_said_count(&d, MSG_ANSWER), 0);
        assert_true(d.wake_ns <= d.now_ns + KV_REPORT_PAUSE_NS);
        rig_advance(&d, KV_REPORT_PAUSE_NS);
    }
    rig_advance(&d, 10 * KV_REPORT_PAUSE_NS);
    assert_int_equal(rig_said_count(&d, MSG_ANSWER), 2);
    rig_free(&d);
}

static void who_asks_too_often_is_refused(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 3 * KV_REPORT_SLICE});
    for (uint64_t ref = 1; ref <= KV_REPORT_ASKS_MAX; ref++)
        ask(ref);
    assert_null(rig_said(&d, MSG_ANSWER));
    ask(99);
    assert_int_equal(rig_said(&d, MSG_ANSWER)->answer.error, ERR_FULL);
    assert_int_equal(rig_said(&d, MSG_ANSWER)->answer.ref, 99);
    rig_advance(&d, 10 * KV_REPORT_PAUSE_NS);
    assert_int_equal(rig_said_count(&d, MSG_ANSWER), KV_REPORT_ASKS_MAX + 1);
    rig_free(&d);
}

static void a_node_without_a_cache_reports_its_blocks(void **state)
{
    (void)state;
    rig_open(&d, &(struct rig_options){
                     .role = ROLE_PREFILL, .blocks_count = 16, .no_prefix_cache = true});
    json_t *r = report();
    assert_true(json_is_false(json_object_get(r, "prefix_cache")));
    assert_int_equal(number_at(r, "blocks", "free"), 16);
    json_decref(r);
    rig_free(&d);
}

static void more_tenants_than_rows_share_one(void **state)
{
    (void)state;
    struct kv_usage u = {0};
    const uint64_t totals[KV_COUNTS] = {0};
    for (uint64_t salt = 0; salt < KV_USAGE_TENANTS + 10; salt++) {
        kv_usage_tick(&u, salt + 1, totals);
        kv_usage_opened(&u, salt, &(struct kv_lookup){32, 16, 8});
    }
    assert_int_equal(u.tenants_replaced, 10);
    assert_int_equal(u.others.jobs, 10);
    assert_int_equal(u.others.hit_tokens, 160);
    assert_int_equal(u.others.regret_tokens, 80);
    assert_int_equal(kv_usage_tenant(&u, 0), KV_USAGE_TENANTS);
    assert_true(kv_usage_tenant(&u, KV_USAGE_TENANTS + 9) < KV_USAGE_TENANTS);
    assert_int_equal(u.hit_tokens, 16 * (KV_USAGE_TENANTS + 10));
}

/* Contiguous memory for what only prefills is sized for its prompt, whatever is generated elsewhere. */
static void a_prompt_would_waste_nothing_where_only_it_is_computed(void **state)
{
    static const struct {
        uint32_t tokens_max, forwarded;
        bool elsewhere;
    } rows[] = {{0, 0, false}, {1, 0, false}, {200, 0, true}, {200, 5, true}};
    (void)state;
    for (uint32_t i = 0; i < COUNT_OF(rows); i++) {
        rig_open_pair(&p, &d, &(struct rig_options){.role = ROLE_PREFILL, .chunk_tokens = 16},
                      &(struct rig_options){.role = ROLE_DECODE});
        struct job job = rig_job(1, &(struct rig_prompt){1, 0, 0, 55, rows[i].tokens_max});
        struct id128 ticket = ID128_NONE;
        job.forwarded = job.prompt;
        job.forwarded_count = rows[i].forwarded;
        if (rows[i].elsewhere) {
            rig_reserve(&d, &job, false);
            ticket = rig_said(&d, MSG_RESERVED)->reserved.ticket;
            assert_int_equal(rig_counts(&d).contiguous_slots, 55 + rows[i].tokens_max);
        }
        rig_prefill(&p, &job, ticket, 0);
        assert_int_equal(rig_counts(&p).held_tokens, 55 + rows[i].forwarded);
        assert_int_equal(rig_counts(&p).contiguous_slots, 55 + rows[i].forwarded);
        rig_run(&p);
        rig_acknowledge(rows[i].elsewhere ? &d : &p, job.key);
        rig_free_pair(&p, &d);
    }
}

/* Of all that were there, those that waited among them: for advice behind a load. */
static void what_all_needed_at_their_full_length_is_told_when_they_have_gone(void **state)
{
    enum { JOBS = 4, PROMPT = 20, TOKENS = 120 };
    (void)state;
    rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 14});
    struct job job[JOBS];
    for (uint32_t i = 0; i < JOBS; i++) {
        job[i] = rig_job(i + 1, &(struct rig_prompt){i + 1, 0, 0, PROMPT, TOKENS});
        job[i].stop_ids_count = 0;
        rig_reserve(&d, &job[i], true);
    }
    rig_run(&d);
    assert_true(rig_counts(&d).preemptions > 0);
    for (uint32_t i = 0; i < JOBS; i++)
        rig_acknowledge(&d, job[i].key);
    json_t *r = report();
    assert_int_equal(number_at(r, "load", "live"), 0);
    assert_int_equal(number_at(r, "load", "blocks_full"), 0);
    assert_int_equal(number_at(r, "load", "blocks_full_peak"),
                     JOBS * blocks_for_tokens(PROMPT + TOKENS - 1));
    json_decref(r);
    rig_free(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_report_counts_blocks_and_what_was_found),
        cmocka_unit_test(the_biggest_shared_prefixes_are_named_with_their_first_tokens),
        cmocka_unit_test(a_prefix_that_goes_while_the_report_is_made_is_left_out),
        cmocka_unit_test(tenants_have_their_own_figures),
        cmocka_unit_test(what_was_evicted_too_early_is_told),
        cmocka_unit_test(a_window_forgets_what_is_older),
        cmocka_unit_test(a_large_pool_is_looked_at_in_slices),
        cmocka_unit_test(who_asks_too_often_is_refused),
        cmocka_unit_test(a_node_without_a_cache_reports_its_blocks),
        cmocka_unit_test(more_tenants_than_rows_share_one),
        cmocka_unit_test(a_prompt_would_waste_nothing_where_only_it_is_computed),
        cmocka_unit_test(what_all_needed_at_their_full_length_is_told_when_they_have_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
