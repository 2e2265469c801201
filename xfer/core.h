/* xfer core: the state machines of tickets and link sessions, without threads, sockets or clock.
 *
 *     xfer_core_op(core, &op, now_ns);                       // what the node wants
 *     session = xfer_core_accepted(core, "tcp", now_ns);     // a link was accepted
 *     xfer_core_connected(core, session, "tcp", &facts, now_ns); // it or a dialled one stands
 *     e = xfer_core_frame(core, session, &frame, now_ns, &store); // not OK: drop the peer
 *     if (store.blocks_count > 0)                            // DATA: put the payload there, then
 *         xfer_core_stored(core, session, &store, good, now_ns);
 *     while (xfer_core_wants(core, session, &send))          // the next frame, if credit allows
 *         if (link sends send.frame) xfer_core_sent(core, session, &send, now_ns); else break;
 *     xfer_core_lost(core, session, e, text, now_ns);        // the link is dead; close it
 *     xfer_core_crowded(core, "nccl", now_ns);               // dial or accept said ERR_FULL
 *     xfer_core_timer(core, now_ns);                    // at xfer_core_wake_at(core) at the latest
 *     while (xfer_core_next(core, &action)) ...;         // events to deliver, links to dial, close
 *
 * Rules: no call calls back; what is to be done comes out of wants and next. Nothing is queued that
 * can be told from state: a ticket knows what it has still to say, so a slow peer costs no memory.
 * Every ticket gives exactly one event. A core is driven by one thread; only xfer_message_new is
 * called by the thread that posts an op. */
#ifndef TANDEM_XFER_CORE_H
#define TANDEM_XFER_CORE_H

#include "xfer/frame.h"
#include "xfer/link.h"
#include "xfer/slice.h"

struct xfer_core;
struct xfer_session;
struct xfer_ticket;
struct xfer_push;
struct xfer_commit;

enum {
    XFER_SESSIONS_MAX = 256,
    XFER_PEERS_MAX = 512,         /* that are remembered; those not in use make way */
    XFER_GREETINGS_MAX = 32,      /* accepted links of one kind that have not said HELLO */
    XFER_FRAME_UNITS_MAX = 256,   /* of 16 tokens of one layer */
    XFER_SLOT_UNITS_MAX = 1024,   /* of a frame whose payload goes through a slot */
    XFER_FRAME_BYTES = 256 << 10, /* payload of a DATA frame, or one unit if that is more */
};

struct xfer_core_options {
    struct kv_geometry geometry;
    struct kv_part part; /* fits the geometry */
    bool whole_blocks;   /* the pool takes and gives blocks with all their heads only */
    struct id128 incarnation;
    uint32_t tickets_max;
    bool arrivals;         /* of xfer_options */
    uint64_t handshake_ns; /* six times that for links that are slow to make */
    uint64_t idle_close_ns;
    uint64_t retry_ns;      /* a link that broke: doubled each time, up to 60 times that; 0: 1 s */
    uint64_t tell_every_ns; /* how links do, in XFER_ACT_LINK: at most so often; 0: never */
};

/* An op on its way to the core, which takes over what hangs on it. */
struct xfer_message {
    enum xfer_op_kind kind;
    struct id128 ticket;
    union {
        struct xfer_ticket *opened; /* EXPECT, OPEN */
        struct xfer_push *push;     /* PUSH */
        struct xfer_commit *commit; /* COMMIT */
    };
};

/* Where the payload of a DATA frame belongs. */
struct xfer_store {
    struct id128 ticket;
    struct frame_range range;
    const uint32_t *blocks; /* until the next call: those that the range's tokens lie in */
    uint32_t blocks_count;  /* 0: nowhere, throw it away */
    uint64_t hash;
    /* NULL: nothing of it is verified. Else bits, see xfer_store_has: those are not to be written. */
    const uint64_t *verified;
    uint64_t verified_first;
    uint32_t unit_bits;
};
/* Whether the range's n-th 16 tokens are there already in its n-th head. */
static inline bool xfer_store_has(const struct xfer_store *s, uint32_t unit, uint32_t head)
{
    uint64_t i = s->verified_first + (uint64_t)unit * s->unit_bits + head;
    return s->verified && s->verified[i / 64] >> i % 64 & 1;
}

