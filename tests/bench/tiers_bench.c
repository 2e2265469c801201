/* What a block costs to keep in a tier and to take out again, beside what the same memory, file and socket give
 * without one: memcpy, pread and pwrite of one file, and bytes through a socket pair. Blocks of two sizes: of a
 * small model, and of one of 8B (32 layers, 8 kv heads of 128, bf16). The redis part is left out where there
 * is no redis-server. The files lie where TANDEM_TEST_DIR says, else in TMPDIR or /tmp. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "kv/tier.h"
#include "kv/tier_entry.h"
#include "tests/bench/figures.h"
#include "tests/unit/redis_rig.h"
#include "tests/unit/scratch.h"

enum { RUN = 8, PASSES = 3 };
#define WORKING_SET ((size_t)192 << 20)

static const struct size {
    const char *name;
    struct kv_geometry geometry;
} sizes[] = {
    {"small", {4, 4, 64, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_BF16}},
    {"8b", {32, 8, 128, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_BF16}},
};

struct bench {
    const char *size;
    size_t value_bytes;
    uint32_t count; /* values of the working set */
    struct id128 space;
    struct id128 *key;
    char *from[RUN], *to[RUN]; /* one run is put and got again and again, under other keys */
    char dir[PATH_MAX];
};

static double gb_s(const struct bench *b, uint64_t values, uint64_t began_ns)
{
    return (double)values * (double)b->value_bytes / (double)(clock_now_ns() - began_ns);
}

/* The best of some passes. */
static double best(double a, double b)
{
    return a > b ? a : b;
}

static void seal(const struct bench *b, char *value, uint32_t n)
{
    const struct kv_tier_name name = {.key = b->key[n]};
    kv_tier_entry_seal(value, b->value_bytes, b->space, &name);
}

static void bench_init(struct bench *b, const struct size *size)
{
    *b = (struct bench){.size = size->name, .value_bytes = kv_tier_entry_bytes(&size->geometry)};
    b->space = kv_tier_space((struct id128){1, 2}, 3, &size->geometry, &(struct kv_part){0});
    b->count = (uint32_t)(WORKING_SET / b->value_bytes / RUN * RUN);
    CHECK(b->count > 0 && (b->key = mem_array(b->count, sizeof *b->key)));
    for (uint32_t i = 0; i < b->count; i++)
        b->key[i] = (struct id128){i + 1, 7};
    for (uint32_t i = 0; i < RUN; i++) {
        CHECK((b->from[i] = mem_aligned(b->value_bytes, 64)));
        CHECK((b->to[i] = mem_aligned(b->value_bytes, 64)));
        for (size_t at = 0; at + 16 <= b->value_bytes; at += 16) {
            struct rng_block r = rng_draw(i, 5, at);
            memcpy(b->from[i] + at, &r, 16);
        }
    }
    scratch_make(b->dir);
}

static void bench_fini(struct bench *b)
{
    scratch_remove(b->dir);
    mem_free(b->key);
    for (uint32_t i = 0; i < RUN; i++) {
        mem_free(b->from[i]);
        mem_free(b->to[i]);
    }
}

/* --- ceilings --- */

static void memory_ceiling(struct bench *b)
{
    char *arena = mem_aligned((size_t)b->count * b->value_bytes, 2 << 20);
    CHECK(arena);
    double in = 0, out = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        uint64_t began_ns = clock_now_ns();
        for (uint32_t i = 0; i < b->count; i++)
            memcpy(arena + i * b->value_bytes, b->from[i % RUN], b->value_bytes);
        in = best(in, gb_s(b, b->count, began_ns));
        began_ns = clock_now_ns();
        for (uint32_t i = 0; i < b->count; i++)
            memcpy(b->to[i % RUN], arena + i * b->value_bytes, b->value_bytes);
        out = best(out, gb_s(b, b->count, began_ns));
    }
    figure_print(in, "memcpy_in_%s_gb_s", b->size);
    figure_print(out, "memcpy_out_%s_gb_s", b->size);
    uint64_t began_ns = clock_now_ns();
    for (uint32_t i = 0; i < b->count; i++)
        CHECK(!kv_tier_entry_sound(b->from[i % RUN], b->value_bytes, b->space, b->key[0]));
    for (uint32_t i = 0; i < b->count; i++)
        seal(b, b->from[i % RUN], i);
    figure_print(gb_s(b, b->count, began_ns), "seal_%s_gb_s", b->size);
    mem_free(arena);
}

/* One file, its space taken before: what the page cache and, when it is dropped, the disk give. */
static void file_ceiling(struct bench *b)
{
    char path[PATH_MAX + 8];
    snprintf(path, sizeof path, "%.*s/file", PATH_MAX, b->dir);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    off_t bytes = (off_t)(b->count * b->value_bytes);
    CHECK(fd >= 0);
    if (fallocate(fd, 0, 0, bytes) != 0) CHECK(ftruncate(fd, bytes) == 0);
    double in = 0, out = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        uint64_t began_ns = clock_now_ns();
        for (uint32_t i = 0; i < b->count; i++)
            CHECK(pwrite(fd, b->from[i % RUN], b->value_bytes, (off_t)(i * b->value_bytes)) ==
                  (ssize_t)b->value_bytes);
        in = best(in, gb_s(b, b->count, began_ns));
        began_ns = clock_now_ns();
        for (uint32_t i = 0; i < b->count; i++)
            CHECK(pread(fd, b->to[i % RUN], b->value_bytes, (off_t)(i * b->value_bytes)) ==
                  (ssize_t)b->value_bytes);
        out = best(out, gb_s(b, b->count, began_ns));
    }
    figure_print(in, "file_write_%s_gb_s", b->size);
    figure_print(out, "file_read_%s_gb_s", b->size);
    CHECK(fdatasync(fd) == 0);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    uint64_t began_ns = clock_now_ns();
    for (uint32_t i = 0; i < b->count; i++)
        CHECK(pread(fd, b->to[i % RUN], b->value_bytes, (off_t)(i * b->value_bytes)) ==
              (ssize_t)b->value_bytes);
    figure_print(gb_s(b, b->count, began_ns), "file_read_cold_%s_gb_s", b->size);
    close(fd);
    unlink(path);
}

