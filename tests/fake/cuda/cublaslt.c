/* The stand-in for cuBLASLt's matmul: bf16 or fp32 operands, fp32 sums, one rounding to the output's
 * type. It refuses what cuBLAS 13's documentation refuses: types that do not go together, a bias that
 * is not of D's type, leading dimensions that make columns overlap, buffers less aligned than the
 * preference said, a workspace that is missing, too small or not aligned to 256. Three algorithms:
 *
 *     SPLIT    K in two halves, the first one's sums in the workspace: two streams with one workspace
 *              spoil each other's results; wants 16-byte rows. Where the preference does not forbid it,
 *              these sums are of the output's type, so that more than one rounding is left
 *     PLAIN    no workspace; wants 16-byte rows
 *     NARROW   no workspace; any alignment
 *
 * Handles and descriptors are handles of the stand-in runtime: stale ones fault, forgotten ones are
 * counted by fake_reset. */
#include <cublasLt.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fake/cuda/runtime.h"

enum {
    WORKSPACE_ALIGN = 256,
    ROW_ALIGN = 16,
    ALIGN_DEFAULT = 256, /* what the preference says unless told otherwise */
    LANES = 8,           /* partial sums of a product */
};

struct cublasLtContext {
    struct fake_handle handle;
};
struct cublasLtMatmulDescOpaque {
    struct fake_handle handle;
    int32_t compute, scale_type, pointer_mode, trans_a, trans_b, bias_type;
    uint32_t epilogue;
    const void *bias;
};
struct cublasLtMatrixLayoutOpaque {
    struct fake_handle handle;
    uint32_t type;
    int32_t order, batch_count;
    uint64_t rows, columns;
    int64_t ld, batch_stride;
};
struct cublasLtMatmulPreferenceOpaque {
    struct fake_handle handle;
    uint64_t workspace_bytes;
    uint32_t reductions, align[4]; /* A, B, C, D */
};

enum algorithm { SPLIT = 1, PLAIN, NARROW };
/* What cublasLtMatmulAlgo_t holds. */
struct choice {
    uint32_t algorithm;
    uint32_t align[4], bias_align;
    uint32_t a_type, d_type, sums_type;
};
_Static_assert(sizeof(struct choice) <= sizeof(cublasLtMatmulAlgo_t), "fits");

/* --- calls --- */

static cublasStatus_t status_of(cudaError_t e)
{
    if (e == cudaSuccess) return CUBLAS_STATUS_SUCCESS;
    if ((int)e <= CUBLAS_STATUS_NOT_SUPPORTED) return (cublasStatus_t)e; /* what a knob asked for */
    return CUBLAS_STATUS_EXECUTION_FAILED;
}

static cublasStatus_t enter(const char *call)
{
    return status_of(fake_enter(call, 0));
}

static cublasStatus_t leave(cublasStatus_t status)
{
    pthread_mutex_unlock(&fake.lock);
    return status;
}

__attribute__((format(printf, 2, 3))) static cublasStatus_t refuse(cublasStatus_t status,
                                                                   const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fake_say("cublasLt: %s", text);
    return status;
}

static cublasStatus_t check(const void *handle, enum fake_kind kind, const char *call)
{
    cudaError_t e = fake_handle_check(handle, kind, call);
    if (e == cudaSuccess) return CUBLAS_STATUS_SUCCESS;
    if (e != cudaErrorInvalidResourceHandle) return CUBLAS_STATUS_EXECUTION_FAILED;
    return kind == FAKE_BLAS ? CUBLAS_STATUS_NOT_INITIALIZED : CUBLAS_STATUS_INVALID_VALUE;
}

static cublasStatus_t create(const char *call, enum fake_kind kind, size_t size, void *handle)
{
    cublasStatus_t s = enter(call);
    void *h = s == CUBLAS_STATUS_SUCCESS ? fake_handle_new(kind, size) : NULL;
    memcpy(handle, &h, sizeof h);
    return leave(s);
}

static cublasStatus_t destroy(const char *call, enum fake_kind kind, void *handle)
{
    cublasStatus_t s = enter(call);
    if (s == CUBLAS_STATUS_SUCCESS) s = check(handle, kind, call);
    if (s == CUBLAS_STATUS_SUCCESS) ((struct fake_handle *)handle)->live = false;
    return leave(s);
}

