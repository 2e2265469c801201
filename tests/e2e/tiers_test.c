/* Nodes with tiers, real ones: what was computed is found again after a kill -9, and a tier that is slow, full or
 * read-only costs nothing but what it would have saved. Every stream is compared with that of a cluster without
 * tiers. Tiers on a server: tiers_redis_test.c. */
#include "tests/e2e/tiered.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- a disk ---- */

static void a_killed_node_serves_what_it_knew(void **state)
{
    (void)state;
    start("");
    const char *args = PAGES PATIENT "--kv-disk %s/disk";
    struct process *p = start_prefill(args, bench.folder);
    assert_int_equal(asks(0)->cached_tokens, 0);
    asks(1);
    await_stored(p);
    process_kill(p);
    p = start_prefill(args, bench.folder);
    struct stream *s = asks(0);
    assert_true(whole_of(s) >= 256);
    assert_int_equal(s->cached_tokens, whole_of(s));
    assert_int_equal(value_of(p, "tandem_node_tier_loaded_tokens_total"), whole_of(s));
    asks(1);
    asks(2);
    assert_int_equal(value_of(p, "tandem_node_tier_wrong_entries_total{tier=\"disk\"}"), 0);
    rig_finish(bench.rig);
}

/* A bit of each page of its values is another one. */
static void damage(const char *path)
{
    unsigned char byte;
    struct stat about;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &about), 0);
    for (off_t at = 2048; at < about.st_size; at += 4096) {
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    close(fd);
}

static void what_is_damaged_on_a_disk_is_computed_again_and_told(void **state)
{
    (void)state;
    start("");
    char path[2 * PATH_MAX];
    const char *args = PAGES PATIENT "--kv-disk-bytes 32M --kv-disk %s/disk";
    struct process *p = start_prefill(args, bench.folder);
    asks(0);
    await_stored(p);
    process_kill(p);
    snprintf(path, sizeof path, "%s/disk/values.0000", bench.folder);
    damage(path);
    p = start_prefill(args, bench.folder);
    const struct stream *s = asks(0);
    assert_int_equal(value_of(p, "tandem_node_tier_loaded_tokens_total"), 0);
    assert_true(value_of(p, "tandem_node_tier_wrong_entries_total{tier=\"disk\"}") > 0);
    expect_diagnosed("gave what was never put there");
    await_stored(p);
    process_kill(p);
    p = start_prefill(args, bench.folder); /* nothing damaged was believed: all is stored again */
    asks(0);
    assert_int_equal(value_of(p, "tandem_node_tier_loaded_tokens_total"), whole_of(s));
    rig_finish(bench.rig);
}

/* Blocks that the router was told of. */
static int64_t told(json_t *status)
{
    const json_t *index = json_object_get(json_object_get(status, "router"), "prefix_index");
    return json_integer_value(json_object_get(index, "added"));
}

static int64_t told_awaited;
static bool is_told(struct cluster *c, json_t *status)
{
    (void)c;
    return told(status) >= told_awaited;
}

/* A node that is new to the router tells what its disk has from an earlier life; so a prompt goes to it, and
 * not to another one that is as idle and would be the first choice if nothing spoke for this one. */
static void yesterdays_prefixes_draw_prompts_to_the_node_that_has_them(void **state)
{
    (void)state;
    start("");
    const char *args = PAGES PATIENT "--kv-disk %s/disk";
    struct process *p = start_prefill(args, bench.folder);
    uint32_t whole = 0;
    for (uint32_t i = 0; i < 3; i++)
        whole += whole_of(asks(i));
    await_stored(p);
    process_kill(p);
    start_prefill(PAGES PATIENT);
    json_t *status = cluster_status(bench.rig->cluster);
    told_awaited = told(status) + whole / 16;
    json_decref(status);
    p = start_prefill(args, bench.folder);
    cluster_await(bench.rig->cluster, is_told, "the router to hear of the disk");
    for (uint32_t i = 0; i < 3; i++) {
        struct stream *s = asks(i);
        assert_string_equal(s->prefill_node, p->name);
        assert_int_equal(s->cached_tokens, whole_of(s));
    }
    assert_int_equal(value_of(p, "tandem_node_tier_loaded_tokens_total"), whole);
    rig_finish(bench.rig);
}

