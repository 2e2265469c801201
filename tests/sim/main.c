/* Runs seeds; prints what was reached, so that a simulation that stopped meeting trouble shows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "tests/sim/sim.h"

static int usage(void)
{
    fprintf(stderr, "usage: sim [--seeds FIRST COUNT] [--seed N] [--trace] [--no-faults]\n");
    return 2;
}

static bool all_met(const struct sim_totals *t)
{
    return t->retries && t->deaths && t->preemptions && t->cached_tokens && t->duplicates &&
           t->cancelled;
}

int main(int argc, char **argv)
{
    struct sim_options options = {.faults = true};
    struct sim_totals t = {0};
    uint64_t first = 1, count = 100;
    bool no_faults = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seeds") == 0 && i + 2 < argc) {
            first = strtoull(argv[++i], NULL, 10);
            count = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            first = strtoull(argv[++i], NULL, 10);
            count = 1;
        } else if (strcmp(argv[i], "--trace") == 0) {
            options.trace = true;
        } else if (strcmp(argv[i], "--no-faults") == 0) {
            no_faults = true;
        } else {
            return usage();
        }
    }
    log_setup(options.trace ? LOG_DEBUG : LOG_OFF, NULL);
    for (uint64_t seed = first; seed < first + count; seed++) {
        options.seed = seed;
        options.faults = !no_faults && seed % 10 != 0; /* every tenth is undisturbed */
        sim_run(&options, &t);
    }
    printf("%llu seeds: %llu requests, %llu tokens, %llu errors, %llu cancelled, %llu faults, "
           "%llu retries, %llu node deaths, %llu preemptions, %llu cached tokens, %llu gaps, "
           "%llu repeated tokens, %llu events\n",
           (unsigned long long)count, (unsigned long long)t.requests, (unsigned long long)t.tokens,
           (unsigned long long)t.errors, (unsigned long long)t.cancelled,
           (unsigned long long)t.faults, (unsigned long long)t.retries,
           (unsigned long long)t.deaths, (unsigned long long)t.preemptions,
           (unsigned long long)t.cached_tokens, (unsigned long long)t.gaps,
           (unsigned long long)t.duplicates, (unsigned long long)t.events);
    if (count >= 1000 && !no_faults && !all_met(&t)) {
        fprintf(stderr,
                "a kind of trouble was never met: the simulation tests less than it should\n");
        return 1;
    }
    return 0;
}
