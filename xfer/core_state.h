/* core_state: the structs behind core.h, for core.c, session.c, ticket.c, peer.c, sender.c,
 * receiver.c, part.c and message.c only. Owner: the link thread. */
#ifndef TANDEM_XFER_CORE_STATE_H
#define TANDEM_XFER_CORE_STATE_H

#include "common/heap.h"
#include "common/list.h"
#include "common/map.h"
#include "xfer/choose.h"
#include "xfer/core.h"

enum ticket_state {
    TICKET_CONNECTING, /* sender: no session that is ready */
    TICKET_SENDING,    /* sender: ready; OPEN, DATA and COMMIT go out as credit allows */
    TICKET_COMMITTING, /* sender: COMMIT is out, waits for DONE */
    TICKET_EXPECTED,   /* receiver: nobody has opened it */
    TICKET_RECEIVING,  /* receiver: opened */
    TICKET_CLOSING,    /* receiver: COMMIT came while ranges are being sent again */
    TICKET_ENDED,      /* the event is made; perhaps a last frame is still to be sent */
};

enum session_state {
    SESSION_DIAL,     /* an address is to be dialled */
    SESSION_DIALLING, /* the link is being made */
    SESSION_GREETING, /* the other side's HELLO is awaited */
    SESSION_READY,
    SESSION_PARTING, /* a FAIL about the link is to be sent, then it ends; frames are dropped */
    SESSION_ENDED,   /* waits for the shell to close it */
};

struct xfer_push {
    struct list_link link; /* in the ticket's pushes: all of them, for ranges that are refused */
    uint32_t layer;        /* of the pool's */
    uint32_t tokens_first, tokens_end;
    uint32_t units_count; /* of 16 tokens */
    uint32_t blocks[];
};

struct xfer_commit {
    struct token_info first;
    enum finish finish;
};

/* A range that has to be sent again (sender) or refused (receiver). */
struct again {
    struct list_link link;
    struct frame_range range;
};

struct xfer_ticket {
    struct id128 id;
    bool sends;
    enum ticket_state state;
    struct xfer_session *session; /* NULL: none (any more) */
    struct heap_entry timer;      /* the deadline */
    uint64_t silence_ns;          /* it is so long after the last that moved; 0: it stays */
    struct list_link in_session;  /* session->tickets; CONNECTING: peer->waiting */
    struct list_link ready;       /* session->ready: may have something to say */
    struct list_link ended;       /* core->ended: its event is to be fetched */
    struct list_link arriving;    /* core->arriving: so is XFER_ARRIVING */
    uint32_t last_heads;          /* receiver: that were verified up to tokens_end, of all layers */
    uint32_t tokens_first, tokens_end;
    uint32_t layer_units; /* 16 tokens each, of one layer */
    uint64_t units_count; /* all layers: what has to travel; receiver: in each head by itself */
    uint64_t units_done;  /* sender: pushed; receiver: verified */
    struct list_link agains;
    uint64_t agains_count;     /* ever */
    enum frame_kind last_word; /* TICKET_ENDED: FAIL or DONE still to be sent; 0: nothing */
    struct xfer_event event;

    struct xfer_addresses addresses; /* sender */
    char link_wanted[8];             /* sender */
    uint64_t asked;                  /* sender: core->order when it was opened */
    uint32_t moves_count;            /* sender: how often it was placed anew */
    struct list_link pushes;         /* sender */
    struct xfer_push *next_push;     /* sender: the first that is not all sent; NULL: none */
    uint32_t next_unit;              /* sender: of next_push */
    bool opened;                     /* sender: OPEN was sent */
    bool committed;                  /* sender: COMMIT was asked for; receiver: one came */

    uint32_t *blocks;   /* receiver */
    uint64_t *verified; /* receiver: one bit per unit */
    /* Receiver: the first session that opened it is its own. Each further one, with another part of the
     * model, has a ticket of its own that feeds this one: a session, agains, a state, a last word. */
    struct list_link feeds;
    struct list_link in_feeds;
    struct xfer_ticket *whole; /* a feed: the one that it feeds, until that ends */
    uint32_t feeds_count;
};

/* A frame for a ticket that does not exist here. */
struct note {
    struct list_link link;
    struct id128 ticket;
    enum err error;
};

/* One address of a peer, and what is known of the link to it. */
struct xfer_way {
    const struct link_trait *trait;
    struct xfer_session *session; /* for new tickets; NULL: none */
    uint64_t backoff_ns;          /* of its last failure; 0: it has carried a ticket since */
    uint64_t retry_ns;            /* not to be tried before; 0: healthy */
    uint64_t failed;              /* core->order at its last failure; 0: never */
    uint64_t failed_ns;
    enum err error;
    char reason[XFER_TEXT_MAX];
    uint64_t rate, rated_ns;  /* bytes a second while it is busy; 0: not measured */
    uint64_t bytes;           /* of payload, ever */
    struct list_link changed; /* core->changed or core->telling */
    struct xfer_peer *peer;
};