/* A descriptor's attribute: where it is kept and how large it is. */
struct slot {
    void *at;
    size_t size;
};
#define SLOT(member) ((struct slot){&(member), sizeof(member)})

static cublasStatus_t set(struct slot slot, const char *call, int attribute, const void *value,
                          size_t size)
{
    if (!slot.at)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "%s: attribute %d is not known", call,
                      attribute);
    if (!value || size != slot.size)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "%s: attribute %d has %zu bytes, not %zu", call,
                      attribute, slot.size, size);
    memcpy(slot.at, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void)
{
    return 130100;
}

static const struct {
    cublasStatus_t status;
    const char *name, *text;
} statuses[] = {
    {CUBLAS_STATUS_SUCCESS, "CUBLAS_STATUS_SUCCESS", "the operation was successful"},
    {CUBLAS_STATUS_NOT_INITIALIZED, "CUBLAS_STATUS_NOT_INITIALIZED", "no library handle"},
    {CUBLAS_STATUS_ALLOC_FAILED, "CUBLAS_STATUS_ALLOC_FAILED", "an allocation failed"},
    {CUBLAS_STATUS_INVALID_VALUE, "CUBLAS_STATUS_INVALID_VALUE", "an argument is not valid"},
    {CUBLAS_STATUS_ARCH_MISMATCH, "CUBLAS_STATUS_ARCH_MISMATCH", "not with this device"},
    {CUBLAS_STATUS_MAPPING_ERROR, "CUBLAS_STATUS_MAPPING_ERROR", "memory could not be mapped"},
    {CUBLAS_STATUS_EXECUTION_FAILED, "CUBLAS_STATUS_EXECUTION_FAILED", "the device failed"},
    {CUBLAS_STATUS_INTERNAL_ERROR, "CUBLAS_STATUS_INTERNAL_ERROR", "an internal error"},
    {CUBLAS_STATUS_NOT_SUPPORTED, "CUBLAS_STATUS_NOT_SUPPORTED", "not supported"},
};

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++)
        if (statuses[i].status == status) return statuses[i].name;
    return "unknown status";
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++)
        if (statuses[i].status == status) return statuses[i].text;
    return "unknown status";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    return create("cublasLtCreate", FAKE_BLAS, sizeof **handle, handle);
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    return destroy("cublasLtDestroy", FAKE_BLAS, handle);
}

/* --- descriptors --- */

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale_type)
{
    cublasStatus_t s = create("cublasLtMatmulDescCreate", FAKE_BLAS_DESC, sizeof **desc, desc);
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    (*desc)->compute = compute;
    (*desc)->scale_type = scale_type;
    (*desc)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    (*desc)->bias_type = -1;
    return s;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    return destroy("cublasLtMatmulDescDestroy", FAKE_BLAS_DESC, desc);
}

