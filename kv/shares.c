#include "kv/shares.h"

#include "common/err.h"

uint32_t kv_shares_slot(struct kv_shares *s, uint64_t tenant, uint32_t weight)
{
    uint32_t slot = KV_SHARES_REST;
    for (uint32_t i = 0; i < s->used_count && tenant; i++)
        if (s->share[s->used[i]].tenant == tenant) slot = s->used[i];
    bool full = s->used_count + (s->share[KV_SHARES_REST].held == 0) == KV_SHARES_MAX;
    for (uint32_t i = 1; slot == KV_SHARES_REST && tenant && !full && i < KV_SHARES_MAX; i++)
        if (s->share[i].held == 0) slot = i;
    struct kv_share *share = &s->share[slot];
    bool known = share->held > 0 && share->tenant == tenant;
    if (slot == KV_SHARES_REST) weight = 1;
    if (weight > 0 || !known) share->weight = weight > 0 ? weight : 1;
    share->tenant = slot == KV_SHARES_REST ? 0 : tenant;
    return slot;
}

void kv_shares_add(struct kv_shares *s, uint32_t slot)
{
    struct kv_share *share = &s->share[slot];
    if (share->held++ > 0) return;
    share->place = s->used_count;
    s->used[s->used_count++] = (uint8_t)slot;
}

void kv_shares_drop(struct kv_shares *s, uint32_t slot)
{
    struct kv_share *share = &s->share[slot];
    CHECK(share->held > 0);
    if (--share->held > 0) return;
    uint8_t last = s->used[--s->used_count];
    s->used[share->place] = last;
    s->share[last].place = share->place;
}

static bool more(const struct kv_share *a, const struct kv_share *b)
{
    uint64_t of_a = (uint64_t)a->held * b->weight, of_b = (uint64_t)b->held * a->weight;
    return of_a != of_b ? of_a > of_b : a->tenant < b->tenant;
}

uint32_t kv_shares_most(const struct kv_shares *s)
{
    uint32_t most = KV_SHARES_MAX;
    for (uint32_t i = 0; i < s->used_count; i++) {
        const struct kv_share *share = &s->share[s->used[i]];
        if (share->candidates == 0) continue;
        if (most == KV_SHARES_MAX || more(share, &s->share[most])) most = s->used[i];
    }
    return most;
}
