/* Loading a model onto a device, and letting go of both. */
#include "engine/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/mem.h"
#include "engine/fingerprint.h"

static enum err check_options(const struct engine_options *o)
{
    if (!o->model_dir) return err_set(ERR_INVALID, "no model directory given");
    if (o->dtype == DTYPE_F16)
        return err_set(ERR_UNSUPPORTED, "dtype fp16 is not computed in; use fp32 or bf16");
    if (o->limits.sequences_max < 1 || o->limits.rows_max < 1 || o->limits.table_max < 1 ||
        o->slots_count < 1)
        return err_set(ERR_INVALID, "the engine needs room for one sequence, row, block and slot");
    return OK;
}

/* "cuda:1" is the second device of backend "cuda". */
static enum err split_device(const char *device, char *name, size_t name_size, uint32_t *index)
{
    if (!device) device = "cpu";
    size_t n = strcspn(device, ":");
    snprintf(name, name_size, "%.*s", (int)n, device);
    if (device[n] == '\0') return OK;
    char *end;
    unsigned long value = strtoul(device + n + 1, &end, 10);
    if (end == device + n + 1 || *end != '\0' || value > 1023)
        return err_set(ERR_INVALID, "device \"%s\": behind the colon stands a number, like cuda:0",
                       device);
    *index = (uint32_t)value;
    return OK;
}

enum err engine_check_backend(const char *backend)
{
    char name[32];
    uint32_t index;
    const struct backend_ops *ops;
    enum err e = split_device(backend, name, sizeof name, &index);
    return e == OK && backend_find(name, &ops) == ERR_NOT_FOUND ? ERR_INVALID : e;
}

enum err engine_try_backend(const char *backend)
{
    char name[32];
    const struct backend_ops *ops;
    struct backend *b;
    struct backend_options o = {
        .threads = 1, .dtype = DTYPE_F32, .limits = {BLOCK_TOKENS, 1, 1, 1, 1}};
    enum err e = split_device(backend, name, sizeof name, &o.device_index);
    if (e != OK || (e = backend_find(name, &ops)) != OK) return e;
    if ((e = ops->open(&b, &o)) == OK) ops->close(b);
    return e;
}

enum err engine_pci_address(const char *backend, char *text, size_t size)
{
    char name[32];
    uint32_t index = 0;
    const struct backend_ops *ops;
    text[0] = '\0';
    enum err e = split_device(backend, name, sizeof name, &index);
    if (e != OK || (e = backend_find(name, &ops)) != OK) return e;
    return ops->pci_address ? ops->pci_address(index, text, size) : OK;
}

static enum err open_backend(struct engine *g, enum dtype dtype)
{
    const struct step_limits *l = &g->options.limits;
    struct backend_options o = {
        .threads = g->options.threads,
        .cpus = g->options.cpus,
        .dtype = dtype,
        .deterministic = g->options.deterministic,
        .limits = {l->rows_max, l->sequences_max, l->table_max, g->options.slots_count,
                   g->config.vocab_count},
    };
    char name[32];
    enum err e = split_device(g->options.backend, name, sizeof name, &o.device_index);
    if (e != OK || (e = backend_find(name, &g->ops)) != OK) return e;
    if ((e = g->ops->open(&g->backend, &o)) != OK) return e;
    const struct backend_facts *facts = g->ops->facts(g->backend);
    CHECK(facts->queue_depth <= FLIGHTS_MAX && (facts->draws || facts->host_memory));
    g->facts.device_index = o.device_index;
    g->facts.kv_slots = g->ops->kv_gather != NULL;
    g->facts.kv_windows = g->ops->facts(g->backend)->windows;
    return OK;
}

/* The backend, opened for what the model's files say, and the weights; the files are let go again when
 * these are packed, found or on the device. */
