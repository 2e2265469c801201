/* The engine's logits against those of Hugging Face transformers, on every path of the CPU backend
 * that this machine has, and its greedy text against a published one. make_goldens.py describes the
 * fixtures and made them.
 *
 *     golden_test [BACKEND [LONGEST]]     on that backend alone, prompts of at most LONGEST tokens
 *
 * Bounds (docs/numerics.md): fp32 within 1e-4. bf16 is held to transformers in fp32 on weights rounded
 * to bf16: within 2 % of a position's spread of logits, and the same greedy token wherever the
 * oracle's margin exceeds twice that. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/mem.h"
#include "tests/golden/fixture.h"
#include "tests/unit/testing.h"
#include "text/tokenizer.h"

#define ABSOLUTE_FP32 1e-4f
#define SHARE_BF16 0.02f

enum {
    CONTEXT_MAX = 8192,
    LONG = 1024, /* longer prompts run on the best path only: all have the same bits, and portable C
                  * takes minutes for 8,000 tokens */
};

struct run {
    struct engine *engine;
    struct step *step;
    const struct fixture *fixture;
    float worst; /* error as a share of what is allowed */
    uint32_t greedy_compared, greedy_count;
};

static void open_run(struct run *run, const struct fixture *f)
{
    run->fixture = f;
    fixture_open(&run->engine, &run->step,
                 &(struct engine_options){.model_dir = f->model_dir,
                                          .cache_dir = "none",
                                          .backend = f->backend,
                                          .dtype = f->dtype,
                                          .threads = 2,
                                          .context_max = CONTEXT_MAX,
                                          .limits = {1, 700, CONTEXT_MAX / BLOCK_TOKENS},
                                          .blocks_count = CONTEXT_MAX / BLOCK_TOKENS,
                                          .slots_count = 1});
}

static void close_run(struct run *run)
{
    step_free(run->step);
    engine_close(run->engine);
}

/* Blocks in reverse order, so that a mix-up of block and position shows. */
static void fill_step(struct run *run, const uint32_t *ids, uint32_t position, uint32_t rows)
{
    struct step *s = run->step;
    s->id++;
    s->sequences_count = 1;
    s->rows_count = rows;
    s->table_count = blocks_for_tokens(position + rows);
    memcpy(s->tokens, ids, rows * sizeof *ids);
    for (uint32_t i = 0; i < s->table_count; i++)
        s->table[i] = engine_facts(run->engine)->blocks_count - 1 - i;
    s->sequence[0] = (struct step_sequence){.rows_count = rows, .position = position};
}

static float spread_of(const float *v, uint32_t n)
{
    float low = v[0], high = v[0];
    for (uint32_t i = 1; i < n; i++) {
        low = fminf(low, v[i]);
        high = fmaxf(high, v[i]);
    }
    return high - low;
}

static void compare_row(struct run *run, const float *got, const unsigned char *wanted_bytes,
                        uint32_t vocab, uint32_t position)
{
    float *wanted = mem_array(vocab, sizeof *wanted);
    memcpy(wanted, wanted_bytes, vocab * sizeof *wanted);
    float allowed =
        run->fixture->dtype == DTYPE_F32 ? ABSOLUTE_FP32 : SHARE_BF16 * spread_of(wanted, vocab);
    for (uint32_t i = 0; i < vocab; i++) {
        float error = fabsf(got[i] - wanted[i]);
        if (!(error <= allowed))
            fail_msg("%s: position %u, token %u: %g, wanted %g within %g", run->fixture->label,
                     position, i, (double)got[i], (double)wanted[i], (double)allowed);
        run->worst = fmaxf(run->worst, error / allowed);
    }
    mem_free(wanted);
}

static uint32_t best_of(const float *v, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (v[i] > v[best]) best = i;
    return best;
}

/* One prompt, in chunks of at most rows_max, then its greedy continuation along the oracle's ids. */
static void compare_prompt(struct run *run, struct cursor *c, uint32_t vocab, uint32_t greedy_count)
{
    uint32_t tokens_count = take_u32(c), logits_from = take_u32(c);
    const unsigned char *id_bytes = take(c, (size_t)tokens_count * 4);
    if ((tokens_count > LONG && !run->fixture->best_path) || tokens_count > fixture_longest) {
        take(c, (size_t)(tokens_count - logits_from) * vocab * 4 + (size_t)greedy_count * 12);
        return;
    }
    uint32_t rows_max = engine_facts(run->engine)->limits.rows_max, next = 0;
    uint32_t *ids = mem_array(tokens_count, sizeof *ids);
    float *logits = mem_array((size_t)rows_max * vocab, sizeof *logits);
    memcpy(ids, id_bytes, (size_t)tokens_count * 4);
    for (uint32_t first = 0, rows; first < tokens_count; first += rows) {
        rows = tokens_count - first < rows_max ? tokens_count - first : rows_max;
        fill_step(run, ids + first, first, rows);
        run->step->sequence[0].setup = &(struct job){.prompt = ids, .prompt_count = tokens_count};
        assert_ok(engine_run_scored(run->engine, run->step, logits));
        for (uint32_t r = 0; r < rows; r++)
            if (first + r >= logits_from)
                compare_row(run, logits + (size_t)r * vocab, take(c, (size_t)vocab * 4), vocab,
                            first + r);
        next = best_of(logits + (size_t)(rows - 1) * vocab, vocab);
    }
    for (uint32_t i = 0; i < greedy_count; i++) {
        uint32_t id = take_u32(c);
        float margin = take_f32(c), spread = take_f32(c);
        float allowed = run->fixture->dtype == DTYPE_F32 ? ABSOLUTE_FP32 : SHARE_BF16 * spread;
        bool clear = margin > 2 * allowed;
        if (clear && next != id)
            fail_msg("%s: greedy token %u is %u, wanted %u", run->fixture->label, i, next, id);
        run->greedy_compared += clear;
        run->greedy_count++;
        if (i + 1 == greedy_count) break;
        fill_step(run, &id, tokens_count + i, 1);
        assert_ok(engine_run_scored(run->engine, run->step, logits));
        next = best_of(logits, vocab);
    }
    mem_free(ids);
    mem_free(logits);
}

