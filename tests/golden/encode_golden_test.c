/* Scores, perplexities and embeddings against those of transformers (make_encode_goldens.py has the format).
 *
 *     encode_golden_test [BACKEND [LONGEST]]    all paths of the CPU if none is given; prompts up to so long
 *
 * What is allowed follows from what is allowed of logits (golden_test.c): fp32 1e-4 of each, bf16 2 % of a
 * position's spread; a log-probability is a difference of two. Of two vectors of length 1 the distance counts. */
#include "tests/unit/testing.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/golden/fixture.h"

#define LOGIT_FP32 1e-4f
#define SHARE_BF16 0.02f
#define DISTANCE_FP32 1e-5
#define DISTANCE_BF16 0.02

enum {
    TOKENS_MAX = 1000,
    ROWS_MAX = 300,
    HIDDEN_MAX = 1024,
    TABLE_MAX = 2 * 64,
    LAST = 1,
    LONG = 64
};

struct run {
    struct engine *engine;
    struct step *step;
    const struct fixture *fixture;
    uint32_t hidden;
    float worst;             /* score, as a share of what is allowed */
    double worst_perplexity; /* as a share of it */
    double worst_distance;
};

/* Slot 0 scores it, slot 1 sums it, slot 2 takes its last row: in one step, in chunks. */
static void run_prompt(struct run *run, const uint32_t *ids, uint32_t count, float *scores,
                       double sum[2][HIDDEN_MAX])
{
    enum { WANTS = 3, CHUNK = ROWS_MAX / WANTS };
    static const enum step_want wants[WANTS] = {STEP_WANT_SCORES, STEP_WANT_SUM, STEP_WANT_LAST};
    struct job job = {.prompt = ids, .prompt_count = count, .sampling = {.repetition_penalty = 1}};
    struct step *s = run->step;
    uint32_t blocks = TABLE_MAX / 2;
    for (uint32_t from = 0, rows; from < count; from += rows) {
        rows = count - from < CHUNK ? count - from : CHUNK;
        bool last = from + rows == count;
        s->id++;
        step_clear(s);
        for (uint32_t i = 0; i < WANTS; i++) {
            struct step_sequence *q = step_add(s, i, from, rows);
            q->setup = from == 0 ? &job : NULL;
            q->want = wants[i];
            q->next = last ? STEP_TOKEN_NONE : ids[from + rows];
            q->scores = scores + from;
            q->sum = sum[q->want == STEP_WANT_LAST];
            if (q->want == STEP_WANT_LAST && !last) q->want = STEP_WANT_KV;
            memcpy(s->tokens + s->rows_count, ids + from, rows * sizeof *ids);
            s->rows_count += rows;
            for (uint32_t b = 0; b < blocks_for_tokens(from + rows); b++)
                s->table[s->table_count++] = i * blocks + b;
        }
        assert_ok(engine_run(run->engine, s));
    }
}

static void compare_scores(struct run *run, const float *got, const float *wanted, uint32_t count)
{
    double sum = 0, want_sum = 0, allowed_sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        float want = wanted[2 * i], spread = wanted[2 * i + 1];
        float allowed = 2 * (run->fixture->dtype == DTYPE_F32 ? LOGIT_FP32 : SHARE_BF16 * spread);
        float error = fabsf(got[i] - want);
        if (!(error <= allowed))
            fail_msg("%s: score %u of %u: %g, wanted %g within %g", run->fixture->label, i, count,
                     (double)got[i], (double)want, (double)allowed);
        run->worst = fmaxf(run->worst, error / allowed);
        sum += (double)got[i];
        want_sum += (double)want;
        allowed_sum += (double)allowed;
    }
    if (count == 0) return;
    double share = fabs(exp((want_sum - sum) / count) - 1); /* of perplexities */
    if (share > exp(allowed_sum / count) - 1)
        fail_msg("%s: a perplexity that is off by %g", run->fixture->label, share);
    run->worst_perplexity = fmax(run->worst_perplexity, share);
}

static void compare_vector(struct run *run, const double *sum, const float *wanted)
{
    double squares = 0, distance = 0;
    for (uint32_t i = 0; i < run->hidden; i++)
        squares += sum[i] * sum[i];
    for (uint32_t i = 0; i < run->hidden; i++) {
        double d = sum[i] / sqrt(squares) - (double)wanted[i];
        distance += d * d;
    }
    distance = sqrt(distance);
    if (!(distance <= (run->fixture->dtype == DTYPE_F32 ? DISTANCE_FP32 : DISTANCE_BF16)))
        fail_msg("%s: an embedding that is %g away", run->fixture->label, distance);
    run->worst_distance = fmax(run->worst_distance, distance);
}

static void compare_prompt(struct run *run, struct cursor *c)
{
    static float scores[TOKENS_MAX], wanted[2 * TOKENS_MAX], vector[HIDDEN_MAX];
    static uint32_t ids[TOKENS_MAX];
    static double sum[2][HIDDEN_MAX];
    uint32_t count = take_u32(c);
    assert_true(count >= 1 && count <= TOKENS_MAX);
    memcpy(ids, take(c, count * sizeof *ids), count * sizeof *ids);
    size_t bytes = 2 * (count - 1) * sizeof *wanted;
    memcpy(wanted, take(c, bytes), bytes);
    if ((count > LONG && !run->fixture->best_path) || count > fixture_longest) {
        take(c, 2 * run->hidden * sizeof *vector);
        return;
    }
    memset(sum, 0, sizeof sum);
    run_prompt(run, ids, count, scores, sum);
    compare_scores(run, scores, wanted, count - 1);
    for (int i = LAST; i >= 0; i--) { /* the last one's stands first */
        memcpy(vector, take(c, run->hidden * sizeof *vector), run->hidden * sizeof *vector);
        compare_vector(run, sum[i], vector);
    }
}

static void compare_fixture(const struct fixture *f, struct cursor *c)
{
    struct run run = {.fixture = f};
    fixture_open(&run.engine, &run.step,
                 &(struct engine_options){.model_dir = f->model_dir,
                                          .cache_dir = "none",
                                          .backend = f->backend,
                                          .dtype = f->dtype,
                                          .threads = 2,
                                          .limits = {4, ROWS_MAX, 3 * TABLE_MAX / 2},
                                          .blocks_count = 3 * TABLE_MAX / 2,
                                          .slots_count = 3});
    run.hidden = engine_facts(run.engine)->hidden;
    uint32_t prompts = take_u32(c);
    assert_int_equal(take_u32(c), run.hidden);
    assert_true(run.hidden <= HIDDEN_MAX);
    for (uint32_t i = 0; i < prompts; i++)
        compare_prompt(&run, c);
    printf("%s: scores at most %.0f %% of what is allowed, perplexity %.3g off, vectors %.2g\n",
           f->label, (double)run.worst * 100, run.worst_perplexity, run.worst_distance);
    step_free(run.step);
    engine_close(run.engine);
}

static void results_are_those_of_transformers(void **state)
{
    (void)state;
    fixture_each("encode-", "TNDENC01", compare_fixture);
}

int main(int argc, char **argv)
{
    fixture_arguments(argc, argv);
    const struct CMUnitTest tests[] = {cmocka_unit_test(results_are_those_of_transformers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
