#include "tests/unit/testing.h"

#include "tests/unit/node_rig.h"

#include <string.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/prefix_hash.h"

/* ---- the modelled link ---- */

static struct rig_ticket *find_ticket(struct rig *r, struct id128 id)
{
    for (uint32_t i = 0; r && i < RIG_TICKETS_MAX; i++)
        if (r->ticket[i].live && id128_equal(r->ticket[i].id, id)) return &r->ticket[i];
    return NULL;
}

static void open_ticket(struct rig *r, const struct xfer_op *op)
{
    struct rig_ticket *t = NULL;
    assert_null(find_ticket(r, op->ticket));
    for (uint32_t i = 0; i < RIG_TICKETS_MAX && !t; i++)
        if (!r->ticket[i].live) t = &r->ticket[i];
    assert_non_null(t);
    assert_int_equal(op->tokens_first % BLOCK_TOKENS, 0);
    assert_true(op->tokens_first < op->tokens_end);
    *t = (struct rig_ticket){.id = op->ticket,
                             .live = true,
                             .tokens_first = op->tokens_first,
                             .tokens_end = op->tokens_end,
                             .deadline_ns = op->deadline_ns};
    if (op->kind != XFER_EXPECT) return;
    assert_int_equal(op->blocks_count,
                     blocks_for_tokens(op->tokens_end) - op->tokens_first / BLOCK_TOKENS);
    assert_true(op->blocks_count <= 64);
    memcpy(t->blocks, op->blocks, op->blocks_count * sizeof *t->blocks);
}

void rig_post_event(struct rig *r, const struct xfer_event *e)
{
    assert_true(r->events_count < RIG_EVENTS_MAX);
    r->event[r->events_count++] = *e;
}

/* The one final event of a ticket. */
static void close_ticket(struct rig *r, struct id128 id, const struct xfer_event *e)
{
    struct rig_ticket *t = find_ticket(r, id);
    if (!t) return;
    t->live = false;
    rig_post_event(r, e);
}

static void push(struct rig *r, const struct xfer_op *op)
{
    struct rig_ticket *mine = find_ticket(r, op->ticket), *t = find_ticket(r->other, op->ticket);
    if (!mine) return;
    assert_true(op->tokens_first >= mine->tokens_first && op->tokens_end <= mine->tokens_end);
    assert_true(op->tokens_end % BLOCK_TOKENS == 0 || op->tokens_end == mine->tokens_end);
    assert_int_equal(op->blocks_count,
                     blocks_for_tokens(op->tokens_end) - op->tokens_first / BLOCK_TOKENS);
    r->pushes_total++;
    mine->pushes_count++;
    mine->arrived[op->layer] += op->tokens_end - op->tokens_first;
    if (!t) return;
    for (uint32_t p = op->tokens_first; p < op->tokens_end; p++) {
        uint32_t to = t->blocks[(p - t->tokens_first) / BLOCK_TOKENS];
        uint32_t from = op->blocks[(p - op->tokens_first) / BLOCK_TOKENS];
        *rig_cell(r->other, op->layer, to, p) = *rig_cell(r, op->layer, from, p);
        t->arrived[op->layer]++;
    }
}

static void commit(struct rig *r, const struct xfer_op *op)
{
    struct rig_ticket *mine = find_ticket(r, op->ticket), *t = find_ticket(r->other, op->ticket);
    if (!mine) return;
    for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) /* each token of each layer once */
        assert_int_equal(mine->arrived[layer], mine->tokens_end - mine->tokens_first);
    if (r->other && !t) {
        close_ticket(r, op->ticket,
                     &(struct xfer_event){.kind = XFER_FAILED,
                                          .ticket = op->ticket,
                                          .error = ERR_NOT_FOUND,
                                          .text = "no such ticket"});
        return;
    }
    if (t)
        close_ticket(r->other, op->ticket,
                     &(struct xfer_event){.kind = XFER_COMMITTED,
                                          .ticket = op->ticket,
                                          .first = op->first,
                                          .finish = op->finish});
    struct xfer_event done = {.kind = XFER_DONE, .ticket = op->ticket, .link = "shm", .bytes = 64};
    done.pushes_count = mine->pushes_count;
    for (uint32_t i = 0; i < done.pushes_count; i++) /* of the last ones */
        done.sent_us[i % XFER_PUSHES_TOLD] = i;
    close_ticket(r, op->ticket, &done);
}

