#include "tests/unit/testing.h"

#include <stdio.h>
#include <string.h>

#include "client/kv_show.h"
#include "client/show.h"

enum { COLUMNS = 100 };

/* What is printed of this answer; the caller's to free. */
static char *shown(const char *json, void print(FILE *, const json_t *))
{
    json_t *answer = json_loads(json, 0, NULL);
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(answer);
    print(out, answer);
    fclose(out);
    json_decref(answer);
    return text;
}

/* Blocks, rates, tenants and prefixes of a node with large numbers in all places. */
static const char large[] =
    "{\"nodes\":[{\"node\":\"d0\",\"role\":\"decode\",\"prefix_cache\":true,\"policy\":\"lfu\","
    "\"block_tokens\":16,\"block_bytes\":2097152,\"entries\":1000000,\"blocks\":{\"total\":1234567,"
    "\"free\":1,\"active\":34567,\"reserved\":0,\"transfer\":199999,\"cached\":1000000,\"pinned\":"
    "64},"
    "\"load\":{\"live\":300,\"running\":256,\"waiting\":44,\"preempted\":12,\"blocks_full\":"
    "2222222},"
    "\"total\":{\"seconds\":864000,\"queried_tokens\":9876543210,\"hit_tokens\":4938271605,"
    "\"inserted_blocks\":617283950,\"evicted_blocks\":616283950,\"unused_blocks\":300000000},"
    "\"window\":{\"seconds\":300,\"queried_tokens\":1000000,\"hit_tokens\":250000},"
    "\"ages\":[{\"below_s\":1,\"blocks\":0},{\"below_s\":86400,\"blocks\":999999},"
    "{\"below_s\":null,\"blocks\":1}],"
    "\"sizes\":[{\"upto_tokens\":131072,\"prefixes\":8},{\"upto_tokens\":null,\"prefixes\":77}],"
    "\"tiers\":{\"deadline_us\":20000,\"loads\":100,\"loads_late\":3,\"loaded_tokens\":123456789,"
    "\"rows\":[{\"name\":\"disk\",\"broken\":true,\"entries\":1234567,\"hits\":12345678,"
    "\"misses\":1234567,\"not_worth\":1234567,\"failures\":7,\"read_rate\":3210000000}]},"
    "\"tenants\":[{\"salt\":\"0011223344556677\",\"jobs\":1234567,\"queried_tokens\":9876543210,"
    "\"hit_tokens\":1,\"blocks\":1000},{\"salt\":\"0\",\"tenant\":\"\",\"blocks\":2000,\"jobs\":1}]"
    ","
    "\"prefixes\":[{\"tokens\":131072,\"uses\":1234567,\"age_s\":86399,\"salt\":\"0\",\"tenant\":"
    "\"a tenant with a very long name indeed\",\"words\":\"\\u001b[31m \\n red "
    "\\u00e4\\u00f6 "
    "and long enough to be cut\",\"last_words\":\"the end of a very long prompt, cut as well\"}]}],"
    "\"missing\":[{\"node\":\"p0\",\"reason\":\"no answer in 2000 ms\"}]}";

static void lines_fit_and_move_no_cursor(void **state)
{
    (void)state;
    char *text = shown(large, kv_show);
    for (char *save, *line = strtok_r(text, "\n", &save); line;
         line = strtok_r(NULL, "\n", &save)) {
        size_t columns = 0;
        for (const char *s = line; *s; s++) {
            assert_true((unsigned char)*s >= 0x20 && *s != 0x7f);
            columns += ((unsigned char)*s & 0xc0) != 0x80;
        }
        if (columns > COLUMNS) fail_msg("%zu columns: %s", columns, line);
        assert_true(line[strlen(line) - 1] != ' ');
    }
    free(text);
}

