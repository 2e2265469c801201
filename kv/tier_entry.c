/* The header, in front of the KV:
 *
 *     offset  size  what
 *          0     8  "tdmkv\0\0" and the format's version
 *          8     8  bytes of header and KV
 *         16    16  space: model, numerics and geometry
 *         32    16  the entry's key
 *         48    32  its digest
 *         80     8  XXH3 (64 bits) of all before it and of the KV
 *         88    40  zero
 *
 * 128 bytes, so that the KV is as well aligned as the entry. The checksum is XXH3 and not the links'
 * kv_hash: the tier thread computes it over host memory, where XXH3 is several times as fast. */
#include "kv/tier_entry.h"

#include <sodium.h>
#include <string.h>

#include "common/hash.h"
#include "common/prefix_hash.h"

enum { HEADER_BYTES = 128 };

enum { VERSION = 3 }; /* 1: keys had no prefix hash; 2: nothing had a digest */
static const char magic[8] = {'t', 'd', 'm', 'k', 'v', 0, 0, VERSION};

struct header {
    char magic[8];
    uint64_t bytes;
    struct id128 space, key;
    unsigned char digest[KV_TIER_DIGEST_BYTES];
    uint64_t sum;
    char zero[HEADER_BYTES - 88];
};
_Static_assert(sizeof(struct header) == HEADER_BYTES && offsetof(struct header, sum) == 80,
               "the table above");

struct id128 kv_tier_space(struct id128 model_fingerprint, uint64_t numerics_id,
                           const struct kv_geometry *geometry, const struct kv_part *part)
{
    const uint64_t facts[] = {VERSION,
                              numerics_id,
                              geometry->layers_count,
                              geometry->kv_heads,
                              geometry->head_dim,
                              geometry->block_tokens,
                              geometry->layout,
                              (uint64_t)geometry->dtype,
                              part->layers_first,
                              part->layers_all,
                              part->heads_first,
                              part->heads_all};
    return hash_chain(model_fingerprint, facts, sizeof facts);
}

static struct kv_tier_name name_of(const void *bytes, size_t size, uint64_t prefix_hash)
{
    struct kv_tier_name name = {.key.lo = prefix_hash};
    CHECK(crypto_generichash(name.digest, sizeof name.digest, bytes, size, NULL, 0) == 0);
    memcpy(&name.key.hi, name.digest, sizeof name.key.hi);
    return name;
}

struct kv_tier_name kv_tier_name(struct id128 space, uint64_t salt)
{
    const uint64_t root[] = {space.hi, space.lo, salt};
    return name_of(root, sizeof root, salt); /* the parent of a prompt's first block */
}

struct kv_tier_name kv_tier_name_next(const struct kv_tier_name *parent, const uint32_t *tokens)
{
    struct {
        unsigned char digest[KV_TIER_DIGEST_BYTES];
        uint32_t tokens[BLOCK_TOKENS];
    } block;
    memcpy(block.digest, parent->digest, sizeof block.digest);
    memcpy(block.tokens, tokens, sizeof block.tokens);
    return name_of(&block, sizeof block, prefix_hash_block(parent->key.lo, tokens));
}

size_t kv_tier_entry_bytes(const struct kv_geometry *geometry)
{
    return HEADER_BYTES + ((kv_block_bytes(geometry) + 63) & ~(size_t)63);
}

void *kv_tier_entry_kv(void *entry)
{
    return (char *)entry + HEADER_BYTES;
}

static uint64_t sum_of(const struct header *header, const void *entry, size_t bytes)
{
    struct hash_stream s;
    hash_start(&s);
    hash_more(&s, header, offsetof(struct header, sum));
    hash_more(&s, (const char *)entry + HEADER_BYTES, bytes - HEADER_BYTES);
    return hash_end64(&s);
}

void kv_tier_entry_seal(void *entry, size_t bytes, struct id128 space,
                        const struct kv_tier_name *name)
{
    struct header h = {.bytes = bytes, .space = space, .key = name->key};
    memcpy(h.magic, magic, sizeof magic);
    memcpy(h.digest, name->digest, sizeof h.digest);
    h.sum = sum_of(&h, entry, bytes);
    memcpy(entry, &h, sizeof h);
}

/* Whether it says that it is this one; nothing of the KV is looked at. */
static bool header_is(const struct header *h, size_t bytes, struct id128 space, struct id128 key)
{
    static const char zero[sizeof h->zero];
    return memcmp(h->magic, magic, sizeof magic) == 0 && h->bytes == bytes &&
           id128_equal(h->space, space) && id128_equal(h->key, key) &&
           memcmp(h->zero, zero, sizeof zero) == 0;
}

bool kv_tier_entry_sound(const void *entry, size_t bytes, struct id128 space, struct id128 key)
{
    struct header h;
    if (bytes < sizeof h) return false;
    memcpy(&h, entry, sizeof h);
    return header_is(&h, bytes, space, key) && h.sum == sum_of(&h, entry, bytes);
}

bool kv_tier_entry_check(const void *entry, size_t bytes, struct id128 space,
                         const struct kv_tier_name *name)
{
    struct header h;
    if (bytes < sizeof h) return false;
    memcpy(&h, entry, sizeof h);
    return memcmp(h.digest, name->digest, sizeof h.digest) == 0 &&
           kv_tier_entry_sound(entry, bytes, space, name->key);
}
