#include "tests/unit/testing.h"

#include "common/hash.h"

static void known_values_never_change(void **state)
{
    (void)state;
    /* XXH3 of no bytes with seed 0, from the xxHash specification's reference code. */
    assert_true(hash64("", 0) == 0x2d06800538d394c2u);
    struct id128 h = hash128("", 0);
    assert_true(h.hi == 0x99aa06d3014798d8u && h.lo == 0x6001c324468d497fu);
}

static void pieces_hash_like_the_whole(void **state)
{
    (void)state;
    unsigned char bytes[3000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 7 + i / 256);
    for (size_t size = 0; size <= sizeof bytes; size += 1 + size / 3) {
        for (size_t piece = 1; piece <= size; piece = piece * 2 + 1) {
            struct hash_stream s;
            hash_start(&s);
            for (size_t at = 0; at < size; at += piece)
                hash_more(&s, bytes + at, size - at < piece ? size - at : piece);
            assert_true(hash_end64(&s) == hash64(bytes, size));
            assert_true(id128_equal(hash_end128(&s), hash128(bytes, size)));
        }
    }
}

static void a_chain_depends_on_every_link_and_its_order(void **state)
{
    (void)state;
    struct id128 a = hash_chain(ID128_NONE, "a", 1), b = hash_chain(ID128_NONE, "b", 1);
    assert_true(id128_equal(a, hash_chain(ID128_NONE, "a", 1)));
    assert_false(id128_equal(hash_chain(a, "b", 1), hash_chain(b, "a", 1)));
    assert_false(id128_equal(hash_chain(a, "b", 1), hash_chain(ID128_NONE, "ab", 2)));
}

static void mixing_spreads_small_keys(void **state)
{
    (void)state;
    unsigned hits[64] = {0};
    for (uint64_t i = 0; i < 6400; i++)
        hits[hash_mix((struct id128){0, i}) % 64]++;
    for (int i = 0; i < 64; i++)
        assert_in_range(hits[i], 50, 150);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_values_never_change),
        cmocka_unit_test(pieces_hash_like_the_whole),
        cmocka_unit_test(a_chain_depends_on_every_link_and_its_order),
        cmocka_unit_test(mixing_spreads_small_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
