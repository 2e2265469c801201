#include "engine/fingerprint.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/hash.h"
#include "common/log.h"

#define NOTE_MAGIC "TNDMNAME"

struct note {
    char magic[8];
    uint64_t hi, lo, hash;
};
_Static_assert(sizeof(struct note) == 32, "the table in fingerprint.h");

/* What stat says of a file: another file, or another state of it, gives another hash. */
static enum err hash_identity(struct hash_stream *s, const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) return err_set(ERR_IO, "%s: %s", path, strerror(errno));
    uint64_t facts[] = {(uint64_t)st.st_dev,          (uint64_t)st.st_ino,
                        (uint64_t)st.st_size,         (uint64_t)st.st_mtim.tv_sec,
                        (uint64_t)st.st_mtim.tv_nsec, (uint64_t)st.st_ctim.tv_sec,
                        (uint64_t)st.st_ctim.tv_nsec};
    hash_more(s, facts, sizeof facts);
    return OK;
}

static void hash_contents(struct hash_stream *s, const struct file_map *map)
{
    uint64_t size = map->size_bytes;
    struct id128 h = hash128(map->data, map->size_bytes);
    hash_more(s, &size, sizeof size);
    hash_more(s, &h, sizeof h);
}

static enum err identity(struct id128 *out, const struct tensors *t, const char *config_path)
{
    struct hash_stream s;
    hash_start(&s);
    enum err e = hash_identity(&s, config_path);
    for (uint32_t i = 0; e == OK && i < t->files_count; i++)
        e = hash_identity(&s, t->file[i].path);
    *out = hash_end128(&s);
    return e;
}

static enum err contents(struct id128 *out, const struct tensors *t, const char *config_path)
{
    struct hash_stream s;
    struct file_map config;
    enum err e = file_map_open(&config, config_path);
    if (e != OK) return e;
    hash_start(&s);
    hash_contents(&s, &config);
    for (uint32_t i = 0; i < t->files_count; i++)
        hash_contents(&s, &t->file[i].map);
    *out = hash_end128(&s);
    file_map_close(&config);
    return OK;
}

static bool recall(struct id128 *out, const char *note_path)
{
    struct file_map map;
    struct note n = {0};
    if (file_map_open(&map, note_path) != OK) return false;
    if (map.size_bytes == sizeof n) memcpy(&n, map.data, sizeof n);
    file_map_close(&map);
    *out = (struct id128){n.hi, n.lo};
    return memcmp(n.magic, NOTE_MAGIC, sizeof n.magic) == 0 &&
           n.hash == hash64(&n, offsetof(struct note, hash));
}

static void remember(struct id128 model, const char *note_path)
{
    struct note n = {.hi = model.hi, .lo = model.lo};
    memcpy(n.magic, NOTE_MAGIC, sizeof n.magic);
    n.hash = hash64(&n, offsetof(struct note, hash));
    if (file_write_whole(note_path, &n, sizeof n) != OK)
        log_warn("model_note_not_written", "reason=\"%s\"", err_text());
}

enum err model_fingerprint(struct id128 *out, const struct tensors *t, const char *cache_dir)
{
    enum err e;
    struct id128 files;
    char config_path[PATH_MAX], note_path[PATH_MAX], hex[ID128_TEXT];
    if (snprintf(config_path, sizeof config_path, "%s/config.json", t->dir) >= PATH_MAX)
        return err_set(ERR_INVALID, "%.64s...: the path is too long", t->dir);
    if ((e = identity(&files, t, config_path)) != OK) return e;
    id128_print(files, hex);
    snprintf(note_path, sizeof note_path, "%s/%s.model", cache_dir ? cache_dir : "", hex);
    if (cache_dir && recall(out, note_path)) return OK;
    if ((e = contents(out, t, config_path)) != OK) return e;
    if (cache_dir) remember(*out, note_path);
    return OK;
}

/* mkdir -p; false with errno set. */
static bool make_folders(const char *path)
{
    char part[CACHE_DIR_BYTES];
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = part + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        if (mkdir(part, 0755) != 0 && errno != EEXIST) return false;
        *slash = '/';
    }
    return mkdir(part, 0755) == 0 || errno == EEXIST;
}

void cache_dir_find(char out[CACHE_DIR_BYTES], const char *wanted)
{
    const char *below = "";
    const char *dir = wanted ? wanted : getenv("TANDEM_CACHE");
    if (!dir || !*dir) {
        below = "/tandem";
        dir = getenv("XDG_CACHE_HOME");
    }
    if (!dir || !*dir) {
        below = "/.cache/tandem";
        dir = getenv("HOME");
    }
    out[0] = '\0';
    if (!dir || !*dir || strcmp(dir, "none") == 0) return;
    if (snprintf(out, CACHE_DIR_BYTES, "%s%s", dir, below) >= CACHE_DIR_BYTES) {
        out[0] = '\0';
        log_warn("cache_folder_refused", "reason=\"the path is too long\"");
    } else if (!make_folders(out)) {
        log_warn("cache_folder_refused", "path=\"%s\" reason=\"%s\"", out, strerror(errno));
        out[0] = '\0';
    }
}