bool rig_link(struct rig *r)
{
    if (r->ops_count == 0) return false;
    struct xfer_op op = r->op[0];
    memmove(&r->op[0], &r->op[1], --r->ops_count * sizeof r->op[0]);
    switch (op.kind) {
    case XFER_EXPECT: break; /* see on_xfer */
    case XFER_OPEN: open_ticket(r, &op); break;
    case XFER_PUSH: push(r, &op); break;
    case XFER_COMMIT: commit(r, &op); break;
    case XFER_RELEASE:
        close_ticket(r, op.ticket, &(struct xfer_event){XFER_RELEASED, op.ticket, 0});
        break;
    case XFER_CANCEL:
        if (r->other)
            close_ticket(r->other, op.ticket,
                         &(struct xfer_event){.kind = XFER_FAILED,
                                              .ticket = op.ticket,
                                              .error = ERR_CANCELLED,
                                              .text = "the sender cancelled"});
        close_ticket(r, op.ticket, &(struct xfer_event){XFER_CANCELLED, op.ticket, 0});
        break;
    }
    return true;
}

bool rig_event(struct rig *r)
{
    if (r->events_count == 0) return false;
    struct xfer_event e = r->event[0];
    memmove(&r->event[0], &r->event[1], --r->events_count * sizeof r->event[0]);
    node_core_on_xfer(r->core, r->now_ns, &e);
    return true;
}

/* ---- the modelled tier ---- */

static uint64_t hash_of_block(const struct rig_tier_op *o, uint32_t i)
{
    uint64_t hashes[RIG_STREAM_MAX / BLOCK_TOKENS];
    prefix_hash_chain(o->op.salt, o->tokens, o->op.first_block + i + 1, hashes);
    return hashes[o->op.first_block + i];
}

/* The cells of block i, or NULL. */
static struct rig_kept *find_kept(struct rig *r, const struct rig_tier_op *o, uint32_t i)
{
    uint32_t tokens_count = (o->op.first_block + i + 1) * BLOCK_TOKENS;
    uint64_t in[2] = {o->op.salt, hash64(o->tokens, tokens_count * sizeof *o->tokens)};
    uint64_t key = hash64(in, sizeof in);
    for (uint32_t k = 0; k < r->kept_count; k++)
        if (r->kept[k].key == key) return &r->kept[k];
    if (o->op.kind == KV_TIER_LOAD) return NULL;
    assert_true(r->kept_count < RIG_KEPT_MAX);
    r->kept[r->kept_count].key = key;
    r->kept[r->kept_count].hash = hash_of_block(o, i);
    return &r->kept[r->kept_count++];
}

static void copy_kept(struct rig *r, const struct rig_tier_op *o, uint32_t place,
                      struct rig_kept *kept)
{
    for (uint32_t layer = 0; layer < RIG_LAYERS; layer++) {
        uint64_t *cells = rig_cell(r, layer, o->blocks[place], 0);
        bool load = o->op.kind == KV_TIER_LOAD;
        memcpy(load ? cells : kept->cell[layer], load ? kept->cell[layer] : cells,
               sizeof kept->cell[layer]);
    }
}

/* Whether the tier has what the first n blocks' window wants; then up to `most` of that are copied behind those
 * that are filled. *all: how many it wants. */
