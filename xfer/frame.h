/* frame: what two nodes say to each other over a link: parsed into a checked struct, or printed.
 *
 *     struct frame f;
 *     if ((e = frame_parse(bytes, size, &f)) != OK) return e;    // the peer's fault: drop the link
 *     if (f.kind == FRAME_DATA) store(f.payload, f.payload_bytes);
 *
 *     uint8_t head[FRAME_HEAD_MAX];
 *     size_t head_bytes = frame_print(&f, head);                 // a payload goes behind it
 *
 * Rules: frame_parse reads each byte before the payload once, into memory of its own, so that bytes
 * in shared memory cannot change after they were checked. The payload is pointed to, unread. What a
 * parsed frame promises is that its own fields agree with each other and are in range; whether
 * ticket, layer and tokens exist is for the transfer to check. Pure; any thread.
 *
 * All numbers are little-endian. Every frame starts with
 *
 *     offset size
 *          0    4  magic: the bytes "TKV2"
 *          4    1  kind
 *          5    3  zero
 *          8   16  ticket: hi, lo; zero where a frame is about the link itself
 *
 * and goes on, at offset 24, with
 *
 *     HELLO   24  16  incarnation of the speaker: hi, lo
 *             40  24  geometry: layers_count, kv_heads, head_dim, block_tokens, layout, dtype
 *             64  16  part of the model: layers_first, layers_all, heads_first, heads_all
 *             80   8  window: payload bytes that the other side may send before it gets CREDIT
 *     OPEN    24   8  tokens_first, tokens_end: what travels under this ticket
 *     DATA    24   4  layer, as the model counts
 *             28   8  tokens_first, tokens_end of this payload
 *             36   8  heads_first, heads_count of this payload: kv heads, as the model counts
 *             44   4  try: 0, 1, 2
 *             48   8  XXH3 of the payload; kv_hash (common/geometry.h) of one in a slot
 *             56   …  payload, unless it came in a slot (xfer/link.h): for each 16 tokens K of these heads,
 *                     then V, in the layout that lies between the two HELLOs' (kv_layout_between),
 *                     however long either side's blocks
 *     COMMIT  24   4  first token
 *             28   4  its logprob
 *             32   4  finish
 *             36   4  tops_count, at most JOB_TOPS_MAX
 *             40  8n  token, logprob of each
 *     REFUSE  24  24  layer, tokens, heads, try of a DATA frame with a wrong checksum
 *     CREDIT  24   8  payload bytes that may be sent in addition
 *     FAIL    24   4  error: the sender of this frame has ended the ticket, or the link if none; there
 *                     ERR_FULL says that it needs the place and has heard of no ticket that is open
 *             28   4  text_bytes, below XFER_TEXT_MAX
 *             32   n  text
 *     DONE    24   0  all has arrived, was verified and is committed
 *
 * The dialler speaks first: HELLO, then it waits for the other HELLO. After that it sends OPEN,
 * DATA, COMMIT and FAIL; the accepting side sends REFUSE, CREDIT, FAIL and DONE. DATA carries what both
 * sides' parts have in common: layers and heads that the other side does not hold stay where they are. */
#ifndef TANDEM_XFER_FRAME_H
#define TANDEM_XFER_FRAME_H

#include "xfer/xfer.h"

enum frame_kind {
    FRAME_HELLO = 1,
    FRAME_OPEN,
    FRAME_DATA,
    FRAME_COMMIT,
    FRAME_REFUSE,
    FRAME_CREDIT,
    FRAME_FAIL,
    FRAME_DONE,
};

enum {
    FRAME_HEAD_MAX = 256, /* everything but a payload */
    FRAME_DATA_HEAD = 56,
    FRAME_TRIES_MAX = 3,
};

/* One layer of some tokens and kv heads, the tries of it so far. */
struct frame_range {
    uint32_t layer, tokens_first, tokens_end, heads_first, heads_count, attempt;
};

struct frame {
    enum frame_kind kind;
    struct id128 ticket;
    struct id128 incarnation;          /* HELLO */
    struct kv_geometry geometry;       /* HELLO */
    struct kv_part part;               /* HELLO: lies in the model that it tells */
    uint64_t window_bytes;             /* HELLO, CREDIT */
    uint32_t tokens_first, tokens_end; /* OPEN: a multiple of 16 before, and more than none */
    struct frame_range range;          /* DATA, REFUSE: the same, attempt below FRAME_TRIES_MAX */
    uint64_t hash;                     /* DATA */
    const uint8_t *payload;            /* DATA: in the buffer that was parsed */
    size_t payload_bytes;
    struct token_info first;  /* COMMIT */
    enum finish finish;       /* COMMIT */
    enum err error;           /* FAIL: never OK */
    char text[XFER_TEXT_MAX]; /* FAIL: printable */
};

enum err frame_parse(const void *bytes, size_t size, struct frame *f);
/* Bytes written: at most FRAME_HEAD_MAX. */
size_t frame_print(const struct frame *f, uint8_t head[FRAME_HEAD_MAX]);
const char *frame_name(enum frame_kind kind);

#endif
