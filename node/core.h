/* node core: everything that a prefill or decode node decides, without I/O: sessions with routers,
 * sequences, block accounting, what the next step contains, which KV moves.
 *
 *     struct node_core *core;
 *     if ((e = node_core_new(&core, &config, &out)) != OK) return e;
 *     node_core_start(core, now);
 *     node_core_on_message(core, now, peer, &m);       // the shell: from each router's channel
 *     node_core_on_lifeline(core, now, peer, up);
 *     node_core_on_engine(core, now, &engine_event);
 *     node_core_on_xfer(core, now, &xfer_event);
 *     node_core_on_link(core, &link_row);
 *     node_core_on_tier(core, now, &tier_event);
 *     node_core_on_timer(core, now);                   // at the time last given to out.wake_at
 *     node_core_drain(core, now);                      // SIGTERM: leave when all is finished
 *
 * One core, two policies (struct node_policy): prefill (window, chunking, pushing) and decode
 * (reservations, batching, preemption). The decode policy can also prefill (RESERVE with local), and
 * the prefill policy samples first tokens.
 *
 * Rules: every input returns after having called `out` any number of times; the shell must not call
 * the core from inside `out`. The core never reads a clock, a socket, a file or a random source: ids
 * that must be unpredictable (tickets) come from config.ticket_seed, a number that the shell drew at
 * random, through Philox. Nothing is allocated per token; per job from preallocated slots.
 * Owner: the loop thread. The simulator binds the same core to virtual time. */
#ifndef TANDEM_NODE_CORE_H
#define TANDEM_NODE_CORE_H

#include "common/buf.h"
#include "engine/step.h"
#include "kv/pool.h"
#include "kv/prefix.h"
#include "kv/tiers.h"
#include "node/plan.h"
#include "proto/msg.h"
#include "proto/peer.h"
#include "proto/session.h"
#include "xfer/xfer.h"

struct node_core;

struct node_block {
    bool stored; /* else it is gone */
    enum block_tier tier;
    uint64_t hash; /* common/prefix_hash.h */
    /* Stored, and in the prefix cache, as all of the pool are and most that a tier was given: */
    bool first;             /* of its prompt */
    uint64_t parent;        /* the hash of the block before it, if there is one */
    const uint32_t *tokens; /* BLOCK_TOKENS; until the call returns. NULL: not in the cache */
};

struct node_out {
    void *ctx;
    /* Queues a message; `m` is copied before this returns. A message that cannot be sent is lost: the
     * session's end will tell. */
    void (*send)(void *ctx, struct peer peer, const struct msg *m);
    void (*wake_at)(void *ctx, uint64_t when_ns); /* replaces the earlier time */
    void (*submit)(void *ctx, struct step *step); /* answered by events with its id */
    void (*xfer)(void *ctx, const struct xfer_op *op);
    /* Dialer side of sessions: connect the lifeline that a WELCOME named, or give it up. */
    void (*lifeline_dial)(void *ctx, struct peer peer, const char *address, struct id128 key);
    void (*lifeline_drop)(void *ctx, struct peer peer);
    void (*left)(void *ctx); /* drained: the shell may exit */
    /* Copied before this returns. OK: one event with its id follows; else nothing was done. Not called
     * without config.tiers. */
    enum err (*tier)(void *ctx, const struct kv_tier_op *op);
    /* A block has entered or left a tier; called from within, NULL: not wanted. */
    void (*block)(void *ctx, const struct node_block *block);
};

struct node_config {
    enum role role;
    struct msg_hello hello; /* what it says of itself; strings live as long as the core */
    uint64_t incarnation, ticket_seed;
    struct session_limits session;
    uint32_t routers_count; /* peers 1 … routers_count are the routers, dialled by the shell */
    uint32_t blocks_count, slots_count, context_max, vocab_count;
    uint32_t hidden_count; /* numbers of an embedding */
    struct step_limits limits;
    uint32_t steps_in_flight;    /* the backend's queue depth */
    uint32_t chunk_tokens;       /* prefill tokens per step */
    uint32_t sequences_max;      /* in a decode batch */
    uint64_t reserve_timeout_ns; /* a reservation whose KV has not come by then fails: 30 s */
    uint64_t prefix_wait_ns;     /* how long a job waits for a shared prefix being computed: 2 s */
    bool kv_windows;             /* its device knows windows of a request's own */
    bool prefix_cache;
    enum preempted preempted;  /* how they come back */
    struct evict_config evict; /* which of its blocks go first */
    const char *link;          /* forces "shm" or "tcp"; "" : best */
    uint32_t tombstones_max;   /* 4096 */
    bool tiers;                /* behind the prefix cache, which must be on */
    uint64_t tier_deadline_ns; /* by which a prompt may be later than without them: 20 ms */
};

