/* transport_memory: transports within one process over ordinary memory, for the contract of device links
 * and for what a device would do wrong.
 *
 *     kv_link_memory_posted    operations are posted by both sides and end when both have begun the same
 *                              number; the dialler offers an id, no fd: asked each millisecond
 *     kv_link_memory_placed    the dialler writes into the acceptor's slots; the acceptor offers an id
 *
 * Both over kv_link_memory; kv_link_posted_tcp and kv_link_placed_shm are the same over the control links
 * that NCCL and CUDA IPC have. What must never happen is CHECKed here: two operations posted on one device
 * in one direction, operations of different slots or sizes that meet, use after close.
 *
 * Rules: one thread. The knobs hold for all transports, and are reset by transport_memory_reset. */
#ifndef TANDEM_TESTS_FAKE_TRANSPORT_MEMORY_H
#define TANDEM_TESTS_FAKE_TRANSPORT_MEMORY_H

#include "xfer/device/link.h"

struct transport_memory_knobs {
    uint32_t opens_after;  /* calls of opened that say ERR_AGAIN before the one that says OK */
    uint32_t joins_after;  /* calls of joined that say ERR_AGAIN before the one that may say OK */
    uint32_t fail_opens;   /* so many further opens fail */
    uint32_t fail_openeds; /* so many further ones find in `opened` that they have failed */
    uint32_t fail_joins;   /* so many further joins end in ERR_DEVICE */
    uint64_t hang_from;    /* operations of this number and above never end; 0: none hangs */
    uint64_t break_at;     /* `ended` of this operation says ERR_DEVICE; 0: none */
    uint64_t fail_begin;   /* `begin` of this operation fails; 0: none */
};
extern struct transport_memory_knobs transport_memory_knobs;
void transport_memory_reset(void);

struct transport_memory_counts {
    uint32_t open;            /* now */
    uint32_t drained, broken; /* closed so */
};
extern struct transport_memory_counts transport_memory_counts;

extern const struct transport_ops transport_memory_posted, transport_memory_placed;
extern const struct kv_link_ops kv_link_memory_posted, kv_link_memory_placed;
extern const struct kv_link_ops kv_link_posted_tcp, kv_link_placed_shm;
/* Of those over kv_link_memory; NULL: the default. */
void transport_memory_set_times(const struct dslink_times *times);

#endif
