/* msg_decode: wire to struct msg, everything checked. protobuf-c unpacks into the message's arena, and
 * what needs no other shape (strings, ids) is pointed at where it lies. */
#include <math.h>
#include <string.h>

#include "common/utf8.h"
#include "proto/msg_fields.h"

static void *arena_alloc(void *arena, size_t size)
{
    return arena_take(arena, size);
}

static void arena_free(void *arena, void *p)
{
    (void)arena;
    (void)p;
}

static const void *pointer_at(const char *w, const struct field *f)
{
    const void *p;
    memcpy(&p, w + f->w, sizeof p);
    return p;
}

static void put_array(char *c, const struct field *f, const void *items, size_t count)
{
    uint32_t count32 = (uint32_t)count; /* checked by the caller */
    memcpy(c + f->c, &items, sizeof items);
    memcpy(c + f->c_count, &count32, sizeof count32);
}

static void *take_items(struct arena *a, size_t count, size_t size)
{
    return arena_take(a, count * size); /* counts are bounded by msg.h, sizes by its structs */
}

static void clean_prose(char *text)
{
    size_t left = strlen(text);
    for (int n; left > 0; text += n, left -= (size_t)n) {
        n = utf8_first(text, left);
        if (n == 1 && ((unsigned char)*text < 0x20 || *text == 0x7f)) *text = ' ';
        if (n > 0) continue;
        n = n < 0 ? -n : (int)left; /* 0: the text ends within a character */
        memset(text, '?', (size_t)n);
    }
}

static enum err get_string(const struct field *f, const char *w, char *c)
{
    char *text = (char *)pointer_at(w, f); /* in the arena, or the constant "" */
    if (f->type == FIELD_PROSE) clean_prose(text);
    memcpy(c + f->c, &text, sizeof text);
    return field_check_string(f, text, ERR_FORMAT);
}

static enum err get_bytes(const struct field *f, const char *w, char *c, struct arena *a)
{
    ProtobufCBinaryData data;
    memcpy(&data, w + f->w, sizeof data);
    if (data.len > f->max)
        return err_set(ERR_FORMAT, "%s has %zu bytes, at most %u", f->name, data.len, f->max);
    const char *text = data.len ? arena_copy(a, data.data, data.len) : "";
    if (!text) return ERR_MEMORY;
    put_array(c, f, text, data.len);
    return OK;
}

static enum err get_array(const struct field *f, const char *w, char *c)
{
    size_t count;
    memcpy(&count, w + f->w_count, sizeof count);
    if (count > f->max)
        return err_set(ERR_FORMAT, "%s has %zu entries, at most %u", f->name, count, f->max);
    put_array(c, f, pointer_at(w, f), count);
    if (f->type == FIELD_FLOATS) return field_check_floats(f, pointer_at(w, f), count, ERR_FORMAT);
    if (f->type != FIELD_STRINGS) return OK;
    return field_check_items(f, pointer_at(w, f), count, ERR_FORMAT);
}

static void get_id(const struct field *f, const char *w, char *c)
{
    const Tandem__Id *wire = pointer_at(w, f);
    struct id128 id = wire ? (struct id128){wire->hi, wire->lo} : ID128_NONE;
    memcpy(c + f->c, &id, sizeof id);
}

static enum err get_bias(const struct field *f, const char *w, char *c, struct arena *a)
{
    const Tandem__BiasColumns *k = pointer_at(w, f);
    if (!k) return OK;
    if (k->n_tokens != k->n_biases || k->n_tokens > f->max)
        return err_set(ERR_FORMAT, "logit_bias has %zu tokens and %zu values, at most %u",
                       k->n_tokens, k->n_biases, f->max);
    struct logit_bias *bias = take_items(a, k->n_tokens, sizeof *bias);
    if (!bias) return ERR_MEMORY;
    for (size_t i = 0; i < k->n_tokens; i++) {
        bias[i] = (struct logit_bias){k->tokens[i], k->biases[i]};
        if (!isfinite(bias[i].bias)) return err_set(ERR_FORMAT, "logit_bias is not a number");
    }
    put_array(c, f, bias, k->n_tokens);
    return OK;
}

static enum err check_key_columns(const Tandem__KeyColumns *k, size_t count_max)
{
    if (k->n_hi > count_max)
        return err_set(ERR_FORMAT, "%zu keys, at most %zu", k->n_hi, count_max);
    if (k->n_lo != k->n_hi || k->n_choice != k->n_hi || k->n_attempt != k->n_hi)
        return err_set(ERR_FORMAT, "columns of %zu, %zu, %zu and %zu keys", k->n_hi, k->n_lo,
                       k->n_choice, k->n_attempt);
    return OK;
}

static enum err get_key(const Tandem__KeyColumns *k, size_t i, struct job_key *key)
{
    *key = (struct job_key){{k->hi[i], k->lo[i]}, k->choice[i], k->attempt[i]};
    return field_check_choice(key->choice, ERR_FORMAT);
}

