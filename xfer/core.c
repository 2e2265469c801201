/* Tickets' common parts, and the link session.
 *
 *     state \ event  HELLO                 FAIL (no ticket)  deadline     link lost  crowded
 *     DIAL           -                     -                 ENDED        -          -
 *     DIALLING       -                     -                 ENDED        ENDED      -
 *     GREETING       READY; PARTING if     ENDED             ENDED        ENDED      -
 *                    the KV differs
 *     READY          ERR_STATE             ENDED             idle: ENDED  ENDED      dialler: ENDED
 *                                                                                    acceptor: PARTING
 *     PARTING        dead                  ENDED             ENDED        ENDED      -
 *     ENDED          waits for xfer_core_closed; whatever comes is dropped
 *
 * ENDED fails all tickets of the session; those that wait for a link to the same peer get another one
 * (peer.c), where it was dialled from here. Any other frame before READY, and one that belongs to the
 * other direction, is ERR_STATE: the link is dropped. READY has a deadline only at the dialler and
 * while it has no tickets: each ticket has its own. An acceptor does not close idle links, with one
 * exception: when it is crowded, the one used least recently of those that have had no ticket and no
 * frame for SILENT_NS parts with FAIL ERR_FULL, and drops whatever still comes. So if OPENs have crossed
 * that FAIL, nothing of their tickets was heard: the dialler places them anew, MOVES_MAX times each, and
 * does not hold it against the way. */
#include "xfer/core_state.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"

enum {
    NOTES_MAX = 64,
    MOVES_MAX = 3, /* of one ticket, by peers that want their place back */
};
#define SILENT_NS NS_PER_S

/* ---- tickets ---- */

static bool ticket_unused(const struct xfer_ticket *t)
{
    return list_empty(&t->ended) && t->last_word == 0;
}

/* All that it needs no more once it has ended. */
static void ticket_clear(struct xfer_ticket *t)
{
    struct list_link *l;
    while ((l = list_pop_front(&t->pushes)))
        mem_free(list_member(l, struct xfer_push, link));
    while ((l = list_pop_front(&t->agains)))
        mem_free(list_member(l, struct again, link));
    mem_free(t->blocks);
    mem_free(t->verified);
    t->blocks = NULL;
    t->verified = NULL;
    t->next_push = NULL;
}

struct xfer_ticket *ticket_blank(void)
{
    struct xfer_ticket *t = mem_new(sizeof *t);
    if (!t) return NULL;
    list_init(&t->in_session);
    list_init(&t->ready);
    list_init(&t->ended);
    list_init(&t->agains);
    list_init(&t->pushes);
    list_init(&t->feeds);
    list_init(&t->in_feeds);
    t->event.link = "";
    return t;
}

void ticket_free(struct xfer_ticket *t)
{
    if (!t) return;
    ticket_clear(t);
    mem_free(t);
}

void ticket_wake(struct xfer_ticket *t)
{
    if (t->session && list_empty(&t->ready)) list_push_back(&t->session->ready, &t->ready);
}

void ticket_moved(struct xfer_core *core, struct xfer_ticket *t, uint64_t now_ns)
{
    uint64_t at_ns = now_ns + t->silence_ns;
    if (t->silence_ns == 0 || t->state == TICKET_ENDED || at_ns <= t->timer.key) return;
    CHECK(heap_move(&core->ticket_timers, &t->timer, at_ns) == OK); /* it has its place */
}

enum err ticket_again(struct xfer_ticket *t, const struct frame_range *range)
{
    if (t->agains_count >= FRAME_TRIES_MAX * t->units_count)
        return err_set(ERR_FORMAT, "wrong checksums without end");
    struct again *again = mem_new(sizeof *again);
    if (!again) return ERR_MEMORY;
    again->range = *range;
    list_push_back(&t->agains, &again->link);
    t->agains_count++;
    ticket_wake(t);
    return OK;
}

static void session_timer(struct xfer_core *core, struct xfer_session *s, uint64_t at_ns)
{
    CHECK(heap_move(&core->session_timers, &s->timer, at_ns) == OK); /* reserved at the start */
}

static void session_act(struct xfer_core *core, struct xfer_session *s)
{
    if (list_empty(&s->acts)) list_push_back(&core->acts, &s->acts);
}

