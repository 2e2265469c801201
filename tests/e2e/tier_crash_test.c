/* A process that writes to a disk tier is killed, within a write or at any moment; what the next one finds is
 * right, and what the tier had taken is there. `./dev chaos` runs many rounds.
 *
 *     tier_crash_test [ROUNDS [SEED]]
 *
 * Each round goes on with the directories that the last one left: one with room for all values, which must have
 * each that was taken, and one with room for some. */
#include "tests/unit/testing.h"

#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "tests/unit/disk_faults.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tier_rig.h"

enum { NAMES = 200, RUN = 24, SLOTS_SOME = 60, WRITES_MAX = 120 };

static uint32_t rounds = 20;
static uint64_t first_seed = 1;

struct store {
    char dir[PATH_MAX];
    bool roomy, taken[NAMES];
    uint64_t right, missed, emptied;
};

static struct kv_tier *open_store(const struct store *s)
{
    struct kv_tier_options o = {.where = s->dir,
                                .value_bytes = RIG_VALUE_BYTES,
                                .space = rig_space(),
                                .bytes_max =
                                    s->roomy ? 64 << 20 : (9 << 20) + SLOTS_SOME * (12288 + 192)};
    struct kv_tier *tier;
    if (kv_tier_disk.open(&tier, &o) != OK) fail_msg("open: %s", err_text());
    return tier;
}

static uint64_t soon(void)
{
    return clock_now_ns() + 60 * NS_PER_S;
}

/* --- the process that dies --- */

struct writer {
    struct kv_tier *tier;
    int report; /* the numbers that were taken go here */
    uint64_t seed;
    uint32_t draws;
    void *value[RUN];
    struct id128 key[RUN];
};

static uint32_t draw(struct writer *w, uint32_t bound)
{
    return rng_below(rng_draw(w->seed, 7, w->draws++).word[0], bound);
}

static void write_run(struct writer *w, uint32_t first, uint32_t count)
{
    uint32_t kept, numbers[RUN];
    for (uint32_t i = 0; i < count; i++) {
        numbers[i] = first + i;
        rig_fill(w->value[i], first + i);
    }
    if (kv_tier_disk.put(w->tier, w->key, count, (const void *const *)w->value, soon(), &kept) ==
            OK &&
        write(w->report, numbers, kept * sizeof *numbers) < 0)
        _exit(1);
}

static void step(struct writer *w, bool removes)
{
    uint32_t first = draw(w, NAMES - RUN), count = 1 + draw(w, RUN), what = draw(w, 8), n;
    for (uint32_t i = 0; i < count; i++)
        w->key[i] = rig_key(first + i);
    if (what < 5)
        write_run(w, first, count);
    else if (what < 7 || !removes)
        kv_tier_disk.get(w->tier, w->key, count, w->value, soon(), &n);
    else
        kv_tier_disk.remove(w->tier, w->key, count, soon());
}

static void run_writer(const struct store *s, int report, uint64_t seed)
{
    struct writer w = {.report = report, .seed = seed};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (uint32_t i = 0; i < RUN; i++)
        if (!(w.value[i] = mem_aligned(RIG_VALUE_BYTES, 64))) _exit(1);
    bool torn = draw(&w, 3) > 0, at_open = draw(&w, 8) == 0;
    struct disk_faults faults = {DISK_WRITE, 1 + draw(&w, at_open ? 4 : WRITES_MAX), 0,
                                 draw(&w, 2) ? draw(&w, 4096) : draw(&w, RIG_VALUE_BYTES)};
    if (torn && at_open) disk_faults = faults;
    w.tier = open_store(s);
    if (torn) disk_faults = faults;
    for (;;) /* until it is killed */
        step(&w, !s->roomy);
}

/* --- the one that looks --- */

static void note_taken(struct store *s, int report, pid_t writer, uint32_t reports_max)
{
    uint32_t n, reports = 0;
    while (read(report, &n, sizeof n) == sizeof n) {
        assert_true(n < NAMES);
        s->taken[n] = true;
        if (++reports == reports_max) kill(writer, SIGKILL);
    }
}

static void look(struct store *s)
{
    struct kv_tier *tier = open_store(s);
    struct kv_tier_stats stats;
    void *value = mem_aligned(RIG_VALUE_BYTES, 64);
    assert_non_null(value);
    for (uint32_t n = 0; n < NAMES; n++) {
        struct id128 key = rig_key(n);
        uint32_t got;
        assert_ok(kv_tier_disk.get(tier, &key, 1, &value, soon(), &got));
        if (got && !rig_is(value, n)) fail_msg("value %u is not what was put", n);
        if (!got && s->roomy && s->taken[n]) fail_msg("value %u was taken and is gone", n);
        s->right += got;
        s->missed += !got;
    }
    kv_tier_disk.stats(tier, &stats);
    if (stats.emptied) s->emptied++;
    assert_true(stats.entries_count <= (s->roomy ? NAMES : SLOTS_SOME + 83));
    mem_free(value);
    kv_tier_disk.close(tier);
}

static void round_of(struct store *s, uint64_t seed)
{
    int report[2], status;
    assert_int_equal(pipe(report), 0);
    pid_t writer = fork();
    assert_true(writer >= 0);
    if (writer == 0) {
        close(report[0]);
        run_writer(s, report[1], seed);
    }
    close(report[1]);
    note_taken(s, report[0], writer, 1 + rng_below(rng_draw(seed, 8, 0).word[0], 600));
    close(report[0]);
    assert_int_equal(waitpid(writer, &status, 0), writer);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    look(s);
}

static void whatever_is_read_after_a_kill_is_right(void **state)
{
    (void)state;
    struct store *store = mem_array(2, sizeof *store);
    assert_non_null(store);
    for (uint32_t i = 0; i < 2; i++) {
        scratch_make(store[i].dir);
        store[i].roomy = i == 0;
    }
    for (uint32_t i = 0; i < rounds; i++)
        round_of(&store[i % 2], first_seed + i);
    for (uint32_t i = 0; i < 2; i++) {
        printf("%s: %llu values right, %llu misses, begun anew %llu times\n",
               store[i].roomy ? "room for all" : "room for some",
               (unsigned long long)store[i].right, (unsigned long long)store[i].missed,
               (unsigned long long)store[i].emptied);
        assert_true(store[i].right > rounds);
        assert_int_equal(store[i].emptied, 0);
        scratch_remove(store[i].dir);
    }
    mem_free(store);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(whatever_is_read_after_a_kill_is_right)};
    if (argc > 1) rounds = (uint32_t)strtoul(argv[1], NULL, 10);
    if (argc > 2) first_seed = strtoull(argv[2], NULL, 10);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
