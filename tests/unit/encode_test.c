/* Scores and hidden states of a text's rows: the same bits whatever the chunks, the company and the path.
 *
 *     encode_test [BACKEND]        all paths of the CPU if none is given */
#include "tests/contract/backend_testing.h"

#include <math.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "engine/engine.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tiny_model.h"

enum {
    TEXTS = 4, /* scored, summed, its last row, and one that samples */
    TOKENS_MAX = 52,
    HIDDEN = 32,
    BLOCKS_EACH = 4,
    OUTPUTS = TEXTS,   /* fewer than rows: results are read in pieces */
    VOCAB_WIDE = 6000, /* of a row: worth several threads, beside another row or alone */
};

static const char *const *backends;
static const enum step_want wants[TEXTS] = {STEP_WANT_SCORES, STEP_WANT_SUM, STEP_WANT_LAST,
                                            STEP_WANT_KV};

struct result {
    float scores[TOKENS_MAX];
    double sum[2][HIDDEN]; /* of texts 1 and 2 */
    uint32_t token;
};

struct fixture {
    char dir[SCRATCH_BYTES];
    struct tiny_shape shape;
    uint32_t tokens[TEXTS][TOKENS_MAX], count[TEXTS];
    struct job job[TEXTS];
    struct engine *engine;
    struct step *step;
    struct result result;
};

static int setup(void **state)
{
    struct fixture *f = mem_new(sizeof *f);
    *state = f;
    f->shape = (struct tiny_shape)TINY_SHAPE;
    f->shape.hidden = HIDDEN;
    f->shape.head_dim = 8;
    scratch_make(f->dir);
    tiny_model_write(f->dir, &f->shape);
    for (uint32_t i = 0; i < TEXTS; i++) {
        f->count[i] = TOKENS_MAX - 11 * i;
        for (uint32_t j = 0; j < f->count[i]; j++)
            f->tokens[i][j] = rng_below(rng_draw(9, i, j).word[0], f->shape.vocab);
        f->job[i] = (struct job){.prompt = f->tokens[i],
                                 .prompt_count = f->count[i],
                                 .sampling = {.temperature = 0.8f,
                                              .top_p = 1,
                                              .repetition_penalty = 1,
                                              .logprobs = true,
                                              .seed = 5}};
    }
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    scratch_remove(f->dir);
    mem_free(f);
    return 0;
}

static void open_on(struct fixture *f, const char *backend, enum dtype dtype, uint32_t threads)
{
    struct engine_options o = {.model_dir = f->dir,
                               .cache_dir = "none",
                               .backend = backend,
                               .dtype = dtype,
                               .deterministic = true,
                               .threads = threads,
                               .blocks_count = TEXTS * BLOCKS_EACH,
                               .limits = {OUTPUTS, TEXTS * TOKENS_MAX, TEXTS * BLOCKS_EACH},
                               .slots_count = TEXTS};
    if (engine_open(&f->engine, &o) != OK) fail_msg("%s: %s", backend, err_text());
    assert_ok(step_new(&f->step, &o.limits));
}

static void close_engine(struct fixture *f)
{
    step_free(f->step);
    engine_close(f->engine);
}

static void add_part(struct fixture *f, uint32_t text, uint32_t from, uint32_t rows)
{
    struct step *s = f->step;
    bool whole = from + rows == f->count[text];
    struct step_sequence *q = step_add(s, text, from, rows);
    q->setup = from == 0 ? &f->job[text] : NULL;
    q->want = wants[text];
    memcpy(s->tokens + s->rows_count, f->tokens[text] + from, rows * sizeof *s->tokens);
    s->rows_count += rows;
    for (uint32_t i = 0; i < blocks_for_tokens(from + rows); i++)
        s->table[s->table_count++] = text * BLOCKS_EACH + i;
    q->next = whole ? STEP_TOKEN_NONE : f->tokens[text][from + rows];
    q->scores = f->result.scores + from;
    if (q->want == STEP_WANT_SUM) q->sum = f->result.sum[0];
    if (q->want == STEP_WANT_LAST) q->sum = f->result.sum[1];
    if (q->want == STEP_WANT_LAST && !whole) q->want = STEP_WANT_KV;
    q->sample = text == 3 && whole;
}

/* Texts `first` to `last`, `chunk` rows of each in a step. */
static void run(struct fixture *f, uint32_t first, uint32_t last, uint32_t chunk)
{
    for (uint32_t from = 0; from < TOKENS_MAX; from += chunk) {
        struct step *s = f->step;
        s->id++;
        step_clear(s);
        for (uint32_t i = first; i <= last; i++)
            if (from < f->count[i])
                add_part(f, i, from, f->count[i] - from < chunk ? f->count[i] - from : chunk);
        assert_ok(engine_run(f->engine, s));
        for (uint32_t i = 0; i < s->sequences_count; i++)
            if (s->sequence[i].sample) f->result.token = s->result[i].token;
    }
}

