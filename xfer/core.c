/* Where events and frames go, and what is to be done next. Sessions' states are in session.c, what becomes
 * of tickets in ticket.c, sender.c and receiver.c. */
#include "xfer/core_state.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"

/* Not known here: an OPEN gets an answer; all else is of a ticket that has ended. */
static enum err on_unknown(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
                           enum err error)
{
    core->counts.frames_dead++;
    if (f->kind == FRAME_OPEN) session_note(s, f->ticket, error);
    return OK;
}

static enum err on_ticket_frame(struct xfer_core *core, struct xfer_session *s,
                                const struct frame *f, uint64_t now_ns, struct xfer_store *store)
{
    if (s->state != SESSION_READY)
        return err_set(ERR_STATE, "%s before HELLO", frame_name(f->kind));
    if (s->dialler) {
        struct xfer_ticket *t = map_get(&core->senders, f->ticket);
        if (t && t->session == s) return sender_frame(core, t, f, now_ns);
        core->counts.frames_dead++;
        return OK;
    }
    if (f->kind == FRAME_DATA) {
        if (f->payload_bytes > s->granted_bytes)
            return err_set(ERR_STATE, "%zu bytes without credit", f->payload_bytes);
        s->granted_bytes -= f->payload_bytes;
        s->owed_bytes += f->payload_bytes;
        s->taken_bytes += f->payload_bytes;
    }
    struct xfer_ticket *t = map_get(&core->receivers, f->ticket);
    if (!t) return on_unknown(core, s, f, ERR_NOT_FOUND);
    if (f->kind == FRAME_OPEN && !receiver_admits(t, s))
        return on_unknown(core, s, f, ERR_DUPLICATE);
    return receiver_frame(core, t, s, f, now_ns, store);
}

enum err xfer_core_frame(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
                         uint64_t now_ns, struct xfer_store *store)
{
    *store = (struct xfer_store){0};
    if (s->state == SESSION_ENDED || s->state == SESSION_PARTING) {
        core->counts.frames_dead++;
        return OK;
    }
    s->heard_ns = now_ns;
    if (f->kind == FRAME_HELLO) return session_hello(core, s, f, now_ns);
    if (f->kind == FRAME_CREDIT) return session_credit(core, s, f, now_ns);
    if (f->kind == FRAME_FAIL && id128_is_none(f->ticket)) {
        if (f->error == ERR_FULL && s->dialler && s->state == SESSION_READY) {
            session_yield(core, s, f->text, now_ns);
            return OK;
        }
        session_end(core, s, f->error, f->text, now_ns);
        return OK;
    }
    return on_ticket_frame(core, s, f, now_ns, store);
}

void xfer_core_stored(struct xfer_core *core, struct xfer_session *s,
                      const struct xfer_store *store, bool good, uint64_t now_ns)
{
    struct xfer_ticket *t = map_get(&core->receivers, store->ticket);
    CHECK(t); /* nothing happens between the frame and its storing */
    receiver_stored(core, t, s, store, good, now_ns);
}

static bool ticket_wants(struct xfer_core *core, struct xfer_ticket *t, struct xfer_send *send)
{
    return ticket_last_word(t, send) ||
           (t->sends ? sender_wants(core, t, send) : receiver_wants(t, send));
}

bool xfer_core_wants(struct xfer_core *core, struct xfer_session *s, struct xfer_send *send)
{
    *send = (struct xfer_send){0};
    if (session_wants(core, s, &send->frame)) return true;
    if (s->state != SESSION_READY) return false;
    bool waits = false;
    for (struct list_link *l = s->ready.next, *next; l != &s->ready; l = next) {
        struct xfer_ticket *t = list_member(l, struct xfer_ticket, ready);
        next = l->next;
        *send = (struct xfer_send){0}; /* the one before may have left DATA without credit */
        if (ticket_wants(core, t, send)) {
            send->about = t;
            send->frame.ticket = t->id;
            return true;
        }
        if (send->frame.kind == FRAME_DATA)
            waits = true; /* for credit */
        else
            list_remove(l);
    }
    s->meter.dry |= !waits;
    return false;
}

