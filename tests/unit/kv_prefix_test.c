#include "tests/unit/testing.h"

#include <string.h>

#include "common/mem.h"
#include "common/prefix_hash.h"
#include "common/rng.h"
#include "kv/prefix.h"

enum { T = BLOCK_TOKENS, DEPTH = 6 };

struct fixture {
    struct kv_pool *pool;
    struct kv_prefix *cache;
};

static struct fixture set_up_with(uint32_t blocks_count, uint32_t entries_max,
                                  enum evict_policy policy)
{
    struct fixture f;
    struct evict_config config = {.policy = policy, .ttl_ns = 1000};
    assert_ok(kv_pool_new(&f.pool, blocks_count));
    assert_ok(kv_prefix_new(&f.cache, f.pool, entries_max, &config));
    return f;
}

static struct fixture set_up(uint32_t blocks_count, uint32_t entries_max)
{
    return set_up_with(blocks_count, entries_max, EVICT_LRU);
}

/* Everything must be back when the cache is gone. */
static void tear_down(struct fixture *f)
{
    kv_prefix_audit(f->cache);
    kv_pool_audit(f->pool);
    kv_prefix_free(f->cache);
    assert_int_equal(kv_pool_counts(f->pool).free, kv_pool_counts(f->pool).total);
    kv_pool_free(f->pool);
}

/* A prompt is named by one letter per block: "abc" is 16 x 'a', 16 x 'b', 16 x 'c'. */
static uint32_t spell(const char *name, uint32_t tokens[DEPTH * T])
{
    uint32_t n = 0;
    for (; name[n / T]; n++)
        tokens[n] = (uint32_t)name[n / T] * 100 + n % T;
    return n;
}

static void make_known(struct kv_prefix *cache, uint64_t salt, const uint32_t *tokens, uint32_t n,
                       struct block_id *blocks)
{
    kv_prefix_insert(cache, (struct kv_owner){salt, 0}, &(struct kv_prompt){salt, tokens, n},
                     HOLD_SEQUENCE, blocks);
}

/* Like a sequence that has computed all of its prompt. */
static void run(struct fixture *f, uint64_t salt, const char *name, struct block_id *blocks)
{
    uint32_t tokens[DEPTH * T], n = spell(name, tokens);
    for (uint32_t i = 0; i < n / T; i++)
        assert_ok(kv_pool_take(f->pool, HOLD_SEQUENCE, &blocks[i]));
    make_known(f->cache, salt, tokens, n, blocks);
}

static void let_go(struct fixture *f, const char *name, const struct block_id *blocks)
{
    for (size_t i = 0; name[i]; i++)
        kv_pool_drop(f->pool, blocks[i], HOLD_SEQUENCE);
}

static void cache_prompt(struct fixture *f, uint64_t salt, const char *name)
{
    struct block_id blocks[DEPTH];
    run(f, salt, name, blocks);
    let_go(f, name, blocks);
}

static uint32_t peek(struct fixture *f, uint64_t salt, const char *name)
{
    uint32_t tokens[DEPTH * T + 1], n = spell(name, tokens);
    tokens[n] = 0;
    return kv_prefix_peek(f->cache, &(struct kv_prompt){salt, tokens, n + 1});
}

static void the_longest_cached_prefix_matches_and_is_held(void **state)
{
    (void)state;
    struct fixture f = set_up(8, 8);
    struct block_id mine[DEPTH], got[DEPTH];
    run(&f, 0, "abc", mine);
    uint32_t tokens[DEPTH * T];
    uint32_t n = spell("abx", tokens);
    assert_int_equal(
        kv_prefix_match(f.cache, &(struct kv_prompt){0, tokens, n}, HOLD_RESERVE, got, DEPTH), 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(got[i].v, mine[i].v);
        assert_int_equal(kv_pool_holds(f.pool, got[i], HOLD_RESERVE), 1);
        kv_pool_drop(f.pool, got[i], HOLD_RESERVE);
    }
    assert_int_equal(peek(&f, 0, "abcd"), 3);
    assert_int_equal(peek(&f, 0, "bc"), 0);
    let_go(&f, "abc", mine);
    assert_int_equal(kv_pool_counts(f.pool).cached, 3);
    struct kv_prefix_stats stats = kv_prefix_stats(f.cache);
    assert_int_equal(stats.queried_tokens, 3 * T);
    assert_int_equal(stats.hit_tokens, 2 * T);
    tear_down(&f);
}

