/* plot: lines over a logarithmic axis, as an SVG file that needs nothing else.
 *
 *     double x[] = {1024, 2048}, y[] = {0.1, 0.2};
 *     struct plot_line line[] = {{"lru", y, false}};
 *     struct plot plot = {.title = "…", .x_label = "…", .y_label = "…",
 *                         .x = x, .x_count = 2, .line = line, .lines_count = 1};
 *     plot_svg(&plot, &buf);
 *
 * Rules: x ascends and is above 0; y is a share, shown in percent from 0 to just above the largest. Text
 * is escaped. Owner: any thread. */
#ifndef TANDEM_REPLAY_PLOT_H
#define TANDEM_REPLAY_PLOT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/buf.h"

struct plot_line {
    const char *name;
    const double *y; /* [x_count] */
    bool limit;      /* dashed and grey: what no other line exceeds */
};

struct plot {
    const char *title, *x_label, *y_label;
    const double *x;
    const char *const *x_name; /* under each x */
    size_t x_count, lines_count;
    const struct plot_line *line;
};

void plot_svg(const struct plot *plot, struct buf *out);

#endif
