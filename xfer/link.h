/* link: moves frames of bytes between two processes, in order and whole; knows nothing of tickets.
 *
 *     const struct kv_link_ops *ops = &kv_link_tcp;
 *     struct kv_link_options o = {.frame_bytes_max = 300000};
 *     struct kv_listener *l;                                 // D
 *     if ((e = ops->listen(&l, "127.0.0.1:0", &o)) != OK) return e;
 *     publish(ops->address(l));                              // "tcp:127.0.0.1:41234"
 *
 *     struct kv_link *link;                                  // P
 *     if ((e = ops->dial(&link, "tcp:127.0.0.1:41234", &o)) != OK) return e;
 *     // whenever ops->fd(link) is readable:
 *     if ((e = ops->poll(link)) == ERR_AGAIN) ...;           // still connecting
 *     e = ops->send(link, pieces, pieces_count);       // OK: taken, ERR_AGAIN: when readable again
 *     while (ops->receive(link, &bytes, &size) == OK) { use(bytes, size); ops->release(link); }
 *     ops->close(link);
 *
 * Rules: nothing blocks. One thread (the link thread) makes all calls of one link and its listener.
 * Each entry that returns anything but OK and ERR_AGAIN has found the link dead, says why, and goes
 * on saying so; only close is left to be called then. Bytes of a peer are never trusted: whatever
 * it writes, a link answers with ERR_FORMAT or ERR_PEER. What shows that the peer has gone: `poll`,
 * and every call that needs it.
 *
 * Links of devices (NCCL, CUDA IPC) carry a frame's payload from device memory to device memory:
 *
 *     if (ops->slot) {                                       // P
 *         e = ops->slot(link, &slot);                        // OK, or ERR_AGAIN: none is free
 *         gather(slot, bytes);                               // complete on return
 *         e = ops->send_slot(link, head, head_bytes, bytes); // the slot is the link's again
 *         e = ops->receive(link, &head, &size);              // D, as ever
 *         slot = ops->payload(link, &bytes);                 // NULL: this frame came without one
 *         scatter(slot, bytes); ops->release(link);          // complete before release
 *
 * Slots are staging memory, never a pool's. Operations, their numbers and their order, credits and
 * the registration of memory are the link's own affair (xfer/device/). Frames without a payload, which
 * these links take through send, keep their place between those that have one. */
#ifndef TANDEM_XFER_LINK_H
#define TANDEM_XFER_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct kv_link_ops;

/* The first member of each implementation's own struct. */
struct kv_link {
    const struct kv_link_ops *ops;
};
struct kv_listener {
    const struct kv_link_ops *ops;
};

enum {
    KV_LINK_VERSION = 2,
    KV_LINK_PIECES_MAX = 260, /* of one frame */
    KV_LINK_ADDRESS_MAX = 128,
};

struct kv_piece {
    const void *bytes;
    size_t size;
};

struct kv_link_options {
    uint32_t frame_bytes_max; /* the same on both sides; longer frames of a peer end the link */
    uint64_t ring_bytes;      /* shm: of the ring from dialler to listener; 0: 8 MiB */
    /* Links of devices. */
    uint32_t device_index; /* the device whose memory it is, as --device names it */
    uint32_t slot_bytes;   /* of each slot; the smaller one of both sides' holds */
    uint32_t slots_count;  /* of each link */
    uint32_t links_max; /* that may be open at once: memory; more are turned away with ERR_FULL */
    /* NCCL: for its own sockets, "" lets it choose; host memory of the caller */
    const char *interface;
};

struct kv_link_facts {
    uint64_t window_bytes; /* payload that may be in flight: keeps it busy, fits its memory */
    /* the longest payload of a frame in a slot; 0: no slots, all is host memory */
    uint32_t slot_bytes;
};

struct kv_link_ops {
    const char *name; /* the address is "NAME:…" */
    uint32_t version; /* KV_LINK_VERSION */

    /* Opens an endpoint for dialling; `where` is the link's own syntax. May resolve names, so
     * before the link thread starts. The listener is the caller's until unlisten. */
    enum err (*listen)(struct kv_listener **listener, const char *where,
                       const struct kv_link_options *options);
    void (*unlisten)(struct kv_listener *listener); /* NULL is allowed; accepted links live on */
    const char *(*address)(const struct kv_listener *listener); /* lives as long as the listener */
    int (*listener_fd)(const struct kv_listener *listener);     /* readable: call accept */
    /* The next link; ERR_AGAIN: none. Others mean that one caller was turned away or that the
     * system is short of something: the listener stays good. ERR_FULL: links_max are open; whoever wants
     * the next one closes one of them, a link never gives itself up. The link belongs to the caller
     * until close. */
    enum err (*accept)(struct kv_listener *listener, struct kv_link **link);

    /* Begins to connect; ERR_UNSUPPORTED: this address is not for us (another host, another link),
     * ERR_PEER: nobody is there. Numeric addresses only. */
    enum err (*dial)(struct kv_link **link, const char *address,
                     const struct kv_link_options *options);
    /* One fd for the life of the link, readable when poll has something to do. */
    int (*fd)(const struct kv_link *link);
    struct kv_link_facts (*facts)(const struct kv_link *link); /* of a connected link */
    /* Goes on with connecting, writing and reading. OK: connected. ERR_AGAIN: connecting. */
    enum err (*poll)(struct kv_link *link);
    /* Sends the pieces as one frame. OK: all is copied or gone, the pieces are the caller's again.
     * ERR_AGAIN: nothing was taken; the fd becomes readable when it may be tried again. */
    enum err (*send)(struct kv_link *link, const struct kv_piece *pieces, uint32_t pieces_count);
    /* The next whole frame, in the link's memory until release; a peer may still be able to write
     * to it, so read each byte once. ERR_AGAIN: none; the fd becomes readable when there is more.
     * Without that answer it need not: a caller who stops earlier has to come back by itself. */
    enum err (*receive)(struct kv_link *link, const void **bytes, size_t *size);
    void (*release)(struct kv_link *link);
    /* NULL is allowed. What was sent before may still arrive. */
    void (*close)(struct kv_link *link);

    /* Links of devices; all three NULL for others. Where the payload of the next frame is to be put:
     * device memory of facts.slot_bytes, the caller's until send_slot, the same again when asked again
     * before that. ERR_AGAIN: none is free; the fd becomes readable when one is. */
    enum err (*slot)(struct kv_link *link, void **slot);
    /* Sends a frame whose payload is the first `payload_bytes` (not 0) of the slot. Never ERR_AGAIN
     * after slot said OK. */
    enum err (*send_slot)(struct kv_link *link, const void *head, size_t head_bytes,
                          size_t payload_bytes);
    /* Of the frame that receive has handed out, in device memory until release; NULL: it has none. */
    const void *(*payload)(const struct kv_link *link, size_t *payload_bytes);
};

extern const struct kv_link_ops kv_link_shm, kv_link_tcp;

static inline size_t kv_pieces_bytes(const struct kv_piece *pieces, uint32_t pieces_count)
{
    size_t sum = 0;
    for (uint32_t i = 0; i < pieces_count; i++)
        sum += pieces[i].size;
    return sum;
}

#endif
