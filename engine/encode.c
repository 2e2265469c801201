#include "engine/encode.h"

#include "common/mem.h"
#include "kernels/numbers.h"

enum err encoder_init(struct encoder *en, struct forward *f, struct sampler *sampler)
{
    const struct model_config *c = f->parts.config;
    const struct backend_facts *facts = f->parts.ops->facts(f->parts.backend);
    uint32_t width = c->vocab_count > c->hidden ? c->vocab_count : c->hidden;
    *en = (struct encoder){.forward = f,
                           .sampler = sampler,
                           .host_memory = facts->host_memory,
                           .operand_bytes = facts->operand_bytes};
    if (en->host_memory) return OK;
    en->room = mem_array((size_t)f->outputs_max * width, sizeof(float));
    return en->room ? OK : ERR_MEMORY;
}

void encoder_fini(struct encoder *en)
{
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

static bool is_scored(const struct step *step, uint32_t row)
{
    const struct step_sequence *q = step->sequence;
    while (row >= q->row_first + q->rows_count)
        q++;
    return q->want == STEP_WANT_SCORES;
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

/* What one piece of outputs is kept in; their rows ascend. */
static void keep(struct encoder *en, const struct step *step, const uint32_t *row, uint32_t count,
                 const void *host, bool scored)
{
    const struct model_config *c = en->forward->parts.config;
    const struct step_sequence *q = step->sequence;
    for (uint32_t i = 0; i < count; i++) {
        while (row[i] >= q->row_first + q->rows_count)
            q++;
        if (scored)
            q->scores[row[i] - q->row_first] =
                sampler_logprob(en->sampler, (const float *)host + (size_t)i * c->vocab_count,
                                token_behind(step, q, row[i]));
        else
            add_row(q->sum, (const char *)host + (size_t)i * c->hidden * en->operand_bytes,
                    c->hidden, en->operand_bytes == sizeof(uint16_t));
    }
}

static enum err collect(struct encoder *en, const struct step *step, const struct batch *batch,
                        uint32_t first, uint32_t count, bool scored)
{
    struct forward *f = en->forward;
    const struct model_config *c = f->parts.config;
    size_t bytes =
        scored ? (size_t)c->vocab_count * sizeof(float) : (size_t)c->hidden * en->operand_bytes;
    const void *host;
    if (scored)
        forward_logits(f, batch, first, count);
    else
        forward_normed(f, batch, first, count);
    enum err e = read_rows(en, scored ? (void *)f->logits : f->normed, count * bytes, &host);
    if (e == OK) keep(en, step, batch->output_row + first, count, host, scored);
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
        e = collect(en, step, batch, first, count, scored);
    }
    return e;
}
