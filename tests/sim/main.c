/* Runs seeds; prints what was reached, so that a simulation that stopped meeting trouble shows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/plant.h"
#include "tests/sim/death.h"
#include "tests/sim/sim.h"

static int usage(void)
{
    fprintf(stderr, "usage: tandem-sim [--seeds FIRST COUNT] [--seed N] [--trace] [--no-faults] "
                    "[--pressure] [--flood]\n"
                    "       tandem-sim-planted --plant NAME [--seeds FIRST COUNT]\n");
    return 2;
}

/* Of long generations: that they gave way, and came back in each way. */
static bool all_ways_met(const struct sim_totals *t)
{
    return t->preemptions && t->returned_cached && t->returned_computed && t->handed_back;
}

static bool all_met(const struct sim_totals *t)
{
    return t->retries && t->deaths && t->preemptions && t->cached_tokens && t->duplicates &&
           t->cancelled && t->forks && t->copied_blocks && t->prefix_hits && t->prefix_false &&
           t->prefix_gaps && t->backfills && t->backfills_failed && t->tier_tokens &&
           t->tier_skipped && t->tier_stores && t->tier_late && t->held_steps && all_ways_met(t);
}

static struct sim_options running;

void sim_note_run(const struct sim_options *options)
{
    running = *options;
}

void sim_say_replay(void)
{
    unsigned long long seed = running.seed;
    if (running.flood)
        fprintf(stderr, "replay: build/tests/tandem-sim --flood --seeds %llu 1\n", seed);
    else
        fprintf(stderr, "replay: build/tests/tandem-sim --seed %llu --trace%s%s\n", seed,
                running.pressure ? " --pressure" : "", running.faults ? "" : " --no-faults");
}

struct seeds {
    uint64_t first, count;
    struct sim_options options;
    bool no_faults;
    struct sim_totals totals;
};

static void run_seeds(void *ctx)
{
    struct seeds *s = ctx;
    for (uint64_t seed = s->first; seed < s->first + s->count; seed++) {
#ifdef TANDEM_PLANTS
        alarm(PLANT_SEED_S);
#endif
        s->options.seed = seed;
        s->options.faults = !s->no_faults && seed % 10 != 0; /* every tenth is undisturbed */
        sim_run(&s->options, &s->totals);
    }
}

static void report(const struct seeds *s)
{
    const struct sim_totals *t = &s->totals;
    printf("%llu seeds: %llu requests, %llu tokens, %llu errors, %llu cancelled, %llu faults, "
           "%llu retries, %llu node deaths, %llu preemptions, %llu cached tokens, %llu gaps, "
           "%llu repeated tokens, %llu forks with %llu copied blocks, %llu events, "
           "%llu prefixes found where the index had them "
           "(%llu tokens), %llu not, %llu gaps in its news\n",
           (unsigned long long)s->count, (unsigned long long)t->requests,
           (unsigned long long)t->tokens, (unsigned long long)t->errors,
           (unsigned long long)t->cancelled, (unsigned long long)t->faults,
           (unsigned long long)t->retries, (unsigned long long)t->deaths,
           (unsigned long long)t->preemptions, (unsigned long long)t->cached_tokens,
           (unsigned long long)t->gaps, (unsigned long long)t->duplicates,
           (unsigned long long)t->forks, (unsigned long long)t->copied_blocks,
           (unsigned long long)t->events, (unsigned long long)t->prefix_hits,
           (unsigned long long)t->prefix_hit_tokens, (unsigned long long)t->prefix_false,
           (unsigned long long)t->prefix_gaps);
    printf("tiers: %llu tokens loaded, %llu of them or behind them skipped, %llu loads late, %llu "
           "runs stored\n",
           (unsigned long long)t->tier_tokens, (unsigned long long)t->tier_skipped,
           (unsigned long long)t->tier_late, (unsigned long long)t->tier_stores);
    printf("backfills: %llu that brought %llu tokens, %llu that ended otherwise\n",
           (unsigned long long)t->backfills, (unsigned long long)t->backfilled_tokens,
           (unsigned long long)t->backfills_failed);
    printf("preempted: at most %u times each; %llu tokens came back cached, %llu computed, %llu "
           "sequences handed back; %llu steps held for a stream\n",
           t->preemptions_most, (unsigned long long)t->returned_cached,
           (unsigned long long)t->returned_computed, (unsigned long long)t->handed_back,
           (unsigned long long)t->held_steps);
}

int main(int argc, char **argv)
{
    const char *plant = NULL;
    struct seeds s = {.first = 1, .count = 100};
    bool flood = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seeds") == 0 && i + 2 < argc) {
            s.first = strtoull(argv[++i], NULL, 10);
            s.count = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            s.first = strtoull(argv[++i], NULL, 10);
            s.count = 1;
        } else if (strcmp(argv[i], "--trace") == 0) {
            s.options.trace = true;
        } else if (strcmp(argv[i], "--no-faults") == 0) {
            s.no_faults = true;
        } else if (strcmp(argv[i], "--pressure") == 0) {
            s.options.pressure = true;
        } else if (strcmp(argv[i], "--flood") == 0) {
            flood = true;
        } else if (strcmp(argv[i], "--plant") == 0 && i + 1 < argc) {
            plant = argv[++i];
        } else {
            return usage();
        }
    }
    log_setup(s.options.trace ? LOG_DEBUG : LOG_OFF, NULL);
    death_watch(sim_say_replay);
#ifdef TANDEM_PLANTS
    if (plant) return plant_try(plant, run_seeds, &s);
#endif
    if (plant) return usage(); /* this build has no bugs to plant */
    if (flood) return flood_compare(s.first, s.count) ? 0 : 1;
    run_seeds(&s);
    report(&s);
    bool long_run = s.count >= 1000 && !s.no_faults;
    bool as_table = reached_report(&s.totals.reached, !s.no_faults && s.count >= 5000);
    bool missed = (long_run && !all_met(&s.totals)) ||
                  (s.options.pressure && s.count >= 100 && !all_ways_met(&s.totals));
    if (missed) {
        fprintf(stderr,
                "a kind of trouble was never met: the simulation tests less than it should\n");
        return 1;
    }
    return as_table ? 0 : 1;
}
