/* disk_meta: whose values a disk tier's directory has, and how its files are divided; one small file, "meta",
 * that is there whole or not at all.
 *
 *     struct disk_meta meta;
 *     e = disk_meta_read(dir_fd, &meta);       // ERR_NOT_FOUND: none, ERR_FORMAT: damaged
 *     e = disk_meta_write(dir_fd, &meta);      // ERR_FULL, ERR_IO
 *
 *     offset  size  what
 *          0     8  "tdmdisk" and the format's version
 *          8    16  space: model, numerics and geometry
 *         24     8  bytes of a value
 *         32     8  slots of each file
 *         40     8  XXH3 (64 bits) of all before it
 *
 * Rules: little-endian. Owner: any thread. */
#ifndef TANDEM_KV_DISK_META_H
#define TANDEM_KV_DISK_META_H

#include <stdint.h>

#include "common/err.h"
#include "common/id.h"

struct disk_meta {
    struct id128 space;
    uint64_t value_bytes, segment_slots;
};

enum err disk_meta_read(int dir_fd, struct disk_meta *meta);
enum err disk_meta_write(int dir_fd, const struct disk_meta *meta);

#endif
