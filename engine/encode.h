/* encode: what a step gives of its rows beside KV and tokens: scores and sums of hidden states, into
 * memory that the step names (engine/step.h).
 *
 *     struct encoder en;
 *     if ((e = encoder_init(&en, &forward)) != OK) return e;
 *     batch.outputs_count = n + encode_outputs(step, batch.output_row + n);    // behind the n drawn
 *     ... the batch runs with FORWARD_DRAW, its tokens are taken ...
 *     if ((e = encode_collect(&en, step, &batch, n)) != OK) return e;
 *     encoder_fini(&en);
 *
 * Rules: rows are looked at in pieces of as many as logits have room for. A score is counted as those of
 * drawn tokens are; a sum is of doubles, row upon row in the order of the text: so neither depends on
 * company or chunks (docs/numerics.md). Nothing is allocated after encoder_init.
 * Owner: the engine thread. */
#ifndef TANDEM_ENGINE_ENCODE_H
#define TANDEM_ENGINE_ENCODE_H

#include "engine/forward.h"
#include "engine/step.h"

struct encoder {
    struct forward *forward;
    void *room; /* [outputs_max] hidden states on the host; NULL: device memory is host memory */
    uint32_t *token; /* [outputs_max] behind the rows that are scored; host_alloc's */
    float *logprob;  /* [outputs_max] theirs; host_alloc's */
    bool host_memory;
    uint32_t operand_bytes;
};

enum err encoder_init(struct encoder *en, struct forward *forward);
void encoder_fini(struct encoder *en); /* before the forward pass's; a zeroed one is allowed */
/* Whether the step wants anything of this. */
bool encode_wanted(const struct step *step);
/* Writes the rows that it takes, those that are scored before the others; how many. */
uint32_t encode_outputs(const struct step *step, uint32_t *output_row);
/* Outputs [first, outputs_count) of the batch that ran last are such rows. ERR_CANCELLED: the step was. */
enum err encode_collect(struct encoder *en, const struct step *step, const struct batch *batch,
                        uint32_t first);

#endif
