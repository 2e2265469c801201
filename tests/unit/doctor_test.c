#include "tests/unit/testing.h"

#include <stdio.h>
#include <string.h>

#include "client/doctor.h"
#include "common/mem.h"

/* Two prefill and two decode nodes that serve what they are asked for, in a minute that was looked at. */
struct ward {
    struct facts_node node[4];
    struct facts_path path[2];
    struct facts_tenant tenant[2];
    struct facts facts;
};

static void set_up(struct ward *w)
{
    memset(w, 0, sizeof *w);
    for (size_t i = 0; i < 4; i++) {
        struct facts_node *n = &w->node[i];
        *n = (struct facts_node){.prefill = i < 2,
                                 .blocks_total = 1000,
                                 .block_bytes = 24576,
                                 .running = i < 2 ? 0 : 20,
                                 .sequences_max = 32,
                                 .step_s = 0.02,
                                 .held_tokens = 9000,
                                 .wasted_slots = 160,
                                 .contiguous_slots = 20000,
                                 .window_s = 300,
                                 .queried_tokens = 100000,
                                 .hit_tokens = 40000,
                                 .generated_tokens = 50000,
                                 .live = 20,
                                 .blocks_full = 800};
        snprintf(n->name, sizeof n->name, "%c%zu", i < 2 ? 'p' : 'd', i % 2);
    }
    for (size_t i = 0; i < 2; i++) {
        struct facts_path *p = &w->path[i];
        snprintf(p->from, sizeof p->from, "p0");
        snprintf(p->to, sizeof p->to, "d0");
        snprintf(p->kind, sizeof p->kind, i == 0 ? "shm" : "tcp");
        snprintf(p->state, sizeof p->state, "ready");
    }
    w->facts = (struct facts){.seconds = 60,
                              .has_status = true,
                              .router = "r0",
                              .picked = 600,
                              .waited_s = 6,
                              .node = w->node,
                              .nodes_count = 4,
                              .path = w->path,
                              .paths_count = 2,
                              .tenant = w->tenant,
                              .tenants_count = 2};
    for (size_t i = 0; i < 2; i++) {
        w->tenant[i] = (struct facts_tenant){.weight = 1,
                                             .running = i == 0 ? 36 : 4,
                                             .queued = 2,
                                             .queued_before = 2,
                                             .served = 1000,
                                             .blocks = i == 0 ? 900 : 100,
                                             .queried_tokens = 10000};
        snprintf(w->tenant[i].name, sizeof w->tenant[i].name, i == 0 ? "bulk" : "chat");
    }
}

/* What the rule found; NULL: nothing. */
static const struct finding *found(struct ward *w, const char *rule)
{
    static struct diagnosis d;
    doctor_examine(&w->facts, &d);
    for (size_t i = 0; i < d.findings_count; i++)
        if (strcmp(d.finding[i].rule, rule) == 0) return &d.finding[i];
    return NULL;
}

static void a_busy_cluster_that_serves_is_healthy(void **state)
{
    (void)state;
    struct ward w;
    struct diagnosis d;
    set_up(&w);
    doctor_examine(&w.facts, &d);
    assert_int_equal(d.findings_count, 0);
    assert_false(doctor_found_trouble(&d));
    w.facts = (struct facts){.has_status = true, .node = w.node, .nodes_count = 4};
    doctor_examine(&w.facts, &d); /* one sample of an idle one */
    assert_int_equal(d.findings_count, 0);
}

/* A figure at which a rule finds nothing, and one at which it does, with what it then says. */
struct threshold {
    const char *rule;
    size_t offset; /* in struct ward */
    double below, at;
    const char *why, *advice;
};
#define OF_FACTS(f) offsetof(struct ward, facts) + offsetof(struct facts, f)
#define OF_D0(f) 2 * sizeof(struct facts_node) + offsetof(struct facts_node, f)

