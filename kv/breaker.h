/* kv_breaker: leaves alone what fails again and again: after `failures_max` failures in a row for 1 s, and
 * twice as long each time that the one call then is in vain too, up to 60 s. Pure arithmetic on a plain
 * struct.
 *
 *     struct kv_breaker b = {.failures_max = 3};
 *     if (kv_breaker_lets(&b, now_ns))
 *         switch (kv_breaker_note(&b, call() == OK, now_ns)) ...       // said once each: broken, back
 *
 * Owner: whoever calls. */
#ifndef TANDEM_KV_BREAKER_H
#define TANDEM_KV_BREAKER_H

#include <stdbool.h>

#include "common/clock.h"

#define KV_BREAKER_PAUSE_NS NS_PER_S
#define KV_BREAKER_PAUSE_MAX_NS (60 * NS_PER_S)

struct kv_breaker {
    uint32_t failures_max, failures; /* in a row */
    uint64_t pause_ns;               /* 0: it is whole */
    uint64_t until_ns, broke_ns;
};

enum kv_breaker_news { KV_BREAKER_SAME, KV_BREAKER_BROKE, KV_BREAKER_BACK };

static inline bool kv_breaker_lets(const struct kv_breaker *b, uint64_t now_ns)
{
    return b->pause_ns == 0 || now_ns >= b->until_ns;
}

static inline enum kv_breaker_news kv_breaker_note(struct kv_breaker *b, bool ok, uint64_t now_ns)
{
    bool broken = b->pause_ns > 0;
    if (ok) {
        b->failures = 0;
        b->pause_ns = 0;
        return broken ? KV_BREAKER_BACK : KV_BREAKER_SAME;
    }
    if (!broken && ++b->failures < b->failures_max) return KV_BREAKER_SAME;
    if (!broken) b->broke_ns = now_ns;
    b->pause_ns = broken ? 2 * b->pause_ns : KV_BREAKER_PAUSE_NS;
    if (b->pause_ns > KV_BREAKER_PAUSE_MAX_NS) b->pause_ns = KV_BREAKER_PAUSE_MAX_NS;
    b->until_ns = now_ns + b->pause_ns;
    return broken ? KV_BREAKER_SAME : KV_BREAKER_BROKE;
}

#endif
