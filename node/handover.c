/* A transfer as the core sees it: which blocks the link thread may touch, and the ops that say so.
 *
 * A block named in an op is held with HOLD_TRANSFER until the ticket's final event, whatever becomes
 * of the sequence. Which block it was is kept in moved[], since the sequence's own table may exchange
 * a block for its twin in the prefix cache meanwhile.
 *
 * With a window only what the last token sees travels: a ticket's tokens are counted without those that are
 * gone by then (wire_token), alike on both sides. */
#include "node/state.h"

#include <string.h>

#include "common/rng.h"
#include "common/plant.h"

/* The place of token t on the wire; of one that does not travel, that of the next which does. */
static uint32_t wire_token(const struct sequence *s, uint32_t t)
{
    uint32_t gone = kv_window_gone(s->window, s->goal - 1), sinks = s->window.sinks;
    if (t <= sinks) return t;
    return t > gone ? t - (gone - sinks) : sinks;
}

/* The table's index of block i on the wire. */
static uint32_t table_index(const struct sequence *s, uint32_t i)
{
    uint32_t gone = kv_window_gone(s->window, s->goal - 1), sinks = s->window.sinks;
    return i < sinks / BLOCK_TOKENS ? i : i + (gone - sinks) / BLOCK_TOKENS;
}

/* moved[]: one entry per block of the tokens that travel, those behind the first `held`. */
static enum err moved_new(struct sequence *s, uint32_t held)
{
    s->held_tokens = held;
    s->wire_first = wire_token(s, held);
    s->wire_end = wire_token(s, s->goal);
    s->moved_count = blocks_for_tokens(s->wire_end) - s->wire_first / BLOCK_TOKENS;
    s->moved = arena_take(&s->arena, s->moved_count * sizeof *s->moved);
    if (!s->moved) return ERR_MEMORY;
    for (uint32_t i = 0; i < s->moved_count; i++)
        s->moved[i] = BLOCK_NONE;
    return OK;
}

/* Holds the blocks of the wire's tokens [from, end) for the link and lists them for an op. */
static uint32_t hold_moved(struct node_core *c, struct sequence *s, uint32_t from, uint32_t end)
{
    uint32_t n = 0, base = s->wire_first / BLOCK_TOKENS;
    for (uint32_t i = from / BLOCK_TOKENS; i < blocks_for_tokens(end); i++) {
        struct block_id *moved = &s->moved[i - base];
        if (moved->v == BLOCK_NONE.v) {
            *moved = s->table[table_index(s, i)];
            kv_pool_hold(c->pool, *moved, HOLD_TRANSFER);
        }
        c->op_blocks[n++] = moved->v;
    }
    return n;
}

static enum err ticket_enter(struct node_core *c, struct sequence *s)
{
    enum err e = map_put(&c->tickets, s->ticket, s);
    if (e == ERR_DUPLICATE) return err_set(ERR_INVALID, "the ticket is in use by another job");
    s->ticket_live = e == OK;
    return e;
}

static struct id128 ticket_make(struct node_core *c)
{
    struct rng_block b = rng_draw(c->config.ticket_seed, 0x7469636b, ++c->tickets_made);
    struct id128 id = {(uint64_t)b.word[0] << 32 | b.word[1],
                       (uint64_t)b.word[2] << 32 | b.word[3]};
    if (id128_is_none(id)) id.lo = 1;
    return id;
}

enum err handover_expect(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    enum err e;
    s->ticket = ticket_make(c);
    s->cached_tokens = s->kv_count;
    if (!s->job.cached_only) c->counts.cached_tokens += s->cached_tokens;
    if ((e = moved_new(s, s->kv_count)) != OK) return e;
    if ((e = ticket_enter(c, s)) != OK) return e;
    uint32_t count = hold_moved(c, s, s->wire_first, s->wire_end);
    struct xfer_op op = {
        .kind = XFER_EXPECT,
        .ticket = s->ticket,
        .tokens_first = s->wire_first,
        .tokens_end = s->wire_end,
        .blocks = c->op_blocks,
        .blocks_count = count,
        .deadline_ns = now_ns + c->config.reserve_timeout_ns,
        .silence_ns = c->config.reserve_timeout_ns,
    };
    c->out.xfer(c->out.ctx, &op);
    return OK;
}

static enum err addresses_of(const struct msg_prefill *p, struct xfer_addresses *out)
{
    memset(out, 0, sizeof *out);
    if (p->addresses_count == 0 || p->addresses_count > XFER_ADDRESSES_MAX)
        return err_set(ERR_INVALID, "%u link addresses, allowed are 1 to %d", p->addresses_count,
                       XFER_ADDRESSES_MAX);
    for (uint32_t i = 0; i < p->addresses_count; i++) {
        size_t size = strlen(p->addresses[i]);
        if (size >= XFER_ADDRESS_BYTES_MAX)
            return err_set(ERR_INVALID, "a link address of %zu bytes, allowed are %d", size,
                           XFER_ADDRESS_BYTES_MAX - 1);
        memcpy(out->address[out->count++], p->addresses[i], size + 1);
    }
    return OK;
}

