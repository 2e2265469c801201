#include "text/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdint.h>
#include <string.h>

#include "common/mem.h"
#include "common/utf8.h"
#include "text/oniguruma.h"

struct pattern_scratch {
    pcre2_general_context *memory;
    pcre2_match_data *match;
    pcre2_match_context *limits;
    pcre2_jit_stack *stack; /* NULL: no just-in-time compiler on this machine */
};

static void *take_memory(size_t size, void *unused)
{
    (void)unused;
    return mem_new(size);
}

static void give_memory(void *p, void *unused)
{
    (void)unused;
    mem_free(p);
}

static enum err compile_error(int code, size_t at)
{
    char why[160];
    if (code == PCRE2_ERROR_HEAP_FAILED) return err_set(ERR_MEMORY, "out of memory: a regex");
    if (pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why) < 0) why[0] = '\0';
    return err_set(ERR_UNSUPPORTED, "regular expression: %s (at %zu of its PCRE2 form)", why, at);
}

/* \s+$ tries every blank of a run anew, each to the run's end, and a megabyte of blanks takes hours.
 * The longest match always begins where the run does, so the others need not be tried. */
static void hasten(const char **source, size_t *length)
{
    static const char slow[] = "\\s+$", fast[] = "(?<!\\s)\\s+$";
    if (*length != sizeof slow - 1 || memcmp(*source, slow, *length) != 0) return;
    *source = fast;
    *length = sizeof fast - 1;
}

static enum err compile(struct pattern *p, const char *source, size_t length)
{
    struct buf translated = {0};
    hasten(&source, &length);
    enum err e = oniguruma_to_pcre(source, length, &translated);
    if (e == OK) e = buf_reserve(&translated, 0); /* never a null pointer */
    pcre2_general_context *memory = NULL;
    pcre2_compile_context *context = NULL;
    if (e == OK) {
        memory = pcre2_general_context_create(take_memory, give_memory, NULL);
        context = memory ? pcre2_compile_context_create(memory) : NULL;
        if (!context) e = err_set(ERR_MEMORY, "out of memory: a regex");
    }
    if (e == OK) {
        int code;
        size_t at;
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        p->code = pcre2_compile((PCRE2_SPTR)translated.data, translated.size,
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &at, context);
        if (!p->code) e = compile_error(code, at);
    }
    /* Where there is no compiler for this machine the interpreter does it. */
    if (e == OK) (void)pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE);
    pcre2_compile_context_free(context);
    pcre2_general_context_free(memory);
    buf_fini(&translated);
    return e;
}

enum err pattern_init(struct pattern *p, enum pattern_kind kind, const char *source, size_t length)
{
    *p = (struct pattern){0};
    if (kind == PATTERN_LITERAL && length > 0) return buf_add(&p->literal, source, length);
    return compile(p, source, length);
}

void pattern_fini(struct pattern *p)
{
    buf_fini(&p->literal);
    pcre2_code_free(p->code);
    *p = (struct pattern){0};
}

enum err pattern_scratch_new(struct pattern_scratch **out)
{
    struct pattern_scratch *s = mem_new(sizeof *s);
    if (!s) return ERR_MEMORY;
    s->memory = pcre2_general_context_create(take_memory, give_memory, NULL);
    s->match = s->memory ? pcre2_match_data_create(1, s->memory) : NULL;
    s->limits = s->match ? pcre2_match_context_create(s->memory) : NULL;
    if (!s->limits) {
        pattern_scratch_free(s);
        return err_set(ERR_MEMORY, "out of memory: matching a regular expression");
    }
    pcre2_set_match_limit(s->limits, UINT32_MAX);
    pcre2_set_depth_limit(s->limits, UINT32_MAX);
    pcre2_set_heap_limit(s->limits, PATTERN_HEAP_MAX_KIB);
    s->stack = pcre2_jit_stack_create(32 << 10, PATTERN_STACK_MAX_BYTES, s->memory);
    if (s->stack) pcre2_jit_stack_assign(s->limits, NULL, s->stack);
    *out = s;
    return OK;
}

void pattern_scratch_free(struct pattern_scratch *s)
{
    if (!s) return;
    pcre2_jit_stack_free(s->stack);
    pcre2_match_context_free(s->limits);
    pcre2_match_data_free(s->match);
    pcre2_general_context_free(s->memory);
    mem_free(s);
}

static void find_literal(const struct pattern *p, struct pattern_walk *w)
{
    const char *hit = memmem(w->text + w->at, w->length - w->at, p->literal.data, p->literal.size);
    w->found = hit != NULL;
    if (!hit) return;
    w->start = (size_t)(hit - w->text);
    w->end = w->start + p->literal.size;
}

static enum err find_regex(const struct pattern *p, struct pattern_scratch *s,
                           struct pattern_walk *w)
{
    PCRE2_SPTR text = (PCRE2_SPTR)w->text;
    int n = pcre2_match(p->code, text, w->length, w->at, PCRE2_NO_UTF_CHECK, s->match, s->limits);
    if (n == PCRE2_ERROR_JIT_STACKLIMIT)
        n = pcre2_match(p->code, text, w->length, w->at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                        s->match, s->limits);
    w->found = n >= 0;
    if (n == PCRE2_ERROR_NOMATCH) return OK;
    if (n == PCRE2_ERROR_NOMEMORY) return err_set(ERR_MEMORY, "out of memory: a regex");
    if (n < 0)
        return err_set(ERR_FULL, "regular expression gave up on a text of %zu bytes (PCRE2 %d)",
                       w->length, n);
    const PCRE2_SIZE *where = pcre2_get_ovector_pointer(s->match);
    w->start = where[0];
    w->end = where[1];
    /* \K can put the start behind the end, or before what was matched already. */
    if (w->start > w->end || w->start < w->matched_end)
        return err_set(ERR_UNSUPPORTED, "regular expression whose match ends before it starts");
    return OK;
}

enum err pattern_next(const struct pattern *p, struct pattern_scratch *s, struct pattern_walk *w)
{
    for (;;) {
        w->found = false;
        if (w->at > w->length) return OK;
        enum err e = OK;
        if (p->literal.size)
            find_literal(p, w);
        else
            e = find_regex(p, s, w);
        if (e != OK || !w->found) return e;
        if (w->start != w->end || !w->matched || w->matched_end != w->end) break;
        uint32_t c;
        if (w->at == w->length) {
            w->at++;
        } else {
            w->at += utf8_read(w->text + w->at, w->length - w->at, &c);
        }
    }
    w->at = w->matched_end = w->end;
    w->matched = true;
    return OK;
}
