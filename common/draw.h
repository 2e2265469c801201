/* draw: the arithmetic of drawing a token, the same bits on every host and device. Who walks over the
 * vocabulary (engine/sampler.c on the host, kernels/cuda/sample.cu on a device) does so in an order
 * of its own: all that is summed is integers.
 *
 *     float weight = draw_exp((logit - top) * scale);        // in [0, 1], the best token has 1
 *     uint64_t mass = draw_mass(weight), total = ...;        // sums are exact, whatever their order
 *     uint64_t target = draw_part_of(draw_bits(seed, choice, index), total);
 *     // the token drawn: the first, ids upwards, at which the running sum of masses exceeds target
 *
 * Rules: no libm, no fused multiply-add (-ffp-contract=off, -fmad=false), denormals as IEEE has them,
 * division rounded as IEEE has it. A vocabulary has fewer than 2^23 tokens, so sums fit 64 bits.
 * Owner: no state, any thread. */
#ifndef TANDEM_COMMON_DRAW_H
#define TANDEM_COMMON_DRAW_H

#include <stdint.h>
#include <string.h>

#include "common/host_device.h"
#include "common/rng.h"

/* What a sequence has seen of each token, for penalties: this bit, and in the lower ones how often it
 * was generated. */
#define DRAW_IN_PROMPT 0x80000000u

/* Tokens tallied together. */
struct draw_tally {
    uint64_t mass, count;
};

/* What the filters leave: tokens that rank with `key` or better and weigh `weight_min` or more. */
struct draw_cut {
    uint64_t key;
    float weight_min;
};

HOST_DEVICE static inline uint32_t draw_bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
HOST_DEVICE static inline float draw_float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* exp(x) for x <= 0, to 2 ulp; 0 below -87 and for NaN; exactly 1 at 0. No branch, so that a loop of
 * it is the same in any vector width. */
HOST_DEVICE static inline float draw_exp(float x)
{
    float c = x > -87.0f ? x : -87.0f;
    float n = (c * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds to a whole number */
    float r = c - n * 0.693359375f;                          /* ln 2 in two parts */
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    float scale = draw_float_of((uint32_t)((int32_t)n + 127) << 23);
    return x > -87.0f ? p * scale : 0.0f;
}

/* The weight in units of 2^-40, rounded to nearest, ties to even: a double of 4096 … 8192 has just
 * these units. What weighs 2^-41 or less of the best token has no mass and is never drawn. */
HOST_DEVICE static inline uint64_t draw_mass(float weight)
{
    double sum = (double)weight + 4096.0;
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return bits - 0x40b0000000000000u;
}

/* part x total / 2^64, rounded down: below total, if that is not 0. */
HOST_DEVICE static inline uint64_t draw_part_of(uint64_t part, uint64_t total)
{
    return (uint64_t)((unsigned __int128)part * total >> 64);
}

/* The mass that top_p (below 1) asks for. */
HOST_DEVICE static inline uint64_t draw_top_mass(float top_p, uint64_t total)
{
    uint64_t mass = draw_part_of((uint64_t)(top_p * 0x1p64f), total);
    return mass > 0 ? mass : 1;
}

/* The random part of total at which the walk stops. */
HOST_DEVICE static inline uint64_t draw_bits(uint64_t seed, uint32_t choice, uint32_t index)
{
    struct rng_block r = rng_draw(seed, choice, index);
    return (uint64_t)r.word[0] << 32 | r.word[1];
}

/* Greater is better: logit, then lower id. Both zeros are one, NaN is below everything. */
HOST_DEVICE static inline uint64_t draw_key(float logit, uint32_t id)
{
    uint32_t bits = draw_bits_of(logit + 0.0f);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (logit != logit) bits = 0;
    return (uint64_t)bits << 32 | (UINT32_MAX - id);
}
HOST_DEVICE static inline uint32_t draw_key_id(uint64_t key)
{
    return UINT32_MAX - (uint32_t)key;
}
HOST_DEVICE static inline float draw_key_logit(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    return draw_float_of(bits & 0x80000000u ? bits ^ 0x80000000u : ~bits);
}

/* `count` as DRAW_IN_PROMPT has it; not 0. */
HOST_DEVICE static inline float draw_penalised(float logit, uint32_t count, float repetition,
                                               float presence, float frequency)
{
    uint32_t generated = count & ~DRAW_IN_PROMPT;
    logit = logit > 0 ? logit / repetition : logit * repetition;
    if (generated) logit = logit - presence - frequency * (float)generated;
    return logit;
}

/* ln(x) for a normal x > 0, to 1e-15. */
HOST_DEVICE static inline double draw_log(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
    memcpy(&x, &bits, sizeof x); /* 1 <= x < 2 */
    if (x > 1.4142135623730951) {
        x *= 0.5;
        exponent++;
    }
    double s = (x - 1) / (x + 1), s2 = s * s, sum = 0; /* ln x = 2 artanh s, |s| < 0.172 */
    for (int k = 21; k >= 1; k -= 2)
        sum = sum * s2 + 1.0 / k;
    return 2 * s * sum + exponent * 0.6931471805599453;
}

/* What log-probabilities are counted from: the logarithm of the sum of exp(logit), given the best
 * logit and the mass of all tokens at temperature 1. */
HOST_DEVICE static inline double draw_log_base(float top, uint64_t mass)
{
    return (double)top + draw_log((double)mass * 0x1p-40);
}
/* One NaN for all (processors differ in its sign), and one zero. */
HOST_DEVICE static inline float draw_logprob(float logit, double base)
{
    float logprob = (float)((double)logit - base) + 0.0f;
    return logprob == logprob ? logprob : draw_float_of(0x7fc00000u);
}

#endif