static void each_rule_has_its_threshold(void **state)
{
    (void)state;
    static const struct threshold rows[] = {
        {"prefill-short", OF_FACTS(blocked_prefill_s), 14, 15, "for 25 % of 60 s",
         "add 1 to the 2"},
        {"decode-short", OF_FACTS(blocked_decode_s), 14, 15, "run 40 of 64 sequences", "--blocks"},
        {"requests-fail", OF_FACTS(failed), 0, 1, "1 samples ended", "explain"},
        {"requests-fail", OF_FACTS(node_deaths), 0, 1, "1 nodes went", "node_left"},
        {"slow-loop", OF_FACTS(slow_per_s), 9.9, 10, "10.0 of its callbacks", "--cpus"},
        {"slow-loop", OF_D0(slow_per_s), 9.9, 10, "10.0 of its callbacks", "--cpus"},
        {"pool-too-small", OF_FACTS(blocked_decode_s), 14, 15, "while it runs 20 of 32",
         "--blocks"},
        {"pool-too-small", OF_D0(preemptions), 2, 3, "3 sequences were preempted", "--blocks 1250"},
        {"pool-too-small", OF_D0(refused_jobs), 2, 3, "3 jobs refused", "(29.3 MiB)"},
        {"cache-evicted-early", OF_D0(regret_tokens), 9999, 10000, "10000 tokens had to be",
         "--blocks 1625"},
        {"node-hung", OF_D0(without_progress_s), 1.9, 2, "no layer for 2.0 s", "--hung-after"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct threshold *t = &rows[i];
        struct ward w;
        for (int at = 0; at < 2; at++) {
            set_up(&w);
            memcpy((char *)&w + t->offset, at ? &t->at : &t->below, sizeof t->at);
            const struct finding *f = found(&w, t->rule);
            if (!at && f) fail_msg("%s: %g was enough", t->rule, t->below);
            if (!at) continue;
            if (!f) fail_msg("%s: %g was not enough", t->rule, t->at);
            assert_true(f->trouble);
            if (!strstr(f->why, t->why)) fail_msg("\"%s\" is not in: %s", t->why, f->why);
            if (!strstr(f->advice, t->advice))
                fail_msg("\"%s\" is not in: %s", t->advice, f->advice);
        }
    }
}

static void a_pool_is_advised_for_what_runs_there(void **state)
{
    (void)state;
    struct ward w;
    set_up(&w);
    w.node[2].preemptions = 9;
    w.node[2].blocks_full = 4000; /* 200 each */
    const struct finding *f = found(&w, "pool-too-small");
    assert_string_equal(f->about, "d0");
    assert_non_null(strstr(f->advice, "--blocks 5000"));
    assert_non_null(strstr(f->advice, "--batch 5"));
    f = found(&w, "fragmentation");
    assert_false(f->trouble);
    assert_string_equal(f->what, "fragmentation is not the cause");
    assert_non_null(strstr(f->why, "1.7 % is empty"));
    assert_non_null(strstr(f->why, "55.0 % empty"));
    w.node[2].wasted_slots = 4000;
    assert_non_null(strstr(found(&w, "fragmentation")->what, "so short"));
}

/* What is there now would fit, so it is not what lacked room. */
static void a_pool_is_advised_for_what_ran_there_when_it_has_gone(void **state)
{
    static const struct {
        double live, blocks_full;
        const char *why;
    } rows[] = {{0, 0, "; when most was wanted it needed 4000 blocks"},
                {2, 400, "; the 2 sequences there now need 400 blocks"}};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct ward w;
        set_up(&w);
        struct facts_node *n = &w.node[2];
        n->preemptions = 9;
        n->recomputed_tokens = n->generated_tokens;
        n->live = rows[i].live;
        n->blocks_full = rows[i].blocks_full;
        n->blocks_full_peak = 4000;
        const struct finding *f = found(&w, "pool-too-small");
        assert_non_null(strstr(f->why, rows[i].why));
        assert_non_null(strstr(f->why, "it needed 4000 blocks"));
        assert_non_null(strstr(f->why, "the pool has 1000"));
        assert_non_null(strstr(f->advice, "give it at least --blocks 5000"));
        f = found(&w, "preemption-thrash");
        assert_non_null(strstr(f->advice, "a larger pool: at least --blocks 5000"));
        n->blocks_full_peak = 0; /* a node that does not tell it */
        f = found(&w, "pool-too-small");
        assert_non_null(strstr(f->advice, "give it at least --blocks 1250"));
        assert_null(strstr(f->why, "it needed"));
    }
}

