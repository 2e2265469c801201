#include "text/pretokenizer.h"

#include <string.h>

#include "common/mem.h"
#include "common/utf8.h"
#include "text/bytelevel.h"
#include "text/normalizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

/* What happens to the matches of a step's pattern. */
enum behavior {
    KEEP_APART,     /* Isolated: a match is a piece of its own */
    REMOVE,         /* Removed */
    JOIN_PREVIOUS,  /* MergedWithPrevious */
    JOIN_NEXT,      /* MergedWithNext */
    JOIN_EACH_OTHER /* Contiguous: matches in a row are one piece */
};

enum finder { FIND_PATTERN, FIND_CHARS, FIND_WORDS, FIND_LENGTH };

/* Every step first rewrites each piece, where it does (prefix blank, metaspace), then cuts it, then
 * maps its bytes. */
struct pretokenizer_step {
    bool cuts;
    enum finder finder;
    struct pattern pattern;
    bool (*is_match)(uint32_t c, uint32_t delimiter);
    uint32_t delimiter;
    uint64_t length; /* FIND_LENGTH: characters of a piece */
    enum behavior behavior;
    bool invert;
    bool prefix_blank, map_bytes; /* ByteLevel */
    bool metaspace;               /* blanks become `delimiter` */
    enum { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } prepend;
};

#define GPT2_PATTERN                                                                               \
    "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

static bool is_delimiter(uint32_t c, uint32_t delimiter)
{
    return c == delimiter;
}

static bool is_space(uint32_t c, uint32_t unused)
{
    (void)unused;
    return unicode_is_space(c);
}

static bool is_numeric(uint32_t c, uint32_t unused)
{
    (void)unused;
    return unicode_is_numeric(c);
}

static bool is_punctuation(uint32_t c, uint32_t unused)
{
    (void)unused;
    return unicode_is_punctuation(c);
}

/* ---- reading ---- */

static enum err new_step(struct pretokenizer *t, const struct place *at,
                         struct pretokenizer_step **out)
{
    if (t->steps_count == PRETOKENIZER_STEPS_MAX)
        return place_error(at, ERR_UNSUPPORTED, "more than %d pre-tokenizers",
                           PRETOKENIZER_STEPS_MAX);
    struct pretokenizer_step *grown = mem_resize(t->step, t->steps_count + 1, sizeof *grown);
    if (!grown) return ERR_MEMORY;
    t->step = grown;
    *out = &t->step[t->steps_count++];
    **out = (struct pretokenizer_step){.cuts = true};
    return OK;
}

static enum err read_behavior(const struct place *at, const json_t *json, enum behavior *b)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *s;
    size_t length;
    enum err e = place_string(at, json, "behavior", &s, &length);
    if (e != OK) return e;
    for (int i = 0; i < 5; i++)
        if (strcmp(names[i], s) == 0) {
            *b = (enum behavior)i;
            return OK;
        }
    return place_error(at, ERR_FORMAT, "behavior \"%.40s\"", s);
}

static enum err read_char(const struct place *at, const json_t *json, const char *key, uint32_t *c)
{
    const char *s;
    size_t length;
    enum err e = place_string(at, json, key, &s, &length);
    if (e != OK) return e;
    if (length == 0 || utf8_read(s, length, c) != length)
        return place_error(at, ERR_FORMAT, "%s is not one character", key);
    return OK;
}

static enum err read_byte_level(struct pretokenizer_step *s, const struct place *at,
                                const json_t *json)
{
    enum err e = place_bool(at, json, "add_prefix_space", &s->prefix_blank);
    if (e == OK) e = place_bool_or(at, json, "use_regex", true, &s->cuts);
    s->map_bytes = true;
    if (e != OK || !s->cuts) return e;
    return pattern_init(&s->pattern, PATTERN_REGEX, GPT2_PATTERN, strlen(GPT2_PATTERN));
}

static enum err read_split(struct pretokenizer_step *s, const struct place *at, const json_t *json)
{
    enum err e = read_behavior(at, json, &s->behavior);
    if (e == OK) e = place_bool(at, json, "invert", &s->invert);
    return e == OK ? pattern_read(&s->pattern, at, json) : e;
}

