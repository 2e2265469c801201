#include "kernels/plugin.h"

#include <string.h>

static const struct plugin_kind cuda = {
    .title = "CUDA",
    .file = "libtandem_cuda.so",
    .entry = "tandem_cuda_backend",
    .needs = {{"libcudart", "a library of CUDA 13"}, {"libcublasLt", "a library of CUDA 13"}}};

static const struct plugin_host host = PLUGIN_HOST(BACKEND_ABI);

enum err plugin_find(const char *name, const struct backend_ops **ops)
{
    struct plugin_library library;
    enum err e;
    if (strcmp(name, "cuda") != 0) return err_set(ERR_NOT_FOUND, "no plugin for \"%s\"", name);
    if ((e = plugin_load(&library, &cuda)) != OK) return e;
    const struct backend_ops *found = ((plugin_entry_fn *)library.entry)(&host);
    if (found->abi != BACKEND_ABI) return plugin_refuse(&library, found->abi, BACKEND_ABI);
    *ops = found;
    return OK;
}
