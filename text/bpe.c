#include "text/bpe.h"

#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "common/utf8.h"
#include "text/tokenizer.h"

enum err id_list_add(struct id_list *l, uint32_t id)
{
    if (l->count == l->capacity) {
        size_t capacity = l->capacity ? l->capacity * 2 : 64;
        uint32_t *grown = mem_resize(l->id, capacity, sizeof *grown);
        if (!grown) return ERR_MEMORY;
        l->id = grown;
        l->capacity = capacity;
    }
    l->id[l->count++] = id;
    return OK;
}

/* ---- reading the model ---- */

static enum err read_vocab(struct bpe *m, const struct place *model, const json_t *json)
{
    struct place at = place_field(model, "vocab");
    json_t *object = json_object_get(json, "vocab");
    enum err e = place_object(&at, object);
    if (e != OK) return e;
    size_t bytes = 0;
    uint64_t id, ids_end = 0;
    const char *key;
    size_t length;
    json_t *value;
    json_object_keylen_foreach(object, key, length, value)
    {
        if ((e = place_number(&at, value, TOKENIZER_IDS_MAX - 1, &id)) != OK)
            return err_prefix(e, "token \"%.40s\"", key);
        if (id >= ids_end) ids_end = id + 1;
        bytes += length;
    }
    if (ids_end == 0) return place_error(&at, ERR_FORMAT, "a token is wanted, none is there");
    if (bytes > UINT32_MAX) return place_error(&at, ERR_FORMAT, "%zu bytes of tokens", bytes);
    e = vocab_init(&m->vocab, json_object_size(object), bytes, (uint32_t)ids_end);
    if (e != OK) return e;
    json_object_keylen_foreach(object, key, length, value)
    {
        const char *other;
        size_t other_length;
        id = (uint64_t)json_integer_value(value);
        if (vocab_string(&m->vocab, (uint32_t)id, &other, &other_length))
            return place_error(&at, ERR_FORMAT, "\"%.*s\" and \"%.40s\" have one id, %u",
                               other_length < 40 ? (int)other_length : 40, other, key,
                               (uint32_t)id);
        vocab_add(&m->vocab, key, length, (uint32_t)id);
    }
    return OK;
}

static size_t merge_slot(const struct bpe *m, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15ull;
    size_t at = (h ^ h >> 32) & m->merge_mask;
    while (m->merge[at].left != TOKEN_NONE &&
           (m->merge[at].left != left || m->merge[at].right != right))
        at = (at + 1) & m->merge_mask;
    return at;
}

static const struct bpe_merge *find_merge(const struct bpe *m, uint32_t left, uint32_t right)
{
    const struct bpe_merge *x = &m->merge[merge_slot(m, left, right)];
    return x->left == TOKEN_NONE ? NULL : x;
}

struct word {
    const char *text;
    size_t length;
};

/* ["a", "b"], or "a b". A token of the second form may itself be or hold a blank ("   " is two
 * blanks); the first place where both sides are tokens is the right one then. */
static enum err split_merge(const struct bpe *m, const json_t *value, struct word *a,
                            struct word *b)
{
    const char *s = json_string_value(value);
    size_t length = json_string_length(value), blanks = 0;
    const json_t *x = json_array_get(value, 0), *y = json_array_get(value, 1);
    if (json_is_string(x) && json_is_string(y) && json_array_size(value) == 2) {
        *a = (struct word){json_string_value(x), json_string_length(x)};
        *b = (struct word){json_string_value(y), json_string_length(y)};
        return OK;
    }
    for (size_t i = 0; i < length; i++) {
        if (s[i] != ' ') continue;
        bool known = vocab_find(&m->vocab, s, i) != TOKEN_NONE &&
                     vocab_find(&m->vocab, s + i + 1, length - i - 1) != TOKEN_NONE;
        if (blanks++ && !known) continue;
        *a = (struct word){s, i};
        *b = (struct word){s + i + 1, length - i - 1};
        if (known) return OK;
    }
    if (blanks == 1) return OK; /* one of the two is missing: the caller says which */
    return err_set(ERR_FORMAT, "two tokens are wanted, \"a b\" or [\"a\", \"b\"]");
}

static enum err find_word(const struct bpe *m, struct word w, uint32_t *id)
{
    *id = vocab_find(&m->vocab, w.text, w.length);
    if (*id != TOKEN_NONE) return OK;
    return err_set(ERR_FORMAT, "token \"%.*s\" is not in the vocabulary",
                   w.length < 80 ? (int)w.length : 80, w.text);
}

static uint32_t joins_bit(uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15ull;
    return (uint32_t)(h >> (64 - BPE_JOINS_BITS));
}

