/* layers: how the pushing of KV overlapped its computing, as bars on one time axis; part of `explain`.
 *
 *     layers_print(stdout, json_array_get(json_object_get(answer, "choices"), 0));
 *
 * One line for a layer of a chunk, or for several that follow each other where they are many:
 *
 *     layers             computed       sent
 *       0                   1.90       2.31  ####==
 *       1                   3.80       4.22      ####==
 *
 * '#' is computing: from the end of the layer before; '=' is sending: from then on, or from when the one
 * before was sent, to the last byte that the link took; '%' is both.
 *
 * Rules: never fails; prints nothing if the answer has no layers. Any thread. */
#ifndef TANDEM_CLIENT_LAYERS_H
#define TANDEM_CLIENT_LAYERS_H

#include <jansson.h>
#include <stdio.h>

void layers_print(FILE *out, const json_t *choice);

#endif
