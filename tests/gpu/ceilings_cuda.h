/* ceilings_cuda: what a GPU can do at most, measured with the vendor's own calls beside our figures: copying
 * memory, and one big bf16 matrix product on random numbers.
 *
 *     struct ceilings_cuda c;
 *     ceilings_cuda_device(&c);                       // which device this is
 *     printf("%s, driver %d", c.device, c.driver);
 *     ceilings_cuda_measure(&c, copy_bytes, side);
 *
 * What fails ends the program with the call's name. Owner: the program's main thread. */
#ifndef TANDEM_TESTS_GPU_CEILINGS_CUDA_H
#define TANDEM_TESTS_GPU_CEILINGS_CUDA_H

#include <stdint.h>

struct ceilings_cuda {
    char device[256];
    int driver, runtime, sm; /* 13000 is 13.0; 90 is sm_90 */
    double memory_bytes;
    double copy_bytes_s; /* bytes read plus bytes written, per second */
    double peak_flops;   /* bf16 products with fp32 sums */
    double launch_us;    /* host time that one empty copy costs to enqueue */
};

void ceilings_cuda_device(struct ceilings_cuda *c);
void ceilings_cuda_measure(struct ceilings_cuda *c, uint64_t copy_bytes, uint32_t side);

#endif
