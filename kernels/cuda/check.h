/* check: CUDA's answers as tandem's errors.
 *
 *     if ((e = cuda_check(cudaStreamCreate(&stream), "a stream")) != OK) return e;
 *     if ((e = cuda_device_open(index, &facts)) != OK) return e;   // said: what is missing
 *
 * Rules: every call of the runtime goes through cuda_check, or its result is looked at. The text names
 * what was wanted, CUDA's name of the error and its sentence. Any thread. */
#ifndef TANDEM_KERNELS_CUDA_CHECK_H
#define TANDEM_KERNELS_CUDA_CHECK_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "common/err.h"

/* ERR_MEMORY if there was too little of it, else ERR_DEVICE. `what` completes "cuda: …". */
enum err cuda_check(cudaError_t c, const char *what);

struct cuda_device_facts {
    char name[256];
    uint32_t index, multiprocessors, major, minor; /* compute capability */
};
/* Makes the device this thread's. ERR_UNSUPPORTED: there is no driver, no device, none of this index,
 * or it is older than compute capability 8.0. */
enum err cuda_device_open(uint32_t index, struct cuda_device_facts *facts);

/* Makes a device this thread's; a thread begins with device 0. Costs little where it is so already. */
enum err cuda_device_use(uint32_t index);

/* Zeroed device memory of this thread's device. ERR_MEMORY says what `what` needs, what is free and what the
 * device has. */
enum err cuda_take(void **memory, uint64_t bytes, const char *what);

#endif
