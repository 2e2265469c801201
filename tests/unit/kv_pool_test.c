#include "tests/unit/testing.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/mem.h"
#include "common/rng.h"
#include "kv/pool.h"

static struct kv_pool *new_pool(uint32_t blocks_count)
{
    struct kv_pool *pool;
    assert_ok(kv_pool_new(&pool, blocks_count));
    return pool;
}

static void a_taken_block_comes_back_after_its_last_drop_only(void **state)
{
    (void)state;
    struct kv_pool *pool = new_pool(1);
    struct block_id b, none;
    assert_ok(kv_pool_take(pool, HOLD_RESERVE, &b));
    kv_pool_hold(pool, b, HOLD_TRANSFER);
    kv_pool_move(pool, b, HOLD_RESERVE, HOLD_SEQUENCE);
    kv_pool_hold(pool, b, HOLD_STEP);
    for (enum hold kind = HOLD_SEQUENCE; kind <= HOLD_STEP; kind++) {
        assert_int_equal(kv_pool_take(pool, HOLD_SEQUENCE, &none), ERR_FULL);
        assert_int_equal(none.v, BLOCK_NONE.v);
        kv_pool_drop(pool, b, kind);
    }
    assert_int_equal(kv_pool_holds_all(pool, b), 1);
    kv_pool_drop(pool, b, HOLD_TRANSFER);
    assert_int_equal(kv_pool_counts(pool).free, 1);
    kv_pool_free(pool);
}

static void a_mark_stays_while_somebody_holds_the_block(void **state)
{
    (void)state;
    struct kv_pool *pool = new_pool(1);
    struct block_id b;
    assert_ok(kv_pool_take(pool, HOLD_SEQUENCE, &b));
    assert_false(kv_pool_is_marked(pool, b));
    kv_pool_mark(pool, b, true);
    kv_pool_move(pool, b, HOLD_SEQUENCE, HOLD_CACHE);
    assert_true(kv_pool_is_marked(pool, b));
    kv_pool_mark(pool, b, false);
    assert_false(kv_pool_is_marked(pool, b));
    kv_pool_mark(pool, b, true);
    kv_pool_drop(pool, b, HOLD_CACHE);
    assert_false(kv_pool_is_marked(pool, b));
    assert_ok(kv_pool_take(pool, HOLD_SEQUENCE, &b));
    assert_false(kv_pool_is_marked(pool, b));
    kv_pool_free(pool);
}

static void the_state_is_that_of_the_strongest_hold(void **state)
{
    (void)state;
    struct {
        enum hold hold[3];
        uint32_t holds_count;
        struct kv_pool_counts counts;
    } row[] = {
        {{HOLD_CACHE}, 1, {.total = 2, .free = 1, .cached = 1}},
        {{HOLD_TRANSFER}, 1, {.total = 2, .free = 1, .transfer = 1}},
        {{HOLD_TRANSFER, HOLD_CACHE}, 2, {.total = 2, .free = 1, .transfer = 1}},
        {{HOLD_RESERVE, HOLD_TRANSFER}, 2, {.total = 2, .free = 1, .reserved = 1}},
        {{HOLD_STEP, HOLD_RESERVE}, 2, {.total = 2, .free = 1, .active = 1}},
        {{HOLD_SEQUENCE, HOLD_CACHE, HOLD_TRANSFER}, 3, {.total = 2, .free = 1, .active = 1}},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct kv_pool *pool = new_pool(2);
        struct block_id b;
        assert_ok(kv_pool_take(pool, row[i].hold[0], &b));
        for (uint32_t h = 1; h < row[i].holds_count; h++)
            kv_pool_hold(pool, b, row[i].hold[h]);
        struct kv_pool_counts counts = kv_pool_counts(pool);
        assert_memory_equal(&counts, &row[i].counts, sizeof counts);
        kv_pool_audit(pool);
        kv_pool_free(pool);
    }
}

