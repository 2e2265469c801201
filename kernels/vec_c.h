/* vec: 16 fp32 lanes in portable C, the meaning of the operations that vec_avx2.h and vec_avx512.h
 * spell in instructions. Everything is exact or rounded once to nearest even, so three spellings
 * give the same bits. A `count` above 16 means 16. */
#ifndef TANDEM_KERNELS_VEC_H
#define TANDEM_KERNELS_VEC_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/numbers.h"

/* How many accumulators fit the registers: of a matmul tile, of q k, of p v. */
enum { VEC_TILE_ROWS = 2, VEC_TILE_VECS = 1, VEC_SCORE_ROWS = 4, VEC_ACROSS = 4 };
enum { VEC_WEIGH_ROWS = 2, VEC_WEIGH_VECS = 1 };

struct vec {
    float lane[16];
};
/* 16 pairs of bf16, widened. */
struct pairs {
    struct vec even, odd;
};

#define VEC_EACH(expression)                                                                       \
    struct vec r;                                                                                  \
    for (uint32_t i = 0; i < 16; i++)                                                              \
        r.lane[i] = (expression);                                                                  \
    return r

static inline struct vec vec_set1(float x)
{
    VEC_EACH(x);
}
static inline struct vec vec_load(const float *p)
{
    VEC_EACH(p[i]);
}
/* Lanes from `count` on are zero, and not read. */
static inline struct vec vec_load_some(const float *p, uint32_t count)
{
    VEC_EACH(i < count ? p[i] : 0);
}
static inline void vec_store(float *p, struct vec v)
{
    memcpy(p, v.lane, sizeof v.lane);
}
static inline void vec_store_some(float *p, struct vec v, uint32_t count)
{
    memcpy(p, v.lane, (count < 16 ? count : 16) * sizeof *p);
}
static inline struct vec vec_load_bf16(const uint16_t *p, uint32_t count)
{
    VEC_EACH(i < count ? f32_from_bf16(p[i]) : 0);
}
static inline void vec_store_bf16(uint16_t *p, struct vec v, uint32_t count)
{
    for (uint32_t i = 0; i < 16 && i < count; i++)
        p[i] = bf16_from_f32(v.lane[i]);
}
/* Pairs of bf16, `even` in the low halves. */
static inline void vec_store_pairs(uint16_t *p, struct vec even, struct vec odd)
{
    for (uint32_t i = 0; i < 16; i++) {
        p[2 * i] = bf16_from_f32(even.lane[i]);
        p[2 * i + 1] = bf16_from_f32(odd.lane[i]);
    }
}
/* One half (0 or 1) of each of the first `count` pairs; the other halves are not touched. */
static inline void vec_store_half(uint16_t *p, struct vec v, uint32_t half, uint32_t count)
{
    for (uint32_t i = 0; i < 16 && i < count; i++)
        p[2 * i + half] = bf16_from_f32(v.lane[i]);
}

static inline struct vec vec_add(struct vec a, struct vec b)
{
    VEC_EACH(a.lane[i] + b.lane[i]);
}
static inline struct vec vec_sub(struct vec a, struct vec b)
{
    VEC_EACH(a.lane[i] - b.lane[i]);
}
static inline struct vec vec_mul(struct vec a, struct vec b)
{
    VEC_EACH(a.lane[i] * b.lane[i]);
}
static inline struct vec vec_div(struct vec a, struct vec b)
{
    VEC_EACH(a.lane[i] / b.lane[i]);
}
/* a * b + c, rounded once. */
static inline struct vec vec_fma(struct vec a, struct vec b, struct vec c)
{
    VEC_EACH(fmaf(a.lane[i], b.lane[i], c.lane[i]));
}
/* c - a * b, rounded once. */
static inline struct vec vec_fnma(struct vec a, struct vec b, struct vec c)
{
    VEC_EACH(fmaf(-a.lane[i], b.lane[i], c.lane[i]));
}
/* The second operand if either is NaN, and if they are equal. */
static inline struct vec vec_max(struct vec a, struct vec b)
{
    VEC_EACH(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]);
}
static inline struct vec vec_min(struct vec a, struct vec b)
{
    VEC_EACH(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]);
}
/* 2^n from the bits of n + 1.5 * 2^23, for n from -126 to 127; infinity for 128. */
static inline struct vec vec_exp2_of_biased(struct vec v)
{
    VEC_EACH(f32_from_bits((f32_bits(v.lane[i]) + 127) << 23));
}
/* Lanes [first, last) of v, `other` elsewhere. */
static inline struct vec vec_keep(struct vec v, uint32_t first, uint32_t last, struct vec other)
{
    VEC_EACH(i >= first && i < last ? v.lane[i] : other.lane[i]);
}

/* The fixed tree: lane i with i + 8, then i + 4, i + 2, i + 1. */
static inline float vec_sum(struct vec v)
{
    for (uint32_t half = 8; half > 0; half /= 2)
        for (uint32_t i = 0; i < half; i++)
            v.lane[i] += v.lane[i + half];
    return v.lane[0];
}
static inline float vec_largest(struct vec v)
{
    for (uint32_t half = 8; half > 0; half /= 2)
        for (uint32_t i = 0; i < half; i++)
            v.lane[i] = v.lane[i] > v.lane[i + half] ? v.lane[i] : v.lane[i + half];
    return v.lane[0];
}

static inline struct pairs pairs_load(const void *p)
{
    uint16_t half[32];
    memcpy(half, p, sizeof half);
    struct pairs r;
    for (uint32_t i = 0; i < 16; i++) {
        r.even.lane[i] = f32_from_bf16(half[2 * i]);
        r.odd.lane[i] = f32_from_bf16(half[2 * i + 1]);
    }
    return r;
}
/* Pairs from `count` on are zero, and not read. */
static inline struct pairs pairs_load_some(const void *p, uint32_t count)
{
    uint16_t half[32] = {0};
    memcpy(half, p, (count < 16 ? count : 16) * 4);
    return pairs_load(half);
}
/* A half that is not kept becomes zero. */
static inline struct pairs pairs_keep(struct pairs v, bool even, bool odd)
{
    return (struct pairs){even ? v.even : vec_set1(0), odd ? v.odd : vec_set1(0)};
}
/* The pair at p in all lanes. */
static inline struct pairs pairs_set1(const uint16_t *p)
{
    return (struct pairs){vec_set1(f32_from_bf16(p[0])), vec_set1(f32_from_bf16(p[1]))};
}
/* The chain of a pair, odd before even (G1): what vdpbf16ps does. */
static inline struct vec vec_dot2(struct vec sum, struct pairs a, struct pairs b)
{
    return vec_fma(a.even, b.even, vec_fma(a.odd, b.odd, sum));
}
/* Splits 16 pairs of fp32 into evens and odds. */
static inline void vec_load_split(const float *p, struct vec *even, struct vec *odd)
{
    for (uint32_t i = 0; i < 16; i++) {
        even->lane[i] = p[2 * i];
        odd->lane[i] = p[2 * i + 1];
    }
}
/* Into the nearest cache. Always inlined: a function that does nothing else is dropped by GCC as one
 * without effect. */
static inline __attribute__((always_inline)) void vec_prefetch(const void *p)
{
    __builtin_prefetch(p);
}

#endif
