#include "xfer/device_payload.h"

#include <string.h>

#include "common/hash.h"

/* The pool's own number of a layer. */
static uint32_t own_layer(const struct device_pool *p, const struct frame_range *range)
{
    return range->layer - p->layers_first;
}

enum err device_payload_gather(const struct device_pool *p, struct xfer_send *send, uint32_t layout,
                               struct kv_piece *piece)
{
    const struct xfer_device *d = &p->device;
    *piece = (struct kv_piece){d->staging, send->blocks_count * p->layer_bytes};
    enum err e = d->read(d->ctx, own_layer(p, &send->frame.range), send->blocks, send->blocks_count,
                         layout, d->staging);
    if (e == OK) send->frame.hash = hash64(d->staging, piece->size);
    return e;
}

/* Hashed where it is copied to, since a peer may still be writing to the frame. */
enum err device_payload_store(const struct device_pool *p, const struct xfer_store *store,
                              const uint8_t *payload, uint32_t layout, bool *good)
{
    const struct xfer_device *d = &p->device;
    size_t bytes = store->blocks_count * p->layer_bytes;
    memcpy(d->staging, payload, bytes);
    *good = hash64(d->staging, bytes) == store->hash;
    if (!*good) return OK;
    uint32_t layer = own_layer(p, &store->range);
    if (!store->verified)
        return d->write(d->ctx, layer, store->blocks, store->blocks_count, layout, d->staging);
    enum err e = OK;
    for (uint32_t i = 0; i < store->blocks_count && e == OK; i++)
        if (!xfer_store_has(store, i, 0))
            e = d->write(d->ctx, layer, store->blocks + i, 1, layout,
                         (const uint8_t *)d->staging + i * p->layer_bytes);
    return e;
}

enum err device_payload_gather_slot(const struct device_pool *p, struct xfer_send *send,
                                    uint32_t layout, void *slot)
{
    const struct xfer_device *d = &p->device;
    return d->gather(d->ctx, own_layer(p, &send->frame.range), send->blocks, send->blocks_count,
                     layout, slot, &send->frame.hash);
}

enum err device_payload_store_slot(const struct device_pool *p, const struct xfer_store *store,
                                   uint32_t layout, const void *slot, bool *good)
{
    const struct xfer_device *d = &p->device;
    uint64_t hash;
    enum err e = d->scatter(d->ctx, own_layer(p, &store->range), store->blocks, store->blocks_count,
                            layout, slot, &hash);
    *good = e == OK && hash == store->hash;
    return e;
}
