/* device: a node's modelled engine, KV memory and link thread. KV of a position is a hash of its token,
 * place and layer; a sampled token is a hash of the KV of all positions, read at the step's end. */
#include <string.h>

#include "common/mem.h"
#include "common/hash.h"
#include "common/plant.h"
#include "tests/sim/sim.h"

/* One link in so many breaks when D has taken the commit and P does not know it yet. */
#define ACK_LOST 50

uint64_t device_content(uint32_t token, uint32_t position, uint32_t layer)
{
    return hash_mix((struct id128){(uint64_t)token << 32 | position, layer + 1});
}

uint64_t device_fold(uint64_t sum, uint64_t content)
{
    return hash_mix((struct id128){sum, content});
}

bool device_sees(struct kv_window w, uint32_t row, uint32_t token)
{
    return token <= row && (token < w.sinks || token >= kv_window_first(w, row));
}

uint32_t device_token(uint64_t seed, uint32_t choice, uint32_t index, uint64_t kv_sum)
{
    uint64_t h = hash_mix((struct id128){seed ^ kv_sum, (uint64_t)choice << 32 | index});
    return (uint32_t)(h % SIM_VOCAB);
}

float device_score(uint64_t kv_sum, uint32_t next)
{
    return -(float)(hash_mix((struct id128){kv_sum, next + 1}) % 4096) / 64;
}

double device_hidden(uint64_t kv_sum, uint32_t i)
{
    return (double)(hash_mix((struct id128){kv_sum, i + 1000}) % 4096) - 2048;
}

static uint64_t *cell(struct sim_proc *p, uint32_t block, uint32_t layer, uint32_t position)
{
    CHECK(block < p->blocks_count);
    return &p->kv[((size_t)block * SIM_LAYERS + layer) * BLOCK_TOKENS + position % BLOCK_TOKENS];
}

uint64_t *device_block(struct sim_proc *p, uint32_t block)
{
    return cell(p, block, 0, 0);
}

void device_open(struct sim *s, struct sim_proc *p)
{
    p->blocks_count = s->blocks;
    p->kv = mem_array((size_t)s->blocks * SIM_LAYERS * BLOCK_TOKENS, sizeof *p->kv);
    p->slot = mem_array(64, sizeof *p->slot);
    CHECK(p->kv && p->slot);
    p->queue_count = p->layer = p->layers_done = 0;
    p->sick = false;
    memset(p->ticket, 0, sizeof p->ticket);
}

void device_close(struct sim *s, struct sim_proc *p)
{
    (void)s;
    mem_free(p->kv);
    mem_free(p->slot);
    p->kv = NULL;
    p->slot = NULL;
    p->queue_count = 0;
}

/* ---- the engine ---- */

static uint32_t input_token(struct sim_proc *p, const struct step *step,
                            const struct step_sequence *q, uint32_t row)
{
    uint32_t t = step->tokens[q->row_first + row];
    return t == STEP_TOKEN_LAST ? p->slot[q->slot].last : t;
}

static void write_layer(struct sim *s, struct sim_proc *p, const struct step *step, uint32_t layer)
{
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        const struct step_sequence *q = &step->sequence[i];
        for (uint32_t r = 0; r < q->rows_count; r++) {
            uint32_t at = q->position + r;
            CHECK(q->table_first + at / BLOCK_TOKENS < step->table_count);
            uint32_t block = step->table[q->table_first + at / BLOCK_TOKENS];
            if (node_core_holds(p->node, block, HOLD_STEP) == 0)
                sim_fail(s, "%s: a step writes block %u, which it does not hold", p->name, block);
            *cell(p, block, layer, at) = device_content(input_token(p, step, q, r), at, layer);
        }
    }
}

static void copy_blocks(struct sim *s, struct sim_proc *p, const struct step *step)
{
    for (uint32_t i = 0; i < step->copies_count; i++) {
        const struct step_copy *c = &step->copy[i];
        if (node_core_holds(p->node, c->from, HOLD_STEP) == 0 ||
            node_core_holds(p->node, c->to, HOLD_STEP) == 0)
            sim_fail(s, "%s: a step copies block %u to %u without holding both", p->name, c->from,
                     c->to);
        memcpy(cell(p, c->to, 0, 0), cell(p, c->from, 0, 0),
               SIM_LAYERS * BLOCK_TOKENS * sizeof *p->kv);
    }
}

