/* Each trouble is caused on purpose in a cluster of real processes, and the doctor says what it is. One that
 * is well gets no finding. */
#include "tests/e2e/command.h"
#include "tests/e2e/links.h"
#include "tests/e2e/rig.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/tandem.h"
#include "tests/unit/redis_rig.h"

enum { STREAMS = 8, LONG_PROMPT = 6000, FAMILY = 320, ROUNDS_MAX = 6 };

/* What `tandem doctor --json` says; the caller's to drop. */
static json_t *examine(const char *args, ...) __attribute__((format(printf, 1, 2)));
static json_t *examine(const char *args, ...)
{
    char line[1024];
    struct command r;
    va_list list;
    va_start(list, args);
    vsnprintf(line, sizeof line, args, list);
    va_end(list);
    command_run(&r, "tandem", "doctor --json %s", line);
    json_t *root = json_loads(r.out, 0, NULL);
    if (!root) fail_msg("no JSON: %s %s", r.out, r.err);
    assert_int_equal(r.status, json_is_true(json_object_get(root, "healthy")) ? 0 : 1);
    return root;
}

static json_t *look(const struct rig *rig)
{
    return examine("--apart 400ms --router %s", rig->cluster->addresses);
}

static const char *text_of(const json_t *finding, const char *name)
{
    const char *s = json_string_value(json_object_get(finding, name));
    return s ? s : "";
}

/* The rule's finding of this node, NULL: of any; NULL: it has none. */
static const json_t *find_of(const json_t *root, const char *rule, const char *node)
{
    const json_t *row;
    size_t i;
    json_array_foreach(json_object_get(root, "findings"), i, row)
    {
        if (strcmp(text_of(row, "rule"), rule) != 0) continue;
        if (!node || strcmp(text_of(row, "node"), node) == 0) return row;
    }
    return NULL;
}

static const json_t *find(const json_t *root, const char *rule)
{
    return find_of(root, rule, NULL);
}

static void expect_found(const json_t *root, const char *rule, const char *why, const char *advice)
{
    const json_t *f = find(root, rule);
    char *all = json_dumps(root, JSON_COMPACT);
    if (!f) fail_msg("%s is not among %s", rule, all);
    if (!strstr(text_of(f, "why"), why)) fail_msg("\"%s\" is no reason in %s", why, all);
    if (!strstr(text_of(f, "do"), advice)) fail_msg("\"%s\" is not advised in %s", advice, all);
    free(all);
}

/* A loaded host may well keep a loop waiting: that one is told truly. */
static void expect_well(const json_t *root)
{
    const json_t *row;
    size_t i;
    json_array_foreach(json_object_get(root, "findings"), i, row)
    {
        if (strcmp(text_of(row, "rule"), "slow-loop") == 0) continue;
        fail_msg("%s: %s", text_of(row, "rule"), text_of(row, "why"));
    }
}

/* So many tokens that no other prompt of another seed begins with. */
static const uint32_t *prompt_of(uint32_t seed, uint32_t count)
{
    static uint32_t tokens[STREAMS][LONG_PROMPT];
    uint32_t *t = tokens[seed % STREAMS];
    for (uint32_t i = 0; i < count; i++)
        t[i] = 100 + (seed * 97 + i * 31) % 800;
    return t;
}

static void start_all(struct rig *rig, uint32_t prompt_tokens, uint32_t max_tokens,
                      const char *tenant)
{
    for (uint32_t i = 0; i < STREAMS; i++)
        streams_start(rig->streams, i,
                      &(struct ask){.tokens = prompt_of(i, prompt_tokens),
                                    .tokens_count = prompt_tokens,
                                    .max_tokens = max_tokens,
                                    .ignore_eos = true,
                                    .no_text = true,
                                    .tenant = tenant});
}

static bool all_accepted(void *ctx)
{
    const struct streams *s = ctx;
    for (uint32_t i = 0; i < s->count; i++)
        if (!s->stream[i]->accepted) return false;
    return true;
}

