/* heap: the entry with the smallest key first; entries know their place and can leave or move.
 *
 *     struct request { struct heap_entry timer; ... };
 *     struct heap timers = {0};
 *     r->timer.key = deadline_ns;
 *     if ((e = heap_push(&timers, &r->timer)) != OK) return e;
 *     struct heap_entry *first = heap_first(&timers);              // NULL: none
 *     if (first && first->key <= now_ns) heap_remove(&timers, first);
 *     heap_move(&timers, &r->timer, later_ns);                     // in the heap or not
 *     heap_fini(&timers);
 *
 * Rules: entries live in their members, zeroed before first use; the heap holds pointers. Equal keys
 * come out in the order they were pushed or moved, so that a replay decides the same. After heap_reserve(n),
 * pushing up to n entries allocates nothing and cannot fail. Owner: that of the members. */
#ifndef TANDEM_COMMON_HEAP_H
#define TANDEM_COMMON_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct heap_entry {
    uint64_t key;
    uint64_t order; /* set by the heap: breaks ties */
    size_t place;   /* 1 + index in the heap, 0: in none */
};

struct heap {
    struct heap_entry **entry;
    size_t count, capacity;
    uint64_t pushes_count;
};

void heap_fini(struct heap *h);
enum err heap_reserve(struct heap *h, size_t entries_count);
enum err heap_push(struct heap *h, struct heap_entry *entry);
void heap_remove(struct heap *h, struct heap_entry *entry); /* nothing if it is in none */
/* Gives the entry a new key; pushes it if it is in no heap. */
enum err heap_move(struct heap *h, struct heap_entry *entry, uint64_t key);

static inline struct heap_entry *heap_first(const struct heap *h)
{
    return h->count > 0 ? h->entry[0] : NULL;
}
static inline bool heap_holds(const struct heap_entry *entry)
{
    return entry->place != 0;
}

#endif
