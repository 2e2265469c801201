#include "text/oniguruma.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "common/utf8.h"

/* Bodies of PCRE2 classes. */
#define SET_SPACE                                                                                  \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"    \
    "\\x{205F}\\x{3000}"
#define SET_ALPHA "\\p{Alphabetic}"
/* With the superscripts and fractions of Latin-1, which Oniguruma takes for letters. */
#define SET_WORD SET_ALPHA "\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"
#define SET_HEX "0-9A-Fa-f"
#define SET_PUNCT "\\p{P}\\p{S}"

struct reader {
    const char *s;
    size_t length, at;
    struct buf *out;
    int depth;
};

static enum err put(struct buf *b, const char *text)
{
    return buf_add(b, text, strlen(text));
}

static enum err put_literal(struct buf *b, uint32_t c)
{
    char text[16];
    snprintf(text, sizeof text, "\\x{%X}", c);
    return put(b, text);
}

static bool more(const struct reader *r)
{
    return r->at < r->length;
}

static bool next_is(const struct reader *r, const char *text)
{
    size_t n = strlen(text);
    return r->length - r->at >= n && memcmp(r->s + r->at, text, n) == 0;
}

static bool skip(struct reader *r, const char *text)
{
    if (!next_is(r, text)) return false;
    r->at += strlen(text);
    return true;
}

static uint32_t take_char(struct reader *r)
{
    uint32_t c;
    r->at += utf8_read(r->s + r->at, r->length - r->at, &c);
    return c;
}

static enum err malformed(const struct reader *r, const char *what)
{
    return err_set(ERR_FORMAT, "regular expression: %s at byte %zu", what, r->at);
}

/* The properties that Oniguruma calls differently or means differently. */
static const struct property {
    const char *name; /* lower case, no blanks, no underscores */
    const char *set;
} properties[] = {
    {"alnum", SET_ALPHA "\\p{Nd}"},
    {"alpha", SET_ALPHA},
    {"blank", "\\p{Zs}\\x{9}"},
    {"cntrl", "\\p{Cc}"},
    {"digit", "\\p{Nd}"},
    {"lower", "\\p{Lowercase}"},
    {"punct", SET_PUNCT},
    {"space", SET_SPACE},
    {"whitespace", SET_SPACE},
    {"upper", "\\p{Uppercase}"},
    {"xdigit", SET_HEX},
    {"word", SET_WORD},
    {"ascii", "\\x{0}-\\x{7F}"},
    {"any", "\\x{0}-\\x{10FFFF}"},
    {"alphabetic", SET_ALPHA},
    {"letter", "\\p{L}"},
    {"lc", "\\p{Lu}\\p{Ll}\\p{Lt}"},
    {"casedletter", "\\p{Lu}\\p{Ll}\\p{Lt}"},
    {"uppercaseletter", "\\p{Lu}"},
    {"lowercaseletter", "\\p{Ll}"},
    {"titlecaseletter", "\\p{Lt}"},
    {"modifierletter", "\\p{Lm}"},
    {"otherletter", "\\p{Lo}"},
    {"mark", "\\p{M}"},
    {"combiningmark", "\\p{M}"},
    {"nonspacingmark", "\\p{Mn}"},
    {"spacingmark", "\\p{Mc}"},
    {"enclosingmark", "\\p{Me}"},
    {"number", "\\p{N}"},
    {"decimalnumber", "\\p{Nd}"},
    {"letternumber", "\\p{Nl}"},
    {"othernumber", "\\p{No}"},
    {"punctuation", "\\p{P}"},
    {"connectorpunctuation", "\\p{Pc}"},
    {"dashpunctuation", "\\p{Pd}"},
    {"openpunctuation", "\\p{Ps}"},
    {"closepunctuation", "\\p{Pe}"},
    {"initialpunctuation", "\\p{Pi}"},
    {"finalpunctuation", "\\p{Pf}"},
    {"otherpunctuation", "\\p{Po}"},
    {"symbol", "\\p{S}"},
    {"mathsymbol", "\\p{Sm}"},
    {"currencysymbol", "\\p{Sc}"},
    {"modifiersymbol", "\\p{Sk}"},
    {"othersymbol", "\\p{So}"},
    {"separator", "\\p{Z}"},
    {"spaceseparator", "\\p{Zs}"},
    {"lineseparator", "\\p{Zl}"},
    {"paragraphseparator", "\\p{Zp}"},
    {"other", "\\p{C}"},
    {"control", "\\p{Cc}"},
    {"format", "\\p{Cf}"},
    {"surrogate", "\\p{Cs}"},
    {"privateuse", "\\p{Co}"},
    {"unassigned", "\\p{Cn}"},
};

