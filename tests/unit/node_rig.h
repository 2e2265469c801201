/* node_rig: a node core on a bench: an engine whose KV cells are hash chains over the tokens that lead to
 * them, links that copy those cells, and everything the core said, kept for the test to read.
 *
 *     struct rig d;
 *     rig_open(&d, &(struct rig_options){.role = ROLE_DECODE, .blocks_count = 32});
 *     rig_say(&d, (struct msg){.kind = MSG_RESERVE, .reserve = {job, true}});
 *     rig_run(&d);                                   // steps and links until nothing moves
 *     const struct msg *m = rig_said(&d, MSG_FINISHED);
 *     rig_free(&d);                                  // asserts that every block came back
 *
 * A sampled token is a function of the cell of its row and of its index, so a stream that equals
 * rig_expect's went through right blocks, right positions and right replays, and no other.
 * Owner: the test's thread. */
#ifndef TANDEM_TESTS_NODE_RIG_H
#define TANDEM_TESTS_NODE_RIG_H

#include "node/core.h"

enum {
    RIG_ROUTERS_MAX = 4,
    RIG_LAYERS = 2,
    RIG_VOCAB = 211,
    RIG_STOP = 7, /* the stop id of rig_job */
    RIG_SAID_MAX = 4096,
    RIG_OPS_MAX = 1024,
    RIG_EVENTS_MAX = 256,
    RIG_STEPS_MAX = 8,
    RIG_TICKETS_MAX = 64,
    RIG_SLOTS = 24,
    RIG_STREAM_MAX = 512,
    RIG_HIDDEN = 5, /* numbers of an embedding */
    RIG_TIER_OPS_MAX = 48,
    RIG_KEPT_MAX = 256,
};
#define RIG_ROUTER_LIFE 0xa000u
#define RIG_NODE_LIFE 0xb000u

struct rig_options {
    enum role role;
    uint32_t blocks_count, context_max, chunk_tokens, steps_in_flight, sequences_max, routers_count;
    uint32_t slots_count;
    uint64_t reserve_timeout_ns, prefix_wait_ns;
    bool no_prefix_cache, tiers;
    bool tier_lists; /* LISTs are ops of the modelled tier too; else it refuses them */
    void (*block)(void *rig, const struct node_block *block); /* NULL: not wanted */
    uint64_t tier_deadline_ns;
    struct evict_config evict;
    uint32_t window; /* the model's */
};

struct rig_slot {
    uint32_t next_index; /* of the token that it samples next */
    uint32_t last_token;
};

struct rig_ticket {
    struct id128 id;
    bool live;
    uint32_t tokens_first, tokens_end;
    uint64_t deadline_ns; /* which stays; tests may move it */
    uint32_t blocks[64];
    uint32_t arrived[RIG_LAYERS]; /* tokens */
    uint32_t pushes_count;
};

/* Posted to the modelled tier, which keeps each block under a hash of all tokens up to its end. */
struct rig_tier_op {
    struct kv_tier_op op;
    uint32_t blocks[64], tokens[RIG_STREAM_MAX];
};
struct rig_kept {
    uint64_t key, hash;
    uint64_t cell[RIG_LAYERS][BLOCK_TOKENS];
};

struct rig {
    struct node_core *core;
    struct node_config config;
    struct rig *other; /* the receiver of this one's pushes, or NULL */
    uint64_t now_ns, wake_ns;
    uint64_t life;             /* of the node */
    uint64_t routers_replaced; /* each time: other processes are where they were */
    uint64_t epoch[RIG_ROUTERS_MAX];
    bool left;
    uint32_t lifelines_dialled, lifelines_dropped;

    struct arena arena;
    struct said {
        struct peer peer;
        struct msg m;
    } said[RIG_SAID_MAX];
    uint32_t said_count;

    struct step *step[RIG_STEPS_MAX]; /* submitted, oldest first */
    uint32_t steps_count, steps_done;
    uint32_t layers_done; /* of the oldest one */
    uint64_t *kv;         /* [layer][block][16] */
    struct rig_slot slot[RIG_SLOTS];

