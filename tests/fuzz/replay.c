/* replay: runs every file of the given folders, and the empty input, through a fuzz target. The
 * main() of fuzz targets in builds without libFuzzer: a past finding stays a test for ever. */
#include <dirent.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The bytes in a block of exactly their size, so that a sanitizer sees one byte too far. */
static void run(const unsigned char *data, size_t size)
{
    uint8_t *exact = calloc(1, size ? size : 1);
    CHECK(exact);
    memcpy(exact, data, size);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const struct dirent *const *)a)->d_name,
                  (*(const struct dirent *const *)b)->d_name);
}

static int run_folder(const char *folder)
{
    struct dirent **entries;
    int count = scandir(folder, &entries, NULL, NULL), runs = 0;
    if (count > 0) qsort(entries, (size_t)count, sizeof *entries, by_name);
    for (int i = 0; i < count; i++) {
        char path[PATH_MAX];
        struct file_map map;
        snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        free(entries[i]);
        if (file_map_open(&map, path) != OK) continue; /* "." and ".." */
        run(map.data, map.size_bytes);
        file_map_close(&map);
        runs++;
    }
    if (count >= 0) free(entries);
    return runs;
}

int main(int argc, char **argv)
{
    int runs = 1;
    run((const unsigned char *)"", 0);
    for (int i = 1; i < argc; i++)
        runs += run_folder(argv[i]);
    printf("%d inputs replayed\n", runs);
    return 0;
}
