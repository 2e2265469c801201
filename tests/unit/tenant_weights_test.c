#include "tests/unit/testing.h"

#include <stdio.h>
#include <string.h>

#include "common/tenant_weights.h"

static void weights_are_read_or_what_is_wrong_is_named(void **state)
{
    (void)state;
    struct tenant_weight w[TENANT_WEIGHTS_MAX];
    uint32_t count;
    assert_ok(tenant_weights_parse(NULL, w, &count));
    assert_int_equal(count, 0);
    assert_ok(tenant_weights_parse("search=3,a b=1000", w, &count));
    assert_int_equal(count, 2);
    assert_string_equal(w[0].tenant, "search");
    assert_int_equal(w[0].weight, 3);
    assert_string_equal(w[1].tenant, "a b");
    assert_int_equal(w[1].weight, 1000);
    assert_int_equal(tenant_weight_of(w, 2, "a b"), 1000);
    assert_int_equal(tenant_weight_of(w, 2, "a"), 1);
    const char *const wrong[] = {"a",    "a=",   "=1",      "a=0", "a=1001",
                                 "a=2x", "a=-1", "x=1,b=q", ",",   "a=99999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(tenant_weights_parse(wrong[i], w, &count), ERR_INVALID);
        assert_non_null(strstr(err_text(), "is not NAME=WEIGHT"));
    }
    char many[TENANT_WEIGHTS_MAX * 4 + 8] = "", *at = many;
    for (int i = 0; i <= TENANT_WEIGHTS_MAX; i++)
        at += sprintf(at, "a=1,");
    assert_int_equal(tenant_weights_parse(many, w, &count), ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_read_or_what_is_wrong_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
