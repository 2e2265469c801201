/* Tiers as the core sees them: what a waiting prompt lacks is loaded INTO the prefix cache, where its usual
 * opening finds it, and what the cache learns is stored behind the scenes.
 *
 *     a prompt is to be opened            LOAD: into new blocks, as many as its whole blocks want, held with
 *                                         HOLD_TRANSFER like the cached ones before them. The prompt waits
 *                                         until the event or its deadline; others may start.
 *                                         With a window: as many as that and the sinks want, beside those
 *                                         that the cache has; the op goes on, as long as somebody waits,
 *                                         until all have come. Who began before that computes up to what has
 *                                         come, and goes on behind it (tier_skip).
 *     the event                           the leading blocks that were loaded become known to the cache, the
 *                                         rest is free again. Too late is fine: it is for the next one.
 *                                         Those who waited for it may wait longer by what computing these
 *                                         blocks would have taken, so that no prompt is ever later than
 *                                         without tiers by more than the deadline; and if there is more, and
 *                                         some of that time is left, by another LOAD.
 *     blocks became known to the cache    STORE: those that the tiers were not given yet, in the prompt's
 *                                         order, with HOLD_TRANSFER until the event.
 *
 * A LOAD is asked for only when the prompt could start at once but for it, and takes no block that the prompt
 * would not take for itself a moment later; what those before it in the queue want is left to them. So it
 * evicts nothing that would stay without it. STOREs hold at most an eighth of the pool; what does not fit
 * goes when one of them ends, if the cache still has it.
 *
 * A prompt of which the cache has all, and the tiers were given all, is nothing to load and to store, however often
 * it is asked; so that the tiers do not take it for forgotten, one in a while is stored again by a piece. They
 * have it, or get it back. */
#include "node/state.h"

#include <string.h>

#include "common/mem.h"
#include "common/plant.h"

enum err tiers_new(struct node_core *c)
{
    if (!c->config.tiers) return OK;
    if (!c->cache)
        return err_set(ERR_INVALID, "tiers hold what the prefix cache knows, and that is off");
    c->tier_op = mem_array(NODE_LOADS_MAX + NODE_STORES_MAX, sizeof *c->tier_op);
    c->rest_tokens = mem_array(c->config.context_max + BLOCK_TOKENS, sizeof *c->rest_tokens);
    c->rest_blocks = mem_array(blocks_for_tokens(c->config.context_max), sizeof *c->rest_blocks);
    return c->tier_op && c->rest_tokens && c->rest_blocks ? OK : ERR_MEMORY;
}

void tiers_free(struct node_core *c)
{
    for (uint32_t i = 0; c->tier_op && i < NODE_LOADS_MAX + NODE_STORES_MAX; i++)
        arena_fini(&c->tier_op[i].arena);
    mem_free(c->tier_op);
    mem_free(c->rest_tokens);
    mem_free(c->rest_blocks);
}

/* LOADs have the first ones. */
static struct tier_op *find_unused(struct node_core *c, enum kv_tier_op_kind kind)
{
    uint32_t first = kind == KV_TIER_LOAD ? 0 : NODE_LOADS_MAX;
    uint32_t end = kind == KV_TIER_LOAD ? NODE_LOADS_MAX : NODE_LOADS_MAX + NODE_STORES_MAX;
    for (uint32_t i = first; i < end; i++)
        if (c->tier_op[i].id == 0) return &c->tier_op[i];
    return NULL;
}

static void op_end(struct node_core *c, struct tier_op *op)
{
    for (uint32_t i = 0; i < op->held_count; i++)
        kv_pool_drop(c->pool, op->blocks[i], HOLD_TRANSFER);
    if (op->kind == KV_TIER_STORE) c->storing_blocks -= op->count;
    op->id = op->held_count = op->count = op->rest_count = op->filled = 0;
    op->window = (struct kv_window){0};
    if (op->arena.held_bytes > NODE_ARENA_KEPT)
        arena_fini(&op->arena);
    else
        arena_reset(&op->arena);
}

