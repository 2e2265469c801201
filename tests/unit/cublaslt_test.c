/* The stand-in for cuBLASLt's matmul: against a product in double precision for what the backend asks
 * of it, and that it refuses what the real library refuses. */
#include <cublasLt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/cuda_rig.h"

#define assert_blas(expression) assert_int_equal((expression), CUBLAS_STATUS_SUCCESS)

enum { WORKSPACE = 1 << 16 };

/* One product, as a wrapper would ask for it; fields are changed before `open`. */
struct rig {
    cudaDataType type, out_type;
    bool transposed_a, transposed_b, row_major, bias, in_place;
    uint64_t m, n, k, pad; /* pad: what each ld is larger than it must be */
    int32_t batch_count;
    float alpha, beta;
    uint64_t workspace_bytes;
    uint32_t align; /* what the preference says; 0: nothing */
    int which;      /* of the candidates */

    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t layout[4];
    cublasLtMatmulPreference_t preference;
    cudaStream_t stream;
    char *at[4], *bias_at, *workspace;
    size_t count[4]; /* elements of each matrix, batches and padding included */
    cublasLtMatmulHeuristicResult_t found[8];
    int found_count;
    uint32_t reductions;
};
enum { A, B, C, D };

static float bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
    memcpy(&f, &bits, 4);
    return f;
}

static float get(const char *at, cudaDataType type, size_t i)
{
    if (type == CUDA_R_32F) return ((const float *)at)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)at)[i] << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static void put(char *at, cudaDataType type, size_t i, float value)
{
    uint32_t bits;
    if (type == CUDA_R_32F) {
        ((float *)at)[i] = value;
        return;
    }
    value = bf16(value);
    memcpy(&bits, &value, 4);
    ((uint16_t *)at)[i] = (uint16_t)(bits >> 16);
}

/* From -1 to 1. */
static float next_number(uint32_t *random)
{
    *random = *random * 1664525 + 1013904223;
    return (float)(*random >> 8) / (1 << 23) - 1;
}

static char *new_numbers(uint32_t *random, cudaDataType type, size_t count)
{
    char *p = new_memory(count * (type == CUDA_R_32F ? 4 : 2));
    for (size_t i = 0; i < count; i++)
        put(p, type, i, next_number(random));
    return p;
}

static cudaDataType type_of(const struct rig *r, int part)
{
    return part < C ? r->type : r->out_type;
}

/* Rows and columns as stored. */
static void shape(const struct rig *r, int part, uint64_t *rows, uint64_t *columns)
{
    bool transposed = (part == A && r->transposed_a) || (part == B && r->transposed_b);
    uint64_t high = part == B ? r->k : r->m, wide = part == A ? r->k : r->n;
    *rows = transposed ? wide : high;
    *columns = transposed ? high : wide;
}

static uint64_t ld_of(const struct rig *r, int part)
{
    uint64_t rows, columns;
    shape(r, part, &rows, &columns);
    return (r->row_major ? columns : rows) + r->pad;
}

static size_t matrix_count(const struct rig *r, int part)
{
    uint64_t rows, columns;
    shape(r, part, &rows, &columns);
    return ld_of(r, part) * (r->row_major ? rows : columns);
}

static void set_desc(struct rig *r, cublasLtMatmulDescAttributes_t a, const void *v, size_t size)
{
    assert_blas(cublasLtMatmulDescSetAttribute(r->desc, a, v, size));
}

static void open_layout(struct rig *r, int part)
{
    uint64_t rows, columns;
    int64_t stride = (int64_t)matrix_count(r, part);
    int32_t order = r->row_major ? CUBLASLT_ORDER_ROW : CUBLASLT_ORDER_COL;
    cublasLtMatrixLayout_t *l = &r->layout[part];
    shape(r, part, &rows, &columns);
    assert_blas(
        cublasLtMatrixLayoutCreate(l, type_of(r, part), rows, columns, (int64_t)ld_of(r, part)));
    assert_blas(cublasLtMatrixLayoutSetAttribute(*l, CUBLASLT_MATRIX_LAYOUT_ORDER, &order, 4));
    assert_blas(cublasLtMatrixLayoutSetAttribute(*l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                 &r->batch_count, 4));
    assert_blas(cublasLtMatrixLayoutSetAttribute(*l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                 &stride, 8));
}

