/* whole: a cluster in which every mechanism around KV is on and has to work for its living: small pools, a disk for
 * each node and a Redis where one is installed, both of which outlive the nodes; and what its nodes counted,
 * those that are dead included.
 *
 *     struct whole w;
 *     whole_start(&w, "--disaggregate auto", "--link tcp");  // 2 P + 2 D
 *     whole_pin(&w, &pin);
 *     ... streams to w.cluster->addresses ...
 *     whole_replace(&w, 1);                       // node 1 is killed; the next one has its disk
 *     whole_count(&w);                            // what all nodes, dead or alive, and the router counted
 *     assert_true(whole_counted(&w, COUNT_FORKS) > 0);
 *     whole_end(&w);                              // in a teardown
 *
 * Rules: a node that is killed before it is ready, or while it is stopped, is not counted. Owner: the test's
 * only thread. */
#ifndef TANDEM_TESTS_E2E_WHOLE_H
#define TANDEM_TESTS_E2E_WHOLE_H

#include "tests/e2e/cluster.h"
#include "tests/unit/redis_rig.h"

enum { WHOLE_NODES = 4 }; /* P, P, D, D */

/* Sums over all nodes, or of the router. */
enum counted {
    COUNT_POOL_TOKENS,  /* found in a pool */
    COUNT_DELTA_TOKENS, /* of them, on D: P did not send them */
    COUNT_DISK_BLOCKS,
    COUNT_REDIS_BLOCKS,
    COUNT_TIER_TOKENS,
    COUNT_STORES,
    COUNT_FORKS,
    COUNT_PREEMPTIONS,
    COUNT_RETURNED, /* tokens of those that came back where they were */
    COUNT_HANDED_BACK,
    COUNT_WINDOW_BLOCKS,
    COUNT_SENT_BYTES,
    COUNT_BACKFILLED, /* tokens that D had for P */
    COUNT_SCORES,
    COUNT_EMBEDDINGS,
    COUNT_INDEX_HITS,
    COUNT_WRONG,    /* entries of tiers: never, whatever was killed */
    COUNT_DIVERGED, /* tokens that a second attempt gave otherwise: never */
    COUNTS
};

struct whole {
    struct cluster *cluster;
    char folder[PATH_MAX], node_args[256];
    struct redis_rig redis;
    bool has_redis;
    struct process *node[WHOLE_NODES];
    double dead[COUNTS], all[COUNTS];
};

/* With a disk for each node and, if told and one is installed, a Redis for all. */
void whole_start(struct whole *w, const char *router_args, const char *node_args, bool redis);
void whole_end(struct whole *w); /* also one that was never started */

/* Until all prefill nodes hold it. */
void whole_pin(struct whole *w, const struct tandem_pin *pin);
void whole_await_pin(struct whole *w);

void whole_replace(struct whole *w, uint32_t node);
void whole_count(struct whole *w);
double whole_counted(const struct whole *w, enum counted which);
const char *whole_count_name(enum counted which);

#endif
