/* state: the node core's parts, seen by node/'s own files only; others use node/core.h.
 *
 *     core.c       inputs, one turn, counts, audit
 *     sessions.c   a session per router, heartbeats, the live set
 *     jobs.c       messages about jobs: checked and turned into sequences; tombstones in tombs.c
 *     sequence.c   the state machine of a sequence
 *     queue.c      who gets blocks, and when: starting, growing, preempting
 *     accounts.c   blocks: who holds what, prefix cache
 *     fork.c       samples that begin with the blocks of another one of their request
 *     room.c       who is taken, and taken back, by how long sequences are expected to become (lengths.c)
 *     waste.c      what memory holds, and what contiguous memory would
 *     fair.c       the order of jobs, among tenants
 *     flight.c     steps: what goes in, what comes out; pace.c when
 *     encode.c     jobs that score or embed
 *     handover.c   ops and holds of a transfer
 *     backfill.c   cached blocks that go from node to node
 *     tier.c       what is loaded from tiers and stored in them; tier_report.c how they do
 *     inventory.c  what tiers hold, for the routers
 *     links.c      how the links to other nodes do, for the routers
 *     kv_report.c  what the cache holds, for who asks; kv_usage.c how well it is used
 *     events.c     which blocks entered and left the cache, for the routers
 *     pins.c       prompts that routers want to stay cached
 *     plan.c       pure decisions
 *     meters.c     the page of metrics
 *
 * Rules: a sequence's index is its slot in the engine. Its key leaves the map when its job is over for
 * the router; the slot itself stays taken (SEQ_ENDING) until no submitted step and no ticket refers
 * to it. Whoever changes a sequence's state is in sequence.c. Owner: the loop thread. */
#ifndef TANDEM_NODE_STATE_H
#define TANDEM_NODE_STATE_H

#include "common/clock.h"
#include "common/heap.h"
#include "common/list.h"
#include "common/map.h"
#include "common/metrics.h"
#include "node/core.h"
#include "node/lengths.h"
#include "node/kv_report.h"
#include "node/kv_usage.h"
#include "node/plan.h"

enum {
    NODE_ROUTERS_MAX = 64,
    NODE_MISMATCHES_MAX = 2,    /* heartbeats whose live set differs before lists are compared */
    NODE_RESEND_TOKENS = 512,   /* tokens in one message */
    NODE_WASTE_STEPS = 16,      /* from one look at what memory is wasted to the next */
    NODE_HOLLOW_TIMES = 8,      /* with a window: prompts are known of so many times the pool */
    NODE_EXPIRED_MAX = 64,      /* blocks let go of in one turn because their time is over */
    NODE_PINS_MAX = 256,        /* of all routers */
    NODE_LINKS_MAX = 128,       /* to other nodes, of which is told: those that changed last */
    NODE_LINKS_TOLD = 8,        /* with one heartbeat */
    NODE_LOADS_MAX = 16,        /* from tiers, at once */
    NODE_LOAD_PART = 4,         /* of the deadline is left, or a prompt asks for no more */
    NODE_STORES_MAX = 32,       /* into tiers, at once, */
    NODE_STORE_BLOCKS = 32,     /* each of so many blocks */
    NODE_ARENA_KEPT = 256 << 10 /* a slot's memory beyond this goes back when its job ends */
};
#define NODE_REPEAT_NS NS_PER_S         /* an unacknowledged FINISHED is told again */
#define NODE_STORE_PAUSE_NS NS_PER_S    /* after one that failed */
#define NODE_REMIND_NS NS_PER_S         /* between two STOREs of what the tiers were given before */
#define NODE_UNACKED_NS (60 * NS_PER_S) /* and given up */

