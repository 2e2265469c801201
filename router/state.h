/* state: the structs behind router_core, shared by the router's own files.
 *
 * Ownership: the core owns peers (by number), nodes and clients (by their peer), requests (by id) and
 * their choices. A choice names its nodes by pointer while it is attached to them; a node that goes
 * detaches all of its choices first. A request that has ended stays for explain until the history is
 * full. */
#ifndef TANDEM_ROUTER_STATE_H
#define TANDEM_ROUTER_STATE_H

#include "common/heap.h"
#include "common/list.h"
#include "common/map.h"
#include "common/mem.h"
#include "common/metrics.h"
#include "router/core.h"
#include "router/fair.h"
#include "router/kv_query.h"
#include "router/index.h"
#include "router/sched.h"
#include "text/stop.h"
#include "text/stream.h"

enum {
    ROUTER_NODES_MAX = SCHED_NODES_MAX,
    ROUTER_TRAIL_MAX = 24,
    ROUTER_FAILURES_MAX =
        16, /* attempts of a choice that nodes failed for other reasons than room */
    ROUTER_FORKS_REFUSED_MAX = 3, /* then it gets KV of its own */
    ROUTER_BYPASS_MAX = 32,       /* how many that do not fit are passed over in one go */
    ROUTER_HUNG_STEPS = 20,       /* a node hangs that made no progress for so many usual steps */
    ROUTER_RETRIES_PART = 4,      /* of requests-max may wait to be tried again; beyond it 429 */
    ROUTER_QUERIES_MAX = 64,      /* drains that wait for their end */
    ROUTER_STATUSES_MAX = 64,     /* who asked for the status and were not answered yet */
    BACKFILLS_MAX = 32,           /* at once, */
    BACKFILLS_PAIR_MAX = 2        /* and from one node to one other */
};
#define ROUTER_FULL_NS 20000000ull /* a node that refused is left alone so long */

enum { ROUTER_PINS_MAX = 64 };

/* A prompt that stays cached; pins.c. */
struct pin {
    bool used;
    char name[MSG_NAME_MAX + 1], tenant[MSG_NAME_MAX + 1];
    uint64_t salt;
    uint32_t *tokens; /* NULL: they are being made */
    uint32_t tokens_count;
    struct id128 tokenizing;
    struct peer asker;
    uint64_t ref;
    uint64_t number; /* nodes tell routers that come later which word was the last one */
    bool here;       /* it was said to this router, not by a node */
};
/* Taken back. A node that was cut off then may tell of it as long as it keeps the pins of routers before this. */
struct unpinned {
    char name[MSG_NAME_MAX + 1], tenant[MSG_NAME_MAX + 1];
    uint64_t number, until_ns; /* 0: unused */
    bool here;
};
/* The same at one node. */
struct pin_at {
    uint32_t blocks, tries;
    uint64_t asked_ns;
    struct id128 request; /* that computes it; none: none does */
};

/* A link from a node to an address of another one. */
struct path {
    struct list_link place;
    char address[MSG_ADDRESS_MAX + 1], state[MSG_NAME_MAX + 1], reason[MSG_TEXT_MAX + 1];
    uint32_t tickets;
    uint64_t bytes, rate, failed_ns; /* failed_ns 0: never */
};

struct node {
    struct peer peer;
    uint32_t index; /* in core->nodes */
    struct msg_hello hello;
    struct arena arena; /* of hello's strings and arrays */
    struct sched_node sched;
    struct node_load load;
    bool draining;
    struct list_link choices_prefill, choices_decode; /* choice.at_prefill, .at_decode */
    uint32_t live_count;                              /* keys that it and we should both know */
    uint64_t live_hash;
    uint64_t mismatch_ns; /* since when its heartbeat says otherwise; 0: it agrees */
    uint64_t live_asked_ns;
    bool busy;
    uint64_t progress, progress_ns;
    uint64_t prompt_tokens, generated_tokens, transfer_bytes;
    char link[16];            /* last seen on a transfer from here */
    struct sched_rate *rates; /* sched.rates, ROUTER_NODES_MAX of them: to P those of backfills */
    struct pin_at pin[ROUTER_PINS_MAX];
    struct list_link paths; /* struct path: as it told of them, the latest last */
    uint32_t paths_count;
    uint16_t holder;          /* its number in core->index; INDEX_NONE: it has none */
    uint64_t blocks_number;   /* of its last BLOCKS */
    uint64_t blocks_asked_ns; /* when it was asked to tell all again; 0: never */
    bool blocks_missing;      /* some were lost, and it has not begun anew since */
};

