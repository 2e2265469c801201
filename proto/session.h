/* session: one connection of two processes: who they are, in which life, and whether both still
 * live. A pure state machine inside each core; the shell only carries bytes.
 *
 *     dialer (node, client)                           acceptor (router)
 *     IDLE --start--> HELLO sent ----HELLO---->   NEW: the core looks at the hello
 *     UP   <------------------------WELCOME---   session_accept: epoch + 1, UP
 *        then a TCP lifeline with WELCOME's key; heartbeats both ways; any end of it is DOWN
 *
 *     struct session s;
 *     session_init(&s, SESSION_DIALER, incarnation, &limits);
 *     session_start(&s, now);                              // dialer: wants a HELLO to be sent
 *     switch (session_on_message(&s, now, m)) { ... }      // every message goes through here first
 *     session_on_lifeline(&s, now, up);                    // the shell saw it connect, or EOF
 *     struct session_due t = session_on_timer(&s, now);   // send hello, send heartbeat, has it died
 *     m.envelope = session_envelope(&s);                  // for every message that goes out
 *
 * Rules: a message is for the session only if epoch, from and to are the session's (HELLO: from > 0;
 * WELCOME, REFUSE: to is mine). A HELLO's envelope names the last session that its sender knew, so
 * that a repeated one, sent before WELCOME came in, does not end the session that it began. A dialer
 * that hears nothing for dead_ns, or whose lifeline ends, goes DOWN and says HELLO again after
 * retry_ns (after REFUSE: only after session_start); an acceptor's session that goes DOWN is finished
 * and the core forgets the peer. HEARTBEATs are due every heartbeat_ns whatever else is said, for they
 * carry load and live set. A timer that comes late does not count as the other side's silence. A process
 * that notices that its own clock jumped by more than dead_ns calls session_reset with a fresh incarnation
 * before it sends anything: what it had is of an earlier life.
 * Owner: the core that embeds it. Time is an argument; nothing is allocated. */
#ifndef TANDEM_PROTO_SESSION_H
#define TANDEM_PROTO_SESSION_H

#include "proto/msg.h"

enum session_side { SESSION_DIALER, SESSION_ACCEPTOR };
enum session_state { SESSION_IDLE, SESSION_GREETING, SESSION_UP, SESSION_DOWN };

struct session_limits {
    uint64_t heartbeat_ns; /* 200 ms */
    uint64_t dead_ns;      /* 3 s without any message */
    uint64_t retry_ns;     /* dialer: 250 ms between hellos, the first ones sooner */
    /* 2 s from WELCOME until the lifeline must stand; 0: there is none (simulator, where the
     * network reports loss itself) */
    uint64_t lifeline_ns;
};
#define SESSION_LIMITS_DEFAULT                                                                     \
    ((struct session_limits){200000000ull, 3000000000ull, 250000000ull, 2000000000ull})

struct session {
    enum session_side side;
    enum session_state state;
    struct session_limits limits;
    uint64_t self, other; /* incarnations */
    uint64_t epoch;
    uint64_t heard_ns;
    uint64_t since_ns; /* in this state */
    uint64_t hello_ns, beat_ns,
        asked_ns; /* next HELLO, next HEARTBEAT, time asked to be woken at */
    bool lifeline_up;
    const char *down_reason; /* static string */
};

enum session_verdict {
    SESSION_DROP,        /* not of this session (counted by the caller) or of an earlier life */
    SESSION_DELIVER,     /* for the core */
    SESSION_GREETED,     /* acceptor: a HELLO to look at: answer with session_accept, or REFUSE */
    SESSION_BECAME_UP,   /* dialer: a WELCOME; connect the lifeline it names */
    SESSION_BECAME_DOWN, /* REFUSE or BYE from the other side, or a HELLO of a new life of it
                          * (acceptor: then clean up and treat the message as GREETED) */
};

struct session_due {
    bool hello;     /* send HELLO now */
    bool heartbeat; /* send HEARTBEAT now */
    bool died;      /* state became DOWN: clean up */
    /* call session_on_timer again at this time; TIME_NEVER: nothing to wait for */
    uint64_t wake_ns;
};

void session_init(struct session *s, enum session_side side, uint64_t incarnation,
                  const struct session_limits *limits);
void session_start(struct session *s, uint64_t now_ns);
/* Dialer: a new life, IDLE again. */
void session_reset(struct session *s, uint64_t incarnation);
/* Acceptor: says yes to the HELLO just greeted; `epoch` is higher than any that this process gave
 * before, to whomever. */
void session_accept(struct session *s, const struct msg *hello, uint64_t epoch, uint64_t now_ns);
enum session_verdict session_on_message(struct session *s, uint64_t now_ns, const struct msg *m);
/* True if the session went DOWN by it. */
bool session_on_lifeline(struct session *s, uint64_t now_ns, bool up);
struct session_due session_on_timer(struct session *s, uint64_t now_ns);
/* The envelope of an outgoing message; remaining_ms is the caller's. */
struct envelope session_envelope(const struct session *s);

#endif
