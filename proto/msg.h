/* msg: every message of the control plane as a checked C struct, and its form on the wire.
 *
 *     struct msg m = {.kind = MSG_CANCEL, .envelope = session_envelope(&s), .cancel = {...}};
 *     if ((e = msg_encode(&m, &buf)) != OK) ...               // one protobuf Envelope (cluster.proto)
 *
 *     struct arena arena = {.limit_bytes = MSG_BYTES_MAX * 4};
 *     if ((e = msg_decode(bytes, size, &arena, &m)) != OK) ... // checked: counts, ranges, enums, lengths
 *
 * Rules: cores see only struct msg. Pointers in a decoded message point into its arena and live
 * until the arena is reset; a core copies what it keeps. A message of an unknown kind or version, too
 * large or malformed is an error to be counted and answered, never a CHECK. msg_decode is the one place
 * that validates structure; what depends on state (vocabulary, epochs, known requests) is checked by
 * the core.
 *
 * Who says what (R router, P prefill, D decode, N = P or D, C client):
 *
 *     session    HELLO N,C->R   WELCOME R->N,C   REFUSE R->N,C   HEARTBEAT both   LIVE both   BYE both
 *     jobs       RESERVE R->D   RESERVED D->R    PREFILL R->P    FIRST P->R       PREFILLED P->R
 *                TOKENS D->R    FINISHED N->R    FINISHED_ACK R->N   FAILED N->R   CANCEL R->N, C->R
 *                RESEND R->N    DRAIN R->N       DRAINED N->R   ENCODED N->R      LINK N->R
 *                BLOCKS both
 *     clients    SUBMIT C->R    ACCEPTED R->C    REJECTED R->C   OUTPUT R->C      DONE R->C
 *                ENCODED R->C
 *                QUERY C->R     ANSWER R->C       and of what a node caches: QUERY R->N, ANSWER N->R
 *     pins       PIN C->R, R->N  PINNED N->R
 * An arena is one thread's; the rest is any thread's. */
#ifndef TANDEM_PROTO_MSG_H
#define TANDEM_PROTO_MSG_H

#include "common/buf.h"
#include "common/geometry.h"
#include "common/id.h"
#include "common/job.h"
#include "common/mem.h"

enum {
    MSG_VERSION = 1,
    MSG_BYTES_MAX = 32 << 20, /* one message on the wire */
    MSG_NAME_MAX = 64,
    MSG_TEXT_MAX = 512, /* reasons */
    MSG_ADDRESSES_MAX = 4,
    MSG_ADDRESS_MAX = 128,
    MSG_LIVE_MAX = 65536,     /* keys in one LIVE */
    MSG_PARTS_MAX = 4096,     /* sequences in one TOKENS */
    MSG_PUSHES_MAX = 128,     /* in one PREFILLED */
    MSG_VALUES_MAX = 1 << 16, /* numbers in one ENCODED: longer results take several */
    MSG_BLOCKS_MAX = 1 << 13, /* news of one BLOCKS */
    MSG_TOKENS_MAX = 1 << 16, /* tokens in one TOKENS or OUTPUT: a longer RESEND takes several */
};

enum role { ROLE_NONE, ROLE_PREFILL, ROLE_DECODE, ROLE_ROUTER, ROLE_CLIENT };

enum msg_kind {
    MSG_NONE,
    MSG_HELLO,
    MSG_WELCOME,
    MSG_REFUSE,
    MSG_HEARTBEAT,
    MSG_LIVE,
    MSG_BYE,
    MSG_RESERVE,
    MSG_RESERVED,
    MSG_PREFILL,
    MSG_FIRST,
    MSG_PREFILLED,
    MSG_TOKENS,
    MSG_FINISHED,
    MSG_FINISHED_ACK,
    MSG_FAILED,
    MSG_CANCEL,
    MSG_RESEND,
    MSG_DRAIN,
    MSG_DRAINED,
    MSG_SUBMIT,
    MSG_ACCEPTED,
    MSG_REJECTED,
    MSG_OUTPUT,
    MSG_DONE,
    MSG_QUERY,
    MSG_ANSWER,
    MSG_LINK,
    MSG_ENCODED,
    MSG_BLOCKS,
    MSG_PIN,
    MSG_PINNED,
    MSG_KINDS
};

