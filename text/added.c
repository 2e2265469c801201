#include "text/added.h"

#include <string.h>

#include "common/mem.h"
#include "common/utf8.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

/* ---- reading ---- */

static enum err read_token(struct added_token *t, const struct place *at, const json_t *json)
{
    const char *s;
    enum err e = place_object(at, json);
    uint64_t id;
    struct place where = place_field(at, "id");
    if (e == OK) e = place_number(&where, json_object_get(json, "id"), UINT32_MAX, &id);
    if (e == OK) e = place_string(at, json, "content", &s, &t->length);
    if (e == OK) e = place_bool(at, json, "special", &t->special);
    if (e == OK) e = place_bool(at, json, "single_word", &t->single_word);
    if (e == OK) e = place_bool(at, json, "lstrip", &t->lstrip);
    if (e == OK) e = place_bool(at, json, "rstrip", &t->rstrip);
    if (e == OK) e = place_bool(at, json, "normalized", &t->normalized);
    if (e != OK) return e;
    if (t->length > ADDED_LENGTH_MAX)
        return place_error(at, ERR_UNSUPPORTED, "a token of %zu bytes, at most %d", t->length,
                           ADDED_LENGTH_MAX);
    t->content = mem_new(t->length + 1);
    if (!t->content) return ERR_MEMORY;
    memcpy(t->content, s, t->length);
    return OK;
}

/* The first entry with each content counts; a set of contents, by vocabulary, finds the others. */
static enum err keep_token(struct added *a, struct vocab *seen, const struct vocab *vocab,
                           struct added_token *t, uint32_t *id_max)
{
    if (t->length == 0 || vocab_find(seen, t->content, t->length) != TOKEN_NONE) {
        mem_free(t->content);
        return OK;
    }
    t->id = vocab_find(vocab, t->content, t->length);
    if (t->id == TOKEN_NONE) {
        uint32_t size = (uint32_t)vocab->entries_count;
        bool beyond = a->tokens_count > 0 && (*id_max >= size || size == 0);
        t->id = beyond ? *id_max + 1 : size;
    }
    if (a->tokens_count == 0 || t->id > *id_max) *id_max = t->id;
    vocab_add(seen, t->content, t->length, (uint32_t)a->tokens_count);
    a->token[a->tokens_count++] = *t;
    return OK;
}

static enum err number_tokens(struct added *a, const struct place *at, const struct vocab *vocab,
                              uint32_t id_max)
{
    a->ids_end = vocab->ids_end;
    if (a->tokens_count && id_max >= a->ids_end) a->ids_end = id_max + 1;
    if (a->ids_end > TOKENIZER_IDS_MAX)
        return place_error(at, ERR_UNSUPPORTED, "ids up to %u, at most %u", id_max,
                           TOKENIZER_IDS_MAX);
    a->by_id = mem_array(a->ids_end, sizeof *a->by_id);
    if (!a->by_id) return ERR_MEMORY;
    for (size_t i = 0; i < a->tokens_count; i++)
        a->by_id[a->token[i].id] = (uint32_t)i + 1;
    return OK;
}

enum err added_init(struct added *a, const struct place *at, const json_t *json,
                    const struct vocab *vocab)
{
    *a = (struct added){0};
    struct vocab seen = {0};
    uint32_t id_max = 0;
    enum err e = OK;
    if (json && !json_is_null(json)) {
        if ((e = place_array(at, json)) != OK) return e;
        size_t count = json_array_size(json), bytes = 0;
        for (size_t i = 0; i < count; i++) {
            const json_t *content = json_object_get(json_array_get(json, i), "content");
            bytes += json_string_length(content);
        }
        if (bytes > ADDED_TOTAL_MAX || count > TOKENIZER_IDS_MAX / 2)
            return place_error(at, ERR_UNSUPPORTED, "%zu tokens of %zu bytes", count, bytes);
        if (!(a->token = mem_array(count, sizeof *a->token))) return ERR_MEMORY;
        if ((e = vocab_init(&seen, count, bytes, (uint32_t)count)) != OK) goto fail;
        for (size_t i = 0; i < count; i++) {
            struct added_token t = {0};
            struct place one = place_index(at, i);
            if ((e = read_token(&t, &one, json_array_get(json, i))) != OK) goto fail;
            if ((e = keep_token(a, &seen, vocab, &t, &id_max)) != OK) goto fail;
        }
    }
    if ((e = number_tokens(a, at, vocab, id_max)) != OK) goto fail;
    vocab_fini(&seen);
    return OK;
fail:
    vocab_fini(&seen);
    added_fini(a);
    return e;
}

