/* geometry: the shape of the KV cache that one node holds, told in its hello and checked wherever
 * two nodes meet. Pure arithmetic on a plain struct.
 *
 * One block holds block_tokens consecutive tokens of one sequence for all layers of the node:
 * BLOCK_TOKENS, or a multiple of it where a transfer's other side has other blocks (xfer/slice.h).
 * Within a block the layers follow each other; within a layer first K of all kv heads, then V:
 *
 *     K        [kv_heads][head_dim / 2][16 tokens][2]
 *     V, bf16  [kv_heads][16 tokens / 2][head_dim][2]
 *     V, fp32  [kv_heads][16 tokens][head_dim]
 *
 * so that attention needs no horizontal sums (docs/numerics.md, A7). That order is KV_LAYOUT_CPU; in
 * KV_LAYOUT_CUDA both K and V are [kv_heads][16 tokens][head_dim], as tensor cores take them. Any thread. */
#ifndef TANDEM_COMMON_GEOMETRY_H
#define TANDEM_COMMON_GEOMETRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/host_device.h"

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
static inline size_t kv_token_bytes(const struct kv_geometry *g)
{
    return (size_t)2 * g->layers_count * g->kv_heads * g->head_dim * dtype_bytes(g->dtype);
}
static inline bool kv_geometry_equal(const struct kv_geometry *a, const struct kv_geometry *b)
{
    return a->layers_count == b->layers_count && a->kv_heads == b->kv_heads &&
           a->head_dim == b->head_dim && a->block_tokens == b->block_tokens &&
           a->layout == b->layout && a->dtype == b->dtype;
}
/* Which part of a model's KV a node holds where several share it (the ranks of a tensor- or
 * pipeline-parallel node): the geometry's layers_count layers of layers_all from layers_first on, and of each
 * of them its kv_heads of heads_all. All zero: the node holds everything. */
struct kv_part {
    uint32_t layers_first, layers_all;
    uint32_t heads_first, heads_all;
};

/* Layers and kv heads, numbered as in the model. */
struct kv_range {
    uint32_t layers_first, layers_end, heads_first, heads_end;
};

/* The part with the model's sizes told. */
static inline struct kv_part kv_part_told(const struct kv_geometry *g, struct kv_part p)
{
    if (p.layers_all == 0) p.layers_all = g->layers_count;
    if (p.heads_all == 0) p.heads_all = g->kv_heads;
    return p;
}
/* Whether it lies in the model. */
static inline bool kv_part_fits(const struct kv_geometry *g, const struct kv_part *told)
{
    return (uint64_t)told->layers_first + g->layers_count <= told->layers_all &&
           (uint64_t)told->heads_first + g->kv_heads <= told->heads_all;
}
/* Of a part that fits. */
static inline struct kv_range kv_part_range(const struct kv_geometry *g, const struct kv_part *told)
{
    return (struct kv_range){told->layers_first, told->layers_first + g->layers_count,
                             told->heads_first, told->heads_first + g->kv_heads};
}
static inline bool kv_range_empty(const struct kv_range *r)
{
    return r->layers_first >= r->layers_end || r->heads_first >= r->heads_end;
}
/* What is in both. */
static inline struct kv_range kv_range_both(struct kv_range a, const struct kv_range *b)
{
    if (a.layers_first < b->layers_first) a.layers_first = b->layers_first;
    if (a.layers_end > b->layers_end) a.layers_end = b->layers_end;
    if (a.heads_first < b->heads_first) a.heads_first = b->heads_first;
    if (a.heads_end > b->heads_end) a.heads_end = b->heads_end;
    return a;
}
/* Whether `inner` has nothing that `outer` has not. */
static inline bool kv_range_within(const struct kv_range *inner, const struct kv_range *outer)
{
    return inner->layers_first >= outer->layers_first && inner->layers_end <= outer->layers_end &&
           inner->heads_first >= outer->heads_first && inner->heads_end <= outer->heads_end;
}

