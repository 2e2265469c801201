/* What a session has to do next, computed from its state, so that nothing queues up: what is due once, then
 * grants, operations, and the word that it is drained. */
#include <stdio.h>
#include <string.h>

#include "common/plant.h"
#include "xfer/device/session_state.h"

static void tell(struct dslink_act *act, const struct control *m)
{
    act->kind = DSLINK_TELL;
    act->tell = m->kind;
    act->size = control_print(m, act->bytes);
}

static struct control message_due(const struct dslink *s, enum dslink_due due)
{
    struct control m = {.epoch = s->epoch,
                        .slots_count = s->slots_count,
                        .slot_bytes = s->slot_bytes,
                        .device_index = s->options.device_index,
                        .bytes = s->ours,
                        .size = s->ours_bytes};
    switch (due) {
    case DSLINK_DUE_TELL_ABORT:
        m = (struct control){.kind = CONTROL_ABORT,
                             .epoch = s->abort_epoch,
                             .error = s->error,
                             .final = s->abort_final};
        snprintf(m.text, sizeof m.text, "%s", s->text);
        return m;
    case DSLINK_DUE_TELL_ACCEPT: m.kind = CONTROL_ACCEPT; return m;
    case DSLINK_DUE_TELL_OFFER: m.kind = CONTROL_OFFER; return m;
    case DSLINK_DUE_TELL_OPEN:
        m.kind = CONTROL_OPEN;
        m.slots_count = s->options.slots_count;
        m.slot_bytes = s->options.slot_bytes;
        snprintf(m.name, sizeof m.name, "%s", s->options.transport->name);
        break;
    case DSLINK_DUE_TELL_WARM: m.kind = CONTROL_WARM; break;
    case DSLINK_DUE_TELL_READY: m.kind = CONTROL_READY; break;
    default: m.kind = CONTROL_DRAIN;
    }
    m.bytes = NULL;
    m.size = 0;
    return m;
}

static bool next_due(const struct dslink *s, struct dslink_act *act)
{
    uint32_t due = s->due;
    bool in_hands = !s->let_go && (s->count > 0 || s->slot_in_hand != DSLINK_NO_SLOT);
    if (s->state == DSLINK_CLOSED && in_hands) due &= ~(uint32_t)DSLINK_DUE_CLOSE;
    due &= -due;
    switch (due) {
    case 0: return false;
    case DSLINK_DUE_CLOSE:
        act->kind = DSLINK_CLOSE;
        act->end = s->end;
        return true;
    case DSLINK_DUE_OPEN:
        act->kind = DSLINK_OPEN;
        act->slots_count = s->slots_count;
        act->slot_bytes = s->slot_bytes;
        return true;
    case DSLINK_DUE_JOIN:
        act->kind = DSLINK_JOIN;
        act->size = s->theirs_bytes;
        memcpy(act->bytes, s->theirs, s->theirs_bytes);
        return true;
    default:;
        struct control m = message_due(s, (enum dslink_due)due);
        tell(act, &m);
        return true;
    }
}

static bool begin(struct dslink_act *act, const struct dslink_operation *o)
{
    act->kind = DSLINK_BEGIN;
    act->slot = o->slot;
    act->payload_bytes = o->payload_bytes;
    act->number = o->number;
    return true;
}

static void announce(const struct dslink *s, struct dslink_act *act,
                     const struct dslink_operation *o)
{
    struct control m = {.kind = o->number == 0 ? CONTROL_WARM : CONTROL_PUSH,
                        .epoch = s->epoch,
                        .number = o->number,
                        .slot = o->slot,
                        .payload_bytes = o->payload_bytes,
                        .bytes = o->head,
                        .size = o->head_bytes};
    tell(act, &m);
}

static bool next_operation(const struct dslink *s, struct dslink_act *act)
{
    bool posted = s->options.transport->posted;
    bool free_to = !posted || s->has_turn || PLANTED("dslink_turns_ignored");
    const struct dslink_operation *o =
        s->options.dialler ? operation_nth(s, 0) : operation_oldest(s);
    if (s->count == 0 || !o || !free_to) return false;
    if (s->options.dialler && posted && !o->told) {
        announce(s, act, o);
        return true;
    }
    if (!o->begun) return begin(act, o);
    if (!s->options.dialler || posted || !o->ended || o->told) return false;
    announce(s, act, o); /* its bytes are in place */
    return true;
}

