/* Steps: made from the plan, submitted, and taken apart when they are done.
 *
 * A submitted step names blocks; each is held once per entry with HOLD_STEP until STEP_DONE, so that
 * neither a cancel nor a preemption can give them to somebody else while the engine works on them. A
 * sequence may be in several submitted steps; `planned` is where the last of them ends. */
#include "node/state.h"

#include "common/mem.h"
#include "common/plant.h"
#include "common/smooth.h"

enum err flights_new(struct node_core *c)
{
    c->flight = mem_array(c->config.steps_in_flight, sizeof *c->flight);
    if (!c->flight) return ERR_MEMORY;
    for (uint32_t i = 0; i < c->config.steps_in_flight; i++) {
        struct flight *f = &c->flight[i];
        enum err e = step_new(&f->step, &c->config.limits);
        if (e != OK) return e;
        f->part = mem_array(c->config.limits.sequences_max, sizeof *f->part);
        if (!f->part) return ERR_MEMORY;
    }
    return OK;
}

void flights_free(struct node_core *c)
{
    for (uint32_t i = 0; c->flight && i < c->config.steps_in_flight; i++) {
        step_free(c->flight[i].step);
        mem_free(c->flight[i].part);
    }
    mem_free(c->flight);
}

/* ---- making a step ---- */

static uint32_t add_running(struct node_core *c, uint64_t now_ns, uint32_t n)
{
    /* Preemption takes from behind the one that grows, so what stands before it is safe. */
    for (struct list_link *l = c->running.next; l != &c->running; l = l->next) {
        struct sequence *s = list_member(l, struct sequence, place);
        if (n == c->config.sequences_max) break;
        if (s->preempt || s->generated_count + s->samples_in_flight >= s->generated_max) continue;
        if (!queue_grow(c, now_ns, s)) continue;
        c->pick[n] = s;
        c->plan_job[n++] = (struct plan_job){true, s->planned, 1};
    }
    return n;
}

static uint32_t add_prompts(struct node_core *c, uint32_t n)
{
    for (struct list_link *l = c->queue.next; l != &c->queue; l = l->next) {
        struct sequence *s = list_member(l, struct sequence, place);
        if (s->state != SEQ_PREFILL || s->preempt || s->planned == s->goal) continue;
        if (s->skip_to > 0 && s->in_flight > 0) continue; /* it skips between steps */
        uint32_t end = s->table_count * BLOCK_TOKENS;     /* with a window not yet for all of it */
        if (end > s->goal) end = s->goal;
        if (s->skip_to > 0 && s->planned < s->skip_from && end > s->skip_from) end = s->skip_from;
        if (end == s->planned) continue;
        c->pick[n] = s;
        c->plan_job[n++] = (struct plan_job){false, s->planned, end - s->planned};
    }
    return n;
}

static void add_rows(struct step *step, struct sequence *s, uint32_t rows_count, bool decode)
{
    for (uint32_t i = 0; i < rows_count; i++) {
        bool last = decode && s->samples_in_flight > 0;
        step->tokens[step->rows_count++] = last ? STEP_TOKEN_LAST : s->tokens[s->planned + i];
    }
}

static void add_table(struct node_core *c, struct step *step, const struct sequence *s,
                      uint32_t end)
{
    for (uint32_t i = 0; i < blocks_for_tokens(end); i++) {
        bool held = s->table[i].v != BLOCK_NONE.v && !PLANTED("no_step_fence");
        if (held) kv_pool_hold(c->pool, s->table[i], HOLD_STEP);
        step->table[step->table_count++] = s->table[i].v;
    }
}

/* The block that is copied is the step's from here on. */
static void add_copy(struct node_core *c, struct step *step, struct sequence *s)
{
    if (s->copy_from.v == BLOCK_NONE.v) return;
    step->copy[step->copies_count++] =
        (struct step_copy){s->copy_from.v, s->table[s->planned / BLOCK_TOKENS].v};
    if (!PLANTED("fork_not_held")) kv_pool_move(c->pool, s->copy_from, HOLD_SEQUENCE, HOLD_STEP);
    s->copy_from = BLOCK_NONE;
}

static const struct job *setup_of(struct sequence *s)
{
    if (s->slot_made) return NULL;
    s->slot_made = true;
    s->setup = s->job; /* all that was generated counts for penalties and the random index */
    s->setup.forwarded_count = s->generated_count;
    return &s->setup;
}

