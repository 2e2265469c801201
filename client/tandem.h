/* libtandem: requests to a tandem cluster, as a stream of events, without threads of its own.
 *
 *     struct tandem *t;
 *     if (tandem_open(&t, "tcp://127.0.0.1:5700") != TANDEM_OK) die(tandem_error_text());
 *     struct tandem_request *r = tandem_request_new(t, on_event, ctx);
 *     tandem_set_text(r, "To be", 5);
 *     tandem_set_max_tokens(r, 64);
 *     if (tandem_submit(r) != TANDEM_OK) die(tandem_error_text());   // a value out of range
 *     while (!my_ctx_is_done) tandem_wait(t, -1);                    // calls on_event
 *     tandem_request_free(r);
 *     tandem_close(t);
 *
 * In an event loop: watch tandem_fd(t) for reading, level-triggered, and call tandem_process(t) when it is
 * readable. It is one descriptor that also covers all timeouts, and nothing else has to be watched.
 *
 * Rules
 * - A connection and its requests belong to one thread at a time. Different connections are
 *   independent. tandem_error_text is per thread. No function blocks, except tandem_wait, and
 *   tandem_close for at most 0.2 s, and the look-up of an address that is a name.
 * - Events come only from inside tandem_process, tandem_wait and tandem_close. A callback may call
 *   everything here but those three.
 * - Ownership: what is passed in is copied. A request is the caller's until tandem_request_free, which
 *   may be called at any time, inside its callback too; a running one is cancelled then and has no
 *   more events. After tandem_close that and tandem_cancel are all that may be done with its requests.
 *   An event and all it points to live until the callback returns.
 * - Each choice (there is one unless tandem_set_choices said more) of a submitted request ends with
 *   exactly one TANDEM_EVENT_DONE or TANDEM_EVENT_ERROR; the one with choices_left 0 is the last event.
 * - Tokens of a choice come in order without gaps or repetition: index 0, 1, 2 ...
 * - When the router is lost, the next address of the list is asked (or the same again), and requests
 *   that were accepted go on there at the next index with the tokens that an undisturbed run gives.
 *   After the time of tandem_set_patience without any router, or with one whose lifeline cannot be
 *   reached, they end with TANDEM_NO_ROUTER.
 * - Structs that callbacks receive may grow at their end in later versions; they are only read. */
#ifndef TANDEM_H
#define TANDEM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct tandem;         /* a connection to the routers of one cluster */
struct tandem_request; /* one request */

enum tandem_status {
    TANDEM_OK = 0,
    TANDEM_INVALID = 1,     /* the request or an argument is wrong: fix it */
    TANDEM_OVERLOADED = 2,  /* the cluster is full: come again after retry_ms */
    TANDEM_UNSUPPORTED = 3, /* understood, and not offered by this cluster */
    TANDEM_NOT_FOUND = 4,   /* no such request or node */
    TANDEM_NO_ROUTER = 5,   /* none of the addresses answers */
    TANDEM_TIMEOUT = 6,     /* the request's deadline passed */
    TANDEM_CANCELLED = 7,   /* by tandem_cancel, tandem_close or the cluster's operator */
    TANDEM_MEMORY = 8,
    TANDEM_FAILED = 9, /* the cluster could not do it; the reason says why */
};
/* Why the last call of this thread that did not return TANDEM_OK (or NULL) failed. */
const char *tandem_error_text(void);
const char *tandem_status_name(enum tandem_status status);

/* ---- connection ---- */

/* Addresses "tcp://HOST:PORT", separated by commas: the routers of one cluster, first choice first.
 * Connecting happens later, inside tandem_process. */
enum tandem_status tandem_open(struct tandem **t, const char *addresses);
void tandem_close(struct tandem *t); /* running requests end with TANDEM_CANCELLED; NULL is fine */
/* How long to look for a router before requests fail: 10000 ms unless told. */
void tandem_set_patience(struct tandem *t, uint32_t ms);

int tandem_fd(const struct tandem *t);
void tandem_process(struct tandem *t);
/* Waits for something to happen, at most timeout_ms (-1: for ever), and processes it. */
void tandem_wait(struct tandem *t, int timeout_ms);
int tandem_is_connected(const struct tandem *t);
const char *tandem_router(const struct tandem *t); /* the address in use or being tried */

