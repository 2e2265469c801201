/* Verbs that need no router. */
#include "tests/unit/cmd_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "common/file.h"
#include "common/log.h"
#include "common/mem.h"

static void tokenize_and_detokenize_are_each_others_inverse(void **state)
{
    (void)state;
    if (access(MODEL "/tokenizer.json", R_OK) != 0) skip();
    static const char text[] = "To be, or not to be?\n  \xc3\xa9\xe2\x82\xac ";
    struct result ids = finish(start(
        (const char *const[]){"tokenize", "--no-special", "--model", MODEL, "-", NULL}, text));
    assert_int_equal(ids.code, 0);
    struct result back = RUN("detokenize", "--model", MODEL, ids.out);
    assert_int_equal(back.code, 0);
    assert_string_equal(back.out, text);
    struct result json = RUN("tokenize", "--json", "--no-special", "--model", MODEL, text);
    json_t *array = json_loads(json.out, 0, NULL);
    assert_true(json_is_array(array));
    json_decref(array);
    struct result again = finish(
        start((const char *const[]){"detokenize", "--json", "--model", MODEL, NULL}, json.out));
    json_t *string = json_loads(again.out, JSON_DECODE_ANY, NULL);
    assert_string_equal(json_string_value(string), text);
    json_decref(string);
    struct result beyond = RUN("detokenize", "--model", MODEL, "5", "1024");
    assert_int_equal(beyond.code, 0);
    assert_non_null(strstr(beyond.err, "token id 1024 has no text: the last id is 1023"));
    struct result wrong = RUN("detokenize", "--model", MODEL, "five");
    assert_int_equal(wrong.code, 2);
    assert_non_null(strstr(wrong.err, "\"five\" is no token id"));
    struct result none = RUN("tokenize", "--model", "/nowhere", "x");
    assert_int_equal(none.code, 1);
    assert_non_null(strstr(none.err, "/nowhere"));
}

static void help_goes_to_stdout_and_names_every_verb(void **state)
{
    (void)state;
    struct result x = RUN("help");
    assert_int_equal(x.code, 0);
    static const char *const verbs[] = {"up",      "generate", "status", "kv",       "doctor",
                                        "explain", "drain",    "plan",   "tokenize", "detokenize"};
    for (size_t i = 0; i < sizeof verbs / sizeof verbs[0]; i++) {
        assert_non_null(strstr(x.out, verbs[i]));
        struct result v = RUN(verbs[i], "--help");
        assert_int_equal(v.code, 0);
        assert_non_null(strstr(v.out, "--"));
        struct result h = RUN("help", verbs[i]);
        assert_int_equal(h.code, 0);
        assert_string_equal(h.out, v.out);
    }
}

static void plan_shows_its_sums_and_gives_them_as_json(void **state)
{
    (void)state;
    struct result x =
        RUN("plan", "--model", MODEL, "--memory", "2GiB", "--device=cpu", "--requests-per-second=2",
            "--prompt-tokens=100", "--output-tokens=50", "--prefill-rate=1e3", "--bandwidth=1e10");
    assert_int_equal(x.code, 0);
    assert_string_equal(x.err, "");
    static const char *const said[] = {"2 x 6 layers x 2 kv heads x 32 x 2 bytes = 1,536 bytes",
                                       "last block empty", "--kv-bytes ", "1 P, in use 20 %",
                                       "nothing was measured"};
    for (size_t i = 0; i < sizeof said / sizeof said[0]; i++)
        if (!strstr(x.out, said[i])) fail_msg("no \"%s\" in\n%s", said[i], x.out);
    assert_null(strstr(x.out, "not those of this shape"));
    x = RUN("plan", "--model", MODEL, "--memory=2GiB", "--json", "--requests-per-second=2",
            "--prompt-tokens=100", "--output-tokens=50", "--prefill-rate=1e3", "--bandwidth=1e10");
    assert_int_equal(x.code, 0);
    json_t *plan = json_loads(x.out, 0, NULL), *model = json_object_get(plan, "model");
    json_t *load = json_object_get(plan, "load"), *files = json_object_get(model, "files");
    assert_int_equal(json_integer_value(json_object_get(model, "parameters")),
                     json_integer_value(json_object_get(files, "parameters")));
    json_t *prefill = json_object_get(load, "prefill");
    assert_int_equal(json_integer_value(json_object_get(prefill, "nodes")), 1);
    assert_non_null(json_object_get(json_object_get(plan, "memory"), "requests"));
    json_decref(plan);
}

