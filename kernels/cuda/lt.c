#include "kernels/cuda/lt.h"

#include <cublasLt.h>
#include <math.h>

#include "common/mem.h"
#include "kernels/cuda/check.h"

#define WORKSPACE_BYTES ((size_t)32 << 20) /* what cuBLAS itself takes on Hopper */

enum {
    BUCKET_FIRST = 6, /* 2^6 to 2^20 rows */
    BUCKETS = 15,
    TIMED_RUNS = 3,
    POINTER_ALIGN = 16, /* of operands, and of a bias */
};

/* Everything that cublasLt wants to know of a shape. The layouts of B, C and D get the number of rows
 * before each call. */
struct entry {
    struct lt_shape shape;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d; /* C is D */
    struct {
        bool known;
        cublasLtMatmulAlgo_t algo;
    } bucket[BUCKETS];
};

struct lt {
    cublasLtHandle_t handle;
    cublasLtMatmulPreference_t preference;
    cudaStream_t stream;
    void *workspace;
    uint16_t *bias; /* [bias_room] rounded */
    uint32_t bias_room, entries_count;
    struct entry entry[LT_SHAPES_MAX];
};

/* "cublasLt: WHAT of a product of ROWS x K by N: …" */
static enum err fail(cublasStatus_t c, const char *what, const struct lt_shape *s, uint32_t rows)
{
    if (c == CUBLAS_STATUS_SUCCESS) return OK;
    bool refused = c == CUBLAS_STATUS_NOT_SUPPORTED || c == CUBLAS_STATUS_INVALID_VALUE;
    return err_set(refused                           ? ERR_UNSUPPORTED
                   : c == CUBLAS_STATUS_ALLOC_FAILED ? ERR_MEMORY
                                                     : ERR_DEVICE,
                   "cublasLt: %s of a product of %u x %u by %u (%s rows%s): %s", what, rows, s->k,
                   s->n, s->out_wide ? "fp32" : "bf16", s->bias ? ", bias" : "",
                   cublasLtGetStatusName(c));
}

enum err lt_new(struct lt **out, cudaStream_t stream)
{
    static const struct lt_shape none = {0};
    const uint32_t align = POINTER_ALIGN;
    const uint32_t sums = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; /* of a split K: fp32, not bf16 */
    const size_t workspace = WORKSPACE_BYTES;
    enum err e;
    *out = NULL;
    struct lt *lt = mem_new(sizeof *lt);
    if (!lt) return ERR_MEMORY;
    lt->stream = stream;
    if ((e = fail(cublasLtCreate(&lt->handle), "the start", &none, 0)) != OK) goto fail;
    e = fail(cublasLtMatmulPreferenceCreate(&lt->preference), "the preference", &none, 0);
    if (e != OK) goto fail;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t bytes;
    } wishes[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
                  {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums, sizeof sums},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align, sizeof align},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align, sizeof align},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align, sizeof align},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align, sizeof align}};
    for (size_t i = 0; i < sizeof wishes / sizeof wishes[0]; i++) {
        e = fail(cublasLtMatmulPreferenceSetAttribute(lt->preference, wishes[i].name,
                                                      wishes[i].value, wishes[i].bytes),
                 "the preference", &none, 0);
        if (e != OK) goto fail;
    }
    if ((e = cuda_take(&lt->workspace, workspace, "cublasLt's workspace")) != OK) goto fail;
    *out = lt;
    return OK;
fail:
    lt_free(lt);
    return e;
}

static void entry_fini(struct entry *x)
{
    if (x->operation) cublasLtMatmulDescDestroy(x->operation);
    if (x->a) cublasLtMatrixLayoutDestroy(x->a);
    if (x->b) cublasLtMatrixLayoutDestroy(x->b);
    if (x->d) cublasLtMatrixLayoutDestroy(x->d);
    *x = (struct entry){0};
}