static bool load_window(struct rig *r, struct rig_tier_op *o, uint32_t n, uint32_t most,
                        uint32_t *count, uint32_t *all)
{
    uint32_t sinks = o->op.window.sinks / BLOCK_TOKENS, gone = kv_tier_op_gone(o->op.window, n);
    for (uint32_t i = 0; i < n; i++)
        if ((i < sinks || i >= gone) && !find_kept(r, o, i)) return false;
    *all = 0;
    *count = o->op.filled;
    for (uint32_t i = 0; i < n; i++) {
        if (i >= sinks && i < gone) continue;
        if ((*all)++ < o->op.filled || *count - o->op.filled == most) continue;
        copy_kept(r, o, (*count)++, find_kept(r, o, i));
    }
    return true;
}

/* Two at a time. */
static void list_some(struct rig *r, const struct kv_tier_op *op)
{
    struct kv_tier_news news[2];
    struct kv_tier_event e = {
        .id = op->id, .kind = op->kind, .place = op->place, .news = news, .ended_ns = r->now_ns};
    for (; e.place < r->kept_count && e.news_count < 2; e.place++)
        news[e.news_count++] = (struct kv_tier_news){r->kept[e.place].hash, KV_TIER_DISK, false};
    if (e.place == r->kept_count) e.place = KV_TIER_PLACE_END;
    node_core_on_tier(r->core, r->now_ns, &e);
}

bool rig_tier_some(struct rig *r, uint32_t count)
{
    if (r->tier_ops_count == 0) return false;
    static struct rig_tier_op o;
    o = r->tier_op[0];
    struct kv_tier_news news[64];
    struct kv_tier_event e = {
        .id = o.op.id, .kind = o.op.kind, .news = news, .ended_ns = r->now_ns};
    memmove(&r->tier_op[0], &r->tier_op[1], --r->tier_ops_count * sizeof r->tier_op[0]);
    if (o.op.kind == KV_TIER_LIST) {
        list_some(r, &o.op);
        return true;
    }
    for (uint32_t i = 0; i < o.op.count; i++)
        assert_true(node_core_holds(r->core, o.blocks[i], HOLD_TRANSFER) > 0);
    if (o.op.window.tokens > 0) {
        uint32_t known = o.op.first_block, n = count > 0 ? o.op.end_block : 0, all = 0;
        o.op.first_block = 0; /* what find_kept counts from */
        while (n > known &&
               !load_window(r, &o, n, r->tier_more ? count : UINT32_MAX, &e.count, &all))
            n--;
        e.end_block = n > known ? n : 0;
        e.more = r->tier_more && e.count < all;
        count = 0;
    }
    for (uint32_t n = o.op.count < count ? o.op.count : count; e.count < n; e.count++) {
        struct rig_kept *kept = find_kept(r, &o, e.count);
        if (!kept) break;
        if (o.op.kind == KV_TIER_STORE)
            news[e.news_count++] = (struct kv_tier_news){kept->hash, KV_TIER_DISK, false};
        copy_kept(r, &o, e.count, kept);
    }
    e.from[0] = e.count - o.op.filled;
    e.more |=
        r->tier_more && o.op.kind == KV_TIER_LOAD && o.op.window.tokens == 0 && e.count == count;
    node_core_on_tier(r->core, r->now_ns, &e);
    return true;
}

bool rig_tier(struct rig *r)
{
    return rig_tier_some(r, UINT32_MAX);
}

static enum err on_tier(void *ctx, const struct kv_tier_op *op)
{
    struct rig *r = ctx;
    if (r->tier_refuses || r->tier_ops_count == RIG_TIER_OPS_MAX) return ERR_FULL;
    if (op->kind == KV_TIER_LIST && !r->tier_lists) return ERR_FULL;
    struct rig_tier_op *o = &r->tier_op[r->tier_ops_count++];
    uint32_t end = op->window.tokens > 0 ? op->end_block : op->first_block + op->count;
    uint32_t tokens_count = end * BLOCK_TOKENS;
    assert_true((op->count > 0 || op->kind == KV_TIER_LIST) && op->count <= 64 &&
                tokens_count <= RIG_STREAM_MAX);
    o->op = *op;
    if (op->count > 0) {
        memcpy(o->blocks, op->blocks, op->count * sizeof *op->blocks);
        memcpy(o->tokens, op->tokens, tokens_count * sizeof *op->tokens);
    }
    r->tier_ops_total++;
    return OK;
}

