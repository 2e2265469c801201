#include "tests/unit/testing.h"

#include "common/list.h"

struct item {
    int value;
    struct list_link link;
};

static void expect(struct list_link *head, const char *want)
{
    for (struct list_link *l = head->next; l != head; l = l->next, want++) {
        assert_int_equal(list_member(l, struct item, link)->value, *want);
        assert_ptr_equal(l->next->previous, l);
    }
    assert_int_equal(*want, 0);
}

static void links_join_leave_and_pop_in_order(void **state)
{
    (void)state;
    struct item a = {.value = 'a'}, b = {.value = 'b'}, c = {.value = 'c'};
    struct list_link head;
    list_init(&head);
    list_init(&a.link);
    assert_true(list_empty(&head));
    assert_null(list_pop_front(&head));
    list_push_back(&head, &b.link);
    list_push_back(&head, &c.link);
    list_insert_before(&b.link, &a.link);
    expect(&head, "abc");
    list_remove(&b.link);
    list_remove(&b.link); /* in no list: harmless */
    assert_true(list_empty(&b.link));
    expect(&head, "ac");
    list_insert_before(&c.link, &b.link);
    expect(&head, "abc");
    assert_ptr_equal(list_pop_front(&head), &a.link);
    assert_ptr_equal(list_pop_front(&head), &b.link);
    assert_ptr_equal(list_pop_front(&head), &c.link);
    assert_true(list_empty(&head));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(links_join_leave_and_pop_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
