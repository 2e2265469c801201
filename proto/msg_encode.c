/* msg_encode: struct msg to wire. protobuf-c's structs and the columns that it packs are built in the
 * free end of the output buffer, from its back; the wire grows from its front. When the two would
 * meet the buffer grows and the building starts again, so that a warm buffer costs no allocation. */
#include <math.h>
#include <string.h>

#include "proto/msg_fields.h"

struct scratch {
    char *low, *high; /* free; taken from `high` down */
    bool full;
};

static void *take(struct scratch *s, size_t count, size_t size)
{
    size_t want = (count * size + 15) & ~(size_t)15; /* counts are bounded by msg.h */
    if ((size_t)(s->high - s->low) < want + 16) {
        s->full = true;
        return NULL;
    }
    s->high -= want;
    s->high = (char *)((uintptr_t)s->high & ~(uintptr_t)15);
    return s->high;
}

static void *take_message(struct scratch *s, const ProtobufCMessageDescriptor *d)
{
    ProtobufCMessage *m = take(s, 1, d->sizeof_message);
    if (m) d->message_init(m);
    return m;
}

static const void *pointer_at(const char *c, const struct field *f)
{
    const void *p;
    memcpy(&p, c + f->c, sizeof p);
    return p;
}

static uint32_t count_at(const char *c, const struct field *f)
{
    uint32_t count;
    memcpy(&count, c + f->c_count, sizeof count);
    return count;
}

static void put_pointer(char *w, const struct field *f, const void *p)
{
    memcpy(w + f->w, &p, sizeof p);
}

/* Every function below returns OK with s->full set when the scratch is too small. */

static enum err put_string(const struct field *f, const char *c, char *w, struct scratch *s)
{
    const char *text = pointer_at(c, f);
    if (!text) text = "";
    if (f->type == FIELD_PROSE && strnlen(text, (size_t)f->max + 1) > f->max) {
        size_t n = f->max;
        while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80)
            n--; /* not inside a character */
        char *cut = take(s, n + 1, 1);
        if (!cut) return OK;
        memcpy(cut, text, n);
        cut[n] = '\0';
        text = cut;
    }
    put_pointer(w, f, text);
    return f->type == FIELD_PROSE ? OK : field_check_string(f, text, ERR_INVALID);
}

static enum err put_bytes(const struct field *f, const char *c, char *w)
{
    ProtobufCBinaryData data = {count_at(c, f), (uint8_t *)pointer_at(c, f)};
    if (data.len > f->max)
        return err_set(ERR_INVALID, "%s has %zu bytes, at most %u", f->name, data.len, f->max);
    memcpy(w + f->w, &data, sizeof data);
    return OK;
}

static enum err put_array(const struct field *f, const char *c, char *w)
{
    size_t count = count_at(c, f);
    const void *items = pointer_at(c, f);
    if (count > f->max)
        return err_set(ERR_INVALID, "%s has %zu entries, at most %u", f->name, count, f->max);
    memcpy(w + f->w_count, &count, sizeof count);
    put_pointer(w, f, items);
    if (f->type == FIELD_FLOATS) return field_check_floats(f, items, count, ERR_INVALID);
    return f->type == FIELD_STRINGS ? field_check_items(f, items, count, ERR_INVALID) : OK;
}

static void put_id(const struct field *f, const char *c, char *w, struct scratch *s)
{
    struct id128 id;
    memcpy(&id, c + f->c, sizeof id);
    if (id128_is_none(id)) return;
    Tandem__Id *wire = take_message(s, &tandem__id__descriptor);
    if (!wire) return;
    wire->hi = id.hi;
    wire->lo = id.lo;
    put_pointer(w, f, wire);
}

static void put_bias(const struct logit_bias *bias, uint32_t count, char *w, const struct field *f,
                     struct scratch *s)
{
    Tandem__BiasColumns *columns = take_message(s, &tandem__bias_columns__descriptor);
    uint32_t *tokens = take(s, count, sizeof *tokens);
    float *biases = take(s, count, sizeof *biases);
    if (s->full) return;
    for (uint32_t i = 0; i < count; i++) {
        tokens[i] = bias[i].token;
        biases[i] = bias[i].bias;
    }
    columns->n_tokens = columns->n_biases = count;
    columns->tokens = tokens;
    columns->biases = biases;
    put_pointer(w, f, columns);
}

static Tandem__KeyColumns *key_columns(uint32_t count, struct scratch *s)
{
    Tandem__KeyColumns *k = take_message(s, &tandem__key_columns__descriptor);
    uint64_t *hi = take(s, count, sizeof *hi), *lo = take(s, count, sizeof *lo);
    uint32_t *choice = take(s, count, sizeof *choice);
    uint32_t *attempt = take(s, count, sizeof *attempt);
    if (s->full) return NULL;
    k->n_hi = k->n_lo = k->n_choice = k->n_attempt = count;
    k->hi = hi;
    k->lo = lo;
    k->choice = choice;
    k->attempt = attempt;
    return k;
}

