/* kv_slots: which key is in which of a fixed number of slots, and which of them was used least recently.
 * The memory and disk tiers' index; the values are theirs.
 *
 *     struct kv_slots *slots;
 *     if ((e = kv_slots_new(&slots, slots_count)) != OK) return e;
 *     uint32_t at = kv_slots_find(slots, key);                  // KV_SLOT_NONE: not there
 *     if (at == KV_SLOT_NONE) {
 *         at = kv_slots_free_first(slots);                      // KV_SLOT_NONE: all are used
 *         if (at == KV_SLOT_NONE) kv_slots_remove(slots, at = kv_slots_oldest(slots));
 *         kv_slots_take(slots, at);                             // nobody else is given it meanwhile
 *         kv_slots_put(slots, at, key);                         // now the newest; or kv_slots_give_back
 *     }
 *     kv_slots_touch(slots, at);                                // ... and now again
 *
 * Rules: all of it is O(1) and nothing is allocated after kv_slots_new, which takes at most
 * KV_SLOTS_BYTES for each slot. A key is put once. Owner: one thread. */
#ifndef TANDEM_KV_SLOTS_H
#define TANDEM_KV_SLOTS_H

#include <stdint.h>

#include "common/err.h"
#include "common/id.h"

#define KV_SLOT_NONE UINT32_MAX
enum { KV_SLOTS_BYTES = 48, KV_SLOTS_MAX = 1 << 30 };

struct kv_slots;

/* slots_count: 1 ... KV_SLOTS_MAX. ERR_MEMORY. */
enum err kv_slots_new(struct kv_slots **slots, uint32_t slots_count);
void kv_slots_free(struct kv_slots *slots); /* NULL is allowed */

uint32_t kv_slots_used(const struct kv_slots *slots); /* how many */
uint32_t kv_slots_find(const struct kv_slots *slots, struct id128 key);
/* The one that was let go of last; of those that were never used, the lowest. */
uint32_t kv_slots_free_first(const struct kv_slots *slots);
uint32_t kv_slots_oldest(const struct kv_slots *slots); /* KV_SLOT_NONE: none is used */
struct id128 kv_slots_key(const struct kv_slots *slots, uint32_t slot); /* of a used one */
/* Up to `room` keys of those from slot *place on, which moves on; KV_SLOT_NONE: that was the last. It looks at no more
 * than some thousand slots, so there may be none although others follow. */
uint32_t kv_slots_list(const struct kv_slots *slots, uint32_t *place, struct id128 *keys,
                       uint32_t room);

void kv_slots_put(struct kv_slots *slots, uint32_t slot,
                  struct id128 key); /* a free or taken one */
void kv_slots_touch(struct kv_slots *slots, uint32_t slot);
void kv_slots_remove(struct kv_slots *slots, uint32_t slot); /* a used one becomes free */
/* A free one is neither free nor used until it is put or given back. */
void kv_slots_take(struct kv_slots *slots, uint32_t slot);
void kv_slots_give_back(struct kv_slots *slots, uint32_t slot);

#endif
