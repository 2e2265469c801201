/* D's side of a ticket.
 *
 *     state \ event  OPEN       DATA             COMMIT          FAIL    RELEASE   deadline  link lost
 *     EXPECTED       RECEIVING  dead             dead            dead    RELEASED  FAILED    -
 *     RECEIVING      ERR_STATE  stored; refused  CLOSING         FAILED  RELEASED  FAILED    FAILED
 *                               if spoiled                               + FAIL    + FAIL
 *     CLOSING        ERR_STATE  the same         ERR_STATE       FAILED  RELEASED  FAILED    FAILED
 *                                                                        + FAIL    + FAIL
 *     ENDED          the ticket is unknown: ops are ignored, frames are counted as dead
 *
 * Once all is verified and nobody that has opened it is RECEIVING: COMMITTED, and DONE to all of them.
 *
 * Several senders may feed one ticket, each over a link of its own and with another part of the model:
 * RECEIVING and CLOSING are states of each of them (struct xfer_ticket, feeds). What ends it ends it for
 * all: the others are told FAIL. Their first tokens have to be the same, or it is FAILED. A sender all of
 * whose part another one sends already is turned away with ERR_DUPLICATE and does no harm.
 *
 * Frames that come over a link that has not opened the ticket are dead too. ERR_STATE costs the peer its
 * link. A verified unit (16 tokens of one layer in one kv head) is never written again. */
#include "common/mem.h"
#include "xfer/core_state.h"

enum { FEEDS_MAX = 63 }; /* of a ticket, beside the first one */

/* The ticket that it feeds, or itself. */
static struct xfer_ticket *whole_of(struct xfer_ticket *feed)
{
    return feed->whole ? feed->whole : feed;
}

/* The units of a range: in each of rows_count 16 tokens, heads_count bits of `verified` from
 * first + row * heads here on. */
struct units {
    uint64_t first;
    uint32_t rows_count, heads_count;
};

static struct units units_of(const struct xfer_core *core, const struct xfer_ticket *t,
                             const struct frame_range *r)
{
    const struct xfer_core_options *o = &core->options;
    uint64_t layer = r->layer - o->part.layers_first;
    uint64_t row = layer * t->layer_units + (r->tokens_first - t->tokens_first) / BLOCK_TOKENS;
    return (struct units){
        .first = row * o->geometry.kv_heads + r->heads_first - o->part.heads_first,
        .rows_count = blocks_for_tokens(r->tokens_end - r->tokens_first),
        .heads_count = r->heads_count,
    };
}

/* How many of them are verified; from here on all of them, if `mark`. */
static uint64_t count_verified(const struct xfer_core *core, struct xfer_ticket *t,
                               const struct units *u, bool mark)
{
    uint64_t count = 0;
    for (uint32_t row = 0; row < u->rows_count; row++) {
        uint64_t i = u->first + (uint64_t)row * core->options.geometry.kv_heads;
        for (uint64_t end = i + u->heads_count; i < end; i++) {
            count += t->verified[i / 64] >> i % 64 & 1;
            if (mark) t->verified[i / 64] |= 1ull << i % 64;
        }
    }
    return count;
}

static struct xfer_ticket *next_feed(const struct xfer_ticket *t, const struct xfer_ticket *feed)
{
    const struct list_link *next = feed == t ? t->feeds.next : feed->in_feeds.next;
    return next == &t->feeds ? NULL : list_member(next, struct xfer_ticket, in_feeds);
}

/* The ticket itself or the feed that this session has opened; NULL: it has not. */
static struct xfer_ticket *feed_of(struct xfer_ticket *t, const struct xfer_session *s)
{
    struct xfer_ticket *feed = t;
    while (feed && feed->session != s)
        feed = next_feed(t, feed);
    return feed;
}