static void add_part(struct node_core *c, uint64_t now_ns, struct flight *f, struct sequence *s,
                     uint32_t rows_count)
{
    struct step *step = f->step;
    bool decode = s->state == SEQ_RUNNING;
    uint32_t end = s->planned + rows_count;
    bool sample = decode || (end == s->goal && s->job.tokens_max > 0);
    f->part[step->sequences_count] = (struct flight_part){s, s->planned, rows_count, sample};
    struct step_sequence *q = step_add(step, s->slot, s->planned, rows_count);
    q->window = s->window;
    q->sample = sample;
    q->setup = setup_of(s);
    add_copy(c, step, s);
    encode_part(s, q);
    add_rows(step, s, rows_count, decode);
    add_table(c, step, s, end);
    if (s->kind == SEQ_PUSH) step->report_layers = true;
    if (s->began_ns == 0) s->began_ns = now_ns;
    s->planned = end;
    s->in_flight++;
    s->samples_in_flight += sample;
}

static bool submit_one(struct node_core *c, uint64_t now_ns, struct flight *f)
{
    queue_start(c, now_ns);
    if (c->steps_made % NODE_WASTE_STEPS == 0) waste_note(c);
    uint32_t jobs_count = add_prompts(c, add_running(c, now_ns, 0));
    struct plan_budget budget = {c->config.limits, c->config.sequences_max, c->config.chunk_tokens};
    uint32_t parts_count = chunk_plan(c->plan_job, jobs_count, &budget, c->plan_part);
    if (parts_count == 0) return c->flights_busy == 0 && queue_unstick(c, now_ns);
    struct step *step = f->step;
    step->id = ++c->steps_made;
    step_clear(step);
    for (uint32_t i = 0; i < parts_count; i++)
        add_part(c, now_ns, f, c->pick[c->plan_part[i].job], c->plan_part[i].rows_count);
    f->busy = true;
    if (c->flights_busy++ == 0) pace_runs(c, now_ns);
    c->counts.steps++;
    c->out.submit(c->out.ctx, step);
    return true;
}

void flights_submit(struct node_core *c, uint64_t now_ns)
{
    while (!c->broken && c->flights_busy < c->config.steps_in_flight && !pace_waits(c, now_ns)) {
        struct flight *f = c->flight;
        while (f->busy)
            f++;
        if (!submit_one(c, now_ns, f)) return;
    }
}

/* ---- taking it apart ---- */

static struct flight *find(struct node_core *c, uint64_t step_id)
{
    for (uint32_t i = 0; i < c->config.steps_in_flight; i++)
        if (c->flight[i].busy && c->flight[i].step->id == step_id) return &c->flight[i];
    return NULL;
}

static void on_layer(struct node_core *c, uint64_t now_ns, struct flight *f, uint32_t layer)
{
    for (uint32_t i = 0; i < f->step->sequences_count; i++) {
        struct flight_part *p = &f->part[i];
        if (p->s->kind != SEQ_PUSH || p->s->state != SEQ_PREFILL) continue;
        handover_push(c, now_ns, p->s, layer, p->first, p->first + p->rows_count);
    }
}

static void measure(struct node_core *c, const struct flight *f, const struct engine_event *e)
{
    uint64_t ns = e->ended_ns > e->began_ns ? e->ended_ns - e->began_ns : 0;
    c->step_ns = smooth(c->step_ns, ns);
    metric_observe(c->meter[METER_STEP], (double)ns / (double)NS_PER_S);
    uint32_t prompt_rows = 0;
    for (uint32_t i = 0; i < f->step->sequences_count; i++)
        if (f->part[i].s->state == SEQ_PREFILL) prompt_rows += f->part[i].rows_count;
    if (prompt_rows > 0 && prompt_rows >= f->step->rows_count / 2)
        c->token_ns = smooth(c->token_ns, ns / prompt_rows);
}

/* Books what the step did for one sequence; what follows from it comes later. */
static void book(struct node_core *c, struct flight_part *p, const struct token_info *result)
{
    struct sequence *s = p->s;
    if (s->state != SEQ_PREFILL && s->state != SEQ_RUNNING) return; /* ended meanwhile */
    s->kv_count = p->first + p->rows_count;
    if (s->state == SEQ_PREFILL) {
        accounts_insert(c, s);
        c->counts.prompt_tokens += p->rows_count;
    }
    accounts_slide(c, s);
    if (!p->sample) return;
    sequence_append(c, s, result);
    c->counts.tokens_generated++;
}

