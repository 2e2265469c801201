/* Tenants over real processes: who comes next, what is nobody else's, and what stays. Counted, not timed. */
#include "tests/e2e/command.h"
#include "tests/e2e/rig.h"
#include "tests/e2e/streams.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"
#include "common/hash.h"
#include "common/keyed_hash.h"

enum { HEAVY = 40, LIGHT = 5, PROMPT = 96, TOKENS = 48 };

static const uint32_t *prompt_of(uint32_t seed)
{
    static uint32_t tokens[HEAVY + LIGHT + 8][PROMPT];
    uint32_t *t = tokens[seed];
    for (uint32_t i = 0; i < PROMPT; i++)
        t[i] = 100 + (seed * 97 + i * 31) % 800;
    return t;
}

static struct ask ask_of(uint32_t seed, const char *tenant)
{
    return (struct ask){.tokens = prompt_of(seed),
                        .tokens_count = PROMPT,
                        .max_tokens = TOKENS,
                        .ignore_eos = true,
                        .no_text = true,
                        .tenant = tenant};
}

static uint32_t ended_of(const struct streams *s, const char *tenant)
{
    uint32_t ended = 0;
    for (uint32_t i = 0; i < s->count; i++)
        ended += s->stream[i]->ended && strcmp(s->stream[i]->ask.tenant, tenant) == 0;
    return ended;
}

static bool some_heavy_ended(void *ctx)
{
    return ended_of(ctx, "heavy") >= 4;
}

static bool all_are_accepted(void *ctx)
{
    const struct streams *s = ctx;
    for (uint32_t i = 0; i < s->count; i++)
        if (!s->stream[i]->accepted) return false;
    return true;
}

static bool all_light_ended(void *ctx)
{
    return ended_of(ctx, "light") == LIGHT;
}

static void a_light_tenant_passes_a_flood_that_came_before_it(void **state)
{
    struct rig *rig = *state;
    struct stream *stream[HEAVY + LIGHT];
    rig_start(rig, 1, 1, "--disaggregate always", "--batch 8");
    struct streams *s = rig->streams;
    for (uint32_t i = 0; i < HEAVY; i++) {
        struct ask ask = ask_of(i, "heavy");
        stream[i] = streams_start(s, i % 4, &ask);
    }
    streams_run_until(s, some_heavy_ended, s, "the flood is under way");
    assert_true(ended_of(s, "heavy") < HEAVY / 2);
    for (uint32_t i = 0; i < LIGHT; i++) {
        struct ask ask = ask_of(HEAVY + i, "light");
        stream[HEAVY + i] = streams_start(s, 5, &ask);
    }
    streams_run_until(s, all_are_accepted, s, "the light tenant's requests are there");
    uint32_t before = ended_of(s, "heavy");
    streams_run_until(s, all_light_ended, s, "the light tenant's requests end");
    /* Those that ran, and one for each of its own: not the other twenty that had come before. */
    assert_true(ended_of(s, "heavy") - before <= 8 + LIGHT + 4);
    streams_run(s);
    for (uint32_t i = 0; i < HEAVY + LIGHT; i++) /* and each is what it is alone */
        if (i % 9 == 0) {
            struct ask ask = ask_of(i, i < HEAVY ? "heavy" : "light");
            stream_expect_equal(stream[i], streams_ask(s, &ask));
        }
    rig_finish(rig);
}

static void what_a_tenant_has_cached_is_a_miss_for_another(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 1, "--disaggregate always", "");
    const char *const tenants[] = {"a", "a", "b", ""};
    struct stream *got[4];
    for (int i = 0; i < 4; i++) {
        struct ask ask = ask_of(0, tenants[i]);
        got[i] = streams_ask(rig->streams, &ask);
        stream_expect_equal(got[i], got[0]);
    }
    assert_int_equal(got[0]->cached_tokens, 0);
    assert_true(got[1]->cached_tokens >= PROMPT - 2 * 16);
    assert_int_equal(got[2]->cached_tokens, 0);
    assert_int_equal(got[3]->cached_tokens, 0);
    rig_finish(rig);
}

/* ---- settings of what is cached ---- */

