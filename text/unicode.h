/* unicode: classes of characters, lower case and the four normal forms.
 *
 *     if ((e = unicode_normalize(UNICODE_NFC, text, length, &out)) != OK) return e;
 *
 * Rules: the classes are those of Rust's char and regex, since the reference uses them. Text is
 * valid UTF-8. Normalizing takes time n log n for any text, a million accents on one letter
 * included.
 * Owner: no state. */
#ifndef TANDEM_TEXT_UNICODE_H
#define TANDEM_TEXT_UNICODE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/err.h"

bool unicode_is_space(uint32_t c);       /* White_Space */
bool unicode_is_word(uint32_t c);        /* \w of a Unicode regex */
bool unicode_is_numeric(uint32_t c);     /* Nd, Nl, No */
bool unicode_is_punctuation(uint32_t c); /* P*, and ASCII's $+<=>^`|~ */
bool unicode_is_mark(uint32_t c);        /* Mn, Mc, Me */

enum unicode_form { UNICODE_NFC, UNICODE_NFD, UNICODE_NFKC, UNICODE_NFKD };

/* These append to `out`. */
enum err unicode_normalize(enum unicode_form form, const char *text, size_t length,
                           struct buf *out);
enum err unicode_lower(const char *text, size_t length, struct buf *out);

#endif
