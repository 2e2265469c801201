/* The CPU backend: its table of functions, memory and threads. Ops run at once, cut into items that
 * the workers take; the arithmetic is in the kernels of the path that was opened. */
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "common/mem.h"
#include "kernels/cpu.h"
#include "kernels/numbers.h"
#include "kernels/plugin.h"
#include "kernels/workers.h"

#define NUMERICS_CPU 0x7463707500000002u /* "tcpu", rules version 2: equal on all CPU paths */
#define WEIGHT_LAYOUT_CPU 1
#define HUGE_PAGE_BYTES ((size_t)2 << 20)

enum {
    ITEMS_PER_THREAD = 2,        /* of attend, where an item could take more kv heads */
    THREAD_WORTH_NS = 3000,      /* a run costs 0.5 us when both sides still spin */
    GATED_ROWS_MIN = 13,         /* fewer wait for memory, and read it best in one go */
    ROW_BLOCK_BYTES = 384 << 10, /* of activations, beside the weights in the L2 cache */
    /* Guesses of what one thread does: they decide on threads, never on results. */
    ELEMENTS_PER_NS = 8,
    NORM_ELEMENTS_PER_NS = 2, /* most of which another thread wrote */
    WEIGHT_BYTES_PER_NS = 60,
    MASSES_PER_NS = 2,
    MATMUL_MACS_PER_NS = 200,
    ATTEND_MACS_PER_NS = 40,
};

/* Items that a thread has left, first | end << 32: it takes them from the front, others from the end. */
struct share {
    _Alignas(64) _Atomic uint64_t items;
};

struct backend {
    const struct cpu_kernels *kernels;
    struct backend_facts facts;
    struct workers *workers;
    struct share *share; /* [facts.threads], of the op that runs */
    uint16_t
        *rounded; /* activations as bf16 pairs, where they are not, grown to the largest so far */
    size_t rounded_count;
    enum err status; /* of the ops since the last sync */
    uint64_t marks;
};

/* One op on its way through the workers. */
struct op {
    cpu_kernel *kernel;
    const void *args;
    struct share *share; /* [threads] */
    uint32_t threads, piece_max;
};

