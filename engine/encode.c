#include "engine/encode.h"

#include "common/mem.h"
#include "kernels/numbers.h"

enum err encoder_init(struct encoder *en, struct forward *f)
{
    const struct forward_parts *p = &f->parts;
    const struct backend_facts *facts = p->ops->facts(p->backend);
    *en = (struct encoder){
        .forward = f, .host_memory = facts->host_memory, .operand_bytes = facts->operand_bytes};
    en->token = p->ops->host_alloc(p->backend, f->outputs_max * sizeof *en->token);
    en->logprob = p->ops->host_alloc(p->backend, f->outputs_max * sizeof *en->logprob);
    if (!en->host_memory)
        en->room = mem_array((size_t)f->outputs_max * p->config->hidden, en->operand_bytes);
    return en->token && en->logprob && (en->room || en->host_memory) ? OK : ERR_MEMORY;
}

void encoder_fini(struct encoder *en)
{
    if (en->token) en->forward->parts.ops->host_free(en->forward->parts.backend, en->token);
    if (en->logprob) en->forward->parts.ops->host_free(en->forward->parts.backend, en->logprob);
    mem_free(en->room);
    *en = (struct encoder){0};
}

bool encode_wanted(const struct step *step)
{
    for (uint32_t i = 0; i < step->sequences_count; i++)
        if (step->sequence[i].want != STEP_WANT_KV) return true;
    return false;
}

/* Behind the last row stands a token that may not be known: there is none at a text's end. */
static uint32_t token_behind(const struct step *step, const struct step_sequence *q, uint32_t row)
{
    return row + 1 < q->row_first + q->rows_count ? step->tokens[row + 1] : q->next;
}

static uint32_t add_rows(const struct step *step, const struct step_sequence *q, uint32_t *row)
{
    uint32_t first = q->row_first, end = q->row_first + q->rows_count, n = 0;
    if (q->want == STEP_WANT_LAST) first = end - 1;
    if (q->want == STEP_WANT_SCORES && token_behind(step, q, end - 1) == STEP_TOKEN_NONE) end--;
    for (uint32_t r = first; r < end; r++)
        row[n++] = r;
    return n;
}

uint32_t encode_outputs(const struct step *step, uint32_t *output_row)
{
    uint32_t n = 0;
    for (uint32_t pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < step->sequences_count; i++) {
            const struct step_sequence *q = &step->sequence[i];
            bool scored = q->want == STEP_WANT_SCORES;
            if (q->want != STEP_WANT_KV && scored == (pass == 0))
                n += add_rows(step, q, output_row + n);
        }
    return n;
}

/* Whose row it is; `q` is that of a row before it, or the first. */
static const struct step_sequence *owner(const struct step_sequence *q, uint32_t row)
{
    while (row >= q->row_first + q->rows_count)
        q++;
    return q;
}

static bool is_scored(const struct step *step, uint32_t row)
{
    return owner(step->sequence, row)->want == STEP_WANT_SCORES;
}

/* Device rows on the host, once all that was enqueued is done. */
static enum err read_rows(struct encoder *en, const void *device, size_t bytes, const void **host)
{
    const struct forward_parts *p = &en->forward->parts;
    enum err e = p->ops->sync(p->backend);
    *host = en->host_memory ? device : en->room;
    return e != OK || en->host_memory ? e : p->ops->read(p->backend, en->room, device, bytes);
}

static void add_row(double *sum, const void *row, uint32_t dim, bool bf16)
{
    const float *wide = row;
    const uint16_t *narrow = row;
    for (uint32_t i = 0; i < dim; i++)
        sum[i] += bf16 ? (double)f32_from_bf16(narrow[i]) : (double)wide[i];
}

/* Of one piece of outputs; their rows ascend. */
static enum err collect_scores(struct encoder *en, const struct step *step,
                               const struct batch *batch, uint32_t first, uint32_t count)
{
    const struct forward_parts *p = &en->forward->parts;
    const uint32_t *row = batch->output_row + first;
    const struct step_sequence *q = step->sequence;
    for (uint32_t i = 0; i < count; i++) {
        q = owner(q, row[i]);
        en->token[i] = token_behind(step, q, row[i]);
    }
    forward_logits(en->forward, batch, first, count);
    p->ops->logprobs(p->backend, en->logprob, en->forward->logits, en->token, count,
                     p->config->vocab_count);
    enum err e = p->ops->sync(p->backend);
    q = step->sequence;
    for (uint32_t i = 0; i < count && e == OK; i++) {
        q = owner(q, row[i]);
        q->scores[row[i] - q->row_first] = en->logprob[i];
    }
    return e;
}

/* The same of hidden states. */
static enum err collect_sums(struct encoder *en, const struct step *step, const struct batch *batch,
                             uint32_t first, uint32_t count)
{
    uint32_t hidden = en->forward->parts.config->hidden;
    const uint32_t *row = batch->output_row + first;
    const struct step_sequence *q = step->sequence;
    size_t bytes = (size_t)hidden * en->operand_bytes;
    const void *host;
    forward_normed(en->forward, batch, first, count);
    enum err e = read_rows(en, en->forward->normed, count * bytes, &host);
    for (uint32_t i = 0; i < count && e == OK; i++) {
        q = owner(q, row[i]);
        add_row(q->sum, (const char *)host + i * bytes, hidden,
                en->operand_bytes == sizeof(uint16_t));
    }
    return e;
}

enum err encode_collect(struct encoder *en, const struct step *step, const struct batch *batch,
                        uint32_t first)
{
    enum err e = OK;
    for (uint32_t count; first < batch->outputs_count && e == OK; first += count) {
        bool scored = is_scored(step, batch->output_row[first]);
        uint32_t left = batch->outputs_count - first, max = en->forward->outputs_max;
        if (left > max) left = max;
        for (count = 1; count < left; count++) /* the scored ones stand first */
            if (is_scored(step, batch->output_row[first + count]) != scored) break;
        if (atomic_load_explicit(&step->cancel, memory_order_relaxed))
            return err_set(ERR_CANCELLED, "the step was cancelled");
        e = scored ? collect_scores(en, step, batch, first, count)
                   : collect_sums(en, step, batch, first, count);
    }
    return e;
}
