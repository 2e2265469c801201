/* plugin: links that live in shared libraries of their own, so that the programs start on machines
 * without the libraries that these need.
 *
 *     if ((e = link_plugin_find("nccl", &ops)) != OK) return e;      // said: what is missing, and where
 *
 * libtandem_NAME.so, NAME one of nccl and ipc, is looked for where common/plugin.h says.
 *
 * Rules: the library exports one function, `tandem_link_ops`, a link_plugin_entry_fn. Errors, memory
 * and logs are the program's, and so are the links that its control channel goes over: all come to it
 * in struct link_plugin_host. A library of another version of link.h than the program's is refused.
 * Any thread. */
#ifndef TANDEM_XFER_PLUGIN_H
#define TANDEM_XFER_PLUGIN_H

#include "common/plugin.h"
#include "xfer/link.h"

struct link_plugin_host {
    struct plugin_host common; /* its ABI number is KV_LINK_VERSION */
    const struct kv_link_ops *tcp, *shm;
};

/* Gives its table whatever the host's ABI is, since the program compares; keeps `host` only if it is
 * of the plugin's own. */
typedef const struct kv_link_ops *link_plugin_entry_fn(const struct link_plugin_host *host);

/* ERR_NOT_FOUND: no such name. ERR_UNSUPPORTED: no plugin, one that cannot be loaded, or one of
 * another version. Whether there is a device is found out by listen and dial. */
enum err link_plugin_find(const char *name, const struct kv_link_ops **ops);

#endif
