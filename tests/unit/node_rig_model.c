/* node_rig's model: what a step does to KV cells and which tokens it samples, and the streams that must come
 * of a job. */
#include "tests/unit/testing.h"

#include "tests/unit/node_rig.h"

#include <math.h>
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/rng.h"

static uint64_t cell_of(uint64_t before, uint32_t token, uint32_t layer)
{
    uint64_t in[2] = {before, (uint64_t)layer << 32 | token};
    return hash64(in, sizeof in);
}

/* What a row at p makes its cell of: the one before, and with a window the first ones that it sees too, so
 * that a block which is gone too early shows. `cell` of a position is told by `at`. */
typedef uint64_t rig_cell_fn(const void *ctx, uint32_t position);
static uint64_t seen_at(rig_cell_fn *at, const void *ctx, struct kv_window w, uint32_t p)
{
    uint32_t first = kv_window_first(w, p);
    uint64_t before = first < p ? at(ctx, p - 1) : 0;
    if (first > 0 && first < p) before = cell_of(before ^ at(ctx, first), 0, 1);
    if (first > 0 && w.sinks > 0)
        before = cell_of(before ^ at(ctx, 0) ^ at(ctx, w.sinks < p ? w.sinks - 1 : 0), 0, 2);
    return before;
}

uint32_t rig_model_window;

static struct kv_window window_of(const struct job *job)
{
    return job->kv_window ? (struct kv_window){job->kv_window, job->kv_sinks}
                          : (struct kv_window){rig_model_window, 0};
}

static uint32_t draw(uint64_t cell, uint32_t index)
{
    uint64_t in[2] = {cell, index};
    return (uint32_t)(hash64(in, sizeof in) % RIG_VOCAB);
}

uint64_t *rig_cell(struct rig *r, uint32_t layer, uint32_t block, uint32_t position)
{
    assert_true(block < r->config.blocks_count);
    return &r->kv[((size_t)layer * r->config.blocks_count + block) * BLOCK_TOKENS +
                  position % BLOCK_TOKENS];
}

struct rig_row {
    struct rig *r;
    const uint32_t *table;
    uint32_t layer;
};
static uint64_t row_cell(const void *ctx, uint32_t position)
{
    const struct rig_row *row = ctx;
    return *rig_cell(row->r, row->layer, row->table[position / BLOCK_TOKENS], position);
}

static void run_layer(struct rig *r, struct step *step, uint32_t layer)
{
    for (uint32_t i = 0; i < step->copies_count; i++)
        memcpy(rig_cell(r, layer, step->copy[i].to, 0), rig_cell(r, layer, step->copy[i].from, 0),
               BLOCK_TOKENS * sizeof *r->kv);
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        const struct step_sequence *q = &step->sequence[i];
        const uint32_t *table = &step->table[q->table_first];
        struct rig_slot *slot = &r->slot[q->slot];
        if (q->setup && layer == 0) slot->next_index = q->setup->forwarded_count;
        for (uint32_t k = 0; k < q->rows_count; k++) {
            uint32_t p = q->position + k, token = step->tokens[q->row_first + k];
            if (token == STEP_TOKEN_LAST) token = slot->last_token;
            const struct rig_row row = {r, table, layer};
            uint64_t before = p ? seen_at(row_cell, &row, q->window, p) : layer;
            *rig_cell(r, layer, table[p / BLOCK_TOKENS], p) = cell_of(before, token, layer);
        }
    }
}

/* What a row is worth as a score of the token behind it, and as number i of its hidden state. */
static float score_of(uint64_t cell, uint32_t next)
{
    return -(float)(cell_of(cell, next, 77) % 4096) / 64;
}

static double hidden_of(uint64_t cell, uint32_t i)
{
    return (double)(cell_of(cell, i, 78) % 4096) - 2048;
}

static void keep_row(const struct step_sequence *q, uint32_t k, uint64_t cell, uint32_t next)
{
    bool last = k + 1 == q->rows_count;
    if (q->want == STEP_WANT_SCORES && next != STEP_TOKEN_NONE) q->scores[k] = score_of(cell, next);
    if (q->want == STEP_WANT_SUM || (q->want == STEP_WANT_LAST && last))
        for (uint32_t i = 0; i < RIG_HIDDEN; i++)
            q->sum[i] += hidden_of(cell, i);
}

static void keep_rows(struct rig *r, const struct step *step)
{
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        const struct step_sequence *q = &step->sequence[i];
        for (uint32_t k = 0; k < q->rows_count && q->want != STEP_WANT_KV; k++) {
            uint32_t p = q->position + k, block = step->table[q->table_first + p / BLOCK_TOKENS];
            bool last = k + 1 == q->rows_count;
            keep_row(q, k, *rig_cell(r, RIG_LAYERS - 1, block, p),
                     last ? q->next : step->tokens[q->row_first + k + 1]);
        }
    }
}

static void sample(struct rig *r, struct step *step)
{
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        const struct step_sequence *q = &step->sequence[i];
        uint32_t p = q->position + q->rows_count - 1;
        if (!q->sample) continue;
        uint64_t cell =
            *rig_cell(r, RIG_LAYERS - 1, step->table[q->table_first + p / BLOCK_TOKENS], p);
        struct rig_slot *slot = &r->slot[q->slot];
        slot->last_token = draw(cell, slot->next_index++);
        step->result[i] = (struct token_info){.token = slot->last_token, .logprob = NAN};
    }
}

