#include "client/kv_show.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "client/show.h"

enum { WORDS_SHOWN = 22, TENANTS_SHOWN = 12, PREFIXES_SHOWN = 12 };
/* Columns of a tenant's name, alone and with a prefix. */
enum { TENANT_SHOWN = 30, OWNER_SHOWN = 14 };

/* ---- one node ---- */

static void show_head(FILE *out, const json_t *n)
{
    char a[SHOW_TEXT], b[SHOW_TEXT], c[SHOW_TEXT], d[SHOW_TEXT];
    const json_t *blocks = json_object_get(n, "blocks");
    double block_bytes = show_real(n, "block_bytes"), total = show_real(blocks, "total");
    fprintf(out, "%s: %s, %s blocks of %lld tokens (%s each, %s), %s, up %s\n",
            show_text(n, "node"), show_text(n, "role"), show_number(show_count(blocks, "total"), a),
            show_count(n, "block_tokens"), show_bytes(block_bytes, b),
            show_bytes(block_bytes * total, c),
            json_is_true(json_object_get(n, "prefix_cache")) ? show_text(n, "policy")
                                                             : "no prefix cache",
            show_span(show_real(json_object_get(n, "total"), "seconds"), d));
}

static void show_blocks(FILE *out, const json_t *n)
{
    static const char *const states[] = {"active", "reserved", "transfer", "cached", "free"};
    const json_t *blocks = json_object_get(n, "blocks");
    double total = show_real(blocks, "total");
    char a[SHOW_TEXT], b[SHOW_TEXT], c[SHOW_TEXT];
    fprintf(out, "\n  %-30s %12s %9s\n", "state", "blocks", "share");
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        long long count = show_count(blocks, states[i]);
        fprintf(out, "  %-30s %12s %9s%s%s\n", states[i], show_number(count, a),
                show_share((double)count, total, b), count ? "  " : "",
                show_bar((double)count, total, c));
    }
    if (show_count(blocks, "pinned") > 0)
        fprintf(out, "  %-30s %12s %9s\n", "  of the cached ones: pinned",
                show_number(show_count(blocks, "pinned"), a),
                show_share(show_real(blocks, "pinned"), total, b));
}

static void show_load(FILE *out, const json_t *n)
{
    const json_t *load = json_object_get(n, "load"), *blocks = json_object_get(n, "blocks");
    char a[SHOW_TEXT], b[SHOW_TEXT];
    if (show_count(load, "live") == 0) return;
    fprintf(out, "\n  %lld sequences: %lld running, %lld waiting for blocks",
            show_count(load, "live"), show_count(load, "running"), show_count(load, "waiting"));
    if (show_count(load, "preempted") > 0)
        fprintf(out, " (%lld preempted)", show_count(load, "preempted"));
    fprintf(out, "\n  at full length they need %s blocks of %s\n",
            show_number(show_count(load, "blocks_full"), a),
            show_number(show_count(blocks, "total"), b));
}

/* A count since the start and lately; as shares of another count, if that is told. */
static void show_counts_row(FILE *out, const json_t *n, const char *label, const char *name,
                            const char *whole)
{
    const json_t *total = json_object_get(n, "total"), *window = json_object_get(n, "window");
    char a[SHOW_TEXT], b[SHOW_TEXT], c[SHOW_TEXT], d[SHOW_TEXT];
    show_number(show_count(total, name), a);
    show_number(show_count(window, name), c);
    if (!whole) {
        fprintf(out, "  %-30s %12s %9s %12s\n", label, a, "", c);
        return;
    }
    show_share(show_real(total, name), show_real(total, whole), b);
    show_share(show_real(window, name), show_real(window, whole), d);
    fprintf(out, "  %-30s %12s %9s %12s %9s\n", label, a, b, c, d);
}

static void show_counts(FILE *out, const json_t *n)
{
    char a[SHOW_TEXT], last[SHOW_TEXT + 8];
    snprintf(last, sizeof last, "last %s",
             show_span(show_real(json_object_get(n, "window"), "seconds"), a));
    fprintf(out, "\n  %-30s %12s %9s %12s\n", "", "since start", "", last);
    show_counts_row(out, n, "tokens looked up", "queried_tokens", NULL);
    show_counts_row(out, n, "  found", "hit_tokens", "queried_tokens");
    show_counts_row(out, n, "  not found: evicted lately", "regret_tokens", "queried_tokens");
    show_counts_row(out, n, "prompt tokens computed", "prompt_tokens", NULL);
    show_counts_row(out, n, "tokens generated", "generated_tokens", NULL);
    show_counts_row(out, n, "blocks that entered the cache", "inserted_blocks", NULL);
    show_counts_row(out, n, "blocks evicted", "evicted_blocks", NULL);
    show_counts_row(out, n, "  never found again", "unused_blocks", "evicted_blocks");
    if (show_count(json_object_get(n, "total"), "expired_blocks") > 0)
        show_counts_row(out, n, "blocks whose time was over", "expired_blocks", NULL);
    show_counts_row(out, n, "preemptions", "preemptions", NULL);
    show_counts_row(out, n, "  tokens computed again", "recomputed_tokens", NULL);
    show_counts_row(out, n, "jobs refused for want of room", "refused_jobs", NULL);
}

