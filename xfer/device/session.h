/* session: the two ends of a device link, as one state machine without sockets, devices or clock.
 *
 *     OPENING    dialler: OPEN is out, ACCEPT awaited       ACCEPTING  acceptor: OPEN awaited
 *     OFFERING   acceptor: what the dialler has to offer is awaited (NCCL: the unique id)
 *     JOINING    the transport connects (ncclCommInitRank)
 *     WARMING    operation 0 is under way, so that what is set up lazily is paid for before traffic
 *     READY      frames go; the dialler numbers the operations, the acceptor grants slots
 *     DRAINING   no new operation; those announced still run on both sides
 *     ABORTED    the transport is thrown away; after a pause the dialler opens the next epoch
 *     CLOSED     frames that have come may still be taken; then only dslink_free is left
 *
 *     dslink_start(s, now)                        the control channel stands
 *     dslink_message(s, bytes, size, now)         what came over the control channel
 *     dslink_joined(s, now)                       the transport is connected
 *     dslink_ended(s, now)                        the transport's oldest operation is over
 *     dslink_broken(s, e, text, now)              the transport failed
 *     dslink_lost(s, e, text, now)                the control channel is gone
 *     dslink_timer(s, now)                        at dslink_wake_at at the latest
 *     dslink_drain(s, now)                        the owner wants to close
 *     while (dslink_next(s, &act)) do(&act);      TELL bytes; OPEN, JOIN, BEGIN, CLOSE of the transport
 *
 * Rules:
 *  - Each state that waits has a deadline, and ends in ABORTED or CLOSED at it; so does each operation.
 *    A try that fails before READY is followed by another one, DSLINK_EPOCHS_MAX in all; what fails later
 *    has lost frames and ends the session. Each message carries the epoch of its try: one of an older
 *    epoch is dropped and counted, one of an epoch that cannot be is an error of the peer.
 *  - Bytes of a peer are never trusted: whatever it says that it may not, the session ends with
 *    ERR_FORMAT or ERR_STATE, and tells it so.
 *  - Operation k is announced (PUSH k, slot, payload bytes, the frame's head) only into a granted slot and
 *    after the payload lies in the dialler's; an announced operation is begun by both sides, always, in the
 *    order of the numbers, whatever became of the ticket: the session does not know of tickets.
 *  - A slot is granted again only after its frame was released (the scatter is complete).
 *  - Frames without payload travel in the control channel, in their place between the others: the acceptor
 *    hands out frame n+1 only after n.
 *  - Turns (turns.h): where operations are posted, the dialler announces and begins an operation while it
 *    has its device's turn to send, the acceptor begins it while it has its own to receive; both keep the
 *    turn until the operation is over. The dialler announces nothing before it has the turn: an acceptor
 *    that waits in its turn for a sender would else wait for one that stands in another's queue.
 *  - No memory grows with a peer's behaviour: at most slots_count announcements are open; a frame without
 *    payload stays in the control channel until it has its place (dslink_message says ERR_AGAIN).
 *  - The transport is closed only when nobody holds a slot's payload any more.
 * One thread drives a session; pure otherwise. */
#ifndef TANDEM_XFER_DEVICE_SESSION_H
#define TANDEM_XFER_DEVICE_SESSION_H

#include "xfer/device/control.h"

enum { DSLINK_EPOCHS_MAX = 3 };

enum dslink_state {
    DSLINK_OPENING,
    DSLINK_ACCEPTING,
    DSLINK_OFFERING,
    DSLINK_JOINING,
    DSLINK_WARMING,
    DSLINK_READY,
    DSLINK_DRAINING,
    DSLINK_ABORTED,
    DSLINK_CLOSED,
    DSLINK_STATES,
};

/* A message's kind, or one of these. */
enum dslink_event {
    DSLINK_EV_JOINED = CONTROL_KINDS,
    DSLINK_EV_ENDED,
    DSLINK_EV_BROKEN,
    DSLINK_EV_LOST,
    DSLINK_EV_DEADLINE,
    DSLINK_EV_DRAIN,
    DSLINK_EVENTS,
};

/* How long each wait may last. */
struct dslink_times {
    uint64_t open_ns;      /* for the first answer, and for the dialler's offer or its next try */
    uint64_t join_ns;      /* for the transport to connect */
    uint64_t warm_ns;      /* for operation 0, turns included */
    uint64_t operation_ns; /* from the announcement to the end */
    /* of the acceptor's part alone: shorter, so that a sender that is frozen in its operation
     * does not end those that wait for the turn behind it */
    uint64_t receive_ns;
    uint64_t drain_ns;
    uint64_t pause_ns; /* before the next try, times the epoch */
};
extern const struct dslink_times dslink_times_default;

struct dslink_options {
    bool dialler;
    const struct transport_ops *transport; /* its facts and its name alone; nothing is called */
    uint32_t device_index, slots_count, slot_bytes;
    struct dslink_times times;
};