/* ---- events ---- */

enum tandem_event_kind {
    TANDEM_EVENT_ACCEPTED = 1, /* id, seed, prompt_tokens */
    TANDEM_EVENT_TOKENS = 2,   /* choice, index, tokens */
    TANDEM_EVENT_TEXT = 3,     /* choice, text: whole UTF-8 characters */
    TANDEM_EVENT_DONE = 4,     /* choice, finish, and all below */
    TANDEM_EVENT_ERROR = 5, /* choice, status, reason, retry_ms, and what is known of the others */
};
enum tandem_finish {
    TANDEM_FINISH_NONE = 0,
    TANDEM_FINISH_STOP = 1,   /* end-of-sequence, a stop id or a stop string */
    TANDEM_FINISH_LENGTH = 2, /* max_tokens, or the model's context is full */
    TANDEM_FINISH_CANCELLED = 3,
    TANDEM_FINISH_ERROR = 4,
};
const char *tandem_finish_name(enum tandem_finish finish); /* "stop", "length", ... */

struct tandem_top {
    uint32_t token;
    float logprob;
};
struct tandem_token {
    uint32_t token;
    float logprob; /* NaN: not asked for */
    const struct tandem_top *tops;
    size_t tops_count;
};
struct tandem_timing { /* microseconds; 0: did not happen */
    uint64_t queue, prefill, transfer_tail, ttft, decode, total;
};
struct tandem_event {
    enum tandem_event_kind kind;
    struct tandem_request *request;
    const char *id; /* 32 hex digits, "" before it was accepted */
    uint32_t choice;
    uint32_t choices_left; /* DONE, ERROR: how many still run; 0: the request has ended */
    uint32_t index;        /* TOKENS: of the first */
    const struct tandem_token *tokens;
    size_t tokens_count;
    const char *text; /* a zero byte is behind it */
    size_t text_bytes;
    enum tandem_finish finish;
    enum tandem_status status;
    const char *reason;
    uint32_t retry_ms;
    uint64_t seed;
    uint32_t prompt_tokens, completion_tokens, cached_tokens, attempts;
    struct tandem_timing timing;
    const char *prefill_node, *decode_node;
    uint32_t kv_window, kv_sinks; /* DONE: not 0: an approximation, by tandem_set_kv_window */
    /* DONE of a request that scores or embeds: */
    const float *values;
    const uint32_t *value_tokens; /* SCORE: of the prompt, that they belong to; else NULL */
    size_t values_count;
    int inexact; /* DONE: not 0: nodes of unequal numerics work together, so another run may differ */
};
typedef void tandem_event_fn(void *ctx, const struct tandem_event *event);

/* ---- requests ---- */

struct tandem_request *tandem_request_new(struct tandem *t, tandem_event_fn *fn,
                                          void *ctx); /* NULL: no memory */
void tandem_request_free(struct tandem_request *r);   /* NULL is fine */

/* The prompt, one of the two; the last call counts. */
enum tandem_status tandem_set_text(struct tandem_request *r, const char *text, size_t bytes);
enum tandem_status tandem_set_tokens(struct tandem_request *r, const uint32_t *ids, size_t count);

/* What is wanted of the prompt. All but GENERATE take one choice and no tokens, only prefill nodes work on
 * them, and DONE has their values, which do not depend on what else runs:
 *     SCORE       for each token but the first: ln of its probability given those before it
 *     EMBED_LAST  the hidden state behind the last token after the final norm, of length 1
 *     EMBED_MEAN  the mean of those behind all tokens, of length 1 */
enum tandem_kind {
    TANDEM_GENERATE = 0,
    TANDEM_SCORE = 1,
    TANDEM_EMBED_LAST = 2,
    TANDEM_EMBED_MEAN = 3,
};
void tandem_set_kind(struct tandem_request *r, enum tandem_kind kind); /* GENERATE */

