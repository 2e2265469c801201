/* Sampling on the device: the same tokens, log-probabilities and counts as the CPU's sampler and slots
 * give for the same logits, bit for bit, with every option, in any order of threads. */
#include "tests/unit/cuda_testing.h"

#include "engine/slot.h"

enum {
    SLOTS = 8,
    OUTPUTS = 7,     /* of which one less is live */
    PROMPT_MAX = 50, /* tokens */
    VOCAB_BIG = 151936,
};
#define ONE_OF(r, list) (list)[random_below(r, COUNT(list))]

/* The same slots twice, and what one draw takes. */
struct rig {
    uint32_t vocab;
    struct slots slots;
    struct sampler sampler;
    struct cuda_slots device;
    struct cuda_batch batch;
    uint32_t slot_of[OUTPUTS];
    float *logits;        /* [OUTPUTS][vocab] */
    float *device_logits; /* the same */
    struct token_info *result;
    void *scratch;
};

static void rig_open(struct rig *x, uint32_t vocab)
{
    static const uint32_t output_row[OUTPUTS] = {1, 2, 4, 5, 6, 8, 9};
    uint32_t slot_of_row[10] = {0};
    *x = (struct rig){.vocab = vocab};
    for (uint32_t i = 0; i < OUTPUTS; i++)
        slot_of_row[output_row[i]] = x->slot_of[i] = (i * 5 + 3) % SLOTS;
    struct rows_of_batch b = {.rows = 10,
                              .live = 10,
                              .slot = slot_of_row,
                              .output_row = output_row,
                              .outputs = OUTPUTS,
                              .outputs_live = OUTPUTS - 1};
    x->batch = device_batch(&b);
    assert_ok(slots_init(&x->slots, SLOTS, vocab));
    assert_ok(sampler_init(&x->sampler, vocab));
    x->logits = mem_array((size_t)OUTPUTS * vocab, sizeof *x->logits);
    assert_non_null(x->logits);
    x->device_logits = device_poison((size_t)OUTPUTS * vocab * sizeof *x->logits);
    x->result = device_poison(OUTPUTS * sizeof *x->result);
    x->scratch = device_poison(cuda_draw_scratch(vocab, OUTPUTS));
    x->device = (struct cuda_slots){
        .sampling = device_poison(SLOTS * sizeof *x->device.sampling),
        .index = device_poison(SLOTS * sizeof(uint32_t)),
        .last = device_poison(SLOTS * sizeof(uint32_t)),
        .counts = device_poison((size_t)SLOTS * vocab * sizeof(uint32_t)),
        .bias = device_poison(SLOTS * JOB_BIAS_MAX * sizeof *x->device.bias),
        .slots_count = SLOTS,
        .vocab_count = vocab,
    };
}

static void rig_close(struct rig *x)
{
    device_batch_free(&x->batch);
    device_free(x->device_logits);
    device_free(x->result);
    device_free(x->scratch);
    device_free(x->device.sampling);
    device_free(x->device.index);
    device_free(x->device.last);
    device_free(x->device.counts);
    device_free(x->device.bias);
    mem_free(x->logits);
    sampler_fini(&x->sampler);
    slots_fini(&x->slots);
}

