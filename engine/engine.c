#include "engine/engine.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/mailbox.h"
#include "common/mem.h"
#include "engine/fingerprint.h"
#include "engine/forward.h"
#include "engine/rope.h"
#include "engine/sampler.h"
#include "engine/slot.h"

enum { STEPS_QUEUED_MAX = 64, NO_ROW = -1 };
#define KV_BYTES_MIN ((uint64_t)64 << 20)

struct engine {
    struct engine_options options; /* its strings are not kept */
    struct engine_facts facts;
    char model_name[256], device[64];

    const struct backend_ops *ops;
    struct backend *backend;
    struct model_config config;
    struct weights weights;
    struct rope_table rope;
    struct kv_view kv;
    struct forward forward;
    struct slots slots;
    struct sampler sampler;

    /* The step that runs, as the backend wants it: */
    uint32_t *tokens;                /* [rows_max], STEP_TOKEN_LAST replaced */
    struct batch_sequence *sequence; /* [sequences_max] */
    uint32_t *output_row;            /* [sequences_max] rows of the batch whose logits are wanted */
    int32_t *logits_row;             /* [sequences_max] where a sequence's are, or NO_ROW */
    bool sick;                       /* the device failed; so does every step from then on */

    pthread_t thread;
    struct mailbox *inbox; /* of struct step *; NULL: not started */
    engine_event_fn *on_event;
    void *on_event_ctx;
    _Atomic bool stopping;
    _Atomic uint64_t progress;
};

/* One step. */

static void check_sequence(const struct engine *g, const struct step *step,
                           const struct step_sequence *q)
{
    uint32_t tokens_count = q->position + q->rows_count, blocks = blocks_for_tokens(tokens_count);
    CHECK(q->slot < g->slots.slots_count && q->rows_count > 0);
    CHECK(q->position < g->facts.context_max && tokens_count <= g->facts.context_max);
    CHECK(q->table_first <= step->table_count && blocks <= step->table_count - q->table_first);
    for (uint32_t i = q->position / BLOCK_TOKENS; i < blocks; i++)
        CHECK(step->table[q->table_first + i] < g->kv.blocks_count);
}

/* A step comes from this program's own loop thread, which checked what came from outside. A wrong one
 * would write into someone else's KV, so it ends here. */
static void check_step(const struct engine *g, const struct step *step)
{
    uint32_t rows = 0;
    CHECK(step->sequences_count <= g->facts.limits.sequences_max);
    CHECK(step->rows_count <= g->facts.limits.rows_max);
    CHECK(step->table_count <= g->facts.limits.table_max);
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        CHECK(step->sequence[i].row_first == rows);
        CHECK(step->sequence[i].rows_count <= step->rows_count - rows);
        rows += step->sequence[i].rows_count;
        check_sequence(g, step, &step->sequence[i]);
    }
    CHECK(rows == step->rows_count);
}

/* Makes new slots and writes the batch, the rows to score among it. */
static uint32_t plan_batch(struct engine *g, const struct step *step)
{
    uint32_t outputs = 0;
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        const struct step_sequence *q = &step->sequence[i];
        if (q->setup) slot_make(&g->slots, q->slot, q->setup);
        CHECK(g->slots.slot[q->slot].made);
        for (uint32_t r = q->row_first; r < q->row_first + q->rows_count; r++) {
            uint32_t token = step->tokens[r];
            g->tokens[r] = token == STEP_TOKEN_LAST ? g->slots.slot[q->slot].last : token;
            CHECK(g->tokens[r] < g->facts.vocab_count);
        }
        g->sequence[i] =
            (struct batch_sequence){q->row_first, q->rows_count, q->position, q->table_first};
        g->logits_row[i] = q->sample ? (int32_t)outputs : NO_ROW;
        if (q->sample) g->output_row[outputs++] = q->row_first + q->rows_count - 1;
    }
    return outputs;
}

struct layer_watch {
    struct engine *engine;
    const struct step *step;
    bool report;
};

/* Called after each layer: counts, tells, and looks at the flags. */
static bool on_layer(void *ctx, uint32_t layer)
{
    const struct layer_watch *w = ctx;
    struct engine *g = w->engine;
    atomic_fetch_add_explicit(&g->progress, 1, memory_order_relaxed);
    if (w->report)
        g->on_event(
            g->on_event_ctx,
            &(struct engine_event){.kind = ENGINE_LAYER, .step_id = w->step->id, .layer = layer});
    return !atomic_load_explicit(&w->step->cancel, memory_order_relaxed) &&
           !atomic_load_explicit(&g->stopping, memory_order_relaxed);
}

