/* The disk tier and what can happen to a directory: damage, another owner, no room, no rights, an index that is
 * cut while it is open. Each is a miss or a clear error, and never a value that is wrong. */
#include "tests/unit/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "kv/disk_index.h"
#include "kv/disk_meta.h"
#include "tests/unit/disk_faults.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tier_rig.h"

enum { VALUES = 40, SLOT_BYTES = 12288 };

struct store {
    char dir[PATH_MAX], path[PATH_MAX + 16];
    struct kv_tier_options options;
    struct kv_tier *tier;
    void *value;
};

static uint64_t bytes_for(uint32_t slots)
{
    return disk_index_bytes(0) + 4096 + (uint64_t)slots * (SLOT_BYTES + DISK_INDEX_RECORD);
}

static int set_up(void **state)
{
    struct store *s = mem_new(sizeof *s);
    assert_non_null(s);
    scratch_make(s->dir);
    s->value = mem_aligned(RIG_VALUE_BYTES, 64);
    s->options = (struct kv_tier_options){.where = s->dir,
                                          .bytes_max = bytes_for(VALUES),
                                          .value_bytes = RIG_VALUE_BYTES,
                                          .space = rig_space()};
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
    *state = s;
    return 0;
}

static int tear_down(void **state)
{
    struct store *s = *state;
    disk_faults = (struct disk_faults){0};
    kv_tier_disk.close(s->tier);
    scratch_remove(s->dir);
    mem_free(s->value);
    mem_free(s);
    return 0;
}

static void shut(struct store *s)
{
    kv_tier_disk.close(s->tier);
    s->tier = NULL;
}

static const char *file(struct store *s, const char *name)
{
    snprintf(s->path, sizeof s->path, "%.*s/%s", PATH_MAX, s->dir, name);
    return s->path;
}

static enum err put(struct store *s, uint32_t n)
{
    struct id128 key = rig_key(n);
    uint32_t kept;
    rig_fill(s->value, n);
    enum err e = kv_tier_disk.put(s->tier, &key, 1, (const void *const *)&s->value,
                                  clock_now_ns() + 60 * NS_PER_S, &kept);
    if (e == OK) assert_int_equal(kept, 1);
    return e;
}

static bool get(struct store *s, uint32_t n)
{
    struct id128 key = rig_key(n);
    uint32_t got;
    assert_ok(kv_tier_disk.get(s->tier, &key, 1, &s->value, clock_now_ns() + 60 * NS_PER_S, &got));
    if (got && !rig_is(s->value, n)) fail_msg("value %u is wrong", n);
    return got == 1;
}

static void fill(struct store *s)
{
    for (uint32_t n = 0; n < VALUES; n++)
        assert_ok(put(s, n));
}

static uint32_t count(struct store *s)
{
    uint32_t right = 0;
    for (uint32_t n = 0; n < VALUES; n++)
        right += get(s, n);
    return right;
}

static struct kv_tier_stats stats(const struct store *s)
{
    struct kv_tier_stats now;
    kv_tier_disk.stats(s->tier, &now);
    return now;
}

/* Opens again, counts what is there, and sees that it works. */
static uint32_t count_again(struct store *s)
{
    if (s->tier) shut(s);
    if (kv_tier_disk.open(&s->tier, &s->options) != OK) fail_msg("%s", err_text());
    uint32_t right = count(s);
    if (!get(s, 1000)) assert_ok(put(s, 1000));
    assert_true(get(s, 1000));
    return right;
}

/* --- damage between lives --- */

static void patch(const char *path, off_t at, const void *bytes, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, at), (ssize_t)size);
    close(fd);
}

static void a_damaged_value_is_a_miss_and_is_removed(void **state)
{
    struct store *s = *state;
    fill(s);
    for (uint32_t n = 0; n < VALUES; n += 4) {
        off_t at = (off_t)n * SLOT_BYTES + (n * 397) % RIG_VALUE_BYTES;
        unsigned char c;
        int fd = open(file(s, "values.0000"), O_RDONLY);
        assert_int_equal(pread(fd, &c, 1, at), 1);
        close(fd);
        c ^= 0x10;
        patch(s->path, at, &c, 1);
    }
    assert_int_equal(count(s), VALUES - VALUES / 4);
    assert_int_equal(stats(s).removed, VALUES / 4);
    assert_int_equal(stats(s).entries_count, VALUES - VALUES / 4);
    assert_int_equal(count_again(s), VALUES - VALUES / 4);
}

