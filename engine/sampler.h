/* sampler: the next token from a row of logits. Pure functions: the same bits in, the same out.
 *
 *     struct sampler s;
 *     if ((e = sampler_init(&s, vocab_count)) != OK) return e;      // scratch, once
 *     struct sampler_ask ask = {.logits = row, .sampling = &job->sampling, .counts = counts,
 *                               .choice = job->key.choice, .index = n};
 *     struct token_info info;
 *     sampler_draw(&s, &ask, &info);
 *     sampler_fini(&s);
 *
 * The order of the filters is that of struct sampling (common/job.h). Tokens rank by (logit
 * descending, id ascending): greedy takes the first, top_k the first k, top_p the first that weigh p
 * of those together. Among those kept, the draw walks the ids upwards until their weights pass
 * u x total, u from Philox(seed; choice, index). NaN never wins over a number.
 *
 * Rules: weights are summed as integers (common/draw.h), no libm and no choice by instruction set, so
 * that the same logits give the same token and log-probabilities on any machine and device. Nothing
 * is allocated after sampler_init and the vocabulary is never sorted: filters look for the last token
 * to keep, digit by digit of its rank. A draw costs a few passes over the row.
 * Owner: one thread. */
#ifndef TANDEM_ENGINE_SAMPLER_H
#define TANDEM_ENGINE_SAMPLER_H

#include <stdint.h>

#include "common/draw.h"
#include "common/err.h"
#include "common/job.h"

struct sampler {
    uint32_t vocab_count;
    float *adjusted;          /* logits after bias and penalties */
    float *weight;            /* exp((logit - best) / temperature), 0: dropped */
    uint64_t *key;            /* rank keys of the tokens among which a filter finds its last one */
    uint64_t *stretch;        /* masses, stretch by stretch */
    struct draw_tally *digit; /* tokens by the first digit of their keys, then by a later one */
};

struct sampler_ask {
    const float *logits; /* [vocab_count] */
    const struct sampling *sampling;
    const uint32_t *counts; /* [vocab_count] as DRAW_IN_PROMPT has it; may be NULL if
                               sampling_needs_counts says no */
    uint32_t choice;
    uint32_t index; /* of the token to draw, from 0 */
};

enum err sampler_init(struct sampler *s, uint32_t vocab_count);
void sampler_fini(struct sampler *s);
void sampler_draw(struct sampler *s, const struct sampler_ask *ask, struct token_info *out);

#endif
