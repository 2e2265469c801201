/* vec: 16 fp32 lanes as two AVX2 registers. vec_c.h says what each operation means. */
#ifndef TANDEM_KERNELS_VEC_H
#define TANDEM_KERNELS_VEC_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { VEC_TILE_ROWS = 4, VEC_TILE_VECS = 1, VEC_SCORE_ROWS = 4, VEC_ACROSS = 4 };
enum { VEC_WEIGH_ROWS = 4, VEC_WEIGH_VECS = 1 };

struct vec {
    __m256 low, high;
};
struct pairs {
    struct vec even, odd;
};

/* -1 in the first `count` of 16 lanes. */
static inline const int32_t *vec_mask(uint32_t count)
{
    static const int32_t mask[32] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                     -1, -1, -1, -1, -1, -1, -1, -1};
    return mask + 16 - (count < 16 ? count : 16);
}

static inline struct vec vec_set1(float x)
{
    return (struct vec){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline struct vec vec_load(const float *p)
{
    return (struct vec){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline struct vec vec_load_some(const float *p, uint32_t count)
{
    if (count >= 16) return vec_load(p);
    const int32_t *mask = vec_mask(count);
    return (struct vec){_mm256_maskload_ps(p, _mm256_loadu_si256((const void *)mask)),
                        _mm256_maskload_ps(p + 8, _mm256_loadu_si256((const void *)(mask + 8)))};
}
static inline void vec_store(float *p, struct vec v)
{
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
}
static inline void vec_store_some(float *p, struct vec v, uint32_t count)
{
    if (count >= 16) {
        vec_store(p, v);
        return;
    }
    const int32_t *mask = vec_mask(count);
    _mm256_maskstore_ps(p, _mm256_loadu_si256((const void *)mask), v.low);
    _mm256_maskstore_ps(p + 8, _mm256_loadu_si256((const void *)(mask + 8)), v.high);
}
static inline __m256 vec_widen_8(__m128i half)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
static inline struct vec vec_load_bf16(const uint16_t *p, uint32_t count)
{
    uint16_t some[16] = {0};
    if (count < 16) p = memcpy(some, p, count * sizeof *p);
    return (struct vec){vec_widen_8(_mm_loadu_si128((const void *)p)),
                        vec_widen_8(_mm_loadu_si128((const void *)(p + 8)))};
}
/* As bf16_from_f32, in the low half of each lane. */
static inline __m256i vec_round_8(__m256 f)
{
    const __m256i infinity = _mm256_set1_epi32(0x7f800000), one = _mm256_set1_epi32(1);
    __m256i u = _mm256_castps_si256(f), top = _mm256_srli_epi32(u, 16);
    __m256i magnitude = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
    __m256i nan = _mm256_cmpgt_epi32(magnitude, infinity);
    __m256i tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x00800000), magnitude);
    __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(top, one));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, half), 16);
    r = _mm256_blendv_epi8(r, _mm256_or_si256(top, _mm256_set1_epi32(0x40)), nan);
    return _mm256_blendv_epi8(r, _mm256_and_si256(top, _mm256_set1_epi32(0x8000)), tiny);
}
static inline void vec_store_bf16(uint16_t *p, struct vec v, uint32_t count)
{
    __m256i both = _mm256_packus_epi32(vec_round_8(v.low), vec_round_8(v.high));
    both = _mm256_permute4x64_epi64(both, 0xd8);
    if (count >= 16) {
        _mm256_storeu_si256((void *)p, both);
        return;
    }
    uint16_t some[16];
    _mm256_storeu_si256((void *)some, both);
    memcpy(p, some, count * sizeof *p);
}
static inline __m256i vec_round_pairs_8(__m256 even, __m256 odd)
{
    return _mm256_or_si256(vec_round_8(even), _mm256_slli_epi32(vec_round_8(odd), 16));
}
static inline void vec_store_pairs(uint16_t *p, struct vec even, struct vec odd)
{
    _mm256_storeu_si256((void *)p, vec_round_pairs_8(even.low, odd.low));
    _mm256_storeu_si256((void *)(p + 16), vec_round_pairs_8(even.high, odd.high));
}
static inline void vec_store_half(uint16_t *p, struct vec v, uint32_t half, uint32_t count)
{
    uint16_t rounded[16];
    vec_store_bf16(rounded, v, 16);
    for (uint32_t i = 0; i < 16 && i < count; i++)
        p[2 * i + half] = rounded[i];
}

