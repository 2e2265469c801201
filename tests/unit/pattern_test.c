/* Patterns: Oniguruma's meaning under PCRE2, and texts that make matchers slow. */
#include "tests/unit/testing.h"

#include <string.h>

#include "common/mem.h"
#include "text/oniguruma.h"
#include "text/pattern.h"

/* All matches, each followed by |. */
static enum err matches(const char *source, const char *text, size_t length, struct buf *out)
{
    struct pattern p;
    struct pattern_scratch *scratch;
    enum err e = pattern_init(&p, PATTERN_REGEX, source, strlen(source));
    if (e != OK) return e;
    assert_ok(pattern_scratch_new(&scratch));
    struct pattern_walk w = {.text = text, .length = length};
    while ((e = pattern_next(&p, scratch, &w)) == OK && w.found) {
        assert_ok(buf_add(out, text + w.start, w.end - w.start));
        assert_ok(buf_add(out, "|", 1));
    }
    pattern_scratch_free(scratch);
    pattern_fini(&p);
    return e;
}

/* What Oniguruma 6.9 finds, in its Ruby syntax and in UTF-8. */
static void expressions_mean_what_oniguruma_means(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *text, *found;
    } rows[] = {
        {"\\p{N}{1,3}", "1234567a", "123|456|7|"},
        {"\\p{N}{1,3}+", "1234567a", "1234567|"},
        {"a{,2}b", "aaab", "aab|"},
        {"a**", "aab", "aa||"},
        {"a{2}?b", "b aab", "b|aab|"},
        {"\\s+$", "a  \n b  ", "  |  |"},
        {"\\s++$", "a  \n b  ", "  |"},
        {"^a", "a\na", "a|a|"},
        {"a.b", "a\nb axb", "axb|"},
        {"(?m:a.b)", "a\nb", "a\nb|"},
        {"(?i)AB|x", "abXB", "ab|X|"},
        {"\\h+", "xafg", "af|"},
        {"\\v", "a\x0b\n", "\x0b|"},
        {"[a-c&&[^b]]+", "abcabc", "a|ca|c|"},
        {"[a[bc]]+", "abcabcd", "abcabc|"},
        {"[]a]+", "]a!", "]a|"},
        {"[\\S\n]+", "a \nb", "a|\nb|"},
        {"[^\\S]", "a b", " |"},
        {"\\p{Han}+", "\u4f60\u3001\u597da", "\u4f60|\u597d|"},
        {"\\p{^L}+", "ab1", "1|"},
        {"\\P{Letter}+", "ab1", "1|"},
        {"\\p{Alpha}+", "a\u24b71", "a\u24b7|"},
        {"\\p{Punct}+", "a$+,\u00a2", "$+,\u00a2|"},
        {"[[:^alpha:]]", "a1", "1|"},
        {"\\w+", "a\u0301b\u200dc\u2460_\u00b2", "a\u0301b|c|_\u00b2|"},
        {"\\b\u00e9", "\u00e9 a\u00e9", "\u00e9|"},
        {"\\s", "\u180e\xC2\x85\u200b\u00a0", "\xC2\x85|\u00a0|"},
        {"\\d+", "1\u0663\u00b2", "1\u0663|"},
        {"[\\u00e4-\\u00f0]\\x{61}", "\u00e4a", "\u00e4a|"},
        {"(?i:'s)", "'\u017f 'S", "'\u017f|'S|"},
        {"(?<=a)b", "ab", "b|"},
        {"(?>a+)b|(c)\\1", "aab cc", "aab|cc|"},
        {"(?#note)a#", "a#", "a#|"},
        {"(?<year>\\d)x", "1x", "1x|"},
        {"[a\\-z]+", "a-zb", "a-z|"},
        {"x*", "axa", "|x||"},
        {"{a}", "{a}", "{a}|"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct buf out = {0};
        enum err e = matches(rows[i].pattern, rows[i].text, strlen(rows[i].text), &out);
        if (e != OK) fail_msg("%s: %s", rows[i].pattern, err_text());
        if (out.size != strlen(rows[i].found) || memcmp(out.data, rows[i].found, out.size) != 0)
            fail_msg("%s finds %.*s", rows[i].pattern, (int)out.size, out.data);
        buf_fini(&out);
    }
}

