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
