/* A plugin without a device, in the versions that backend_plugin_test.c must tell apart: ABI, ENTRY and
 * whether it needs a library that nobody has (GONE) are set by its CMakeLists.txt. */
#include "kernels/plugin.h"

#include "common/log.h"

static const struct plugin_host *host;

static enum err open_says_no(struct backend **b, const struct backend_options *options)
{
    void *p = host->mem_new(16);
    *b = NULL;
    if (!p) return ERR_MEMORY;
    host->mem_free(p);
    host->log_line(LOG_DEBUG, "opened", "device=%u", options->device_index);
    return host->err_set(ERR_DEVICE, "no device %u", options->device_index);
}

static const struct backend_ops table = {.abi = ABI, .name = "cuda", .open = open_says_no};

plugin_entry_fn ENTRY;
const struct backend_ops *ENTRY(const struct plugin_host *h)
{
    if (h->abi == ABI) host = h;
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
