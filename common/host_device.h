/* host_device: a word in front of a function in a header that both C17 and CUDA C++ compile, so that
 * host and device do the same arithmetic.
 *
 *     HOST_DEVICE static inline uint32_t half_of(uint32_t x) { return x / 2; } */
#ifndef TANDEM_COMMON_HOST_DEVICE_H
#define TANDEM_COMMON_HOST_DEVICE_H

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

#endif
