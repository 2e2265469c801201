/* Jobs that are to score or to embed: they end with their prompt's prefill, and what its steps kept of the
 * rows is their result, told in whole.
 *
 * The memory that steps write into is the sequence's, which stays while a step names it. A result of all
 * rows needs all rows: such a job computes also what the prefix cache has, and gives it its blocks. */
#include <math.h>

#include "common/plant.h"
#include "node/state.h"

enum err encode_new(const struct node_core *c, struct sequence *s)
{
    uint32_t hidden = c->config.hidden_count;
    switch (s->job.kind) {
    case JOB_GENERATE:
    case JOB_KINDS: return OK;
    case JOB_SCORE:
        s->values_count = s->job.prompt_count - 1;
        s->values = arena_take(&s->arena, s->job.prompt_count * sizeof *s->values);
        return s->values ? OK : ERR_MEMORY;
    case JOB_EMBED_LAST:
    case JOB_EMBED_MEAN: break;
    }
    s->values_count = hidden;
    s->values = arena_take(&s->arena, hidden * sizeof *s->values);
    s->hidden_sum = arena_take(&s->arena, hidden * sizeof *s->hidden_sum);
    if (!s->values || !s->hidden_sum) return ERR_MEMORY;
    for (uint32_t i = 0; i < hidden; i++)
        s->hidden_sum[i] = 0;
    return OK;
}

bool encode_may_skip(const struct sequence *s)
{
    return !job_needs_all_rows(s->job.kind) || PLANTED("rows_skipped");
}

void encode_part(const struct sequence *s, struct step_sequence *q)
{
    uint32_t end = q->position + q->rows_count;
    bool last = end == s->goal;
    q->sum = s->hidden_sum;
    switch (s->job.kind) {
    case JOB_SCORE:
        q->want = STEP_WANT_SCORES;
        q->next = last ? STEP_TOKEN_NONE : s->tokens[end];
        q->scores = s->values + q->position;
        return;
    case JOB_EMBED_LAST: q->want = last ? STEP_WANT_LAST : STEP_WANT_KV; return;
    case JOB_EMBED_MEAN: q->want = STEP_WANT_SUM; return;
    default: return;
    }
}

/* Of length 1. A mean needs no division: it has the sum's direction. */
static void normalise(struct sequence *s)
{
    double squares = 0;
    for (uint32_t i = 0; i < s->values_count; i++)
        squares += s->hidden_sum[i] * s->hidden_sum[i];
    double length = sqrt(squares);
    for (uint32_t i = 0; i < s->values_count; i++)
        s->values[i] = length > 0 ? (float)(s->hidden_sum[i] / length) : 0;
}

enum err encode_finish(struct node_core *c, struct sequence *s)
{
    if (s->job.kind == JOB_GENERATE) return OK;
    if (s->hidden_sum) normalise(s);
    for (uint32_t i = 0; i < s->values_count; i++)
        if (!(s->values[i] <= 1.0f))
            return err_set(ERR_FORMAT, "the model gives %g as number %u of the result",
                           (double)s->values[i], i);
    if (s->job.kind == JOB_SCORE)
        c->counts.scores++;
    else
        c->counts.embeddings++;
    return OK;
}

void encode_tell(struct node_core *c, const struct sequence *s, uint32_t from)
{
    for (uint32_t n; from < s->values_count; from += n) {
        n = s->values_count - from < MSG_VALUES_MAX ? s->values_count - from : MSG_VALUES_MAX;
        struct msg m = {.kind = MSG_ENCODED,
                        .encoded = {.key = s->job.key,
                                    .index = from,
                                    .total = s->values_count,
                                    .values = s->values + from,
                                    .values_count = n}};
        say(c, s->router, &m);
    }
}
