#include "kv/disk_home.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kv/disk_values.h"

void disk_home_init(struct disk_home *home, const char *where)
{
    snprintf(home->where, sizeof home->where, "%s", where);
    home->dir_fd = home->lock_fd = -1;
}

void disk_home_leave(struct disk_home *home)
{
    if (home->lock_fd >= 0) close(home->lock_fd);
    if (home->dir_fd >= 0) close(home->dir_fd);
    home->dir_fd = home->lock_fd = -1;
}

static enum err make_parents(const char *where)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", where);
    for (char *c = path + 1; *c; c++) {
        if (*c != '/') continue;
        *c = 0;
        if (mkdir(path, 0777) != 0 && errno != EEXIST && errno != EROFS && errno != EACCES)
            return err_set(ERR_IO, "disk tier %s: %s: %s", where, path, strerror(errno));
        *c = '/';
    }
    if (mkdir(where, 0700) == 0 || errno == EEXIST) return OK;
    return err_set(ERR_IO, "disk tier %s: cannot be made: %s", where, strerror(errno));
}

enum err disk_home_take(struct disk_home *home)
{
    enum err e = make_parents(home->where);
    if (e != OK) return e;
    home->dir_fd = open(home->where, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (home->dir_fd < 0) return err_set(ERR_IO, "disk tier %s: %s", home->where, strerror(errno));
    home->lock_fd = openat(home->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (home->lock_fd < 0)
        return err_set(ERR_IO, "disk tier %s: cannot be written: %s", home->where, strerror(errno));
    if (flock(home->lock_fd, LOCK_EX | LOCK_NB) == 0) return OK;
    if (errno != EWOULDBLOCK)
        return err_set(ERR_IO, "disk tier %s: lock: %s", home->where, strerror(errno));
    return err_set(ERR_IO,
                   "disk tier %s: another process uses it: give each node its own directory",
                   home->where);
}

/* A directory that is not empty and has no meta is somebody else's. */
static enum err check_ours(const struct disk_home *home)
{
    int fd = openat(home->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        if (fd >= 0) close(fd);
        return err_set(ERR_IO, "disk tier %s: %s", home->where, strerror(errno));
    }
    static const char *const ours[] = {".", "..", "lock", "index", "meta", "meta.new"};
    enum err e = OK;
    for (struct dirent *d; e == OK && (d = readdir(dir));) {
        bool known = disk_values_named(d->d_name);
        for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
            known |= strcmp(d->d_name, ours[i]) == 0;
        if (!known)
            e = err_set(ERR_INVALID,
                        "disk tier %s: it has %s, which is not a tier's: give it a directory "
                        "of its own",
                        home->where, d->d_name);
    }
    closedir(dir);
    return e;
}

enum err disk_home_empty(struct disk_home *home)
{
    if (unlinkat(home->dir_fd, "index", 0) != 0 && errno != ENOENT)
        return err_set(ERR_IO, "disk tier %s: index: %s", home->where, strerror(errno));
    return disk_values_delete(home->dir_fd, 0);
}

/* NULL: the values that are there are those that are wanted. */
static const char *why_not(const struct disk_meta *has, const struct disk_meta *want,
                           uint32_t slots_count)
{
    if (!id128_equal(has->space, want->space) || has->value_bytes != want->value_bytes)
        return "the directory had another model's values";
    if (has->segment_slots == 0 || has->segment_slots > UINT32_MAX ||
        (slots_count - 1) / has->segment_slots >= DISK_SEGMENTS_MAX)
        return "the directory's files are divided for a store of another size";
    return NULL;
}

enum err disk_home_settle(struct disk_home *home, struct disk_meta *meta, uint32_t slots_count,
                          const char **emptied)
{
    struct disk_meta has;
    const char *why = NULL;
    enum err e = disk_meta_read(home->dir_fd, &has);
    if (e == ERR_NOT_FOUND) {
        e = check_ours(home);
        if (faccessat(home->dir_fd, "index", F_OK, 0) == 0)
            why = "the directory's meta file was gone";
    } else if (e == ERR_FORMAT) {
        why = "the directory's meta file was damaged or of another version";
        e = OK;
    } else if (e == OK && !(why = why_not(&has, meta, slots_count))) {
        meta->segment_slots = has.segment_slots;
        return disk_values_delete(home->dir_fd,
                                  (slots_count - 1) / (uint32_t)has.segment_slots + 1);
    }
    if (e == OK && why) {
        *emptied = why;
        e = disk_home_empty(home);
    }
    meta->segment_slots = disk_values_segment(meta->value_bytes, slots_count);
    return e == OK ? disk_meta_write(home->dir_fd, meta) : e;
}
