/* The transport between devices of one host (ipc.c). Its control channel is a shm link, which stands
 * only between processes of one kernel and one user. Owner: the link thread. */
#ifndef TANDEM_XFER_DEVICE_IPC_H
#define TANDEM_XFER_DEVICE_IPC_H

#include "xfer/device/transport.h"

extern const struct transport_ops transport_ipc;

/* Transports that are open, whose slots are still mapped by others, or that are being taken down. */
uint32_t ipc_held_count(void);

#endif