void lt_free(struct lt *lt)
{
    if (!lt) return;
    for (uint32_t i = 0; i < lt->entries_count; i++)
        entry_fini(&lt->entry[i]);
    if (lt->preference) cublasLtMatmulPreferenceDestroy(lt->preference);
    if (lt->handle) cublasLtDestroy(lt->handle);
    if (lt->workspace) cudaFree(lt->workspace);
    if (lt->bias) cudaFree(lt->bias);
    mem_free(lt);
}

static bool shape_equal(const struct lt_shape *a, const struct lt_shape *b)
{
    return a->n == b->n && a->k == b->k && a->out_wide == b->out_wide && a->bias == b->bias;
}

static cublasStatus_t point_to_bias(const struct entry *x, const void *bias)
{
    return cublasLtMatmulDescSetAttribute(x->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                          sizeof bias);
}

static cublasStatus_t set_operation(const struct entry *x)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cublasStatus_t c = cublasLtMatmulDescSetAttribute(x->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                      &transposed, sizeof transposed);
    if (c != CUBLAS_STATUS_SUCCESS || !x->shape.bias) return c;
    return cublasLtMatmulDescSetAttribute(x->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                          sizeof epilogue);
}

static enum err entry_init(struct entry *x, const struct lt_shape *s)
{
    const cudaDataType_t out = s->out_wide ? CUDA_R_32F : CUDA_R_16BF;
    cublasStatus_t c;
    *x = (struct entry){.shape = *s};
    if ((c = cublasLtMatmulDescCreate(&x->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F)) !=
            CUBLAS_STATUS_SUCCESS ||
        (c = set_operation(x)) != CUBLAS_STATUS_SUCCESS ||
        (c = cublasLtMatrixLayoutCreate(&x->a, CUDA_R_16BF, s->k, s->n, s->k)) !=
            CUBLAS_STATUS_SUCCESS ||
        (c = cublasLtMatrixLayoutCreate(&x->b, CUDA_R_16BF, s->k, 1, s->k)) !=
            CUBLAS_STATUS_SUCCESS ||
        (c = cublasLtMatrixLayoutCreate(&x->d, out, s->n, 1, s->n)) != CUBLAS_STATUS_SUCCESS) {
        entry_fini(x);
        return fail(c, "the description", s, 0);
    }
    return OK;
}

static enum err find_entry(struct lt *lt, const struct lt_shape *s, struct entry **found)
{
    enum err e;
    *found = NULL;
    for (uint32_t i = 0; i < lt->entries_count; i++) {
        *found = &lt->entry[i];
        if (shape_equal(&lt->entry[i].shape, s)) return OK;
    }
    if (s->n == 0 || s->k == 0 || s->k % 8 != 0)
        return fail(CUBLAS_STATUS_NOT_SUPPORTED, "the shape", s, 0);
    if (lt->entries_count == LT_SHAPES_MAX)
        return err_set(ERR_UNSUPPORTED, "cublasLt: more than %d shapes of products", LT_SHAPES_MAX);
    *found = &lt->entry[lt->entries_count];
    if ((e = entry_init(*found, s)) != OK) return e;
    lt->entries_count++;
    return OK;
}

static uint32_t bucket_of(uint32_t rows)
{
    uint32_t bucket = 0;
    while (rows > 1u << (BUCKET_FIRST + bucket))
        bucket++;
    return bucket;
}

static enum err set_rows(struct entry *x, uint32_t rows)
{
    const uint64_t columns = rows;
    cublasStatus_t c = cublasLtMatrixLayoutSetAttribute(x->b, CUBLASLT_MATRIX_LAYOUT_COLS, &columns,
                                                        sizeof columns);
    if (c == CUBLAS_STATUS_SUCCESS)
        c = cublasLtMatrixLayoutSetAttribute(x->d, CUBLASLT_MATRIX_LAYOUT_COLS, &columns,
                                             sizeof columns);
    return fail(c, "the rows", &x->shape, rows);
}

/* cublasLt's candidates for a bucket's largest product, best guess first. Of the bias it wants to know
 * how its address is aligned: no more than any product's is. */
