/* UTF-8 and the normal forms. */
#include "tests/unit/testing.h"

#include <string.h>

#include "common/mem.h"
#include "common/utf8.h"
#include "text/unicode.h"

static void valid_text_ends_where_it_stops_being_valid(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t valid;
    } rows[] = {
        {"", 0},
        {"plain text, longer than a word", 30},
        {"h\xC3\xA9", 3},
        {"a\xC0\x80", 1},            /* overlong */
        {"\xE0\x9F\xBF", 0},         /* overlong */
        {"\xED\x9F\xBF", 3},         /* the last before the surrogates */
        {"\xED\xA0\x80", 0},         /* a surrogate */
        {"\xF4\x8F\xBF\xBF", 4},     /* U+10FFFF */
        {"\xF4\x90\x80\x80", 0},     /* beyond */
        {"12345678\xF0\x9F\x98", 8}, /* cut short */
        {"\x80", 0},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_int_equal(utf8_check(rows[i].bytes, strlen(rows[i].bytes)), rows[i].valid);
}

static void a_byte_order_mark_is_one_only_where_text_begins(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t mark;
    } rows[] = {{"", 0},
                {"\xEF\xBB", 0},
                {"\xEF\xBB\xBF", 3},
                {"\xEF\xBB\xBF{}", 3},
                {"a\xEF\xBB\xBF", 0},
                {"\xEF\xBB\xBE", 0}};
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_int_equal(utf8_mark(rows[i].bytes, strlen(rows[i].bytes)), rows[i].mark);
}

static void every_character_survives_writing_and_reading(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 97) {
        if (c >= 0xD800 && c < 0xE000) continue;
        char bytes[4];
        uint32_t back;
        size_t n = utf8_write(c, bytes);
        assert_int_equal(utf8_check(bytes, n), n);
        assert_int_equal(utf8_read(bytes, n, &back), n);
        assert_int_equal(back, c);
        assert_int_equal(utf8_before(bytes, n), 0);
    }
}

static void normal_forms_are_those_of_unicode(void **state)
{
    (void)state;
    static const struct {
        enum unicode_form form;
        const char *text, *normal;
    } rows[] = {
        {UNICODE_NFC, "e\u0301", "\u00E9"},
        {UNICODE_NFD, "\u00E9", "e\u0301"},
        {UNICODE_NFC, "\uFB01", "\uFB01"},
        {UNICODE_NFKC, "\uFB01\u00A0\uFF21", "fi A"},
        {UNICODE_NFKD, "\u00C5\u00BD", "A\u030A1\u20442"},
        {UNICODE_NFD, "a\u0301\u0316", "a\u0316\u0301"},
        {UNICODE_NFC, "\u1100\u1161\u11A8", "\uAC01"},
        {UNICODE_NFD, "\uAC01", "\u1100\u1161\u11A8"},
        {UNICODE_NFC, "\u212B\u0958", "\u00C5\u0915\u093C"},
        {UNICODE_NFC, "plain", "plain"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct buf out = {0};
        enum err e = unicode_normalize(rows[i].form, rows[i].text, strlen(rows[i].text), &out);
        assert_ok(e);
        assert_int_equal(out.size, strlen(rows[i].normal));
        assert_memory_equal(out.data, rows[i].normal, out.size);
        buf_fini(&out);
    }
}

/* Sorted by insertion this run would take minutes. */
static void a_long_run_of_accents_is_sorted_at_once(void **state)
{
    (void)state;
    size_t pairs = 100000;
    char *text = malloc(1 + 4 * pairs);
    assert_non_null(text);
    text[0] = 'q';
    for (size_t i = 0; i < pairs; i++) {
        memcpy(text + 1 + 2 * i, "\u0301", 2);
        memcpy(text + 1 + 2 * (pairs + i), "\u0316", 2);
    }
    struct buf out = {0};
    assert_ok(unicode_normalize(UNICODE_NFC, text, 1 + 4 * pairs, &out));
    assert_int_equal(out.size, 1 + 4 * pairs);
    assert_memory_equal(out.data + 1, "\u0316", 2);
    assert_memory_equal(out.data + out.size - 2, "\u0301", 2);
    buf_fini(&out);
    free(text);
}

static void lower_case_of_a_letter_may_be_two_characters(void **state)
{
    (void)state;
    static const char text[] = "\u00C9A\u0130\u03A3\u1E9E", lower[] = "\u00E9ai\u0307\u03C3\u00DF";
    struct buf out = {0};
    assert_ok(unicode_lower(text, strlen(text), &out));
    assert_int_equal(out.size, strlen(lower));
    assert_memory_equal(out.data, lower, out.size);
    buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(valid_text_ends_where_it_stops_being_valid),
        cmocka_unit_test(a_byte_order_mark_is_one_only_where_text_begins),
        cmocka_unit_test(every_character_survives_writing_and_reading),
        cmocka_unit_test(normal_forms_are_those_of_unicode),
        cmocka_unit_test(a_long_run_of_accents_is_sorted_at_once),
        cmocka_unit_test(lower_case_of_a_letter_may_be_two_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
