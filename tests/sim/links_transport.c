/* The transports of links.h: operations that both sides post, or that are placed by one of them; joins that
 * fail or hang, memory that comes late, and the turns of a device. */
#include "tests/sim/links_world.h"

static bool matched(struct side *x)
{
    struct side *d = &x->link->side[1], *a = &x->link->side[0];
    if (!d->t.open || !a->t.open || !d->t.joins || !a->t.joins) return false;
    return x->link->transport->dialler_offers ? a->t.their_id == d->t.id : d->t.their_id == a->t.id;
}

void endpoint_open(struct side *x)
{
    HOLD(!x->t.open, "a transport is opened twice");
    x->t = (struct endpoint){.open = true,
                             .id = ++w->next_id,
                             .open_ns = within(chance(4) ? 60 : 2),
                             .open_fails = chance(2),
                             .fails = chance(8),
                             .join_hangs = chance(4),
                             .join_ns = (uint64_t)draw(20) * MS,
                             .hang_from = chance(6) ? draw(8) : UINT64_MAX,
                             .break_at = chance(6) ? draw(8) : UINT64_MAX};
    if (x->t.fails || x->t.open_fails || x->t.join_hangs || x->t.hang_from < 99 ||
        x->t.break_at < 99)
        disturb(x->link);
    memset(x->slot_busy, 0, sizeof x->slot_busy);
    x->told = 0;
    w->totals->epochs++;
}

/* Where the payload of a slot lies that this side sees. */
uint32_t *endpoint_value(struct side *x, uint32_t slot)
{
    return x->link->transport->posted ? &x->slot_value[slot] : &x->link->side[0].slot_value[slot];
}

static void begin_posted(struct side *x, struct posting *p, uint64_t number)
{
    struct side *y = other(x);
    if (!matched(x) || y->t.begun <= number) return;
    struct posting *q = &y->t.posting[number % NUMBERS];
    HOLD(p->slot == q->slot && p->bytes == q->bytes, "operation %llu differs on the two sides",
         (unsigned long long)number);
    if (number >= x->t.hang_from || number >= y->t.hang_from) return;
    p->value = q->value = *endpoint_value(&x->link->side[1], p->slot);
    p->end_ns = within(6);
    q->end_ns = within(6);
}

void endpoint_begin(struct side *x, const struct dslink_act *act)
{
    struct posting *p = &x->t.posting[act->number % NUMBERS];
    struct side *d = &x->link->side[1];
    bool is_posted = x->link->transport->posted;
    HOLD(x->t.open && act->number == x->t.begun, "operation %llu begins out of its order",
         (unsigned long long)act->number);
    if (is_posted && matched(x))
        HOLD(d->told > act->number, "operation %llu begins unannounced",
             (unsigned long long)act->number);
    *p = (struct posting){act->slot, act->payload_bytes, TIME_NEVER, 0};
    x->t.begun++;
    if (x->dialler && act->number > 0) x->slot_busy[act->slot] = true;
    if (!is_posted) {
        p->end_ns = w->now_ns;
        return;
    }
    int direction = 0;
    for (int i = 0; i < w->links_count; i++) /* turns */
        for (int side = 0; side < SIDES; side++) {
            struct side *y = &w->link[i].side[side];
            direction += w->link[i].used && !y->gone && y->link->transport->posted &&
                         y->device == x->device && y->dialler == x->dialler && y->t.open &&
                         y->t.begun > y->t.ended;
        }
    HOLD(direction == 1, "%d operations are posted on one device", direction);
    begin_posted(x, p, act->number);
}

void endpoint_close(struct side *x, enum transport_end end)
{
    struct side *y = other(x);
    HOLD(x->t.open, "a transport is closed that is not open");
    if (end == TRANSPORT_DRAINED) {
        HOLD(x->t.begun == x->t.ended, "drained with an operation under way");
        if (matched(x) && x->link->transport->posted)
            HOLD(x->t.begun == y->t.begun, "drained, and the other side has begun %llu, not %llu",
                 (unsigned long long)y->t.begun, (unsigned long long)x->t.begun);
    }
    w->totals->drained += end == TRANSPORT_DRAINED;
    w->totals->broken += end == TRANSPORT_BROKEN;
    if (matched(x)) /* a peer that is gone shows no error: what it was in never ends */
        for (uint64_t i = y->t.ended; i < y->t.begun && x->link->transport->posted; i++)
            if (i >= x->t.ended) {
                y->t.posting[i % NUMBERS].end_ns = TIME_NEVER;
                w->totals->hung++;
            }
    x->t.open = false;
}

/* ---- turns ---- */

void endpoint_give_turn(struct side *x)
{
    turns_give(&x->device->turns, &x->turn);
    if (x->has_turn && x->s) dslink_turn(x->s, false, w->now_ns);
    x->has_turn = false;
}

void endpoint_take_turn(struct side *x)
{
    if (!dslink_wants_turn(x->s)) {
        endpoint_give_turn(x);
        return;
    }
    turns_ask(&x->device->turns, x->dialler ? TURN_SEND : TURN_RECEIVE, &x->turn);
    if (x->turn.held == x->has_turn) return;
    x->has_turn = true;
    dslink_turn(x->s, true, w->now_ns);
}

/* ---- what has ended ---- */

static void operation_ended(struct side *x)
{
    uint64_t number = x->t.ended++;
    const struct posting *p = &x->t.posting[number % NUMBERS];
    if (number > 0 && x->dialler) x->slot_busy[p->slot] = false;
    if (number > 0 && !x->dialler && x->link->transport->posted) {
        HOLD(!x->slot_busy[p->slot], "slot %u is received into while its frame is held", p->slot);
        *endpoint_value(x, p->slot) = p->value;
        x->slot_busy[p->slot] = true;
    }
    dslink_ended(x->s, w->now_ns);
}

static bool opened(struct side *x)
{
    const struct transport_ops *t = x->link->transport;
    bool offers = x->dialler ? t->dialler_offers : t->acceptor_offers;
    if (x->t.open_ns > w->now_ns) return false;
    if (x->t.open_fails)
        dslink_broken(x->s, ERR_MEMORY, "no memory", w->now_ns);
    else
        dslink_opened(x->s, (const uint8_t *)&x->t.id, offers ? sizeof x->t.id : 0);
    return true;
}

/* Whether the transport had something to say. */
bool endpoint_ask(struct side *x)
{
    if (dslink_opening(x->s)) return opened(x);
    if (dslink_joining(x->s)) {
        struct side *y = other(x);
        if (x->t.fails && x->t.join_ns <= w->now_ns) {
            dslink_broken(x->s, ERR_DEVICE, "the join fails", w->now_ns);
            return true;
        }
        if (!matched(x) || x->t.join_hangs || y->t.join_hangs || x->t.join_ns > w->now_ns)
            return false;
        dslink_joined(x->s, w->now_ns);
        return true;
    }
    if (!dslink_operating(x->s)) return false;
    HOLD(x->t.ended < x->t.begun, "the session waits for an operation that there is not");
    const struct posting *p = &x->t.posting[x->t.ended % NUMBERS];
    if (x->t.ended == x->t.break_at) {
        dslink_broken(x->s, ERR_DEVICE, "the operation fails", w->now_ns);
        return true;
    }
    if (p->end_ns > w->now_ns) return false;
    operation_ended(x);
    endpoint_give_turn(x);
    return true;
}
