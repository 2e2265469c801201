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
 * Rules: every limit of ZeroMQ is set (proto/wire.h). Sending never blocks: ERR_FULL when more than
 * 64 MiB wait for one peer, ERR_PEER when it is gone or not connected yet (a HELLO waits for that). Bytes
 * that do not decode are counted, logged once a second at most, told if their sender is known, and do
 * nothing else. A listener's peer begins with its
 * first decodable message, under a number that no other peer of the loop's listeners has had; at most
 * 65536 at a time, so a core forgets whom it has no session with. A dialled channel's peer has the
 * number that channel_dial gives it. The messages of a callback live until it returns; it may send,
 * forget and close. Closing takes up to WIRE_LINGER_MS if the last messages have not left.
 * Owner: the loop thread. */
#ifndef TANDEM_PROTO_CHANNEL_H
#define TANDEM_PROTO_CHANNEL_H

#include "proto/lifeline.h"
#include "proto/loop.h"
#include "proto/msg.h"
#include "proto/peer.h"

struct channel;

struct channel_events {
    void (*message)(void *ctx, uint64_t now_ns, struct peer peer, const struct msg *m);
    /* A known peer's message that does not decode, with what msg_decode left; NULL: counted only. */
    void (*malformed)(void *ctx, uint64_t now_ns, struct peer peer, const struct msg *m,
                      enum err error, const char *reason);
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
bool channel_has(const struct channel *c, struct peer peer); /* is it one of its peers? */
enum err channel_send(struct channel *c, struct peer peer, const struct msg *m);
void channel_forget(struct channel *c, struct peer peer);
const char *channel_address(const struct channel *c); /* the bound one: port 0 is resolved */
void channel_stats(const struct channel *c, struct channel_stats *stats);

#endif
