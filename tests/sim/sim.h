/* sim: a whole cluster on virtual time: the production router and node cores, clients, a network that
 * delays, cuts and repeats, processes that crash, freeze and leave, and an engine that takes modelled
 * time and whose tokens depend on every byte of KV that a sequence should have.
 *
 *     build/tests/tandem-sim --seeds 1 10000        # each seed is one run; the first failing one is printed
 *     build/tests/tandem-sim --seed 4711 --trace    # the same run again, event by event
 *     build/tests/tandem-sim --flood --seeds 1 50   # a tenant that asks for little, alone and beside a flood
 *     build/tests/tandem-sim --pressure --seeds 1 500     # long generations, pools of half of what they need
 *
 * What is checked, at every event or at the end of a run:
 *   - accounting: node_core_audit, router_core_audit, the pools' sums;
 *   - every request ends once, with exactly the tokens that an undisturbed run gives, or with a reason;
 *     nothing is forwarded twice or out of order;
 *   - a sampled token is a hash of the KV of all positions before it, read through the block table when
 *     the step ends, so that a block that was freed, reused, matched or sent too early shows;
 *   - runs without faults end without errors;
 *   - over a long run every entry (state, event) of the router's state machine is met that can be;
 *   - at the end no node holds a block for anybody, and no router remembers a live request.
 *
 * Owner: one thread. Everything random comes from the seed. */
#ifndef TANDEM_TESTS_SIM_SIM_H
#define TANDEM_TESTS_SIM_SIM_H

#include "common/clock.h"
#include "common/heap.h"
#include "common/list.h"
#include "node/core.h"
#include "router/state.h"

enum {
    SIM_ROUTERS_MAX = 2,
    SIM_NODES_MAX = 6,
    SIM_CLIENTS_MAX = 3,
    SIM_PROCS_MAX = SIM_ROUTERS_MAX + SIM_NODES_MAX + SIM_CLIENTS_MAX,
    SIM_REQUESTS_MAX = 24,
    SIM_PROMPT_MAX = 120,
    SIM_TOKENS_MAX = 160,
    SIM_TOKENS_USUAL = 48,
    SIM_CHOICES_MAX = 4,
    SIM_VOCAB = 97,
    SIM_HIDDEN = 3, /* numbers of an embedding */
    SIM_EOS = 0,
    SIM_CONTEXT = 192,
    SIM_LAYERS = 2,
    SIM_TICKETS_MAX = 256,
    SIM_PREEMPTIONS_MAX = 5, /* of one sequence; head room doubles with each */
    SIM_CANCELS_MAX = 64,
    SIM_KEPT_MAX = 512,
};

enum sim_tiers { SIM_TIERS_NONE, SIM_TIERS_OWN, SIM_TIERS_SHARED };

/* A block in a modelled tier. */
struct sim_kept {
    uint64_t key, hash, cell[SIM_LAYERS][BLOCK_TOKENS];
};

enum proc_kind { PROC_ROUTER, PROC_NODE, PROC_CLIENT };

/* What a device remembers of a sequence slot. */
struct sim_slot {
    uint64_t seed;
    uint32_t choice, index, last;
};

/* One side of a transfer on the modelled link thread. */
struct sim_ticket {
    struct id128 ticket;
    bool used, sender, opened; /* opened: D has heard of it from P */
    uint32_t other;            /* the other side's process */
    uint32_t first, end;
    uint32_t blocks[SIM_CONTEXT / BLOCK_TOKENS + 1];
    uint32_t blocks_count;
    uint32_t arrived[SIM_LAYERS]; /* tokens */
    uint64_t deadline_ns;
};

struct sim_proc {
    enum proc_kind kind;
    uint32_t index;
    uint32_t life; /* goes up with each crash: events of an earlier life find nobody */
    bool alive, leaving;
    uint64_t frozen_until_ns, wake_ns;
    char name[16], address[32];
    const char *addresses[1]; /* of its link, as its hello names it */
    struct router_core *router;
    struct node_core *node;
    enum role role;
    uint32_t layers_done;
    struct job_key first; /* who was served first at the last audit, how far it was, since when */
    uint64_t first_progress, first_since_ns;
    /* a node's device */
    uint64_t *kv; /* [blocks][layers][16] */
    uint32_t blocks_count;
    struct sim_slot *slot;
    struct job_key cancelled[SIM_CANCELS_MAX]; /* that it was told of in this life; a ring */
    uint32_t cancels_count;
    struct step *queue[4];
    uint32_t queue_count, layer;
    uint64_t began_ns; /* its first */
    bool sick;         /* its next layer fails, and all that come after it */
    struct sim_ticket ticket[SIM_TICKETS_MAX];
    struct sim_client *client;
    struct sim_kept *store; /* its own tier, over crashes; NULL: nothing is there yet */
};

