/* op_queue: transfer ops that the link's mailbox had no room for, in their order.
 *
 *     if ((e = op_queue_post(&q, xfer, op)) != OK) ...     // refused for good, said why
 *     op_queue_flush(&q, xfer);                             // on a timer while q.count > 0
 *     op_queue_fini(&q);
 *
 * Rules: an op behind another one that waits waits too. EXPECT and OPEN never wait: they are refused,
 * and so is everything when memory is short. Owner: the loop thread. */
#ifndef TANDEM_NODE_OP_QUEUE_H
#define TANDEM_NODE_OP_QUEUE_H

#include "xfer/xfer.h"

struct op_waiting;
struct op_queue {
    struct op_waiting *first, *last;
    uint32_t count;
};

enum err op_queue_post(struct op_queue *q, struct xfer *x, const struct xfer_op *op);
void op_queue_flush(struct op_queue *q, struct xfer *x);
void op_queue_fini(struct op_queue *q);

#endif
