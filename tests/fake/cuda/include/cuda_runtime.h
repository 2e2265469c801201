/* cuda_runtime: what .cu files include for the CUDA language; on the host the language is in
 * <emulator.h>, and this has the runtime's interface with its C++ conveniences. */
#ifndef TANDEM_FAKE_CUDA_RUNTIME_H
#define TANDEM_FAKE_CUDA_RUNTIME_H

#include <cuda_runtime_api.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))

#ifdef __cplusplus
template <typename... Args>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Args...), enum cudaFuncAttribute what, int value)
{
    return cudaFuncSetAttribute((const void *)kernel, what, value);
}

static inline uint2 make_uint2(uint32_t x, uint32_t y)
{
    return uint2{x, y};
}
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return uint4{x, y, z, w};
}
static inline float2 make_float2(float x, float y)
{
    return float2{x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return float4{x, y, z, w};
}
#endif

#endif