struct client {
    struct peer peer;
    struct list_link requests; /* request.of_client */
};

enum peer_kind { PEER_UNKNOWN, PEER_NODE, PEER_CLIENT };
struct peer_entry {
    struct peer peer;
    struct session session;
    enum peer_kind kind;
    struct node *node;
    struct client *client;
};

enum choice_state {
    CHOICE_TOKENIZING, /* the prompt's ids are being made */
    CHOICE_QUEUED,     /* waits for a pair; nobody else knows of it */
    CHOICE_RESERVING,  /* D was asked for blocks */
    CHOICE_FILLING, /* D has its blocks, or none is needed; P waits for KV that another node has */
    CHOICE_PREFILLING, /* P computes, D waits for KV */
    CHOICE_DECODING,   /* D's stream comes */
    CHOICE_ENDED,      /* DONE was sent; P may still have to say PREFILLED */
    CHOICE_STATES
};

/* What comes to a choice, from the nodes that it is attached to, its client, and time. */
enum choice_event {
    CHOICE_EV_PICKED,         /* a pair of nodes was found */
    CHOICE_EV_TOO_LARGE,      /* no decode node has the memory, nor ever */
    CHOICE_EV_RESERVED,       /* D has blocks for it */
    CHOICE_EV_BACKFILLED,     /* what P was to get is there, or will not come */
    CHOICE_EV_FIRST,          /* P's early copy of a token */
    CHOICE_EV_TOKENS,         /* of D's stream */
    CHOICE_EV_ENCODED,        /* of a result that is no stream */
    CHOICE_EV_PREFILLED,      /* P is done with it */
    CHOICE_EV_FINISHED,       /* D's stream has ended, or P's, if there is no D */
    CHOICE_EV_PREFILL_FAILED, /* FAILED of P */
    CHOICE_EV_DECODE_FAILED,
    CHOICE_EV_PREFILL_LOST, /* P died, left, or has forgotten it */
    CHOICE_EV_DECODE_LOST,
    CHOICE_EV_CANCELLED, /* by its client, which may be gone */
    CHOICE_EV_DEADLINE,  /* the request's own */
    CHOICE_EV_SILENCE,   /* nothing came in the state's time */
    CHOICE_EVENTS
};

enum trail_what {
    TRAIL_SUBMITTED,
    TRAIL_QUEUED,
    TRAIL_RESERVE,
    TRAIL_RESERVED,
    TRAIL_PREFILL,
    TRAIL_FIRST,
    TRAIL_PREFILLED,
    TRAIL_STREAM,
    TRAIL_LOST,
    TRAIL_FAILED,
    TRAIL_ENDED,
    TRAIL_BACKFILL,
    TRAIL_BACKFILLED
};
struct trail {
    uint64_t at_ns;
    enum trail_what what;
    uint32_t attempt;
    char node[MSG_NAME_MAX + 1];
};

/* One layer of one chunk on its way; times are after the prefill began. */
struct push_time {
    uint32_t layer, computed_us, sent_us;
};

struct request;
struct choice {
    struct request *request;
    uint32_t index;
    enum choice_state state;
    uint32_t attempt;
    uint32_t life;                            /* of the cluster, when it was last begun */
    struct heap_entry queue;                  /* core->queue: by sched_queue_key */
    struct heap_entry turn;                   /* its tenant's queue, likewise */
    bool running;                             /* it counts as one of its tenant's */
    uint32_t charged_tokens, refunded_tokens; /* of its prompt */
    struct heap_entry timer;                  /* core->timers: the state's deadline */
    uint64_t state_ns, progress_ns;