/* Where tickets travel to: a node's addresses, which name one life of it. */
struct xfer_peer {
    struct list_link all;     /* core->peers, the least recently used first */
    struct list_link waiting; /* tickets without a link */
    struct xfer_addresses addresses;
    struct xfer_way way[XFER_ADDRESSES_MAX];
};

/* How fast a link takes in what it is given: see rate_sent. */
struct rate_meter {
    uint64_t flying_bytes; /* sent, not granted again */
    uint64_t base_bytes;   /* of these, sent before from_ns */
    uint64_t from_ns;
    uint64_t bytes, busy_ns; /* of the sample so far */
    bool dry;                /* there was nothing to send */
};

/* What a receiver takes in at most before it grants that much again. While it has taken in little so far,
 * CREDIT_EARLY_BYTES are enough: what is not granted when the next burst begins cannot be measured by. */
enum { CREDIT_LATE_BYTES = 1 << 20, CREDIT_EARLY_BYTES = 64 << 10, CREDIT_EARLY_END = 16 << 20 };
static inline uint64_t credit_after(uint64_t window_bytes)
{
    return window_bytes / 4 < CREDIT_LATE_BYTES ? window_bytes / 4 : CREDIT_LATE_BYTES;
}

struct xfer_session {
    struct list_link all;  /* core->sessions */
    struct list_link acts; /* core->acts: to be dialled or closed */
    struct heap_entry timer;
    enum session_state state;
    bool dialler, hello_due;
    bool parted;           /* PARTING: the FAIL is sent */
    uint32_t layout;       /* READY: of KV on the link */
    struct kv_range share; /* READY: what both sides hold */
    size_t unit_bytes;     /* READY: of 16 tokens of a layer in the heads of the share */
    uint32_t slot_bytes;   /* 0: payloads are in host memory */
    bool retired;          /* takes no new tickets: the other side seems frozen */
    struct xfer_way *way;  /* dialler: it is the one for new tickets; NULL: it is not, any more */
    const char *link;
    void *user;
    struct list_link tickets, ready, notes;
    uint32_t notes_count;
    uint32_t live_count;  /* of the tickets: those that have not ended */
    uint64_t used_ns;     /* when it last got one */
    uint32_t frame_units; /* of one layer in a DATA frame */
    struct rate_meter meter;
    uint64_t window_bytes;  /* acceptor's */
    uint64_t credit_bytes;  /* dialler: may be sent */
    uint64_t granted_bytes; /* acceptor: the other side may send */
    uint64_t owed_bytes;    /* acceptor: taken in and not yet granted again */
    uint64_t taken_bytes;   /* acceptor: ever */
    uint64_t heard_ns;
    enum err error;
    char text[XFER_TEXT_MAX];
};

struct xfer_core {
    struct xfer_core_options options;
    struct map senders, receivers; /* by ticket */
    struct heap ticket_timers, session_timers;
    struct list_link sessions, acts, ended, arriving;
    uint32_t sessions_count; /* that have not ended */
    struct list_link peers;
    uint32_t peers_count;
    struct list_link changed, telling; /* ways that the node is to be told of, later and now */
    uint64_t told_ns, tell_ns;         /* last and next; TIME_NEVER: nothing to tell */
    uint64_t order;                    /* counts tickets asked for and links failed */
    struct xfer_core_counts counts;
};

/* ticket.c: both sides of a ticket. */

/* The ticket, or the one it feeds, ends with this event; last_word (0, FRAME_FAIL, FRAME_DONE) is told to
 * the other side of its session, DONE or FAIL to those of all other sessions that feed it. */
void ticket_end(struct xfer_core *core, struct xfer_ticket *t, enum xfer_event_kind kind,
                enum err error, const char *text, enum frame_kind last_word, uint64_t now_ns);
/* It goes on: its deadline too. */
void ticket_moved(struct xfer_core *core, struct xfer_ticket *t, uint64_t now_ns);
/* It may have something to say. */
void ticket_wake(struct xfer_ticket *t);
struct xfer_ticket *ticket_blank(void); /* NULL: no memory */
enum err ticket_again(struct xfer_ticket *t, const struct frame_range *range);
void ticket_free(struct xfer_ticket *t); /* NULL is allowed */
void ticket_join(struct xfer_core *core, struct xfer_ticket *t, struct xfer_session *s,
                 uint64_t now_ns);
/* It has ended, and has said what there was to say. */
void ticket_leave(struct xfer_ticket *t);
/* What it has still to tell the other side; false: nothing. */
bool ticket_last_word(const struct xfer_ticket *t, struct xfer_send *send);
static inline bool ticket_unused(const struct xfer_ticket *t)
{
    return list_empty(&t->ended) && t->last_word == 0;
}

