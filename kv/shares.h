/* shares: how many cached blocks each tenant has, and who has most for its weight.
 *
 *     struct kv_shares shares = {0};
 *     uint32_t slot = kv_shares_slot(&shares, tenant, weight);   // its slot, a new one, or KV_SHARES_REST;
 *                                                                 // weight 0: as it was, or 1
 *     kv_shares_add(&shares, slot);                               // a block of it has entered the cache
 *     shares.share[slot].candidates++;                            // one that may go
 *     slot = kv_shares_most(&shares);                             // whose should go
 *     kv_shares_drop(&shares, slot);                              // a block has left
 *
 * Rules: nothing is allocated. A tenant has a slot while it has blocks; when all slots are taken, who comes
 * counts together with requests that name no tenant, so a million names get no more than one share each of
 * KV_SHARES_MAX. Owner: the loop thread. */
#ifndef TANDEM_KV_SHARES_H
#define TANDEM_KV_SHARES_H

#include <stdbool.h>
#include <stdint.h>

enum { KV_SHARES_MAX = 256, KV_SHARES_REST = 0 };

struct kv_share {
    uint64_t tenant; /* 0: of KV_SHARES_REST */
    uint32_t weight, held;
    uint32_t place;      /* in used, while held > 0 */
    uint32_t candidates; /* of the held ones, which could go: the caller's count */
};

struct kv_shares {
    struct kv_share share[KV_SHARES_MAX];
    uint8_t used[KV_SHARES_MAX]; /* slots with blocks, in no order */
    uint32_t used_count;
};

uint32_t kv_shares_slot(struct kv_shares *s, uint64_t tenant, uint32_t weight);
void kv_shares_add(struct kv_shares *s, uint32_t slot);
void kv_shares_drop(struct kv_shares *s, uint32_t slot);
/* The one with the most for its weight among those with candidates, of equal ones the lowest tenant;
 * KV_SHARES_MAX: none has any. */
uint32_t kv_shares_most(const struct kv_shares *s);

#endif
