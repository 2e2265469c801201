/* Entries lie in chains of a hash table of 32-bit slot numbers; two rings, of used and of free slots, go
 * through all of them. The rings' heads are the two entries behind the last slot. */
#include "kv/slots.h"

#include "common/hash.h"
#include "common/mem.h"

enum { LIST_SLOTS = 16384 }; /* looked at in one call: some 10 us */

struct slot {
    struct id128 key;
    uint32_t newer, older; /* in the ring of used or of free ones */
    uint32_t chain_next;
    uint32_t used;
};

struct kv_slots {
    struct slot *slot; /* [slots_count + 2] */
    uint32_t *table;   /* [table_mask + 1] the first slot of each chain */
    uint32_t table_mask, slots_count, used_count;
    uint32_t used_ring, free_ring; /* heads: the newest is `newer` of it, the oldest `older` */
};
_Static_assert(sizeof(struct slot) + 2 * sizeof(uint32_t) <= KV_SLOTS_BYTES, "as promised");

static void link_newest(struct kv_slots *s, uint32_t head, uint32_t at)
{
    uint32_t next = s->slot[head].newer;
    s->slot[at].newer = next;
    s->slot[at].older = head;
    s->slot[next].older = at;
    s->slot[head].newer = at;
}

static void unlink_slot(struct kv_slots *s, uint32_t at)
{
    uint32_t newer = s->slot[at].newer, older = s->slot[at].older;
    s->slot[newer].older = older;
    s->slot[older].newer = newer;
    s->slot[at].newer = s->slot[at].older = at;
}

enum err kv_slots_new(struct kv_slots **out, uint32_t slots_count)
{
    CHECK(slots_count > 0 && slots_count <= KV_SLOTS_MAX);
    *out = NULL;
    struct kv_slots *s = mem_new(sizeof *s);
    if (!s) return ERR_MEMORY;
    uint32_t table_count = 1;
    while (table_count < slots_count)
        table_count *= 2;
    s->slots_count = slots_count;
    s->table_mask = table_count - 1;
    s->slot = mem_array((size_t)slots_count + 2, sizeof *s->slot);
    s->table = mem_array(table_count, sizeof *s->table);
    if (!s->slot || !s->table) {
        kv_slots_free(s);
        return ERR_MEMORY;
    }
    for (uint32_t i = 0; i < table_count; i++)
        s->table[i] = KV_SLOT_NONE;
    s->used_ring = slots_count;
    s->free_ring = slots_count + 1;
    for (uint32_t head = s->used_ring; head <= s->free_ring; head++)
        s->slot[head].newer = s->slot[head].older = head;
    for (uint32_t i = slots_count; i > 0; i--)
        link_newest(s, s->free_ring, i - 1);
    *out = s;
    return OK;
}

void kv_slots_free(struct kv_slots *s)
{
    if (!s) return;
    mem_free(s->slot);
    mem_free(s->table);
    mem_free(s);
}

uint32_t kv_slots_used(const struct kv_slots *s)
{
    return s->used_count;
}

static uint32_t *chain_of(const struct kv_slots *s, struct id128 key)
{
    return &s->table[hash_mix(key) & s->table_mask];
}

uint32_t kv_slots_find(const struct kv_slots *s, struct id128 key)
{
    uint32_t at = *chain_of(s, key);
    while (at != KV_SLOT_NONE && !id128_equal(s->slot[at].key, key))
        at = s->slot[at].chain_next;
    return at;
}

uint32_t kv_slots_free_first(const struct kv_slots *s)
{
    uint32_t at = s->slot[s->free_ring].newer;
    return at == s->free_ring ? KV_SLOT_NONE : at;
}

uint32_t kv_slots_oldest(const struct kv_slots *s)
{
    uint32_t at = s->slot[s->used_ring].older;
    return at == s->used_ring ? KV_SLOT_NONE : at;
}

struct id128 kv_slots_key(const struct kv_slots *s, uint32_t at)
{
    CHECK(at < s->slots_count && s->slot[at].used);
    return s->slot[at].key;
}

uint32_t kv_slots_list(const struct kv_slots *s, uint32_t *place, struct id128 *keys, uint32_t room)
{
    uint32_t count = 0, at = *place;
    for (uint32_t i = 0; i < LIST_SLOTS && at < s->slots_count && count < room; i++, at++)
        if (s->slot[at].used) keys[count++] = s->slot[at].key;
    *place = at < s->slots_count ? at : KV_SLOT_NONE;
    return count;
}

void kv_slots_put(struct kv_slots *s, uint32_t at, struct id128 key)
{
    CHECK(at < s->slots_count && !s->slot[at].used);
    unlink_slot(s, at);
    uint32_t *chain = chain_of(s, key);
    s->slot[at].key = key;
    s->slot[at].used = 1;
    s->slot[at].chain_next = *chain;
    *chain = at;
    link_newest(s, s->used_ring, at);
    s->used_count++;
}

void kv_slots_touch(struct kv_slots *s, uint32_t at)
{
    CHECK(at < s->slots_count && s->slot[at].used);
    unlink_slot(s, at);
    link_newest(s, s->used_ring, at);
}

void kv_slots_remove(struct kv_slots *s, uint32_t at)
{
    CHECK(at < s->slots_count && s->slot[at].used);
    uint32_t *chain = chain_of(s, s->slot[at].key);
    while (*chain != at)
        chain = &s->slot[*chain].chain_next;
    *chain = s->slot[at].chain_next;
    s->slot[at].used = 0;
    unlink_slot(s, at);
    link_newest(s, s->free_ring, at);
    s->used_count--;
}

void kv_slots_take(struct kv_slots *s, uint32_t at)
{
    CHECK(at < s->slots_count && !s->slot[at].used);
    unlink_slot(s, at);
}

void kv_slots_give_back(struct kv_slots *s, uint32_t at)
{
    CHECK(at < s->slots_count && !s->slot[at].used && s->slot[at].newer == at);
    link_newest(s, s->free_ring, at);
}
