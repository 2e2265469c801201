/* The prefix cache with windows: what a match needs, what goes first, and entries without blocks. */
#include "tests/unit/testing.h"

#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "kv/prefix.h"

enum { T = BLOCK_TOKENS, DEPTH = 24, POOL = 40, SEQUENCES = 5, STEPS = 6000, SALTS = 4 };

/* A salt's prompts have one window. */
static const struct kv_window windows[SALTS] = {{0, 0}, {40, 0}, {20, 2 * T}, {1, 0}};
static const struct kv_owner nobody = {1, 1};

/* A prompt is named by one letter per block. */
struct sequence {
    uint32_t salt, count;
    char name[DEPTH + 1];
    struct block_id blocks[DEPTH];
};

/* What is cached, said plainly: of each block the prompt whose last block it is; "": none. */
struct known {
    uint32_t salt;
    char name[DEPTH + 1];
};

struct world {
    struct kv_pool *pool;
    struct kv_prefix *cache;
    struct known known[POOL];
    struct sequence sequence[SEQUENCES];
};

static struct world set_up(uint32_t entries_max, enum evict_policy policy)
{
    struct world w = {0};
    struct evict_config config = {.policy = policy, .ttl_ns = 1000};
    assert_ok(kv_pool_new(&w.pool, POOL));
    assert_ok(kv_prefix_new(&w.cache, w.pool, entries_max, &config));
    return w;
}

static void tear_down(struct world *w)
{
    kv_prefix_audit(w->cache);
    kv_pool_audit(w->pool);
    kv_prefix_free(w->cache);
    assert_int_equal(kv_pool_counts(w->pool).free, POOL);
    kv_pool_free(w->pool);
}

static struct kv_prompt prompt_of(const struct sequence *s, uint32_t tokens[DEPTH * T + 1])
{
    uint32_t n = 0;
    for (; s->name[n / T]; n++)
        tokens[n] = (uint32_t)s->name[n / T] * 100 + n % T;
    tokens[n] = 0;
    return (struct kv_prompt){s->salt, tokens, n + 1, windows[s->salt], 0};
}

/* ---- the naive cache ---- */

static uint32_t find(const struct world *w, uint32_t salt, const char *name, size_t length)
{
    for (uint32_t i = 0; i < POOL; i++) {
        const struct known *k = &w->known[i];
        if (k->name[0] && k->salt == salt && strlen(k->name) == length &&
            strncmp(k->name, name, length) == 0)
            return i;
    }
    return UINT32_MAX;
}

/* What a row behind n blocks, or behind rows_from tokens, sees of block i. */
static bool is_needed(const struct kv_prompt *p, uint32_t n, uint32_t i)
{
    struct kv_window v = p->window;
    uint32_t row = n * T > p->rows_from ? n * T : p->rows_from;
    return v.tokens == 0 || i * T < v.sinks || (i + 1) * T + v.tokens > row + 1;
}

static uint32_t naive_match(const struct world *w, const struct sequence *s,
                            const struct kv_prompt *p)
{
    for (uint32_t n = (p->tokens_count - 1) / T; n > 0; n--) {
        bool all = find(w, s->salt, s->name, n) != UINT32_MAX;
        for (uint32_t i = 0; all && i < n; i++)
            all = !is_needed(p, n, i) || find(w, s->salt, s->name, i + 1) != UINT32_MAX;
        if (all) return n;
    }
    return 0;
}

static bool begins_with(const struct known *k, const struct known *start)
{
    return k->name[0] && k->salt == start->salt &&
           strncmp(k->name, start->name, strlen(start->name)) == 0;
}

/* Whether no leaf's window reaches it. */
static bool is_spare(const struct world *w, uint32_t block)
{
    const struct known *b = &w->known[block];
    uint32_t depth = (uint32_t)strlen(b->name) - 1, reach = kv_window_reach(windows[b->salt]);
    if (reach == 0 || depth < windows[b->salt].sinks / T) return false;
    for (uint32_t i = 0; i < POOL; i++) {
        const struct known *leaf = &w->known[i];
        if (!begins_with(leaf, b)) continue;
        bool inner = false;
        for (uint32_t k = 0; k < POOL; k++)
            inner |= k != i && begins_with(&w->known[k], leaf);
        if (!inner && strlen(leaf->name) - 1 - depth < reach) return false;
    }
    return true;
}

/* What the cache let go of since the last time; returns how many nobody else had. */
static uint32_t forget_gone(struct world *w)
{
    uint32_t freed = 0;
    for (uint32_t i = 0; i < POOL; i++) {
        struct block_id block = {i};
        if (!w->known[i].name[0] || kv_pool_holds(w->pool, block, HOLD_CACHE) > 0) continue;
        freed += kv_pool_holds_all(w->pool, block) == 0;
        w->known[i].name[0] = 0;
    }
    return freed;
}

/* ---- what sequences do ---- */