void xfer_core_sent(struct xfer_core *core, struct xfer_session *s, const struct xfer_send *send,
                    uint64_t now_ns)
{
    struct xfer_ticket *t = send->about;
    if (!t) {
        session_sent(core, s, &send->frame, now_ns);
    } else if (t->state == TICKET_ENDED) {
        ticket_leave(t);
        if (ticket_unused(t)) ticket_free(t);
    } else {
        if (t->sends)
            sender_sent(core, t, send, now_ns);
        else
            receiver_sent(t, send);
        list_remove(&t->ready); /* to the end: each ticket in its turn */
        ticket_wake(t);
    }
}

static void op_open(struct xfer_core *core, struct xfer_ticket *t, uint64_t now_ns)
{
    enum err e = map_put(t->sends ? &core->senders : &core->receivers, t->id, t);
    if (e != OK) { /* twice the same ticket: the second one ends, the first goes on */
        t->event.kind = XFER_FAILED;
        t->event.error = e;
        snprintf(t->event.text, sizeof t->event.text, "the ticket is in use");
        t->state = TICKET_ENDED;
        list_push_back(&core->ended, &t->ended);
        core->counts.tickets_failed++;
        return;
    }
    CHECK(heap_move(&core->ticket_timers, &t->timer, t->timer.key) == OK);
    if (!t->sends) return;
    peer_open(core, t, now_ns);
}

void xfer_core_op(struct xfer_core *core, struct xfer_message *m, uint64_t now_ns)
{
    bool of_receiver = m->kind == XFER_EXPECT || m->kind == XFER_RELEASE;
    struct xfer_ticket *t = map_get(of_receiver ? &core->receivers : &core->senders, m->ticket);
    if (m->kind == XFER_EXPECT || m->kind == XFER_OPEN) {
        op_open(core, m->opened, now_ns);
        return;
    }
    if (!t) { /* its event is on the way */
        xfer_message_free(m);
        return;
    }
    switch (m->kind) {
    case XFER_PUSH: sender_push(core, t, m->push, now_ns); break;
    case XFER_COMMIT:
        sender_commit(core, t, m->commit, now_ns);
        mem_free(m->commit);
        break;
    case XFER_CANCEL:
        ticket_end(core, t, XFER_CANCELLED, OK, "cancelled by the sender", FRAME_FAIL, now_ns);
        break;
    default: ticket_end(core, t, XFER_RELEASED, OK, "released by the receiver", FRAME_FAIL, now_ns);
    }
}

static void ticket_deadline(struct xfer_core *core, struct xfer_ticket *t, uint64_t now_ns)
{
    struct xfer_session *s = t->session;
    const char *text = t->state == TICKET_CONNECTING ? "no link by the deadline"
                       : t->state == TICKET_EXPECTED ? "nothing came by the deadline"
                                                     : "not complete by the deadline";
    bool silent = s && s->dialler && t->opened && s->heard_ns <= t->event.began_ns;
    if (silent) s->retired = true;
    if (silent && s->way)
        peer_detach(core, s, ERR_TIMEOUT, "the other side was silent until a deadline", now_ns);
    ticket_end(core, t, XFER_FAILED, ERR_TIMEOUT, text, FRAME_FAIL, now_ns);
}

void xfer_core_timer(struct xfer_core *core, uint64_t now_ns)
{
    struct heap_entry *first;
    while ((first = heap_first(&core->ticket_timers)) && first->key <= now_ns)
        ticket_deadline(core, list_member(first, struct xfer_ticket, timer), now_ns);
    while ((first = heap_first(&core->session_timers)) && first->key <= now_ns)
        session_deadline(core, list_member(first, struct xfer_session, timer), now_ns);
    if (now_ns < core->tell_ns) return;
    while (!list_empty(&core->changed))
        list_push_back(&core->telling, list_pop_front(&core->changed));
    core->told_ns = now_ns;
    core->tell_ns = TIME_NEVER;
}

uint64_t xfer_core_wake_at(const struct xfer_core *core)
{
    const struct heap_entry *t = heap_first(&core->ticket_timers);
    const struct heap_entry *s = heap_first(&core->session_timers);
    uint64_t at = t && t->key < core->tell_ns ? t->key : core->tell_ns;
    return s && s->key < at ? s->key : at;
}

void xfer_core_stop(struct xfer_core *core, uint64_t now_ns)
{
    struct map *side[] = {&core->senders, &core->receivers};
    for (int i = 0; i < 2; i++) {
        struct xfer_ticket *t;
        for (struct map_cursor c = {0}; (t = map_next(side[i], &c)); c = (struct map_cursor){0})
            ticket_end(core, t, XFER_FAILED, ERR_CANCELLED, "the node stops", FRAME_FAIL, now_ns);
    }
}

