#include "tests/unit/testing.h"

#include "common/mem.h"
#include "common/rng.h"
#include "kv/evict.h"

enum { BLOCKS = 32, TTL_NS = 50 };

static struct evict *order_of(enum evict_policy policy, uint32_t blocks_count)
{
    struct evict *x;
    assert_ok(evict_new(&x, &(struct evict_config){policy, TTL_NS}, blocks_count));
    return x;
}

/* A story is told in words: "+a" enters the cache, "a" is found by a match and let go of again, "/" lets
 * one go that must be the one behind it. A block's depth is its letter's place, and its hash its letter;
 * what comes back comes under the same letter. */
static void tell(enum evict_policy policy, const char *story)
{
    struct evict *x = order_of(policy, BLOCKS);
    for (const char *c = story; *c; c++) {
        if (*c == ' ') continue;
        bool enters = *c == '+', leaves = *c == '/';
        if (enters || leaves) c++;
        uint32_t b = (uint32_t)(*c - 'a');
        if (leaves) {
            uint32_t picked = evict_pick(x);
            if (picked != b)
                fail_msg("policy %d: \"%s\": not '%c' went but '%c'", policy, story, *c,
                         picked == EVICT_NONE ? '-' : (char)('a' + picked));
            evict_remove(x, b);
            evict_gone(x, b);
            continue;
        }
        if (enters)
            evict_known(x, b, b + 1, b, 0);
        else
            evict_remove(x, b), evict_used(x, b);
        evict_released(x, b);
        evict_add(x, b);
    }
    evict_free(x);
}

static void each_policy_keeps_its_promise(void **state)
{
    (void)state;
    struct {
        enum evict_policy policy;
        const char *story;
    } row[] = {
        {EVICT_LRU, "+a +b +c a /b /c /a"},
        {EVICT_TTL, "+a +b +c a /b /c /a"},
        /* the fewest uses; of equals the longest unused */
        {EVICT_LFU, "+a +b +c a a b /c /b /a"},
        {EVICT_LFU, "+a +b +c a b c a b c /a /b /c"},
        /* what was used often once does not stay for ever: each that goes raises what newer ones have */
        {EVICT_LFU, "+a a a +b /b +c /c +d /a /d"},
        /* what is deeper in its prompt costs more; a use more weighs more than a few blocks */
        {EVICT_COST, "+f +a /a /f"},
        {EVICT_COST, "+b +a a /b /a"},
        /* first in, first out of the small queue, whoever was used once or not */
        {EVICT_S3FIFO, "+a +b +c a /a /b /c"},
        /* used twice: to the main queue, and passes the others */
        {EVICT_S3FIFO, "+a +b +c a a /b /c /a"},
        /* main: who was used there gets another round */
        {EVICT_S3FIFO, "+a +b a a b b +c /c a /b /a"},
        /* who comes back soon goes to the main queue */
        {EVICT_S3FIFO, "+a +b +c /a +a +d /b /c /d /a"},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        tell(row[i].policy, row[i].story);
}

static void a_long_prompts_end_costs_twice_its_beginning(void **state)
{
    (void)state;
    assert_int_equal(evict_cost(0), EVICT_COST_UNIT);
    assert_int_equal(evict_cost(EVICT_COST_EVEN_TOKENS / 16), 2 * EVICT_COST_UNIT);
    assert_true(evict_cost(UINT32_MAX) > evict_cost(UINT32_MAX - 2));
}

static void ranks_do_not_look_at_what_is_not_theirs(void **state)
{
    (void)state;
    struct evict_view v = {.turn = 9, .level = 100, .uses = 3, .depth = 2048};
    assert_int_equal(evict_rank(EVICT_LRU, &v), 9);
    assert_int_equal(evict_rank(EVICT_TTL, &v), 9);
    assert_int_equal(evict_rank(EVICT_LFU, &v), 103);
    assert_int_equal(evict_rank(EVICT_COST, &v), 100 + 3 * 2 * EVICT_COST_UNIT);
}

static void only_ttl_knows_time(void **state)
{
    (void)state;
    for (enum evict_policy p = 0; p < EVICT_POLICIES_COUNT; p++) {
        struct evict *x = order_of(p, BLOCKS);
        evict_tick(x, 1000);
        evict_known(x, 3, 1, 0, 0);
        evict_released(x, 3);
        evict_add(x, 3);
        evict_tick(x, 1000 + TTL_NS - 1);
        assert_int_equal(evict_expired(x), EVICT_NONE);
        evict_tick(x, 1000 + TTL_NS);
        assert_int_equal(evict_expired(x), p == EVICT_TTL ? 3 : EVICT_NONE);
        evict_tick(x, 10); /* a clock that went back ends nothing */
        assert_int_equal(evict_expired(x), EVICT_NONE);
        evict_free(x);
    }
    struct evict *x;
    assert_int_equal(evict_new(&x, &(struct evict_config){EVICT_TTL, 0}, 4), ERR_INVALID);
    assert_null(x);
}

static void a_failed_allocation_is_an_error(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 5; n++) {
        struct evict *x;
        mem_fail_at(n);
        assert_int_equal(evict_new(&x, &(struct evict_config){EVICT_S3FIFO, 0}, 4), ERR_MEMORY);
        mem_fail_at(0);
        assert_null(x);
    }
}

/* ---- beside a model that looks at every block, and has lists for queues ---- */

struct model_block {
    bool cached, candidate, in_main;
    uint64_t turn, level, entered, hash;
    uint32_t uses, depth, frequency;
};
struct model {
    enum evict_policy policy;
    struct model_block block[BLOCKS];
    uint64_t turn, level;
    /* hashes in the order in which they left the small queue, 0: taken again */
    uint64_t left[4096];
    uint32_t left_count;
};

