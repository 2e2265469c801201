#include "engine/engine.h"

#include <string.h>

#include "common/clock.h"
#include "common/cpus.h"
#include "common/log.h"
#include "common/mem.h"
#include "engine/state.h"

enum {
    STEPS_QUEUED_MAX = 64,
    NO_ROW = -1,
    POLL_NS = 50000, /* how long the thread waits for the device before it looks for new steps */
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