/* Binary properties that PCRE2 knows under the same name; every other name is a script. */
static const char *const binary_properties[] = {
    "emoji",
    "emojipresentation",
    "emojimodifier",
    "emojimodifierbase",
    "emojicomponent",
    "extendedpictographic",
    "ideographic",
    "unifiedideograph",
    "lowercase",
    "uppercase",
    "idstart",
    "idcontinue",
    "xidstart",
    "xidcontinue",
    "math",
    "dash",
    "diacritic",
    "hexdigit",
    "quotationmark",
    "variationselector",
    "joincontrol",
    "regionalindicator",
    "defaultignorablecodepoint",
    "radical",
    "graphemeextend",
    "graphemebase",
    "cased",
    "caseignorable",
    "asciihexdigit",
};

static bool is_category(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > 2 || !strchr("clmnpsz", name[0])) return false;
    return n == 1 || strchr("ucltmodeknpsicf", name[1]);
}

/* A property's name, normalized, as the body of a PCRE2 class. */
static enum err put_property(struct reader *r, struct buf *b, const char *name)
{
    char text[96];
    for (size_t i = 0; i < sizeof properties / sizeof *properties; i++)
        if (strcmp(properties[i].name, name) == 0) return put(b, properties[i].set);
    if (is_category(name)) {
        snprintf(text, sizeof text, "\\p{%c%s}", toupper((unsigned char)name[0]), name + 1);
        return put(b, text);
    }
    for (size_t i = 0; i < sizeof binary_properties / sizeof *binary_properties; i++)
        if (strcmp(binary_properties[i], name) == 0) {
            snprintf(text, sizeof text, "\\p{%s}", name);
            return put(b, text);
        }
    if (name[0] == '\0') return malformed(r, "a property without a name");
    snprintf(text, sizeof text, "\\p{sc:%s}", name);
    return put(b, text);
}

/* Behind \p or \P, or [: of a class: {name} or name:]. */
static enum err take_property(struct reader *r, const char *end, char name[64], bool *negative)
{
    size_t n = 0;
    if (skip(r, "^")) *negative = !*negative;
    while (more(r) && !next_is(r, end)) {
        unsigned char c = (unsigned char)r->s[r->at++];
        if (c == ' ' || c == '_' || c == '-') continue;
        if (!isalnum(c) || n == 63) return malformed(r, "a strange property name");
        name[n++] = (char)tolower(c);
    }
    if (!skip(r, end)) return malformed(r, "an unfinished property");
    name[n] = '\0';
    return OK;
}

/* What an escape means inside or outside a class: one character or a set. */
struct escape {
    bool is_char, negative;
    uint32_t c;
    const char *set; /* NULL with is_char false: the property `name` */
    char name[64];
};

static enum err take_hex(struct reader *r, int digits_min, int digits_max, uint32_t *c)
{
    int n = 0;
    *c = 0;
    while (n < digits_max && more(r) && isxdigit((unsigned char)r->s[r->at])) {
        int d = tolower((unsigned char)r->s[r->at++]);
        *c = *c << 4 | (uint32_t)(d <= '9' ? d - '0' : d - 'a' + 10);
        n++;
    }
    if (n < digits_min) return malformed(r, "hexadecimal digits are missing");
    if (*c > 0x10FFFF || (*c >= 0xD800 && *c < 0xE000)) return malformed(r, "no such character");
    return OK;
}