    struct node *prefill, *decode; /* attached: NULL once it has let go */
    struct list_link at_prefill, at_decode;
    bool prefill_told;                 /* PREFILL was sent, so it is in the node's live set */
    bool under_share;                  /* its tenant, when it was picked */
    uint32_t window_held, blocks_held; /* what it adds to its nodes' sched sums */
    struct index_held held_prefill,
        held_decode;           /* what its nodes are taken to have of the prompt */
    struct backfill *backfill; /* NULL: it waits for none */
    struct list_link at_backfill;
    uint32_t held_tokens; /* that D has */
    struct id128 ticket;
    bool local, gap_asked;
    bool fork; /* begins with the KV of choice `sibling`, at the same D */
    uint32_t sibling;
    uint32_t forks_refused, preemptions;
    bool finish_pending; /* FINISHED came before its tokens */
    uint32_t finish_count;

    uint32_t *generated; /* forwarded to the client, in order */
    uint32_t generated_count, generated_capacity;
    float *values; /* the result of one that scores or embeds, as far as it was told */
    uint32_t values_count, values_total;
    struct stream *stream; /* NULL: no text wanted */
    struct stop *stop;
    bool replay_stopped; /* what a resumed client has ends with a stop string */

    uint32_t deaths, lone_deaths, failures;
    enum finish finish;
    enum err error;
    char reason[MSG_TEXT_MAX];
    char prefill_name[MSG_NAME_MAX + 1], decode_name[MSG_NAME_MAX + 1];
    uint32_t cached_tokens;
    struct request_timing timing;
    struct push_time *pushes; /* of the last PREFILLED */
    uint32_t pushes_count;
    uint64_t picked_ns, first_ns, ended_ns;
    struct trail trail[ROUTER_TRAIL_MAX];
    uint32_t trail_count;
};

struct request {
    struct id128 id;
    struct client *client; /* NULL: gone */
    struct list_link of_client;
    struct list_link history; /* once ended */
    struct id128 text_job;    /* in core->texts while its ids are being made; else none */
    struct arena arena;       /* of everything below that is not fixed */
    struct msg_submit submit; /* copied; text is dropped once there are ids */
    uint64_t arrived_ns, deadline_ns;
    uint64_t tenant_salt;
    struct fair_tenant *tenant; /* NULL: has ended */
    struct peer only;           /* the one node that may compute it; none: any */
    enum job_kind kind;
    uint32_t checked_life; /* the cluster's, against whose vocabulary and context it was checked */
    uint32_t prompt_count;
    uint64_t *hashes; /* of the prompt's whole blocks but the last token's, in the arena */
    uint32_t hashes_count;
    struct choice *choice;
    uint32_t choices_count, choices_ended;
};

/* What all nodes must share; taken from the first that joins an empty cluster. */
struct cluster {
    bool known;
    uint32_t life;       /* 1, 2 …: what was begun in another one cannot go on here */
    const char *differs; /* from the life before, in what */
    bool inexact;        /* nodes of unequal numerics have worked in it */
    struct id128 fingerprint;
    uint64_t numerics_id;
    struct kv_geometry geometry;
    uint32_t vocab, context_max;
    struct kv_window window; /* of its model */
    uint32_t eos[JOB_STOP_IDS_MAX];
    uint32_t eos_count;
};

struct waiting_query { /* a DRAIN that is answered when it is done */
    struct peer peer;
    uint64_t ref;
    char node[MSG_NAME_MAX + 1];
    struct list_link link;
};

/* Series of the page of metrics; meters.c has the table. Those of a pool come twice, for prefill and for
 * decode. */
