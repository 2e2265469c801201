/* The engine on any device: its logits are those of the CPU as far as types allow, steps that are in flight
 * together give what steps one at a time give, cancelled ones leave nothing behind.
 *
 *     engine_device_test [BACKEND]        "cpu" if none is given */
#include <math.h>

#include "common/mailbox.h"
#include "common/mem.h"
#include "common/rng.h"
#include "engine/engine.h"
#include "tests/unit/testing.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tiny_model.h"

#define WAIT_NS (60ull * 1000000000)

enum {
    SEQUENCES = 5,
    PROMPT_MAX = 24,
    STEPS = 9,
    ROWS_MAX = SEQUENCES * PROMPT_MAX,
    BLOCKS_EACH = 4,
    POOL = SEQUENCES * BLOCKS_EACH,
};

static const char *backend = "cpu";

struct fixture {
    char dir[SCRATCH_BYTES];
    struct tiny_shape shape;
    struct mailbox *events;
    struct engine *runs; /* NULL: none */
    uint32_t prompt[SEQUENCES][PROMPT_MAX], prompt_count[SEQUENCES];
    struct job job[SEQUENCES];
};

static void fill(struct fixture *f)
{
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        f->prompt_count[i] = 3 + rng_below(rng_draw(4, i, 0).word[0], PROMPT_MAX - 3);
        for (uint32_t j = 0; j < f->prompt_count[i]; j++)
            f->prompt[i][j] = rng_below(rng_draw(4, i, j).word[1], f->shape.vocab);
        f->job[i] = (struct job){.key.choice = i,
                                 .prompt = f->prompt[i],
                                 .prompt_count = f->prompt_count[i],
                                 .sampling = {.temperature = i % 2 ? 0.9f : 0,
                                              .top_p = i == 3 ? 0.7f : 1,
                                              .repetition_penalty = i == 1 ? 1.2f : 1,
                                              .seed = 40 + i,
                                              .logprobs = true}};
    }
}

static int setup(void **state)
{
    struct fixture *f = mem_new(sizeof *f);
    *state = f;
    f->shape = (struct tiny_shape){.hidden = 64,
                                   .layers = 2,
                                   .heads = 4,
                                   .kv_heads = 2,
                                   .head_dim = 16,
                                   .ffn = 96,
                                   .vocab = 120,
                                   .context = 128,
                                   .tied = true,
                                   .dtype = DTYPE_BF16,
                                   .seed = 3};
    scratch_make(f->dir);
    tiny_model_write(f->dir, &f->shape);
    assert_ok(mailbox_new(&f->events, sizeof(struct engine_event), 256));
    fill(f);
    return 0;
}

static void stop(struct fixture *f)
{
    if (f->runs) engine_stop(f->runs);
    f->runs = NULL;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    stop(f); /* of a test that failed: its thread would tell of its steps */
    mailbox_free(f->events);
    scratch_remove(f->dir);
    mem_free(f);
    return 0;
}

static struct engine *open_on(const struct fixture *f, const char *name, enum dtype dtype,
                              bool deterministic)
{
    struct engine *engine;
    struct engine_options o = {.model_dir = f->dir,
                               .cache_dir = "none",
                               .backend = name,
                               .dtype = dtype,
                               .deterministic = deterministic,
                               .threads = 1,
                               .blocks_count = POOL,
                               .limits = {SEQUENCES, ROWS_MAX, POOL},
                               .slots_count = SEQUENCES};
    if (engine_open(&engine, &o) != OK) fail_msg("%s: %s", name, err_text());
    return engine;
}

static struct step *new_step(const struct engine *engine)
{
    struct step *s;
    assert_ok(step_new(&s, &engine_facts(engine)->limits));
    return s;
}

/* Rows of sequence i from `position` on: of its prompt, or the token drawn last. */
static void add(const struct fixture *f, struct step *s, uint32_t i, uint32_t position,
                uint32_t rows)
{
    bool prompt = position < f->prompt_count[i];
    struct step_sequence *q = step_add(s, i, position, rows);
    q->sample = position + rows >= f->prompt_count[i];
    q->setup = position == 0 ? &f->job[i] : NULL;
    for (uint32_t r = 0; r < rows; r++)
        s->tokens[s->rows_count++] = prompt ? f->prompt[i][position + r] : STEP_TOKEN_LAST;
    for (uint32_t b = 0; b < BLOCKS_EACH; b++)
        s->table[s->table_count++] = (i + b * SEQUENCES + 3) % POOL;
}

/* --- against the CPU --- */

