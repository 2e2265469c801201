/* hash: XXH3, for checksums, prefix chains and tables. Not against attackers.
 *
 *     uint64_t sum = hash64(bytes, size);
 *     struct hash_stream s;                             // on the stack; about 600 bytes
 *     hash_start(&s);
 *     hash_more(&s, header, header_bytes);              // any number of pieces, any split
 *     hash_more(&s, body, body_bytes);
 *     sum = hash_end64(&s);                             // equals hash64 of the pieces joined
 *
 *     struct id128 h = hash_chain(parent, tokens, 16 * sizeof *tokens);   // prefix cache
 *
 * Rules: values are the same on every machine of one byte order and may be stored and sent. Any
 * thread; a stream belongs to one. */
#ifndef TANDEM_COMMON_HASH_H
#define TANDEM_COMMON_HASH_H

#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#include "common/id.h"

struct hash_stream {
    XXH3_state_t state;
};

static inline uint64_t hash64(const void *bytes, size_t size)
{
    return XXH3_64bits(bytes, size);
}
static inline struct id128 hash128(const void *bytes, size_t size)
{
    XXH128_hash_t h = XXH3_128bits(bytes, size);
    return (struct id128){h.high64, h.low64};
}

static inline void hash_start(struct hash_stream *s)
{
    XXH3_128bits_reset(&s->state); /* the 64-bit digest is taken from the same state */
}
static inline void hash_more(struct hash_stream *s, const void *bytes, size_t size)
{
    if (size > 0) XXH3_128bits_update(&s->state, bytes, size);
}
static inline uint64_t hash_end64(const struct hash_stream *s)
{
    return XXH3_64bits_digest(&s->state);
}
static inline struct id128 hash_end128(const struct hash_stream *s)
{
    XXH128_hash_t h = XXH3_128bits_digest(&s->state);
    return (struct id128){h.high64, h.low64};
}

/* The hash of all that `parent` stands for, followed by these bytes. ID128_NONE starts a chain. */
static inline struct id128 hash_chain(struct id128 parent, const void *bytes, size_t size)
{
    struct hash_stream s;
    hash_start(&s);
    hash_more(&s, &parent, sizeof parent);
    hash_more(&s, bytes, size);
    return hash_end128(&s);
}

/* Spreads a key's bits over a table's index; for ids that are not random themselves. */
static inline uint64_t hash_mix(struct id128 key)
{
    uint64_t h = key.lo ^ (key.hi * 0x9e3779b97f4a7c15u + 0x9e3779b97f4a7c15u);
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

#endif
