/* oniguruma: turns a regular expression of tokenizer files into PCRE2's dialect.
 *
 *     struct buf out = {0};
 *     if ((e = oniguruma_to_pcre(pattern, length, &out)) != OK) return e;
 *
 * The reference matches with Oniguruma in its Ruby syntax. What differs, and is rewritten here:
 * classes may be nested and intersected ([a[bc]], [a-z&&[^q]]); \s \w \d \b are Unicode's and not
 * quite PCRE2's; \h is a hexadecimal digit, \v one character; \p{Han} is the script (PCRE2 adds the
 * script extensions); (?m) lets the dot match a line end; {1,3}+ repeats the repeat, it is not
 * possessive; {,3} begins at 0. PCRE2 must run with UTF, UCP and MULTILINE.
 *
 * Rules: what cannot be said in PCRE2 is ERR_UNSUPPORTED, what is no expression ERR_FORMAT; err_text
 * says what. Nesting is bounded by ONIGURUMA_DEPTH_MAX.
 * Owner: no state. */
#ifndef TANDEM_TEXT_ONIGURUMA_H
#define TANDEM_TEXT_ONIGURUMA_H

#include <stddef.h>

#include "common/buf.h"
#include "common/err.h"

#define ONIGURUMA_DEPTH_MAX 64
#define ONIGURUMA_LENGTH_MAX 65536

enum err oniguruma_to_pcre(const char *pattern, size_t length, struct buf *out);

#endif
