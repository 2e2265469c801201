/* The engine as its owner sees it: opening, its thread, slots and what happens when things fail. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mailbox.h"
#include "common/mem.h"
#include "engine/engine.h"
#include "tests/unit/testing.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tiny_model.h"

#define WAIT_NS (20ull * 1000000000)

struct fixture {
    char dir[SCRATCH_BYTES], cache[SCRATCH_BYTES + 16];
    struct tiny_shape shape;
    struct engine_options options;
    struct engine *engine;
    struct step *step;
    struct mailbox *events;
    struct step *cancel_at_layer_0; /* the engine's thread cancels it then */
    uint64_t layers;
};

static int setup(void **state)
{
    struct fixture *f = mem_new(sizeof *f);
    *state = f;
    f->shape = (struct tiny_shape)TINY_SHAPE;
    scratch_make(f->dir);
    tiny_model_write(f->dir, &f->shape);
    snprintf(f->cache, sizeof f->cache, "%s/cache", f->dir);
    f->options = (struct engine_options){.model_dir = f->dir,
                                         .cache_dir = f->cache,
                                         .backend = "cpu-c",
                                         .threads = 1,
                                         .blocks_count = 32,
                                         .limits = {4, 32, 64},
                                         .slots_count = 4};
    assert_ok(engine_open(&f->engine, &f->options));
    assert_ok(step_new(&f->step, &f->options.limits));
    assert_ok(mailbox_new(&f->events, sizeof(struct engine_event), 256));
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    mailbox_free(f->events);
    step_free(f->step);
    engine_close(f->engine);
    scratch_remove(f->dir);
    mem_free(f);
    return 0;
}

static const uint32_t prompt[] = {1, 7, 3, 9, 12};
enum { PROMPT = sizeof prompt / sizeof prompt[0] };

static struct job plain_job(void)
{
    return (struct job){.prompt = prompt,
                        .prompt_count = PROMPT,
                        .tokens_max = 10,
                        .sampling = {.top_p = 1, .repetition_penalty = 1, .seed = 3}};
}

/* Adds a sequence of its own eight blocks by slot. */
static void add_sequence(struct step *s, const struct job *setup, uint32_t slot,
                         const uint32_t *tokens, uint32_t position, uint32_t rows)
{
    struct step_sequence *q = step_add(s, slot, position, rows);
    q->sample = true;
    q->setup = setup;
    memcpy(s->tokens + s->rows_count, tokens, rows * sizeof *tokens);
    s->rows_count += rows;
    for (uint32_t i = 0; i < blocks_for_tokens(position + rows); i++)
        s->table[s->table_count++] = slot * 8 + i;
}

static void clear(struct step *s)
{
    s->id++;
    step_clear(s);
}

/* Prompt, then `count` tokens from its own last one; the tokens into out. */
static void generate(struct fixture *f, const struct job *job, uint32_t slot, uint32_t count,
                     uint32_t *out)
{
    const uint32_t last = STEP_TOKEN_LAST;
    clear(f->step);
    add_sequence(f->step, job, slot, prompt, 0, PROMPT);
    for (uint32_t i = 0; i < count; i++) {
        assert_ok(engine_run(f->engine, f->step));
        out[i] = f->step->result[0].token;
        clear(f->step);
        add_sequence(f->step, NULL, slot, &last, PROMPT + i, 1);
    }
}

static void facts_say_what_was_opened(void **state)
{
    struct fixture *f = *state;
    const struct engine_facts *facts = engine_facts(f->engine);
    assert_int_equal(facts->vocab_count, 40);
    assert_int_equal(facts->context_max, 128);
    assert_int_equal(facts->blocks_count, 32);
    assert_int_equal(facts->eos_count, 1);
    assert_int_equal(facts->eos[0], 2);
    assert_false(id128_is_none(facts->model_fingerprint));
    assert_string_equal(facts->device, "cpu-c x1");
    assert_non_null(strstr(f->dir, facts->model_name));
    assert_int_equal(facts->geometry.kv_heads, 2);
    assert_int_equal(engine_kv(f->engine)->blocks_count, 32);
}

