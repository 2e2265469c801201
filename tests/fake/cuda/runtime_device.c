/* The stand-in's devices: small, so that grids that fill them are small; the limits of a block are
 * those of compute capability 9.0. */
#include "tests/fake/cuda/runtime.h"

#include <stdio.h>
#include <string.h>

enum {
    MULTIPROCESSORS = 4,
    BLOCK_THREADS = 1024,
    BLOCK_SHARED = 48 << 10,
    BLOCK_SHARED_OPTIN = 227 << 10,
    BLOCK_SHARED_RESERVED = 1 << 10,
    PROCESSOR_THREADS = 2048,
    PROCESSOR_BLOCKS = 32,
    L2_BYTES = 1 << 20,
    PRIORITY_GREATEST = -5,
    CHUNK_BYTES =
        2 << 20, /* of memory that cudaMalloc takes at once: what is free falls in such steps */
};

static cudaError_t check_device(int device)
{
    return device >= 0 && device < fake_devices_count() ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    cudaError_t e = fake_enter("cudaGetDeviceCount", 0);
    if (e == cudaSuccess) *count = fake_devices_count();
    return fake_leave(e);
}

cudaError_t cudaSetDevice(int device)
{
    cudaError_t e = fake_enter("cudaSetDevice", 0);
    if (e == cudaSuccess) e = check_device(device);
    if (e == cudaSuccess) fake_thread()->device = device;
    return fake_leave(e);
}

cudaError_t cudaGetDevice(int *device)
{
    cudaError_t e = fake_enter("cudaGetDevice", 0);
    if (e == cudaSuccess) *device = fake_thread()->device;
    return fake_leave(e);
}

static void fill_properties(struct cudaDeviceProp *p, int device)
{
    *p = (struct cudaDeviceProp){
        .totalGlobalMem = fake_device_bytes(),
        .sharedMemPerBlock = BLOCK_SHARED,
        .warpSize = 32,
        .maxThreadsPerBlock = BLOCK_THREADS,
        .major = 9,
        .minor = 0,
        .multiProcessorCount = MULTIPROCESSORS,
        .pciBusID = device + 1,
        .unifiedAddressing = 1,
        .memoryBusWidth = 512,
        .l2CacheSize = L2_BYTES,
        .maxThreadsPerMultiProcessor = PROCESSOR_THREADS,
        .sharedMemPerMultiprocessor = fake_processor_shared_bytes(),
        .sharedMemPerBlockOptin = BLOCK_SHARED_OPTIN,
        .maxBlocksPerMultiProcessor = PROCESSOR_BLOCKS,
    };
    snprintf(p->name, sizeof p->name, "Emulated device");
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    cudaError_t e = fake_enter("cudaGetDeviceProperties", 0);
    if (e == cudaSuccess) e = check_device(device);
    if (e == cudaSuccess) fill_properties(properties, device);
    return fake_leave(e);
}

static cudaError_t attribute_of(int *value, enum cudaDeviceAttr attribute)
{
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = BLOCK_THREADS; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = BLOCK_SHARED; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = MULTIPROCESSORS; break;
    case cudaDevAttrIntegrated: *value = 0; break;
    case cudaDevAttrL2CacheSize: *value = L2_BYTES; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = PROCESSOR_THREADS; break;
    case cudaDevAttrUnifiedAddressing: *value = 1; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)fake_processor_shared_bytes();
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = BLOCK_SHARED_OPTIN; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = PROCESSOR_BLOCKS; break;
    default:
        fake_say("device attribute %d is not known here", attribute);
        return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    cudaError_t e = fake_enter("cudaDeviceGetAttribute", 0);
    if (e == cudaSuccess) e = check_device(device);
    if (e == cudaSuccess) e = attribute_of(value, attribute);
    return fake_leave(e);
}

/* The device's part of the knob, else one that is not anywhere. */
static void print_address(char *id, int size, int device)
{
    const char *part = fake_devices_pci();
    for (int i = 0; part && i < device; i++) {
        part = strchr(part, '+');
        if (part) part++;
    }
    if (part)
        snprintf(id, (size_t)size, "%.*s", (int)strcspn(part, "+"), part);
    else
        snprintf(id, (size_t)size, "0000:%02X:00.0", (unsigned)device + 1);
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device)
{
    cudaError_t e = fake_enter("cudaDeviceGetPCIBusId", 0);
    if (e == cudaSuccess) e = check_device(device);
    if (e == cudaSuccess && size < 13) e = cudaErrorInvalidValue;
    if (e == cudaSuccess) print_address(id, size, device);
    return fake_leave(e);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    cudaError_t e = fake_enter("cudaDeviceGetStreamPriorityRange", 0);
    if (e == cudaSuccess) {
        *least = 0;
        *greatest = PRIORITY_GREATEST;
    }
    return fake_leave(e);
}

void fake_device_wait(int device)
{
    for (struct fake_handle *h = fake.handles; h; h = h->next) {
        cudaStream_t s = (cudaStream_t)h;
        if (h->kind == FAKE_STREAM && s->device == device) fake_stream_wait(s);
    }
}

cudaError_t cudaDeviceSynchronize(void)
{
    cudaError_t e = fake_enter("cudaDeviceSynchronize", FAKE_WHOLE_DEVICE);
    if (e == cudaSuccess) fake_device_wait(fake_thread()->device);
    return fake_leave(e == cudaSuccess ? fake.sick : e);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    cudaError_t e = fake_enter("cudaMemGetInfo", 0);
    if (e == cudaSuccess) {
        uint64_t used = fake.used_bytes[fake_thread()->device];
        used = (used + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
        *total_bytes = fake_device_bytes();
        *free_bytes = *total_bytes > used ? *total_bytes - used : 0;
    }
    return fake_leave(e);
}

cudaError_t cudaDriverGetVersion(int *version)
{
    cudaError_t e = fake_enter("cudaDriverGetVersion", 0);
    if (e == cudaSuccess) *version = CUDART_VERSION;
    return fake_leave(e);
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    cudaError_t e = fake_enter("cudaRuntimeGetVersion", 0);
    if (e == cudaSuccess) *version = CUDART_VERSION;
    return fake_leave(e);
}

/* Registers are not known here: 64 a thread, as if. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel,
                                                          int threads, size_t shared_bytes)
{
    cudaError_t e = fake_enter("cudaOccupancyMaxActiveBlocksPerMultiprocessor", 0);
    if (e == cudaSuccess && !kernel) e = cudaErrorInvalidDeviceFunction;
    if (e == cudaSuccess && (threads < 1 || threads > BLOCK_THREADS)) e = cudaErrorInvalidValue;
    if (e == cudaSuccess) {
        int by_threads = PROCESSOR_THREADS / 2 / threads;
        int by_shared =
            (int)(fake_processor_shared_bytes() / (shared_bytes + BLOCK_SHARED_RESERVED));
        *blocks = by_threads < by_shared ? by_threads : by_shared;
        if (*blocks > PROCESSOR_BLOCKS) *blocks = PROCESSOR_BLOCKS;
    }
    return fake_leave(e);
}
