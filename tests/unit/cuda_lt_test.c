/* Products by cublasLt: what they are, what is chosen when and, on the stand-in (TANDEM_EMULATED), what
 * fails. */
#include "kernels/cuda/lt.h"

#include <math.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "kernels/numbers.h"
#include "tests/unit/cuda_testing.h"

enum { N = 40, K = 24, ROWS_MAX = 200, BIAS_AT = 4 /* aligned to 16 bytes, not more */ };

/* Operands on both sides: bf16 numbers, and fp32 residuals. */
struct operands {
    uint16_t x[ROWS_MAX * K], w[N * K];
    float before[BIAS_AT], bias[N], residual[ROWS_MAX * N], out[ROWS_MAX * N];
    void *device_x, *device_w, *device_bias, *device_out;
};

static float number(uint32_t which, uint32_t i)
{
    return (float)((int)rng_below(rng_draw(3, which, i).word[0], 2001) - 1000) / 1000.0f;
}

static struct operands *make_operands(void)
{
    struct operands *o = mem_new(sizeof *o);
    for (uint32_t i = 0; i < ROWS_MAX * K; i++)
        o->x[i] = bf16_from_f32(number(0, i));
    for (uint32_t i = 0; i < N * K; i++)
        o->w[i] = bf16_from_f32(number(1, i));
    for (uint32_t i = 0; i < N; i++)
        o->bias[i] = f32_from_bf16(bf16_from_f32(number(2, i)));
    for (uint32_t i = 0; i < ROWS_MAX * N; i++)
        o->residual[i] = number(3, i);
    o->device_x = device_bytes(o->x, sizeof o->x);
    o->device_w = device_bytes(o->w, sizeof o->w);
    o->device_bias = device_bytes(o->before, sizeof o->before + sizeof o->bias);
    o->device_out = device_bytes(o->residual, sizeof o->residual);
    return o;
}

static void free_operands(struct operands *o)
{
    cudaFree(o->device_x), cudaFree(o->device_w);
    cudaFree(o->device_bias), cudaFree(o->device_out);
    mem_free(o);
}

static struct cuda_product product(const struct operands *o, uint32_t rows, bool wide, bool bias,
                                   bool residual)
{
    return (struct cuda_product){.out = o->device_out,
                                 .x = o->device_x,
                                 .w = o->device_w,
                                 .bias = bias ? (const float *)o->device_bias + BIAS_AT : NULL,
                                 .residual = residual ? o->device_out : NULL,
                                 .n = N,
                                 .k = K,
                                 .rows = rows,
                                 .dtype = DTYPE_BF16,
                                 .out_wide = wide};
}

static void check_product(const struct operands *o, const struct cuda_product *p)
{
    static uint16_t narrow[ROWS_MAX * N];
    static float wide[ROWS_MAX * N];
    size_t count = (size_t)p->rows * N;
    assert_cuda(cudaMemcpy(p->out_wide ? (void *)wide : narrow, p->out,
                           count * (p->out_wide ? 4 : 2), cudaMemcpyDeviceToHost));
    for (uint32_t r = 0; r < p->rows; r++)
        for (uint32_t j = 0; j < N; j++) {
            double sum = 0;
            for (uint32_t i = 0; i < K; i++)
                sum +=
                    (double)f32_from_bf16(o->x[r * K + i]) * (double)f32_from_bf16(o->w[j * K + i]);
            if (p->bias) sum += (double)o->bias[j];
            if (p->residual) sum += (double)o->residual[r * N + j];
            double got =
                p->out_wide ? (double)wide[r * N + j] : (double)f32_from_bf16(narrow[r * N + j]);
            double allowed = 1e-5 + fabs(sum) * (p->out_wide ? 1e-6 : 0x1p-8);
            if (!(fabs(got - sum) <= allowed))
                fail_msg("row %u, output %u of %u rows: %g, not %g", r, j, p->rows, got, sum);
        }
}

static const struct lt_shape shapes[] = {{N, K, false, false}, {N, K, true, false}};

static void products_of_all_kinds_are_right(void **state)
{
    (void)state;
    static const uint32_t rows[] = {33, 64, 65, 128, 130, ROWS_MAX};
    struct operands *o = make_operands();
    struct lt *lt;
    assert_int_equal(lt_new(&lt, stream), OK);
    for (int prepared = 0; prepared < 2; prepared++) {
        for (int kind = 0; kind < 2; kind++) /* of more rows the second time */
            assert_int_equal(lt_prepare(lt, &shapes[kind], o->device_w, prepared ? ROWS_MAX : 64),
                             OK);
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
            for (int kind = 0; kind < 6; kind++) {
                bool wide = kind >= 2, bias = kind % 2, residual = kind >= 4;
                struct cuda_product p = product(o, rows[i], wide, bias, residual);
                assert_cuda(cudaMemcpy(o->device_out, o->residual, sizeof o->residual,
                                       cudaMemcpyHostToDevice));
                assert_cuda(cudaDeviceSynchronize());
                assert_int_equal(lt_product(lt, &p), OK);
                assert_cuda(cudaStreamSynchronize(stream));
                check_product(o, &p);
            }
    }
    lt_free(lt);
    free_operands(o);
}