static void equal_engines_say_so_and_others_do_not(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *backend;
        enum dtype dtype;
        uint32_t context_max;
        bool equal;
    } row[] = {
        {"cpu", DTYPE_NONE, 0, true}, {"cpu", DTYPE_F32, 100, true}, {"cpu", DTYPE_BF16, 0, false}};
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct engine *other;
        struct engine_options o = f->options;
        o.backend = row[i].backend;
        o.dtype = row[i].dtype;
        o.context_max = row[i].context_max;
        assert_ok(engine_open(&other, &o));
        const struct engine_facts *a = engine_facts(f->engine), *b = engine_facts(other);
        assert_int_equal(a->numerics_id == b->numerics_id, row[i].equal);
        assert_true(id128_equal(a->model_fingerprint, b->model_fingerprint));
        if (row[i].context_max) assert_int_equal(b->context_max, row[i].context_max);
        engine_close(other);
    }
}

static void bad_options_are_errors(void **state)
{
    struct fixture *f = *state;
    struct engine_options row[7];
    const char *said[7] = {"/nowhere/config.json", "cpu-z80",  "fp16",
                           "one block has",        "room for", "room for",
                           "no model directory"};
    const enum err wanted[7] = {ERR_NOT_FOUND, ERR_NOT_FOUND, ERR_UNSUPPORTED, ERR_INVALID,
                                ERR_INVALID,   ERR_INVALID,   ERR_INVALID};
    for (int i = 0; i < 7; i++)
        row[i] = f->options;
    row[0].model_dir = "/nowhere";
    row[1].backend = "cpu-z80";
    row[2].dtype = DTYPE_F16;
    row[3].blocks_count = 0;
    row[3].kv_bytes = 100;
    row[4].slots_count = 0;
    row[5].limits.rows_max = 0;
    row[6].model_dir = NULL;
    for (int i = 0; i < 7; i++) {
        struct engine *none;
        enum err e = engine_open(&none, &row[i]);
        if (e != wanted[i] || !strstr(err_text(), said[i]))
            fail_msg("case %d: %s \"%s\"", i, err_name(e), err_text());
        assert_null(none);
    }
}

/* A note would be left by who has read them. */
static void what_is_wrong_with_tensors_is_said_before_they_are_read(void **state)
{
    struct tiny_tensor list[TINY_TENSORS_MAX];
    struct fixture *f = *state;
    struct engine_options o = f->options;
    struct engine *none;
    char cache[SCRATCH_BYTES];
    uint32_t count = tiny_tensors(&f->shape, list);
    scratch_make(cache);
    o.cache_dir = cache;
    tiny_tensors_write(f->dir, "model.safetensors", list, count - 1, 1);
    assert_int_equal(engine_open(&none, &o), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "is missing"));
    assert_int_equal(rmdir(cache), 0);
}

static void a_pool_without_size_holds_a_whole_context(void **state)
{
    struct fixture *f = *state;
    struct engine *other;
    struct engine_options o = f->options;
    o.blocks_count = 0;
    o.kv_bytes = 10 * kv_block_bytes(&engine_facts(f->engine)->geometry) + 1;
    assert_ok(engine_open(&other, &o));
    assert_int_equal(engine_facts(other)->blocks_count, 10);
    engine_close(other);
    o.kv_bytes = 0;
    assert_ok(engine_open(&other, &o));
    assert_true(engine_facts(other)->blocks_count >= 128 / BLOCK_TOKENS);
    engine_close(other);
}

/* Slots. */

static void an_attempt_goes_on_where_the_last_one_ended(void **state)
{
    struct fixture *f = *state;
    struct logit_bias bias = {5, 1.5f};
    uint32_t whole[10], rest;
    struct job job = plain_job();
    job.sampling.temperature = 1.5f;
    job.sampling.presence_penalty = 0.5f;
    job.sampling.frequency_penalty = 0.3f;
    job.sampling.repetition_penalty = 1.2f;
    job.sampling.bias = &bias;
    job.sampling.bias_count = 1;
    generate(f, &job, 0, 10, whole);
    for (uint32_t known = 1; known < 10; known++) {
        uint32_t tokens[PROMPT + 10];
        memcpy(tokens, prompt, sizeof prompt);
        memcpy(tokens + PROMPT, whole, known * sizeof *whole);
        job.forwarded = whole;
        job.forwarded_count = known;
        clear(f->step);
        add_sequence(f->step, &job, 1, tokens, 0, PROMPT + known);
        assert_ok(engine_run(f->engine, f->step));
        rest = f->step->result[0].token;
        if (rest != whole[known]) fail_msg("token %u is %u, was %u", known, rest, whole[known]);
    }
}

