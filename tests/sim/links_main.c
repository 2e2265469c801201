/* Runs seeds of tests/sim/links.h; with a bug planted the seeds must not all pass. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/plant.h"
#include "tests/sim/links.h"

static int usage(void)
{
    fprintf(stderr, "usage: tandem-sim-links [--seeds FIRST COUNT] [--seed N]\n"
                    "       tandem-sim-links-planted --plant NAME [--seeds FIRST COUNT]\n");
    return 2;
}

static void run_seeds(uint64_t first, uint64_t count, struct links_totals *t)
{
    for (uint64_t seed = first; seed < first + count; seed++)
        links_run(seed, seed % 10 != 0, t); /* every tenth is undisturbed */
}

#ifdef TANDEM_PLANTS
/* 0 if a seed fails, by its exit or by a CHECK. */
static int run_planted(const char *plant, uint64_t first, uint64_t count)
{
    static struct links_totals t;
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        plant_set(plant);
        alarm(100);
        run_seeds(first, count, &t);
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
    static struct links_totals t;
    const char *plant = NULL;
    uint64_t first = 1, count = 100;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seeds") == 0 && i + 2 < argc) {
            first = strtoull(argv[++i], NULL, 10);
            count = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            first = strtoull(argv[++i], NULL, 10);
            count = 1;
        } else if (strcmp(argv[i], "--plant") == 0 && i + 1 < argc) {
            plant = argv[++i];
        } else {
            return usage();
        }
    }
#ifdef TANDEM_PLANTS
    if (plant) return run_planted(plant, first, count);
#endif
    if (plant) return usage(); /* this build has no bugs to plant */
    run_seeds(first, count, &t);
    report(count, &t);
    return links_reached(&t, count >= 1000) ? 0 : 1;
}
