/* id: 128-bit ids of requests, tickets and processes' lives.
 *
 *     struct id128 id;
 *     if ((e = id128_mint(&id)) != OK) return e;     // shells only: asks the system for random bits
 *     char text[ID128_TEXT];
 *     id128_print(id, text);                         // 32 lower-case hex digits
 *
 * Rules: {0, 0} means none and is never minted. Any thread. */
#ifndef TANDEM_COMMON_ID_H
#define TANDEM_COMMON_ID_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct id128 {
    uint64_t hi, lo;
};

#define ID128_NONE ((struct id128){0, 0})
#define ID128_TEXT 33

static inline bool id128_equal(struct id128 a, struct id128 b)
{
    return a.hi == b.hi && a.lo == b.lo;
}
static inline bool id128_is_none(struct id128 a)
{
    return (a.hi | a.lo) == 0;
}
enum err id128_mint(struct id128 *id);
void id128_print(struct id128 id, char text[ID128_TEXT]);
/* Exactly 32 hex digits, else ERR_INVALID. */
enum err id128_parse(const char *text, size_t length, struct id128 *id);

#endif
