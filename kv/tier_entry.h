/* kv_tier_entry: what a tier keeps of one block: a header, then the block's KV in the pool's own order.
 *
 *     struct id128 space = kv_tier_space(fingerprint, numerics_id, &geometry, &part);
 *     struct kv_tier_name name = kv_tier_name(space, salt);        // before the first block
 *     name = kv_tier_name_next(&name, tokens);                     // of the block of tokens[0 … 16)
 *     size_t bytes = kv_tier_entry_bytes(&geometry);               // of header and KV: a multiple of 64
 *     memcpy(kv_tier_entry_kv(entry), kv, kv_block_bytes(&geometry));
 *     kv_tier_entry_seal(entry, bytes, space, &name);
 *     if (!kv_tier_entry_check(entry, bytes, space, &name)) ...    // a miss: remove it
 *
 * A name is a key, by which stores find the block, and a digest, by which it is known: a chain of BLAKE2b (256
 * bits) over space, salt and all tokens up to the block's end. Who writes prompts chooses the tokens, so
 * the hash must be one of which nobody can make two prompts that agree; XXH3, which is enough for the prefix
 * cache as that compares tokens, is not. The key's upper half is of the digest, its lower half the block's prefix
 * hash (common/prefix_hash.h), so that who has a key can tell routers of it. Two keys that are equal, whether
 * by chance or by somebody's work, are a miss: the entry's digest is another one. The checksum, of header
 * and KV, is against damage.
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

enum { KV_TIER_DIGEST_BYTES = 32 };

struct kv_tier_name {
    struct id128 key;
    unsigned char digest[KV_TIER_DIGEST_BYTES];
};

/* part: which one of the model the geometry is (kv_part_told). */
struct id128 kv_tier_space(struct id128 model_fingerprint, uint64_t numerics_id,
                           const struct kv_geometry *geometry, const struct kv_part *part);
struct kv_tier_name kv_tier_name(struct id128 space, uint64_t salt);
struct kv_tier_name kv_tier_name_next(const struct kv_tier_name *parent,
                                      const uint32_t *tokens); /* BLOCK_TOKENS of them */

/* What routers call the block. */
static inline uint64_t kv_tier_key_hash(struct id128 key)
{
    return key.lo;
}

size_t kv_tier_entry_bytes(const struct kv_geometry *geometry);
void *kv_tier_entry_kv(void *entry); /* 64-byte aligned if the entry is */
/* Writes the header of an entry whose KV is in place. */
void kv_tier_entry_seal(void *entry, size_t bytes, struct id128 space,
                        const struct kv_tier_name *name);
/* For tiers, which know no digest: it is whole, and of this key. */
bool kv_tier_entry_sound(const void *entry, size_t bytes, struct id128 space, struct id128 key);
bool kv_tier_entry_check(const void *entry, size_t bytes, struct id128 space,
                         const struct kv_tier_name *name);

#endif
