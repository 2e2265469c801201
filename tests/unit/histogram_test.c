#include "tests/unit/testing.h"

#include <stdlib.h>

#include "common/histogram.h"
#include "common/rng.h"

static struct histogram h, other;

static void every_value_lies_in_a_narrow_bucket(void **state)
{
    (void)state;
    for (int bit = 0; bit < 64; bit++) {
        for (int near = -2; near <= 2; near++) {
            uint64_t value = (1ull << bit) + (uint64_t)near;
            uint32_t bucket = histogram_bucket(value);
            assert_true(bucket < HISTOGRAM_BUCKETS);
            assert_true(histogram_bucket_max(bucket) >= value);
            assert_true(histogram_bucket_max(bucket) - value <= value / 64);
            if (bucket > 0) assert_true(histogram_bucket_max(bucket - 1) < value);
        }
    }
    assert_true(histogram_bucket_max(histogram_bucket(UINT64_MAX)) == UINT64_MAX);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void percentiles_agree_with_sorting(void **state)
{
    (void)state;
    enum { COUNT = 5000 };
    static uint64_t values[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        struct rng_block r = rng_draw(3, 0, i);
        values[i] = r.word[0] >> rng_below(r.word[1], 32);
        histogram_add(i % 2 ? &h : &other, values[i]);
    }
    histogram_merge(&h, &other);
    qsort(values, COUNT, sizeof values[0], compare);
    for (uint32_t percent = 1; percent <= 100; percent++) {
        uint64_t want = values[percent * COUNT / 100 - 1];
        uint64_t got = histogram_percentile(&h, percent);
        assert_true(got >= want && got - want <= want / 64);
    }
    assert_true(h.count == COUNT && h.min == values[0] && h.max == values[COUNT - 1]);
    assert_true(histogram_percentile(&h, 100) == h.max);
}

static void an_empty_one_is_zero(void **state)
{
    (void)state;
    static struct histogram empty;
    assert_true(histogram_percentile(&empty, 50) == 0);
    assert_true(histogram_mean(&empty) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value_lies_in_a_narrow_bucket),
        cmocka_unit_test(percentiles_agree_with_sorting),
        cmocka_unit_test(an_empty_one_is_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
