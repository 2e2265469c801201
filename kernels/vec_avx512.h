/* vec: 16 fp32 lanes as one AVX-512 register. vec_c.h says what each operation means. */
#ifndef TANDEM_KERNELS_VEC_H
#define TANDEM_KERNELS_VEC_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { VEC_TILE_ROWS = 6, VEC_TILE_VECS = 4, VEC_SCORE_ROWS = 8, VEC_ACROSS = 16 };
enum { VEC_WEIGH_ROWS = 4, VEC_WEIGH_VECS = 4 };

struct vec {
    __m512 v;
};
struct pairs {
    __m512bh v;
};

static inline __mmask16 vec_mask(uint32_t count)
{
    return (__mmask16)_bzhi_u32(0xffff, count);
}

static inline struct vec vec_set1(float x)
{
    return (struct vec){_mm512_set1_ps(x)};
}
static inline struct vec vec_load(const float *p)
{
    return (struct vec){_mm512_loadu_ps(p)};
}
static inline struct vec vec_load_some(const float *p, uint32_t count)
{
    if (count >= 16) return vec_load(p);
    return (struct vec){_mm512_maskz_loadu_ps(vec_mask(count), p)};
}
static inline void vec_store(float *p, struct vec v)
{
    _mm512_storeu_ps(p, v.v);
}
static inline void vec_store_some(float *p, struct vec v, uint32_t count)
{
    if (count >= 16)
        vec_store(p, v);
    else
        _mm512_mask_storeu_ps(p, vec_mask(count), v.v);
}
static inline struct vec vec_load_bf16(const uint16_t *p, uint32_t count)
{
    __m256i half = count >= 16 ? _mm256_loadu_si256((const void *)p)
                               : _mm256_maskz_loadu_epi16(vec_mask(count), p);
    return (struct vec){_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
static inline void vec_store_bf16(uint16_t *p, struct vec v, uint32_t count)
{
    __m256i half = (__m256i)_mm512_cvtneps_pbh(v.v);
    if (count >= 16)
        _mm256_storeu_si256((void *)p, half);
    else
        _mm256_mask_storeu_epi16(p, vec_mask(count), half);
}
static inline __m512i vec_round_wide(struct vec v)
{
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v.v));
}
static inline void vec_store_pairs(uint16_t *p, struct vec even, struct vec odd)
{
    __m512i high = _mm512_slli_epi32(vec_round_wide(odd), 16);
    _mm512_storeu_si512(p, _mm512_or_si512(vec_round_wide(even), high));
}
static inline void vec_store_half(uint16_t *p, struct vec v, uint32_t half, uint32_t count)
{
    __mmask32 own = _bzhi_u32(half ? 0xaaaaaaaa : 0x55555555, count < 16 ? 2 * count : 32);
    __m512i wide = vec_round_wide(v);
    _mm512_mask_storeu_epi16(p, own, half ? _mm512_slli_epi32(wide, 16) : wide);
}

static inline struct vec vec_add(struct vec a, struct vec b)
{
    return (struct vec){_mm512_add_ps(a.v, b.v)};
}
static inline struct vec vec_sub(struct vec a, struct vec b)
{
    return (struct vec){_mm512_sub_ps(a.v, b.v)};
}
static inline struct vec vec_mul(struct vec a, struct vec b)
{
    return (struct vec){_mm512_mul_ps(a.v, b.v)};
}
static inline struct vec vec_div(struct vec a, struct vec b)
{
    return (struct vec){_mm512_div_ps(a.v, b.v)};
}
static inline struct vec vec_fma(struct vec a, struct vec b, struct vec c)
{
    return (struct vec){_mm512_fmadd_ps(a.v, b.v, c.v)};
}
static inline struct vec vec_fnma(struct vec a, struct vec b, struct vec c)
{
    return (struct vec){_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
static inline struct vec vec_max(struct vec a, struct vec b)
{
    return (struct vec){_mm512_max_ps(a.v, b.v)};
}
static inline struct vec vec_min(struct vec a, struct vec b)
{
    return (struct vec){_mm512_min_ps(a.v, b.v)};
}
static inline struct vec vec_exp2_of_biased(struct vec v)
{
    __m512i n = _mm512_add_epi32(_mm512_castps_si512(v.v), _mm512_set1_epi32(127));
    return (struct vec){_mm512_castsi512_ps(_mm512_slli_epi32(n, 23))};
}
static inline struct vec vec_keep(struct vec v, uint32_t first, uint32_t last, struct vec other)
{
    return (struct vec){_mm512_mask_blend_ps(vec_mask(last) & ~vec_mask(first), other.v, v.v)};
}

static inline float vec_sum(struct vec v)
{
    __m256 e = _mm256_add_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline float vec_largest(struct vec v)
{
    __m256 e = _mm256_max_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

static inline struct pairs pairs_load(const void *p)
{
    return (struct pairs){(__m512bh)_mm512_loadu_si512(p)};
}
static inline struct pairs pairs_load_some(const void *p, uint32_t count)
{
    if (count >= 16) return pairs_load(p);
    return (struct pairs){(__m512bh)_mm512_maskz_loadu_epi32(vec_mask(count), p)};
}
static inline struct pairs pairs_keep(struct pairs v, bool even, bool odd)
{
    __m512i own = _mm512_set1_epi32((int32_t)((even ? 0x0000ffffu : 0) | (odd ? 0xffff0000u : 0)));
    return (struct pairs){(__m512bh)_mm512_and_si512((__m512i)v.v, own)};
}
static inline struct pairs pairs_set1(const uint16_t *p)
{
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return (struct pairs){(__m512bh)_mm512_set1_epi32(pair)};
}
static inline struct vec vec_dot2(struct vec sum, struct pairs a, struct pairs b)
{
    return (struct vec){_mm512_dpbf16_ps(sum.v, a.v, b.v)};
}
static inline void vec_load_split(const float *p, struct vec *even, struct vec *odd)
{
    const __m512i evens =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16);
    even->v = _mm512_permutex2var_ps(a, evens, b);
    odd->v = _mm512_permutex2var_ps(a, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), b);
}
static inline __attribute__((always_inline)) void vec_prefetch(const void *p)
{
    _mm_prefetch(p, _MM_HINT_T0);
}

#endif
