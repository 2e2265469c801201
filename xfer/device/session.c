/* The session of a device link: each side's answer to each event.
 *
 * "-" cannot be: the event is the other side's alone, or belongs to a transport that there is not.
 * "refused": the peer's fault, ERR_STATE. d: at the dialler, a: at the acceptor; "again": ABORTED if a try
 * is left, else CLOSED; "dead" is CLOSED with the reason told to the other side.
 *
 *          OPENING   ACCEPTING OFFERING  JOINING       WARMING        READY       DRAINING    ABORTED
 * OPEN     -         OFFERING, refused   refused       refused        refused     refused     as
 *                    JOINING                                                                  ACCEPTING
 * ACCEPT   JOINING   -         -         refused       refused        refused     refused     dropped
 * OFFER    -         -         JOINING   refused       refused        refused     refused     dropped
 * WARM     refused   -         refused   d: noted      operation 0    refused     refused     dropped
 *                                        a: refused
 * READY    refused   -         -         refused       READY when 0   refused     refused     dropped
 *                                                      is over
 * PUSH     -         -         refused   refused       refused        operation   operation   dropped
 * FRAME    refused   -         refused   refused       d, after READY: in its place           dropped
 * GRANT    refused   -         -         refused       refused        free again  free again  dropped
 * DRAIN    refused   -         refused   refused       d, after       DRAINING    noted       dropped
 *                                                      READY: dead
 * DRAINED  refused   -         refused   refused       refused        refused     CLOSED      dropped
 *                                                                                 when told
 * ABORT    again     -         again     again         again          CLOSED      CLOSED      dropped
 *          (final: CLOSED in every state)
 * joined   -         -         -         WARMING       -              -           -           -
 * ended    -         -         -         -             READY          frame       frame       -
 * broken   -         -         again     again         again          dead        dead        -
 *          (unsupported: dead in every state)
 * lost     CLOSED in every state; the frames that have come are still handed out
 * deadline dead      dead      again     again         again          dead        dead        d: OPENING
 *                                                                                             a: dead
 * drain    dead      dead      dead      dead          dead           DRAINING    -           dead
 *
 * In CLOSED whatever comes is dropped. An OFFER that comes before ACCEPT was told is refused. A message for the other direction, or of an epoch that cannot be, is
 * refused before the table is asked; so in ACCEPTING, which has had no epoch, all but OPEN. counts.met
 * counts each entry; tests/sim/links_reached.c says where each of them is met. */
#include "xfer/device/session_state.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/plant.h"

const struct dslink_times dslink_times_default = {
    .open_ns = 5 * NS_PER_S,
    .join_ns = 30 * NS_PER_S,
    .warm_ns = 10 * NS_PER_S,
    .operation_ns = 10 * NS_PER_S,
    .receive_ns = 4 * NS_PER_S,
    .drain_ns = 5 * NS_PER_S,
    .pause_ns = 100 * NS_PER_MS,
};

typedef enum err step(struct dslink *s, const struct control *m, uint64_t now_ns);

/* ---- operations ---- */

static struct dslink_operation *operations_push(struct dslink *s, uint32_t slot,
                                                uint32_t payload_bytes)
{
    CHECK(s->count < TRANSPORT_SLOTS_MAX);
    struct dslink_operation *o = operation_nth(s, s->count++);
    o->number = s->next_number++;
    o->slot = slot;
    o->payload_bytes = payload_bytes;
    o->told = o->begun = o->ended = false;
    o->deadline_ns = TIME_NEVER;
    o->head_bytes = 0;
    return o;
}

static uint32_t all_slots(const struct dslink *s)
{
    return (1u << s->slots_count) - 1;
}

/* Slots of operations that the dialler has not told of (false) or that are not over. */
static uint32_t slots_of_ring(const struct dslink *s, bool untold_only)
{
    uint32_t mask = 0;
    for (uint32_t i = 0; i < s->count; i++)
        if (!untold_only || !operation_nth(s, i)->told) mask |= 1u << operation_nth(s, i)->slot;
    return mask;
}

