/* The control channel of device links: any bytes are a checked message or an error, what was read prints as
 * it came, and no run of messages makes a session do what its transport could not, or wait for ever.
 *
 * Input: a byte (1: the dialler; 2: not posted; 4: the transport joins late, 8: it opens
 * late), then messages: 2 bytes of
 * size (little-endian), the message. Size 0xffff: the oldest operation ends and a frame is released. */
#include <string.h>

#include "common/clock.h"
#include "xfer/device/session.h"

enum { SLOTS = 3, SLOT_BYTES = 100 };

static const struct transport_ops posted = {
    .name = "posted", .posted = true, .dialler_offers = true};
static const struct transport_ops placed = {.name = "placed", .acceptor_offers = true};

struct world {
    const struct transport_ops *transport;
    struct dslink *s;
    bool open, opens_late, joins_late, kept;
    uint64_t begun, ended, now_ns;
};

static void act(struct world *w, const struct dslink_act *a)
{
    switch (a->kind) {
    case DSLINK_OPEN:
        CHECK(!w->open && a->slots_count <= SLOTS && a->slot_bytes <= SLOT_BYTES);
        w->open = true;
        w->begun = w->ended = 0;
        break;
    case DSLINK_JOIN: CHECK(w->open && a->size <= TRANSPORT_OFFER_MAX); break;
    case DSLINK_BEGIN:
        CHECK(w->open && a->slot < SLOTS && a->payload_bytes <= SLOT_BYTES);
        CHECK(a->number == w->begun++);
        break;
    case DSLINK_CLOSE:
        CHECK(w->open);
        w->open = false;
        break;
    case DSLINK_TELL: CHECK(a->size <= CONTROL_BYTES_MAX); break;
    }
    dslink_done(w->s, a, w->now_ns);
}

static void act_all(struct world *w)
{
    struct dslink_act a;
    uint32_t slot;
    for (int i = 0; i < 50; i++) {
        dslink_turn(w->s, dslink_wants_turn(w->s), w->now_ns);
        if (dslink_next(w->s, &a)) {
            act(w, &a);
        } else if (dslink_opening(w->s) && !w->opens_late) {
            dslink_opened(w->s, (const uint8_t *)"id", 2);
        } else if (dslink_joining(w->s) && !w->joins_late) {
            dslink_joined(w->s, w->now_ns);
        } else if (dslink_operating(w->s) && !w->transport->posted) {
            w->ended++;
            dslink_ended(w->s, w->now_ns);
        } else if (dslink_slot(w->s, &slot) == OK) {
            CHECK(slot < SLOTS);
            dslink_send_slot(w->s, "head", 4, dslink_slot_bytes(w->s));
        } else {
            return;
        }
    }
}

static void release(struct world *w)
{
    struct dslink_frame f;
    if (!dslink_front(w->s, &f)) return;
    CHECK(!f.in_slot || (f.slot < SLOTS && f.payload_bytes > 0 && f.payload_bytes <= SLOT_BYTES));
    if (dslink_release(w->s)) w->kept = false;
}

static void time_passes(struct world *w)
{
    w->opens_late = w->joins_late = false;
    if (dslink_operating(w->s) && w->ended < w->begun) {
        w->ended++;
        dslink_ended(w->s, w->now_ns);
    }
    release(w);
    act_all(w);
}

static void round_trip(const uint8_t *bytes, size_t size)
{
    uint8_t again[CONTROL_BYTES_MAX];
    struct control m;
    if (control_parse(bytes, size, &m) != OK || m.kind == CONTROL_FRAME) return;
    size_t n = control_print(&m, again);
    if (m.kind == CONTROL_ABORT || m.kind == CONTROL_OPEN) return; /* texts are made printable */
    CHECK(n == size && memcmp(again, bytes, n) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    struct world w = {.transport = data[0] & 2 ? &placed : &posted,
                      .joins_late = data[0] & 4,
                      .opens_late = data[0] & 8,
                      .now_ns = NS_PER_S};
    struct dslink_options o = {.dialler = data[0] & 1,
                               .transport = w.transport,
                               .slots_count = SLOTS,
                               .slot_bytes = SLOT_BYTES,
                               .times = dslink_times_default};
    CHECK(dslink_new(&w.s, &o) == OK);
    dslink_start(w.s, w.now_ns);
    act_all(&w);
    for (size_t at = 1; at + 2 <= size;) {
        size_t n = data[at] | (size_t)data[at + 1] << 8;
        at += 2;
        if (n == 0xffff) {
            time_passes(&w);
            continue;
        }
        if (n > size - at) n = size - at;
        round_trip(data + at, n);
        for (int i = 0; i < SLOTS + 1 && w.kept; i++) /* nothing is read while a frame is kept */
            time_passes(&w);
        if (w.kept) break;
        enum err e = dslink_message(w.s, data + at, n, w.now_ns);
        w.kept = e == ERR_AGAIN;
        CHECK(e == OK || e == ERR_AGAIN || dslink_state(w.s) == DSLINK_CLOSED);
        act_all(&w);
        at += n;
    }
    for (int i = 0; i < 20 && dslink_wake_at(w.s) != TIME_NEVER; i++) { /* every wait ends */
        w.now_ns = dslink_wake_at(w.s);
        dslink_timer(w.s, w.now_ns);
        act_all(&w);
    }
    CHECK(dslink_wake_at(w.s) == TIME_NEVER);
    enum dslink_state state = dslink_state(w.s);
    CHECK(state == DSLINK_READY || state == DSLINK_CLOSED);
    if (state == DSLINK_READY) dslink_lost(w.s, ERR_PEER, "the end", w.now_ns);
    dslink_let_go(w.s);
    act_all(&w);
    CHECK(!w.open);
    dslink_free(w.s);
    return 0;
}