static enum err set_key(Tandem__KeyColumns *k, uint32_t i, struct job_key key)
{
    k->hi[i] = key.request.hi;
    k->lo[i] = key.request.lo;
    k->choice[i] = key.choice;
    k->attempt[i] = key.attempt;
    return field_check_choice(key.choice, ERR_INVALID);
}

static enum err put_keys(const struct field *f, const char *c, char *w, struct scratch *s)
{
    enum err e = OK;
    const struct job_key *keys = pointer_at(c, f);
    uint32_t count = count_at(c, f);
    if (count > f->max)
        return err_set(ERR_INVALID, "%u keys in one message, at most %u", count, f->max);
    Tandem__KeyColumns *k = key_columns(count, s);
    if (!k) return OK;
    for (uint32_t i = 0; i < count && e == OK; i++)
        e = set_key(k, i, keys[i]);
    put_pointer(w, f, k);
    return e;
}

/* What the tokens of one message need of each column. */
struct token_need {
    uint32_t tokens, tops;
    bool logprobs;
};

static enum err need_tokens(struct token_need *need, const struct token_info *t, uint32_t count)
{
    enum err e;
    if (count > MSG_TOKENS_MAX - need->tokens)
        return err_set(ERR_INVALID, "more than %d tokens in one message", MSG_TOKENS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        if ((e = field_check_token(&t[i], ERR_INVALID)) != OK) return e;
        need->tops += t[i].tops_count;
        need->logprobs = need->logprobs || !isnan(t[i].logprob);
    }
    need->tokens += count;
    return OK;
}

static Tandem__TokenColumns *token_columns(const struct token_need *need, struct scratch *s)
{
    Tandem__TokenColumns *k = take_message(s, &tandem__token_columns__descriptor);
    uint32_t *tokens = take(s, need->tokens, sizeof *tokens);
    float *logprobs = need->logprobs ? take(s, need->tokens, sizeof *logprobs) : NULL;
    uint32_t *tops = need->tops ? take(s, need->tokens, sizeof *tops) : NULL;
    uint32_t *top_tokens = take(s, need->tops, sizeof *top_tokens);
    float *top_logprobs = take(s, need->tops, sizeof *top_logprobs);
    if (s->full) return NULL;
    k->tokens = tokens;
    k->logprobs = logprobs;
    k->tops = tops;
    k->top_tokens = top_tokens;
    k->top_logprobs = top_logprobs;
    return k; /* the counts grow as tokens are added */
}

static void add_tokens(Tandem__TokenColumns *k, const struct token_info *t, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        k->tokens[k->n_tokens++] = t[i].token;
        if (k->logprobs) k->logprobs[k->n_logprobs++] = t[i].logprob;
        if (k->tops) k->tops[k->n_tops++] = t[i].tops_count;
        for (uint32_t j = 0; j < t[i].tops_count; j++) {
            k->top_tokens[k->n_top_tokens++] = t[i].top[j].token;
            k->top_logprobs[k->n_top_logprobs++] = t[i].top[j].logprob;
        }
    }
}

static enum err put_tokens(const struct field *f, const char *c, char *w, struct scratch *s)
{
    bool one = f->type == FIELD_TOKEN;
    const struct token_info *t = one ? (const void *)(c + f->c) : pointer_at(c, f);
    uint32_t count = one ? 1 : count_at(c, f);
    struct token_need need = {0};
    enum err e = need_tokens(&need, t, count);
    if (e != OK) return e;
    Tandem__TokenColumns *k = token_columns(&need, s);
    if (!k) return OK;
    add_tokens(k, t, count);
    put_pointer(w, f, k);
    return OK;
}

static enum err put_runs(const struct field *f, const char *c, char *w, struct scratch *s)
{
    enum err e = OK;
    Tandem__Tokens *wire = (void *)w;
    const struct token_run *runs = pointer_at(c, f);
    uint32_t count = count_at(c, f);
    struct token_need need = {0};
    if (count > f->max)
        return err_set(ERR_INVALID, "%u sequences in one message, at most %u", count, f->max);
    for (uint32_t i = 0; i < count; i++)
        if ((e = need_tokens(&need, runs[i].tokens, runs[i].tokens_count)) != OK) return e;
    wire->index = take(s, count, sizeof *wire->index);
    wire->count = take(s, count, sizeof *wire->count);
    wire->keys = key_columns(count, s);
    wire->tokens = token_columns(&need, s);
    if (s->full) return OK;
    wire->n_index = wire->n_count = count;
    for (uint32_t i = 0; i < count && e == OK; i++) {
        wire->index[i] = runs[i].index;
        wire->count[i] = runs[i].tokens_count;
        add_tokens(wire->tokens, runs[i].tokens, runs[i].tokens_count);
        e = set_key(wire->keys, i, runs[i].key);
        if (e == OK && runs[i].index > JOB_TOKENS_MAX)
            e = err_set(ERR_INVALID, "index is %u, at most %d", runs[i].index, JOB_TOKENS_MAX);
    }
    return e;
}