void ticket_join(struct xfer_core *core, struct xfer_ticket *t, struct xfer_session *s,
                 uint64_t now_ns)
{
    t->session = s;
    t->event.link = s->link;
    list_remove(&t->in_session);
    list_push_back(&s->tickets, &t->in_session);
    s->live_count++;
    s->used_ns = now_ns;
    heap_remove(&core->session_timers, &s->timer);
    way_changed(core, s->way, now_ns);
}

/* It has ended, and has said what there was to say. */
static void ticket_leave(struct xfer_ticket *t)
{
    t->session = NULL;
    t->last_word = 0;
    list_remove(&t->in_session);
    list_remove(&t->ready);
}

/* One of its tickets has ended. Last words that it does not get rid of end with it. */
static void session_rest(struct xfer_core *core, struct xfer_session *s, uint64_t now_ns)
{
    way_changed(core, s->way, now_ns);
    if (--s->live_count > 0 || s->state != SESSION_READY || !s->dialler) return;
    session_timer(core, s,
                  now_ns + (s->retired ? core->options.handshake_ns : core->options.idle_close_ns));
}

/* What is left of it is its last word to the other side of its session. */
static void ticket_rest(struct xfer_core *core, struct xfer_ticket *t, enum frame_kind last_word,
                        uint64_t now_ns)
{
    struct xfer_session *s = t->session;
    bool told = s && s->state == SESSION_READY && (!t->sends || t->opened);
    t->state = TICKET_ENDED;
    ticket_clear(t);
    if (last_word != 0 && told) {
        t->last_word = last_word;
        ticket_wake(t);
    } else {
        ticket_leave(t);
    }
    if (s) session_rest(core, s, now_ns);
}

static void feed_end(struct xfer_core *core, struct xfer_ticket *feed, const struct xfer_event *v,
                     enum frame_kind last_word, uint64_t now_ns)
{
    list_remove(&feed->in_feeds);
    feed->whole = NULL;
    feed->event = *v;
    ticket_rest(core, feed, last_word, now_ns);
    if (ticket_unused(feed)) ticket_free(feed);
}

void ticket_end(struct xfer_core *core, struct xfer_ticket *of, enum xfer_event_kind kind,
                enum err error, const char *text, enum frame_kind last_word, uint64_t now_ns)
{
    struct xfer_ticket *t = of->whole ? of->whole : of;
    enum frame_kind to_others = kind == XFER_COMMITTED ? FRAME_DONE : FRAME_FAIL;
    enum frame_kind to_first = of == t ? last_word : to_others;
    CHECK(t->state != TICKET_ENDED);
    struct xfer_event *v = &t->event;
    v->kind = kind;
    v->error = error;
    v->ended_ns = now_ns;
    snprintf(v->text, sizeof v->text, "%s", text);
    core->counts.tickets_done += error == OK;
    core->counts.tickets_failed += error != OK;
    map_remove(t->sends ? &core->senders : &core->receivers, t->id);
    heap_remove(&core->ticket_timers, &t->timer);
    list_push_back(&core->ended, &t->ended);
    while (!list_empty(&t->feeds)) {
        struct xfer_ticket *feed = list_member(t->feeds.next, struct xfer_ticket, in_feeds);
        feed_end(core, feed, v, feed == of ? last_word : to_others, now_ns);
    }
    ticket_rest(core, t, to_first, now_ns);
}

static bool last_word_wants(const struct xfer_ticket *t, struct xfer_send *send)
{
    if (t->state != TICKET_ENDED || t->last_word == 0) return false;
    struct frame *f = &send->frame;
    f->kind = t->last_word;
    f->error = t->event.error != OK ? t->event.error : ERR_CANCELLED;
    snprintf(f->text, sizeof f->text, "%s", t->event.text);
    return true;
}

/* ---- sessions ---- */

