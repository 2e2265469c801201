#include "text/buffer.h"

#include <stdint.h>
#include <string.h>

#include "common/mem.h"

#define BUFFER_FIRST 64

enum err buffer_reserve(struct buffer *b, size_t more)
{
    if (b->capacity - b->length >= more) return OK;
    if (more > SIZE_MAX / 4 - b->length) return err_set(ERR_MEMORY, "out of memory: %zu", more);
    size_t capacity = b->capacity ? b->capacity * 2 : BUFFER_FIRST;
    if (capacity < b->length + more) capacity = b->length + more;
    char *bytes = mem_resize(b->bytes, capacity, 1);
    if (!bytes) return ERR_MEMORY;
    b->bytes = bytes;
    b->capacity = capacity;
    return OK;
}

enum err buffer_add(struct buffer *b, const void *bytes, size_t length)
{
    if (length == 0) return OK;
    enum err e = buffer_reserve(b, length);
    if (e != OK) return e;
    memcpy(b->bytes + b->length, bytes, length);
    b->length += length;
    return OK;
}

void buffer_drop(struct buffer *b, size_t count)
{
    CHECK(count <= b->length);
    if (count == 0) return;
    memmove(b->bytes, b->bytes + count, b->length - count);
    b->length -= count;
}

void buffer_clear(struct buffer *b)
{
    b->length = 0;
}

void buffer_fini(struct buffer *b)
{
    mem_free(b->bytes);
    *b = (struct buffer){0};
}
