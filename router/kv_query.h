/* kv_query: what all nodes cache, or one of them, asked for a client (QUERY_KV): each node is asked, its
 * report gets words for token ids and names for tenants, and when all have answered, left, or had
 * KV_QUERY_WAIT_NS to do so, the client is answered. Who did not answer is named with the reason.
 *
 *     e = kv_query_begin(core, now_ns, peer, &query);      // answered later, unless an error
 *     kv_query_on_answer(core, now_ns, node, &answer);
 *     kv_query_node_lost(core, now_ns, node); kv_query_client_lost(core, peer);
 *     wake_ns = kv_query_on_timer(core, now_ns);           // the next deadline
 *
 * Rules: a report is text of another process: one of more than KV_QUERY_REPORT_MAX bytes or that is no
 * object is refused as its node's answer, and of its lists only so many entries are read. Words are
 * made only if config.kv_words says so; else ids are taken out too. Owner: the loop thread. */
#ifndef TANDEM_ROUTER_KV_QUERY_H
#define TANDEM_ROUTER_KV_QUERY_H

#include "common/clock.h"
#include "proto/msg.h"
#include "proto/peer.h"

enum {
    KV_QUERIES_MAX = 16,
    KV_QUERY_REPORT_MAX = 1 << 18,
    KV_QUERY_ROWS_MAX = 256, /* prefixes, tenants of one report that are read */
    KV_QUERY_TENANTS = 256,  /* names remembered */
};
#define KV_QUERY_WAIT_NS (2 * NS_PER_S)

struct router_core;
struct node;

enum err kv_query_begin(struct router_core *core, uint64_t now_ns, struct peer peer,
                        const struct msg_query *query);
void kv_query_on_answer(struct router_core *core, uint64_t now_ns, const struct node *node,
                        const struct msg_answer *answer);
void kv_query_node_lost(struct router_core *core, uint64_t now_ns, const struct node *node);
void kv_query_client_lost(struct router_core *core, struct peer peer);
uint64_t kv_query_on_timer(struct router_core *core, uint64_t now_ns);
uint64_t kv_query_wake_ns(const struct router_core *core); /* TIME_NEVER: none waits */
void kv_queries_free(struct router_core *core);
/* A request came: reports tell its tenant (NULL: none), and its window, by their salt. */
void kv_query_note_tenant(struct router_core *core, uint64_t salt, const struct msg_submit *submit);

#endif
