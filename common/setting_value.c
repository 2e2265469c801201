/* Values as text: parsing with range checks, and the text of a range. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/settings.h"

struct unit {
    const char *name;
    double factor;
};

/* Largest first: the order in which a number is written. */
static const struct unit durations[] = {{"h", 3600e9}, {"m", 60e9}, {"s", 1e9},
                                        {"ms", 1e6},   {"us", 1e3}, {"ns", 1}};
static const struct unit sizes[] = {
    {"T", 1099511627776.0}, {"G", 1073741824.0}, {"M", 1048576.0}, {"K", 1024.0}, {"", 1}};

static void print_in_units(double value, const struct unit *units, size_t count, char *out,
                           size_t out_bytes)
{
    size_t i = 0;
    while (i + 1 < count && (value < units[i].factor || fmod(value, units[i].factor) != 0))
        i++;
    if (value / units[i].factor >= 100000) { /* even in no larger unit: rounded to the eye */
        for (i = 0; value < units[i].factor; i++)
            continue;
        snprintf(out, out_bytes, "%.3g%s", value / units[i].factor, units[i].name);
        return;
    }
    snprintf(out, out_bytes, "%.0f%s", value / units[i].factor, value == 0 ? "" : units[i].name);
}

static void print_number(const struct setting *row, double value, char *out, size_t out_bytes)
{
    if (row->type == SETTING_TYPE_SIZE)
        print_in_units(value, sizes, COUNT_OF(sizes), out, out_bytes);
    else if (row->type == SETTING_TYPE_DURATION)
        print_in_units(value, durations, COUNT_OF(durations), out, out_bytes);
    else
        snprintf(out, out_bytes, row->type == SETTING_TYPE_INT ? "%.0f" : "%g", value);
}

void setting_range(const struct setting *row, char *out, size_t out_bytes)
{
    char min[32], max[32];
    switch (row->type) {
    case SETTING_TYPE_BOOL: snprintf(out, out_bytes, "true|false"); return;
    case SETTING_TYPE_CHOICE: snprintf(out, out_bytes, "%s", row->choices); return;
    case SETTING_TYPE_STRING: snprintf(out, out_bytes, "text"); return;
    case SETTING_TYPE_LIST: snprintf(out, out_bytes, "up to %d texts", SETTING_LIST_MAX); return;
    case SETTING_TYPE_INT:
    case SETTING_TYPE_SIZE:
    case SETTING_TYPE_DURATION:
    case SETTING_TYPE_DOUBLE: break;
    }
    print_number(row, row->min, min, sizeof min);
    print_number(row, row->max, max, sizeof max);
    snprintf(out, out_bytes, "%s ... %s", min, max);
}

void setting_clear(const struct setting *row, void *values)
{
    static const size_t sizes_bytes[] = {
        [SETTING_TYPE_BOOL] = sizeof(bool),     [SETTING_TYPE_INT] = sizeof(int64_t),
        [SETTING_TYPE_SIZE] = sizeof(uint64_t), [SETTING_TYPE_DURATION] = sizeof(uint64_t),
        [SETTING_TYPE_DOUBLE] = sizeof(double), [SETTING_TYPE_STRING] = sizeof(const char *),
        [SETTING_TYPE_CHOICE] = sizeof(int),    [SETTING_TYPE_LIST] = sizeof(struct setting_list)};
    memset((char *)values + row->offset, 0, sizes_bytes[row->type]);
}

static enum err refuse(const struct setting *row, const char *where, const char *text,
                       const char *why)
{
    char range[128];
    setting_range(row, range, sizeof range);
    return err_set(ERR_INVALID, "%s: \"%.64s\" %s; allowed: %s%s%s%s", where, text, why, range,
                   row->fallback ? " (default " : "", row->fallback ? row->fallback : "",
                   row->fallback ? ")" : "");
}

static bool parse_bool(const char *text, bool *value)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (size_t i = 0; i < COUNT_OF(words); i++) {
        if (strcmp(text, words[i]) != 0) continue;
        *value = i % 2;
        return true;
    }
    return false;
}

static bool parse_choice(const char *choices, const char *text, int *value)
{
    size_t length = strlen(text);
    for (int i = 0; length > 0; i++) {
        size_t n = strcspn(choices, "|");
        if (n == length && memcmp(choices, text, n) == 0) {
            *value = i;
            return true;
        }
        if (choices[n] == '\0') break;
        choices += n + 1;
    }
    return false;
}

