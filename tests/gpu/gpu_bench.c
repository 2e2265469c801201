/* A GPU's figures: its ceilings, single operations, then the engine on a model with random weights:
 * start-up, prefill, decode. Every figure is the best of several runs and stands beside its share of a
 * ceiling that was measured in the same run.
 *
 *     gpu_bench [--device cuda] [--shape 8b|1b|toy] [--folder DIR] [--deterministic]     JSON last
 *     gpu_bench --probe                                  says which device there is, or what is missing
 *
 * The model is made in the folder (the temporary one) and taken away at the end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mailbox.h"
#include "common/rng.h"
#include "engine/engine.h"
#include "tests/bench/figures.h"
#include "tests/gpu/ceilings_cuda.h"
#include "tests/gpu/model.h"
#include "tests/gpu/ops_figures.h"
#include "tests/unit/scratch.h"

/* ROUNDS_MAX: as many steps as an engine queues. */
enum { ROUNDS_MAX = 64, RUNS = 3, GAP_RUNS = 5, CHUNK_MAX = 8192 };

struct bench {
    const char *device, *folder;
    const struct gpu_shape *shape;
    bool deterministic, probe;
    struct ceilings_cuda ceilings;
    struct engine *engine;
    struct step *step[ROUNDS_MAX];
    struct mailbox *done; /* of struct engine_event */
    uint64_t steps_made;
    uint32_t sequences_max, blocks_each;
};

static void must(enum err e)
{
    if (e == OK) return;
    fprintf(stderr, "gpu_bench: %s\n", err_text());
    exit(1);
}

/* --- steps --- */

static void says(void *ctx, const struct engine_event *event)
{
    struct bench *x = ctx;
    if (event->kind == ENGINE_STEP_DONE) must(mailbox_send(x->done, event));
}

static void submit(struct bench *x, struct step *s)
{
    s->id = ++x->steps_made;
    must(engine_submit(x->engine, s));
}

static void await(struct bench *x)
{
    struct engine_event event;
    must(mailbox_wait(x->done, &event, TIME_NEVER));
    if (event.status != OK) {
        fprintf(stderr, "gpu_bench: a step failed\n");
        exit(1);
    }
}

static const struct job job = {.sampling = {.top_p = 1, .repetition_penalty = 1}};

/* Blocks of a sequence lie far from each other. */
static void add(struct bench *x, struct step *s, uint32_t slot, uint32_t position, uint32_t rows,
                bool last)
{
    const struct engine_facts *f = engine_facts(x->engine);
    struct step_sequence *q = step_add(s, slot, position, rows);
    q->sample = true;
    q->setup = last ? NULL : &job;
    for (uint32_t i = 0; i < rows; i++)
        s->tokens[s->rows_count++] =
            last ? STEP_TOKEN_LAST
                 : rng_below(rng_draw(1, slot, position + i).word[0], f->vocab_count);
    for (uint32_t i = 0; i < blocks_for_tokens(position + rows); i++)
        s->table[s->table_count++] =
            (uint32_t)(((uint64_t)slot * x->blocks_each + i) * 7919 % f->blocks_count);
}

/* --- figures --- */

/* A prompt in chunks, as a prefill node runs it. */
static double prefill_seconds(struct bench *x, uint32_t slot, uint32_t tokens)
{
    uint64_t began_ns = clock_now_ns();
    for (uint32_t at = 0, rows; at < tokens; at += rows) {
        rows = tokens - at < CHUNK_MAX ? tokens - at : CHUNK_MAX;
        step_clear(x->step[0]);
        add(x, x->step[0], slot, at, rows, false);
        submit(x, x->step[0]);
        await(x);
    }
    return (double)(clock_now_ns() - began_ns) / NS_PER_S;
}

static void prefill(struct bench *x, uint32_t tokens)
{
    const struct engine_facts *f = engine_facts(x->engine);
    const struct tiny_shape *m = &x->shape->model;
    double best = 1e9, head = 2.0 * f->vocab_count * f->hidden;
    double matrices = (f->flops_per_token - head) * tokens + head;
    double attention = 2.0 * tokens * (tokens + 1) * m->heads * m->head_dim * m->layers;
    if (tokens > f->context_max || blocks_for_tokens(tokens) > f->blocks_count) return;
    for (int run = 0; run < RUNS; run++) {
        double took = prefill_seconds(x, 0, tokens);
        if (took < best) best = took;
    }
    figure_print(tokens / best, "prefill_%u_tokens_s", tokens);
    figure_print((matrices + attention) / best / 1e12, "prefill_%u_tflop_s", tokens);
    figure_print(100 * (matrices + attention) / best / x->ceilings.peak_flops,
                 "prefill_%u_of_peak_percent", tokens);
    figure_print(100 * matrices / best / x->ceilings.peak_flops,
                 "prefill_%u_matrices_of_peak_percent", tokens);
}

