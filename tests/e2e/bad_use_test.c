/* Bad use ends in a clear error, and a cluster that suffers it goes on serving. */
#include "tests/e2e/command.h"
#include "tests/e2e/garbage.h"
#include "tests/e2e/rig.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"

enum { SEED = 3, ASKS = 3, VOCAB = 1024, CONTEXT = 8192 };

static int learn(void **state)
{
    (void)state;
    return rig_learn(SEED, ASKS);
}

/* ---- programs that cannot start ---- */

static void expect_said(const struct command *r, int status, const char *said)
{
    if (r->status != status || !strstr(r->err, said))
        fail_msg("status %d instead of %d, \"%s\" expected in: %s", r->status, status, said,
                 r->err);
}

static void wrong_settings_are_named_and_end_with_2(void **state)
{
    static const struct {
        const char *program, *args, *said;
    } cases[] = {
        {"tandem-router", "--nonsense", "--nonsense: no such setting"},
        {"tandem-router", "--heartbeat soon", "--heartbeat: \"soon\" is no duration"},
        {"tandem-router", "--disaggregate perhaps", "auto|always|never"},
        {"tandem-router", "--listen-clients nowhere", "--listen-clients: address \"nowhere\""},
        {"tandem-router", "--metrics 0.0.0.0:0", "--metrics 0.0.0.0:0 is beyond loopback"},
        {"tandem-prefill", "", "--model is not given"},
        {"tandem-prefill", "--threads 100000", "--threads: \"100000\" is out of range"},
        {"tandem-prefill", "--model x --router nowhere", "--router: address \"nowhere\""},
        {"tandem-prefill", "--model x --metrics 9100", "--metrics: address \"9100\""},
        {"tandem-decode", "--kv-bytes many", "--kv-bytes: \"many\""},
        {"tandem-decode", "--link udp", "auto|shm|tcp"},
        {"tandem-decode", "--model x --device gpu", "--device: no backend \"gpu\""},
        {"tandem-decode", "left over", "\"left\" is too much"},
        {"tandem-decode", "--model x --metrics 0.0.0.0:0", "--trusted-network"},
        {"tandem", "up --device cuda --prefill-gpus x", "--prefill-gpus \"x\": GPUs are given"},
        {"tandem", "frobnicate", "\"frobnicate\" is no verb"},
        {"tandem", "generate --max-tokens -1 x", "--max-tokens: \"-1\" is out of range"},
        {"tandem", "status --router", "--router: its value is missing"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct command r;
        command_run(&r, cases[i].program, "%s", cases[i].args);
        expect_said(&r, 2, cases[i].said);
        assert_string_equal(r.out, "");
    }
}

static void a_model_that_is_not_there_is_named(void **state)
{
    static const char *const programs[] = {"tandem-router", "tandem-prefill", "tandem-decode"};
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct command r;
        command_run(&r, programs[i], "--model /nonexistent/model%s",
                    i ? ""
                      : " --listen-clients tcp://127.0.0.1:0 --listen-nodes tcp://127.0.0.1:0");
        expect_said(&r, 1, "/nonexistent/model");
    }
}

static void addresses_beyond_loopback_are_refused(void **state)
{
    struct command r;
    (void)state;
    command_run(&r, "tandem-router", "--listen-clients tcp://0.0.0.0:0");
    if (r.status == 0) fail_msg("listens");
    assert_non_null(strstr(r.err, "--trusted-network"));
    command_run(&r, "tandem-decode", "--model %s --listen-kv 0.0.0.0:0", cluster_demo_model());
    if (r.status == 0) fail_msg("listens");
    assert_non_null(strstr(r.err, "--trusted-network"));
}

static void an_occupied_port_is_named(void **state)
{
    struct rig *rig = *state;
    struct command r;
    struct port port[PORTS_MAX];
    rig_start(rig, 0, 1, "", "");
    const struct process *router = rig->cluster->process[0], *node = rig->cluster->process[1];
    command_run(&r, "tandem-router", "--listen-clients %s --listen-nodes tcp://127.0.0.1:0",
                router->clients);
    expect_said(&r, 1, router->clients);
    assert_non_null(strstr(r.err, "occupied"));
    command_run(&r, "tandem-router", "--listen-clients tcp://127.0.0.1:0 --listen-nodes %s",
                router->nodes);
    expect_said(&r, 1, router->nodes);
    uint32_t count = ports_of(node->pid, port);
    for (uint32_t i = 0; i < count; i++) {
        char address[32];
        if (!port[i].tcp) continue;
        snprintf(address, sizeof address, "127.0.0.1:%u", port[i].tcp);
        command_run(&r, "tandem-decode", "--model %s --cache-dir %s --router %s --listen-kv %s",
                    cluster_demo_model(), rig->cluster->folder, router->nodes, address);
        expect_said(&r, 1, address);
    }
    rig_expect_wanted(rig);
    rig_finish(rig);
}

/* ---- nobody there ---- */

