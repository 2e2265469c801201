/* Copies of ops for the link thread, checked and made by the thread that posts them, so that the
 * link thread cannot run out of memory where a ticket would be lost. */
#include <string.h>

#include "common/mem.h"
#include "xfer/core_state.h"

uint32_t xfer_frame_units(size_t unit_bytes)
{
    size_t fit = XFER_FRAME_BYTES / unit_bytes;
    return fit < 1 ? 1 : fit > XFER_FRAME_UNITS_MAX ? XFER_FRAME_UNITS_MAX : (uint32_t)fit;
}

size_t xfer_staging_bytes(const struct kv_geometry *g)
{
    size_t unit_bytes = slice_bytes(g, g->kv_heads);
    return unit_bytes > XFER_FRAME_BYTES ? unit_bytes : XFER_FRAME_BYTES;
}

uint32_t xfer_frame_bytes_max(const struct kv_geometry *g)
{
    return FRAME_HEAD_MAX + (uint32_t)xfer_staging_bytes(g);
}

struct xfer_place xfer_place(const struct kv_geometry *g, const struct kv_part *told,
                             const struct frame_range *r)
{
    return (struct xfer_place){
        .layer = r->layer - told->layers_first,
        .units_count = blocks_for_tokens(r->tokens_end - r->tokens_first),
        .first = {.unit = r->tokens_first % g->block_tokens / BLOCK_TOKENS,
                  .heads_first = r->heads_first - told->heads_first,
                  .heads_count = r->heads_count},
    };
}

static enum err check_tokens(const struct xfer_op *op)
{
    if (op->tokens_first % BLOCK_TOKENS != 0 || op->tokens_end <= op->tokens_first ||
        op->tokens_end > JOB_TOKENS_MAX)
        return err_set(ERR_INVALID, "tokens %u to %u cannot travel", op->tokens_first,
                       op->tokens_end);
    return OK;
}

static enum err check_blocks(const struct xfer_op *op, uint32_t block_tokens,
                             uint32_t blocks_in_pool)
{
    uint32_t wanted = blocks_between(block_tokens, op->tokens_first, op->tokens_end);
    if (op->blocks_count != wanted)
        return err_set(ERR_INVALID, "%u blocks for tokens %u to %u", op->blocks_count,
                       op->tokens_first, op->tokens_end);
    for (uint32_t i = 0; i < wanted; i++)
        if (op->blocks[i] >= blocks_in_pool)
            return err_set(ERR_INVALID, "block %u of %u", op->blocks[i], blocks_in_pool);
    return OK;
}

static enum err check_addresses(const struct xfer_op *op)
{
    const struct xfer_addresses *a = op->addresses;
    if (!a || a->count > XFER_ADDRESSES_MAX) return err_set(ERR_INVALID, "no addresses");
    for (uint32_t i = 0; i < a->count; i++)
        if (!memchr(a->address[i], 0, XFER_ADDRESS_BYTES_MAX))
            return err_set(ERR_INVALID, "an address without an end");
    if (op->link && strlen(op->link) >= sizeof((struct xfer_ticket *)NULL)->link_wanted)
        return err_set(ERR_INVALID, "no link is called %.32s", op->link);
    return OK;
}

static struct xfer_ticket *ticket_new(const struct xfer_op *op, const struct kv_geometry *g)
{
    struct xfer_ticket *t = ticket_blank();
    if (!t) return NULL;
    t->id = op->ticket;
    t->sends = op->kind == XFER_OPEN;
    t->state = t->sends ? TICKET_CONNECTING : TICKET_EXPECTED;
    t->timer.key = op->deadline_ns;
    t->silence_ns = op->silence_ns;
    t->tokens_first = op->tokens_first;
    t->tokens_end = op->tokens_end;
    t->layer_units = blocks_for_tokens(op->tokens_end - op->tokens_first);
    t->units_count = (uint64_t)t->layer_units * g->layers_count * (t->sends ? 1 : g->kv_heads);
    t->event.link = "";
    return t;
}

