/* link_memory: links within one process and one thread, for the simulator and tests of cores.
 *
 *     kv_link_memory.listen(&l, "d0", &options);        // "memory:d0"
 *     kv_link_memory.dial(&link, "memory:d0", &options);
 *
 * Rules: the contract of xfer/link.h. ring_bytes bounds what is under way each way. All ends belong
 * to one thread; names are that process's, at most LINK_MEMORY_NAMES_MAX at a time. */
#ifndef TANDEM_TESTS_FAKE_LINK_MEMORY_H
#define TANDEM_TESTS_FAKE_LINK_MEMORY_H

#include "xfer/link.h"

enum { LINK_MEMORY_NAMES_MAX = 32 };

extern const struct kv_link_ops kv_link_memory;

#endif
