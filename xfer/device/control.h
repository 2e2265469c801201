/* control: what the two ends of a device link say to each other over the control channel: parsed into
 * a checked struct, or printed.
 *
 *     struct control m;
 *     if ((e = control_parse(bytes, size, &m)) != OK) return e;        // the peer's fault
 *     if (m.kind == CONTROL_GRANT) grant(m.slots_mask);
 *
 *     size_t n = control_print(&m, bytes);                            // at most CONTROL_BYTES_MAX
 *     size_t n = control_frame_header(epoch, header);                 // the frame's bytes go behind it
 *
 * Rules: the fixed part is read once, into memory of our own; `bytes` are pointed to, unread. A parsed
 * message promises that its own fields are in range, not that it fits the session. Pure; any thread.
 *
 * All numbers are little-endian. Every message starts with
 *
 *     offset size
 *          0    4  magic: the bytes "TDL1"
 *          4    1  kind
 *          5    3  zero
 *          8    4  epoch: the try that it belongs to, 1 or more
 *         12    4  zero
 *
 * and goes on, at offset 16, with (> by the dialler, < by the acceptor, without either: by both)
 *
 *     OPEN    > 16   8  slots_count, slot_bytes that the dialler would like
 *               24   4  device_index, for logs
 *               28   4  zero
 *               32  16  name of the transport, filled up with zeros
 *     ACCEPT  < 16   8  slots_count, slot_bytes that are agreed
 *               24   n  what the acceptor's transport has to offer, at most TRANSPORT_OFFER_MAX
 *     OFFER   > 16   n  what the dialler's transport has to offer
 *     WARM              the acceptor: I have joined. The dialler: operation 0 is announced, into slot 0
 *     READY   <         operation 0 is over, all slots are granted
 *     PUSH    > 16   8  number of the operation: 1, 2, ...
 *               24   8  slot, payload_bytes
 *               32   n  the frame's head, at most CONTROL_HEAD_MAX
 *     FRAME     16   n  a frame without payload
 *     GRANT   < 16   4  slots_mask: these slots may be written again
 *     DRAIN             I begin nothing new
 *     DRAINED           nothing of mine is under way, and I have said DRAIN or heard it
 *     ABORT     16   4  error
 *               20   4  final: 1 if no further try is wanted
 *               24   n  text, below CONTROL_TEXT_MAX */
#ifndef TANDEM_XFER_DEVICE_CONTROL_H
#define TANDEM_XFER_DEVICE_CONTROL_H

#include "xfer/device/transport.h"

enum control_kind {
    CONTROL_OPEN = 1,
    CONTROL_ACCEPT,
    CONTROL_OFFER,
    CONTROL_WARM,
    CONTROL_READY,
    CONTROL_PUSH,
    CONTROL_FRAME,
    CONTROL_GRANT,
    CONTROL_DRAIN,
    CONTROL_DRAINED,
    CONTROL_ABORT,
    CONTROL_KINDS,
};

enum {
    CONTROL_HEADER_BYTES = 16,
    CONTROL_HEAD_MAX = 512, /* of a frame whose payload lies in a slot */
    CONTROL_NAME_MAX = 16,
    CONTROL_TEXT_MAX = 96,
    CONTROL_BYTES_MAX = 32 + 512, /* of all but FRAME */
};

struct control {
    enum control_kind kind;
    uint32_t epoch;
    uint32_t slots_count,
        slot_bytes;               /* OPEN, ACCEPT: neither 0, at most TRANSPORT_SLOTS_MAX slots */
    uint32_t device_index;        /* OPEN */
    char name[CONTROL_NAME_MAX];  /* OPEN */
    uint64_t number;              /* PUSH: not 0 */
    uint32_t slot, payload_bytes; /* PUSH: payload_bytes is not 0 */
    uint32_t slots_mask;          /* GRANT: not 0 */
    enum err error;               /* ABORT: an error, but never ERR_AGAIN */
    bool final;                   /* ABORT */
    char text[CONTROL_TEXT_MAX];  /* ABORT: printable */
    const uint8_t *bytes;         /* ACCEPT, OFFER, PUSH, FRAME: where they were parsed from */
    size_t size;
};

enum err control_parse(const void *bytes, size_t size, struct control *m);
/* Not of FRAME. `bytes` has room for CONTROL_BYTES_MAX. */
size_t control_print(const struct control *m, uint8_t *bytes);
size_t control_frame_header(uint32_t epoch, uint8_t header[CONTROL_HEADER_BYTES]);
const char *control_name(enum control_kind kind);

#endif
