#include "xfer/frame.h"

#include <string.h>

static const uint8_t magic[4] = {'T', 'K', 'V', '2'};

enum { COMMON_BYTES = 24 };

/* A cursor over the copied head. Reading beyond its end gives zeros and is remembered. */
struct reader {
    const uint8_t *at, *end;
    bool short_of_bytes;
};

static uint64_t get(struct reader *r, size_t size)
{
    uint64_t v = 0;
    if ((size_t)(r->end - r->at) < size) {
        r->short_of_bytes = true;
        return 0;
    }
    for (size_t i = 0; i < size; i++)
        v |= (uint64_t)r->at[i] << 8 * i;
    r->at += size;
    return v;
}
static uint32_t get_u32(struct reader *r)
{
    return (uint32_t)get(r, 4);
}
static float get_float(struct reader *r)
{
    uint32_t bits = get_u32(r);
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}
static struct id128 get_id(struct reader *r)
{
    struct id128 id;
    id.hi = get(r, 8);
    id.lo = get(r, 8);
    return id;
}

static uint8_t *put(uint8_t *at, uint64_t v, size_t size)
{
    for (size_t i = 0; i < size; i++)
        at[i] = (uint8_t)(v >> 8 * i);
    return at + size;
}
static uint8_t *put_float(uint8_t *at, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return put(at, bits, 4);
}
static uint8_t *put_id(uint8_t *at, struct id128 id)
{
    return put(put(at, id.hi, 8), id.lo, 8);
}

const char *frame_name(enum frame_kind kind)
{
    static const char *const name[] = {"?",      "HELLO",  "OPEN", "DATA", "COMMIT",
                                       "REFUSE", "CREDIT", "FAIL", "DONE"};
    return kind >= FRAME_HELLO && kind <= FRAME_DONE ? name[kind] : name[0];
}

static enum err bad(const struct frame *f, const char *what, uint64_t value)
{
    return err_set(ERR_FORMAT, "%s frame: %s is %llu", frame_name(f->kind), what,
                   (unsigned long long)value);
}

static enum err get_hello(struct reader *r, struct frame *f)
{
    f->incarnation = get_id(r);
    struct kv_geometry *g = &f->geometry;
    g->layers_count = get_u32(r);
    g->kv_heads = get_u32(r);
    g->head_dim = get_u32(r);
    g->block_tokens = get_u32(r);
    g->layout = get_u32(r);
    uint32_t dtype = get_u32(r);
    if (dtype > DTYPE_BF16) return bad(f, "dtype", dtype);
    g->dtype = (enum dtype)dtype;
    f->part.layers_first = get_u32(r);
    f->part.layers_all = get_u32(r);
    f->part.heads_first = get_u32(r);
    f->part.heads_all = get_u32(r);
    if (!kv_part_fits(g, &f->part))
        return bad(f, "a part beyond its model, its layers_first", f->part.layers_first);
    f->window_bytes = get(r, 8);
    return OK;
}

static enum err check_tokens(const struct frame *f, uint32_t first, uint32_t end)
{
    if (first % BLOCK_TOKENS != 0) return bad(f, "tokens_first", first);
    if (end <= first || end > JOB_TOKENS_MAX) return bad(f, "tokens_end", end);
    return OK;
}

static enum err get_range(struct reader *r, struct frame *f)
{
    f->range.layer = get_u32(r);
    f->range.tokens_first = get_u32(r);
    f->range.tokens_end = get_u32(r);
    f->range.heads_first = get_u32(r);
    f->range.heads_count = get_u32(r);
    f->range.attempt = get_u32(r);
    if (f->range.heads_count == 0 || f->range.heads_count > UINT32_MAX - f->range.heads_first)
        return bad(f, "heads_count", f->range.heads_count);
    if (f->range.attempt >= FRAME_TRIES_MAX) return bad(f, "try", f->range.attempt);
    return check_tokens(f, f->range.tokens_first, f->range.tokens_end);
}

static enum err get_commit(struct reader *r, struct frame *f)
{
    f->first.token = get_u32(r);
    f->first.logprob = get_float(r);
    uint32_t finish = get_u32(r);
    if (finish > FINISH_ERROR) return bad(f, "finish", finish);
    f->finish = (enum finish)finish;
    f->first.tops_count = get_u32(r);
    if (f->first.tops_count > JOB_TOPS_MAX) return bad(f, "tops_count", f->first.tops_count);
    for (uint32_t i = 0; i < f->first.tops_count; i++) {
        f->first.top[i].token = get_u32(r);
        f->first.top[i].logprob = get_float(r);
    }
    return OK;
}

static enum err get_fail(struct reader *r, struct frame *f)
{
    uint32_t error = get_u32(r);
    if (error == OK || error > ERR_DEVICE) return bad(f, "error", error);
    f->error = (enum err)error;
    uint32_t text_bytes = get_u32(r);
    if (text_bytes >= XFER_TEXT_MAX) return bad(f, "text_bytes", text_bytes);
    for (uint32_t i = 0; i < text_bytes; i++) { /* it may go into a log line */
        uint64_t c = get(r, 1);
        f->text[i] = c >= ' ' && c <= '~' && c != '"' ? (char)c : '?';
    }
    return OK;
}

