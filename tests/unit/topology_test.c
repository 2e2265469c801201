#include "common/topology.h"

#include <stdio.h>
#include <string.h>

#include "common/cpus.h"
#include "common/mem.h"
#include "testing.h"

static struct topology *read_file(const char *name)
{
    char path[512];
    struct topology *t;
    snprintf(path, sizeof path, "%s/tests/unit/topologies/%s.xml", TANDEM_SOURCE_DIR, name);
    assert_int_equal(setenv("HWLOC_XMLFILE", path, 1), 0);
    assert_ok(topology_read(TOPOLOGY_DEVICES, &t));
    assert_int_equal(unsetenv("HWLOC_XMLFILE"), 0);
    assert_false(t->this_host);
    return t;
}

static void assert_cpus(const cpu_set_t *set, const char *expected)
{
    char text[CPUS_TEXT];
    cpus_print(set, text, sizeof text);
    assert_string_equal(text, expected);
}

static void a_server_is_read_with_all_that_is_in_it(void **state)
{
    static const char *const gpus[] = {"0000:19:00.0", "0000:1a:00.0", "0000:49:00.0",
                                       "0000:4a:00.0", "0000:99:00.0", "0000:9a:00.0",
                                       "0000:c9:00.0", "0000:ca:00.0"};
    static const struct {
        const char *pci, *rdma, *net;
        bool infiniband, down;
        int numa;
    } nics[] = {{"0000:1b:00.0", "mlx5_0", "ib0", true, false, 0},
                {"0000:4b:00.0", "mlx5_1", "ens1np0", false, false, 0},
                {"0000:4d:00.0", "", "eth0", false, false, 0},
                {"0000:9b:00.0", "mlx5_2", "ib2", true, false, 1},
                {"0000:cb:00.0", "mlx5_3", "ib3", true, true, 1}};
    struct topology *t = read_file("server");
    (void)state;
    assert_int_equal(t->packages_count, 2);
    assert_int_equal(t->cores_count, 16);
    assert_cpus(&t->cpus, "0-31");
    assert_cpus(&t->core[8].cpus, "8,24");
    assert_int_equal(t->core[8].numa, 1);
    assert_int_equal(t->numas_count, 2);
    assert_cpus(&t->numa[1].cpus, "8-15,24-31");
    assert_int_equal(t->gpus_count, 8);
    for (uint32_t i = 0; i < 8; i++) {
        assert_string_equal(t->gpu[i].pci, gpus[i]);
        assert_int_equal(t->gpu[i].numa, i / 4);
        assert_cpus(&t->gpu[i].cpus, i < 4 ? "0-7,16-23" : "8-15,24-31");
    }
    assert_int_equal(t->nics_count, 5);
    for (uint32_t i = 0; i < 5; i++) {
        assert_string_equal(t->nic[i].pci, nics[i].pci);
        assert_string_equal(t->nic[i].rdma, nics[i].rdma);
        assert_string_equal(t->nic[i].net, nics[i].net);
        assert_int_equal(t->nic[i].infiniband, nics[i].infiniband);
        assert_int_equal(t->nic[i].down, nics[i].down);
        assert_int_equal(t->nic[i].numa, nics[i].numa);
    }
    mem_free(t);
}

static void what_lies_between_gpu_and_card_is_told(void **state)
{
    /* Cards 0 and 3 hang on the switches of GPUs 0, 1 and 4, 5; card 1 on that of 2, 3; card 2 has a
     * port of its own on the host bridge of these. */
    static const char *const ways[8][5] = {
        {"switch", "numa", "numa", "host", "host"}, {"switch", "numa", "numa", "host", "host"},
        {"numa", "switch", "numa", "host", "host"}, {"numa", "switch", "numa", "host", "host"},
        {"host", "host", "host", "switch", "numa"}, {"host", "host", "host", "switch", "numa"},
        {"host", "host", "host", "numa", "switch"}, {"host", "host", "host", "numa", "switch"}};
    struct topology *t = read_file("server");
    (void)state;
    for (int g = 0; g < 8; g++)
        for (int n = 0; n < 5; n++)
            assert_string_equal(topology_way_name(t->gpu[g].nic_distance[n]), ways[g][n]);
    /* One host bridge is nearer than two. */
    assert_true(t->gpu[2].nic_distance[2] < t->gpu[0].nic_distance[2]);
    mem_free(t);
}

