/* Nodes with a tier on a server: what one node computed another one finds, and a server that is slow, dead, evicts
 * or talks nonsense costs nothing but what it would have saved. Every stream is compared with that of a cluster
 * without tiers. */
#include "tests/e2e/tiered.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/unit/scratch.h"
#include "tests/unit/tiny_model.h"

/* The number behind this name in what the server tells of itself. */
static uint64_t told_by_redis(const char *section, const char *name)
{
    char command[32], reply[8192];
    snprintf(command, sizeof command, "INFO %s\r\n", section);
    redis_rig_tell(&bench.redis, command, reply, sizeof reply);
    const char *at = strstr(reply, name);
    if (!at) fail_msg("no %s in %s", name, reply);
    return strtoull(at + strlen(name), NULL, 10);
}

static void what_one_node_computed_another_one_finds(void **state)
{
    (void)state;
    if (!start_redis(NULL)) return;
    start("");
    const char *args = PAGES PATIENT "--kv-redis %s --kv-redis-ttl 1h";
    struct process *first = start_prefill(args, bench.redis.where);
    asks(0);
    await_stored(first);
    process_kill(first);
    struct process *second = start_prefill(args, bench.redis.where);
    struct stream *s = asks(0);
    assert_int_equal(s->cached_tokens, whole_of(s));
    assert_int_equal(value_of(second, "tandem_node_tier_hit_blocks_total{tier=\"redis\"}"),
                     whole_of(s) / 16);
    uint64_t keys = told_by_redis("keyspace", "db0:keys=");
    assert_true(keys >= whole_of(s) / 16);
    assert_int_equal(told_by_redis("keyspace", "expires="), keys); /* after an hour, all of them */
    rig_finish(bench.rig);
}

/* What a cluster of this model finds of a prompt, whose first tokens come to `first`. */
static uint32_t tokens_from_tiers(const char *model, const char *args, uint32_t *first)
{
    enum { PROMPT = 100 };
    uint32_t tokens[PROMPT];
    struct rig *rig = bench.rig;
    for (uint32_t i = 0; i < PROMPT; i++)
        tokens[i] = 7 + i * 31 % 180;
    rig->cluster = cluster_new(NULL);
    cluster_router(rig->cluster, "");
    char all[2 * PATH_MAX];
    snprintf(all, sizeof all, PAGES PATIENT "--threads 1 --model %s --kv-redis %s %s", model,
             bench.redis.where, args);
    struct process *d = cluster_node(rig->cluster, PROGRAM_DECODE, all);
    cluster_await_nodes(rig->cluster);
    rig_connect(rig);
    struct ask a = {.tokens = tokens,
                    .tokens_count = PROMPT,
                    .max_tokens = 8,
                    .ignore_eos = true,
                    .no_text = true};
    struct stream *s = streams_start(rig->streams, 0, &a);
    streams_run(rig->streams);
    stream_expect_done(s);
    memcpy(first, s->choice[0].tokens, 8 * sizeof *first);
    await_stored(d);
    uint32_t loaded = (uint32_t)value_of(d, "tandem_node_tier_loaded_tokens_total");
    assert_int_equal(s->cached_tokens, loaded);
    rig_finish(rig);
    return loaded;
}

static void what_another_model_or_dtype_left_on_a_server_is_a_miss(void **state)
{
    (void)state;
    struct tiny_shape shape = TINY_SHAPE;
    char dir[2][2 * PATH_MAX];
    uint32_t first[2][8], again[8];
    if (!start_redis(NULL)) return;
    shape.vocab = 200;
    shape.dtype = DTYPE_BF16;
    for (uint32_t i = 0; i < 2; i++) { /* one shape, other weights */
        snprintf(dir[i], sizeof dir[i], "%s/m%u", bench.folder, i);
        assert_int_equal(mkdir(dir[i], 0700), 0);
        shape.seed = i + 1;
        tiny_model_write(dir[i], &shape);
    }
    assert_int_equal(tokens_from_tiers(dir[0], "", first[0]), 0);
    assert_int_equal(tokens_from_tiers(dir[1], "", first[1]), 0);
    assert_memory_not_equal(first[0], first[1], sizeof first[0]);
    assert_int_equal(tokens_from_tiers(dir[0], "--dtype fp32", again), 0);
    assert_int_equal(tokens_from_tiers(dir[0], "", again), 96);
    assert_memory_equal(again, first[0], sizeof again);
    assert_int_equal(tokens_from_tiers(dir[1], "", again), 96);
    assert_memory_equal(again, first[1], sizeof again);
}

