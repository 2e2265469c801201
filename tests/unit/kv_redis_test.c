/* The Redis tier and servers that are slow, gone, full, locked, evicting, or no Redis servers at all: a miss or an
 * error at the deadline, never later and never a value that is wrong. Real servers where one is installed;
 * the wrong ones are threads of this test. */
#include "tests/unit/testing.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
#include "tests/unit/redis_rig.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tier_rig.h"

enum { VALUES = 12 };
/* No name can have it, so that nobody is asked for it. */
#define LONG_LABEL "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"

struct world {
    char dir[PATH_MAX];
    struct redis_rig redis;
    struct kv_tier_options options;
    struct kv_tier *tier;
    void *value[VALUES];
};

static int set_up(void **state)
{
    struct world *w = mem_new(sizeof *w);
    assert_non_null(w);
    scratch_make(w->dir);
    w->options = (struct kv_tier_options){
        .where = w->redis.where, .value_bytes = RIG_VALUE_BYTES, .space = rig_space()};
    for (uint32_t i = 0; i < VALUES; i++)
        assert_non_null(w->value[i] = mem_aligned(RIG_VALUE_BYTES, 64));
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    kv_tier_redis.close(w->tier);
    redis_rig_stop(&w->redis);
    scratch_remove(w->dir);
    for (uint32_t i = 0; i < VALUES; i++)
        mem_free(w->value[i]);
    mem_free(w);
    return 0;
}

static void start(struct world *w, const char *const *more)
{
    if (!redis_rig_start(&w->redis, w->dir, more)) skip();
    if (!w->tier) assert_ok(kv_tier_redis.open(&w->tier, &w->options));
}

static uint64_t in_ms(uint64_t ms)
{
    return clock_now_ns() + ms * NS_PER_MS;
}

enum { ENOUGH_MS = 20000 };

static enum err put(struct world *w, uint32_t first, uint32_t count, uint64_t ms, uint32_t *kept)
{
    struct id128 key[VALUES];
    for (uint32_t i = 0; i < count; i++) {
        key[i] = rig_key(first + i);
        rig_fill(w->value[i], first + i);
    }
    return kv_tier_redis.put(w->tier, key, count, (const void *const *)w->value, in_ms(ms), kept);
}

static enum err get(struct world *w, uint32_t first, uint32_t count, uint64_t ms, uint32_t *got)
{
    struct id128 key[VALUES];
    for (uint32_t i = 0; i < count; i++)
        key[i] = rig_key(first + i);
    enum err e = kv_tier_redis.get(w->tier, key, count, w->value, in_ms(ms), got);
    for (uint32_t i = 0; i < *got; i++)
        assert_true(rig_is(w->value[i], first + i));
    return e;
}

static void assert_kept(struct world *w, uint32_t first, uint32_t count)
{
    uint32_t n;
    assert_ok(put(w, first, count, ENOUGH_MS, &n));
    assert_int_equal(n, count);
    assert_ok(get(w, first, count, ENOUGH_MS, &n));
    assert_int_equal(n, count);
}

/* Until the pause after a failure is over. */
static void assert_comes_back(struct world *w)
{
    uint32_t n;
    enum err e = ERR_PEER;
    for (uint64_t until_ns = in_ms(ENOUGH_MS); e != OK && clock_now_ns() < until_ns;) {
        e = put(w, 500, 1, 1000, &n);
        if (e != OK) poll(NULL, 0, 10);
    }
    if (e != OK) fail_msg("%s", err_text());
    assert_kept(w, 500, 1);
}

/* --- real servers --- */

static void key_name(uint32_t n, char name[80])
{
    char space[ID128_TEXT], key[ID128_TEXT];
    id128_print(rig_space(), space);
    id128_print(rig_key(n), key);
    snprintf(name, 80, "tandem:%s:%s", space, key);
}

static void what_is_no_entry_is_a_miss_and_is_deleted(void **state)
{
    struct world *w = *state;
    static const char *const wrong[] = {"SET %s short", "SETRANGE %s 9000 x", "SETRANGE %s 20 xyz",
                                        "LPUSH %s 1",   "APPEND %s more",     "HSET %s a b"};
    char name[80], command[160], reply[64];
    uint32_t n;
    start(w, NULL);
    for (uint32_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_kept(w, 0, 4);
        key_name(2, name);
        if (wrong[i][0] == 'L' || wrong[i][0] == 'H') {
            snprintf(command, sizeof command, "DEL %s\r\n", name);
            redis_rig_tell(&w->redis, command, reply, sizeof reply);
        }
        snprintf(command, sizeof command - 2, wrong[i], name);
        redis_rig_tell(&w->redis, strcat(command, "\r\n"), reply, sizeof reply);
        assert_ok(get(w, 0, 4, ENOUGH_MS, &n));
        assert_int_equal(n, 2);
        snprintf(command, sizeof command, "EXISTS %s\r\n", name);
        redis_rig_tell(&w->redis, command, reply, sizeof reply);
        assert_string_equal(reply, ":0\r\n");
    }
    struct kv_tier_stats stats;
    kv_tier_redis.stats(w->tier, &stats);
    assert_int_equal(stats.removed, 6);
}

