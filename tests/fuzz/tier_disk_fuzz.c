/* The directory of a disk tier with any bytes as its index, its values and its meta file: it opens, nothing that
 * it says it has is wrong, it takes new values, and opens again.
 *
 *     offset  size  what
 *          0     1  1: the meta file is what is left at the end, else it is the right one
 *          1     3  bytes of the index
 *          4     -  the index, then the values */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "kv/disk_meta.h"
#include "kv/tier.h"
#include "kv/tier_entry.h"

enum { VALUE_BYTES = 256, NAMES = 16 };

static char directory[64], path[96];
static const struct id128 space = {1, 2};

static void delete_all(void)
{
    static const char *const names[] = {"lock", "meta", "index", "values.0000", ""};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        remove(path);
    }
}

static void make_directory(void)
{
    if (*directory) return;
    snprintf(directory, sizeof directory, "%s/tier-fuzz-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(directory));
    atexit(delete_all);
}

static void lay_down(const char *name, const void *bytes, size_t size)
{
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
    close(fd);
}

static struct id128 key_of(uint32_t n)
{
    return (struct id128){n, 100};
}

static void value_of(uint32_t n, void *value)
{
    const struct kv_tier_name name = {.key = key_of(n), .digest = {(unsigned char)n}};
    memset(kv_tier_entry_kv(value), (int)n, VALUE_BYTES - 128);
    kv_tier_entry_seal(value, VALUE_BYTES, space, &name);
}

static void use(void)
{
    struct kv_tier_options o = {
        .where = directory, .bytes_max = 9 << 20, .value_bytes = VALUE_BYTES, .space = space};
    struct kv_tier *tier;
    uint64_t soon_ns = clock_now_ns() + 60 * NS_PER_S;
    if (kv_tier_disk.open(&tier, &o) != OK) return;
    for (uint32_t n = 0; n < NAMES; n++) {
        unsigned char got[VALUE_BYTES], want[VALUE_BYTES];
        void *to = got;
        const void *from = want;
        uint32_t count;
        struct id128 key = key_of(n);
        value_of(n, want);
        if (kv_tier_disk.get(tier, &key, 1, &to, soon_ns, &count) == OK && count == 1)
            CHECK(kv_tier_entry_sound(got, VALUE_BYTES, space, key));
        if (n % 3 == 0) kv_tier_disk.remove(tier, &key, 1, soon_ns);
        if (n % 2 == 0) kv_tier_disk.put(tier, &key, 1, &from, soon_ns, &count);
    }
    kv_tier_disk.close(tier);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4) return 0;
    make_directory();
    size_t index = data[1] | (size_t)data[2] << 8 | (size_t)data[3] << 16;
    bool meta = data[0] == 1;
    data += 4, size -= 4;
    if (index > size) index = size;
    lay_down("index", data, index);
    lay_down("values.0000", data + index, size - index);
    if (meta) {
        lay_down("meta", data + index, size - index);
    } else {
        int fd = open(directory, O_RDONLY | O_DIRECTORY);
        CHECK(disk_meta_write(fd, &(struct disk_meta){space, VALUE_BYTES, 64}) == OK);
        close(fd);
    }
    use();
    use();
    return 0;
}
