/* sched: which queued choice goes next and to which pair of nodes: pure functions over facts.
 *
 *     uint64_t key = sched_queue_key(arrived_ns, priority);        // smaller goes first
 *     struct sched_pair pair;
 *     switch (sched_pick_pair(nodes, nodes_count, &job, &rules, now_ns, &pair)) {
 *     case SCHED_PICKED: ... pair.prefill, pair.decode, pair.local ...
 *
 * Rules: no clock, no state, no allocation; ties break by the lower index, so a replay decides the same. */
#ifndef TANDEM_ROUTER_SCHED_H
#define TANDEM_ROUTER_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/msg.h"
#include "router/core.h"

/* What a request waits for KV from P to one D: measured, or taken for it until it is. */
struct sched_rate {
    uint64_t bytes_per_s;     /* 0: never tried */
    uint64_t bytes, ns;       /* what was measured, older transfers counting less; 0: nothing was */
    uint64_t paused_until_ns; /* no backfill before: the last one did not come */
};

/* One node as the scheduler sees it. Sums are the router's own of what it sent there; what other
 * routers did shows in `blocks_free` of the node's last heartbeat. */
struct sched_node {
    enum role role;
    bool open; /* its session is up and it is not draining */
    uint32_t window_tokens,
        outstanding_tokens;     /* P: wanted at once, and sent and not yet computed */
    uint32_t outstanding_under; /* of these, of jobs that were below their tenant's share */
    uint32_t token_ns;          /* smoothed prefill time per token; 0: not known */
    uint32_t blocks_total;
    uint32_t kv_ahead;    /* tokens that it computes before it lets go of KV behind a window */
    uint32_t blocks_used; /* D: by this router's choices, to the next block */
    uint32_t blocks_free; /* D: free or cached, at the last heartbeat */
    uint32_t running, sequences_max;
    uint64_t full_until_ns;            /* D refused a reservation: not asked again before */
    uint64_t links[MSG_ADDRESSES_MAX]; /* that it has, by sched_link; 0 behind the last */
    uint64_t host;                     /* a hash of its name; 0: not told */
    const struct sched_rate *rates;    /* to each of the nodes, by index; NULL: all unknown */
};

struct sched_job {
    uint32_t tokens; /* prompt and forwarded ones: all that must be computed */
    uint32_t blocks; /* a decode node must have: for tokens and one more */
    bool prefill_only;
    uint32_t blocks_full; /* of a decode node, at the request's full length */
    uint64_t kv_bytes;    /* of its tokens: what may have to travel */
    bool no_token; /* nothing follows its prefill: where there is no P, a D does that and no more */
    /* leading tokens of it that each node is taken to hold, by index; NULL: none holds any */
    const uint32_t *cached;
    const uint32_t *pooled; /* the same, in their pools: what could go to a P; NULL: nothing may */
    /* with cached: what reading it from tiers adds, by index; NULL: nothing */
    const uint32_t *load_ns;
    uint64_t usual_bytes_per_s; /* with cached: of a pair that was never tried; 0: not known */
    struct kv_window window;    /* `blocks` are with it, blocks_full without */
    /* Of its tenant, if there are others: more than its share of the places is in use by it, or less. */
    bool over_share, under_share;
    uint32_t keep_percent; /* of each D's places and blocks, not for this job */
};

struct sched_rules {
    enum disaggregate disaggregate;
    uint64_t hand_over_ns; /* what a transfer adds to the first decoded token, smoothed */
    enum backfill_mode backfill;
};

/* So many tokens of its stream are reckoned with when a fuller batch is weighed against a prefix that is
 * there: each costs the time of one more row for each sequence of the batch. */
enum { SCHED_STREAM_TOKENS = 64 };
enum { SCHED_NODE_NONE = UINT32_MAX, SCHED_NODES_MAX = 1024 };
/* Leading tokens that go from a node which has them cached to a P, before that computes the rest. */
struct sched_fill {
    uint32_t tokens; /* 0: none do */
    uint32_t from;   /* index */
    uint64_t fill_ns,
        compute_ns; /* what P lacks of them: expected of bringing and of computing it */
};
struct sched_pair {
    uint32_t prefill, decode; /* indices, SCHED_NODE_NONE: not needed */
    bool local;               /* the decode node prefills it itself */
    struct sched_fill fill;   /* of `prefill` */
};

