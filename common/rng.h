/* rng: random bits as a pure function of (key, counter): Philox4x32-10 (Salmon, Moraes, Dror and
 * Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
 *
 *     struct rng_block b = rng_draw(seed, choice, index);   // four words; the same for ever
 *     float u = rng_unit(b.word[0]);                        // uniform in [0, 1), 24 bits
 *
 * Rules: no state, no thread, so the token at an index draws the same number in any batch, after a
 * failover and in a replay. Different (seed, choice, index) give independent words. */
#ifndef TANDEM_COMMON_RNG_H
#define TANDEM_COMMON_RNG_H

#include <stdint.h>

#include "common/host_device.h"

struct rng_block {
    uint32_t word[4];
};

HOST_DEVICE static inline struct rng_block rng_philox(struct rng_block c, uint32_t key0,
                                                      uint32_t key1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xd2511f53u * c.word[0];
        uint64_t b = (uint64_t)0xcd9e8d57u * c.word[2];
        struct rng_block next = {{(uint32_t)(b >> 32) ^ c.word[1] ^ key0, (uint32_t)b,
                                  (uint32_t)(a >> 32) ^ c.word[3] ^ key1, (uint32_t)a}};
        c = next;
        key0 += 0x9e3779b9u; /* the golden ratio and sqrt(3) - 1, as in the paper */
        key1 += 0xbb67ae85u;
    }
    return c;
}

HOST_DEVICE static inline struct rng_block rng_draw(uint64_t seed, uint32_t stream, uint64_t index)
{
    struct rng_block counter = {{(uint32_t)index, (uint32_t)(index >> 32), stream, 0}};
    return rng_philox(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
}

HOST_DEVICE static inline float rng_unit(uint32_t word)
{
    return (float)(word >> 8) * 0x1p-24f;
}

/* Uniform in 0 … bound - 1, for tests and the simulator; the bias is below bound / 2^32. */
HOST_DEVICE static inline uint32_t rng_below(uint32_t word, uint32_t bound)
{
    return (uint32_t)((uint64_t)word * bound >> 32);
}

#endif