/* Neither side has anything under way, and both would say so. */
static bool known_quiet(const struct dslink *s)
{
    if (s->state != DSLINK_READY && s->state != DSLINK_DRAINING) return false;
    if (s->options.dialler) return s->count == 0 && s->granted == all_slots(s);
    return (s->drain_heard || s->drained_heard) && !operation_oldest(s);
}

/* ---- states ---- */

static void enter(struct dslink *s, enum dslink_state state, uint64_t deadline_ns)
{
    s->state = state;
    s->deadline_ns = deadline_ns;
}

static void keep_reason(struct dslink *s, enum err e, const char *text)
{
    s->error = e;
    snprintf(s->text, sizeof s->text, "%s", text);
}

/* The transport, if there is one, is to be closed; the other side is to hear of it. */
static void throw_away(struct dslink *s, bool tell, bool final)
{
    const struct dslink_operation *o = operation_oldest(s);
    s->lingers |= s->open && s->options.transport->posted && o && o->begun;
    s->due = s->open ? DSLINK_DUE_CLOSE : 0;
    s->opening = false;
    if (!tell || s->known_epoch == 0) return;
    s->due |= DSLINK_DUE_TELL_ABORT;
    s->abort_epoch = s->known_epoch;
    s->abort_final = final;
}

static enum err close_as(struct dslink *s, enum err e, const char *text, bool tell, bool orderly)
{
    s->end = orderly ? TRANSPORT_DRAINED : TRANSPORT_BROKEN;
    throw_away(s, tell, true);
    keep_reason(s, e, text);
    enter(s, DSLINK_CLOSED, TIME_NEVER);
    for (uint32_t i = 0; i < s->count; i++) { /* what has come whole is still handed out */
        if (operation_nth(s, i)->ended && !s->options.dialler) continue;
        s->count = i;
        if (!s->options.dialler) s->kept = NULL; /* its place is behind what is lost */
    }
    return e;
}

static enum err dead(struct dslink *s, enum err e, const char *text)
{
    return close_as(s, e, text, true, false);
}

/* This try has failed. */
static enum err again(struct dslink *s, enum err e, const char *text, bool tell, uint64_t now_ns)
{
    if (s->epoch >= DSLINK_EPOCHS_MAX || s->ready_heard) /* the other side is READY: too late */
        return close_as(s, e, text, tell, false);
    s->end = TRANSPORT_BROKEN;
    throw_away(s, tell, false);
    keep_reason(s, e, text);
    s->count = 0;
    enter(s, DSLINK_ABORTED,
          now_ns + (s->options.dialler ? s->options.times.pause_ns * s->epoch
                                       : s->options.times.open_ns));
    return OK;
}

static void begin_try(struct dslink *s, uint32_t epoch)
{
    s->epoch = epoch;
    s->warm_heard = s->ready_heard = false;
    s->next_number = 0;
    s->first = s->count = 0;
    s->ours_bytes = s->theirs_bytes = 0;
}

static void dial_again(struct dslink *s, uint64_t now_ns)
{
    begin_try(s, s->epoch + 1);
    s->due |= DSLINK_DUE_TELL_OPEN;
    enter(s, DSLINK_OPENING, now_ns + s->options.times.open_ns);
}

static void become_ready(struct dslink *s)
{
    s->granted = all_slots(s);
    s->owed = 0;
    enter(s, DSLINK_READY, TIME_NEVER);
}

/* Operation 0, in slot 0. */
static struct dslink_operation *warm(struct dslink *s)
{
    return operations_push(s, 0, s->slot_bytes);
}

/* ---- messages ---- */

static enum err refused(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    (void)now_ns;
    char text[CONTROL_TEXT_MAX];
    snprintf(text, sizeof text, "%s is not allowed in state %s", control_name(m->kind),
             dslink_state_name(s->state));
    return dead(s, ERR_STATE, text);
}

static enum err dropped(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    (void)now_ns;
    s->counts.late += m && m->kind != 0;
    return OK;
}

static void keep_theirs(struct dslink *s, const struct control *m)
{
    if (m->size > 0) memcpy(s->theirs, m->bytes, m->size);
    s->theirs_bytes = m->size;
}