enum meter {
    METER_QUEUE,
    METER_QUEUE_TIME,
    METER_WAITING,
    METER_WAITING_TOKENS,
    METER_LIVE,
    METER_ACCEPTED,
    METER_REJECTED,
    METER_REJECTED_INVALID,
    METER_REJECTED_OTHER,
    METER_DONE,
    METER_FAILED,
    METER_CANCELLED,
    METER_FIRST_TOKEN,
    METER_DURATION,
    METER_PROMPT_TOKENS,
    METER_GENERATED_TOKENS,
    METER_RETRIES,
    METER_DEATHS,
    METER_BACKFILLS,
    METER_BACKFILLS_FAILED,
    METER_BACKFILLED,
    METER_CLIENTS,
    METER_DRAINING,
    METER_UP, /* of a pool, from here on */
    METER_UP_DECODE,
    METER_LEAVING,
    METER_LEAVING_DECODE,
    METER_KV_USE,
    METER_KV_USE_DECODE,
    METER_KV_BLOCKS,
    METER_KV_BLOCKS_DECODE,
    METER_RUNNING,
    METER_RUNNING_DECODE,
    METER_POOL_WAITING,
    METER_POOL_WAITING_DECODE, /* to here */
    METER_DIVERGED,
    METER_DUPLICATES,
    METER_GAPS,
    METER_PREFIX_ENTRIES,
    METER_PREFIX_HITS,
    METER_PREFIX_HIT_TOKENS,
    METER_PREFIX_FALSE,
    METER_PREFIX_GAPS,
    METER_PINS,
    METER_PINS_LACKING, /* of P, of D */
    METER_PINS_LACKING_DECODE,
    METER_STALE,
    METER_MALFORMED,
    METER_SLOW,
    METERS
};

/* Series of a tenant, in the order of tenant_meters.c. */
enum tenant_meter {
    TENANT_PROMPT_TOKENS,
    TENANT_CACHED_TOKENS,
    TENANT_GENERATED_TOKENS,
    TENANT_WAITING,
    TENANT_RUNNING,
    TENANT_FIRST_TOKEN,
    TENANT_METERS
};
struct tenant_meters {
    char labels[2 * TENANT_NAME_MAX + 32]; /* "": unused */
    struct metric *meter[TENANT_METERS];
};

struct queue_waits {
    uint64_t picked, waited_ns;           /* samples that got their nodes, and waited for them */
    uint64_t blocked_ns[SCHED_NEVER + 1]; /* the first of the queue had this answer */
    enum sched_answer blocked_by;         /* SCHED_PICKED: nothing waits */
    uint64_t since_ns;
};

struct router_core {
    struct router_config config;
    struct router_out out;
    struct map peers;    /* by number: struct peer_entry */
    struct map requests; /* by id: live and remembered ones */
    struct map texts;    /* by text_job: an id may come again while its text is under way */
    struct node *nodes[ROUTER_NODES_MAX];
    const struct sched_node *sched[ROUTER_NODES_MAX];
    struct index *index;                                         /* NULL: off */
    uint32_t cached[ROUTER_NODES_MAX], pooled[ROUTER_NODES_MAX]; /* of prefixes_look */
    uint32_t load_ns[ROUTER_NODES_MAX];                          /* likewise */
    uint16_t shared_holder; /* in the index: of what stores have that nodes share */
    uint32_t nodes_count;
    struct cluster cluster;
    struct heap queue, timers;
    struct fair fair;
    struct pin pin[ROUTER_PINS_MAX];
    struct unpinned unpinned[ROUTER_PINS_MAX]; /* a ring */
    uint64_t pins_number, unpinned_count;      /* the highest that is known; ever */
    struct client self;                        /* of the requests that it makes itself */
    uint64_t queued_tokens;
    uint32_t queued_retries;
    struct list_link history;
    uint32_t history_count;
    struct list_link queries;
    struct list_link kv_queries; /* struct kv_query */
    struct list_link statuses;   /* struct status_query */
    struct queue_waits waits;
    uint64_t kv_queries_made;
    struct tenant_name {
        uint64_t salt; /* 0: none */
        char name[MSG_NAME_MAX + 1];
        uint32_t kv_window, kv_sinks; /* of the requests' own; 0: all tokens */
    } tenant_name[KV_QUERY_TENANTS];  /* the last one with the salt's remainder */
    uint64_t ids_minted, epochs;
    uint64_t hand_over_ns;
    struct sched_rate rate;     /* of all pairs */
    struct list_link backfills; /* struct backfill */
    uint32_t backfills_count;
    struct sched_rate backfill_rate; /* of all of them */
    uint64_t retry_ns;               /* when a full node may be asked again */
    uint64_t woken_ns;               /* what out.wake_at was told */
    uint64_t goodbye_ns;             /* when the clients were told that it leaves; 0: not yet */
    bool dispatch_wanted, draining, left;
    bool window_wanted; /* some that wait could go if a P's window opened */
    struct buf text;    /* of the OUTPUT that is being made */
    struct router_counts counts;
    struct router_facts facts;
    struct metrics *metrics;
    struct metric *meter[METERS];
    struct tenant_meters tenant_meters[TENANT_WEIGHTS_MAX + 2];
    uint32_t met[CHOICE_STATES][CHOICE_EVENTS]; /* how often a choice met what; for tests */
};

