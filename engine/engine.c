#include "engine/engine.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/cpus.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/mailbox.h"
#include "common/mem.h"
#include "engine/encode.h"
#include "engine/fingerprint.h"
#include "engine/forward.h"
#include "engine/rope.h"
#include "engine/sampler.h"
#include "engine/slot.h"

enum {
    STEPS_QUEUED_MAX = 64,
    NO_ROW = -1,
    FLIGHTS_MAX = 4,
    POLL_NS = 50000, /* how long the thread waits for the device before it looks for new steps */
};
#define KV_BYTES_MIN ((uint64_t)64 << 20)
#define KV_SHARE 0.9 /* of what is free on a device that tells it */

/* A step that the device has. */
struct flight {
    struct step *step;
    uint64_t began_ns, mark;
    enum err status;          /* of enqueuing it */
    bool taken;               /* its tokens are */
    struct token_info *drawn; /* [sequences_max] host memory, by output; NULL: drawn on the host */
};

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
    struct encoder encoder;

    /* The step that runs, as the backend wants it: */
    uint32_t *tokens;                /* [rows_max], STEP_TOKEN_LAST replaced if drawn on the host */
    struct batch_sequence *sequence; /* [sequences_max] */
    uint32_t *output_row;            /* [rows_max] rows of the batch whose logits are wanted */
    uint32_t drawn_count;            /* the first of them: those that are sampled */
    int32_t *logits_row;             /* [sequences_max] where a sequence's are, or NO_ROW */
    float *logits;                   /* [sequences_max][vocab] on the host: engine_logits */
    bool sick;                       /* the device failed; so does every step from then on */

    struct flight flight[FLIGHTS_MAX]; /* a ring of facts.queue_depth */
    uint32_t flight_first, flights_count;
    uint64_t ended_ns; /* of the step before */

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
    bool own = q->window.tokens > 0 && q->window.tokens != g->config.window;
    CHECK(!own || (g->facts.kv_windows && g->config.window == 0));
    uint32_t first = q->window.tokens ? kv_window_first(q->window, q->position) : q->position;
    for (uint32_t i = first / BLOCK_TOKENS; i < blocks; i++)
        CHECK(step->table[q->table_first + i] < g->kv.blocks_count);
    for (uint32_t i = 0; i < q->window.sinks / BLOCK_TOKENS && i < blocks; i++)
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
    CHECK(step->copies_count <= g->facts.limits.sequences_max);
    for (uint32_t i = 0; i < step->copies_count; i++)
        CHECK(step->copy[i].from < g->kv.blocks_count && step->copy[i].to < g->kv.blocks_count);
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        CHECK(step->sequence[i].row_first == rows);
        CHECK(step->sequence[i].rows_count <= step->rows_count - rows);
        rows += step->sequence[i].rows_count;
        check_sequence(g, step, &step->sequence[i]);
    }
    CHECK(rows == step->rows_count);
}

/* A slot of a device that draws keeps no more here than that it was made. */
static void make_slot(struct engine *g, uint32_t slot, const struct job *job)
{
    if (!g->ops->facts(g->backend)->draws) {
        slot_make(&g->slots, slot, job);
        return;
    }
    g->ops->slot_make(g->backend, slot, job);
    g->slots.slot[slot].made = true;
}

static void plan_tokens(struct engine *g, const struct step *step, const struct step_sequence *q)
{
    bool draws = g->ops->facts(g->backend)->draws;
    for (uint32_t r = q->row_first; r < q->row_first + q->rows_count; r++) {
        bool last = step->tokens[r] == STEP_TOKEN_LAST;
        g->tokens[r] = !last   ? step->tokens[r]
                       : draws ? BATCH_TOKEN_LAST
                               : g->slots.slot[q->slot].last;
        CHECK((draws && last) || g->tokens[r] < g->facts.vocab_count);
    }
}

/* A step with prompts, or whose layers are told: its enqueuer waits for layers. */
static bool waits_for_layers(const struct step *step)
{
    return step->report_layers || step->rows_count > step->sequences_count || encode_wanted(step);
}

/* Makes new slots and writes the batch. Its outputs are what is sampled, then the rows of which more
 * than that is wanted; or all rows. */
static struct batch plan_batch(struct engine *g, const struct step *step, bool score)
{
    struct batch batch = {.rows_count = step->rows_count,
                          .tokens = g->tokens,
                          .sequence = g->sequence,
                          .sequences_count = step->sequences_count,
                          .table = step->table,
                          .table_count = step->table_count,
                          .output_row = g->output_row,
                          .window = g->config.window,
                          .watched = score || waits_for_layers(step)};
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        const struct step_sequence *q = &step->sequence[i];
        if (q->setup) make_slot(g, q->slot, q->setup);
        CHECK(g->slots.slot[q->slot].made);
        plan_tokens(g, step, q);
        g->sequence[i] = (struct batch_sequence){q->row_first,   q->rows_count, q->position,
                                                 q->table_first, q->slot,       q->window};
        g->logits_row[i] = q->sample ? (int32_t)batch.outputs_count : NO_ROW;
        if (q->sample) g->output_row[batch.outputs_count++] = q->row_first + q->rows_count - 1;
    }
    for (uint32_t r = 0; score && r < step->rows_count; r++)
        g->output_row[r] = r;
    g->drawn_count = batch.outputs_count;
    if (score)
        batch.outputs_count = step->rows_count;
    else
        batch.outputs_count += encode_outputs(step, g->output_row + g->drawn_count);
    return batch;
}