static struct slot desc_slot(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute)
{
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE: return SLOT(desc->compute);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE: return SLOT(desc->scale_type);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: return SLOT(desc->pointer_mode);
    case CUBLASLT_MATMUL_DESC_TRANSA: return SLOT(desc->trans_a);
    case CUBLASLT_MATMUL_DESC_TRANSB: return SLOT(desc->trans_b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return SLOT(desc->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return SLOT(desc->bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return SLOT(desc->bias_type);
    }
    return (struct slot){0};
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t size)
{
    static const char call[] = "cublasLtMatmulDescSetAttribute";
    cublasStatus_t s = enter(call);
    if (s == CUBLAS_STATUS_SUCCESS) s = check(desc, FAKE_BLAS_DESC, call);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = set(desc_slot(desc, attribute), call, (int)attribute, value, size);
    return leave(s);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t ld)
{
    cublasStatus_t s =
        create("cublasLtMatrixLayoutCreate", FAKE_BLAS_LAYOUT, sizeof **layout, layout);
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    (*layout)->type = type;
    (*layout)->rows = rows;
    (*layout)->columns = columns;
    (*layout)->ld = ld;
    (*layout)->batch_count = 1;
    return s;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    return destroy("cublasLtMatrixLayoutDestroy", FAKE_BLAS_LAYOUT, layout);
}

static struct slot layout_slot(cublasLtMatrixLayout_t layout,
                               cublasLtMatrixLayoutAttribute_t attribute)
{
    switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE: return SLOT(layout->type);
    case CUBLASLT_MATRIX_LAYOUT_ORDER: return SLOT(layout->order);
    case CUBLASLT_MATRIX_LAYOUT_ROWS: return SLOT(layout->rows);
    case CUBLASLT_MATRIX_LAYOUT_COLS: return SLOT(layout->columns);
    case CUBLASLT_MATRIX_LAYOUT_LD: return SLOT(layout->ld);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: return SLOT(layout->batch_count);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: return SLOT(layout->batch_stride);
    }
    return (struct slot){0};
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t size)
{
    static const char call[] = "cublasLtMatrixLayoutSetAttribute";
    cublasStatus_t s = enter(call);
    if (s == CUBLAS_STATUS_SUCCESS) s = check(layout, FAKE_BLAS_LAYOUT, call);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = set(layout_slot(layout, attribute), call, (int)attribute, value, size);
    return leave(s);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    cublasStatus_t s = create("cublasLtMatmulPreferenceCreate", FAKE_BLAS_PREFERENCE,
                              sizeof **preference, preference);
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    (*preference)->reductions = UINT32_MAX;
    for (int i = 0; i < 4; i++)
        (*preference)->align[i] = ALIGN_DEFAULT;
    return s;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    return destroy("cublasLtMatmulPreferenceDestroy", FAKE_BLAS_PREFERENCE, preference);
}

static struct slot preference_slot(cublasLtMatmulPreference_t p,
                                   cublasLtMatmulPreferenceAttributes_t attribute)
{
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return SLOT(p->workspace_bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return SLOT(p->reductions);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return SLOT(p->align[0]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return SLOT(p->align[1]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return SLOT(p->align[2]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return SLOT(p->align[3]);
    }
    return (struct slot){0};
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t size)
{
    static const char call[] = "cublasLtMatmulPreferenceSetAttribute";
    cublasStatus_t s = enter(call);
    if (s == CUBLAS_STATUS_SUCCESS) s = check(preference, FAKE_BLAS_PREFERENCE, call);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = set(preference_slot(preference, attribute), call, (int)attribute, value, size);
    return leave(s);
}

/* --- the problem --- */

/* A matrix as the product walks it: element (i, j) at at + i * row_step + j * column_step. */
struct matrix {
    char *at;
    uint32_t type;
    uint64_t rows, columns;
    uint64_t row_step, column_step, batch_step; /* elements */
    size_t extent_bytes;                        /* of one matrix */
};

struct product {
    struct matrix part[4]; /* op(A), op(B), C, D */
    uint64_t m, n, k;
    int32_t batch_count;
    float alpha, beta;
    const void *bias;
    enum algorithm algorithm;
    uint32_t sums_type; /* of SPLIT's first half */
    float *workspace;
};
enum { A, B, C, D };

static size_t type_bytes(uint32_t type)
{
    return type == CUDA_R_32F ? 4 : 2;
}

static size_t split_bytes(const struct product *p)
{
    return (size_t)p->m * p->n * sizeof(float) * (size_t)p->batch_count;
}

static cublasStatus_t view(struct matrix *v, cublasLtMatrixLayout_t l, bool transposed, char name)
{
    bool row_major = l->order == CUBLASLT_ORDER_ROW;
    uint64_t long_side = row_major ? l->columns : l->rows, lines = row_major ? l->rows : l->columns;
    if (l->type != CUDA_R_32F && l->type != CUDA_R_16BF)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "%c: data type %u", name, l->type);
    if (l->order != CUBLASLT_ORDER_COL && !row_major)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "%c: order %d", name, l->order);
    if (l->rows == 0 || l->columns == 0 || l->batch_count < 1 || l->ld < (int64_t)long_side)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "%c: %zu x %zu, ld %ld, %d of them", name,
                      (size_t)l->rows, (size_t)l->columns, (long)l->ld, l->batch_count);
    *v = (struct matrix){.type = l->type,
                         .rows = transposed ? l->columns : l->rows,
                         .columns = transposed ? l->rows : l->columns,
                         .row_step = row_major != transposed ? (uint64_t)l->ld : 1,
                         .column_step = row_major != transposed ? 1 : (uint64_t)l->ld,
                         .batch_step = (uint64_t)l->batch_stride};
    v->extent_bytes = ((lines - 1) * (uint64_t)l->ld + long_side) * type_bytes(l->type);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t check_types(cublasLtMatmulDesc_t desc, const struct matrix part[4])
{
    if (desc->compute != CUBLAS_COMPUTE_32F && desc->compute != CUBLAS_COMPUTE_32F_PEDANTIC &&
        desc->compute != CUBLAS_COMPUTE_32F_FAST_TF32)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "compute type %d", desc->compute);
    if (desc->scale_type != CUDA_R_32F || desc->pointer_mode != CUBLASLT_POINTER_MODE_HOST)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "scale type %d, pointer mode %d",
                      desc->scale_type, desc->pointer_mode);
    if (part[A].type != part[B].type || part[C].type != part[D].type ||
        (part[A].type == CUDA_R_32F && part[D].type != CUDA_R_32F))
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "types %u x %u + %u -> %u", part[A].type,
                      part[B].type, part[C].type, part[D].type);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t check_epilogue(cublasLtMatmulDesc_t desc, const struct matrix *d)
{
    if (desc->epilogue == CUBLASLT_EPILOGUE_DEFAULT) return CUBLAS_STATUS_SUCCESS;
    if (desc->epilogue != CUBLASLT_EPILOGUE_BIAS)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "epilogue %u", desc->epilogue);
    if (d->row_step != 1)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "a bias along the columns of D");
    if (desc->bias_type != -1 && desc->bias_type != (int32_t)d->type)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "a bias of type %d for D of type %u",
                      desc->bias_type, d->type);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t check_batch(const cublasLtMatrixLayout_t layout[4])
{
    for (int i = 0; i < 4; i++)
        if (layout[i]->batch_count != layout[D]->batch_count)
            return refuse(CUBLAS_STATUS_INVALID_VALUE, "%c: %d matrices, D has %d", "ABCD"[i],
                          layout[i] -> batch_count, layout[D] -> batch_count);
    if (layout[D]->batch_count > 1 && layout[D]->batch_stride == 0)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "all matrices D are at one place");
    return CUBLAS_STATUS_SUCCESS;
}

