/* device_payload: the bytes of a DATA frame on their way between a link and a pool that the link thread
 * cannot touch (struct xfer_device); payload.h is the same for a pool in host memory.
 *
 *     struct device_pool pool = {.device = device, .layer_bytes = n, .layers_first = part.layers_first};
 *     e = device_payload_gather(&pool, &send, layout, &piece);            // P, by way of host memory
 *     e = device_payload_store(&pool, &store, payload, layout, &good);    // D; good false: wrong checksum
 *     e = device_payload_gather_slot(&pool, &send, layout, slot);         // the same over a device link
 *     e = device_payload_store_slot(&pool, &store, layout, slot, &good);
 *
 * Rules: blocks go whole. Gathering fills in the frame's hash. What comes by way of host memory is hashed
 * before anything is written; what is verified already is not written. A slot's bytes are hashed as they are
 * scattered, so those of a wrong checksum lie in the blocks until the range comes again. An error ends the
 * link. Called on the link thread. */
#ifndef TANDEM_XFER_DEVICE_PAYLOAD_H
#define TANDEM_XFER_DEVICE_PAYLOAD_H

#include "xfer/core.h"
#include "xfer/link.h"

struct device_pool {
    struct xfer_device device;
    size_t layer_bytes;    /* of one block */
    uint32_t layers_first; /* of the model's, the pool's first */
};

/* The piece is the staging memory: there until the next call. */
enum err device_payload_gather(const struct device_pool *pool, struct xfer_send *send,
                               uint32_t layout, struct kv_piece *piece);
enum err device_payload_store(const struct device_pool *pool, const struct xfer_store *store,
                              const uint8_t *payload, uint32_t layout, bool *good);
enum err device_payload_gather_slot(const struct device_pool *pool, struct xfer_send *send,
                                    uint32_t layout, void *slot);
enum err device_payload_store_slot(const struct device_pool *pool, const struct xfer_store *store,
                                   uint32_t layout, const void *slot, bool *good);

#endif
