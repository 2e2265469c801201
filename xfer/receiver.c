/* D's side of a ticket.
 *
 *     state \ event  OPEN       DATA             COMMIT          FAIL    RELEASE   deadline  link lost
 *     EXPECTED       RECEIVING  dead             dead            dead    RELEASED  FAILED    -
 *     RECEIVING      ERR_STATE  stored; refused  all verified:   FAILED  RELEASED  FAILED    FAILED
 *                               if spoiled       COMMITTED +             + FAIL    + FAIL
 *                                                DONE, else
 *                                                CLOSING
 *     CLOSING        ERR_STATE  the same; last:  ERR_STATE       FAILED  RELEASED  FAILED    FAILED
 *                               COMMITTED +                              + FAIL    + FAIL
 *                               DONE
 *     ENDED          the ticket is unknown: ops are ignored, frames are counted as dead
 *
 * Frames that come over another link than the one that opened the ticket are dead too. ERR_STATE
 * costs the peer its link. A verified unit (one layer of one block) is never written again. */
#include "common/mem.h"
#include "xfer/core_state.h"

static uint64_t unit(const struct xfer_ticket *t, uint32_t layer, uint32_t block)
{
    return (uint64_t)layer * t->blocks_count + block;
}

static bool is_verified(const struct xfer_ticket *t, uint64_t i)
{
    return t->verified[i / 64] >> i % 64 & 1;
}

static uint32_t first_block(const struct xfer_ticket *t, const struct frame_range *r)
{
    return (r->tokens_first - t->tokens_first) / BLOCK_TOKENS;
}

static enum err on_open(struct xfer_core *core, struct xfer_ticket *t, struct xfer_session *s,
                        const struct frame *f, uint64_t now_ns)
{
    if (t->state != TICKET_EXPECTED) return err_set(ERR_STATE, "OPEN of an open ticket");
    ticket_join(core, t, s, now_ns);
    t->state = TICKET_RECEIVING;
    t->event.began_ns = now_ns;
    if (f->tokens_first == t->tokens_first && f->tokens_end == t->tokens_end) return OK;
    enum err e = err_set(ERR_STATE, "tokens %u to %u offered, %u to %u expected", f->tokens_first,
                         f->tokens_end, t->tokens_first, t->tokens_end);
    ticket_end(core, t, XFER_FAILED, e, err_text(), FRAME_FAIL, now_ns);
    return OK;
}

static enum err check_range(const struct xfer_core *core, const struct xfer_ticket *t,
                            const struct frame *f)
{
    const struct frame_range *r = &f->range;
    if (r->layer >= core->options.geometry.layers_count || r->tokens_first < t->tokens_first ||
        r->tokens_end > t->tokens_end ||
        (r->tokens_end % BLOCK_TOKENS != 0 && r->tokens_end != t->tokens_end))
        return err_set(ERR_STATE, "DATA for layer %u, tokens %u to %u", r->layer, r->tokens_first,
                       r->tokens_end);
    size_t bytes = blocks_for_tokens(r->tokens_end - r->tokens_first) *
                   kv_layer_bytes(&core->options.geometry);
    if (f->payload_bytes != bytes)
        return err_set(ERR_STATE, "DATA of %zu bytes for %zu", f->payload_bytes, bytes);
    return OK;
}

static enum err on_data(struct xfer_core *core, struct xfer_ticket *t, const struct frame *f,
                        struct xfer_store *store)
{
    enum err e = check_range(core, t, f);
    if (e != OK) return e;
    uint32_t first = first_block(t, &f->range);
    uint32_t count = blocks_for_tokens(f->range.tokens_end - f->range.tokens_first);
    for (uint32_t i = 0; i < count; i++)
        if (is_verified(t, unit(t, f->range.layer, first + i))) {
            core->counts.frames_dead++;
            return OK;
        }
    *store = (struct xfer_store){t->id, f->range, t->blocks + first, count, f->hash};
    t->event.bytes += f->payload_bytes;
    core->counts.received_bytes += f->payload_bytes;
    return OK;
}

static void commit_if_complete(struct xfer_core *core, struct xfer_ticket *t, uint64_t now_ns)
{
    if (t->state == TICKET_CLOSING && t->units_done == t->units_count)
        ticket_end(core, t, XFER_COMMITTED, OK, "", FRAME_DONE, now_ns);
}

static enum err on_commit(struct xfer_core *core, struct xfer_ticket *t, const struct frame *f,
                          uint64_t now_ns)
{
    if (t->state != TICKET_RECEIVING) return err_set(ERR_STATE, "a second COMMIT");
    t->state = TICKET_CLOSING;
    t->event.first = f->first;
    t->event.finish = f->finish;
    commit_if_complete(core, t, now_ns);
    return OK;
}

enum err receiver_frame(struct xfer_core *core, struct xfer_ticket *t, struct xfer_session *s,
                        const struct frame *f, uint64_t now_ns, struct xfer_store *store)
{
    if (f->kind == FRAME_OPEN) return on_open(core, t, s, f, now_ns);
    if (t->session != s) {
        core->counts.frames_dead++;
        return OK;
    }
    switch (f->kind) {
    case FRAME_DATA: return on_data(core, t, f, store);
    case FRAME_COMMIT: return on_commit(core, t, f, now_ns);
    case FRAME_FAIL: ticket_end(core, t, XFER_FAILED, f->error, f->text, 0, now_ns); return OK;
    default: return err_set(ERR_STATE, "%s from a sender", frame_name(f->kind));
    }
}

static void refuse(struct xfer_core *core, struct xfer_ticket *t, const struct frame_range *r,
                   uint64_t now_ns)
{
    core->counts.frames_refused++;
    enum err e = OK;
    if (r->attempt + 1 == FRAME_TRIES_MAX)
        e = err_set(ERR_FORMAT, "layer %u, tokens %u to %u: wrong checksum %d times", r->layer,
                    r->tokens_first, r->tokens_end, FRAME_TRIES_MAX);
    else
        e = ticket_again(t, r);
    if (e != OK) ticket_end(core, t, XFER_FAILED, e, err_text(), FRAME_FAIL, now_ns);
}

void receiver_stored(struct xfer_core *core, struct xfer_ticket *t, const struct xfer_store *store,
                     bool good, uint64_t now_ns)
{
    if (!good) {
        refuse(core, t, &store->range, now_ns);
        return;
    }
    uint64_t first = unit(t, store->range.layer, first_block(t, &store->range));
    for (uint64_t i = first; i < first + store->blocks_count; i++)
        t->verified[i / 64] |= 1ull << i % 64;
    t->units_done += store->blocks_count;
    commit_if_complete(core, t, now_ns);
}

bool receiver_wants(struct xfer_ticket *t, struct xfer_send *send)
{
    if (t->state == TICKET_ENDED || list_empty(&t->agains)) return false;
    send->frame.kind = FRAME_REFUSE;
    send->frame.range = list_member(t->agains.next, struct again, link)->range;
    return true;
}

void receiver_sent(struct xfer_ticket *t, const struct xfer_send *send)
{
    if (send->frame.kind != FRAME_REFUSE) return;
    mem_free(list_member(list_pop_front(&t->agains), struct again, link));
}
