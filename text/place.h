/* place: reads fields of a JSON file and says, when one is wrong, in which file and where.
 *
 *     struct place at = {.file = "m/tokenizer.json", .where = "pre_tokenizer"};
 *     const char *s;
 *     size_t length;
 *     if ((e = place_string(&at, object, "type", &s, &length)) != OK) return e;
 *         // "m/tokenizer.json: pre_tokenizer.type: a string is wanted, null is there"
 *
 * Rules: nothing is copied, what is returned lives as long as the JSON. A field is optional where
 * a default is given, and null is as good as missing then. Numbers have a limit.
 * Owner: the call that reads. */
#ifndef TANDEM_TEXT_PLACE_H
#define TANDEM_TEXT_PLACE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define PLACE_DEPTH_MAX 8

struct place {
    const char *file;
    char where[96];
};

/* `at` with .key, or [index], behind it. */
struct place place_field(const struct place *at, const char *key);
struct place place_index(const struct place *at, size_t index);

/* "FILE: WHERE: text" */
enum err place_error(const struct place *at, enum err e, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

bool place_has(const json_t *object, const char *key); /* there, and not null */
enum err place_object(const struct place *at, const json_t *value);
enum err place_array(const struct place *at, const json_t *value);
enum err place_string(const struct place *at, const json_t *object, const char *key, const char **s,
                      size_t *length);
enum err place_bool(const struct place *at, const json_t *object, const char *key, bool *b);
enum err place_bool_or(const struct place *at, const json_t *object, const char *key,
                       bool otherwise, bool *b);
/* An integer from 0 to limit. */
enum err place_number(const struct place *at, const json_t *value, uint64_t limit, uint64_t *n);

/* A part of tokenizer.json: one step with its "type", or a Sequence, whose `list` has such parts again; `read`
 * gets each step in its order. ERR_UNSUPPORTED: nested more than PLACE_DEPTH_MAX deep. */
typedef enum err place_step_fn(void *part, const struct place *at, const json_t *json,
                               const char *type);
enum err place_steps(const struct place *at, const json_t *json, const char *list,
                     place_step_fn *read, void *part);

#endif