static void values_that_are_cut_or_gone_are_misses(void **state)
{
    struct store *s = *state;
    fill(s);
    assert_int_equal(truncate(file(s, "values.0000"), 10 * SLOT_BYTES + 100), 0);
    assert_int_equal(count(s), 10);
    fill(s);
    assert_int_equal(count_again(s), VALUES);
    shut(s);
    assert_int_equal(unlink(file(s, "values.0000")), 0);
    assert_int_equal(count_again(s), 0);
    assert_null(stats(s).emptied);
}

static void a_value_in_anothers_slot_is_a_miss(void **state)
{
    struct store *s = *state;
    static char slot[RIG_VALUE_BYTES];
    fill(s);
    int fd = open(file(s, "values.0000"), O_RDWR);
    assert_int_equal(pread(fd, slot, sizeof slot, 5 * SLOT_BYTES), sizeof slot);
    assert_int_equal(pwrite(fd, slot, sizeof slot, 6 * SLOT_BYTES), sizeof slot);
    close(fd);
    assert_true(get(s, 5));
    assert_false(get(s, 6));
}

struct image {
    unsigned char *bytes;
    size_t size;
};

static struct image image_of(const char *path)
{
    struct stat info;
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0 && fstat(fd, &info) == 0);
    struct image image = {mem_new((size_t)info.st_size), (size_t)info.st_size};
    assert_int_equal(pread(fd, image.bytes, image.size, 0), (ssize_t)image.size);
    close(fd);
    return image;
}

static void lay_down(const char *path, const struct image *image)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, image->bytes, image->size, 0), (ssize_t)image->size);
    close(fd);
}

static void a_damaged_index_costs_values_and_no_more(void **state)
{
    struct store *s = *state;
    fill(s);
    shut(s);
    struct image index = image_of(file(s, "index"));
    uint32_t emptied = 0;
    index.size = 1 << 16; /* what it uses of its size */
    for (uint32_t i = 0; i < 100; i++) {
        struct rng_block r = rng_draw(3, 1, i);
        uint32_t at = i % 2 ? rng_below(r.word[0], (uint32_t)index.size)
                            : i / 2 % 2 * 4096 + rng_below(r.word[0], 152); /* the meta pages */
        unsigned char was = index.bytes[at];
        index.bytes[at] = (unsigned char)(r.word[1] % 3 ? r.word[2] : was ^ 1u << r.word[2] % 8);
        lay_down(file(s, "index"), &index);
        count_again(s);
        emptied += stats(s).emptied != NULL;
        shut(s);
        index.bytes[at] = was;
    }
    assert_in_range(emptied, 10, 99);
    mem_free(index.bytes);
}

static void an_index_that_is_cut_or_no_file_is_begun_anew(void **state)
{
    struct store *s = *state;
    static const off_t sizes[] = {1, 100, 4096, 8191, 8192, 12288, 20480};
    for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        fill(s);
        shut(s);
        assert_int_equal(truncate(file(s, "index"), sizes[i]), 0);
        assert_int_equal(count_again(s), 0);
        assert_non_null(stats(s).emptied);
    }
    shut(s);
    assert_int_equal(unlink(file(s, "index")), 0);
    assert_int_equal(count_again(s), 0);
    shut(s);
    assert_int_equal(unlink(file(s, "index")), 0);
    assert_int_equal(symlink("/etc/passwd", s->path), 0);
    assert_int_equal(count_again(s), 0);
    assert_non_null(stats(s).emptied);
}

/* As after a power loss: of two states of the index, each page is of one or the other. */
static void an_index_of_mixed_ages_gives_right_values_only(void **state)
{
    struct store *s = *state;
    fill(s);
    shut(s);
    struct image older = image_of(file(s, "index"));
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
    for (uint32_t n = VALUES; n < VALUES + 30; n++)
        assert_ok(put(s, n));
    shut(s);
    struct image newer = image_of(file(s, "index")), mixed = {mem_new(1 << 16), 1 << 16};
    uint32_t right = 0;
    for (uint32_t i = 0; i < 60; i++) {
        for (uint32_t page = 0; page < mixed.size / 4096; page++) {
            bool old = rng_draw(4, i, page).word[0] & 1;
            memcpy(mixed.bytes + 4096 * page, (old ? older : newer).bytes + 4096 * page, 4096);
        }
        lay_down(file(s, "index"), &mixed);
        right += count_again(s);
        shut(s);
    }
    assert_true(right > 0);
    mem_free(older.bytes);
    mem_free(newer.bytes);
    mem_free(mixed.bytes);
}