static enum err get_keys(const struct field *f, const char *w, char *c, struct arena *a)
{
    enum err e;
    const Tandem__KeyColumns *k = pointer_at(w, f);
    if (!k) return OK;
    if ((e = check_key_columns(k, f->max)) != OK) return e;
    struct job_key *keys = take_items(a, k->n_hi, sizeof *keys);
    if (!keys) return ERR_MEMORY;
    for (size_t i = 0; i < k->n_hi && e == OK; i++)
        e = get_key(k, i, &keys[i]);
    put_array(c, f, keys, k->n_hi);
    return e;
}

/* Fills `out`, which has room for all tokens of the columns, whose lengths were compared. */
static enum err fill_tokens(const Tandem__TokenColumns *k, struct token_info *out)
{
    enum err e;
    size_t top = 0;
    for (size_t i = 0; i < k->n_tokens; i++) {
        out[i].token = k->tokens[i];
        out[i].logprob = k->n_logprobs ? k->logprobs[i] : NAN;
        out[i].tops_count = k->n_tops ? k->tops[i] : 0;
        if (out[i].tops_count > JOB_TOPS_MAX || out[i].tops_count > k->n_top_tokens - top)
            return err_set(ERR_FORMAT, "a token with %u likeliest tokens, at most %d",
                           out[i].tops_count, JOB_TOPS_MAX);
        for (uint32_t j = 0; j < out[i].tops_count; j++, top++) {
            out[i].top[j].token = k->top_tokens[top];
            out[i].top[j].logprob = k->top_logprobs[top];
        }
        if ((e = field_check_token(&out[i], ERR_FORMAT)) != OK) return e;
    }
    if (top == k->n_top_tokens) return OK;
    return err_set(ERR_FORMAT, "%zu likeliest tokens too many", k->n_top_tokens - top);
}

static enum err columns_to_tokens(const Tandem__TokenColumns *k, struct arena *a,
                                  struct token_info **out)
{
    if (k->n_tokens > MSG_TOKENS_MAX)
        return err_set(ERR_FORMAT, "%zu tokens in one message, at most %d", k->n_tokens,
                       MSG_TOKENS_MAX);
    if ((k->n_logprobs && k->n_logprobs != k->n_tokens) ||
        (k->n_tops && k->n_tops != k->n_tokens) || k->n_top_tokens != k->n_top_logprobs)
        return err_set(ERR_FORMAT, "columns of %zu, %zu, %zu, %zu and %zu tokens", k->n_tokens,
                       k->n_logprobs, k->n_tops, k->n_top_tokens, k->n_top_logprobs);
    *out = take_items(a, k->n_tokens, sizeof **out);
    return *out ? fill_tokens(k, *out) : ERR_MEMORY;
}

static enum err get_tokens(const struct field *f, const char *w, char *c, struct arena *a)
{
    enum err e;
    const Tandem__TokenColumns *k = pointer_at(w, f);
    struct token_info *tokens = NULL;
    size_t count = k ? k->n_tokens : 0;
    if (k && (e = columns_to_tokens(k, a, &tokens)) != OK) return e;
    if (f->type == FIELD_TOKENS) {
        put_array(c, f, tokens, count);
        return OK;
    }
    if (count != 1) return err_set(ERR_FORMAT, "%zu tokens where one belongs", count);
    memcpy(c + f->c, tokens, sizeof *tokens);
    return OK;
}

static enum err get_runs(const struct field *f, const char *w, char *c, struct arena *a)
{
    enum err e;
    const Tandem__Tokens *wire = (const void *)w;
    const Tandem__KeyColumns *keys = wire->keys;
    if (!keys || !wire->tokens) {
        if (!keys && !wire->tokens && !wire->n_count && !wire->n_index) return OK;
        return err_set(ERR_FORMAT, "tokens without keys, or keys without tokens");
    }
    if ((e = check_key_columns(keys, f->max)) != OK) return e;
    size_t count = keys->n_hi;
    if (wire->n_index != count || wire->n_count != count)
        return err_set(ERR_FORMAT, "%zu keys, %zu indices and %zu counts", count, wire->n_index,
                       wire->n_count);
    struct token_info *tokens;
    if ((e = columns_to_tokens(wire->tokens, a, &tokens)) != OK) return e;
    struct token_run *runs = take_items(a, count, sizeof *runs);
    if (!runs) return ERR_MEMORY;
    size_t left = wire->tokens->n_tokens;
    for (size_t i = 0; i < count; i++) {
        if (wire->count[i] > left || wire->index[i] > JOB_TOKENS_MAX)
            return err_set(ERR_FORMAT, "%u tokens from index %u where %zu are left", wire->count[i],
                           wire->index[i], left);
        if ((e = get_key(keys, i, &runs[i].key)) != OK) return e;
        runs[i].index = wire->index[i];
        runs[i].tokens = tokens;
        runs[i].tokens_count = wire->count[i];
        tokens += wire->count[i];
        left -= wire->count[i];
    }
    if (left) return err_set(ERR_FORMAT, "%zu tokens without a key", left);
    put_array(c, f, runs, count);
    return OK;
}

