#include "node/lengths.h"

static uint32_t octave(uint32_t n)
{
    return n > 1 ? 31 - (uint32_t)__builtin_clz(n) : 0;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Bucket 2 o has lengths [2^o, 1.5 x 2^o), the next one those up to 2^(o + 1). */
static uint32_t bucket_of(uint32_t length)
{
    uint32_t o = octave(length);
    uint32_t half = o > 0 && length & (1u << (o - 1));
    return least(2 * o + half, LENGTHS_BUCKETS - 1);
}

static uint32_t bucket_last(uint32_t bucket)
{
    uint32_t o = bucket / 2;
    return bucket % 2 ? (2u << o) - 1 : o > 0 ? (3u << (o - 1)) - 1 : 1;
}

static void add(struct lengths_row *row, uint32_t bucket)
{
    if (row->ended >= LENGTHS_FULL) {
        row->ended /= 2;
        for (uint32_t i = 0; i < LENGTHS_BUCKETS; i++)
            row->bucket[i] /= 2;
    }
    row->ended++;
    row->bucket[bucket]++;
}

static uint32_t limit_of(uint32_t tokens_max)
{
    return least(octave(tokens_max), LENGTHS_LIMITS - 1);
}

static uint32_t prompt_of(uint32_t prompt_count)
{
    return least(octave(prompt_count) / 2, LENGTHS_PROMPTS - 1);
}

void lengths_add(struct lengths *l, uint32_t prompt_count, uint32_t tokens_max, uint32_t generated)
{
    uint32_t limit = limit_of(tokens_max), bucket = bucket_of(generated);
    add(&l->of_limit[limit], bucket);
    add(&l->row[limit][prompt_of(prompt_count)], bucket);
}

uint32_t lengths_expect(const struct lengths *l, uint32_t prompt_count, uint32_t tokens_max,
                        uint32_t generated)
{
    uint32_t limit = limit_of(tokens_max), first = bucket_of(generated), end = first;
    const struct lengths_row *row = &l->row[limit][prompt_of(prompt_count)];
    float longer = 0, sum = 0;
    if (generated >= tokens_max) return generated;
    if (row->ended < LENGTHS_KNOWN) row = &l->of_limit[limit];
    if (row->ended < LENGTHS_KNOWN) return generated;
    for (uint32_t i = first; i < LENGTHS_BUCKETS; i++)
        longer += row->bucket[i];
    if (longer <= 0) return tokens_max; /* longer than any */
    for (; end < LENGTHS_BUCKETS; end++) {
        sum += row->bucket[end];
        if (sum >= LENGTHS_SHARE * longer) break;
    }
    uint32_t length = least(bucket_last(end), tokens_max);
    return length > generated ? length : generated;
}
