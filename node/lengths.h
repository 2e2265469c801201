/* lengths: how many tokens requests like this one turned out to generate.
 *
 *     struct lengths l = {0};
 *     lengths_add(&l, prompt_count, tokens_max, generated_count);         // one has ended
 *     uint32_t end = lengths_expect(&l, prompt_count, tokens_max, 50);    // of one that has 50 tokens
 *
 * A request's like are those of its limit, by octaves, and of its prompt's length, by two octaves; if too few
 * of these have ended, those of its limit alone; if too few of those, nothing is known. Older ones count less:
 * what a histogram holds is halved when it is full. The answer is a length that LENGTHS_SHARE of the requests
 * that got this far did not exceed.
 *
 * Rules: pure and small; nothing is allocated. Never below `generated`, never above the limit.
 * Owner: the loop thread. */
#ifndef TANDEM_NODE_LENGTHS_H
#define TANDEM_NODE_LENGTHS_H

#include <stdint.h>

enum {
    LENGTHS_LIMITS = 21,  /* octaves of tokens_max, up to JOB_TOKENS_MAX */
    LENGTHS_PROMPTS = 11, /* double octaves of prompts */
    LENGTHS_BUCKETS = 42, /* half octaves of lengths */
    LENGTHS_KNOWN = 8,    /* that must have ended */
    LENGTHS_FULL = 256
};
#define LENGTHS_SHARE 0.8f

struct lengths_row {
    float ended, bucket[LENGTHS_BUCKETS];
};
struct lengths {
    struct lengths_row of_limit[LENGTHS_LIMITS];
    struct lengths_row row[LENGTHS_LIMITS][LENGTHS_PROMPTS];
};

void lengths_add(struct lengths *l, uint32_t prompt_count, uint32_t tokens_max, uint32_t generated);
/* `generated`: so many are known already; the answer if nothing is known. */
uint32_t lengths_expect(const struct lengths *l, uint32_t prompt_count, uint32_t tokens_max,
                        uint32_t generated);

#endif