/* Notes the two characters between which this merge joins its tokens. */
static void note_join(struct bpe *m, struct word a, struct word b)
{
    uint32_t left = 0, right = 0;
    if (a.length == 0 || b.length == 0) return;
    size_t last = utf8_before(a.text, a.length);
    utf8_read(a.text + last, a.length - last, &left);
    utf8_read(b.text, b.length, &right);
    uint32_t bit = joins_bit(left, right);
    m->joins[bit / 64] |= 1ull << bit % 64;
}

static enum err read_merge(struct bpe *m, const json_t *value, uint32_t rank, struct buf *joined)
{
    struct word a = {0}, b = {0};
    struct bpe_merge x = {.rank = rank};
    enum err e = split_merge(m, value, &a, &b);
    if (e != OK) return e;
    if ((e = find_word(m, a, &x.left)) != OK) return e;
    if ((e = find_word(m, b, &x.right)) != OK) return e;
    size_t skip = m->prefix ? strlen(m->prefix) : 0;
    if (b.length < skip)
        return err_set(ERR_FORMAT, "\"%.*s\" lacks the continuing_subword_prefix", (int)b.length,
                       b.text);
    buf_clear(joined);
    if ((e = buf_add(joined, a.text, a.length)) != OK) return e;
    if ((e = buf_add(joined, b.text + skip, b.length - skip)) != OK) return e;
    struct word both = {joined->size ? joined->data : "", joined->size};
    if ((e = find_word(m, both, &x.id)) != OK) return e;
    m->merge[merge_slot(m, x.left, x.right)] = x;
    if (m->joins) note_join(m, a, b);
    return OK;
}

static enum err read_merges(struct bpe *m, const struct place *model, const json_t *json)
{
    struct place at = place_field(model, "merges");
    const json_t *array = json_object_get(json, "merges");
    enum err e = place_array(&at, array);
    if (e != OK) return e;
    size_t count = json_array_size(array), slots = 16;
    while (slots < count + count / 2)
        slots *= 2;
    if (!(m->merge = mem_array(slots, sizeof *m->merge))) return ERR_MEMORY;
    m->merge_mask = slots - 1;
    for (size_t i = 0; i < slots; i++)
        m->merge[i].left = TOKEN_NONE;
    if (!m->prefix && !m->suffix &&
        !(m->joins = mem_array((1u << BPE_JOINS_BITS) / 64, sizeof *m->joins)))
        return ERR_MEMORY;
    struct buf joined = {0};
    uint32_t rank = 0;
    for (size_t i = 0; e == OK && i < count; i++) {
        const json_t *value = json_array_get(array, i);
        const char *s = json_string_value(value);
        if (s && strncmp(s, "#version", 8) == 0) continue; /* the head line of merges.txt */
        if ((e = read_merge(m, value, rank++, &joined)) != OK && e != ERR_MEMORY)
            e = err_prefix(e, "%s: %s[%zu]", at.file, at.where, i);
    }
    buf_fini(&joined);
    return e;
}

static enum err read_optional_string(const struct place *at, const json_t *json, const char *key,
                                     char **out)
{
    const char *s;
    size_t length;
    if (!place_has(json, key)) return OK;
    enum err e = place_string(at, json, key, &s, &length);
    if (e != OK) return e;
    if (strlen(s) != length) return place_error(at, ERR_UNSUPPORTED, "%s with a zero byte", key);
    if (length == 0 && strcmp(key, "unk_token") != 0) return OK; /* "" changes nothing */
    *out = mem_copy_string(s);
    return *out ? OK : ERR_MEMORY;
}

static enum err read_settings(struct bpe *m, const struct place *at, const json_t *json)
{
    enum err e;
    const json_t *dropout = json_object_get(json, "dropout");
    if (place_has(json, "dropout")) {
        if (!json_is_number(dropout)) return place_error(at, ERR_FORMAT, "dropout is not a number");
        if (json_number_value(dropout) != 0.0)
            return place_error(at, ERR_UNSUPPORTED, "dropout other than 0");
    }
    if ((e = place_bool_or(at, json, "fuse_unk", false, &m->fuse_unk)) != OK) return e;
    if ((e = place_bool_or(at, json, "byte_fallback", false, &m->byte_fallback)) != OK) return e;
    if ((e = place_bool_or(at, json, "ignore_merges", false, &m->ignore_merges)) != OK) return e;
    if ((e = read_optional_string(at, json, "unk_token", &m->unk)) != OK) return e;
    e = read_optional_string(at, json, "continuing_subword_prefix", &m->prefix);
    if (e != OK) return e;
    return read_optional_string(at, json, "end_of_word_suffix", &m->suffix);
}