static void decode_step(struct bench *x, uint32_t n, uint32_t batch, uint32_t context)
{
    struct step *s = x->step[n];
    step_clear(s);
    for (uint32_t i = 0; i < batch; i++)
        add(x, s, i, context + n, 1, true);
    submit(x, s);
}

/* The time of a step, when so many are given to the engine before the first one's end is waited for, and
 * one more at each end. */
static double decode_seconds(struct bench *x, uint32_t batch, uint32_t context, uint32_t in_flight)
{
    uint32_t rounds = x->shape->rounds, sent = 0;
    uint64_t began_ns = 0;
    for (uint32_t n = 0; n < rounds; n++) {
        while (sent < rounds && sent < n + in_flight)
            decode_step(x, sent++, batch, context);
        await(x);
        if (n == 0) began_ns = clock_now_ns();
    }
    return (double)(clock_now_ns() - began_ns) / NS_PER_S / (rounds - 1);
}

/* Two steps in flight, as nodes have them; one; and all of them. The last way never waits for this thread,
 * and the engine's has a whole step's time to send the next one, so the device works without a pause: what a
 * step takes longer in the first way is the host's gap. Runs alternate, for clocks drift; medians are
 * compared. What lies between two steps on the device itself is step_between_us (ops_figures.c). */
static void decode(struct bench *x, uint32_t batch, uint32_t context)
{
    static const uint32_t ways[] = {2, 1, ROUNDS_MAX};
    const struct engine_facts *f = engine_facts(x->engine);
    struct samples took[3] = {0};
    double kv =
        (double)kv_block_bytes(&f->geometry) / BLOCK_TOKENS * (context + x->shape->rounds / 2.0);
    uint64_t blocks = (uint64_t)batch * blocks_for_tokens(context + x->shape->rounds);
    if (blocks > f->blocks_count) {
        fprintf(stderr, "decode_%u_behind_%u: not measured: %.1f GiB of KV do not fit\n", batch,
                context, (double)blocks * (double)kv_block_bytes(&f->geometry) / (1 << 30));
        return;
    }
    x->blocks_each = blocks_for_tokens(context + x->shape->rounds);
    for (uint32_t i = 0; i < batch; i++)
        prefill_seconds(x, i, context);
    for (int run = 0; run < GAP_RUNS; run++)
        for (int way = 0; way < 3; way++)
            samples_add(&took[way], decode_seconds(x, batch, context, ways[way]));
    double best = samples_at(&took[0], 0),
           gap = samples_at(&took[0], 0.5) - samples_at(&took[2], 0.5);
    double bytes = f->flops_per_token / 2 * dtype_bytes(f->geometry.dtype) + kv * batch;
    figure_print(batch / best, "decode_%u_behind_%u_tokens_s", batch, context);
    figure_print(best * 1e6, "decode_%u_behind_%u_step_us", batch, context);
    figure_print(samples_at(&took[1], 0) * 1e6, "decode_%u_behind_%u_step_alone_us", batch,
                 context);
    figure_print(gap * 1e6, "decode_%u_behind_%u_host_gap_us", batch, context);
    figure_print(100 * bytes / best / x->ceilings.copy_bytes_s,
                 "decode_%u_behind_%u_of_copy_percent", batch, context);
    for (int way = 0; way < 3; way++)
        samples_free(&took[way]);
}

/* --- opening --- */

static char model_dir[512];

static void remove_model(void)
{
    scratch_remove(model_dir);
}

/* Gone when the program ends, however that is. */
static void make_model(struct bench *x)
{
    snprintf(model_dir, sizeof model_dir, "%s/tandem-gpu-XXXXXX", x->folder);
    if (!mkdtemp(model_dir)) {
        perror(model_dir);
        exit(1);
    }
    atexit(remove_model);
    fprintf(stderr, "gpu_bench: making %s in %s\n", x->shape->about, model_dir);
    gpu_model_write(model_dir, x->shape);
}

