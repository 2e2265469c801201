#include "text/stream.h"

#include "common/mem.h"
#include "text/tokenizer_parts.h"

struct stream {
    const struct tokenizer *tokenizer;
    unsigned flags;
    struct decoding decoding;
};

static void restart(struct stream *s)
{
    decoding_reset(&s->decoding, s->flags & STREAM_CONTINUES);
}

enum err stream_new(struct stream **out, const struct tokenizer *t, unsigned flags)
{
    struct stream *s = mem_new(sizeof *s);
    if (!s) return ERR_MEMORY;
    s->tokenizer = t;
    s->flags = flags;
    enum err e = decoding_begin(&s->decoding, &t->decoder, flags & STREAM_CONTINUES);
    if (e != OK) {
        mem_free(s);
        return e;
    }
    *out = s;
    return OK;
}

void stream_free(struct stream *s)
{
    if (!s) return;
    decoding_fini(&s->decoding);
    mem_free(s);
}

static void hand_out(const struct stream *s, const char **text, size_t *length)
{
    *length = s->decoding.out.size;
    *text = *length ? s->decoding.out.data : "";
}

enum err stream_push(struct stream *s, uint32_t id, const char **text, size_t *length)
{
    const char *token;
    size_t n;
    enum err e = OK;
    buf_clear(&s->decoding.out);
    bool skip = (s->flags & STREAM_SKIP_SPECIAL) && tokenizer_is_special(s->tokenizer, id);
    if (!skip && tokenizer_string(s->tokenizer, id, &token, &n))
        e = decoding_push(&s->decoding, token, n);
    if (e == OK) hand_out(s, text, length);
    return e;
}

enum err stream_finish(struct stream *s, const char **text, size_t *length)
{
    buf_clear(&s->decoding.out);
    enum err e = decoding_end(&s->decoding);
    hand_out(s, text, length);
    restart(s);
    return e;
}
