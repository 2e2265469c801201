#include "text/normalizer.h"

#include <string.h>

#include "common/mem.h"
#include "common/utf8.h"
#include "text/bytelevel.h"
#include "text/pieces.h"
#include "text/unicode.h"

enum step_kind {
    STEP_NFC,
    STEP_NFD,
    STEP_NFKC,
    STEP_NFKD,
    STEP_LOWER,
    STEP_STRIP_ACCENTS,
    STEP_BYTE_LEVEL,
    STEP_PREPEND,
    STEP_REPLACE,
    STEP_STRIP,
};

struct normalizer_step {
    enum step_kind kind;
    struct pattern pattern; /* replace */
    struct buf content;     /* prepend, replace */
    bool left, right;       /* strip */
};

static const struct {
    const char *name;
    enum step_kind kind;
} kinds[] = {
    {"NFC", STEP_NFC},
    {"NFD", STEP_NFD},
    {"NFKC", STEP_NFKC},
    {"NFKD", STEP_NFKD},
    {"Lowercase", STEP_LOWER},
    {"StripAccents", STEP_STRIP_ACCENTS},
    {"ByteLevel", STEP_BYTE_LEVEL},
    {"Prepend", STEP_PREPEND},
    {"Replace", STEP_REPLACE},
    {"Strip", STEP_STRIP},
};

/* ---- reading ---- */

enum err pattern_read(struct pattern *p, const struct place *at, const json_t *object)
{
    struct place inside = place_field(at, "pattern");
    const json_t *json = json_object_get(object, "pattern");
    const char *s;
    size_t length;
    enum err e = place_object(&inside, json);
    if (e != OK) return e;
    bool regex = place_has(json, "Regex");
    if ((e = place_string(&inside, json, regex ? "Regex" : "String", &s, &length)) != OK) return e;
    e = pattern_init(p, regex ? PATTERN_REGEX : PATTERN_LITERAL, s, length);
    return err_prefix(e, "%s: %s", at->file, inside.where);
}

static enum err read_content(struct normalizer_step *s, const struct place *at, const json_t *json,
                             const char *key)
{
    const char *text;
    size_t length;
    enum err e = place_string(at, json, key, &text, &length);
    return e == OK ? buf_add(&s->content, text, length) : e;
}

static enum err read_step(struct normalizer_step *s, const struct place *at, const json_t *json)
{
    enum err e;
    switch (s->kind) {
    case STEP_PREPEND: return read_content(s, at, json, "prepend");
    case STEP_REPLACE:
        if ((e = read_content(s, at, json, "content")) != OK) return e;
        return pattern_read(&s->pattern, at, json);
    case STEP_STRIP:
        if ((e = place_bool(at, json, "strip_left", &s->left)) != OK) return e;
        return place_bool(at, json, "strip_right", &s->right);
    default: return OK;
    }
}

static enum err add_step(struct normalizer *n, enum step_kind kind, const struct place *at,
                         const json_t *json)
{
    if (n->steps_count == NORMALIZER_STEPS_MAX)
        return place_error(at, ERR_UNSUPPORTED, "more than %d normalizers", NORMALIZER_STEPS_MAX);
    struct normalizer_step *grown = mem_resize(n->step, n->steps_count + 1, sizeof *grown);
    if (!grown) return ERR_MEMORY;
    n->step = grown;
    struct normalizer_step *s = &n->step[n->steps_count++];
    *s = (struct normalizer_step){.kind = kind};
    return read_step(s, at, json);
}

static enum err read(void *part, const struct place *at, const json_t *json, const char *type)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(type, kinds[i].name) == 0) return add_step(part, kinds[i].kind, at, json);
    return place_error(at, ERR_UNSUPPORTED, "normalizer \"%.60s\"", type);
}

enum err normalizer_init(struct normalizer *n, const struct place *at, const json_t *json)
{
    *n = (struct normalizer){0};
    if (!json || json_is_null(json)) return OK;
    enum err e = place_steps(at, json, "normalizers", read, n);
    if (e != OK) normalizer_fini(n);
    return e;
}

