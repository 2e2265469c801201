#include "common/draw.h"

#include <math.h>

#include "tests/unit/testing.h"

static float random_float(uint64_t seed, uint32_t i)
{
    return draw_float_of(rng_draw(seed, 0, i).word[0]);
}

static void a_weight_is_the_exponential(void **state)
{
    (void)state;
    assert_true(draw_exp(0) == 1 && draw_exp(-0.0f) == 1 && draw_exp(-1e-45f) == 1);
    assert_true(draw_exp(-87.0f) == 0 && draw_exp(-INFINITY) == 0 && draw_exp(NAN) == 0);
    for (uint32_t i = 0; i < 20000; i++) {
        float x = -87.0f * rng_unit(rng_draw(1, 0, i).word[0]);
        double wanted = exp((double)x), got = (double)draw_exp(x);
        if (fabs(got - wanted) > 3e-7 * wanted) fail_msg("exp(%g) is %g", (double)x, got);
    }
}

static void a_mass_is_the_weight_rounded_to_nearest_even(void **state)
{
    static const struct {
        double weight, mass;
    } row[] = {
        {0, 0},
        {1, 0x1p40},
        {0.5, 0x1p39},
        {0x1p-40, 1},
        {0x1p-41, 0},
        {0x1.8p-40, 2},
        {0x1.4p-39, 2},
        {0x1.cp-39, 4},
        {0x1.02p-41, 1},
        {0x1p-42, 0},
        {0x1.fffffep-1, 0x1.fffffep39},
        {0x1p-126, 0},
        {0x1.8p-126, 0},
        {0x1p-149, 0},
        {0x1.fffffep-41, 1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++)
        if (draw_mass((float)row[i].weight) != (uint64_t)row[i].mass)
            fail_msg("the mass of %a is %llu", row[i].weight,
                     (unsigned long long)draw_mass((float)row[i].weight));
}

static void a_part_is_below_the_whole(void **state)
{
    (void)state;
    assert_true(draw_part_of(UINT64_MAX, 1) == 0);
    assert_true(draw_part_of(UINT64_MAX, 1ull << 58) == (1ull << 58) - 1);
    assert_true(draw_part_of(1ull << 63, 1001) == 500);
    assert_true(draw_part_of(0, 1ull << 58) == 0);
    assert_true(draw_top_mass(0, 1000) == 1);
    assert_true(draw_top_mass(0.5f, 1001) == 500);
    assert_true(draw_top_mass(0x1.fffffep-1f, 1ull << 58) < 1ull << 58);
    assert_true(draw_top_mass(1e-40f, 1ull << 58) == 1);
}

static void keys_order_by_logit_then_by_lower_id(void **state)
{
    (void)state;
    assert_true(draw_key(-0.0f, 4) == draw_key(0.0f, 4));
    assert_true(draw_key(NAN, 0) < draw_key(-INFINITY, 9));
    assert_true(draw_key(-NAN, 3) == draw_key(NAN, 3));
    for (uint32_t i = 0; i < 20000; i++) {
        float a = random_float(2, i), b = i % 7 ? random_float(3, i) : a;
        uint64_t key_a = draw_key(a, 5), key_b = draw_key(b, 6);
        if (a >= b && key_a <= key_b) fail_msg("%g (5) is below %g (6)", (double)a, (double)b);
        if (a < b && key_a >= key_b) fail_msg("%g (5) is above %g (6)", (double)a, (double)b);
        assert_true(draw_key_id(key_a) == 5);
        assert_true(draw_key_logit(key_a) == a || (isnan(a) && isnan(draw_key_logit(key_a))));
    }
    assert_true(isnan(draw_key_logit(0)));
}

static void log_probabilities_have_one_nan_and_one_zero(void **state)
{
    (void)state;
    assert_true(draw_bits_of(draw_logprob(INFINITY, (double)INFINITY)) == 0x7fc00000u);
    assert_true(draw_bits_of(draw_logprob(-NAN, 1)) == 0x7fc00000u);
    assert_true(draw_bits_of(draw_logprob(-0.0f, 0)) == 0);
    assert_true(draw_logprob(-INFINITY, 1) == -INFINITY);
    for (uint32_t i = 1; i < 2000; i++) {
        double base = draw_log_base(0, (uint64_t)i << 36), wanted = log(i / 16.0);
        if (fabs(base - wanted) > 1e-14) fail_msg("ln(%u / 16) is %g", i, base);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_weight_is_the_exponential),
        cmocka_unit_test(a_mass_is_the_weight_rounded_to_nearest_even),
        cmocka_unit_test(a_part_is_below_the_whole),
        cmocka_unit_test(keys_order_by_logit_then_by_lower_id),
        cmocka_unit_test(log_probabilities_have_one_nan_and_one_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
