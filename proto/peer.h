/* peer: the other end of a channel as cores see it: a number that the shell gave. Never reused within
 * a process, so that a late event about a gone peer finds nobody. A plain value: any thread. */
#ifndef TANDEM_PROTO_PEER_H
#define TANDEM_PROTO_PEER_H

#include <stdbool.h>
#include <stdint.h>

struct peer {
    uint32_t v;
};
#define PEER_NONE ((struct peer){0})

static inline bool peer_equal(struct peer a, struct peer b)
{
    return a.v == b.v;
}

#endif