static double largest(const json_t *list, const char *name)
{
    const json_t *row;
    size_t i;
    double most = 0;
    json_array_foreach(list, i, row)
    {
        if (show_real(row, name) > most) most = show_real(row, name);
    }
    return most;
}

static void age_label(const json_t *list, size_t i, char text[SHOW_TEXT + 16])
{
    char a[SHOW_TEXT];
    const json_t *row = json_array_get(list, i);
    if (json_is_integer(json_object_get(row, "below_s")))
        snprintf(text, SHOW_TEXT + 16, "under %s", show_span(show_real(row, "below_s"), a));
    else
        snprintf(text, SHOW_TEXT + 16, "%s and more",
                 show_span(i > 0 ? show_real(json_array_get(list, i - 1), "below_s") : 0, a));
}

static void size_label(const json_t *list, size_t i, char text[SHOW_TEXT + 16])
{
    char a[SHOW_TEXT];
    const json_t *row = json_array_get(list, i);
    if (json_is_integer(json_object_get(row, "upto_tokens")))
        snprintf(text, SHOW_TEXT + 16, "up to %s", show_number(show_count(row, "upto_tokens"), a));
    else
        snprintf(text, SHOW_TEXT + 16, "more");
}

typedef void label_fn(const json_t *list, size_t i, char text[SHOW_TEXT + 16]);

/* Rows before the first and behind the last that counts anything are left out. */
static void show_histogram(FILE *out, const json_t *list, const char *title, const char *name,
                           label_fn *label)
{
    size_t count = json_array_size(list), first = 0;
    double most = largest(list, name);
    char a[SHOW_TEXT], b[SHOW_TEXT], text[SHOW_TEXT + 16];
    if (most <= 0) return;
    while (show_real(json_array_get(list, first), name) <= 0)
        first++;
    while (show_real(json_array_get(list, count - 1), name) <= 0)
        count--;
    fprintf(out, "\n  %-30s %12s\n", title, name);
    for (size_t i = first; i < count; i++) {
        long long v = show_count(json_array_get(list, i), name);
        label(list, i, text);
        fprintf(out, "  %30s %12s%s%s\n", text, show_number(v, a), v ? "  " : "",
                show_bar((double)v, most, b));
    }
}

/* In at most `columns`, of which the window, if there is one, has what it needs: "acme w64+16". */
static const char *tenant_name(const json_t *row, size_t columns, char text[SHOW_TEXT])
{
    const char *name = json_string_value(json_object_get(row, "tenant"));
    char window[32] = "", salt[SHOW_TEXT];
    int used = 0;
    if (show_count(row, "kv_window") > 0)
        used = snprintf(window, sizeof window, " w%u", (unsigned)show_count(row, "kv_window"));
    if (used > 0 && show_count(row, "kv_sinks") > 0)
        used += snprintf(window + used, sizeof window - (size_t)used, "+%u",
                         (unsigned)show_count(row, "kv_sinks"));
    snprintf(salt, sizeof salt, "salt %.8s", show_text(row, "salt"));
    if (!name) name = salt;
    int room = (int)columns > used ? (int)columns - used : 0;
    snprintf(text, SHOW_TEXT, "%.*s%s", room, name[0] ? name : "(none)", window);
    return text;
}

static int by_blocks(const void *a, const void *b)
{
    double x = show_real(*(json_t *const *)a, "blocks"),
           y = show_real(*(json_t *const *)b, "blocks");
    return x < y ? 1 : x > y ? -1 : 0;
}

static void show_tenant(FILE *out, const json_t *row, const char *name, double blocks_total)
{
    char a[SHOW_TEXT], b[SHOW_TEXT], c[SHOW_TEXT], d[SHOW_TEXT], e[SHOW_TEXT];
    fprintf(out, "  %-30s %12s %9s %9s %12s %9s\n", name, show_number(show_count(row, "blocks"), a),
            show_share(show_real(row, "blocks"), blocks_total, b),
            show_number(show_count(row, "jobs"), c),
            show_number(show_count(row, "queried_tokens"), d),
            show_share(show_real(row, "hit_tokens"), show_real(row, "queried_tokens"), e));
}

