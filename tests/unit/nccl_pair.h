/* nccl_pair: both ends of a transport over NCCL in one process, on devices 0 and 1 of the stand-ins.
 *
 *     struct pair p;
 *     assert_ok(open_pair(&p));
 *     assert_ok(join_pair(&p));
 *     fill(p.end[0], 1, 500, 7);
 *     assert_ok(move(&p, 1, 500));                     // slot 1, of the dialler into that of the acceptor
 *     assert_came(&p, 1, 500);
 *     close_pair(&p, TRANSPORT_DRAINED);               // waits until nothing is held
 *
 * Rules: start and finish stand around each test. Owner: the test's thread. */
#ifndef TANDEM_TESTS_NCCL_PAIR_H
#define TANDEM_TESTS_NCCL_PAIR_H

#include "tests/unit/testing.h"

#include <stdbool.h>

#include "xfer/device/nccl.h"

enum { SLOTS = 3, SLOT_BYTES = 100000, WAIT_MS = 20000 };

extern const struct transport_ops *const ops;

struct pair {
    struct transport *end[2]; /* the dialler's, the acceptor's */
    bool joined[2];
};
struct offer {
    uint8_t bytes[TRANSPORT_OFFER_MAX];
    size_t size;
};

enum err open_end(struct transport **t, bool dialler);
enum err make_offer(struct transport *t, struct offer *o);
/* The acceptor offers first, as the session has it. */
enum err open_pair(struct pair *p);
/* What an acceptor that never comes would have offered: as this side, with registered slots or without. */
enum err join_alone(struct transport *t, bool registers);
enum err join_pair(struct pair *p);
void wait_for(const struct pair *p); /* until one of the fds is readable */
void fill(struct transport *t, uint32_t slot, size_t bytes, uint32_t number);
enum err move(struct pair *p, uint32_t slot, size_t bytes);
enum err end_both(struct pair *p, uint32_t slot);
void assert_came(const struct pair *p, uint32_t slot, size_t bytes);
void close_pair(struct pair *p, enum transport_end end);

int start(void **state);
/* Nothing is left of any test, and no mistake was seen by the stand-ins. */
int finish(void **state);

#endif
