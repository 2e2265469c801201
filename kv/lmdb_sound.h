/* lmdb_sound: whether a file of LMDB 0.9 is one that LMDB can be trusted with. LMDB maps the file and follows
 * what it finds there, so a damaged one is a crash; this walks the same pages with bounds.
 *
 *     if ((e = lmdb_sound(fd, bytes_max, 16, 16)) == ERR_FORMAT) ... // begin a new one
 *
 * It is OK for a file that holds nothing but an unnamed database of keys and data of these sizes, whose
 * pages lie within bytes_max, are reached once each, have nodes inside themselves and keys in order, and
 * whose list of free pages names no page that is in use.
 *
 * Rules: reads with pread only. OK says nothing about what the data mean. Owner: any thread; no other may
 * write the file meanwhile. */
#ifndef TANDEM_KV_LMDB_SOUND_H
#define TANDEM_KV_LMDB_SOUND_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

/* ERR_FORMAT, and what is wrong; ERR_MEMORY; ERR_UNSUPPORTED: this machine has other pages. */
enum err lmdb_sound(int fd, uint64_t bytes_max, size_t key_bytes, size_t data_bytes);

#endif
