/* What cuda_runtime_test opens as a plugin: a copy of the stand-in runtime of its own, used and left
 * with a stream whose thread runs. */
#include "tests/fake/cuda/fake.h"

int cuda_runtime_probe(void);

static void add_one(void *arg)
{
    ++*(int *)arg;
}

int cuda_runtime_probe(void)
{
    cudaStream_t stream;
    int *device = NULL, host = 6;
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return -1;
    if (cudaMalloc((void **)&device, sizeof *device) != cudaSuccess) return -1;
    cudaMemcpyAsync(device, &host, sizeof host, cudaMemcpyHostToDevice, stream);
    fake_enqueue(stream, "add_one", add_one, NULL, device);
    cudaMemcpyAsync(&host, device, sizeof host, cudaMemcpyDeviceToHost, stream);
    return cudaStreamSynchronize(stream) == cudaSuccess ? host : -1;
}
