#include "text/place.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct place place_field(const struct place *at, const char *key)
{
    struct place p = {.file = at->file};
    snprintf(p.where, sizeof p.where, "%.63s%s%.30s", at->where, at->where[0] ? "." : "", key);
    return p;
}

struct place place_index(const struct place *at, size_t index)
{
    struct place p = {.file = at->file};
    snprintf(p.where, sizeof p.where, "%.70s[%zu]", at->where, index);
    return p;
}

enum err place_error(const struct place *at, enum err e, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return err_set(e, "%s: %s%s%s", at->file, at->where, at->where[0] ? ": " : "", text);
}

static const char *kind_of(const json_t *value)
{
    if (!value) return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a fraction";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    case JSON_NULL: return "null";
    }
    return "something";
}

static enum err wanted(const struct place *at, const char *kind, const json_t *value)
{
    return place_error(at, ERR_FORMAT, "%s is wanted, %s is there", kind, kind_of(value));
}

bool place_has(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return value && !json_is_null(value);
}

enum err place_object(const struct place *at, const json_t *value)
{
    return json_is_object(value) ? OK : wanted(at, "an object", value);
}

enum err place_array(const struct place *at, const json_t *value)
{
    return json_is_array(value) ? OK : wanted(at, "an array", value);
}

enum err place_string(const struct place *at, const json_t *object, const char *key, const char **s,
                      size_t *length)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value)) {
        struct place p = place_field(at, key);
        return wanted(&p, "a string", value);
    }
    *s = json_string_value(value);
    *length = json_string_length(value);
    return OK;
}

enum err place_bool(const struct place *at, const json_t *object, const char *key, bool *b)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_boolean(value)) {
        struct place p = place_field(at, key);
        return wanted(&p, "true or false", value);
    }
    *b = json_is_true(value);
    return OK;
}

enum err place_bool_or(const struct place *at, const json_t *object, const char *key,
                       bool otherwise, bool *b)
{
    *b = otherwise;
    return place_has(object, key) ? place_bool(at, object, key, b) : OK;
}

enum err place_number(const struct place *at, const json_t *value, uint64_t limit, uint64_t *n)
{
    if (!json_is_integer(value)) return wanted(at, "an integer", value);
    json_int_t i = json_integer_value(value);
    if (i < 0 || (uint64_t)i > limit)
        return place_error(at, ERR_FORMAT, "%lld is not in 0 to %llu", (long long)i,
                           (unsigned long long)limit);
    *n = (uint64_t)i;
    return OK;
}

struct steps {
    const char *list;
    place_step_fn *read;
    void *part;
};

static enum err read_steps(const struct steps *s, const struct place *at, const json_t *json,
                           int depth)
{
    const char *type;
    size_t length;
    enum err e = place_object(at, json);
    if (e == OK) e = place_string(at, json, "type", &type, &length);
    if (e != OK) return e;
    if (depth > PLACE_DEPTH_MAX)
        return place_error(at, ERR_UNSUPPORTED, "nested more than %d deep", PLACE_DEPTH_MAX);
    if (strcmp(type, "Sequence") != 0) return s->read(s->part, at, json, type);
    struct place list = place_field(at, s->list);
    const json_t *array = json_object_get(json, s->list);
    if ((e = place_array(&list, array)) != OK) return e;
    for (size_t i = 0; e == OK && i < json_array_size(array); i++) {
        struct place one = place_index(&list, i);
        e = read_steps(s, &one, json_array_get(array, i), depth + 1);
    }
    return e;
}

enum err place_steps(const struct place *at, const json_t *json, const char *list,
                     place_step_fn *read, void *part)
{
    struct steps s = {list, read, part};
    return read_steps(&s, at, json, 0);
}
