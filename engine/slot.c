#include "engine/slot.h"

#include <string.h>

#include "common/mem.h"
#include "engine/step.h"

enum err slots_init(struct slots *s, uint32_t slots_count, uint32_t vocab_count)
{
    /* Zeroed by the system page by page: what is never used costs no memory. */
    *s = (struct slots){
        .slot = mem_array(slots_count, sizeof *s->slot),
        .slots_count = slots_count,
        .vocab_count = vocab_count,
        .counts = mem_array((size_t)slots_count * vocab_count, sizeof *s->counts),
        .bias = mem_array((size_t)slots_count * JOB_BIAS_MAX, sizeof *s->bias),
    };
    if (s->slot && s->counts && s->bias) return OK;
    slots_fini(s);
    return ERR_MEMORY;
}

void slots_fini(struct slots *s)
{
    mem_free(s->slot);
    mem_free(s->counts);
    mem_free(s->bias);
    *s = (struct slots){0};
}

static uint32_t *counts_of(const struct slots *s, uint32_t index)
{
    return s->counts + (size_t)index * s->vocab_count;
}

void slot_make(struct slots *s, uint32_t index, const struct job *job)
{
    CHECK(index < s->slots_count && job->sampling.bias_count <= JOB_BIAS_MAX);
    struct slot *slot = &s->slot[index];
    struct logit_bias *bias = s->bias + (size_t)index * JOB_BIAS_MAX;
    uint32_t *counts = counts_of(s, index);
    *slot = (struct slot){
        .sampling = job->sampling,
        .choice = job->key.choice,
        .index = job->forwarded_count,
        .last = job->forwarded_count ? job->forwarded[job->forwarded_count - 1] : STEP_TOKEN_LAST,
        .made = true,
    };
    slot->sampling.bias = bias;
    if (job->sampling.bias_count > 0)
        memcpy(bias, job->sampling.bias, job->sampling.bias_count * sizeof *bias);
    if (!sampling_needs_counts(&slot->sampling)) return;
    memset(counts, 0, s->vocab_count * sizeof *counts);
    for (uint32_t i = 0; i < job->prompt_count; i++)
        counts[job->prompt[i]] = DRAW_IN_PROMPT;
    for (uint32_t i = 0; i < job->forwarded_count; i++)
        counts[job->forwarded[i]]++;
}

void slot_draw(struct slots *s, uint32_t index, struct sampler *sampler, const float *logits,
               struct token_info *out)
{
    struct slot *slot = &s->slot[index];
    struct sampler_ask ask = {.logits = logits,
                              .sampling = &slot->sampling,
                              .counts = counts_of(s, index),
                              .choice = slot->choice,
                              .index = slot->index};
    sampler_draw(sampler, &ask, out);
    slot->index++;
    slot->last = out->token;
    if (sampling_needs_counts(&slot->sampling)) counts_of(s, index)[out->token]++;
}