static void choices_of_one_request_differ_and_slots_do_not_mix(void **state)
{
    struct fixture *f = *state;
    const uint32_t last = STEP_TOKEN_LAST;
    uint32_t alone[3][8], together[3][8];
    struct job job[3];
    for (uint32_t c = 0; c < 3; c++) {
        job[c] = plain_job();
        job[c].key.choice = c;
        job[c].sampling.temperature = 2;
        job[c].sampling.frequency_penalty = c == 1 ? 2.0f : 0;
        generate(f, &job[c], c, 8, alone[c]);
    }
    assert_true(memcmp(alone[0], alone[1], sizeof alone[0]) != 0);
    assert_true(memcmp(alone[0], alone[2], sizeof alone[0]) != 0);
    clear(f->step);
    for (uint32_t c = 0; c < 3; c++)
        add_sequence(f->step, &job[c], 2 - c, prompt, 0, PROMPT);
    for (uint32_t i = 0; i < 8; i++) {
        assert_ok(engine_run(f->engine, f->step));
        for (uint32_t c = 0; c < 3; c++)
            together[c][i] = f->step->result[c].token;
        clear(f->step);
        for (uint32_t c = 0; c < 3; c++)
            add_sequence(f->step, NULL, 2 - c, &last, PROMPT + i, 1);
    }
    assert_memory_equal(alone, together, sizeof alone);
}

static void only_sampled_sequences_have_logits(void **state)
{
    struct fixture *f = *state;
    struct job job = plain_job();
    clear(f->step);
    add_sequence(f->step, &job, 0, prompt, 0, PROMPT);
    add_sequence(f->step, &job, 1, prompt, 0, PROMPT);
    f->step->sequence[0].sample = false;
    assert_ok(engine_run(f->engine, f->step));
    assert_null(engine_logits(f->engine, 0));
    assert_non_null(engine_logits(f->engine, 1));
    clear(f->step); /* a step of nothing is nothing */
    assert_ok(engine_run(f->engine, f->step));
}

static void a_token_costs_no_allocation(void **state)
{
    struct fixture *f = *state;
    uint32_t out[4];
    struct job job = plain_job();
    job.sampling.temperature = 1;
    job.sampling.top_p = 0.9f;
    job.sampling.presence_penalty = 1;
    uint64_t before = mem_count();
    generate(f, &job, 0, 4, out);
    assert_int_equal(mem_count(), before);
}

/* The thread. */

static void on_event(void *ctx, const struct engine_event *event)
{
    struct fixture *f = ctx;
    if (event->kind == ENGINE_LAYER) f->layers++;
    if (event->kind == ENGINE_LAYER && f->cancel_at_layer_0) f->cancel_at_layer_0->cancel = true;
    mailbox_send(f->events, event);
}

static struct engine_event next_event(struct fixture *f)
{
    struct engine_event event;
    assert_ok(mailbox_wait(f->events, &event, WAIT_NS));
    return event;
}

static void steps_are_answered_in_order_layer_by_layer(void **state)
{
    struct fixture *f = *state;
    struct job job = plain_job();
    uint32_t expected[2];
    generate(f, &job, 0, 2, expected);
    struct step *second;
    assert_ok(step_new(&second, &f->options.limits));
    clear(f->step);
    f->step->id = 10;
    f->step->report_layers = true;
    add_sequence(f->step, &job, 0, prompt, 0, PROMPT);
    second->id = 11;
    add_sequence(second, NULL, 0, &(uint32_t){STEP_TOKEN_LAST}, PROMPT, 1);

    uint64_t progress = engine_progress(f->engine);
    assert_ok(engine_start(f->engine, on_event, f));
    assert_ok(engine_submit(f->engine, f->step));
    assert_ok(engine_submit(f->engine, second)); /* before the first has sampled its token */
    for (uint32_t layer = 0; layer < f->shape.layers; layer++) {
        struct engine_event event = next_event(f);
        assert_int_equal(event.kind, ENGINE_LAYER);
        assert_int_equal(event.step_id, 10);
        assert_int_equal(event.layer, layer);
    }
    for (uint64_t id = 10; id <= 11; id++) {
        struct engine_event event = next_event(f);
        assert_int_equal(event.kind, ENGINE_STEP_DONE);
        assert_int_equal(event.step_id, id);
        assert_int_equal(event.status, OK);
        assert_true(event.began_ns <= event.ended_ns);
    }
    engine_stop(f->engine);
    assert_int_equal(f->step->result[0].token, expected[0]);
    assert_int_equal(second->result[0].token, expected[1]);
    assert_int_equal(engine_progress(f->engine) - progress, 2 * (f->shape.layers + 1));
    step_free(second);
}

