/* kv_tiers: the tiers of a node behind its pool, and the thread that reads and writes them.
 *
 *     struct kv_tiers *tiers;
 *     struct kv_tiers_options o = {.geometry = g, .space = space, .bytes = {...}, .tier = {...}, .tiers_count = 2};
 *     if ((e = kv_tiers_open(&tiers, &o, on_event, ctx)) != OK) return e;
 *     kv_tiers_start(tiers);                                               // the tier thread takes ops
 *     e = kv_tiers_post(tiers, &(struct kv_tier_op){.kind = KV_TIER_LOAD, ...});   // loop thread; copied
 *     ... on_event(ctx, &event) is called ON THE TIER THREAD: put it into a mailbox, return ...
 *     kv_tiers_stop(tiers); kv_tiers_close(tiers);
 *
 *     LOAD    fills blocks of the pool with the longest leading run that the tiers hold of a prompt's
 *             blocks; the first tier that has a block gives it. The loop thread holds each block with
 *             HOLD_TRANSFER from post to event and then makes the `count` first ones known to the prefix
 *             cache.
 *             With a window: the longest start of the prompt for which they hold all that its window and
 *             sinks lie in. Those blocks are filled in order, as far as time allows; a later LOAD goes on.
 *     STORE   keeps complete blocks of the pool in every tier that has them not; the blocks are held
 *             likewise.
 *     LIST    says some of what the tiers hold, as news, from `place` on (0: the first), and where the next
 *             begins; a shared tier is left out. In memory, so it does not wait for STOREs.
 *
 * Rules: each op that was taken ends in exactly one event, also at kv_tiers_stop; until then the tier thread
 * may touch the op's blocks, afterwards never. LOADs go before STOREs; a LOAD whose deadline is over when
 * its turn comes ends at once with none. Before a LOAD reads from a tier, kv_tiers_worth is asked with the
 * tier's measured rate and what computing would take: what is not worth it is not read. A tier that fails
 * or is late `breaker_failures` times in a row is left alone for a while (1 s doubling to 60 s), said once
 * in the log when it begins and once when it ends; one that is full, at once. A full mailbox refuses STOREs first: what is not kept is
 * computed again one day.
 * A call that does not return for KV_TIERS_STUCK_NS (a disk that hangs) stops the tier thread: kv_tiers_watch
 * says so once in the log, takes back all ops, whose blocks nobody touches from then on, and no op is taken
 * until it has returned.
 * Owner: the loop thread posts and reads stats; the tier thread does all else. */
#ifndef TANDEM_KV_TIERS_H
#define TANDEM_KV_TIERS_H

#include <stdbool.h>

#include "common/clock.h"
#include "common/geometry.h"
#include "kv/tier.h"

struct kv_tiers;

enum { KV_TIERS_MAX = 3 };
#define KV_TIERS_STUCK_NS (5 * NS_PER_S)
#define KV_TIERS_OPEN_NS (5 * NS_PER_S)
#define KV_TIERS_STOP_NS (5 * NS_PER_S)

/* A block of the pool to and from host memory, all layers, in the pool's order; called on the tier thread,
 * for blocks that an op holds. */
struct kv_tier_bytes {
    void *ctx;
    enum err (*read)(void *ctx, uint32_t block, void *host);
    enum err (*write)(void *ctx, uint32_t block, const void *host);
};

struct kv_tiers_options {
    struct kv_geometry geometry;
    struct id128 space; /* kv_tier_space */
    struct kv_tier_bytes bytes;
    struct {
        const struct kv_tier_ops *ops;
        struct kv_tier_options options; /* value_bytes and space are filled in by kv_tiers_open */
    } tier[KV_TIERS_MAX];               /* the fastest first */
    uint32_t tiers_count;
    uint64_t deadline_ns; /* of a LOAD: 20 ms, of which an eighth is for the way back; STOREs have
                                * ten times that for each few MB */
    uint64_t open_ns,
        stop_ns; /* kv_tiers_open and kv_tiers_stop wait no longer; 0: KV_TIERS_OPEN_NS,
                                * KV_TIERS_STOP_NS */
    uint32_t breaker_failures; /* 3 */
    uint32_t ops_max;          /* waiting at once: 1024 */
    uint32_t blocks_max;       /* of one op: longer ones are refused */
    void *staging;             /* kv_tiers_staging_bytes, 64-byte aligned, that a device reads and
                                * writes fast; NULL: it takes its own */
    uint64_t (*now_ns)(void *ctx); /* tests: their clock; NULL: CLOCK_MONOTONIC */
    void *now_ctx;
};

enum kv_tier_op_kind { KV_TIER_LOAD, KV_TIER_STORE, KV_TIER_LIST };

/* A block is in a tier now, or is not any more. */
struct kv_tier_news {
    uint64_t hash; /* common/prefix_hash.h */
    enum kv_tier_kind kind;
    bool gone;
};
enum { KV_TIER_LIST_MAX = 1024 }; /* news of one LIST */
#define KV_TIER_PLACE_END UINT64_MAX

struct kv_tier_op {
    enum kv_tier_op_kind kind;
    uint64_t id;   /* the caller's, comes back in the event */
    uint64_t salt; /* the tenant's */
    const uint32_t
        *tokens; /* of the prompt from its very start; (first_block + count) x 16 of them */
    uint32_t first_block;   /* of these tokens: blocks before it are not the op's business */
    const uint32_t *blocks; /* [count]: pool blocks of first_block … */
    uint32_t count;
    uint32_t token_ns;  /* LOAD: what computing one of these tokens takes here; 0: not known */
    uint64_t posted_ns; /* LOAD: its deadline counts from here */
    /* LOAD with a window: of the first n blocks, first_block < n <= end_block, the sinks and [gone(n), n); the
     * first of `blocks` are for those, in order, and as many as they are at most (kv_tier_op_places). tokens:
     * end_block x 16. */
    struct kv_window window;
    uint32_t end_block;
    uint32_t
        filled; /* not 0: so many are, by LOADs before this one, and it is about n == end_block */
    struct kv_window of_use; /* STORE: what of the prompt others want, so that it goes last */
    uint64_t place;          /* LIST */
};

