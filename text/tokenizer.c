#include "text/tokenizer.h"

#include "common/mem.h"
#include "common/utf8.h"
#include "text/tokenizer_parts.h"

/* ---- encoding ---- */

/* What one call needs and the tokenizer does not own. */
struct encoding {
    struct pieces pieces, spare;
    struct normalized normalized;
    struct pattern_scratch *scratch;
    struct bpe_scratch bpe;
    struct id_list ids;
};

static void encoding_fini(struct encoding *x)
{
    pieces_fini(&x->pieces);
    pieces_fini(&x->spare);
    normalized_fini(&x->normalized);
    pattern_scratch_free(x->scratch);
    bpe_scratch_fini(&x->bpe);
    mem_free(x->ids.id);
}

static enum err normalize(const struct tokenizer *t, struct encoding *x)
{
    enum err e = OK;
    struct pieces *p = &x->pieces, *to = &x->spare;
    if (t->normalizer.steps_count == 0) return OK;
    pieces_clear(to);
    for (size_t i = 0; e == OK && i < p->pieces_count; i++) {
        const struct piece *one = &p->piece[i];
        if (one->id != TOKEN_NONE) {
            e = pieces_token(to, one->id);
            continue;
        }
        size_t start = to->text.size;
        e = normalizer_apply(&t->normalizer, x->scratch, p->text.data + one->start, one->length,
                             &x->normalized);
        if (e == OK) e = buf_add(&to->text, x->normalized.text, x->normalized.length);
        if (e == OK) e = pieces_end(to, start, one->first);
    }
    pieces_swap(p, to);
    return e;
}

static enum err cut(const struct tokenizer *t, struct encoding *x, const char *text, size_t length,
                    bool plain_special)
{
    enum err e = pattern_scratch_new(&x->scratch);
    if (e == OK) e = pieces_whole(&x->pieces, text, length);
    if (e == OK) e = added_split(&t->added, ADDED_AS_WRITTEN, plain_special, &x->pieces, &x->spare);
    if (e == OK) e = normalize(t, x);
    if (e == OK) e = added_split(&t->added, ADDED_NORMALIZED, plain_special, &x->pieces, &x->spare);
    if (e == OK) e = pretokenizer_apply(&t->pretokenizer, x->scratch, &x->pieces, &x->spare);
    return e;
}

static enum err add_ids(struct id_list *to, const struct id_list *from)
{
    enum err e = OK;
    for (size_t i = 0; e == OK && i < from->count; i++)
        e = id_list_add(to, from->id[i]);
    return e;
}

static enum err encode_pieces(const struct tokenizer *t, struct encoding *x)
{
    enum err e = OK;
    for (size_t i = 0; e == OK && i < x->pieces.pieces_count; i++) {
        const struct piece *p = &x->pieces.piece[i];
        if (p->id != TOKEN_NONE)
            e = id_list_add(&x->ids, p->id);
        else
            e = bpe_encode(&t->model, &x->bpe, x->pieces.text.data + p->start, p->length, &x->ids);
    }
    return e;
}

enum err tokenizer_encode(const struct tokenizer *t, const char *text, size_t length,
                          unsigned flags, uint32_t **ids, size_t *ids_count)
{
    if (length > TOKENIZER_TEXT_MAX)
        return err_set(ERR_INVALID, "a text of %zu bytes, at most %zu", length, TOKENIZER_TEXT_MAX);
    size_t valid = utf8_check(text, length);
    if (valid != length) return err_set(ERR_INVALID, "the text is not UTF-8 at byte %zu", valid);
    struct encoding x = {0};
    bool special = flags & TOKENIZER_ADD_SPECIAL;
    enum err e = cut(t, &x, text, length, flags & TOKENIZER_PLAIN_SPECIAL);
    if (e == OK && special) e = add_ids(&x.ids, &t->postprocessor.before);
    if (e == OK) e = encode_pieces(t, &x);
    if (e == OK && special) e = add_ids(&x.ids, &t->postprocessor.after);
    if (e == OK && !x.ids.id && !(x.ids.id = mem_new(sizeof *x.ids.id))) e = ERR_MEMORY;
    if (e == OK) {
        *ids = x.ids.id;
        *ids_count = x.ids.count;
        x.ids.id = NULL;
    }
    encoding_fini(&x);
    return e;
}

/* ---- decoding ---- */

bool tokenizer_string(const struct tokenizer *t, uint32_t id, const char **string, size_t *length)
{
    const struct added_token *a = added_by_id(&t->added, id);
    if (!a) return vocab_string(&t->model.vocab, id, string, length);
    *string = a->form ? a->form : a->content;
    *length = a->form ? a->form_length : a->length;
    return true;
}

enum err tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t ids_count,
                          unsigned flags, char **text, size_t *length)
{
    struct decoding x;
    enum err e = decoding_begin(&x, &t->decoder, false);
    if (e != OK) return e;
    for (size_t i = 0; e == OK && i < ids_count; i++) {
        const char *s;
        size_t n;
        if ((flags & TOKENIZER_SKIP_SPECIAL) && tokenizer_is_special(t, ids[i])) continue;
        if (tokenizer_string(t, ids[i], &s, &n)) e = decoding_push(&x, s, n);
    }
    if (e == OK) e = decoding_end(&x);
    *length = x.out.size;
    if (e == OK && !(*text = buf_take(&x.out))) e = ERR_MEMORY;
    decoding_fini(&x);
    return e;
}

/* ---- facts ---- */

uint32_t tokenizer_ids_end(const struct tokenizer *t)
{
    return t->ids_end;
}

uint32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

uint32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

uint32_t tokenizer_find(const struct tokenizer *t, const char *content, size_t length)
{
    const struct added_token *a = added_find(&t->added, content, length);
    return a ? a->id : vocab_find(&t->model.vocab, content, length);
}

bool tokenizer_is_special(const struct tokenizer *t, uint32_t id)
{
    const struct added_token *a = added_by_id(&t->added, id);
    return a && a->special;
}