static enum err on_open(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    const struct transport_ops *transport = s->options.transport;
    begin_try(s, m->epoch);
    s->known_epoch = m->epoch;
    if (strcmp(m->name, transport->name) != 0)
        return dead(s, ERR_UNSUPPORTED, "the dialler has another transport");
    s->slots_count =
        m->slots_count < s->options.slots_count ? m->slots_count : s->options.slots_count;
    s->slot_bytes = m->slot_bytes < s->options.slot_bytes ? m->slot_bytes : s->options.slot_bytes;
    s->due |= DSLINK_DUE_OPEN;
    if (transport->dialler_offers)
        enter(s, DSLINK_OFFERING, now_ns + s->options.times.open_ns);
    else
        enter(s, DSLINK_JOINING, now_ns + s->options.times.join_ns);
    return OK;
}

static enum err on_accept(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    if (m->slots_count > s->options.slots_count || m->slot_bytes > s->options.slot_bytes)
        return dead(s, ERR_FORMAT, "more slots were accepted than offered");
    s->slots_count = m->slots_count;
    s->slot_bytes = m->slot_bytes;
    keep_theirs(s, m);
    s->due |= DSLINK_DUE_OPEN;
    enter(s, DSLINK_JOINING, now_ns + s->options.times.join_ns);
    return OK;
}

static enum err on_offer(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    bool accepted = s->open && !s->opening && !(s->due & DSLINK_DUE_TELL_ACCEPT);
    if (!accepted) return refused(s, m, now_ns);
    keep_theirs(s, m);
    s->due |= DSLINK_DUE_JOIN;
    enter(s, DSLINK_JOINING, now_ns + s->options.times.join_ns);
    return OK;
}

/* A posted operation has to be received; of another one the bytes are there. */
static void announced(struct dslink *s, struct dslink_operation *o, uint64_t now_ns)
{
    o->told = true;
    o->begun = o->ended = !s->options.transport->posted;
    o->deadline_ns = o->ended ? TIME_NEVER : now_ns + s->options.times.operation_ns;
}

static void warmed(struct dslink *s, uint64_t now_ns)
{
    operations_pop(s);
    s->due |= DSLINK_DUE_TELL_READY;
    become_ready(s);
    if (PLANTED("dslink_unmatched_receive"))
        announced(s, operations_push(s, s->slots_count - 1, s->slot_bytes), now_ns);
}

static enum err on_warm(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    bool early = s->state == DSLINK_JOINING;
    if (s->options.dialler) {
        if (s->warm_heard) return refused(s, m, now_ns);
        s->warm_heard = true;
        if (!early) warm(s);
        return OK;
    }
    if (early || s->count > 0 || s->due & DSLINK_DUE_TELL_WARM) return refused(s, m, now_ns);
    announced(s, warm(s), now_ns);
    if (!operation_oldest(s)) warmed(s, now_ns);
    return OK;
}

static enum err on_ready(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    bool told = s->next_number == 1 && (s->count == 0 || operation_nth(s, 0)->told);
    if (!told || s->ready_heard) return refused(s, m, now_ns);
    s->ready_heard = true;
    if (s->count == 0) become_ready(s);
    return OK;
}

static enum err on_push(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    if (s->drain_heard || s->drained_heard) return refused(s, m, now_ns);
    if (m->number != s->next_number) return dead(s, ERR_STATE, "an operation out of its order");
    if (m->slot >= s->slots_count || !(s->granted >> m->slot & 1))
        return dead(s, ERR_STATE, "an operation in a slot that was not granted");
    if (m->payload_bytes > s->slot_bytes)
        return dead(s, ERR_FORMAT, "a payload longer than its slot");
    s->granted &= ~(1u << m->slot);
    struct dslink_operation *o = operations_push(s, m->slot, m->payload_bytes);
    if (m->size > 0) memcpy(o->head, m->bytes, m->size);
    o->head_bytes = m->size;
    announced(s, o, now_ns);
    s->counts.operations++;
    return OK;
}

static enum err on_frame(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    bool early = s->state == DSLINK_WARMING && !(s->options.dialler && s->ready_heard);
    if (early || s->drain_heard || s->drained_heard) return refused(s, m, now_ns);
    CHECK(!s->kept); /* the owner's promise */
    s->kept = m->bytes;
    s->kept_bytes = m->size;
    return ERR_AGAIN;
}

