/* The router's shell: what it needs from the system to begin, and what it says when it does not get it. */
#include "tests/unit/testing.h"

#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "router/shell.h"

static struct router_options options(void)
{
    return (struct router_options){.name = "r0",
                                   .model_dir = TANDEM_SOURCE_DIR "/examples/demo_model/model",
                                   .listen_clients = "tcp://127.0.0.1:0",
                                   .listen_nodes = "tcp://127.0.0.1:0",
                                   .listen_lifeline = "127.0.0.1:0",
                                   .metrics = "127.0.0.1:0",
                                   .config = ROUTER_CONFIG_DEFAULT};
}

static void a_failing_allocation_at_start_leaks_nothing(void **state)
{
    (void)state;
    struct router_options o = options();
    o.model_dir = NULL; /* tokenizer_test.c does the same to the tokenizer */
    struct router_shell *shell = NULL;
    bool failed = true;
    uint64_t refused = 0;
    for (uint64_t n = 1; failed; n++) {
        uint64_t before = mem_count();
        mem_fail_at(n);
        enum err e = router_shell_open(&shell, &o);
        failed = mem_count() - before >= n;
        mem_fail_at(0);
        assert_int_equal(e, failed ? ERR_MEMORY : OK);
        refused += failed;
        if (e == OK) router_shell_close(shell);
    }
    assert_true(refused > 10);
}

static void an_occupied_port_is_named(void **state)
{
    (void)state;
    struct router_shell *first, *second = NULL;
    struct router_options o = options();
    assert_ok(router_shell_open(&first, &o));
    o.listen_clients = router_shell_clients(first);
    assert_int_equal(router_shell_open(&second, &o), ERR_IO);
    assert_non_null(strstr(err_text(), o.listen_clients));
    o = options();
    o.listen_nodes = router_shell_nodes(first);
    assert_int_equal(router_shell_open(&second, &o), ERR_IO);
    assert_non_null(strstr(err_text(), o.listen_nodes));
    o = options();
    o.metrics = router_shell_metrics(first);
    assert_int_equal(router_shell_open(&second, &o), ERR_IO);
    assert_non_null(strstr(err_text(), o.metrics));
    router_shell_close(first);
}

static void addresses_beyond_loopback_want_a_trusted_network(void **state)
{
    (void)state;
    struct router_shell *shell = NULL;
    for (int i = 0; i < 4; i++) {
        struct router_options o = options();
        if (i == 0) o.listen_clients = "tcp://0.0.0.0:0";
        if (i == 1) o.listen_nodes = "tcp://0.0.0.0:0";
        if (i == 2) o.listen_lifeline = "0.0.0.0:0";
        if (i == 3) o.metrics = "0.0.0.0:0";
        assert_int_equal(router_options_check(&o), ERR_INVALID);
        assert_non_null(strstr(err_text(), "--trusted-network"));
        o.trusted_network = true;
        assert_ok(router_options_check(&o));
        assert_ok(router_shell_open(&shell, &o));
        router_shell_close(shell);
    }
}

static void a_model_that_is_not_there_is_named(void **state)
{
    (void)state;
    struct router_shell *shell = NULL;
    struct router_options o = options();
    o.model_dir = "/nowhere/at/all";
    assert_int_equal(router_shell_open(&shell, &o), ERR_NOT_FOUND);
    assert_non_null(strstr(err_text(), "/nowhere/at/all"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failing_allocation_at_start_leaks_nothing),
        cmocka_unit_test(an_occupied_port_is_named),
        cmocka_unit_test(addresses_beyond_loopback_want_a_trusted_network),
        cmocka_unit_test(a_model_that_is_not_there_is_named),
    };
    log_setup(LOG_OFF, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
