/* testing: what every cmocka test includes, in the order that cmocka.h wants. Owner: the test's thread. */
#ifndef TANDEM_TESTS_TESTING_H
#define TANDEM_TESTS_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#define assert_ok(expression) assert_int_equal((expression), OK)

/* Sanitizers change what a process takes, and of time several times as much: whoever waits, waits longer. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1, PATIENCE = 4 };
#else
enum { SANITIZED = 0, PATIENCE = 1 };
#endif

/* TANDEM_TEST in the environment: only the tests that this pattern with * and ? matches are run. */
__attribute__((constructor)) static void choose_tests(void)
{
    const char *pattern = getenv("TANDEM_TEST");
    if (pattern) cmocka_set_test_filter(pattern);
}

#endif