/* registry.c: peers, sessions, nodes */
struct peer_entry *registry_find(struct router_core *core, struct peer peer);
void registry_on_hello(struct router_core *core, uint64_t now_ns, struct peer_entry *entry,
                       const struct msg *m);
void registry_end(struct router_core *core, uint64_t now_ns, struct peer_entry *entry,
                  const char *reason);
uint64_t registry_on_timer(struct router_core *core, uint64_t now_ns); /* the next time it wants */
void registry_on_heartbeat(struct router_core *core, uint64_t now_ns, struct node *node,
                           const struct msg_heartbeat *beat);
void registry_on_live(struct router_core *core, uint64_t now_ns, struct node *node,
                      const struct msg_live *live);
void registry_node_free(struct node *n); /* and what it owns; the core's lists are left alone */
/* A pair was chosen for a transfer; one of its transfers has ended, and a request waited for it. */
void registry_note_try(const struct router_core *core, struct node *from, const struct node *to);
void registry_note_transfer(struct router_core *core, struct node *from, const struct node *to,
                            uint64_t bytes, uint64_t ns);
void registry_on_drained(struct router_core *core, uint64_t now_ns, struct node *node);
/* Answers who waits for this node, or for all of them (NULL), to have left. */
void registry_answer_drained(struct router_core *core, const char *node);
/* Sends with the peer's session in the envelope; silently not, if that session is not up. */
void registry_send(struct router_core *core, struct peer peer, struct msg *m);

/* status.c: answered in pieces, one a turn of the loop */
enum err status_begin(struct router_core *core, uint64_t now_ns, struct peer peer, uint64_t ref);
void status_go_on(struct router_core *core, uint64_t now_ns);
void status_client_lost(struct router_core *core, struct peer peer);
void statuses_free(struct router_core *core);

/* paths.c */
void path_on_link(uint64_t now_ns, struct node *node, const struct msg_link *link);
const struct path *path_to(const struct node *from, const char *address); /* NULL: never told of */
void paths_free(struct node *node);

/* prefixes.c: who holds what of a prompt */
void prefixes_on_join(struct router_core *core, struct node *n);
void prefixes_on_leave(struct router_core *core, struct node *n);
void prefixes_on_blocks(struct router_core *core, uint64_t now_ns, struct node *n,
                        const struct msg_blocks *blocks);
void prefixes_hash(const struct router_core *core, struct request *r); /* its ids are there */
/* Tokens by node, until the next call; NULL: nobody is known to hold any. */
const uint32_t *prefixes_look(struct router_core *core, const struct choice *c);
void prefixes_expect(struct router_core *core, struct choice *c); /* its nodes are attached */
/* What this node had of the prompt, whereas so much had been expected. */
void prefixes_found(struct router_core *core, const struct choice *c, const struct node *n,
                    struct index_held *expected, uint32_t tokens);