static void the_command_ends_with_3_when_no_router_answers(void **state)
{
    static const char *const verbs[] = {"generate hello", "status", "status --json",
                                        "explain 00000000000000000000000000000001", "drain p0"};
    (void)state;
    for (size_t i = 0; i < sizeof verbs / sizeof verbs[0]; i++) {
        struct command r;
        char address[64];
        snprintf(address, sizeof address, "tcp://127.0.0.1:%u", port_unused());
        command_run(&r, "tandem", "%s --patience 200ms --router %s", verbs[i], address);
        expect_said(&r, 3, address);
        assert_string_equal(r.out, "");
    }
}

static void await_log(const struct process *p, const char *text)
{
    uint64_t until_ns = clock_now_ns() + CLUSTER_WAIT_MS * NS_PER_MS;
    struct timespec moment = {.tv_nsec = 20000000};
    while (!process_logged(p, text)) {
        if (clock_now_ns() > until_ns) fail_msg("%s never logged \"%s\"", p->name, text);
        nanosleep(&moment, NULL); /* files cannot be waited for */
    }
}

static void a_node_says_that_its_router_is_silent_and_joins_when_it_comes(void **state)
{
    struct rig *rig = *state;
    char address[64], args[128];
    rig->cluster = cluster_new(cluster_demo_model());
    snprintf(address, sizeof address, "tcp://127.0.0.1:%u", port_unused());
    snprintf(args, sizeof args, "--router %s", address);
    struct process *node = cluster_spawn(rig->cluster, PROGRAM_DECODE, args);
    await_log(node, "router_silent");
    assert_true(process_logged(node, address));
    snprintf(args, sizeof args, "--listen-nodes %s", address);
    cluster_router(rig->cluster, args);
    process_await_ready(node);
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    rig_expect_wanted(rig);
    rig_finish(rig);
}

static void who_comes_to_the_wrong_port_is_told_the_right_one(void **state)
{
    struct rig *rig = *state;
    struct command r;
    rig_start(rig, 0, 1, "", "");
    const struct process *router = rig->cluster->process[0];
    command_run(&r, "tandem", "status --patience 1s --router %s", router->nodes);
    expect_said(&r, 3, "refused: this is the address for nodes; clients go to ");
    assert_non_null(strstr(r.err, router->clients));
    command_run(&r, "tandem-decode", "--model %s --cache-dir %s --router %s", cluster_demo_model(),
                rig->cluster->folder, router->clients);
    expect_said(&r, 1, "refused this node: this is the address for clients; nodes go to ");
    assert_non_null(strstr(r.err, router->nodes));
    rig_expect_wanted(rig);
    rig_finish(rig);
}

/* ---- nodes that do not fit ---- */

/* The cluster's model with the same weights, in a folder that goes with the cluster's. */
static const char *model_with_another_tokenizer(const struct cluster *c)
{
    static char folder[PATH_MAX];
    static const char *const files[] = {"config.json", "generation_config.json",
                                        "model.safetensors"};
    char from[PATH_MAX], to[PATH_MAX];
    snprintf(folder, sizeof folder, "%s/another", c->folder);
    assert_int_equal(mkdir(folder, 0700), 0);
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(from, sizeof from, "%s/%s", c->model, files[i]);
        snprintf(to, sizeof to, "%s/another/%s", c->folder, files[i]);
        assert_int_equal(symlink(from, to), 0);
    }
    snprintf(to, sizeof to, "%s/another/tokenizer.json", c->folder);
    assert_ok(file_write_whole(to, "{}", 2));
    return folder;
}

static void a_node_of_another_kind_is_refused_with_the_reason_in_both_logs(void **state)
{
    struct rig *rig = *state;
    struct command r;
    rig_start(rig, 1, 1, "", "");
    command_run(&r, "tandem-prefill", "--model %s --cache-dir %s --dtype fp32 --router %s",
                rig->cluster->model, rig->cluster->folder, rig->cluster->process[0]->nodes);
    expect_said(&r, 1, "refused");
    assert_true(process_logged(rig->cluster->process[0], "hello_refused"));
    const char *other = model_with_another_tokenizer(rig->cluster);
    command_run(&r, "tandem-prefill", "--model %s --cache-dir %s --router %s", other,
                rig->cluster->folder, rig->cluster->process[0]->nodes);
    expect_said(&r, 1, "the tokenizer.json of its model is not the router's");
    assert_true(process_logged(rig->cluster->process[0], "tokenizer.json"));
    rig_expect_wanted(rig);
    rig_finish(rig);
}

/* ---- requests that cannot be ---- */

static void expect_refused(struct rig *rig, const struct ask *ask, enum tandem_status status,
                           const char *said)
{
    const struct stream *s = streams_ask(rig->streams, ask);
    const struct outcome *o = &s->choice[0];
    if (o->status != status || !strstr(o->reason, said))
        fail_msg("%s: \"%s\" instead of %s: \"%s\"", tandem_status_name(o->status), o->reason,
                 tandem_status_name(status), said);
    assert_int_equal(o->finish, TANDEM_FINISH_ERROR);
}

