/* one_gpu: the environment in which two processes on one GPU are a pair of NCCL's ranks: a host id for each,
 * and its socket transport over loopback. It shows that NCCL works, not how fast, and is for one GPU alone.
 *
 *     one_gpu_environment("p0");               // this process's, and of those that it starts from now on
 *     pid = fork(); ...
 *     one_gpu_environment(NULL);               // as before
 *
 * Owner: the program's main thread. */
#ifndef TANDEM_TESTS_GPU_ONE_GPU_H
#define TANDEM_TESTS_GPU_ONE_GPU_H

#include <stdlib.h>

static inline void one_gpu_environment(const char *process)
{
    static const char *const all[][2] = {
        {"NCCL_NET", "Socket"},           {"NCCL_SOCKET_IFNAME", "lo"},
        {"NCCL_IB_DISABLE", "1"},         {"NCCL_MNNVL_ENABLE", "0"},
        {"NCCL_NVLS_ENABLE", "0"},        {"NCCL_CUMEM_HOST_ENABLE", "0"},
        {"NCCL_NET_GDR_LEVEL", "LOC"},    {"NCCL_RAS_ENABLE", "0"},
        {"CUDA_MODULE_LOADING", "EAGER"},
    };
    if (process)
        setenv("NCCL_HOSTID", process, 1);
    else
        unsetenv("NCCL_HOSTID");
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (process)
            setenv(all[i][0], all[i][1], 1);
        else
            unsetenv(all[i][0]);
}

#endif
