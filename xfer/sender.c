/* P's side of a ticket.
 *
 *     state \ event  PUSH    COMMIT     CANCEL       REFUSE       DONE       FAIL    deadline, link lost
 *     CONNECTING     kept    kept       CANCELLED    -            -          -       FAILED
 *     SENDING        sent    sent last  CANCELLED    sent again   ERR_STATE  FAILED  FAILED (+ FAIL)
 *                                       + FAIL       or FAILED
 *     COMMITTING     FAILED  FAILED     CANCELLED    sent again   DONE       FAILED  FAILED (+ FAIL)
 *                                       + FAIL       or FAILED
 *     ENDED          the ticket is unknown: ops are ignored, frames are counted as dead
 *
 * When the other side takes back its link's place, SENDING and COMMITTING become CONNECTING (session.c).
 * Words in capitals without ERR_ are the final event; "+ FAIL" tells the receiver. Pushes are kept
 * as descriptors until the end; bytes are read out of the blocks when a frame is sent. */
#include "common/clock.h"
#include "common/mem.h"
#include "xfer/core_state.h"

static void fail(struct xfer_core *core, struct xfer_ticket *t, enum err e, uint64_t now_ns)
{
    ticket_end(core, t, XFER_FAILED, e, err_text(), FRAME_FAIL, now_ns);
}

static enum err check_push(const struct xfer_ticket *t, const struct xfer_push *p)
{
    if (t->committed) return err_set(ERR_INVALID, "a push after the commit");
    if (p->tokens_first < t->tokens_first || p->tokens_end > t->tokens_end ||
        (p->tokens_end % BLOCK_TOKENS != 0 && p->tokens_end != t->tokens_end))
        return err_set(ERR_INVALID, "tokens %u to %u pushed, %u to %u are to travel",
                       p->tokens_first, p->tokens_end, t->tokens_first, t->tokens_end);
    if (t->units_done + p->units_count > t->units_count)
        return err_set(ERR_INVALID, "more pushed than there is: layer %u again?", p->layer);
    return OK;
}

void sender_push(struct xfer_core *core, struct xfer_ticket *t, struct xfer_push *push,
                 uint64_t now_ns)
{
    enum err e = check_push(t, push);
    if (e != OK) {
        mem_free(push);
        fail(core, t, e, now_ns);
        return;
    }
    list_push_back(&t->pushes, &push->link);
    t->units_done += push->units_count;
    if (!t->next_push) t->next_push = push;
    ticket_moved(core, t, now_ns);
    ticket_wake(t);
}

void sender_commit(struct xfer_core *core, struct xfer_ticket *t, const struct xfer_commit *commit,
                   uint64_t now_ns)
{
    enum err e = OK;
    if (t->committed)
        e = err_set(ERR_INVALID, "a second commit");
    else if (t->units_done != t->units_count)
        e = err_set(ERR_INVALID, "commit after %llu of %llu units and layers",
                    (unsigned long long)t->units_done, (unsigned long long)t->units_count);
    if (e != OK) {
        fail(core, t, e, now_ns);
        return;
    }
    t->committed = true;
    t->event.first = commit->first;
    t->event.finish = commit->finish;
    ticket_wake(t);
}

/* The layer's number in the model. */
static uint32_t layer_of(const struct xfer_core *core, const struct xfer_push *p)
{
    return core->options.part.layers_first + p->layer;
}

/* The push that these tokens were sent from; NULL: they were not. */
static const struct xfer_push *find_push(const struct xfer_core *core, const struct xfer_ticket *t,
                                         const struct frame_range *r)
{
    for (const struct list_link *l = t->pushes.next; l != &t->pushes; l = l->next) {
        const struct xfer_push *p = list_member(l, struct xfer_push, link);
        uint32_t sent_end = p->tokens_end;
        if (p == t->next_push) sent_end = p->tokens_first + t->next_unit * BLOCK_TOKENS;
        if (layer_of(core, p) == r->layer && p->tokens_first <= r->tokens_first &&
            r->tokens_end <= sent_end)
            return p;
        if (p == t->next_push) break;
    }
    return NULL;
}

