#include "tests/bench/figures.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/mem.h"

void samples_add(struct samples *s, double value)
{
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 256;
        s->value = mem_resize(s->value, s->capacity, sizeof *s->value);
        if (!s->value) abort();
    }
    s->value[s->count++] = value;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double samples_at(struct samples *s, double share)
{
    if (s->count == 0) return 0;
    qsort(s->value, s->count, sizeof *s->value, compare);
    uint32_t rank = (uint32_t)ceil(share * s->count);
    return s->value[rank > 0 ? rank - 1 : 0];
}

void samples_free(struct samples *s)
{
    mem_free(s->value);
    *s = (struct samples){0};
}

static uint32_t figures_count;

void figure(const char *name, double value)
{
    fprintf(stderr, "%-52s %10.4g\n", name, value);
    printf("%s\"%s\": %.4g", figures_count++ ? ", " : "{", name, value);
}

void figure_print(double value, const char *format, ...)
{
    char name[128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    figure(name, value);
}

void figures_end(void)
{
    printf("%s\n", figures_count ? "}" : "{}");
}
