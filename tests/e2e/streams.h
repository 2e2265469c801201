/* streams: requests through libtandem, many clients driven from one epoll loop, and what came of each.
 *
 *     struct streams *s = streams_new(c->addresses);
 *     struct ask ask = {.text = "To be", .max_tokens = 20};
 *     struct stream *a = streams_start(s, 0, &ask);         // client 0: connected when first used
 *     streams_run(s);                                       // until all have ended
 *     stream_expect_equal(a, of_another_run);
 *     streams_free(s);                                      // running ones are cancelled
 *
 * Rules: what libtandem promises is checked at every event (indices without gaps, whole characters,
 * one end per choice, nothing after it). An ask is copied, but not what it points to. Everything has a
 * deadline (STREAMS_WAIT_MS). Owner: the test's only thread. */
#ifndef TANDEM_TESTS_E2E_STREAMS_H
#define TANDEM_TESTS_E2E_STREAMS_H

#include "tests/unit/testing.h"

#include <stdbool.h>

#include "client/tandem.h"
#include "common/buf.h"

enum { STREAMS_CLIENTS_MAX = 128, STREAMS_MAX = 1024, CHOICES_MAX = 8 };
enum { STREAMS_WAIT_MS = 120000 * PATIENCE };

struct ask {
    const char *text; /* or tokens */
    const uint32_t *tokens;
    uint32_t tokens_count;
    uint32_t max_tokens, min_tokens, choices; /* 0: 16, 0, 1 */
    float temperature;                        /* 0: greedy */
    uint32_t top_k;
    float top_p, min_p; /* 0: not told */
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint64_t seed;
    bool ignore_eos, want_logprobs, no_text;
    uint32_t tops;
    const char *stop;
    uint32_t kv_window, kv_sinks;
    const char *tenant; /* NULL: none */
    int32_t priority;
    enum tandem_kind kind; /* 0: it generates */
    uint32_t cancel_at;    /* cancel when so many tokens are here; 0: never */
};

struct outcome {
    uint32_t *tokens;
    float *logprobs;
    uint64_t *arrived_ns; /* of each token: when its event came */
    uint32_t tokens_count, tokens_capacity;
    struct buf text;
    bool ended;
    enum tandem_finish finish;
    enum tandem_status status;
    char reason[256];
};

struct stream {
    struct streams *streams;
    struct tandem_request *request;
    struct ask ask;
    struct outcome choice[CHOICES_MAX];
    uint32_t choices_count, tokens_count; /* of all choices */
    bool accepted, ended;
    char id[40];
    uint32_t prompt_tokens, cached_tokens, attempts;
    uint32_t kv_window, kv_sinks; /* as the end told them */
    float *values;                /* of one that scores or embeds */
    size_t values_count;
    uint64_t submitted_ns;
    char prefill_node[32], decode_node[32]; /* of the choice that ended last */
    struct tandem_timing timing;            /* so is this */
};

struct streams {
    char addresses[512];
    int epoll_fd;
    struct tandem *client[STREAMS_CLIENTS_MAX];
    struct stream *stream[STREAMS_MAX];
    uint32_t count, ended_count;
    uint64_t tokens_count; /* received, of all streams */
};

struct streams *streams_new(const char *addresses);
void streams_free(struct streams *s); /* NULL is fine */

struct stream *streams_start(struct streams *s, uint32_t client, const struct ask *ask);
void streams_run(struct streams *s); /* until all have ended */
/* Until `holds`; fails when all streams have ended or the deadline came without it. */
void streams_run_until(struct streams *s, bool holds(void *ctx), void *ctx, const char *what);
void streams_until_tokens(struct stream *stream, uint32_t tokens_count);
/* Serves events for at most wait_ms; false: nothing came. */
bool streams_turn(struct streams *s, int wait_ms);
/* One request to its end over a client of its own. */
struct stream *streams_ask(struct streams *s, const struct ask *ask);

void stream_expect_done(const struct stream *stream); /* every choice ended by stop or length */
/* The same tokens, log-probabilities and values (bits), text and finish reason. */
void stream_expect_equal(const struct stream *stream, const struct stream *wanted);
bool stream_differs(const struct stream *stream, const struct stream *wanted, char *why,
                    size_t why_bytes);

#endif
