/* The plugins are those of tests/fake/plugin, built into PLUGINS/NAME/libtandem_cuda.so. */
#include "tests/unit/testing.h"

#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "kernels/plugin.h"
#include "tests/unit/scratch.h"

static void a_plugin_uses_the_programs_errors_and_memory(void **state)
{
    (void)state;
    const struct backend_ops *ops = NULL;
    struct backend *b;
    setenv("TANDEM_PLUGIN_DIR", PLUGINS "/good", 1);
    assert_ok(backend_find("cuda", &ops));
    assert_string_equal(ops->name, "cuda");
    const struct backend_options o = {.device_index = 3};
    assert_int_equal(ops->open(&b, &o), ERR_DEVICE);
    assert_string_equal(err_text(), "no device 3");
    mem_fail_at(1);
    assert_int_equal(ops->open(&b, &o), ERR_MEMORY);
    mem_fail_at(0);
}

/* The dynamic loader remembers a library by its file, so that each of these is a fresh one. */
static void a_plugin_that_is_no_use_is_refused_with_what_is_wrong(void **state)
{
    (void)state;
    static const struct {
        const char *dir, *says;
    } cases[] = {
        {PLUGINS "/none", "not installed: " PLUGINS "/none/libtandem_cuda.so"},
        {PLUGINS "/newer", "another version"},
        {PLUGINS "/nameless", "it has no tandem_cuda_backend"},
        {PLUGINS "/needy", "libcudart.so.99"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct backend_ops *ops = NULL;
        setenv("TANDEM_PLUGIN_DIR", cases[i].dir, 1);
        assert_int_equal(backend_find("cuda", &ops), ERR_UNSUPPORTED);
        assert_non_null(strstr(err_text(), cases[i].says));
        assert_null(ops);
    }
}

static void a_file_that_is_no_library_is_refused(void **state)
{
    (void)state;
    const struct backend_ops *ops;
    char dir[SCRATCH_BYTES];
    scratch_make(dir);
    scratch_write(dir, "libtandem_cuda.so", "text", 4);
    setenv("TANDEM_PLUGIN_DIR", dir, 1);
    assert_int_equal(backend_find("cuda", &ops), ERR_UNSUPPORTED);
    assert_non_null(strstr(err_text(), "cannot be loaded"));
    scratch_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plugin_uses_the_programs_errors_and_memory),
        cmocka_unit_test(a_plugin_that_is_no_use_is_refused_with_what_is_wrong),
        cmocka_unit_test(a_file_that_is_no_library_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