enum seq_state {
    SEQ_FREE,
    SEQ_WAITING,  /* a prompt in the queue without blocks; preempted ones too */
    SEQ_PREFILL,  /* all blocks in hand, chunks are being computed */
    SEQ_HANDOVER, /* P: computed and committed, the receiver has not confirmed yet */
    SEQ_RESERVED, /* D: blocks in hand, their KV is on the way */
    SEQ_RUNNING,  /* D: in the decode batch */
    SEQ_FINISHED, /* ended; tokens are kept until the router acknowledges */
    SEQ_ENDING,   /* over for everybody but steps and links that still refer to it */
    SEQ_STATES
};
enum seq_event {
    SEQ_EV_START,     /* blocks are in hand: compute */
    SEQ_EV_COMPUTED,  /* the whole prompt is, and a token was sampled if one was wanted */
    SEQ_EV_COMMITTED, /* D: KV and the first token are here */
    SEQ_EV_DELIVERED, /* P: the receiver has it */
    SEQ_EV_ENDED,     /* its last token was drawn */
    SEQ_EV_PREEMPT,   /* its blocks are wanted by one that is served before it */
    SEQ_EV_ACK,
    SEQ_EV_TIMER,
    SEQ_EV_FAIL,   /* tell the router and end */
    SEQ_EV_FORGET, /* end without a word: the router is gone or does not know it */
    SEQ_EV_LET_GO, /* a step or the link has let go of it */
};
enum { SEQ_EVENTS = SEQ_EV_LET_GO + 1 };
enum seq_kind {
    SEQ_REMOTE, /* RESERVE: prefilled elsewhere */
    SEQ_LOCAL,  /* RESERVE with local */
    SEQ_PUSH,   /* PREFILL with a ticket */
    SEQ_PLAIN,  /* PREFILL without one: ends with its first token */
};

struct seq_top {
    uint32_t token;
    float logprob;
};

struct sequence {
    uint32_t slot;
    enum seq_state state;
    enum seq_kind kind;
    uint32_t router; /* index */
    uint64_t order;  /* see fair.c */
    uint64_t born_ms;

    /* The job. tokens[] is prompt, forwarded and generated ones in a row; job's pointers point here. */
    struct arena arena;
    struct job job;
    struct job setup; /* as the engine's slot was last made from it */
    uint32_t *tokens;
    uint32_t tokens_capacity;
    uint32_t generated_count; /* forwarded ones included */
    uint32_t generated_max;   /* where length ends it */
    uint32_t told_count;      /* generated tokens that the router was told */
    float *logprob;           /* of generated ones not forwarded; NULL: not asked for */
    struct seq_top *top;      /* [tokens][tops_count] or NULL */
    float *values;            /* of a job that scores or embeds; NULL: it generates */
    uint32_t values_count;
    double *hidden_sum; /* [hidden_count], of one that embeds */
    enum finish finish; /* FINISHED, or about to */

    /* Blocks. */
    struct block_id *table;
    uint32_t table_count, table_capacity;
    enum hold hold;          /* of table[]: RESERVE or SEQUENCE */
    struct kv_window window; /* its job's, or its model's */
    uint32_t gone;           /* table[] is BLOCK_NONE for tokens [window.sinks, gone): let go of */
    uint32_t ahead;          /* tokens that submitted steps may compute at once */
    /* of a fork, held like table[]: the step that names it first copies it */
    struct block_id copy_from;
    uint32_t kv_count;                     /* leading tokens whose KV is in the table's blocks */
    uint32_t planned;                      /* the same after all submitted steps */
    uint32_t goal;                         /* PREFILL: tokens to compute before one is sampled */
    uint32_t in_flight, samples_in_flight; /* submitted steps that name it; that sample for it */
    bool slot_made;                        /* the engine knows this life of the slot */
    bool preempt;                          /* as soon as no step names it */
    bool preempted;                        /* was, at least once */
    bool lacks_room;                       /* WAITING: its turn came, and there was none */
    uint32_t preemptions;                  /* on all nodes */
    uint32_t shared_count; /* blocks still in table[] that others held, too, when it was opened */
    bool fork;             /* waits for the KV of choice `sibling` */
    uint32_t sibling;

    /* Transfer. */
    struct id128 ticket;
    bool ticket_live;              /* a final event is to come */
    bool ticket_ended;             /* RELEASE or CANCEL was posted */
    uint32_t held_tokens;          /* of the sequence: D has them */
    uint32_t wire_first, wire_end; /* the ticket's tokens (handover.c) */
    struct block_id *moved; /* blocks with HOLD_TRANSFER, from wire_first on; BLOCK_NONE: not yet */
    uint32_t moved_count;
    uint32_t *push_layer, *push_computed_us; /* of push i at [i % XFER_PUSHES_TOLD] */
    uint32_t pushes_count;
    uint64_t arriving_ns; /* when XFER_ARRIVING came; 0: not yet */

