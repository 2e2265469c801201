#include "text/unicode.h"

#include <utf8proc.h>

#include "common/mem.h"
#include "common/utf8.h"

bool unicode_is_space(uint32_t c)
{
    if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* Alphabetic beyond the categories L and Nl: circled and squared letters are symbols. */
static bool is_letter_symbol(uint32_t c)
{
    return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
           (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

bool unicode_is_word(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return c == 0x200C || c == 0x200D || is_letter_symbol(c);
    }
}

bool unicode_is_numeric(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO;
}

bool unicode_is_punctuation(uint32_t c)
{
    if (c < 0x80)
        return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
               (c >= '{' && c <= '~');
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
}

bool unicode_is_mark(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k >= UTF8PROC_CATEGORY_MN && k <= UTF8PROC_CATEGORY_ME;
}

enum err unicode_lower(const char *text, size_t length, struct buf *out)
{
    enum err e = buf_reserve(out, length);
    for (size_t at = 0; e == OK && at < length;) {
        uint32_t c;
        char bytes[8];
        size_t n;
        at += utf8_read(text + at, length - at, &c);
        if (c == 0x130) { /* the one letter whose lower case is two characters */
            n = utf8_write('i', bytes);
            n += utf8_write(0x307, bytes + n);
        } else {
            n = utf8_write((uint32_t)utf8proc_tolower((utf8proc_int32_t)c), bytes);
        }
        e = buf_add(out, bytes, n);
    }
    return e;
}

/* A decomposed text: characters, with the combining class of each in the upper byte. */
struct points {
    utf8proc_int32_t *c;
    size_t count, capacity;
};

#define POINT_MASK 0x1FFFFF
#define POINT_CLASS_SHIFT 22 /* classes are below 256: 30 bits in all */

static enum err points_room(struct points *p, size_t more)
{
    if (p->capacity - p->count >= more) return OK;
    size_t capacity = p->capacity * 2 + more;
    utf8proc_int32_t *c = mem_resize(p->c, capacity, sizeof *c);
    if (!c) return ERR_MEMORY;
    p->c = c;
    p->capacity = capacity;
    return OK;
}

/* Stable sort of a run of combining characters by class: counting, so that a long run costs no
 * more than a short one per character. */
static enum err sort_run(utf8proc_int32_t *run, size_t count)
{
    bool sorted = true;
    for (size_t i = 1; i < count && sorted; i++)
        sorted = run[i - 1] >> POINT_CLASS_SHIFT <= run[i] >> POINT_CLASS_SHIFT;
    if (sorted) return OK;
    size_t starts[257] = {0};
    utf8proc_int32_t small[32], *copy = small;
    if (count > sizeof small / sizeof *small && !(copy = mem_array(count, sizeof *copy)))
        return ERR_MEMORY;
    for (size_t i = 0; i < count; i++) {
        copy[i] = run[i];
        starts[(run[i] >> POINT_CLASS_SHIFT) + 1]++;
    }
    for (int k = 1; k < 257; k++)
        starts[k] += starts[k - 1];
    for (size_t i = 0; i < count; i++)
        run[starts[copy[i] >> POINT_CLASS_SHIFT]++] = copy[i];
    if (copy != small) mem_free(copy);
    return OK;
}

static enum err points_order(struct points *p)
{
    for (size_t i = 0; i < p->count;) {
        size_t end = i;
        while (end < p->count && p->c[end] >> POINT_CLASS_SHIFT != 0)
            end++;
        enum err e = sort_run(p->c + i, end - i);
        if (e != OK) return e;
        i = end + 1;
    }
    for (size_t i = 0; i < p->count; i++)
        p->c[i] &= POINT_MASK;
    return OK;
}

static enum err points_decompose(struct points *p, bool compat, const char *text, size_t length)
{
    utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
    if (compat) options |= UTF8PROC_COMPAT;
    enum err e = points_room(p, length + 1);
    for (size_t at = 0; e == OK && at < length;) {
        uint32_t c;
        int boundary = 0;
        at += utf8_read(text + at, length - at, &c);
        if ((e = points_room(p, 32)) != OK) return e; /* the longest decomposition is 18 */
        utf8proc_ssize_t n =
            utf8proc_decompose_char((utf8proc_int32_t)c, p->c + p->count, 32, options, &boundary);
        if (n < 0 || n > 32) return err_set(ERR_INVALID, "U+%04X has no decomposition", c);
        for (utf8proc_ssize_t i = 0; i < n; i++) {
            utf8proc_int32_t d = p->c[p->count + (size_t)i];
            p->c[p->count + (size_t)i] |= utf8proc_get_property(d)->combining_class
                                          << POINT_CLASS_SHIFT;
        }
        p->count += (size_t)n;
    }
    return e == OK ? points_order(p) : e;
}

/* Below U+0300 nothing composes and nothing is reordered; NFKC changes U+00A0 and above. */
static bool is_normal(enum unicode_form form, const char *text, size_t length)
{
    unsigned char bound = form == UNICODE_NFC ? 0xCC : 0x80;
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] >= bound) return false;
    return true;
}

enum err unicode_normalize(enum unicode_form form, const char *text, size_t length, struct buf *out)
{
    if (is_normal(form, text, length)) return buf_add(out, text, length);
    struct points p = {0};
    bool compose = form == UNICODE_NFC || form == UNICODE_NFKC;
    bool compat = form == UNICODE_NFKC || form == UNICODE_NFKD;
    enum err e = points_decompose(&p, compat, text, length);
    if (e == OK && compose) {
        utf8proc_ssize_t n = utf8proc_normalize_utf32(p.c, (utf8proc_ssize_t)p.count,
                                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        if (n < 0)
            e = err_set(ERR_INVALID, "normalizing failed: %s", utf8proc_errmsg(n));
        else
            p.count = (size_t)n;
    }
    if (e == OK) e = buf_reserve(out, p.count);
    for (size_t i = 0; e == OK && i < p.count; i++) {
        char bytes[4];
        e = buf_add(out, bytes, utf8_write((uint32_t)p.c[i], bytes));
    }
    mem_free(p.c);
    return e;
}