/* `tokens` from the prompt's start; the op is over when this says no. posted_ns: of a LOAD, as if posted then. */
static bool op_post(struct node_core *c, uint64_t posted_ns, struct tier_op *op,
                    const uint32_t *tokens, uint32_t first_block)
{
    uint64_t token_ns = c->token_ns < UINT32_MAX ? c->token_ns : UINT32_MAX;
    struct kv_tier_op o = {.kind = op->kind,
                           .id = ++c->tier_ops_made,
                           .salt = op->salt,
                           .tokens = tokens,
                           .first_block = first_block,
                           .blocks = c->op_blocks,
                           .count = op->count,
                           .token_ns = (uint32_t)token_ns,
                           .posted_ns = posted_ns};
    if (op->kind == KV_TIER_STORE) o.of_use = op->window;
    if (op->kind == KV_TIER_LOAD && op->window.tokens > 0) {
        o.window = op->window;
        o.end_block = op->end;
        o.filled = op->filled;
    }
    for (uint32_t i = 0; i < op->count; i++)
        c->op_blocks[i] = op->blocks[op->held_count - op->count + i].v;
    op->id = o.id;
    if (c->out.tier(c->out.ctx, &o) == OK) return true;
    op_end(c, op);
    return false;
}

/* ---- LOAD ---- */

/* Blocks that those before `s` in the queue still want; what is loaded for them they have already. */
static uint32_t promised(const struct node_core *c, const struct sequence *s)
{
    uint32_t n = 0;
    for (const struct list_link *l = c->queue.next; l != &c->queue; l = l->next) {
        const struct sequence *t = list_member(l, const struct sequence, place);
        struct plan_claim mine = seq_claim(s), theirs = seq_claim(t);
        if (t == s || !plan_before(&theirs, &mine)) break;
        uint32_t need = accounts_need(t), cached = t->window.tokens ? 0 : accounts_peek(c, t);
        if (t->state == SEQ_WAITING && need > cached) n += need - cached;
    }
    return n;
}

/* The same with a window. `cached`: blocks of the prompt that the cache has. */
static bool load_take_window(struct node_core *c, struct sequence *s, struct tier_op *op,
                             uint32_t *cached)
{
    struct kv_prompt prompt = accounts_prompt(s, seq_total(s));
    *cached = kv_prefix_hold(c->cache, &prompt, HOLD_TRANSFER, op->blocks, op->end);
    for (uint32_t i = 0; i < *cached; i++)
        if (op->blocks[i].v != BLOCK_NONE.v) op->blocks[op->held_count++] = op->blocks[i];
    uint32_t places = kv_tier_op_places(op->window, op->end), need = accounts_need(s);
    uint32_t wanted = need > places + op->held_count ? need - op->held_count : places;
    if (*cached == op->end || wanted + promised(c, s) > accounts_available(c)) return false;
    op->count = places;
    accounts_take(c, HOLD_TRANSFER, op->blocks + op->held_count, places);
    op->held_count += places;
    return true;
}

/* What the cache has of it is held, and as many blocks for the rest; false: there is no room. */
static bool load_take(struct node_core *c, struct sequence *s, struct tier_op *op, uint32_t *cached)
{
    uint32_t whole = op->end;
    if (op->window.tokens > 0) return load_take_window(c, s, op, cached);
    struct kv_prompt prompt = {op->salt, s->tokens, seq_total(s)};
    op->held_count = kv_prefix_hold(c->cache, &prompt, HOLD_TRANSFER, op->blocks, whole);
    uint32_t wanted = accounts_need(s) - op->held_count + promised(c, s);
    *cached = op->held_count;
    if (op->held_count == whole || wanted > accounts_available(c)) return false;
    op->count = whole - op->held_count;
    accounts_take(c, HOLD_TRANSFER, op->blocks + op->held_count, op->count);
    op->held_count = whole;
    return true;
}