static void to_device(void *device, const void *host, size_t bytes)
{
    assert_cuda(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
    assert_cuda(cudaDeviceSynchronize()); /* `stream` does not wait for it */
}

/* --- jobs and logits --- */

static struct sampling random_sampling(struct random *r, uint32_t vocab)
{
    static const float temperature[] = {0, 1, 1, 0.3f, 5, 1e-40f, 100},
                       top_p[] = {1, 1, 0.9f, 0.5f, 0, 0.9999999f},
                       min_p[] = {0, 0, 0.01f, 0.3f, 1}, repetition[] = {1, 1, 1.3f, 0.7f, 100},
                       added[] = {0, 0, 0.5f, -2, 2};
    const uint32_t top_k[] = {0, 0, 1, 2, 5, 50, vocab - 1, vocab, vocab + 1, vocab / 2};
    const uint32_t tops[] = {0, 1, 5, JOB_TOPS_MAX};
    return (struct sampling){
        .temperature = ONE_OF(r, temperature),
        .top_k = ONE_OF(r, top_k),
        .top_p = ONE_OF(r, top_p),
        .min_p = ONE_OF(r, min_p),
        .repetition_penalty = ONE_OF(r, repetition),
        .presence_penalty = ONE_OF(r, added),
        .frequency_penalty = ONE_OF(r, added),
        .seed = (uint64_t)random_word(r) << 32 | random_word(r),
        .logprobs = random_below(r, 2),
        .tops_count = ONE_OF(r, tops),
    };
}

/* A job for one slot on both sides. Tokens come twice in the prompt and in the biases. */
static void make(struct rig *x, struct random *r, uint32_t slot, struct sampling how)
{
    uint32_t prompt[PROMPT_MAX], forwarded[PROMPT_MAX];
    struct logit_bias bias[JOB_BIAS_MAX];
    struct job job = {.key.choice = random_below(r, JOB_CHOICES_MAX),
                      .prompt = prompt,
                      .prompt_count = 1 + random_below(r, PROMPT_MAX),
                      .forwarded = forwarded,
                      .forwarded_count = random_below(r, 2) ? random_below(r, PROMPT_MAX) : 0,
                      .sampling = how};
    uint32_t few = x->vocab < 60 ? x->vocab : 60;
    for (uint32_t i = 0; i < PROMPT_MAX; i++) {
        prompt[i] = random_below(r, x->vocab);
        forwarded[i] = random_below(r, few);
    }
    job.sampling.bias = bias;
    job.sampling.bias_count = random_below(r, 3) ? 0 : random_below(r, 4) ? 30 : JOB_BIAS_MAX;
    for (uint32_t i = 0; i < job.sampling.bias_count; i++)
        bias[i] = (struct logit_bias){random_below(r, i % 2 ? few : x->vocab), 10 * random_unit(r)};
    slot_make(&x->slots, slot, &job);

    const struct sampling *p = &job.sampling;
    struct cuda_sampling same = {.temperature = p->temperature,
                                 .top_p = p->top_p,
                                 .min_p = p->min_p,
                                 .repetition_penalty = p->repetition_penalty,
                                 .presence_penalty = p->presence_penalty,
                                 .frequency_penalty = p->frequency_penalty,
                                 .top_k = p->top_k,
                                 .tops_count = p->tops_count,
                                 .bias_count = p->bias_count,
                                 .choice = job.key.choice,
                                 .seed = p->seed,
                                 .logprobs = p->logprobs,
                                 .penalties = sampling_needs_counts(p)};
    to_device(x->device.sampling + slot, &same, sizeof same);
    to_device(x->device.index + slot, &x->slots.slot[slot].index, sizeof(uint32_t));
    to_device(x->device.last + slot, &x->slots.slot[slot].last, sizeof(uint32_t));
    to_device(x->device.bias + (size_t)slot * JOB_BIAS_MAX, bias, sizeof bias);
    if (!same.penalties) return;
    const uint32_t *device_prompt = device_words(prompt, PROMPT_MAX);
    const uint32_t *device_forwarded = device_words(forwarded, PROMPT_MAX);
    assert_cuda(cuda_slot_count(stream, &x->device, slot, device_prompt, job.prompt_count,
                                device_forwarded, job.forwarded_count));
    device_free(device_prompt);
    device_free(device_forwarded);
}

static void random_logits(struct random *r, float *logits, uint32_t vocab)
{
    static const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, -INFINITY, -0.0f, 0, 1e-40f, 3e38f};
    static const float spread[] = {0, 1e-6f, 1, 8, 8, 30, 1e5f, 1e38f};
    uint32_t kind = random_below(r, 8);
    float wide = ONE_OF(r, spread), middle = random_below(r, 3) ? 0 : 20 * random_unit(r);
    float step = random_below(r, 2) ? 0.125f : 0;
    for (uint32_t i = 0; i < vocab; i++) {
        float v = wide * (random_unit(r) + random_unit(r) + random_unit(r));
        if (step > 0 && wide < 1e6f) v = roundf(v / step) * step; /* many are equal */
        logits[i] = kind == 0 ? random_bits(r) : middle + v;
        if (kind == 1 && random_below(r, 4) == 0) logits[i] = ONE_OF(r, odd);
    }
    if (kind == 2) logits[random_below(r, vocab)] = middle + 200; /* all else weighs nothing */
    if (kind == 3)
        for (uint32_t i = 0; i < vocab; i++)
            logits[i] = -INFINITY;
    if (kind == 3 || kind == 4)
        for (uint32_t i = 0; i < 3; i++)
            logits[random_below(r, vocab)] = ONE_OF(r, odd);
}

/* --- both sides --- */

static void compare_info(const struct token_info *got, const struct token_info *want,
                         const struct sampling *p, uint32_t row)
{
    if (memcmp(got, want, sizeof *got) == 0) return;
    fail_msg(
        "row %u: token %u (%a), %u tops, wanted token %u (%a), %u tops; temperature %g, top_k %u, "
        "top_p %g, min_p %g, log-probabilities %d",
        row, got->token, (double)got->logprob, got->tops_count, want->token, (double)want->logprob,
        want->tops_count, (double)p->temperature, p->top_k, (double)p->top_p, (double)p->min_p,
        p->logprobs);
}

