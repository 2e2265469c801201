/* file: a file as bytes, and files that are written whole or not at all.
 *
 *     struct file_map map;
 *     if ((e = file_map_open(&map, path)) != OK) return e;   // said: path and reason
 *     parse(map.data, map.size_bytes);                       // read-only; gone after close
 *     file_map_close(&map);
 *
 *     struct file_write w;
 *     if ((e = file_write_open(&w, path)) != OK) return e;   // a temporary beside it
 *     file_write_add(&w, bytes, size);
 *     e = file_write_commit(&w);                             // flushed, renamed; or removed and said
 *
 * Rules: only regular files are mapped; an empty one has size 0 and data "". A mapped file that
 * someone truncates kills the reader with SIGBUS: map files that are replaced, not rewritten.
 * file_write_add keeps the first error, so that it need not be looked at until commit.
 * A struct is one thread's at a time. */
#ifndef TANDEM_COMMON_FILE_H
#define TANDEM_COMMON_FILE_H

#include <limits.h>
#include <stddef.h>

#include "common/err.h"
#include "common/id.h"

struct file_map {
    const unsigned char *data;
    size_t size_bytes;
};

/* ERR_NOT_FOUND: no such file. ERR_INVALID: not a regular file. ERR_IO: the rest. */
enum err file_map_open(struct file_map *map, const char *path);
void file_map_close(struct file_map *map); /* a zeroed or closed one is allowed */

struct file_write {
    char path[PATH_MAX], temporary[PATH_MAX];
    int fd; /* -1: closed */
    enum err error;
};

enum err file_write_open(struct file_write *w, const char *path);
enum err file_write_add(struct file_write *w, const void *bytes, size_t size);
enum err file_write_commit(struct file_write *w);
void file_write_abort(struct file_write *w); /* nothing after a commit */
/* The three above in one. */
enum err file_write_whole(const char *path, const void *bytes, size_t size);

/* Of what is in the file now; ID128_NONE if it cannot be read. */
struct id128 file_hash(const char *folder, const char *name);

/* A program's first act: where stdin, stdout or stderr are closed they become /dev/null, so that no socket
 * gets their number and with it what is printed. */
void file_keep_standard(void);
/* And its last: ERR_IO if any of what was printed got lost. */
enum err file_close_stdout(void);

#endif
