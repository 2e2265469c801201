/* kv_events: what enters and leaves this node's cache, published for others than tandem's routers.
 *
 *     struct kv_events *k;
 *     struct kv_events_options o = {"tcp://127.0.0.1:5557", NULL, "p0", "llama", KV_EVENT_ARRAY, NULL};
 *     if ((e = kv_events_open(&k, loop, &o)) != OK) return e;
 *     kv_events_add(k, &block);                     // node_out.block; sent with the loop's next turn
 *     kv_events_close(k);                           // before loop_free
 *
 * Batches go out on a PUB socket as three frames, as vLLM sends them: topic, sequence number (8 bytes,
 * big-endian), payload (node/kv_event_pack.h). The topic is "kv@NAME@MODEL", which tells readers whose they are,
 * or the one that a reader insists on; whoever subscribes to "" gets it, too. The first batch says
 * AllBlocksCleared: a new life of this node. It has the time in microseconds as its number, so that the numbers
 * of a new life are beyond those of the old one: readers take lower ones for what they have already.
 *
 * With a replay address a ROUTER socket answers a request (8 bytes: the first number wanted) with the batches
 * from there on that are still kept and with an end. As vLLM did when it wrote arrays: (number, payload) and
 * (-1, ""); as maps with the topic in front, as it does now: (topic, number, payload) and ("", -1, "").
 *
 * Rules: a subscriber that does not keep up loses batches and sees it in the numbers; nobody slows the node
 * down. Kept for replay are the last KV_EVENTS_KEPT batches, of at most KV_EVENTS_KEPT_BYTES. One replay
 * goes on at a time. Nothing is encrypted or authenticated, and token ids are in there.
 * Owner: the loop thread. */
#ifndef TANDEM_NODE_KV_EVENTS_H
#define TANDEM_NODE_KV_EVENTS_H

#include "node/core.h"
#include "node/kv_event_pack.h"
#include "proto/loop.h"

enum { KV_EVENTS_KEPT = 10000, KV_EVENTS_KEPT_BYTES = 64 << 20 };

struct kv_events_options {
    const char *address; /* "tcp://HOST:PORT", port 0: any */
    const char *replay;  /* likewise; NULL: none */
    const char *name, *model;
    enum kv_event_form form;
    const char *topic; /* NULL: "kv@NAME@MODEL" */
};

struct kv_events;

/* ERR_INVALID: no address. ERR_IO: the system's reason. */
enum err kv_events_open(struct kv_events **k, struct loop *loop, const struct kv_events_options *o);
void kv_events_close(struct kv_events *k); /* NULL is allowed */
/* With ports resolved; "": there is none. */
const char *kv_events_address(const struct kv_events *k);
const char *kv_events_replay(const struct kv_events *k);
void kv_events_add(struct kv_events *k, const struct node_block *block);

#endif