/* One step on both sides; the last output is not live. */
static void step(struct rig *x)
{
    unsigned char poison[sizeof(struct token_info)];
    struct token_info got[OUTPUTS], want;
    memset(poison, 0xff, sizeof poison);
    to_device(x->device_logits, x->logits, (size_t)OUTPUTS * x->vocab * sizeof *x->logits);
    assert_cuda(
        cuda_draw(stream, x->result, x->device_logits, &x->device, &x->batch, OUTPUTS, x->scratch));
    device_read(got, x->result, sizeof got);
    for (uint32_t i = 0; i + 1 < OUTPUTS; i++) {
        uint32_t slot = x->slot_of[i];
        slot_draw(&x->slots, slot, &x->sampler, x->logits + (size_t)i * x->vocab, &want);
        compare_info(&got[i], &want, &x->slots.slot[slot].sampling, i);
    }
    assert_memory_equal(&got[OUTPUTS - 1], poison, sizeof poison);
}

static void compare_slots(const struct rig *x)
{
    uint32_t index[SLOTS], last[SLOTS];
    uint32_t *counts = mem_array(x->vocab, sizeof *counts);
    assert_non_null(counts);
    device_read(index, x->device.index, sizeof index);
    device_read(last, x->device.last, sizeof last);
    for (uint32_t i = 0; i < SLOTS; i++) {
        const struct slot *slot = &x->slots.slot[i];
        assert_int_equal(index[i], slot->index);
        assert_int_equal(last[i], slot->last);
        if (!sampling_needs_counts(&slot->sampling)) continue;
        device_read(counts, x->device.counts + (size_t)i * x->vocab, x->vocab * sizeof *counts);
        assert_memory_equal(counts, x->slots.counts + (size_t)i * x->vocab,
                            x->vocab * sizeof *counts);
    }
    mem_free(counts);
}

static void run(uint32_t vocab, uint32_t rounds, uint32_t steps)
{
    struct random r = {vocab, 0};
    struct rig x;
    rig_open(&x, vocab);
    for (uint32_t n = 0; n < rounds; n++) {
        order_take(n);
        for (uint32_t i = 0; i < SLOTS; i++)
            make(&x, &r, i, random_sampling(&r, vocab));
        for (uint32_t i = 0; i < steps; i++) {
            for (uint32_t k = 0; k < OUTPUTS; k++)
                random_logits(&r, x.logits + (size_t)k * vocab, vocab);
            step(&x);
        }
        compare_slots(&x);
    }
    rig_close(&x);
}

static void a_small_vocabulary_gives_the_tokens_of_the_cpu(void **state)
{
    static const struct {
        uint32_t vocab, rounds, steps;
    } row[] = {{1, 1, 2},   {2, 2, 3},    {7, 8, 4},   {100, 8, 4},
               {999, 8, 4}, {3000, 4, 4}, {4097, 4, 3}};
    (void)state;
    for (size_t i = 0; i < COUNT(row); i++)
        run(row[i].vocab, row[i].rounds, row[i].steps);
}

static void a_row_of_many_chunks_gives_the_tokens_of_the_cpu(void **state)
{
    (void)state;
    run(9001, 2, 2);
    run(VOCAB_BIG, 1, 1);
}

static void log_probabilities_are_those_of_the_cpu(void **state)
{
    (void)state;
    static const uint32_t vocabs[] = {1, 2, 31, 100, 999, 4097, 9001};
    struct random r = {.seed = 12};
    for (size_t n = 0; n < COUNT(vocabs); n++) {
        uint32_t vocab = vocabs[n], token[OUTPUTS];
        float *logits = mem_array((size_t)OUTPUTS * vocab, sizeof *logits), got[OUTPUTS];
        float *device_logits = device_poison((size_t)OUTPUTS * vocab * sizeof *logits);
        float *out = device_poison(sizeof got);
        for (uint32_t i = 0; i < OUTPUTS; i++) {
            random_logits(&r, logits + (size_t)i * vocab, vocab);
            token[i] = random_below(&r, vocab);
        }
        const uint32_t *device_token = device_words(token, OUTPUTS);
        to_device(device_logits, logits, (size_t)OUTPUTS * vocab * sizeof *logits);
        order_take((uint32_t)n);
        assert_cuda(cuda_logprobs(stream, out, device_logits, device_token, OUTPUTS, vocab));
        device_read(got, out, sizeof got);
        for (uint32_t i = 0; i < OUTPUTS; i++) {
            float want = plain_logprob(logits + (size_t)i * vocab, vocab, token[i]);
            if (memcmp(&got[i], &want, sizeof want) != 0)
                fail_msg("row %u of %u: %a, wanted %a", i, vocab, (double)got[i], (double)want);
        }
        device_free(device_logits);
        device_free(device_token);
        device_free(out);
        mem_free(logits);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(a_small_vocabulary_gives_the_tokens_of_the_cpu),
        DEVICE_TEST(a_row_of_many_chunks_gives_the_tokens_of_the_cpu),
        DEVICE_TEST(log_probabilities_are_those_of_the_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