static void what_cannot_be_said_is_refused_with_a_reason(void **state)
{
    (void)state;
    static const struct {
        const char *pattern;
        enum err e;
        const char *says;
    } rows[] = {
        {"(a", ERR_FORMAT, "unclosed group"},
        {"a)", ERR_FORMAT, "closing bracket"},
        {"[a", ERR_FORMAT, "unfinished class"},
        {"[b-a]", ERR_FORMAT, "empty range"},
        {"[&&a]", ERR_UNSUPPORTED, ""},
        {"\\p{Nonsense}", ERR_UNSUPPORTED, "regular expression"},
        {"\\p{L", ERR_FORMAT, "unfinished property"},
        {"\\", ERR_FORMAT, "backslash"},
        {"\\xE4", ERR_UNSUPPORTED, "single bytes"},
        {"\\x{110000}", ERR_FORMAT, "no such character"},
        {"x(?i)a", ERR_UNSUPPORTED, "middle of a group"},
        {"(?x: a)", ERR_UNSUPPORTED, "extended"},
        {"(?~a)", ERR_FORMAT, "unknown kind of group"},
        {"*a", ERR_UNSUPPORTED, "regular expression"},
        {"\\O", ERR_UNSUPPORTED, "\\O"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct buf out = {0};
        enum err e = matches(rows[i].pattern, "aaa", 3, &out);
        if (rows[i].says[0] && (e != rows[i].e || !strstr(err_text(), rows[i].says)))
            fail_msg("%s: %s %s", rows[i].pattern, err_name(e), err_text());
        assert_int_not_equal(e, OK);
        buf_fini(&out);
    }
}

static void nesting_has_a_limit(void **state)
{
    (void)state;
    for (int depth = ONIGURUMA_DEPTH_MAX; depth <= ONIGURUMA_DEPTH_MAX + 1; depth++) {
        char groups[256] = "", classes[256] = "";
        for (int i = 0; i < depth; i++) {
            strcat(groups, "(");
            strcat(classes, "[");
        }
        strcat(groups, "a");
        strcat(classes, "a");
        for (int i = 0; i < depth; i++) {
            strcat(groups, ")");
            strcat(classes, "]");
        }
        enum err want = depth > ONIGURUMA_DEPTH_MAX ? ERR_FORMAT : OK;
        struct buf out = {0};
        assert_int_equal(matches(groups, "a", 1, &out), want);
        assert_int_equal(matches(classes, "a", 1, &out), want);
        buf_fini(&out);
    }
}

/* A megabyte of one thing under the patterns of GPT-2, Llama 3 and GPT-4o: no limit of the matcher
 * is hit, and no text takes longer than its length (a quadratic one would take hours). */
static void long_runs_are_matched_at_once(void **state)
{
    (void)state;
    static const char *const patterns[] = {
        "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
        "?[^\\s\\p{L}\\p{N}]+"
        "[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
        "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
        "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    };
    size_t length = 1 << 20;
    char *text = malloc(length);
    assert_non_null(text);
    for (size_t i = 0; i < COUNT_OF(patterns); i++)
        for (const char *c = " a\nA!"; *c; c++) {
            struct buf out = {0};
            memset(text, *c, length);
            text[length - 1] = 'x';
            if (matches(patterns[i], text, length, &out) != OK) fail_msg("%s", err_text());
            assert_in_range(out.size, length + 1, length + 3);
            buf_fini(&out);
        }
    free(text);
}

static void blanks_at_the_end_are_found_at_once(void **state)
{
    (void)state;
    size_t length = 1 << 20;
    char *text = malloc(length);
    assert_non_null(text);
    memset(text, ' ', length);
    struct buf out = {0};
    text[length - 1] = 'x';
    assert_ok(matches("\\s+$", text, length, &out));
    assert_int_equal(out.size, 0);
    text[length / 2] = '\n';
    assert_ok(matches("\\s+$", text, length, &out));
    assert_int_equal(out.size, length / 2 + 1);
    buf_fini(&out);
    free(text);
}

/* Groups that repeat need stack for each turn; more than the compiled matcher has is taken over by
 * the interpreter. */
static void deep_backtracking_does_not_fail(void **state)
{
    (void)state;
    size_t length = 1 << 20;
    char *text = malloc(length);
    assert_non_null(text);
    memset(text, 'a', length);
    struct buf out = {0};
    if (matches("(?:a|b)*a", text, length, &out) != OK) fail_msg("%s", err_text());
    assert_int_equal(out.size, length + 1);
    buf_fini(&out);
    free(text);
}

static void every_failed_allocation_is_an_error(void **state)
{
    (void)state;
    enum err e = ERR_MEMORY;
    for (uint64_t n = 1; e != OK; n++) {
        struct pattern p;
        assert_in_range(n, 1, 200);
        mem_fail_at(n);
        e = pattern_init(&p, PATTERN_REGEX, "[a[^\\S]&&\\p{L}]+", 16);
        mem_fail_at(0);
        if (e == OK)
            pattern_fini(&p);
        else
            assert_int_equal(e, ERR_MEMORY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(expressions_mean_what_oniguruma_means),
        cmocka_unit_test(what_cannot_be_said_is_refused_with_a_reason),
        cmocka_unit_test(nesting_has_a_limit),
        cmocka_unit_test(long_runs_are_matched_at_once),
        cmocka_unit_test(blanks_at_the_end_are_found_at_once),
        cmocka_unit_test(deep_backtracking_does_not_fail),
        cmocka_unit_test(every_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
