/* seeds: the runs of a random test, of which the one that fails is named; TANDEM_SEED=N runs that one alone.
 *
 *     bool all = seeds_run(SEEDS, run_seed);               // in the test; false: one was asked for
 *     cmocka_unit_test_teardown(the_test, seeds_name)      // a failed assertion jumps out of it
 *
 * A broken promise (CHECK), which ends the program without a teardown, names it, too. Owner: the test's thread. */
#ifndef TANDEM_TESTS_UNIT_SEEDS_H
#define TANDEM_TESTS_UNIT_SEEDS_H

#include "tests/unit/testing.h"

#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

static uint64_t seeds_now;
static bool seeds_running;

static int seeds_name(void **state)
{
    (void)state;
    if (seeds_running) print_error("failed with TANDEM_SEED=%llu\n", (unsigned long long)seeds_now);
    return 0;
}

static void seeds_on_abort(int number)
{
    seeds_name(NULL);
    signal(number, SIG_DFL);
    raise(number);
}

static bool seeds_run(uint64_t count, void run(uint64_t seed))
{
    const char *one = getenv("TANDEM_SEED");
    uint64_t first = one ? strtoull(one, NULL, 10) : 1;
    signal(SIGABRT, seeds_on_abort);
    seeds_running = true;
    for (seeds_now = first; seeds_now < first + (one ? 1 : count); seeds_now++)
        run(seeds_now);
    seeds_running = false;
    return !one;
}

#endif
