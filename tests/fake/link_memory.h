/* link_memory: links within one process, for tests of what stands on links.
 *
 *     kv_link_memory.listen(&l, "d0", &options);        // "memory:d0"
 *     kv_link_memory.dial(&link, "memory:d0", &options);
 *
 * kv_link_slots ("slots:d0") is the same with slots, in plain memory, as links of devices have them
 * (options slots_count, slot_bytes); its frames without a payload are frames like the others'.
 *
 * Rules: the contract of xfer/link.h, and any thread: one lock for all. ring_bytes bounds what is under
 * way each way, slots_count the payloads; slots: links_max those that a listener has accepted, 0: no limit.
 * Names are the process's, at most LINK_MEMORY_NAMES_MAX at a
 * time. */
#ifndef TANDEM_TESTS_FAKE_LINK_MEMORY_H
#define TANDEM_TESTS_FAKE_LINK_MEMORY_H

#include "xfer/link.h"

enum { LINK_MEMORY_NAMES_MAX = 32 };

extern const struct kv_link_ops kv_link_memory, kv_link_slots;

#endif
