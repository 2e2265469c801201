/* garbage: what a broken or hostile process may say to a port of a cluster.
 *
 *     for (enum garbage kind = 0; kind < GARBAGE_KINDS; kind++) garbage_throw(&port, kind, seed);
 *
 * Rules: nothing waits for an answer except where one is due; what is thrown depends on kind and seed
 * only. The ZeroMQ kinds do nothing on a unix socket. Owner: the test's only thread. */
#ifndef TANDEM_TESTS_E2E_GARBAGE_H
#define TANDEM_TESTS_E2E_GARBAGE_H

#include "tests/e2e/ports.h"

enum garbage {
    GARBAGE_NOTHING,     /* a connection, closed at once */
    GARBAGE_BYTES,       /* random */
    GARBAGE_ONES,        /* 0xff: every length as large as can be */
    GARBAGE_HTTP,        /* somebody's browser */
    GARBAGE_HTTP_LONG,   /* headers without an end */
    GARBAGE_GREETING,    /* ZeroMQ's greeting, then random bytes */
    GARBAGE_HUGE_FRAME,  /* ZeroMQ's greeting and handshake, then a frame of 2^62 bytes */
    GARBAGE_WIRE_BYTES,  /* ZeroMQ messages of random bytes, one and many parts */
    GARBAGE_WIRE_HUGE,   /* a ZeroMQ message above the limit */
    GARBAGE_WIRE_KINDS,  /* our messages of every kind without a session */
    GARBAGE_WIRE_HALVES, /* our messages cut off anywhere */
    GARBAGE_WIRE_FLIPS,  /* our messages with bits flipped */
    GARBAGE_KINDS
};
const char *garbage_name(enum garbage kind);
void garbage_throw(const struct port *port, enum garbage kind, uint64_t seed);
/* A client's session in which then every kind of message comes that a client never sends. */
void garbage_session(const char *address);

#endif