static void follow(struct node_core *c, uint64_t now_ns, struct flight_part *p, uint64_t ended_ns)
{
    struct sequence *s = p->s;
    if (s->state == SEQ_ENDING) {
        sequence_step(c, now_ns, s, &(struct seq_input){.event = SEQ_EV_LET_GO});
        return;
    }
    sequence_progressed(c, now_ns, s);
    if (s->state == SEQ_PREFILL && s->kv_count == s->goal) {
        s->computed_ns = ended_ns;
        sequence_step(c, now_ns, s, &(struct seq_input){.event = SEQ_EV_COMPUTED});
    } else if (s->state == SEQ_RUNNING && sequence_is_over(c, s)) {
        sequence_step(c, now_ns, s, &(struct seq_input){.event = SEQ_EV_ENDED});
    }
    bool held = s->state == SEQ_PREFILL || s->state == SEQ_RUNNING;
    if (!held || !s->preempt || s->in_flight > 0) return;
    s->preempt = room_has_older(c, s); /* who wanted the room may have ended meanwhile */
    if (s->preempt) sequence_step(c, now_ns, s, &(struct seq_input){.event = SEQ_EV_PREEMPT});
}

static void fail_part(struct node_core *c, uint64_t now_ns, struct flight_part *p, enum err e)
{
    enum seq_event event = p->s->state == SEQ_ENDING ? SEQ_EV_LET_GO : SEQ_EV_FAIL;
    if (p->s->state == SEQ_FINISHED) return; /* its tokens were complete before */
    sequence_step(c, now_ns, p->s,
                  &(struct seq_input){.event = event,
                                      .error = e,
                                      .retryable = true,
                                      .reason = e == ERR_CANCELLED ? "the engine was stopped"
                                                                   : "the device failed"});
}

static void on_done(struct node_core *c, uint64_t now_ns, struct flight *f,
                    const struct engine_event *e)
{
    struct step *step = f->step;
    f->busy = false;
    c->flights_busy--;
    pace_runs(c, now_ns);
    for (uint32_t i = 0; i < step->table_count; i++)
        if (step->table[i] != BLOCK_NONE.v && !PLANTED("no_step_fence"))
            kv_pool_drop(c->pool, (struct block_id){step->table[i]}, HOLD_STEP);
    for (uint32_t i = 0; i < step->copies_count && !PLANTED("fork_not_held"); i++)
        kv_pool_drop(c->pool, (struct block_id){step->copy[i].from}, HOLD_STEP);
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        f->part[i].s->in_flight--;
        f->part[i].s->samples_in_flight -= f->part[i].sample;
    }
    if (e->status != OK) {
        if (e->status == ERR_DEVICE) c->broken = true;
        for (uint32_t i = 0; i < step->sequences_count; i++)
            fail_part(c, now_ns, &f->part[i], e->status);
        return;
    }
    measure(c, f, e);
    for (uint32_t i = 0; i < step->sequences_count; i++)
        book(c, &f->part[i], &step->result[i]);
    tell_dirty(c);
    for (uint32_t i = 0; i < step->sequences_count; i++)
        follow(c, now_ns, &f->part[i], e->ended_ns);
}

void flights_on_event(struct node_core *c, uint64_t now_ns, const struct engine_event *e)
{
    struct flight *f = find(c, e->step_id);
    if (!f)
        c->counts.stale_messages++;
    else if (e->kind == ENGINE_LAYER)
        on_layer(c, now_ns, f, e->layer);
    else
        on_done(c, now_ns, f, e);
}

void flights_cancel_unwanted(struct node_core *c)
{
    for (uint32_t i = 0; i < c->config.steps_in_flight; i++) {
        struct flight *f = &c->flight[i];
        bool wanted = false;
        for (uint32_t k = 0; f->busy && k < f->step->sequences_count; k++) {
            enum seq_state state = f->part[k].s->state;
            wanted |= state != SEQ_ENDING && state != SEQ_FINISHED;
        }
        if (f->busy && !wanted) atomic_store(&f->step->cancel, true);
    }
}