static void what_is_read_or_kept_again_lives_on(void **state)
{
    struct world *w = *state;
    char name[80], command[128], reply[64];
    uint32_t n;
    w->options.ttl_ns = 1000 * NS_PER_S;
    start(w, NULL);
    assert_kept(w, 0, 2);
    for (uint32_t i = 0; i < 2; i++) {
        key_name(i, name);
        snprintf(command, sizeof command, "PEXPIRE %s 500000\r\n", name);
        redis_rig_tell(&w->redis, command, reply, sizeof reply);
    }
    assert_ok(get(w, 0, 1, ENOUGH_MS, &n));
    assert_ok(put(w, 1, 1, ENOUGH_MS, &n));
    for (uint32_t i = 0; i < 2; i++) {
        key_name(i, name);
        snprintf(command, sizeof command, "PTTL %s\r\n", name);
        redis_rig_tell(&w->redis, command, reply, sizeof reply);
        assert_true(atoi(reply + 1) > 500000);
    }
}

static int64_t ttl_of(struct world *w, uint32_t key, const char *changed)
{
    char name[80], command[128], reply[64];
    key_name(key, name);
    if (changed) snprintf(command, sizeof command, "PEXPIRE %s %s\r\n", name, changed);
    if (changed) redis_rig_tell(&w->redis, command, reply, sizeof reply);
    snprintf(command, sizeof command, "PTTL %s\r\n", name);
    redis_rig_tell(&w->redis, command, reply, sizeof reply);
    return atoll(reply + 1);
}

static enum err touch_all(struct world *w, uint32_t count)
{
    struct id128 key[VALUES];
    for (uint32_t i = 0; i < count; i++)
        key[i] = rig_key(i);
    return kv_tier_redis.touch(w->tier, key, count, in_ms(ENOUGH_MS));
}

/* A beginning that a pool has is never read, and used all the same; not for each prompt is the server told. */
static void what_is_used_elsewhere_lives_on(void **state)
{
    enum { KEYS = 4, LONG_MS = 1000000, SHORT_MS = 4000 };
    struct world *w = *state;
    uint32_t n;
    w->options.ttl_ns = LONG_MS * NS_PER_MS; /* told again after ten seconds */
    start(w, NULL);
    assert_ok(put(w, 0, KEYS - 1, ENOUGH_MS, &n)); /* one it has not */
    for (uint32_t i = 0; i < KEYS - 1; i++)
        assert_true(ttl_of(w, i, "9000000") > LONG_MS);
    assert_ok(touch_all(w, KEYS));
    assert_true(ttl_of(w, 0, NULL) > LONG_MS); /* it was told when they were put */

    kv_tier_redis.close(w->tier);
    w->options.ttl_ns = SHORT_MS * NS_PER_MS; /* after one */
    assert_ok(kv_tier_redis.open(&w->tier, &w->options));
    assert_ok(touch_all(w, 0));
    assert_ok(touch_all(w, KEYS));
    for (uint32_t i = 0; i < KEYS - 1; i++)
        assert_in_range(ttl_of(w, i, NULL), 1, SHORT_MS);
    assert_int_equal(ttl_of(w, KEYS - 1, NULL), -2);
    for (uint32_t i = 0; i < KEYS - 1; i++)
        assert_true(ttl_of(w, i, "9000000") > LONG_MS);
    for (uint64_t until_ns = in_ms(ENOUGH_MS);
         ttl_of(w, 0, NULL) > LONG_MS && clock_now_ns() < until_ns; poll(NULL, 0, 10))
        assert_ok(touch_all(w, KEYS));
    for (uint32_t i = 0; i < KEYS - 1; i++)
        assert_in_range(ttl_of(w, i, NULL), 1, SHORT_MS);
}

