#include "common/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "common/utf8.h"

#define CAPACITY_MIN 64

void buf_fini(struct buf *b)
{
    mem_free(b->data);
    *b = (struct buf){.limit_bytes = b->limit_bytes};
}

void buf_cut(struct buf *b, size_t size)
{
    CHECK(size <= b->size);
    b->size = size;
    if (b->data) b->data[size] = '\0';
}

void buf_clear(struct buf *b)
{
    buf_cut(b, 0);
    b->error = OK;
}

void buf_drop(struct buf *b, size_t count)
{
    CHECK(count <= b->size);
    if (count == 0) return;
    memmove(b->data, b->data + count, b->size - count);
    buf_cut(b, b->size - count);
}

enum err buf_reserve(struct buf *b, size_t more_bytes)
{
    size_t limit = b->limit_bytes ? b->limit_bytes : BUF_LIMIT_DEFAULT;
    if (b->error != OK) return b->error;
    if (more_bytes > limit - b->size)
        return b->error = err_set(ERR_FULL, "a text or message of more than %zu bytes", limit);
    size_t need = b->size + more_bytes + 1;
    if (need <= b->capacity) return OK;
    size_t capacity = b->capacity < CAPACITY_MIN / 2 ? CAPACITY_MIN : b->capacity * 2;
    if (capacity < need) capacity = need;
    char *grown = mem_resize(b->data, capacity, 1);
    if (!grown) return b->error = ERR_MEMORY;
    b->data = grown;
    b->capacity = capacity;
    return OK;
}

enum err buf_add(struct buf *b, const void *bytes, size_t size)
{
    if (buf_reserve(b, size) != OK) return b->error;
    if (size > 0) memcpy(b->data + b->size, bytes, size);
    b->size += size;
    b->data[b->size] = '\0';
    return OK;
}

enum err buf_add_string(struct buf *b, const char *s)
{
    return buf_add(b, s, strlen(s));
}

enum err buf_printf(struct buf *b, const char *format, ...)
{
    va_list args;
    char small[256];
    va_start(args, format);
    int n = vsnprintf(small, sizeof small, format, args);
    va_end(args);
    if (n < 0) return b->error = err_set(ERR_INVALID, "text that cannot be formatted");
    if ((size_t)n < sizeof small) return buf_add(b, small, (size_t)n);
    if (buf_reserve(b, (size_t)n) != OK) return b->error;
    va_start(args, format);
    vsnprintf(b->data + b->size, (size_t)n + 1, format, args);
    va_end(args);
    b->size += (size_t)n;
    return OK;
}

static const char *json_escape(unsigned char c, char hex[8])
{
    switch (c) {
    case '"': return "\\\"";
    case '\\': return "\\\\";
    case '\n': return "\\n";
    case '\r': return "\\r";
    case '\t': return "\\t";
    }
    if (c >= 0x20 && c != 0x7f) return NULL;
    snprintf(hex, 8, "\\u%04x", c);
    return hex;
}

enum err buf_json_string(struct buf *b, const char *text, size_t size)
{
    buf_add(b, "\"", 1);
    size_t plain = 0; /* text[plain .. i) needs no escape */
    for (size_t i = 0; i < size;) {
        char hex[8];
        int length = utf8_first(text + i, size - i);
        const char *instead = length > 0 ? json_escape((unsigned char)text[i], hex) : "\\ufffd";
        if (instead) {
            buf_add(b, text + plain, i - plain);
            buf_add_string(b, instead);
            plain = i + 1;
        }
        i += length > 0 ? (size_t)length : 1;
    }
    buf_add(b, text + plain, size - plain);
    return buf_add(b, "\"", 1);
}

enum err buf_add_lossy(struct buf *b, const char *bytes, size_t length, bool last, size_t *used)
{
    size_t at = 0;
    *used = 0;
    while (at < length) {
        size_t good = utf8_check(bytes + at, length - at);
        if (buf_add(b, bytes + at, good) != OK) return b->error;
        at += good;
        if (at == length) break;
        int n = utf8_first(bytes + at, length - at);
        if (n == 0 && !last) break;
        if (buf_add(b, UTF8_REPLACEMENT, 3) != OK) return b->error;
        at += n == 0 ? length - at : (size_t)-n;
    }
    *used = at;
    return OK;
}

char *buf_take(struct buf *b)
{
    char *text = NULL;
    if (buf_add(b, "", 0) == OK) {
        text = b->data;
        *b = (struct buf){.limit_bytes = b->limit_bytes};
    }
    return text;
}