/* Denormals are zero in and out, for the time of an op (G2). */
static uint32_t flush_begin(void)
{
#if defined(__x86_64__)
    uint32_t before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
#else
    return 0;
#endif
}
static void flush_end(uint32_t before)
{
#if defined(__x86_64__)
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

static uint64_t items_of(uint32_t first, uint32_t end)
{
    return first | (uint64_t)end << 32;
}

/* Half of a share, from its front or its back, and at most so many items: the rest stays. False: none
 * is there. */
static bool share_take(struct share *s, bool front, uint32_t most, uint32_t *first, uint32_t *end)
{
    uint64_t had = atomic_load_explicit(&s->items, memory_order_relaxed), rest;
    do {
        uint32_t from = (uint32_t)had, to = (uint32_t)(had >> 32);
        uint32_t piece = workers_piece(to - from, most);
        if (from == to) return false;
        *first = front ? from : to - piece;
        *end = front ? from + piece : to;
        rest = front ? items_of(*end, to) : items_of(from, *first);
    } while (!atomic_compare_exchange_weak_explicit(&s->items, &had, rest, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

/* The next items for one thread. Those of its own share follow each other, so that what one piece asks
 * memory for behind its end is what the next one needs; only a thread that has none left takes from
 * others, half of what they have. False: none is left. */
static bool op_take(struct op *op, uint32_t index, uint32_t *first, uint32_t *end)
{
    struct share *own = &op->share[index];
    if (share_take(own, true, op->piece_max, first, end)) return true;
    for (uint32_t i = 1; i < op->threads; i++) {
        if (!share_take(&op->share[(index + i) % op->threads], false, UINT32_MAX, first, end))
            continue;
        atomic_store_explicit(&own->items, items_of(*first, *end), memory_order_relaxed);
        if (share_take(own, true, op->piece_max, first, end)) return true;
    }
    return false;
}

static void op_work(void *ctx, uint32_t index)
{
    struct op *op = ctx;
    uint32_t before = flush_begin(), first, end;
    while (op_take(op, index, &first, &end)) {
        op->kernel(op->args, first, end);
        workers_offer_core();
    }
    flush_end(before);
}

/* Pieces after each of which a thread has an offer to make. */
static uint32_t piece_of(uint32_t items, uint64_t cost_ns)
{
    uint64_t piece =
        cost_ns > WORKERS_OFFER_NS ? items * (uint64_t)WORKERS_OFFER_NS / cost_ns : items;
    return piece > 0 ? (uint32_t)piece : 1;
}

/* Runs the kernel over all items, on as many threads as `cost_ns` of work on one is worth. */
static void run(struct backend *b, cpu_kernel *kernel, const void *args, uint32_t items,
                uint64_t cost_ns)
{
    uint64_t threads = cost_ns / THREAD_WORTH_NS;
    if (threads > b->facts.threads) threads = b->facts.threads;
    if (threads > items) threads = items;
    if (threads < 1) threads = 1;
    struct op op = {kernel, args, b->share, (uint32_t)threads, piece_of(items, cost_ns)};
    for (uint64_t i = 0; i < threads; i++) {
        uint64_t own =
            items_of((uint32_t)(items * i / threads), (uint32_t)(items * (i + 1) / threads));
        atomic_store_explicit(&b->share[i].items, own, memory_order_relaxed);
    }
    workers_run(b->workers, (uint32_t)threads, op_work, &op);
}

static void cpu_close(struct backend *b)
{
    if (!b) return;
    workers_free(b->workers);
    mem_free(b->share);
    mem_free(b->rounded);
    mem_free(b);
}

static uint32_t cpus_allowed(void)
{
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) != 0) return 1;
    int count = CPU_COUNT(&cpus);
    return count > 0 ? (uint32_t)count : 1;
}

static enum err cpu_open(struct backend **out, const struct backend_options *options,
                         const struct cpu_kernels *kernels)
{
    enum err e = ERR_MEMORY;
    *out = NULL;
    uint32_t threads = options->threads ? options->threads : cpus_allowed();
    struct backend *b = mem_new(sizeof *b);
    if (!b) return ERR_MEMORY;
    b->kernels = kernels;
    b->facts = (struct backend_facts){.path = kernels->name,
                                      .device = "",
                                      .queue_depth = 1,
                                      .operand_bytes = (uint32_t)dtype_bytes(
                                          options->dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32),
                                      .product_bytes = sizeof(float),
                                      .kv_layout = KV_LAYOUT_CPU,
                                      .weight_layout = WEIGHT_LAYOUT_CPU,
                                      .threads = threads,
                                      .host_memory = true,
                                      .windows = true,
                                      .numerics = NUMERICS_CPU};
    if ((e = workers_new(&b->workers, threads, &options->cpus)) != OK) goto fail;
    if (!(b->share = mem_aligned(threads * sizeof *b->share, 64))) {
        e = ERR_MEMORY;
        goto fail;
    }
    *out = b;
    return OK;
fail:
    cpu_close(b);
    return e;
}

static const struct backend_facts *cpu_facts(const struct backend *b)
{
    return &b->facts;
}

static void *cpu_alloc(struct backend *b, size_t bytes)
{
    (void)b;
    return mem_aligned(bytes, bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 64);
}

static void cpu_free(struct backend *b, void *p)
{
    (void)b;
    mem_free(p);
}

static void *cpu_host_alloc(struct backend *b, size_t bytes)
{
    (void)b;
    return mem_aligned(bytes, 64);
}

static uint64_t cpu_memory_free(struct backend *b)
{
    (void)b;
    return 0;
}

static enum err cpu_write(struct backend *b, void *device, const void *host, size_t bytes)
{
    (void)b;
    memcpy(device, host, bytes);
    return OK;
}

static enum err cpu_read(struct backend *b, void *host, const void *device, size_t bytes)
{
    (void)b;
    memcpy(host, device, bytes);
    return OK;
}

static void cpu_fetch(struct backend *b, void *host, const void *device, size_t bytes)
{
    (void)b;
    memcpy(host, device, bytes);
}

static enum err cpu_weight_place(struct backend *b, const void *host, size_t bytes,
                                 const void **device)
{
    (void)b;
    (void)bytes;
    *device = host;
    return OK;
}

static void cpu_step(struct backend *b, const struct batch *batch, backend_enqueue_fn *enqueue,
                     void *ctx)
{
    (void)b;
    enqueue(ctx, batch->rows_count, batch->outputs_count);
}

static void cpu_embed(struct backend *b, float *x, const void *table, enum dtype dtype,
                      const struct batch *batch, uint32_t rows, uint32_t dim)
{
    (void)b;
    for (uint32_t r = 0; r < rows; r++) {
        float *to = x + (size_t)r * dim;
        size_t from = (size_t)batch->tokens[r] * dim;
        const uint16_t *half = (const uint16_t *)table + from;
        if (dtype == DTYPE_F32)
            memcpy(to, (const float *)table + from, dim * sizeof *to);
        else if (dtype == DTYPE_BF16)
            for (uint32_t i = 0; i < dim; i++)
                to[i] = f32_from_bf16(half[i]);
        else
            for (uint32_t i = 0; i < dim; i++)
                to[i] = f32_from_f16(half[i]);
    }
}

static struct operand_rows operand(const struct backend *b, void *at, size_t stride)
{
    return (struct operand_rows){at, stride, b->facts.operand_bytes == sizeof(uint16_t)};
}

static void cpu_rms_norm(struct backend *b, void *out, const float *x, const float *weight,
                         uint32_t rows, uint32_t dim, float eps)
{
    struct norm_args a = {operand(b, out, dim), x, dim, weight, dim, eps};
    run(b, b->kernels->rms_norm, &a, rows, (uint64_t)rows * dim / NORM_ELEMENTS_PER_NS);
}

static bool rounded_room(struct backend *b, uint32_t k, uint32_t rows)
{
    size_t count = rows * (((size_t)k + 1) / 2 * 2);
    if (count <= b->rounded_count) return true;
    mem_free(b->rounded);
    b->rounded = mem_aligned(count * sizeof *b->rounded, 64);
    b->rounded_count = b->rounded ? count : 0;
    return b->rounded;
}

/* The rows of x as bf16, k rounded up to a whole pair: x itself if it is that. */
static const uint16_t *paired_rows(struct backend *b, const void *x, uint32_t k, uint32_t rows)
{
    size_t stride = ((size_t)k + 1) / 2 * 2;
    bool bf16 = b->facts.operand_bytes == sizeof(uint16_t);
    if (bf16 && k == stride) return x;
    if (!rounded_room(b, k, rows)) return NULL;
    struct round_args a = {b->rounded, x, stride, k, k};
    if (!bf16) run(b, b->kernels->round_rows, &a, rows, (uint64_t)rows * k / ELEMENTS_PER_NS / 2);
    for (uint32_t r = 0; bf16 && r < rows; r++) {
        memcpy(b->rounded + r * stride, (const uint16_t *)x + (size_t)r * k,
               k * sizeof *b->rounded);
        b->rounded[r * stride + k] = 0;
    }
    return b->rounded;
}

static void cpu_prepare(struct backend *b, const struct matrix *w, enum row_kind out_kind,
                        bool biased, uint32_t rows_max)
{
    (void)out_kind;
    (void)biased;
    bool paired = b->facts.operand_bytes == sizeof(uint16_t) && w->k % 2 == 0;
    if (w->dtype == DTYPE_BF16 && !paired && !rounded_room(b, w->k, rows_max))
        b->status = ERR_MEMORY;
}

/* As many rows as the L2 cache holds beside a panel of weights; whole tiles. */
static uint32_t row_block(uint32_t row_bytes)
{
    uint32_t rows = ROW_BLOCK_BYTES / row_bytes / 12 * 12;
    return rows < 24 ? 24 : rows > ROW_BLOCK_MAX ? ROW_BLOCK_MAX : rows;
}

/* The product's rows as its kernel reads them; false: no memory. */
static bool product_open(struct backend *b, struct matmul_args *a, const void *x)
{
    CHECK(a->w.dtype == DTYPE_BF16 || b->facts.operand_bytes == sizeof(float));
    a->x = x;
    a->x_stride = a->w.k;
    if (a->w.dtype != DTYPE_BF16) return true;
    a->x_stride = ((size_t)a->w.k + 1) / 2 * 2;
    if ((a->x = paired_rows(b, x, a->w.k, a->rows))) return true;
    b->status = ERR_MEMORY;
    return false;
}

static uint64_t product_ns(const struct matmul_args *a)
{
    uint64_t weights = (uint64_t)a->w.n * a->w.k;
    uint64_t compute_ns = a->rows * weights / MATMUL_MACS_PER_NS;
    uint64_t read_ns = weights * dtype_bytes(a->w.dtype) / WEIGHT_BYTES_PER_NS;
    return compute_ns > read_ns ? compute_ns : read_ns;
}

static void cpu_matmul(struct backend *b, void *out, enum row_kind out_kind, const void *x,
                       const struct matrix *w, const float *bias, const float *residual,
                       uint32_t rows)
{
    (void)out_kind;
    struct matmul_args a = {out, NULL, w->n, 0, *w, bias, residual, rows};
    if (rows == 0 || !product_open(b, &a, x)) return;
    uint32_t panels = (w->n + PANEL - 1) / PANEL;
    a.row_block = row_block(w->k * (w->dtype == DTYPE_BF16 ? 2 : 4));
    run(b, b->kernels->matmul, &a, (rows + a.row_block - 1) / a.row_block * panels, product_ns(&a));
}

static bool cpu_gated(struct backend *b, void *out, const void *x, const struct matrix *w,
                      const float *bias, uint32_t rows)
{
    uint32_t dim = w->n / 2, panels = dim / PANEL;
    struct gated_args a = {.product = {.w = *w, .bias = bias, .rows = rows},
                           .out = operand(b, out, dim)};
    if (w->n % (2 * PANEL) != 0 || rows < GATED_ROWS_MIN) return false;
    if (rows == 0 || !product_open(b, &a.product, x)) return true;
    uint32_t block = row_block(2 * w->k * (w->dtype == DTYPE_BF16 ? 2 : 4)); /* two panels, sums */
    a.product.row_block = block;
    run(b, b->kernels->gated, &a, (rows + block - 1) / block * panels, product_ns(&a.product));
    return true;
}

static size_t qkv_width(const struct attend_shape *shape)
{
    return (size_t)(shape->heads + 2 * shape->kv_heads) * shape->head_dim;
}

static void cpu_rope_append(struct backend *b, void *qkv, const struct batch *batch, uint32_t rows,
                            const struct rope_table *rope, const struct attend_shape *shape,
                            const struct kv_view *kv, uint32_t layer)
{
    struct rope_args a = {qkv, qkv_width(shape), batch, *rope, *shape, *kv, layer};
    uint64_t row_elements = (uint64_t)(shape->heads + 4 * shape->kv_heads) * shape->head_dim;
    run(b, b->kernels->rope_append, &a, rows, rows * row_elements / ELEMENTS_PER_NS);
}

/* KV heads that one item takes where sequences have a single row: as its queries allow, because the
 * heads of a block follow each other and memory likes to be read in long pieces; but no fewer items
 * than keep all threads busy. */
static uint32_t attend_together(const struct backend *b, const struct attend_shape *shape,
                                uint32_t sequences)
{
    uint32_t together = ATTEND_QUERIES / (shape->heads / shape->kv_heads);
    uint32_t worth = sequences * shape->kv_heads / (ITEMS_PER_THREAD * b->facts.threads);
    if (together > shape->kv_heads) together = shape->kv_heads;
    if (together > worth) together = worth;
    return together > 1 ? together : 1;
}

static void cpu_attend(struct backend *b, void *out, const void *qkv, const struct batch *batch,
                       uint32_t rows, const struct attend_shape *shape, const struct kv_view *kv,
                       uint32_t layer)
{
    (void)rows;
    size_t out_stride = (size_t)shape->heads * shape->head_dim;
    struct attend_args a = {
        operand(b, out, out_stride), qkv, qkv_width(shape), batch, *shape, *kv, layer};
    a.together = attend_together(b, shape, batch->sequences_count);
    uint32_t items = 0;
    uint64_t macs = 0;
    for (uint32_t i = 0; i < batch->sequences_count; i++) {
        const struct batch_sequence *s = &batch->sequence[i];
        items += attend_items(s, &a);
        macs += (uint64_t)s->rows_count * (s->position + s->rows_count) * shape->heads *
                shape->head_dim;
    }
    run(b, b->kernels->attend, &a, items, macs / ATTEND_MACS_PER_NS);
}

static void cpu_silu_mul(struct backend *b, void *out, const void *gate_up, uint32_t rows,
                         uint32_t dim)
{
    struct silu_args a = {operand(b, out, dim), gate_up, 2 * (size_t)dim, dim};
    run(b, b->kernels->silu_mul, &a, rows, (uint64_t)rows * dim / ELEMENTS_PER_NS * 2);
}

static void cpu_gather(struct backend *b, float *out, const float *x, const struct batch *batch,
                       uint32_t first, uint32_t count, uint32_t dim)
{
    (void)b;
    for (uint32_t i = 0; i < count; i++)
        memcpy(out + (size_t)i * dim, x + (size_t)batch->output_row[first + i] * dim,
               dim * sizeof *out);
}

static void cpu_logprobs(struct backend *b, float *out, const float *logits, const uint32_t *token,
                         uint32_t rows, uint32_t vocab)
{
    struct logprobs_args a = {out, logits, token, vocab};
    run(b, b->kernels->logprobs, &a, rows, (uint64_t)rows * vocab / MASSES_PER_NS);
}

static void cpu_block_copy(struct backend *b, const struct kv_view *kv, uint32_t from, uint32_t to)
{
    (void)b;
    size_t bytes = kv_block_bytes(&kv->geometry);
    memcpy((char *)kv->base + to * bytes, (const char *)kv->base + from * bytes, bytes);
}

static uint64_t cpu_mark(struct backend *b)
{
    return ++b->marks;
}
static enum err cpu_sync(struct backend *b)
{
    enum err e = b->status; /* the text was set where it happened */
    b->status = OK;
    return e;
}

static enum err cpu_wait(struct backend *b, uint64_t mark, uint64_t timeout_ns)
{
    CHECK(mark <= b->marks);
    (void)timeout_ns;
    return cpu_sync(b);
}

#define CPU_OPS(path_name, path_open)                                                              \
    {                                                                                              \
        .abi = BACKEND_ABI, .name = path_name, .open = path_open, .close = cpu_close,              \
        .facts = cpu_facts, .alloc = cpu_alloc, .free = cpu_free, .host_alloc = cpu_host_alloc,    \
        .host_free = cpu_free, .memory_free = cpu_memory_free, .write = cpu_write,                 \
        .read = cpu_read, .fetch = cpu_fetch, .pack_bytes = cpu_pack_bytes,                        \
        .pack_rows = cpu_pack_rows, .weight_place = cpu_weight_place, .prepare = cpu_prepare,      \
        .step = cpu_step, .embed = cpu_embed, .rms_norm = cpu_rms_norm, .matmul = cpu_matmul,      \
        .gated = cpu_gated, .rope_append = cpu_rope_append, .attend = cpu_attend,                  \
        .silu_mul = cpu_silu_mul, .gather = cpu_gather, .logprobs = cpu_logprobs,                  \
        .block_copy = cpu_block_copy, .mark = cpu_mark, .wait = cpu_wait, .sync = cpu_sync,        \
    }

static enum err open_c(struct backend **b, const struct backend_options *options)
{
    return cpu_open(b, options, &cpu_c_kernels);
}

static const char *missing_nothing(void)
{
    return NULL;
}

/* A path: its table, and what this machine lacks for it (NULL: nothing). */
struct path {
    struct backend_ops ops;
    const char *(*missing)(void);
};

#if defined(__x86_64__)
static enum err open_avx2(struct backend **b, const struct backend_options *options)
{
    return cpu_open(b, options, &cpu_avx2_kernels);
}
static enum err open_avx512(struct backend **b, const struct backend_options *options)
{
    return cpu_open(b, options, &cpu_avx512_kernels);
}
static const char *missing_avx2(void)
{
    if (!__builtin_cpu_supports("avx2")) return "avx2";
    return __builtin_cpu_supports("fma") ? NULL : "fma";
}
static const char *missing_avx512(void)
{
    if (!__builtin_cpu_supports("avx512f")) return "avx512f";
    if (!__builtin_cpu_supports("avx512bw")) return "avx512bw";
    if (!__builtin_cpu_supports("avx512vl")) return "avx512vl";
    if (!__builtin_cpu_supports("avx512dq")) return "avx512dq";
    return __builtin_cpu_supports("avx512bf16") ? NULL : "avx512_bf16";
}
#endif

static const struct path paths[] = {
/* best first */
#if defined(__x86_64__)
    {CPU_OPS("cpu-avx512", open_avx512), missing_avx512},
    {CPU_OPS("cpu-avx2", open_avx2), missing_avx2},
#endif
    {CPU_OPS("cpu-c", open_c), missing_nothing},
};
enum { PATHS_COUNT = sizeof paths / sizeof paths[0] };

enum err backend_find(const char *name, const struct backend_ops **ops)
{
    if (strcmp(name, "cuda") == 0) return plugin_find(name, ops);
    for (int i = 0; i < PATHS_COUNT; i++) {
        const char *missing = paths[i].missing();
        if (strcmp(name, "cpu") == 0 && missing) continue;
        if (strcmp(name, "cpu") != 0 && strcmp(name, paths[i].ops.name) != 0) continue;
        if (missing) return err_set(ERR_UNSUPPORTED, "%s: this CPU lacks %s", name, missing);
        *ops = &paths[i].ops;
        return OK;
    }
    return err_set(ERR_NOT_FOUND,
                   "no backend \"%s\": there are cpu, cpu-c, cpu-avx2, cpu-avx512, cuda", name);
}

/* Each path's instructions include those of the paths behind it. */
const char *const *backend_names(void)
{
    static const char *const names[] = {
#if defined(__x86_64__)
        "cpu-avx512",
        "cpu-avx2",
#endif
        "cpu-c",
        NULL
    };
    int best = 0;
    while (paths[best].missing())
        best++;
    return names + best;
}