static void a_server_that_was_killed_is_found_again(void **state)
{
    struct world *w = *state;
    uint32_t n;
    start(w, NULL);
    assert_kept(w, 0, 3);
    redis_rig_stop(&w->redis);
    assert_int_not_equal(get(w, 0, 3, ENOUGH_MS, &n), OK);
    assert_int_equal(n, 0);
    assert_int_equal(get(w, 0, 3, ENOUGH_MS, &n), ERR_PEER);
    start(w, NULL);
    assert_comes_back(w);
}

static void a_server_that_is_stopped_costs_no_more_than_the_deadline(void **state)
{
    struct world *w = *state;
    uint32_t n;
    start(w, NULL);
    assert_kept(w, 0, 3);
    redis_rig_signal(&w->redis, SIGSTOP);
    assert_int_equal(get(w, 0, 3, 20, &n), ERR_TIMEOUT);
    assert_int_equal(n, 0);
    assert_int_not_equal(put(w, 9, 1, 20, &n), OK); /* in the pause it is not even asked */
    assert_int_equal(n, 0);
    redis_rig_signal(&w->redis, SIGCONT);
    assert_comes_back(w);
    assert_kept(w, 0, 3);
}

static void a_full_server_says_so_and_goes_on(void **state)
{
    struct world *w = *state;
    uint32_t n = 0, all = 0;
    enum err e = OK;
    start(w, (const char *[]){"--maxmemory", "2mb", "--maxmemory-policy", "noeviction", NULL});
    for (uint32_t first = 0; e == OK && first < 400; first += VALUES, all += n)
        e = put(w, first, VALUES, ENOUGH_MS, &n);
    assert_int_equal(e, ERR_FULL);
    assert_non_null(strstr(err_text(), "OOM"));
    assert_true(all > 10);
    assert_ok(get(w, 0, VALUES, ENOUGH_MS, &n));
    assert_int_equal(n, VALUES);
}

static void a_server_that_evicts_costs_misses(void **state)
{
    struct world *w = *state;
    uint32_t n, there = 0;
    start(w, (const char *[]){"--maxmemory", "2mb", "--maxmemory-policy", "allkeys-lru", NULL});
    for (uint32_t first = 0; first < 400; first += VALUES)
        assert_ok(put(w, first, VALUES, ENOUGH_MS, &n));
    for (uint32_t i = 0; i < 400; i++, there += n)
        assert_ok(get(w, i, 1, ENOUGH_MS, &n));
    assert_in_range(there, 1, 399);
}

static void a_password_is_asked_for_and_taken(void **state)
{
    struct world *w = *state;
    uint32_t n;
    start(w, (const char *[]){"--requirepass", "open sesame", NULL});
    assert_int_equal(put(w, 0, 1, ENOUGH_MS, &n), ERR_PEER);
    assert_non_null(strstr(err_text(), "--kv-redis-password"));
    kv_tier_redis.close(w->tier);
    w->options.password = "wrong";
    assert_ok(kv_tier_redis.open(&w->tier, &w->options));
    assert_int_equal(put(w, 0, 1, ENOUGH_MS, &n), ERR_PEER);
    assert_non_null(strstr(err_text(), "WRONGPASS"));
    assert_null(strstr(err_text(), "wrong"));
    kv_tier_redis.close(w->tier);
    w->options.password = "open sesame";
    assert_ok(kv_tier_redis.open(&w->tier, &w->options));
    assert_kept(w, 0, 3);
}

/* With no more rights than docs/kv-memory.md says. */
static void a_user_of_the_servers_logs_in(void **state)
{
    struct world *w = *state;
    uint32_t n;
    start(w, (const char *[]){"--user", "nodes", "on", ">ours", "~tandem:*", "+auth", "+exists",
                              "+getrange", "+set", "+touch", "+pexpire", "+del", "--user",
                              "default", "off", NULL});
    kv_tier_redis.close(w->tier);
    w->options.user = "nodes";
    assert_int_equal(kv_tier_redis.open(&w->tier, &w->options), ERR_INVALID);
    w->options.password = "theirs";
    assert_ok(kv_tier_redis.open(&w->tier, &w->options));
    assert_int_equal(put(w, 0, 1, ENOUGH_MS, &n), ERR_PEER);
    assert_non_null(strstr(err_text(), "WRONGPASS"));
    for (uint64_t ttl_ns = 0; ttl_ns < 2; ttl_ns++) {
        kv_tier_redis.close(w->tier);
        w->options.password = "ours";
        w->options.ttl_ns = ttl_ns * 60 * NS_PER_S;
        assert_ok(kv_tier_redis.open(&w->tier, &w->options));
        assert_kept(w, 0, 3);
        struct id128 key = rig_key(0);
        assert_ok(kv_tier_redis.remove(w->tier, &key, 1, clock_now_ns() + NS_PER_S));
    }
}

