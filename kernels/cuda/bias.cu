/* bias: what a bias needs before a product by cublasLt (lt.c). */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.h"

/* CPU reference: bf16_from_f32 (kernels/numbers.h). 6 bytes an element; n is a few thousand, so that
 * the launch is what it costs. No shared memory, 10 registers. */
__global__ void __launch_bounds__(256)
    bias_round_kernel(uint16_t *out, const float *bias, uint32_t n)
{
    grid_wait();
    uint32_t i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) out[i] = bf16_from_float(bias[i]);
}

extern "C" cudaError_t cuda_bias_round(cudaStream_t stream, uint16_t *out, const float *bias,
                                       uint32_t n)
{
    LAUNCH(bias_round_kernel, divide_up(n, 256), 256, 0, stream, out, bias, n);
    return cudaPeekAtLastError();
}