struct layer_watch {
    struct engine *engine;
    const struct step *step;
};

/* Called after each layer: counts, tells, and looks at the flags. */
static bool on_layer(void *ctx, uint32_t layer)
{
    const struct layer_watch *w = ctx;
    struct engine *g = w->engine;
    atomic_fetch_add_explicit(&g->progress, 1, memory_order_relaxed);
    if (w->step->report_layers && g->inbox) /* engine_run tells nobody */
        g->on_event(
            g->on_event_ctx,
            &(struct engine_event){.kind = ENGINE_LAYER, .step_id = w->step->id, .layer = layer});
    return !atomic_load_explicit(&w->step->cancel, memory_order_relaxed) &&
           !atomic_load_explicit(&g->stopping, memory_order_relaxed);
}

/* Enqueues the step's forward pass; *batch stays good until the next one is planned. */
static enum err run_rows(struct engine *g, struct step *step, enum forward_end end,
                         struct batch *batch)
{
    check_step(g, step);
    if (g->sick) return err_set(ERR_DEVICE, "the device failed in an earlier step");
    for (uint32_t i = 0; i < step->copies_count; i++)
        g->ops->block_copy(g->backend, &g->kv, step->copy[i].from, step->copy[i].to);
    *batch = plan_batch(g, step, end == FORWARD_KV);
    struct layer_watch layers = {g, step};
    struct forward_watch watch = {.layer = on_layer, .ctx = &layers};
    if (step->rows_count == 0) return OK;
    return forward_run(&g->forward, batch, g->drawn_count, end, &watch);
}

/* The tokens of a step that the device is done with. */
static void take_tokens(struct engine *g, const struct flight *f)
{
    const struct step *step = f->step;
    uint32_t output = 0;
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        const struct step_sequence *q = &step->sequence[i];
        if (!q->sample) continue;
        const float *logits = g->forward.logits + (size_t)output * g->facts.vocab_count;
        if (f->drawn)
            step->result[i] = f->drawn[output];
        else
            slot_draw(&g->slots, q->slot, &g->sampler, logits, &step->result[i]);
        output++;
    }
}

/* Tokens are taken first: the rest goes through the room of their logits. */
static enum err finish_rows(struct engine *g, struct flight *f, const struct batch *batch)
{
    enum err e = g->ops->wait(g->backend, f->mark, TIME_NEVER);
    if (e != OK) return e;
    take_tokens(g, f);
    f->taken = true;
    for (uint32_t i = 0; i < f->step->sequences_count; i++)
        g->logits_row[i] = NO_ROW;
    return encode_collect(&g->encoder, f->step, batch, g->drawn_count);
}

static void begin_step(struct engine *g, struct flight *f, struct step *step)
{
    struct batch batch;
    f->step = step;
    f->taken = false;
    f->began_ns = clock_now_ns();
    f->status = run_rows(g, step, FORWARD_DRAW, &batch);
    if (f->status == OK && f->drawn && g->drawn_count > 0)
        g->ops->fetch(g->backend, f->drawn, g->forward.drawn, g->drawn_count * sizeof *f->drawn);
    if (f->status != OK) return;
    f->mark = g->ops->mark(g->backend);
    if (batch.outputs_count > g->drawn_count) f->status = finish_rows(g, f, &batch);
}

/* ERR_TIMEOUT: the device is not done with it. Else the step's end. */
static enum err end_step(struct engine *g, struct flight *f, uint64_t timeout_ns)
{
    enum err e = f->status != OK ? f->status : g->ops->wait(g->backend, f->mark, timeout_ns);
    if (e == ERR_TIMEOUT) return e;
    if (e != OK && e != ERR_CANCELLED) g->sick = true;
    if (e == OK && !f->taken) take_tokens(g, f);
    atomic_fetch_add_explicit(&g->progress, 1, memory_order_relaxed);
    return e;
}

static enum err read_logits(struct engine *g, uint32_t rows)
{
    size_t count = (size_t)g->facts.limits.sequences_max * g->facts.vocab_count;
    if (g->ops->facts(g->backend)->host_memory || rows == 0) return OK;
    if (!g->logits && !(g->logits = mem_array(count, sizeof *g->logits))) return ERR_MEMORY;
    return g->ops->read(g->backend, g->logits, g->forward.logits,
                        (size_t)rows * g->facts.vocab_count * sizeof *g->logits);
}

