/* KV blocks between the pool and host memory, or a link's slot, for links: gathered into contiguous device memory in the
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
    if (e == OK) e = cuda_take((void **)&m->hash, sizeof *m->hash, "KV on its way");
    if (e == OK)
        e = cuda_check(
            cudaHostAlloc((void **)&m->hash_host, sizeof *m->hash_host, cudaHostAllocDefault),
            "pinned memory");
    return e;
}

void mover_close(struct kv_mover *m)
{
    if (m->stream) cudaStreamSynchronize(m->stream);
    if (m->staging) cudaFree(m->staging);
    if (m->blocks) cudaFree(m->blocks);
    if (m->hash) cudaFree(m->hash);
    if (m->hash_host) cudaFreeHost(m->hash_host);
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

/* Done, or failed: nothing touches blocks, slot or host memory after it, since who is told of an error lets
 * go of them. */
static enum err moved(struct kv_mover *m, enum err e, const char *what)
{
    if (e == OK) e = cuda_check(cudaStreamSynchronize(m->stream), what);
    if (e != OK && cudaStreamSynchronize(m->stream) != cudaSuccess) cudaGetLastError();
    return e;
}

static enum err move_out(const struct move *v, char *host)
{
    struct kv_mover *m = v->m;
    enum err e = cuda_check(
        cuda_kv_gather(m->stream, m->staging, &v->place, m->blocks, v->count, v->layout, NULL),
        "gathering KV");
    if (e == OK)
        e = cuda_check(
            cudaMemcpyAsync(host, m->staging, v->bytes, cudaMemcpyDeviceToHost, m->stream),
            "reading KV");
    return PLANTED("kv_read_not_waited_for") ? e : moved(m, e, "reading KV");
}

static enum err move_in(const struct move *v, char *host)
{
    struct kv_mover *m = v->m;
    enum err e =
        cuda_check(cudaMemcpyAsync(m->staging, host, v->bytes, cudaMemcpyHostToDevice, m->stream),
                   "writing KV");
    if (e == OK)
        e = cuda_check(
            cuda_kv_scatter(m->stream, &v->place, m->staging, m->blocks, v->count, v->layout, NULL),
            "scattering KV");
    return PLANTED("kv_write_not_waited_for") ? e : moved(m, e, "writing KV");
}

static enum err tell_blocks(struct kv_mover *m, const uint32_t *blocks, uint32_t count)
{
    return cuda_check(cudaMemcpyAsync(m->blocks, blocks, count * sizeof *blocks,
                                      cudaMemcpyHostToDevice, m->stream),
                      "KV's block numbers");
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
        e = tell_blocks(m, blocks + first, count);
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

/* Between the pool and a slot, all at once: who calls waits for one kernel and eight bytes. */
static enum err move_slot(struct backend *b, const struct kv_view *kv, uint32_t layer,
                          const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                          void *slot, bool to_pool, uint64_t *hash)
{
    struct kv_mover *m = &b->mover;
    struct cuda_kv place = backend_kv(kv, layer);
    enum err e = cuda_device_use(b->device.index);
    if (blocks_count > STAGING_BLOCKS)
        return err_set(ERR_INVALID, "%u blocks for a slot, %d are possible", blocks_count,
                       STAGING_BLOCKS);
    if (e == OK) e = tell_blocks(m, blocks, blocks_count);
    if (e == OK)
        e = cuda_check(cudaMemsetAsync(m->hash, 0, sizeof *m->hash, m->stream), "KV's checksum");
    if (e == OK)
        e = cuda_check(
            to_pool
                ? cuda_kv_scatter(m->stream, &place, slot, m->blocks, blocks_count, layout, m->hash)
                : cuda_kv_gather(m->stream, slot, &place, m->blocks, blocks_count, layout, m->hash),
            to_pool ? "scattering KV" : "gathering KV");
    if (e == OK)
        e = cuda_check(cudaMemcpyAsync(m->hash_host, m->hash, sizeof *m->hash,
                                       cudaMemcpyDeviceToHost, m->stream),
                       "KV's checksum");
    if (!PLANTED("kv_slot_not_waited_for")) e = moved(m, e, "moving KV");
    *hash = *m->hash_host;
    return e;
}

enum err cuda_kv_to_slot(struct backend *b, const struct kv_view *kv, uint32_t layer,
                         const uint32_t *blocks, uint32_t blocks_count, uint32_t layout, void *slot,
                         uint64_t *hash)
{
    return move_slot(b, kv, layer, blocks, blocks_count, layout, slot, false, hash);
}

enum err cuda_kv_from_slot(struct backend *b, const struct kv_view *kv, uint32_t layer,
                           const uint32_t *blocks, uint32_t blocks_count, uint32_t layout,
                           const void *slot, uint64_t *hash)
{
    return move_slot(b, kv, layer, blocks, blocks_count, layout, (void *)(uintptr_t)slot, true,
                     hash);
}

/* ---- tiers ---- */

enum err lane_open(struct kv_tier_lane *lane)
{
    return cuda_check(cudaStreamCreateWithFlags(&lane->stream, cudaStreamNonBlocking),
                      "a stream for tiers");
}

void lane_close(struct kv_tier_lane *lane)
{
    if (!lane->stream) return;
    cudaStreamSynchronize(lane->stream);
    cudaStreamDestroy(lane->stream);
}

/* A block lies in one piece, so nothing is gathered. */
static enum err copy_block(struct backend *b, const struct kv_view *kv, void *to, const void *from,
                           enum cudaMemcpyKind way, const char *what)
{
    cudaStream_t stream = b->lane.stream;
    enum err e = cuda_device_use(b->device.index);
    if (e == OK)
        e = cuda_check(cudaMemcpyAsync(to, from, kv_block_bytes(&kv->geometry), way, stream), what);
    if (PLANTED("kv_block_not_waited_for")) return e;
    if (e == OK) e = cuda_check(cudaStreamSynchronize(stream), what);
    if (e != OK && cudaStreamSynchronize(stream) != cudaSuccess) cudaGetLastError();
    return e;
}

static char *block_at(const struct kv_view *kv, uint32_t block)
{
    return (char *)kv->base + block * kv_block_bytes(&kv->geometry);
}

enum err cuda_block_read(struct backend *b, const struct kv_view *kv, uint32_t block, void *host)
{
    return copy_block(b, kv, host, block_at(kv, block), cudaMemcpyDeviceToHost, "reading a block");
}

enum err cuda_block_write(struct backend *b, const struct kv_view *kv, uint32_t block,
                          const void *host)
{
    return copy_block(b, kv, block_at(kv, block), host, cudaMemcpyHostToDevice, "writing a block");
}
