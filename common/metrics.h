/* metrics: counters, gauges and histograms of one process, and the pages that show them.
 *
 *     struct metrics *m;
 *     struct metric *tokens, *ttft;
 *     static const struct metric_spec specs[] = {
 *         {METRIC_COUNTER, "vllm:generation_tokens_total", NULL, "Tokens generated"},
 *         {METRIC_HISTOGRAM, "vllm:time_to_first_token_seconds", NULL, "Submit to first token",
 *          metric_latency_bounds, METRIC_LATENCY_BOUNDS},
 *     };
 *     if ((e = metrics_new(&m, 128)) != OK) return e;
 *     if ((e = metrics_add(m, &specs[0], &tokens)) != OK) return e;
 *     metric_count(tokens, 1);
 *     metric_observe(ttft, 0.012);
 *     metrics_prometheus(m, &page);                       // the page of GET /metrics
 *
 * Rules: series are made at start and live as long as the registry; their number is bounded there,
 * so no label ever carries an id. `spec`'s strings and bounds must outlive the registry. A histogram
 * or gauge is written by one thread, a counter by any; pages may be made on any thread, and see
 * each number whole but not all of them at the same instant. Writing allocates and locks nothing. */
#ifndef TANDEM_COMMON_METRICS_H
#define TANDEM_COMMON_METRICS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"

enum metric_kind { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };
enum { METRIC_BOUNDS_MAX = 32, METRIC_LATENCY_BOUNDS = 22 };

/* Seconds, 10 us ... 160 s: three per decade. */
extern const double metric_latency_bounds[METRIC_LATENCY_BOUNDS];

struct metric_spec {
    enum metric_kind kind;
    const char *name;   /* [a-zA-Z_:][a-zA-Z0-9_:]* */
    const char *labels; /* "link=\"shm\",cause=\"full\"", NULL: none */
    const char *help;
    const double *bounds; /* of a histogram: ascending upper edges; one more, +Inf, is implied */
    size_t bounds_count;
};

struct metric {
    struct metric_spec spec;
    _Atomic uint64_t count; /* of a counter its value, of a histogram its observations */
    _Atomic double value;   /* of a gauge its value, of a histogram the sum */
    _Atomic uint64_t bucket[METRIC_BOUNDS_MAX + 1];
};

struct metrics;

enum err metrics_new(struct metrics **out, size_t series_max);
void metrics_free(struct metrics *m);
/* ERR_FULL: series_max are there. ERR_DUPLICATE: name and labels are. ERR_INVALID: not a name, bad
 * bounds, or the name has another kind. */
enum err metrics_add(struct metrics *m, const struct metric_spec *spec, struct metric **out);

static inline void metric_count(struct metric *m, uint64_t n)
{
    atomic_fetch_add_explicit(&m->count, n, memory_order_relaxed);
}
static inline void metric_set(struct metric *m, double value)
{
    atomic_store_explicit(&m->value, value, memory_order_relaxed);
}
/* Of a counter that is kept elsewhere and only shown here. */
static inline void metric_show_count(struct metric *m, uint64_t count)
{
    atomic_store_explicit(&m->count, count, memory_order_relaxed);
}
void metric_observe(struct metric *m, double value);

/* Prometheus' text format, version 0.0.4. Series of one name stand together. */
enum err metrics_prometheus(const struct metrics *m, struct buf *out);

#endif
