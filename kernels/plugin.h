/* plugin: backends that live in a shared library of their own, so that the programs start on machines
 * without the device's libraries.
 *
 *     if ((e = plugin_find("cuda", &ops)) != OK) return e;      // said: what is missing, and where
 *
 * libtandem_cuda.so is looked for where common/plugin.h says.
 *
 * Rules: the library exports one function, `tandem_cuda_backend`, a plugin_entry_fn. Both the host's
 * struct and the table begin with their ABI number, BACKEND_ABI, and a library of another number than
 * the program's is refused.
 * Any thread. */
#ifndef TANDEM_KERNELS_PLUGIN_H
#define TANDEM_KERNELS_PLUGIN_H

#include "common/plugin.h"
#include "kernels/backend.h"

/* Gives its table whatever the host's ABI is, since the program compares; keeps `host` only if it is
 * of the plugin's own. */
typedef const struct backend_ops *plugin_entry_fn(const struct plugin_host *host);

/* `name` is "cuda", else ERR_NOT_FOUND. ERR_UNSUPPORTED: no plugin, one that cannot be loaded, or one of
 * another version. Whether there is a device is found out by open. */
enum err plugin_find(const char *name, const struct backend_ops **ops);

#endif