static void a_server_that_wants_a_password_gets_it_from_a_file(void **state)
{
    (void)state;
    if (!start_redis((const char *[]){"--requirepass", "open sesame", NULL})) return;
    char path[2 * PATH_MAX];
    snprintf(path, sizeof path, "%s/password", bench.folder);
    FILE *f = fopen(path, "w");
    assert_true(f && fputs("open sesame\n", f) >= 0 && fclose(f) == 0);
    start("");
    const char *args = PAGES PATIENT "--kv-redis %s --kv-redis-password %s";
    struct process *first = start_prefill(args, bench.redis.where, path);
    asks(0);
    await_stored(first);
    process_kill(first);
    struct process *second = start_prefill(args, bench.redis.where, path);
    const struct stream *s = asks(0);
    assert_int_equal(value_of(second, "tandem_node_tier_loaded_tokens_total"), whole_of(s));
    rig_finish(bench.rig);
}

static void a_server_that_stops_answering_costs_a_deadline(void **state)
{
    (void)state;
    if (!start_redis(NULL)) return;
    start("");
    struct process *p = start_prefill(PAGES "--kv-redis %s", bench.redis.where);
    asks(0);
    redis_rig_signal(&bench.redis, SIGSTOP);
    uint32_t i = 1;
    while (i < PROMPTS && logged(p, "kv_tier_broken tier=redis doing=read") == 0)
        asks(i++);
    assert_int_equal(logged(p, "kv_tier_broken tier=redis doing=read"), 1);
    redis_rig_signal(&bench.redis, SIGKILL);
    for (; i < PROMPTS; i++)
        asks(i);
    assert_true(logged(p, "kv_tier_broken tier=redis") <= 2); /* reading and writing */
    rig_finish(bench.rig);
}

static void a_server_that_evicts_costs_misses(void **state)
{
    (void)state;
    static const char *const little[] = {"--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru",
                                         NULL};
    if (!start_redis(little)) return;
    start("");
    struct process *p = start_prefill(PAGES PATIENT "--kv-redis %s --blocks 70", bench.redis.where);
    for (uint32_t round = 0; round < 2; round++)
        for (uint32_t i = 0; i < PROMPTS; i++)
            asks(i);
    assert_true(told_by_redis("stats", "evicted_keys:") > 0);
    assert_int_equal(value_of(p, "tandem_node_tier_wrong_entries_total{tier=\"redis\"}"), 0);
    rig_finish(bench.rig);
}

/* Answers everything with what is no RESP. */
struct fool {
    int listen_fd;
    pthread_t thread;
};

static void *talk_nonsense(void *arg)
{
    const struct fool *f = arg;
    char in[4096], out[512];
    int fd;
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = (char)(i * 37 + i / 7);
    while ((fd = accept(f->listen_fd, NULL, NULL)) >= 0) {
        while (read(fd, in, sizeof in) > 0)
            if (send(fd, out, sizeof out, MSG_NOSIGNAL) < 0) break;
        close(fd);
    }
    return NULL;
}

static void a_server_that_talks_nonsense_is_left_alone(void **state)
{
    (void)state;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct fool fool = {.listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    snprintf(a.sun_path, sizeof a.sun_path, "%.90s/fool", bench.folder);
    assert_int_equal(bind(fool.listen_fd, (struct sockaddr *)(void *)&a, sizeof a), 0);
    assert_int_equal(listen(fool.listen_fd, 8), 0);
    assert_int_equal(pthread_create(&fool.thread, NULL, talk_nonsense, &fool), 0);
    start("");
    struct process *p = start_prefill(PAGES "--kv-redis unix:%s", a.sun_path);
    for (uint32_t i = 0; i < PROMPTS; i++)
        asks(i);
    assert_true(value_of(p, "tandem_node_tier_failures_total{tier=\"redis\"}") > 0);
    assert_int_equal(value_of(p, "tandem_node_tier_loaded_tokens_total"), 0);
    rig_finish(bench.rig);
    shutdown(fool.listen_fd, SHUT_RDWR);
    pthread_join(fool.thread, NULL);
    close(fool.listen_fd);
}

int main(void)
{
#define ROW(name) cmocka_unit_test_setup_teardown(name, tiered_set_up, tiered_tear_down)
    const struct CMUnitTest tests[] = {
        ROW(what_one_node_computed_another_one_finds),
        ROW(what_another_model_or_dtype_left_on_a_server_is_a_miss),
        ROW(a_server_that_wants_a_password_gets_it_from_a_file),
        ROW(a_server_that_stops_answering_costs_a_deadline),
        ROW(a_server_that_evicts_costs_misses),
        ROW(a_server_that_talks_nonsense_is_left_alone),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, tiered_learn, tiered_forget);
}