static void work_for_nothing_is_thrash(void **state)
{
    (void)state;
    struct ward w;
    set_up(&w);
    w.node[2].preemptions = 3;
    w.node[2].recomputed_tokens = 12499;
    assert_null(found(&w, "preemption-thrash"));
    w.node[2].recomputed_tokens = 12500;
    assert_non_null(found(&w, "preemption-thrash"));
}

static void the_batch_is_named_where_it_is_what_lacks(void **state)
{
    (void)state;
    struct ward w;
    set_up(&w);
    w.facts.blocked_decode_s = 50;
    w.node[2].running = w.node[3].running = 32;
    assert_non_null(strstr(found(&w, "decode-short")->why, "places in their batches"));
    assert_non_null(strstr(found(&w, "decode-short")->advice, "--batch"));
    set_up(&w);
    w.facts.blocked_prefill_s = 50;
    w.node[2].running = w.node[3].running = 3;
    assert_non_null(strstr(found(&w, "prefill-short")->advice, "one of the 2 decode nodes"));
}

static void a_tenant_starves_only_if_nothing_of_it_runs(void **state)
{
    (void)state;
    struct ward w;
    set_up(&w);
    w.tenant[1].running = 0;
    const struct finding *f = found(&w, "tenant-starved");
    assert_string_equal(f->what, "tenant chat starves while bulk is served");
    assert_non_null(strstr(f->why, "bulk 36 of the 36 that run"));
    assert_non_null(strstr(f->advice, "--tenant-weights chat=2"));
    w.tenant[1].queued_before = 0; /* it has only just come */
    assert_null(found(&w, "tenant-starved"));
}

static void a_tenant_is_crowded_out_if_what_it_asks_for_was_evicted(void **state)
{
    (void)state;
    struct ward w;
    set_up(&w);
    w.tenant[1].regret_tokens = 999;
    assert_null(found(&w, "tenant-crowds-cache"));
    w.tenant[1].regret_tokens = 1000;
    assert_non_null(
        strstr(found(&w, "tenant-crowds-cache")->what, "bulk crowds the prompts of chat"));
    w.tenant[0].blocks = 399;
    assert_null(found(&w, "tenant-crowds-cache"));
}

static void a_tier_is_told_broken_late_or_slower_than_computing(void **state)
{
    (void)state;
    struct ward w;
    set_up(&w);
    struct facts_tier *t = &w.node[0].tier[0];
    w.node[0].tiers_count = 1;
    w.node[0].token_s = 1e-5;
    *t = (struct facts_tier){
        .name = "disk", .hit_blocks = 51, .not_worth_blocks = 50, .read_rate = 5e7};
    assert_null(found(&w, "tier-broken"));
    assert_null(found(&w, "tier-slow"));
    t->not_worth_blocks = 51;
    assert_non_null(
        strstr(found(&w, "tier-slow")->why, "a block in 0.49 ms; computing one takes 0.16"));
    t->hit_blocks = t->not_worth_blocks = 7; /* too few to tell */
    assert_null(found(&w, "tier-slow"));
    w.node[0].tier_loads = 40;
    w.node[0].tier_loads_late = 19;
    assert_null(found(&w, "tier-slow"));
    w.node[0].tier_loads_late = 20;
    assert_non_null(strstr(found(&w, "tier-slow")->advice, "--kv-tier-deadline"));
    t->wrong_before = 3;
    assert_non_null(strstr(found(&w, "tier-broken")->why, "3 entries failed"));
    assert_false(found(&w, "tier-broken")->trouble);
    t->wrong = 2;
    assert_true(found(&w, "tier-broken")->trouble);
    assert_non_null(strstr(found(&w, "tier-broken")->why, "2 entries failed"));
    t->broken = true;
    assert_string_equal(found(&w, "tier-broken")->what, "the disk tier of p0 is out of order");
    t->stuck_s = 7;
    assert_non_null(strstr(found(&w, "tier-broken")->why, "has not returned for 7 s"));
    assert_non_null(strstr(found(&w, "tier-broken")->advice, "behind --kv-disk,"));
    snprintf(t->name, sizeof t->name, "memory"); /* the setting has another name */
    assert_non_null(strstr(found(&w, "tier-broken")->advice, "behind --kv-host-bytes,"));
}