bool receiver_admits(const struct xfer_ticket *t, const struct xfer_session *s)
{
    if (!t->session) return true;
    for (const struct xfer_ticket *feed = t; feed; feed = next_feed(t, feed)) {
        if (feed->session == s) return true; /* twice: on_open knows */
        if (kv_range_within(&s->share, &feed->session->share)) return false;
    }
    return t->feeds_count < FEEDS_MAX;
}

static enum err feed_new(struct xfer_ticket *t, struct xfer_ticket **out)
{
    struct xfer_ticket *feed = ticket_blank();
    if (!feed) return ERR_MEMORY;
    feed->id = t->id;
    feed->units_count = t->units_count;
    feed->whole = t;
    list_push_back(&t->feeds, &feed->in_feeds);
    t->feeds_count++;
    *out = feed;
    return OK;
}

static enum err on_open(struct xfer_core *core, struct xfer_ticket *t, struct xfer_session *s,
                        const struct frame *f, uint64_t now_ns)
{
    struct xfer_ticket *feed = t;
    if (feed_of(t, s)) return err_set(ERR_STATE, "OPEN of an open ticket");
    if (t->state == TICKET_EXPECTED)
        t->event.began_ns = now_ns;
    else if (feed_new(t, &feed) != OK)
        return ERR_MEMORY; /* of this sender's; the others' ticket waits for another one */
    ticket_join(core, feed, s, now_ns);
    feed->state = TICKET_RECEIVING;
    ticket_moved(core, t, now_ns);
    if (f->tokens_first == t->tokens_first && f->tokens_end == t->tokens_end) return OK;
    enum err e = err_set(ERR_STATE, "tokens %u to %u offered, %u to %u expected", f->tokens_first,
                         f->tokens_end, t->tokens_first, t->tokens_end);
    ticket_end(core, feed, XFER_FAILED, e, err_text(), FRAME_FAIL, now_ns);
    return OK;
}

static enum err check_range(const struct xfer_core *core, const struct xfer_ticket *t,
                            const struct xfer_session *s, const struct frame *f)
{
    const struct frame_range *r = &f->range;
    struct kv_range range = {r->layer, r->layer + 1, r->heads_first,
                             r->heads_first + r->heads_count};
    uint32_t units = blocks_for_tokens(r->tokens_end - r->tokens_first);
    bool all_heads = r->heads_count == s->share.heads_end - s->share.heads_first;
    if (kv_range_empty(&range) || !kv_range_within(&range, &s->share) ||
        (core->options.whole_blocks && !all_heads) || r->tokens_first < t->tokens_first ||
        r->tokens_end > t->tokens_end ||
        (r->tokens_end % BLOCK_TOKENS != 0 && r->tokens_end != t->tokens_end) ||
        units > s->frame_units)
        return err_set(ERR_STATE, "DATA for layer %u, heads %u to %u, tokens %u to %u", r->layer,
                       range.heads_first, range.heads_end, r->tokens_first, r->tokens_end);
    size_t bytes = units * slice_bytes(&core->options.geometry, r->heads_count);
    if (f->payload_bytes != bytes)
        return err_set(ERR_STATE, "DATA of %zu bytes for %zu", f->payload_bytes, bytes);
    return OK;
}

static enum err on_data(struct xfer_core *core, struct xfer_ticket *feed, const struct frame *f,
                        uint64_t now_ns, struct xfer_store *store)
{
    struct xfer_ticket *t = whole_of(feed);
    enum err e = check_range(core, t, feed->session, f);
    if (e != OK) return e;
    struct units units = units_of(core, t, &f->range);
    uint64_t verified = count_verified(core, t, &units, false);
    if (verified == (uint64_t)units.rows_count * units.heads_count) {
        core->counts.frames_dead++;
        return OK;
    }
    if (verified > 0 && feed->session->slot_bytes > 0) {
        e = err_set(ERR_STATE, "layer %u, tokens %u to %u: a part of a slot is there already",
                    f->range.layer, f->range.tokens_first, f->range.tokens_end);
        ticket_end(core, feed, XFER_FAILED, e, err_text(), FRAME_FAIL, now_ns);
        return OK;
    }
    *store = (struct xfer_store){.ticket = t->id,
                                 .range = f->range,
                                 .hash = f->hash,
                                 .verified = verified > 0 ? t->verified : NULL,
                                 .verified_first = units.first,
                                 .unit_bits = core->options.geometry.kv_heads};
    store->blocks = range_blocks(core, &f->range, t->blocks, t->tokens_first, &store->blocks_count);
    t->event.bytes += f->payload_bytes;
    core->counts.received_bytes += f->payload_bytes;
    return OK;
}

