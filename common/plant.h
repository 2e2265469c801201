/* plant: bugs put in on purpose, to test whether the simulator would find them.
 *
 *     if (PLANTED("no_step_fence")) return;       // in the product's code, where the bug would be
 *
 * Rules: without TANDEM_PLANTS, which only the simulator's own build of the cores defines, PLANTED is
 * false at compile time and nothing of it is left. One bug is planted per process, before anything
 * runs (plant_set). tests/sim/plants.txt says what each one is and lists them for the test run. */
#ifndef TANDEM_COMMON_PLANT_H
#define TANDEM_COMMON_PLANT_H

#ifdef TANDEM_PLANTS
#include <stdbool.h>
void plant_set(const char *name); /* a static string */
bool plant_is(const char *name);
#define PLANTED(name) plant_is(name)
#else
#define PLANTED(name) 0
#endif

#endif
