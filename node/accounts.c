/* Blocks of sequences: how many one needs, where they come from, who holds them.
 *
 * A block is taken from the free ones first, then from the prefix cache by its policy. What a sequence
 * needs is taken at once or not at all, so no two half-served prompts wait for each other.
 *
 * With a window (docs/kv-memory.md) that is what it holds at most at a time: what leaves the window is let go
 * of, and as many blocks are taken further on at once. Only where others hold what it let go of may they
 * be missing; queue.c sees to it that this does not last. */
#include "node/state.h"

#include "common/failpoint.h"
#include "common/plant.h"

/* For a match: it leaves the last token to compute, if anything is. */
static uint32_t tokens_matched(const struct sequence *s)
{
    return seq_total(s) + s->job.cached_only;
}

/* Tokens whose KV it has at its full length. */
static uint32_t tokens_all(const struct sequence *s)
{
    uint32_t total = seq_total(s);
    if (seq_prefills_only(s)) return total;
    uint32_t last = s->job.prompt_count + s->generated_max - 1; /* the last token needs no KV */
    return last > total ? last : total;
}

uint32_t accounts_need_all(const struct sequence *s)
{
    return kv_window_blocks(s->window, tokens_all(s), s->ahead);
}

static bool is_gone(const struct sequence *s, uint32_t i)
{
    return i >= s->window.sinks / BLOCK_TOKENS && i < s->gone / BLOCK_TOKENS;
}

/* How long the table should be now: for what it knows and one block more, or with a window so that it has
 * all that it will have at a time. What is on its way is wanted whole. */
static uint32_t reach_of(const struct sequence *s)
{
    uint32_t now = blocks_for_tokens(seq_total(s)) + 1, all = blocks_for_tokens(tokens_all(s));
    if (now > all) now = all;
    if (s->window.tokens == 0 || s->hold == HOLD_RESERVE) return now;
    uint32_t most = kv_window_blocks(s->window, seq_total(s) + 1, s->ahead);
    uint32_t end = (s->gone - s->window.sinks) / BLOCK_TOKENS + most;
    return end < now ? end : now;
}

/* Blocks that lengthening the table to `end` takes. */
static uint32_t wanted_to(const struct sequence *s, uint32_t end)
{
    uint32_t n = 0;
    for (uint32_t i = s->table_count; i < end; i++)
        n += !is_gone(s, i);
    return n;
}

uint32_t accounts_need(const struct sequence *s)
{
    return wanted_to(s, reach_of(s));
}

uint32_t accounts_available(const struct node_core *c)
{
    return kv_pool_counts(c->pool).free + (c->cache ? kv_prefix_evictable(c->cache) : 0);
}

struct kv_prompt accounts_prompt(const struct sequence *s, uint32_t tokens_count)
{
    return (struct kv_prompt){s->job.tenant_salt, s->tokens, tokens_count, s->window, 0};
}

uint32_t accounts_peek(const struct node_core *c, const struct sequence *s)
{
    struct kv_prompt p = accounts_prompt(s, tokens_matched(s));
    return c->cache ? kv_prefix_peek(c->cache, &p) : 0;
}

void accounts_take(struct node_core *c, enum hold kind, struct block_id *blocks, uint32_t count)
{
    uint32_t free = kv_pool_counts(c->pool).free;
    if (free < count) {
        uint32_t evicted = kv_prefix_evict(c->cache, count - free);
        CHECK(evicted == count - free);
    }
    for (uint32_t i = 0; i < count; i++) {
        enum err e = kv_pool_take(c->pool, kind, &blocks[i]);
        CHECK(e == OK);
    }
}

/* Lengthens the table to `end`. The caller has looked: there are as many. */
static void take_to(struct node_core *c, struct sequence *s, uint32_t end)
{
    CHECK(end <= s->table_capacity);
    while (s->table_count < end) {
        uint32_t n = 0;
        while (s->table_count + n < end && !is_gone(s, s->table_count + n))
            n++;
        accounts_take(c, s->hold, s->table + s->table_count, n);
        s->table_count += n;
        if (s->table_count < end) s->table[s->table_count++] = BLOCK_NONE;
    }
}