static void the_last_token_is_always_left_to_compute(void **state)
{
    (void)state;
    struct fixture f = set_up(8, 8);
    cache_prompt(&f, 0, "abc");
    uint32_t tokens[DEPTH * T + 1];
    spell("abcd", tokens);
    struct {
        uint32_t tokens_count, blocks_max, matched;
    } row[] = {{0, 9, 0},         {1, 9, 0},        {T, 9, 0},         {T + 1, 9, 1},
               {2 * T, 9, 1},     {3 * T, 9, 2},    {3 * T + 1, 9, 3}, {4 * T, 9, 3},
               {3 * T + 1, 2, 2}, {3 * T + 1, 0, 0}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct block_id got[DEPTH];
        uint32_t n = kv_prefix_match(f.cache, &(struct kv_prompt){0, tokens, row[i].tokens_count},
                                     HOLD_SEQUENCE, got, row[i].blocks_max);
        assert_int_equal(n, row[i].matched);
        for (uint32_t b = 0; b < n; b++)
            kv_pool_drop(f.pool, got[b], HOLD_SEQUENCE);
    }
    tear_down(&f);
}

static void salts_keep_tenants_apart(void **state)
{
    (void)state;
    struct fixture f = set_up(8, 8);
    cache_prompt(&f, 1, "ab");
    assert_int_equal(peek(&f, 1, "ab"), 2);
    assert_int_equal(peek(&f, 0, "ab"), 0);
    assert_int_equal(peek(&f, 2, "ab"), 0);
    tear_down(&f);
}

static void colliding_hashes_never_serve_another_prompt(void **state)
{
    (void)state;
    struct fixture f = set_up(16, 16);
    kv_prefix_mask_hashes(f.cache, 0); /* all hashes are equal, all chains are one */
    cache_prompt(&f, 0, "ab");
    cache_prompt(&f, 0, "ba");
    cache_prompt(&f, 7, "ab");
    assert_int_equal(peek(&f, 0, "ab"), 2);
    assert_int_equal(peek(&f, 0, "bab"), 2);
    assert_int_equal(peek(&f, 0, "bb"), 1); /* the second b has another parent */
    assert_int_equal(peek(&f, 0, "c"), 0);
    assert_int_equal(peek(&f, 3, "ab"), 0);
    assert_int_equal(kv_prefix_evict(f.cache, 16), 6);
    tear_down(&f);
}

static void a_twin_is_swapped_and_a_step_keeps_the_old_block(void **state)
{
    (void)state;
    struct fixture f = set_up(8, 8);
    struct block_id first[DEPTH], second[DEPTH] = {0};
    run(&f, 0, "ab", first);
    uint32_t tokens[DEPTH * T], n = spell("abc", tokens);
    struct block_id own[3];
    for (int i = 0; i < 3; i++) {
        assert_ok(kv_pool_take(f.pool, HOLD_SEQUENCE, &own[i]));
        second[i] = own[i];
    }
    kv_pool_hold(f.pool, own[1], HOLD_STEP);
    make_known(f.cache, 0, tokens, n, second);
    assert_int_equal(second[0].v, first[0].v);
    assert_int_equal(second[1].v, first[1].v);
    assert_int_equal(second[2].v, own[2].v);
    assert_int_equal(kv_pool_holds(f.pool, first[1], HOLD_SEQUENCE), 2);
    assert_int_equal(kv_pool_holds_all(f.pool, own[0]), 0);
    assert_int_equal(kv_pool_holds_all(f.pool, own[1]), 1);
    kv_pool_drop(f.pool, own[1], HOLD_STEP);
    assert_int_equal(kv_prefix_stats(f.cache).twin_blocks, 2);
    assert_int_equal(kv_prefix_stats(f.cache).entries_count, 3);
    let_go(&f, "ab", first);
    let_go(&f, "abc", second);
    tear_down(&f);
}

