/* eight: eight neighbours of a row of fp32 or bf16 as floats, read and written in 16-byte pieces.
 *
 *     struct eight e;
 *     eight_load(&e, x + i);                   // x + i aligned to 16 bytes
 *     e.v[0] *= 2;
 *     eight_store(out + i, e);
 */
#ifndef TANDEM_KERNELS_CUDA_EIGHT_CUH
#define TANDEM_KERNELS_CUDA_EIGHT_CUH

#include "kernels/cuda/device.cuh"

enum { EIGHT = 8 };

struct eight {
    float v[EIGHT];
};

__device__ __forceinline__ void eight_load(struct eight *e, const float *at)
{
    float4 a = ((const float4 *)at)[0], b = ((const float4 *)at)[1];
    *e = {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
__device__ __forceinline__ void eight_load(struct eight *e, const uint16_t *at)
{
    uint4 w = *(const uint4 *)at;
    *e = {{bf16_low(w.x), bf16_high(w.x), bf16_low(w.y), bf16_high(w.y), bf16_low(w.z),
           bf16_high(w.z), bf16_low(w.w), bf16_high(w.w)}};
}
__device__ __forceinline__ void eight_store(float *at, const struct eight &e)
{
    ((float4 *)at)[0] = make_float4(e.v[0], e.v[1], e.v[2], e.v[3]);
    ((float4 *)at)[1] = make_float4(e.v[4], e.v[5], e.v[6], e.v[7]);
}
__device__ __forceinline__ void eight_store(uint16_t *at, const struct eight &e)
{
    *(uint4 *)at = make_uint4(bf16_pair(e.v[0], e.v[1]), bf16_pair(e.v[2], e.v[3]),
                              bf16_pair(e.v[4], e.v[5]), bf16_pair(e.v[6], e.v[7]));
}

#endif
