/* numbers: the 16-bit floats, bit by bit, for packing, tables and tests. The kernels' own rounding
 * to bf16 gives the same bits.
 *
 * bf16 rounds to nearest even; fp32 numbers below the smallest normal one become zero of the same
 * sign and NaN stays a (quiet) NaN, as vcvtneps2bf16 does it. Pure: any thread. */
#ifndef TANDEM_KERNELS_NUMBERS_H
#define TANDEM_KERNELS_NUMBERS_H

#include <stdint.h>
#include <string.h>

static inline float f32_from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline uint32_t f32_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}
static inline float f32_from_bf16(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}
static inline uint16_t bf16_from_f32(float f)
{
    uint32_t u = f32_bits(f), magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    if (magnitude < 0x00800000) return (uint16_t)(u >> 16 & 0x8000);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static inline float f32_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return f32_from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent > 0) return f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    if (mantissa == 0) return f32_from_bits(sign);
    uint32_t shift = (uint32_t)__builtin_clz(mantissa) - 21; /* brings the leading one to bit 10 */
    return f32_from_bits(sign | (113 - shift) << 23 | (mantissa << shift & 0x3ff) << 13);
}

#endif
