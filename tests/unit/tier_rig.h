/* tier_rig: entries of tiers whose every byte follows from their number.
 *
 *     struct id128 key = rig_key(7);
 *     rig_fill(value, 7);                          // RIG_VALUE_BYTES, sealed
 *     assert_true(rig_is(value, 7));
 *
 * Rules: numbers below 2^32. Any thread. */
#ifndef TANDEM_TESTS_TIER_RIG_H
#define TANDEM_TESTS_TIER_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/id.h"
#include "kv/tier.h"

enum { RIG_VALUE_BYTES = 128 + 2 * 16 * 64 * 2 * 2 }; /* two layers of one kv head of 64, bf16 */

struct id128 rig_space(void);
struct id128 rig_key(uint32_t n);
void rig_fill(void *value, uint32_t n);
bool rig_is(const void *value, uint32_t n);

#endif