/* ---- what the core calls ---- */

static void on_send(void *ctx, struct peer peer, const struct msg *m)
{
    struct rig *r = ctx;
    assert_true(r->said_count < RIG_SAID_MAX);
    struct said *s = &r->said[r->said_count++];
    s->peer = peer;
    assert_int_equal(msg_copy(m, &r->arena, &s->m), OK);
}

static void on_wake_at(void *ctx, uint64_t when_ns)
{
    ((struct rig *)ctx)->wake_ns = when_ns;
}

static void on_submit(void *ctx, struct step *step)
{
    struct rig *r = ctx;
    assert_true(r->steps_count < r->config.steps_in_flight);
    assert_true(step->sequences_count <= r->config.limits.sequences_max);
    assert_true(step->rows_count <= r->config.limits.rows_max);
    assert_true(step->table_count <= r->config.limits.table_max);
    r->step[r->steps_count++] = step;
}

static void on_xfer(void *ctx, const struct xfer_op *op)
{
    struct rig *r = ctx;
    r->ops_total++;
    if (op->kind == XFER_EXPECT) { /* at once: nobody can push before RESERVED is out */
        open_ticket(r, op);
        return;
    }
    assert_true(r->ops_count < RIG_OPS_MAX);
    r->op[r->ops_count] = *op;
    r->op[r->ops_count].blocks =
        arena_copy(&r->arena, op->blocks, op->blocks_count * sizeof *op->blocks);
    r->ops_count++;
}

static void on_lifeline_dial(void *ctx, struct peer peer, const char *address, struct id128 key)
{
    (void)peer, (void)address, (void)key;
    ((struct rig *)ctx)->lifelines_dialled++;
}

static void on_lifeline_drop(void *ctx, struct peer peer)
{
    (void)peer;
    ((struct rig *)ctx)->lifelines_dropped++;
}

static void on_left(void *ctx)
{
    ((struct rig *)ctx)->left = true;
}

/* ---- the bench ---- */

void rig_new(struct rig *r, const struct rig_options *o)
{
    memset(r, 0, sizeof *r);
    r->now_ns = NS_PER_S;
    r->wake_ns = TIME_NEVER;
    r->life = RIG_NODE_LIFE;
    r->tier_lists = o->tier_lists;
    uint32_t sequences = o->sequences_max ? o->sequences_max : 8;
    r->config = (struct node_config){
        .role = o->role,
        .hello = {.role = o->role,
                  .name = "n0",
                  .host = "h",
                  .device = "rig",
                  .model = "m",
                  .geometry = {.layers_count = RIG_LAYERS, .block_tokens = BLOCK_TOKENS}},
        .incarnation = r->life,
        .ticket_seed = 5 + o->role,
        .session = SESSION_LIMITS_DEFAULT,
        .routers_count = o->routers_count ? o->routers_count : 1,
        .blocks_count = o->blocks_count ? o->blocks_count : 64,
        .slots_count = o->slots_count ? o->slots_count : RIG_SLOTS,
        .context_max = o->context_max ? o->context_max : 400,
        .vocab_count = RIG_VOCAB,
        .hidden_count = RIG_HIDDEN,
        .limits = {sequences + 8, sequences + 512, 1024},
        .steps_in_flight = o->steps_in_flight ? o->steps_in_flight : 1,
        .chunk_tokens = o->chunk_tokens ? o->chunk_tokens : 32,
        .sequences_max = sequences,
        .reserve_timeout_ns = o->reserve_timeout_ns ? o->reserve_timeout_ns : 30 * NS_PER_S,
        .prefix_wait_ns = o->prefix_wait_ns ? o->prefix_wait_ns : 2 * NS_PER_S,
        .prefix_cache = !o->no_prefix_cache,
        .evict = o->evict,
        .tiers = o->tiers,
        .tier_deadline_ns = o->tier_deadline_ns ? o->tier_deadline_ns : 20 * NS_PER_MS,
        .link = "",
        .tombstones_max = 256,
    };
    r->config.session.lifeline_ns = 0;
    r->config.hello.kv_window = rig_model_window = o->window;
    r->config.kv_windows = true;
    size_t cells = (size_t)RIG_LAYERS * r->config.blocks_count * BLOCK_TOKENS;
    r->kv = mem_array(cells, sizeof *r->kv);
    assert_non_null(r->kv);
    memset(r->kv, 0xee, cells * sizeof *r->kv);
    struct node_out out = {r,       on_send,          on_wake_at,       on_submit,
                           on_xfer, on_lifeline_dial, on_lifeline_drop, on_left,
                           on_tier, o->block};
    assert_true(r->config.routers_count <= RIG_ROUTERS_MAX);
    assert_int_equal(node_core_new(&r->core, &r->config, &out), OK);
    node_core_start(r->core, r->now_ns);
}