/* Of a sequence with a window: what it let go of stays known until it is evicted; then what comes behind is
 * not found either. */
static void blocks_behind_what_was_let_go_of_are_known_as_long_as_that_is(void **state)
{
    (void)state;
    struct fixture f = set_up(8, 8);
    struct block_id mine[DEPTH], others[2];
    uint32_t tokens[DEPTH * T];
    run(&f, 0, "ab", mine);
    kv_pool_drop(f.pool, mine[0], HOLD_SEQUENCE);
    mine[0] = BLOCK_NONE;
    for (int i = 2; i < 4; i++)
        assert_ok(kv_pool_take(f.pool, HOLD_SEQUENCE, &mine[i]));
    make_known(f.cache, 0, tokens, spell("abc", tokens), mine);
    assert_int_equal(peek(&f, 0, "abc"), 3);
    kv_prefix_used(f.cache, mine, 3);
    assert_int_equal(kv_prefix_evict(f.cache, 1), 1); /* "a", and so nobody finds the others */
    assert_int_equal(peek(&f, 0, "abc"), 0);
    make_known(f.cache, 0, tokens, spell("abcd", tokens), mine);
    assert_int_equal(peek(&f, 0, "abcd"), 0);
    run(&f, 0, "ab", others); /* another one computes the first two: its own lead on from there */
    make_known(f.cache, 0, tokens, spell("abcd", tokens), mine);
    assert_int_equal(mine[1].v, others[1].v);
    assert_int_equal(peek(&f, 0, "abcd"), 4);
    let_go(&f, "ab", others);
    let_go(&f, "bcd", mine + 1);
    tear_down(&f);
}

static void leaves_go_first_and_the_longest_unused_before_all(void **state)
{
    (void)state;
    struct fixture f = set_up(16, 16);
    cache_prompt(&f, 0, "abc");
    cache_prompt(&f, 0, "abd"); /* a and b are younger than c now */
    cache_prompt(&f, 0, "xy");
    const char *left[] = {"abc", "abd", "ab", "a", "xy", "x"};
    uint32_t depth[] = {3, 3, 2, 1, 2, 1};
    const char *order = "cdbayx"; /* block by block */
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(peek(&f, 0, left[i]), depth[i]);
        assert_int_equal(kv_prefix_evictable(f.cache), 6 - i);
        assert_int_equal(kv_prefix_evict(f.cache, 1), 1);
        kv_prefix_audit(f.cache);
        kv_pool_audit(f.pool);
        if (peek(&f, 0, left[i]) != depth[i] - 1) fail_msg("'%c' is still there", order[i]);
    }
    assert_int_equal(kv_prefix_evict(f.cache, 1), 0);
    assert_int_equal(kv_prefix_stats(f.cache).evicted_blocks, 6);
    tear_down(&f);
}

static void a_match_makes_young(void **state)
{
    (void)state;
    struct fixture f = set_up(16, 16);
    cache_prompt(&f, 0, "a");
    cache_prompt(&f, 0, "b");
    struct block_id got[DEPTH];
    uint32_t tokens[DEPTH * T], n = spell("az", tokens);
    assert_int_equal(
        kv_prefix_match(f.cache, &(struct kv_prompt){0, tokens, n}, HOLD_SEQUENCE, got, DEPTH), 1);
    kv_pool_drop(f.pool, got[0], HOLD_SEQUENCE);
    assert_int_equal(kv_prefix_evict(f.cache, 1), 1);
    assert_int_equal(peek(&f, 0, "a"), 1);
    assert_int_equal(peek(&f, 0, "b"), 0);
    tear_down(&f);
}

