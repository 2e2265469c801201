/* backoff: when to look again at what is under way and rings no bell (NCCL's launch of an operation).
 *
 *     again_ns = backoff_ns(now_ns - begun_ns);     // 0: look again at once; else in so many ns
 *
 * What takes microseconds is seen at once: the first BACKOFF_SPIN_NS are spent looking, about what a wake-up by
 * a timer costs anyway. After them each wait is half of what has passed, so that the end is seen late by a third
 * of the whole at most, never by more than BACKOFF_NS_MAX; the looks are some dozens, and one more for each
 * BACKOFF_NS_MAX that it lasts. Pure; nobody looks while nothing is under way. */
#ifndef TANDEM_XFER_DEVICE_BACKOFF_H
#define TANDEM_XFER_DEVICE_BACKOFF_H

#include <stdint.h>

#define BACKOFF_SPIN_NS 20000ull
#define BACKOFF_NS_MAX 1000000ull

static inline uint64_t backoff_ns(uint64_t waited_ns)
{
    if (waited_ns < BACKOFF_SPIN_NS) return 0;
    return waited_ns / 2 < BACKOFF_NS_MAX ? waited_ns / 2 : BACKOFF_NS_MAX;
}

#endif