static void plan_prints_what_the_page_shows(void **state)
{
    (void)state;
    struct result x = RUN("plan", "--layers=32", "--heads=32", "--kv-heads=8", "--head-dim=128",
                          "--hidden=4096", "--ffn=14336", "--vocab=128256", "--context=8192",
                          "--memory=80GiB", "--requests-per-second=10", "--prompt-tokens=2000",
                          "--output-tokens=400", "--ttft=500ms", "--itl=30ms",
                          "--prefill-rate=20000", "--decode-step=25ms", "--batch=128");
    assert_int_equal(x.code, 0);
    struct file_map page;
    assert_ok(file_map_open(&page, TANDEM_SOURCE_DIR "/docs/kv-memory.md"));
    if (!memmem(page.data, page.size_bytes, x.out, strlen(x.out)))
        fail_msg("docs/kv-memory.md does not have\n%s", x.out);
    file_map_close(&page);
}

static void plan_tells_what_does_not_fit_or_is_not_there(void **state)
{
    (void)state;
    struct result x = RUN("plan", "--model", "/nowhere");
    assert_int_equal(x.code, 1);
    assert_non_null(strstr(x.err, "/nowhere/config.json"));
    x = RUN("plan", "--model", MODEL, "--memory", "1GiB");
    assert_int_equal(x.code, 1);
    assert_non_null(strstr(x.err, "does not fit into 1024 MiB"));
    assert_non_null(strstr(x.err, "; give more --memory or a smaller --reserve"));
    x = RUN("plan", "--model", MODEL, "--memory", "1040MiB");
    assert_int_equal(x.code, 1);
    assert_non_null(strstr(x.err, "the KV of one context of 8192 tokens 12 MiB"));
    assert_non_null(strstr(x.err, "lower --context"));
    assert_string_equal(x.out, "");
    x = RUN("plan", "--model", MODEL, "--context", "8192");
    assert_string_equal(x.err, "");
    x = RUN("plan", "--model", MODEL, "--context", "8193");
    assert_int_equal(x.code, 0);
    assert_non_null(strstr(x.err, "--context 8193 is more than the model's 8192"));
    assert_non_null(strstr(x.out, ", context 8192\n"));
}

