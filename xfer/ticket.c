/* The life of a ticket, as far as both sides have it in common: what it holds, its session, its end. */
#include "xfer/core_state.h"

#include <stdio.h>

#include "common/mem.h"

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
    list_init(&t->arriving);
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

void ticket_leave(struct xfer_ticket *t)
{
    t->session = NULL;
    t->last_word = 0;
    list_remove(&t->in_session);
    list_remove(&t->ready);
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
    list_remove(&t->arriving);
    list_push_back(&core->ended, &t->ended);
    while (!list_empty(&t->feeds)) {
        struct xfer_ticket *feed = list_member(t->feeds.next, struct xfer_ticket, in_feeds);
        feed_end(core, feed, v, feed == of ? last_word : to_others, now_ns);
    }
    ticket_rest(core, t, to_first, now_ns);
}

bool ticket_last_word(const struct xfer_ticket *t, struct xfer_send *send)
{
    if (t->state != TICKET_ENDED || t->last_word == 0) return false;
    struct frame *f = &send->frame;
    f->kind = t->last_word;
    f->error = t->event.error != OK ? t->event.error : ERR_CANCELLED;
    snprintf(f->text, sizeof f->text, "%s", t->event.text);
    return true;
}