/* Which lives of which processes talk. An incarnation is a random number drawn when a process
 * starts (and again when it notices that it slept too long); an epoch is the acceptor's count of its
 * sessions. A message whose three numbers are not the session's is of an earlier life and is dropped.
 * HELLO carries epoch and to of the last session with this acceptor, zeros if there was none. */
struct envelope {
    uint64_t epoch;
    uint64_t from, to;
    uint32_t remaining_ms; /* of the request's deadline when sent; 0: none */
};

struct node_load {
    uint32_t blocks_total, blocks_free, blocks_reserved, blocks_active, blocks_cached,
        blocks_transfer;
    uint32_t running;        /* sequences in the batch */
    uint32_t waiting;        /* reserved, prefilling or preempted ones */
    uint32_t waiting_tokens; /* prompt tokens accepted and not yet computed */
    uint32_t step_us;        /* smoothed time of a step */
    uint32_t token_ns;       /* smoothed prefill time per prompt token */
    uint32_t slow_callbacks; /* of its loop, longer than 1 ms, since it began */
    /* Of sequences that hold blocks: tokens whose KV they hold, shared ones for each; places for tokens
     * in their blocks that are empty; what they would have taken in contiguous memory for the longest
     * that each may become. The same three when the first was highest. */
    uint64_t held_tokens, wasted_slots, contiguous_slots;
    uint64_t held_tokens_peak, wasted_slots_peak, contiguous_slots_peak;
    /* Samples that began with a sibling's blocks, and how many of these they shared and copied. */
    uint64_t forks, fork_shared_blocks, fork_copied_blocks;
    /* How often a sequence gave its blocks to another, and how those came back: tokens that were still
     * cached, that were computed again, and sequences that went back to their router. */
    uint64_t preemptions, returned_cached_tokens, returned_computed_tokens, handed_back;
    /* What reading a block from its host tier, its disk and the shared store is expected to take; 0: it has
     * none, or leaves it alone. */
    uint32_t host_block_ns, disk_block_ns, shared_block_ns;
    uint32_t tiers_broken; /* bits of enum kv_tier_kind: those that are left alone */
};

struct msg_hello {
    enum role role;
    const char *name; /* unique in the cluster: [A-Za-z0-9._-], at most MSG_NAME_MAX */
    const char *host;
    const char *device; /* "cpu-avx512 x2" */
    const char *model;
    uint32_t pid;
    /* Nodes only: */
    struct id128 model_fingerprint;
    uint64_t numerics_id;
    struct kv_geometry geometry;
    uint32_t vocab, context_max;
    uint32_t sequences_max; /* in a batch */
    uint32_t window_tokens; /* P: prompt tokens that it wants outstanding at once, per router */
    uint32_t blocks_total;
    const uint32_t *eos;
    uint32_t eos_count;
    const char *const *addresses; /* links, best first */
    uint32_t addresses_count;
    /* Where it is on its host, for people; "" and 0: not told. */
    const char *pci;             /* of its GPU: "0000:17:00.0" */
    uint32_t numa;               /* the kernel's number + 1 */
    const char *cpus;            /* "0-3,8" */
    const char *cards;           /* network cards near the GPU: "mlx5_0,mlx5_1" */
    uint32_t kv_window;          /* the model's: tokens that attention looks back; 0: all */
    struct id128 tokenizer_hash; /* of its model's tokenizer.json; ID128_NONE: it has none */
    uint32_t kv_ahead; /* tokens of a prompt that it computes before it lets go of KV behind them */
};
struct msg_welcome {
    const char *name;          /* the router's */
    const char *lifeline;      /* "HOST:PORT" of a plain TCP listener; "" in the simulator */
    struct id128 lifeline_key; /* the first 16 bytes to write there, big-endian hi, lo */
    uint32_t heartbeat_ms, dead_ms;
};
struct msg_refuse { /* of a hello; final */
    const char *reason;
};
struct msg_heartbeat {
    bool busy;         /* N: a step is running */
    uint64_t progress; /* N: layers computed so far */
    uint32_t live_count;
    uint64_t live_hash; /* sum of hashes of the live keys that the two share */
    bool draining;
    struct node_load load; /* N */
};
/* The sender's live keys of this session; the receiver ends what it has and the sender has not (and
 * tells FAILED or sends CANCEL for what the sender has and it has not). `answer`: the sender wants the
 * receiver's list back. */
