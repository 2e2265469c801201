/* Scores, perplexities and embeddings against those of transformers (make_encode_goldens.py has the format).
 *
 *     encode_golden_test [BACKEND [LONGEST]]    all paths of the CPU if none is given; prompts up to so long
 *
 * What is allowed follows from what is allowed of logits (golden_test.c): fp32 1e-4 of each, bf16 2 % of a
 * position's spread; a log-probability is a difference of two. Of two vectors of length 1 the distance counts. */
#include "tests/unit/testing.h"

#include <dirent.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "engine/engine.h"

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

static const char *source_dir = TANDEM_SOURCE_DIR;
static const char *const *backends;
static uint32_t longest = UINT32_MAX;

struct run {
    struct engine *engine;
    struct step *step;
    enum dtype dtype;
    uint32_t hidden;
    bool best_path; /* the others skip long prompts */
    char label[128];
    float worst;             /* score, as a share of what is allowed */
    double worst_perplexity; /* as a share of it */
    double worst_distance;
};

static const void *take(const unsigned char **at, const unsigned char *end, size_t bytes)
{
    assert_true((size_t)(end - *at) >= bytes);
    const void *p = *at;
    *at += bytes;
    return p;
}

static uint32_t take_u32(const unsigned char **at, const unsigned char *end)
{
    uint32_t v;
    memcpy(&v, take(at, end, sizeof v), sizeof v);
    return v;
}

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
        float allowed = 2 * (run->dtype == DTYPE_F32 ? LOGIT_FP32 : SHARE_BF16 * spread);
        float error = fabsf(got[i] - want);
        if (!(error <= allowed))
            fail_msg("%s: score %u of %u: %g, wanted %g within %g", run->label, i, count,
                     (double)got[i], (double)want, (double)allowed);
        run->worst = fmaxf(run->worst, error / allowed);
        sum += (double)got[i];
        want_sum += (double)want;
        allowed_sum += (double)allowed;
    }
    if (count == 0) return;
    double share = fabs(exp((want_sum - sum) / count) - 1); /* of perplexities */
    if (share > exp(allowed_sum / count) - 1)
        fail_msg("%s: a perplexity that is off by %g", run->label, share);
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
    if (!(distance <= (run->dtype == DTYPE_F32 ? DISTANCE_FP32 : DISTANCE_BF16)))
        fail_msg("%s: an embedding that is %g away", run->label, distance);
    run->worst_distance = fmax(run->worst_distance, distance);
}

static void compare_prompt(struct run *run, const unsigned char **at, const unsigned char *end)
{
    static float scores[TOKENS_MAX], wanted[2 * TOKENS_MAX], vector[HIDDEN_MAX];
    static uint32_t ids[TOKENS_MAX];
    static double sum[2][HIDDEN_MAX];
    uint32_t count = take_u32(at, end);
    assert_true(count >= 1 && count <= TOKENS_MAX);
    memcpy(ids, take(at, end, count * sizeof *ids), count * sizeof *ids);
    size_t bytes = 2 * (count - 1) * sizeof *wanted;
    memcpy(wanted, take(at, end, bytes), bytes);
    if ((count > LONG && !run->best_path) || count > longest) {
        take(at, end, 2 * run->hidden * sizeof *vector);
        return;
    }
    memset(sum, 0, sizeof sum);
    run_prompt(run, ids, count, scores, sum);
    compare_scores(run, scores, wanted, count - 1);
    for (int i = LAST; i >= 0; i--) { /* the last one's stands first */
        memcpy(vector, take(at, end, run->hidden * sizeof *vector), run->hidden * sizeof *vector);
        compare_vector(run, sum[i], vector);
    }
}

static void open_run(struct run *run, const char *model_dir, const char *backend, enum dtype dtype)
{
    struct engine_options o = {.model_dir = model_dir,
                               .cache_dir = "none",
                               .backend = backend,
                               .dtype = dtype,
                               .threads = 2,
                               .limits = {4, ROWS_MAX, 3 * TABLE_MAX / 2},
                               .blocks_count = 3 * TABLE_MAX / 2,
                               .slots_count = 3};
    enum err e = engine_open(&run->engine, &o);
    if (e != OK) fail_msg("%s on %s: %s", model_dir, backend, err_text());
    assert_ok(step_new(&run->step, &o.limits));
    run->dtype = dtype;
    run->hidden = engine_facts(run->engine)->hidden;
}

static void compare_fixture(const char *name, const char *model_dir, bool bf16)
{
    char path[PATH_MAX];
    struct file_map map;
    snprintf(path, sizeof path, "%s/tests/golden/data/%s/encode-%s.bin", source_dir, name,
             bf16 ? "bf16" : "fp32");
    if (file_map_open(&map, path) != OK) return; /* not a model's folder */
    for (const char *const *b = backends; *b; b++) {
        const unsigned char *at = map.data, *end = at + map.size_bytes;
        struct run run = {.best_path = b == backends};
        snprintf(run.label, sizeof run.label, "%.40s %s on %.20s", name, bf16 ? "bf16" : "fp32",
                 *b);
        open_run(&run, model_dir, *b, bf16 ? DTYPE_BF16 : DTYPE_F32);
        assert_memory_equal(take(&at, end, 8), "TNDENC01", 8);
        uint32_t prompts = take_u32(&at, end);
        assert_int_equal(take_u32(&at, end), run.hidden);
        assert_true(run.hidden <= HIDDEN_MAX);
        for (uint32_t i = 0; i < prompts; i++)
            compare_prompt(&run, &at, end);
        assert_true(at == end);
        printf("%s: scores at most %.0f %% of what is allowed, perplexity %.3g off, vectors %.2g\n",
               run.label, (double)run.worst * 100, run.worst_perplexity, run.worst_distance);
        step_free(run.step);
        engine_close(run.engine);
    }
    file_map_close(&map);
}

static int is_name(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

static void results_are_those_of_transformers(void **state)
{
    struct dirent **list;
    char dir[PATH_MAX];
    (void)state;
    snprintf(dir, sizeof dir, "%s/tests/golden/data", source_dir);
    int count = scandir(dir, &list, is_name, alphasort);
    assert_true(count > 0);
    for (int i = 0; i < count; i++) {
        char model_dir[2 * PATH_MAX];
        struct stat st;
        snprintf(model_dir, sizeof model_dir, "%s/%s/model", dir, list[i]->d_name);
        if (stat(model_dir, &st) != 0)
            snprintf(model_dir, sizeof model_dir, "%s/examples/demo_model/model", source_dir);
        compare_fixture(list[i]->d_name, model_dir, false);
        compare_fixture(list[i]->d_name, model_dir, true);
        free(list[i]);
    }
    free(list);
}

int main(int argc, char **argv)
{
    const char *const one[] = {argc > 1 ? argv[1] : NULL, NULL};
    backends = argc > 1 ? one : backend_names();
    if (getenv("TANDEM_SOURCE_DIR")) source_dir = getenv("TANDEM_SOURCE_DIR");
    if (argc > 2) longest = (uint32_t)strtoul(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {cmocka_unit_test(results_are_those_of_transformers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
