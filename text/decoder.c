#include "text/decoder.h"

#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/utf8.h"
#include "text/bytelevel.h"
#include "text/normalizer.h"

enum step_kind {
    STEP_BYTE_LEVEL,
    STEP_BYTE_FALLBACK,
    STEP_FUSE,
    STEP_STRIP,
    STEP_REPLACE,
    STEP_METASPACE,
    STEP_SUFFIX, /* BPEDecoder: a suffix ends a word */
    STEP_JOIN,   /* no decoder: a blank between tokens */
};

struct decoder_step {
    enum step_kind kind;
    bool fused;             /* its input is one token, in fragments */
    struct pattern pattern; /* replace, suffix */
    struct buf content;     /* replace: by what */
    uint32_t mark;          /* strip: the character; metaspace: the replacement */
    uint64_t start, stop;   /* strip: at most so many at either end */
    bool drops_first;       /* metaspace: the first token loses its marks */
};

struct decoding_step {
    struct buf held; /* input that waits for what follows */
    struct buf work; /* output on its way to the next step */
    bool begun;      /* the first token, or the first character that is kept, has passed */
    uint64_t cut;    /* strip: characters taken away at the start */
    uint64_t tail;   /* strip: marks at the end that wait */
};

/* ---- reading ---- */

static const struct {
    const char *name;
    enum step_kind kind;
} kinds[] = {
    {"ByteLevel", STEP_BYTE_LEVEL},
    {"ByteFallback", STEP_BYTE_FALLBACK},
    {"Fuse", STEP_FUSE},
    {"Strip", STEP_STRIP},
    {"Replace", STEP_REPLACE},
    {"Metaspace", STEP_METASPACE},
    {"BPEDecoder", STEP_SUFFIX},
};

static enum err read_mark(struct decoder_step *s, const struct place *at, const json_t *json,
                          const char *key)
{
    const char *text;
    size_t length;
    enum err e = place_string(at, json, key, &text, &length);
    if (e == OK && (length == 0 || utf8_read(text, length, &s->mark) != length))
        return place_error(at, ERR_FORMAT, "%s is not one character", key);
    return e;
}

static enum err read_strip(struct decoder_step *s, const struct place *at, const json_t *json)
{
    struct place start = place_field(at, "start"), stop = place_field(at, "stop");
    enum err e = read_mark(s, at, json, "content");
    if (e == OK)
        e = place_number(&start, json_object_get(json, "start"), DECODER_STRIP_MAX, &s->start);
    if (e == OK)
        e = place_number(&stop, json_object_get(json, "stop"), DECODER_STRIP_MAX, &s->stop);
    return e;
}

static enum err read_metaspace(struct decoder_step *s, const struct place *at, const json_t *json)
{
    const char *scheme = "always";
    size_t length;
    enum err e = read_mark(s, at, json, "replacement");
    if (e == OK && place_has(json, "prepend_scheme"))
        e = place_string(at, json, "prepend_scheme", &scheme, &length);
    bool legacy = true;
    if (e == OK) e = place_bool_or(at, json, "add_prefix_space", true, &legacy);
    if (e != OK) return e;
    s->drops_first = strcmp(scheme, "never") != 0;
    if (s->drops_first && strcmp(scheme, "always") != 0 && strcmp(scheme, "first") != 0)
        return place_error(at, ERR_FORMAT, "prepend_scheme \"%.40s\"", scheme);
    if (!legacy && s->drops_first)
        return place_error(at, ERR_FORMAT, "add_prefix_space false with prepend_scheme \"%s\"",
                           scheme);
    return OK;
}

static enum err read_step(struct decoder_step *s, const struct place *at, const json_t *json)
{
    const char *text = "</w>";
    size_t length = 4;
    enum err e;
    switch (s->kind) {
    case STEP_STRIP: return read_strip(s, at, json);
    case STEP_METASPACE: return read_metaspace(s, at, json);
    case STEP_REPLACE:
        if ((e = place_string(at, json, "content", &text, &length)) != OK) return e;
        if ((e = buf_add(&s->content, text, length)) != OK) return e;
        return pattern_read(&s->pattern, at, json);
    case STEP_SUFFIX:
        if (place_has(json, "suffix"))
            e = place_string(at, json, "suffix", &text, &length);
        else
            e = OK;
        if (e == OK && length == 0) e = place_error(at, ERR_UNSUPPORTED, "an empty suffix");
        return e == OK ? pattern_init(&s->pattern, PATTERN_LITERAL, text, length) : e;
    default: return OK;
    }
}

