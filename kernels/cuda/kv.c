/* KV blocks between the pool and host memory, for links: gathered into contiguous device memory in the
 * order that is wanted, then one copy. On a stream of its own, so that steps go on meanwhile; who calls
 * has seen the mark behind the layer that it reads, and marks a step only when what it wrote is there.
 * Device memory is touched twice more for each byte moved: 1 or 2 % of the time that PCIe takes. */
#include "common/plant.h"
#include "kernels/cuda/backend.h"

enum { STAGING_BYTES = 8 << 20, STAGING_BLOCKS = 4096 };

enum err mover_open(struct kv_mover *m)
{
    enum err e =
        cuda_check(cudaStreamCreateWithFlags(&m->stream, cudaStreamNonBlocking), "a stream for KV");
    if (e == OK) e = cuda_take(&m->staging, STAGING_BYTES, "KV on its way");
    if (e == OK)
        e = cuda_take((void **)&m->blocks, STAGING_BLOCKS * sizeof *m->blocks, "KV on its way");
    return e;
}

void mover_close(struct kv_mover *m)
{
    if (m->stream) cudaStreamSynchronize(m->stream);
    if (m->staging) cudaFree(m->staging);
    if (m->blocks) cudaFree(m->blocks);
    if (m->stream) cudaStreamDestroy(m->stream);
}

/* Blocks that go at once. */
static uint32_t chunk_of(const struct kv_view *kv)
{
    size_t layer_bytes = kv_layer_bytes(&kv->geometry);
    CHECK(layer_bytes <= STAGING_BYTES);
    size_t blocks = STAGING_BYTES / layer_bytes;
    return blocks < STAGING_BLOCKS ? (uint32_t)blocks : STAGING_BLOCKS;
}

/* One chunk's way, behind the numbers of its blocks. */
struct move {
    struct kv_mover *m;
    struct cuda_kv place;
    uint32_t count, layout;
    size_t bytes;
};
typedef enum err move_fn(const struct move *v, char *host);

static enum err move_out(const struct move *v, char *host)
{
    struct kv_mover *m = v->m;
    enum err e =
        cuda_check(cuda_kv_gather(m->stream, m->staging, &v->place, m->blocks, v->count, v->layout),
                   "gathering KV");
    if (e == OK)
        e = cuda_check(
            cudaMemcpyAsync(host, m->staging, v->bytes, cudaMemcpyDeviceToHost, m->stream),
            "reading KV");
    if (e == OK && !PLANTED("kv_read_not_waited_for"))
        e = cuda_check(cudaStreamSynchronize(m->stream), "reading KV");
    return e;
}

static enum err move_in(const struct move *v, char *host)
{
    struct kv_mover *m = v->m;
    enum err e =
        cuda_check(cudaMemcpyAsync(m->staging, host, v->bytes, cudaMemcpyHostToDevice, m->stream),
                   "writing KV");
    if (e == OK)
        e = cuda_check(
            cuda_kv_scatter(m->stream, &v->place, m->staging, m->blocks, v->count, v->layout),
            "scattering KV");
    if (e == OK && !PLANTED("kv_write_not_waited_for"))
        e = cuda_check(cudaStreamSynchronize(m->stream), "writing KV");
    return e;
}

static enum err move_all(struct backend *b, const struct kv_view *kv, uint32_t layer,
                         const uint32_t *blocks, uint32_t blocks_count, uint32_t layout, char *host,
                         move_fn *way)
{
    struct kv_mover *m = &b->mover;
    size_t layer_bytes = kv_layer_bytes(&kv->geometry);
    uint32_t chunk = chunk_of(kv);
    enum err e = cuda_device_use(b->device.index);
    for (uint32_t first = 0; first < blocks_count && e == OK; first += chunk) {
        uint32_t count = blocks_count - first < chunk ? blocks_count - first : chunk;
        struct move v = {m, backend_kv(kv, layer), count, layout, count * layer_bytes};
        e = cuda_check(cudaMemcpyAsync(m->blocks, blocks + first, count * sizeof *blocks,
                                       cudaMemcpyHostToDevice, m->stream),
                       "KV's block numbers");
        if (e == OK) e = way(&v, host + first * layer_bytes);
    }
    return e;
}

enum err cuda_kv_read(struct backend *b, const struct kv_view *kv, uint32_t layer,
                      const uint32_t *blocks, uint32_t blocks_count, uint32_t layout, void *host)
{
    return move_all(b, kv, layer, blocks, blocks_count, layout, host, move_out);
}

enum err cuda_kv_write(struct backend *b, const struct kv_view *kv, uint32_t layer,
                       const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                       const void *host)
{
    return move_all(b, kv, layer, blocks, blocks_count, layout, (char *)(uintptr_t)host, move_in);
}
