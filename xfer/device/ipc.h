/* The transport between devices of one host (ipc.c). Its control channel is a shm link, which stands
 * only between processes of one kernel and one user. */
#ifndef TANDEM_XFER_DEVICE_IPC_H
#define TANDEM_XFER_DEVICE_IPC_H

#include "xfer/device/transport.h"

extern const struct transport_ops transport_ipc;

#endif