static enum err read_metaspace(struct pretokenizer_step *s, const struct place *at,
                               const json_t *json)
{
    const char *scheme = "always";
    size_t length;
    bool legacy = true;
    s->metaspace = true;
    s->finder = FIND_CHARS;
    s->is_match = is_delimiter;
    s->behavior = JOIN_NEXT;
    enum err e = read_char(at, json, "replacement", &s->delimiter);
    if (e == OK) e = place_bool_or(at, json, "split", true, &s->cuts);
    if (e == OK) e = place_bool_or(at, json, "add_prefix_space", true, &legacy);
    if (e == OK && place_has(json, "prepend_scheme"))
        e = place_string(at, json, "prepend_scheme", &scheme, &length);
    if (e != OK) return e;
    if (strcmp(scheme, "never") == 0)
        s->prepend = PREPEND_NEVER;
    else if (strcmp(scheme, "first") == 0)
        s->prepend = PREPEND_FIRST;
    else if (strcmp(scheme, "always") == 0)
        s->prepend = PREPEND_ALWAYS;
    else
        return place_error(at, ERR_FORMAT, "prepend_scheme \"%.40s\"", scheme);
    if (!legacy && s->prepend != PREPEND_NEVER)
        return place_error(at, ERR_FORMAT, "add_prefix_space false with prepend_scheme \"%s\"",
                           scheme);
    return OK;
}

static enum err read_digits(struct pretokenizer_step *s, const struct place *at, const json_t *json)
{
    bool individual = false;
    enum err e = place_bool(at, json, "individual_digits", &individual);
    s->finder = FIND_CHARS;
    s->is_match = is_numeric;
    s->behavior = individual ? KEEP_APART : JOIN_EACH_OTHER;
    return e;
}

static enum err read_punctuation(struct pretokenizer_step *s, const struct place *at,
                                 const json_t *json)
{
    s->finder = FIND_CHARS;
    s->is_match = is_punctuation;
    return place_has(json, "behavior") ? read_behavior(at, json, &s->behavior) : OK;
}

static enum err read_delimiter(struct pretokenizer_step *s, const struct place *at,
                               const json_t *json)
{
    s->finder = FIND_CHARS;
    s->is_match = is_delimiter;
    s->behavior = REMOVE;
    return read_char(at, json, "delimiter", &s->delimiter);
}

static enum err read_spaces(struct pretokenizer_step *s, const struct place *at, const json_t *json)
{
    (void)at, (void)json;
    s->finder = FIND_CHARS;
    s->is_match = is_space;
    s->behavior = REMOVE;
    return OK;
}

static enum err read_words(struct pretokenizer_step *s, const struct place *at, const json_t *json)
{
    (void)at, (void)json;
    s->finder = FIND_WORDS;
    s->behavior = REMOVE;
    s->invert = true;
    return OK;
}

static enum err read_length(struct pretokenizer_step *s, const struct place *at, const json_t *json)
{
    s->finder = FIND_LENGTH;
    s->length = 5;
    if (!place_has(json, "length")) return OK;
    enum err e = place_number(at, json_object_get(json, "length"), UINT32_MAX, &s->length);
    if (e == OK && s->length == 0) e = place_error(at, ERR_FORMAT, "length 0");
    return e;
}

static const struct {
    const char *name;
    enum err (*read)(struct pretokenizer_step *s, const struct place *at, const json_t *json);
} kinds[] = {
    {"ByteLevel", read_byte_level},    {"Split", read_split},
    {"Metaspace", read_metaspace},     {"Digits", read_digits},
    {"Punctuation", read_punctuation}, {"CharDelimiterSplit", read_delimiter},
    {"WhitespaceSplit", read_spaces},  {"Whitespace", read_words},
    {"FixedLength", read_length},
};

static enum err read_kind(struct pretokenizer *t, const struct place *at, const json_t *json,
                          const char *type)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct pretokenizer_step *s = NULL;
        if (strcmp(type, kinds[i].name) != 0) continue;
        enum err e = new_step(t, at, &s);
        return e == OK ? kinds[i].read(s, at, json) : e;
    }
    return place_error(at, ERR_UNSUPPORTED, "pre-tokenizer \"%.60s\"", type);
}