static void what_somebody_holds_is_not_evicted(void **state)
{
    (void)state;
    struct fixture f = set_up(16, 16);
    struct block_id held[DEPTH];
    run(&f, 0, "ab", held);
    cache_prompt(&f, 0, "abc");
    assert_int_equal(kv_prefix_evictable(f.cache), 1);
    assert_int_equal(kv_prefix_evict(f.cache, 9), 1);
    assert_int_equal(peek(&f, 0, "ab"), 2);
    let_go(&f, "ab", held);
    tear_down(&f);
}

static void a_parent_of_a_held_child_can_still_be_had(void **state)
{
    (void)state;
    struct fixture f = set_up(16, 16);
    struct block_id b[DEPTH];
    run(&f, 0, "abcd", b);
    kv_pool_hold(f.pool, b[2], HOLD_TRANSFER); /* the tail of a delta */
    kv_pool_hold(f.pool, b[3], HOLD_TRANSFER);
    let_go(&f, "abcd", b);
    cache_prompt(&f, 0, "ax");
    assert_int_equal(kv_prefix_evictable(f.cache), 3);
    assert_int_equal(kv_prefix_evict(f.cache, 1), 1); /* x: all others have children */
    assert_int_equal(peek(&f, 0, "abcd"), 4);
    assert_int_equal(kv_prefix_evict(f.cache, 9), 2);
    assert_int_equal(peek(&f, 0, "a"), 0);
    assert_int_equal(kv_pool_counts(f.pool).transfer, 2); /* their holder keeps them */
    kv_pool_drop(f.pool, b[2], HOLD_TRANSFER);
    kv_pool_drop(f.pool, b[3], HOLD_TRANSFER);
    assert_int_equal(kv_pool_counts(f.pool).free, 16);
    tear_down(&f);
}

static void a_pinned_prefix_stays_until_it_is_unpinned_as_often(void **state)
{
    (void)state;
    struct fixture f = set_up(8, 8);
    uint32_t tokens[DEPTH * T];
    cache_prompt(&f, 0, "abcd");
    cache_prompt(&f, 0, "x");
    spell("abz", tokens);
    assert_int_equal(kv_prefix_pin(f.cache, 0, tokens, 3), 2); /* z is not cached */
    assert_int_equal(kv_prefix_pin(f.cache, 0, tokens, 1), 1);
    assert_int_equal(kv_prefix_pin(f.cache, 7, tokens, 1), 0);
    assert_int_equal(kv_prefix_evictable(f.cache), 3);
    assert_int_equal(kv_prefix_evict(f.cache, 9), 3);
    assert_int_equal(peek(&f, 0, "abcd"), 2);
    assert_int_equal(kv_prefix_stats(f.cache).pinned_blocks, 2);
    kv_pool_audit(f.pool);
    kv_prefix_unpin(f.cache, 0, tokens, 2);
    assert_int_equal(kv_prefix_evict(f.cache, 9), 1);
    assert_int_equal(peek(&f, 0, "abcd"), 1);
    kv_prefix_unpin(f.cache, 0, tokens, 1);
    assert_int_equal(kv_prefix_evict(f.cache, 9), 1);
    tear_down(&f);
}

static void pins_leave_half_of_the_pool(void **state)
{
    (void)state;
    struct fixture f = set_up(8, 8);
    uint32_t tokens[DEPTH * T];
    cache_prompt(&f, 0, "abcdef");
    spell("abcdef", tokens);
    assert_int_equal(kv_prefix_pin(f.cache, 0, tokens, 6), 4);
    assert_int_equal(kv_prefix_evictable(f.cache), 2);
    tear_down(&f); /* pinned or not */
}