/* session.c */

/* A dialler's, which waits to be dialled; NULL: no memory, or too many. */
struct xfer_session *session_dial(struct xfer_core *core, struct xfer_way *way, uint64_t now_ns);
void session_end(struct xfer_core *core, struct xfer_session *s, enum err e, const char *text,
                 uint64_t now_ns);
/* The other side wants its place back, and has heard of none of these tickets: they move. */
void session_yield(struct xfer_core *core, struct xfer_session *s, const char *text,
                   uint64_t now_ns);
void session_free(struct xfer_session *s);
/* One of its tickets has ended. Last words that it does not get rid of end with it. */
void session_rest(struct xfer_core *core, struct xfer_session *s, uint64_t now_ns);
void session_deadline(struct xfer_core *core, struct xfer_session *s, uint64_t now_ns);
enum err session_hello(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
                       uint64_t now_ns);
enum err session_credit(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
                        uint64_t now_ns);
/* Answers for a ticket that does not exist here; without memory or place its deadline tells the sender. */
void session_note(struct xfer_session *s, struct id128 ticket, enum err error);
/* What it has to say, before its tickets; false: nothing. */
bool session_wants(struct xfer_core *core, struct xfer_session *s, struct frame *f);
void session_sent(struct xfer_core *core, struct xfer_session *s, const struct frame *f,
                  uint64_t now_ns);

/* part.c: what two nodes have to do with each other. */

/* READY's layout, share and sizes from the other side's HELLO. ERR_INVALID: they cannot exchange KV. */
enum err session_meet(struct xfer_core *core, struct xfer_session *s, const struct frame *hello);
/* What of these blocks, the first of which has token `tokens_first`, the range lies in. */
static inline const uint32_t *range_blocks(const struct xfer_core *core,
                                           const struct frame_range *r, const uint32_t *blocks,
                                           uint32_t tokens_first, uint32_t *count)
{
    uint32_t block_tokens = core->options.geometry.block_tokens;
    *count = blocks_between(block_tokens, r->tokens_first, r->tokens_end);
    return blocks + (r->tokens_first / block_tokens - tokens_first / block_tokens);
}

/* peer.c: which session a sender's ticket gets. */

/* Finds it a link, now or when one stands; ends it if there is none. */
void peer_open(struct xfer_core *core, struct xfer_ticket *t, uint64_t now_ns);
/* A link is ready: whoever waits may have it. */
void peer_ready(struct xfer_core *core, struct xfer_way *way, uint64_t now_ns);
/* The session serves no new tickets from here on. e: what broke it; OK: it was not needed. */
void peer_detach(struct xfer_core *core, struct xfer_session *s, enum err e, const char *text,
                 uint64_t now_ns);
void peers_free(struct xfer_core *core);  /* no session is left */
void way_delivered(struct xfer_way *way); /* NULL is allowed: a ticket is done */
void way_changed(struct xfer_core *core, struct xfer_way *way, uint64_t now_ns); /* or NULL */
const char *way_address(const struct xfer_way *way);
struct xfer_link_row way_row(const struct xfer_way *way);
void rate_sent(struct xfer_core *core, struct xfer_session *s, uint64_t bytes, uint64_t now_ns);
void rate_credited(struct xfer_core *core, struct xfer_session *s, uint64_t bytes, uint64_t now_ns);

/* sender.c */
void sender_push(struct xfer_core *core, struct xfer_ticket *t, struct xfer_push *push,
                 uint64_t now_ns);
void sender_commit(struct xfer_core *core, struct xfer_ticket *t, const struct xfer_commit *commit,
                   uint64_t now_ns);
enum err sender_frame(struct xfer_core *core, struct xfer_ticket *t, const struct frame *f,
                      uint64_t now_ns);
bool sender_wants(const struct xfer_core *core, struct xfer_ticket *t, struct xfer_send *send);
void sender_sent(struct xfer_core *core, struct xfer_ticket *t, const struct xfer_send *send,
                 uint64_t now_ns);
/* Off its session, of which nobody has heard: all is to be sent over another one. */
void sender_restart(struct xfer_ticket *t);

/* receiver.c */
enum err receiver_frame(struct xfer_core *core, struct xfer_ticket *t, struct xfer_session *s,
                        const struct frame *f, uint64_t now_ns, struct xfer_store *store);
/* Whether an OPEN of this session is heard: nobody sends yet all that it could. */
bool receiver_admits(const struct xfer_ticket *t, const struct xfer_session *s);
void receiver_stored(struct xfer_core *core, struct xfer_ticket *t, const struct xfer_session *s,
                     const struct xfer_store *store, bool good, uint64_t now_ns);
bool receiver_wants(struct xfer_ticket *t, struct xfer_send *send);
void receiver_sent(struct xfer_ticket *t, const struct xfer_send *send);

#endif
