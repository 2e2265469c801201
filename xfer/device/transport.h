/* transport: what moves a slot's bytes from a device of one process to a device of another; the part of a
 * device link that differs between NCCL and CUDA IPC. Knows one pair's slots and operations, nothing of
 * frames, tickets or the control channel.
 *
 *     struct transport *t;                                  // both sides, on the link thread
 *     if ((e = ops->open(&t, &options)) != OK) return e;
 *     while ((e = ops->opened(t, bytes, &size)) == ERR_AGAIN) ...;    // as joined; for the other side: see `offers`
 *     e = ops->join(t, theirs, size);                       // begins to connect
 *     while ((e = ops->joined(t)) == ERR_AGAIN) ...;        // again each millisecond, or at its fd
 *     e = ops->begin(t, slot, bytes);                       // operation: sends at the dialler, else receives
 *     while ((e = ops->ended(t, &slot)) == ERR_AGAIN) ...;  // operations end in the order of begin
 *     ops->close(t, TRANSPORT_BROKEN);                      // at any time, returns at once
 *
 * Rules: nothing blocks; all calls of all links of one device come from one thread. What may block (memory of the
 * device, taking down a communicator with a dead peer) is the reaper's (reaper.h), which owns what close
 * handed to it. The slots' memory is allocated between open and opened, and lives until the other side cannot
 * write to it any more, close or not. A call that returns anything but OK and ERR_AGAIN has found the transport broken
 * and says why (err_set); then only close is left. */
#ifndef TANDEM_XFER_DEVICE_TRANSPORT_H
#define TANDEM_XFER_DEVICE_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum {
    TRANSPORT_OFFER_MAX = 512,
    TRANSPORT_SLOTS_MAX = 8,
};

/* The first member of each implementation's own struct. */
struct transport {
    const struct transport_ops *ops;
};

struct transport_options {
    uint32_t device_index;
    uint32_t slots_count, slot_bytes; /* agreed: the same on both sides */
    bool dialler;
    const char *interface; /* NCCL: for its sockets; "": NCCL's choice */
    /* Transports that may hold memory at once, those that are still being taken down after close
     * among them: more are ERR_FULL. 0: no limit. */
    uint32_t links_max;
    const char *peer; /* for log lines; NULL: unknown. The caller's again when open returns */
};

enum transport_end {
    TRANSPORT_DRAINED, /* both sides know that nothing is under way */
    TRANSPORT_BROKEN,  /* the other side may be dead, or inside an operation */
};

struct transport_ops {
    const char *name; /* "nccl", "ipc": the link's too */
    /* Operations are posted by both sides, and of one device at most one each way at a time, over all
     * its links (see link.c, turns). Else begin is the dialler's alone: bytes are in place when it returns. */
    bool posted;
    /* Bytes that the dialler, the acceptor has to offer: what the other side's join takes. */
    bool dialler_offers, acceptor_offers;

    enum err (*open)(struct transport **t, const struct transport_options *options);
    /* Until it has said OK only fd and close are called; what it then gives is for the other side's join. */
    enum err (*opened)(struct transport *t, uint8_t bytes[TRANSPORT_OFFER_MAX], size_t *size);
    enum err (*join)(struct transport *t, const uint8_t *bytes, size_t size);
    enum err (*joined)(struct transport *t);
    /* Readable when opened, joined or ended have something new; -1: they are to be called each millisecond
     * while they are waited for. The same for the transport's life; it may stay open for a while after close,
     * so it is to be taken out of any set of fds before that. */
    int (*fd)(const struct transport *t);
    /* Device memory of slot i once joined said OK: where the dialler's payloads are gathered, or where
     * the acceptor finds what came. */
    void *(*slot)(const struct transport *t, uint32_t i);
    enum err (*begin)(struct transport *t, uint32_t slot, size_t bytes);
    /* The operation begun first has ended, its bytes are in place: its slot. ERR_AGAIN: not yet, or there
     * is none. */
    enum err (*ended)(struct transport *t, uint32_t *slot);
    void (*close)(struct transport *t, enum transport_end end); /* NULL is allowed */
};

#endif