static void a_damaged_meta_empties_the_directory(void **state)
{
    struct store *s = *state;
    fill(s);
    shut(s);
    patch(file(s, "meta"), 30, "x", 1);
    assert_int_equal(count_again(s), 0);
    assert_non_null(strstr(stats(s).emptied, "meta"));
    shut(s);
    assert_int_equal(unlink(file(s, "meta")), 0);
    assert_int_equal(count_again(s), 0);
    assert_non_null(strstr(stats(s).emptied, "gone"));
    shut(s);
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
    assert_null(stats(s).emptied);
}

static void values_of_another_model_or_size_are_emptied(void **state)
{
    struct store *s = *state;
    struct stat info;
    fill(s);
    shut(s);
    s->options.space.hi ^= 1;
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
    assert_non_null(strstr(stats(s).emptied, "another model"));
    assert_int_equal(stats(s).entries_count, 0);
    assert_int_equal(stat(file(s, "values.0000"), &info), -1);
    s->options.space.hi ^= 1;
    s->options.value_bytes += 64;
    shut(s);
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
    assert_non_null(strstr(stats(s).emptied, "another model"));
    s->options.value_bytes -= 64;
    assert_int_equal(count_again(s), 0);
}

static void a_smaller_store_keeps_what_fits(void **state)
{
    struct store *s = *state;
    fill(s);
    shut(s);
    s->options.bytes_max = bytes_for(VALUES / 2);
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
    assert_int_equal(count(s), VALUES / 2);
    shut(s);
    s->options.bytes_max = bytes_for(VALUES * 4);
    assert_int_equal(count_again(s), VALUES / 2);
    for (uint32_t n = 0; n < 3 * VALUES; n++)
        assert_ok(put(s, n));
    assert_int_equal(stats(s).evicted, 0);
}

static void garbage_beside_the_index_is_refused_or_ignored(void **state)
{
    struct store *s = *state;
    fill(s);
    shut(s);
    assert_int_equal(unlink(file(s, "values.0000")), 0);
    assert_int_equal(mkdir(s->path, 0700), 0); /* a directory in a file's place */
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
    assert_int_equal(count(s), 0);
    assert_int_equal(put(s, 1), ERR_FULL); /* no place for a value */
    assert_int_equal(rmdir(s->path), 0);
}

/* --- who may use it --- */

static void two_do_not_share_a_directory(void **state)
{
    struct store *s = *state;
    struct kv_tier *second;
    assert_int_equal(kv_tier_disk.open(&second, &s->options), ERR_IO);
    assert_non_null(strstr(err_text(), "another process"));
    assert_null(second);
    shut(s);
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
}

static void a_directory_that_is_somebody_elses_is_left_alone(void **state)
{
    struct store *s = *state;
    shut(s);
    assert_int_equal(unlink(file(s, "meta")), 0);
    patch(file(s, "thesis.tex"), 0, "x", 1);
    assert_int_equal(kv_tier_disk.open(&s->tier, &s->options), ERR_INVALID);
    assert_non_null(strstr(err_text(), "thesis.tex"));
    assert_int_equal(access(s->path, F_OK), 0);
}

static void what_is_no_directory_is_said(void **state)
{
    struct store *s = *state;
    struct kv_tier *tier;
    struct kv_tier_options o = s->options;
    const char *const wrong[] = {"/proc/tandem", "/dev/null", "/dev/null/below", ""};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        o.where = wrong[i];
        enum err e = kv_tier_disk.open(&tier, &o);
        assert_int_equal(e, *wrong[i] ? ERR_IO : ERR_INVALID);
        if (*wrong[i]) assert_non_null(strstr(err_text(), wrong[i]));
    }
}

/* In a process of its own without root's rights: its exit status is what open returned. */
static void a_read_only_directory_is_said(void **state)
{
    struct store *s = *state;
    int status;
    shut(s);
    assert_int_equal(chmod(s->dir, 0555), 0);
    pid_t child = fork();
    if (child == 0) {
        struct kv_tier *tier;
        if (getuid() == 0 && setuid(65534) != 0) _exit(77);
        _exit((int)kv_tier_disk.open(&tier, &s->options));
    }
    waitpid(child, &status, 0);
    assert_int_equal(chmod(s->dir, 0700), 0);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) skip();
    assert_int_equal(WEXITSTATUS(status), ERR_IO);
}

/* --- trouble while it is open --- */

