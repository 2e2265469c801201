/* regret: hashes of blocks that were evicted lately, so that one which is made again is known as one that
 * should have stayed.
 *
 *     struct kv_regret *regret;
 *     if ((e = kv_regret_new(&regret, blocks_count)) != OK) return e;
 *     kv_regret_evicted(regret, hash);
 *     if (kv_regret_back(regret, hash)) ...          // once for each time that it was evicted
 *
 * Rules: a fixed table of two slots for each block of the pool, up to KV_REGRET_SLOTS_MAX; a later hash
 * takes the place of an earlier one of the same slot. A figure for people: nothing depends on it.
 * Nothing is allocated after kv_regret_new. Owner: the loop thread. */
#ifndef TANDEM_KV_REGRET_H
#define TANDEM_KV_REGRET_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

enum { KV_REGRET_SLOTS_MAX = 1 << 22 };

struct kv_regret;

enum err kv_regret_new(struct kv_regret **regret, uint32_t blocks_count);
void kv_regret_free(struct kv_regret *regret); /* NULL is allowed */
void kv_regret_evicted(struct kv_regret *regret, uint64_t hash);
bool kv_regret_back(struct kv_regret *regret, uint64_t hash);

#endif