static float *scored(const struct fixture *f, const char *name, enum dtype dtype, uint32_t *rows)
{
    struct engine *engine = open_on(f, name, dtype, false);
    struct step *s = new_step(engine);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        add(f, s, i, 0, f->prompt_count[i]);
    float *logits = mem_array((size_t)s->rows_count * f->shape.vocab, sizeof *logits);
    assert_ok(engine_run_scored(engine, s, logits));
    *rows = s->rows_count;
    step_free(s);
    engine_close(engine);
    return logits;
}

static void logits_are_those_of_the_cpu(void **state)
{
    const struct fixture *f = *state;
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};
    for (size_t d = 0; d < 2; d++) {
        uint32_t rows, vocab = f->shape.vocab;
        float *want = scored(f, "cpu-c", dtypes[d], &rows),
              *got = scored(f, backend, dtypes[d], &rows);
        for (uint32_t r = 0; r < rows; r++) {
            const float *a = want + (size_t)r * vocab, *b = got + (size_t)r * vocab;
            float low = a[0], high = a[0];
            for (uint32_t i = 0; i < vocab; i++) {
                low = fminf(low, a[i]);
                high = fmaxf(high, a[i]);
            }
            float allowed = dtypes[d] == DTYPE_F32 ? 1e-4f : 0.04f * (high - low);
            for (uint32_t i = 0; i < vocab; i++)
                if (!(fabsf(a[i] - b[i]) <= allowed))
                    fail_msg("row %u, token %u: %g, wanted %g within %g", r, i, (double)b[i],
                             (double)a[i], (double)allowed);
        }
        mem_free(want), mem_free(got);
    }
}

/* --- in flight --- */

static void on_event(void *ctx, const struct engine_event *event)
{
    const struct fixture *f = ctx;
    assert_ok(mailbox_send(f->events, event));
}

static void start(struct fixture *f, struct engine *engine)
{
    assert_ok(engine_start(engine, on_event, f));
    f->runs = engine;
}

static struct engine_event next_done(struct fixture *f)
{
    struct engine_event event;
    do
        assert_ok(mailbox_wait(f->events, &event, WAIT_NS));
    while (event.kind != ENGINE_STEP_DONE);
    return event;
}

/* Step n of a life: prompts of some, then decodes of all that have one; the batch grows and shrinks. */
static void plan(const struct fixture *f, struct step *s, uint32_t n)
{
    step_clear(s);
    s->id = n + 1;
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        uint32_t first = i / 2; /* the step of its prompt */
        if (n == first) add(f, s, i, 0, f->prompt_count[i]);
        if (n > first && n < STEPS - i) add(f, s, i, f->prompt_count[i] + n - first - 1, 1);
    }
}

static void remember(const struct step *s, struct token_info *token)
{
    for (uint32_t i = 0; i < s->sequences_count; i++)
        token[s->sequence[i].slot] = s->result[i];
}

/* Steps alone tell of their layers, so that none of them is a recorded one. One engine has both: another one
 * may find other products the fastest, whose last bits differ. */
static void steps_in_flight_give_what_steps_alone_give(void **state)
{
    struct fixture *f = *state;
    struct token_info alone[STEPS][SEQUENCES] = {0}, together[STEPS][SEQUENCES] = {0};
    struct engine *engine = open_on(f, backend, DTYPE_BF16, false);
    struct step *step[STEPS];
    start(f, engine);
    for (uint32_t n = 0; n < STEPS; n++) {
        step[n] = new_step(engine);
        plan(f, step[n], n);
        step[n]->report_layers = true;
        assert_ok(engine_submit(engine, step[n]));
        assert_ok(next_done(f).status);
        remember(step[n], alone[n]);
    }
    for (uint32_t n = 0; n < STEPS; n++) { /* all at once: none knows the token of the one before */
        plan(f, step[n], n);
        assert_ok(engine_submit(engine, step[n]));
    }
    for (uint32_t n = 0; n < STEPS; n++) {
        struct engine_event done = next_done(f);
        assert_int_equal(done.step_id, n + 1);
        assert_ok(done.status);
        assert_true(done.began_ns <= done.ended_ns);
        remember(step[n], together[n]);
    }
    stop(f);
    engine_close(engine);
    for (uint32_t n = 0; n < STEPS; n++) {
        for (uint32_t i = 0; i < step[n]->sequences_count; i++) {
            uint32_t slot = step[n]->sequence[i].slot;
            assert_int_equal(together[n][slot].token, alone[n][slot].token);
            assert_memory_equal(&together[n][slot].logprob, &alone[n][slot].logprob, sizeof(float));
        }
        step_free(step[n]);
    }
}

