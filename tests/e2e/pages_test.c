/* The pages of real processes: their numbers move with what happens, readiness follows the cluster, and
 * docs/metrics.md tells all that is shown and nothing else. */
#include "tests/e2e/page.h"
#include "tests/e2e/rig.h"
#include "tests/unit/exposition.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

enum { SEED = 5, ASKS = 12 };
#define PAGES "--metrics 127.0.0.1:0"

static int learn(void **state)
{
    (void)state;
    return rig_learn(SEED, ASKS);
}

static struct exposition *read_page(const struct process *p)
{
    static char text[PAGE_MAX];
    assert_int_equal(page_get(p->metrics, "/metrics", text), 200);
    return exposition_read(text);
}

static double value_of(const struct process *p, const char *series)
{
    struct exposition *x = read_page(p);
    double value = exposition_value(x, series);
    exposition_free(x);
    return value;
}

static void expect_shown(const struct process *p, const char *series, double wanted)
{
    double value = value_of(p, series);
    if (value != wanted) fail_msg("%s: %s is %g instead of %g", p->name, series, value, wanted);
}

/* ---- numbers ---- */

static uint64_t generated(const struct streams *s)
{
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < s->count; i++)
        tokens += s->stream[i]->tokens_count;
    return tokens;
}

static uint32_t samples(const struct streams *s)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->count; i++)
        count += s->stream[i]->choices_count;
    return count;
}

static void pages_count_what_was_asked(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 1, "--disaggregate always " PAGES, "--prefix-cache=false " PAGES);
    struct process *r = rig->cluster->process[0];
    struct process *p = cluster_process(rig->cluster, "p0");
    struct process *d = cluster_process(rig->cluster, "d0");
    expect_shown(r, "tandem_router_requests_accepted_total", 0);
    expect_shown(d, "tandem_node_step_seconds_count", 0);
    rig_expect_wanted(rig);
    cluster_await_idle(rig->cluster);
    uint32_t asked = samples(rig->streams);
    expect_shown(r, "tandem_router_requests_accepted_total", ASKS);
    expect_shown(r, "tandem_router_samples_ended_total{outcome=\"done\"}", asked);
    expect_shown(r, "tandem_router_generated_tokens_total", (double)generated(rig->streams));
    expect_shown(r, "tandem_router_queue_time_seconds_count", asked);
    expect_shown(r, "tandem_router_time_to_first_token_seconds_count", asked);
    expect_shown(r, "tandem_router_queue_seconds", 0);
    expect_shown(r, "tandem_router_waiting_requests", 0);
    expect_shown(r, "tandem_router_nodes{role=\"prefill\",state=\"up\"}", 1);
    expect_shown(r, "tandem_router_nodes{role=\"decode\",state=\"up\"}", 1);
    double handed = value_of(p, "tandem_node_transfers_total{outcome=\"done\"}");
    assert_true(handed > 0 && handed <= asked);
    expect_shown(d, "tandem_node_transfers_total{outcome=\"done\"}", handed);
    expect_shown(d, "tandem_node_kv_received_bytes_total",
                 value_of(p, "tandem_node_kv_sent_bytes_total"));
    assert_true(value_of(p, "tandem_node_kv_sent_bytes_total") > 0);
    assert_true(value_of(p, "tandem_node_prompt_tokens_total") > 0);
    assert_true(value_of(d, "tandem_node_step_seconds_count") > 0);
    expect_shown(d, "tandem_node_kv_use_ratio", 0);
    rig_finish(rig);
}

static void what_waits_ages(void **state)
{
    struct rig *rig = *state;
    struct ask ask = {.text = "x", .max_tokens = 5};
    rig_start(rig, 1, 0, PAGES, PAGES);
    struct process *r = rig->cluster->process[0];
    struct stream *s = streams_start(rig->streams, 0, &ask);
    while (!s->accepted)
        streams_turn(rig->streams, 100);
    expect_shown(r, "tandem_router_waiting_requests", 1);
    double before = value_of(r, "tandem_router_queue_seconds");
    while (value_of(r, "tandem_router_queue_seconds") <= before)
        streams_turn(rig->streams, 10);
    cluster_node(rig->cluster, PROGRAM_DECODE, PAGES);
    streams_run(rig->streams);
    stream_expect_done(s);
    expect_shown(r, "tandem_router_queue_seconds", 0);
    expect_shown(r, "tandem_router_queue_time_seconds_count", 1);
    assert_true(value_of(r, "tandem_router_queue_time_seconds_sum") > before);
    rig_finish(rig);
}

/* ---- readiness ---- */