static void make_slots(struct sim_proc *p, const struct step *step)
{
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        const struct step_sequence *q = &step->sequence[i];
        if (!q->setup) continue;
        p->slot[q->slot] = (struct sim_slot){q->setup->sampling.seed, q->setup->key.choice,
                                             q->setup->forwarded_count, 0};
    }
}

/* Of all that the row sees. */
static uint64_t sum_of(struct sim_proc *p, const struct step *step, const struct step_sequence *q,
                       uint32_t row)
{
    uint64_t sum = 0;
    for (uint32_t at = 0; at <= row; at++)
        for (uint32_t l = 0; l < SIM_LAYERS && device_sees(q->window, row, at); l++)
            sum =
                device_fold(sum, *cell(p, step->table[q->table_first + at / BLOCK_TOKENS], l, at));
    return sum;
}

static void keep_row(const struct step *step, const struct step_sequence *q, uint32_t k,
                     uint64_t sum)
{
    bool last = k + 1 == q->rows_count;
    uint32_t next = last ? q->next : step->tokens[q->row_first + k + 1];
    if (q->want == STEP_WANT_SCORES && next != STEP_TOKEN_NONE)
        q->scores[k] = device_score(sum, next);
    if (q->want != STEP_WANT_SUM && !(q->want == STEP_WANT_LAST && last)) return;
    for (uint32_t i = 0; i < SIM_HIDDEN; i++)
        q->sum[i] += device_hidden(sum, i);
}

/* What is wanted of rows beside a token. */
static void keep_rows(struct sim_proc *p, const struct step *step)
{
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        const struct step_sequence *q = &step->sequence[i];
        for (uint32_t r = 0; r < q->rows_count && q->want != STEP_WANT_KV; r++)
            keep_row(step, q, r, sum_of(p, step, q, q->position + r));
    }
}

static void sample(struct sim_proc *p, struct step *step)
{
    for (uint32_t i = 0; i < step->sequences_count; i++) {
        const struct step_sequence *q = &step->sequence[i];
        if (!q->sample) continue;
        uint64_t sum = sum_of(p, step, q, q->position + q->rows_count - 1);
        struct sim_slot *slot = &p->slot[q->slot];
        slot->last = device_token(slot->seed, slot->choice, slot->index++, sum);
        step->result[i] = (struct token_info){.token = slot->last};
    }
}

static void run_layer(struct sim *s, struct sim_proc *p, void *data);

static void begin_step(struct sim *s, struct sim_proc *p)
{
    p->layer = 0;
    p->began_ns = s->now_ns;
    uint64_t rows = p->queue[0]->rows_count;
    sim_at(s, s->now_ns + s->layer_ns * (s->rows_free + rows) / s->rows_free, p, run_layer, NULL);
}

static void end_step(struct sim *s, struct sim_proc *p, enum err status)
{
    struct step *step = p->queue[0];
    uint64_t began_ns = p->began_ns;
    p->queue_count--;
    memmove(p->queue, p->queue + 1, p->queue_count * sizeof *p->queue);
    if (p->queue_count > 0) begin_step(s, p);
    struct engine_event e = {.kind = ENGINE_STEP_DONE,
                             .step_id = step->id,
                             .status = status,
                             .began_ns = began_ns,
                             .ended_ns = s->now_ns};
    node_core_on_engine(p->node, s->now_ns, &e);
}

static void run_layer(struct sim *s, struct sim_proc *p, void *data)
{
    (void)data;
    struct step *step = p->queue[0];
    if (p->layer == 0) {
        copy_blocks(s, p, step);
        make_slots(p, step);
    }
    if (p->sick || step->cancel) {
        end_step(s, p, p->sick ? ERR_DEVICE : ERR_CANCELLED);
        return;
    }
    write_layer(s, p, step, p->layer);
    node_core_progress(p->node, ++p->layers_done);
    uint32_t layer = p->layer++;
    uint64_t rows = step->rows_count;
    if (p->layer < SIM_LAYERS) {
        sim_at(s, s->now_ns + s->layer_ns * (s->rows_free + rows) / s->rows_free, p, run_layer,
               NULL);
    } else {
        keep_rows(p, step);
        sample(p, step);
    }
    if (step->report_layers) {
        struct engine_event e = {.kind = ENGINE_LAYER, .step_id = step->id, .layer = layer};
        node_core_on_engine(p->node, s->now_ns, &e);
    }
    if (layer + 1 == SIM_LAYERS) end_step(s, p, OK);
}