/* What a step behind Fuse would need the whole text for. */
static enum err check_fused(const struct decoder_step *s, const struct place *at)
{
    bool whole = s->kind == STEP_BYTE_LEVEL || s->kind == STEP_BYTE_FALLBACK ||
                 s->kind == STEP_SUFFIX || (s->kind == STEP_REPLACE && s->pattern.code);
    if (s->fused && whole)
        return place_error(at, ERR_UNSUPPORTED, "this decoder behind Fuse or ByteLevel");
    return OK;
}

static enum err add_step(struct decoder *d, enum step_kind kind, const struct place *at,
                         const json_t *json)
{
    if (d->steps_count == DECODER_STEPS_MAX)
        return place_error(at, ERR_UNSUPPORTED, "more than %d decoders", DECODER_STEPS_MAX);
    struct decoder_step *grown = mem_resize(d->step, d->steps_count + 1, sizeof *grown);
    if (!grown) return ERR_MEMORY;
    d->step = grown;
    struct decoder_step *s = &d->step[d->steps_count++];
    *s = (struct decoder_step){.kind = kind};
    if (d->steps_count > 1)
        s->fused = s[-1].fused || s[-1].kind == STEP_FUSE || s[-1].kind == STEP_BYTE_LEVEL;
    enum err e = json ? read_step(s, at, json) : OK;
    if (s->pattern.code) d->has_regex = true;
    return e == OK ? check_fused(s, at) : e;
}

static enum err read(void *part, const struct place *at, const json_t *json, const char *type)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(type, kinds[i].name) == 0) return add_step(part, kinds[i].kind, at, json);
    return place_error(at, ERR_UNSUPPORTED, "decoder \"%.60s\"", type);
}

enum err decoder_init(struct decoder *d, const struct place *at, const json_t *json)
{
    *d = (struct decoder){0};
    enum err e = !json || json_is_null(json) ? add_step(d, STEP_JOIN, at, NULL)
                                             : place_steps(at, json, "decoders", read, d);
    if (e != OK) decoder_fini(d);
    return e;
}

void decoder_fini(struct decoder *d)
{
    for (size_t i = 0; i < d->steps_count; i++) {
        pattern_fini(&d->step[i].pattern);
        buf_fini(&d->step[i].content);
    }
    mem_free(d->step);
    *d = (struct decoder){0};
}

/* ---- decoding ---- */

enum err decoding_begin(struct decoding *x, const struct decoder *d, bool continues)
{
    *x = (struct decoding){.decoder = d};
    x->step = mem_array(d->steps_count, sizeof *x->step);
    if (!x->step) return ERR_MEMORY;
    if (d->has_regex && pattern_scratch_new(&x->scratch) != OK) {
        decoding_fini(x);
        return ERR_MEMORY;
    }
    decoding_reset(x, continues);
    return OK;
}

void decoding_reset(struct decoding *x, bool continues)
{
    for (size_t i = 0; i < x->decoder->steps_count; i++) {
        struct decoding_step *s = &x->step[i];
        enum step_kind kind = x->decoder->step[i].kind;
        buf_clear(&s->held);
        s->cut = s->tail = 0;
        s->begun = continues && (kind == STEP_STRIP || kind == STEP_METASPACE);
    }
}

void decoding_fini(struct decoding *x)
{
    for (size_t i = 0; x->step && i < x->decoder->steps_count; i++) {
        buf_fini(&x->step[i].held);
        buf_fini(&x->step[i].work);
    }
    mem_free(x->step);
    pattern_scratch_free(x->scratch);
    buf_fini(&x->out);
    *x = (struct decoding){0};
}

static enum err push(struct decoding *x, size_t i, const char *text, size_t length);

static enum err push_work(struct decoding *x, size_t i)
{
    struct buf *work = &x->step[i].work;
    return push(x, i + 1, work->size ? work->data : "", work->size);
}

static enum err byte_level(struct decoding *x, size_t i, bool last)
{
    struct decoding_step *s = &x->step[i];
    size_t used;
    buf_clear(&s->work);
    enum err e = buf_add_lossy(&s->work, s->held.data, s->held.size, last, &used);
    if (e != OK) return e;
    buf_drop(&s->held, used);
    return s->work.size ? push_work(x, i) : OK;
}

