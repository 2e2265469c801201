#include "tests/unit/testing.h"

#include <string.h>

#include "common/mem.h"
#include "node/own_links.h"

static const struct own_links_where where = {.kv = "10.0.0.1:7000", .control = "10.0.0.1:0"};

/* ---- which links ---- */

static void a_node_listens_on_what_it_may_have_and_on_one_that_is_forced_alone(void **state)
{
    (void)state;
    static const struct {
        enum own_link link;
        bool device_slots;
        const char *names; /* the one preferred first; "?": optional */
    } cases[] = {
        {OWN_LINK_AUTO, false, "shm? tcp "}, {OWN_LINK_AUTO, true, "ipc? nccl? shm? tcp "},
        {OWN_LINK_SHM, true, "shm "},        {OWN_LINK_TCP, true, "tcp "},
        {OWN_LINK_NCCL, true, "nccl "},      {OWN_LINK_IPC, true, "ipc "},
        {OWN_LINK_NCCL, false, "nccl "}, /* and xfer_open says why there is none */
    };
    for (uint32_t i = 0; i < COUNT_OF(cases); i++) {
        struct xfer_listen listen[XFER_ADDRESSES_MAX];
        const struct own_links_options o = {.link = cases[i].link};
        uint32_t count = own_links_choose(&o, cases[i].device_slots, &where, listen);
        char names[64] = "";
        for (uint32_t k = 0; k < count; k++) {
            strcat(names, listen[k].name);
            strcat(names, listen[k].optional ? "? " : " ");
        }
        assert_string_equal(names, cases[i].names);
    }
}

static void links_with_an_address_are_given_theirs(void **state)
{
    (void)state;
    struct xfer_listen listen[XFER_ADDRESSES_MAX];
    const struct own_links_options o = {.link = OWN_LINK_AUTO};
    static const char *const wheres[] = {"", "10.0.0.1:0", "", "10.0.0.1:7000"};
    assert_int_equal(own_links_choose(&o, true, &where, listen), COUNT_OF(wheres));
    for (uint32_t i = 0; i < COUNT_OF(wheres); i++)
        assert_string_equal(listen[i].where, wheres[i]);
}

static void names_are_those_of_the_setting(void **state)
{
    (void)state;
    char names[64] = "auto";
    for (enum own_link link = OWN_LINK_AUTO + 1; link <= OWN_LINK_IPC; link++) {
        strcat(names, "|");
        strcat(names, own_link_name(link));
    }
    assert_string_equal(names, OWN_LINKS);
    assert_string_equal(own_link_name(OWN_LINK_AUTO), "");
}

/* ---- where ---- */

static void others_can_dial_what_they_are_told(void **state)
{
    (void)state;
    static const struct {
        const char *listen_kv, *nccl_listen, *kv, *control;
    } cases[] = {
        {"127.0.0.1:7000", NULL, "127.0.0.1:7000", "127.0.0.1:0"},
        {"127.0.0.1:7000", "", "127.0.0.1:7000", "127.0.0.1:0"},
        {"127.0.0.1:0", "127.0.0.2:5711", "127.0.0.1:0", "127.0.0.2:5711"},
        {"[::1]:7000", NULL, "[::1]:7000", "[::1]:0"},
        {"0.0.0.0:7000", NULL, "127.0.0.1:7000", "127.0.0.1:0"},
        {"0.0.0.0:7000", "0.0.0.0:5711", "127.0.0.1:7000", "127.0.0.1:5711"},
    };
    for (uint32_t i = 0; i < COUNT_OF(cases); i++) {
        const struct own_links_options o = {.listen_kv = cases[i].listen_kv,
                                            .nccl_listen = cases[i].nccl_listen};
        const struct own_links_at at = {&o, "tcp://127.0.0.1:5701", true};
        struct own_links_where found;
        assert_ok(own_links_find(&at, &found));
        assert_string_equal(found.kv, cases[i].kv);
        assert_string_equal(found.control, cases[i].control);
    }
}

static void an_address_that_cannot_be_found_names_its_setting(void **state)
{
    (void)state;
    static const struct {
        struct own_links_options o;
        const char *setting;
    } cases[] = {
        {{.listen_kv = "0.0.0.0:7000"}, "--listen-kv"},
        {{.listen_kv = "127.0.0.1:0", .nccl_listen = "0.0.0.0:5711"}, "--nccl-listen"},
    };
    for (uint32_t i = 0; i < COUNT_OF(cases); i++) {
        const struct own_links_at at = {&cases[i].o, "tcp://nowhere", true}; /* no port */
        struct own_links_where found;
        assert_int_not_equal(own_links_find(&at, &found), OK);
        assert_non_null(strstr(err_text(), cases[i].setting));
    }
}

/* ---- what is not encrypted stays on this host ---- */

static void nccl_stays_on_this_host_unless_the_network_is_trusted(void **state)
{
    (void)state;
    static const struct {
        const char *told;
        bool trusted_network;
        const char *interface;
    } cases[] = {
        {NULL, false, "=lo"}, {"", false, "=lo"},     {"lo", false, "=lo"}, {NULL, true, ""},
        {"", true, ""},       {"eth0", true, "eth0"}, {"lo", true, "lo"},
    };
    for (uint32_t i = 0; i < COUNT_OF(cases); i++) {
        const struct own_links_options o = {.nccl_interface = cases[i].told};
        assert_string_equal(own_links_interface(&o, cases[i].trusted_network), cases[i].interface);
    }
}

static void addresses_beyond_loopback_need_a_trusted_network(void **state)
{
    (void)state;
    static const struct {
        struct own_links_options o;
        bool refused;
    } cases[] = {
        {{.listen_kv = "127.0.0.1:0"}, false},
        {{.listen_kv = "0.0.0.0:0"}, true},
        {{.listen_kv = "0.0.0.0:0", .link = OWN_LINK_TCP}, true},
        {{.listen_kv = "0.0.0.0:0", .link = OWN_LINK_NCCL}, true},
        {{.listen_kv = "0.0.0.0:0", .link = OWN_LINK_SHM}, false}, /* then nothing listens there */
        {{.listen_kv = "0.0.0.0:0", .link = OWN_LINK_IPC}, false},
        {{.listen_kv = "127.0.0.1:0", .nccl_listen = "[::1]:5711"}, false},
        {{.listen_kv = "127.0.0.1:0", .nccl_listen = "10.0.0.1:5711"}, true},
        {{.listen_kv = "127.0.0.1:0", .nccl_interface = "lo"}, false},
        {{.listen_kv = "127.0.0.1:0", .nccl_interface = "eth0"}, true},
        {{.listen_kv = "127.0.0.1:0", .nccl_interface = "lo0"}, true},
    };
    for (uint32_t i = 0; i < COUNT_OF(cases); i++) {
        assert_ok(own_links_check(&cases[i].o, true));
        enum err e = own_links_check(&cases[i].o, false);
        assert_int_equal(e, cases[i].refused ? ERR_INVALID : OK);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_node_listens_on_what_it_may_have_and_on_one_that_is_forced_alone),
        cmocka_unit_test(links_with_an_address_are_given_theirs),
        cmocka_unit_test(names_are_those_of_the_setting),
        cmocka_unit_test(others_can_dial_what_they_are_told),
        cmocka_unit_test(an_address_that_cannot_be_found_names_its_setting),
        cmocka_unit_test(nccl_stays_on_this_host_unless_the_network_is_trusted),
        cmocka_unit_test(addresses_beyond_loopback_need_a_trusted_network),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
