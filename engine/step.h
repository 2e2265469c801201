/* step: what the loop thread asks of the engine, and what the engine says back: plain structs.
 *
 * A step mixes prefill chunks and single-token decodes of many sequences. The loop thread fills a
 * step, submits it, and may not touch it until the engine's STEP_DONE event with its id; that event
 * is also the fence after which blocks that the step named may be freed. Steps run in order.
 *
 * Sequences have a slot in the engine (0 … slots_count - 1): token counts for penalties, the random
 * index, the last sampled token. A slot is (re)made by `setup` in the first step that names it, and
 * is simply reused after its sequence ended. `setup` and what it points to must live until
 * STEP_DONE. The next token that such a slot samples has index setup->forwarded_count, and what
 * was forwarded counts for penalties: a decode node sets up a sequence with token 0 as forwarded.
 *
 * In the simulator a modelled engine takes the same steps and answers with the same events. */
#ifndef TANDEM_ENGINE_STEP_H
#define TANDEM_ENGINE_STEP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/geometry.h"
#include "common/job.h"

/* As an input token: the one that this sequence's slot sampled last. Lets a step be planned while
 * the one before it still runs. */
#define STEP_TOKEN_LAST UINT32_MAX

/* As the token behind a text's last one. */
#define STEP_TOKEN_NONE UINT32_MAX

/* What is kept of a sequence's rows beside their KV; of one that does not sample. */
enum step_want {
    STEP_WANT_KV, /* nothing */
    STEP_WANT_SCORES,
    STEP_WANT_SUM,  /* of the hidden states of all rows, after the final norm */
    STEP_WANT_LAST, /* the last row's alone */
};

struct step_sequence {
    uint32_t slot;
    uint32_t row_first, rows_count; /* in step->tokens */
    uint32_t position;              /* absolute position of the first row */
    uint32_t table_first;    /* in step->table: block of token t is table[table_first + t / 16]; of
                              * tokens that no row sees, by the window, any number */
    struct kv_window window; /* what its rows see; tokens 0: the model's */
    bool sample;             /* draw a token after the last row */
    const struct job *setup; /* makes the slot: prompt, forwarded, sampling; NULL: it exists */
    enum step_want want;
    uint32_t next; /* SCORES: the token behind the last row, STEP_TOKEN_NONE: there is none */
    float *scores; /* SCORES: [rows_count] log-probabilities of the tokens behind each row */
    double *sum;   /* SUM, LAST: [hidden], added to. Both are written until STEP_DONE */
};

/* A block whose KV another one gets before the step's first row is computed: a fork's last one. */
struct step_copy {
    uint32_t from, to;
};

/* Arrays are as long as the limits that the step was made with (step_new). */
struct step {
    uint64_t id; /* ascending from 1 */
    uint32_t sequences_count, rows_count, table_count, copies_count;
    struct step_sequence *sequence;
    uint32_t *tokens;
    uint32_t *table;
    struct step_copy *copy; /* [sequences_max] done in order */
    bool report_layers;     /* a STEP_LAYER event after each layer: KV is about to be pushed */
    _Atomic bool cancel;    /* the loop may set it while the step runs: looked at once per layer */
    struct token_info *result; /* [sequences_count], filled by the engine where `sample` */
};

struct step_limits {
    uint32_t sequences_max, rows_max, table_max;
};

enum err step_new(struct step **step, const struct step_limits *limits);
void step_free(struct step *step);
void step_clear(struct step *step); /* to be filled again; the id stays */
/* One more sequence, which samples nothing so far. Its rows and its blocks begin where those of the one before
 * end: the caller puts them there. */
struct step_sequence *step_add(struct step *step, uint32_t slot, uint32_t position,
                               uint32_t rows_count);

enum engine_event_kind {
    ENGINE_LAYER,     /* KV of `layer` is in the pool for all rows of the step */
    ENGINE_STEP_DONE, /* status OK: results are filled. ERR_CANCELLED: nothing was sampled, KV of
                       * its rows is undefined. ERR_DEVICE: the device is sick, all later steps fail
                       * too */
};
struct engine_event {
    enum engine_event_kind kind;
    uint64_t step_id;
    uint32_t layer;
    enum err status;
    uint64_t began_ns, ended_ns; /* of the step's run, CLOCK_MONOTONIC; STEP_DONE only */
};

#endif