static void what_the_pool_evicts_comes_back(void **state)
{
    (void)state;
    start("");
    struct process *p = start_prefill(PAGES PATIENT "--kv-disk %s/disk --blocks 70", bench.folder);
    for (uint32_t round = 0; round < 2; round++)
        for (uint32_t i = 0; i < PROMPTS; i++) {
            asks(i);
            await_stored(p);
        }
    assert_true(value_of(p, "tandem_node_tier_loaded_tokens_total") > 0);
    assert_true(value_of(p, "tandem_node_tier_hit_blocks_total{tier=\"disk\"}") > 0);
    rig_finish(bench.rig);
}

static void generated_tokens_are_found_in_the_next_turn(void **state)
{
    (void)state;
    struct cluster *c = bench.rig->cluster = cluster_new(cluster_demo_model());
    char args[2 * PATH_MAX];
    snprintf(args, sizeof args, PAGES PATIENT "--kv-disk %s/disk", bench.folder);
    cluster_router(c, "");
    struct process *d = cluster_node(c, PROGRAM_DECODE, args); /* it prefills too */
    cluster_await_nodes(c);
    rig_connect(bench.rig);
    uint32_t tokens[400], prompt_count = 301;
    for (uint32_t i = 0; i < prompt_count; i++)
        tokens[i] = 300 + i * 7 % 600;
    struct ask first = {
        .tokens = tokens, .tokens_count = prompt_count, .max_tokens = 48, .ignore_eos = true};
    const struct stream *s = streams_start(bench.rig->streams, 0, &first);
    streams_run(bench.rig->streams);
    assert_int_equal(s->tokens_count, 48);
    await_stored(d);
    process_kill(d);
    d = cluster_node(c, PROGRAM_DECODE, args);
    cluster_await_nodes(c);
    memcpy(tokens + prompt_count, s->choice[0].tokens, 48 * sizeof *tokens);
    struct ask next = {.tokens = tokens, .tokens_count = prompt_count + 48, .max_tokens = 4};
    const struct stream *t = streams_start(bench.rig->streams, 0, &next);
    streams_run(bench.rig->streams);
    stream_expect_done(t);
    assert_int_equal(t->cached_tokens, (prompt_count + 48 - 1) / 16 * 16);
    rig_finish(bench.rig);
}

static void who_leaves_in_peace_has_stored_all(void **state)
{
    (void)state;
    start("");
    struct process *p = start_prefill(PAGES PATIENT "--kv-disk %s/disk", bench.folder);
    const struct stream *s = asks(0);
    cluster_drain(bench.rig->cluster, p);
    assert_int_equal(process_await_exit(p), 0);
    p = start_prefill(PAGES PATIENT "--kv-disk %s/disk", bench.folder);
    asks(0);
    assert_int_equal(value_of(p, "tandem_node_tier_loaded_tokens_total"), whole_of(s));
    rig_finish(bench.rig);
}

static void up_gives_each_node_a_directory(void **state)
{
    (void)state;
    static const char *const names[] = {"prefill-0", "prefill-1", "decode-0"};
    struct cluster *c = bench.rig->cluster = cluster_new(cluster_demo_model());
    char args[2 * PATH_MAX];
    snprintf(args, sizeof args, "--prefill 2 --kv-disk %s/kv --kv-disk-bytes 64M --threads 1",
             bench.folder);
    cluster_up(c, args);
    rig_connect(bench.rig);
    asks(0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[2 * PATH_MAX];
        snprintf(path, sizeof path, "%s/kv/%s/meta", bench.folder, names[i]);
        if (access(path, R_OK) != 0) fail_msg("%s: %s", path, strerror(errno));
    }
    rig_finish(bench.rig);
}

