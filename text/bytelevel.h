/* bytelevel: GPT-2's way of writing bytes as printable characters. The 188 bytes that are printable
 * in Latin-1 stand for themselves, the others in order for U+0100, U+0101 and so on.
 *
 *     bytelevel_append(bytes, length, &out);                    // " a" becomes "Ġa"
 *     if (bytelevel_bytes(token, length, &out) == ...) ...      // and back
 *
 * Owner: no state. */
#ifndef TANDEM_TEXT_BYTELEVEL_H
#define TANDEM_TEXT_BYTELEVEL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/err.h"

enum err bytelevel_append(const char *bytes, size_t length, struct buf *out);
/* Appends the bytes that a token's text stands for; a text with any other character in it stands
 * for itself. */
enum err bytelevel_bytes(const char *text, size_t length, struct buf *out);

#endif