static void compare_fixture(const struct fixture *f, struct cursor *c)
{
    struct run run = {0};
    open_run(&run, f);
    uint32_t prompts_count = take_u32(c), vocab = take_u32(c), greedy_count = take_u32(c);
    assert_int_equal(vocab, engine_facts(run.engine)->vocab_count);
    for (uint32_t i = 0; i < prompts_count; i++)
        compare_prompt(&run, c, vocab, greedy_count);
    printf("%s: error at most %.0f %% of what is allowed; greedy %u of %u clear\n", f->label,
           (double)run.worst * 100, run.greedy_compared, run.greedy_count);
    close_run(&run);
}

static void logits_are_those_of_transformers(void **state)
{
    (void)state;
    fixture_each("", "TNDGOLD1", compare_fixture);
}

/* The published text. */

enum { STORY_TOKENS = 1 + 256, BOS = 1 };

struct story {
    struct run run;
    struct job job;
    uint32_t ids[STORY_TOKENS]; /* BOS, then what was generated */
    uint32_t count;
};

/* One step over ids [position, position + rows), as nodes make them: the engine samples after the
 * last known token, and `setup` stands in the first step of an attempt. */
static void story_step(struct story *s, uint32_t position, uint32_t rows, bool setup)
{
    struct step *step = s->run.step;
    fill_step(&s->run, s->ids + position, position, rows);
    step->sequence[0].sample = position + rows == s->count;
    step->sequence[0].setup = setup ? &s->job : NULL;
    if (step->sequence[0].sample && rows == 1 && !setup) step->tokens[0] = STEP_TOKEN_LAST;
    assert_ok(engine_run(s->run.engine, step));
    if (step->sequence[0].sample) s->ids[s->count++] = step->result[0].token;
}

/* Generates until `count` ids are there; what is known already goes in as chunks of `chunk` first,
 * like a request that was begun elsewhere. */
static void story_go_on(struct story *s, uint32_t count, uint32_t chunk)
{
    uint32_t known = s->count;
    s->job = (struct job){.prompt = s->ids,
                          .prompt_count = 1,
                          .forwarded = s->ids + 1,
                          .forwarded_count = known - 1,
                          .sampling = {.top_p = 1, .repetition_penalty = 1}};
    for (uint32_t at = 0; at < known; at += chunk)
        story_step(s, at, known - at < chunk ? known - at : chunk, at == 0);
    while (s->count < count)
        story_step(s, s->count - 1, 1, false);
}

static void check_text(const struct story *s, const struct tokenizer *t,
                       const struct file_map *text)
{
    char *got;
    size_t length;
    assert_ok(tokenizer_decode(t, s->ids, s->count, TOKENIZER_SKIP_SPECIAL, &got, &length));
    if (length > text->size_bytes || memcmp(got, text->data, length) != 0)
        fail_msg("%s: %s", s->run.fixture->label, got);
    for (size_t i = length; i < text->size_bytes; i++)
        assert_int_equal(text->data[i], '\n'); /* nothing but the file's last line end is left */
    mem_free(got);
}

static void stories_are_told_as_published(void **state)
{
    static const uint32_t chunks[] = {1, 7, 16, 64};
    char dir[PATH_MAX - 64], path[PATH_MAX];
    struct file_map text;
    struct tokenizer *tokenizer;
    const char *shared = getenv("TANDEM_SHARED_DATA");
    (void)state;
    if (shared)
        snprintf(dir, sizeof dir, "%s/models/stories260K", shared);
    else
        snprintf(dir, sizeof dir, "%s/../shared/data/models/stories260K", fixture_source_dir);
    snprintf(path, sizeof path, "%s/expected_greedy.txt", dir);
    if (file_map_open(&text, path) != OK) {
        printf("skipped, no reference data: %s\n", err_text());
        skip();
    }
    assert_ok(tokenizer_open(&tokenizer, dir));
    for (const char *const *backend = fixture_backends; *backend; backend++) {
        struct story s = {.ids = {BOS}, .count = 1};
        open_run(&s.run, &(struct fixture){*backend, dir, *backend, DTYPE_F32, false});
        story_go_on(&s, STORY_TOKENS, 1);
        check_text(&s, tokenizer, &text);
        for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
            s.count = 130; /* lost in the middle, replayed */
            story_go_on(&s, STORY_TOKENS, chunks[i]);
            check_text(&s, tokenizer, &text);
        }
        close_run(&s.run);
    }
    tokenizer_close(tokenizer);
    file_map_close(&text);
}

int main(int argc, char **argv)
{
    fixture_arguments(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_those_of_transformers),
        cmocka_unit_test(stories_are_told_as_published),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
