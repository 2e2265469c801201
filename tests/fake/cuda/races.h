/* races: what kernels touch in device memory, looked at for blocks of a grid that get in each other's way
 * (races.c). Linked only with kernels that are compiled for it: elsewhere the functions are not there.
 *
 *     if (races_touch) races_touch(from, 16, RACES_READ);      // of what the compiler does not see
 *
 * What is wrong is a machine_fault. Owner: the thread whose machine runs. */
#ifndef TANDEM_FAKE_CUDA_RACES_H
#define TANDEM_FAKE_CUDA_RACES_H

#include <stddef.h>

enum races_touch { RACES_READ, RACES_READ_ONLY, RACES_WRITE, RACES_ATOMIC };

struct races;
__attribute__((weak)) void races_touch(const void *at, size_t bytes, enum races_touch kind);
__attribute__((weak)) void races_free(struct races *r); /* NULL is allowed */

#endif
