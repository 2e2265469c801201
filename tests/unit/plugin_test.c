/* What is the same for all plugins; what they are told and tell: backend_plugin_test, link_plugin_test. */
#include "tests/unit/testing.h"

#include <string.h>

#include "common/plugin.h"

static void without_a_folder_set_the_usual_places_are_named(void **state)
{
    (void)state;
    static const struct plugin_kind kind = {
        .title = "Test", .file = "libtandem_of_nobody.so", .entry = "entry"};
    struct plugin_library library;
    unsetenv("TANDEM_PLUGIN_DIR");
    assert_int_equal(plugin_load(&library, &kind), ERR_UNSUPPORTED);
    assert_non_null(strstr(err_text(), "/../lib/tandem/libtandem_of_nobody.so, nor "
                                       "libtandem_of_nobody.so on the loader's path"));
}

static void a_folder_too_long_is_told(void **state)
{
    (void)state;
    static const struct plugin_kind kind = {.title = "Test", .file = "x.so", .entry = "entry"};
    struct plugin_library library;
    char folder[2 * PATH_MAX];
    memset(folder, 'd', sizeof folder - 1);
    folder[sizeof folder - 1] = '\0';
    setenv("TANDEM_PLUGIN_DIR", folder, 1);
    assert_int_equal(plugin_load(&library, &kind), ERR_UNSUPPORTED);
    assert_string_equal(err_text(), "TANDEM_PLUGIN_DIR is too long");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_folder_set_the_usual_places_are_named),
        cmocka_unit_test(a_folder_too_long_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
