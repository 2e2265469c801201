#include "kv/disk_values.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/mem.h"

#define SEGMENT_BYTES ((uint64_t)256 << 20)
enum { SEGMENTS_WANTED = 64, NAME_BYTES = 16 };

struct disk_values {
    int dir_fd;
    size_t value_bytes;
    uint32_t segment_slots, slots_count, segments_count;
    int *fd; /* [segments_count]; -1: not open */
};

uint32_t disk_values_segment(size_t value_bytes, uint32_t slots_count)
{
    uint64_t slots = SEGMENT_BYTES / DISK_SLOT_BYTES(value_bytes);
    if (slots < slots_count / SEGMENTS_WANTED) slots = slots_count / SEGMENTS_WANTED;
    return slots > slots_count ? slots_count : slots > 0 ? (uint32_t)slots : 1;
}

static void name_of(uint32_t segment, char name[NAME_BYTES])
{
    snprintf(name, NAME_BYTES, "values.%04u", segment % 10000);
}

/* The number of a file of this name, or -1. */
static int32_t segment_of(const char *name)
{
    uint32_t segment = 0;
    if (strncmp(name, "values.", 7) != 0 || strlen(name) != 11) return -1;
    for (const char *c = name + 7; *c; c++) {
        if (!isdigit((unsigned char)*c)) return -1;
        segment = 10 * segment + (uint32_t)(*c - '0');
    }
    return (int32_t)segment;
}

bool disk_values_named(const char *name)
{
    return segment_of(name) >= 0;
}

enum err disk_values_delete(int dir_fd, uint32_t first_segment)
{
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        if (fd >= 0) close(fd);
        return err_set(ERR_IO, "values: %s", strerror(errno));
    }
    enum err e = OK;
    for (struct dirent *d; e == OK && (d = readdir(dir));) {
        int32_t segment = segment_of(d->d_name);
        if (segment < 0 || (uint32_t)segment < first_segment) continue;
        if (unlinkat(dir_fd, d->d_name, 0) != 0 && errno != ENOENT)
            e = err_set(ERR_IO, "%s: %s", d->d_name, strerror(errno));
    }
    closedir(dir);
    return e;
}

enum err disk_values_open(struct disk_values **out, int dir_fd, size_t value_bytes,
                          uint32_t segment_slots, uint32_t slots_count)
{
    *out = NULL;
    struct disk_values *v = mem_new(sizeof *v);
    if (!v) return ERR_MEMORY;
    *v = (struct disk_values){dir_fd, value_bytes, segment_slots, slots_count, 0, NULL};
    v->segments_count = (slots_count - 1) / segment_slots + 1;
    CHECK(v->segments_count <= DISK_SEGMENTS_MAX);
    v->fd = mem_array(v->segments_count, sizeof *v->fd);
    if (!v->fd) {
        mem_free(v);
        return ERR_MEMORY;
    }
    for (uint32_t i = 0; i < v->segments_count; i++)
        v->fd[i] = -1;
    *out = v;
    return OK;
}

void disk_values_close(struct disk_values *v)
{
    if (!v) return;
    for (uint32_t i = 0; i < v->segments_count; i++)
        if (v->fd[i] >= 0) close(v->fd[i]);
    mem_free(v->fd);
    mem_free(v);
}

static enum err fail(uint32_t segment, const char *what, int error)
{
    enum err e = error == ENOSPC || error == EDQUOT || error == EFBIG ? ERR_FULL
                 : error == ENOENT                                    ? ERR_NOT_FOUND
                                                                      : ERR_IO;
    return err_set(e, "values.%04u: %s: %s", segment, what, strerror(error));
}

/* Takes the space of a file that is shorter than its slots need. */
static enum err reserve(const struct disk_values *v, uint32_t segment, int fd, const char *name)
{
    uint64_t slots = v->slots_count - (uint64_t)segment * v->segment_slots;
    if (slots > v->segment_slots) slots = v->segment_slots;
    off_t bytes = (off_t)(slots * DISK_SLOT_BYTES(v->value_bytes));
    struct stat s;
    if (fstat(fd, &s) != 0) return fail(segment, "stat", errno);
    if (!S_ISREG(s.st_mode)) return err_set(ERR_IO, "values.%04u is no file", segment);
    if (s.st_size >= bytes || fallocate(fd, 0, 0, bytes) == 0) return OK;
    /* Not every file system can; there the writes find out. */
    if (errno == EOPNOTSUPP || errno == ENOSYS) return OK;
    enum err e = fail(segment, "no room", errno);
    if (ftruncate(fd, s.st_size) == 0 && s.st_size == 0) unlinkat(v->dir_fd, name, 0);
    return e;
}

static enum err segment_open(struct disk_values *v, uint32_t segment, bool make)
{
    if (v->fd[segment] >= 0) return OK;
    char name[NAME_BYTES];
    name_of(segment, name);
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | (make ? O_CREAT : 0);
    int fd = openat(v->dir_fd, name, flags, 0600);
    if (fd < 0) return fail(segment, "open", errno);
    enum err e = make ? reserve(v, segment, fd, name) : OK;
    if (e != OK) {
        close(fd);
        return e;
    }
    v->fd[segment] = fd;
    return OK;
}

enum err disk_values_ready(struct disk_values *v, uint32_t slot)
{
    return segment_open(v, slot / v->segment_slots, true);
}

static off_t place(const struct disk_values *v, uint32_t slot)
{
    CHECK(slot < v->slots_count);
    return (off_t)(slot % v->segment_slots * DISK_SLOT_BYTES(v->value_bytes));
}

enum err disk_values_read(struct disk_values *v, uint32_t slot, void *value)
{
    uint32_t segment = slot / v->segment_slots;
    off_t at = place(v, slot);
    enum err e = segment_open(v, segment, false);
    for (size_t done = 0; e == OK && done < v->value_bytes;) {
        ssize_t n =
            pread(v->fd[segment], (char *)value + done, v->value_bytes - done, at + (off_t)done);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0)
            e = err_set(ERR_FORMAT, "values.%04u: ends within slot %u", segment, slot);
        else if (errno != EINTR)
            e = fail(segment, "read", errno);
    }
    return e;
}

enum err disk_values_write(struct disk_values *v, uint32_t slot, const void *value)
{
    uint32_t segment = slot / v->segment_slots;
    off_t at = place(v, slot);
    enum err e = segment_open(v, segment, true);
    for (size_t done = 0; e == OK && done < v->value_bytes;) {
        ssize_t n = pwrite(v->fd[segment], (const char *)value + done, v->value_bytes - done,
                           at + (off_t)done);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0 || errno != EINTR)
            e = fail(segment, "write", n == 0 ? ENOSPC : errno);
    }
    return e;
}