bool xfer_core_next(struct xfer_core *core, struct xfer_action *action)
{
    struct list_link *l = list_pop_front(&core->ended);
    *action = (struct xfer_action){0};
    if (l) {
        struct xfer_ticket *t = list_member(l, struct xfer_ticket, ended);
        action->kind = XFER_ACT_EVENT;
        action->event = t->event;
        action->event.ticket = t->id;
        if (ticket_unused(t)) ticket_free(t);
        return true;
    }
    if ((l = list_pop_front(&core->arriving))) {
        action->kind = XFER_ACT_EVENT;
        action->event = (struct xfer_event){
            .kind = XFER_ARRIVING, .ticket = list_member(l, struct xfer_ticket, arriving)->id};
        return true;
    }
    if ((l = list_pop_front(&core->telling))) {
        action->kind = XFER_ACT_LINK;
        action->link = way_row(list_member(l, struct xfer_way, changed));
        return true;
    }
    if (!(l = list_pop_front(&core->acts))) return false;
    struct xfer_session *s = list_member(l, struct xfer_session, acts);
    action->session = s;
    action->kind = XFER_ACT_CLOSE;
    if (s->state != SESSION_DIAL) return true;
    action->kind = XFER_ACT_DIAL;
    action->address = way_address(s->way);
    s->state = SESSION_DIALLING;
    return true;
}

void xfer_core_closed(struct xfer_session *s)
{
    CHECK(s->state == SESSION_ENDED);
    session_free(s);
}

enum err xfer_core_new(struct xfer_core **out, const struct xfer_core_options *options)
{
    enum err e = ERR_MEMORY;
    struct xfer_core *core = mem_new(sizeof *core);
    *out = NULL;
    if (!core) return ERR_MEMORY;
    core->options = *options;
    core->options.part = kv_part_told(&options->geometry, options->part);
    if (core->options.retry_ns == 0) core->options.retry_ns = NS_PER_S;
    core->tell_ns = TIME_NEVER;
    list_init(&core->peers);
    list_init(&core->changed);
    list_init(&core->telling);
    list_init(&core->sessions);
    list_init(&core->acts);
    list_init(&core->ended);
    list_init(&core->arriving);
    if ((e = map_reserve(&core->senders, options->tickets_max)) != OK ||
        (e = map_reserve(&core->receivers, options->tickets_max)) != OK ||
        (e = heap_reserve(&core->ticket_timers, options->tickets_max)) != OK ||
        (e = heap_reserve(&core->session_timers, XFER_SESSIONS_MAX)) != OK) {
        xfer_core_free(core);
        return e;
    }
    *out = core;
    return OK;
}

void xfer_core_free(struct xfer_core *core)
{
    if (!core) return;
    struct xfer_action action;
    xfer_core_stop(core, 0);
    while (!list_empty(&core->sessions)) {
        struct xfer_session *s = list_member(core->sessions.next, struct xfer_session, all);
        if (s->state != SESSION_ENDED) session_end(core, s, ERR_CANCELLED, "the node stops", 0);
        session_free(s);
    }
    while (xfer_core_next(core, &action))
        continue;
    peers_free(core);
    map_fini(&core->senders);
    map_fini(&core->receivers);
    heap_fini(&core->ticket_timers);
    heap_fini(&core->session_timers);
    mem_free(core);
}

uint32_t xfer_session_layout(const struct xfer_session *session)
{
    return session->layout;
}

void xfer_session_set_user(struct xfer_session *session, void *user)
{
    session->user = user;
}

void *xfer_session_user(const struct xfer_session *session)
{
    return session->user;
}

struct xfer_core_counts xfer_core_counts(const struct xfer_core *core)
{
    return core->counts;
}

uint32_t xfer_core_sessions_count(const struct xfer_core *core)
{
    uint32_t count = 0;
    for (const struct list_link *l = core->sessions.next; l != &core->sessions; l = l->next)
        count += list_member(l, struct xfer_session, all)->state == SESSION_READY;
    return count;
}

uint32_t xfer_core_tickets_count(const struct xfer_core *core)
{
    return (uint32_t)(core->senders.count + core->receivers.count);
}