/* Lets go of what no row from `position` on sees; returns of how many blocks. */
static uint32_t trim(struct node_core *c, struct sequence *s, uint32_t position)
{
    uint32_t gone = kv_window_gone(s->window, position), n = 0;
    if (PLANTED("window_early") && gone > s->window.sinks) gone += BLOCK_TOKENS;
    for (uint32_t i = s->gone / BLOCK_TOKENS; i < gone / BLOCK_TOKENS && i < s->table_count; i++) {
        if (s->table[i].v == BLOCK_NONE.v) continue; /* a match went without it */
        if (s->shared_count > 0 && room_is_shared(c, s->table[i])) s->shared_count--;
        kv_pool_drop(c->pool, s->table[i], s->hold);
        s->table[i] = BLOCK_NONE;
        n++;
    }
    s->gone = gone;
    return n;
}

/* What was found of its prompt, and what would have been. */
static void note_looked_up(struct node_core *c, const struct sequence *s)
{
    struct block_id last = s->table_count > 0 ? s->table[s->table_count - 1] : BLOCK_NONE;
    struct kv_lookup lookup = {.tokens = seq_total(s), .found_tokens = s->kv_count};
    if ((last.v == BLOCK_NONE.v) == (s->kv_count == 0))
        lookup.regret_tokens = kv_prefix_regret(c->cache, last, s->kv_count, s->job.tenant_salt,
                                                s->tokens, seq_total(s));
    kv_usage_opened(&c->usage, s->job.tenant_salt, &lookup);
}

/* What the cache has of it. */
static void match(struct node_core *c, struct sequence *s, enum hold kind)
{
    CHECK(s->table_count == 0);
    s->hold = kind;
    s->gone = s->window.sinks;
    struct kv_prompt prompt = accounts_prompt(s, tokens_matched(s));
    if (kind == HOLD_RESERVE) prompt.rows_from = seq_total(s) - 1;
    if (c->cache && encode_may_skip(s))
        s->table_count = kv_prefix_match(c->cache, &prompt, kind, s->table, s->table_capacity);
    for (uint32_t i = 0; PLANTED("pin_omitted") && i < s->table_count; i++)
        if (s->table[i].v != BLOCK_NONE.v) kv_pool_drop(c->pool, s->table[i], kind);
    s->kv_count = s->planned = s->table_count * BLOCK_TOKENS;
    trim(c, s, kind == HOLD_RESERVE ? seq_total(s) - 1 : s->kv_count);
    room_note_shared(c, s);
}

static bool fits(struct node_core *c, const struct sequence *s)
{
    while (accounts_need(s) > accounts_available(c))
        if (!pins_give_way(c, s)) return false;
    return room_for(c, s);
}

bool accounts_would_open(struct node_core *c, struct sequence *s)
{
    match(c, s, HOLD_SEQUENCE);
    bool would = fits(c, s);
    accounts_close(c, s);
    return would;
}

enum err accounts_open(struct node_core *c, struct sequence *s, enum hold kind)
{
    match(c, s, kind);
    if (!fits(c, s)) {
        accounts_close(c, s);
        return ERR_FULL;
    }
    if (c->cache) kv_prefix_used(c->cache, s->table, s->table_count);
    bool looked_up = c->cache && encode_may_skip(s) && !s->preempted && !s->job.cached_only;
    if (looked_up) note_looked_up(c, s);
    take_to(c, s, reach_of(s));
    return OK;
}