/* Looked at with its requests under way, which are then cancelled. */
static json_t *look_and_cancel(struct rig *rig)
{
    streams_run_until(rig->streams, all_accepted, rig->streams, "all accepted");
    json_t *root = look(rig);
    rig_finish(rig);
    return root;
}

static void a_cluster_that_serves_gets_no_finding(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 2, "", "");
    json_t *idle = look(rig);
    start_all(rig, 40, 200, NULL);
    streams_until_tokens(rig->streams->stream[0], 1);
    json_t *busy = look(rig);
    streams_run(rig->streams);
    json_t *later = look(rig);
    expect_well(idle);
    expect_well(busy);
    expect_well(later);
    json_decref(idle);
    json_decref(busy);
    json_decref(later);
    rig_finish(rig);
}

static void kv_names_what_is_shared_by_its_words_and_tenant(void **state)
{
    struct rig *rig = *state;
    struct command r;
    rig_start(rig, 1, 1, "", "");
    for (int i = 0; i < 3; i++) {
        struct ask ask = {.text =
                              "It is told in Rome that Caesar has come home, and that the people "
                              "wait for him at the gate with wine and song.",
                          .max_tokens = 4,
                          .tenant = "acme"};
        stream_expect_done(streams_ask(rig->streams, &ask));
    }
    command_run(&r, "tandem", "kv --node d0 --router %s", rig->cluster->addresses);
    assert_int_equal(r.status, 0);
    assert_non_null(strstr(r.out, "d0: decode"));
    assert_null(strstr(r.out, "p0: prefill"));
    assert_non_null(strstr(r.out, "acme           \"It is told in Rome"));
    command_run(&r, "tandem", "kv --node d7 --router %s", rig->cluster->addresses);
    assert_int_equal(r.status, 1);
    assert_non_null(strstr(r.err, "no node is named d7"));
    rig_finish(rig);
}

static void a_pool_too_small_is_named_and_fragmentation_cleared(void **state)
{
    struct rig *rig = *state;
    struct command r;
    char path[PATH_MAX];
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "--disaggregate always");
    cluster_node(rig->cluster, PROGRAM_PREFILL, "--threads 1");
    cluster_node(rig->cluster, PROGRAM_DECODE, "--threads 1 --context 4096 --blocks 258");
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    start_all(rig, 1600, 2400, NULL); /* 250 blocks each */
    streams_run_until(rig->streams, all_accepted, rig->streams, "all accepted");
    streams_until_tokens(rig->streams->stream[0], 20);
    snprintf(path, sizeof path, "%s/samples.json", rig->cluster->folder);
    command_run(&r, "tandem", "kv --json --apart 400ms --save %s --router %s", path,
                rig->cluster->addresses);
    if (r.status != 0) fail_msg("it left with %d: %s", r.status, r.err);
    json_t *root = examine("--from %s", path);
    expect_found(root, "pool-too-small", "the pool has 258", "--blocks");
    expect_found(root, "fragmentation", "never more than one block of each", "do not look for it");
    assert_null(find(root, "prefill-short"));
    json_decref(root);
    rig_finish(rig);
}

static void work_that_is_done_twice_is_named(void **state)
{
    struct rig *rig = *state;
    json_t *root = NULL;
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "--disaggregate always");
    cluster_node(rig->cluster, PROGRAM_PREFILL, "--threads 1");
    cluster_node(rig->cluster, PROGRAM_DECODE,
                 "--threads 1 --context 1024 --blocks 66 --no-prefix-cache");
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    start_all(rig, 40, 900, NULL); /* 59 blocks each in the end */
    streams_run(rig->streams);
    root = look(rig);
    expect_found(root, "preemption-thrash", "were computed a second time", "--blocks");
    json_decref(root);
    rig_finish(rig);
}

static void a_full_batch_is_told_from_a_lack_of_blocks(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "");
    cluster_node(rig->cluster, PROGRAM_PREFILL, "--threads 1");
    cluster_node(rig->cluster, PROGRAM_DECODE, "--threads 1 --batch 2");
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    start_all(rig, 40, 3000, NULL);
    json_t *root = look_and_cancel(rig);
    expect_found(root, "decode-short", "places in their batches", "--batch");
    assert_null(find(root, "pool-too-small"));
    json_decref(root);
}

