#include "tests/unit/testing.h"

#include "common/map.h"
#include "common/mem.h"
#include "common/rng.h"

enum { KEYS = 300, ROUNDS = 30000 };

static struct id128 key_of(uint32_t i)
{
    /* Ids that differ in one half only, and small integers: what a weak mix would pile up. */
    return i % 3 == 0   ? map_key(i)
           : i % 3 == 1 ? (struct id128){i, 0}
                        : (struct id128){(uint64_t)i << 56, (uint64_t)i << 48};
}

static void random_use_agrees_with_an_array(void **state)
{
    (void)state;
    struct map m = {0};
    int values[KEYS];
    int *oracle[KEYS] = {0};
    size_t count = 0;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        struct rng_block r = rng_draw(5, 0, round);
        uint32_t i = rng_below(r.word[0], KEYS);
        /* waves: mostly growing, then mostly shrinking */
        if (rng_below(r.word[1], 10) < (round / 3000 % 2 ? 3 : 7)) {
            assert_int_equal(map_put(&m, key_of(i), &values[i]), oracle[i] ? ERR_DUPLICATE : OK);
            count += !oracle[i];
            oracle[i] = &values[i];
        } else {
            assert_ptr_equal(map_remove(&m, key_of(i)), oracle[i]);
            count -= oracle[i] != NULL;
            oracle[i] = NULL;
        }
        assert_int_equal(m.count, count);
        uint32_t other = rng_below(r.word[2], KEYS);
        assert_ptr_equal(map_get(&m, key_of(other)), oracle[other]);
    }
    for (uint32_t i = 0; i < KEYS; i++)
        assert_ptr_equal(map_get(&m, key_of(i)), oracle[i]);
    map_fini(&m);
}

static void a_walk_sees_each_entry_once_with_its_key(void **state)
{
    (void)state;
    struct map m = {0};
    int values[KEYS] = {0};
    assert_null(map_next(&m, &(struct map_cursor){0}));
    for (uint32_t i = 0; i < KEYS; i++)
        assert_ok(map_put(&m, key_of(i), &values[i]));
    int *v;
    for (struct map_cursor c = {0}; (v = map_next(&m, &c));) {
        assert_true(id128_equal(c.key, key_of((uint32_t)(v - values))));
        ++*v;
    }
    for (uint32_t i = 0; i < KEYS; i++)
        assert_int_equal(values[i], 1);
    map_fini(&m);
}

static void a_reserved_map_does_not_allocate_and_a_failed_growth_keeps_it(void **state)
{
    (void)state;
    struct map m = {0};
    int value;
    assert_ok(map_reserve(&m, 48)); /* 64 slots, three quarters */
    uint64_t allocations = mem_count();
    for (uint32_t i = 0; i < 48; i++)
        assert_ok(map_put(&m, map_key(i), &value));
    assert_true(mem_count() == allocations);
    mem_fail_at(1);
    assert_int_equal(map_put(&m, map_key(48), &value), ERR_MEMORY);
    mem_fail_at(0);
    for (uint32_t i = 0; i < 48; i++)
        assert_ptr_equal(map_get(&m, map_key(i)), &value);
    assert_null(map_get(&m, map_key(48)));
    map_fini(&m);
    assert_null(map_remove(&m, map_key(0)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_use_agrees_with_an_array),
        cmocka_unit_test(a_walk_sees_each_entry_once_with_its_key),
        cmocka_unit_test(a_reserved_map_does_not_allocate_and_a_failed_growth_keeps_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