enum err handover_open(struct node_core *c, uint64_t now_ns, struct sequence *s,
                       const struct msg_prefill *p)
{
    enum err e;
    struct xfer_addresses addresses;
    if ((e = addresses_of(p, &addresses)) != OK) return e;
    s->ticket = p->ticket;
    if ((e = moved_new(s, p->held_tokens)) != OK) return e;
    s->push_layer = arena_take(&s->arena, XFER_PUSHES_TOLD * sizeof *s->push_layer);
    s->push_computed_us = arena_take(&s->arena, XFER_PUSHES_TOLD * sizeof *s->push_computed_us);
    if (!s->push_layer || !s->push_computed_us) return ERR_MEMORY;
    if ((e = ticket_enter(c, s)) != OK) return e;
    struct xfer_op op = {
        .kind = XFER_OPEN,
        .ticket = s->ticket,
        .tokens_first = s->wire_first,
        .tokens_end = s->wire_end,
        .addresses = &addresses,
        .link = c->config.link,
        .deadline_ns = now_ns + c->config.reserve_timeout_ns,
        .silence_ns = c->config.reserve_timeout_ns,
    };
    c->out.xfer(c->out.ctx, &op);
    return OK;
}

void handover_push(struct node_core *c, uint64_t now_ns, struct sequence *s, uint32_t layer,
                   uint32_t from, uint32_t end)
{
    from = wire_token(s, from / BLOCK_TOKENS * BLOCK_TOKENS);
    if (from < s->wire_first) from = s->wire_first;
    end = wire_token(s, end < s->goal ? end / BLOCK_TOKENS * BLOCK_TOKENS : end);
    if (from >= end || !s->ticket_live || s->ticket_ended) return;
    uint32_t count = hold_moved(c, s, from, end);
    struct xfer_op op = {
        .kind = XFER_PUSH,
        .ticket = s->ticket,
        .tokens_first = from,
        .tokens_end = end,
        .blocks = c->op_blocks,
        .blocks_count = count,
        .layer = layer,
    };
    uint32_t i = s->pushes_count++ % XFER_PUSHES_TOLD;
    s->push_layer[i] = layer;
    s->push_computed_us[i] = (uint32_t)clock_since_us(now_ns, s->began_ns);
    c->out.xfer(c->out.ctx, &op);
}

void handover_push_cached(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    for (uint32_t layer = 0; layer < c->config.hello.geometry.layers_count; layer++)
        handover_push(c, now_ns, s, layer, 0, s->kv_count);
}

void handover_times(const struct sequence *s, const struct xfer_event *e, struct push_times *t)
{
    uint32_t end = s->pushes_count;
    t->count = 0;
    if (end != e->pushes_count)
        return; /* ranges that were refused count once; anything else is odd */
    for (uint32_t i = end > XFER_PUSHES_TOLD ? end - XFER_PUSHES_TOLD : 0; i < end; i++) {
        t->layer[t->count] = s->push_layer[i % XFER_PUSHES_TOLD];
        t->computed_us[t->count] = s->push_computed_us[i % XFER_PUSHES_TOLD];
        t->sent_us[t->count++] =
            (uint32_t)clock_since_us(e->began_ns, s->began_ns) + e->sent_us[i % XFER_PUSHES_TOLD];
    }
}

void handover_commit(struct node_core *c, struct sequence *s, const struct token_info *first,
                     enum finish finish)
{
    struct xfer_op op = {
        .kind = XFER_COMMIT, .ticket = s->ticket, .first = *first, .finish = finish};
    c->out.xfer(c->out.ctx, &op);
}

static void drop_moved(struct node_core *c, struct sequence *s)
{
    for (uint32_t i = 0; i < s->moved_count; i++)
        if (s->moved[i].v != BLOCK_NONE.v) kv_pool_drop(c->pool, s->moved[i], HOLD_TRANSFER);
    s->moved_count = 0;
}

void handover_end(struct node_core *c, struct sequence *s)
{
    if (!s->ticket_live || s->ticket_ended) return;
    s->ticket_ended = true;
    struct xfer_op op = {.kind = s->kind == SEQ_REMOTE ? XFER_RELEASE : XFER_CANCEL,
                         .ticket = s->ticket};
    c->out.xfer(c->out.ctx, &op);
    if (PLANTED("free_on_cancel")) drop_moved(c, s);
}

/* The ticket's final event is here: the link touches its blocks no more. */
static void ticket_over(struct node_core *c, struct sequence *s)
{
    map_remove(&c->tickets, s->ticket);
    s->ticket_live = false;
    drop_moved(c, s);
}

void handover_on_event(struct node_core *c, uint64_t now_ns, const struct xfer_event *e)
{
    struct sequence *s = map_get(&c->tickets, e->ticket);
    if (e->kind == XFER_ARRIVING) {
        if (s && s->state == SEQ_RESERVED) pace_arriving(c, now_ns, s);
        return;
    }
    if (!s) {
        c->counts.stale_messages++;
        return;
    }
    pace_arrived(c, now_ns, s, e->kind == XFER_COMMITTED);
    ticket_over(c, s);
    struct seq_input in = {.error = e->error, .retryable = true, .reason = e->text, .xfer = e};
    if (s->state == SEQ_ENDING)
        in.event = SEQ_EV_LET_GO;
    else if (e->kind == XFER_COMMITTED)
        in.event = SEQ_EV_COMMITTED;
    else if (e->kind == XFER_DONE)
        in.event = SEQ_EV_DELIVERED;
    else
        in.event = SEQ_EV_FAIL;
    sequence_step(c, now_ns, s, &in);
}