static enum err on_refuse(struct xfer_core *core, struct xfer_ticket *t,
                          const struct frame_range *refused, uint64_t now_ns)
{
    const struct kv_range *share = &t->session->share;
    const struct xfer_push *p = find_push(core, t, refused);
    uint32_t units = blocks_for_tokens(refused->tokens_end - refused->tokens_first);
    bool sent = p && refused->layer >= share->layers_first && refused->layer < share->layers_end &&
                refused->heads_first == share->heads_first &&
                refused->heads_count == share->heads_end - share->heads_first;
    if (!sent || units > t->session->frame_units ||
        (refused->tokens_end % BLOCK_TOKENS != 0 && refused->tokens_end != p->tokens_end))
        return err_set(ERR_STATE, "layer %u, tokens %u to %u refused, which were not sent",
                       refused->layer, refused->tokens_first, refused->tokens_end);
    struct frame_range range = *refused;
    enum err e = OK;
    if (++range.attempt == FRAME_TRIES_MAX)
        e = err_set(ERR_FORMAT, "layer %u, tokens %u to %u: wrong checksum %d times", range.layer,
                    range.tokens_first, range.tokens_end, FRAME_TRIES_MAX);
    else
        e = ticket_again(t, &range);
    if (e != OK) fail(core, t, e, now_ns);
    return OK;
}

enum err sender_frame(struct xfer_core *core, struct xfer_ticket *t, const struct frame *f,
                      uint64_t now_ns)
{
    switch (f->kind) {
    case FRAME_REFUSE: return on_refuse(core, t, &f->range, now_ns);
    case FRAME_DONE:
        if (t->state != TICKET_COMMITTING) return err_set(ERR_STATE, "DONE before COMMIT");
        way_delivered(t->session->way);
        ticket_end(core, t, XFER_DONE, OK, "", 0, now_ns);
        return OK;
    case FRAME_FAIL: ticket_end(core, t, XFER_FAILED, f->error, f->text, 0, now_ns); return OK;
    default: return err_set(ERR_STATE, "%s from a receiver", frame_name(f->kind));
    }
}

/* The first push from here on whose layer the receiver holds. */
static struct xfer_push *wanted(const struct xfer_core *core, const struct xfer_ticket *t,
                                struct list_link *l)
{
    const struct kv_range *share = &t->session->share;
    for (; l != &t->pushes; l = l->next) {
        struct xfer_push *p = list_member(l, struct xfer_push, link);
        uint32_t layer = layer_of(core, p);
        if (layer >= share->layers_first && layer < share->layers_end) return p;
    }
    return NULL;
}

/* A DATA frame for units [unit, unit + count) of the push. */
static void data_frame(const struct xfer_core *core, const struct xfer_ticket *t,
                       struct xfer_send *send, const struct xfer_push *p, uint32_t unit,
                       uint32_t count, uint32_t attempt)
{
    const struct kv_range *share = &t->session->share;
    uint32_t end = p->tokens_first + (unit + count) * BLOCK_TOKENS;
    send->frame.kind = FRAME_DATA;
    send->frame.range = (struct frame_range){
        .layer = layer_of(core, p),
        .tokens_first = p->tokens_first + unit * BLOCK_TOKENS,
        .tokens_end = end < p->tokens_end ? end : p->tokens_end,
        .heads_first = share->heads_first,
        .heads_count = share->heads_end - share->heads_first,
        .attempt = attempt,
    };
    send->blocks =
        range_blocks(core, &send->frame.range, p->blocks, p->tokens_first, &send->blocks_count);
}

static uint64_t data_bytes(const struct xfer_ticket *t, const struct frame_range *r)
{
    return blocks_for_tokens(r->tokens_end - r->tokens_first) * (uint64_t)t->session->unit_bytes;
}