static bool is_byte_token(const char *text, size_t length, char *byte)
{
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return false;
    if (!isxdigit((unsigned char)text[3]) || !isxdigit((unsigned char)text[4])) return false;
    char digits[3] = {text[3], text[4], '\0'};
    *byte = (char)strtoul(digits, NULL, 16);
    return true;
}

/* A run of byte tokens is text as a whole, or else one U+FFFD for each. */
static enum err end_run(struct decoding *x, size_t i)
{
    struct decoding_step *s = &x->step[i];
    enum err e = OK;
    size_t count = s->held.size;
    if (count == 0) return OK;
    if (utf8_check(s->held.data, count) == count)
        e = push(x, i + 1, s->held.data, count);
    else
        for (size_t k = 0; e == OK && k < count; k++)
            e = push(x, i + 1, UTF8_REPLACEMENT, 3);
    buf_clear(&s->held);
    return e;
}

static enum err byte_fallback(struct decoding *x, size_t i, const char *text, size_t length)
{
    char byte;
    enum err e;
    if (is_byte_token(text, length, &byte)) {
        if ((e = buf_add(&x->step[i].held, &byte, 1)) != OK) return e;
        return x->step[i].held.size < DECODER_RUN_MAX ? OK : end_run(x, i);
    }
    e = end_run(x, i);
    return e == OK ? push(x, i + 1, text, length) : e;
}

static void strip_whole(const struct decoder_step *s, const char **text, size_t *length)
{
    uint32_t c;
    size_t start = 0, end = *length;
    for (uint64_t k = 0; k < s->start && start < end; k++) {
        size_t n = utf8_read(*text + start, end - start, &c);
        if (c != s->mark) break;
        start += n;
    }
    for (uint64_t k = 0; k < s->stop && end > start; k++) {
        size_t before = utf8_before(*text, end);
        utf8_read(*text + before, end - before, &c);
        if (c != s->mark) break;
        end = before;
    }
    *text += start;
    *length = end - start;
}

static enum err add_marks(struct buf *b, uint32_t mark, uint64_t count)
{
    char bytes[4];
    size_t n = utf8_write(mark, bytes);
    enum err e = OK;
    for (; e == OK && count; count--)
        e = buf_add(b, bytes, n);
    return e;
}

/* The same on a fragment: the last `stop` marks wait until it is known that they are not the end. */
static enum err strip_fragment(struct decoding *x, size_t i, const char *text, size_t length)
{
    const struct decoder_step *s = &x->decoder->step[i];
    struct decoding_step *d = &x->step[i];
    enum err e = OK;
    uint32_t c;
    buf_clear(&d->work);
    for (size_t at = 0; e == OK && at < length;) {
        size_t n = utf8_read(text + at, length - at, &c);
        bool mark = c == s->mark;
        if (mark && !d->begun && d->cut < s->start) {
            d->cut++;
        } else if (d->begun = true, mark && s->stop) {
            if (d->tail == s->stop)
                e = buf_add(&d->work, text + at, n);
            else
                d->tail++;
        } else {
            e = add_marks(&d->work, s->mark, d->tail);
            d->tail = 0;
            if (e == OK) e = buf_add(&d->work, text + at, n);
        }
        at += n;
    }
    return e == OK && d->work.size ? push_work(x, i) : e;
}

static enum err replace_whole(struct decoding *x, size_t i, const char *text, size_t length,
                              const struct buf *content)
{
    struct decoding_step *s = &x->step[i];
    buf_clear(&s->work);
    enum err e =
        pattern_replace(&x->decoder->step[i].pattern, x->scratch, text, length, content, &s->work);
    return e == OK ? push_work(x, i) : e;
}

/* How long the longest end of the text is that could be the beginning of the literal. */
static size_t overlap(const struct buf *text, const struct buf *literal)
{
    size_t most = literal->size - 1;
    if (most > text->size) most = text->size;
    for (; most > 0; most--)
        if (memcmp(text->data + text->size - most, literal->data, most) == 0) break;
    return most;
}