static void ttl_lets_go_of_what_nobody_used_in_time(void **state)
{
    (void)state;
    struct fixture f = set_up_with(16, 16, EVICT_TTL);
    kv_prefix_tick(f.cache, 100, 9);
    cache_prompt(&f, 0, "ab");
    assert_int_equal(kv_prefix_tick(f.cache, 600, 9), 0);
    cache_prompt(&f, 0, "ac"); /* a is used again */
    assert_int_equal(kv_prefix_tick(f.cache, 1099, 9), 0);
    assert_int_equal(kv_prefix_tick(f.cache, 1100, 9), 1);
    assert_int_equal(peek(&f, 0, "ab"), 1);
    assert_int_equal(kv_prefix_tick(f.cache, 1600, 1), 1); /* c; as many as it may */
    assert_int_equal(kv_prefix_tick(f.cache, 1600, 9), 1);
    assert_int_equal(kv_pool_counts(f.pool).free, 16);
    assert_int_equal(kv_prefix_stats(f.cache).expired_blocks, 3);
    tear_down(&f);
}

/* The block of a cached prompt's last letter. */
static struct block_id last_of(struct fixture *f, const char *name)
{
    struct block_id got[DEPTH];
    uint32_t tokens[DEPTH * T + 1], n = spell(name, tokens);
    tokens[n] = 0;
    assert_int_equal(
        kv_prefix_match(f->cache, &(struct kv_prompt){0, tokens, n + 1}, HOLD_SEQUENCE, got, DEPTH),
        n / T);
    let_go(f, name, got);
    return got[n / T - 1];
}

static void a_look_tells_what_is_known_of_a_block(void **state)
{
    (void)state;
    struct fixture f = set_up(8, 8);
    struct kv_prefix_entry ab, abc;
    cache_prompt(&f, 0, "abc");
    kv_prefix_tick(f.cache, 700, 1);
    cache_prompt(&f, 0, "abd"); /* finds a and b as twins */
    assert_true(kv_prefix_look(f.cache, last_of(&f, "ab"), &ab));
    assert_true(kv_prefix_look(f.cache, last_of(&f, "abc"), &abc));
    assert_int_equal(ab.depth, 1);
    assert_int_equal(ab.uses, 2);
    assert_int_equal(ab.next_uses, 1);
    assert_int_equal(ab.used_ns, 700);
    assert_int_equal(ab.tokens[1], 'b' * 100 + 1);
    assert_int_equal(abc.parent, ab.at);
    assert_int_equal(abc.uses, 1);
    assert_int_equal(abc.next_uses, 0);
    struct kv_prefix_entry same;
    assert_true(kv_prefix_look_for(f.cache, abc.hash, &same));
    assert_int_equal(same.at, abc.at);
    assert_int_equal(same.parent_hash, ab.hash);
    kv_prefix_evict(f.cache, 8);
    for (uint32_t i = 0; i < 8; i++)
        assert_false(kv_prefix_look(f.cache, (struct block_id){i}, &ab));
    assert_false(kv_prefix_look_for(f.cache, abc.hash, &same));
    tear_down(&f);
}

/* Tokens of the prompt that are missing because they were evicted. */
static uint32_t regret(struct fixture *f, const char *name)
{
    struct block_id got[DEPTH];
    uint32_t tokens[DEPTH * T], n = spell(name, tokens);
    uint32_t found =
        kv_prefix_match(f->cache, &(struct kv_prompt){0, tokens, n}, HOLD_SEQUENCE, got, DEPTH);
    for (uint32_t i = 0; i < found; i++)
        kv_pool_drop(f->pool, got[i], HOLD_SEQUENCE);
    return kv_prefix_regret(f->cache, found > 0 ? got[found - 1] : BLOCK_NONE, found * T, 0, tokens,
                            n);
}