static enum err get_body(struct reader *r, struct frame *f)
{
    enum err e;
    switch (f->kind) {
    case FRAME_HELLO: return get_hello(r, f);
    case FRAME_OPEN:
        f->tokens_first = get_u32(r);
        f->tokens_end = get_u32(r);
        return check_tokens(f, f->tokens_first, f->tokens_end);
    case FRAME_DATA:
        e = get_range(r, f);
        f->hash = get(r, 8);
        return e;
    case FRAME_COMMIT: return get_commit(r, f);
    case FRAME_REFUSE: return get_range(r, f);
    case FRAME_CREDIT: f->window_bytes = get(r, 8); return OK;
    case FRAME_FAIL: return get_fail(r, f);
    case FRAME_DONE: return OK;
    }
    return err_set(ERR_FORMAT, "frame of kind %u", (unsigned)f->kind);
}

enum err frame_parse(const void *bytes, size_t size, struct frame *f)
{
    uint8_t head[FRAME_HEAD_MAX];
    size_t head_bytes = size < sizeof head ? size : sizeof head;
    enum err e;
    memset(f, 0, sizeof *f);
    memcpy(head, bytes, head_bytes);
    if (head_bytes < COMMON_BYTES) return err_set(ERR_FORMAT, "a frame of %zu bytes", size);
    if (memcmp(head, magic, sizeof magic) != 0)
        return err_set(ERR_FORMAT, "no KV frame: it starts with %02x%02x%02x%02x", head[0], head[1],
                       head[2], head[3]);
    struct reader r = {head + sizeof magic, head + head_bytes, false};
    f->kind = (enum frame_kind)get(&r, 1);
    if (get(&r, 3) != 0)
        return err_set(ERR_FORMAT, "frame of kind %u: no zeros", (unsigned)f->kind);
    f->ticket = get_id(&r);
    e = get_body(&r, f);
    if (r.short_of_bytes)
        return bad(f, "too short, size", size); /* says more than what it led to */
    if (e != OK) return e;
    size_t used = (size_t)(r.at - head);
    if (f->kind == FRAME_DATA) {
        f->payload = (const uint8_t *)bytes + used;
        f->payload_bytes = size - used;
    } else if (used != size) {
        return bad(f, "too long, size", size);
    }
    bool about_link = f->kind == FRAME_HELLO || f->kind == FRAME_CREDIT;
    if (f->kind != FRAME_FAIL && about_link != id128_is_none(f->ticket))
        return bad(f, "ticket wrong, its last half", f->ticket.lo);
    return OK;
}

static uint8_t *put_commit(uint8_t *at, const struct frame *f)
{
    at = put(at, f->first.token, 4);
    at = put_float(at, f->first.logprob);
    at = put(at, f->finish, 4);
    at = put(at, f->first.tops_count, 4);
    for (uint32_t i = 0; i < f->first.tops_count; i++)
        at = put_float(put(at, f->first.top[i].token, 4), f->first.top[i].logprob);
    return at;
}

static uint8_t *put_hello(uint8_t *at, const struct frame *f)
{
    const struct kv_geometry *g = &f->geometry;
    const struct kv_part *p = &f->part;
    uint32_t numbers[] = {g->layers_count, g->kv_heads,        g->head_dim,     g->block_tokens,
                          g->layout,       (uint32_t)g->dtype, p->layers_first, p->layers_all,
                          p->heads_first,  p->heads_all};
    at = put_id(at, f->incarnation);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        at = put(at, numbers[i], 4);
    return put(at, f->window_bytes, 8);
}

static uint8_t *put_range(uint8_t *at, const struct frame_range *range)
{
    at = put(at, range->layer, 4);
    at = put(at, range->tokens_first, 4);
    at = put(at, range->tokens_end, 4);
    at = put(at, range->heads_first, 4);
    at = put(at, range->heads_count, 4);
    return put(at, range->attempt, 4);
}

size_t frame_print(const struct frame *f, uint8_t head[FRAME_HEAD_MAX])
{
    uint8_t *at = head;
    memcpy(at, magic, sizeof magic);
    at = put(at + sizeof magic, f->kind, 4); /* the kind and three zeros */
    at = put_id(at, f->ticket);
    switch (f->kind) {
    case FRAME_HELLO: at = put_hello(at, f); break;
    case FRAME_OPEN: at = put(put(at, f->tokens_first, 4), f->tokens_end, 4); break;
    case FRAME_DATA: at = put(put_range(at, &f->range), f->hash, 8); break;
    case FRAME_COMMIT: at = put_commit(at, f); break;
    case FRAME_REFUSE: at = put_range(at, &f->range); break;
    case FRAME_CREDIT: at = put(at, f->window_bytes, 8); break;
    case FRAME_FAIL: {
        size_t text_bytes = strnlen(f->text, XFER_TEXT_MAX - 1);
        at = put(put(at, f->error, 4), text_bytes, 4);
        memcpy(at, f->text, text_bytes);
        at += text_bytes;
        break;
    }
    case FRAME_DONE: break;
    }
    return (size_t)(at - head);
}
