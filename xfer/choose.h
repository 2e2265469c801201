/* choose: which of a peer's links the next ticket travels over, and which ones to make for it.
 *
 *     struct link_view view[] = {{.trait = link_trait("shm:x"), .state = LINK_READY}, ...};
 *     struct link_choice c = link_choose(view, 2, now_ns);
 *     if (c.use < 2) open_over(c.use); else if (c.wait) wait(); else fail();
 *     for (i …) if (c.dial >> i & 1) dial(i);
 *
 * The order of merit: device links before shm before tcp, then as the peer names them; one that was
 * measured clearly slower than another loses to it until its measurement is LINK_STALE_NS old. The best
 * one that is ready takes the ticket. Better ones that are healthy are made meanwhile; of those that
 * are quickly made only the best. A link that broke is left alone until retry_ns unless nothing
 * else is left to try. Pure: facts and the time in, an answer out. Any thread. */
#ifndef TANDEM_XFER_CHOOSE_H
#define TANDEM_XFER_CHOOSE_H

#include <stdbool.h>
#include <stdint.h>

#define LINK_STALE_NS (60ull * 1000000000)

enum { LINK_VIEWS_MAX = 32 };

/* What is known of a kind of link before it was ever used. */
struct link_trait {
    const char *name;
    uint32_t merit; /* more is better */
    bool slow;      /* takes seconds to make: others carry meanwhile */
};
/* Of an address "NAME:…" or a name; of names unknown here, one without merit. */
const struct link_trait *link_trait(const char *address);

enum link_state { LINK_NONE, LINK_MAKING, LINK_READY };

struct link_view {
    const struct link_trait *trait;
    enum link_state state;
    bool barred;       /* not for this ticket: another link is forced, or it was tried in vain */
    uint64_t rate;     /* measured bytes a second, 0: not measured */
    uint64_t rated_ns; /* when */
    uint64_t retry_ns; /* it broke: not before; 0: healthy */
};

struct link_choice {
    uint32_t use;  /* index; LINK_VIEWS_MAX: none is ready */
    uint32_t dial; /* bits: to be made now */
    bool wait;     /* something is being made or to be made */
};

struct link_choice link_choose(const struct link_view *view, uint32_t views_count, uint64_t now_ns);

/* The back-off after one more failure: 1 x first_ns, doubled each time up to 60 x. */
uint64_t link_backoff(uint64_t last_ns, uint64_t first_ns);

#endif
