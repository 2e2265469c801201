#include "tests/unit/testing.h"

#include <string.h>

#include "common/err.h"
#include "common/mem.h"

static void memory_is_zeroed_aligned_and_counted(void **state)
{
    (void)state;
    uint64_t before = mem_count();
    unsigned char *a = mem_new(100), *b = mem_aligned(100, 64);
    for (int i = 0; i < 100; i++)
        assert_int_equal(a[i] | b[i], 0);
    assert_int_equal((uintptr_t)b % 64, 0);
    assert_int_equal(mem_count() - before, 2);
    mem_free(a);
    mem_free(b);
    mem_free(NULL);
    unsigned char *large = mem_table(3, 1 << 20);
    for (uint32_t i = 0; i < 3 << 20; i += 512)
        assert_int_equal(large[i], 0);
    mem_free(large);
}

static void a_product_that_overflows_is_no_memory(void **state)
{
    (void)state;
    assert_null(mem_array(SIZE_MAX / 2, 3));
    assert_null(mem_table(SIZE_MAX / 2, 3));
    assert_null(mem_resize(NULL, SIZE_MAX / 2, 3));
    assert_null(arena_take(&(struct arena){0}, SIZE_MAX));
}

static void the_nth_allocation_fails_once(void **state)
{
    (void)state;
    mem_fail_at(2);
    void *a = mem_new(1), *b = mem_new(1), *c = mem_new(1);
    assert_true(a && !b && c);
    assert_non_null(strstr(err_text(), "out of memory"));
    mem_free(a);
    mem_free(c);
}

static void an_arena_gives_zeroed_memory_again_after_a_reset(void **state)
{
    (void)state;
    struct arena a = {0};
    for (int round = 0; round < 3; round++) {
        for (size_t size = 1; size < 20000; size = size * 3 + 1) {
            unsigned char *p = arena_take(&a, size);
            assert_int_equal((uintptr_t)p % 16, 0);
            for (size_t i = 0; i < size; i++)
                assert_int_equal(p[i], 0);
            memset(p, 0xff, size);
        }
        assert_string_equal(arena_copy(&a, "text", 2), "te");
        arena_reset(&a);
    }
    uint64_t before = mem_count();
    assert_non_null(arena_take(&a, 4096)); /* the chunk stayed */
    assert_int_equal(mem_count(), before);
    arena_fini(&a);
}

static void an_arena_keeps_its_limit(void **state)
{
    (void)state;
    struct arena a = {.limit_bytes = 10000};
    size_t taken = 0;
    while (arena_take(&a, 160))
        taken += 160;
    assert_in_range(taken, 5000, 10000);
    assert_true(a.held_bytes <= a.limit_bytes);
    assert_null(arena_take(&a, 20000));
    arena_reset(&a);
    assert_non_null(arena_take(&a, 160));
    arena_fini(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zeroed_aligned_and_counted),
        cmocka_unit_test(a_product_that_overflows_is_no_memory),
        cmocka_unit_test(the_nth_allocation_fails_once),
        cmocka_unit_test(an_arena_gives_zeroed_memory_again_after_a_reset),
        cmocka_unit_test(an_arena_keeps_its_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