/* Fills in what the descriptors say. */
static cublasStatus_t describe(struct product *p, cublasLtMatmulDesc_t desc,
                               const cublasLtMatrixLayout_t layout[4], const char *call)
{
    const bool transposed[4] = {desc->trans_a != CUBLAS_OP_N, desc->trans_b != CUBLAS_OP_N};
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    struct matrix *v = p->part;
    for (int i = 0; i < 4 && s == CUBLAS_STATUS_SUCCESS; i++)
        if ((s = check(layout[i], FAKE_BLAS_LAYOUT, call)) == CUBLAS_STATUS_SUCCESS)
            s = view(&v[i], layout[i], transposed[i], "ABCD"[i]);
    if (s == CUBLAS_STATUS_SUCCESS) s = check_types(desc, v);
    if (s == CUBLAS_STATUS_SUCCESS) s = check_epilogue(desc, &v[D]);
    if (s == CUBLAS_STATUS_SUCCESS) s = check_batch(layout);
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    p->m = v[D].rows;
    p->n = v[D].columns;
    p->k = v[A].columns;
    p->batch_count = layout[D]->batch_count;
    if (v[A].rows != p->m || v[B].rows != p->k || v[B].columns != p->n || v[C].rows != p->m ||
        v[C].columns != p->n || layout[C]->order != layout[D]->order)
        return refuse(CUBLAS_STATUS_INVALID_VALUE,
                      "(%zu x %zu) (%zu x %zu) + %zu x %zu -> %zu x %zu", (size_t)v[A].rows,
                      (size_t)v[A].columns, (size_t)v[B].rows, (size_t)v[B].columns,
                      (size_t)v[C].rows, (size_t)v[C].columns, (size_t)p->m, (size_t)p->n);
    return CUBLAS_STATUS_SUCCESS;
}

/* Whether each row (or column, as it is stored) and each matrix begins at a multiple of 16 bytes. */
static bool rows_are_aligned(const struct matrix *v)
{
    uint64_t ld = v->row_step > v->column_step ? v->row_step : v->column_step;
    size_t bytes = type_bytes(v->type);
    return ld * bytes % ROW_ALIGN == 0 && v->batch_step * bytes % ROW_ALIGN == 0;
}

static bool is_wide(const struct product *p, const uint32_t align[4])
{
    bool wide = true;
    for (int i = 0; i < 4; i++)
        wide &= align[i] >= ROW_ALIGN && rows_are_aligned(&p->part[i]);
    return wide;
}

