/* nccl: the transport over NCCL: a pair of ranks, the dialler 0 and the acceptor 1, with a non-blocking
 * communicator of its own.
 *
 * The offers, all numbers little endian:
 *     both        | 0 |   4 | NCCL's version code |
 *                 | 4 |   4 | 1: would register its slots, 0: not. It is done if both would |
 *     dialler's   | 8 | 128 | ncclUniqueId |
 *
 * Refused with ERR_UNSUPPORTED: NCCL before 2.19, another version than the peer's, an environment in which
 * calls would block (NCCL_COMM_BLOCKING, also from NCCL's own files; CUDA_LAUNCH_BLOCKING), what NCCL calls
 * invalid usage (two ranks on one GPU of one host), and more than NCCL_IDS_PENDING_MAX tries without a
 * peer. NCCL_SOCKET_IFNAME is set to
 * options.interface unless that is "", whatever it was: the environment does not decide what network is to
 * be trusted. This is of the process. NCCL's traffic is neither encrypted nor authenticated: the owner of
 * the settings says so at start. Owner: the link thread. */
#ifndef TANDEM_XFER_DEVICE_NCCL_H
#define TANDEM_XFER_DEVICE_NCCL_H

#include "xfer/device/transport.h"

extern const struct transport_ops transport_nccl;

enum { NCCL_IDS_PENDING_MAX = 128 };

/* Transports that hold memory: those that are open, and those that are still being taken down. */
uint32_t nccl_held_count(void);

#endif
