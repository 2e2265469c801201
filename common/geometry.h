/* geometry: the shape of the KV cache that one node holds, told in its hello and checked wherever
 * two nodes meet. Pure arithmetic on a plain struct.
 *
 * One block holds BLOCK_TOKENS consecutive tokens of one sequence for all layers of the node.
 * Within a block the layers follow each other; within a layer first K of all kv heads, then V:
 *
 *     K        [kv_heads][head_dim / 2][16 tokens][2]
 *     V, bf16  [kv_heads][16 tokens / 2][head_dim][2]
 *     V, fp32  [kv_heads][16 tokens][head_dim]
 *
 * so that attention needs no horizontal sums (docs/numerics.md, A7). That order is KV_LAYOUT_CPU; in
 * KV_LAYOUT_CUDA both K and V are [kv_heads][16 tokens][head_dim], as tensor cores take them. */
#ifndef TANDEM_COMMON_GEOMETRY_H
#define TANDEM_COMMON_GEOMETRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* 1 was an order of CPU pools in which V's tokens did not lie in pairs. */
enum { BLOCK_TOKENS = 16, KV_LAYOUT_CUDA = 2, KV_LAYOUT_CPU = 3 };

enum dtype { DTYPE_NONE, DTYPE_F32, DTYPE_F16, DTYPE_BF16 };

static inline uint32_t dtype_bytes(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : t == DTYPE_NONE ? 0 : 2;
}

struct kv_geometry {
    uint32_t layers_count;
    uint32_t kv_heads;
    uint32_t head_dim; /* even */
    uint32_t block_tokens;
    uint32_t layout; /* KV_LAYOUT_… */
    enum dtype dtype;
};

/* Bytes of K (or of V, the same) of one block and layer. */
static inline size_t kv_part_bytes(const struct kv_geometry *g)
{
    return (size_t)g->kv_heads * g->head_dim * g->block_tokens * dtype_bytes(g->dtype);
}
/* Bytes of one block in one layer: K then V. */
static inline size_t kv_layer_bytes(const struct kv_geometry *g)
{
    return 2 * kv_part_bytes(g);
}
static inline size_t kv_block_bytes(const struct kv_geometry *g)
{
    return g->layers_count * kv_layer_bytes(g);
}
static inline bool kv_geometry_equal(const struct kv_geometry *a, const struct kv_geometry *b)
{
    return a->layers_count == b->layers_count && a->kv_heads == b->kv_heads &&
           a->head_dim == b->head_dim && a->block_tokens == b->block_tokens &&
           a->layout == b->layout && a->dtype == b->dtype;
}
/* Checksum of a payload of `words` 64-bit little-endian words, which a device computes while it copies
 * them, in any order: the sum of the words, each with its place in it and sent through splitmix64's
 * finalizer (Steele, Lea and Flood, 2014). */
static inline uint64_t kv_hash_word(uint64_t word, uint64_t place)
{
    uint64_t h = word + (place + 1) * 0x9e3779b97f4a7c15u;
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9u;
    h = (h ^ h >> 27) * 0x94d049bb133111ebu;
    return h ^ h >> 31;
}
static inline uint64_t kv_hash(const void *bytes, size_t words)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, (const char *)bytes + 8 * i, 8);
        sum += kv_hash_word(word, i);
    }
    return sum;
}

/* The order in which KV travels between pools of these two layouts: whose pool has another one converts.
 * 0: they cannot meet. */
static inline uint32_t kv_layout_between(uint32_t a, uint32_t b)
{
    bool known =
        (a == KV_LAYOUT_CPU || a == KV_LAYOUT_CUDA) && (b == KV_LAYOUT_CPU || b == KV_LAYOUT_CUDA);
    return a == b ? a : known ? KV_LAYOUT_CPU : 0;
}
/* Whether one's KV can go to the other. */
static inline bool kv_geometry_fits(const struct kv_geometry *a, const struct kv_geometry *b)
{
    struct kv_geometry same = *b;
    same.layout = a->layout;
    return kv_geometry_equal(a, &same) && kv_layout_between(a->layout, b->layout) != 0;
}
static inline uint32_t blocks_for_tokens(uint32_t tokens)
{
    return tokens / BLOCK_TOKENS + (tokens % BLOCK_TOKENS != 0);
}

#endif
