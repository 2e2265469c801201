#include "common/placement.h"

#include <stdio.h>
#include <string.h>

#include "common/cpus.h"
#include "common/mem.h"
#include "testing.h"

enum { NODES_MAX = 8 };

static struct topology *read_file(const char *name)
{
    char path[512];
    struct topology *t;
    snprintf(path, sizeof path, "%s/tests/unit/topologies/%s.xml", TANDEM_SOURCE_DIR, name);
    assert_int_equal(setenv("HWLOC_XMLFILE", path, 1), 0);
    assert_ok(topology_read(TOPOLOGY_DEVICES, &t));
    return t;
}

#define CPU(threads)                                                                               \
    {                                                                                              \
        PLACEMENT_ON_CPU, threads                                                                  \
    }
#define GPU(index)                                                                                 \
    {                                                                                              \
        index, 0                                                                                   \
    }

/* A node's place in one line. */
static void print_place(const struct topology *t, const struct placement *p, char *text,
                        size_t size)
{
    char cpus[CPUS_TEXT], nics[PLACEMENT_TEXT];
    cpus_print(&p->cpus, cpus, sizeof cpus);
    placement_print_nics(t, p, nics, sizeof nics);
    snprintf(text, size, "%s%s numa %d threads %u nics %s", p->own ? "" : "not own ", cpus, p->numa,
             p->threads, nics);
}

static const struct {
    const char *what, *host, *allowed;
    struct placement_want want[NODES_MAX];
    uint32_t count;
    const char *place[NODES_MAX];
} cases[] = {
    {"one GPU node has its NUMA node for itself",
     "server",
     "0-1023",
     {GPU(5)},
     1,
     {"8-15,24-31 numa 1 threads 0 nics mlx5_2"}},
    {"eight GPU nodes have two cores each, near their GPUs",
     "server",
     "0-1023",
     {GPU(0), GPU(1), GPU(2), GPU(3), GPU(4), GPU(5), GPU(6), GPU(7)},
     8,
     {"0-1,16-17 numa 0 threads 0 nics mlx5_0", "2-3,18-19 numa 0 threads 0 nics mlx5_0",
      "4-5,20-21 numa 0 threads 0 nics mlx5_1", "6-7,22-23 numa 0 threads 0 nics mlx5_1",
      "8-9,24-25 numa 1 threads 0 nics mlx5_2", "10-11,26-27 numa 1 threads 0 nics mlx5_2",
      /* mlx5_3, on their switch, is down */
      "12-13,28-29 numa 1 threads 0 nics mlx5_2", "14-15,30-31 numa 1 threads 0 nics mlx5_2"}},
    {"two nodes on one GPU share what is near it",
     "server",
     "0-1023",
     {GPU(0), GPU(0)},
     2,
     {"0-3,16-19 numa 0 threads 0 nics mlx5_0", "4-7,20-23 numa 0 threads 0 nics mlx5_0"}},
    {"a GPU's neighbours on the other package do not count",
     "server",
     "0-1023",
     {GPU(7), GPU(0), GPU(3)},
     3,
     {"8-15,24-31 numa 1 threads 0 nics mlx5_2", "0-3,16-19 numa 0 threads 0 nics mlx5_0",
      "4-7,20-23 numa 0 threads 0 nics mlx5_1"}},
    {"GPU nodes keep to the CPUs that are allowed",
     "server",
     "0-2",
     {GPU(0), GPU(1)},
     2,
     {"0 numa 0 threads 0 nics mlx5_0", "1 numa 0 threads 0 nics mlx5_0"}},
    {"more GPU nodes than cores share them all",
     "server",
     "0",
     {GPU(0), GPU(1)},
     2,
     {"not own 0 numa 0 threads 0 nics mlx5_0", "not own 0 numa 0 threads 0 nics mlx5_0"}},
    {"a GPU far from what is allowed is served from there",
     "server",
     "0-3",
     {GPU(7)},
     1,
     {"not own  numa 1 threads 0 nics mlx5_2"}},
    {"CPU nodes take what GPU nodes leave",
     "server",
     "0-1023",
     {GPU(0), CPU(0), GPU(4), CPU(0)},
     4,
     {"0-1,16-17 numa 0 threads 0 nics mlx5_0", "2-7,18-23 numa 0 threads 12 nics mlx5_0,mlx5_1",
      "8-9,24-25 numa 1 threads 0 nics mlx5_2", "10-15,26-31 numa 1 threads 12 nics mlx5_2"}},
    {"two CPU nodes take a package each",
     "server",
     "0-1023",
     {CPU(0), CPU(0)},
     2,
     {"0-7,16-23 numa 0 threads 16 nics mlx5_0,mlx5_1",
      "8-15,24-31 numa 1 threads 16 nics mlx5_2"}},
    {"few threads have cores of their own",
     "server",
     "0-1023",
     {CPU(4), CPU(4)},
     2,
     {"0-3 numa 0 threads 4 nics mlx5_0,mlx5_1", "8-11 numa 1 threads 4 nics mlx5_2"}},
    {"a CPU node across packages has no NUMA node",
     "server",
     "0-1023",
     {CPU(0)},
     1,
     {"0-31 numa -1 threads 32 nics mlx5_0,mlx5_1,mlx5_2"}},
    {"unequal CPU nodes stand one behind the other",
     "server",
     "0-7",
     {CPU(5), CPU(3)},
     2,
     {"0-4 numa 0 threads 5 nics mlx5_0,mlx5_1", "5-7 numa 0 threads 3 nics mlx5_0,mlx5_1"}},
    {"siblings are shared out where cores do not suffice",
     "laptop",
     "0-1023",
     {CPU(0), CPU(0), CPU(0), CPU(0), CPU(0)},
     5,
     {"0 numa 0 threads 1 nics wlan0", "1 numa 0 threads 1 nics wlan0",
      "2 numa 0 threads 1 nics wlan0", "3 numa 0 threads 1 nics wlan0",
      "4 numa 0 threads 1 nics wlan0"}},
    {"more threads than CPUs are bound nowhere",
     "laptop",
     "0-1",
     {CPU(0), CPU(2)},
     2,
     {"not own  numa -1 threads 1 nics wlan0", "not own  numa -1 threads 2 nics wlan0"}},
    {"a GPU that is not in the topology leaves its node anywhere",
     "laptop",
     "0-1023",
     {{PLACEMENT_GPU_UNKNOWN, 0}, GPU(0)},
     2,
     {"not own  numa -1 threads 0 nics ", "0-7 numa 0 threads 0 nics wlan0"}},
};