static void what_is_looked_for_after_its_eviction_is_counted_once(void **state)
{
    (void)state;
    struct fixture f = set_up(8, 8);
    cache_prompt(&f, 0, "abc");
    cache_prompt(&f, 0, "ad"); /* uses a once more */
    assert_int_equal(regret(&f, "xy"), 0);
    assert_int_equal(regret(&f, "abcd"), 0);
    kv_prefix_evict(f.cache, 8);
    assert_int_equal(kv_prefix_stats(f.cache).evicted_blocks, 4);
    assert_int_equal(kv_prefix_stats(f.cache).unused_blocks, 3);
    cache_prompt(&f, 0, "a");
    assert_int_equal(regret(&f, "abc"), T); /* the last block is computed in any case */
    assert_int_equal(regret(&f, "abcx"), 0);
    assert_int_equal(regret(&f, "adx"), T);
    assert_int_equal(kv_prefix_stats(f.cache).regret_tokens, 2 * T);
    tear_down(&f);
}

static void blocks_beyond_entries_max_stay_uncached(void **state)
{
    (void)state;
    struct fixture f = set_up(8, 2);
    cache_prompt(&f, 0, "abc");
    assert_int_equal(peek(&f, 0, "abc"), 2);
    assert_int_equal(kv_prefix_stats(f.cache).entries_count, 2);
    cache_prompt(&f, 0, "abz"); /* twins need no room */
    assert_int_equal(kv_pool_counts(f.pool).free, 6);
    tear_down(&f);
}

static void a_failed_allocation_is_an_error(void **state)
{
    (void)state;
    struct kv_pool *pool;
    assert_ok(kv_pool_new(&pool, 4));
    for (uint64_t n = 1; n <= 8; n++) { /* with s3fifo, which has the most */
        struct kv_prefix *cache;
        mem_fail_at(n);
        struct evict_config config = {.policy = EVICT_S3FIFO};
        assert_int_equal(kv_prefix_new(&cache, pool, 4, &config), ERR_MEMORY);
        mem_fail_at(0);
        assert_null(cache);
        kv_prefix_free(cache);
    }
    kv_pool_free(pool);
}

/* Random sequences over two letters that share, twin, end and evict, beside an oracle that is a
 * plain list of cached prompts and their blocks: what matches must be the block of that prompt. */
enum { SEQUENCES = 6, POOL = 24, STEPS = 4000 };
struct oracle_entry {
    uint64_t salt;
    char name[DEPTH + 1];
    uint32_t block;
};
struct sequence {
    bool live;
    uint64_t salt;
    char name[DEPTH + 1];
    struct block_id blocks[DEPTH];
};
struct world {
    struct fixture f;
    struct oracle_entry entry[POOL]; /* by block; name "" if not cached */
    struct sequence sequence[SEQUENCES];
};

static uint32_t oracle_find(const struct world *w, uint64_t salt, const char *name, size_t length)
{
    for (uint32_t i = 0; i < POOL; i++) {
        const struct oracle_entry *e = &w->entry[i];
        if (e->name[0] && e->salt == salt && strlen(e->name) == length &&
            strncmp(e->name, name, length) == 0)
            return i;
    }
    return UINT32_MAX;
}

static void begin(struct world *w, struct sequence *s, struct rng_block r)
{
    size_t depth = 1 + rng_below(r.word[2], DEPTH - 1);
    *s = (struct sequence){.salt = r.word[0] % 2};
    for (size_t i = 0; i < depth; i++)
        s->name[i] = (r.word[3] >> i & 1) ? 'a' : 'b';
    uint32_t tokens[DEPTH * T + 1], n = spell(s->name, tokens);
    tokens[n] = 0;
    uint32_t held = kv_prefix_match(w->f.cache, &(struct kv_prompt){s->salt, tokens, n + 1},
                                    HOLD_SEQUENCE, s->blocks, DEPTH);
    for (uint32_t i = 0; i < held; i++)
        assert_int_equal(s->blocks[i].v, oracle_find(w, s->salt, s->name, i + 1));
    if (held < depth) assert_int_equal(oracle_find(w, s->salt, s->name, held + 1), UINT32_MAX);
    for (uint32_t i = held; i < depth; i++) {
        if (kv_pool_take(w->f.pool, HOLD_SEQUENCE, &s->blocks[i]) == OK) continue;
        s->name[i] = 0; /* it becomes a shorter prompt */
        break;
    }
    s->live = s->name[0] != 0;
}

