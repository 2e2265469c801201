#include "kernels/cuda/check.h"

#include <stdio.h>

#include "common/plant.h"

#define MIB (1024.0 * 1024.0)

enum err cuda_check(cudaError_t c, const char *what)
{
    if (c == cudaSuccess) return OK;
    cudaGetLastError(); /* a launch must not be blamed for it */
    return err_set(c == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_DEVICE, "cuda: %s: %s: %s",
                   what, cudaGetErrorName(c), cudaGetErrorString(c));
}

/* Devices there are, with the reason if there are none. The count is left alone by a call that fails. */
static enum err count_devices(int *count)
{
    *count = 0;
    cudaError_t c = cudaGetDeviceCount(count);
    if (c == cudaSuccess && *count > 0) return OK;
    cudaGetLastError();
    if (c == cudaErrorInsufficientDriver)
        return err_set(ERR_UNSUPPORTED,
                       "cuda: the NVIDIA driver is missing, or older than this CUDA needs (%s)",
                       cudaGetErrorString(c));
    if (c == cudaErrorNoDevice || c == cudaSuccess)
        return err_set(ERR_UNSUPPORTED, "cuda: this machine shows no GPU to this process (is "
                                        "CUDA_VISIBLE_DEVICES set, is /dev/nvidia0 there?)");
    return err_set(ERR_UNSUPPORTED, "cuda: no GPU can be used: %s: %s", cudaGetErrorName(c),
                   cudaGetErrorString(c));
}

enum err cuda_device_open(uint32_t index, struct cuda_device_facts *facts)
{
    struct cudaDeviceProp p;
    int count;
    enum err e;
    if ((e = count_devices(&count)) != OK) return e;
    if (index >= (uint32_t)count)
        return err_set(ERR_UNSUPPORTED,
                       "cuda: there is no device %u: this process sees %d, from 0 on", index,
                       count);
    if ((e = cuda_check(cudaGetDeviceProperties(&p, (int)index), "the device's facts")) != OK)
        return e;
    if (p.major < 8)
        return err_set(ERR_UNSUPPORTED,
                       "cuda: device %u, %s, has compute capability %d.%d; 8.0 is needed", index,
                       p.name, p.major, p.minor);
    if ((e = cuda_device_use(index)) != OK) return e;
    *facts = (struct cuda_device_facts){.index = index,
                                        .multiprocessors = (uint32_t)p.multiProcessorCount,
                                        .major = (uint32_t)p.major,
                                        .minor = (uint32_t)p.minor};
    snprintf(facts->name, sizeof facts->name, "%s", p.name);
    return OK;
}

enum err cuda_device_use(uint32_t index)
{
    return cuda_check(cudaSetDevice((int)index), "the device");
}

/* On a stream of its own: the whole device must not be waited for while another thread records a step, and
 * would be waited for in vain where a link's kernel hangs. */
static enum err clear(void *memory, uint64_t bytes, const char *what)
{
    cudaStream_t stream;
    enum err e = cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), what);
    if (e != OK) return e;
    e = cuda_check(cudaMemsetAsync(memory, 0, bytes, stream), what);
    if (PLANTED("take_waits_for_device")) e = cuda_check(cudaDeviceSynchronize(), what);
    if (e == OK) e = cuda_check(cudaStreamSynchronize(stream), what);
    if (e != OK && cudaStreamSynchronize(stream) != cudaSuccess)
        cudaGetLastError(); /* it is freed */
    cudaStreamDestroy(stream);
    return e;
}

enum err cuda_take(void **memory, uint64_t bytes, const char *what)
{
    size_t free_bytes = 0, total = 0;
    enum err e;
    *memory = NULL;
    cudaError_t c = cudaMalloc(memory, bytes ? bytes : 1);
    if (c == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) cudaGetLastError();
        return err_set(ERR_MEMORY,
                       "cuda: %s needs %.1f MiB of device memory; %.1f of %.1f MiB are free", what,
                       (double)bytes / MIB, (double)free_bytes / MIB, (double)total / MIB);
    }
    if ((e = cuda_check(c, what)) != OK) return e;
    if ((e = clear(*memory, bytes ? bytes : 1, what)) == OK) return OK;
    cudaFree(*memory);
    *memory = NULL;
    return e;
}