static void readiness_follows_the_nodes(void **state)
{
    struct rig *rig = *state;
    rig->cluster = cluster_new(cluster_demo_model());
    struct process *r = cluster_router(rig->cluster, PAGES);
    page_await(r->metrics, "/healthz", 200, "ok\n");
    page_await(r->metrics, "/readyz", 503, "no decode node is ready\n");
    struct process *d = cluster_node(rig->cluster, PROGRAM_DECODE, PAGES);
    cluster_await_nodes(rig->cluster);
    page_await(r->metrics, "/readyz", 200, "ok\n");
    page_await(d->metrics, "/readyz", 200, "ok\n");
    process_kill(d);
    page_await(r->metrics, "/readyz", 503, "no decode node is ready\n");
    rig_finish(rig);
}

static void who_drains_is_alive_but_not_ready(void **state)
{
    struct rig *rig = *state;
    struct ask ask = {.text = "Once", .max_tokens = 4000, .ignore_eos = true};
    rig_start(rig, 0, 1, PAGES, PAGES);
    struct process *r = rig->cluster->process[0], *d = rig->cluster->process[1];
    struct stream *s = streams_start(rig->streams, 0, &ask);
    streams_until_tokens(s, 1);
    process_signal(d, SIGTERM);
    page_await(d->metrics, "/readyz", 503, "draining\n");
    page_await(d->metrics, "/healthz", 200, "ok\n");
    page_await(r->metrics, "/readyz", 503, "no decode node is ready\n");
    process_signal(r, SIGTERM);
    page_await(r->metrics, "/readyz", 503, "draining\n");
    page_await(r->metrics, "/healthz", 200, "ok\n");
    streams_run(rig->streams);
    stream_expect_done(s);
    streams_free(rig->streams); /* a router that leaves waits for its clients to hang up */
    rig->streams = NULL;
    assert_int_equal(process_await_exit(d), 0);
    assert_int_equal(process_await_exit(r), 0);
    rig->cluster->stopped = true;
}

static void a_node_without_a_router_is_not_ready(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 0, 1, "", PAGES);
    struct process *d = rig->cluster->process[1];
    page_await(d->metrics, "/readyz", 200, "ok\n");
    process_kill(rig->cluster->process[0]);
    page_await(d->metrics, "/readyz", 503, "no session with a router stands\n");
    page_await(d->metrics, "/healthz", 200, "ok\n");
    process_kill(d);
    rig->cluster->stopped = true;
}

/* ---- docs/metrics.md ---- */

/* Names tell their units. */
static const char *unit_of(const char *name)
{
    static const char *const units[] = {"_seconds", "_bytes", "_tokens", "_blocks", "_ratio"};
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
        if (strstr(name, units[i])) return units[i] + 1;
    return "";
}

static void add_row(struct buf *rows, const struct family *f)
{
    buf_printf(rows, "| `%s` | %s | %s | %s | %s |\n", f->name, f->type, unit_of(f->name),
               f->labels, f->help);
}

static char *read_docs(void)
{
    static char text[PAGE_MAX];
    FILE *f = fopen(TANDEM_SOURCE_DIR "/docs/metrics.md", "re");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    return text;
}

static uint32_t rows_in(const char *text, const char *prefix)
{
    char begin[64];
    uint32_t rows = 0;
    snprintf(begin, sizeof begin, "\n| `%s", prefix);
    while ((text = strstr(text, begin)) != NULL) {
        rows++;
        text++;
    }
    return rows;
}

static void expect_documented(const struct process *p, const char *prefix)
{
    struct exposition *x = read_page(p);
    struct buf rows = {0};
    for (size_t i = 0; i < x->families_count; i++) {
        assert_int_equal(strncmp(x->family[i].name, prefix, strlen(prefix)), 0);
        add_row(&rows, &x->family[i]);
    }
    if (!strstr(read_docs(), rows.data)) {
        fprintf(stderr, "%s\n", rows.data); /* longer than a message may be */
        fail_msg("docs/metrics.md: this is not the table of %s", p->name);
    }
    assert_int_equal(rows_in(read_docs(), prefix), x->families_count);
    exposition_free(x);
    buf_fini(&rows);
}

static void the_documentation_tells_what_is_shown(void **state)
{
    struct rig *rig = *state;
    rig_start(rig, 1, 1, PAGES, PAGES);
    expect_documented(rig->cluster->process[0], "tandem_router_");
    expect_documented(rig->cluster->process[1], "tandem_node_");
    expect_documented(rig->cluster->process[2], "tandem_node_");
    rig_finish(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(pages_count_what_was_asked),
        RIG_TEST(what_waits_ages),
        RIG_TEST(readiness_follows_the_nodes),
        RIG_TEST(who_drains_is_alive_but_not_ready),
        RIG_TEST(a_node_without_a_router_is_not_ready),
        RIG_TEST(the_documentation_tells_what_is_shown),
    };
    return cmocka_run_group_tests_name("e2e/pages", tests, learn, rig_forget);
}
