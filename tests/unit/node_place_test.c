#include "node/place.h"

#include "common/log.h"
#include "testing.h"

/* Each test in a thread or process of its own would cost more than this: the binding is put back. */
static cpu_set_t at_first;

static int put_back(void **state)
{
    (void)state;
    return cpus_bind(&at_first) == OK ? 0 : -1;
}

static void a_numa_node_is_auto_off_or_a_number(void **state)
{
    static const char *const bad[] = {"", "1x", "-1", "1024", "on", "AUTO"};
    int32_t numa;
    (void)state;
    assert_ok(node_numa_parse("auto", &numa));
    assert_int_equal(numa, NODE_NUMA_AUTO);
    assert_ok(node_numa_parse("off", &numa));
    assert_int_equal(numa, NODE_NUMA_OFF);
    assert_ok(node_numa_parse("1023", &numa));
    assert_int_equal(numa, 1023);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(node_numa_parse(bad[i], &numa), ERR_INVALID);
}

static void a_node_without_wishes_is_bound_nowhere(void **state)
{
    const struct node_place_options o = {.device = "cpu", .numa = NODE_NUMA_AUTO};
    struct node_place place;
    cpu_set_t now;
    (void)state;
    node_place_find(&place, &o);
    cpus_allowed(&now);
    assert_true(CPU_EQUAL(&now, &at_first));
    assert_int_equal(place.numa, -1);
    assert_int_equal(CPU_COUNT(&place.engine) + CPU_COUNT(&place.link) + CPU_COUNT(&place.loop), 0);
    assert_string_equal(place.cpus, "");
    assert_string_equal(place.pci, "");
}

static void compute_threads_get_the_cpus_that_were_told(void **state)
{
    struct node_place_options o = {.device = "cpu", .numa = NODE_NUMA_AUTO};
    struct node_place place;
    char text[CPUS_TEXT];
    (void)state;
    CPU_SET(cpus_nth(&at_first, 0), &o.cpus);
    node_place_find(&place, &o);
    cpus_print(&o.cpus, text, sizeof text);
    assert_true(place.bound);
    assert_true(CPU_EQUAL(&place.engine, &o.cpus));
    assert_string_equal(place.cpus, text);
}

static void what_is_not_there_costs_a_warning(void **state)
{
    struct node_place_options o = {.device = "cpu", .numa = 1000};
    struct node_place place;
    (void)state;
    CPU_SET(CPU_SETSIZE - 1, &o.cpus);
    node_place_find(&place, &o);
    node_place_bind(&place, &o.cpus); /* refused, if this host has not 1024 CPUs */
    assert_int_equal(place.numa, 1000);
    assert_int_equal(setenv("HWLOC_COMPONENTS", "stop", 1), 0); /* finds nothing */
    node_place_find(&place, &o);
    assert_int_equal(unsetenv("HWLOC_COMPONENTS"), 0);
    assert_false(place.bound);
    node_place_find(&place, &(struct node_place_options){.device = "no such device", .numa = -1});
    assert_string_equal(place.pci, "");
}

static void nobody_is_bound_to_another_hosts_cpus(void **state)
{
    static const struct {
        const char *cpus, *said;
        int32_t numa, expected;
    } cases[] = {{"0-7", "0-7", NODE_NUMA_AUTO, 0},
                 {"6-9", "6-9", NODE_NUMA_AUTO, -1},
                 {"6-9", "6-9", 1, 1},
                 {"8-9", "8-9", NODE_NUMA_OFF, -1},
                 {NULL, "8-15,24-31", 1, 1}};
    struct node_place place;
    cpu_set_t now;
    (void)state;
    assert_int_equal(
        setenv("HWLOC_XMLFILE", TANDEM_SOURCE_DIR "/tests/unit/topologies/server.xml", 1), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct node_place_options o = {.device = "cpu", .numa = cases[i].numa};
        if (cases[i].cpus) assert_ok(cpus_parse(cases[i].cpus, &o.cpus));
        node_place_find(&place, &o);
        node_place_bind(&place, &place.loop);
        assert_false(place.bound);
        assert_string_equal(place.cpus, cases[i].said);
        assert_int_equal(place.numa, cases[i].expected);
        assert_int_equal(CPU_COUNT(&place.engine), 0);
    }
    assert_int_equal(unsetenv("HWLOC_XMLFILE"), 0);
    cpus_allowed(&now);
    assert_true(CPU_EQUAL(&now, &at_first));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_numa_node_is_auto_off_or_a_number),
        cmocka_unit_test(a_node_without_wishes_is_bound_nowhere),
        cmocka_unit_test_teardown(compute_threads_get_the_cpus_that_were_told, put_back),
        cmocka_unit_test_teardown(what_is_not_there_costs_a_warning, put_back),
        cmocka_unit_test(nobody_is_bound_to_another_hosts_cpus),
    };
    log_setup(LOG_OFF, "test");
    cpus_allowed(&at_first);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