static enum err load_model(struct engine *g)
{
    char cache_dir[CACHE_DIR_BYTES];
    struct tensors tensors = {0};
    enum err e = model_config_load(&g->config, g->options.model_dir);
    if (e != OK || (e = tensors_open(&tensors, g->options.model_dir)) != OK) return e;
    if ((e = weights_check(&g->config, &tensors)) != OK) goto done;
    cache_dir_find(cache_dir, g->options.cache_dir);
    struct weights_options o = {.config = &g->config,
                                .tensors = &tensors,
                                .dtype = g->options.dtype,
                                .cache_dir = *cache_dir ? cache_dir : NULL};
    if (o.dtype == DTYPE_NONE && (e = weights_dtype(&o.dtype, &tensors)) != OK) goto done;
    if ((e = open_backend(g, o.dtype)) != OK) goto done;
    o.ops = g->ops;
    o.backend = g->backend;
    if ((e = model_fingerprint(&o.model, &tensors, o.cache_dir)) != OK) goto done;
    uint64_t began_ns = clock_now_ns();
    e = weights_open(&g->weights, &o);
    g->facts.weights_ns = clock_now_ns() - began_ns;
    g->facts.model_fingerprint = o.model;
done:
    tensors_close(&tensors);
    return e;
}

static enum err make_rope(struct engine *g, uint32_t positions_count)
{
    uint32_t half = g->config.head_dim / 2;
    size_t bytes = (size_t)positions_count * half * sizeof(float);
    enum err e = ERR_MEMORY;
    void *cos = g->ops->alloc(g->backend, bytes), *sin = g->ops->alloc(g->backend, bytes);
    g->rope = (struct rope_table){cos, sin, half};
    float *host_cos = mem_array((size_t)positions_count * half, sizeof *host_cos);
    float *host_sin = mem_array((size_t)positions_count * half, sizeof *host_sin);
    if (cos && sin && host_cos && host_sin) {
        rope_fill(&g->config.rope, half, positions_count, host_cos, host_sin);
        e = g->ops->write(g->backend, cos, host_cos, bytes);
        if (e == OK) e = g->ops->write(g->backend, sin, host_sin, bytes);
    }
    mem_free(host_cos);
    mem_free(host_sin);
    return e;
}

static enum err make_drawn(struct engine *g)
{
    const struct backend_facts *facts = g->ops->facts(g->backend);
    size_t bytes = g->options.limits.sequences_max * sizeof *g->flight[0].drawn;
    for (uint32_t i = 0; facts->draws && i < facts->queue_depth; i++)
        if (!(g->flight[i].drawn = g->ops->host_alloc(g->backend, bytes))) return ERR_MEMORY;
    return OK;
}

static enum err make_buffers(struct engine *g)
{
    const struct step_limits *l = &g->options.limits;
    struct forward_parts parts = {.ops = g->ops,
                                  .backend = g->backend,
                                  .config = &g->config,
                                  .weights = &g->weights,
                                  .rope = &g->rope,
                                  .kv = &g->kv};
    enum err e;
    if ((e = forward_init(&g->forward, &parts, l->rows_max, l->sequences_max)) != OK) return e;
    if ((e = slots_init(&g->slots, g->options.slots_count, g->config.vocab_count)) != OK) return e;
    if ((e = sampler_init(&g->sampler, g->config.vocab_count)) != OK) return e;
    g->tokens = mem_array(l->rows_max, sizeof *g->tokens);
    g->sequence = mem_array(l->sequences_max, sizeof *g->sequence);
    g->output_row = mem_array(l->rows_max, sizeof *g->output_row);
    g->logits_row = mem_array(l->sequences_max, sizeof *g->logits_row);
    if ((e = make_drawn(g)) != OK) return e;
    if ((e = encoder_init(&g->encoder, &g->forward)) != OK) return e;
    bool all = g->tokens && g->sequence && g->output_row && g->logits_row;
    return all ? OK : ERR_MEMORY;
}

static uint64_t numerics_id(const struct engine *g)
{
    const uint32_t tensor_parallel = 1;
    uint64_t backend = g->ops->facts(g->backend)->numerics;
    uint64_t rope = rope_hash(&g->config.rope, g->config.head_dim / 2);
    uint32_t dtype = g->weights.dtype;
    struct hash_stream s;
    hash_start(&s);
    hash_more(&s, &backend, sizeof backend);
    hash_more(&s, &rope, sizeof rope);
    hash_more(&s, &dtype, sizeof dtype);
    hash_more(&s, &tensor_parallel, sizeof tensor_parallel);
    return hash_end64(&s);
}

