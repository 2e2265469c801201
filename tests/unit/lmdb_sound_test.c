/* lmdb_sound: what LMDB writes is sound, whatever the history; what was changed afterwards is either seen or
 * harmless to LMDB. */
#include "tests/unit/testing.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "common/rng.h"
#include "kv/disk_index.h"
#include "kv/lmdb_sound.h"
#include "tests/unit/scratch.h"

enum { SLOTS = 3000, PAGE = 4096 };

struct world {
    char dir[PATH_MAX], path[PATH_MAX + 8];
    struct disk_index *index;
};

static int set_up(void **state)
{
    struct world *w = mem_new(sizeof *w);
    assert_non_null(w);
    scratch_make(w->dir);
    snprintf(w->path, sizeof w->path, "%.*s/index", PATH_MAX, w->dir);
    assert_ok(disk_index_open(&w->index, w->path, SLOTS));
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    disk_index_close(w->index);
    scratch_remove(w->dir);
    mem_free(w);
    return 0;
}

static struct id128 key_of(uint32_t n)
{
    struct rng_block r = rng_draw(n, 1, 1);
    return (struct id128){(uint64_t)r.word[0] << 32 | r.word[1],
                          (uint64_t)r.word[2] << 32 | r.word[3]};
}

/* A change of many records: most are set, some dropped; few_percent: how many of 100 are set. */
static enum err churn(struct disk_index *index, uint32_t round, uint32_t changes,
                      uint32_t set_percent)
{
    struct disk_index_change change[DISK_INDEX_CHANGES_MAX];
    for (uint32_t i = 0; i < changes; i++) {
        struct rng_block r = rng_draw(9, round, i);
        uint32_t n = rng_below(r.word[0], SLOTS);
        bool set = rng_below(r.word[1], 100) < set_percent;
        change[i] = (struct disk_index_change){key_of(n), set ? n : DISK_INDEX_DROP, round};
    }
    return disk_index_update(index, change, changes);
}

static enum err sound(const char *path)
{
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    enum err e = lmdb_sound(fd, disk_index_bytes(SLOTS), 16, 16);
    close(fd);
    return e;
}

static void what_lmdb_writes_is_sound(void **state)
{
    struct world *w = *state;
    assert_ok(sound(w->path)); /* empty */
    for (uint32_t round = 0; round < 400; round++) {
        uint32_t percent = round % 100 < 50 ? 80 : 15; /* grows and shrinks */
        assert_ok(churn(w->index, round, 1 + round * 37 % 500, percent));
        if (sound(w->path) != OK) fail_msg("round %u: %s", round, err_text());
    }
}

static enum err count_one(void *ctx, const struct disk_index_change *entry)
{
    (void)entry;
    ++*(uint32_t *)ctx;
    return OK;
}

/* LMDB on a file that was found sound: reads it all, and changes it all over. */
static void use(const char *path)
{
    struct disk_index *index;
    uint32_t entries = 0;
    assert_ok(disk_index_open(&index, path, SLOTS));
    assert_ok(disk_index_load(index, count_one, &entries));
    for (uint32_t round = 1000; round < 1004; round++)
        churn(index, round, 300, round % 2 ? 20 : 80);
    disk_index_close(index);
}

static void what_is_found_sound_cannot_harm_lmdb(void **state)
{
    struct world *w = *state;
    for (uint32_t round = 0; round < 120; round++)
        assert_ok(churn(w->index, round, 200, round < 60 ? 90 : 45));
    disk_index_close(w->index);
    w->index = NULL;
    static unsigned char was[512 * PAGE];
    int fd = open(w->path, O_RDWR);
    assert_int_equal(pread(fd, was, sizeof was, 0), sizeof was);
    uint32_t refused = 0, used = 0;
    for (uint32_t i = 0; i < 800; i++) {
        struct rng_block r = rng_draw(11, 0, i);
        uint32_t page = i % 4 ? rng_below(r.word[0], 150) : i / 4 % 2, size = 1u << r.word[3] % 4;
        uint32_t at = page * PAGE + rng_below(r.word[1], i % 3 ? 200 : PAGE - 8);
        unsigned char bytes[8];
        memcpy(bytes, &r.word[1], 8);
        if (size == 1) bytes[0] = (unsigned char)(was[at] ^ 1u << r.word[2] % 8);
        if (size == 2) memcpy(bytes, &was[rng_below(r.word[2], 150) * PAGE + at % PAGE], 2);
        assert_int_equal(pwrite(fd, bytes, size, at), size);
        if (lmdb_sound(fd, disk_index_bytes(SLOTS), 16, 16) != OK) {
            refused++;
            assert_int_equal(pwrite(fd, was + at, size, at), size);
            continue;
        }
        use(w->path);
        used++;
        assert_int_equal(pwrite(fd, was, sizeof was, 0), sizeof was);
    }
    close(fd);
    assert_true(refused > 100 && used > 100);
}

static void what_is_no_lmdb_is_refused(void **state)
{
    struct world *w = *state;
    static char zero[3 * PAGE];
    disk_index_close(w->index);
    w->index = NULL;
    int fd = open(w->path, O_RDWR | O_TRUNC);
    for (size_t size = 0; size <= sizeof zero; size += PAGE / 2) {
        assert_int_equal(pwrite(fd, zero, size, 0), (ssize_t)size);
        assert_int_equal(sound(w->path), ERR_FORMAT);
    }
    close(fd);
}

#define WITH_WORLD(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_WORLD(what_lmdb_writes_is_sound),
        WITH_WORLD(what_is_found_sound_cannot_harm_lmdb),
        WITH_WORLD(what_is_no_lmdb_is_refused),
    };
    if (access("/dev/shm", W_OK) == 0) setenv("TANDEM_TEST_DIR", "/dev/shm", 0); /* many flushes */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