static void fill_tables(struct bpe *m)
{
    char text[8];
    for (uint32_t c = 0; c < BPE_CHARS; c++)
        m->char_id[c] = vocab_find(&m->vocab, text, utf8_write(c, text));
    for (unsigned b = 0; b < 256; b++) {
        snprintf(text, sizeof text, "<0x%02X>", b);
        m->byte_id[b] = vocab_find(&m->vocab, text, 6);
    }
    m->unk_id = m->unk ? vocab_find(&m->vocab, m->unk, strlen(m->unk)) : TOKEN_NONE;
}

enum err bpe_init(struct bpe *m, const struct place *at, const json_t *model)
{
    *m = (struct bpe){.unk_id = TOKEN_NONE};
    enum err e = read_settings(m, at, model);
    if (e == OK) e = read_vocab(m, at, model);
    if (e == OK) e = read_merges(m, at, model);
    if (e == OK)
        fill_tables(m);
    else
        bpe_fini(m);
    return e;
}

void bpe_fini(struct bpe *m)
{
    mem_free(m->joins);
    mem_free(m->merge);
    mem_free(m->unk);
    mem_free(m->prefix);
    mem_free(m->suffix);
    vocab_fini(&m->vocab);
    *m = (struct bpe){0};
}

/* ---- encoding ---- */

void bpe_scratch_fini(struct bpe_scratch *s)
{
    mem_free(s->symbol);
    mem_free(s->heap);
    buf_fini(&s->text);
    *s = (struct bpe_scratch){0};
}

static enum err make_room(struct bpe_scratch *s, size_t symbols)
{
    if (s->symbols_capacity >= symbols) return OK;
    size_t capacity = s->symbols_capacity * 2 > symbols ? s->symbols_capacity * 2 : symbols;
    if (capacity < 64) capacity = 64;
    struct bpe_symbol *symbol = mem_resize(s->symbol, capacity, sizeof *symbol);
    if (!symbol) return ERR_MEMORY;
    s->symbol = symbol;
    s->symbols_capacity = capacity;
    return OK;
}