static uint32_t model_count(const struct model *m, bool in_main)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < BLOCKS; i++)
        n += m->block[i].cached && m->block[i].in_main == in_main;
    return n;
}

/* The hash table of what left has one slot for BLOCKS hashes of equal low bits: the last one. */
static bool model_left_lately(struct model *m, uint64_t hash)
{
    uint32_t cached = model_count(m, false) + model_count(m, true);
    for (uint32_t i = m->left_count; i-- > 0;) {
        if (m->left[i] % BLOCKS != hash % BLOCKS) continue;
        if (m->left[i] != hash) return false;
        m->left[i] = BLOCKS * UINT64_C(1000) + hash % BLOCKS; /* nobody's, in the same slot */
        return m->left_count - (i + 1) < cached;
    }
    return false;
}

static uint64_t model_key(const struct model *m, const struct model_block *b)
{
    uint64_t cost = 1024 + b->depth * 16 * 1024 / 32768;
    switch (m->policy) {
    case EVICT_LFU: return b->level + b->uses;
    case EVICT_COST: return b->level + b->uses * cost;
    case EVICT_S3FIFO: return b->entered;
    default: return b->turn;
    }
}

static uint32_t model_first(const struct model *m, bool in_main)
{
    uint32_t first = EVICT_NONE;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        const struct model_block *b = &m->block[i], *f = &m->block[first % BLOCKS];
        if (!b->candidate || b->in_main != in_main) continue;
        uint64_t key = model_key(m, b), least = first == EVICT_NONE ? 0 : model_key(m, f);
        if (first == EVICT_NONE || key < least || (key == least && b->turn < f->turn)) first = i;
    }
    return first;
}

static uint32_t model_pick(struct model *m)
{
    if (m->policy != EVICT_S3FIFO) return model_first(m, false);
    while (true) {
        uint32_t s = model_first(m, false), l = model_first(m, true);
        uint32_t small = model_count(m, false), large = model_count(m, true);
        if (s == EVICT_NONE && l == EVICT_NONE) return EVICT_NONE;
        if (s != EVICT_NONE && (l == EVICT_NONE || small * 10 > small + large)) {
            if (m->block[s].frequency <= 1) return s;
            m->block[s].in_main = true;
            m->block[s].frequency = 0;
            m->block[s].entered = ++m->turn;
        } else {
            if (m->block[l].frequency == 0) return l;
            m->block[l].frequency--;
            m->block[l].entered = ++m->turn;
        }
    }
}

static void model_gone(struct model *m, uint32_t i)
{
    struct model_block *b = &m->block[i];
    if (m->policy != EVICT_S3FIFO) {
        if (model_key(m, b) > m->level) m->level = model_key(m, b);
    } else if (!b->in_main) {
        m->left[m->left_count++] = b->hash;
    }
    b->cached = b->candidate = false;
}

static void enters(struct evict *x, struct model *m, uint32_t i, struct rng_block r)
{
    uint64_t hash = 1 + r.word[2] % (3 * BLOCKS);
    uint32_t depth = r.word[3] % 5000;
    evict_known(x, i, hash, depth, 0);
    bool again = m->policy == EVICT_S3FIFO && model_left_lately(m, hash);
    m->block[i] = (struct model_block){true,      .hash = hash,      .depth = depth,
                                       .uses = 1, .level = m->level, .in_main = again};
    m->block[i].entered = ++m->turn;
}

static void is_used(struct evict *x, struct model *m, uint32_t i)
{
    struct model_block *b = &m->block[i];
    if (b->candidate) evict_remove(x, i);
    evict_used(x, i);
    evict_released(x, i);
    evict_add(x, i);
    b->uses += b->uses < 64;
    b->level = m->level;
    b->frequency += b->frequency < 3;
    b->turn = ++m->turn;
    b->candidate = true;
}

static void goes(struct evict *x, struct model *m)
{
    uint32_t i = evict_pick(x);
    assert_int_equal(i, model_pick(m));
    if (i == EVICT_NONE) return;
    evict_remove(x, i);
    evict_gone(x, i);
    model_gone(m, i);
}

static void random_uses_agree_with_a_naive_model(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4 * EVICT_POLICIES_COUNT; seed++) {
        static struct model m;
        m = (struct model){.policy = seed % EVICT_POLICIES_COUNT};
        struct evict *x = order_of(m.policy, BLOCKS);
        uint64_t allocations = mem_count();
        for (uint32_t step = 0; step < 3000; step++) {
            struct rng_block r = rng_draw(seed, 2, step);
            uint32_t i = r.word[0] % BLOCKS;
            if (!m.block[i].cached) {
                enters(x, &m, i, r);
            } else if (r.word[1] % 3 == 0) {
                goes(x, &m);
            } else if (r.word[1] % 3 == 1 && m.block[i].candidate) { /* somebody holds it */
                evict_remove(x, i);
                m.block[i].candidate = false;
            } else {
                is_used(x, &m, i);
            }
            assert_int_equal(evict_is_candidate(x, i), m.block[i].candidate);
        }
        assert_int_equal(mem_count(), allocations);
        evict_free(x);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_policy_keeps_its_promise),
        cmocka_unit_test(a_long_prompts_end_costs_twice_its_beginning),
        cmocka_unit_test(ranks_do_not_look_at_what_is_not_theirs),
        cmocka_unit_test(only_ttl_knows_time),
        cmocka_unit_test(a_failed_allocation_is_an_error),
        cmocka_unit_test(random_uses_agree_with_a_naive_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