/* The rest is optional. Values are checked by tandem_submit and by the router. */
/* 16; 0: the prompt is prefilled, and cached, and no token comes. */
void tandem_set_max_tokens(struct tandem_request *r, uint32_t n);
void tandem_set_min_tokens(struct tandem_request *r, uint32_t n); /* 0 */
/* 0, 0. An approximation: only the first `sinks` tokens, rounded up to whole blocks of 16, and the last
 * `window` are attended to and kept. */
void tandem_set_kv_window(struct tandem_request *r, uint32_t window, uint32_t sinks);
void tandem_set_choices(struct tandem_request *r, uint32_t n);  /* 1 */
void tandem_set_temperature(struct tandem_request *r, float v); /* 1; 0: the likeliest token */
void tandem_set_top_k(struct tandem_request *r, uint32_t k);    /* 0: all */
void tandem_set_top_p(struct tandem_request *r, float p);       /* 1: all */
void tandem_set_min_p(struct tandem_request *r, float p);       /* 0: all */
void tandem_set_repetition_penalty(struct tandem_request *r, float v); /* 1: none */
void tandem_set_presence_penalty(struct tandem_request *r, float v);   /* 0: none */
void tandem_set_frequency_penalty(struct tandem_request *r, float v);  /* 0: none */
void tandem_set_seed(struct tandem_request *r, uint64_t seed);         /* drawn by the router */
void tandem_set_logprobs(struct tandem_request *r, uint32_t tops); /* and of so many likeliest */
void tandem_set_ignore_eos(struct tandem_request *r, int ignore);
void tandem_set_want_text(struct tandem_request *r, int want);        /* 1; 0: TOKENS events only */
void tandem_set_show_special(struct tandem_request *r, int show);     /* special tokens in text */
void tandem_set_priority(struct tandem_request *r, int32_t priority); /* 0; lower goes first */
void tandem_set_deadline(struct tandem_request *r, uint32_t ms);      /* 0: none */
enum tandem_status tandem_set_tenant(struct tandem_request *r, const char *tenant);
enum tandem_status tandem_add_bias(struct tandem_request *r, uint32_t token, float bias);
enum tandem_status tandem_add_stop_id(struct tandem_request *r, uint32_t token);
enum tandem_status tandem_add_stop(struct tandem_request *r, const char *text);

/* Once. TANDEM_INVALID: a value is out of range, the error text says which; no event will come. */
enum tandem_status tandem_submit(struct tandem_request *r);
/* It ends with TANDEM_FINISH_CANCELLED soon. Nothing if it has ended or was not submitted. */
void tandem_cancel(struct tandem_request *r);

/* ---- questions to the router ---- */

/* Called once; text is JSON, or the reason if status is not TANDEM_OK. */
typedef void tandem_answer_fn(void *ctx, enum tandem_status status, const char *text, size_t bytes);

enum tandem_status tandem_query_status(struct tandem *t, tandem_answer_fn *fn, void *ctx);
enum tandem_status tandem_query_explain(struct tandem *t, const char *id, tandem_answer_fn *fn,
                                        void *ctx);
/* What a node caches, and how well that does. "": all nodes. */
enum tandem_status tandem_query_kv(struct tandem *t, const char *node, tandem_answer_fn *fn,
                                   void *ctx);
/* Has all nodes keep a prompt cached, under a name; in place of what it had before. Exactly one of text and
 * tokens; copied. Answered when the router has it: the nodes follow, and tandem_query_status tells
 * which of them hold how much. */
struct tandem_pin {
    const char *name;   /* letters, digits, '.', '_' and '-' */
    const char *tenant; /* whose requests find it; NULL: those of none */
    const char *text;
    size_t text_bytes;
    const uint32_t *tokens;
    size_t tokens_count;
};
enum tandem_status tandem_pin(struct tandem *t, const struct tandem_pin *pin, tandem_answer_fn *fn,
                              void *ctx);
enum tandem_status tandem_unpin(struct tandem *t, const char *name, const char *tenant,
                                tandem_answer_fn *fn, void *ctx);
/* Lets a node finish what it has and leave; answered when it has left. "": the whole cluster. */
enum tandem_status tandem_drain(struct tandem *t, const char *node, tandem_answer_fn *fn,
                                void *ctx);

#ifdef __cplusplus
}
#endif

#endif
