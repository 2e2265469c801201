/* pack_file: packed weights as one file that all engines of a host map, or as memory.
 *
 *     struct pack_file f;
 *     struct pack_want want = {.model = fingerprint, .layout = …, .dtype = …, .sections = …};
 *     if (pack_file_map(&f, path, &want) != OK) {           // not there, or not to be trusted
 *         if ((e = pack_file_create(&f, path, &want)) != OK) return e;
 *         ... write every section at f.bytes + want.section[i].offset ...
 *         if ((e = pack_file_seal(&f, &want)) != OK) return e;
 *     }
 *     ... read f.bytes ...
 *     pack_file_close(&f);
 *
 * The file, numbers little-endian:
 *
 *     offset  size  meaning
 *     0       8     magic "TNDMPACK"
 *     8       4     version of this table, PACK_VERSION
 *     12      4     sections_count
 *     16      16    fingerprint of the model: hi, lo
 *     32      4     weight layout of the backend (an instruction set class)
 *     36      4     dtype that the weights compute in
 *     40      8     bytes of the whole file
 *     48      8     XXH3-64 of everything behind the header
 *     56      8     XXH3-64 of the header with this field zero
 *     64      16n   per section: offset, bytes; offsets are multiples of PACK_ALIGN
 *     ...           the sections, in an order that weights.c derives from the model's shape
 *
 * Rules: a file is written beside its name and renamed when it is complete and on disk, so a name
 * always stands for a whole file. It is used only if all of the header is what this model asks for
 * and both sums are right; the contents' sum is skipped above PACK_VERIFY_BYTES_MAX, where reading
 * everything would be what the cache is there to avoid. Whatever is wrong with it, the caller packs
 * again. Room on the disk is taken before the first byte is written.
 * Owner: one thread. */
#ifndef TANDEM_ENGINE_PACK_FILE_H
#define TANDEM_ENGINE_PACK_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/file.h"
#include "common/geometry.h"
#include "common/id.h"

#define PACK_VERSION 1
#define PACK_ALIGN 64
#define PACK_VERIFY_BYTES_MAX ((uint64_t)1 << 30)

struct pack_section {
    uint64_t offset, bytes;
};

struct pack_want {
    struct id128 model;
    uint32_t layout;
    enum dtype dtype;
    uint32_t sections_count;
    struct pack_section *section; /* bytes are given, offsets are filled in by pack_want_place */
    uint64_t file_bytes;          /* by pack_want_place, too */
};

struct pack_file {
    unsigned char *bytes;
    size_t size_bytes;
    bool in_file;            /* shared with others through the page cache */
    struct file_write write; /* between create and seal of one in a file */
};

/* Lays the sections out behind the header. ERR_FORMAT: more than 2^62 bytes. */
enum err pack_want_place(struct pack_want *want);

enum err pack_file_map(struct pack_file *f, const char *path, const struct pack_want *want);
/* `path` NULL: in memory. Writable and zero until it is sealed. */
enum err pack_file_create(struct pack_file *f, const char *path, const struct pack_want *want);
enum err pack_file_seal(struct pack_file *f, const struct pack_want *want);
void pack_file_close(struct pack_file *f); /* zeroed, unsealed or closed ones are allowed */

#endif