static void a_slow_device_is_not_hung(void **state)
{
    (void)state;
    struct ward w;
    set_up(&w);
    w.node[2].without_progress_s = 10;
    w.node[2].step_s = 0.51;
    assert_null(found(&w, "node-hung"));
    w.node[2].step_s = 0.5;
    assert_non_null(found(&w, "node-hung"));
}

static void who_does_not_answer_and_who_is_not_there(void **state)
{
    (void)state;
    struct ward w;
    set_up(&w);
    snprintf(w.node[1].silent, sizeof w.node[1].silent, "no answer in 2000 ms");
    assert_string_equal(found(&w, "node-silent")->about, "p1");
    assert_null(found(&w, "no-nodes"));
    w.node[2].draining = w.node[3].draining = true;
    w.facts.queued = 4;
    w.facts.oldest_s = 12;
    assert_non_null(strstr(found(&w, "no-nodes")->why, "4 requests wait, one since 12 s"));
}

static void a_link_fell_back_only_if_a_better_one_is_broken(void **state)
{
    (void)state;
    struct ward w;
    set_up(&w);
    snprintf(w.path[1].state, sizeof w.path[1].state, "broken"); /* tcp, and shm carries */
    assert_null(found(&w, "link-fell-back"));
    set_up(&w);
    snprintf(w.path[0].state, sizeof w.path[0].state, "broken");
    snprintf(w.path[0].reason, sizeof w.path[0].reason, "the ring is gone");
    const struct finding *f = found(&w, "link-fell-back");
    assert_non_null(strstr(f->what, "from p0 to d0 goes over tcp, as shm is broken"));
    assert_string_equal(f->why, "the ring is gone");
    snprintf(w.path[1].state, sizeof w.path[1].state, "idle");
    assert_non_null(strstr(found(&w, "link-fell-back")->what, "no link"));
    snprintf(w.path[0].state, sizeof w.path[0].state, "making");
    assert_null(found(&w, "link-fell-back"));
}

static void more_findings_than_fit_are_counted(void **state)
{
    (void)state;
    static struct facts_node node[DOCTOR_FINDINGS_MAX + 5];
    static struct diagnosis d;
    struct facts f = {.node = node, .nodes_count = DOCTOR_FINDINGS_MAX + 5};
    for (size_t i = 0; i < f.nodes_count; i++)
        node[i] = (struct facts_node){.without_progress_s = 99};
    doctor_examine(&f, &d);
    assert_int_equal(d.findings_count, DOCTOR_FINDINGS_MAX);
    assert_int_equal(d.dropped, 5);
}

static void failures_of_a_single_look_are_a_note(void **state)
{
    (void)state;
    struct ward w;
    set_up(&w);
    w.facts.seconds = 0;
    w.facts.failed = 3;
    const struct finding *f = found(&w, "requests-fail");
    assert_non_null(f);
    assert_false(f->trouble);
    assert_string_equal(f->what, "requests have failed");
    assert_non_null(strstr(f->why, "since the router began 3 samples ended with an error"));
}

