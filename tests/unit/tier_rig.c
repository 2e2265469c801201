#include "tests/unit/tier_rig.h"

#include <stdlib.h>
#include <string.h>

#include "common/err.h"
#include "common/rng.h"
#include "kv/tier_entry.h"

static const struct kv_geometry geometry = {2, 1, 64, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_BF16};

struct id128 rig_space(void)
{
    return kv_tier_space((struct id128){11, 12}, 13, &geometry, &(struct kv_part){0, 2, 0, 1});
}

static struct kv_tier_name name_of(uint32_t n)
{
    uint32_t tokens[BLOCK_TOKENS];
    struct kv_tier_name root = kv_tier_name(rig_space(), 5);
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++)
        tokens[i] = n + i;
    return kv_tier_name_next(&root, tokens);
}

struct id128 rig_key(uint32_t n)
{
    return name_of(n).key;
}

void rig_fill(void *value, uint32_t n)
{
    CHECK(kv_tier_entry_bytes(&geometry) == RIG_VALUE_BYTES);
    struct kv_tier_name name = name_of(n);
    char *kv = kv_tier_entry_kv(value);
    for (size_t i = 0; i < kv_block_bytes(&geometry); i += sizeof(struct rng_block)) {
        struct rng_block r = rng_draw(n, 3, i);
        memcpy(kv + i, &r, sizeof r);
    }
    kv_tier_entry_seal(value, RIG_VALUE_BYTES, rig_space(), &name);
}

bool rig_is(const void *value, uint32_t n)
{
    char *want = malloc(RIG_VALUE_BYTES);
    CHECK(want);
    rig_fill(want, n);
    bool is = memcmp(want, value, RIG_VALUE_BYTES) == 0;
    free(want);
    return is;
}