static void socket_ceiling(struct bench *b)
{
    int pair[2], status;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(pair[0]);
        for (uint32_t i = 0; i < b->count; i++)
            for (size_t done = 0; done < b->value_bytes;) {
                ssize_t n = write(pair[1], b->from[i % RUN] + done, b->value_bytes - done);
                if (n <= 0) _exit(1);
                done += (size_t)n;
            }
        _exit(0);
    }
    close(pair[1]);
    uint64_t began_ns = clock_now_ns();
    while (read(pair[0], b->to[0], b->value_bytes) > 0)
        ;
    figure_print(gb_s(b, b->count, began_ns), "socket_%s_gb_s", b->size);
    close(pair[0]);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* --- tiers --- */

static void put_all(struct bench *b, const struct kv_tier_ops *ops, struct kv_tier *tier)
{
    uint64_t busy_ns = 0;
    for (uint32_t i = 0; i < b->count; i += RUN) {
        uint32_t kept;
        for (uint32_t j = 0; j < RUN; j++)
            seal(b, b->from[j], i + j);
        uint64_t began_ns = clock_now_ns();
        CHECK(ops->put(tier, b->key + i, RUN, (const void *const *)b->from,
                       began_ns + 60 * NS_PER_S, &kept) == OK);
        CHECK(kept == RUN);
        busy_ns += clock_now_ns() - began_ns;
    }
    figure_print((double)b->count * (double)b->value_bytes / (double)busy_ns, "%s_put_%s_gb_s",
                 ops->name, b->size);
}

static void get_all(struct bench *b, const struct kv_tier_ops *ops, struct kv_tier *tier,
                    const char *how)
{
    uint64_t began_ns = clock_now_ns();
    for (uint32_t i = 0; i < b->count; i += RUN) {
        uint32_t got;
        CHECK(ops->get(tier, b->key + i, RUN, (void *const *)b->to, clock_now_ns() + 60 * NS_PER_S,
                       &got) == OK);
        CHECK(got == RUN);
    }
    figure_print(gb_s(b, b->count, began_ns), "%s_get_%s%s_gb_s", ops->name, how, b->size);
}

static void ask_all(struct bench *b, const struct kv_tier_ops *ops, struct kv_tier *tier)
{
    uint32_t found, rounds = 20;
    uint64_t began_ns = clock_now_ns();
    for (uint32_t i = 0; i < rounds; i++) {
        CHECK(ops->has(tier, b->key, b->count, clock_now_ns() + 60 * NS_PER_S, &found) == OK);
        CHECK(found == b->count);
    }
    figure_print((double)(clock_now_ns() - began_ns) / rounds / b->count, "%s_has_%s_ns", ops->name,
                 b->size);
}

/* Lets go of what the page cache has of a tier's files. */
static void drop_cached(const char *where)
{
    char path[PATH_MAX + 16];
    for (uint32_t i = 0; i < 64; i++) {
        snprintf(path, sizeof path, "%s/values.%04u", where, i);
        int fd = open(path, O_RDONLY);
        if (fd < 0) return;
        CHECK(fdatasync(fd) == 0);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
}

static void run_tier(struct bench *b, const char *name, const char *where)
{
    const struct kv_tier_ops *ops;
    struct kv_tier *tier;
    struct kv_tier_options o = {.where = where,
                                .bytes_max = 2 * WORKING_SET,
                                .value_bytes = b->value_bytes,
                                .space = b->space};
    CHECK(kv_tier_find(name, &ops) == OK);
    if (ops->open(&tier, &o) != OK) {
        fprintf(stderr, "%s: %s\n", name, err_text());
        return;
    }
    put_all(b, ops, tier);
    get_all(b, ops, tier, "");
    ask_all(b, ops, tier);
    ops->close(tier);
    if (strcmp(name, "disk") != 0) return;
    uint64_t began_ns = clock_now_ns();
    CHECK(ops->open(&tier, &o) == OK);
    figure_print((double)(clock_now_ns() - began_ns) / 1e6, "disk_open_%s_ms", b->size);
    get_all(b, ops, tier, "again_");
    drop_cached(where);
    get_all(b, ops, tier, "cold_");
    ops->close(tier);
}

int main(void)
{
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct bench b;
        struct redis_rig redis;
        char where[PATH_MAX + 8];
        bench_init(&b, &sizes[i]);
        memory_ceiling(&b);
        run_tier(&b, "memory", NULL);
        file_ceiling(&b);
        snprintf(where, sizeof where, "%.*s/tier", PATH_MAX, b.dir);
        run_tier(&b, "disk", where);
        socket_ceiling(&b);
        if (redis_rig_start(&redis, b.dir, NULL)) run_tier(&b, "redis", redis.where);
        redis_rig_stop(&redis);
        bench_fini(&b);
    }
    figures_end();
    return 0;
}