static void show_tenants(FILE *out, const json_t *n)
{
    const json_t *list = json_object_get(n, "tenants"),
                 *others = json_object_get(n, "other_tenants");
    json_t *sorted = json_copy((json_t *)list), **row;
    size_t count = json_array_size(list);
    double total = show_real(json_object_get(n, "blocks"), "total");
    char name[SHOW_TEXT];
    if (count > 0 && sorted && (row = calloc(count, sizeof *row)) != NULL) {
        for (size_t i = 0; i < count; i++)
            row[i] = json_array_get(list, i);
        qsort(row, count, sizeof *row, by_blocks);
        fprintf(out, "\n  %-30s %12s %9s %9s %12s %9s\n", "tenant", "blocks", "of pool", "jobs",
                "looked up", "found");
        for (size_t i = 0; i < count && i < TENANTS_SHOWN; i++)
            show_tenant(out, row[i], tenant_name(row[i], TENANT_SHOWN, name), total);
        if (count > TENANTS_SHOWN)
            fprintf(out, "  and %zu more with fewer blocks\n", count - TENANTS_SHOWN);
        if (show_count(others, "jobs") > 0) show_tenant(out, others, "all earlier ones", total);
        free(row);
    }
    json_decref(sorted);
}

/* Of UTF-8: inside a character. */
static bool goes_on(char c)
{
    return ((unsigned char)c & 0xc0) == 0x80;
}

/* At most `columns` characters in quotes; blanks for what would move the cursor. */
static void print_words(FILE *out, const char *words, size_t columns, bool pad)
{
    size_t at = 0;
    fputc('"', out);
    for (const char *s = words; *s && (at < columns || goes_on(*s)); s++) {
        bool control = (unsigned char)*s < 0x20 || *s == 0x7f;
        fputc(control ? ' ' : *s, out);
        at += !goes_on(*s);
    }
    fputc('"', out);
    for (; pad && at < columns; at++)
        fputc(' ', out);
}

static void show_prefixes(FILE *out, const json_t *n)
{
    const json_t *list = json_object_get(n, "prefixes"), *p;
    char a[SHOW_TEXT], b[SHOW_TEXT], c[SHOW_TEXT], name[SHOW_TEXT];
    size_t i;
    if (json_array_size(list) == 0) return;
    fprintf(out, "\n  shared prefixes, the biggest by tokens x uses\n");
    fprintf(out, "  %9s %8s %9s  %-14s %-*s  %s\n", "tokens", "uses", "last use", "tenant",
            WORDS_SHOWN + 2, "begins", "ends");
    json_array_foreach(list, i, p)
    {
        if (i >= PREFIXES_SHOWN) break;
        fprintf(out, "  %9s %8s %9s  %-14.14s ", show_number(show_count(p, "tokens"), a),
                show_number(show_count(p, "uses"), b), show_span(show_real(p, "age_s"), c),
                tenant_name(p, OWNER_SHOWN, name));
        print_words(out, show_text(p, "words"), WORDS_SHOWN, true);
        fputs("  ", out);
        print_words(out, show_text(p, "last_words"), WORDS_SHOWN, false);
        fputc('\n', out);
    }
}

/* A server has entries of others, too, and does not say how many are ours. */
static const char *tier_keeps(const json_t *t, char text[SHOW_TEXT])
{
    if (strcmp(show_text(t, "name"), "redis") == 0) return "-";
    return show_number(show_count(t, "entries"), text);
}

static void show_tiers(FILE *out, const json_t *n)
{
    const json_t *tiers = json_object_get(n, "tiers"), *rows = json_object_get(tiers, "rows"), *t;
    char a[SHOW_TEXT], b[SHOW_TEXT], c[SHOW_TEXT], d[SHOW_TEXT], e[SHOW_TEXT];
    size_t i;
    if (json_array_size(rows) == 0) return;
    fprintf(out, "\n  %-10s %-7s %11s %11s %11s %11s %11s %12s\n", "tier", "state", "keeps",
            "found", "not found", "not worth", "failures", "read");
    json_array_foreach(rows, i, t)
        fprintf(out, "  %-10.10s %-7s %11s %11s %11s %11s %11s %10.1f/s\n", show_text(t, "name"),
                json_is_true(json_object_get(t, "broken")) ? "broken" : "ready", tier_keeps(t, a),
                show_number(show_count(t, "hits"), b), show_number(show_count(t, "misses"), c),
                show_number(show_count(t, "not_worth"), d),
                show_number(show_count(t, "failures"), e), show_real(t, "read_rate") / 1e6);
    fprintf(out,
            "  in blocks; MB read in a second. %s tokens came from tiers; %s prompts asked them,",
            show_number(show_count(tiers, "loaded_tokens"), a),
            show_number(show_count(tiers, "loads"), b));
    fprintf(out, "\n  %s of which went on without an answer after %.1f ms\n",
            show_number(show_count(tiers, "loads_late"), a), show_real(tiers, "deadline_us") / 1e3);
}