static void the_block_freed_longest_ago_is_taken_first(void **state)
{
    (void)state;
    struct kv_pool *pool = new_pool(3);
    struct block_id b[3], again;
    for (int i = 0; i < 3; i++)
        assert_ok(kv_pool_take(pool, HOLD_SEQUENCE, &b[i]));
    uint32_t order[] = {1, 2, 0};
    for (int i = 0; i < 3; i++)
        kv_pool_drop(pool, b[order[i]], HOLD_SEQUENCE);
    for (int i = 0; i < 3; i++) {
        assert_ok(kv_pool_take(pool, HOLD_SEQUENCE, &again));
        assert_int_equal(again.v, b[order[i]].v);
    }
    kv_pool_free(pool);
}

static void many_are_dropped_as_each_of_them_would_be(void **state)
{
    (void)state;
    enum { BLOCKS = 30 };
    struct kv_pool *pool = new_pool(BLOCKS);
    struct block_id b[BLOCKS + 1], again;
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_ok(kv_pool_take(pool, HOLD_SEQUENCE, &b[i]));
    kv_pool_hold(pool, b[3], HOLD_SEQUENCE);
    b[BLOCKS] = b[3]; /* two holds, so named twice */
    kv_pool_drop_all(pool, b, BLOCKS + 1, HOLD_SEQUENCE);
    kv_pool_audit(pool);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_ok(kv_pool_take(pool, HOLD_SEQUENCE, &again));
        assert_int_equal(again.v, i < 3 ? i : i < BLOCKS - 1 ? i + 1 : 3);
    }
    kv_pool_free(pool);
}

static void candidates_are_cached_and_neither_parked_nor_pinned(void **state)
{
    (void)state;
    struct kv_pool *pool = new_pool(3);
    struct evict *order;
    struct block_id b[3];
    assert_ok(evict_new(&order, &(struct evict_config){.policy = EVICT_LRU}, 3));
    kv_pool_order(pool, order);
    for (int i = 0; i < 3; i++) {
        assert_ok(kv_pool_take(pool, HOLD_SEQUENCE, &b[i]));
        kv_pool_hold(pool, b[i], HOLD_CACHE);
        evict_known(order, b[i].v, 0, 0, 0);
    }
    assert_int_equal(evict_pick(order), EVICT_NONE);
    kv_pool_drop(pool, b[2], HOLD_SEQUENCE);
    kv_pool_drop(pool, b[0], HOLD_SEQUENCE);
    assert_int_equal(evict_pick(order), b[2].v);
    kv_pool_hold(pool, b[2], HOLD_SEQUENCE); /* used again: the youngest now */
    kv_pool_drop(pool, b[2], HOLD_SEQUENCE);
    assert_int_equal(evict_pick(order), b[0].v);

    kv_pool_park(pool, b[0]);
    assert_int_equal(evict_pick(order), b[2].v);
    assert_int_equal(kv_pool_parked_first(pool).v, b[0].v);
    assert_int_equal(kv_pool_counts(pool).cached, 2);
    kv_pool_audit(pool);
    kv_pool_hold(pool, b[0], HOLD_STEP);
    assert_int_equal(kv_pool_parked_first(pool).v, BLOCK_NONE.v);
    kv_pool_drop(pool, b[0], HOLD_STEP);
    assert_int_equal(kv_pool_parked_first(pool).v, b[0].v);
    kv_pool_unpark(pool, b[0]);
    assert_int_equal(kv_pool_parked_first(pool).v, BLOCK_NONE.v);
    assert_int_equal(evict_candidates_count(order), 2);

    kv_pool_pin(pool, b[2]);
    kv_pool_pin(pool, b[2]);
    kv_pool_unpin(pool, b[2]);
    assert_int_equal(kv_pool_counts(pool).pinned, 1);
    assert_int_equal(evict_pick(order), b[0].v);
    kv_pool_park(pool, b[2]); /* pinned and a parent: not even to be had through its children */
    assert_int_equal(kv_pool_parked_first(pool).v, BLOCK_NONE.v);
    kv_pool_unpark(pool, b[2]);
    kv_pool_audit(pool);
    kv_pool_unpin(pool, b[2]);
    assert_int_equal(kv_pool_counts(pool).pinned, 0);
    assert_int_equal(evict_candidates_count(order), 2);
    kv_pool_audit(pool);
    kv_pool_free(pool);
    evict_free(order);
}