static enum err on_grant(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    (void)now_ns;
    uint32_t wrong = ~all_slots(s) | s->granted | slots_of_ring(s, true);
    if (m->slots_mask & wrong) return dead(s, ERR_STATE, "slots were granted that were free");
    s->granted |= m->slots_mask;
    return OK;
}

/* Nothing new is announced; what was not told of is given up. */
static void drain(struct dslink *s, uint64_t now_ns)
{
    for (uint32_t i = 0; i < s->count; i++)
        if (!operation_nth(s, i)->told && !PLANTED("dslink_send_after_drain")) {
            for (uint32_t j = i; j < s->count; j++)
                s->granted |= 1u << operation_nth(s, j)->slot;
            s->count = i;
        }
    enter(s, DSLINK_DRAINING, now_ns + s->options.times.drain_ns);
}

void dslink_close_if_drained(struct dslink *s)
{
    if (s->drained_told && s->drained_heard && !operation_oldest(s))
        close_as(s, OK, "drained", false, true);
}

static enum err on_drain(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    if (s->state == DSLINK_WARMING && !(s->options.dialler && s->ready_heard))
        return refused(s, m, now_ns);
    if (s->state == DSLINK_WARMING) {
        dead(s, ERR_PEER, "closed by the other side");
        return OK;
    }
    s->drain_heard = true;
    if (s->state == DSLINK_READY) drain(s, now_ns);
    return OK;
}

static enum err on_drained(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    if (s->drained_heard) return refused(s, m, now_ns);
    s->drained_heard = true;
    dslink_close_if_drained(s);
    return OK;
}

static enum err on_abort(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    bool setting_up = s->state < DSLINK_READY;
    if (s->state == DSLINK_ABORTED && !m->final) return dropped(s, m, now_ns);
    if (setting_up && !m->final)
        again(s, m->error, m->text, false, now_ns);
    else
        close_as(s, setting_up || s->state == DSLINK_ABORTED ? m->error : ERR_PEER, m->text, false,
                 false);
    return OK;
}

/* ---- events of the transport, of time and of the owner ---- */

static enum err on_joined(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    (void)m;
    enter(s, DSLINK_WARMING, now_ns + s->options.times.warm_ns);
    if (!s->options.dialler)
        s->due |= DSLINK_DUE_TELL_WARM;
    else if (s->warm_heard)
        warm(s);
    return OK;
}

void dslink_pop_if_over(struct dslink *s)
{
    if (operation_nth(s, 0)->told && operation_nth(s, 0)->ended) operations_pop(s);
    if (s->state == DSLINK_WARMING && s->count == 0 && s->ready_heard) become_ready(s);
}

static enum err on_ended(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    (void)m;
    struct dslink_operation *o = operation_oldest(s);
    CHECK(o && o->begun);
    o->ended = true;
    o->deadline_ns = TIME_NEVER;
    if (s->options.dialler)
        dslink_pop_if_over(s);
    else if (s->state == DSLINK_WARMING)
        warmed(s, now_ns);
    else if (PLANTED("dslink_grant_at_receive"))
        s->owed |= 1u << o->slot;
    if (s->state == DSLINK_DRAINING) dslink_close_if_drained(s);
    return OK;
}

static enum err on_broken(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    if (s->state >= DSLINK_READY || m->error == ERR_UNSUPPORTED)
        return dead(s, m->error, m->text); /* no try would end otherwise */
    return again(s, m->error, m->text, true, now_ns);
}

static enum err on_lost(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    (void)now_ns;
    return close_as(s, m->error, m->text, false, known_quiet(s));
}

static enum err on_deadline(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    (void)m;
    switch (s->state) {
    case DSLINK_OPENING: return dead(s, ERR_TIMEOUT, "no answer to OPEN");
    case DSLINK_ACCEPTING: return dead(s, ERR_TIMEOUT, "no OPEN has come");
    case DSLINK_OFFERING: return again(s, ERR_TIMEOUT, "no OFFER has come", true, now_ns);
    case DSLINK_JOINING: return again(s, ERR_TIMEOUT, "the transport does not join", true, now_ns);
    case DSLINK_WARMING: return again(s, ERR_TIMEOUT, "operation 0 does not end", true, now_ns);
    case DSLINK_DRAINING: return dead(s, ERR_TIMEOUT, "it does not drain");
    case DSLINK_ABORTED:
        if (!s->options.dialler) return dead(s, s->error, "no further try has come");
        dial_again(s, now_ns);
        return OK;
    default: return dead(s, ERR_TIMEOUT, "an operation does not end");
    }
}

