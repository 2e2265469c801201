#include "client/layers.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/testing.h"

static const struct {
    const char *name, *layers, *want;
} rows[] = {
    {"no layers", "[]", ""},
    {"sending hides behind computing",
     "[{\"layer\":0,\"computed_ms\":10,\"sent_ms\":15},{\"layer\":1,\"computed_ms\":20,"
     "\"sent_ms\":25},{\"layer\":2,\"computed_ms\":30,\"sent_ms\":40}]",
     "  layers                  done ms    sent ms  # computing, = sending, % both\n"
     "    0                       10.00      15.00  ##########=====\n"
     "    1                       20.00      25.00            ##########=====\n"
     "    2                       30.00      40.00                      ##########==========\n"},
    {"nothing took time", "[{\"layer\":7}]",
     "  layers                  done ms    sent ms  # computing, = sending, % both\n"
     "    7                        0.00       0.00  %\n"},
};

static char *printed(json_t *layers)
{
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    json_t *choice = json_pack("{s:o}", "layers", layers);
    layers_print(out, choice);
    json_decref(choice);
    assert_int_equal(fclose(out), 0);
    return text;
}

static void layers_become_bars_on_one_axis(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *text = printed(json_loads(rows[i].layers, 0, NULL));
        if (strcmp(text, rows[i].want) != 0)
            fail_msg("%s:\n%s\nwanted:\n%s", rows[i].name, text, rows[i].want);
        free(text);
    }
}

static void many_layers_share_lines_and_any_times_are_drawn(void **state)
{
    (void)state;
    uint32_t random = 1;
    for (int count = 1; count < 300; count += 7) {
        json_t *layers = json_array();
        for (int i = 0; i < count; i++) {
            random = random * 1664525 + 1013904223;
            json_array_append_new(layers, json_pack("{s:i,s:f,s:f}", "layer", i, "computed_ms",
                                                    (double)(random >> 16) - 100, "sent_ms",
                                                    (double)(random >> 8 & 0xffff) - 100));
        }
        char *text = printed(layers);
        uint32_t lines = 0;
        for (const char *p = text; (p = strchr(p, '\n')); p++)
            lines++;
        assert_in_range(lines, 2, 17);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_become_bars_on_one_axis),
        cmocka_unit_test(many_layers_share_lines_and_any_times_are_drawn),
    };
    return cmocka_run_group_tests_name("layers", tests, NULL, NULL);
}