/* backfill.c: cached KV that goes to a P before it computes what follows */
/* The choice waits for one to `to`, its P, until choice_on_backfilled. Returns the tokens that are to be there
 * then; 0: it waits for none. */
uint32_t backfill_begin(struct router_core *core, uint64_t now_ns, struct choice *c,
                        const struct sched_fill *fill, struct node *to);
void backfill_leave(struct choice *c); /* it waits no longer */
const char *backfill_source(const struct choice *c);
/* Whether the message was about one. */
bool backfill_on_message(struct router_core *core, uint64_t now_ns, struct node *n,
                         const struct msg *m);
void backfills_lost(struct router_core *core, uint64_t now_ns, const struct node *n);
uint64_t backfills_wake_ns(const struct router_core *core);
void backfills_on_timer(struct router_core *core, uint64_t now_ns);
/* Of the node's live set: whether this is one, and all of them. */
bool backfill_is_at(const struct router_core *core, const struct node *n, struct job_key key);
uint32_t backfills_live(const struct router_core *core, const struct node *n, struct job_key *keys);
void backfills_free(struct router_core *core);
struct json_t;
struct json_t *backfills_json(const struct router_core *core);

/* submit.c: requests come in */
void submit_on_message(struct router_core *core, uint64_t now_ns, struct client *client,
                       const struct msg_submit *submit);
void submit_reject(struct router_core *core, const struct client *client, uint64_t ref,
                   enum err error, const char *reason);
void submit_on_tokens(struct router_core *core, uint64_t now_ns, struct id128 job,
                      const uint32_t *ids, uint32_t ids_count, enum err error, const char *reason);
/* The ids of its prompt did not come in time: it was not accepted yet. */
void submit_on_timer(struct router_core *core, uint64_t now_ns, struct request *r);
/* It was not accepted yet, and will not be. */
void submit_drop(struct router_core *core, struct request *r, enum err error, const char *reason);
void request_free(struct router_core *core, struct request *r);
/* Of the history; a P that has not said yet that it is done lets go too. */
void request_forget(struct router_core *core, struct request *r);
struct id128 router_draw_id(struct router_core *core);

/* fork.c: whether a choice may share the KV of another one of its request. Fills in c->fork and its D. */
bool fork_pick(const struct router_core *core, uint64_t now_ns, struct choice *c,
               struct sched_job job, struct sched_pair *pair);
/* Blocks of its prompt that a fork shares with its sibling. */
uint32_t fork_shared_blocks(uint32_t prompt_count, struct kv_window window);

/* pins.c: prompts that stay cached */
void pins_fini(struct router_core *core);
void pins_on_client(struct router_core *core, uint64_t now_ns, struct peer peer,
                    const struct msg_pin *m);
/* False: this job is none of its. */
bool pins_on_tokens(struct router_core *core, uint64_t now_ns, struct id128 job,
                    const uint32_t *ids, uint32_t ids_count, enum err error, const char *reason);
void pins_on_join(struct router_core *core, uint64_t now_ns, struct node *n);
void pins_on_heartbeat(struct router_core *core, uint64_t now_ns, struct node *n);
/* It had this pinned for an earlier process in this one's place. */
void pins_on_node(struct router_core *core, uint64_t now_ns, struct node *n,
                  const struct msg_pin *m);
void pins_on_pinned(struct router_core *core, uint64_t now_ns, struct node *n,
                    const struct msg_pinned *m);
void pins_on_ended(struct router_core *core, uint64_t now_ns, const struct request *r);
struct json_t *pin_json(const struct router_core *core, uint32_t i); /* NULL: there is none there */
struct json_t *pin_share_json(const struct router_core *core, uint32_t i, const struct node *n);