static enum err run_rows(struct engine *g, struct step *step, bool report, uint32_t *outputs)
{
    check_step(g, step);
    if (g->sick) return err_set(ERR_DEVICE, "the device failed in an earlier step");
    *outputs = plan_batch(g, step);
    struct batch batch = {.rows_count = step->rows_count,
                          .tokens = g->tokens,
                          .sequence = g->sequence,
                          .sequences_count = step->sequences_count,
                          .table = step->table,
                          .window = g->config.window};
    struct layer_watch layers = {g, step, report};
    struct forward_watch watch = {.wait = report, .layer = on_layer, .ctx = &layers};
    return step->rows_count == 0 ? OK : forward_run(&g->forward, &batch, &watch);
}

static enum err run_step(struct engine *g, struct step *step, bool report)
{
    uint32_t outputs = 0;
    enum err e = run_rows(g, step, report, &outputs);
    if (e == OK && outputs > 0) e = forward_logits(&g->forward, g->output_row, outputs);
    if (e != OK && e != ERR_CANCELLED) g->sick = true;
    for (uint32_t i = 0; e == OK && i < step->sequences_count; i++) {
        if (g->logits_row[i] == NO_ROW) continue;
        slot_draw(&g->slots, step->sequence[i].slot, &g->sampler, engine_logits(g, i),
                  &step->result[i]);
    }
    return e;
}

enum err engine_run(struct engine *g, struct step *step)
{
    CHECK(!g->inbox);
    return run_step(g, step, false);
}

const float *engine_logits(const struct engine *g, uint32_t sequence)
{
    int32_t row = g->logits_row[sequence];
    return row == NO_ROW ? NULL : g->forward.logits + (size_t)row * g->facts.vocab_count;
}

enum err engine_run_scored(struct engine *g, struct step *step, float *logits)
{
    uint32_t unused, rows_max = g->facts.limits.sequences_max;
    size_t vocab = g->facts.vocab_count;
    CHECK(!g->inbox);
    enum err e = run_rows(g, step, false, &unused);
    for (uint32_t first = 0; e == OK && first < step->rows_count; first += rows_max) {
        uint32_t rows = step->rows_count - first < rows_max ? step->rows_count - first : rows_max;
        for (uint32_t r = 0; r < rows; r++)
            g->output_row[r] = first + r;
        e = forward_logits(&g->forward, g->output_row, rows);
        if (e == OK)
            memcpy(logits + first * vocab, g->forward.logits, rows * vocab * sizeof *logits);
    }
    for (uint32_t i = 0; i < step->sequences_count; i++)
        g->logits_row[i] = NO_ROW;
    return e;
}

/* The thread. */

static void pin(int32_t cpu)
{
    cpu_set_t set;
    if (cpu < 0 || cpu >= CPU_SETSIZE) return;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (pthread_setaffinity_np(pthread_self(), sizeof set, &set) != 0)
        log_warn("engine_not_pinned", "cpu=%d", cpu);
}

static void run_and_tell(struct engine *g, struct step *step)
{
    struct engine_event done = {.kind = ENGINE_STEP_DONE,
                                .step_id = step->id,
                                .began_ns = clock_now_ns(),
                                .status = ERR_CANCELLED};
    if (!step->cancel && !g->stopping) done.status = run_step(g, step, step->report_layers);
    if (done.status != OK && done.status != ERR_CANCELLED) {
        log_error("engine_failed", "step=%llu reason=\"%s\"", (unsigned long long)step->id,
                  err_text());
        done.status = ERR_DEVICE;
    }
    done.ended_ns = clock_now_ns();
    g->on_event(g->on_event_ctx, &done);
}

static void *engine_main(void *ctx)
{
    struct engine *g = ctx;
    struct step *step;
    pthread_setname_np(pthread_self(), "engine");
    pin(g->options.first_cpu);
    while (mailbox_wait(g->inbox, &step, TIME_NEVER) == OK)
        run_and_tell(g, step);
    return NULL;
}

enum err engine_start(struct engine *g, engine_event_fn *on_event, void *ctx)
{
    CHECK(!g->inbox);
    enum err e = mailbox_new(&g->inbox, sizeof(struct step *), STEPS_QUEUED_MAX);
    if (e != OK) return e;
    g->on_event = on_event;
    g->on_event_ctx = ctx;
    g->stopping = false;
    int failed = pthread_create(&g->thread, NULL, engine_main, g);
    if (!failed) return OK;
    mailbox_free(g->inbox);
    g->inbox = NULL;
    return err_set(ERR_IO, "cannot start the engine's thread: %s", strerror(failed));
}