/* A decimal number and what follows it. No blanks, hex, nan or inf. */
static bool parse_double(const char *text, double *value, const char **rest)
{
    size_t sign = text[0] == '-' || text[0] == '+';
    if (strspn(text + sign, "0123456789.") == 0 || strpbrk(text, "xX")) return false;
    char *end;
    *value = strtod(text, &end);
    *rest = end;
    return end != text && isfinite(*value);
}

/* Whether `text` is the unit's name; a size's K may be KiB too. */
static bool is_unit(const char *text, const struct unit *unit, bool size)
{
    size_t n = strlen(unit->name);
    if (strncmp(text, unit->name, n) != 0) return false;
    return text[n] == '\0' || (size && n > 0 && strcmp(text + n, "iB") == 0);
}

/* NULL: fine. Else what is wrong. */
static const char *parse_units(const struct setting *row, const char *text, double *value)
{
    const char *unit;
    bool size = row->type == SETTING_TYPE_SIZE;
    const struct unit *units = size ? sizes : durations;
    size_t count = size ? COUNT_OF(sizes) : COUNT_OF(durations);
    if (!parse_double(text, value, &unit)) return size ? "is no size" : "is no duration";
    if (*value == 0 && *unit == '\0') return NULL;
    for (size_t i = 0; i < count; i++) {
        if (!is_unit(unit, &units[i], size)) continue;
        *value = round(*value * units[i].factor);
        return NULL;
    }
    return size ? "has a unit that is none of K, M, G, T (of 1024; KiB and so on are the same)"
                : "needs a unit: ns, us, ms, s, m or h";
}

static const char *parse_int(const char *text, int64_t *value)
{
    char *end;
    errno = 0;
    if (text[strspn(text, "+-0123456789")] != '\0') return "is no whole number";
    *value = strtoll(text, &end, 10);
    if (end == text || *end != '\0') return "is no whole number";
    return errno == ERANGE ? "is out of range" : NULL;
}

static enum err add_to_list(struct setting_list *list, const char *where, const char *text,
                            struct arena *strings)
{
    if (list->count == SETTING_LIST_MAX)
        return err_set(ERR_INVALID, "%s: more than %d values", where, SETTING_LIST_MAX);
    if (list->count == 0) {
        list->item = arena_take(strings, SETTING_LIST_MAX * sizeof *list->item);
        if (!list->item) return ERR_MEMORY;
    }
    list->item[list->count++] = text;
    return OK;
}

enum err setting_parse(const struct setting *row, const char *where, const char *text, void *values,
                       struct arena *strings)
{
    void *field = (char *)values + row->offset;
    const char *wrong = NULL, *rest = "";
    double number = row->min;
    switch (row->type) {
    case SETTING_TYPE_BOOL:
        if (!parse_bool(text, field)) wrong = "is neither true nor false";
        break;
    case SETTING_TYPE_CHOICE:
        if (!parse_choice(row->choices, text, field)) wrong = "is none of the choices";
        break;
    case SETTING_TYPE_STRING:
    case SETTING_TYPE_LIST: {
        const char *copy = arena_copy(strings, text, strlen(text));
        if (!copy) return ERR_MEMORY;
        if (row->type == SETTING_TYPE_LIST) return add_to_list(field, where, copy, strings);
        *(const char **)field = copy;
        break;
    }
    case SETTING_TYPE_INT: {
        int64_t whole = 0;
        wrong = parse_int(text, &whole);
        number = (double)whole;
        if (!wrong && number >= row->min && number <= row->max) *(int64_t *)field = whole;
        break;
    }
    case SETTING_TYPE_SIZE:
    case SETTING_TYPE_DURATION:
        wrong = parse_units(row, text, &number);
        if (!wrong && number >= row->min && number <= row->max)
            *(uint64_t *)field = (uint64_t)number;
        break;
    case SETTING_TYPE_DOUBLE:
        if (!parse_double(text, &number, &rest) || *rest != '\0') wrong = "is no number";
        if (!wrong && number >= row->min && number <= row->max) *(double *)field = number;
        break;
    }
    if (wrong) return refuse(row, where, text, wrong);
    if (number < row->min || number > row->max) return refuse(row, where, text, "is out of range");
    return OK;
}