static void too_few_prefill_nodes_are_told_from_too_few_decode_nodes(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 2, "--disaggregate always", "");
    start_all(rig, LONG_PROMPT, 4, NULL);
    json_t *root = look_and_cancel(rig);
    expect_found(root, "prefill-short", "all busy", "add 1 to the 1 prefill nodes");
    assert_null(find(root, "decode-short"));
    json_decref(root);
}

static void a_cache_that_forgets_too_early_is_named(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "--disaggregate always --backfill never");
    cluster_node(rig->cluster, PROGRAM_PREFILL, "--threads 1 --context 512 --blocks 34");
    cluster_node(rig->cluster, PROGRAM_DECODE, "--threads 1");
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    for (uint32_t i = 0; i < 12; i++) { /* three prompts take turns where there is room for one */
        struct ask ask = {
            .tokens = prompt_of(i % 3, FAMILY), .tokens_count = FAMILY, .max_tokens = 2};
        stream_expect_done(streams_ask(rig->streams, &ask));
    }
    json_t *root = look(rig);
    expect_found(root, "cache-evicted-early", "had to be computed again", "--blocks");
    assert_string_equal(text_of(find(root, "cache-evicted-early"), "node"), "p0");
    json_decref(root);
    rig_finish(rig);
}

static void a_node_that_is_stopped_does_not_answer(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 2, "--dead-after 30s", "");
    struct process *d1 = cluster_process(rig->cluster, "d1");
    process_signal(d1, SIGSTOP);
    json_t *root = look(rig);
    expect_found(root, "node-silent", "no answer in 2000 ms", "--dead-after");
    assert_string_equal(text_of(find(root, "node-silent"), "node"), "d1");
    json_decref(root);
    process_kill(d1); /* continued it would begin a new life, perhaps without a router */
    rig_finish(rig);
}

static void a_cluster_without_decode_nodes_is_told_what_to_start(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "");
    json_t *root = look(rig);
    expect_found(root, "no-nodes", "0 nodes have joined router r0", "tandem-decode");
    json_decref(root);
    cluster_stop(rig->cluster);
}

static void a_tenant_that_gets_nothing_is_named(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "--tenant-reserve 0 --dead-after 30s");
    cluster_node(rig->cluster, PROGRAM_PREFILL, "--threads 1");
    struct process *d0 = cluster_node(rig->cluster, PROGRAM_DECODE, "--threads 1 --batch 2");
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    start_all(rig, 40, 6000, "bulk");
    streams_until_tokens(rig->streams->stream[0], 1);
    struct ask ask = {.text = "A word", .max_tokens = 4, .tenant = "chat"};
    streams_start(rig->streams, STREAMS, &ask);
    streams_run_until(rig->streams, all_accepted, rig->streams, "all accepted");
    process_signal(d0, SIGSTOP); /* none of the others ends while we look */
    json_t *root = look(rig);
    process_kill(d0);
    rig_finish(rig);
    expect_found(root, "tenant-starved", "chat has 1 requests waiting and none running",
                 "--tenant-weights chat=2");
    json_decref(root);
}

/* One tenant comes back with its prompt after five others of a tenant that never repeats itself, and that
 * somebody has given nearly all of the caches by its weight. */
static void a_tenant_that_fills_the_cache_is_named(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "--disaggregate always --tenant-weights bulk=1000");
    for (int decode = 0; decode < 2; decode++)
        cluster_node(rig->cluster, decode ? PROGRAM_DECODE : PROGRAM_PREFILL,
                     "--threads 1 --context 1024 --blocks 66 --evict lru");
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    for (uint32_t i = 0; i < 30; i++) {
        bool chat = i % 6 == 0;
        struct ask ask = {.tokens = prompt_of(chat ? 0 : 1 + i, FAMILY),
                          .tokens_count = FAMILY,
                          .max_tokens = 2,
                          .tenant = chat ? "chat" : "bulk"};
        stream_expect_done(streams_ask(rig->streams, &ask));
    }
    json_t *root = look(rig);
    expect_found(root, "tenant-crowds-cache", "had been evicted shortly before", "larger pools");
    json_decref(root);
    rig_finish(rig);
}

