/* channel: messages between processes over ZeroMQ: decoded and checked on the way in, encoded on the
 * way out; the bytes under the sessions.
 *
 *     struct channel *c;
 *     channel_listen(&c, loop, "tcp://127.0.0.1:5701", &events, ctx);   // ROUTER socket: many peers
 *     channel_dial(&c, loop, "tcp://127.0.0.1:5701", peer, &events, ctx);    // DEALER socket: one peer
 *     channel_send(c, peer, &m);
 *     channel_forget(c, peer);                                            // its id is never used again
 *     channel_close(c);
 *
 * Rules: every limit of ZeroMQ is set: maximum message size, high-water marks, linger, handshake
 * deadline, heartbeats, ROUTER_MANDATORY, IMMEDIATE. Sending never blocks: ERR_FULL when more than
 * 64 MiB wait for one peer, ERR_PEER when it is gone. Bytes that do not decode are counted, logged
 * once a second at most, and do nothing else. A peer begins with its first decodable message; at most
 * 65536 at a time; its number is unique in the process, over all channels (a dialled channel's peer
 * excepted, whose number the dialler gives: channel_dial's `peer`). The messages of a callback live until it returns.
 * Owner: the loop thread.
 *
 * lifeline: beside each session a plain TCP connection on which the dialer writes WELCOME's key once
 * and then nobody says anything; its EOF means that the other process is dead, at once. */
#ifndef TANDEM_PROTO_CHANNEL_H
#define TANDEM_PROTO_CHANNEL_H

#include "proto/loop.h"
#include "proto/msg.h"
#include "proto/peer.h"

struct channel;

struct channel_events {
    void (*message)(void *ctx, uint64_t now_ns, struct peer peer, const struct msg *m);
};
struct channel_stats {
    uint64_t sent, sent_bytes, received, received_bytes, malformed, refused_full;
};

/* ERR_IO with address and cause, e.g. when the port is occupied. */
enum err channel_listen(struct channel **c, struct loop *loop, const char *address,
                        const struct channel_events *events, void *ctx);
/* `peer` is what its messages are said to come from: any number, 1 … for a node's routers. */
enum err channel_dial(struct channel **c, struct loop *loop, const char *address, struct peer peer,
                      const struct channel_events *events, void *ctx);
void channel_close(struct channel *c);
enum err channel_send(struct channel *c, struct peer peer, const struct msg *m);
struct peer channel_peer(const struct channel *c); /* the one peer of a dialled channel */
void channel_forget(struct channel *c, struct peer peer);
const char *channel_address(const struct channel *c); /* the bound one: port 0 is resolved */
void channel_stats(const struct channel *c, struct channel_stats *stats);

struct lifeline_server; /* the router's listener and all lifelines that came in */
struct lifeline;        /* one outgoing lifeline */
typedef void lifeline_server_fn(void *ctx, uint64_t now_ns, struct peer peer, bool up);
typedef void lifeline_fn(void *ctx, uint64_t now_ns, bool up);

/* "HOST:PORT", port 0: any. A connection that does not write a known key within 2 s is closed. */
enum err lifeline_listen(struct lifeline_server **s, struct loop *loop, const char *address,
                         lifeline_server_fn *fn, void *ctx);
const char *lifeline_address(const struct lifeline_server *s);
enum err lifeline_expect(struct lifeline_server *s, struct id128 key, struct peer peer);
void lifeline_forget(struct lifeline_server *s,
                     struct peer peer); /* closes it without a callback */
void lifeline_close(struct lifeline_server *s);

/* `up` is called once when connected and the key is written, then once with false when it ended; also
 * false when it could not be connected. */
enum err lifeline_dial(struct lifeline **l, struct loop *loop, const char *address,
                       struct id128 key, lifeline_fn *fn, void *ctx);
void lifeline_free(struct lifeline *l); /* no callback */

#endif
