/* libtandem_ipc.so's one entry (xfer/plugin.h): links of devices of one host, whose transport is CUDA IPC
 * and whose control channel is a shm link, "ipc:NAME". */
#include "xfer/device/ipc.h"
#include "xfer/device/link.h"
#include "xfer/plugin.h"

static struct device_link_kind kind;
DEVICE_LINK_THUNKS(ipc, &kind)
static const struct kv_link_ops kv_link_ipc = DEVICE_LINK_OPS("ipc", ipc);

__attribute__((visibility("default"))) link_plugin_entry_fn tandem_link_ops;
const struct kv_link_ops *tandem_link_ops(const struct link_plugin_host *host)
{
    if (host->common.abi != KV_LINK_VERSION) return &kv_link_ipc;
    plugin_side_start(&host->common);
    kind = (struct device_link_kind){
        .ops = &kv_link_ipc, .transport = &transport_ipc, .control = host->shm};
    return &kv_link_ipc;
}
