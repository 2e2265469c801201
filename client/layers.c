#include "client/layers.h"

#include <string.h>

enum { LINES_MAX = 16, COLUMNS = 40, LAYERS_MAX = 4096 };

struct part { /* of the axis, in ms */
    double from, to;
};
struct row {
    long long first, last; /* layers */
    struct part computing, sending;
};

static double ms_of(const json_t *push, const char *name)
{
    double ms = json_number_value(json_object_get(push, name));
    return ms > 0 ? ms : 0;
}

static long long layer_of(const json_t *push)
{
    return json_integer_value(json_object_get(push, "layer"));
}

/* Pushes [first, end): what came before them says since when they are computed and sent. */
static struct row row_of(const json_t *pushes, size_t first, size_t end)
{
    const json_t *before = first > 0 ? json_array_get(pushes, first - 1) : NULL;
    const json_t *from = json_array_get(pushes, first), *to = json_array_get(pushes, end - 1);
    double computed = ms_of(from, "computed_ms"), sent = before ? ms_of(before, "sent_ms") : 0;
    return (struct row){layer_of(from),
                        layer_of(to),
                        {before ? ms_of(before, "computed_ms") : 0, ms_of(to, "computed_ms")},
                        {computed > sent ? computed : sent, ms_of(to, "sent_ms")}};
}

static size_t column_of(double ms, double end_ms)
{
    double at = end_ms > 0 ? ms / end_ms * COLUMNS + 0.5 : 0;
    return at < COLUMNS ? (size_t)at : COLUMNS;
}

/* At least one column, and both where they meet. */
static void draw(char *bar, struct part p, double end_ms, char with)
{
    size_t from = column_of(p.from, end_ms), to = column_of(p.to, end_ms);
    if (from == COLUMNS) from--;
    for (size_t i = from; i < (to > from ? to : from + 1); i++)
        bar[i] = bar[i] == ' ' || bar[i] == with ? with : '%';
}

static void print_row(FILE *out, const struct row *r, double end_ms)
{
    char bar[COLUMNS + 1], name[48];
    memset(bar, ' ', COLUMNS);
    bar[COLUMNS] = '\0';
    draw(bar, r->computing, end_ms, '#');
    draw(bar, r->sending, end_ms, '=');
    while (bar[0] && bar[strlen(bar) - 1] == ' ')
        bar[strlen(bar) - 1] = '\0';
    if (r->first == r->last)
        snprintf(name, sizeof name, "%lld", r->first);
    else
        snprintf(name, sizeof name, "%lld to %lld", r->first, r->last);
    fprintf(out, "    %-18s %10.2f %10.2f  %s\n", name, r->computing.to, r->sending.to, bar);
}

void layers_print(FILE *out, const json_t *choice)
{
    const json_t *pushes = json_object_get(choice, "layers");
    size_t count = json_array_size(pushes);
    if (count == 0 || count > LAYERS_MAX) return;
    size_t each = (count + LINES_MAX - 1) / LINES_MAX;
    double end_ms = 0;
    for (size_t i = 0; i < count; i++)
        if (ms_of(json_array_get(pushes, i), "sent_ms") > end_ms)
            end_ms = ms_of(json_array_get(pushes, i), "sent_ms");
    fprintf(out, "  %-20s %10s %10s  # computing, = sending, %% both\n", "layers", "done ms",
            "sent ms");
    for (size_t i = 0; i < count; i += each) {
        struct row r = row_of(pushes, i, i + each < count ? i + each : count);
        print_row(out, &r, end_ms);
    }
}
