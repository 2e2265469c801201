/* plugin: backends that live in a shared library of their own, so that the programs start on machines
 * without the device's libraries.
 *
 *     if ((e = plugin_find("cuda", &ops)) != OK) return e;      // said: what is missing, and where
 *
 * libtandem_cuda.so is looked for in TANDEM_PLUGIN_DIR and nowhere else if that is set; else in
 * ../lib/tandem beside the running program; else where the loader looks.
 *
 * Rules: the library exports one function, `tandem_cuda_backend`, a plugin_entry_fn. It is loaded
 * with local symbols and stays loaded. It has none of common/ in it: errors, memory and logs are the
 * program's, through struct plugin_host. Both structs begin with their ABI number, and a library of
 * another number than the program's is refused.
 * Any thread. */
#ifndef TANDEM_KERNELS_PLUGIN_H
#define TANDEM_KERNELS_PLUGIN_H

#include "kernels/backend.h"

/* What the program gives its plugin; the functions of common/err.h, mem.h and log.h. */
struct plugin_host {
    uint32_t abi; /* BACKEND_ABI */
    enum err (*err_set)(enum err e, const char *format, ...);
    const char *(*err_text)(void);
    void (*check_failed)(const char *cond, const char *file, int line);
    void *(*mem_new)(size_t size);
    void *(*mem_aligned)(size_t size, size_t align);
    void (*mem_free)(void *p);
    void (*log_line)(int level, const char *event, const char *format, ...);
};

/* Gives its table whatever the host's ABI is, since the program compares; keeps `host` only if it is
 * of the plugin's own. */
typedef const struct backend_ops *plugin_entry_fn(const struct plugin_host *host);

/* `name` is "cuda", else ERR_NOT_FOUND. ERR_UNSUPPORTED: no plugin, one that cannot be loaded, or one of
 * another version. Whether there is a device is found out by open. */
enum err plugin_find(const char *name, const struct backend_ops **ops);

#endif
