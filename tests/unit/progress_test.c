/* A line of progress on a terminal of the test's own. */
#include "tests/unit/testing.h"

#include <fcntl.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/progress.h"

struct screen {
    int master;
    FILE *terminal;
    char text[1024];
};

static int setup(void **state)
{
    static struct screen s;
    struct termios raw;
    s = (struct screen){.master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK)};
    assert_true(s.master >= 0);
    assert_int_equal(grantpt(s.master), 0);
    assert_int_equal(unlockpt(s.master), 0);
    s.terminal = fopen(ptsname(s.master), "r+e");
    assert_non_null(s.terminal);
    assert_int_equal(tcgetattr(fileno(s.terminal), &raw), 0);
    cfmakeraw(&raw);
    assert_int_equal(tcsetattr(fileno(s.terminal), TCSANOW, &raw), 0);
    *state = &s;
    return 0;
}

static int teardown(void **state)
{
    struct screen *s = *state;
    fclose(s->terminal);
    close(s->master);
    return 0;
}

/* What was written since the last call. */
static const char *said(struct screen *s)
{
    fflush(s->terminal);
    ssize_t n = read(s->master, s->text, sizeof s->text - 1);
    s->text[n > 0 ? n : 0] = '\0';
    return s->text;
}

static void what_is_short_shows_nothing(void **state)
{
    struct screen *s = *state;
    struct progress p;
    progress_begin(&p, s->terminal, 0);
    progress_show(&p, 2 * NS_PER_S - 1, 1, 2, "half");
    progress_end(&p);
    assert_string_equal(said(s), "");
}

static void what_takes_long_has_a_bar_that_goes_in_the_end(void **state)
{
    struct screen *s = *state;
    struct progress p;
    progress_begin(&p, s->terminal, 5 * NS_PER_S);
    progress_show(&p, 7 * NS_PER_S, 1, 2, "1 of 2");
    assert_string_equal(said(s), "\r\033[K[############------------]  50 %  1 of 2");
    progress_end(&p);
    assert_string_equal(said(s), "\r\033[K");
    progress_end(&p);
    assert_string_equal(said(s), "");
}

static void it_says_something_twice_a_second_at_most(void **state)
{
    struct screen *s = *state;
    struct progress p;
    int count = 0;
    progress_begin(&p, s->terminal, 0);
    for (uint64_t ms = 0; ms < 4000; ms++) {
        progress_show(&p, ms * NS_PER_MS, ms, 0, "x");
        count += said(s)[0] != '\0';
    }
    assert_int_equal(count, 4);
}

static void more_than_all_is_all_and_no_sum_no_bar(void **state)
{
    struct screen *s = *state;
    struct progress p;
    progress_begin(&p, s->terminal, 0);
    progress_show(&p, 3 * NS_PER_S, 7, 5, "");
    assert_string_equal(said(s), "\r\033[K[########################] 100 %  ");
    progress_show(&p, 4 * NS_PER_S, 7, 0, "7 lines");
    assert_string_equal(said(s), "\r\033[K7 lines");
}

static void a_file_that_is_no_terminal_gets_nothing(void **state)
{
    (void)state;
    struct progress p;
    char text[16] = "";
    FILE *f = tmpfile();
    assert_non_null(f);
    progress_begin(&p, f, 0);
    progress_show(&p, 9 * NS_PER_S, 1, 2, "half");
    progress_end(&p);
    rewind(f);
    assert_null(fgets(text, sizeof text, f));
    fclose(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_short_shows_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(what_takes_long_has_a_bar_that_goes_in_the_end, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(it_says_something_twice_a_second_at_most, setup, teardown),
        cmocka_unit_test_setup_teardown(more_than_all_is_all_and_no_sum_no_bar, setup, teardown),
        cmocka_unit_test(a_file_that_is_no_terminal_gets_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
