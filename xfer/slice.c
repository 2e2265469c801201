#include "xfer/slice.h"

struct slice_rows slice_rows(const struct kv_geometry *g, const struct slice *s, bool v)
{
    size_t element = dtype_bytes(g->dtype), token = g->head_dim * element;
    bool pairs = g->layout == KV_LAYOUT_CPU && !v; /* [head_dim / 2][tokens][2] */
    struct slice_rows r = {
        .heads_count = s->heads_count,
        .rows_count = pairs ? g->head_dim / 2 : 1,
        .head_stride = g->block_tokens * token,
        .row_bytes = BLOCK_TOKENS * (pairs ? 2 * element : token),
    };
    r.row_stride = g->block_tokens / BLOCK_TOKENS * r.row_bytes;
    r.offset = (v ? kv_part_bytes(g) : 0) + s->heads_first * r.head_stride + s->unit * r.row_bytes;
    if (r.row_stride == r.row_bytes) {
        r.row_bytes = r.row_stride = r.row_bytes * r.rows_count;
        r.rows_count = 1;
    }
    if (r.rows_count == 1 && r.head_stride == r.row_bytes) {
        r.row_bytes = r.row_stride = r.head_stride = r.row_bytes * r.heads_count;
        r.heads_count = 1;
    }
    return r;
}

void slice_get(const struct kv_geometry *g, const void *layer, const struct slice *s, void *payload)
{
    uint8_t *to = payload;
    for (int v = 0; v < 2; v++) {
        struct slice_rows r = slice_rows(g, s, v);
        for (uint32_t head = 0; head < r.heads_count; head++) {
            const uint8_t *from = (const uint8_t *)layer + r.offset + head * r.head_stride;
            for (uint32_t row = 0; row < r.rows_count; row++, to += r.row_bytes)
                memcpy(to, from + row * r.row_stride, r.row_bytes);
        }
    }
}

void slice_put(const struct kv_geometry *g, void *layer, const struct slice *s, const void *payload)
{
    const uint8_t *from = payload;
    for (int v = 0; v < 2; v++) {
        struct slice_rows r = slice_rows(g, s, v);
        for (uint32_t head = 0; head < r.heads_count; head++) {
            uint8_t *to = (uint8_t *)layer + r.offset + head * r.head_stride;
            for (uint32_t row = 0; row < r.rows_count; row++, from += r.row_bytes)
                memcpy(to + row * r.row_stride, from, r.row_bytes);
        }
    }
}