/* ---- facts from JSON ---- */

static enum err read(struct facts *f, const char *json)
{
    json_t *root = json_loads(json, 0, NULL);
    assert_non_null(root);
    enum err e = facts_read(f, root);
    json_decref(root);
    return e;
}

static void rates_are_between_the_samples(void **state)
{
    (void)state;
    struct facts f;
    assert_ok(read(&f,
                   "{\"samples\":[{\"status\":{\"router\":{\"at_s\":100,\"failed\":2,"
                   "\"slow_callbacks\":10,\"queue\":{\"picked\":5,\"blocked_s\":{\"prefill\":1}}},"
                   "\"nodes\":[{\"name\":\"d0\",\"load\":{\"slow_callbacks\":7}}]}},"
                   "{\"status\":{\"router\":{\"at_s\":104,\"failed\":3,\"slow_callbacks\":12,"
                   "\"queue\":{\"picked\":9,\"blocked_s\":{\"prefill\":2.5}}},"
                   "\"nodes\":[{\"name\":\"d0\",\"load\":{\"slow_callbacks\":9}},"
                   "{\"name\":\"d1\",\"load\":{\"slow_callbacks\":1000}}]},"
                   "\"kv\":{\"nodes\":[{\"node\":\"d1\",\"window\":{\"preemptions\":3}}],"
                   "\"missing\":[{\"node\":\"d0\",\"reason\":\"gone\"}]}}]}"));
    assert_true(f.seconds == 4 && f.failed == 1 && f.picked == 4 && f.blocked_prefill_s == 1.5);
    assert_true(f.slow_per_s == 0.5 && f.node[0].slow_per_s == 0.5);
    assert_true(f.node[1].slow_per_s == 0); /* it has joined meanwhile */
    assert_int_equal(f.nodes_count, 2);
    assert_string_equal(f.node[0].silent, "gone");
    assert_true(f.node[1].preemptions == 3);
    facts_fini(&f);
}

/* A tier that was well for a week tells nothing of now, nor does one that was slow yesterday. */
static void of_two_looks_a_tier_counts_by_what_was_asked_between_them(void **state)
{
    (void)state;
    static const struct {
        int hits[2], not_worth[2], loads[2], late[2];
        bool slow;
    } rows[] = {{{90000, 90000}, {0, 100}, {0, 0}, {0, 0}, true},
                {{100, 200}, {90000, 90000}, {0, 0}, {0, 0}, false},
                {{0, 0}, {0, 0}, {90000, 90040}, {0, 30}, true},
                {{0, 0}, {0, 0}, {90000, 90040}, {90000, 90001}, false},
                /* nothing was asked meanwhile: all counts */
                {{100, 100}, {90000, 90000}, {0, 0}, {0, 0}, true},
                {{90000, 90000}, {0, 0}, {90000, 90000}, {0, 0}, false},
                {{0, 0}, {0, 0}, {90000, 90003}, {80000, 80000}, true}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json_t *samples = json_array();
        for (int k = 0; k < 2; k++)
            json_array_append_new(samples,
                                  json_pack("{s:{s:[{s:s,s:s,s:{s:i,s:i,s:[{s:s,s:i,s:i}]}}]}}",
                                            "kv", "nodes", "node", "p0", "role", "prefill", "tiers",
                                            "loads", rows[i].loads[k], "loads_late",
                                            rows[i].late[k], "rows", "name", "disk", "hits",
                                            rows[i].hits[k], "not_worth", rows[i].not_worth[k]));
        json_t *root = json_pack("{s:o}", "samples", samples);
        struct facts f;
        struct diagnosis d;
        assert_ok(facts_read(&f, root));
        doctor_examine(&f, &d);
        if (d.findings_count != rows[i].slow) fail_msg("row %zu", i);
        facts_fini(&f);
        json_decref(root);
    }
}