static void commit_if_complete(struct xfer_core *core, struct xfer_ticket *t, uint64_t now_ns)
{
    if (t->units_done < t->units_count) return;
    for (const struct xfer_ticket *feed = t; feed; feed = next_feed(t, feed))
        if (feed->state != TICKET_CLOSING) return;
    ticket_end(core, t, XFER_COMMITTED, OK, "", FRAME_DONE, now_ns);
}

static enum err on_commit(struct xfer_core *core, struct xfer_ticket *feed, const struct frame *f,
                          uint64_t now_ns)
{
    struct xfer_ticket *t = whole_of(feed);
    if (feed->state != TICKET_RECEIVING) return err_set(ERR_STATE, "a second COMMIT");
    if (t->committed && (f->first.token != t->event.first.token || f->finish != t->event.finish)) {
        enum err e = err_set(ERR_STATE, "first token %u, another sender says %u", f->first.token,
                             t->event.first.token);
        ticket_end(core, feed, XFER_FAILED, e, err_text(), FRAME_FAIL, now_ns);
        return OK;
    }
    feed->state = TICKET_CLOSING;
    t->committed = true;
    t->event.first = f->first;
    t->event.finish = f->finish;
    commit_if_complete(core, t, now_ns);
    return OK;
}

enum err receiver_frame(struct xfer_core *core, struct xfer_ticket *t, struct xfer_session *s,
                        const struct frame *f, uint64_t now_ns, struct xfer_store *store)
{
    if (f->kind == FRAME_OPEN) return on_open(core, t, s, f, now_ns);
    struct xfer_ticket *feed = feed_of(t, s);
    if (!feed) {
        core->counts.frames_dead++;
        return OK;
    }
    switch (f->kind) {
    case FRAME_DATA: return on_data(core, feed, f, now_ns, store);
    case FRAME_COMMIT: return on_commit(core, feed, f, now_ns);
    case FRAME_FAIL: ticket_end(core, feed, XFER_FAILED, f->error, f->text, 0, now_ns); return OK;
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

/* The receiver may want to know when a ticket will be complete: P computes its last tokens in one step. */
static void note_arriving(struct xfer_core *core, struct xfer_ticket *t,
                          const struct frame_range *r)
{
    const struct kv_geometry *g = &core->options.geometry;
    uint32_t half = (g->layers_count * g->kv_heads + 1) / 2;
    if (!core->options.arrivals || r->tokens_end != t->tokens_end) return;
    bool before = t->last_heads < half;
    t->last_heads += r->heads_count;
    if (before && t->last_heads >= half) list_push_back(&core->arriving, &t->arriving);
}

void receiver_stored(struct xfer_core *core, struct xfer_ticket *t, const struct xfer_session *s,
                     const struct xfer_store *store, bool good, uint64_t now_ns)
{
    struct xfer_ticket *feed = feed_of(t, s);
    CHECK(feed);
    if (!good) {
        refuse(core, feed, &store->range, now_ns);
        return;
    }
    struct units units = units_of(core, t, &store->range);
    uint64_t all = (uint64_t)units.rows_count * units.heads_count;
    uint64_t fresh = all - count_verified(core, t, &units, true);
    t->units_done += fresh;
    if (fresh > 0) note_arriving(core, t, &store->range);
    ticket_moved(core, t, now_ns);
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
