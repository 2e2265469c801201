#include "tests/unit/testing.h"

#include <string.h>

#include "client/up_args.h"
#include "common/mem.h"

static const struct up_node node = {.name = "d1", .device = "cpu"};

static struct up_child child_of(const struct up_node *of)
{
    return (struct up_child){.program = of ? "/bin/tandem-decode" : "/bin/tandem-router",
                             .model = "/models/m",
                             .clients = "tcp://127.0.0.1:5700",
                             .nodes = "tcp://127.0.0.1:5701",
                             .name = of ? of->name : "r0",
                             .number = of ? 2 : 0,
                             .node = of,
                             .sharers = 1};
}

/* All items but the first two, with a blank between them. */
static void assert_told(const struct up_options *o, const struct up_child *c, const char *told)
{
    struct up_args args;
    struct buf text = {0};
    assert_ok(up_args_make(&args, o, c));
    assert_string_equal(args.item[0], c->program);
    assert_string_equal(args.item[1], "--model=/models/m");
    for (uint32_t i = 2; i < args.count; i++)
        buf_printf(&text, i > 2 ? " %s" : "%s", args.item[i]);
    assert_null(args.item[args.count]);
    assert_string_equal(text.data, told);
    buf_fini(&text);
    up_args_fini(&args);
}

static void a_router_is_told_where_to_listen(void **state)
{
    (void)state;
    const struct up_child c = child_of(NULL);
    assert_told(&(struct up_options){.log_level = 2, .link = 1, .kv_disk = "/d", .blocks = 9}, &c,
                "--name=r0 --log-level=warn --trusted-network=false "
                "--listen-clients=tcp://127.0.0.1:5700 --listen-nodes=tcp://127.0.0.1:5701");
}

static void a_node_is_told_its_router_and_what_was_set(void **state)
{
    (void)state;
    static const struct up_options sets[] = {
        {.log_level = 2},
        {.trusted_network = true, .link = 2, .blocks = 64, .dry_run = true},
        {.kv_disk = "/d", .kv_disk_bytes = 1 << 30, .kv_host_bytes = 5000000000},
        {.kv_redis = "127.0.0.1:6379", .kv_redis_user = "u", .kv_redis_password = "/p"},
    };
    static const char *const told[] = {
        "--name=d1 --log-level=warn --trusted-network=false --router=tcp://127.0.0.1:5701 "
        "--device=cpu --link=auto",
        "--name=d1 --log-level=debug --trusted-network=true --router=tcp://127.0.0.1:5701 "
        "--device=cpu --link=tcp --blocks=64 --dry-run",
        "--name=d1 --log-level=debug --trusted-network=false --router=tcp://127.0.0.1:5701 "
        "--device=cpu --link=auto --kv-host-bytes=5000000000 --kv-disk=/d/decode-1 "
        "--kv-disk-bytes=1073741824",
        "--name=d1 --log-level=debug --trusted-network=false --router=tcp://127.0.0.1:5701 "
        "--device=cpu --link=auto --kv-redis=127.0.0.1:6379 --kv-redis-user=u "
        "--kv-redis-password=/p",
    };
    const struct up_child c = child_of(&node);
    for (uint32_t i = 0; i < COUNT_OF(sets); i++)
        assert_told(&sets[i], &c, told[i]);
}

static void a_place_and_a_share_of_a_gpu_are_told(void **state)
{
    (void)state;
    struct up_node placed = {
        .name = "p0", .device = "cuda:1", .place = {.own = true, .threads = 3}};
    CPU_SET(2, &placed.place.cpus);
    CPU_SET(3, &placed.place.cpus);
    struct up_child c = child_of(&placed);
    c.sharers = 2;
    assert_told(&(struct up_options){0}, &c,
                "--name=p0 --log-level=debug --trusted-network=false "
                "--router=tcp://127.0.0.1:5701 --device=cuda:1 --kv-share=0.450 --link=auto "
                "--threads=3 --cpus=2-3");
}

static void pages_of_metrics_follow_each_other(void **state)
{
    (void)state;
    static const struct {
        const char *address, *told;
    } cases[] = {
        {"127.0.0.1:9100", "--metrics=127.0.0.1:9102"},
        {"[::1]:9100", "--metrics=[::1]:9102"},
        {"127.0.0.1:0", "--metrics=127.0.0.1:0"}, /* each chooses its own */
    };
    const struct up_child c = child_of(&node);
    for (uint32_t i = 0; i < COUNT_OF(cases); i++) {
        struct up_args args;
        const struct up_options o = {.metrics = cases[i].address};
        assert_ok(up_args_make(&args, &o, &c));
        assert_string_equal(args.item[5], cases[i].told);
        up_args_fini(&args);
    }
}

static void settings_may_be_long(void **state)
{
    (void)state;
    static char path[20000];
    memset(path, 'x', sizeof path - 1);
    struct up_args args;
    const struct up_options o = {.kv_redis = path, .kv_redis_user = path, .kv_disk = path};
    const struct up_child c = child_of(&node);
    assert_ok(up_args_make(&args, &o, &c));
    assert_int_equal(strlen(args.item[8]), sizeof "--kv-redis=" - 1 + sizeof path - 1);
    up_args_fini(&args);
}

static void a_failing_allocation_is_an_error(void **state)
{
    (void)state;
    struct up_args args;
    const struct up_child c = child_of(&node);
    for (uint64_t n = 1; n <= 2; n++) {
        mem_fail_at(n);
        enum err e = up_args_make(&args, &(struct up_options){.kv_disk = "/d"}, &c);
        mem_fail_at(0);
        assert_int_equal(e, ERR_MEMORY);
        up_args_fini(&args);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_router_is_told_where_to_listen),
        cmocka_unit_test(a_node_is_told_its_router_and_what_was_set),
        cmocka_unit_test(a_place_and_a_share_of_a_gpu_are_told),
        cmocka_unit_test(pages_of_metrics_follow_each_other),
        cmocka_unit_test(settings_may_be_long),
        cmocka_unit_test(a_failing_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