/* A LOAD of what the cache lacks of this prompt, if there is room for it and anything is lacking. */
static bool load_ask(struct node_core *c, uint64_t deadline_ns, struct sequence *s)
{
    uint32_t whole = (seq_total(s) - 1) / BLOCK_TOKENS; /* the last token is computed */
    uint32_t cached, places = kv_tier_op_places(s->window, whole);
    struct tier_op *op = find_unused(c, KV_TIER_LOAD);
    if (!op || accounts_peek(c, s) == whole) return false;
    op->kind = KV_TIER_LOAD;
    op->salt = s->job.tenant_salt;
    op->window = s->window;
    op->end = whole;
    op->owner = (struct kv_owner){s->job.tenant, s->job.tenant_weight};
    op->tokens =
        arena_copy(&op->arena, s->tokens, (size_t)whole * BLOCK_TOKENS * sizeof *s->tokens);
    op->blocks = arena_take(&op->arena, (whole + places) * sizeof *op->blocks);
    op->deadline_ns = deadline_ns;
    if (!op->tokens || !op->blocks || !load_take(c, s, op, &cached)) {
        op_end(c, op);
        return false;
    }
    if (PLANTED("tier_early") && op->window.tokens == 0)
        kv_prefix_insert(c->cache, op->owner,
                         &(struct kv_prompt){op->salt, op->tokens, whole * BLOCK_TOKENS},
                         HOLD_TRANSFER, op->blocks);
    s->tier_asked = true;
    uint64_t posted_ns =
        deadline_ns - c->config.tier_deadline_ns; /* a LOAD has so long from here */
    if (!op_post(c, posted_ns, op, op->tokens, cached)) return false;
    c->counts.tier_loads++;
    if (PLANTED("tier_unheld"))
        while (op->held_count > 0)
            kv_pool_drop(c->pool, op->blocks[--op->held_count], HOLD_TRANSFER);
    return true;
}

/* How many blocks of what this LOAD is to bring, those before them included, are the prompt's too. */
static uint32_t shared_with(const struct tier_op *op, const struct sequence *s)
{
    uint32_t whole = (seq_total(s) - 1) / BLOCK_TOKENS, n = 0;
    uint32_t all = op->window.tokens > 0 ? op->end : op->held_count;
    uint32_t end = all < whole ? all : whole;
    if (op->id == 0 || op->salt != s->job.tenant_salt) return 0;
    while (n < end * BLOCK_TOKENS && op->tokens[n] == s->tokens[n])
        n++;
    if (op->window.tokens > 0 && n < all * BLOCK_TOKENS) return 0; /* the end is what it brings */
    return n / BLOCK_TOKENS;
}

/* Whether a LOAD brings more of this prompt than the cache has; perhaps it was asked for by another one. */
static bool load_runs(const struct node_core *c, const struct sequence *s)
{
    uint32_t cached = UINT32_MAX;
    for (uint32_t i = 0; i < NODE_LOADS_MAX; i++) {
        uint32_t shared = shared_with(&c->tier_op[i], s);
        if (shared > 0 && cached == UINT32_MAX) cached = accounts_peek(c, s);
        if (shared > 0 && shared > cached) return true;
    }
    return false;
}

bool tier_is_loading(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    uint64_t deadline_ns = s->tier_deadline_ns;
    if (!c->tier_op || (deadline_ns > 0 && now_ns >= deadline_ns)) return false;
    if (deadline_ns == 0) deadline_ns = now_ns + c->config.tier_deadline_ns;
    if (!load_runs(c, s) && (s->tier_asked || !load_ask(c, deadline_ns, s))) return false;
    s->tier_deadline_ns = deadline_ns;
    return true;
}

/* Of the prompts that wait for this LOAD, of which blocks [first, end) have come. */
static void wait_longer(struct node_core *c, uint64_t now_ns, const struct tier_op *op,
                        uint32_t first, uint32_t end, bool more)
{
    for (struct list_link *l = c->queue.next; l != &c->queue; l = l->next) {
        struct sequence *s = list_member(l, struct sequence, place);
        if (s->state != SEQ_WAITING || now_ns >= s->tier_deadline_ns) continue;
        uint32_t shared = shared_with(op, s), came = shared < end ? shared : end;
        if (came <= first) continue;
        s->tier_deadline_ns += (uint64_t)(came - first) * BLOCK_TOKENS * c->token_ns;
        uint64_t left_ns = s->tier_deadline_ns - now_ns;
        if (more && left_ns >= c->config.tier_deadline_ns / NODE_LOAD_PART) s->tier_asked = false;
    }
}

/* What has come of a window and the sinks is known, behind hollow entries. */
static void know_window(struct node_core *c, struct tier_op *op, struct block_id *filled)
{
    uint32_t sinks = op->window.sinks / BLOCK_TOKENS, n = 0, k = 0;
    uint32_t gone = kv_tier_op_gone(op->window, op->end);
    uint32_t filled_count = PLANTED("tier_part") ? op->count : op->filled;
    for (uint32_t i = 0; i < op->end && k < filled_count; i++) {
        c->rest_blocks[i] = i < sinks || i >= gone ? filled[k++] : BLOCK_NONE;
        n = i + 1;
    }
    struct kv_prompt prompt = {op->salt, op->tokens, n * BLOCK_TOKENS, op->window};
    kv_prefix_insert(c->cache, op->owner, &prompt, HOLD_TRANSFER, c->rest_blocks);
    for (uint32_t i = n; i-- > 0;)
        if (c->rest_blocks[i].v != BLOCK_NONE.v) filled[--k] = c->rest_blocks[i]; /* or its twin */
}