/* The wire between a dialling process (node, client) and a router. */
struct sim_conn {
    uint32_t cuts;
    uint64_t cut_ns;
    uint64_t last_ns[2];     /* messages of one direction keep their order */
    struct peer router_peer; /* what the router calls it; 0: not met yet */
};

/* One sample: what came and what an undisturbed run gives. */
struct sim_choice {
    uint32_t got[SIM_TOKENS_MAX], got_count;
    uint32_t want[SIM_TOKENS_MAX], want_count;
    enum finish want_finish, finish;
    bool ended;
};

enum sim_request_state { REQ_IDLE, REQ_SENT, REQ_ACCEPTED, REQ_ENDED };
struct sim_request {
    enum sim_request_state state;
    uint32_t prompt[SIM_PROMPT_MAX];
    uint32_t prompt_count, tokens_max, tokens_min;
    struct kv_window window, asked; /* what it sees; what it asks for */
    uint64_t seed, submit_ns, cancel_ns, deadline_ms;
    int32_t priority;
    const char *tenant; /* NULL: nobody's */
    struct id128 id;
    uint32_t attempt;
    uint64_t ref;
    struct sim_choice choice[SIM_CHOICES_MAX];
    uint32_t choices_count;
    enum job_kind kind;
    float values[SIM_PROMPT_MAX], want_values[SIM_PROMPT_MAX]; /* of one that scores or embeds */
    uint32_t values_count, want_values_count;
    bool cancelled;
    char reason[128];
    uint64_t sent_ns, heard_ns; /* of a flood */
    uint32_t rounds;
};

struct sim_client {
    struct session session;
    uint32_t router;
    uint64_t ref;
    struct sim_request request[SIM_REQUESTS_MAX];
    uint32_t requests_count;
};

/* flood.c: client 0 is a tenant that asks for little; the others are one that asks without end. */
enum sim_flood { SIM_FLOOD_NONE, SIM_FLOOD_ALONE, SIM_FLOOD_BESIDE };
enum { SIM_FLOOD_TIMES_MAX = 1 << 17 };
struct sim_flood_times { /* of the tenant that asks for little */
    uint64_t first_ns[SIM_FLOOD_TIMES_MAX], gap_ns[SIM_FLOOD_TIMES_MAX];
    uint32_t firsts_count, gaps_count;
    uint64_t others_tokens, light_tokens; /* that came */
    uint32_t light_requests, others_requests;
    uint64_t held_steps;
};

struct sim_options {
    uint64_t seed;
    bool trace, faults, pressure;
    enum sim_flood flood;
    uint32_t flood_steps;  /* that a flooded node has in flight */
    uint32_t flood_tokens; /* of an answer to the tenant that asks for little */
};

struct sim_reached {
    uint64_t count[CHOICE_STATES][CHOICE_EVENTS];
};

struct sim_totals {
    struct sim_reached reached;
    uint64_t events, requests, tokens, errors, cancelled, retries, deaths, preemptions,
        cached_tokens, gaps, duplicates, faults, forks, copied_blocks, prefix_hits,
        prefix_hit_tokens, prefix_false, prefix_gaps, returned_cached, returned_computed,
        handed_back, backfills, backfilled_tokens, backfills_failed;
    uint64_t tier_tokens, tier_stores, tier_late, tier_skipped;
    uint64_t held_steps;
    uint32_t preemptions_most; /* of one sequence */
    struct sim_flood_times *flood;
};

struct sim {
    struct sim_options options;
    uint64_t now_ns, draws, events_count;
    struct heap events;
    struct sim_proc proc[SIM_PROCS_MAX];
    uint32_t procs_count, routers_count, nodes_count, clients_count;
    struct sim_conn conn[SIM_PROCS_MAX][SIM_ROUTERS_MAX];
    uint64_t link_last_ns[SIM_PROCS_MAX][SIM_PROCS_MAX];
    uint32_t peers_given;
    uint64_t incarnations;
    struct arena arena; /* of the message being delivered */
    struct buf wire;
    uint32_t chunk, batch, blocks;
    uint32_t steps; /* of a node, submitted at once */
    uint32_t tenants, tenant_percent_max;
    uint32_t window; /* the model's; 0: all */
    uint64_t net_ns, jitter_ns, layer_ns, op_ns, faults_end_ns;
    uint32_t rows_free; /* that a step's layer computes in twice the time of none */
    uint64_t queue_timeout_ns, reserve_timeout_ns, stall_timeout_ns; /* of routers; 0: the usual */
    uint32_t duplicate_percent, slow_percent; /* of the messages: come twice, come late */
    bool prefix_cache, forks;
    uint32_t news_lost_percent; /* of BLOCKS, both ways */
    uint64_t prefix_index;
    enum sim_tiers tiers;
    struct sim_kept *shared_store;
    enum disaggregate disaggregate;
    enum preempted preempted;
    struct sim_totals *totals;
};