enum dslink_act_kind {
    DSLINK_TELL =
        1, /* send bytes over the control channel; may be tried again: dslink_next repeats it */
    DSLINK_OPEN,  /* open the transport; dslink_opened when it is there */
    DSLINK_JOIN,  /* join with bytes, the other side's offer; dslink_joined when it has */
    DSLINK_BEGIN, /* begin an operation of payload_bytes in slot; dslink_ended when it is over */
    DSLINK_CLOSE, /* close the transport as `end` says */
};

struct dslink_act {
    enum dslink_act_kind kind;
    enum control_kind tell;
    uint32_t slots_count, slot_bytes; /* OPEN: as agreed */
    uint32_t slot, payload_bytes;     /* BEGIN */
    uint64_t number;                  /* BEGIN */
    enum transport_end end;           /* CLOSE */
    size_t size;
    uint8_t bytes[CONTROL_BYTES_MAX]; /* TELL, JOIN */
};

struct dslink_frame {
    bool in_slot;
    const uint8_t *bytes; /* the head; of a frame without payload all of it */
    size_t size;
    uint32_t slot, payload_bytes;
};

struct dslink_counts {
    uint32_t stale; /* messages of an older epoch */
    uint32_t late;  /* those that crossed the end of their own epoch */
    /* announced by the dialler; heard of by the acceptor; without operation 0 */
    uint64_t operations;
    uint32_t met[DSLINK_STATES][DSLINK_EVENTS]; /* entries of the table of session.c */
};

struct dslink;

enum err dslink_new(struct dslink **s, const struct dslink_options *options);
void dslink_free(struct dslink *s); /* NULL is allowed */

void dslink_start(struct dslink *s, uint64_t now_ns);
/* ERR_AGAIN: a frame, kept in its place; the bytes must stay until dslink_release says otherwise, and no
 * other message may be given before that. Others: the peer's fault, the session is CLOSED. */
enum err dslink_message(struct dslink *s, const void *bytes, size_t size, uint64_t now_ns);
void dslink_joined(struct dslink *s, uint64_t now_ns);
void dslink_ended(struct dslink *s, uint64_t now_ns);
void dslink_broken(struct dslink *s, enum err e, const char *text, uint64_t now_ns);
void dslink_lost(struct dslink *s, enum err e, const char *text, uint64_t now_ns);
void dslink_timer(struct dslink *s, uint64_t now_ns);
uint64_t dslink_wake_at(const struct dslink *s); /* TIME_NEVER: it waits for nothing */
void dslink_drain(struct dslink *s, uint64_t now_ns);

/* What is to be done next; false: nothing. It is due until dslink_done, or until dslink_broken if it has
 * failed. */
bool dslink_next(const struct dslink *s, struct dslink_act *act);
void dslink_done(struct dslink *s, const struct dslink_act *act, uint64_t now_ns);
/* With what our transport has to offer. */
void dslink_opened(struct dslink *s, const uint8_t *offer, size_t size);
/* Level, not edge: after each call the owner of the turns asks, and gives, keeps or takes. */
bool dslink_wants_turn(const struct dslink *s);
void dslink_turn(struct dslink *s, bool has, uint64_t now_ns);
bool dslink_opening(const struct dslink *s);   /* ask the transport whether it has opened */
bool dslink_joining(const struct dslink *s);   /* ask the transport whether it has joined */
bool dslink_operating(const struct dslink *s); /* ask it whether its oldest operation has ended */

/* Dialler, READY. ERR_AGAIN: no slot is free, or the session is not READY. The same until it is sent. */
enum err dslink_slot(struct dslink *s, uint32_t *slot);
bool dslink_slot_free(const struct dslink *s); /* dslink_slot would say OK */
void dslink_send_slot(struct dslink *s, const void *head, size_t head_bytes,
                      uint32_t payload_bytes);
/* Whether a frame without payload may be told now, behind all that was sent before. */
bool dslink_may_send(const struct dslink *s);
/* The frame that is to be handed out; the same until dslink_release, which says whether it was the one
 * that dslink_message has kept. */
bool dslink_front(const struct dslink *s, struct dslink_frame *f);
bool dslink_release(struct dslink *s);
void dslink_let_go(struct dslink *s); /* the owner holds no payload, and will not ask for frames */

enum dslink_state dslink_state(const struct dslink *s);
uint32_t dslink_epoch(const struct dslink *s);
uint32_t dslink_slots_count(const struct dslink *s); /* as agreed; before that as wished */
uint32_t dslink_slot_bytes(const struct dslink *s);
enum err dslink_error(const struct dslink *s); /* CLOSED: why; OK: it was drained */
const char *dslink_error_text(const struct dslink *s);
const struct dslink_counts *dslink_counts(const struct dslink *s);
const char *dslink_state_name(enum dslink_state state);
const char *dslink_event_name(enum dslink_event event);

#endif
