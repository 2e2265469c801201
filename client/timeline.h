/* timeline: one choice of what `explain` answers, as a table of phases with a bar for each.
 *
 *     timeline_print(stdout, json_array_get(json_object_get(answer, "choices"), 0));
 *
 * A phase begins where an event of the router says so and ends with the next one that closes it:
 *
 *     tokenize       arrived .. queued            (none for a prompt of token ids)
 *     queue          queued .. reserve or prefill
 *     reserve NODE   reserve .. prefill
 *     prefill NODE   prefill .. first token; under it the node's own count of computing
 *     transfer tail  what was still to be sent when the last layer was done, up to prefilled
 *     decode NODE    first token .. ended
 *
 * Rules: never fails; what is missing in the answer is shown as 0 or not at all. Any thread. */
#ifndef TANDEM_CLIENT_TIMELINE_H
#define TANDEM_CLIENT_TIMELINE_H

#include <jansson.h>
#include <stdio.h>

void timeline_print(FILE *out, const json_t *choice);

#endif
