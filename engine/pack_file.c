#include "engine/pack_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "common/hash.h"

#define PACK_MAGIC "TNDMPACK"

struct pack_header {
    char magic[8];
    uint32_t version, sections_count;
    uint64_t model_hi, model_lo;
    uint32_t layout, dtype;
    uint64_t file_bytes, data_hash, header_hash;
};
_Static_assert(sizeof(struct pack_header) == 64, "the table in pack_file.h");
_Static_assert(sizeof(struct pack_section) == 16, "the table in pack_file.h");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian");

static uint64_t header_bytes(const struct pack_want *want)
{
    return sizeof(struct pack_header) + want->sections_count * sizeof(struct pack_section);
}

static struct pack_header header_of(const struct pack_want *want, uint64_t data_hash)
{
    struct pack_header h = {.version = PACK_VERSION,
                            .sections_count = want->sections_count,
                            .model_hi = want->model.hi,
                            .model_lo = want->model.lo,
                            .layout = want->layout,
                            .dtype = want->dtype,
                            .file_bytes = want->file_bytes,
                            .data_hash = data_hash};
    memcpy(h.magic, PACK_MAGIC, sizeof h.magic);
    struct hash_stream s;
    hash_start(&s);
    hash_more(&s, &h, sizeof h);
    hash_more(&s, want->section, want->sections_count * sizeof *want->section);
    h.header_hash = hash_end64(&s);
    return h;
}

static uint64_t data_hash(const struct pack_file *f, const struct pack_want *want)
{
    uint64_t first = header_bytes(want);
    return hash64(f->bytes + first, f->size_bytes - first);
}

enum err pack_want_place(struct pack_want *want)
{
    uint64_t at = header_bytes(want);
    for (uint32_t i = 0; i < want->sections_count; i++) {
        at = (at + PACK_ALIGN - 1) / PACK_ALIGN * PACK_ALIGN;
        want->section[i].offset = at;
        if (want->section[i].bytes > (uint64_t)1 << 62 ||
            (at += want->section[i].bytes) > (uint64_t)1 << 62)
            return err_set(ERR_FORMAT, "the weights have more than 2^62 bytes");
    }
    want->file_bytes = at;
    return OK;
}

/* A step reads all weights once, and in small pages waits for address translation on its way: 10 % of
 * the bandwidth. Asked for before the first byte is touched, as that is when the page cache chooses
 * the size; a file system or kernel without huge pages keeps its small ones. */
static void ask_for_huge_pages(const struct pack_file *f)
{
    madvise(f->bytes, f->size_bytes, MADV_HUGEPAGE);
}

/* The header as a whole must be the one that would be written now: every field is checked by one
 * comparison, the hash of the contents, which is not known before, apart. */
static enum err check(const struct pack_file *f, const char *path, const struct pack_want *want)
{
    struct pack_header found;
    if (f->size_bytes != want->file_bytes || f->size_bytes < header_bytes(want))
        return err_set(ERR_FORMAT, "%s: %zu bytes, wanted %llu", path, f->size_bytes,
                       (unsigned long long)want->file_bytes);
    memcpy(&found, f->bytes, sizeof found);
    struct pack_header wanted = header_of(want, found.data_hash);
    if (memcmp(&found, &wanted, sizeof found) != 0 ||
        memcmp(f->bytes + sizeof found, want->section,
               want->sections_count * sizeof *want->section) != 0)
        return err_set(ERR_FORMAT, "%s: not the header of this model's packed weights", path);
    if (f->size_bytes <= PACK_VERIFY_BYTES_MAX && data_hash(f, want) != found.data_hash)
        return err_set(ERR_FORMAT, "%s: the contents do not match their checksum", path);
    return OK;
}

enum err pack_file_map(struct pack_file *f, const char *path, const struct pack_want *want)
{
    struct file_map map;
    *f = (struct pack_file){.write.fd = -1};
    enum err e = file_map_open(&map, path);
    if (e != OK) return e;
    *f = (struct pack_file){.bytes = (unsigned char *)(uintptr_t)map.data,
                            .size_bytes = map.size_bytes,
                            .in_file = true,
                            .write.fd = -1};
    if (f->size_bytes > 0) ask_for_huge_pages(f);
    if ((e = check(f, path, want)) != OK) pack_file_close(f);
    return e;
}

enum err pack_file_create(struct pack_file *f, const char *path, const struct pack_want *want)
{
    enum err e;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    *f = (struct pack_file){.write.fd = -1};
    if (path) {
        if ((e = file_write_open(&f->write, path)) != OK) return e;
        /* posix_fallocate, not ftruncate: a full disk must be an error here, not a SIGBUS later. */
        int failed = posix_fallocate(f->write.fd, 0, (off_t)want->file_bytes);
        if (failed) {
            file_write_abort(&f->write);
            return err_set(ERR_IO, "%s: %llu bytes: %s", path, (unsigned long long)want->file_bytes,
                           strerror(failed));
        }
        flags = MAP_SHARED;
    }
    void *bytes = mmap(NULL, want->file_bytes, PROT_READ | PROT_WRITE, flags, f->write.fd, 0);
    if (bytes == MAP_FAILED) {
        e = err_set(ERR_MEMORY, "packed weights: %llu bytes: %s",
                    (unsigned long long)want->file_bytes, strerror(errno));
        file_write_abort(&f->write);
        return e;
    }
    f->bytes = bytes;
    f->size_bytes = want->file_bytes;
    f->in_file = path != NULL;
    ask_for_huge_pages(f);
    return OK;
}

enum err pack_file_seal(struct pack_file *f, const struct pack_want *want)
{
    enum err e = OK;
    if (f->in_file) {
        struct pack_header h = header_of(want, data_hash(f, want));
        memcpy(f->bytes, &h, sizeof h);
        memcpy(f->bytes + sizeof h, want->section, want->sections_count * sizeof *want->section);
    }
    mprotect(f->bytes, f->size_bytes, PROT_READ);
    if (f->in_file) e = file_write_commit(&f->write);
    return e;
}

void pack_file_close(struct pack_file *f)
{
    if (f->size_bytes > 0) {
        munmap(f->bytes, f->size_bytes);
        file_write_abort(&f->write);
    }
    *f = (struct pack_file){.write.fd = -1};
}