static void drop_unheld(struct kv_pool *pool, struct block_id b)
{
    kv_pool_drop(pool, b, HOLD_STEP);
}
static void hold_free(struct kv_pool *pool, struct block_id b)
{
    kv_pool_drop(pool, b, HOLD_SEQUENCE);
    kv_pool_hold(pool, b, HOLD_SEQUENCE);
}
static void move_unheld(struct kv_pool *pool, struct block_id b)
{
    kv_pool_move(pool, b, HOLD_CACHE, HOLD_STEP);
}
static void drop_unknown(struct kv_pool *pool, struct block_id b)
{
    (void)b;
    kv_pool_drop(pool, (struct block_id){2}, HOLD_SEQUENCE);
}
static void pin_uncached(struct kv_pool *pool, struct block_id b)
{
    kv_pool_pin(pool, b);
}

static void pin_too_often(struct kv_pool *pool, struct block_id b)
{
    kv_pool_hold(pool, b, HOLD_CACHE);
    for (uint32_t i = 0; i <= UINT16_MAX; i++)
        kv_pool_pin(pool, b);
}
static void hold_too_often(struct kv_pool *pool, struct block_id b)
{
    for (uint32_t i = 0; i < UINT16_MAX; i++)
        kv_pool_hold(pool, b, HOLD_SEQUENCE);
}
static void free_pinned(struct kv_pool *pool, struct block_id b)
{
    kv_pool_move(pool, b, HOLD_SEQUENCE, HOLD_CACHE);
    kv_pool_pin(pool, b);
    kv_pool_drop(pool, b, HOLD_CACHE);
}
static void mark_free(struct kv_pool *pool, struct block_id b)
{
    kv_pool_drop(pool, b, HOLD_SEQUENCE);
    kv_pool_mark(pool, b, true);
}

static void broken_promises_stop_the_process(void **state)
{
    (void)state;
    void (*breach[])(struct kv_pool *, struct block_id) = {
        drop_unheld,   hold_free,      move_unheld, drop_unknown, pin_uncached,
        pin_too_often, hold_too_often, free_pinned, mark_free};
    for (size_t i = 0; i < sizeof breach / sizeof *breach; i++) {
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            close(STDERR_FILENO);
            signal(SIGABRT, SIG_DFL);
            struct kv_pool *pool = new_pool(2);
            struct block_id b;
            kv_pool_take(pool, HOLD_SEQUENCE, &b);
            breach[i](pool, b);
            _exit(0);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    }
}

/* The naive oracle: a matrix of counts, and every state found by looking. */
enum { ORACLE_BLOCKS = 23, ORACLE_STEPS = 40000 };
struct oracle {
    uint32_t holds[ORACLE_BLOCKS][HOLD_KINDS];
    uint32_t pins[ORACLE_BLOCKS];
    bool marked[ORACLE_BLOCKS];
};

static bool oracle_free(const struct oracle *o, uint32_t b)
{
    for (int k = 0; k < HOLD_KINDS; k++)
        if (o->holds[b][k]) return false;
    return true;
}

static struct kv_pool_counts oracle_counts(const struct oracle *o)
{
    struct kv_pool_counts c = {.total = ORACLE_BLOCKS};
    for (uint32_t b = 0; b < ORACLE_BLOCKS; b++) {
        const uint32_t *h = o->holds[b];
        if (h[HOLD_SEQUENCE] || h[HOLD_STEP])
            c.active++;
        else if (h[HOLD_RESERVE])
            c.reserved++;
        else if (h[HOLD_TRANSFER])
            c.transfer++;
        else if (h[HOLD_CACHE])
            c.cached++, c.pinned += o->pins[b] > 0;
        else
            c.free++;
    }
    return c;
}