static void every_node_gets_its_place(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct topology *t = read_file(cases[i].host);
        struct placement place[NODES_MAX];
        cpu_set_t allowed;
        assert_ok(cpus_parse(cases[i].allowed, &allowed));
        placement_make(t, &allowed, cases[i].want, cases[i].count, place);
        for (uint32_t n = 0; n < cases[i].count; n++) {
            char text[512];
            print_place(t, &place[n], text, sizeof text);
            if (strcmp(text, cases[i].place[n]) != 0)
                fail_msg("%s: node %u: \"%s\", not \"%s\"", cases[i].what, n, text,
                         cases[i].place[n]);
        }
        mem_free(t);
    }
}

/* Any mix of nodes: CPUs of one node are no other's, near its GPU, and the same when asked again. */
static void own_cpus_are_nobody_elses(void **state)
{
    struct topology *t = read_file("server");
    (void)state;
    for (uint32_t mix = 0; mix < 3 * 3 * 3 * 3 * 3 * 3; mix++) {
        struct placement_want want[6];
        struct placement place[6], again[6];
        cpu_set_t taken, both;
        uint32_t rest = mix;
        for (uint32_t n = 0; n < 6; n++, rest /= 3)
            want[n] = (struct placement_want){
                rest % 3 == 0 ? PLACEMENT_ON_CPU : (int32_t)(rest % 3 * 4 - 4 + n % 4), 0};
        placement_make(t, &t->cpus, want, 6, place);
        placement_make(t, &t->cpus, want, 6, again);
        CPU_ZERO(&taken);
        for (uint32_t n = 0; n < 6; n++) {
            assert_true(CPU_EQUAL(&place[n].cpus, &again[n].cpus));
            assert_true(place[n].own && CPU_COUNT(&place[n].cpus) > 0);
            CPU_AND(&both, &place[n].cpus, &taken);
            assert_int_equal(CPU_COUNT(&both), 0);
            CPU_OR(&taken, &taken, &place[n].cpus);
            if (want[n].gpu < 0) continue;
            CPU_AND(&both, &place[n].cpus, &t->gpu[want[n].gpu].cpus);
            assert_true(CPU_EQUAL(&both, &place[n].cpus));
        }
    }
    mem_free(t);
}

static void a_gpu_nodes_threads_have_cores_apart(void **state)
{
    static const struct {
        const char *cpus, *engine, *link, *loop;
        bool own;
    } splits[] = {{"0-3,16-19", "0,16", "1,17", "2-3,18-19", true},
                  {"4-6", "4", "5", "6", true},
                  {"0-1,16-17", "0-1,16-17", "0-1,16-17", "0-1,16-17", true},
                  {"0-7", "0-7", "0-7", "0-7", false}};
    struct topology *t = read_file("server");
    (void)state;
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
        struct placement place = {.own = splits[i].own};
        cpu_set_t set[3];
        const char *const expected[] = {splits[i].engine, splits[i].link, splits[i].loop};
        assert_ok(cpus_parse(splits[i].cpus, &place.cpus));
        placement_split(t, &place, &set[0], &set[1], &set[2]);
        for (int k = 0; k < 3; k++) {
            char text[CPUS_TEXT];
            cpus_print(&set[k], text, sizeof text);
            assert_string_equal(text, expected[k]);
        }
    }
    mem_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_node_gets_its_place),
        cmocka_unit_test(own_cpus_are_nobody_elses),
        cmocka_unit_test(a_gpu_nodes_threads_have_cores_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
