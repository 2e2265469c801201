/* The life of a link session.
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

#include "common/clock.h"
#include "common/mem.h"

enum {
    NOTES_MAX = 64,
    MOVES_MAX = 3, /* of one ticket, by peers that want their place back */
};
#define SILENT_NS NS_PER_S

static void session_timer(struct xfer_core *core, struct xfer_session *s, uint64_t at_ns)
{
    CHECK(heap_move(&core->session_timers, &s->timer, at_ns) == OK); /* reserved at the start */
}

static void session_act(struct xfer_core *core, struct xfer_session *s)
{
    if (list_empty(&s->acts)) list_push_back(&core->acts, &s->acts);
}

void session_rest(struct xfer_core *core, struct xfer_session *s, uint64_t now_ns)
{
    way_changed(core, s->way, now_ns);
    if (--s->live_count > 0 || s->state != SESSION_READY || !s->dialler) return;
    session_timer(core, s,
                  now_ns + (s->retired ? core->options.handshake_ns : core->options.idle_close_ns));
}

/* Gives up the least recently used one without tickets over this kind of link (NULL: any), one that was
 * dialled before one that was accepted; true: its place is free at once. */
static bool crowded(struct xfer_core *core, const struct link_trait *trait, uint64_t now_ns);

static struct xfer_session *session_new(struct xfer_core *core, uint64_t now_ns)
{
    if (core->sessions_count == XFER_SESSIONS_MAX && !crowded(core, NULL, now_ns)) {
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

void session_free(struct xfer_session *s)
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

static bool crowded(struct xfer_core *core, const struct link_trait *trait, uint64_t now_ns)
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
    crowded(core, link_trait(link), now_ns);
}

void session_yield(struct xfer_core *core, struct xfer_session *s, const char *text,
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

/* Of this kind of link, those that have called and not said HELLO; *first: who called first. */
static uint32_t greetings(const struct xfer_core *core, const struct link_trait *trait,
                          struct xfer_session **first)
{
    uint32_t count = 0;
    *first = NULL;
    for (struct list_link *l = core->sessions.next; l != &core->sessions; l = l->next) {
        struct xfer_session *s = list_member(l, struct xfer_session, all);
        if (s->dialler || s->state != SESSION_GREETING || link_trait(s->link) != trait) continue;
        if (count++ == 0) *first = s;
    }
    return count;
}

/* Whoever means it greets at once. So callers who do not are the first to go when others come; not over links
 * that take long to make, of which there are few. */
struct xfer_session *xfer_core_accepted(struct xfer_core *core, const char *link, uint64_t now_ns)
{
    const struct link_trait *trait = link_trait(link);
    struct xfer_session *first;
    if (greetings(core, trait, &first) >= XFER_GREETINGS_MAX) {
        if (trait->slow || first->heard_ns + SILENT_NS > now_ns) return NULL;
        session_end(core, first, ERR_TIMEOUT, "it has not greeted, and others call", now_ns);
    }
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

enum err session_hello(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
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

enum err session_credit(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
                        uint64_t now_ns)
{
    if (!s->dialler || s->state != SESSION_READY) return err_set(ERR_STATE, "CREDIT out of turn");
    if (__builtin_add_overflow(s->credit_bytes, f->window_bytes, &s->credit_bytes))
        return err_set(ERR_STATE, "CREDIT without end");
    rate_credited(core, s, f->window_bytes, now_ns);
    return OK;
}

/* ---- what it has to say ---- */

void session_note(struct xfer_session *s, struct id128 ticket, enum err error)
{
    struct note *note = s->notes_count < NOTES_MAX ? mem_new(sizeof *note) : NULL;
    if (!note) return;
    note->ticket = ticket;
    note->error = error;
    list_push_back(&s->notes, &note->link);
    s->notes_count++;
}

/* Enough was taken in, or what is granted is too little for the longest frame. */
static bool credit_due(const struct xfer_session *s)
{
    uint64_t longest = (uint64_t)s->frame_units * s->unit_bytes;
    bool early = s->taken_bytes < CREDIT_EARLY_END && s->owed_bytes > CREDIT_EARLY_BYTES;
    return early || s->owed_bytes > credit_after(s->window_bytes) ||
           (s->owed_bytes > 0 && s->owed_bytes + longest > s->window_bytes);
}

bool session_wants(struct xfer_core *core, struct xfer_session *s, struct frame *f)
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

void session_sent(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
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

void session_deadline(struct xfer_core *core, struct xfer_session *s, uint64_t now_ns)
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
