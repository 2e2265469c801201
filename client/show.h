/* show: what the verbs that print tables for people share: fields of JSON answers, and numbers as text.
 *
 *     char text[SHOW_TEXT];
 *     printf("%12s blocks\n", show_number(show_count(blocks, "total"), text));
 *
 * Rules: a field that is missing or of another type is "" or 0: answers of older routers are shown too.
 * Owner: one thread. */
#ifndef TANDEM_CLIENT_SHOW_H
#define TANDEM_CLIENT_SHOW_H

#include <jansson.h>
#include <stdio.h>

enum { SHOW_TEXT = 48, SHOW_BAR = 32 };

const char *show_text(const json_t *object, const char *name);
long long show_count(const json_t *object, const char *name);
double show_real(const json_t *object, const char *name); /* an integer too */

const char *show_number(long long value, char text[SHOW_TEXT]); /* "8,030,261" */
const char *show_bytes(double bytes, char text[SHOW_TEXT]);     /* "128.0 KiB" */
const char *show_span(double seconds, char text[SHOW_TEXT]);    /* "40 s", "12 min", "3.5 h" */
const char *show_time(double seconds, char text[SHOW_TEXT]);    /* the same, below 2 s "400 ms" */
/* "66.7 %"; "-" of nothing. */
const char *show_share(double part, double whole, char text[SHOW_TEXT]);
/* As many # of SHOW_BAR as part is of whole, one at least if it is anything. */
const char *show_bar(double part, double whole, char text[SHOW_TEXT]);

#endif