static void doctor_reads_saved_looks_and_says_what_one_alone_cannot_tell(void **state)
{
    (void)state;
    static const struct {
        const char *input, *out, *err;
        int code;
    } rows[] = {
        {"{\"router\":{\"name\":\"r\"},\"nodes\":[{\"name\":\"d0\",\"role\":\"decode\"}]}",
         "1 node, looked at once (what changes with time shows in two looks: tandem kv --save)", "",
         0},
        {"{\"samples\":[{\"status\":{\"router\":{\"at_s\":1},\"nodes\":[{\"role\":\"decode\"}]}},"
         "{\"status\":{\"router\":{\"at_s\":1.5},\"nodes\":[{\"role\":\"decode\"}]}}]}",
         "1 node, looked at for 500 ms by 16 rules", "", 0},
        {"\xEF\xBB\xBF{\"router\":{\"name\":\"r\"},\"nodes\":[{\"name\":\"d0\",\"role\":\"decode\"}"
         "]}",
         "1 node, looked at once", "", 0},
        {"", "", "stdin: it is empty", 1},
        {" \n", "", "stdin: it is empty", 1},
        {"{\"router\":", "", "stdin: no JSON: ", 1},
        {"[]", "", "stdin: no JSON object", 1},
        {"{\"router\":{},\"router\":{}}", "", "stdin: no JSON: line 1: duplicate", 1},
        {"{}", "", "stdin: it has neither a status nor a report of KV", 1},
        {"{\"samples\":[]}", "", "stdin: there is no sample in it", 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct result r =
            finish(start((const char *const[]){"doctor", "--from", "-", NULL}, rows[i].input));
        if (r.code != rows[i].code || !strstr(r.out, rows[i].out) || !strstr(r.err, rows[i].err))
            fail_msg("row %zu: code %d, %s%s", i, r.code, r.out, r.err);
    }
    struct result r = RUN("doctor", "--from", "/tmp");
    assert_int_equal(r.code, 1);
    assert_non_null(strstr(r.err, "/tmp: Is a directory"));
}

static void version_is_one_line_on_stdout(void **state)
{
    (void)state;
    struct result x = RUN("--version");
    assert_int_equal(x.code, 0);
    assert_string_equal(x.out, "tandem " TANDEM_VERSION "\n");
    assert_string_equal(x.err, "");
    x = RUN("generate", "--version");
    assert_int_equal(x.code, 0);
    assert_string_equal(x.out, "tandem generate " TANDEM_VERSION "\n");
}

static void up_says_what_is_missing(void **state)
{
    (void)state;
    struct result x = RUN("up", "--model", "/nowhere");
    assert_int_equal(x.code, 1);
    assert_non_null(strstr(x.err, "/nowhere"));
    x = RUN("up", "--model", "/tmp", "--zmq", "tcp://127.0.0.1:0");
    assert_int_equal(x.code, 1);
    assert_non_null(strstr(x.err, "tandem up: r0 (tandem-router"));
    x = RUN("up", "--model", MODEL, "--zmq", "nonsense");
    assert_int_equal(x.code, 2);
    assert_non_null(strstr(x.err, "--zmq: address \"nonsense\": it must look like"));
    x = RUN("up", "--model", MODEL, "--zmq", "tcp://127.0.0.1:0", "--nodes", "127.0.0.1");
    assert_int_equal(x.code, 2);
    assert_non_null(strstr(x.err, "--nodes: address \"127.0.0.1\": it must look like"));
    x = RUN("up", "--model", MODEL, "--zmq", "tcp://192.0.2.1:0");
    assert_int_equal(x.code, 2); /* as the router ends that says it */
    assert_non_null(strstr(x.err, "say --trusted-network"));
    x = RUN("up", "--model", MODEL, "--zmq", "tcp://192.0.2.1:0", "--trusted-network");
    assert_int_equal(x.code, 1); /* the check is passed, the address is not this host's */
    assert_null(strstr(x.err, "say --trusted-network"));
    x = RUN("up", "--model", MODEL, "--metrics", "9100");
    assert_int_equal(x.code, 2);
    assert_non_null(strstr(x.err, "--metrics: address \"9100\""));
    x = RUN("up", "--model", MODEL, "--metrics", "127.0.0.1:65534"); /* three processes */
    assert_int_equal(x.code, 2);
    assert_non_null(strstr(x.err, "have no ports from there on"));
    x = RUN("up", "--json", "--model", "/nowhere");
    assert_int_equal(x.code, 1);
    assert_string_equal(x.out, "{\"event\":\"ended\",\"code\":1}\n");
    assert_non_null(strstr(x.err, "--model /nowhere"));
}

static void a_dry_run_says_what_a_start_would_fail_by(void **state)
{
    static const struct {
        const char *device, *said;
        int code;
    } cases[] = {
        {"cpu", "", 0},
        {"gpu", "tandem-prefill: --device: no backend \"gpu\"", 2},
        {"cuda:x", "behind the colon stands a number", 2},
        {"cuda", "libtandem_cuda.so", 1},
    };
    (void)state;
    setenv("TANDEM_PLUGIN_DIR", "/nowhere", 1);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct result x = RUN("up", "--dry-run", "--model", "/tmp", "--device", cases[i].device);
        assert_int_equal(x.code, cases[i].code);
        assert_non_null(strstr(x.out, "  d0   on "));
        assert_non_null(strstr(x.err, cases[i].said));
    }
    unsetenv("TANDEM_PLUGIN_DIR");
    struct result x =
        RUN("up", "--dry-run", "--json", "--model", "/tmp", "--kv-redis", "10.0.0.1:1");
    assert_int_equal(x.code, 2);
    assert_non_null(strstr(x.out, "\n{\"event\":\"ended\",\"code\":2}\n"));
    assert_non_null(strstr(x.err, "say --trusted-network"));
}