enum err engine_submit(struct engine *g, struct step *step)
{
    return mailbox_send(g->inbox, &step);
}

void engine_stop(struct engine *g)
{
    if (!g->inbox) return;
    g->stopping = true;
    mailbox_close(g->inbox);
    pthread_join(g->thread, NULL);
    mailbox_free(g->inbox);
    g->inbox = NULL;
}

uint64_t engine_progress(const struct engine *g)
{
    return atomic_load_explicit(&g->progress, memory_order_relaxed);
}

/* Opening. */

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

static enum err open_backend(struct engine *g)
{
    struct backend_options o = {.threads = g->options.threads, .first_cpu = g->options.first_cpu};
    enum err e = backend_find(g->options.backend ? g->options.backend : "cpu", &g->ops);
    return e != OK ? e : g->ops->open(&g->backend, &o);
}

/* The model's files, which are let go again when the weights are packed or found. */
static enum err load_model(struct engine *g)
{
    char cache_dir[CACHE_DIR_BYTES];
    struct tensors tensors = {0};
    enum err e = model_config_load(&g->config, g->options.model_dir);
    if (e != OK || (e = tensors_open(&tensors, g->options.model_dir)) != OK) return e;
    cache_dir_find(cache_dir, g->options.cache_dir);
    struct weights_options o = {.ops = g->ops,
                                .backend = g->backend,
                                .config = &g->config,
                                .tensors = &tensors,
                                .dtype = g->options.dtype,
                                .cache_dir = *cache_dir ? cache_dir : NULL};
    if (o.dtype == DTYPE_NONE && (e = weights_dtype(&o.dtype, &tensors)) != OK) goto done;
    if ((e = model_fingerprint(&o.model, &tensors, o.cache_dir)) != OK) goto done;
    e = weights_open(&g->weights, &o);
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
    g->rope = (struct rope_table){cos, sin, positions_count, half};
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

static enum err make_pool(struct engine *g)
{
    const struct engine_options *o = &g->options;
    const struct model_config *c = &g->config;
    struct kv_geometry geometry = {.layers_count = c->layers_count,
                                   .kv_heads = c->kv_heads,
                                   .head_dim = c->head_dim,
                                   .block_tokens = BLOCK_TOKENS,
                                   .layout = g->ops->facts(g->backend)->kv_layout,
                                   .dtype = g->weights.dtype};
    uint64_t block = kv_block_bytes(&geometry), blocks = o->blocks_count;
    uint64_t context_blocks = blocks_for_tokens(g->facts.context_max);
    if (blocks == 0) blocks = (o->kv_bytes ? o->kv_bytes : KV_BYTES_MIN) / block;
    if (o->blocks_count == 0 && o->kv_bytes == 0 && blocks < context_blocks)
        blocks = context_blocks;
    if (blocks == 0 || blocks > UINT32_MAX || blocks > SIZE_MAX / 2 / block)
        return err_set(ERR_INVALID,
                       "a KV pool of %llu bytes: one block has %llu, and %u blocks are the most",
                       (unsigned long long)o->kv_bytes, (unsigned long long)block, UINT32_MAX);
    g->kv = (struct kv_view){.geometry = geometry, .blocks_count = (uint32_t)blocks};
    if ((g->kv.base = g->ops->alloc(g->backend, blocks * block))) return OK;
    return err_set(ERR_MEMORY, "a KV pool of %llu blocks of %llu bytes does not fit into memory",
                   (unsigned long long)blocks, (unsigned long long)block);
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
    g->output_row = mem_array(l->sequences_max, sizeof *g->output_row);
    g->logits_row = mem_array(l->sequences_max, sizeof *g->logits_row);
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
    if ((e = open_backend(g)) != OK) return e;
    if ((e = load_model(g)) != OK) return e;
    g->facts.context_max = g->config.context_max;
    if (g->options.context_max && g->options.context_max < g->config.context_max)
        g->facts.context_max = g->options.context_max;
    if ((e = make_rope(g, g->facts.context_max)) != OK) return e;
    if ((e = make_pool(g)) != OK) return e;
    if ((e = make_buffers(g)) != OK) return e;
    fill_facts(g);
    return OK;
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
    forward_fini(&g->forward);
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

const struct kv_view *engine_kv(const struct engine *g)
{
    return &g->kv;
}