static void an_index_that_is_cut_while_open_is_begun_anew(void **state)
{
    struct store *s = *state;
    fill(s);
    assert_int_equal(truncate(file(s, "index"), 0), 0);
    assert_true(get(s, 3)); /* it is in memory */
    assert_int_equal(put(s, 500), ERR_IO);
    assert_non_null(stats(s).emptied);
    assert_int_equal(count(s), 0);
    fill(s);
    assert_int_equal(count_again(s), VALUES);
}

static void an_index_that_is_cut_before_close_is_no_crash(void **state)
{
    struct store *s = *state;
    fill(s);
    get(s, 1);
    assert_int_equal(truncate(file(s, "index"), 4096), 0);
    shut(s);
    assert_int_equal(count_again(s), 0);
}

static void a_directory_that_is_removed_under_it_is_no_crash(void **state)
{
    struct store *s = *state;
    fill(s);
    scratch_remove(s->dir);
    count(s);
    for (uint32_t n = 0; n < 2 * VALUES; n++)
        put(s, n);
    count(s);
}

static void a_read_that_fails_is_a_miss(void **state)
{
    struct store *s = *state;
    fill(s);
    disk_faults = (struct disk_faults){DISK_READ, 1, EIO, 0};
    assert_false(get(s, 1));
    disk_faults = (struct disk_faults){0};
    assert_false(get(s, 1)); /* it was removed */
    assert_int_equal(count(s), VALUES - 1);
}

/* The n-th write fails, be it of a value or of the index, and all after it. */
static void writes_that_fail_lose_what_was_not_written(void **state)
{
    struct store *s = *state;
    static const int errors[] = {EIO, ENOSPC};
    for (uint32_t nth = 1; nth < 40; nth++) {
        disk_faults = (struct disk_faults){DISK_WRITE, nth, errors[nth % 2], 0};
        for (uint32_t n = 0; n < 20; n++)
            put(s, nth * 7 + n);
        for (uint32_t n = 0; n < 20; n++)
            get(s, nth * 7 + n);
        disk_faults = (struct disk_faults){0};
        shut(s);
        assert_ok(kv_tier_disk.open(&s->tier, &s->options));
        for (uint32_t n = 0; n < 300; n++)
            get(s, n);
    }
    assert_ok(put(s, 1));
    assert_true(get(s, 1));
}

static void who_cannot_be_dropped_from_the_index_stays(void **state)
{
    struct store *s = *state;
    fill(s);
    disk_faults = (struct disk_faults){DISK_WRITE, 1, ENOSPC, 0};
    for (uint32_t n = 100; n < 120; n++)
        assert_int_equal(put(s, n), ERR_FULL);
    disk_faults = (struct disk_faults){0};
    assert_int_equal(count(s), VALUES);
    assert_int_equal(stats(s).evicted, 0);
    assert_int_equal(count_again(s), VALUES);
}

static void a_disk_that_is_full_at_open_is_no_error(void **state)
{
    struct store *s = *state;
    shut(s);
    scratch_remove(s->dir);
    disk_faults = (struct disk_faults){DISK_WRITE, 1, ENOSPC, 0};
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
    assert_int_equal(put(s, 1), ERR_FULL);
    assert_false(get(s, 1));
    disk_faults = (struct disk_faults){0};
    assert_int_equal(count_again(s), 0);
}

static void a_disk_without_room_for_more_files_evicts(void **state)
{
    struct store *s = *state;
    fill(s); /* the first file is there */
    shut(s);
    s->options.bytes_max = bytes_for(4 * VALUES);
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
    disk_faults = (struct disk_faults){DISK_RESERVE, 1, ENOSPC, 0};
    for (uint32_t n = 100; n < 110; n++)
        assert_ok(put(s, n));
    disk_faults = (struct disk_faults){0};
    assert_int_equal(stats(s).evicted, 10);
    assert_int_equal(stats(s).entries_count, VALUES);
    assert_true(get(s, 109) && get(s, 39));
    assert_false(get(s, 0));
}

static void a_file_system_that_reserves_nothing_will_do(void **state)
{
    struct store *s = *state;
    shut(s);
    scratch_remove(s->dir);
    disk_faults = (struct disk_faults){DISK_RESERVE, 1, EOPNOTSUPP, 0};
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
    fill(s);
    assert_int_equal(count(s), VALUES);
}

