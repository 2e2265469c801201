/* kv_xfer: requests' KV travelling from a prefill node to a decode node, layer by layer.
 *
 * Receiver (D)                                   Sender (P)
 *     XFER_EXPECT ticket, blocks                     XFER_OPEN ticket, addresses
 *                                                    XFER_PUSH layer, tokens, blocks   (many)
 *                                                    XFER_COMMIT first token
 *     event XFER_ARRIVING
 *     event XFER_COMMITTED, first token              event XFER_DONE
 *     or XFER_FAILED, or XFER_RELEASED               or XFER_FAILED, or XFER_CANCELLED
 *
 *     struct xfer *x;
 *     if ((e = xfer_open(&x, &options, on_event, ctx)) != OK) return e; // listens; addresses known
 *     xfer_start(x);                                                      // the link thread begins
 *     xfer_post(x, &(struct xfer_op){.kind = XFER_EXPECT, .ticket = t, ...}); // loop thread
 *     ... on_event(ctx, &event) is called ON THE LINK THREAD: put it into a mailbox, return ...
 *     xfer_stop(x); xfer_close(x);
 *
 * Rules: a ticket names one attempt's transfer and dies with it; ids are never reused. Every EXPECT
 * and every OPEN ends in exactly one final event of that ticket, also when the peer dies, a
 * deadline passes, the op was refused or xfer_stop is called. XFER_ARRIVING comes before it, once or never,
 * and only where options.arrivals asks for it. Until the final event the caller keeps its
 * HOLD_TRANSFER on all named blocks, after it the link thread touches none of them. Only the node
 * itself writes its pool: frames arrive in a ring or in staging memory, the ticket is checked, then
 * bytes are copied into the blocks of EXPECT and hashed in one pass. A wire address is (ticket,
 * layer, tokens, kv heads), never a pointer or a block number of the other side. A range whose checksum
 * is wrong is refused and sent again, twice; then the transfer fails. Frames of a dead ticket are read
 * and thrown away. XFER_COMMITTED comes only when every layer of every expected token has arrived
 * and is verified. Nodes may hold parts of a model (struct kv_part) in blocks of different sizes: what
 * travels is what both sides hold, and several senders may feed one expected ticket, each with its part;
 * it ends for all of them at once, with one first token. Ops of one ticket take effect in the order
 * posted; ops for an unknown ticket are ignored (its final event is on its way). */
#ifndef TANDEM_XFER_XFER_H
#define TANDEM_XFER_XFER_H

#include "common/geometry.h"
#include "common/id.h"
#include "common/job.h"

struct xfer;

enum {
    XFER_ADDRESSES_MAX = 4,
    XFER_ADDRESS_BYTES_MAX = 128,
    XFER_TEXT_MAX = 160,
    XFER_PUSHES_TOLD = 128, /* of which an event says when they were sent */
};

/* How a node's links can be reached: "nccl:…", "ipc:…", "shm:NAME", "tcp:HOST:PORT", in the order in which
 * the node prefers them. shm names carry the host's boot id, so that a node on another host skips them. */
struct xfer_addresses {
    uint32_t count;
    char address[XFER_ADDRESSES_MAX][XFER_ADDRESS_BYTES_MAX];
};

enum xfer_op_kind {
    XFER_EXPECT,  /* D: let the ticket in */
    XFER_RELEASE, /* D: end it now; final event XFER_RELEASED unless another one is on its way */
    XFER_OPEN,    /* P: connect if need be and announce the ticket */
    XFER_PUSH,    /* P: these tokens' KV of this layer is complete in these blocks: send it */
    XFER_COMMIT,  /* P: all pushed; the first token and whether it was the last one */
    XFER_CANCEL,  /* P: end it now; D fails its ticket. Final event XFER_CANCELLED */
};

