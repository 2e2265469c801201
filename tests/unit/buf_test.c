#include "tests/unit/testing.h"

#include <string.h>

#include "common/buf.h"
#include "common/mem.h"
#include "common/utf8.h"

#define R UTF8_REPLACEMENT

static void appends_grow_and_keep_a_zero_behind(void **state)
{
    (void)state;
    struct buf b = {0};
    char long_text[600];
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    assert_ok(buf_printf(&b, "%d-%s", 42, "a"));
    assert_string_equal(b.data, "42-a");
    assert_ok(buf_printf(&b, "%s", long_text));
    assert_int_equal(b.size, 4 + strlen(long_text));
    assert_int_equal(strlen(b.data), b.size);
    assert_string_equal(b.data + 4, long_text);
    buf_clear(&b);
    assert_string_equal(b.data, "");
    char *taken = buf_take(&b);
    assert_string_equal(taken, "");
    mem_free(taken);
    buf_fini(&b);
}

static void a_part_is_kept_or_dropped(void **state)
{
    (void)state;
    struct buf b = {0};
    buf_cut(&b, 0);
    buf_drop(&b, 0);
    assert_null(b.data);
    assert_ok(buf_add(&b, "abcdef", 6));
    buf_drop(&b, 2);
    assert_string_equal(b.data, "cdef");
    buf_cut(&b, 3);
    assert_string_equal(b.data, "cde");
    assert_int_equal(b.size, 3);
    buf_drop(&b, 3);
    assert_string_equal(b.data, "");
    buf_fini(&b);
}

static void json_strings_are_escaped_and_always_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *want;
    } cases[] = {
        {"", "\"\""},
        {"plain", "\"plain\""},
        {"q\"b\\n\nr\rt\t\x01\x7f", "\"q\\\"b\\\\n\\nr\\rt\\t\\u0001\\u007f\""},
        {"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\""},
        {"\xc0\x80", "\"\\ufffd\\ufffd\""},                       /* overlong */
        {"\xed\xa0\x80", "\"\\ufffd\\ufffd\\ufffd\""},            /* surrogate */
        {"a\xe2\x82", "\"a\\ufffd\\ufffd\""},                     /* cut off */
        {"\xf4\x90\x80\x80", "\"\\ufffd\\ufffd\\ufffd\\ufffd\""}, /* beyond U+10FFFF */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct buf b = {0};
        assert_ok(buf_json_string(&b, cases[i].text, strlen(cases[i].text)));
        assert_string_equal(b.data, cases[i].want);
        buf_fini(&b);
    }
}

static void the_limit_holds_and_the_first_error_stays(void **state)
{
    (void)state;
    struct buf b = {.limit_bytes = 8};
    assert_ok(buf_add(&b, "12345678", 8));
    assert_int_equal(buf_add(&b, "9", 1), ERR_FULL);
    assert_int_equal(buf_add(&b, "", 0), ERR_FULL);
    assert_string_equal(b.data, "12345678");
    assert_null(buf_take(&b));
    buf_clear(&b);
    assert_ok(buf_add(&b, "9", 1));
    buf_fini(&b);
}

static void a_failed_allocation_is_an_error(void **state)
{
    (void)state;
    struct buf b = {0};
    mem_fail_at(1);
    assert_int_equal(buf_printf(&b, "x"), ERR_MEMORY);
    mem_fail_at(0);
    assert_int_equal(buf_add_string(&b, "y"), ERR_MEMORY);
    buf_fini(&b);
}

static void one_replacement_stands_for_the_longest_broken_beginning(void **state)
{
    (void)state;
    static const struct {
        const char *bytes, *lossy;
        size_t held; /* at the end, while more may come */
    } rows[] = {
        {"ok", "ok", 0},
        {"\xFF\xFE", R R, 0},
        {"\xE4\xBDx", R "x", 0},
        {"\xF0\x9F\x98", R, 3},
        {"\xF0\x9F\xC3\xA9", R "\xC3\xA9", 0},
        {"a\xE4", "a" R, 1},
        {"\xED\xA0\x80", R R R, 0},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        size_t length = strlen(rows[i].bytes), used;
        struct buf out = {0};
        assert_ok(buf_add_lossy(&out, rows[i].bytes, length, false, &used));
        assert_int_equal(length - used, rows[i].held);
        buf_clear(&out);
        assert_ok(buf_add_lossy(&out, rows[i].bytes, length, true, &used));
        assert_int_equal(used, length);
        assert_int_equal(out.size, strlen(rows[i].lossy));
        assert_memory_equal(out.data, rows[i].lossy, out.size);
        buf_fini(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(appends_grow_and_keep_a_zero_behind),
        cmocka_unit_test(a_part_is_kept_or_dropped),
        cmocka_unit_test(json_strings_are_escaped_and_always_utf8),
        cmocka_unit_test(one_replacement_stands_for_the_longest_broken_beginning),
        cmocka_unit_test(the_limit_holds_and_the_first_error_stays),
        cmocka_unit_test(a_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
