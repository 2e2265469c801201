/* A step on its way to the device: its description, and the graphs that stand for whole decode steps. */
#include "kernels/cuda/backend.h"

#include <string.h>

#include "common/plant.h"

enum { COUNT_LIVE, COUNT_DECODE, COUNT_OUTPUTS, COUNTS };
enum { ARRAY_ALIGN = 16 };

/* Rows of the steps that are recorded: dense where a row more costs most. */
static uint32_t bucket_next(uint32_t rows)
{
    if (rows < 4) return rows * 2;
    if (rows < 32) return rows < 8 ? 8 : rows + 8;
    if (rows < 64) return rows + 16;
    if (rows < 128) return rows + 32;
    return rows + 64;
}

static size_t place(size_t *at, size_t bytes)
{
    size_t here = *at;
    *at = (here + bytes + ARRAY_ALIGN - 1) / ARRAY_ALIGN * ARRAY_ALIGN;
    return here;
}

/* The room is given by the caller in the *_max members. */
static enum err description_open(struct description *d)
{
    const size_t word = sizeof(uint32_t);
    size_t at = 0;
    d->counts = place(&at, COUNTS * word);
    d->token = place(&at, d->rows_max * word);
    d->slot = place(&at, d->rows_max * word);
    d->position = place(&at, d->rows_max * word);
    d->table_first = place(&at, d->rows_max * word);
    d->row_window = place(&at, d->rows_max * sizeof(struct kv_window));
    d->decode_row = place(&at, d->decode_max * word);
    d->split_first = place(&at, (d->decode_max + (size_t)1) * word);
    d->output_row = place(&at, d->outputs_max * word);
    d->tile = place(&at, d->tiles_max * sizeof(struct cuda_tile));
    d->table = place(&at, d->table_max * word);
    d->bytes = at;
    return cuda_take((void **)&d->device, at, "a step's description");
}

static struct cuda_batch batch_of(const struct description *d)
{
    unsigned char *at = d->device;
    const uint32_t *counts = (const uint32_t *)(at + d->counts);
    return (struct cuda_batch){
        .live = counts + COUNT_LIVE,
        .token = (const uint32_t *)(at + d->token),
        .slot = (const uint32_t *)(at + d->slot),
        .position = (const uint32_t *)(at + d->position),
        .table_first = (const uint32_t *)(at + d->table_first),
        .row_window = (const struct kv_window *)(at + d->row_window),
        .table = (const uint32_t *)(at + d->table),
        .tile = (const struct cuda_tile *)(at + d->tile),
        .decode_live = counts + COUNT_DECODE,
        .decode_row = (const uint32_t *)(at + d->decode_row),
        .split_first = (const uint32_t *)(at + d->split_first),
        .outputs_live = counts + COUNT_OUTPUTS,
        .output_row = (const uint32_t *)(at + d->output_row),
    };
}

enum err step_open(struct backend *b)
{
    const struct backend_limits *l = &b->options.limits;
    uint32_t decode_max = l->sequences_max < l->rows_max ? l->sequences_max : l->rows_max;
    enum err e;
    b->decode = (struct description){.rows_max = decode_max,
                                     .decode_max = decode_max,
                                     .outputs_max = decode_max,
                                     .table_max = l->table_max};
    b->mixed = (struct description){.rows_max = l->rows_max,
                                    .decode_max = decode_max,
                                    .outputs_max = l->rows_max,
                                    .tiles_max = l->sequences_max + l->rows_max / CUDA_TILE_ROWS,
                                    .table_max = l->table_max};
    if ((e = description_open(&b->decode)) != OK || (e = description_open(&b->mixed)) != OK)
        return e;
    for (int i = 0; i < STAGES; i++)
        if ((e = stage_open(&b->stage[i], b->mixed.bytes)) != OK) return e;
    for (uint32_t rows = 1; b->graphs_count < GRAPHS_MAX; rows = bucket_next(rows)) {
        bool last = rows >= decode_max;
        b->graph[b->graphs_count++].rows = last ? decode_max : rows;
        if (last) break;
    }
    return OK;
}

void step_close(struct backend *b)
{
    step_forget_graphs(b);
    for (int i = 0; i < STAGES; i++)
        stage_close(&b->stage[i]);
    if (b->decode.device) cudaFree(b->decode.device);
    if (b->mixed.device) cudaFree(b->mixed.device);
}

