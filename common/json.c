#include "common/json.h"

#include <pthread.h>
#include <stdbool.h>

#include "common/mem.h"
#include "common/utf8.h"

/* jansson goes on after some failed allocations with a character of a string missing. So its memory
 * comes from here, and a parse during which any request failed is void. */
static _Thread_local bool short_of_memory;

static void *take(size_t size)
{
    void *p = mem_new(size);
    if (!p) short_of_memory = true;
    return p;
}

static void use_own_memory(void)
{
    json_set_alloc_funcs(take, mem_free);
}

enum err json_object_parse(json_t **object, const char *path, const void *bytes, size_t size)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    json_error_t error = {0};
    enum err e = OK;
    pthread_once(&once, use_own_memory);
    short_of_memory = false;
    size_t mark = utf8_mark(bytes, size);
    *object = json_loadb((const char *)bytes + mark, size - mark, JSON_REJECT_DUPLICATES, &error);
    if (short_of_memory)
        e = err_set(ERR_MEMORY, "%s: out of memory", path);
    else if (!*object)
        e = err_set(ERR_FORMAT, "%s: %s (line %d, column %d)", path, error.text, error.line,
                    error.column);
    else if (!json_is_object(*object))
        e = err_set(ERR_FORMAT, "%s: no JSON object", path);
    if (e == OK) return OK;
    json_decref(*object);
    *object = NULL;
    return e;
}