static enum err get_number(const struct field *f, const char *w, char *c)
{
    if (f->type != FIELD_BOOL) return field_copy_number(f, w + f->w, c + f->c, ERR_FORMAT);
    protobuf_c_boolean wire_flag;
    memcpy(&wire_flag, w + f->w, sizeof wire_flag);
    bool flag = wire_flag != 0;
    memcpy(c + f->c, &flag, sizeof flag);
    return OK;
}

static enum err get_fields(const struct part *p, const char *w, char *c, struct arena *a);

static enum err get_part(const struct field *f, const char *w, char *c, struct arena *a)
{
    const char *wire = pointer_at(w, f);
    if (wire) return get_fields(f->part, wire, c + f->c, a);
    return f->min == 0 ? OK : err_set(ERR_FORMAT, "%s is missing", f->name);
}

static enum err get_field(const struct field *f, const char *w, char *c, struct arena *a)
{
    switch (f->type) {
    case FIELD_NAME:
    case FIELD_STRING:
    case FIELD_PROSE: return get_string(f, w, c);
    case FIELD_BYTES: return get_bytes(f, w, c, a);
    case FIELD_IDS:
    case FIELD_FLOATS:
    case FIELD_HASHES:
    case FIELD_STRINGS: return get_array(f, w, c);
    case FIELD_ID: get_id(f, w, c); return OK;
    case FIELD_PART: return get_part(f, w, c, a);
    case FIELD_BIAS: return get_bias(f, w, c, a);
    case FIELD_KEYS: return get_keys(f, w, c, a);
    case FIELD_TOKENS:
    case FIELD_TOKEN: return get_tokens(f, w, c, a);
    case FIELD_RUNS: return get_runs(f, w, c, a);
    default: return get_number(f, w, c);
    }
}

static enum err get_fields(const struct part *p, const char *w, char *c, struct arena *a)
{
    enum err e = OK;
    for (uint32_t i = 0; i < p->fields_count && e == OK; i++)
        e = get_field(&p->fields[i], w, c, a);
    return e;
}

static enum err unpack(const void *bytes, size_t size, struct arena *arena, Tandem__Envelope **out)
{
    ProtobufCAllocator allocator = {arena_alloc, arena_free, arena};
    if (size > MSG_BYTES_MAX)
        return err_set(ERR_FORMAT, "a message of %zu bytes, at most %d", size, MSG_BYTES_MAX);
    *out = tandem__envelope__unpack(&allocator, size, bytes);
    if (!*out)
        return err_set(ERR_FORMAT, "%zu bytes that are no message, or one that needs too much room",
                       size);
    if ((*out)->version != MSG_VERSION)
        return err_set(ERR_UNSUPPORTED,
                       "a message of version %u, this is version %d: run the same "
                       "release everywhere",
                       (*out)->version, MSG_VERSION);
    int kind = (int)(*out)->body_case - (int)TANDEM__ENVELOPE__BODY_HELLO + 1;
    if (kind <= MSG_NONE || kind >= MSG_KINDS || !(*out)->hello)
        return err_set(ERR_UNSUPPORTED, "a message of an unknown kind");
    return OK;
}

enum err msg_decode(const void *bytes, size_t size, struct arena *arena, struct msg *m)
{
    enum err e;
    Tandem__Envelope *wire = NULL;
    *m = (struct msg){0};
    if ((e = unpack(bytes, size, arena, &wire)) != OK) return e;
    struct msg got = {.kind = (enum msg_kind)(wire->body_case - TANDEM__ENVELOPE__BODY_HELLO + 1)};
    got.envelope = (struct envelope){wire->epoch, wire->from, wire->to, wire->remaining_ms};
    const struct part *part = msg_part(got.kind);
    m->kind = got.kind;
    m->envelope = got.envelope;
    if (got.kind == MSG_SUBMIT) m->submit.ref = wire->submit->ref;
    if (got.kind == MSG_QUERY) m->query.ref = wire->query->ref;
    if (got.kind == MSG_PIN) m->pin.ref = wire->pin->ref;
    if ((e = get_fields(part, (const char *)wire->hello, (char *)&got + part->c, arena)) != OK ||
        (e = msg_check_whole(&got, ERR_FORMAT)) != OK)
        return err_prefix(e, "%s", part->name);
    if (got.kind == MSG_SUBMIT && got.submit.tokens_count) got.submit.text = NULL;
    *m = got;
    return OK;
}