static void a_replica_that_takes_nothing_is_an_error(void **state)
{
    struct world *w = *state;
    uint32_t n;
    start(w, (const char *[]){"--replicaof", "127.0.0.1 1", NULL});
    assert_int_equal(put(w, 0, 2, ENOUGH_MS, &n), ERR_PEER);
    assert_int_equal(n, 0);
    assert_ok(get(w, 0, 2, ENOUGH_MS, &n));
    assert_int_equal(n, 0);
}

static void short_memory_is_an_error_and_passes(void **state)
{
    struct world *w = *state;
    enum err e = ERR_MEMORY;
    start(w, NULL);
    for (uint32_t nth = 1, n; e != OK; nth++) {
        assert_true(nth < 50);
        mem_fail_at(nth);
        e = put(w, 100 * nth, VALUES, ENOUGH_MS, &n);
        mem_fail_at(0);
        if (e != OK) assert_int_equal(e, ERR_MEMORY);
    }
    assert_kept(w, 0, 4);
}

/* --- servers that are none: what they answer, whatever they are asked --- */

struct fake {
    int listener;
    pthread_t thread;
    const char *answer; /* sent to each client once it has asked something; NULL: nothing */
    size_t answer_bytes;
    bool again, slow, close; /* for ever; a byte a millisecond; the connection ends then */
};

static void serve(struct fake *f, int fd)
{
    char buffer[4096];
    if (read(fd, buffer, sizeof buffer) <= 0) return;
    bool open = true;
    for (size_t at = 0; open && f->answer && at < f->answer_bytes;) {
        size_t size = f->slow ? 1 : f->answer_bytes - at;
        ssize_t n = send(fd, f->answer + at, size, MSG_NOSIGNAL);
        open = n > 0;
        at += open ? (size_t)n : 0;
        if (f->again && at == f->answer_bytes) at = 0;
        if (f->slow) poll(NULL, 0, 1);
    }
    while (open && !f->close && read(fd, buffer, sizeof buffer) > 0)
        ;
}

static void *fake_main(void *ctx)
{
    struct fake *f = ctx;
    for (int fd; (fd = accept(f->listener, NULL, NULL)) >= 0; close(fd))
        serve(f, fd);
    return NULL;
}

static void fake_start(struct world *w, struct fake *f)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(w->redis.where, sizeof w->redis.where, "unix:%.*s/fake.sock", PATH_MAX, w->dir);
    assert_true(strlen(w->redis.where + 5) < sizeof name.sun_path);
    strcpy(name.sun_path, w->redis.where + 5);
    unlink(name.sun_path);
    f->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(f->listener, (struct sockaddr *)&name, sizeof name), 0);
    assert_int_equal(listen(f->listener, 8), 0);
    assert_int_equal(pthread_create(&f->thread, NULL, fake_main, f), 0);
    assert_ok(kv_tier_redis.open(&w->tier, &w->options));
}

static void fake_stop(struct world *w, struct fake *f)
{
    kv_tier_redis.close(w->tier);
    w->tier = NULL;
    shutdown(f->listener, SHUT_RDWR);
    pthread_join(f->thread, NULL);
    close(f->listener);
}