static enum err read(void *part, const struct place *at, const json_t *json, const char *type)
{
    if (strcmp(type, "BertPreTokenizer") != 0) return read_kind(part, at, json, type);
    enum err e = read_kind(part, at, json, "WhitespaceSplit");
    return e == OK ? read_kind(part, at, json, "Punctuation") : e;
}

enum err pretokenizer_init(struct pretokenizer *t, const struct place *at, const json_t *json)
{
    *t = (struct pretokenizer){0};
    if (!json || json_is_null(json)) return OK;
    enum err e = place_steps(at, json, "pretokenizers", read, t);
    if (e != OK) pretokenizer_fini(t);
    return e;
}

void pretokenizer_fini(struct pretokenizer *t)
{
    for (size_t i = 0; i < t->steps_count; i++)
        pattern_fini(&t->step[i].pattern);
    mem_free(t->step);
    *t = (struct pretokenizer){0};
}

/* ---- cutting ---- */

static void find_chars(const struct pretokenizer_step *s, struct pattern_walk *w)
{
    w->found = false;
    while (w->at < w->length && !w->found) {
        uint32_t c;
        w->start = w->at;
        w->at += utf8_read(w->text + w->at, w->length - w->at, &c);
        w->end = w->at;
        w->found = s->is_match(c, s->delimiter);
    }
}

/* \w+|[^\w\s]+ */
static void find_words(struct pattern_walk *w)
{
    enum { SPACE, WORD, OTHER } kind = SPACE;
    uint32_t c;
    w->start = w->end = w->at;
    while (w->at < w->length) {
        size_t n = utf8_read(w->text + w->at, w->length - w->at, &c);
        int k = unicode_is_space(c) ? SPACE : unicode_is_word(c) ? WORD : OTHER;
        if (kind != SPACE && k != (int)kind) break;
        w->at += n;
        if (k == SPACE) {
            w->start = w->at;
        } else {
            kind = k == WORD ? WORD : OTHER;
        }
        w->end = w->at;
    }
    w->found = kind != SPACE;
}

static void find_length(const struct pretokenizer_step *s, struct pattern_walk *w)
{
    uint32_t c;
    w->start = w->at;
    w->found = w->at < w->length;
    for (uint64_t i = 0; i < s->length && w->at < w->length; i++)
        w->at += utf8_read(w->text + w->at, w->length - w->at, &c);
    w->end = w->at;
}

static enum err find_next(const struct pretokenizer_step *s, struct pattern_scratch *scratch,
                          struct pattern_walk *w)
{
    switch (s->finder) {
    case FIND_PATTERN: return pattern_next(&s->pattern, scratch, w);
    case FIND_CHARS: find_chars(s, w); break;
    case FIND_WORDS: find_words(w); break;
    case FIND_LENGTH: find_length(s, w); break;
    }
    return OK;
}

/* The pieces of one text, cut as `behavior` says while its matches come in. Until it is known where
 * the present piece ends it is `open`. */
struct cutter {
    struct pieces *out;
    const struct pretokenizer_step *step;
    size_t base; /* of the text in the pieces' text */
    bool first;
    bool open, open_is_match;
    size_t start, end;
};

static enum err close_piece(struct cutter *c)
{
    if (!c->open) return OK;
    c->open = false;
    return pieces_cut(c->out, c->base + c->start, c->end - c->start, c->first && c->start == 0);
}

/* Whether the next part belongs to the open piece. */
static bool joins(const struct cutter *c, bool is_match)
{
    if (!c->open) return false;
    switch (c->step->behavior) {
    case JOIN_PREVIOUS: return is_match && !c->open_is_match;
    case JOIN_NEXT: return c->open_is_match && !is_match;
    case JOIN_EACH_OTHER: return is_match == c->open_is_match;
    default: return false;
    }
}

/* The parts of a text in order, matches and what stands between them. */
static enum err cut_part(struct cutter *c, size_t start, size_t end, bool is_match)
{
    is_match ^= c->step->invert;
    if (joins(c, is_match)) {
        c->end = end;
        c->open_is_match = is_match;
        return OK;
    }
    enum err e = close_piece(c);
    if (e != OK || (c->step->behavior == REMOVE && is_match)) return e;
    c->open = true;
    c->open_is_match = is_match;
    c->start = start;
    c->end = end;
    return OK;
}

