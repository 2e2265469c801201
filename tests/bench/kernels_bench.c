/* Kernels as fractions of what the machine can do, measured in the same minute: dot products in
 * registers (peak) and reading memory (bandwidth). Weights are random, of one layer's shapes of a
 * model with hidden 1024, 16 heads, 8 kv heads of 64, ffn 2816, vocabulary 50257; enough layers
 * that none stays in a cache. Times are the least of several rounds. With oneDNN at hand its bf16
 * matmul runs the same shapes, weights packed its own way, as the yardstick.
 *
 *     kernels [--threads N] [--path NAME]    1 and N (2) threads; JSON on the last line of stdout */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "kernels/backend.h"
#include "tests/bench/ceilings.h"

#ifdef TANDEM_BENCH_DNNL
#include <oneapi/dnnl/dnnl.h>
#endif

enum { HIDDEN = 1024, HEADS = 16, KV_HEADS = 8, HEAD_DIM = 64, FFN = 2816, VOCAB = 50257 };
enum { QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM, LAYERS = 8, ROWS_MAX = 2048 };
enum { ROUNDS_MIN = 3, ROUNDS_MAX = 200, ROUNDS_NS = 250 * 1000 * 1000 };

static const struct {
    const char *name;
    uint32_t n, k;
} matrices[] = {{"qkv", QKV, HIDDEN},
                {"o", HIDDEN, HIDDEN},
                {"gate_up", 2 * FFN, HIDDEN},
                {"down", HIDDEN, FFN}};
enum { MATRICES = sizeof matrices / sizeof matrices[0] };

struct bench {
    const struct backend_ops *ops;
    struct backend *b;
    uint32_t threads;
    struct matrix layer[LAYERS][MATRICES], head;
    float *x, *out;
    struct ceilings ceilings;
    uint32_t rows; /* of the round that is timed */
    int layers; /* many where weights are to come from memory, one where rounds are to be short */
    uint32_t matrix;
    struct batch batch;
    struct kv_view kv;
};

typedef void round_fn(struct bench *x);

/* The least of many short rounds: what is left when nothing else ran on the cores. */
static double best_seconds(struct bench *x, round_fn *fn)
{
    uint64_t best_ns = UINT64_MAX, end_ns = clock_now_ns() + ROUNDS_NS;
    for (int i = 0; i < ROUNDS_MIN || (i < ROUNDS_MAX && clock_now_ns() < end_ns); i++) {
        uint64_t began_ns = clock_now_ns();
        fn(x);
        uint64_t took_ns = clock_now_ns() - began_ns;
        if (took_ns < best_ns) best_ns = took_ns;
    }
    return (double)best_ns / 1e9;
}

/* One figure of the JSON object, and a line for people. */
static void figure(const char *name, double value)
{
    static int count;
    fprintf(stderr, "%-44s %10.2f\n", name, value);
    printf("%s\"%s\": %.4g", count++ ? ", " : "{", name, value);
}

/* --- matmul --- */

static void layer_round(struct bench *x)
{
    for (int i = 0; i < x->layers; i++)
        for (uint32_t m = 0; m < MATRICES; m++)
            if (x->matrix == MATRICES || x->matrix == m)
                x->ops->matmul(x->b, x->out, ROWS_PRODUCT, x->x, &x->layer[i][m], NULL, NULL,
                               x->rows);
}
static void head_round(struct bench *x)
{
    x->ops->matmul(x->b, x->out, ROWS_STREAM, x->x, &x->head, NULL, NULL, x->rows);
}

/* The time that the ceilings allow for `macs` on `bytes` of weights, over the time taken. */
static double of_roofline(const struct bench *x, double macs, double bytes, double seconds)
{
    return 100 * ceilings_share(&x->ceilings, macs, bytes, seconds);
}

static void matmul_figures(struct bench *x)
{
    static const uint32_t rows[] = {1, 8, 16, 64, 512, 2048};
    char name[64];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        x->rows = rows[i];
        x->layers = rows[i] >= 64 ? 1 : LAYERS;
        ceilings_measure(&x->ceilings);
        /* A single matrix of few rows would come from the cache: only whole layers tell. */
        for (x->matrix = rows[i] >= 64 ? 0 : MATRICES; x->matrix <= MATRICES; x->matrix++) {
            bool all = x->matrix == MATRICES;
            double weights = 0;
            for (uint32_t m = 0; m < MATRICES; m++)
                if (all || m == x->matrix) weights += (double)matrices[m].n * matrices[m].k;
            double seconds = best_seconds(x, layer_round) / x->layers;
            snprintf(name, sizeof name, "%s_%u_rows_x%u_of_roofline_percent",
                     all ? "layer" : matrices[x->matrix].name, rows[i], x->threads);
            figure(name, of_roofline(x, weights * rows[i], 2 * weights, seconds));
        }
    }
    x->rows = 1;
    double seconds = best_seconds(x, head_round), weights = (double)VOCAB * HIDDEN;
    snprintf(name, sizeof name, "head_1_row_x%u_of_roofline_percent", x->threads);
    figure(name, of_roofline(x, weights, 2 * weights, seconds));
}

