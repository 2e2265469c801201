/* kv_tier_entry: what a tier keeps of one block: a header, then the block's KV in the pool's own order.
 *
 *     struct id128 space = kv_tier_space(fingerprint, numerics_id, &geometry);
 *     struct id128 key = kv_tier_key(space, salt);                 // before the first block
 *     key = kv_tier_key_next(key, tokens);                         // of the block of tokens[0 … 16)
 *     size_t bytes = kv_tier_entry_bytes(&geometry);               // of header and KV: a multiple of 64
 *     memcpy(kv_tier_entry_kv(entry), kv, kv_block_bytes(&geometry));
 *     kv_tier_entry_seal(entry, bytes, space, parent, key, tokens);
 *     if (!kv_tier_entry_check(entry, bytes, space, parent, key, tokens)) ... // a miss: remove it
 *
 * A key is the chain hash (XXH3, 128 bits) over space, salt and all tokens up to the block's end; its lower half is
 * the block's prefix hash (common/prefix_hash.h), so that who has a key can tell routers of it. The header
 * has the space, the parent's key and the block's tokens again, and they are compared: an entry is right
 * only if it says itself that it belongs behind this parent. The checksum is of the KV and of the header.
 *
 * Rules: pure functions on plain bytes, little-endian; any thread. Nothing of an entry is trusted before
 * kv_tier_entry_check has said yes. */
#ifndef TANDEM_KV_TIER_ENTRY_H
#define TANDEM_KV_TIER_ENTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/geometry.h"
#include "common/id.h"

struct id128 kv_tier_space(struct id128 model_fingerprint, uint64_t numerics_id,
                           const struct kv_geometry *geometry);
struct id128 kv_tier_key(struct id128 space, uint64_t salt);
struct id128 kv_tier_key_next(struct id128 parent,
                              const uint32_t *tokens); /* BLOCK_TOKENS of them */

/* The block's name among routers. */
static inline uint64_t kv_tier_key_hash(struct id128 key)
{
    return key.lo;
}

size_t kv_tier_entry_bytes(const struct kv_geometry *geometry);
void *kv_tier_entry_kv(void *entry); /* 64-byte aligned if the entry is */
/* Writes the header of an entry whose KV is in place. */
void kv_tier_entry_seal(void *entry, size_t bytes, struct id128 space, struct id128 parent,
                        struct id128 key, const uint32_t *tokens);
/* For tiers, which know neither parent nor tokens: it is whole, and of this key. */
bool kv_tier_entry_sound(const void *entry, size_t bytes, struct id128 space, struct id128 key);
bool kv_tier_entry_check(const void *entry, size_t bytes, struct id128 space, struct id128 parent,
                         struct id128 key, const uint32_t *tokens);

#endif