/* The same tokens whatever the chunks and whoever else is in the step. */
static void deterministic_steps_do_not_depend_on_company_or_chunks(void **state)
{
    struct fixture *f = *state;
    struct token_info wanted[SEQUENCES] = {0}, got[SEQUENCES] = {0};
    struct engine *engine = open_on(f, backend, DTYPE_BF16, true);
    struct step *s = new_step(engine);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        add(f, s, i, 0, f->prompt_count[i]);
    assert_ok(engine_run(engine, s));
    remember(s, wanted);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        for (uint32_t at = 0, rows; at < f->prompt_count[i]; at += rows) {
            rows = 1 + rng_below(rng_draw(5, i, at).word[0], 9);
            if (rows > f->prompt_count[i] - at) rows = f->prompt_count[i] - at;
            step_clear(s);
            add(f, s, i, at, rows);
            assert_ok(engine_run(engine, s));
            if (at + rows == f->prompt_count[i]) remember(s, got);
        }
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        assert_int_equal(got[i].token, wanted[i].token);
        assert_memory_equal(&got[i].logprob, &wanted[i].logprob, sizeof(float));
    }
    step_free(s);
    engine_close(engine);
}

static void a_cancelled_step_ends_and_the_next_is_right(void **state)
{
    struct fixture *f = *state;
    struct engine *engine = open_on(f, backend, DTYPE_BF16, false);
    struct step *s[2] = {new_step(engine), new_step(engine)};
    start(f, engine);
    for (uint32_t i = 0; i < 2; i++) {
        step_clear(s[i]);
        s[i]->id = i + 1;
        s[i]->report_layers = true;
        add(f, s[i], 0, 0, f->prompt_count[0]);
        s[i]->cancel = i == 0;
        assert_ok(engine_submit(engine, s[i]));
    }
    assert_int_equal(next_done(f).status, ERR_CANCELLED);
    assert_ok(next_done(f).status);
    stop(f);
    uint32_t token = s[1]->result[0].token;
    engine_close(engine);
    engine = open_on(f, backend, DTYPE_BF16, false);
    step_clear(s[0]);
    add(f, s[0], 0, 0, f->prompt_count[0]);
    assert_ok(engine_run(engine, s[0]));
    assert_int_equal(s[0]->result[0].token, token);
    step_free(s[0]), step_free(s[1]);
    engine_close(engine);
}

static void layers_are_told_in_order_before_the_end(void **state)
{
    struct fixture *f = *state;
    struct engine *engine = open_on(f, backend, DTYPE_BF16, false);
    struct step *s = new_step(engine);
    struct engine_event event;
    step_clear(s);
    s->id = 7;
    s->report_layers = true;
    add(f, s, 0, 0, f->prompt_count[0]);
    start(f, engine);
    assert_ok(engine_submit(engine, s));
    for (uint32_t layer = 0; layer < f->shape.layers; layer++) {
        assert_ok(mailbox_wait(f->events, &event, WAIT_NS));
        assert_int_equal(event.kind, ENGINE_LAYER);
        assert_int_equal(event.layer, layer);
    }
    assert_ok(next_done(f).status);
    stop(f);
    step_free(s);
    engine_close(engine);
}

/* The first prompt as a step that tells of its layers. */
static struct step *told_step(const struct fixture *f, const struct engine *engine)
{
    struct step *s = new_step(engine);
    step_clear(s);
    s->report_layers = true;
    add(f, s, 0, 0, f->prompt_count[0]);
    return s;
}

/* What a link does: it reads a layer's KV as soon as it is told of it, on a stream of its own. */
static void a_layers_kv_is_there_when_it_is_told(void **state)
{
    struct fixture *f = *state;
    struct engine *engine = open_on(f, backend, DTYPE_BF16, false);
    if (engine_kv_host(engine)) {
        engine_close(engine);
        skip(); /* its pool is the host's */
    }
    const struct kv_geometry g = {f->shape.layers, f->shape.kv_heads, f->shape.head_dim,
                                  BLOCK_TOKENS,    KV_LAYOUT_CPU,     DTYPE_BF16};
    const uint32_t blocks = blocks_for_tokens(f->prompt_count[0]);
    size_t bytes = blocks * kv_layer_bytes(&g), logits = PROMPT_MAX * (size_t)f->shape.vocab;
    unsigned char *wanted = mem_new(f->shape.layers * bytes), *got = mem_new(bytes);
    float *scores = mem_array(logits, sizeof *scores);
    struct step *s = told_step(f, engine);
    assert_ok(engine_run_scored(engine, s, scores)); /* returns when the device has done it all */
    for (uint32_t layer = 0; layer < f->shape.layers; layer++)
        assert_ok(
            engine_kv_read(engine, layer, s->table, blocks, KV_LAYOUT_CPU, wanted + layer * bytes));
    step_free(s);
    engine_close(engine);

    engine = open_on(f, backend, DTYPE_BF16, false);
    s = told_step(f, engine);
    start(f, engine);
    assert_ok(engine_submit(engine, s));
    for (uint32_t layer = 0; layer < f->shape.layers; layer++) {
        struct engine_event event;
        assert_ok(mailbox_wait(f->events, &event, WAIT_NS));
        assert_int_equal(event.layer, layer);
        assert_ok(engine_kv_read(engine, layer, s->table, blocks, KV_LAYOUT_CPU, got));
        assert_memory_equal(got, wanted + layer * bytes, bytes);
    }
    assert_ok(next_done(f).status);
    stop(f);
    step_free(s);
    engine_close(engine);
    mem_free(wanted), mem_free(got), mem_free(scores);
}