void rig_free(struct rig *r)
{
    rig_run(r);
    for (uint32_t i = 0; i < r->config.routers_count; i++)
        rig_lose(r, i);
    for (uint32_t i = 0; i < RIG_TICKETS_MAX; i++)
        close_ticket(r, r->ticket[i].id,
                     &(struct xfer_event){XFER_FAILED, r->ticket[i].id, ERR_CANCELLED, "stopped"});
    rig_run(r);
    struct node_counts n = rig_counts(r);
    assert_int_equal(n.jobs_live, 0);
    assert_int_equal(n.blocks.free + n.blocks.cached, n.blocks.total);
    node_core_free(r->core);
    mem_free(r->kv);
    arena_fini(&r->arena);
}

void rig_open(struct rig *r, const struct rig_options *o)
{
    rig_new(r, o);
    rig_join(r, 0);
}

void rig_open_pair(struct rig *p, struct rig *d, const struct rig_options *prefill_node,
                   const struct rig_options *decode_node)
{
    rig_open(p, prefill_node);
    rig_open(d, decode_node);
    p->other = d;
}

void rig_free_pair(struct rig *p, struct rig *d)
{
    rig_free(p);
    rig_free(d);
}

void rig_say(struct rig *r, struct msg m)
{
    rig_tell(r, 0, &m);
}

void rig_tell(struct rig *r, uint32_t router, const struct msg *m)
{
    struct msg copy = *m;
    uint32_t remaining_ms = m->envelope.remaining_ms;
    uint64_t from = RIG_ROUTER_LIFE + router + r->routers_replaced;
    copy.envelope = (struct envelope){r->epoch[router], from, r->life, remaining_ms};
    node_core_on_message(r->core, r->now_ns, (struct peer){router + 1}, &copy);
    node_core_audit(r->core);
}

void rig_lose(struct rig *r, uint32_t router)
{
    node_core_on_lifeline(r->core, r->now_ns, (struct peer){router + 1}, false);
    node_core_audit(r->core);
}

void rig_reborn(struct rig *r)
{
    node_core_reborn(r->core, r->now_ns, ++r->life);
    node_core_audit(r->core);
}

void rig_join(struct rig *r, uint32_t router)
{
    r->epoch[router]++;
    rig_tell(
        r, router,
        &(struct msg){.kind = MSG_WELCOME, .welcome = {.name = "r", .lifeline = "127.0.0.1:1"}});
}

const struct msg *rig_said(const struct rig *r, enum msg_kind kind)
{
    for (uint32_t i = r->said_count; i-- > 0;)
        if (r->said[i].m.kind == kind) return &r->said[i].m;
    return NULL;
}

uint32_t rig_said_count(const struct rig *r, enum msg_kind kind)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->said_count; i++)
        n += r->said[i].m.kind == kind;
    return n;
}

