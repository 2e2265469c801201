#include "tests/unit/xfer_sides.h"

#include <string.h>

const struct kv_geometry geometry = {LAYERS, 1, 2, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_F32};
const struct kv_part all = {0, LAYERS, 0, 1};
const struct xfer_addresses two_addresses = {2, {"shm:x", "tcp:y"}};
static const uint32_t blocks[BLOCKS] = {7, 6, 5, 4, 3, 2, 1, 0};

void side_new(struct side *s)
{
    const struct xfer_core_options o = {
        .geometry = geometry, .tickets_max = 64, .handshake_ns = HANDSHAKE, .idle_close_ns = IDLE};
    memset(s, 0, sizeof *s);
    assert_ok(xfer_core_new(&s->core, &o));
}

void side_act(struct side *s)
{
    struct xfer_action a;
    while (xfer_core_next(s->core, &a)) {
        if (a.kind == XFER_ACT_EVENT) {
            assert_true(s->events_count < EVENTS);
            s->event[s->events_count++] = a.event;
        } else if (a.kind == XFER_ACT_DIAL) {
            s->session = a.session;
            s->dialled = a.address;
            s->dials_count++;
        } else {
            if (a.session == s->session) s->session = NULL;
            xfer_core_closed(a.session);
            s->closes_count++;
        }
    }
}

void side_op(struct side *s, struct xfer_op op, uint64_t now)
{
    struct xfer_message m;
    op.blocks = blocks;
    op.blocks_count = blocks_for_tokens(op.tokens_end - op.tokens_first);
    op.addresses = &two_addresses;
    if (!op.deadline_ns) op.deadline_ns = DEADLINE;
    assert_ok(xfer_message_new(&op, &geometry, BLOCKS, &m));
    xfer_core_op(s->core, &m, now);
    side_act(s);
}

struct id128 ticket(uint64_t n)
{
    return (struct id128){7, n};
}

void op_simple(struct side *s, enum xfer_op_kind kind, uint64_t n, uint64_t now)
{
    side_op(s, (struct xfer_op){.kind = kind, .ticket = ticket(n), .tokens_end = 40}, now);
}

void push_all(struct side *p, uint64_t n, uint64_t now)
{
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        side_op(p,
                (struct xfer_op){
                    .kind = XFER_PUSH, .ticket = ticket(n), .tokens_end = 40, .layer = layer},
                now);
}

void assert_ended(struct side *s, uint64_t n, enum xfer_event_kind kind, enum err error)
{
    uint32_t count = 0;
    side_act(s);
    for (uint32_t i = 0; i < s->events_count; i++) {
        if (!id128_equal(s->event[i].ticket, ticket(n))) continue;
        count++;
        if (s->event[i].kind != kind || s->event[i].error != error)
            fail_msg("ticket %d: %d %s \"%s\"", (int)n, s->event[i].kind,
                     err_name(s->event[i].error), s->event[i].text);
    }
    assert_int_equal(count, 1);
}

bool has_ended(const struct side *s, uint64_t n)
{
    for (uint32_t i = 0; i < s->events_count; i++)
        if (id128_equal(s->event[i].ticket, ticket(n))) return true;
    return false;
}

enum err hear(struct side *s, const struct frame *f, bool good, uint64_t now)
{
    struct xfer_store store;
    enum err e = xfer_core_frame(s->core, s->session, f, now, &store);
    if (e == OK && store.blocks_count > 0) xfer_core_stored(s->core, s->session, &store, good, now);
    if (e != OK) xfer_core_lost(s->core, s->session, e, err_text(), now);
    side_act(s);
    return e;
}

bool say(struct side *from, struct frame *f, uint64_t now)
{
    struct xfer_send send;
    uint8_t head[FRAME_HEAD_MAX + BLOCKS * 256] = {0};
    if (!from->session || !xfer_core_wants(from->core, from->session, &send)) return false;
    size_t n = frame_print(&send.frame, head);
    n += send.blocks_count * kv_layer_bytes(&geometry);
    assert_true(n <= sizeof head);
    if (frame_parse(head, n, f) != OK) fail_msg("%s", err_text());
    xfer_core_sent(from->core, from->session, &send, now);
    side_act(from);
    return true;
}

void settle(struct side *p, struct side *d, uint64_t now)
{
    struct frame f;
    for (bool more = true; more;) {
        more = false;
        while (say(p, &f, now)) {
            more = true;
            if (d->session) assert_ok(hear(d, &f, true, now));
        }
        while (say(d, &f, now)) {
            more = true;
            if (p->session) assert_ok(hear(p, &f, true, now));
        }
    }
}

void stand(struct side *s, struct xfer_session *session, const char *link, uint64_t window,
           uint64_t now)
{
    xfer_core_connected(s->core, session, link, &(struct kv_link_facts){.window_bytes = window},
                        now);
}

void connect_sides(struct side *p, struct side *d, uint64_t window, uint64_t now)
{
    assert_non_null(p->session);
    d->session = xfer_core_accepted(d->core, "shm", now);
    assert_non_null(d->session);
    stand(d, d->session, "shm", window, now);
    stand(p, p->session, "shm", window, now);
}

void sides_start(struct side *p, struct side *d)
{
    side_new(p);
    side_new(d);
    op_simple(d, XFER_EXPECT, 1, 1);
    op_simple(p, XFER_OPEN, 1, 1);
    connect_sides(p, d, 1 << 20, 1);
    settle(p, d, 1);
}

void sides_end(struct side *p, struct side *d)
{
    xfer_core_free(p->core);
    xfer_core_free(d->core);
}

bool wants(struct side *s)
{
    struct xfer_send send;
    return xfer_core_wants(s->core, s->session, &send);
}

void carry(struct side *p, struct side *d, uint64_t n, uint64_t now)
{
    push_all(p, n, now);
    op_simple(p, XFER_COMMIT, n, now);
    settle(p, d, now);
    assert_ended(p, n, XFER_DONE, OK);
    assert_ended(d, n, XFER_COMMITTED, OK);
}
