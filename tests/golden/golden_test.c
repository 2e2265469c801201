/* The engine's logits against those of Hugging Face transformers, on every path of the CPU backend
 * that this machine has, and its greedy text against a published one. make_goldens.py describes the
 * fixtures and made them.
 *
 *     golden_test [BACKEND [LONGEST]]     on that backend alone, prompts of at most LONGEST tokens
 *
 * The data lies in the source tree; TANDEM_SOURCE_DIR in the environment says where that is now.
 *
 * Bounds (docs/numerics.md): fp32 within 1e-4. bf16 is held to transformers in fp32 on weights rounded
 * to bf16: within 2 % of a position's spread of logits, and the same greedy token wherever the
 * oracle's margin exceeds twice that. */
#include <dirent.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "common/mem.h"
#include "engine/engine.h"
#include "tests/unit/testing.h"
#include "text/tokenizer.h"

#define ABSOLUTE_FP32 1e-4f
#define SHARE_BF16 0.02f

enum {
    CONTEXT_MAX = 8192,
    NAME_BYTES = 256,
    LONG = 1024, /* longer prompts run on the best path only: all have the same bits, and portable C
                  * takes minutes for 8,000 tokens */
};

/* Reading a fixture: bounds are checked, for a file that was cut is a finding too. */

struct cursor {
    const unsigned char *at, *end;
};

static const void *take(struct cursor *c, size_t size)
{
    assert_true((size_t)(c->end - c->at) >= size);
    const void *p = c->at;
    c->at += size;
    return p;
}
static uint32_t take_u32(struct cursor *c)
{
    uint32_t v;
    memcpy(&v, take(c, sizeof v), sizeof v);
    return v;
}
static float take_f32(struct cursor *c)
{
    float v;
    memcpy(&v, take(c, sizeof v), sizeof v);
    return v;
}

static const char *source_dir = TANDEM_SOURCE_DIR;
static const char *data_dir(void)
{
    static char dir[PATH_MAX - NAME_BYTES - 32];
    snprintf(dir, sizeof dir, "%s/tests/golden/data", source_dir);
    return dir;
}

static const char *const *backends; /* ended by NULL, the best first */
static uint32_t longest = UINT32_MAX;

struct run {
    struct engine *engine;
    struct step *step;
    enum dtype dtype;
    char label[2 * NAME_BYTES];
    float worst; /* error as a share of what is allowed */
    uint32_t greedy_compared, greedy_count;
    bool best_path;
};

static void open_run(struct run *run, const char *model_dir, const char *backend, enum dtype dtype)
{
    struct engine_options o = {.model_dir = model_dir,
                               .cache_dir = "none",
                               .backend = backend,
                               .dtype = dtype,
                               .threads = 2,
                               .context_max = CONTEXT_MAX,
                               .limits = {1, 700, CONTEXT_MAX / BLOCK_TOKENS},
                               .blocks_count = CONTEXT_MAX / BLOCK_TOKENS,
                               .slots_count = 1};
    enum err e = engine_open(&run->engine, &o);
    if (e != OK) fail_msg("%s on %s: %s", model_dir, backend, err_text());
    assert_ok(step_new(&run->step, &o.limits));
    run->dtype = dtype;
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
    float allowed = run->dtype == DTYPE_F32 ? ABSOLUTE_FP32 : SHARE_BF16 * spread_of(wanted, vocab);
    for (uint32_t i = 0; i < vocab; i++) {
        float error = fabsf(got[i] - wanted[i]);
        if (!(error <= allowed))
            fail_msg("%s: position %u, token %u: %g, wanted %g within %g", run->label, position, i,
                     (double)got[i], (double)wanted[i], (double)allowed);
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
    if ((tokens_count > LONG && !run->best_path) || tokens_count > longest) {
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
        float allowed = run->dtype == DTYPE_F32 ? ABSOLUTE_FP32 : SHARE_BF16 * spread;
        bool clear = margin > 2 * allowed;
        if (clear && next != id)
            fail_msg("%s: greedy token %u is %u, wanted %u", run->label, i, next, id);
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

static void compare_fixture(const char *name, const char *model_dir, const char *fixture,
                            enum dtype dtype)
{
    char path[PATH_MAX];
    struct file_map map;
    snprintf(path, sizeof path, "%s/%s/%s.bin", data_dir(), name, fixture);
    if (file_map_open(&map, path) != OK) return; /* demo has bf16 only */
    for (const char *const *backend = backends; *backend; backend++) {
        struct cursor c = {map.data, map.data + map.size_bytes};
        struct run run = {.best_path = backend == backends};
        snprintf(run.label, sizeof run.label, "%s %s on %s", name, fixture, *backend);
        open_run(&run, model_dir, *backend, dtype);
        assert_memory_equal(take(&c, 8), "TNDGOLD1", 8);
        uint32_t prompts_count = take_u32(&c), vocab = take_u32(&c), greedy_count = take_u32(&c);
        assert_int_equal(vocab, engine_facts(run.engine)->vocab_count);
        for (uint32_t i = 0; i < prompts_count; i++)
            compare_prompt(&run, &c, vocab, greedy_count);
        assert_true(c.at == c.end);
        printf("%s: error at most %.0f %% of what is allowed; greedy %u of %u clear\n", run.label,
               (double)run.worst * 100, run.greedy_compared, run.greedy_count);
        close_run(&run);
    }
    file_map_close(&map);
}

static int is_name(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

static void logits_are_those_of_transformers(void **state)
{
    (void)state;
    struct dirent **list;
    int count = scandir(data_dir(), &list, is_name, alphasort);
    assert_true(count > 0);
    for (int i = 0; i < count; i++) {
        char model_dir[PATH_MAX];
        struct stat st;
        snprintf(model_dir, sizeof model_dir, "%s/%s/model", data_dir(), list[i]->d_name);
        if (stat(model_dir, &st) != 0)
            snprintf(model_dir, sizeof model_dir, "%s/examples/demo_model/model", source_dir);
        compare_fixture(list[i]->d_name, model_dir, "fp32", DTYPE_F32);
        compare_fixture(list[i]->d_name, model_dir, "bf16", DTYPE_BF16);
        free(list[i]);
    }
    free(list);
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
        fail_msg("%s: %s", s->run.label, got);
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
        snprintf(dir, sizeof dir, "%s/../shared/data/models/stories260K", source_dir);
    snprintf(path, sizeof path, "%s/expected_greedy.txt", dir);
    if (file_map_open(&text, path) != OK) {
        printf("skipped, no reference data: %s\n", err_text());
        skip();
    }
    assert_ok(tokenizer_open(&tokenizer, dir));
    for (const char *const *backend = backends; *backend; backend++) {
        struct story s = {.ids = {BOS}, .count = 1};
        snprintf(s.run.label, sizeof s.run.label, "stories260K on %s", *backend);
        open_run(&s.run, dir, *backend, DTYPE_F32);
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
    const char *const one[] = {argc > 1 ? argv[1] : NULL, NULL};
    backends = argc > 1 ? one : backend_names();
    if (getenv("TANDEM_SOURCE_DIR")) source_dir = getenv("TANDEM_SOURCE_DIR");
    if (argc > 2) longest = (uint32_t)strtoul(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_those_of_transformers),
        cmocka_unit_test(stories_are_told_as_published),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
