/* disk_index: which key's value is in which slot of a disk tier, and when it was used last; kept with LMDB
 * in one file.
 *
 *     struct disk_index *index;
 *     e = disk_index_open(&index, "/var/cache/tandem/p0/index", slots_count);
 *     if (e == ERR_FORMAT) ... unlink it, open again ...                      // damaged: begun anew
 *     e = disk_index_load(index, on_entry, ctx);                              // in no order that matters
 *     e = disk_index_update(index, change, changes_count);                    // all of them or none
 *     disk_index_close(index);
 *
 * A record has the 16 bytes of a key and 16 bytes: slot (4), zero (4), stamp (8). A commit reaches the kernel,
 * so a killed process loses nothing; it is flushed to the disk on close only, so after a power loss the file
 * may be behind, or damaged, which is seen at open (kv/lmdb_sound.h).
 *
 * Rules: what it says is believed by nobody: a value says itself whose it is. The file never grows beyond
 * disk_index_bytes, which it takes from the disk at once where the file system can. Owner: one thread; the
 * caller keeps other processes away. */
#ifndef TANDEM_KV_DISK_INDEX_H
#define TANDEM_KV_DISK_INDEX_H

#include <stdint.h>

#include "common/err.h"
#include "common/id.h"

/* A record takes 42 bytes of a leaf, which may be a quarter full. */
enum { DISK_INDEX_CHANGES_MAX = 512, DISK_INDEX_RECORD = 192 };
#define DISK_INDEX_DROP UINT32_MAX

struct disk_index;

struct disk_index_change {
    struct id128 key;
    uint32_t slot; /* DISK_INDEX_DROP: the key has none any more */
    uint64_t stamp;
};

uint64_t disk_index_bytes(uint32_t slots_count);
/* ERR_FORMAT: damaged; ERR_FULL: no room on the disk; ERR_IO. */
enum err disk_index_open(struct disk_index **index, const char *path, uint32_t slots_count);
void disk_index_close(struct disk_index *index); /* flushed; NULL is allowed */

typedef enum err disk_index_fn(void *ctx, const struct disk_index_change *entry);
enum err disk_index_load(struct disk_index *index, disk_index_fn *on_entry, void *ctx);
/* At most DISK_INDEX_CHANGES_MAX. ERR_FULL: the disk is; nothing was changed. ERR_FORMAT: it cannot be used
 * any more and is to be begun anew. ERR_IO. */
enum err disk_index_update(struct disk_index *index, const struct disk_index_change *change,
                           uint32_t changes_count);

#endif
