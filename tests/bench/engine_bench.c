/* The engine as a whole on one model: start with an empty and a filled cache, prefill of 512 and 2048
 * tokens, decode of 1, 8 and 16 sequences behind 512 tokens each, and the sampler on a vocabulary of
 * 151,936. Starts and samples are the best of several runs.
 *
 * Prefill and decode run in short rounds between which the ceilings are measured, since the host may
 * give or take half of the bandwidth within seconds. A round is its best step against the better of
 * the ceilings before and behind it; figures are the medians of the rounds, and `best` the least time of
 * all. Ceilings: the products' multiply-adds against dot products in registers, the bytes of the
 * matrices and of the KV, read once a step, against reading memory. Attention's multiply-adds are
 * counted only in prefill_…_with_attention_of_peak_percent: each query's with the tokens up to its own.
 *
 *     engine_bench [MODEL_DIR] [--threads N]     1 and N threads (2); MODEL_DIR: shape S. JSON last */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "common/model_config.h"
#include "engine/engine.h"
#include "engine/sampler.h"
#include "tests/bench/ceilings.h"
#include "tests/bench/shapes.h"
#include "tests/unit/scratch.h"

enum {
    PREFILL_MAX = 2048,
    BEHIND = 512, /* tokens before a decode */
    SEQUENCES_MAX = 16,
    SEQUENCE_BLOCKS = PREFILL_MAX / BLOCK_TOKENS,
    BLOCKS = SEQUENCES_MAX * SEQUENCE_BLOCKS,
    PREFILL_ROUNDS = 3,
    DECODE_ROUNDS = 11,
    DECODE_STEPS = 3, /* of a round */
    ROUNDS_MAX = 256, /* of all figures of one number of threads */
    SAMPLER_VOCAB = 151936,
};

struct bench {
    const char *model;
    uint32_t threads;
    struct engine *engine;
    struct step *step;
    double head_flops;
    double attention_macs; /* of one query and one token, all heads and layers */
    struct ceilings ceilings;
    struct ceiling now;
    uint32_t rounds_count;
    double read_bytes_s[ROUNDS_MAX], line_ns[ROUNDS_MAX]; /* behind each round */
    bool any;
};

/* Rounds of one figure; what a step does. */
struct rounds {
    double macs, bytes;
    double share[DECODE_ROUNDS], seconds[DECODE_ROUNDS], best;
    uint32_t count;
};

static void figure(struct bench *x, const char *name, double value)
{
    printf("%s\"%s_x%u\": %.6g", x->any ? ", " : "{", name, x->threads, value);
    x->any = true;
}

static void must(enum err e)
{
    if (e == OK) return;
    fprintf(stderr, "engine_bench: %s\n", err_text());
    exit(1);
}

static double seconds_since(uint64_t began_ns)
{
    return (double)(clock_now_ns() - began_ns) / NS_PER_S;
}

static void open_engine(struct bench *x, const char *cache_dir)
{
    struct engine_options o = {.model_dir = x->model,
                               .cache_dir = cache_dir,
                               .threads = x->threads,
                               .blocks_count = BLOCKS,
                               .limits = {SEQUENCES_MAX, PREFILL_MAX, BLOCKS},
                               .slots_count = SEQUENCES_MAX};
    must(engine_open(&x->engine, &o));
}

static const struct job job = {.sampling = {.top_p = 1, .repetition_penalty = 1}};

static void add(struct bench *x, uint32_t slot, uint32_t position, uint32_t rows)
{
    struct step *s = x->step;
    uint32_t vocab = engine_facts(x->engine)->vocab_count;
    struct step_sequence *q = step_add(s, slot, position, rows);
    q->sample = true;
    q->setup = &job;
    for (uint32_t i = 0; i < rows; i++)
        s->tokens[s->rows_count++] = rng_below(rng_draw(1, slot, position + i).word[0], vocab);
    for (uint32_t i = 0; i < blocks_for_tokens(position + rows); i++)
        s->table[s->table_count++] = slot * SEQUENCE_BLOCKS + i;
}