static struct xfer_session *session_new(struct xfer_core *core, uint64_t now_ns)
{
    if (core->sessions_count == XFER_SESSIONS_MAX && !session_crowded(core, NULL, now_ns)) {
        err_set(ERR_FULL, "%d links are open", XFER_SESSIONS_MAX);
        return NULL;
    }
    struct xfer_session *s = mem_new(sizeof *s);
    if (!s) return NULL;
    list_init(&s->acts);
    list_init(&s->tickets);
    list_init(&s->ready);
    list_init(&s->notes);
    list_push_back(&core->sessions, &s->all);
    s->link = "";
    s->used_ns = now_ns;
    s->meter.dry = true;
    core->sessions_count++;
    return s;
}

/* What making it may take. */
static uint64_t setup_ns(const struct xfer_core *core, const struct link_trait *trait)
{
    return core->options.handshake_ns * (trait->slow ? 6 : 1);
}

static void notes_free(struct xfer_session *s)
{
    struct list_link *l;
    while ((l = list_pop_front(&s->notes)))
        mem_free(list_member(l, struct note, link));
    s->notes_count = 0;
}

static void session_free(struct xfer_session *s)
{
    notes_free(s);
    list_remove(&s->acts);
    list_remove(&s->all);
    mem_free(s);
}

/* What a ticket's owner can act on: that the peer is gone, or why it does not want us. */
static enum err ticket_error(enum err e)
{
    return e == ERR_TIMEOUT || e == ERR_UNSUPPORTED || e == ERR_INVALID || e == ERR_CANCELLED ||
                   e == ERR_MEMORY || e == ERR_FULL
               ? e
               : ERR_PEER;
}

void session_end(struct xfer_core *core, struct xfer_session *s, enum err e, const char *text,
                 uint64_t now_ns)
{
    char copy[XFER_TEXT_MAX];
    snprintf(copy, sizeof copy, "%s", text);
    s->state = SESSION_ENDED;
    core->sessions_count--;
    heap_remove(&core->session_timers, &s->timer);
    session_act(core, s);
    notes_free(s);
    while (!list_empty(&s->tickets)) {
        struct xfer_ticket *t = list_member(s->tickets.next, struct xfer_ticket, in_session);
        if (t->state != TICKET_ENDED) {
            ticket_end(core, t, XFER_FAILED, ticket_error(e), copy, 0, now_ns);
        } else {
            ticket_leave(t);
            if (ticket_unused(t)) ticket_free(t);
        }
    }
    if (s->way) peer_detach(core, s, e != OK ? ticket_error(e) : OK, copy, now_ns);
}

/* Nobody misses it. Of an accepted one that is a guess: it must have been silent. */
static bool is_idle(const struct xfer_session *s, uint64_t now_ns)
{
    if (s->state != SESSION_READY || s->live_count > 0) return false;
    return s->dialler || (list_empty(&s->tickets) && list_empty(&s->notes) &&
                          s->heard_ns + SILENT_NS <= now_ns && s->used_ns + SILENT_NS <= now_ns);
}

static struct xfer_session *least_used(const struct xfer_core *core, bool dialler,
                                       const struct link_trait *trait, uint64_t now_ns)
{
    struct xfer_session *oldest = NULL;
    for (const struct list_link *l = core->sessions.next; l != &core->sessions; l = l->next) {
        struct xfer_session *s = list_member(l, struct xfer_session, all);
        if (s->dialler != dialler || !is_idle(s, now_ns)) continue;
        if (trait && link_trait(s->link) != trait) continue;
        if (!oldest || s->used_ns < oldest->used_ns) oldest = s;
    }
    return oldest;
}

/* The other side is told, and hangs up when it has heard; else the deadline ends it. */
static void session_part(struct xfer_core *core, struct xfer_session *s, enum err e,
                         const char *text, uint64_t now_ns)
{
    s->error = e;
    snprintf(s->text, sizeof s->text, "%s", text);
    s->state = SESSION_PARTING;
    session_timer(core, s, now_ns + SILENT_NS);
}

bool session_crowded(struct xfer_core *core, const struct link_trait *trait, uint64_t now_ns)
{
    struct xfer_session *s = least_used(core, true, trait, now_ns);
    if (s) {
        session_end(core, s, OK, "idle", now_ns);
        return true;
    }
    if ((s = least_used(core, false, trait, now_ns)))
        session_part(core, s, ERR_FULL, "making room for others", now_ns);
    return false;
}

void xfer_core_crowded(struct xfer_core *core, const char *link, uint64_t now_ns)
{
    session_crowded(core, link_trait(link), now_ns);
}

