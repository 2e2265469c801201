/* kv_place: where one number of the KV lies in a layer of a block, as common/geometry.h says, for blocks
 * of any size. What copies in bulk is held against it. Pure: any thread. */
#ifndef TANDEM_TESTS_KV_PLACE_H
#define TANDEM_TESTS_KV_PLACE_H

#include "common/geometry.h"

/* In numbers, not bytes. `v`: of V, else of K. */
static inline size_t kv_place(const struct kv_geometry *g, bool v, uint32_t head, uint32_t token,
                              uint32_t dim)
{
    size_t tokens = g->block_tokens, d = g->head_dim;
    size_t at = ((v ? g->kv_heads : 0) + head) * tokens * d;
    if (g->layout == KV_LAYOUT_CPU && !v) return at + dim / 2 * tokens * 2 + token * 2 + dim % 2;
    if (g->layout == KV_LAYOUT_CPU && g->dtype == DTYPE_BF16)
        return at + token / 2 * d * 2 + dim * 2 + token % 2;
    return at + token * d + dim;
}

#endif