/* turns.c: the choices of each tenant */
uint64_t turns_salt(const struct router_core *core, const char *tenant); /* 0: of none */
enum err turns_join(struct router_core *core, struct request *r);
void turns_leave(struct router_core *core, struct request *r); /* nothing if it has left */
void turns_queue(struct router_core *core, struct choice *c);
void turns_unqueue(struct router_core *core, struct choice *c); /* nothing if it is not queued */
void turns_started(struct router_core *core, struct choice *c);
void turns_ended(struct router_core *core, struct choice *c);
void turns_cached(struct router_core *core, struct choice *c, uint32_t cached_tokens);
void turns_generated(struct router_core *core, struct choice *c, uint32_t tokens);
/* For its job at a node: what of its tenant stands before it, and how urgent it may be. */
uint32_t turns_lead(const struct router_core *core, const struct choice *c, const struct node *n,
                    bool decode);
int32_t turns_priority(const struct router_core *core, const struct choice *c);
/* Which room of the nodes it may take. */
void turns_room(const struct router_core *core, const struct choice *c, struct sched_job *job);
struct json_t *turns_json(const struct router_core *core);

/* attach.c: a choice at its nodes */
uint32_t choice_tokens(const struct choice *c); /* prompt and generated ones */
void node_attach_prefill(struct choice *c, struct node *n, uint32_t tokens); /* to compute */
struct kv_window choice_window(const struct choice *c, struct kv_window of_model);
void node_attach_decode(struct choice *c, struct node *n);
void node_detach_prefill(struct router_core *core, struct choice *c);
void node_detach_decode(struct router_core *core, struct choice *c);
/* The prompt was computed: its place in the window is free. */
void node_release_window(struct router_core *core, struct choice *c);
/* Adds what grew since to what the choice is taken to hold on D. */
void node_hold_blocks(struct choice *c);
void node_live_add(struct node *n, const struct choice *c);
/* Both nodes let go of this attempt; whatever they still say of it is dropped. */
void choice_cancel_nodes(struct router_core *core, struct choice *c, const char *reason);

/* output.c: what a client gets. Text gathers in core->text. */
/* One OUTPUT with these tokens and core->text, if there is either. `finish`: what its last token ends
 * the choice by. */
void output_send(struct router_core *core, struct choice *c, uint32_t index,
                 const struct token_info *tokens, uint32_t count, enum finish finish);
/* Adds the text of one token to core->text. *stopped: a stop string is complete. ERR_MEMORY: a gap. */
enum err output_add_token(struct router_core *core, struct choice *c, uint32_t token,
                          bool *stopped);
/* What stream and stop string matcher still hold back belongs to the text when it ends by itself. */
enum err output_flush(struct router_core *core, struct choice *c);
void output_done(struct router_core *core, struct choice *c);

/* result.c */
enum err result_add(struct choice *c, const struct msg_encoded *m); /* the next part, ERR_FORMAT */
/* Whether nothing of the result is missing; true of a stream. */
bool result_is_whole(const struct choice *c);
void result_tell(struct router_core *core, const struct choice *c);
void result_count(struct router_core *core, const struct choice *c); /* it is done */
void result_forget(struct choice *c); /* of an attempt that is over */

/* waits.c: for which nodes the queue waited, and how long */
void waits_note_blocked(struct router_core *core, uint64_t now_ns, enum sched_answer by);
void waits_note_picked(struct router_core *core, uint64_t since_ns, uint64_t now_ns);
void waits_now(const struct router_core *core, uint64_t now_ns, struct queue_waits *waits);

/* tenant_meters.c: what it shows of tenants */
size_t tenant_meters_series(const struct router_core *core);
enum err tenant_meters_new(struct router_core *core);
void tenant_meters_join(const struct router_core *core, struct fair_tenant *t);
void tenant_meters_count(struct router_core *core, const struct fair_tenant *t,
                         enum tenant_meter meter, uint64_t n);
void tenant_meters_first_token(struct router_core *core, const struct fair_tenant *t,
                               double seconds);