void normalizer_fini(struct normalizer *n)
{
    for (size_t i = 0; i < n->steps_count; i++) {
        pattern_fini(&n->step[i].pattern);
        buf_fini(&n->step[i].content);
    }
    mem_free(n->step);
    *n = (struct normalizer){0};
}

/* ---- applying ---- */

enum err pattern_replace(const struct pattern *p, struct pattern_scratch *scratch, const char *text,
                         size_t length, const struct buf *content, struct buf *out)
{
    struct pattern_walk w = {.text = text, .length = length};
    size_t from = 0;
    enum err e;
    while ((e = pattern_next(p, scratch, &w)) == OK && w.found) {
        if ((e = buf_add(out, text + from, w.start - from)) != OK) return e;
        if ((e = buf_add(out, content->data, content->size)) != OK) return e;
        from = w.end;
        if (out->size > PIECES_TEXT_MAX)
            return err_set(ERR_INVALID, "the text grows beyond %zu bytes when normalized",
                           PIECES_TEXT_MAX);
    }
    return e == OK ? buf_add(out, text + from, length - from) : e;
}

static enum err strip(const struct normalizer_step *s, const char *text, size_t length,
                      struct buf *out)
{
    size_t start = 0;
    uint32_t c;
    while (s->left && start < length) {
        size_t n = utf8_read(text + start, length - start, &c);
        if (!unicode_is_space(c)) break;
        start += n;
    }
    while (s->right && length > start) {
        size_t before = utf8_before(text, length);
        utf8_read(text + before, length - before, &c);
        if (!unicode_is_space(c)) break;
        length = before;
    }
    return buf_add(out, text + start, length - start);
}

static enum err strip_accents(const char *text, size_t length, struct buf *out)
{
    enum err e = OK;
    for (size_t at = 0; e == OK && at < length;) {
        uint32_t c;
        size_t n = utf8_read(text + at, length - at, &c);
        if (!unicode_is_mark(c)) e = buf_add(out, text + at, n);
        at += n;
    }
    return e;
}

static enum err apply_step(const struct normalizer_step *s, struct pattern_scratch *scratch,
                           const char *text, size_t length, struct buf *out)
{
    enum err e;
    switch (s->kind) {
    case STEP_NFC: return unicode_normalize(UNICODE_NFC, text, length, out);
    case STEP_NFD: return unicode_normalize(UNICODE_NFD, text, length, out);
    case STEP_NFKC: return unicode_normalize(UNICODE_NFKC, text, length, out);
    case STEP_NFKD: return unicode_normalize(UNICODE_NFKD, text, length, out);
    case STEP_LOWER: return unicode_lower(text, length, out);
    case STEP_STRIP_ACCENTS: return strip_accents(text, length, out);
    case STEP_BYTE_LEVEL: return bytelevel_append(text, length, out);
    case STEP_STRIP: return strip(s, text, length, out);
    case STEP_REPLACE: return pattern_replace(&s->pattern, scratch, text, length, &s->content, out);
    case STEP_PREPEND:
        if (length == 0) return OK;
        if ((e = buf_add(out, s->content.data, s->content.size)) != OK) return e;
        return buf_add(out, text, length);
    }
    return OK;
}

enum err normalizer_apply(const struct normalizer *n, struct pattern_scratch *scratch,
                          const char *text, size_t length, struct normalized *out)
{
    out->text = text;
    out->length = length;
    for (size_t i = 0; i < n->steps_count; i++) {
        struct buf *to = &out->buffer[i % 2];
        buf_clear(to);
        enum err e = apply_step(&n->step[i], scratch, out->text, out->length, to);
        if (e != OK) return e;
        if (to->size > PIECES_TEXT_MAX)
            return err_set(ERR_INVALID, "the text grows beyond %zu bytes when normalized",
                           PIECES_TEXT_MAX);
        out->text = to->size ? to->data : "";
        out->length = to->size;
    }
    return OK;
}

void normalized_fini(struct normalized *n)
{
    buf_fini(&n->buffer[0]);
    buf_fini(&n->buffer[1]);
    *n = (struct normalized){0};
}
