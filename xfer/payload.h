/* payload: the bytes of a DATA frame on their way between a link and a pool in host memory.
 *
 *     struct payload_pool pool = {.geometry = g, .part = part, .base = kv, .staging = room};
 *     count = payload_gather(&pool, &send, pieces);       // P: also fills in the frame's hash
 *     good = payload_store(&pool, &store, payload);       // D: false: wrong checksum
 *
 * Rules: blocks of 16 tokens with all their heads go as they lie: a piece each on the way out, one copy
 * each on the way in, hashed in the same pass. Everything else goes through the staging memory, slice by
 * slice (xfer/slice.h), one copy more. What is hashed is memory of our own, since a peer may still be
 * writing to the frame. What is verified already is never written. Called on the link thread. */
#ifndef TANDEM_XFER_PAYLOAD_H
#define TANDEM_XFER_PAYLOAD_H

#include "xfer/core.h"
#include "xfer/link.h"

struct payload_pool {
    struct kv_geometry geometry;
    struct kv_part part;
    void *base;    /* xfer_options.kv_base */
    void *staging; /* payload_staging_bytes */
};

size_t payload_staging_bytes(const struct kv_geometry *g);

/* Pieces, at most XFER_FRAME_UNITS_MAX, that point into the pool or the staging memory: there until the
 * next call. */
uint32_t payload_gather(const struct payload_pool *pool, struct xfer_send *send,
                        struct kv_piece *pieces);
bool payload_store(const struct payload_pool *pool, const struct xfer_store *store,
                   const uint8_t *payload);

#endif
