/* Nodes with tiers, real ones: what was computed is found again after a kill -9 and on other nodes, and a
 * tier that is slow, dead, full, read-only or talks nonsense costs nothing but what it would have saved.
 * Every stream is compared with that of a cluster without tiers. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/e2e/command.h"
#include "tests/e2e/page.h"
#include "tests/e2e/rig.h"
#include "tests/unit/exposition.h"
#include "tests/unit/redis_rig.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tiny_model.h"

enum { PROMPTS = 10, PROMPT_MAX = 2048 };

/* What a tier is to bring must not come from the decode node. */
#define ALWAYS "--disaggregate always --backfill never"
#define PAGES "--metrics 127.0.0.1:0 "
#define PATIENT "--kv-tier-deadline 20s " /* what is there is used, however busy the machine is */

static char prompt[PROMPTS][PROMPT_MAX];
static struct ask ask[PROMPTS];
static struct streams *wanted;

static void make_prompts(void)
{
    static const char *const lines[] = {"What, must our mouths be cold?",  "All lost! to prayers!",
                                        "The king and prince at prayers!", "Let's assist them,",
                                        "For our case is as theirs.",      "I'm out of patience."};
    for (uint32_t i = 0; i < PROMPTS; i++) {
        size_t n = 0;
        for (uint32_t k = 0; k < 36; k++)
            n += (size_t)snprintf(prompt[i] + n, PROMPT_MAX - n, "%u %s\n", i * 31 + k,
                                  lines[(i + k * (i + 1)) % 6]);
        ask[i] = (struct ask){.text = prompt[i],
                              .max_tokens = 12,
                              .temperature = i % 2 ? 0.8f : 0,
                              .seed = 40 + i,
                              .want_logprobs = true};
    }
}

static int learn(void **state)
{
    (void)state;
    make_prompts();
    struct cluster *c = cluster_new(cluster_demo_model());
    cluster_start(c, 1, 1, ALWAYS, "");
    wanted = streams_new(c->addresses);
    for (uint32_t i = 0; i < PROMPTS; i++)
        streams_start(wanted, 0, &ask[i]);
    streams_run(wanted);
    cluster_stop(c);
    cluster_free(c);
    return 0;
}

static int forget(void **state)
{
    (void)state;
    streams_free(wanted);
    return 0;
}

struct bench {
    struct rig *rig;
    char folder[PATH_MAX];
    struct redis_rig redis;
};
static struct bench bench;

static int set_up(void **state)
{
    rig_setup(state);
    bench = (struct bench){.rig = *state};
    scratch_make(bench.folder);
    return 0;
}

static int tear_down(void **state)
{
    rig_teardown(state);
    redis_rig_stop(&bench.redis);
    scratch_remove(bench.folder);
    return 0;
}

/* ---- a cluster of one D and some P with tiers ---- */

static void start(const char *decode_args)
{
    struct cluster *c = bench.rig->cluster = cluster_new(cluster_demo_model());
    cluster_router(c, ALWAYS);
    cluster_node(c, PROGRAM_DECODE, decode_args);
}

static struct process *start_prefill(const char *format, ...)
{
    char args[2 * PATH_MAX];
    va_list list;
    va_start(list, format);
    vsnprintf(args, sizeof args, format, list);
    va_end(list);
    struct process *p = cluster_node(bench.rig->cluster, PROGRAM_PREFILL, args);
    cluster_await_nodes(bench.rig->cluster);
    if (!bench.rig->streams) rig_connect(bench.rig);
    return p;
}

static double value_of(const struct process *p, const char *series)
{
    static char text[PAGE_MAX];
    assert_int_equal(page_get(p->metrics, "/metrics", text), 200);
    struct exposition *x = exposition_read(text);
    double value = exposition_value(x, series);
    exposition_free(x);
    return value;
}

/* Asks prompt i; the stream is that of the cluster without tiers. */
static struct stream *asks(uint32_t i)
{
    struct stream *s = streams_start(bench.rig->streams, 0, &ask[i]);
    streams_run(bench.rig->streams);
    stream_expect_equal(s, wanted->stream[i]);
    return s;
}

/* All but what a prompt always computes: its last token, and what shares a block with it. */
static uint32_t whole_of(const struct stream *s)
{
    return (s->prompt_tokens - 1) / 16 * 16;
}

static struct process *watched;
static bool nothing_is_stored(struct cluster *c, json_t *status)
{
    (void)c, (void)status;
    return value_of(watched, "tandem_node_kv_blocks{state=\"transfer\"}") == 0;
}

/* Until all that was computed lies in its tiers. */
static void await_stored(struct process *p)
{
    watched = p;
    cluster_await_idle(bench.rig->cluster);
    cluster_await(bench.rig->cluster, nothing_is_stored, "what was computed is stored");
}

