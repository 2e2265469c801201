/* Runs seeds; prints what was reached, so that a simulation that stopped meeting trouble shows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/log.h"
#include "common/plant.h"
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
           t->tier_stores && t->tier_late && all_ways_met(t);
}

static void run_seeds(struct sim_options *options, uint64_t first, uint64_t count, bool no_faults,
                      struct sim_totals *t)
{
    for (uint64_t seed = first; seed < first + count; seed++) {
        options->seed = seed;
        options->faults = !no_faults && seed % 10 != 0; /* every tenth is undisturbed */
        sim_run(options, t);
    }
}

#ifdef TANDEM_PLANTS
/* With a bug planted the seeds must not all pass: 0 if one fails, by its exit or by a CHECK. */
static int run_planted(const char *plant, struct sim_options *options, uint64_t first,
                       uint64_t count, bool no_faults)
{
    int status = 0;
    struct sim_totals t = {0};
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        plant_set(plant);
        alarm(240); /* a bug may make it run for ever */
        run_seeds(options, first, count, no_faults, &t);
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) return 1;
    if (status != 0) {
        printf("%s: found\n", plant);
        return 0;
    }
    fprintf(stderr, "%s: not found in %llu seeds\n", plant, (unsigned long long)count);
    return 1;
}
#endif

int main(int argc, char **argv)
{
    const char *plant = NULL;
    struct sim_options options = {.faults = true};
    struct sim_totals t = {0};
    uint64_t first = 1, count = 100;
    bool no_faults = false, flood = false;
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
        } else if (strcmp(argv[i], "--pressure") == 0) {
            options.pressure = true;
        } else if (strcmp(argv[i], "--flood") == 0) {
            flood = true;
        } else if (strcmp(argv[i], "--plant") == 0 && i + 1 < argc) {
            plant = argv[++i];
        } else {
            return usage();
        }
    }
    log_setup(options.trace ? LOG_DEBUG : LOG_OFF, NULL);
#ifdef TANDEM_PLANTS
    if (plant) return run_planted(plant, &options, first, count, no_faults);
#endif
    if (plant) return usage(); /* this build has no bugs to plant */
    if (flood) return flood_compare(first, count) ? 0 : 1;
    run_seeds(&options, first, count, no_faults, &t);
    printf("%llu seeds: %llu requests, %llu tokens, %llu errors, %llu cancelled, %llu faults, "
           "%llu retries, %llu node deaths, %llu preemptions, %llu cached tokens, %llu gaps, "
           "%llu repeated tokens, %llu forks with %llu copied blocks, %llu events, "
           "%llu prefixes found where the index had them "
           "(%llu tokens), %llu not, %llu gaps in its news\n",
           (unsigned long long)count, (unsigned long long)t.requests, (unsigned long long)t.tokens,
           (unsigned long long)t.errors, (unsigned long long)t.cancelled,
           (unsigned long long)t.faults, (unsigned long long)t.retries,
           (unsigned long long)t.deaths, (unsigned long long)t.preemptions,
           (unsigned long long)t.cached_tokens, (unsigned long long)t.gaps,
           (unsigned long long)t.duplicates, (unsigned long long)t.forks,
           (unsigned long long)t.copied_blocks, (unsigned long long)t.events,
           (unsigned long long)t.prefix_hits, (unsigned long long)t.prefix_hit_tokens,
           (unsigned long long)t.prefix_false, (unsigned long long)t.prefix_gaps);
    printf("tiers: %llu tokens loaded, %llu loads late, %llu runs stored\n",
           (unsigned long long)t.tier_tokens, (unsigned long long)t.tier_late,
           (unsigned long long)t.tier_stores);
    printf("backfills: %llu that brought %llu tokens, %llu that ended otherwise\n",
           (unsigned long long)t.backfills, (unsigned long long)t.backfilled_tokens,
           (unsigned long long)t.backfills_failed);
    printf("preempted: at most %u times each; %llu tokens came back cached, %llu computed, %llu "
           "sequences handed back\n",
           t.preemptions_most, (unsigned long long)t.returned_cached,
           (unsigned long long)t.returned_computed, (unsigned long long)t.handed_back);
    bool long_run = count >= 1000 && !no_faults;
    bool as_table = reached_report(&t.reached, !no_faults && count >= 5000);
    bool missed =
        (long_run && !all_met(&t)) || (options.pressure && count >= 100 && !all_ways_met(&t));
    if (missed) {
        fprintf(stderr,
                "a kind of trouble was never met: the simulation tests less than it should\n");
        return 1;
    }
    return as_table ? 0 : 1;
}