/* Checksum of a payload of `words` 64-bit little-endian words, which a device computes while it copies
 * them, in any order: the sum of the words, each with its place in it and sent through splitmix64's
 * finalizer (Steele, Lea and Flood, 2014). */
HOST_DEVICE static inline uint64_t kv_hash_word(uint64_t word, uint64_t place)
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
/* Whether both hold KV of one model, in orders that can meet; perhaps not the same part of it. */
static inline bool kv_same_model(const struct kv_geometry *a, const struct kv_part *a_told,
                                 const struct kv_geometry *b, const struct kv_part *b_told)
{
    return a_told->layers_all == b_told->layers_all && a_told->heads_all == b_told->heads_all &&
           a->head_dim == b->head_dim && a->dtype == b->dtype &&
           kv_layout_between(a->layout, b->layout) != 0;
}
/* How many blocks of so many tokens have one of tokens [first, end), not none. */
static inline uint32_t blocks_between(uint32_t block_tokens, uint32_t first, uint32_t end)
{
    return (end - 1) / block_tokens - first / block_tokens + 1;
}
/* Of BLOCK_TOKENS. */
static inline uint32_t blocks_for_tokens(uint32_t tokens)
{
    return tokens / BLOCK_TOKENS + (tokens % BLOCK_TOKENS != 0);
}
/* What attention looks back at: the last `tokens` tokens and the first `sinks`, a multiple of
 * BLOCK_TOKENS; tokens 0: at all of them. */
struct kv_window {
    uint32_t tokens, sinks;
};
/* The first token behind the sinks that the row at `position` sees, itself at the latest. */
static inline uint32_t kv_window_first(struct kv_window w, uint32_t position)
{
    return w.tokens && position >= w.tokens ? position - w.tokens + 1 : 0;
}
/* Tokens [sinks, this), whole blocks, are seen by no row from `position` on; none of them: sinks. */
static inline uint32_t kv_window_gone(struct kv_window w, uint32_t position)
{
    uint32_t gone = kv_window_first(w, position) / BLOCK_TOKENS * BLOCK_TOKENS;
    return gone > w.sinks ? gone : w.sinks;
}
/* How many of the last blocks behind the sinks the first row of a new block sees; 0: all of them. */
static inline uint32_t kv_window_reach(struct kv_window w)
{
    return w.tokens == 0 ? 0 : w.tokens == 1 ? 1 : (w.tokens - 2) / BLOCK_TOKENS + 1;
}
/* What a sequence that begins to generate behind so many tokens holds: of those that its last one sees, and
 * room for one more. */
static inline uint32_t kv_window_blocks_kept(struct kv_window w, uint32_t tokens)
{
    uint32_t gone = tokens > 0 ? kv_window_gone(w, tokens - 1) : w.sinks;
    return blocks_for_tokens(tokens + 1) - (gone - w.sinks) / BLOCK_TOKENS;
}
/* The most that a sequence of so many tokens holds of them when only its last `window` are kept, which
 * may begin anywhere in a block; 0: all are kept. */
static inline uint32_t blocks_held(uint32_t tokens, uint32_t window)
{
    uint32_t all = blocks_for_tokens(tokens);
    if (window == 0) return all;
    uint64_t kept = ((uint64_t)window + BLOCK_TOKENS - 2) / BLOCK_TOKENS + 1;
    return kept < all ? (uint32_t)kept : all;
}
/* The same with sinks, while at most `ahead` tokens are computed before KV behind them is let go of. */
static inline uint32_t kv_window_blocks(struct kv_window w, uint32_t tokens, uint32_t ahead)
{
    uint32_t all = blocks_for_tokens(tokens);
    if (w.tokens == 0) return all;
    if (ahead > tokens) ahead = tokens;
    uint64_t kept = (uint64_t)w.sinks / BLOCK_TOKENS + blocks_held(tokens, w.tokens + ahead);
    return kept < all ? (uint32_t)kept : all;
}

#endif
