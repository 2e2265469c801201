/* testing: what every cmocka test includes, in the order that cmocka.h wants. */
#ifndef TANDEM_TESTS_TESTING_H
#define TANDEM_TESTS_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define assert_ok(expression) assert_int_equal((expression), OK)

#endif