static enum err take_code(struct reader *r, char kind, uint32_t *c)
{
    enum err e;
    if (kind == 'u') return take_hex(r, 4, 4, c);
    if (skip(r, "{")) {
        if ((e = take_hex(r, 1, 8, c)) != OK) return e;
        return skip(r, "}") ? OK : malformed(r, "an unfinished \\x{");
    }
    if ((e = take_hex(r, 1, 2, c)) != OK) return e;
    if (*c >= 0x80)
        return err_set(ERR_UNSUPPORTED, "regular expression: single bytes of a character (\\x%X)",
                       *c);
    return OK;
}

static bool simple_escape(char kind, uint32_t *c)
{
    static const char from[] = "tnrfaev", to[] = "\t\n\r\f\a\033\v";
    const char *p = strchr(from, kind);
    if (!kind || !p) return false;
    *c = (uint32_t)to[p - from];
    return true;
}

/* Behind a backslash. Returns ERR_AGAIN, with nothing consumed, for what is neither a character
 * nor a set: anchors, references and the like. */
static enum err take_escape(struct reader *r, bool in_class, struct escape *x)
{
    *x = (struct escape){0};
    if (!more(r)) return malformed(r, "a backslash at the end");
    char kind = r->s[r->at];
    static const struct {
        char kind;
        const char *set;
    } sets[] = {{'s', SET_SPACE}, {'w', SET_WORD}, {'d', "\\p{Nd}"}, {'h', SET_HEX}};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        if (tolower((unsigned char)kind) != sets[i].kind) continue;
        r->at++;
        x->set = sets[i].set;
        x->negative = kind != sets[i].kind;
        return OK;
    }
    if (kind == 'p' || kind == 'P') {
        r->at++;
        x->negative = kind == 'P';
        if (!skip(r, "{")) return malformed(r, "\\p without braces");
        return take_property(r, "}", x->name, &x->negative);
    }
    x->is_char = true;
    if (kind == 'x' || kind == 'u') {
        r->at++;
        return take_code(r, kind, &x->c);
    }
    if (kind == 'b' && in_class) {
        r->at++;
        x->c = 8;
        return OK;
    }
    if (simple_escape(kind, &x->c)) {
        r->at++;
        return OK;
    }
    if (isalnum((unsigned char)kind)) {
        if (kind == '0') {
            r->at++;
            return OK;
        }
        return ERR_AGAIN;
    }
    x->c = take_char(r);
    return OK;
}

static enum err put_set(struct reader *r, struct buf *b, const struct escape *x)
{
    return x->set ? put(b, x->set) : put_property(r, b, x->name);
}

/* One side of && in a class: characters and sets that fit a PCRE2 class, and classes beside it. */
struct operand {
    struct buf flat, nested; /* nested: alternatives, joined by | */
};

static void operand_fini(struct operand *o)
{
    buf_fini(&o->flat);
    buf_fini(&o->nested);
}

static enum err nested_begin(struct operand *o)
{
    return o->nested.size ? put(&o->nested, "|") : OK;
}

static enum err put_operand(struct buf *b, const struct operand *o, bool negative)
{
    enum err e = OK;
    if (o->nested.size == 0) {
        e = put(b, negative ? "[^" : "[");
        if (e == OK) e = buf_add(b, o->flat.data, o->flat.size);
        return e == OK ? put(b, "]") : e;
    }
    e = put(b, negative ? "(?:(?!" : "(?:");
    if (e == OK) e = buf_add(b, o->nested.data, o->nested.size);
    if (e == OK && o->flat.size) {
        e = put(b, "|[");
        if (e == OK) e = buf_add(b, o->flat.data, o->flat.size);
        if (e == OK) e = put(b, "]");
    }
    if (e == OK && negative) e = put(b, ")[\\x{0}-\\x{10FFFF}]");
    return e == OK ? put(b, ")") : e;
}