static void open_desc(struct rig *r)
{
    int32_t t = CUBLAS_OP_T;
    uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    assert_blas(cublasLtMatmulDescCreate(&r->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    if (r->transposed_a) set_desc(r, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
    if (r->transposed_b) set_desc(r, CUBLASLT_MATMUL_DESC_TRANSB, &t, sizeof t);
    if (!r->bias) return;
    set_desc(r, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    set_desc(r, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &r->bias_at, sizeof r->bias_at);
}

static void open_preference(struct rig *r)
{
    assert_blas(cublasLtMatmulPreferenceCreate(&r->preference));
    assert_blas(cublasLtMatmulPreferenceSetAttribute(
        r->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &r->workspace_bytes, 8));
    assert_blas(cublasLtMatmulPreferenceSetAttribute(
        r->preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &r->reductions, 4));
    for (int i = 0; r->align && i < 4; i++)
        assert_blas(cublasLtMatmulPreferenceSetAttribute(
            r->preference,
            (cublasLtMatmulPreferenceAttributes_t)(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i),
            &r->align, 4));
}

static void open_rig(struct rig *r)
{
    uint32_t random = 7;
    for (int i = 0; i < 4; i++) {
        r->count[i] = matrix_count(r, i) * (size_t)r->batch_count;
        r->at[i] = new_numbers(&random, type_of(r, i), r->count[i]);
    }
    if (r->in_place) {
        assert_cuda(cudaFree(r->at[D]));
        r->at[D] = r->at[C];
    }
    r->bias_at = new_numbers(&random, r->out_type, r->m);
    r->workspace = new_memory(WORKSPACE);
    r->stream = new_stream();
    assert_blas(cublasLtCreate(&r->lt));
    open_desc(r);
    for (int i = 0; i < 4; i++)
        open_layout(r, i);
    open_preference(r);
}

static cublasStatus_t ask(struct rig *r)
{
    return cublasLtMatmulAlgoGetHeuristic(r->lt, r->desc, r->layout[A], r->layout[B], r->layout[C],
                                          r->layout[D], r->preference, 8, r->found,
                                          &r->found_count);
}

static cublasStatus_t multiply(struct rig *r)
{
    const cublasLtMatmulHeuristicResult_t *f = &r->found[r->which];
    return cublasLtMatmul(r->lt, r->desc, &r->alpha, r->at[A], r->layout[A], r->at[B], r->layout[B],
                          &r->beta, r->at[C], r->layout[C], r->at[D], r->layout[D], &f->algo,
                          f->workspaceSize ? r->workspace : NULL, f->workspaceSize, r->stream);
}

static void close_rig(struct rig *r)
{
    for (int i = 0; i < 4; i++) {
        assert_blas(cublasLtMatrixLayoutDestroy(r->layout[i]));
        if (i != D || !r->in_place) assert_cuda(cudaFree(r->at[i]));
    }
    assert_cuda(cudaFree(r->bias_at));
    assert_cuda(cudaFree(r->workspace));
    assert_blas(cublasLtMatmulPreferenceDestroy(r->preference));
    assert_blas(cublasLtMatmulDescDestroy(r->desc));
    assert_blas(cublasLtDestroy(r->lt));
    assert_cuda(cudaStreamDestroy(r->stream));
}

static struct rig plain_rig(void)
{
    return (struct rig){.type = CUDA_R_16BF,
                        .out_type = CUDA_R_16BF,
                        .m = 16,
                        .n = 8,
                        .k = 24,
                        .batch_count = 1,
                        .alpha = 1,
                        .workspace_bytes = WORKSPACE,
                        .reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE};
}

/* --- against a naive product --- */

static size_t index_of(const struct rig *r, int part, uint64_t batch, uint64_t i, uint64_t j)
{
    bool transposed = (part == A && r->transposed_a) || (part == B && r->transposed_b);
    uint64_t row = transposed ? j : i, column = transposed ? i : j;
    size_t in = r->row_major ? row * ld_of(r, part) + column : column * ld_of(r, part) + row;
    return batch * matrix_count(r, part) + in;
}

static double wanted(const struct rig *r, const float *c, uint64_t batch, uint64_t i, uint64_t j)
{
    double sum = 0;
    for (uint64_t l = 0; l < r->k; l++)
        sum += (double)get(r->at[A], r->type, index_of(r, A, batch, i, l)) *
               get(r->at[B], r->type, index_of(r, B, batch, l, j));
    sum *= r->alpha;
    if (r->beta != 0) sum += (double)r->beta * c[index_of(r, C, batch, i, j)];
    return r->bias ? sum + get(r->bias_at, r->out_type, i) : sum;
}

static void compare(const struct rig *r, const float *c)
{
    for (uint64_t batch = 0; batch < (uint64_t)r->batch_count; batch++)
        for (uint64_t i = 0; i < r->m; i++)
            for (uint64_t j = 0; j < r->n; j++) {
                double want = wanted(r, c, batch, i, j);
                double got = get(r->at[D], r->out_type, index_of(r, D, batch, i, j));
                double slack = r->out_type == CUDA_R_32F ? 1e-5 : fabs(want) / 250 + 1e-5;
                if (!(fabs(got - want) <= slack))
                    fail_msg("(%zu, %zu): %g, not %g", (size_t)i, (size_t)j, got, want);
            }
}

/* Every candidate that is offered computes it. */
static void check_product(struct rig r)
{
    open_rig(&r);
    assert_blas(ask(&r));
    assert_true(r.found_count >= 1);
    float *c = calloc(r.count[C], sizeof *c);
    for (r.which = 0; r.which < r.found_count; r.which++) {
        for (size_t i = 0; i < r.count[C]; i++)
            c[i] = get(r.at[C], r.out_type, i);
        assert_blas(multiply(&r));
        assert_cuda(cudaStreamSynchronize(r.stream));
        compare(&r, c);
    }
    free(c);
    close_rig(&r);
}

static void products_are_right(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 256; bits++) {
        struct rig r = plain_rig();
        r.transposed_a = bits & 1;
        r.transposed_b = bits & 2;
        r.bias = bits & 4;
        r.beta = bits & 8 ? 0.5f : 0.0f;
        r.in_place = bits & 16;
        r.out_type = bits & 32 ? CUDA_R_32F : CUDA_R_16BF;
        r.pad = bits & 64 ? 8 : 0;
        r.row_major = bits & 128;
        if (r.row_major && r.bias) continue;
        check_product(r);
    }
}

/* What the real library may do with half of a sum unless it is told not to. */
static void sums_that_may_be_narrow_are(void **state)
{
    (void)state;
    for (int narrow = 0; narrow < 2; narrow++) {
        struct rig r = plain_rig();
        if (narrow) r.reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
        open_rig(&r);
        for (uint64_t l = 0; l < r.k; l++) { /* 1 + 2^-9, then -1 */
            float a = l == 0 ? 1 : l == 1 ? 0x1p-9f : l + 1 == r.k ? -1 : 0;
            put(r.at[A], r.type, index_of(&r, A, 0, 0, l), a);
            put(r.at[B], r.type, index_of(&r, B, 0, l, 0), 1);
        }
        assert_blas(ask(&r));
        assert_blas(multiply(&r));
        assert_cuda(cudaStreamSynchronize(r.stream));
        float got = get(r.at[D], r.out_type, index_of(&r, D, 0, 0, 0));
        assert_true(got == (narrow ? 0 : 0x1p-9f));
        close_rig(&r);
    }
}

static void shapes_need_not_be_even(void **state)
{
    struct rig r = plain_rig();
    (void)state;
    r.m = 5, r.n = 3, r.k = 7, r.align = 2, r.transposed_a = true, r.beta = 1, r.alpha = -2;
    check_product(r);
    r.type = r.out_type = CUDA_R_32F, r.bias = true;
    check_product(r);
    r.m = r.n = r.k = 1;
    check_product(r);
}

static void batches_are_products_of_their_own(void **state)
{
    struct rig r = plain_rig();
    (void)state;
    r.batch_count = 3, r.beta = 1, r.in_place = true;
    check_product(r);
}

static void without_beta_what_was_there_is_nothing(void **state)
{
    struct rig r = plain_rig();
    (void)state;
    open_rig(&r);
    memset(r.at[C], 0xff, r.count[C] * 2);
    assert_blas(ask(&r));
    assert_blas(multiply(&r));
    assert_cuda(cudaStreamSynchronize(r.stream));
    assert_false(isnan(get(r.at[D], r.out_type, 0)));
    close_rig(&r);
}

static void candidates_fit_what_was_said(void **state)
{
    struct rig r = plain_rig();
    (void)state;
    open_rig(&r);
    assert_blas(ask(&r));
    assert_int_equal(r.found_count, 3);
    assert_int_equal(r.found[0].workspaceSize, 16 * 8 * 4);
    close_rig(&r);
    r = plain_rig();
    r.workspace_bytes = 0;
    open_rig(&r);
    assert_blas(ask(&r));
    assert_int_equal(r.found_count, 2);
    close_rig(&r);
    r = plain_rig();
    r.align = 8;
    open_rig(&r);
    assert_blas(ask(&r));
    assert_int_equal(r.found_count, 1);
    close_rig(&r);
}

static void a_product_can_be_recorded(void **state)
{
    struct rig r = plain_rig();
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    (void)state;
    open_rig(&r);
    assert_blas(ask(&r));
    float one = get(r.at[A], r.type, 0);
    assert_cuda(cudaStreamBeginCapture(r.stream, cudaStreamCaptureModeThreadLocal));
    assert_blas(multiply(&r));
    assert_cuda(cudaStreamEndCapture(r.stream, &graph));
    assert_cuda(cudaGraphInstantiate(&exec, graph, 0));
    put(r.at[A], r.type, 0, one + 1);
    assert_cuda(cudaGraphLaunch(exec, r.stream));
    assert_cuda(cudaStreamSynchronize(r.stream));
    compare(&r, NULL);
    assert_cuda(cudaGraphDestroy(graph));
    assert_cuda(cudaGraphExecDestroy(exec));
    close_rig(&r);
}

/* --- what is refused --- */

static void bad_compute(struct rig *r)
{
    int32_t fp16 = 64;
    set_desc(r, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, &fp16, sizeof fp16);
}
static void bad_bias_type(struct rig *r)
{
    int32_t type = CUDA_R_32F;
    set_desc(r, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type);
}
static void bad_pointer_mode(struct rig *r)
{
    int32_t mode = CUBLASLT_POINTER_MODE_DEVICE;
    set_desc(r, CUBLASLT_MATMUL_DESC_POINTER_MODE, &mode, sizeof mode);
}
static void bad_c_type(struct rig *r)
{
    uint32_t type = CUDA_R_32F;
    assert_blas(cublasLtMatrixLayoutSetAttribute(r->layout[C], CUBLASLT_MATRIX_LAYOUT_TYPE, &type,
                                                 sizeof type));
}
static void bad_b_type(struct rig *r)
{
    uint32_t type = CUDA_R_16F;
    assert_blas(cublasLtMatrixLayoutSetAttribute(r->layout[B], CUBLASLT_MATRIX_LAYOUT_TYPE, &type,
                                                 sizeof type));
}
static void bad_ld(struct rig *r)
{
    int64_t ld = 15;
    assert_blas(
        cublasLtMatrixLayoutSetAttribute(r->layout[D], CUBLASLT_MATRIX_LAYOUT_LD, &ld, sizeof ld));
}
static void bad_rows(struct rig *r)
{
    uint64_t rows = 15;
    assert_blas(cublasLtMatrixLayoutSetAttribute(r->layout[D], CUBLASLT_MATRIX_LAYOUT_ROWS, &rows,
                                                 sizeof rows));
}
static void bad_batch(struct rig *r)
{
    int32_t count = 2;
    assert_blas(cublasLtMatrixLayoutSetAttribute(r->layout[A], CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                 &count, sizeof count));
}

static void what_does_not_go_together_is_refused(void **state)
{
    static const struct {
        void (*spoil)(struct rig *r);
        cublasStatus_t status;
    } rows[] = {
        {bad_compute, CUBLAS_STATUS_NOT_SUPPORTED},
        {bad_bias_type, CUBLAS_STATUS_NOT_SUPPORTED},
        {bad_pointer_mode, CUBLAS_STATUS_NOT_SUPPORTED},
        {bad_c_type, CUBLAS_STATUS_NOT_SUPPORTED},
        {bad_b_type, CUBLAS_STATUS_NOT_SUPPORTED},
        {bad_ld, CUBLAS_STATUS_INVALID_VALUE},
        {bad_rows, CUBLAS_STATUS_INVALID_VALUE},
        {bad_batch, CUBLAS_STATUS_INVALID_VALUE},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct rig r = plain_rig();
        r.bias = true;
        open_rig(&r);
        assert_blas(ask(&r));
        rows[i].spoil(&r);
        assert_int_equal(multiply(&r), rows[i].status);
        assert_int_equal(ask(&r), rows[i].status);
        close_rig(&r);
    }
}

static void bad_workspace_missing(struct rig *r)
{
    r->workspace = NULL;
}
static void bad_workspace_small(struct rig *r)
{
    r->found[0].workspaceSize--;
}
static void bad_workspace_place(struct rig *r)
{
    r->workspace += 128;
}
static void bad_alignment(struct rig *r)
{
    r->at[B] += 16; /* the preference said 256 */
}
static void bad_bias(struct rig *r)
{
    char *none = NULL;
    set_desc(r, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &none, sizeof none);
}
static void bad_bias_alignment(struct rig *r)
{
    char *odd = r->bias_at + 2;
    set_desc(r, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &odd, sizeof odd);
}
static void bad_overlap(struct rig *r)
{
    r->at[D] = r->at[A];
}
static void bad_pointer(struct rig *r)
{
    r->at[A] = NULL;
}
static void bad_algorithm(struct rig *r)
{
    memset(&r->found[0].algo, 0, sizeof r->found[0].algo);
}
static void host_pointer(struct rig *r)
{
    static float host[4096];
    r->at[A] = (char *)host + (256 - (uintptr_t)host % 256);
}
static void too_short(struct rig *r)
{
    r->at[A] += 256;
}

static void buffers_that_do_not_fit_are_refused(void **state)
{
    static const struct {
        void (*spoil)(struct rig *r);
        cublasStatus_t status;
    } rows[] = {
        {bad_workspace_missing, CUBLAS_STATUS_INVALID_VALUE},
        {bad_workspace_small, CUBLAS_STATUS_INVALID_VALUE},
        {bad_workspace_place, CUBLAS_STATUS_INVALID_VALUE},
        {bad_alignment, CUBLAS_STATUS_INVALID_VALUE},
        {bad_bias, CUBLAS_STATUS_INVALID_VALUE},
        {bad_bias_alignment, CUBLAS_STATUS_INVALID_VALUE},
        {bad_overlap, CUBLAS_STATUS_INVALID_VALUE},
        {bad_pointer, CUBLAS_STATUS_INVALID_VALUE},
        {bad_algorithm, CUBLAS_STATUS_INVALID_VALUE},
        {host_pointer, CUBLAS_STATUS_EXECUTION_FAILED},
        {too_short, CUBLAS_STATUS_EXECUTION_FAILED},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct rig r = plain_rig(), whole;
        r.bias = true;
        open_rig(&r);
        assert_blas(ask(&r));
        whole = r;
        rows[i].spoil(&r);
        assert_int_equal(multiply(&r), rows[i].status);
        if (rows[i].status == CUBLAS_STATUS_INVALID_VALUE)
            close_rig(&whole);
        else
            fake_reset(); /* the device is sick */
    }
}

static void attributes_have_one_size(void **state)
{
    struct rig r = plain_rig();
    int64_t wide = 1;
    (void)state;
    open_rig(&r);
    assert_int_equal(
        cublasLtMatmulDescSetAttribute(r.desc, CUBLASLT_MATMUL_DESC_TRANSA, &wide, sizeof wide),
        CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(cublasLtMatmulDescSetAttribute(r.desc, (cublasLtMatmulDescAttributes_t)99,
                                                    &wide, sizeof wide),
                     CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(cublasLtMatrixLayoutDestroy(NULL), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(cublasLtDestroy(NULL), CUBLAS_STATUS_NOT_INITIALIZED);
    close_rig(&r);
}

static void the_nth_product_fails(void **state)
{
    struct rig r = plain_rig();
    (void)state;
    open_rig(&r);
    assert_blas(ask(&r));
    fake_knobs()->fail_call = "cublasLtMatmul";
    fake_knobs()->fail_at = 2;
    fake_knobs()->fail_with = CUBLAS_STATUS_INTERNAL_ERROR;
    assert_blas(multiply(&r));
    assert_int_equal(multiply(&r), CUBLAS_STATUS_INTERNAL_ERROR);
    assert_blas(multiply(&r));
    assert_cuda(cudaStreamSynchronize(r.stream));
    fake_knobs()->fail_call = "cublasLtMatmul";
    fake_knobs()->fail_at = 1;
    fake_knobs()->fail_with = 0; /* the device */
    assert_int_equal(multiply(&r), CUBLAS_STATUS_EXECUTION_FAILED);
    assert_int_equal(cudaStreamSynchronize(r.stream), cudaErrorUnknown);
    fake_reset();
}

static void memory_freed_before_the_product_is_a_fault(void **state)
{
    struct rig r = plain_rig();
    struct door door = DOOR;
    (void)state;
    open_rig(&r);
    assert_blas(ask(&r));
    put_door(r.stream, &door);
    assert_blas(multiply(&r));
    assert_cuda(cudaFree(r.at[B]));
    open_door(&door);
    assert_int_equal(cudaStreamSynchronize(r.stream), cudaErrorIllegalAddress);
    fake_reset();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(products_are_right),
        TEST(sums_that_may_be_narrow_are),
        TEST(shapes_need_not_be_even),
        TEST(batches_are_products_of_their_own),
        TEST(without_beta_what_was_there_is_nothing),
        TEST(candidates_fit_what_was_said),
        TEST(a_product_can_be_recorded),
        TEST(what_does_not_go_together_is_refused),
        TEST(buffers_that_do_not_fit_are_refused),
        TEST(attributes_have_one_size),
        TEST(the_nth_product_fails),
        TEST(memory_freed_before_the_product_is_a_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
