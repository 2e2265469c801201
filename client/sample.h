/* sample: a running cluster's status and KV at two times, in one JSON value: what `tandem kv --save`
 * writes and `tandem doctor` reads.
 *
 *     json_t *samples;
 *     int code = sample_take("doctor", &router, 2 * NS_PER_S, &samples);   // {"samples": [{...}, {...}]}
 *     e = sample_load(&samples, path);                                     // of a file
 *
 * A sample is {"status": …, "kv": …}, each as the router answered it. One sample will do: rates are then
 * not known. Rules: the caller drops the JSON. Owner: one thread. */
#ifndef TANDEM_CLIENT_SAMPLE_H
#define TANDEM_CLIENT_SAMPLE_H

#include <jansson.h>

#include "client/cmd.h"

/* CMD_DONE, or the exit code after the error was said. */
int sample_take(const char *verb, const struct cmd_router *router, uint64_t apart_ns,
                json_t **samples);
/* A saved one; the answer to status or kv alone will do as well. ERR_IO, ERR_FORMAT with the reason. */
enum err sample_load(json_t **samples, const char *path);

#endif