static void end(struct world *w, struct sequence *s, bool insert)
{
    uint32_t tokens[DEPTH * T], n = spell(s->name, tokens);
    if (insert) {
        make_known(w->f.cache, s->salt, tokens, n, s->blocks);
        for (uint32_t i = 0; i < n / T; i++) {
            uint32_t known = oracle_find(w, s->salt, s->name, i + 1);
            if (known != UINT32_MAX) {
                assert_int_equal(s->blocks[i].v, known);
                continue;
            }
            struct oracle_entry *e = &w->entry[s->blocks[i].v];
            assert_int_equal(e->name[0], 0);
            e->salt = s->salt;
            memcpy(e->name, s->name, i + 1);
            e->name[i + 1] = 0;
        }
    }
    let_go(&w->f, s->name, s->blocks);
    s->live = false;
}

/* The oracle drops what has left the cache; that must leave no hole and be what nobody held. */
static void evict(struct world *w, uint32_t wanted)
{
    uint32_t evictable = kv_prefix_evictable(w->f.cache);
    uint32_t freed = kv_prefix_evict(w->f.cache, wanted), gone = 0;
    assert_int_equal(freed, wanted < evictable ? wanted : evictable);
    for (uint32_t i = 0; i < POOL; i++) {
        struct oracle_entry *e = &w->entry[i];
        if (!e->name[0] || kv_pool_holds(w->f.pool, (struct block_id){i}, HOLD_CACHE)) continue;
        assert_int_equal(kv_pool_holds_all(w->f.pool, (struct block_id){i}), 0);
        e->name[0] = 0;
        gone++;
    }
    assert_int_equal(gone, freed);
    for (uint32_t i = 0; i < POOL; i++) {
        const struct oracle_entry *e = &w->entry[i];
        size_t depth = strlen(e->name);
        if (depth > 1)
            assert_int_not_equal(oracle_find(w, e->salt, e->name, depth - 1), UINT32_MAX);
    }
}

static void random_sequences_agree_with_a_naive_cache(void **state)
{
    (void)state;
    uint64_t masks[] = {UINT64_MAX, 7, 0};
    for (uint64_t seed = 1; seed <= 2 * EVICT_POLICIES_COUNT; seed++) {
        struct world w = {.f = set_up_with(POOL, POOL, seed % EVICT_POLICIES_COUNT)};
        kv_prefix_mask_hashes(w.f.cache, masks[seed % 3]);
        uint64_t allocations = mem_count();
        for (uint32_t step = 0; step < STEPS; step++) {
            struct rng_block r = rng_draw(seed, 1, step);
            struct sequence *s = &w.sequence[rng_below(r.word[0], SEQUENCES)];
            if (r.word[1] % 8 == 0)
                evict(&w, r.word[2] % 4);
            else if (s->live)
                end(&w, s, r.word[1] % 4 != 1);
            else
                begin(&w, s, r);
            kv_prefix_audit(w.f.cache);
            kv_pool_audit(w.f.pool);
        }
        assert_int_equal(mem_count(), allocations);
        for (uint32_t i = 0; i < SEQUENCES; i++)
            if (w.sequence[i].live) end(&w, &w.sequence[i], false);
        evict(&w, POOL);
        assert_int_equal(kv_pool_counts(w.f.pool).free, POOL);
        tear_down(&w.f);
    }
}

/* What somebody outside knows who hears the news alone. */
struct listener {
    const struct kv_prefix *cache;
    uint64_t hashes[16];
    uint32_t count;
    struct kv_prefix_entry last;
};

static void hear_stored(void *ctx, struct block_id block)
{
    struct listener *l = ctx;
    assert_true(kv_prefix_look(l->cache, block, &l->last));
    l->hashes[l->count++] = l->last.hash;
}

