#include "xfer/payload.h"

#include "common/hash.h"

static uint8_t *block_layer(const struct payload_pool *p, uint32_t block, uint32_t layer)
{
    return (uint8_t *)p->base + block * kv_block_bytes(&p->geometry) +
           layer * kv_layer_bytes(&p->geometry);
}

/* The longest payload, and a head of it by itself. */
size_t payload_staging_bytes(const struct kv_geometry *g)
{
    return xfer_staging_bytes(g) + slice_bytes(g, 1);
}

/* The n-th slice of a place, and the layer of the block in which it lies. */
static uint8_t *slice_at(const struct payload_pool *p, const struct xfer_place *place,
                         const uint32_t *blocks, uint32_t n, struct slice *slice)
{
    uint32_t units = p->geometry.block_tokens / BLOCK_TOKENS, at = place->first.unit + n;
    *slice = place->first;
    slice->unit = at % units;
    return block_layer(p, blocks[at / units], place->layer);
}

/* Hashing brings the blocks into the cache, so that sending reads memory once. */
static uint32_t gather_blocks(const struct payload_pool *p, struct xfer_send *send, uint32_t layer,
                              struct kv_piece *pieces)
{
    size_t bytes = kv_layer_bytes(&p->geometry);
    struct hash_stream hash;
    hash_start(&hash);
    for (uint32_t i = 0; i < send->blocks_count; i++) {
        const uint8_t *from = block_layer(p, send->blocks[i], layer);
        pieces[i] = (struct kv_piece){from, bytes};
        hash_more(&hash, from, bytes);
    }
    send->frame.hash = hash_end64(&hash);
    return send->blocks_count;
}

uint32_t payload_gather(const struct payload_pool *p, struct xfer_send *send,
                        struct kv_piece *pieces)
{
    struct xfer_place place = xfer_place(&p->geometry, &p->part, &send->frame.range);
    if (slice_is_whole(&p->geometry, &place.first))
        return gather_blocks(p, send, place.layer, pieces);
    size_t bytes = slice_bytes(&p->geometry, place.first.heads_count);
    for (uint32_t i = 0; i < place.units_count; i++) {
        struct slice slice;
        const uint8_t *from = slice_at(p, &place, send->blocks, i, &slice);
        slice_get(&p->geometry, from, &slice, (uint8_t *)p->staging + i * bytes);
    }
    pieces[0] = (struct kv_piece){p->staging, place.units_count * bytes};
    send->frame.hash = hash64(p->staging, pieces[0].size);
    return 1;
}

static bool store_blocks(const struct payload_pool *p, const struct xfer_store *store,
                         uint32_t layer, const uint8_t *payload)
{
    size_t bytes = kv_layer_bytes(&p->geometry);
    struct hash_stream hash;
    hash_start(&hash);
    for (uint32_t i = 0; i < store->blocks_count; i++) {
        uint8_t *to = block_layer(p, store->blocks[i], layer);
        memcpy(to, payload + i * bytes, bytes);
        hash_more(&hash, to, bytes);
    }
    return hash_end64(&hash) == store->hash;
}

/* Those heads of a unit that are not verified. `from` is K of all its heads, then V. */
static void store_missing(const struct payload_pool *p, const struct xfer_store *store,
                          const struct slice *slice, uint32_t unit, uint8_t *to,
                          const uint8_t *from)
{
    size_t half = slice_bytes(&p->geometry, 1) / 2;
    uint8_t *one = (uint8_t *)p->staging + xfer_staging_bytes(&p->geometry);
    for (uint32_t head = 0; head < slice->heads_count; head++) {
        if (xfer_store_has(store, unit, head)) continue;
        struct slice s = {slice->unit, slice->heads_first + head, 1};
        memcpy(one, from + head * half, half);
        memcpy(one + half, from + (slice->heads_count + head) * half, half);
        slice_put(&p->geometry, to, &s, one);
    }
}

bool payload_store(const struct payload_pool *p, const struct xfer_store *store,
                   const uint8_t *payload)
{
    struct xfer_place place = xfer_place(&p->geometry, &p->part, &store->range);
    if (slice_is_whole(&p->geometry, &place.first) && !store->verified)
        return store_blocks(p, store, place.layer, payload);
    size_t bytes = slice_bytes(&p->geometry, place.first.heads_count);
    memcpy(p->staging, payload, place.units_count * bytes);
    if (hash64(p->staging, place.units_count * bytes) != store->hash) return false;
    for (uint32_t i = 0; i < place.units_count; i++) {
        struct slice slice;
        const uint8_t *from = (uint8_t *)p->staging + i * bytes;
        uint8_t *to = slice_at(p, &place, store->blocks, i, &slice);
        if (store->verified)
            store_missing(p, store, &slice, i, to, from);
        else
            slice_put(&p->geometry, to, &slice, from);
    }
    return true;
}
