/* clock: the two clocks. Only shells read them; cores get now_ns as an argument. Any thread. */
#ifndef TANDEM_COMMON_CLOCK_H
#define TANDEM_COMMON_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_US 1000ull
#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull
#define TIME_NEVER UINT64_MAX

/* CLOCK_MONOTONIC in ns: for deadlines and durations within one host. */
static inline uint64_t clock_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* From `then_ns` to `now_ns` in us; 0 before `then_ns` is known (0), and when it is the later one: the
 * time of a turn of a loop is older than what other threads say within that turn. */
static inline uint64_t clock_since_us(uint64_t now_ns, uint64_t then_ns)
{
    return then_ns != 0 && now_ns > then_ns ? (now_ns - then_ns) / NS_PER_US : 0;
}

#endif
