#include "tests/unit/testing.h"

#include "common/address.h"

static void splits_what_users_write(void **state)
{
    (void)state;
    static const struct {
        const char *address, *host;
        uint16_t port;
    } good[] = {{"127.0.0.1:5700", "127.0.0.1", 5700},
                {"tcp://127.0.0.1:0", "127.0.0.1", 0},
                {"tcp://[::1]:65535", "::1", 65535},
                {"node-7.example:1", "node-7.example", 1}};
    static const char *const bad[] = {"",          "x",        ":1",          "a:",   "a:65536",
                                      "a:1x",      "::1:5700", "tcp://",      "a:-1", "[]:1",
                                      "[::1:5700", "a: 1",     "tcp://:5700", "a:+1"};
    char host[ADDRESS_HOST_MAX];
    uint16_t port;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_ok(address_split(good[i].address, host, &port));
        assert_string_equal(host, good[i].host);
        assert_int_equal(port, good[i].port);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(address_split(bad[i], host, &port), ERR_INVALID);
}

static void loopback_is_only_what_cannot_leave_the_host(void **state)
{
    (void)state;
    static const char *const inside[] = {"127.0.0.1:1", "tcp://127.8.9.1:1", "localhost:1",
                                         "[::1]:1"};
    static const char *const outside[] = {"0.0.0.0:1", "128.0.0.1:1", "*:1",
                                          "[::]:1",    "host:1",      "nonsense"};
    for (size_t i = 0; i < sizeof inside / sizeof inside[0]; i++)
        assert_true(address_is_loopback(inside[i]));
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++)
        assert_false(address_is_loopback(outside[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(splits_what_users_write),
        cmocka_unit_test(loopback_is_only_what_cannot_leave_the_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
