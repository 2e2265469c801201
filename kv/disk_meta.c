#include "kv/disk_meta.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/hash.h"

struct file {
    char magic[8];
    struct disk_meta meta;
    uint64_t sum;
};
_Static_assert(sizeof(struct file) == 48, "the table in disk_meta.h");

static const char magic[8] = {'t', 'd', 'm', 'd', 'i', 's', 'k', 1};

static enum err fail(int error)
{
    return err_set(error == ENOENT                      ? ERR_NOT_FOUND
                   : error == ENOSPC || error == EDQUOT ? ERR_FULL
                                                        : ERR_IO,
                   "meta: %s", strerror(error));
}

enum err disk_meta_read(int dir_fd, struct disk_meta *meta)
{
    struct file f;
    char more;
    *meta = (struct disk_meta){.value_bytes = 0};
    int fd = openat(dir_fd, "meta", O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ELOOP) return err_set(ERR_FORMAT, "meta: a link");
    if (fd < 0) return fail(errno);
    bool whole = read(fd, &f, sizeof f) == sizeof f && read(fd, &more, 1) == 0;
    close(fd);
    if (!whole || memcmp(f.magic, magic, sizeof magic) != 0 ||
        f.sum != hash64(&f, offsetof(struct file, sum)))
        return err_set(ERR_FORMAT, "meta: damaged, or of another version");
    *meta = f.meta;
    return OK;
}

enum err disk_meta_write(int dir_fd, const struct disk_meta *meta)
{
    struct file f = {.meta = *meta};
    memcpy(f.magic, magic, sizeof magic);
    f.sum = hash64(&f, offsetof(struct file, sum));
    int fd =
        openat(dir_fd, "meta.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return fail(errno);
    ssize_t n = write(fd, &f, sizeof f);
    int error = n == sizeof f ? 0 : n < 0 ? errno : ENOSPC;
    if (error == 0 && fsync(fd) != 0) error = errno;
    close(fd);
    if (error == 0 && renameat(dir_fd, "meta.new", dir_fd, "meta") != 0) error = errno;
    if (error == 0) return OK;
    unlinkat(dir_fd, "meta.new", 0);
    return fail(error);
}