static enum err expect_new(const struct xfer_op *op, const struct kv_geometry *g,
                           struct xfer_ticket **out)
{
    struct xfer_ticket *t = ticket_new(op, g);
    if (!t) return ERR_MEMORY;
    t->blocks = mem_array(op->blocks_count, sizeof *t->blocks);
    t->verified = mem_array(t->units_count / 64 + 1, sizeof *t->verified);
    if (!t->blocks || !t->verified) {
        ticket_free(t);
        return ERR_MEMORY;
    }
    memcpy(t->blocks, op->blocks, op->blocks_count * sizeof *t->blocks);
    *out = t;
    return OK;
}

static enum err open_new(const struct xfer_op *op, const struct kv_geometry *g,
                         struct xfer_ticket **out)
{
    struct xfer_ticket *t = ticket_new(op, g);
    if (!t) return ERR_MEMORY;
    t->addresses = *op->addresses;
    if (op->link) strcpy(t->link_wanted, op->link); /* its length was checked */
    *out = t;
    return OK;
}

static enum err push_new(const struct xfer_op *op, struct xfer_push **out)
{
    struct xfer_push *p = mem_new(sizeof *p + op->blocks_count * sizeof p->blocks[0]);
    if (!p) return ERR_MEMORY;
    p->layer = op->layer;
    p->tokens_first = op->tokens_first;
    p->tokens_end = op->tokens_end;
    p->units_count = blocks_for_tokens(op->tokens_end - op->tokens_first);
    memcpy(p->blocks, op->blocks, op->blocks_count * sizeof p->blocks[0]);
    *out = p;
    return OK;
}

static enum err commit_new(const struct xfer_op *op, struct xfer_commit **out)
{
    if (op->first.tops_count > JOB_TOPS_MAX || op->finish > FINISH_ERROR)
        return err_set(ERR_INVALID, "a first token with %u tops", op->first.tops_count);
    struct xfer_commit *c = mem_new(sizeof *c);
    if (!c) return ERR_MEMORY;
    *c = (struct xfer_commit){op->first, op->finish};
    *out = c;
    return OK;
}

enum err xfer_message_new(const struct xfer_op *op, const struct kv_geometry *g,
                          uint32_t blocks_in_pool, struct xfer_message *m)
{
    enum err e;
    *m = (struct xfer_message){.kind = op->kind, .ticket = op->ticket};
    if (id128_is_none(op->ticket)) return err_set(ERR_INVALID, "no ticket");
    switch (op->kind) {
    case XFER_EXPECT:
        if ((e = check_tokens(op)) != OK ||
            (e = check_blocks(op, g->block_tokens, blocks_in_pool)) != OK)
            return e;
        return expect_new(op, g, &m->opened);
    case XFER_OPEN:
        if ((e = check_tokens(op)) != OK || (e = check_addresses(op)) != OK) return e;
        return open_new(op, g, &m->opened);
    case XFER_PUSH:
        if ((e = check_tokens(op)) != OK ||
            (e = check_blocks(op, g->block_tokens, blocks_in_pool)) != OK)
            return e;
        if (op->layer >= g->layers_count)
            return err_set(ERR_INVALID, "layer %u of %u", op->layer, g->layers_count);
        return push_new(op, &m->push);
    case XFER_COMMIT: return commit_new(op, &m->commit);
    case XFER_RELEASE:
    case XFER_CANCEL: return OK;
    }
    return err_set(ERR_INVALID, "op of kind %u", (unsigned)op->kind);
}

void xfer_message_free(struct xfer_message *m)
{
    switch (m->kind) {
    case XFER_EXPECT:
    case XFER_OPEN: ticket_free(m->opened); break;
    case XFER_PUSH: mem_free(m->push); break;
    case XFER_COMMIT: mem_free(m->commit); break;
    default: break;
    }
}
