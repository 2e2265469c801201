#include "kv/regret.h"

#include "common/mem.h"

struct kv_regret {
    uint64_t mask;
    uint64_t slot[]; /* 0: empty; a hash of 0 is forgotten */
};

enum err kv_regret_new(struct kv_regret **out, uint32_t blocks_count)
{
    uint64_t slots_count = 16;
    while (slots_count < 2ull * blocks_count && slots_count < KV_REGRET_SLOTS_MAX)
        slots_count *= 2;
    struct kv_regret *r = mem_new(sizeof *r + slots_count * sizeof r->slot[0]);
    *out = r;
    if (!r) return ERR_MEMORY;
    r->mask = slots_count - 1;
    return OK;
}

void kv_regret_free(struct kv_regret *r)
{
    mem_free(r);
}

void kv_regret_evicted(struct kv_regret *r, uint64_t hash)
{
    r->slot[hash & r->mask] = hash;
}

bool kv_regret_back(struct kv_regret *r, uint64_t hash)
{
    uint64_t *slot = &r->slot[hash & r->mask];
    if (hash == 0 || *slot != hash) return false;
    *slot = 0;
    return true;
}
