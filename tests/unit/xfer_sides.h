/* xfer_sides: two transfer cores on virtual time, and a wire that the test holds.
 *
 *     struct side p, d;
 *     sides_start(&p, &d);                                     // ticket 1 is expected, opened, connected
 *     push_all(&p, 1, now);
 *     op_simple(&p, XFER_COMMIT, 1, now);
 *     settle(&p, &d, now);                               // or frame by frame: say() and hear()
 *     assert_ended(&d, 1, XFER_COMMITTED, OK);
 *     sides_end(&p, &d);
 *
 * Rules: a ticket is a number and has 40 tokens. A side drives one session, its last one.
 * Owner: the test's thread. */
#ifndef TANDEM_TESTS_XFER_SIDES_H
#define TANDEM_TESTS_XFER_SIDES_H

#include "tests/unit/testing.h"

#include <stdbool.h>

#include "common/clock.h"
#include "xfer/core.h"

enum { LAYERS = 2, BLOCKS = 8, EVENTS = 64 };
#define HANDSHAKE NS_PER_S
#define IDLE (10 * NS_PER_S)
#define DEADLINE (100 * NS_PER_S)

extern const struct kv_geometry geometry;
extern const struct kv_part all;
extern const struct xfer_addresses two_addresses;

/* One core and what it has said so far. */
struct side {
    struct xfer_core *core;
    struct xfer_session *session; /* the one that the test drives; NULL: closed */
    struct xfer_event event[EVENTS];
    uint32_t events_count, dials_count, closes_count;
    const char *dialled;
};

void side_new(struct side *s);
void side_act(struct side *s); /* takes what the core wants done */
void side_op(struct side *s, struct xfer_op op, uint64_t now);
void op_simple(struct side *s, enum xfer_op_kind kind, uint64_t n, uint64_t now);
void push_all(struct side *p, uint64_t n, uint64_t now);
struct id128 ticket(uint64_t n);

/* Ticket 1 is open on both sides, or a session that P has dialled (by an OPEN) is. */
void sides_start(struct side *p, struct side *d);
void connect_sides(struct side *p, struct side *d, uint64_t window, uint64_t now);
void stand(struct side *s, struct xfer_session *session, const char *link, uint64_t window,
           uint64_t now);
void sides_end(struct side *p, struct side *d);

bool wants(struct side *s);
/* The next frame that `from` wants to say, as the wire makes of it; false: there is none. */
bool say(struct side *from, struct frame *f, uint64_t now);
enum err hear(struct side *s, const struct frame *f, bool good, uint64_t now);
/* Carries frames both ways until neither side has anything to say. */
void settle(struct side *p, struct side *d, uint64_t now);
void carry(struct side *p, struct side *d, uint64_t n, uint64_t now); /* ticket n to its good end */

/* The final event of a ticket, which must be the only one; kind and error as told. */
void assert_ended(struct side *s, uint64_t n, enum xfer_event_kind kind, enum err error);
bool has_ended(const struct side *s, uint64_t n);

#endif
