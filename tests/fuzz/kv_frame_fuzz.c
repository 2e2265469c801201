/* KV frames: any bytes are a checked frame or an error, what was read prints as it came, and no run
 * of frames makes a core lose a ticket or touch a block that it was not given.
 *
 * Input: a byte that chooses the side (1: sends), and whether the node holds a part of the model in blocks
 * of 32 tokens (2); then frames: 2 bytes of size (little-endian), the frame. The size's top bit: over a
 * second link, which the receiver has. */
#include <string.h>

#include "common/clock.h"
#include "xfer/core.h"

enum { LAYERS = 2, BLOCKS = 4, TICKETS = 2, FIRST = 16, END = 70, LINKS = 2 };

static const struct xfer_core_options node[] = {
    {.geometry = {LAYERS, 1, 2, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_F32}},
    {.geometry = {LAYERS, 4, 2, 2 * BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_F32}, .part = {1, 4, 2, 8}},
};
static struct xfer_core_options options; /* of this run */
static const uint32_t blocks[BLOCKS] = {3, 1, 2, 0};
static const struct xfer_addresses nowhere = {1, {"tcp:127.0.0.1:1"}};

static void post(struct xfer_core *core, struct xfer_op op)
{
    struct xfer_message message;
    CHECK(xfer_message_new(&op, &options.geometry, BLOCKS, &message) == OK);
    xfer_core_op(core, &message, 1);
}

/* Tickets {1, 1} and {1, 2}: tokens 16 to 70 expected, or all pushed and committed. */
static void open_tickets(struct xfer_core *core, bool sends)
{
    for (uint32_t i = 1; i <= TICKETS; i++) {
        struct xfer_op op = {.ticket = {1, i},
                             .tokens_first = FIRST,
                             .tokens_end = END,
                             .blocks = blocks,
                             .blocks_count =
                                 blocks_between(options.geometry.block_tokens, FIRST, END),
                             .addresses = &nowhere,
                             .deadline_ns = NS_PER_S};
        op.kind = sends ? XFER_OPEN : XFER_EXPECT;
        post(core, op);
        op.kind = XFER_PUSH;
        for (op.layer = 0; sends && op.layer < LAYERS; op.layer++)
            post(core, op);
        op.kind = XFER_COMMIT;
        if (sends) post(core, op);
    }
}

static void round_trip(const struct frame *f, const uint8_t *bytes, size_t size)
{
    uint8_t head[FRAME_HEAD_MAX];
    size_t n = frame_print(f, head);
    CHECK(n + f->payload_bytes == size);
    if (f->kind != FRAME_FAIL) CHECK(memcmp(head, bytes, n) == 0); /* its text was made printable */
}

/* All that the session has to say goes nowhere, as long as credit lasts. */
static void say_all(struct xfer_core *core, struct xfer_session *s)
{
    struct xfer_send send;
    for (int i = 0; i < 100 && xfer_core_wants(core, s, &send); i++) {
        for (uint32_t b = 0; b < send.blocks_count; b++)
            CHECK(send.blocks[b] < BLOCKS);
        xfer_core_sent(core, s, &send, 2);
    }
}

static uint32_t drain(struct xfer_core *core)
{
    struct xfer_action a;
    uint32_t events = 0;
    while (xfer_core_next(core, &a)) {
        events += a.kind == XFER_ACT_EVENT;
        if (a.kind == XFER_ACT_CLOSE) xfer_core_closed(a.session);
    }
    return events;
}

static enum err feed(struct xfer_core *core, struct xfer_session *s, const uint8_t *bytes,
                     size_t size)
{
    struct frame f;
    struct xfer_store store;
    enum err e = frame_parse(bytes, size, &f);
    if (e != OK) return e;
    round_trip(&f, bytes, size);
    e = xfer_core_frame(core, s, &f, 2, &store);
    if (e != OK || store.blocks_count == 0) return e;
    CHECK(store.blocks_count <= BLOCKS);
    struct kv_part part = kv_part_told(&options.geometry, options.part);
    struct xfer_place place = xfer_place(&options.geometry, &part, &store.range);
    CHECK(place.layer < LAYERS);
    CHECK(place.first.heads_first + place.first.heads_count <= options.geometry.kv_heads);
    CHECK(f.payload_bytes ==
          place.units_count * slice_bytes(&options.geometry, place.first.heads_count));
    for (uint32_t b = 0; b < store.blocks_count; b++)
        CHECK(store.blocks[b] < BLOCKS);
    xfer_core_stored(core, s, &store, f.hash % 2 == 0, 2);
    return OK;
}

/* A session that breaks the rules is lost. */
static void hear(struct xfer_core *core, struct xfer_session **s, const uint8_t *bytes, size_t size)
{
    if (!*s) return;
    enum err e = feed(core, *s, bytes, size);
    if (e == OK) return;
    xfer_core_lost(core, *s, e, err_text(), 3);
    *s = NULL;
}

static struct xfer_session *greet(struct xfer_core *core, bool sends)
{
    struct xfer_action a;
    struct xfer_session *s;
    if (!sends) {
        s = xfer_core_accepted(core, "tcp", 1);
    } else {
        CHECK(xfer_core_next(core, &a) && a.kind == XFER_ACT_DIAL);
        s = a.session;
    }
    xfer_core_connected(core, s, "tcp", &(struct kv_link_facts){.window_bytes = 4096}, 1);
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct xfer_core *core;
    if (size == 0) return 0;
    bool sends = data[0] & 1;
    options = node[data[0] >> 1 & 1];
    options.tickets_max = TICKETS;
    options.handshake_ns = options.idle_close_ns = NS_PER_MS;
    CHECK(xfer_core_new(&core, &options) == OK);
    open_tickets(core, sends);
    struct xfer_session *link[LINKS] = {greet(core, sends), sends ? NULL : greet(core, sends)};
    for (size_t at = 1; at + 2 <= size;) {
        size_t n = data[at] | (size_t)(data[at + 1] & 0x7f) << 8;
        struct xfer_session **s = &link[data[at + 1] >> 7];
        at += 2;
        if (n > size - at) n = size - at;
        hear(core, s, data + at, n);
        at += n;
        for (int i = 0; i < LINKS; i++)
            if (link[i]) say_all(core, link[i]);
    }
    uint32_t events = drain(core);
    xfer_core_timer(core, 2 * NS_PER_S); /* every ticket that is left ends at its deadline */
    events += drain(core);
    CHECK(events == TICKETS && xfer_core_tickets_count(core) == 0);
    xfer_core_free(core);
    return 0;
}
