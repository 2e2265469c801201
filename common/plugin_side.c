/* The functions of common/ that plugins use, handed on to those of the program that loaded them
 * (plugin.h): there is one error text per thread, one count of allocations, one log. For plugins alone,
 * in place of err.c, mem.c and log.c. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "common/plugin.h"

#undef err_set

static const struct plugin_host *host;

void plugin_side_start(const struct plugin_host *h)
{
    host = h;
}

enum err err_set(enum err e, const char *format, ...)
{
    char text[ERR_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return host->err_set(e, "%s", text);
}

enum err err_prefix(enum err e, const char *format, ...)
{
    char text[ERR_TEXT_MAX];
    va_list args;
    if (e == OK) return OK;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return host->err_set(e, "%s: %s", text, host->err_text());
}

const char *err_text(void)
{
    return host->err_text();
}

const char *err_name(enum err e)
{
    return host->err_name(e);
}

void check_failed(const char *cond, const char *file, int line)
{
    host->check_failed(cond, file, line);
    abort();
}

void log_line(enum log_level level, const char *event, const char *format, ...)
{
    char text[ERR_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    host->log_line(level, event, "%s", text);
}

enum log_level log_level_now(void)
{
    return host->log_level_now();
}

void *mem_new(size_t size)
{
    return host->mem_new(size);
}

void *mem_array(size_t count, size_t size)
{
    return host->mem_array(count, size);
}

void *mem_resize(void *p, size_t count, size_t size)
{
    return host->mem_resize(p, count, size);
}

void *mem_aligned(size_t size, size_t align)
{
    return host->mem_aligned(size, align);
}

char *mem_copy_string(const char *s)
{
    size_t bytes = strlen(s) + 1;
    char *copy = host->mem_new(bytes);
    return copy ? memcpy(copy, s, bytes) : NULL;
}

void mem_free(void *p)
{
    host->mem_free(p);
}