/* Those of whose prompts so many blocks have come skip them when they are there, and wait longer for the rest by what
 * computing them would have taken. Returns whether one has time for more. */
static bool window_buys(struct node_core *c, uint64_t now_ns, struct tier_op *op, uint32_t came)
{
    uint32_t sinks = op->window.sinks / BLOCK_TOKENS, gone = kv_tier_op_gone(op->window, op->end);
    bool buys = false;
    for (struct list_link *l = c->queue.next; l != &c->queue; l = l->next) {
        struct sequence *s = list_member(l, struct sequence, place);
        if (shared_with(op, s) == 0) continue;
        s->skip_from = gone * BLOCK_TOKENS;
        if (op->filled > sinks) s->skip_to = (gone + op->filled - sinks) * BLOCK_TOKENS;
        if (s->state != SEQ_WAITING || now_ns >= s->tier_deadline_ns) continue;
        s->tier_deadline_ns += (uint64_t)came * BLOCK_TOKENS * c->token_ns;
        uint64_t left_ns = s->tier_deadline_ns - now_ns;
        if (left_ns < c->config.tier_deadline_ns / NODE_LOAD_PART) continue;
        if (!buys || s->tier_deadline_ns > op->deadline_ns) op->deadline_ns = s->tier_deadline_ns;
        buys = true;
    }
    return buys;
}

/* Of a LOAD with a window; returns whether it goes on. */
static bool window_came(struct node_core *c, uint64_t now_ns, struct tier_op *op,
                        const struct kv_tier_event *e)
{
    uint32_t first = op->held_count - op->count, before = op->filled;
    uint32_t came = e->count > before && e->count <= op->count ? e->count - before : 0;
    if (came == 0 || e->end_block == 0) return false;
    op->filled = e->count;
    op->end = e->end_block;
    know_window(c, op, op->blocks + first);
    for (uint32_t i = first + before; i < first + op->filled && e->from[0] == came; i++)
        kv_pool_mark(c->pool, op->blocks[i], true);
    c->counts.tier_loaded_tokens += came * BLOCK_TOKENS;
    c->counts.tier_late += now_ns >= op->deadline_ns;
    return window_buys(c, now_ns, op, came) && e->more;
}

static void prefix_came(struct node_core *c, uint64_t now_ns, struct tier_op *op,
                        const struct kv_tier_event *e)
{
    uint32_t first = op->held_count - op->count, n = e->count < op->count ? e->count : op->count;
    struct kv_prompt prompt = {op->salt, op->tokens, (first + n) * BLOCK_TOKENS};
    kv_prefix_insert(c->cache, op->owner, &prompt, HOLD_TRANSFER, op->blocks);
    if (n > 0) wait_longer(c, now_ns, op, first, first + n, e->more);
    /* From a slower tier: it is offered to the faster ones when the prompt's next blocks are. */
    for (uint32_t i = first; i < first + n && e->from[0] == e->count; i++)
        kv_pool_mark(c->pool, op->blocks[i], true);
    c->counts.tier_loaded_tokens += n * BLOCK_TOKENS;
    c->counts.tier_late += now_ns >= op->deadline_ns;
}

static void loaded(struct node_core *c, uint64_t now_ns, struct tier_op *op,
                   const struct kv_tier_event *e)
{
    if (PLANTED("tier_unheld")) {
        op_end(c, op);
        return;
    }
    if (op->window.tokens == 0) {
        prefix_came(c, now_ns, op, e);
    } else if (window_came(c, now_ns, op, e)) {
        op_post(c, op->deadline_ns - c->config.tier_deadline_ns, op, op->tokens, 0);
        return;
    }
    op_end(c, op);
}

void tier_skip(struct node_core *c, uint64_t now_ns, struct sequence *s)
{
    uint32_t from = s->kv_count;
    if (s->skip_to <= from || !encode_may_skip(s)) s->skip_to = 0;
    if (s->copy_from.v != BLOCK_NONE.v || s->skip_to == 0 || s->in_flight > 0 || s->preempt) return;
    if (accounts_peek(c, s) * BLOCK_TOKENS <= from) return;
    accounts_open_further(c, s);
    uint32_t skipped = s->kv_count - from;
    s->cached_tokens += skipped;
    c->counts.cached_tokens += skipped;
    c->counts.tier_skipped_tokens += skipped;
    for (uint32_t i = 0; s->kind == SEQ_PUSH && i < c->config.hello.geometry.layers_count; i++)
        handover_push(c, now_ns, s, i, from, s->kv_count);
}

