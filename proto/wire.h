/* wire: one ZeroMQ socket with every limit set: bytes in and out, nothing waits. channel puts it on a
 * loop; libtandem on an epoll descriptor of its own.
 *
 *     struct wire *w;
 *     if ((e = wire_open(&w, WIRE_DIAL, "tcp://127.0.0.1:5700")) != OK) return e;
 *     // when wire_fd(w) is readable, and after every send if wire_readable(w):
 *     while ((e = wire_receive(w, &from, &bytes, &size)) != ERR_AGAIN) ...
 *     struct wire_line *line = wire_line_new();         // what waits for one peer
 *     e = wire_send(w, NULL, line, bytes, size);
 *     wire_line_free(line); wire_close(w, WIRE_LINGER_MS);
 *
 * Rules: the descriptor is edge-triggered by ZeroMQ: it becomes readable once, and reading, but sending
 * too, may take that sign away. So receive until ERR_AGAIN, and look at wire_readable after sends.
 * A listener answers to names (ROUTER socket), a dialled wire has one peer (DEALER); it connects and
 * reconnects by itself. Owner: one thread. */
#ifndef TANDEM_PROTO_WIRE_H
#define TANDEM_PROTO_WIRE_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

enum {
    WIRE_QUEUE_BYTES_MAX = 64 << 20, /* waiting for one peer */
    WIRE_LINGER_MS = 200,            /* usual for wire_close */
    WIRE_HANDSHAKE_MS = 2000,
    WIRE_HEARTBEAT_MS = 1000, /* ZeroMQ's own, to find dead connections and make them anew */
    WIRE_DEAD_MS = 5000,
    WIRE_RECEIVE_QUEUE = 1024, /* messages per peer that wait to be received */
};

enum wire_side { WIRE_LISTEN, WIRE_DIAL };
struct wire;
struct wire_line;

struct wire_name { /* how a listener's socket calls a connection */
    unsigned char size, bytes[255];
};

/* ERR_INVALID: not tcp://HOST:PORT. ERR_IO with address and cause, e.g. when the port is occupied. */
enum err wire_open(struct wire **w, enum wire_side side, const char *address);
/* Waits up to linger_ms for last messages to leave. NULL is allowed. */
void wire_close(struct wire *w, int linger_ms);
enum err wire_check_address(const char *address); /* ERR_INVALID as above */
int wire_fd(const struct wire *w);
/* There is something to receive, or first words can leave, which wire_receive does, too. */
bool wire_readable(struct wire *w);
const char *wire_address(const struct wire *w); /* a listener's is the bound one */

/* Copies the bytes. ERR_FULL: WIRE_QUEUE_BYTES_MAX wait on the line. ERR_PEER: no such connection. */
enum err wire_send(struct wire *w, const struct wire_name *to, struct wire_line *line,
                   const void *bytes, size_t size);
/* A dialled wire's first words: sent, or held until there is a connection; what was held before is
 * forgotten. wire_receive sends it then. */
enum err wire_send_first(struct wire *w, struct wire_line *line, const void *bytes, size_t size);
/* The bytes live until the next call. ERR_AGAIN: none now. ERR_FORMAT: a message of a form that no wire
 * sends; go on receiving. */
enum err wire_receive(struct wire *w, struct wire_name *from, const void **bytes, size_t *size);

/* Counts what waits; lives on until ZeroMQ has let go of the last message. */
struct wire_line *wire_line_new(void);
void wire_line_free(struct wire_line *line);

#endif