static uint32_t logged(const struct process *p, const char *text)
{
    static char line[4096];
    uint32_t n = 0;
    FILE *f = fopen(p->log, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        n += strstr(line, text) != NULL;
    fclose(f);
    return n;
}

static void expect_diagnosed(const char *what)
{
    struct command r;
    command_run(&r, "tandem", "doctor --json --apart 100ms --router %s",
                bench.rig->cluster->addresses);
    if (!strstr(r.out, what)) fail_msg("no \"%s\" in %s%s", what, r.out, r.err);
}

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
    p = start_prefill(args,
                      bench.folder); /* a load ends at what it finds wrong, which is stored again */
    asks(0);
    assert_in_range(value_of(p, "tandem_node_tier_loaded_tokens_total"), 16, whole_of(s) - 1);
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
    broken_wanted = 1;
    cluster_await(bench.rig->cluster, is_said_in_status, "the status to say that the disk is out");
    close(fd);
    broken_wanted = 0;
    cluster_await(bench.rig->cluster, is_said_in_status, "the disk to be used");
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
    cluster_await(bench.rig->cluster, nothing_is_stored, "nothing to be held for it any more");
    asks(5);
    assert_int_equal(logged(p, "kv_tier_stuck tier=disk"), 1);
    p->expendable = true;
    process_signal(p, SIGTERM);
    assert_int_equal(process_await_exit(p), 1);
    assert_int_equal(logged(p, "kv_tier_stuck_at_end"), 1);
    close(fd);
    rig_finish(bench.rig);
}

/* It hangs when the node starts, which then goes on without it. */
static void a_disk_that_hangs_at_the_start_is_used_when_it_opens(void **state)
{
    (void)state;
    char path[2 * PATH_MAX], lock[2 * PATH_MAX + 5];
    start("");
    snprintf(path, sizeof path, "%s/disk", bench.folder);
    snprintf(lock, sizeof lock, "%s/lock", path);
    close(lock_directory(path));
    int fd = hold_up(lock);
    if (fd < 0) skip();
    struct process *p = start_prefill(PAGES PATIENT "--kv-disk %s", path);
    assert_true(somebody_waits);
    assert_int_equal(logged(p, "kv_tier_stuck tier=disk"), 1);
    broken_wanted = 1;
    cluster_await(bench.rig->cluster, is_said_in_status, "the status to say that the disk is out");
    asks(0);
    assert_int_equal(value_of(p, "tandem_node_kv_blocks{state=\"transfer\"}"), 0);
    close(fd);
    broken_wanted = 0;
    cluster_await(bench.rig->cluster, is_said_in_status, "the disk to be used");
    asks(1);
    await_stored(p);
    assert_int_equal(logged(p, "kv_tier_stuck tier=disk"), 1);
    assert_int_equal(logged(p, "kv_tier_back tier=disk doing=open"), 1);
    rig_finish(bench.rig);
}

/* ---- a server ---- */

static bool start_redis(const char *const *more)
{
    if (redis_rig_start(&bench.redis, bench.folder, more)) return true;
    skip();
    return false;
}

/* The number behind this name in what the server tells of itself. */
static void a_disk_that_hangs_at_the_start_keeps_no_other_tier_out(void **state)
{
    (void)state;
    char path[2 * PATH_MAX], lock[2 * PATH_MAX + 5];
    if (!start_redis(NULL)) return;
    start("");
    snprintf(path, sizeof path, "%s/disk", bench.folder);
    snprintf(lock, sizeof lock, "%s/lock", path);
    close(lock_directory(path));
    int fd = hold_up(lock);
    if (fd < 0) skip();
    struct process *p =
        start_prefill(PAGES PATIENT "--kv-disk %s --kv-redis %s", path, bench.redis.where);
    assert_int_equal(logged(p, "kv_tier_stuck tier=disk"), 1);
    broken_wanted = 1;
    cluster_await(bench.rig->cluster, is_said_in_status, "the status to say that the disk is out");
    asks(0);
    await_stored(p);
    assert_true(value_of(p, "tandem_node_tier_written_bytes_total{tier=\"redis\"}") > 0);
    assert_int_equal(value_of(p, "tandem_node_tier_written_bytes_total{tier=\"disk\"}"), 0);
    close(fd);
    broken_wanted = 0;
    cluster_await(bench.rig->cluster, is_said_in_status, "the disk to be used");
    asks(1);
    await_stored(p);
    assert_true(value_of(p, "tandem_node_tier_written_bytes_total{tier=\"disk\"}") > 0);
    rig_finish(bench.rig);
}

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
#define ROW(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
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
        ROW(what_one_node_computed_another_one_finds),
        ROW(what_another_model_or_dtype_left_on_a_server_is_a_miss),
        ROW(a_server_that_wants_a_password_gets_it_from_a_file),
        ROW(a_server_that_stops_answering_costs_a_deadline),
        ROW(a_server_that_evicts_costs_misses),
        ROW(a_server_that_talks_nonsense_is_left_alone),
        ROW(what_cannot_be_is_refused),
        ROW(host_memory_keeps_what_a_device_evicts),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, learn, forget);
}
