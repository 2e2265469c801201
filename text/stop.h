/* stop: finds the first stop string in text that comes in pieces, and holds back what could be the
 * beginning of one.
 *
 *     struct stop *s;
 *     if ((e = stop_new(&s, strings, strings_count)) != OK) return e;  // ERR_INVALID: the request
 *     for each piece of text:
 *         if ((e = stop_push(s, text, length, &shown)) != OK) break;
 *         ... shown.text ...
 *         if (shown.hit != STOP_NONE) finish with strings[shown.hit];
 *     stop_finish(s, &shown);                                      // no hit: what was held back
 *     stop_free(s);
 *
 * Rules: the hit is the string whose last byte comes first in the text; of several that end at the
 * same byte the longest. So it does not depend on how the text is cut into pieces. What stands
 * before the hit is shown, the hit and what follows are not; text pushed after a hit is ignored.
 * With pieces of whole characters, what is shown is whole characters. At most the longest string
 * less one byte is held back. `shown` lives until the next call.
 * Owner: one thread. */
#ifndef TANDEM_TEXT_STOP_H
#define TANDEM_TEXT_STOP_H

#include <stddef.h>

#include "common/err.h"

#define STOP_STRINGS_MAX 64
#define STOP_LENGTH_MAX 1024 /* bytes of one string; none is empty, all are UTF-8 */
#define STOP_NONE (-1)

struct stop_string {
    const char *text;
    size_t length;
};

struct stop_shown {
    const char *text;
    size_t length;
    int hit; /* index of the stop string, STOP_NONE */
};

struct stop;

/* The strings are copied; strings_count may be 0, then all text is shown at once. */
enum err stop_new(struct stop **out, const struct stop_string *strings, size_t strings_count);
void stop_free(struct stop *s); /* NULL is fine */
enum err stop_push(struct stop *s, const char *text, size_t length, struct stop_shown *shown);
void stop_finish(struct stop *s, struct stop_shown *shown);

#endif
