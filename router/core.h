/* router core: everything that a router decides, without I/O: who is in the cluster, which request
 * goes next and to which pair of nodes, what is forwarded to which client, what is tried again.
 *
 *     struct router_core *core;
 *     if ((e = router_core_new(&core, &config, &out)) != OK) return e;
 *     router_core_on_message(core, now, peer, &m);      // the shell: nodes' and clients' channels
 *     router_core_on_lifeline(core, now, peer, up);
 *     router_core_on_tokens(core, now, job, ids, ids_count, OK, NULL);   // answer to out.tokenize
 *     router_core_on_timer(core, now);                  // at the time last given to out.wake_at
 *     router_core_drain(core, now);                     // SIGTERM: finish, send the nodes home
 *
 * A request has 1 … n choices, each scheduled on its own; router/choice.c has their states. Pairs are
 * picked and the queue is ordered by the pure functions of router/sched.h.
 *
 * Rules: every input returns after having called `out` any number of times; the shell must not call
 * the core from inside `out`. The core never reads a clock, a socket, a file or a random source: ids and
 * seeds come from config.id_seed, which the shell drew at random, through Philox. Each accepted request
 * ends in one DONE per choice, whatever happens, unless its client is gone.
 * Owner: the loop thread. The simulator binds the same core to virtual time. */
#ifndef TANDEM_ROUTER_CORE_H
#define TANDEM_ROUTER_CORE_H

#include "common/buf.h"
#include "proto/msg.h"
#include "proto/peer.h"
#include "proto/session.h"
#include "router/fair.h"
#include "text/tokenizer.h"

struct router_core;

enum { ROUTER_ATTEMPTS_MAX = INT32_MAX }; /* of a SUBMIT; its retries here are above it, and few */

struct router_out {
    void *ctx;
    /* Queues a message; `m` is copied before this returns. What cannot be sent is lost: the session's end
     * will tell. */
    void (*send)(void *ctx, struct peer peer, const struct msg *m);
    void (*wake_at)(void *ctx, uint64_t when_ns); /* replaces the earlier time */
    /* Announces the key that a peer will write on its lifeline; then a WELCOME with it is sent. */
    void (*lifeline_expect)(void *ctx, struct peer peer, struct id128 key);
    void (*forget)(void *ctx, struct peer peer); /* never used again: close its lifeline */
    /* Asks for the ids of a prompt (with special tokens as the model's tokenizer adds them); answered by
     * router_core_on_tokens with the same job id. The text is copied. An error is the answer: too
     * many are waiting. */
    enum err (*tokenize)(void *ctx, struct id128 job, const char *text, uint32_t bytes);
    void (*left)(void *ctx); /* drained: the shell may exit */
};

enum disaggregate { DISAGGREGATE_AUTO, DISAGGREGATE_ALWAYS, DISAGGREGATE_NEVER };
enum backfill_mode { BACKFILL_AUTO, BACKFILL_ALWAYS, BACKFILL_NEVER };

struct router_config {
    const char *name;
    const char *lifeline_address; /* goes into WELCOME */
    uint64_t incarnation, id_seed;
    struct session_limits session;
    const struct tokenizer *tokenizer; /* NULL: token ids only */
    struct id128 tokenizer_hash;       /* of its file, which nodes must have too; ID128_NONE: any */
    enum disaggregate disaggregate;
    bool exact;                  /* only nodes of one numerics id */
    enum backfill_mode backfill; /* cached KV goes to a P before it computes what follows */
    bool forks;                  /* samples of a request share their prompt's KV on D */
    uint32_t requests_max;       /* accepted and not ended, at once: beyond it 429; 4096 */
    uint64_t queued_tokens_max;  /* prompt tokens waiting: beyond it 429; 4M */
    uint32_t history_max;        /* ended requests kept for explain: 1024 */
    uint32_t peers_max;          /* 4096 */
    uint64_t queue_timeout_ns;   /* nobody could take it: 60 s */
    uint64_t reserve_timeout_ns; /* no answer to RESERVE: 5 s */
    uint64_t stall_timeout_ns;   /* no word about a running choice: 120 s */
    uint64_t hung_ns;            /* busy and no progress: 10 s, or 20 of its own steps */
    uint64_t bypass_ns;  /* how long smaller requests may overtake one that does not fit: 1 s */
    uint32_t deaths_max; /* node deaths that a choice survives: 3rd ends it */
    uint32_t lone_deaths_max; /* of nodes that had nothing else: the 2nd ends it */
    bool kv_words;            /* prompts' first words in what `tandem kv` shows */
    uint64_t prefix_index;    /* cached blocks of all nodes that are known of: 1M; 0: no index */
    /* Tenants: weights that are not 1, and how much of a decode node is for those below their share. */
    struct tenant_weight weights[TENANT_WEIGHTS_MAX];
    uint32_t weights_count, tenant_reserve_percent; /* 12 */
    uint64_t salt_key[2]; /* by which tenants' names become salts; of all routers the same */
};
#define ROUTER_CONFIG_DEFAULT                                                                      \
    ((struct router_config){.session = SESSION_LIMITS_DEFAULT,                                     \
                            .exact = true,                                                         \
                            .forks = true,                                                         \
                            .requests_max = 4096,                                                  \
                            .queued_tokens_max = 4u << 20,                                         \
                            .history_max = 1024,                                                   \
                            .peers_max = 4096,                                                     \
                            .queue_timeout_ns = 60000000000ull,                                    \
                            .reserve_timeout_ns = 5000000000ull,                                   \
                            .stall_timeout_ns = 120000000000ull,                                   \
                            .hung_ns = 10000000000ull,                                             \
                            .bypass_ns = 1000000000ull,                                            \
                            .deaths_max = 3,                                                       \
                            .lone_deaths_max = 2,                                                  \
                            .kv_words = true,                                                      \
                            .prefix_index = 1u << 20,                                              \
                            .tenant_reserve_percent = 12})

