/* product: what the files of the own matrix products share: the last step of an output, and the
 * fp32 products, which product.cu hands over. */
#ifndef TANDEM_KERNELS_CUDA_PRODUCT_CUH
#define TANDEM_KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.h"

/* Any rows and shape: the fp32 form of both cuda_product_skinny and cuda_product_fixed. */
cudaError_t product_f32(cudaStream_t stream, const struct cuda_product *p);

/* out[row][j] = sum, + bias, + residual, in this order. */
__device__ __forceinline__ void product_finish(const struct cuda_product &p, uint32_t row,
                                               uint32_t j, float sum)
{
    size_t at = (size_t)row * p.n + j;
    if (p.bias) sum += p.bias[j];
    if (p.residual) sum += p.residual[at];
    if (p.out_wide || p.dtype == DTYPE_F32)
        ((float *)p.out)[at] = sum;
    else
        ((uint16_t *)p.out)[at] = bf16_from_float(sum);
}

#endif
