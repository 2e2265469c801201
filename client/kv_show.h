/* kv_show: what nodes cache, for people: the answer to tandem_query_kv as tables, 100 columns wide.
 *
 *     kv_show(stdout, answer);
 *     e = kv_plot(file, answer);       // ages and sizes of each node as a self-contained SVG
 *
 * Rules: what is missing in the answer is shown as 0 or not at all. Prompts' words are of strangers:
 * control characters in them become blanks. Owner: one thread. */
#ifndef TANDEM_CLIENT_KV_SHOW_H
#define TANDEM_CLIENT_KV_SHOW_H

#include <jansson.h>
#include <stdio.h>

void kv_show(FILE *out, const json_t *answer);
void kv_plot(FILE *out, const json_t *answer);

#endif