/* The op and what it points to are copied by xfer_post. */
struct xfer_op {
    enum xfer_op_kind kind;
    struct id128 ticket;
    /* EXPECT, OPEN: the tokens that travel, tokens_first a multiple of 16, to tokens_end exclusive.
     * PUSH: the part of them that is sent now; whole blocks, or up to tokens_end. */
    uint32_t tokens_first, tokens_end;
    const uint32_t *blocks; /* EXPECT, PUSH: block numbers from the one of tokens_first on */
    uint32_t blocks_count;
    uint32_t layer;                         /* PUSH: of this node's, from 0 on */
    const struct xfer_addresses *addresses; /* OPEN: the receiver's */
    const char *link;     /* OPEN: the name of a link forces it, NULL or "": best */
    uint64_t deadline_ns; /* EXPECT, OPEN: CLOCK_MONOTONIC; XFER_FAILED at it */
    uint64_t silence_ns;  /* EXPECT, OPEN: the deadline moves on to so long after the last that was
                                pushed, sent or verified; 0: it stays */
    struct token_info first; /* COMMIT */
    enum finish finish;      /* COMMIT: of the first token */
};

enum xfer_event_kind {
    XFER_COMMITTED, /* D, final: KV is in the blocks, verified; first and finish are the sender's */
    XFER_RELEASED,  /* D, final: after XFER_RELEASE */
    XFER_DONE,      /* P, final: the receiver has verified and committed */
    XFER_CANCELLED, /* P, final: after XFER_CANCEL */
    XFER_FAILED,    /* both, final: error and text say why */
    XFER_ARRIVING, /* D: half of the layers of the last tokens, which P computes in one step, are here */
};

struct xfer_event {
    enum xfer_event_kind kind;
    struct id128 ticket;
    /* FAILED: ERR_PEER gone or unreachable, ERR_TIMEOUT, ERR_FORMAT checksums, ERR_CANCELLED by the
     * peer or xfer_stop, ERR_NOT_FOUND the receiver does not know the ticket, ERR_INVALID the two
     * KV differ, no address fits, or a push or commit does not fit its ticket, ERR_DUPLICATE the
     * ticket is in use or another sender has this part, ERR_STATE two senders disagree, ERR_FULL or
     * ERR_MEMORY here. */
    enum err error;
    char text[XFER_TEXT_MAX];
    struct token_info first;
    enum finish finish;
    const char *link;  /* its name, "" if none stood: static strings */
    uint64_t bytes;    /* of KV that crossed the link for this ticket, repeats included */
    uint64_t began_ns; /* first frame */
    uint64_t ended_ns; /* commit verified (D) or acknowledged (P) */
    /* P: when the link had taken all of PUSH i, at [i % XFER_PUSHES_TOLD], after began_ns. */
    uint32_t pushes_count;
    uint32_t sent_us[XFER_PUSHES_TOLD];
};

/* How one link from here to another node does; whoever dialled it tells. */
enum xfer_link_state {
    XFER_LINK_IDLE,
    XFER_LINK_MAKING,
    XFER_LINK_READY,
    XFER_LINK_BROKEN, /* left alone for a while, or tried in vain */
    XFER_LINK_UNFIT,  /* not for these two: other hosts, users, versions; rarely tried */
};
struct xfer_link_row {
    char address[XFER_ADDRESS_BYTES_MAX]; /* the other side's: it names the link and the node */
    enum xfer_link_state state;
    uint32_t tickets_count;     /* that travel over it now */
    uint64_t bytes;             /* of payload so far */
    uint64_t rate;              /* bytes a second while busy; 0: not measured */
    uint64_t failed_ns;         /* of its last failure, CLOCK_MONOTONIC; 0: never */
    char reason[XFER_TEXT_MAX]; /* of that */
};

/* A pool in memory that the link thread cannot touch: one layer of some blocks to and from host memory
 * [blocks_count][layer bytes] in the order `layout`, done on return. Called on the link thread; an
 * error ends the link that asked. */