/* --- describing --- */

uint32_t backend_splits_max(const struct backend *b)
{
    return b->options.limits.table_max / (CUDA_SPLIT_TOKENS / BLOCK_TOKENS) +
           4 * b->decode.decode_max;
}

/* A description's arrays in pinned memory. */
struct writing {
    const struct description *d;
    uint32_t *counts, *token, *slot, *position, *table_first, *decode_row, *split_first,
        *output_row, *table;
    struct cuda_tile *tile;
    struct kv_window *row_window;
    uint32_t decode_count, tiles_count;
    bool own_windows;
};

static struct writing writing_of(const struct description *d, unsigned char *at)
{
    return (struct writing){.d = d,
                            .counts = (uint32_t *)(at + d->counts),
                            .token = (uint32_t *)(at + d->token),
                            .slot = (uint32_t *)(at + d->slot),
                            .position = (uint32_t *)(at + d->position),
                            .table_first = (uint32_t *)(at + d->table_first),
                            .decode_row = (uint32_t *)(at + d->decode_row),
                            .split_first = (uint32_t *)(at + d->split_first),
                            .output_row = (uint32_t *)(at + d->output_row),
                            .row_window = (struct kv_window *)(at + d->row_window),
                            .table = (uint32_t *)(at + d->table),
                            .tile = (struct cuda_tile *)(at + d->tile)};
}

static uint32_t splits_between(uint32_t first, uint32_t end)
{
    return first < end ? blocks_between(CUDA_SPLIT_TOKENS, first, end) : 0;
}

/* Splits of the KV that a row at this position sees (kernels.h, split_first). */
static uint32_t splits_of(uint32_t position, struct kv_window w)
{
    uint32_t first = kv_window_first(w, position), end = position + 1;
    if (first < w.sinks) first = w.sinks;
    return splits_between(0, end < w.sinks ? end : w.sinks) + splits_between(first, end);
}

static void write_sequence(struct writing *w, const struct batch *batch,
                           const struct batch_sequence *q)
{
    struct kv_window window = q->window.tokens ? q->window : (struct kv_window){batch->window, 0};
    for (uint32_t i = 0; i < q->rows_count; i++) {
        uint32_t row = q->row_first + i;
        w->token[row] = batch->tokens[row];
        w->slot[row] = q->slot;
        w->position[row] = q->position + i;
        w->table_first[row] = q->table_first;
        w->row_window[row] = window;
    }
    if (q->rows_count == 1) {
        w->decode_row[w->decode_count] = q->row_first;
        w->split_first[w->decode_count + 1] =
            w->split_first[w->decode_count] + splits_of(q->position, window);
        w->decode_count++;
        return;
    }
    w->own_windows |= window.tokens != batch->window || window.sinks > 0;
    for (uint32_t i = 0; i < q->rows_count; i += CUDA_TILE_ROWS) {
        uint32_t left = q->rows_count - i;
        w->tile[w->tiles_count++] =
            (struct cuda_tile){.row_first = q->row_first + i,
                               .rows_count = left < CUDA_TILE_ROWS ? left : CUDA_TILE_ROWS,
                               .position = q->position + i,
                               .table_first = q->table_first,
                               .window = window};
    }
}

/* Sends the batch to the device, as what the ops from now on mean. */
static void describe(struct backend *b, const struct description *d, const struct batch *batch)
{
    struct stage *s = &b->stage[b->stage_next++ % STAGES];
    stage_take(b, s);
    if (!backend_ok(b)) return;
    struct writing w = writing_of(d, s->bytes);
    w.split_first[0] = 0;
    for (uint32_t i = 0; i < batch->sequences_count; i++)
        write_sequence(&w, batch, &batch->sequence[i]);
    CHECK(w.split_first[w.decode_count] <= backend_splits_max(b));
    w.counts[COUNT_LIVE] = batch->rows_count;
    w.counts[COUNT_DECODE] = w.decode_count;
    w.counts[COUNT_OUTPUTS] = batch->outputs_count;
    if (batch->outputs_count > 0)
        memcpy(w.output_row, batch->output_row, batch->outputs_count * sizeof *w.output_row);
    if (batch->table_count > 0) memcpy(w.table, batch->table, batch->table_count * sizeof *w.table);
    stage_copy(b, d->device, s, 0, d->table + batch->table_count * sizeof *w.table);
    stage_done(b, s);
    b->batch = batch_of(d);
    b->decode_rows = w.decode_count;
    b->tiles = w.tiles_count;
    b->own_windows = w.own_windows;
}