struct msg_live {
    bool answer;
    const struct job_key *keys;
    uint32_t keys_count;
};

/* RESERVE: D takes all blocks for prompt + forwarded and one more, pins what it holds already.
 * `local`: D shall prefill it itself; RESERVED comes without a ticket, then TOKENS. `fork`, with local: it
 * begins with the blocks of choice `sibling` of its request, once D has their KV; FAILED with ERR_AGAIN if
 * that choice is not there (any more). */
struct msg_reserve {
    struct job job;
    bool local;
    bool fork;
    uint32_t sibling; /* of a fork: that choice */
};
struct msg_reserved {
    struct job_key key;
    struct id128 ticket;  /* none: of a local job */
    uint32_t held_tokens; /* of the prompt: leading tokens whose KV need not travel */
};
/* PREFILL: compute prompt + forwarded, sample the next token. Without ticket it ends there (prefill
 * only); else push KV from held_tokens on under `ticket` to `addresses`. Of a job of cached blocks alone
 * (job.cached_only) nothing is computed: whoever is sent PREFILL has them all, or says FAILED; whoever is sent
 * RESERVE ends with FINISHED when they are there, at once if nothing is missing. */
struct msg_prefill {
    struct job job;
    struct id128 ticket; /* none: prefill only */
    uint32_t held_tokens;
    const char *const *addresses;
    uint32_t addresses_count;
};
/* An early copy of the first token; D's stream starts with the same one. */
struct msg_first {
    struct job_key key;
    uint32_t index;
    struct token_info token;
    uint32_t cached_tokens; /* of the prompt, found in P's own cache */
    uint64_t queued_us, compute_us;
};
/* P has let go of the job: all sent and verified, or prefill only and sampled. */
struct msg_prefilled {
    struct job_key key;
    uint32_t cached_tokens; /* of the prompt, found in P's own cache */
    uint64_t queued_us, compute_us,
        transfer_tail_us; /* tail: from the last layer's end to commit */
    uint64_t transfer_bytes;
    const char *link; /* "shm", "tcp", "" */
    /* The last pushes of a layer's KV, in order: columns of one length. Times are after the job began. */
    const uint32_t *push_layer, *push_computed_us, *push_sent_us;
    uint32_t push_layer_count, push_computed_us_count, push_sent_us_count;
};
struct token_run { /* consecutive tokens of one sequence */
    struct job_key key;
    uint32_t index; /* of the first, generated tokens count from 0 */
    const struct token_info *tokens;
    uint32_t tokens_count;
};
struct msg_tokens {
    const struct token_run *runs;
    uint32_t runs_count;
};
/* The sequence has ended on this node with `tokens_count` generated tokens in all (forwarded ones
 * included); ids are kept until FINISHED_ACK. From P only for prefill-only jobs and for jobs that end
 * with their first token. */
struct msg_finished {
    struct job_key key;
    enum finish finish;
    uint32_t tokens_count;
    uint32_t cached_tokens;
    uint64_t queued_us, compute_us; /* of a prompt without a first token; else FIRST says it */
};
struct msg_key { /* FINISHED_ACK */
    struct job_key key;
};
struct msg_failed {
    struct job_key key;
    /* FULL: no room now, try elsewhere. STALE, NOT_FOUND: not known here. INVALID: the job
     * itself is wrong. CANCELLED: it was. Others: this node's trouble */
    enum err error;
    bool retryable; /* another attempt may succeed */
    const char *reason;
};
/* Ends all attempts up to key.attempt of that choice; CHOICE_ALL: of all choices. N answers FAILED with
 * ERR_CANCELLED for each that it ended; a tombstone refuses late ones. */