/* --- heuristics --- */

static uint32_t alignment_of(const void *p)
{
    uintptr_t bits = (uintptr_t)p | ALIGN_DEFAULT;
    return (uint32_t)(bits & -bits);
}

static void offer(cublasLtMatmulHeuristicResult_t *r, struct choice *choice, uint32_t algorithm,
                  size_t workspace)
{
    *r = (cublasLtMatmulHeuristicResult_t){.workspaceSize = workspace, .wavesCount = 1.0f};
    choice->algorithm = algorithm;
    memcpy(&r->algo, choice, sizeof *choice);
}

static int find(const struct product *p, cublasLtMatmulDesc_t desc, cublasLtMatmulPreference_t pref,
                int wanted, cublasLtMatmulHeuristicResult_t results[])
{
    struct choice choice = {.bias_align = alignment_of(desc->bias),
                            .a_type = p->part[A].type,
                            .d_type = p->part[D].type,
                            .sums_type = CUDA_R_32F};
    bool wide = is_wide(p, pref->align);
    int count = 0;
    memcpy(choice.align, pref->align, sizeof choice.align);
    if (pref->reductions &
        (CUBLASLT_REDUCTION_SCHEME_INPLACE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE))
        choice.sums_type = choice.d_type;
    if (wide && pref->reductions != 0 && split_bytes(p) <= pref->workspace_bytes)
        offer(&results[count++], &choice, SPLIT, split_bytes(p));
    if (wide && count < wanted) offer(&results[count++], &choice, PLAIN, 0);
    if (count < wanted) offer(&results[count++], &choice, NARROW, 0);
    return count;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference,
                                              int wanted_count,
                                              cublasLtMatmulHeuristicResult_t results[], int *count)
{
    static const char call[] = "cublasLtMatmulAlgoGetHeuristic";
    const cublasLtMatrixLayout_t layout[4] = {a, b, c, d};
    struct product p = {0};
    cublasStatus_t s = enter(call);
    *count = 0;
    if (s == CUBLAS_STATUS_SUCCESS && wanted_count < 1) s = CUBLAS_STATUS_INVALID_VALUE;
    if (s == CUBLAS_STATUS_SUCCESS) s = check(handle, FAKE_BLAS, call);
    if (s == CUBLAS_STATUS_SUCCESS) s = check(desc, FAKE_BLAS_DESC, call);
    if (s == CUBLAS_STATUS_SUCCESS) s = check(preference, FAKE_BLAS_PREFERENCE, call);
    if (s == CUBLAS_STATUS_SUCCESS) s = describe(&p, desc, layout, call);
    if (s == CUBLAS_STATUS_SUCCESS) *count = find(&p, desc, preference, wanted_count, results);
    return leave(s);
}

/* --- the product --- */