static struct engine_options plan_engine(struct bench *x)
{
    const struct gpu_shape *s = x->shape;
    uint32_t longest = 0, rows_max = 1;
    for (int i = 0; i < 4; i++) {
        if (s->batch[i] > x->sequences_max) x->sequences_max = s->batch[i];
        if (s->prefill[i] > longest) longest = s->prefill[i];
    }
    if (s->context[1] + s->rounds > longest) longest = s->context[1] + s->rounds;
    rows_max = longest < CHUNK_MAX ? longest : CHUNK_MAX;
    struct engine_options o = {
        .model_dir = model_dir,
        .cache_dir = model_dir,
        .backend = x->device,
        .deterministic = x->deterministic,
        .context_max = longest,
        .limits = {x->sequences_max, rows_max,
                   x->sequences_max * blocks_for_tokens(s->context[1] + s->rounds)},
        .slots_count = x->sequences_max};
    if (o.limits.table_max < blocks_for_tokens(longest))
        o.limits.table_max = blocks_for_tokens(longest);
    return o;
}

/* Twice: the first start reads the model's file for its fingerprint, the next one finds it noted. Both
 * find the file in the host's memory, since it was just written. */
static void open_engine(struct bench *x)
{
    struct engine_options o = plan_engine(x);
    must(engine_open(&x->engine, &o));
    figure("start_first_ms", (double)engine_facts(x->engine)->load_ns / 1e6);
    engine_close(x->engine);
    must(engine_open(&x->engine, &o));
    const struct engine_facts *f = engine_facts(x->engine);
    figure("start_ms", (double)f->load_ns / 1e6);
    figure("start_weights_ms", (double)f->weights_ns / 1e6);
    figure("start_rest_ms", (double)(f->load_ns - f->weights_ns) / 1e6);
    figure("start_weights_gb_s", (double)f->weights_bytes / (double)f->weights_ns);
    fprintf(stderr, "gpu_bench: %s, %.2f GB of weights, %u blocks of KV\n", f->device,
            (double)f->weights_bytes / 1e9, f->blocks_count);
    must(mailbox_new(&x->done, sizeof(struct engine_event), ROUNDS_MAX));
    for (uint32_t i = 0; i < ROUNDS_MAX; i++)
        must(step_new(&x->step[i], &o.limits));
    must(engine_start(x->engine, says, x));
}

static void close_engine(struct bench *x)
{
    engine_stop(x->engine);
    for (uint32_t i = 0; i < ROUNDS_MAX; i++)
        step_free(x->step[i]);
    mailbox_free(x->done);
    engine_close(x->engine);
}

static void engine_figures(struct bench *x)
{
    const struct gpu_shape *s = x->shape;
    make_model(x);
    open_engine(x);
    for (int i = 0; i < 4 && s->prefill[i]; i++)
        prefill(x, s->prefill[i]);
    for (int i = 0; i < 4 && s->batch[i]; i++)
        for (int j = 0; j < 2; j++)
            decode(x, s->batch[i], s->context[j]);
    close_engine(x);
}

static bool read_arguments(struct bench *x, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(name, "--deterministic") == 0) {
            x->deterministic = true;
            continue;
        }
        if (strcmp(name, "--probe") == 0) {
            x->probe = true;
            continue;
        }
        if (strcmp(name, "--device") == 0)
            x->device = value;
        else if (strcmp(name, "--folder") == 0)
            x->folder = value;
        else if (strcmp(name, "--shape") == 0)
            x->shape = gpu_shape_find(value);
        else
            return false;
        i++;
    }
    return x->shape != NULL;
}

int main(int argc, char **argv)
{
    struct bench x = {.device = "cuda", .folder = "/tmp", .shape = gpu_shape_find("1b")};
    if (!read_arguments(&x, argc, argv)) {
        fprintf(stderr, "usage: gpu_bench [--device cuda] [--shape 8b|1b|toy] [--folder DIR] "
                        "[--deterministic] [--probe]\n");
        return 2;
    }
    ceilings_cuda_device(&x.ceilings);
    fprintf(stderr, "gpu_bench: %s, sm_%d, driver %d, runtime %d, %.1f GB\n", x.ceilings.device,
            x.ceilings.sm, x.ceilings.driver, x.ceilings.runtime, x.ceilings.memory_bytes / 1e9);
    if (x.probe) return 0;
    ceilings_cuda_measure(&x.ceilings, x.shape->copy_bytes, x.shape->product_side);
    figure("copy_gb_s", x.ceilings.copy_bytes_s / 1e9);
    figure("peak_tflop_s", x.ceilings.peak_flops / 1e12);
    figure("launch_us", x.ceilings.launch_us);
    ops_figures(x.device, x.deterministic, x.shape, &x.ceilings);
    engine_figures(&x);
    figures_end();
    return 0;
}
