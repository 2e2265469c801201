#include "common/map.h"

#include "common/hash.h"
#include "common/mem.h"

#define SLOTS_MIN 16

void map_fini(struct map *m)
{
    mem_free(m->slot);
    *m = (struct map){0};
}

static size_t home(const struct map *m, struct id128 key)
{
    return hash_mix(key) & (m->slots_count - 1);
}

/* The slot that holds `key`, or the free one where it belongs. */
static size_t find(const struct map *m, struct id128 key)
{
    size_t at = home(m, key);
    while (m->slot[at].value && !id128_equal(m->slot[at].key, key))
        at = (at + 1) & (m->slots_count - 1);
    return at;
}

static enum err grow(struct map *m, size_t slots_count)
{
    struct map grown = {.slot = mem_array(slots_count, sizeof *grown.slot),
                        .count = m->count,
                        .slots_count = slots_count};
    if (!grown.slot) return ERR_MEMORY;
    for (size_t i = 0; i < m->slots_count; i++)
        if (m->slot[i].value) grown.slot[find(&grown, m->slot[i].key)] = m->slot[i];
    mem_free(m->slot);
    *m = grown;
    return OK;
}

enum err map_reserve(struct map *m, size_t entries_count)
{
    if (entries_count > SIZE_MAX / 4)
        return err_set(ERR_MEMORY, "a map of %zu entries", entries_count);
    size_t slots_count = m->slots_count ? m->slots_count : SLOTS_MIN;
    while (slots_count / 4 * 3 < entries_count)
        slots_count *= 2;
    return slots_count == m->slots_count ? OK : grow(m, slots_count);
}

enum err map_put(struct map *m, struct id128 key, void *value)
{
    CHECK(value);
    enum err e = map_reserve(m, m->count + 1);
    if (e != OK) return e;
    size_t at = find(m, key);
    if (m->slot[at].value) return err_set(ERR_DUPLICATE, "the key is in the map already");
    m->slot[at] = (struct map_slot){key, value};
    m->count++;
    return OK;
}

void *map_get(const struct map *m, struct id128 key)
{
    return m->count > 0 ? m->slot[find(m, key)].value : NULL;
}

void *map_remove(struct map *m, struct id128 key)
{
    if (m->count == 0) return NULL;
    size_t hole = find(m, key), mask = m->slots_count - 1;
    void *value = m->slot[hole].value;
    if (!value) return NULL;
    /* Entries behind the hole move up, unless their home lies between the hole and them. */
    for (size_t at = (hole + 1) & mask; m->slot[at].value; at = (at + 1) & mask) {
        size_t from_home = (at - home(m, m->slot[at].key)) & mask;
        if (from_home < ((at - hole) & mask)) continue;
        m->slot[hole] = m->slot[at];
        hole = at;
    }
    m->slot[hole] = (struct map_slot){0};
    m->count--;
    return value;
}

void *map_next(const struct map *m, struct map_cursor *cursor)
{
    while (cursor->next_slot < m->slots_count) {
        const struct map_slot *slot = &m->slot[cursor->next_slot++];
        if (!slot->value) continue;
        cursor->key = slot->key;
        return slot->value;
    }
    return NULL;
}
