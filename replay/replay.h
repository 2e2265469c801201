/* replay: a trace through the pool, the prefix cache and a policy of a node, in virtual time, and what no
 * policy can exceed.
 *
 *     struct replay_result got;
 *     struct evict_config config = {.policy = EVICT_LRU};
 *     if ((e = replay_run(&trace, &config, blocks_count, NULL, &got)) != OK) return e;
 *     struct limit *limit;
 *     if ((e = limit_new(&limit, &trace)) != OK) return e;
 *     uint64_t most = limit_hits(limit, blocks_count);      // blocks; LIMIT_INFINITE: all that fit
 *
 * A request matches, takes what it lacks, inserts its full blocks and lets go, all at its timestamp: no
 * two are there at once, and generated tokens, which traces do not tell, take no blocks. One that needs
 * more than the pool has is refused, as a node would.
 *
 * The limit is Belady's MIN on single blocks, free not to keep what it has just computed: what is used
 * latest goes, and of blocks used at the same time the deepest. A block is never used before the one in
 * front of it, so MIN obeys the rule of leaves by itself. It needs no room for a prompt being computed, it
 * serves prompts that a pool would refuse, and finds also the last block of a prompt of whole blocks: on
 * all counts a pool of that size cannot be above it.
 *
 * Rules: one run belongs to one thread; runs of one trace may be side by side. */
#ifndef TANDEM_REPLAY_REPLAY_H
#define TANDEM_REPLAY_REPLAY_H

#include "kv/evict.h"
#include "replay/trace.h"

struct replay_result {
    uint64_t hit_blocks, new_blocks; /* found; not found, so computed and moved */
    uint64_t evicted_blocks, expired_blocks;
    uint32_t refused_count; /* requests */
};

/* One for each tenant of the trace, the caller's. */
struct replay_tenant {
    uint32_t weight;     /* against others', of cached blocks; 0: 1 */
    uint64_t hit_blocks; /* found: set by the run */
};

/* `tenants` may be NULL: nobody has a weight, and they are not told apart in the result. */
enum err replay_run(const struct trace *t, const struct evict_config *config, uint32_t blocks_count,
                    struct replay_tenant *tenants, struct replay_result *result);

#define LIMIT_INFINITE UINT64_MAX
struct limit;
enum err limit_new(struct limit **limit, const struct trace *t);
void limit_free(struct limit *limit); /* NULL is allowed */
uint64_t limit_hits(struct limit *limit, uint64_t blocks_count);

#endif
