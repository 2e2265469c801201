/* json: a file's bytes as a JSON object, or an error that says where they are not one.
 *
 *     json_t *object;
 *     if ((e = json_object_parse(&object, path, bytes, size)) != OK) return e;
 *     ... json_object_get(object, "key") ...
 *     json_decref(object);
 *
 * Rules: a key that stands twice is an error, and so is anything behind the object; a byte order mark before it is not. `*object` is
 * NULL after an error. Memory in use is a small multiple of `size`, which the caller bounds. Any thread. */
#ifndef TANDEM_COMMON_JSON_H
#define TANDEM_COMMON_JSON_H

#include <jansson.h>
#include <stddef.h>

#include "common/err.h"

enum err json_object_parse(json_t **object, const char *path, const void *bytes, size_t size);

#endif