static enum err class_body(struct reader *r, struct buf *b);

static enum err class_escape(struct reader *r, struct operand *o, bool *is_char, uint32_t *c)
{
    struct escape x;
    enum err e = take_escape(r, true, &x);
    if (e == ERR_AGAIN)
        return err_set(ERR_UNSUPPORTED, "regular expression: \\%c in a class", r->s[r->at]);
    if (e != OK) return e;
    *is_char = x.is_char;
    *c = x.c;
    if (x.is_char) return OK;
    if (!x.negative) return put_set(r, &o->flat, &x);
    if ((e = nested_begin(o)) != OK || (e = put(&o->nested, "[^")) != OK) return e;
    if ((e = put_set(r, &o->nested, &x)) != OK) return e;
    return put(&o->nested, "]");
}

static enum err class_posix(struct reader *r, struct operand *o)
{
    struct escape x = {0};
    enum err e = take_property(r, ":]", x.name, &x.negative);
    if (e != OK) return e;
    if (!x.negative) return put_property(r, &o->flat, x.name);
    if ((e = nested_begin(o)) != OK || (e = put(&o->nested, "[^")) != OK) return e;
    if ((e = put_property(r, &o->nested, x.name)) != OK) return e;
    return put(&o->nested, "]");
}

/* One character of a class, with the range that it may begin. */
static enum err class_char(struct reader *r, struct operand *o, uint32_t from)
{
    enum err e = put_literal(&o->flat, from);
    if (e != OK || !next_is(r, "-") || r->at + 1 >= r->length || r->s[r->at + 1] == ']') return e;
    r->at++;
    if (next_is(r, "[") || next_is(r, "&&")) return put_literal(&o->flat, '-');
    bool is_char = true;
    uint32_t to;
    if (skip(r, "\\")) {
        if ((e = class_escape(r, o, &is_char, &to)) != OK) return e;
        if (!is_char) return put_literal(&o->flat, '-');
    } else {
        to = take_char(r);
    }
    if (to < from) return malformed(r, "an empty range in a class");
    if ((e = put(&o->flat, "-")) != OK) return e;
    return put_literal(&o->flat, to);
}

/* One side of &&, up to && or the closing bracket. */
static enum err class_operand(struct reader *r, struct operand *o, bool *first)
{
    enum err e = OK;
    while (e == OK) {
        if (!more(r)) return malformed(r, "an unfinished class");
        if (!*first && (next_is(r, "]") || next_is(r, "&&"))) return OK;
        *first = false;
        if (skip(r, "[:")) {
            e = class_posix(r, o);
        } else if (skip(r, "[")) {
            if ((e = nested_begin(o)) == OK) e = class_body(r, &o->nested);
        } else if (skip(r, "\\")) {
            bool is_char;
            uint32_t c;
            e = class_escape(r, o, &is_char, &c);
            if (e == OK && is_char) e = class_char(r, o, c);
        } else {
            e = class_char(r, o, take_char(r));
        }
    }
    return e;
}

/* Behind [: an expression for one character of the class goes to `b`. */
static enum err class_body(struct reader *r, struct buf *b)
{
    if (++r->depth > ONIGURUMA_DEPTH_MAX) return malformed(r, "classes nested too deeply");
    bool negative = skip(r, "^");
    bool first = next_is(r, "]");
    struct operand last = {0};
    struct buf before = {0}; /* lookaheads of the sides that came before the last */
    enum err e = class_operand(r, &last, &first);
    while (e == OK && skip(r, "&&")) {
        if ((e = put(&before, "(?=")) != OK) break;
        if ((e = put_operand(&before, &last, false)) != OK) break;
        if ((e = put(&before, ")")) != OK) break;
        operand_fini(&last);
        e = class_operand(r, &last, &first);
    }
    if (e == OK) r->at++; /* the closing bracket */
    if (e == OK && last.flat.size + last.nested.size == 0) e = malformed(r, "an empty class");
    if (e == OK && before.size == 0) {
        e = put_operand(b, &last, negative);
    } else if (e == OK) {
        e = put(b, negative ? "(?:(?!" : "(?:");
        if (e == OK) e = buf_add(b, before.data, before.size);
        if (e == OK) e = put_operand(b, &last, false);
        if (e == OK) e = put(b, negative ? ")[\\x{0}-\\x{10FFFF}])" : ")");
    }
    operand_fini(&last);
    buf_fini(&before);
    r->depth--;
    return e;
}

