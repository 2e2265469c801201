#include "tests/unit/testing.h"

#include "common/heap.h"
#include "common/mem.h"
#include "common/rng.h"

static void equal_keys_come_out_in_the_order_they_came(void **state)
{
    (void)state;
    struct heap h = {0};
    struct heap_entry e[6] = {{.key = 5}, {.key = 3}, {.key = 5},
                              {.key = 3}, {.key = 5}, {.key = 1}};
    const int want[] = {5, 1, 3, 0, 2, 4};
    for (int i = 0; i < 6; i++)
        assert_ok(heap_push(&h, &e[i]));
    for (int i = 0; i < 6; i++) {
        assert_ptr_equal(heap_first(&h), &e[want[i]]);
        heap_remove(&h, heap_first(&h));
        assert_false(heap_holds(&e[want[i]]));
    }
    assert_null(heap_first(&h));
    heap_remove(&h, &e[0]); /* in no heap: harmless */
    heap_fini(&h);
}

enum { ENTRIES = 97, ROUNDS = 20000 };

/* The oracle: the entry that a search through all of them finds. */
static struct heap_entry *first_of(struct heap_entry *e)
{
    struct heap_entry *first = NULL;
    for (int i = 0; i < ENTRIES; i++) {
        if (!heap_holds(&e[i])) continue;
        if (!first || e[i].key < first->key ||
            (e[i].key == first->key && e[i].order < first->order))
            first = &e[i];
    }
    return first;
}

static void random_pushes_moves_and_removes_agree_with_a_search(void **state)
{
    (void)state;
    struct heap h = {0};
    struct heap_entry e[ENTRIES] = {0};
    for (uint32_t round = 0; round < ROUNDS; round++) {
        struct rng_block r = rng_draw(11, 0, round);
        struct heap_entry *entry = &e[rng_below(r.word[0], ENTRIES)];
        if (rng_below(r.word[1], 3) == 0)
            heap_remove(&h, entry);
        else
            assert_ok(heap_move(&h, entry, rng_below(r.word[2], 50)));
        assert_ptr_equal(heap_first(&h), first_of(e));
    }
    heap_fini(&h);
}

static void a_reserved_heap_does_not_allocate_and_a_full_one_says_so(void **state)
{
    (void)state;
    struct heap h = {0};
    struct heap_entry e[33] = {0};
    assert_ok(heap_reserve(&h, 32));
    uint64_t allocations = mem_count();
    for (int i = 0; i < 32; i++)
        assert_ok(heap_push(&h, &e[i]));
    assert_true(mem_count() == allocations);
    mem_fail_at(1);
    assert_int_equal(heap_push(&h, &e[32]), ERR_MEMORY);
    mem_fail_at(0);
    assert_false(heap_holds(&e[32]));
    assert_int_equal(h.count, 32);
    heap_fini(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_keys_come_out_in_the_order_they_came),
        cmocka_unit_test(random_pushes_moves_and_removes_agree_with_a_search),
        cmocka_unit_test(a_reserved_heap_does_not_allocate_and_a_full_one_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