static float bf16_to_float(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint16_t bf16_of_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if (f != f) return 0x7fff;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static float load(uint32_t type, const void *at, uint64_t index)
{
    return type == CUDA_R_32F ? ((const float *)at)[index]
                              : bf16_to_float(((const uint16_t *)at)[index]);
}

static void store(uint32_t type, void *at, uint64_t index, float value)
{
    if (type == CUDA_R_32F)
        ((float *)at)[index] = value;
    else
        ((uint16_t *)at)[index] = bf16_of_float(value);
}

/* What is left of a number in memory of the type. */
static float typed(uint32_t type, float value)
{
    return type == CUDA_R_16BF ? bf16_to_float(bf16_of_float(value)) : value;
}

/* The matrix as rows of k numbers: of op(A) its rows, of op(B) its columns. */
static float *unpack(const struct matrix *v, uint64_t batch, uint64_t lines, uint64_t k,
                     uint64_t line_step, uint64_t k_step)
{
    float *to = fake_zeroed(lines * k * sizeof *to);
    uint64_t first = batch * v->batch_step;
    for (uint64_t i = 0; i < lines; i++)
        for (uint64_t j = 0; j < k; j++)
            to[i * k + j] = load(v->type, v->at, first + i * line_step + j * k_step);
    return to;
}

static float dot(const float *a, const float *b, uint64_t count)
{
    float lane[LANES] = {0}, rest = 0;
    uint64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += a[i + (uint64_t)l] * b[i + (uint64_t)l];
    for (; i < count; i++)
        rest += a[i] * b[i];
    for (int l = 0; l < LANES; l++)
        rest += lane[l];
    return rest;
}

static void finish(const struct product *p, uint64_t batch, uint64_t i, uint64_t j, float sum)
{
    const struct matrix *c = &p->part[C], *d = &p->part[D];
    float value = p->alpha * sum;
    if (p->beta != 0) /* else C is not read: NaN there is nothing */
        value += p->beta *
                 load(c->type, c->at, batch * c->batch_step + i * c->row_step + j * c->column_step);
    if (p->bias) value += load(d->type, p->bias, i);
    store(d->type, d->at, batch * d->batch_step + i * d->row_step + j * d->column_step, value);
}

static void multiply(const struct product *p, uint64_t batch)
{
    const struct matrix *va = &p->part[A], *vb = &p->part[B];
    uint64_t m = p->m, n = p->n, k = p->k, first = p->algorithm == SPLIT ? k / 2 : 0;
    float *a = unpack(va, batch, m, k, va->row_step, va->column_step);
    float *b = unpack(vb, batch, n, k, vb->column_step, vb->row_step);
    float *partial = first ? p->workspace + batch * m * n : NULL;
    for (uint64_t at = 0; partial && at < m * n; at++)
        partial[at] = typed(p->sums_type, dot(a + at / n * k, b + at % n * k, first));
    for (uint64_t at = 0; at < m * n; at++) {
        float sum = dot(a + at / n * k + first, b + at % n * k + first, k - first);
        finish(p, batch, at / n, at % n, partial ? partial[at] + sum : sum);
    }
    free(a);
    free(b);
}

static size_t batch_bytes(const struct product *p, int part)
{
    const struct matrix *v = &p->part[part];
    return (size_t)(p->batch_count - 1) * v->batch_step * type_bytes(v->type) + v->extent_bytes;
}

static void run_product(void *arg)
{
    const struct product *p = arg;
    static const char name[] = "cublasLtMatmul";
    bool alive = true;
    pthread_mutex_lock(&fake.lock);
    for (int i = 0; i < 4; i++)
        if (i != C || p->beta != 0)
            alive &= fake_memory_alive(name, p->part[i].at, batch_bytes(p, i));
    if (p->bias) alive &= fake_memory_alive(name, p->bias, 1);
    if (p->algorithm == SPLIT) alive &= fake_memory_alive(name, p->workspace, split_bytes(p));
    pthread_mutex_unlock(&fake.lock);
    for (int32_t batch = 0; alive && batch < p->batch_count; batch++)
        multiply(p, (uint64_t)batch);
}

/* --- the call --- */

static cublasStatus_t check_range(const char *what, const void *at, size_t bytes)
{
    if (fake_memory_check(what, at, bytes, true) == cudaSuccess) return CUBLAS_STATUS_SUCCESS;
    fake_fault_locked("%s: not %zu bytes of device memory", what, bytes);
    return CUBLAS_STATUS_EXECUTION_FAILED;
}

static cublasStatus_t check_memory(const struct product *p)
{
    static const char *const what[4] = {"cublasLtMatmul A", "cublasLtMatmul B", "cublasLtMatmul C",
                                        "cublasLtMatmul D"};
    const char *d = p->part[D].at, *d_end = d + batch_bytes(p, D);
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    for (int i = 0; i < 4 && s == CUBLAS_STATUS_SUCCESS; i++) {
        const char *at = p->part[i].at;
        if (i == C && p->beta == 0) continue;
        s = check_range(what[i], at, batch_bytes(p, i));
        if (i < C && at < d_end && d < at + batch_bytes(p, i))
            s = refuse(CUBLAS_STATUS_INVALID_VALUE, "%c and D overlap", "ABCD"[i]);
    }
    if (s == CUBLAS_STATUS_SUCCESS && p->bias)
        s = check_range("cublasLtMatmul bias", p->bias, p->m * type_bytes(p->part[D].type));
    return s;
}

static cublasStatus_t check_alignment(const struct product *p, const struct choice *choice)
{
    for (int i = 0; i < 4; i++) {
        uint32_t is = alignment_of(p->part[i].at);
        if (i == C && p->beta == 0) continue;
        if (is < choice->align[i] || is < type_bytes(p->part[i].type))
            return refuse(CUBLAS_STATUS_INVALID_VALUE,
                          "%c is aligned to %u bytes, the algorithm was chosen for %u", "ABCD"[i],
                          is, choice -> align[i]);
    }
    if (p->bias && alignment_of(p->bias) < choice->bias_align)
        return refuse(CUBLAS_STATUS_INVALID_VALUE,
                      "the bias is aligned to %u bytes, the algorithm was chosen for %u",
                      alignment_of(p->bias), choice->bias_align);
    return CUBLAS_STATUS_SUCCESS;
}

/* Without an algorithm the real library chooses one, under the same rules. */
static cublasStatus_t check_algorithm(struct product *p, const cublasLtMatmulAlgo_t *algo,
                                      void *workspace, size_t workspace_size)
{
    struct choice choice = {.algorithm = NARROW,
                            .align = {1, 1, 1, 1},
                            .a_type = p->part[A].type,
                            .d_type = p->part[D].type};
    if (algo) memcpy(&choice, algo, sizeof choice);
    if (choice.algorithm < SPLIT || choice.algorithm > NARROW || choice.a_type != p->part[A].type ||
        choice.d_type != p->part[D].type ||
        (choice.algorithm != NARROW && !is_wide(p, choice.align)))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the algorithm is not for this product");
    p->algorithm = choice.algorithm;
    p->sums_type = choice.sums_type;
    p->workspace = workspace;
    if ((uintptr_t)workspace % WORKSPACE_ALIGN != 0)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the workspace is not aligned to 256 bytes");
    if (p->algorithm == SPLIT && (!workspace || workspace_size < split_bytes(p)))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "a workspace of %zu bytes, %zu are needed",
                      workspace ? workspace_size : 0, split_bytes(p));
    if (workspace && check_range("cublasLtMatmul workspace", workspace, workspace_size))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    return check_alignment(p, &choice);
}

