#include "tests/unit/testing.h"

#include <math.h>
#include <string.h>

#include "common/mem.h"
#include "common/metrics.h"
#include "tests/unit/exposition.h"

static const double bounds[] = {0.001, 0.01, 0.1};

static void the_page_is_prometheus_text_with_series_of_a_name_together(void **state)
{
    (void)state;
    struct metrics *m;
    struct metric *shm, *running, *tcp, *ttft;
    struct buf page = {0};
    assert_ok(metrics_new(&m, 4));
    assert_ok(metrics_add(
        m,
        &(struct metric_spec){METRIC_COUNTER, "tandem_bytes_total", "link=\"shm\"", "Bytes moved"},
        &shm));
    assert_ok(metrics_add(m, &(struct metric_spec){METRIC_GAUGE, "vllm:running", NULL, "Running"},
                          &running));
    assert_ok(metrics_add(
        m,
        &(struct metric_spec){METRIC_COUNTER, "tandem_bytes_total", "link=\"tcp\"", "Bytes moved"},
        &tcp));
    assert_ok(metrics_add(
        m, &(struct metric_spec){METRIC_HISTOGRAM, "vllm:ttft_seconds", NULL, "TTFT", bounds, 3},
        &ttft));
    metric_count(shm, 7);
    metric_count(tcp, 1ull << 40);
    metric_set(running, 2.5);
    metric_observe(ttft, 0.001); /* an upper edge belongs to its bucket */
    metric_observe(ttft, 0.5);
    assert_ok(metrics_prometheus(m, &page));
    assert_string_equal(page.data, "# HELP tandem_bytes_total Bytes moved\n"
                                   "# TYPE tandem_bytes_total counter\n"
                                   "tandem_bytes_total{link=\"shm\"} 7\n"
                                   "tandem_bytes_total{link=\"tcp\"} 1099511627776\n"
                                   "# HELP vllm:running Running\n"
                                   "# TYPE vllm:running gauge\n"
                                   "vllm:running 2.5\n"
                                   "# HELP vllm:ttft_seconds TTFT\n"
                                   "# TYPE vllm:ttft_seconds histogram\n"
                                   "vllm:ttft_seconds_bucket{le=\"0.001\"} 1\n"
                                   "vllm:ttft_seconds_bucket{le=\"0.01\"} 1\n"
                                   "vllm:ttft_seconds_bucket{le=\"0.1\"} 1\n"
                                   "vllm:ttft_seconds_bucket{le=\"+Inf\"} 2\n"
                                   "vllm:ttft_seconds_sum 0.501\n"
                                   "vllm:ttft_seconds_count 2\n");
    exposition_free(exposition_read(page.data));
    buf_fini(&page);
    metrics_free(m);
}

static void numbers_are_exact_and_texts_cannot_break_the_page(void **state)
{
    (void)state;
    static const double values[] = {0.1, 1.0 / 3, 1e-300, 123456789012, -0.5, 0, INFINITY, 2e21};
    struct metrics *m;
    struct metric *gauge, *count;
    assert_ok(metrics_new(&m, 2));
    assert_ok(metrics_add(
        m, &(struct metric_spec){METRIC_GAUGE, "some_ratio", NULL, "one\nand a \\ two"}, &gauge));
    assert_ok(metrics_add(
        m, &(struct metric_spec){METRIC_COUNTER, "some_total", "a=\"1\",b=\"x,}\"", "c"}, &count));
    metric_show_count(count, 5);
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        struct buf page = {0};
        metric_set(gauge, values[i]);
        assert_ok(metrics_prometheus(m, &page));
        struct exposition *x = exposition_read(page.data);
        assert_true(exposition_value(x, "some_ratio") == values[i]);
        assert_true(exposition_value(x, "some_total{a=\"1\",b=\"x,}\"}") == 5);
        assert_string_equal(x->family[0].help, "one\\nand a \\\\ two");
        assert_string_equal(x->family[1].labels, "a, b");
        assert_true(i != 0 || strstr(page.data, "some_ratio 0.1\n"));
        exposition_free(x);
        buf_fini(&page);
    }
    metrics_free(m);
}

static void a_bad_or_second_series_is_refused(void **state)
{
    (void)state;
    static const double descending[] = {2, 1};
    static const struct {
        struct metric_spec spec;
        enum err want;
    } cases[] = {
        {{METRIC_COUNTER, "a_total", NULL, ""}, OK},
        {{METRIC_COUNTER, "a_total", NULL, ""}, ERR_DUPLICATE},
        {{METRIC_COUNTER, "a_total", "", ""}, ERR_DUPLICATE},
        {{METRIC_GAUGE, "a_total", "x=\"1\"", ""}, ERR_INVALID},
        {{METRIC_COUNTER, "", NULL, ""}, ERR_INVALID},
        {{METRIC_COUNTER, "9a", NULL, ""}, ERR_INVALID},
        {{METRIC_COUNTER, "a b", NULL, ""}, ERR_INVALID},
        {{METRIC_HISTOGRAM, "h", NULL, ""}, ERR_INVALID},
        {{METRIC_HISTOGRAM, "h", NULL, "", descending, 2}, ERR_INVALID},
        {{METRIC_HISTOGRAM, "h", NULL, "", bounds, METRIC_BOUNDS_MAX + 1}, ERR_INVALID},
        {{METRIC_COUNTER, "b", NULL, "", bounds, 3}, ERR_INVALID},
        {{METRIC_COUNTER, "b", NULL, ""}, OK},
        {{METRIC_COUNTER, "c", NULL, ""}, ERR_FULL},
    };
    struct metrics *m;
    assert_ok(metrics_new(&m, 2));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct metric *metric;
        assert_int_equal(metrics_add(m, &cases[i].spec, &metric), cases[i].want);
        assert_int_equal(metric != NULL, cases[i].want == OK);
    }
    metrics_free(m);
}

static void a_failed_allocation_is_an_error(void **state)
{
    (void)state;
    struct metrics *m;
    mem_fail_at(1);
    assert_int_equal(metrics_new(&m, 2), ERR_MEMORY);
    mem_fail_at(0);
    assert_null(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_page_is_prometheus_text_with_series_of_a_name_together),
        cmocka_unit_test(numbers_are_exact_and_texts_cannot_break_the_page),
        cmocka_unit_test(a_bad_or_second_series_is_refused),
        cmocka_unit_test(a_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
