#include "tests/unit/testing.h"

#include <string.h>

#include "common/id.h"

static void an_id_survives_printing_and_parsing(void **state)
{
    (void)state;
    const struct id128 ids[] = {{0, 1}, {1, 0}, {UINT64_MAX, UINT64_MAX}, {0x0123456789abcdef, 42}};
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        char text[ID128_TEXT];
        struct id128 back;
        id128_print(ids[i], text);
        assert_int_equal(strlen(text), 32);
        assert_ok(id128_parse(text, strlen(text), &back));
        assert_true(id128_equal(ids[i], back));
    }
    struct id128 upper;
    assert_ok(id128_parse("00000000000000000000000000ABCDEF", 32, &upper));
    assert_true(upper.lo == 0xabcdef);
}

static void anything_but_32_hex_digits_is_refused(void **state)
{
    (void)state;
    const char *const bad[] = {"",
                               "0",
                               "0123456789abcdef0123456789abcde",
                               "0123456789abcdef0123456789abcdef0",
                               "0123456789abcdef0123456789abcdeg",
                               " 123456789abcdef0123456789abcdef",
                               "0x23456789abcdef0123456789abcdef"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct id128 id = {1, 1};
        assert_int_equal(id128_parse(bad[i], strlen(bad[i]), &id), ERR_INVALID);
        assert_true(id128_is_none(id));
    }
}

static void minted_ids_differ_and_are_never_none(void **state)
{
    (void)state;
    struct id128 a, b;
    assert_ok(id128_mint(&a));
    assert_ok(id128_mint(&b));
    assert_false(id128_equal(a, b));
    assert_false(id128_is_none(a));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_id_survives_printing_and_parsing),
        cmocka_unit_test(anything_but_32_hex_digits_is_refused),
        cmocka_unit_test(minted_ids_differ_and_are_never_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
