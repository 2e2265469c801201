#include "tests/gpu/ceilings_cuda.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "kernels/numbers.h"

enum { ROUNDS = 10, LAUNCHES = 1000, WORKSPACE_BYTES = 64 << 20 };

static void must(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    fprintf(stderr, "gpu_bench: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}
#define MUST(call) must(call, #call)

static void must_lt(cublasStatus_t s, const char *what)
{
    if (s == CUBLAS_STATUS_SUCCESS) return;
    fprintf(stderr, "gpu_bench: %s: %s\n", what, cublasLtGetStatusString(s));
    exit(1);
}
#define MUST_LT(call) must_lt(call, #call)

static void *device_memory(uint64_t bytes)
{
    void *p = NULL;
    MUST(cudaMalloc(&p, bytes));
    return p;
}

static double seconds_since(cudaStream_t stream, uint64_t began_ns)
{
    MUST(cudaStreamSynchronize(stream));
    return (double)(clock_now_ns() - began_ns) / NS_PER_S;
}

static void measure_copy(struct ceilings_cuda *c, cudaStream_t stream, uint64_t bytes)
{
    void *from = device_memory(bytes), *to = device_memory(bytes);
    double best = 1e9;
    MUST(cudaMemsetAsync(from, 1, bytes, stream));
    for (int round = 0; round < ROUNDS; round++) {
        MUST(cudaStreamSynchronize(stream));
        uint64_t began_ns = clock_now_ns();
        MUST(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
        double took = seconds_since(stream, began_ns);
        if (took < best) best = took;
    }
    c->copy_bytes_s = 2.0 * (double)bytes / best;
    uint64_t began_ns = clock_now_ns();
    for (int i = 0; i < LAUNCHES; i++)
        MUST(cudaMemsetAsync(to, 0, 16, stream));
    c->launch_us = (double)(clock_now_ns() - began_ns) / LAUNCHES / 1e3;
    MUST(cudaStreamSynchronize(stream));
    MUST(cudaFree(from));
    MUST(cudaFree(to));
}

/* One of random numbers: zeros would draw less power and run faster than any model. */
static void *random_matrix(cudaStream_t stream, uint32_t side)
{
    size_t count = (size_t)side * side;
    uint16_t *host = mem_array(count, sizeof *host);
    if (!host) exit(1);
    for (size_t i = 0; i < count; i += 4) {
        struct rng_block r = rng_draw(1, 3, i);
        for (size_t j = 0; j < 4 && i + j < count; j++)
            host[i + j] = bf16_from_f32(2 * rng_unit(r.word[j]) - 1);
    }
    void *p = device_memory(count * sizeof *host);
    MUST(cudaMemcpyAsync(p, host, count * sizeof *host, cudaMemcpyHostToDevice, stream));
    MUST(cudaStreamSynchronize(stream));
    mem_free(host);
    return p;
}

static void measure_product(struct ceilings_cuda *c, cudaStream_t stream, uint32_t side)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const uint64_t workspace_bytes = WORKSPACE_BYTES;
    const float one = 1, zero = 0;
    void *a = random_matrix(stream, side), *b = random_matrix(stream, side);
    void *d = device_memory((uint64_t)side * side * 2), *workspace = device_memory(WORKSPACE_BYTES);
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t layout;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t way[8];
    int ways = 0;
    MUST_LT(cublasLtCreate(&lt));
    MUST_LT(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    MUST_LT(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                           sizeof transposed));
    MUST_LT(cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, side, side, side));
    MUST_LT(cublasLtMatmulPreferenceCreate(&preference));
    MUST_LT(cublasLtMatmulPreferenceSetAttribute(preference,
                                                 CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                 &workspace_bytes, sizeof workspace_bytes));
    MUST_LT(cublasLtMatmulAlgoGetHeuristic(lt, product, layout, layout, layout, layout, preference,
                                           8, way, &ways));
    double best = 1e9;
    for (int i = 0; i < ways; i++)
        for (int round = 0; round < 3; round++) {
            MUST(cudaStreamSynchronize(stream));
            uint64_t began_ns = clock_now_ns();
            for (int n = 0; n < ROUNDS; n++)
                MUST_LT(cublasLtMatmul(lt, product, &one, a, layout, b, layout, &zero, d, layout, d,
                                       layout, &way[i].algo, workspace, workspace_bytes, stream));
            double took = seconds_since(stream, began_ns) / ROUNDS;
            if (took < best) best = took;
        }
    c->peak_flops = 2.0 * side * side * side / best;
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(product);
    cublasLtDestroy(lt);
    MUST(cudaFree(a));
    MUST(cudaFree(b));
    MUST(cudaFree(d));
    MUST(cudaFree(workspace));
}

void ceilings_cuda_device(struct ceilings_cuda *c)
{
    struct cudaDeviceProp p;
    *c = (struct ceilings_cuda){0};
    MUST(cudaSetDevice(0));
    MUST(cudaGetDeviceProperties(&p, 0));
    MUST(cudaDriverGetVersion(&c->driver));
    MUST(cudaRuntimeGetVersion(&c->runtime));
    snprintf(c->device, sizeof c->device, "%s", p.name);
    c->sm = p.major * 10 + p.minor;
    c->memory_bytes = (double)p.totalGlobalMem;
}

void ceilings_cuda_measure(struct ceilings_cuda *c, uint64_t copy_bytes, uint32_t side)
{
    cudaStream_t stream;
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    measure_copy(c, stream, copy_bytes);
    measure_product(c, stream, side);
    MUST(cudaStreamDestroy(stream));
}
