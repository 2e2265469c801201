/* fingerprint: the name of a model by its contents, equal on every host that holds the same bytes.
 *
 *     struct id128 model;
 *     if ((e = model_fingerprint(&model, &tensors, cache_dir)) != OK) return e;
 *
 * It is XXH3-128 over config.json and every safetensors file. Reading all weights takes a while, so
 * the answer is remembered in cache_dir/HEX.model, HEX standing for what stat says of the files
 * (path, device, inode, size, time of change): the next start reads 32 bytes.
 *
 *     offset  size  meaning
 *     0       8     magic "TNDMNAME"
 *     8       16    fingerprint: hi, lo
 *     24      8     XXH3-64 of the 24 bytes before
 *
 * Rules: `cache_dir` NULL: nothing is remembered. A note that cannot be read or written is no error.
 * Owner: one thread. */
#ifndef TANDEM_ENGINE_FINGERPRINT_H
#define TANDEM_ENGINE_FINGERPRINT_H

#include "common/err.h"
#include "common/id.h"
#include "engine/safetensors.h"

enum err model_fingerprint(struct id128 *out, const struct tensors *t, const char *cache_dir);

/* The folder for what can be made again, made if it is not there: `wanted`, else TANDEM_CACHE, else
 * XDG_CACHE_HOME/tandem, else HOME/.cache/tandem. "" in `out`: there is none ("none", or nothing is
 * set, or it cannot be made, which is logged). */
enum { CACHE_DIR_BYTES = 3072 };
void cache_dir_find(char out[CACHE_DIR_BYTES], const char *wanted);

#endif
