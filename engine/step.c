#include "engine/step.h"

#include "common/mem.h"

enum err step_new(struct step **out, const struct step_limits *limits)
{
    *out = NULL;
    struct step *step = mem_new(sizeof *step);
    if (!step) return ERR_MEMORY;
    step->sequence = mem_array(limits->sequences_max, sizeof *step->sequence);
    step->result = mem_array(limits->sequences_max, sizeof *step->result);
    step->tokens = mem_array(limits->rows_max, sizeof *step->tokens);
    step->table = mem_array(limits->table_max, sizeof *step->table);
    step->copy = mem_array(limits->sequences_max, sizeof *step->copy);
    if (step->sequence && step->result && step->tokens && step->table && step->copy) {
        *out = step;
        return OK;
    }
    step_free(step);
    return ERR_MEMORY;
}

void step_free(struct step *step)
{
    if (!step) return;
    mem_free(step->sequence);
    mem_free(step->result);
    mem_free(step->tokens);
    mem_free(step->table);
    mem_free(step->copy);
    mem_free(step);
}

void step_clear(struct step *step)
{
    step->sequences_count = step->rows_count = step->table_count = step->copies_count = 0;
    step->report_layers = false;
    step->cancel = false;
}

struct step_sequence *step_add(struct step *step, uint32_t slot, uint32_t position,
                               uint32_t rows_count)
{
    struct step_sequence *q = &step->sequence[step->sequences_count++];
    *q = (struct step_sequence){.slot = slot,
                                .row_first = step->rows_count,
                                .rows_count = rows_count,
                                .position = position,
                                .table_first = step->table_count};
    return q;
}