enum err node_core_new(struct node_core **core, const struct node_config *config,
                       const struct node_out *out);
void node_core_free(struct node_core *core); /* no step may be running, no ticket live */
void node_core_start(struct node_core *core, uint64_t now_ns);

void node_core_on_message(struct node_core *core, uint64_t now_ns, struct peer peer,
                          const struct msg *m);
void node_core_on_lifeline(struct node_core *core, uint64_t now_ns, struct peer peer, bool up);
void node_core_on_engine(struct node_core *core, uint64_t now_ns, const struct engine_event *event);
void node_core_on_xfer(struct node_core *core, uint64_t now_ns, const struct xfer_event *event);
/* How a link does has changed: the routers are told with the next heartbeats. */
void node_core_on_link(struct node_core *core, const struct xfer_link_row *row);
void node_core_on_tier(struct node_core *core, uint64_t now_ns, const struct kv_tier_event *event);
void node_core_on_timer(struct node_core *core, uint64_t now_ns);
/* The shell noticed that this process slept for longer than session.dead_ns: every session and every
 * job of this life is over; begin anew as `incarnation` before anything else is sent. */
void node_core_reborn(struct node_core *core, uint64_t now_ns, uint64_t incarnation);
void node_core_drain(struct node_core *core, uint64_t now_ns);
/* How the tiers do, for reports and the page of metrics. */
void node_core_tier_stats(struct node_core *core, const struct kv_tiers_stats *stats);
/* Layers computed so far, for heartbeats. */
void node_core_progress(struct node_core *core, uint64_t layers);
/* Callbacks of the shell's loop that took longer than they may, likewise. */
void node_core_slow_callbacks(struct node_core *core, uint64_t count);

/* For status, tests and the simulator. */
struct node_counts {
    struct kv_pool_counts blocks;
    uint32_t jobs_live, running, waiting;
    uint64_t tokens_generated, prompt_tokens, cached_tokens, steps, preemptions, stale_messages;
    /* As in struct node_load: */
    uint64_t held_tokens, wasted_slots, contiguous_slots;
    uint64_t held_tokens_peak, wasted_slots_peak, contiguous_slots_peak;
    uint64_t blocks_full_peak; /* of what all that were there needed at their full length */
    uint64_t forks, fork_shared_blocks, fork_copied_blocks;
    uint64_t scores, embeddings; /* jobs that gave such */
    uint64_t returned_cached_tokens, returned_computed_tokens, handed_back;
    uint32_t preemptions_most; /* of one sequence */
    uint64_t refused_jobs;     /* for want of blocks */
    uint64_t held_steps;       /* that began later, for a stream that was about to come */
    /* LOADs and STOREs asked for, LOADs that ended behind their deadline, tokens that they brought. */
    uint64_t tier_loads, tier_stores, tier_late, tier_loaded_tokens;
    uint64_t
        tier_skipped_tokens; /* of prompts that were computed up to a part of a window that had come */
    uint64_t window_blocks;                /* let go of because they left their sequence's window */
    uint64_t backfills, backfilled_tokens; /* prefixes that came from other nodes' caches */
};
void node_core_counts(const struct node_core *core, struct node_counts *counts);
/* The page of GET /metrics (docs/metrics.md); `links` as the shell has them. */
enum err node_core_metrics(struct node_core *core, const struct xfer_stats *links,
                           struct buf *page);
/* NULL: routers may send it jobs; else why none does. */
const char *node_core_missing(const struct node_core *core);
/* CHECKs every invariant: pool audit, each live job's blocks held as its state says, no step naming a
 * free block. O(blocks). */
void node_core_audit(const struct node_core *core);
/* For whoever plays the device and the link: may they touch this block now, is this job alive here. */
uint32_t node_core_holds(const struct node_core *core, uint32_t block, enum hold kind);
bool node_core_knows(const struct node_core *core, struct job_key key);
/* Who is served before all others here, and how far it is: tokens computed and drawn. False: nobody waits or
 * runs. */
bool node_core_first(const struct node_core *core, struct job_key *key, uint64_t *progress);

#endif