/* The directory's last component, also behind slashes and for ".". */
static void name_model(char *name, size_t size, const char *dir)
{
    char *real = realpath(dir, NULL);
    const char *slash = strrchr(real ? real : dir, '/');
    snprintf(name, size, "%s", slash ? slash + 1 : dir);
    free(real);
}

static void fill_facts(struct engine *g)
{
    const struct backend_facts *b = g->ops->facts(g->backend);
    struct engine_facts *f = &g->facts;
    name_model(g->model_name, sizeof g->model_name, g->options.model_dir);
    if (*b->device)
        snprintf(g->device, sizeof g->device, "%s %s", b->path, b->device);
    else
        snprintf(g->device, sizeof g->device, "%s x%u", b->path, b->threads);
    f->numerics_id = numerics_id(g);
    f->geometry = g->kv.geometry;
    f->blocks_count = g->kv.blocks_count;
    f->vocab_count = g->config.vocab_count;
    f->hidden = g->config.hidden;
    f->window = g->config.window;
    f->limits = g->options.limits;
    f->slots_count = g->options.slots_count;
    f->queue_depth = b->queue_depth;
    f->eos = g->config.eos;
    f->eos_count = g->config.eos_count;
    f->model_name = g->model_name;
    f->device = g->device;
    f->weights_bytes = g->weights.bytes;
    f->cache_hit = g->weights.cache_hit;
    f->flops_per_token = g->weights.flops_per_token;
}

static enum err open_all(struct engine *g)
{
    enum err e;
    if ((e = check_options(&g->options)) != OK) return e;
    if ((e = load_model(g)) != OK) return e;
    g->facts.context_max = g->config.context_max;
    if (g->options.context_max && g->options.context_max < g->config.context_max)
        g->facts.context_max = g->options.context_max;
    if ((e = make_rope(g, g->facts.context_max)) != OK) return e;
    if ((e = make_buffers(g)) != OK) return e;
    if ((e = engine_make_pool(g)) != OK) return e;
    fill_facts(g);
    return forward_record(&g->forward);
}

enum err engine_open(struct engine **out, const struct engine_options *options)
{
    uint64_t began_ns = clock_now_ns();
    struct engine *g = *out = mem_new(sizeof *g);
    if (!g) return ERR_MEMORY;
    g->options = *options;
    g->weights.file.write.fd = -1;
    enum err e = open_all(g);
    if (e != OK) {
        *out = NULL;
        engine_close(g);
        return e;
    }
    g->options.model_dir = g->options.cache_dir = g->options.backend = NULL;
    g->facts.load_ns = clock_now_ns() - began_ns;
    return OK;
}

void engine_close(struct engine *g)
{
    if (!g) return;
    CHECK(!g->inbox);
    for (uint32_t i = 0; i < FLIGHTS_MAX; i++)
        if (g->flight[i].drawn) g->ops->host_free(g->backend, g->flight[i].drawn);
    encoder_fini(&g->encoder);
    forward_fini(&g->forward);
    mem_free(g->logits);
    slots_fini(&g->slots);
    sampler_fini(&g->sampler);
    mem_free(g->tokens);
    mem_free(g->sequence);
    mem_free(g->output_row);
    mem_free(g->logits_row);
    if (g->kv.base) g->ops->free(g->backend, g->kv.base);
    if (g->rope.cos) g->ops->free(g->backend, (void *)(uintptr_t)g->rope.cos);
    if (g->rope.sin) g->ops->free(g->backend, (void *)(uintptr_t)g->rope.sin);
    weights_close(&g->weights);
    if (g->backend) g->ops->close(g->backend);
    mem_free(g);
}

const struct engine_facts *engine_facts(const struct engine *g)
{
    return &g->facts;
}
