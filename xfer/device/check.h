/* check: what CUDA and NCCL answer, as tandem's errors, for the transports.
 *
 *     if ((e = device_check(cudaSetDevice(i), "the device")) != OK) return e;
 *
 * Rules: every call of theirs goes through a check, or its result is looked at. The text names what was
 * wanted, the library's name of the error and its sentence. Any thread. */
#ifndef TANDEM_XFER_DEVICE_CHECK_H
#define TANDEM_XFER_DEVICE_CHECK_H

#include <cuda_runtime_api.h>

#include "common/err.h"

/* ERR_MEMORY if there was too little of it, else ERR_DEVICE. */
static inline enum err device_check(cudaError_t c, const char *what)
{
    if (c == cudaSuccess) return OK;
    cudaGetLastError(); /* nobody else is to be blamed for it */
    return err_set(c == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_DEVICE, "cuda: %s: %s: %s",
                   what, cudaGetErrorName(c), cudaGetErrorString(c));
}

#endif
