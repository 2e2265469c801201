#include "common/cpus.h"

#include <pthread.h>
#include <string.h>

#include "testing.h"

static void lists_are_read_and_printed_the_same(void **state)
{
    static const struct {
        const char *text, *printed;
        int count, second;
    } good[] = {{"0", "0", 1, 0},
                {"0-3,8", "0-3,8", 5, 1},
                {"3,1,2", "1-3", 3, 2},
                {"7,7", "7", 1, 7},
                {"1023", "1023", 1, 1023},
                {"4,2", "2,4", 2, 4},
                {"0-1023", "0-1023", 1024, 1}};
    static const char *const bad[] = {
        "",     ",",  "0,", "-1", "3-1", "1-", "a", "0 1", "1024", "0-1024", "99999999999999999999",
        "1--2", "0x1"};
    char text[CPUS_TEXT];
    cpu_set_t set;
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_ok(cpus_parse(good[i].text, &set));
        assert_int_equal(CPU_COUNT(&set), good[i].count);
        cpus_print(&set, text, sizeof text);
        assert_string_equal(text, good[i].printed);
        assert_int_equal(cpus_nth(&set, 1), good[i].second);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(cpus_parse(bad[i], &set), ERR_INVALID);
}

static void a_long_list_is_cut_between_numbers(void **state)
{
    char text[24];
    cpu_set_t set;
    (void)state;
    CPU_ZERO(&set);
    cpus_print(&set, text, sizeof text);
    assert_string_equal(text, "");
    assert_int_equal(cpus_nth(&set, 3), -1);
    for (int cpu = 100; cpu < 1024; cpu += 2)
        CPU_SET(cpu, &set);
    cpus_print(&set, text, sizeof text);
    assert_string_equal(text, "100,102,104,106,108,...");
}

static void *bind_elsewhere(void *ctx)
{
    cpu_set_t *result = ctx, one;
    CPU_ZERO(&one);
    cpus_allowed(result);
    CPU_SET(cpus_nth(result, 0), &one);
    assert_int_equal(cpus_bind(&(cpu_set_t){0}), ERR_INVALID);
    assert_non_null(strstr(err_text(), "CPUs"));
    assert_ok(cpus_bind(&one));
    cpus_allowed(result);
    return NULL;
}

static void a_thread_goes_where_it_is_bound(void **state)
{
    cpu_set_t result;
    pthread_t thread;
    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, bind_elsewhere, &result), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(CPU_COUNT(&result), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_are_read_and_printed_the_same),
        cmocka_unit_test(a_long_list_is_cut_between_numbers),
        cmocka_unit_test(a_thread_goes_where_it_is_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