/* ---- STORE ---- */

/* In the tiers, or on its way there: marked in the pool. */
static bool is_kept(const struct node_core *c, struct block_id b)
{
    return b.v == BLOCK_NONE.v || kv_pool_is_marked(c->pool, b);
}

/* A run of blocks that the cache knows: `blocks` of a prompt's tokens from its start. */
struct known {
    uint64_t salt;
    struct kv_window window;
    const uint32_t *tokens;
    const struct block_id *blocks;
    uint32_t count;
};

/* Blocks [first, end) of it; false: not now. */
static bool store(struct node_core *c, const struct known *k, uint32_t first, uint32_t end)
{
    struct tier_op *op = find_unused(c, KV_TIER_STORE);
    if (!op) return false;
    op->kind = KV_TIER_STORE;
    op->salt = k->salt;
    op->window = k->window;
    op->blocks = arena_copy(&op->arena, k->blocks + first, (end - first) * sizeof *op->blocks);
    if (!op->blocks) return false;
    op->held_count = op->count = end - first;
    c->storing_blocks += op->count;
    for (uint32_t i = first; i < end; i++) {
        kv_pool_hold(c->pool, k->blocks[i], HOLD_TRANSFER);
        kv_pool_mark(c->pool, k->blocks[i], true);
    }
    c->counts.tier_stores++;
    if (op_post(c, 0, op, k->tokens, first)) return true;
    for (uint32_t i = first; i < end; i++)
        kv_pool_mark(c->pool, k->blocks[i], false);
    return false;
}

/* Whether what is put off with this op is the beginning of `k`. */
static bool begins(const struct tier_op *op, const struct known *k)
{
    size_t bytes = (size_t)op->rest_count * BLOCK_TOKENS * sizeof *k->tokens;
    return op->salt == k->salt && op->rest_count <= k->count &&
           memcmp(op->tokens, k->tokens, bytes) == 0;
}

/* Some STORE that ends later brings what did not fit: the prompt is remembered with it. */
static void put_off(struct node_core *c, const struct known *k)
{
    for (uint32_t i = NODE_LOADS_MAX; i < NODE_LOADS_MAX + NODE_STORES_MAX; i++) {
        struct tier_op *op = &c->tier_op[i];
        if (op->id == 0 || (op->rest_count > 0 && !begins(op, k))) continue;
        op->tokens =
            arena_copy(&op->arena, k->tokens, (size_t)k->count * BLOCK_TOKENS * sizeof *k->tokens);
        if (op->tokens) op->rest_count = k->count;
        op->window = k->window;
        return;
    }
}

static void keep(struct node_core *c, const struct known *k)
{
    uint32_t i = 0, n, storing_max = c->config.blocks_count / 8;
    while (i < k->count && c->storing_blocks < storing_max) {
        for (n = 0; i + n < k->count && n < NODE_STORE_BLOCKS; n++)
            if (is_kept(c, k->blocks[i + n]) || c->storing_blocks + n == storing_max) break;
        if (n > 0 && !store(c, k, i, i + n)) break; /* in order: later ones are of no use alone */
        i += n > 0 ? n : 1;
    }
    while (i < k->count && is_kept(c, k->blocks[i]))
        i++;
    if (i < k->count) put_off(c, k);
}

/* The next piece of what begins this prompt; with a window, of which the beginning is gone, its end. */
static void remind(struct node_core *c, const struct known *k)
{
    uint32_t most = c->config.blocks_count / 8, first = k->count, end = k->count;
    if (most > NODE_STORE_BLOCKS) most = NODE_STORE_BLOCKS;
    if (c->storing_blocks > 0 || most == 0) return;
    while (k->window.tokens > 0 && first > 0 && end - first < most &&
           k->blocks[first - 1].v != BLOCK_NONE.v)
        first--;
    if (k->window.tokens == 0) {
        first = (uint32_t)(c->reminds_made % ((k->count + most - 1) / most)) * most;
        end = k->count - first < most ? k->count : first + most;
    }
    if (first == end || !store(c, k, first, end)) return;
    c->reminds_made++;
    c->remind_due = false;
}

