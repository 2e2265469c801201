/* A plugin of links without any, in the versions that link_plugin_test.c must tell apart: VERSION and
 * whether it needs a library that nobody has (GONE) are set by its CMakeLists.txt. */
#include "xfer/plugin.h"

static const struct link_plugin_host *host;

static enum err dial_says_no(struct kv_link **link, const char *address,
                             const struct kv_link_options *options)
{
    (void)options;
    *link = NULL;
    if (host->tcp->version != KV_LINK_VERSION || host->shm->version != KV_LINK_VERSION)
        return ERR_STATE;
    return host->common.err_set(ERR_DEVICE, "no device for %s", address);
}

static const struct kv_link_ops table = {.name = "nccl", .version = VERSION, .dial = dial_says_no};

link_plugin_entry_fn tandem_link_ops;
const struct kv_link_ops *tandem_link_ops(const struct link_plugin_host *h)
{
    if (h->common.abi == VERSION) host = h;
    return &table;
}

#ifdef GONE
int gone(void);
int needs_it(void);
int needs_it(void)
{
    return gone();
}
#endif