static enum err cut(const struct pretokenizer_step *s, struct pattern_scratch *scratch,
                    const struct pieces *in, const struct piece *p, struct pieces *out)
{
    struct cutter c = {.out = out, .step = s, .base = p->start, .first = p->first};
    struct pattern_walk w = {.text = in->text.data + p->start, .length = p->length};
    size_t from = 0;
    enum err e;
    while ((e = find_next(s, scratch, &w)) == OK && w.found) {
        if (w.start > from && (e = cut_part(&c, from, w.start, false)) != OK) return e;
        if ((e = cut_part(&c, w.start, w.end, true)) != OK) return e;
        from = w.end;
    }
    if (e == OK && from < p->length) e = cut_part(&c, from, p->length, false);
    return e == OK ? close_piece(&c) : e;
}

/* ---- rewriting ---- */

static bool begins_with(const char *text, size_t length, uint32_t c)
{
    uint32_t first;
    utf8_read(text, length, &first);
    return first == c;
}

static enum err rewrite(const struct pretokenizer_step *s, const char *text, size_t length,
                        bool first, struct buf *out)
{
    enum err e = OK;
    uint32_t mark = s->metaspace ? s->delimiter : ' ';
    char bytes[4];
    size_t n = utf8_write(mark, bytes);
    bool has = begins_with(text, length, mark) || begins_with(text, length, ' ');
    bool wants =
        s->prefix_blank || s->prepend == PREPEND_ALWAYS || (s->prepend == PREPEND_FIRST && first);
    if (wants && !has) e = buf_add(out, bytes, n);
    if (!s->metaspace) return e == OK ? buf_add(out, text, length) : e;
    for (size_t at = 0; e == OK && at < length;) {
        const char *blank = memchr(text + at, ' ', length - at);
        size_t end = blank ? (size_t)(blank - text) : length;
        e = buf_add(out, text + at, end - at);
        if (e == OK && blank) e = buf_add(out, bytes, n);
        at = end + 1;
    }
    return e;
}

typedef enum err (*each_fn)(const struct pretokenizer_step *s, struct pattern_scratch *scratch,
                            const struct pieces *in, const struct piece *p, struct pieces *out);

static enum err rewrite_piece(const struct pretokenizer_step *s, struct pattern_scratch *scratch,
                              const struct pieces *in, const struct piece *p, struct pieces *out)
{
    (void)scratch;
    size_t start = out->text.size;
    enum err e = rewrite(s, in->text.data + p->start, p->length, p->first, &out->text);
    return e == OK ? pieces_end(out, start, p->first) : e;
}

static enum err map_piece(const struct pretokenizer_step *s, struct pattern_scratch *scratch,
                          const struct pieces *in, const struct piece *p, struct pieces *out)
{
    (void)s, (void)scratch;
    size_t start = out->text.size;
    enum err e = bytelevel_append(in->text.data + p->start, p->length, &out->text);
    return e == OK ? pieces_end(out, start, p->first) : e;
}

/* Every piece with text through `each`, into `spare`, which then is `p`. */
static enum err for_each(each_fn each, const struct pretokenizer_step *s,
                         struct pattern_scratch *scratch, struct pieces *p, struct pieces *spare)
{
    enum err e = OK;
    pieces_clear(spare);
    for (size_t i = 0; e == OK && i < p->pieces_count; i++) {
        if (p->piece[i].id != TOKEN_NONE)
            e = pieces_token(spare, p->piece[i].id);
        else
            e = each(s, scratch, p, &p->piece[i], spare);
    }
    if (e != OK) return e;
    if (each == cut) { /* the text stays where it was */
        struct buf text = spare->text;
        spare->text = p->text;
        p->text = text;
    }
    pieces_swap(p, spare);
    return OK;
}

enum err pretokenizer_apply(const struct pretokenizer *t, struct pattern_scratch *scratch,
                            struct pieces *p, struct pieces *spare)
{
    enum err e = OK;
    for (size_t i = 0; e == OK && i < t->steps_count; i++) {
        const struct pretokenizer_step *s = &t->step[i];
        if (s->prefix_blank || s->metaspace) e = for_each(rewrite_piece, s, scratch, p, spare);
        if (e == OK && s->cuts) e = for_each(cut, s, scratch, p, spare);
        if (e == OK && s->map_bytes) e = for_each(map_piece, s, scratch, p, spare);
    }
    return e;
}