/* What `tandem kv` says of d0; the caller's to drop. */
static json_t *report_of(const struct rig *rig)
{
    struct command r;
    command_run(&r, "tandem", "kv --json --node d0 --router %s", rig->cluster->addresses);
    json_t *all = json_loads(r.out, 0, NULL);
    json_t *report = json_incref(json_array_get(json_object_get(all, "nodes"), 0));
    json_decref(all);
    if (!report) fail_msg("no report in %s%s", r.out, r.err);
    return report;
}

static int64_t number_of(const json_t *o, const char *a, const char *b)
{
    return json_integer_value(json_object_get(json_object_get(o, a), b));
}

/* Nine blocks each. */
static void ask_six(struct rig *rig, const char *tenant)
{
    for (uint32_t i = 0; i < 6; i++) {
        struct ask ask = ask_of(i, tenant);
        stream_expect_done(streams_ask(rig->streams, &ask));
    }
}

static void a_tenant_caches_no_more_than_the_quota_that_is_set(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 0, 1, "", "--blocks 80 --context 512 --tenant-quota 25");
    ask_six(rig, "a");
    ask_six(rig, "b");
    json_t *report = report_of(rig), *row;
    size_t i;
    json_array_foreach(json_object_get(report, "tenants"), i, row)
        assert_in_range(json_integer_value(json_object_get(row, "blocks")), 9, 20);
    assert_int_equal(i, 2);
    assert_true(number_of(report, "total", "evicted_blocks") > 0); /* of 80, 40 are cached */
    json_decref(report);
    rig_finish(rig);
}

static bool all_has_gone(struct cluster *c, json_t *status)
{
    const json_t *router = json_object_get(status, "router");
    int64_t added = number_of(router, "prefix_index", "added");
    (void)c;
    return added > 0 && number_of(router, "prefix_index", "gone") == added;
}

static void what_nobody_uses_goes_when_its_time_is_over(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 0, 1, "", "--evict ttl --evict-ttl 200ms");
    ask_six(rig, "a");
    cluster_await(rig->cluster, all_has_gone, "what is cached to expire");
    json_t *report = report_of(rig);
    assert_string_equal(json_string_value(json_object_get(report, "policy")), "ttl");
    assert_true(number_of(report, "total", "expired_blocks") > 0);
    assert_int_equal(number_of(report, "total", "inserted_blocks"),
                     number_of(report, "total", "expired_blocks"));
    json_decref(report);
    rig_finish(rig);
}

static void salts_are_made_with_the_key_in_the_file(void **state)
{
    static const char secret[] = "sixteen or more bytes of a secret";
    struct rig *rig = *state;
    char path[PATH_MAX], args[PATH_MAX + 64], salt[32];
    rig->cluster = cluster_new(cluster_demo_model());
    snprintf(path, sizeof path, "%s/key", rig->cluster->folder);
    assert_ok(file_write_whole(path, secret, 15));
    snprintf(args, sizeof args, "--salt-key %s", path);
    struct process *refused = cluster_spawn(rig->cluster, PROGRAM_ROUTER, args);
    refused->expendable = true;
    assert_int_not_equal(process_await_exit(refused), 0);
    assert_true(process_logged(refused, "has 15 bytes, a salt key has at least 16"));
    assert_ok(file_write_whole(path, secret, sizeof secret));
    cluster_router(rig->cluster, args);
    cluster_node(rig->cluster, PROGRAM_DECODE, "");
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    struct ask ask = ask_of(0, "a");
    stream_expect_done(streams_ask(rig->streams, &ask));
    struct id128 of_file = hash128(secret, sizeof secret);
    const uint64_t key[2] = {of_file.hi, of_file.lo};
    snprintf(salt, sizeof salt, "%016" PRIx64, keyed_hash(key, "a", 1));
    json_t *report = report_of(rig);
    json_t *row = json_array_get(json_object_get(report, "tenants"), 0);
    assert_string_equal(json_string_value(json_object_get(row, "salt")), salt);
    assert_string_equal(json_string_value(json_object_get(row, "tenant")), "a");
    json_decref(report);
    rig_finish(rig);
}

/* ---- pins ---- */

struct answer {
    bool here;
    enum tandem_status status;
};

static void on_answer(void *ctx, enum tandem_status status, const char *text, size_t bytes)
{
    (void)text;
    (void)bytes;
    *(struct answer *)ctx = (struct answer){true, status};
}