/* The other side wants its place back, and has heard of none of these tickets. */
static void session_yield(struct xfer_core *core, struct xfer_session *s, const char *text,
                          uint64_t now_ns)
{
    struct list_link moved, *l;
    list_init(&moved);
    for (struct list_link *next = s->tickets.next; (l = next) != &s->tickets;) {
        struct xfer_ticket *t = list_member(l, struct xfer_ticket, in_session);
        next = l->next;
        if (t->state == TICKET_ENDED || t->moves_count == MOVES_MAX) continue;
        sender_restart(t);
        list_push_back(&moved, &t->in_session);
        s->live_count--;
    }
    bool lasts = s->live_count > 0; /* somebody was moved too often: then it is a failure */
    session_end(core, s, lasts ? ERR_FULL : OK, text, now_ns);
    while ((l = list_pop_front(&moved)))
        peer_open(core, list_member(l, struct xfer_ticket, in_session), now_ns);
}

struct xfer_session *session_dial(struct xfer_core *core, struct xfer_way *way, uint64_t now_ns)
{
    struct xfer_session *s = session_new(core, now_ns);
    if (!s) return NULL;
    s->dialler = true;
    s->way = way;
    s->state = SESSION_DIAL;
    session_timer(core, s, now_ns + setup_ns(core, way->trait));
    session_act(core, s);
    return s;
}

void xfer_core_lost(struct xfer_core *core, struct xfer_session *s, enum err e, const char *text,
                    uint64_t now_ns)
{
    if (s->state == SESSION_ENDED) return;
    char copy[XFER_TEXT_MAX]; /* what follows may say something else */
    snprintf(copy, sizeof copy, "%s", text);
    session_end(core, s, e == OK ? ERR_PEER : e, copy, now_ns);
}

struct xfer_session *xfer_core_accepted(struct xfer_core *core, const char *link, uint64_t now_ns)
{
    uint32_t greetings = 0;
    for (struct list_link *l = core->sessions.next; l != &core->sessions; l = l->next) {
        const struct xfer_session *other = list_member(l, struct xfer_session, all);
        greetings += !other->dialler && other->state == SESSION_GREETING;
    }
    if (greetings >= XFER_GREETINGS_MAX) return NULL;
    struct xfer_session *s = session_new(core, now_ns);
    if (!s) return NULL;
    s->state = SESSION_GREETING;
    s->link = link;
    s->heard_ns = now_ns;
    session_timer(core, s, now_ns + setup_ns(core, link_trait(link)));
    return s;
}

void xfer_core_connected(struct xfer_core *core, struct xfer_session *s, const char *link,
                         const struct kv_link_facts *facts, uint64_t now_ns)
{
    s->window_bytes = facts->window_bytes;
    s->slot_bytes = facts->slot_bytes;
    if (s->state != SESSION_DIALLING) return;
    if (s->slot_bytes > 0 && s->slot_bytes < kv_layer_bytes(&core->options.geometry)) {
        err_set(ERR_INVALID, "slots of %u bytes are shorter than a block's layer",
                facts->slot_bytes);
        session_end(core, s, ERR_INVALID, err_text(), now_ns);
        return;
    }
    s->state = SESSION_GREETING;
    s->link = link;
    s->hello_due = true;
    session_timer(core, s, now_ns + core->options.handshake_ns);
}

static void session_ready(struct xfer_core *core, struct xfer_session *s, uint64_t now_ns)
{
    s->state = SESSION_READY;
    if (s->dialler)
        session_timer(core, s, now_ns + core->options.idle_close_ns);
    else
        heap_remove(&core->session_timers, &s->timer);
    if (s->way) peer_ready(core, s->way, now_ns);
}

static enum err on_hello(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
                         uint64_t now_ns)
{
    if (s->state != SESSION_GREETING) return err_set(ERR_STATE, "a second HELLO");
    s->error = session_meet(core, s, f);
    if (s->error != OK) {
        snprintf(s->text, sizeof s->text, "%s", err_text());
        s->state = SESSION_PARTING;
        s->hello_due = false;
        return OK;
    }
    if (s->dialler) {
        s->credit_bytes = f->window_bytes;
    } else {
        s->hello_due = true;
        s->granted_bytes = s->window_bytes;
    }
    session_ready(core, s, now_ns);
    return OK;
}