/* One prefill node with these tiers, whose pool has room for one of the prompts that take turns. */
static void start_tiered(struct rig *rig, const char *tiers)
{
    char args[2 * PATH_MAX];
    snprintf(args, sizeof args, "--threads 1 --context 512 --blocks 34 %s", tiers);
    rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(rig->cluster, "--disaggregate always --backfill never");
    cluster_node(rig->cluster, PROGRAM_PREFILL, args);
    cluster_node(rig->cluster, PROGRAM_DECODE, "--threads 1 --context 512 --blocks 34");
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
}

static void take_turns(struct rig *rig, uint32_t prompts, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct ask ask = {
            .tokens = prompt_of(i % prompts, FAMILY), .tokens_count = FAMILY, .max_tokens = 2};
        stream_expect_done(streams_ask(rig->streams, &ask));
    }
}

/* From here on, until release, the process runs only for some time of each round. */
static pid_t brake(pid_t process, useconds_t runs_us, useconds_t stopped_us)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        kill(process, SIGSTOP);
        usleep(stopped_us);
        kill(process, SIGCONT);
        usleep(runs_us);
    }
}

static void release(pid_t brake, pid_t process)
{
    if (brake == 0) return;
    kill(brake, SIGKILL);
    waitpid(brake, NULL, 0);
    kill(process, SIGCONT);
}

/* A real server in a folder of its own, that the nodes of start_tiered use. Skips without one. */
struct shared_tier {
    struct redis_rig redis;
    char folder[64];
    pid_t brake; /* of a process that lets the server run only now and then; 0: none */
};

static void start_shared(struct rig *rig, struct shared_tier *t, const char *more)
{
    char args[PATH_MAX + 128];
    *t = (struct shared_tier){.folder = "/tmp/tandem-diagnoses-XXXXXX"};
    assert_non_null(mkdtemp(t->folder));
    if (!redis_rig_start(&t->redis, t->folder, NULL)) {
        rmdir(t->folder);
        skip();
    }
    snprintf(args, sizeof args, "--kv-redis %s %s", t->redis.where, more);
    start_tiered(rig, args);
}

static void stop_shared(struct shared_tier *t)
{
    char path[128];
    release(t->brake, t->redis.pid);
    redis_rig_stop(&t->redis);
    snprintf(path, sizeof path, "%s/redis.sock", t->folder);
    unlink(path);
    rmdir(t->folder);
}

/* No machine is so slow at computing. */
static void slow_down(struct shared_tier *t)
{
    t->brake = brake(t->redis.pid, 1000, 399000 * PATIENCE);
}

static void a_tier_that_stopped_answering_is_named(void **state)
{
    struct rig *rig = *state;
    struct shared_tier tier;
    start_shared(rig, &tier, "");
    take_turns(rig, 3, 6);
    json_t *before = look(rig);
    redis_rig_signal(&tier.redis, SIGSTOP);
    take_turns(rig, 12, 12); /* new ones are stored, whatever reading is worth */
    json_t *after = look(rig);
    stop_shared(&tier);
    assert_null(find(before, "tier-broken"));
    expect_found(after, "tier-broken", "left alone for a while", "--kv-redis");
    json_decref(before);
    json_decref(after);
    rig_finish(rig);
}

static void a_tier_that_is_slower_than_computing_is_named(void **state)
{
    struct rig *rig = *state;
    struct shared_tier tier;
    json_t *root = NULL;
    start_shared(rig, &tier, "--kv-tier-deadline 10s");
    take_turns(rig, 3, 3);
    slow_down(&tier);
    for (int i = 0; i < ROUNDS_MAX && (!root || !find(root, "tier-slow")); i++) {
        json_decref(root);
        take_turns(rig, 3, 15); /* what was measured while it was fast is forgotten by and by */
        root = look(rig);
    }
    stop_shared(&tier);
    expect_found(root, "tier-slow", "were computed instead", "--kv-redis");
    json_decref(root);
    rig_finish(rig);
}

