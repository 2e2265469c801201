/* smooth: a moving average in integers: each new value counts an eighth.
 *
 *     core->step_ns = smooth(core->step_ns, took_ns);      // 0: nothing was measured yet
 *
 * Pure. Any thread. */
#ifndef TANDEM_COMMON_SMOOTH_H
#define TANDEM_COMMON_SMOOTH_H

#include <stdint.h>

static inline uint64_t smooth(uint64_t average, uint64_t value)
{
    return average == 0 ? value : (average * 7 + value) / 8;
}

#endif
