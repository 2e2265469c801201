/* The engine's KV memory: how large it is, and who else reads and writes it. */
#include "engine/state.h"

#include <string.h>

#define KV_BYTES_MIN ((uint64_t)64 << 20)
#define KV_SHARE 0.9 /* of what is free on a device that tells it */

static enum err alloc_pool(struct engine *g, uint64_t blocks)
{
    uint64_t block = kv_block_bytes(&g->kv.geometry);
    if (blocks == 0 || blocks > UINT32_MAX || blocks > SIZE_MAX / 2 / block)
        return err_set(
            ERR_INVALID, "a KV pool of %llu bytes: one block has %llu, and %u blocks are the most",
            (unsigned long long)g->options.kv_bytes, (unsigned long long)block, UINT32_MAX);
    g->kv.blocks_count = (uint32_t)blocks;
    if ((g->kv.base = g->ops->alloc(g->backend, blocks * block))) return OK;
    return err_set(ERR_MEMORY, "a KV pool of %llu blocks of %llu bytes does not fit into memory",
                   (unsigned long long)blocks, (unsigned long long)block);
}

/* What is free beside weights, buffers and recorded steps, which are recorded over one block to see what
 * they take; 0: the device does not tell. */
static enum err measure_free(struct engine *g, uint64_t *free_bytes)
{
    enum err e;
    *free_bytes = g->ops->memory_free(g->backend);
    if (*free_bytes == 0) return OK;
    if ((e = alloc_pool(g, 1)) != OK || (e = forward_record(&g->forward)) != OK) return e;
    *free_bytes = g->ops->memory_free(g->backend) + kv_block_bytes(&g->kv.geometry);
    g->ops->free(g->backend, g->kv.base);
    g->kv.base = NULL;
    return OK;
}

/* The pool on a device that nobody told a size: its share of what is free. */
static enum err share_of_free(struct engine *g, uint64_t free_bytes, uint64_t context_blocks,
                              uint64_t *blocks)
{
    uint64_t block = kv_block_bytes(&g->kv.geometry);
    double share = g->options.kv_share > 0 ? g->options.kv_share : KV_SHARE;
    *blocks = (uint64_t)((double)free_bytes * share) / block;
    if (*blocks >= context_blocks) return OK;
    return err_set(
        ERR_MEMORY,
        "the device has %llu MiB free after %llu MiB of weights, of which %.0f %% are the "
        "pool's: the KV of one context of %u tokens needs %llu MiB; lower the context or "
        "the limits",
        (unsigned long long)free_bytes >> 20, (unsigned long long)g->weights.bytes >> 20,
        share * 100, g->facts.context_max, (unsigned long long)(context_blocks * block) >> 20);
}

enum err engine_make_pool(struct engine *g)
{
    const struct engine_options *o = &g->options;
    const struct model_config *c = &g->config;
    uint64_t blocks = o->blocks_count, free_bytes = 0;
    uint64_t context_blocks = blocks_for_tokens(g->facts.context_max);
    enum err e;
    g->kv.geometry = (struct kv_geometry){.layers_count = c->layers_count,
                                          .kv_heads = c->kv_heads,
                                          .head_dim = c->head_dim,
                                          .block_tokens = BLOCK_TOKENS,
                                          .layout = g->ops->facts(g->backend)->kv_layout,
                                          .dtype = g->weights.dtype};
    uint64_t block = kv_block_bytes(&g->kv.geometry);
    bool told = blocks > 0 || o->kv_bytes > 0;
    if (!told && (e = measure_free(g, &free_bytes)) != OK) return e;
    if (free_bytes > 0) {
        if ((e = share_of_free(g, free_bytes, context_blocks, &blocks)) != OK) return e;
        return alloc_pool(g, blocks);
    }
    if (blocks == 0) blocks = (told ? o->kv_bytes : KV_BYTES_MIN) / block;
    if (!told && blocks < context_blocks) blocks = context_blocks;
    return alloc_pool(g, blocks);
}

const struct kv_view *engine_kv(const struct engine *g)
{
    return &g->kv;
}

void *engine_kv_host(const struct engine *g)
{
    return g->ops->facts(g->backend)->host_memory ? g->kv.base : NULL;
}

enum err engine_kv_read(struct engine *g, uint32_t layer, const uint32_t *blocks,
                        uint32_t blocks_count, uint32_t layout, void *host)
{
    return g->ops->kv_read(g->backend, &g->kv, layer, blocks, blocks_count, layout, host);
}

enum err engine_kv_write(struct engine *g, uint32_t layer, const uint32_t *blocks,
                         uint32_t blocks_count, uint32_t layout, const void *host)
{
    return g->ops->kv_write(g->backend, &g->kv, layer, blocks, blocks_count, layout, host);
}

enum err engine_kv_gather(struct engine *g, uint32_t layer, const uint32_t *blocks,
                          uint32_t blocks_count, uint32_t layout, void *slot, uint64_t *hash)
{
    return g->ops->kv_gather(g->backend, &g->kv, layer, blocks, blocks_count, layout, slot, hash);
}

enum err engine_kv_scatter(struct engine *g, uint32_t layer, const uint32_t *blocks,
                           uint32_t blocks_count, uint32_t layout, const void *slot, uint64_t *hash)
{
    return g->ops->kv_scatter(g->backend, &g->kv, layer, blocks, blocks_count, layout, slot, hash);
}

enum err engine_block_read(struct engine *g, uint32_t block, void *host)
{
    size_t bytes = kv_block_bytes(&g->kv.geometry);
    if (!engine_kv_host(g)) return g->ops->block_read(g->backend, &g->kv, block, host);
    memcpy(host, (char *)g->kv.base + block * bytes, bytes);
    return OK;
}

enum err engine_block_write(struct engine *g, uint32_t block, const void *host)
{
    size_t bytes = kv_block_bytes(&g->kv.geometry);
    if (!engine_kv_host(g)) return g->ops->block_write(g->backend, &g->kv, block, host);
    memcpy((char *)g->kv.base + block * bytes, host, bytes);
    return OK;
}

void *engine_host_alloc(struct engine *g, size_t bytes)
{
    return g->ops->host_alloc(g->backend, bytes);
}

void engine_host_free(struct engine *g, void *p)
{
    g->ops->host_free(g->backend, p);
}