static void what_does_not_speak_redis_is_an_error(void **state)
{
    struct world *w = *state;
    static char zeros[100000];
    const struct {
        struct fake fake;
        enum err e; /* of get */
    } row[] = {
        {{.answer = "HTTP/1.1 400 Bad Request\r\n\r\n", .answer_bytes = 28}, ERR_PEER},
        {{.answer = zeros, .answer_bytes = sizeof zeros, .again = true}, ERR_PEER},
        {{.answer = "$-5\r\n", .answer_bytes = 5}, ERR_PEER},
        {{.answer = "$99999999999999999999\r\n", .answer_bytes = 23}, ERR_PEER},
        {{.answer = "$2000000000\r\nxxxxxxxxxxxxxxxxxxxxxxxxx", .answer_bytes = 38, .again = true},
         ERR_PEER},
        {{.answer = "*2147483647\r\n:1\r\n", .answer_bytes = 17}, ERR_TIMEOUT},
        {{.answer = "*9\r\n", .answer_bytes = 4, .again = true}, ERR_PEER},
        {{.answer = "*1\r\n:1\r\n", .answer_bytes = 8, .again = true}, ERR_PEER},
        {{.answer = "+", .answer_bytes = 1, .again = true}, ERR_PEER},
        {{.answer = "+OK\r\n", .answer_bytes = 5, .again = true}, OK}, /* nothing of use */
        {{.answer = ":1\r\n", .answer_bytes = 4, .again = true}, OK},
        {{.answer = NULL}, ERR_TIMEOUT},
        {{.answer = NULL, .close = true}, ERR_PEER},
        {{.answer = "$8384\r\nabc", .answer_bytes = 10, .close = true}, ERR_PEER},
        {{.answer = "$8384\r\nabc", .answer_bytes = 10}, ERR_TIMEOUT},
        {{.answer = zeros, .answer_bytes = 10, .slow = true}, ERR_PEER},
        {{.answer = "$8384\r\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
          .answer_bytes = 60,
          .again = true,
          .slow = true},
         ERR_TIMEOUT},
        {{.answer = "-LOADING Redis is loading the dataset in memory\r\n",
          .answer_bytes = 49,
          .again = true},
         ERR_PEER},
        {{.answer = "-MOVED 3999 127.0.0.1:6381\r\n", .answer_bytes = 28, .again = true}, ERR_PEER},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct fake fake = row[i].fake;
        uint32_t n;
        fake_start(w, &fake);
        enum err e = get(w, 0, 4, row[i].e == ERR_TIMEOUT ? 50 : ENOUGH_MS, &n);
        if (e != row[i].e) fail_msg("row %zu: %s: %s", i, err_name(e), err_text());
        assert_int_equal(n, 0);
        fake_stop(w, &fake);
        fake = row[i].fake;
        fake_start(w, &fake);
        e = put(w, 0, 4, row[i].e == ERR_TIMEOUT ? 50 : ENOUGH_MS, &n);
        if (fake.answer && fake.answer[0] == ':') /* it says that it has them */
            assert_int_equal(e, OK);
        else if (fake.answer && strcmp(fake.answer, "+OK\r\n") == 0)
            assert_int_equal(n, 4);
        else
            assert_true(e != OK && n == 0);
        fake_stop(w, &fake);
    }
}

static void a_server_that_is_not_there_is_no_error_at_open(void **state)
{
    struct world *w = *state;
    uint32_t n;
    snprintf(w->redis.where, sizeof w->redis.where, "unix:%.*s/none.sock", PATH_MAX, w->dir);
    assert_ok(kv_tier_redis.open(&w->tier, &w->options));
    assert_int_equal(put(w, 0, 1, ENOUGH_MS, &n), ERR_PEER);
    assert_int_equal(get(w, 0, 1, ENOUGH_MS, &n), ERR_PEER);
    assert_int_equal(n, 0);
}

static void addresses_that_cannot_be_are_refused(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *where;
        enum err e;
    } row[] = {{NULL, ERR_INVALID},    {"", ERR_INVALID},       {"unix:", ERR_INVALID},
               {"cache", ERR_INVALID}, {"cache:", ERR_INVALID}, {LONG_LABEL ":6379", ERR_IO}};
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        w->options.where = row[i].where;
        assert_int_equal(kv_tier_redis.open(&w->tier, &w->options), row[i].e);
        assert_null(w->tier);
    }
    char path[300] = "unix:/";
    memset(path + 6, 'x', sizeof path - 7);
    w->options.where = path;
    assert_int_equal(kv_tier_redis.open(&w->tier, &w->options), ERR_INVALID);
}

#define WITH_WORLD(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_WORLD(what_is_no_entry_is_a_miss_and_is_deleted),
        WITH_WORLD(what_is_read_or_kept_again_lives_on),
        WITH_WORLD(what_is_used_elsewhere_lives_on),
        WITH_WORLD(a_server_that_was_killed_is_found_again),
        WITH_WORLD(a_server_that_is_stopped_costs_no_more_than_the_deadline),
        WITH_WORLD(a_full_server_says_so_and_goes_on),
        WITH_WORLD(a_server_that_evicts_costs_misses),
        WITH_WORLD(a_password_is_asked_for_and_taken),
        WITH_WORLD(a_user_of_the_servers_logs_in),
        WITH_WORLD(a_replica_that_takes_nothing_is_an_error),
        WITH_WORLD(short_memory_is_an_error_and_passes),
        WITH_WORLD(what_does_not_speak_redis_is_an_error),
        WITH_WORLD(a_server_that_is_not_there_is_no_error_at_open),
        WITH_WORLD(addresses_that_cannot_be_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