    struct xfer_op op[RIG_OPS_MAX]; /* posted, not yet carried out */
    uint32_t ops_count, ops_total, pushes_total;
    struct rig_ticket ticket[RIG_TICKETS_MAX];
    struct xfer_event event[RIG_EVENTS_MAX]; /* to be told to the core */
    uint32_t events_count;

    struct rig_tier_op tier_op[RIG_TIER_OPS_MAX]; /* posted, not yet carried out */
    uint32_t tier_ops_count, tier_ops_total;
    struct rig_kept kept[RIG_KEPT_MAX];
    uint32_t kept_count;
    bool tier_refuses; /* what is posted */
    bool tier_lists;
    bool tier_more; /* a LOAD that is given some of what is there is told that there is more */
};

void rig_new(struct rig *r, const struct rig_options *o);
void rig_free(struct rig *r);                  /* ends what runs, asserts that nothing is held */
void rig_join(struct rig *r, uint32_t router); /* that router says WELCOME */
/* A node that has joined router 0, and two of them of which `p` pushes to `d`. */
void rig_open(struct rig *r, const struct rig_options *o);
void rig_open_pair(struct rig *p, struct rig *d, const struct rig_options *prefill_node,
                   const struct rig_options *decode_node);
void rig_free_pair(struct rig *p, struct rig *d);
/* A message of that router in its session. */
void rig_tell(struct rig *r, uint32_t router, const struct msg *m);
void rig_lose(struct rig *r, uint32_t router); /* its lifeline ends */
void rig_reborn(struct rig *r);                /* a new life; routers have to join again */
/* The last message of this kind since rig_forget, or NULL. */
const struct msg *rig_said(const struct rig *r, enum msg_kind kind);
uint32_t rig_said_count(const struct rig *r, enum msg_kind kind);
void rig_forget(struct rig *r);

bool rig_step(struct rig *r);                        /* runs the oldest step: layers, then done */
bool rig_step_layers(struct rig *r, uint32_t count); /* only so many more layers of it */
bool rig_step_done(struct rig *r, enum err status);
bool rig_link(struct rig *r);  /* carries out the oldest op */
bool rig_event(struct rig *r); /* tells the core the oldest event of the link */
/* Carries out the oldest op of the tier, of which at most `count` blocks; it has each op's blocks held. */
bool rig_tier_some(struct rig *r, uint32_t count);
bool rig_tier(struct rig *r);
void rig_post_event(struct rig *r, const struct xfer_event *e);
void rig_run(struct rig *r); /* this one and `other`, until nothing moves; audits after each */
void rig_advance(struct rig *r, uint64_t ns); /* time passes, timers fire on the way */

uint64_t *rig_cell(struct rig *r, uint32_t layer, uint32_t block, uint32_t position);
struct node_counts rig_counts(const struct rig *r);
/* Messages of router 0. */
void rig_say(struct rig *r, struct msg m);
void rig_reserve(struct rig *r, const struct job *job, bool local);
struct msg rig_prefill_msg(const struct job *job, struct id128 ticket, uint32_t held_tokens);
void rig_prefill(struct rig *r, const struct job *job, struct id128 ticket, uint32_t held_tokens);
void rig_acknowledge(struct rig *r, struct job_key key);
void rig_cancel(struct rig *r, struct job_key key);
/* The last FAILED says this, with a reason. */
void rig_assert_failed(const struct rig *r, enum err error, bool retryable);
/* The link has this end for the first live ticket of `r`, which the core learns by rig_event. */
void rig_end_ticket(struct rig *r, const struct xfer_event *e);

/* A job with a prompt of count tokens drawn from `seed`; the first shared ones from `family`. */
struct rig_prompt {
    uint32_t seed, family, shared_count, count, tokens_max;
};
struct job rig_job(uint32_t id, const struct rig_prompt *p);
extern uint32_t
    rig_model_window; /* of the node that was opened last; all of a test have one model */
/* The whole stream of that job. */
uint32_t rig_expect(const struct job *job, uint32_t context_max, uint32_t *tokens,
                    enum finish *finish);
/* The result of a job that scores or embeds; how many numbers it has. */
uint32_t rig_expect_values(const struct job *job, float *values);
/* What the core told in TOKENS of this job, in one piece: asserts that no index is missing. */
uint32_t rig_stream(const struct rig *r, struct job_key key, uint32_t *tokens);

#endif
