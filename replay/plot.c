#include "replay/plot.h"

#include <math.h>
#include <stdio.h>

enum { WIDTH = 860, HEIGHT = 520, LEFT = 74, RIGHT = 150, TOP = 52, BOTTOM = 84, LEGEND_STEP = 24 };

/* Told apart also by who does not see all colours (Okabe and Ito). */
static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73",
                                      "#cc79a7", "#e69f00", "#56b4e9"};

static void add_escaped(struct buf *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '&')
            buf_add_string(out, "&amp;");
        else if (*text == '<')
            buf_add_string(out, "&lt;");
        else
            buf_add(out, text, 1);
    }
}

static void add_text(struct buf *out, double x, double y, const char *how, const char *text)
{
    buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, how);
    add_escaped(out, text);
    buf_add_string(out, "</text>\n");
}

static double top_of(const struct plot *p)
{
    double top = 0;
    for (size_t l = 0; l < p->lines_count; l++)
        for (size_t i = 0; i < p->x_count; i++)
            if (p->line[l].y[i] > top) top = p->line[l].y[i];
    return top > 0 ? fmin(1, ceil(top * 20 + 0.2) / 20) : 1;
}

static double x_at(const struct plot *p, size_t i)
{
    double inner = WIDTH - LEFT - RIGHT, first = log(p->x[0]), last = log(p->x[p->x_count - 1]);
    return last > first ? LEFT + inner * (log(p->x[i]) - first) / (last - first) : LEFT + inner / 2;
}

static double y_at(double share, double top)
{
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share / top);
}

static void add_axes(const struct plot *p, double top, struct buf *out)
{
    double step = top > 0.5 ? 0.1 : top > 0.2 ? 0.05 : 0.02, base = y_at(0, top);
    for (int i = 0; i * step <= top + 1e-9; i++) {
        char label[16];
        double y = y_at(i * step, top);
        snprintf(label, sizeof label, "%.0f %%", 100 * i * step);
        buf_printf(out, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n",
                   LEFT, WIDTH - RIGHT, y, y);
        add_text(out, LEFT - 8, y + 4, "text-anchor=\"end\"", label);
    }
    for (size_t i = 0; i < p->x_count; i++) {
        double x = x_at(p, i);
        buf_printf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#888\"/>\n",
                   x, x, base, base + 5);
        add_text(out, x, base + 20, "text-anchor=\"middle\"", p->x_name[i]);
    }
    buf_printf(out, "<path d=\"M%d %d V%.1f H%d\" fill=\"none\" stroke=\"#444\"/>\n", LEFT, TOP,
               base, WIDTH - RIGHT);
    add_text(out, (LEFT + WIDTH - RIGHT) / 2.0, base + 48, "text-anchor=\"middle\"", p->x_label);
    double middle = (TOP + HEIGHT - BOTTOM) / 2.0;
    char how[96];
    snprintf(how, sizeof how, "text-anchor=\"middle\" transform=\"rotate(-90 20 %.1f)\"", middle);
    add_text(out, 20, middle, how, p->y_label);
}

/* The first line of a kind of its own, so that two limits are told apart. */
static const char *dashes_of(const struct plot *p, const struct plot_line *l)
{
    if (!l->limit) return "";
    return l == p->line ? " stroke-dasharray=\"2 4\"" : " stroke-dasharray=\"7 4\"";
}

static void add_line(const struct plot *p, const struct plot_line *l, const char *colour,
                     double top, struct buf *out)
{
    buf_printf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s points=\"", colour,
               dashes_of(p, l));
    for (size_t i = 0; i < p->x_count; i++)
        buf_printf(out, "%.1f,%.1f ", x_at(p, i), y_at(l->y[i], top));
    buf_add_string(out, "\"/>\n");
    for (size_t i = 0; i < p->x_count; i++)
        buf_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", x_at(p, i),
                   y_at(l->y[i], top), colour);
}

void plot_svg(const struct plot *p, struct buf *out)
{
    double top = top_of(p);
    size_t coloured = 0;
    buf_printf(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
               "height=\"%d\" font-family=\"sans-serif\" font-size=\"13\">\n"
               "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
               WIDTH, HEIGHT, WIDTH, HEIGHT);
    add_text(out, LEFT, 28, "font-size=\"16\"", p->title);
    add_axes(p, top, out);
    for (size_t i = 0; i < p->lines_count; i++) {
        const struct plot_line *l = &p->line[i];
        const char *colour =
            l->limit ? "#777" : colours[coloured++ % (sizeof colours / sizeof *colours)];
        double y = TOP + 12 + (double)i * LEGEND_STEP, x = WIDTH - RIGHT + 16;
        add_line(p, l, colour, top, out);
        buf_printf(out,
                   "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
                   "stroke-width=\"2\"%s/>\n",
                   x, x + 24, y, y, colour, dashes_of(p, l));
        add_text(out, x + 30, y + 4, "", l->name);
    }
    buf_add_string(out, "</svg>\n");
}
