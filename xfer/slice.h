/* slice: where the KV of 16 tokens and some kv heads lies in a layer of a pool's block, and how it gets
 * into and out of a payload.
 *
 *     struct slice s = {.unit = token % g->block_tokens / BLOCK_TOKENS, .heads_first = 2, .heads_count = 4};
 *     slice_get(g, layer_of_block, &s, payload);         // payload: slice_bytes(g, 4)
 *     slice_put(g, layer_of_block, &s, payload);         // the other way round
 *     if (slice_is_whole(g, &s)) ...;                    // the layer's bytes are the payload's: one copy
 *
 * Blocks of 16 * n tokens order their tokens as common/geometry.h shows for 16. A payload has the order
 * of a block of 16 tokens and of heads_count heads: K, then V. Where the pool's heads or tokens lie
 * further apart than that, a slice is many pieces: rows of equal length and distance.
 * Rules: pure. The geometry's layout is known (KV_LAYOUT_…), its block_tokens a multiple of 16, and the
 * slice lies in it: that is checked by whoever takes numbers from outside. Any thread. */
#ifndef TANDEM_XFER_SLICE_H
#define TANDEM_XFER_SLICE_H

#include "common/geometry.h"

struct slice {
    uint32_t unit;                     /* of the block's: its n-th 16 tokens */
    uint32_t heads_first, heads_count; /* of the pool's own */
};

/* K or V of a slice in a layer of a block: [heads_count][rows_count] rows of row_bytes. */
struct slice_rows {
    size_t offset; /* of the first byte in the layer */
    uint32_t heads_count, rows_count;
    size_t head_stride, row_stride, row_bytes;
};

/* Rows and heads that touch each other are told as one. */
struct slice_rows slice_rows(const struct kv_geometry *g, const struct slice *s, bool v);

/* Bytes of K and V of one unit in so many heads. */
static inline size_t slice_bytes(const struct kv_geometry *g, uint32_t heads_count)
{
    return (size_t)2 * heads_count * g->head_dim * BLOCK_TOKENS * dtype_bytes(g->dtype);
}
static inline bool slice_is_whole(const struct kv_geometry *g, const struct slice *s)
{
    return g->block_tokens == BLOCK_TOKENS && s->heads_count == g->kv_heads;
}

void slice_get(const struct kv_geometry *g, const void *layer, const struct slice *s,
               void *payload);
void slice_put(const struct kv_geometry *g, void *layer, const struct slice *s,
               const void *payload);

#endif
