/* disk_values: fixed-size slots in preallocated files of a directory, "values.0000" and so on.
 *
 *     struct disk_values *values;
 *     e = disk_values_open(&values, dir_fd, value_bytes, segment_slots, slots_count);
 *     e = disk_values_write(values, slot, value);          // ERR_FULL: no room on the disk
 *     e = disk_values_read(values, slot, value);
 *     disk_values_close(values);
 *
 * A file has segment_slots slots of DISK_SLOT_BYTES(value_bytes); it is made, and its space taken, when
 * its first slot is written. Reads and writes go through the kernel's page cache (no O_DIRECT): what was
 * stored a minute ago is read at memory speed, and what is used never leaves the file in the kernel's memory.
 *
 * Rules: nothing is mapped, so a file that is cut or gone is an error and no signal. What is read was
 * written into this slot at some time, or is anything at all: the caller checks. Owner: one thread. */
#ifndef TANDEM_KV_DISK_VALUES_H
#define TANDEM_KV_DISK_VALUES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum { DISK_SEGMENTS_MAX = 4096 };
#define DISK_SLOT_BYTES(value_bytes) (((uint64_t)(value_bytes) + 4095) & ~(uint64_t)4095)

struct disk_values;

/* dir_fd stays the caller's and open. slots_count <= DISK_SEGMENTS_MAX * segment_slots. ERR_MEMORY. */
enum err disk_values_open(struct disk_values **values, int dir_fd, size_t value_bytes,
                          uint32_t segment_slots, uint32_t slots_count);
void disk_values_close(struct disk_values *values); /* NULL is allowed */

/* Makes sure that this slot's file is there and has its space. ERR_FULL, ERR_IO. */
enum err disk_values_ready(struct disk_values *values, uint32_t slot);
/* ERR_FORMAT: the file ends before; ERR_NOT_FOUND: there is none; ERR_IO. */
enum err disk_values_read(struct disk_values *values, uint32_t slot, void *value);
/* ERR_FULL: the disk or a limit of the process; ERR_IO. After an error the slot has anything. */
enum err disk_values_write(struct disk_values *values, uint32_t slot, const void *value);

/* How many slots one file has, for a store of so many. */
uint32_t disk_values_segment(size_t value_bytes, uint32_t slots_count);
/* Deletes the files from this number on. ERR_IO. */
enum err disk_values_delete(int dir_fd, uint32_t first_segment);
/* Whether a file of this name is one of them. */
bool disk_values_named(const char *name);

#endif
