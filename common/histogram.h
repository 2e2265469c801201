/* histogram: percentiles of durations and sizes, from nanoseconds to years in fixed memory.
 *
 *     static struct histogram h;                          // 30 KiB: static or inside a struct
 *     histogram_add(&h, clock_now_ns() - began_ns);
 *     uint64_t p99_ns = histogram_percentile(&h, 99);
 *
 * Rules: buckets are exact below 64 and at most 1/64 wide above it, relative to their values; a
 * percentile is the largest value of its bucket, never above the maximum, so it errs upwards by less
 * than 1.6 %. Nothing is allocated. Owner: one thread; merge after it has ended. */
#ifndef TANDEM_COMMON_HISTOGRAM_H
#define TANDEM_COMMON_HISTOGRAM_H

#include <stdint.h>

enum {
    HISTOGRAM_SUB_BITS = 6,
    HISTOGRAM_BUCKETS = (65 - HISTOGRAM_SUB_BITS) << HISTOGRAM_SUB_BITS
};

struct histogram {
    uint64_t count, min, max; /* min and max mean nothing while count is 0 */
    double sum;
    uint64_t bucket[HISTOGRAM_BUCKETS];
};

static inline uint32_t histogram_bucket(uint64_t value)
{
    if (value < 1u << HISTOGRAM_SUB_BITS) return (uint32_t)value;
    uint32_t shift = 63 - (uint32_t)__builtin_clzll(value) - HISTOGRAM_SUB_BITS;
    return (shift << HISTOGRAM_SUB_BITS) + (uint32_t)(value >> shift);
}

/* The largest value that falls into the bucket. */
static inline uint64_t histogram_bucket_max(uint32_t bucket)
{
    if (bucket < 2u << HISTOGRAM_SUB_BITS) return bucket;
    uint32_t shift = (bucket >> HISTOGRAM_SUB_BITS) - 1;
    uint64_t first = bucket - ((uint64_t)shift << HISTOGRAM_SUB_BITS);
    return (first << shift) + ((1ull << shift) - 1);
}

static inline void histogram_add(struct histogram *h, uint64_t value)
{
    if (h->count == 0 || value < h->min) h->min = value;
    if (value > h->max) h->max = value;
    h->count++;
    h->sum += (double)value;
    h->bucket[histogram_bucket(value)]++;
}

static inline void histogram_merge(struct histogram *into, const struct histogram *from)
{
    if (from->count == 0) return;
    if (into->count == 0 || from->min < into->min) into->min = from->min;
    if (from->max > into->max) into->max = from->max;
    into->count += from->count;
    into->sum += from->sum;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++)
        into->bucket[i] += from->bucket[i];
}

/* percent in 0 ... 100; 0 if nothing was added. */
static inline uint64_t histogram_percentile(const struct histogram *h, double percent)
{
    double rank = percent * (double)h->count / 100; /* exact for whole percents */
    uint64_t seen = 0;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS && h->count > 0; i++) {
        seen += h->bucket[i];
        if (seen == 0 || (double)seen < rank) continue;
        uint64_t value = histogram_bucket_max(i);
        return value < h->max ? value : h->max;
    }
    return h->max;
}

static inline double histogram_mean(const struct histogram *h)
{
    return h->count > 0 ? h->sum / (double)h->count : 0;
}

#endif