/* The places that a LOAD with this window wants for a prompt of so many blocks. */
static inline uint32_t kv_tier_op_places(struct kv_window window, uint32_t end_block)
{
    uint32_t most = window.sinks / BLOCK_TOKENS + kv_window_reach(window);
    return most < end_block ? most : end_block;
}
/* From which block on it needs those behind the sinks: the last one at least. */
static inline uint32_t kv_tier_op_gone(struct kv_window window, uint32_t end_block)
{
    uint32_t gone = kv_window_gone(window, end_block * BLOCK_TOKENS) / BLOCK_TOKENS;
    if (end_block <= window.sinks / BLOCK_TOKENS) return end_block;
    return gone < end_block ? gone : end_block - 1;
}

struct kv_tier_event {
    uint64_t id;
    enum kv_tier_op_kind kind;
    uint32_t count; /* LOAD: leading blocks that are filled and right, with a window those before it
                     * included; STORE: that some tier holds */
    uint32_t from[KV_TIERS_MAX]; /* LOAD: of those, by tier */
    bool more;                   /* LOAD: its time was over, and there is more */
    uint64_t bytes;              /* read or written */
    uint64_t ended_ns;
    uint32_t end_block;        /* LOAD with a window: n, or 0: none */
    uint64_t place;            /* LIST: of the next one; KV_TIER_PLACE_END: that was all */
    struct kv_tier_news *news; /* what came and went since the event before, in order */
    uint32_t news_count;
    bool news_lost; /* there were more */
};
void kv_tier_event_free(struct kv_tier_event *event); /* its news; who receives an event does it */

typedef void kv_tier_event_fn(void *ctx, const struct kv_tier_event *event);

/* Opens all tiers, each on a thread of its own. ERR_INVALID, with the tier's name and what is wrong: but one that
 * cannot be used as things are (read-only, say) is done without, the log says so, and the tier thread tries again.
 * One that hangs (a directory of a server that is away) is waited for no longer than open_ns: it is OK, which
 * the log says, the others are used meanwhile, and it is when it has opened. An error while one hangs: *tiers is
 * there, for kv_tiers_close. */
enum err kv_tiers_open(struct kv_tiers **tiers, const struct kv_tiers_options *options,
                       kv_tier_event_fn *on_event, void *ctx);
size_t kv_tiers_staging_bytes(const struct kv_geometry *geometry);
enum err kv_tiers_start(struct kv_tiers *tiers);
/* ERR_FULL: too many wait, ERR_AGAIN: a tier is stuck, ERR_INVALID, ERR_CANCELLED after kv_tiers_stop: then
 * nothing was done. */
enum err kv_tiers_post(struct kv_tiers *tiers, const struct kv_tier_op *op);
/* ERR_TIMEOUT, with the tier's name: a call has not returned, and its thread goes on: nothing of what it was
 * given may be freed, so the process has to end. Else all threads have ended and the tiers are closed. */
enum err kv_tiers_stop(struct kv_tiers *tiers);
/* After kv_tiers_stop, if started; NULL is allowed. False: a tier hangs in its opening, and its thread has all of
 * this, and what the options point at, until the process ends. */
bool kv_tiers_close(struct kv_tiers *tiers);

/* Whether reading so many blocks is expected to be faster than computing their tokens; pure. rate 0: not
 * measured, tried; token_ns 0: not known, read. `open_ns`: what a read takes before its first byte. */
bool kv_tiers_worth(uint64_t bytes, uint64_t rate, uint64_t open_ns, uint32_t tokens,
                    uint32_t token_ns);

struct kv_tiers_stats {
    struct kv_tier_row {
        const char *name;
        enum kv_tier_kind kind;
        struct kv_tier_stats kept;
        uint64_t hits, misses, not_worth, late, failures,
            wrong; /* blocks; calls; entries that failed the check */
        uint64_t read_bytes, written_bytes, read_rate,
            write_rate;    /* rates: bytes/s, smoothed; 0: not measured */
        bool broken;       /* the breaker is open, or it could not be opened, or it is stuck */
        uint64_t stuck_ns; /* for so long a call has not returned; 0: less than KV_TIERS_STUCK_NS */
    } row[KV_TIERS_MAX];
    uint32_t rows_count;
    uint64_t stuck_ns;   /* not 0: that call is the tier thread's, and all tiers are out */
    const char *calling; /* the tier of which a call is under way; NULL: none */
    /* By enum kv_tier_kind: what reading a block is expected to take, from the rates or before there are some
     * from usual ones; 0: there is no such tier, or it is left alone. */
    uint32_t block_ns[KV_TIERS_MAX];
    uint64_t stores_dropped; /* refused because too many waited */
    uint64_t loads_late;     /* whose deadline was over when their turn came */
};
/* The same, and does what is to be done about a tier that is stuck; the loop thread, now and then. */
void kv_tiers_watch(struct kv_tiers *tiers, struct kv_tiers_stats *stats);
/* Any thread. */
void kv_tiers_stats(const struct kv_tiers *tiers, struct kv_tiers_stats *stats);

#endif