    /* Time. */
    struct heap_entry timer;
    uint64_t job_deadline_ns; /* the request's */
    uint64_t state_deadline_ns;
    uint64_t prefix_deadline_ns; /* until then it may wait for a prefix being computed */
    uint64_t accepted_ns, began_ns, computed_ns, finished_ns;
    uint32_t cached_tokens;
    /* until then it may wait for a tier; 0: it has not yet; later by what computing what came
     * would have taken */
    uint64_t tier_deadline_ns;
    bool tier_asked;             /* for a LOAD of its own, since it was queued */
    uint32_t skip_from, skip_to; /* tokens of its window that came from a tier; skip_to 0: none */

    struct list_link place; /* in core.queue or core.running, sorted */
    struct list_link dirty; /* in core.dirty: tokens to be told */
    uint32_t seen;          /* stamp of the LIVE being compared */
};

struct flight_part {
    struct sequence *s;
    uint32_t first, rows_count;
    bool sample;
};
/* A step and what it was made for. Blocks in step->table have one HOLD_STEP per entry. */
struct flight {
    struct step *step;
    struct flight_part *part;
    bool busy;
};

/* What the tier thread reads or fills; all of blocks[] have one HOLD_TRANSFER. */
struct tier_op {
    uint64_t id; /* 0: unused */
    enum kv_tier_op_kind kind;
    uint64_t salt, deadline_ns;
    struct kv_owner owner; /* LOAD: whose blocks they will be: the prompt's that asked first */
    struct arena arena;
    uint32_t *tokens; /* LOAD: of all blocks[]; STORE: of rest_count blocks of a prompt */
    struct block_id *blocks;
    uint32_t rest_count;        /* STORE: of which some are to be stored when this one ends */
    uint32_t held_count, count; /* of blocks[]; the op is about the last ones of them */
    struct kv_window window;    /* of the prompt */
    uint32_t
        end; /* LOAD with a window: blocks that the prompt has, then those that it is loaded for, */
    uint32_t filled; /* ... and how many of those that they want have come */
};

struct router_link {
    struct session session;
    struct peer peer;
    bool lifeline; /* dialled */
    uint32_t live_count;
    uint64_t live_hash;
    uint32_t mismatches;
    uint64_t links_told;    /* up to this change of node_core.link */
    uint64_t blocks_number; /* of the last BLOCKS */
    uint32_t blocks_next; /* of the pool, that it was not told of yet; UINT32_MAX: it was of all */
    bool blocks_cleared;  /* the next BLOCKS begins anew */
};

enum { LINK_KINDS = 4 }; /* nccl, ipc, shm, tcp */
enum { TIER_KINDS = 3 }; /* memory, disk, redis */

struct node_link {
    struct xfer_link_row row;
    uint64_t changed; /* counts changes of all rows */
};

/* Of one router, under its name. */
struct pin {
    bool used;
    uint32_t router;
    char name[MSG_NAME_MAX + 1], tenant[MSG_NAME_MAX + 1];
    uint64_t salt;
    uint32_t *tokens;
    uint32_t tokens_count;
    uint32_t blocks;      /* the first ones of it, pinned */
    uint64_t number;      /* its router's, of this or of taking it back */
    bool removed;         /* taken back, which is remembered for a while */
    bool gave_way;        /* which its router has not heard yet */
    uint64_t given_by;    /* incarnation of its router */
    uint64_t orphaned_ns; /* since when its router is gone, or it was taken back; 0: neither */
};

struct tombstone {
    struct id128 request;
    uint32_t choice, attempt;
    uint64_t since_ns;
    bool used;
};