#ifdef TANDEM_BENCH_DNNL
struct yardstick {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[3];
};
static struct yardstick yardstick;

static void yardstick_round(struct bench *x)
{
    static const int kinds[] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    dnnl_exec_arg_t args[3];
    (void)x;
    for (int i = 0; i < 3; i++)
        args[i] = (dnnl_exec_arg_t){kinds[i], yardstick.memory[i]};
    CHECK(dnnl_primitive_execute(yardstick.primitive, yardstick.stream, 3, args) == dnnl_success);
    dnnl_stream_wait(yardstick.stream);
}

/* The seconds of oneDNN for bf16 rows x packed bf16 weights into fp32. */
static double yardstick_seconds(struct bench *x, uint32_t rows, uint32_t n, uint32_t k)
{
    struct yardstick *y = &yardstick;
    dnnl_memory_desc_t md[3];
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_desc_t pd;
    const dnnl_dims_t dims[3] = {{rows, k}, {k, n}, {rows, n}};
    CHECK(dnnl_engine_create(&y->engine, dnnl_cpu, 0) == dnnl_success);
    CHECK(dnnl_stream_create(&y->stream, y->engine, dnnl_stream_default_flags) == dnnl_success);
    for (int i = 0; i < 3; i++)
        dnnl_memory_desc_init_by_tag(&md[i], 2, dims[i], i == 2 ? dnnl_f32 : dnnl_bf16,
                                     i == 1 ? dnnl_format_tag_any : dnnl_ab);
    CHECK(dnnl_matmul_desc_init(&matmul, &md[0], &md[1], NULL, &md[2]) == dnnl_success);
    CHECK(dnnl_primitive_desc_create(&pd, &matmul, NULL, y->engine, NULL) == dnnl_success);
    md[1] = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    for (int i = 0; i < 3; i++)
        CHECK(dnnl_memory_create(&y->memory[i], &md[i], y->engine, DNNL_MEMORY_ALLOCATE) ==
              dnnl_success);
    CHECK(dnnl_primitive_create(&y->primitive, pd) == dnnl_success);
    double seconds = best_seconds(x, yardstick_round);
    for (int i = 0; i < 3; i++)
        dnnl_memory_destroy(y->memory[i]);
    dnnl_primitive_destroy(y->primitive);
    dnnl_primitive_desc_destroy(pd);
    dnnl_stream_destroy(y->stream);
    dnnl_engine_destroy(y->engine);
    return seconds;
}

static void yardstick_figures(struct bench *x)
{
    static const uint32_t rows[] = {64, 512};
    char name[64];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (uint32_t m = 0; m < MATRICES; m++) {
            double weights = (double)matrices[m].n * matrices[m].k;
            double seconds = yardstick_seconds(x, rows[i], matrices[m].n, matrices[m].k);
            snprintf(name, sizeof name, "onednn_%s_%u_rows_x%u_of_roofline_percent",
                     matrices[m].name, rows[i], x->threads);
            figure(name, of_roofline(x, weights * rows[i], 2 * weights, seconds));
        }
}
#endif

/* --- the rest of a layer --- */

static const struct attend_shape shape = {HEADS, KV_HEADS, HEAD_DIM, 0.125f};

static void attend_round(struct bench *x)
{
    x->ops->attend(x->b, x->out, x->x, &x->batch, x->rows, &shape, &x->kv, 0);
}
static void norm_round(struct bench *x)
{
    x->ops->rms_norm(x->b, x->out, x->x, x->x, x->rows, HIDDEN, 1e-5f);
}
static void silu_round(struct bench *x)
{
    x->ops->silu_mul(x->b, x->out, x->x, x->rows, FFN);
}
static void rope_round(struct bench *x)
{
    const struct rope_table rope = {x->x, x->x, HEAD_DIM / 2};
    x->ops->rope_append(x->b, x->out, &x->batch, x->rows, &rope, &shape, &x->kv, 0);
}

static void batch_set(struct bench *x, uint32_t sequences, uint32_t rows, uint32_t position)
{
    static struct batch_sequence sequence[64];
    static uint32_t table[ROWS_MAX / BLOCK_TOKENS];
    for (uint32_t i = 0; i < ROWS_MAX / BLOCK_TOKENS; i++)
        table[i] = (i * 37) % x->kv.blocks_count;
    for (uint32_t i = 0; i < sequences; i++)
        sequence[i] = (struct batch_sequence){i * rows, rows, position, 0, 0};
    x->rows = sequences * rows;
    x->batch = (struct batch){
        .rows_count = x->rows, .sequence = sequence, .sequences_count = sequences, .table = table};
}

