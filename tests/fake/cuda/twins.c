/* twins: the meaning of what is inline PTX in device.cuh, one function each. */
#include "tests/fake/cuda/machine.h"

#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

void twin_shuffle(void *const lane[LANES])
{
    for (int i = 0; i < LANES; i++) {
        struct shuffle_lane *l = lane[i];
        l->result = ((const struct shuffle_lane *)lane[l->from % LANES])->value;
    }
}

void twin_ballot(void *const lane[LANES])
{
    uint32_t bits = 0;
    for (int i = 0; i < LANES; i++)
        bits |= (uint32_t)((const struct ballot_lane *)lane[i])->condition << i;
    for (int i = 0; i < LANES; i++)
        ((struct ballot_lane *)lane[i])->result = bits;
}

static float wide(uint32_t bf16)
{
    float f;
    bf16 <<= 16;
    memcpy(&f, &bf16, 4);
    return f;
}

enum { M = 16, N = 8, K = 16 };

/* d[i][j] = fma(a[i][k], b[k][j], d[i][j]) for k ascending. */
static void multiply_c(float d[M][N], const float a[M][K], const float b[K][N])
{
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++)
            for (int j = 0; j < N; j++)
                d[i][j] = fmaf(a[i][k], b[k][j], d[i][j]);
}
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void multiply_fma(float d[M][N], const float a[M][K],
                                                             const float b[K][N])
{
    for (int i = 0; i < M; i++) {
        __m256 sum = _mm256_loadu_ps(d[i]);
        for (int k = 0; k < K; k++)
            sum = _mm256_fmadd_ps(_mm256_set1_ps(a[i][k]), _mm256_loadu_ps(b[k]), sum);
        _mm256_storeu_ps(d[i], sum);
    }
}
#endif
static void multiply(float d[M][N], const float a[M][K], const float b[K][N])
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2")) {
        multiply_fma(d, a, b);
        return;
    }
#endif
    multiply_c(d, a, b);
}

void twin_mma(void *const lane[LANES])
{
    float a[M][K], b[K][N], d[M][N];
    for (int i = 0; i < LANES; i++) {
        const struct mma_lane *l = lane[i];
        int g = i / 4, t = i % 4 * 2;
        for (int part = 0; part < 4; part++) {
            int row = g + part % 2 * 8, column = t + part / 2 * 8;
            a[row][column] = wide(l->a[part] & 0xffff);
            a[row][column + 1] = wide(l->a[part] >> 16);
        }
        for (int part = 0; part < 2; part++) {
            b[t + part * 8][g] = wide(l->b[part] & 0xffff);
            b[t + part * 8 + 1][g] = wide(l->b[part] >> 16);
        }
        memcpy(&d[g][t], l->d, 8);
        memcpy(&d[g + 8][t], l->d + 2, 8);
    }
    multiply(d, a, b);
    for (int i = 0; i < LANES; i++) {
        struct mma_lane *l = lane[i];
        memcpy(l->d, &d[i / 4][i % 4 * 2], 8);
        memcpy(l->d + 2, &d[i / 4 + 8][i % 4 * 2], 8);
    }
}

void twin_matrices(void *const lane[LANES])
{
    uint16_t matrix[4][8][8];
    for (int i = 0; i < LANES; i++)
        memcpy(matrix[i / 8][i % 8], ((const struct matrices_lane *)lane[i])->row, 16);
    for (int i = 0; i < LANES; i++) {
        const struct matrices_lane *l = lane[i];
        int row = i / 4, column = i % 4 * 2;
        for (int part = 0; part < 4; part++) {
            uint16_t(*m)[8] = matrix[part];
            uint32_t low = l->transposed ? m[column][row] : m[row][column];
            uint32_t high = l->transposed ? m[column + 1][row] : m[row][column + 1];
            l->r[part] = low | high << 16;
        }
    }
}

/* The fast functions of the device take subnormal numbers for zero and give zero for them. */
static float flushed(float x)
{
    return fpclassify(x) == FP_SUBNORMAL ? copysignf(0.0f, x) : x;
}
float emulator_exp2(float x)
{
    return flushed(exp2f(flushed(x)));
}

/* To nearest, ties to even; every NaN becomes 0x7fff, as the device has it. */
static uint32_t bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
uint32_t emulator_bf16_pair(float low, float high)
{
    return bf16(high) << 16 | bf16(low);
}
