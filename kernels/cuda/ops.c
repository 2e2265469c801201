/* The ops: kernels.h with this backend's choices, which are the product for a number of rows, and which
 * rows of a step attend as decode rows. */
#include "common/plant.h"
#include "kernels/cuda/backend.h"

/* The step's arrays; what is baked into a recorded step comes from the caller. */
static struct cuda_batch batch_now(const struct backend *b, const struct batch *batch)
{
    struct cuda_batch now = b->batch;
    now.window = batch->window;
    return now;
}

static struct cuda_attention attention_of(const struct attend_shape *s, const struct kv_view *kv)
{
    return (struct cuda_attention){.heads = s->heads,
                                   .kv_heads = s->kv_heads,
                                   .head_dim = s->head_dim,
                                   .scale = s->scale,
                                   .dtype = kv->geometry.dtype};
}

void op_prepare(struct backend *b, const struct matrix *w, enum row_kind out_kind, bool biased,
                uint32_t rows_max)
{
    const struct lt_shape shape = {
        .n = w->n, .k = w->k, .out_wide = out_kind == ROWS_STREAM, .bias = biased};
    backend_enter(b);
    if (!b->lt || w->dtype != DTYPE_BF16 || !backend_ok(b)) return;
    enum err e = lt_prepare(b->lt, &shape, w->packed, rows_max);
    if (e != ERR_UNSUPPORTED) backend_keep(b, e); /* op_matmul has another way */
}

void op_embed(struct backend *b, float *x, const void *table, enum dtype dtype,
              const struct batch *batch, uint32_t rows, uint32_t dim)
{
    const struct cuda_batch now = batch_now(b, batch);
    if (!backend_ok(b)) return;
    backend_check(b, cuda_embed(b->stream, x, table, dtype, &now, b->slots.last, rows, dim),
                  "embed");
}

void op_rms_norm(struct backend *b, void *out, const float *x, const float *weight, uint32_t rows,
                 uint32_t dim, float eps)
{
    if (!backend_ok(b)) return;
    backend_check(b, cuda_rms_norm(b->stream, out, x, weight, rows, dim, eps, b->options.dtype),
                  "rms_norm");
}

void op_matmul(struct backend *b, void *out, enum row_kind out_kind, const void *x,
               const struct matrix *w, const float *bias, const float *residual, uint32_t rows)
{
    const struct cuda_product p = {.out = out,
                                   .x = x,
                                   .w = w->packed,
                                   .bias = bias,
                                   .residual = residual,
                                   .n = w->n,
                                   .k = w->k,
                                   .rows = rows,
                                   .dtype = w->dtype,
                                   .out_wide = out_kind == ROWS_STREAM};
    if (!backend_ok(b)) return;
    if (rows <= CUDA_SKINNY_ROWS) {
        backend_check(b, cuda_product_skinny(b->stream, &p), "a product of few rows");
        return;
    }
    enum err e = b->lt && w->dtype == DTYPE_BF16 ? lt_product(b->lt, &p) : ERR_UNSUPPORTED;
    if (e == ERR_UNSUPPORTED)
        backend_check(b, cuda_product_fixed(b->stream, &p), "a product");
    else
        backend_keep(b, e);
}

void op_rope_append(struct backend *b, void *qkv, const struct batch *batch, uint32_t rows,
                    const struct rope_table *rope, const struct attend_shape *shape,
                    const struct kv_view *kv, uint32_t layer)
{
    const struct cuda_batch now = batch_now(b, batch);
    const struct cuda_attention a = attention_of(shape, kv);
    const struct cuda_kv place = backend_kv(kv, layer);
    if (!backend_ok(b)) return;
    backend_check(b, cuda_rope_append(b->stream, qkv, &now, rope->cos, rope->sin, &a, &place, rows),
                  "rope_append");
}

static void make_attend_scratch(struct backend *b, const struct cuda_attention *a)
{
    size_t bytes = cuda_attend_scratch(a, backend_splits_max(b));
    if (bytes <= b->attend_scratch_bytes) return;
    CHECK(!b->recording);
    if (!PLANTED("scratch_not_waited_for")) /* steps still use it */
        backend_check(b, cudaStreamSynchronize(b->stream), "the device");
    if (!PLANTED("graph_stale_scratch")) step_forget_graphs(b);
    if (b->attend_scratch) cudaFree(b->attend_scratch);
    b->attend_scratch = NULL;
    b->attend_scratch_bytes = 0;
    backend_keep(b, cuda_take(&b->attend_scratch, bytes, "decode attention"));
    if (backend_ok(b)) b->attend_scratch_bytes = bytes;
}

void op_attend(struct backend *b, void *out, const void *qkv, const struct batch *batch,
               uint32_t rows, const struct attend_shape *shape, const struct kv_view *kv,
               uint32_t layer)
{
    const struct cuda_batch now = batch_now(b, batch);
    const struct cuda_attention a = attention_of(shape, kv);
    const struct cuda_kv place = backend_kv(kv, layer);
    uint32_t stride = (shape->heads + 2 * shape->kv_heads) * shape->head_dim;
    (void)rows;
    if (!backend_ok(b)) return;
    make_attend_scratch(b, &a);
    if (b->decode_rows > 0 && backend_ok(b))
        backend_check(b,
                      cuda_attend_decode(b->stream, out, qkv, stride, &now, &a, &place,
                                         b->decode_rows, b->attend_scratch),
                      "decode attention");
    if (b->tiles > 0 && backend_ok(b))
        backend_check(b,
                      cuda_attend_prefill(b->stream, out, qkv, stride, &now, &a, &place, b->tiles,
                                          b->options.deterministic, b->own_windows),
                      "prefill attention");
}

void op_silu_mul(struct backend *b, void *out, const void *gate_up, uint32_t rows, uint32_t dim)
{
    if (!backend_ok(b)) return;
    backend_check(b, cuda_silu_mul(b->stream, out, gate_up, rows, dim, b->options.dtype),
                  "silu_mul");
}

void op_gather(struct backend *b, float *out, const float *x, const struct batch *batch,
               uint32_t first, uint32_t count, uint32_t dim)
{
    struct cuda_batch now = batch_now(b, batch);
    now.output_row += first;
    if (!backend_ok(b)) return;
    backend_check(b, cuda_gather(b->stream, out, x, &now, count, dim), "gather");
}

void op_block_copy(struct backend *b, const struct kv_view *kv, uint32_t from, uint32_t to)
{
    size_t bytes = kv_block_bytes(&kv->geometry);
    backend_enter(b);
    if (!backend_ok(b)) return;
    backend_check(b,
                  cudaMemcpyAsync((char *)kv->base + to * bytes, (char *)kv->base + from * bytes,
                                  bytes, cudaMemcpyDeviceToDevice, b->stream),
                  "copying a block");
}
