/* rope: the angles of rotary positions, as tables of cosines and sines.
 *
 *     rope_fill(&config.rope, half_dim, positions_count, cos, sin);      // [positions][half_dim] each
 *     numerics = hash of rope_hash(&config.rope, half_dim) and others
 *
 * Pair i of position p has cos and sin of p x frequency(i), computed in double and rounded once.
 * Positions are split as 256 a + b and the angles added by the addition theorem, so a table of
 * 131,072 x 64 takes some 20 ms; the split is by absolute position, so tables of different lengths
 * agree. The C library's sin and cos are in these numbers, which is why their hash is part of the
 * numerics id (docs/numerics.md, G5). Any thread. */
#ifndef TANDEM_ENGINE_ROPE_H
#define TANDEM_ENGINE_ROPE_H

#include <stdint.h>

#include "common/model_config.h"

void rope_fill(const struct rope_config *r, uint32_t half_dim, uint32_t positions_count, float *cos,
               float *sin);
/* Of the rows of some positions, near and far; the same for any length of table. */
uint64_t rope_hash(const struct rope_config *r, uint32_t half_dim);
/* Radians per position of pair i. */
double rope_frequency(const struct rope_config *r, uint32_t half_dim, uint32_t pair);

#endif