static void figures_tenants_and_words_are_there(void **state)
{
    (void)state;
    static const char *const wanted[] = {"1,234,567 blocks of 16 tokens (2.0 MiB each, 2.4 TiB)",
                                         "9,876,543,210",
                                         "50.0 %",
                                         "25.0 %",
                                         "44 waiting for blocks (12 preempted)",
                                         "24.0 h and more",
                                         "up to 131,072",
                                         "salt 00112233",
                                         "(none)",
                                         "red äö",
                                         "3210.0/s",
                                         "broken",
                                         "p0: no answer in 2000 ms"};
    char *text = shown(large, kv_show);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!strstr(text, wanted[i])) fail_msg("\"%s\" is not in\n%s", wanted[i], text);
    assert_true(strstr(text, "(none)") < strstr(text, "salt 00112233")); /* the most blocks first */
    free(text);
}

static void tenants_windows_are_told_apart(void **state)
{
    (void)state;
    static const char windows[] =
        "{\"nodes\":[{\"blocks\":{\"total\":100},\"tenants\":["
        "{\"salt\":\"0\",\"tenant\":\"\",\"blocks\":3},"
        "{\"salt\":\"1\",\"tenant\":\"\",\"kv_window\":64,\"kv_sinks\":16,\"blocks\":2},"
        "{\"salt\":\"2\",\"tenant\":\"\",\"kv_window\":128,\"kv_sinks\":0,\"blocks\":1}],"
        "\"prefixes\":[{\"tokens\":16,\"uses\":2,\"salt\":\"3\",\"tenant\":"
        "\"a tenant with a very long name indeed\",\"kv_window\":64,\"kv_sinks\":16}]}]}";
    static const char *const wanted[] = {"\n  (none)  ", "\n  (none) w64+16  ", "\n  (none) w128  ",
                                         " a tenan w64+16 "};
    char *text = shown(windows, kv_show);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!strstr(text, wanted[i])) fail_msg("\"%s\" is not in\n%s", wanted[i], text);
    free(text);
}

static void an_answer_without_anything_is_shown(void **state)
{
    (void)state;
    static const char *const answers[] = {
        "{}", "{\"nodes\":[{}]}", "{\"nodes\":[7,\"x\",[]]}",
        "{\"nodes\":[{\"ages\":{},\"prefixes\":[1,{}]}]}",
        "{\"nodes\":[{\"ages\":[{\"blocks\":0.5},{\"blocks\":1e300}]"
        ",\"sizes\":[{\"prefixes\":-1},{\"prefixes\":0.1}]}]}"};
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        free(shown(answers[i], kv_show));
        free(shown(answers[i], kv_plot));
    }
}

static void a_plot_is_one_svg_with_each_bar(void **state)
{
    (void)state;
    char *text = shown(large, kv_plot);
    assert_memory_equal(text, "<svg ", 5);
    assert_string_equal(text + strlen(text) - 7, "</svg>\n");
    assert_non_null(strstr(text, ">999,999</text>"));
    free(text);
}

static void spans_have_a_unit_that_suits_them(void **state)
{
    (void)state;
    char text[SHOW_TEXT];
    assert_string_equal(show_span(0.4, text), "0 s");
    assert_string_equal(show_span(119, text), "119 s");
    assert_string_equal(show_span(900, text), "15 min");
    assert_string_equal(show_span(14400, text), "4.0 h");
    assert_string_equal(show_span(864000, text), "10.0 days");
    assert_string_equal(show_number(-1234567, text), "-1,234,567");
    assert_string_equal(show_share(1, 0, text), "-");
    assert_string_equal(show_bar(1, 1e9, text), "#");
    assert_int_equal(strlen(show_bar(5, 1, text)), SHOW_BAR);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_fit_and_move_no_cursor),
        cmocka_unit_test(figures_tenants_and_words_are_there),
        cmocka_unit_test(tenants_windows_are_told_apart),
        cmocka_unit_test(an_answer_without_anything_is_shown),
        cmocka_unit_test(a_plot_is_one_svg_with_each_bar),
        cmocka_unit_test(spans_have_a_unit_that_suits_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
