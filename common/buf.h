/* buf: bytes that grow, up to a limit; for messages, JSON and text.
 *
 *     struct buf b = {.limit_bytes = 1 << 20};          // 0: BUF_LIMIT_DEFAULT
 *     buf_printf(&b, "{\"id\":%u,\"text\":", id);
 *     buf_json_string(&b, text, text_bytes);            // quoted and escaped
 *     buf_add(&b, "}", 1);
 *     if (b.error != OK) return b.error;                // the first that failed; later ones did nothing
 *     send(fd, b.data, b.size, 0);
 *     buf_clear(&b);                                    // keeps the memory
 *     buf_fini(&b);
 *
 * Rules: each append returns b.error, so callers may look at each or once at the end. There is always
 * a zero byte behind the content that size does not count; data is NULL before the first append.
 * Owner: one thread. */
#ifndef TANDEM_COMMON_BUF_H
#define TANDEM_COMMON_BUF_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

#define BUF_LIMIT_DEFAULT ((size_t)1 << 30)

struct buf {
    char *data;
    size_t size, capacity;
    size_t limit_bytes;
    enum err error;
};

void buf_fini(struct buf *b);
void buf_clear(struct buf *b); /* size 0, error OK */

enum err buf_reserve(struct buf *b, size_t more_bytes);
enum err buf_add(struct buf *b, const void *bytes, size_t size);
void buf_cut(struct buf *b, size_t size);   /* keeps the first `size` bytes */
void buf_drop(struct buf *b, size_t count); /* all but the first `count` */
enum err buf_add_string(struct buf *b, const char *s);
enum err buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A JSON string with its quotes. Bytes that are no UTF-8 become U+FFFD. */
enum err buf_json_string(struct buf *b, const char *text, size_t size);
/* Text with U+FFFD for what is not UTF-8. An unfinished character at the end is left alone unless `last`;
 * *used says how many of the bytes were taken. */
enum err buf_add_lossy(struct buf *b, const char *bytes, size_t length, bool last, size_t *used);
/* The content as a string of its own, which the caller frees with mem_free; b is empty afterwards.
 * NULL if b.error was set or memory is short. */
char *buf_take(struct buf *b);

#endif