static enum err outer_escape(struct reader *r)
{
    struct escape x;
    enum err e = take_escape(r, false, &x);
    if (e == OK && x.is_char) return put_literal(r->out, x.c);
    if (e == OK) {
        if ((e = put(r->out, x.negative ? "[^" : "[")) != OK) return e;
        if ((e = put_set(r, r->out, &x)) != OK) return e;
        return put(r->out, "]");
    }
    if (e != ERR_AGAIN) return e;
    char kind = r->s[r->at++];
    if (kind == 'b')
        return put(r->out, "(?:(?<=[" SET_WORD "])(?![" SET_WORD "])|(?<![" SET_WORD
                           "])(?=[" SET_WORD "]))");
    if (kind == 'B')
        return put(r->out, "(?:(?<=[" SET_WORD "])(?=[" SET_WORD "])|(?<![" SET_WORD
                           "])(?![" SET_WORD "]))");
    char text[3] = {'\\', kind, '\0'};
    if (strchr("AZzGKRX123456789k", kind)) return put(r->out, text);
    return err_set(ERR_UNSUPPORTED, "regular expression: \\%c", kind);
}

/* Behind "(?": options, which Ruby writes and scopes differently. */
static enum err group_options(struct reader *r, bool at_group_start)
{
    enum err e = OK;
    while (more(r) && strchr("im-", r->s[r->at]) && e == OK) {
        char c = r->s[r->at++];
        char text[2] = {c == 'm' ? 's' : c, '\0'};
        e = put(r->out, text);
    }
    if (e != OK) return e;
    if (next_is(r, "x")) return err_set(ERR_UNSUPPORTED, "regular expression: extended form (?x)");
    if (skip(r, ":")) return put(r->out, ":");
    if (!skip(r, ")")) return malformed(r, "an unknown kind of group");
    if (!at_group_start)
        return err_set(ERR_UNSUPPORTED, "regular expression: options in the middle of a group");
    return put(r->out, ")");
}

struct groups {
    size_t start[ONIGURUMA_DEPTH_MAX]; /* where in the output each open group begins */
    int count;
};

/* Behind "(": returns with *opened false where the group was only options or a comment. */
static enum err group_open(struct reader *r, bool at_group_start, bool *opened)
{
    static const char *const kinds[] = {"?:", "?=", "?!", "?>", "?<=", "?<!", NULL};
    enum err e = put(r->out, "(");
    *opened = true;
    if (e != OK || !next_is(r, "?")) return e;
    for (int i = 0; kinds[i]; i++)
        if (skip(r, kinds[i])) return put(r->out, kinds[i]);
    if (skip(r, "?#")) {
        while (more(r) && r->s[r->at] != ')')
            r->at++;
        if (!skip(r, ")")) return malformed(r, "an unfinished comment");
        *opened = false;
        return put(r->out, "?:)");
    }
    if (next_is(r, "?<")) return OK; /* a name: copied as it stands */
    if (!skip(r, "?") || (e = put(r->out, "?")) != OK) return e;
    size_t before = r->at;
    e = group_options(r, at_group_start);
    *opened = e != OK || r->s[r->at - 1] == ':' || r->at == before;
    return e;
}