static enum err on_credit(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
                          uint64_t now_ns)
{
    if (!s->dialler || s->state != SESSION_READY) return err_set(ERR_STATE, "CREDIT out of turn");
    if (__builtin_add_overflow(s->credit_bytes, f->window_bytes, &s->credit_bytes))
        return err_set(ERR_STATE, "CREDIT without end");
    rate_credited(core, s, f->window_bytes, now_ns);
    return OK;
}

/* Not known here: an OPEN gets an answer; all else is of a ticket that has ended. */
static enum err on_unknown(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
                           enum err error)
{
    core->counts.frames_dead++;
    if (f->kind != FRAME_OPEN || s->notes_count == NOTES_MAX) return OK;
    struct note *note = mem_new(sizeof *note);
    if (!note) return OK; /* its deadline will tell the sender */
    note->ticket = f->ticket;
    note->error = error;
    list_push_back(&s->notes, &note->link);
    s->notes_count++;
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
    if (f->kind == FRAME_HELLO) return on_hello(core, s, f, now_ns);
    if (f->kind == FRAME_CREDIT) return on_credit(core, s, f, now_ns);
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

/* ---- what a session has to say ---- */

/* A quarter of the window was taken in, or what is granted is too little for the longest frame. */
static bool credit_due(const struct xfer_session *s)
{
    uint64_t longest = (uint64_t)s->frame_units * s->unit_bytes;
    return s->owed_bytes > s->window_bytes / 4 ||
           (s->owed_bytes > 0 && s->owed_bytes + longest > s->window_bytes);
}

static bool session_wants(struct xfer_core *core, struct xfer_session *s, struct frame *f)
{
    if (s->hello_due) {
        f->kind = FRAME_HELLO;
        f->incarnation = core->options.incarnation;
        f->geometry = core->options.geometry;
        f->part = core->options.part;
        f->window_bytes = s->dialler ? 0 : s->window_bytes;
        return true;
    }
    if (s->state == SESSION_PARTING) {
        if (s->parted) return false;
        f->kind = FRAME_FAIL;
        f->error = s->error;
        snprintf(f->text, sizeof f->text, "%s", s->text);
        return true;
    }
    if (s->state == SESSION_READY && credit_due(s)) {
        f->kind = FRAME_CREDIT;
        f->window_bytes = s->owed_bytes;
        return true;
    }
    if (list_empty(&s->notes)) return false;
    const struct note *note = list_member(s->notes.next, struct note, link);
    f->kind = FRAME_FAIL;
    f->ticket = note->ticket;
    f->error = note->error;
    snprintf(f->text, sizeof f->text, "%s",
             note->error == ERR_NOT_FOUND ? "the receiver does not know the ticket"
                                          : "the ticket is open over another link");
    return true;
}

static bool ticket_wants(struct xfer_core *core, struct xfer_ticket *t, struct xfer_send *send)
{
    return last_word_wants(t, send) ||
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

static void session_sent(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
                         uint64_t now_ns)
{
    if (s->hello_due) {
        s->hello_due = false;
    } else if (s->state == SESSION_PARTING) {
        s->parted = true;
        if (s->error != ERR_FULL) session_end(core, s, s->error, s->text, now_ns);
    } else if (f->kind == FRAME_CREDIT) {
        s->granted_bytes += s->owed_bytes;
        s->owed_bytes = 0;
    } else {
        mem_free(list_member(list_pop_front(&s->notes), struct note, link));
        s->notes_count--;
    }
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

/* ---- ops, time, the end ---- */

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

static void session_deadline(struct xfer_core *core, struct xfer_session *s, uint64_t now_ns)
{
    heap_remove(&core->session_timers, &s->timer);
    if (s->state == SESSION_READY)
        session_end(core, s, OK, "idle", now_ns);
    else if (s->state == SESSION_PARTING)
        session_end(core, s, s->error, s->text, now_ns);
    else
        session_end(core, s, ERR_TIMEOUT,
                    s->state == SESSION_GREETING ? "no answer to the greeting" : "no connection",
                    now_ns);
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

/* ---- the object ---- */

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
