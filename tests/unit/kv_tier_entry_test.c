/* kv_tier_entry: an entry is right for its own place only, and no byte of it can change unnoticed. */
#include "tests/unit/testing.h"

#include <string.h>

#include "common/mem.h"
#include "common/prefix_hash.h"
#include "kv/tier_entry.h"

static const struct kv_geometry geometry = {2, 1, 4, BLOCK_TOKENS, KV_LAYOUT_CPU, DTYPE_BF16};
static const struct id128 model = {1, 2};
static const struct kv_part whole = {0, 2, 0, 1};

struct sample {
    struct id128 space;
    struct kv_tier_name name;
    size_t bytes;
    unsigned char *entry;
};

static struct sample sample_new(void)
{
    struct sample s = {.space = kv_tier_space(model, 7, &geometry, &whole)};
    struct kv_tier_name root = kv_tier_name(s.space, 9);
    uint32_t tokens[BLOCK_TOKENS];
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++)
        tokens[i] = 100 + i;
    s.name = kv_tier_name_next(&root, tokens);
    assert_true(kv_tier_key_hash(s.name.key) == prefix_hash_block(9, tokens));
    s.bytes = kv_tier_entry_bytes(&geometry);
    s.entry = mem_aligned(s.bytes, 64);
    assert_non_null(s.entry);
    memset(kv_tier_entry_kv(s.entry), 0x5a, kv_block_bytes(&geometry));
    kv_tier_entry_seal(s.entry, s.bytes, s.space, &s.name);
    return s;
}

static bool check(const struct sample *s)
{
    return kv_tier_entry_check(s->entry, s->bytes, s->space, &s->name);
}

static void what_was_sealed_is_right(void **state)
{
    (void)state;
    struct sample s = sample_new();
    assert_true(check(&s));
    assert_true(kv_tier_entry_sound(s.entry, s.bytes, s.space, s.name.key));
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
    other = s, other.name.key.lo++;
    assert_false(check(&other));
    other = s, other.bytes -= 64;
    assert_false(check(&other));
    other = s, other.bytes = 127;
    assert_false(check(&other));
    other = s, other.bytes = 0;
    assert_false(check(&other));
    other = s, other.name.key.hi++;
    assert_false(kv_tier_entry_sound(s.entry, s.bytes, s.space, other.name.key));
    assert_false(kv_tier_entry_sound(s.entry, 0, s.space, s.name.key));
    mem_free(s.entry);
}

/* Another prompt whose key is the same one, however that came about. */
static void an_entry_of_an_equal_key_is_wrong(void **state)
{
    (void)state;
    struct sample s = sample_new(), other = s;
    for (size_t i = 0; i < sizeof s.name.digest; i++) {
        other.name = s.name;
        other.name.digest[i] ^= 0x80;
        assert_false(check(&other));
        assert_true(kv_tier_entry_sound(other.entry, other.bytes, other.space, other.name.key));
    }
    mem_free(s.entry);
}

/* BLAKE2b of what the header says, the way that others compute it. */
static void a_name_is_a_known_hash_of_the_whole_prompt(void **state)
{
    (void)state;
    static const unsigned char want[KV_TIER_DIGEST_BYTES] = {
        0xd8, 0x66, 0x2b, 0xd8, 0x8e, 0xbb, 0x4f, 0x0b, 0xb8, 0xc6, 0xf5,
        0x4b, 0x04, 0x18, 0xc2, 0x9d, 0x32, 0x2e, 0x38, 0x90, 0x46, 0x7d,
        0xad, 0xf0, 0xae, 0xe0, 0xab, 0x20, 0xb5, 0x6c, 0x34, 0xc1};
    const struct id128 space = {0x0102030405060708, 0x1112131415161718};
    struct kv_tier_name name = kv_tier_name(space, 9);
    uint32_t tokens[BLOCK_TOKENS];
    for (uint32_t block = 0; block < 2; block++) {
        for (uint32_t i = 0; i < BLOCK_TOKENS; i++)
            tokens[i] = 1000 * block + i;
        name = kv_tier_name_next(&name, tokens);
    }
    assert_memory_equal(name.digest, want, sizeof want);
    assert_memory_equal(&name.key.hi, want, sizeof name.key.hi);
}

static void names_differ_in_all_that_they_bind(void **state)
{
    (void)state;
    struct kv_geometry g[7];
    struct kv_part part[5];
    struct id128 space[24];
    struct kv_tier_name name[8];
    uint32_t tokens[BLOCK_TOKENS] = {0}, count = 0, names = 0;
    for (uint32_t i = 0; i < 7; i++)
        g[i] = geometry;
    g[1].layers_count++, g[2].kv_heads++, g[3].head_dim += 2, g[4].block_tokens *= 2;
    g[5].layout = KV_LAYOUT_CUDA, g[6].dtype = DTYPE_F32;
    for (uint32_t i = 0; i < 7; i++)
        space[count++] = kv_tier_space(model, 7, &g[i], &whole);
    for (uint32_t i = 0; i < 5; i++)
        part[i] = whole;
    part[1].layers_first++, part[2].layers_all++, part[3].heads_first++, part[4].heads_all++;
    for (uint32_t i = 1; i < 5; i++)
        space[count++] = kv_tier_space(model, 7, &geometry, &part[i]);
    space[count++] = kv_tier_space(model, 8, &geometry, &whole);
    space[count++] = kv_tier_space((struct id128){1, 3}, 7, &geometry, &whole);
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; j < i; j++)
            assert_false(id128_equal(space[i], space[j]));
    name[names++] = kv_tier_name(space[0], 0);
    name[names++] = kv_tier_name(space[1], 0);
    name[names++] = kv_tier_name(space[0], 1);
    for (uint32_t depth = 0; depth < 2; depth++, names++)
        name[names] = kv_tier_name_next(&name[names - 1], tokens);
    tokens[15] = 1;
    name[names] = kv_tier_name_next(&name[names - 2], tokens);
    names++;
    for (uint32_t i = 0; i < names; i++)
        for (uint32_t j = 0; j < i; j++) {
            assert_memory_not_equal(name[i].digest, name[j].digest, KV_TIER_DIGEST_BYTES);
            assert_false(id128_equal(name[i].key, name[j].key));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_sealed_is_right),
        cmocka_unit_test(a_change_of_any_bit_is_seen),
        cmocka_unit_test(an_entry_of_another_place_is_wrong),
        cmocka_unit_test(an_entry_of_an_equal_key_is_wrong),
        cmocka_unit_test(a_name_is_a_known_hash_of_the_whole_prompt),
        cmocka_unit_test(names_differ_in_all_that_they_bind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