/* world.c */
uint32_t sim_draw(struct sim *s, uint32_t bound); /* 0 … bound - 1 */
uint64_t sim_draw_ns(struct sim *s, uint64_t from_ns, uint64_t to_ns);
typedef void sim_event_fn(struct sim *s, struct sim_proc *p, void *data);
/* Calls fn at when_ns unless `p` has crashed by then; postponed while it is frozen. `data` is freed. */
void sim_at(struct sim *s, uint64_t when_ns, struct sim_proc *p, sim_event_fn *fn, void *data);
void sim_send(struct sim *s, struct sim_proc *from, struct sim_proc *to, const struct msg *m);
void sim_trace(struct sim *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void sim_fail(struct sim *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* main.c: how the run under way is had again */
void sim_note_run(const struct sim_options *options);
void sim_say_replay(void);
/* Replaces the time at which the process's timer runs. ctx is the process: the cores' out.wake_at. */
void sim_wake_at(void *ctx, uint64_t when_ns);
/* The world and process behind a core's out.ctx. */
struct sim *sim_of(void *ctx, struct sim_proc **p);
struct sim_proc *sim_router(struct sim *s, uint32_t index);
void sim_crash(struct sim *s, struct sim_proc *p);
void sim_run(const struct sim_options *options, struct sim_totals *totals);

/* device.c */
void device_open(struct sim *s, struct sim_proc *p);
void device_close(struct sim *s, struct sim_proc *p);
void device_submit(void *ctx, struct step *step);
void device_xfer(void *ctx, const struct xfer_op *op);
uint64_t *device_block(struct sim_proc *p, uint32_t block); /* [SIM_LAYERS][BLOCK_TOKENS] */
void device_peer_lost(struct sim *s, struct sim_proc *p);   /* the links of everybody to p break */
void device_cut(struct sim *s, struct sim_proc *a, struct sim_proc *b);
uint32_t device_token(uint64_t seed, uint32_t choice, uint32_t index, uint64_t kv_sum);
uint64_t device_content(uint32_t token, uint32_t position, uint32_t layer);
uint64_t device_fold(uint64_t sum, uint64_t content);
bool device_sees(struct kv_window w, uint32_t row, uint32_t token);
/* What a row is worth, by the KV up to it: as score of the token behind it, as number i of its state. */
float device_score(uint64_t kv_sum, uint32_t next);
double device_hidden(uint64_t kv_sum, uint32_t i);

/* tier.c */
enum err device_tier(void *ctx, const struct kv_tier_op *op);

/* client.c */
void client_open(struct sim *s, struct sim_proc *p);
void client_on_message(struct sim *s, struct sim_proc *p, uint32_t router, const struct msg *m);
void client_on_lost(struct sim *s, struct sim_proc *p, uint32_t router);
void client_on_timer(struct sim *s, struct sim_proc *p);
bool client_is_done(const struct sim_client *c);
void client_make_oracle(struct sim_request *r, uint32_t choice);
void client_check(struct sim *s, const struct sim_client *c);

/* flood.c */
void flood_build(struct sim *s, uint32_t *prefills, uint32_t *decodes);
const char *flood_tenant(const struct sim *s, const struct sim_proc *p); /* NULL: no flood */
void flood_make(struct sim *s, const struct sim_proc *p, uint32_t index, struct sim_request *r);
void flood_heard(struct sim *s, const struct sim_proc *p, struct sim_request *r, uint32_t tokens);
/* A request has ended; true: it begins anew. */
bool flood_again(struct sim *s, const struct sim_proc *p, struct sim_request *r);
/* Undisturbed and flooded runs of these seeds; false: the tenant that asks for little waited too long. */
bool flood_compare(uint64_t first, uint64_t count);

/* reached.c: which entries of the router's state machine were met */
void reached_add(struct sim_reached *r, const struct router_core *core);
/* Says how many were met, and which are not as the table has it; false: one is not. `all`: none may be
 * missing. */
bool reached_report(const struct sim_reached *r, bool all);

#endif
