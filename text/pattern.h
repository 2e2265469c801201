/* pattern: a literal or a regular expression, and all its matches in a text, left to right.
 *
 *     if ((e = pattern_init(&p, PATTERN_REGEX, source, source_length)) != OK) return e;
 *     struct pattern_walk w = {.text = text, .length = length};
 *     while ((e = pattern_next(&p, scratch, &w)) == OK && w.found) { ... w.start, w.end ... }
 *     pattern_fini(&p);
 *
 * Rules: a pattern does not change after pattern_init, any thread may match with it; a scratch
 * belongs to one thread at a time and serves any pattern. Text is valid UTF-8. An empty match right
 * behind the last match is not one. A match never fails for want of stack: the compiled matcher
 * gets a large one, and the interpreter takes over when that is used up; beyond
 * PATTERN_HEAP_MAX_KIB of backtracking it is ERR_FULL. */
#ifndef TANDEM_TEXT_PATTERN_H
#define TANDEM_TEXT_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

#include "common/buf.h"
#include "common/err.h"

#define PATTERN_STACK_MAX_BYTES ((size_t)32 << 20)
#define PATTERN_HEAP_MAX_KIB (512u << 10)

enum pattern_kind { PATTERN_LITERAL, PATTERN_REGEX };

struct pattern {
    struct buf literal; /* not empty: this is what is looked for */
    struct pcre2_real_code_8 *code;
};

struct pattern_scratch;

struct pattern_walk {
    const char *text;
    size_t length;
    bool found; /* the answer: whether there was a match, and where */
    size_t start, end;
    size_t at; /* where the next search begins */
    bool matched;
    size_t matched_end;
};

enum err pattern_init(struct pattern *p, enum pattern_kind kind, const char *source, size_t length);
void pattern_fini(struct pattern *p);

enum err pattern_scratch_new(struct pattern_scratch **out);
void pattern_scratch_free(struct pattern_scratch *s); /* NULL is fine */

enum err pattern_next(const struct pattern *p, struct pattern_scratch *s, struct pattern_walk *w);

#endif