static enum err on_owner(struct dslink *s, const struct control *m, uint64_t now_ns)
{
    (void)m;
    if (s->state != DSLINK_READY) return dead(s, ERR_CANCELLED, "closed while it was set up");
    s->due |= DSLINK_DUE_TELL_DRAIN;
    drain(s, now_ns);
    return OK;
}

/* clang-format off */
static step *const table[DSLINK_EVENTS][DSLINK_STATES] = {
    /*                       OPENING      ACCEPTING    OFFERING     JOINING      WARMING      READY        DRAINING     ABORTED      CLOSED */
    [CONTROL_OPEN]        = {NULL,        on_open,     refused,     refused,     refused,     refused,     refused,     on_open,     NULL},
    [CONTROL_ACCEPT]      = {on_accept,   NULL,        NULL,        refused,     refused,     refused,     refused,     dropped,     NULL},
    [CONTROL_OFFER]       = {NULL,        NULL,        on_offer,    refused,     refused,     refused,     refused,     dropped,     NULL},
    [CONTROL_WARM]        = {refused,     NULL,        refused,     on_warm,     on_warm,     refused,     refused,     dropped,     NULL},
    [CONTROL_READY]       = {refused,     NULL,        NULL,        refused,     on_ready,    refused,     refused,     dropped,     NULL},
    [CONTROL_PUSH]        = {NULL,        NULL,        refused,     refused,     refused,     on_push,     on_push,     dropped,     NULL},
    [CONTROL_FRAME]       = {refused,     NULL,        refused,     refused,     on_frame,    on_frame,    on_frame,    dropped,     NULL},
    [CONTROL_GRANT]       = {refused,     NULL,        NULL,        refused,     refused,     on_grant,    on_grant,    dropped,     NULL},
    [CONTROL_DRAIN]       = {refused,     NULL,        refused,     refused,     on_drain,    on_drain,    on_drain,    dropped,     NULL},
    [CONTROL_DRAINED]     = {refused,     NULL,        refused,     refused,     refused,     refused,     on_drained,  dropped,     NULL},
    [CONTROL_ABORT]       = {on_abort,    NULL,        on_abort,    on_abort,    on_abort,    on_abort,    on_abort,    on_abort,    NULL},
    [DSLINK_EV_JOINED]    = {NULL,        NULL,        NULL,        on_joined,   NULL,        NULL,        NULL,        NULL,        NULL},
    [DSLINK_EV_ENDED]     = {NULL,        NULL,        NULL,        NULL,        on_ended,    on_ended,    on_ended,    NULL,        NULL},
    [DSLINK_EV_BROKEN]    = {NULL,        NULL,        on_broken,   on_broken,   on_broken,   on_broken,   on_broken,   NULL,        NULL},
    [DSLINK_EV_LOST]      = {on_lost,     on_lost,     on_lost,     on_lost,     on_lost,     on_lost,     on_lost,     on_lost,     dropped},
    [DSLINK_EV_DEADLINE]  = {on_deadline, on_deadline, on_deadline, on_deadline, on_deadline, on_deadline, on_deadline, on_deadline, NULL},
    [DSLINK_EV_DRAIN]     = {on_owner,    on_owner,    on_owner,    on_owner,    on_owner,    on_owner,    dropped,     on_owner,    dropped},
};
/* clang-format on */

static enum err take(struct dslink *s, enum dslink_event event, const struct control *m,
                     uint64_t now_ns)
{
    step *answer = table[event][s->state];
    CHECK(answer);
    s->counts.met[s->state][event]++;
    return answer(s, m, now_ns);
}