static enum err candidates(struct lt *lt, struct entry *x, uint32_t bucket, int wanted,
                           cublasLtMatmulHeuristicResult_t *result, int *count)
{
    uint32_t rows = 1u << (BUCKET_FIRST + bucket);
    enum err e;
    *count = 0;
    if ((e = set_rows(x, rows)) != OK) return e;
    cublasStatus_t c = CUBLAS_STATUS_SUCCESS;
    if (x->shape.bias) c = point_to_bias(x, (char *)lt->workspace + POINTER_ALIGN);
    if (c == CUBLAS_STATUS_SUCCESS)
        c = cublasLtMatmulAlgoGetHeuristic(lt->handle, x->operation, x->a, x->b, x->d, x->d,
                                           lt->preference, wanted, result, count);
    if (c == CUBLAS_STATUS_SUCCESS && *count == 0) c = CUBLAS_STATUS_NOT_SUPPORTED;
    return fail(c, "the algorithm", &x->shape, rows);
}

static enum err multiply(struct lt *lt, struct entry *x, const cublasLtMatmulAlgo_t *algo,
                         const struct cuda_product *p)
{
    const float one = 1.0f, zero = 0.0f;
    const void *c_rows = p->residual ? (const void *)p->residual : p->out;
    cublasStatus_t c = cublasLtMatmul(lt->handle, x->operation, &one, p->w, x->a, p->x, x->b,
                                      p->residual ? &one : &zero, c_rows, x->d, p->out, x->d, algo,
                                      lt->workspace, WORKSPACE_BYTES, lt->stream);
    return fail(c, "the start", &x->shape, p->rows);
}

/* Milliseconds that a candidate takes, the least of a few runs; INFINITY if it cannot be run. */
static enum err time_one(struct lt *lt, struct entry *x, const cublasLtMatmulAlgo_t *algo,
                         const struct cuda_product *p, const cudaEvent_t event[2], float *best)
{
    enum err e;
    *best = INFINITY;
    for (int run = 0; run <= TIMED_RUNS; run++) { /* the first one is not counted */
        float ms;
        if ((e = cuda_check(cudaEventRecord(event[0], lt->stream), "timing")) != OK) return e;
        if (multiply(lt, x, algo, p) != OK) return OK;
        if ((e = cuda_check(cudaEventRecord(event[1], lt->stream), "timing")) != OK) return e;
        if ((e = cuda_check(cudaEventSynchronize(event[1]), "timing a product")) != OK) return e;
        e = cuda_check(cudaEventElapsedTime(&ms, event[0], event[1]), "timing");
        if (e != OK) return e;
        if (run > 0 && ms < *best) *best = ms;
    }
    return OK;
}

/* Chooses among the candidates of a bucket, with rows whose content does not matter. */
static enum err choose(struct lt *lt, struct entry *x, uint32_t bucket, struct cuda_product *p,
                       const cudaEvent_t event[2])
{
    cublasLtMatmulHeuristicResult_t result[LT_CANDIDATES];
    float best = INFINITY, ms;
    int count, chosen = 0;
    enum err e;
    if ((e = candidates(lt, x, bucket, LT_CANDIDATES, result, &count)) != OK) return e;
    p->rows = 1u << (BUCKET_FIRST + bucket);
    for (int i = 0; i < count && count > 1; i++) {
        if ((e = time_one(lt, x, &result[i].algo, p, event, &ms)) != OK) return e;
        if (ms < best) {
            best = ms;
            chosen = i;
        }
    }
    x->bucket[bucket].algo = result[chosen].algo;
    x->bucket[bucket].known = true;
    return OK;
}

static enum err make_bias_room(struct lt *lt, uint32_t n)
{
    enum err e;
    if (n <= lt->bias_room) return OK;
    if (lt->bias) cudaFree(lt->bias);
    lt->bias = NULL;
    lt->bias_room = 0;
    if ((e = cuda_take((void **)&lt->bias, n * sizeof *lt->bias, "a rounded bias")) != OK) return e;
    lt->bias_room = n;
    return OK;
}

