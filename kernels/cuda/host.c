/* The plugin's one entry (kernels/plugin.h). */
#include "common/plugin.h"
#include "kernels/cuda/backend.h"
#include "kernels/plugin.h"

__attribute__((visibility("default"))) plugin_entry_fn tandem_cuda_backend;
const struct backend_ops *tandem_cuda_backend(const struct plugin_host *h)
{
    if (h->abi == BACKEND_ABI) plugin_side_start(h);
    return &cuda_backend_ops;
}
