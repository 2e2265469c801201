#include "text/bytelevel.h"

#include "common/utf8.h"

/* The bytes from `first` to `last` do not stand for themselves, and take the characters from
 * `to` on. */
static const struct hole {
    unsigned char first, last;
    uint32_t to;
} holes[] = {{0x00, 0x20, 0x100}, {0x7F, 0xA0, 0x121}, {0xAD, 0xAD, 0x143}};

#define HOLES (sizeof holes / sizeof *holes)

static uint32_t char_of(unsigned char byte)
{
    for (size_t i = 0; i < HOLES; i++)
        if (byte >= holes[i].first && byte <= holes[i].last)
            return holes[i].to + (uint32_t)(byte - holes[i].first);
    return byte;
}

static int byte_of(uint32_t c)
{
    for (size_t i = 0; i < HOLES; i++) {
        uint32_t n = (uint32_t)(holes[i].last - holes[i].first) + 1;
        if (c >= holes[i].to && c < holes[i].to + n) return (int)(c - holes[i].to + holes[i].first);
    }
    return c < 0x100 && char_of((unsigned char)c) == c ? (int)c : -1;
}

enum err bytelevel_append(const char *bytes, size_t length, struct buf *out)
{
    enum err e = buf_reserve(out, 2 * length);
    if (e != OK) return e;
    for (size_t i = 0; i < length; i++)
        out->size += utf8_write(char_of((unsigned char)bytes[i]), out->data + out->size);
    out->data[out->size] = '\0';
    return OK;
}

enum err bytelevel_bytes(const char *text, size_t length, struct buf *out)
{
    enum err e = buf_reserve(out, length);
    if (e != OK) return e;
    size_t start = out->size;
    for (size_t at = 0; at < length;) {
        uint32_t c;
        at += utf8_read(text + at, length - at, &c);
        int byte = byte_of(c);
        if (byte < 0) {
            buf_cut(out, start);
            return buf_add(out, text, length);
        }
        out->data[out->size++] = (char)byte;
    }
    out->data[out->size] = '\0';
    return OK;
}
