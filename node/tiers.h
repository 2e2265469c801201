/* node tiers: what a node's settings say of tiers behind its pool, made into kv_tiers over its engine.
 *
 *     struct node_tiers tiers = {0};
 *     if ((e = node_tiers_check(&options)) != OK) return e;                   // wrong usage
 *     if ((e = node_tiers_open(&tiers, &options, engine)) != OK) return e;
 *     if (tiers.tiers) ... node_tiers_start(&tiers); events come into tiers.events ...
 *     node_tiers_stop(&tiers); node_tiers_close(&tiers);
 *
 * Rules: between start and stop the tier thread reads and writes blocks of the pool that ops name. Strings of
 * the options live until close. Owner: the loop thread. */
#ifndef TANDEM_NODE_TIERS_H
#define TANDEM_NODE_TIERS_H

#include "common/mailbox.h"
#include "engine/engine.h"
#include "kv/tiers.h"

struct node_tiers_options {
    uint64_t host_bytes; /* of host memory, for pools on a device; 0: none */
    const char *disk;    /* directory; NULL or "": none */
    uint64_t disk_bytes;
    const char *redis; /* "HOST:PORT", "unix:PATH"; NULL or "": none */
    const char *redis_user, *redis_password_file;
    uint64_t redis_ttl_ns, deadline_ns;
};

struct node_tiers {
    struct kv_tiers *tiers; /* NULL: none is wanted */
    struct mailbox *events; /* struct kv_tier_event */
    struct engine *engine;
    void *staging;  /* of a device */
    char *password; /* of the server; NULL: none */
    bool started;
};

enum err node_tiers_check(const struct node_tiers_options *options, bool prefix_cache,
                          bool trusted_network);
/* Whose blocks this engine's are: entries of another space are none. */
struct id128 node_tiers_space(const struct engine_facts *facts);
enum err node_tiers_open(struct node_tiers *t, const struct node_tiers_options *options,
                         struct engine *engine);
enum err node_tiers_start(struct node_tiers *t);
/* What still runs is for nobody. Ends the process, which the log says, if a call of a tier does not return: its
 * thread has memory of ours. */
void node_tiers_stop(struct node_tiers *t);
void node_tiers_close(struct node_tiers *t); /* before the engine */

#endif