/* Series of the page of metrics; meters.c has the table. */
enum meter {
    METER_INFO,
    METER_FREE,
    METER_RESERVED,
    METER_ACTIVE,
    METER_CACHED,
    METER_TRANSFER,
    METER_CAPACITY,
    METER_KV_USE,
    METER_RUNNING,
    METER_WAITING,
    METER_WAITING_TOKENS,
    METER_STEP,
    METER_PROMPT_TOKENS,
    METER_GENERATED_TOKENS,
    METER_CACHED_TOKENS,
    METER_WINDOW_BLOCKS,
    METER_PREEMPTIONS,
    METER_RETURNED_CACHED,
    METER_RETURNED_COMPUTED,
    METER_HANDED_BACK,
    METER_HELD_STEPS,
    METER_FORKS,
    METER_FORK_SHARED,
    METER_FORK_COPIED,
    METER_BACKFILLS,
    METER_BACKFILLED,
    METER_HELD_TOKENS,
    METER_WASTED_SLOTS,
    METER_CONTIGUOUS_SLOTS,
    METER_SCORES,
    METER_EMBEDDINGS,
    METER_PINS,
    METER_PINNED_BLOCKS,
    METER_TENANTS,
    METER_TENANT_BLOCKS,
    METER_ROUTERS,
    METER_DRAINING,
    METER_SENT,
    METER_RECEIVED,
    METER_LINKS,
    METER_TRANSFERS_DONE,
    METER_TRANSFERS_FAILED,
    METER_TRANSFERS_LIVE,
    METER_FRAMES_REFUSED,
    METER_FRAMES_DEAD,
    METER_LINK_BYTES, /* these three: one for each of LINK_KINDS */
    METER_LINK_FAILURES = METER_LINK_BYTES + LINK_KINDS,
    METER_LINKS_READY = METER_LINK_FAILURES + LINK_KINDS,
    METER_LINKS_READY_LAST = METER_LINKS_READY + LINK_KINDS - 1,
    METER_TIER_LOADS,
    METER_TIER_LATE,
    METER_TIER_TOKENS,
    METER_TIER_STORES,
    METER_TIER_DROPPED,
    METER_TIER_BYTES, /* these: one for each of TIER_KINDS */
    METER_TIER_BROKEN = METER_TIER_BYTES + TIER_KINDS,
    METER_TIER_HITS = METER_TIER_BROKEN + TIER_KINDS,
    METER_TIER_MISSES = METER_TIER_HITS + TIER_KINDS,
    METER_TIER_WRONG = METER_TIER_MISSES + TIER_KINDS,
    METER_TIER_FAILURES = METER_TIER_WRONG + TIER_KINDS,
    METER_TIER_READ = METER_TIER_FAILURES + TIER_KINDS,
    METER_TIER_WRITTEN = METER_TIER_READ + TIER_KINDS,
    METER_TIER_WRITTEN_LAST = METER_TIER_WRITTEN + TIER_KINDS - 1,
    METER_STALE,
    METER_SLOW,
    METERS
};

struct node_core {
    struct node_config config;
    struct node_out out;
    struct kv_pool *pool;
    struct kv_prefix *cache; /* NULL: no prefix cache */
    struct pin pin[NODE_PINS_MAX];
    bool pins_gave_way;
    struct block_events *events;

    struct router_link *router;
    struct sequence *sequence; /* [slots_count] */
    uint32_t *free_slot;       /* stack */
    uint32_t free_slots_count;
    struct map jobs;    /* (request, choice) -> live sequence */
    struct map tickets; /* -> sequence with a live ticket */
    struct heap timers;
    struct list_link queue;   /* WAITING and PREFILL, what is served first stands first */
    struct list_link running; /* RUNNING, likewise */
    struct list_link dirty;

    struct tombstone *tomb; /* [tombstones_max], a ring */
    uint32_t tomb_next;
    struct map tombs;

    struct flight *flight; /* [steps_in_flight] */
    uint32_t flights_busy;
    struct pace {
        uint64_t from_ns;       /* since when the step that runs does, or nothing runs */
        uint64_t arrival_ns;    /* from XFER_ARRIVING to the commit, smoothed */
        struct id128 awaited;   /* the ticket of the stream that a step may be held for, */
        uint64_t due_ns, again; /* TIME_NEVER: there is none; not before so many steps were made */
        bool holding;
    } pace;
    uint64_t steps_made, tickets_made, orders_made, order_floor;

    struct tier_op *tier_op; /* [NODE_LOADS_MAX + NODE_STORES_MAX]; NULL: no tiers */
    uint32_t storing_blocks;
    uint32_t *rest_tokens; /* scratch of both: a context */
    struct block_id *rest_blocks;
    struct kv_tiers_stats tier_stats;
    struct inventory {
        bool wanted, again; /* again: from its start once this walk has ended */
        uint64_t id, place,
            from_ns; /* its op, 0: none is under way; where the next begins, and when */
    } inventory;
    uint64_t tier_ops_made, stores_from_ns; /* no STOREs before; 0: now */
    uint64_t reminds_from_ns, reminds_made;
    bool remind_due;