#define CHOICE_ALL UINT32_MAX
struct msg_cancel {
    struct job_key key;
    const char *reason;
};
struct msg_link {        /* N: how a link from it to another node does, when that has changed */
    const char *address; /* the other node's, as in its HELLO */
    const char *state;   /* "idle", "making", "ready", "broken", "unfit" */
    uint32_t tickets;    /* transfers under way */
    uint64_t bytes;      /* so far */
    uint64_t rate;       /* measured, bytes a second; 0: not measured */
    uint64_t failed_ms;  /* since it failed last, more than none; 0: it never did */
    const char *reason;  /* of that */
};
/* A part of what a job that is not to generate gives: numbers [index, index + values_count) of `total`.
 * All of them come before FINISHED, and a RESEND from P asks for them again. To a client they come when all
 * are there, before DONE; with a score, `tokens` are those of the prompt that they belong to. */
struct msg_encoded {
    struct job_key key;
    uint32_t index, total;
    const float *values; /* none is above 1, nor NaN */
    uint32_t values_count;
    const uint32_t *tokens; /* as many, or none */
    uint32_t tokens_count;
};
/* Where a node may have a block's KV. */
enum block_tier { TIER_POOL, TIER_HOST, TIER_DISK, TIER_SHARED, TIERS };
/* N: what entered and left its prefix cache, in order, by the chain hash (common/prefix_hash.h); what[i]
 * is a tier, plus BLOCK_GONE if the block is no longer there. Nothing has to be right: who acts upon it finds
 * out. R: `cleared`, and nothing else: say all again, some of it was lost. */
enum { BLOCK_GONE = TIERS };
struct msg_blocks {
    uint64_t number; /* of these, counted from 1 in each session: a gap is a loss */
    bool cleared;    /* forget all that was told before */
    const uint64_t *hashes;
    const uint32_t *what;
    uint32_t hashes_count, what_count;
};
struct msg_resend { /* N: tell TOKENS or ENCODED again from this index on */
    struct job_key key;
    uint32_t from;
};

struct msg_submit {
    uint64_t ref;     /* the client's own number, returned in ACCEPTED and REJECTED */
    struct id128 id;  /* none: the router mints one. Given: a resumed request */
    uint32_t attempt; /* 0; a resumed request: the last one's + 1000 */
    const char *text; /* a prompt as text, or … */
    uint32_t text_bytes;
    const uint32_t *tokens; /* … as ids; exactly one of the two */
    uint32_t tokens_count;
    uint32_t choices; /* n, 1 at least */
    bool seed_given;  /* else the router draws one */
    struct sampling sampling;
    uint32_t tokens_max, tokens_min;
    bool ignore_eos;
    const uint32_t *stop_ids;
    uint32_t stop_ids_count;
    const char *const *stop; /* strings */
    uint32_t stop_count;
    bool want_text;    /* OUTPUT carries text; needs a router with a tokenizer */
    bool echo_special; /* text shows special tokens */
    int32_t priority;
    const char *tenant;
    uint32_t deadline_ms; /* 0: none */
    /* Resumed: tokens that the client has, of choice 0, 1, … one behind the other; how many of each. No
     * counts: one choice has all. */
    const uint32_t *received, *received_counts;
    uint32_t received_count, received_counts_count;
    enum job_kind kind;           /* all but GENERATE: tokens_max 0, one choice */
    uint32_t kv_window, kv_sinks; /* common/job.h; 0: all tokens */
};
struct msg_accepted {
    uint64_t ref;
    struct id128 id;
    uint64_t seed;
    uint32_t prompt_tokens;
};
struct msg_rejected {
    uint64_t ref;
    /* INVALID: fix the request. FULL: overload, retry_ms. UNSUPPORTED. PEER: no nodes */
    enum err error;
    uint32_t retry_ms;
    const char *reason;
};
struct msg_output {
    struct id128 id;
    uint32_t choice;
    uint32_t index; /* of the first token */
    const struct token_info *tokens;
    uint32_t tokens_count;
    const char *text; /* may be "" while a character or a stop string is incomplete */
    uint32_t text_bytes;
    /* the last token ends the choice; text may follow, and DONE will. Or NONE */
    enum finish finish;
};
struct request_timing { /* microseconds; 0: did not happen */
    uint64_t queue, prefill, transfer_tail, ttft, decode, total;
};
struct msg_done {
    struct id128 id;
    uint32_t choice;
    enum finish finish;
    enum err error; /* with FINISH_ERROR */
    const char *reason;
    uint32_t prompt_tokens, completion_tokens, cached_tokens, attempts;
    struct request_timing timing;
    const char *prefill_node, *decode_node;
    uint32_t kv_window, kv_sinks; /* not 0: computed with less than all KV, an approximation */
    bool inexact; /* nodes of unequal numerics work together (docs/numerics.md, G6) */
};
enum query { QUERY_STATUS = 1, QUERY_EXPLAIN = 2, QUERY_DRAIN = 3, QUERY_KV = 4 };
struct msg_query {
    uint64_t ref;
    enum query query;
    /* EXPLAIN: request id. DRAIN, KV: node name or "". Of a node only KV is asked, without an
     * argument */
    const char *argument;
};
struct msg_answer {
    uint64_t ref;
    enum err error;   /* OK: text is the answer (JSON); else the reason */
    const char *text; /* DRAIN is answered when the node has left */
    uint32_t text_bytes;
};

