#include "common/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef err_set /* the function itself, for the analyzer too */

static _Thread_local char text[ERR_TEXT_MAX];

enum err err_set(enum err e, const char *format, ...)
{
    char fresh[ERR_TEXT_MAX]; /* the arguments may point into `text` */
    va_list args;
    va_start(args, format);
    vsnprintf(fresh, sizeof fresh, format, args);
    va_end(args);
    memcpy(text, fresh, sizeof text);
    return e;
}

enum err err_prefix(enum err e, const char *format, ...)
{
    if (e == OK) return OK;
    char fresh[ERR_TEXT_MAX];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(fresh, sizeof fresh, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof fresh)
        snprintf(fresh + n, sizeof fresh - (size_t)n, ": %.*s", ERR_TEXT_MAX - 3 - n, text);
    memcpy(text, fresh, sizeof text);
    return e;
}

const char *err_text(void)
{
    return text;
}

const char *err_name(enum err e)
{
    static const char *const names[] = {
        "OK",          "ERR_AGAIN",     "ERR_MORE",        "ERR_FULL",
        "ERR_STALE",   "ERR_DUPLICATE", "ERR_STATE",       "ERR_NOT_FOUND",
        "ERR_INVALID", "ERR_FORMAT",    "ERR_UNSUPPORTED", "ERR_MEMORY",
        "ERR_IO",      "ERR_PEER",      "ERR_TIMEOUT",     "ERR_CANCELLED",
        "ERR_DEVICE"};
    return (unsigned)e < sizeof names / sizeof names[0] ? names[e] : "ERR_?";
}

void check_failed(const char *cond, const char *file, int line)
{
    fprintf(stderr, "tandem: broken promise at %s:%d: %s (last error: %s)\n", file, line, cond,
            text[0] ? text : "none");
    abort();
}