    bool draining, left, broken; /* broken: the device is */
    uint64_t progress, wake_ns;
    uint32_t slow_callbacks;
    uint32_t seen_stamp;
    uint64_t step_ns, token_ns; /* smoothed */
    uint64_t remote_token_ns;   /* from RESERVE to the KV of a token, smoothed */
    struct lengths lengths;
    struct node_counts counts;
    struct kv_usage usage;
    struct kv_report *report;
    struct node_link *link; /* [NODE_LINKS_MAX] */
    uint32_t links_count;
    uint64_t links_changed;
    struct link_counts {
        uint64_t bytes, failures;
    } link_counts[LINK_KINDS];
    struct metrics *metrics;
    struct metric *meter[METERS];
    uint32_t met[SEQ_STATES][SEQ_EVENTS]; /* how often the state machine met what; for tests */

    /* Scratch, sized at start. */
    struct plan_job *plan_job;
    struct plan_part *plan_part;
    struct plan_claim *claim;
    struct sequence **pick;  /* parallel to plan_job */
    struct sequence **rival; /* parallel to claim */
    struct plan_grower *grower;
    uint32_t *op_blocks;     /* [context blocks] */
    struct job_key *keys;    /* [slots_count] */
    struct token_run *run;   /* [slots_count] */
    struct token_info *info; /* [info_capacity] */
    uint32_t info_capacity;
    uint32_t *audit_holds; /* [blocks_count * HOLD_KINDS] */
};

/* Tokens whose KV or input the sequence knows: prompt and generated. */
static inline uint32_t seq_total(const struct sequence *s)
{
    return s->job.prompt_count + s->generated_count;
}
static inline bool seq_is_live(const struct sequence *s)
{
    return s->state != SEQ_FREE && s->state != SEQ_ENDING && s->state != SEQ_FINISHED;
}
/* It ends here with its prompt: what it generates, if anything, is another's. */
static inline bool seq_prefills_only(const struct sequence *s)
{
    return s->kind == SEQ_PUSH || s->kind == SEQ_PLAIN || s->job.cached_only;
}
static inline struct plan_claim seq_claim(const struct sequence *s)
{
    return (struct plan_claim){
        .priority = s->job.priority, .order = s->order, .born_ms = s->born_ms};
}

/* core.c */
void core_drain(struct node_core *c); /* takes nothing new from now on */
void core_usage_totals(const struct node_core *c, uint64_t totals[KV_COUNTS]);

/* sessions.c */
/* Of prompts in the queue, to be computed. */
uint32_t sessions_waiting_tokens(const struct node_core *c);
enum err sessions_init(struct node_core *c);
void sessions_start(struct node_core *c, uint64_t now_ns);
void sessions_on_message(struct node_core *c, uint64_t now_ns, struct router_link *r,
                         const struct msg *m);
void sessions_on_timer(struct node_core *c, uint64_t now_ns); /* lowers c->wake_ns */
void sessions_tell_load(struct node_core *c);                 /* a heartbeat to all, now */
void sessions_leave(struct node_core *c);                     /* DRAINED and BYE to all */
void session_lost(struct node_core *c, uint64_t now_ns, struct router_link *r);
/* Sends if the session is up; else the message is for nobody. */
void say(struct node_core *c, uint32_t router, struct msg *m);
void live_add(struct node_core *c, const struct sequence *s);
void live_remove(struct node_core *c, const struct sequence *s);

/* links.c */
uint32_t links_ready(const struct node_core *c, uint32_t kind);         /* below LINK_KINDS */
void links_tell(struct node_core *c, uint64_t now_ns, uint32_t router); /* some of the news */

/* events.c: call these for every block that enters or leaves a tier, by its chain hash; the pool's are known. */
void events_stored(struct node_core *c, uint64_t hash, enum block_tier tier);
void events_gone(struct node_core *c, uint64_t hash, enum block_tier tier);
void events_lost(struct node_core *c); /* some were not told: routers are to get all again */
enum err events_new(struct node_core *c);
/* A router has come (`again`: lost some): it will be told everything. */
void events_begin(struct node_core *c, struct router_link *r, bool again);
void events_tell(struct node_core *c,
                 uint64_t now_ns); /* at the end of a turn; lowers c->wake_ns */