static void insert(struct world *w, struct sequence *s)
{
    uint32_t tokens[DEPTH * T + 1];
    struct kv_prompt p = prompt_of(s, tokens);
    p.tokens_count = s->count * T;
    kv_prefix_insert(w->cache, nobody, &p, HOLD_SEQUENCE, s->blocks);
    forget_gone(w);
    for (uint32_t i = 0; i < s->count; i++) {
        struct block_id block = s->blocks[i];
        if (block.v == BLOCK_NONE.v || kv_pool_holds(w->pool, block, HOLD_CACHE) == 0) continue;
        struct known *k = &w->known[block.v];
        uint32_t before = find(w, s->salt, s->name, i + 1);
        assert_true(before == block.v || (before == UINT32_MAX && !k->name[0]));
        k->salt = s->salt;
        memcpy(k->name, s->name, i + 1);
        k->name[i + 1] = 0;
    }
}

static void slide(struct world *w, struct sequence *s)
{
    uint32_t gone = kv_window_gone(windows[s->salt], s->count * T) / T;
    for (uint32_t i = windows[s->salt].sinks / T; i < gone && i < s->count; i++) {
        if (s->blocks[i].v == BLOCK_NONE.v) continue;
        kv_pool_drop(w->pool, s->blocks[i], HOLD_SEQUENCE);
        s->blocks[i] = BLOCK_NONE;
    }
}

static void end(struct world *w, struct sequence *s)
{
    for (uint32_t i = 0; i < s->count; i++)
        if (s->blocks[i].v != BLOCK_NONE.v) kv_pool_drop(w->pool, s->blocks[i], HOLD_SEQUENCE);
    *s = (struct sequence){0};
}

/* Names share long beginnings. */
static void begin(struct world *w, struct sequence *s, struct rng_block r)
{
    uint32_t tokens[DEPTH * T + 1], depth = 1 + rng_below(r.word[2], DEPTH - 1);
    s->salt = r.word[0] / 16 % SALTS;
    memset(s->name, 'a', depth);
    for (uint32_t i = r.word[3] % DEPTH; i < depth; i += 1 + r.word[3] % 7)
        s->name[i] = (char)('a' + (r.word[3] >> i) % 3);
    struct kv_prompt p = prompt_of(s, tokens);
    if (r.word[0] / 64 % 3 == 0) p.rows_from = rng_below(r.word[1], p.tokens_count);
    uint32_t expected = naive_match(w, s, &p);
    assert_int_equal(kv_prefix_peek(w->cache, &p), expected);
    s->count = kv_prefix_match(w->cache, &p, HOLD_SEQUENCE, s->blocks, DEPTH);
    assert_int_equal(s->count, expected);
    for (uint32_t i = 0; i < s->count; i++)
        assert_int_equal(s->blocks[i].v, is_needed(&p, s->count, i)
                                             ? find(w, s->salt, s->name, i + 1)
                                             : BLOCK_NONE.v);
    kv_prefix_used(w->cache, s->blocks, s->count);
}

/* What nobody would miss goes first; all that only the cache has can be had. */
static void evict(struct world *w, uint32_t wanted)
{
    for (; wanted > 0 && kv_prefix_evictable(w->cache) > 0; wanted--) {
        bool spare[POOL], any = false;
        for (uint32_t i = 0; i < POOL; i++) {
            struct block_id block = {i};
            spare[i] = w->known[i].name[0] && is_spare(w, i);
            any |= spare[i] && kv_pool_holds_all(w->pool, block) == 1;
        }
        uint64_t before = kv_prefix_stats(w->cache).spare_blocks;
        assert_int_equal(kv_prefix_evict(w->cache, 1), 1);
        assert_int_equal(kv_prefix_stats(w->cache).spare_blocks - before, any);
        for (uint32_t i = 0; any && i < POOL; i++)
            if (w->known[i].name[0] && !kv_pool_holds(w->pool, (struct block_id){i}, HOLD_CACHE))
                assert_true(spare[i]);
        assert_int_equal(forget_gone(w), 1);
    }
}

/* One block more, and what has left the window goes; it may be known by then or never become so. */
static void grow(struct world *w, struct sequence *s, bool tell)
{
    struct block_id *next = &s->blocks[s->count];
    if (kv_pool_take(w->pool, HOLD_SEQUENCE, next) != OK) {
        evict(w, 1);
        if (kv_pool_take(w->pool, HOLD_SEQUENCE, next) != OK) return;
    }
    s->count++;
    if (tell) insert(w, s);
    slide(w, s);
}

static void step(struct world *w, struct rng_block r)
{
    struct sequence *s = &w->sequence[rng_below(r.word[0], SEQUENCES)];
    if (r.word[1] % 16 == 0)
        evict(w, r.word[2] % 4);
    else if (!s->name[0])
        begin(w, s, r);
    else if (s->name[s->count] && r.word[1] % 16 != 1)
        grow(w, s, r.word[1] % 4 < 2);
    else {
        if (r.word[1] % 8 != 3) insert(w, s);
        end(w, s);
    }
}