void added_fini(struct added *a)
{
    for (size_t i = 0; i < a->tokens_count; i++) {
        mem_free(a->token[i].form);
        mem_free(a->token[i].content);
    }
    mem_free(a->token);
    mem_free(a->by_id);
    mem_free(a->trie[0].node);
    mem_free(a->trie[1].node);
    *a = (struct added){0};
}

const struct added_token *added_by_id(const struct added *a, uint32_t id)
{
    return id < a->ids_end && a->by_id[id] ? &a->token[a->by_id[id] - 1] : NULL;
}

/* ---- the tries ---- */

static enum err new_node(struct trie *t, unsigned char byte, uint32_t *index)
{
    if (t->nodes_count == t->nodes_capacity) {
        size_t capacity = t->nodes_capacity ? t->nodes_capacity * 2 : 64;
        struct trie_node *grown = mem_resize(t->node, capacity, sizeof *grown);
        if (!grown) return ERR_MEMORY;
        t->node = grown;
        t->nodes_capacity = capacity;
    }
    *index = (uint32_t)t->nodes_count++;
    t->node[*index] = (struct trie_node){.byte = byte};
    return OK;
}

static uint32_t child_of(const struct trie *t, uint32_t node, unsigned char byte)
{
    if (node == 0) return t->first[byte];
    uint32_t i = t->node[node].child;
    while (i && t->node[i].byte != byte)
        i = t->node[i].sibling;
    return i;
}

/* The first token with a text keeps it. */
static enum err trie_add(struct trie *t, const char *text, size_t length, uint32_t token)
{
    enum err e = OK;
    uint32_t at = 0, next;
    if (t->nodes_count == 0 && (e = new_node(t, 0, &next)) != OK) return e;
    for (size_t i = 0; i < length; i++, at = next) {
        unsigned char byte = (unsigned char)text[i];
        if ((next = child_of(t, at, byte)) != 0) continue;
        if ((e = new_node(t, byte, &next)) != OK) return e;
        if (at == 0) {
            t->first[byte] = next;
        } else {
            t->node[next].sibling = t->node[at].child;
            t->node[at].child = next;
        }
    }
    if (t->node[at].token == 0) t->node[at].token = token + 1;
    return OK;
}

/* The longest token at the beginning of the text; false: none. */
static bool trie_match(const struct trie *t, const char *text, size_t length, uint32_t *token,
                       size_t *token_length)
{
    bool found = false;
    uint32_t at = 0;
    for (size_t i = 0; i < length; i++) {
        if ((at = child_of(t, at, (unsigned char)text[i])) == 0) break;
        if (t->node[at].token == 0) continue;
        *token = t->node[at].token - 1;
        *token_length = i + 1;
        found = true;
    }
    return found;
}

static enum err index_token(struct added *a, const struct place *at, uint32_t i,
                            const struct normalizer *normalizer, struct pattern_scratch *scratch,
                            struct normalized *n)
{
    struct added_token *t = &a->token[i];
    if (!t->normalized) return trie_add(&a->trie[ADDED_AS_WRITTEN], t->content, t->length, i);
    enum err e = normalizer_apply(normalizer, scratch, t->content, t->length, n);
    if (e != OK) return e;
    if (n->length == 0)
        return place_error(at, ERR_UNSUPPORTED, "token \"%.80s\" is empty when normalized",
                           t->content);
    if (n->length != t->length || memcmp(n->text, t->content, n->length) != 0) {
        if (!(t->form = mem_array(n->length, 1))) return ERR_MEMORY;
        memcpy(t->form, n->text, n->length);
        t->form_length = n->length;
    }
    return trie_add(&a->trie[ADDED_NORMALIZED], n->text, n->length, i);
}