/* ---- links, processes, loops ---- */

static void a_link_that_is_cut_is_named_with_the_one_that_carries(void **state)
{
    struct rig *rig = *state;
    struct ask ask = {.text = "A word", .max_tokens = 2};
    struct command r;
    rig_start(rig, 1, 1, "--disaggregate always", "--link-retry 60s");
    stream_expect_done(streams_ask(rig->streams, &ask));
    json_t *before = look(rig);
    assert_true(links_cut_shm(cluster_process(rig->cluster, "d0")) > 0);
    stream_expect_done(streams_ask(rig->streams, &ask));
    links_await(rig->cluster, &(struct link_wish){.kind = "tcp", .ready = true}, NULL);
    json_t *after = look(rig);
    assert_null(find(before, "link-fell-back"));
    expect_found(after, "link-fell-back", "shm link", "--link-retry");
    command_run(&r, "tandem", "doctor --apart 0s --router %s", rig->cluster->addresses);
    assert_non_null(strstr(
        r.out, "KV from p0 to d0 goes over tcp, as shm is broken [link-fell-back]\n   why "));
    json_decref(before);
    json_decref(after);
    rig_finish(rig);
}

/* The thread of this name. */
static pid_t thread_of(const struct process *p, const char *name)
{
    char path[PATH_MAX], said[32] = "";
    pid_t found = 0;
    snprintf(path, sizeof path, "/proc/%d/task", (int)p->pid);
    DIR *tasks = opendir(path);
    assert_non_null(tasks);
    for (struct dirent *entry; !found && (entry = readdir(tasks));) {
        snprintf(path, sizeof path, "/proc/%d/task/%s/comm", (int)p->pid, entry->d_name);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        if (fgets(said, sizeof said, f) && strcspn(said, "\n") == strlen(name) &&
            strncmp(said, name, strlen(name)) == 0)
            found = atoi(entry->d_name);
        fclose(f);
    }
    closedir(tasks);
    assert_true(found > 0);
    return found;
}

/* As a device that does not come back does, the thread stands still and all others of its process go on. */
static pid_t hang_engine(const struct process *p)
{
    pid_t engine = thread_of(p, "engine");
    if (ptrace(PTRACE_SEIZE, engine, NULL, NULL) != 0) {
        print_message("threads of another process cannot be stopped here: %s\n", strerror(errno));
        skip();
    }
    assert_int_equal(ptrace(PTRACE_INTERRUPT, engine, NULL, NULL), 0);
    assert_int_equal(waitpid(engine, NULL, __WALL), engine);
    return engine;
}

static void a_node_that_computes_nothing_hangs(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 1, "--hung-after 60s --disaggregate always", "");
    json_t *root = look(rig);
    assert_null(find(root, "node-hung"));
    pid_t engine = hang_engine(cluster_process(rig->cluster, "p0"));
    struct stream *s =
        streams_start(rig->streams, 0, &(struct ask){.text = "A word", .max_tokens = 2});
    for (int i = 0; i < 60 && !find(root, "node-hung"); i++) { /* 2 s, and a look is 0.4 */
        json_decref(root);
        streams_turn(rig->streams, 0);
        root = look(rig);
    }
    expect_found(root, "node-hung", "has computed no layer for", "--hung-after");
    assert_string_equal(text_of(find(root, "node-hung"), "what"), "p0 hangs");
    json_decref(root);
    assert_int_equal(ptrace(PTRACE_DETACH, engine, NULL, NULL), 0);
    streams_run(rig->streams);
    stream_expect_done(s);
    rig_finish(rig);
}

/* What the doctor says of this status and the one now. */
static json_t *look_since(const struct rig *rig, json_t *before)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/samples.json", rig->cluster->folder);
    json_t *samples = json_pack("{s:[{s:o},{s:o}]}", "samples", "status", before, "status",
                                cluster_status(rig->cluster));
    assert_int_equal(json_dump_file(samples, path, 0), 0);
    json_decref(samples);
    return examine("--from %s", path);
}