static enum err put_number(const struct field *f, const char *c, char *w)
{
    if (f->type != FIELD_BOOL) return field_copy_number(f, c + f->c, w + f->w, ERR_INVALID);
    bool flag;
    memcpy(&flag, c + f->c, sizeof flag);
    protobuf_c_boolean wire_flag = flag;
    memcpy(w + f->w, &wire_flag, sizeof wire_flag);
    return OK;
}

static enum err put_fields(const struct part *p, const char *c, char *w, struct scratch *s);

static enum err put_part(const struct field *f, const char *c, char *w, struct scratch *s)
{
    char *wire = take_message(s, f->part->wire);
    if (!wire) return OK;
    put_pointer(w, f, wire);
    return put_fields(f->part, c + f->c, wire, s);
}

static enum err put_field(const struct field *f, const char *c, char *w, struct scratch *s)
{
    switch (f->type) {
    case FIELD_NAME:
    case FIELD_STRING:
    case FIELD_PROSE: return put_string(f, c, w, s);
    case FIELD_BYTES: return put_bytes(f, c, w);
    case FIELD_IDS:
    case FIELD_FLOATS:
    case FIELD_HASHES:
    case FIELD_STRINGS: return put_array(f, c, w);
    case FIELD_ID: put_id(f, c, w, s); return OK;
    case FIELD_PART: return put_part(f, c, w, s);
    case FIELD_BIAS:
        if (count_at(c, f) > f->max)
            return err_set(ERR_INVALID, "logit_bias has %u entries, at most %u", count_at(c, f),
                           f->max);
        if (count_at(c, f) > 0) put_bias(pointer_at(c, f), count_at(c, f), w, f, s);
        return OK;
    case FIELD_KEYS: return put_keys(f, c, w, s);
    case FIELD_TOKENS:
    case FIELD_TOKEN: return put_tokens(f, c, w, s);
    case FIELD_RUNS: return put_runs(f, c, w, s);
    default: return put_number(f, c, w);
    }
}

static enum err put_fields(const struct part *p, const char *c, char *w, struct scratch *s)
{
    enum err e = OK;
    for (uint32_t i = 0; i < p->fields_count && e == OK && !s->full; i++)
        e = put_field(&p->fields[i], c, w, s);
    return e;
}

/* Packs if all fits behind out->size; else says in `more` how much to reserve for the next try. */
static enum err try_encode(const struct msg *m, struct buf *out, size_t *more)
{
    struct scratch s = {.low = out->data + out->size, .high = out->data + out->capacity};
    const struct part *part = msg_part(m->kind);
    Tandem__Envelope envelope = TANDEM__ENVELOPE__INIT;
    envelope.version = MSG_VERSION;
    envelope.epoch = m->envelope.epoch;
    envelope.from = m->envelope.from;
    envelope.to = m->envelope.to;
    envelope.remaining_ms = m->envelope.remaining_ms;
    envelope.body_case = (Tandem__Envelope__BodyCase)(TANDEM__ENVELOPE__BODY_HELLO + m->kind - 1);
    void *body = take_message(&s, part->wire);
    envelope.hello = body; /* all members of the oneof are pointers */
    enum err e = body ? put_fields(part, (const char *)m + part->c, body, &s) : OK;
    if (e != OK) return e;
    *more = 2 * (out->capacity - out->size);
    if (s.full) return ERR_MORE;
    size_t wire_bytes = protobuf_c_message_get_packed_size(&envelope.base);
    if (wire_bytes > MSG_BYTES_MAX)
        return err_set(ERR_INVALID, "a message of %zu bytes, at most %d", wire_bytes,
                       MSG_BYTES_MAX);
    if (wire_bytes + 1 > (size_t)(s.high - s.low)) {
        *more = out->capacity - out->size + wire_bytes + 1;
        return ERR_MORE;
    }
    protobuf_c_message_pack(&envelope.base, (uint8_t *)s.low);
    out->size += wire_bytes;
    out->data[out->size] = '\0';
    return OK;
}

enum err msg_encode(const struct msg *m, struct buf *out)
{
    enum err e;
    size_t more = 1024;
    if (m->kind <= MSG_NONE || m->kind >= MSG_KINDS)
        return err_set(ERR_INVALID, "a message of unknown kind %d", (int)m->kind);
    if ((e = msg_check_whole(m, ERR_INVALID)) != OK) return e;
    do {
        if ((e = buf_reserve(out, more)) != OK) return e;
        e = try_encode(m, out, &more);
    } while (e == ERR_MORE);
    return e == OK ? OK : err_prefix(e, "%s", msg_kind_name(m->kind));
}