static void submitted(struct sim *s, struct sim_proc *p, void *data)
{
    CHECK(p->queue_count < 4);
    memcpy(&p->queue[p->queue_count++], data, sizeof(struct step *));
    if (p->queue_count == 1) begin_step(s, p);
}

void device_submit(void *ctx, struct step *step)
{
    struct sim_proc *p;
    struct sim *s = sim_of(ctx, &p);
    struct step **copy = mem_new(sizeof *copy);
    CHECK(copy);
    *copy = step;
    sim_at(s, s->now_ns + 1000, p, submitted, copy);
}

/* ---- the link thread: tickets ---- */

static struct sim_ticket *ticket_find(struct sim_proc *p, struct id128 ticket)
{
    for (uint32_t i = 0; i < SIM_TICKETS_MAX; i++)
        if (p->ticket[i].used && id128_equal(p->ticket[i].ticket, ticket)) return &p->ticket[i];
    return NULL;
}

static struct sim_ticket *ticket_new(struct sim *s, struct sim_proc *p, const struct xfer_op *op)
{
    if (ticket_find(p, op->ticket)) sim_fail(s, "%s: a ticket is used twice", p->name);
    for (uint32_t i = 0; i < SIM_TICKETS_MAX; i++)
        if (!p->ticket[i].used) {
            p->ticket[i] = (struct sim_ticket){.ticket = op->ticket,
                                               .used = true,
                                               .first = op->tokens_first,
                                               .end = op->tokens_end,
                                               .deadline_ns = op->deadline_ns};
            return &p->ticket[i];
        }
    sim_fail(s, "%s: more than %d tickets", p->name, SIM_TICKETS_MAX);
}

static void tell(struct sim *s, struct sim_proc *p, void *data)
{
    node_core_on_xfer(p->node, s->now_ns, data);
}

/* The final event: the link thread has let go of the blocks from here on; the core hears of it later. */
static void ticket_end(struct sim *s, struct sim_proc *p, struct sim_ticket *t,
                       enum xfer_event_kind kind, enum err error, const struct xfer_event *commit)
{
    struct xfer_event *e = mem_new(sizeof *e);
    CHECK(e);
    if (commit) *e = *commit;
    e->kind = kind;
    e->ticket = t->ticket;
    e->error = error;
    e->link = "tcp";
    e->ended_ns = s->now_ns;
    t->used = kind == XFER_RELEASED && PLANTED("late_writer");
    sim_at(s, s->now_ns + sim_draw_ns(s, 0, 50000), p, tell, e);
}

/* ---- what travels on a link ---- */

enum frame_kind { FRAME_OPEN, FRAME_DATA, FRAME_COMMIT, FRAME_CANCEL, FRAME_DONE, FRAME_FAIL };
struct frame {
    enum frame_kind kind;
    struct id128 ticket;
    uint32_t from, from_life;
    uint32_t layer, first, count;
    struct xfer_event commit;
    uint64_t content[SIM_CONTEXT];
};

static void on_frame(struct sim *s, struct sim_proc *p, void *data);

static void frame_send(struct sim *s, struct sim_proc *from, uint32_t to, const struct frame *f)
{
    struct frame *copy = mem_new(sizeof *copy);
    CHECK(copy);
    *copy = *f;
    copy->from = from->index;
    copy->from_life = from->life;
    uint64_t when_ns = s->now_ns + s->net_ns + sim_draw_ns(s, 0, s->jitter_ns);
    uint64_t *last = &s->link_last_ns[from->index][to];
    if (when_ns <= *last) when_ns = *last + 1;
    *last = when_ns;
    sim_at(s, when_ns, &s->proc[to], on_frame, copy);
}

static void reply(struct sim *s, struct sim_proc *p, const struct frame *f, enum frame_kind kind)
{
    struct frame r = {.kind = kind, .ticket = f->ticket};
    frame_send(s, p, f->from, &r);
}

