#include "xfer/plugin.h"

#include <string.h>

#define CUDART                                                                                     \
    {                                                                                              \
        "libcudart", "the library of CUDA 13"                                                      \
    }

static const struct {
    const char *name;
    struct plugin_kind kind;
} plugins[] = {
    {"nccl",
     {.title = "NCCL",
      .file = "libtandem_nccl.so",
      .entry = "tandem_link_ops",
      .needs = {{"libnccl", "a library of NCCL 2.19 or later"}, CUDART}}},
    {"ipc",
     {.title = "CUDA IPC",
      .file = "libtandem_ipc.so",
      .entry = "tandem_link_ops",
      .needs = {CUDART}}},
};

static const struct link_plugin_host host = {
    .common = PLUGIN_HOST(KV_LINK_VERSION), .tcp = &kv_link_tcp, .shm = &kv_link_shm};

static enum err find(const struct plugin_kind *kind, const struct kv_link_ops **ops)
{
    struct plugin_library library;
    enum err e;
    if ((e = plugin_load(&library, kind)) != OK) return e;
    const struct kv_link_ops *found = ((link_plugin_entry_fn *)library.entry)(&host);
    if (found->version != KV_LINK_VERSION)
        return plugin_refuse(&library, found->version, KV_LINK_VERSION);
    *ops = found;
    return OK;
}

enum err link_plugin_find(const char *name, const struct kv_link_ops **ops)
{
    for (size_t i = 0; i < sizeof plugins / sizeof plugins[0]; i++)
        if (strcmp(plugins[i].name, name) == 0) return find(&plugins[i].kind, ops);
    return err_set(ERR_NOT_FOUND, "no plugin for links of the name \"%s\"", name);
}
