/* How late the end of something is seen, and how many looks that takes, on a clock of the test's own. */
#include "xfer/device/backoff.h"

#include <stdbool.h>

#include "common/clock.h"
#include "tests/unit/testing.h"

enum { LOOK_NS = 500, WAKE_NS = 5000 }; /* what a look costs, and what a timer is late */

struct watch {
    uint64_t looks, late_ns;
};

/* Looks until what lasts so long is over. */
static struct watch watch(uint64_t lasts_ns)
{
    struct watch w = {0};
    for (uint64_t now_ns = 0;;) {
        now_ns += LOOK_NS;
        w.looks++;
        if (now_ns >= lasts_ns) {
            w.late_ns = now_ns - lasts_ns;
            return w;
        }
        uint64_t again_ns = backoff_ns(now_ns);
        now_ns += again_ns > 0 ? again_ns + WAKE_NS : 0;
    }
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static void the_end_is_seen_soon_and_for_few_looks(void **state)
{
    (void)state;
    for (uint64_t lasts_ns = 1; lasts_ns <= 20 * NS_PER_S; lasts_ns += lasts_ns / 7 + 1) {
        struct watch w = watch(lasts_ns);
        bool short_one = lasts_ns <= BACKOFF_SPIN_NS;
        uint64_t wait_ns = short_one ? 0 : WAKE_NS + least(lasts_ns / 2, BACKOFF_NS_MAX);
        assert_in_range(w.late_ns, 0, LOOK_NS + wait_ns);
        uint64_t spins = least(lasts_ns, BACKOFF_SPIN_NS) / LOOK_NS + 1;
        assert_in_range(w.looks, 1, spins + 12 + lasts_ns / BACKOFF_NS_MAX);
    }
}

static void a_launch_of_some_microseconds_needs_no_timer(void **state)
{
    (void)state;
    assert_int_equal(backoff_ns(0), 0);
    assert_int_equal(backoff_ns(BACKOFF_SPIN_NS - 1), 0);
    assert_int_equal(backoff_ns(BACKOFF_SPIN_NS), BACKOFF_SPIN_NS / 2);
    assert_int_equal(backoff_ns(UINT64_MAX), BACKOFF_NS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_end_is_seen_soon_and_for_few_looks),
        cmocka_unit_test(a_launch_of_some_microseconds_needs_no_timer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
