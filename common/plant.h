/* plant: bugs put in on purpose, to test whether the tests would find them.
 *
 *     if (PLANTED("no_step_fence")) return;       // in the product's code, where the bug would be
 *     for (i = 0; i < count + PLANTED("one_too_far"); i++)
 *
 * Rules: without TANDEM_PLANTS, which only tests' own builds of the cores, the CUDA backend and the
 * transports define, PLANTED is 0 at compile time and nothing of it is left. One bug is planted per
 * process, before anything runs (plant_set, or TANDEM_PLANT in the environment), then any thread asks.
 * tests/sim/plants.txt and tests/fake/backend/plants.txt say what each one is and list them for the
 * test run. */
#ifndef TANDEM_COMMON_PLANT_H
#define TANDEM_COMMON_PLANT_H

#ifdef TANDEM_PLANTS
#include <stdbool.h>
#ifdef __cplusplus
extern "C" {
#endif
void plant_set(const char *name); /* a static string */
bool plant_is(const char *name);
/* For simulators: runs seeds in a child with this bug. 0, the exit code wanted, if it ends by a CHECK, an exit
 * that is not 0, or an alarm: a bug may make one seed run for ever, so each has alarm(PLANT_SEED_S) of its own.
 * All of them together may take long on a slow machine, and that is no finding. */
#define PLANT_SEED_S 30
int plant_try(const char *name, void (*run)(void *seeds), void *seeds);
#ifdef __cplusplus
}
#endif
#define PLANTED(name) (plant_is(name) ? 1u : 0u)
#else
#define PLANTED(name) 0u
#endif

#endif
