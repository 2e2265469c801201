/* fake_router: a router of clients only, on a thread of its own, that does what its script says instead
 * of computing: the token at index i of choice c is fake_token(c, i), its text "c:i ". To a request that
 * scores or embeds it tells fake_value(i) in two OUTPUTs' worth: one fewer than the prompt has ids or bytes,
 * or FAKE_HIDDEN of them.
 *
 *     struct fake_script script = {.outputs_until_hold = 3, .at_query = FAKE_DIES};
 *     struct fake_router *r = fake_router_start("tcp://127.0.0.1:0", &script);
 *     tandem_open(&t, fake_router_address(r));
 *     ...
 *     fake_router_stop(r);                  // when all said BYE; then fake_router_seen may be read
 *     fake_router_free(r);
 */
#ifndef TANDEM_TESTS_FAKE_ROUTER_H
#define TANDEM_TESTS_FAKE_ROUTER_H

#include "proto/msg.h"

enum fake_answer { FAKE_ANSWERS, FAKE_DIES, FAKE_CUTS_LIFELINE };

struct fake_script {
    const char *refuse; /* each HELLO, with this reason */
    enum err reject;    /* each SUBMIT, or only the first `rejects` of them if not 0 */
    uint32_t rejects;
    uint32_t outputs_until_hold; /* then a request goes on only to be cancelled; 0: never */
    bool repeat;                 /* each OUTPUT twice */
    bool skip;                   /* the second OUTPUT of a choice */
    bool withhold_done;
    bool stops; /* the last token of each choice is one that ends it, not only the last allowed */
    bool tail, withhold_tail;  /* each choice ends with text without tokens, or would */
    enum fake_answer at_query; /* a question is how a test says when */
    const char *answer;        /* to each question; NULL: {"fake":true} */
    bool inexact;              /* says DONE, */
    uint32_t prompt_tokens;    /* and so many; 0: 4 */
    uint32_t kv_window, kv_sinks;
    const char *lifeline; /* what WELCOME names; NULL: its own */
};

struct fake_seen {
    uint32_t hellos, submits, cancels, byes, queries;
    struct id128 id; /* of the last SUBMIT, and what else it said */
    uint32_t attempt, received_count, received_counts[2], tokens_max, deadline_ms;
    enum job_kind kind;
    int32_t priority;
    char tenant[MSG_NAME_MAX + 1];
    bool seed_given;
    uint64_t seed;
    char query[MSG_NAME_MAX + 1];
};

struct fake_router;
struct fake_router *fake_router_start(const char *address, const struct fake_script *script);
const char *fake_router_address(const struct fake_router *r);
const char *fake_router_lifeline(const struct fake_router *r);
void fake_router_stop(struct fake_router *r);
const struct fake_seen *fake_router_seen(const struct fake_router *r);
void fake_router_free(struct fake_router *r);

enum { FAKE_HIDDEN = 4 };
static inline float fake_value(uint32_t index)
{
    return -(float)(index + 1) / 8;
}

static inline uint32_t fake_token(uint32_t choice, uint32_t index)
{
    return 1000 * (choice + 1) + index;
}

#endif