enum err lt_prepare(struct lt *lt, const struct lt_shape *s, const void *w, uint32_t rows_max)
{
    struct entry *x;
    cudaEvent_t event[2] = {NULL, NULL};
    void *rows = NULL, *out = NULL;
    enum err e;
    CHECK(rows_max <= LT_ROWS_MAX);
    if (rows_max <= CUDA_SKINNY_ROWS) return OK;
    if ((e = make_bias_room(lt, s->n)) != OK) return e;
    uint32_t last = bucket_of(rows_max);
    if ((e = find_entry(lt, s, &x)) != OK) return e;
    if (x->bucket[last].known) return OK; /* of another layer */
    uint64_t rows_most = 1ull << (BUCKET_FIRST + last);
    if ((e = cuda_take(&rows, rows_most * s->k * 2, "timing products")) != OK) goto out;
    e = cuda_take(&out, rows_most * s->n * (s->out_wide ? 4 : 2), "timing products");
    if (e != OK) goto out;
    for (int i = 0; i < 2; i++)
        if ((e = cuda_check(cudaEventCreate(&event[i]), "an event")) != OK) goto out;
    struct cuda_product p = {.out = out, .x = rows, .w = w, .n = s->n, .k = s->k};
    if (s->out_wide) p.residual = out; /* as most of them have */
    for (uint32_t bucket = 0; bucket <= last; bucket++)
        if (!x->bucket[bucket].known && (e = choose(lt, x, bucket, &p, event)) != OK) goto out;
out:
    cudaStreamSynchronize(lt->stream); /* after a failure products may still use the memory */
    for (int i = 0; i < 2; i++)
        if (event[i]) cudaEventDestroy(event[i]);
    if (rows) cudaFree(rows);
    if (out) cudaFree(out);
    return e;
}

/* The bias in the type that the epilogue wants it in. */
static enum err set_bias(struct lt *lt, struct entry *x, const struct cuda_product *p)
{
    const void *bias = p->bias;
    enum err e;
    if (!p->out_wide) {
        if (p->n > lt->bias_room)
            return err_set(ERR_UNSUPPORTED, "cublasLt: a bias of %u numbers was not announced",
                           p->n);
        e = cuda_check(cuda_bias_round(lt->stream, lt->bias, p->bias, p->n), "a bias");
        if (e != OK) return e;
        bias = lt->bias;
    }
    return fail(point_to_bias(x, bias), "the bias", &x->shape, p->rows);
}

enum err lt_product(struct lt *lt, const struct cuda_product *p)
{
    const struct lt_shape s = {
        .n = p->n, .k = p->k, .out_wide = p->out_wide, .bias = p->bias != NULL};
    struct entry *x;
    enum err e;
    CHECK(p->dtype == DTYPE_BF16 && p->rows > 0 && p->rows <= LT_ROWS_MAX);
    if ((e = find_entry(lt, &s, &x)) != OK) return e;
    uint32_t bucket = bucket_of(p->rows);
    if (!x->bucket[bucket].known) {
        cublasLtMatmulHeuristicResult_t first;
        int count;
        if ((e = candidates(lt, x, bucket, 1, &first, &count)) != OK) return e;
        x->bucket[bucket].algo = first.algo;
        x->bucket[bucket].known = true;
    }
    if ((e = set_rows(x, p->rows)) != OK) return e;
    if (p->bias && (e = set_bias(lt, x, p)) != OK) return e;
    /* What was chosen for the bucket's largest number of rows is almost always good for less. */
    e = multiply(lt, x, &x->bucket[bucket].algo, p);
    return e == ERR_UNSUPPORTED ? multiply(lt, x, NULL, p) : e;
}

uint32_t lt_known(const struct lt *lt)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < lt->entries_count; i++)
        for (uint32_t bucket = 0; bucket < BUCKETS; bucket++)
            count += lt->entry[i].bucket[bucket].known;
    return count;
}