/* Without a size the pool is what the device has left, or one context; what cannot be is said in sums. */
static void the_pool_is_what_is_left(void **state)
{
    struct fixture *f = *state;
    struct engine *engine;
    struct engine_options o = {.model_dir = f->dir,
                               .cache_dir = "none",
                               .backend = backend,
                               .threads = 1,
                               .kv_share = 0.25,
                               .limits = {SEQUENCES, ROWS_MAX, POOL},
                               .slots_count = SEQUENCES};
    assert_ok(engine_open(&engine, &o));
    assert_true(engine_facts(engine)->blocks_count >= f->shape.context / BLOCK_TOKENS);
    engine_close(engine);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

/* --- forks --- */

enum { WHOLE, FORK, SIBLING, FORK_TOKENS = 6 };

/* Rows of the prompt or the last token, over blocks [4 slot, 4 slot + 4), but for those shared with SIBLING. */
static void add_fork(const struct fixture *f, struct step *s, uint32_t slot, uint32_t position,
                     uint32_t rows, uint32_t shared, const struct job *setup)
{
    struct step_sequence *q = step_add(s, slot, position, rows);
    bool drawn = position >= setup->prompt_count;
    q->sample = true;
    q->setup = drawn ? NULL : setup;
    for (uint32_t r = 0; r < rows; r++)
        s->tokens[s->rows_count++] = drawn ? STEP_TOKEN_LAST : f->prompt[0][position + r];
    for (uint32_t b = 0; b < BLOCKS_EACH; b++)
        s->table[s->table_count++] = (b < shared ? SIBLING : slot) * BLOCKS_EACH + b;
}

/* One that computes its prompt, and one that gets it of a sibling, which draws on meanwhile: the whole
 * blocks are the sibling's, the last one is a copy, of which the last token is computed again. */
static void a_fork_draws_what_its_whole_prompt_gives(void **state)
{
    const struct fixture *f = *state;
    struct engine *engine = open_on(f, backend, DTYPE_BF16, true);
    struct step *s = new_step(engine);
    for (uint32_t count = 15; count <= 19; count++) {
        uint32_t shared = (count - 1) / BLOCK_TOKENS;
        struct job mine = f->job[1], theirs = f->job[1];
        mine.prompt = theirs.prompt = f->prompt[0];
        mine.prompt_count = theirs.prompt_count = count;
        theirs.key.choice = 3;
        step_clear(s);
        add_fork(f, s, SIBLING, 0, count, 0, &theirs);
        assert_ok(engine_run(engine, s));
        step_clear(s);
        s->copies_count = (count - 1) % BLOCK_TOKENS > 0;
        s->copy[0] =
            (struct step_copy){SIBLING * BLOCKS_EACH + shared, FORK * BLOCKS_EACH + shared};
        add_fork(f, s, FORK, count - 1, 1, shared, &mine);
        add_fork(f, s, WHOLE, 0, count, 0, &mine);
        for (uint32_t i = 0; i < FORK_TOKENS; i++) {
            assert_ok(engine_run(engine, s));
            assert_int_equal(s->result[0].token, s->result[1].token);
            assert_memory_equal(&s->result[0].logprob, &s->result[1].logprob, sizeof(float));
            step_clear(s);
            add_fork(f, s, FORK, count + i, 1, shared, &mine);
            add_fork(f, s, WHOLE, count + i, 1, 0, &mine);
            add_fork(f, s, SIBLING, count + i, 1, 0, &theirs);
        }
    }
    step_free(s);
    engine_close(engine);
}

int main(int argc, char **argv)
{
    if (argc > 1) backend = argv[1];
    const struct CMUnitTest tests[] = {
        TEST(logits_are_those_of_the_cpu),
        TEST(steps_in_flight_give_what_steps_alone_give),
        TEST(deterministic_steps_do_not_depend_on_company_or_chunks),
        TEST(a_fork_draws_what_its_whole_prompt_gives),
        TEST(a_cancelled_step_ends_and_the_next_is_right),
        TEST(layers_are_told_in_order_before_the_end),
        TEST(a_layers_kv_is_there_when_it_is_told),
        TEST(the_pool_is_what_is_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