static void attend_figures(struct bench *x)
{
    static const struct {
        const char *name;
        uint32_t sequences, rows, position;
    } cases[] = {{"prefill_512", 1, 512, 0},
                 {"prefill_2048", 1, 2048, 0},
                 {"decode_1_at_1000", 1, 1, 1000},
                 {"decode_16_at_1000", 16, 1, 1000}};
    char name[64];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        batch_set(x, cases[i].sequences, cases[i].rows, cases[i].position);
        rope_round(x);
        double seconds = best_seconds(x, attend_round);
        double keys = cases[i].position + (cases[i].rows + 1) / 2.0;
        double macs = 2 * keys * cases[i].rows * cases[i].sequences * HEADS * HEAD_DIM;
        snprintf(name, sizeof name, "attend_%s_x%u_us", cases[i].name, x->threads);
        figure(name, seconds * 1e6);
        snprintf(name, sizeof name, "attend_%s_x%u_of_peak_percent", cases[i].name, x->threads);
        figure(name, 100 * macs / x->ceilings.peak_macs_s / seconds);
    }
}

static void small_figures(struct bench *x)
{
    static const struct {
        const char *name;
        round_fn *fn;
    } ops[] = {{"rms_norm", norm_round}, {"silu_mul", silu_round}, {"rope_append", rope_round}};
    static const uint32_t rows[] = {1, 512};
    char name[64];
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++)
        for (size_t j = 0; j < sizeof rows / sizeof rows[0]; j++) {
            batch_set(x, 1, rows[j], 0);
            snprintf(name, sizeof name, "%s_%u_rows_x%u_us", ops[i].name, rows[j], x->threads);
            figure(name, best_seconds(x, ops[i].fn) * 1e6);
        }
}

/* --- set-up --- */

static struct matrix matrix_random(struct bench *x, uint32_t n, uint32_t k)
{
    size_t bytes = x->ops->pack_bytes(n, k, DTYPE_BF16);
    uint16_t *packed = x->ops->alloc(x->b, bytes);
    CHECK(packed);
    uint32_t state = n * 7919 + k;
    for (size_t i = 0; i < bytes / 2; i++) {
        state = state * 1664525 + 1013904223;
        packed[i] = (uint16_t)(0x3c00 | (state >> 16 & 0x81ff)); /* about +-0.01 */
    }
    return (struct matrix){packed, n, k, DTYPE_BF16};
}

static void bench_open(struct bench *x, const char *path, uint32_t threads)
{
    const struct kv_geometry g = {1, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_BF16};
    struct backend_options options = {.threads = threads};
    *x = (struct bench){.threads = threads};
    CHECK(backend_find(path, &x->ops) == OK && x->ops->open(&x->b, &options) == OK);
    ceilings_init(&x->ceilings, threads);
    for (int i = 0; i < LAYERS; i++)
        for (uint32_t m = 0; m < MATRICES; m++)
            x->layer[i][m] = matrix_random(x, matrices[m].n, matrices[m].k);
    x->head = matrix_random(x, VOCAB, HIDDEN);
    x->x = x->ops->alloc(x->b, (size_t)ROWS_MAX * 2 * FFN * sizeof(float));
    x->out = x->ops->alloc(x->b, (size_t)ROWS_MAX * 2 * FFN * sizeof(float));
    x->kv = (struct kv_view){NULL, g, ROWS_MAX / BLOCK_TOKENS + 3};
    x->kv.base = x->ops->alloc(x->b, x->kv.blocks_count * kv_block_bytes(&g));
    CHECK(x->x && x->out && x->kv.base);
    for (size_t i = 0; i < (size_t)ROWS_MAX * 2 * FFN; i++)
        x->x[i] = (float)(i % 61) / 61 - 0.5f;
}

static void bench_close(struct bench *x)
{
    for (int i = 0; i < LAYERS; i++)
        for (uint32_t m = 0; m < MATRICES; m++)
            x->ops->free(x->b, (void *)x->layer[i][m].packed);
    x->ops->free(x->b, (void *)x->head.packed);
    x->ops->free(x->b, x->x), x->ops->free(x->b, x->out);
    x->ops->free(x->b, x->kv.base);
    ceilings_fini(&x->ceilings);
    x->ops->close(x->b);
}

int main(int argc, char **argv)
{
    uint32_t most = 2;
    const char *path = "cpu";
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--threads") == 0) most = (uint32_t)atoi(argv[i + 1]);
        if (strcmp(argv[i], "--path") == 0) path = argv[i + 1];
    }
    for (uint32_t threads = 1; threads <= most; threads = threads < most ? most : most + 1) {
        struct bench x;
        char name[64];
        bench_open(&x, path, threads);
        ceilings_measure(&x.ceilings);
        matmul_figures(&x);
        attend_figures(&x);
        small_figures(&x);
#ifdef TANDEM_BENCH_DNNL
        snprintf(name, sizeof name, "%u", threads);
        setenv("OMP_NUM_THREADS", name, 1); /* read when oneDNN first runs: one thread count */
        if (threads == most) yardstick_figures(&x);
#endif
        snprintf(name, sizeof name, "peak_x%u_gflop_s", threads);
        figure(name, x.ceilings.peak_macs_s * 2 / 1e9);
        snprintf(name, sizeof name, "read_x%u_gb_s", threads);
        figure(name, x.ceilings.read_bytes_s / 1e9);
        bench_close(&x);
    }
    printf("}\n");
    return 0;
}