static void check_batch(const struct backend *b, const struct batch *batch)
{
    const struct backend_limits *l = &b->options.limits;
    CHECK(batch->rows_count <= l->rows_max && batch->sequences_count <= l->sequences_max);
    CHECK(batch->table_count <= l->table_max && batch->outputs_count <= batch->rows_count);
}

/* --- recording --- */

/* One row each, and tokens wanted; of a size that is recorded. */
static struct recorded *graph_for(struct backend *b, const struct batch *batch)
{
    if (batch->watched || batch->rows_count != batch->sequences_count || batch->outputs_count == 0)
        return NULL;
    for (uint32_t i = 0; i < b->graphs_count; i++)
        if (batch->rows_count <= b->graph[i].rows) return &b->graph[i];
    return NULL;
}

/* Calls the ops for as many rows as a graph has. */
static void enqueue_rows(struct backend *b, const struct recorded *g, backend_enqueue_fn *enqueue,
                         void *ctx)
{
    b->decode_rows = g->rows;
    b->tiles = 0;
    enqueue(ctx, g->rows, g->rows);
}

static void record(struct backend *b, struct recorded *g, backend_enqueue_fn *enqueue, void *ctx)
{
    cudaGraph_t graph = NULL;
    /* Other threads may allocate meanwhile; this one must not. */
    backend_check(b, cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal),
                  "beginning to record a step");
    if (!backend_ok(b)) return;
    b->recording = true;
    enqueue_rows(b, g, enqueue, ctx);
    b->recording = false;
    backend_check(b, cudaStreamEndCapture(b->stream, &graph), "recording a step");
    if (backend_ok(b))
        backend_check(b, cudaGraphInstantiate(&g->exec, graph, 0), "making a graph of a step");
    if (graph) cudaGraphDestroy(graph);
}

/* The first step of a size runs as it is, so that whatever it allocates or loads is there when the
 * second one is recorded. */
static void replay(struct backend *b, struct recorded *g, backend_enqueue_fn *enqueue, void *ctx)
{
    if (!g->tried) {
        enqueue_rows(b, g, enqueue, ctx);
        g->tried = true;
        return;
    }
    if (!g->exec) record(b, g, enqueue, ctx);
    if (backend_ok(b)) backend_check(b, cudaGraphLaunch(g->exec, b->stream), "a recorded step");
}

void step_forget_graphs(struct backend *b)
{
    for (uint32_t i = 0; i < b->graphs_count; i++) {
        if (b->graph[i].exec) cudaGraphExecDestroy(b->graph[i].exec);
        b->graph[i] = (struct recorded){.rows = b->graph[i].rows};
    }
}

void cuda_step(struct backend *b, const struct batch *batch, backend_enqueue_fn *enqueue, void *ctx)
{
    check_batch(b, batch);
    backend_enter(b);
    struct recorded *g = graph_for(b, batch);
    bool fixed = g && !PLANTED("graph_stale_description"); /* where recorded steps look */
    if (backend_ok(b)) describe(b, fixed ? &b->decode : &b->mixed, batch);
    if (!backend_ok(b)) return;
    if (g)
        replay(b, g, enqueue, ctx);
    else
        enqueue(ctx, batch->rows_count, batch->outputs_count);
}

/* Rows without a step: nothing is live, so that nothing is kept of what they compute. Larger ones
 * first: scratch grows once. */
void cuda_record(struct backend *b, backend_enqueue_fn *enqueue, void *ctx)
{
    const struct batch nothing = {0};
    backend_enter(b);
    step_forget_graphs(b);
    if (backend_ok(b)) describe(b, &b->decode, &nothing);
    for (uint32_t i = b->graphs_count; i > 0 && backend_ok(b); i--) {
        struct recorded *g = &b->graph[i - 1];
        if (!g->tried) replay(b, g, enqueue, ctx);
        if (backend_ok(b) && !g->exec) record(b, g, enqueue, ctx);
        if (backend_ok(b)) backend_check(b, cudaGraphUpload(g->exec, b->stream), "a graph");
    }
}