static void a_full_disk_stops_nothing(void **state)
{
    (void)state;
    struct rlimit before, little;
    start(""); /* writes the packed weights, too */
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    little = (struct rlimit){256 << 10, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &little), 0);
    struct process *p = start_prefill(PAGES "--kv-disk %s/disk", bench.folder);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    for (uint32_t i = 0; i < PROMPTS; i++)
        asks(i);
    assert_int_equal(logged(p, "kv_tier_broken tier=disk doing=write"), 1);
    assert_int_equal(value_of(p, "tandem_node_tier_broken{tier=\"disk\"}"), 1);
    rig_finish(bench.rig);
}

static void a_directory_that_cannot_be_written_is_said_once(void **state)
{
    (void)state;
    start("");
    struct process *p = start_prefill(PAGES "--kv-disk /proc/self/tandem-kv");
    for (uint32_t i = 0; i < 4; i++)
        asks(i);
    assert_int_equal(logged(p, "kv_tier_unusable tier=disk"), 1);
    rig_finish(bench.rig);
}

static int64_t broken_wanted;
static bool is_said_in_status(struct cluster *c, json_t *status)
{
    (void)c;
    json_t *n = NULL;
    size_t i;
    json_array_foreach(json_object_get(status, "nodes"), i,
                       n) if (strcmp(json_string_value(json_object_get(n, "role")), "prefill") ==
                              0) break;
    const json_t *broken = json_object_get(n, "tiers_broken");
    return n && json_array_size(broken) == (size_t)broken_wanted &&
           (broken_wanted == 0 ||
            strcmp(json_string_value(json_array_get(broken, 0)), "disk") == 0);
}

/* Until the status says so. */
static void await_disk_out(void)
{
    broken_wanted = 1;
    cluster_await(bench.rig->cluster, is_said_in_status, "the status to say that the disk is out");
}

static void await_disk_back(void)
{
    broken_wanted = 0;
    cluster_await(bench.rig->cluster, is_said_in_status, "the disk to be used");
}

/* Makes it, and has it, as another process would; until the descriptor is closed. */
static int lock_directory(const char *where)
{
    char path[3 * PATH_MAX];
    assert_int_equal(mkdir(where, 0700), 0);
    snprintf(path, sizeof path, "%s/lock", where);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    return fd;
}

static void a_disk_that_comes_later_is_used_then(void **state)
{
    (void)state;
    char path[2 * PATH_MAX];
    start("");
    snprintf(path, sizeof path, "%s/disk", bench.folder);
    int fd = lock_directory(path);
    const char *args = PAGES PATIENT "--kv-disk %s/disk";
    struct process *p = start_prefill(args, bench.folder);
    asks(0);
    await_disk_out();
    close(fd);
    await_disk_back();
    assert_int_equal(logged(p, "kv_tier_unusable tier=disk"), 1);
    assert_int_equal(logged(p, "kv_tier_back tier=disk doing=open"), 1);
    asks(1);
    await_stored(p);
    process_kill(p);
    p = start_prefill(args, bench.folder);
    struct stream *s = asks(1);
    assert_int_equal(s->cached_tokens, whole_of(s));
    assert_int_equal(value_of(p, "tandem_node_tier_loaded_tokens_total"), whole_of(s));
    rig_finish(bench.rig);
}

static volatile sig_atomic_t somebody_waits;
static void on_wanted(int number)
{
    (void)number;
    somebody_waits = 1;
}

/* Whoever opens the file waits, for 45 s at most (/proc/sys/fs/lease-break-time); -1: not on this file system. */
static int hold_up(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    somebody_waits = 0;
    signal(SIGIO, on_wanted);
    if (fcntl(fd, F_SETLEASE, F_WRLCK) == 0) return fd;
    close(fd);
    return -1;
}