/* A prompt that stays cached under a name. C: answered by ANSWER, as soon as it is known. N: pins what
 * it has cached of it, from now on in place of what this router had it pin under the name, and says
 * how much. From N: what the router had it pin in whose place this one is. */
struct msg_pin {
    uint64_t ref; /* C: of its ANSWER. N: a number: of what is said of a name the highest counts */
    bool remove;
    const char *name, *tenant;
    const char *text; /* C: the prompt, or … */
    uint32_t text_bytes;
    const uint32_t *tokens; /* … its ids; N: these */
    uint32_t tokens_count;
    uint64_t salt; /* N only, of the tenant */
};
struct msg_pinned {
    const char *name, *tenant;
    uint32_t blocks; /* pinned of the prompt's whole ones */
};

struct msg {
    enum msg_kind kind;
    struct envelope envelope;
    union {
        struct msg_hello hello;
        struct msg_welcome welcome;
        struct msg_refuse refuse;
        struct msg_heartbeat heartbeat;
        struct msg_live live;
        struct msg_reserve reserve;
        struct msg_reserved reserved;
        struct msg_prefill prefill;
        struct msg_first first;
        struct msg_prefilled prefilled;
        struct msg_tokens tokens;
        struct msg_finished finished;
        struct msg_key finished_ack;
        struct msg_failed failed;
        struct msg_cancel cancel;
        struct msg_resend resend;
        struct msg_submit submit;
        struct msg_accepted accepted;
        struct msg_rejected rejected;
        struct msg_output output;
        struct msg_done done;
        struct msg_query query;
        struct msg_answer answer;
        struct msg_link link;
        struct msg_pin pin;
        struct msg_pinned pinned;
        struct msg_encoded encoded;
        struct msg_blocks blocks;
    };
};

/* Appends the wire form to `out`. ERR_INVALID if it would break a limit, ERR_MEMORY. No allocation
 * once `out` has grown. */
enum err msg_encode(const struct msg *m, struct buf *out);
/* On an error `m` is zero, but for kind and envelope as far as they could be read, and for the ref of a
 * SUBMIT, QUERY or PIN, by which it can be answered. */
enum err msg_decode(const void *bytes, size_t size, struct arena *arena, struct msg *m);
const char *msg_kind_name(enum msg_kind kind);
/* A copy whose pointers live in `arena`. The simulator's network, cores that keep a message. */
enum err msg_copy(const struct msg *from, struct arena *arena, struct msg *to);

/* A key's share of the live hash: XXH3 of request, choice and attempt. */
uint64_t job_key_hash(struct job_key key);

#endif
