/* device/link: a link of devices (xfer/link.h) made of a control link, which carries messages and frames
 * without payload, and a transport, which moves what lies in slots; session.h says how they play together.
 *
 *     static struct device_link_kind kind = {&kv_link_nccl, &transport_nccl, &kv_link_tcp};
 *     DEVICE_LINK_THUNKS(nccl, &kind)
 *     const struct kv_link_ops kv_link_nccl = DEVICE_LINK_OPS("nccl", nccl);
 *
 * "nccl:HOST:PORT" is the control link's "tcp:HOST:PORT". A dialled or accepted link is connecting until
 * both sides have joined the transport and warmed it up, which takes seconds with NCCL; traffic goes over
 * other links meanwhile.
 *
 * Rules:
 *  - Slots go from the dialler to the listener; at the other end `slot` says ERR_AGAIN for ever. Heads of
 *    frames in slots have at most CONTROL_HEAD_MAX bytes, other frames one piece less than other links'.
 *  - Frames keep their order; so one without payload waits, as ERR_AGAIN from send, until the operations
 *    before it are announced, each in its turn.
 *  - A device has one turn to send and one to receive over all links of this thread (turns.h).
 *  - links_max (0: DEVICE_LINKS_MAX) counts the links of one device and transport that this thread has
 *    open, set up or not. dial says ERR_FULL beyond it; accept does so and tells the caller, whose link
 *    ends with ERR_FULL. A link does not know of tickets, so it never closes itself for another: who keeps
 *    them (xfer/core.h) makes room, at the end that is crowded, by the least recently used link without any,
 *    for the next try.
 *  - close returns at once, whatever is under way: the other side hears DRAIN; the transport is closed as
 *    drained only if all slots are known to be free, else as broken.
 *
 * Owner: the link thread; `kind` is written before it starts. */
#ifndef TANDEM_XFER_DEVICE_LINK_H
#define TANDEM_XFER_DEVICE_LINK_H

#include "xfer/device/session.h"
#include "xfer/link.h"

enum { DEVICE_LINKS_MAX = 32 };

struct device_link_kind {
    const struct kv_link_ops *ops; /* the table that is made of it */
    const struct transport_ops *transport;
    const struct kv_link_ops *control;
    /* NULL: dslink_times_default. Tests divide them by TANDEM_LINK_HASTE in the environment. */
    const struct dslink_times *times;
};

enum err device_link_listen(const struct device_link_kind *kind, struct kv_listener **listener,
                            const char *where, const struct kv_link_options *options);
enum err device_link_dial(const struct device_link_kind *kind, struct kv_link **link,
                          const char *address, const struct kv_link_options *options);
void device_link_unlisten(struct kv_listener *listener);
const char *device_link_address(const struct kv_listener *listener);
int device_link_listener_fd(const struct kv_listener *listener);
enum err device_link_accept(struct kv_listener *listener, struct kv_link **link);
int device_link_fd(const struct kv_link *link);
struct kv_link_facts device_link_facts(const struct kv_link *link);
enum err device_link_poll(struct kv_link *link);
enum err device_link_send(struct kv_link *link, const struct kv_piece *pieces,
                          uint32_t pieces_count);
enum err device_link_receive(struct kv_link *link, const void **bytes, size_t *size);
void device_link_release(struct kv_link *link);
void device_link_close(struct kv_link *link);
enum err device_link_slot(struct kv_link *link, void **slot);
enum err device_link_send_slot(struct kv_link *link, const void *head, size_t head_bytes,
                               size_t payload_bytes);
const void *device_link_payload(const struct kv_link *link, size_t *payload_bytes);

/* listen and dial get no link that could say what it is made of. */
#define DEVICE_LINK_THUNKS(symbol, kind)                                                           \
    static enum err symbol##_listen(struct kv_listener **listener, const char *where,              \
                                    const struct kv_link_options *options)                         \
    {                                                                                              \
        return device_link_listen(kind, listener, where, options);                                 \
    }                                                                                              \
    static enum err symbol##_dial(struct kv_link **link, const char *address,                      \
                                  const struct kv_link_options *options)                           \
    {                                                                                              \
        return device_link_dial(kind, link, address, options);                                     \
    }
#define DEVICE_LINK_OPS(link_name, symbol)                                                         \
    {                                                                                              \
        .name = link_name, .version = KV_LINK_VERSION, .listen = symbol##_listen,                  \
        .unlisten = device_link_unlisten, .address = device_link_address,                          \
        .listener_fd = device_link_listener_fd, .accept = device_link_accept,                      \
        .dial = symbol##_dial, .fd = device_link_fd, .facts = device_link_facts,                   \
        .poll = device_link_poll, .send = device_link_send, .receive = device_link_receive,        \
        .release = device_link_release, .close = device_link_close, .slot = device_link_slot,      \
        .send_slot = device_link_send_slot, .payload = device_link_payload,                        \
    }

#endif
