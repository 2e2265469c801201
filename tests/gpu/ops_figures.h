/* ops_figures: single operations of a backend in the sizes of a shape, as shares of the ceilings.
 *
 *     ops_figures("cuda", deterministic, shape, &ceilings);       // prints figures
 *
 * Numbers are random, blocks lie anywhere in the pool, and each operation is enqueued many times in a row,
 * so that launches do not count. What fails ends the program. Owner: the program's main thread. */
#ifndef TANDEM_TESTS_GPU_OPS_FIGURES_H
#define TANDEM_TESTS_GPU_OPS_FIGURES_H

#include "tests/gpu/ceilings_cuda.h"
#include "tests/gpu/model.h"

void ops_figures(const char *backend, bool deterministic, const struct gpu_shape *shape,
                 const struct ceilings_cuda *c);

#endif
