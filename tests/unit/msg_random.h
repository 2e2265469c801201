/* msg_random: messages of every kind with random contents within the limits, and a comparison
 * that knows nothing of the table which the code under test walks.
 *
 *     struct msg_random r = {.seed = 7};
 *     struct msg m = msg_random(&r, MSG_SUBMIT);      // pointers live in r.arena
 *     arena_reset(&r.arena); ... arena_fini(&r.arena);
 * Owner: the test's thread. */
#ifndef TANDEM_TESTS_MSG_RANDOM_H
#define TANDEM_TESTS_MSG_RANDOM_H

#include "proto/msg.h"

struct msg_random {
    uint64_t seed, drawn;
    struct arena arena;
};

struct msg msg_random(struct msg_random *r, enum msg_kind kind);
/* The name of the first field that differs, NULL: equal. */
const char *msg_difference(const struct msg *a, const struct msg *b);

#endif
