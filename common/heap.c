#include "common/heap.h"

#include "common/mem.h"

#define CAPACITY_MIN 16

void heap_fini(struct heap *h)
{
    mem_free(h->entry);
    *h = (struct heap){0};
}

enum err heap_reserve(struct heap *h, size_t entries_count)
{
    if (entries_count <= h->capacity) return OK;
    struct heap_entry **grown = mem_resize(h->entry, entries_count, sizeof *grown);
    if (!grown) return ERR_MEMORY;
    h->entry = grown;
    h->capacity = entries_count;
    return OK;
}

static bool before(const struct heap_entry *a, const struct heap_entry *b)
{
    return a->key != b->key ? a->key < b->key : a->order < b->order;
}

static void put(struct heap *h, size_t at, struct heap_entry *entry)
{
    h->entry[at] = entry;
    entry->place = at + 1;
}

/* Moves the entry at `at` to where its key belongs. */
static void settle(struct heap *h, size_t at)
{
    struct heap_entry *entry = h->entry[at];
    while (at > 0 && before(entry, h->entry[(at - 1) / 2])) {
        put(h, at, h->entry[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= h->count) break;
        if (child + 1 < h->count && before(h->entry[child + 1], h->entry[child])) child++;
        if (!before(h->entry[child], entry)) break;
        put(h, at, h->entry[child]);
        at = child;
    }
    put(h, at, entry);
}

enum err heap_push(struct heap *h, struct heap_entry *entry)
{
    CHECK(entry->place == 0);
    if (h->count == h->capacity) {
        enum err e = heap_reserve(h, h->capacity ? h->capacity * 2 : CAPACITY_MIN);
        if (e != OK) return e;
    }
    entry->order = h->pushes_count++;
    put(h, h->count++, entry);
    settle(h, entry->place - 1);
    return OK;
}

void heap_remove(struct heap *h, struct heap_entry *entry)
{
    if (entry->place == 0) return;
    size_t at = entry->place - 1;
    CHECK(at < h->count && h->entry[at] == entry);
    struct heap_entry *last = h->entry[--h->count];
    entry->place = 0;
    if (last == entry) return;
    put(h, at, last);
    settle(h, at);
}

enum err heap_move(struct heap *h, struct heap_entry *entry, uint64_t key)
{
    entry->key = key;
    if (entry->place == 0) return heap_push(h, entry);
    entry->order = h->pushes_count++;
    settle(h, entry->place - 1);
    return OK;
}