enum sched_answer {
    SCHED_PICKED,
    SCHED_NO_NODES,   /* a role that it needs is not in the cluster */
    SCHED_NO_PREFILL, /* no prefill node's window is open */
    SCHED_NO_DECODE,  /* no decode node has the memory now */
    SCHED_NEVER,      /* nor ever: all decode nodes' pools are smaller than the request */
};

/* "no decode node is ready" …, for a request that got this answer and waits. */
const char *sched_waiting_for(enum sched_answer answer);

/* Ageing is in the key: a priority level is worth SCHED_LEVEL_NS of waiting, so nobody waits for ever. */
#define SCHED_LEVEL_NS 1000000000ull
enum { SCHED_PRIORITY_MAX = 1000 };
uint64_t sched_queue_key(uint64_t arrived_ns, int32_t priority);

/* Two nodes whose addresses give one value can hand over KV: they have a kind of link in common, and for
 * shm, "shm:HOST-NAME", the host too. Never 0. */
uint64_t sched_link(const char *address);
bool sched_share_link(const struct sched_node *a, const struct sched_node *b);

/* Adds a transfer of so many bytes for which a request waited so long. */
void sched_rate_add(struct sched_rate *rate, uint64_t bytes, uint64_t ns);
/* Tokens that the node of this index would have to compute: one at least. */
uint32_t sched_left(const struct sched_job *job, uint32_t node);
/* How long what D does not hold of this job's KV is expected to keep it waiting between two nodes; `to` is an
 * index. A pair that was never tried is expected to be the best there is, on one host a little better still, so
 * that it is tried. */
uint64_t sched_transfer_ns(const struct sched_node *const *nodes, const struct sched_node *from,
                           uint32_t to, const struct sched_job *job);

/* From where P, an index, should get what it lacks of the prompt: bytes at the pair's rate and a hand-over against
 * the tokens at P's speed. Unless told otherwise nothing goes that would not be sooner there, nor where the speed
 * is not known; a job with a window has what it needs of its prompt nowhere in whole. */
struct sched_fill sched_fill(const struct sched_node *const *nodes, uint32_t nodes_count,
                             const struct sched_job *job, const struct sched_rules *rules,
                             uint32_t to);

/* How many a job of so many blocks takes of this node's at a time: fewer with a window. */
uint32_t sched_blocks_at_once(const struct sched_node *n, const struct sched_job *job,
                              uint32_t blocks);
/* Whether this D takes the job's blocks and one more sequence now. */
bool sched_has_room(const struct sched_node *n, const struct sched_job *job, uint64_t now_ns);

/* What all decode nodes have room for, of jobs of one keep_percent: looked at once, it tells of any number of
 * jobs whether they would get SCHED_NO_DECODE, whatever is cached of them (sched_no_room; false: who knows). */
struct sched_room {
    uint32_t blocks;  /* that one of them takes, at the most */
    uint32_t largest; /* index of the one with the largest pool; SCHED_NODE_NONE: there is none */
};
struct sched_room sched_room(const struct sched_node *const *nodes, uint32_t nodes_count,
                             uint32_t keep_percent, uint64_t now_ns);
bool sched_no_room(const struct sched_node *const *nodes, const struct sched_room *room,
                   const struct sched_job *job);

/* Nodes whose whole pool is smaller than the request are passed over. D: the room with the fewest sequences;
 * P: the open window with the least time until the prompt would be computed there and be on D. Among D's of
 * one load, the pair with the least of that time, then the most free blocks; of those that share a
 * link. What a node holds of the prompt it need not compute, nor be sent; what of that is in a tier takes load_ns.
 *
 * If a D holds some of it, load does not go first: the pair with the least cost is taken, the cost being
 * that time and what the streams of D's batch cost each other (SCHED_STREAM_TOKENS). So a later turn goes
 * where its KV is, and a prefix that many prompts share does not draw all of them to one node.
 *
 * Local, if there is no prefill node that D could be reached from, or by the rules: when computing what is
 * left of the prompt on D would cost it and its running streams less than the hand-over costs this request,
 * together with what P would have to compute beyond that, and its queue, if D holds more than P.
 * A tenant below its share has windows besides those of all, and a D keeps a part of itself from those above. */
enum sched_answer sched_pick_pair(const struct sched_node *const *nodes, uint32_t nodes_count,
                                  const struct sched_job *job, const struct sched_rules *rules,
                                  uint64_t now_ns, struct sched_pair *pair);

#endif