static void must_be_held(struct sim *s, struct sim_proc *p, uint32_t block, const char *doing)
{
    if (node_core_holds(p->node, block, HOLD_TRANSFER) == 0)
        sim_fail(s, "%s: the link %s block %u, which no ticket holds", p->name, doing, block);
}

static void take_data(struct sim *s, struct sim_proc *p, struct sim_ticket *t,
                      const struct frame *f)
{
    if (f->first < t->first || f->first + f->count > t->end) return;
    for (uint32_t i = 0; i < f->count; i++) {
        uint32_t at = f->first + i, block = t->blocks[(at - t->first) / BLOCK_TOKENS];
        must_be_held(s, p, block, "writes");
        *cell(p, block, f->layer, at) = f->content[i];
    }
    t->arrived[f->layer] += f->count;
    if (f->layer + 1 != SIM_LAYERS / 2 || f->first + f->count != t->end) return;
    struct xfer_event *e = mem_new(sizeof *e);
    CHECK(e);
    *e = (struct xfer_event){.kind = XFER_ARRIVING, .ticket = t->ticket};
    sim_at(s, s->now_ns, p, tell, e);
}

static void take_commit(struct sim *s, struct sim_proc *p, struct sim_ticket *t,
                        const struct frame *f)
{
    for (uint32_t l = 0; l < SIM_LAYERS; l++)
        if (t->arrived[l] != t->end - t->first)
            sim_fail(s, "%s: committed with %u of %u tokens in layer %u", p->name, t->arrived[l],
                     t->end - t->first, l);
    ticket_end(s, p, t, XFER_COMMITTED, OK, &f->commit);
    if (s->options.faults && s->now_ns < s->faults_end_ns && sim_draw(s, ACK_LOST) == 0)
        device_cut(s, &s->proc[f->from], p);
    else
        reply(s, p, f, FRAME_DONE);
}

static void on_frame(struct sim *s, struct sim_proc *p, void *data)
{
    const struct frame *f = data;
    struct sim_ticket *t = ticket_find(p, f->ticket);
    if (s->proc[f->from].life != f->from_life) return; /* the wire broke with its sender */
    if (!t || t->sender != (f->kind >= FRAME_DONE)) {
        if (f->kind == FRAME_COMMIT) reply(s, p, f, FRAME_FAIL);
        return;
    }
    switch (f->kind) {
    case FRAME_OPEN:
        t->opened = true;
        t->other = f->from;
        break;
    case FRAME_DATA: take_data(s, p, t, f); break;
    case FRAME_COMMIT: take_commit(s, p, t, f); break;
    case FRAME_CANCEL: ticket_end(s, p, t, XFER_FAILED, ERR_CANCELLED, NULL); break;
    case FRAME_DONE: ticket_end(s, p, t, XFER_DONE, OK, NULL); break;
    case FRAME_FAIL: ticket_end(s, p, t, XFER_FAILED, ERR_NOT_FOUND, NULL); break;
    }
}

/* ---- ops ---- */

struct op_copy {
    struct xfer_op op;
    uint32_t blocks[SIM_CONTEXT / BLOCK_TOKENS + 1];
    uint32_t to;
};

static void on_deadline(struct sim *s, struct sim_proc *p, void *data)
{
    struct sim_ticket *t = ticket_find(p, *(struct id128 *)data);
    if (t) ticket_end(s, p, t, XFER_FAILED, ERR_TIMEOUT, NULL);
}

static void arm(struct sim *s, struct sim_proc *p, const struct sim_ticket *t)
{
    struct id128 *copy = mem_new(sizeof *copy);
    CHECK(copy);
    *copy = t->ticket;
    sim_at(s, t->deadline_ns, p, on_deadline, copy);
}

static void op_expect(struct sim *s, struct sim_proc *p, const struct op_copy *c)
{
    struct sim_ticket *t = ticket_new(s, p, &c->op);
    CHECK(c->op.blocks_count == blocks_for_tokens(t->end) - t->first / BLOCK_TOKENS);
    memcpy(t->blocks, c->blocks, c->op.blocks_count * sizeof *t->blocks);
    t->blocks_count = c->op.blocks_count;
    arm(s, p, t);
}

