/* Slots on the device: what engine/slot.h keeps on the host for backends that do not draw. */
#include "kernels/cuda/backend.h"

#include <string.h>

/* What is sent for a new slot, as it stands in a stage's memory. */
struct slot_message {
    struct cuda_sampling sampling;
    uint32_t index, last;
    struct logit_bias bias[JOB_BIAS_MAX];
};

enum err slots_open(struct backend *b)
{
    const struct backend_limits *l = &b->options.limits;
    struct cuda_slots *s = &b->slots;
    const size_t count = l->slots_count, word = sizeof(uint32_t);
    const size_t list_max = (size_t)l->table_max * BLOCK_TOKENS;
    uint32_t outputs = b->decode.decode_max;
    enum err e;
    s->slots_count = l->slots_count;
    s->vocab_count = l->vocab_count;
    b->list_max = list_max < JOB_TOKENS_MAX ? (uint32_t)list_max : JOB_TOKENS_MAX;
    const struct {
        void **memory;
        size_t bytes;
        const char *what;
    } parts[] = {
        {(void **)&s->sampling, count * sizeof *s->sampling, "slots"},
        {(void **)&s->index, count * word, "slots"},
        {(void **)&s->last, count * word, "slots"},
        {(void **)&s->counts, count * l->vocab_count * word, "the slots' token counts"},
        {(void **)&s->bias, count * JOB_BIAS_MAX * sizeof *s->bias, "the slots' logit biases"},
        {(void **)&b->list, b->list_max * word, "a list of tokens"},
        {&b->draw_scratch, cuda_draw_scratch(l->vocab_count, outputs), "drawing"},
        {(void **)&b->scored, outputs * word, "tokens that are scored"},
        {(void **)&b->score, outputs * sizeof *b->score, "scores"},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if ((e = cuda_take(parts[i].memory, parts[i].bytes, parts[i].what)) != OK) return e;
    for (int i = 0; i < SLOT_STAGES; i++)
        if ((e = stage_open(&b->slot_stage[i], sizeof(struct slot_message))) != OK) return e;
    return stage_open(&b->list_stage, b->list_max * word + 1);
}

void slots_close(struct backend *b)
{
    void *memory[] = {b->slots.sampling, b->slots.index, b->slots.last,
                      b->slots.counts,   b->slots.bias,  b->list,
                      b->draw_scratch,   b->scored,      b->score};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++)
        if (memory[i]) cudaFree(memory[i]);
    for (int i = 0; i < SLOT_STAGES; i++)
        stage_close(&b->slot_stage[i]);
    stage_close(&b->list_stage);
}

static struct cuda_sampling sampling_of(const struct job *job)
{
    const struct sampling *s = &job->sampling;
    return (struct cuda_sampling){.temperature = s->temperature,
                                  .top_p = s->top_p,
                                  .min_p = s->min_p,
                                  .repetition_penalty = s->repetition_penalty,
                                  .presence_penalty = s->presence_penalty,
                                  .frequency_penalty = s->frequency_penalty,
                                  .top_k = s->top_k,
                                  .tops_count = s->tops_count,
                                  .bias_count = s->bias_count,
                                  .choice = job->key.choice,
                                  .seed = s->seed,
                                  .logprobs = s->logprobs,
                                  .penalties = sampling_needs_counts(s)};
}

/* The tokens of prompt and answer, for their counts: lists are rare and long, so that there is one
 * stage for them and the one before is waited for. */
static void send_counts(struct backend *b, uint32_t slot, const struct job *job)
{
    const size_t word = sizeof *b->list;
    uint32_t prompt = job->prompt_count, forwarded = job->forwarded_count;
    CHECK(prompt <= b->list_max && forwarded <= b->list_max - prompt);
    stage_take(b, &b->list_stage);
    if (!backend_ok(b)) return;
    if (prompt > 0) memcpy(b->list_stage.bytes, job->prompt, prompt * word);
    if (forwarded > 0)
        memcpy(b->list_stage.bytes + prompt * word, job->forwarded, forwarded * word);
    stage_copy(b, b->list, &b->list_stage, 0, (prompt + forwarded) * word);
    stage_done(b, &b->list_stage);
    backend_check(
        b,
        cuda_slot_count(b->stream, &b->slots, slot, b->list, prompt, b->list + prompt, forwarded),
        "counting a slot's tokens");
}

void cuda_slot_make(struct backend *b, uint32_t slot, const struct job *job)
{
    struct stage *stage = &b->slot_stage[b->slot_stage_next++ % SLOT_STAGES];
    const struct cuda_slots *s = &b->slots;
    uint32_t forwarded = job->forwarded_count, biases = job->sampling.bias_count;
    CHECK(slot < s->slots_count && biases <= JOB_BIAS_MAX);
    backend_enter(b);
    if (backend_ok(b)) stage_take(b, stage);
    if (!backend_ok(b)) return;
    struct slot_message *m = (struct slot_message *)stage->bytes;
    m->sampling = sampling_of(job);
    m->index = forwarded;
    m->last = forwarded > 0 ? job->forwarded[forwarded - 1] : 0;
    if (biases > 0) memcpy(m->bias, job->sampling.bias, biases * sizeof *m->bias);
    stage_copy(b, s->sampling + slot, stage, offsetof(struct slot_message, sampling),
               sizeof m->sampling);
    stage_copy(b, s->index + slot, stage, offsetof(struct slot_message, index), sizeof m->index);
    stage_copy(b, s->last + slot, stage, offsetof(struct slot_message, last), sizeof m->last);
    stage_copy(b, s->bias + (size_t)slot * JOB_BIAS_MAX, stage, offsetof(struct slot_message, bias),
               biases * sizeof *m->bias);
    stage_done(b, stage);
    if (m->sampling.penalties) send_counts(b, slot, job);
}

void cuda_draw_outputs(struct backend *b, struct token_info *result, const float *logits,
                       const struct batch *batch, uint32_t outputs)
{
    (void)batch;
    CHECK(outputs <= b->decode.decode_max);
    if (!backend_ok(b) || outputs == 0) return;
    backend_check(
        b, cuda_draw(b->stream, result, logits, &b->slots, &b->batch, outputs, b->draw_scratch),
        "drawing tokens");
}

void cuda_logprobs_of(struct backend *b, float *out, const float *logits, const uint32_t *token,
                      uint32_t rows, uint32_t vocab)
{
    CHECK(rows <= b->decode.decode_max);
    if (!backend_ok(b) || rows == 0) return;
    backend_check(
        b,
        cudaMemcpyAsync(b->scored, token, rows * sizeof *token, cudaMemcpyHostToDevice, b->stream),
        "tokens that are scored");
    if (backend_ok(b))
        backend_check(b, cuda_logprobs(b->stream, b->score, logits, b->scored, rows, vocab),
                      "scoring");
    if (backend_ok(b))
        backend_check(
            b,
            cudaMemcpyAsync(out, b->score, rows * sizeof *out, cudaMemcpyDeviceToHost, b->stream),
            "scores");
}
