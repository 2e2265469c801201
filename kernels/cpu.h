/* cpu: what the CPU paths share inside kernels/. Each path (portable C, AVX2, AVX-512) is one
 * struct cpu_kernels made from the same bodies (body_*.h) over its own 16-lane vector (vec_*.h).
 *
 * A kernel does items [first, last) of an op; what an item is stands beside the op's arguments.
 * Items are independent and may run on any thread in any order: that never shows in the bits. */
#ifndef TANDEM_KERNELS_CPU_H
#define TANDEM_KERNELS_CPU_H

#include "kernels/backend.h"

enum {
    PANEL = 64,          /* output columns that are packed together */
    ROW_BLOCK_MAX = 384, /* rows of a matmul item */
    ATTEND_QUERIES = 16, /* (row, head) pairs of an attend item, all of one kv head */
};

typedef void cpu_kernel(const void *args, uint32_t first, uint32_t last);

/* Rows that a product reads: bf16 where the backend computes in it, else fp32. */
struct operand_rows {
    void *at;
    size_t stride;
    bool bf16;
};

struct norm_args { /* item: a row */
    struct operand_rows out;
    const float *x;
    size_t x_stride;
    const float *weight;
    uint32_t dim;
    float eps;
};

struct round_args { /* item: a row. fp32 to bf16, a zero behind an odd k */
    uint16_t *out;
    const float *x;
    size_t out_stride, x_stride;
    uint32_t k;
};

/* Item: row_block rows of one panel. Panels are innermost: a block of rows stays in the L2 cache
 * while the panels pass over it. */
struct matmul_args {
    float *out;
    const void *x; /* fp32, or bf16 for a bf16 matrix */
    size_t out_stride, x_stride;
    struct matrix w;
    const float *bias, *residual;
    uint32_t rows, row_block;
};

/* Item: row_block rows of one panel of the front half and the one of the back half behind it. Both halves
 * are whole panels, and nothing but `rows` is written: the product has no out and no residual. */
struct gated_args {
    struct matmul_args product;
    struct operand_rows out;
};

struct silu_args { /* item: a row */
    struct operand_rows out;
    const float *gate_up;
    size_t stride;
    uint32_t dim;
};

struct logprobs_args { /* item: a row */
    float *out;
    const float *logits;
    const uint32_t *token;
    uint32_t vocab;
};

struct rope_args { /* item: a row */
    float *qkv;
    size_t stride;
    const struct batch *batch;
    struct rope_table rope;
    struct attend_shape shape;
    struct kv_view kv;
    uint32_t layer;
};

/* Item: ATTEND_QUERIES queries of one sequence and kv head; a sequence's items follow each other,
 * kv heads outermost: the KV of one is read by many items, and stays in the L2 cache. Of a sequence
 * with one row, which has few queries, an item takes `together` kv heads. */
struct attend_args {
    struct operand_rows out;
    const float *q;
    size_t q_stride;
    const struct batch *batch;
    struct attend_shape shape;
    struct kv_view kv;
    uint32_t layer, together;
};

struct cpu_kernels {
    const char *name;
    cpu_kernel *rms_norm, *round_rows, *matmul, *gated, *silu_mul, *rope_append, *attend, *logprobs;
};
extern const struct cpu_kernels cpu_c_kernels, cpu_avx2_kernels, cpu_avx512_kernels;

/* Items that the queries of one sequence and kv head make. */
static inline uint32_t attend_groups(const struct batch_sequence *s, const struct attend_shape *a)
{
    uint32_t queries = s->rows_count * (a->heads / a->kv_heads);
    return (queries + ATTEND_QUERIES - 1) / ATTEND_QUERIES;
}
static inline uint32_t attend_items(const struct batch_sequence *s, const struct attend_args *a)
{
    uint32_t together = s->rows_count == 1 ? a->together : 1;
    return attend_groups(s, &a->shape) * ((a->shape.kv_heads + together - 1) / together);
}

size_t cpu_pack_bytes(uint32_t n, uint32_t k, enum dtype dtype);
void cpu_pack_rows(void *packed, uint32_t n, uint32_t k, enum dtype dtype, const void *source,
                   enum dtype source_dtype, uint32_t n_first, uint32_t rows);

#endif
