/* slot: what the engine remembers of one sequence between steps, so that its next token depends on
 * (seed, choice, index) and its own tokens only.
 *
 *     struct slots s;
 *     if ((e = slots_init(&s, slots_count, vocab_count)) != OK) return e;
 *     slot_make(&s, i, job);                     // replays job->forwarded: counts, index, last
 *     slot_draw(&s, i, &sampler, logits, &info); // draws and remembers
 *     slots_fini(&s);
 *
 * Rules: slot_make copies what it needs; the job may go. Counts are only kept for jobs with
 * penalties. Nothing is allocated after slots_init.
 * Owner: the engine thread. */
#ifndef TANDEM_ENGINE_SLOT_H
#define TANDEM_ENGINE_SLOT_H

#include "common/err.h"
#include "common/job.h"
#include "engine/sampler.h"

struct slot {
    struct sampling sampling; /* its bias points into slots.bias */
    uint32_t choice;
    uint32_t index; /* of the token that is drawn next */
    uint32_t last;  /* the token before that; STEP_TOKEN_LAST: none yet */
    bool made;
};

struct slots {
    struct slot *slot;
    uint32_t slots_count, vocab_count;
    uint32_t *counts;        /* [slots_count][vocab_count]: sampler.h */
    struct logit_bias *bias; /* [slots_count][JOB_BIAS_MAX] */
};

enum err slots_init(struct slots *s, uint32_t slots_count, uint32_t vocab_count);
void slots_fini(struct slots *s);
void slot_make(struct slots *s, uint32_t index, const struct job *job);
void slot_draw(struct slots *s, uint32_t index, struct sampler *sampler, const float *logits,
               struct token_info *out);

#endif