enum err engine_run(struct engine *g, struct step *step)
{
    CHECK(!g->inbox);
    uint32_t outputs = 0;
    begin_step(g, &g->flight[0], step);
    enum err e = end_step(g, &g->flight[0], TIME_NEVER);
    for (uint32_t i = 0; i < step->sequences_count; i++)
        outputs += step->sequence[i].sample;
    return e == OK ? read_logits(g, outputs) : e;
}

const float *engine_logits(const struct engine *g, uint32_t sequence)
{
    int32_t row = g->logits_row[sequence];
    const float *logits = g->logits ? g->logits : g->forward.logits;
    return row == NO_ROW ? NULL : logits + (size_t)row * g->facts.vocab_count;
}

enum err engine_run_scored(struct engine *g, struct step *step, float *logits)
{
    uint32_t rows_max = g->facts.limits.sequences_max;
    size_t vocab = g->facts.vocab_count;
    struct batch batch;
    CHECK(!g->inbox);
    enum err e = run_rows(g, step, FORWARD_KV, &batch);
    for (uint32_t first = 0; e == OK && first < step->rows_count; first += rows_max) {
        uint32_t rows = step->rows_count - first < rows_max ? step->rows_count - first : rows_max;
        forward_logits(&g->forward, &batch, first, rows);
        if ((e = g->ops->sync(g->backend)) == OK)
            e = g->ops->read(g->backend, logits + first * vocab, g->forward.logits,
                             rows * vocab * sizeof *logits);
    }
    for (uint32_t i = 0; i < step->sequences_count; i++)
        g->logits_row[i] = NO_ROW;
    return e;
}

/* The thread. */

/* This thread is compute thread 0. */
static void pin(const cpu_set_t *cpus)
{
    cpu_set_t first;
    int cpu = cpus_nth(cpus, 0);
    if (cpu < 0) return;
    CPU_ZERO(&first);
    CPU_SET(cpu, &first);
    if (cpus_bind(&first) != OK) log_warn("engine_not_pinned", "reason=\"%s\"", err_text());
}

static void tell_done(struct engine *g, const struct flight *f, enum err status)
{
    struct engine_event done = {.kind = ENGINE_STEP_DONE,
                                .step_id = f->step->id,
                                .status = status,
                                .began_ns = f->began_ns};
    if (done.began_ns < g->ended_ns) done.began_ns = g->ended_ns; /* it waited for the one before */
    if (status != OK && status != ERR_CANCELLED) {
        log_error("engine_failed", "step=%llu reason=\"%s\"", (unsigned long long)f->step->id,
                  err_text());
        done.status = ERR_DEVICE;
    }
    done.ended_ns = g->ended_ns = clock_now_ns();
    g->on_event(g->on_event_ctx, &done);
}

/* Ends the oldest step; false: the device is not done with it. */
static bool settle(struct engine *g, uint64_t timeout_ns)
{
    struct flight *f = &g->flight[g->flight_first];
    enum err e = end_step(g, f, timeout_ns);
    if (e == ERR_TIMEOUT) return false;
    g->flight_first = (g->flight_first + 1) % g->facts.queue_depth;
    g->flights_count--;
    tell_done(g, f, e);
    return true;
}

/* A step whose layers are waited for begins when those before it have ended. */
static void launch(struct engine *g, struct step *step)
{
    while (g->flights_count > 0 && waits_for_layers(step))
        settle(g, TIME_NEVER);
    struct flight *f = &g->flight[(g->flight_first + g->flights_count++) % g->facts.queue_depth];
    if (!step->cancel && !g->stopping) {
        begin_step(g, f, step);
        return;
    }
    f->step = step;
    f->began_ns = clock_now_ns();
    f->status = ERR_CANCELLED;
}

static void *engine_main(void *ctx)
{
    struct engine *g = ctx;
    struct step *step;
    pthread_setname_np(pthread_self(), "engine");
    pin(&g->options.cpus);
    for (;;) {
        if (g->flights_count > 0 && settle(g, 0)) continue;
        bool idle = g->flights_count == 0;
        enum err e = ERR_TIMEOUT;
        if (g->flights_count < g->facts.queue_depth)
            e = mailbox_wait(g->inbox, &step, idle ? TIME_NEVER : 0);
        if (e == OK)
            launch(g, step);
        else if (idle)
            return NULL;
        else
            settle(g, POLL_NS);
    }
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

static enum err make_pool(struct engine *g)
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
    if ((e = encoder_init(&g->encoder, &g->forward, &g->sampler)) != OK) return e;
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
    if ((e = make_pool(g)) != OK) return e;
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
    forward_fini(&g->forward);
    mem_free(g->logits);
    slots_fini(&g->slots);
    sampler_fini(&g->sampler);
    encoder_fini(&g->encoder);
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