static bool hangs(struct cluster *c, json_t *status)
{
    (void)c, (void)status;
    return somebody_waits;
}

static struct process *watched;

static bool is_noticed(struct cluster *c, json_t *status)
{
    (void)c, (void)status;
    return logged(watched, "kv_tier_stuck tier=disk") > 0;
}

/* The node cannot have the directory, and then, when it tries again, waits in the kernel. */
static void a_disk_that_hangs_stops_neither_requests_nor_the_end(void **state)
{
    (void)state;
    char path[2 * PATH_MAX];
    start("");
    snprintf(path, sizeof path, "%s/disk", bench.folder);
    int fd = lock_directory(path);
    struct process *p = watched = start_prefill(PAGES "--kv-disk %s", path);
    close(fd);
    if ((fd = hold_up(strcat(path, "/lock"))) < 0) skip();
    cluster_await(bench.rig->cluster, hangs, "the tier to hang");
    asks(0);
    assert_true(value_of(p, "tandem_node_kv_blocks{state=\"transfer\"}") > 0);
    for (uint32_t i = 1; i < 4; i++)
        asks(i);
    cluster_await(bench.rig->cluster, is_noticed, "the node to notice");
    expect_diagnosed("the disk tier of p0 hangs");
    await_unheld(p);
    asks(5);
    assert_int_equal(logged(p, "kv_tier_stuck tier=disk"), 1);
    p->expendable = true;
    process_signal(p, SIGTERM);
    assert_int_equal(process_await_exit(p), 1);
    assert_int_equal(logged(p, "kv_tier_stuck_at_end"), 1);
    close(fd);
    rig_finish(bench.rig);
}

/* Whoever opens it waits until what this returns is closed; -1: that cannot be done here. */
static int disk_that_hangs(char path[2 * PATH_MAX])
{
    char lock[2 * PATH_MAX + 5];
    snprintf(path, 2 * PATH_MAX, "%s/disk", bench.folder);
    snprintf(lock, sizeof lock, "%s/lock", path);
    close(lock_directory(path));
    return hold_up(lock);
}

/* It hangs when the node starts, which then goes on without it. */
static void a_disk_that_hangs_at_the_start_is_used_when_it_opens(void **state)
{
    (void)state;
    char path[2 * PATH_MAX];
    start("");
    int fd = disk_that_hangs(path);
    if (fd < 0) skip();
    struct process *p = start_prefill(PAGES PATIENT "--kv-disk %s", path);
    assert_true(somebody_waits);
    assert_int_equal(logged(p, "kv_tier_stuck tier=disk"), 1);
    await_disk_out();
    asks(0);
    assert_int_equal(value_of(p, "tandem_node_kv_blocks{state=\"transfer\"}"), 0);
    close(fd);
    await_disk_back();
    asks(1);
    await_stored(p);
    assert_int_equal(logged(p, "kv_tier_stuck tier=disk"), 1);
    assert_int_equal(logged(p, "kv_tier_back tier=disk doing=open"), 1);
    rig_finish(bench.rig);
}

static void a_disk_that_hangs_at_the_start_keeps_no_other_tier_out(void **state)
{
    (void)state;
    char path[2 * PATH_MAX];
    if (!start_redis(NULL)) return;
    start("");
    int fd = disk_that_hangs(path);
    if (fd < 0) skip();
    struct process *p =
        start_prefill(PAGES PATIENT "--kv-disk %s --kv-redis %s", path, bench.redis.where);
    assert_int_equal(logged(p, "kv_tier_stuck tier=disk"), 1);
    await_disk_out();
    asks(0);
    await_stored(p);
    assert_true(value_of(p, "tandem_node_tier_written_bytes_total{tier=\"redis\"}") > 0);
    assert_int_equal(value_of(p, "tandem_node_tier_written_bytes_total{tier=\"disk\"}"), 0);
    close(fd);
    await_disk_back();
    asks(1);
    await_stored(p);
    assert_true(value_of(p, "tandem_node_tier_written_bytes_total{tier=\"disk\"}") > 0);
    rig_finish(bench.rig);
}