/* A frame to send. DATA: its hash is left to fill in, its payload is the range's part of these blocks. */
struct xfer_send {
    struct frame frame;
    const uint32_t *blocks;
    uint32_t blocks_count;
    struct xfer_ticket *about; /* the core's */
};

enum xfer_action_kind {
    XFER_ACT_EVENT, /* deliver it */
    XFER_ACT_DIAL,  /* dial `address`; then connected or lost */
    XFER_ACT_CLOSE, /* close its link, if any, then xfer_core_closed */
    XFER_ACT_LINK,  /* tell how a link does */
};
struct xfer_action {
    enum xfer_action_kind kind;
    struct xfer_event event;
    struct xfer_session *session;
    const char *address;
    struct xfer_link_row link;
};

struct xfer_core_counts {
    uint64_t sent_bytes, received_bytes, frames_refused, frames_dead, tickets_done, tickets_failed;
};

/* How many units (16 tokens of one layer in some heads) of this size a DATA frame in host memory carries at
 * most, and the longest frame that makes between this node and any other. */
uint32_t xfer_frame_units(size_t unit_bytes);
uint32_t xfer_frame_bytes_max(const struct kv_geometry *g);

/* Where a range lies in the pool of a node that holds this part: from slice `first` of its first block on. */
struct xfer_place {
    uint32_t layer, units_count;
    struct slice first;
};
struct xfer_place xfer_place(const struct kv_geometry *g, const struct kv_part *told,
                             const struct frame_range *range);

/* The op's copy. ERR_INVALID if it breaks the rules of its kind; ERR_MEMORY. */
enum err xfer_message_new(const struct xfer_op *op, const struct kv_geometry *g,
                          uint32_t blocks_in_pool, struct xfer_message *message);
void xfer_message_free(struct xfer_message *message); /* one that no core has taken */

enum err xfer_core_new(struct xfer_core **core, const struct xfer_core_options *options);
void xfer_core_free(struct xfer_core *core); /* NULL is allowed */

void xfer_core_op(struct xfer_core *core, struct xfer_message *message, uint64_t now_ns);
/* NULL: too many, close the link. `link` is a static string. */
struct xfer_session *xfer_core_accepted(struct xfer_core *core, const char *link, uint64_t now_ns);
/* A link, dialled or accepted, takes and gives frames now. */
void xfer_core_connected(struct xfer_core *core, struct xfer_session *session, const char *link,
                         const struct kv_link_facts *facts, uint64_t now_ns);
void xfer_core_lost(struct xfer_core *core, struct xfer_session *session, enum err e,
                    const char *text, uint64_t now_ns);
enum err xfer_core_frame(struct xfer_core *core, struct xfer_session *session,
                         const struct frame *frame, uint64_t now_ns, struct xfer_store *store);
void xfer_core_stored(struct xfer_core *core, struct xfer_session *session,
                      const struct xfer_store *store, bool good, uint64_t now_ns);
bool xfer_core_wants(struct xfer_core *core, struct xfer_session *session, struct xfer_send *send);
void xfer_core_sent(struct xfer_core *core, struct xfer_session *session,
                    const struct xfer_send *send, uint64_t now_ns);
/* There can be no more links of this kind, for one that was dialled or called: room for the next try. */
void xfer_core_crowded(struct xfer_core *core, const char *link, uint64_t now_ns);
void xfer_core_timer(struct xfer_core *core, uint64_t now_ns);
uint64_t xfer_core_wake_at(const struct xfer_core *core); /* TIME_NEVER: not by itself */
/* Every ticket fails with ERR_CANCELLED; its peer is told if the link takes it. */
void xfer_core_stop(struct xfer_core *core, uint64_t now_ns);
bool xfer_core_next(struct xfer_core *core, struct xfer_action *action);
void xfer_core_closed(struct xfer_session *session); /* frees it */

/* Of a READY session: the order of a payload's bytes, KV_LAYOUT_…. */
uint32_t xfer_session_layout(const struct xfer_session *session);
/* The shell's own pointer, NULL at first. */
void xfer_session_set_user(struct xfer_session *session, void *user);
void *xfer_session_user(const struct xfer_session *session);

struct xfer_core_counts xfer_core_counts(const struct xfer_core *core);
uint32_t xfer_core_sessions_count(const struct xfer_core *core); /* READY ones */
uint32_t xfer_core_tickets_count(const struct xfer_core *core);  /* without an event so far */

#endif