static void requests_that_fail_and_nodes_that_die_are_told(void **state)
{
    struct rig *rig = *state;
    struct command r;
    rig_start(rig, 1, 2, "", "");
    json_t *before = cluster_status(rig->cluster);
    process_kill(cluster_process(rig->cluster, "d1"));
    cluster_await_nodes(rig->cluster);
    json_t *root = look_since(rig, before);
    expect_found(root, "requests-fail", "1 nodes went without having been drained", "node_left");
    assert_string_equal(text_of(find(root, "requests-fail"), "what"), "nodes die");
    json_decref(root);
    before = cluster_status(rig->cluster);
    command_run(&r, "tandem",
                "generate --deadline 300ms --max-tokens 7000 --ignore-eos --router %s Word",
                rig->cluster->addresses);
    assert_int_not_equal(r.status, 0);
    root = look_since(rig, before);
    expect_found(root, "requests-fail", "1 samples ended with an error", "tandem explain");
    assert_string_equal(text_of(find(root, "requests-fail"), "what"), "requests fail");
    json_decref(root);
    rig_finish(rig);
}

/* As on a host that gives it a fifth of a core, or less on one so fast that few of its callbacks are
 * interrupted then. */
static void a_loop_that_is_often_late_is_named(void **state)
{
    struct rig *rig = *state;
    json_t *root = NULL;
    rig_start(rig, 1, 1, "", "");
    const struct process *router = cluster_process(rig->cluster, "r0");
    start_all(rig, 40, 6000, NULL);
    streams_until_tokens(rig->streams->stream[0], 1);
    for (useconds_t runs_us = 1000; runs_us > 50 && (!root || !find_of(root, "slow-loop", "r0"));
         runs_us /= 2) {
        pid_t brakes = brake(router->pid, runs_us, 4000);
        json_decref(root);
        root = examine("--apart 400ms --patience 60s --router %s", rig->cluster->addresses);
        release(brakes, router->pid);
    }
    expect_found(root, "slow-loop", "took longer than 1 ms", "--cpus");
    assert_non_null(find_of(root, "slow-loop", "r0")); /* others may be late by themselves */
    json_decref(root);
    rig_finish(rig);
}

static void files_that_are_none_are_refused(void **state)
{
    struct command r;
    (void)state;
    command_run(&r, "tandem", "doctor --from %s", "/nowhere");
    assert_int_equal(r.status, 1);
    assert_non_null(strstr(r.err, "/nowhere"));
    command_run(&r, "tandem", "doctor --from %s/config.json", cluster_demo_model());
    assert_int_equal(r.status, 1);
    assert_non_null(strstr(r.err, "neither a status nor a report"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(a_cluster_that_serves_gets_no_finding),
        RIG_TEST(kv_names_what_is_shared_by_its_words_and_tenant),
        RIG_TEST(a_pool_too_small_is_named_and_fragmentation_cleared),
        RIG_TEST(work_that_is_done_twice_is_named),
        RIG_TEST(a_full_batch_is_told_from_a_lack_of_blocks),
        RIG_TEST(too_few_prefill_nodes_are_told_from_too_few_decode_nodes),
        RIG_TEST(a_cache_that_forgets_too_early_is_named),
        RIG_TEST(a_node_that_is_stopped_does_not_answer),
        RIG_TEST(a_cluster_without_decode_nodes_is_told_what_to_start),
        RIG_TEST(a_tenant_that_gets_nothing_is_named),
        RIG_TEST(a_tenant_that_fills_the_cache_is_named),
        RIG_TEST(a_tier_that_stopped_answering_is_named),
        RIG_TEST(a_tier_that_is_slower_than_computing_is_named),
        RIG_TEST(a_link_that_is_cut_is_named_with_the_one_that_carries),
        RIG_TEST(a_node_that_computes_nothing_hangs),
        RIG_TEST(requests_that_fail_and_nodes_that_die_are_told),
        RIG_TEST(a_loop_that_is_often_late_is_named),
        cmocka_unit_test(files_that_are_none_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
