#include "tests/unit/testing.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/sequences.h"
#include "common/mem.h"
#include "common/settings.h"

static char path[64];

static struct sequences *open_with(const char *text, size_t bytes, enum sequences_format format)
{
    struct sequences *s;
    snprintf(path, sizeof path, "/tmp/sequences.XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, bytes), bytes);
    close(fd);
    assert_ok(sequences_open(&s, path, format));
    return s;
}

static void close_and_remove(struct sequences *s)
{
    sequences_close(s);
    unlink(path);
}

static void lines_of_text_come_as_they_are(void **state)
{
    static const char *const want[] = {"one", "", "  two \t",
                                       "thr\xc3\xa9"
                                       "e"};
    static const char text[] = "one\n\n  two \t\r\nthr\xc3\xa9"
                               "e"; /* the last without an end */
    struct sequence q;
    (void)state;
    struct sequences *s = open_with(text, sizeof text - 1, SEQUENCES_AUTO);
    for (size_t i = 0; i < COUNT_OF(want); i++) {
        assert_ok(sequences_next(s, &q));
        assert_int_equal(q.line, i + 1);
        assert_int_equal(q.count, strlen(want[i]));
        assert_string_equal(q.text, want[i]);
        assert_null(q.tokens);
        sequence_free(&q);
    }
    assert_int_equal(sequences_next(s, &q), ERR_NOT_FOUND);
    close_and_remove(s);
}

static void a_byte_order_mark_is_of_no_line_but_the_file(void **state)
{
    static const char text[] = "\xEF\xBB\xBFone\n\xEF\xBB\xBFtwo\n",
                      json[] = "\xEF\xBB\xBF{\"prompt\": \"\xEF\xBB\xBF\"}\n";
    struct sequence q;
    (void)state;
    struct sequences *s = open_with(text, sizeof text - 1, SEQUENCES_TEXT);
    assert_ok(sequences_next(s, &q));
    assert_string_equal(q.text, "one");
    assert_int_equal(q.count, 3);
    sequence_free(&q);
    assert_ok(sequences_next(s, &q));
    assert_string_equal(q.text, "\xEF\xBB\xBFtwo");
    sequence_free(&q);
    close_and_remove(s);
    s = open_with(json, sizeof json - 1, SEQUENCES_JSONL);
    assert_ok(sequences_next(s, &q));
    assert_int_equal(q.count, 3);
    sequence_free(&q);
    close_and_remove(s);
}

static void a_zero_byte_is_a_byte_of_its_line(void **state)
{
    struct sequence q;
    (void)state;
    struct sequences *s = open_with("a\0b\nc", 5, SEQUENCES_TEXT);
    assert_ok(sequences_next(s, &q));
    assert_int_equal(q.count, 3);
    assert_memory_equal(q.text, "a\0b", 4);
    sequence_free(&q);
    close_and_remove(s);
}

static void a_line_that_is_not_whole_yet_is_waited_for(void **state)
{
    struct sequences *s;
    struct sequence q;
    int ends[2];
    char name[64];
    (void)state;
    assert_int_equal(pipe(ends), 0);
    snprintf(name, sizeof name, "/proc/self/fd/%d", ends[0]);
    assert_ok(sequences_open(&s, name, SEQUENCES_TEXT));
    assert_int_equal(sequences_next(s, &q), ERR_AGAIN);
    assert_int_equal(write(ends[1], "on", 2), 2);
    assert_int_equal(sequences_next(s, &q), ERR_AGAIN);
    assert_int_equal(write(ends[1], "e\n\ntw", 5), 5);
    assert_ok(sequences_next(s, &q));
    assert_string_equal(q.text, "one");
    sequence_free(&q);
    assert_ok(sequences_next(s, &q));
    assert_int_equal(q.count, 0);
    sequence_free(&q);
    assert_int_equal(sequences_next(s, &q), ERR_AGAIN);
    close(ends[1]);
    assert_ok(sequences_next(s, &q));
    assert_string_equal(q.text, "tw");
    sequence_free(&q);
    assert_int_equal(sequences_next(s, &q), ERR_NOT_FOUND);
    sequences_close(s);
    close(ends[0]);
}

static void lines_of_json_are_prompts_or_ids_and_bad_ones_are_named(void **state)
{
    static const char text[] = "{\"prompt\": \"a\\nb\", \"other\": 1}\n"
                               "{\"tokens\": [1, 2, 4294967295]}\n"
                               "{\"tokens\": [1, -2]}\n"
                               "{\"tokens\": [1, 4294967296]}\n"
                               "{\"tokens\": []}\n"
                               "{\"tokens\": \"1\"}\n"
                               "{\"prompt\": \"x\", \"tokens\": [1]}\n"
                               "{\"prompt\": 3}\n"
                               "[1]\n"
                               "{\"prompt\n"
                               "{\"prompt\": \"a\", \"prompt\": \"b\"}\n"
                               "{\"prompt\": \"\"}\n"
                               "\n"
                               " \t\r\n"
                               "{\"prompt\": \"a\\u0000b\"}\n";
    struct sequence q;
    (void)state;
    struct sequences *s = open_with(text, sizeof text - 1, SEQUENCES_JSONL);
    assert_ok(sequences_next(s, &q));
    assert_string_equal(q.text, "a\nb");
    sequence_free(&q);
    assert_ok(sequences_next(s, &q));
    assert_int_equal(q.count, 3);
    assert_int_equal(q.tokens[2], UINT32_MAX);
    sequence_free(&q);
    for (int line = 3; line <= 11; line++) {
        assert_int_equal(sequences_next(s, &q), ERR_FORMAT);
        assert_int_equal(q.line, line);
        assert_string_not_equal(err_text(), "");
    }
    for (int empty = 0; empty < 3; empty++) { /* it goes on behind them */
        assert_ok(sequences_next(s, &q));
        assert_int_equal(q.count, 0);
        sequence_free(&q);
    }
    assert_ok(sequences_next(s, &q));
    assert_int_equal(q.count, 3);
    assert_memory_equal(q.text, "a\0b", 4);
    sequence_free(&q);
    assert_int_equal(sequences_next(s, &q), ERR_NOT_FOUND);
    close_and_remove(s);
}

static void a_line_at_the_limit_passes_and_a_longer_one_takes_no_more_memory(void **state)
{
    char *text = mem_new(2 * SEQUENCE_BYTES_MAX + 8);
    struct sequence q;
    (void)state;
    memset(text, 'a', 2 * SEQUENCE_BYTES_MAX + 8);
    text[SEQUENCE_BYTES_MAX - 1] = '\n'; /* its line end counts */
    text[2 * SEQUENCE_BYTES_MAX] = '\n';
    struct sequences *s = open_with(text, 2 * SEQUENCE_BYTES_MAX + 8, SEQUENCES_TEXT);
    assert_ok(sequences_next(s, &q));
    assert_int_equal(q.count, SEQUENCE_BYTES_MAX - 1);
    sequence_free(&q);
    assert_int_equal(sequences_next(s, &q), ERR_FORMAT);
    assert_int_equal(q.line, 2);
    assert_non_null(strstr(err_text(), "longer than"));
    assert_ok(sequences_next(s, &q));
    assert_int_equal(q.count, 7);
    sequence_free(&q);
    close_and_remove(s);
    mem_free(text);
}

static void the_format_is_the_names_and_a_file_that_is_not_there_is_named(void **state)
{
    struct sequences *s;
    struct sequence q;
    (void)state;
    assert_int_equal(sequences_open(&s, "/nowhere.jsonl", SEQUENCES_AUTO), ERR_IO);
    assert_non_null(strstr(err_text(), "/nowhere.jsonl"));
    s = open_with("{}\n", 3, SEQUENCES_AUTO);
    assert_ok(sequences_next(s, &q));
    sequence_free(&q);
    close_and_remove(s);
}

static void failing_allocations_are_errors(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 20; n++) {
        struct sequences *s = open_with("{\"tokens\":[1]}\n", 15, SEQUENCES_JSONL);
        struct sequence q = {0};
        mem_fail_at(n);
        enum err e = sequences_next(s, &q);
        mem_fail_at(0);
        assert_true(e == OK || e == ERR_MEMORY);
        sequence_free(&q);
        close_and_remove(s);
        if (e == OK) return;
    }
    fail_msg("it never succeeded");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_of_text_come_as_they_are),
        cmocka_unit_test(a_byte_order_mark_is_of_no_line_but_the_file),
        cmocka_unit_test(a_zero_byte_is_a_byte_of_its_line),
        cmocka_unit_test(a_line_that_is_not_whole_yet_is_waited_for),
        cmocka_unit_test(lines_of_json_are_prompts_or_ids_and_bad_ones_are_named),
        cmocka_unit_test(a_line_at_the_limit_passes_and_a_longer_one_takes_no_more_memory),
        cmocka_unit_test(the_format_is_the_names_and_a_file_that_is_not_there_is_named),
        cmocka_unit_test(failing_allocations_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