static struct result run_all(struct fixture *f, uint32_t chunk, bool together)
{
    memset(&f->result, 0, sizeof f->result);
    if (together) run(f, 0, TEXTS - 1, chunk);
    for (uint32_t i = 0; !together && i < TEXTS; i++)
        run(f, i, i, chunk);
    return f->result;
}

/* What the logits of all rows say. */
static void expect_logprobs(struct fixture *f, const struct result *got)
{
    float *logits = mem_array((size_t)TOKENS_MAX * f->shape.vocab, sizeof *logits);
    f->step->id++;
    step_clear(f->step);
    add_part(f, 0, 0, f->count[0]);
    f->step->sequence[0].want = STEP_WANT_KV;
    assert_ok(engine_run_scored(f->engine, f->step, logits));
    for (uint32_t i = 0; i + 1 < f->count[0]; i++) {
        const float *row = logits + (size_t)i * f->shape.vocab;
        uint32_t next = f->tokens[0][i + 1];
        double total = 0;
        for (uint32_t v = 0; v < f->shape.vocab; v++)
            total += exp((double)row[v]);
        assert_float_equal(got->scores[i], (double)row[next] - log(total), 1e-5);
        float same = plain_logprob(row, f->shape.vocab, next);
        assert_memory_equal(&got->scores[i], &same, sizeof same);
    }
    assert_true(got->scores[f->count[0] - 1] == 0); /* nothing stands behind the last token */
    mem_free(logits);
}

static void results_are_the_same_bits_in_any_chunks_and_company(void **state)
{
    static const uint32_t chunks[] = {TOKENS_MAX, 1, 7, 16, 33};
    struct fixture *f = *state;
    for (const char *const *b = backends; *b; b++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            open_on(f, *b, bf16 ? DTYPE_BF16 : DTYPE_F32, 1);
            struct result first = run_all(f, TOKENS_MAX, false);
            expect_logprobs(f, &first);
            for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++)
                for (int together = 0; together < 2; together++) {
                    struct result r = run_all(f, chunks[i], together);
                    if (memcmp(&r, &first, sizeof r) != 0)
                        fail_msg("%s, %s, chunks of %u%s", *b, bf16 ? "bf16" : "fp32", chunks[i],
                                 together ? ", together" : "");
                }
            close_engine(f);
        }
}

static void results_are_the_same_bits_on_any_number_of_threads(void **state)
{
    struct fixture *f = *state;
    struct result first;
    if (strncmp(backends[0], "cpu", 3) != 0) skip(); /* a device has none */
    f->shape.vocab = VOCAB_WIDE;
    tiny_model_write(f->dir, &f->shape);
    for (uint32_t threads = 1; threads <= 3; threads++) {
        open_on(f, backends[0], DTYPE_BF16, threads);
        struct result r = run_all(f, 33, true);
        if (threads == 1) expect_logprobs(f, &r);
        close_engine(f);
        if (threads == 1) first = r;
        assert_memory_equal(&r, &first, sizeof r);
    }
}

static void a_mean_is_of_all_rows_and_a_last_of_one(void **state)
{
    struct fixture *f = *state;
    double one[HIDDEN] = {0}, all[HIDDEN] = {0}, size = 0;
    open_on(f, backends[0], DTYPE_F32, 1);
    f->count[1] = f->count[2];
    memcpy(f->tokens[1], f->tokens[2], sizeof f->tokens[1]);
    struct result r = run_all(f, 16, true);
    for (uint32_t n = f->count[2]; n > 0; n--) { /* sum of the last rows of each prefix */
        f->count[2] = n;
        memset(&f->result, 0, sizeof f->result);
        run(f, 2, 2, TOKENS_MAX);
        if (one[0] == 0) memcpy(one, f->result.sum[1], sizeof one);
        for (uint32_t i = 0; i < f->shape.hidden; i++)
            all[i] += f->result.sum[1][i];
    }
    assert_memory_equal(one, r.sum[1], f->shape.hidden * sizeof one[0]);
    for (uint32_t i = 0; i < f->shape.hidden; i++) {
        assert_float_equal(all[i], r.sum[0][i], 1e-9);
        size += all[i] * all[i];
    }
    assert_true(size > 0);
    close_engine(f);
}

int main(int argc, char **argv)
{
    const char *const one[] = {argc > 1 ? argv[1] : NULL, NULL};
    backends = argc > 1 ? one : backend_names();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(results_are_the_same_bits_in_any_chunks_and_company, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(results_are_the_same_bits_on_any_number_of_threads, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_mean_is_of_all_rows_and_a_last_of_one, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
