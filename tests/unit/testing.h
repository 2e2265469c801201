/* testing: what every cmocka test includes, in the order that cmocka.h wants. */
#ifndef TANDEM_TESTS_TESTING_H
#define TANDEM_TESTS_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#define assert_ok(expression) assert_int_equal((expression), OK)

/* TANDEM_TEST in the environment: only the tests that this pattern with * and ? matches are run. */
__attribute__((constructor)) static void choose_tests(void)
{
    const char *pattern = getenv("TANDEM_TEST");
    if (pattern) cmocka_set_test_filter(pattern);
}

#endif