enum err added_index(struct added *a, const struct place *at, const struct normalizer *normalizer)
{
    struct normalized n = {0};
    struct pattern_scratch *scratch;
    enum err e = pattern_scratch_new(&scratch);
    if (e != OK) return e;
    for (int special = 1; e == OK && special >= 0; special--) /* special tokens come first */
        for (uint32_t i = 0; e == OK && i < a->tokens_count; i++)
            if (a->token[i].special == (bool)special)
                e = index_token(a, at, i, normalizer, scratch, &n);
    normalized_fini(&n);
    pattern_scratch_free(scratch);
    return e;
}

const struct added_token *added_find(const struct added *a, const char *content, size_t length)
{
    for (size_t i = 0; i < a->tokens_count; i++)
        if (a->token[i].length == length && memcmp(a->token[i].content, content, length) == 0)
            return &a->token[i];
    return NULL;
}

/* ---- finding them in a text ---- */

static bool word_before(const char *text, size_t at)
{
    uint32_t c;
    if (at == 0) return false;
    size_t start = utf8_before(text, at);
    utf8_read(text + start, at - start, &c);
    return unicode_is_word(c);
}

static bool word_behind(const char *text, size_t length, size_t at)
{
    uint32_t c;
    if (at == length) return false;
    utf8_read(text + at, length - at, &c);
    return unicode_is_word(c);
}

static size_t strip_left(const char *text, size_t start, size_t least)
{
    uint32_t c;
    while (start > least) {
        size_t before = utf8_before(text, start);
        utf8_read(text + before, start - before, &c);
        if (!unicode_is_space(c)) break;
        start = before;
    }
    return start;
}

static size_t strip_right(const char *text, size_t length, size_t end)
{
    uint32_t c;
    while (end < length) {
        size_t n = utf8_read(text + end, length - end, &c);
        if (!unicode_is_space(c)) break;
        end += n;
    }
    return end;
}

static bool counts(const struct added_token *t, bool plain_special, const char *text, size_t length,
                   size_t start, size_t end)
{
    if (plain_special && t->special) return false;
    return !t->single_word || (!word_before(text, start) && !word_behind(text, length, end));
}

/* One piece of text. A token that strips blanks on its right can reach into the next match; that one
 * counts all the same, as in the reference. */
static enum err split_piece(const struct added *a, const struct trie *trie, bool plain_special,
                            const struct pieces *in, const struct piece *p, struct pieces *out)
{
    enum err e;
    const char *text = in->text.data + p->start;
    size_t length = p->length, done = 0;
    for (size_t at = 0; at < length;) {
        uint32_t token;
        size_t n;
        if (!trie->first[(unsigned char)text[at]] ||
            !trie_match(trie, text + at, length - at, &token, &n)) {
            at++;
            continue;
        }
        const struct added_token *t = &a->token[token];
        size_t start = at, end = at + n;
        at = end;
        if (!counts(t, plain_special, text, length, start, end)) continue;
        if (t->lstrip) start = start > done ? strip_left(text, start, done) : done;
        if (t->rstrip) end = strip_right(text, length, end);
        if (start > done) {
            e = pieces_cut(out, p->start + done, start - done, p->first && done == 0);
            if (e != OK) return e;
        }
        if ((e = pieces_token(out, t->id)) != OK) return e;
        done = end;
    }
    return pieces_cut(out, p->start + done, length - done, p->first && done == 0);
}

enum err added_split(const struct added *a, enum added_pass pass, bool plain_special,
                     struct pieces *p, struct pieces *spare)
{
    const struct trie *trie = &a->trie[pass];
    enum err e = OK;
    if (trie->nodes_count == 0) return OK;
    pieces_clear(spare);
    for (size_t i = 0; e == OK && i < p->pieces_count; i++) {
        if (p->piece[i].id != TOKEN_NONE)
            e = pieces_token(spare, p->piece[i].id);
        else
            e = split_piece(a, trie, plain_special, p, &p->piece[i], spare);
    }
    if (e != OK) return e;
    struct buf text = spare->text;
    spare->text = p->text;
    p->text = text;
    pieces_swap(p, spare);
    return OK;
}
