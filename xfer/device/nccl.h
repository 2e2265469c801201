/* nccl: the transport over NCCL: a pair of ranks, the dialler 0 and the acceptor 1, with a non-blocking
 * communicator of its own.
 *
 * The offer, from the dialler: | 0 | 4 | NCCL's version code, little endian |
 *                              | 4 | 128 | ncclUniqueId |
 *
 * Refused with ERR_UNSUPPORTED: NCCL before 2.19, another version than the peer's, and an environment
 * in which calls would block (NCCL_COMM_BLOCKING, CUDA_LAUNCH_BLOCKING). NCCL_SOCKET_IFNAME is set to
 * options.interface unless that is "", whatever it was: the environment does not decide what network is to
 * be trusted. This is of the process. NCCL's traffic is neither encrypted nor authenticated: the owner of
 * the settings says so at start. */
#ifndef TANDEM_XFER_DEVICE_NCCL_H
#define TANDEM_XFER_DEVICE_NCCL_H

#include "xfer/device/transport.h"

extern const struct transport_ops transport_nccl;

/* Transports that hold memory: those that are open, and those that are still being taken down. */
uint32_t nccl_held_count(void);

#endif
