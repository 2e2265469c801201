/* dslink_pair: two session machines of a device link (xfer/device/session.h), with messages carried by hand
 * and transports that do what the test lets them.
 *
 *     struct pair p;
 *     pair_make_ready(&p, &posted);
 *     p.hold_end = true;                       // its operations do not end from here on
 *     pair_send_payload(&p, 1);
 *     pair_run(&p);                            // until nothing moves
 *     pair_stop(&p);
 *
 * Rules: a frame is its number, which pair_front asserts to be whole. Time is p.now_ns.
 * Owner: the test's thread. */
#ifndef TANDEM_TESTS_DSLINK_PAIR_H
#define TANDEM_TESTS_DSLINK_PAIR_H

#include "tests/unit/testing.h"

#include <stdbool.h>

#include "xfer/device/session.h"

enum { D, A, SIDES, SLOTS = 3, SLOT_BYTES = 1000, QUEUE = 64, TRANSPORTS = 3 };

/* Both sides post and the dialler offers; both post; only the dialler acts and the acceptor offers. */
extern const struct transport_ops posted, placed, *const transports[TRANSPORTS];
#define EACH_TRANSPORT(t) for (int i_ = 0; i_ < TRANSPORTS && ((t) = transports[i_]); i_++)

struct mail {
    size_t size;
    uint8_t bytes[CONTROL_BYTES_MAX + 100];
};

struct pair {
    const struct transport_ops *transport;
    struct dslink *s[SIDES];
    struct mail queue[SIDES][QUEUE]; /* to this side */
    uint32_t first[SIDES], count[SIDES];
    bool open[SIDES], joined[SIDES], kept[SIDES];
    uint64_t begun[SIDES], ended[SIDES]; /* operations, with number 0 */
    uint32_t begins[SIDES];
    int closes[SIDES];
    enum transport_end end[SIDES];
    uint64_t now_ns;
    bool mute, hold_open, hold_join, hold_end, no_turns; /* what does not happen meanwhile */
};

void pair_start(struct pair *p, const struct transport_ops *transport);
void pair_make_ready(struct pair *p, const struct transport_ops *transport);
void pair_stop(struct pair *p);
void pair_put(struct pair *p, int to, const void *bytes, size_t size);
void pair_tell(struct pair *p, int to, struct control m);
bool pair_step(struct pair *p, int side); /* false: nothing to do there */
void pair_run(struct pair *p);            /* until there is nothing to do on either side */
void pair_pass_time(struct pair *p, uint64_t ns);
void pair_assert_states(const struct pair *p, enum dslink_state d, enum dslink_state a);
/* Frame n: from D with a payload of n bytes, or without one. */
void pair_send_payload(struct pair *p, uint32_t n);
void pair_send_inline(struct pair *p, int from, uint32_t n);
/* The number of the next frame, 0: there is none yet. */
uint32_t pair_front(struct pair *p, int side);
void pair_release(struct pair *p, int side);

#endif
