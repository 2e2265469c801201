/* Runs seeds of tests/sim/links.h; with a bug planted the seeds must not all pass. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/plant.h"
#include "tests/sim/death.h"
#include "tests/sim/links.h"

static int usage(void)
{
    fprintf(stderr, "usage: tandem-sim-links [--seeds FIRST COUNT] [--seed N]\n"
                    "       tandem-sim-links-planted --plant NAME [--seeds FIRST COUNT]\n");
    return 2;
}

struct seeds {
    uint64_t first, count;
    struct links_totals totals;
};

static uint64_t running;

static void say_replay(void)
{
    fprintf(stderr, "replay: build/tests/tandem-sim-links --seed %llu\n",
            (unsigned long long)running);
}

static void run_seeds(void *ctx)
{
    struct seeds *s = ctx;
    for (uint64_t seed = s->first; seed < s->first + s->count; seed++) {
        running = seed;
#ifdef TANDEM_PLANTS
        alarm(PLANT_SEED_S);
#endif
        links_run(seed, seed % 10 != 0, &s->totals); /* every tenth is undisturbed */
    }
}

static void report(uint64_t count, const struct links_totals *t)
{
    printf("%llu seeds: %llu links, %llu ready, %llu frames, %llu of them sent with a payload; "
           "%llu transports, %llu drained, %llu broken, %llu operations hung; %llu channels lost, "
           "%llu crashes, %llu freezes, %llu stale messages, %llu late ones\n",
           (unsigned long long)count, (unsigned long long)t->links, (unsigned long long)t->ready,
           (unsigned long long)t->frames, (unsigned long long)t->payloads,
           (unsigned long long)t->epochs, (unsigned long long)t->drained,
           (unsigned long long)t->broken, (unsigned long long)t->hung, (unsigned long long)t->lost,
           (unsigned long long)t->crashes, (unsigned long long)t->freezes,
           (unsigned long long)t->stale, (unsigned long long)t->late);
}

int main(int argc, char **argv)
{
    static struct seeds s = {1, 100};
    const char *plant = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seeds") == 0 && i + 2 < argc) {
            s.first = strtoull(argv[++i], NULL, 10);
            s.count = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            s.first = strtoull(argv[++i], NULL, 10);
            s.count = 1;
        } else if (strcmp(argv[i], "--plant") == 0 && i + 1 < argc) {
            plant = argv[++i];
        } else {
            return usage();
        }
    }
    death_watch(say_replay);
#ifdef TANDEM_PLANTS
    if (plant) return plant_try(plant, run_seeds, &s);
#endif
    if (plant) return usage(); /* this build has no bugs to plant */
    run_seeds(&s);
    report(s.count, &s.totals);
    return links_reached(&s.totals, s.count >= 1000) ? 0 : 1;
}
