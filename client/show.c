#include "client/show.h"

#include <string.h>

const char *show_text(const json_t *object, const char *name)
{
    const char *s = json_string_value(json_object_get(object, name));
    return s ? s : "";
}

long long show_count(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

double show_real(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

const char *show_number(long long value, char text[SHOW_TEXT])
{
    char digits[SHOW_TEXT / 2];
    size_t n = (size_t)snprintf(digits, sizeof digits, "%lld", value), at = 0;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && (n - i) % 3 == 0 && digits[i - 1] != '-') text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = '\0';
    return text;
}

const char *show_bytes(double bytes, char text[SHOW_TEXT])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t i = 0;
    for (; bytes >= 1024 && i < 4; i++)
        bytes /= 1024;
    snprintf(text, SHOW_TEXT, i == 0 ? "%.0f %s" : "%.1f %s", bytes, units[i]);
    return text;
}

const char *show_span(double seconds, char text[SHOW_TEXT])
{
    if (seconds < 120)
        snprintf(text, SHOW_TEXT, "%.0f s", seconds);
    else if (seconds < 7200)
        snprintf(text, SHOW_TEXT, "%.0f min", seconds / 60);
    else if (seconds < 172800)
        snprintf(text, SHOW_TEXT, "%.1f h", seconds / 3600);
    else
        snprintf(text, SHOW_TEXT, "%.1f days", seconds / 86400);
    return text;
}

const char *show_time(double seconds, char text[SHOW_TEXT])
{
    if (seconds >= 2) return show_span(seconds, text);
    snprintf(text, SHOW_TEXT, "%.0f ms", 1000 * seconds);
    return text;
}

const char *show_share(double part, double whole, char text[SHOW_TEXT])
{
    if (whole > 0)
        snprintf(text, SHOW_TEXT, "%.1f %%", 100 * part / whole);
    else
        snprintf(text, SHOW_TEXT, "-");
    return text;
}

const char *show_bar(double part, double whole, char text[SHOW_TEXT])
{
    double length = whole > 0 ? part / whole * SHOW_BAR + 0.5 : 0;
    size_t n = length > SHOW_BAR ? SHOW_BAR : length > 0 ? (size_t)length : 0;
    if (n == 0 && part > 0) n = 1;
    memset(text, '#', n);
    text[n] = '\0';
    return text;
}
