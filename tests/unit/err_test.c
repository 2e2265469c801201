#include "tests/unit/testing.h"

#include <pthread.h>
#include <string.h>

#include "common/err.h"

static void the_text_is_the_last_one_and_may_quote_itself(void **state)
{
    (void)state;
    assert_int_equal(err_set(ERR_FORMAT, "%d bytes", 7), ERR_FORMAT);
    assert_string_equal(err_text(), "7 bytes");
    err_set(ERR_FORMAT, "again: %s", err_text());
    assert_string_equal(err_text(), "again: 7 bytes");
}

static void a_border_puts_its_name_in_front(void **state)
{
    (void)state;
    err_set(ERR_IO, "no space");
    assert_int_equal(err_prefix(OK, "ignored"), OK);
    assert_int_equal(err_prefix(ERR_IO, "%s", "model.bin"), ERR_IO);
    assert_string_equal(err_text(), "model.bin: no space");
}

static void a_long_text_is_cut_and_stays_a_string(void **state)
{
    (void)state;
    char text[2 * ERR_TEXT_MAX];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    err_set(ERR_IO, "%s", text);
    assert_int_equal(strlen(err_text()), ERR_TEXT_MAX - 1);
    for (int i = 0; i < 3; i++)
        err_prefix(ERR_IO, "a prefix");
    assert_int_equal(strlen(err_text()), ERR_TEXT_MAX - 1);
    assert_memory_equal(err_text(), "a prefix: a prefix: a prefix: xxx", 33);
    err_prefix(ERR_IO, "%s", text); /* a prefix that fills everything */
    assert_int_equal(strlen(err_text()), ERR_TEXT_MAX - 1);
}

static void *set_in_thread(void *arg)
{
    err_set(ERR_IO, "another thread's");
    return arg;
}

static void each_thread_has_its_own_text(void **state)
{
    (void)state;
    pthread_t thread;
    err_set(ERR_IO, "mine");
    pthread_create(&thread, NULL, set_in_thread, NULL);
    pthread_join(thread, NULL);
    assert_string_equal(err_text(), "mine");
}

static void every_value_has_a_name(void **state)
{
    (void)state;
    assert_string_equal(err_name(OK), "OK");
    assert_string_equal(err_name(ERR_FULL), "ERR_FULL");
    assert_string_equal(err_name(ERR_DEVICE), "ERR_DEVICE");
    assert_string_equal(err_name((enum err)(ERR_DEVICE + 1)), "ERR_?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_text_is_the_last_one_and_may_quote_itself),
        cmocka_unit_test(a_border_puts_its_name_in_front),
        cmocka_unit_test(a_long_text_is_cut_and_stays_a_string),
        cmocka_unit_test(each_thread_has_its_own_text),
        cmocka_unit_test(every_value_has_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
