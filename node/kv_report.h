/* kv_report: what a node caches and how well that does, as JSON for `tandem kv` and `tandem doctor`
 * (docs/interfaces.md has its fields). A router asks (QUERY_KV); the blocks are looked at a slice a turn,
 * and when all have been, the answer goes out.
 *
 *     kv_report_ask(c, now_ns, router, ref);   // answered later, or refused at once
 *     kv_report_turn(c, now_ns);               // each turn of the core; lowers c->wake_ns
 *
 * Rules: a slice looks at KV_REPORT_SLICE blocks and takes a fraction of the millisecond that a callback
 * may take; slices are KV_REPORT_PAUSE_NS apart, so that the node's work goes on between them. Blocks
 * come and go meanwhile: the report is of about now. Who asks while another's report is being made is
 * answered with the same one; KV_REPORT_ASKS_MAX may wait. Owner: the loop thread. */
#ifndef TANDEM_NODE_KV_REPORT_H
#define TANDEM_NODE_KV_REPORT_H

#include <stdint.h>

#include "common/clock.h"
#include "common/err.h"
#include "common/geometry.h"

enum {
    KV_REPORT_SLICE = 2048,
    KV_REPORT_PREFIXES = 16, /* the biggest shared ones */
    KV_REPORT_ASKS_MAX = 16,
    KV_REPORT_AGES = 10,
    KV_REPORT_SIZES = 12,
};
#define KV_REPORT_PAUSE_NS (NS_PER_MS / 2)

struct node_core;
struct kv_report;

enum err kv_report_new(struct kv_report **report);
void kv_report_free(struct kv_report *report); /* NULL is allowed */
void kv_report_ask(struct node_core *c, uint64_t now_ns, uint32_t router, uint64_t ref);
void kv_report_turn(struct node_core *c, uint64_t now_ns);

#endif
