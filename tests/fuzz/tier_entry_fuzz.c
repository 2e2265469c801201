/* Entries of tiers: any bytes are refused, or are what sealing the same KV gives. */
#include <string.h>

#include "common/mem.h"
#include "kv/tier_entry.h"

static const struct id128 space = {1, 2}, parent = {3, 4}, key = {5, 6};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t tokens[BLOCK_TOKENS] = {7, 8, 9};
    bool sound = kv_tier_entry_sound(data, size, space, key);
    bool right = kv_tier_entry_check(data, size, space, parent, key, tokens);
    CHECK(!right || sound);
    unsigned char *copy = mem_aligned(size + 1, 64);
    if (!copy) return 0;
    memcpy(copy, data, size);
    if (size >= 256) {
        kv_tier_entry_seal(copy, size, space, parent, key, tokens);
        CHECK(right == (memcmp(copy, data, size) == 0));
        CHECK(kv_tier_entry_check(copy, size, space, parent, key, tokens));
        copy[size - 1] ^= 1;
        CHECK(!kv_tier_entry_sound(copy, size, space, key));
    }
    mem_free(copy);
    return 0;
}
