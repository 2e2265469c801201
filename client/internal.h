/* internal: what the files of libtandem share. connection.c owns the sockets, the session and the
 * order of one tandem_process; request.c what becomes of requests; query.c of questions.
 *
 * One tandem_process: receive and dispatch messages, look at the lifeline, run the session's timer,
 * give up what waited too long, send what is due, set the timer descriptor. A callback of the user's
 * may free its request and make new ones, so whoever walks a list starts again after each callback.
 * Owner: the thread that calls (client/tandem.h). */
#ifndef TANDEM_CLIENT_INTERNAL_H
#define TANDEM_CLIENT_INTERNAL_H

#include "client/tandem.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/list.h"
#include "common/map.h"
#include "proto/msg.h"
#include "proto/session.h"
#include "proto/tcp.h"
#include "proto/wire.h"

enum {
    ROUTERS_MAX = 16,
    ATTEMPTS_STEP = 1000, /* a resumed request's attempts are above all of its router before */
    PATIENCE_MS = 10000,
    CONNECT_MS = 1000, /* then the next address is tried */
    RETRY_MS = 100,
    SETTLED_MS = 250,  /* a router whose lifeline stood for less has not been one */
    LATE_MS = 100,     /* a turn that is later was held up by the program */
    RESUME_MS = 30000, /* how long other routers may refuse a resumed request for lack of room */
};

enum lifeline_state { LIFE_NONE, LIFE_CONNECTING, LIFE_UP };

struct tandem {
    char *address[ROUTERS_MAX];
    uint32_t addresses_count, address_now;
    struct session session;
    char name[MSG_NAME_MAX + 1];
    struct wire *wire; /* NULL: the next address must be dialled */
    struct wire_line *line;
    int epoll_fd, timer_fd, life_fd;
    enum lifeline_state life;
    char life_address[TCP_ADDRESS_TEXT];
    unsigned char life_key[16];
    struct buf out;
    struct arena arena;                 /* of the message being processed */
    struct list_link requests, queries; /* that have not ended */
    struct map by_id, by_ref;           /* of requests */
    uint64_t next_ref;
    uint64_t patience_ns, dialled_ns;
    uint64_t up_ns;   /* since when the lifeline stands; 0: it does not, and there is no router */
    uint64_t lost_ns; /* since when there was none that stayed */
    uint64_t due_ns;  /* when the next turn should be at the latest */
    bool kicked, closing;
    char trouble[ERR_TEXT_MAX]; /* why there is no router, */
    const char *hint;           /* and what to do */
};

enum request_state {
    REQUEST_NEW,
    REQUEST_WAITING, /* for a router, or until retry_ns */
    REQUEST_SENT,    /* neither accepted nor rejected */
    REQUEST_RUNNING,
    REQUEST_ENDED,
};

struct choice {
    uint32_t *received; /* its tokens, for another router */
    uint32_t received_count, received_capacity;
    enum finish finish; /* what its last token ended it by; DONE is still to come */
    bool tail_told;     /* what the router held back until the end */
    bool ended;
};

struct values { /* of a request that scores or embeds */
    float *number;
    uint32_t *token; /* that they belong to; NULL: to none */
    uint32_t count, total;
};

struct tandem_request {
    struct tandem *t; /* used until the request has ended */
    struct list_link link;
    tandem_event_fn *fn;
    void *ctx;
    enum request_state state;
    struct msg_submit submit; /* its pointers are the members below */
    char *text;
    uint32_t *tokens;
    struct logit_bias bias[JOB_BIAS_MAX];
    uint32_t stop_ids[JOB_STOP_IDS_MAX];
    char *stop[JOB_STOP_STRINGS_MAX];
    char tenant[MSG_NAME_MAX + 1];
    struct choice *choice;
    struct values values;
    uint32_t choices_left;
    struct id128 id;
    char id_text[ID128_TEXT];
    uint32_t prompt_tokens;
    uint64_t deadline_ns, retry_ns, resume_by_ns; /* TIME_NEVER: none */
    bool cancelled;
    uint32_t callbacks; /* running now */
    bool freed;         /* while one was running */
};

/* connection.c */
enum err connection_send(struct tandem *t, struct msg *m); /* fills the envelope in */
bool connection_is_up(const struct tandem *t);
void connection_kick(struct tandem *t); /* tandem_process shall be called soon */

/* request.c */
void request_on_accepted(struct tandem *t, const struct msg_accepted *m);
void request_on_rejected(struct tandem *t, uint64_t now_ns, const struct msg_rejected *m);
void request_on_output(struct tandem *t, const struct msg_output *m);
void request_on_encoded(struct tandem *t, const struct msg_encoded *m);
void request_on_done(struct tandem *t, const struct msg_done *m);
void requests_lost(struct tandem *t, uint64_t now_ns); /* the session is over */
void requests_fail(struct tandem *t, enum tandem_status status, const char *reason);
/* Sends or ends what is due; the time of the next. */
uint64_t requests_pump(struct tandem *t, uint64_t now_ns);

/* result.c */
enum err values_add(struct tandem_request *r, const struct msg_encoded *m); /* ERR_FORMAT: a gap */
bool values_are_whole(const struct tandem_request *r); /* true of one that has none */
void values_free(struct values *v);

/* query.c */
void query_on_answer(struct tandem *t, const struct msg_answer *m);
void queries_lost(struct tandem *t);
void queries_fail(struct tandem *t, enum tandem_status status, const char *reason);
void queries_pump(struct tandem *t);

/* status.c */
enum tandem_status status_of(enum err e);

#endif
