/* lifeline: beside each session a plain TCP connection on which the dialer writes WELCOME's key once and
 * then nobody says anything; its EOF means that the other process is dead, at once. (ZeroMQ
 * reconnects by itself and hides that.)
 *
 *     // router
 *     lifeline_listen(&s, loop, "127.0.0.1:0", on_peer, ctx);     // WELCOME names lifeline_address(s)
 *     lifeline_expect(s, key, peer);                              // and this key
 *     lifeline_forget(s, peer);                                   // its session is over
 *     // node, client
 *     struct lifeline_at at = {welcome.lifeline, "tcp://r0:5701"};
 *     lifeline_dial(&l, loop, &at, welcome.lifeline_key, on_router, ctx);
 *     lifeline_free(l);
 *
 * Rules: a connection that does not write an expected key within 2 s, or writes more, is closed; a key
 * serves once. Callbacks may free and forget. Owner: the loop thread. */
#ifndef TANDEM_PROTO_LIFELINE_H
#define TANDEM_PROTO_LIFELINE_H

#include "common/id.h"
#include "proto/loop.h"
#include "proto/peer.h"

enum {
    LIFELINE_KEY_BYTES = 16, /* hi, lo, big-endian */
    LIFELINE_KEY_MS = 2000,
    LIFELINE_STRANGERS_MAX = 256, /* connections that have not shown a key yet */
};

struct lifeline_server; /* the listener and all lifelines that came in */
struct lifeline;        /* one outgoing lifeline */
typedef void lifeline_server_fn(void *ctx, uint64_t now_ns, struct peer peer, bool up);
typedef void lifeline_fn(void *ctx, uint64_t now_ns, bool up);

/* "HOST:PORT", port 0: any. */
enum err lifeline_listen(struct lifeline_server **s, struct loop *loop, const char *address,
                         lifeline_server_fn *fn, void *ctx);
const char *lifeline_address(const struct lifeline_server *s); /* the bound one */
/* What was expected of this peer before is forgotten. */
enum err lifeline_expect(struct lifeline_server *s, struct id128 key, struct peer peer);
void lifeline_forget(struct lifeline_server *s, struct peer peer); /* closes without a callback */
void lifeline_close(struct lifeline_server *s);

/* Where a router's lifelines end, as WELCOME says it, and where that router was dialled: its host is meant if
 * it listens on all that it has (0.0.0.0). */
struct lifeline_at {
    const char *address, *dialled;
};
/* `up` is called once when connected and the key is written, then once with false when it ended; or
 * only once, with false, when it could not be connected. */
enum err lifeline_dial(struct lifeline **l, struct loop *loop, const struct lifeline_at *at,
                       struct id128 key, lifeline_fn *fn, void *ctx);
void lifeline_free(struct lifeline *l); /* no callback; NULL is allowed */

void lifeline_key_bytes(struct id128 key, unsigned char bytes[LIFELINE_KEY_BYTES]);

#endif