enum err router_core_new(struct router_core **core, const struct router_config *config,
                         const struct router_out *out);
void router_core_free(struct router_core *core);

void router_core_on_message(struct router_core *core, uint64_t now_ns, struct peer peer,
                            const struct msg *m);
void router_core_on_lifeline(struct router_core *core, uint64_t now_ns, struct peer peer, bool up);
void router_core_on_tokens(struct router_core *core, uint64_t now_ns, struct id128 job,
                           const uint32_t *ids, uint32_t ids_count, enum err error,
                           const char *reason);
void router_core_on_timer(struct router_core *core, uint64_t now_ns);
/* A message of this peer did not decode (msg_decode says what `m` holds then): a client's SUBMIT or QUERY
 * is answered with the reason, all else is counted. */
void router_core_on_malformed(struct router_core *core, struct peer peer, const struct msg *m,
                              enum err error, const char *reason);
void router_core_drain(struct router_core *core, uint64_t now_ns);

/* Why requests were refused at the door. */
enum rejected { REJECTED_OVERLOAD, REJECTED_INVALID, REJECTED_OTHER, REJECTED_REASONS };

struct router_counts {
    uint32_t nodes, clients, requests_live, choices_live, queued;
    uint64_t accepted, done, failed, cancelled, retries, node_deaths;
    uint64_t rejected[REJECTED_REASONS]; /* in none of the others */
    uint64_t prompt_tokens, generated_tokens, stale_messages, duplicate_tokens, gaps, diverged;
    uint64_t scores, embeddings, prefill_only; /* of those done: that wanted such, or no token */
    /* Backfills that brought something, tokens that they brought; that ended otherwise. */
    uint64_t backfills, backfilled_tokens, backfills_failed;
    /* Of choices that were sent to nodes: looked up in the index; nodes that had what it says, and so many
     * tokens; that had less; and news of nodes' blocks that did not come. */
    uint64_t prefix_lookups, prefix_hits, prefix_hit_tokens, prefix_false, prefix_gaps;
};
void router_core_counts(const struct router_core *core, struct router_counts *counts);
/* CHECKs every invariant: live choices are attached as their state says, sums per node are right. */
void router_core_audit(const struct router_core *core);
/* What the shell counts, for the answers to status from here on. */
struct router_facts {
    uint64_t slow_callbacks;     /* of the loop: longer than 1 ms */
    uint64_t malformed_messages; /* of all peers */
};
void router_core_set_facts(struct router_core *core, const struct router_facts *facts);
/* The page of GET /metrics (docs/metrics.md). */
enum err router_core_metrics(struct router_core *core, uint64_t now_ns, struct buf *page);
/* NULL: a request that came now could be served; else what it would wait for. */
const char *router_core_missing(const struct router_core *core, uint64_t now_ns);
/* `tandem explain --json`. ERR_NOT_FOUND: no such request is remembered. */
enum err router_core_explain(const struct router_core *core, uint64_t now_ns, struct id128 request,
                             struct buf *json);

#endif