static enum err replace_fragment(struct decoding *x, size_t i, const char *text, size_t length)
{
    const struct decoder_step *s = &x->decoder->step[i];
    struct decoding_step *d = &x->step[i];
    struct pattern_walk w = {0};
    size_t from = 0;
    enum err e = buf_add(&d->held, text, length);
    if (e != OK || d->held.size == 0) return e;
    buf_clear(&d->work);
    w.text = d->held.data;
    w.length = d->held.size;
    while ((e = pattern_next(&s->pattern, x->scratch, &w)) == OK && w.found) {
        if ((e = buf_add(&d->work, w.text + from, w.start - from)) != OK) return e;
        if ((e = buf_add(&d->work, s->content.data, s->content.size)) != OK) return e;
        from = w.end;
    }
    buf_drop(&d->held, from);
    size_t ready = d->held.size - (d->held.size ? overlap(&d->held, &s->pattern.literal) : 0);
    if (e == OK) e = buf_add(&d->work, d->held.data, ready);
    buf_drop(&d->held, ready);
    return e == OK && d->work.size ? push_work(x, i) : e;
}

/* Marks become blanks, or nothing. */
static enum err replace_marks(uint32_t mark, bool drop, const char *text, size_t length,
                              struct buf *out)
{
    enum err e = OK;
    for (size_t at = 0; e == OK && at < length;) {
        uint32_t c;
        size_t n = utf8_read(text + at, length - at, &c);
        if (c != mark)
            e = buf_add(out, text + at, n);
        else if (!drop)
            e = buf_add(out, " ", 1);
        at += n;
    }
    return e;
}

static enum err metaspace(struct decoding *x, size_t i, const char *text, size_t length)
{
    const struct decoder_step *s = &x->decoder->step[i];
    struct decoding_step *d = &x->step[i];
    buf_clear(&d->work);
    enum err e = replace_marks(s->mark, !d->begun && s->drops_first, text, length, &d->work);
    if (!s->fused) d->begun = true; /* a fused text is the first token to its end */
    return e == OK ? push_work(x, i) : e;
}

/* A token's suffix is a blank where another token follows. */
static enum err suffix(struct decoding *x, size_t i, const char *text, size_t length, bool last)
{
    static const struct buf blank = {.data = (char *)" ", .size = 1}, nothing = {0};
    struct decoding_step *s = &x->step[i];
    enum err e = OK;
    if (s->begun)
        e = replace_whole(x, i, s->held.size ? s->held.data : "", s->held.size,
                          last ? &nothing : &blank);
    buf_clear(&s->held);
    s->begun = !last;
    return e == OK ? buf_add(&s->held, text, length) : e;
}

static enum err join(struct decoding *x, size_t i, const char *text, size_t length)
{
    enum err e = x->step[i].begun ? push(x, i + 1, " ", 1) : OK;
    x->step[i].begun = true;
    return e == OK ? push(x, i + 1, text, length) : e;
}

/* A token, or a fragment of the only one, into step i; behind the last step into x->out. */
static enum err push(struct decoding *x, size_t i, const char *text, size_t length)
{
    if (i == x->decoder->steps_count) return buf_add(&x->out, text, length);
    const struct decoder_step *s = &x->decoder->step[i];
    enum err e;
    switch (s->kind) {
    case STEP_BYTE_LEVEL:
        e = bytelevel_bytes(text, length, &x->step[i].held);
        return e == OK ? byte_level(x, i, false) : e;
    case STEP_BYTE_FALLBACK: return byte_fallback(x, i, text, length);
    case STEP_FUSE: return push(x, i + 1, text, length);
    case STEP_STRIP:
        if (s->fused) return strip_fragment(x, i, text, length);
        strip_whole(s, &text, &length);
        return push(x, i + 1, text, length);
    case STEP_REPLACE:
        if (s->fused) return replace_fragment(x, i, text, length);
        return replace_whole(x, i, text, length, &s->content);
    case STEP_METASPACE: return metaspace(x, i, text, length);
    case STEP_SUFFIX: return suffix(x, i, text, length, false);
    case STEP_JOIN: return join(x, i, text, length);
    }
    return OK;
}

enum err decoding_push(struct decoding *x, const char *token, size_t length)
{
    return push(x, 0, token, length);
}

enum err decoding_end(struct decoding *x)
{
    enum err e = OK;
    for (size_t i = 0; e == OK && i < x->decoder->steps_count; i++) {
        const struct decoder_step *s = &x->decoder->step[i];
        struct decoding_step *d = &x->step[i];
        if (s->kind == STEP_BYTE_LEVEL && d->held.size) e = byte_level(x, i, true);
        if (s->kind == STEP_BYTE_FALLBACK) e = end_run(x, i);
        if (s->kind == STEP_SUFFIX) e = suffix(x, i, "", 0, true);
        if (s->kind == STEP_REPLACE && s->fused && d->held.size)
            e = push(x, i + 1, d->held.data, d->held.size);
    }
    return e;
}
