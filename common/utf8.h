/* utf8: reading and writing UTF-8.
 *
 *     for (size_t at = 0; at < length;) {
 *         uint32_t c;
 *         at += utf8_read(text + at, length - at, &c);    // text is known to be UTF-8
 *     }
 *
 * Rules: utf8_check is the border; behind it text is UTF-8 and utf8_read never fails. Surrogates,
 * overlong forms and anything above U+10FFFF are not UTF-8. Zero bytes are characters.
 * Owner: no state. */
#ifndef TANDEM_COMMON_UTF8_H
#define TANDEM_COMMON_UTF8_H

#include <stddef.h>
#include <stdint.h>

#define UTF8_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

/* The first character of any bytes, at least one: its bytes if it is whole and valid; 0 if the bytes end
 * before it does; else minus the number of bytes that one U+FFFD stands for (the longest beginning of a
 * character, at least one byte, as Unicode recommends and Rust's from_utf8_lossy does). */
int utf8_first(const char *bytes, size_t length);
/* The bytes of a byte order mark that a file of text begins with and that is not of the text: 3; 0: none. */
size_t utf8_mark(const void *bytes, size_t length);
/* How many of the bytes are valid UTF-8 from the start; == length: all. */
size_t utf8_check(const char *text, size_t length);
/* The first character of valid, non-empty text; returns its bytes, 1 to 4. */
size_t utf8_read(const char *text, size_t length, uint32_t *c);
/* Writes a character, returns its bytes. */
size_t utf8_write(uint32_t c, char out[4]);
/* Where the last character of valid text[0, end) begins; end > 0. */
size_t utf8_before(const char *text, size_t end);

#endif
