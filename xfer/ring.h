/* ring: frames from one process to another through shared memory, one writer and one reader.
 *
 *     struct ring r;
 *     if ((e = ring_map(&r, fd, offset, bytes, &control->ring[0], frame_max)) != OK) return e;
 *     if ((e = ring_write(&r, pieces, count)) == OK && ring_reader_sleeps(&r)) wake_reader();
 *     e = ring_read(&r, &bytes, &size);          // ERR_AGAIN: empty, and the writer will wake us
 *     ring_release(&r);
 *     if (ring_writer_waits(&r)) wake_writer();
 *     ring_unmap(&r);
 *
 * The bytes are mapped twice, one behind the other, so a frame is contiguous wherever it lies. A
 * record is 4 bytes of size, 4 of zero, the frame, padding to 8.
 *
 * Rules: head and tail count bytes for ever; each side keeps its own one in its own memory and only
 * shows it to the other. What the other shows is read once and checked: it can spoil frames, which
 * checksums find, or end the ring with ERR_FORMAT, and do nothing else. Owner: one thread per
 * side. */
#ifndef TANDEM_XFER_RING_H
#define TANDEM_XFER_RING_H

#include <stdatomic.h>
#include <stdbool.h>

#include "xfer/link.h"

/* In shared memory; one cache line per writing side. */
struct ring_control {
    _Alignas(64) _Atomic uint64_t head; /* writer: bytes written */
    _Atomic uint32_t writer_waits;      /* writer: wake me when there is room */
    _Alignas(64) _Atomic uint64_t tail; /* reader: bytes released */
    _Atomic uint32_t reader_sleeps;     /* reader: wake me when there is a frame */
};

struct ring {
    struct ring_control *control;
    uint8_t *bytes;           /* 2 x size_bytes of addresses */
    uint64_t size_bytes, own; /* own: head or tail, whichever is this side's */
    uint64_t record_bytes;    /* of the frame that was handed out */
    uint32_t frame_bytes_max;
};

/* offset and size are multiples of the page size, size a power of two. */
enum err ring_map(struct ring *r, int fd, uint64_t offset, uint64_t size_bytes,
                  struct ring_control *control, uint32_t frame_bytes_max);
void ring_unmap(struct ring *r); /* a zeroed ring is allowed */

enum err ring_write(struct ring *r, const struct kv_piece *pieces, uint32_t pieces_count);
enum err ring_read(struct ring *r, const void **bytes, size_t *size);
void ring_release(struct ring *r);
/* Whether the other side asked to be woken; it has to be asked again after each yes. */
bool ring_reader_sleeps(struct ring *r);
bool ring_writer_waits(struct ring *r);

#endif
