/* buffer: bytes that grow.
 *
 *     struct buffer b = {0};
 *     if ((e = buffer_add(&b, text, length)) != OK) ...     // ERR_MEMORY: b is as before
 *     buffer_clear(&b);                                      // the memory stays
 *     buffer_fini(&b);
 *
 * Rules: all zero is empty and owns nothing. `bytes` moves when it grows.
 * Owner: whoever holds it. */
#ifndef TANDEM_TEXT_BUFFER_H
#define TANDEM_TEXT_BUFFER_H

#include <stddef.h>

#include "common/err.h"

struct buffer {
    char *bytes;
    size_t length, capacity;
};

/* Room for `more` bytes behind the length. */
enum err buffer_reserve(struct buffer *b, size_t more);
enum err buffer_add(struct buffer *b, const void *bytes, size_t length);
/* Drops the first `count` bytes. */
void buffer_drop(struct buffer *b, size_t count);
void buffer_clear(struct buffer *b);
void buffer_fini(struct buffer *b);

#endif