/* Whether it may say that nothing of it is under way. */
static bool is_drained(const struct dslink *s)
{
    if (s->state != DSLINK_DRAINING || s->drained_told || s->count > 0 || s->kept) return false;
    return s->options.dialler || s->drain_heard || s->drained_heard;
}

static bool tell_word(const struct dslink *s, struct dslink_act *act, enum control_kind kind)
{
    struct control m = {.kind = kind, .epoch = s->epoch, .slots_mask = s->owed};
    tell(act, &m);
    return true;
}

bool dslink_next(const struct dslink *s, struct dslink_act *act)
{
    act->size = 0;
    if (next_due(s, act)) return true;
    if (s->state == DSLINK_CLOSED || s->state == DSLINK_ABORTED) return false;
    if (s->owed) return tell_word(s, act, CONTROL_GRANT);
    if (next_operation(s, act)) return true;
    return is_drained(s) && tell_word(s, act, CONTROL_DRAINED);
}

static void told(struct dslink *s, enum control_kind kind, uint64_t now_ns)
{
    if (kind == CONTROL_GRANT) {
        s->granted |= s->owed;
        s->owed = 0;
    } else if (kind == CONTROL_DRAINED) {
        s->drained_told = true;
        dslink_close_if_drained(s);
    } else {
        struct dslink_operation *o = operation_nth(s, 0);
        o->told = true;
        s->counts.operations += o->number > 0;
        if (!o->ended) o->deadline_ns = now_ns + s->options.times.operation_ns;
        dslink_pop_if_over(s);
    }
}

void dslink_done(struct dslink *s, const struct dslink_act *act, uint64_t now_ns)
{
    uint32_t due = s->due & ~(uint32_t)DSLINK_DUE_CLOSE; /* which may wait for a payload's holder */
    due &= -due;
    if (act->kind == DSLINK_CLOSE) {
        s->open = s->lingers = false;
        s->due &= ~(uint32_t)DSLINK_DUE_CLOSE;
    } else if (act->kind == DSLINK_BEGIN) {
        struct dslink_operation *o = s->options.dialler ? operation_nth(s, 0) : operation_oldest(s);
        o->begun = true;
        uint64_t receive_ns = now_ns + s->options.times.receive_ns;
        if (!s->options.dialler && receive_ns < o->deadline_ns) o->deadline_ns = receive_ns;
    } else if (due) {
        if (due & DSLINK_DUE_TELL_OPEN) s->known_epoch = s->epoch;
        if (due & DSLINK_DUE_OPEN) s->open = s->opening = true;
        s->due &= ~due;
    } else {
        told(s, act->tell, now_ns);
    }
}

void dslink_opened(struct dslink *s, const uint8_t *offer, size_t size)
{
    const struct transport_ops *transport = s->options.transport;
    CHECK(s->opening && size <= TRANSPORT_OFFER_MAX);
    s->opening = false;
    if (size > 0) memcpy(s->ours, offer, size);
    s->ours_bytes = size;
    if (!s->options.dialler) s->due |= DSLINK_DUE_TELL_ACCEPT;
    if (s->options.dialler && transport->dialler_offers) s->due |= DSLINK_DUE_TELL_OFFER;
    if (s->options.dialler || !transport->dialler_offers) s->due |= DSLINK_DUE_JOIN;
}

/* ---- turns ---- */

bool dslink_wants_turn(const struct dslink *s)
{
    return s->options.transport->posted &&
           (s->lingers || (s->state != DSLINK_CLOSED && operation_oldest(s)));
}

void dslink_turn(struct dslink *s, bool has, uint64_t now_ns)
{
    struct dslink_operation *o = s->options.dialler && has ? operation_oldest(s) : NULL;
    s->has_turn = has;
    if (o && !o->told) o->deadline_ns = now_ns + s->options.times.operation_ns;
}

bool dslink_opening(const struct dslink *s)
{
    return s->opening;
}

bool dslink_joining(const struct dslink *s)
{
    return s->state == DSLINK_JOINING && s->open && !s->opening && !(s->due & DSLINK_DUE_JOIN);
}

bool dslink_operating(const struct dslink *s)
{
    const struct dslink_operation *o = operation_oldest(s);
    return s->open && s->state != DSLINK_CLOSED && o && o->begun;
}