bool rig_step_layers(struct rig *r, uint32_t count)
{
    if (r->steps_count == 0) return false;
    struct step *step = r->step[0];
    for (; count > 0 && r->layers_done < RIG_LAYERS; count--, r->layers_done++) {
        uint32_t layer = r->layers_done;
        run_layer(r, step, layer);
        if (step->report_layers)
            node_core_on_engine(
                r->core, r->now_ns,
                &(struct engine_event){.kind = ENGINE_LAYER, .step_id = step->id, .layer = layer});
    }
    return true;
}

bool rig_step_done(struct rig *r, enum err status)
{
    if (r->steps_count == 0) return false;
    struct step *step = r->step[0];
    if (status == OK) keep_rows(r, step);
    if (status == OK) sample(r, step);
    memmove(&r->step[0], &r->step[1], --r->steps_count * sizeof r->step[0]);
    r->steps_done++;
    r->layers_done = 0;
    node_core_on_engine(r->core, r->now_ns,
                        &(struct engine_event){.kind = ENGINE_STEP_DONE,
                                               .step_id = step->id,
                                               .status = status,
                                               .began_ns = r->now_ns,
                                               .ended_ns = r->now_ns + NS_PER_MS});
    return true;
}

bool rig_step(struct rig *r)
{
    if (r->steps_count == 0) return false;
    if (r->steps_count < r->config.steps_in_flight && r->config.steps_in_flight > 1)
        rig_advance(r, NS_PER_MS); /* while it runs the next one is planned */
    if (atomic_load(&r->step[0]->cancel)) return rig_step_done(r, ERR_CANCELLED);
    rig_step_layers(r, RIG_LAYERS);
    return rig_step_done(r, OK);
}

/* ---- jobs and their streams ---- */

static uint32_t prompt_token(uint32_t seed, uint32_t i)
{
    return rng_below(rng_draw(seed, 1, i).word[0], RIG_VOCAB);
}

struct job rig_job(uint32_t id, const struct rig_prompt *p)
{
    static uint32_t tokens[64][RIG_STREAM_MAX];
    static const uint32_t stop[] = {RIG_STOP};
    uint32_t *mine = tokens[id % 64];
    assert_true(p->count <= RIG_STREAM_MAX);
    for (uint32_t i = 0; i < p->count; i++)
        mine[i] = prompt_token(i < p->shared_count ? p->family + 1000 : p->seed, i);
    return (struct job){
        .key = {{1, id}, 0, 0},
        .prompt = mine,
        .prompt_count = p->count,
        .tokens_max = p->tokens_max,
        .stop_ids = stop,
        .stop_ids_count = 1,
        .sampling = {.top_p = 1, .repetition_penalty = 1},
    };
}

static uint64_t list_cell(const void *ctx, uint32_t position)
{
    return ((const uint64_t *)ctx)[position];
}

uint32_t rig_expect(const struct job *job, uint32_t context_max, uint32_t *tokens,
                    enum finish *finish)
{
    static uint64_t cell[2 * RIG_STREAM_MAX];
    const uint32_t layer = RIG_LAYERS - 1, prompt = job->prompt_count;
    const struct kv_window window = window_of(job);
    uint32_t n = 0, p = 0;
    for (; p < prompt; p++)
        cell[p] = cell_of(p ? seen_at(list_cell, cell, window, p) : layer, job->prompt[p], layer);
    do {
        assert_true(n < RIG_STREAM_MAX);
        tokens[n] = draw(cell[p - 1], n);
        cell[p] = cell_of(seen_at(list_cell, cell, window, p), tokens[n], layer);
        p++;
        *finish = job_finish(job, n, tokens[n], context_max);
        n++;
    } while (*finish == FINISH_NONE);
    return n;
}

uint32_t rig_expect_values(const struct job *job, float *values)
{
    uint64_t cell[RIG_STREAM_MAX], layer = RIG_LAYERS - 1;
    const struct kv_window window = window_of(job);
    double sum[RIG_HIDDEN] = {0}, squares = 0;
    for (uint32_t i = 0; i < job->prompt_count; i++) {
        bool last = i + 1 == job->prompt_count;
        uint64_t before = i ? seen_at(list_cell, cell, window, i) : layer;
        cell[i] = cell_of(before, job->prompt[i], layer);
        if (job->kind == JOB_SCORE && !last) values[i] = score_of(cell[i], job->prompt[i + 1]);
        for (uint32_t k = 0; k < RIG_HIDDEN && (last || job->kind == JOB_EMBED_MEAN); k++)
            sum[k] += hidden_of(cell[i], k);
    }
    if (job->kind == JOB_SCORE) return job->prompt_count - 1;
    for (uint32_t k = 0; k < RIG_HIDDEN; k++)
        squares += sum[k] * sum[k];
    for (uint32_t k = 0; k < RIG_HIDDEN; k++)
        values[k] = (float)(sum[k] / sqrt(squares));
    return RIG_HIDDEN;
}
