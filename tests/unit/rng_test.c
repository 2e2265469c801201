#include "tests/unit/testing.h"

#include "common/rng.h"

static void known_answers_of_the_generator(void **state)
{
    (void)state;
    /* The known-answer vectors published with the paper for philox4x32, 10 rounds: counter, key,
     * result. The third is the digits of pi. */
    static const struct {
        struct rng_block counter;
        uint32_t key[2];
        struct rng_block want;
    } cases[] = {
        {{{0, 0, 0, 0}}, {0, 0}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
        {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
         {0xffffffff, 0xffffffff},
         {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
        {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
         {0xa4093822, 0x299f31d0},
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct rng_block got = rng_philox(cases[i].counter, cases[i].key[0], cases[i].key[1]);
        assert_memory_equal(&got, &cases[i].want, sizeof got);
    }
}

static void seed_stream_and_index_each_change_the_draw(void **state)
{
    (void)state;
    struct rng_block base = rng_draw(1, 2, 3);
    const struct rng_block others[] = {rng_draw(2, 2, 3), rng_draw(1, 3, 3), rng_draw(1, 2, 4),
                                       rng_draw(1ull << 32 | 1, 2, 3),
                                       rng_draw(1, 2, 1ull << 32 | 3)};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        assert_memory_not_equal(&base, &others[i], sizeof base);
    struct rng_block again = rng_draw(1, 2, 3);
    assert_memory_equal(&base, &again, sizeof base);
}

static void a_unit_float_is_below_one_and_even_on_average(void **state)
{
    (void)state;
    assert_true(rng_unit(0) == 0.0f);
    assert_true(rng_unit(UINT32_MAX) < 1.0f);
    double sum = 0;
    for (uint64_t i = 0; i < 4096; i++)
        sum += rng_unit(rng_draw(9, 0, i).word[0]);
    assert_true(sum / 4096 > 0.48 && sum / 4096 < 0.52);
    for (uint64_t i = 0; i < 4096; i++)
        assert_true(rng_below(rng_draw(9, 0, i).word[1], 7) < 7);
    assert_int_equal(rng_below(UINT32_MAX, 7), 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers_of_the_generator),
        cmocka_unit_test(seed_stream_and_index_each_change_the_draw),
        cmocka_unit_test(a_unit_float_is_below_one_and_even_on_average),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