static void hear_removed(void *ctx, uint64_t hash)
{
    struct listener *l = ctx;
    uint32_t i = 0;
    while (l->hashes[i] != hash)
        assert_true(++i < l->count);
    l->hashes[i] = l->hashes[--l->count];
}

/* In the pool's order, as who comes late asks for it. */
static uint64_t sum_of_walk(const struct fixture *f, uint32_t *count)
{
    uint64_t sum = 0;
    struct kv_prefix_entry block;
    *count = 0;
    for (uint32_t i = 0; i < kv_pool_counts(f->pool).total; i++)
        if (kv_prefix_look(f->cache, (struct block_id){i}, &block)) {
            sum += block.hash;
            ++*count;
        }
    return sum;
}

static void who_listens_knows_what_is_cached(void **state)
{
    (void)state;
    struct fixture f = set_up(6, 6);
    struct listener l = {.cache = f.cache};
    kv_prefix_watch(f.cache, &(struct kv_prefix_watch){&l, hear_stored, hear_removed});
    const char *const prompts[] = {"abc", "abd", "xy", "abc", "xyz", "q"};
    uint32_t tokens[DEPTH * T], count;
    uint64_t hashes[DEPTH];
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        uint32_t n = spell(prompts[i], tokens) / T;
        uint32_t free = kv_pool_counts(f.pool).free;
        if (free < n) kv_prefix_evict(f.cache, n - free);
        cache_prompt(&f, 9, prompts[i]);
        uint64_t sum = 0;
        for (uint32_t k = 0; k < l.count; k++)
            sum += l.hashes[k];
        assert_int_equal(sum_of_walk(&f, &count), sum);
        assert_int_equal(count, l.count);
    }
    assert_int_equal(spell("q", tokens) / T, 1);
    prefix_hash_chain(9, tokens, 1, hashes);
    assert_int_equal(l.last.hash, hashes[0]);
    assert_int_equal(l.last.parent, KV_PREFIX_NONE);
    kv_prefix_evict(f.cache, 3);
    cache_prompt(&f, 9, "qr");
    spell("qr", tokens);
    prefix_hash_chain(9, tokens, 2, hashes);
    assert_int_equal(l.last.hash, hashes[1]);
    assert_memory_equal(l.last.tokens, tokens + T, sizeof l.last.tokens[0] * T);
    assert_true(kv_prefix_look_at(f.cache, l.last.parent, &l.last));
    assert_int_equal(l.last.hash, hashes[0]);
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_longest_cached_prefix_matches_and_is_held),
        cmocka_unit_test(the_last_token_is_always_left_to_compute),
        cmocka_unit_test(salts_keep_tenants_apart),
        cmocka_unit_test(colliding_hashes_never_serve_another_prompt),
        cmocka_unit_test(blocks_behind_what_was_let_go_of_are_known_as_long_as_that_is),
        cmocka_unit_test(a_twin_is_swapped_and_a_step_keeps_the_old_block),
        cmocka_unit_test(leaves_go_first_and_the_longest_unused_before_all),
        cmocka_unit_test(a_match_makes_young),
        cmocka_unit_test(what_somebody_holds_is_not_evicted),
        cmocka_unit_test(a_parent_of_a_held_child_can_still_be_had),
        cmocka_unit_test(a_pinned_prefix_stays_until_it_is_unpinned_as_often),
        cmocka_unit_test(pins_leave_half_of_the_pool),
        cmocka_unit_test(ttl_lets_go_of_what_nobody_used_in_time),
        cmocka_unit_test(a_look_tells_what_is_known_of_a_block),
        cmocka_unit_test(what_is_looked_for_after_its_eviction_is_counted_once),
        cmocka_unit_test(blocks_beyond_entries_max_stay_uncached),
        cmocka_unit_test(a_failed_allocation_is_an_error),
        cmocka_unit_test(random_sequences_agree_with_a_naive_cache),
        cmocka_unit_test(who_listens_knows_what_is_cached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
