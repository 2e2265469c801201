/* kv_tier_entry: an entry is right for its own place only, and no byte of it can change unnoticed. */
#include "tests/unit/testing.h"

#include <string.h>

#include "common/mem.h"
#include "common/prefix_hash.h"
#include "kv/tier_entry.h"

static const struct kv_geometry geometry = {2, 1, 4, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_BF16};
static const struct id128 model = {1, 2};

struct sample {
    struct id128 space, parent, key;
    uint32_t tokens[BLOCK_TOKENS];
    size_t bytes;
    unsigned char *entry;
};

static struct sample sample_new(void)
{
    struct sample s = {.space = kv_tier_space(model, 7, &geometry)};
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++)
        s.tokens[i] = 100 + i;
    s.parent = kv_tier_key(s.space, 9);
    s.key = kv_tier_key_next(s.parent, s.tokens);
    assert_true(kv_tier_key_hash(s.key) == prefix_hash_block(9, s.tokens));
    s.bytes = kv_tier_entry_bytes(&geometry);
    s.entry = mem_aligned(s.bytes, 64);
    assert_non_null(s.entry);
    memset(kv_tier_entry_kv(s.entry), 0x5a, kv_block_bytes(&geometry));
    kv_tier_entry_seal(s.entry, s.bytes, s.space, s.parent, s.key, s.tokens);
    return s;
}

static bool check(const struct sample *s)
{
    return kv_tier_entry_check(s->entry, s->bytes, s->space, s->parent, s->key, s->tokens);
}

static void what_was_sealed_is_right(void **state)
{
    (void)state;
    struct sample s = sample_new();
    assert_true(check(&s));
    assert_true(kv_tier_entry_sound(s.entry, s.bytes, s.space, s.key));
    assert_int_equal(s.bytes % 64, 0);
    assert_int_equal((uintptr_t)kv_tier_entry_kv(s.entry) % 64, 0);
    assert_int_equal((unsigned char *)kv_tier_entry_kv(s.entry) + kv_block_bytes(&geometry),
                     s.entry + s.bytes);
    mem_free(s.entry);
}

static void a_change_of_any_bit_is_seen(void **state)
{
    (void)state;
    struct sample s = sample_new();
    for (size_t i = 0; i < 8 * s.bytes; i++) {
        s.entry[i / 8] ^= (unsigned char)(1 << i % 8);
        if (check(&s)) fail_msg("bit %zu", i);
        s.entry[i / 8] ^= (unsigned char)(1 << i % 8);
    }
    assert_true(check(&s));
    mem_free(s.entry);
}

static void an_entry_of_another_place_is_wrong(void **state)
{
    (void)state;
    struct sample s = sample_new(), other;
    other = s, other.space.lo++;
    assert_false(check(&other));
    other = s, other.parent.hi++;
    assert_false(check(&other));
    other = s, other.key.lo++;
    assert_false(check(&other));
    other = s, other.tokens[15]++;
    assert_false(check(&other));
    other = s, other.bytes -= 64;
    assert_false(check(&other));
    other = s, other.bytes = 191;
    assert_false(check(&other));
    other = s, other.bytes = 0;
    assert_false(check(&other));
    other = s, other.key.hi++;
    assert_false(kv_tier_entry_sound(s.entry, s.bytes, s.space, other.key));
    assert_false(kv_tier_entry_sound(s.entry, 0, s.space, s.key));
    mem_free(s.entry);
}

static void keys_differ_in_all_that_they_bind(void **state)
{
    (void)state;
    struct kv_geometry g[7];
    struct id128 key[24];
    uint32_t tokens[BLOCK_TOKENS] = {0}, count = 0;
    for (uint32_t i = 0; i < 7; i++)
        g[i] = geometry;
    g[1].layers_count++, g[2].kv_heads++, g[3].head_dim += 2, g[4].block_tokens *= 2;
    g[5].layout = KV_LAYOUT_CUDA, g[6].dtype = DTYPE_F32;
    for (uint32_t i = 0; i < 7; i++)
        key[count++] = kv_tier_space(model, 7, &g[i]);
    key[count++] = kv_tier_space(model, 8, &geometry);
    key[count++] = kv_tier_space((struct id128){1, 3}, 7, &geometry);
    key[count++] = kv_tier_key(key[0], 0);
    key[count++] = kv_tier_key(key[0], 1);
    for (uint32_t depth = 0; depth < 2; depth++, count++)
        key[count] = kv_tier_key_next(key[count - 1], tokens);
    tokens[15] = 1;
    key[count] = kv_tier_key_next(key[count - 2], tokens);
    count++;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; j < i; j++)
            assert_false(id128_equal(key[i], key[j]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_sealed_is_right),
        cmocka_unit_test(a_change_of_any_bit_is_seen),
        cmocka_unit_test(an_entry_of_another_place_is_wrong),
        cmocka_unit_test(keys_differ_in_all_that_they_bind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
