/* The plugins are those of tests/fake/plugin, built into PLUGINS/NAME/libtandem_nccl.so. */
#include "tests/unit/testing.h"

#include <string.h>

#include "xfer/plugin.h"

static void a_plugin_has_the_programs_errors_and_links(void **state)
{
    (void)state;
    const struct kv_link_ops *ops = NULL;
    struct kv_link *link;
    setenv("TANDEM_PLUGIN_DIR", PLUGINS "/link_good", 1);
    assert_ok(link_plugin_find("nccl", &ops));
    assert_string_equal(ops->name, "nccl");
    assert_int_equal(ops->dial(&link, "nccl:x", NULL), ERR_DEVICE);
    assert_string_equal(err_text(), "no device for nccl:x");
}

/* The dynamic loader remembers a library by its file, so that each of these is a fresh one. */
static void a_plugin_that_is_no_use_is_refused_with_what_is_wrong(void **state)
{
    (void)state;
    static const struct {
        const char *dir, *name, *says;
    } cases[] = {
        {PLUGINS "/none", "nccl",
         "NCCL plugin is not installed: " PLUGINS "/none/libtandem_nccl.so"},
        {PLUGINS "/none", "ipc", "IPC plugin is not installed: " PLUGINS "/none/libtandem_ipc.so"},
        {PLUGINS "/link_newer", "nccl", "another version"},
        {PLUGINS "/link_needy", "nccl", "needs a library of NCCL 2.19 or later that is missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct kv_link_ops *ops = NULL;
        setenv("TANDEM_PLUGIN_DIR", cases[i].dir, 1);
        assert_int_equal(link_plugin_find(cases[i].name, &ops), ERR_UNSUPPORTED);
        assert_non_null(strstr(err_text(), cases[i].says));
        assert_null(ops);
    }
}

static void other_names_are_unknown(void **state)
{
    (void)state;
    const struct kv_link_ops *ops = NULL;
    assert_int_equal(link_plugin_find("tcp", &ops), ERR_NOT_FOUND);
    assert_null(ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plugin_has_the_programs_errors_and_links),
        cmocka_unit_test(a_plugin_that_is_no_use_is_refused_with_what_is_wrong),
        cmocka_unit_test(other_names_are_unknown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