/* Whether this side may hear such a message at all. */
static bool for_us(const struct dslink *s, enum control_kind kind)
{
    bool from_dialler = kind == CONTROL_OPEN || kind == CONTROL_OFFER || kind == CONTROL_PUSH;
    bool from_acceptor = kind == CONTROL_ACCEPT || kind == CONTROL_READY || kind == CONTROL_GRANT;
    return s->options.dialler ? !from_dialler : !from_acceptor;
}

enum err dslink_message(struct dslink *s, const void *bytes, size_t size, uint64_t now_ns)
{
    struct control m;
    if (s->state == DSLINK_CLOSED) {
        s->counts.late++;
        return OK;
    }
    enum err e = control_parse(bytes, size, &m);
    if (e != OK) return dead(s, e, err_text());
    if (!for_us(s, m.kind)) return refused(s, &m, now_ns);
    uint32_t newest = s->epoch + (m.kind == CONTROL_OPEN);
    if (m.epoch < s->epoch && !PLANTED("dslink_stale_epoch")) {
        s->counts.stale++;
        return OK;
    }
    if (m.epoch > newest || m.epoch > DSLINK_EPOCHS_MAX)
        return dead(s, ERR_STATE, "a message of an epoch that has not begun");
    if (m.kind == CONTROL_OPEN && m.epoch != newest) return refused(s, &m, now_ns);
    return take(s, (enum dslink_event)m.kind, &m, now_ns);
}

static void take_reason(struct dslink *s, enum dslink_event event, enum err e, const char *text,
                        uint64_t now_ns)
{
    struct control m = {.error = e};
    snprintf(m.text, sizeof m.text, "%s", text);
    take(s, event, &m, now_ns);
}

void dslink_joined(struct dslink *s, uint64_t now_ns)
{
    take(s, DSLINK_EV_JOINED, NULL, now_ns);
}

void dslink_ended(struct dslink *s, uint64_t now_ns)
{
    take(s, DSLINK_EV_ENDED, NULL, now_ns);
}

void dslink_broken(struct dslink *s, enum err e, const char *text, uint64_t now_ns)
{
    take_reason(s, DSLINK_EV_BROKEN, e, text, now_ns);
}

void dslink_lost(struct dslink *s, enum err e, const char *text, uint64_t now_ns)
{
    take_reason(s, DSLINK_EV_LOST, e, text, now_ns);
}

void dslink_drain(struct dslink *s, uint64_t now_ns)
{
    take(s, DSLINK_EV_DRAIN, NULL, now_ns);
}

uint64_t dslink_wake_at(const struct dslink *s)
{
    uint64_t at_ns = s->deadline_ns;
    for (uint32_t i = 0; i < s->count; i++)
        if (operation_nth(s, i)->deadline_ns < at_ns) at_ns = operation_nth(s, i)->deadline_ns;
    return at_ns;
}

void dslink_timer(struct dslink *s, uint64_t now_ns)
{
    if (dslink_wake_at(s) <= now_ns) take(s, DSLINK_EV_DEADLINE, NULL, now_ns);
}

void dslink_start(struct dslink *s, uint64_t now_ns)
{
    if (s->options.dialler)
        dial_again(s, now_ns);
    else
        enter(s, DSLINK_ACCEPTING, now_ns + s->options.times.open_ns);
}

/* ---- frames ---- */

bool dslink_slot_free(const struct dslink *s)
{
    uint32_t free = s->granted & ~slots_of_ring(s, false);
    return s->options.dialler && s->state == DSLINK_READY &&
           (free || s->slot_in_hand != DSLINK_NO_SLOT);
}

enum err dslink_slot(struct dslink *s, uint32_t *slot)
{
    if (!dslink_slot_free(s)) return ERR_AGAIN;
    if (s->slot_in_hand == DSLINK_NO_SLOT)
        s->slot_in_hand = (uint32_t)__builtin_ctz(s->granted & ~slots_of_ring(s, false));
    *slot = s->slot_in_hand;
    return OK;
}

