/* The functions of common/ that the plugin uses, handed on to those of the program that loaded it
 * (kernels/plugin.h): there is one error text per thread, one count of allocations, one log. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/log.h"
#include "common/mem.h"
#include "kernels/cuda/backend.h"
#include "kernels/plugin.h"

#undef err_set

static const struct plugin_host *host;

__attribute__((visibility("default"))) plugin_entry_fn tandem_cuda_backend;
const struct backend_ops *tandem_cuda_backend(const struct plugin_host *h)
{
    if (h->abi == BACKEND_ABI) host = h;
    return &cuda_backend_ops;
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
    host->log_line((int)level, event, "%s", text);
}

void *mem_new(size_t size)
{
    return host->mem_new(size);
}

void *mem_aligned(size_t size, size_t align)
{
    return host->mem_aligned(size, align);
}

void mem_free(void *p)
{
    host->mem_free(p);
}
