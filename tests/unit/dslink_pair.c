#include "tests/unit/dslink_pair.h"

#include <string.h>

#include "common/clock.h"

const struct transport_ops posted = {.name = "posted", .posted = true, .dialler_offers = true};
static const struct transport_ops bare = {.name = "bare", .posted = true};
const struct transport_ops placed = {.name = "placed", .acceptor_offers = true};
const struct transport_ops *const transports[TRANSPORTS] = {&posted, &bare, &placed};

void pair_put(struct pair *p, int to, const void *bytes, size_t size)
{
    assert_true(p->count[to] < QUEUE);
    struct mail *m = &p->queue[to][(p->first[to] + p->count[to]++) % QUEUE];
    m->size = size;
    memcpy(m->bytes, bytes, size);
}

static const uint8_t offer[] = "what I have";

static void act(struct pair *p, int side, const struct dslink_act *a)
{
    bool offers;
    struct dslink *s = p->s[side];
    switch (a->kind) {
    case DSLINK_TELL: pair_put(p, !side, a->bytes, a->size); break;
    case DSLINK_OPEN:
        assert_false(p->open[side]);
        assert_int_equal(a->slots_count, SLOTS);
        assert_int_equal(a->slot_bytes, SLOT_BYTES);
        p->open[side] = true;
        p->joined[side] = false;
        p->begun[side] = p->ended[side] = 0;
        break;
    case DSLINK_JOIN:
        offers = side == A ? p->transport->dialler_offers : p->transport->acceptor_offers;
        assert_int_equal(a->size, offers ? sizeof offer : 0);
        p->joined[side] = true;
        break;
    case DSLINK_BEGIN:
        assert_int_equal(a->number, p->begun[side]);
        p->begun[side]++;
        p->begins[side]++;
        break;
    case DSLINK_CLOSE:
        assert_true(p->open[side]);
        p->open[side] = false;
        p->closes[side]++;
        p->end[side] = a->end;
        break;
    }
    dslink_done(s, a, p->now_ns);
}

static bool transport_step(struct pair *p, int side)
{
    struct dslink *s = p->s[side];
    if (!p->hold_open && dslink_opening(s)) {
        bool offers = side == D ? p->transport->dialler_offers : p->transport->acceptor_offers;
        dslink_opened(s, offer, offers ? sizeof offer : 0);
        return true;
    }
    if (!p->hold_join && dslink_joining(s) && p->joined[!side]) {
        dslink_joined(s, p->now_ns);
        return true;
    }
    if (p->hold_end || !dslink_operating(s)) return false;
    if (p->transport->posted && p->begun[!side] <= p->ended[side]) return false;
    p->ended[side]++;
    dslink_ended(s, p->now_ns);
    return true;
}

bool pair_step(struct pair *p, int side)
{
    struct dslink *s = p->s[side];
    struct dslink_act a;
    dslink_turn(s, dslink_wants_turn(s) && !p->no_turns, p->now_ns);
    if (dslink_next(s, &a)) {
        act(p, side, &a);
        return true;
    }
    if (transport_step(p, side)) return true;
    if (p->mute || p->kept[side] || p->count[side] == 0) return false;
    struct mail *m = &p->queue[side][p->first[side]];
    enum err e = dslink_message(s, m->bytes, m->size, p->now_ns);
    p->kept[side] = e == ERR_AGAIN;
    if (e != ERR_AGAIN) {
        p->first[side] = (p->first[side] + 1) % QUEUE;
        p->count[side]--;
    }
    return true;
}

void pair_run(struct pair *p)
{
    for (int quiet = 0, i = 0; quiet < 2; i++) {
        quiet = pair_step(p, i % 2) ? 0 : quiet + 1;
        assert_true(i < 10000);
    }
}

void pair_start(struct pair *p, const struct transport_ops *transport)
{
    *p = (struct pair){.transport = transport, .now_ns = NS_PER_S};
    for (int side = 0; side < SIDES; side++) {
        struct dslink_options o = {.dialler = side == D,
                                   .transport = transport,
                                   .slots_count = side == D ? SLOTS : SLOTS + 2,
                                   .slot_bytes = side == D ? SLOT_BYTES * 2 : SLOT_BYTES,
                                   .times = dslink_times_default};
        assert_ok(dslink_new(&p->s[side], &o));
        dslink_start(p->s[side], p->now_ns);
    }
}

void pair_stop(struct pair *p)
{
    dslink_free(p->s[D]);
    dslink_free(p->s[A]);
}

void pair_make_ready(struct pair *p, const struct transport_ops *transport)
{
    pair_start(p, transport);
    pair_run(p);
    assert_int_equal(dslink_state(p->s[D]), DSLINK_READY);
    assert_int_equal(dslink_state(p->s[A]), DSLINK_READY);
}

void pair_assert_states(const struct pair *p, enum dslink_state d, enum dslink_state a)
{
    if (dslink_state(p->s[D]) != d || dslink_state(p->s[A]) != a)
        fail_msg("%s: %s and %s", p->transport->name, dslink_state_name(dslink_state(p->s[D])),
                 dslink_state_name(dslink_state(p->s[A])));
}

void pair_send_payload(struct pair *p, uint32_t n)
{
    uint32_t slot;
    assert_ok(dslink_slot(p->s[D], &slot));
    dslink_send_slot(p->s[D], &n, sizeof n, n);
}

void pair_send_inline(struct pair *p, int from, uint32_t n)
{
    uint8_t bytes[CONTROL_HEADER_BYTES + sizeof n];
    assert_true(dslink_may_send(p->s[from]));
    memcpy(bytes + control_frame_header(dslink_epoch(p->s[from]), bytes), &n, sizeof n);
    pair_put(p, !from, bytes, sizeof bytes);
}

uint32_t pair_front(struct pair *p, int side)
{
    struct dslink_frame f;
    uint32_t n;
    if (!dslink_front(p->s[side], &f)) return 0;
    assert_int_equal(f.size, sizeof n);
    memcpy(&n, f.bytes, sizeof n);
    if (f.in_slot) assert_int_equal(f.payload_bytes, n);
    return n;
}

void pair_release(struct pair *p, int side)
{
    if (!dslink_release(p->s[side])) return;
    assert_true(p->kept[side]);
    p->kept[side] = false;
    p->first[side] = (p->first[side] + 1) % QUEUE;
    p->count[side]--;
}

void pair_pass_time(struct pair *p, uint64_t ns)
{
    p->now_ns += ns;
    dslink_timer(p->s[D], p->now_ns);
    dslink_timer(p->s[A], p->now_ns);
}

void pair_tell(struct pair *p, int to, struct control m)
{
    uint8_t bytes[CONTROL_BYTES_MAX];
    pair_put(p, to, bytes, control_print(&m, bytes));
}