static void op_open(struct sim *s, struct sim_proc *p, const struct op_copy *c)
{
    struct sim_ticket *t = ticket_new(s, p, &c->op);
    t->sender = true;
    t->other = c->to;
    arm(s, p, t);
    if (!s->proc[c->to].alive) {
        ticket_end(s, p, t, XFER_FAILED, ERR_PEER, NULL);
        return;
    }
    struct frame f = {.kind = FRAME_OPEN, .ticket = t->ticket};
    frame_send(s, p, c->to, &f);
}

static void op_push(struct sim *s, struct sim_proc *p, struct sim_ticket *t,
                    const struct op_copy *c)
{
    const struct xfer_op *op = &c->op;
    struct frame f = {.kind = FRAME_DATA,
                      .ticket = t->ticket,
                      .layer = op->layer,
                      .first = op->tokens_first,
                      .count = op->tokens_end - op->tokens_first};
    CHECK(op->tokens_first % BLOCK_TOKENS == 0 && op->tokens_end <= t->end);
    for (uint32_t i = 0; i < f.count; i++) /* read now, when it is sent, not when it was posted */
        must_be_held(s, p, c->blocks[i / BLOCK_TOKENS], "reads");
    for (uint32_t i = 0; i < f.count; i++)
        f.content[i] = *cell(p, c->blocks[i / BLOCK_TOKENS], op->layer, f.first + i);
    frame_send(s, p, t->other, &f);
}

static void on_op(struct sim *s, struct sim_proc *p, void *data)
{
    const struct op_copy *c = data;
    const struct xfer_op *op = &c->op;
    struct sim_ticket *t = ticket_find(p, op->ticket);
    struct frame f = {.kind = FRAME_CANCEL, .ticket = op->ticket};
    switch (op->kind) {
    case XFER_EXPECT: op_expect(s, p, c); break;
    case XFER_OPEN: op_open(s, p, c); break;
    case XFER_RELEASE:
        if (t) ticket_end(s, p, t, XFER_RELEASED, OK, NULL);
        break;
    case XFER_PUSH:
        if (t) op_push(s, p, t, c);
        break;
    case XFER_COMMIT:
        f.kind = FRAME_COMMIT;
        f.commit.first = op->first;
        f.commit.finish = op->finish;
        if (t) frame_send(s, p, t->other, &f);
        break;
    case XFER_CANCEL:
        if (!t) break;
        frame_send(s, p, t->other, &f);
        ticket_end(s, p, t, XFER_CANCELLED, OK, NULL);
        break;
    }
}

static uint32_t proc_of_address(const struct sim *s, const struct xfer_addresses *a)
{
    for (uint32_t i = 0; a && a->count > 0 && i < s->procs_count; i++)
        if (strcmp(a->address[0] + strlen("tcp:"), s->proc[i].name) == 0) return i;
    return 0;
}

void device_xfer(void *ctx, const struct xfer_op *op)
{
    struct sim_proc *p;
    struct sim *s = sim_of(ctx, &p);
    struct op_copy *c = mem_new(sizeof *c);
    CHECK(c && op->blocks_count <= sizeof c->blocks / sizeof c->blocks[0]);
    c->op = *op;
    if (op->blocks_count > 0) memcpy(c->blocks, op->blocks, op->blocks_count * sizeof *op->blocks);
    if (op->kind == XFER_OPEN) c->to = proc_of_address(s, op->addresses);
    sim_at(s, s->now_ns + s->op_ns, p, on_op,
           c); /* the mailbox; order is kept: equal times are FIFO */
}

void device_cut(struct sim *s, struct sim_proc *a, struct sim_proc *b)
{
    for (uint32_t i = 0; i < SIM_TICKETS_MAX; i++) {
        struct sim_ticket *t = &a->ticket[i];
        if (a->alive && t->used && (t->sender || t->opened) && t->other == b->index)
            ticket_end(s, a, t, XFER_FAILED, ERR_PEER, NULL);
    }
}

void device_peer_lost(struct sim *s, struct sim_proc *p)
{
    for (uint32_t i = 0; i < s->procs_count; i++)
        if (s->proc[i].kind == PROC_NODE && &s->proc[i] != p) device_cut(s, &s->proc[i], p);
}