static inline struct vec vec_add(struct vec a, struct vec b)
{
    return (struct vec){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
static inline struct vec vec_sub(struct vec a, struct vec b)
{
    return (struct vec){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
static inline struct vec vec_mul(struct vec a, struct vec b)
{
    return (struct vec){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
static inline struct vec vec_div(struct vec a, struct vec b)
{
    return (struct vec){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
static inline struct vec vec_fma(struct vec a, struct vec b, struct vec c)
{
    return (struct vec){_mm256_fmadd_ps(a.low, b.low, c.low),
                        _mm256_fmadd_ps(a.high, b.high, c.high)};
}
static inline struct vec vec_fnma(struct vec a, struct vec b, struct vec c)
{
    return (struct vec){_mm256_fnmadd_ps(a.low, b.low, c.low),
                        _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
static inline struct vec vec_max(struct vec a, struct vec b)
{
    return (struct vec){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
static inline struct vec vec_min(struct vec a, struct vec b)
{
    return (struct vec){_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
static inline __m256 vec_exp2_8(__m256 v)
{
    __m256i n = _mm256_add_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
static inline struct vec vec_exp2_of_biased(struct vec v)
{
    return (struct vec){vec_exp2_8(v.low), vec_exp2_8(v.high)};
}
static inline struct vec vec_keep(struct vec v, uint32_t first, uint32_t last, struct vec other)
{
    const int32_t *after = vec_mask(first), *before = vec_mask(last);
    struct vec not_yet = vec_load((const float *)after), still = vec_load((const float *)before);
    struct vec r = {_mm256_blendv_ps(other.low, v.low, still.low),
                    _mm256_blendv_ps(other.high, v.high, still.high)};
    return (struct vec){_mm256_blendv_ps(r.low, other.low, not_yet.low),
                        _mm256_blendv_ps(r.high, other.high, not_yet.high)};
}

static inline float vec_sum(struct vec v)
{
    __m256 e = _mm256_add_ps(v.low, v.high);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline float vec_largest(struct vec v)
{
    __m256 e = _mm256_max_ps(v.low, v.high);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

static inline struct pairs pairs_split(__m256i low, __m256i high)
{
    const __m256i odd = _mm256_set1_epi32((int32_t)0xffff0000);
    return (struct pairs){{_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
                           _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))},
                          {_mm256_castsi256_ps(_mm256_and_si256(low, odd)),
                           _mm256_castsi256_ps(_mm256_and_si256(high, odd))}};
}
static inline struct pairs pairs_load(const void *p)
{
    const __m256i *half = p;
    return pairs_split(_mm256_loadu_si256(half), _mm256_loadu_si256(half + 1));
}
static inline struct pairs pairs_load_some(const void *p, uint32_t count)
{
    uint16_t some[32] = {0};
    if (count < 16) p = memcpy(some, p, count * 4);
    return pairs_load(p);
}
static inline struct pairs pairs_keep(struct pairs v, bool even, bool odd)
{
    return (struct pairs){even ? v.even : vec_set1(0), odd ? v.odd : vec_set1(0)};
}
static inline struct pairs pairs_set1(const uint16_t *p)
{
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    __m256i all = _mm256_set1_epi32(pair);
    return pairs_split(all, all);
}
static inline struct vec vec_dot2(struct vec sum, struct pairs a, struct pairs b)
{
    return vec_fma(a.even, b.even, vec_fma(a.odd, b.odd, sum));
}
static inline void vec_load_split(const float *p, struct vec *even, struct vec *odd)
{
    const __m256i apart = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    __m256 part[4];
    for (uint32_t i = 0; i < 4; i++)
        part[i] = _mm256_permutevar8x32_ps(_mm256_loadu_ps(p + 8 * i), apart);
    even->low = _mm256_permute2f128_ps(part[0], part[1], 0x20);
    even->high = _mm256_permute2f128_ps(part[2], part[3], 0x20);
    odd->low = _mm256_permute2f128_ps(part[0], part[1], 0x31);
    odd->high = _mm256_permute2f128_ps(part[2], part[3], 0x31);
}
static inline __attribute__((always_inline)) void vec_prefetch(const void *p)
{
    _mm_prefetch(p, _MM_HINT_T0);
}

#endif
