/* kv_tier: a store for cached blocks outside the pool: host memory, a local disk, a server that several
 * nodes share. One table of operations for each; a contract suite holds all of them to this page
 * (tests/contract/kv_tier_test.c).
 *
 *     const struct kv_tier_ops *ops;
 *     struct kv_tier *tier;
 *     struct kv_tier_options o = {.where = "/var/cache/tandem/p0", .bytes_max = 64 << 30, .value_bytes = n};
 *     if ((e = kv_tier_find("disk", &ops)) != OK) return e;                // memory, disk, redis
 *     if ((e = ops->open(&tier, &o)) != OK) return e;                      // wrong use, not a full disk
 *     uint32_t n = 0;
 *     e = ops->get(tier, keys, count, values, deadline_ns, &n);            // the leading n that it has
 *     e = ops->put(tier, keys, count, values, deadline_ns);
 *     ops->close(tier);
 *
 * A value is an entry (kv/tier_entry.h): a block's KV behind a header that says what it is and carries a
 * checksum, so a tier need not be trusted: whoever takes a value out checks it, and removes what is wrong.
 *
 * Rules: an error is never more than a miss: the caller computes. Values are all of one size, the one that
 * it was opened with. What was put may be gone at the next call (evicted, by another node too) but is never
 * another key's value or half of one that `get` counts: a tier that finds its own storage damaged removes
 * the entry and says that it has none. bytes_max bounds what it keeps, its index included; the least
 * recently used go first. Calls return at deadline_ns (CLOCK_MONOTONIC) or soon after: a tier that may wait
 * for others (a server) never waits past it, one that waits for the kernel (a disk) looks at it between
 * values. No log line in here: errors are returned, with a text.
 * Owner: the tier thread (kv/tiers.h); one tier is used by one thread. */
#ifndef TANDEM_KV_TIER_H
#define TANDEM_KV_TIER_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/id.h"

struct kv_tier; /* each implementation's own */

struct kv_tier_options {
    /* memory: not used. disk: a directory of its own, made if it is not there. redis:
     * "HOST:PORT" or "unix:PATH" */
    const char *where;
    uint64_t bytes_max; /* memory, disk: kept at most; redis: the server's business */
    size_t value_bytes; /* of every value; a disk that holds values of another size is emptied */
    /* model, numerics and geometry: redis keys begin with it, a disk of another one is emptied */
    struct id128 space;
    uint64_t ttl_ns; /* redis: values that are not read for so long go; 0: the server's business */
    /* Told of each key whose value is there no more: evicted, removed, damaged; NULL: nobody wants it. Not
     * of a shared tier, where others evict. Called from within the tier's calls. */
    void (*on_gone)(void *ctx, struct id128 key);
    void *gone_ctx;
    const char *user, *password; /* redis: both NULL: nobody logs in; user NULL: the default one */
};

struct kv_tier_stats {
    uint64_t entries_count, bytes; /* now; redis: 0, it has others' too */
    uint64_t evicted, removed;     /* for room; because they were damaged or asked to go */
    const char *emptied; /* static: why what was kept in an earlier life is gone; NULL: it is not */
};

enum kv_tier_kind { KV_TIER_HOST, KV_TIER_DISK, KV_TIER_SHARED };
#define KV_TIER_LIST_END UINT32_MAX

struct kv_tier_ops {
    const char *name;
    /* ERR_INVALID: `where` is wrong, ERR_IO: it cannot be used at all (read-only, no such host, in use by
     * another process): the text says what to do. A server that does not answer yet is no error here. */
    enum err (*open)(struct kv_tier **tier, const struct kv_tier_options *options);
    void (*close)(struct kv_tier *tier); /* NULL is allowed */
    /* How many of the leading keys it has, without reading values; *found is right on an error too. A disk
     * and memory know; a server is asked, in one round trip. */
    enum err (*has)(struct kv_tier *tier, const struct id128 *keys, uint32_t count,
                    uint64_t deadline_ns, uint32_t *found);
    /* Reads the leading keys' values into values[i], value_bytes each, up to the first that it has not.
     * *got: how many are there, on an error too. */
    enum err (*get)(struct kv_tier *tier, const struct id128 *keys, uint32_t count,
                    void *const *values, uint64_t deadline_ns, uint32_t *got);
    /* Keeps them, in order, evicting others; those that it has already count as used. ERR_FULL: no room
     * can be made (a full disk); ERR_TIMEOUT, ERR_PEER, ERR_IO. *kept: the leading ones that were. */
    enum err (*put)(struct kv_tier *tier, const struct id128 *keys, uint32_t count,
                    const void *const *values, uint64_t deadline_ns, uint32_t *kept);
    /* Lets go of these; those that it has not are no error. */
    enum err (*remove)(struct kv_tier *tier, const struct id128 *keys, uint32_t count,
                       uint64_t deadline_ns);
    void (*stats)(const struct kv_tier *tier, struct kv_tier_stats *stats);
    /* Those that it has count as used now, the first of them as the last one, so that it goes last. In memory, but
     * for a note now and then; a server is told of some of them, of each now and then. */
    enum err (*touch)(struct kv_tier *tier, const struct id128 *keys, uint32_t count,
                      uint64_t deadline_ns);
    enum kv_tier_kind kind;
    /* Up to `room` of the keys that it has, in no order, from *place on (0: the first), which moves on,
     * KV_TIER_LIST_END when that is all; no I/O. What comes meanwhile may be left out. A shared tier: none. */
    uint32_t (*list)(const struct kv_tier *tier, uint32_t *place, struct id128 *keys,
                     uint32_t room);
};

/* ERR_NOT_FOUND with the list of names. */
enum err kv_tier_find(const char *name, const struct kv_tier_ops **ops);
extern const struct kv_tier_ops kv_tier_memory, kv_tier_disk, kv_tier_redis;

#endif