static cublasStatus_t launch(const struct product *product, cudaStream_t stream, const char *call)
{
    cudaError_t e = fake_stream_check(stream, call);
    if (e != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
    if (stream->device != fake_thread()->device)
        return refuse(CUBLAS_STATUS_EXECUTION_FAILED, "the stream is of another device");
    struct product *p = fake_zeroed(sizeof *p);
    *p = *product;
    return status_of(fake_stream_push(stream, fake_task_new(call, run_product, free, p)));
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_size, cudaStream_t stream)
{
    static const char call[] = "cublasLtMatmul";
    const cublasLtMatrixLayout_t layout[4] = {a_layout, b_layout, c_layout, d_layout};
    struct product p = {0};
    cublasStatus_t s = enter(call);
    if (s == CUBLAS_STATUS_SUCCESS && (!alpha || !beta || !a || !b || !d))
        s = refuse(CUBLAS_STATUS_INVALID_VALUE, "an argument is NULL");
    if (s == CUBLAS_STATUS_SUCCESS) s = check(handle, FAKE_BLAS, call);
    if (s == CUBLAS_STATUS_SUCCESS) s = check(desc, FAKE_BLAS_DESC, call);
    if (s == CUBLAS_STATUS_SUCCESS) s = describe(&p, desc, layout, call);
    if (s != CUBLAS_STATUS_SUCCESS) return leave(s);
    p.alpha = *(const float *)alpha;
    p.beta = *(const float *)beta;
    p.part[A].at = (char *)a;
    p.part[B].at = (char *)b;
    p.part[C].at = (char *)c;
    p.part[D].at = d;
    if (desc->epilogue == CUBLASLT_EPILOGUE_BIAS) p.bias = desc->bias;
    if (desc->epilogue == CUBLASLT_EPILOGUE_BIAS && !p.bias)
        s = refuse(CUBLAS_STATUS_INVALID_VALUE, "the epilogue's bias is NULL");
    else if (p.beta != 0 && c == d && c_layout->ld != d_layout->ld)
        s = refuse(CUBLAS_STATUS_INVALID_VALUE, "C is D, with another layout");
    if (s == CUBLAS_STATUS_SUCCESS) s = check_algorithm(&p, algo, workspace, workspace_size);
    if (s == CUBLAS_STATUS_SUCCESS) s = check_memory(&p);
    if (s == CUBLAS_STATUS_SUCCESS) s = launch(&p, stream, call);
    return leave(s);
}
