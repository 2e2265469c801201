/* scratch: a temporary directory of a test's own.
 *
 *     char dir[SCRATCH_BYTES];
 *     scratch_make(dir);
 *     scratch_write(dir, "model.safetensors", bytes, size);
 *     scratch_remove(dir);                             // with all that is in it, if it is there
 *
 * Rules: it is in TANDEM_TEST_DIR, else TMPDIR, else /tmp. What fails ends the program. Any thread. */
#ifndef TANDEM_TESTS_SCRATCH_H
#define TANDEM_TESTS_SCRATCH_H

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/err.h"

enum { SCRATCH_BYTES = 256 };

static inline void scratch_make(char dir[SCRATCH_BYTES])
{
    const char *parent = getenv("TANDEM_TEST_DIR");
    if (!parent || !*parent) parent = getenv("TMPDIR");
    snprintf(dir, SCRATCH_BYTES, "%s/tandem-test-XXXXXX", parent && *parent ? parent : "/tmp");
    CHECK(mkdtemp(dir));
}

static inline void scratch_write(const char *dir, const char *name, const void *bytes, size_t size)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(bytes, 1, size, f) == size && fclose(f) == 0);
}

static inline int scratch_remove_one(const char *path, const struct stat *s, int kind,
                                     struct FTW *at)
{
    (void)s, (void)kind, (void)at;
    return remove(path);
}

static inline void scratch_remove(const char *dir)
{
    CHECK(nftw(dir, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT);
}

#endif