/* The machine is a file, and the plan for it has one right form. */
static void up_plans_for_the_topology_that_it_finds(void **state)
{
    static const struct {
        const char *visible, *order, *prefill, *decode;
        const char *lines[5];
    } cases[] = {
        {NULL,
         NULL,
         "0,1",
         "2,7",
         {"2 packages, 2 NUMA nodes, 16 cores, 32 CPUs, 8 GPUs, 5 network cards\n",
          "  p0   on cuda:0  0000:19:00.0  numa 0  cpus 0-1,16-17  card mlx5_0 (switch)\n",
          "  p1   on cuda:1  0000:1a:00.0  numa 0  cpus 2-3,18-19  card mlx5_0 (switch)\n",
          "  d0   on cuda:2  0000:49:00.0  numa 0  cpus 4-5,20-21  card mlx5_1 (switch)\n",
          "  d1   on cuda:7  0000:ca:00.0  numa 1  cpus 8-15,24-31  card mlx5_2 (numa)\n"}},
        {"6,1",
         "PCI_BUS_ID",
         "0",
         "1",
         {"  p0   on cuda:0  0000:c9:00.0  numa 1  cpus 8-15,24-31  card mlx5_2 (numa)\n",
          "  d0   on cuda:1  0000:1a:00.0  numa 0  cpus 0-7,16-23  card mlx5_0 (switch)\n"}},
        /* Which GPU that is cannot be told from here. */
        {"GPU-8d7c",
         NULL,
         "0",
         "0",
         {"  p0   on cuda:0  cpus any\n", "  d0   on cuda:0  cpus any\n"}},
        {"1", NULL, "0", "1", {"  d0   on cuda:1  cpus any\n"}},
        {NULL, "FASTEST_FIRST", "0", "1", {"  p0   on cuda:0  cpus any\n"}},
        {NULL, NULL, "8", "0", {"  p0   on cuda:8  cpus any\n"}},
        {NULL,
         NULL,
         NULL,
         NULL,
         {"  p0   on cpu  numa 0  cpus 0-7,16-23  threads 16\n",
          "  d0   on cpu  numa 1  cpus 8-15,24-31  threads 16\n"}},
    };
    (void)state;
    setenv("HWLOC_XMLFILE", TANDEM_SOURCE_DIR "/tests/unit/topologies/server.xml", 1);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        unsetenv("CUDA_VISIBLE_DEVICES");
        unsetenv("CUDA_DEVICE_ORDER");
        if (cases[i].visible) setenv("CUDA_VISIBLE_DEVICES", cases[i].visible, 1);
        if (cases[i].order) setenv("CUDA_DEVICE_ORDER", cases[i].order, 1);
        struct result x = cases[i].prefill ? RUN("up", "--dry-run", "--model", "/tmp", "--device",
                                                 "cuda", "--prefill-gpus", cases[i].prefill,
                                                 "--decode-gpus", cases[i].decode)
                                           : RUN("up", "--dry-run", "--model", "/tmp");
        assert_int_equal(x.code, 0);
        assert_string_equal(x.err, "");
        for (size_t k = 0; k < COUNT_OF(cases[i].lines) && cases[i].lines[k]; k++)
            if (!strstr(x.out, cases[i].lines[k]))
                fail_msg("no line \"%s\" in:\n%s", cases[i].lines[k], x.out);
    }
    unsetenv("CUDA_VISIBLE_DEVICES");
    unsetenv("CUDA_DEVICE_ORDER");
    struct result x = RUN("up", "--dry-run", "--json", "--model", "/tmp");
    assert_string_equal(x.err, "");
    assert_string_equal(x.out, "{\"event\":\"plan\",\"node\":\"p0\",\"device\":\"cpu\",\"numa\":0,"
                               "\"cpus\":\"0-7,16-23\",\"own\":true,\"threads\":16}\n"
                               "{\"event\":\"plan\",\"node\":\"d0\",\"device\":\"cpu\",\"numa\":1,"
                               "\"cpus\":\"8-15,24-31\",\"own\":true,\"threads\":16}\n"
                               "{\"event\":\"ended\",\"code\":0}\n");
    unsetenv("HWLOC_XMLFILE");
    setenv("HWLOC_COMPONENTS", "stop", 1); /* no topology, and yet a plan */
    x = RUN("up", "--dry-run", "--model", "/tmp", "--threads", "3");
    unsetenv("HWLOC_COMPONENTS");
    assert_int_equal(x.code, 0);
    assert_non_null(strstr(x.out, "topology is not known"));
    assert_non_null(strstr(x.out, "  p0   on cpu  cpus any  threads 3\n"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokenize_and_detokenize_are_each_others_inverse),
        cmocka_unit_test(help_goes_to_stdout_and_names_every_verb),
        cmocka_unit_test(doctor_reads_saved_looks_and_says_what_one_alone_cannot_tell),
        cmocka_unit_test(version_is_one_line_on_stdout),
        cmocka_unit_test(plan_shows_its_sums_and_gives_them_as_json),
        cmocka_unit_test(plan_prints_what_the_page_shows),
        cmocka_unit_test(plan_tells_what_does_not_fit_or_is_not_there),
        cmocka_unit_test(up_says_what_is_missing),
        cmocka_unit_test(a_dry_run_says_what_a_start_would_fail_by),
        cmocka_unit_test(up_plans_for_the_topology_that_it_finds),
    };
    log_setup(LOG_OFF, NULL);
    if (argc != 2) return 2;
    tandem = argv[1];
    return cmocka_run_group_tests_name("cmd_local", tests, NULL, NULL);
}
