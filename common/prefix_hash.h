/* prefix_hash: the name of a block of cached KV: a hash of the tokens that lead to it, chained block by
 * block. Nodes know their blocks by it, tell routers of them by it, and routers look prompts up by it.
 *
 *     uint64_t hash = prefix_hash_block(salt, tokens);           // of a prompt's first 16 tokens
 *     hash = prefix_hash_block(hash, tokens + BLOCK_TOKENS);     // of its second 16
 *     prefix_hash_chain(salt, tokens, blocks_count, hashes);     // all of them
 *
 * Rules: the tenant's salt is the parent of the first block, so one tenant's prompts have other hashes than
 * another's. Two prompts may share a hash: who serves KV by it compares the tokens too (kv/prefix.h).
 * Values are the same on every machine of one byte order. Pure. Any thread. */
#ifndef TANDEM_COMMON_PREFIX_HASH_H
#define TANDEM_COMMON_PREFIX_HASH_H

#include <stdint.h>
#include <string.h>

#include "common/geometry.h"
#include "common/hash.h"

static inline uint64_t prefix_hash_block(uint64_t parent, const uint32_t tokens[BLOCK_TOKENS])
{
    struct {
        uint64_t parent;
        uint32_t tokens[BLOCK_TOKENS];
    } bytes = {.parent = parent};
    memcpy(bytes.tokens, tokens, sizeof bytes.tokens);
    return hash64(&bytes, sizeof bytes);
}

static inline void prefix_hash_chain(uint64_t salt, const uint32_t *tokens, uint32_t blocks_count,
                                     uint64_t *hashes)
{
    uint64_t parent = salt;
    for (uint32_t i = 0; i < blocks_count; i++)
        hashes[i] = parent = prefix_hash_block(parent, tokens + (size_t)i * BLOCK_TOKENS);
}

#endif
