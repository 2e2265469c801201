/* map: 128-bit keys (or 64-bit ones, see map_key) to pointers.
 *
 *     struct map requests = {0};
 *     if ((e = map_put(&requests, r->id, r)) != OK) return e;     // ERR_DUPLICATE: key is there
 *     struct request *r = map_get(&requests, id);                 // NULL: none
 *     r = map_remove(&requests, id);
 *     for (struct map_cursor c = {0}; (r = map_next(&requests, &c));) ...;
 *     map_fini(&requests);                                        // values are the caller's
 *
 * Rules: open addressing with linear probing, at most 3/4 full; removing leaves no tombstones. The
 * map must not change while it is walked. The walk's order depends on keys and history only, so a
 * replay sees the same. Values are not NULL. After map_reserve(n), n entries need no allocation.
 * Owner: that of the map. */
#ifndef TANDEM_COMMON_MAP_H
#define TANDEM_COMMON_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/id.h"

struct map_slot {
    struct id128 key;
    void *value; /* NULL: free */
};

struct map {
    struct map_slot *slot;
    size_t count, slots_count; /* slots_count: 0 or a power of two */
};

struct map_cursor {
    size_t next_slot;
    struct id128 key; /* of the value that map_next returned last */
};

static inline struct id128 map_key(uint64_t key)
{
    return (struct id128){0, key};
}

void map_fini(struct map *m);
enum err map_reserve(struct map *m, size_t entries_count);
enum err map_put(struct map *m, struct id128 key, void *value);
void *map_get(const struct map *m, struct id128 key);
void *map_remove(struct map *m, struct id128 key); /* its value, NULL: was not there */
void *map_next(const struct map *m, struct map_cursor *cursor);

#endif