/* jobs.c */
struct sequence *job_find(const struct node_core *c, struct id128 request, uint32_t choice);
void jobs_on_message(struct node_core *c, uint64_t now_ns, uint32_t router, const struct msg *m);
void job_refuse(struct node_core *c, uint32_t router, struct job_key key, enum err e,
                bool retryable, const char *reason);
struct id128 job_map_key(struct id128 request, uint32_t choice);

/* tombs.c */
void tomb_put(struct node_core *c, uint64_t now_ns, struct job_key key);
/* Whether attempts up to key.attempt of this choice, or of the whole request, are over here. */
bool tomb_covers(const struct node_core *c, struct job_key key);
/* Whether this very key ended here less than `within_ns` ago. */
bool tomb_fresh(const struct node_core *c, struct job_key key, uint64_t now_ns, uint64_t within_ns);

/* sequence.c: see its table. */
struct seq_input {
    enum seq_event event;
    enum err error; /* FAIL */
    bool retryable;
    const char *reason;
    const struct xfer_event *xfer; /* COMMITTED, DELIVERED */
};
void sequence_step(struct node_core *c, uint64_t now_ns, struct sequence *s,
                   const struct seq_input *in);
void sequence_fail(struct node_core *c, uint64_t now_ns, struct sequence *s, enum err e,
                   bool retryable, const char *reason);
enum err sequence_new(struct node_core *c, uint64_t now_ns, const struct job *job,
                      struct sequence **s);
/* From accepted to known: key map, live set, its first state and deadline. */
void sequence_enter(struct node_core *c, uint64_t now_ns, struct sequence *s, enum seq_state state);
/* Undoes sequence_new. */
void sequence_discard(struct node_core *c, struct sequence *s);
void sequence_append(struct node_core *c, struct sequence *s, const struct token_info *t);
/* Whether its last token is one that ends it. */
bool sequence_is_over(const struct node_core *c, const struct sequence *s);
/* A step ended with something done for it: its deadline moves. */
void sequence_progressed(struct node_core *c, uint64_t now_ns, struct sequence *s);
void sequence_tell_finished(struct node_core *c, struct sequence *s);
const char *seq_state_name(enum seq_state state);
/* Tells tokens from index `from` on. */
void sequence_tell(struct node_core *c, struct sequence *s, uint32_t from);
/* One TOKENS per router for all that was generated and not told. */
void tell_dirty(struct node_core *c);

/* meters.c */
enum err node_meters_new(struct node_core *c);

/* accounts.c */
uint32_t accounts_need(const struct sequence *s);
uint32_t accounts_need_all(const struct sequence *s);
/* All blocks that `s` needs now, a cached prefix first; or none and ERR_FULL. */
enum err accounts_open(struct node_core *c, struct sequence *s, enum hold kind);
/* The same for one that has some KV and no step in flight, when the cache has more of it. */
void accounts_open_further(struct node_core *c, struct sequence *s);
/* Whether that would be OK now. */
bool accounts_would_open(struct node_core *c, struct sequence *s);
void accounts_close(struct node_core *c, struct sequence *s);
void accounts_move(struct node_core *c, struct sequence *s, enum hold to);
/* So many blocks; the caller has looked: they are there. */
void accounts_take(struct node_core *c, enum hold kind, struct block_id *blocks, uint32_t count);
/* Makes the full blocks up to kv_count known to the prefix cache. */
void accounts_insert(struct node_core *c, struct sequence *s);
/* The same for a fork of `of`, whose prompt it has: whole blocks are shared, the last one is copied. */
enum err accounts_fork(struct node_core *c, struct sequence *s, const struct sequence *of);
/* Lets go of what left the window of its next row, and takes blocks further ahead of a prompt. */
void accounts_slide(struct node_core *c, struct sequence *s);
/* Takes blocks ahead of a prompt, as far as it wants them now; false: some are missing. */
bool accounts_fill(struct node_core *c, struct sequence *s);
/* One more block; ERR_FULL: none is free and nothing is cached. */
enum err accounts_grow(struct node_core *c, struct sequence *s);
uint32_t accounts_available(const struct node_core *c);
uint32_t accounts_peek(const struct node_core *c, const struct sequence *s);
/* As the prefix cache wants it said: so many of its tokens. */
struct kv_prompt accounts_prompt(const struct sequence *s, uint32_t tokens_count);