static void a_prompt_longer_than_the_context_is_refused(void **state)
{
    static uint32_t tokens[CONTEXT + 10];
    struct rig *rig = *state;
    rig_start(rig, 1, 1, "", "");
    for (uint32_t i = 0; i < CONTEXT + 10; i++)
        tokens[i] = 100;
    struct ask ask = {.tokens = tokens, .tokens_count = CONTEXT + 1};
    expect_refused(rig, &ask, TANDEM_INVALID, "8192");
    ask.tokens_count = CONTEXT + 10;
    expect_refused(rig, &ask, TANDEM_INVALID, "8192");
    tokens[0] = VOCAB;
    ask.tokens_count = 1;
    expect_refused(rig, &ask, TANDEM_INVALID, "1024");
    rig_expect_wanted(rig);
    rig_finish(rig);
}

/* A request that no pool can ever hold is told so; those that fit are served. */
static void a_pool_smaller_than_a_request_refuses_that_one(void **state)
{
    static uint32_t tokens[600];
    struct rig *rig = *state;
    rig_start(rig, 1, 1, "", "--blocks 30");
    for (uint32_t i = 0; i < 600; i++)
        tokens[i] = 100 + i % 7;
    struct ask ask = {.tokens = tokens, .tokens_count = 600, .max_tokens = 4};
    expect_refused(rig, &ask, TANDEM_INVALID, "block");
    ask.tokens_count = 200;
    stream_expect_done(streams_ask(rig->streams, &ask));
    rig_finish(rig);
}

/* ---- garbage ---- */

static bool is_queued(struct cluster *c, json_t *status)
{
    (void)c;
    return json_integer_value(json_object_get(json_object_get(status, "router"), "queued")) == 1;
}

static void what_no_node_can_take_says_what_it_waits_for(void **state)
{
    struct rig *rig = *state;
    struct ask ask = {.text = "x", .max_tokens = 5};
    struct command r;
    rig_start(rig, 1, 0, "", "");
    command_run(&r, "tandem", "generate --router %s --deadline 1500ms x", rig->cluster->addresses);
    expect_said(&r, 1, "waiting: no decode node is ready\n");
    struct stream *s = streams_start(rig->streams, 0, &ask);
    while (!s->accepted)
        streams_turn(rig->streams, 100);
    cluster_await(rig->cluster, is_queued, "a request waits");
    command_run(&r, "tandem", "status --router %s", rig->cluster->addresses);
    assert_int_equal(r.status, 0);
    assert_non_null(strstr(r.out, "the queue waits: no decode node is ready\n"));
    cluster_node(rig->cluster, PROGRAM_DECODE, "");
    streams_run(rig->streams);
    stream_expect_done(s);
    rig_finish(rig);
}

static void throw_at_all(struct rig *rig, enum garbage kind)
{
    struct port port[PORTS_MAX];
    uint32_t ports_count = 0;
    for (uint32_t p = 0; p < rig->cluster->count; p++) {
        uint32_t count = ports_of(rig->cluster->process[p]->pid, port);
        for (uint32_t i = 0; i < count; i++)
            garbage_throw(&port[i], kind, SEED);
        ports_count += count;
    }
    assert_true(ports_count >= 8); /* the router's three, a link of each node, pages of all */
}

static void garbage_at_every_port_harms_nobody(struct rig *rig, const char *node_args)
{
    rig_start(rig, 1, 1, "--disaggregate always --metrics 127.0.0.1:0", node_args);
    for (enum garbage kind = 0; kind < GARBAGE_KINDS; kind++) {
        print_message("%s\n", garbage_name(kind));
        throw_at_all(rig, kind);
        rig_expect_wanted(rig);
    }
    garbage_session(rig->cluster->process[0]->clients);
    rig_expect_wanted(rig);
    cluster_await_nodes(rig->cluster);
    rig_finish(rig);
}

static void garbage_at_every_port_harms_nobody_over_shm(void **state)
{
    garbage_at_every_port_harms_nobody(*state,
                                       "--link auto --prefix-cache=false --metrics 127.0.0.1:0");
}

static void garbage_at_every_port_harms_nobody_over_tcp(void **state)
{
    garbage_at_every_port_harms_nobody(*state,
                                       "--link tcp --prefix-cache=false --metrics 127.0.0.1:0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_settings_are_named_and_end_with_2),
        cmocka_unit_test(a_model_that_is_not_there_is_named),
        cmocka_unit_test(addresses_beyond_loopback_are_refused),
        RIG_TEST(an_occupied_port_is_named),
        cmocka_unit_test(the_command_ends_with_3_when_no_router_answers),
        RIG_TEST(a_node_says_that_its_router_is_silent_and_joins_when_it_comes),
        RIG_TEST(who_comes_to_the_wrong_port_is_told_the_right_one),
        RIG_TEST(a_node_of_another_kind_is_refused_with_the_reason_in_both_logs),
        RIG_TEST(a_prompt_longer_than_the_context_is_refused),
        RIG_TEST(a_pool_smaller_than_a_request_refuses_that_one),
        RIG_TEST(what_no_node_can_take_says_what_it_waits_for),
        RIG_TEST(garbage_at_every_port_harms_nobody_over_shm),
        RIG_TEST(garbage_at_every_port_harms_nobody_over_tcp),
    };
    return cmocka_run_group_tests_name("e2e/bad_use", tests, learn, rig_forget);
}
