/* Entries of tiers: any bytes are refused, or are what sealing the same KV gives. */
#include <string.h>

#include "common/mem.h"
#include "kv/tier_entry.h"

static const struct id128 space = {1, 2};
static const struct kv_tier_name name = {{5, 6}, {7, 8, 9}};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bool sound = kv_tier_entry_sound(data, size, space, name.key);
    bool right = kv_tier_entry_check(data, size, space, &name);
    CHECK(!right || sound);
    unsigned char *copy = mem_aligned(size + 1, 64);
    if (!copy) return 0;
    memcpy(copy, data, size);
    if (size >= 192) {
        kv_tier_entry_seal(copy, size, space, &name);
        CHECK(right == (memcmp(copy, data, size) == 0));
        CHECK(kv_tier_entry_check(copy, size, space, &name));
        copy[size - 1] ^= 1;
        CHECK(!kv_tier_entry_sound(copy, size, space, name.key));
    }
    mem_free(copy);
    return 0;
}