/* pins.c */
void pins_on_message(struct node_core *c, uint64_t now_ns, uint32_t router,
                     const struct msg_pin *m);
void pins_lost(struct node_core *c, uint64_t now_ns, uint32_t router);
void pins_on_router(struct node_core *c, uint32_t router); /* it is here */
void pins_on_timer(struct node_core *c, uint64_t now_ns);
void pins_free(struct node_core *c);
/* Unpins something for `s`, which finds no room though nobody else holds any; false: that is not so. */
bool pins_give_way(struct node_core *c, const struct sequence *s);
void pins_tell(struct node_core *c); /* at the end of a turn */

/* fair.c */
uint64_t fair_order(struct node_core *c, const struct job *job);

/* queue.c: prompts that wait for blocks, and running sequences that want one more. */
/* Takes the blocks that `s` waits for. ERR_AGAIN: a prefix that it shares is being computed, or a sibling's
 * KV, or a tier is asked. ERR_FULL. ERR_NOT_FOUND: a fork whose sibling has ended. */
enum err queue_open(struct node_core *c, uint64_t now_ns, struct sequence *s);
/* Starts waiting prompts until the next step's chunk is full. */
void queue_start(struct node_core *c, uint64_t now_ns);
/* Whether one waits to whom what is free is promised, before `to`: a preempted one, or a prompt that found no
 * room when its turn came. */
bool queue_promised(const struct node_core *c, const struct sequence *to);
/* Nothing can be computed: if several prompts with windows lack blocks, the last served one gives way.
 * True: it did. */
bool queue_unstick(struct node_core *c, uint64_t now_ns);
/* A block for the next token of a running sequence, if it has none; others may be preempted for it.
 * False: it has to sit out a step. */
bool queue_grow(struct node_core *c, uint64_t now_ns, struct sequence *s);

/* fork.c */
/* Takes the blocks of a fork. ERR_AGAIN: its sibling's KV is coming. ERR_NOT_FOUND: it will not come. */
enum err fork_open(struct node_core *c, struct sequence *s);
bool fork_waits(const struct node_core *c, const struct sequence *s);
enum err fork_gone(void); /* ERR_AGAIN, said */

/* room.c */
uint32_t room_private_blocks(const struct sequence *s);
bool room_is_shared(const struct node_core *c, struct block_id block);
void room_note_shared(struct node_core *c, struct sequence *s); /* of table[], as it is now */
/* Whether `s`, whose table has what it found, should get the rest of what it needs. */
bool room_for(struct node_core *c, const struct sequence *s);
/* Whether one is here that is served before `s`: the first in order is never preempted. */
bool room_has_older(const struct node_core *c, const struct sequence *s);
/* Whether `s`, which has its blocks again, had better go back through its router. */
bool room_hands_back(const struct node_core *c, const struct sequence *s);
void room_note_remote(struct node_core *c, const struct sequence *s, uint64_t now_ns);

/* waste.c */
void waste_now(const struct node_core *c, struct node_counts *n);
void waste_note(struct node_core *c); /* its peak */
/* Blocks of all at their full length are what would let none wait nor be preempted. */
uint64_t waste_blocks_full(const struct node_core *c);
/* No more than one block beyond those of its tokens. */
bool waste_is_bounded(const struct sequence *s);

/* tier.c */
enum err tiers_new(struct node_core *c);
void tiers_free(struct node_core *c);
/* Whether `s`, which could be opened, should wait for what a tier may have of its prompt. */
bool tier_is_loading(struct node_core *c, uint64_t now_ns, struct sequence *s);
/* While it computes: goes on behind a part of its window that has come, if it has got to it. */
void tier_skip(struct node_core *c, uint64_t now_ns, struct sequence *s);
/* Offers what the cache has learned of `s` to the tiers. */
void tier_keep(struct node_core *c, const struct sequence *s);
void tier_on_event(struct node_core *c, uint64_t now_ns, const struct kv_tier_event *e);
void tier_on_timer(struct node_core *c, uint64_t now_ns); /* lowers c->wake_ns */
void tier_audit(const struct node_core *c);               /* adds its holds to audit_holds */