static void a_laptop_has_its_gpu_near_everything(void **state)
{
    struct topology *t = read_file("laptop");
    (void)state;
    assert_int_equal(t->packages_count, 1);
    assert_int_equal(t->gpus_count, 1);
    assert_string_equal(t->gpu[0].pci, "0000:01:00.0");
    assert_cpus(&t->gpu[0].cpus, "0-7");
    assert_int_equal(t->gpu[0].numa, 0);
    assert_int_equal(t->nics_count, 1);
    assert_string_equal(t->nic[0].net, "wlan0");
    assert_string_equal(topology_way_name(t->gpu[0].nic_distance[0]), "numa");
    mem_free(t);
}

static void an_address_is_found_however_it_is_written(void **state)
{
    static const char *const same[] = {"0000:CA:00.0", "0000:ca:00.0", "00000000:CA:00.0",
                                       "ca:00.0"};
    static const char *const none[] = {
        "", "ca", "0000:ca:00", "0000:cb:00.0", "0001:ca:00.0", "0000:ca:00.0y", "gpu"};
    struct topology *t = read_file("server");
    (void)state;
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        assert_ptr_equal(topology_gpu_at(t, same[i]), &t->gpu[7]);
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_null(topology_gpu_at(t, none[i]));
    mem_free(t);
}

static void cpus_have_a_numa_node_if_one_has_them_all(void **state)
{
    static const struct {
        const char *cpus;
        int numa;
    } cases[] = {{"0-7,16-23", 0}, {"8", 1}, {"7,8", -1}, {"40", -1}, {"0,40", -1}};
    struct topology *t = read_file("server");
    cpu_set_t set;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_ok(cpus_parse(cases[i].cpus, &set));
        assert_int_equal(topology_numa_of(t, &set), cases[i].numa);
    }
    CPU_ZERO(&set);
    assert_int_equal(topology_numa_of(t, &set), -1);
    mem_free(t);
}

static void this_host_has_the_cpus_that_we_run_on(void **state)
{
    struct topology *t;
    cpu_set_t allowed, both;
    (void)state;
    assert_ok(topology_read(TOPOLOGY_CPUS, &t));
    cpus_allowed(&allowed);
    CPU_AND(&both, &allowed, &t->cpus);
    assert_true(t->this_host);
    assert_true(t->cores_count > 0);
    assert_true(CPU_COUNT(&both) > 0);
    assert_int_equal(t->gpus_count + t->nics_count, 0);
    mem_free(t);
}

static void what_cannot_be_read_is_an_error(void **state)
{
    struct topology *t;
    (void)state;
    mem_fail_at(1);
    assert_int_equal(topology_read(TOPOLOGY_CPUS, &t), ERR_MEMORY);
    mem_fail_at(0);
    assert_null(t);
    assert_int_equal(topology_bind_memory(-1), ERR_INVALID);
    assert_int_equal(topology_bind_memory(1024), ERR_INVALID);
    assert_int_equal(topology_bind_memory(1023), ERR_UNSUPPORTED); /* no kernel has so many */
    assert_non_null(strstr(err_text(), "NUMA node 1023"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_server_is_read_with_all_that_is_in_it),
        cmocka_unit_test(what_lies_between_gpu_and_card_is_told),
        cmocka_unit_test(a_laptop_has_its_gpu_near_everything),
        cmocka_unit_test(an_address_is_found_however_it_is_written),
        cmocka_unit_test(cpus_have_a_numa_node_if_one_has_them_all),
        cmocka_unit_test(this_host_has_the_cpus_that_we_run_on),
        cmocka_unit_test(what_cannot_be_read_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