static double step_seconds(struct bench *x)
{
    uint64_t began_ns = clock_now_ns();
    must(engine_run(x->engine, x->step));
    return seconds_since(began_ns);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
/* Sorts them. */
static double median(double *value, uint32_t count)
{
    qsort(value, count, sizeof *value, compare);
    return value[count / 2];
}

/* Behind a round, whose best step took so long. */
static void round_end(struct bench *x, struct rounds *r, double seconds)
{
    struct ceiling before = x->now;
    x->now = ceilings_measure(&x->ceilings);
    CHECK(r->count < DECODE_ROUNDS && x->rounds_count < ROUNDS_MAX);
    x->read_bytes_s[x->rounds_count] = x->now.read_bytes_s;
    x->line_ns[x->rounds_count++] = x->now.line_ns;
    r->share[r->count] = ceiling_share(ceiling_higher(before, x->now), r->macs, r->bytes, seconds);
    r->seconds[r->count++] = seconds;
    if (r->best == 0 || seconds < r->best) r->best = seconds;
}

static void figure_of(struct bench *x, const char *what, uint32_t count, const char *unit,
                      double value)
{
    char name[64];
    snprintf(name, sizeof name, "%s_%u_%s", what, count, unit);
    figure(x, name, value);
}

static void prefill(struct bench *x, uint32_t tokens)
{
    const struct engine_facts *f = engine_facts(x->engine);
    double flops = (f->flops_per_token - x->head_flops) * tokens + x->head_flops;
    double attention = x->attention_macs * tokens * (tokens + 1) / 2;
    struct rounds r = {.macs = flops / 2};
    if (tokens > f->context_max) return;
    x->now = ceilings_measure(&x->ceilings);
    for (int run = 0; run < PREFILL_ROUNDS; run++) {
        step_clear(x->step);
        add(x, 0, 0, tokens);
        round_end(x, &r, step_seconds(x));
    }
    double seconds = median(r.seconds, r.count), share = median(r.share, r.count);
    figure_of(x, "prefill", tokens, "tokens_s", tokens / seconds);
    figure_of(x, "prefill", tokens, "best_tokens_s", tokens / r.best);
    figure_of(x, "prefill", tokens, "tflop_s", flops / seconds / 1e12);
    figure_of(x, "prefill", tokens, "of_peak_percent", 100 * share);
    figure_of(x, "prefill", tokens, "with_attention_of_peak_percent",
              100 * share * (r.macs + attention) / r.macs);
}

static double decode_round(struct bench *x, uint32_t sequences)
{
    double best = 1e9;
    for (int n = 0; n < DECODE_STEPS; n++) {
        step_clear(x->step);
        for (uint32_t i = 0; i < sequences; i++)
            add(x, i, BEHIND, 1);
        double took = step_seconds(x);
        if (took < best) best = took;
    }
    return best;
}

static void decode(struct bench *x, uint32_t sequences)
{
    const struct engine_facts *f = engine_facts(x->engine);
    double bytes = f->flops_per_token / 2 * dtype_bytes(f->geometry.dtype);
    double kv = (double)kv_token_bytes(&f->geometry) * BEHIND * sequences;
    struct rounds r = {.macs = f->flops_per_token / 2 * sequences, .bytes = bytes + kv};
    for (uint32_t i = 0; i < sequences; i++) {
        step_clear(x->step);
        add(x, i, 0, BEHIND);
        step_seconds(x);
    }
    x->now = ceilings_measure(&x->ceilings);
    for (int n = 0; n < DECODE_ROUNDS; n++)
        round_end(x, &r, decode_round(x, sequences));
    double seconds = median(r.seconds, r.count), share = median(r.share, r.count);
    figure_of(x, "decode", sequences, "of_roofline_percent", 100 * share);
    figure_of(x, "decode", sequences, "of_roofline_least_percent", 100 * r.share[0]);
    figure_of(x, "decode", sequences, "of_roofline_most_percent", 100 * r.share[r.count - 1]);
    figure_of(x, "decode", sequences, "tokens_s", sequences / seconds);
    figure_of(x, "decode", sequences, "best_tokens_s", sequences / r.best);
    figure_of(x, "decode", sequences, "step_ms", seconds * 1e3);
    figure_of(x, "decode", sequences, "weights_gb_s", bytes / seconds / 1e9);
}

/* Cold: the cache folder is empty. The model's own files are in the system's page cache. */
static void starts(struct bench *x)
{
    char dir[SCRATCH_BYTES];
    double cold = 1e9, cached = 1e9;
    for (int run = 0; run < 3; run++) {
        scratch_make(dir);
        for (int warm = 0; warm < 2; warm++) {
            open_engine(x, dir);
            double took = (double)engine_facts(x->engine)->load_ns / NS_PER_S;
            if (engine_facts(x->engine)->cache_hit != warm) exit(1);
            double *best = warm ? &cached : &cold;
            if (took < *best) *best = took;
            engine_close(x->engine);
        }
        scratch_remove(dir);
    }
    figure(x, "start_cold_ms", cold * 1e3);
    figure(x, "start_cached_ms", cached * 1e3);
}

static void sampler(struct bench *x)
{
    static const struct {
        const char *name;
        struct sampling how;
    } row[] = {
        {"sample_greedy_us", {.top_p = 1, .repetition_penalty = 1}},
        {"sample_plain_us", {.temperature = 1, .top_p = 1, .repetition_penalty = 1}},
        {"sample_top_k_us", {.temperature = 1, .top_p = 1, .top_k = 50, .repetition_penalty = 1}},
        {"sample_top_p_us", {.temperature = 1, .top_p = 0.95f, .repetition_penalty = 1}},
        {"sample_logprobs_us",
         {.top_p = 1, .repetition_penalty = 1, .logprobs = true, .tops_count = 20}},
    };
    struct sampler s;
    float *logits = mem_array(SAMPLER_VOCAB, sizeof *logits);
    if (!logits) must(ERR_MEMORY);
    must(sampler_init(&s, SAMPLER_VOCAB));
    for (uint32_t i = 0; i < SAMPLER_VOCAB; i++) {
        struct rng_block r = rng_draw(2, 3, i);
        for (int k = 0; k < 4; k++) /* roughly normal, deviation 3 */
            logits[i] += (rng_unit(r.word[k]) - 0.5f) * 5.2f;
    }
    for (size_t n = 0; n < sizeof row / sizeof row[0]; n++) {
        double best = 1e9;
        for (uint32_t i = 0; i < 20; i++) {
            struct token_info info;
            struct sampler_ask ask = {.logits = logits, .sampling = &row[n].how, .index = i};
            uint64_t began_ns = clock_now_ns();
            sampler_draw(&s, &ask, &info);
            double took = seconds_since(began_ns);
            if (took < best) best = took;
        }
        figure(x, row[n].name, best * 1e6);
    }
    sampler_fini(&s);
    mem_free(logits);
}

static double attention_macs(const char *model)
{
    struct model_config c;
    must(model_config_load(&c, model));
    return 2.0 * model_q_width(&c) * c.layers_count; /* with its K, and with its V */
}

int main(int argc, char **argv)
{
    uint32_t most = 2;
    struct bench x = {.model = NULL};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
            most = (uint32_t)atoi(argv[++i]);
        else if (strncmp(argv[i], "--", 2) != 0)
            x.model = argv[i];
    }
    if (!x.model) x.model = shape_s_model();
    x.attention_macs = attention_macs(x.model);
    for (uint32_t threads = 1; threads <= most; threads = threads < most ? most : most + 1) {
        x.threads = threads;
        ceilings_init(&x.ceilings, threads);
        x.rounds_count = 0;
        starts(&x);
        open_engine(&x, "none");
        const struct engine_facts *f = engine_facts(x.engine);
        must(step_new(&x.step, &f->limits));
        x.head_flops = 2.0 * f->vocab_count * f->hidden;
        fprintf(stderr, "engine_bench: %s on %s, %.1f MB of weights\n", f->model_name, f->device,
                (double)f->weights_bytes / 1e6);
        prefill(&x, 512);
        prefill(&x, PREFILL_MAX);
        decode(&x, 1);
        decode(&x, 8);
        decode(&x, SEQUENCES_MAX);
        if (threads == 1) sampler(&x);
        figure(&x, "peak_gflop_s", x.ceilings.peak_macs_s * 2 / 1e9);
        figure(&x, "read_gb_s", median(x.read_bytes_s, x.rounds_count) / 1e9);
        figure(&x, "read_least_gb_s", x.read_bytes_s[0] / 1e9);
        figure(&x, "read_most_gb_s", x.ceilings.read_bytes_s / 1e9);
        if (threads > 1) figure(&x, "line_ns", median(x.line_ns, x.rounds_count));
        step_free(x.step);
        engine_close(x.engine);
        ceilings_fini(&x.ceilings);
    }
    printf("}\n");
    return 0;
}
