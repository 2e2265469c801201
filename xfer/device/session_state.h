/* session_state: the struct behind session.h, for session.c (states and events) and session_acts.c (what is
 * to be done about them) only. Owner: the link thread. */
#ifndef TANDEM_XFER_DEVICE_SESSION_STATE_H
#define TANDEM_XFER_DEVICE_SESSION_STATE_H

#include "xfer/device/session.h"

/* What is to be done once, in this order. */
enum dslink_due {
    DSLINK_DUE_CLOSE = 1,
    DSLINK_DUE_TELL_ABORT = 2,
    DSLINK_DUE_OPEN = 4,
    DSLINK_DUE_TELL_OPEN = 8,
    DSLINK_DUE_TELL_ACCEPT = 16,
    DSLINK_DUE_TELL_OFFER = 32,
    DSLINK_DUE_JOIN = 64,
    DSLINK_DUE_TELL_WARM = 128, /* the acceptor's: it has joined */
    DSLINK_DUE_TELL_READY = 256,
    DSLINK_DUE_TELL_DRAIN = 512,
};

enum { DSLINK_NO_SLOT = UINT32_MAX };

/* The dialler's until it is told and over; the acceptor's until its frame is released. */
struct dslink_operation {
    uint64_t number; /* 0: the one that warms */
    uint32_t slot, payload_bytes;
    bool told, begun, ended;
    uint64_t deadline_ns;
    size_t head_bytes;
    uint8_t head[CONTROL_HEAD_MAX];
};

struct dslink {
    struct dslink_options options;
    enum dslink_state state;
    uint32_t epoch, due;
    uint32_t known_epoch; /* the newest that the other side may have heard of, 0: none */
    uint64_t deadline_ns; /* of the state */
    uint32_t slots_count, slot_bytes;
    bool open;    /* there is a transport */
    bool opening; /* its memory is not there yet */
    bool lingers; /* a posted operation of a transport that is to be closed */
    bool has_turn;
    bool let_go; /* the owner holds no payload */
    bool warm_heard, ready_heard, drain_heard, drained_told, drained_heard;
    enum transport_end end;
    uint64_t next_number;
    uint32_t granted;      /* a mask. Dialler: may be written; acceptor: may be announced */
    uint32_t owed;         /* acceptor: released, to be granted */
    uint32_t slot_in_hand; /* dialler: handed out by dslink_slot */
    struct dslink_operation ring[TRANSPORT_SLOTS_MAX];
    uint32_t first, count;
    const uint8_t *kept; /* the frame without payload that waits for its place behind the ring's */
    size_t kept_bytes;
    uint8_t ours[TRANSPORT_OFFER_MAX], theirs[TRANSPORT_OFFER_MAX];
    size_t ours_bytes, theirs_bytes;
    uint32_t abort_epoch;
    bool abort_final;
    enum err error;
    char text[CONTROL_TEXT_MAX];
    struct dslink_counts counts;
};

static inline struct dslink_operation *operation_nth(const struct dslink *s, uint32_t i)
{
    return (struct dslink_operation *)&s->ring[(s->first + i) % TRANSPORT_SLOTS_MAX];
}

static inline void operations_pop(struct dslink *s)
{
    s->first = (s->first + 1) % TRANSPORT_SLOTS_MAX;
    s->count--;
}

/* The oldest that is not over, NULL: none. */
static inline struct dslink_operation *operation_oldest(const struct dslink *s)
{
    for (uint32_t i = 0; i < s->count; i++)
        if (!operation_nth(s, i)->ended) return operation_nth(s, i);
    return NULL;
}

/* session.c: after an operation was told of or has ended at the dialler; after a step of draining. */
void dslink_pop_if_over(struct dslink *s);
void dslink_close_if_drained(struct dslink *s);

#endif