struct xfer_device {
    void *ctx;
    enum err (*read)(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                     uint32_t layout, void *host);
    enum err (*write)(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                      uint32_t layout, const void *host);
    void *staging; /* the host memory: xfer_staging_bytes; what the device copies fastest */
    /* The same between the pool and a slot of a device link (xfer/link.h), in device memory; `hash` is that
     * of the bytes in `layout` order (kernels/backend.h, kv_gather). Both NULL: no such links. */
    enum err (*gather)(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                       uint32_t layout, void *slot, uint64_t *hash);
    enum err (*scatter)(void *ctx, uint32_t layer, const uint32_t *blocks, uint32_t blocks_count,
                        uint32_t layout, const void *slot, uint64_t *hash);
    uint32_t index; /* the device's number */
};

typedef void xfer_event_fn(void *ctx, const struct xfer_event *event);
typedef void xfer_link_fn(void *ctx, const struct xfer_link_row *row);

struct kv_link_ops;

/* A link to listen on, and one that may be dialled. */
struct xfer_listen {
    const char *name; /* shm, tcp; where the pool has device.gather also nccl, ipc: plugins */
    /* tcp, nccl (for its control channel): "HOST:PORT", port 0: any; shm, ipc: "" */
    const char *where;
    bool optional;                 /* without it the others do */
    const struct kv_link_ops *ops; /* NULL: found by name */
};

struct xfer_options {
    struct kv_geometry geometry; /* what this node holds; blocks of 16 * n tokens, a device's 16 */
    struct kv_part part;         /* which part of the model that is; zero: all */
    /* Block b, layer l at kv_base + b * kv_block_bytes + l * kv_layer_bytes, or NULL and `device`. */
    void *kv_base;
    struct xfer_device device;
    uint32_t blocks_count;
    struct xfer_listen listen[XFER_ADDRESSES_MAX]; /* the one preferred first */
    uint32_t listen_count;
    uint32_t tickets_max;   /* live at once */
    bool arrivals;          /* XFER_ARRIVING is wanted */
    uint32_t ring_bytes;    /* shm: per connected pair; 0: 8 MiB */
    uint32_t slot_bytes;    /* device links: of a slot; 0: 8 MiB; at least one block's layer */
    uint32_t slots_count;   /* device links: of each link, per direction; 0: 3 */
    uint32_t links_max;     /* device links: open at once; 0: 32 */
    const char *interface;  /* nccl: for its own sockets; NULL or "": NCCL chooses */
    uint64_t idle_close_ns; /* a link without tickets for so long is closed; 0: 60 s */
    uint64_t retry_ns;      /* a link that broke is left alone for so long at first; 0: 1 s */
    xfer_link_fn *on_link;  /* like on_event: what has changed, once a second; NULL: nobody asks */
    uint32_t corrupt_every; /* tests: spoil every n-th frame sent; 0: none */
};

/* Room for the longest payload in host memory. */
size_t xfer_staging_bytes(const struct kv_geometry *geometry);

enum err xfer_open(struct xfer **x, const struct xfer_options *options, xfer_event_fn *on_event,
                   void *ctx);
const struct xfer_addresses *xfer_addresses(const struct xfer *x);
enum err xfer_start(struct xfer *x);
/* ERR_FULL when the mailbox (thousands of ops) or the ticket table is full, ERR_INVALID for an op
 * that breaks the rules, ERR_CANCELLED after xfer_stop: then nothing was done. The event of a
 * ticket frees its place before it is delivered. Any thread; the order of one thread's ops is
 * kept. */
enum err xfer_post(struct xfer *x, const struct xfer_op *op);
void xfer_stop(struct xfer *x);  /* every live ticket gets XFER_FAILED with ERR_CANCELLED; joins */
void xfer_close(struct xfer *x); /* NULL is allowed */

struct xfer_stats {
    uint64_t sent_bytes, received_bytes, frames_refused, frames_dead, tickets_done, tickets_failed;
    uint32_t links_open, tickets_live;
};
/* Any thread. */
void xfer_stats(const struct xfer *x, struct xfer_stats *stats);

#endif