static bool next_data(const struct xfer_core *core, struct xfer_ticket *t, struct xfer_send *send)
{
    if (!list_empty(&t->agains)) {
        const struct frame_range *r = &list_member(t->agains.next, struct again, link)->range;
        const struct xfer_push *p = find_push(core, t, r);
        CHECK(p);
        data_frame(core, t, send, p, (r->tokens_first - p->tokens_first) / BLOCK_TOKENS,
                   blocks_for_tokens(r->tokens_end - r->tokens_first), r->attempt);
    } else if (t->next_push) {
        uint32_t left = t->next_push->units_count - t->next_unit;
        uint32_t most = t->session->frame_units;
        data_frame(core, t, send, t->next_push, t->next_unit, left < most ? left : most, 0);
    } else {
        return false;
    }
    return data_bytes(t, &send->frame.range) <= t->session->credit_bytes;
}

bool sender_wants(const struct xfer_core *core, struct xfer_ticket *t, struct xfer_send *send)
{
    struct frame *f = &send->frame;
    if (t->state != TICKET_SENDING && t->state != TICKET_COMMITTING) return false;
    if (!t->opened) {
        f->kind = FRAME_OPEN;
        f->tokens_first = t->tokens_first;
        f->tokens_end = t->tokens_end;
        return true;
    }
    if (t->next_push && t->next_unit == 0) t->next_push = wanted(core, t, &t->next_push->link);
    if (!list_empty(&t->agains) || t->next_push) return next_data(core, t, send);
    if (!t->committed || t->state == TICKET_COMMITTING) return false;
    f->kind = FRAME_COMMIT;
    f->first = t->event.first;
    f->finish = t->event.finish;
    return true;
}

void sender_restart(struct xfer_ticket *t)
{
    struct list_link *l;
    while ((l = list_pop_front(&t->agains)))
        mem_free(list_member(l, struct again, link));
    list_remove(&t->in_session);
    list_remove(&t->ready);
    t->session = NULL;
    t->state = TICKET_CONNECTING;
    t->opened = false;
    t->next_push =
        list_empty(&t->pushes) ? NULL : list_member(t->pushes.next, struct xfer_push, link);
    t->next_unit = 0;
    t->event.link = "";
    t->event.bytes = t->event.began_ns = 0;
    t->event.pushes_count = 0;
    t->moves_count++;
}

static void data_sent(struct xfer_core *core, struct xfer_ticket *t, const struct xfer_send *send,
                      uint64_t now_ns)
{
    uint64_t bytes = data_bytes(t, &send->frame.range);
    t->session->credit_bytes -= bytes;
    rate_sent(core, t->session, bytes, now_ns);
    t->event.bytes += bytes;
    core->counts.sent_bytes += bytes;
    if (!list_empty(&t->agains)) {
        mem_free(list_member(list_pop_front(&t->agains), struct again, link));
        return;
    }
    t->next_unit +=
        blocks_for_tokens(send->frame.range.tokens_end - send->frame.range.tokens_first);
    if (t->next_unit < t->next_push->units_count) return;
    t->event.sent_us[t->event.pushes_count++ % XFER_PUSHES_TOLD] =
        (uint32_t)((now_ns - t->event.began_ns) / NS_PER_US);
    struct list_link *next = t->next_push->link.next;
    t->next_push = next == &t->pushes ? NULL : list_member(next, struct xfer_push, link);
    t->next_unit = 0;
}

void sender_sent(struct xfer_core *core, struct xfer_ticket *t, const struct xfer_send *send,
                 uint64_t now_ns)
{
    ticket_moved(core, t, now_ns);
    switch (send->frame.kind) {
    case FRAME_OPEN:
        t->opened = true;
        t->event.began_ns = now_ns;
        break;
    case FRAME_DATA: data_sent(core, t, send, now_ns); break;
    default: t->state = TICKET_COMMITTING;
    }
}
