#include "tests/unit/testing.h"

#include "common/byte_order.h"

static void bytes_are_in_the_order_of_the_format_wherever_they_stand(void **state)
{
    (void)state;
    static const uint8_t rising[9] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    uint8_t got[9] = {0};
    assert_true(le32_get(rising + 1) == 0x04030201);
    assert_true(le64_get(rising + 1) == 0x0807060504030201);
    assert_true(be64_get(rising + 1) == 0x0102030405060708);
    le32_put(got + 1, 0x04030201);
    assert_memory_equal(got, rising, 5);
    le64_put(got + 1, 0x0807060504030201);
    assert_memory_equal(got, rising, 9);
    be64_put(got + 1, 0x0102030405060708);
    assert_memory_equal(got, rising, 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_are_in_the_order_of_the_format_wherever_they_stand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