enum err accounts_fork(struct node_core *c, struct sequence *s, const struct sequence *of)
{
    uint32_t last = s->job.prompt_count - 1, shared = last / BLOCK_TOKENS;
    CHECK(s->table_count == 0 && of->kv_count > last);
    s->hold = HOLD_SEQUENCE;
    s->gone = kv_window_gone(s->window, last);
    CHECK(of->gone <= s->gone);
    s->kv_count = s->planned = last; /* that token is computed again: its logits are wanted */
    s->table_count = shared;
    s->shared_count = shared - (s->gone - s->window.sinks) / BLOCK_TOKENS;
    if (accounts_need(s) > accounts_available(c) || !room_for(c, s)) {
        s->table_count = s->kv_count = s->planned = 0;
        return ERR_FULL;
    }
    for (uint32_t i = 0; i < shared; i++) {
        s->table[i] = is_gone(s, i) ? BLOCK_NONE : of->table[i];
        if (!is_gone(s, i)) kv_pool_hold(c->pool, s->table[i], s->hold);
    }
    if (last % BLOCK_TOKENS > 0) {
        s->copy_from = of->table[shared];
        if (!PLANTED("fork_not_held")) kv_pool_hold(c->pool, s->copy_from, s->hold);
    }
    take_to(c, s, reach_of(s));
    c->counts.forks++;
    c->counts.fork_shared_blocks += shared;
    c->counts.fork_copied_blocks += s->copy_from.v != BLOCK_NONE.v;
    return OK;
}

void accounts_open_further(struct node_core *c, struct sequence *s)
{
    accounts_close(c, s); /* what was peeked at is cached, and nobody takes it meanwhile */
    match(c, s, HOLD_SEQUENCE);
    kv_prefix_used(c->cache, s->table, s->table_count);
}

void accounts_close(struct node_core *c, struct sequence *s)
{
    if (s->table_count > 0) FAILPOINT("free");
    uint32_t sinks = s->window.sinks / BLOCK_TOKENS, rest = s->gone / BLOCK_TOKENS;
    if (sinks > s->table_count) sinks = s->table_count;
    if (rest > s->table_count) rest = s->table_count;
    kv_pool_drop_all(c->pool, s->table, sinks, s->hold);
    kv_pool_drop_all(c->pool, s->table + rest, s->table_count - rest, s->hold);
    if (s->copy_from.v != BLOCK_NONE.v && !PLANTED("fork_not_held"))
        kv_pool_drop(c->pool, s->copy_from, s->hold);
    s->copy_from = BLOCK_NONE;
    s->table_count = s->kv_count = s->planned = 0;
    s->gone = s->window.sinks;
}

bool accounts_fill(struct node_core *c, struct sequence *s)
{
    uint32_t end = reach_of(s), left = accounts_available(c);
    while (wanted_to(s, end) > left && pins_give_way(c, s))
        left = accounts_available(c);
    while (end > s->table_count && wanted_to(s, end) > left)
        end--;
    if (end > s->table_count) take_to(c, s, end);
    return s->table_count >= reach_of(s);
}

void accounts_slide(struct node_core *c, struct sequence *s)
{
    if (kv_window_gone(s->window, s->kv_count) <= s->gone) return;
    accounts_insert(c, s); /* it may stay known while nobody needs the room */
    c->counts.window_blocks += trim(c, s, s->kv_count);
    if (s->state == SEQ_PREFILL) accounts_fill(c, s);
}

void accounts_move(struct node_core *c, struct sequence *s, enum hold to)
{
    for (uint32_t i = 0; i < s->table_count; i++)
        if (!is_gone(s, i)) kv_pool_move(c->pool, s->table[i], s->hold, to);
    s->hold = to;
}

void accounts_insert(struct node_core *c, struct sequence *s)
{
    if (!c->cache) return;
    uint32_t whole = s->kv_count / BLOCK_TOKENS * BLOCK_TOKENS;
    struct kv_owner owner = {s->job.tenant, s->job.tenant_weight};
    struct kv_prompt prompt = accounts_prompt(s, whole);
    kv_prefix_insert(c->cache, owner, &prompt, s->hold, s->table);
    tier_keep(c, s);
}

enum err accounts_grow(struct node_core *c, struct sequence *s)
{
    while (accounts_available(c) == 0)
        if (!pins_give_way(c, s)) return ERR_FULL;
    take_to(c, s, s->table_count + 1);
    return OK;
}
