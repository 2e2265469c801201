/* What a score costs beside the prefill of the same tokens, on an engine as a prefill node has it: steps of
 * 512 tokens of one text, whose KV alone is wanted (prefill) or whose scores are, by turns. Figures are of
 * the medians; `extra` is what a score adds to a prefill, of which `product` would be the output matrix at
 * the rate of the prefill.
 *
 *     score_bench [demo] [s] [--threads N]     both models if none is named, 1 … N threads (2); JSON last */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "engine/engine.h"
#include "tests/bench/figures.h"
#include "tests/bench/shapes.h"

enum {
    CHUNK = 512,
    BLOCKS = CHUNK / BLOCK_TOKENS,
    SEQUENCES = 40, /* of a prefill node's step: so many rows of logits have room */
    ROUNDS = 5,
    STEPS_MAX = 64,
    ROUND_NS = 60000000, /* so long a round lasts, at least one step */
};

struct bench {
    struct engine *engine;
    struct step *step;
    float scores[CHUNK];
};

static void must(enum err e)
{
    if (e == OK) return;
    fprintf(stderr, "score_bench: %s\n", err_text());
    exit(1);
}

static void fill(struct bench *x, enum step_want want)
{
    static const struct job job = {.sampling = {.top_p = 1, .repetition_penalty = 1}};
    struct step *s = x->step;
    step_clear(s);
    struct step_sequence *q = step_add(s, 0, 0, CHUNK);
    q->setup = &job;
    q->want = want;
    q->next = STEP_TOKEN_NONE;
    q->scores = x->scores;
    for (; s->rows_count < CHUNK; s->rows_count++)
        s->tokens[s->rows_count] =
            rng_below(rng_draw(1, 2, s->rows_count).word[0], engine_facts(x->engine)->vocab_count);
    for (; s->table_count < BLOCKS; s->table_count++)
        s->table[s->table_count] = s->table_count;
}

/* Of one step. */
static double seconds(struct bench *x, enum step_want want)
{
    uint64_t began_ns = clock_now_ns(), took_ns = 0;
    uint32_t steps = 0;
    fill(x, want);
    while (took_ns < ROUND_NS && steps < STEPS_MAX) {
        must(engine_run(x->engine, x->step));
        took_ns = clock_now_ns() - began_ns;
        steps++;
    }
    return (double)took_ns / NS_PER_S / steps;
}

static void measure(const char *name, const char *model, uint32_t threads)
{
    struct bench x = {0};
    struct samples prefill = {0}, score = {0}, share = {0};
    struct engine_options o = {.model_dir = model,
                               .cache_dir = shapes_cache(),
                               .threads = threads,
                               .blocks_count = BLOCKS,
                               .limits = {SEQUENCES, CHUNK + SEQUENCES, BLOCKS},
                               .slots_count = 1};
    must(engine_open(&x.engine, &o));
    const struct engine_facts *f = engine_facts(x.engine);
    must(step_new(&x.step, &f->limits));
    seconds(&x, STEP_WANT_SCORES);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        double plain = seconds(&x, STEP_WANT_KV), scored = seconds(&x, STEP_WANT_SCORES);
        samples_add(&prefill, plain);
        samples_add(&score, scored);
        samples_add(&share, scored / plain - 1);
    }
    double head_flops = 2.0 * f->vocab_count * f->hidden;
    double product = head_flops / (f->flops_per_token - head_flops);
    figure_print(CHUNK / samples_at(&prefill, 0.5), "%s_prefill_tokens_s_x%u", name, threads);
    figure_print(CHUNK / samples_at(&score, 0.5), "%s_score_tokens_s_x%u", name, threads);
    figure_print(100 * samples_at(&share, 0.5), "%s_extra_percent_x%u", name, threads);
    figure_print(100 * product, "%s_product_percent_x%u", name, threads);
    samples_free(&prefill);
    samples_free(&score);
    samples_free(&share);
    step_free(x.step);
    engine_close(x.engine);
}

int main(int argc, char **argv)
{
    bool demo = false, shape_s = false;
    uint32_t most = 2;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
            most = (uint32_t)atoi(argv[++i]);
        else if (strcmp(argv[i], "demo") == 0)
            demo = true;
        else if (strcmp(argv[i], "s") == 0)
            shape_s = true;
    if (!demo && !shape_s) demo = shape_s = true;
    for (uint32_t threads = 1; demo && threads <= most; threads++)
        measure("demo", TANDEM_SOURCE_DIR "/examples/demo_model/model", threads);
    for (uint32_t threads = 1; shape_s && threads <= most; threads++)
        measure("s", shape_s_model(), threads);
    figures_end();
    return 0;
}
