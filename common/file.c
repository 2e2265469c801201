#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/hash.h"

static enum err system_error(const char *path)
{
    return err_set(errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s: %s", path, strerror(errno));
}

static enum err map_fd(struct file_map *map, int fd, const char *path)
{
    struct stat st;
    if (fstat(fd, &st) != 0) return system_error(path);
    if (!S_ISREG(st.st_mode)) return err_set(ERR_INVALID, "%s: not a regular file", path);
    if (st.st_size == 0) return OK;
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) return system_error(path);
    *map = (struct file_map){data, (size_t)st.st_size};
    return OK;
}

enum err file_map_open(struct file_map *map, const char *path)
{
    *map = (struct file_map){.data = (const unsigned char *)""};
    /* O_NONBLOCK: opening a pipe must not wait for its writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return system_error(path);
    enum err e = map_fd(map, fd, path);
    close(fd);
    return e;
}

void file_map_close(struct file_map *map)
{
    if (map->size_bytes > 0) munmap((void *)(uintptr_t)map->data, map->size_bytes);
    *map = (struct file_map){.data = (const unsigned char *)""};
}

enum err file_write_open(struct file_write *w, const char *path)
{
    *w = (struct file_write){.fd = -1};
    int n = snprintf(w->temporary, sizeof w->temporary, "%s.XXXXXX", path);
    if (n < 0 || (size_t)n >= sizeof w->temporary)
        return w->error = err_set(ERR_INVALID, "%.64s...: the path is too long", path);
    memcpy(w->path, path, strlen(path) + 1);
    w->fd = mkostemp(w->temporary, O_CLOEXEC);
    if (w->fd < 0) return w->error = system_error(path);
    return OK;
}

enum err file_write_add(struct file_write *w, const void *bytes, size_t size)
{
    const char *from = bytes;
    while (w->error == OK && size > 0) {
        ssize_t n = write(w->fd, from, size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return w->error = system_error(w->path);
        from += n;
        size -= (size_t)n;
    }
    return w->error;
}

/* A rename is durable when the folder that holds the name is. */
static enum err sync_folder(const char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1,
             slash ? path : ".");
    int fd = open(folder, O_RDONLY | O_CLOEXEC | O_DIRECTORY);
    if (fd < 0) return system_error(folder);
    enum err e = fsync(fd) == 0 || errno == EINVAL ? OK : system_error(folder);
    close(fd);
    return e;
}

enum err file_write_commit(struct file_write *w)
{
    if (w->error == OK && (fchmod(w->fd, 0644) != 0 || fsync(w->fd) != 0))
        w->error = system_error(w->path);
    if (w->error == OK && rename(w->temporary, w->path) != 0) w->error = system_error(w->path);
    if (w->error != OK) {
        file_write_abort(w);
        return w->error;
    }
    close(w->fd);
    w->fd = -1;
    return sync_folder(w->path);
}

void file_write_abort(struct file_write *w)
{
    if (w->fd < 0) return;
    close(w->fd);
    w->fd = -1;
    unlink(w->temporary);
}

enum err file_write_whole(const char *path, const void *bytes, size_t size)
{
    struct file_write w;
    enum err e = file_write_open(&w, path);
    if (e != OK) return e;
    file_write_add(&w, bytes, size);
    return file_write_commit(&w);
}

struct id128 file_hash(const char *folder, const char *name)
{
    char path[PATH_MAX];
    struct file_map map;
    int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= sizeof path || file_map_open(&map, path) != OK) return ID128_NONE;
    struct id128 hash = hash128(map.data, map.size_bytes);
    file_map_close(&map);
    return hash;
}

void file_keep_standard(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) close(fd);
}

enum err file_close_stdout(void)
{
    bool lost = ferror(stdout) != 0;
    return fclose(stdout) == 0 && !lost ? OK : err_set(ERR_IO, "stdout could not be written");
}