uint32_t rig_stream(const struct rig *r, struct job_key key, uint32_t *tokens)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->said_count; i++) {
        const struct msg *m = &r->said[i].m;
        if (m->kind != MSG_TOKENS) continue;
        for (uint32_t k = 0; k < m->tokens.runs_count; k++) {
            const struct token_run *run = &m->tokens.runs[k];
            if (!job_key_equal(run->key, key)) continue;
            assert_true(run->index <= n);
            for (uint32_t j = 0; j < run->tokens_count; j++)
                tokens[run->index + j] = run->tokens[j].token;
            if (run->index + run->tokens_count > n) n = run->index + run->tokens_count;
        }
    }
    return n;
}

void rig_forget(struct rig *r)
{
    r->said_count = 0;
    if (r->ops_count == 0 && r->events_count == 0) arena_reset(&r->arena);
}

void rig_run(struct rig *r)
{
    bool moved = true;
    for (uint32_t n = 0; moved; n++) {
        assert_true(n < 100000);
        moved = false;
        for (struct rig *x = r; x; x = x == r ? r->other : NULL) {
            moved |= rig_link(x) || rig_event(x) || rig_step(x);
            moved |= rig_tier(x);
            node_core_audit(x->core);
        }
    }
}

void rig_advance(struct rig *r, uint64_t ns)
{
    uint64_t end_ns = r->now_ns + ns;
    while (r->wake_ns <= end_ns) {
        r->now_ns = r->wake_ns > r->now_ns ? r->wake_ns : r->now_ns + 1;
        r->wake_ns = TIME_NEVER;
        node_core_on_timer(r->core, r->now_ns);
        node_core_audit(r->core);
    }
    r->now_ns = end_ns;
    for (uint32_t i = 0; i < RIG_TICKETS_MAX; i++)
        if (r->ticket[i].live && r->ticket[i].deadline_ns <= end_ns)
            close_ticket(r, r->ticket[i].id,
                         &(struct xfer_event){.kind = XFER_FAILED,
                                              .ticket = r->ticket[i].id,
                                              .error = ERR_TIMEOUT,
                                              .text = "nothing came by the deadline"});
}

/* ---- what tests say ---- */

struct node_counts rig_counts(const struct rig *r)
{
    struct node_counts n;
    node_core_counts(r->core, &n);
    return n;
}

void rig_reserve(struct rig *r, const struct job *job, bool local)
{
    rig_tell(r, 0, &(struct msg){.kind = MSG_RESERVE, .reserve = {*job, local}});
}

struct msg rig_prefill_msg(const struct job *job, struct id128 ticket, uint32_t held_tokens)
{
    static const char *const addresses[] = {"shm:d"};
    return (struct msg){.kind = MSG_PREFILL,
                        .prefill = {.job = *job,
                                    .ticket = ticket,
                                    .held_tokens = held_tokens,
                                    .addresses = addresses,
                                    .addresses_count = id128_is_none(ticket) ? 0 : 1}};
}

void rig_prefill(struct rig *r, const struct job *job, struct id128 ticket, uint32_t held_tokens)
{
    struct msg m = rig_prefill_msg(job, ticket, held_tokens);
    rig_tell(r, 0, &m);
}

void rig_acknowledge(struct rig *r, struct job_key key)
{
    rig_tell(r, 0, &(struct msg){.kind = MSG_FINISHED_ACK, .finished_ack = {key}});
}

void rig_cancel(struct rig *r, struct job_key key)
{
    rig_tell(r, 0, &(struct msg){.kind = MSG_CANCEL, .cancel = {key, "told to"}});
}

void rig_assert_failed(const struct rig *r, enum err error, bool retryable)
{
    const struct msg *m = rig_said(r, MSG_FAILED);
    assert_non_null(m);
    assert_int_equal(m->failed.error, error);
    assert_int_equal(m->failed.retryable, retryable);
    assert_true(strlen(m->failed.reason) > 0);
}

void rig_end_ticket(struct rig *r, const struct xfer_event *e)
{
    for (uint32_t i = 0; i < RIG_TICKETS_MAX; i++) {
        if (!r->ticket[i].live) continue;
        struct xfer_event copy = *e;
        copy.ticket = r->ticket[i].id;
        close_ticket(r, copy.ticket, &copy);
        return;
    }
    fail_msg("no ticket is live");
}