static void a_shape_is_timed_once_for_each_bucket_of_rows(void **state)
{
    (void)state;
    struct operands *o = make_operands();
    struct lt *lt;
    assert_int_equal(lt_new(&lt, stream), OK);
    assert_int_equal(lt_prepare(lt, &shapes[0], o->device_w, 32), OK);
    assert_int_equal(lt_known(lt), 0); /* few rows are not ours */
    assert_int_equal(lt_prepare(lt, &shapes[0], o->device_w, 33), OK);
    assert_int_equal(lt_known(lt), 1);
    assert_int_equal(lt_prepare(lt, &shapes[0], o->device_w, 256), OK);
    assert_int_equal(lt_known(lt), 3);
    assert_int_equal(lt_prepare(lt, &shapes[0], o->device_w, 200), OK);
    assert_int_equal(lt_prepare(lt, &shapes[1], o->device_w, 64), OK);
    assert_int_equal(lt_known(lt), 4);
    lt_free(lt);
    free_operands(o);
}

static void a_prepared_product_can_be_recorded(void **state)
{
    (void)state;
    struct operands *o = make_operands();
    struct lt *lt;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    assert_int_equal(lt_new(&lt, stream), OK);
    assert_int_equal(lt_prepare(lt, &shapes[0], o->device_w, 64), OK);
    struct cuda_product p = product(o, 48, false, true, false);
    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    assert_int_equal(lt_product(lt, &p), OK);
    assert_cuda(cudaStreamEndCapture(stream, &graph));
    assert_cuda(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < 2; i++) {
        assert_cuda(cudaMemset(o->device_out, 0xff, sizeof o->residual));
        assert_cuda(cudaDeviceSynchronize());
        assert_cuda(cudaGraphLaunch(exec, stream));
        assert_cuda(cudaStreamSynchronize(stream));
        check_product(o, &p);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    lt_free(lt);
    free_operands(o);
}

static void what_it_does_not_take_is_left_to_others(void **state)
{
    (void)state;
    struct operands *o = make_operands();
    struct lt *lt;
    assert_int_equal(lt_new(&lt, stream), OK);
    struct cuda_product odd = product(o, 64, false, false, false);
    odd.k = 12;
    assert_int_equal(lt_product(lt, &odd), ERR_UNSUPPORTED);
    assert_non_null(strstr(err_text(), "x 12 by 40"));
    struct cuda_product unannounced = product(o, 64, false, true, false);
    assert_int_equal(lt_product(lt, &unannounced), ERR_UNSUPPORTED);
    assert_non_null(strstr(err_text(), "bias of 40 numbers"));
    lt_free(lt);
    free_operands(o);
}

#ifdef TANDEM_EMULATED
/* How a life of prepare and product ends when the n-th call of `call` fails. */
static enum err life_with(const struct operands *o, const char *call, uint32_t n, int status)
{
    struct lt *lt = NULL;
    struct cuda_product p = product(o, 48, false, true, false);
    fake_knobs()->fail_call = call;
    fake_knobs()->fail_at = n;
    fake_knobs()->fail_with = status;
    enum err e = lt_new(&lt, stream);
    if (e == OK) e = lt_prepare(lt, &shapes[0], o->device_w, 64);
    if (e == OK) e = lt_product(lt, &p);
    fake_knobs()->fail_call = NULL;
    cudaStreamSynchronize(stream);
    lt_free(lt);
    return e;
}

static void every_call_that_fails_is_told(void **state)
{
    (void)state;
    enum { INTERNAL_ERROR = 14 }; /* CUBLAS_STATUS_INTERNAL_ERROR */
    static const char *const blas[] = {"cublasLtCreate",
                                       "cublasLtMatmulPreferenceCreate",
                                       "cublasLtMatmulDescCreate",
                                       "cublasLtMatmulPreferenceSetAttribute",
                                       "cublasLtMatrixLayoutCreate",
                                       "cublasLtMatmulDescSetAttribute",
                                       "cublasLtMatrixLayoutSetAttribute",
                                       "cublasLtMatmulAlgoGetHeuristic"};
    static const char *const runtime[] = {"cudaMalloc", "cudaEventCreate", "cudaEventRecord",
                                          "cudaEventSynchronize", "cudaEventElapsedTime"};
    struct operands *o = make_operands();
    for (size_t i = 0; i < sizeof blas / sizeof blas[0]; i++) {
        assert_int_equal(life_with(o, blas[i], 1, INTERNAL_ERROR), ERR_DEVICE);
        assert_non_null(strstr(err_text(), "CUBLAS_STATUS_INTERNAL_ERROR"));
    }
    assert_non_null(strstr(err_text(), "64 x 24 by 40 (bf16 rows)"));
    for (size_t i = 0; i < sizeof runtime / sizeof runtime[0]; i++) {
        assert_int_equal(life_with(o, runtime[i], 1, cudaErrorInvalidValue), ERR_DEVICE);
        assert_non_null(strstr(err_text(), "cudaErrorInvalidValue"));
    }
    assert_int_equal(life_with(o, "none", 1, cudaErrorInvalidValue), OK);
    free_operands(o);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(products_of_all_kinds_are_right),
        DEVICE_TEST(a_shape_is_timed_once_for_each_bucket_of_rows),
        DEVICE_TEST(a_prepared_product_can_be_recorded),
        DEVICE_TEST(what_it_does_not_take_is_left_to_others),
#ifdef TANDEM_EMULATED
        DEVICE_TEST(every_call_that_fails_is_told),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