static void what_failed_before_the_first_look_is_a_note(void **state)
{
    (void)state;
    struct facts f;
    struct diagnosis d;
    assert_ok(read(&f, "{\"samples\":[{\"status\":{\"router\":{\"at_s\":100,\"failed\":2,"
                       "\"node_deaths\":1},\"nodes\":[{\"name\":\"d0\",\"role\":\"decode\"}]}},"
                       "{\"status\":{\"router\":{\"at_s\":103,\"failed\":2,\"node_deaths\":1},"
                       "\"nodes\":[{\"name\":\"d0\",\"role\":\"decode\"}]}}]}"));
    doctor_examine(&f, &d);
    assert_int_equal(d.findings_count, 1);
    assert_string_equal(d.finding[0].rule, "requests-fail");
    assert_string_equal(d.finding[0].what, "requests have failed");
    assert_non_null(strstr(d.finding[0].why, "since the router began 2 samples ended with an "
                                             "error and 1 nodes went"));
    assert_false(doctor_found_trouble(&d));
    facts_fini(&f);
}

static void of_one_sample_counts_are_those_since_the_router_began(void **state)
{
    (void)state;
    struct facts f;
    assert_ok(read(&f, "{\"samples\":[{\"status\":{\"router\":{\"at_s\":100,\"failed\":2,"
                       "\"node_deaths\":1},\"nodes\":[]}}]}"));
    assert_true(f.seconds == 0 && f.failed == 2 && f.node_deaths == 1);
    facts_fini(&f);
}

static void odd_files_are_refused_or_read_as_far_as_they_go(void **state)
{
    (void)state;
    static const char *const refused[] = {"{}",
                                          "[]",
                                          "{\"samples\":[]}",
                                          "{\"samples\":[{}]}",
                                          "{\"samples\":7}",
                                          "{\"samples\":[7,8]}"};
    static const char *const taken[] = {
        "{\"samples\":[{\"status\":{\"router\":{}}}]}",
        "{\"samples\":[7,{\"status\":{\"router\":{\"queue\":7},\"nodes\":[1,{}],\"paths\":[{}]}}]}",
        "{\"samples\":[{\"kv\":{\"nodes\":[{}],\"missing\":{}}}]}"};
    struct facts f;
    struct diagnosis d;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_int_equal(read(&f, refused[i]), ERR_FORMAT);
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) {
        assert_ok(read(&f, taken[i]));
        doctor_examine(&f, &d);
        facts_fini(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(failures_of_a_single_look_are_a_note),
        cmocka_unit_test(a_busy_cluster_that_serves_is_healthy),
        cmocka_unit_test(each_rule_has_its_threshold),
        cmocka_unit_test(a_pool_is_advised_for_what_runs_there),
        cmocka_unit_test(a_pool_is_advised_for_what_ran_there_when_it_has_gone),
        cmocka_unit_test(work_for_nothing_is_thrash),
        cmocka_unit_test(the_batch_is_named_where_it_is_what_lacks),
        cmocka_unit_test(a_tenant_starves_only_if_nothing_of_it_runs),
        cmocka_unit_test(a_tenant_is_crowded_out_if_what_it_asks_for_was_evicted),
        cmocka_unit_test(a_tier_is_told_broken_late_or_slower_than_computing),
        cmocka_unit_test(a_slow_device_is_not_hung),
        cmocka_unit_test(who_does_not_answer_and_who_is_not_there),
        cmocka_unit_test(a_link_fell_back_only_if_a_better_one_is_broken),
        cmocka_unit_test(more_findings_than_fit_are_counted),
        cmocka_unit_test(rates_are_between_the_samples),
        cmocka_unit_test(of_two_looks_a_tier_counts_by_what_was_asked_between_them),
        cmocka_unit_test(what_failed_before_the_first_look_is_a_note),
        cmocka_unit_test(of_one_sample_counts_are_those_since_the_router_began),
        cmocka_unit_test(odd_files_are_refused_or_read_as_far_as_they_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