/* ---- settings ---- */

static void expect_refused(const char *args, const char *reason)
{
    struct cluster *c = bench.rig->cluster;
    struct process *p = cluster_spawn(c, PROGRAM_PREFILL, args);
    p->expendable = true;
    assert_int_not_equal(process_await_exit(p), 0);
    if (!process_logged(p, reason)) fail_msg("\"%s\": no \"%s\"", args, reason);
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    start("");
    expect_refused("--kv-host-bytes 1G", "give it the bytes with --kv-bytes");
    expect_refused("--kv-disk /tmp/x --prefix-cache=false", "they need --prefix-cache");
    expect_refused("--kv-redis 10.1.2.3:6379", "say --trusted-network");
    expect_refused("--kv-redis nowhere", "--kv-redis");
    expect_refused("--kv-redis unix:/nowhere --kv-redis-user me", "needs --kv-redis-password");
    expect_refused("--kv-redis unix:/nowhere --kv-redis-password /dev/null", "--kv-redis-password");
    expect_refused("--kv-disk /tmp/x --kv-disk-bytes 15M", "kv-disk-bytes");
}

/* ---- a device (the emulator's) ---- */

static void host_memory_keeps_what_a_device_evicts(void **state)
{
    (void)state;
    setenv("TANDEM_PLUGIN_DIR", TANDEM_FAKE_DIR, 1);
#define CUDA "--device cuda --threads 1 --context 512 --batch 4 --chunk 64 --deterministic "
    struct cluster *c = bench.rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(c, "");
    struct process *d =
        cluster_node(c, PROGRAM_DECODE, CUDA PAGES PATIENT "--blocks 20 --kv-host-bytes 64M");
    cluster_await_nodes(c);
    rig_connect(bench.rig);
    struct stream *first[3];
    for (uint32_t round = 0; round < 2; round++)
        for (uint32_t i = 0; i < 3; i++) {
            struct ask a = {
                .text = prompt[i] + strlen(prompt[i]) / 2, .max_tokens = 6, .want_logprobs = true};
            struct stream *s = streams_start(bench.rig->streams, 0, &a);
            streams_run(bench.rig->streams);
            stream_expect_done(s);
            if (round == 0) first[i] = s;
            stream_expect_equal(s, first[i]);
            await_stored(d);
        }
    assert_true(value_of(d, "tandem_node_tier_hit_blocks_total{tier=\"memory\"}") > 0);
    assert_true(value_of(d, "tandem_node_tier_loaded_tokens_total") > 0);
    rig_finish(bench.rig);
    unsetenv("TANDEM_PLUGIN_DIR");
}

int main(void)
{
#define ROW(name) cmocka_unit_test_setup_teardown(name, tiered_set_up, tiered_tear_down)
    const struct CMUnitTest tests[] = {
        ROW(a_killed_node_serves_what_it_knew),
        ROW(what_is_damaged_on_a_disk_is_computed_again_and_told),
        ROW(yesterdays_prefixes_draw_prompts_to_the_node_that_has_them),
        ROW(what_the_pool_evicts_comes_back),
        ROW(generated_tokens_are_found_in_the_next_turn),
        ROW(who_leaves_in_peace_has_stored_all),
        ROW(up_gives_each_node_a_directory),
        ROW(a_full_disk_stops_nothing),
        ROW(a_directory_that_cannot_be_written_is_said_once),
        ROW(a_disk_that_comes_later_is_used_then),
        ROW(a_disk_that_hangs_stops_neither_requests_nor_the_end),
        ROW(a_disk_that_hangs_at_the_start_is_used_when_it_opens),
        ROW(a_disk_that_hangs_at_the_start_keeps_no_other_tier_out),
        ROW(what_cannot_be_is_refused),
        ROW(host_memory_keeps_what_a_device_evicts),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, tiered_learn, tiered_forget);
}