/* inventory.c: what the tiers hold, told to routers */
void inventory_want(struct node_core *c);                      /* all of it, once more */
void inventory_on_timer(struct node_core *c, uint64_t now_ns); /* lowers c->wake_ns */
void inventory_news(struct node_core *c, const struct kv_tier_event *e);
/* Whether the event is of its own op. */
bool inventory_on_event(struct node_core *c, uint64_t now_ns, const struct kv_tier_event *e);

/* tier_report.c */
uint32_t tiers_broken(const struct node_core *c);           /* bits of enum kv_tier_kind */
struct json_t *tier_report_json(const struct node_core *c); /* docs/kv-memory.md */
void tier_meters_show(struct node_core *c);

/* flight.c */
enum err flights_new(struct node_core *c);
void flights_free(struct node_core *c);
/* Plans and submits as long as there is work and the engine's queue has room. */
void flights_submit(struct node_core *c, uint64_t now_ns);
void flights_on_event(struct node_core *c, uint64_t now_ns, const struct engine_event *e);
/* Sets the cancel flag of steps that nobody wants any more. */
void flights_cancel_unwanted(struct node_core *c);

/* pace.c */
void pace_init(struct node_core *c);
void pace_runs(struct node_core *c, uint64_t from_ns); /* another step, or no more */
void pace_arriving(struct node_core *c, uint64_t now_ns, struct sequence *s);
void pace_arrived(struct node_core *c, uint64_t now_ns, const struct sequence *s, bool committed);
/* Whether the next step is not to be planned yet; lowers c->wake_ns to when it is. */
bool pace_waits(struct node_core *c, uint64_t now_ns);

/* encode.c */
enum err encode_new(const struct node_core *c, struct sequence *s);
/* Whether rows that the cache has need not be computed. */
bool encode_may_skip(const struct sequence *s);
/* What a step is to keep of the rows that it has of `s`. */
void encode_part(const struct sequence *s, struct step_sequence *q);
/* All rows were computed. ERR_FORMAT: the model gives no numbers. */
enum err encode_finish(struct node_core *c, struct sequence *s);
/* The result from number `from` on; nothing of a job that generates. */
void encode_tell(struct node_core *c, const struct sequence *s, uint32_t from);

/* handover.c */
enum err handover_expect(struct node_core *c, uint64_t now_ns, struct sequence *s);
enum err handover_open(struct node_core *c, uint64_t now_ns, struct sequence *s,
                       const struct msg_prefill *p);
/* Pushes the whole blocks of tokens [from, end), or up to the goal, of one layer. */
void handover_push(struct node_core *c, uint64_t now_ns, struct sequence *s, uint32_t layer,
                   uint32_t from, uint32_t end);
/* Pushes what P found in its own cache beyond what the receiver holds: all layers. */
void handover_push_cached(struct node_core *c, uint64_t now_ns, struct sequence *s);
/* When each layer was computed and sent, for PREFILLED. */
struct push_times {
    uint32_t layer[XFER_PUSHES_TOLD], computed_us[XFER_PUSHES_TOLD], sent_us[XFER_PUSHES_TOLD];
    uint32_t count;
};
void handover_times(const struct sequence *s, const struct xfer_event *e, struct push_times *t);
void handover_commit(struct node_core *c, struct sequence *s, const struct token_info *first,
                     enum finish finish);
/* RELEASE or CANCEL, once, if the ticket lives. */
void handover_end(struct node_core *c, struct sequence *s);
void handover_on_event(struct node_core *c, uint64_t now_ns, const struct xfer_event *e);

/* backfill.c: jobs of cached blocks alone */
enum err backfill_check(const struct node_core *c, const struct job *job, enum seq_kind kind);
/* Whether `s` is such a job and all of its blocks are cached already. */
bool backfill_is_here(const struct node_core *c, const struct sequence *s);
enum err backfill_give(struct node_core *c, uint64_t now_ns, struct sequence *s,
                       const struct msg_prefill *p); /* ERR_NOT_FOUND: not all of it is cached */

#endif
