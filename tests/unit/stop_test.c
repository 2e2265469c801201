/* Stop strings: which one is hit, what is shown and what is held back, however the text is cut. */
#include "tests/unit/testing.h"

#include <string.h>

#include "common/mem.h"
#include "text/stop.h"

struct row {
    const char *stops[4];
    const char *text;
    const char *shown;
    int hit;
};

static const struct row rows[] = {
    {{"stop"}, "go on", "go on", STOP_NONE},
    {{"stop"}, "now stop here", "now ", 0},
    {{"stop"}, "ststop", "st", 0},
    {{"stop"}, "sto", "sto", STOP_NONE},
    {{"stop"}, "stostostop!", "stosto", 0},
    {{"aab"}, "aaaab", "aa", 0},
    {{"abab", "bb"}, "ababb", "", 0},
    {{"abcd", "bc"}, "abcd", "a", 1},
    {{"c", "bc", "abc"}, "xabc", "x", 2},
    {{"\n\n", "User:"}, "line\nUser: hi", "line\n", 1},
    {{"\n\n", "User:"}, "line\n\nUser:", "line", 0},
    {{"é"}, "caf\xC3\xA8 caf\xC3\xA9!", "caf\xC3\xA8 caf", 0},
    {{NULL}, "anything", "anything", STOP_NONE},
    {{"x"}, "x", "", 0},
    {{"ab"}, "", "", STOP_NONE},
};

static struct stop *make(const struct row *r)
{
    struct stop_string strings[4];
    size_t count = 0;
    for (; count < 4 && r->stops[count]; count++)
        strings[count] = (struct stop_string){r->stops[count], strlen(r->stops[count])};
    struct stop *s;
    assert_ok(stop_new(&s, strings, count));
    return s;
}

static void check(const struct row *r, size_t piece)
{
    char shown[64];
    size_t length = 0, text_length = strlen(r->text);
    struct stop *s = make(r);
    struct stop_shown out = {.hit = STOP_NONE};
    for (size_t at = 0; at < text_length; at += piece) {
        size_t n = text_length - at < piece ? text_length - at : piece;
        assert_ok(stop_push(s, r->text + at, n, &out));
        memcpy(shown + length, out.text, out.length);
        length += out.length;
    }
    assert_int_equal(out.hit, r->hit);
    stop_finish(s, &out);
    memcpy(shown + length, out.text, out.length);
    length += out.length;
    assert_int_equal(length, strlen(r->shown));
    assert_memory_equal(shown, r->shown, length);
    stop_free(s);
}

static void the_first_stop_string_ends_the_text_however_it_is_cut(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        for (size_t piece = 1; piece <= strlen(rows[i].text) + 1; piece++)
            check(&rows[i], piece);
}

static void only_what_could_begin_a_stop_string_is_held_back(void **state)
{
    (void)state;
    static const struct row r = {{"END", "\n"}, NULL, NULL, 0};
    struct stop *s = make(&r);
    struct stop_shown out;
    assert_ok(stop_push(s, "the EN", 6, &out));
    assert_int_equal(out.length, 4);
    assert_ok(stop_push(s, "T", 1, &out));
    assert_int_equal(out.length, 3);
    assert_memory_equal(out.text, "ENT", 3);
    stop_free(s);
}

static void text_behind_a_hit_is_ignored(void **state)
{
    (void)state;
    static const struct row r = {{"."}, NULL, NULL, 0};
    struct stop *s = make(&r);
    struct stop_shown out;
    assert_ok(stop_push(s, "a.b", 3, &out));
    assert_int_equal(out.hit, 0);
    assert_ok(stop_push(s, "c.", 2, &out));
    assert_int_equal(out.hit, 0);
    assert_int_equal(out.length, 0);
    stop_free(s);
}

static void limits_are_kept(void **state)
{
    (void)state;
    static char longest[STOP_LENGTH_MAX + 1];
    static struct stop_string strings[STOP_STRINGS_MAX + 1];
    memset(longest, 'a', sizeof longest);
    for (size_t i = 0; i < COUNT_OF(strings); i++)
        strings[i] = (struct stop_string){longest, STOP_LENGTH_MAX};
    struct stop *s;
    assert_ok(stop_new(&s, strings, STOP_STRINGS_MAX));
    stop_free(s);
    assert_int_equal(stop_new(&s, strings, STOP_STRINGS_MAX + 1), ERR_INVALID);
    strings[1].length = STOP_LENGTH_MAX + 1;
    assert_int_equal(stop_new(&s, strings, 2), ERR_INVALID);
    assert_string_equal(err_text(), "stop string 1 has 1025 bytes, 1 to 1024 are allowed");
    strings[0].length = 0;
    assert_int_equal(stop_new(&s, strings, 1), ERR_INVALID);
    strings[0] = (struct stop_string){"\xC3", 1};
    assert_int_equal(stop_new(&s, strings, 1), ERR_INVALID);
}

static void a_failed_allocation_leaves_it_usable(void **state)
{
    (void)state;
    struct stop_string strings[] = {{"stop", 4}, {"halt", 4}};
    struct stop *s = NULL;
    uint64_t n = 1;
    for (; n < 100; n++) {
        mem_fail_at(n);
        enum err e = stop_new(&s, strings, 2);
        mem_fail_at(0);
        if (e == OK) break;
        assert_int_equal(e, ERR_MEMORY);
    }
    assert_in_range(n, 2, 99);
    struct stop_shown out;
    for (n = 1; n <= 2; n++) {
        mem_fail_at(n);
        assert_int_equal(stop_push(s, "a st", 4, &out), ERR_MEMORY);
    }
    mem_fail_at(0);
    assert_ok(stop_push(s, "a st", 4, &out));
    assert_int_equal(out.length, 2);
    assert_ok(stop_push(s, "op", 2, &out));
    assert_int_equal(out.hit, 0);
    stop_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_stop_string_ends_the_text_however_it_is_cut),
        cmocka_unit_test(only_what_could_begin_a_stop_string_is_held_back),
        cmocka_unit_test(text_behind_a_hit_is_ignored),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(a_failed_allocation_leaves_it_usable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