void tier_keep(struct node_core *c, const struct sequence *s)
{
    struct known k = {s->job.tenant_salt, s->window, s->tokens, s->table,
                      s->kv_count / BLOCK_TOKENS};
    if (!c->tier_op || c->stores_from_ns > 0 || k.count == 0) return;
    uint64_t stores = c->counts.tier_stores;
    keep(c, &k);
    if (c->remind_due && c->counts.tier_stores == stores) remind(c, &k);
}

/* What was put off, as far as the cache still has it. */
static void keep_rest(struct node_core *c, uint64_t salt, struct kv_window window,
                      uint32_t rest_count)
{
    struct kv_prompt prompt = {salt, c->rest_tokens, rest_count * BLOCK_TOKENS + 1, window};
    uint32_t n = kv_prefix_hold(c->cache, &prompt, HOLD_TRANSFER, c->rest_blocks, rest_count);
    keep(c, &(struct known){salt, window, c->rest_tokens, c->rest_blocks, n});
    for (uint32_t i = 0; i < n; i++)
        if (c->rest_blocks[i].v != BLOCK_NONE.v)
            kv_pool_drop(c->pool, c->rest_blocks[i], HOLD_TRANSFER);
}

static void stored(struct node_core *c, uint64_t now_ns, struct tier_op *op,
                   const struct kv_tier_event *e)
{
    uint32_t rest_count = op->rest_count;
    uint64_t salt = op->salt;
    struct kv_window window = op->window;
    bool all = e->count >= op->count;
    for (uint32_t i = e->count; i < op->count; i++)
        kv_pool_mark(c->pool, op->blocks[i], false);
    if (rest_count > 0)
        memcpy(c->rest_tokens, op->tokens,
               (size_t)rest_count * BLOCK_TOKENS * sizeof *c->rest_tokens);
    op_end(c, op);
    if (!all)
        c->stores_from_ns = now_ns + NODE_STORE_PAUSE_NS;
    else if (rest_count > 0 && c->stores_from_ns == 0)
        keep_rest(c, salt, window, rest_count);
}

/* ---- events, time ---- */

void tier_on_event(struct node_core *c, uint64_t now_ns, const struct kv_tier_event *e)
{
    inventory_news(c, e);
    if (inventory_on_event(c, now_ns, e)) return;
    for (uint32_t i = 0; c->tier_op && i < NODE_LOADS_MAX + NODE_STORES_MAX; i++) {
        struct tier_op *op = &c->tier_op[i];
        if (op->id != e->id || e->id == 0) continue;
        if (op->kind == KV_TIER_LOAD)
            loaded(c, now_ns, op, e);
        else
            stored(c, now_ns, op, e);
        return;
    }
    c->counts.stale_messages++;
}

void tier_on_timer(struct node_core *c, uint64_t now_ns)
{
    if (!c->tier_op) return;
    if (now_ns >= c->stores_from_ns) c->stores_from_ns = 0;
    if (now_ns >= c->reminds_from_ns) {
        c->remind_due = c->reminds_from_ns > 0; /* not at once */
        c->reminds_from_ns = now_ns + NODE_REMIND_NS;
    }
    bool loads = false;
    for (uint32_t i = 0; i < NODE_LOADS_MAX; i++)
        loads |= c->tier_op[i].id > 0;
    for (struct list_link *l = c->queue.next; loads && l != &c->queue; l = l->next) {
        const struct sequence *s = list_member(l, struct sequence, place);
        bool waits = s->state == SEQ_WAITING && s->tier_deadline_ns > now_ns;
        if (waits && s->tier_deadline_ns < c->wake_ns) c->wake_ns = s->tier_deadline_ns;
    }
}

void tier_audit(const struct node_core *c)
{
    uint32_t storing = 0;
    for (uint32_t i = 0; c->tier_op && i < NODE_LOADS_MAX + NODE_STORES_MAX; i++) {
        const struct tier_op *op = &c->tier_op[i];
        CHECK(op->id > 0 || op->held_count == 0);
        if (op->kind == KV_TIER_STORE) storing += op->count;
        for (uint32_t k = 0; k < op->held_count; k++)
            c->audit_holds[op->blocks[k].v * HOLD_KINDS + HOLD_TRANSFER]++;
    }
    CHECK(storing == c->storing_blocks);
}
