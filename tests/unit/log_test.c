#include "tests/unit/testing.h"

#include <string.h>
#include <unistd.h>

#include "common/log.h"

/* What stderr received while `write_lines` ran. */
static size_t captured(void (*write_lines)(void), char *out, size_t out_bytes)
{
    int pipes[2], old = dup(STDERR_FILENO);
    assert_int_equal(pipe(pipes), 0);
    dup2(pipes[1], STDERR_FILENO);
    write_lines();
    dup2(old, STDERR_FILENO);
    close(pipes[1]);
    close(old);
    size_t size = 0;
    ssize_t n;
    while ((n = read(pipes[0], out + size, out_bytes - 1 - size)) > 0)
        size += (size_t)n;
    close(pipes[0]);
    out[size] = '\0';
    return size;
}

static void two_levels(void)
{
    log_setup(LOG_INFO, "test");
    log_debug("unseen", "a=%d", 1);
    log_warn("node_joined", "node=%s blocks=%u", "p0", 42u);
}

static void a_line_is_time_level_program_event_and_values(void **state)
{
    (void)state;
    char text[4096];
    captured(two_levels, text, sizeof text);
    assert_int_equal(text[4], '-');
    assert_int_equal(text[10], 'T');
    assert_string_equal(strchr(text, ' '), " warn test node_joined node=p0 blocks=42\n");
}

static void long_line(void)
{
    char value[5000];
    memset(value, 'x', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    log_setup(LOG_INFO, NULL);
    log_info("long", "value=%s", value);
    log_setup(LOG_OFF, NULL);
    log_error("unseen", "a=1");
}

static void a_long_line_is_cut_and_ends_in_a_newline(void **state)
{
    (void)state;
    char text[8192];
    size_t size = captured(long_line, text, sizeof text);
    assert_in_range(size, 1000, 2048);
    assert_ptr_equal(strchr(text, '\n'), text + size - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_is_time_level_program_event_and_values),
        cmocka_unit_test(a_long_line_is_cut_and_ends_in_a_newline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