static void random_windows_agree_with_a_naive_cache(void **state)
{
    (void)state;
    uint64_t masks[] = {UINT64_MAX, 15, 3}, hollow = 0, spare = 0;
    for (uint64_t seed = 1; seed <= 2 * EVICT_POLICIES_COUNT; seed++) {
        struct world w = set_up(seed % 2 ? 400 : 48, seed % EVICT_POLICIES_COUNT);
        kv_prefix_mask_hashes(w.cache, masks[seed % 3]);
        uint64_t allocations = mem_count();
        for (uint32_t i = 0; i < STEPS; i++) {
            step(&w, rng_draw(seed, 1, i));
            hollow += kv_prefix_stats(w.cache).hollow_count;
            if (i % 8) continue;
            kv_prefix_audit(w.cache);
            kv_pool_audit(w.pool);
        }
        assert_int_equal(mem_count(), allocations);
        for (uint32_t i = 0; i < SEQUENCES; i++)
            end(&w, &w.sequence[i]);
        evict(&w, POOL);
        struct kv_prefix_stats stats = kv_prefix_stats(w.cache);
        spare += stats.spare_blocks;
        assert_int_equal(stats.entries_count + stats.hollow_count, 0);
        assert_int_equal(kv_pool_counts(w.pool).free, POOL);
        tear_down(&w);
    }
    assert_true(hollow > 0 && spare > 0);
}

/* A prompt of which only the window was ever here. */
static struct sequence run_window(struct world *w, uint32_t salt, const char *name)
{
    struct sequence s = {.salt = salt, .count = (uint32_t)strlen(name)};
    memcpy(s.name, name, s.count + 1);
    for (uint32_t i = 0; i < s.count; i++) {
        bool gone = i < kv_window_gone(windows[salt], s.count * T) / T;
        s.blocks[i] = BLOCK_NONE;
        if (!gone || i < windows[salt].sinks / T)
            assert_ok(kv_pool_take(w->pool, HOLD_SEQUENCE, &s.blocks[i]));
    }
    insert(w, &s);
    return s;
}

static uint32_t peek(struct world *w, uint32_t salt, const char *name)
{
    uint32_t tokens[DEPTH * T + 1];
    struct sequence s = {.salt = salt};
    memcpy(s.name, name, strlen(name) + 1);
    struct kv_prompt p = prompt_of(&s, tokens);
    return kv_prefix_peek(w->cache, &p);
}

static void a_window_alone_is_a_match(void **state)
{
    (void)state;
    struct world w = set_up(400, EVICT_LRU);
    struct sequence s = run_window(&w, 1, "abcdefgh");
    end(&w, &s);
    assert_int_equal(kv_prefix_stats(w.cache).entries_count, 3);
    assert_int_equal(kv_prefix_stats(w.cache).hollow_count, 5);
    assert_int_equal(peek(&w, 1, "abcdefghij"), 8);
    assert_int_equal(peek(&w, 1, "abcdefg"), 0);  /* its own window is not there */
    assert_int_equal(peek(&w, 1, "xbcdefgh"), 0); /* hollow ones are compared like others */
    assert_int_equal(peek(&w, 2, "abcdefgh"), 0);
    assert_int_equal(kv_prefix_evict(w.cache, 1), 1); /* the last one: the others have no use now */
    assert_int_equal(peek(&w, 1, "abcdefghij"), 0);
    assert_int_equal(kv_prefix_evict(w.cache, 9), 2);
    assert_int_equal(kv_prefix_stats(w.cache).hollow_count, 0);
    tear_down(&w);
}

static void colliding_hollow_entries_never_serve_another_prompt(void **state)
{
    (void)state;
    struct world w = set_up(400, EVICT_LRU);
    kv_prefix_mask_hashes(w.cache, 0);
    struct sequence s = run_window(&w, 1, "abcdefgh");
    struct sequence t = run_window(&w, 1, "xbcdefgh"); /* all but the first block is alike */
    assert_int_equal(peek(&w, 1, "abcdefgh"), 8);
    assert_int_equal(peek(&w, 1, "xbcdefgh"), 8);
    assert_int_equal(peek(&w, 1, "ybcdefgh"), 0);
    for (uint32_t i = 5; i < 8; i++)
        assert_int_not_equal(s.blocks[i].v, t.blocks[i].v);
    end(&w, &s);
    end(&w, &t);
    tear_down(&w);
}

/* Each prompt leaves three blocks and five hollow entries: there is room for two of them. */
static void hollow_entries_are_bounded_and_the_oldest_give_way(void **state)
{
    (void)state;
    struct world w = set_up(16, EVICT_LRU);
    const char *const names[] = {"abcdefgh", "ijklmnop", "qrstuvwx"};
    for (uint32_t i = 0; i < 3; i++) {
        struct sequence s = run_window(&w, 1, names[i]);
        end(&w, &s);
        kv_prefix_audit(w.cache);
    }
    assert_int_equal(peek(&w, 1, names[0]), 0);
    assert_int_equal(peek(&w, 1, names[1]), 8);
    assert_int_equal(peek(&w, 1, names[2]), 8);
    tear_down(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_windows_agree_with_a_naive_cache),
        cmocka_unit_test(a_window_alone_is_a_match),
        cmocka_unit_test(colliding_hollow_entries_never_serve_another_prompt),
        cmocka_unit_test(hollow_entries_are_bounded_and_the_oldest_give_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
