/* The packed form of a matrix, weight layout 1: panels of 64 outputs one behind the other, the last
 * one padded. Within a panel k ascends, lanes are outputs:
 *
 *     BF16  [panels][(k + 1) / 2][64][2]      a pair of k is one 32-bit lane; odd k ends in a zero
 *     F32   [panels][k][64] */
#include "kernels/cpu.h"
#include "kernels/numbers.h"

size_t cpu_pack_bytes(uint32_t n, uint32_t k, enum dtype dtype)
{
    size_t columns = ((size_t)n + PANEL - 1) / PANEL * PANEL;
    return dtype == DTYPE_BF16 ? columns * (((size_t)k + 1) / 2) * 4 : columns * k * 4;
}

static float element_f32(const void *source, enum dtype dtype, size_t i)
{
    switch (dtype) {
    case DTYPE_F32: return ((const float *)source)[i];
    case DTYPE_F16: return f32_from_f16(((const uint16_t *)source)[i]);
    default: return f32_from_bf16(((const uint16_t *)source)[i]);
    }
}

static uint32_t element_bf16(const void *source, enum dtype dtype, size_t i)
{
    if (dtype == DTYPE_BF16) return ((const uint16_t *)source)[i];
    return bf16_from_f32(element_f32(source, dtype, i));
}

static void pack_row_bf16(uint32_t *to, const void *source, enum dtype dtype, size_t first,
                          uint32_t k)
{
    for (uint32_t i = 0; i < k; i += 2, to += PANEL) {
        uint32_t even = element_bf16(source, dtype, first + i);
        uint32_t odd = i + 1 < k ? element_bf16(source, dtype, first + i + 1) : 0;
        *to = even | odd << 16;
    }
}

void cpu_pack_rows(void *packed, uint32_t n, uint32_t k, enum dtype dtype, const void *source,
                   enum dtype source_dtype, uint32_t n_first, uint32_t rows)
{
    CHECK(dtype == DTYPE_BF16 || dtype == DTYPE_F32);
    CHECK(n_first <= n && rows <= n - n_first);
    for (uint32_t row = 0; row < rows; row++) {
        size_t column = (size_t)n_first + row, first = (size_t)row * k;
        size_t deep = dtype == DTYPE_BF16 ? ((size_t)k + 1) / 2 : k;
        size_t at = column / PANEL * deep * PANEL + column % PANEL;
        if (dtype == DTYPE_BF16) {
            pack_row_bf16((uint32_t *)packed + at, source, source_dtype, first, k);
            continue;
        }
        float *to = (float *)packed + at;
        for (uint32_t i = 0; i < k; i++)
            to[(size_t)i * PANEL] = element_f32(source, source_dtype, first + i);
    }
}
