/* mix: requests of every kind, in turns: conversations that go on, documents that are asked for exactly and
 * through a window, long generations, samples, scores and embeddings, of tenants and priorities.
 *
 *     struct mix *m = mix_new(seed);               // and what must come of each, from one plain node
 *     for (turn = 0; turn < MIX_TURNS; turn++) {
 *         mix_start(m, turn, s);
 *         streams_run(s);
 *         mix_expect(m, turn, s);                  // the last MIX_ASKS streams of s
 *     }
 *     mix_free(m);                                 // after s
 *
 * Rules: the same seed gives the same requests. A turn's prompts begin with what was said before, the wanted
 * answers included. The plain node keeps nothing that a request leaves, shares nothing, and has room for
 * all. Owner: the test's only thread. */
#ifndef TANDEM_TESTS_E2E_MIX_H
#define TANDEM_TESTS_E2E_MIX_H

#include "tests/e2e/streams.h"

enum {
    MIX_TURNS = 3,
    MIX_ASKS = 24,
    MIX_PROMPT_MAX = 640,
    MIX_PINNED = 96, /* tokens with which some prompts of the tenant begin */
};
#define MIX_TENANT "gold"
#define MIX_WEIGHTS "gold=3,iron=1"

struct mix {
    uint64_t seed;
    struct ask ask[MIX_TURNS][MIX_ASKS];
    uint32_t prompt[MIX_TURNS][MIX_ASKS][MIX_PROMPT_MAX];
    struct streams *wanted; /* ask i of a turn: stream turn * MIX_ASKS + i */
};

struct mix *mix_new(uint64_t seed);
void mix_free(struct mix *m); /* NULL is fine */

void mix_pinned(const struct mix *m, uint32_t tokens[MIX_PINNED]);
void mix_start(const struct mix *m, uint32_t turn, struct streams *s);
void mix_expect(const struct mix *m, uint32_t turn, const struct streams *s);

#endif
