/* libtandem_nccl.so's one entry (xfer/plugin.h): links of devices whose transport is NCCL and whose
 * control channel is TCP, "nccl:HOST:PORT". */
#include "xfer/device/link.h"
#include "xfer/device/nccl.h"
#include "xfer/plugin.h"

static struct device_link_kind kind;
DEVICE_LINK_THUNKS(nccl, &kind)
static const struct kv_link_ops kv_link_nccl = DEVICE_LINK_OPS("nccl", nccl);

__attribute__((visibility("default"))) link_plugin_entry_fn tandem_link_ops;
const struct kv_link_ops *tandem_link_ops(const struct link_plugin_host *host)
{
    if (host->common.abi != KV_LINK_VERSION) return &kv_link_nccl;
    plugin_side_start(&host->common);
    kind = (struct device_link_kind){
        .ops = &kv_link_nccl, .transport = &transport_nccl, .control = host->tcp};
    return &kv_link_nccl;
}
