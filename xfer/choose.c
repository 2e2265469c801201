#include "xfer/choose.h"

#include <stddef.h>
#include <string.h>

const struct link_trait *link_trait(const char *address)
{
    static const struct link_trait traits[] = {
        {"nccl", 3, true}, {"ipc", 3, true}, {"shm", 2, false}, {"tcp", 1, false}, {"", 0, false}};
    const struct link_trait *t = traits;
    for (; t->name[0]; t++) {
        size_t n = strlen(t->name);
        if (strncmp(address, t->name, n) == 0 && (address[n] == ':' || !address[n])) break;
    }
    return t;
}

static uint64_t rate_of(const struct link_view *v, uint64_t now_ns)
{
    return now_ns < v->rated_ns + LINK_STALE_NS ? v->rate : 0;
}

/* Whether a goes before b, which comes before a in the peer's own order. Faster by a quarter is clear. */
static bool goes_before(const struct link_view *a, const struct link_view *b, uint64_t now_ns)
{
    uint64_t rate_a = rate_of(a, now_ns), rate_b = rate_of(b, now_ns);
    if (rate_a > 0 && rate_b > 0) {
        if (rate_a > rate_b + rate_b / 4) return true;
        if (rate_b > rate_a + rate_a / 4) return false;
    }
    return a->trait->merit > b->trait->merit;
}

/* The best one that is not in `seen`; LINK_VIEWS_MAX: none. */
static uint32_t best_of(const struct link_view *view, uint32_t n, uint32_t seen, uint64_t now_ns)
{
    uint32_t best = LINK_VIEWS_MAX;
    for (uint32_t i = 0; i < n; i++) {
        if (view[i].barred || seen >> i & 1) continue;
        if (best == LINK_VIEWS_MAX || goes_before(&view[i], &view[best], now_ns)) best = i;
    }
    return best;
}

static struct link_choice choose(const struct link_view *view, uint32_t n, uint64_t now_ns,
                                 bool desperate)
{
    struct link_choice c = {.use = LINK_VIEWS_MAX};
    bool quick = false; /* a better one that is quickly made is on its way */
    uint32_t seen = 0, i;
    while ((i = best_of(view, n, seen, now_ns)) != LINK_VIEWS_MAX) {
        const struct link_view *v = &view[i];
        seen |= 1u << i;
        if (v->state == LINK_READY) {
            c.use = i;
            return c;
        }
        if (v->state == LINK_NONE) {
            if (quick || (v->retry_ns > now_ns && !desperate)) continue;
            c.dial |= 1u << i;
        }
        c.wait = true;
        quick |= !v->trait->slow;
    }
    return c;
}

struct link_choice link_choose(const struct link_view *view, uint32_t views_count, uint64_t now_ns)
{
    struct link_choice c = choose(view, views_count, now_ns, false);
    bool lost = c.use == LINK_VIEWS_MAX && !c.wait;
    return lost ? choose(view, views_count, now_ns, true) : c;
}

uint64_t link_backoff(uint64_t last_ns, uint64_t first_ns)
{
    if (last_ns == 0) return first_ns;
    return last_ns > 30 * first_ns ? 60 * first_ns : 2 * last_ns;
}