void dslink_send_slot(struct dslink *s, const void *head, size_t head_bytes, uint32_t payload_bytes)
{
    CHECK(s->slot_in_hand != DSLINK_NO_SLOT && head_bytes <= CONTROL_HEAD_MAX);
    CHECK(payload_bytes > 0 && payload_bytes <= s->slot_bytes);
    uint32_t slot = s->slot_in_hand;
    s->slot_in_hand = DSLINK_NO_SLOT;
    if (s->state != DSLINK_READY) return; /* it has ended meanwhile */
    s->granted &= ~(1u << slot);
    struct dslink_operation *o = operations_push(s, slot, payload_bytes);
    if (head_bytes > 0) memcpy(o->head, head, head_bytes);
    o->head_bytes = head_bytes;
}

bool dslink_may_send(const struct dslink *s)
{
    bool untold = s->options.dialler && s->count > 0 && !operation_nth(s, s->count - 1)->told;
    return s->state == DSLINK_READY && !(s->due & DSLINK_DUE_TELL_READY) && !untold;
}

bool dslink_front(const struct dslink *s, struct dslink_frame *f)
{
    bool receives =
        s->state == DSLINK_READY || s->state == DSLINK_DRAINING || s->state == DSLINK_CLOSED;
    *f = (struct dslink_frame){0};
    if (!receives) return false;
    if (!s->options.dialler && s->count > 0) {
        const struct dslink_operation *o = operation_nth(s, 0);
        *f = (struct dslink_frame){true, o->head, o->head_bytes, o->slot, o->payload_bytes};
        return o->ended;
    }
    f->bytes = s->kept;
    f->size = s->kept_bytes;
    return s->kept != NULL;
}

bool dslink_release(struct dslink *s)
{
    if (s->options.dialler || s->count == 0) {
        CHECK(s->kept);
        s->kept = NULL;
        return true;
    }
    uint32_t slot = operation_nth(s, 0)->slot;
    operations_pop(s);
    bool goes_on = s->state == DSLINK_READY || s->state == DSLINK_DRAINING;
    if (goes_on && !PLANTED("dslink_grant_at_receive")) s->owed |= 1u << slot;
    return false;
}

void dslink_let_go(struct dslink *s)
{
    s->slot_in_hand = DSLINK_NO_SLOT;
    s->let_go = true;
}

/* ---- the object ---- */

enum err dslink_new(struct dslink **out, const struct dslink_options *options)
{
    struct dslink *s = *out = mem_new(sizeof *s);
    if (!s) return ERR_MEMORY;
    s->options = *options;
    if (s->options.slots_count > TRANSPORT_SLOTS_MAX) s->options.slots_count = TRANSPORT_SLOTS_MAX;
    CHECK(s->options.slots_count > 0 && s->options.slot_bytes > 0);
    s->slots_count = s->options.slots_count;
    s->slot_bytes = s->options.slot_bytes;
    s->slot_in_hand = DSLINK_NO_SLOT;
    s->deadline_ns = TIME_NEVER;
    s->state = options->dialler ? DSLINK_OPENING : DSLINK_ACCEPTING;
    return OK;
}

void dslink_free(struct dslink *s)
{
    mem_free(s);
}

enum dslink_state dslink_state(const struct dslink *s)
{
    return s->state;
}
uint32_t dslink_epoch(const struct dslink *s)
{
    return s->epoch;
}
uint32_t dslink_slots_count(const struct dslink *s)
{
    return s->slots_count;
}
uint32_t dslink_slot_bytes(const struct dslink *s)
{
    return s->slot_bytes;
}
enum err dslink_error(const struct dslink *s)
{
    return s->error;
}
const char *dslink_error_text(const struct dslink *s)
{
    return s->text;
}
const struct dslink_counts *dslink_counts(const struct dslink *s)
{
    return &s->counts;
}

const char *dslink_state_name(enum dslink_state state)
{
    static const char *const name[DSLINK_STATES] = {"OPENING",  "ACCEPTING", "OFFERING",
                                                    "JOINING",  "WARMING",   "READY",
                                                    "DRAINING", "ABORTED",   "CLOSED"};
    return name[state];
}

const char *dslink_event_name(enum dslink_event event)
{
    static const char *const name[] = {"joined", "ended", "broken", "lost", "deadline", "drain"};
    return event < DSLINK_EV_JOINED ? control_name((enum control_kind)event)
                                    : name[event - DSLINK_EV_JOINED];
}