static void show_node(FILE *out, const json_t *n)
{
    show_head(out, n);
    show_blocks(out, n);
    show_load(out, n);
    show_counts(out, n);
    show_histogram(out, json_object_get(n, "ages"), "cached blocks by time unused", "blocks",
                   age_label);
    show_histogram(out, json_object_get(n, "sizes"), "cached prompts by tokens", "prefixes",
                   size_label);
    show_tiers(out, n);
    show_tenants(out, n);
    show_prefixes(out, n);
}

static int by_role_and_name(const void *a, const void *b)
{
    const json_t *x = *(json_t *const *)a, *y = *(json_t *const *)b;
    int by_role = strcmp(show_text(y, "role"), show_text(x, "role"));
    return by_role ? by_role : strverscmp(show_text(x, "node"), show_text(y, "node"));
}

/* The nodes in order, NULL: none, or no memory. The caller's to free. */
static json_t **nodes_of(const json_t *answer, size_t *count)
{
    const json_t *nodes = json_object_get(answer, "nodes");
    *count = json_array_size(nodes);
    json_t **node = *count > 0 ? calloc(*count, sizeof *node) : NULL;
    if (!node) *count = 0;
    for (size_t i = 0; i < *count; i++)
        node[i] = json_array_get(nodes, i);
    if (node) qsort(node, *count, sizeof *node, by_role_and_name);
    return node;
}

void kv_show(FILE *out, const json_t *answer)
{
    const json_t *missing;
    size_t count, i;
    json_t **node = nodes_of(answer, &count);
    for (i = 0; i < count; i++) {
        if (i > 0) fprintf(out, "\n");
        show_node(out, node[i]);
    }
    free(node);
    if (count == 0) fprintf(out, "no node has reported\n");
    json_array_foreach(json_object_get(answer, "missing"), i, missing)
        fprintf(out, "%s%s: %s\n", i == 0 ? "\n" : "", show_text(missing, "node"),
                show_text(missing, "reason"));
}

/* ---- as a picture ---- */

enum { PLOT_WIDTH = 860, PANEL_WIDTH = 400, PANEL_HEIGHT = 200, ROW_HEIGHT = 15, TOP = 40 };

static void plot_panel(FILE *out, const json_t *list, const char *title, const char *name,
                       label_fn *label, int x, int y)
{
    double most = largest(list, name);
    char a[SHOW_TEXT], text[SHOW_TEXT + 16];
    fprintf(out, "<text x=\"%d\" y=\"%d\" class=\"t\">%s</text>\n", x, y, title);
    for (size_t i = 0; i < json_array_size(list); i++) {
        long long count = show_count(json_array_get(list, i), name);
        double width = most > 0 ? (double)count / most * 200 : 0;
        int top = y + 8 + (int)i * ROW_HEIGHT;
        label(list, i, text);
        fprintf(out,
                "<text x=\"%d\" y=\"%d\" class=\"l\">%s</text>"
                "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"11\"/>"
                "<text x=\"%.1f\" y=\"%d\">%s</text>\n",
                x + 110, top + 10, text, x + 116, top, width, x + 121 + width, top + 10,
                show_number(count, a));
    }
}

void kv_plot(FILE *out, const json_t *answer)
{
    size_t count;
    json_t **node = nodes_of(answer, &count);
    int height = TOP + (int)count * (PANEL_HEIGHT + TOP);
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
            "height=\"%d\">\n<style>text{font:11px sans-serif;fill:#333}.t{font-weight:bold}"
            ".l{text-anchor:end}rect{fill:#4a78b0}</style>\n"
            "<rect width=\"100%%\" height=\"100%%\" style=\"fill:#fff\"/>\n",
            PLOT_WIDTH, height, PLOT_WIDTH, height);
    for (size_t i = 0; i < count; i++) {
        int y = TOP + (int)i * (PANEL_HEIGHT + TOP);
        char title[160];
        snprintf(title, sizeof title, "%.64s: cached blocks by time unused",
                 show_text(node[i], "node"));
        plot_panel(out, json_object_get(node[i], "ages"), title, "blocks", age_label, 10, y);
        snprintf(title, sizeof title, "%.64s: cached prompts by tokens",
                 show_text(node[i], "node"));
        plot_panel(out, json_object_get(node[i], "sizes"), title, "prefixes", size_label,
                   20 + PANEL_WIDTH + 20, y);
    }
    fprintf(out, "</svg>\n");
    free(node);
}
