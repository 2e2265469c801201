/* plugin: shared libraries that the programs load, so that they start on machines without what these
 * need. The program's side and the library's; which plugins there are is said by kernels/plugin.h and
 * xfer/plugin.h.
 *
 *     static const struct plugin_kind kind = {.title = "CUDA", .file = "libtandem_cuda.so", …};
 *     struct plugin_library l;
 *     if ((e = plugin_load(&l, &kind)) != OK) return e;         // said: what is missing, and where
 *     ops = ((some_entry_fn *)l.entry)(&host);                  // host begins with PLUGIN_HOST(ABI)
 *     if (ops->abi != ABI) return plugin_refuse(&l, ops->abi, ABI);
 *
 * The file is looked for in TANDEM_PLUGIN_DIR and nowhere else if that is set; else in ../lib/tandem
 * beside the running program; else where the loader looks.
 *
 * Rules: a library exports one function, its entry. It is loaded with local symbols and stays loaded.
 * It has none of common/'s state in it: errors, memory and logs are the program's, through struct
 * plugin_host; plugin_side.c, which plugins compile in, has common/'s functions on that. Whoever
 * changes the struct raises the ABI number of each kind of plugin. Any thread. */
#ifndef TANDEM_COMMON_PLUGIN_H
#define TANDEM_COMMON_PLUGIN_H

#include <limits.h>
#include <stdint.h>

#include "common/err.h"
#include "common/log.h"
#include "common/mem.h"

/* What the program gives its plugin: the functions of err.h, mem.h and log.h. */
struct plugin_host {
    uint32_t abi; /* of the kind of plugin */
    enum err (*err_set)(enum err e, const char *format, ...);
    const char *(*err_text)(void);
    const char *(*err_name)(enum err e);
    void (*check_failed)(const char *cond, const char *file, int line);
    void *(*mem_new)(size_t size);
    void *(*mem_array)(size_t count, size_t size);
    void *(*mem_resize)(void *p, size_t count, size_t size);
    void *(*mem_aligned)(size_t size, size_t align);
    void (*mem_free)(void *p);
    void (*log_line)(enum log_level level, const char *event, const char *format, ...);
    enum log_level (*log_level_now)(void);
};
#define PLUGIN_HOST(number)                                                                        \
    {                                                                                              \
        .abi = (number), .err_set = err_set, .err_text = err_text, .err_name = err_name,           \
        .check_failed = check_failed, .mem_new = mem_new, .mem_array = mem_array,                  \
        .mem_resize = mem_resize, .mem_aligned = mem_aligned, .mem_free = mem_free,                \
        .log_line = log_line, .log_level_now = log_level_now                                       \
    }

/* --- the program's side --- */

typedef void plugin_fn(void);

enum { PLUGIN_NEEDS_MAX = 4 };
struct plugin_need {
    const char *library; /* how the name of its file begins: "libcudart" */
    const char *what;    /* "a library of CUDA 13": completes "needs … that is missing" */
};
struct plugin_kind {
    const char *title, *file, *entry;
    struct plugin_need needs[PLUGIN_NEEDS_MAX];
};
struct plugin_library {
    plugin_fn *entry;
    char path[PATH_MAX + 64];
};

/* ERR_UNSUPPORTED: there is no such file, it cannot be loaded, or it has no such entry. */
enum err plugin_load(struct plugin_library *library, const struct plugin_kind *kind);
/* ERR_UNSUPPORTED, with a sentence about the two ABI numbers. */
enum err plugin_refuse(const struct plugin_library *library, uint32_t found, uint32_t wanted);

/* --- the library's side (plugin_side.c) --- */

/* From its entry, before anything of common/ is used; `host` lives as long as the program. */
void plugin_side_start(const struct plugin_host *host);

#endif
