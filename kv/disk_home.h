/* disk_home: a disk tier's directory: made, held against other processes, and of one model.
 *
 *     struct disk_home home;
 *     disk_home_init(&home, "/var/cache/tandem/p0");
 *     e = disk_home_take(&home);                           // ERR_IO: what cannot be done, and what to do
 *     e = disk_home_settle(&home, &meta, slots_count, &emptied);
 *     ... files are opened below home.dir_fd ...
 *     disk_home_leave(&home);
 *
 *     lock            one process at a time (flock)
 *     meta            whose values these are (kv/disk_meta.h)
 *     index           key -> slot and stamp, LMDB (kv/disk_index.h)
 *     values.NNNN     the slots (kv/disk_values.h)
 *
 * Rules: nothing that has another name is ever deleted, and a directory that has such files and no meta is
 * refused. Owner: one thread. */
#ifndef TANDEM_KV_DISK_HOME_H
#define TANDEM_KV_DISK_HOME_H

#include <limits.h>
#include <stdint.h>

#include "kv/disk_meta.h"

struct disk_home {
    char where[PATH_MAX];
    int dir_fd, lock_fd; /* -1: not taken */
};

void disk_home_init(struct disk_home *home, const char *where); /* shorter than PATH_MAX */
void disk_home_leave(struct disk_home *home);
enum err disk_home_take(struct disk_home *home);

/* meta: whose values are wanted; segment_slots becomes what the files have. What is somebody else's of the index
 * and the values is deleted, and *emptied says why, in a static text; else it stays. ERR_INVALID: it is no
 * tier's directory; ERR_FULL, ERR_IO. */
enum err disk_home_settle(struct disk_home *home, struct disk_meta *meta, uint32_t slots_count,
                          const char **emptied);
/* Deletes the index and all values. */
enum err disk_home_empty(struct disk_home *home);

#endif