static void random_step(struct kv_pool *pool, struct oracle *o, uint64_t seed, uint32_t step)
{
    struct rng_block r = rng_draw(seed, 0, step);
    uint32_t kind = rng_below(r.word[1], HOLD_KINDS), other = rng_below(r.word[3], HOLD_KINDS);
    struct block_id b = {rng_below(r.word[2], ORACLE_BLOCKS)};
    switch (rng_below(r.word[0], 8)) {
    case 0: {
        enum err e = kv_pool_take(pool, kind, &b);
        assert_int_equal(e, oracle_counts(o).free > 0 ? OK : ERR_FULL);
        if (e != OK) break;
        assert_true(oracle_free(o, b.v));
        o->holds[b.v][kind] = 1;
        break;
    }
    case 1:
        if (oracle_free(o, b.v)) break;
        kv_pool_hold(pool, b, kind);
        o->holds[b.v][kind]++;
        break;
    case 2:
        if (o->holds[b.v][kind] == 0) break;
        kv_pool_move(pool, b, kind, other);
        o->holds[b.v][kind]--;
        o->holds[b.v][other]++;
        break;
    case 3:
        if (oracle_free(o, b.v)) break;
        o->marked[b.v] = other % 2;
        kv_pool_mark(pool, b, o->marked[b.v]);
        break;
    case 4:
        if (other % 2 ? o->holds[b.v][HOLD_CACHE] == 0 : o->pins[b.v] == 0) break;
        o->pins[b.v] += other % 2 ? 1 : -1u;
        (other % 2 ? kv_pool_pin : kv_pool_unpin)(pool, b);
        break;
    default:
        if (o->holds[b.v][kind] == 0) break;
        while (o->pins[b.v] > 0 && kv_pool_holds_all(pool, b) == 1) {
            kv_pool_unpin(pool, b); /* it is to be free */
            o->pins[b.v]--;
        }
        kv_pool_drop(pool, b, kind);
        o->holds[b.v][kind]--;
        if (oracle_free(o, b.v)) o->marked[b.v] = false;
    }
}

static void random_operations_agree_with_a_naive_pool(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct kv_pool *pool = new_pool(ORACLE_BLOCKS);
        struct oracle o = {0};
        uint64_t allocations = mem_count();
        for (uint32_t step = 0; step < ORACLE_STEPS; step++) {
            random_step(pool, &o, seed, step);
            struct kv_pool_counts is = kv_pool_counts(pool), should = oracle_counts(&o);
            if (memcmp(&is, &should, sizeof is) != 0) fail_msg("seed %zu step %u", seed, step);
            if (step % 97 == 0) kv_pool_audit(pool);
        }
        for (uint32_t b = 0; b < ORACLE_BLOCKS; b++) {
            assert_int_equal(kv_pool_is_marked(pool, (struct block_id){b}), o.marked[b]);
            assert_int_equal(kv_pool_pins(pool, (struct block_id){b}), o.pins[b]);
            for (uint32_t k = 0; k < HOLD_KINDS; k++)
                assert_int_equal(kv_pool_holds(pool, (struct block_id){b}, k), o.holds[b][k]);
        }
        assert_int_equal(mem_count(), allocations);
        kv_pool_free(pool);
    }
}

static void a_pool_of_no_blocks_or_without_memory_is_an_error(void **state)
{
    (void)state;
    struct kv_pool *pool;
    assert_int_equal(kv_pool_new(&pool, 0), ERR_INVALID);
    assert_int_equal(kv_pool_new(&pool, UINT32_MAX), ERR_INVALID);
    for (int n = 1; n <= 5; n++) {
        mem_fail_at(n);
        assert_int_equal(kv_pool_new(&pool, 4), ERR_MEMORY);
        mem_fail_at(0);
        assert_null(pool);
    }
    kv_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_taken_block_comes_back_after_its_last_drop_only),
        cmocka_unit_test(a_mark_stays_while_somebody_holds_the_block),
        cmocka_unit_test(the_state_is_that_of_the_strongest_hold),
        cmocka_unit_test(the_block_freed_longest_ago_is_taken_first),
        cmocka_unit_test(many_are_dropped_as_each_of_them_would_be),
        cmocka_unit_test(candidates_are_cached_and_neither_parked_nor_pinned),
        cmocka_unit_test(broken_promises_stop_the_process),
        cmocka_unit_test(random_operations_agree_with_a_naive_pool),
        cmocka_unit_test(a_pool_of_no_blocks_or_without_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
