/* asks: a seeded mix of requests for the demo model: shared prefixes, short and long, greedy and sampled
 * in every way that a request can ask for.
 *
 *     struct asks *a = asks_new(seed, 64);
 *     streams_start(s, i, &a->ask[i]);
 *     struct streams *wanted = asks_undisturbed(a, "");    // what must come of them
 *     asks_free(a);                                               // after the streams
 *
 * Rules: the same seed and count give the same requests; each names its own sampling seed.
 * Owner: the test's only thread. */
#ifndef TANDEM_TESTS_E2E_ASKS_H
#define TANDEM_TESTS_E2E_ASKS_H

#include "tests/e2e/streams.h"

enum { ASKS_PROMPT_MAX = 640 };

struct asks {
    uint32_t count;
    struct ask *ask;
    uint32_t (*prompt)[ASKS_PROMPT_MAX];
};

struct asks *asks_new(uint64_t seed, uint32_t count);
void asks_free(struct asks *a); /* NULL is fine */

/* Each ask's stream from a cluster of one P and one D; client i asks ask i. */
struct streams *asks_undisturbed(const struct asks *a, const char *node_args);
void asks_start(const struct asks *a, struct streams *s); /* ask i by client i */
/* Each of the asks' streams, the first of which is s->stream[first], has ended and equals the wanted one. */
void asks_expect(const struct asks *a, const struct streams *s, uint32_t first,
                 const struct streams *wanted);

#endif