static enum err heap_push(struct bpe_scratch *s, struct bpe_pair x)
{
    if (s->heap_count == s->heap_capacity) {
        size_t capacity = s->heap_capacity ? s->heap_capacity * 2 : 64;
        struct bpe_pair *heap = mem_resize(s->heap, capacity, sizeof *heap);
        if (!heap) return ERR_MEMORY;
        s->heap = heap;
        s->heap_capacity = capacity;
    }
    size_t at = s->heap_count++;
    while (at > 0 && s->heap[(at - 1) / 2].order > x.order) {
        s->heap[at] = s->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    s->heap[at] = x;
    return OK;
}

static struct bpe_pair heap_pop(struct bpe_scratch *s)
{
    struct bpe_pair top = s->heap[0], x = s->heap[--s->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= s->heap_count) break;
        if (child + 1 < s->heap_count && s->heap[child + 1].order < s->heap[child].order) child++;
        if (s->heap[child].order >= x.order) break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = x;
    return top;
}

static void add_symbol(struct bpe_scratch *s, uint32_t id)
{
    CHECK(s->symbols_count < s->symbols_capacity);
    uint32_t at = (uint32_t)s->symbols_count++;
    s->symbol[at] = (struct bpe_symbol){id, at - 1, at + 1};
}

/* The character as it stands in the vocabulary, with prefix and suffix, into s->text. */
static enum err decorate(const struct bpe *m, struct bpe_scratch *s, struct word c, bool first,
                         bool last)
{
    enum err e = OK;
    buf_clear(&s->text);
    if (m->prefix && !first) e = buf_add(&s->text, m->prefix, strlen(m->prefix));
    if (e == OK) e = buf_add(&s->text, c.text, c.length);
    if (e == OK && m->suffix && last) e = buf_add(&s->text, m->suffix, strlen(m->suffix));
    return e;
}

static bool has_bytes(const struct bpe *m, struct word c)
{
    if (!m->byte_fallback) return false;
    for (size_t i = 0; i < c.length; i++)
        if (m->byte_id[(unsigned char)c.text[i]] == TOKEN_NONE) return false;
    return true;
}

static uint32_t find_char(const struct bpe *m, uint32_t c, const char *text, size_t length)
{
    return c < BPE_CHARS ? m->char_id[c] : vocab_find(&m->vocab, text, length);
}

/* One symbol per character. `pending`: an unk_token that further unknown characters join. */
static enum err add_symbols(const struct bpe *m, struct bpe_scratch *s, const char *text,
                            size_t length)
{
    enum err e;
    bool pending = false;
    for (size_t at = 0; at < length;) {
        uint32_t c;
        struct word w = {text + at, utf8_read(text + at, length - at, &c)};
        bool first = at == 0, last = at + w.length == length;
        uint32_t id;
        at += w.length;
        if ((m->prefix && !first) || (m->suffix && last)) {
            if ((e = decorate(m, s, w, first, last)) != OK) return e;
            w = (struct word){s->text.data, s->text.size};
            if ((e = make_room(s, s->symbols_count + w.length + length + 1)) != OK) return e;
            id = vocab_find(&m->vocab, w.text, w.length);
        } else {
            id = find_char(m, c, w.text, w.length);
        }
        if (id != TOKEN_NONE) {
            if (pending) add_symbol(s, m->unk_id);
            pending = false;
            add_symbol(s, id);
        } else if (has_bytes(m, w)) {
            for (size_t i = 0; i < w.length; i++)
                add_symbol(s, m->byte_id[(unsigned char)w.text[i]]);
        } else if (m->unk) {
            if (m->unk_id == TOKEN_NONE)
                return err_set(ERR_FORMAT,
                               "the tokenizer's unk_token \"%.80s\" is needed, and "
                               "not in its vocabulary",
                               m->unk);
            if (pending && !m->fuse_unk) add_symbol(s, m->unk_id);
            pending = true;
        }
    }
    if (pending) add_symbol(s, m->unk_id);
    return OK;
}

/* Offers the pair of the symbol at `left` and its next one. */
static enum err offer(const struct bpe *m, struct bpe_scratch *s, uint32_t left)
{
    uint32_t right = s->symbol[left].next;
    if (right >= s->symbols_count) return OK;
    const struct bpe_merge *x = find_merge(m, s->symbol[left].id, s->symbol[right].id);
    if (!x) return OK;
    return heap_push(s, (struct bpe_pair){(uint64_t)x->rank << 32 | left, x->id});
}

static enum err merge_all(const struct bpe *m, struct bpe_scratch *s)
{
    enum err e = OK;
    s->heap_count = 0;
    for (uint32_t i = 0; e == OK && i + 1 < s->symbols_count; i++)
        e = offer(m, s, i);
    while (e == OK && s->heap_count) {
        struct bpe_pair top = heap_pop(s);
        uint32_t at = (uint32_t)top.order;
        struct bpe_symbol *left = &s->symbol[at];
        if (left->id == TOKEN_NONE || left->next >= s->symbols_count) continue;
        struct bpe_symbol *right = &s->symbol[left->next];
        const struct bpe_merge *x = find_merge(m, left->id, right->id);
        if (!x || x->id != top.id) continue; /* one of the two was merged meanwhile */
        left->id = top.id;
        left->next = right->next;
        right->id = TOKEN_NONE;
        if (left->next < s->symbols_count) s->symbol[left->next].previous = at;
        if (at > 0) e = offer(m, s, left->previous);
        if (e == OK) e = offer(m, s, at);
    }
    return e;
}

static enum err encode_part(const struct bpe *m, struct bpe_scratch *s, const char *text,
                            size_t length, struct id_list *ids)
{
    enum err e;
    s->symbols_count = 0;
    if ((e = make_room(s, length + 1)) != OK) return e;
    if ((e = add_symbols(m, s, text, length)) != OK) return e;
    if ((e = merge_all(m, s)) != OK) return e;
    for (size_t i = 0; e == OK && i < s->symbols_count; i++)
        if (s->symbol[i].id != TOKEN_NONE) e = id_list_add(ids, s->symbol[i].id);
    return e;
}

/* Where the part that begins the text ends: between two characters of the vocabulary that no merge
 * joins. (Other characters become bytes or unk_token, whose neighbours cannot be told from here.) */
static size_t part_length(const struct bpe *m, const char *text, size_t length)
{
    uint32_t left, right;
    if (!m->joins) return length;
    size_t n = utf8_read(text, length, &left), before = 0;
    for (size_t at = n; at < length; before = at, at += n, left = right) {
        n = utf8_read(text + at, length - at, &right);
        uint32_t bit = joins_bit(left, right);
        if (m->joins[bit / 64] >> bit % 64 & 1) continue;
        if (find_char(m, left, text + before, at - before) == TOKEN_NONE) continue;
        if (find_char(m, right, text + at, n) != TOKEN_NONE) return at;
    }
    return length;
}

enum err bpe_encode(const struct bpe *m, struct bpe_scratch *s, const char *text, size_t length,
                    struct id_list *ids)
{
    enum err e = OK;
    if (m->ignore_merges) {
        uint32_t id = vocab_find(&m->vocab, text, length);
        if (id != TOKEN_NONE) return id_list_add(ids, id);
    }
    for (size_t at = 0, n; e == OK && at < length; at += n) {
        n = part_length(m, text + at, length - at);
        e = encode_part(m, s, text + at, n, ids);
    }
    return e;
}