/* A real limit of the kernel's in place of injected ones, in a process of its own. */
static void a_limit_of_file_sizes_is_a_full_disk(void **state)
{
    struct store *s = *state;
    int status;
    shut(s);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {64 << 10, 64 << 10};
        struct kv_tier *tier;
        struct id128 key = rig_key(1);
        uint32_t kept;
        signal(SIGXFSZ, SIG_IGN);
        rig_fill(s->value, 1);
        if (unlink(file(s, "index")) != 0 || setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(100);
        if (kv_tier_disk.open(&tier, &s->options) != OK) _exit(101);
        _exit((int)kv_tier_disk.put(tier, &key, 1, (const void *const *)&s->value,
                                    clock_now_ns() + 60 * NS_PER_S, &kept));
    }
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), ERR_FULL);
    assert_int_equal(count_again(s), 0);
}

static void what_is_touched_again_and_again_stays_over_a_restart(void **state)
{
    struct store *s = *state;
    struct id128 hot[4];
    for (uint32_t n = 0; n < VALUES; n++) {
        assert_ok(put(s, n));
        if (n < 4) hot[n] = rig_key(n);
        if (n >= 4) assert_ok(kv_tier_disk.touch(s->tier, hot, 4, TIME_NEVER));
    }
    shut(s);
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
    for (uint32_t n = 0; n < VALUES / 2; n++)
        assert_ok(put(s, 100 + n));
    for (uint32_t n = 0; n < 4; n++)
        assert_true(get(s, n));
    assert_false(get(s, 4));
}

static void too_few_bytes_are_refused_with_the_least(void **state)
{
    struct store *s = *state;
    shut(s);
    s->options.bytes_max = bytes_for(1) - 1;
    assert_int_equal(kv_tier_disk.open(&s->tier, &s->options), ERR_INVALID);
    assert_non_null(strstr(err_text(), "--kv-disk-bytes"));
    assert_non_null(strstr(err_text(), "take 8405184 (9M)"));
    s->options.bytes_max = bytes_for(1);
    assert_ok(kv_tier_disk.open(&s->tier, &s->options));
}

static void memory_that_is_short_is_an_error_at_open(void **state)
{
    struct store *s = *state;
    fill(s);
    shut(s);
    enum err e = ERR_MEMORY;
    for (uint32_t n = 1; e != OK; n++) {
        assert_true(n < 50);
        mem_fail_at(n);
        e = kv_tier_disk.open(&s->tier, &s->options);
        mem_fail_at(0);
        if (e != OK) assert_null(s->tier);
    }
    assert_int_equal(count(s), VALUES);
}

#define WITH_STORE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_STORE(a_damaged_value_is_a_miss_and_is_removed),
        WITH_STORE(values_that_are_cut_or_gone_are_misses),
        WITH_STORE(a_value_in_anothers_slot_is_a_miss),
        WITH_STORE(a_damaged_index_costs_values_and_no_more),
        WITH_STORE(an_index_that_is_cut_or_no_file_is_begun_anew),
        WITH_STORE(an_index_of_mixed_ages_gives_right_values_only),
        WITH_STORE(a_damaged_meta_empties_the_directory),
        WITH_STORE(values_of_another_model_or_size_are_emptied),
        WITH_STORE(a_smaller_store_keeps_what_fits),
        WITH_STORE(garbage_beside_the_index_is_refused_or_ignored),
        WITH_STORE(two_do_not_share_a_directory),
        WITH_STORE(a_directory_that_is_somebody_elses_is_left_alone),
        WITH_STORE(what_is_no_directory_is_said),
        WITH_STORE(a_read_only_directory_is_said),
        WITH_STORE(an_index_that_is_cut_while_open_is_begun_anew),
        WITH_STORE(an_index_that_is_cut_before_close_is_no_crash),
        WITH_STORE(a_directory_that_is_removed_under_it_is_no_crash),
        WITH_STORE(a_read_that_fails_is_a_miss),
        WITH_STORE(writes_that_fail_lose_what_was_not_written),
        WITH_STORE(who_cannot_be_dropped_from_the_index_stays),
        WITH_STORE(a_disk_that_is_full_at_open_is_no_error),
        WITH_STORE(a_disk_without_room_for_more_files_evicts),
        WITH_STORE(a_file_system_that_reserves_nothing_will_do),
        WITH_STORE(a_limit_of_file_sizes_is_a_full_disk),
        WITH_STORE(memory_that_is_short_is_an_error_at_open),
        WITH_STORE(what_is_touched_again_and_again_stays_over_a_restart),
        WITH_STORE(too_few_bytes_are_refused_with_the_least),
    };
    if (access("/dev/shm", W_OK) == 0) setenv("TANDEM_TEST_DIR", "/dev/shm", 0); /* many flushes */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