static bool prefill_nodes_hold_it(struct cluster *c, json_t *status)
{
    size_t i;
    json_t *node, *pin = json_array_get(json_object_get(status, "pins"), 0);
    (void)c;
    json_array_foreach(json_object_get(pin, "nodes"), i, node)
    {
        bool prefill = strcmp(json_string_value(json_object_get(node, "role")), "prefill") == 0;
        if (prefill && json_integer_value(json_object_get(node, "blocks")) != PROMPT / 16)
            return false;
    }
    return json_array_size(json_object_get(pin, "nodes")) == 2;
}

static struct tandem *some_client(const struct rig *rig)
{
    struct tandem *client = NULL;
    for (uint32_t i = 0; i < STREAMS_CLIENTS_MAX && !client; i++)
        client = rig->streams->client[i];
    assert_non_null(client);
    return client;
}

/* prompt_of(0), as "sys" of tenant a. */
static void pin(struct rig *rig)
{
    struct ask other = ask_of(1, "a");
    stream_expect_done(streams_ask(rig->streams, &other)); /* client 0 is connected */
    struct answer answer = {false, TANDEM_OK};
    struct tandem_pin pin = {
        .name = "sys", .tenant = "a", .tokens = prompt_of(0), .tokens_count = PROMPT};
    assert_int_equal(tandem_pin(some_client(rig), &pin, on_answer, &answer), TANDEM_OK);
    while (!answer.here)
        streams_turn(rig->streams, 100);
    assert_int_equal(answer.status, TANDEM_OK);
    cluster_await(rig->cluster, prefill_nodes_hold_it, "the prefill node holds the pinned prompt");
}

static void a_pinned_prompt_is_cached_where_nobody_asked_for_it(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 1, "--disaggregate always", "");
    pin(rig);
    process_kill(cluster_process(rig->cluster, "p0"));
    cluster_node(rig->cluster, PROGRAM_PREFILL, "--threads 1"); /* one that has never seen it */
    cluster_await_nodes(rig->cluster);
    cluster_await(rig->cluster, prefill_nodes_hold_it, "the new node holds it too");
    struct ask ask = ask_of(0, "a"), of_another = ask_of(0, "b");
    struct stream *cached = streams_ask(rig->streams, &ask);
    assert_int_equal(cached->cached_tokens, PROMPT - 16); /* the last block's logits are wanted */
    struct stream *computed = streams_ask(rig->streams, &of_another);
    assert_int_equal(computed->cached_tokens, 0);
    stream_expect_equal(cached, computed);
    rig_finish(rig);
}

static void a_pin_outlives_the_router_that_it_was_given_to(void **state)
{
    struct rig *rig = *state;
    char args[256];
    rig_start(rig, 1, 1, "--disaggregate always", "");
    pin(rig);
    struct process *first = rig->cluster->process[0];
    process_kill(first);
    snprintf(args, sizeof args, "--disaggregate always --listen-clients %s --listen-nodes %s",
             first->clients, first->nodes);
    process_await_ready(cluster_spawn(rig->cluster, PROGRAM_ROUTER, args));
    cluster_await_nodes(rig->cluster);
    cluster_await(rig->cluster, prefill_nodes_hold_it, "the new router knows what is pinned");
    process_kill(cluster_process(rig->cluster, "p0"));
    cluster_node(rig->cluster, PROGRAM_PREFILL, "--threads 1"); /* and sees to it */
    cluster_await_nodes(rig->cluster);
    cluster_await(rig->cluster, prefill_nodes_hold_it, "the new node holds it too");
    struct ask ask = ask_of(0, "a");
    assert_int_equal(streams_ask(rig->streams, &ask)->cached_tokens, PROMPT - 16);
    rig_finish(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(a_light_tenant_passes_a_flood_that_came_before_it),
        RIG_TEST(what_a_tenant_has_cached_is_a_miss_for_another),
        RIG_TEST(a_tenant_caches_no_more_than_the_quota_that_is_set),
        RIG_TEST(what_nobody_uses_goes_when_its_time_is_over),
        RIG_TEST(salts_are_made_with_the_key_in_the_file),
        RIG_TEST(a_pinned_prompt_is_cached_where_nobody_asked_for_it),
        RIG_TEST(a_pin_outlives_the_router_that_it_was_given_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
