#include "tests/unit/exposition.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"

#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
#define DIGITS "0123456789"

static void wrong(const char *line, const char *why)
{
    fail_msg("%s: %s", why, line);
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* A name of letters; moves behind it. */
static void take_name(const char *line, const char **at, const char *more, char *name)
{
    char allowed[128];
    snprintf(allowed, sizeof allowed, LETTERS DIGITS "%s", more);
    size_t n = strspn(*at, allowed);
    if (n == 0 || n >= EXPOSITION_NAME || strchr(DIGITS, **at)) wrong(line, "no name");
    memcpy(name, *at, n);
    name[n] = '\0';
    *at += n;
}

/* ---- comments ---- */

static void begin_family(struct exposition *x, const char *line)
{
    const char *at = line + strlen("# HELP ");
    assert_true(x->families_count < FAMILIES_MAX);
    if (x->families_count > 0 && x->family[x->families_count - 1].samples_count == 0)
        wrong(line, "a family without series stands before");
    struct family *f = &x->family[x->families_count++];
    take_name(line, &at, ":", f->name);
    if (*at++ != ' ' || !*at) wrong(line, "no help");
    if (strlen(at) >= sizeof f->help) wrong(line, "too long");
    strcpy(f->help, at);
    for (size_t i = 0; i + 1 < x->families_count; i++)
        if (strcmp(x->family[i].name, f->name) == 0) wrong(line, "comes twice");
}

static void check_name(const char *line, const struct family *f)
{
    static const char *const not_base[] = {"_ms", "_us", "_ns", "_milliseconds", "_kib", "_mb"};
    bool counter = strcmp(f->type, "counter") == 0;
    if (ends_with(f->name, "_total") != counter) wrong(line, "_total is for counters, all of them");
    for (size_t i = 0; i < sizeof not_base / sizeof not_base[0]; i++)
        if (ends_with(f->name, not_base[i])) wrong(line, "not a base unit");
}

static void type_family(struct exposition *x, const char *line)
{
    const char *at = line + strlen("# TYPE ");
    char name[EXPOSITION_NAME];
    struct family *f = &x->family[x->families_count - 1];
    take_name(line, &at, ":", name);
    if (x->families_count == 0 || strcmp(f->name, name) != 0 || f->type[0])
        wrong(line, "no HELP of this name stands before");
    if (strcmp(at, " counter") && strcmp(at, " gauge") && strcmp(at, " histogram"))
        wrong(line, "no type");
    strcpy(f->type, at + 1);
    check_name(line, f);
}

/* ---- series ---- */

struct labels {
    char names[EXPOSITION_TEXT]; /* without le */
    char le[64];                 /* "": none */
};

static void take_labels(const char *line, const char **at, struct labels *l)
{
    if (**at != '{') return;
    do {
        char name[EXPOSITION_NAME];
        ++*at;
        take_name(line, at, "", name);
        if (strncmp(*at, "=\"", 2) != 0) wrong(line, "no value of a label");
        const char *value = *at += 2;
        while (**at && **at != '"')
            *at += **at == '\\' && (*at)[1] ? 2 : 1;
        if (*(*at)++ != '"') wrong(line, "a label without an end");
        if (strcmp(name, "le") == 0)
            snprintf(l->le, sizeof l->le, "%.*s", (int)(*at - 1 - value), value);
        else
            snprintf(l->names + strlen(l->names), sizeof l->names - strlen(l->names), "%s%s",
                     l->names[0] ? ", " : "", name);
    } while (**at == ',');
    if (*(*at)++ != '}') wrong(line, "labels without an end");
}

static double number(const char *line, const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end) wrong(line, "no number");
    return value;
}

static void check_bucket(struct exposition *x, const char *line, const struct labels *l,
                         double value)
{
    double edge = number(line, l->le);
    if (x->buckets_count > 0 && (edge <= x->edge || value < x->bucket))
        wrong(line, "buckets that do not ascend");
    x->edge = edge;
    x->bucket = value;
    x->buckets_count++;
}

/* What a histogram's series may be called, and in which order its numbers agree. */
static void check_histogram(struct exposition *x, const char *line, const char *suffix,
                            const struct labels *l, double value)
{
    bool bucket = strcmp(suffix, "_bucket") == 0;
    if (bucket != (l->le[0] != '\0')) wrong(line, "le is for buckets");
    if (bucket) {
        check_bucket(x, line, l, value);
    } else if (strcmp(suffix, "_sum") == 0) {
        if (x->buckets_count == 0 || !isinf(x->edge)) wrong(line, "no bucket +Inf stands before");
    } else if (strcmp(suffix, "_count") == 0) {
        if (value != x->bucket || x->buckets_count == 0) wrong(line, "not the last bucket's count");
        x->buckets_count = 0;
    } else {
        wrong(line, "no series of a histogram");
    }
}

static void check_series(struct exposition *x, const char *line, struct family *f, const char *name,
                         const struct labels *l, double value)
{
    size_t n = strlen(f->name);
    if (strncmp(name, f->name, n) != 0 || !f->type[0]) wrong(line, "not of the family above it");
    if (strcmp(f->type, "histogram") == 0)
        check_histogram(x, line, name + n, l, value);
    else if (name[n] || l->le[0])
        wrong(line, "not of the family above it");
    if (strcmp(f->type, "counter") == 0 && !(value >= 0)) wrong(line, "a negative count");
    if (f->samples_count > 0 && strcmp(f->labels, l->names) != 0)
        wrong(line, "other labels than the series before it");
    strcpy(f->labels, l->names);
}

static void take_series(struct exposition *x, const char *line)
{
    const char *at = line;
    char name[EXPOSITION_NAME];
    struct labels l = {.le = ""};
    if (x->families_count == 0) wrong(line, "a series without a family");
    struct family *f = &x->family[x->families_count - 1];
    struct sample *s = &x->sample[x->samples_count];
    take_name(line, &at, ":", name);
    take_labels(line, &at, &l);
    if (*at != ' ') wrong(line, "no blank before the value");
    assert_true(x->samples_count < SAMPLES_MAX && (size_t)(at - line) < sizeof s->series);
    memcpy(s->series, line, (size_t)(at - line));
    s->value = number(line, at + 1);
    check_series(x, line, f, name, &l, s->value);
    for (size_t i = 0; i < x->samples_count; i++)
        if (strcmp(x->sample[i].series, s->series) == 0) wrong(line, "comes twice");
    x->samples_count++;
    f->samples_count++;
}

struct exposition *exposition_read(const char *page)
{
    struct exposition *x = mem_new(sizeof *x);
    char line[1024];
    assert_non_null(x);
    while (*page) {
        const char *end = strchr(page, '\n');
        if (!end || (size_t)(end - page) >= sizeof line) wrong(page, "a line without an end");
        snprintf(line, sizeof line, "%.*s", (int)(end - page), page);
        if (strncmp(line, "# HELP ", 7) == 0)
            begin_family(x, line);
        else if (strncmp(line, "# TYPE ", 7) == 0)
            type_family(x, line);
        else
            take_series(x, line);
        page = end + 1;
    }
    return x;
}

double exposition_value(const struct exposition *x, const char *series)
{
    for (size_t i = 0; i < x->samples_count; i++)
        if (strcmp(x->sample[i].series, series) == 0) return x->sample[i].value;
    fail_msg("no series %s", series);
    return 0;
}

void exposition_free(struct exposition *x)
{
    mem_free(x);
}
