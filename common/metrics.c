#include "common/metrics.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"

const double metric_latency_bounds[METRIC_LATENCY_BOUNDS] = {
    10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3,
    50e-3, 0.1,   0.2,   0.5,    1,      2,      5,    10,   20,   50,    160};

struct metrics {
    size_t series_max;
    _Atomic size_t count;
    struct metric series[];
};

enum err metrics_new(struct metrics **out, size_t series_max)
{
    *out = NULL;
    if (series_max > 1 << 16) return err_set(ERR_INVALID, "%zu metric series", series_max);
    struct metrics *m = mem_new(sizeof *m + series_max * sizeof m->series[0]);
    if (!m) return ERR_MEMORY;
    m->series_max = series_max;
    *out = m;
    return OK;
}

void metrics_free(struct metrics *m)
{
    mem_free(m);
}

static bool name_is_valid(const char *name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_:";
    if (!name[0] || !strchr(letters, name[0])) return false;
    for (const char *c = name; *c; c++)
        if (!strchr(letters, *c) && (*c < '0' || *c > '9')) return false;
    return true;
}

static const char *labels_of(const struct metric_spec *spec)
{
    return spec->labels ? spec->labels : "";
}

static enum err check_spec(const struct metrics *m, const struct metric_spec *spec)
{
    if (!name_is_valid(spec->name))
        return err_set(ERR_INVALID, "\"%s\" is no name for a metric", spec->name);
    if (spec->bounds_count > METRIC_BOUNDS_MAX ||
        (spec->kind == METRIC_HISTOGRAM) != (spec->bounds_count > 0))
        return err_set(ERR_INVALID, "%s: %zu bounds", spec->name, spec->bounds_count);
    for (size_t i = 1; i < spec->bounds_count; i++)
        if (!(spec->bounds[i - 1] < spec->bounds[i]))
            return err_set(ERR_INVALID, "%s: its bounds do not ascend", spec->name);
    for (size_t i = 0; i < m->count; i++) {
        const struct metric_spec *other = &m->series[i].spec;
        if (strcmp(other->name, spec->name) != 0) continue;
        if (other->kind != spec->kind)
            return err_set(ERR_INVALID, "%s is of another kind already", spec->name);
        if (strcmp(labels_of(other), labels_of(spec)) == 0)
            return err_set(ERR_DUPLICATE, "%s{%s} is there already", spec->name, labels_of(spec));
    }
    return OK;
}

enum err metrics_add(struct metrics *m, const struct metric_spec *spec, struct metric **out)
{
    *out = NULL;
    enum err e = check_spec(m, spec);
    if (e != OK) return e;
    size_t at = atomic_load_explicit(&m->count, memory_order_relaxed);
    if (at == m->series_max)
        return err_set(ERR_FULL, "%s: %zu metric series are there already", spec->name, at);
    m->series[at].spec = *spec;
    *out = &m->series[at];
    atomic_store_explicit(&m->count, at + 1, memory_order_release);
    return OK;
}

void metric_observe(struct metric *m, double value)
{
    size_t at = 0;
    while (at < m->spec.bounds_count && value > m->spec.bounds[at])
        at++;
    atomic_fetch_add_explicit(&m->bucket[at], 1, memory_order_relaxed);
    metric_set(m, atomic_load_explicit(&m->value, memory_order_relaxed) + value);
    metric_count(m, 1);
}

/* As short as it can be and still be read as the same number. */
static void print_number(double value, struct buf *out)
{
    char text[32];
    if (isinf(value)) {
        buf_add_string(out, value > 0 ? "+Inf" : "-Inf");
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    buf_add_string(out, isnan(value) ? "NaN" : text);
}

static void print_value(const struct metric *m, const char *suffix, struct buf *out)
{
    const char *labels = labels_of(&m->spec);
    buf_printf(out, labels[0] ? "%s%s{%s} " : "%s%s%s ", m->spec.name, suffix, labels);
    print_number(m->value, out);
    buf_add_string(out, "\n");
}

static void print_help(const char *help, struct buf *out)
{
    for (; *help; help++) {
        if (*help == '\\' || *help == '\n')
            buf_add_string(out, *help == '\n' ? "\\n" : "\\\\");
        else
            buf_add(out, help, 1);
    }
}

static void print_series(const struct metric *m, struct buf *out)
{
    const char *name = m->spec.name, *labels = labels_of(&m->spec), *comma = labels[0] ? "," : "";
    const char *open = labels[0] ? "{" : "", *close = labels[0] ? "}" : "";
    if (m->spec.kind == METRIC_COUNTER)
        buf_printf(out, "%s%s%s%s %llu\n", name, open, labels, close, (unsigned long long)m->count);
    if (m->spec.kind == METRIC_GAUGE) print_value(m, "", out);
    if (m->spec.kind != METRIC_HISTOGRAM) return;
    uint64_t seen = 0; /* the total is that of the buckets, so that the page agrees with itself */
    for (size_t i = 0; i < m->spec.bounds_count; i++) {
        seen += m->bucket[i];
        buf_printf(out, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, labels, comma, m->spec.bounds[i],
                   (unsigned long long)seen);
    }
    seen += m->bucket[m->spec.bounds_count];
    buf_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, labels, comma,
               (unsigned long long)seen);
    print_value(m, "_sum", out);
    buf_printf(out, "%s_count%s%s%s %llu\n", name, open, labels, close, (unsigned long long)seen);
}

static bool first_of_name(const struct metrics *m, size_t at)
{
    for (size_t i = 0; i < at; i++)
        if (strcmp(m->series[i].spec.name, m->series[at].spec.name) == 0) return false;
    return true;
}

enum err metrics_prometheus(const struct metrics *m, struct buf *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    size_t count = atomic_load_explicit(&m->count, memory_order_acquire);
    for (size_t i = 0; i < count; i++) {
        const struct metric_spec *spec = &m->series[i].spec;
        if (!first_of_name(m, i)) continue;
        buf_printf(out, "# HELP %s ", spec->name);
        print_help(spec->help, out);
        buf_printf(out, "\n# TYPE %s %s\n", spec->name, kinds[spec->kind]);
        for (size_t k = i; k < count; k++)
            if (strcmp(m->series[k].spec.name, spec->name) == 0) print_series(&m->series[k], out);
    }
    return out->error;
}