/* {n}, {n,}, {,m} or {n,m} at the reader: its length, 0 if it is none. */
static size_t interval_length(const struct reader *r, bool *fixed, bool *from_zero)
{
    size_t at = r->at + 1, digits = 0;
    while (at < r->length && isdigit((unsigned char)r->s[at]))
        at++, digits++;
    *fixed = true;
    *from_zero = digits == 0;
    if (at < r->length && r->s[at] == ',') {
        *fixed = false;
        at++;
        while (at < r->length && isdigit((unsigned char)r->s[at]))
            at++, digits++;
    }
    return digits && at < r->length && r->s[at] == '}' ? at + 1 - r->at : 0;
}

static enum err wrap_atom(struct buf *b, size_t start)
{
    enum err e = put(b, "(?:)");
    if (e != OK) return e;
    memmove(b->data + start + 3, b->data + start, b->size - 4 - start);
    memcpy(b->data + start, "(?:", 3);
    b->data[b->size - 1] = ')';
    return OK;
}

/* All quantifiers behind an atom that begins at `start` of the output. */
static enum err take_quantifiers(struct reader *r, size_t start)
{
    enum err e = OK;
    for (int n = 0; e == OK && more(r); n++) {
        char c = r->s[r->at];
        bool fixed = false, from_zero = false;
        size_t length =
            c == '{' ? interval_length(r, &fixed, &from_zero) : (c == '*' || c == '+' || c == '?');
        if (length == 0) return OK;
        if (n > 8) return malformed(r, "too many quantifiers");
        if (n > 0 && (e = wrap_atom(r->out, start)) != OK) return e;
        if (from_zero) {
            if ((e = put(r->out, "{0")) != OK) return e;
            e = buf_add(r->out, r->s + r->at + 1, length - 1);
        } else {
            e = buf_add(r->out, r->s + r->at, length);
        }
        r->at += length;
        if (e == OK && !fixed && skip(r, "?"))
            e = put(r->out, "?");
        else if (e == OK && c != '{' && skip(r, "+"))
            e = put(r->out, "+");
    }
    return e;
}

static enum err take_plain(struct reader *r)
{
    size_t from = r->at;
    uint32_t c = take_char(r);
    if (c == '{' || c == '}' || c == ']' || c == '#') return put_literal(r->out, c);
    return buf_add(r->out, r->s + from, r->at - from);
}

static enum err take_all(struct reader *r)
{
    struct groups g = {.count = 0};
    bool at_group_start = true;
    while (more(r)) {
        enum err e;
        size_t start = r->out->size;
        bool atom = true, begins = false;
        if (skip(r, "(")) {
            if (g.count == ONIGURUMA_DEPTH_MAX) return malformed(r, "groups nested too deeply");
            if ((e = group_open(r, at_group_start, &atom)) == OK && atom) {
                g.start[g.count++] = start;
                begins = true;
            } else {
                begins = at_group_start;
            }
            atom = false;
        } else if (skip(r, ")")) {
            if (g.count == 0) return malformed(r, "a closing bracket too many");
            start = g.start[--g.count];
            e = put(r->out, ")");
        } else if (skip(r, "|")) {
            e = put(r->out, "|");
            atom = false;
        } else if (skip(r, "[")) {
            e = class_body(r, r->out);
        } else if (skip(r, "\\")) {
            e = outer_escape(r);
        } else {
            e = take_plain(r);
        }
        if (e == OK && atom) e = take_quantifiers(r, start);
        if (e != OK) return e;
        at_group_start = begins;
    }
    return g.count ? malformed(r, "an unclosed group") : OK;
}

enum err oniguruma_to_pcre(const char *pattern, size_t length, struct buf *out)
{
    if (length > ONIGURUMA_LENGTH_MAX)
        return err_set(ERR_UNSUPPORTED, "regular expression of %zu bytes, at most %d", length,
                       ONIGURUMA_LENGTH_MAX);
    struct reader r = {.s = pattern, .length = length, .out = out};
    size_t start = out->size;
    enum err e = take_all(&r);
    if (e != OK) buf_cut(out, start);
    return e;
}
