#include "node/op_queue.h"

#include <string.h>

#include "common/log.h"
#include "common/mem.h"

struct op_waiting {
    struct op_waiting *next;
    struct xfer_op op;
    uint32_t blocks[];
};

static enum err wait(struct op_queue *q, const struct xfer_op *op)
{
    size_t blocks_bytes = op->blocks_count * sizeof *op->blocks;
    struct op_waiting *w = mem_new(sizeof *w + blocks_bytes);
    if (!w) return ERR_MEMORY;
    w->op = *op;
    if (blocks_bytes > 0) memcpy(w->blocks, op->blocks, blocks_bytes);
    w->op.blocks = w->blocks;
    if (q->last)
        q->last->next = w;
    else
        q->first = w;
    q->last = w;
    q->count++;
    return OK;
}

enum err op_queue_post(struct op_queue *q, struct xfer *x, const struct xfer_op *op)
{
    bool begins = op->kind == XFER_EXPECT || op->kind == XFER_OPEN;
    if (q->count > 0 && !begins) return wait(q, op);
    enum err e = xfer_post(x, op);
    return e == ERR_FULL && !begins ? wait(q, op) : e;
}

static void pop(struct op_queue *q)
{
    struct op_waiting *w = q->first;
    q->first = w->next;
    if (!q->first) q->last = NULL;
    q->count--;
    mem_free(w);
}

void op_queue_flush(struct op_queue *q, struct xfer *x)
{
    while (q->first) {
        enum err e = xfer_post(x, &q->first->op);
        if (e == ERR_FULL) return;
        if (e != OK) log_error("transfer_op_refused", "reason=\"%s\"", err_text());
        pop(q);
    }
}

void op_queue_fini(struct op_queue *q)
{
    while (q->first)
        pop(q);
}