void tenant_meters_show(struct router_core *core);

/* pins.c: pins there are, and of those how often a node of this role has not all of one */
void pins_count(const struct router_core *core, uint32_t *pins, uint32_t lacking[2]);

/* meters.c: what the page of metrics shows */
/* How long the one has waited that entered the queue first. */
double router_queue_seconds(const struct router_core *core, uint64_t now_ns);
enum err router_meters_new(struct router_core *core);
void router_meter_time(struct router_core *core, enum meter meter, uint64_t from_ns,
                       uint64_t to_ns);

static inline uint64_t us_between(uint64_t from_ns, uint64_t to_ns)
{
    return from_ns && to_ns > from_ns ? (to_ns - from_ns) / 1000 : 0;
}

/* dispatch.c: choices find their nodes; every function may end some */
void choice_dispatch(struct router_core *core, uint64_t now_ns); /* as many as find a pair */
void choice_on_backfilled(struct router_core *core, uint64_t now_ns, struct choice *c);
/* What a queued choice waits for, SCHED_PICKED: its turn. */
enum sched_answer choice_waits_for(const struct router_core *core, uint64_t now_ns,
                                   const struct choice *c);
/* PREFILL to its P, once what is brought there from another node has come. */
void choice_prefill(struct router_core *core, uint64_t now_ns, struct choice *c);

/* choice.c: the state machine of a choice; every function may end it */
void choice_enqueue(struct router_core *core, uint64_t now_ns, struct choice *c);
void choice_on_reserved(struct router_core *core, uint64_t now_ns, struct node *from,
                        const struct msg_reserved *m);
void choice_on_first(struct router_core *core, uint64_t now_ns, struct node *from,
                     const struct msg_first *m);
void choice_on_prefilled(struct router_core *core, uint64_t now_ns, struct node *from,
                         const struct msg_prefilled *m);
void choice_on_run(struct router_core *core, uint64_t now_ns, struct node *from,
                   const struct token_run *run);
void choice_on_encoded(struct router_core *core, uint64_t now_ns, struct node *from,
                       const struct msg_encoded *m);
void choice_on_finished(struct router_core *core, uint64_t now_ns, struct node *from,
                        const struct msg_finished *m);
void choice_on_failed(struct router_core *core, uint64_t now_ns, struct node *from,
                      const struct msg_failed *m);
enum loss {
    LOSS_OF_CHOICE,   /* the node lives, but has forgotten this choice, or left by itself */
    LOSS_DEATH,       /* the node died */
    LOSS_LONELY_DEATH /* and this choice was all that it had */
};
void choice_on_lost(struct router_core *core, uint64_t now_ns, struct choice *c, struct node *node,
                    enum loss loss, const char *why);
void choice_on_timer(struct router_core *core, uint64_t now_ns, struct choice *c);
/* Ends it: tells the nodes to let go, tells the client. */
void choice_end(struct router_core *core, uint64_t now_ns, struct choice *c, enum finish finish,
                enum err error, const char *reason);
/* The steps of which dispatch.c makes use: */
void choice_trail(struct choice *c, uint64_t now_ns, enum trail_what what, const char *node);
void choice_meet(struct router_core *core, const struct choice *c, enum choice_event event);
struct job choice_job(const struct router_core *core, const struct choice *c, uint32_t *stop_ids);
void choice_enter(struct router_core *core, uint64_t now_ns, struct choice *c,
                  enum choice_state state);
void choice_dequeue(struct router_core *core, struct choice *c);
/* A node may die, or a router, between its last token and the word that it was the last: FINISH_NONE: not so. */
enum finish choice_already_over(const struct router_core *core, const struct choice *c);
struct choice *choice_find(struct router_core *core, struct job_key key);
struct job_key choice_key(const struct choice *c);
const char *choice_state_name(enum choice_state state);
const char *choice_event_name(enum choice_event event);
const char *trail_name(enum trail_what what);

#endif