static void a_cancelled_step_ends_at_its_next_layer(void **state)
{
    struct fixture *f = *state;
    struct job job = plain_job();
    clear(f->step);
    f->step->report_layers = true;
    add_sequence(f->step, &job, 0, prompt, 0, PROMPT);
    f->cancel_at_layer_0 = f->step;
    assert_ok(engine_start(f->engine, on_event, f));
    assert_ok(engine_submit(f->engine, f->step));
    assert_int_equal(next_event(f).kind, ENGINE_LAYER);
    assert_int_equal(next_event(f).status, ERR_CANCELLED);
    assert_int_equal(f->layers, 1);

    f->cancel_at_layer_0 = NULL; /* the next one runs as if nothing had been */
    clear(f->step);
    f->step->report_layers = false;
    add_sequence(f->step, &job, 0, prompt, 0, PROMPT);
    assert_ok(engine_submit(f->engine, f->step));
    assert_int_equal(next_event(f).status, OK);
    f->step->cancel = true; /* set before it starts: it does not */
    assert_ok(engine_submit(f->engine, f->step));
    assert_int_equal(next_event(f).status, ERR_CANCELLED);
    engine_stop(f->engine);
}

static void stopping_answers_every_step_that_was_submitted(void **state)
{
    enum { STEPS = 64 };
    struct fixture *f = *state;
    struct job job = plain_job();
    struct step *step[STEPS];
    uint32_t submitted = 0, answered = 0;
    assert_ok(engine_start(f->engine, on_event, f));
    for (uint32_t i = 0; i < STEPS; i++) {
        assert_ok(step_new(&step[i], &f->options.limits));
        step[i]->id = i + 1;
        add_sequence(step[i], &job, 0, prompt, 0, PROMPT);
        submitted += engine_submit(f->engine, step[i]) == OK;
    }
    engine_stop(f->engine);
    struct engine_event event;
    while (mailbox_receive(f->events, &event) == OK) {
        assert_int_equal(event.step_id, ++answered);
        assert_true(event.status == OK || event.status == ERR_CANCELLED);
    }
    assert_int_equal(answered, submitted);
    for (uint32_t i = 0; i < STEPS; i++)
        step_free(step[i]);
    engine_stop(f->engine); /* a second time does nothing */
}

/* Failing allocations. */

/* Every allocation of opening and of a first step fails once; a leak is the sanitizer's to find. */
static void each_allocation_may_fail(void **state)
{
    struct fixture *f = *state;
    struct job job = plain_job();
    const char *cache[] = {f->cache, "none"};
    log_setup(LOG_OFF, NULL);
    for (int c = 0; c < 2; c++) {
        struct engine *g = NULL;
        struct step *step = NULL;
        enum err e = ERR_MEMORY;
        f->options.cache_dir = cache[c];
        for (uint64_t n = 1; e != OK; n++) {
            assert_true(n < 5000);
            mem_fail_at(n);
            if ((e = engine_open(&g, &f->options)) == OK &&
                (e = step_new(&step, &f->options.limits)) == OK) {
                add_sequence(step, &job, 0, prompt, 0, PROMPT);
                e = engine_run(g, step);
            }
            mem_fail_at(0);
            if (e != OK && e != ERR_MEMORY)
                fail_msg("allocation %llu: %s \"%s\"", (unsigned long long)n, err_name(e),
                         err_text());
            step_free(step);
            engine_close(g);
            step = NULL;
        }
    }
    log_setup(LOG_INFO, NULL);
}

int main(void)
{
#define WITH_ENGINE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_ENGINE(facts_say_what_was_opened),
        WITH_ENGINE(equal_engines_say_so_and_others_do_not),
        WITH_ENGINE(bad_options_are_errors),
        WITH_ENGINE(what_is_wrong_with_tensors_is_said_before_they_are_read),
        WITH_ENGINE(a_pool_without_size_holds_a_whole_context),
        WITH_ENGINE(an_attempt_goes_on_where_the_last_one_ended),
        WITH_ENGINE(choices_of_one_request_differ_and_slots_do_not_mix),
        WITH_ENGINE(only_sampled_sequences_have_logits),
        WITH_ENGINE(a_token_costs_no_allocation),
        WITH_ENGINE(steps_are_answered_in_order_layer_by_layer),
        WITH_ENGINE(a_cancelled_step_ends_at_its_next_layer),
        WITH_ENGINE(stopping_answers_every_step_that_was_submitted),
        WITH_ENGINE(each_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
